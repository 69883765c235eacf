//! Which tables an event goes to, and as which row.
//!
//! Pure. What was accepted under yesterday's channels is judged by what its frame says: a raw event of
//! a channel that is gone is stored raw, a structured one has no table any more. Does not know
//! sessions or statements.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::session::Record;
use super::table::{self, Table};
use super::value::{Head, Unmapped, Value, row, timestamptz};
use crate::channel::{Channel, Registry};
use crate::event::{ChannelName, Event, Micros, ModeTag, Origin};
use crate::storage::{Kind, StorageError};

/// The tables that events go to.
#[derive(Debug)]
pub struct Targets {
    /// `events_raw`.
    pub raw: Arc<Table>,
    /// Each structured channel's own.
    pub structured: BTreeMap<ChannelName, Arc<Table>>,
}

impl Targets {
    /// Those of all channels, enabled or not: what a disabled one left in the queue is stored, too.
    #[must_use]
    pub fn of(registry: &Registry) -> Self {
        let own =
            |c: &Arc<Channel>| Some((c.name.clone(), Arc::new(table::structured(c.schema()?))));
        Self {
            raw: Arc::new(table::events_raw()),
            structured: registry.all().filter_map(own).collect(),
        }
    }
}

/// The rows of one table.
#[derive(Debug)]
pub struct Part<'a> {
    /// The table.
    pub table: Arc<Table>,
    /// Whose rows they are, where they are all of one channel.
    pub channel: Option<ChannelName>,
    /// In order of their seqs.
    pub rows: Vec<Record<'a>>,
}

/// The moments of a batch as text, each once: most events of a batch share theirs.
pub struct Moments(Vec<(Micros, String)>);

impl Moments {
    /// Of these events.
    #[must_use]
    pub fn of(events: &[Event]) -> Self {
        let mut all: Vec<Micros> = events.iter().map(|e| e.received_at).collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into_iter().map(|at| (at, timestamptz(at))).collect())
    }

    fn text(&self, at: Micros) -> &str {
        self.0.binary_search_by_key(&at, |(at, _)| *at).map_or("", |i| &self.0[i].1)
    }
}

/// Sorts events of `origin` into the tables that they go to.
///
/// # Errors
/// A refusal of the first event that has no place: no batch holds it and others both.
pub fn route<'a>(
    events: &'a [Event],
    moments: &'a Moments,
    origin: &'a Origin,
    registry: &Registry,
    targets: &Targets,
) -> Result<Vec<Part<'a>>, StorageError> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    for event in events {
        let head = Head {
            origin: origin.as_str(),
            seq: event.seq,
            node: origin.as_str(),
            channel: event.channel.as_str(),
            received_at: moments.text(event.received_at),
        };
        let channel = registry.get(event.channel.as_str());
        let raw = || vec![Some(Value::Json((&event.payload[..]).into()))];
        let Some((channel, schema)) = channel.and_then(|c| Some((c, c.schema()?))) else {
            if channel.is_none() && event.mode == ModeTag::Structured {
                let text =
                    "its structured channel is gone from channels.yml, and its table with it";
                return Err(refused("channel gone", text, &event.channel));
            }
            push(&mut parts, &targets.raw, event, Record { head, values: raw() });
            continue;
        };
        if event.mode == ModeTag::Raw {
            push(&mut parts, &targets.raw, event, Record { head, values: raw() });
            continue;
        }
        let values = row(schema, &event.payload, schema.on_unknown)
            .map_err(|e: Unmapped| refused(e.code(), &e.to_string(), &event.channel))?;
        if let Some(table) = targets.structured.get(&event.channel) {
            push(&mut parts, table, event, Record { head, values });
        }
        if channel.store_raw {
            push(&mut parts, &targets.raw, event, Record { head, values: raw() });
        }
    }
    Ok(parts)
}

fn refused(code: &str, text: &str, channel: &ChannelName) -> StorageError {
    StorageError {
        kind: Kind::Reject,
        code: code.to_owned(),
        text: text.to_owned(),
        channel: Some(channel.clone()),
    }
}

fn push<'a>(parts: &mut Vec<Part<'a>>, table: &Arc<Table>, event: &Event, row: Record<'a>) {
    match parts.iter_mut().find(|part| Arc::ptr_eq(&part.table, table)) {
        Some(part) => {
            if part.channel.as_ref().is_some_and(|c| *c != event.channel) {
                part.channel = None;
            }
            part.rows.push(row);
        }
        None => {
            let channel = Some(event.channel.clone());
            parts.push(Part { table: table.clone(), channel, rows: vec![row] });
        }
    }
}
