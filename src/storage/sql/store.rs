//! Reading by identity: the same tables, seen from the other side.
//!
//! Does not know peers. A structured row is read as the payload that its columns make; where a raw
//! copy stands too, that is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::name;
use super::dialect::Class;
use super::session::{Backend, Param, Session, SqlError, TextRow};
use super::table::{Table, replicon_quarantine};
use super::value::{bytes, micros, payload_of};
use super::{At, Inner, SqlStorage, seq_param};
use crate::event::{ChannelName, Origin, Seq};
use crate::storage::StorageError;
use crate::storage::event_store::{Applied, EventStore, Foreign, Page, StoredRow, Wanted};

/// The canonical columns, before a row's own.
const CANONICAL: usize = 5;

impl<B: Backend> EventStore for SqlStorage<B> {
    async fn read(&self, wanted: &Wanted) -> Result<Page, StorageError> {
        self.0.ready().await?;
        // begun after the caller chose `upto`: a new snapshot
        let mut session =
            self.0.backend.begin().await.map_err(|e| self.0.judge(e, At::Before, &[]))?;
        let page = self.0.page(&mut session, wanted).await;
        session.rollback().await;
        page.map_err(|e| self.0.judge(e, At::Before, &[]))
    }

    async fn apply(&self, foreign: &Foreign) -> Result<Applied, StorageError> {
        self.0.take_page(foreign).await
    }

    async fn cursor(
        &self,
        origin: &Origin,
        channel: &ChannelName,
    ) -> Result<Option<Seq>, StorageError> {
        self.0.ready().await?;
        let mut session =
            self.0.backend.begin().await.map_err(|e| self.0.judge(e, At::Before, &[]))?;
        let sql = self.0.backend.dialect().progress_read();
        let rows = session.rows(&sql, &[name(origin), name(channel)]).await;
        session.rollback().await;
        let rows = rows.map_err(|e| self.0.judge(e, At::Before, &[]))?;
        Ok(rows.into_iter().flatten().flatten().next().and_then(|seq| seq.parse().ok()).map(Seq))
    }
}

impl<B: Backend> Inner<B> {
    /// The union of the tables that can hold the channel's rows, each identity once. Each table is
    /// read with the same limit, and the union ends where the shorter one ends.
    async fn page(&self, session: &mut B::Session, wanted: &Wanted) -> Result<Page, SqlError> {
        let mut found: BTreeMap<Seq, StoredRow> = BTreeMap::new();
        let mut upto = wanted.upto;
        let structured = self.targets.structured.get(&wanted.channel).cloned();
        let quarantine = Arc::new(replicon_quarantine());
        let foreign = (wanted.origin != self.options.origin).then_some(quarantine);
        // what comes later replaces what came before: a raw copy is the client's own bytes
        for table in [foreign, structured, Some(self.targets.raw.clone())].into_iter().flatten() {
            if self.columns_of(session, &table.name).await?.is_empty() {
                continue;
            }
            let rows = self.rows_of(session, &table, wanted).await?;
            if rows.len() >= wanted.rows
                && let Some(last) = rows.last()
            {
                upto = upto.min(last.seq);
            }
            found.extend(rows.into_iter().map(|row| (row.seq, row)));
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

    async fn rows_of(
        &self,
        session: &mut B::Session,
        table: &Table,
        wanted: &Wanted,
    ) -> Result<Vec<StoredRow>, SqlError> {
        let limit = i64::try_from(wanted.rows.max(1)).unwrap_or(i64::MAX);
        let params = [
            name(&wanted.origin),
            name(&wanted.channel),
            seq_param(wanted.from),
            seq_param(wanted.upto),
            Param::Int(limit),
        ];
        let rows = session.rows(&self.backend.dialect().read_page(table), &params).await?;
        rows.iter().map(|row| self.stored_row(table, &wanted.channel, row)).collect()
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
    Some(StoredRow { seq, node_name, received_at: crate::event::Micros(received_at), payload })
}
