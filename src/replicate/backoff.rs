//! How long to wait after failures, and when a peer counts as out of reach. Pure: time and dice are
//! passed in.
//!
//! Does not know what failed, nor who waits.

use std::time::Duration;

/// So many failures one after another make a peer count as out of reach.
const OPENS_AT: u32 = 3;
/// One that refuses every page for so long counts so too.
const REFUSES: Duration = Duration::from_secs(30);

/// Waits that double with each failure, up to a ceiling, each shortened or lengthened by up to a
/// quarter, so that many who failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from `first` to `most`, give or take a quarter.
    #[must_use]
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// It failed: how long to wait. `dice` is any number, another one each time.
    pub fn failed(&mut self, dice: u64) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        // 75 % to 125 %
        let permille = u32::try_from(750 + dice % 501).unwrap_or(1_000);
        doubled.min(self.most).saturating_mul(permille) / 1_000
    }

    /// It went well.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How often it failed since it last went well.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Whether a peer is asked at all. Closed while it answers; open, and asked once each time a wait is
/// over, while it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    backoff: Backoff,
    not_before: Duration,
    since: Option<Duration>,
    /// Since when it gives no page, though somebody is there.
    refused: Option<Duration>,
}

impl Breaker {
    /// Closed.
    #[must_use]
    pub const fn new(backoff: Backoff) -> Self {
        Self { backoff, not_before: Duration::ZERO, since: None, refused: None }
    }

    /// How long it must not be asked yet.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        self.not_before.saturating_sub(now)
    }

    /// It did not answer.
    pub fn failed(&mut self, now: Duration, dice: u64) {
        // two requests that were under way together failed for one reason
        if self.wait(now).is_zero() {
            self.not_before = now + self.backoff.failed(dice);
        }
        self.since.get_or_insert(now);
    }

    /// It answered, well or badly: somebody is there.
    pub fn answered(&mut self) {
        self.backoff.succeeded();
        self.since = None;
    }

    /// It was asked for a page, and is not ready (503).
    pub fn refused(&mut self, now: Duration) {
        self.refused.get_or_insert(now);
    }

    /// It gave a page.
    pub fn served(&mut self) {
        self.refused = None;
    }

    /// Whether it refused the last page that it was asked for.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.refused.is_some()
    }

    /// It answered what cannot be used: it is left in peace for so long.
    pub fn rest(&mut self, now: Duration, time: Duration) {
        self.not_before = self.not_before.max(now + time);
    }

    /// Whether it is out of reach: it does not answer, or has given no page for a while.
    #[must_use]
    pub fn is_open(&self, now: Duration) -> bool {
        let long = |since: Duration| now.saturating_sub(since) >= REFUSES;
        self.open_since().is_some() || self.refused.is_some_and(long)
    }

    /// Since when it does not answer; `None` while it does.
    #[must_use]
    pub fn open_since(&self) -> Option<Duration> {
        self.since.filter(|_| self.backoff.failures() >= OPENS_AT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_their_ceiling_and_differ_by_a_quarter() {
        let mut backoff = Backoff::new(SECOND, 8 * SECOND);
        for secs in [1, 2, 4, 8, 8, 8] {
            // 250 is the middle of the dice
            assert_eq!(backoff.failed(250), Duration::from_secs(secs));
        }
        assert_eq!(backoff.failed(0), 6 * SECOND);
        assert_eq!(backoff.failed(500), 10 * SECOND);
        backoff.succeeded();
        assert_eq!(backoff.failed(250), SECOND);
        let mut long = Backoff::new(SECOND, 30 * SECOND);
        for _ in 0..100 {
            assert!(long.failed(u64::MAX) <= 38 * SECOND);
        }
    }

    #[test]
    fn a_peer_is_out_of_reach_after_three_failures_and_back_with_the_first_answer() {
        let mut breaker = Breaker::new(Backoff::new(SECOND, 30 * SECOND));
        let mut now = 100 * SECOND;
        for n in 1..=3 {
            assert_eq!(breaker.open_since(), None, "after {} failures", n - 1);
            assert_eq!(breaker.wait(now), Duration::ZERO);
            breaker.failed(now, 250);
            let wait = breaker.wait(now);
            assert!(wait >= SECOND, "{wait:?}");
            now += wait;
        }
        assert_eq!(breaker.open_since(), Some(100 * SECOND), "from the first of them on");
        breaker.answered();
        assert_eq!((breaker.open_since(), breaker.wait(now)), (None, Duration::ZERO));
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let mut breaker = Breaker::new(Backoff::new(SECOND, 30 * SECOND));
        for _ in 0..5 {
            breaker.failed(SECOND, 250);
        }
        assert_eq!(breaker.wait(SECOND), SECOND);
        assert_eq!(breaker.open_since(), None);
    }

    #[test]
    fn who_gives_no_page_for_a_while_is_out_of_reach_until_the_first_one() {
        let mut breaker = Breaker::new(Backoff::new(SECOND, 30 * SECOND));
        for secs in [100, 115, 129] {
            let now = secs * SECOND;
            breaker.refused(now);
            // it answers all the same
            breaker.answered();
            assert!(!breaker.is_open(now) && breaker.refuses(), "after {secs} s");
        }
        breaker.refused(130 * SECOND);
        assert!(breaker.is_open(130 * SECOND));
        breaker.answered();
        assert!(breaker.is_open(140 * SECOND));
        breaker.served();
        assert!(!breaker.is_open(140 * SECOND) && !breaker.refuses());
    }

    #[test]
    fn who_answers_nonsense_is_left_in_peace_but_in_reach() {
        let mut breaker = Breaker::new(Backoff::new(SECOND, 30 * SECOND));
        breaker.answered();
        breaker.rest(SECOND, 2 * SECOND);
        assert_eq!(breaker.wait(SECOND), 2 * SECOND);
        assert_eq!(breaker.open_since(), None);
    }
}
