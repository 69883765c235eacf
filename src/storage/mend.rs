//! What an operator has done to rows: those of our own origin that were lost come back, and those in
//! quarantine are tried again. The contract, and no implementation.
//!
//! Does not know where lost rows come from, nor who draws a new node id.
//!
//! 1. `put_back` takes rows of our own origin alone. A row that stands in any table of its channel is
//!    compared and never written again: equal is standing, other content is a conflict, recorded once.
//!    What stands nowhere is stored; what no table takes is kept in the quarantine under our origin.
//! 2. A row of our own origin is stored only where it lies at or above the mark that its caller made
//!    durable: one that would lie below it is named, and nothing of the page is done.
//! 3. `retry_quarantined` moves the rows of one page that fit in one transaction: into their tables, or
//!    to the conflicts where other content stands there. The others stay, with the reason of today.
//! 4. Both take rows a page at a time, and hold a session of the storage no longer than for one.

use std::collections::BTreeMap;
use std::future::Future;

use bytes::Bytes;

use super::StorageError;
use super::event_store::{EventStore, StoredRow};
use crate::event::{ChannelName, Origin, Seq};
use crate::json::{self, DuplicateKeys, Form, Profile};

/// What a payload of a peer must look like. Deeper than our own door takes by default: the peer's may
/// take more, and whether it can be stored is for the storage to say.
const PROFILE: Profile =
    Profile { max_depth: 128, duplicate_keys: DuplicateKeys::Last, max_items: 1 };

/// Rows of our own origin that a peer still has.
#[derive(Clone, Debug)]
pub struct Returned {
    /// Whose rows: our own.
    pub origin: Origin,
    /// Their channel.
    pub channel: ChannelName,
    /// In rising order of seq.
    pub rows: Vec<StoredRow>,
    /// Those of `rows` whose payload is none, and why.
    pub unfit: BTreeMap<Seq, String>,
    /// Rows that no table took one after another before these.
    pub streak: u64,
    /// The lowest seq that may be stored; `None` where nothing is marked yet.
    pub marked: Option<Seq>,
}

/// What came of putting back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// The lowest row that would be stored lies below what is marked: nothing was done.
    pub unmarked: Option<Seq>,
    /// Rows that stood nowhere and stand there now.
    pub stored: u64,
    /// Rows that stood there with the same content.
    pub standing: u64,
    /// Rows whose identity holds other content.
    pub conflicts: u64,
    /// Rows that no table takes.
    pub quarantined: u64,
    /// Why the first of those is not taken.
    pub reason: Option<String>,
    /// Too many rows would have to be kept in quarantine, as for foreign rows: nothing was done.
    pub too_many: bool,
    /// Rows that no table took one after another at the end of these.
    pub streak: u64,
}

/// Rows that are kept in quarantine, of one channel of one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose.
    pub origin: Origin,
    /// Of which channel.
    pub channel: ChannelName,
    /// How many.
    pub rows: u64,
}

/// A page of rows in quarantine that is to be tried again.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Whose.
    pub origin: Origin,
    /// Of which channel.
    pub channel: ChannelName,
    /// The first seq that may be among them.
    pub from: Seq,
    /// Most rows.
    pub rows: usize,
    /// Most bytes of payload; one row is always tried.
    pub bytes: usize,
    /// For rows of our own origin: the lowest seq that may be stored; `None` where nothing is marked.
    pub marked: Option<Seq>,
}

/// What came of trying again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// The lowest row of our own that would be stored lies below what is marked: nothing was done.
    pub unmarked: Option<Seq>,
    /// Rows that stand in their tables now, those included that stood there with the same content.
    pub moved: u64,
    /// Rows that went to the conflicts.
    pub conflicts: u64,
    /// Rows that no table takes today either.
    pub stay: u64,
    /// Why the first of those is not taken.
    pub reason: Option<String>,
    /// The seq to go on with; `None` where these were the last.
    pub next: Option<Seq>,
}

/// The role. See the module's contract.
pub trait Mend: EventStore {
    /// Stores rows of our own origin that are missing here.
    fn put_back(
        &self,
        rows: &Returned,
    ) -> impl Future<Output = Result<PutBack, StorageError>> + Send;
    /// What is kept in quarantine, by origin and channel, in this order.
    fn quarantined(&self) -> impl Future<Output = Result<Vec<Kept>, StorageError>> + Send;
    /// Tries a page of rows in quarantine again.
    fn retry_quarantined(
        &self,
        page: &Retry,
    ) -> impl Future<Output = Result<Retried, StorageError>> + Send;
}

/// The payload of a peer as our own door would have taken it.
///
/// # Errors
/// Why the door would not have; never holds any of it.
pub fn fit(raw: &Bytes) -> Result<Bytes, String> {
    if raw.first() != Some(&b'{') {
        return Err("the payload is no JSON object".to_owned());
    }
    match json::scan(raw, Form::Json, &PROFILE) {
        Ok(items) => {
            items.first().map(|item| item.payload(raw)).ok_or_else(|| "there is none".to_owned())
        }
        Err(wrong) => Err(wrong.first().map(|w| w.reason.clone()).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_our_door_would_not_take_does_not_fit() {
        for (raw, word) in
            [("5", "no JSON object"), ("[{}]", "no JSON object"), ("{\"a\":\"\\u0000\"}", "")]
        {
            let why = fit(&Bytes::from_static(raw.as_bytes())).unwrap_err();
            assert!(why.contains(word), "{raw}: {why}");
        }
        let good = Bytes::from_static(b"{\"n\":1.10}");
        assert_eq!(fit(&good), Ok(good));
    }
}
