//! One log of an earlier run, the main one or a parked channel's: from its segments and its position
//! to all that is needed to go on with it.
//!
//! Does not know the other logs, the state file, nor what is done about damage.

use std::path::PathBuf;
use std::sync::Arc;

use super::ack::{Position, Tracker};
use super::end::{LogEnd, Segments, compare_with_witness, counts_with, index_segments, log_end};
use super::log::{Index, Log, LogOptions};
use super::open::{OpenError, at, other_origin};
use super::reader::Reader;
use super::recovery::{self, Damage};
use super::segment::{ChannelLoads, Header, HeaderError, begun_of, missing_from, path_of};
use crate::event::Seq;
use crate::fsx::{DiskFile, parent};

/// A log as it was found.
pub(super) struct Restored {
    options: LogOptions,
    /// Its segments, as readers see them.
    pub index: Arc<Index>,
    /// Where it ends.
    pub end: LogEnd,
    /// What of it cannot be read and was not released.
    pub damage: Vec<Damage>,
    /// The highest name of its segments, readable or not.
    pub highest: u64,
    released: Option<(Seq, ChannelLoads)>,
    /// Released at the position, or held before the oldest segment where there is none.
    before: ChannelLoads,
}

/// Looks at the log, changing nothing.
///
/// # Errors
/// [`OpenError`] where it is another node's, of another kind, newer, or cannot be read.
pub(super) fn restore(
    options: LogOptions,
    position: Option<&Position>,
    witness: Option<(u64, u64)>,
) -> Result<Restored, OpenError> {
    let segments = find_segments(&options)?;
    let released = position.map(|p| (Seq(p.released), p.loads()));
    let mut end = log_end(&segments, released.as_ref());
    let index = Arc::new(Index::default());
    index_segments(&index, &segments, &end);
    let mut damage = std::mem::take(&mut end.damage);
    damage.extend(compare_with_witness(&mut end, witness));
    // what was released is stored, readable today or not
    damage.retain(|d| released.as_ref().is_none_or(|(seq, _)| d.to > seq.0));
    let before = released
        .as_ref()
        .map(|(_, loads)| loads.clone())
        .unwrap_or_else(|| segments.headers.first().map(|h| h.before.clone()).unwrap_or_default());
    Ok(Restored { options, index, end, damage, highest: segments.highest, released, before })
}

impl Restored {
    /// One above every seq that it shows.
    pub fn used(&self) -> u64 {
        let released = self.released.as_ref().map_or(0, |(seq, _)| seq.0 + 1);
        (self.end.last.0 + 1).max(self.end.reached.0 + 1).max(released).max(self.highest + 1)
    }

    /// What it holds and has not released, per channel.
    pub fn unreleased(&self) -> ChannelLoads {
        missing_from(&self.before, &counts_with(&self.end))
    }

    /// The log to go on with; it has no segment yet.
    pub fn log(&self) -> Log {
        let LogEnd { previous, totals, last, .. } = &self.end;
        Log::new(self.options.clone(), self.index.clone(), *previous, totals.clone(), *last)
    }

    /// Its reader, at what was released.
    pub fn reader(&self) -> Reader {
        let LogOptions { disk, base, .. } = &self.options;
        Reader::new(disk.clone(), base.clone(), self.index.clone(), self.released.clone())
    }

    /// Its tracker, at what was released.
    pub fn tracker(&self) -> Tracker {
        let seq = self.released.as_ref().map_or(Seq(0), |(seq, _)| *seq);
        Tracker::new(seq, self.before.clone())
    }
}

fn find_segments(options: &LogOptions) -> Result<Segments, OpenError> {
    let dir = parent(&options.base);
    let names = options.disk.list(dir).map_err(at(dir))?;
    let mut begun: Vec<u64> =
        names.iter().filter_map(|name| begun_of(&options.base, name)).collect();
    begun.sort_unstable();
    let mut headers = Vec::new();
    let mut last = None;
    for name in &begun {
        if let Some((file, start, header)) = open_segment(options, *name)? {
            last = Some((file, start));
            headers.push(header);
        }
    }
    // only the last one is read: the others' ends stand in their successors' headers
    let last = match (last, headers.last()) {
        (Some((file, start)), Some(header)) => {
            let path = path_of(&options.base, header.begun);
            let len = file.len().map_err(at(&path))?;
            Some(recovery::scan(file, header, start, len).map_err(at(&path))?)
        }
        _ => None,
    };
    Ok(Segments { headers, last, highest: begun.last().copied().unwrap_or(0) })
}

type Opened = (Arc<dyn DiskFile>, u64, Header);

/// A segment of ours; `None` where its header is damaged.
fn open_segment(options: &LogOptions, name: u64) -> Result<Option<Opened>, OpenError> {
    let path: PathBuf = path_of(&options.base, name);
    let file: Arc<dyn DiskFile> = options.disk.open(&path).map_err(at(&path))?.into();
    let (header, start) = match Header::read(&*file) {
        Ok(found) => found,
        Err(HeaderError::Io(e)) => return Err(at(&path)(e)),
        Err(HeaderError::Damaged) => {
            tracing::error!(
                segment = name,
                "segment {} cannot be read: its header is damaged",
                path.display()
            );
            return Ok(None);
        }
        Err(e @ HeaderError::Version(_)) => {
            return Err(OpenError::Segment { path, text: e.to_string() });
        }
    };
    if header.origin != options.origin {
        return Err(other_origin(&path, header.origin.to_string(), &options.origin));
    }
    if header.kind != options.kind {
        return Err(OpenError::Segment { path, text: "it is of another kind of log".to_owned() });
    }
    Ok(Some((file, start, header)))
}
