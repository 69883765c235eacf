//! Nodes on databases of one server that pull from each other.
//!
//! Does not know what is measured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use replicon::clock::Clock;
use serde_json::Value;

use crate::child::{self, Running};
use crate::client::Client;
use crate::server::Server;
use crate::settings::Outcome;

/// What the nodes show each other.
const TOKEN: &str = "bench-token";
/// A pull that has not moved for so long has stopped.
const STUCK: Duration = Duration::from_secs(60);
/// How often a node is asked.
const EVERY: Duration = Duration::from_millis(10);

/// How a node of a pair is started.
pub struct Place {
    dir: PathBuf,
    settings: Vec<String>,
}

impl Place {
    /// A node of that name, on that database.
    pub fn new(dir: &Path, name: &str, server: &Server, database: &str) -> Self {
        let settings = vec![
            format!("node_name={name}"),
            format!("replication_token={TOKEN}"),
            "storage_backend=postgres".to_owned(),
            format!("storage_postgres_dsn={}", server.dsn(database)),
        ];
        Self { dir: dir.join(name), settings }
    }

    /// Pulls from that peer, with pages as large as they may be.
    pub fn pulling(mut self, peer: &str, addr: &str) -> Self {
        self.settings.extend([
            "replication_enabled=true".to_owned(),
            "replication_batch_limit=5000".to_owned(),
            format!("replication_peer={peer}=http://{addr}"),
        ]);
        self
    }

    /// Starts it; `channels` in place of the shipped ones.
    pub fn start(&self, channels: Option<&str>) -> Outcome<Running> {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        let command = child::node(&self.dir, &settings)?;
        if let Some(channels) = channels {
            std::fs::write(self.dir.join("conf/channels.yml"), channels)?;
        }
        let node = Running::start("replicon", command, &self.dir)?;
        node.wait_until_ready()?;
        Ok(node)
    }

    /// Removes all that it keeps.
    pub fn forget(&self) -> Outcome<()> {
        Ok(std::fs::remove_dir_all(&self.dir)?)
    }
}

/// Waits until nothing waits for storage.
pub fn drained(node: &Running) -> Outcome<()> {
    while node.health()?.waiting > 0 {
        std::thread::sleep(EVERY);
    }
    Ok(())
}

/// What a node says of its first peer.
fn peer(client: &mut Client) -> Outcome<Value> {
    let report: Value = serde_json::from_slice(client.get("/healthz")?.body)?;
    let peer = report["replication"]["peers"].get(0);
    peer.cloned().ok_or_else(|| format!("/healthz names no peer: {report}").into())
}

/// Events that a node has pulled of its first peer so far.
pub fn pulled(client: &mut Client) -> Outcome<u64> {
    let peer = peer(client)?;
    let channels = peer["channels"].as_array().into_iter().flatten();
    Ok(channels.filter_map(|channel| channel["events"].as_u64()).sum())
}

/// Watches a node pull until it has so many: each look at which it had more, and how many.
fn watch(
    node: &Running,
    events: u64,
    clock: &Clock,
    mut saw: impl FnMut(Duration, u64),
) -> Outcome<()> {
    let mut client = Client::connect(node.addr)?;
    let (mut last, mut moved_at) = (0, clock.mono());
    loop {
        let (have, at) = (pulled(&mut client)?, clock.mono());
        if have > last {
            (last, moved_at) = (have, at);
            saw(at, have);
        } else if at - moved_at > STUCK {
            return Err(format!("{have} events were pulled, and no more in {STUCK:?}").into());
        }
        if have >= events {
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

/// Waits until so many are pulled; events a second, from the first look that finds some.
pub fn pull_rate(node: &Running, events: u64) -> Outcome<f64> {
    let clock = Clock::system();
    let (mut first, mut last) = (None, Duration::ZERO);
    watch(node, events, &clock, |at, have| {
        first = first.or(Some((at, have)));
        last = at;
    })?;
    match first.filter(|(begin, _)| *begin < last) {
        Some((begin, before)) => Ok((events - before) as f64 / (last - begin).as_secs_f64()),
        None => Err("pulled within one look: set BENCH_EVENTS to more".into()),
    }
}

/// Waits until a node has pulled so many.
pub fn caught_up(node: &Running, events: u64) -> Outcome<()> {
    watch(node, events, &Clock::system(), |_, _| {})
}

/// Waits until a node hears its first peer.
pub fn hears(node: &Running) -> Outcome<()> {
    let (clock, mut client) = (Clock::system(), Client::connect(node.addr)?);
    loop {
        let peer = peer(&mut client)?;
        if peer["state"] == "connected" {
            return Ok(());
        }
        if clock.mono() > STUCK {
            return Err(format!("the peer is not heard after {STUCK:?}: {peer}").into());
        }
        std::thread::sleep(EVERY);
    }
}
