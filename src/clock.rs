//! Time: the only caller of `SystemTime::now` and `Instant::now`, so that tests can turn it.
//!
//! Knows nothing of what the time is used for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::event::Micros;

/// A clock: the machine's, or one that a test turns by hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System(Instant),
    Manual(Arc<Mutex<Hands>>),
}

#[derive(Debug, Default)]
struct Hands {
    wall_micros: i64,
    mono: Duration,
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the one place
    pub fn system() -> Self {
        Self(Source::System(Instant::now()))
    }

    /// A clock that stands at `wall` until a test moves it.
    #[must_use]
    pub fn manual(wall: Micros) -> Self {
        let hands = Hands { wall_micros: wall.0, mono: Duration::ZERO };
        Self(Source::Manual(Arc::new(Mutex::new(hands))))
    }

    /// Wall time, in microseconds since 1970; negative before it.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the one place
    pub fn wall(&self) -> Micros {
        match &self.0 {
            Source::System(_) => Micros(match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
                Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
            }),
            Source::Manual(hands) => {
                Micros(hands.lock().unwrap_or_else(PoisonError::into_inner).wall_micros)
            }
        }
    }

    /// Time since this clock was made; never goes back, and is blind to a set wall clock.
    #[must_use]
    pub fn mono(&self) -> Duration {
        match &self.0 {
            Source::System(start) => start.elapsed(),
            Source::Manual(hands) => hands.lock().unwrap_or_else(PoisonError::into_inner).mono,
        }
    }

    /// Lets time pass: both clocks move on by `by`. Only a manual clock obeys.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(hands) = &self.0 {
            let mut hands = hands.lock().unwrap_or_else(PoisonError::into_inner);
            hands.wall_micros += i64::try_from(by.as_micros()).unwrap_or(0);
            hands.mono += by;
        }
    }

    /// Sets the wall clock alone, as a resumed machine or an operator does. Only a manual clock obeys.
    pub fn set_wall(&self, wall: Micros) {
        if let Source::Manual(hands) = &self.0 {
            hands.lock().unwrap_or_else(PoisonError::into_inner).wall_micros = wall.0;
        }
    }
}

/// `2026-02-19T12:00:00.000000Z`: RFC 3339 in UTC with microseconds, always 27 bytes between the
/// years 0 and 9999. Days are turned into a date as in Howard Hinnant's `civil_from_days`.
#[must_use]
pub fn rfc3339(at: Micros) -> String {
    let secs = at.0.div_euclid(1_000_000);
    let micros = at.0.rem_euclid(1_000_000);
    let (days, of_day) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_agrees_with_known_moments() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_771_502_400_000_001, "2026-02-19T12:00:00.000001Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        ];
        for (micros, text) in cases {
            assert_eq!(rfc3339(Micros(micros)), text);
        }
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual(Micros(5));
        clock.advance(Duration::from_micros(7));
        assert_eq!((clock.wall(), clock.mono()), (Micros(12), Duration::from_micros(7)));
        clock.set_wall(Micros(1));
        assert_eq!((clock.wall(), clock.mono()), (Micros(1), Duration::from_micros(7)));
    }
}
