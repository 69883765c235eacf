//! Writing a log: groups of frames into segments, synced; a failed segment is closed for good.
//!
//! One owner, strictly serial. Does not know who waits for an answer, nor who reads.
//!
//! After any failed write or sync the segment is never touched again (I15): the log is *broken*
//! until a new segment, whose header names the old one's last synced offset as its end, stands
//! durably. Only then is what was written behind that end void.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::SecureRandom;

use super::record::{Body, Head};
use super::segment::{ChannelLoads, Header, LogKind, path_of};
use crate::event::{ChannelName, Origin, Seq};
use crate::fsx::{Disk, DiskFile, durable_rename, parent};
use crate::queue::accounts::Load;

/// What stays the same for a log's life.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The disk it is on.
    pub disk: Arc<dyn Disk>,
    /// Path of its segments, without the digits.
    pub base: PathBuf,
    /// What it holds.
    pub kind: LogKind,
    /// Whose it is.
    pub origin: Origin,
    /// A segment longer than this is followed by another.
    pub segment_bytes: u64,
}

/// A frame about to be written: its seq is already given.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Seq of its first event.
    pub first: Seq,
    /// Its payload.
    pub body: Body,
    /// Whose events they are; `None` for frames that count nothing.
    pub counts: Option<(ChannelName, Load)>,
}

/// One segment as readers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEnd {
    /// Its name.
    pub begun: u64,
    /// Up to where it may be read.
    pub end: u64,
    /// Whether `end` is final.
    pub closed: bool,
}

/// The segments and how far each is synced, shared with readers; oldest first.
#[derive(Debug, Default)]
pub struct Index(Mutex<Vec<SegmentEnd>>);

impl Index {
    fn lock(&self) -> MutexGuard<'_, Vec<SegmentEnd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment found at start.
    pub fn push(&self, segment: SegmentEnd) {
        self.lock().push(segment);
    }

    /// The segment of that name.
    #[must_use]
    pub fn get(&self, begun: u64) -> Option<SegmentEnd> {
        self.lock().iter().find(|s| s.begun == begun).copied()
    }

    /// The last segment begun at or before this seq; the oldest where there is none.
    #[must_use]
    pub fn last_begun_by(&self, seq: u64) -> Option<SegmentEnd> {
        let all = self.lock();
        all.iter().rfind(|s| s.begun <= seq).or_else(|| all.first()).copied()
    }

    /// The first segment that may hold anything above that seq.
    #[must_use]
    pub fn holding_above(&self, seq: Seq) -> u64 {
        self.last_begun_by(seq.next().0).map_or(0, |s| s.begun)
    }

    /// The first segment after that name.
    #[must_use]
    pub fn after(&self, begun: Option<u64>) -> Option<SegmentEnd> {
        self.lock().iter().find(|s| begun.is_none_or(|b| s.begun > b)).copied()
    }

    /// Forgets the segments before `begun`; their names.
    pub fn drop_before(&self, begun: u64) -> Vec<u64> {
        let mut all = self.lock();
        let gone = all.iter().map(|s| s.begun).filter(|b| *b < begun).collect();
        all.retain(|s| s.begun >= begun);
        gone
    }

    /// The oldest segment.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.lock().first().map(|s| s.begun)
    }

    fn close_last(&self) {
        if let Some(last) = self.lock().last_mut() {
            last.closed = true;
        }
    }

    fn synced(&self, end: u64) {
        if let Some(last) = self.lock().last_mut() {
            last.end = end;
        }
    }
}

struct Active {
    file: Box<dyn DiskFile>,
    header: Header,
    len: u64,
    synced: u64,
}

/// A log being written.
pub struct Log {
    options: LogOptions,
    index: Arc<Index>,
    active: Option<Active>,
    /// The segment that the next header must name, and its end.
    previous: Option<(u64, u64)>,
    /// Everything synced so far, per channel.
    totals: ChannelLoads,
    running: u64,
    last: Seq,
    /// Written and not yet synced (mode `interval` alone leaves any).
    unsynced: Vec<Frame>,
    sealed: bool,
    /// Name of a segment whose making failed half-way: it may stand, so the next try replaces it.
    half_made: Option<u64>,
    buffer: Vec<u8>,
}

impl Log {
    /// A log that goes on after `previous`, with these counts; it has no segment yet.
    #[must_use]
    pub fn new(
        options: LogOptions,
        index: Arc<Index>,
        previous: Option<(u64, u64)>,
        totals: ChannelLoads,
        last: Seq,
    ) -> Self {
        let running = totals.values().map(|l| l.events).sum();
        Self {
            options,
            index,
            active: None,
            previous,
            totals,
            running,
            last,
            unsynced: Vec::new(),
            sealed: true,
            half_made: None,
            buffer: Vec::new(),
        }
    }

    /// Whether a segment is open for writing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.active.is_some()
    }

    /// The last synced seq, and how many events the log ever held up to it: what slots bear witness
    /// to.
    #[must_use]
    pub fn witness(&self) -> (Seq, u64) {
        (self.last, self.totals.values().map(|l| l.events).sum())
    }

    /// Begins a segment that holds `carried` from the start, durable under its name when this
    /// returns. `next` is the first seq free.
    ///
    /// # Errors
    /// What the disk says; the log is then as before, without a segment.
    pub fn begin(&mut self, next: Seq, carried: Vec<Frame>) -> io::Result<()> {
        let mut carried = carried;
        carried.splice(0..0, std::mem::take(&mut self.unsynced));
        let begun = next.0.max(self.previous.map_or(0, |(begun, _)| begun + 1));
        let begun = *self.half_made.get_or_insert(begun);
        let result = self.try_begin(begun, &carried);
        match result {
            Ok(active) => {
                self.half_made = None;
                self.count(&carried);
                let end = active.synced;
                self.active = Some(active);
                self.index.push(SegmentEnd { begun, end, closed: false });
                Ok(())
            }
            Err(e) => {
                self.unsynced = carried;
                Err(e)
            }
        }
    }

    fn try_begin(&mut self, begun: u64, carried: &[Frame]) -> io::Result<Active> {
        let mut id = [0; 16];
        ring::rand::SystemRandom::new()
            .fill(&mut id)
            .map_err(|_| io::Error::other("the system gives no random bytes"))?;
        let header = Header {
            kind: self.options.kind,
            id,
            begun,
            previous: self.previous,
            last: if carried.is_empty() { Seq(begun.saturating_sub(1)) } else { self.last },
            origin: self.options.origin.clone(),
            before: self.totals.clone(),
        };
        let mut bytes = header.encode();
        let start = bytes.len() as u64;
        encode_frames(&mut bytes, carried, &header, self.running, start);
        let path = path_of(&self.options.base, begun);
        let mut new = path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let disk = &*self.options.disk;
        if disk.exists(&new) {
            disk.remove(&new)?;
        }
        let file = disk.create(&new)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        durable_rename(disk, &new, &path)?;
        let len = bytes.len() as u64;
        Ok(Active { file, header, len, synced: len })
    }

    /// Writes frames behind what is there, without syncing.
    ///
    /// # Errors
    /// What the disk says. The segment is then closed at its last synced offset and the log has
    /// none: what was written is in doubt until [`Log::begin`] succeeds.
    pub fn write(&mut self, frames: Vec<Frame>) -> io::Result<()> {
        let pending: u64 = self.unsynced.iter().map(|f| u64::from(f.body.count)).sum();
        let Some(active) = &mut self.active else {
            return Err(io::Error::other("the log has no open segment"));
        };
        self.buffer.clear();
        let (running, synced) = (self.running + pending, active.synced);
        encode_frames(&mut self.buffer, &frames, &active.header, running, synced);
        if let Err(e) = active.file.write_at(&self.buffer, active.len) {
            self.close_active();
            return Err(e);
        }
        active.len += self.buffer.len() as u64;
        self.unsynced.extend(frames);
        Ok(())
    }

    /// Makes durable what was written. Readers see it after [`Log::show`]: whoever counts must have
    /// counted before anybody can take an event out again.
    ///
    /// # Errors
    /// As [`Log::write`]; a failed sync is never asked for again.
    pub fn sync(&mut self) -> io::Result<()> {
        let Some(active) = &mut self.active else {
            return Err(io::Error::other("the log has no open segment"));
        };
        if active.len == active.synced {
            return Ok(());
        }
        if let Err(e) = active.file.sync() {
            self.close_active();
            return Err(e);
        }
        active.synced = active.len;
        let synced = std::mem::take(&mut self.unsynced);
        self.count(&synced);
        Ok(())
    }

    /// Shows readers what is synced.
    pub fn show(&self) {
        if let Some(active) = &self.active {
            self.index.synced(active.synced);
        }
    }

    /// Frames written and not synced, newest last, are taken out of the log's care: in mode `ack`
    /// nobody was told of them.
    pub fn forget_unsynced(&mut self) {
        self.unsynced.clear();
    }

    fn close_active(&mut self) {
        if let Some(active) = self.active.take() {
            self.previous = Some((active.header.begun, active.synced));
            self.index.synced(active.synced);
            self.index.close_last();
        }
    }

    fn count(&mut self, frames: &[Frame]) {
        for frame in frames {
            if frame.body.count > 0 {
                self.last = Seq(frame.first.0 + u64::from(frame.body.count) - 1);
            }
            self.running += u64::from(frame.body.count);
            if let Some((channel, load)) = &frame.counts {
                let total = self.totals.entry(Some(channel.clone())).or_default();
                *total = total.plus(*load);
                self.sealed = false;
            }
        }
    }

    /// Closes a segment that has reached its size and begins the next; does nothing below it.
    ///
    /// # Errors
    /// As [`Log::begin`].
    pub fn rotate_if_long(&mut self, next: Seq) -> io::Result<()> {
        let most = self.options.segment_bytes;
        match &self.active {
            Some(active) if active.len >= most && active.len == active.synced => {
                self.start_over(next)
            }
            _ => Ok(()),
        }
    }

    /// Begins a new segment, whatever the length of the one before.
    ///
    /// # Errors
    /// As [`Log::begin`].
    pub fn start_over(&mut self, next: Seq) -> io::Result<()> {
        self.close_active();
        self.begin(next, Vec::new())
    }

    /// Bears witness that everything written is synced; once after each stretch of writing.
    ///
    /// # Errors
    /// As [`Log::write`].
    pub fn seal(&mut self) -> io::Result<()> {
        self.sync()?;
        if self.sealed {
            return Ok(());
        }
        let frame = Frame { first: self.last, body: Body::seal(), counts: None };
        self.write(vec![frame])?;
        self.sync()?;
        self.sealed = true;
        Ok(())
    }

    /// The directory that the log lies in.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        parent(&self.options.base)
    }
}

fn encode_frames(out: &mut Vec<u8>, frames: &[Frame], header: &Header, running: u64, synced: u64) {
    let salt = header.salt();
    let mut running = running;
    for frame in frames {
        let head = Head {
            kind: frame.body.kind,
            payload_len: u32::try_from(frame.body.bytes.len()).unwrap_or(u32::MAX),
            count: frame.body.count,
            first: frame.first,
            running,
            synced_to: synced,
            payload_crc: frame.body.crc,
        };
        head.encode(salt, out);
        out.extend_from_slice(&frame.body.bytes);
        running += u64::from(frame.body.count);
    }
}
