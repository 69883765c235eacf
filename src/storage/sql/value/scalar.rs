//! Decimal numbers, addresses and bytes in their one text, which is PostgreSQL's.
//!
//! Reads what the door took and what backends show. Must not know JSON.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::json::MAX_NUMBER_LEN;

/// The largest exponent that is written out; the door takes none beyond 308.
const MAX_EXPONENT: i64 = 400;

/// A decimal number without exponent, with as many digits behind the point as it was written with.
/// Where that would be longer than a number may be, the zeros at its end go.
pub(super) fn decimal(text: &str) -> Option<String> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    if digits.is_empty() || !plain || !(-MAX_EXPONENT..=MAX_EXPONENT).contains(&exponent) {
        return None;
    }
    let mut decimal = place_point(&digits, i64::try_from(whole.len()).ok()? + exponent);
    if decimal.len() >= MAX_NUMBER_LEN {
        decimal.truncate(without_zeros(&decimal).len());
    }
    if negative && decimal.bytes().any(|byte| matches!(byte, b'1'..=b'9')) {
        decimal.insert(0, '-');
    }
    Some(decimal)
}

/// Digits with the point behind the first `point` of them, which may lie outside of them.
fn place_point(digits: &str, point: i64) -> String {
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    let split = usize::try_from(point).unwrap_or(0).min(digits.len());
    let (whole, fraction) = digits.split_at(split);
    let whole = format!("{whole}{}", zeros(point - i64::try_from(digits.len()).unwrap_or(0)));
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    match fraction {
        "" => whole.to_owned(),
        _ => format!("{whole}.{}{fraction}", zeros(-point)),
    }
}

/// Whether two canonical decimals are one number: `1.10` and `1.1` are.
pub(super) fn same_decimal(left: &str, right: &str) -> bool {
    without_zeros(left) == without_zeros(right)
}

fn without_zeros(decimal: &str) -> &str {
    if decimal.contains('.') {
        decimal.trim_end_matches('0').trim_end_matches('.')
    } else {
        decimal
    }
}

/// An address; a length that covers all of it is left out.
pub(super) fn inet(text: &str) -> Option<String> {
    let (address, length) = network(text)?;
    Some(if length == longest(address) {
        address_text(address)
    } else {
        format!("{}/{length}", address_text(address))
    })
}

/// A network, always with its length.
pub(super) fn cidr(text: &str) -> Option<String> {
    let (address, length) = network(text)?;
    Some(format!("{}/{length}", address_text(address)))
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    match text.split_once('/') {
        Some((address, length)) => Some((address.parse().ok()?, length.parse().ok()?)),
        None => {
            let address = text.parse().ok()?;
            Some((address, longest(address)))
        }
    }
}

fn longest(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Behind six words of zeros PostgreSQL shows an IPv4 address, as it was meant once (`::1.2.3.4`).
fn address_text(address: IpAddr) -> String {
    match address {
        IpAddr::V6(six) if is_embedded(six) => {
            let [.., a, b, c, d] = six.octets();
            format!("::{}", Ipv4Addr::new(a, b, c, d))
        }
        _ => address.to_string(),
    }
}

fn is_embedded(address: Ipv6Addr) -> bool {
    let [zeros @ .., word, _] = address.segments();
    word != 0 && zeros == [0; 6]
}

/// A hardware address: pairs of digits, joined by colons.
pub(super) fn hardware(text: &str) -> Option<String> {
    let digits: Vec<char> = text.chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
    if !matches!(digits.len(), 12 | 16) || !digits.iter().all(char::is_ascii_hexdigit) {
        return None;
    }
    let pairs: Vec<String> = digits.chunks(2).map(|pair| pair.iter().collect()).collect();
    Some(pairs.join(":").to_ascii_lowercase())
}

/// The bytes of `\x…`.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    digits.chunks(2).map(|pair| Some((nibble(pair[0])? << 4) | nibble(pair[1])?)).collect()
}

/// Bytes as `\x…`.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        // a String takes every character
        let _ = write!(text, "{byte:02x}");
    }
    text
}
