//! Rows of our own that come back, and rows in quarantine that are tried again: pages as those of
//! peers, but without a cursor, and with another rule for what stands there.
//!
//! A page of a peer sees to it that each of a channel's tables holds the row. Here a row that stands
//! in any of them is left as it is, since it was written under the channels of its day: a raw copy, or
//! a row in a table that its channel got later, is not added. Does not know peers, nor ids of nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::apply::{Aside, Plan, in_order, name};
use super::contact::Ready;
use super::dialect::Class;
use super::replay::same_row;
use super::route::Part;
use super::session::{Backend, Param, Record, Session, SqlError, TextRow};
use super::table::{Table, replicon_quarantine};
use super::value::{Head, Value, row, same_values, timestamptz};
use super::{Inner, MEETINGS, SqlStorage, seq_of, seq_param};
use crate::channel::schema::OnUnknown;
use crate::event::{MAX_SEQ, Name, Seq};
use crate::storage::event_store::{Foreign, StoredRow, Wanted};
use crate::storage::mend::{Kept, Mend, PutBack, Retried, Retry, Returned, fit};
use crate::storage::{Kind, StorageError};

/// Most identities of one statement.
const ROWS: usize = 500;
/// Below this no row of our own may be stored where nothing is marked.
const UNMARKED: Seq = Seq(u64::MAX);
/// Why a row of a channel that is in no file any more stays where it is.
const GONE: &str = "its channel is not in channels.yml here";

/// Which rows stand here already, and whether with the same content.
type Found = BTreeMap<Seq, bool>;

/// A page that an operator has asked for.
struct Asked<'a> {
    rows: &'a Foreign,
    /// No row below it may be stored.
    floor: Seq,
    /// Whether the rows come out of the quarantine.
    kept: bool,
}

/// The same page while it is worked on.
struct Work<'a> {
    /// The tables that can hold rows of the channel, as far as they stand.
    tables: Vec<Arc<Table>>,
    plan: Plan<'a>,
    found: Found,
}

/// What came of it.
#[derive(Default)]
struct Mended {
    unmarked: Option<Seq>,
    too_many: bool,
    stored: u64,
    standing: u64,
    conflicts: u64,
    refused: u64,
    reason: Option<String>,
    streak: u64,
}

impl<B: Backend> Mend for SqlStorage<B> {
    async fn put_back(&self, rows: &Returned) -> Result<PutBack, StorageError> {
        let Returned { origin, channel, unfit, streak, marked, .. } = rows;
        if *origin != self.0.options.origin {
            return Err(StorageError {
                kind: Kind::Reject,
                code: "foreign origin".to_owned(),
                text: format!("rows of {origin} are not this node's own: they come by pulling"),
                channel: Some(channel.clone()),
            });
        }
        let Some(last) = rows.rows.last() else {
            return Ok(PutBack { streak: *streak, ..PutBack::default() });
        };
        let foreign = Foreign {
            origin: origin.clone(),
            channel: channel.clone(),
            rows: rows.rows.clone(),
            expect: None,
            to: last.seq,
            again: None,
            unfit: unfit.clone(),
            streak: *streak,
        };
        let floor = marked.unwrap_or(UNMARKED);
        let mended = self.0.mend(&Asked { rows: &foreign, floor, kept: false }).await?;
        Ok(PutBack {
            unmarked: mended.unmarked,
            stored: mended.stored,
            standing: mended.standing,
            conflicts: mended.conflicts,
            quarantined: mended.refused,
            reason: mended.reason,
            too_many: mended.too_many,
            streak: mended.streak,
        })
    }

    async fn quarantined(&self) -> Result<Vec<Kept>, StorageError> {
        let rows = self.0.look(&self.0.backend.dialect().quarantine_groups(), &[], None).await?;
        let kept = |row: &TextRow| {
            let text = |at: usize| row.get(at).and_then(|text| text.as_deref());
            // what has no name was put there by hand
            let (origin, channel) = (Name::new(text(0)?).ok()?, Name::new(text(1)?).ok()?);
            Some(Kept { origin, channel, rows: text(2)?.parse().ok()? })
        };
        Ok(rows.iter().filter_map(kept).collect())
    }

    async fn retry_quarantined(&self, page: &Retry) -> Result<Retried, StorageError> {
        let (rows, more) = self.0.kept_rows(page).await?;
        let Some(last) = rows.last().map(|row| row.seq) else { return Ok(Retried::default()) };
        let own = page.origin == self.0.options.origin;
        let floor = if own { page.marked.unwrap_or(UNMARKED) } else { Seq(0) };
        let foreign = self.0.judged_again(page, rows);
        let mended = self.0.mend(&Asked { rows: &foreign, floor, kept: true }).await?;
        if mended.unmarked.is_some() {
            return Ok(Retried { unmarked: mended.unmarked, ..Retried::default() });
        }
        Ok(Retried {
            unmarked: None,
            moved: mended.stored + mended.standing,
            conflicts: mended.conflicts,
            stay: mended.refused,
            reason: mended.reason,
            next: more.then(|| last.next()),
        })
    }
}

impl<B: Backend> Inner<B> {
    /// A page out of the quarantine, and whether there may be more.
    async fn kept_rows(
        self: &Arc<Self>,
        page: &Retry,
    ) -> Result<(Vec<StoredRow>, bool), StorageError> {
        self.ready().await?;
        let wanted = Wanted {
            origin: page.origin.clone(),
            channel: page.channel.clone(),
            from: page.from,
            upto: Seq(MAX_SEQ),
            rows: page.rows,
            bytes: page.bytes,
        };
        let mut session = self.reader().await?;
        let read = self.rows_of(&mut session, &replicon_quarantine(), &wanted).await;
        session.rollback().await;
        read.map(|read| (read.rows, read.more))
    }

    /// Rows in quarantine as a page, each payload looked at once more: what came as none is none.
    fn judged_again(&self, page: &Retry, mut rows: Vec<StoredRow>) -> Foreign {
        let gone = self.options.registry.get(page.channel.as_str()).is_none();
        let mut unfit = BTreeMap::new();
        for row in &mut rows {
            match fit(&row.payload) {
                _ if gone => {
                    unfit.insert(row.seq, GONE.to_owned());
                }
                Ok(payload) => row.payload = payload,
                Err(why) => {
                    unfit.insert(row.seq, why);
                }
            }
        }
        Foreign {
            origin: page.origin.clone(),
            channel: page.channel.clone(),
            to: rows.last().map(|row| row.seq).unwrap_or_default(),
            rows,
            expect: None,
            again: None,
            unfit,
            streak: 0,
        }
    }

    /// Takes a page, as `take_page` does, but by the rule for what stands there.
    async fn mend(self: &Arc<Self>, asked: &Asked<'_>) -> Result<Mended, StorageError> {
        let rows = asked.rows;
        in_order(rows)?;
        let ready = self.ready().await?;
        let moments: Vec<String> =
            rows.rows.iter().map(|row| timestamptz(row.received_at)).collect();
        let plan = self.plan_of(rows, &moments);
        let tables = self.tables_for(rows, &plan).await?;
        let mut work = Work { tables, plan, found: Found::new() };
        let (mut careful, mut tries) = (false, 0);
        loop {
            let e = match self.mend_once(&ready, asked, &mut work, careful).await {
                Ok(Some(mended)) => return Ok(mended),
                // a table refused what another had taken: again, without those rows
                Ok(None) if tries < MEETINGS => {
                    tries += 1;
                    continue;
                }
                Ok(None) => StorageError::retry("mend", "the page was not taken whole"),
                Err(e) if !careful && matches!(e.class, Class::AlreadyThere | Class::Reject) => {
                    careful = true;
                    continue;
                }
                Err(e) if e.class == Class::RetryAtOnce && tries < MEETINGS => {
                    tries += 1;
                    continue;
                }
                Err(e) => Self::judge_page(e, &rows.channel),
            };
            return Err(e);
        }
    }

    /// The tables that can hold rows of the channel. Those that are to be written to and are missing,
    /// or refused a statement lately, are looked at first: those of a disabled channel may never have
    /// been made.
    async fn tables_for(
        self: &Arc<Self>,
        rows: &Foreign,
        plan: &Plan<'_>,
    ) -> Result<Vec<Arc<Table>>, StorageError> {
        let mut parts = Vec::new();
        for (table, _) in &plan.parts {
            if !self.stands_there(table).await? {
                self.state().suspects.insert(table.name.clone());
            }
            let channel = Some(rows.channel.clone());
            parts.push(Part { table: table.clone(), channel, rows: Vec::new() });
        }
        self.look_at_suspects(&parts).await?;
        let structured = self.targets.structured.get(&rows.channel).cloned();
        let mut tables = Vec::new();
        // what the columns hold is the content; a raw copy beside it is asked only without them
        for table in [structured, Some(self.targets.raw.clone())].into_iter().flatten() {
            if self.stands_there(&table).await? {
                tables.push(table);
            }
        }
        Ok(tables)
    }

    /// One transaction; nothing where it is to be begun again.
    async fn mend_once(
        &self,
        ready: &Ready,
        asked: &Asked<'_>,
        work: &mut Work<'_>,
        careful: bool,
    ) -> Result<Option<Mended>, SqlError> {
        let mut session = self.begin(ready).await.map_err(|(e, _)| e)?;
        let mended = async {
            self.leave_out(&mut session, asked.rows, work, false).await?;
            if !self.store_page(&mut session, &mut work.plan, careful).await? {
                return Ok(None);
            }
            // a row that was refused because our own writer stored it meanwhile stands there now
            if !work.plan.aside.is_empty() {
                self.leave_out(&mut session, asked.rows, work, true).await?;
            }
            if let Some(unmarked) = work.lowest_stored(asked.rows).filter(|s| *s < asked.floor) {
                return Ok(Some(Mended { unmarked: Some(unmarked), ..Mended::default() }));
            }
            let others = work.found.iter().filter(|(_, same)| !**same);
            work.plan.aside.extend(others.map(|(seq, _)| (*seq, Aside::Conflict)));
            let settled = match asked.kept {
                true => self.move_kept(&mut session, asked.rows, work).await,
                false => self.keep_refused(&mut session, asked.rows, work).await,
            };
            settled.map(Some)
        };
        match mended.await {
            Ok(Some(mended)) if mended.unmarked.is_none() && !mended.too_many => {
                session.commit().await?;
                Ok(Some(mended))
            }
            other => {
                session.rollback().await;
                other
            }
        }
    }

    /// Takes out of the plan what stands here; `late`, of the rows only that a table refused.
    async fn leave_out(
        &self,
        session: &mut B::Session,
        rows: &Foreign,
        work: &mut Work<'_>,
        late: bool,
    ) -> Result<(), SqlError> {
        let Work { tables, plan, found } = work;
        let open = |row: &&StoredRow| {
            !found.contains_key(&row.seq) && (!late || plan.aside.contains_key(&row.seq))
        };
        let wanted: Vec<&StoredRow> = rows.rows.iter().filter(open).collect();
        let there = self.find(session, tables, rows, &wanted).await?;
        plan.aside.retain(|seq, _| !there.contains_key(seq));
        for (_, records) in &mut plan.parts {
            records.retain(|record| !there.contains_key(&seq_of(record)));
        }
        plan.parts.retain(|(_, records)| !records.is_empty());
        found.extend(there);
        Ok(())
    }

    /// Which of these rows stand in any of the tables, and whether with the same content; the first
    /// table that holds one tells.
    async fn find(
        &self,
        session: &mut B::Session,
        tables: &[Arc<Table>],
        rows: &Foreign,
        wanted: &[&StoredRow],
    ) -> Result<Found, SqlError> {
        let mut found = Found::new();
        for table in tables {
            let open = wanted.iter().copied().filter(|row| !found.contains_key(&row.seq));
            let open: Vec<&StoredRow> = open.collect();
            for some in open.chunks(ROWS) {
                let sql = self.backend.dialect().existing(table, some.len());
                let mut params = vec![name(&rows.origin)];
                params.extend(some.iter().map(|row| seq_param(row.seq)));
                for there in session.rows(&sql, &params).await? {
                    let seq = there.get(1).and_then(|seq| seq.as_ref()?.parse().ok()).map(Seq);
                    let row = seq.and_then(|seq| some.iter().find(|row| row.seq == seq));
                    if let Some(row) = row {
                        found.insert(row.seq, self.is_same(table, rows, row, &there));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Whether a row that came has the content that stands there.
    fn is_same(&self, table: &Table, rows: &Foreign, stored: &StoredRow, there: &TextRow) -> bool {
        if rows.unfit.contains_key(&stored.seq) && fit(&stored.payload).is_err() {
            return false;
        }
        let at = timestamptz(stored.received_at);
        let head = Head {
            origin: rows.origin.as_str(),
            seq: stored.seq,
            node: &stored.node_name,
            channel: rows.channel.as_str(),
            received_at: &at,
        };
        if table.name == self.targets.raw.name {
            let values = vec![Some(Value::Json((&stored.payload[..]).into()))];
            let ours = Record { head, values };
            return same_row(table, &ours, there) || self.same_copy(table, &ours, there);
        }
        let channel = self.options.registry.get(rows.channel.as_str());
        let schema = channel.and_then(|channel| channel.schema());
        let ours = schema.and_then(|schema| row(schema, &stored.payload, OnUnknown::Drop).ok());
        ours.is_some_and(|values| same_row(table, &Record { head, values }, there))
    }

    /// Whether two raw copies of a structured channel have the same content, which is what the columns
    /// hold: one that came by way of a node without copies lacks what no column holds, and nulls.
    pub(super) fn same_copy(&self, table: &Table, ours: &Record<'_>, there: &TextRow) -> bool {
        let channel = self.options.registry.get(ours.head.channel);
        let Some(schema) = channel.and_then(|channel| channel.schema()) else { return false };
        let text = |at: usize| there.get(at).and_then(|text| text.as_deref());
        let (Some(Some(Value::Json(payload))), Some(theirs)) = (ours.values.first(), text(5))
        else {
            return false;
        };
        let mapped = |payload| row(schema, payload, OnUnknown::Drop);
        let (Ok(ours_mapped), Ok(theirs)) = (mapped(&payload[..]), mapped(theirs.as_bytes()))
        else {
            return false;
        };
        table.name == self.targets.raw.name
            && text(3) == Some(ours.head.channel)
            && same_values(&ours_mapped, &theirs)
    }

    /// Rows of our own: keeps what no table takes, and drops what was kept of those that stand now.
    async fn keep_refused(
        &self,
        session: &mut B::Session,
        rows: &Foreign,
        work: &Work<'_>,
    ) -> Result<Mended, SqlError> {
        let applied = self.set_aside(session, rows, &work.plan).await?;
        if applied.too_many {
            return Ok(Mended { too_many: true, ..Mended::default() });
        }
        if self.keeps_any(session, rows).await? {
            for stored in rows.rows.iter().filter(|row| !work.refuses(row.seq)) {
                self.drop_kept(session, rows, stored.seq).await?;
            }
        }
        let standing = work.found.values().filter(|same| **same).count() as u64;
        Ok(Mended {
            stored: applied.stored.saturating_sub(standing),
            standing,
            conflicts: applied.conflicts,
            refused: applied.quarantined,
            reason: work.first_reason(),
            streak: applied.streak,
            ..Mended::default()
        })
    }

    /// Rows out of the quarantine: those that stand now leave it, the others get today's reason.
    async fn move_kept(
        &self,
        session: &mut B::Session,
        rows: &Foreign,
        work: &Work<'_>,
    ) -> Result<Mended, SqlError> {
        let standing = work.found.values().filter(|same| **same).count() as u64;
        let mut mended = Mended { standing, reason: work.first_reason(), ..Mended::default() };
        for stored in &rows.rows {
            match work.plan.aside.get(&stored.seq) {
                Some(Aside::Quarantine(reason)) => {
                    let sql = self.backend.dialect().quarantine_reason();
                    let reason = Param::Text(reason.as_str().into());
                    let params = [reason, name(&rows.origin), seq_param(stored.seq)];
                    session.execute(&sql, &params).await?;
                    mended.refused += 1;
                    continue;
                }
                Some(Aside::Conflict) => {
                    self.record_conflict(session, rows, stored).await?;
                    mended.conflicts += 1;
                }
                None => mended.stored += 1,
            }
            self.drop_kept(session, rows, stored.seq).await?;
        }
        mended.stored = mended.stored.saturating_sub(standing);
        Ok(mended)
    }

    /// Whether any row of the page's stretch is kept in quarantine.
    pub(super) async fn keeps_any(
        &self,
        session: &mut B::Session,
        rows: &Foreign,
    ) -> Result<bool, SqlError> {
        let first = rows.rows.first().map(|row| row.seq).unwrap_or_default();
        let params = [
            name(&rows.origin),
            name(&rows.channel),
            seq_param(first),
            seq_param(rows.to),
            Param::Int(1),
        ];
        let sql = self.backend.dialect().count_page(&replicon_quarantine());
        let found = session.rows(&sql, &params).await?;
        Ok(found.into_iter().flatten().flatten().next().is_some_and(|count| count != "0"))
    }

    pub(super) async fn drop_kept(
        &self,
        session: &mut B::Session,
        rows: &Foreign,
        seq: Seq,
    ) -> Result<(), SqlError> {
        let params = [name(&rows.origin), seq_param(seq)];
        session.execute(&self.backend.dialect().quarantine_delete(), &params).await.map(drop)
    }
}

impl Work<'_> {
    /// The lowest row that stood nowhere and was not refused.
    fn lowest_stored(&self, rows: &Foreign) -> Option<Seq> {
        let stored =
            |seq: &Seq| !self.found.contains_key(seq) && !self.plan.aside.contains_key(seq);
        rows.rows.iter().map(|row| row.seq).find(stored)
    }

    fn refuses(&self, seq: Seq) -> bool {
        matches!(self.plan.aside.get(&seq), Some(Aside::Quarantine(_)))
    }

    fn first_reason(&self) -> Option<String> {
        self.plan.aside.values().find_map(|aside| match aside {
            Aside::Quarantine(reason) => Some(reason.clone()),
            Aside::Conflict => None,
        })
    }
}
