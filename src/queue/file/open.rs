//! Opening the log: what an earlier run left becomes a queue again. The rules stand in the parent.
//!
//! Does not know storage: identities that only storage or peers know of come later.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::ack::{AckRecord, WRITER};
use super::appender::{Appender, Inbox, SyncMode};
use super::dead::DeadLetters;
use super::handle::{FileQueue, Shared};
use super::log::{Frame, Log, LogOptions};
use super::parked::{self, ParkedLog};
use super::parking::{Aside, Parking};
use super::reader::Reader;
use super::recovery::Damage;
use super::redrive;
use super::restore::{Restored, restore};
use super::segment::{LogKind, begun_of};
use super::slots::{self, Slots};
use super::state::{FoundState, NodeState, StateFile, new_node_id};
use crate::clock::Clock;
use crate::event::{ChannelName, Name, Origin, Seq};
use crate::fsx::{DirLock, Disk, LockError, durable_dir, parent};
use crate::queue::accounts::{Accounts, Ceilings, Load};
use crate::seq::Seqs;
use crate::task::Spine;
use crate::watermark::{self, Watermark};

/// How to open a file queue.
#[derive(Clone)]
pub struct Options {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// `queue_file_path`.
    pub path: PathBuf,
    /// `queue_file_ack_path`.
    pub ack_path: PathBuf,
    /// `node_name`.
    pub origin: Origin,
    /// The time.
    pub clock: Clock,
    /// When appends are answered.
    pub sync: SyncMode,
    /// `queue_segment_bytes`.
    pub segment_bytes: u64,
    /// The ceilings.
    pub ceilings: Ceilings,
    /// `min_free_bytes`.
    pub min_free_bytes: u64,
    /// `dead_letter_max_bytes`.
    pub dead_letter_max_bytes: u64,
    /// Whether to hold the directory with `flock`; a simulated disk has no such thing.
    pub lock: bool,
    /// Who is told when a thread dies.
    pub spine: Spine,
    /// Seconds that syncs take.
    pub sync_seconds: prometheus::Histogram,
}

/// Why the queue was not opened. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file that this version did not make.
    #[error(
        "{path} was not made by this version (v1.0.2's queue, perhaps): it is left untouched; drain it with the old binary, then move it away, or set {key} to another path", path = path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
    /// The directory belongs to a node of another name.
    #[error(
        "{path} belongs to node_name {owner}, not to {wanted}: events in it keep their identity; set node_name = {owner}, or give {wanted} a queue_file_path of its own", path = path.display()
    )]
    OtherOrigin {
        /// The file that says so.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who we are.
        wanted: Origin,
    },
    /// A newer format, or a log of another kind under this name.
    #[error("segment {path}: {text}", path = path.display())]
    Segment {
        /// The segment.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// The disk refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

impl FileQueue {
    /// Opens the queue, recovering what an earlier run left, and starts its threads.
    ///
    /// # Errors
    /// [`OpenError`]; nothing on disk is cut, renamed or overwritten then.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let dir = parent(&options.path).to_owned();
        durable_dir(&*options.disk, &dir).map_err(at(&dir))?;
        let ack_dir = parent(&options.ack_path);
        durable_dir(&*options.disk, ack_dir).map_err(at(ack_dir))?;
        // a first start that was killed may have left the directory's own name unsynced
        let _ = options.disk.sync_dir(parent(&dir));
        let mut lock = Vec::new();
        if options.lock {
            lock.push(DirLock::take(&suffixed(&options.path, ".lock"))?);
            // another queue_file_path in this directory would share the state
            lock.push(DirLock::take(&suffixed(&StateFile::path(&options.path), ".lock"))?);
        }
        if options.disk.exists(&options.path) {
            return Err(OpenError::Foreign { path: options.path, key: "queue_file_path" });
        }
        sweep(&options).map_err(at(&dir))?;
        let ack = find_ack(&options.place())?;
        let state = find_state(&options.place())?;
        let main_options = log_options(&options, options.path.clone());
        let position = ack.1.as_ref().and_then(|a| a.consumers.get(WRITER));
        let main = restore(main_options.clone(), position, ack.1.as_ref().map(|a| a.witness))?;
        let parked = find_parked(&main_options, ack.1.as_ref())?;
        let dead_base = suffixed(&options.path, ".dead");
        let dead = DeadLetters::open(
            LogOptions { kind: LogKind::Dead, ..log_options(&options, dead_base.clone()) },
            options.dead_letter_max_bytes,
        );
        let dead = dead.map_err(at(&dead_base))?;
        Recovered { ack, state, main, main_options, parked, dead, lock }.start(options)
    }
}

/// What was found on disk.
struct Recovered {
    ack: (Option<Slots<AckRecord>>, Option<AckRecord>),
    state: (Option<StateFile>, bool),
    main: Restored,
    main_options: LogOptions,
    parked: Vec<parked::Found>,
    dead: DeadLetters,
    lock: Vec<DirLock>,
}

impl Recovered {
    /// One above every seq that our own records show or reserve.
    fn used(&self) -> u64 {
        self.shown().max(self.state.0.as_ref().map_or(1, |s| s.record.ceiling))
    }

    /// One above every seq that our own records show.
    fn shown(&self) -> u64 {
        let state = self.state.0.as_ref();
        let used = [
            self.main.used(),
            self.parked.iter().map(|found| found.used).max().unwrap_or(0),
            self.dead.last().0 + 1,
            self.ack.1.as_ref().map_or(0, |a| a.witness.0 + 1),
            state.and_then(|s| s.record.history.released.values().max()).map_or(0, |s| s + 1),
        ];
        used.into_iter().max().unwrap_or(1)
    }

    /// What cannot be read, in any of the logs.
    fn damage(&self) -> Vec<Damage> {
        let parked = self.parked.iter().flat_map(|found| &found.damage);
        self.main.damage.iter().chain(parked).chain(self.dead.damage()).cloned().collect()
    }

    /// The channels that wait in the main log.
    fn backlog(&self) -> Vec<Option<ChannelName>> {
        let waiting = self.main.unreleased().into_iter().filter(|(_, load)| load.events > 0);
        waiting.map(|(channel, _)| channel).collect()
    }

    /// What waits, in the main log and in those of parked channels.
    fn unreleased(&self) -> Vec<(Option<ChannelName>, Load)> {
        let parked = self.parked.iter().flat_map(|found| found.unreleased.clone());
        self.main.unreleased().into_iter().chain(parked).collect()
    }

    fn start(mut self, options: Options) -> Result<FileQueue, OpenError> {
        let (used, shown_seqs) = (self.used(), self.shown());
        let (slots, ack) = std::mem::take(&mut self.ack);
        let (found, certain) = std::mem::take(&mut self.state);
        let (mut state, mut seqs) = state_for(found, &options, used)?;
        report(&self.damage(), &mut state, &options)?;
        let accounts = Accounts::new(options.ceilings, options.clock.clone());
        let (backlog, end) = (self.backlog(), self.main.end.reached);
        for (channel, load) in self.unreleased() {
            accounts.recovered(channel.as_ref(), load);
        }
        let mut log = self.main.log();
        let (tracker, mut reader) = (self.main.tracker(), self.main.reader());
        let carried = std::mem::take(&mut self.main.end.carried);
        let first_carried = carried.first().map(|frame| frame.first);
        let begun = begin(&mut log, &mut seqs, &mut state, carried);
        if begun.is_ok() {
            // what was only found in the page cache is durable by now
            redrive::settle(&self.dead, &self.main_options, &self.main.index, "this node stopped")
                .map_err(at(&options.path))?;
        }
        let ack = ack_slots(slots, ack, &options)?;
        let deliverable = deliverable(&mut reader, first_carried.unwrap_or(seqs.peek()));
        let parking = parking(&self.main_options, self.parked);
        let start = watermark::Start {
            assigned: Seq(shown_seqs.saturating_sub(1)),
            read: tracker.released(),
            end: end.max(log.witness().0),
            shown: log.witness().0,
            backlog,
            parked: first_parked(&parking),
            base: u64::try_from(options.clock.wall().0).unwrap_or(0),
        };
        let shared = Shared {
            disk: options.disk.clone(),
            base: options.path.clone(),
            main: self.main_options,
            clock: options.clock.clone(),
            sync: options.sync,
            min_free_bytes: options.min_free_bytes,
            accounts,
            index: self.main.index,
            inbox: Inbox::default(),
            more: tokio::sync::Notify::new(),
            tracker: Mutex::new(tracker),
            reader: Mutex::new(reader),
            any_parked: AtomicBool::new(!parking.channels.is_empty()),
            kept: Mutex::new(None),
            parked_view: Mutex::new(parking.view()),
            parking: Mutex::new(parking),
            marks: Arc::new(Watermark::new(start)),
            dead: self.dead,
            witness: Mutex::new(log.witness()),
            ack: Mutex::new(ack),
            refusing: Mutex::default(),
            damage: Mutex::new(state.record.damage.clone()),
            state: Mutex::new(state),
            next_at: Mutex::default(),
            certain: AtomicBool::new(certain),
            leasing: AtomicBool::new(true),
            deliverable,
            sync_seconds: options.sync_seconds.clone(),
            keeper: (Mutex::new(false), std::sync::Condvar::new()),
            redriving: tokio::sync::Mutex::new(()),
        };
        if let Err(e) = begun {
            shared.refuse(Some(format!("no new log segment: {e}")));
        }
        run(shared, log, seqs, &options, certain, self.lock)
    }
}

/// The parked channels that earlier runs left: by their segments, and by the ack record, which shows
/// where all segments of one are gone.
fn find_parked(
    main: &LogOptions,
    ack: Option<&AckRecord>,
) -> Result<Vec<parked::Found>, OpenError> {
    let mut channels = parked::channels(&*main.disk, &main.base).map_err(at(&main.base))?;
    let known = ack.into_iter().flat_map(|a| a.parked.keys()).filter_map(|c| Name::new(c).ok());
    channels.extend(known);
    channels.sort_unstable();
    channels.dedup();
    let find = |channel: ChannelName| {
        let record = ack.and_then(|a| a.parked.get(channel.as_str()));
        ParkedLog::find(main, channel, record)
    };
    channels.into_iter().map(find).collect()
}

/// Those that still hold something, as they go on.
fn parking(main: &LogOptions, found: Vec<parked::Found>) -> Parking {
    let mut channels = BTreeMap::new();
    for parked::Found { channel, mut log, .. } in found {
        if log.index.oldest().is_none() {
            // the ack record alone still knows it
            continue;
        }
        log.look();
        let why = "found so at start".to_owned();
        tracing::warn!(%channel, "channel {channel} is parked since an earlier run; its events are tried again at once");
        channels.insert(channel, Aside { log: Some(log), why });
    }
    Parking { main: main.clone(), channels }
}

/// The first seq of each channel that is set aside that may be unresolved.
fn first_parked(parking: &Parking) -> Vec<(ChannelName, Seq)> {
    let first = |(channel, aside): (&ChannelName, &Aside)| {
        Some((channel.clone(), aside.log.as_ref()?.first_unacked()))
    };
    parking.channels.iter().filter_map(first).collect()
}

/// The first seq that this start can deliver; `or` where the index shows nothing (on a full disk the
/// carried frames are shown later).
fn deliverable(reader: &mut Reader, or: Seq) -> Seq {
    match reader.peek() {
        Ok(next) => next.map_or(or, |(seq, _)| seq),
        // nobody knows: everything that was not released
        Err(_) => Seq(0),
    }
}

/// Keeps what was found damaged, and says it once.
fn report(damage: &[Damage], state: &mut StateFile, options: &Options) -> Result<(), OpenError> {
    for d in damage {
        if state.report(d).map_err(at(&StateFile::path(&options.path)))? {
            tracing::error!(
                segment = d.segment,
                from = d.from,
                to = d.to,
                events = d.events,
                "the log is damaged: {d}"
            );
        }
    }
    Ok(())
}

/// Starts the threads.
fn run(
    shared: Shared,
    log: Log,
    seqs: Seqs,
    options: &Options,
    certain: bool,
    lock: Vec<DirLock>,
) -> Result<FileQueue, OpenError> {
    let shared = Arc::new(shared);
    let first = seqs.peek();
    let now = options.clock.mono();
    let appender = Appender {
        shared: shared.clone(),
        log,
        seqs,
        wrote_at: now,
        synced_at: now,
        free_looked_at: None,
        tried_at: None,
        last_group: 0,
        last_sync: std::time::Duration::ZERO,
    };
    let keeping = shared.clone();
    let threads = [
        options.spine.thread("log", move || appender.run()),
        options.spine.thread("ack keeper", move || keeping.keep_until_stopped()),
    ];
    let threads: io::Result<Vec<_>> = threads.into_iter().collect();
    let threads = Mutex::new(threads.map_err(at(&options.path))?);
    Ok(FileQueue { shared, threads, first, fresh: !certain, _lock: lock })
}

pub(super) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn log_options(options: &Options, base: PathBuf) -> LogOptions {
    LogOptions {
        disk: options.disk.clone(),
        base,
        kind: LogKind::Queue,
        origin: options.origin.clone(),
        segment_bytes: options.segment_bytes,
    }
}

/// Removes what a start or a rotation was making when it died: nothing ever depended on it.
fn sweep(options: &Options) -> io::Result<()> {
    let dead = suffixed(&options.path, ".dead");
    let parked = parked::channels(&*options.disk, &options.path)?;
    let parked: Vec<PathBuf> = parked.iter().map(|c| parked::base_of(&options.path, c)).collect();
    for name in options.disk.list(parent(&options.path))? {
        let made = name.strip_suffix(".new").is_some_and(|name| {
            let logs = [&options.path, &dead].into_iter().chain(&parked);
            logs.into_iter().any(|base| begun_of(base, name).is_some())
        });
        if made {
            options.disk.remove(&parent(&options.path).join(name))?;
        }
    }
    Ok(())
}

/// What would keep a start from opening the queue, as far as that shows without changing anything
/// and while another process may hold it.
///
/// # Errors
/// [`OpenError`].
pub fn inspect(
    disk: Arc<dyn Disk>,
    path: &Path,
    ack_path: &Path,
    origin: &Origin,
) -> Result<(), OpenError> {
    if disk.exists(path) {
        return Err(OpenError::Foreign { path: path.to_owned(), key: "queue_file_path" });
    }
    let place = Place { disk: &*disk, path, ack_path, origin };
    find_ack(&place)?;
    find_state(&place).map(drop)
}

/// Where a queue's files are, and whose they must be.
struct Place<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    ack_path: &'a Path,
    origin: &'a Origin,
}

impl Options {
    fn place(&self) -> Place<'_> {
        Place {
            disk: &*self.disk,
            path: &self.path,
            ack_path: &self.ack_path,
            origin: &self.origin,
        }
    }
}

type Ack = (Option<Slots<AckRecord>>, Option<AckRecord>);

fn find_ack(place: &Place<'_>) -> Result<Ack, OpenError> {
    let path = place.ack_path;
    match Slots::<AckRecord>::open(place.disk, path).map_err(at(path))? {
        slots::Found::Absent => Ok((None, None)),
        slots::Found::Foreign => {
            Err(OpenError::Foreign { path: path.to_owned(), key: "queue_file_ack_path" })
        }
        slots::Found::Damaged(slots) => {
            tracing::error!(
                "{} cannot be read: the log is replayed from its oldest segment",
                path.display()
            );
            Ok((Some(slots), None))
        }
        slots::Found::Good(_, record) if record.origin != place.origin.as_str() => {
            Err(other_origin(path, record.origin, place.origin))
        }
        slots::Found::Good(slots, record) => Ok((Some(slots), Some(record))),
    }
}

pub(super) fn other_origin(path: &Path, owner: String, wanted: &Origin) -> OpenError {
    OpenError::OtherOrigin { path: path.to_owned(), owner, wanted: wanted.clone() }
}

/// The state file, and whether identities are certain without asking anybody.
fn find_state(place: &Place<'_>) -> Result<(Option<StateFile>, bool), OpenError> {
    let path = StateFile::path(place.path);
    match StateFile::find(place.disk, place.path).map_err(at(&path))? {
        FoundState::Absent => Ok((None, false)),
        FoundState::Foreign(path) => Err(OpenError::Foreign { path, key: "queue_file_path" }),
        FoundState::Damaged(state) => {
            tracing::error!(
                "{} cannot be read: storage is asked which seqs are in use",
                path.display()
            );
            Ok((Some(state), false))
        }
        FoundState::Good(state) if state.record.origin != place.origin.as_str() => {
            Err(other_origin(&path, state.record.origin, place.origin))
        }
        FoundState::Good(state) => {
            let certain = state.record.certain;
            Ok((Some(state), certain))
        }
    }
}

/// The state file with a ceiling above everything used, durable before any of it is given out.
fn state_for(
    found: Option<StateFile>,
    options: &Options,
    used: u64,
) -> Result<(StateFile, Seqs), OpenError> {
    let path = StateFile::path(&options.path);
    let mut seqs = Seqs::new(used, options.clock.clone());
    let ceiling = seqs.ceiling_for(1).map_err(io::Error::other).map_err(at(&path))?;
    let ceiling = ceiling.unwrap_or(seqs.peek().0);
    let state = match found {
        Some(mut state) => {
            let id = if state.record.node_id.is_empty() {
                new_node_id().map_err(at(&path))?
            } else {
                state.record.node_id.clone()
            };
            let origin = options.origin.to_string();
            let update = state.update(|record| {
                (record.origin, record.node_id, record.ceiling) = (origin, id, ceiling);
            });
            update.map_err(at(&path))?;
            state
        }
        None => {
            let node_id = new_node_id().map_err(at(&path))?;
            let origin = options.origin.to_string();
            let record = NodeState { origin, node_id, ceiling, ..NodeState::default() };
            StateFile::create(&*options.disk, &options.path, record).map_err(at(&path))?
        }
    };
    seqs.reserved(ceiling);
    Ok((state, seqs))
}

/// The new segment of this start. On a full disk it is tried again by the log thread, while older
/// segments are delivered.
fn begin(
    log: &mut Log,
    seqs: &mut Seqs,
    state: &mut StateFile,
    carried: Vec<Frame>,
) -> io::Result<()> {
    if let Some(ceiling) = seqs.ceiling_for(1).map_err(io::Error::other)? {
        state.update(|record| record.ceiling = ceiling)?;
        seqs.reserved(ceiling);
    }
    log.begin(seqs.peek(), carried)
}

fn ack_slots(
    slots: Option<Slots<AckRecord>>,
    record: Option<AckRecord>,
    options: &Options,
) -> Result<(Slots<AckRecord>, AckRecord), OpenError> {
    let record = record.unwrap_or_else(|| AckRecord {
        origin: options.origin.to_string(),
        ..AckRecord::default()
    });
    let slots = match slots {
        Some(slots) => slots,
        None => Slots::create(&*options.disk, &options.ack_path, &record)
            .map_err(at(&options.ack_path))?,
    };
    Ok((slots, record))
}
