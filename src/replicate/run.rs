//! The task of one peer: carries out what [`step`] decides, and keeps the turns of its channels.
//!
//! Two loops in one task: one holds a request for changes, the other pulls. Does not decide what a
//! page means.

mod ear;
mod parted;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::backoff::{Backoff, Breaker};
use super::life::{Lives, Meeting};
use super::pull::{Action, Failure, Lane, Outcome, Rest, State, step};
use super::schema::{describe, misfit};
use super::status::{Glimpse, Standing};
use super::stream::Stream;
use super::turns::Turns;
use super::wire::{Answer, Caller, Fault, Known, MOST_EVENTS};
use super::{Peering, Source};
use crate::channel::Channel;
use crate::event::{ChannelName, Origin, Seq};
use crate::life::Life;
use crate::storage::StorageError;
use crate::storage::event_store::{EventStore, Foreign};
use crate::task;
use ear::{Ear, Pause, Said};
use settle::Backoffs;

/// Whose events of which channel.
pub(super) type Key = (Origin, ChannelName);

/// How often what stands in memory only is written.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Every channel has a turn at least so often, whatever the held request says.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// A channel that cannot go on is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often a channel's events are counted while there are more than fit a page.
const COUNT_EVERY: Duration = Duration::from_secs(15);
/// A peer that answers nonsense is asked less than once a second, all its channels together.
const PEACE: Duration = Duration::from_millis(2_500);
/// One that does not know us, or is somebody else.
const LONG_PEACE: Duration = Duration::from_secs(30);
/// One that is not ready yet.
const SHORT_PEACE: Duration = Duration::from_millis(500);
/// A turn that takes longer is not waited for to hear what else became safe.
const LONG_TURN: Duration = Duration::from_secs(1);
/// The most pages of one answer.
const PAGES: usize = 32;

// when a fault ends, everything goes on within seconds
const OF_PEER: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
const OF_FAULTS: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(8));
/// One that says something else each time, and gives nothing.
const OF_NEWS: Backoff = Backoff::new(PEACE, LONG_PEACE);
const OF_STORAGE: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// What both loops share.
struct Common {
    turns: Turns<Key>,
    breaker: Breaker,
    lives: Lives,
    dice: u64,
    /// Rows that were stored, to tell changes that bring something from those that do not.
    gains: u64,
    /// Turns that were taken of the peer's own channels.
    taken: u64,
    /// Up to where the peer holds our own events, as we were last told.
    seen: Seq,
    /// It does not say what it answers, so that it cannot relay.
    mute: bool,
}

/// A peer.
pub(super) struct Peer<'a, S, P> {
    shared: &'a Peering<S>,
    name: &'a Origin,
    source: &'a P,
    common: Mutex<Common>,
    /// Rung when somebody wants a turn.
    bell: Notify,
    /// Rung when one has ended.
    ended: Notify,
}

/// What came of a turn.
struct Driven {
    state: State,
    rest: Rest,
    news: Option<News>,
}

/// What a peer says anew, and honest ones say rarely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Its node id is another one: all its channels begin anew.
    Id,
    /// A schema that fits.
    Schema,
}

/// What an answer says of who gave it.
enum Met {
    /// It is the one that is followed.
    Known,
    /// It goes by another id, which is followed from here on.
    Parted,
    /// The same, but that is not kept: why.
    Unkept(String),
}

impl<'a, S: EventStore, P: Source> Peer<'a, S, P> {
    pub fn new(shared: &'a Peering<S>, name: &'a Origin, source: &'a P) -> Self {
        let mut seed = DefaultHasher::new();
        (name, &shared.me, shared.clock.wall().0).hash(&mut seed);
        let common = Common {
            turns: Turns::default(),
            breaker: Breaker::new(OF_PEER),
            lives: Lives::default(),
            dice: seed.finish() | 1,
            gains: 0,
            taken: 0,
            seen: Seq(0),
            mute: false,
        };
        let common = Mutex::new(common);
        Self { shared, name, source, common, bell: Notify::new(), ended: Notify::new() }
    }

    /// Both loops; never ends.
    pub async fn run(&self) {
        let mut life = self.shared.life.clone();
        loop {
            // while it is not settled our own storage may have gone back, and cursors with it
            let gone = life.wait_for(Option::is_some).await.is_err();
            if gone {
                // the node stops
                std::future::pending::<()>().await;
            }
            self.recall().await;
            tokio::select! {
                () = self.watch() => {}
                () = self.pull(&life) => {}
            }
        }
    }

    /// The ids of the peer, as they are kept, and how far we have come with it.
    async fn recall(&self) {
        let mut backoff = OF_STORAGE;
        while let Err(e) = self.try_to_recall().await {
            tracing::debug!("what is kept of peer {} is not known yet: {e}", self.name);
            let dice = self.throw();
            task::sleep(backoff.failed(dice)).await;
        }
    }

    async fn try_to_recall(&self) -> Result<(), StorageError> {
        let accepted = self.shared.storage.accepted_ids(self.name).await?;
        self.shared.board.id(self.name, accepted.last().map(String::as_str));
        self.lock().lives = Lives::new(accepted);
        self.note_cursors().await
    }

    fn lock(&self) -> MutexGuard<'_, Common> {
        self.common.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.shared.clock.mono()
    }

    fn throw(&self) -> u64 {
        let mut common = self.lock();
        common.dice ^= common.dice << 13;
        common.dice ^= common.dice >> 7;
        common.dice ^= common.dice << 17;
        common.dice
    }

    /// What the peer is told of us: the id that we follow, and how far we have come with it.
    fn caller(&self) -> Caller {
        let id = self.lock().lives.followed().map(str::to_owned);
        let known = id.map(|id| Known { id, seq: self.shared.held.followed(self.name) });
        Caller { name: self.shared.me.clone(), known }
    }

    // ---- the held request ----

    async fn watch(&self) {
        let (mut after, mut ear) = (None, Ear::default());
        loop {
            self.peace().await;
            let asked = self.now();
            match self.source.changes(&self.caller(), after).await {
                Ok(changed) if changed.node != self.name.as_str() => {
                    self.failed(&Failure::OtherNode(changed.node));
                }
                Ok(changed) => {
                    self.answered();
                    self.hear(changed.seen.map(Seq));
                    after = Some(changed.number);
                    let took = self.now().saturating_sub(asked);
                    self.listen(&mut ear, changed.channels.as_deref(), took).await;
                }
                Err(Failure::NotFound) => self.poll().await,
                Err(failure) => {
                    self.failed(&failure);
                    if failure == Failure::Unavailable {
                        // whether it gives pages is seen by asking for some
                        self.want(None);
                    }
                }
            }
        }
    }

    /// These channels became safe, as the peer said after so long; `None` means all. Waits until it is
    /// to be asked again.
    async fn listen(&self, ear: &mut Ear, named: Option<&[String]>, took: Duration) {
        let said = match named {
            Some([]) => {
                self.shared.board.quiet(self.name);
                let early = took < self.source.hold() / 2;
                if early { Said::NothingEarly } else { Said::Nothing }
            }
            named if self.want(named) => Said::Wanted,
            _ => Said::Unwanted,
        };
        let (gains, taken) = {
            let common = self.lock();
            (common.gains, common.taken)
        };
        match ear.heard(said, gains, taken) {
            Pause::No => {}
            Pause::For(time) => task::sleep(time).await,
            Pause::Turn => {
                tokio::select! {
                    () = self.ended.notified() => {}
                    () = task::sleep(LONG_TURN) => {}
                }
            }
        }
    }

    /// v1.0.2 holds no request: all its channels have a turn now and then, until it may have become
    /// another one.
    async fn poll(&self) {
        let until = self.now() + LOOK_AGAIN;
        while self.now() < until {
            task::sleep(self.shared.pace.poll_interval).await;
            self.want(None);
        }
    }

    /// These channels of the peer want a turn; `None` means all. Whether any of them may have one.
    fn want(&self, channels: Option<&[String]>) -> bool {
        let named: Option<BTreeSet<&str>> =
            channels.map(|all| all.iter().map(String::as_str).collect());
        let mut any = false;
        let mut common = self.lock();
        for channel in self.pulled().filter(|channel| channel.diverges().is_none()) {
            if named.as_ref().is_none_or(|named| named.contains(channel.name.as_str())) {
                any |= common.turns.want(&(self.name.clone(), channel.name.clone()));
            }
        }
        drop(common);
        self.bell.notify_one();
        any
    }

    /// The channels that are not off here.
    fn pulled(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.shared.registry.all().filter(|channel| channel.enabled)
    }

    /// Waits until the peer may be asked.
    async fn peace(&self) {
        loop {
            let wait = self.lock().breaker.wait(self.now());
            if wait.is_zero() {
                return;
            }
            task::sleep(wait).await;
        }
    }

    // ---- pulling ----

    /// Ends where our own history is settled anew: what this knows of cursors may be worth nothing.
    async fn pull(&self, life: &watch::Receiver<Option<Life>>) {
        let mut lanes: BTreeMap<Key, State> = BTreeMap::new();
        let mut backoffs = Backoffs::default();
        self.begin(&mut lanes);
        let mut swept = self.now();
        let (mut flushed, mut relayed, mut counted) = (swept, swept, swept);
        let mut resume = self.shared.resume.clone();
        loop {
            self.peace().await;
            if life.has_changed().unwrap_or(false) {
                return;
            }
            let now = self.now();
            if now.saturating_sub(swept) >= SWEEP_EVERY {
                swept = now;
                self.want(None);
            }
            if now.saturating_sub(counted) >= COUNT_EVERY {
                counted = now;
                lanes.values_mut().for_each(State::count_next);
            }
            if now.saturating_sub(relayed) >= self.shared.pace.poll_interval {
                relayed = now;
                self.relays(&mut lanes);
            }
            if now.saturating_sub(flushed) >= FLUSH_EVERY {
                flushed = now;
                self.flush(&mut lanes).await;
            }
            if resume.has_changed().unwrap_or(false) {
                resume.borrow_and_update();
                lanes.values_mut().for_each(State::resume);
                self.lock().turns.wake_all();
                self.want(None);
            }
            let next = self.lock().turns.next(self.now());
            let Some(key) = next else {
                self.nothing_to_do(&mut resume).await;
                continue;
            };
            let Some(state) = lanes.remove(&key) else { continue };
            let gains = self.lock().gains;
            let Driven { mut state, rest, news } = Box::pin(self.drive(state, Outcome::Turn)).await;
            Box::pin(self.finish(&mut state)).await;
            lanes.insert(key.clone(), state);
            let brought = self.lock().gains != gains;
            self.turned(&key, news, brought, &mut backoffs);
            if rest == Rest::Failed(Failure::Fault(Fault::NoEcho)) {
                self.cannot_relay();
                self.relays(&mut lanes);
                continue;
            }
            self.settle(&key, rest, &mut backoffs);
            if news == Some(News::Id) {
                self.begin(&mut lanes);
            }
        }
    }

    /// Waits for a bell, a rest that is over, or the next thing that is done now and then.
    async fn nothing_to_do(&self, resume: &mut watch::Receiver<u64>) {
        let due = self.lock().turns.due().map(|at| at.saturating_sub(self.now()));
        let most = self.shared.pace.poll_interval.min(FLUSH_EVERY);
        let wait = due.map_or(most, |due| due.min(most));
        tokio::select! {
            () = self.bell.notified() => {}
            () = task::sleep(wait) => {}
            Ok(()) = resume.changed() => resume.mark_changed(),
        }
    }

    /// The channels of the origin itself, from their stored cursors on.
    fn begin(&self, lanes: &mut BTreeMap<Key, State>) {
        lanes.retain(|(origin, _), _| origin != self.name);
        for channel in self.pulled() {
            let key = (self.name.clone(), channel.name.clone());
            if let Some(state) = self.lane(&key, channel) {
                lanes.insert(key, state);
            }
        }
        self.lock().turns.wake_all();
        self.want(None);
    }

    fn lane(&self, key: &Key, channel: &Channel) -> Option<State> {
        if let Some(why) = channel.diverges() {
            self.stands(key, Standing::Stopped, Some(why));
            return None;
        }
        Some(State::new(Lane {
            origin: key.0.clone(),
            channel: key.1.clone(),
            direct: key.0 == *self.name,
            most: self.shared.pace.batch_limit.clamp(1, MOST_EVENTS),
            pages: PAGES,
            print: describe(channel).fingerprint,
        }))
    }

    /// The channels of those that cannot be reached, as far as this peer holds them.
    fn relays(&self, lanes: &mut BTreeMap<Key, State>) {
        let (out, mute) = (self.shared.out_of_reach.all(), self.lock().mute);
        let relayed = |origin: &Origin| {
            !mute && origin != self.name && *origin != self.shared.me && out.contains(origin)
        };
        let wanted = |origin: &Origin| origin == self.name || relayed(origin);
        lanes.retain(|(origin, _), _| wanted(origin));
        self.lock().turns.forget(|(origin, _)| !wanted(origin));
        self.shared.board.retain(self.name, wanted);
        for origin in out.iter().filter(|origin| relayed(origin)) {
            for channel in self.pulled() {
                let key = (origin.clone(), channel.name.clone());
                if !lanes.contains_key(&key)
                    && let Some(state) = self.lane(&key, channel)
                {
                    lanes.insert(key.clone(), state);
                }
                self.lock().turns.want(&key);
            }
        }
    }

    async fn flush(&self, lanes: &mut BTreeMap<Key, State>) {
        let dirty: Vec<Key> =
            lanes.iter().filter(|(_, state)| state.wants_flush()).map(|(k, _)| k.clone()).collect();
        for key in dirty {
            let Some(state) = lanes.remove(&key) else { continue };
            let Driven { mut state, .. } = Box::pin(self.drive(state, Outcome::Flush)).await;
            Box::pin(self.finish(&mut state)).await;
            lanes.insert(key, state);
        }
    }

    /// One turn: steps until there is nothing to do for now.
    async fn drive(&self, mut state: State, mut outcome: Outcome) -> Driven {
        let mut stream = Stream::<P::Pages>::default();
        let mut news = None;
        loop {
            let (next, action) = step(state, outcome);
            state = next;
            outcome = match action {
                Action::Load => self.load(&state.lane).await,
                Action::Ask(ask) => match self.source.events(&ask, &self.caller()).await {
                    Ok(pages) => {
                        stream = Stream::new(pages, &ask);
                        stream.next().await
                    }
                    Err(failure) => Outcome::Failed(failure),
                },
                Action::Take => stream.next().await,
                Action::Judge(print) => {
                    // the connection is needed, and the rest of the answer is not
                    stream = Stream::default();
                    let judged = self.judge(&state.lane, &print).await;
                    if matches!(judged, Outcome::Schema(Ok(()))) {
                        news = Some(News::Schema);
                    }
                    judged
                }
                Action::Apply(foreign) => self.apply(&foreign, &mut stream).await,
                Action::Rest(rest) => {
                    if matches!(rest, Rest::Idle | Rest::More) {
                        stream.finish().await;
                    }
                    if rest == Rest::Idle
                        && let Some(glimpse) = stream.glimpse.take()
                    {
                        let key = (state.lane.origin.clone(), state.lane.channel.clone());
                        self.shared.board.took(self.name, &key, state.at(), glimpse, (0, 0));
                    }
                    return Driven { state, rest, news };
                }
            };
            if let Outcome::Page(answer) = &outcome {
                match self.meet(&state.lane, answer).await {
                    Ok(Met::Known) => {}
                    Ok(Met::Parted) => {
                        return Driven { state, rest: Rest::More, news: Some(News::Id) };
                    }
                    Ok(Met::Unkept(why)) => {
                        return Driven { state, rest: Rest::Storage(why), news };
                    }
                    Err(failure) => outcome = Outcome::Failed(failure),
                }
            }
        }
    }

    /// Whether the schema of this fingerprint fits ours.
    async fn judge(&self, lane: &Lane, print: &str) -> Outcome {
        let Some(ours) = self.shared.registry.get(lane.channel.as_str()) else {
            return Outcome::Schema(Err("the channel is gone here".to_owned()));
        };
        match self.source.schema(&lane.channel).await {
            Err(failure) => Outcome::Failed(failure),
            Ok(theirs) if theirs.fingerprint != print => {
                // a rolling change: the next page has the new one
                Outcome::Failed(Failure::Fault(Fault::Field("schema")))
            }
            Ok(theirs) => Outcome::Schema(misfit(&theirs, ours).map_or(Ok(()), Err)),
        }
    }

    /// Stores rows while the next pages come.
    async fn apply(&self, foreign: &Foreign, stream: &mut Stream<P::Pages>) -> Outcome {
        let started = self.now();
        let applied = {
            let mut applying = std::pin::pin!(self.shared.storage.apply(foreign));
            loop {
                tokio::select! {
                    biased;
                    applied = &mut applying => break applied,
                    () = stream.fetch(), if stream.wants_more() => {}
                }
            }
        };
        let took = self.now().saturating_sub(started);
        // what it took is free again
        let glimpse = stream.done();
        match applied {
            Err(e) => Outcome::NotApplied(e.kind, e.to_string()),
            Ok(applied) => {
                if !applied.stale && !applied.too_many {
                    self.took(foreign, glimpse, (applied.conflicts, applied.quarantined));
                }
                Outcome::Applied(applied, took)
            }
        }
    }

    fn took(&self, foreign: &Foreign, glimpse: Option<Glimpse>, aside: (u64, u64)) {
        let key = (foreign.origin.clone(), foreign.channel.clone());
        if foreign.origin == *self.name {
            self.shared.held.note(&foreign.origin, foreign.to);
        } else {
            self.shared.held.note_before(&foreign.origin, foreign.to);
        }
        self.lock().gains += foreign.rows.len() as u64;
        if let Some(glimpse) = glimpse {
            self.shared.board.took(self.name, &key, foreign.to, glimpse, aside);
        }
    }

    /// What an answer says of who gave it.
    async fn meet(&self, lane: &Lane, answer: &Answer) -> Result<Met, Failure> {
        if let Some(node) = &answer.node
            && node != self.name.as_str()
        {
            return Err(Failure::OtherNode(node.clone()));
        }
        {
            let mut common = self.lock();
            common.breaker.served();
            common.mute &= !answer.echoed;
        }
        self.answered();
        self.hear(answer.seen);
        let Some(id) = answer.node_id.as_deref().filter(|_| lane.direct) else {
            return Ok(Met::Known);
        };
        let meeting = self.lock().lives.meet(id, answer.since);
        let met = match meeting {
            Meeting::Known => return Ok(Met::Known),
            // where it cannot be kept it is met again with the next page
            Meeting::First => {
                match self.shared.storage.accept_id(self.name, id, &[]).await {
                    Ok(()) => self.lock().lives.accepted(id),
                    Err(e) => tracing::debug!("the id of peer {} is not kept yet: {e}", self.name),
                }
                Met::Known
            }
            Meeting::Again(since) => match self.parted(id, since).await {
                Ok(()) => Met::Parted,
                Err(e) => return Ok(Met::Unkept(e.to_string())),
            },
            Meeting::Returned => {
                let why = format!(
                    "two nodes go by the name {}: node id {id} came back after another one; give each node a node_name of its own, then restart this node",
                    self.name
                );
                tracing::error!(peer = %self.name, "peer {} is not followed any more: {why}", self.name);
                self.shared.board.stop(self.name, &why);
                std::future::pending::<Met>().await
            }
        };
        self.shared.board.id(self.name, Some(id));
        Ok(met)
    }
}

#[cfg(test)]
mod tests;
