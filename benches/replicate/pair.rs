//! Two nodes on two databases of one server, the second of which pulls from the first.
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

/// Events that a node has pulled so far.
fn pulled(client: &mut Client) -> Outcome<u64> {
    let report: Value = serde_json::from_slice(client.get("/healthz")?.body)?;
    let channels = report["replication"]["peers"][0]["channels"].as_array();
    let channels = channels.ok_or_else(|| format!("/healthz has no channels: {report}"))?;
    Ok(channels.iter().filter_map(|channel| channel["events"].as_u64()).sum())
}

/// Waits until so many are pulled; events a second, from the first look that finds some.
pub fn pull_rate(node: &Running, events: u64) -> Outcome<f64> {
    let clock = Clock::system();
    let mut client = Client::connect(node.addr)?;
    let (mut first, mut last, mut moved_at) = (None, 0, clock.mono());
    loop {
        let (have, at) = (pulled(&mut client)?, clock.mono());
        if have > last {
            (last, moved_at) = (have, at);
            first = first.or(Some((at, have)));
        } else if at - moved_at > STUCK {
            return Err(format!("{have} events were pulled, and no more in {STUCK:?}").into());
        }
        if have >= events {
            let Some((begin, before)) = first.filter(|(begin, _)| *begin < at) else {
                return Err("pulled within one look: set BENCH_EVENTS to more".into());
            };
            return Ok((events - before) as f64 / (at - begin).as_secs_f64());
        }
        std::thread::sleep(EVERY);
    }
}
