//! The queue: durable, ordered, at-least-once. The contract, and no implementation.
//!
//! Does not know schemas, storage or HTTP.
//!
//! 1. `append` returns `Ok` only when every event of the batch is as durable as the queue's mode
//!    promises (I1); the whole batch is in, with consecutive seqs, or nothing of it is (I4).
//! 2. Seqs rise in the order of appending; each is given once (I2, I3).
//! 3. `lease` hands out events in rising order, each to one holder, only after they are durable;
//!    it waits while there are none. A frame may be split between leases.
//! 4. What was leased and not acked when the queue is opened again is leased again, with the same
//!    seqs.
//! 5. `ack` ends a lease. The released set is a prefix: a later lease acked first waits (I7).
//! 6. A dead letter is durable when `dead_letters` returns `Ok`, is written once a seq, and
//!    `is_dead` knows it for as long as its event can be redelivered (I6).
//! 7. `park` sets events of a lease aside: durable when it returns `Ok`, they leave the lease, hold up
//!    no other channel, and come again by [`Source::Parked`], in order. What comes after them in their
//!    channel follows, until such a lease finds the channel drained.
//! 8. Events and bytes are limited; what is over the limit is refused before anything is written
//!    (I14).

pub mod accounts;
pub mod conformance;
pub mod file;
pub mod memory;
pub mod redis;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::event::{Batch, ChannelName, Event, Seq};
use crate::seq::Witness;
use crate::watermark::Watermark;
use file::state::NodeState;

/// The queue's role. See the module's contract.
pub trait Queue: Send + Sync + 'static {
    /// Makes a batch durable; the first and last seq it was given.
    fn append(&self, batch: Batch) -> impl Future<Output = Result<Appended, AppendError>> + Send;
    /// The next events; `Err` when the queue has stopped. From [`Source::Main`] at least one, waited
    /// for; from a parked channel what there is, and none where it has drained.
    fn lease(
        &self,
        from: &Source,
        limit: LeaseLimit,
    ) -> impl Future<Output = Result<Lease, QueueStopped>> + Send;
    /// Ends a lease: every event of it is resolved, `dead` of them (in rising order) as dead letters.
    fn ack(&self, lease: Lease, dead: &[Seq]) -> impl Future<Output = ()> + Send;
    /// Sets these events of a lease aside, `why` their channel is stuck. What came from a parked
    /// channel stays in its lease.
    fn park(
        &self,
        lease: &mut Lease,
        seqs: &BTreeSet<Seq>,
        why: &str,
    ) -> impl Future<Output = Result<(), ParkError>> + Send;
    /// Keeps events durably with the reasons why storage refuses them: all of them, or none.
    fn dead_letters(
        &self,
        letters: &[(Event, DeadReason)],
    ) -> impl Future<Output = Result<(), DeadLetterError>> + Send;
    /// As [`Queue::dead_letters`], of one.
    fn dead_letter(
        &self,
        event: &Event,
        reason: &DeadReason,
    ) -> impl Future<Output = Result<(), DeadLetterError>> + Send {
        let one = [(event.clone(), reason.clone())];
        async move { self.dead_letters(&one).await }
    }
    /// Whether a seq has a dead letter, in whatever state.
    fn is_dead(&self, seq: Seq) -> bool;
    /// Nothing below it is delivered again; storage is read back to here and no further.
    fn first_unacked(&self) -> Seq;
    /// One snapshot of all counts and states.
    fn stats(&self) -> QueueStats;
}

/// Where leases come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The queue itself.
    Main,
    /// What is set aside of this channel.
    Parked(ChannelName),
}

/// Why events could not be set aside; they stay in their lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParkError {
    /// The queue stops.
    #[error("the queue has stopped")]
    Stopped,
    /// There is no room for them, or the disk refuses.
    #[error("{0}")]
    Disk(String),
}

/// What an append was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Seq of the batch's first event.
    pub first: Seq,
    /// Seq of its last one.
    pub last: Seq,
}

/// Why an append was refused. Only [`AppendError::Doubt`] leaves open whether it is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// At its ceiling of events or bytes; room is expected after `retry_after`.
    #[error("the queue is full ({ceiling})")]
    Full {
        /// From the measured drain rate.
        retry_after: Duration,
        /// Which ceiling, by its key.
        ceiling: &'static str,
    },
    /// Larger than the ceiling itself: it can never fit.
    #[error("the batch is larger than the queue ({ceiling})")]
    TooLarge {
        /// Which ceiling, by its key.
        ceiling: &'static str,
    },
    /// Refused before anything was written.
    #[error("the queue takes no appends: {reason}")]
    Unavailable {
        /// For the operator and the client alike.
        reason: String,
    },
    /// A write or sync failed under way: it may or may not be stored.
    #[error("the append failed under way: {reason}")]
    Doubt {
        /// For the operator and the client alike.
        reason: String,
    },
}

/// The most that one lease may hold.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimit {
    /// Events.
    pub events: usize,
    /// Bytes of payload; one event is always leased.
    pub bytes: usize,
}

/// Events handed to one holder.
#[derive(Debug)]
pub struct Lease {
    /// The queue's own number for it.
    pub id: u64,
    /// Where it came from.
    pub from: Source,
    /// In rising order of seq.
    pub events: Vec<Event>,
}

/// The queue was stopped while a lease was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue has stopped")]
pub struct QueueStopped;

/// Why storage refuses an event for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadReason {
    /// A stable word, such as `rejected`.
    pub code: String,
    /// For the operator; never payload.
    pub text: String,
}

/// A dead letter could not be kept; the event stays queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadLetterError {
    /// Their ceiling is reached.
    #[error(
        "dead_letter_max_bytes ({max_bytes}) is reached: retry or discard dead letters (replicon dlq list), or raise it"
    )]
    Full {
        /// The ceiling.
        max_bytes: u64,
    },
    /// The disk refuses.
    #[error("the dead letter cannot be kept: {0}")]
    Disk(String),
    /// This queue wants it tried again first: nothing is kept yet.
    #[error("refused {attempts} times, of {of} before it is kept as a dead letter")]
    Again {
        /// How often storage has refused it.
        attempts: u64,
        /// How often is enough.
        of: u64,
    },
}

/// One snapshot.
#[derive(Clone, Debug, Default)]
pub struct QueueStats {
    /// Counts per channel; the empty name stands for what damage hid.
    pub channels: Vec<(Option<ChannelName>, accounts::Counts)>,
    /// Bytes the queue's events take.
    pub bytes: u64,
    /// When the oldest unresolved event was accepted, microseconds since 1970.
    pub oldest_micros: Option<i64>,
    /// Events released a second, lately.
    pub drain_per_second: f64,
    /// Why appends are refused; `None` while they are taken.
    pub refusing: Option<String>,
    /// What was found damaged and not yet acknowledged, a line each.
    pub damage: Vec<String>,
    /// The channels that are set aside.
    pub parked: Vec<Parked>,
    /// What a server that holds the queue says of itself: names and values.
    pub server: Vec<(String, String)>,
    /// Where that server would forget what it confirmed, a line each.
    pub doubts: Vec<String>,
}

/// A channel that is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Which.
    pub channel: ChannelName,
    /// Why, as far as this process knows.
    pub why: String,
}

impl std::fmt::Display for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { channel, why } = self;
        write!(
            f,
            "channel {channel} is parked: {why}; its events wait apart and are tried again every few seconds"
        )
    }
}

/// The configured queue, as a closed set.
pub enum AnyQueue {
    /// The file log.
    File(file::FileQueue),
    /// A stream in Redis or Valkey.
    Redis(redis::RedisQueue),
    /// Nothing on disk; tests and simulation.
    Memory(memory::MemoryQueue),
}

macro_rules! each {
    ($self:ident, $q:ident => $body:expr) => {
        match $self {
            Self::File($q) => $body,
            Self::Redis($q) => $body,
            Self::Memory($q) => $body,
        }
    };
}

impl Queue for AnyQueue {
    async fn append(&self, batch: Batch) -> Result<Appended, AppendError> {
        each!(self, q => q.append(batch).await)
    }
    async fn lease(&self, from: &Source, limit: LeaseLimit) -> Result<Lease, QueueStopped> {
        each!(self, q => q.lease(from, limit).await)
    }
    async fn park(
        &self,
        lease: &mut Lease,
        seqs: &BTreeSet<Seq>,
        why: &str,
    ) -> Result<(), ParkError> {
        each!(self, q => q.park(lease, seqs, why).await)
    }
    async fn ack(&self, lease: Lease, dead: &[Seq]) {
        each!(self, q => q.ack(lease, dead).await);
    }
    async fn dead_letters(&self, letters: &[(Event, DeadReason)]) -> Result<(), DeadLetterError> {
        each!(self, q => q.dead_letters(letters).await)
    }
    fn is_dead(&self, seq: Seq) -> bool {
        each!(self, q => q.is_dead(seq))
    }
    fn first_unacked(&self) -> Seq {
        each!(self, q => q.first_unacked())
    }
    fn stats(&self) -> QueueStats {
        each!(self, q => q.stats())
    }
}

impl AnyQueue {
    /// How long a refused client should wait, from the drain rate of the last seconds.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        each!(self, q => q.retry_after())
    }

    /// What this node knows of itself.
    #[must_use]
    pub fn node(&self) -> NodeState {
        match self {
            Self::File(q) => q.node(),
            Self::Redis(q) => q.node(),
            Self::Memory(_) => NodeState::default(),
        }
    }

    /// Changes that durably. Blocks on the disk.
    ///
    /// # Errors
    /// What the disk says; then nothing has changed.
    pub fn change_node(&self, change: impl FnOnce(&mut NodeState)) -> std::io::Result<()> {
        match self {
            Self::File(q) => q.change_node(change),
            Self::Redis(q) => q.change_node(change),
            Self::Memory(_) => Ok(()),
        }
    }

    /// How far each channel is resolved; `None` where nobody keeps that.
    #[must_use]
    pub fn marks(&self) -> Option<Arc<Watermark>> {
        match self {
            Self::File(q) => Some(q.marks()),
            Self::Redis(q) => Some(q.marks()),
            Self::Memory(_) => None,
        }
    }

    /// The first seq that this start may give out; `None` while that is not known.
    #[must_use]
    pub fn first_seq(&self) -> Option<Seq> {
        match self {
            Self::File(q) => Some(q.first_seq()),
            Self::Redis(q) => q.first_seq(),
            Self::Memory(_) => None,
        }
    }

    /// Every event at or below it is resolved, or set aside, as far as a log knows.
    #[must_use]
    pub fn released(&self) -> Seq {
        match self {
            Self::File(q) => q.released(),
            Self::Redis(_) | Self::Memory(_) => Seq(0),
        }
    }

    /// A log may forget what lies at or below `main`, and of channels that are set aside what lies at
    /// or below theirs; nothing else, released or not.
    pub fn keep_above(&self, main: Seq, channels: &BTreeMap<ChannelName, Seq>) {
        if let Self::File(q) = self {
            q.keep_above(file::Kept { main, channels: channels.clone() });
        }
    }

    /// Whether it is certain only after storage or a peer was asked which seqs are in use.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        match self {
            Self::File(q) => q.is_fresh(),
            Self::Redis(q) => q.is_fresh(),
            Self::Memory(_) => false,
        }
    }

    /// A seq of ours was seen somewhere.
    pub fn seen(&self, seq: Seq, witness: Witness) {
        match self {
            Self::File(q) => q.seen(seq, witness),
            Self::Redis(q) => q.seen(seq, witness),
            Self::Memory(_) => {}
        }
    }

    /// Storage or a peer has answered. Blocks on the disk.
    ///
    /// # Errors
    /// Where that could not be made durable; then nothing has changed.
    pub fn identity_certain(&self) -> std::io::Result<()> {
        match self {
            Self::File(q) => q.identity_certain(),
            Self::Redis(q) => q.identity_certain(),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Waits until it is known below which seq nothing comes again.
    pub async fn met(&self) {
        if let Self::Redis(q) = self {
            q.met().await;
        }
    }

    /// Hands out no more leases; waiters are woken.
    pub fn stop_leasing(&self) {
        match self {
            Self::File(q) => q.stop_leasing(),
            Self::Redis(q) => q.stop_leasing(),
            Self::Memory(q) => q.stop(),
        }
    }

    /// Takes no more appends, makes durable what is under way, and ends.
    pub async fn close(self: Arc<Self>) {
        if let Self::Redis(q) = &*self {
            return q.close().await;
        }
        crate::task::blocking(move || {
            if let Self::File(q) = &*self {
                q.close();
            }
        })
        .await;
    }
}
