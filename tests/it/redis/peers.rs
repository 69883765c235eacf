//! Nodes with their queues on Redis pull from each other while Redis servers and nodes are killed: in the
//! end both hold the same, and a page never passes what is not stored yet.
//!
//! Attacks I9 and I13.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Site, drained, ready_within};
use crate::support::proxy::Proxy;
use crate::support::redis::{Kind, Redis};
use crate::support::{Client, KEY, Node, full_scale, wait_until};

/// How long sets may take to become equal when nothing is in the way.
const SOON: Duration = Duration::from_secs(60);
/// Short enough that an outage of the server is noticed by what is under way.
const IMPATIENT: &str = "queue_redis_timeout_ms=1000";

/// Origin and seq of a row.
type Identity = (String, u64);

/// A node and where its peer finds it.
struct Member {
    site: Site,
    node: Option<Node>,
    door: Proxy,
}

impl Member {
    fn new(kind: Kind) -> Self {
        Self { site: Site::sqlite(Redis::start(kind)), node: None, door: Proxy::new() }
    }

    /// Starts it as the n-th, with the other one as its peer.
    fn start(&mut self, n: usize, peer: &str) {
        let other = 3 - n;
        let settings = [
            format!("node_name=dc{n}"),
            format!("replication_peer=dc{other}=http://{peer}"),
            "replication_enabled=true".to_owned(),
            "replication_token=peer-token-for-tests".to_owned(),
            "replication_http_timeout_ms=2000".to_owned(),
            "replication_poll_interval_ms=200".to_owned(),
            IMPATIENT.to_owned(),
        ];
        let more: Vec<&str> = settings.iter().flat_map(|pair| ["--set", pair.as_str()]).collect();
        let node = self.site.start(&more);
        self.door.aim(Some(&node.addr));
        ready_within(&node, Duration::from_secs(40));
        self.node = Some(node);
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn rows(&self) -> BTreeSet<Identity> {
        let text = self.site.sql("SELECT origin_dc, origin_seq FROM events_raw");
        let row = |line: &str| {
            let (origin, seq) = line.split_once('|').unwrap();
            (origin.to_owned(), seq.parse().unwrap())
        };
        text.lines().map(row).collect()
    }
}

/// Posts some batches; the identities of those that were accepted.
fn post_some(node: &Node, origin: &str, batches: usize) -> Vec<Identity> {
    let (mut told, mut posted) = (Vec::new(), 0);
    while posted < batches {
        let Ok(mut client) = Client::connect(&node.addr) else { break };
        let body = format!("[{}]", ["{\"n\":1}"; 20].join(","));
        // refused while Redis is away
        let Ok(answer) = client.post("events_raw", KEY, body.as_bytes()) else { continue };
        if answer.status == 202 {
            let first = answer.json()["first_seq"].as_u64().unwrap();
            told.extend((first..first + 20).map(|seq| (origin.to_owned(), seq)));
            posted += 1;
        }
    }
    told
}

#[test]
fn nodes_on_redis_become_equal_whatever_is_killed() {
    let mut members = [Member::new(Kind::Redis), Member::new(Kind::Valkey)];
    let doors: Vec<String> = members.iter().map(|member| member.door.addr.clone()).collect();
    for (at, member) in members.iter_mut().enumerate() {
        member.start(at + 1, &doors[1 - at]);
    }
    let mut told = BTreeSet::new();
    let rounds = if full_scale() { 20 } else { 3 };
    for round in 0..rounds {
        let at = round % 2;
        let [one, two] = &mut members;
        let (struck, other) = if at == 0 { (one, two) } else { (two, one) };
        let (mine, theirs) = (format!("dc{}", at + 1), format!("dc{}", 2 - at));
        told.extend(post_some(struck.node(), &mine, 10));
        struck.site.redis.kill();
        told.extend(post_some(other.node(), &theirs, 10));
        struck.site.redis.restart();
        told.extend(post_some(struck.node(), &mine, 10));
        // with events that wait, and whatever its peer was shown
        struck.node.take().unwrap().kill();
        told.extend(post_some(other.node(), &theirs, 10));
        struck.start(at + 1, &doors[1 - at]);
    }
    for member in &members {
        drained(member.node());
    }
    let rows = wait_until(SOON, "equal sets", || {
        let (one, two) = (members[0].rows(), members[1].rows());
        if one == two {
            return Ok(one);
        }
        let (lacks, more) = (two.difference(&one).count(), one.difference(&two).count());
        Err(format!("dc1 lacks {lacks} of dc2's rows, and has {more} beyond them"))
    });
    let gone: Vec<&Identity> = told.difference(&rows).take(3).collect();
    assert!(gone.is_empty(), "accepted, and not there: {gone:?}");
    for member in &members {
        let log = member.node().log();
        assert!(!log.contains("goes by a new node id"), "its history never parted: {log}");
    }
}
