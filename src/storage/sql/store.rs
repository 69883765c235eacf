//! Reading by identity: the same tables, seen from the other side.
//!
//! Does not know peers. A structured row is read as the payload that its columns make; where a raw
//! copy stands too, that is given. Whatever a reader meets, writers keep their contact: a table that is
//! broken stops those who read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::name;
use super::dialect::Class;
use super::session::{Backend, Param, Session, SqlError, TextRow};
use super::table::{Table, replication_progress, replicon_origin, replicon_quarantine};
use super::value::{bytes, micros, payload_of, timestamptz};
use super::{At, Inner, SqlStorage, seq_param};
use crate::event::{ChannelName, Micros, Name, Origin, Seq};
use crate::storage::event_store::{Applied, EventStore, Foreign, Page, StoredRow, Wanted};
use crate::storage::{Kind, StorageError};

/// Rows of the first look of a page, whose size nobody knows yet.
const FIRST_PIECE: usize = 16;
/// Most rows of one look.
const MAX_PIECE: usize = 4096;
/// The canonical columns, before a row's own.
const CANONICAL: usize = 5;

impl<B: Backend> EventStore for SqlStorage<B> {
    async fn read(&self, wanted: &Wanted) -> Result<Page, StorageError> {
        let tables = self.0.tables_of(wanted).await?;
        // its sessions are begun after the caller chose `upto`: new snapshots
        self.0.page(wanted, &tables).await
    }

    async fn apply(&self, foreign: &Foreign) -> Result<Applied, StorageError> {
        self.0.take_page(foreign).await
    }

    async fn cursor(
        &self,
        origin: &Origin,
        channel: &ChannelName,
    ) -> Result<Option<Seq>, StorageError> {
        self.0.cursor_of(origin.as_str(), channel).await
    }

    async fn cursors(&self, origin: &Origin) -> Result<Vec<(ChannelName, Seq)>, StorageError> {
        let sql = self.0.backend.dialect().progress_all();
        let rows = self.0.look(&sql, &[name(origin)], None).await?;
        let named = |(channel, seq): (String, Seq)| Some((Name::new(&channel).ok()?, seq));
        Ok(rows.iter().filter_map(channel_and_seq).filter_map(named).collect())
    }

    async fn cursor_again(
        &self,
        origin: &Origin,
        channel: &ChannelName,
        id: &str,
    ) -> Result<Option<Seq>, StorageError> {
        self.0.cursor_of(&again(origin, id), channel).await
    }

    async fn accepted_ids(&self, origin: &Origin) -> Result<Vec<String>, StorageError> {
        let sql = self.0.backend.dialect().origin_read();
        Ok(self.0.look(&sql, &[name(origin)], None).await?.iter().filter_map(id_of).collect())
    }

    async fn accept_id(
        &self,
        origin: &Origin,
        id: &str,
        channels: &[ChannelName],
    ) -> Result<(), StorageError> {
        let ready = self.0.ready().await?;
        let begun = self.0.begin(&ready).await;
        let mut session = begun.map_err(|(e, at)| self.0.judge(e, at, &[]))?;
        let accepted = async {
            let dialect = self.0.backend.dialect();
            let known = session.rows(&dialect.origin_read(), &[name(origin)]).await?;
            if !known.iter().filter_map(id_of).any(|known| known == id) {
                let at = timestamptz(behind(&known, self.0.options.clock.wall()));
                let params = [name(origin), Param::Text(id.into()), Param::Text(at.into())];
                session.execute(&dialect.insert(&replicon_origin(), 1), &params).await?;
            }
            let cursor = again(origin, id);
            for channel in channels {
                let params = [Param::Text(cursor.as_str().into()), name(channel)];
                session.execute(&dialect.progress_delete(), &params).await?;
            }
            Ok(())
        };
        match accepted.await {
            Ok(()) => session.commit().await.map_err(|e| self.0.judge(e, At::Before, &[])),
            Err(e) => {
                session.rollback().await;
                Err(self.0.judge(e, At::Before, &[]))
            }
        }
    }

    async fn count(&self, wanted: &Wanted, most: u64) -> Result<u64, StorageError> {
        let structured = self.0.targets.structured.get(&wanted.channel).cloned();
        let mut count = 0;
        // of a row with a raw copy one counts
        for table in [structured, Some(self.0.targets.raw.clone())].into_iter().flatten() {
            if !self.0.stands_there(&table).await? {
                continue;
            }
            let params = [
                name(&wanted.origin),
                name(&wanted.channel),
                seq_param(wanted.from),
                seq_param(wanted.upto),
                Param::Int(i64::try_from(most).unwrap_or(i64::MAX)),
            ];
            let sql = self.0.backend.dialect().count_page(&table);
            let rows = self.0.look(&sql, &params, Some((&*table, &wanted.channel))).await?;
            let found = rows.into_iter().flatten().flatten().next();
            count = count.max(found.and_then(|count| count.parse().ok()).unwrap_or(0));
        }
        Ok(count)
    }
}

/// Rows of one table.
pub(super) struct Stretch {
    /// They.
    pub(super) rows: Vec<StoredRow>,
    /// There may be more.
    pub(super) more: bool,
    /// Of the session nothing but its end may be asked.
    cut: bool,
}

/// The node id of a row of `replicon_origin`.
fn id_of(row: &TextRow) -> Option<String> {
    row.get(1).cloned().flatten()
}

/// When an id is accepted: behind those that are known, since the last one is followed, and a clock may
/// have been set back.
fn behind(known: &[TextRow], now: Micros) -> Micros {
    let at = |row: &TextRow| micros(row.get(2)?.as_deref()?);
    let last = known.iter().filter_map(at).max();
    last.map_or(now, |last| now.max(Micros(last.0.saturating_add(1))))
}

/// An error as a reader is told it. A writer's takes the contact away, so that its tables are looked at;
/// here that would take it from every writer each time that somebody asks.
fn unread(e: SqlError, of: Option<(&Table, &ChannelName)>) -> StorageError {
    let SqlError { class, code, text } = e;
    match class {
        Class::Fatal | Class::Reject | Class::AlreadyThere => StorageError {
            kind: Kind::Fatal,
            code,
            text: match of {
                Some((table, _)) => format!("table {}: {text}", table.name),
                None => text,
            },
            channel: of.map(|(_, channel)| channel.clone()),
        },
        Class::Locked => {
            let channel = of.map(|(_, channel)| channel.clone());
            StorageError { channel, ..StorageError::retry(code, text) }
        }
        Class::Retry | Class::RetryAtOnce => StorageError::retry(code, text),
    }
}

/// A row of a channel's name and a seq.
pub(super) fn channel_and_seq(row: &TextRow) -> Option<(String, Seq)> {
    match row.as_slice() {
        [Some(channel), Some(seq)] => Some((channel.clone(), Seq(seq.parse().ok()?))),
        _ => None,
    }
}

/// The cursor of reading an origin again under an id: '#' is in no name.
pub(super) fn again(origin: &Origin, id: &str) -> String {
    format!("{origin}#{id}")
}

impl<B: Backend> Clone for SqlStorage<B> {
    /// The same storage.
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> Inner<B> {
    /// What a statement gives; of which table and channel, where it is of one.
    pub(super) async fn look(
        self: &Arc<Self>,
        sql: &str,
        params: &[Param<'_>],
        of: Option<(&Table, &ChannelName)>,
    ) -> Result<Vec<TextRow>, StorageError> {
        self.ready().await?;
        let mut session = self.reader().await?;
        let rows = session.rows(sql, params).await;
        session.rollback().await;
        rows.map_err(|e| unread(e, of))
    }

    /// A session to read in.
    pub(super) async fn reader(&self) -> Result<B::Session, StorageError> {
        self.backend.begin().await.map_err(|e| StorageError::retry(e.code, e.text))
    }

    async fn cursor_of(
        self: &Arc<Self>,
        cursor: &str,
        channel: &ChannelName,
    ) -> Result<Option<Seq>, StorageError> {
        let params = [Param::Text(cursor.into()), name(channel)];
        let (sql, table) = (self.backend.dialect().progress_read(), replication_progress());
        let rows = self.look(&sql, &params, Some((&table, channel))).await?;
        let seq = rows.into_iter().flatten().flatten().next();
        Ok(seq.and_then(|seq| seq.parse().ok()).map(Seq))
    }

    /// Whether a table was seen standing; one that goes away later says so when it is read.
    pub(super) async fn stands_there(
        self: &Arc<Self>,
        table: &Table,
    ) -> Result<bool, StorageError> {
        if self.state().standing.contains(&table.name) {
            return Ok(true);
        }
        let sql = self.backend.dialect().introspect_columns();
        let params = [Param::Text(table.name.as_str().into())];
        let there = !self.look(sql, &params, None).await?.is_empty();
        if there {
            self.state().standing.insert(table.name.clone());
        }
        Ok(there)
    }

    /// The union of the tables that can hold the channel's rows, each identity once. Each table is
    /// read with the same limit, and the union ends where the shorter one ends.
    async fn page(&self, wanted: &Wanted, tables: &[Arc<Table>]) -> Result<Page, StorageError> {
        let mut found: BTreeMap<Seq, StoredRow> = BTreeMap::new();
        let mut upto = wanted.upto;
        let mut open = None;
        for table in tables {
            let mut session = match open.take() {
                Some(session) => session,
                None => self.reader().await?,
            };
            let read = self.rows_of(&mut session, table, wanted).await;
            match &read {
                Ok(read) if !read.cut => open = Some(session),
                _ => session.rollback().await,
            }
            let Stretch { rows, more, .. } = read?;
            if more && let Some(last) = rows.last() {
                upto = upto.min(last.seq);
            }
            found.extend(rows.into_iter().map(|row| (row.seq, row)));
        }
        if let Some(session) = open {
            session.rollback().await;
        }
        let mut rows = Vec::new();
        let mut size = 0;
        for (seq, row) in found {
            size += row.payload.len();
            let full = rows.len() >= wanted.rows || size > wanted.bytes;
            if seq > upto || (full && !rows.is_empty()) {
                upto = rows.last().map_or(upto, |last: &StoredRow| last.seq);
                break;
            }
            rows.push(row);
        }
        Ok(Page { rows, next: upto.next() })
    }

    /// The tables that can hold rows of the channel, as far as they stand. What comes later replaces
    /// what came before: a raw copy is the client's own bytes.
    async fn tables_of(self: &Arc<Self>, wanted: &Wanted) -> Result<Vec<Arc<Table>>, StorageError> {
        let structured = self.targets.structured.get(&wanted.channel).cloned();
        let quarantine = Arc::new(replicon_quarantine());
        let foreign = (wanted.origin != self.options.origin).then_some(quarantine);
        let mut tables = Vec::new();
        for table in [foreign, structured, Some(self.targets.raw.clone())].into_iter().flatten() {
            if self.stands_there(&table).await? {
                tables.push(table);
            }
        }
        Ok(tables)
    }

    /// Rows of one table. Asked for in pieces, so that little is read that the page has no room for; and
    /// a piece ends where it is too large, since those behind small rows may have any size.
    pub(super) async fn rows_of(
        &self,
        session: &mut B::Session,
        table: &Table,
        wanted: &Wanted,
    ) -> Result<Stretch, StorageError> {
        let of = Some((table, &wanted.channel));
        let sql = self.backend.dialect().read_page(table);
        let (mut rows, mut size) = (Vec::new(), 0);
        let (mut from, mut piece) = (wanted.from, FIRST_PIECE);
        // of a row there is more than its payload, and of bytes there are two digits each
        let most = wanted.bytes.saturating_mul(2);
        while rows.len() < wanted.rows.max(1) && size < wanted.bytes {
            let limit = piece.min(wanted.rows.max(1) - rows.len());
            let params = [
                name(&wanted.origin),
                name(&wanted.channel),
                seq_param(from),
                seq_param(wanted.upto),
                Param::Int(i64::try_from(limit).unwrap_or(i64::MAX)),
            ];
            let found = session.rows_within(&sql, &params, most).await;
            let found = found.map_err(|e| unread(e, of))?;
            let (got, before) = (found.rows.len(), size);
            for row in found.rows {
                let row = self.stored_row(table, &wanted.channel, &row);
                let row = row.map_err(|e| unread(e, of))?;
                size += row.payload.len();
                from = row.seq.next();
                rows.push(row);
            }
            if found.cut || got < limit {
                return Ok(Stretch { rows, more: found.cut, cut: found.cut });
            }
            // as many as should fill the page, if they are like those
            let mean = ((size - before) / got.max(1)).max(1);
            piece = (wanted.bytes.saturating_sub(size) / mean).clamp(FIRST_PIECE, MAX_PIECE);
        }
        Ok(Stretch { rows, more: true, cut: false })
    }

    fn stored_row(
        &self,
        table: &Table,
        channel: &ChannelName,
        row: &TextRow,
    ) -> Result<StoredRow, SqlError> {
        let text = |at: usize| row.get(at).and_then(|text| text.as_deref());
        let read = || {
            let seq = Seq(text(1)?.parse().ok()?);
            if table.name == "replicon_quarantine" {
                return from_wire(seq, &bytes(text(3)?)?);
            }
            let payload = if table.name == self.targets.raw.name {
                text(CANONICAL)?.as_bytes().to_vec()
            } else {
                let schema = self.options.registry.get(channel.as_str())?.schema()?;
                let texts: Vec<Option<&str>> = (CANONICAL..table.columns.len()).map(text).collect();
                payload_of(schema, &texts)
            };
            Some(StoredRow {
                seq,
                node_name: text(2)?.to_owned(),
                received_at: micros(text(4)?)?,
                payload: payload.into(),
            })
        };
        read().ok_or_else(|| SqlError {
            class: Class::Retry,
            code: "unreadable".to_owned(),
            text: format!("a row of table {} cannot be read: was it written by hand?", table.name),
        })
    }
}

/// `node_name`, a line feed, `received_at` in microseconds, a line feed, the payload as it came.
pub(super) fn to_wire(row: &StoredRow) -> Vec<u8> {
    let mut out = format!("{}\n{}\n", row.node_name, row.received_at.0).into_bytes();
    out.extend_from_slice(&row.payload);
    out
}

fn from_wire(seq: Seq, wire: &[u8]) -> Option<StoredRow> {
    let mut parts = wire.splitn(3, |byte| *byte == b'\n');
    let node_name = String::from_utf8(parts.next()?.to_vec()).ok()?;
    let received_at = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let payload = Bytes::copy_from_slice(parts.next()?);
    Some(StoredRow { seq, node_name, received_at: Micros(received_at), payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_one_table_alone_names_its_channel() {
        let (table, channel) = (replication_progress(), Name::new("a").unwrap());
        let told = |class| {
            let e = SqlError { class, code: "1".to_owned(), text: "no".to_owned() };
            let e = unread(e, Some((&table, &channel)));
            (e.kind, e.channel)
        };
        assert_eq!(told(Class::Locked), (Kind::Retry, Some(channel.clone())));
        assert_eq!(told(Class::Fatal), (Kind::Fatal, Some(channel.clone())));
        assert_eq!(told(Class::Retry), (Kind::Retry, None));
    }
}
