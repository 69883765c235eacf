//! The idempotent road: rows that stand there already are compared with what would be written.
//!
//! Equal content is stored content: an answer was lost, or a batch came again. Other content is
//! refused. Does not know why the batch came again.

use std::collections::{BTreeMap, BTreeSet};

use super::contact::Ready;
use super::dialect::Class;
use super::route::Part;
use super::session::{Backend, Param, Record, Session, SqlError, TextRow};
use super::table::{ColumnType, Table};
use super::value::{Value, held, micros, same_content, same_values};
use super::{Inner, seq_of, seq_param};
use crate::event::Seq;

/// The code of a dead letter whose identity stands there with other content.
pub(super) const CONFLICT: &str = "identity conflict";
/// Most rows of one statement.
const ROWS: usize = 500;
/// The canonical columns, before a row's own.
const CANONICAL: usize = 5;

impl<B: Backend> Inner<B> {
    /// One transaction that stores what is missing.
    pub(super) async fn replay(
        &self,
        ready: &Ready,
        parts: &[Part<'_>],
    ) -> Result<(), (SqlError, Option<usize>)> {
        let mut session = self.backend.begin().await.map_err(|e| (e, None))?;
        if let Err(e) = self.guard(&mut session, ready, false).await {
            session.rollback().await;
            return Err((e, None));
        }
        for (at, part) in parts.iter().enumerate() {
            if let Err(e) = self.store_missing(&mut session, part).await {
                session.rollback().await;
                return Err((e, Some(at)));
            }
        }
        session.commit().await.map_err(|e| (e, None))
    }

    async fn store_missing(
        &self,
        session: &mut B::Session,
        part: &Part<'_>,
    ) -> Result<(), SqlError> {
        let dialect = self.backend.dialect();
        let most = (dialect.max_binds() / part.table.columns.len()).clamp(1, ROWS);
        for rows in part.rows.chunks(most) {
            let sql = dialect.insert_missing(&part.table, rows.len());
            let params: Vec<Param<'_>> =
                rows.iter().flat_map(|row| self.backend.params(row)).collect();
            let stored = session.rows(&sql, &params).await?;
            let stored: BTreeSet<Seq> = stored.iter().filter_map(first_seq).collect();
            let there: Vec<&Record<'_>> =
                rows.iter().filter(|row| !stored.contains(&seq_of(row))).collect();
            if let Some(seq) = self.first_different(session, &part.table, &there).await? {
                return Err(SqlError {
                    class: Class::Reject,
                    code: CONFLICT.to_owned(),
                    text: format!(
                        "table {} holds other content under seq {seq} of this node",
                        part.table.name
                    ),
                });
            }
        }
        Ok(())
    }

    /// Whether all of these rows stand there with their content.
    pub(super) async fn all_equal(
        &self,
        session: &mut B::Session,
        parts: &[Part<'_>],
    ) -> Result<bool, SqlError> {
        for part in parts {
            let rows: Vec<&Record<'_>> = part.rows.iter().collect();
            if self.first_different(session, &part.table, &rows).await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a row stands there with its content.
    pub(super) async fn stands_equal(
        &self,
        session: &mut B::Session,
        table: &Table,
        row: &Record<'_>,
    ) -> Result<bool, SqlError> {
        Ok(self.first_different(session, table, &[row]).await?.is_none())
    }

    /// The first of these rows that does not stand there with its content.
    async fn first_different(
        &self,
        session: &mut B::Session,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> Result<Option<Seq>, SqlError> {
        for rows in rows.chunks(ROWS) {
            let sql = self.backend.dialect().existing(table, rows.len());
            let Some(first) = rows.first() else { continue };
            let mut params = vec![Param::Text(first.head.origin.into())];
            params.extend(rows.iter().map(|row| seq_param(seq_of(row))));
            let found = session.rows(&sql, &params).await?;
            let found: BTreeMap<Seq, &TextRow> =
                found.iter().filter_map(|row| Some((second_seq(row)?, row))).collect();
            let equal = |row: &&&Record<'_>| {
                found.get(&seq_of(row)).is_some_and(|there| same_row(table, row, there))
            };
            if let Some(row) = rows.iter().find(|row| !equal(row)) {
                return Ok(Some(seq_of(row)));
            }
        }
        Ok(None)
    }
}

fn first_seq(row: &TextRow) -> Option<Seq> {
    row.first()?.as_ref()?.parse().ok().map(Seq)
}

fn second_seq(row: &TextRow) -> Option<Seq> {
    row.get(1)?.as_ref()?.parse().ok().map(Seq)
}

/// Raw rows by channel, moment and payload as a tree; structured ones by their mapped columns.
fn same_row(table: &Table, ours: &Record<'_>, there: &TextRow) -> bool {
    let raw = table.columns.iter().any(|c| c.ty == ColumnType::JsonDoc);
    let text = |at: usize| there.get(at).and_then(|text| text.as_deref());
    if raw {
        let payload = match ours.values.first() {
            Some(Some(Value::Json(payload))) => payload,
            _ => return false,
        };
        return text(3) == Some(ours.head.channel)
            && text(4).and_then(micros) == micros(ours.head.received_at)
            && text(5).is_some_and(|there| same_content(payload, there.as_bytes()));
    }
    let theirs: Vec<Option<Value<'_>>> = table.columns[CANONICAL..]
        .iter()
        .enumerate()
        .map(|(i, column)| match column.ty {
            ColumnType::Field(ty) => text(CANONICAL + i).map(|text| held(ty, text)),
            _ => None,
        })
        .collect();
    same_values(&ours.values, &theirs)
}
