//! Exact decimal numbers: what fits into `DECIMAL(65,30)`, the smallest of the backends' types.
//!
//! The grammar is our own, since those of the backends differ (`NaN`, `.5`, `1.`, blanks). Must not
//! know JSON.

use super::Verdict;
use crate::json::MAX_NUMBER_LEN;

/// The most digits before the point.
const MAX_WHOLE_DIGITS: i64 = 35;

/// The most digits behind the point.
const MAX_FRACTION_DIGITS: i64 = 30;

/// The largest exponent, of a zero too, where no digit would tell.
const MAX_EXPONENT: i64 = 308;

/// `[+-] digits [. digits] [e [+-] digits]`. Zeros that do not count (in front, at the end of the
/// fraction) do not count here either.
pub(super) fn check(text: &str) -> Verdict {
    const GRAMMAR: &str = "it is not written as digits, with sign, point or exponent";
    if text.len() > MAX_NUMBER_LEN {
        return Err("it has more than 100 characters");
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, read_exponent(exponent).ok_or(GRAMMAR)?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) if is_digits(fraction) => (whole, fraction),
        Some(_) => return Err(GRAMMAR),
        None => (mantissa, ""),
    };
    if !is_digits(whole) {
        return Err(GRAMMAR);
    }
    if exponent.abs() > MAX_EXPONENT {
        return Err("its exponent is beyond 308");
    }
    // Digits are counted from the first one; the point stands behind `point` of them.
    let point = position(whole.len()) + exponent;
    let mut significant = whole
        .bytes()
        .chain(fraction.bytes())
        .enumerate()
        .filter(|(_, digit)| *digit != b'0')
        .map(|(at, _)| position(at));
    let Some(first) = significant.next() else {
        return Ok(());
    };
    let last = significant.last().unwrap_or(first);
    if point - first > MAX_WHOLE_DIGITS {
        return Err("it has more than 35 digits before the point");
    }
    if last + 1 - point > MAX_FRACTION_DIGITS {
        return Err("it has more than 30 digits behind the point");
    }
    Ok(())
}

/// Texts are short by then.
fn position(at: usize) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads an exponent; one of absurd length as a number that is certainly too large.
fn read_exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !is_digits(digits) {
        return None;
    }
    let magnitude = digits.parse::<i32>().unwrap_or(i32::MAX);
    let magnitude = i64::from(magnitude);
    Some(if text.starts_with('-') { -magnitude } else { magnitude })
}
