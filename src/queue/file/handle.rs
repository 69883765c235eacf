//! The queue that the rest of the node holds: requests go to the log thread, leases come from the
//! reader, and a keeper thread makes acks durable and deletes what is released.
//!
//! Does not know schemas, storage or HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::ack::{AckRecord, Tracker, WRITER};
use super::appender::{Inbox, Pending, SyncMode};
use super::dead::{DeadLetters, damage_of};
use super::log::{Index, LogOptions};
use super::parked::ParkedLog;
use super::parking::{Parking, Read, by_channel};
use super::reader::{Reader, Reading};
use super::record::{Body, MAX_PAYLOAD, cost, load_of};
use super::recovery::Damage;
use super::segment::path_of;
use super::slots::Slots;
use super::state::{NodeState, StateFile};
use crate::clock::Clock;
use crate::event::{Batch, ChannelName, Event, Micros, Seq};
use crate::fsx::{DirLock, Disk, parent};
use crate::queue::accounts::{Accounts, Load, Outcome};
use crate::queue::{
    AppendError, Appended, DeadLetterError, DeadReason, Lease, LeaseLimit, ParkError, Parked,
    Queue, QueueStats, QueueStopped, Source,
};
use crate::seq::Witness;
use crate::task;
use crate::watermark::Watermark;

/// How often acks are made durable: a hint, so losing the last ones costs a replay and no more.
const KEEP_EVERY: Duration = Duration::from_millis(200);
/// The first pause after settled dead letters could not be cleared away; it doubles, to an hour.
const PURGE_AGAIN: Duration = Duration::from_secs(60);

/// What the parts of the queue share.
pub struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) base: PathBuf,
    /// How the main log is made.
    pub(super) main: LogOptions,
    pub(super) clock: Clock,
    pub(super) sync: SyncMode,
    pub(super) min_free_bytes: u64,
    pub(super) accounts: Accounts,
    pub(super) index: Arc<Index>,
    pub(super) inbox: Inbox,
    /// Rung whenever more was synced, and on stop.
    pub(super) more: Notify,
    pub(super) tracker: Mutex<Tracker>,
    pub(super) reader: Mutex<Reader>,
    pub(super) parking: Mutex<Parking>,
    /// How far each channel is resolved.
    pub(super) marks: Arc<Watermark>,
    /// What is set aside, and when its oldest event was accepted, to look at without waiting.
    pub(super) parked_view: Mutex<(Vec<Parked>, Option<Micros>)>,
    pub(super) any_parked: AtomicBool,
    /// Where set, nothing above it is deleted, released or not.
    pub(super) kept: Mutex<Option<Kept>>,
    pub(super) dead: DeadLetters,
    pub(super) state: Mutex<StateFile>,
    pub(super) ack: Mutex<(Slots<AckRecord>, AckRecord)>,
    pub(super) refusing: Mutex<Option<String>>,
    /// A copy of the state's, to look at without waiting for the disk.
    pub(super) damage: Mutex<Vec<Damage>>,
    /// When the next event to be leased was accepted, as of a moment ago.
    pub(super) next_at: Mutex<Option<Micros>>,
    pub(super) certain: AtomicBool,
    pub(super) leasing: AtomicBool,
    /// The first seq that this start can deliver: nothing below it comes again.
    pub(super) deliverable: Seq,
    pub(super) witness: Mutex<(Seq, u64)>,
    pub(super) sync_seconds: prometheus::Histogram,
    pub(super) keeper: (Mutex<bool>, std::sync::Condvar),
    /// One operator's decision about dead letters at a time.
    pub(super) redriving: tokio::sync::Mutex<()>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, StateFile> {
        lock(&self.state)
    }

    pub(super) fn refusing(&self) -> Option<String> {
        lock(&self.refusing).clone()
    }

    pub(super) fn refuse(&self, reason: Option<String>) {
        let mut refusing = lock(&self.refusing);
        match (&*refusing, &reason) {
            (None, Some(why)) => tracing::error!("appends are refused: {why}"),
            (Some(_), None) => tracing::info!("appends are taken again"),
            _ => {}
        }
        *refusing = reason;
    }

    pub(super) fn set_witness(&self, witness: (Seq, u64)) {
        *lock(&self.witness) = witness;
    }

    fn report(&self, damage: &Damage) -> std::io::Result<bool> {
        let mut state = self.state();
        let reported = state.report(damage);
        lock(&self.damage).clone_from(&state.record.damage);
        reported
    }

    pub(super) fn note_loss(&self, reading: &Reading) {
        for damage in &reading.damage {
            match self.report(damage) {
                Ok(true) => tracing::error!(
                    segment = damage.segment,
                    from = damage.from,
                    to = damage.to,
                    events = damage.events,
                    "the log is damaged: {damage}"
                ),
                Ok(false) => {}
                Err(e) => tracing::error!("damage could not be recorded ({e}): {damage}"),
            }
        }
        let lost = reading.lost.iter().map(|(c, load)| (c.as_ref(), *load, Outcome::Lost));
        self.accounts.resolved(lost);
    }

    /// Makes the positions durable, then deletes what lies wholly before them.
    pub(super) fn keep(&self) -> std::io::Result<()> {
        if self.any_parked.load(Ordering::SeqCst) {
            let mut parking = lock(&self.parking);
            self.keep_with(&mut parking)
        } else {
            self.keep_with(&mut Parking { main: self.main.clone(), channels: BTreeMap::new() })
        }
    }

    fn keep_with(&self, parking: &mut Parking) -> std::io::Result<()> {
        let (change, oldest, released) = {
            let mut tracker = lock(&self.tracker);
            (tracker.take_change(), tracker.oldest_segment(), tracker.released())
        };
        // the storage may yet turn out to lack what it took last
        let kept = lock(&self.kept).clone();
        let oldest = match &kept {
            Some(kept) if kept.main < released => self.index.holding_above(kept.main).min(oldest),
            _ => oldest,
        };
        let mut ack = lock(&self.ack);
        let (slots, record) = &mut *ack;
        let (parked, parked_unneeded) = Self::keep_parked(parking, record, kept.as_ref());
        // a start looks there whether a dead letter that was being put back is in the log
        let deletable = !self.dead.is_redriving();
        let old = deletable && self.index.oldest().is_some_and(|first| first < oldest);
        if change.is_none() && !old && parked == record.parked {
            return Ok(());
        }
        let mut next = record.clone();
        if let Some(position) = change {
            next.consumers.insert(WRITER.to_owned(), position);
        }
        let (last, events) = *lock(&self.witness);
        next.witness = (last.0, events);
        next.parked = parked;
        // the other slot may be the one that a start reads: only what neither needs is deleted
        let unneeded = record.oldest.min(oldest);
        next.oldest = next.oldest.max(oldest);
        if let Err(e) = slots.write(&next) {
            lock(&self.tracker).still_changed();
            parking.still_changed();
            return Err(e);
        }
        *record = next;
        drop(ack);
        // only now does nothing need them
        let mut result = self.drop_parked(parking, &parked_unneeded);
        if !deletable {
            return result;
        }
        let gone = self.index.drop_before(unneeded);
        for begun in &gone {
            result = result.and(self.disk.remove(&path_of(&self.base, *begun)));
        }
        if gone.is_empty() { result } else { result.and(self.disk.sync_dir(parent(&self.base))) }
    }

    /// Looks ahead for [`QueueStats::oldest_micros`], where nobody waits for the disk.
    fn look_ahead(&self) {
        if let Ok(mut reader) = self.reader.try_lock() {
            let next = reader.peek().ok().flatten();
            *lock(&self.next_at) = next.map(|(_, at)| at);
        }
    }

    /// Clears settled dead letters away.
    pub(super) fn purge_settled(&self) -> std::io::Result<()> {
        // what cannot be read now would be gone with the old segments
        for damage in damage_of(&*self.disk, self.dead.base())? {
            if self.report(&damage)? {
                tracing::error!(segment = damage.segment, "the log is damaged: {damage}");
            }
        }
        if !self.letters_whole() {
            return Err(std::io::Error::other(
                "dead letters are damaged: nothing is cleared away before `replicon log repair --acknowledge`",
            ));
        }
        self.dead.purge(self.gone_below())
    }

    /// Whether no dead letters are damaged that nobody has acknowledged.
    fn letters_whole(&self) -> bool {
        !lock(&self.damage).iter().any(|damage| damage.letters)
    }

    /// Clears settled dead letters away where they take up too much.
    fn purge_dead(&self, pause: &mut Pause) {
        let now = self.clock.mono();
        if now < pause.until || !self.letters_whole() || !self.dead.wants_purge() {
            return;
        }
        match self.purge_settled() {
            Ok(()) => *pause = Pause::default(),
            Err(e) => {
                // a pass that failed half-way has taken room
                pause.length = (pause.length * 2).clamp(PURGE_AGAIN, PURGE_AGAIN * 60);
                pause.until = now + pause.length;
                tracing::error!("settled dead letters cannot be cleared away: {e}");
            }
        }
    }

    pub(super) fn keep_until_stopped(&self) {
        let (stop, bell) = &self.keeper;
        let mut failing = false;
        let mut purge = Pause::default();
        loop {
            let stopping = {
                let guard = lock(stop);
                let wait = bell.wait_timeout_while(guard, KEEP_EVERY, |stop| !*stop);
                *wait.unwrap_or_else(PoisonError::into_inner).0
            };
            self.look_ahead();
            self.settle_abandoned();
            self.purge_dead(&mut purge);
            match self.keep() {
                Ok(()) => failing = false,
                Err(e) if !failing => {
                    failing = true;
                    tracing::error!(
                        "the ack record cannot be written: {e}; a restart would replay"
                    );
                }
                Err(_) => {}
            }
            if stopping {
                // once more, so that both slots know it
                let _ = self.keep();
                return;
            }
        }
    }
}

/// How far events may go: no segment that holds any above it is deleted.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// In the main log.
    pub main: Seq,
    /// In the logs of channels that are set aside; nothing of those that are not named may go.
    pub channels: BTreeMap<ChannelName, Seq>,
}

impl Kept {
    /// Of a channel that is set aside.
    pub(super) fn of(&self, channel: &ChannelName) -> Seq {
        self.channels.get(channel).copied().unwrap_or_default()
    }
}

/// When something that failed is tried again, by the monotonic clock.
#[derive(Default)]
struct Pause {
    until: Duration,
    length: Duration,
}

/// The file queue. See [`crate::queue::Queue`] for its contract.
pub struct FileQueue {
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub(super) first: Seq,
    pub(super) fresh: bool,
    pub(super) _lock: Vec<DirLock>,
}

impl FileQueue {
    /// Whether this is the node's first start here: then its identity is certain only after storage
    /// or a peer was asked.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// How far each channel is resolved.
    #[must_use]
    pub fn marks(&self) -> Arc<Watermark> {
        self.shared.marks.clone()
    }

    /// What this node knows of itself.
    #[must_use]
    pub fn node(&self) -> NodeState {
        self.shared.state().record.clone()
    }

    /// Changes that durably. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says; then nothing has changed.
    pub fn change_node(&self, change: impl FnOnce(&mut NodeState)) -> std::io::Result<()> {
        self.shared.state().update(change)
    }

    /// The first seq that this start may give out.
    #[must_use]
    pub fn first_seq(&self) -> Seq {
        self.first
    }

    /// Every event of the main log at or below it is resolved, or stands in a log of its own.
    #[must_use]
    pub fn released(&self) -> Seq {
        lock(&self.shared.tracker).released()
    }

    /// From now on no segment that holds anything above that is deleted, released or not: what the
    /// storage took last may have to be written once more.
    pub fn keep_above(&self, kept: Kept) {
        *lock(&self.shared.kept) = Some(kept);
    }

    /// A seq of ours was seen somewhere.
    pub fn seen(&self, seq: Seq, witness: Witness) {
        self.shared.inbox.seen(seq, witness);
    }

    /// Storage or a peer has answered: from now on seqs may be given out, and later starts need not
    /// ask again. Blocks on the disk.
    ///
    /// # Errors
    /// Where that could not be made durable; then nothing has changed.
    pub fn identity_certain(&self) -> std::io::Result<()> {
        if self.shared.certain.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.shared.state().update(|state| state.certain = true)?;
        self.shared.certain.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// How long a refused client should wait, from the drain rate of the last seconds.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.shared.accounts.retry_after()
    }

    /// Hands a batch to the log thread; what comes of it is awaited.
    pub(super) fn push(
        &self,
        batch: Batch,
        redrives: Option<Seq>,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, AppendError> {
        if !self.shared.certain.load(Ordering::SeqCst) {
            let reason = "this node's first start: storage or a peer must be reached once, to learn which seqs are in use";
            return Err(AppendError::Unavailable { reason: reason.to_owned() });
        }
        let load = load_of(&batch);
        self.shared.accounts.reserve(&batch.channel, load)?;
        let (answer, answered) = oneshot::channel();
        let body = Body::events(&batch);
        if body.bytes.len() > MAX_PAYLOAD as usize {
            self.shared.accounts.release_reserved(&batch.channel, load);
            return Err(AppendError::TooLarge { ceiling: "512 MiB a request" });
        }
        let pending = Pending { body, channel: batch.channel, load, redrives, answer };
        if let Err((back, reason)) = self.shared.inbox.push(pending) {
            self.shared.accounts.release_reserved(&back.channel, back.load);
            return Err(AppendError::Unavailable { reason: reason.to_owned() });
        }
        Ok(answered)
    }

    async fn lease_main(&self, limit: LeaseLimit) -> Result<Lease, QueueStopped> {
        loop {
            // registered before the look, so that nothing falls between them
            let more = self.shared.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if !self.shared.leasing.load(Ordering::SeqCst) {
                return Err(QueueStopped);
            }
            let shared = self.shared.clone();
            match task::blocking(move || shared.read(limit)).await {
                Ok(Read::Lease(lease)) => return Ok(lease),
                Ok(Read::Again) => {}
                Ok(Read::Nothing) => more.await,
                Err(e) => {
                    tracing::error!("the log cannot be read: {e}; tried again in a second");
                    let _ = tokio::time::timeout(Duration::from_secs(1), more).await;
                }
            }
        }
    }

    async fn lease_parked(
        &self,
        channel: &ChannelName,
        limit: LeaseLimit,
    ) -> Result<Lease, QueueStopped> {
        if !self.shared.leasing.load(Ordering::SeqCst) {
            return Err(QueueStopped);
        }
        let (shared, theirs) = (self.shared.clone(), channel.clone());
        let read = task::blocking(move || shared.read_parked(&theirs, limit)).await;
        let lease = read.unwrap_or_else(|e| {
            tracing::error!(%channel, "the log of parked channel {channel} cannot be read: {e}; tried again in a few seconds");
            None
        });
        let from = Source::Parked(channel.clone());
        Ok(lease.unwrap_or(Lease { id: 0, from, events: Vec::new() }))
    }

    /// Waits until no older lease holds events of the channel: copies stand in order.
    async fn turn(&self, id: u64, channel: &ChannelName, why: &str) -> Result<(), ParkError> {
        loop {
            let more = self.shared.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if !self.shared.leasing.load(Ordering::SeqCst) {
                return Err(ParkError::Stopped);
            }
            if self.shared.begin_parking(id, channel, why) {
                return Ok(());
            }
            more.await;
        }
    }

    /// Hands out no more leases; those under way may still be acked. Waiters are woken.
    pub fn stop_leasing(&self) {
        self.shared.leasing.store(false, Ordering::SeqCst);
        self.shared.more.notify_waiters();
    }

    /// Takes no more appends, writes what waits, seals the log, makes the acks durable, ends the
    /// threads and gives up the directory. Blocks.
    pub fn close(&self) {
        self.stop_leasing();
        self.shared.inbox.stop();
        let mut threads = lock(&self.threads);
        // the log thread first: the keeper's last record bears witness to what it sealed
        for (i, thread) in threads.drain(..).enumerate() {
            if i == 1 {
                self.shared.seal_parked();
                *lock(&self.shared.keeper.0) = true;
                self.shared.keeper.1.notify_one();
            }
            let _ = thread.join();
        }
        if let Err(e) = self.shared.dead.close() {
            tracing::error!("the dead-letter log could not be sealed: {e}");
        }
    }
}

impl Drop for FileQueue {
    /// A queue that nobody holds has no threads left that could write.
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue for FileQueue {
    async fn append(&self, batch: Batch) -> Result<Appended, AppendError> {
        self.push(batch, None)?.await.unwrap_or_else(|_| {
            Err(AppendError::Doubt { reason: "the log thread ended".to_owned() })
        })
    }

    async fn lease(&self, from: &Source, limit: LeaseLimit) -> Result<Lease, QueueStopped> {
        match from {
            Source::Main => self.lease_main(limit).await,
            Source::Parked(channel) => self.lease_parked(channel, limit).await,
        }
    }

    async fn park(
        &self,
        lease: &mut Lease,
        seqs: &BTreeSet<Seq>,
        why: &str,
    ) -> Result<(), ParkError> {
        if let Source::Parked(channel) = &lease.from {
            self.shared.still_parked(channel, why);
            return Ok(());
        }
        for (channel, events) in by_channel(lease, seqs) {
            self.turn(lease.id, &channel, why).await?;
            let (shared, id, theirs) = (self.shared.clone(), lease.id, channel.clone());
            task::blocking(move || shared.copy_aside(id, &theirs, &events)).await?;
            lease.events.retain(|e| e.channel != channel || !seqs.contains(&e.seq));
        }
        Ok(())
    }

    async fn ack(&self, lease: Lease, dead: &[Seq]) {
        let mut group: Vec<(_, Load, Outcome)> = Vec::new();
        for event in &lease.events {
            let outcome = if dead.binary_search(&event.seq).is_ok() {
                Outcome::DeadLettered
            } else {
                Outcome::Stored
            };
            let load = Load { events: 1, bytes: cost(event.payload.len()) };
            match group.last_mut() {
                Some((channel, sum, o)) if *channel == &event.channel && *o == outcome => {
                    *sum = sum.plus(load);
                }
                _ => group.push((&event.channel, load, outcome)),
            }
        }
        if lease.from == Source::Main {
            // first: what is released is never above what is known to be resolved
            self.shared.marks.with(|marks| marks.resolved(lease.id));
        }
        let known = match &lease.from {
            Source::Main => lock(&self.shared.tracker).done(lease.id),
            Source::Parked(channel) => self.shared.done_parked(channel, lease.id),
        };
        debug_assert!(known, "a lease is acked once");
        self.shared.accounts.resolved(group.into_iter().map(|(c, l, o)| (Some(c), l, o)));
        if self.shared.any_parked.load(Ordering::SeqCst) {
            // whoever waits for this lease's events to be out of the way
            self.shared.more.notify_waiters();
        }
    }

    async fn dead_letters(&self, letters: &[(Event, DeadReason)]) -> Result<(), DeadLetterError> {
        let (shared, letters) = (self.shared.clone(), letters.to_vec());
        task::blocking(move || shared.dead.put(&letters)).await
    }

    fn is_dead(&self, seq: Seq) -> bool {
        self.shared.dead.contains(seq)
    }

    fn first_unacked(&self) -> Seq {
        let main = lock(&self.shared.tracker).released().next().max(self.shared.deliverable);
        let parking = lock(&self.shared.parking);
        let logs = parking.channels.values().filter_map(|aside| aside.log.as_ref());
        logs.map(ParkedLog::first_unacked).min().map_or(main, |parked| parked.min(main))
    }

    fn stats(&self) -> QueueStats {
        let (channels, queued, drain_per_second) = self.shared.accounts.snapshot();
        let leased = lock(&self.shared.tracker).oldest();
        let (parked, oldest_parked) = lock(&self.shared.parked_view).clone();
        let oldest = leased.or_else(|| *lock(&self.shared.next_at));
        let oldest = oldest.into_iter().chain(oldest_parked).min();
        let refusing = if self.shared.certain.load(Ordering::SeqCst) {
            self.shared.refusing()
        } else {
            Some("identity not certain: storage has not answered yet".to_owned())
        };
        QueueStats {
            channels,
            bytes: queued.bytes,
            oldest_micros: oldest.map(|at| at.0),
            drain_per_second,
            refusing,
            damage: lock(&self.shared.damage).iter().map(ToString::to_string).collect(),
            parked,
            ..QueueStats::default()
        }
    }
}
