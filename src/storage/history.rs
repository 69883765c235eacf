//! What a storage knows of this node's own history: who wrote there before, and how far each channel's
//! events had been released when it was last told. The contract, and no implementation.
//!
//! 1. Every contact shows what stood there before it changed anything: a storage that went back shows
//!    less than this node told it.
//! 2. `release` never writes while a contact has not been looked at: what it would raise is the only
//!    witness of a storage that went back.
//!
//! Does not know queues, nor what follows from what was found.

use std::collections::BTreeMap;
use std::future::Future;

use super::event_store::EventStore;
use super::{Contact, StorageError};
use crate::event::{ChannelName, Seq};

/// Under this name, which no channel has, stands the least of all channels.
pub const WHOLE: &str = "*";

/// What contacts found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The node id that wrote there last; `None` where this origin never did.
    pub owner: Option<String>,
    /// Somebody else has taken the origin since this node last did, or the storage is another one.
    pub stranger: bool,
    /// How often the origin has been taken by now.
    pub epoch: u64,
    /// How far each channel's events were released.
    pub released: BTreeMap<String, Seq>,
}

impl Found {
    /// Everything at or below it stood there, of whatever channel.
    #[must_use]
    pub fn whole(&self) -> Seq {
        self.of(WHOLE)
    }

    /// How far that channel's events were released.
    #[must_use]
    pub fn of(&self, channel: &str) -> Seq {
        self.released.get(channel).copied().unwrap_or_default()
    }

    /// What a later contact found too.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        let least = |(channel, seq): (String, Seq)| {
            let seq = later.released.get(&channel)?.min(&seq).to_owned();
            Some((channel, seq))
        };
        Self {
            owner: self.owner,
            stranger: self.stranger || later.stranger,
            epoch: later.epoch,
            released: self.released.into_iter().filter_map(least).collect(),
        }
    }
}

/// The role. See the module's contract.
pub trait HistoryStore: EventStore {
    /// What contacts found since this was last asked; `None` where there was none, or nobody has told
    /// the storage yet whose it is. Makes the contact where it was lost.
    fn found(&self) -> impl Future<Output = Result<Option<Found>, StorageError>> + Send;
    /// Takes the origin under another id.
    fn renew(&self, contact: &Contact) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Raises how far channels are released; the least of all too.
    fn release(
        &self,
        channels: &[(ChannelName, Seq)],
        whole: Seq,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;
}
