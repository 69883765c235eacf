//! Storage that discards everything: for measuring what comes before it.
//!
//! Knows nothing.

use super::{Contact, Storage, StorageError};
use crate::event::{Event, Seq};

/// Discards.
#[derive(Debug, Default)]
pub struct NoopStorage;

impl Storage for NoopStorage {
    async fn connect(&self, _contact: &Contact) -> Result<Option<Seq>, StorageError> {
        Ok(None)
    }
    async fn append(&self, _events: &[Event]) -> Result<(), StorageError> {
        Ok(())
    }
    async fn stands(&self, _event: &Event) -> Result<bool, StorageError> {
        Ok(false)
    }
    fn lanes(&self) -> usize {
        usize::MAX
    }
    async fn probe(&self, _bytes: usize) -> Result<(), StorageError> {
        Ok(())
    }
}
