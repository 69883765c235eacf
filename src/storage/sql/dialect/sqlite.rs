//! SQLite's words: affinities under which no value is converted, and its extended result codes.
//!
//! Numbers of fixed size are INTEGER, floating ones REAL, bytes BLOB; everything else is TEXT, since
//! under NUMERIC affinity a decimal or a date that looks like a number would become one.

use super::{Class, Dialect, RowLock};
use crate::channel::field_type::{Base, FieldType};
use crate::storage::sql::schema;
use crate::storage::sql::table::{Column, ColumnType, DefaultValue, Table};

/// SQLite 3.35 and later.
#[derive(Clone, Copy, Debug)]
pub struct Sqlite;

/// `synchronous = FULL` syncs the log at every commit; `journal_size_limit` gives its room back after
/// a long reader.
const SESSION_SETUP: &[&str] = &[
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA journal_size_limit = 67108864",
];

const PREFLIGHT: &[(&str, &str)] = &[
    ("sqlite_version", "SELECT sqlite_version()"),
    ("journal_mode", "SELECT CAST(journal_mode AS text) FROM pragma_journal_mode"),
    ("synchronous", "SELECT CAST(synchronous AS text) FROM pragma_synchronous"),
    ("encoding", "SELECT CAST(encoding AS text) FROM pragma_encoding"),
];

const COLUMNS: &str = "\
SELECT \"name\", lower(\"type\"), CASE \"notnull\" WHEN 0 THEN 'true' ELSE 'false' END, \
CAST(NULL AS text), CASE WHEN \"dflt_value\" IS NULL THEN 'false' ELSE 'true' END \
FROM pragma_table_info(?) ORDER BY \"cid\"";

const KEY: &str = "SELECT \"name\" FROM pragma_table_info(?) WHERE \"pk\" > 0 ORDER BY \"pk\"";

const INDEX: &str = "\
SELECT 'true' FROM sqlite_master WHERE \"type\" = 'index' AND \"name\" = ? COLLATE NOCASE";

impl Sqlite {
    /// Stores what no constraint refuses; gives the `origin_seq` of each row that it stored.
    /// Parameters: as [`Dialect::insert`].
    #[must_use]
    pub fn insert_or_ignore(self, table: &Table, rows: usize) -> String {
        let insert = self.insert(table, rows).replacen("INSERT INTO", "INSERT OR IGNORE INTO", 1);
        format!("{insert} RETURNING {}", self.cast_text(&self.quote("origin_seq")))
    }
}

impl Dialect for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn column_type(&self, ty: ColumnType) -> String {
        match ty {
            ColumnType::Seq | ColumnType::BigInt => "INTEGER",
            ColumnType::Blob => "BLOB",
            ColumnType::Field(field) => affinity(field),
            ColumnType::OriginDc
            | ColumnType::NodeName
            | ColumnType::ChannelName
            | ColumnType::ReceivedAt
            | ColumnType::JsonDoc
            | ColumnType::Text
            | ColumnType::Timestamp => "TEXT",
        }
        .to_owned()
    }

    fn default_value(&self, default: DefaultValue) -> Option<&'static str> {
        match default {
            DefaultValue::NextSeq => None,
            DefaultValue::Now => Some("(strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'))"),
            DefaultValue::Zero => Some("0"),
        }
    }

    fn placeholder(&self, _place: usize, _ty: ColumnType) -> String {
        "?".to_owned()
    }

    fn greatest(&self, left: &str, right: &str) -> String {
        format!("max({left}, {right})")
    }

    /// There is one write transaction at a time.
    fn lock_clause(&self, _lock: RowLock) -> &'static str {
        ""
    }

    fn max_binds(&self) -> usize {
        32_766
    }

    fn session_setup(&self) -> &'static [&'static str] {
        SESSION_SETUP
    }

    fn incarnation(&self) -> &'static [&'static str] {
        // the file is opened by this process alone
        &[]
    }

    fn preflight(&self) -> &'static [(&'static str, &'static str)] {
        PREFLIGHT
    }

    fn origin_lock(&self) -> Option<&'static str> {
        None
    }

    fn introspect_columns(&self) -> &'static str {
        COLUMNS
    }

    fn introspect_key(&self) -> &'static str {
        KEY
    }

    fn introspect_index(&self) -> &'static str {
        INDEX
    }

    /// The one exception to text: floating numbers come as they are, since SQLite's own way from a
    /// double to text and back is not exact.
    fn as_text(&self, column: &Column) -> String {
        // in double quotes the name of a column that is gone would be a string
        let name = format!("`{}`", column.name.replace('`', "``"));
        let base = match column.ty {
            ColumnType::Blob => Some(Base::Bytea),
            ColumnType::Field(FieldType { base, array: false }) => Some(base),
            _ => None,
        };
        match base {
            Some(Base::Bytea) => {
                format!("CASE WHEN {name} IS NOT NULL THEN '\\x' || lower(hex({name})) END")
            }
            Some(Base::Boolean) => format!(
                "CASE {name} WHEN 0 THEN 'false' WHEN 1 THEN 'true' ELSE {} END",
                self.cast_text(&name)
            ),
            Some(Base::Real | Base::DoublePrecision) => name,
            _ => self.cast_text(&name),
        }
    }

    fn same_type(&self, ty: ColumnType, name: &str) -> bool {
        schema::same_in_sqlite(&self.column_type(ty), name)
    }

    fn classify(&self, code: &str) -> Class {
        code.parse().ok().and_then(listed).unwrap_or(Class::Fatal)
    }
}

fn affinity(field: FieldType) -> &'static str {
    if field.array {
        return "TEXT";
    }
    match field.base {
        Base::Smallint | Base::Integer | Base::Bigint | Base::Boolean => "INTEGER",
        Base::Real | Base::DoublePrecision => "REAL",
        Base::Bytea => "BLOB",
        Base::Text
        | Base::Timestamptz
        | Base::Timestamp
        | Base::Date
        | Base::Time
        | Base::Timetz
        | Base::Inet
        | Base::Cidr
        | Base::Macaddr
        | Base::Macaddr8
        | Base::Numeric
        | Base::Uuid
        | Base::Jsonb => "TEXT",
    }
}

/// What is known of an extended result code.
fn listed(code: u32) -> Option<Class> {
    Some(match code {
        // CONSTRAINT_PRIMARYKEY, CONSTRAINT_UNIQUE
        1555 | 2067 => Class::AlreadyThere,
        // CONSTRAINT_CHECK, _FOREIGNKEY, _NOTNULL, _TRIGGER, _DATATYPE
        275 | 787 | 1299 | 1811 | 3091 => Class::Reject,
        // ERROR_RETRY, ERROR_SNAPSHOT
        513 => Class::RetryAtOnce,
        769 => Class::Retry,
        _ => return listed_primary(code & 0xFF),
    })
}

/// What is known of a primary result code, whatever its extension.
fn listed_primary(code: u32) -> Option<Class> {
    match code {
        // BUSY, LOCKED, SCHEMA
        5 | 6 | 17 => Some(Class::RetryAtOnce),
        // PERM, ABORT, NOMEM, READONLY, INTERRUPT, IOERR
        3 | 4 | 7..=10 => Some(Class::Retry),
        // FULL, CANTOPEN, PROTOCOL, NOLFS
        13..=15 | 22 => Some(Class::Retry),
        // TOOBIG
        18 => Some(Class::Reject),
        _ => None,
    }
}
