//! Clients that take their time: silent, dribbling, idle, never reading. Each is closed at its deadline
//! and not before, while an honest client is served all the time.
//!
//! Time bounds are what is tested here; everything is measured from the client's side, from an instant
//! before the node can have started its clock.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::http::{ADD, BEARER, send, serving};
use crate::support::{Client, Node, Response, wait_until};

/// Connections of each kind.
const MANY: usize = 50;
const HEADER: Duration = Duration::from_millis(700);
const BODY: Duration = Duration::from_millis(1_200);
const IDLE: Duration = Duration::from_millis(1_800);
/// How long after its deadline a connection may still be open.
const GRACE: Duration = Duration::from_secs(1);
/// The node counts in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);
const DRIBBLE_EVERY: Duration = Duration::from_millis(100);

const DEADLINES: [&str; 6] = [
    "--set",
    "http_header_timeout_ms=700",
    "--set",
    "http_body_timeout_ms=1200",
    "--set",
    "http_idle_timeout_ms=1800",
];

/// One slow connection.
struct Slow {
    what: &'static str,
    stream: TcpStream,
    /// The node's clock for the deadline started between these.
    from: (Instant, Instant),
    deadline: Duration,
    /// Sent a byte at a time.
    dribble: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    closed: Option<Instant>,
}

impl Slow {
    fn new(node: &Node, what: &'static str, deadline: Duration, begin: &str) -> Self {
        let before = Instant::now();
        let mut stream = TcpStream::connect(&node.addr).unwrap();
        stream.write_all(begin.as_bytes()).unwrap();
        Self {
            what,
            stream,
            from: (before, Instant::now()),
            deadline,
            dribble: Vec::new(),
            sent: 0,
            got: Vec::new(),
            closed: None,
        }
    }

    fn dribbling(mut self, bytes: &str) -> Self {
        self.dribble = bytes.as_bytes().to_vec();
        self
    }

    /// Reads one answer, and is silent from then on.
    fn answered(mut self) -> Self {
        let mut byte = [0];
        while !self.got.ends_with(b"\r\n\r\n{\"status\":\"alive\"}\n") {
            self.stream.read_exact(&mut byte).unwrap();
            self.got.push(byte[0]);
        }
        self.from.1 = Instant::now();
        self.got.clear();
        self
    }

    /// Sends what is due and looks whether the node has closed.
    fn look(&mut self) {
        if self.closed.is_some() {
            return;
        }
        let due = self.from.1.elapsed().as_millis() / DRIBBLE_EVERY.as_millis();
        if self.sent as u128 <= due && self.sent < self.dribble.len() {
            // a failure shows in the reading below
            let _ = self.stream.write_all(&self.dribble[self.sent..=self.sent]);
            self.sent += 1;
        }
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.closed = Some(Instant::now()),
            Ok(n) => self.got.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.closed = Some(Instant::now()),
        }
    }

    fn judge(&self) {
        let closed = self.closed.unwrap();
        let (least, most) = (closed - self.from.0, closed - self.from.1);
        let what = self.what;
        assert!(least + ROUNDING >= self.deadline, "{what}: closed after {least:?}");
        assert!(most <= self.deadline + GRACE, "{what}: closed only after {most:?}");
    }
}

/// Tells the honest client to stop, also where a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Posts on one connection until told to stop; every answer must be 202. How many there were.
fn honest(mut client: Client, stop: &AtomicBool) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let answer = send(&mut client, &[], b"{\"honest\":true}");
        assert_eq!(answer.status, 202, "{}", answer.body);
        count += 1;
    }
    count
}

fn all_kinds(node: &Node) -> Vec<Slow> {
    let body_head = format!(
        "POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\ncontent-length: 1000\r\n\r\n"
    );
    let get = "GET /livez HTTP/1.1\r\nhost: test\r\n\r\n";
    let spaces = " ".repeat(500);
    let mut all = Vec::new();
    for _ in 0..MANY {
        all.push(Slow::new(node, "silent", HEADER, ""));
        let dribbling = Slow::new(node, "a slow header", HEADER, "");
        all.push(dribbling.dribbling(&body_head));
        let dribbling = Slow::new(node, "a slow body", BODY, &body_head);
        all.push(dribbling.dribbling(&spaces));
        all.push(Slow::new(node, "kept alive and idle", IDLE, get).answered());
    }
    for slow in &all {
        slow.stream.set_nonblocking(true).unwrap();
    }
    all
}

#[test]
fn slow_clients_are_closed_at_their_deadlines_and_an_honest_one_is_served_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &DEADLINES);
    let stop = AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        let told = Stop(&stop);
        let served = scope.spawn(|| honest(node.client(), &stop));
        let mut all = all_kinds(&node);
        // ends by itself: a connection that is never closed fails the judgement below
        let end = Instant::now() + IDLE + 2 * GRACE;
        wait_until(Duration::from_secs(20), "the slow ones to end", || {
            all.iter_mut().for_each(Slow::look);
            let open = all.iter().filter(|slow| slow.closed.is_none()).count();
            if open == 0 || Instant::now() > end { Ok(()) } else { Err(format!("{open} are open")) }
        });
        drop(told);
        assert!(served.join().unwrap() > 0);
        all
    });
    for slow in &all {
        assert!(slow.closed.is_some(), "{}: never closed", slow.what);
        slow.judge();
        let got = String::from_utf8_lossy(&slow.got);
        if slow.what == "a slow body" {
            assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
            assert!(got.contains("\"code\":\"body_timeout\""), "{got}");
        } else {
            assert_eq!(got, "", "{}", slow.what);
        }
    }
    let closed = "replicon_http_connections_closed_total{reason=\"deadline\"}";
    // the slow bodies were answered, the other three kinds only closed
    let most = metric(&node.get("/metrics"), closed);
    assert!(most >= 3 * MANY as u64, "{most}");
}

/// A series' value; 0 where it is not there yet.
fn metric(answer: &Response, series: &str) -> u64 {
    let line = answer.body.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

/// Requests of 2 KB, each with an answer of 100 KB.
fn requests_with_long_answers(count: usize) -> Vec<u8> {
    let body = format!("{{\"{}\":[{}]}}", "k".repeat(1_000), vec!["\"\\u0000\""; 100].join(","));
    let one = format!(
        "POST {ADD} HTTP/1.1\r\nhost: test\r\nauthorization: {BEARER}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    one.repeat(count).into_bytes()
}

#[test]
fn clients_that_never_read_are_closed_and_an_honest_one_is_served_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &DEADLINES);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let pipeline = requests_with_long_answers(200);
    let deaf: Vec<TcpStream> = (0..MANY)
        .map(|_| {
            let mut stream = TcpStream::connect(&node.addr).unwrap();
            stream.set_nonblocking(true).unwrap();
            // as much as the buffers take
            assert!(stream.write(&pipeline).unwrap() > 0);
            stream
        })
        .collect();
    let (first, jammed, last) = std::thread::scope(|scope| {
        let told = Stop(&stop);
        let served = scope.spawn(|| honest(node.client(), &stop));
        let (mut answered, mut jammed, mut first) = (0, begun, None);
        let mut scraper = node.client();
        let last = wait_until(Duration::from_secs(30), "all of them to be closed", || {
            let metrics = scraper.get("/metrics").unwrap();
            let answers = "replicon_http_requests_total{channel=\"events_raw\",status=\"400\"}";
            let closed = "replicon_http_connections_closed_total{reason=\"deadline\"}";
            let (now, closed) = (metric(&metrics, answers), metric(&metrics, closed));
            if now > answered {
                (answered, jammed) = (now, Instant::now());
            }
            if closed > 0 && first.is_none() {
                first = Some(Instant::now());
            }
            if closed >= MANY as u64 {
                Ok(Instant::now())
            } else {
                Err(format!("{closed} closed, {now} answers"))
            }
        });
        drop(told);
        assert!(served.join().unwrap() > 0);
        (first.unwrap(), jammed, last)
    });
    drop(deaf);
    assert!(first - begun + ROUNDING >= HEADER, "{:?}", first - begun);
    // bytes that still came in after an answer was made count as the next request's header
    let most = jammed + IDLE.max(HEADER) + GRACE;
    assert!(last <= most, "closed {:?} too late", last - most);
}

#[test]
fn above_the_limit_of_connections_one_is_told_so_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &["--set", "http_max_connections=5"]);
    let connected = || -> Result<Client, String> {
        let mut client = node.client();
        let answer = client.get("/livez").map_err(|e| e.to_string())?;
        match answer.status {
            200 => Ok(client),
            _ => Err(answer.body),
        }
    };
    // connections of before may take a moment to go
    let mut five: Vec<Client> =
        (0..5).map(|_| wait_until(Duration::from_secs(10), "a place", connected)).collect();

    for _ in 0..3 {
        let mut sixth = node.client();
        let answer = sixth.response(false).unwrap();
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["code"], "connections");
        assert_eq!(answer.json()["stored"], "no");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(answer.header("retry-after").is_some());
        let end = sixth.response(false).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
    for client in &mut five {
        assert_eq!(send(client, &[], b"{}").status, 202);
    }
    drop(five.pop());
    let mut next = wait_until(Duration::from_secs(10), "the place that is free", connected);
    assert_eq!(send(&mut next, &[], b"{}").status, 202);
}
