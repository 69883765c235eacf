//! How far the log is released: leases in order, each ended or not. Pure.
//!
//! Does not know files or threads.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::segment::ChannelLoads;
use crate::event::{ChannelName, Micros, Name, Seq};
use crate::queue::accounts::Load;

/// The record in the ack slots. A hint: without it the log is replayed from its oldest segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckRecord {
    /// Whose log it is.
    pub origin: String,
    /// The oldest segment still needed: missing from there on is damage.
    pub oldest: u64,
    /// Per consumer; `writer` is the one there is.
    pub consumers: BTreeMap<String, Position>,
    /// The last seq known to be synced, and the events in the log up to it.
    pub witness: (u64, u64),
    /// Per parked channel, the same for the log of its own.
    #[serde(default)]
    pub parked: BTreeMap<String, ParkedRecord>,
}

/// How far a parked channel's log is released.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedRecord {
    /// The oldest segment still needed.
    pub oldest: u64,
    /// How far it is released.
    pub position: Position,
    /// The last seq known to be synced, and the events in the log up to it.
    pub witness: (u64, u64),
}

/// A consumer's position.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Every event at or below it is resolved.
    pub released: u64,
    /// What was released up to it, per channel; `""` holds what damage hid.
    pub counts: BTreeMap<String, Load>,
}

/// The one consumer of this log.
pub const WRITER: &str = "writer";

impl Position {
    /// The counts by name.
    #[must_use]
    pub fn loads(&self) -> ChannelLoads {
        let named = |(name, load): (&String, &Load)| (Name::new(name).ok(), *load);
        self.counts.iter().map(named).collect()
    }

    /// From counts by name.
    #[must_use]
    pub fn of(released: Seq, loads: &ChannelLoads) -> Self {
        let text = |name: &Option<Name>| name.as_ref().map_or_else(String::new, Name::to_string);
        let counts = loads.iter().map(|(name, load)| (text(name), *load)).collect();
        Self { released: released.0, counts }
    }
}

struct Outstanding {
    id: u64,
    last: Seq,
    loads: ChannelLoads,
    segment: u64,
    received_at: Option<Micros>,
    done: bool,
    /// Channels whose events were moved out of this lease into their own log.
    moved: Vec<ChannelName>,
}

impl Outstanding {
    fn holds(&self, channel: &ChannelName) -> bool {
        !self.done && self.has(channel) && !self.moved.contains(channel)
    }

    fn has(&self, channel: &ChannelName) -> bool {
        self.loads.contains_key(&Some(channel.clone()))
    }
}

/// Leases under way.
pub struct Tracker {
    leases: VecDeque<Outstanding>,
    next_id: u64,
    released: Seq,
    counts: ChannelLoads,
    reader_segment: u64,
    changed: bool,
}

impl Tracker {
    /// Starts at a released position.
    #[must_use]
    pub fn new(released: Seq, counts: ChannelLoads) -> Self {
        Self {
            leases: VecDeque::new(),
            next_id: 1,
            released,
            counts,
            reader_segment: 0,
            changed: true,
        }
    }

    /// The reader has come to this segment.
    pub fn reading(&mut self, segment: u64) {
        self.reader_segment = segment;
    }

    /// A lease was handed out: its last seq, what it holds, the segment that it ends in.
    pub fn leased(
        &mut self,
        last: Seq,
        loads: ChannelLoads,
        segment: u64,
        received_at: Micros,
    ) -> u64 {
        self.push(last, loads, segment, Some(received_at), false)
    }

    /// Something that will never be leased (damage) stands here and is resolved as it is.
    pub fn skipped(&mut self, last: Seq, loads: ChannelLoads, segment: u64) {
        self.push(last, loads, segment, None, true);
        self.advance();
    }

    fn push(
        &mut self,
        last: Seq,
        loads: ChannelLoads,
        segment: u64,
        received_at: Option<Micros>,
        done: bool,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let moved = Vec::new();
        self.leases.push_back(Outstanding { id, last, loads, segment, received_at, done, moved });
        id
    }

    /// Whether a lease under way holds events of the channel.
    #[must_use]
    pub fn holds(&self, channel: &ChannelName) -> bool {
        self.leases.iter().any(|l| l.holds(channel))
    }

    /// Whether a lease older than this one holds events of the channel: they are parked first.
    #[must_use]
    pub fn holds_before(&self, id: u64, channel: &ChannelName) -> bool {
        self.leases.iter().take_while(|l| l.id != id).any(|l| l.holds(channel))
    }

    /// This lease's events of the channel stand in a log of their own from now on.
    pub fn moved(&mut self, id: u64, channel: &ChannelName) {
        if let Some(lease) = self.leases.iter_mut().find(|l| l.id == id) {
            lease.moved.push(channel.clone());
        }
    }

    /// A lease ended. `false` where it is not known.
    pub fn done(&mut self, id: u64) -> bool {
        let Some(lease) = self.leases.iter_mut().find(|l| l.id == id && !l.done) else {
            return false;
        };
        lease.done = true;
        self.advance();
        true
    }

    fn advance(&mut self) {
        while let Some(lease) = self.leases.pop_front_if(|l| l.done) {
            debug_assert!(lease.last >= self.released, "the released set is a prefix");
            self.released = self.released.max(lease.last);
            for (channel, load) in lease.loads {
                let total = self.counts.entry(channel).or_default();
                *total = total.plus(load);
            }
            self.changed = true;
        }
    }

    /// Every event at or below it is resolved.
    #[must_use]
    pub fn released(&self) -> Seq {
        self.released
    }

    /// When the oldest event under way was accepted.
    #[must_use]
    pub fn oldest(&self) -> Option<Micros> {
        self.leases.iter().find(|l| !l.done)?.received_at
    }

    /// How many leases are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.leases.len()
    }

    /// The oldest segment that holds anything unresolved.
    #[must_use]
    pub fn oldest_segment(&self) -> u64 {
        self.leases.front().map_or(self.reader_segment, |l| l.segment)
    }

    /// The position, where it changed since it was last asked for.
    #[must_use]
    pub fn take_change(&mut self) -> Option<Position> {
        std::mem::take(&mut self.changed).then(|| Position::of(self.released, &self.counts))
    }

    /// The position was not made durable after all.
    pub fn still_changed(&mut self) {
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker() -> Tracker {
        Tracker::new(Seq(0), ChannelLoads::new())
    }

    fn lease(t: &mut Tracker, last: u64, segment: u64) -> u64 {
        let loads = [(None, Load { events: 10, bytes: 1 })].into();
        t.leased(Seq(last), loads, segment, Micros(1))
    }

    #[test]
    fn a_later_lease_that_ends_first_releases_nothing() {
        let mut t = tracker();
        let (a, b) = (lease(&mut t, 200, 1), lease(&mut t, 400, 1));
        assert!(t.done(b));
        assert_eq!(t.released(), Seq(0));
        assert!(t.done(a));
        assert_eq!(t.released(), Seq(400));
        assert!(!t.done(a), "a lease ends once");
        assert_eq!(t.take_change().unwrap().counts[""].events, 20);
        assert!(t.take_change().is_none());
    }

    #[test]
    fn a_segment_is_needed_until_its_last_lease_ended() {
        let mut t = tracker();
        t.reading(1);
        let a = lease(&mut t, 10, 1);
        t.reading(2);
        let b = lease(&mut t, 20, 2);
        assert_eq!(t.oldest_segment(), 1);
        t.done(b);
        assert_eq!(t.oldest_segment(), 1);
        t.done(a);
        assert_eq!(t.oldest_segment(), 2);
    }

    #[test]
    fn damage_is_released_in_its_turn() {
        let mut t = tracker();
        let a = lease(&mut t, 10, 1);
        t.skipped(Seq(15), [(None, Load { events: 5, bytes: 0 })].into(), 1);
        assert_eq!(t.released(), Seq(0));
        t.done(a);
        assert_eq!(t.released(), Seq(15));
    }
}
