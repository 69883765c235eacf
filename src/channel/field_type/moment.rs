//! Days and times, as strictly as all backends together: years 1 to 9999, no `:60`, no `24:00`.
//!
//! Pure, and without a calendar library: only the forms below exist here. A fraction has up to nine
//! digits; since backends hold microseconds, one that would round past the end of what they can hold
//! is refused. Must not know JSON.

use super::Verdict;

/// What a part of a text was read to, and the rest of the text.
type Read<'a, T> = Result<(T, &'a [u8]), &'static str>;

const DAY_MINUTES: i32 = 24 * 60;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Day {
    year: u32,
    month: u32,
    day: u32,
}

const FIRST_DAY: Day = Day { year: 1, month: 1, day: 1 };

const LAST_DAY: Day = Day { year: 9999, month: 12, day: 31 };

struct Clock {
    /// Of the day.
    minute: i32,
    second: u32,
    /// In microseconds it is the next second.
    rounds_up: bool,
}

impl Clock {
    /// Whether this, shifted by `offset` minutes, rounds to midnight.
    fn rounds_to_midnight(&self, offset: i32) -> bool {
        self.rounds_up && self.second == 59 && self.minute - offset == DAY_MINUTES - 1
    }
}

const ROUNDS_TO_MIDNIGHT: &str = "in microseconds it is 24:00, which not every storage can keep";
const OUT_OF_YEARS: &str = "in UTC it is outside of the years 0001 to 9999";

pub(super) fn date(text: &str) -> Verdict {
    let (_, rest) = read_day(text.as_bytes())?;
    at_end(rest, "something follows the day")
}

pub(super) fn time(text: &str) -> Verdict {
    let (clock, rest) = read_clock(text.as_bytes())?;
    at_end(rest, "something follows the time (it has no offset here)")?;
    if clock.rounds_to_midnight(0) {
        return Err(ROUNDS_TO_MIDNIGHT);
    }
    Ok(())
}

pub(super) fn timetz(text: &str) -> Verdict {
    let (clock, rest) = read_clock(text.as_bytes())?;
    read_offset(rest)?;
    if clock.rounds_to_midnight(0) {
        return Err(ROUNDS_TO_MIDNIGHT);
    }
    Ok(())
}

pub(super) fn timestamp(text: &str) -> Verdict {
    let (day, clock, rest) = read_day_and_clock(text)?;
    at_end(rest, "something follows the time (it has no offset here)")?;
    if day == LAST_DAY && clock.rounds_to_midnight(0) {
        return Err(OUT_OF_YEARS);
    }
    Ok(())
}

pub(super) fn timestamptz(text: &str) -> Verdict {
    let (day, clock, rest) = read_day_and_clock(text)?;
    let offset = read_offset(rest)?;
    let utc = clock.minute - offset;
    let too_early = day == FIRST_DAY && utc < 0;
    let too_late = day == LAST_DAY && (utc >= DAY_MINUTES || clock.rounds_to_midnight(offset));
    if too_early || too_late {
        return Err(OUT_OF_YEARS);
    }
    Ok(())
}

fn at_end(rest: &[u8], otherwise: &'static str) -> Verdict {
    if rest.is_empty() { Ok(()) } else { Err(otherwise) }
}

fn read_day_and_clock(text: &str) -> Result<(Day, Clock, &[u8]), &'static str> {
    let (day, rest) = read_day(text.as_bytes())?;
    let Some((b'T' | b' ', rest)) = rest.split_first() else {
        return Err("between day and time stands no 'T' or space");
    };
    let (clock, rest) = read_clock(rest)?;
    Ok((day, clock, rest))
}

/// `YYYY-MM-DD`.
fn read_day(text: &[u8]) -> Read<'_, Day> {
    const FORM: &str = "the day is not of the form YYYY-MM-DD";
    let (head, rest) = text.split_at_checked(10).ok_or(FORM)?;
    if head[4] != b'-' || head[7] != b'-' {
        return Err(FORM);
    }
    let year = number(&head[..4]).ok_or(FORM)?;
    let month = number(&head[5..7]).ok_or(FORM)?;
    let day = number(&head[8..]).ok_or(FORM)?;
    if year == 0 {
        return Err("years go from 0001 to 9999");
    }
    if day == 0 || day > days_of(year, month) {
        return Err("there is no such day");
    }
    Ok((Day { year, month, day }, rest))
}

fn days_of(year: u32, month: u32) -> u32 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    }
}

/// `HH:MM:SS`, with up to nine digits of a fraction.
fn read_clock(text: &[u8]) -> Read<'_, Clock> {
    const FORM: &str = "the time is not of the form HH:MM:SS";
    let (head, rest) = text.split_at_checked(8).ok_or(FORM)?;
    if head[2] != b':' || head[5] != b':' {
        return Err(FORM);
    }
    let hour = number(&head[..2]).ok_or(FORM)?;
    let minute = number(&head[3..5]).ok_or(FORM)?;
    let second = number(&head[6..]).ok_or(FORM)?;
    if hour > 23 {
        return Err("hours go from 00 to 23");
    }
    if minute > 59 || second > 59 {
        return Err("minutes and seconds go from 00 to 59");
    }
    let (nanos, rest) = read_fraction(rest)?;
    let clock = Clock {
        minute: i32::try_from(hour * 60 + minute).unwrap_or(0),
        second,
        rounds_up: nanos >= 999_999_500,
    };
    Ok((clock, rest))
}

/// A fraction of a second in nanoseconds; 0 where there is none.
fn read_fraction(text: &[u8]) -> Read<'_, u32> {
    let Some((b'.', rest)) = text.split_first() else {
        return Ok((0, text));
    };
    let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=9).contains(&length) {
        return Err("a fraction of a second has 1 to 9 digits");
    }
    let (digits, rest) = rest.split_at(length);
    let mut padded = [b'0'; 9];
    padded[..length].copy_from_slice(digits);
    Ok((number(&padded).unwrap_or(0), rest))
}

/// `Z` or `+HH:MM`, the whole of `text`; gives minutes.
fn read_offset(text: &[u8]) -> Result<i32, &'static str> {
    const FORM: &str = "the offset is neither Z nor of the form +HH:MM";
    let negative = match text.first() {
        None => return Err("the offset is missing"),
        Some(b'Z') if text.len() == 1 => return Ok(0),
        Some(b'+') => false,
        Some(b'-') => true,
        Some(_) => return Err(FORM),
    };
    if text.len() != 6 || text[3] != b':' {
        return Err(FORM);
    }
    let hours = number(&text[1..3]).ok_or(FORM)?;
    let minutes = number(&text[4..]).ok_or(FORM)?;
    if hours > 15 || minutes > 59 {
        return Err("offsets go to 15:59");
    }
    let offset = i32::try_from(hours * 60 + minutes).unwrap_or(0);
    Ok(if negative { -offset } else { offset })
}

/// The value of a run of digits, at most nine of them.
fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |sum, byte| {
        byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0'))
    })
}
