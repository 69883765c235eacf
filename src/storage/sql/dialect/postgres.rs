//! PostgreSQL's words: native types, and the classes of its SQLSTATE codes.
//!
//! Every parameter is sent as text and cast where it stands: the server's own input functions read
//! the canonical texts, and one statement text has one set of parameter types, as statement caches
//! need it.

use super::{Class, Dialect, RowLock, definition, index_statement, names};
use crate::storage::sql::schema;
use crate::storage::sql::table::{Column, ColumnType, DefaultValue, Index, ORIGIN_SEQUENCE, Table};

/// PostgreSQL 12 and later.
#[derive(Clone, Copy, Debug)]
pub struct Postgres;

/// Keepalives: 12 s of silence, then a probe every 2 s; with the nine probes that a system sends a
/// vanished host's session ends after 30 s.
const SESSION_SETUP: &[&str] = &[
    // what is stronger than `local` stays as it is
    "SELECT set_config('synchronous_commit', 'local', false) \
     WHERE current_setting('synchronous_commit') = 'off'",
    "SET client_encoding = 'UTF8'",
    "SET timezone = 'UTC'",
    "SET datestyle = 'ISO, YMD'",
    "SET extra_float_digits = 3",
    "SET bytea_output = 'hex'",
    "SET default_transaction_isolation = 'read committed'",
    "SET lock_timeout = '5s'",
    "SET idle_in_transaction_session_timeout = '60s'",
    "SET tcp_keepalives_idle = 12",
    "SET tcp_keepalives_interval = 2",
];

const PREFLIGHT: &[(&str, &str)] = &[
    ("server_version", "SELECT current_setting('server_version')"),
    ("server_encoding", "SELECT current_setting('server_encoding')"),
    ("synchronous_commit", "SELECT current_setting('synchronous_commit')"),
    ("fsync", "SELECT current_setting('fsync')"),
    ("full_page_writes", "SELECT current_setting('full_page_writes')"),
    ("transaction_read_only", "SELECT current_setting('transaction_read_only')"),
    ("in_recovery", "SELECT CAST(pg_is_in_recovery() AS text)"),
];

const COLUMNS: &str = "\
SELECT CAST(a.attname AS text), format_type(a.atttypid, NULL), CAST(NOT a.attnotnull AS text), \
substring(format_type(a.atttypid, a.atttypmod) FROM '[(]([0-9,]+)[)]'), \
CAST(a.atthasdef OR a.attidentity <> '' AS text) \
FROM pg_catalog.pg_attribute a \
WHERE a.attrelid = to_regclass(quote_ident($1::text)) AND a.attnum > 0 AND NOT a.attisdropped \
ORDER BY a.attnum";

const KEY: &str = "\
SELECT CAST(a.attname AS text) \
FROM pg_catalog.pg_index i \
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
WHERE i.indrelid = to_regclass(quote_ident($1::text)) AND i.indisprimary \
AND k.place <= i.indnkeyatts \
ORDER BY k.place";

const INDEX: &str = "\
SELECT CAST(i.indisvalid AS text) FROM pg_catalog.pg_index i \
WHERE i.indexrelid = to_regclass(quote_ident($1::text))";

/// What tells bad rows from good ones: a temporary copy of the table without its constraints, and the
/// expressions of its CHECKs.
impl Postgres {
    fn sieve(self, table: &Table) -> String {
        format!("\"replicon_sieve_{:08x}\"", crc32c::crc32c(table.name.as_bytes()))
    }

    /// Makes the temporary copy anew; it goes with the transaction.
    #[must_use]
    pub fn make_sieve(self, table: &Table) -> [String; 2] {
        let (sieve, table) = (self.sieve(table), self.quote(&table.name));
        // made anew each time: the table may have other columns since
        let like = "INCLUDING DEFAULTS INCLUDING IDENTITY INCLUDING GENERATED";
        [
            format!("DROP TABLE IF EXISTS {sieve}"),
            format!("CREATE TEMP TABLE {sieve} (LIKE {table} {like}) ON COMMIT DROP"),
        ]
    }

    /// Fills it.
    #[must_use]
    pub fn fill_sieve(self, table: &Table) -> String {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let (sieve, columns) = (self.sieve(table), names(&self, &columns));
        format!("COPY {sieve} ({columns}) FROM STDIN WITH (FORMAT text)")
    }

    /// The CHECKs of a table that hold: name and expression. None where a trigger may change a row
    /// before they are looked at. Parameters: table.
    #[must_use]
    pub fn checks(self) -> &'static str {
        "SELECT CAST(conname AS text), pg_get_expr(conbin, conrelid) \
         FROM pg_catalog.pg_constraint \
         WHERE conrelid = to_regclass(quote_ident($1::text)) AND contype = 'c' \
         AND to_jsonb(pg_constraint)->>'conenforced' IS DISTINCT FROM 'false' \
         AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger \
         WHERE tgrelid = conrelid AND NOT tgisinternal AND tgenabled <> 'D' \
         AND (tgtype & 7) = 7) \
         ORDER BY conname"
    }

    /// The rows in the copy that a CHECK refuses: seq, and which of `expressions`.
    #[must_use]
    pub fn refused(self, table: &Table, expressions: &[&str]) -> String {
        let cases: Vec<String> = (0..)
            .zip(expressions)
            .map(|(i, e)| format!("WHEN ({e}) IS FALSE THEN '{i}'"))
            .collect();
        let fails: Vec<String> = expressions.iter().map(|e| format!("({e}) IS FALSE")).collect();
        format!(
            "SELECT CAST(\"origin_seq\" AS text), CASE {} END FROM {} WHERE {}",
            cases.join(" "),
            self.sieve(table),
            fails.join(" OR ")
        )
    }
}

impl Dialect for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn column_type(&self, ty: ColumnType) -> String {
        match ty {
            ColumnType::OriginDc
            | ColumnType::NodeName
            | ColumnType::ChannelName
            | ColumnType::Text => "text".to_owned(),
            ColumnType::Seq | ColumnType::BigInt => "bigint".to_owned(),
            ColumnType::ReceivedAt | ColumnType::Timestamp => "timestamptz".to_owned(),
            ColumnType::JsonDoc => "jsonb".to_owned(),
            ColumnType::Blob => "bytea".to_owned(),
            // The names of the configuration are PostgreSQL's own.
            ColumnType::Field(field) => field.to_string(),
        }
    }

    fn default_value(&self, default: DefaultValue) -> Option<&'static str> {
        Some(match default {
            DefaultValue::NextSeq => "nextval('replicon_origin_seq')",
            DefaultValue::Now => "now()",
            DefaultValue::Zero => "0",
        })
    }

    fn placeholder(&self, place: usize, ty: ColumnType) -> String {
        format!("${place}::{}", self.column_type(ty))
    }

    fn greatest(&self, left: &str, right: &str) -> String {
        format!("greatest({left}, {right})")
    }

    fn lock_clause(&self, lock: RowLock) -> &'static str {
        match lock {
            RowLock::Share => " FOR SHARE",
            RowLock::Exclusive => " FOR UPDATE",
        }
    }

    fn max_binds(&self) -> usize {
        65_535
    }

    fn session_setup(&self) -> &'static [&'static str] {
        SESSION_SETUP
    }

    fn incarnation(&self) -> &'static [&'static str] {
        &["SELECT pg_postmaster_start_time()::text"]
    }

    fn preflight(&self) -> &'static [(&'static str, &'static str)] {
        PREFLIGHT
    }

    fn origin_lock(&self) -> Option<&'static str> {
        Some(
            "SELECT CAST(pg_try_advisory_lock(hashtextextended('replicon ' || \
             current_database() || ' ' || $1::text, 0)) AS text)",
        )
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

    /// Arrays come as JSON, so that their elements need no reader of PostgreSQL's own form.
    fn as_text(&self, column: &Column) -> String {
        let name = self.quote(&column.name);
        match column.ty {
            ColumnType::Field(field) if field.array => self.cast_text(&format!("to_json({name})")),
            _ => self.cast_text(&name),
        }
    }

    fn before_table(&self, table: &Table) -> Vec<String> {
        let numbered = table.columns.iter().any(|c| c.default == Some(DefaultValue::NextSeq));
        let sequence = self.quote(ORIGIN_SEQUENCE);
        if numbered {
            vec![format!("CREATE SEQUENCE IF NOT EXISTS {sequence}")]
        } else {
            Vec::new()
        }
    }

    fn add_column(&self, table: &Table, column: &Column) -> String {
        let (table, column) = (self.quote(&table.name), definition(self, column));
        format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}")
    }

    fn create_index_online(&self, table: &Table, index: &Index) -> String {
        index_statement(self, table, index, "CONCURRENTLY ")
    }

    fn drop_index_online(&self, _table: &Table, index: &Index) -> String {
        format!("DROP INDEX CONCURRENTLY IF EXISTS {}", self.quote(&index.name))
    }

    fn copy_in(&self, table: &Table) -> Option<String> {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        Some(format!(
            "COPY {} ({}) FROM STDIN WITH (FORMAT text)",
            self.quote(&table.name),
            names(self, &columns)
        ))
    }

    fn same_type(&self, ty: ColumnType, name: &str) -> bool {
        schema::same_in_postgres(ty, name)
    }

    fn classify(&self, code: &str) -> Class {
        listed(code).unwrap_or(Class::Fatal)
    }
}

/// What is known of a SQLSTATE.
fn listed(code: &str) -> Option<Class> {
    if code.len() != 5 {
        return None;
    }
    Some(match code {
        "23505" => Class::AlreadyThere,
        // rolled back, serialization failure, deadlock
        "40000" | "40001" | "40P01" => Class::RetryAtOnce,
        // A read-only server is one that failed over, or was told to be so for a while.
        "25006" => Class::Retry,
        // The session's transaction is not where we believe it is: a new one mends that.
        "25P02" | "25P03" | "25P04" | "40003" => Class::Retry,
        // A pooler in between gave the prepared statement's session to somebody else.
        "26000" | "42P05" => Class::Retry,
        // The database is not there, or accepts nobody: for all channels, so none is at fault.
        "3D000" | "55000" | "55006" | "F0000" => Class::Retry,
        // a lock timeout
        "55P03" => Class::Locked,
        // an old snapshot
        "72000" => Class::Retry,
        // integrity: of the data, but for 23505 above
        "23000" | "23001" | "23502" | "23503" | "23514" | "23P01" | "44000" => Class::Reject,
        // An entry too large for its index, a row for its page, a nesting for the stack.
        "54000" | "54001" => Class::Reject,
        // A trigger of the operator's refuses the row: a CHECK by other means.
        "P0001" => Class::Reject,
        _ => return listed_class(code.get(..2)?),
    })
}

/// What is known of a whole class of codes.
fn listed_class(class: &str) -> Option<Class> {
    match class {
        // The connection, the resources, the operator, the system. And the login (28): while nobody
        // is let in nothing can be written, and no event is at fault.
        "08" | "28" | "53" | "57" | "58" => Some(Class::Retry),
        "22" => Some(Class::Reject),
        _ => None,
    }
}
