//! Lease → storage → ack: the one place where queue and storage meet.
//!
//! Does not know which queue, which storage, nor HTTP. Errors of the storage carry the decision;
//! nothing is matched here but their kind.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::event::{Event, Seq};
use crate::queue::{DeadReason, LeaseLimit, Queue};
use crate::storage::{Kind, Storage, StorageError};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
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
pub async fn first_contact<Q: Queue, S: Storage>(
    queue: &Q,
    storage: &S,
    report: &Report,
    stop: &mut watch::Receiver<bool>,
) -> Option<Option<Seq>> {
    let mut backoff = FIRST_BACKOFF;
    loop {
        match storage.connect(queue.first_unacked()).await {
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
        let Ok(lease) = queue.lease(orders.limit).await else { return };
        last_was_full = lease.events.len() >= orders.limit.events;
        let worker = Worker { queue: &*queue, storage: &*storage, report: &report };
        orders.busy.fetch_add(1, Ordering::Relaxed);
        let settled = worker.settle(&lease.events, &mut stop).await;
        orders.busy.fetch_sub(1, Ordering::Relaxed);
        let Some(dead) = settled else { return };
        queue.ack(lease, &dead).await;
    }
}

struct Worker<'a, Q, S> {
    queue: &'a Q,
    storage: &'a S,
    report: &'a Report,
}

impl<Q: Queue, S: Storage> Worker<'_, Q, S> {
    /// Resolves every event, however long that takes: the seqs that are dead letters. `None` where
    /// the node stopped first; then nothing may be acked.
    async fn settle(&self, events: &[Event], stop: &mut watch::Receiver<bool>) -> Option<Vec<Seq>> {
        // a seq that has a dead letter was resolved before a crash: untried
        let mut dead: Vec<Seq> =
            events.iter().map(|e| e.seq).filter(|seq| self.queue.is_dead(*seq)).collect();
        let left: Vec<Event>;
        let mut stack = if dead.is_empty() {
            vec![events]
        } else {
            left = events.iter().filter(|e| !dead.contains(&e.seq)).cloned().collect();
            vec![&left[..]]
        };
        // halves are stored in order, so that storage with one lane sees rising seqs
        while let Some(part) = stack.pop() {
            if part.is_empty() {
                continue;
            }
            match (self.store(part, stop).await?, part) {
                (Ok(()), _) => {}
                (Err(e), [culprit]) => {
                    if self.bury(culprit, &e, stop).await? {
                        dead.push(culprit.seq);
                    }
                }
                (Err(_), part) => {
                    let (a, b) = part.split_at(part.len() / 2);
                    stack.push(b);
                    stack.push(a);
                }
            }
        }
        Some(dead)
    }

    /// Stores a part, retrying through every outage; the error is a refusal of the data.
    async fn store(
        &self,
        part: &[Event],
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Result<(), StorageError>> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let timer = self.report.write_seconds.start_timer();
            let result = self.storage.append(part).await;
            timer.observe_duration();
            match result {
                Ok(()) => {
                    note(self.report, None);
                    return Some(Ok(()));
                }
                Err(e) if e.kind == Kind::Reject => return Some(Err(e)),
                Err(e) => note(self.report, Some(&e)),
            }
            unless_stopped(stop, crate::task::sleep(backoff)).await?;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Keeps a refused event as a dead letter, unless it stands in storage after all; whether it is
    /// one now.
    async fn bury(
        &self,
        event: &Event,
        why: &StorageError,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<bool> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.storage.stands(event.seq).await {
                Ok(true) => return Some(false),
                Ok(false) => {
                    let reason = DeadReason { code: why.code.clone(), text: why.text.clone() };
                    match self.queue.dead_letter(event, &reason).await {
                        Ok(()) => {
                            tracing::error!(
                                seq = %event.seq, channel = %event.channel, code = %why.code,
                                "storage refuses event {} of channel {}: {why}; it is kept as a dead letter",
                                event.seq, event.channel
                            );
                            return Some(true);
                        }
                        Err(e) => note(
                            self.report,
                            Some(&StorageError::retry("dead_letter", e.to_string())),
                        ),
                    }
                }
                Err(e) => note(self.report, Some(&e)),
            }
            unless_stopped(stop, crate::task::sleep(backoff)).await?;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
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
