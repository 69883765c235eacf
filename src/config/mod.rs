//! The configuration: what the node is told, checked as a whole before anything starts.
//!
//! `keys` is the one table; `conf_file` and `settings` read it from file, environment and command
//! line; `channels_file` reads the channels; `dsn` reads a database's address; `rules` holds what
//! no single key can say. Opens no file and reads no environment: the caller hands the texts in.
//! Must not know any driver. Imported by `cli` and `node` only.

pub mod channels_file;
mod channels_lines;
mod channels_yaml;
pub mod conf_file;
pub mod dsn;
pub mod keys;
mod keys_table;
mod mask;
pub mod redis;
mod rules;
pub mod settings;
mod value;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::redis::{RedisAddress, RedisConfig};
pub use channels_file::{ChannelsSource, shipped_channels};
pub use conf_file::Problem;
pub use dsn::{MysqlDsn, MysqlHost, MysqlTls, PgHost, PostgresDsn, SslMode};
pub use keys::{readme_table, shipped_conf};
pub use settings::Settings;

use crate::channel::Registry;
use crate::event::Origin;
use crate::json::{DuplicateKeys, Profile};

/// Everything that a node is told.
pub struct Config {
    /// The `origin_dc` of every event that this node accepts.
    pub node_name: Origin,
    /// Worker threads; `None` follows the machine.
    pub cpu: Option<usize>,
    /// The listener and its limits.
    pub http: HttpConfig,
    /// The durable queue.
    pub queue: QueueConfig,
    /// From queue to storage.
    pub writer: WriterConfig,
    /// Where events end.
    pub storage: StorageConfig,
    /// What JSON is accepted.
    pub json: Profile,
    /// The channels.
    pub channels: Arc<Registry>,
    /// There is no channels file: `client_api_key` opens the one channel.
    pub channels_fallback: bool,
    /// How long a stop may take.
    pub shutdown_timeout: Duration,
    /// error, warn, info, debug or trace.
    pub log_level: String,
    /// Every key as it was set, for `check`.
    pub settings: Settings,
    /// Peers.
    pub replication: ReplicationConfig,
    /// What is odd without being wrong, each with its place.
    pub warnings: Vec<String>,
}

/// The listener and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// host:port, the host never empty: Go's `:8080` has become `0.0.0.0:8080`. `None` is off.
    pub listen: Option<String>,
    /// The largest body after inflation.
    pub max_body_bytes: usize,
    /// The time for the headers of a request.
    pub header_timeout: Duration,
    /// The time for a body.
    pub body_timeout: Duration,
    /// The silence allowed between requests.
    pub idle_timeout: Duration,
    /// The most connections.
    pub max_connections: usize,
    /// The most bytes of headers.
    pub max_header_bytes: usize,
    /// The most bytes of bodies in memory.
    pub max_inflight_bytes: usize,
    /// The time for an append to become durable.
    pub enqueue_timeout: Duration,
}

/// Where events wait for storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueBackend {
    /// The log on this node's own disk.
    File,
    /// A stream in Redis or Valkey.
    Redis,
}

/// The durable queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueConfig {
    /// Which it is.
    pub backend: QueueBackend,
    /// How Redis is used, or was.
    pub redis: Box<RedisConfig>,
    /// The path that segments are named after.
    pub path: PathBuf,
    /// The ack record.
    pub ack_path: PathBuf,
    /// When an event counts as durable.
    pub sync: SyncMode,
    /// The most events.
    pub max_events: u64,
    /// The most bytes.
    pub max_bytes: u64,
    /// The size of a segment.
    pub segment_bytes: u64,
    /// The share of the queue that one of several channels may fill.
    pub channel_share: f64,
    /// The free space below which appends are refused.
    pub min_free_bytes: u64,
    /// The most bytes of dead letters.
    pub dead_letter_max_bytes: u64,
}

/// When an event counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// After the sync that covers it.
    Ack,
    /// At once; the log is synced this often.
    Interval(Duration),
}

/// From queue to storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterConfig {
    /// Off keeps events in the queue.
    pub enabled: bool,
    /// How many batches may be in the storage at once.
    pub workers: usize,
    /// The most events of a batch; `None` is automatic.
    pub batch_size: Option<usize>,
    /// How long a batch may wait to fill.
    pub flush: Duration,
}

/// Where events end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageConfig {
    /// One file that needs no server.
    Sqlite {
        /// The database.
        path: PathBuf,
    },
    /// A PostgreSQL server.
    Postgres(Box<ServerConfig<PostgresDsn>>),
    /// A MySQL or MariaDB server.
    Mysql(Box<ServerConfig<MysqlDsn>>),
    /// One JSON object a line.
    File {
        /// The file.
        path: PathBuf,
        /// How often it is synced; an event is stored when it was.
        sync_every: Duration,
    },
    /// Nowhere.
    Noop,
}

/// How a database server is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig<D> {
    /// How it is reached.
    pub dsn: D,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// The most connections; more than there are writers, which keep theirs.
    pub max_open: usize,
    /// The most of them kept while idle.
    pub max_idle: usize,
    /// How long one is used; `None` is for ever.
    pub lifetime: Option<Duration>,
    /// Whether a lock in the database keeps a second node of this name out.
    pub origin_lock: bool,
}

/// Pulling from peers, and serving them.
#[derive(Clone, PartialEq, Eq)]
pub struct ReplicationConfig {
    /// Off pulls nothing.
    pub enabled: bool,
    /// What peers must send; `None` serves nobody.
    pub token: Option<String>,
    /// Who is pulled from.
    pub peers: Vec<PeerConfig>,
    /// How often a peer is asked that cannot hold a request.
    pub poll_interval: Duration,
    /// The most events in one page.
    pub batch_limit: usize,
    /// The longest silence of a peer.
    pub http_timeout: Duration,
}

impl std::fmt::Debug for ReplicationConfig {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicationConfig")
            .field("enabled", &self.enabled)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

/// A peer.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its `node_name`.
    pub name: Origin,
    /// Where it is.
    pub url: String,
}

fn replication(settings: &Settings) -> ReplicationConfig {
    let token = settings.text("replication_token");
    let peer = |text: &str| {
        let (name, url) = text.split_once('=')?;
        Some(PeerConfig { name: Origin::new(name.trim()).ok()?, url: url.trim().to_owned() })
    };
    ReplicationConfig {
        enabled: settings.flag("replication_enabled"),
        token: (!token.is_empty()).then(|| token.to_owned()),
        peers: settings
            .text("replication_peer")
            .split(',')
            .filter_map(|t| peer(t.trim()))
            .collect(),
        poll_interval: settings.millis("replication_poll_interval_ms"),
        batch_limit: size(settings.count("replication_batch_limit")),
        http_timeout: settings.millis("replication_http_timeout_ms"),
    }
}

/// Turns settings and channels into a configuration.
///
/// # Errors
/// Everything that is wrong, of the channels and between the keys.
pub fn build(settings: Settings, source: ChannelsSource) -> Result<Config, Vec<Problem>> {
    let mut problems = rules::problems(&settings);
    let mut warnings = settings.warnings().to_vec();
    warnings.extend(rules::warnings(&settings));

    let node_name = Origin::new(settings.text("node_name")).map_err(|e| {
        problems.push(Problem::new(settings.place("node_name"), format!("node_name: {e}")))
    });
    let storage = storage(&settings).map_err(|problem| problems.push(problem));
    let channels = channels_file::load(&source, settings.text("client_api_key"))
        .map_err(|of_channels| problems.extend(of_channels));
    let redis = redis::redis(&settings).map_err(|of_redis| problems.extend(of_redis));
    let (Ok(node_name), Ok(storage), Ok(channels), Ok(redis), true) =
        (node_name, storage, channels, redis, problems.is_empty())
    else {
        return Err(problems);
    };
    warnings.extend(dsn_warnings(&settings, &storage));
    warnings.extend(channels.warnings);
    warnings.extend(rules::known_key_warning(&settings, &channels.example_key_channels));

    Ok(Config {
        node_name,
        cpu: value::cpu(settings.text("cpu")).flatten(),
        http: http(&settings),
        queue: queue(&settings, redis),
        writer: writer(&settings),
        storage,
        json: json(&settings),
        replication: replication(&settings),
        channels: Arc::new(channels.registry),
        channels_fallback: channels.fallback,
        shutdown_timeout: settings.millis("shutdown_timeout_ms"),
        log_level: settings.text("log_level").to_owned(),
        settings,
        warnings,
    })
}

/// The bounds in the table keep every number far below what a `usize` holds on the platforms served.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn http(settings: &Settings) -> HttpConfig {
    let listen = settings.text("http_listen");
    let listen = match listen.strip_prefix(':') {
        Some(port) => Some(format!("0.0.0.0:{port}")),
        None => (!listen.is_empty()).then(|| listen.to_owned()),
    };
    HttpConfig {
        listen,
        max_body_bytes: size(settings.bytes("max_body_bytes")),
        header_timeout: settings.millis("http_header_timeout_ms"),
        body_timeout: settings.millis("http_body_timeout_ms"),
        idle_timeout: settings.millis("http_idle_timeout_ms"),
        max_connections: size(settings.count("http_max_connections")),
        max_header_bytes: size(settings.bytes("http_max_header_bytes")),
        max_inflight_bytes: size(settings.bytes("http_max_inflight_bytes")),
        enqueue_timeout: settings.millis("enqueue_timeout_ms"),
    }
}

fn queue(settings: &Settings, redis: RedisConfig) -> QueueConfig {
    let sync = match settings.text("queue_file_sync") {
        "interval" => SyncMode::Interval(settings.millis("queue_file_sync_ms")),
        _ => SyncMode::Ack,
    };
    QueueConfig {
        backend: match settings.text("queue_backend") {
            "redis" => QueueBackend::Redis,
            _ => QueueBackend::File,
        },
        redis: Box::new(redis),
        path: settings.text("queue_file_path").into(),
        ack_path: settings.text("queue_file_ack_path").into(),
        sync,
        max_events: settings.count("queue_buffer"),
        max_bytes: settings.bytes("queue_max_bytes"),
        segment_bytes: settings.bytes("queue_segment_bytes"),
        channel_share: settings.ratio("queue_channel_share"),
        min_free_bytes: settings.bytes("min_free_bytes"),
        dead_letter_max_bytes: settings.bytes("dead_letter_max_bytes"),
    }
}

fn writer(settings: &Settings) -> WriterConfig {
    WriterConfig {
        enabled: settings.flag("writer_enabled"),
        workers: size(settings.count("writer_workers")),
        batch_size: value::automatic(settings.text("writer_batch_size")).flatten(),
        flush: settings.millis("writer_batch_flush_ms"),
    }
}

/// `rules` has refused the backends that are not here.
fn storage(settings: &Settings) -> Result<StorageConfig, Problem> {
    Ok(match settings.text("storage_backend") {
        "noop" => StorageConfig::Noop,
        "file" => StorageConfig::File {
            path: settings.text("storage_file_path").into(),
            sync_every: settings.millis("storage_file_sync_ms"),
        },
        "postgres" => StorageConfig::Postgres(Box::new(server(settings, &POSTGRES)?)),
        "mysql" => StorageConfig::Mysql(Box::new(server(settings, &MYSQL)?)),
        _ => StorageConfig::Sqlite { path: settings.text("storage_sqlite_path").into() },
    })
}

/// The keys of a database server, and how its DSN is read.
struct ServerKeys<D> {
    backend: &'static str,
    dsn: &'static str,
    form: &'static str,
    parse: fn(&str) -> Result<D, String>,
    connect_timeout: &'static str,
    max_open: &'static str,
    max_idle: &'static str,
    lifetime: &'static str,
}

const POSTGRES: ServerKeys<PostgresDsn> = ServerKeys {
    backend: "postgres",
    dsn: "storage_postgres_dsn",
    form: dsn::POSTGRES_FORM,
    parse: dsn::postgres,
    connect_timeout: "storage_postgres_connect_timeout_ms",
    max_open: "storage_postgres_max_open_conns",
    max_idle: "storage_postgres_max_idle_conns",
    lifetime: "storage_postgres_conn_max_lifetime_min",
};

const MYSQL: ServerKeys<MysqlDsn> = ServerKeys {
    backend: "mysql",
    dsn: "storage_mysql_dsn",
    form: dsn::MYSQL_FORM,
    parse: dsn::mysql,
    connect_timeout: "storage_mysql_connect_timeout_ms",
    max_open: "storage_mysql_max_open_conns",
    max_idle: "storage_mysql_max_idle_conns",
    lifetime: "storage_mysql_conn_max_lifetime_min",
};

fn server<D>(settings: &Settings, keys: &ServerKeys<D>) -> Result<ServerConfig<D>, Problem> {
    let ServerKeys { backend, dsn: key, form, .. } = keys;
    let text = settings.text(key);
    if text.is_empty() {
        let name = if settings.is_explicit(key) { key } else { "storage_backend" };
        let text = format!("storage_backend = {backend} needs {key}; write {key} = {form}");
        return Err(Problem::new(settings.place(name), text));
    }
    let dsn = (keys.parse)(text)
        .map_err(|wrong| Problem::new(settings.place(key), format!("{key}: {wrong}")))?;
    let max_open = size(settings.count(keys.max_open));
    let lifetime = settings.millis(keys.lifetime);
    Ok(ServerConfig {
        dsn,
        connect_timeout: settings.millis(keys.connect_timeout),
        max_open,
        // its default is for the default of the other
        max_idle: size(settings.count(keys.max_idle)).min(max_open),
        lifetime: (!lifetime.is_zero()).then_some(lifetime),
        origin_lock: settings.text("storage_origin_lock") == "on",
    })
}

fn dsn_warnings(settings: &Settings, storage: &StorageConfig) -> Vec<String> {
    let (key, unknown) = match storage {
        StorageConfig::Postgres(server) => (POSTGRES.dsn, &server.dsn.unknown),
        StorageConfig::Mysql(server) => (MYSQL.dsn, &server.dsn.unknown),
        _ => return Vec::new(),
    };
    let place = settings.place(key);
    let of_name = |name: &String| {
        format!("{place}: {key}: the parameter {name} is not known and has no effect")
    };
    unknown.iter().map(of_name).collect()
}

fn json(settings: &Settings) -> Profile {
    Profile {
        max_depth: size(settings.count("json_max_depth")),
        duplicate_keys: match settings.text("json_duplicate_keys") {
            "reject" => DuplicateKeys::Reject,
            _ => DuplicateKeys::Last,
        },
        max_items: size(settings.count("max_batch_items")),
    }
}

#[cfg(test)]
mod tests;
