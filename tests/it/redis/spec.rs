//! What the documentation shows of Redis, done to the letter: its settings, its `curl` examples, and what
//! an operator then sees.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{STREAM, Site, both, drained, post, ready_within, set};
use crate::http;
use crate::support::redis::{Kind, Redis};
use crate::support::{KEY, Node, wait_until};

/// The bodies of the examples for `events_raw`, and how many events each holds.
const EXAMPLES: [(&str, u64); 3] = [
    (r#"{"source":"collector-1","event":"login_fail","ts":"2026-02-19T12:00:00Z"}"#, 1),
    (
        r#"[{"source":"collector-1","event":"login_fail","ts":"2026-02-19T12:00:00Z"},{"source":"collector-1","event":"portscan","ts":"2026-02-19T12:00:01Z"}]"#,
        2,
    ),
    (r#"{"source":"smoke","ts":"2026-02-19T12:00:00Z"}"#, 1),
];

/// The settings of the documentation's example, but for the port.
fn example_settings(port: u16) -> Vec<String> {
    set(&[
        "queue_backend=redis",
        "queue_redis_network=tcp",
        &format!("queue_redis_addr=127.0.0.1:{port}"),
        "queue_redis_stream=replicon:ingest",
        "queue_redis_group=writer",
        "queue_redis_consumer=replicon",
        "queue_redis_dlq_stream=replicon:ingest:dlq",
        "queue_redis_maxlen=5000000",
        "queue_redis_max_retries=5",
        "queue_redis_timeout_ms=1500",
    ])
}

/// A request as the documentation writes it: its status and its answer.
fn curl(node: &Node, key: &str, body: &str) -> (u16, Value) {
    let url = format!("http://{}/ingress/events_raw/add", node.addr);
    let bearer = format!("Authorization: Bearer {key}");
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "30", "--noproxy", "*", "-w", "\n%{http_code}", "-X", "POST", &url]);
    command.args(["-H", &bearer, "-H", "Content-Type: application/json", "-d", body]);
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("curl: {e}: tests/run installs it, or: apt-get install curl"));
    let text = String::from_utf8(output.stdout).unwrap();
    let (answer, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("no status: {text}"));
    (status.parse().unwrap(), serde_json::from_str(answer).unwrap_or(Value::Null))
}

fn the_production_form(site: &Site) {
    let mut settings = site.settings();
    settings.extend(example_settings(site.redis.port()));
    let node = http::serving(site.path(), &both(&settings, &[]));
    assert!(node.ready.contains(" queue=redis:"), "{}", node.ready);
    let mut told = Vec::new();
    for (body, events) in EXAMPLES {
        let (status, answer) = curl(&node, KEY, body);
        assert_eq!((status, answer["accepted_count"].as_u64()), (202, Some(events)), "{answer}");
        let first = answer["first_seq"].as_u64().unwrap();
        told.extend(first..first + events);
    }
    assert_eq!(curl(&node, "wrong-key", r#"{"source":"collector-1"}"#).0, 401);
    assert_eq!(curl(&node, KEY, r#"[{"source":"collector-1"}, 123]"#).0, 400);
    drained(&node);
    let seqs = site.sql("SELECT origin_seq FROM events_raw ORDER BY origin_seq");
    assert_eq!(seqs.lines().map(|seq| seq.parse().unwrap()).collect::<Vec<u64>>(), told);
    assert_eq!(site.sql("SELECT COUNT(*) FROM events_raw;"), "4");
    // nothing of it stays in the stream
    wait_until(Duration::from_secs(10), "an empty stream", || {
        let left: u64 = site.redis.ask(&["XLEN", STREAM]);
        if left == 0 { Ok(()) } else { Err(left.to_string()) }
    });
    let health = node.health();
    assert_eq!(health["ingest"]["queue_backend"], "redis", "{health}");
    assert_eq!(health["ingest"]["queue_server"]["appendfsync"], "always", "{health}");
    assert_eq!(health["status"], "ok", "{health}");
    assert!(node.log().contains("queue_redis_maxlen never trims"), "{}", node.log());
    assert_eq!(node.stop().code(), Some(0));
}

#[test]
fn the_production_form_stores_the_examples_by_way_of_redis_into_postgres() {
    the_production_form(&Site::postgres(Redis::start_on_tcp(Kind::Redis)));
}

#[test]
fn the_production_form_stores_the_examples_by_way_of_redis_into_mariadb() {
    the_production_form(&Site::mariadb(Redis::start_on_tcp(Kind::Redis)));
}

#[test]
fn the_production_form_stores_the_examples_by_way_of_valkey_into_postgres() {
    the_production_form(&Site::postgres(Redis::start_on_tcp(Kind::Valkey)));
}

#[test]
fn a_password_a_user_and_a_database_number_are_used_and_never_shown() {
    let secret = "s3cret-of-redis";
    let user = ["--user", "ingest", "on", ">s3cret-of-redis", "~*", "+@all"];
    let redis = Redis::start_with(Kind::Redis, &user);
    let site = Site::sqlite(redis);
    std::fs::write(site.path().join("password"), format!("{secret}\n")).unwrap();
    for password in ["queue_redis_password=s3cret-of-redis", "queue_redis_password_file=password"] {
        let more = ["--set", "queue_redis_username=ingest", "--set", password];
        let node = site.serving(&[&more[..], &["--set", "queue_redis_db=3"]].concat());
        post(&mut node.client(), [1]);
        drained(&node);
        let said = format!("{}{}{}", node.log(), node.health(), node.get("/metrics").body);
        assert!(!said.contains(secret), "the password is shown: {said}");
        assert_eq!(node.stop().code(), Some(0));
    }
    let wrong = ["--set", "queue_redis_username=ingest", "--set", "queue_redis_password=other"];
    let node = site.start(&wrong);
    let said = wait_until(Duration::from_secs(20), "a refused login", || {
        let health = node.health();
        let said = health["ingest"]["last_error"].as_str().unwrap_or_default().to_owned();
        if said.contains("login") || said.contains("WRONGPASS") { Ok(said) } else { Err(said) }
    });
    assert!(!said.contains("other"), "{said}");
}

#[test]
fn what_weakens_a_202_is_named_in_health_and_in_the_log() {
    let weak = ["--appendonly", "no"];
    let site = Site::sqlite(Redis::start_with(Kind::Redis, &weak));
    let node = site.serving(&[]);
    let health = node.health();
    assert_eq!(health["status"], "degraded", "{health}");
    assert_eq!(health["ingest"]["queue_server"]["appendonly"], "no", "{health}");
    assert!(health["degraded"].to_string().contains("appendonly no"), "{health}");
    assert!(node.log().contains("appendonly no"), "{}", node.log());
    drop(node);

    let site = Site::sqlite(Redis::start_with(Kind::Redis, &["--appendfsync", "everysec"]));
    let node = site.serving(&[]);
    assert!(node.log().contains("appendfsync everysec"), "{}", node.log());
    assert_eq!(node.health()["ingest"]["queue_server"]["appendfsync"], "everysec");
}

#[test]
fn a_server_that_may_not_be_asked_is_unknown_and_serves() {
    let user = ["--user", "ingest", "on", "nopass", "~*", "+@all", "-config", "-info"];
    let site = Site::sqlite(Redis::start_with(Kind::Redis, &user));
    let node = site.serving(&["--set", "queue_redis_username=ingest"]);
    let health = node.health();
    assert_eq!(health["ingest"]["queue_server"]["appendonly"], "unknown", "{health}");
    post(&mut node.client(), [1]);
    drained(&node);
}

#[test]
fn with_wait_aof_a_server_that_has_it_syncs_before_the_202() {
    let everysec = ["--appendfsync", "everysec"];
    let site = Site::sqlite(Redis::start_with(Kind::Valkey, &everysec));
    let wait = ["--set", "queue_redis_wait_aof=true", "--set", "queue_redis_timeout_ms=5000"];
    let node = site.start(&wait);
    ready_within(&node, Duration::from_secs(20));
    assert_eq!(node.health()["ingest"]["queue_server"]["wait_aof"], "true");
    let mut client = node.client();
    let asked = || {
        let stats: String = site.redis.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_waitaof:"));
        let calls = line.and_then(|line| line.split(['=', ',']).nth(1)).unwrap_or("0");
        calls.parse::<u64>().unwrap()
    };
    for n in 0..3 {
        let before = asked();
        post(&mut client, [n]);
        assert!(asked() > before, "the server is asked for its sync before each answer");
    }

    let site = Site::sqlite(Redis::start(Kind::Redis));
    let version: String = site.redis.ask(&["INFO", "server"]);
    if version.contains("redis_version:7.0") || version.contains("redis_version:6.") {
        let node = site.serving(&["--set", "queue_redis_wait_aof=true"]);
        let health = node.health();
        assert!(health["degraded"].to_string().contains("has no WAITAOF"), "{health}");
    }
}
