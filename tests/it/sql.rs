//! The built binary on real databases: SQLite, and a server of each test's own of PostgreSQL, MariaDB
//! or MySQL. A test is written once and made for each database that it is about.
//!
//! Here stands what the modules share: what is posted to a node, and what is read out of its tables
//! by the database's own client, as an operator would.

pub(crate) mod site;

mod bad;
mod kills;
mod locks;
mod mysql;
mod outages;
mod owner;
mod parked;
mod spec;
mod start;
mod tables;
mod unique;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::ledger::check_accounts;
use crate::support::{Client, KEY, Node, full_scale, replicon, wait_until};
use site::{Kind, Server, Site, on_each};

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

/// `--set` before each.
fn set(pairs: &[&str]) -> Vec<String> {
    pairs.iter().flat_map(|pair| ["--set".to_owned(), (*pair).to_owned()]).collect()
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
        // a first start waits for the storage before it knows what is wrong with it
        let said = said.filter(|said| !said.starts_with("identity not certain"));
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
