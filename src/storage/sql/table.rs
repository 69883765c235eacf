//! The tables that a node needs, as data: names, columns, keys and indexes.
//!
//! Pure: must not know a dialect's words, a connection, or when a table is made.

use crate::channel::Registry;
use crate::channel::field_type::FieldType;
use crate::channel::schema::{CANONICAL_COLUMNS, IndexSpec, MAX_IDENT_LEN, Schema};

#[cfg(test)]
mod tests;

/// The sequence that earlier versions numbered rows with. It is kept; nothing depends on it.
pub const ORIGIN_SEQUENCE: &str = "replicon_origin_seq";

/// What identifies a row of `events_raw` and of every structured table.
const IDENTITY: [&str; 2] = ["origin_dc", "origin_seq"];

/// What a column holds; each dialect has a type for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// The name of the node that accepted an event, or of the peer that it comes from.
    OriginDc,
    /// A seq, as part of an identity.
    Seq,
    /// The name of the node that stored an event first.
    NodeName,
    /// The name of a channel.
    ChannelName,
    /// When an event was accepted, in microseconds.
    ReceivedAt,
    /// An event's whole payload.
    JsonDoc,
    /// A field of a structured channel.
    Field(FieldType),
    /// A text of ours.
    Text,
    /// A whole number of ours, of 64 bits.
    BigInt,
    /// A moment of ours, in microseconds.
    Timestamp,
    /// Bytes as they came.
    Blob,
}

/// What stands in a column that an INSERT does not name. Our own statements name every column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// The next number of [`ORIGIN_SEQUENCE`], where the dialect has sequences.
    NextSeq,
    /// The present moment.
    Now,
    /// 0.
    Zero,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub ty: ColumnType,
    /// Whether it may be null.
    pub nullable: bool,
    /// What stands in it where nothing is given.
    pub default: Option<DefaultValue>,
}

/// An index of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Its name.
    pub name: String,
    /// Whether it is unique.
    pub unique: bool,
    /// Its columns; `true` for descending ones.
    pub columns: Vec<(String, bool)>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<Column>,
    /// The columns of its primary key, in order.
    pub primary_key: Vec<&'static str>,
    /// Its other indexes.
    pub indexes: Vec<Index>,
}

impl Column {
    fn new(name: &str, ty: ColumnType) -> Self {
        Self { name: name.to_owned(), ty, nullable: false, default: None }
    }

    fn nullable(name: &str, ty: ColumnType) -> Self {
        Self { nullable: true, ..Self::new(name, ty) }
    }

    fn with_default(self, default: DefaultValue) -> Self {
        Self { default: Some(default), ..self }
    }
}

impl Table {
    fn new(name: &str, primary_key: &[&'static str], columns: Vec<Column>) -> Self {
        Self {
            name: name.to_owned(),
            columns,
            primary_key: primary_key.to_vec(),
            indexes: Vec::new(),
        }
    }
}

/// Every payload of the channels that keep theirs whole.
#[must_use]
pub fn events_raw() -> Table {
    let [origin_dc, origin_seq, node_name, channel, received_at] = canonical();
    let columns = vec![
        origin_dc,
        origin_seq.with_default(DefaultValue::NextSeq),
        node_name,
        channel,
        received_at.with_default(DefaultValue::Now),
        Column::new("json_data", ColumnType::JsonDoc),
    ];
    Table::new("events_raw", &IDENTITY, columns)
}

/// The table of a structured channel: the canonical columns, then its own.
#[must_use]
pub fn structured(schema: &Schema) -> Table {
    let mut columns = canonical().to_vec();
    columns.extend(schema.columns.iter().map(|column| Column {
        nullable: !column.required,
        ..Column::new(column.name.as_str(), ColumnType::Field(column.ty))
    }));
    let table = schema.table.as_str();
    let indexes = schema.indexes.iter().map(|spec| index(table, spec)).collect();
    Table { indexes, ..Table::new(table, &IDENTITY, columns) }
}

/// How far each channel of each origin was received.
#[must_use]
pub fn replication_progress() -> Table {
    let columns = vec![
        Column::new("peer_dc", ColumnType::OriginDc),
        Column::new("channel", ColumnType::ChannelName),
        Column::new("last_origin_seq_received", ColumnType::BigInt)
            .with_default(DefaultValue::Zero),
        Column::new("updated_at", ColumnType::Timestamp),
    ];
    Table::new("replication_progress", &["peer_dc", "channel"], columns)
}

/// Which node writes as an origin: its id, and how often the origin was taken.
#[must_use]
pub fn replicon_node() -> Table {
    let columns = vec![
        Column::new("origin_dc", ColumnType::OriginDc),
        Column::new("node_id", ColumnType::Text),
        Column::new("epoch", ColumnType::BigInt),
        Column::new("taken_at", ColumnType::Timestamp),
        Column::new("host", ColumnType::Text),
        Column::nullable("since", ColumnType::BigInt),
    ];
    Table::new("replicon_node", &["origin_dc"], columns)
}

/// How far each channel's events were released from the queue: what a database that went back shows.
#[must_use]
pub fn replicon_released() -> Table {
    let columns = vec![
        Column::new("origin_dc", ColumnType::OriginDc),
        Column::new("channel", ColumnType::ChannelName),
        Column::new("released_seq", ColumnType::BigInt),
    ];
    Table::new("replicon_released", &["origin_dc", "channel"], columns)
}

/// The node ids of other origins that were accepted, and when.
#[must_use]
pub fn replicon_origin() -> Table {
    let columns = vec![
        Column::new("origin_dc", ColumnType::OriginDc),
        Column::new("node_id", ColumnType::ChannelName),
        Column::new("accepted_at", ColumnType::Timestamp),
    ];
    Table::new("replicon_origin", &["origin_dc", "node_id"], columns)
}

/// Foreign events whose identity stands here with other content.
#[must_use]
pub fn replicon_conflicts() -> Table {
    let columns = vec![
        Column::new("origin_dc", ColumnType::OriginDc),
        Column::new("origin_seq", ColumnType::Seq),
        Column::new("channel", ColumnType::ChannelName),
        Column::nullable("node_name", ColumnType::NodeName),
        Column::new("received_at", ColumnType::ReceivedAt),
        Column::new("payload", ColumnType::Blob),
        Column::new("found_at", ColumnType::Timestamp),
    ];
    Table::new("replicon_conflicts", &["origin_dc", "origin_seq", "channel"], columns)
}

/// Foreign events that could not be applied, as the bytes that came.
#[must_use]
pub fn replicon_quarantine() -> Table {
    let columns = vec![
        Column::new("origin_dc", ColumnType::OriginDc),
        Column::new("origin_seq", ColumnType::Seq),
        Column::new("channel", ColumnType::ChannelName),
        Column::new("wire", ColumnType::Blob),
        Column::new("reason", ColumnType::Text),
        Column::new("found_at", ColumnType::Timestamp),
    ];
    Table::new("replicon_quarantine", &IDENTITY, columns)
}

/// The tables that a start needs. What a disabled channel left in the queue is not counted here:
/// whoever stores that makes the table when it comes to it.
#[must_use]
pub fn plan(registry: &Registry) -> Vec<Table> {
    let enabled = || registry.all().filter(|channel| channel.enabled);
    let mut tables = Vec::new();
    if enabled().any(|channel| channel.store_raw || channel.schema().is_none()) {
        tables.push(events_raw());
    }
    tables.extend(enabled().filter_map(|channel| channel.schema()).map(|s| structured(s)));
    tables.extend([
        replication_progress(),
        replicon_node(),
        replicon_released(),
        replicon_origin(),
        replicon_conflicts(),
        replicon_quarantine(),
    ]);
    tables
}

/// The index by which pages of one channel are read, where the primary key does not serve: built
/// apart from the table, since there may be years of rows. A structured table holds one channel, so
/// its key is enough.
#[must_use]
pub fn reading_index(table: &Table) -> Option<Index> {
    let whole = table.columns.iter().any(|column| column.ty == ColumnType::JsonDoc);
    whole.then(|| Index {
        name: format!("{}_origin_channel_seq", table.name),
        unique: false,
        columns: ["origin_dc", "channel", "origin_seq"].map(|name| (name.to_owned(), false)).into(),
    })
}

fn canonical() -> [Column; 5] {
    let [origin_dc, origin_seq, node_name, channel, received_at] = CANONICAL_COLUMNS;
    [
        Column::new(origin_dc, ColumnType::OriginDc),
        Column::new(origin_seq, ColumnType::Seq),
        Column::new(node_name, ColumnType::NodeName),
        Column::new(channel, ColumnType::ChannelName),
        Column::new(received_at, ColumnType::ReceivedAt),
    ]
}

fn index(table: &str, spec: &IndexSpec) -> Index {
    Index {
        name: match &spec.name {
            Some(name) => name.to_string(),
            None => generated_name(table, spec),
        },
        unique: spec.unique,
        columns: spec.columns.iter().map(|(name, desc)| (name.to_string(), *desc)).collect(),
    }
}

/// A name that stays the same while the index does. The checksum tells apart what the readable part
/// does not: `a_b` from `a, b`, an order, a cut. Without it `IF NOT EXISTS` would skip the second.
fn generated_name(table: &str, spec: &IndexSpec) -> String {
    const CHECKSUM_LEN: usize = 9;
    let names: Vec<&str> = spec.columns.iter().map(|(name, _)| name.as_str()).collect();
    let orders: Vec<String> = spec
        .columns
        .iter()
        .map(|(name, desc)| format!("{name}{}", if *desc { " DESC" } else { "" }))
        .collect();
    let unique = if spec.unique { "unique " } else { "" };
    let definition = format!("{unique}{table} ({})", orders.join(", "));
    format!(
        "{readable:.most$}_{checksum:08x}",
        readable = format!("{table}_{}", names.join("_")),
        most = MAX_IDENT_LEN - CHECKSUM_LEN,
        checksum = crc32c::crc32c(definition.as_bytes()),
    )
}
