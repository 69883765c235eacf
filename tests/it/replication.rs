//! Nodes that pull from each other: the built binary on real databases, over links that a test turns.
//!
//! Here stands what the modules share: a cluster, what is posted to it, and how its sets are compared.

mod faults;
mod hostile;
mod pairs;
mod rare;
mod refusals;
mod relay;
mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::sql::site::{Kind, Site};
use crate::support::proxy::{Link, Proxy};
use crate::support::{Client, KEY, Node, wait_until};

/// What peers show each other.
const TOKEN: &str = "peer-token-for-tests";
/// How long sets may take to become equal when nothing is in the way.
const SOON: Duration = Duration::from_secs(60);

/// A raw channel, a structured one, and one that keeps raw copies beside its rows.
const CHANNELS: &str = "\
general:
  api_keys: [key-abc123]
channels:
  events_raw:
    mode: raw_only
  reports:
    mode: structured
    store_raw: false
    table: reports
    columns: [n, place]
    required: [n]
    field_types:
      n: bigint
  kept:
    mode: structured
    store_raw: true
    table: kept
    columns: [n, place]
    required: [n]
    field_types:
      n: bigint
";

/// A node with its place.
struct Member {
    name: String,
    site: Site,
    node: Option<Node>,
    more: Vec<String>,
}

/// Nodes, each of which pulls from all others over a link of its own.
struct Cluster {
    members: Vec<Member>,
    /// From the one that pulls to the one that serves.
    links: BTreeMap<(usize, usize), Proxy>,
    next: i64,
}

/// An event in a table: origin, seq, number.
type Row = (String, u64, i64);

impl Cluster {
    /// All of them, running.
    fn start(sites: Vec<Site>) -> Self {
        let mut cluster = Self::stopped(sites);
        for at in 0..cluster.members.len() {
            cluster.begin(at);
        }
        cluster
    }

    /// Nobody runs yet.
    fn stopped(sites: Vec<Site>) -> Self {
        let count = sites.len();
        let member = |(at, site): (usize, Site)| {
            site.channels(CHANNELS);
            Member { name: format!("dc{}", at + 1), site, node: None, more: Vec::new() }
        };
        let members = sites.into_iter().enumerate().map(member).collect();
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
        let links = pairs.filter(|(a, b)| a != b).map(|pair| (pair, Proxy::new())).collect();
        Self { members, links, next: 1 }
    }

    fn settings(&self, at: usize) -> Vec<String> {
        let member = &self.members[at];
        let mut all = vec![
            format!("node_name={}", member.name),
            "replication_enabled=true".to_owned(),
            format!("replication_token={TOKEN}"),
            "replication_http_timeout_ms=2000".to_owned(),
            "replication_poll_interval_ms=200".to_owned(),
        ];
        for ((from, to), link) in &self.links {
            if *from == at {
                let name = &self.members[*to].name;
                all.push(format!("replication_peer={name}=http://{}", link.addr));
            }
        }
        all.extend(member.more.iter().cloned());
        all.into_iter().flat_map(|pair| ["--set".to_owned(), pair]).collect()
    }

    /// Starts one, on the place that it has.
    fn begin(&mut self, at: usize) {
        let settings = self.settings(at);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let node = self.members[at].site.serving(&settings);
        for ((_, to), link) in &self.links {
            if *to == at {
                link.aim(&node.addr);
            }
        }
        self.members[at].node = Some(node);
    }

    fn node(&self, at: usize) -> &Node {
        self.members[at].node.as_ref().expect("it runs")
    }

    fn stop(&mut self, at: usize) {
        let node = self.members[at].node.take().expect("it runs");
        assert_eq!(node.stop().code(), Some(0));
    }

    fn kill(&mut self, at: usize) {
        self.members[at].node.take().expect("it runs").kill();
    }

    /// How the links between two nodes are, in both directions.
    fn between(&self, a: usize, b: usize, link: Link) {
        for pair in [(a, b), (b, a)] {
            self.links[&pair].set(link);
        }
    }

    /// Posts so many events to a channel of a node, as one batch.
    fn post(&mut self, at: usize, channel: &str, count: i64) {
        let numbers = self.next..self.next + count;
        self.next += count;
        let items: Vec<String> =
            numbers.map(|n| format!("{{\"n\":{n},\"place\":\"here\"}}")).collect();
        let body = format!("[{}]", items.join(","));
        let answer = self.node(at).client().post(channel, KEY, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 202, "{}", answer.body);
    }

    /// Posts to every channel of every node that runs.
    fn post_everywhere(&mut self, count: i64) {
        for at in 0..self.members.len() {
            if self.members[at].node.is_some() {
                for channel in ["events_raw", "reports", "kept"] {
                    self.post(at, channel, count);
                }
            }
        }
    }

    /// What stands in one table of one node.
    fn rows(&self, at: usize, table: &str) -> BTreeSet<Row> {
        let site = &self.members[at].site;
        let n = match (table, site.kind()) {
            ("events_raw", Kind::Sqlite) => "json_extract(json_data, '$.n')",
            ("events_raw", Kind::Postgres) => "json_data->>'n'",
            ("events_raw", Kind::MariaDb | Kind::MySql) => "JSON_VALUE(json_data, '$.n')",
            _ => "n",
        };
        let text = site.sql(&format!("SELECT origin_dc, origin_seq, {n} FROM {table}"));
        let row = |line: &str| -> Option<Row> {
            let mut parts = line.split('|');
            let origin = parts.next()?.to_owned();
            Some((origin, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        };
        let rows: Vec<Row> =
            text.lines().map(|line| row(line).unwrap_or_else(|| panic!("{line}"))).collect();
        let set: BTreeSet<Row> = rows.iter().cloned().collect();
        assert_eq!(rows.len(), set.len(), "{table} of {at} holds an event twice");
        set
    }

    /// Waits until all that run hold the same; how many events that are in each table.
    fn equal_within(&self, deadline: Duration) -> BTreeMap<&'static str, usize> {
        let alive: Vec<usize> =
            (0..self.members.len()).filter(|at| self.members[*at].node.is_some()).collect();
        let mut counts = BTreeMap::new();
        for table in ["events_raw", "reports", "kept"] {
            let count = wait_until(deadline, &format!("equal sets in {table}"), || {
                let sets: Vec<BTreeSet<Row>> =
                    alive.iter().map(|at| self.rows(*at, table)).collect();
                match sets.iter().position(|set| *set != sets[0]) {
                    None => Ok(sets[0].len()),
                    Some(other) => Err(self.difference(&alive, &sets, other)),
                }
            });
            counts.insert(table, count);
        }
        counts
    }

    fn difference(&self, alive: &[usize], sets: &[BTreeSet<Row>], other: usize) -> String {
        let lacks = |a: usize, b: usize| {
            let some: Vec<&Row> = sets[a].difference(&sets[b]).take(3).collect();
            format!("{} lacks {some:?}", self.members[alive[b]].name)
        };
        let log = self.node(alive[other]).log();
        let tail: Vec<&str> = log.lines().rev().take(8).collect();
        format!("{}; {}; {tail:#?}", lacks(0, other), lacks(other, 0))
    }

    /// Waits until everything that was posted is everywhere: so many events in all tables together,
    /// each counted where its channel puts it.
    fn settled(&self, posted_to_each_channel: i64) {
        let counts = self.equal_within(SOON);
        let each = usize::try_from(posted_to_each_channel).unwrap();
        // what `kept` stores it stores twice
        let due = BTreeMap::from([("events_raw", 2 * each), ("kept", each), ("reports", each)]);
        assert_eq!(counts, due);
    }

    /// What a node says of a peer.
    fn peer(&self, at: usize, name: &str) -> Value {
        let health = self.node(at).health();
        let peers = health["replication"]["peers"].as_array().cloned().unwrap_or_default();
        let found = peers.into_iter().find(|peer| peer["peer"] == name);
        found.unwrap_or_else(|| panic!("{health}"))
    }

    /// What a node says of a channel of a peer's own.
    fn channel(&self, at: usize, name: &str, channel: &str) -> Value {
        let peer = self.peer(at, name);
        let channels = peer["channels"].as_array().cloned().unwrap_or_default();
        let own = |of: &Value| of["channel"] == channel && of["origin"] == name;
        channels.into_iter().find(own).unwrap_or_else(|| panic!("{peer}"))
    }

    /// Waits until a channel of a peer stands so; the reason that is given.
    fn stands(&self, at: usize, name: &str, channel: &str, state: &str) -> String {
        wait_until(SOON, &format!("channel {channel} of {name} to be {state}"), || {
            let of = self.channel(at, name, channel);
            if of["state"] == state {
                Ok(of["reason"].as_str().unwrap_or_default().to_owned())
            } else {
                Err(of.to_string())
            }
        })
    }
}

/// Asks a node as a peer does.
fn ask(node: &Node, path: &str, token: Option<&str>) -> crate::support::Response {
    let headers: Vec<(&str, &str)> = token.map(|token| ("x-replicon-token", token)).into_iter().collect();
    let mut client: Client = node.client();
    client.request("GET", path, &headers, None).unwrap()
}
