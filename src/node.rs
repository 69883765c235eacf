//! A node: the one place where all parts are put together, and taken apart again.
//!
//! Decides nothing that a part could decide.

pub mod queue;
mod replication;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::{
    Config, MysqlDsn, MysqlHost, MysqlTls, PgHost, PostgresDsn, QueueBackend, ServerConfig,
    SslMode, StorageConfig, SyncMode,
};
use crate::control;
use crate::fsx::OsDisk;
use crate::health::{self, Facts, Health};
use crate::http::{App, BodyLimits, Deadlines, Limits, Peers, Routes, Server};
use crate::ingest::Door;
use crate::life::History;
use crate::metrics::Metrics;
use crate::queue::{AnyQueue, Queue};
use crate::seq::Witness;
use crate::storage::file::FileStorage;
use crate::storage::noop::NoopStorage;
use crate::storage::sql::{self, SqlStorage, mysql, postgres, sqlite};
use crate::storage::{AnyStorage, Storage, file as file_storage};
use crate::task::{self, Spine};
use crate::writer::{self, Orders};
use replication::Replication;

/// Why a node did not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The queue cannot be opened.
    #[error("the queue cannot be opened: {0}")]
    Queue(#[from] queue::QueueError),
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {addr}: {source}; set http_listen to another address, or stop what has it"
    )]
    Listen {
        /// `http_listen`.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// A peer cannot be asked as it is configured.
    #[error("replication_peer {peer}: {why}")]
    Peer {
        /// Its name.
        peer: String,
        /// What is wrong.
        why: String,
    },
    /// A fault of ours.
    #[error("the metrics cannot be made: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// How long requests under way may take after the drain.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How long a write that is under way may take after that.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// A running node.
pub struct Node {
    /// Where it listens.
    pub addr: Option<SocketAddr>,
    queue: Arc<AnyQueue>,
    health: Arc<Health>,
    spine: Spine,
    stop_http: watch::Sender<bool>,
    stop_writing: watch::Sender<bool>,
    http: Option<JoinHandle<()>>,
    writing: JoinHandle<()>,
    control: Option<JoinHandle<()>>,
    timeout: Duration,
    draining: bool,
    ready_line: String,
}

impl Node {
    /// Opens, binds and starts everything.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: &Config, threads: usize) -> Result<Self, StartError> {
        let (clock, spine, metrics) = (Clock::system(), Spine::default(), Metrics::new()?);
        let seconds = metrics.sync_seconds.clone();
        let queue = Arc::new(queue::open(config, &clock, &spine, seconds).await?);
        let storage = Arc::new(open_storage(config, &clock));
        let trouble = Arc::new(watch::channel(None).0);
        let report = writer::Report {
            trouble: trouble.clone(),
            write_seconds: metrics.write_seconds.clone(),
            met: Arc::default(),
        };
        let known = queue.node();
        let past = known.history.ids.into_iter().map(|(id, _)| id).collect();
        let history = Arc::new(History::new(&known.node_id, past));
        let workers = config.writer.workers.min(storage.lanes());
        let workers = if config.writer.enabled { workers } else { 0 };
        let facts = facts(config, threads, workers);
        let (stop_http, _) = watch::channel(false);
        let (stop_writing, stop) = watch::channel(false);
        let parts = replication::Parts {
            config,
            queue: &queue,
            clock: &clock,
            spine: &spine,
            stop: &stop_writing,
            history: &history,
            report: &report,
        };
        let Replication { board, peers, operating } = replication::start(&parts, &storage)?;
        let told = storage.clone();
        let looked = health::Looked {
            trouble: trouble.subscribe(),
            server: Box::new(move || told.facts()),
            history: history.clone(),
            peers: config.replication.enabled.then_some(board),
        };
        let health = Arc::new(Health::new(facts, queue.clone(), looked, clock.clone()));

        let limit = writer::batch_limit(config.writer.batch_size, workers);
        let flush = config.writer.flush;
        let orders = Orders { stop, limit, flush, busy: Arc::default() };
        let (to, of) = (storage, queue.clone());
        let writing = Writing { of, to, report, orders, workers, spine: spine.clone(), history };
        let writing = spine.task("writing", writing.run());
        let app = app(config, &queue, &health, &metrics, peers, &clock);
        let (addr, http) = match listen(config, app, clock, metrics, &stop_http).await? {
            Some((addr, run)) => (Some(addr), Some(spine.task("http", run))),
            None => (None, None),
        };
        let hands = control::Hands { queue: queue.clone(), replication: operating };
        let control = control::start(&config.queue.path, hands, stop_writing.subscribe());
        Ok(Self {
            addr,
            queue,
            health,
            spine,
            stop_http,
            stop_writing,
            http,
            writing,
            control,
            timeout: config.shutdown_timeout,
            draining: config.writer.enabled,
            ready_line: ready_line(config, addr),
        })
    }

    /// The one line on stdout that says that the node listens.
    #[must_use]
    pub fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// Waits until a part of the spine died; which, and why.
    pub async fn died(&self) -> String {
        self.spine.died().await
    }

    /// Stops in order: not ready, no new connections, requests finished, queue drained as far as the
    /// deadline allows, log sealed. What is undrained stays in the log.
    pub async fn shutdown(self) {
        self.spine.stopping();
        // from now on events are refused and /healthz says 503, to whoever asks: a balancer sees a
        // node that is leaving, not one that is broken
        self.health.stop();
        let drain = async {
            while self.draining && self.queue.stats().channels.iter().any(|(_, c)| c.queued > 0) {
                task::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(self.timeout, drain).await.is_err() {
            let left: u64 = self.queue.stats().channels.iter().map(|(_, c)| c.queued).sum();
            tracing::warn!(
                "shutdown_timeout_ms has passed; {left} events stay in the queue for the next start"
            );
        }
        self.stop_http.send_replace(true);
        if let Some(http) = self.http
            && tokio::time::timeout(LAST_ANSWERS, http).await.is_err()
        {
            tracing::warn!("some clients have not taken their answers; their connections are cut");
        }
        self.stop_writing.send_replace(true);
        self.queue.stop_leasing();
        if tokio::time::timeout(LAST_WRITES, self.writing).await.is_err() {
            tracing::warn!(
                "the storage does not answer; what it was sent last is looked at again by the next start"
            );
        }
        if let Some(control) = self.control {
            let _ = control.await;
        }
        self.queue.close().await;
        tracing::info!("stopped");
    }
}

/// What HTTP works with.
fn app(
    config: &Config,
    queue: &Arc<AnyQueue>,
    health: &Arc<Health>,
    metrics: &Metrics,
    peers: Peers,
    clock: &Clock,
) -> Arc<App> {
    Arc::new(App {
        registry: config.channels.clone(),
        door: Door {
            queue: queue.clone(),
            clock: clock.clone(),
            profile: config.json,
            enqueue_timeout: config.http.enqueue_timeout,
        },
        health: health.clone(),
        metrics: metrics.clone(),
        body_limits: BodyLimits {
            max_body: config.http.max_body_bytes,
            timeout: config.http.body_timeout,
            max_inflight: config.http.max_inflight_bytes,
        },
        inflight: Arc::default(),
        peers,
    })
}

/// Binds; where, and what serves from then on. `None` where HTTP is off.
async fn listen(
    config: &Config,
    app: Arc<App>,
    clock: Clock,
    metrics: Metrics,
    stop: &watch::Sender<bool>,
) -> Result<Option<(SocketAddr, impl Future<Output = ()> + Send + 'static)>, StartError> {
    let Some(listen) = &config.http.listen else { return Ok(None) };
    let bound = Server::bind(listen, limits(config), clock, metrics).await;
    let say = |source| StartError::Listen { addr: listen.clone(), source };
    let server = bound.map_err(say)?;
    let addr = server.addr().map_err(say)?;
    Ok(Some((addr, server.run(Routes::new(app), stop.subscribe()))))
}

/// Everything between the queue and the storage.
struct Writing {
    of: Arc<AnyQueue>,
    to: Arc<AnyStorage>,
    report: writer::Report,
    orders: Orders,
    workers: usize,
    spine: Spine,
    history: Arc<History>,
}

impl Writing {
    /// First contact with storage, then the workers, until the node stops.
    async fn run(self) {
        let Self { of: queue, to: storage, report, orders, workers, spine, history } = self;
        let mut stop = orders.stop.clone();
        // a queue on a server that does not answer yet knows neither what it holds nor what is parked
        tokio::select! {
            () = queue.met() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        // one position for all channels goes up only, and what is parked has lower seqs
        if storage.lanes() == 1 && writer::parked_elsewhere(&*queue, &report) {
            let _ = stop.wait_for(|stop| *stop).await;
            return;
        }
        let contact = || writer::history::contact(&queue);
        let contact = writer::first_contact(contact, &*storage, &report, &mut stop).await;
        let Some(last) = contact else { return };
        history.met();
        if let Some(last) = last {
            queue.seen(last, Witness::Own);
        }
        tokio::select! {
            () = queue::make_certain(&queue) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let mut running = Vec::new();
        let aside =
            writer::run_parked(queue.clone(), storage.clone(), report.clone(), orders.clone());
        running.extend((workers > 0).then(|| spine.task("writer of parked channels", aside)));
        for i in 1..=workers {
            let run = writer::run(queue.clone(), storage.clone(), report.clone(), orders.clone());
            running.push(spine.task(&format!("writer {i}"), run));
        }
        for worker in running {
            let _ = worker.await;
        }
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// The configured storage, unopened.
#[must_use]
pub fn open_storage(config: &Config, clock: &Clock) -> AnyStorage {
    let sql = || sql::Options {
        origin: config.node_name.clone(),
        registry: config.channels.clone(),
        clock: clock.clone(),
    };
    match &config.storage {
        StorageConfig::Noop => AnyStorage::Noop(NoopStorage),
        StorageConfig::File { path, sync_every } => {
            AnyStorage::File(FileStorage::new(file_storage::Options {
                disk: OsDisk::shared(),
                path: path.clone(),
                sync_every: *sync_every,
                origin: config.node_name.clone(),
                clock: clock.clone(),
                lock: true,
            }))
        }
        StorageConfig::Sqlite { path } => {
            AnyStorage::Sqlite(SqlStorage::new(sqlite::Database::new(path.clone()), sql()))
        }
        StorageConfig::Postgres(postgres) => {
            let server = postgres::Server::new(postgres_options(postgres));
            AnyStorage::Postgres(SqlStorage::new(server, sql()))
        }
        StorageConfig::Mysql(mysql) => {
            let server = mysql::Server::new(mysql_options(mysql, config.http.max_body_bytes));
            AnyStorage::Mysql(SqlStorage::new(server, sql()))
        }
    }
}

fn postgres_options(config: &ServerConfig<PostgresDsn>) -> postgres::Options {
    let dsn = &config.dsn;
    let (host, socket, port) = match &dsn.host {
        PgHost::Tcp { host, port } => (host.clone(), None, *port),
        PgHost::Socket { dir, port } => (String::new(), Some(dir.clone()), *port),
    };
    postgres::Options {
        address: postgres::Address {
            host,
            socket,
            port,
            user: dsn.user.clone(),
            password: dsn.password.clone(),
            database: dsn.database.clone(),
            ssl_mode: match dsn.ssl {
                SslMode::Disable => "disable",
                SslMode::Allow => "allow",
                SslMode::Prefer => "prefer",
                SslMode::Require => "require",
                SslMode::VerifyCa => "verify-ca",
                SslMode::VerifyFull => "verify-full",
            },
            ssl_root_cert: dsn.ssl_root_cert.clone(),
            ssl_cert: dsn.ssl_cert.clone().zip(dsn.ssl_key.clone()),
            application_name: dsn.application_name.clone(),
            settings: dsn.options.clone(),
        },
        connect_timeout: config.connect_timeout,
        max_open: u32::try_from(config.max_open).unwrap_or(u32::MAX),
        lifetime: config.lifetime,
        origin_lock: config.origin_lock,
    }
}

/// `largest_event` in bytes must pass the server's packets.
fn mysql_options(config: &ServerConfig<MysqlDsn>, largest_event: usize) -> mysql::Options {
    let dsn = &config.dsn;
    let (host, socket, port) = match &dsn.host {
        MysqlHost::Tcp { host, port } => (host.clone(), None, *port),
        MysqlHost::Socket(path) => (String::new(), Some(path.clone()), 0),
    };
    mysql::Options {
        address: mysql::Address {
            host,
            socket,
            port,
            user: dsn.user.clone(),
            password: dsn.password.clone(),
            database: dsn.database.clone(),
            ssl_mode: match dsn.tls {
                MysqlTls::Disabled => "disabled",
                MysqlTls::Preferred => "preferred",
                MysqlTls::Required => "required",
                MysqlTls::VerifyCa => "verify_ca",
                MysqlTls::VerifyIdentity => "verify_identity",
            },
            ssl_root_cert: dsn.ssl_root_cert.clone(),
            ssl_cert: dsn.ssl_cert.clone().zip(dsn.ssl_key.clone()),
        },
        connect_timeout: config.connect_timeout,
        max_open: u32::try_from(config.max_open).unwrap_or(u32::MAX),
        lifetime: config.lifetime,
        origin_lock: config.origin_lock,
        largest_event,
    }
}

fn facts(config: &Config, threads: usize, workers: usize) -> Facts {
    let mut degraded = Vec::new();
    if config.channels_fallback {
        degraded
            .push("no channels file: client_api_key opens the one channel events_raw".to_owned());
    }
    Facts {
        node: config.node_name.to_string(),
        threads,
        queue_backend: match config.queue.backend {
            QueueBackend::File => "file",
            QueueBackend::Redis => "redis",
        },
        queue_sync: match (config.queue.backend, config.queue.sync) {
            // as the server was configured: queue_server says how
            (QueueBackend::Redis, _) => "server",
            (QueueBackend::File, SyncMode::Ack) => "ack",
            (QueueBackend::File, SyncMode::Interval(_)) => "interval",
        },
        storage_backend: match config.storage {
            StorageConfig::File { .. } => "file",
            StorageConfig::Noop => "noop",
            StorageConfig::Sqlite { .. } => "sqlite",
            StorageConfig::Postgres(_) => "postgres",
            StorageConfig::Mysql(_) => "mysql",
        },
        writer_workers: workers,
        degraded,
    }
}

fn limits(config: &Config) -> Limits {
    let deadlines =
        Deadlines { header: config.http.header_timeout, idle: config.http.idle_timeout };
    Limits {
        deadlines,
        max_connections: config.http.max_connections,
        max_header_bytes: config.http.max_header_bytes,
    }
}

fn ready_line(config: &Config, addr: Option<SocketAddr>) -> String {
    let http = addr.map_or_else(|| "off".to_owned(), |addr| addr.to_string());
    let storage = match &config.storage {
        StorageConfig::File { path, .. } => format!("file:{}", path.display()),
        StorageConfig::Noop => "noop".to_owned(),
        StorageConfig::Sqlite { path } => format!("sqlite:{}", path.display()),
        StorageConfig::Postgres(postgres) => {
            format!("postgres:{}/{}", postgres.dsn.host, postgres.dsn.database)
        }
        StorageConfig::Mysql(mysql) => format!("mysql:{}/{}", mysql.dsn.host, mysql.dsn.database),
    };
    format!(
        "replicon {} ready node={} http={http} queue={} storage={storage}",
        env!("CARGO_PKG_VERSION"),
        config.node_name,
        queue::shown(config),
    )
}
