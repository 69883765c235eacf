//! How Redis is reached and used: the `queue_redis_*` keys as one piece, and what contradicts itself
//! among them.
//!
//! Opens no file: a password or a certificate in one is read by whoever connects. Knows no driver.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::conf_file::Problem;
use super::settings::Settings;
use super::value;

/// How Redis is used.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// How it is reached.
    pub address: RedisAddress,
    /// Empty means the default user.
    pub username: String,
    /// Empty means none.
    pub password: String,
    /// A file that holds it instead.
    pub password_file: Option<PathBuf>,
    /// Certificates to trust instead of the machine's.
    pub tls_ca_file: Option<PathBuf>,
    /// The database.
    pub db: u32,
    /// The stream of waiting events.
    pub stream: String,
    /// The consumer group.
    pub group: String,
    /// The consumer.
    pub consumer: String,
    /// The stream of dead letters.
    pub dlq_stream: String,
    /// The most events that may wait in the stream; 0 means `queue_buffer` alone.
    pub maxlen: u64,
    /// How often an event that the storage refuses is tried.
    pub max_retries: u64,
    /// How long a command may take.
    pub timeout: Duration,
    /// Whether a 202 waits for the server's own sync.
    pub wait_aof: bool,
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, db, stream, .. } = self;
        write!(f, "RedisConfig {{ {address:?}, {db}, {stream} }}")
    }
}

/// Where Redis is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAddress {
    /// In the clear.
    Tcp(String, u16),
    /// With TLS.
    Tls(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

const NETWORK: &str = "queue_redis_network";
const ADDR: &str = "queue_redis_addr";
const PASSWORD: &str = "queue_redis_password";
const PASSWORD_FILE: &str = "queue_redis_password_file";
const STREAM: &str = "queue_redis_stream";
const DLQ_STREAM: &str = "queue_redis_dlq_stream";

/// The keys as one piece; they are read whichever the backend, since a node on the file log asks once
/// whether its Redis still holds events.
pub fn redis(settings: &Settings) -> Result<RedisConfig, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut wrong =
        |name: &str, text: String| problems.push(Problem::new(settings.place(name), text));
    let address = address(settings.text(NETWORK), settings.text(ADDR));
    if let Err(text) = &address {
        wrong(ADDR, format!("{ADDR}: {text}"));
    }
    if !settings.text(PASSWORD).is_empty() && !settings.text(PASSWORD_FILE).is_empty() {
        wrong(
            PASSWORD_FILE,
            format!("{PASSWORD} and {PASSWORD_FILE} are both set; set one of them"),
        );
    }
    for name in [STREAM, DLQ_STREAM, "queue_redis_group", "queue_redis_consumer"] {
        if settings.text(name).is_empty() {
            wrong(name, format!("{name} is empty; write a name"));
        }
    }
    let (stream, dlq_stream) = (settings.text(STREAM), settings.text(DLQ_STREAM));
    let beside = ["", ":owner", ":counts", ":tries"].map(|end| format!("{stream}{end}"));
    if beside.iter().any(|key| key == dlq_stream) || stream == format!("{dlq_stream}:states") {
        let text = format!("{STREAM} and {DLQ_STREAM} share a key; give each a name of its own");
        wrong(DLQ_STREAM, text);
    }
    let (Ok(address), true) = (address, problems.is_empty()) else { return Err(problems) };
    let file = |name| Some(settings.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from);
    Ok(RedisConfig {
        address,
        username: settings.text("queue_redis_username").to_owned(),
        password: settings.text(PASSWORD).to_owned(),
        password_file: file(PASSWORD_FILE),
        tls_ca_file: file("queue_redis_tls_ca_file"),
        db: u32::try_from(settings.count("queue_redis_db")).unwrap_or(u32::MAX),
        stream: stream.to_owned(),
        group: settings.text("queue_redis_group").to_owned(),
        consumer: settings.text("queue_redis_consumer").to_owned(),
        dlq_stream: dlq_stream.to_owned(),
        maxlen: settings.count("queue_redis_maxlen"),
        max_retries: settings.count("queue_redis_max_retries"),
        timeout: settings.millis("queue_redis_timeout_ms"),
        wait_aof: settings.flag("queue_redis_wait_aof"),
    })
}

/// The text is not echoed: where a user wrote a login into it, it holds a password.
fn address(network: &str, text: &str) -> Result<RedisAddress, String> {
    if network == "unix" {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let path = if path.starts_with("//") { path.trim_start_matches("//") } else { path };
        return match path {
            "" => Err("it is empty; write the path of the socket".to_owned()),
            path => Ok(RedisAddress::Unix(path.into())),
        };
    }
    if text.contains('@') {
        return Err(
            "a login has keys of its own: queue_redis_username and queue_redis_password".to_owned()
        );
    }
    let (tls, rest) = match (text.strip_prefix("rediss://"), text.strip_prefix("redis://")) {
        (Some(rest), _) => (true, rest),
        (None, rest) => (false, rest.unwrap_or(text)),
    };
    let (host, port) = value::listen(rest.trim_end_matches('/'))
        .filter(|(host, _)| !host.is_empty())
        .ok_or("write host:port, such as 127.0.0.1:6379, or rediss://host:port for TLS; a unix socket needs queue_redis_network = unix")?;
    let host = host.to_owned();
    Ok(if tls { RedisAddress::Tls(host, port) } else { RedisAddress::Tcp(host, port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_a_port_with_or_without_tls_or_a_socket() {
        let tcp = |host: &str, port| Ok(RedisAddress::Tcp(host.to_owned(), port));
        let socket = |path: &str| Ok(RedisAddress::Unix(path.into()));
        assert_eq!(address("tcp", "127.0.0.1:6379"), tcp("127.0.0.1", 6379));
        assert_eq!(address("tcp", "redis://cache.example:7000/"), tcp("cache.example", 7000));
        assert_eq!(address("tcp", "[::1]:6379"), tcp("::1", 6379));
        let tls = Ok(RedisAddress::Tls("cache.example".to_owned(), 6380));
        assert_eq!(address("tcp", "rediss://cache.example:6380"), tls);
        assert_eq!(address("unix", "/run/redis/redis.sock"), socket("/run/redis/redis.sock"));
        assert_eq!(address("unix", "unix:/run/redis.sock"), socket("/run/redis.sock"));
    }

    #[test]
    fn what_is_no_address_is_refused_without_showing_it() {
        for (network, text) in [
            ("tcp", "redis://u:s3cret@h:1"),
            ("tcp", "/run/redis.sock"),
            ("tcp", ":6379"),
            ("tcp", "h"),
            ("unix", ""),
        ] {
            let refused = address(network, text).unwrap_err();
            assert!(!refused.contains("s3cret"), "{refused}");
        }
    }
}
