//! Dead letters as they stand in their log: read in order, each with its latest state.
//!
//! Reads only, also beside a running node. Does not know who keeps them, nor what is done with them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::record::{Body, Head, Kind, Names, open_dead, open_mark};
use super::super::recovery::{self, Damage};
use super::super::segment::{Frames, Header, Step, begun_of, path_of};
use crate::event::{Event, Seq};
use crate::fsx::{Disk, DiskFile, parent};
use crate::queue::DeadReason;

/// What has become of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadState {
    /// It waits for somebody to decide.
    Dead,
    /// It is being put back under this seq: a start looks whether the log holds it.
    Redriving(Seq),
    /// It was put back under this seq, as a new event.
    Redriven(Seq),
    /// Somebody decided that it is not needed.
    Discarded,
}

impl DeadState {
    /// The payload of a mark that says so.
    #[must_use]
    pub fn body(self) -> Body {
        match self {
            Self::Dead => Body::mark(0, Seq(0)),
            Self::Redriving(new) => Body::mark(1, new),
            Self::Redriven(new) => Body::mark(2, new),
            Self::Discarded => Body::mark(3, Seq(0)),
        }
    }

    fn of(payload: &bytes::Bytes) -> Option<Self> {
        match open_mark(payload)? {
            (0, _) => Some(Self::Dead),
            (1, new) => Some(Self::Redriving(new)),
            (2, new) => Some(Self::Redriven(new)),
            (3, _) => Some(Self::Discarded),
            _ => None,
        }
    }

    /// Whether its content is no longer needed.
    #[must_use]
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Redriven(_) | Self::Discarded)
    }
}

/// An event that storage refused, why, and what became of it.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The event.
    pub event: Event,
    /// Why it was refused.
    pub reason: DeadReason,
    /// What became of it.
    pub state: DeadState,
}

/// Which letters are meant: those that match everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Filter {
    /// These seqs; all where it is empty.
    pub seqs: Vec<u64>,
    /// Of this channel.
    pub channel: Option<String>,
    /// Refused with this code.
    pub reason: Option<String>,
}

impl Filter {
    /// Whether it takes a letter, whatever its state.
    #[must_use]
    pub fn takes(&self, letter: &DeadLetter) -> bool {
        let DeadLetter { event, reason, .. } = letter;
        (self.seqs.is_empty() || self.seqs.contains(&event.seq.0))
            && self.channel.as_ref().is_none_or(|c| c == event.channel.as_str())
            && self.reason.as_ref().is_none_or(|r| *r == reason.code)
    }
}

/// A segment that can be read: its name, file, header, where its frames begin and end.
pub(super) struct Segment {
    pub begun: u64,
    pub file: Arc<dyn DiskFile>,
    pub header: Header,
    pub start: u64,
    pub end: u64,
}

/// The segments of a log of dead letters.
#[derive(Default)]
pub(super) struct Segments {
    /// Those that can be read, oldest first.
    pub readable: Vec<Segment>,
    /// The names of the others.
    pub unreadable: Vec<u64>,
    /// The highest name of all.
    pub highest: u64,
}

/// The segments of the log at `base`.
pub(super) fn segments(disk: &dyn Disk, base: &Path) -> io::Result<Segments> {
    let dir = parent(base);
    if !disk.exists(dir) {
        return Ok(Segments::default());
    }
    let names = disk.list(dir)?;
    let mut begun: Vec<u64> = names.iter().filter_map(|name| begun_of(base, name)).collect();
    begun.sort_unstable();
    let mut all: Vec<Segment> = Vec::new();
    let mut unreadable = Vec::new();
    for name in &begun {
        let file: Arc<dyn DiskFile> = match disk.open(&path_of(base, *name)) {
            Ok(file) => file.into(),
            // purged meanwhile
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let Ok((header, start)) = Header::read(&*file) else {
            unreadable.push(*name);
            continue;
        };
        if let (Some((of, end)), Some(before)) = (header.previous, all.last_mut())
            && before.begun == of
        {
            before.end = end;
        }
        let end = file.len()?;
        all.push(Segment { begun: *name, file, header, start, end });
    }
    let highest = begun.last().copied().unwrap_or(0);
    Ok(Segments { readable: all, unreadable, highest })
}

/// What one segment was found to hold.
#[derive(Clone, Copy, Default)]
pub(super) struct Held {
    /// Letters.
    pub letters: u64,
    /// Stretches that cannot be read.
    pub holes: u64,
}

/// What is missing: each segment is compared with what the next header says was before it, the last
/// one with the witness in its own frames.
pub(super) fn missing(
    segments: &Segments,
    held: &[Held],
    of_last: Option<&recovery::Found>,
) -> Vec<Damage> {
    let mut damage: Vec<Damage> =
        segments.unreadable.iter().map(|name| Damage::of_letters(*name, 0)).collect();
    let before = |segment: &Segment| segment.header.total().events;
    for (pair, held) in segments.readable.windows(2).zip(held) {
        let [segment, next] = pair else { continue };
        let lost = before(next).saturating_sub(before(segment) + held.letters);
        if lost > 0 || held.holes > 0 {
            damage.push(Damage::of_letters(segment.begun, lost));
        }
    }
    if let (Some(last), Some(found)) = (segments.readable.last(), of_last) {
        let lost: u64 = found.damage.iter().map(|d| d.events).sum();
        damage.extend((lost > 0).then(|| Damage::of_letters(last.begun, lost)));
    }
    damage
}

/// What was not known to be synced, where the last segment is sound to, and what is lost before that.
pub(super) fn scan_last(segments: &Segments) -> io::Result<Option<recovery::Found>> {
    let last = segments.readable.last();
    last.map(|s| recovery::scan(s.file.clone(), &s.header, s.start, s.end)).transpose()
}

/// What is damaged in the log of dead letters at `base`. Takes no lock and changes nothing.
///
/// # Errors
/// What the disk says.
pub fn damage_of(disk: &dyn Disk, base: &Path) -> io::Result<Vec<Damage>> {
    let segments = segments(disk, base)?;
    let mut names = Names::default();
    let mut held = Vec::new();
    for segment in &segments.readable {
        held.push(each_item(segment, &mut names, &mut |_| Ok(()))?);
    }
    let last = scan_last(&segments)?;
    Ok(missing(&segments, &held, last.as_ref()))
}

/// What stands in a dead-letter log.
pub(super) enum Item {
    Letter(Head, DeadReason, Event),
    Mark(Seq, DeadState),
    Hole,
}

/// Calls `visit` for everything in a segment, in order; how much it was.
pub(super) fn each_item(
    segment: &Segment,
    names: &mut Names,
    visit: &mut dyn FnMut(Item) -> io::Result<()>,
) -> io::Result<Held> {
    let mut held = Held::default();
    let mut frames = Frames::new(segment.file.clone(), segment.header.salt(), segment.start);
    loop {
        let item = match frames.next(segment.end)? {
            Step::End => return Ok(held),
            Step::Hole(..) => Some(Item::Hole),
            Step::Frame(_, head, payload) => match head.kind {
                Kind::Dead => open_dead(&head, &payload, names)
                    .map(|(reason, event)| Item::Letter(head, reason, event)),
                Kind::Mark => DeadState::of(&payload).map(|state| Item::Mark(head.first, state)),
                Kind::Events | Kind::Seal => None,
            },
        };
        match item {
            Some(Item::Letter(..)) => held.letters += 1,
            Some(Item::Hole) => held.holes += 1,
            _ => {}
        }
        if let Some(item) = item {
            visit(item)?;
        }
    }
}

/// Reads all dead letters of the log at `base`, oldest first, each once and with its latest state.
/// Takes no lock and changes nothing. `progress` is told now and then how many bytes of how many are
/// done.
///
/// # Errors
/// What the disk says, and what `visit` returns.
pub fn read_all(
    disk: &dyn Disk,
    base: &Path,
    progress: &mut dyn FnMut(u64, u64),
    visit: &mut dyn FnMut(DeadLetter) -> io::Result<()>,
) -> io::Result<()> {
    let segments = segments(disk, base)?.readable;
    // read twice: a letter's latest state stands behind it
    let of = 2 * segments.iter().map(|s| s.end).sum::<u64>();
    let mut done = 0;
    let mut names = Names::default();
    let mut states: BTreeMap<Seq, DeadState> = BTreeMap::new();
    for segment in &segments {
        each_item(segment, &mut names, &mut |item| {
            if let Item::Mark(seq, state) = item {
                states.insert(seq, state);
            }
            Ok(())
        })?;
        done += segment.end;
        progress(done, of);
    }
    let mut seen = BTreeSet::new();
    for segment in &segments {
        each_item(segment, &mut names, &mut |item| match item {
            Item::Letter(_, reason, event) if seen.insert(event.seq) => {
                let state = states.get(&event.seq).copied().unwrap_or(DeadState::Dead);
                visit(DeadLetter { event, reason, state })
            }
            _ => Ok(()),
        })?;
        done += segment.end;
        progress(done, of);
    }
    Ok(())
}
