//! One log, the main one, a parked channel's or that of the dead letters: found as a start finds it,
//! read through, or read event by event.
//!
//! Does not know the other logs, nor what was reported and acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use super::super::ack::Position;
use super::super::end::counts_with;
use super::super::log::{Index, LogOptions, SegmentEnd};
use super::super::open::{OpenError, at};
use super::super::reader::Reader;
use super::super::recovery::Damage;
use super::super::restore::{Restored, restore};
use super::super::segment::{Header, HeaderError, begun_of, path_of};
use super::Stands;
use super::shown::{DamageLook, SegmentLook, Standing};
use crate::event::{Event, Seq};
use crate::fsx::parent;
use crate::queue::LeaseLimit;
use crate::queue::accounts::Load;

/// How much is read at once.
const PORTION: LeaseLimit = LeaseLimit { events: 4096, bytes: 4 << 20 };
/// How often a listing is begun again that a running node overtakes.
const TRIES: usize = 50;

/// One log as a start would find it.
pub(super) struct OneLog {
    pub name: String,
    pub options: LogOptions,
    pub restored: Restored,
    pub segments: Vec<SegmentLook>,
    released: Seq,
}

/// Tells how far a long look is.
pub(super) struct Steps<'a> {
    pub done: u64,
    pub of: u64,
    pub tell: &'a mut dyn FnMut(u64, u64),
}

impl Steps<'_> {
    pub fn at(&mut self, inside: u64) {
        (self.tell)((self.done + inside).min(self.of), self.of);
    }
}

impl OneLog {
    /// Looks at its headers and its last segment.
    pub fn find(
        name: &str,
        options: LogOptions,
        position: Option<&Position>,
        witness: Option<(u64, u64)>,
    ) -> Result<Self, OpenError> {
        let mut tries = 0;
        let (segments, restored) = loop {
            let found = restore(options.clone(), position, witness)
                .and_then(|restored| Ok((segments_of(&options, &restored)?, restored)));
            match found {
                Ok(found) => break found,
                // released and deleted between the listing and the look
                Err(OpenError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && tries < TRIES =>
                {
                    tries += 1;
                }
                Err(e) => return Err(e),
            }
        };
        let released = Seq(position.map_or(0, |p| p.released));
        Ok(Self { name: name.to_owned(), options, restored, segments, released })
    }

    /// Bytes of its segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// What waits in it, per channel.
    pub fn waiting(&self) -> BTreeMap<String, Load> {
        Position::of(Seq(0), &self.restored.unreleased()).counts
    }

    /// Damage of it, for people.
    pub fn named(&self, damage: &[Damage], standing: Standing) -> Vec<DamageLook> {
        let named = |d: &Damage| DamageLook { log: self.name.clone(), damage: d.clone(), standing };
        damage.iter().map(named).collect()
    }

    fn bytes_before(&self, begun: u64) -> u64 {
        self.segments.iter().filter(|s| s.begun < begun).map(|s| s.bytes).sum()
    }

    /// Reads all of it as a node would: what is lost, and what cannot be read of what was resolved.
    pub fn read_through(&self, steps: &mut Steps<'_>) -> io::Result<(Vec<Damage>, Vec<Damage>)> {
        let mut lost = self.restored.damage.clone();
        let mut reader = self.restored.reader();
        let mut furthest = 0;
        loop {
            let reading = reader.read(PORTION)?;
            furthest = reading.segment.max(furthest);
            steps.at(self.bytes_before(furthest));
            add(&mut lost, reading.damage);
            if reading.through.is_none() {
                break;
            }
        }
        steps.done += self.bytes();
        steps.at(0);
        let mut resolved = Vec::new();
        let mut reader = self.reader_of(self.restored.index.clone());
        while self.released > Seq(0) {
            let mut reading = reader.read(PORTION)?;
            reading.damage.retain(|d| d.to <= self.released.0);
            add(&mut resolved, reading.damage);
            if reading.through.is_none_or(|seq| seq > self.released) {
                break;
            }
        }
        Ok((lost, resolved))
    }

    fn reader_of(&self, index: Arc<Index>) -> Reader {
        Reader::new(self.options.disk.clone(), self.options.base.clone(), index, None)
    }

    /// All of its events from a seq on, those included that are not known to be synced.
    pub fn stream(&self, from: u64) -> Stream {
        let (all, index) = (&self.restored.index, Index::default());
        let mut next = all.last_begun_by(from);
        while let Some(segment) = next {
            next = all.after(Some(segment.begun));
            let last = self.segments.iter().find(|s| s.begun == segment.begun && next.is_none());
            index.push(SegmentEnd { end: last.map_or(segment.end, |s| s.bytes), ..segment });
        }
        let reader = self.reader_of(Arc::new(index));
        Stream { reader, ahead: VecDeque::new(), released: self.released }
    }
}

/// Adds what is not among them yet.
fn add(all: &mut Vec<Damage>, more: Vec<Damage>) {
    for damage in more {
        if !all.iter().any(|d| d.is_same(&damage)) {
            all.push(damage);
        }
    }
}

/// Events of one log, in order.
pub(super) struct Stream {
    reader: Reader,
    ahead: VecDeque<Event>,
    released: Seq,
}

impl Stream {
    fn next_seq(&mut self) -> io::Result<Option<Seq>> {
        if self.ahead.is_empty() {
            self.ahead = self.reader.read(PORTION)?.events.into();
        }
        Ok(self.ahead.front().map(|event| event.seq))
    }
}

/// The event with the lowest seq, and where it stands. One that is set aside stands in two logs for a
/// while; the parked one, which comes later in `streams`, behind the main one, knows what became of it.
pub(super) fn next_event(streams: &mut [Stream]) -> io::Result<Option<(Event, Stands)>> {
    let mut lowest: Option<Seq> = None;
    for stream in &mut *streams {
        lowest = stream.next_seq()?.into_iter().chain(lowest).min();
    }
    let Some(seq) = lowest else { return Ok(None) };
    let mut found = None;
    for (at, stream) in streams.iter_mut().enumerate() {
        if let Some(event) = stream.ahead.pop_front_if(|event| event.seq == seq) {
            found = Some((event, Stands { waits: seq > stream.released, aside: at > 0 }));
        }
    }
    Ok(found)
}

/// The segments as their headers show them.
fn segments_of(options: &LogOptions, restored: &Restored) -> Result<Vec<SegmentLook>, OpenError> {
    let dir = parent(&options.base);
    let names = options.disk.list(dir).map_err(at(dir))?;
    let mut begun: Vec<u64> =
        names.iter().filter_map(|name| begun_of(&options.base, name)).collect();
    begun.sort_unstable();
    let mut looks: Vec<SegmentLook> = Vec::with_capacity(begun.len());
    // the last readable one: its place and its header
    let mut before: Option<(usize, Header)> = None;
    for begun in begun {
        let (mut look, header) = segment_at(options, begun)?;
        match header {
            Ok(header) => {
                if let Some((place, earlier)) = before
                    && header.previous.is_some_and(|(of, _)| of == earlier.begun)
                {
                    looks[place].holds(&earlier, header.last, header.total().events);
                }
                before = Some((looks.len(), header));
            }
            Err(why) => look.unreadable = Some(why.to_string()),
        }
        looks.push(look);
    }
    if let Some((place, last)) = before {
        let held = counts_with(&restored.end).values().map(|load| load.events).sum();
        looks[place].holds(&last, restored.end.reached, held);
    }
    Ok(looks)
}

/// One segment and its header, or why that cannot be read.
fn segment_at(
    options: &LogOptions,
    begun: u64,
) -> Result<(SegmentLook, Result<Header, HeaderError>), OpenError> {
    let path = path_of(&options.base, begun);
    let file = options.disk.open(&path).map_err(at(&path))?;
    let bytes = file.len().map_err(at(&path))?;
    let header = match Header::read(&*file) {
        Err(HeaderError::Io(e)) => return Err(at(&path)(e)),
        other => other.map(|(header, _)| header),
    };
    let (first, last, events, unreadable) = (None, None, None, None);
    Ok((SegmentLook { path, begun, bytes, first, last, events, unreadable }, header))
}

impl SegmentLook {
    /// It holds what lies between its own header and these: the last seq, and all events up to it.
    fn holds(&mut self, header: &Header, last: Seq, total: u64) {
        let events = total.saturating_sub(header.total().events);
        self.events = Some(events);
        if events > 0 {
            (self.first, self.last) = (Some(header.last.0 + 1), Some(last.0));
        }
    }
}
