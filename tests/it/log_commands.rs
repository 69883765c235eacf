//! `replicon log` and the control socket, on real files: with no node, and beside one that runs.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::cli::{Ran, run};
use super::http::serving;
use crate::support::{KEY, Node, stored, wait_until};

/// Events stay in the log.
const KEPT: [&str; 2] = ["--set", "writer_enabled=false"];

fn ran(dir: &Path, args: &[&str], code: i32) -> Ran {
    let ran = run(dir, args);
    assert_eq!(ran.code, Some(code), "replicon {args:?}\n{}\n{}", ran.out, ran.err);
    ran
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.out))
}

/// Posts, and gives the first and last seq.
fn post(node: &Node, body: &str) -> (u64, u64) {
    let answer = node.post(body);
    assert_eq!(answer.status, 202, "{}", answer.body);
    let json = answer.json();
    (json["first_seq"].as_u64().unwrap(), json["last_seq"].as_u64().unwrap())
}

fn stop(node: Node) {
    assert_eq!(node.stop().code(), Some(0));
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir.join("data/queue"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let digits = path.extension().unwrap_or_default().to_string_lossy();
            let name = path.file_stem().unwrap().to_string_lossy();
            name == "ingest.log" && digits.len() == 20
        })
        .collect();
    found.sort();
    found
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("data/queue/replicon.sock")
}

/// A log that was stopped in order, with two events of five unreadable; the line that says so.
fn damaged(dir: &Path) -> String {
    let node = serving(dir, &KEPT);
    let (_, before) = post(&node, "[{\"n\":1},{\"n\":2}]");
    post(&node, "[{\"n\":3},{\"n\":4}]");
    let (after, _) = post(&node, "{\"n\":5}");
    stop(node);
    let path = segments(dir).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // seals may stand between the frames that hold events
    let length = |at: usize| u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap());
    let next = |at: usize| at + 48 + length(at) as usize;
    let mut second = next(8192);
    while bytes[second + 4] != 1 {
        second = next(second);
    }
    bytes[second + 60] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let segment = path.extension().unwrap().to_str().unwrap();
    let (from, to) = (before + 1, after - 1);
    format!("2 synced events between seq {from} and {to} in segment {segment} cannot be read")
}

/// What a node says of itself: its status and its damage.
fn state(node: &Node) -> (String, Vec<String>) {
    let health = node.health();
    let damage = health["damage"].as_array().unwrap().iter();
    let lines = damage.map(|line| line.as_str().unwrap().to_owned()).collect();
    (health["status"].as_str().unwrap().to_owned(), lines)
}

fn green() -> (String, Vec<String>) {
    ("ok".to_owned(), Vec::new())
}

#[test]
fn where_nothing_ran_yet_a_look_says_so_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["log", "stat"][..],
        &["log", "check"],
        &["log", "repair"],
        &["log", "repair", "--acknowledge"],
        &["dlq", "retry", "--all"],
        &["dlq", "discard", "7"],
    ] {
        let ran = ran(dir.path(), args, 0);
        assert!(ran.out.starts_with("there is no log at "), "{args:?}: {}", ran.out);
        assert!(ran.out.contains("data/queue/ingest.log"), "{}", ran.out);
    }
    assert_eq!(json(&ran(dir.path(), &["log", "stat", "--json"], 0)), Value::Null);
    assert_eq!(ran(dir.path(), &["log", "dump"], 0).out, "");
    assert_eq!(ran(dir.path(), &["dlq", "list"], 0).out, "no dead letters\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_log_is_shown_beside_a_running_node_as_after_its_stop() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &KEPT);
    let (first, second) = post(&node, "[{\"n\": 1}, {\"n\":2.0,\n\"b\":[]}]");
    let (third, _) = post(&node, "{\"n\":3}");
    let mut node = Some(node);
    for running in [true, false] {
        if !running {
            stop(node.take().unwrap());
        }
        let stat = ran(dir.path(), &["log", "stat"], 0).out;
        for word in ["SEGMENT", "CHANNEL", "events_raw", "no damage is known"] {
            assert!(stat.contains(word), "{word}: {stat}");
        }
        let look = json(&ran(dir.path(), &["log", "stat", "--json"], 0));
        assert_eq!(look["queued"]["events_raw"]["events"], 3, "{look}");
        assert_eq!(
            (&look["node_name"], &look["damage"]),
            (&Value::from("dc1"), &Value::Array(vec![]))
        );
        let last = look["segments"].as_array().unwrap().last().unwrap();
        let seqs = (&last["first"], &last["last"], &last["events"]);
        assert_eq!(seqs, (&Value::from(first), &Value::from(third), &Value::from(3)), "{look}");
        let check = ran(dir.path(), &["log", "check"], 0).out;
        assert!(check.ends_with("every frame was read: nothing is lost\n"), "{check}");

        let dump = ran(dir.path(), &["log", "dump"], 0).out;
        let lines: Vec<&str> = dump.lines().collect();
        assert_eq!(lines.len(), 3, "{dump}");
        let head = format!("{{\"seq\":{first},\"channel\":\"events_raw\",\"received_at\":\"20");
        assert!(lines[0].starts_with(&head), "{dump}");
        assert!(lines[0].ends_with("Z\",\"state\":\"queued\",\"payload\":{\"n\": 1}}"), "{dump}");
        assert!(lines[1].ends_with("\"payload\":{\"n\":2.0, \"b\":[]}}"), "{dump}");
        let from = second.to_string();
        let ways: [(&[&str], usize); 6] = [
            (&["--from", &from], 2),
            (&["--to", &from], 2),
            (&["--from", &from, "--to", &from], 1),
            (&["--limit", "1"], 1),
            (&["--channel", "events_raw"], 3),
            (&["--channel", "other"], 0),
        ];
        for (args, count) in ways {
            let dump = ran(dir.path(), &[&["log", "dump"][..], args].concat(), 0).out;
            assert_eq!(dump.lines().count(), count, "{args:?}: {dump}");
        }
    }
}

#[test]
fn what_was_stored_is_released_and_no_longer_counted() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    post(&node, "[{\"n\":1},{\"n\":2}]");
    node.wait_drained();
    wait_until(Duration::from_secs(10), "a position on disk", || {
        let dump = ran(dir.path(), &["log", "dump"], 0).out;
        let released = dump.lines().filter(|line| line.contains("\"state\":\"released\"")).count();
        if released == 2 { Ok(()) } else { Err(dump) }
    });
    let look = json(&ran(dir.path(), &["log", "stat", "--json"], 0));
    assert_eq!(look["queued"]["events_raw"]["events"].as_u64().unwrap_or(0), 0, "{look}");
    stop(node);
}

#[test]
fn damage_is_named_alike_by_check_by_the_node_and_by_repair_until_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let line = damaged(dir.path());
    let check = ran(dir.path(), &["log", "check"], 1).out;
    assert!(check.contains(&line), "{line}\n{check}");
    assert!(
        check
            .ends_with("every frame was read: 2 are lost; `replicon log repair` says what to do\n")
    );
    let look = json(&ran(dir.path(), &["log", "check", "--json"], 1));
    assert_eq!(
        (&look["damage"][0]["events"], &look["damage"][0]["standing"]),
        (&Value::from(2), &Value::from("found"))
    );

    let node = serving(dir.path(), &[]);
    node.wait_drained();
    assert_eq!(stored(dir.path()).len(), 3, "everything else is delivered");
    assert_eq!(state(&node), ("degraded".to_owned(), vec![line.clone()]));
    let repair = ran(dir.path(), &["log", "repair"], 1).out;
    for word in
        [line.as_str(), "answered 202 and are lost", "a peer that pulled them", "--acknowledge"]
    {
        assert!(repair.contains(word), "{word}: {repair}");
    }
    let done = ran(dir.path(), &["log", "repair", "--acknowledge"], 0).out;
    assert_eq!(done, "acknowledged: 1 report of damage; the red state has ended\n");
    assert_eq!(state(&node), green());
    ran(dir.path(), &["log", "check"], 0);
    stop(node);
    let node = serving(dir.path(), &[]);
    assert_eq!(state(&node), green(), "a restart stays green");
    let again = ran(dir.path(), &["log", "repair", "--acknowledge"], 0).out;
    assert_eq!(again, "nothing was reported damaged\n");
}

#[test]
fn damage_is_acknowledged_with_no_node_running_and_while_its_events_still_wait() {
    let dir = tempfile::tempdir().unwrap();
    let line = damaged(dir.path());
    stop(serving(dir.path(), &KEPT));
    let repair = ran(dir.path(), &["log", "repair"], 1).out;
    assert!(repair.contains(&line) && repair.contains("--acknowledge"), "{repair}");
    let done = ran(dir.path(), &["log", "repair", "--acknowledge"], 0).out;
    assert!(done.starts_with("acknowledged: 1 report"), "{done}");
    // nothing was drained: the stretch is still there, and known
    let check = ran(dir.path(), &["log", "check"], 0).out;
    assert!(check.contains("damage that was acknowledged:") && check.contains(&line), "{check}");
    for args in [&KEPT[..], &[]] {
        let node = serving(dir.path(), args);
        assert_eq!(state(&node), green());
        if args.is_empty() {
            node.wait_drained();
            assert_eq!(state(&node), green());
        }
        stop(node);
    }
    let ids: Vec<Value> = stored(dir.path()).iter().map(|l| l["json_data"]["n"].clone()).collect();
    assert_eq!(ids, [1, 2, 5]);
}

#[test]
fn a_look_beside_a_busy_node_finds_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "--set",
        "max_body_bytes=16KiB",
        "--set",
        "max_batch_items=100",
        "--set",
        "queue_segment_bytes=64KiB",
    ];
    let node = serving(dir.path(), &args);
    let with = |command: &[&'static str]| [command, &args[..]].concat();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let event = format!("{{\"filling\":\"{}\"}}", "x".repeat(400));
            let body = format!("[{}]", vec![event; 30].join(","));
            let mut client = node.client();
            for _ in 0..3000 {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                let answer = client.post("events_raw", KEY, body.as_bytes()).unwrap();
                assert!([202, 429].contains(&answer.status), "{}", answer.body);
            }
        });
        for _ in 0..8 {
            let check = run(dir.path(), &with(&["log", "check"]));
            let stat = run(dir.path(), &with(&["log", "stat"]));
            if (check.code, stat.code) != (Some(0), Some(0)) || stat.out.contains("damage found") {
                enough.store(true, Ordering::Relaxed);
                panic!("{}{}{}{}", check.out, check.err, stat.out, stat.err);
            }
        }
        enough.store(true, Ordering::Relaxed);
    });
    assert_eq!(state(&node), green());
}

#[test]
fn the_socket_is_for_its_owner_alone_and_goes_with_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let found = std::fs::metadata(socket(dir.path())).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    stop(node);
    assert!(!socket(dir.path()).exists());
}

#[test]
fn a_socket_that_a_killed_node_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    serving(dir.path(), &[]).kill();
    assert!(socket(dir.path()).exists());
    // nobody listens, and nobody holds the directory: the command does it itself
    ran(dir.path(), &["log", "repair", "--acknowledge"], 0);
    let node = serving(dir.path(), &[]);
    ran(dir.path(), &["log", "repair", "--acknowledge"], 0);
    assert!(!node.log().contains("control socket"), "{}", node.log());
}

#[test]
fn without_its_socket_a_node_runs_and_commands_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("data/queue")).unwrap();
    std::fs::write(socket(dir.path()), "somebody's file").unwrap();
    let node = serving(dir.path(), &[]);
    post(&node, "{}");
    assert!(node.log().contains("data/queue/replicon.sock cannot be made"), "{}", node.log());
    let refused = ran(dir.path(), &["log", "repair", "--acknowledge"], 2).err;
    let pid = format!("is held by a running process (pid {})", node.pid());
    for word in
        [pid.as_str(), "data/queue/replicon.sock cannot be reached", "stop it and run this again"]
    {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    ran(dir.path(), &["log", "check"], 0);
    stop(node);
    assert_eq!(std::fs::read_to_string(socket(dir.path())).unwrap(), "somebody's file");
}

#[test]
fn a_directory_whose_path_is_too_long_for_an_address_is_served_too() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    let log = format!("queue_file_path={}/ingest.log", deep.display());
    let ack = format!("queue_file_ack_path={}/ingest.ack", deep.display());
    let args = ["--set", log.as_str(), "--set", ack.as_str()];
    let node = serving(dir.path(), &args);
    assert!(deep.join("replicon.sock").exists());
    let command = [&["log", "repair", "--acknowledge"][..], &args].concat();
    assert_eq!(ran(dir.path(), &command, 0).out, "nothing was reported damaged\n");
    stop(node);
    assert!(!deep.join("replicon.sock").exists());
}

#[test]
fn a_log_of_another_node_and_one_of_the_old_release_are_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    stop(serving(dir.path(), &[]));
    let other = ran(dir.path(), &["log", "stat", "--set", "node_name=dc9"], 2).err;
    assert!(other.contains("set node_name = dc1"), "{other}");
    let old = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(old.path().join("data/queue")).unwrap();
    std::fs::write(old.path().join("data/queue/ingest.log"), "{}\n").unwrap();
    let old = ran(old.path(), &["log", "check"], 2).err;
    assert!(old.contains("v1.0.2"), "{old}");
}
