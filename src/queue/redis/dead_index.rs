//! Which events have a dead letter, as far as this process knows: also while Redis has gone back over
//! letters that it had confirmed. Pure.
//!
//! Such an event is dead all the same: peers were shown that nothing comes of it. So it is not tried
//! again, and its letter is kept once more before its entry may leave the stream. Does not know a
//! connection.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{Event, Seq};
use crate::queue::DeadReason;

/// Of so many of the letters that came last it is known why: a server that syncs every second goes
/// back over no more than two seconds.
const REASONS: usize = 1000;

/// Letters by the seqs of their events.
#[derive(Default)]
pub(super) struct DeadIndex {
    all: BTreeSet<Seq>,
    /// Those of `all` that Redis has gone back over.
    lost: BTreeSet<Seq>,
    reasons: BTreeMap<Seq, DeadReason>,
    /// Settled ones that are being cleared away: Redis may have them or not.
    clearing: BTreeSet<Seq>,
}

impl DeadIndex {
    pub fn has(&self, seq: Seq) -> bool {
        self.all.contains(&seq)
    }

    /// How many Redis has.
    pub fn len(&self) -> usize {
        self.all.len() - self.lost.len()
    }

    /// Redis has these, and why.
    pub fn kept(&mut self, letters: &[(Event, DeadReason)]) {
        for (event, why) in letters {
            self.all.insert(event.seq);
            self.lost.remove(&event.seq);
            self.reasons.insert(event.seq, why.clone());
        }
        while self.reasons.len() > REASONS {
            self.reasons.pop_first();
        }
    }

    /// These are all that Redis has; whether it has gone back over any.
    pub fn found(&mut self, there: BTreeSet<Seq>) -> bool {
        let clearing = std::mem::take(&mut self.clearing);
        let mut lost = std::mem::take(&mut self.all);
        lost.retain(|seq| !there.contains(seq) && !clearing.contains(seq));
        self.all = there;
        self.all.extend(&lost);
        self.lost = lost;
        !self.lost.is_empty()
    }

    /// Those that Redis has gone back over.
    pub fn lost(&self) -> Vec<Seq> {
        self.lost.iter().copied().collect()
    }

    /// Those of these events whose letters Redis has gone back over, and why they were refused.
    pub fn to_keep_again(&self, events: &[Event], dead: &[Seq]) -> Vec<(Event, DeadReason)> {
        if self.lost.is_empty() {
            return Vec::new();
        }
        let lost = |event: &&Event| {
            self.lost.contains(&event.seq) && dead.binary_search(&event.seq).is_ok()
        };
        let again = |event: &Event| (event.clone(), self.reason(event.seq));
        events.iter().filter(lost).map(again).collect()
    }

    fn reason(&self, seq: Seq) -> DeadReason {
        let unknown = || DeadReason {
            code: "unknown".to_owned(),
            text: "Redis went back over this dead letter, and over why its event was refused"
                .to_owned(),
        };
        self.reasons.get(&seq).cloned().unwrap_or_else(unknown)
    }

    /// Nothing of these events comes again, and there is no letter.
    pub fn forget(&mut self, gone: &[Seq]) {
        for seq in gone {
            self.all.remove(seq);
            self.lost.remove(seq);
            self.reasons.remove(seq);
        }
    }

    /// Redis has cleared these away, of those that it was asked to.
    pub fn cleared(&mut self, asked: impl Iterator<Item = Seq>, gone: &[Seq]) {
        for seq in asked {
            self.clearing.remove(&seq);
        }
        self.forget(gone);
    }

    /// Redis is about to be asked to clear these away.
    pub fn clear(&mut self, settled: impl Iterator<Item = Seq>) {
        self.clearing.extend(settled);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{Micros, ModeTag, Name};

    fn events(seqs: &[u64]) -> Vec<Event> {
        let event = |seq: &u64| Event {
            seq: Seq(*seq),
            channel: Name::new("a").unwrap(),
            mode: ModeTag::Raw,
            received_at: Micros(0),
            payload: Bytes::from_static(b"{}"),
        };
        seqs.iter().map(event).collect()
    }

    fn letters(seqs: &[u64]) -> Vec<(Event, DeadReason)> {
        let why = |seq: Seq| DeadReason { code: seq.to_string(), text: "t".to_owned() };
        events(seqs).into_iter().map(|event| (event.clone(), why(event.seq))).collect()
    }

    fn seqs(seqs: &[u64]) -> Vec<Seq> {
        seqs.iter().copied().map(Seq).collect()
    }

    #[test]
    fn what_redis_went_back_over_stays_dead_and_is_kept_again_with_its_reason() {
        let mut index = DeadIndex::default();
        index.kept(&letters(&[3, 5, 7]));
        assert!(!index.found(seqs(&[3, 5, 7]).into_iter().collect()));
        assert!(index.found(seqs(&[3]).into_iter().collect()));
        assert!(index.has(Seq(5)) && !index.has(Seq(4)));
        assert_eq!((index.lost(), index.len()), (seqs(&[5, 7]), 1));
        let again = index.to_keep_again(&events(&[3, 4, 5, 7]), &seqs(&[3, 5]));
        assert_eq!(again, letters(&[5]));
        index.kept(&again);
        assert_eq!((index.lost(), index.len()), (seqs(&[7]), 2));
        index.forget(&seqs(&[7]));
        assert!(!index.has(Seq(7)) && index.lost().is_empty());
    }

    #[test]
    fn what_was_being_cleared_away_is_not_lost() {
        let mut index = DeadIndex::default();
        index.kept(&letters(&[3, 5]));
        index.clear(seqs(&[3]).into_iter());
        assert!(!index.found(seqs(&[5]).into_iter().collect()));
        assert!(!index.has(Seq(3)));
        assert!(index.found(BTreeSet::new()), "it was said of one look alone");
        // what may come again stays, and is missed when it is gone
        index.kept(&letters(&[7]));
        index.clear(seqs(&[7]).into_iter());
        index.cleared(seqs(&[7]).into_iter(), &[]);
        assert!(index.found(BTreeSet::new()) && index.has(Seq(7)));
    }

    #[test]
    fn of_the_letters_that_came_last_the_reasons_are_known() {
        let mut index = DeadIndex::default();
        let all: Vec<u64> = (0..=REASONS as u64).collect();
        index.kept(&letters(&all));
        assert!(index.found(BTreeSet::new()));
        let again = index.to_keep_again(&events(&[0, 1]), &seqs(&[0, 1]));
        assert_eq!((again[0].1.code.as_str(), again[1].1.code.as_str()), ("unknown", "1"));
    }
}
