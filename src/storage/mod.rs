//! Storage: where events end up, each once. The contract, and no implementation.
//!
//! Does not know HTTP and does not know the queue.
//!
//! 1. `connect` is the first contact: it checks and recovers; until it succeeds nothing is appended.
//!    It is asked again after a failure.
//! 2. `append` is idempotent on the seq: events that stand there already are left as they are, and
//!    `Ok` means that every event of the batch stands there durably (I6, I7), but for those that it
//!    names: their data was refused, and nothing of them stands there.
//! 3. An error carries the decision ([`Kind`]); after one, nothing or a part of the batch may stand
//!    there, and the same batch is appended again or in pieces.
//! 4. `stands` tells which events are there with their content, behind every append that is still under way: it is asked
//!    before a dead letter is written.
//! 5. A storage with [`Storage::lanes`] of 1 is given rising seqs, one batch at a time; what comes again
//!    at or below its place stands there, or is refused, since it comes too late.

pub mod conformance;
pub mod event_store;
pub mod file;
pub mod history;
pub mod memory;
pub mod mend;
pub mod noop;
pub mod sql;

use std::collections::BTreeSet;
use std::future::Future;

use crate::event::{ChannelName, Event, Seq};

/// The storage's role. See the module's contract.
pub trait Storage: Send + Sync + 'static {
    /// First contact; the largest seq of ours that stands there comes back.
    fn connect(
        &self,
        contact: &Contact,
    ) -> impl Future<Output = Result<Option<Seq>, StorageError>> + Send;
    /// Stores events, in rising order of seq; those that are refused for what they hold. An error of
    /// [`Kind::Reject`] is about an event that the storage could not tell.
    fn append(
        &self,
        events: &[Event],
    ) -> impl Future<Output = Result<Vec<Refused>, StorageError>> + Send;
    /// Which of these events stand there.
    fn stands(
        &self,
        events: &[Event],
    ) -> impl Future<Output = Result<BTreeSet<Seq>, StorageError>> + Send;
    /// How many writers it can serve at once.
    fn lanes(&self) -> usize;
    /// Whether it answers, and to a message of so many bytes; changes nothing that counts.
    fn probe(&self, bytes: usize) -> impl Future<Output = Result<(), StorageError>> + Send;
}

/// What a storage is told of the node at first contact.
#[derive(Clone, Debug, Default)]
pub struct Contact {
    /// The oldest seq that may come again.
    pub first_unacked: Seq,
    /// The node's id: one unbroken history.
    pub node_id: String,
    /// The last seq that it shares with the id before it; `None` for the first of all.
    pub since: Option<Seq>,
    /// The ids before it.
    pub past: Vec<String>,
    /// How often the origin had been taken there when this node last took it.
    pub epoch: u64,
}

/// An event that storage refuses for what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub seq: Seq,
    /// Why; of [`Kind::Reject`].
    pub error: StorageError,
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An outage: the same again, for ever, with backoff; never a dead letter.
    Retry,
    /// The data: find the culprit, keep it as a dead letter, store the rest.
    Reject,
    /// A misconfigured table, say: that channel waits, the others go on.
    Fatal,
}

/// An error of the storage. The text never holds payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub struct StorageError {
    /// What to do.
    pub kind: Kind,
    /// The backend's code, such as `23505` or `ENOSPC`.
    pub code: String,
    /// For the operator.
    pub text: String,
    /// The channel it is about, where it is about one.
    pub channel: Option<ChannelName>,
}

/// The code of an error that is the connection's own.
pub const LOST: &str = "connection";
/// The code of an error that says that no connection was to be had, or that it was lost before it
/// carried events.
pub const CONNECT: &str = "connect";

impl StorageError {
    /// Whether the connection was lost: an event can be the reason, too.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.code == LOST
    }

    /// An outage.
    #[must_use]
    pub fn retry(code: impl Into<String>, text: impl Into<String>) -> Self {
        Self { kind: Kind::Retry, code: code.into(), text: text.into(), channel: None }
    }
}

/// The configured storage, as a closed set.
pub enum AnyStorage {
    /// Lines in a file.
    File(file::FileStorage),
    /// Nothing at all.
    Noop(noop::NoopStorage),
    /// Nothing on disk; tests and simulation.
    Memory(memory::MemoryStorage),
    /// A PostgreSQL database.
    Postgres(sql::SqlStorage<sql::postgres::Server>),
    /// A MySQL or MariaDB database.
    Mysql(sql::SqlStorage<sql::mysql::Server>),
    /// An SQLite database.
    Sqlite(sql::SqlStorage<sql::sqlite::Database>),
}

impl AnyStorage {
    /// What a database server says of its durability; nothing for other storages.
    #[must_use]
    pub fn facts(&self) -> Vec<(String, String)> {
        match self {
            Self::Postgres(sql) => sql.facts(),
            Self::Mysql(sql) => sql.facts(),
            Self::Sqlite(sql) => sql.facts(),
            Self::File(_) | Self::Noop(_) | Self::Memory(_) => Vec::new(),
        }
    }
}

macro_rules! each {
    ($self:ident, $s:ident => $body:expr) => {
        match $self {
            Self::File($s) => $body,
            Self::Noop($s) => $body,
            Self::Memory($s) => $body,
            Self::Postgres($s) => $body,
            Self::Mysql($s) => $body,
            Self::Sqlite($s) => $body,
        }
    };
}

impl Storage for AnyStorage {
    async fn connect(&self, contact: &Contact) -> Result<Option<Seq>, StorageError> {
        each!(self, s => s.connect(contact).await)
    }
    async fn append(&self, events: &[Event]) -> Result<Vec<Refused>, StorageError> {
        each!(self, s => s.append(events).await)
    }
    async fn stands(&self, events: &[Event]) -> Result<BTreeSet<Seq>, StorageError> {
        each!(self, s => s.stands(events).await)
    }
    fn lanes(&self) -> usize {
        each!(self, s => s.lanes())
    }
    async fn probe(&self, bytes: usize) -> Result<(), StorageError> {
        each!(self, s => s.probe(bytes).await)
    }
}
