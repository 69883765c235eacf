//! Every statement of every dialect as a golden file: what changes there changes what runs on a
//! database that holds somebody's events. No database is asked.

use std::collections::BTreeMap;
use std::fmt::Write;

use replicon::channel::schema::{IndexSource, Schema, SchemaSource};
use replicon::storage::sql::dialect::Dialect;
use replicon::storage::sql::dialect::mysql::Mysql;
use replicon::storage::sql::dialect::postgres::Postgres;
use replicon::storage::sql::dialect::sqlite::Sqlite;
use replicon::storage::sql::table::{self, Table};

use crate::support::golden;

const TYPES: [&str; 20] = [
    "text",
    "timestamptz",
    "timestamp",
    "date",
    "time",
    "timetz",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "smallint",
    "integer",
    "bigint",
    "boolean",
    "real",
    "double precision",
    "numeric",
    "uuid",
    "bytea",
    "jsonb",
];

/// A table with a column of every type and of every array, and two indexes.
fn reports() -> Table {
    let mut columns = Vec::new();
    let mut field_types = BTreeMap::new();
    for (prefix, suffix) in [("a", ""), ("many", "[]")] {
        for ty in TYPES {
            let column = format!("{prefix}_{}", ty.replace(' ', "_"));
            field_types.insert(column.clone(), format!("{ty}{suffix}"));
            columns.push(column);
        }
    }
    let index = |name: Option<&str>, unique, columns: &[&str]| IndexSource {
        name: name.map(str::to_owned),
        unique,
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
    };
    let schema = Schema::new(&SchemaSource {
        table: "reports".to_owned(),
        required: vec!["a_text".to_owned()],
        indexes: vec![
            index(Some("reports_by_address"), false, &["a_inet", "received_at DESC"]),
            index(None, true, &["a_uuid", "origin_dc", "origin_seq"]),
        ],
        columns,
        field_types,
        ..SchemaSource::default()
    });
    table::structured(&schema.unwrap())
}

/// The statements of a dialect, each below its title.
struct Listing<'a> {
    dialect: &'a dyn Dialect,
    text: String,
}

impl Listing<'_> {
    fn add(&mut self, title: &str, statement: &str) {
        writeln!(self.text, "-- {title}\n{statement};\n").unwrap();
    }

    fn add_session(&mut self) {
        for statement in self.dialect.session_setup() {
            self.add("session setup", statement);
        }
        for (name, query) in self.dialect.preflight() {
            self.add(&format!("preflight: {name}"), query);
        }
        if let Some(lock) = self.dialect.origin_lock() {
            self.add("origin lock", lock);
        }
        self.add("introspect columns", self.dialect.introspect_columns());
        self.add("introspect key", self.dialect.introspect_key());
        self.add("introspect index", self.dialect.introspect_index());
    }

    fn add_definition(&mut self, table: &Table) {
        for statement in self.dialect.create_table(table) {
            self.add(&format!("{}: create", table.name), &statement);
        }
        if let Some(index) = table::reading_index(table) {
            let dialect = self.dialect;
            self.add("reading index", &dialect.create_index_online(table, &index));
            self.add("reading index: drop", &dialect.drop_index_online(table, &index));
        }
    }

    fn add_rows(&mut self, table: &Table) {
        let dialect = self.dialect;
        let statements = [
            ("insert 1", Some(dialect.insert(table, 1))),
            ("insert 2", Some(dialect.insert(table, 2))),
            ("copy in", dialect.copy_in(table)),
            ("existing 3", Some(dialect.existing(table, 3))),
            ("read page", Some(dialect.read_page(table))),
            ("last seq", Some(dialect.last_seq(table))),
            ("stands", Some(dialect.stands(table))),
        ];
        for (title, statement) in statements {
            if let Some(statement) = statement {
                self.add(&format!("{}: {title}", table.name), &statement);
            }
        }
    }

    fn add_own(&mut self) {
        let dialect = self.dialect;
        for (title, statement) in [
            ("node row share", dialect.node_row_share()),
            ("node row exclusive", dialect.node_row_exclusive()),
            ("node insert", dialect.insert(&table::replicon_node(), 1)),
            ("node update", dialect.node_update()),
            ("released upsert 2", dialect.released_upsert(2)),
            ("released read", dialect.released_read()),
            ("progress read", dialect.progress_read()),
            ("progress all", dialect.progress_all()),
            ("progress first", dialect.insert(&table::replication_progress(), 1)),
            ("progress advance", dialect.progress_advance()),
            ("progress delete", dialect.progress_delete()),
            ("origin read", dialect.origin_read()),
            ("origin insert", dialect.insert(&table::replicon_origin(), 1)),
            ("count page", dialect.count_page(&table::events_raw())),
            ("conflict insert", dialect.insert(&table::replicon_conflicts(), 1)),
            ("conflict count", dialect.conflict_count()),
            ("quarantine insert", dialect.insert(&table::replicon_quarantine(), 1)),
            ("quarantine count", dialect.quarantine_count()),
            ("quarantine page", dialect.read_page(&table::replicon_quarantine())),
            ("quarantine groups", dialect.quarantine_groups()),
            ("quarantine reason", dialect.quarantine_reason()),
            ("quarantine count page", dialect.count_page(&table::replicon_quarantine())),
            ("quarantine delete", dialect.quarantine_delete()),
        ] {
            self.add(title, &statement);
        }
    }
}

fn listing(dialect: &dyn Dialect) -> String {
    let mut listing = Listing { dialect, text: String::new() };
    let reports = reports();
    listing.add_session();
    for table in [
        table::events_raw(),
        reports.clone(),
        table::replication_progress(),
        table::replicon_node(),
        table::replicon_released(),
        table::replicon_origin(),
        table::replicon_conflicts(),
        table::replicon_quarantine(),
    ] {
        listing.add_definition(&table);
    }
    if let Some(column) = reports.columns.last() {
        listing.add("reports: add column", &dialect.add_column(&reports, column));
    }
    listing.add_rows(&table::events_raw());
    listing.add_rows(&reports);
    listing.add_own();
    listing.text
}

#[test]
fn the_statements_of_postgres_are_the_golden_ones() {
    golden("sql_postgres.txt", &listing(&Postgres));
}

#[test]
fn the_statements_of_mysql_are_the_golden_ones() {
    golden("sql_mysql.txt", &listing(&Mysql));
}

#[test]
fn the_statements_of_sqlite_are_the_golden_ones() {
    golden("sql_sqlite.txt", &listing(&Sqlite));
}
