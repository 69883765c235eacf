//! Two nodes, each in a network of its own, with a wire between them whose plug is pulled, which loses
//! packets without a word, and which is 100 ms long: what a proxy between two connections cannot show.
//!
//! Needs root, `/dev/net/tun` and `ip`; skipped with a word where they are missing.
//! Attacks I13 and I17, H66 and H68, and R7 of the goals.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Cluster, SOON};
use crate::sql::site::Site;
use crate::support::netns::{Passing, Wire};
use crate::support::{Node, full_scale, wait_until};

const PORT: u16 = 8080;
/// Half of the way there and back.
const ONE_WAY: Duration = Duration::from_millis(50);
/// How long a backlog may take.
const CATCHING_UP: Duration = Duration::from_secs(600);

/// What is done to a wire.
type Turn = fn(&Wire);

/// Two nodes that do not run yet; `None`, with a word, where this machine cannot. The wire is to be kept
/// until they have ended.
fn apart() -> Option<(Wire, Cluster)> {
    let wire = Wire::new()?;
    let mut cluster = Cluster::unlinked(vec![Site::sqlite(), Site::sqlite()]);
    let names: Vec<String> = cluster.members.iter().map(|member| member.name.clone()).collect();
    for (at, member) in cluster.members.iter_mut().enumerate() {
        let (other, peer) = (&wire.ends[1 - at], &names[1 - at]);
        member.space = Some(wire.ends[at].clone());
        member.more = vec![
            // it is asked from inside too while there is no plug
            format!("http_listen=0.0.0.0:{PORT}"),
            format!("replication_peer={peer}=http://{}:{PORT}", other.address),
            "replication_http_timeout_ms=1000".to_owned(),
        ];
    }
    Some((wire, cluster))
}

/// Waits until each of the two knows that it does not hear the other.
fn both_unreachable(cluster: &Cluster) {
    for (at, peer) in [(0, "dc2"), (1, "dc1")] {
        wait_until(SOON, "a peer that is out of reach", || {
            let peer = cluster.peer(at, peer);
            if peer["state"] == "unreachable" { Ok(()) } else { Err(peer.to_string()) }
        });
        let ready = cluster.at(at, |node| node.get("/readyz").status);
        assert_eq!(ready, 200, "a peer never makes a node unready");
    }
}

/// Events of the other one that a node holds.
fn of_the_other(cluster: &Cluster, at: usize) -> usize {
    let name = &cluster.members[at].name;
    cluster.count(at, &format!("reports WHERE origin_dc <> '{name}'"))
}

#[test]
fn a_partition_of_any_kind_stops_nobody_from_accepting_and_ends_in_equal_sets() {
    let Some((wire, mut cluster)) = apart() else { return };
    for at in 0..2 {
        cluster.begin(at);
    }
    cluster.post_everywhere(10);
    cluster.settled(20);
    let kinds: [(&str, Turn, Turn); 3] = [
        ("no plug", |wire| wire.ends[0].plug(false), |wire| wire.ends[0].plug(true)),
        (
            "half-open: packets vanish, and nobody is told",
            |wire| wire.set(Passing::Nothing),
            |wire| wire.set(Passing::After(Duration::ZERO)),
        ),
        (
            "one direction only",
            |wire| wire.set(Passing::OnlyFrom(0)),
            |wire| wire.set(Passing::After(Duration::ZERO)),
        ),
    ];
    for (kind, part, heal) in kinds {
        let before = [of_the_other(&cluster, 0), of_the_other(&cluster, 1)];
        part(&wire);
        // every one of these is answered 202
        for _ in 0..3 {
            cluster.post_everywhere(10);
        }
        both_unreachable(&cluster);
        cluster.post_everywhere(10);
        let meanwhile = [of_the_other(&cluster, 0), of_the_other(&cluster, 1)];
        assert_eq!(meanwhile, before, "{kind}: nothing went through");
        heal(&wire);
        let healed = Instant::now();
        cluster.whole();
        println!("{kind}: equal {:?} after its end", healed.elapsed());
    }
    cluster.nothing_aside();
}

#[test]
fn a_backlog_crosses_a_wire_of_100_ms() {
    let batches = if full_scale() { 200 } else { 20 };
    let Some((wire, mut cluster)) = apart() else { return };
    cluster.begin(0);
    for _ in 0..batches {
        cluster.post(0, "events_raw", 1_000);
    }
    cluster.at(0, Node::wait_drained);
    wire.set(Passing::After(ONE_WAY));
    let there = format!("{}:{PORT}", wire.ends[0].address);
    let started = Instant::now();
    wire.ends[1].inside(|| TcpStream::connect(&there).unwrap());
    assert!(started.elapsed() >= 2 * ONE_WAY, "the wire is not that long");

    let started = Instant::now();
    cluster.begin(1);
    let counts = cluster.equal_within(CATCHING_UP);
    let took = started.elapsed();
    assert_eq!(counts["events_raw"], batches * 1_000);
    println!("{batches} thousand events over 100 ms in {took:?}, the start of the node included");
    cluster.nothing_aside();
}
