//! Entries that were read and are not acknowledged: which of their events are resolved. An entry leaves
//! the stream when all of them are; until then it is known here which must not be handed out again. Pure.
//!
//! Does not know a connection, nor who holds what.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::load_of;
use super::leases::Held;
use crate::event::{ChannelName, Event, Seq};
use crate::queue::accounts::Load;

/// An entry of ours as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// Of its first event; the others follow it without a gap.
    pub first: Seq,
    pub channel: ChannelName,
    /// What all of its events count.
    pub load: Load,
    /// Redis has lost nothing since it was read.
    pub sure: bool,
}

impl Whole {
    /// Of all the events of an entry, which has at least one.
    pub fn of(events: &[Event]) -> Option<Self> {
        let head = events.first()?;
        let load = events.iter().map(load_of).fold(Load::default(), Load::plus);
        Some(Self { first: head.seq, channel: head.channel.clone(), load, sure: true })
    }

    /// The seq behind its last event.
    pub fn end(&self) -> Seq {
        Seq(self.first.0.saturating_add(self.load.events))
    }

    pub fn has(&self, seq: Seq) -> bool {
        (self.first..self.end()).contains(&seq)
    }
}

struct Stand {
    whole: Whole,
    /// Its resolved events and their bytes, while there are others. Of an entry that Redis has lost also
    /// those that are lost with it.
    resolved: BTreeMap<Seq, u64>,
    lost: bool,
}

impl Stand {
    fn resolved(&self) -> Load {
        Load { events: self.resolved.len() as u64, bytes: self.resolved.values().sum() }
    }
}

/// All of them, by their first seq.
#[derive(Default)]
pub(super) struct Standing(BTreeMap<Seq, Stand>);

impl Standing {
    /// An entry was read. What is known of one that is read once more stays known.
    pub fn read(&mut self, whole: Whole) {
        self.0.entry(whole.first).or_insert_with(|| Stand {
            whole,
            resolved: BTreeMap::new(),
            lost: false,
        });
    }

    fn around(&self, seq: Seq) -> Option<&Stand> {
        let (_, stand) = self.0.range(..=seq).next_back()?;
        stand.whole.has(seq).then_some(stand)
    }

    /// The first seq of the entry that holds an event; its own where that is not known.
    pub fn first_of(&self, seq: Seq) -> Seq {
        self.around(seq).map_or(seq, |stand| stand.whole.first)
    }

    /// Whether the event is resolved, and others of its entry are not.
    pub fn is_resolved(&self, seq: Seq) -> bool {
        self.around(seq).is_some_and(|stand| stand.resolved.contains_key(&seq))
    }

    /// These are resolved, in rising order; the entries of which all events are by now.
    pub fn resolve(&mut self, held: &[Held]) -> Vec<Whole> {
        let (mut done, mut rest) = (Vec::new(), held);
        while let Some((next, others)) = rest.split_first() {
            rest = others;
            let Some((&first, stand)) = self.0.range_mut(..=next.seq).next_back() else { continue };
            if !stand.whole.has(next.seq) {
                continue;
            }
            let more = others.iter().take_while(|held| stand.whole.has(held.seq)).count();
            let (theirs, behind) = others.split_at(more);
            rest = behind;
            let whole = more as u64 + 1 == stand.whole.load.events;
            if !whole {
                let theirs = std::iter::once(next).chain(theirs);
                stand.resolved.extend(theirs.map(|held| (held.seq, held.load.bytes)));
            }
            let all = stand.resolved.len() as u64 == stand.whole.load.events;
            if (whole || all)
                && let Some(stand) = self.0.remove(&first)
            {
                done.push(stand.whole);
            }
        }
        done
    }

    /// These events, in rising order, wait in Redis with another consumer: of entries that went there
    /// whole nothing need be known until they are read again.
    pub fn went_aside(&mut self, events: &[Event]) {
        let mut rest = events;
        while let Some(event) = rest.first() {
            let Some(stand) = self.around(event.seq) else {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            };
            let (first, end) = (stand.whole.first, stand.whole.end());
            let n = rest.iter().take_while(|event| event.seq < end).count();
            if n as u64 == stand.whole.load.events && stand.resolved.is_empty() {
                self.0.remove(&first);
            }
            rest = rest.get(n.max(1)..).unwrap_or_default();
        }
    }

    /// The first seq of the oldest entry that is still needed.
    pub fn oldest(&self) -> Option<Seq> {
        self.0.values().find(|stand| !stand.lost).map(|stand| stand.whole.first)
    }

    /// How many resolved events stand in the stream beside others of their entries.
    pub fn resolved_events(&self) -> u64 {
        let there = self.0.values().filter(|stand| !stand.lost);
        there.map(|stand| stand.resolved.len() as u64).sum()
    }

    /// All of them in order, and what of each is resolved.
    pub fn all(&self) -> Vec<(Whole, Load)> {
        self.0.values().map(|stand| (stand.whole.clone(), stand.resolved())).collect()
    }

    /// Redis has lost something: `there` are the entries that it still has, by their first seqs, and
    /// `held` what is in somebody's hands. Of what it has all else comes again; of what it has not, what
    /// is in hand is all that there is.
    pub fn reckoned(&mut self, held: &BTreeSet<Seq>, there: &BTreeSet<Seq>) {
        self.0.retain(|first, stand| {
            let (from, end) = (stand.whole.first, stand.whole.end());
            if held.range(from..end).next().is_none() {
                return false;
            }
            stand.whole.sure = false;
            stand.lost = !there.contains(first);
            stand.resolved.clear();
            if stand.lost {
                let gone = (from.0..end.0).map(Seq).filter(|seq| !held.contains(seq));
                stand.resolved.extend(gone.map(|seq| (seq, 0)));
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{Micros, ModeTag, Name};

    fn events(seqs: impl IntoIterator<Item = u64>) -> Vec<Event> {
        let event = |seq| Event {
            seq: Seq(seq),
            channel: Name::new("a").unwrap(),
            mode: ModeTag::Raw,
            received_at: Micros(0),
            payload: Bytes::from_static(b"{}"),
        };
        seqs.into_iter().map(event).collect()
    }

    fn held(seqs: impl IntoIterator<Item = u64>) -> Vec<Held> {
        events(seqs).iter().map(Held::of).collect()
    }

    fn seqs(seqs: impl IntoIterator<Item = u64>) -> BTreeSet<Seq> {
        seqs.into_iter().map(Seq).collect()
    }

    /// Entries of 1 to 4, 5, and 8 to 9.
    fn standing() -> Standing {
        let mut standing = Standing::default();
        for entry in [events(1..5), events([5]), events(8..10)] {
            standing.read(Whole::of(&entry).unwrap());
        }
        standing
    }

    fn firsts(wholes: &[Whole]) -> Vec<(u64, u64)> {
        wholes.iter().map(|whole| (whole.first.0, whole.load.events)).collect()
    }

    #[test]
    fn an_entry_is_whole_when_the_last_of_its_events_is_resolved() {
        let mut standing = standing();
        assert_eq!(firsts(&standing.resolve(&held([3, 4, 5, 8]))), [(5, 1)]);
        assert!(standing.is_resolved(Seq(3)) && !standing.is_resolved(Seq(2)));
        assert_eq!((standing.first_of(Seq(4)), standing.first_of(Seq(7))), (Seq(1), Seq(7)));
        assert_eq!((standing.oldest(), standing.resolved_events()), (Some(Seq(1)), 3));
        assert!(standing.resolve(&held([1])).is_empty());
        assert_eq!(firsts(&standing.resolve(&held([2, 9]))), [(1, 4), (8, 2)]);
        assert_eq!((standing.oldest(), standing.all().len()), (None, 0));
        assert!(standing.resolve(&held([1, 7])).is_empty(), "nobody read them");
    }

    #[test]
    fn reading_an_entry_again_forgets_nothing() {
        let mut standing = standing();
        standing.resolve(&held([1, 2]));
        standing.read(Whole::of(&events(1..5)).unwrap());
        assert!(standing.is_resolved(Seq(2)));
        let mine = standing.all().into_iter().next().unwrap();
        assert_eq!((mine.0.load.events, mine.1), (4, held([1])[0].load.plus(held([2])[0].load)));
    }

    #[test]
    fn only_what_went_aside_whole_is_forgotten() {
        let mut standing = standing();
        standing.resolve(&held([8]));
        standing.went_aside(&events([2, 3, 4, 5, 7, 9]));
        let left: Vec<Whole> = standing.all().into_iter().map(|(whole, _)| whole).collect();
        assert_eq!(firsts(&left), [(1, 4), (8, 2)]);
    }

    #[test]
    fn after_a_loss_what_is_there_comes_again_and_what_is_not_ends_with_what_is_in_hand() {
        let mut standing = standing();
        standing.resolve(&held([1, 8]));
        standing.reckoned(&seqs([2, 3, 9]), &seqs([1, 5]));
        assert!(!standing.is_resolved(Seq(1)), "it comes again");
        assert_eq!((standing.all().len(), standing.resolved_events()), (2, 0));
        assert_eq!(standing.oldest(), Some(Seq(1)));
        let done = standing.resolve(&held([9]));
        assert_eq!((firsts(&done), done[0].sure), (vec![(8, 2)], false));
        let done = standing.resolve(&held(1..5));
        assert_eq!((firsts(&done), done[0].sure), (vec![(1, 4)], false));
    }
}
