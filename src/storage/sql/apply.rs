//! Foreign rows, a page at a time, together with the cursor that moves past them.
//!
//! The fast road takes a page whole. Where the tables do not, the careful one tells row from row: what
//! stands there is compared, what is refused goes into the quarantine, the rest is stored; all of it
//! in one transaction with the cursor. Does not know peers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::contact::Ready;
use super::dialect::Class;
use super::session::{Backend, Param, Record, Session, SqlError};
use super::store::again;
use super::table::{Table, replication_progress, replicon_conflicts, replicon_quarantine};
use super::value::{Head, Value, row, timestamptz};
use super::{Inner, MEETINGS, seq_of, seq_param};
use crate::channel::schema::OnUnknown;
use crate::event::{ChannelName, Seq};
use crate::storage::event_store::{Applied, Foreign, MAX_ASIDE, MAX_STREAK, StoredRow};
use crate::storage::{Kind, StorageError};

/// Undone alone, where a table refuses a row of it.
const SAVEPOINT: &str = "SAVEPOINT part";
const UNDO: &str = "ROLLBACK TO SAVEPOINT part";
const FORGET: &str = "RELEASE SAVEPOINT part";

/// Why a row does not stand in its tables.
pub(super) enum Aside {
    /// Its identity holds other content.
    Conflict,
    /// No table takes it, and why.
    Quarantine(String),
}

/// The rows of a page by table, and what no row can be made of.
pub(super) struct Plan<'a> {
    pub(super) parts: Vec<(Arc<Table>, Vec<Record<'a>>)>,
    pub(super) aside: BTreeMap<Seq, Aside>,
}

impl<B: Backend> Inner<B> {
    pub(super) async fn take_page(
        self: &Arc<Self>,
        foreign: &Foreign,
    ) -> Result<Applied, StorageError> {
        if foreign.origin == self.options.origin {
            return Err(StorageError {
                kind: Kind::Reject,
                code: "own origin".to_owned(),
                text: format!("rows of {} are written by this node alone", foreign.origin),
                channel: Some(foreign.channel.clone()),
            });
        }
        in_order(foreign)?;
        let ready = self.ready().await?;
        let moments: Vec<String> =
            foreign.rows.iter().map(|row| timestamptz(row.received_at)).collect();
        let mut plan = self.plan_of(foreign, &moments);
        let mut careful = false;
        let mut meetings = 0;
        loop {
            let known = plan.aside.len();
            let e = match self.take_once(&ready, foreign, &mut plan, careful).await {
                Ok(Some(applied)) => return Ok(applied),
                // a table refused what another had taken: again, without those rows
                Ok(None) if plan.aside.len() > known => continue,
                Ok(None) => StorageError::retry("apply", "the page was not taken whole"),
                Err(e) if !careful && matches!(e.class, Class::AlreadyThere | Class::Reject) => {
                    careful = true;
                    continue;
                }
                Err(e) if e.class == Class::RetryAtOnce && meetings < MEETINGS => {
                    meetings += 1;
                    continue;
                }
                Err(e) => Self::judge_page(e, &foreign.channel),
            };
            return Err(e);
        }
    }

    /// What fails there is no outage where it names the data or the table: the channel stops.
    pub(super) fn judge_page(e: SqlError, channel: &ChannelName) -> StorageError {
        let SqlError { class, code, text } = e;
        match class {
            Class::Fatal | Class::Reject | Class::AlreadyThere => {
                StorageError { kind: Kind::Fatal, code, text, channel: Some(channel.clone()) }
            }
            Class::Locked | Class::Retry | Class::RetryAtOnce => StorageError::retry(code, text),
        }
    }

    pub(super) fn plan_of<'a>(&self, foreign: &'a Foreign, moments: &'a [String]) -> Plan<'a> {
        let channel = self.options.registry.get(foreign.channel.as_str());
        let schema = channel.and_then(|channel| channel.schema());
        let with_raw = schema.is_none() || channel.is_some_and(|channel| channel.store_raw);
        let mut structured = Vec::new();
        let mut raw = Vec::new();
        let mut aside = BTreeMap::new();
        for (stored, at) in foreign.rows.iter().zip(moments) {
            let head = || Head {
                origin: foreign.origin.as_str(),
                seq: stored.seq,
                node: &stored.node_name,
                channel: foreign.channel.as_str(),
                received_at: at,
            };
            if let Some(why) = foreign.unfit.get(&stored.seq) {
                aside.insert(stored.seq, Aside::Quarantine(why.clone()));
                continue;
            }
            if let Some(schema) = schema {
                match row(schema, &stored.payload, OnUnknown::Drop) {
                    Ok(values) => structured.push(Record { head: head(), values }),
                    Err(e) => {
                        aside.insert(stored.seq, Aside::Quarantine(e.to_string()));
                        continue;
                    }
                }
            }
            if with_raw {
                let values = vec![Some(Value::Json((&stored.payload[..]).into()))];
                raw.push(Record { head: head(), values });
            }
        }
        let table = self.targets.structured.get(&foreign.channel).cloned();
        let parts = [(table, structured), (Some(self.targets.raw.clone()), raw)];
        let parts = parts.into_iter().filter_map(|(table, rows)| Some((table?, rows)));
        Plan { parts: parts.filter(|(_, rows)| !rows.is_empty()).collect(), aside }
    }

    /// One transaction; nothing where it is to be begun again.
    async fn take_once(
        &self,
        ready: &Ready,
        foreign: &Foreign,
        plan: &mut Plan<'_>,
        careful: bool,
    ) -> Result<Option<Applied>, SqlError> {
        let mut session = self.begin(ready).await.map_err(|(e, _)| e)?;
        let taken = async {
            if !self.move_cursor(&mut session, foreign).await? {
                return Ok(Some(Applied { stale: true, ..Applied::default() }));
            }
            if !self.store_page(&mut session, plan, careful).await? {
                return Ok(None);
            }
            self.set_aside(&mut session, foreign, plan).await.map(Some)
        };
        match taken.await {
            Ok(Some(applied)) if !applied.stale && !applied.too_many => {
                session.commit().await?;
                Ok(Some(applied))
            }
            other => {
                session.rollback().await;
                other
            }
        }
    }

    /// First, so that two that apply the same page meet here.
    async fn move_cursor(
        &self,
        session: &mut B::Session,
        foreign: &Foreign,
    ) -> Result<bool, SqlError> {
        let usual = foreign.origin.as_str();
        let Some(id) = &foreign.again else {
            return self.set_cursor(session, usual, foreign, foreign.expect).await;
        };
        let own = again(&foreign.origin, id);
        if !self.set_cursor(session, &own, foreign, foreign.expect).await? {
            return Ok(false);
        }
        match self.stored_cursor(session, usual, foreign).await? {
            Some(stands) if stands >= foreign.to => Ok(true),
            stands => self.set_cursor(session, usual, foreign, stands).await,
        }
    }

    async fn stored_cursor(
        &self,
        session: &mut B::Session,
        cursor: &str,
        foreign: &Foreign,
    ) -> Result<Option<Seq>, SqlError> {
        let params = [Param::Text(cursor.into()), name(&foreign.channel)];
        let rows = session.rows(&self.backend.dialect().progress_read(), &params).await?;
        let seq = rows.into_iter().flatten().flatten().next();
        Ok(seq.and_then(|seq| seq.parse().ok()).map(Seq))
    }

    /// Whether the cursor was the expected one.
    async fn set_cursor(
        &self,
        session: &mut B::Session,
        cursor: &str,
        foreign: &Foreign,
        expect: Option<Seq>,
    ) -> Result<bool, SqlError> {
        let dialect = self.backend.dialect();
        let now = Param::Text(timestamptz(self.options.clock.wall()).into());
        let (origin, channel) = (Param::Text(cursor.into()), name(&foreign.channel));
        let Some(expect) = expect else {
            if self.stored_cursor(session, cursor, foreign).await?.is_some() {
                return Ok(false);
            }
            let params = [origin, channel, seq_param(foreign.to), now];
            let sql = dialect.insert(&replication_progress(), 1);
            return match session.execute(&sql, &params).await {
                // another one was quicker
                Err(e) if e.class == Class::AlreadyThere => Ok(false),
                first => Ok(first? == 1),
            };
        };
        let params = [seq_param(foreign.to), now, origin, channel, seq_param(expect)];
        Ok(session.execute(&dialect.progress_advance(), &params).await? == 1)
    }

    /// Whether the tables took all rows but those that are set aside.
    pub(super) async fn store_page(
        &self,
        session: &mut B::Session,
        plan: &mut Plan<'_>,
        careful: bool,
    ) -> Result<bool, SqlError> {
        let Plan { parts, aside } = plan;
        for (at, (table, rows)) in parts.iter().enumerate() {
            let rows = rows.iter().filter(|row| !aside.contains_key(&seq_of(row)));
            let rows: Vec<&Record<'_>> = rows.collect();
            if !careful {
                self.store_rows(session, table, &rows).await?;
                continue;
            }
            let standing = self.standing(session, table, &rows).await?;
            let known = aside.len();
            let others = standing.iter().filter(|(_, same)| !**same);
            aside.extend(others.map(|(seq, _)| (*seq, Aside::Conflict)));
            let missing = rows.into_iter().filter(|row| !standing.contains_key(&seq_of(row)));
            let missing: Vec<&Record<'_>> = missing.collect();
            self.store_halving(session, table, &missing, aside).await?;
            if at > 0 && aside.len() > known {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Stores what the table takes; halves what it refuses, down to the rows that are to blame.
    async fn store_halving(
        &self,
        session: &mut B::Session,
        table: &Table,
        rows: &[&Record<'_>],
        aside: &mut BTreeMap<Seq, Aside>,
    ) -> Result<(), SqlError> {
        let mut open = vec![rows];
        while let Some(rows) = open.pop() {
            if rows.is_empty() {
                continue;
            }
            session.execute(SAVEPOINT, &[]).await?;
            match self.store_rows(session, table, rows).await {
                Ok(()) => {}
                Err(e) if matches!(e.class, Class::Reject | Class::AlreadyThere) => {
                    session.execute(UNDO, &[]).await?;
                    if let [row] = rows {
                        aside.insert(seq_of(row), Aside::Quarantine(e.to_string()));
                    } else {
                        let (left, right) = rows.split_at(rows.len() / 2);
                        open.extend([right, left]);
                    }
                }
                Err(e) => return Err(e),
            }
            session.execute(FORGET, &[]).await?;
        }
        Ok(())
    }

    /// Records what does not stand in its tables, each once; as long as that is not too much.
    pub(super) async fn set_aside(
        &self,
        session: &mut B::Session,
        foreign: &Foreign,
        plan: &Plan<'_>,
    ) -> Result<Applied, SqlError> {
        let mut applied = Applied { streak: foreign.streak, ..Applied::default() };
        let mut longest = 0;
        for stored in &foreign.rows {
            applied.streak += 1;
            match plan.aside.get(&stored.seq) {
                Some(Aside::Quarantine(reason)) => {
                    longest = longest.max(applied.streak);
                    self.quarantine(session, foreign, stored, reason).await?;
                    applied.quarantined += 1;
                    continue;
                }
                Some(Aside::Conflict) => {
                    self.record_conflict(session, foreign, stored).await?;
                    applied.conflicts += 1;
                }
                None => applied.stored += 1,
            }
            applied.streak = 0;
        }
        // what is read again and fits today leaves the quarantine
        if foreign.again.is_some() && self.keeps_any(session, foreign).await? {
            for stored in &foreign.rows {
                if !matches!(plan.aside.get(&stored.seq), Some(Aside::Quarantine(_))) {
                    self.drop_kept(session, foreign, stored.seq).await?;
                }
            }
        }
        let dialect = self.backend.dialect();
        let full = longest >= MAX_STREAK
            || (applied.quarantined > 0
                && self.counted(session, &dialect.quarantine_count()).await? > MAX_ASIDE)
            || (applied.conflicts > 0
                && self.counted(session, &dialect.conflict_count()).await? > MAX_ASIDE);
        Ok(match full {
            true => Applied { too_many: true, ..Applied::default() },
            false => applied,
        })
    }

    async fn counted(&self, session: &mut B::Session, sql: &str) -> Result<u64, SqlError> {
        let rows = session.rows(sql, &[]).await?;
        let count = rows.into_iter().flatten().flatten().next();
        Ok(count.and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    pub(super) async fn record_conflict(
        &self,
        session: &mut B::Session,
        foreign: &Foreign,
        stored: &StoredRow,
    ) -> Result<(), SqlError> {
        tracing::error!(
            origin = %foreign.origin, seq = %stored.seq, channel = %foreign.channel,
            "event {} of {} came with other content than stands here: it is kept in replicon_conflicts",
            stored.seq, foreign.origin
        );
        let params = vec![
            name(&foreign.origin),
            seq_param(stored.seq),
            name(&foreign.channel),
            Param::Text(stored.node_name.as_str().into()),
            Param::Text(timestamptz(stored.received_at).into()),
            Param::Blob((&stored.payload[..]).into()),
            Param::Text(timestamptz(self.options.clock.wall()).into()),
        ];
        self.insert_once(session, &replicon_conflicts(), &params).await
    }

    async fn quarantine(
        &self,
        session: &mut B::Session,
        foreign: &Foreign,
        stored: &StoredRow,
        reason: &str,
    ) -> Result<(), SqlError> {
        tracing::warn!(
            origin = %foreign.origin, seq = %stored.seq, channel = %foreign.channel,
            "event {} of {} fits no table here: it is kept in replicon_quarantine: {reason}",
            stored.seq, foreign.origin
        );
        let params = vec![
            name(&foreign.origin),
            seq_param(stored.seq),
            name(&foreign.channel),
            Param::Blob(super::store::to_wire(stored).into()),
            Param::Text(reason.into()),
            Param::Text(timestamptz(self.options.clock.wall()).into()),
        ];
        self.insert_once(session, &replicon_quarantine(), &params).await
    }

    /// A row of one of our own tables, whose first parameters are its identity.
    async fn insert_once(
        &self,
        session: &mut B::Session,
        table: &Table,
        params: &[Param<'_>],
    ) -> Result<(), SqlError> {
        let dialect = self.backend.dialect();
        let identity = params.get(..2).unwrap_or_default();
        if session.rows(&dialect.stands(table), identity).await?.is_empty() {
            session.execute(&dialect.insert(table, 1), params).await?;
        }
        Ok(())
    }
}

/// A page's rows rise and lie not beyond where its cursor will stand, which never goes back.
pub(super) fn in_order(foreign: &Foreign) -> Result<(), StorageError> {
    let before = foreign.expect.unwrap_or(Seq(0));
    let rising = foreign.rows.windows(2).all(|pair| pair[0].seq < pair[1].seq);
    let within = foreign.rows.last().is_none_or(|row| row.seq <= foreign.to);
    if rising && within && foreign.to >= before {
        return Ok(());
    }
    Err(StorageError {
        kind: Kind::Reject,
        code: "page".to_owned(),
        text: format!("the rows of {} do not follow each other", foreign.origin),
        channel: Some(foreign.channel.clone()),
    })
}

pub(super) fn name<'a>(name: &'a ChannelName) -> Param<'a> {
    Param::Text(name.as_str().into())
}
