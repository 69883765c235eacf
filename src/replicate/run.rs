//! The task of one peer: carries out what [`step`] decides, and keeps the turns of its channels.
//!
//! Two loops in one task: one holds a request for changes, the other pulls. Does not decide what a
//! page means.

mod settle;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

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
use crate::storage::event_store::{EventStore, Foreign};
use crate::task;
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
/// So many changes that bring nothing are believed.
const WOLF: u32 = 4;
/// The most pages of one answer.
const PAGES: usize = 32;

// when a fault ends, everything goes on within seconds
const OF_PEER: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
const OF_FAULTS: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(8));
const OF_STORAGE: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// What both loops share.
struct Common {
    turns: Turns<Key>,
    breaker: Breaker,
    lives: Lives,
    dice: u64,
    /// Rows that were stored, to tell changes that bring something from those that do not.
    gains: u64,
    /// Up to where the peer holds our own events, as we were last told.
    seen: Seq,
}

/// A peer.
pub(super) struct Peer<'a, S, P> {
    shared: &'a Peering<S>,
    name: &'a Origin,
    source: &'a P,
    common: Mutex<Common>,
    /// Rung when somebody wants a turn.
    bell: Notify,
}

/// What came of a turn.
struct Driven {
    state: State,
    rest: Rest,
    /// The node id is another one: all channels of the origin begin anew.
    renewed: bool,
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
            seen: Seq(0),
        };
        Self { shared, name, source, common: Mutex::new(common), bell: Notify::new() }
    }

    /// Both loops; never ends.
    pub async fn run(&self) {
        let mut backoff = OF_STORAGE;
        let accepted = loop {
            match self.shared.storage.accepted_ids(self.name).await {
                Ok(ids) => break ids,
                Err(e) => tracing::debug!("the ids of peer {} are not known yet: {e}", self.name),
            }
            let dice = self.throw();
            task::sleep(backoff.failed(dice)).await;
        };
        self.shared.board.id(self.name, accepted.last().map(String::as_str));
        self.lock().lives = Lives::new(accepted);
        tokio::join!(self.watch(), self.pull());
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
        let seq = self.shared.held.of(self.name);
        let id = self.lock().lives.followed().map(str::to_owned);
        let known = id.zip(seq).map(|(id, seq)| Known { id, seq });
        Caller { name: self.shared.me.clone(), known }
    }

    // ---- the held request ----

    async fn watch(&self) {
        let mut after = None;
        let (mut for_nothing, mut gains) = (0_u32, 0);
        loop {
            self.peace().await;
            match self.source.changes(&self.caller(), after).await {
                Ok(changed) if changed.node != self.name.as_str() => {
                    self.failed(&Failure::OtherNode(changed.node));
                }
                Ok(changed) => {
                    self.answered();
                    self.hear(changed.seen.map(Seq));
                    after = Some(changed.number);
                    match &changed.channels {
                        Some(named) if named.is_empty() => {
                            self.shared.board.quiet(self.name);
                            continue;
                        }
                        named => self.want(named.as_deref()),
                    }
                    // one that cries wolf is listened to less and less
                    let now = self.lock().gains;
                    let brought = std::mem::replace(&mut gains, now) != now;
                    for_nothing = if brought { 0 } else { for_nothing.saturating_add(1) };
                    if for_nothing > WOLF {
                        let doubled = 250_u64 << (for_nothing - WOLF).min(5);
                        task::sleep(Duration::from_millis(doubled.min(5_000))).await;
                    }
                }
                Err(Failure::NotFound) => self.poll().await,
                Err(failure) => self.failed(&failure),
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

    /// These channels of the peer want a turn; `None` means all.
    fn want(&self, channels: Option<&[String]>) {
        let named = |name: &str| channels.is_none_or(|all| all.iter().any(|other| other == name));
        let mut common = self.lock();
        for channel in self.shared.registry.all().filter(|c| c.enabled) {
            if named(channel.name.as_str()) {
                common.turns.want(&(self.name.clone(), channel.name.clone()));
            }
        }
        drop(common);
        self.bell.notify_one();
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

    async fn pull(&self) {
        let mut lanes: BTreeMap<Key, State> = BTreeMap::new();
        let mut backoffs = Backoffs::default();
        self.begin(&mut lanes);
        let mut swept = self.now();
        let (mut flushed, mut relayed, mut counted) = (swept, swept, swept);
        let mut resume = self.shared.resume.clone();
        loop {
            self.peace().await;
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
            let driven = Box::pin(self.drive(state, Outcome::Turn)).await;
            lanes.insert(key.clone(), driven.state);
            self.settle(&key, driven.rest, &mut backoffs);
            if driven.renewed || self.accept(&lanes).await {
                self.begin(&mut lanes);
            }
        }
    }

    /// Waits for a bell, a rest that is over, or the next thing that is done now and then.
    async fn nothing_to_do(&self, resume: &mut tokio::sync::watch::Receiver<u64>) {
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
        let again = self.lock().lives.pending().map(|(id, since)| (id.to_owned(), since));
        for channel in self.shared.registry.all().filter(|c| c.enabled) {
            let key = (self.name.clone(), channel.name.clone());
            self.shared.board.again(self.name, &key, again.is_some());
            if let Some(state) = self.lane(&key, channel, again.clone()) {
                lanes.insert(key, state);
            }
        }
        self.lock().turns.wake_all();
        self.want(None);
    }

    fn lane(&self, key: &Key, channel: &Channel, again: Option<(String, Seq)>) -> Option<State> {
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
            again,
        }))
    }

    /// The channels of those that cannot be reached, as far as this peer holds them.
    fn relays(&self, lanes: &mut BTreeMap<Key, State>) {
        let out = self.shared.out_of_reach.all();
        let wanted = |origin: &Origin| {
            origin == self.name || (out.contains(origin) && *origin != self.shared.me)
        };
        lanes.retain(|(origin, _), _| wanted(origin));
        self.lock().turns.forget(|(origin, _)| !wanted(origin));
        for origin in out.iter().filter(|origin| *origin != self.name && wanted(origin)) {
            for channel in self.shared.registry.all().filter(|c| c.enabled) {
                let key = (origin.clone(), channel.name.clone());
                if !lanes.contains_key(&key)
                    && let Some(state) = self.lane(&key, channel, None)
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
            let driven = Box::pin(self.drive(state, Outcome::Flush)).await;
            lanes.insert(key, driven.state);
        }
    }

    /// Accepts the id that was read again, where that is done in every channel. Whether it did.
    async fn accept(&self, lanes: &BTreeMap<Key, State>) -> bool {
        let Some(id) = self.lock().lives.pending().map(|(id, _)| id.to_owned()) else {
            return false;
        };
        let mut channels: Vec<ChannelName> = Vec::new();
        for ((origin, channel), state) in lanes {
            if origin == self.name {
                if !state.reached() || state.wants_flush() {
                    return false;
                }
                channels.push(channel.clone());
            }
        }
        match self.shared.storage.accept_id(self.name, &id, &channels).await {
            Ok(()) => {
                self.lock().lives.accepted(&id);
                tracing::info!(peer = %self.name, "node id {id} of peer {} was read again and is followed from now on", self.name);
                true
            }
            Err(e) => {
                tracing::debug!("node id {id} of peer {} is not accepted yet: {e}", self.name);
                false
            }
        }
    }

    /// One turn: steps until there is nothing to do for now.
    async fn drive(&self, mut state: State, mut outcome: Outcome) -> Driven {
        let mut stream = Stream::<P::Pages>::default();
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
                    self.judge(&state.lane, &print).await
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
                    return Driven { state, rest, renewed: false };
                }
            };
            if let Outcome::Page(answer) = &outcome {
                match self.meet(&state.lane, answer).await {
                    Ok(true) => {}
                    Ok(false) => return Driven { state, rest: Rest::More, renewed: true },
                    Err(failure) => outcome = Outcome::Failed(failure),
                }
            }
        }
    }

    async fn load(&self, lane: &Lane) -> Outcome {
        let (storage, Lane { origin, channel, .. }) = (&self.shared.storage, lane);
        let usual = match storage.cursor(origin, channel).await {
            Ok(usual) => usual,
            Err(e) => return Outcome::NoCursor(e.to_string()),
        };
        if let Some(seq) = usual {
            self.shared.held.note(origin, seq);
        }
        let Some((id, _)) = &lane.again else { return Outcome::Cursor { stored: usual, usual } };
        match storage.cursor_again(origin, channel, id).await {
            Ok(stored) => Outcome::Cursor { stored, usual },
            Err(e) => Outcome::NoCursor(e.to_string()),
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
        if foreign.again.is_none() {
            self.shared.held.note(&foreign.origin, foreign.to);
        }
        self.lock().gains += foreign.rows.len() as u64;
        if let Some(glimpse) = glimpse {
            self.shared.board.took(self.name, &key, foreign.to, glimpse, aside);
        }
    }

    /// What an answer says of who gave it. `Ok(false)` where everything of the origin begins anew.
    async fn meet(&self, lane: &Lane, answer: &Answer) -> Result<bool, Failure> {
        if let Some(node) = &answer.node
            && node != self.name.as_str()
        {
            return Err(Failure::OtherNode(node.clone()));
        }
        self.answered();
        self.hear(answer.seen);
        let Some(id) = answer.node_id.as_deref().filter(|_| lane.direct) else { return Ok(true) };
        let meeting = self.lock().lives.meet(id, answer.since);
        match meeting {
            Meeting::Known => return Ok(true),
            // where it cannot be kept it is met again with the next page
            Meeting::First => match self.shared.storage.accept_id(self.name, id, &[]).await {
                Ok(()) => self.lock().lives.accepted(id),
                Err(e) => tracing::debug!("the id of peer {} is not kept yet: {e}", self.name),
            },
            Meeting::Again(since) => {
                tracing::warn!(peer = %self.name, "peer {} goes by a new node id, {id}: its history parted at seq {since}, and everything above it is read again, once", self.name);
            }
            Meeting::Returned => {
                let why = format!(
                    "two nodes go by the name {}: node id {id} came back after another one; give each node a node_name of its own, then restart this node",
                    self.name
                );
                tracing::error!(peer = %self.name, "peer {} is not followed any more: {why}", self.name);
                self.shared.board.stop(self.name, &why);
                std::future::pending::<()>().await;
            }
        }
        let current = self.lock().lives.current().map(str::to_owned);
        self.shared.board.id(self.name, current.as_deref());
        Ok(meeting == Meeting::First)
    }
}
