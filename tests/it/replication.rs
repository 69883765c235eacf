//! Nodes that pull from each other: the built binary on real databases, over links that a test turns.
//!
//! Here stands what the modules share: a cluster, what is posted to it, and how its sets are compared.

mod faults;
mod hostile;
mod namespaces;
mod operate;
mod pairs;
mod rare;
mod refusals;
mod relay;
mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::sql::site::{Kind, Server, Site};
use crate::support::mysql::{self, Mysql};
use crate::support::netns::Space;
use crate::support::postgres::Postgres;
use crate::support::proxy::{Link, Proxy};
use crate::support::{Client, KEY, Node, wait_until};

/// What peers show each other.
const TOKEN: &str = "peer-token-for-tests";
/// How long sets may take to become equal when nothing is in the way.
const SOON: Duration = Duration::from_secs(60);
/// A look into databases starts a program in each of them: so long until the next one.
const LOOK: Duration = Duration::from_millis(50);
/// The tables of [`CHANNELS`].
const TABLES: [&str; 3] = ["events_raw", "reports", "kept"];

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

/// Database servers that several tests use at once, each node in a database of its own. They go with
/// the last test that holds them.
#[derive(Default)]
struct Servers {
    postgres: OnceLock<Arc<Server>>,
    mariadb: OnceLock<Arc<Server>>,
    mysql: OnceLock<Arc<Server>>,
}

impl Servers {
    /// Those that somebody holds, or others.
    fn held() -> Arc<Self> {
        static HELD: Mutex<Weak<Servers>> = Mutex::new(Weak::new());
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.upgrade().unwrap_or_else(|| {
            let servers = Arc::new(Self::default());
            *held = Arc::downgrade(&servers);
            servers
        })
    }

    /// A place on the server of that kind.
    fn site(&self, kind: Kind) -> Site {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let server = match kind {
            Kind::Sqlite => return Site::sqlite(),
            Kind::Postgres => {
                self.postgres.get_or_init(|| Arc::new(Server::Postgres(Postgres::start())))
            }
            Kind::MariaDb => self.mariadb.get_or_init(|| of_mysql(mysql::Kind::MariaDb)),
            Kind::MySql => self.mysql.get_or_init(|| of_mysql(mysql::Kind::MySql)),
        };
        let database = format!("replicon_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Site::on_shared(server, &database)
    }
}

fn of_mysql(kind: mysql::Kind) -> Arc<Server> {
    Arc::new(Server::Mysql(Mysql::start(kind)))
}

/// Works off all cases, so many at once, since most of their time is waiting. Fails with the names of
/// those that panicked.
fn side_by_side<T: Sync>(width: usize, cases: &[(String, T)], work: impl Fn(&T) + Sync) {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..width {
            scope.spawn(|| {
                while let Some((name, case)) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(case))) {
                        let plain = panic.downcast_ref::<&str>().map(ToString::to_string);
                        let text = panic.downcast_ref::<String>().cloned().or(plain);
                        let text = text.unwrap_or_default();
                        failed.lock().unwrap().push(format!("{name}: {text}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// A node with its place.
struct Member {
    name: String,
    site: Site,
    node: Option<Node>,
    more: Vec<String>,
    /// The network that it is in, where it is not the test's own.
    space: Option<Arc<Space>>,
}

impl Member {
    /// Does something where its node is.
    fn there<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.space {
            Some(space) => space.inside(work),
            None => work(),
        }
    }
}

/// Nodes, each of which pulls from all others over a link of its own.
struct Cluster {
    members: Vec<Member>,
    /// From the one that pulls to the one that serves.
    links: BTreeMap<(usize, usize), Proxy>,
    next: i64,
    /// Events that were accepted, by channel.
    posted: BTreeMap<String, usize>,
}

/// An event in a table: origin, seq, number.
type Row = (String, u64, i64);
/// Rows by identity: everything else that stands in them.
type Contents = BTreeMap<(String, u64), String>;

impl Cluster {
    /// All of them, running.
    fn start(sites: Vec<Site>) -> Self {
        let mut cluster = Self::stopped(sites);
        let all = 0..cluster.members.len();
        let nodes: Vec<Node> = thread::scope(|scope| {
            let cluster = &cluster;
            let starting: Vec<_> = all.map(|at| scope.spawn(move || cluster.started(at))).collect();
            starting.into_iter().map(|one| one.join().expect("it starts")).collect()
        });
        for (at, node) in nodes.into_iter().enumerate() {
            cluster.take(at, node);
        }
        cluster
    }

    /// Nobody runs yet.
    fn stopped(sites: Vec<Site>) -> Self {
        let count = sites.len();
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
        let links = pairs.filter(|(a, b)| a != b).map(|pair| (pair, Proxy::new())).collect();
        Self { links, ..Self::unlinked(sites) }
    }

    /// As [`Cluster::stopped`], of nodes that are told of their peers by other settings.
    fn unlinked(sites: Vec<Site>) -> Self {
        let member = |(at, site): (usize, Site)| {
            site.channels(CHANNELS);
            let name = format!("dc{}", at + 1);
            Member { name, site, node: None, more: Vec::new(), space: None }
        };
        let members = sites.into_iter().enumerate().map(member).collect();
        Self { members, links: BTreeMap::new(), next: 1, posted: BTreeMap::new() }
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

    /// A node on the place of one, ready.
    fn started(&self, at: usize) -> Node {
        let (member, settings) = (&self.members[at], self.settings(at));
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        member.there(|| member.site.serving(&settings))
    }

    /// That node is this one from now on.
    fn take(&mut self, at: usize, node: Node) {
        self.aim(at, Some(&node.addr));
        self.members[at].node = Some(node);
    }

    /// Where the links to a node end.
    fn aim(&self, at: usize, addr: Option<&str>) {
        for (_, link) in self.links.iter().filter(|((_, to), _)| *to == at) {
            link.aim(addr);
        }
    }

    /// Starts one, on the place that it has.
    fn begin(&mut self, at: usize) {
        let node = self.started(at);
        self.take(at, node);
    }

    fn node(&self, at: usize) -> &Node {
        self.members[at].node.as_ref().expect("it runs")
    }

    /// Asks a node, from where it is.
    fn at<T: Send>(&self, at: usize, ask: impl FnOnce(&Node) -> T + Send) -> T {
        let node = self.node(at);
        self.members[at].there(|| ask(node))
    }

    /// Those that run.
    fn alive(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|at| self.members[*at].node.is_some()).collect()
    }

    fn stop(&mut self, at: usize) {
        let node = self.members[at].node.take().expect("it runs");
        assert_eq!(node.stop().code(), Some(0));
        self.aim(at, None);
    }

    fn kill(&mut self, at: usize) {
        self.members[at].node.take().expect("it runs").kill();
        self.aim(at, None);
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
            numbers.map(|n| format!("{{\"n\":{n},\"place\":\"hier ä {n}\"}}")).collect();
        self.post_items(at, channel, &items);
    }

    /// As [`Cluster::post`], of these events.
    fn post_items(&mut self, at: usize, channel: &str, items: &[String]) {
        let body = format!("[{}]", items.join(","));
        let answer = self.at(at, |node| node.client().post(channel, KEY, body.as_bytes()).unwrap());
        assert_eq!(answer.status, 202, "{}", answer.body);
        *self.posted.entry(channel.to_owned()).or_default() += items.len();
    }

    /// Posts to every channel of every node that runs.
    fn post_everywhere(&mut self, count: i64) {
        for at in self.alive() {
            for channel in TABLES {
                self.post(at, channel, count);
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

    /// Everything of one table of one node, in words that are the same for all databases. `from` is the
    /// table, a condition behind it or not.
    fn contents(&self, at: usize, from: &str) -> Contents {
        let site = &self.members[at].site;
        let received_at = match site.kind() {
            Kind::Sqlite => "substr(received_at, 1, 26)",
            Kind::Postgres => "to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
            Kind::MariaDb | Kind::MySql => "date_format(received_at, '%Y-%m-%d %T.%f')",
        };
        let raw = from.starts_with("events_raw");
        let own = if raw { "json_data" } else { "n, place" };
        let text = site.sql(&format!(
            "SELECT origin_dc, origin_seq, node_name, channel, {received_at}, {own} FROM {from}"
        ));
        let mut contents = Contents::new();
        for line in text.lines() {
            let parts: Vec<&str> = line.splitn(6, '|').collect();
            let [origin, seq, node, channel, received_at, own] = parts[..] else {
                panic!("{from}: {line}");
            };
            // an object's members have no order
            let own = match raw {
                true => serde_json::from_str::<Value>(own).expect("JSON").to_string(),
                false => own.to_owned(),
            };
            let id = (origin.to_owned(), seq.parse().unwrap());
            let twice = contents.insert(id, format!("{node} {channel} {received_at} {own}"));
            assert_eq!(twice, None, "{from} of {at} holds it twice: {line}");
        }
        contents
    }

    /// How many rows those are.
    fn count(&self, at: usize, from: &str) -> usize {
        self.members[at].site.sql(&format!("SELECT count(*) FROM {from}")).parse().unwrap()
    }

    /// Waits until all that run hold the same; how many events that are in each table.
    fn equal_within(&self, deadline: Duration) -> BTreeMap<&'static str, usize> {
        self.equal_in(&TABLES, deadline)
    }

    /// As [`Cluster::equal_within`], of these tables, each with a condition behind it or not.
    fn equal_in(
        &self,
        sources: &[&'static str],
        deadline: Duration,
    ) -> BTreeMap<&'static str, usize> {
        let alive = self.alive();
        // then everything that was answered stands at its own node at least, and sets that are equal
        // are whole
        for at in &alive {
            self.at(*at, Node::wait_drained);
        }
        let end = Instant::now() + deadline;
        let mut counts = BTreeMap::new();
        for from in sources {
            let left = end.saturating_duration_since(Instant::now());
            let count = wait_until(left, &format!("equal sets of {from}"), || {
                let looked = self.compare(&alive, from);
                if looked.is_err() {
                    thread::sleep(LOOK);
                }
                looked
            });
            counts.insert(*from, count);
        }
        counts
    }

    /// How many rows all of them hold; the difference where they do not hold the same.
    fn compare(&self, alive: &[usize], from: &str) -> Result<usize, String> {
        let counts: Vec<usize> = alive.iter().map(|at| self.count(*at, from)).collect();
        if let Some(other) = counts.iter().position(|count| *count != counts[0]) {
            return Err(format!("{counts:?} rows; {}", self.tail(alive[other])));
        }
        let sets: Vec<Contents> = alive.iter().map(|at| self.contents(*at, from)).collect();
        let Some(other) = sets.iter().position(|set| *set != sets[0]) else {
            // looked at later than the counts: a page may have come in between
            return Ok(sets[0].len());
        };
        let lacks = |a: usize, b: usize| {
            let differs = |id: &&(String, u64)| sets[b].get(*id) != sets[a].get(*id);
            let some: Vec<_> = sets[a].keys().filter(differs).take(3).collect();
            let shown: Vec<_> = some.iter().map(|id| (id, sets[a].get(*id))).collect();
            format!("{} lacks {shown:?}", self.members[alive[b]].name)
        };
        Err(format!("{}; {}; {}", lacks(0, other), lacks(other, 0), self.tail(alive[other])))
    }

    /// What a node logged last.
    fn tail(&self, at: usize) -> String {
        let log = self.node(at).log();
        let mut tail: Vec<&str> = log.lines().rev().take(8).collect();
        tail.reverse();
        format!("{} says {tail:#?}", self.members[at].name)
    }

    /// Waits until everything that was posted is everywhere: so many events in all tables together,
    /// each counted where its channel puts it.
    fn settled(&self, posted_to_each_channel: i64) {
        let each = usize::try_from(posted_to_each_channel).unwrap();
        // what `kept` stores it stores twice
        self.hold(&BTreeMap::from([("events_raw", 2 * each), ("kept", each), ("reports", each)]));
    }

    fn hold(&self, due: &BTreeMap<&'static str, usize>) {
        // what a node that is gone had posted may still be on its way between the others
        wait_until(SOON, "all that was posted", || match self.equal_within(SOON) {
            counts if counts == *due => Ok(()),
            counts => Err(format!("{counts:?} of {due:?}")),
        });
    }

    /// As [`Cluster::settled`], of all that [`Cluster::post`] was used for.
    fn whole(&self) {
        let of = |channel: &str| self.posted.get(channel).copied().unwrap_or(0);
        self.hold(&BTreeMap::from([
            ("events_raw", of("events_raw") + of("kept")),
            ("kept", of("kept")),
            ("reports", of("reports")),
        ]));
    }

    /// Nothing was in conflict, nothing lies in quarantine, and nothing was given up.
    fn nothing_aside(&self) {
        for at in self.alive() {
            for table in ["replicon_conflicts", "replicon_quarantine"] {
                assert_eq!(self.count(at, table), 0, "{table} of {}", self.members[at].name);
            }
            let health = self.at(at, Node::health);
            assert_eq!(health["ingest"]["dead_letter_total"], 0, "{health}");
            assert_eq!(health["damage"].as_array().map(Vec::len), Some(0), "{health}");
        }
    }

    /// What a node says of a peer.
    fn peer(&self, at: usize, name: &str) -> Value {
        let health = self.at(at, Node::health);
        let peers = health["replication"]["peers"].as_array().cloned().unwrap_or_default();
        let found = peers.into_iter().find(|peer| peer["peer"] == name);
        found.unwrap_or_else(|| panic!("{health}"))
    }

    /// What a node says of a channel of a peer's own.
    fn channel(&self, at: usize, name: &str, channel: &str) -> Value {
        let peer = self.peer(at, name);
        let channels = peer["channels"].as_array().cloned().unwrap_or_default();
        let own = |of: &Value| of["channel"] == channel && of["origin"] == name;
        // a channel is shown from its first turn on
        channels.into_iter().find(own).unwrap_or(Value::Null)
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
    let headers: Vec<(&str, &str)> = token.map(|t| ("x-replicon-token", t)).into_iter().collect();
    let mut client: Client = node.client();
    client.request("GET", path, &headers, None).unwrap()
}
