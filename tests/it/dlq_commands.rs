//! `replicon dlq`, on real files: looking, putting back and discarding, with no node and beside one
//! that runs.

use std::path::Path;

use serde_json::Value;

use replicon::clock::Clock;
use replicon::event::{Event, Seq};
use replicon::fsx::OsDisk;
use replicon::fsx::sim::SimDisk;
use replicon::queue::conformance::batch;
use replicon::queue::file::Options;
use replicon::queue::{DeadReason, Queue, Source};

use super::cli::run;
use super::http::serving;
use crate::support::sim::{WIDE, open, options};
use crate::support::stored;

/// Runs it to the end, which must be this code; what it printed, and what it said.
fn dlq(dir: &Path, args: &[&str], code: i32) -> (String, String) {
    let ran = run(dir, &[&["dlq"][..], args].concat());
    assert_eq!(ran.code, Some(code), "replicon dlq {args:?}\n{}\n{}", ran.out, ran.err);
    (ran.out, ran.err)
}

/// Six events that were refused: those with an even number with one code, the odd ones with another.
/// File storage refuses none, so they are made in process, before any node runs.
fn six_dead_letters(dir: &Path) -> Vec<Event> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let queue = open(Options {
            disk: OsDisk::shared(),
            path: dir.join("data/queue/ingest.log"),
            ack_path: dir.join("data/queue/ingest.ack"),
            clock: Clock::system(),
            lock: true,
            ..options(&SimDisk::new())
        });
        queue.append(batch("events_raw", 0, 6)).await.unwrap();
        let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
        let events = lease.events.clone();
        for (n, event) in events.iter().enumerate() {
            let code = if n % 2 == 0 { "23514" } else { "22001" };
            let text = "violates check constraint positive".to_owned();
            let why = DeadReason { code: code.to_owned(), text };
            queue.dead_letter(event, &why).await.unwrap();
        }
        let seqs: Vec<Seq> = events.iter().map(|e| e.seq).collect();
        queue.ack(lease, &seqs).await;
        events
    })
}

fn listed(dir: &Path, args: &[&str]) -> Vec<Value> {
    let (out, _) = dlq(dir, &[&["list", "--json"][..], args].concat(), 0);
    let list: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
    list["dead_letters"].as_array().unwrap().clone()
}

/// What became of each, in order.
fn states(dir: &Path) -> Vec<String> {
    listed(dir, &[]).iter().map(|l| l["state"].as_str().unwrap().to_owned()).collect()
}

/// Old and new seqs, as `retry` told them.
fn put_back(out: &str) -> Vec<(u64, u64)> {
    let pair = |line: &str| {
        let (old, new) = line.split_once(" was put back as ")?;
        Some((old.parse().unwrap(), new.parse().unwrap()))
    };
    out.lines().filter_map(pair).collect()
}

/// The numbers in storage, each with its seq.
fn in_storage(dir: &Path) -> Vec<(u64, u64)> {
    let lines = stored(dir);
    let number = |value: &Value| value.as_u64().unwrap();
    lines.iter().map(|l| (number(&l["json_data"]["n"]), number(&l["origin_seq"]))).collect()
}

#[test]
fn dead_letters_are_listed_without_and_shown_and_exported_with_their_payloads() {
    let dir = tempfile::tempdir().unwrap();
    let dead = six_dead_letters(dir.path());
    let (table, _) = dlq(dir.path(), &["list"], 0);
    let lines: Vec<&str> = table.lines().collect();
    let titles: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(titles, ["SEQ", "CHANNEL", "RECEIVED", "REASON", "STATE", "BYTES"]);
    assert_eq!(lines.len(), 7, "{table}");
    for (line, event) in lines[1..].iter().zip(&dead) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[0], event.seq.to_string());
        assert_eq!((cells[1], cells[4], cells[5]), ("events_raw", "dead", "7"));
        assert_eq!(line.len(), lines[0].len(), "aligned: {table}");
    }
    assert!(!table.contains("\"n\""), "no payload in a list: {table}");

    assert_eq!(listed(dir.path(), &["--reason", "23514"]).len(), 3);
    assert_eq!(listed(dir.path(), &["--channel", "events_raw"]).len(), 6);
    assert_eq!(listed(dir.path(), &["--channel", "other"]), Vec::<Value>::new());
    let all = listed(dir.path(), &[]);
    assert_eq!(all[1]["reason"]["code"], "22001");
    assert_eq!(all[1]["reason"]["text"], "violates check constraint positive");

    let seq = dead[3].seq.to_string();
    let (shown, _) = dlq(dir.path(), &["show", &seq], 0);
    assert!(shown.contains("payload   {\"n\":3}") && shown.contains("22001"), "{shown}");
    let (shown, _) = dlq(dir.path(), &["show", &seq, "--json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["payload"]["n"], 3);
    let (_, unknown) = dlq(dir.path(), &["show", "7"], 1);
    assert!(unknown.contains("seq 7 has no dead letter"), "{unknown}");

    let (export, _) = dlq(dir.path(), &["export", "--reason", "22001"], 0);
    let ids: Vec<Value> = export
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["payload"]["n"].clone())
        .collect();
    assert_eq!(ids, [1, 3, 5]);
}

#[test]
fn a_change_wants_to_know_which_and_giving_up_many_wants_a_yes() {
    let dir = tempfile::tempdir().unwrap();
    six_dead_letters(dir.path());
    for args in [&["retry"][..], &["discard"], &["discard", "--yes"]] {
        let (_, said) = dlq(dir.path(), args, 2);
        assert!(said.contains("which ones?") && said.contains("--all"), "{said}");
    }
    let (_, said) = dlq(dir.path(), &["discard", "--reason", "23514"], 2);
    assert!(said.contains("3 dead letters would be given up") && said.contains("--yes"), "{said}");
    dlq(dir.path(), &["retry", "--all", "--reason", "23514"], 2);
    dlq(dir.path(), &["retry", "seven"], 2);
    assert_eq!(states(dir.path()), ["dead"; 6]);
}

#[test]
fn letters_are_put_back_and_discarded_by_a_running_node_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let dead = six_dead_letters(dir.path());
    let node = serving(dir.path(), &[]);
    let (first, second) = (dead[1].seq.to_string(), dead[4].seq.to_string());
    let (out, _) = dlq(dir.path(), &["discard", &first], 0);
    assert_eq!(out, "discarded: 1 dead letter\n");
    let (out, _) = dlq(dir.path(), &["retry", &second], 0);
    let one = put_back(&out);
    assert_eq!((one.len(), one[0].0), (1, dead[4].seq.0), "{out}");
    assert!(out.ends_with("put back: 1 dead letter\n"), "{out}");
    // neither is dead any more
    let (out, said) = dlq(dir.path(), &["retry", &first, &second], 1);
    assert!(out.contains("put back: 0") && said.contains("2 of the seqs named"), "{out}{said}");
    let (out, _) = dlq(dir.path(), &["retry", "--all"], 0);
    assert_eq!(put_back(&out).len(), 4, "{out}");
    node.wait_drained();
    let mut want: Vec<(u64, u64)> = put_back(&out).into_iter().chain(one).collect();
    let number = |seq: u64| dead.iter().position(|e| e.seq.0 == seq).unwrap() as u64;
    want.sort_by_key(|(_, new)| *new);
    let want: Vec<(u64, u64)> = want.into_iter().map(|(old, new)| (number(old), new)).collect();
    assert_eq!(in_storage(dir.path()), want);
    assert_eq!(states(dir.path()).iter().filter(|s| *s == "redriven").count(), 5);
    assert_eq!(node.stop().code(), Some(0));
}

#[test]
fn letters_are_put_back_and_discarded_with_no_node_running() {
    let dir = tempfile::tempdir().unwrap();
    let dead = six_dead_letters(dir.path());
    let (out, _) = dlq(dir.path(), &["discard", "--reason", "22001", "--yes"], 0);
    assert_eq!(out, "discarded: 3 dead letters\n");
    let (out, _) = dlq(dir.path(), &["retry", "--channel", "events_raw"], 0);
    let told = put_back(&out);
    let even: Vec<u64> = dead.iter().step_by(2).map(|e| e.seq.0).collect();
    assert_eq!(told.iter().map(|(old, _)| *old).collect::<Vec<_>>(), even, "{out}");
    let want = ["redriven", "discarded"].repeat(3);
    assert_eq!(states(dir.path()), want);
    // what was put back waits in the log like any other event
    let node = serving(dir.path(), &[]);
    node.wait_drained();
    let ids: Vec<(u64, u64)> = told.iter().zip([0, 2, 4]).map(|((_, new), n)| (n, *new)).collect();
    assert_eq!(in_storage(dir.path()), ids);
    let (out, _) = dlq(dir.path(), &["retry", "--all"], 0);
    assert_eq!(out, "put back: 0 dead letters\n");
    node.wait_drained();
    assert_eq!(in_storage(dir.path()).len(), 3, "nothing comes twice");
}
