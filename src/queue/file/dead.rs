//! Dead letters: a log of their own, in the same format, and what has become of each.
//!
//! Does not know why storage refuses an event, nor who asks. A letter is written once; what becomes of
//! it is written behind it, as marks. What is settled is cleared away when it takes up too much: the
//! rest is copied into a new segment first, and the older ones are deleted when that is synced.

mod letters;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use letters::{DeadLetter, DeadState, Filter, damage_of, read_all};
use letters::{Held, Item, Segment, Segments, each_item, missing, scan_last, segments};

use super::log::{Frame, Index, Log, LogOptions};
use super::record::{Body, Names};
use super::recovery::Damage;
use super::segment::{ChannelLoads, path_of};
use crate::event::{Event, Seq};
use crate::fsx::parent;
use crate::queue::accounts::Load;
use crate::queue::{DeadLetterError, DeadReason};

/// Less than this of settled letters is not worth clearing away.
const WORTH_PURGING: u64 = 1 << 20;
/// So many bytes share a sync when letters are copied.
const COPIED_AT_ONCE: u64 = 1 << 20;

struct Inner {
    options: LogOptions,
    log: Log,
    /// Above the names of all segments that earlier runs left.
    free: Seq,
    /// Of all letters and marks, settled ones included.
    bytes: u64,
    /// Of the settled letters among them.
    settled: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    state: DeadState,
    /// Of the letter; 0 once its content is gone.
    size: u64,
}

/// Letters on their way into another segment.
#[derive(Default)]
struct Group {
    frames: Vec<Frame>,
    bytes: u64,
}

/// The dead letters of a node.
pub struct DeadLetters {
    inner: Mutex<Inner>,
    /// Apart from the log, so that nobody who looks waits for the disk.
    entries: Mutex<BTreeMap<Seq, Entry>>,
    /// How many seqs have one, so that the common case of none takes no lock.
    count: AtomicUsize,
    /// Whether one is being put back.
    redriving: AtomicBool,
    base: PathBuf,
    max_bytes: u64,
    /// What a start found damaged.
    damage: Vec<Damage>,
}

/// What the disk said, as the reason why a letter is not kept.
fn refused(e: io::Error) -> DeadLetterError {
    DeadLetterError::Disk(e.to_string())
}

impl DeadLetters {
    /// Reads what earlier runs left.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(options: LogOptions, max_bytes: u64) -> io::Result<Self> {
        let segments = segments(&*options.disk, &options.base)?;
        let mut entries = BTreeMap::new();
        let mut names = Names::default();
        let mut held = Vec::new();
        for segment in &segments.readable {
            held.push(read_segment(segment, &mut names, &mut entries)?);
        }
        let bytes = segments.readable.iter().map(|s| s.end - s.start).sum();
        // only the last one can hold what was not known to be synced
        let found = scan_last(&segments)?;
        let damage = missing(&segments, &held, found.as_ref());
        let name = segments.readable.last().map_or(0, |s| s.begun);
        let (previous, carried, totals, last) = match found {
            None => (None, Vec::new(), ChannelLoads::new(), Seq(0)),
            Some(found) => {
                (Some((name, found.synced_end)), found.carried, found.totals, found.last)
            }
        };
        // above every name there is: a segment that cannot be read is not overwritten either
        let free = Seq(segments.highest + 1);
        let mut log = Log::new(options.clone(), Arc::new(Index::default()), previous, totals, last);
        if !carried.is_empty() {
            // found behind the last witness: made durable now, or on a full disk by the next letter
            if let Err(e) = log.begin(free, carried) {
                tracing::error!("no new dead-letter segment yet: {e}");
            }
        }
        let settled = entries.values().filter(|e| e.state.is_settled()).map(|e| e.size).sum();
        let letters = Self {
            count: AtomicUsize::new(entries.len()),
            redriving: AtomicBool::new(false),
            base: options.base.clone(),
            inner: Mutex::new(Inner { options, log, free, bytes, settled }),
            entries: Mutex::new(entries),
            max_bytes,
            damage,
        };
        letters.note_redriving();
        Ok(letters)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Seq, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a start found damaged.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// The path of its segments, without the digits.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Whether a seq has a dead letter, in whatever state.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.entries().contains_key(&seq)
    }

    /// The largest seq that has one, or under which one was put back.
    #[must_use]
    pub fn last(&self) -> Seq {
        let entries = self.entries();
        let put_back = entries.values().filter_map(|entry| match entry.state {
            DeadState::Redriving(new) | DeadState::Redriven(new) => Some(new),
            DeadState::Dead | DeadState::Discarded => None,
        });
        put_back.chain(entries.keys().last().copied()).max().unwrap_or_default()
    }

    /// Those that are being put back, and under which seqs.
    #[must_use]
    pub fn redriving(&self) -> Vec<(Seq, Seq)> {
        let new = |(seq, entry): (&Seq, &Entry)| match entry.state {
            DeadState::Redriving(new) => Some((*seq, new)),
            _ => None,
        };
        self.entries().iter().filter_map(new).collect()
    }

    /// Whether any is being put back: then no segment of the log is deleted, since a start looks there.
    #[must_use]
    pub fn is_redriving(&self) -> bool {
        self.redriving.load(Ordering::SeqCst)
    }

    fn note_redriving(&self) {
        self.redriving.store(!self.redriving().is_empty(), Ordering::SeqCst);
    }

    /// The state of a seq's letter, if it has one.
    #[must_use]
    pub fn state(&self, seq: Seq) -> Option<DeadState> {
        self.entries().get(&seq).map(|entry| entry.state)
    }

    /// Keeps events durably, each once: all of them, or none.
    ///
    /// # Errors
    /// [`DeadLetterError`] where there is no room or the disk refuses; nothing is dropped.
    pub fn put(&self, letters: &[(Event, DeadReason)]) -> Result<(), DeadLetterError> {
        let mut inner = self.lock();
        let mut fresh = BTreeMap::new();
        let mut frames = Vec::new();
        for (event, why) in letters {
            if self.entries().contains_key(&event.seq) || fresh.contains_key(&event.seq) {
                continue;
            }
            let body = Body::dead(event, why);
            let size = body.bytes.len() as u64;
            let counts = Some((event.channel.clone(), Load { events: 1, bytes: size }));
            frames.push(Frame { first: event.seq, body, counts });
            fresh.insert(event.seq, Entry { state: DeadState::Dead, size });
        }
        let size: u64 = fresh.values().map(|entry| entry.size).sum();
        if frames.is_empty() {
            return Ok(());
        }
        if inner.bytes + size > self.max_bytes {
            return Err(DeadLetterError::Full { max_bytes: self.max_bytes });
        }
        inner.write(frames).map_err(refused)?;
        let mut entries = self.entries();
        entries.extend(fresh);
        self.count.store(entries.len(), Ordering::Release);
        drop(entries);
        inner.rotate();
        Ok(())
    }

    /// Notes durably what became of letters, all of them or none.
    ///
    /// # Errors
    /// What the disk says; then nothing has changed.
    pub fn mark(&self, marks: &[(Seq, DeadState)]) -> io::Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        let mut inner = self.lock();
        let frames = marks.iter().map(|(seq, state)| mark_frame(*seq, *state)).collect();
        inner.write(frames)?;
        let mut entries = self.entries();
        for (seq, state) in marks {
            let entry = entries.entry(*seq).or_insert(Entry { state: *state, size: 0 });
            if state.is_settled() && !entry.state.is_settled() {
                inner.settled += entry.size;
            }
            entry.state = *state;
        }
        drop(entries);
        self.note_redriving();
        inner.rotate();
        Ok(())
    }

    /// Whether so much is settled that it should be cleared away.
    #[must_use]
    pub fn wants_purge(&self) -> bool {
        // each mark would wait for a pass to end, and each append for its mark
        if self.is_redriving() {
            return false;
        }
        let inner = self.lock();
        let full = inner.bytes + WORTH_PURGING > self.max_bytes;
        inner.settled > 0 && (full || inner.settled > WORTH_PURGING.max(inner.bytes / 2))
    }

    /// Clears settled letters away. Of those whose event can still be redelivered, which are the seqs
    /// above `gone`, the state is kept: it would be stored after all. What cannot be read goes too: the
    /// caller has looked.
    ///
    /// # Errors
    /// What the disk says; then everything is as it was, but for a segment that repeats some of it.
    pub fn purge(&self, gone: Seq) -> io::Result<()> {
        let mut inner = self.lock();
        let options = inner.options.clone();
        let Segments { readable: old, unreadable, highest } =
            segments(&*options.disk, &options.base)?;
        inner.free = inner.free.max(Seq(highest + 1));
        let free = inner.free;
        inner.log.start_over(free)?;
        let before = inner.bytes;
        inner.bytes = 0;
        let kept = self.copy_kept(&mut inner, &old, gone);
        if let Err(e) = kept {
            inner.bytes += before;
            return Err(e);
        }
        inner.settled = 0;
        let mut entries = self.entries();
        entries.retain(|seq, entry| *seq > gone || !entry.state.is_settled());
        for entry in entries.values_mut().filter(|e| e.state.is_settled()) {
            entry.size = 0;
        }
        self.count.store(entries.len(), Ordering::Release);
        drop(entries);
        for begun in old.iter().map(|segment| segment.begun).chain(unreadable) {
            options.disk.remove(&path_of(&options.base, begun))?;
        }
        options.disk.sync_dir(parent(&options.base))
    }

    /// Copies what is still needed of `old` behind what stands in the new segment, and syncs it.
    fn copy_kept(&self, inner: &mut Inner, old: &[Segment], gone: Seq) -> io::Result<()> {
        let entries = self.entries().clone();
        let mut names = Names::default();
        let mut group = Group::default();
        for segment in old {
            each_item(segment, &mut names, &mut |item| {
                let Item::Letter(_, why, event) = item else { return Ok(()) };
                if entries.get(&event.seq).is_none_or(|entry| entry.state.is_settled()) {
                    return Ok(());
                }
                let body = Body::dead(&event, &why);
                let load = Load { events: 1, bytes: body.bytes.len() as u64 };
                let counts = Some((event.channel, load));
                group.bytes += load.bytes;
                group.frames.push(Frame { first: event.seq, body, counts });
                if group.bytes < COPIED_AT_ONCE {
                    return Ok(());
                }
                inner.write(std::mem::take(&mut group).frames)
            })?;
        }
        if !group.frames.is_empty() {
            inner.write(group.frames)?;
        }
        let marked = entries.iter().filter(|(seq, entry)| match entry.state {
            DeadState::Dead => false,
            DeadState::Redriving(_) => true,
            DeadState::Redriven(_) | DeadState::Discarded => **seq > gone,
        });
        let marks: Vec<Frame> = marked.map(|(seq, e)| mark_frame(*seq, e.state)).collect();
        if marks.is_empty() { inner.log.seal() } else { inner.write(marks) }
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

impl Inner {
    /// Writes frames and makes them durable.
    fn write(&mut self, frames: Vec<Frame>) -> io::Result<()> {
        if !self.log.is_open() {
            let first = frames.iter().map(|f| f.first).max().unwrap_or_default();
            self.log.begin(first.max(self.free), Vec::new())?;
        }
        let size: u64 = frames.iter().map(|f| f.body.bytes.len() as u64).sum();
        let result = self.log.write(frames).and_then(|()| self.log.seal());
        if result.is_err() {
            // nobody was told of them: they must not come back with the next segment
            self.log.forget_unsynced();
        }
        result?;
        self.bytes += size;
        Ok(())
    }

    /// What was written is safe; a segment that could not be begun is begun by the next one.
    fn rotate(&mut self) {
        let next = self.log.witness().0.next();
        if let Err(e) = self.log.rotate_if_long(next) {
            tracing::warn!("no new dead-letter segment yet: {e}");
        }
    }
}

fn mark_frame(seq: Seq, state: DeadState) -> Frame {
    Frame { first: seq, body: state.body(), counts: None }
}

/// Collects what one segment says.
fn read_segment(
    segment: &Segment,
    names: &mut Names,
    entries: &mut BTreeMap<Seq, Entry>,
) -> io::Result<Held> {
    each_item(segment, names, &mut |item| {
        match item {
            Item::Letter(head, ..) => {
                let size = u64::from(head.payload_len);
                let fresh = Entry { state: DeadState::Dead, size };
                entries.entry(head.first).or_insert(fresh).size = size;
            }
            Item::Mark(seq, state) => {
                entries.entry(seq).or_insert(Entry { state, size: 0 }).state = state;
            }
            // counted, and reported with what it hid
            Item::Hole => {}
        }
        Ok(())
    })
}
