//! Readings that come late, entries that others took, and what is read once more: everything comes, in
//! order, and nothing comes twice or is passed over in silence.
//!
//! Attacks I6 and I9.

use std::sync::Arc;
use std::time::Duration;

use replicon::event::{Name, Seq};
use replicon::queue::conformance::batch;
use replicon::queue::redis::RedisQueue;
use replicon::queue::{AppendError, Appended, Lease, LeaseLimit, Queue, Source};

use super::queue::open;
use super::{LINES, Numbered, Site, drained, post};
use crate::support::full_scale;
use crate::support::redis::{Kind, Redis};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(30);
const READ: &str = include_str!("../../../src/queue/redis/lua/read.lua");

async fn lease(queue: &RedisQueue, events: usize) -> Lease {
    let limit = LeaseLimit { events, bytes: 1 << 20 };
    let taken = tokio::time::timeout(SOON, queue.lease(&Source::Main, limit)).await;
    taken.expect("nothing comes").unwrap()
}

/// Appends as soon as Redis takes it.
async fn append(queue: &RedisQueue, events: u64) -> Appended {
    for _ in 0..3000 {
        match queue.append(batch("a", 0, events)).await {
            Ok(got) => return got,
            Err(AppendError::Unavailable { .. }) => {}
            Err(e) => panic!("{e}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("appends are refused: {:?}", queue.stats().refusing);
}

/// A queue that has read all that was pending when it was opened.
async fn reads_on(server: &Redis, dir: &std::path::Path, stream: &str) -> RedisQueue {
    let queue = open(server.options(dir, stream)).await;
    append(&queue, 1).await;
    let first = lease(&queue, 1).await;
    queue.ack(first, &[]).await;
    queue
}

/// Some entries of two events each.
async fn append_some(queue: &RedisQueue) -> Vec<Seq> {
    let mut seqs = Vec::new();
    for _ in 0..5 {
        let got = append(queue, 2).await;
        seqs.extend([got.first, got.last]);
    }
    seqs
}

/// All of it, in order, and nothing else.
async fn comes_whole(queue: &RedisQueue, got: &[Seq]) {
    let (a, first, last) = (Name::new("a").unwrap(), got[0], got[got.len() - 1]);
    let lease = lease(queue, 100).await;
    let seqs: Vec<Seq> = lease.events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, got);
    assert_eq!(queue.marks().safe(&a), Seq(first.0 - 1));
    queue.ack(lease, &[]).await;
    assert_eq!(queue.marks().safe(&a), last);
    assert_eq!(queue.first_unacked(), last.next());
}

/// New entries that another reading has taken: of this consumer, as one of a dropped connection may have
/// that comes late, or of another one.
#[tokio::test(flavor = "multi_thread")]
async fn entries_that_another_reading_took_come_all_the_same_and_in_order() {
    for kind in [Kind::Redis, Kind::Valkey] {
        for consumer in ["replicon", "thief"] {
            let (server, dir) = (Redis::start(kind), tempfile::tempdir().unwrap());
            let queue = reads_on(&server, dir.path(), "taken").await;
            let got = append_some(&queue).await;
            let take =
                ["XREADGROUP", "GROUP", "writer", consumer, "COUNT", "3", "STREAMS", "taken", ">"];
            let _: redis::Value = server.ask(&take);
            comes_whole(&queue, &got).await;
            let pending: (u64, Option<String>, Option<String>, redis::Value) =
                server.ask(&["XPENDING", "taken", "writer"]);
            assert_eq!(pending.0, 0, "{consumer} holds nothing");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_of_an_earlier_connection_that_comes_late_takes_nothing() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = reads_on(&server, dir.path(), "late").await;
    let got = append_some(&queue).await;
    let digest: String = server.ask(&["SCRIPT", "LOAD", READ]);
    let run: String = server.ask(&["HGET", "late:counts", "run"]);
    let (start, _) = run.split_once('.').unwrap();
    let earlier = format!("{start}.0");
    let keys = ["late", "late:owner", "late:counts", "late:tries", "late:dlq", "late:dlq:states"];
    let call = |run: &str| -> Vec<redis::Value> {
        let words = [run, "writer", "replicon", "10", ">", "0", "0-0"];
        server.ask(&[&["EVALSHA", digest.as_str(), "6"][..], &keys, &words].concat())
    };
    let handed = || -> Vec<String> {
        let groups: Vec<Vec<redis::Value>> = server.ask(&["XINFO", "GROUPS", "late"]);
        groups[0].iter().map(|value| format!("{value:?}")).collect()
    };
    let before = handed();
    let said = call(&earlier);
    assert_eq!(said[0], redis::Value::BulkString(b"stranger".to_vec()), "{said:?}");
    assert_eq!(handed(), before, "it has changed nothing");
    comes_whole(&queue, &got).await;
    let said = call(&run);
    assert_eq!(said[0], redis::Value::BulkString(b"read".to_vec()), "the present one: {said:?}");
}

/// A link breaks while acks are under way, and the next one reads all that is pending once more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_acknowledged_does_not_come_again() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = Arc::new(open(server.options(dir.path(), "again")).await);
    let rounds = if full_scale() { 200 } else { 12 };
    for round in 0..rounds {
        append(&queue, 60).await;
        let (mut leases, mut have) = (Vec::new(), 0);
        while have < 60 {
            let lease = lease(&queue, 10).await;
            have += lease.events.len();
            leases.push(lease);
        }
        assert_eq!(have, 60, "round {round}: something comes twice");
        // another consumer has taken one: whoever meets the stream reads again what is pending
        let id = format!("{}-0", leases[0].events[0].seq);
        let claim = ["XCLAIM", "again", "writer", "thief", "0", id.as_str(), "JUSTID"];
        let _: redis::Value = server.ask(&claim);
        let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        let mut acking = Vec::new();
        for lease in leases {
            let queue = queue.clone();
            acking.push(tokio::spawn(async move { queue.ack(lease, &[]).await }));
        }
        let got = append(&queue, 1).await;
        let next = lease(&queue, 100).await;
        let seqs: Vec<Seq> = next.events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, [got.first], "round {round}: what was resolved came again");
        queue.ack(next, &[]).await;
        for ack in acking {
            ack.await.unwrap();
        }
    }
    let counts = queue.stats().channels[0].1;
    let all = rounds * 61;
    assert_eq!((counts.accepted, counts.stored, counts.queued), (all, all, 0), "{counts:?}");
    let safe = queue.marks().safe(&Name::new("a").unwrap());
    assert_eq!(safe.next(), queue.first_unacked());
}

/// The file only grows: an event that was never written and is found behind later ones cannot be stored
/// under its seq any more, and is not taken for stored either.
#[test]
fn with_lines_in_a_file_what_was_passed_over_becomes_a_dead_letter() {
    let mut site = Site::lines(Redis::start(Kind::Redis));
    let node = site.serving(&["--set", "writer_enabled=false"]);
    let told = post(&mut node.client(), 0..10);
    assert_eq!(node.stop().code(), Some(0));
    let kept = site.redis.keep_aof();
    let node = site.serving(&[]);
    drained(&node);
    assert_eq!(site.numbers(), told);
    assert_eq!(node.stop().code(), Some(0));

    // as if the fifth had been in another consumer's hands all the time
    let path = site.path().join(LINES);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.remove(4);
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    site.redis.kill();
    site.redis.put_back_aof(&kept);
    site.redis.restart();

    let node = site.serving(&["--set", "queue_redis_max_retries=2"]);
    drained(&node);
    let left: Vec<Numbered> = told.iter().copied().filter(|(_, n)| *n != 4).collect();
    assert_eq!(site.numbers(), left, "the others stand there once");
    let letters = site.dead_letters();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["seq"], told[4].0);
    assert_eq!(letters[0]["reason"]["code"], "out_of_order");
    let said = site.command(&["dlq", "retry", "--all"]);
    assert!(said.contains("put back: 1"), "{said}");
    drained(&node);
    assert_eq!(site.numbers().last().map(|(_, n)| *n), Some(4), "under a new seq");
}
