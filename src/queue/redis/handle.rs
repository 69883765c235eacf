//! The queue that the rest of the node holds: requests go to the appender, leases come from the reader,
//! and what is resolved goes to whoever takes it out of the stream.
//!
//! Does not know schemas, storage or HTTP.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::keeper::note;
use super::leases::{Aside, Held};
use super::reader::LOOK_AGAIN;
use super::shared::{Contact, NOT_CERTAIN, Shared, Stage, lock};
use crate::event::{Batch, Event, Seq};
use crate::fsx::DirLock;
use crate::queue::accounts::Outcome;
use crate::queue::file::state::NodeState;
use crate::queue::{
    AppendError, Appended, DeadLetterError, DeadReason, Lease, LeaseLimit, ParkError, Queue,
    QueueStats, QueueStopped, Source,
};
use crate::seq::Witness;
use crate::watermark::Watermark;

/// How long the last answers are waited for at a stop, beyond what a command may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The tasks of a queue.
pub(super) struct Tasks {
    pub appender: JoinHandle<()>,
    pub acks: JoinHandle<()>,
    pub keeper: JoinHandle<()>,
}

/// The queue on Redis. See [`crate::queue::Queue`] for its contract.
pub struct RedisQueue {
    pub(super) shared: Arc<Shared>,
    pub(super) tasks: Mutex<Option<Tasks>>,
    pub(super) first: Seq,
    pub(super) fresh: bool,
    pub(super) _lock: Vec<DirLock>,
}

impl RedisQueue {
    /// Whether this is the node's first start here: then its identity is certain only after storage or
    /// a peer was asked.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// How far each channel is resolved; nothing is before the stream was met.
    #[must_use]
    pub fn marks(&self) -> Arc<Watermark> {
        self.shared.marks.clone()
    }

    /// What this node knows of itself.
    #[must_use]
    pub fn node(&self) -> NodeState {
        lock(&self.shared.node).record.clone()
    }

    /// Changes that durably. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says; then nothing has changed.
    pub fn change_node(&self, change: impl FnOnce(&mut NodeState)) -> std::io::Result<()> {
        lock(&self.shared.node).update(change)
    }

    /// The first seq that this start may give out.
    #[must_use]
    pub fn first_seq(&self) -> Option<Seq> {
        Some(self.first)
    }

    /// A seq of ours was seen somewhere.
    pub fn seen(&self, seq: Seq, witness: Witness) {
        self.shared.inbox.seen(seq, witness);
    }

    /// Storage or a peer has answered: from now on seqs may be given out, and later starts need not ask
    /// again. Blocks on the disk.
    ///
    /// # Errors
    /// Where that could not be made durable; then nothing has changed.
    pub fn identity_certain(&self) -> std::io::Result<()> {
        if self.shared.certain.load(Ordering::SeqCst) {
            return Ok(());
        }
        lock(&self.shared.node).update(|state| state.certain = true)?;
        self.shared.certain.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Waits until the stream was met: from then on it is known below which seq nothing comes again.
    pub async fn met(&self) {
        let mut contact = self.shared.contact.subscribe();
        let _ = contact.wait_for(|contact| *contact == Contact::Made).await.map(drop);
    }

    /// How long a refused client should wait, from the drain rate of the last seconds.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.shared.accounts.retry_after()
    }

    /// Ends the red state: forgets the reported losses; how many reports that were. Blocks.
    ///
    /// # Errors
    /// What the disk says; then nothing has changed.
    pub fn acknowledge_damage(&self) -> std::io::Result<usize> {
        let mut book = lock(&self.shared.book);
        let n = book.record.losses.len();
        if n > 0 {
            book.update(|record| record.losses.clear())?;
        }
        lock(&self.shared.view).losses.clear();
        Ok(n)
    }

    /// Hands out no more leases; those under way may still be acked. Waiters are woken.
    pub fn stop_leasing(&self) {
        self.shared.leasing.store(false, Ordering::SeqCst);
        self.shared.more.notify_waiters();
    }

    fn tell(&self, stage: Stage) {
        self.shared.stage.send_if_modified(|now| {
            let later = stage > *now;
            *now = stage.max(*now);
            later
        });
        self.shared.acks.wake();
        self.shared.alarm.notify_one();
    }

    /// Takes no more appends, sends what waits, acknowledges what is resolved, writes the last witness
    /// and ends the tasks. What Redis does not answer meanwhile is left to the next start.
    pub async fn close(&self) {
        self.stop_leasing();
        self.shared.inbox.stop();
        self.tell(Stage::Closes);
        let Some(tasks) = lock(&self.tasks).take() else { return };
        let most = self.shared.options.timeout + LAST_ANSWERS;
        let ended = async { tokio::join!(tasks.appender, tasks.acks) };
        let in_order = tokio::time::timeout(most, ended).await.is_ok();
        let met = *self.shared.contact.borrow() == Contact::Made;
        let decided = lock(&self.shared.undecided).is_empty() && self.shared.acks.is_empty();
        if met {
            note(&self.shared, in_order && decided).await;
        }
        self.tell(Stage::Over);
        let _ = tokio::time::timeout(most, tasks.keeper).await;
    }

    /// Every event of a lease is resolved; who hears when Redis knows of it, where it is told now. The
    /// gate must be held.
    fn resolve(&self, lease: &Lease, dead: &[Seq]) -> Option<oneshot::Receiver<()>> {
        // held to the end: whoever reads an event again finds it in one place or the other
        let mut leases = lock(&self.shared.leases);
        let done = leases.done(&lease.from, lease.id);
        debug_assert!(done.is_some(), "a lease is acked once");
        let held = done?;
        let is_dead = |held: &Held| dead.binary_search(&held.seq).is_ok();
        let outcome =
            |held: &Held| if is_dead(held) { Outcome::DeadLettered } else { Outcome::Stored };
        let group = held.iter().map(|held| (Some(&held.channel), held.load, outcome(held)));
        self.shared.accounts.resolved(group);
        // whatever becomes of it in Redis, it stands in storage or is a dead letter
        self.shared.marks.with(|marks| match &lease.from {
            Source::Main => marks.resolved(lease.id),
            Source::Parked(channel) => {
                let oldest = leases.aside(channel).and_then(Aside::oldest);
                marks.parked_to(channel, oldest.unwrap_or_default());
            }
        });
        // an entry of which others still hold events waits for them
        let wholes = leases.resolve(&held);
        let from_main = lease.from == Source::Main;
        (!wholes.is_empty()).then(|| self.shared.acks.push(wholes, from_main))
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
            let lease = self.shared.reading.lock().await.next(&self.shared, limit).await;
            if let Some(lease) = lease {
                return Ok(lease);
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, more).await;
        }
    }
}

impl Drop for RedisQueue {
    /// A queue that nobody holds has no tasks left that could write.
    fn drop(&mut self) {
        self.stop_leasing();
        self.shared.inbox.stop();
        self.tell(Stage::Over);
    }
}

impl Queue for RedisQueue {
    async fn append(&self, batch: Batch) -> Result<Appended, AppendError> {
        self.push(batch, None)?
            .await
            .unwrap_or_else(|_| Err(AppendError::Doubt { reason: "the appender ended".to_owned() }))
    }

    async fn lease(&self, from: &Source, limit: LeaseLimit) -> Result<Lease, QueueStopped> {
        match from {
            Source::Main => self.lease_main(limit).await,
            Source::Parked(channel) => self.shared.lease_parked(channel, limit).await,
        }
    }

    async fn park(
        &self,
        lease: &mut Lease,
        seqs: &BTreeSet<Seq>,
        why: &str,
    ) -> Result<(), ParkError> {
        let parked = self.shared.park(lease, seqs, why).await;
        // whoever waits for these events to be out of the way
        self.shared.more.notify_waiters();
        parked
    }

    async fn ack(&self, lease: Lease, dead: &[Seq]) {
        let heard = loop {
            let gate = self.shared.gate.read().await;
            let again = lock(&self.shared.dead).to_keep_again(&lease.events, dead);
            if again.is_empty() {
                break self.resolve(&lease, dead);
            }
            drop(gate);
            // a lease that does not end is handed out once more by the next start
            if !self.shared.keep_again(&again).await {
                return;
            }
        };
        if let Some(heard) = heard {
            // without an answer the next start may deliver them again, under the same seqs
            let _ = tokio::time::timeout(self.shared.options.timeout, heard).await;
        }
        if lock(&self.shared.leases).any_parked() {
            self.shared.more.notify_waiters();
        }
    }

    async fn dead_letters(&self, letters: &[(Event, DeadReason)]) -> Result<(), DeadLetterError> {
        self.shared.keep_dead(letters).await
    }

    fn is_dead(&self, seq: Seq) -> bool {
        lock(&self.shared.dead).has(seq)
    }

    fn first_unacked(&self) -> Seq {
        lock(&self.shared.leases).first_unacked()
    }

    fn stats(&self) -> QueueStats {
        let (channels, queued, drain_per_second) = self.shared.accounts.snapshot();
        let (parked, leased) = {
            let leases = lock(&self.shared.leases);
            (leases.parked(), leases.oldest())
        };
        let view = lock(&self.shared.view).clone();
        let oldest = [leased, view.oldest].into_iter().flatten().min();
        let certain = self.shared.certain.load(Ordering::SeqCst);
        let refusing = self.shared.refusing();
        let refusing = refusing.or_else(|| (!certain).then(|| NOT_CERTAIN.to_owned()));
        let mut server = view.server;
        if !server.is_empty() {
            server.push(("foreign_entries".to_owned(), view.foreign.to_string()));
        }
        QueueStats {
            channels,
            bytes: queued.bytes,
            oldest_micros: oldest.filter(|_| queued.events > 0).map(|at| at.0),
            drain_per_second,
            refusing,
            damage: view.losses,
            parked,
            server,
            doubts: view.doubts,
        }
    }
}
