//! SQL storage in process: the conformance suites on real databases, and what only tables can show.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replicon::channel::auth::KeyDigest;
use replicon::channel::schema::{Schema, SchemaSource};
use replicon::channel::{Channel, Mode, Registry};
use replicon::clock::Clock;
use replicon::event::{Event, Micros, ModeTag, Name, Seq};
use replicon::storage::event_store::{Applied, EventStore, Foreign, StoredRow, Wanted};
use replicon::storage::history::HistoryStore;
use replicon::storage::sql::postgres::{Address, Options as ServerOptions, Server};
use replicon::storage::sql::session::{Backend, Session as _};
use replicon::storage::sql::sqlite::Database;
use replicon::storage::sql::{Options, SqlStorage, mysql};
use replicon::storage::{Contact, Kind, Storage, conformance};

use crate::support::mysql::{Kind as MysqlKind, Mysql, PASSWORD, USER};
use crate::support::postgres::Postgres;
use crate::support::sqlite::sqlite;
use crate::support::wait_until;

fn raw(name: &str) -> Channel {
    Channel {
        name: Name::new(name).unwrap(),
        enabled: true,
        mode: Mode::Raw,
        store_raw: true,
        keys: Vec::<KeyDigest>::new(),
    }
}

fn structured(store_raw: bool) -> Channel {
    let source = SchemaSource {
        table: "reports".to_owned(),
        columns: ["at", "ip", "n", "tags"].map(str::to_owned).into(),
        required: vec!["ip".to_owned()],
        field_types: [("at", "timestamptz"), ("ip", "inet"), ("n", "numeric"), ("tags", "text[]")]
            .map(|(name, ty)| (name.to_owned(), ty.to_owned()))
            .into(),
        ..SchemaSource::default()
    };
    let schema = Schema::new(&source).unwrap();
    Channel { mode: Mode::Structured(Arc::new(schema)), store_raw, ..raw("reports") }
}

fn options(channels: Vec<Channel>) -> Options {
    Options {
        origin: Name::new("dc1").unwrap(),
        registry: Arc::new(Registry::new(channels).unwrap()),
        clock: Clock::system(),
    }
}

/// As [`options`], of raw events, with a clock that the test turns.
fn turned() -> (Options, Clock) {
    let clock = Clock::manual(Micros(1_790_000_000_000_000));
    (Options { clock: clock.clone(), ..options(vec![raw("events_raw")]) }, clock)
}

/// How a node in this process reaches a database of PostgreSQL.
pub fn server(postgres: &Postgres, database: &str) -> Server {
    Server::new(ServerOptions {
        address: Address {
            socket: Some(postgres.socket_dir().to_owned()),
            port: postgres.port(),
            user: "replicon".to_owned(),
            database: database.to_owned(),
            ssl_mode: "disable",
            ..Address::default()
        },
        connect_timeout: Duration::from_secs(10),
        max_open: 8,
        lifetime: None,
        origin_lock: true,
    })
}

/// How a node in this process reaches a database of MySQL or MariaDB.
pub fn mysql_server(mysql: &Mysql, database: &str) -> mysql::Server {
    mysql::Server::new(mysql::Options {
        address: mysql::Address {
            socket: Some(mysql.socket()),
            user: USER.to_owned(),
            password: Some(PASSWORD.to_owned()),
            database: database.to_owned(),
            ssl_mode: "preferred",
            ..mysql::Address::default()
        },
        connect_timeout: Duration::from_secs(10),
        max_open: 8,
        lifetime: None,
        origin_lock: true,
        largest_event: 1 << 20,
    })
}

/// The session that held the lock ends a moment after its storage.
fn wait_unlocked(postgres: &Postgres, database: &str) {
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    wait_until(Duration::from_secs(10), "no lock", || match postgres.psql(database, sql).trim() {
        "0" => Ok(()),
        other => Err(other.to_owned()),
    });
}

/// As [`wait_unlocked`], of a server of MySQL or MariaDB: until nobody is there any more.
fn wait_alone(mysql: &Mysql) {
    wait_until(Duration::from_secs(10), "no session", || match &mysql.sessions()[..] {
        [] => Ok(()),
        others => Err(format!("{others:?}")),
    });
}

fn pairs(text: &str) -> Vec<(u64, String)> {
    let pair = |line: &str| {
        let (seq, payload) = line.split_once('|').unwrap();
        (seq.parse().unwrap(), payload.replace(' ', ""))
    };
    text.lines().filter(|line| !line.is_empty()).map(pair).collect()
}

const ALL: &str = "SELECT origin_seq, json_data FROM events_raw ORDER BY origin_seq";

/// Of an answer of 64 rows of 1 MiB (`row` is the expression for one) no more is taken than was asked
/// for, and whatever was left of it is in nobody's way.
async fn large_rows_are_left<B: Backend>(backend: &B, row: &str) {
    let rows = |count: u64| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT {row} FROM n"
        )
    };
    let most = 3 << 20;
    // the rest is worth reading, or not; and one that has none
    for (count, taken, cut) in [(6, 4, true), (64, 4, true), (4, 4, false), (1, 1, false)] {
        let mut session = backend.begin().await.unwrap();
        let within = session.rows_within(&rows(count), &[], most).await.unwrap();
        assert_eq!((within.rows.len(), within.cut), (taken, cut), "of {count}");
        session.rollback().await;
        let mut session = backend.begin().await.unwrap();
        let one = session.rows("SELECT '1'", &[]).await.unwrap();
        assert_eq!(one, [[Some("1".to_owned())]]);
        session.rollback().await;
    }
}

/// A table that is broken stops those who read it, and no writer of another.
async fn a_broken_table_takes_no_contact<B: Backend>(
    backend: B,
    sql: impl Fn(&str) -> String,
    breaks: &str,
) {
    let storage = SqlStorage::new(backend, options(vec![raw("events_raw"), structured(false)]));
    let contact = Contact { first_unacked: Seq(1), node_id: "id".to_owned(), ..Contact::default() };
    storage.connect(&contact).await.unwrap();
    storage.append(&[report(1, r#"{"ip":"::1"}"#)]).await.unwrap();
    let (origin, channel) = (Name::new("dc1").unwrap(), Name::new("reports").unwrap());
    let wanted = Wanted { origin, channel, from: Seq(1), upto: Seq(9), rows: 10, bytes: 1 << 20 };
    assert_eq!(storage.read(&wanted).await.unwrap().rows.len(), 1);
    let epoch = || sql("SELECT epoch FROM replicon_node").trim().to_owned();
    let before = epoch();
    sql(breaks);
    for seq in 2..4 {
        let e = storage.read(&wanted).await.unwrap_err();
        assert_eq!((e.kind, e.channel.as_ref()), (Kind::Fatal, Some(&wanted.channel)), "{e}");
        assert!(e.text.starts_with("table reports: "), "{e}");
        storage.append(&[conformance::event(seq, "{}")]).await.unwrap();
    }
    assert_eq!(epoch(), before, "the origin was not taken again");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    let postgres = Postgres::start();
    postgres.database("conforms");
    let open = || {
        wait_unlocked(&postgres, "conforms");
        let storage =
            SqlStorage::new(server(&postgres, "conforms"), options(vec![raw("events_raw")]));
        async { storage }
    };
    conformance::all(open, || pairs(&postgres.psql("conforms", ALL))).await;
    postgres.database("events");
    wait_unlocked(&postgres, "conforms");
    let (options, clock) = turned();
    let storage = SqlStorage::new(server(&postgres, "events"), options);
    conformance::event_store(&storage, &clock).await;
    large_rows_are_left(&server(&postgres, "events"), "repeat('x', 1048576)").await;
    postgres.database("broken");
    let breaks = "ALTER TABLE reports DROP COLUMN n";
    let sql = |sql: &str| postgres.psql("broken", sql);
    a_broken_table_takes_no_contact(server(&postgres, "broken"), sql, breaks).await;
}

/// A server that is started anew may lack what it took last: it is told nothing before it was looked
/// at.
#[tokio::test]
async fn a_server_that_was_started_anew_is_told_nothing_before_it_is_met_again() {
    let mut postgres = Postgres::start();
    postgres.database("told");
    let channels = || options(vec![raw("events_raw")]);
    let storage = SqlStorage::new(server(&postgres, "told"), channels());
    let contact = Contact { first_unacked: Seq(1), node_id: "id".to_owned(), ..Contact::default() };
    storage.connect(&contact).await.unwrap();
    storage.found().await.unwrap().unwrap();
    let channel = Name::new("events_raw").unwrap();
    storage.release(&[(channel.clone(), Seq(5))], Seq(5)).await.unwrap();
    postgres.stop_orderly();
    postgres.restart();
    let told = |postgres: &Postgres| {
        let sql = "SELECT max(released_seq) FROM replicon_released WHERE channel = 'events_raw'";
        postgres.psql("told", sql).trim().to_owned()
    };
    // the first tries meet connections that ended
    for _ in 0..5 {
        storage.release(&[(channel.clone(), Seq(9))], Seq(9)).await.unwrap_err();
        assert_eq!(told(&postgres), "5");
    }
    storage.renew(&contact).await.unwrap();
    assert_eq!(storage.found().await.unwrap().unwrap().of("events_raw"), Seq(5));
    storage.release(&[(channel, Seq(9))], Seq(9)).await.unwrap();
    assert_eq!(told(&postgres), "9");
}

async fn conforms(kind: MysqlKind) {
    let mysql = Mysql::start(kind);
    mysql.database("conforms");
    let open = || {
        wait_alone(&mysql);
        let storage =
            SqlStorage::new(mysql_server(&mysql, "conforms"), options(vec![raw("events_raw")]));
        async { storage }
    };
    conformance::all(open, || pairs(&mysql.sql("conforms", ALL))).await;
    mysql.database("events");
    let (options, clock) = turned();
    let storage = SqlStorage::new(mysql_server(&mysql, "events"), options);
    conformance::event_store(&storage, &clock).await;
    large_rows_are_left(&mysql_server(&mysql, "events"), "repeat('x', 1048576)").await;
    mysql.database("broken");
    let breaks = "ALTER TABLE reports DROP COLUMN n";
    let sql = |sql: &str| mysql.sql("broken", sql);
    a_broken_table_takes_no_contact(mysql_server(&mysql, "broken"), sql, breaks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_conforms() {
    conforms(MysqlKind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_conforms() {
    conforms(MysqlKind::MySql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let open = || {
        let storage =
            SqlStorage::new(Database::new(path.clone()), options(vec![raw("events_raw")]));
        let lock = path.with_extension("db.lock");
        // the task that builds indexes may hold the storage a moment longer
        wait_until(Duration::from_secs(10), "no lock", || {
            replicon::fsx::DirLock::take(&lock).map(drop).map_err(|e| e.to_string())
        });
        async { storage }
    };
    conformance::all(open, || pairs(&sqlite(&path, ALL))).await;
    let (options, clock) = turned();
    let storage = SqlStorage::new(Database::new(dir.path().join("b.db")), options);
    conformance::event_store(&storage, &clock).await;
    let other = Database::new(dir.path().join("c.db"));
    large_rows_are_left(&other, "hex(zeroblob(524288))").await;
    let path = dir.path().join("d.db");
    let breaks = "ALTER TABLE reports DROP COLUMN n";
    let sql = |sql: &str| sqlite(&path, sql);
    a_broken_table_takes_no_contact(Database::new(path.clone()), sql, breaks).await;
}

fn report(seq: u64, payload: &str) -> Event {
    Event {
        seq: Seq(seq),
        channel: Name::new("reports").unwrap(),
        mode: ModeTag::Structured,
        received_at: Micros(1_790_000_000_000_000),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

const FULL: &str =
    r#"{"at":"2026-02-19T14:00:00.5+02:00","ip":"10.0.0.1","n":1.10,"tags":["a","b \"c\"",null]}"#;

/// A structured channel: each identity once from wherever it stands, a replay compares as the backend
/// holds it, and what no row can be made of is refused or kept.
async fn structured_rows<B: Backend>(storage: &SqlStorage<B>, store_raw: bool) {
    let contact = Contact { first_unacked: Seq(1), node_id: "id".to_owned(), ..Contact::default() };
    storage.connect(&contact).await.unwrap();
    let events = [report(1, FULL), report(2, r#"{"ip":"::1"}"#)];
    storage.append(&events).await.unwrap();
    // an answer was lost: the same again, and one more
    // a raw copy is compared as a tree, a row by what its columns hold
    let same = if store_raw { r#"{ "ip" : "::1" }"# } else { r#"{"ip":"0:0::1","n":null}"# };
    let again = [report(2, same), report(3, r#"{"ip":"::2"}"#)];
    storage.append(&again).await.unwrap();
    assert_eq!(storage.stands(&events).await.unwrap().len(), 2);
    let other = storage.append(&[report(2, r#"{"ip":"::9"}"#)]).await.unwrap_err();
    assert_eq!((other.kind, other.code.as_str()), (Kind::Reject, "identity conflict"));
    assert!(storage.stands(&[report(2, r#"{"ip":"::9"}"#)]).await.unwrap().is_empty());
    let gone = storage.append(&[report(7, r#"{"ip":"::1","old":1}"#)]).await.unwrap_err();
    assert_eq!((gone.kind, gone.code.as_str()), (Kind::Reject, "column gone"));

    let (origin, channel) = (Name::new("dc1").unwrap(), Name::new("reports").unwrap());
    let wanted = Wanted { origin, channel, from: Seq(1), upto: Seq(9), rows: 10, bytes: 1 << 20 };
    let page = storage.read(&wanted).await.unwrap();
    assert_eq!(page.rows.iter().map(|r| r.seq.0).collect::<Vec<_>>(), [1, 2, 3]);
    let first: serde_json::Value = serde_json::from_slice(&page.rows[0].payload).unwrap();
    assert_eq!((&first["ip"], &first["tags"][1]), (&"10.0.0.1".into(), &"b \"c\"".into()));

    let row = |seq, payload: &'static str| StoredRow {
        seq: Seq(seq),
        node_name: "dc2".to_owned(),
        received_at: Micros(1_790_000_000_000_000),
        payload: Bytes::from_static(payload.as_bytes()),
    };
    let rows = vec![
        StoredRow { payload: page.rows[0].payload.clone(), ..row(5, "") },
        row(6, r#"{"ip":"not an address"}"#),
    ];
    let origin = Name::new("dc2").unwrap();
    let foreign = Foreign {
        origin: origin.clone(),
        channel: wanted.channel.clone(),
        rows,
        expect: None,
        to: Seq(6),
        again: None,
        unfit: std::collections::BTreeMap::new(),
        streak: 0,
    };
    let applied = storage.apply(&foreign).await.unwrap();
    let due = Applied { stored: 1, quarantined: 1, streak: 1, ..Applied::default() };
    assert_eq!(applied, due);
    // whoever relays gives what is in quarantine, too
    let relayed = storage.read(&Wanted { origin, ..wanted }).await.unwrap();
    assert_eq!(relayed.rows.iter().map(|r| r.seq.0).collect::<Vec<_>>(), [5, 6]);
    assert_eq!(&relayed.rows[1].payload[..], br#"{"ip":"not an address"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_rows_stand_once_wherever_they_stand_on_postgres() {
    let postgres = Postgres::start();
    for (store_raw, name) in [(false, "structured"), (true, "copies")] {
        postgres.database(name);
        let channels = vec![raw("events_raw"), structured(store_raw)];
        let storage = SqlStorage::new(server(&postgres, name), options(channels));
        structured_rows(&storage, store_raw).await;
        let shown = postgres.psql(name, "SET timezone = 'UTC'; SET datestyle = 'ISO'; SELECT at, ip, n, tags FROM reports WHERE origin_seq = 1 AND origin_dc = 'dc1'");
        assert_eq!(shown.trim(), r#"2026-02-19 12:00:00.5+00|10.0.0.1|1.10|{a,"b \"c\"",NULL}"#);
    }
}

async fn structured_rows_of(kind: MysqlKind) {
    let mysql = Mysql::start(kind);
    for (store_raw, name) in [(false, "structured"), (true, "copies")] {
        mysql.database(name);
        let channels = vec![raw("events_raw"), structured(store_raw)];
        let storage = SqlStorage::new(mysql_server(&mysql, name), options(channels));
        structured_rows(&storage, store_raw).await;
        let sql = "SELECT at, ip, n, tags FROM reports WHERE origin_seq = 1 AND origin_dc = 'dc1'";
        let shown = mysql.sql(name, sql);
        let tags = match kind {
            MysqlKind::MariaDb => r#"["a","b \"c\"",null]"#,
            // which writes it anew
            MysqlKind::MySql => r#"["a", "b \"c\"", null]"#,
        };
        let n = "1.100000000000000000000000000000";
        assert_eq!(shown, format!("2026-02-19 12:00:00.500000|10.0.0.1|{n}|{tags}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_rows_stand_once_wherever_they_stand_on_mariadb() {
    structured_rows_of(MysqlKind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_rows_stand_once_wherever_they_stand_on_mysql() {
    structured_rows_of(MysqlKind::MySql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_rows_stand_once_wherever_they_stand_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    for (store_raw, name) in [(false, "structured.db"), (true, "both.db")] {
        let path = dir.path().join(name);
        let channels = vec![raw("events_raw"), structured(store_raw)];
        let storage = SqlStorage::new(Database::new(path.clone()), options(channels));
        structured_rows(&storage, store_raw).await;
        let shown = sqlite(
            &path,
            "SELECT at, ip, n, tags FROM reports WHERE origin_seq = 1 AND origin_dc = 'dc1'",
        );
        assert_eq!(
            shown.trim(),
            r#"2026-02-19 12:00:00.500000+00:00|10.0.0.1|1.10|["a","b \"c\"",null]"#
        );
    }
}
