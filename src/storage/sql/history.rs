//! What a contact finds of this node's own history, and how far its events are released.
//!
//! Does not know what follows from it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::session::{Backend, Param, Session, SqlError};
use super::store::channel_and_seq;
use super::{At, Inner, SqlStorage, seq_param};
use crate::event::{ChannelName, Seq};
use crate::storage::history::{Found, HistoryStore, WHOLE};
use crate::storage::{Contact, StorageError};

/// Servers behind a balancer take turns: so soon after one was met another one is told nothing, and is
/// not met anew.
const TURNS: Duration = Duration::from_secs(10);
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
        let written = match self.0.meets(&mut session).await {
            Ok(Server::Known) => self.0.raise(&mut session, &rows).await,
            Ok(Server::Another) => {
                session.rollback().await;
                let text = "another server answers than the one that was met a moment ago";
                return Err(StorageError::retry("contact", text));
            }
            Ok(Server::Stranger) => {
                session.rollback().await;
                // the next contact shows what stands there
                self.0.forget(ready.epoch);
                let text = "the server is another one, or went back, since it was met";
                return Err(StorageError::retry("contact", text));
            }
            Err(e) => Err(e),
        };
        if let Err(e) = written {
            session.rollback().await;
            return Err(self.0.judge(e, At::Before, &[]));
        }
        session.commit().await.map_err(|e| self.0.judge(e, At::Before, &[]))?;
        let mut state = self.0.state();
        for (channel, seq) in rows {
            let told = state.told.entry(channel.to_owned()).or_default();
            *told = seq.max(*told);
        }
        Ok(())
    }
}

/// Which server it is, and for how long it has run, as far as it says so: another one, or one that
/// was started anew, may lack what was written last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Incarnation {
    name: String,
    uptime: u64,
}

impl Incarnation {
    /// Whether this is the one of before, looked at later.
    fn goes_on(&self, before: &Self) -> bool {
        self.name == before.name && self.uptime >= before.uptime
    }
}

/// Who answers, beside what was met and told.
enum Server {
    /// The one that was met.
    Known,
    /// Another one, which shows what was told, right after one was met: what it lacks beyond is not
    /// known.
    Another,
    /// It must be met anew.
    Stranger,
}

impl<B: Backend> Inner<B> {
    /// Which server answers.
    pub(super) async fn incarnation(
        &self,
        session: &mut B::Session,
    ) -> Result<Incarnation, SqlError> {
        let mut told = Vec::new();
        for sql in self.backend.dialect().incarnation() {
            let rows = session.rows(sql, &[]).await?;
            let last = rows.into_iter().flatten().next_back().flatten();
            told.push(last.unwrap_or_default());
        }
        let uptime = told.get(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        let name = told.into_iter().next().unwrap_or_default();
        Ok(Incarnation { name, uptime })
    }

    /// Whether the server is the one that was met, and shows what it was told.
    async fn meets(&self, session: &mut B::Session) -> Result<Server, SqlError> {
        let incarnation = self.incarnation(session).await?;
        let stands = self.released(session).await?;
        let mut state = self.state();
        let shows = |(channel, seq): (&String, &Seq)| stands.get(channel) >= Some(seq);
        let goes_on = incarnation.goes_on(&state.incarnation);
        let lately = self.options.clock.mono().saturating_sub(state.met_at) < TURNS;
        if !state.told.iter().all(shows) {
            return Ok(Server::Stranger);
        }
        if goes_on {
            state.incarnation = incarnation;
            return Ok(Server::Known);
        }
        Ok(if lately { Server::Another } else { Server::Stranger })
    }

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
        Ok(rows.iter().filter_map(channel_and_seq).collect())
    }
}
