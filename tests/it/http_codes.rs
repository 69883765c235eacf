//! The refusals: every status of the documentation with its code and headers, the order of the checks,
//! and what a client sees that is answered before its body was read.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::http::{ADD, BEARER, gzip, send, serving};
use crate::support::{Node, Response, golden};

const SMALL_BODIES: [&str; 2] = ["--set", "max_body_bytes=64KiB"];
const MAX_BODY: usize = 64 << 10;
const KEY_HEADER: (&str, &str) = ("authorization", BEARER);
const BROTLI: (&str, &str) = ("content-encoding", "br");

/// A request on a connection of its own.
fn once(node: &Node, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut client = node.client();
    client.request(method, path, headers, Some(body)).unwrap()
}

/// Posts with the key on a connection of its own.
fn post(node: &Node, headers: &[(&str, &str)], body: &[u8]) -> Response {
    send(&mut node.client(), headers, body)
}

/// Sends bytes and reads until the node closes.
fn exchange(node: &Node, bytes: &str) -> String {
    let mut stream = TcpStream::connect(&node.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Posts with one header of so many bytes. The answer may come before all of it is sent.
fn with_header_of(node: &Node, len: usize) -> Response {
    let value = "x".repeat(len);
    let head = format!(
        "POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\nx-huge: {value}\r\n"
    );
    let mut client = node.client();
    let _ = client.send(format!("{head}content-length: 2\r\n\r\n{{}}").as_bytes());
    client.response(false).unwrap()
}

/// An object of exactly so many bytes.
fn object_of(len: usize) -> Vec<u8> {
    let frame = "{\"a\":\"\"}".len();
    format!("{{\"a\":\"{}\"}}", "x".repeat(len - frame)).into_bytes()
}

fn code(answer: &Response) -> String {
    let json: Option<Value> = serde_json::from_str(&answer.body).ok();
    let code = json.and_then(|json| json["code"].as_str().map(str::to_owned));
    code.unwrap_or_else(|| "-".to_owned())
}

fn assert_refused(answer: &Response, status: u16, expect: &str) {
    assert_eq!((answer.status, code(answer).as_str()), (status, expect), "{}", answer.body);
    let json = answer.json();
    assert_eq!(json["status"], "error");
    assert!(json["error"].as_str().is_some_and(|text| !text.is_empty()));
}

type Rows = Vec<(&'static str, Response)>;

fn refused_before_the_body(node: &Node, rows: &mut Rows) {
    let too_long = vec![b' '; MAX_BODY + 1];
    let no_channel = "/ingress/nope/add";
    let disabled = "/ingress/abuse_reports/add";
    let abuse_key = [("authorization", "Bearer key-abuse-001")];
    rows.push(("GET on the ingest route", once(node, "GET", ADD, &[], b"")));
    rows.push(("POST on an operator route", once(node, "POST", "/healthz", &[], b"")));
    rows.push(("an unknown path", once(node, "POST", "/nope", &[], b"")));
    rows.push(("an unknown channel", once(node, "POST", no_channel, &[KEY_HEADER], b"{}")));
    rows.push(("a disabled channel", once(node, "POST", disabled, &abuse_key, b"{}")));
    rows.push(("no key", once(node, "POST", ADD, &[], b"{}")));
    rows.push(("an announced body that is too large", post(node, &[], &too_long)));
    rows.push(("an unknown content encoding", post(node, &[BROTLI], b"{}")));
    rows.push(("headers that are too large", with_header_of(node, 60_000)));
    let mut bare = node.client();
    bare.send(format!("POST {ADD} HTTP/1.1\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes()).unwrap();
    rows.push(("HTTP/1.1 without a host", bare.response(false).unwrap()));
}

fn refused_by_the_body(node: &Node, rows: &mut Rows) {
    let spaces = vec![b' '; 2 * MAX_BODY];
    let head = format!(
        "POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\ncontent-length: 9\r\n\r\n{{"
    );
    let gz = [("content-encoding", "gzip")];
    let best = flate2::Compression::best();
    rows.push(("a body that inflates too far", post(node, &gz, &gzip(&spaces, best))));
    rows.push(("a body that is no gzip", post(node, &gz, b"{}")));
    let mut cut = node.client();
    cut.send(head.as_bytes()).unwrap();
    cut.stream().shutdown(Shutdown::Write).unwrap();
    rows.push(("a body that ends early", cut.response(false).unwrap()));
    let mut slow = node.client();
    slow.send(head.as_bytes()).unwrap();
    rows.push(("a body that does not come", slow.response(false).unwrap()));
    rows.push(("an empty batch", post(node, &[], b"[]")));
    rows.push(("a batch above queue_buffer", post(node, &[], b"[{},{},{},{}]")));
    assert_eq!(post(node, &[], b"[{},{}]").status, 202);
    rows.push(("a batch that does not fit now", post(node, &[], b"[{},{}]")));
}

/// Headers and a body.
type Sent<'a> = (&'a [(&'a str, &'a str)], &'a [u8]);

#[test]
fn error_codes_are_stable() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Rows::new();
    let mut args = SMALL_BODIES.to_vec();
    args.extend(["--set", "http_body_timeout_ms=300"]);
    args.extend(["--set", "writer_enabled=false", "--set", "queue_buffer=3"]);
    let node = serving(dir.path(), &args);
    refused_before_the_body(&node, &mut rows);
    refused_by_the_body(&node, &mut rows);
    node.kill();

    let mut args = SMALL_BODIES.to_vec();
    args.extend(["--set", "http_max_inflight_bytes=128KiB"]);
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &args);
    // a body of 60,000 bytes that does not end is held; then 40,000 as they came, and as many inflated
    let mut holds = node.client();
    let head = format!(
        "POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\ncontent-length: 60001\r\n\r\n"
    );
    holds.send(head.as_bytes()).unwrap();
    holds.send(&[b' '; 60_000]).unwrap();
    let both = gzip(&[b' '; 40_000], flate2::Compression::none());
    let busy = crate::support::wait_until(Duration::from_secs(20), "a busy node", || {
        let answer = post(&node, &[("content-encoding", "gzip")], &both);
        if answer.status == 503 { Ok(answer) } else { Err(answer.body) }
    });
    assert_eq!(busy.json()["stored"], "no");
    rows.push(("more bytes of bodies than may be in memory", busy));
    node.kill();

    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "min_free_bytes=1000TiB"]);
    crate::support::wait_until(Duration::from_secs(20), "a refusal", || {
        let why = node.get("/readyz").body;
        if why.contains("min_free_bytes") { Ok(()) } else { Err(why) }
    });
    let full = node.post("{}");
    assert_eq!(full.json()["stored"], "no");
    rows.push(("too little free space", full));
    rows.push(("readiness meanwhile", node.get("/readyz")));

    let mut text = String::new();
    for (what, answer) in &rows {
        text.push_str(&format!("{} {:<20} {what}\n", answer.status, code(answer)));
    }
    golden("error_codes.txt", &text);
}

#[test]
fn checks_come_in_the_order_405_404_401_413_415_400() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &SMALL_BODIES);
    let large = vec![b'x'; MAX_BODY + 1];
    let nowhere = "/ingress/nope/add";
    let answers = [
        (405, once(&node, "PUT", nowhere, &[BROTLI], &large)),
        (404, once(&node, "POST", nowhere, &[BROTLI], &large)),
        (401, once(&node, "POST", ADD, &[BROTLI], &large)),
        (413, once(&node, "POST", ADD, &[KEY_HEADER, BROTLI], &large)),
        (415, once(&node, "POST", ADD, &[KEY_HEADER, BROTLI], b"x")),
        (400, once(&node, "POST", ADD, &[KEY_HEADER], b"x")),
    ];
    for (status, answer) in &answers {
        assert_eq!(answer.status, *status, "{}", answer.body);
    }
}

#[test]
fn every_violation_is_listed_with_index_pointer_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let body = br#"[1,{"a":1e400,"b":{"c/d":["\ud800",2]}},{},null]"#;
    let answer = post(&node, &[], body);
    assert_refused(&answer, 400, "invalid");
    let json = answer.json();
    let all = json["violations"].as_array().unwrap();
    let places: Vec<(u64, &str)> = all
        .iter()
        .map(|v| (v["index"].as_u64().unwrap(), v["pointer"].as_str().unwrap()))
        .collect();
    assert_eq!(places, [(0, ""), (1, "/a"), (1, "/b/c~1d/0"), (3, "")]);
    assert!(all.iter().all(|v| !v["reason"].as_str().unwrap().is_empty()));

    let lines = [("content-type", "application/x-ndjson")];
    let answer = post(&node, &lines, b"{}\n[]\n{\"a\":}\n{}\n");
    let json = answer.json();
    let indices: Vec<&Value> =
        json["violations"].as_array().unwrap().iter().map(|v| &v["index"]).collect();
    assert_eq!(indices, [1, 2]);

    let many = format!("[{}]", vec!["1"; 500].join(","));
    let answer = post(&node, &[], many.as_bytes());
    assert_refused(&answer, 400, "invalid");
    assert_eq!(answer.json()["violations"].as_array().unwrap().len(), 100);
}

#[test]
fn a_body_that_is_no_event_is_400_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let too_many = format!("[{}]", vec!["{}"; 1001].join(","));
    let too_many_lines = "{}\n".repeat(1001);
    let lines = [("content-type", "application/x-ndjson")];
    let plain: [(&str, &str); 0] = [];
    let bodies: [Sent<'_>; 16] = [
        (&plain, b""),
        (&plain, b" \n"),
        (&plain, b"[]"),
        (&plain, b"{"),
        (&plain, b"[{},{}"),
        (&plain, b"{} {}"),
        (&plain, b"\"text\""),
        (&plain, b"[{\"source\":\"collector-1\"}, 123]"),
        (&plain, b"[{},[{}]]"),
        (&plain, b"{\"a\":\"\xff\"}"),
        (&plain, b"\xef\xbb\xbf{}"),
        (&plain, b"{\"a\":\"\\u0000\"}"),
        (&plain, too_many.as_bytes()),
        (&lines, b"\n \n"),
        (&lines, b"{}\n{\n"),
        (&lines, too_many_lines.as_bytes()),
    ];
    let mut kept = node.client();
    for (headers, body) in bodies {
        let answer = send(&mut kept, headers, body);
        assert_refused(&answer, 400, "invalid");
        assert_eq!(answer.header("connection"), None, "the body was read");
    }
    let ingest = node.health()["ingest"].clone();
    assert_eq!((&ingest["accepted_total"], &ingest["rejected_total"]), (&0.into(), &16.into()));
    let most = format!("[{}]", vec!["{}"; 1000].join(","));
    assert_eq!(send(&mut kept, &plain, most.as_bytes()).status, 202);
}

#[test]
fn without_the_channels_key_401_says_how_to_authenticate() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    for value in [
        "",
        "Bearer",
        "Bearer wrong-key",
        "Bearer key-abc1234",
        "Bearer key-abc12",
        "Bearer key-abuse-001",
        "Basic key-abc123",
        "key-abc123",
    ] {
        let answer = once(&node, "POST", ADD, &[("authorization", value)], b"{}");
        assert_refused(&answer, 401, "unauthorized");
        let realm = answer.header("www-authenticate");
        assert_eq!(realm, Some("Bearer realm=\"replicon\""));
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(once(&node, "POST", ADD, &[], b"{}").status, 401);
}

#[test]
fn the_ingest_route_names_the_method_that_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = once(&node, method, ADD, &[KEY_HEADER], b"{}");
        assert_refused(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
}

#[test]
fn a_body_above_the_limit_is_413_announced_chunked_and_inflated() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &SMALL_BODIES);
    let (fits, too_long) = (object_of(MAX_BODY), object_of(MAX_BODY + 1));
    assert_eq!(post(&node, &[], &fits).status, 202);
    assert_refused(&post(&node, &[], &too_long), 413, "body_too_large");

    let mut chunked = format!(
        "POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        too_long.len()
    )
    .into_bytes();
    chunked.extend_from_slice(&too_long);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    let mut client = node.client();
    client.send(&chunked).unwrap();
    let answer = client.response(false).unwrap();
    assert_refused(&answer, 413, "body_too_large");
    assert_eq!(answer.header("connection"), Some("close"));

    let best = flate2::Compression::best();
    for (coding, small, large) in [
        ("gzip", gzip(&fits, best), gzip(&too_long, best)),
        (
            "zstd",
            zstd::encode_all(&fits[..], 3).unwrap(),
            zstd::encode_all(&too_long[..], 3).unwrap(),
        ),
    ] {
        let headers = [("content-encoding", coding)];
        assert_eq!(post(&node, &headers, &small).status, 202, "{coding}");
        let answer = post(&node, &headers, &large);
        assert_refused(&answer, 413, "body_too_large");
    }
}

#[test]
fn an_unknown_or_stacked_content_encoding_is_415() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    for coding in ["br", "deflate", "gzip, zstd", "none"] {
        let answer = post(&node, &[("content-encoding", coding)], b"{}");
        assert_refused(&answer, 415, "unsupported_encoding");
    }
    let twice = [("content-encoding", "gzip"), ("content-encoding", "gzip")];
    assert_refused(&post(&node, &twice, b"{}"), 415, "unsupported_encoding");
}

#[test]
fn a_compressed_body_that_is_cut_off_is_400_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let lines = "{\"a\":1}\n".repeat(500);
    let whole = gzip(lines.as_bytes(), flate2::Compression::none());
    let headers = [("content-encoding", "gzip"), ("content-type", "application/x-ndjson")];
    for cut in [1, 9, whole.len() / 2, whole.len() - 8, whole.len() - 1] {
        assert_refused(&post(&node, &headers, &whole[..cut]), 400, "bad_encoding");
    }
    assert_eq!(node.health()["ingest"]["accepted_total"], 0);
    assert_eq!(post(&node, &headers, &whole).json()["accepted_count"], 500);
}

#[test]
fn a_full_queue_is_429_with_a_time_to_wait_and_takes_what_still_fits() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--set", "queue_buffer=10", "--set", "writer_enabled=false"];
    let node = serving(dir.path(), &args);
    let batch = |n: usize| format!("[{}]", vec!["{}"; n].join(","));
    assert_refused(&node.post(&batch(11)), 413, "batch_too_large");
    assert_eq!(node.post(&batch(8)).status, 202);
    let full = node.post(&batch(3));
    assert_refused(&full, 429, "queue_full");
    let wait: u64 = full.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(node.post(&batch(2)).status, 202);
    assert_eq!(node.post("{}").status, 429);
    assert_eq!(node.health()["ingest"]["queue_depth"], 10);
    assert_eq!(node.get("/readyz").status, 200);
    assert_eq!(node.stop().code(), Some(0));

    // room comes back with the writer
    let node = serving(dir.path(), &["--set", "queue_buffer=10"]);
    node.wait_drained();
    assert_eq!(node.post(&batch(10)).status, 202);
}

#[test]
fn headers_above_the_limit_are_431() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &["--set", "http_max_header_bytes=8KiB"]);
    assert_eq!(with_header_of(&node, 60_000).status, 431);
    assert_eq!(with_header_of(&node, 6_000).status, 202);
}

#[test]
fn a_request_that_can_be_read_in_two_ways_gets_one_answer_and_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let head = format!("POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\n");
    let next = "GET /livez HTTP/1.1\r\nhost: test\r\n\r\n";
    let chunks = "2\r\n{}\r\n0\r\n\r\n";
    for request in [
        format!("{head}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{next}"),
        format!("{head}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{chunks}{next}"),
        format!("{head}content-length: 2\r\ncontent-length: 40\r\n\r\n{{}}{next}"),
        format!("{head}content-length: +2\r\n\r\n{{}}{next}"),
        format!("{head}transfer-encoding: chunked, identity\r\n\r\n{chunks}{next}"),
        format!(
            "POST {ADD} HTTP/1.1\r\nauthorization: {BEARER}\r\ncontent-length: 2\r\n\r\n{{}}{next}"
        ),
        format!("no request at all\r\n\r\n{next}"),
    ] {
        let answer = exchange(&node, &request);
        let answers = answer.matches("\r\ndate: ").count();
        assert_eq!(answers, 1, "{request}\n{answer}");
        assert!(!answer.contains("alive"), "{request}\n{answer}");
    }
}

/// Sends a body of spaces while another thread reads: whether all of it was taken, and the answer
/// with all that came before the end of the stream.
fn upload(node: &Node, method: &str, path: &str, headers: &str, size: usize) -> (bool, String) {
    let mut stream = TcpStream::connect(&node.addr).unwrap();
    let mut reading = stream.try_clone().unwrap();
    reading.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let reader = std::thread::spawn(move || {
        let mut answer = String::new();
        reading.read_to_string(&mut answer).map(|_| answer)
    });
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = vec![b' '; 16 << 10];
    let mut left = size;
    while left > 0 {
        match stream.write(&chunk[..left.min(chunk.len())]) {
            Ok(n) => left -= n,
            Err(_) => break,
        }
    }
    let answer = reader.join().unwrap();
    let answer = answer.unwrap_or_else(|e| panic!("{method} {path} with {size} bytes: {e}"));
    (left == 0, answer)
}

#[test]
fn an_answer_before_the_body_closes_without_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let key = format!("authorization: {BEARER}\r\n");
    let brotli = format!("{key}content-encoding: br\r\n");
    let (some, much) = (900_000, 4 << 20);
    for (status, method, path, headers, size) in [
        (401, "POST", ADD, "", some),
        (401, "POST", ADD, "", much),
        (404, "POST", "/ingress/nope/add", "", some),
        (404, "POST", "/ingress/nope/add", "", much),
        (405, "PUT", ADD, key.as_str(), some),
        (405, "PUT", ADD, key.as_str(), much),
        (413, "POST", ADD, key.as_str(), much + 1),
        (415, "POST", ADD, brotli.as_str(), some),
        (415, "POST", ADD, brotli.as_str(), much),
        (404, "POST", "/nope", "", some),
        (404, "POST", "/nope", "", much),
        (405, "POST", "/healthz", "", some),
        (405, "POST", "/healthz", "", much),
    ] {
        let (whole, answer) = upload(&node, method, path, headers, size);
        let what = format!("{method} {path} with {size} bytes: {answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}");
        assert!(answer.contains("connection: close\r\n"), "{what}");
        assert!(answer.ends_with("}\n"), "{what}");
        // up to 1 MiB is taken off the client's hands
        assert!(whole || size > some, "the sending was cut off: {what}");
    }
}
