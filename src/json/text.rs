//! JSON strings: finding their end, checking their escapes, decoding them.
//!
//! Must not know what a string stands for, nor where violations go.

use std::borrow::Cow;

/// A string that was read to its end.
pub(super) struct Scanned {
    /// The position after the closing quote.
    pub(super) end: usize,
    /// It holds at least one escape.
    pub(super) escaped: bool,
    /// It holds `\u0000`.
    pub(super) nul: bool,
    /// It holds half of a surrogate pair.
    pub(super) lone_surrogate: bool,
}

/// A string that cannot be read on.
pub(super) struct Broken {
    /// Where; never behind the end of the text or of the line.
    pub(super) at: usize,
    /// What is wrong.
    pub(super) reason: &'static str,
}

const HEX_EXPECTED: &str = "expected four hexadecimal digits after \\u";

/// Reads the string whose opening quote stands at `open`.
#[inline]
pub(super) fn scan(body: &[u8], open: usize) -> Result<Scanned, Broken> {
    let mut at = open + 1;
    let mut found = Scanned { end: at, escaped: false, nul: false, lone_surrogate: false };
    loop {
        at = plain_end(body, at);
        match body.get(at) {
            Some(b'"') => {
                found.end = at + 1;
                return Ok(found);
            }
            Some(b'\\') => {
                found.escaped = true;
                at = escape_end(body, at, &mut found)?;
            }
            Some(_) => {
                return Err(Broken {
                    at,
                    reason: "raw control character in a string (write it as an escape such as \\n)",
                });
            }
            None => {
                return Err(Broken { at, reason: "the body ends within a string" });
            }
        }
    }
}

/// The first position from `at` on that holds a quote, a backslash or a control character; the end of
/// the text if none does. Eight bytes at a time, since strings are most of every payload.
#[inline]
fn plain_end(body: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = body.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let hits = special_bytes(u64::from_le_bytes(*chunk));
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = body.get(at) {
        if matches!(byte, b'"' | b'\\' | 0..=0x1F) {
            break;
        }
        at += 1;
    }
    at
}

/// Sets the high bit of each byte of `word` that ends a plain run. Borrows of the subtractions can set
/// bits above a true hit, never below it, so the lowest one is right.
#[inline]
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let quote = word ^ (ONES * 0x22);
    let backslash = word ^ (ONES * 0x5C);
    let quotes = quote.wrapping_sub(ONES) & !quote;
    let backslashes = backslash.wrapping_sub(ONES) & !backslash;
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    (quotes | backslashes | controls) & HIGH
}

/// Checks the escape whose backslash stands at `at` and gives the position behind it.
fn escape_end(body: &[u8], at: usize, found: &mut Scanned) -> Result<usize, Broken> {
    match body.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => match code_unit(body, at + 2)? {
            0 => {
                found.nul = true;
                Ok(at + 6)
            }
            0xD800..=0xDBFF => {
                // What follows a high half that is no low half is judged by itself, as the next
                // escape.
                if body.get(at + 6..at + 8) == Some(b"\\u".as_slice())
                    && is_low_half(code_unit(body, at + 8)?)
                {
                    return Ok(at + 12);
                }
                found.lone_surrogate = true;
                Ok(at + 6)
            }
            0xDC00..=0xDFFF => {
                found.lone_surrogate = true;
                Ok(at + 6)
            }
            _ => Ok(at + 6),
        },
        Some(_) => Err(Broken { at: at + 1, reason: "unknown escape in a string" }),
        None => Err(Broken { at: at + 1, reason: "the body ends within a string" }),
    }
}

fn is_low_half(unit: u32) -> bool {
    (0xDC00..=0xDFFF).contains(&unit)
}

/// The four hexadecimal digits at `at`.
fn code_unit(body: &[u8], at: usize) -> Result<u32, Broken> {
    let mut unit = 0;
    for place in at..at + 4 {
        let digit = body.get(place).and_then(|byte| char::from(*byte).to_digit(16));
        let Some(digit) = digit else {
            return Err(Broken { at: place, reason: HEX_EXPECTED });
        };
        unit = unit * 16 + digit;
    }
    Ok(unit)
}

/// The text of a string that was checked before. `raw` includes the quotes.
#[must_use]
pub fn decode_string(raw: &[u8]) -> Cow<'_, str> {
    let inner = raw.strip_prefix(b"\"").unwrap_or(raw);
    let inner = inner.strip_suffix(b"\"").unwrap_or(inner);
    if !inner.contains(&b'\\') {
        return String::from_utf8_lossy(inner);
    }
    let mut decoded = Vec::with_capacity(inner.len());
    decode_into(inner, &mut decoded);
    Cow::Owned(match String::from_utf8(decoded) {
        Ok(text) => text,
        Err(bad) => String::from_utf8_lossy(bad.as_bytes()).into_owned(),
    })
}

/// Decodes what stands between the quotes. A lone surrogate becomes U+FFFD: by then it is reported.
pub(super) fn decode_into(inner: &[u8], out: &mut Vec<u8>) {
    let mut rest = inner;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let (character, used) = unescape(&rest[at..]);
        let mut utf8 = [0; 4];
        out.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
        rest = &rest[at + used..];
    }
    out.extend_from_slice(rest);
}

/// The character of the escape that `escape` begins with, and how many bytes it took.
fn unescape(escape: &[u8]) -> (char, usize) {
    let character = match escape.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unescape_unicode(escape),
        Some(other) => char::from(*other),
        None => return (char::REPLACEMENT_CHARACTER, 1),
    };
    (character, 2)
}

fn unescape_unicode(escape: &[u8]) -> (char, usize) {
    let Ok(unit) = code_unit(escape, 2) else {
        return (char::REPLACEMENT_CHARACTER, 2);
    };
    if (0xD800..=0xDBFF).contains(&unit)
        && escape.get(6..8) == Some(b"\\u".as_slice())
        && let Ok(low) = code_unit(escape, 8)
        && is_low_half(low)
    {
        let code = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}
