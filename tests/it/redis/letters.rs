//! Dead letters that Redis goes back over, as one that syncs every second may: kept again where the
//! event may still come, reported where nothing of it is left, and never untold.
//!
//! Attacks I2 and I3, and S: an event that peers were shown as dead is stored by nobody.

use std::time::Duration;

use replicon::event::Event;
use replicon::queue::conformance::batch;
use replicon::queue::file::dead::Filter;
use replicon::queue::redis::{Options, RedisQueue};
use replicon::queue::{DeadReason, Lease, LeaseLimit, Queue, Source};
use tempfile::TempDir;

use super::marks::{append, counted, lease, name, safe};
use super::queue::open;
use crate::support::redis::{Kind, Redis};

fn why() -> DeadReason {
    DeadReason { code: "23514".to_owned(), text: "a check refused it".to_owned() }
}

/// An ack that Redis does not hear waits no longer than this for it.
fn impatient(server: &Redis, dir: &TempDir) -> Options {
    Options { timeout: Duration::from_millis(300), ..server.options(dir.path(), "letters") }
}

/// Kills the server, and starts it on what it had then.
async fn go_back(server: &mut Redis, kept: &TempDir, queue: &RedisQueue) {
    server.kill();
    server.put_back_aof(kept);
    server.restart();
    // it takes something again, on a new connection
    append(queue, "other", 1).await;
}

/// Seq, code and text of each letter.
fn letters(server: &Redis) -> Vec<(u64, String, String)> {
    type Letter = (String, Vec<(String, String)>);
    let all: Vec<Letter> = server.ask(&["XRANGE", "letters:dlq", "-", "+"]);
    let read = |(_, fields): Letter| {
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).unwrap().1.clone();
        (field("seq").parse().unwrap(), field("code"), field("text"))
    };
    all.into_iter().map(read).collect()
}

fn the_letter(of: &Event) -> Vec<(u64, String, String)> {
    vec![(of.seq.0, why().code, why().text)]
}

/// Everything but the event that [`go_back`] appends has left the queue, and nothing was lost.
async fn all_resolved(server: &Redis, queue: &RedisQueue, stored: u64, dead: u64) {
    counted(queue, "a", |c| c.queued == 0 && c.lost == 0).await;
    counted(queue, "a", |c| (c.stored, c.dead_lettered) == (stored, dead)).await;
    assert_eq!(queue.stats().damage, Vec::<String>::new());
    let other = lease(queue, 10).await;
    assert_eq!((other.events.len(), other.events[0].channel.as_str()), (1, "other"));
    queue.ack(other, &[]).await;
    assert_eq!(server.ask::<u64>(&["XLEN", "letters"]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_event_in_hand_it_is_kept_again_before_its_entry_leaves() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(impatient(&server, &dir)).await;
    queue.append(batch("a", 0, 5)).await.unwrap();
    let held = lease(&queue, 5).await;
    let bad = held.events[2].clone();
    let kept = server.keep_aof();
    queue.dead_letter(&bad, &why()).await.unwrap();
    assert_eq!(letters(&server), the_letter(&bad));
    go_back(&mut server, &kept, &queue).await;
    assert_eq!(letters(&server), []);
    queue.ack(held, &[bad.seq]).await;
    assert_eq!(letters(&server), the_letter(&bad));
    assert_eq!(queue.count_dead(&Filter::default()).await, Ok(1));
    all_resolved(&server, &queue, 4, 1).await;
}

/// It had its room: what has taken that since keeps nobody from ending a lease.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_event_in_hand_it_is_kept_again_where_there_is_no_room_any_more() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let room_for_one = Options { dead_letter_max_bytes: 400, ..impatient(&server, &dir) };
    let queue = open(room_for_one).await;
    queue.append(batch("a", 0, 2)).await.unwrap();
    let (one, two) = (lease(&queue, 1).await, lease(&queue, 1).await);
    let (bad, worse) = (one.events[0].clone(), two.events[0].clone());
    let long = DeadReason { text: "t".repeat(200), ..why() };
    let kept = server.keep_aof();
    queue.dead_letter(&bad, &long).await.unwrap();
    go_back(&mut server, &kept, &queue).await;
    queue.dead_letter(&worse, &long).await.unwrap();
    let acked = tokio::time::timeout(Duration::from_secs(20), queue.ack(one, &[bad.seq])).await;
    acked.expect("it ends");
    queue.ack(two, &[worse.seq]).await;
    let seqs: Vec<u64> = letters(&server).into_iter().map(|(seq, ..)| seq).collect();
    assert_eq!(seqs, [worse.seq.0, bad.seq.0]);
    all_resolved(&server, &queue, 0, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_event_whose_entry_stands_it_is_kept_again_and_the_event_is_not_tried() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(impatient(&server, &dir)).await;
    let got = queue.append(batch("a", 0, 5)).await.unwrap();
    let (first, rest) = (lease(&queue, 3).await, lease(&queue, 2).await);
    let bad = first.events[1].clone();
    let kept = server.keep_aof();
    queue.dead_letter(&bad, &why()).await.unwrap();
    queue.ack(first, &[bad.seq]).await;
    let shown = safe(&queue, "a");
    assert!(shown >= bad.seq.0 && shown < rest.events[0].seq.0);
    go_back(&mut server, &kept, &queue).await;
    // a writer takes it for dead, untried: peers were shown that nothing comes of it
    assert!(queue.is_dead(bad.seq));
    let again = lease(&queue, 3).await;
    assert_eq!(again.events[0].seq, got.first);
    queue.ack(again, &[bad.seq]).await;
    assert_eq!(letters(&server), the_letter(&bad));
    queue.ack(rest, &[]).await;
    all_resolved(&server, &queue, 6, 2).await;
    counted(&queue, "a", |c| c.recovered == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_event_that_waits_to_leave_it_is_kept_again() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(impatient(&server, &dir)).await;
    queue.append(batch("a", 0, 3)).await.unwrap();
    let held = lease(&queue, 3).await;
    let bad = held.events[0].clone();
    let kept = server.keep_aof();
    queue.dead_letter(&bad, &why()).await.unwrap();
    server.kill();
    queue.ack(held, &[bad.seq]).await;
    go_back(&mut server, &kept, &queue).await;
    let again = lease(&queue, 3).await;
    assert!(queue.is_dead(bad.seq) && again.events[0].seq == bad.seq);
    queue.ack(again, &[bad.seq]).await;
    assert_eq!(letters(&server), the_letter(&bad));
    all_resolved(&server, &queue, 4, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_which_nothing_is_left_is_reported_once() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(impatient(&server, &dir)).await;
    let kept = server.keep_aof();
    queue.append(batch("a", 0, 2)).await.unwrap();
    let held = lease(&queue, 2).await;
    let bad = held.events[0].clone();
    queue.dead_letter(&bad, &why()).await.unwrap();
    queue.ack(held, &[bad.seq]).await;
    go_back(&mut server, &kept, &queue).await;
    let damage = queue.stats().damage;
    assert!(matches!(&damage[..], [one] if one.ends_with("1 dead letters")), "{damage:?}");
    assert!(!queue.is_dead(bad.seq));
    let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    append(&queue, "other", 1).await;
    assert_eq!(queue.stats().damage, damage);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_cleared_away_is_no_loss() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let room_for_one = Options { dead_letter_max_bytes: 400, ..impatient(&server, &dir) };
    let queue = open(room_for_one).await;
    let long = DeadReason { text: "t".repeat(200), ..why() };
    for discarded in [true, false] {
        queue.append(batch("a", 0, 1)).await.unwrap();
        let held = lease(&queue, 1).await;
        let bad = held.events[0].clone();
        // the second finds room when the first is cleared away
        queue.dead_letter(&bad, &long).await.unwrap();
        queue.ack(held, &[bad.seq]).await;
        if discarded {
            assert_eq!(queue.discard_dead(&Filter::default()).await, Ok(1));
        }
    }
    assert_eq!(letters(&server).len(), 1);
    let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    append(&queue, "other", 1).await;
    assert_eq!(queue.stats().damage, Vec::<String>::new());
}

/// Beside a channel that is set aside, entries that wait to leave stand in the stream and are no longer
/// queued.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_behind_entries_of_a_channel_that_wait_to_leave_is_told() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(impatient(&server, &dir)).await;
    for n in 0..2 {
        queue.append(batch("a", 4 * n, 4)).await.unwrap();
    }
    let mut stuck = lease(&queue, 8).await;
    let theirs = stuck.events.iter().map(|event| event.seq).collect();
    queue.park(&mut stuck, &theirs, "its table is gone").await.unwrap();
    queue.ack(stuck, &[]).await;
    let kept = server.keep_aof();
    queue.append(batch("a", 8, 4)).await.unwrap();
    let one = aside(&queue).await;
    let two = aside(&queue).await;
    server.kill();
    queue.ack(two, &[]).await;
    go_back(&mut server, &kept, &queue).await;
    counted(&queue, "a", |c| c.lost == 4 && c.queued == 8).await;
    queue.ack(one, &[]).await;
    queue.ack(aside(&queue).await, &[]).await;
    counted(&queue, "a", |c| (c.stored, c.lost, c.queued) == (12, 4, 0)).await;
}

/// Four events of a channel that is set aside.
async fn aside(queue: &RedisQueue) -> Lease {
    let four = LeaseLimit { events: 4, bytes: 1 << 20 };
    for _ in 0..500 {
        let lease = queue.lease(&Source::Parked(name("a")), four).await.unwrap();
        if !lease.events.is_empty() {
            assert_eq!(lease.events.len(), 4);
            return lease;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing of it comes");
}

/// The entries of a channel that has drained are its consumer's again, where Redis went back that far.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_drained_and_is_set_aside_again_is_drained_again() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(impatient(&server, &dir)).await;
    let got = queue.append(batch("a", 0, 4)).await.unwrap();
    let mut stuck = lease(&queue, 4).await;
    let theirs = stuck.events.iter().map(|event| event.seq).collect();
    queue.park(&mut stuck, &theirs, "its table is gone").await.unwrap();
    queue.ack(stuck, &[]).await;
    let kept = server.keep_aof();
    queue.ack(aside(&queue).await, &[]).await;
    while !queue.stats().parked.is_empty() {
        let four = LeaseLimit { events: 4, bytes: 1 << 20 };
        let rest = queue.lease(&Source::Parked(name("a")), four).await.unwrap();
        assert_eq!(rest.events, []);
    }
    assert_eq!(safe(&queue, "a"), got.last.0);
    go_back(&mut server, &kept, &queue).await;
    assert_eq!(queue.stats().parked.len(), 1);
    let again = aside(&queue).await;
    assert_eq!(again.events[0].seq, got.first);
    assert!(safe(&queue, "a") >= got.last.0, "peers were shown it");
    queue.ack(again, &[]).await;
    all_resolved(&server, &queue, 8, 0).await;
}
