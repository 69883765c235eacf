//! Per channel, the largest S such that every local event of it at or below S is resolved: stored, a
//! dead letter, void, or reported lost. Peers are served up to S and no further.
//!
//! Pure but for a lock and a bell. Keeps nothing per event: the log is read in order, so what is
//! unresolved is what lies behind the reader, what is in a lease, and what is set aside. Does not
//! know queues, storage or peers.
//!
//! Seqs are shown here by the log thread, after they were given out and before anybody can read their
//! events, in the same step in which `assigned` moves: so no S can pass an event that is not known
//! here yet. A seq whose write failed stays above `assigned` until it is void for good.
//!
//! A log on a server may come to be known late, and may go back: what was resolved is then read once
//! more. What S has passed stays passed: such an event does not hold it back again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::event::{ChannelName, Seq};

/// Where a log stands when it is opened.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The last seq that is known to have been given out.
    pub assigned: Seq,
    /// Every event at or below it is resolved, or set aside.
    pub read: Seq,
    /// The last seq that stands in the log.
    pub end: Seq,
    /// The last one that readers may read already: lower where a full disk holds up the rest.
    pub shown: Seq,
    /// The channels that have unresolved events; `None` stands for those that damage hid, which may
    /// be of any channel.
    pub backlog: Vec<Option<ChannelName>>,
    /// The channels that are set aside, with the first seq of each that may be unresolved.
    pub parked: Vec<(ChannelName, Seq)>,
    /// Where the numbers of changes begin: above those of an earlier process, as far as a clock tells.
    pub base: u64,
}

/// What became safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// To be given as `after` the next time.
    pub number: u64,
    /// The channels that gained events; `None` where that cannot be told: all may have.
    pub channels: Option<Vec<ChannelName>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The last seq of it that was shown.
    last: Seq,
    /// The first one shown that the reader had not passed then.
    unread: Seq,
    /// The first seq of each lease that holds some of it.
    leased: BTreeSet<Seq>,
    /// The first seq of it that is set aside.
    parked: Option<Seq>,
    /// Its storage lacks something again from this seq on, which it had taken.
    owed: Option<Seq>,
    /// The number of its last change.
    gained: u64,
}

/// The state, without the lock.
#[derive(Debug)]
pub struct Marks {
    /// The log was found; before that nothing is safe.
    met: bool,
    assigned: Seq,
    /// Up to here readers may read.
    shown: Seq,
    /// Up to here everything was leased, set aside, or is resolved.
    read: Seq,
    /// Up to here any channel may have an unread event that nobody counted for it.
    unknown: Seq,
    slots: HashMap<ChannelName, Slot>,
    leases: HashMap<u64, Vec<(ChannelName, Seq)>>,
    base: u64,
    number: u64,
    /// What `assigned` was when the log was opened, or when another id was drawn.
    found: Seq,
    /// The first seq given out since.
    first: Option<Seq>,
}

impl Marks {
    /// As a log was found.
    #[must_use]
    pub fn new(start: Start) -> Self {
        let Start { assigned, read, end, shown, backlog, parked, base } = start;
        let mut marks = Self {
            met: true,
            assigned: assigned.max(end),
            shown,
            read,
            unknown: Seq(0),
            slots: HashMap::new(),
            leases: HashMap::new(),
            base,
            number: base,
            found: assigned.max(end),
            first: None,
        };
        for channel in backlog {
            match channel {
                Some(channel) => {
                    let slot = marks.slots.entry(channel).or_default();
                    (slot.last, slot.unread) = (end, read.next());
                }
                None => marks.unknown = end,
            }
        }
        for (channel, first) in parked {
            marks.slots.entry(channel).or_default().parked = Some(first);
        }
        marks
    }

    /// Of a log that nobody has met yet: nothing is safe until [`Marks::begin`]. `base` is where the
    /// numbers of changes begin.
    #[must_use]
    pub fn unmet(base: u64) -> Self {
        Self { met: false, ..Self::new(Start { base, ..Start::default() }) }
    }

    /// The log was met: as [`Marks::new`]. Who asked for changes before is told that all may have
    /// gained.
    pub fn begin(&mut self, start: Start) {
        let base = start.base.max(self.number + 1);
        *self = Self::new(Start { base, ..start });
    }

    /// Up to here any channel may have an unread event that [`Marks::written`] did not show.
    pub fn uncounted(&mut self, upto: Seq) {
        self.unknown = self.unknown.max(upto);
    }

    /// These requests stand in the log: channel, first and last seq of each, in rising order. Called
    /// before any reader can see them.
    pub fn written<'a>(&mut self, group: impl Iterator<Item = (&'a ChannelName, Seq, Seq)>) {
        for (channel, first, last) in group {
            debug_assert!(first > self.assigned, "seqs rise");
            let read = self.read;
            let slot = self.slot(channel);
            if slot.last <= read {
                slot.unread = first;
            }
            slot.last = last;
            self.assigned = self.assigned.max(last);
            self.first.get_or_insert(first);
        }
    }

    /// Every seq below `next` was shown by [`Marks::written`], or is void for good.
    pub fn void_below(&mut self, next: Seq) {
        self.assigned = self.assigned.max(Seq(next.0.saturating_sub(1)));
        if self.assigned > self.found {
            self.first.get_or_insert(next);
        }
    }

    /// Another id was drawn: under it everything below `next` is final, and may be shown, whatever was
    /// known of it before.
    pub fn begin_anew_below(&mut self, next: Seq) {
        self.void_below(next);
        self.found = self.assigned;
    }

    /// Whether a peer may have come so far with us: up to what was found when the log was opened, and
    /// from what was given out since. One that stands between them has seen what is gone here.
    #[must_use]
    pub fn may_have_shown(&self, seq: Seq) -> bool {
        // who has not met its log cannot say; an S lies right below the first seq given out until that
        // is resolved
        !self.met || seq <= self.found || self.first.is_some_and(|first| seq.next() >= first)
    }

    /// Up to here everything was leased, set aside, or is resolved.
    #[must_use]
    pub fn read_to(&self) -> Seq {
        self.read
    }

    /// The first seq of the channel that is set aside and not resolved, as far as any is.
    #[must_use]
    pub fn set_aside(&self, channel: &ChannelName) -> Option<Seq> {
        self.slots.get(channel).and_then(|slot| slot.parked)
    }

    /// The leases that were handed out and have not ended.
    #[must_use]
    pub fn under_way(&self) -> BTreeSet<u64> {
        self.leases.keys().copied().collect()
    }

    /// The channels of which anything is known.
    #[must_use]
    pub fn channels(&self) -> Vec<ChannelName> {
        self.slots.keys().cloned().collect()
    }

    /// The least S of all channels: everything at or below it is resolved, of whatever channel.
    #[must_use]
    pub fn whole(&self) -> Seq {
        let known = self.slots.keys().map(|channel| self.safe(channel)).min();
        let others = self.readable();
        known.map_or(others, |known| known.min(others))
    }

    /// Readers may read up to here.
    pub fn shown(&mut self, upto: Seq) {
        self.shown = self.shown.max(upto);
    }

    /// How far readers may read: asked before a reading, told by [`Marks::passed`] after one that
    /// found no more.
    #[must_use]
    pub fn shown_to(&self) -> Seq {
        self.shown
    }

    /// A lease was handed out: it ends at `through`, and holds events from these seqs on.
    pub fn leased(&mut self, id: u64, through: Seq, firsts: Vec<(ChannelName, Seq)>) {
        for (channel, first) in &firsts {
            self.slot(channel).leased.insert(*first);
        }
        self.leases.insert(id, firsts);
        self.passed(through);
    }

    /// As [`Marks::leased`], of events in rising order some of which may have been read before: what
    /// S has passed does not count again.
    pub fn leased_again<'a>(
        &mut self,
        id: u64,
        through: Seq,
        events: impl Iterator<Item = (&'a ChannelName, Seq)>,
    ) {
        let read = self.read;
        // what was not read yet lies above every S of its channel
        let counts =
            |(channel, seq): &(&ChannelName, Seq)| *seq > read || *seq > self.safe(channel);
        let firsts = firsts(events.filter(counts));
        self.leased(id, through, firsts);
    }

    /// Everything up to here was leased, set aside, or is resolved.
    pub fn passed(&mut self, upto: Seq) {
        let hidden = self.unknown > self.read;
        self.read = self.read.max(upto);
        if hidden && self.unknown <= self.read {
            // what was stored meanwhile shows with this step, of whatever channel
            self.number += 1;
            let number = self.number;
            self.slots.values_mut().for_each(|slot| slot.gained = number);
        }
    }

    /// A lease ended: what it still held is resolved.
    pub fn resolved(&mut self, id: u64) {
        let Some(firsts) = self.leases.remove(&id) else { return };
        for (channel, first) in &firsts {
            self.slot(channel).leased.remove(first);
        }
        for (channel, first) in &firsts {
            if self.safe(channel) >= *first {
                self.gain(channel);
            }
        }
    }

    /// Events of the channel are set aside, from this seq on. Called before their lease ends, and
    /// before [`Marks::passed`] goes beyond them.
    pub fn parked(&mut self, channel: &ChannelName, first: Seq) {
        let slot = self.slot(channel);
        slot.parked = Some(slot.parked.map_or(first, |parked| parked.min(first)));
    }

    /// As [`Marks::parked`], of events some of which may have been read before: what S has passed
    /// does not count again.
    pub fn parked_again(&mut self, channel: &ChannelName, seqs: impl Iterator<Item = Seq>) {
        let safe = self.safe(channel);
        if let Some(first) = seqs.filter(|seq| *seq > safe).min() {
            self.parked(channel, first);
        }
    }

    /// What is set aside of the channel is resolved below this seq.
    pub fn parked_to(&mut self, channel: &ChannelName, first: Seq) {
        let slot = self.slot(channel);
        if slot.parked.is_some_and(|parked| parked < first) {
            slot.parked = Some(first);
            self.gain(channel);
        }
    }

    /// The storage lacks something of the channel from this seq on that it had taken; `None` where it
    /// lacks nothing any more.
    pub fn owed(&mut self, channel: &ChannelName, first: Option<Seq>) {
        let slot = self.slot(channel);
        if std::mem::replace(&mut slot.owed, first).is_some() && first.is_none() {
            self.gain(channel);
        }
    }

    /// The channel has drained.
    pub fn unparked(&mut self, channel: &ChannelName) {
        if self.slot(channel).parked.take().is_some() {
            self.gain(channel);
        }
    }

    /// The largest S of the channel; that of an idle one is the last seq given out.
    #[must_use]
    pub fn safe(&self, channel: &ChannelName) -> Seq {
        let owed = self.slots.get(channel).and_then(|slot| slot.owed);
        owed.map(before).into_iter().fold(self.resolved_to(channel), Seq::min)
    }

    /// As [`Marks::safe`], whatever the storage lacks again.
    #[must_use]
    pub fn resolved_to(&self, channel: &ChannelName) -> Seq {
        let mut safe = self.readable();
        let Some(slot) = self.slots.get(channel) else { return safe };
        if slot.last > self.read {
            safe = safe.min(before(slot.unread.max(self.read.next())));
        }
        let held = slot.leased.first().copied().into_iter().chain(slot.parked);
        held.map(before).fold(safe, Seq::min)
    }

    /// The largest S of a channel of which nothing is known.
    fn readable(&self) -> Seq {
        if self.unknown > self.read { self.read.min(self.assigned) } else { self.assigned }
    }

    /// What gained events since that number. A number of another process is not known.
    #[must_use]
    pub fn changes(&self, after: Option<u64>) -> Changes {
        let number = self.number;
        let known = after.filter(|after| (self.base..=number).contains(after));
        let gained = |after: u64| {
            let of = self.slots.iter().filter(|(_, slot)| slot.gained > after);
            let mut channels: Vec<ChannelName> = of.map(|(channel, _)| channel.clone()).collect();
            channels.sort_unstable();
            channels
        };
        Changes { number, channels: known.map(gained) }
    }

    fn slot(&mut self, channel: &ChannelName) -> &mut Slot {
        // a name is an Arc: cloning it is cheaper than looking twice
        self.slots.entry(channel.clone()).or_default()
    }

    fn gain(&mut self, channel: &ChannelName) {
        self.number += 1;
        let number = self.number;
        self.slot(channel).gained = number;
    }
}

/// The first seq of each channel among events in rising order of seq.
#[must_use]
pub fn firsts<'a>(events: impl Iterator<Item = (&'a ChannelName, Seq)>) -> Vec<(ChannelName, Seq)> {
    let mut found: Vec<(ChannelName, Seq)> = Vec::new();
    let mut seen: HashSet<&ChannelName> = HashSet::new();
    let mut last: Option<&ChannelName> = None;
    for (channel, seq) in events {
        // most events follow one of their own channel
        if last == Some(channel) {
            continue;
        }
        last = Some(channel);
        if seen.insert(channel) {
            found.push((channel.clone(), seq));
        }
    }
    found
}

/// The marks as the parts of a node share them.
#[derive(Debug)]
pub struct Watermark {
    marks: Mutex<Marks>,
    bell: watch::Sender<u64>,
}

impl Watermark {
    /// As a log was found.
    #[must_use]
    pub fn new(start: Start) -> Self {
        Self::of(Marks::new(start))
    }

    /// Of a log that nobody has met yet: see [`Marks::unmet`].
    #[must_use]
    pub fn unmet(base: u64) -> Self {
        Self::of(Marks::unmet(base))
    }

    fn of(marks: Marks) -> Self {
        let bell = watch::channel(marks.number).0;
        Self { marks: Mutex::new(marks), bell }
    }

    /// A look, or a step. Whoever waits is woken where something became safe.
    pub fn with<T>(&self, step: impl FnOnce(&mut Marks) -> T) -> T {
        let mut marks = self.lock();
        let before = marks.number;
        let done = step(&mut marks);
        let number = marks.number;
        drop(marks);
        if number != before {
            // two steps may ring out of order: the bell never goes back
            self.bell.send_if_modified(|rung| {
                let higher = number > *rung;
                *rung = number.max(*rung);
                higher
            });
        }
        done
    }

    /// The largest S of the channel.
    #[must_use]
    pub fn safe(&self, channel: &ChannelName) -> Seq {
        self.lock().safe(channel)
    }

    /// What gained events since that number.
    #[must_use]
    pub fn changes(&self, after: Option<u64>) -> Changes {
        self.lock().changes(after)
    }

    /// Rings when something becomes safe. Whoever waits registers here first, and looks then.
    #[must_use]
    pub fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn before(seq: Seq) -> Seq {
    Seq(seq.0.saturating_sub(1))
}

#[cfg(test)]
mod tests;
