//! Many bad rows among good ones: the bad ones are told apart by the database itself, in one look,
//! rather than by bisection.
//!
//! What the look cannot tell (a trigger's refusal, say) is left to bisection: then the batch is
//! refused as a whole. Does not know what becomes of the refused.

use std::collections::{BTreeMap, BTreeSet};

use super::contact::Ready;
use super::dialect::Class;
use super::route::Part;
use super::session::{Backend, Record, Session, Sifted, SqlError};
use super::{At, Inner, MEETINGS, seq_of};
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

    /// Stores the good rows; tells the bad ones. An error of code [`super::session::NO_SIEVE`] where the database
    /// cannot tell them apart.
    pub(super) async fn sift(
        &self,
        ready: &Ready,
        parts: &[Part<'_>],
    ) -> Result<Vec<Refused>, StorageError> {
        let mut found = BTreeMap::new();
        let mut meetings = 0;
        loop {
            let before = found.len();
            match self.sift_once(ready, parts, &mut found).await {
                Ok(true) => break,
                // of a row that one table refuses, no copy stands in another
                Ok(false) => debug_assert!(found.len() > before),
                Err((e, _)) if e.class == Class::AlreadyThere => {
                    let skip = found.keys().copied().collect();
                    let replayed = self.replay(ready, parts, &skip).await;
                    replayed.map_err(|(e, at)| self.judge(e, at, parts))?;
                    break;
                }
                Err((e, _)) if e.class == Class::RetryAtOnce && meetings < MEETINGS => {
                    meetings += 1;
                }
                Err((e, at)) => return Err(self.judge(e, at, parts)),
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
    ) -> Result<bool, (SqlError, At)> {
        let mut session = self.begin(ready).await?;
        let mut taken: BTreeSet<Seq> = BTreeSet::new();
        let mut whole = true;
        for (at, part) in parts.iter().enumerate() {
            let refused = match self.store_good(&mut session, part, found).await {
                Ok(refused) => refused,
                Err(e) => {
                    session.rollback().await;
                    return Err((e, At::Part(at)));
                }
            };
            whole &= !refused.iter().any(|(seq, _)| taken.contains(seq));
            found.extend(refused.into_iter().map(|(seq, e)| (seq, refusal(e, &part.channel))));
            if at + 1 < parts.len() {
                taken.extend(part.rows.iter().map(seq_of));
            }
        }
        if whole {
            session.commit().await.map_err(|e| (e, At::Commit))?;
        } else {
            session.rollback().await;
        }
        Ok(whole)
    }

    /// Stores what a table takes of a part, but for what was found before; what it refuses.
    async fn store_good(
        &self,
        session: &mut B::Session,
        part: &Part<'_>,
        found: &BTreeMap<Seq, StorageError>,
    ) -> Result<Vec<(Seq, SqlError)>, SqlError> {
        let rows = part.rows.iter().filter(|row| !found.contains_key(&seq_of(row)));
        let rows: Vec<&Record<'_>> = rows.collect();
        let Sifted { stored, refused } = session.store_good(&part.table, &rows).await?;
        if !refused.is_empty() {
            self.state().refusing.insert(part.table.name.clone(), PATIENCE);
        }
        let bad: BTreeSet<Seq> = refused.iter().map(|(seq, _)| *seq).collect();
        let good: Vec<&Record<'_>> =
            rows.into_iter().filter(|row| !bad.contains(&seq_of(row))).collect();
        self.all_taken(session, &part.table, &good, stored).await?;
        Ok(refused)
    }
}

fn refusal(e: SqlError, channel: &Option<ChannelName>) -> StorageError {
    let SqlError { class, code, text } = e;
    debug_assert!(class == Class::Reject, "{code}: {text}");
    StorageError { kind: Kind::Reject, code, text, channel: channel.clone() }
}
