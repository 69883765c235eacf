//! Parked channels: a channel that its storage refuses waits in a log of its own, so that it holds up
//! no other.
//!
//! Its events are copied in order and with their identities, synced, and only then released from the
//! main log; what comes after follows until the channel has drained. When a seq stands here, every
//! older one of its channel stands here too, or is resolved: so a redelivery at or below the last seq
//! needs no second copy. Does not know storage, nor who decides that a channel is stuck.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ack::{ParkedRecord, Position, Tracker};
use super::log::{Frame, Index, Log, LogOptions};
use super::open::OpenError;
use super::reader::{Reader, Reading};
use super::record::{Body, cost};
use super::recovery::Damage;
use super::restore::restore;
use super::segment::{ChannelLoads, DIGITS, LogKind, begun_of};
use crate::event::{Batch, ChannelName, Event, Micros, Name, Seq};
use crate::fsx::{Disk, parent};
use crate::queue::LeaseLimit;
use crate::queue::accounts::Load;

/// The log of one parked channel.
pub(super) struct ParkedLog {
    pub base: PathBuf,
    log: Log,
    pub index: Arc<Index>,
    reader: Reader,
    pub tracker: Tracker,
    /// The last seq that stands in it.
    last: Seq,
    /// What a start must make durable before anything else: frames found behind the last witness,
    /// and a header that counts what is lost.
    unsettled: Option<(Seq, Vec<Frame>)>,
    /// When the oldest event in it was accepted, as of the last look.
    pub oldest: Option<Micros>,
}

/// What a start found of a parked channel.
pub(super) struct Found {
    pub channel: ChannelName,
    pub log: ParkedLog,
    pub unreleased: ChannelLoads,
    pub damage: Vec<Damage>,
    pub used: u64,
}

/// The base path of a parked channel's log; `main` is that of the main log.
pub(super) fn base_of(main: &Path, channel: &ChannelName) -> PathBuf {
    let mut name = main.as_os_str().to_owned();
    name.push(format!(".parked.{channel}"));
    name.into()
}

/// The channels that have a parked log beside `main`.
pub(super) fn channels(disk: &dyn Disk, main: &Path) -> io::Result<Vec<ChannelName>> {
    let mut found: Vec<ChannelName> = Vec::new();
    for name in disk.list(parent(main))? {
        let stem = name.strip_suffix(".new").unwrap_or(&name);
        let channel = stem.len().checked_sub(DIGITS + 1).and_then(|at| stem.get(..at));
        let prefix = main.file_name().and_then(|n| n.to_str()).map(|n| format!("{n}.parked."));
        let channel = channel.and_then(|c| c.strip_prefix(prefix.as_deref()?));
        let Some(Ok(channel)) = channel.map(Name::new) else { continue };
        if begun_of(&base_of(main, &channel), stem).is_some() && !found.contains(&channel) {
            found.push(channel);
        }
    }
    found.sort_unstable();
    Ok(found)
}

impl ParkedLog {
    /// A log for a channel that has none.
    pub fn new(main: &LogOptions, channel: &ChannelName) -> Self {
        let options = options_of(main, channel);
        let index = Arc::new(Index::default());
        let reader = Reader::new(options.disk.clone(), options.base.clone(), index.clone(), None);
        let (totals, last) = (ChannelLoads::new(), Seq(0));
        Self {
            base: options.base.clone(),
            log: Log::new(options, index.clone(), None, totals.clone(), last),
            index,
            reader,
            tracker: Tracker::new(last, totals),
            last,
            unsettled: None,
            oldest: None,
        }
    }

    /// The log that an earlier run left; `None` where nothing of it stands.
    ///
    /// # Errors
    /// As for the main log.
    pub fn find(
        main: &LogOptions,
        channel: ChannelName,
        record: Option<&ParkedRecord>,
    ) -> Result<Found, OpenError> {
        let options = options_of(main, &channel);
        let (position, witness) = (record.map(|r| &r.position), record.map(|r| r.witness));
        let mut restored = restore(options.clone(), position, witness)?;
        let (used, unreleased) = (restored.used(), restored.unreleased());
        let last = restored.end.last.max(restored.end.reached);
        let carried = std::mem::take(&mut restored.end.carried);
        let begin = !carried.is_empty() || !restored.damage.is_empty();
        let mut log = Self {
            base: options.base,
            log: restored.log(),
            index: restored.index.clone(),
            reader: restored.reader(),
            tracker: restored.tracker(),
            last,
            unsettled: begin.then_some((Seq(used), carried)),
            oldest: None,
        };
        // on a full disk it is tried again by whoever reads or copies next
        if let Err(e) = log.settle() {
            tracing::error!(%channel, "no new segment for parked channel {channel} yet: {e}");
        }
        Ok(Found { channel, log, unreleased, damage: restored.damage, used })
    }

    fn settle(&mut self) -> io::Result<()> {
        if let Some((next, carried)) = &mut self.unsettled {
            // where that fails the log keeps them for the next try
            self.log.begin(*next, std::mem::take(carried))?;
            self.unsettled = None;
        }
        Ok(())
    }

    /// Copies events, synced when this returns. Those that stand here already are passed over; what
    /// they count comes back.
    ///
    /// # Errors
    /// What the disk says; nothing is copied then.
    pub fn copy(&mut self, events: &[Event]) -> io::Result<Load> {
        self.settle()?;
        let known = events.partition_point(|e| e.seq <= self.last);
        let again = load_of(&events[..known]);
        let fresh = &events[known..];
        let (Some(first), Some(last)) = (fresh.first(), fresh.last()) else { return Ok(again) };
        if !self.log.is_open() {
            self.log.begin(first.seq, Vec::new())?;
        }
        let written = self.log.write(frames_of(fresh)).and_then(|()| self.log.sync());
        if let Err(e) = written {
            // they stay in the main log: they must not come back with this one's next segment
            self.log.forget_unsynced();
            return Err(e);
        }
        self.last = last.seq;
        self.log.show();
        if let Err(e) = self.log.rotate_if_long(last.seq.next()) {
            tracing::warn!("no new segment for a parked channel yet: {e}");
        }
        Ok(again)
    }

    /// Reads on.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(&mut self, limit: LeaseLimit) -> io::Result<Reading> {
        self.settle()?;
        self.reader.read(limit)
    }

    /// Looks when the oldest waiting event was accepted.
    pub fn look(&mut self) {
        let next = || self.reader.peek().ok().flatten().map(|(_, at)| at);
        self.oldest = self.tracker.oldest().or_else(next);
    }

    /// The last seq that stands in it.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Nothing below it is delivered again.
    pub fn first_unacked(&self) -> Seq {
        self.tracker.released().next()
    }

    /// Its part of the ack record, where it changed since `before`.
    pub fn record(&mut self, before: Option<&ParkedRecord>) -> ParkedRecord {
        let witness = self.log.witness();
        let position = self.tracker.take_change();
        let position = position.or_else(|| before.map(|b| b.position.clone()));
        ParkedRecord {
            oldest: self.tracker.oldest_segment(),
            position: position.unwrap_or_else(|| Position::of(Seq(0), &ChannelLoads::new())),
            witness: (witness.0.0, witness.1),
        }
    }

    /// Bears witness that all of it is synced.
    pub fn seal(&mut self) -> io::Result<()> {
        if self.log.is_open() { self.log.seal() } else { Ok(()) }
    }
}

fn options_of(main: &LogOptions, channel: &ChannelName) -> LogOptions {
    LogOptions { base: base_of(&main.base, channel), kind: LogKind::Parked, ..main.clone() }
}

/// What events count against the ceilings.
pub(super) fn load_of(events: &[Event]) -> Load {
    let one = |e: &Event| Load { events: 1, bytes: cost(e.payload.len()) };
    events.iter().map(one).fold(Load::default(), Load::plus)
}

/// A frame for each run of events that one frame can hold.
fn frames_of(events: &[Event]) -> Vec<Frame> {
    let together = |a: &Event, b: &Event| {
        a.seq.next() == b.seq && (a.received_at, a.mode) == (b.received_at, b.mode)
    };
    let frame = |run: &[Event]| {
        let batch = Batch {
            channel: run[0].channel.clone(),
            mode: run[0].mode,
            received_at: run[0].received_at,
            payloads: run.iter().map(|e| e.payload.clone()).collect(),
        };
        let counts = Some((batch.channel.clone(), load_of(run)));
        Frame { first: run[0].seq, body: Body::events(&batch), counts }
    };
    events.chunk_by(together).map(frame).collect()
}
