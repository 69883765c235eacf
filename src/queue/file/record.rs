//! Frames: bytes to meaning and back. Pure; does not know files. The layout stands in the parent.

use std::collections::HashMap;

use bytes::Bytes;

use crate::event::{Batch, ChannelName, Event, Micros, ModeTag, Name, Seq};
use crate::queue::DeadReason;
use crate::queue::accounts::Load;

/// Bytes of a frame before its payload.
pub const FRAME_HEADER: usize = 48;
/// The longest payload that a header is believed to announce.
pub const MAX_PAYLOAD: u32 = 512 << 20;
/// First bytes of every frame; 0xF5 never occurs in UTF-8, hence in no JSON.
pub const FRAME_MAGIC: [u8; 4] = *b"\xF5RCL";

/// What an event is counted as, beside its payload: at least what framing it alone costs on disk.
const EVENT_OVERHEAD: u64 = 80;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The events of one request.
    Events = 1,
    /// Nothing; bears witness that what stands before it was synced.
    Seal = 2,
    /// A dead letter.
    Dead = 3,
    /// A change of a dead letter's state.
    Mark = 4,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Events),
            2 => Some(Self::Seal),
            3 => Some(Self::Dead),
            4 => Some(Self::Mark),
            _ => None,
        }
    }
}

/// Keeps another segment's bytes from passing for this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt {
    payload: u32,
    header: u32,
}

impl Salt {
    /// From a segment's random id.
    #[must_use]
    pub fn of(id: &[u8; 16]) -> Self {
        Self {
            payload: u32::from_le_bytes([id[0], id[1], id[2], id[3]]),
            header: u32::from_le_bytes([id[4], id[5], id[6], id[7]]),
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the frame is.
    pub kind: Kind,
    /// Bytes behind the header.
    pub payload_len: u32,
    /// Events in it.
    pub count: u32,
    /// Seq of the first; for a seal the seq before which all are.
    pub first: Seq,
    /// Events in the log before it.
    pub running: u64,
    /// Offset up to which the segment was synced before it was written.
    pub synced_to: u64,
    /// CRC of the payload, without salt.
    pub payload_crc: u32,
}

impl Head {
    /// Seq of its last event.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count.max(1)) - 1)
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        FRAME_HEADER as u64 + u64::from(self.payload_len)
    }

    /// Appends the header's bytes.
    pub fn encode(&self, salt: Salt, out: &mut Vec<u8>) {
        let mut head = [0u8; FRAME_HEADER];
        head[0..4].copy_from_slice(&FRAME_MAGIC);
        head[4] = self.kind as u8;
        head[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        head[12..16].copy_from_slice(&self.count.to_le_bytes());
        head[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        head[24..32].copy_from_slice(&self.running.to_le_bytes());
        head[32..40].copy_from_slice(&self.synced_to.to_le_bytes());
        head[40..44].copy_from_slice(&(self.payload_crc ^ salt.payload).to_le_bytes());
        let crc = crc32c::crc32c(&head[..44]) ^ salt.header;
        head[44..48].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&head);
    }

    /// Reads a header; `None` where magic, checksum, kind or length is not that of a frame.
    #[must_use]
    pub fn decode(bytes: &[u8], salt: Salt) -> Option<Self> {
        let head: &[u8; FRAME_HEADER] = bytes.get(..FRAME_HEADER)?.try_into().ok()?;
        if head[0..4] != FRAME_MAGIC
            || crc32c::crc32c(&head[..44]) ^ salt.header != u32_at(head, 44)
        {
            return None;
        }
        let payload_len = u32_at(head, 8);
        if payload_len > MAX_PAYLOAD {
            return None;
        }
        Some(Self {
            kind: Kind::of(head[4])?,
            payload_len,
            count: u32_at(head, 12),
            first: Seq(u64_at(head, 16)),
            running: u64_at(head, 24),
            synced_to: u64_at(head, 32),
            payload_crc: u32_at(head, 40) ^ salt.payload,
        })
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

/// A payload ready to be framed. Made in the request's own task, so that the log thread only copies.
#[derive(Clone, Debug)]
pub struct Body {
    /// What the frame is.
    pub kind: Kind,
    /// The payload.
    pub bytes: Bytes,
    /// Its CRC, without salt.
    pub crc: u32,
    /// Events in it.
    pub count: u32,
}

impl Body {
    fn new(kind: Kind, bytes: Vec<u8>, count: u32) -> Self {
        let crc = crc32c::crc32c(&bytes);
        Self { kind, bytes: bytes.into(), crc, count }
    }

    /// The payload of an events frame.
    #[must_use]
    pub fn events(batch: &Batch) -> Self {
        let count = u32::try_from(batch.payloads.len()).unwrap_or(u32::MAX);
        let sum: usize = batch.payloads.iter().map(Bytes::len).sum();
        let name = batch.channel.as_str().as_bytes();
        let mut out = Vec::with_capacity(10 + name.len() + 4 * batch.payloads.len() + sum);
        put_events_head(&mut out, batch.received_at, batch.mode, &batch.channel);
        for payload in &batch.payloads {
            out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        for payload in &batch.payloads {
            out.extend_from_slice(payload);
        }
        Self::new(Kind::Events, out, count)
    }

    /// The payload of a dead letter: reason, then the event as an events frame of one.
    #[must_use]
    pub fn dead(event: &Event, why: &DeadReason) -> Self {
        let code = &why.code.as_bytes()[..why.code.len().min(255)];
        let text = &why.text.as_bytes()[..why.text.len().min(4096)];
        let mut out = Vec::with_capacity(64 + code.len() + text.len() + event.payload.len());
        out.push(u8::try_from(code.len()).unwrap_or(0));
        out.extend_from_slice(code);
        out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(text);
        put_events_head(&mut out, event.received_at, event.mode, &event.channel);
        let len = u32::try_from(event.payload.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&event.payload);
        Self::new(Kind::Dead, out, 1)
    }

    /// A change of a dead letter's state: what it is now, and the seq it was put back under.
    #[must_use]
    pub fn mark(state: u8, new: Seq) -> Self {
        let mut out = vec![state];
        out.extend_from_slice(&new.0.to_le_bytes());
        Self::new(Kind::Mark, out, 0)
    }

    /// A seal: no payload.
    #[must_use]
    pub fn seal() -> Self {
        Self::new(Kind::Seal, Vec::new(), 0)
    }
}

fn put_events_head(out: &mut Vec<u8>, at: Micros, mode: ModeTag, channel: &ChannelName) {
    out.extend_from_slice(&at.0.to_le_bytes());
    out.push(match mode {
        ModeTag::Raw => 0,
        ModeTag::Structured => 1,
    });
    // a Name is at most 63 bytes
    out.push(u8::try_from(channel.as_str().len()).unwrap_or(u8::MAX));
    out.extend_from_slice(channel.as_str().as_bytes());
}

/// What an event counts against the queue's ceiling of bytes.
#[must_use]
pub fn cost(payload_len: usize) -> u64 {
    payload_len as u64 + EVENT_OVERHEAD
}

/// What a batch counts against the queue's ceilings.
#[must_use]
pub fn load_of(batch: &Batch) -> Load {
    Load {
        events: batch.payloads.len() as u64,
        bytes: batch.payloads.iter().map(|p| cost(p.len())).sum(),
    }
}

/// A dead letter's payload, opened; `None` where its lengths do not add up.
#[must_use]
pub fn open_dead(head: &Head, payload: &Bytes, names: &mut Names) -> Option<(DeadReason, Event)> {
    let code_end = 1 + usize::from(*payload.first()?);
    let code = String::from_utf8_lossy(payload.get(1..code_end)?).into_owned();
    let text_len = payload.get(code_end..code_end + 2)?;
    let text_end = code_end + 2 + usize::from(u16::from_le_bytes([text_len[0], text_len[1]]));
    let text = String::from_utf8_lossy(payload.get(code_end + 2..text_end)?).into_owned();
    let event = EventsFrame::open(head, payload.slice(text_end..), names)?.next()?;
    Some((DeadReason { code, text }, event))
}

/// A mark's payload, opened.
#[must_use]
pub fn open_mark(payload: &Bytes) -> Option<(u8, Seq)> {
    (payload.len() == 9).then(|| (payload[0], Seq(u64_at(payload, 1))))
}

/// Channel names already seen, so that a frame does not allocate its own.
#[derive(Debug, Default)]
pub struct Names(HashMap<Box<[u8]>, ChannelName>);

impl Names {
    fn get(&mut self, bytes: &[u8]) -> Option<ChannelName> {
        if let Some(name) = self.0.get(bytes) {
            return Some(name.clone());
        }
        let name = Name::new(std::str::from_utf8(bytes).ok()?).ok()?;
        self.0.insert(bytes.into(), name.clone());
        Some(name)
    }
}

/// An events frame, opened: its events are slices of the payload.
pub struct EventsFrame {
    first: Seq,
    count: usize,
    /// When they were accepted.
    pub received_at: Micros,
    /// Mode of their channel then.
    pub mode: ModeTag,
    /// Their channel.
    pub channel: ChannelName,
    payload: Bytes,
    lengths_at: usize,
    next: usize,
    next_at: usize,
}

impl EventsFrame {
    /// Opens a payload; `None` where its inner lengths do not add up, which a good checksum excludes
    /// unless the writer was broken.
    #[must_use]
    pub fn open(head: &Head, payload: Bytes, names: &mut Names) -> Option<Self> {
        let (count, first) = (usize::try_from(head.count).ok()?, head.first);
        if payload.len() < 10 {
            return None;
        }
        let received_at = Micros(u64_at(&payload, 0).cast_signed());
        let mode = match payload[8] {
            0 => ModeTag::Raw,
            1 => ModeTag::Structured,
            _ => return None,
        };
        let lengths_at = 10 + usize::from(payload[9]);
        let channel = names.get(payload.get(10..lengths_at)?)?;
        let next_at = lengths_at.checked_add(count.checked_mul(4)?)?;
        let mut end = next_at;
        for i in 0..count {
            let at = lengths_at + 4 * i;
            let len = payload.get(at..at + 4)?;
            end = end.checked_add(u32_at(len, 0) as usize)?;
        }
        let whole = end == payload.len();
        let frame = Self {
            first,
            count,
            received_at,
            mode,
            channel,
            payload,
            lengths_at,
            next: 0,
            next_at,
        };
        whole.then_some(frame)
    }

    /// What its events count against the ceilings, all of them.
    #[must_use]
    pub fn load(&self) -> Load {
        let bytes = self.payload.len() - self.lengths_at - 4 * self.count;
        Load { events: self.count as u64, bytes: bytes as u64 + EVENT_OVERHEAD * self.count as u64 }
    }

    /// What its events above `seq` count.
    #[must_use]
    pub fn load_above(&self, seq: Seq) -> Load {
        let skip = usize::try_from((seq.0 + 1).saturating_sub(self.first.0)).unwrap_or(usize::MAX);
        let lengths = (skip.min(self.count)..self.count).map(|i| self.length(i));
        lengths.fold(Load::default(), |sum, len| sum.plus(Load { events: 1, bytes: cost(len) }))
    }

    fn length(&self, nth: usize) -> usize {
        u32_at(&self.payload, self.lengths_at + 4 * nth) as usize
    }

    /// Seq of the next event, if there is one.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        Seq(self.first.0 + self.next as u64)
    }

    /// Payload bytes of the next event, without taking it.
    #[must_use]
    pub fn next_len(&self) -> Option<usize> {
        (self.next < self.count).then(|| self.length(self.next))
    }
}

impl Iterator for EventsFrame {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let len = self.next_len()?;
        let payload = self.payload.slice(self.next_at..self.next_at + len);
        let seq = Seq(self.first.0 + self.next as u64);
        self.next += 1;
        self.next_at += len;
        let (channel, mode, received_at) = (self.channel.clone(), self.mode, self.received_at);
        Some(Event { seq, channel, mode, received_at, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(payloads: &[&str]) -> Batch {
        Batch {
            channel: Name::new("events_raw").unwrap(),
            mode: ModeTag::Structured,
            received_at: Micros(77),
            payloads: payloads.iter().map(|p| Bytes::copy_from_slice(p.as_bytes())).collect(),
        }
    }

    fn head(body: &Body) -> Head {
        Head {
            kind: body.kind,
            payload_len: u32::try_from(body.bytes.len()).unwrap(),
            count: body.count,
            first: Seq(40),
            running: 7,
            synced_to: 8192,
            payload_crc: body.crc,
        }
    }

    #[test]
    fn a_frame_comes_back_as_it_went_in() {
        let body = Body::events(&batch(&["{}", "{\"a\":1}"]));
        let salt = Salt::of(b"0123456789abcdef");
        let mut bytes = Vec::new();
        head(&body).encode(salt, &mut bytes);
        let back = Head::decode(&bytes, salt).unwrap();
        assert_eq!(back, head(&body));
        let frame = EventsFrame::open(&back, body.bytes, &mut Names::default()).unwrap();
        assert_eq!(frame.load(), load_of(&batch(&["{}", "{\"a\":1}"])));
        let events: Vec<Event> = frame.collect();
        assert_eq!((events[0].seq, events[1].seq), (Seq(40), Seq(41)));
        assert_eq!(&events[1].payload[..], b"{\"a\":1}");
        assert_eq!((events[0].mode, events[0].received_at), (ModeTag::Structured, Micros(77)));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen_and_another_salt_does_not_pass() {
        let body = Body::events(&batch(&["{}"]));
        let salt = Salt::of(b"0123456789abcdef");
        let mut bytes = Vec::new();
        head(&body).encode(salt, &mut bytes);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::decode(&bad, salt).is_none(), "bit {bit}");
        }
        assert!(Head::decode(&bytes, Salt::of(b"0123xxxx89abcdef")).is_none());
    }

    #[test]
    fn a_length_of_four_gib_is_not_believed() {
        let salt = Salt::of(b"0123456789abcdef");
        let mut huge = head(&Body::seal());
        huge.payload_len = u32::MAX;
        let mut bytes = Vec::new();
        huge.encode(salt, &mut bytes);
        assert!(Head::decode(&bytes, salt).is_none());
    }

    #[test]
    fn inner_lengths_that_do_not_add_up_open_nothing() {
        let body = Body::events(&batch(&["{}", "{}"]));
        for cut in 0..body.bytes.len() {
            let short = body.bytes.slice(..cut);
            assert!(EventsFrame::open(&head(&body), short, &mut Names::default()).is_none());
        }
    }
}
