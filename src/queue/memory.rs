//! The queue without a disk: the reference model that the others are compared with.
//!
//! For tests and simulation. Clones share one queue; [`MemoryQueue::reopen`] is a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::accounts::{Accounts, Ceilings, Load, Outcome};
use super::file::record::{cost, load_of};
use super::{
    AppendError, Appended, DeadLetterError, DeadReason, Lease, LeaseLimit, ParkError, Parked,
    Queue, QueueStats, QueueStopped, Source,
};
use crate::clock::Clock;
use crate::event::{Batch, ChannelName, Event, Seq};

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
    /// How often an event is refused before it is dead, and how often each was.
    enough: u64,
    refused: BTreeMap<Seq, u64>,
    /// What is set aside, by channel: not leased first, leased behind it.
    parked: BTreeMap<ChannelName, Aside>,
    stopped: bool,
}

#[derive(Default)]
struct Aside {
    events: VecDeque<Event>,
    leased: usize,
    last: Seq,
    why: String,
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

    /// From now on an event is refused so often before it is dead.
    pub fn tries(&self, enough: u64) {
        self.lock().enough = enough;
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
            for aside in state.parked.values_mut() {
                aside.leased = 0;
            }
            state.stopped = false;
        }
        self
    }

    /// How long a refused client should wait.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.accounts.retry_after()
    }

    /// Ends all waiting for leases.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.more.notify_waiters();
    }

    fn try_lease(&self, limit: LeaseLimit) -> Option<Lease> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let (mut events, mut bytes, mut taken) = (Vec::new(), 0, 0);
        for event in state.events.iter().skip(state.leased) {
            if let Some(aside) = state.parked.get_mut(&event.channel) {
                taken += 1;
                if event.seq > aside.last {
                    aside.last = event.seq;
                    aside.events.push_back(event.clone());
                }
                continue;
            }
            bytes += event.payload.len();
            if !events.is_empty() && (events.len() >= limit.events || bytes > limit.bytes) {
                break;
            }
            taken += 1;
            events.push(event.clone());
        }
        state.leased += taken;
        state.next_lease += 1;
        let id = state.next_lease;
        state.leases.push_back((id, taken, events.is_empty()));
        state.advance();
        (!events.is_empty()).then_some(Lease { id, from: Source::Main, events })
    }

    fn lease_parked(&self, channel: &ChannelName, limit: LeaseLimit) -> Lease {
        let mut state = self.lock();
        let from = Source::Parked(channel.clone());
        let mut lease = Lease { id: 0, from, events: Vec::new() };
        let Some(aside) = state.parked.get_mut(channel) else { return lease };
        lease.events.extend(aside.events.iter().skip(aside.leased).take(limit.events).cloned());
        aside.leased += lease.events.len();
        if aside.events.is_empty() {
            state.parked.remove(channel);
        }
        lease
    }
}

impl State {
    /// Releases what is done, in order.
    fn advance(&mut self) {
        while let Some((_, n, _)) = self.leases.pop_front_if(|(.., done)| *done) {
            self.leased -= n;
            for event in self.events.drain(..n).collect::<Vec<_>>() {
                self.released = event.seq;
            }
        }
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

    async fn lease(&self, from: &Source, limit: LeaseLimit) -> Result<Lease, QueueStopped> {
        if let Source::Parked(channel) = from {
            return Ok(self.lease_parked(channel, limit));
        }
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

    async fn park(
        &self,
        lease: &mut Lease,
        seqs: &BTreeSet<Seq>,
        why: &str,
    ) -> Result<(), ParkError> {
        if lease.from != Source::Main {
            return Ok(());
        }
        let mut state = self.lock();
        for event in lease.events.extract_if(.., |e| seqs.contains(&e.seq)) {
            let aside = state.parked.entry(event.channel.clone()).or_default();
            why.clone_into(&mut aside.why);
            aside.last = aside.last.max(event.seq);
            aside.events.push_back(event);
        }
        Ok(())
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
        if let Source::Parked(channel) = &lease.from {
            if let Some(aside) = state.parked.get_mut(channel) {
                aside.events.drain(..lease.events.len());
                aside.leased -= lease.events.len();
            }
            return;
        }
        if let Some(entry) = state.leases.iter_mut().find(|(id, ..)| *id == lease.id) {
            entry.2 = true;
        }
        state.advance();
    }

    async fn dead_letters(&self, letters: &[(Event, DeadReason)]) -> Result<(), DeadLetterError> {
        let mut state = self.lock();
        let (of, mut least) = (state.enough, u64::MAX);
        for (event, _) in letters {
            let refused = state.refused.entry(event.seq).or_default();
            *refused += 1;
            least = least.min(*refused);
        }
        if least < of {
            return Err(DeadLetterError::Again { attempts: least, of });
        }
        state.dead.extend(letters.iter().map(|(event, _)| event.seq));
        Ok(())
    }

    fn is_dead(&self, seq: Seq) -> bool {
        self.lock().dead.contains(&seq)
    }

    fn first_unacked(&self) -> Seq {
        self.lock().released.next()
    }

    fn stats(&self) -> QueueStats {
        let (channels, queued, drain_per_second) = self.accounts.snapshot();
        let state = self.lock();
        let oldest = state.events.front().map(|e| e.received_at.0);
        let parked = |(channel, aside): (&ChannelName, &Aside)| Parked {
            channel: channel.clone(),
            why: aside.why.clone(),
        };
        QueueStats {
            channels,
            bytes: queued.bytes,
            oldest_micros: oldest,
            drain_per_second,
            parked: state.parked.iter().map(parked).collect(),
            ..QueueStats::default()
        }
    }
}
