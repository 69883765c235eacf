//! First contact: the origin's lock and row, the tables, and what stands there already.
//!
//! Asked for before anything is written, and again whenever the lock was lost. Whatever fails here is
//! an outage: nothing was refused to any event.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::dialect::Class;
use super::history::Incarnation;
use super::route::Part;
use super::schema::{Difference, Standing, compare};
use super::session::{Backend, Lock, Param, Session, SqlError, TextRow};
use super::table::{Index, Table, plan, reading_index, replicon_node};
use super::value::timestamptz;
use super::{Inner, seq_param, whose};
use crate::event::Seq;
use crate::storage::history::Found;
use crate::storage::{CONNECT, Kind, StorageError};
use crate::task;

/// How often the holder of an origin shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// An origin is taken over from another node id after so long a silence.
const SILENCE_MS: u64 = 30_000;
/// Longest that a look at the lock may take.
const PING: Duration = Duration::from_secs(5);
/// The channel under which `replicon_released` holds when the owner last lived, ms since 1970: a row
/// apart from the one that writers hold.
const ALIVE: &str = "";

/// A contact that stands.
#[derive(Debug)]
pub struct Ready {
    /// This node's id.
    pub node_id: String,
    /// How often the origin was taken, this time included.
    pub epoch: u64,
    /// The largest seq of ours that stands there.
    pub last: Option<Seq>,
    /// What the server says of its durability.
    pub facts: Vec<(String, String)>,
}

impl<B: Backend> Inner<B> {
    /// The contact, made where there is none.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<Arc<Ready>, StorageError> {
        if let Some(ready) = self.state().ready.clone() {
            return Ok(ready);
        }
        let mut lock = self.lock.lock().await;
        if let Some(ready) = self.state().ready.clone() {
            return Ok(ready);
        }
        let origin = self.options.origin.as_str();
        // who lost the row may have lost the lock before
        if let Some(held) = &mut *lock
            && !matches!(tokio::time::timeout(PING, held.ping()).await, Ok(Ok(())))
        {
            *lock = None;
        }
        if lock.is_none() {
            let taken = self.backend.lock(origin).await.map_err(outage)?;
            *lock = Some(taken.ok_or_else(|| held_elsewhere(origin))?);
        }
        let made = self.make().await;
        if let Err(e) = &made
            && (e.is_lost() || e.code == CONNECT)
        {
            // whoever holds no connection may hold no lock either
            *lock = None;
        }
        let ready = Arc::new(made?);
        let first = {
            let mut state = self.state();
            state.ready = Some(ready.clone());
            !std::mem::replace(&mut state.kept, true)
        };
        if first {
            let me = Arc::downgrade(self);
            drop(task::spawn(keep(me)));
        }
        Ok(ready)
    }

    async fn make(&self) -> Result<Ready, StorageError> {
        let facts = self.preflight().await?;
        self.prepare_tables().await?;
        let mut session = self.backend.begin().await.map_err(outage)?;
        let taken = self.take(&mut session).await;
        let last = match &taken {
            Ok(_) => self.last(&mut session).await.map_err(outage),
            Err(_) => Ok(None),
        };
        let (found, incarnation) = match (taken, last.is_ok()) {
            (Ok(found), true) => found,
            (taken, _) => {
                session.rollback().await;
                taken?;
                last?;
                return Err(StorageError::retry("contact", "no contact"));
            }
        };
        session.commit().await.map_err(outage)?;
        let mut state = self.state();
        let (node_id, epoch) = (state.contact.node_id.clone(), found.epoch);
        state.taken = Some(epoch);
        (state.told, state.incarnation) = (found.released.clone(), incarnation);
        state.met_at = self.options.clock.mono();
        // what an earlier contact found and nobody has looked at yet still counts
        state.found = Some(match state.found.take() {
            Some(earlier) => earlier.and(found),
            None => found,
        });
        drop(state);
        Ok(Ready { node_id, epoch, last: last?, facts })
    }

    async fn preflight(&self) -> Result<Vec<(String, String)>, StorageError> {
        let mut session = self.backend.begin().await.map_err(outage)?;
        let mut facts = Vec::new();
        for (name, sql) in self.backend.dialect().preflight() {
            let rows = session.rows(sql, &[]).await.map_err(outage)?;
            let value = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
            facts.push(((*name).to_owned(), value.unwrap_or_default()));
        }
        session.rollback().await;
        let is = |name: &str, value: &str| facts.iter().any(|(n, v)| n == name && v == value);
        if is("in_recovery", "true") || is("transaction_read_only", "on") || is("read_only", "on") {
            return Err(StorageError::retry(
                "read only",
                "the server takes no writes: it is a standby, or default_transaction_read_only or read_only is on; name the primary in the DSN",
            ));
        }
        Ok(facts)
    }

    /// Makes what is missing; refuses what does not fit. A structured channel whose table does not fit
    /// is suspect, and the others go on.
    async fn prepare_tables(&self) -> Result<(), StorageError> {
        let first = !self.state().kept;
        for table in plan(&self.options.registry) {
            let of_channel = self.targets.structured.values().any(|t| t.name == table.name);
            let text = match self.prepare(&table, first).await {
                Ok(difference) if difference.misfits.is_empty() => continue,
                Ok(difference) => misfit_text(&table, &difference),
                // of one table alone: the channels of the others go on
                Err(e) if of_channel && !is_outage(e.class) => format!("table {}: {e}", table.name),
                Err(e) => return Err(outage(e)),
            };
            if !of_channel {
                return Err(StorageError::retry("schema", text));
            }
            tracing::error!(table = %table.name, "{text}; events of its channel wait");
            self.state().suspects.insert(table.name.clone());
        }
        Ok(())
    }

    /// Makes a table where it is missing; a new column of a channel only at the first contact: later
    /// it was taken away by somebody.
    async fn prepare(&self, table: &Table, add: bool) -> Result<Difference, SqlError> {
        let dialect = self.backend.dialect();
        let mut session = self.backend.begin().await?;
        let columns = self.columns_of(&mut session, &table.name).await?;
        let mut difference = Difference::default();
        if columns.is_empty() {
            // of an empty table the index is there at once
            let reading = reading_index(table).map(|index| dialect.create_index(table, &index));
            for statement in dialect.create_table(table).into_iter().chain(reading) {
                session.execute(&statement, &[]).await?;
            }
        } else {
            let name = [Param::Text(table.name.as_str().into())];
            let key = session.rows(dialect.introspect_key(), &name).await?;
            let key: Vec<String> = key.into_iter().flatten().flatten().collect();
            let same = |ty, name: &str| dialect.same_type(ty, name);
            difference = compare(table, &columns, &key, &same);
            for column in std::mem::take(&mut difference.to_add) {
                if add {
                    session.execute(&dialect.add_column(table, &column), &[]).await?;
                    tracing::info!("column {} was added to table {}", column.name, table.name);
                } else {
                    difference.misfits.push(format!("column {} is missing", column.name));
                }
            }
            if add && !difference.extras.is_empty() {
                let extras = difference.extras.join(", ");
                tracing::warn!(
                    "table {} has more than ours, which is left alone: {extras}",
                    table.name
                );
            }
        }
        session.commit().await?;
        Ok(difference)
    }

    /// The columns that a table has; none where it is not there.
    pub(super) async fn columns_of(
        &self,
        session: &mut B::Session,
        table: &str,
    ) -> Result<Vec<Standing>, SqlError> {
        let name = [Param::Text(table.into())];
        let rows = session.rows(self.backend.dialect().introspect_columns(), &name).await?;
        Ok(rows.iter().filter_map(Standing::read).collect())
    }

    /// Tables that refused a statement, or that this batch needs and a start did not: looked at, and
    /// made where they are missing.
    pub(super) async fn look_at_suspects(&self, parts: &[Part<'_>]) -> Result<(), StorageError> {
        for part in parts {
            if !self.state().suspects.contains(&part.table.name) {
                continue;
            }
            let stuck = |code: String, text: String| StorageError {
                kind: Kind::Fatal,
                code,
                text,
                channel: part.channel.clone(),
            };
            match self.prepare(&part.table, false).await {
                Ok(difference) if difference.misfits.is_empty() => {}
                Ok(difference) => {
                    let text = misfit_text(&part.table, &difference);
                    return Err(stuck("schema".to_owned(), text));
                }
                Err(e) if is_outage(e.class) => return Err(outage(e)),
                Err(e) => {
                    return Err(stuck(e.code, format!("table {}: {}", part.table.name, e.text)));
                }
            }
            self.state().suspects.remove(&part.table.name);
            tracing::info!(
                "table {} of {} fits again",
                part.table.name,
                whose(part.channel.as_ref())
            );
        }
        Ok(())
    }

    /// Takes the origin's row; what stood there before.
    async fn take(&self, session: &mut B::Session) -> Result<(Found, Incarnation), StorageError> {
        let dialect = self.backend.dialect();
        let (contact, taken, claimed) = {
            let state = self.state();
            (state.contact.clone(), state.taken, state.claimed)
        };
        let rows = session.rows(&dialect.node_row_exclusive(), &[self.origin()]).await;
        let rows = rows.map_err(outage)?;
        let now = self.options.clock.wall();
        let now_ms = u64::try_from(now.0 / 1000).unwrap_or(0);
        let mut released = self.released(session).await.map_err(outage)?;
        let alive = released.remove(ALIVE);
        let owner = rows.first().map(|row| text(row, 1));
        if let (Some(row), Some(owner)) = (rows.first(), &owner)
            && *owner != contact.node_id
            && !contact.past.contains(owner)
        {
            self.refuse_alive(owner, &text(row, 4), alive, now_ms)?;
        }
        // of a row that is there the epoch goes up; who else read it waits behind this transaction
        let before: u64 = rows.first().map_or(0, |row| text(row, 2).parse().unwrap_or(0));
        let epoch = before.saturating_add(1);
        let since = contact.since.map_or(Param::Null, seq_param);
        let mut params = vec![
            Param::Text(contact.node_id.into()),
            seq_param(Seq(epoch)),
            Param::Text(timestamptz(now).into()),
            Param::Text(host().into()),
            since,
        ];
        let sql = if rows.is_empty() {
            params.insert(0, self.origin());
            dialect.insert(&replicon_node(), 1)
        } else {
            params.push(self.origin());
            dialect.node_update()
        };
        session.execute(&sql, &params).await.map_err(outage)?;
        self.raise(session, &[(ALIVE, Seq(now_ms))]).await.map_err(outage)?;
        // a contact of this process whose answer was lost was ours
        let known = taken.unwrap_or(contact.epoch);
        let stranger = before != known && claimed != Some(before);
        self.state().claimed = Some(epoch);
        let incarnation = self.incarnation(session).await.map_err(outage)?;
        Ok((Found { owner, stranger, epoch, released }, incarnation))
    }

    /// An error where another node writes as this origin and lives.
    fn refuse_alive(
        &self,
        owner: &str,
        host: &str,
        alive: Option<Seq>,
        now_ms: u64,
    ) -> Result<(), StorageError> {
        // a clock that was ahead once is no sign of life
        let lives = |at: Seq| at.0 + SILENCE_MS > now_ms && at.0 < now_ms + 2 * SILENCE_MS;
        if !alive.is_some_and(lives) {
            return Ok(());
        }
        Err(StorageError::retry(
            "origin",
            format!(
                "{} is written by another node (id {owner} on host {host}), alive within the last 30 s: give each node a node_name of its own",
                self.options.origin
            ),
        ))
    }

    async fn last(&self, session: &mut B::Session) -> Result<Option<Seq>, SqlError> {
        let mut last = None;
        for table in self.targets.structured.values().chain([&self.targets.raw]) {
            // one that is out of order holds nobody up
            let suspect = self.state().suspects.contains(&table.name);
            if suspect || self.columns_of(session, &table.name).await?.is_empty() {
                continue;
            }
            let sql = self.backend.dialect().last_seq(table);
            let rows = session.rows(&sql, &[self.origin()]).await;
            if let Err(e) = &rows
                && (e.class == Class::Locked || !is_outage(e.class))
                && table.name != self.targets.raw.name
            {
                // passed over by the next contact, which is at once
                self.state().suspects.insert(table.name.clone());
            }
            let rows = rows?;
            let seq = rows.into_iter().flatten().flatten().next().and_then(|seq| seq.parse().ok());
            last = last.max(seq.map(Seq));
        }
        Ok(last)
    }

    /// The indexes that tables should have and lack, built while events are written.
    async fn build_indexes(&self) {
        let dialect = self.backend.dialect();
        for table in plan(&self.options.registry) {
            let wanted = table.indexes.iter().cloned().chain(reading_index(&table));
            for index in wanted {
                if let Err(e) = self.build_index(&table, &index).await {
                    tracing::warn!(
                        "index {} on table {} is not built: {e}",
                        index.name,
                        table.name
                    );
                    let _ = self
                        .backend
                        .execute_alone(&dialect.drop_index_online(&table, &index))
                        .await;
                }
            }
        }
    }

    async fn build_index(&self, table: &Table, index: &Index) -> Result<(), SqlError> {
        let dialect = self.backend.dialect();
        let mut session = self.backend.begin().await?;
        let name = [Param::Text(index.name.as_str().into())];
        let rows = session.rows(dialect.introspect_index(), &name).await?;
        session.rollback().await;
        match rows.first().and_then(|row| row[0].as_deref()) {
            Some("true") => return Ok(()),
            // what an earlier build that was broken off left
            Some(_) => {
                self.backend.execute_alone(&dialect.drop_index_online(table, index)).await?;
            }
            None => {}
        }
        self.backend.execute_alone(&dialect.create_index_online(table, index)).await
    }

    async fn beat(&self) -> Result<(), SqlError> {
        let now_ms = u64::try_from(self.options.clock.wall().0 / 1000).unwrap_or(0);
        let mut session = self.backend.begin().await?;
        self.raise(&mut session, &[(ALIVE, Seq(now_ms))]).await?;
        session.commit().await
    }
}

/// Builds what is missing, then keeps the lock and shows that this node lives, as long as the storage
/// is there.
async fn keep<B: Backend>(storage: Weak<Inner<B>>) {
    let building = storage.clone();
    // an index over years of rows takes hours: the lock is kept meanwhile
    drop(task::spawn(async move {
        if let Some(storage) = building.upgrade() {
            storage.build_indexes().await;
        }
    }));
    loop {
        task::sleep(HEARTBEAT).await;
        let Some(storage) = storage.upgrade() else { return };
        let mut lock = storage.lock.lock().await;
        let Some(held) = &mut *lock else { continue };
        let pinged = tokio::time::timeout(PING, held.ping()).await;
        if !matches!(pinged, Ok(Ok(()))) {
            tracing::warn!(
                "the lock of origin {} is lost: it is taken again",
                storage.options.origin
            );
            *lock = None;
            storage.state().ready = None;
        } else if let Ok(Err(e)) = tokio::time::timeout(PING, storage.beat()).await {
            tracing::debug!("no heartbeat: {e}");
        }
    }
}

pub(super) fn misfit_text(table: &Table, difference: &Difference) -> String {
    let misfits = difference.misfits.join(", ");
    format!("table {} does not fit: {misfits} (`replicon schema` shows what is wanted)", table.name)
}

fn held_elsewhere(origin: &str) -> StorageError {
    StorageError::retry(
        "origin lock",
        format!(
            "another node holds the origin {origin} in this database: two nodes must never share a node_name; events wait here meanwhile"
        ),
    )
}

/// Whether an error is about the server, not about a table.
fn is_outage(class: Class) -> bool {
    matches!(class, Class::Retry | Class::RetryAtOnce | Class::Locked)
}

/// What fails before events are written is no event's fault.
fn outage(e: SqlError) -> StorageError {
    let SqlError { class, code, text } = e;
    debug_assert!(class != Class::AlreadyThere || !text.is_empty());
    StorageError::retry(code, text)
}

/// A column of a row; nothing where it is null.
fn text(row: &TextRow, at: usize) -> String {
    row.get(at).cloned().flatten().unwrap_or_default()
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}
