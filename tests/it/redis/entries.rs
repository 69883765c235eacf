//! Entries that hold several events: shared by leases, resolved or set aside in part, dead in the middle;
//! and what a start, a loss and other programs make of them.
//!
//! Attacks I2, I6, I7 and I18.

use replicon::queue::accounts::Counts;
use replicon::queue::conformance::batch;
use replicon::queue::file::dead::Filter;
use replicon::queue::redis::{Options, RedisQueue};
use replicon::queue::{DeadLetterError, DeadReason, Lease, LeaseLimit, Queue, Source};

use super::marks::{counted, lease, name, safe};
use super::queue::open;
use crate::support::redis::{Kind, Redis};

fn seqs(lease: &Lease) -> Vec<u64> {
    lease.events.iter().map(|event| event.seq.0).collect()
}

/// Leases and acks so many events, at most `at_once` together; their seqs.
async fn drain(queue: &RedisQueue, events: usize, at_once: usize) -> Vec<u64> {
    let mut came = Vec::new();
    while came.len() < events {
        let lease = lease(queue, at_once).await;
        came.extend(seqs(&lease));
        queue.ack(lease, &[]).await;
    }
    came
}

/// Entries in a stream; entries and events of ours, as they are counted beside it.
fn stands(server: &Redis, stream: &str) -> (u64, u64, u64) {
    let counts = format!("{stream}:counts");
    let counted = |field: &str| server.ask::<u64>(&["HGET", &counts, field]);
    (server.ask(&["XLEN", stream]), counted("entries"), counted("total"))
}

fn counts(queue: &RedisQueue, channel: &str) -> Counts {
    let mut channels = queue.stats().channels.into_iter();
    channels.find(|(of, _)| *of == Some(name(channel))).unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_an_entry_and_a_large_one_several() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let (server, dir) = (Redis::start(kind), tempfile::tempdir().unwrap());
        let queue = open(server.options(dir.path(), "cut")).await;
        let small = queue.append(batch("a", 0, 3)).await.unwrap();
        assert_eq!(stands(&server, "cut"), (1, 1, 3));
        let large = queue.append(batch("b", 0, 600)).await.unwrap();
        assert_eq!(stands(&server, "cut"), (4, 4, 603), "256, 256 and 88");
        let ids: Vec<(String, redis::Value)> = server.ask(&["XRANGE", "cut", "-", "+"]);
        let (first, from) = (small.first.0, large.first.0);
        let want = [first, from, from + 256, from + 512].map(|seq| format!("{seq}-0"));
        assert_eq!(ids.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), want);
        let all: Vec<u64> = (first..=small.last.0).chain(from..=large.last.0).collect();
        assert_eq!(drain(&queue, 603, 100).await, all);
        assert_eq!(stands(&server, "cut"), (0, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_leaves_with_the_last_of_its_events_and_a_start_before_that_gets_it_whole() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "shared")).await;
    let got = queue.append(batch("a", 0, 6)).await.unwrap();
    let (one, two) = (lease(&queue, 2).await, lease(&queue, 2).await);
    queue.ack(two, &[]).await;
    queue.ack(one, &[]).await;
    assert_eq!(stands(&server, "shared"), (1, 1, 6));
    assert_eq!((counts(&queue, "a").stored, counts(&queue, "a").queued), (4, 2));
    assert_eq!(queue.first_unacked().0, got.first.0 + 4);
    // a connection that breaks makes nothing of it come again
    let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    let next = loop {
        match queue.append(batch("a", 6, 1)).await {
            Ok(next) => break next,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    };
    let held = lease(&queue, 2).await;
    assert_eq!(seqs(&held), [got.first.0 + 4, got.last.0]);
    drop(queue);

    let queue = open(server.options(dir.path(), "shared")).await;
    assert_eq!(queue.first_unacked(), got.first);
    assert_eq!(counts(&queue, "a").recovered, 7);
    let all: Vec<u64> = (got.first.0..=got.last.0).chain([next.first.0]).collect();
    assert_eq!(drain(&queue, 7, 4).await, all);
    assert_eq!(stands(&server, "shared"), (0, 0, 0));
    assert_eq!((counts(&queue, "a").stored, counts(&queue, "a").queued), (7, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_entry_that_is_set_aside_in_part_the_rest_does_not_come_before_a_crash() {
    for crash in [false, true] {
        let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
        let mut queue = open(server.options(dir.path(), "part")).await;
        let a = queue.append(batch("a", 0, 6)).await.unwrap();
        let mut b = queue.append(batch("b", 0, 3)).await.unwrap();
        let first = lease(&queue, 2).await;
        queue.ack(first, &[]).await;
        let mut stuck = lease(&queue, 2).await;
        assert_eq!(seqs(&stuck), [a.first.0 + 2, a.first.0 + 3]);
        let theirs = stuck.events.iter().map(|event| event.seq).collect();
        queue.park(&mut stuck, &theirs, "its table is gone").await.unwrap();
        queue.ack(stuck, &[]).await;
        let others = drain(&queue, 3, 10).await;
        assert_eq!(others, (b.first.0..=b.last.0).collect::<Vec<_>>(), "the rest follows it");
        assert_eq!(stands(&server, "part"), (1, 1, 6));
        assert_eq!(safe(&queue, "a"), a.first.0 + 1);
        let mut from = a.first.0 + 2;
        if crash {
            drop(queue);
            queue = open(server.options(dir.path(), "part")).await;
            from = a.first.0;
            b = queue.append(batch("b", 3, 1)).await.unwrap();
            assert_eq!(drain(&queue, 1, 10).await, [b.first.0], "and nothing of it comes here");
        }
        let aside = Source::Parked(name("a"));
        let three = LeaseLimit { events: 3, bytes: 1 << 20 };
        let mut came = Vec::new();
        loop {
            let lease = queue.lease(&aside, three).await.unwrap();
            if lease.events.is_empty() {
                break;
            }
            came.extend(seqs(&lease));
            queue.ack(lease, &[]).await;
            assert!(safe(&queue, "a") >= *came.last().unwrap());
        }
        assert_eq!(came, (from..=a.last.0).collect::<Vec<_>>(), "crash: {crash}");
        assert_eq!(queue.stats().parked, []);
        assert_eq!(stands(&server, "part"), (0, 0, 0));
        assert_eq!((counts(&queue, "a").stored, counts(&queue, "a").queued), (6, 0));
        assert_eq!(safe(&queue, "a"), b.last.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_in_the_middle_of_an_entry_is_known_as_long_as_the_entry_stands() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    // room for one letter, and not for two
    let options = Options { dead_letter_max_bytes: 400, ..server.options(dir.path(), "middle") };
    let queue = open(options.clone()).await;
    let got = queue.append(batch("a", 0, 5)).await.unwrap();
    let held = lease(&queue, 5).await;
    let why = DeadReason { code: "x".to_owned(), text: "t".repeat(200) };
    let (middle, other) = (held.events[2].clone(), held.events[3].clone());
    queue.dead_letter(&middle, &why).await.unwrap();
    assert_eq!(stands(&server, "middle"), (1, 1, 5));
    assert_eq!(queue.discard_dead(&Filter::default()).await, Ok(1));
    // what is settled makes room, but not while its event may come again
    let full = queue.dead_letter(&other, &why).await;
    assert!(matches!(full, Err(DeadLetterError::Full { .. })), "{full:?}");
    drop(queue);

    let queue = open(options).await;
    assert!(queue.is_dead(middle.seq) && !queue.is_dead(other.seq));
    let again = lease(&queue, 5).await;
    assert_eq!(seqs(&again), (got.first.0..=got.last.0).collect::<Vec<_>>());
    queue.ack(again, &[middle.seq]).await;
    let c = counts(&queue, "a");
    assert_eq!((c.recovered, c.stored, c.dead_lettered, c.queued), (5, 4, 1, 0), "{c:?}");
    assert_eq!(stands(&server, "middle"), (0, 0, 0));
    queue.append(batch("a", 5, 1)).await.unwrap();
    let last = lease(&queue, 1).await;
    queue.dead_letter(&last.events[0], &why).await.unwrap();
    assert_eq!(server.ask::<u64>(&["HLEN", "middle:dlq:states"]), 1, "the first made room");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_entry_of_another_program_comes_between_the_events_of_one() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let (server, dir) = (Redis::start(kind), tempfile::tempdir().unwrap());
        let queue = open(server.options(dir.path(), "between")).await;
        let got = queue.append(batch("a", 0, 10)).await.unwrap();
        for seq in [got.first.0 + 5, got.last.0] {
            let id = format!("{seq}-0");
            let add = ["XADD", "between", id.as_str(), "h", "1 r 7 a", "p", "{\"n\":99}"];
            assert!(server.try_ask::<String>(&add).is_err(), "{seq} of {got:?} is taken");
        }
        let behind = format!("{}-1", got.last.0);
        let _: String = server.ask(&["XADD", "between", &behind, "who", "another"]);
        let next = queue.append(batch("a", 10, 3)).await.unwrap();
        let all: Vec<u64> = (got.first.0..=got.last.0).chain(next.first.0..=next.last.0).collect();
        assert_eq!(drain(&queue, 13, 4).await, all);
        assert_eq!(server.ask::<u64>(&["XLEN", "between:dlq"]), 1);
        assert_eq!(stands(&server, "between"), (0, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_entry_that_was_stored_in_part_redis_loses_no_more_than_nobody_holds() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "rest")).await;
    let got = queue.append(batch("a", 0, 10)).await.unwrap();
    queue.append(batch("a", 10, 10)).await.unwrap();
    let first = drain(&queue, 4, 4).await;
    assert_eq!(first[0], got.first.0);
    let _: String = server.ask(&["FLUSHALL"]);
    // the others of the first entry were read with it
    counted(&queue, "a", |counts| counts.lost == 10 && counts.queued == 6).await;
    let rest = drain(&queue, 6, 10).await;
    assert_eq!(rest, (got.first.0 + 4..=got.last.0).collect::<Vec<_>>());
    let c = counts(&queue, "a");
    assert_eq!((c.accepted, c.stored, c.lost, c.queued), (20, 10, 10, 0), "{c:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_of_an_entry_comes_again_with_an_older_state_and_is_counted() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "older")).await;
    let got = queue.append(batch("a", 0, 10)).await.unwrap();
    drain(&queue, 4, 4).await;
    let kept = server.keep_aof();
    queue.append(batch("b", 0, 1)).await.unwrap();
    server.kill();
    server.put_back_aof(&kept);
    server.restart();
    counted(&queue, "b", |counts| counts.lost == 1).await;
    let c = counts(&queue, "a");
    assert_eq!((c.recovered, c.stored, c.lost, c.queued), (4, 4, 0, 10), "{c:?}");
    assert_eq!(drain(&queue, 10, 3).await, (got.first.0..=got.last.0).collect::<Vec<_>>());
    let c = counts(&queue, "a");
    assert_eq!((c.accepted, c.recovered, c.stored, c.queued), (10, 4, 14, 0), "{c:?}");
    assert_eq!(stands(&server, "older"), (0, 0, 0));
}
