//! Whose turn it is: channels that want one, each once, in the order in which they asked; and those
//! that may ask again only later. Pure: time is passed in.
//!
//! Does not know what a turn is used for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A queue of those who want a turn.
#[derive(Debug)]
pub struct Turns<K> {
    queue: VecDeque<K>,
    queued: BTreeSet<K>,
    /// Who must not have a turn before when.
    resting: BTreeMap<K, Duration>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), queued: BTreeSet::new(), resting: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Turns<K> {
    /// Wants a turn: behind all others, or when its rest is over. Whether it need not rest.
    pub fn want(&mut self, who: &K) -> bool {
        let rests = self.resting.contains_key(who);
        if !rests && self.queued.insert(who.clone()) {
            self.queue.push_back(who.clone());
        }
        !rests
    }

    /// Has a turn at that time, whoever wants it before.
    pub fn rest(&mut self, who: &K, until: Duration) {
        if self.queued.remove(who) {
            self.queue.retain(|queued| queued != who);
        }
        self.resting.insert(who.clone(), until);
    }

    /// Ends all rests: something has changed for all.
    pub fn wake_all(&mut self) {
        for who in std::mem::take(&mut self.resting).into_keys() {
            self.want(&who);
        }
    }

    /// Nobody of these wants a turn any more.
    pub fn forget(&mut self, gone: impl Fn(&K) -> bool) {
        self.queue.retain(|who| !gone(who));
        self.queued.retain(|who| !gone(who));
        self.resting.retain(|who, _| !gone(who));
    }

    /// Whose turn it is.
    pub fn next(&mut self, now: Duration) -> Option<K> {
        let over: Vec<K> = self
            .resting
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(k, _)| k.clone())
            .collect();
        for who in over {
            self.resting.remove(&who);
            self.want(&who);
        }
        let who = self.queue.pop_front()?;
        self.queued.remove(&who);
        Some(who)
    }

    /// When the next rest is over; `None` where nobody rests.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.resting.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn everybody_has_a_turn_before_anybody_has_a_second_one() {
        let mut turns = Turns::default();
        for who in ["a", "b", "c", "b"] {
            turns.want(&who);
        }
        let mut order = Vec::new();
        for _ in 0..6 {
            let who = turns.next(SECOND).unwrap();
            order.push(who);
            // it has more to do
            turns.want(&who);
        }
        assert_eq!(order, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn who_rests_has_no_turn_before_its_time_however_often_it_asks() {
        let mut turns = Turns::default();
        turns.want(&"a");
        turns.rest(&"a", 5 * SECOND);
        assert!(!turns.want(&"a") && turns.want(&"b"));
        assert_eq!(turns.next(SECOND), Some("b"));
        assert_eq!(turns.next(4 * SECOND), None);
        assert_eq!(turns.due(), Some(5 * SECOND));
        assert_eq!(turns.next(5 * SECOND), Some("a"));
        assert_eq!(turns.next(6 * SECOND), None);
        turns.rest(&"a", 9 * SECOND);
        turns.wake_all();
        assert_eq!(turns.next(6 * SECOND), Some("a"));
        turns.rest(&"b", 9 * SECOND);
        turns.forget(|who| *who == "b");
        assert_eq!((turns.next(9 * SECOND), turns.due()), (None, None));
    }
}
