//! What the flow needs of a database: sessions, statements as text, and errors that carry a class.
//!
//! The contract of an executor, and no implementation. Does not know tables or events.

use std::future::Future;

use super::dialect::{Class, Dialect};
use super::table::Table;
use super::value::{Head, Value};
use crate::event::Seq;
use crate::storage::{CONNECT, LOST};

pub use super::value::sqlite::Bind as Param;

/// A row as it is read back: every column as text, or null.
pub type TextRow = Vec<Option<String>>;

/// The first rows that a statement gives.
#[derive(Debug, Default)]
pub struct Within {
    /// They.
    pub rows: Vec<TextRow>,
    /// There are more, which are lost: of the session nothing but its end may be asked.
    pub cut: bool,
}

/// A row to be stored.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its canonical columns.
    pub head: Head<'a>,
    /// The others, in the order of the table.
    pub values: Vec<Option<Value<'a>>>,
}

/// The code of an error that says that bad rows cannot be told from good ones at once.
pub const NO_SIEVE: &str = "no sieve";

/// What became of rows that were stored as far as they are good.
#[derive(Debug, Default)]
pub struct Sifted {
    /// How many the server says that it stored.
    pub stored: u64,
    /// The others, and why.
    pub refused: Vec<(Seq, SqlError)>,
}

/// Sessions of a database.
pub trait Backend: Send + Sync + 'static {
    /// One session, in a transaction.
    type Session: Session;
    /// The session that holds the origin's lock.
    type Lock: Lock;

    /// Its words.
    fn dialect(&self) -> &dyn Dialect;
    /// Begins a transaction.
    fn begin(&self) -> impl Future<Output = Result<Self::Session, SqlError>> + Send;
    /// A session of its own that holds the lock of an origin; `None` where somebody else has it.
    fn lock(
        &self,
        origin: &str,
    ) -> impl Future<Output = Result<Option<Self::Lock>, SqlError>> + Send;
    /// How many writers it can serve at once.
    fn lanes(&self) -> usize;
    /// A row as the dialect takes its parameters.
    fn params<'v>(&self, record: &'v Record<'_>) -> Vec<Param<'v>>;
    /// Runs a statement outside of any transaction.
    fn execute_alone(&self, sql: &str) -> impl Future<Output = Result<(), SqlError>> + Send;
}

/// A session in a transaction; dropped without [`Session::commit`], nothing of it stands.
pub trait Session: Send {
    /// Runs a statement; how many rows it changed.
    fn execute(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
    ) -> impl Future<Output = Result<u64, SqlError>> + Send;
    /// Runs a statement; what it gives.
    fn rows(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
    ) -> impl Future<Output = Result<Vec<TextRow>, SqlError>> + Send;
    /// As [`Session::rows`], but no further than the row with which they are larger than `most` bytes: a
    /// few large ones do not take the memory of many small ones.
    fn rows_within(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        most: usize,
    ) -> impl Future<Output = Result<Within, SqlError>> + Send;
    /// Stores rows by the fastest road; how many the server says that it stored.
    fn store(
        &mut self,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> impl Future<Output = Result<u64, SqlError>> + Send;
    /// Stores the rows that the table takes, and tells those that it refuses for what they hold. An
    /// error of code [`NO_SIEVE`] where they cannot be told apart so.
    fn store_good(
        &mut self,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> impl Future<Output = Result<Sifted, SqlError>> + Send;
    /// Undoes it. What cannot be undone now is undone when the session ends.
    fn rollback(self) -> impl Future<Output = ()> + Send;
    /// Makes it durable.
    fn commit(self) -> impl Future<Output = Result<(), SqlError>> + Send;
}

/// The session that holds a lock.
pub trait Lock: Send {
    /// Whether the lock is still held, asked of the server.
    fn ping(&mut self) -> impl Future<Output = Result<(), SqlError>> + Send;
}

/// An error of the database. Its text holds names of its own, never a value of an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub struct SqlError {
    /// What it asks for.
    pub class: Class,
    /// The server's code, or a word of ours.
    pub code: String,
    /// For the operator.
    pub text: String,
}

impl SqlError {
    /// The connection failed, was lost, or was not to be had in time.
    #[must_use]
    pub fn connection(text: impl Into<String>) -> Self {
        Self { class: Class::Retry, code: LOST.to_owned(), text: text.into() }
    }

    /// As it is told before any event was sent: then no event can be its cause.
    #[must_use]
    pub fn before_events(mut self) -> Self {
        if self.code == LOST {
            CONNECT.clone_into(&mut self.code);
        }
        self
    }
}
