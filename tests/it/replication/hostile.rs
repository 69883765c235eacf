//! A peer that answers what no peer should: memory stays small, nothing of it is stored, no cursor
//! moves, it is asked less than once a second, and the node itself goes on.
//!
//! Attacks I11 and I14, H68 and H70.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::{CHANNELS, SOON, TOKEN};
use crate::sql::site::Site;
use crate::support::{Node, wait_until};

/// How an answer to a request for events is made; `n` counts them.
type Behaviour = fn(from: u64, n: u64, stream: &mut TcpStream);

/// A server that speaks just enough HTTP.
struct Fake {
    addr: String,
    asked: Arc<AtomicU64>,
}

impl Fake {
    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let asked: Arc<AtomicU64> = Arc::default();
        let counts = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let counts = counts.clone();
                thread::spawn(move || serve(stream, behaviour, &counts));
            }
        });
        Self { addr, asked }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, behaviour: Behaviour, asked: &AtomicU64) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(first) = lines.next() {
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        if path.starts_with("/internal/changes") {
            // held for a moment, then it says that something came
            if path.contains("after=") {
                thread::sleep(Duration::from_millis(700));
            }
            let body = "{\"node\":\"dc2\",\"node_id\":\"aaaa\",\"number\":1,\
                \"channels\":[\"events_raw\"]}";
            respond(&mut out, "application/json", body.as_bytes());
        } else if path.starts_with("/internal/events") {
            let from = path.split("from_seq=").nth(1).and_then(|rest| rest.split('&').next());
            let n = asked.fetch_add(1, Ordering::SeqCst);
            behaviour(from.and_then(|from| from.parse().ok()).unwrap_or(0), n, &mut out);
        } else {
            let _ = out.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        }
    }
}

fn respond(stream: &mut TcpStream, kind: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// A page behind its line.
fn respond_page(stream: &mut TcpStream, wire: &[u8], whole: usize) {
    let mut body = format!("{} {whole}\n", wire.len()).into_bytes();
    body.extend_from_slice(wire);
    body.extend_from_slice(b"0 0\n");
    respond(stream, "application/vnd.replicon.pages", &body);
}

fn event(origin: &str, channel: &str, seq: u64) -> String {
    format!(
        "{{\"origin_dc\":\"{origin}\",\"origin_seq\":{seq},\"node_name\":\"dc2\",\
         \"channel\":\"{channel}\",\"received_at\":\"2026-02-19T12:00:00.000000Z\",\
         \"json_data\":{{\"n\":1}}}}"
    )
}

fn page(from: u64, next: u64, safe: u64, id: &str, events: &[String]) -> String {
    format!(
        "{{\"channel\":\"events_raw\",\"origin\":\"dc2\",\"from_seq\":{from},\"node\":\"dc2\",\
         \"node_id\":\"{id}\",\"safe_seq\":{safe},\"next_seq\":{next},\"events\":[{}]}}",
        events.join(",")
    )
}

fn give(stream: &mut TcpStream, page: &str) {
    respond_page(stream, page.as_bytes(), page.len());
}

/// A node that pulls from such a peer.
fn pulling(site: &Site, fake: &Fake) -> Node {
    // one channel: what is asked is all about it
    let channels = CHANNELS.split("  reports:\n").next().unwrap();
    site.channels(channels);
    let token = format!("replication_token={TOKEN}");
    let peer = format!("replication_peer=dc2=http://{}", fake.addr);
    site.serving(&[
        "--set", "node_name=dc1", "--set", "replication_enabled=true", "--set", &token, "--set",
        &peer, "--set", "replication_http_timeout_ms=1500",
    ])
}

/// The most memory that a process has had, in MiB.
fn peak(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
}

/// What the node says of that peer, all of it.
fn said(node: &Node) -> String {
    node.health()["replication"].to_string()
}

fn harmless(behaviour: Behaviour, mark: &str) {
    const WATCHED: u64 = 6;
    let fake = Fake::start(behaviour);
    let site = Site::sqlite();
    let node = pulling(&site, &fake);
    wait_until(SOON, "a mark", || {
        let said = said(&node);
        if said.contains(mark) { Ok(()) } else { Err(said) }
    });
    let before = fake.asked();
    // long enough to count requests
    thread::sleep(Duration::from_secs(WATCHED));
    let asked = fake.asked() - before;
    assert!(asked <= WATCHED, "{asked} requests in {WATCHED} s");
    assert!(peak(&node) < 128, "{} MiB", peak(&node));
    assert_eq!(node.post("{\"n\":1}").status, 202);
    node.wait_drained();
    assert_eq!(site.sql("SELECT count(*) FROM events_raw WHERE origin_dc <> 'dc1'"), "0");
    assert_eq!(site.sql("SELECT count(*) FROM replication_progress"), "0");
    assert_eq!(node.health()["status"], "degraded", "{}", said(&node));
}

#[test]
fn an_endless_body_is_left_at_its_bound() {
    harmless(
        |_, _, stream| {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                        transfer-encoding: chunked\r\n\r\n";
            let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
            let mut sent = stream.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(chunk.as_bytes());
            }
        },
        "larger than",
    );
}

#[test]
fn a_page_that_says_it_is_huge_is_not_read() {
    harmless(
        |_, _, stream| {
            let bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 3).unwrap();
            respond_page(stream, &bomb, 1 << 40);
        },
        "larger than",
    );
}

#[test]
fn a_bomb_that_says_it_is_small_is_met_at_its_own_word() {
    harmless(
        |_, _, stream| {
            let bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 3).unwrap();
            respond_page(stream, &bomb, 1 << 20);
        },
        "cannot be read",
    );
}

#[test]
fn more_events_than_were_asked_for_are_not_used() {
    harmless(
        |from, _, stream| {
            let many: Vec<String> =
                (from..from + 9_000).map(|seq| event("dc2", "events_raw", seq)).collect();
            give(stream, &page(from, from + 9_000, from + 9_000, "aaaa", &many));
        },
        "more than the",
    );
}

#[test]
fn seqs_that_go_backwards_are_not_used() {
    harmless(
        |from, _, stream| {
            let events = [event("dc2", "events_raw", from + 2), event("dc2", "events_raw", from)];
            give(stream, &page(from, from + 3, from + 9, "aaaa", &events));
        },
        "do not rise",
    );
}

#[test]
fn events_of_another_origin_are_not_stored() {
    harmless(
        |from, n, stream| {
            let origin = if n.is_multiple_of(2) { "dc1" } else { "dc3" };
            let events = [event(origin, "events_raw", from)];
            give(stream, &page(from, from + 1, from + 9, "aaaa", &events));
        },
        "another origin",
    );
}

#[test]
fn a_next_seq_that_never_moves_is_not_followed() {
    harmless(
        |from, _, stream| give(stream, &page(from, from, from + 9, "aaaa", &[])),
        "does not go with",
    );
}

#[test]
fn a_next_seq_beyond_every_clock_is_not_believed() {
    harmless(
        |from, _, stream| {
            give(stream, &page(from, (1 << 53) - 1, (1 << 53) - 2, "aaaa", &[]));
        },
        "above what any clock",
    );
}

#[test]
fn a_redirect_is_not_followed() {
    harmless(
        |_, _, stream| {
            let answer = "HTTP/1.1 302 Found\r\nlocation: /internal/events\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
        },
        "answered 302",
    );
}

#[test]
fn what_is_no_json_is_not_used() {
    harmless(|_, _, stream| give(stream, "{\"events\":[}"), "cannot be read");
}

#[test]
fn two_ids_that_take_turns_stop_the_origin() {
    let fake = Fake::start(|from, n, stream| {
        let id = if n.is_multiple_of(2) { "aaaa" } else { "bbbb" };
        give(stream, &page(from, from, from.saturating_sub(1), id, &[]));
    });
    let site = Site::sqlite();
    let node = pulling(&site, &fake);
    wait_until(SOON, "an origin that is stopped", || {
        let said = said(&node);
        if said.contains("\"stopped\"") && said.contains("two nodes go by the name dc2") {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(node.health()["status"], "degraded");
    let asked = fake.asked();
    // it stays so
    thread::sleep(Duration::from_secs(3));
    assert_eq!(fake.asked(), asked);
}
