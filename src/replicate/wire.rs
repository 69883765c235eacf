//! What nodes say to each other: requests, pages of events, changes, schemas. Shared by those who
//! serve and those who ask.
//!
//! Pure text and bytes: does not know HTTP, storage, or what is done with an answer. What comes from
//! a peer is believed only as far as [`decode`] has checked it.
//!
//! A page is one JSON document. Payloads stand in it as they are stored, byte for byte. Asked for
//! with `pages`, pages come one after another, each behind a line with its length on the wire and its
//! length as JSON: where both differ it is compressed with zstd. A line with two zeros ends the answer,
//! so that one that was cut off between two pages is told from one that is whole.

mod decode;

use serde::{Deserialize, Serialize};

use crate::channel::schema::Ident;
use crate::clock::rfc3339;
use crate::event::{ChannelName, Micros, Name, Origin, Seq};
use crate::storage::event_store::StoredRow;

pub use decode::{Answer, Fault, decode};

/// The header that holds the token of the peers.
pub const TOKEN_HEADER: &str = "x-replicon-token";
/// A request's own number, which its answer repeats: an answer that somebody kept, or another request's,
/// has another. v1.0.2 repeats nothing.
pub const TURN_HEADER: &str = "x-replicon-turn";
/// The type of an answer that holds several pages.
pub const PAGES_TYPE: &str = "application/vnd.replicon.pages";
/// The version of what is said here.
pub const PROTOCOL: u32 = 2;
/// The most events in a page, whatever is asked for.
pub const MOST_EVENTS: usize = 5_000;
/// As many where nothing is asked for.
pub const USUAL_EVENTS: usize = 1_000;
/// Payload bytes after which a page ends; one event is always in it.
pub const PAGE_BYTES: usize = 1 << 20;
/// The most pages in one answer.
pub const MOST_PAGES: usize = 64;
/// The longest line before a page.
const MOST_LINE: usize = 48;
/// The most columns of a channel: no table has more.
const MOST_COLUMNS: usize = 4_096;
/// The longest name of a type.
const MOST_TYPE: usize = 64;

/// Pages that are wanted of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whose events.
    pub origin: Origin,
    /// Of which channel.
    pub channel: ChannelName,
    /// Whether the peer is the origin itself.
    pub direct: bool,
    /// The first seq that may be among them.
    pub from: Seq,
    /// Most events a page.
    pub limit: usize,
    /// Most pages.
    pub pages: usize,
    /// Whether to say how many events there are beyond the first page.
    pub count: bool,
}

/// What a peer knows of the node that it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The node's id, as the peer accepted it.
    pub id: String,
    /// The last seq of the node that the peer has passed.
    pub seq: Seq,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its `node_name`.
    pub name: Origin,
    /// What it knows of the node that it asks; nothing at their first meeting.
    pub known: Option<Known>,
}

impl Caller {
    /// As parameters.
    #[must_use]
    pub fn query(&self) -> String {
        match &self.known {
            None => format!("caller={}", self.name),
            Some(Known { id, seq }) => {
                format!("caller={}&known_id={id}&known_seq={seq}", self.name)
            }
        }
    }
}

impl Ask {
    /// The request, as path and query.
    #[must_use]
    pub fn path(&self, caller: &Caller, zstd: bool) -> String {
        let Self { origin, channel, direct, from, limit, pages, count } = self;
        let mut path = format!(
            "/internal/events?channel={channel}&from_seq={from}&limit={limit}&pages={pages}&{}",
            caller.query()
        );
        if !direct {
            path.push_str(&format!("&origin={origin}"));
        }
        for (flag, on) in [("count", *count), ("zstd", zstd)] {
            if on {
                path.push_str(&format!("&{flag}=1"));
            }
        }
        path
    }
}

/// A request for events as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The channel's name, known or not.
    pub channel: String,
    /// Whose events; the node's own where nothing is said.
    pub origin: Option<Origin>,
    /// The first seq.
    pub from: Seq,
    /// Most events a page, 1 to [`MOST_EVENTS`].
    pub limit: usize,
    /// Most pages; `None` where the answer is to be one plain document.
    pub pages: Option<usize>,
    /// Whether to count.
    pub count: bool,
    /// Whether pages may be compressed.
    pub zstd: bool,
    /// Who asks, where it says so.
    pub caller: Option<Caller>,
}

/// A parameter that cannot be read: what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadParameter(String);

impl Request {
    /// Reads the query of `/internal/events`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(query: &str) -> Result<Self, BadParameter> {
        let channel = parameter(query, "channel");
        let channel = channel.filter(|name| !name.is_empty()).ok_or_else(|| {
            BadParameter("channel is missing: name one, as in ?channel=NAME".to_owned())
        })?;
        let pages = positive(query, "pages", MOST_PAGES)?;
        Ok(Self {
            channel: channel.to_owned(),
            origin: parameter(query, "origin").map(|text| named("origin", text)).transpose()?,
            from: Seq(whole(query, "from_seq")?.unwrap_or(0)),
            limit: positive(query, "limit", MOST_EVENTS)?.unwrap_or(USUAL_EVENTS),
            pages,
            count: parameter(query, "count") == Some("1"),
            zstd: parameter(query, "zstd") == Some("1"),
            caller: caller_of(query)?,
        })
    }
}

/// Who asks, from a query.
///
/// # Errors
/// What is wrong with it.
pub fn caller_of(query: &str) -> Result<Option<Caller>, BadParameter> {
    let Some(name) = parameter(query, "caller") else { return Ok(None) };
    let name = named("caller", name)?;
    let id = parameter(query, "known_id").filter(|id| is_id(id));
    let seq = whole(query, "known_seq")?;
    let known = id.zip(seq).map(|(id, seq)| Known { id: id.to_owned(), seq: Seq(seq) });
    Ok(Some(Caller { name, known }))
}

/// A whole number of a query; `None` where it is not there.
///
/// # Errors
/// Where it is no whole number.
pub fn whole(query: &str, name: &str) -> Result<Option<u64>, BadParameter> {
    let Some(text) = parameter(query, name) else { return Ok(None) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    let wrong = || BadParameter(format!("{name} must be a whole number from 0 on"));
    number.map(Some).ok_or_else(wrong)
}

/// A number from 1 on, at most `most`.
fn positive(query: &str, name: &str, most: usize) -> Result<Option<usize>, BadParameter> {
    let Some(text) = parameter(query, name) else { return Ok(None) };
    let good = text.bytes().all(|byte| byte.is_ascii_digit())
        && text.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    if !good {
        return Err(BadParameter(format!("{name} must be a positive whole number")));
    }
    // what has more digits than a number holds is above the cap all the same
    Ok(Some(text.parse().unwrap_or(most).min(most)))
}

/// Names need no escapes, so an escaped one is nobody's.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn named(what: &str, text: &str) -> Result<Name, BadParameter> {
    Name::new(text).map_err(|_| BadParameter(format!("{what} must be the name of a node")))
}

/// Whether a text can be a node id.
fn is_id(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

/// What stands in a page before its events.
#[derive(Clone, Debug, Serialize)]
pub struct Head<'a> {
    /// The channel that was asked for.
    pub channel: &'a str,
    /// Whose events these are.
    pub origin: &'a str,
    /// The seq from which they were asked for.
    pub from_seq: u64,
    /// Who answers.
    pub node: &'a str,
    /// Its id: one unbroken history.
    pub node_id: &'a str,
    /// Up to here its history is that of the ids before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The fingerprint of the channel's schema there.
    pub schema: &'a str,
    /// Up to here everything is final.
    pub safe_seq: u64,
    /// The seq to ask for next.
    pub next_seq: u64,
    /// How far it holds the caller's own events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
    /// Its clock, in microseconds since 1970.
    pub now_micros: i64,
    /// How many events there are from `next_seq` to `safe_seq`, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
}

/// A page as JSON.
#[must_use]
pub fn encode(head: &Head<'_>, rows: &[StoredRow]) -> Vec<u8> {
    let size: usize = rows.iter().map(|row| row.payload.len() + 200).sum();
    let mut out = Vec::with_capacity(size + 512);
    // a vector takes all that is written
    let _ = serde_json::to_writer(&mut out, head);
    out.pop();
    out.extend_from_slice(b",\"events\":[");
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        push_row(&mut out, head, row);
    }
    out.extend_from_slice(b"]}");
    out
}

fn push_row(out: &mut Vec<u8>, head: &Head<'_>, row: &StoredRow) {
    let text = format!(
        "{{\"origin_dc\":\"{}\",\"origin_seq\":{},\"channel\":\"{}\",\"received_at\":\"{}\",\"node_name\":",
        head.origin,
        row.seq,
        head.channel,
        rfc3339(row.received_at)
    );
    out.extend_from_slice(text.as_bytes());
    let _ = serde_json::to_writer(&mut *out, &row.node_name);
    out.extend_from_slice(b",\"json_data\":");
    out.extend_from_slice(&row.payload);
    out.push(b'}');
}

/// The line before a page of `wire` bytes that holds `whole` bytes of JSON.
#[must_use]
pub fn line(wire: usize, whole: usize) -> Vec<u8> {
    format!("{wire} {whole}\n").into_bytes()
}

/// A line before a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its own bytes.
    pub bytes: usize,
    /// The bytes of the page behind it; 0 ends the answer.
    pub wire: usize,
    /// Those of its JSON: more where it is compressed.
    pub whole: usize,
}

/// Reads the line at the beginning of `bytes`; `None` where it is not whole yet.
///
/// # Errors
/// [`Fault::Garbled`] where it is none.
pub fn read_line(bytes: &[u8]) -> Result<Option<Line>, Fault> {
    let garbled = || Fault::Garbled("the line before a page".to_owned());
    let Some(end) = bytes.iter().take(MOST_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MOST_LINE { Ok(None) } else { Err(garbled()) };
    };
    let text = bytes.get(..end).and_then(|line| std::str::from_utf8(line).ok());
    let (wire, whole) = text.and_then(|line| line.split_once(' ')).ok_or_else(garbled)?;
    let (Ok(wire), Ok(whole)) = (wire.parse(), whole.parse()) else { return Err(garbled()) };
    if whole < wire || (wire == 0) != (whole == 0) {
        return Err(garbled());
    }
    Ok(Some(Line { bytes: end + 1, wire, whole }))
}

/// The answer of `/internal/changes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Who answers.
    pub node: String,
    /// Its id.
    pub node_id: String,
    /// To be given as `after` the next time.
    pub number: u64,
    /// The channels that gained events; absent where all may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// How far it holds the caller's own events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
}

impl Changed {
    /// The same, where what it says of its node may go into logs.
    ///
    /// # Errors
    /// [`Fault::Field`].
    pub fn checked(self) -> Result<Self, Fault> {
        match () {
            () if Name::new(&self.node).is_err() => Err(Fault::Field("node")),
            () if !is_id(&self.node_id) => Err(Fault::Field("node_id")),
            () => Ok(self),
        }
    }
}

/// The request for changes, as path and query.
#[must_use]
pub fn changes_path(caller: &Caller, after: Option<u64>, wait_ms: u128) -> String {
    let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
    format!("/internal/changes?wait_ms={wait_ms}{after}&{}", caller.query())
}

/// The answer of `/internal/schema`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// The channel.
    pub channel: String,
    /// Its fingerprint: equal ones mean equal columns.
    pub fingerprint: String,
    /// `raw_only` or `structured`.
    pub mode: String,
    /// The columns of a structured one, in order.
    pub columns: Vec<DescribedColumn>,
}

/// A column of a structured channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedColumn {
    /// Its name.
    pub name: String,
    /// Its type, as `field_types` has it.
    #[serde(rename = "type")]
    pub ty: String,
}

impl Described {
    /// The same, where all of it may go into logs.
    ///
    /// # Errors
    /// [`Fault::Field`].
    pub fn checked(self) -> Result<Self, Fault> {
        let plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        let is_type = |ty: &str| (1..=MOST_TYPE).contains(&ty.len()) && ty.bytes().all(plain);
        let is_column =
            |column: &DescribedColumn| Ident::new(&column.name).is_ok() && is_type(&column.ty);
        match () {
            () if Name::new(&self.channel).is_err() => Err(Fault::Field("channel")),
            () if !is_id(&self.fingerprint) => Err(Fault::Field("fingerprint")),
            () if Name::new(&self.mode).is_err() => Err(Fault::Field("mode")),
            () if self.columns.len() > MOST_COLUMNS => Err(Fault::Field("columns")),
            () if !self.columns.iter().all(is_column) => Err(Fault::Field("columns")),
            () => Ok(self),
        }
    }
}

/// The request for a schema, as path and query.
#[must_use]
pub fn schema_path(channel: &ChannelName) -> String {
    format!("/internal/schema?channel={channel}")
}

/// A small JSON answer of a peer.
///
/// # Errors
/// [`Fault::Garbled`]; the place is named, never the content.
pub fn small<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| decode::garbled(&e))
}

/// How old a moment of the peer is by its own clock, in seconds; clocks of two machines never meet.
#[must_use]
#[allow(clippy::cast_precision_loss)] // seconds, for people
pub fn age_seconds(now: Micros, at: Micros) -> f64 {
    now.0.saturating_sub(at.0).max(0) as f64 / 1e6
}

#[cfg(test)]
mod tests;
