//! Storage in memory, whose answers a test can turn: outages, refusals, lost answers.
//!
//! For tests and simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Contact, Kind, Refused, Storage, StorageError};
use crate::event::{Event, Seq};

/// What the next appends meet.
pub type Trouble = Box<dyn FnMut(&[Event]) -> Option<(StorageError, bool)> + Send>;

#[derive(Default)]
struct State {
    rows: BTreeMap<Seq, Event>,
    trouble: Option<Trouble>,
    appends: Vec<usize>,
    order: Vec<Event>,
}

/// A storage in memory; clones share it.
#[derive(Clone, Default)]
pub struct MemoryStorage(Arc<Mutex<State>>);

impl MemoryStorage {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `trouble` is asked before each append: an error to answer with, and whether the
    /// rows are stored all the same (an answer lost after the commit).
    pub fn trouble(
        &self,
        trouble: impl FnMut(&[Event]) -> Option<(StorageError, bool)> + Send + 'static,
    ) {
        self.lock().trouble = Some(Box::new(trouble));
    }

    /// No more trouble.
    pub fn heal(&self) {
        self.lock().trouble = None;
    }

    /// All rows, by seq.
    #[must_use]
    pub fn rows(&self) -> Vec<Event> {
        self.lock().rows.values().cloned().collect()
    }

    /// All rows, in the order in which they came.
    #[must_use]
    pub fn order(&self) -> Vec<Event> {
        self.lock().order.clone()
    }

    /// How many events each append so far was given.
    #[must_use]
    pub fn appends(&self) -> Vec<usize> {
        self.lock().appends.clone()
    }
}

impl Storage for MemoryStorage {
    async fn connect(&self, _contact: &Contact) -> Result<Option<Seq>, StorageError> {
        Ok(self.lock().rows.last_key_value().map(|(seq, _)| *seq))
    }

    async fn append(&self, events: &[Event]) -> Result<Vec<Refused>, StorageError> {
        let mut state = self.lock();
        state.appends.push(events.len());
        let mut trouble = state.trouble.take();
        let verdict = trouble.as_mut().and_then(|trouble| trouble(events));
        state.trouble = trouble;
        let (error, stored) = match verdict {
            Some((error, stored)) => (Some(error), stored),
            None => (None, true),
        };
        if stored {
            for event in events {
                let before = state.rows.insert(event.seq, event.clone());
                if before.is_none() {
                    state.order.push(event.clone());
                }
                assert!(before.is_none_or(|b| b == *event), "two events of one identity");
            }
        }
        error.map_or(Ok(Vec::new()), Err)
    }

    async fn stands(&self, events: &[Event]) -> Result<BTreeSet<Seq>, StorageError> {
        let state = self.lock();
        Ok(events.iter().map(|e| e.seq).filter(|seq| state.rows.contains_key(seq)).collect())
    }

    fn lanes(&self) -> usize {
        usize::MAX
    }

    async fn probe(&self, _bytes: usize) -> Result<(), StorageError> {
        Ok(())
    }
}

/// A refusal of data, as a test means it.
#[must_use]
pub fn reject(text: &str) -> StorageError {
    StorageError {
        kind: Kind::Reject,
        code: "rejected".to_owned(),
        text: text.to_owned(),
        channel: None,
    }
}
