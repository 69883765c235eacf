//! What peers are given: pages of events that are final, what became safe, and schemas.
//!
//! The horizon is taken first, then a snapshot is begun, then rows are read up to the horizon: never
//! rows first (I9). Of a foreign origin the horizon is our own cursor. Nothing is served while this
//! node's id is not settled. Does not know HTTP, tokens, or who pulls.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::schema::describe;
use super::wire::{self, Caller, Changed, Described, Head, PAGE_BYTES, PROTOCOL, Request};
use crate::channel::{Channel, Registry};
use crate::clock::Clock;
use crate::event::{ChannelName, Origin, Seq};
use crate::life::Life;
use crate::storage::event_store::{EventStore, Page, Wanted};
use crate::watermark::Watermark;

/// Pages read at the same time, all peers together: writers keep their connections.
const AT_ONCE: usize = 4;
/// Longest that a read may take before the peer is told to come back.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most events that are counted.
const COUNT_MOST: u64 = 1_000_000;

/// How far this node has come with each origin's events: what its peers are told of their own.
#[derive(Debug, Default)]
pub struct Held(Mutex<BTreeMap<Origin, Passed>>);

/// How far with one of them.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    /// Under any node id.
    ever: Seq,
    /// In the history that is followed: what is told together with its id.
    followed: Seq,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Origin, Passed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events of the origin up to here are held, of the history that is followed.
    pub fn note(&self, origin: &Origin, seq: Seq) {
        let mut held = self.lock();
        let passed = held.entry(origin.clone()).or_default();
        (passed.ever, passed.followed) = (seq.max(passed.ever), seq.max(passed.followed));
    }

    /// As [`Held::note`], of a history that the one that is followed may not know of.
    pub fn note_before(&self, origin: &Origin, seq: Seq) {
        let mut held = self.lock();
        let passed = held.entry(origin.clone()).or_default();
        passed.ever = seq.max(passed.ever);
    }

    /// Another history is followed, which shares everything up to `since` with those before it.
    pub fn parted(&self, origin: &Origin, since: Seq) {
        if let Some(passed) = self.lock().get_mut(origin) {
            passed.followed = since.min(passed.followed);
        }
    }

    /// Up to where, under any node id: no seq up to it may be given out again.
    #[must_use]
    pub fn of(&self, origin: &Origin) -> Option<Seq> {
        self.lock().get(origin).map(|passed| passed.ever)
    }

    /// Up to where in the history that is followed.
    #[must_use]
    pub fn followed(&self, origin: &Origin) -> Seq {
        self.lock().get(origin).map(|passed| passed.followed).unwrap_or_default()
    }
}

/// Why nothing is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    /// No such channel.
    #[error("there is no channel of this name")]
    UnknownChannel,
    /// Not now; why.
    #[error("{0}")]
    NotReady(String),
}

/// A page that is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its JSON.
    pub body: Bytes,
    /// The seq to go on with.
    pub next: Seq,
    /// Whether there is more that is safe.
    pub more: bool,
}

/// What a future of [`Serving`] looks like: the role is used as a trait object, since HTTP must not
/// know which storage it is.
pub type Answering<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unserved>> + Send + 'a>>;

/// The role, as HTTP knows it.
pub trait Serving: Send + Sync + 'static {
    /// One page.
    fn page<'a>(&'a self, request: &'a Request) -> Answering<'a, Served>;
    /// What gained events since that number, as of now.
    fn changes<'a>(
        &'a self,
        caller: Option<&'a Caller>,
        after: Option<u64>,
    ) -> Answering<'a, Changed>;
    /// Rings when something becomes safe. Whoever waits registers here first, and looks then.
    fn bell(&self) -> watch::Receiver<u64>;
    /// A channel's schema.
    ///
    /// # Errors
    /// [`Unserved`].
    fn schema(&self, channel: &str) -> Result<Described, Unserved>;
}

/// Told of every caller before it is answered; an error where nothing may be served since: a peer has
/// seen more of this node than the node knows of itself, say.
pub type Meet = dyn Fn(&Caller) -> Result<(), String> + Send + Sync;

/// Serves from a storage.
pub struct Server<S> {
    /// Where the events are.
    pub storage: Arc<S>,
    /// `node_name`.
    pub me: Origin,
    /// This node's history; `None` until it is settled.
    pub life: watch::Receiver<Option<Life>>,
    /// What of our own is final.
    pub watermark: Arc<Watermark>,
    /// The channels; disabled ones are served too.
    pub registry: Arc<Registry>,
    /// How far peers' events are held.
    pub held: Arc<Held>,
    /// The time.
    pub clock: Clock,
    /// Told of every caller.
    pub meet: Box<Meet>,
    /// Reads under way.
    pub places: Semaphore,
}

/// As many places as a [`Server`] has.
#[must_use]
pub fn places() -> Semaphore {
    Semaphore::new(AT_ONCE)
}

impl<S: EventStore> Server<S> {
    fn met(&self, caller: Option<&Caller>) -> Result<Life, Unserved> {
        if let Some(caller) = caller {
            (self.meet)(caller).map_err(Unserved::NotReady)?;
        }
        self.life.borrow().clone().ok_or_else(|| {
            let text = "the id of this node is not settled: its storage has not been reached yet";
            Unserved::NotReady(text.to_owned())
        })
    }

    fn seen(&self, caller: Option<&Caller>) -> Option<u64> {
        self.held.of(&caller?.name).map(|seq| seq.0)
    }

    /// Up to where events are final: of our own the watermark, of others what we hold without a gap.
    async fn horizon(&self, origin: &Origin, channel: &Channel) -> Result<Seq, Unserved> {
        if *origin == self.me {
            return Ok(self.watermark.safe(&channel.name));
        }
        let cursor = self.storage.cursor(origin, &channel.name).await;
        let cursor = cursor.map_err(|e| Unserved::NotReady(e.to_string()))?;
        Ok(cursor.unwrap_or_default())
    }

    async fn read(&self, request: &Request) -> Result<Served, Unserved> {
        let channel = self.registry.get(&request.channel).ok_or(Unserved::UnknownChannel)?;
        let life = self.met(request.caller.as_ref())?;
        let origin = request.origin.as_ref().unwrap_or(&self.me);
        let safe = self.horizon(origin, channel).await?;
        let mut page = Page { rows: Vec::new(), next: request.from };
        let mut wanted = Wanted {
            origin: origin.clone(),
            channel: channel.name.clone(),
            from: request.from,
            upto: safe,
            rows: request.limit,
            bytes: PAGE_BYTES,
        };
        let mut behind = None;
        // where S fell back behind a reader there is nothing to read, and nothing to blame it for
        if request.from <= safe {
            let read = self.storage.read(&wanted).await;
            page = read.map_err(|e| Unserved::NotReady(e.to_string()))?;
            debug_assert!(page.rows.iter().all(|row| row.seq <= safe), "a row above the horizon");
        }
        if request.count && page.next <= safe {
            wanted.from = page.next;
            behind = self.storage.count(&wanted, COUNT_MOST).await.ok();
        }
        // an id that was drawn meanwhile begins another history
        if self.life.borrow().as_ref() != Some(&life) {
            return Err(Unserved::NotReady("the id of this node has just changed".to_owned()));
        }
        let described = describe(channel);
        let head = Head {
            channel: channel.name.as_str(),
            origin: origin.as_str(),
            from_seq: request.from.0,
            node: self.me.as_str(),
            node_id: &life.id,
            since: since_for(&life, request.caller.as_ref()),
            protocol: PROTOCOL,
            schema: &described.fingerprint,
            safe_seq: safe.0,
            next_seq: page.next.0,
            seen: self.seen(request.caller.as_ref()),
            now_micros: self.clock.wall().0,
            behind,
        };
        let body = Bytes::from(wire::encode(&head, &page.rows));
        Ok(Served { body, next: page.next, more: page.next <= safe })
    }
}

/// From where the caller must read again, where it follows an earlier id of ours.
fn since_for(life: &Life, caller: Option<&Caller>) -> Option<u64> {
    let known = caller.and_then(|caller| caller.known.as_ref()).map(|known| known.id.as_str());
    life.since_for(known).map(|seq| seq.0)
}

impl<S: EventStore> Serving for Server<S> {
    fn page<'a>(&'a self, request: &'a Request) -> Answering<'a, Served> {
        Box::pin(async move {
            let busy = || Unserved::NotReady("this node reads for other peers: again".to_owned());
            let served = async {
                let _place = self.places.acquire().await.map_err(|_| busy())?;
                self.read(request).await
            };
            tokio::time::timeout(PATIENCE, served).await.unwrap_or_else(|_| Err(busy()))
        })
    }

    fn changes<'a>(
        &'a self,
        caller: Option<&'a Caller>,
        after: Option<u64>,
    ) -> Answering<'a, Changed> {
        Box::pin(async move {
            let life = self.met(caller)?;
            let changes = self.watermark.changes(after);
            let named = |all: Vec<ChannelName>| all.iter().map(ToString::to_string).collect();
            Ok(Changed {
                node: self.me.to_string(),
                node_id: life.id,
                number: changes.number,
                channels: changes.channels.map(named),
                seen: self.seen(caller),
            })
        })
    }

    fn bell(&self) -> watch::Receiver<u64> {
        self.watermark.bell()
    }

    fn schema(&self, channel: &str) -> Result<Described, Unserved> {
        let channel = self.registry.get(channel).ok_or(Unserved::UnknownChannel)?;
        Ok(describe(channel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Name;

    #[test]
    fn what_was_seen_of_an_earlier_history_is_not_told_with_a_later_id() {
        let (held, origin) = (Held::default(), Name::new("dc2").unwrap());
        held.note(&origin, Seq(500));
        held.parted(&origin, Seq(400));
        assert_eq!((held.of(&origin), held.followed(&origin)), (Some(Seq(500)), Seq(400)));
        // the usual cursor still stands where the earlier one ended
        held.note_before(&origin, Seq(500));
        held.note(&origin, Seq(420));
        assert_eq!((held.of(&origin), held.followed(&origin)), (Some(Seq(500)), Seq(420)));
        held.note(&origin, Seq(900));
        assert_eq!((held.of(&origin), held.followed(&origin)), (Some(Seq(900)), Seq(900)));
    }
}
