//! An origin that is gone for good after one of two peers had pulled: the third node gets all of it
//! from that peer, what it holds in quarantine included.
//!
//! Attacks I13, H69 and H70.

use std::collections::BTreeSet;

use super::{Cluster, SOON};
use crate::sql::site::Site;
use crate::support::proxy::Link;
use crate::support::wait_until;

/// Events of the dead one that no table is in the way of.
const RAW: &str = "events_raw WHERE origin_dc = 'dc1'";

fn numbers(cluster: &Cluster, at: usize) -> BTreeSet<i64> {
    cluster.rows(at, "reports").into_iter().map(|row| row.2).collect()
}

#[test]
fn a_third_node_gets_all_events_of_a_dead_origin_from_the_one_that_had_pulled() {
    let mut cluster = Cluster::start(vec![Site::sqlite(), Site::sqlite(), Site::sqlite()]);
    cluster.post_everywhere(5);
    cluster.settled(15);
    // dc2 cannot store one row, whatever it does
    cluster.members[1].site.sql(
        "CREATE TRIGGER refuses BEFORE INSERT ON reports WHEN NEW.place = 'nowhere' \
         BEGIN SELECT RAISE(ABORT, 'refused'); END",
    );
    cluster.between(0, 2, Link::Cut);
    let before = cluster.count(2, RAW);
    cluster.post(0, "events_raw", 100);
    let items = ["here", "nowhere", "there"]
        .into_iter()
        .zip(90_001..)
        .map(|(place, n)| format!("{{\"n\":{n},\"place\":\"{place}\"}}"));
    cluster.post_items(0, "reports", &items.collect::<Vec<String>>());
    wait_until(SOON, "a row in quarantine", || match cluster.count(1, "replicon_quarantine") {
        1 => Ok(()),
        other => Err(format!("{other} rows")),
    });
    wait_until(SOON, "the rows around it", || {
        let numbers = numbers(&cluster, 1);
        let there = [90_001, 90_003].iter().all(|n| numbers.contains(n));
        if there { Ok(()) } else { Err(format!("{numbers:?}")) }
    });
    wait_until(SOON, "the other channel", || match cluster.count(1, RAW) {
        all if all == before + 100 => Ok(()),
        other => Err(format!("{other} rows")),
    });
    assert!(!numbers(&cluster, 1).contains(&90_002), "it was refused");
    cluster.kill(0);
    wait_until(SOON, "all of them at the third node", || {
        let numbers = numbers(&cluster, 2);
        let reports = (90_001..90_004).all(|n| numbers.contains(&n));
        let raw = cluster.contents(2, RAW) == cluster.contents(1, RAW);
        if reports && raw { Ok(()) } else { Err(format!("{numbers:?}; {}", cluster.tail(2))) }
    });
    // what a relay lacks is nobody's trouble any more when the origin is back
    let of_relay = |cluster: &Cluster| {
        let channels = cluster.peer(2, "dc2")["channels"].to_string();
        channels.contains("\"origin\":\"dc1\"")
    };
    assert!(of_relay(&cluster));
    cluster.between(0, 2, Link::Open);
    cluster.begin(0);
    wait_until(SOON, "a relay that is not needed", || {
        if of_relay(&cluster) { Err(cluster.peer(2, "dc2").to_string()) } else { Ok(()) }
    });
    // by way of a relay nothing is taken for a conflict, nor for one that fits nowhere
    assert_eq!(cluster.count(2, "replicon_quarantine"), 0);
    for at in [1, 2] {
        assert_eq!(cluster.count(at, "replicon_conflicts"), 0);
    }
}
