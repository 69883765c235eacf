//! A Redis that is away, hangs, or is not there at all: nothing is half accepted, nothing is lost, and
//! it goes on by itself.
//!
//! Attacks I4, I6 and I17.

use std::time::{Duration, Instant};

use super::{Database, Site, count, drained, post, ready_within};
use crate::support::redis::{Kind, Redis};
use crate::support::{Client, KEY, wait_until};

#[test]
fn a_node_starts_without_its_redis_refuses_with_a_word_and_serves_when_it_comes() {
    let mut site = Site::sqlite(Redis::start(Kind::Redis));
    site.redis.stop_orderly();
    let node = site.start(&[]);
    let answer = node.post("{\"n\":1}");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_ne!(answer.json()["stored"], "unknown", "{}", answer.body);
    assert!(answer.body.contains("Redis at "), "{}", answer.body);
    site.redis.restart();
    ready_within(&node, Duration::from_secs(10));
    let told = post(&mut node.client(), 0..3);
    drained(&node);
    assert_eq!(site.numbers(), told);
}

#[test]
fn a_redis_that_hangs_leaves_a_request_open_for_its_timeout_and_then_decides_it_whole() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&["--set", "queue_redis_timeout_ms=700"]);
    let mut told = post(&mut node.client(), 0..5);
    site.redis.pause();
    let body: Vec<String> = (5..105).map(|n| format!("{{\"n\":{n}}}")).collect();
    let body = format!("[{}]", body.join(","));
    let began = Instant::now();
    let mut client = Client::connect(&node.addr).unwrap();
    let answer = client.post("events_raw", KEY, body.as_bytes()).unwrap();
    let took = began.elapsed();
    assert_eq!(
        (answer.status, &answer.json()["stored"]),
        (503, &"unknown".into()),
        "{}",
        answer.body
    );
    assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(4), "{took:?}");
    // while it is away, what comes is refused at once, and certainly not stored
    let refused = wait_until(Duration::from_secs(10), "a refusal", || {
        let answer = node.post("{\"n\":999}");
        let certain = answer.status == 503 && answer.json()["stored"] != "unknown";
        if certain { Ok(answer.body) } else { Err(answer.body) }
    });
    assert!(refused.contains("Redis at "), "{refused}");
    site.redis.resume();
    ready_within(&node, Duration::from_secs(10));
    told.extend(post(&mut node.client(), 200..203));
    drained(&node);
    let stored = site.numbers();
    let open: Vec<i64> = stored.iter().map(|(_, n)| *n).filter(|n| (5..105).contains(n)).collect();
    assert!(open.is_empty() || open == (5..105).collect::<Vec<_>>(), "half of it: {open:?}");
    assert!(stored.iter().all(|(_, n)| *n != 999), "it was refused");
    for (seq, n) in told {
        assert!(stored.contains(&(seq, n)), "{n} was accepted as {seq}");
    }
    assert_eq!(count(&node, "dead_letter_total"), 0);
}

#[test]
fn an_outage_of_the_storage_counts_no_attempt_and_gives_nothing_up() {
    let mut site = Site::postgres(Redis::start(Kind::Redis));
    let node = site.serving(&["--set", "queue_redis_max_retries=1"]);
    let mut told = post(&mut node.client(), 0..10);
    drained(&node);
    let Database::Postgres(database) = &mut site.database else { panic!("another database") };
    database.kill();
    for from in (10..110).step_by(10) {
        told.extend(post(&mut node.client(), from..from + 10));
    }
    wait_until(Duration::from_secs(30), "trouble with the storage", || {
        let health = node.health();
        let said = health["ingest"]["last_error"].as_str().map(str::to_owned);
        said.ok_or_else(|| health.to_string())
    });
    let tried: u64 = site.redis.ask(&["EXISTS", "replicon:ingest:tries"]);
    assert_eq!(tried, 0, "an outage counts nothing");
    let Database::Postgres(database) = &mut site.database else { panic!("another database") };
    database.restart();
    drained(&node);
    assert_eq!((count(&node, "dead_letter_total"), count(&node, "lost_total")), (0, 0));
    assert_eq!(site.numbers(), told);
}

/// At its `maxmemory` a server takes nothing new; what it holds drains, and makes room.
#[test]
fn a_full_redis_refuses_appends_and_still_drains() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&["--set", "writer_enabled=false"]);
    let told = post(&mut node.client(), 0..500);
    assert_eq!(node.stop().code(), Some(0));
    let _: String = site.redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let _: String = site.redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let node = site.start(&[]);
    wait_until(Duration::from_secs(20), "a queue that has drained", || {
        let left: u64 = site.redis.ask(&["XLEN", "replicon:ingest"]);
        if left == 0 { Ok(()) } else { Err(format!("{left} entries; {}", node.health())) }
    });
    assert_eq!(site.numbers(), told);
    let answer = node.post("{\"n\":1}");
    assert_eq!((answer.status, &answer.json()["stored"]), (503, &"no".into()), "{}", answer.body);
    let _: String = site.redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_until(Duration::from_secs(10), "an append", || {
        let answer = node.post("{\"n\":1}");
        if answer.status == 202 { Ok(()) } else { Err(answer.body) }
    });
}
