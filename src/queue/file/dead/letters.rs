//! Dead letters as they stand in their log: read in order, each with its latest state.
//!
//! Reads only, also beside a running node. Does not know who keeps them, nor what is done with them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::record::{Body, Head, Kind, Names, open_dead, open_mark};
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

/// The readable segments of the log at `base`, oldest first, and the highest name of all.
pub(super) fn segments(disk: &dyn Disk, base: &Path) -> io::Result<(Vec<Segment>, u64)> {
    let dir = parent(base);
    if !disk.exists(dir) {
        return Ok((Vec::new(), 0));
    }
    let names = disk.list(dir)?;
    let mut begun: Vec<u64> = names.iter().filter_map(|name| begun_of(base, name)).collect();
    begun.sort_unstable();
    let mut all: Vec<Segment> = Vec::new();
    for name in &begun {
        let file: Arc<dyn DiskFile> = match disk.open(&path_of(base, *name)) {
            Ok(file) => file.into(),
            // purged meanwhile
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let Ok((header, start)) = Header::read(&*file) else {
            tracing::error!(segment = name, "dead-letter segment {name:020} cannot be read");
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
    Ok((all, begun.last().copied().unwrap_or(0)))
}

/// What stands in a dead-letter log.
pub(super) enum Item {
    Letter(Head, DeadReason, Event),
    Mark(Seq, DeadState),
    Hole(u64, u64),
}

/// Calls `visit` for everything in a segment, in order.
pub(super) fn each_item(
    segment: &Segment,
    names: &mut Names,
    visit: &mut dyn FnMut(Item) -> io::Result<()>,
) -> io::Result<()> {
    let mut frames = Frames::new(segment.file.clone(), segment.header.salt(), segment.start);
    loop {
        let item = match frames.next(segment.end)? {
            Step::End => return Ok(()),
            Step::Hole(from, to) => Some(Item::Hole(from, to)),
            Step::Frame(_, head, payload) => match head.kind {
                Kind::Dead => open_dead(&head, &payload, names)
                    .map(|(reason, event)| Item::Letter(head, reason, event)),
                Kind::Mark => DeadState::of(&payload).map(|state| Item::Mark(head.first, state)),
                Kind::Events | Kind::Seal => None,
            },
        };
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
    let (segments, _) = segments(disk, base)?;
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
