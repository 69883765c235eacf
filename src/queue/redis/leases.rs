//! What is in whose hands: leases in order, each ended or not, of the stream and of every channel that
//! is set aside. Pure.
//!
//! Does not know a connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::entry::{EntryId, load_of};
use super::standing::{Standing, Whole};
use crate::event::{ChannelName, Event, Micros, Seq};
use crate::queue::accounts::Load;
use crate::queue::{Parked, Source};

/// An event in somebody's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub seq: Seq,
    pub channel: ChannelName,
    pub load: Load,
}

impl Held {
    pub fn of(event: &Event) -> Self {
        Self { seq: event.seq, channel: event.channel.clone(), load: load_of(event) }
    }
}

struct Out {
    id: u64,
    /// Of the last event that was handed out with it.
    last: Seq,
    /// In rising order.
    held: Vec<Held>,
    oldest: Micros,
    done: bool,
}

/// The leases of one source.
#[derive(Default)]
struct Line {
    outs: VecDeque<Out>,
    released: Seq,
}

impl Line {
    fn advance(&mut self) {
        while let Some(out) = self.outs.pop_front_if(|out| out.done) {
            self.released = self.released.max(out.last);
        }
    }

    fn under_way(&self) -> impl Iterator<Item = &Out> {
        self.outs.iter().filter(|out| !out.done)
    }

    fn holds(&self, seq: Seq) -> bool {
        let here = |out: &Out| out.held.binary_search_by_key(&seq, |held| held.seq).is_ok();
        self.under_way().any(here)
    }
}

/// How far what is pending with a consumer was handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Up to this entry all of them were, to their last events.
    pub entry: EntryId,
    /// Up to here every event was: of the entry behind that one, too.
    pub through: Seq,
}

impl Cursor {
    /// Right below an event of the entry that begins with `first`.
    fn below(seq: Seq, first: Seq) -> Self {
        Self { entry: EntryId::before(first), through: Seq(seq.0.saturating_sub(1)) }
    }

    /// The lower one, in both respects.
    fn lower(self, other: Self) -> Self {
        Self { entry: self.entry.min(other.entry), through: self.through.min(other.through) }
    }
}

/// A channel that is set aside.
pub(super) struct Aside {
    line: Line,
    pub cursor: Cursor,
    /// Nothing that went aside of it below is still needed.
    oldest: Seq,
    pub why: String,
    /// In hand when Redis lost them: they wait here.
    extra: BTreeMap<Seq, Event>,
}

impl Aside {
    /// Nothing of the channel below it is still needed; `None` while nothing went aside.
    pub fn oldest(&self) -> Option<Seq> {
        (self.oldest.0 < u64::MAX).then_some(self.oldest)
    }

    /// Below it everything that went aside is resolved: what is not is in somebody's hands, or lies
    /// behind the cursor.
    fn resolved_below(&self) -> Seq {
        let held = self.line.under_way().filter_map(|out| out.held.first());
        let kept = self.extra.keys().next().copied();
        let unread = Seq(self.cursor.through.0.saturating_add(1));
        held.map(|held| held.seq).chain(kept).fold(unread, Seq::min)
    }
}

/// All of them.
pub(super) struct Leases {
    main: Line,
    parked: BTreeMap<ChannelName, Aside>,
    /// What was read of the stream, entry by entry.
    standing: Standing,
    next_id: u64,
}

impl Leases {
    pub fn new() -> Self {
        Self {
            main: Line::default(),
            parked: BTreeMap::new(),
            standing: Standing::default(),
            next_id: 1,
        }
    }

    /// Everything up to it is resolved: nothing below stands in the stream.
    pub fn begin(&mut self, released: Seq) {
        self.main.released = self.main.released.max(released);
    }

    /// An entry was read, some of whose events are to be handed out.
    pub fn read(&mut self, whole: Whole) {
        self.standing.read(whole);
    }

    /// These are resolved: the entries that may leave the stream, since all of their events are.
    pub fn resolve(&mut self, held: &[Held]) -> Vec<Whole> {
        self.standing.resolve(held)
    }

    /// The first seqs of the entries that hold these events.
    pub fn firsts<'a>(&self, events: impl Iterator<Item = &'a Event>) -> BTreeSet<Seq> {
        events.map(|event| self.standing.first_of(event.seq)).collect()
    }

    /// What was read, entry by entry in order, and what of each is resolved.
    pub fn standing(&self) -> Vec<(Whole, Load)> {
        self.standing.all()
    }

    /// How many resolved events stand in the stream beside others of their entries.
    pub fn resolved_events(&self) -> u64 {
        self.standing.resolved_events()
    }

    /// No entry that begins below it is needed any more.
    pub fn oldest_entry(&self) -> Seq {
        let first = self.first_unacked();
        self.standing.oldest().map_or(first, |oldest| oldest.min(first))
    }

    /// Redis has lost something: of the entries that it still has (`there`, by their first seqs), all
    /// but what is in hand (`held`) comes again.
    pub fn reckoned(&mut self, held: &BTreeSet<Seq>, there: &BTreeSet<Seq>) {
        for aside in self.parked.values_mut() {
            aside.cursor = Cursor::default();
            aside.oldest = self.standing.first_of(aside.oldest);
        }
        self.standing.reckoned(held, there);
    }

    /// Hands events out; the lease's number.
    pub fn lease(&mut self, from: &Source, events: &[Event]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let line = match from {
            Source::Main => Some(&mut self.main),
            Source::Parked(channel) => self.parked.get_mut(channel).map(|aside| &mut aside.line),
        };
        if let (Some(line), Some(last)) = (line, events.last()) {
            let held = events.iter().map(Held::of).collect();
            let oldest = events.iter().map(|e| e.received_at).min().unwrap_or_default();
            line.outs.push_back(Out { id, last: last.seq, held, oldest, done: false });
        }
        id
    }

    /// Ends a lease: what it still held. `None` where it is not known.
    pub fn done(&mut self, from: &Source, id: u64) -> Option<Vec<Held>> {
        let line = match from {
            Source::Main => &mut self.main,
            Source::Parked(channel) => &mut self.parked.get_mut(channel)?.line,
        };
        let out = line.outs.iter_mut().find(|out| out.id == id && !out.done)?;
        out.done = true;
        let held = std::mem::take(&mut out.held);
        line.advance();
        if let Source::Parked(channel) = from
            && let Some(aside) = self.parked.get_mut(channel)
        {
            aside.oldest = aside.oldest.max(aside.resolved_below());
        }
        Some(held)
    }

    /// These events left a lease of the stream: they are set aside.
    pub fn moved(&mut self, id: u64, seqs: &BTreeSet<Seq>) {
        if let Some(out) = self.main.outs.iter_mut().find(|out| out.id == id) {
            out.held.retain(|held| !seqs.contains(&held.seq));
        }
    }

    /// A channel is set aside, if it is not yet; whether that is new.
    pub fn park(&mut self, channel: &ChannelName, why: &str) -> bool {
        if let Some(aside) = self.parked.get_mut(channel) {
            why.clone_into(&mut aside.why);
            return false;
        }
        let aside = Aside {
            line: Line::default(),
            cursor: Cursor::default(),
            oldest: Seq(u64::MAX),
            why: why.to_owned(),
            extra: BTreeMap::new(),
        };
        self.parked.insert(channel.clone(), aside);
        true
    }

    /// Events of it are on their way to its consumer: told before they are, so that nobody passes them.
    pub fn follows(&mut self, channel: &ChannelName, seqs: impl Iterator<Item = Seq>) {
        if let (Some(aside), Some(lowest)) = (self.parked.get_mut(channel), seqs.min()) {
            aside.oldest = aside.oldest.min(lowest);
            let below = Cursor::below(lowest, self.standing.first_of(lowest));
            aside.cursor = aside.cursor.lower(below);
        }
    }

    /// Events of it went to its consumer, in rising order; those whose entries are not among `there`,
    /// by their first seqs, are in hand only.
    pub fn went_aside(&mut self, channel: &ChannelName, events: Vec<Event>, there: &BTreeSet<Seq>) {
        let stands = |event: &Event| there.contains(&self.standing.first_of(event.seq));
        let (went, lost): (Vec<Event>, Vec<Event>) = events.into_iter().partition(stands);
        self.standing.went_aside(&went);
        self.keep(channel, lost);
    }

    /// Events of it that are in hand only.
    pub fn keep(&mut self, channel: &ChannelName, events: Vec<Event>) {
        self.follows(channel, events.iter().map(|e| e.seq));
        if let Some(aside) = self.parked.get_mut(channel) {
            aside.extra.extend(events.into_iter().map(|e| (e.seq, e)));
        }
    }

    /// Takes such events back, at most so many.
    pub fn take_kept(&mut self, channel: &ChannelName, most: usize) -> Vec<Event> {
        let Some(aside) = self.parked.get_mut(channel) else { return Vec::new() };
        let mut taken = Vec::new();
        while taken.len() < most.max(1)
            && let Some((_, event)) = aside.extra.pop_first()
        {
            taken.push(event);
        }
        taken
    }

    /// The channel has drained: it is set aside no longer.
    pub fn unpark(&mut self, channel: &ChannelName) {
        self.parked.remove(channel);
    }

    pub fn is_parked(&self, channel: &ChannelName) -> bool {
        self.parked.contains_key(channel)
    }

    pub fn any_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    pub fn aside(&self, channel: &ChannelName) -> Option<&Aside> {
        self.parked.get(channel)
    }

    pub fn aside_mut(&mut self, channel: &ChannelName) -> Option<&mut Aside> {
        self.parked.get_mut(channel)
    }

    /// The channels that are set aside.
    pub fn parked(&self) -> Vec<Parked> {
        let parked = |(channel, aside): (&ChannelName, &Aside)| Parked {
            channel: channel.clone(),
            why: aside.why.clone(),
        };
        self.parked.iter().map(parked).collect()
    }

    /// Whether a lease of the stream holds events of the channel: they come before what is set aside.
    pub fn main_holds(&self, channel: &ChannelName) -> bool {
        self.main.under_way().any(|out| out.held.iter().any(|held| held.channel == *channel))
    }

    /// Whether nothing of a channel that is set aside is in anybody's hands.
    pub fn is_idle(&self, channel: &ChannelName) -> bool {
        let idle = |aside: &Aside| aside.line.outs.is_empty() && aside.extra.is_empty();
        self.parked.get(channel).is_some_and(idle) && !self.main_holds(channel)
    }

    /// Whether a seq is in somebody's hands, or resolved before others of its entry.
    pub fn holds(&self, seq: Seq) -> bool {
        let aside = |aside: &Aside| aside.line.holds(seq) || aside.extra.contains_key(&seq);
        self.standing.is_resolved(seq) || self.main.holds(seq) || self.parked.values().any(aside)
    }

    /// Everything that is in somebody's hands.
    pub fn all_held(&self) -> Vec<Held> {
        let lines = std::iter::once(&self.main).chain(self.parked.values().map(|a| &a.line));
        let extra = self.parked.values().flat_map(|a| a.extra.values().map(Held::of));
        let held = lines.flat_map(Line::under_way).flat_map(|out| out.held.iter().cloned());
        held.chain(extra).collect()
    }

    /// When the oldest event under way was accepted.
    pub fn oldest(&self) -> Option<Micros> {
        let lines = std::iter::once(&self.main).chain(self.parked.values().map(|a| &a.line));
        lines.flat_map(Line::under_way).map(|out| out.oldest).min()
    }

    /// Nothing below it comes again.
    pub fn first_unacked(&self) -> Seq {
        let parked = self.parked.values().map(|aside| aside.oldest).min();
        let main = self.main.released.next();
        parked.map_or(main, |parked| parked.min(main))
    }

    /// The oldest seq that any channel that is set aside still needs.
    pub fn oldest_parked(&self) -> Option<Seq> {
        self.parked.values().filter_map(Aside::oldest).min()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{ModeTag, Name};

    fn events(channel: &str, seqs: impl IntoIterator<Item = u64>) -> Vec<Event> {
        let event = |seq| Event {
            seq: Seq(seq),
            channel: Name::new(channel).unwrap(),
            mode: ModeTag::Raw,
            received_at: Micros(i64::try_from(seq).unwrap()),
            payload: Bytes::from_static(b"{}"),
        };
        seqs.into_iter().map(event).collect()
    }

    /// Everything up to there was handed out, and it is an entry of its own.
    fn at(seq: u64) -> Cursor {
        Cursor { entry: EntryId::of(Seq(seq)), through: Seq(seq) }
    }

    #[test]
    fn a_later_lease_that_ends_first_releases_nothing() {
        let mut leases = Leases::new();
        leases.begin(Seq(9));
        let a = leases.lease(&Source::Main, &events("a", 10..12));
        let b = leases.lease(&Source::Main, &events("a", 12..14));
        assert!(leases.holds(Seq(11)) && !leases.holds(Seq(14)));
        assert!(leases.done(&Source::Main, b).is_some());
        assert_eq!((leases.first_unacked(), leases.oldest()), (Seq(10), Some(Micros(10))));
        assert_eq!(leases.done(&Source::Main, a).unwrap().len(), 2);
        assert_eq!((leases.first_unacked(), leases.oldest()), (Seq(14), None));
        assert!(leases.done(&Source::Main, a).is_none(), "a lease ends once");
    }

    #[test]
    fn a_channel_that_is_set_aside_keeps_its_place_while_the_others_go_on() {
        let (mut leases, a) = (Leases::new(), Name::new("a").unwrap());
        let mut all = events("a", [1, 3]);
        all.extend(events("b", [2]));
        all.sort_by_key(|e| e.seq);
        let id = leases.lease(&Source::Main, &all);
        assert!(leases.park(&a, "why") && !leases.park(&a, "still"));
        assert!(leases.main_holds(&a) && !leases.is_idle(&a));
        leases.moved(id, &[Seq(1), Seq(3)].into());
        leases.follows(&a, [Seq(3), Seq(1)].into_iter());
        let held = leases.done(&Source::Main, id).unwrap();
        assert_eq!(held.iter().map(|h| h.seq).collect::<Vec<_>>(), [Seq(2)]);
        assert_eq!(leases.first_unacked(), Seq(1), "it holds the place of its oldest");
        assert!(leases.is_idle(&a));

        let from = Source::Parked(a.clone());
        let id = leases.lease(&from, &events("a", [1, 3]));
        leases.aside_mut(&a).unwrap().cursor = at(3);
        assert!(!leases.is_idle(&a) && leases.holds(Seq(3)));
        leases.done(&from, id).unwrap();
        assert_eq!(leases.first_unacked(), Seq(4));
        leases.unpark(&a);
        assert!(!leases.any_parked());
    }

    #[test]
    fn what_goes_aside_late_is_neither_passed_nor_counted_as_resolved() {
        let (mut leases, a) = (Leases::new(), Name::new("a").unwrap());
        let from = Source::Parked(a.clone());
        leases.park(&a, "why");
        leases.follows(&a, [Seq(5), Seq(6), Seq(7)].into_iter());
        let first = leases.lease(&from, &events("a", [5]));
        let second = leases.lease(&from, &events("a", [6, 7]));
        leases.aside_mut(&a).unwrap().cursor = at(7);
        leases.done(&from, second).unwrap();
        let oldest = |leases: &Leases| leases.aside(&a).and_then(Aside::oldest);
        assert_eq!(oldest(&leases), Some(Seq(5)), "it is in hand");
        leases.follows(&a, [Seq(6)].into_iter());
        assert!(leases.aside(&a).unwrap().cursor.entry < EntryId::of(Seq(6)), "it is read again");
        leases.done(&from, first).unwrap();
        assert_eq!(oldest(&leases), Some(Seq(6)));
        leases.keep(&a, events("a", [6]));
        leases.aside_mut(&a).unwrap().cursor = at(9);
        let last = leases.lease(&from, &events("a", [9]));
        leases.done(&from, last).unwrap();
        assert_eq!(oldest(&leases), Some(Seq(6)), "only this process has it");
    }

    #[test]
    fn an_entry_that_leases_share_is_known_until_the_last_of_it_is_resolved() {
        let mut leases = Leases::new();
        leases.begin(Seq(9));
        let entry = events("a", 10..14);
        leases.read(Whole::of(&entry).unwrap());
        let one = leases.lease(&Source::Main, &entry[..3]);
        let two = leases.lease(&Source::Main, &entry[3..]);
        let held = leases.done(&Source::Main, one).unwrap();
        assert!(leases.resolve(&held).is_empty());
        assert_eq!((leases.first_unacked(), leases.oldest_entry()), (Seq(13), Seq(10)));
        assert!(leases.holds(Seq(10)), "it is not handed out once more");
        assert_eq!((leases.all_held().len(), leases.resolved_events()), (1, 3));
        let held = leases.done(&Source::Main, two).unwrap();
        let whole = leases.resolve(&held);
        assert_eq!(whole, [Whole::of(&entry).unwrap()]);
        assert_eq!(leases.oldest_entry(), Seq(14));
    }

    #[test]
    fn a_part_of_an_entry_that_goes_aside_is_read_again_from_the_beginning_of_the_entry() {
        let (mut leases, a) = (Leases::new(), Name::new("a").unwrap());
        leases.begin(Seq(9));
        let entry = events("a", 10..14);
        leases.read(Whole::of(&entry).unwrap());
        let id = leases.lease(&Source::Main, &entry);
        leases.park(&a, "why");
        leases.aside_mut(&a).unwrap().cursor = at(20);
        leases.follows(&a, [Seq(12), Seq(13)].into_iter());
        let below = Cursor { entry: EntryId::before(Seq(10)), through: Seq(11) };
        assert_eq!(leases.aside(&a).unwrap().cursor, below);
        leases.went_aside(&a, entry[2..].to_vec(), &[Seq(10)].into());
        leases.moved(id, &[Seq(12), Seq(13)].into());
        let held = leases.done(&Source::Main, id).unwrap();
        assert!(leases.resolve(&held).is_empty());
        assert!(leases.holds(Seq(11)) && !leases.holds(Seq(12)));
        assert_eq!((leases.first_unacked(), leases.oldest_entry()), (Seq(12), Seq(10)));
    }

    #[test]
    fn what_only_this_process_has_is_given_back_in_order() {
        let (mut leases, a) = (Leases::new(), Name::new("a").unwrap());
        leases.park(&a, "why");
        leases.keep(&a, events("a", [5, 4, 6]));
        assert_eq!(leases.oldest_parked(), Some(Seq(4)));
        let taken: Vec<u64> = leases.take_kept(&a, 2).iter().map(|e| e.seq.0).collect();
        assert_eq!(taken, [4, 5]);
        assert!(leases.holds(Seq(6)) && !leases.holds(Seq(5)) && !leases.is_idle(&a));
    }
}
