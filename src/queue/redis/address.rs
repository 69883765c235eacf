//! Where Redis is, how it is logged in to, and the names of all keys.
//!
//! Does not connect.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::event::{ChannelName, Name, Origin};
use crate::fsx::Disk;
use crate::queue::accounts::Ceilings;
use crate::task::Spine;

/// How Redis is reached.
#[derive(Clone, PartialEq, Eq)]
pub enum Address {
    /// In the clear.
    Tcp {
        /// Its name or address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// TLS, with the machine's roots or these.
    Tls {
        /// Its name, which its certificate must bear.
        host: String,
        /// Its port.
        port: u16,
        /// Certificates to trust, PEM; `None` means those of the machine.
        roots: Option<Vec<u8>>,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Tls { host, port, .. } => write!(f, "rediss://{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How to open a queue on Redis.
#[derive(Clone)]
pub struct Options {
    /// Where Redis is.
    pub address: Address,
    /// `queue_redis_username`; empty means the default user.
    pub username: String,
    /// The password; `None` means none is sent.
    pub password: Option<String>,
    /// `queue_redis_db`.
    pub db: u32,
    /// `queue_redis_stream`.
    pub stream: String,
    /// `queue_redis_group`.
    pub group: String,
    /// `queue_redis_consumer`.
    pub consumer: String,
    /// `queue_redis_dlq_stream`.
    pub dlq_stream: String,
    /// `queue_redis_maxlen`: a ceiling of events; 0 means that there is none but `queue_buffer`.
    pub maxlen: u64,
    /// `queue_redis_max_retries`.
    pub max_retries: u64,
    /// `queue_redis_timeout_ms`: of one command, and of connecting.
    pub timeout: Duration,
    /// `queue_redis_wait_aof`.
    pub wait_aof: bool,
    /// The disk of the node's directory.
    pub disk: Arc<dyn Disk>,
    /// `queue_file_path`: the node's state lies beside it, whichever the backend.
    pub path: PathBuf,
    /// `queue_file_ack_path`: to see whether the file log still holds events.
    pub ack_path: PathBuf,
    /// `node_name`.
    pub origin: Origin,
    /// The time.
    pub clock: Clock,
    /// The ceilings.
    pub ceilings: Ceilings,
    /// `dead_letter_max_bytes`.
    pub dead_letter_max_bytes: u64,
    /// Whether to hold the directory with `flock`.
    pub lock: bool,
    /// Who is told when a task dies.
    pub spine: Spine,
    /// Seconds from the sending of a group to its answer.
    pub append_seconds: prometheus::Histogram,
}

impl Options {
    /// The ceilings with `queue_redis_maxlen` among them.
    #[must_use]
    pub fn bounds(&self) -> Ceilings {
        let mut bounds = self.ceilings;
        if self.maxlen > 0 {
            bounds.max_events = bounds.max_events.min(self.maxlen);
        }
        bounds
    }

    /// The key that the ceiling of events comes from.
    #[must_use]
    pub fn ceiling_key(&self, accounts_say: &'static str) -> &'static str {
        let ours = self.maxlen > 0 && self.maxlen < self.ceilings.max_events;
        if ours && accounts_say == "queue_buffer" { "queue_redis_maxlen" } else { accounts_say }
    }

    /// Database and stream: what is lost when it goes empty; another server may take its place.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}/{}", self.db, self.stream)
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("Redis at {}, stream {}", self.address, self.stream)
    }
}

/// The names of all keys, and of the consumers.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub stream: String,
    pub owner: String,
    pub counts: String,
    pub tries: String,
    pub dlq: String,
    pub states: String,
    pub group: String,
    pub consumer: String,
}

impl Keys {
    pub fn of(options: &Options) -> Self {
        let Options { stream, dlq_stream, .. } = options;
        Self {
            stream: stream.clone(),
            owner: format!("{stream}:owner"),
            counts: format!("{stream}:counts"),
            tries: format!("{stream}:tries"),
            dlq: dlq_stream.clone(),
            states: format!("{dlq_stream}:states"),
            group: options.group.clone(),
            consumer: options.consumer.clone(),
        }
    }

    /// The consumer of a channel that is set aside.
    pub fn parked(&self, channel: &ChannelName) -> String {
        format!("{}:parked:{channel}", self.consumer)
    }

    /// The channel whose consumer that is; `None` of any other.
    pub fn parked_channel(&self, consumer: &str) -> Option<ChannelName> {
        let rest = consumer.strip_prefix(&self.consumer)?.strip_prefix(":parked:")?;
        Name::new(rest).ok()
    }

    /// Whether a cluster keeps all keys in one slot: the same hash tag, in both streams.
    pub fn in_one_slot(&self) -> bool {
        matches!((tag(&self.stream), tag(&self.dlq)), (Some(a), Some(b)) if a == b)
    }
}

/// The part of a key that a cluster looks at, where the key says which.
fn tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(stream: &str, dlq: &str) -> Keys {
        Keys {
            stream: stream.to_owned(),
            owner: String::new(),
            counts: String::new(),
            tries: String::new(),
            dlq: dlq.to_owned(),
            states: String::new(),
            group: "writer".to_owned(),
            consumer: "replicon".to_owned(),
        }
    }

    #[test]
    fn one_hash_tag_in_both_streams_keeps_all_keys_together() {
        assert!(keys("{r}:ingest", "{r}:ingest:dlq").in_one_slot());
        assert!(!keys("replicon:ingest", "replicon:ingest:dlq").in_one_slot());
        assert!(!keys("{a}:ingest", "{b}:dlq").in_one_slot());
        assert!(!keys("{}:ingest", "{}:dlq").in_one_slot());
    }

    #[test]
    fn a_parked_channels_consumer_is_told_from_any_other() {
        let keys = keys("s", "d");
        let channel = Name::new("events_raw").unwrap();
        assert_eq!(keys.parked_channel(&keys.parked(&channel)), Some(channel));
        for other in ["replicon", "replicon:parked:", "other:parked:a", "replicon:parked:a/b"] {
            assert_eq!(keys.parked_channel(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_shows_no_more_than_where_it_leads() {
        let tcp = Address::Tcp { host: "h".to_owned(), port: 6379 };
        let tls = Address::Tls { host: "h".to_owned(), port: 1, roots: Some(b"pem".to_vec()) };
        assert_eq!((tcp.to_string(), tls.to_string()), ("h:6379".into(), "rediss://h:1".into()));
    }
}
