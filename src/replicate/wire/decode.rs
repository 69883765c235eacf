//! Reading a page: everything that can be told from the page and from what was asked for is checked
//! before anybody sees it.
//!
//! Does not know cursors, nor how an answer came.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Ask;
use crate::event::{Micros, Name, Seq};
use crate::seq::belief_bound;
use crate::storage::event_store::StoredRow;
use crate::storage::mend::fit;
use crate::storage::sql::value::micros;

/// A page that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The first seq that was asked for.
    pub from: Seq,
    /// Whether it says what it answers: one that does not is an old peer's.
    pub echoed: bool,
    /// Who answers.
    pub node: Option<String>,
    /// Its id.
    pub node_id: Option<String>,
    /// Up to here its history is that of the ids before it.
    pub since: Option<Seq>,
    /// The fingerprint of its schema.
    pub schema: Option<String>,
    /// Up to here everything is final there.
    pub safe: Option<Seq>,
    /// The seq to go on with; above every row, and at most one above `safe`.
    pub next: Seq,
    /// How far it holds our own events.
    pub seen: Option<Seq>,
    /// Its clock.
    pub now: Option<Micros>,
    /// How many events there are from `next` to `safe`.
    pub behind: Option<u64>,
    /// The events, in rising order of seq.
    pub rows: Vec<StoredRow>,
    /// Those of them whose payload is none, and why.
    pub unfit: BTreeMap<Seq, String>,
}

impl Answer {
    /// Whether there is more than this page, as far as it says.
    #[must_use]
    pub fn has_more(&self, limit: usize) -> bool {
        match self.safe {
            Some(safe) => self.next <= safe,
            None => self.rows.len() >= limit,
        }
    }
}

/// Why an answer is not used. Never holds a payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("it cannot be read ({0})")]
    Garbled(String),
    /// It answers another question: from a cache, say.
    #[error("it answers another question than was asked")]
    Misplaced,
    /// It does not say what it answers, which only the origin itself may.
    #[error("it does not say whose events it holds, as v1.0.2 does not: it cannot relay")]
    NoEcho,
    /// It holds events of another origin or channel.
    #[error("it holds events of {0}, which was not asked for")]
    Foreign(String),
    /// Seqs that do not rise, or lie below what was asked for.
    #[error("its seqs do not rise: {after} after {before}")]
    NotRising {
        /// The one before.
        before: Seq,
        /// The one that should be higher.
        after: Seq,
    },
    /// More events than were asked for.
    #[error("it holds more than the {0} events that were asked for")]
    TooMany(usize),
    /// A seq that no clock allows.
    #[error("seq {0} is above what any clock allows before 2090")]
    AboveBound(Seq),
    /// `next_seq` that no page of its kind can have.
    #[error("its next_seq {next} does not go with its events and its safe_seq {safe}")]
    Next {
        /// `next_seq`.
        next: Seq,
        /// `safe_seq`.
        safe: Seq,
    },
    /// A field that it must have, or cannot have so.
    #[error("its {0} is missing, or cannot be one")]
    Field(&'static str),
    /// It is larger than a page may be.
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
}

#[derive(Deserialize)]
struct RawPage<'a> {
    channel: Option<String>,
    origin: Option<String>,
    from_seq: Option<u64>,
    node: Option<String>,
    node_id: Option<String>,
    since: Option<u64>,
    schema: Option<String>,
    safe_seq: Option<u64>,
    next_seq: Option<u64>,
    seen: Option<u64>,
    now_micros: Option<i64>,
    behind: Option<u64>,
    // v1.0.2 may write null for none
    #[serde(borrow)]
    events: Option<Vec<RawEvent<'a>>>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow)]
    origin_dc: Cow<'a, str>,
    origin_seq: u64,
    #[serde(borrow)]
    node_name: Cow<'a, str>,
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    received_at: Cow<'a, str>,
    #[serde(borrow)]
    json_data: &'a RawValue,
}

/// An error of the parser, without what it says of the content.
pub(super) fn garbled(e: &serde_json::Error) -> Fault {
    Fault::Garbled(format!("JSON, line {}, column {}", e.line(), e.column()))
}

/// Reads a page that answers `ask`. Payloads are slices of `body`.
///
/// # Errors
/// [`Fault`]; then nothing of it may be used.
pub fn decode(ask: &Ask, body: &Bytes) -> Result<Answer, Fault> {
    let page: RawPage<'_> = serde_json::from_slice(body).map_err(|e| garbled(&e))?;
    let echoed = echo(ask, &page)?;
    let events = page.events.unwrap_or_default();
    if events.len() > ask.limit {
        return Err(Fault::TooMany(ask.limit));
    }
    let mut rows = Vec::with_capacity(events.len());
    let mut unfit = BTreeMap::new();
    let mut before = Seq(ask.from.0.saturating_sub(1));
    for event in &events {
        let seq = Seq(event.origin_seq);
        if seq <= before {
            return Err(Fault::NotRising { before, after: seq });
        }
        before = seq;
        rows.push(row(ask, event, body, &mut unfit)?);
    }
    let next = next(ask, &rows, echoed, page.next_seq, page.safe_seq)?;
    for (field, text) in
        [("node", &page.node), ("node_id", &page.node_id), ("schema", &page.schema)]
    {
        if text.as_ref().is_some_and(|text| !super::is_id(text) && Name::new(text).is_err()) {
            return Err(Fault::Field(field));
        }
    }
    Ok(Answer {
        from: ask.from,
        echoed,
        node: page.node,
        node_id: page.node_id,
        since: page.since.map(Seq),
        schema: page.schema,
        safe: if echoed { page.safe_seq.map(Seq) } else { None },
        next,
        seen: page.seen.map(Seq),
        now: page.now_micros.map(Micros),
        behind: page.behind,
        rows,
        unfit,
    })
}

/// Whether the page says what it answers; an error where that is not what was asked.
fn echo(ask: &Ask, page: &RawPage<'_>) -> Result<bool, Fault> {
    let (Some(channel), Some(origin), Some(from)) = (&page.channel, &page.origin, page.from_seq)
    else {
        return if ask.direct { Ok(false) } else { Err(Fault::NoEcho) };
    };
    let ours =
        channel == ask.channel.as_str() && origin == ask.origin.as_str() && from == ask.from.0;
    if ours { Ok(true) } else { Err(Fault::Misplaced) }
}

fn row(
    ask: &Ask,
    event: &RawEvent<'_>,
    body: &Bytes,
    unfit: &mut BTreeMap<Seq, String>,
) -> Result<StoredRow, Fault> {
    let seq = Seq(event.origin_seq);
    if event.origin_dc != ask.origin.as_str() {
        return Err(Fault::Foreign("another origin".to_owned()));
    }
    if event.channel != ask.channel.as_str() {
        return Err(Fault::Foreign("another channel".to_owned()));
    }
    if seq >= belief_bound() {
        return Err(Fault::AboveBound(seq));
    }
    // it goes into logs and into the quarantine's rows
    if Name::new(&event.node_name).is_err() {
        return Err(Fault::Field("node_name"));
    }
    let received_at = micros(&event.received_at).ok_or(Fault::Field("received_at"))?;
    let raw = body.slice_ref(event.json_data.get().as_bytes());
    let payload = match fit(&raw) {
        Ok(payload) => payload,
        Err(reason) => {
            unfit.insert(seq, reason);
            raw
        }
    };
    Ok(StoredRow { seq, node_name: event.node_name.clone().into_owned(), received_at, payload })
}

/// The seq to go on with. An old peer's word for it is not taken: its last row says where it is.
fn next(
    ask: &Ask,
    rows: &[StoredRow],
    echoed: bool,
    next_seq: Option<u64>,
    safe_seq: Option<u64>,
) -> Result<Seq, Fault> {
    let last = rows.last().map(|row| row.seq);
    if !echoed {
        return Ok(last.map_or(ask.from, Seq::next));
    }
    let next = Seq(next_seq.ok_or(Fault::Field("next_seq"))?);
    let safe = Seq(safe_seq.ok_or(Fault::Field("safe_seq"))?);
    if safe >= belief_bound() {
        return Err(Fault::AboveBound(safe));
    }
    let fits = match last {
        Some(last) => last < next && last <= safe && next <= safe.next(),
        // S fell back: wait where we are. Else a page without events reaches S: one that stops short
        // of it, or stays where it is, would be asked for again and again
        None if ask.from > safe => next == ask.from,
        None => next == safe.next(),
    };
    if fits { Ok(next) } else { Err(Fault::Next { next, safe }) }
}
