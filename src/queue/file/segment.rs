//! A segment: its header, and the stream of frames that is read out of it.
//!
//! Does not know which segments there are, nor who reads them. The layout stands in the parent.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::record::{FRAME_HEADER, FRAME_MAGIC, Head, Salt, u32_at, u64_at};
use crate::event::{ChannelName, Name, Origin, Seq};
use crate::fsx::{DiskFile, read_full};
use crate::queue::accounts::Load;

const MAGIC: [u8; 8] = *b"\xF5RCSEG\r\n";
const VERSION: u16 = 1;
const BLOCK: usize = 4096;
const MAX_BLOCK: usize = 1 << 20;
/// How much is read at once.
const CHUNK: u64 = 1 << 20;

/// Digits of a segment's name.
pub const DIGITS: usize = 20;

/// What a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogKind {
    /// Events on their way to storage.
    Queue = 1,
    /// Dead letters.
    Dead = 2,
    /// Events of a channel that waits apart from the others.
    Parked = 3,
}

/// Counts per channel; `None` holds what damage hid.
pub type ChannelLoads = std::collections::BTreeMap<Option<ChannelName>, Load>;

/// What `before` counts and `known` does not, per channel. What damage hid stands under `None` on one
/// side and perhaps under its channel on the other, so that `None` never makes up more than the sums
/// differ by.
#[must_use]
pub fn missing_from(known: &ChannelLoads, before: &ChannelLoads) -> ChannelLoads {
    let sum = |loads: &ChannelLoads| loads.values().fold(Load::default(), |all, l| all.plus(*l));
    let mut left = sum(before).minus(sum(known));
    let mut missing = ChannelLoads::new();
    // named channels come last in the order of keys, and first here
    for (channel, load) in before.iter().rev() {
        let gone = load.minus(known.get(channel).copied().unwrap_or_default());
        let gone = match channel {
            Some(_) => gone,
            None => {
                Load { events: gone.events.min(left.events), bytes: gone.bytes.min(left.bytes) }
            }
        };
        left = left.minus(gone);
        if gone.events > 0 {
            missing.insert(channel.clone(), gone);
        }
    }
    missing
}

/// A segment's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the log holds.
    pub kind: LogKind,
    /// Random; the salt comes from it.
    pub id: [u8; 16],
    /// First seq free when it was begun; its name.
    pub begun: u64,
    /// The segment before it and its named end.
    pub previous: Option<(u64, u64)>,
    /// The last seq before any of its frames.
    pub last: Seq,
    /// Whose log it is.
    pub origin: Origin,
    /// Everything the log ever held before it, per channel.
    pub before: ChannelLoads,
}

/// Why no header was read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Neither copy has a good checksum.
    #[error("both copies of its header are damaged")]
    Damaged,
    /// A good header of a format that this version does not know.
    #[error(
        "its format is version {0}; this replicon reads version {VERSION}: start the newer one"
    )]
    Version(u16),
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Header {
    /// All events before it.
    #[must_use]
    pub fn total(&self) -> Load {
        self.before.values().fold(Load::default(), |sum, load| sum.plus(*load))
    }

    /// The salt of its frames.
    #[must_use]
    pub fn salt(&self) -> Salt {
        Salt::of(&self.id)
    }

    /// Both copies, as they stand at the beginning of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(2 * BLOCK);
        b.extend_from_slice(&MAGIC);
        b.extend_from_slice(&[0; 8]);
        b.extend_from_slice(&VERSION.to_le_bytes());
        b.extend_from_slice(&[self.kind as u8, 0]);
        b.extend_from_slice(&[0; 4]);
        b.extend_from_slice(&self.id);
        b.extend_from_slice(&self.begun.to_le_bytes());
        let total = self.total();
        b.extend_from_slice(&total.events.to_le_bytes());
        b.extend_from_slice(&total.bytes.to_le_bytes());
        let (begun, end) = self.previous.unwrap_or_default();
        b.push(u8::from(self.previous.is_some()));
        b.extend_from_slice(&begun.to_le_bytes());
        b.extend_from_slice(&end.to_le_bytes());
        b.extend_from_slice(&self.last.0.to_le_bytes());
        put_name(&mut b, self.origin.as_str());
        b.extend_from_slice(&u32::try_from(self.before.len()).unwrap_or(0).to_le_bytes());
        for (channel, load) in &self.before {
            put_name(&mut b, channel.as_ref().map_or("", Name::as_str));
            b.extend_from_slice(&load.events.to_le_bytes());
            b.extend_from_slice(&load.bytes.to_le_bytes());
        }
        let block = b.len().div_ceil(BLOCK) * BLOCK;
        let length = u32::try_from(b.len()).unwrap_or(0);
        b[12..16].copy_from_slice(&length.to_le_bytes());
        b[20..24].copy_from_slice(&u32::try_from(block).unwrap_or(0).to_le_bytes());
        let crc = crc32c::crc32c(&b[12..]);
        b[8..12].copy_from_slice(&crc.to_le_bytes());
        b.resize(block, 0);
        b.extend_from_within(..);
        b
    }

    /// Reads either copy; the offset of the first frame comes with it.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn read(file: &dyn DiskFile) -> Result<(Self, u64), HeaderError> {
        let mut bytes = vec![0; MAX_BLOCK + BLOCK];
        let first = read_full(file, &mut bytes[..2 * BLOCK], 0)?;
        if let Some(found) = Self::decode(&bytes[..first])? {
            return Ok(found);
        }
        let n = read_full(file, &mut bytes, 0)?;
        for at in (0..n).step_by(BLOCK) {
            if let Some(found) = Self::decode(&bytes[at..n])? {
                return Ok(found);
            }
        }
        Err(HeaderError::Damaged)
    }

    fn decode(b: &[u8]) -> Result<Option<(Self, u64)>, HeaderError> {
        if b.len() < 28 || b[..8] != MAGIC {
            return Ok(None);
        }
        let length = u32_at(b, 12) as usize;
        if length < 28 || length > b.len() || crc32c::crc32c(&b[12..length]) != u32_at(b, 8) {
            return Ok(None);
        }
        let version = u16::from_le_bytes([b[16], b[17]]);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        Ok(Self::decode_fields(&b[..length]))
    }

    fn decode_fields(b: &[u8]) -> Option<(Self, u64)> {
        let kind = match b[18] {
            1 => LogKind::Queue,
            2 => LogKind::Dead,
            3 => LogKind::Parked,
            _ => return None,
        };
        let block = u64::from(u32_at(b, 20));
        let mut rest = b.get(24..)?;
        let id = <[u8; 16]>::try_from(take(&mut rest, 16)?).ok()?;
        let begun = u64_at(take(&mut rest, 8)?, 0);
        take(&mut rest, 16)?;
        let present = take(&mut rest, 1)?[0] == 1;
        let previous = (u64_at(take(&mut rest, 8)?, 0), u64_at(take(&mut rest, 8)?, 0));
        let last = Seq(u64_at(take(&mut rest, 8)?, 0));
        let origin = Name::new(take_name(&mut rest)?).ok()?;
        let channels = u32_at(take(&mut rest, 4)?, 0);
        let mut before = ChannelLoads::new();
        for _ in 0..channels {
            let name = take_name(&mut rest)?;
            let name = if name.is_empty() { None } else { Some(Name::new(name).ok()?) };
            let counts = take(&mut rest, 16)?;
            before.insert(name, Load { events: u64_at(counts, 0), bytes: u64_at(counts, 8) });
        }
        let previous = present.then_some(previous);
        Some((Self { kind, id, begun, previous, last, origin, before }, 2 * block))
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name.as_bytes());
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(n)?;
    *rest = tail;
    Some(head)
}

fn take_name<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let len = usize::from(take(rest, 1)?[0]);
    std::str::from_utf8(take(rest, len)?).ok()
}

/// The path of a segment.
#[must_use]
pub fn path_of(base: &Path, begun: u64) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(format!(".{begun:020}"));
    name.into()
}

/// The segment that a file name stands for, if it is one of the log at `base`.
#[must_use]
pub fn begun_of(base: &Path, name: &str) -> Option<u64> {
    let digits = name.strip_prefix(base.file_name()?.to_str()?)?.strip_prefix('.')?;
    (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// What stands next in a segment.
#[derive(Debug)]
pub enum Step {
    /// A whole frame at this offset.
    Frame(u64, Head, Bytes),
    /// Bytes from here to there that are no frame; a frame or the end follows.
    Hole(u64, u64),
    /// Nothing more before the end.
    End,
}

/// Frames of one segment, in order, up to an end that may move.
pub struct Frames {
    file: Arc<dyn DiskFile>,
    salt: Salt,
    /// Offset of what is read next.
    pub at: u64,
    chunk: Bytes,
    chunk_at: u64,
}

impl Frames {
    /// Reads from `at` on.
    #[must_use]
    pub fn new(file: Arc<dyn DiskFile>, salt: Salt, at: u64) -> Self {
        Self { file, salt, at, chunk: Bytes::new(), chunk_at: at }
    }

    /// The next frame or hole before `end`.
    ///
    /// # Errors
    /// What the disk says; the position is unchanged then.
    pub fn next(&mut self, end: u64) -> io::Result<Step> {
        if self.at >= end {
            return Ok(Step::End);
        }
        let at = self.at;
        if let Some((head, payload)) = self.frame_at(at, end)? {
            self.at += head.frame_len();
            return Ok(Step::Frame(at, head, payload));
        }
        let mut probe = at + 1;
        loop {
            probe = self.find_magic(probe, end)?;
            if probe >= end || self.frame_at(probe, end)?.is_some() {
                self.at = probe;
                return Ok(Step::Hole(at, probe));
            }
            probe += 1;
        }
    }

    fn frame_at(&mut self, at: u64, end: u64) -> io::Result<Option<(Head, Bytes)>> {
        let header = self.window(at, FRAME_HEADER as u64, end)?;
        let Some(head) = Head::decode(&header, self.salt) else {
            return Ok(None);
        };
        let whole = self.window(at, head.frame_len(), end)?;
        if (whole.len() as u64) < head.frame_len() {
            return Ok(None);
        }
        let payload = whole.slice(FRAME_HEADER..);
        Ok((crc32c::crc32c(&payload) == head.payload_crc).then_some((head, payload)))
    }

    /// The first offset from `from` on at which a frame's magic stands, or `end`.
    fn find_magic(&mut self, mut from: u64, end: u64) -> io::Result<u64> {
        while from < end {
            let window = self.window(from, CHUNK.min(end - from), end)?;
            if window.is_empty() {
                break;
            }
            if let Some(i) = window.windows(4).position(|four| four == FRAME_MAGIC) {
                return Ok(from + i as u64);
            }
            from += (window.len() as u64).saturating_sub(3).max(1);
        }
        Ok(end)
    }

    /// `len` bytes at `at`, or as many as there are before `end`.
    fn window(&mut self, at: u64, len: u64, end: u64) -> io::Result<Bytes> {
        let len = len.min(end.saturating_sub(at));
        let have = self.chunk_at + self.chunk.len() as u64;
        if at < self.chunk_at || at + len > have {
            let want = CHUNK.max(len).min(end - at);
            let mut bytes = vec![0; usize::try_from(want).unwrap_or(0)];
            let n = read_full(&*self.file, &mut bytes, at)?;
            bytes.truncate(n);
            self.chunk = bytes.into();
            self.chunk_at = at;
        }
        let from = usize::try_from(at - self.chunk_at).unwrap_or(0).min(self.chunk.len());
        let to = (from + usize::try_from(len).unwrap_or(0)).min(self.chunk.len());
        Ok(self.chunk.slice(from..to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsx::{Disk, sim::SimDisk};

    fn header() -> Header {
        let mut before = ChannelLoads::new();
        before.insert(None, Load { events: 1, bytes: 2 });
        before.insert(Some(Name::new("a").unwrap()), Load { events: 3, bytes: 4 });
        Header {
            kind: LogKind::Queue,
            id: *b"0123456789abcdef",
            begun: 42,
            previous: Some((7, 9000)),
            last: Seq(41),
            origin: Name::new("dc1").unwrap(),
            before,
        }
    }

    fn read(bytes: &[u8]) -> Result<(Header, u64), HeaderError> {
        let file = SimDisk::new().create(Path::new("/s")).unwrap();
        file.write_at(bytes, 0).unwrap();
        Header::read(&*file)
    }

    #[test]
    fn a_header_outlives_the_damage_of_either_copy() {
        let bytes = header().encode();
        assert_eq!(bytes.len(), 8192);
        for bit in (0..200 * 8).chain(4096 * 8..4296 * 8) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bad).unwrap(), (header(), 8192), "bit {bit}");
        }
    }

    #[test]
    fn a_header_larger_than_a_block_is_found_by_its_second_copy() {
        let mut big = header();
        for i in 0..500 {
            big.before.insert(Some(Name::new(&format!("channel-{i}")).unwrap()), Load::default());
        }
        let mut bytes = big.encode();
        let frames = bytes.len() as u64;
        bytes[..100].fill(0);
        assert_eq!(read(&bytes).unwrap(), (big, frames));
    }

    #[test]
    fn a_damaged_version_is_damage_and_a_newer_one_is_named() {
        let mut bytes = header().encode();
        bytes[16] = 9;
        bytes[4096 + 16] = 9;
        assert!(matches!(read(&bytes), Err(HeaderError::Damaged)));
        for copy in [0, 4096] {
            let length = u32_at(&bytes, copy + 12) as usize;
            let crc = crc32c::crc32c(&bytes[copy + 12..copy + length]);
            bytes[copy + 8..copy + 12].copy_from_slice(&crc.to_le_bytes());
        }
        assert!(matches!(read(&bytes), Err(HeaderError::Version(9))));
    }

    #[test]
    fn names_are_told_from_strangers() {
        let base = Path::new("/q/ingest.log");
        assert_eq!(path_of(base, 5), Path::new("/q/ingest.log.00000000000000000005"));
        let cases = [
            ("ingest.log.00000000000000000005", Some(5)),
            ("ingest.log", None),
            ("ingest.log.5", None),
            ("ingest.log.0000000000000000000x", None),
            ("ingest.log.dead.00000000000000000005", None),
            ("other.log.00000000000000000005", None),
        ];
        for (name, begun) in cases {
            assert_eq!(begun_of(base, name), begun, "{name}");
        }
    }
}
