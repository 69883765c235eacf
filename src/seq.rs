//! Identities: durable, increasing, never reused. Pure arithmetic; the log thread owns it.
//!
//! Does not know files: whoever owns a [`Seqs`] makes a ceiling durable before it is used.
//!
//! `next` is one above everything that might have been given out: the reserved ceiling, the log,
//! storage, what peers have seen, and a term from the clock that survives losing all the others.

use std::time::Duration;

use crate::clock::Clock;
use crate::event::{MAX_SEQ, Micros, Seq};

/// 2024-01-01T00:00:00Z in milliseconds: a clock before it counts as not set.
const EPOCH_MILLIS: i64 = 1_704_067_200_000;
/// 2090-01-01T00:00:00Z in milliseconds: no clock and no peer is believed beyond it.
const LAST_MILLIS: i64 = 3_786_912_000_000;
/// Seqs a millisecond: the clock term outruns any node.
const PER_MILLI: u64 = 4096;
/// How many seqs are reserved at a time: one second's worth of the clock term.
const BLOCK: u64 = 1000 * PER_MILLI;
/// A wall clock that gains this much on the monotonic one was set, or the machine resumed.
const JUMP: Duration = Duration::from_secs(1);

/// The clock's term; `None` beyond 2090, which is not believed.
#[must_use]
pub fn clock_term(wall: Micros) -> Option<u64> {
    let millis = wall.0.div_euclid(1000);
    if millis > LAST_MILLIS {
        return None;
    }
    Some(u64::try_from(millis - EPOCH_MILLIS).unwrap_or(0) * PER_MILLI)
}

/// The largest seq that a peer or a clock is believed about.
#[must_use]
pub fn belief_bound() -> Seq {
    Seq(u64::try_from(LAST_MILLIS - EPOCH_MILLIS).unwrap_or(0) * PER_MILLI)
}

/// Who says that a seq may be in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// Our own log, state file or storage: always believed.
    Own,
    /// A peer: believed below the clock term of 2090.
    Peer,
}

/// The allocator.
#[derive(Debug)]
pub struct Seqs {
    next: u64,
    ceiling: u64,
    clock: Clock,
    /// Wall minus monotonic time when the clock was last believed, in microseconds.
    offset: i64,
}

/// Every seq below 2^53 is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no identities are left below 2^53: give this node a new node_name and an empty data directory"
)]
pub struct Exhausted;

impl Seqs {
    /// Starts above `used` (one more than every seq that our own records show or reserve) and above
    /// the clock's term.
    #[must_use]
    pub fn new(used: u64, clock: Clock) -> Self {
        let term = clock_term(clock.wall()).unwrap_or(0);
        let next = used.max(term).max(1);
        let offset = offset(&clock);
        Self { next, ceiling: next, clock, offset }
    }

    /// The next seq to be given out.
    #[must_use]
    pub fn peek(&self) -> Seq {
        Seq(self.next)
    }

    /// A seq is in use somewhere: nothing at or below it is given out from now on. `false` where the
    /// claim is not believed.
    pub fn seen(&mut self, seq: Seq, witness: Witness) -> bool {
        if witness == Witness::Peer && seq >= belief_bound() {
            return false;
        }
        self.next = self.next.max(seq.0.saturating_add(1));
        true
    }

    /// Before each append: a wall clock that jumped ahead of the monotonic one means that this
    /// machine slept or was rolled back, and that others may have seen more of us than we know.
    pub fn watch_clock(&mut self) {
        let now = offset(&self.clock);
        let jump = i64::try_from(JUMP.as_micros()).unwrap_or(i64::MAX);
        if now.saturating_sub(self.offset) > jump
            && let Some(term) = clock_term(self.clock.wall())
        {
            self.next = self.next.max(term);
            self.offset = now;
        } else if now < self.offset {
            self.offset = now;
        }
    }

    /// The ceiling that must be durable before `n` more seqs are taken; `None` where it is already.
    ///
    /// # Errors
    /// [`Exhausted`] at 2^53.
    pub fn ceiling_for(&self, n: u64) -> Result<Option<u64>, Exhausted> {
        let need = self.next.checked_add(n).filter(|need| *need <= MAX_SEQ + 1).ok_or(Exhausted)?;
        Ok((need > self.ceiling).then(|| need.saturating_add(BLOCK).min(MAX_SEQ + 1)))
    }

    /// That ceiling is durable.
    pub fn reserved(&mut self, ceiling: u64) {
        self.ceiling = self.ceiling.max(ceiling);
    }

    /// Gives out `n` seqs; the first. The caller has asked [`Seqs::ceiling_for`].
    pub fn take(&mut self, n: u64) -> Seq {
        debug_assert!(self.next + n <= self.ceiling, "a seq above its durable ceiling");
        let first = self.next;
        self.next += n;
        Seq(first)
    }
}

fn offset(clock: &Clock) -> i64 {
    let mono = i64::try_from(clock.mono().as_micros()).unwrap_or(i64::MAX);
    clock.wall().0.saturating_sub(mono)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = Micros(1_790_000_000_000_000);

    fn take(seqs: &mut Seqs, n: u64) -> u64 {
        if let Some(ceiling) = seqs.ceiling_for(n).unwrap() {
            seqs.reserved(ceiling);
        }
        seqs.take(n).0
    }

    #[test]
    fn a_wiped_node_starts_above_what_it_gave_out_a_moment_ago() {
        let clock = Clock::manual(NOW);
        let mut seqs = Seqs::new(0, clock.clone());
        // 2.6 million events a second for an hour
        for _ in 0..3600 {
            take(&mut seqs, 2_600_000);
            clock.advance(Duration::from_secs(1));
        }
        let used = seqs.peek().0;
        assert!(Seqs::new(0, clock).peek().0 >= used);
    }

    #[test]
    fn a_clock_that_cannot_be_right_gives_no_term() {
        for (wall, term) in [
            (Micros(0), Some(0)),
            (Micros(-5), Some(0)),
            (Micros(1_704_067_200_001_000), Some(4096)),
            (Micros(7_258_118_400_000_000), None),
        ] {
            assert_eq!(clock_term(wall), term, "{wall:?}");
        }
        let mut back = Seqs::new(5_000, Clock::manual(Micros(0)));
        assert_eq!(take(&mut back, 1), 5_000);
        assert!(belief_bound().0 < MAX_SEQ);
    }

    #[test]
    fn a_peer_is_believed_below_the_bound_and_our_own_records_always() {
        let mut seqs = Seqs::new(10, Clock::manual(Micros(0)));
        assert!(!seqs.seen(Seq(MAX_SEQ), Witness::Peer));
        assert_eq!(seqs.peek(), Seq(10));
        assert!(seqs.seen(Seq(belief_bound().0 - 1), Witness::Peer));
        take(&mut seqs, 10);
        let above = Seq(belief_bound().0 + 9);
        assert_eq!(seqs.peek(), above.next());
        let mut restarted = Seqs::new(0, Clock::manual(Micros(0)));
        assert!(restarted.seen(above, Witness::Own));
        assert_eq!(restarted.peek(), above.next());
    }

    #[test]
    fn a_machine_resumed_from_an_image_does_not_give_out_used_seqs() {
        let clock = Clock::manual(NOW);
        let mut seqs = Seqs::new(0, clock.clone());
        let before = take(&mut seqs, 1);
        clock.set_wall(Micros(NOW.0 + 3_600_000_000));
        seqs.watch_clock();
        assert!(take(&mut seqs, 1) >= before + 3_600_000 * 4096);
        // a clock set back, then right again, jumps once more
        clock.set_wall(NOW);
        seqs.watch_clock();
        let low = take(&mut seqs, 1);
        clock.set_wall(Micros(NOW.0 + 7_200_000_000));
        seqs.watch_clock();
        assert!(take(&mut seqs, 1) > low + 3_500_000 * 4096);
    }

    #[test]
    fn time_that_merely_passes_leaves_seqs_dense() {
        let clock = Clock::manual(NOW);
        let mut seqs = Seqs::new(0, clock.clone());
        let first = take(&mut seqs, 1);
        clock.advance(Duration::from_secs(3600));
        seqs.watch_clock();
        assert_eq!(take(&mut seqs, 1), first + 1);
    }

    #[test]
    fn nothing_is_given_out_at_two_to_the_53() {
        let mut seqs = Seqs::new(MAX_SEQ, Clock::manual(Micros(0)));
        assert_eq!(take(&mut seqs, 1), MAX_SEQ);
        assert_eq!(seqs.ceiling_for(1), Err(Exhausted));
    }
}
