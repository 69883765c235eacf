//! Entries of the stream: their ids and their fields, bytes to meaning and back. Pure.
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
/// The most events of an entry: a script passes only so many words to a command, and what is read at
/// once is counted in entries.
pub(super) const MAX_EVENTS: usize = 256;
/// The most bytes of payload of an entry that holds more than one event: how many entries are read at
/// once goes by the longest one.
const MAX_BYTES: usize = 64 << 10;

/// An entry's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId {
    pub first: u64,
    pub second: u64,
}

impl EntryId {
    /// Of the entry that begins with that event.
    pub const fn of(seq: Seq) -> Self {
        Self { first: seq.0, second: 0 }
    }

    /// The last one below that of such an entry.
    pub const fn before(seq: Seq) -> Self {
        Self { first: seq.0.saturating_sub(1), second: u64::MAX }
    }

    pub fn read(text: &str) -> Option<Self> {
        let (first, second) = text.split_once('-')?;
        Some(Self { first: first.parse().ok()?, second: second.parse().ok()? })
    }

    /// The seq of the first event of an entry of ours with this id.
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

/// The header of an event's entry, and of its dead letter.
pub(super) fn header_of(mode: ModeTag, at: Micros, channel: &ChannelName) -> String {
    let mode = match mode {
        ModeTag::Raw => 'r',
        ModeTag::Structured => 's',
    };
    format!("{FORM} {mode} {} {channel}", at.0)
}

/// The length of all of them together.
pub(super) fn bytes_of(payloads: &[Bytes]) -> u64 {
    payloads.iter().map(|payload| payload.len() as u64).sum()
}

/// The payloads of the entries that a request makes, in order: the same ones however often it is sent.
pub(super) fn cut(mut rest: &[Bytes]) -> impl Iterator<Item = &[Bytes]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |payload: &&Bytes| {
            bytes += payload.len();
            bytes <= MAX_BYTES
        };
        let n = rest.iter().take(MAX_EVENTS).take_while(fits).count().max(1);
        let (entry, behind) = rest.split_at_checked(n)?;
        rest = behind;
        Some(entry)
    })
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
    /// At least one event, all of one request.
    Ours(Vec<Event>),
    /// Another program's.
    Foreign(EntryId),
    /// Deleted, though it was pending.
    Gone(EntryId),
}

impl Entry {
    pub fn id(&self) -> EntryId {
        match self {
            Self::Ours(events) => events.first().map(|e| EntryId::of(e.seq)).unwrap_or_default(),
            Self::Foreign(id) | Self::Gone(id) => *id,
        }
    }

    /// How many events of ours it holds.
    pub fn events(&self) -> u64 {
        if let Self::Ours(events) = self { events.len() as u64 } else { 0 }
    }

    /// The seq of its last event. Of one that is gone nobody knows how many it had: that of its first.
    pub fn through(&self) -> Seq {
        match self {
            Self::Ours(events) => events.last().map(|e| e.seq).unwrap_or_default(),
            Self::Foreign(id) | Self::Gone(id) => Seq(id.first),
        }
    }
}

/// The entries that a reading answers.
pub(super) fn of_list(reply: Reply, names: &mut Names) -> Result<Vec<Entry>, Broken> {
    reply.list()?.into_iter().map(|entry| read(entry, names)).collect()
}

fn read(entry: Reply, names: &mut Names) -> Result<Entry, Broken> {
    let (id, fields) = parts(entry)?;
    let Some(fields) = fields else { return Ok(Entry::Gone(id)) };
    let events = id.seq().and_then(|seq| events(seq, fields, names));
    Ok(events.map_or(Entry::Foreign(id), Entry::Ours))
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

/// The events of an entry that begins with `seq`; `None` where it is none of ours.
fn events(mut seq: Seq, fields: Vec<Bytes>, names: &mut Names) -> Option<Vec<Event>> {
    if fields.len() < 4 || !fields.len().is_multiple_of(2) {
        return None;
    }
    let mut events = Vec::with_capacity(fields.len() / 2 - 1);
    let mut fields = fields.into_iter();
    let (h, head) = (fields.next()?, fields.next()?);
    if *h != *b"h" {
        return None;
    }
    let Head { mode, received_at, channel } = names.head(&head)?;
    while let (Some(p), Some(payload)) = (fields.next(), fields.next()) {
        if *p != *b"p" || seq.0 > MAX_SEQ {
            return None;
        }
        events.push(Event { seq, channel: channel.clone(), mode, received_at, payload });
        seq = seq.next();
    }
    Some(events)
}

/// What is counted of each channel, in the order in which they come.
pub(super) fn sums<'a>(
    all: impl Iterator<Item = (&'a ChannelName, Load)>,
) -> Vec<(&'a ChannelName, Load)> {
    let mut sums: Vec<(&ChannelName, Load)> = Vec::new();
    for (channel, load) in all {
        match sums.iter_mut().find(|(known, _)| *known == channel) {
            Some((_, sum)) => *sum = sum.plus(load),
            None => sums.push((channel, load)),
        }
    }
    sums
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
    fn a_header_and_payloads_in_their_order_make_events_and_nothing_else_does() {
        let mut names = Names::default();
        let mut read = |seq, fields: &[&'static str]| {
            let fields = fields.iter().map(|text| Bytes::from_static(text.as_bytes()));
            events(Seq(seq), fields.collect(), &mut names)
        };
        let one = read(3, &["h", "1 r 7 a", "p", "{}"]).unwrap();
        let event = &one[0];
        assert_eq!(
            (event.seq, event.received_at, &event.payload[..]),
            (Seq(3), Micros(7), &b"{}"[..])
        );
        let three = read(3, &["h", "1 s 7 a", "p", "1", "p", "", "p", "3"]).unwrap();
        let found: Vec<(u64, &[u8])> = three.iter().map(|e| (e.seq.0, &e.payload[..])).collect();
        assert_eq!(found, [(3, &b"1"[..]), (4, &b""[..]), (5, &b"3"[..])]);
        let entry = Entry::Ours(three);
        assert_eq!((entry.id(), entry.through()), (EntryId::of(Seq(3)), Seq(5)));
        for bad in [
            &["p", "{}", "h", "1 r 7 a"][..],
            &["h", "1 r 7 a"],
            &["h", "1 r 7 a", "p"],
            &["h", "1 r 7 a", "p", "{}", "x", "y"],
            &["h", "1 r 7 a", "x", "y", "p", "{}"],
            &["payload", "{}"],
            &[],
        ] {
            assert_eq!(read(3, bad), None, "{bad:?}");
        }
        let two = ["h", "1 r 7 a", "p", "{}", "p", "{}"];
        assert!(read(MAX_SEQ - 1, &two).is_some() && read(MAX_SEQ, &two).is_none());
    }

    #[test]
    fn a_request_is_cut_into_entries_of_so_many_events_and_bytes() {
        let cuts = |payloads: &[usize]| -> Vec<usize> {
            let payloads: Vec<Bytes> =
                payloads.iter().map(|bytes| Bytes::from(vec![b' '; *bytes])).collect();
            cut(&payloads).map(<[Bytes]>::len).collect()
        };
        assert_eq!(cuts(&[]), Vec::<usize>::new());
        assert_eq!(cuts(&[2]), [1]);
        assert_eq!(cuts(&[2; 256]), [256]);
        assert_eq!(cuts(&[2; 600]), [256, 256, 88]);
        let half = MAX_BYTES / 2;
        assert_eq!(cuts(&[half, half, 1, 3 * half, 1, half]), [2, 1, 1, 2]);
    }

    #[test]
    fn what_is_counted_is_summed_by_channel() {
        let (odd, even) = (Name::new("odd").unwrap(), Name::new("even").unwrap());
        let load = |events| Load { events, bytes: 100 * events };
        let all = [(&odd, load(2)), (&even, load(1)), (&odd, load(3))];
        assert_eq!(sums(all.into_iter()), [(&odd, load(5)), (&even, load(1))]);
    }
}
