//! What Redis loses is seen, counted, told once and taken out of the accounts; what is left goes on, and
//! no identity is used again.
//!
//! Attacks I3, I16 and I18.

use std::time::Duration;

use replicon::queue::conformance::batch;
use replicon::queue::{LeaseLimit, Queue, Source};

use super::queue::open;
use super::{Numbered, STREAM, Site, count, drained, each_kind, post, ready_within};
use crate::support::ledger::check_accounts;
use crate::support::redis::{Kind, Redis};
use crate::support::{Node, wait_until};

/// Within this time events are taken again.
const BACK: Duration = Duration::from_secs(5);
const IDLE: [&str; 2] = ["--set", "writer_enabled=false"];

/// Waits until so many are counted as lost; the one report of it.
fn reported(node: &Node, lost: u64) -> String {
    wait_until(Duration::from_secs(10), "a loss", || match count(node, "lost_total") {
        n if n >= lost => Ok(()),
        n => Err(format!("{n} are lost so far")),
    });
    assert_eq!(count(node, "lost_total"), lost);
    let damage = node.health()["damage"].as_array().unwrap().clone();
    assert_eq!(damage.len(), 1, "{damage:?}");
    let metrics = node.get("/metrics").body;
    check_accounts(&metrics);
    damage[0].as_str().unwrap().to_owned()
}

fn exactly(told: &[Numbered]) -> String {
    let (first, last) = (told[0].0, told[told.len() - 1].0);
    format!("lost {} events between seq {first} and {last}", told.len())
}

#[test]
fn a_flush_under_a_running_node_is_told_with_range_and_number_and_it_goes_on() {
    each_kind(|redis| {
        let site = Site::sqlite(redis);
        let node = site.serving(&IDLE);
        let mut client = node.client();
        let mut told = post(&mut client, 0..700);
        told.extend(post(&mut client, 700..1000));
        let _: String = site.redis.ask(&["FLUSHALL"]);
        let report = reported(&node, 1000);
        assert!(report.contains(&exactly(&told)), "{report}");
        let lost = "replicon_events_lost_total{channel=\"events_raw\"} 1000\n";
        assert!(node.get("/metrics").body.contains(lost));
        assert!(
            node.log().contains("events are lost: Redis has lost 1000 events"),
            "{}",
            node.log()
        );
        ready_within(&node, BACK);
        let next = post(&mut client, 1000..1010);
        assert!(next[0].0 > told[999].0, "no identity is used again");
        assert_eq!(node.health()["status"], "degraded", "red until somebody has seen it");
        assert_eq!(node.stop().code(), Some(0));

        let node = site.serving(&[]);
        drained(&node);
        assert_eq!(site.numbers(), next, "what came after it is stored, once");
        let said = site.command(&["log", "repair", "--acknowledge"]);
        assert!(said.contains("acknowledged: 1 report"), "{said}");
        assert_eq!(node.health()["status"], "ok", "{}", node.health());
    });
}

#[test]
fn an_older_state_put_back_under_a_running_node_loses_exactly_what_came_after_it() {
    each_kind(|redis| {
        let mut site = Site::sqlite(redis);
        let node = site.serving(&IDLE);
        let mut client = node.client();
        let kept_events = post(&mut client, 0..200);
        let kept = site.redis.keep_aof();
        let gone = post(&mut client, 200..250);
        site.redis.kill();
        site.redis.put_back_aof(&kept);
        site.redis.restart();
        ready_within(&node, BACK);
        let report = reported(&node, 50);
        assert!(report.contains(&exactly(&gone)), "{report}");
        // the loss is told before appends are taken again
        ready_within(&node, BACK);
        let next = post(&mut client, 250..260);
        assert!(next[0].0 > gone[49].0);
        assert_eq!(count(&node, "queue_depth"), 210);
        assert_eq!(node.stop().code(), Some(0));
        let node = site.serving(&[]);
        drained(&node);
        let want: Vec<Numbered> = kept_events.into_iter().chain(next).collect();
        assert_eq!(site.numbers(), want);
    });
}

#[test]
fn what_was_stored_and_comes_back_with_an_older_state_is_stored_once() {
    let mut site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&IDLE);
    let told = post(&mut node.client(), 0..300);
    let kept = site.redis.keep_aof();
    assert_eq!(node.stop().code(), Some(0));
    let node = site.serving(&[]);
    drained(&node);
    let empty = || {
        let left: u64 = site.redis.ask(&["XLEN", STREAM]);
        if left == 0 { Ok(()) } else { Err(format!("{left} entries")) }
    };
    wait_until(BACK, "a stream that holds nothing any more", empty);
    site.redis.kill();
    site.redis.put_back_aof(&kept);
    site.redis.restart();
    ready_within(&node, Duration::from_secs(40));
    // found by the start, and again now
    wait_until(BACK, "what came back", || {
        let back = count(&node, "recovered_total");
        if back == 600 { Ok(()) } else { Err(format!("{back} events")) }
    });
    drained(&node);
    assert_eq!((count(&node, "lost_total"), count(&node, "dead_letter_total")), (0, 0));
    assert_eq!(site.numbers(), told);
    wait_until(BACK, "a stream that holds nothing any more", || {
        let left: u64 = site.redis.ask(&["XLEN", STREAM]);
        if left == 0 { Ok(()) } else { Err(format!("{left} entries")) }
    });
}

#[test]
fn a_loss_while_the_node_is_down_is_bounded_so_marked_and_told_once() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&IDLE);
    let told = post(&mut node.client(), 0..30);
    assert_eq!(node.stop().code(), Some(0));
    let _: String = site.redis.ask(&["FLUSHALL"]);
    let node = site.serving(&IDLE);
    let report = reported(&node, 30);
    assert!(report.contains("lost at most 30 events between seq 1 and"), "{report}");
    let unknown = "replicon_events_lost_total{channel=\"\"} 30\n";
    assert!(node.get("/metrics").body.contains(unknown));
    let next = post(&mut node.client(), 30..31);
    assert!(next[0].0 > told[29].0);
    assert_eq!(node.stop().code(), Some(0));
    let node = site.serving(&[]);
    assert_eq!(count(&node, "lost_total"), 0, "told once");
    assert_eq!(node.health()["damage"].as_array().map(Vec::len), Some(1), "and still red");
    drained(&node);
    assert_eq!(site.numbers(), next);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_hand_when_redis_loses_everything_is_stored_and_not_lost() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "hand")).await;
    for from in (0..20).step_by(5) {
        queue.append(batch("a", from, 5)).await.unwrap();
    }
    let limit = LeaseLimit { events: 5, bytes: 1 << 20 };
    let lease = queue.lease(&Source::Main, limit).await.unwrap();
    let _: String = server.ask(&["FLUSHALL"]);
    for _ in 0..2000 {
        if queue.stats().channels[0].1.lost > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let counts = queue.stats().channels[0].1;
    assert_eq!((counts.lost, counts.queued), (15, 5), "{counts:?}");
    queue.ack(lease, &[]).await;
    let got = loop {
        match queue.append(batch("a", 20, 1)).await {
            Ok(got) => break got,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let lease = queue.lease(&Source::Main, limit).await.unwrap();
    assert_eq!(lease.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [got.first]);
    queue.ack(lease, &[]).await;
    let counts = queue.stats().channels[0].1;
    assert_eq!((counts.accepted, counts.stored, counts.queued), (21, 6, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_entries_that_somebody_trims_are_counted_as_lost() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "trim")).await;
    for from in (0..100).step_by(10) {
        queue.append(batch("a", from, 10)).await.unwrap();
    }
    assert_eq!(server.ask::<u64>(&["XTRIM", "trim", "MAXLEN", "=", "6"]), 4);
    for _ in 0..2000 {
        if queue.stats().channels[0].1.lost > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let counts = queue.stats().channels[0].1;
    assert_eq!((counts.lost, counts.queued), (40, 60), "{counts:?}");
    let limit = LeaseLimit { events: 1000, bytes: 1 << 20 };
    let lease = queue.lease(&Source::Main, limit).await.unwrap();
    assert_eq!(lease.events.len(), 60);
    queue.ack(lease, &[]).await;
    assert_eq!(server.ask::<u64>(&["XLEN", "trim"]), 0);
    assert_eq!(server.ask::<u64>(&["HGET", "trim:counts", "entries"]), 0);
}
