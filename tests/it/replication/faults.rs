//! Links that are cut, silent, slow, far, broken off, or that mix up answers, and nodes that are killed,
//! while all of them accept: nothing is lost or doubled, and sets are equal soon after the last fault.
//!
//! Attacks I13 and I17, H66 and H68, and R7 of the goals.

use std::time::{Duration, Instant};

use super::{Cluster, SOON};
use crate::sql::site::Site;
use crate::support::ledger::Dice;
use crate::support::proxy::Link;
use crate::support::{full_scale, wait_until};

/// How soon sets must be equal after the last of many faults.
const AFTER_FAULTS: Duration = Duration::from_secs(10);

fn two() -> Vec<Site> {
    vec![Site::sqlite(), Site::sqlite()]
}

fn three() -> Cluster {
    Cluster::start(vec![Site::sqlite(), Site::sqlite(), Site::sqlite()])
}

#[test]
fn both_sides_of_a_partition_accept_and_meet_again() {
    let mut cluster = three();
    cluster.post_everywhere(10);
    cluster.settled(30);
    for other in [1, 2] {
        cluster.between(0, other, Link::Cut);
    }
    for _ in 0..5 {
        cluster.post_everywhere(10);
    }
    let told = wait_until(SOON, "a peer that is out of reach", || {
        let peer = cluster.peer(0, "dc2");
        if peer["state"] == "unreachable" { Ok(peer) } else { Err(peer.to_string()) }
    });
    assert!(told["reason"].is_string(), "{told}");
    assert_eq!(cluster.node(0).get("/readyz").status, 200, "a peer never makes a node unready");
    // nothing went through
    assert_eq!(cluster.count(1, "reports WHERE origin_dc = 'dc1'"), 10);
    for other in [1, 2] {
        cluster.between(0, other, Link::Open);
    }
    cluster.whole();
    wait_until(SOON, "no lag", || {
        let of = cluster.channel(0, "dc2", "events_raw");
        let current = of["lag_events"] == 0 && of["lag_seconds"] == 0.0;
        if current { Ok(()) } else { Err(of.to_string()) }
    });
    cluster.nothing_aside();
}

/// Events that take about 450 bytes each, and half of that where somebody compresses them.
fn post_noise(cluster: &mut Cluster, events: usize) {
    const SIGNS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut dice = Dice::new(3);
    let mut sign = || {
        let at = usize::try_from(dice.throw(0, SIGNS.len() as u64 - 1)).unwrap();
        char::from(SIGNS[at])
    };
    let mut item = |n: usize| {
        let noise: String = (0..300).map(|_| sign()).collect();
        format!("{{\"n\":{n},\"noise\":\"{noise}\"}}")
    };
    let items: Vec<String> = (0..events).map(&mut item).collect();
    cluster.post_items(0, "events_raw", &items);
    cluster.node(0).wait_drained();
}

#[test]
fn a_link_that_breaks_off_every_answer_after_some_bytes_still_catches_up() {
    let mut cluster = Cluster::stopped(two());
    cluster.begin(0);
    post_noise(&mut cluster, 400);
    // less than all of it in one page: only smaller ones pass
    cluster.between(0, 1, Link::BreaksAfter(70_000));
    cluster.begin(1);
    cluster.whole();
    let log = cluster.node(1).log();
    assert!(log.contains("its answer broke off"), "the link did not break: {log}");
}

#[test]
fn a_slow_link_is_slow_and_no_failure() {
    let mut cluster = Cluster::stopped(two());
    cluster.begin(0);
    // a page that takes longer than a peer may be silent
    post_noise(&mut cluster, 400);
    cluster.between(0, 1, Link::Slow(40_000));
    let started = Instant::now();
    cluster.begin(1);
    cluster.whole();
    assert!(started.elapsed() > Duration::from_secs(2), "it was not slow");
    let peer = cluster.peer(1, "dc1");
    assert!(peer["reason"].is_null(), "{peer}");
    let log = cluster.node(1).log();
    assert!(!log.contains("asked again by itself"), "{log}");
}

#[test]
fn a_link_that_is_far_catches_up() {
    let batches = if full_scale() { 50 } else { 10 };
    let mut cluster = Cluster::stopped(two());
    cluster.begin(0);
    for _ in 0..batches {
        cluster.post(0, "events_raw", 1_000);
    }
    cluster.node(0).wait_drained();
    cluster.between(0, 1, Link::Far(Duration::from_millis(50)));
    let started = Instant::now();
    cluster.begin(1);
    cluster.whole();
    println!("{batches} thousand events over 100 ms in {:?}", started.elapsed());
}

/// How many kinds of faults there are.
const KINDS: usize = 8;

/// One fault that ends by itself; everybody who runs accepts meanwhile.
fn fault(cluster: &mut Cluster, kind: usize, dice: &mut Dice) {
    let throw = |dice: &mut Dice, most: u64| usize::try_from(dice.throw(0, most)).unwrap();
    let a = throw(dice, 2);
    let b = (a + 1 + throw(dice, 1)) % 3;
    let mut millis = dice.throw(20, 400);
    let link = match kind {
        0 => Link::Cut,
        1 => {
            // sometimes longer than a peer may be silent
            millis = dice.throw(20, 2_500);
            Link::Silent
        }
        2 => Link::Slow(dice.throw(2_000, 50_000)),
        3 => Link::Far(Duration::from_millis(dice.throw(5, 100))),
        4 => Link::BreaksAfter(dice.throw(1, 60_000)),
        5 => Link::Doubled,
        6 => Link::Reordered,
        _ => {
            cluster.kill(a);
            cluster.post_everywhere(3);
            cluster.begin(a);
            return;
        }
    };
    cluster.between(a, b, link);
    cluster.post_everywhere(2);
    // the length of the fault
    std::thread::sleep(Duration::from_millis(millis));
    cluster.post_everywhere(1);
    cluster.between(a, b, Link::Open);
}

#[test]
fn after_hundreds_of_faults_all_sets_are_equal_within_seconds() {
    let faults = if full_scale() { 500 } else { 2 * KINDS };
    let mut cluster = three();
    let mut dice = Dice::new(7);
    for nth in 0..faults {
        fault(&mut cluster, nth % KINDS, &mut dice);
    }
    let last = Instant::now();
    cluster.whole();
    let took = last.elapsed();
    println!("equal {took:?} after the last of {faults} faults");
    cluster.nothing_aside();
    if full_scale() {
        assert!(took < AFTER_FAULTS, "{took:?}");
    }
}
