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

use std::collections::BTreeMap;
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
    /// The node id of the origin under which it is read again; `None` for the usual cursor. Its cursor
    /// is one of its own, and the usual one is raised to `to` in the same transaction where it is
    /// lower: what is read again never begins above the usual one, so there is no gap, and a relay
    /// serves up to the usual one.
    pub again: Option<String>,
    /// Those of `rows` whose payload is none, and why: kept in quarantine untried.
    pub unfit: BTreeMap<Seq, String>,
    /// Rows quarantined one after another before these.
    pub streak: u64,
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
    /// Too many rows would have to be quarantined ([`MAX_STREAK`] in a row, `streak` included, or
    /// [`MAX_ASIDE`] in all; conflicts likewise): nothing was done.
    pub too_many: bool,
    /// Rows quarantined one after another at the end of these.
    pub streak: u64,
}

/// So many rows in a row that fit no table are no accident: the channel stops.
pub const MAX_STREAK: u64 = 100;
/// The most rows that are kept in quarantine, and the most conflicts.
pub const MAX_ASIDE: u64 = 10_000;

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
    /// The stored cursors of all of an origin's channels, configured today or not.
    fn cursors(
        &self,
        origin: &Origin,
    ) -> impl Future<Output = Result<Vec<(ChannelName, Seq)>, StorageError>> + Send;
    /// The cursor of reading an origin's channel again under a node id.
    fn cursor_again(
        &self,
        origin: &Origin,
        channel: &ChannelName,
        id: &str,
    ) -> impl Future<Output = Result<Option<Seq>, StorageError>> + Send;
    /// The ids of an origin that were accepted; the one that is followed last.
    fn accepted_ids(
        &self,
        origin: &Origin,
    ) -> impl Future<Output = Result<Vec<String>, StorageError>> + Send;
    /// Accepts an id, and drops the cursors of these channels that were kept for reading it again, in
    /// one transaction.
    fn accept_id(
        &self,
        origin: &Origin,
        id: &str,
        channels: &[ChannelName],
    ) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// How many rows there are from `wanted.from` to `wanted.upto`, counted up to `most`.
    fn count(
        &self,
        wanted: &Wanted,
        most: u64,
    ) -> impl Future<Output = Result<u64, StorageError>> + Send;
}
