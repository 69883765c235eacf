//! Lease → storage → ack: the one place where queue and storage meet.
//!
//! Does not know which queue, which storage, nor HTTP. Errors of the storage carry the decision;
//! nothing is matched here but their kind.

pub mod history;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::event::{ChannelName, Event, Seq};
use crate::queue::{Lease, LeaseLimit, ParkError, Queue, QueueStopped, Source};
use crate::storage::{Contact, Storage, StorageError};
use settle::Worker;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How often a parked channel is tried again: a mended one moves within 5 s.
const RETRY_PARKED: Duration = Duration::from_secs(4);
/// Most leases of a parked channel that are held at once, each of which has something left.
const HELD_LEASES: usize = 4;
/// Most payload bytes in one batch.
const BATCH_BYTES: usize = 4 << 20;
/// Most events in one batch where nothing is configured.
const AUTO_BATCH: usize = 8192;
/// Most events leased above the oldest unresolved one, all workers together.
const MAX_AHEAD: usize = 65_536;

/// What a writer tells the rest of the node.
#[derive(Clone)]
pub struct Report {
    /// The latest trouble with storage; `None` while there is none.
    pub trouble: Arc<watch::Sender<Option<String>>>,
    /// Seconds that writes to storage take.
    pub write_seconds: prometheus::Histogram,
    /// How often the storage was met: each time it may lack what it had taken.
    pub met: Arc<AtomicU64>,
}

/// Where a writer stands with its node.
#[derive(Clone)]
pub struct Orders {
    /// Turns true when the node stops: retries end, what is unwritten stays in the queue.
    pub stop: watch::Receiver<bool>,
    /// Most events a batch.
    pub limit: LeaseLimit,
    /// `writer_batch_flush_ms`: how long a batch may wait to fill while another is in the storage.
    pub flush: Duration,
    /// Batches in the storage now, all workers together.
    pub busy: Arc<AtomicUsize>,
}

/// The bounds of a batch: `writer_batch_size` where it is a number, kept below what all workers may
/// hold together.
#[must_use]
pub fn batch_limit(configured: Option<usize>, workers: usize) -> LeaseLimit {
    let most = MAX_AHEAD / workers.max(1);
    LeaseLimit { events: configured.unwrap_or(AUTO_BATCH).min(most).max(1), bytes: BATCH_BYTES }
}

/// Waits for the first contact with storage; `None` where the node stopped first.
pub async fn first_contact<S: Storage>(
    contact: impl Fn() -> Contact,
    storage: &S,
    report: &Report,
    stop: &mut watch::Receiver<bool>,
) -> Option<Option<Seq>> {
    let mut backoff = FIRST_BACKOFF;
    loop {
        match storage.connect(&contact()).await {
            Ok(last) => {
                note(report, None);
                return Some(last);
            }
            Err(e) => note(report, Some(&e)),
        }
        unless_stopped(stop, crate::task::sleep(backoff)).await?;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Whether channels were parked under another storage, which alone can take them in their turn; says
/// so, once.
pub fn parked_elsewhere<Q: Queue>(queue: &Q, report: &Report) -> bool {
    let parked = queue.stats().parked;
    if let Some(first) = parked.first() {
        let text = format!(
            "channel {} was parked under another storage_backend, whose place in the order has passed here: set storage_backend back until it has drained",
            first.channel
        );
        note(report, Some(&StorageError::retry("parked", text)));
    }
    !parked.is_empty()
}

/// One worker: runs until the queue or the node stops.
pub async fn run<Q: Queue, S: Storage>(
    queue: Arc<Q>,
    storage: Arc<S>,
    report: Report,
    orders: Orders,
) {
    let mut stop = orders.stop.clone();
    let mut last_was_full = false;
    loop {
        // an idle writer takes what is there at once; beside a busy one, small batches may fill up
        if !last_was_full && orders.busy.load(Ordering::Relaxed) > 0 {
            let _ = unless_stopped(&mut stop, crate::task::sleep(orders.flush)).await;
        }
        let Ok(mut lease) = queue.lease(&Source::Main, orders.limit).await else { return };
        last_was_full = lease.events.len() >= orders.limit.events;
        let worker = Worker { queue: &*queue, storage: &*storage, report: &report };
        orders.busy.fetch_add(1, Ordering::Relaxed);
        let settled = worker.settle(&lease.events, &mut stop).await;
        orders.busy.fetch_sub(1, Ordering::Relaxed);
        let Some(settled) = settled else { return };
        for (seqs, why) in settled.stuck.values() {
            let aside = set_aside(&*queue, &mut lease, seqs, why, &report);
            if unless_stopped(&mut stop, aside).await.is_none() {
                return;
            }
        }
        queue.ack(lease, &settled.dead).await;
    }
}

/// Takes a stuck channel's events out of a lease, however long the disk refuses.
async fn set_aside<Q: Queue>(
    queue: &Q,
    lease: &mut Lease,
    seqs: &BTreeSet<Seq>,
    why: &str,
    report: &Report,
) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        match queue.park(lease, seqs, why).await {
            Ok(()) => return,
            // whoever waits for this is stopped from outside
            Err(ParkError::Stopped) => std::future::pending().await,
            Err(e) => note(report, Some(&StorageError::retry("parking", e.to_string()))),
        }
        crate::task::sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// The one worker of parked channels: tries each again every few seconds, and drains those whose
/// storage takes them, in order. Runs until the node stops.
pub async fn run_parked<Q: Queue, S: Storage>(
    queue: Arc<Q>,
    storage: Arc<S>,
    report: Report,
    orders: Orders,
) {
    let mut stop = orders.stop.clone();
    let worker = Worker { queue: &*queue, storage: &*storage, report: &report };
    let mut held: BTreeMap<ChannelName, Held> = BTreeMap::new();
    loop {
        let mut moved = false;
        // in turn, a batch each, so that one long backlog keeps nobody waiting
        for channel in queue.stats().parked.into_iter().map(|parked| parked.channel) {
            let mut have = held.remove(&channel).unwrap_or_default();
            // what waits is tried together with what comes after: a culprit shows by the others
            if have.leases.len() < HELD_LEASES && have.has_room(orders.limit) {
                match queue.lease(&Source::Parked(channel.clone()), orders.limit).await {
                    Ok(lease) => have.add(lease),
                    Err(QueueStopped) => return,
                }
            }
            if have.leases.is_empty() {
                continue;
            }
            let Some(why) = have.attempt(&worker, &mut stop).await else { return };
            for lease in have.resolved() {
                moved = true;
                queue.ack(lease, &have.dead).await;
            }
            if !have.left.is_empty() {
                if let Some(lease) = have.leases.first_mut() {
                    // it is parked already: only the reason is news
                    let _ = queue.park(lease, &BTreeSet::new(), &why).await;
                }
                held.insert(channel, have);
                continue;
            }
        }
        let pause = if moved { Duration::ZERO } else { RETRY_PARKED };
        if unless_stopped(&mut stop, crate::task::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Leases of a parked channel, and what of them is still to be stored.
#[derive(Default)]
struct Held {
    leases: Vec<Lease>,
    left: Vec<Event>,
    dead: Vec<Seq>,
    /// The meeting with the storage at which the others were stored.
    met: u64,
}

impl Held {
    fn add(&mut self, lease: Lease) {
        if !lease.events.is_empty() {
            self.left.extend(lease.events.iter().cloned());
            self.leases.push(lease);
        }
    }

    /// Whether what is left is less than a batch.
    fn has_room(&self, limit: LeaseLimit) -> bool {
        let bytes: usize = self.left.iter().map(|event| event.payload.len()).sum();
        self.left.len() < limit.events && bytes < limit.bytes
    }

    /// The leases of which nothing is left, up to the first of which something is; they are held no
    /// more. What lies behind a stuck event may have to be stored again.
    fn resolved(&mut self) -> Vec<Lease> {
        let left: BTreeSet<Seq> = self.left.iter().map(|event| event.seq).collect();
        let whole = |lease: &&Lease| lease.events.iter().all(|e| !left.contains(&e.seq));
        let n = self.leases.iter().take_while(whole).count();
        self.leases.drain(..n).collect()
    }

    /// A storage that was met anew may lack what it had taken: all of it is left, but what is dead.
    fn met_anew(&mut self, met: u64) {
        if std::mem::replace(&mut self.met, met) == met {
            return;
        }
        let all = self.leases.iter().flat_map(|lease| &lease.events);
        let alive = |event: &&Event| self.dead.binary_search(&event.seq).is_err();
        self.left = all.filter(alive).cloned().collect();
    }

    /// Where no lease can be added, others of the channel that were stored are tried together with what
    /// is left: by them it shows what is to blame.
    fn take_in_the_last(&mut self) {
        let Some(last) = self.leases.get(HELD_LEASES - 1) else { return };
        let left: BTreeSet<Seq> = self.left.iter().map(|event| event.seq).collect();
        let living = |event: &&Event| {
            !left.contains(&event.seq) && self.dead.binary_search(&event.seq).is_err()
        };
        self.left.extend(last.events.iter().filter(living).cloned());
        self.left.sort_by_key(|event| event.seq);
    }

    /// One attempt with all that is left; why something still is. `None` where the node stopped first.
    async fn attempt<Q: Queue, S: Storage>(
        &mut self,
        worker: &Worker<'_, Q, S>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<String> {
        let met = || worker.report.met.load(Ordering::SeqCst);
        self.met_anew(met());
        self.take_in_the_last();
        let settled = worker.settle(&self.left, stop).await?;
        self.dead.extend(settled.dead);
        self.dead.sort_unstable();
        self.dead.dedup();
        let stuck: Vec<&BTreeSet<Seq>> = settled.stuck.values().map(|(seqs, _)| seqs).collect();
        self.left.retain(|e| stuck.iter().any(|seqs| seqs.contains(&e.seq)));
        let why = settled.stuck.into_values().next().map(|(_, why)| why);
        self.met_anew(met());
        Some(why.unwrap_or_else(|| "its storage was met anew meanwhile".to_owned()))
    }
}

/// Says once that trouble began, and once that it ended.
fn note(report: &Report, trouble: Option<&StorageError>) {
    let text = trouble.map(ToString::to_string);
    report.trouble.send_if_modified(|now| {
        if *now == text {
            return false;
        }
        match (&*now, &text) {
            (_, Some(text)) => tracing::error!(
                "storage takes no events: {text}; they wait in the queue and are tried again"
            ),
            (Some(_), None) => tracing::info!("storage takes events again"),
            (None, None) => {}
        }
        now.clone_from(&text);
        true
    });
}

/// What `work` gives, unless the node stops first.
async fn unless_stopped<T>(
    stop: &mut watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => None,
        done = work => Some(done),
    }
}

#[cfg(test)]
mod tests;
