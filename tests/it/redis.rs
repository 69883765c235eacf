//! The queue on Redis and on Valkey, each a server of the test's own: in process by the suites that
//! every queue must pass, and as the built binary with PostgreSQL, MariaDB and SQLite behind it.
//!
//! Here stands what the modules share: a place where a node works, and what is read out of its tables.

mod bad;
mod entries;
mod foreign;
mod kills;
mod letters;
mod loss;
mod marks;
mod outages;
mod peers;
mod queue;
mod reading;
mod spec;
mod switch;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::http;
use crate::support::ledger::check_accounts;
use crate::support::mysql::{self, Mysql};
use crate::support::postgres::Postgres;
use crate::support::redis::{Kind, Redis};
use crate::support::sqlite::sqlite;
use crate::support::{Client, KEY, Node, full_scale, replicon, stored, wait_until};

/// The database that nodes write to.
const DATABASE: &str = "replicon";
/// Where that of SQLite lies, under the node's directory.
const SQLITE: &str = "data/db/replicon.db";
/// Where the lines lie, where there is no database.
const LINES: &str = "data/db/events_raw.jsonl";
/// The stream where nothing else is set.
const STREAM: &str = "replicon:ingest";

/// A number that was posted, behind the seq that its event was given.
type Numbered = (u64, i64);

/// Where events end.
enum Database {
    Sqlite,
    Postgres(Postgres),
    MariaDb(Mysql),
    /// None: a line an event, in a file.
    Lines,
}

/// A directory for a node, its Redis, and the database that it writes to.
struct Site {
    dir: tempfile::TempDir,
    redis: Redis,
    database: Database,
}

impl Site {
    fn on(redis: Redis, database: Database) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), redis, database }
    }

    fn sqlite(redis: Redis) -> Self {
        Self::on(redis, Database::Sqlite)
    }

    fn postgres(redis: Redis) -> Self {
        let server = Postgres::start();
        server.database(DATABASE);
        Self::on(redis, Database::Postgres(server))
    }

    fn mariadb(redis: Redis) -> Self {
        let server = Mysql::start(mysql::Kind::MariaDb);
        server.database(DATABASE);
        Self::on(redis, Database::MariaDb(server))
    }

    fn lines(redis: Redis) -> Self {
        Self::on(redis, Database::Lines)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn settings(&self) -> Vec<String> {
        let mut all = self.redis.settings();
        let (name, key, value) = match &self.database {
            Database::Sqlite => ("sqlite", "storage_sqlite_path", SQLITE.to_owned()),
            Database::Postgres(server) => {
                ("postgres", "storage_postgres_dsn", server.dsn(DATABASE))
            }
            Database::MariaDb(server) => ("mysql", "storage_mysql_dsn", server.dsn(DATABASE)),
            Database::Lines => ("file", "storage_file_path", LINES.to_owned()),
        };
        all.extend(set(&[&format!("storage_backend={name}"), &format!("{key}={value}")]));
        all
    }

    /// A node that has started and listens. It may not be ready.
    fn start(&self, more: &[&str]) -> Node {
        Node::start(self.path(), &both(&self.settings(), more))
    }

    /// What a node that does not start logs.
    fn refused(&self, more: &[&str]) -> String {
        match Node::try_start(self.path(), &both(&self.settings(), more)) {
            Ok(node) => panic!("it started: {}", node.ready),
            Err(log) => log,
        }
    }

    /// A node that is ready.
    fn serving(&self, more: &[&str]) -> Node {
        http::serving(self.path(), &both(&self.settings(), more))
    }

    /// Runs SQL; what it prints, columns separated by `|`.
    fn sql(&self, text: &str) -> String {
        match &self.database {
            Database::Sqlite => sqlite(&self.path().join(SQLITE), text),
            Database::Postgres(server) => server.psql(DATABASE, text),
            Database::MariaDb(server) => server.sql(DATABASE, text),
            Database::Lines => panic!("a file takes no SQL: {text}"),
        }
    }

    fn pairs(&self, member: &str) -> Vec<Numbered> {
        let member = match self.database {
            Database::Sqlite => format!("json_extract(json_data, '$.{member}')"),
            Database::Postgres(_) => format!("json_data->>'{member}'"),
            Database::MariaDb(_) => format!("JSON_VALUE(json_data, '$.{member}')"),
            Database::Lines => {
                let pair = |line: &Value| {
                    let n = line["json_data"][member].as_i64().unwrap();
                    (line["origin_seq"].as_u64().unwrap(), n)
                };
                return stored(self.path()).iter().map(pair).collect();
            }
        };
        let text =
            self.sql(&format!("SELECT origin_seq, {member} FROM events_raw ORDER BY origin_seq"));
        let pair = |line: &str| -> Option<Numbered> {
            let (seq, n) = line.split_once('|')?;
            Some((seq.parse().ok()?, n.parse().ok()?))
        };
        text.lines().map(|line| pair(line).unwrap_or_else(|| panic!("{line}"))).collect()
    }

    /// Every row of `events_raw`, in order of the seqs, with the `n` of its payload.
    fn numbers(&self) -> Vec<Numbered> {
        self.pairs("n")
    }

    /// The same with the `id` of the payload, as a ledger judges it.
    fn ids(&self) -> Vec<Value> {
        let line = |(seq, id): Numbered| json!({"origin_seq": seq, "json_data": {"id": id}});
        self.pairs("id").into_iter().map(line).collect()
    }

    /// The dead letters, in order.
    fn dead_letters(&self) -> Vec<Value> {
        let printed = self.command(&["dlq", "list", "--json"]);
        let list: Value =
            serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
        list["dead_letters"].as_array().unwrap().clone()
    }

    /// Runs a command to its end, which must be good; what it printed.
    fn command(&self, words: &[&str]) -> String {
        let settings = self.settings();
        let output = replicon(self.path()).args(settings).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "replicon {words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// `--set` before each.
fn set(pairs: &[&str]) -> Vec<String> {
    pairs.iter().flat_map(|pair| ["--set".to_owned(), (*pair).to_owned()]).collect()
}

fn both<'a>(settings: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    settings.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

/// Posts `{"n":…}` for each number as one batch, which must be accepted.
fn post(client: &mut Client, numbers: impl IntoIterator<Item = i64>) -> Vec<Numbered> {
    let numbers: Vec<i64> = numbers.into_iter().collect();
    let items: Vec<String> = numbers.iter().map(|n| format!("{{\"n\":{n}}}")).collect();
    let body = format!("[{}]", items.join(","));
    let answer = client.post("events_raw", KEY, body.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    let first = answer.json()["first_seq"].as_u64().unwrap();
    (first..).zip(numbers).collect()
}

/// Waits until everything in the queue is resolved; the accounts are even.
fn drained(node: &Node) {
    let deadline = Duration::from_secs(if full_scale() { 900 } else { 60 });
    wait_until(deadline, "an empty queue", || {
        let health = node.health();
        match health["ingest"]["queue_depth"].as_u64() {
            Some(0) => Ok(()),
            _ => Err(health.to_string()),
        }
    });
    check_accounts(&node.get("/metrics").body);
}

/// Waits until it takes events, at most so long.
fn ready_within(node: &Node, most: Duration) {
    wait_until(most, "a node that takes events", || {
        let answer = node.get("/readyz");
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}

/// A count of `/healthz`.
fn count(node: &Node, name: &str) -> u64 {
    let health = node.health();
    health["ingest"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {health}"))
}

/// Both servers.
fn each_kind(test: impl Fn(Redis)) {
    for kind in [Kind::Redis, Kind::Valkey] {
        eprintln!("on {kind:?}");
        test(Redis::start(kind));
    }
}
