//! What a contact finds of this node's own history, and how far its events are released.
//!
//! Does not know what follows from it.

use std::collections::BTreeMap;

use super::session::{Backend, Param, Session, SqlError, TextRow};
use super::{At, Inner, SqlStorage, seq_param};
use crate::event::{ChannelName, Seq};
use crate::storage::history::{Found, HistoryStore, WHOLE};
use crate::storage::{Contact, StorageError};

/// Most rows of one statement.
const ROWS: usize = 200;

impl<B: Backend> HistoryStore for SqlStorage<B> {
    async fn found(&self) -> Result<Option<Found>, StorageError> {
        if self.0.state().contact.node_id.is_empty() {
            return Ok(None);
        }
        self.0.ready().await?;
        Ok(self.0.state().found.take())
    }

    async fn renew(&self, contact: &Contact) -> Result<(), StorageError> {
        {
            let mut state = self.0.state();
            state.contact.clone_from(contact);
            state.ready = None;
        }
        self.0.ready().await.map(drop)
    }

    async fn release(
        &self,
        channels: &[(ChannelName, Seq)],
        whole: Seq,
    ) -> Result<(), StorageError> {
        let ready = {
            let state = self.0.state();
            state.ready.clone().filter(|_| state.found.is_none())
        };
        let Some(ready) = ready else {
            return Err(StorageError::retry("contact", "the contact was lost meanwhile"));
        };
        let named = channels.iter().map(|(channel, seq)| (channel.as_str(), *seq));
        let rows: Vec<(&str, Seq)> = named.chain([(WHOLE, whole)]).collect();
        let begun = self.0.begin(&ready).await;
        let mut session = begun.map_err(|(e, at)| self.0.judge(e, at, &[]))?;
        let written = self.0.raise(&mut session, &rows).await;
        match written {
            Ok(()) => session.commit().await.map_err(|e| self.0.judge(e, At::Before, &[])),
            Err(e) => {
                session.rollback().await;
                Err(self.0.judge(e, At::Before, &[]))
            }
        }
    }
}

impl<B: Backend> Inner<B> {
    /// Raises released seqs; none goes back.
    pub(super) async fn raise(
        &self,
        session: &mut B::Session,
        rows: &[(&str, Seq)],
    ) -> Result<(), SqlError> {
        for some in rows.chunks(ROWS) {
            let sql = self.backend.dialect().released_upsert(some.len());
            let one = |(channel, seq): &(&str, Seq)| {
                [self.origin(), Param::Text((*channel).to_owned().into()), seq_param(*seq)]
            };
            let params: Vec<Param<'_>> = some.iter().flat_map(one).collect();
            session.execute(&sql, &params).await?;
        }
        Ok(())
    }

    /// Each channel's released seq, and when the owner last lived.
    pub(super) async fn released(
        &self,
        session: &mut B::Session,
    ) -> Result<BTreeMap<String, Seq>, SqlError> {
        let rows = session.rows(&self.backend.dialect().released_read(), &[self.origin()]).await?;
        let pair = |row: &TextRow| match row.as_slice() {
            [Some(channel), Some(seq)] => Some((channel.clone(), Seq(seq.parse().ok()?))),
            _ => None,
        };
        Ok(rows.iter().filter_map(pair).collect())
    }
}
