//! Entries of other programs in the stream, and other nodes on it: nothing of theirs is acknowledged
//! away, nothing of ours is stored half, and a second node is refused by name.
//!
//! Attacks I4 and I6.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{STREAM, Site, count, drained, each_kind, post, ready_within};
use crate::support::redis::{Kind, Redis};
use crate::support::{Client, KEY, Node, full_scale, wait_until};

const DLQ: &str = "replicon:ingest:dlq";

/// Posts a batch of 100; the status.
fn post_hundred(client: &mut Client, from: i64) -> (u16, Value) {
    let items: Vec<String> = (from..from + 100).map(|n| format!("{{\"n\":{n}}}")).collect();
    let body = format!("[{}]", items.join(","));
    let answer = client.post("events_raw", KEY, body.as_bytes()).unwrap();
    (answer.status, answer.json())
}

/// How many entries were moved away so far.
fn moved(node: &Node) -> u64 {
    let health = node.health();
    let text = health["ingest"]["queue_server"]["foreign_entries"].as_str().unwrap_or("0");
    text.parse().unwrap()
}

#[test]
fn an_entry_above_ours_refuses_the_next_batch_whole_and_the_one_after_is_taken() {
    each_kind(|redis| {
        let site = Site::sqlite(redis);
        let node = site.serving(&[]);
        let mut client = node.client();
        let mut told = post(&mut client, 0..100);
        let rounds = if full_scale() { 50 } else { 5 };
        for round in 1..=rounds {
            // in the middle of the ids that the next batch would be given
            let above = format!("{}-0", told.last().unwrap().0 + 50);
            let _: String = site.redis.ask(&["XADD", STREAM, &above, "who", "another"]);
            let began = Instant::now();
            let from = round * 1000;
            let (status, answer) = post_hundred(&mut client, from);
            assert_eq!(status, 503, "{answer}");
            assert_eq!(answer["stored"], "no", "it is certain: {answer}");
            let taken = wait_until(Duration::from_secs(5), "a batch that is taken", || {
                let (status, answer) = post_hundred(&mut client, from);
                if status == 202 { Ok(answer) } else { Err(answer.to_string()) }
            });
            assert!(began.elapsed() < Duration::from_secs(5));
            let first = taken["first_seq"].as_u64().unwrap();
            told.extend((first..).zip(from..from + 100));
        }
        drained(&node);
        assert_eq!(site.numbers(), told, "each batch whole, once");
        wait_until(Duration::from_secs(10), "moved entries", || match moved(&node) {
            n if n == u64::try_from(rounds).unwrap() => Ok(()),
            n => Err(n.to_string()),
        });
        let letters = site.dead_letters();
        assert!(letters.iter().all(|l| l["reason"]["code"] == "foreign entry"), "{letters:?}");
        assert_eq!(letters.len(), usize::try_from(rounds).unwrap());
    });
}

#[test]
fn entries_of_an_older_version_are_moved_whole_and_named_at_start() {
    each_kind(|redis| {
        let site = Site::sqlite(redis);
        let odd = ["channel", "events_raw", "payload", "{\"n\":1}", "retries", "0"];
        for _ in 0..3 {
            let _: String = site.redis.ask(&[&["XADD", STREAM, "*"][..], &odd].concat());
        }
        // the older version's group, which had one of them in hand
        let _: String = site.redis.ask(&["XGROUP", "CREATE", STREAM, "writer", "0"]);
        let take = ["XREADGROUP", "GROUP", "writer", "old", "COUNT", "1", "STREAMS", STREAM, ">"];
        let _: redis::Value = site.redis.ask(&take);

        let node = site.serving(&[]);
        let told = post(&mut node.client(), 0..10);
        drained(&node);
        assert_eq!(site.numbers(), told);
        wait_until(Duration::from_secs(10), "moved entries", || match moved(&node) {
            3 => Ok(()),
            n => Err(n.to_string()),
        });
        assert!(node.log().contains("holds 3 entries that this program did not write"));
        let entries: Vec<(String, Vec<String>)> = site.redis.ask(&["XRANGE", DLQ, "-", "+"]);
        assert_eq!(entries.len(), 3);
        for (_, fields) in &entries {
            assert_eq!(fields[3], "foreign entry", "{fields:?}");
            assert_eq!(fields[6..], odd, "byte for byte: {fields:?}");
        }
        let shown = site.command(&["dlq", "export"]);
        let lines: Vec<Value> =
            shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["payload"]["payload"], "{\"n\":1}", "{shown}");
        // none of them can be put back: they are no events
        let said = site.command(&["dlq", "retry", "--all"]);
        assert!(said.contains("put back: 0"), "{said}");
        let said = site.command(&["dlq", "discard", "--all", "--yes"]);
        assert!(said.contains("discarded: 3"), "{said}");
    });
}

#[test]
fn a_second_node_on_the_same_stream_is_refused_by_name() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&[]);
    post(&mut node.client(), 0..5);
    let other = tempfile::tempdir().unwrap();
    let settings = site.settings();
    let args: Vec<&str> =
        settings.iter().map(String::as_str).chain(["--set", "node_name=dc9"]).collect();
    let Err(log) = Node::try_start(other.path(), &args) else { panic!("it started") };
    assert!(log.contains("belongs to node_name dc1, not to dc9"), "{log}");
    assert!(log.contains("queue_redis_stream"), "the remedy: {log}");

    // one of the same name, in another directory, waits until the first is silent
    let same = tempfile::tempdir().unwrap();
    let args: Vec<&str> = settings.iter().map(String::as_str).collect();
    let second = Node::start(same.path(), &args);
    let said = second.get("/readyz").body;
    assert!(said.contains("held by another process of node dc1"), "{said}");
    drained(&node);
    assert_eq!(node.stop().code(), Some(0));
    ready_within(&second, Duration::from_secs(10));
    assert_eq!(count(&second, "recovered_total"), 0);
}
