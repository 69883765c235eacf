//! How closely a peer is listened to that tells what became safe: one that cries wolf less and less.
//! Pure: what was stored and which turns were taken is passed in.
//!
//! Does not know requests, nor channels.

use std::time::Duration;

/// So many changes that bring nothing are believed.
const WOLF: u32 = 4;
/// The first pause after those; each one doubles.
const FIRST: Duration = Duration::from_millis(500);
/// The longest one.
const MOST: Duration = Duration::from_secs(5);
/// What no channel here waits for is heard less than once a second.
const UNWANTED: Duration = Duration::from_millis(1_500);

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing, after all the time that it may take.
    Nothing,
    /// Nothing, at once: its node stops, say.
    NothingEarly,
    /// Of channels none of which may be asked for: they are off here, or rest.
    Unwanted,
    /// Of a channel that wants a turn.
    Wanted,
}

/// How long the peer is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Not at all.
    No,
    /// Until a turn has ended: what it says by then is no news.
    Turn,
    /// So long.
    For(Duration),
}

/// What was heard so far.
#[derive(Debug, Default)]
pub(super) struct Ear {
    for_nothing: u32,
    gains: u64,
    turns: u64,
}

impl Ear {
    /// An answer came, when so many rows were stored and so many turns were taken in all.
    pub fn heard(&mut self, said: Said, gains: u64, turns: u64) -> Pause {
        let brought = std::mem::replace(&mut self.gains, gains) != gains;
        let turned = std::mem::replace(&mut self.turns, turns) != turns;
        self.for_nothing = match said {
            Said::Nothing => 0,
            Said::NothingEarly => self.for_nothing.saturating_add(1),
            _ if brought => 0,
            // what was said before is not told from what is said now until a turn was taken
            _ if turned => self.for_nothing.saturating_add(1),
            _ => self.for_nothing,
        };
        let doubled = |times: u32| FIRST.saturating_mul(1 << (times - 1).min(8)).min(MOST);
        match (said, self.for_nothing.saturating_sub(WOLF)) {
            (Said::Unwanted, 0) => Pause::For(UNWANTED),
            (Said::Unwanted, times) => Pause::For(doubled(times).max(UNWANTED)),
            (_, times @ 1..) => Pause::For(doubled(times)),
            (Said::Wanted, 0) if !turned => Pause::Turn,
            (_, 0) => Pause::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_brings_something_is_asked_at_once_however_often_it_calls() {
        let mut ear = Ear::default();
        for n in 1..100 {
            assert_eq!(ear.heard(Said::Wanted, n, n), Pause::No);
            // several answers while one write is under way are one call
            assert_eq!(ear.heard(Said::Wanted, n, n), Pause::Turn);
        }
    }

    #[test]
    fn one_that_cries_wolf_is_heard_less_and_less_until_it_brings_something() {
        let mut ear = Ear::default();
        let mut pauses = Vec::new();
        for turn in 1..=10 {
            pauses.push(ear.heard(Said::Wanted, 0, turn));
        }
        assert_eq!(pauses[..4], [Pause::No; 4]);
        let millis = [500, 1_000, 2_000, 4_000, 5_000, 5_000];
        let doubled = millis.map(|ms| Pause::For(Duration::from_millis(ms)));
        assert_eq!(pauses[4..], doubled);
        assert_eq!(ear.heard(Said::Wanted, 1, 11), Pause::No);
    }

    #[test]
    fn one_that_holds_nothing_is_heard_less_and_less_until_it_does() {
        let mut ear = Ear::default();
        for _ in 0..WOLF {
            assert_eq!(ear.heard(Said::NothingEarly, 0, 0), Pause::No);
        }
        assert_eq!(ear.heard(Said::NothingEarly, 0, 0), Pause::For(FIRST));
        for _ in 0..100 {
            assert!(matches!(ear.heard(Said::NothingEarly, 0, 0), Pause::For(_)));
        }
        assert_eq!(ear.heard(Said::NothingEarly, 0, 0), Pause::For(MOST));
        assert_eq!(ear.heard(Said::Nothing, 0, 0), Pause::No);
    }

    #[test]
    fn a_busy_channel_that_nobody_wants_holds_the_others_up_no_longer_each_time() {
        let mut ear = Ear::default();
        for turn in 0..100 {
            // a sweep now and then
            let said = ear.heard(Said::Unwanted, turn / 50, turn / 30);
            assert_eq!(said, Pause::For(UNWANTED));
        }
    }
}
