//! Many bad rows among good ones: the bad ones are told apart by the database itself, in one look,
//! rather than by bisection.
//!
//! What the look cannot tell (a trigger's refusal, say) is left to bisection: then the batch is
//! refused as a whole. Does not know what becomes of the refused.

use std::collections::BTreeMap;

use super::contact::Ready;
use super::dialect::Class;
use super::route::Part;
use super::session::{Backend, Session, SqlError};
use super::{Inner, seq_of};
use crate::event::{ChannelName, Seq};
use crate::storage::{Kind, Refused, StorageError};

/// After a refusal, so many batches of a table are looked through first.
const PATIENCE: u32 = 64;

impl<B: Backend> Inner<B> {
    /// Whether one of these tables refused rows lately.
    pub(super) fn expects_refusals(&self, parts: &[Part<'_>]) -> bool {
        let mut state = self.state();
        let mut expects = false;
        for part in parts {
            if let Some(left) = state.refusing.get_mut(&part.table.name) {
                expects = true;
                *left -= 1;
                if *left == 0 {
                    state.refusing.remove(&part.table.name);
                }
            }
        }
        expects
    }

    /// Stores the good rows; tells the bad ones.
    pub(super) async fn sift(
        &self,
        ready: &Ready,
        mut parts: Vec<Part<'_>>,
    ) -> Result<Vec<Refused>, StorageError> {
        let found = self.refused(ready, &parts).await.map_err(|(e, at)| {
            let part = at.map(|at| &parts[at]);
            self.judge(e, part)
        })?;
        for part in &mut parts {
            // of a row that one table refuses, no copy stands in another
            part.rows.retain(|row| !found.contains_key(&seq_of(row)));
        }
        parts.retain(|part| !part.rows.is_empty());
        if !parts.is_empty()
            && let Err((e, at)) = self.store(ready, &parts).await
        {
            return Err(self.judge(e, at.map(|at| &parts[at])));
        }
        Ok(found.into_iter().map(|(seq, error)| Refused { seq, error }).collect())
    }

    async fn refused(
        &self,
        ready: &Ready,
        parts: &[Part<'_>],
    ) -> Result<BTreeMap<Seq, StorageError>, (SqlError, Option<usize>)> {
        let mut session = self.backend.begin().await.map_err(|e| (e, None))?;
        let mut found = BTreeMap::new();
        for (at, part) in parts.iter().enumerate() {
            let looked = match self.guard(&mut session, ready, false).await {
                Ok(()) => session.refused(&part.table, &part.rows).await.map_err(|e| (e, Some(at))),
                Err(e) => Err((e, None)),
            };
            match looked {
                Ok(refused) => {
                    if !refused.is_empty() {
                        self.state().refusing.insert(part.table.name.clone(), PATIENCE);
                    }
                    let told = refused.into_iter().map(|(seq, e)| (seq, refusal(e, &part.channel)));
                    found.extend(told);
                }
                Err(e) => {
                    session.rollback().await;
                    return Err(e);
                }
            }
        }
        session.rollback().await;
        Ok(found)
    }
}

fn refusal(e: SqlError, channel: &Option<ChannelName>) -> StorageError {
    let SqlError { class, code, text } = e;
    debug_assert!(class == Class::Reject, "{code}: {text}");
    StorageError { kind: Kind::Reject, code, text, channel: channel.clone() }
}
