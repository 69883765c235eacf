//! What the documentation shows, done to the letter: its `curl` examples, its SQL checks, its way to
//! write an address; and that the configuration as shipped has a database without a server.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{DATABASE, Kind, SQLITE, Server, Site, both, drained, on_each, post, well};
use crate::cli::lines_with;
use crate::http;
use crate::support::postgres::{PASSWORD, ROLE, query};
use crate::support::sqlite::sqlite;
use crate::support::{KEY, Node, repo};

const COUNT: &str = "SELECT COUNT(*) FROM events_raw;";

/// The bodies of the examples for `events_raw`.
const EXAMPLES: [&str; 3] = [
    r#"{"source":"collector-1","event":"login_fail","ts":"2026-02-19T12:00:00Z"}"#,
    r#"[{"source":"collector-1","event":"login_fail","ts":"2026-02-19T12:00:00Z"},{"source":"collector-1","event":"portscan","ts":"2026-02-19T12:00:01Z"}]"#,
    r#"{"source":"smoke","ts":"2026-02-19T12:00:00Z"}"#,
];

/// Everything that a database could change.
const ODD: &str = r#"{"big":12345678901234567890123,"small":-0.000125,"text":"\u00e4ä\\N\t\"\n","nested":[{},[],[null,true,{"b":1,"a":2}]],"":0,"sql":"'; DROP TABLE events_raw; --"}"#;

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

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Posts the examples; what must stand in `events_raw`, but for the times.
fn examples(node: &Node) -> Vec<Value> {
    let mut want = Vec::new();
    for body in EXAMPLES.into_iter().chain([ODD]) {
        let (status, answer) = curl(node, KEY, body);
        assert_eq!(status, 202, "{answer}");
        let events = match serde_json::from_str(body).unwrap() {
            Value::Array(events) => events,
            event => vec![event],
        };
        let first = answer["first_seq"].as_u64().unwrap();
        assert_eq!(answer["last_seq"], first + events.len() as u64 - 1, "{answer}");
        want.extend((first..).zip(events).map(|(seq, event)| {
            json!({
                "origin_dc": "dc1", "origin_seq": seq, "node_name": "dc1",
                "channel": "events_raw", "json_data": event,
            })
        }));
    }
    assert_eq!(curl(node, "wrong-key", r#"{"source":"collector-1"}"#).0, 401);
    assert_eq!(curl(node, KEY, r#"[{"source":"collector-1"}, 123]"#).0, 400);
    want
}

fn the_examples_of_the_documentation_stand_under_the_seqs_of_their_answers(site: Site) {
    let node = site.serving(&[]);
    let before = seconds();
    let want = examples(&node);
    let after = seconds();
    drained(&node);
    let mut rows = site.rows();
    for row in &mut rows {
        let at = row.as_object_mut().unwrap().remove("received_at").unwrap();
        let at = at.as_f64().unwrap();
        // SQLite counts days: it shows milliseconds
        assert!(at >= before - 0.002 && at <= after + 0.002, "{at} is not of {before}..{after}");
    }
    assert_eq!(rows, want);
    well(&node);
    let count = match site.kind() {
        // by the address that the node has, password included
        Kind::Postgres => query(&site.server().dsn(DATABASE), COUNT).unwrap(),
        Kind::Sqlite | Kind::MariaDb | Kind::MySql => site.sql(COUNT),
    };
    assert_eq!(count, "5");
    let said = format!("{}{}{}", node.log(), node.health(), node.get("/metrics").body);
    assert!(!said.contains(PASSWORD) && !said.contains(KEY), "a secret is shown: {said}");
}

on_each!(
    the_examples_of_the_documentation_stand_under_the_seqs_of_their_answers:
    sqlite, postgres_over_tcp, mariadb_over_tcp, mysql_over_tcp
);

#[test]
fn the_configuration_as_shipped_stores_into_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("conf")).unwrap();
    for name in ["conf/replicon.conf", "conf/channels.yml"] {
        std::fs::copy(repo(name), dir.path().join(name)).unwrap();
    }
    let node = http::serving(dir.path(), &[]);
    assert_eq!(node.health()["ingest"]["storage_backend"], "sqlite");
    assert_eq!(curl(&node, KEY, EXAMPLES[2]).0, 202);
    drained(&node);
    assert_eq!(sqlite(&dir.path().join(SQLITE), COUNT), "1");
}

#[test]
fn an_address_of_postgres_may_be_a_url_or_words_over_tcp_or_a_unix_socket() {
    let site = Site::postgres_over_tcp();
    let Server::Postgres(server) = site.server() else { panic!("this is no PostgreSQL") };
    let (port, dir) = (server.port(), server.socket_dir().to_str().unwrap());
    let percent = dir.replace('/', "%2F");
    let forms = [
        format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"),
        format!("postgresql://{ROLE}@{percent}:{port}/{DATABASE}"),
        format!("postgres://{ROLE}@localhost:{port}/{DATABASE}?host={dir}&pool_max_conns=7"),
        format!("host={dir} port={port} user={ROLE} dbname={DATABASE}"),
        format!(
            "host=127.0.0.1 port={port} user={ROLE} password='{PASSWORD}' dbname={DATABASE} sslmode=prefer"
        ),
    ];
    let mut told = Vec::new();
    for (form, n) in forms.iter().zip(0..) {
        let node = http::serving(site.path(), &both(&site.server().settings(form), &[]));
        told.extend(post(&mut node.client(), [n]));
        drained(&node);
        let log = node.log();
        // the log is of all starts together
        let named = lines_with(&log, "pool_max_conns");
        assert_eq!(named.len(), usize::from(n >= 2), "{log}");
        assert!(named.iter().all(|line| line.contains(" WARN ")), "{log}");
        assert!(!log.contains(PASSWORD), "{log}");
        assert_eq!(node.stop().code(), Some(0));
    }
    assert_eq!(site.numbers(), told);
}
