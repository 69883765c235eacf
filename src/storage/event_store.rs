//! A storage that can be read by identity, and that takes foreign rows together with a cursor. The
//! contract, and no implementation.
//!
//! Does not know where foreign rows come from, nor which seqs are safe to serve.
//!
//! 1. `read` gives each identity of one origin and channel once, in rising order of seq, from `from`
//!    to `upto` and no further; the snapshot is newer than the call. `next` is the seq to go on with:
//!    behind the last row where a limit ended the page, else `upto + 1`. At least one row a page.
//! 2. `apply` stores rows and moves the cursor in one transaction, only where the stored cursor is
//!    `expect` (I10). Rows of our own origin are refused (I11).
//! 3. A row whose identity stands there with the same content is stored; with other content it becomes
//!    a conflict, recorded once (I12). One that fits no table is kept whole in the quarantine.
//! 4. What is read of a foreign origin includes what is kept in quarantine.

use std::future::Future;

use bytes::Bytes;

use super::{Storage, StorageError};
use crate::event::{ChannelName, Micros, Origin, Seq};

/// Which rows are wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose.
    pub origin: Origin,
    /// Of which channel.
    pub channel: ChannelName,
    /// The first seq that may be among them.
    pub from: Seq,
    /// The last one.
    pub upto: Seq,
    /// Most rows.
    pub rows: usize,
    /// Most bytes of payload; one row is always given.
    pub bytes: usize,
}

/// A row as peers see it: the columns of `events_raw`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// `origin_seq`.
    pub seq: Seq,
    /// `node_name`.
    pub node_name: String,
    /// `received_at`.
    pub received_at: Micros,
    /// `json_data`.
    pub payload: Bytes,
}

/// Rows that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In rising order of seq.
    pub rows: Vec<StoredRow>,
    /// The seq to go on with.
    pub next: Seq,
}

/// Rows to be stored, and the cursor that moves with them.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// Whose rows.
    pub origin: Origin,
    /// Their channel.
    pub channel: ChannelName,
    /// In rising order of seq.
    pub rows: Vec<StoredRow>,
    /// The cursor as it must stand; `None` where there is none yet.
    pub expect: Option<Seq>,
    /// The last seq received, from now on.
    pub to: Seq,
}

/// What came of applying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The stored cursor was another: nothing was done.
    pub stale: bool,
    /// Rows that are stored now, those that were before included.
    pub stored: u64,
    /// Rows whose identity holds other content.
    pub conflicts: u64,
    /// Rows that fit no table.
    pub quarantined: u64,
}

/// The role. See the module's contract.
pub trait EventStore: Storage {
    /// Rows of one origin and channel.
    fn read(&self, wanted: &Wanted) -> impl Future<Output = Result<Page, StorageError>> + Send;
    /// Stores foreign rows and moves the cursor.
    fn apply(&self, rows: &Foreign) -> impl Future<Output = Result<Applied, StorageError>> + Send;
    /// The stored cursor of an origin's channel.
    fn cursor(
        &self,
        origin: &Origin,
        channel: &ChannelName,
    ) -> impl Future<Output = Result<Option<Seq>, StorageError>> + Send;
}
