//! The operator's side: `replicon peers`, `replicon peers retry` and `replicon recover` against running
//! nodes, and what they rest on in each of the databases.
//!
//! Attacks I11 to I13, H71, H72 and H78. Restores stand in `restore`.

use std::sync::Arc;

use bytes::Bytes;
use replicon::channel::schema::{Schema, SchemaSource};
use replicon::channel::{Channel, Mode, Registry};
use replicon::clock::Clock;
use replicon::event::{Event, Micros, ModeTag, Name, Seq};
use replicon::storage::event_store::{EventStore, Foreign, StoredRow};
use replicon::storage::mend::{Kept, Mend, PutBack, Retried, Retry, Returned};
use replicon::storage::sql::session::Backend;
use replicon::storage::sql::sqlite::Database;
use replicon::storage::sql::{Options, SqlStorage};
use replicon::storage::{Contact, Storage};
use serde_json::Value;

use super::{CHANNELS, Cluster, SOON, TABLES};
use crate::cli::{Ran, run};
use crate::sql::site::Site;
use crate::sql_store::{mysql_server, server};
use crate::support::mysql::{Kind as MysqlKind, Mysql};
use crate::support::postgres::Postgres;
use crate::support::proxy::Link;
use crate::support::sqlite::sqlite;
use crate::support::wait_until;

/// Runs a command beside a node of a cluster, with the node's settings.
fn asked(cluster: &Cluster, at: usize, args: &[&str]) -> Ran {
    let settings = cluster.settings(at);
    let all: Vec<&str> = args.iter().copied().chain(settings.iter().map(String::as_str)).collect();
    run(cluster.members[at].site.path(), &all)
}

fn two() -> Cluster {
    Cluster::start(vec![Site::sqlite(), Site::sqlite()])
}

#[test]
fn peers_are_shown_a_line_for_each_channel() {
    let mut cluster = two();
    cluster.post_everywhere(5);
    cluster.settled(10);
    let lines = wait_until(SOON, "channels that are current", || {
        let ran = asked(&cluster, 0, &["peers"]);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let lines: Vec<Vec<String>> = ran
            .out
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        let current = |channel: &&str| {
            lines.iter().any(|line| {
                line[..2] == ["dc2", "connected"] && line[3..6] == [*channel, "dc2", "current"]
            })
        };
        if TABLES.iter().all(current) { Ok(lines) } else { Err(ran.out) }
    });
    let titles = ["PEER", "STATE", "NODE-ID", "CHANNEL", "ORIGIN", "STANDS", "CURSOR"];
    assert_eq!(lines[0][..7], titles);
    assert_eq!(lines.len(), 1 + TABLES.len(), "{lines:?}");
    for line in &lines[1..] {
        assert_eq!(line[7..9], ["0", "0.0"], "no lag: {line:?}");
    }
    let ran = asked(&cluster, 0, &["peers", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let peers: Vec<Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((peers.len(), &peers[0]["peer"]), (1, &"dc2".into()));
    assert_eq!(peers[0]["channels"].as_array().unwrap().len(), TABLES.len());
    assert_eq!(peers[0]["channels"][0]["state"], "current");
}

#[test]
fn who_cannot_be_asked_says_what_to_do() {
    let site = Site::sqlite();
    site.channels(CHANNELS);
    let commands: [&[&str]; 3] = [&["peers"], &["peers", "retry"], &["recover", "--from", "dc2"]];
    for args in commands {
        let ran = run(site.path(), args);
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("no node runs here") && ran.err.contains("replicon.sock"));
    }
    assert!(!site.path().join("data").exists(), "nothing was made for an answer");
    let _node = site.serving(&[]);
    for args in commands {
        let ran = run(site.path(), args);
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("replication_enabled = true"), "{args:?}: {}", ran.err);
    }
}

#[test]
fn a_peer_that_is_none_or_out_of_reach_is_named() {
    let cluster = two();
    let ran = asked(&cluster, 0, &["recover", "--from", "dc9"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("dc9 is no peer") && ran.err.contains("names dc2"), "{}", ran.err);
    cluster.between(0, 1, Link::Cut);
    let Ran { code, err, .. } = settled_recover(&cluster);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("peer dc2: ") && err.contains("nothing was put back"), "{err}");
}

/// `recover` at dc1, as soon as that knows which seqs it gives out.
fn settled_recover(cluster: &Cluster) -> Ran {
    wait_until(SOON, "a node that is settled", || {
        let ran = asked(cluster, 0, &["recover", "--from", "dc2"]);
        if ran.err.contains("not settled yet") { Err(ran.err) } else { Ok(ran) }
    })
}

/// Makes the database of a node refuse rows of `reports` from a number on.
const REFUSES: &str = "CREATE TRIGGER refuses BEFORE INSERT ON reports WHEN NEW.n >= 50000 \
     BEGIN SELECT RAISE(ABORT, 'refused'); END";

fn reports(numbers: std::ops::Range<i64>) -> Vec<String> {
    numbers.map(|n| format!("{{\"n\":{n},\"place\":\"secret-place\"}}")).collect()
}

#[test]
fn rows_that_fit_again_leave_the_quarantine_and_a_stopped_channel_goes_on() {
    let mut cluster = two();
    cluster.post_everywhere(5);
    cluster.settled(10);
    cluster.members[1].site.sql(REFUSES);
    cluster.post_items(0, "reports", &reports(50_000..50_003));
    wait_until(SOON, "rows in quarantine", || match cluster.count(1, "replicon_quarantine") {
        3 => Ok(()),
        other => Err(format!("{other} rows")),
    });
    let ran = asked(&cluster, 1, &["peers", "retry", "--channel", "reports"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let line = "reports of dc1: 0 rows moved, 3 stay, the first because: a trigger refuses it";
    assert!(ran.out.contains(line), "{}", ran.out);
    assert!(ran.err.contains("still in quarantine: 3 rows"), "{}", ran.err);
    let said = format!("{}{}{}", ran.out, ran.err, cluster.node(1).log());
    assert!(!said.contains("secret-place"), "no payload is told");
    assert_eq!(cluster.count(1, "replicon_quarantine"), 3);

    // a hundred in a row are no accident
    cluster.post_items(0, "reports", &reports(50_003..50_153));
    let reason = cluster.stands(1, "dc1", "reports", "stopped");
    assert!(reason.contains("replicon peers retry"), "{reason}");
    cluster.members[1].site.sql("DROP TRIGGER refuses");
    let others = asked(&cluster, 1, &["peers", "retry", "--origin", "dc9"]);
    assert!(others.out.contains("no rows of origin dc9 are in quarantine"), "{}", others.out);
    let ran = asked(&cluster, 1, &["peers", "retry"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("moved to their tables: "), "{}", ran.out);
    cluster.whole();
    cluster.nothing_aside();
}

#[test]
fn rows_that_come_back_leave_what_stands_and_keep_what_no_table_takes() {
    let mut cluster = two();
    cluster.post_items(0, "reports", &reports(50_000..50_001));
    cluster.post_everywhere(10);
    cluster.whole();
    // what was accepted before a start is what it may take
    cluster.stop(0);
    cluster.begin(0);
    let before = cluster.node(0).health()["node_id"].clone();
    let ran = settled_recover(&cluster);
    assert!(ran.out.contains("nothing is missing here"), "{}{}", ran.out, ran.err);
    assert_eq!(cluster.node(0).health()["node_id"], before, "nobody has to read anything again");
    let site = &cluster.members[0].site;
    site.sql("DELETE FROM events_raw WHERE origin_dc = 'dc1' AND channel = 'events_raw'");
    site.sql("DELETE FROM reports WHERE origin_dc = 'dc1'");
    let first = "(SELECT min(origin_seq) FROM kept WHERE origin_dc = 'dc1')";
    let of_dc1 = format!("origin_dc = 'dc1' AND origin_seq = {first}");
    site.sql(&format!("UPDATE kept SET place = 'by hand' WHERE {of_dc1}"));
    site.sql(REFUSES);
    let ran = settled_recover(&cluster);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    for line in [
        "events_raw: 10 rows looked at, 10 put back",
        "reports: 11 rows looked at, 10 put back, 1 row taken by no table (kept in replicon_quarantine), the first because: a trigger refuses it",
        "kept: 10 rows looked at, 0 put back, 1 row with other content here",
    ] {
        assert!(ran.out.contains(line), "{line}\n{}", ran.out);
    }
    let own = "replicon_quarantine WHERE origin_dc = 'dc1'";
    assert_eq!((cluster.count(0, own), cluster.count(0, "replicon_conflicts")), (1, 1));
    assert_eq!(cluster.count(0, "kept WHERE place = 'by hand'"), 1, "it is left as it is");
    assert_ne!(cluster.node(0).health()["node_id"], before);

    cluster.members[0].site.sql("DROP TRIGGER refuses");
    let ran = asked(&cluster, 0, &["peers", "retry", "--origin", "dc1"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert_eq!(cluster.count(0, own), 0);
    cluster.equal_in(&["events_raw", "reports"], SOON);
    assert_eq!(cluster.count(0, "reports"), 21);
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A raw channel, and a structured one that keeps raw copies or does not.
fn options(store_raw: bool) -> Options {
    let raw = Channel {
        name: name("events_raw"),
        enabled: true,
        mode: Mode::Raw,
        store_raw: true,
        keys: Vec::new(),
    };
    let source = SchemaSource {
        table: "reports".to_owned(),
        columns: ["n", "place"].map(str::to_owned).into(),
        required: vec!["n".to_owned()],
        field_types: [("n".to_owned(), "bigint".to_owned())].into(),
        ..SchemaSource::default()
    };
    let mode = Mode::Structured(Arc::new(Schema::new(&source).unwrap()));
    let reports = Channel { name: name("reports"), mode, store_raw, ..raw.clone() };
    Options {
        origin: name("dc1"),
        registry: Arc::new(Registry::new(vec![raw, reports]).unwrap()),
        clock: Clock::system(),
    }
}

fn event(seq: u64, mode: ModeTag, payload: &str) -> Event {
    Event {
        seq: Seq(seq),
        channel: name("reports"),
        mode,
        received_at: Micros(1_790_000_000_000_000),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

fn rows(all: &[(u64, &str)]) -> Vec<StoredRow> {
    let row = |(seq, payload): &(u64, &str)| StoredRow {
        seq: Seq(*seq),
        node_name: "dc1".to_owned(),
        received_at: Micros(1_790_000_000_000_000),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    };
    all.iter().map(row).collect()
}

/// What became of rows that came back: stored, standing, in conflict, in quarantine.
async fn put_back<S: Mend>(storage: &S, all: &[(u64, &str)]) -> (u64, u64, u64, u64) {
    let returned = Returned {
        origin: name("dc1"),
        channel: name("reports"),
        rows: rows(all),
        unfit: std::collections::BTreeMap::new(),
        streak: 0,
        marked: Some(Seq(1)),
    };
    let PutBack { stored, standing, conflicts, quarantined, reason, .. } =
        storage.put_back(&returned).await.unwrap();
    assert_eq!(reason.is_some(), quarantined > 0, "{reason:?}");
    (stored, standing, conflicts, quarantined)
}

async fn retry<S: Mend>(storage: &S, origin: &str, from: u64, marked: Option<u64>) -> Retried {
    let page = Retry {
        origin: name(origin),
        channel: name("reports"),
        from: Seq(from),
        rows: 1,
        bytes: 1 << 20,
        marked: marked.map(Seq),
    };
    storage.retry_quarantined(&page).await.unwrap()
}

fn kept(all: &[(&str, u64)]) -> Vec<Kept> {
    let one = |(origin, rows): &(&str, u64)| Kept {
        origin: name(origin),
        channel: name("reports"),
        rows: *rows,
    };
    all.iter().map(one).collect()
}

/// Rows of `reports`, of events that no raw channel has ever held.
async fn mends<B: Backend>(storage: &SqlStorage<B>, store_raw: bool, sql: &dyn Fn(&str) -> String) {
    let contact = Contact { first_unacked: Seq(1), node_id: "id".to_owned(), ..Contact::default() };
    storage.connect(&contact).await.unwrap();
    // one of today, and one of the day when the channel was raw
    let standing = [
        event(1, ModeTag::Structured, r#"{"n":1,"place":null}"#),
        event(2, ModeTag::Raw, r#"{"n":2,"junk":true}"#),
    ];
    assert!(storage.append(&standing).await.unwrap().is_empty());
    // a peer without raw copies gives what the columns hold
    let back = [
        (1, r#"{"n":1}"#),
        (2, r#"{"junk":true,"n":2}"#),
        (3, r#"{"n":3,"place":"c"}"#),
        (4, r#"{"n":"secret"}"#),
    ];
    assert_eq!(put_back(storage, &back).await, (1, 2, 0, 1));
    assert_eq!(put_back(storage, &back).await, (0, 3, 0, 1), "once more");
    assert_eq!(sql("SELECT origin_seq FROM reports ORDER BY origin_seq"), "1\n3");
    let copies = if store_raw { "1\n2\n3" } else { "2" };
    assert_eq!(sql("SELECT origin_seq FROM events_raw ORDER BY origin_seq"), copies);
    assert_eq!(put_back(storage, &[(1, r#"{"n":9}"#), (2, r#"{"n":2}"#)]).await, (0, 1, 1, 0));
    assert_eq!(sql("SELECT origin_dc, origin_seq FROM replicon_conflicts"), "dc1|1");
    assert_eq!(sql("SELECT n FROM reports WHERE origin_seq = 1"), "1", "it is left as it is");
}

/// How a database is made to refuse negative numbers, and not to.
type Rule = [&'static str; 2];

const BY_CHECK: Rule = [
    "ALTER TABLE reports ADD CONSTRAINT positive CHECK (n >= 0)",
    "ALTER TABLE reports DROP CONSTRAINT positive",
];
const BY_TRIGGER: Rule = [
    "CREATE TRIGGER positive BEFORE INSERT ON reports WHEN NEW.n < 0 \
     BEGIN SELECT RAISE(ABORT, 'positive'); END",
    "DROP TRIGGER positive",
];

/// Goes on behind [`mends`]: rows that the table refuses, until it does not.
async fn retries<B: Backend>(storage: &SqlStorage<B>, rule: Rule, sql: &dyn Fn(&str) -> String) {
    let [forbid, allow] = rule;
    sql(forbid);
    assert_eq!(put_back(storage, &[(5, r#"{"n":-5}"#), (6, r#"{"n":6}"#)]).await, (1, 0, 0, 1));
    let foreign = Foreign {
        origin: name("dc2"),
        channel: name("reports"),
        rows: rows(&[(8, r#"{"n":-8}"#), (9, r#"{"n":9}"#)]),
        expect: None,
        to: Seq(9),
        again: None,
        unfit: std::collections::BTreeMap::new(),
        streak: 0,
    };
    let applied = storage.apply(&foreign).await.unwrap();
    assert_eq!((applied.stored, applied.quarantined), (1, 1));
    assert_eq!(storage.quarantined().await.unwrap(), kept(&[("dc1", 2), ("dc2", 1)]));
    let stays = retry(storage, "dc2", 0, None).await;
    assert_eq!((stays.moved, stays.stay, stays.reason.is_some()), (0, 1, true));
    sql(allow);
    // a page of one row after the other; the first of them fits no column
    let first = retry(storage, "dc1", 0, None).await;
    assert_eq!((first.moved, first.stay, first.next), (0, 1, Some(Seq(5))));
    let second = retry(storage, "dc1", 5, None).await;
    assert_eq!((second.unmarked, second.moved), (Some(Seq(5)), 0));
    assert_eq!(sql("SELECT count(*) FROM reports WHERE origin_seq = 5"), "0");
    let second = retry(storage, "dc1", 5, Some(5)).await;
    assert_eq!((second.unmarked, second.moved, second.next), (None, 1, Some(Seq(6))));
    assert_eq!(retry(storage, "dc1", 6, Some(5)).await, Retried::default());
    assert_eq!(retry(storage, "dc2", 0, None).await.moved, 1, "foreign rows need no mark");
    assert_eq!(storage.quarantined().await.unwrap(), kept(&[("dc1", 1)]));
    let stands =
        "SELECT origin_dc, origin_seq, n FROM reports WHERE origin_seq > 4 ORDER BY origin_seq";
    assert_eq!(sql(stands), "dc1|5|-5\ndc1|6|6\ndc2|8|-8\ndc2|9|9");
    let reason = sql("SELECT reason FROM replicon_quarantine");
    assert!(!reason.is_empty() && !reason.contains("secret"), "why, and no value: {reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_and_leave_the_quarantine_on_postgres() {
    let postgres = Postgres::start();
    for (store_raw, database) in [(false, "rows_only"), (true, "copies")] {
        postgres.database(database);
        let storage = SqlStorage::new(server(&postgres, database), options(store_raw));
        let sql = |text: &str| postgres.psql(database, text);
        mends(&storage, store_raw, &sql).await;
        retries(&storage, BY_CHECK, &sql).await;
    }
}

async fn on_mysql(kind: MysqlKind) {
    let mysql = Mysql::start(kind);
    for (store_raw, database) in [(false, "rows_only"), (true, "copies")] {
        mysql.database(database);
        let storage = SqlStorage::new(mysql_server(&mysql, database), options(store_raw));
        let sql = |text: &str| mysql.sql(database, text);
        mends(&storage, store_raw, &sql).await;
        retries(&storage, BY_CHECK, &sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_and_leave_the_quarantine_on_mariadb() {
    on_mysql(MysqlKind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_and_leave_the_quarantine_on_mysql() {
    on_mysql(MysqlKind::MySql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_and_leave_the_quarantine_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    for (store_raw, file) in [(false, "rows.db"), (true, "copies.db")] {
        let path = dir.path().join(file);
        let storage = SqlStorage::new(Database::new(path.clone()), options(store_raw));
        let sql = |text: &str| sqlite(&path, text);
        mends(&storage, store_raw, &sql).await;
        retries(&storage, BY_TRIGGER, &sql).await;
    }
}
