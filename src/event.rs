//! The words everything else speaks: names, seqs, events and batches.
//!
//! Knows nothing: no I/O, no clock, no configuration.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Largest seq that may ever be assigned: all values stay below 2^53, exact in every JSON reader.
pub const MAX_SEQ: u64 = (1 << 53) - 1;

/// The longest name of a node or a channel, in bytes.
pub const MAX_NAME_LEN: usize = 63;

/// A name that may stand in a path, a URL, a table and a log line without quoting:
/// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`. The only constructor validates.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// The user's stream.
pub type ChannelName = Name;
/// The node (data centre) that accepted an event: `origin_dc`, which is `node_name`.
pub type Origin = Name;

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
)]
pub struct BadName {
    /// The text that was refused.
    pub text: String,
}

impl Name {
    /// Validates `text`.
    ///
    /// # Errors
    /// [`BadName`] where `text` does not match `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let bytes = text.as_bytes();
        let good = !bytes.is_empty()
            && bytes.len() <= MAX_NAME_LEN
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if good { Ok(Self(text.into())) } else { Err(BadName { text: text.to_owned() }) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// `origin_seq`: rises within one origin, is never reused, and is not dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// The seq after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a channel was configured when an event was accepted: carried with the event, since what was
/// accepted under yesterday's `channels.yml` is judged by what it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeTag {
    /// `raw_only`.
    Raw,
    /// `structured`.
    Structured,
}

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i64);

/// One accepted event. The payload is the client's JSON, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its identity, together with the node's origin.
    pub seq: Seq,
    /// The stream it was posted to.
    pub channel: ChannelName,
    /// The channel's mode at that moment.
    pub mode: ModeTag,
    /// When it was accepted (UTC).
    pub received_at: Micros,
    /// One JSON object.
    pub payload: Bytes,
}

/// The events of one request: of one channel, accepted whole or not at all.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The stream all of them were posted to.
    pub channel: ChannelName,
    /// Its mode.
    pub mode: ModeTag,
    /// When they were accepted (UTC).
    pub received_at: Micros,
    /// One JSON object each.
    pub payloads: Vec<Bytes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_every_backend_can_hold() {
        for good in ["a", "dc1", "Events_raw", "0.x-y", &"n".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", &"n".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }
}
