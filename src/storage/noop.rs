//! Storage that discards everything: for measuring what comes before it.
//!
//! Knows nothing.

use std::collections::BTreeSet;

use super::{Contact, Refused, Storage, StorageError};
use crate::event::{Event, Seq};

/// Discards.
#[derive(Debug, Default)]
pub struct NoopStorage;

impl Storage for NoopStorage {
    async fn connect(&self, _contact: &Contact) -> Result<Option<Seq>, StorageError> {
        Ok(None)
    }
    async fn append(&self, _events: &[Event]) -> Result<Vec<Refused>, StorageError> {
        Ok(Vec::new())
    }
    async fn stands(&self, _events: &[Event]) -> Result<BTreeSet<Seq>, StorageError> {
        Ok(BTreeSet::new())
    }
    fn lanes(&self) -> usize {
        usize::MAX
    }
    async fn probe(&self, _bytes: usize) -> Result<(), StorageError> {
        Ok(())
    }
}
