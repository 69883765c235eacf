//! The built binary on real databases: a PostgreSQL server of each test's own, and SQLite.
//!
//! Here stands what the modules share: a place where a node works, what is posted to it, and what is
//! read out of its tables by `psql` and `sqlite3`, as an operator would.

mod bad;
mod kills;
mod outages;
mod owner;
mod parked;
mod spec;
mod start;
mod tables;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::cli::write;
use super::http;
use crate::support::ledger::check_accounts;
use crate::support::postgres::Postgres;
use crate::support::sqlite::sqlite;
use crate::support::{Client, KEY, Node, full_scale, replicon, wait_until};

/// The database that nodes write to.
const DATABASE: &str = "replicon";
/// Where that of SQLite lies, under the node's directory.
const SQLITE: &str = "data/db/replicon.db";

/// Small segments, so that they are rotated and deleted all the time.
const SMALL_SEGMENTS: [&str; 6] = [
    "--set",
    "max_body_bytes=16KiB",
    "--set",
    "max_batch_items=100",
    "--set",
    "queue_segment_bytes=64KiB",
];

/// A raw channel and a structured one.
const CHANNELS: &str = "\
general:
  api_keys: [key-abc123]
channels:
  events_raw:
    mode: raw_only
  reports:
    mode: structured
    store_raw: false
    table: reports
    columns: [n, place]
    required: [n, place]
    field_types:
      n: bigint
";

/// A number that was posted, behind the seq that its event was given.
type Numbered = (u64, i64);

/// A directory for a node, and the database that it writes to.
struct Site {
    dir: tempfile::TempDir,
    /// Without one it is SQLite.
    server: Option<Postgres>,
}

impl Site {
    fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), server: None }
    }

    fn postgres() -> Self {
        Self::on(Postgres::start())
    }

    fn on(server: Postgres) -> Self {
        server.database(DATABASE);
        Self { dir: tempfile::tempdir().unwrap(), server: Some(server) }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn server(&mut self) -> &mut Postgres {
        self.server.as_mut().unwrap()
    }

    /// What a node is told of its storage.
    fn settings(&self) -> Vec<String> {
        match &self.server {
            Some(server) => postgres_settings(&server.dsn(DATABASE)),
            None => set(&["storage_backend=sqlite", &format!("storage_sqlite_path={SQLITE}")]),
        }
    }

    /// A node that has started and listens. It may not be ready.
    fn start(&self, more: &[&str]) -> Node {
        Node::start(self.path(), &both(&self.settings(), more))
    }

    /// A node that is ready.
    fn serving(&self, more: &[&str]) -> Node {
        http::serving(self.path(), &both(&self.settings(), more))
    }

    /// Gives the node its channels.
    fn channels(&self, text: &str) {
        write(self.path(), "conf/channels.yml", text);
    }

    /// Runs SQL; what it prints, columns separated by `|`.
    fn sql(&self, text: &str) -> String {
        match &self.server {
            Some(server) => server.psql(DATABASE, text),
            None => sqlite(&self.path().join(SQLITE), text),
        }
    }

    /// A query whose rows are one JSON object each.
    fn objects(&self, query: &str) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"))
        };
        self.sql(query).lines().map(parse).collect()
    }

    /// A query for a seq and a number.
    fn pairs(&self, query: &str) -> Vec<Numbered> {
        let pair = |line: &str| -> Option<Numbered> {
            let (seq, n) = line.split_once('|')?;
            Some((seq.parse().ok()?, n.parse().ok()?))
        };
        let text = self.sql(query);
        text.lines().map(|line| pair(line).unwrap_or_else(|| panic!("{query}: {line}"))).collect()
    }

    /// A number in the payload of `events_raw`, as SQL.
    fn member(&self, name: &str) -> String {
        match self.server {
            Some(_) => format!("json_data->>'{name}'"),
            None => format!("json_extract(json_data, '$.{name}')"),
        }
    }

    /// Every row of `events_raw`, in order of the seqs, with the `n` of its payload.
    fn numbers(&self) -> Vec<Numbered> {
        let n = self.member("n");
        self.pairs(&format!("SELECT origin_seq, {n} FROM events_raw ORDER BY origin_seq"))
    }

    /// The same with the `id` of the payload, as a ledger judges it.
    fn ids(&self) -> Vec<Value> {
        let id = self.member("id");
        let rows =
            self.pairs(&format!("SELECT origin_seq, {id} FROM events_raw ORDER BY origin_seq"));
        let line = |(seq, id): Numbered| json!({"origin_seq": seq, "json_data": {"id": id}});
        rows.into_iter().map(line).collect()
    }

    /// Every row of `events_raw`, in order of the seqs; `received_at` in seconds since 1970.
    fn rows(&self) -> Vec<Value> {
        let (object, received_at, payload) = match self.server {
            Some(_) => {
                ("json_build_object", "extract(epoch FROM received_at)::float8", "json_data")
            }
            None => {
                let seconds = "(julianday(received_at) - 2440587.5) * 86400.0";
                ("json_object", seconds, "json(json_data)")
            }
        };
        self.objects(&format!(
            "SELECT {object}('origin_dc', origin_dc, 'origin_seq', origin_seq, \
             'node_name', node_name, 'channel', channel, 'received_at', {received_at}, \
             'json_data', {payload}) FROM events_raw ORDER BY origin_seq"
        ))
    }
}

/// `--set` before each.
fn set(pairs: &[&str]) -> Vec<String> {
    pairs.iter().flat_map(|pair| ["--set".to_owned(), (*pair).to_owned()]).collect()
}

fn postgres_settings(dsn: &str) -> Vec<String> {
    set(&["storage_backend=postgres", &format!("storage_postgres_dsn={dsn}")])
}

fn both<'a>(settings: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    settings.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

/// Posts a batch, which must be accepted; its first seq.
fn post_items(client: &mut Client, channel: &str, items: &[String]) -> u64 {
    let body = format!("[{}]", items.join(","));
    let answer = client.post(channel, KEY, body.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    let json = answer.json();
    assert_eq!(json["accepted_count"], items.len(), "{json}");
    json["first_seq"].as_u64().unwrap()
}

/// Posts `{"n":…}` for each number to `events_raw` as one batch.
fn post(client: &mut Client, numbers: impl IntoIterator<Item = i64>) -> Vec<Numbered> {
    let numbers: Vec<i64> = numbers.into_iter().collect();
    let items: Vec<String> = numbers.iter().map(|n| format!("{{\"n\":{n}}}")).collect();
    let first = post_items(client, "events_raw", &items);
    (first..).zip(numbers).collect()
}

/// Posts each number to `reports` as one batch, with so long a place.
fn post_reports(
    client: &mut Client,
    numbers: impl IntoIterator<Item = i64>,
    place: usize,
) -> Vec<Numbered> {
    let numbers: Vec<i64> = numbers.into_iter().collect();
    let place = "x".repeat(place);
    let item = |n: &i64| format!("{{\"n\":{n},\"place\":\"{place}\"}}");
    let items: Vec<String> = numbers.iter().map(item).collect();
    let first = post_items(client, "reports", &items);
    (first..).zip(numbers).collect()
}

/// Compares without printing thousands of rows.
fn assert_same(got: &[Numbered], want: &[Numbered]) {
    let (stand, expected): (BTreeSet<_>, BTreeSet<_>) =
        (got.iter().collect(), want.iter().collect());
    let missing: Vec<_> = expected.difference(&stand).take(10).collect();
    let surplus: Vec<_> = stand.difference(&expected).take(10).collect();
    let counts = format!("{} stand, {} were accepted", got.len(), want.len());
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "{counts}; {missing:?} lack, {surplus:?} more"
    );
    assert_eq!(got.len(), want.len(), "some stand twice");
    let at = got.iter().zip(want).position(|(got, want)| got != want);
    assert_eq!(at, None, "in another order from there");
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

/// Waits until nothing is wrong with it any more.
fn well(node: &Node) {
    wait_until(Duration::from_secs(30), "a node that is well", || {
        let health = node.health();
        if health["status"] == "ok" { Ok(()) } else { Err(health.to_string()) }
    });
}

/// Waits until it says that its storage is in trouble; how.
fn in_trouble(node: &Node) -> String {
    wait_until(Duration::from_secs(60), "trouble with the storage", || {
        let health = node.health();
        let said = health["ingest"]["last_error"].as_str().map(str::to_owned);
        said.ok_or_else(|| health.to_string())
    })
}

/// The dead letters in a node's directory, in order.
fn dead_letters(dir: &Path) -> Vec<Value> {
    let output = replicon(dir).args(["dlq", "list", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["dead_letters"].as_array().unwrap().clone()
}

/// Their seqs, in order.
fn seqs_of(letters: &[Value]) -> Vec<u64> {
    let mut seqs: Vec<u64> = letters.iter().map(|l| l["seq"].as_u64().unwrap()).collect();
    seqs.sort_unstable();
    seqs
}

/// Nothing was given up.
fn assert_nothing_dead(node: &Node, dir: &Path) {
    let health = node.health();
    assert_eq!(health["ingest"]["dead_letter_total"], 0, "{health}");
    assert_eq!(health["ingest"]["lost_total"], 0, "{health}");
    assert_eq!(dead_letters(dir), Vec::<Value>::new());
}
