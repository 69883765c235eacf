//! What the server says of itself: its version, and how durable it was configured to be.
//!
//! A user that may not ask (an ACL, a managed service) gets `unknown`, which is said and is no fault.
//! Does not change anything on the server.

use std::collections::BTreeMap;

use super::address::Keys;
use super::connection::{Broken, Reply, Wire};

/// The oldest Redis that has what is needed.
const OLDEST: (u64, u64) = (6, 2);
/// The first version that can be asked to wait for its own sync.
const WAITAOF: (u64, u64) = (7, 2);
const UNKNOWN: &str = "unknown";

/// What it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Server {
    /// `redis` or `valkey`, and its version.
    pub name: String,
    /// The version of Redis that it is, or is like.
    pub version: (u64, u64),
    pub appendonly: String,
    pub appendfsync: String,
    pub maxmemory: String,
    pub maxmemory_policy: String,
    pub cluster: bool,
    /// It is a replica.
    pub replica: bool,
}

/// Asks it.
pub(super) async fn ask(wire: &Wire) -> Result<Server, Broken> {
    let info = match wire.ask(&redis::cmd("INFO")).await {
        Ok(reply) => info(&reply.text()?),
        Err(why @ Broken::Silent(_)) => return Err(why),
        // not allowed to ask
        Err(_) => BTreeMap::new(),
    };
    let mut config = BTreeMap::new();
    for name in ["appendonly", "appendfsync", "maxmemory", "maxmemory-policy"] {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg(name);
        match wire.ask(&command).await.and_then(Reply::pairs) {
            Ok(pairs) => config.extend(pairs),
            Err(why @ Broken::Silent(_)) => return Err(why),
            Err(_) => {}
        }
    }
    Ok(read(&info, &config))
}

fn info(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (name, value) = line.trim_end().split_once(':')?;
        Some((name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn read(info: &BTreeMap<String, String>, config: &BTreeMap<String, String>) -> Server {
    let said = |name: &str| info.get(name).map(String::as_str);
    let configured =
        |name: &str| config.get(name).map_or_else(|| UNKNOWN.to_owned(), String::clone);
    let like = said("redis_version").unwrap_or_default();
    let name = match said("valkey_version") {
        Some(version) => format!("valkey {version}"),
        None if like.is_empty() => UNKNOWN.to_owned(),
        None => format!("redis {like}"),
    };
    let mut appendonly = configured("appendonly");
    if appendonly == UNKNOWN
        && let Some(enabled) = said("aof_enabled")
    {
        (if enabled == "1" { "yes" } else { "no" }).clone_into(&mut appendonly);
    }
    let mut policy = configured("maxmemory-policy");
    if policy == UNKNOWN
        && let Some(said) = said("maxmemory_policy")
    {
        said.clone_into(&mut policy);
    }
    let mut maxmemory = configured("maxmemory");
    if maxmemory == UNKNOWN
        && let Some(said) = said("maxmemory")
    {
        said.clone_into(&mut maxmemory);
    }
    Server {
        name,
        version: version(like),
        appendonly,
        appendfsync: configured("appendfsync"),
        maxmemory,
        maxmemory_policy: policy,
        cluster: said("cluster_enabled") == Some("1"),
        replica: said("role") == Some("slave"),
    }
}

fn version(text: &str) -> (u64, u64) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

impl Server {
    /// Why it cannot be used at all.
    pub fn refusal(&self, keys: &Keys) -> Option<String> {
        if self.version != (0, 0) && self.version < OLDEST {
            return Some(format!(
                "{} is too old: Redis 6.2 or later, or Valkey, is needed",
                self.name
            ));
        }
        if self.replica {
            return Some(
                "it is a replica, which takes no writes: set queue_redis_addr to the primary"
                    .to_owned(),
            );
        }
        if self.cluster && !keys.in_one_slot() {
            return Some(format!(
                "it is a cluster, and {} and {} are not in one slot: give both the same hash tag, such as queue_redis_stream = {{replicon}}:ingest and queue_redis_dlq_stream = {{replicon}}:ingest:dlq",
                keys.stream, keys.dlq
            ));
        }
        None
    }

    /// Whether it can be asked to answer after its sync.
    pub fn can_wait_for_aof(&self) -> bool {
        self.version >= WAITAOF && self.appendonly != "no"
    }

    /// Names and values, for `/healthz`.
    pub fn facts(&self, waits: bool) -> Vec<(String, String)> {
        let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            fact("server", &self.name),
            fact("appendonly", &self.appendonly),
            fact("appendfsync", &self.appendfsync),
            fact("maxmemory-policy", &self.maxmemory_policy),
            fact("wait_aof", if waits { "true" } else { "false" }),
        ]
    }

    /// Where 202 promises less than it seems to: what a person must know.
    pub fn doubts(&self, wanted_wait: bool) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.appendonly == "no" {
            doubts.push("Redis runs with appendonly no: when it ends, every event that waits is lost, though it was answered 202; set appendonly yes".to_owned());
        } else if self.appendfsync == "no" {
            doubts.push("Redis runs with appendfsync no: a power cut loses what the kernel had not written, many seconds of events that were answered 202; set appendfsync everysec or always".to_owned());
        }
        let bounded = !matches!(self.maxmemory.as_str(), "0" | UNKNOWN);
        if bounded && self.maxmemory_policy.starts_with("allkeys-") {
            doubts.push(format!(
                "Redis runs with maxmemory-policy {}: short of memory, it may evict the whole stream; set noeviction",
                self.maxmemory_policy
            ));
        }
        if wanted_wait && !self.can_wait_for_aof() {
            let why =
                if self.appendonly == "no" { "appendonly is no" } else { "it has no WAITAOF" };
            doubts
                .push(format!("queue_redis_wait_aof = true has no effect on {}: {why}", self.name));
        }
        doubts
    }

    /// What is as it was asked for, and still no durable ack; said once.
    pub fn warning(&self, waits: bool) -> Option<String> {
        if waits || self.appendonly == "no" {
            return None;
        }
        match self.appendfsync.as_str() {
            "everysec" => Some("Redis runs with appendfsync everysec: a crash of its machine loses up to two seconds of events that were answered 202; queue_redis_wait_aof = true or appendfsync always would not".to_owned()),
            UNKNOWN => Some("Redis does not tell how durable it is (CONFIG GET is refused): a 202 promises what it was configured for, and no more".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    const EVERYSEC: [(&str, &str); 4] = [
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("maxmemory", "0"),
        ("maxmemory-policy", "noeviction"),
    ];

    fn server(version: &str, config: &[(&str, &str)]) -> Server {
        read(&map(&[("redis_version", version)]), &map(config))
    }

    #[test]
    fn what_weakens_a_202_is_named() {
        let cases =
            [("appendonly", "no", "appendonly no"), ("appendfsync", "no", "appendfsync no")];
        for (name, value, part) in cases {
            let mut config = map(&EVERYSEC);
            config.insert(name.to_owned(), value.to_owned());
            let doubts = read(&map(&[("redis_version", "7.0.15")]), &config).doubts(false);
            assert!(doubts.len() == 1 && doubts[0].contains(part), "{doubts:?}");
        }
        let evicting = [("maxmemory", "100"), ("maxmemory-policy", "allkeys-lru")];
        let doubts = server("8.0.1", &evicting).doubts(false);
        assert!(doubts.len() == 1 && doubts[0].contains("evict"), "{doubts:?}");
        let fine = server("7.0.15", &EVERYSEC);
        assert_eq!(fine.doubts(false), Vec::<String>::new());
        assert!(fine.warning(false).is_some_and(|text| text.contains("two seconds")));
        assert_eq!(fine.warning(true), None);
    }

    #[test]
    fn what_may_not_be_asked_is_unknown_and_no_fault() {
        let dumb = read(&map(&[]), &map(&[]));
        assert_eq!((dumb.doubts(false), dumb.refusal(&keys("s"))), (Vec::new(), None));
        assert!(dumb.warning(false).is_some_and(|text| text.contains("CONFIG GET")));
        assert_eq!(dumb.facts(false)[0], ("server".to_owned(), "unknown".to_owned()));
        let told = read(&map(&[("aof_enabled", "0"), ("maxmemory_policy", "x")]), &map(&[]));
        assert_eq!((&*told.appendonly, &*told.maxmemory_policy), ("no", "x"));
    }

    fn keys(stream: &str) -> Keys {
        Keys {
            stream: stream.to_owned(),
            owner: String::new(),
            counts: String::new(),
            tries: String::new(),
            dlq: format!("{stream}:dlq"),
            states: String::new(),
            group: String::new(),
            consumer: String::new(),
        }
    }

    #[test]
    fn a_server_that_cannot_do_it_is_refused_with_the_remedy() {
        let old = server("6.0.16", &EVERYSEC).refusal(&keys("s")).unwrap();
        assert!(old.contains("6.2"), "{old}");
        assert_eq!(server("6.2.0", &EVERYSEC).refusal(&keys("s")), None);
        let valkey = map(&[("redis_version", "7.2.4"), ("valkey_version", "8.1.1")]);
        let valkey = read(&valkey, &map(&EVERYSEC));
        assert_eq!((&*valkey.name, valkey.can_wait_for_aof()), ("valkey 8.1.1", true));
        let mut cluster = valkey.clone();
        cluster.cluster = true;
        assert!(cluster.refusal(&keys("s")).is_some_and(|text| text.contains("hash tag")));
        assert_eq!(cluster.refusal(&keys("{s}")), None);
        let replica = Server { replica: true, ..valkey };
        assert!(replica.refusal(&keys("s")).is_some_and(|text| text.contains("primary")));
    }
}
