//! Replication between nodes that are all written to: each pulls from its peers what they accepted.
//!
//! One task a peer ([`run_peer`]), supervised; what it does next is decided by [`pull::step`], which is
//! pure. A held request tells which channels gained events; pages are streamed while there is more
//! than one of them to fetch; channels have fair turns. Where an origin cannot be reached, the others
//! are asked for its events. Serving ([`serve`]) needs none of this, and goes on where pulling is off.
//!
//! Does not know HTTP but for [`peer`], nor which storage it is.

pub mod backoff;
pub mod life;
pub mod operate;
pub mod peer;
pub mod pull;
mod recover;
mod run;
pub mod schema;
pub mod serve;
pub mod status;
mod stream;
pub mod turns;
pub mod wire;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::channel::Registry;
use crate::clock::Clock;
use crate::event::{ChannelName, Origin, Seq};
use crate::life::Life;
use crate::storage::event_store::EventStore;
use pull::Failure;
use serve::Held;
use status::Board;
use wire::{Answer, Ask, Caller, Changed, Described};

/// Bytes of pages in memory, all pages of all peers together.
const ROOM_BYTES: usize = 32 << 20;
/// What one permit stands for.
const ROOM_UNIT: usize = 1 << 10;

/// Where a peer's events come from: HTTP in production, a fake in tests.
pub trait Source: Send + Sync + 'static {
    /// An answer under way.
    type Pages: Pages;
    /// Asks for pages.
    fn events(
        &self,
        ask: &Ask,
        caller: &Caller,
    ) -> impl Future<Output = Result<Self::Pages, Failure>> + Send;
    /// Waits until something became safe since `after`, or for as long as the peer may be held.
    fn changes(
        &self,
        caller: &Caller,
        after: Option<u64>,
    ) -> impl Future<Output = Result<Changed, Failure>> + Send;
    /// The schema of a channel there.
    fn schema(
        &self,
        channel: &ChannelName,
    ) -> impl Future<Output = Result<Described, Failure>> + Send;
    /// How long it is asked to hold a request for changes.
    fn hold(&self) -> Duration;
    /// Bytes received of it so far.
    fn bytes(&self) -> u64;
}

/// Pages that come one after another.
pub trait Pages: Send {
    /// The next one; `None` where the answer has ended in good order. A call that is dropped loses
    /// nothing: the next one goes on where it was.
    fn next(&mut self) -> impl Future<Output = Result<Option<Received>, Failure>> + Send;
}

/// A page, and the room that it takes.
#[derive(Debug)]
pub struct Received {
    /// What it says.
    pub answer: Answer,
    /// Given back when dropped; `None` for one that took none.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Room for pages.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES / ROOM_UNIT)))
    }
}

impl Room {
    /// Waits for room for so many bytes; one page larger than all of it waits until it is alone.
    pub async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = bytes.div_ceil(ROOM_UNIT).clamp(1, ROOM_BYTES / ROOM_UNIT);
        self.0.clone().acquire_many_owned(u32::try_from(units).ok()?).await.ok()
    }
}

/// Origins that cannot be reached now: others are asked for their events.
#[derive(Debug, Default)]
pub struct OutOfReach(Mutex<BTreeSet<Origin>>);

impl OutOfReach {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Origin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an origin is out of reach.
    pub fn set(&self, origin: &Origin, out: bool) {
        if out {
            self.lock().insert(origin.clone());
        } else {
            self.lock().remove(origin);
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Origin> {
        self.lock().iter().cloned().collect()
    }
}

/// How pages are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// `replication_batch_limit`.
    pub batch_limit: usize,
    /// `replication_poll_interval_ms`.
    pub poll_interval: Duration,
}

/// What the tasks of all peers share.
pub struct Peering<S> {
    /// Where events go.
    pub storage: Arc<S>,
    /// `node_name`.
    pub me: Origin,
    /// The channels.
    pub registry: Arc<Registry>,
    /// The time.
    pub clock: Clock,
    /// How pages are asked for.
    pub pace: Pace,
    /// Who cannot be reached.
    pub out_of_reach: OutOfReach,
    /// How far events are held.
    pub held: Arc<Held>,
    /// What is seen of it.
    pub board: Arc<Board>,
    /// A peer holds our own events up to this seq.
    pub seen: Box<dyn Fn(Seq) + Send + Sync>,
    /// Raised when an operator asks that stopped channels go on.
    pub resume: watch::Receiver<u64>,
    /// This node's history. While it is not settled the storage may have gone back, and cursors with
    /// it: nothing is pulled, and what was known of them is forgotten.
    pub life: watch::Receiver<Option<Life>>,
}

/// Pulls from one peer until the node stops. `name` is what the peer must call itself.
pub async fn run_peer<S: EventStore, P: Source>(
    shared: Arc<Peering<S>>,
    name: Origin,
    source: P,
    mut stop: watch::Receiver<bool>,
) {
    let peer = run::Peer::new(&shared, &name, &source);
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = Box::pin(peer.run()) => {}
    }
}
