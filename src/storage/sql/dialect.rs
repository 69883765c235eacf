//! SQL as data: a dialect gives whole statements, and says what an error's code asks for.
//!
//! Pure text: must not know a connection, a driver or a value. The statements are put together here
//! from the few pieces in which dialects differ; one that needs another form overrides it. What holds
//! for all of them:
//!
//! 1. Every name is quoted.
//! 2. Parameters stand in the order in which the documentation names them, each once.
//! 3. What comes back is text or null, whatever the column, unless [`Dialect::as_text`] says otherwise.

pub mod mysql;
pub mod postgres;
pub mod sqlite;

#[cfg(test)]
mod tests;

use super::table::{self, Column, ColumnType, DefaultValue, Index, Table};

/// What an error's code asks for, where a statement carried events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// An outage: the same again, for ever, with backoff.
    Retry,
    /// As [`Class::Retry`], of one table alone: somebody holds it.
    Locked,
    /// Two transactions met: the same again, at once.
    RetryAtOnce,
    /// The data.
    Reject,
    /// The table, the rights, or what nobody thought of: that channel waits.
    Fatal,
    /// A unique index holds such a row. On the fast road that asks for the idempotent one; met there
    /// again it is another index than the identity's, and the data is at fault.
    AlreadyThere,
}

/// How a row of `replicon_node` is held to the end of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowLock {
    /// By every transaction that writes.
    Share,
    /// Alone, when all that hold it for share are over.
    Exclusive,
}

/// A dialect: first the pieces in which it differs, then the statements.
pub trait Dialect: Send + Sync {
    /// Its name in golden files and messages.
    fn name(&self) -> &'static str;

    /// The type of a column, as DDL.
    fn column_type(&self, ty: ColumnType) -> String;

    /// What stands behind `DEFAULT`; nothing where the dialect has no such default.
    fn default_value(&self, default: DefaultValue) -> Option<&'static str>;

    /// The parameter at `place`, counted from 1, of a column's type.
    fn placeholder(&self, place: usize, ty: ColumnType) -> String;

    /// The larger one of two expressions.
    fn greatest(&self, left: &str, right: &str) -> String;

    /// What stands behind a SELECT to hold its rows.
    fn lock_clause(&self, lock: RowLock) -> &'static str;

    /// The most parameters that a statement may have.
    fn max_binds(&self) -> usize;

    /// What a new session runs, one after another, before anything else.
    fn session_setup(&self) -> &'static [&'static str];

    /// What is said about the server in the health answer: a name, and the query that gives one text.
    fn preflight(&self) -> &'static [(&'static str, &'static str)];

    /// Takes the lock of an origin for its session: `true` or `false`. Nothing where the lock is a
    /// file. Parameters: origin.
    fn origin_lock(&self) -> Option<&'static str>;

    /// The columns of a table, in order: name, type without its modifier, whether it may be null, the
    /// modifier (`191`, `12,2`) or null, whether it has a default. No row where there is no such
    /// table. Parameters: table.
    fn introspect_columns(&self) -> &'static str;

    /// The columns of a table's primary key, in order. Parameters: table.
    fn introspect_key(&self) -> &'static str;

    /// Whether an index is whole: `true` or `false`, which is what a build that was broken off leaves
    /// behind. No row where there is none. Parameters: index.
    fn introspect_index(&self) -> &'static str;

    /// Whether the catalog means a column's type by this name.
    fn same_type(&self, ty: ColumnType, name: &str) -> bool;

    /// What the code of an error asks for; [`Class::Fatal`] for one that is not listed. At a login
    /// and in [`Dialect::session_setup`] there is no data to reject: everything but a retry is fatal
    /// there.
    fn classify(&self, code: &str) -> Class;

    /// A name as it stands in a statement.
    fn quote(&self, name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    /// An expression as text.
    fn cast_text(&self, expression: &str) -> String {
        format!("CAST({expression} AS text)")
    }

    /// A column as the text that its values are read from.
    fn as_text(&self, column: &Column) -> String {
        self.cast_text(&self.quote(&column.name))
    }

    /// What has to be there before a table.
    fn before_table(&self, _table: &Table) -> Vec<String> {
        Vec::new()
    }

    /// Makes a table with its indexes, where it is not there.
    fn create_table(&self, table: &Table) -> Vec<String> {
        let mut lines: Vec<String> =
            table.columns.iter().map(|column| definition(self, column)).collect();
        lines.push(format!("PRIMARY KEY ({})", names(self, &table.primary_key)));
        let mut statements = self.before_table(table);
        statements.push(format!(
            "CREATE TABLE IF NOT EXISTS {} (\n  {}\n)",
            self.quote(&table.name),
            lines.join(",\n  ")
        ));
        statements.extend(table.indexes.iter().map(|index| self.create_index(table, index)));
        statements
    }

    /// Adds a column that the table lacks.
    fn add_column(&self, table: &Table, column: &Column) -> String {
        format!("ALTER TABLE {} ADD COLUMN {}", self.quote(&table.name), definition(self, column))
    }

    /// Makes an index, where none of its name is there.
    fn create_index(&self, table: &Table, index: &Index) -> String {
        index_statement(self, table, index, "")
    }

    /// As [`Dialect::create_index`], while the table is written to; not inside a transaction.
    fn create_index_online(&self, table: &Table, index: &Index) -> String {
        self.create_index(table, index)
    }

    /// The length of a text. Parameters: the text.
    fn length_of(&self) -> String {
        let text = self.placeholder(1, ColumnType::Text);
        format!("SELECT {}", self.cast_text(&format!("length({text})")))
    }

    /// Removes an index whose building was broken off; not inside a transaction.
    fn drop_index_online(&self, _table: &Table, index: &Index) -> String {
        format!("DROP INDEX IF EXISTS {}", self.quote(&index.name))
    }

    /// Stores rows. Parameters: the columns of each row, in order.
    fn insert(&self, table: &Table, rows: usize) -> String {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let width = columns.len();
        let tuples: Vec<String> =
            (0..rows).map(|row| tuple(self, &table.columns, row * width + 1)).collect();
        format!(
            "INSERT INTO {} ({}) VALUES {}",
            self.quote(&table.name),
            names(self, &columns),
            tuples.join(", ")
        )
    }

    /// Stores rows from a stream, faster than any INSERT; nothing where the dialect has no such road.
    fn copy_in(&self, _table: &Table) -> Option<String> {
        None
    }

    /// The rows of an origin that have one of `count` seqs, every column, in order of their seqs.
    /// Parameters: origin, the seqs.
    fn existing(&self, table: &Table, count: usize) -> String {
        let seqs: Vec<String> =
            (2..count + 2).map(|place| self.placeholder(place, ColumnType::Seq)).collect();
        let seq = self.quote("origin_seq");
        format!(
            "{} WHERE {} AND {seq} IN ({}) ORDER BY {}",
            select(self, table),
            compare(self, "origin_dc", "=", 1, ColumnType::OriginDc),
            seqs.join(", "),
            by_seq(self, table)
        )
    }

    /// A page of one channel of an origin, every column, in order of the seqs. Parameters: origin,
    /// channel, first seq, last seq, the most rows.
    fn read_page(&self, table: &Table) -> String {
        format!(
            "{} WHERE {} AND {} AND {} AND {} ORDER BY {} LIMIT {}",
            select(self, table),
            compare(self, "origin_dc", "=", 1, ColumnType::OriginDc),
            compare(self, "channel", "=", 2, ColumnType::ChannelName),
            compare(self, "origin_seq", ">=", 3, ColumnType::Seq),
            compare(self, "origin_seq", "<=", 4, ColumnType::Seq),
            by_seq(self, table),
            self.placeholder(5, ColumnType::BigInt)
        )
    }

    /// The largest seq of an origin, or null. Parameters: origin.
    fn last_seq(&self, table: &Table) -> String {
        format!(
            "SELECT {} FROM {} WHERE {}",
            self.cast_text(&format!("max({})", self.quote("origin_seq"))),
            self.quote(&table.name),
            compare(self, "origin_dc", "=", 1, ColumnType::OriginDc)
        )
    }

    /// One row where an identity is there. Parameters: origin, seq.
    fn stands(&self, table: &Table) -> String {
        format!("SELECT '1' FROM {} WHERE {}", self.quote(&table.name), identity(self))
    }

    /// The row of an origin in `replicon_node`, held for share: every column. Parameters: origin.
    fn node_row_share(&self) -> String {
        node_row(self, RowLock::Share)
    }

    /// As [`Dialect::node_row_share`], held alone: no transaction that held it before is under way.
    fn node_row_exclusive(&self) -> String {
        node_row(self, RowLock::Exclusive)
    }

    /// Writes the row of an origin that is there. Parameters: node id, epoch, the present moment,
    /// host, since, origin.
    fn node_update(&self) -> String {
        let written = ["node_id", "epoch", "taken_at", "host", "since"];
        let node = table::replicon_node();
        let set: Vec<String> = written
            .iter()
            .zip(1..)
            .filter_map(|(name, place)| {
                let column = node.columns.iter().find(|column| column.name == *name)?;
                Some(compare(self, name, "=", place, column.ty))
            })
            .collect();
        format!(
            "UPDATE {} SET {} WHERE {}",
            self.quote(&node.name),
            set.join(", "),
            compare(self, "origin_dc", "=", written.len() + 1, ColumnType::OriginDc)
        )
    }

    /// Which server answers: a statement for its name and what else changes with a start, and one whose
    /// last column is the seconds that it has run, where the first does not show a start.
    fn incarnation(&self) -> &'static [&'static str];

    /// Raises the released seqs of `rows` different channels; none goes back. Parameters of each:
    /// origin, channel, seq.
    fn released_upsert(&self, rows: usize) -> String {
        let released = table::replicon_released();
        let seq = self.quote("released_seq");
        let raised = self
            .greatest(&format!("{}.{seq}", self.quote(&released.name)), &format!("excluded.{seq}"));
        format!(
            "{} ON CONFLICT ({}) DO UPDATE SET {seq} = {raised}",
            self.insert(&released, rows),
            names(self, &released.primary_key)
        )
    }

    /// Each channel of an origin with its released seq. Parameters: origin.
    fn released_read(&self) -> String {
        by_channel(self, "replicon_released", "released_seq", "origin_dc")
    }

    /// A stored cursor. Parameters: origin, channel.
    fn progress_read(&self) -> String {
        format!(
            "SELECT {} FROM {} WHERE {} AND {}",
            self.cast_text(&self.quote("last_origin_seq_received")),
            self.quote("replication_progress"),
            compare(self, "peer_dc", "=", 1, ColumnType::OriginDc),
            compare(self, "channel", "=", 2, ColumnType::ChannelName)
        )
    }

    /// The stored cursors of an origin, each with its channel. Parameters: origin.
    fn progress_all(&self) -> String {
        by_channel(self, "replication_progress", "last_origin_seq_received", "peer_dc")
    }

    /// Moves a cursor; no row is affected where it is not the expected one. Parameters: new seq, the
    /// present moment, origin, channel, expected seq.
    fn progress_advance(&self) -> String {
        format!(
            "UPDATE {} SET {}, {} WHERE {} AND {} AND {}",
            self.quote("replication_progress"),
            compare(self, "last_origin_seq_received", "=", 1, ColumnType::BigInt),
            compare(self, "updated_at", "=", 2, ColumnType::Timestamp),
            compare(self, "peer_dc", "=", 3, ColumnType::OriginDc),
            compare(self, "channel", "=", 4, ColumnType::ChannelName),
            compare(self, "last_origin_seq_received", "=", 5, ColumnType::BigInt)
        )
    }

    /// Drops a cursor. Parameters: origin, channel.
    fn progress_delete(&self) -> String {
        format!(
            "DELETE FROM {} WHERE {} AND {}",
            self.quote("replication_progress"),
            compare(self, "peer_dc", "=", 1, ColumnType::OriginDc),
            compare(self, "channel", "=", 2, ColumnType::ChannelName)
        )
    }

    /// The ids of an origin in the order in which they were accepted, every column. Parameters: origin.
    fn origin_read(&self) -> String {
        let origins = table::replicon_origin();
        format!(
            "{} WHERE {} ORDER BY {origin}.{}, {origin}.{}",
            select(self, &origins),
            compare(self, "origin_dc", "=", 1, ColumnType::OriginDc),
            self.quote("accepted_at"),
            self.quote("node_id"),
            // as in [`by_seq`]
            origin = self.quote(&origins.name)
        )
    }

    /// How many rows of one channel of an origin there are, up to a bound. Parameters: as
    /// [`Dialect::read_page`].
    fn count_page(&self, table: &Table) -> String {
        format!(
            "SELECT {} FROM (SELECT 1 AS one FROM {} WHERE {} AND {} AND {} AND {} LIMIT {}) AS counted",
            self.cast_text("count(*)"),
            self.quote(&table.name),
            compare(self, "origin_dc", "=", 1, ColumnType::OriginDc),
            compare(self, "channel", "=", 2, ColumnType::ChannelName),
            compare(self, "origin_seq", ">=", 3, ColumnType::Seq),
            compare(self, "origin_seq", "<=", 4, ColumnType::Seq),
            self.placeholder(5, ColumnType::BigInt)
        )
    }

    /// How many conflicts are recorded.
    fn conflict_count(&self) -> String {
        count(self, &table::replicon_conflicts())
    }

    /// How many rows are kept. Pages of them come from [`Dialect::read_page`].
    fn quarantine_count(&self) -> String {
        count(self, &table::replicon_quarantine())
    }

    /// Removes a row that was kept. Parameters: origin, seq.
    fn quarantine_delete(&self) -> String {
        let quarantine = table::replicon_quarantine();
        format!("DELETE FROM {} WHERE {}", self.quote(&quarantine.name), identity(self))
    }

    /// Whose rows of which channels are kept, and how many of each, in this order.
    fn quarantine_groups(&self) -> String {
        let table = self.quote(&table::replicon_quarantine().name);
        let (origin, channel) = (self.quote("origin_dc"), self.quote("channel"));
        // with the table's name, as in [`by_seq`]
        let grouped = format!("{table}.{origin}, {table}.{channel}");
        format!(
            "SELECT {}, {}, {} FROM {table} GROUP BY {grouped} ORDER BY {grouped}",
            self.cast_text(&format!("{table}.{origin}")),
            self.cast_text(&format!("{table}.{channel}")),
            self.cast_text("count(*)")
        )
    }

    /// Writes why a row is still kept. Parameters: reason, origin, seq.
    fn quarantine_reason(&self) -> String {
        format!(
            "UPDATE {} SET {} WHERE {} AND {}",
            self.quote(&table::replicon_quarantine().name),
            compare(self, "reason", "=", 1, ColumnType::Text),
            compare(self, "origin_dc", "=", 2, ColumnType::OriginDc),
            compare(self, "origin_seq", "=", 3, ColumnType::Seq)
        )
    }
}

fn names<D: Dialect + ?Sized>(dialect: &D, names: &[&str]) -> String {
    names.iter().map(|name| dialect.quote(name)).collect::<Vec<_>>().join(", ")
}

/// A column as it stands in DDL.
fn definition<D: Dialect + ?Sized>(dialect: &D, column: &Column) -> String {
    let null = if column.nullable { "" } else { " NOT NULL" };
    let default = column.default.and_then(|default| dialect.default_value(default));
    let default = default.map(|value| format!(" DEFAULT {value}")).unwrap_or_default();
    let (name, ty) = (dialect.quote(&column.name), dialect.column_type(column.ty));
    format!("{name} {ty}{null}{default}")
}

fn index_statement<D: Dialect + ?Sized>(
    dialect: &D,
    table: &Table,
    index: &Index,
    how: &str,
) -> String {
    let columns: Vec<String> = index
        .columns
        .iter()
        .map(|(name, desc)| format!("{}{}", dialect.quote(name), if *desc { " DESC" } else { "" }))
        .collect();
    format!(
        "CREATE {}INDEX {how}IF NOT EXISTS {} ON {} ({})",
        if index.unique { "UNIQUE " } else { "" },
        dialect.quote(&index.name),
        dialect.quote(&table.name),
        columns.join(", ")
    )
}

/// A row of parameters.
fn tuple<D: Dialect + ?Sized>(dialect: &D, columns: &[Column], first: usize) -> String {
    let places = columns.iter().zip(first..);
    let places: Vec<String> =
        places.map(|(column, place)| dialect.placeholder(place, column.ty)).collect();
    format!("({})", places.join(", "))
}

fn texts<D: Dialect + ?Sized>(dialect: &D, columns: &[Column]) -> String {
    columns.iter().map(|column| dialect.as_text(column)).collect::<Vec<_>>().join(", ")
}

fn select<D: Dialect + ?Sized>(dialect: &D, table: &Table) -> String {
    format!("SELECT {} FROM {}", texts(dialect, &table.columns), dialect.quote(&table.name))
}

/// The order of the seqs. With the table's name: a bare one could mean the text that is selected, and
/// "10" stands before "9".
fn by_seq<D: Dialect + ?Sized>(dialect: &D, table: &Table) -> String {
    format!("{}.{}", dialect.quote(&table.name), dialect.quote("origin_seq"))
}

/// Each channel of an origin with a seq of it. Parameters: origin.
fn by_channel<D: Dialect + ?Sized>(dialect: &D, table: &str, seq: &str, origin: &str) -> String {
    format!(
        "SELECT {}, {} FROM {} WHERE {}",
        dialect.cast_text(&dialect.quote("channel")),
        dialect.cast_text(&dialect.quote(seq)),
        dialect.quote(table),
        compare(dialect, origin, "=", 1, ColumnType::OriginDc)
    )
}

/// A column beside a parameter: a condition, or an assignment.
fn compare<D: Dialect + ?Sized>(
    dialect: &D,
    column: &str,
    operator: &str,
    place: usize,
    ty: ColumnType,
) -> String {
    format!("{} {operator} {}", dialect.quote(column), dialect.placeholder(place, ty))
}

fn identity<D: Dialect + ?Sized>(dialect: &D) -> String {
    format!(
        "{} AND {}",
        compare(dialect, "origin_dc", "=", 1, ColumnType::OriginDc),
        compare(dialect, "origin_seq", "=", 2, ColumnType::Seq)
    )
}

fn node_row<D: Dialect + ?Sized>(dialect: &D, lock: RowLock) -> String {
    format!(
        "{} WHERE {}{}",
        select(dialect, &table::replicon_node()),
        compare(dialect, "origin_dc", "=", 1, ColumnType::OriginDc),
        dialect.lock_clause(lock)
    )
}

fn count<D: Dialect + ?Sized>(dialect: &D, table: &Table) -> String {
    format!("SELECT {} FROM {}", dialect.cast_text("count(*)"), dialect.quote(&table.name))
}
