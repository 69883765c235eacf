//! What follows from the end of a turn, or from a failure: who rests for how long, and what is said.
//!
//! Does not know pages.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    Backoff, EventStore, Failure, Key, LONG_PEACE, LOOK_AGAIN, News, OF_FAULTS, OF_NEWS,
    OF_STORAGE, PEACE, Peer, Rest, SHORT_PEACE, Seq, Source, Standing,
};

/// Who failed how often.
pub(super) struct Backoffs {
    faults: BTreeMap<Key, Backoff>,
    storage: Backoff,
    /// New ids without a row between them.
    ids: Backoff,
    /// The same of new schemas of a channel.
    schemas: BTreeMap<Key, Backoff>,
}

impl Default for Backoffs {
    fn default() -> Self {
        Self {
            faults: BTreeMap::new(),
            storage: OF_STORAGE,
            ids: OF_NEWS,
            schemas: BTreeMap::new(),
        }
    }
}

impl<S: EventStore, P: Source> Peer<'_, S, P> {
    /// A turn has brought rows, or something new of the peer, or neither. One that says something else
    /// each time, and gives no row, is asked less and less.
    pub(super) fn turned(
        &self,
        key: &Key,
        news: Option<News>,
        brought: bool,
        backoffs: &mut Backoffs,
    ) {
        let (now, dice) = (self.now(), self.throw());
        if key.0 == *self.name {
            self.lock().taken += 1;
            self.ended.notify_waiters();
        }
        if brought {
            backoffs.ids.succeeded();
            backoffs.schemas.remove(key);
        }
        let backoff = match news {
            None => return,
            Some(News::Id) => &mut backoffs.ids,
            Some(News::Schema) => backoffs.schemas.entry(key.clone()).or_insert(OF_NEWS),
        };
        let first = backoff.failures() == 0;
        let wait = backoff.failed(dice);
        if !first {
            self.lock().breaker.rest(now, wait);
        }
    }

    /// The peer gave its own events where those of another origin were asked for, as v1.0.2 does: it is
    /// asked for no others until it says what it answers.
    pub(super) fn cannot_relay(&self) {
        if !std::mem::replace(&mut self.lock().mute, true) {
            tracing::warn!(
                peer = %self.name,
                "peer {} does not say whose events it gives, as v1.0.2 does not: it cannot relay, and is asked for its own alone",
                self.name
            );
        }
    }

    /// What follows from how a turn has ended.
    pub(super) fn settle(&self, key: &Key, rest: Rest, backoffs: &mut Backoffs) {
        let (now, dice) = (self.now(), self.throw());
        match rest {
            Rest::More => {
                backoffs.storage.succeeded();
                self.stands(key, Standing::Behind, None);
                self.lock().turns.want(key);
            }
            Rest::Idle => {
                backoffs.storage.succeeded();
                backoffs.faults.remove(key);
                self.stands(key, Standing::Current, None);
            }
            Rest::Storage(why) => {
                let wait = backoffs.storage.failed(dice);
                tracing::debug!("what peer {} sent is not stored yet: {why}", self.name);
                self.lock().turns.rest(key, now + wait);
            }
            Rest::Paused(why) => {
                self.stands(key, Standing::Paused, Some(why));
                self.lock().turns.rest(key, now + LOOK_AGAIN);
            }
            Rest::Stopped(why) => {
                self.stands(key, Standing::Stopped, Some(why));
                // whoever wakes it wakes all
                self.lock().turns.rest(key, Duration::MAX);
            }
            Rest::Failed(Failure::Fault(fault)) => {
                let wait = backoffs.faults.entry(key.clone()).or_insert(OF_FAULTS).failed(dice);
                self.stands(
                    key,
                    Standing::Paused,
                    Some(format!("its answer is not used: {fault}")),
                );
                self.lock().turns.rest(key, now + wait);
                self.failed(&Failure::Fault(fault));
            }
            Rest::Failed(failure) => {
                // another route of the same peer may answer well
                if matches!(failure, Failure::Status(_)) {
                    self.stands(key, Standing::Paused, Some(failure.to_string()));
                }
                if failure == Failure::Unavailable {
                    self.lock().breaker.refused(now);
                }
                self.failed(&failure);
                self.lock().turns.want(key);
            }
        }
    }

    /// The peer failed: how long it is left in peace.
    pub(super) fn failed(&self, failure: &Failure) {
        let (now, dice) = (self.now(), self.throw());
        let out = {
            let mut common = self.lock();
            if failure.answered() {
                common.breaker.answered();
                let peace = match failure {
                    Failure::Fault(_) => PEACE,
                    Failure::Unavailable => SHORT_PEACE,
                    _ => LONG_PEACE,
                };
                common.breaker.rest(now, peace);
            } else {
                common.breaker.failed(now, dice);
            }
            common.breaker.is_open(now)
        };
        self.shared.out_of_reach.set(self.name, out);
        if matches!(failure, Failure::Fault(_)) {
            return;
        }
        let text = failure.to_string();
        if self.shared.board.trouble(self.name, Some(&text)) {
            tracing::warn!(peer = %self.name, "peer {}: {text}; it is asked again by itself", self.name);
        }
    }

    /// The peer answered.
    pub(super) fn answered(&self) {
        let now = self.now();
        let (out, refuses) = {
            let mut common = self.lock();
            common.breaker.answered();
            (common.breaker.is_open(now), common.breaker.refuses())
        };
        self.shared.out_of_reach.set(self.name, out);
        self.shared.board.answered(self.name, self.source.bytes());
        if refuses {
            // it talks, and gives no page
            return;
        }
        if self.shared.board.trouble(self.name, None) {
            tracing::info!(peer = %self.name, "peer {} answers", self.name);
            self.want(None);
        }
    }

    /// The peer holds our own events up to here: told on where that is news.
    pub(super) fn hear(&self, seen: Option<Seq>) {
        let Some(seen) = seen else { return };
        let news = {
            let mut common = self.lock();
            let news = seen > common.seen;
            common.seen = seen.max(common.seen);
            news
        };
        if news {
            (self.shared.seen)(seen);
        }
    }

    /// How a channel stands; said once where somebody should know.
    pub(super) fn stands(&self, (origin, channel): &Key, state: Standing, reason: Option<String>) {
        let key = (origin.clone(), channel.clone());
        let red = matches!(state, Standing::Paused | Standing::Stopped);
        let text = reason.clone().unwrap_or_default();
        if !self.shared.board.stands(self.name, &key, state, reason) || !red {
            return;
        }
        tracing::error!(
            peer = %self.name, %origin, %channel,
            "channel {channel} of {origin} is not pulled from {}: {text}; the other channels go on",
            self.name
        );
    }
}
