//! MySQL's words, which are MariaDB's too: one text for MySQL 8 and 9 and for MariaDB 10.6 and later.
//!
//! There is no `IF NOT EXISTS` for a column or an index, no RETURNING, and DDL ends a transaction. A
//! comment that begins with `/*M!` is read by MariaDB alone. `codes` knows the numbers of errors,
//! `types` the types of columns. Must not know a connection.

mod codes;
mod types;

use super::{Class, Dialect, RowLock, definition, names};
use crate::channel::field_type::{Base, FieldType};
use crate::storage::sql::table::{
    Column, ColumnType, DefaultValue, Index, Table, replicon_released,
};

/// MySQL 8 and 9, MariaDB 10.6 and later.
#[derive(Clone, Copy, Debug)]
pub struct Mysql;

/// The mode replaces the server's: what it left over (`NO_BACKSLASH_ESCAPES`, `ANSI_QUOTES`) would
/// change what statements mean. A session that is silent for 30 s is ended by the server, so that a
/// vanished host's locks are freed: who lives asks sooner. Five seconds wait for a row, and as long for
/// a table that is altered.
const SESSION_SETUP: &[&str] = &[
    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
    "SET SESSION sql_mode = \
     'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,NO_ENGINE_SUBSTITUTION', \
     time_zone = '+00:00', autocommit = 1, unique_checks = 1, foreign_key_checks = 1, \
     innodb_lock_wait_timeout = 5, lock_wait_timeout = 5, \
     wait_timeout = 30, net_read_timeout = 30, net_write_timeout = 30",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
];

/// What a proxy in between may have kept to itself, and what a statement may weigh.
const READ_BACK: &str = "\
SELECT CASE WHEN @@session.time_zone = '+00:00' \
AND @@session.sql_mode LIKE '%STRICT_ALL_TABLES%' \
AND @@session.character_set_client = 'utf8mb4' \
AND @@session.character_set_results = 'utf8mb4' THEN 'true' ELSE 'false' END, \
CAST(@@session.max_allowed_packet AS CHAR)";

/// A server without a binary log has nothing to sync there.
const PREFLIGHT: &[(&str, &str)] = &[
    ("server_version", "SELECT VERSION()"),
    (
        "innodb_flush_log_at_trx_commit",
        "SELECT CAST(@@global.innodb_flush_log_at_trx_commit AS CHAR)",
    ),
    (
        "sync_binlog",
        "SELECT CASE WHEN CAST(@@global.log_bin AS CHAR) IN ('0', 'OFF') THEN 'no binary log' \
         ELSE CAST(@@global.sync_binlog AS CHAR) END",
    ),
    (
        "innodb_doublewrite",
        "SELECT CASE WHEN CAST(@@global.innodb_doublewrite AS CHAR) \
         IN ('0', 'OFF', 'DETECT_ONLY') THEN 'off' ELSE 'on' END",
    ),
    ("max_allowed_packet", "SELECT CAST(@@session.max_allowed_packet AS CHAR)"),
    (
        "read_only",
        "SELECT CASE WHEN CAST(@@global.read_only AS CHAR) IN ('0', 'OFF') THEN 'off' \
         ELSE 'on' END",
    ),
];

/// Locks are of the whole server, and a name has at most 64 characters: it holds database and origin
/// as a digest.
macro_rules! lock_name {
    () => {
        "CONCAT('replicon ', \
         LEFT(SHA2(CONCAT(CONVERT(DATABASE() USING utf8mb4), ' ', ?), 256), 40))"
    };
}

const LOCK: &str =
    concat!("SELECT CASE GET_LOCK(", lock_name!(), ", 0) WHEN 1 THEN 'true' ELSE 'false' END");

const LOCK_HELD: &str = concat!(
    "SELECT CASE IS_USED_LOCK(",
    lock_name!(),
    ") WHEN CONNECTION_ID() THEN 'true' ELSE 'false' END"
);

/// The whole type (`varchar(191)`) with its character set where that is not ours: both are judged as
/// one, so there is no modifier.
const COLUMNS: &str = "\
SELECT CAST(COLUMN_NAME AS CHAR), \
CONCAT(lower(COLUMN_TYPE), CASE WHEN CHARACTER_SET_NAME IS NULL \
OR CHARACTER_SET_NAME = 'utf8mb4' THEN '' ELSE CONCAT(' ', CHARACTER_SET_NAME) END), \
CASE IS_NULLABLE WHEN 'YES' THEN 'true' ELSE 'false' END, \
CAST(NULL AS CHAR), \
CASE WHEN COLUMN_DEFAULT IS NOT NULL OR EXTRA LIKE '%auto_increment%' \
OR EXTRA LIKE '%GENERATED%' THEN 'true' ELSE 'false' END \
FROM information_schema.COLUMNS \
WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION";

const KEY: &str = "\
SELECT CAST(COLUMN_NAME AS CHAR) FROM information_schema.STATISTICS \
WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? AND INDEX_NAME = 'PRIMARY' \
ORDER BY SEQ_IN_INDEX";

/// An index's name is its table's own: one of a table that holds no events is somebody else's.
const INDEX: &str = "\
SELECT 'true' FROM information_schema.STATISTICS s \
WHERE s.TABLE_SCHEMA = DATABASE() AND s.INDEX_NAME = ? AND s.SEQ_IN_INDEX = 1 \
AND EXISTS (SELECT 1 FROM information_schema.COLUMNS c WHERE c.TABLE_SCHEMA = s.TABLE_SCHEMA \
AND c.TABLE_NAME = s.TABLE_NAME AND c.COLUMN_NAME = 'origin_seq')";

/// Every table is made so: the format is the one whose keys may have 3,072 bytes.
const TABLE_OPTIONS: &str =
    "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin ROW_FORMAT=DYNAMIC";

impl Mysql {
    /// Whether the session is as [`Dialect::session_setup`] asked (`true` or `false`), and the most
    /// bytes of a statement that it takes.
    #[must_use]
    pub fn read_back(self) -> &'static str {
        READ_BACK
    }

    /// Whether the session holds the lock of an origin: `true` or `false`. Parameters: origin.
    #[must_use]
    pub fn origin_lock_held(self) -> &'static str {
        LOCK_HELD
    }

    /// An error in words that hold no value of an event: the server's own only where they cannot,
    /// otherwise the names of the index, the constraint or the column in them.
    #[must_use]
    pub fn text_of(self, number: u16, message: &str) -> String {
        codes::text_of(number, message)
    }

    /// A column as it stands in DDL. MySQL can index no JSON column: an indexed one is a text, in
    /// MariaDB with the check that it makes of the type.
    fn define(self, table: &Table, column: &Column) -> String {
        let definition = definition(&self, column);
        let indexed = || table.indexes.iter().flat_map(|index| &index.columns);
        let json = types::is_json(column.ty);
        let is_text = || types::declared(column.ty) == types::TEXT;
        if json && (is_text() || indexed().any(|(name, _)| *name == column.name)) {
            let name = self.quote(&column.name);
            let text = definition.replacen(" JSON", &format!(" {}", types::TEXT), 1);
            return format!("{text} /*M! CHECK (json_valid({name})) */");
        }
        definition
    }

    /// The parts of a key, those without a bound of their own with as long a prefix as fits.
    fn key_parts(self, table: &Table, index: &Index) -> String {
        let part = |name: &str| table.columns.iter().find(|column| column.name == name);
        let parts: Vec<Option<ColumnType>> =
            index.columns.iter().map(|(name, _)| part(name).map(|column| column.ty)).collect();
        let prefix = types::prefix(parts.iter().flatten().copied());
        let shown = index.columns.iter().zip(parts).map(|((name, desc), ty)| {
            let length = ty.and_then(|ty| prefix.of(ty));
            let length = length.map(|length| format!("({length})")).unwrap_or_default();
            format!("{}{length}{}", self.quote(name), if *desc { " DESC" } else { "" })
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    fn key(self, table: &Table, index: &Index) -> String {
        let unique = if index.unique { "UNIQUE " } else { "" };
        format!("{unique}INDEX {} ({})", self.quote(&index.name), self.key_parts(table, index))
    }
}

impl Dialect for Mysql {
    fn name(&self) -> &'static str {
        "mysql"
    }

    fn column_type(&self, ty: ColumnType) -> String {
        types::declared(ty).to_owned()
    }

    fn default_value(&self, default: DefaultValue) -> Option<&'static str> {
        match default {
            DefaultValue::NextSeq => None,
            DefaultValue::Now => Some("CURRENT_TIMESTAMP(6)"),
            DefaultValue::Zero => Some("0"),
        }
    }

    /// A moment comes with its offset, which is always UTC's, and is held without: MariaDB takes none.
    fn placeholder(&self, _place: usize, ty: ColumnType) -> String {
        if types::is_moment(ty) { "LEFT(?, 26)".to_owned() } else { "?".to_owned() }
    }

    fn greatest(&self, left: &str, right: &str) -> String {
        format!("greatest({left}, {right})")
    }

    /// The older form of `FOR SHARE`, which both servers read.
    fn lock_clause(&self, lock: RowLock) -> &'static str {
        match lock {
            RowLock::Share => " LOCK IN SHARE MODE",
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
        &[
            "SELECT CONCAT_WS(' ', @@hostname, @@port, @@server_id)",
            "SHOW GLOBAL STATUS LIKE 'Uptime'",
        ]
    }

    fn preflight(&self) -> &'static [(&'static str, &'static str)] {
        PREFLIGHT
    }

    fn origin_lock(&self) -> Option<&'static str> {
        Some(LOCK)
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

    fn same_type(&self, ty: ColumnType, name: &str) -> bool {
        types::same(ty, name)
    }

    fn classify(&self, code: &str) -> Class {
        code.parse().ok().and_then(codes::listed).unwrap_or(Class::Fatal)
    }

    fn quote(&self, name: &str) -> String {
        format!("`{}`", name.replace('`', "``"))
    }

    fn cast_text(&self, expression: &str) -> String {
        format!("CAST({expression} AS CHAR)")
    }

    /// Texts are texts. Floating and decimal numbers and bytes come as they are: the server's own way
    /// from a single to text keeps six digits, and digits of bytes would be cut at twice the size of
    /// a packet.
    fn as_text(&self, column: &Column) -> String {
        let name = self.quote(&column.name);
        match column.ty {
            ty if types::is_moment(ty) => format!("CONCAT({}, '+00:00')", self.cast_text(&name)),
            ColumnType::Seq | ColumnType::BigInt => self.cast_text(&name),
            ColumnType::Field(FieldType { base: Base::Boolean, array: false }) => format!(
                "CASE {name} WHEN 0 THEN 'false' WHEN 1 THEN 'true' ELSE {} END",
                self.cast_text(&name)
            ),
            ColumnType::Field(FieldType {
                base:
                    Base::Smallint
                    | Base::Integer
                    | Base::Bigint
                    | Base::Timestamp
                    | Base::Date
                    | Base::Time,
                array: false,
            }) => self.cast_text(&name),
            _ => name,
        }
    }

    fn create_table(&self, table: &Table) -> Vec<String> {
        let mut lines: Vec<String> =
            table.columns.iter().map(|column| self.define(table, column)).collect();
        lines.push(format!("PRIMARY KEY ({})", names(self, &table.primary_key)));
        lines.extend(table.indexes.iter().map(|index| self.key(table, index)));
        vec![format!(
            "CREATE TABLE IF NOT EXISTS {} (\n  {}\n) {TABLE_OPTIONS}",
            self.quote(&table.name),
            lines.join(",\n  ")
        )]
    }

    fn add_column(&self, table: &Table, column: &Column) -> String {
        format!("ALTER TABLE {} ADD COLUMN {}", self.quote(&table.name), self.define(table, column))
    }

    fn create_index(&self, table: &Table, index: &Index) -> String {
        format!("ALTER TABLE {} ADD {}", self.quote(&table.name), self.key(table, index))
    }

    fn create_index_online(&self, table: &Table, index: &Index) -> String {
        format!("{}, ALGORITHM=INPLACE, LOCK=NONE", self.create_index(table, index))
    }

    /// A build that was broken off leaves nothing, and what stands under this name was whole before.
    fn drop_index_online(&self, _table: &Table, _index: &Index) -> String {
        "DO 0".to_owned()
    }

    /// The one statement that may say so: the table is ours and has no key but its identity.
    fn released_upsert(&self, rows: usize) -> String {
        let released = replicon_released();
        let seq = self.quote("released_seq");
        format!(
            "{} ON DUPLICATE KEY UPDATE {seq} = {}",
            self.insert(&released, rows),
            self.greatest(&seq, &format!("VALUES({seq})"))
        )
    }
}
