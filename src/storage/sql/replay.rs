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
use super::{At, Inner, seq_of, seq_param};
use crate::event::Seq;

/// The code of a dead letter whose identity stands there with other content.
pub(super) const CONFLICT: &str = "identity conflict";
/// Most rows of one statement.
const ROWS: usize = 500;
/// The canonical columns, before a row's own.
const CANONICAL: usize = 5;

/// What a pass over the batch came to.
struct Pass {
    outcome: Result<(), (SqlError, At)>,
    /// How many rows stood there.
    there: usize,
}

impl<B: Backend> Inner<B> {
    /// One transaction that stores what is missing, but for what is to be skipped. A unique index that
    /// refuses what was just not there: a transaction whose answer was lost has ended meanwhile, and
    /// the next pass finds its rows; or it is another index than the identity's, and the data is at
    /// fault.
    pub(super) async fn replay(
        &self,
        ready: &Ready,
        parts: &[Part<'_>],
        skip: &BTreeSet<Seq>,
    ) -> Result<(), (SqlError, At)> {
        let mut before = None;
        loop {
            let Pass { outcome, there } = self.replay_once(ready, parts, skip).await;
            let met = matches!(&outcome, Err((e, _)) if e.class == Class::AlreadyThere);
            if !met || before.is_some_and(|before| there <= before) {
                return outcome;
            }
            before = Some(there);
        }
    }

    async fn replay_once(&self, ready: &Ready, parts: &[Part<'_>], skip: &BTreeSet<Seq>) -> Pass {
        let mut there = 0;
        let outcome = async {
            let mut session = self.begin(ready).await?;
            for (at, part) in parts.iter().enumerate() {
                match self.store_missing(&mut session, part, skip).await {
                    Ok(stood) => there += stood,
                    Err(e) => {
                        session.rollback().await;
                        return Err((e, At::Part(at)));
                    }
                }
            }
            session.commit().await.map_err(|e| (e, At::Commit))
        };
        let outcome = outcome.await;
        Pass { outcome, there }
    }

    /// How many of these rows stood there.
    async fn store_missing(
        &self,
        session: &mut B::Session,
        part: &Part<'_>,
        skip: &BTreeSet<Seq>,
    ) -> Result<usize, SqlError> {
        let rows = part.rows.iter().filter(|row| !skip.contains(&seq_of(row)));
        let rows: Vec<&Record<'_>> = rows.collect();
        let standing = self.standing(session, &part.table, &rows).await?;
        if let Some((seq, _)) = standing.iter().find(|(_, same)| !**same) {
            return Err(SqlError {
                class: Class::Reject,
                code: CONFLICT.to_owned(),
                text: format!(
                    "table {} holds other content under seq {seq} of this node",
                    part.table.name
                ),
            });
        }
        let missing: Vec<&Record<'_>> =
            rows.into_iter().filter(|row| !standing.contains_key(&seq_of(row))).collect();
        self.store_rows(session, &part.table, &missing).await?;
        Ok(standing.len())
    }

    /// Whether all of these rows stand there with their content.
    pub(super) async fn all_equal(
        &self,
        session: &mut B::Session,
        parts: &[Part<'_>],
    ) -> Result<bool, SqlError> {
        for part in parts {
            let rows: Vec<&Record<'_>> = part.rows.iter().collect();
            let standing = self.standing(session, &part.table, &rows).await?;
            if !rows.iter().all(|row| standing.get(&seq_of(row)) == Some(&true)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Which of these rows' identities stand there, and whether with the same content.
    pub(super) async fn standing(
        &self,
        session: &mut B::Session,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> Result<BTreeMap<Seq, bool>, SqlError> {
        let mut standing = BTreeMap::new();
        for rows in rows.chunks(ROWS) {
            let Some(first) = rows.first() else { continue };
            let sql = self.backend.dialect().existing(table, rows.len());
            let mut params = vec![Param::Text(first.head.origin.into())];
            params.extend(rows.iter().map(|row| seq_param(seq_of(row))));
            let found = session.rows(&sql, &params).await?;
            let found: BTreeMap<Seq, &TextRow> =
                found.iter().filter_map(|row| Some((second_seq(row)?, row))).collect();
            standing.extend(rows.iter().filter_map(|row| {
                let seq = seq_of(row);
                let there = found.get(&seq)?;
                Some((seq, same_row(table, row, there) || self.same_copy(table, row, there)))
            }));
        }
        Ok(standing)
    }
}

fn second_seq(row: &TextRow) -> Option<Seq> {
    row.get(1)?.as_ref()?.parse().ok().map(Seq)
}

/// Raw rows by channel, moment and payload as a tree; structured ones by their mapped columns.
pub(super) fn same_row(table: &Table, ours: &Record<'_>, there: &TextRow) -> bool {
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
