//! Links that are cut, silent, slow, far or broken off, and nodes that are killed, while all of them
//! accept: nothing is lost or doubled, and sets are equal soon after the last fault.
//!
//! Attacks I13 and I17, H66 and H68, and R7 of the goals.

use std::time::{Duration, Instant};

use super::{Cluster, SOON};
use crate::sql::site::Site;
use crate::support::ledger::Dice;
use crate::support::proxy::Link;
use crate::support::{full_scale, wait_until};

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
    for _ in 0..10 {
        cluster.post_everywhere(10);
    }
    let told = wait_until(SOON, "a peer that is out of reach", || {
        let peer = cluster.peer(0, "dc2");
        if peer["state"] == "unreachable" { Ok(peer) } else { Err(peer.to_string()) }
    });
    assert!(told["reason"].is_string(), "{told}");
    assert_eq!(cluster.node(0).get("/readyz").status, 200, "a peer never makes a node unready");
    for other in [1, 2] {
        cluster.between(0, other, Link::Open);
    }
    cluster.settled(330);
    wait_until(SOON, "no lag", || {
        let of = cluster.channel(0, "dc2", "events_raw");
        let current = of["lag_events"] == 0 && of["lag_seconds"] == 0.0;
        if current { Ok(()) } else { Err(of.to_string()) }
    });
}

#[test]
fn a_link_that_breaks_off_every_answer_after_some_bytes_still_catches_up() {
    let mut cluster = Cluster::stopped(vec![Site::sqlite(), Site::sqlite()]);
    cluster.begin(0);
    for _ in 0..20 {
        cluster.post_everywhere(100);
    }
    cluster.node(0).wait_drained();
    // less than a usual page: only smaller ones pass
    cluster.between(0, 1, Link::BreaksAfter(40_000));
    cluster.begin(1);
    cluster.settled(2_000);
}

#[test]
fn a_slow_link_is_slow_and_no_failure() {
    let mut cluster = Cluster::stopped(vec![Site::sqlite(), Site::sqlite()]);
    cluster.begin(0);
    cluster.post_everywhere(500);
    cluster.node(0).wait_drained();
    cluster.between(0, 1, Link::Slow(60_000));
    cluster.begin(1);
    cluster.settled(500);
}

#[test]
fn a_link_that_is_far_catches_up_by_many_pages_an_answer() {
    let mut cluster = Cluster::stopped(vec![Site::sqlite(), Site::sqlite()]);
    cluster.begin(0);
    for _ in 0..50 {
        cluster.post(0, "events_raw", 1_000);
    }
    cluster.node(0).wait_drained();
    cluster.between(0, 1, Link::Far(Duration::from_millis(50)));
    let started = Instant::now();
    cluster.begin(1);
    let counts = cluster.equal_within(SOON);
    assert_eq!(counts["events_raw"], 50_000);
    // fifty pages, each behind a round trip and a write, would take longer than that alone
    println!("50,000 events over 100 ms in {:?}", started.elapsed());
}

/// One fault that ends by itself.
fn fault(cluster: &mut Cluster, dice: &mut Dice) {
    let pick = |dice: &mut Dice| usize::try_from(dice.throw(0, 2)).unwrap();
    let a = pick(dice);
    let b = (a + 1 + usize::try_from(dice.throw(0, 1)).unwrap()) % 3;
    let link = match dice.throw(0, 5) {
        0 => Link::Cut,
        1 => Link::Silent,
        2 => Link::Slow(dice.throw(2_000, 50_000)),
        3 => Link::Far(Duration::from_millis(dice.throw(5, 100))),
        4 => Link::BreaksAfter(dice.throw(1, 60_000)),
        _ => {
            cluster.kill(a);
            cluster.begin(a);
            return;
        }
    };
    cluster.between(a, b, link);
    // the length of the fault
    std::thread::sleep(Duration::from_millis(dice.throw(20, 400)));
    cluster.between(a, b, Link::Open);
}

#[test]
fn after_hundreds_of_faults_all_sets_are_equal_within_seconds() {
    let faults = if full_scale() { 500 } else { 25 };
    let mut cluster = three();
    let mut dice = Dice::new(7);
    for _ in 0..faults {
        cluster.post_everywhere(3);
        fault(&mut cluster, &mut dice);
    }
    cluster.post_everywhere(3);
    let last = Instant::now();
    cluster.settled(3 * 3 * (faults + 1));
    let took = last.elapsed();
    println!("equal {took:?} after the last of {faults} faults");
    if full_scale() {
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
