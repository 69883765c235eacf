//! Opening the queue: the node's own state is read, its stream is taken where Redis answers, and the
//! file log must be drained.
//!
//! A Redis that does not answer keeps no node from starting: it accepts nothing until it does. Does not
//! know storage.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::acks;
use super::address::{Keys, Options};
use super::appender::Appender;
use super::book::{self, Book, FoundBook, Record};
use super::connection::{Broken, Reply, Wire};
use super::durability;
use super::handle::{RedisQueue, Tasks};
use super::keeper::Keeper;
use super::shared::{Contact, Shared, state_path};
use crate::fsx::{DirLock, LockError, durable_dir, parent};
use crate::queue::file;
use crate::queue::file::look::LogFiles;
use crate::queue::file::state::{FoundState, NodeState, StateFile, new_node_id};
use crate::seq::Seqs;

/// Why the queue was not opened. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file log, or the node's state beside it, stands in the way.
    #[error(transparent)]
    File(#[from] file::OpenError),
    /// The other backend still holds events.
    #[error(
        "queue_backend = {now}, and {events} events of this node still wait in {place}: set queue_backend = {before} until it has drained (/healthz: queue_depth 0), then change it again"
    )]
    Undrained {
        /// What is configured.
        now: &'static str,
        /// What was before.
        before: &'static str,
        /// How many.
        events: u64,
        /// Where.
        place: String,
    },
    /// The stream that was configured before still holds events.
    #[error(
        "queue_redis_db and queue_redis_stream name {now}, and {events} events of this node were waiting in {before}: set them back until it has drained (/healthz: queue_depth 0), then change them again"
    )]
    OtherStream {
        /// Database and stream as configured.
        now: String,
        /// As they were.
        before: String,
        /// How many.
        events: u64,
    },
    /// Whether the other backend still holds events is not known.
    #[error(
        "queue_backend = file, and this node's events were in {place}, which cannot be asked whether any still wait ({why}): let it answer under the queue_redis_* keys, or, where it is gone for good, remove {path}", path = path.display()
    )]
    Unasked {
        /// Where they were.
        place: String,
        /// Why it cannot be asked.
        why: String,
        /// The witness.
        path: PathBuf,
    },
    /// The stream is another node's.
    #[error("{0}")]
    Owner(String),
    /// A file that this version did not make.
    #[error("{path} was not made by this version: move it away", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
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

fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

impl RedisQueue {
    /// Opens the queue and starts its tasks; to be called within a runtime. Waits for Redis only as
    /// long as it may take to connect.
    ///
    /// # Errors
    /// [`OpenError`]; no event has been touched then.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let opening = options.clone();
        let found = crate::task::blocking(move || Found::look(&opening)).await?;
        let Found { node, book, certain, run, lock } = found;
        let seqs = Seqs::new(node.record.ceiling, options.clock.clone());
        let first = seqs.peek();
        let spine = options.spine.clone();
        let shared = Arc::new(Shared::new(options, run, node, book, certain));
        let appender = Appender { shared: shared.clone(), seqs };
        let tasks = Tasks {
            appender: spine.task("appender", appender.run()),
            acks: spine.task("acks", acks::run(shared.clone())),
            keeper: spine.task("keeper of Redis", Keeper::new(shared.clone()).run()),
        };
        let tasks = Mutex::new(Some(tasks));
        let queue = Self { shared, tasks, first, fresh: !certain, _lock: lock };
        queue.wait_for_contact().await?;
        Ok(queue)
    }

    async fn wait_for_contact(&self) -> Result<(), OpenError> {
        let mut contact = self.shared.contact.subscribe();
        let most = self.shared.options.timeout * 4;
        let made = contact.wait_for(|contact| *contact != Contact::Waited);
        let made = tokio::time::timeout(most, made).await;
        let made = made.ok().and_then(Result::ok).map(|contact| contact.clone());
        match made {
            Some(Contact::Refused(text)) => Err(OpenError::Owner(text)),
            // said already; it is tried again and again
            _ => Ok(()),
        }
    }
}

/// What stands on disk.
struct Found {
    node: StateFile,
    book: Book,
    certain: bool,
    run: String,
    lock: Vec<DirLock>,
}

impl Found {
    fn look(options: &Options) -> Result<Self, OpenError> {
        let dir = parent(&options.path);
        durable_dir(&*options.disk, dir).map_err(at(dir))?;
        let _ = options.disk.sync_dir(parent(dir));
        let mut lock = Vec::new();
        if options.lock {
            // the same as the file log's: one node a directory, whatever its backend
            for path in [options.path.clone(), state_path(options)] {
                let mut name = path.into_os_string();
                name.push(".lock");
                lock.push(DirLock::take(Path::new(&name))?);
            }
        }
        file_log_is_drained(options)?;
        let run = new_node_id().map_err(at(dir))?;
        let (node, certain) = find_node(options)?;
        let book = find_book(options, &run)?;
        Ok(Self { node, book, certain, run, lock })
    }
}

/// Refuses while the file log still holds events.
fn file_log_is_drained(options: &Options) -> Result<(), OpenError> {
    let files = LogFiles {
        disk: options.disk.clone(),
        path: options.path.clone(),
        ack_path: options.ack_path.clone(),
        origin: options.origin.clone(),
    };
    let Some(look) = files.stat()? else { return Ok(()) };
    let queued: u64 = look.queued.values().map(|load| load.events).sum();
    let parked: u64 = look.parked.values().map(|parked| parked.waiting.events).sum();
    if queued + parked > 0 {
        let place = format!("the log {}", options.path.display());
        let events = queued + parked;
        return Err(OpenError::Undrained { now: "redis", before: "file", events, place });
    }
    let dead = look.dead_letters.dead + look.dead_letters.redriving;
    if dead > 0 {
        tracing::warn!(
            "{dead} dead letters wait beside the file log: `replicon --set queue_backend=file dlq list` shows them while this node is stopped"
        );
    }
    Ok(())
}

fn find_book(options: &Options, run: &str) -> Result<Book, OpenError> {
    let path = book::path(&options.path);
    let mut book = match Book::find(&*options.disk, &options.path).map_err(at(&path))? {
        FoundBook::Foreign => return Err(OpenError::Foreign { path }),
        FoundBook::Absent => {
            let record = Record { closed: true, ..Record::default() };
            Book::create(&*options.disk, &options.path, record).map_err(at(&path))?
        }
        FoundBook::Good(book) => book,
    };
    let (record, place) = (&book.record, options.place());
    if !record.place.is_empty() && record.place != place && record.queued > 0 {
        let (before, events) = (record.place.clone(), record.queued);
        return Err(OpenError::OtherStream { now: place, before, events });
    }
    book.begin(options.origin.as_str(), &place, run).map_err(at(&path))?;
    Ok(book)
}

/// The node's state, and whether identities are certain without asking anybody.
fn find_node(options: &Options) -> Result<(StateFile, bool), OpenError> {
    let path = state_path(options);
    let origin = options.origin.to_string();
    match StateFile::find(&*options.disk, &options.path).map_err(at(&path))? {
        FoundState::Absent => {
            let node_id = new_node_id().map_err(at(&path))?;
            let record = NodeState { origin, node_id, ..NodeState::default() };
            let state = StateFile::create(&*options.disk, &options.path, record);
            Ok((state.map_err(at(&path))?, false))
        }
        FoundState::Foreign(path) => Err(OpenError::Foreign { path }),
        FoundState::Damaged(mut state) => {
            tracing::error!(
                "{} cannot be read: storage is asked which seqs are in use",
                path.display()
            );
            let node_id = new_node_id().map_err(at(&path))?;
            let update = state.update(|record| (record.origin, record.node_id) = (origin, node_id));
            update.map_err(at(&path))?;
            Ok((state, false))
        }
        FoundState::Good(state) if state.record.origin != origin => {
            let owner = state.record.origin.clone();
            let wanted = options.origin.clone();
            Err(file::OpenError::OtherOrigin { path, owner, wanted }.into())
        }
        FoundState::Good(state) => {
            let certain = state.record.certain;
            Ok((state, certain))
        }
    }
}

/// Whether a node that is now on the file log left events in Redis: refuses with their number, or where
/// nobody can tell. To be called before the file log is opened.
///
/// # Errors
/// [`OpenError::Undrained`] and [`OpenError::Unasked`].
pub async fn events_left(options: &Options) -> Result<(), OpenError> {
    let (disk, base) = (options.disk.clone(), options.path.clone());
    let path = book::path(&options.path);
    let found = crate::task::blocking(move || Book::find(&*disk, &base)).await;
    let mut book = match found.map_err(at(&path))? {
        FoundBook::Absent => return Ok(()),
        FoundBook::Foreign => return Err(OpenError::Foreign { path }),
        FoundBook::Good(book) => book,
    };
    if book.record.is_drained() {
        return Ok(());
    }
    let place = format!("{} (database and stream {})", options.shown(), book.record.place);
    if !book.record.place.is_empty() && book.record.place != options.place() {
        let why = format!("queue_redis_* names {} now, where they were not left", options.place());
        return Err(OpenError::Unasked { place, why, path });
    }
    match ours(options).await {
        Err(why) => Err(OpenError::Unasked { place, why: why.to_string(), path }),
        Ok(0) => {
            let drained = crate::task::blocking(move || {
                book.update(|record| (record.queued, record.closed) = (0, true))
            });
            drained.await.map_err(at(&path))
        }
        Ok(events) => Err(OpenError::Undrained { now: "file", before: "redis", events, place }),
    }
}

/// Whether a node that is now on the file log may have left events in Redis, as far as its own book
/// says.
///
/// # Errors
/// [`OpenError`] where that cannot be read.
pub fn may_be_left(disk: &dyn crate::fsx::Disk, queue_path: &Path) -> Result<bool, OpenError> {
    let path = book::path(queue_path);
    Ok(match Book::find(disk, queue_path).map_err(at(&path))? {
        FoundBook::Good(book) => !book.record.is_drained(),
        FoundBook::Absent | FoundBook::Foreign => false,
    })
}

/// How many events of this node the stream holds.
async fn ours(options: &Options) -> Result<u64, Broken> {
    let (wire, keys) = (Wire::open(options).await?, Keys::of(options));
    match owner(&wire, &keys).await? {
        None => return Err(Broken::Odd("no stream of this node stands there".to_owned())),
        Some(owner) if owner != options.origin.as_str() => return Ok(0),
        Some(_) => {}
    }
    let mut total = redis::cmd("HGET");
    total.arg(&keys.counts).arg("total");
    let reply = wire.ask(&total).await?;
    if reply.is_nil() { Ok(0) } else { reply.number() }
}

async fn owner(wire: &Wire, keys: &Keys) -> Result<Option<String>, Broken> {
    let mut ask = redis::cmd("HGET");
    ask.arg(&keys.owner).arg("origin");
    let reply: Reply = wire.ask(&ask).await?;
    if reply.is_nil() { Ok(None) } else { reply.text().map(Some) }
}

/// What Redis was found to have lost, and nobody has acknowledged: a line each. Changes nothing.
///
/// # Errors
/// What the disk says.
pub fn losses(disk: &dyn crate::fsx::Disk, queue_path: &Path) -> io::Result<Vec<String>> {
    Ok(match Book::find(disk, queue_path)? {
        FoundBook::Good(book) => book.record.losses.iter().map(ToString::to_string).collect(),
        FoundBook::Absent | FoundBook::Foreign => Vec::new(),
    })
}

/// What would keep a start from working with this Redis (first), and what is odd about it, as far as
/// that shows without changing anything. One that does not answer is odd: a start waits for it.
pub async fn preflight(options: &Options) -> (Vec<String>, Vec<String>) {
    let (mut problems, mut odd) = (Vec::new(), Vec::new());
    let keys = Keys::of(options);
    let looked = async {
        let wire = Wire::open(options).await?;
        let server = durability::ask(&wire).await?;
        problems.extend(server.refusal(&keys));
        odd.extend(server.doubts(options.wait_aof));
        odd.extend(server.warning(options.wait_aof && server.can_wait_for_aof()));
        let owner = owner(&wire, &keys).await?;
        if let Some(owner) = owner.filter(|owner| owner != options.origin.as_str()) {
            problems.push(format!(
                "the stream {} belongs to node_name {owner}, not to {}; give {} a queue_redis_stream of its own",
                keys.stream, options.origin, options.origin
            ));
        }
        Ok::<(), Broken>(())
    };
    if let Err(why) = looked.await {
        odd.push(format!(
            "{}: {why}; a start waits for it and takes no events meanwhile",
            options.shown()
        ));
    }
    (problems, odd)
}
