//! Dead letters: a log of their own, in the same format, and the set of seqs that have one.
//!
//! Does not know why storage refuses an event, nor who asks.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::log::{Frame, Index, Log, LogOptions};
use super::record::{Body, Kind, Names, open_dead};
use super::recovery;
use super::segment::{ChannelLoads, Frames, Header, Step, begun_of, path_of};
use crate::event::{Event, Seq};
use crate::fsx::{DiskFile, parent};
use crate::queue::accounts::Load;
use crate::queue::{DeadLetterError, DeadReason};

struct Inner {
    log: Log,
    /// Above the names of all segments that earlier runs left.
    free: Seq,
    bytes: u64,
}

/// The dead letters of a node.
pub struct DeadLetters {
    inner: Mutex<Inner>,
    /// Apart from the log, so that nobody who looks waits for the disk.
    seqs: Mutex<BTreeSet<Seq>>,
    /// How many seqs have one, so that the common case of none takes no lock.
    count: AtomicUsize,
    max_bytes: u64,
}

impl DeadLetters {
    /// Reads what earlier runs left.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(options: LogOptions, max_bytes: u64) -> io::Result<Self> {
        let disk = options.disk.clone();
        let mut begun: Vec<u64> = disk
            .list(parent(&options.base))?
            .iter()
            .filter_map(|name| begun_of(&options.base, name))
            .collect();
        begun.sort_unstable();
        let mut seqs = BTreeSet::new();
        let mut bytes = 0;
        let mut tail = None;
        for (i, name) in begun.iter().enumerate() {
            let file: Arc<dyn DiskFile> = disk.open(&path_of(&options.base, *name))?.into();
            let Ok((header, start)) = Header::read(&*file) else {
                tracing::error!(segment = name, "dead-letter segment {name:020} cannot be read");
                continue;
            };
            let end = begun.get(i + 1).and_then(|next| named_end(&options, *next, *name));
            let len = end.unwrap_or(file.len()?);
            bytes += len;
            read_segment(Frames::new(file.clone(), header.salt(), start), *name, len, &mut seqs)?;
            tail = Some((*name, file, header, start, len));
        }
        // only the last one can hold what was not known to be synced
        let tail = tail.map(|(name, file, header, start, len)| {
            recovery::scan(file, &header, start, len).map(|found| (name, found))
        });
        let (previous, carried, totals, last) = match tail.transpose()? {
            None => (None, Vec::new(), ChannelLoads::new(), Seq(0)),
            Some((name, found)) => {
                (Some((name, found.synced_end)), found.carried, found.totals, found.last)
            }
        };
        // above every name there is: a segment that cannot be read is not overwritten either
        let free = Seq(begun.last().map_or(1, |last| last + 1));
        let mut log = Log::new(options, Arc::new(Index::default()), previous, totals, last);
        if !carried.is_empty() {
            // found behind the last witness: made durable now, or on a full disk by the next letter
            if let Err(e) = log.begin(free, carried) {
                tracing::error!("no new dead-letter segment yet: {e}");
            }
        }
        let count = AtomicUsize::new(seqs.len());
        Ok(Self {
            count,
            inner: Mutex::new(Inner { log, free, bytes }),
            seqs: Mutex::new(seqs),
            max_bytes,
        })
    }

    fn seqs(&self) -> MutexGuard<'_, BTreeSet<Seq>> {
        self.seqs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a seq has a dead letter.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.seqs().contains(&seq)
    }

    /// The largest seq that has one.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.seqs().last().copied().unwrap_or_default()
    }

    /// Keeps an event durably, once.
    ///
    /// # Errors
    /// [`DeadLetterError`] where there is no room or the disk refuses; nothing is dropped.
    pub fn put(&self, event: &Event, why: &DeadReason) -> Result<(), DeadLetterError> {
        let mut inner = self.lock();
        if self.seqs().contains(&event.seq) {
            return Ok(());
        }
        let body = Body::dead(event, why);
        let size = body.bytes.len() as u64;
        if inner.bytes + size > self.max_bytes {
            return Err(DeadLetterError(format!(
                "dead_letter_max_bytes ({}) is reached: discard dead letters, or raise it",
                self.max_bytes
            )));
        }
        let say = |e: io::Error| DeadLetterError(e.to_string());
        if !inner.log.is_open() {
            let next = event.seq.max(inner.free);
            inner.log.begin(next, Vec::new()).map_err(say)?;
        }
        let counts = Some((event.channel.clone(), Load { events: 1, bytes: size }));
        let result = inner
            .log
            .write(vec![Frame { first: event.seq, body, counts }])
            .and_then(|()| inner.log.seal());
        result.map_err(say)?;
        let mut seqs = self.seqs();
        seqs.insert(event.seq);
        inner.bytes += size;
        self.count.store(seqs.len(), Ordering::Release);
        drop(seqs);
        // the letter is safe; a segment that could not be begun is begun by the next one
        if let Err(e) = inner.log.rotate_if_long(event.seq.next()) {
            tracing::warn!("no new dead-letter segment yet: {e}");
        }
        Ok(())
    }

    /// Bears witness that all of it is synced.
    ///
    /// # Errors
    /// What the disk says.
    pub fn close(&self) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.log.is_open() { inner.log.seal() } else { Ok(()) }
    }
}

/// Collects the seqs of one segment.
fn read_segment(
    mut frames: Frames,
    name: u64,
    len: u64,
    seqs: &mut BTreeSet<Seq>,
) -> io::Result<()> {
    let mut names = Names::default();
    loop {
        match frames.next(len)? {
            Step::End => return Ok(()),
            Step::Hole(from, to) => tracing::error!(
                segment = name,
                "dead-letter segment {name:020} is damaged between bytes {from} and {to}"
            ),
            Step::Frame(_, head, payload) => {
                if head.kind == Kind::Dead && open_dead(&head, &payload, &mut names).is_some() {
                    seqs.insert(head.first);
                }
            }
        }
    }
}

/// The end that a segment's successor names for it.
fn named_end(options: &LogOptions, successor: u64, of: u64) -> Option<u64> {
    let file = options.disk.open(&path_of(&options.base, successor)).ok()?;
    let (header, _) = Header::read(&*file).ok()?;
    header.previous.filter(|(begun, _)| *begun == of).map(|(_, end)| end)
}
