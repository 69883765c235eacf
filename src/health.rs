//! What `/healthz` and `/readyz` say: one snapshot of the node.
//!
//! Does not know HTTP. Never a payload, a key or a password.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::life::History;
use crate::queue::{AnyQueue, Queue, QueueStats};
use crate::replicate::status::{Board, PeerStatus};

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `node_name`.
    pub node: String,
    /// Worker threads.
    pub threads: usize,
    /// `file` or `redis`.
    pub queue_backend: &'static str,
    /// `ack` or `interval`; `server` where a server was configured for it.
    pub queue_sync: &'static str,
    /// `storage_backend`.
    pub storage_backend: &'static str,
    /// `writer_workers`, as far as storage takes that many; 0 where writing is off.
    pub writer_workers: usize,
    /// What is odd about the configuration, for as long as it is.
    pub degraded: Vec<String>,
}

/// What a database server says of its durability: names and values.
pub type ServerFacts = dyn Fn() -> Vec<(String, String)> + Send + Sync;

/// What is looked up of the other parts.
pub struct Looked {
    /// The latest trouble with storage.
    pub trouble: watch::Receiver<Option<String>>,
    /// What the database server says.
    pub server: Box<ServerFacts>,
    /// By which id this node goes.
    pub history: Arc<History>,
    /// How each peer stands; `None` where nothing is pulled.
    pub peers: Option<Arc<Board>>,
}

/// Where the node's state is looked up.
pub struct Health {
    /// What does not change.
    pub facts: Facts,
    queue: Arc<AnyQueue>,
    looked: Looked,
    clock: Clock,
    started: Duration,
    stopping: AtomicBool,
    /// Requests that were refused.
    pub rejected: AtomicU64,
}

/// `/healthz`.
#[derive(Debug, Serialize)]
pub struct Report {
    status: &'static str,
    version: &'static str,
    node: String,
    node_id: String,
    uptime_seconds: u64,
    gomaxprocs: usize,
    degraded: Vec<String>,
    damage: Vec<String>,
    ingest: Ingest,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<Replicated>,
}

#[derive(Debug, Serialize)]
struct Replicated {
    enabled: bool,
    peers: Vec<PeerStatus>,
}

#[derive(Debug, Serialize)]
struct Ingest {
    queue_backend: &'static str,
    queue_sync: &'static str,
    queue_depth: u64,
    queue_bytes: u64,
    oldest_event_age_seconds: Option<f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    queue_server: BTreeMap<String, String>,
    storage_backend: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    storage_server: BTreeMap<String, String>,
    writer_workers: usize,
    accepted_total: u64,
    recovered_total: u64,
    rejected_total: u64,
    written_total: u64,
    dead_letter_total: u64,
    lost_total: u64,
    last_error: Option<String>,
}

impl Health {
    /// For a node that starts now.
    #[must_use]
    pub fn new(facts: Facts, queue: Arc<AnyQueue>, looked: Looked, clock: Clock) -> Self {
        let started = clock.mono();
        let (stopping, rejected) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { facts, queue, looked, clock, started, stopping, rejected }
    }

    /// The node begins to stop: not ready and not healthy from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether the node is stopping.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Why this node takes no events; `None` where it does. Storage and peers never count: events
    /// wait in the queue.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if self.is_stopping() {
            return Some("this node is stopping".to_owned());
        }
        self.queue.stats().refusing
    }

    /// How each peer stands; none where nothing is pulled.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.looked.peers.as_ref().map(|board| board.snapshot()).unwrap_or_default()
    }

    /// The counts, of one moment.
    #[must_use]
    pub fn queue_stats(&self) -> QueueStats {
        self.queue.stats()
    }

    /// Everything.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // seconds, for people
    pub fn report(&self) -> Report {
        let stats = self.queue.stats();
        let sum = |pick: fn(&crate::queue::accounts::Counts) -> u64| {
            stats.channels.iter().map(|(_, counts)| pick(counts)).sum::<u64>()
        };
        let now = self.clock.wall().0;
        let age = |at: i64| (now - at).max(0) as f64 / 1e6;
        let facts = self.facts.clone();
        let Looked { trouble, server, history, peers } = &self.looked;
        let trouble = trouble.borrow().clone();
        // what the storage says comes first: it may be why appends are refused
        let last_error = trouble.clone().or_else(|| stats.refusing.clone());
        let mut degraded = facts.degraded;
        degraded.extend(trouble);
        degraded.extend(stats.refusing.clone());
        let server: BTreeMap<String, String> = server().into_iter().collect();
        degraded.extend(history.trouble());
        degraded.extend(peers.iter().flat_map(|board| board.troubles()));
        degraded.extend(doubts(&server));
        degraded.extend(stats.doubts.iter().cloned());
        degraded.extend(stats.parked.iter().map(ToString::to_string));
        let status = match () {
            () if self.is_stopping() => "stopping",
            () if !degraded.is_empty() || !stats.damage.is_empty() => "degraded",
            () => "ok",
        };
        Report {
            status,
            version: env!("CARGO_PKG_VERSION"),
            node: facts.node,
            node_id: history.id(),
            uptime_seconds: self.clock.mono().saturating_sub(self.started).as_secs(),
            gomaxprocs: facts.threads,
            degraded,
            damage: stats.damage.clone(),
            ingest: Ingest {
                queue_backend: facts.queue_backend,
                queue_sync: facts.queue_sync,
                queue_depth: sum(|c| c.queued),
                queue_bytes: stats.bytes,
                oldest_event_age_seconds: stats.oldest_micros.map(age),
                queue_server: stats.server.into_iter().collect(),
                storage_backend: facts.storage_backend,
                storage_server: server,
                writer_workers: facts.writer_workers,
                accepted_total: sum(|c| c.accepted),
                recovered_total: sum(|c| c.recovered),
                rejected_total: self.rejected.load(Ordering::Relaxed),
                written_total: sum(|c| c.stored),
                dead_letter_total: sum(|c| c.dead_lettered),
                lost_total: sum(|c| c.lost),
                last_error,
            },
            replication: peers
                .as_ref()
                .map(|board| Replicated { enabled: true, peers: board.snapshot() }),
        }
    }
}

/// Where a server would forget what it confirmed.
fn doubts(server: &BTreeMap<String, String>) -> Vec<String> {
    let safe = [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("innodb_doublewrite", "on"),
        ("innodb_flush_log_at_trx_commit", "1"),
        ("sync_binlog", "1"),
    ];
    let doubt = |(name, good): (&str, &str)| {
        let value = server.get(name).filter(|v| !v.is_empty() && *v != good)?;
        // without a binary log there is nothing to sync
        (value != "no binary log").then(|| {
            format!(
                "the database server runs with {name} = {value}: if its machine fails it may lose what it confirmed; set it to {good}"
            )
        })
    };
    safe.into_iter().filter_map(doubt).collect()
}
