//! How far peers may be served from a queue on Redis: never at or above an event that is given out and
//! not resolved, whatever Redis does, and up to the last seq when all of them are.
//!
//! Attacks I9. The random work of the queue's own suite asks the same at every step.

use std::time::Duration;

use replicon::event::{ChannelName, Name, Seq};
use replicon::queue::accounts::Counts;
use replicon::queue::conformance::batch;
use replicon::queue::redis::{Options, RedisQueue};
use replicon::queue::{AppendError, Appended, Lease, LeaseLimit, Queue, Source};

use super::queue::open;
use crate::support::redis::{Kind, Redis};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(30);

pub fn name(channel: &str) -> ChannelName {
    Name::new(channel).unwrap()
}

/// S of a channel.
pub fn safe(queue: &RedisQueue, channel: &str) -> u64 {
    queue.marks().safe(&name(channel)).0
}

/// The next events, at most so many.
pub async fn lease(queue: &RedisQueue, events: usize) -> Lease {
    let limit = LeaseLimit { events, bytes: 1 << 20 };
    let taken = tokio::time::timeout(SOON, queue.lease(&Source::Main, limit)).await;
    taken.expect("nothing comes").unwrap()
}

/// Leases and acks so many events.
async fn drain(queue: &RedisQueue, mut events: usize) {
    while events > 0 {
        let lease = lease(queue, events).await;
        events -= lease.events.len();
        queue.ack(lease, &[]).await;
    }
}

/// Appends as soon as Redis takes it.
pub async fn append(queue: &RedisQueue, channel: &str, events: u64) -> Appended {
    for _ in 0..3000 {
        match queue.append(batch(channel, 0, events)).await {
            Ok(got) => return got,
            Err(AppendError::Unavailable { .. }) => {}
            Err(e) => panic!("{e}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("appends are refused: {:?}", queue.stats().refusing);
}

/// Waits until the counts of a channel are so.
pub async fn counted(queue: &RedisQueue, channel: &str, so: impl Fn(&Counts) -> bool) {
    let mut last = None;
    for _ in 0..6000 {
        let channels = queue.stats().channels;
        last = channels.into_iter().find(|(of, _)| *of == Some(name(channel)));
        if last.as_ref().is_some_and(|(_, counts)| so(counts)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the counts of {channel} are {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s_lies_below_what_is_open_and_follows_when_it_is_stored() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let (server, dir) = (Redis::start(kind), tempfile::tempdir().unwrap());
        let queue = open(server.options(dir.path(), "follows")).await;
        let a = append(&queue, "a", 4).await;
        assert_eq!((safe(&queue, "a"), safe(&queue, "idle")), (a.first.0 - 1, a.last.0));
        let (one, two) = (lease(&queue, 2).await, lease(&queue, 2).await);
        queue.ack(two, &[]).await;
        assert_eq!(safe(&queue, "a"), a.first.0 - 1, "the first two are not stored");
        queue.ack(one, &[]).await;
        assert_eq!(safe(&queue, "a"), a.last.0);
        let b = append(&queue, "b", 1).await;
        assert_eq!((safe(&queue, "a"), safe(&queue, "b")), (b.last.0, b.first.0 - 1));
        let asked = queue.marks().changes(None).number;
        drain(&queue, 1).await;
        assert_eq!(queue.marks().changes(Some(asked)).channels, Some(vec![name("b")]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_shows_its_backlog_as_open_and_knows_what_was_shown_before() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "starts")).await;
    append(&queue, "b", 2).await;
    drain(&queue, 2).await;
    let a = append(&queue, "a", 3).await;
    assert_eq!(safe(&queue, "b"), a.last.0);
    // without a word
    drop(queue);
    let queue = open(server.options(dir.path(), "starts")).await;
    assert_eq!((safe(&queue, "a"), safe(&queue, "b")), (a.first.0 - 1, a.last.0));
    let known = queue.marks().with(|marks| marks.may_have_shown(a.last));
    let denied = queue.marks().with(|marks| !marks.may_have_shown(a.last.next()));
    assert!(known && denied, "a peer stands where this node's last start had shown it");
    drain(&queue, 3).await;
    assert_eq!(safe(&queue, "a"), a.last.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_its_redis_is_met_a_node_shows_nothing_and_doubts_nobody() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "late")).await;
    let a = append(&queue, "a", 3).await;
    queue.close().await;
    drop(queue);
    server.stop_orderly();
    let queue = open(server.options(dir.path(), "late")).await;
    assert_eq!((safe(&queue, "a"), safe(&queue, "idle")), (0, 0));
    assert!(queue.marks().with(|marks| marks.may_have_shown(a.last)), "nobody knows yet");
    server.restart();
    tokio::time::timeout(SOON, queue.met()).await.expect("it is met");
    assert_eq!((safe(&queue, "a"), safe(&queue, "idle")), (a.first.0 - 1, a.last.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_answer_is_lost_is_not_passed_before_it_is_decided() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let timeout = Duration::from_millis(700);
    let queue = open(Options { timeout, ..server.options(dir.path(), "open") }).await;
    let before = append(&queue, "a", 1).await;
    drain(&queue, 1).await;
    server.pause();
    let answer = queue.append(batch("a", 1, 3)).await;
    assert!(matches!(answer, Err(AppendError::Doubt { .. })), "{answer:?}");
    for channel in ["a", "idle"] {
        assert_eq!(safe(&queue, channel), before.last.0, "{channel}: it may stand there");
    }
    server.resume();
    let lease = lease(&queue, 3).await;
    let (first, last) = (lease.events[0].seq.0, lease.events[2].seq.0);
    assert_eq!((safe(&queue, "a"), safe(&queue, "idle")), (first - 1, last));
    queue.ack(lease, &[]).await;
    assert_eq!(safe(&queue, "a"), last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_set_aside_holds_back_its_own_s_alone() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "aside")).await;
    let a = append(&queue, "a", 3).await;
    let b = append(&queue, "b", 2).await;
    let mut stuck = lease(&queue, 10).await;
    let theirs = stuck.events.iter().filter(|e| e.channel == name("a")).map(|e| e.seq).collect();
    queue.park(&mut stuck, &theirs, "its table is gone").await.unwrap();
    queue.ack(stuck, &[]).await;
    assert_eq!((safe(&queue, "a"), safe(&queue, "b")), (a.first.0 - 1, b.last.0));
    let more = append(&queue, "a", 1).await;
    append(&queue, "b", 1).await;
    drain(&queue, 1).await;
    assert_eq!(safe(&queue, "a"), a.first.0 - 1, "what follows it waits, too");
    drop(queue);

    let queue = open(server.options(dir.path(), "aside")).await;
    let b = append(&queue, "b", 1).await;
    drain(&queue, 1).await;
    assert_eq!((safe(&queue, "a"), safe(&queue, "b")), (a.first.0 - 1, b.last.0));
    let (aside, two) = (Source::Parked(name("a")), LeaseLimit { events: 2, bytes: 1 << 20 });
    let first = queue.lease(&aside, two).await.unwrap();
    let mut have = first.events.len();
    while have < 4 {
        let next = queue.lease(&aside, two).await.unwrap();
        assert!(!next.events.is_empty(), "{have} of 4 came");
        have += next.events.len();
        queue.ack(next, &[]).await;
    }
    assert_eq!(safe(&queue, "a"), a.first.0 - 1, "the first ones are in hand");
    queue.ack(first, &[]).await;
    assert_eq!(safe(&queue, "a"), more.last.0);
    while !queue.stats().parked.is_empty() {
        assert_eq!(queue.lease(&aside, two).await.unwrap().events, []);
    }
    assert_eq!(safe(&queue, "a"), b.last.0, "it has drained");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_loses_is_passed_when_it_was_told_and_what_is_in_hand_is_not() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "flush")).await;
    let a = append(&queue, "a", 4).await;
    append(&queue, "a", 6).await;
    let held = lease(&queue, 4).await;
    let _: String = server.ask(&["FLUSHALL"]);
    counted(&queue, "a", |counts| counts.lost == 6).await;
    let b = append(&queue, "b", 1).await;
    let next = lease(&queue, 10).await;
    assert_eq!(next.events[0].seq, b.first, "nothing else is there");
    assert_eq!((safe(&queue, "a"), safe(&queue, "b")), (a.first.0 - 1, b.first.0 - 1));
    queue.ack(held, &[]).await;
    assert_eq!(safe(&queue, "a"), b.last.0, "six are lost, and told");
    queue.ack(next, &[]).await;
    assert_eq!(safe(&queue, "b"), b.last.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_and_comes_back_with_an_older_state_does_not_make_s_fall() {
    let (mut server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "back")).await;
    let a = append(&queue, "a", 5).await;
    let kept = server.keep_aof();
    drain(&queue, 5).await;
    let b = append(&queue, "b", 1).await;
    assert_eq!(safe(&queue, "a"), b.last.0);
    server.kill();
    server.put_back_aof(&kept);
    server.restart();
    counted(&queue, "b", |counts| counts.lost == 1).await;
    let again = lease(&queue, 5).await;
    assert_eq!(again.events[0].seq, a.first, "they are in the stream again");
    assert_eq!(safe(&queue, "a"), b.last.0, "peers were served up to there");
    assert_eq!(safe(&queue, "b"), b.first.0 - 1, "the loss is passed at the end of the stream");
    queue.ack(again, &[]).await;
    let c = append(&queue, "c", 1).await;
    drain(&queue, 1).await;
    for channel in ["a", "b", "c"] {
        assert_eq!(safe(&queue, channel), c.last.0, "{channel}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_loss_while_it_was_down_a_node_still_knows_how_far_it_had_shown() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "known")).await;
    let a = append(&queue, "a", 3).await;
    drain(&queue, 3).await;
    queue.close().await;
    drop(queue);
    let _: String = server.ask(&["FLUSHALL"]);
    // the second of them finds no witness that says more than the stream
    for _ in 0..2 {
        let queue = open(server.options(dir.path(), "known")).await;
        assert_eq!(safe(&queue, "a"), a.last.0);
        assert!(queue.marks().with(|marks| marks.may_have_shown(a.last)));
        assert!(!queue.marks().with(|marks| marks.may_have_shown(Seq(a.last.0 + 1))));
        queue.close().await;
    }
}
