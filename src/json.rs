//! The portable JSON profile: what a body must look like so that every storage backend can hold it
//! with one meaning. One pass over the bytes, no tree, no recursion; payload bytes stay as sent.
//!
//! Must not know channels, columns, HTTP or any backend: it gets bytes and limits, and gives spans of
//! events or the list of what is wrong with them. Byte positions in reasons count from 0 over the
//! whole body, as it is after inflation.

mod members;
mod number;
mod path;
mod scanner;
mod text;

#[cfg(test)]
mod tests;

use std::ops::Range;

use bytes::Bytes;

pub use members::{Elements, Members, elements, members};
pub use text::decode_string;

use scanner::Scanner;

/// The most violations that one scan reports; scanning ends when they are found.
pub const MAX_VIOLATIONS: usize = 100;

/// The longest key, in bytes after decoding.
pub const MAX_KEY_LEN: usize = 1_024;

/// The longest text of a number, in bytes.
pub const MAX_NUMBER_LEN: usize = 100;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// What to do with an object that names a key twice (compared after decoding).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuplicateKeys {
    /// The last one stands, earlier members are cut out of the payload.
    Last,
    /// The item is refused.
    Reject,
}

/// The limits that are configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The most containers inside each other: the root object counts, the array around a batch does
    /// not.
    pub max_depth: usize,
    /// What to do with a key that occurs twice.
    pub duplicate_keys: DuplicateKeys,
    /// The most events of one body.
    pub max_items: usize,
}

impl Default for Profile {
    fn default() -> Self {
        Self { max_depth: 31, duplicate_keys: DuplicateKeys::Last, max_items: 1_000 }
    }
}

/// How the events of a body are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One object, or an array of objects.
    Json,
    /// One object a line, lines ended by `\n` or `\r\n`; blank lines are skipped.
    Lines,
}

/// One event of a body that keeps the profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The object's bytes in the body.
    pub span: Range<usize>,
    /// What is to be taken out of them: earlier members of a repeated key, each with the comma behind
    /// it. Positions are those of the body; sorted and disjoint.
    pub cuts: Vec<Range<usize>>,
}

impl Item {
    /// The event's payload: a slice of `body` without copying, unless something is cut out.
    #[must_use]
    pub fn payload(&self, body: &Bytes) -> Bytes {
        if self.cuts.is_empty() {
            return body.slice(self.span.clone());
        }
        let mut kept = Vec::with_capacity(self.span.len());
        let mut from = self.span.start;
        for cut in &self.cuts {
            kept.extend_from_slice(&body[from..cut.start]);
            from = cut.end;
        }
        kept.extend_from_slice(&body[from..self.span.end]);
        Bytes::from(kept)
    }
}

/// One thing that is wrong with a body, in words for the client. Holds no payload content but keys.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// Which event of the body, from 0.
    pub index: usize,
    /// Where in it (RFC 6901); empty for the event itself.
    pub pointer: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// Checks `body` and finds its events.
///
/// # Errors
/// Every violation of the body, at least one and at most [`MAX_VIOLATIONS`]. After a syntax error the
/// rest of a document is not read; of [`Form::Lines`] the next lines are.
pub fn scan(body: &[u8], form: Form, profile: &Profile) -> Result<Vec<Item>, Vec<Violation>> {
    if body.starts_with(BYTE_ORDER_MARK) {
        return Err(vec![Violation {
            index: 0,
            pointer: String::new(),
            reason: "the body begins with a byte order mark (U+FEFF): send the JSON without it"
                .to_owned(),
        }]);
    }
    let valid = valid_prefix(body);
    let mut scanner = Scanner::new(&body[..valid], form, profile);
    scanner.run();
    if valid < body.len() {
        scanner.not_utf8();
    }
    scanner.finish()
}

/// How many bytes of `body` are valid UTF-8. The fast check does not say where it failed, so the
/// standard one is asked then.
fn valid_prefix(body: &[u8]) -> usize {
    if simdutf8::basic::from_utf8(body).is_ok() {
        return body.len();
    }
    match std::str::from_utf8(body) {
        Ok(text) => text.len(),
        Err(bad) => bad.valid_up_to(),
    }
}

/// Appends one segment to a JSON pointer (RFC 6901).
pub fn push_segment(pointer: &mut String, key: &str) {
    pointer.push('/');
    for character in key.chars() {
        match character {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            other => pointer.push(other),
        }
    }
}
