//! Many bad rows among good ones: the bad ones are told apart by the database itself, in one look,
//! rather than by bisection.
//!
//! What the look cannot tell (a trigger's refusal, say) is left to bisection: then the batch is
//! refused as a whole. Does not know what becomes of the refused.

use std::collections::{BTreeMap, BTreeSet};

use super::contact::Ready;
use super::dialect::Class;
use super::route::Part;
use super::session::{Backend, Record, Session, SqlError};
use super::{Inner, MEETINGS, seq_of};
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
        let mut found = BTreeMap::new();
        let mut meetings = 0;
        loop {
            let before = found.len();
            match self.sift_once(ready, &parts, &mut found).await {
                Ok(true) => break,
                // of a row that one table refuses, no copy stands in another
                Ok(false) => debug_assert!(found.len() > before),
                Err((e, at)) if e.class == Class::AlreadyThere => {
                    self.replay(ready, &parts).await.map_err(|(e, replayed)| {
                        self.judge(e, replayed.or(at).map(|at| &parts[at]))
                    })?;
                    break;
                }
                Err((e, _)) if e.class == Class::RetryAtOnce && meetings < MEETINGS => {
                    meetings += 1;
                }
                Err((e, at)) => return Err(self.judge(e, at.map(|at| &parts[at]))),
            }
            for part in &mut parts {
                part.rows.retain(|row| !found.contains_key(&seq_of(row)));
            }
        }
        Ok(found.into_iter().map(|(seq, error)| Refused { seq, error }).collect())
    }

    /// One transaction; not committed where a table refuses what another one had taken.
    async fn sift_once(
        &self,
        ready: &Ready,
        parts: &[Part<'_>],
        found: &mut BTreeMap<Seq, StorageError>,
    ) -> Result<bool, (SqlError, Option<usize>)> {
        let mut session = self.backend.begin().await.map_err(|e| (e, None))?;
        let mut taken: BTreeSet<Seq> = BTreeSet::new();
        let mut whole = true;
        let stored = async {
            self.guard(&mut session, ready, false).await.map_err(|e| (e, None))?;
            for (at, part) in parts.iter().enumerate() {
                let rows = part.rows.iter().filter(|row| !found.contains_key(&seq_of(row)));
                let rows: Vec<&Record<'_>> = rows.collect();
                let refused = session.store_good(&part.table, &rows).await;
                let refused = refused.map_err(|e| (e, Some(at)))?;
                if !refused.is_empty() {
                    self.state().refusing.insert(part.table.name.clone(), PATIENCE);
                }
                whole &= !refused.iter().any(|(seq, _)| taken.contains(seq));
                found.extend(refused.into_iter().map(|(seq, e)| (seq, refusal(e, &part.channel))));
                if at + 1 < parts.len() {
                    taken.extend(rows.iter().map(|row| seq_of(row)));
                }
            }
            Ok(())
        };
        match stored.await {
            Ok(()) if whole => {
                session.commit().await.map_err(|e| (e, None))?;
                Ok(true)
            }
            stored => {
                session.rollback().await;
                stored.map(|()| false)
            }
        }
    }
}

fn refusal(e: SqlError, channel: &Option<ChannelName>) -> StorageError {
    let SqlError { class, code, text } = e;
    debug_assert!(class == Class::Reject, "{code}: {text}");
    StorageError { kind: Kind::Reject, code, text, channel: channel.clone() }
}
