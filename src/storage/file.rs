//! Storage in one file: a JSON line an event, for simple set-ups and for looking at.
//!
//! Does not know the queue. One lane and one position for all channels, seqs rising: what comes again
//! at or below the last line's seq stands there already, or is refused, since it comes too late.
//!
//! A line of ours is
//! `{"origin_dc":…,"origin_seq":…,"node_name":…,"channel":…,"received_at":…,"json_data":<payload>}`;
//! line breaks between the tokens of a payload become spaces, no other byte changes. A line is stored
//! when it is synced. Lines without our identity (v1.0.2's) are not ours to touch: only bytes after
//! the last line feed, and our own lines from the first that is not valid or not rising, are ever cut.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Contact, Kind, Refused, Storage, StorageError};
use crate::clock::{Clock, rfc3339};
use crate::event::{Event, Micros, Origin, Seq};
use crate::fsx::{DirLock, Disk, DiskFile, durable_dir, parent, read_full};
use crate::task;

mod tail;

/// So many written bytes are worth a sync of their own.
const SYNC_BYTES: u64 = 1 << 20;

/// How to open file storage.
#[derive(Clone, Debug)]
pub struct Options {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// `storage_file_path`.
    pub path: PathBuf,
    /// `storage_file_sync_ms`: how often small batches are synced; their acks wait for it.
    pub sync_every: Duration,
    /// `node_name`.
    pub origin: Origin,
    /// The time.
    pub clock: Clock,
    /// Whether to hold the file with `flock`; a simulated disk has no such thing.
    pub lock: bool,
}

struct Open {
    file: Box<dyn DiskFile>,
    _lock: Option<DirLock>,
    /// The last seq that stands in it, synced.
    last: Option<Seq>,
    /// Where the next line goes; everything before it is synced.
    end: u64,
    /// The file ends in a line that is not ours and has no line feed.
    needs_feed: bool,
    synced_at: Option<Duration>,
}

/// A file of JSON lines.
pub struct FileStorage {
    options: Options,
    open: Arc<Mutex<Option<Open>>>,
    line_head: LineHead,
}

impl FileStorage {
    /// Nothing is opened before the first contact.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let line_head = LineHead::new(&options.origin);
        Self { options, open: Arc::default(), line_head }
    }
}

/// The parts of a line that are the same for every event of this node.
#[derive(Clone, Debug)]
struct LineHead {
    origin: String,
    node: String,
}

impl LineHead {
    fn new(origin: &Origin) -> Self {
        Self {
            // a Name needs no escapes
            origin: format!("{{\"origin_dc\":\"{origin}\",\"origin_seq\":"),
            node: format!(",\"node_name\":\"{origin}\",\"channel\":\""),
        }
    }

    fn write(&self, event: &Event, at: &mut (Micros, String), out: &mut Vec<u8>) {
        if at.0 != event.received_at || at.1.is_empty() {
            *at = (event.received_at, rfc3339(event.received_at));
        }
        out.extend_from_slice(self.origin.as_bytes());
        // a Vec takes every byte
        let _ = write!(out, "{}", event.seq);
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(event.channel.as_str().as_bytes());
        out.extend_from_slice(b"\",\"received_at\":\"");
        out.extend_from_slice(at.1.as_bytes());
        out.extend_from_slice(b"\",\"json_data\":");
        let from = out.len();
        out.extend_from_slice(&event.payload);
        // inside a string a raw line break is no JSON, so these stand between tokens
        // written without a branch, so that the compiler turns it into vector code
        for byte in &mut out[from..] {
            *byte = if matches!(*byte, b'\n' | b'\r') { b' ' } else { *byte };
        }
        out.extend_from_slice(b"}\n");
    }
}

fn outage(what: &str, path: &Path, e: &io::Error) -> StorageError {
    let code = match e.raw_os_error() {
        Some(libc::ENOSPC) => "ENOSPC".to_owned(),
        Some(n) => format!("os error {n}"),
        None => "io".to_owned(),
    };
    StorageError::retry(code, format!("{what} {}: {e}", path.display()))
}

fn connect(options: &Options, first_unacked: Seq) -> Result<Open, StorageError> {
    let path = &options.path;
    let dir = parent(path);
    durable_dir(&*options.disk, dir).map_err(|e| outage("cannot make", dir, &e))?;
    let lock = if options.lock {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let taken = DirLock::take(Path::new(&name));
        Some(taken.map_err(|e| StorageError::retry("locked", e.to_string()))?)
    } else {
        None
    };
    let file =
        if options.disk.exists(path) { options.disk.open(path) } else { options.disk.create(path) };
    let file = file.map_err(|e| outage("cannot open", path, &e))?;
    let tail = tail::read_back(&*file, &options.origin, first_unacked)
        .map_err(|e| outage("cannot read", path, &e))?;
    let prepare = || -> io::Result<()> {
        if let Some(cut) = tail.cut {
            tracing::warn!(
                "{}: {} bytes behind the last whole line were never confirmed and are written again",
                path.display(),
                cut
            );
            file.set_len(tail.end)?;
        }
        rewrite(&*file, tail.unconfirmed, tail.end)?;
        file.sync()?;
        options.disk.sync_dir(dir)
    };
    prepare().map_err(|e| outage("cannot write", path, &e))?;
    let (last, end, needs_feed) = (tail.last, tail.end, tail.needs_feed);
    Ok(Open { file, _lock: lock, last, end, needs_feed, synced_at: None })
}

/// Writes the bytes from `from` to `to` once more: after a failed sync the page cache shows lines that
/// are not on the disk, and only pages that are dirty are synced.
fn rewrite(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    let mut bytes = vec![0; 1 << 20];
    while at < to {
        let want = usize::try_from(to - at).unwrap_or(usize::MAX).min(bytes.len());
        let n = read_full(file, &mut bytes[..want], at)?;
        if n == 0 {
            break;
        }
        file.write_at(&bytes[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

/// Whether the file is still the one under its name, and whole: it may have been rotated, removed or
/// cut under a running node.
fn still_there(open: &Open, options: &Options) -> bool {
    let same = || -> io::Result<bool> {
        Ok(options.disk.id(&options.path)? == open.file.id()? && open.file.len()? >= open.end)
    };
    same().unwrap_or(false)
}

/// Those of events at or below the last line that have none: a queue may find an event again that was
/// lost, or in another's hands, when later ones were written already.
fn too_late(
    open: &Open,
    options: &Options,
    events: &[Event],
) -> Result<Vec<Refused>, StorageError> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let path = &options.path;
    let seqs: Vec<Seq> = events.iter().map(|event| event.seq).collect();
    let missing = tail::missing(&*open.file, open.end, &options.origin, &seqs);
    let refused = |seq| {
        let text = format!(
            "later events had been written to {} when it came, and the file only grows: `replicon dlq retry` puts it back under a new seq",
            path.display()
        );
        let (kind, code) = (Kind::Reject, "out_of_order".to_owned());
        Refused { seq, error: StorageError { kind, code, text, channel: None } }
    };
    let missing = missing.map_err(|e| outage("cannot read", path, &e))?;
    Ok(missing.into_iter().map(refused).collect())
}

/// Writes what is not there yet behind the last synced line, and syncs it; what comes too late.
fn append(
    open: &mut Open,
    options: &Options,
    head: &LineHead,
    events: &[Event],
) -> Result<Vec<Refused>, StorageError> {
    let mut bytes = Vec::with_capacity(events.iter().map(|e| e.payload.len() + 160).sum());
    if open.needs_feed {
        bytes.push(b'\n');
    }
    let old = open.last.map_or(0, |last| events.partition_point(|e| e.seq <= last));
    let (again, fresh) = events.split_at(old);
    let refused = too_late(open, options, again)?;
    let (mut at, mut last) = ((Micros(0), String::new()), None);
    for event in fresh {
        head.write(event, &mut at, &mut bytes);
        last = Some(event.seq);
    }
    let Some(last) = last else { return Ok(refused) };
    let path = &options.path;
    // after a failed sync the same offset is written again: a sync is never just repeated
    open.file.write_at(&bytes, open.end).map_err(|e| outage("cannot write", path, &e))?;
    if (bytes.len() as u64) < SYNC_BYTES {
        wait_for_turn(open.synced_at, options);
    }
    open.file.sync().map_err(|e| outage("cannot sync", path, &e))?;
    open.synced_at = Some(options.clock.mono());
    open.end += bytes.len() as u64;
    open.last = Some(last);
    open.needs_feed = false;
    Ok(refused)
}

/// Small batches share a sync: at most one in `sync_every`, and none waits where the last is longer
/// ago than that.
fn wait_for_turn(synced_at: Option<Duration>, options: &Options) {
    let since = synced_at.map(|at| options.clock.mono().saturating_sub(at));
    if let Some(wait) = since.and_then(|since| options.sync_every.checked_sub(since)) {
        std::thread::sleep(wait);
    }
}

impl Storage for FileStorage {
    async fn connect(&self, contact: &Contact) -> Result<Option<Seq>, StorageError> {
        let first_unacked = contact.first_unacked;
        let (open, options) = (self.open.clone(), self.options.clone());
        task::blocking(move || {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.is_none() {
                *open = Some(connect(&options, first_unacked)?);
            }
            Ok(open.as_ref().and_then(|open| open.last))
        })
        .await
    }

    async fn append(&self, events: &[Event]) -> Result<Vec<Refused>, StorageError> {
        let (open, options) = (self.open.clone(), self.options.clone());
        // payloads are shared, not copied
        let (head, events) = (self.line_head.clone(), events.to_vec());
        task::blocking(move || {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(first) = events.first() else { return Ok(Vec::new()) };
            if open.as_ref().is_some_and(|open| !still_there(open, &options)) {
                tracing::warn!(
                    "{} was moved, removed or cut: events go on in the file that is there now",
                    options.path.display()
                );
                *open = None;
            }
            let open = match &mut *open {
                Some(open) => open,
                // one lane: nothing older than these events is unwritten
                none => none.insert(connect(&options, first.seq)?),
            };
            append(open, &options, &head, &events)
        })
        .await
    }

    async fn stands(&self, events: &[Event]) -> Result<BTreeSet<Seq>, StorageError> {
        let (open, options) = (self.open.clone(), self.options.clone());
        let seqs: Vec<Seq> = events.iter().map(|e| e.seq).collect();
        task::blocking(move || {
            let open = open.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(open) = &*open else {
                return Err(StorageError::retry("unconnected", "storage was not opened yet"));
            };
            let mut there = BTreeSet::new();
            for seq in seqs {
                let stands = tail::stands(&*open.file, open.end, &options.origin, seq);
                if stands.map_err(|e| outage("cannot read", &options.path, &e))? {
                    there.insert(seq);
                }
            }
            Ok(there)
        })
        .await
    }

    fn lanes(&self) -> usize {
        1
    }

    async fn probe(&self, _bytes: usize) -> Result<(), StorageError> {
        let options = self.options.clone();
        task::blocking(move || connect(&options, Seq(u64::MAX)).map(drop)).await
    }
}

#[cfg(test)]
mod tests;
