//! The table of all configuration keys, as data: name, default, kind, meaning.
//!
//! Knows no file, no environment and nobody who uses a key. `keys` gives the words their meaning.
//! A key marked `commented` is shown as a comment in the shipped file, since writing it there would
//! say something (a v1.0.2 leftover that is warned about) or belongs to a backend not chosen.

use super::keys::{Key, Kind, Section};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;

const PLAIN: Key = Key {
    name: "",
    default: "",
    kind: Kind::Text,
    doc: "",
    section: Section::Node,
    repeatable: false,
    secret: false,
    commented: false,
};

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

const fn size(min: u64, max: u64) -> Kind {
    Kind::Bytes { min, max }
}

const fn millis(min: u64, max: u64) -> Kind {
    Kind::Millis { min, max }
}

/// One line a key; the words after the kind are flags of [`Key`].
macro_rules! keys {
    ($($section:ident { $($name:literal = $default:literal, $kind:expr $(, $flag:ident)*; $doc:literal)* })*) => {
        &[$($(Key {
            name: $name,
            default: $default,
            kind: $kind,
            doc: $doc,
            section: Section::$section,
            $($flag: true,)*
            ..PLAIN
        },)*)*]
    };
}

/// Every key that a configuration may hold, in the order of the shipped file.
pub static KEYS: &[Key] = keys! {
    Node {
        "node_name" = "dc1", Kind::Name;
            "The name of this node: the origin_dc of every event it accepts. Never change it on a node that holds events, and never give two nodes the same."
        "channels_file" = "conf/channels.yml", Kind::Path, commented;
            "The channels. A relative path is looked up under the working directory; where nothing is set, a channels.yml beside this file is taken too."
        "cpu" = "auto", Kind::Cpu;
            "Worker threads: auto (also -1 or *) follows the machine and its cgroup limits, a number pins them. /healthz reports it as gomaxprocs."
        "shutdown_timeout_ms" = "10000", millis(0, HOUR);
            "How long a stop may take to finish requests and drain the queue. What is undrained stays in the queue."
        "log_level" = "info", Kind::Choice(&["error", "warn", "info", "debug", "trace"]);
            "How much is logged: error, warn, info, debug or trace."
        "strict_config" = "false", Kind::Bool;
            "Refuse unknown keys in this file instead of warning about them."
    }
    Security {
        "client_api_key" = "", Kind::Secret, secret;
            "The key of the one raw channel events_raw that is served where the channels file is missing."
        "replication_token" = "", Kind::Secret, secret;
            "What peers send as X-Replicon-Token, the same on all nodes. Empty means that peers are not served."
    }
    Http {
        "http_listen" = "127.0.0.1:8080", Kind::Listen;
            "Where HTTP is served: host:port; :8080 means all interfaces; empty means off."
        "https_enabled" = "false", Kind::Bool;
            "Serve HTTPS too. Not part of 2.0.0."
        "https_listen" = "0.0.0.0:8443", Kind::Listen, commented;
            "Where HTTPS is served: host:port."
        "tls_cert_file" = "", Kind::Path, commented;
            "The certificate chain, PEM."
        "tls_key_file" = "", Kind::Path, commented;
            "The private key of the certificate, PEM."
    }
    Limits {
        "max_body_bytes" = "4MiB", size(64, 256 * MIB);
            "The largest request body, after inflation. Larger ones are answered 413."
        "max_batch_items" = "1000", count(1, 1_000_000);
            "The most JSON objects in one request."
        "http_header_timeout_ms" = "10000", millis(10, HOUR);
            "How long a client may take to send the headers of a request."
        "http_body_timeout_ms" = "30000", millis(10, HOUR);
            "How long a client may take to send a request body."
        "http_idle_timeout_ms" = "75000", millis(10, HOUR);
            "How long a connection may stay silent between requests. Keep it above the 60 s of common load balancers."
        "http_max_connections" = "20000", count(1, 1_000_000);
            "The most client connections at once."
        "http_max_header_bytes" = "32KiB", size(8 * KIB, MIB);
            "The most bytes in the headers of one request. More are answered 431."
        "http_max_inflight_bytes" = "256MiB", size(64, TIB);
            "The most bytes of request bodies held in memory at once."
        "enqueue_timeout_ms" = "5000", millis(1, HOUR);
            "How long a request waits for its events to be durable before it is answered 503."
        "json_max_depth" = "31", count(1, 128);
            "The deepest nesting accepted. Above 31 MariaDB would refuse what was accepted."
        "json_duplicate_keys" = "last", Kind::Choice(&["last", "reject"]);
            "What happens to an object that holds a key twice: the last one counts and the earlier are cut out (last), or the request is answered 400 (reject)."
    }
    Queue {
        "queue_backend" = "file", Kind::Choice(&["file", "redis"]);
            "Where accepted events wait for storage: file (a log on this node's disk) or redis (a stream in Redis 6.2 or later, or Valkey). It can be changed once no event waits."
        "queue_file_path" = "data/queue/ingest.log", Kind::Path;
            "The log. Its segments are this path with a number appended."
        "queue_file_ack_path" = "data/queue/ingest.ack", Kind::Path;
            "How far the log has been written to storage."
        "queue_file_sync" = "ack", Kind::Choice(&["ack", "interval"]);
            "ack: a 202 is sent after the disk has confirmed the events. interval: it is sent before, and a power cut loses up to queue_file_sync_ms of acknowledged events."
        "queue_file_sync_ms" = "200", millis(1, 60 * SECOND), commented;
            "How often the log is synced where queue_file_sync = interval. It has no effect otherwise."
        "queue_buffer" = "10000000", count(1, 1_000_000_000_000);
            "The most events that may wait. Beyond it requests are answered 429."
        "queue_max_bytes" = "8GiB", size(64 * KIB, 1024 * TIB);
            "The most bytes that may wait. Beyond it requests are answered 429."
        "queue_segment_bytes" = "64MiB", size(64 * KIB, GIB);
            "The size of one file of the log. A file is deleted once all its events are stored."
        "queue_channel_share" = "0.8", Kind::Ratio;
            "The share of the queue that one channel may fill where several are enabled."
        "min_free_bytes" = "256MiB", size(0, 1024 * TIB);
            "The free disk space below which requests are refused."
        "dead_letter_max_bytes" = "1GiB", size(64 * KIB, 1024 * TIB);
            "The most bytes of dead letters: events that the storage refused for good."
    }
    QueueRedis {
        "queue_redis_network" = "tcp", Kind::Choice(&["tcp", "unix"]), commented;
            "How Redis or Valkey is reached: tcp or unix."
        "queue_redis_addr" = "127.0.0.1:6379", Kind::Text, commented;
            "host:port, rediss://host:port for TLS, or with queue_redis_network = unix the path of a socket."
        "queue_redis_username" = "", Kind::Text, commented;
            "The user to log in as; empty means the default user."
        "queue_redis_password" = "", Kind::Secret, secret, commented;
            "The password; empty means none."
        "queue_redis_password_file" = "", Kind::Path, commented;
            "A file that holds the password, instead of queue_redis_password."
        "queue_redis_tls_ca_file" = "", Kind::Path, commented;
            "Certificates to trust over TLS, PEM; empty means those of the machine."
        "queue_redis_db" = "0", count(0, 1_000_000), commented;
            "The number of the database."
        "queue_redis_stream" = "replicon:ingest", Kind::Text, commented;
            "The stream of waiting events. It belongs to one node; on a cluster this name and that of the dead letters need the same hash tag, such as {replicon}:ingest."
        "queue_redis_group" = "writer", Kind::Text, commented;
            "The consumer group of the writers."
        "queue_redis_consumer" = "replicon", Kind::Text, commented;
            "The name of this consumer in the group."
        "queue_redis_dlq_stream" = "replicon:ingest:dlq", Kind::Text, commented;
            "The stream of dead letters; they count against dead_letter_max_bytes."
        "queue_redis_maxlen" = "0", count(0, 1_000_000_000_000), commented;
            "The most events that may wait in the stream, beside queue_buffer; 0 means no other bound. Beyond it requests are answered 429. It never trims: an event leaves the stream only once it is stored."
        "queue_redis_max_retries" = "5", count(0, 1_000_000), commented;
            "How often an event that the storage refuses for what it holds is tried before it becomes a dead letter. Outages of the storage never count."
        "queue_redis_timeout_ms" = "1500", millis(1, HOUR), commented;
            "How long one command may take. A request whose events are undecided by then is answered 503, as open."
        "queue_redis_wait_aof" = "false", Kind::Bool, commented;
            "Answer 202 only when the server has synced the events (WAITAOF, Redis 7.2 or later). With appendfsync everysec a request then takes up to a second."
    }
    Writer {
        "writer_enabled" = "true", Kind::Bool;
            "Write waiting events to storage. Where it is off they stay in the queue."
        "writer_workers" = "1", count(1, 256);
            "How many batches may be in the storage at once."
        "writer_batch_size" = "auto", Kind::Auto;
            "The most events in one storage write: auto follows what the storage takes best, a number is the maximum."
        "writer_batch_flush_ms" = "20", millis(0, 60 * SECOND);
            "How long a batch waits to fill while another one is in the storage. An idle writer never waits."
    }
    Storage {
        "storage_backend" = "sqlite", Kind::Choice(&["sqlite", "postgres", "file", "noop", "mysql"]);
            "Where events end: sqlite (one file, no server), postgres, mysql (MySQL 8 and 9, MariaDB 10.6 and later), file (one JSON object a line) or noop (discards them; for benchmarks)."
        "storage_sqlite_path" = "data/db/replicon.db", Kind::Path;
            "The SQLite database. Its write-ahead log lies beside it."
        "storage_postgres_dsn" = "", Kind::Dsn, secret, commented;
            "How PostgreSQL is reached, such as postgres://USER:PASSWORD@127.0.0.1:5432/replicon?sslmode=disable or host=/run/postgresql user=USER dbname=replicon."
        "storage_postgres_connect_timeout_ms" = "3000", millis(1, HOUR), commented;
            "How long connecting may take."
        "storage_postgres_max_open_conns" = "16", count(1, 10_000), commented;
            "The most connections. Each writer keeps one, so that there must be more than writer_workers."
        "storage_postgres_max_idle_conns" = "16", count(0, 10_000), commented;
            "The most connections kept while idle."
        "storage_postgres_conn_max_lifetime_min" = "30", Kind::Minutes, commented;
            "How long a connection is used, in minutes; 0 means for ever."
        "storage_file_path" = "data/db/events_raw.jsonl", Kind::Path, commented;
            "The file that events are appended to, one JSON object a line."
        "storage_file_sync_ms" = "200", millis(0, 60 * SECOND), commented;
            "How often that file is synced; 0 means after every batch. An event leaves the queue only after the sync."
        "storage_mysql_dsn" = "", Kind::Dsn, secret, commented;
            "How MySQL or MariaDB is reached, such as USER:PASSWORD@tcp(127.0.0.1:3306)/replicon?parseTime=true."
        "storage_mysql_connect_timeout_ms" = "3000", millis(1, HOUR), commented;
            "How long connecting may take."
        "storage_mysql_max_open_conns" = "16", count(1, 10_000), commented;
            "The most connections. Each writer keeps one, so that there must be more than writer_workers."
        "storage_mysql_max_idle_conns" = "16", count(0, 10_000), commented;
            "The most connections kept while idle."
        "storage_mysql_conn_max_lifetime_min" = "30", Kind::Minutes, commented;
            "How long a connection is used, in minutes; 0 means for ever."
        "storage_origin_lock" = "on", Kind::Choice(&["on", "off"]), commented;
            "Hold a lock in the database so that two nodes can never write under one name. off is for connection poolers without sessions."
    }
    Replication {
        "replication_enabled" = "false", Kind::Bool;
            "Pull the events of the peers. Needs storage_backend = sqlite, postgres or mysql. Peers are served where replication_token is set, whatever stands here."
        "replication_peer" = "", Kind::Peer, repeatable, commented;
            "The peers, as name=url: one line each, or several on one line with commas. The name is the peer's node_name; a login in the URL is not sent."
        "replication_poll_interval_ms" = "1000", millis(1, HOUR), commented;
            "How often a peer is asked that cannot hold a request open, and how often others are asked for the events of one that is out of reach."
        "replication_batch_limit" = "1000", count(1, 5_000), commented;
            "The most events in one page. Pages shrink by themselves where the storage or the link is slow."
        "replication_http_timeout_ms" = "10000", millis(100, HOUR), commented;
            "How long a peer may send nothing; it counts from the last byte."
    }
};
