//! The queue without a disk: the reference model that the others are compared with.
//!
//! For tests and simulation. Clones share one queue; [`MemoryQueue::reopen`] is a restart.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::accounts::{Accounts, Ceilings, Load, Outcome};
use super::file::record::{cost, load_of};
use super::{
    AppendError, Appended, DeadLetterError, DeadReason, Lease, LeaseLimit, Queue, QueueStats,
    QueueStopped,
};
use crate::clock::Clock;
use crate::event::{Batch, Event, Seq};

#[derive(Default)]
struct State {
    /// Everything not released, in order.
    events: VecDeque<Event>,
    next: u64,
    /// How many of `events` are leased.
    leased: usize,
    leases: VecDeque<(u64, usize, bool)>,
    next_lease: u64,
    released: Seq,
    dead: BTreeSet<Seq>,
    stopped: bool,
}

/// A queue in memory.
#[derive(Clone)]
pub struct MemoryQueue {
    state: Arc<Mutex<State>>,
    accounts: Arc<Accounts>,
    more: Arc<Notify>,
}

impl MemoryQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(ceilings: Ceilings, clock: Clock) -> Self {
        Self {
            state: Arc::new(Mutex::new(State { next: 1, ..State::default() })),
            accounts: Arc::new(Accounts::new(ceilings, clock)),
            more: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As after a crash and a start: whatever was leased and not released is there again.
    #[must_use]
    pub fn reopen(self) -> Self {
        {
            let mut state = self.lock();
            state.leased = 0;
            state.leases.clear();
            state.stopped = false;
        }
        self
    }

    /// Ends all waiting for leases.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.more.notify_waiters();
    }

    fn try_lease(&self, limit: LeaseLimit) -> Option<Lease> {
        let mut state = self.lock();
        let (mut events, mut bytes) = (Vec::new(), 0);
        for event in state.events.iter().skip(state.leased) {
            bytes += event.payload.len();
            if !events.is_empty() && (events.len() >= limit.events || bytes > limit.bytes) {
                break;
            }
            events.push(event.clone());
        }
        if events.is_empty() {
            return None;
        }
        state.leased += events.len();
        state.next_lease += 1;
        let id = state.next_lease;
        state.leases.push_back((id, events.len(), false));
        Some(Lease { id, events })
    }
}

impl Queue for MemoryQueue {
    async fn append(&self, batch: Batch) -> Result<Appended, AppendError> {
        let load = load_of(&batch);
        self.accounts.reserve(&batch.channel, load)?;
        let mut state = self.lock();
        let first = Seq(state.next);
        for payload in batch.payloads {
            let seq = Seq(state.next);
            state.next += 1;
            state.events.push_back(Event {
                seq,
                channel: batch.channel.clone(),
                mode: batch.mode,
                received_at: batch.received_at,
                payload,
            });
        }
        let last = Seq(state.next - 1);
        self.accounts.accepted([(&batch.channel, load)].into_iter());
        drop(state);
        self.more.notify_waiters();
        Ok(Appended { first, last })
    }

    async fn lease(&self, limit: LeaseLimit) -> Result<Lease, QueueStopped> {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if self.lock().stopped {
                return Err(QueueStopped);
            }
            if let Some(lease) = self.try_lease(limit) {
                return Ok(lease);
            }
            more.await;
        }
    }

    async fn ack(&self, lease: Lease, dead: &[Seq]) {
        let outcome = |event: &Event| {
            let load = Load { events: 1, bytes: cost(event.payload.len()) };
            let died = dead.contains(&event.seq);
            (load, if died { Outcome::DeadLettered } else { Outcome::Stored })
        };
        self.accounts.resolved(lease.events.iter().map(|event| {
            let (load, outcome) = outcome(event);
            (Some(&event.channel), load, outcome)
        }));
        let mut state = self.lock();
        if let Some(entry) = state.leases.iter_mut().find(|(id, ..)| *id == lease.id) {
            entry.2 = true;
        }
        while let Some((_, n, _)) = state.leases.pop_front_if(|(.., done)| *done) {
            state.leased -= n;
            for event in state.events.drain(..n).collect::<Vec<_>>() {
                state.released = event.seq;
            }
        }
    }

    async fn dead_letter(&self, event: &Event, _why: &DeadReason) -> Result<(), DeadLetterError> {
        self.lock().dead.insert(event.seq);
        Ok(())
    }

    fn is_dead(&self, seq: Seq) -> bool {
        self.lock().dead.contains(&seq)
    }

    fn first_unacked(&self) -> Seq {
        self.lock().released.next()
    }

    fn retry_after(&self) -> Duration {
        self.accounts.retry_after()
    }

    fn stats(&self) -> QueueStats {
        let (channels, queued, drain_per_second) = self.accounts.snapshot();
        let oldest = self.lock().events.front().map(|e| e.received_at.0);
        QueueStats {
            channels,
            bytes: queued.bytes,
            oldest_micros: oldest,
            drain_per_second,
            ..QueueStats::default()
        }
    }
}
