//! What is accepted over HTTP, what operators are told, and how a stop looks from outside.
//!
//! The refusals stand in `http_codes`.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Client, KEY, Node, Response, golden, stored, wait_until};

/// The ingest route of the shipped raw channel.
pub const ADD: &str = "/ingress/events_raw/add";
/// Its key as a header's value.
pub const BEARER: &str = "Bearer key-abc123";

/// Starts a node and waits until it takes events.
pub fn serving(dir: &Path, args: &[&str]) -> Node {
    let node = Node::start(dir, args);
    wait_until(Duration::from_secs(20), "a node that is ready", || {
        let answer = node.get("/readyz");
        match answer.status {
            200 => Ok(()),
            _ => Err(answer.body),
        }
    });
    node
}

/// Posts with the key and further headers.
pub fn send(client: &mut Client, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut all = vec![("authorization", BEARER)];
    all.extend_from_slice(headers);
    client.request("POST", ADD, &all, Some(body)).unwrap()
}

/// Compressed with gzip.
pub fn gzip(bytes: &[u8], level: flate2::Compression) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `first_seq` and `last_seq` of an answer that must be 202 for `count` events.
fn accepted(answer: &Response, count: u64) -> (u64, u64) {
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    assert_eq!(json["status"], "accepted");
    assert_eq!(json["accepted_count"], count);
    assert_eq!(json["origin_dc"], "dc1");
    let (first, last) = (json["first_seq"].as_u64().unwrap(), json["last_seq"].as_u64().unwrap());
    assert_eq!(last - first + 1, count);
    (first, last)
}

fn sorted_keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn the_ready_line_names_node_address_queue_and_storage() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let line =
        node.ready.replace(&node.addr, "ADDRESS").replace(env!("CARGO_PKG_VERSION"), "VERSION");
    golden("ready_line.txt", &format!("{line}\n"));
}

/// Headers, a body, and how many events it holds: all forms of a body, `n` counting from 1.
type Form = (Vec<(&'static str, &'static str)>, Vec<u8>, u64);

fn every_form() -> Vec<Form> {
    let lines = b"{\"n\":8}\n\n  \r\n{\"n\":9}\r\n{\"n\":10}".to_vec();
    let best = flate2::Compression::best();
    let two_members = [gzip(b"[{\"n\":17},", best), gzip(b"{\"n\":18}]", best)].concat();
    vec![
        (vec![("content-type", "application/json")], b"{\"n\":1}".to_vec(), 1),
        (vec![], b" \n{\"n\":2}\n ".to_vec(), 1),
        (vec![("content-type", "application/json; charset=utf-8")], b"[{\"n\":3}]".to_vec(), 1),
        (
            vec![("content-type", "text/plain")],
            b"[ {\"n\":4} , {\"n\":5},{\"n\":6} ,{\"n\":7}]".to_vec(),
            4,
        ),
        (vec![("content-type", "application/x-ndjson")], lines, 3),
        (vec![("content-type", "Application/NDJSON; charset=utf-8")], b"{\"n\":11}\n".to_vec(), 1),
        (vec![("content-type", "application/jsonl")], b"{\"n\":12}".to_vec(), 1),
        (vec![("content-encoding", "gzip")], gzip(b"{\"n\":13}", best), 1),
        (
            vec![("content-encoding", "GZIP"), ("content-type", "application/x-ndjson")],
            gzip(b"{\"n\":14}\n{\"n\":15}\n", best),
            2,
        ),
        (vec![("content-encoding", "zstd")], zstd::encode_all(&b"{\"n\":16}"[..], 3).unwrap(), 1),
        (vec![("content-encoding", "gzip")], two_members, 2),
        (vec![("content-encoding", "identity")], b"{\"n\":19}".to_vec(), 1),
    ]
}

#[test]
fn objects_arrays_lines_and_compressed_bodies_are_accepted_and_stored_once_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let mut client = node.client();
    let mut told = Vec::new();
    for (headers, body, count) in &every_form() {
        let (first, last) = accepted(&send(&mut client, headers, body), *count);
        told.extend(first..=last);
    }
    node.wait_drained();
    let lines = stored(dir.path());
    let seqs: Vec<u64> = lines.iter().map(|l| l["origin_seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, told);
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(line["json_data"]["n"], at + 1);
        assert_eq!((&line["origin_dc"], &line["node_name"]), (&"dc1".into(), &"dc1".into()));
        assert_eq!(line["channel"], "events_raw");
        assert!(line["received_at"].as_str().unwrap().ends_with('Z'));
    }
}

#[test]
fn seqs_rise_across_requests_and_connections() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let mut clients: Vec<Client> = (0..4).map(|_| node.client()).collect();
    let mut highest = 0;
    for round in 0..20 {
        let client = &mut clients[round % 4];
        let (first, last) = accepted(&send(client, &[], b"[{},{},{}]"), 3);
        assert!(first > highest, "{first} after {highest}");
        assert!(last < 1 << 53);
        highest = last;
    }
}

#[test]
fn a_form_content_type_is_read_as_json_as_plain_curl_sends_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    accepted(&send(&mut node.client(), &form, b"{\"a\":1}"), 1);
}

#[test]
fn a_key_may_come_with_the_scheme_in_any_case() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let mut client = node.client();
    for scheme in ["bearer", "BEARER", "Bearer"] {
        let key = format!("{scheme} {KEY}");
        let headers = [("authorization", key.as_str())];
        let answer = client.request("POST", ADD, &headers, Some(b"{}")).unwrap();
        accepted(&answer, 1);
    }
}

#[test]
fn a_payload_reaches_storage_as_it_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let sent = "{\"n\":12345678901234567890123, \"d\":1.10,\"e\":1E+2,\n\"s\":\"\\u00e4/\\/ä\",\r\"l\":[ ]}";
    accepted(&send(&mut node.client(), &[], sent.as_bytes()), 1);
    node.wait_drained();
    let text = std::fs::read_to_string(dir.path().join("data/db/events_raw.jsonl")).unwrap();
    let kept = sent.replace(['\n', '\r'], " ");
    assert!(text.ends_with(&format!("\"json_data\":{kept}}}\n")), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn of_a_key_given_twice_the_last_stands_and_the_cut_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let sent = br#"{"a":1,"b":{"c":[1],"c":2},"\u0061":3}"#;
    accepted(&send(&mut node.client(), &[], sent), 1);
    node.wait_drained();
    let text = std::fs::read_to_string(dir.path().join("data/db/events_raw.jsonl")).unwrap();
    assert!(text.ends_with("\"json_data\":{\"b\":{\"c\":2},\"\\u0061\":3}}\n"), "{text}");
    let metrics = node.get("/metrics").body;
    assert!(metrics.contains("\nreplicon_json_members_cut_total 2\n"), "{metrics}");
}

#[test]
fn a_key_given_twice_is_refused_where_that_is_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &["--set", "json_duplicate_keys=reject"]);
    let answer = send(&mut node.client(), &[], br#"{"x":{"a":1,"a":1}}"#);
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(answer.json()["violations"][0]["pointer"], "/x/a");
}

#[test]
fn healthz_has_the_fields_of_the_documentation() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &["--set", "cpu=2"]);
    assert_eq!(node.post("[{},{}]").status, 202);
    assert_eq!(node.post("[]").status, 400);
    node.wait_drained();
    let health = node.health();
    assert_eq!(
        sorted_keys(&health),
        [
            "damage",
            "degraded",
            "gomaxprocs",
            "ingest",
            "node",
            "node_id",
            "status",
            "uptime_seconds",
            "version"
        ]
    );
    let ingest = &health["ingest"];
    assert_eq!(
        sorted_keys(ingest),
        [
            "accepted_total",
            "dead_letter_total",
            "last_error",
            "lost_total",
            "oldest_event_age_seconds",
            "queue_backend",
            "queue_bytes",
            "queue_depth",
            "queue_sync",
            "recovered_total",
            "rejected_total",
            "storage_backend",
            "writer_workers",
            "written_total"
        ]
    );
    assert_eq!((&health["status"], &health["node"]), (&"ok".into(), &"dc1".into()));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["gomaxprocs"], 2);
    for (field, value) in [
        ("accepted_total", 2),
        ("rejected_total", 1),
        ("written_total", 2),
        ("dead_letter_total", 0),
        ("lost_total", 0),
        ("queue_depth", 0),
        ("queue_bytes", 0),
        ("writer_workers", 1),
    ] {
        assert_eq!(ingest[field], value, "{field}");
    }
    assert_eq!(ingest["last_error"], Value::Null);
    for (field, value) in
        [("queue_backend", "file"), ("queue_sync", "ack"), ("storage_backend", "file")]
    {
        assert_eq!(ingest[field], value, "{field}");
    }
}

#[test]
fn operator_routes_answer_get_and_head_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    assert_eq!(node.get("/livez").body, "{\"status\":\"alive\"}\n");
    assert_eq!(node.get("/readyz").body, "{\"status\":\"ready\"}\n");
    let mut kept = node.client();
    for path in ["/healthz", "/livez", "/readyz", "/metrics"] {
        let got = kept.get(path).unwrap();
        assert_eq!(got.status, 200, "{path}");
        let head = kept.request("HEAD", path, &[], None).unwrap();
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(head.header("content-type"), got.header("content-type"));
        assert!(head.header("content-length").is_some(), "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let refused = node.client().request(method, path, &[], Some(b"{}"));
            let refused = refused.unwrap();
            assert_eq!(refused.status, 405, "{method} {path}");
            assert_eq!(refused.header("allow"), Some("GET, HEAD"));
            assert_eq!(refused.json()["code"], "method_not_allowed");
        }
    }
}

#[test]
fn metrics_keep_their_names_and_types() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &["--set", "http_header_timeout_ms=400"]);
    assert_eq!(node.post("{}").status, 202);
    // one that is silent is closed at its deadline, and from then on counted
    let _silent = node.client();
    let text = wait_until(Duration::from_secs(20), "a connection closed", || {
        let answer = node.get("/metrics");
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4"));
        if answer.body.contains("replicon_http_connections_closed_total{") {
            Ok(answer.body)
        } else {
            Err(answer.body)
        }
    });
    let mut names: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let helps = text.lines().filter(|line| line.starts_with("# HELP "));
    assert_eq!(helps.count(), names.len());
    names.sort_unstable();
    golden("metrics.txt", &format!("{}\n", names.join("\n")));
    for series in [
        "replicon_http_requests_total{channel=\"events_raw\",status=\"202\"} 1\n",
        "replicon_events_accepted_total{channel=\"events_raw\"} 1\n",
    ] {
        assert!(text.contains(series), "{series}{text}");
    }
}

/// A request that is sent but for its last bytes.
fn half_sent(node: &Node, head: &str) -> Client {
    let mut client = node.client();
    client.send(head.as_bytes()).unwrap();
    client
}

#[test]
fn a_stop_finishes_what_is_under_way_and_answers_503_to_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = serving(dir.path(), &[]);
    let post = format!(
        "POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\ncontent-length: 7\r\n"
    );
    let mut late_probe = half_sent(&node, "GET /healthz HTTP/1.1\r\nhost: test\r\n");
    let mut late_ready = half_sent(&node, "GET /readyz HTTP/1.1\r\nhost: test\r\n");
    let mut late_post = half_sent(&node, &post);
    // its head was read, and its body is asked for: it is under way; the others were accepted before
    let mut under_way = half_sent(&node, &format!("{post}expect: 100-continue\r\n\r\n"));
    assert_eq!(under_way.response(true).unwrap().status, 100);

    node.signal("TERM");
    wait_until(Duration::from_secs(10), "no new connections", || {
        match TcpStream::connect(&node.addr) {
            Ok(_) => Err("connected".to_owned()),
            Err(_) => Ok(()),
        }
    });
    late_probe.send(b"\r\n").unwrap();
    let answer = late_probe.response(false).unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["status"], "stopping");
    late_ready.send(b"\r\n").unwrap();
    let answer = late_ready.response(false).unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (503, &"not_ready".into()));
    late_post.send(b"\r\n{\"a\":2}").unwrap();
    let answer = late_post.response(false).unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (503, &"stopping".into()));
    assert_eq!(answer.json()["stored"], "no");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(answer.header("retry-after").is_some());
    drop(late_post);
    under_way.send(b"{\"a\":1}").unwrap();
    accepted(&under_way.response(false).unwrap(), 1);

    let status =
        wait_until(Duration::from_secs(20), "the end", || node.ended().ok_or_else(|| node.log()));
    assert_eq!(status.code(), Some(0), "{}", node.log());
    let lines = stored(dir.path());
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["json_data"]["a"], 1);
}

#[test]
fn what_a_stop_leaves_in_the_queue_is_stored_by_the_next_start_under_its_seqs() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &["--set", "writer_enabled=false"]);
    let mut client = node.client();
    let mut told = Vec::new();
    for body in ["[{},{}]", "{}", "[{},{}]"] {
        let answer = send(&mut client, &[], body.as_bytes());
        let count = answer.json()["accepted_count"].as_u64().unwrap();
        let (first, last) = accepted(&answer, count);
        told.extend(first..=last);
    }
    assert_eq!(node.health()["ingest"]["queue_depth"], 5);
    drop(client);
    assert_eq!(node.stop().code(), Some(0));
    assert!(stored(dir.path()).is_empty());

    let node = serving(dir.path(), &[]);
    node.wait_drained();
    let ingest = node.health()["ingest"].clone();
    assert_eq!(ingest["recovered_total"], 5);
    assert_eq!((&ingest["accepted_total"], &ingest["written_total"]), (&0.into(), &5.into()));
    assert_eq!(node.stop().code(), Some(0));
    let seqs: Vec<u64> =
        stored(dir.path()).iter().map(|l| l["origin_seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, told);
}
