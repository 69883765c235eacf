//! JSON numbers: the grammar, and the range in which all backends agree.
//!
//! The range is stricter than "finite":
//! - PostgreSQL keeps a number of `jsonb` as a decimal, the others as a double. A number that a double
//!   rounds to zero would have two meanings.
//! - Below `f64::MIN_POSITIVE` (the subnormals, 5e-324 among them) precision is lost bit by bit, and
//!   the parsers of MariaDB, MySQL and PostgreSQL differ in whether they round, flush to zero or
//!   refuse.
//! - A zero with a huge exponent is zero to a double, but PostgreSQL refuses `0e-20000` (too many
//!   digits behind the point) and MySQL `0e309` (its reader looks at the exponent alone).
//!
//! Must not know where violations go.

use super::MAX_NUMBER_LEN;

/// A number that was read to its end.
pub(super) struct Scanned {
    /// The position behind its last byte.
    pub(super) end: usize,
    /// Why it is good JSON and yet not portable.
    pub(super) fault: Option<Fault>,
}

/// Why a number is not portable.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its text has more than [`MAX_NUMBER_LEN`] bytes; this many.
    TooLong(usize),
    /// Infinite as a double.
    TooLarge,
    /// Not zero, but zero or subnormal as a double.
    TooSmall,
    /// Zero, with an exponent that some parsers refuse.
    ZeroExponent,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong(len) => {
                write!(f, "number of {len} bytes: at most {MAX_NUMBER_LEN} are allowed")
            }
            Self::TooLarge => f.write_str("number too large for a double"),
            Self::TooSmall => {
                f.write_str("number too close to zero for a double (below 2.2250738585072014e-308)")
            }
            Self::ZeroExponent => f.write_str("zero with an exponent beyond 308: write 0"),
        }
    }
}

/// Where the grammar was left, and what would have been right there.
pub(super) struct Broken {
    /// The position of the byte that does not fit.
    pub(super) at: usize,
    /// What should stand there.
    pub(super) expected: &'static str,
}

/// The largest exponent with which a text of [`MAX_NUMBER_LEN`] bytes is certainly in range.
const SAFE_EXPONENT: i32 = 200;

/// The largest exponent that a zero may have.
const ZERO_EXPONENT: i32 = 308;

/// Reads the number that begins at `start` with a minus sign or a digit.
#[inline]
pub(super) fn scan(body: &[u8], start: usize) -> Result<Scanned, Broken> {
    let whole = start + usize::from(body.get(start) == Some(&b'-'));
    let mut at = digits_end(body, whole)?;
    if at > whole + 1 && body[whole] == b'0' {
        return Err(Broken { at: whole + 1, expected: "no digit after a leading 0" });
    }
    if body.get(at) == Some(&b'.') {
        at = digits_end(body, at + 1)?;
    }
    let mantissa_end = at;
    let mut exponent = None;
    if matches!(body.get(at), Some(b'e' | b'E')) {
        let signed = at + 1;
        let digits = signed + usize::from(matches!(body.get(signed), Some(b'+' | b'-')));
        at = digits_end(body, digits)?;
        exponent = Some(magnitude(&body[digits..at]));
    }
    let fault = if at - start > MAX_NUMBER_LEN {
        Some(Fault::TooLong(at - start))
    } else {
        // Without an exponent a text this short lies between 1e-98 and 1e100.
        exponent.filter(|exponent| *exponent > SAFE_EXPONENT).and_then(|exponent| {
            range_fault(&body[start..at], &body[whole..mantissa_end], exponent)
        })
    };
    Ok(Scanned { end: at, fault })
}

/// The position behind the run of digits at `at`, of which there must be one.
#[inline]
fn digits_end(body: &[u8], at: usize) -> Result<usize, Broken> {
    let mut end = at;
    while body.get(end).is_some_and(u8::is_ascii_digit) {
        end += 1;
    }
    if end == at {
        return Err(Broken { at, expected: "a digit" });
    }
    Ok(end)
}

fn magnitude(digits: &[u8]) -> i32 {
    digits
        .iter()
        .fold(0_i32, |sum, digit| sum.saturating_mul(10).saturating_add(i32::from(digit - b'0')))
}

fn range_fault(text: &[u8], mantissa: &[u8], exponent: i32) -> Option<Fault> {
    let zero = !mantissa.iter().any(|byte| matches!(byte, b'1'..=b'9'));
    if zero {
        return (exponent > ZERO_EXPONENT).then_some(Fault::ZeroExponent);
    }
    let value = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(f64::INFINITY);
    if value.is_infinite() {
        Some(Fault::TooLarge)
    } else if value.abs() < f64::MIN_POSITIVE {
        Some(Fault::TooSmall)
    } else {
        None
    }
}
