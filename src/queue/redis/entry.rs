//! Entries of the stream: their ids and their two fields, bytes to meaning and back. Pure.
//!
//! Does not know a connection. The form stands in the parent.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;

use super::connection::{Broken, Reply};
use crate::event::{Batch, ChannelName, Event, MAX_SEQ, Micros, ModeTag, Name, Seq};
use crate::queue::accounts::Load;
use crate::queue::file::record::cost;

/// The form that this version writes.
const FORM: &str = "1";
/// Bytes that are counted beside a payload.
pub(super) const OVERHEAD: u64 = 80;

/// An entry's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId {
    pub first: u64,
    pub second: u64,
}

impl EntryId {
    pub const fn of(seq: Seq) -> Self {
        Self { first: seq.0, second: 0 }
    }

    pub fn read(text: &str) -> Option<Self> {
        let (first, second) = text.split_once('-')?;
        Some(Self { first: first.parse().ok()?, second: second.parse().ok()? })
    }

    /// The seq that an entry of ours with this id has.
    pub fn seq(self) -> Option<Seq> {
        (self.second == 0 && self.first > 0 && self.first <= MAX_SEQ).then_some(Seq(self.first))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.second)
    }
}

/// The header of a batch's entries.
pub(super) fn header(batch: &Batch) -> String {
    header_of(batch.mode, batch.received_at, &batch.channel)
}

/// The header of an event's entry.
pub(super) fn header_of(mode: ModeTag, at: Micros, channel: &ChannelName) -> String {
    let mode = match mode {
        ModeTag::Raw => 'r',
        ModeTag::Structured => 's',
    };
    format!("{FORM} {mode} {} {channel}", at.0)
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub mode: ModeTag,
    pub received_at: Micros,
    pub channel: ChannelName,
}

/// Channel names already seen, so that an entry does not allocate its own.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<String, ChannelName>);

impl Names {
    fn get(&mut self, text: &str) -> Option<ChannelName> {
        if let Some(name) = self.0.get(text) {
            return Some(name.clone());
        }
        let name = Name::new(text).ok()?;
        self.0.insert(text.to_owned(), name.clone());
        Some(name)
    }

    /// Reads a header; `None` where it is none of ours.
    pub fn head(&mut self, bytes: &[u8]) -> Option<Head> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let (form, mode) = (words.next()?, words.next()?);
        let (at, channel) = (words.next()?, words.next()?);
        if form != FORM || words.next().is_some() {
            return None;
        }
        let mode = match mode {
            "r" => ModeTag::Raw,
            "s" => ModeTag::Structured,
            _ => return None,
        };
        Some(Head { mode, received_at: Micros(at.parse().ok()?), channel: self.get(channel)? })
    }
}

/// An entry as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Ours(Event),
    /// Another program's.
    Foreign(EntryId),
    /// Deleted, though it was pending.
    Gone(EntryId),
}

impl Entry {
    pub fn id(&self) -> EntryId {
        match self {
            Self::Ours(event) => EntryId::of(event.seq),
            Self::Foreign(id) | Self::Gone(id) => *id,
        }
    }
}

/// The entries of one stream in an answer of `XREADGROUP`.
pub(super) fn of_group(reply: Reply, names: &mut Names) -> Result<Vec<Entry>, Broken> {
    let Some(stream) = reply.list()?.into_iter().next() else { return Ok(Vec::new()) };
    let mut parts = stream.list()?.into_iter();
    let entries = parts.nth(1).ok_or_else(|| Broken::odd("a stream without entries"))?;
    entries.list()?.into_iter().map(|entry| read(entry, names)).collect()
}

fn read(entry: Reply, names: &mut Names) -> Result<Entry, Broken> {
    let (id, fields) = parts(entry)?;
    let Some(fields) = fields else { return Ok(Entry::Gone(id)) };
    let event = id.seq().and_then(|seq| event(seq, &fields, names));
    Ok(event.map_or(Entry::Foreign(id), Entry::Ours))
}

/// An entry's id and its fields, flat; `None` where it was deleted.
pub(super) fn parts(entry: Reply) -> Result<(EntryId, Option<Vec<Bytes>>), Broken> {
    let mut parts = entry.list()?.into_iter();
    let id = parts.next().ok_or_else(|| Broken::odd("an entry without id"))?.text()?;
    let id = EntryId::read(&id).ok_or_else(|| Broken::odd("an id that is none"))?;
    match parts.next() {
        Some(fields) if !fields.is_nil() => {
            let fields: Result<Vec<Bytes>, Broken> =
                fields.list()?.into_iter().map(Reply::bytes).collect();
            Ok((id, Some(fields?)))
        }
        _ => Ok((id, None)),
    }
}

fn event(seq: Seq, fields: &[Bytes], names: &mut Names) -> Option<Event> {
    let [h, head, p, payload] = fields else { return None };
    if **h != *b"h" || **p != *b"p" {
        return None;
    }
    let Head { mode, received_at, channel } = names.head(head)?;
    Some(Event { seq, channel, mode, received_at, payload: payload.clone() })
}

/// What an event counts.
pub(super) fn load_of(event: &Event) -> Load {
    Load { events: 1, bytes: cost(event.payload.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Option<Head> {
        Names::default().head(text.as_bytes())
    }

    #[test]
    fn a_header_comes_back_as_it_was_written_and_no_other_text_passes_for_one() {
        let channel = Name::new("events_raw").unwrap();
        for (mode, at) in [(ModeTag::Raw, -5), (ModeTag::Structured, 1_790_000_000_000_000)] {
            let text = header_of(mode, Micros(at), &channel);
            let want = Head { mode, received_at: Micros(at), channel: channel.clone() };
            assert_eq!(head(&text), Some(want));
        }
        for bad in ["", "1 r 5", "2 r 5 a", "1 x 5 a", "1 r five a", "1 r 5 a b", "1 r 5 a/b"] {
            assert_eq!(head(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_id_orders_as_redis_orders_it_and_only_some_are_seqs() {
        let id = |text| EntryId::read(text).unwrap();
        assert!(id("9-0") < id("10-0") && id("10-0") < id("10-1"));
        assert_eq!(id("10-0").seq(), Some(Seq(10)));
        assert_eq!((id("10-1").seq(), id("0-0").seq()), (None, None));
        assert_eq!(id("18446744073709551615-0").seq(), None);
        assert_eq!(id("10-1").to_string(), "10-1");
        assert!(EntryId::read("10").is_none() && EntryId::read("a-b").is_none());
    }

    #[test]
    fn what_is_counted_beside_a_payload_is_what_the_file_log_counts() {
        assert_eq!(cost(0), OVERHEAD);
    }

    #[test]
    fn only_two_fields_of_ours_in_their_order_make_an_event() {
        let field = |text: &'static str| Bytes::from_static(text.as_bytes());
        let mut names = Names::default();
        let good = ["h", "1 r 7 a", "p", "{}"].map(field);
        let event = super::event(Seq(3), &good, &mut names).unwrap();
        assert_eq!(
            (event.seq, event.received_at, &event.payload[..]),
            (Seq(3), Micros(7), &b"{}"[..])
        );
        for bad in [
            vec!["p", "{}", "h", "1 r 7 a"],
            vec!["h", "1 r 7 a"],
            vec!["h", "1 r 7 a", "p", "{}", "x", "y"],
            vec!["payload", "{}"],
        ] {
            let bad: Vec<Bytes> = bad.into_iter().map(field).collect();
            assert_eq!(super::event(Seq(3), &bad, &mut names), None, "{bad:?}");
        }
    }
}
