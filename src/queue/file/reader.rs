//! Reading the log in order, from what was released on: events for leases, and what is missing.
//!
//! Does not know who leases, nor the ack record. Reads only what is synced.
//!
//! Each segment's header says what the log held before it, per channel; whatever the reader has not
//! seen of that by the time it gets there is lost, exactly.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::log::Index;
use super::record::{EventsFrame, Head, Kind, Names, cost};
use super::recovery::Damage;
use super::segment::{ChannelLoads, Frames, Header, HeaderError, Step, missing_from, path_of};
use crate::event::{Event, Micros, Seq};
use crate::fsx::{Disk, DiskFile};
use crate::queue::LeaseLimit;
use crate::queue::accounts::Load;

struct Current {
    begun: u64,
    frames: Frames,
    running: u64,
    /// Seq before a stretch that could not be read.
    hole: Option<Seq>,
}

/// What one reading brought.
#[derive(Default)]
pub struct Reading {
    /// In rising order.
    pub events: Vec<Event>,
    /// What they count, per channel.
    pub loads: ChannelLoads,
    /// The last seq read; it stays when the event itself is taken elsewhere.
    pub through: Option<Seq>,
    /// The segment of the first of them.
    pub first_segment: u64,
    /// The segment that is read now.
    pub segment: u64,
    /// Lost events found on the way, before `events`: per channel.
    pub lost: ChannelLoads,
    /// The last seq seen when the loss was: the tracker goes no further.
    pub lost_before: Seq,
    /// The same for people.
    pub damage: Vec<Damage>,
}

/// The reader of a log; there is one.
pub struct Reader {
    disk: Arc<dyn Disk>,
    base: PathBuf,
    index: Arc<Index>,
    current: Option<Current>,
    open: Option<EventsFrame>,
    names: Names,
    /// Events at or below it were released before this process.
    skip_to: Seq,
    last: Seq,
    /// Everything accounted for up to here; `None` before the first header where nobody knows.
    seen: Option<ChannelLoads>,
    /// The last segment passed or found unreadable.
    passed: Option<u64>,
    /// What a look ahead came upon; part of the next reading.
    kept: Reading,
}

impl Reader {
    /// Starts at the oldest segment of `index`. `released` is what the ack record knows: the seq, and
    /// what was released up to it.
    #[must_use]
    pub fn new(
        disk: Arc<dyn Disk>,
        base: PathBuf,
        index: Arc<Index>,
        released: Option<(Seq, ChannelLoads)>,
    ) -> Self {
        let (skip_to, seen) = match released {
            Some((seq, loads)) => (seq, Some(loads)),
            None => (Seq(0), None),
        };
        Self {
            disk,
            base,
            index,
            current: None,
            open: None,
            names: Names::default(),
            skip_to,
            last: skip_to,
            seen,
            passed: None,
            kept: Reading::default(),
        }
    }

    /// Seq of the next event and when it was accepted, if it stands ready.
    ///
    /// # Errors
    /// What the disk says.
    pub fn peek(&mut self) -> io::Result<Option<(Seq, Micros)>> {
        if self.open.is_none() {
            // a frame is opened, not consumed: the next reading begins with it
            let mut reading = std::mem::take(&mut self.kept);
            let result = self.advance(&mut reading);
            self.kept = reading;
            result?;
        }
        let next = |frame: &EventsFrame| frame.next_seq().max(self.skip_to.next());
        Ok(self.open.as_ref().map(|frame| (next(frame), frame.received_at)))
    }

    /// Reads up to `limit`; an empty reading means that there is nothing more for now.
    ///
    /// # Errors
    /// What the disk says, with nothing taken; asked again, the reader goes on where it was.
    pub fn read(&mut self, limit: LeaseLimit) -> io::Result<Reading> {
        let mut reading = std::mem::take(&mut self.kept);
        let mut bytes = reading.events.iter().map(|event| event.payload.len()).sum();
        loop {
            if self.open.is_none() {
                match self.advance(&mut reading) {
                    Ok(true) => {}
                    Ok(false) => return Ok(reading),
                    // what is in hand was taken out of the log's order: it must go on its way
                    Err(_) if reading.through.is_some() => return Ok(reading),
                    Err(e) => {
                        self.kept = reading;
                        return Err(e);
                    }
                }
            }
            if self.take_events(limit, &mut bytes, &mut reading) {
                return Ok(reading);
            }
        }
    }

    /// The last seq that was handed on, or released before this process. What was only looked at, or
    /// given back, is still to come.
    #[must_use]
    pub fn passed(&self) -> Seq {
        let kept = self.kept.events.first().map(|event| event.seq);
        let open = self.open.as_ref().map(EventsFrame::next_seq);
        kept.or(open).map_or(self.last, |next| Seq(next.0.saturating_sub(1)))
    }

    /// Takes back what could not be dealt with: the next reading begins with it.
    pub fn give_back(&mut self, reading: Reading) {
        self.kept = reading;
    }

    /// Takes events out of the open frame; whether the limit was reached.
    fn take_events(&mut self, limit: LeaseLimit, bytes: &mut usize, reading: &mut Reading) -> bool {
        let Some(frame) = &mut self.open else { return false };
        let load = reading.loads.entry(Some(frame.channel.clone())).or_default();
        while let Some(len) = frame.next_len() {
            let full = reading.events.len() >= limit.events || *bytes + len > limit.bytes;
            if full && !reading.events.is_empty() {
                return true;
            }
            let Some(event) = frame.next() else { break };
            if event.seq <= self.skip_to {
                continue;
            }
            if reading.through.is_none() {
                reading.first_segment = reading.segment;
            }
            reading.through = Some(event.seq);
            *bytes += len;
            *load = load.plus(Load { events: 1, bytes: cost(len) });
            reading.events.push(event);
        }
        self.open = None;
        false
    }

    /// Opens the next frame; `false` where there is none.
    fn advance(&mut self, reading: &mut Reading) -> io::Result<bool> {
        loop {
            if self.current.is_none() && !self.enter(reading)? {
                return Ok(false);
            }
            let Some(current) = &mut self.current else { continue };
            let Some(place) = self.index.get(current.begun) else {
                self.current = None;
                continue;
            };
            reading.segment = current.begun;
            match current.frames.next(place.end)? {
                Step::Frame(_, head, payload) => {
                    if self.opened(&head, payload, reading) {
                        return Ok(true);
                    }
                }
                Step::Hole(..) => {
                    current.hole.get_or_insert(self.last);
                }
                Step::End if place.closed => {
                    if !self.enter(reading)? {
                        return Ok(false);
                    }
                }
                Step::End => return Ok(false),
            }
        }
    }

    /// Takes a whole frame in; whether it holds events that are to be delivered. What is at or below
    /// the released seq was accounted for when it was released, readable today or not.
    fn opened(&mut self, head: &Head, payload: bytes::Bytes, reading: &mut Reading) -> bool {
        let Some(current) = &mut self.current else { return false };
        let released = head.last() <= self.skip_to;
        if let Some(before) = current.hole.take()
            && !released
        {
            let events = head.running.saturating_sub(current.running);
            let to = head.first.0.saturating_sub(u64::from(head.count > 0));
            push_damage(reading, current.begun, before, to, events);
        }
        current.running = head.running + u64::from(head.count);
        if head.kind != Kind::Events {
            return false;
        }
        self.last = self.last.max(head.last());
        if released {
            return false;
        }
        let Some(frame) = EventsFrame::open(head, payload, &mut self.names) else { return false };
        if let Some(seen) = &mut self.seen {
            let total = seen.entry(Some(frame.channel.clone())).or_default();
            *total = total.plus(frame.load_above(self.skip_to));
        }
        self.open = Some(frame);
        true
    }

    /// Goes to the segment after the current one; `false` where there is none yet.
    fn enter(&mut self, reading: &mut Reading) -> io::Result<bool> {
        let after = self.current.as_ref().map(|c| c.begun).or(self.passed);
        let Some(next) = self.index.after(after) else {
            return Ok(false);
        };
        let opened = match self.disk.open(&path_of(&self.base, next.begun)) {
            // taken away under a running node: what it held shows as missing, too
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(HeaderError::Damaged),
            Err(e) => return Err(e),
            Ok(file) => Ok(Arc::<dyn DiskFile>::from(file)),
        };
        let found = opened.and_then(|file| Header::read(&*file).map(|found| (file, found)));
        let (file, (header, start)) = match found {
            Ok(found) => found,
            Err(HeaderError::Io(e)) => return Err(e),
            Err(e) => {
                // what it held shows as missing when the next header is read
                tracing::error!(
                    segment = next.begun,
                    "segment {:020} cannot be read: {e}",
                    next.begun
                );
                self.passed = Some(next.begun);
                self.current = None;
                return Ok(self.index.after(self.passed).is_some());
            }
        };
        self.account(&header, reading);
        self.last = self.last.max(header.last);
        let current = Current {
            begun: next.begun,
            frames: Frames::new(file, header.salt(), start),
            running: header.total().events,
            hole: None,
        };
        reading.segment = next.begun;
        self.passed = Some(next.begun);
        self.current = Some(current);
        Ok(true)
    }

    /// Compares what the header says was before it with what was seen. Where more was released than
    /// that, the segments before it were deleted in good order, and nothing is missing.
    fn account(&mut self, header: &Header, reading: &mut Reading) {
        let known = self.seen.take().unwrap_or_else(|| header.before.clone());
        let gone = missing_from(&known, &header.before);
        let mut seen = header.before.clone();
        for (channel, load) in known {
            // before the first delivered event the ack record knows more than an older header
            let told = seen.entry(channel).or_default();
            *told =
                Load { events: told.events.max(load.events), bytes: told.bytes.max(load.bytes) };
        }
        self.seen = Some(seen);
        let missing: u64 = gone.values().map(|load| load.events).sum();
        if missing == 0 {
            return;
        }
        for (channel, load) in gone {
            let lost = reading.lost.entry(channel).or_default();
            *lost = lost.plus(load);
        }
        // released no further than was seen: what comes next may have lower seqs than the lost ones
        reading.lost_before = self.last;
        let to = header.last.0;
        match &self.current {
            None => {
                let segment = header.previous.map_or(0, |(begun, _)| begun);
                push_damage(reading, segment, self.last, to, missing);
            }
            Some(current) => {
                // what lies between two good frames of the segment was reported there
                let at_end = header.total().events.saturating_sub(current.running);
                push_damage(reading, current.begun, current.hole.unwrap_or(self.last), to, at_end);
            }
        }
    }
}

fn push_damage(reading: &mut Reading, segment: u64, before: Seq, to: u64, events: u64) {
    if events > 0 {
        let from = before.0 + 1;
        reading.damage.push(Damage { segment, from, to: to.max(from), events, letters: false });
    }
}
