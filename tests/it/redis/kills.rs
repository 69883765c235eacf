//! Kills of Redis and of the node under load, in turns: every 202 stands in the table once, under the
//! seq that it was told.
//!
//! Attacks I1 to I4, I6, I7 and I18.

use std::time::{Duration, Instant};

use super::{Site, count, drained, post, ready_within};
use crate::support::ledger::{Dice, Ledger, scrape_until_it_breaks};
use crate::support::redis::{Kind, Redis};
use crate::support::{Client, KEY, Node, full_scale, wait_until};

const CLIENTS: u64 = 2;

/// `TEST_SEED`, to throw the dice of a failed run again.
fn seed() -> u64 {
    let seed = std::env::var("TEST_SEED").ok();
    seed.and_then(|seed| seed.parse().ok()).unwrap_or(20_260_219)
}

/// The moments of the kills.
fn some_time(dice: &mut Dice) {
    std::thread::sleep(Duration::from_millis(dice.throw(5, 250)));
}

/// Under load, `trouble`; then the node is killed.
fn cycle(
    site: &mut Site,
    (ledger, dice): (&Ledger, &mut Dice),
    cycle: usize,
    trouble: impl FnOnce(&mut Site, &mut Dice),
) {
    let node = site.serving(&[]);
    let seeds: Vec<u64> = (0..CLIENTS).map(|_| dice.throw(1, 1 << 40)).collect();
    let addr = node.addr.clone();
    std::thread::scope(|scope| {
        for seed in seeds {
            let addr = addr.as_str();
            scope.spawn(move || ledger.post_until_it_breaks(addr, cycle, Dice::new(seed)));
        }
        let addr = addr.as_str();
        scope.spawn(move || scrape_until_it_breaks(addr));
        trouble(site, dice);
        node.kill();
    });
}

fn judge(site: &Site, ledger: &Ledger) {
    let node = site.serving(&[]);
    drained(&node);
    assert_eq!((count(&node, "dead_letter_total"), count(&node, "lost_total")), (0, 0));
    assert_eq!(node.health()["damage"].as_array().map(Vec::len), Some(0), "{}", node.health());
    let log = node.log();
    assert_eq!(node.stop().code(), Some(0), "{log}");
    assert!(ledger.accepted() > 100, "{}", ledger.accepted());
    ledger.judge(&site.ids());
}

fn nothing_is_lost_or_doubled(mut site: Site) {
    let seed = seed();
    eprintln!("TEST_SEED={seed}");
    let (ledger, mut dice) = (Ledger::default(), Dice::new(seed));
    let cycles = if full_scale() { 50 } else { 4 };
    for n in 0..cycles {
        cycle(&mut site, (&ledger, &mut dice), n, |site, dice| {
            some_time(dice);
            site.redis.kill();
            some_time(dice);
            site.redis.restart();
            some_time(dice);
        });
    }
    judge(&site, &ledger);
}

#[test]
fn kills_of_a_redis_that_syncs_every_write_lose_and_double_nothing() {
    nothing_is_lost_or_doubled(Site::sqlite(Redis::start(Kind::Redis)));
}

#[test]
fn kills_of_a_valkey_that_syncs_every_write_lose_and_double_nothing() {
    nothing_is_lost_or_doubled(Site::sqlite(Redis::start(Kind::Valkey)));
}

#[test]
fn kills_of_a_node_with_pending_entries_redeliver_each_under_its_seq_once() {
    let seed = seed() ^ 0x5eed;
    eprintln!("TEST_SEED={seed}");
    let mut site = Site::sqlite(Redis::start(Kind::Redis));
    let (ledger, mut dice) = (Ledger::default(), Dice::new(seed));
    let cycles = if full_scale() { 50 } else { 5 };
    for n in 0..cycles {
        cycle(&mut site, (&ledger, &mut dice), n, |_, dice| some_time(dice));
    }
    judge(&site, &ledger);
}

#[test]
fn a_node_killed_when_a_part_of_an_entry_is_stored_stores_the_rest_and_nothing_twice() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let often = "queue_redis_max_retries=100000";
    let node = site.serving(&["--set", "writer_batch_size=4", "--set", often]);
    let mut told = post(&mut node.client(), [0]);
    drained(&node);
    site.sql(
        "CREATE TRIGGER sixth BEFORE INSERT ON events_raw \
         WHEN json_extract(NEW.json_data, '$.n') = 6 BEGIN SELECT RAISE(ABORT, 'sixth'); END",
    );
    told.extend(post(&mut node.client(), 1..=10));
    // the fifth is of another lease than the first four, and that one was resolved before
    wait_until(Duration::from_secs(30), "the first half of an entry", || {
        let stored = site.numbers();
        if stored.contains(&told[5]) { Ok(()) } else { Err(format!("{stored:?}")) }
    });
    assert_eq!(site.redis.ask::<u64>(&["XLEN", super::STREAM]), 1, "it stands whole");
    node.kill();
    site.sql("DROP TRIGGER sixth");
    let node = site.serving(&[]);
    assert_eq!(count(&node, "recovered_total"), 10, "and comes whole");
    drained(&node);
    assert_eq!(site.numbers(), told);
    assert_eq!((count(&node, "dead_letter_total"), count(&node, "lost_total")), (0, 0));
    wait_until(Duration::from_secs(10), "an empty stream", || {
        let left: u64 = site.redis.ask(&["XLEN", super::STREAM]);
        if left == 0 { Ok(()) } else { Err(left.to_string()) }
    });
}

/// Posts single events; the seqs and when each was told.
fn post_for(node: &Node, most: Duration) -> Vec<(u64, Instant)> {
    let (mut client, end) = (Client::connect(&node.addr).unwrap(), Instant::now() + most);
    let mut told = Vec::new();
    while Instant::now() < end {
        let Ok(answer) = client.post("events_raw", KEY, b"{\"n\":1}") else { break };
        if answer.status == 202 {
            told.push((answer.json()["first_seq"].as_u64().unwrap(), Instant::now()));
        }
    }
    told
}

#[test]
fn a_redis_that_syncs_every_second_loses_two_seconds_at_most_and_every_loss_is_reported() {
    let mut site = Site::sqlite(Redis::start_with(Kind::Redis, &["--appendfsync", "everysec"]));
    let rounds = if full_scale() { 10 } else { 2 };
    for _ in 0..rounds {
        let node = site.serving(&["--set", "writer_enabled=false"]);
        let before = count(&node, "lost_total");
        let told = post_for(&node, Duration::from_millis(2500));
        // a kill spares the page cache: the last second is cut off as a power cut would
        let killed = Instant::now();
        let kept = site.redis.keep_aof();
        site.redis.kill();
        cut_last_bytes(&kept);
        site.redis.put_back_aof(&kept);
        site.redis.restart();
        ready_within(&node, Duration::from_secs(10));
        wait_until(Duration::from_secs(10), "a report of what is gone", || {
            let left: u64 = site.redis.ask(&["XLEN", super::STREAM]);
            let (lost, all) = (count(&node, "lost_total"), accepted(&node));
            let told = left + lost == all;
            if told { Ok(()) } else { Err(format!("{left} left, {lost} lost of {all}")) }
        });
        let lost = count(&node, "lost_total") - before;
        let first_lost = told.len() - usize::try_from(lost).unwrap().min(told.len());
        if let Some((_, at)) = told.get(first_lost) {
            assert!(killed.duration_since(*at) < Duration::from_secs(2), "{lost} lost");
        }
        assert!(lost > 0, "nothing was cut off");
        assert!(node.log().contains("events are lost: Redis has lost"), "{}", node.log());
        // it goes on, above all that it ever told
        wait_until(Duration::from_secs(10), "an append", || {
            let answer = node.post("{\"n\":1}");
            if answer.status == 202 { Ok(()) } else { Err(answer.body) }
        });
        let next = post(&mut node.client(), [2]);
        assert!(told.last().is_none_or(|(seq, _)| next[0].0 > *seq));
        assert_eq!(node.stop().code(), Some(0));
        let node = site.serving(&[]);
        drained(&node);
        assert_eq!(node.stop().code(), Some(0));
    }
}

/// What the node has taken since its start, and found.
fn accepted(node: &Node) -> u64 {
    count(node, "accepted_total") + count(node, "recovered_total")
}

/// Cuts a fifth of a second's worth off the newest append-only file.
fn cut_last_bytes(kept: &tempfile::TempDir) {
    let entries = std::fs::read_dir(kept.path()).unwrap().map(|entry| entry.unwrap().path());
    let newest =
        entries.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().unwrap();
    let file = std::fs::File::options().write(true).open(&newest).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - (len / 10).min(20_000)).unwrap();
}
