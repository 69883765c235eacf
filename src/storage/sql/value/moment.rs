//! Days and times in their one text: microseconds, of the years 1 to 9999.
//!
//! Reads what the door took and what backends show (`+02` for `+02:00`, no fraction for a zero one).
//! Must not know JSON.

use crate::clock::rfc3339;
use crate::event::Micros;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const DAY: i64 = 24 * 60 * MINUTE;

/// 0001-01-01 00:00:00, counted from 1970.
const FIRST: i64 = -62_135_596_800 * SECOND;

/// 9999-12-31 23:59:59.999999.
const LAST: i64 = 253_402_300_800 * SECOND - 1;

/// What a part of a text was read to, and the rest of the text.
type Read<'a> = Option<(i64, &'a [u8])>;

pub(super) fn timestamptz(text: &str) -> Option<String> {
    zoned_text(instant(text)?)
}

pub(super) fn timestamp(text: &str) -> Option<String> {
    let (at, rest) = read_day_and_clock(text.as_bytes())?;
    if rest.is_empty() { local_text(at) } else { None }
}

pub(super) fn date(text: &str) -> Option<String> {
    let (_, rest) = read_day(text.as_bytes())?;
    rest.is_empty().then(|| text.to_owned())
}

pub(super) fn time(text: &str) -> Option<String> {
    let (clock, rest) = read_clock(text.as_bytes())?;
    if rest.is_empty() { clock_text(clock) } else { None }
}

pub(super) fn timetz(text: &str) -> Option<String> {
    let (clock, rest) = read_clock(text.as_bytes())?;
    let offset = read_offset(rest)?;
    let sign = if offset < 0 { '-' } else { '+' };
    let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
    Some(format!("{}{sign}{hours:02}:{minutes:02}", clock_text(clock)?))
}

/// The microseconds since 1970 of a time with offset.
pub(super) fn instant(text: &str) -> Option<i64> {
    let (at, rest) = read_day_and_clock(text.as_bytes())?;
    Some(at - read_offset(rest)? * MINUTE)
}

/// A moment of UTC as text.
pub(super) fn zoned_text(at: i64) -> Option<String> {
    local_text(at).map(|text| text + "+00:00")
}

fn local_text(at: i64) -> Option<String> {
    if !(FIRST..=LAST).contains(&at) {
        return None;
    }
    let text = rfc3339(Micros(at));
    Some(format!("{} {}", &text[..10], &text[11..26]))
}

fn clock_text(clock: i64) -> Option<String> {
    (0..DAY).contains(&clock).then(|| rfc3339(Micros(clock))[11..26].to_owned())
}

fn read_day_and_clock(text: &[u8]) -> Read<'_> {
    let (day, rest) = read_day(text)?;
    let (b'T' | b' ', rest) = rest.split_first()? else {
        return None;
    };
    let (clock, rest) = read_clock(rest)?;
    Some((day * DAY + clock, rest))
}

/// `YYYY-MM-DD`, as days since 1970: Howard Hinnant's `days_from_civil`, whose years begin in March.
fn read_day(text: &[u8]) -> Read<'_> {
    let (head, rest) = text.split_at_checked(10)?;
    let (year, month, day) = (number(&head[..4])?, number(&head[5..7])?, number(&head[8..])?);
    let good = head[4] == b'-' && head[7] == b'-' && year > 0;
    if !good || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + day_of_year;
    Some((era * 146_097 + day_of_era - 719_468, rest))
}

/// `HH:MM:SS` with or without a fraction, as microseconds.
fn read_clock(text: &[u8]) -> Read<'_> {
    let (head, rest) = text.split_at_checked(8)?;
    let (hour, minute, second) = (number(&head[..2])?, number(&head[3..5])?, number(&head[6..])?);
    let good = head[2] == b':' && head[5] == b':' && hour < 24 && minute < 60 && second < 60;
    let (fraction, rest) = read_fraction(rest)?;
    good.then_some((((hour * 60 + minute) * 60 + second) * SECOND + fraction, rest))
}

/// A fraction of a second, rounded as PostgreSQL does it: as a double, ties to even.
fn read_fraction(text: &[u8]) -> Read<'_> {
    if text.first() != Some(&b'.') {
        return Some((0, text));
    }
    let digits = text[1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = text.split_at(digits + 1);
    let fraction: f64 = std::str::from_utf8(fraction).ok()?.parse().ok()?;
    Some(((fraction * 1e6).round_ties_even() as i64, rest))
}

/// `Z`, `+HH` or `+HH:MM`, the whole of `text`; gives minutes.
fn read_offset(text: &[u8]) -> Option<i64> {
    if text == b"Z" {
        return Some(0);
    }
    let (sign, rest) = text.split_first()?;
    let (hours, minutes) = match rest.len() {
        2 => (rest, b"00".as_slice()),
        5 if rest[2] == b':' => (&rest[..2], &rest[3..]),
        _ => return None,
    };
    let offset = number(hours)? * 60 + number(minutes)?;
    match sign {
        b'+' => Some(offset),
        b'-' => Some(-offset),
        _ => None,
    }
}

/// The value of a few digits.
fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0_i64, |sum, byte| {
        byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0'))
    })
}
