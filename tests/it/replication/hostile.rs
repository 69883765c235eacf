//! A peer that answers what no peer should: memory stays small, nothing of it is stored, no cursor
//! moves, it is asked less than once a second, and the node itself goes on.
//!
//! Attacks I11 and I14, H68, H70 and H77.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{CHANNELS, SOON, TOKEN, side_by_side};
use crate::sql::site::Site;
use crate::support::{Node, wait_until};

/// A request for events, or another one that is to be answered likewise.
struct Asked {
    /// Whose events, where it is not the peer's own.
    origin: Option<String>,
    from: u64,
    /// How many requests for events there were before.
    n: u64,
}

/// Requests.
#[derive(Default)]
struct Counts {
    /// Of any kind.
    all: AtomicU64,
    /// For events.
    events: AtomicU64,
}

/// How such a request is answered.
type Behaviour = fn(&Asked, &mut TcpStream);

/// What a server does.
#[derive(Clone, Copy)]
struct Manners {
    name: &'static str,
    events: Behaviour,
    /// Whether the held request is answered so too; else it is told at once, and each time, that
    /// events came.
    all: bool,
    /// What else is answered.
    more: More,
}

/// What the held request names, and the schema that is given.
#[derive(Clone, Copy)]
struct More {
    channels: &'static str,
    /// By how many requests for events there were; `None` where there is none.
    schema: Option<fn(u64) -> String>,
}

const PLAIN: More = More { channels: "\"events_raw\"", schema: None };

/// A server that speaks just enough HTTP.
struct Fake {
    addr: String,
    asked: Arc<Counts>,
}

impl Fake {
    fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let asked: Arc<Counts> = Arc::default();
        let counts = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let counts = counts.clone();
                thread::spawn(move || serve(stream, manners, &counts));
            }
        });
        Self { addr, asked }
    }

    /// Requests of any kind.
    fn asked(&self) -> u64 {
        self.asked.all.load(Ordering::SeqCst)
    }
}

/// A parameter of a path.
fn parameter<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = path.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn serve(stream: TcpStream, manners: Manners, counts: &Counts) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(first) = lines.next() {
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        let number = counts.all.fetch_add(1, Ordering::SeqCst);
        if path.starts_with("/internal/events") || manners.all {
            let from = parameter(&path, "from_seq").and_then(|from| from.parse().ok());
            let origin = parameter(&path, "origin").map(str::to_owned);
            let n = counts.events.fetch_add(1, Ordering::SeqCst);
            (manners.events)(&Asked { origin, from: from.unwrap_or(0), n }, &mut out);
        } else if path.starts_with("/internal/changes") {
            let body = format!(
                "{{\"node\":\"{}\",\"node_id\":\"aaaa\",\"number\":{number},\
                 \"channels\":[{}]}}",
                manners.name, manners.more.channels
            );
            respond(&mut out, "application/json", body.as_bytes());
        } else if path.starts_with("/internal/schema")
            && let Some(schema) = manners.more.schema
        {
            let body = schema(counts.events.load(Ordering::SeqCst));
            respond(&mut out, "application/json", body.as_bytes());
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

/// An answer without a length; pieces are given until there is none, or nobody takes them.
fn respond_chunked(stream: &mut TcpStream, mut piece: impl FnMut() -> Option<String>) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let mut sent = stream.write_all(head.as_bytes());
    while sent.is_ok()
        && let Some(piece) = piece()
    {
        sent = stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes());
    }
    let _ = stream.write_all(b"0\r\n\r\n");
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

/// A page without its events and its end.
fn head(from: u64, next: u64, safe: u64, id: &str) -> String {
    format!(
        "{{\"channel\":\"events_raw\",\"origin\":\"dc2\",\"from_seq\":{from},\"node\":\"dc2\",\
         \"node_id\":\"{id}\",\"safe_seq\":{safe},\"next_seq\":{next},\"events\":["
    )
}

fn page(from: u64, next: u64, safe: u64, id: &str, events: &[String]) -> String {
    format!("{}{}]}}", head(from, next, safe, id), events.join(","))
}

fn give(stream: &mut TcpStream, page: &str) {
    respond_page(stream, page.as_bytes(), page.len());
}

/// 64 MiB in a few thousand bytes.
fn bomb() -> &'static [u8] {
    static BOMB: OnceLock<Vec<u8>> = OnceLock::new();
    BOMB.get_or_init(|| zstd::encode_all(&vec![b' '; 64 << 20][..], 3).unwrap())
}

/// A node that pulls from such peers: names and addresses.
fn pulling(site: &Site, peers: &[(&str, &str)]) -> Node {
    // one channel: what is asked is all about it
    let channels = CHANNELS.split("  reports:\n").next().unwrap();
    site.channels(channels);
    let mut settings = vec![
        "node_name=dc1".to_owned(),
        "replication_enabled=true".to_owned(),
        format!("replication_token={TOKEN}"),
        "replication_http_timeout_ms=1500".to_owned(),
    ];
    let peer = |(name, addr): &(&str, &str)| format!("replication_peer={name}=http://{addr}");
    settings.extend(peers.iter().map(peer));
    let settings: Vec<&str> =
        settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    site.serving(&settings)
}

/// The most memory that a process has had, in MiB.
fn peak(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
}

/// What the node says of its first peer: why it is in trouble, or why one of its channels waits.
fn marks(node: &Node) -> Vec<String> {
    let health = node.health();
    let peer = &health["replication"]["peers"][0];
    let text = |of: &Value| of["reason"].as_str().map(str::to_owned);
    let waits = |of: &&Value| of["state"] == "paused" || of["state"] == "stopped";
    let channels = peer["channels"].as_array().cloned().unwrap_or_default();
    let of_channels = channels.iter().filter(waits).filter_map(text);
    text(peer).into_iter().chain(of_channels).collect()
}

fn count(site: &Site, from: &str) -> String {
    site.sql(&format!("SELECT count(*) FROM {from}"))
}

/// What a peer does, and the words by which that is marked.
#[derive(Clone)]
struct Case {
    manners: Manners,
    mark: &'static str,
}

fn harmless(case: &Case) {
    /// Long enough to tell less than one request a second.
    const WATCHED: u64 = 10;
    const SECONDS: u64 = 3;
    let fake = Fake::start(case.manners);
    let site = Site::sqlite();
    let node = pulling(&site, &[("dc2", &fake.addr)]);
    let marked = || {
        let marks = marks(&node);
        if marks.iter().any(|mark| mark.contains(case.mark)) { Ok(()) } else { Err(marks) }
    };
    wait_until(SOON, "a mark", || marked().map_err(|marks| format!("{marks:?}")));
    let asked_in = |seconds: u64| {
        let before = fake.asked();
        // requests are counted over a time
        thread::sleep(Duration::from_secs(seconds));
        fake.asked() - before
    };
    wait_until(SOON, "a peer that is left in peace", || match asked_in(SECONDS) {
        asked if asked <= SECONDS => Ok(()),
        asked => Err(format!("{asked} requests in {SECONDS} s")),
    });
    let asked = asked_in(WATCHED);
    assert!(asked < WATCHED, "{asked} requests in {WATCHED} s");
    marked().unwrap();
    assert!(peak(&node) < 128, "{} MiB", peak(&node));
    // the node itself goes on
    assert_eq!(node.post("{\"n\":1}").status, 202);
    node.wait_drained();
    assert_eq!(count(&site, "events_raw WHERE origin_dc = 'dc1'"), "1");
    for bad in [
        "events_raw WHERE origin_dc <> 'dc1'",
        "replication_progress",
        "replicon_quarantine",
        "replicon_conflicts",
    ] {
        assert_eq!(count(&site, bad), "0", "{bad}");
    }
    assert_eq!(node.health()["status"], "degraded");
    assert_eq!(node.get("/readyz").status, 200, "a peer never makes a node unready");
}

fn case(what: &str, mark: &'static str, events: Behaviour) -> (String, Case) {
    let manners = Manners { name: "dc2", events, all: false, more: PLAIN };
    (what.to_owned(), Case { manners, mark })
}

/// The same, where the held request is answered so too.
fn always(what: &str, mark: &'static str, events: Behaviour) -> (String, Case) {
    let manners = Manners { name: "dc2", events, all: true, more: PLAIN };
    (what.to_owned(), Case { manners, mark })
}

fn redirect(_: &Asked, stream: &mut TcpStream) {
    let answer = "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
    let _ = stream.write_all(answer.as_bytes());
}

/// One page with all of them in it.
fn a_million_tiny_events(asked: &Asked, stream: &mut TcpStream) {
    let end = asked.from + 1_000_000;
    let mut begun = Some(head(asked.from, end, end, "aaaa"));
    let mut next = asked.from;
    respond_chunked(stream, || {
        if let Some(head) = begun.take() {
            return Some(head);
        }
        let some = next..(next + 1_000).min(end);
        next = some.end;
        let text: String = some.map(|seq| event("dc2", "events_raw", seq) + ",").collect();
        (!text.is_empty()).then_some(text)
    });
}

/// Nothing, of that schema.
fn empty(from: u64, id: &str, schema: &str, stream: &mut TcpStream) {
    let safe = from.saturating_sub(1);
    let page = page(from, from, safe, id, &[]);
    give(stream, &page.replacen('{', &format!("{{\"schema\":\"{schema}\","), 1));
}

/// A schema that fits, of that fingerprint.
fn schema(print: &str) -> String {
    format!(
        "{{\"channel\":\"events_raw\",\"fingerprint\":\"{print}\",\"mode\":\"raw_only\",\
         \"columns\":[]}}"
    )
}

fn fits(_: u64) -> String {
    schema("x")
}

/// That of the last page.
fn follows(asked: u64) -> String {
    schema(&format!("x{}", asked - 1))
}

/// Answers that are no nonsense, and cost their giver nothing.
fn idle_talk() -> Vec<(String, Manners)> {
    let manners = |events: Behaviour, more| Manners { name: "dc2", events, all: false, more };
    let quiet: Behaviour = |asked, stream| empty(asked.from, "aaaa", "x", stream);
    let more = |channels| More { channels, schema: Some(fits) };
    let new_ids: Behaviour =
        |asked, stream| empty(asked.from, &format!("id-{}", asked.n), "x", stream);
    let new_schemas: Behaviour =
        |asked, stream| empty(asked.from, "aaaa", &format!("x{}", asked.n), stream);
    [
        ("no news at once", manners(quiet, more(""))),
        ("news that are none", manners(quiet, more(PLAIN.channels))),
        ("a channel that is not here", manners(quiet, more("\"x\""))),
        ("an id a page", manners(new_ids, more(PLAIN.channels))),
        ("a schema a page", manners(new_schemas, More { schema: Some(follows), ..PLAIN })),
    ]
    .map(|(what, manners)| (what.to_owned(), manners))
    .into()
}

/// Requests in ten seconds become fewer than one a second.
fn asked_less(manners: &Manners) {
    let fake = Fake::start(*manners);
    let site = Site::sqlite();
    let _node = pulling(&site, &[("dc2", &fake.addr)]);
    wait_until(SOON, "a request for events", || match fake.asked.events.load(Ordering::SeqCst) {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    });
    wait_until(SOON, "a peer that is asked less", || {
        let before = fake.asked();
        // requests are counted over a time
        thread::sleep(Duration::from_secs(10));
        match fake.asked() - before {
            asked if asked < 10 => Ok(()),
            asked => Err(format!("{asked} requests in 10 s")),
        }
    });
}

#[test]
fn what_a_peer_repeats_for_nothing_is_asked_less_than_once_a_second() {
    let cases = idle_talk();
    side_by_side(cases.len(), &cases, asked_less);
}

/// Too much of something.
fn sizes() -> Vec<(String, Case)> {
    vec![
        always("an endless body", "larger than", |_, stream| {
            respond_chunked(stream, || Some("a".repeat(0x10000)));
        }),
        case("a million tiny events", "larger than", a_million_tiny_events),
        case("more events than were asked for", "more than the", |asked, stream| {
            let (from, end) = (asked.from, asked.from + 9_000);
            let many: Vec<String> =
                (from..end).map(|seq| event("dc2", "events_raw", seq)).collect();
            give(stream, &page(from, end, end, "aaaa", &many));
        }),
        case("a page that says it is huge", "larger than", |_, stream| {
            respond_page(stream, bomb(), 1 << 40);
        }),
        case("a bomb that says it is small", "cannot be read", |_, stream| {
            respond_page(stream, bomb(), 1 << 20);
        }),
    ]
}

/// What a page may have wrong, and answers that are none.
fn contents() -> Vec<(String, Case)> {
    vec![
        case("seqs that go backwards", "do not rise", |Asked { from, .. }, stream| {
            let events = [from + 2, *from].map(|seq| event("dc2", "events_raw", seq));
            give(stream, &page(*from, from + 3, from + 9, "aaaa", &events));
        }),
        case("events of other origins", "another origin", |Asked { from, n, .. }, stream| {
            let origin = if n.is_multiple_of(2) { "dc1" } else { "dc3" };
            let events = [event(origin, "events_raw", *from)];
            give(stream, &page(*from, from + 1, from + 9, "aaaa", &events));
        }),
        case("events of another channel", "another channel", |Asked { from, .. }, stream| {
            let events = [event("dc2", "reports", *from)];
            give(stream, &page(*from, from + 1, from + 9, "aaaa", &events));
        }),
        case("a next_seq that never moves", "does not go with", |Asked { from, .. }, stream| {
            give(stream, &page(*from, *from, from + 9, "aaaa", &[]));
        }),
        case("a next_seq beyond every clock", "above what any", |Asked { from, .. }, stream| {
            give(stream, &page(*from, (1 << 53) - 1, (1 << 53) - 2, "aaaa", &[]));
        }),
        case("a seq beyond every clock", "above what any", |Asked { from, .. }, stream| {
            let events = [event("dc2", "events_raw", (1 << 53) - 1)];
            give(stream, &page(*from, 1 << 53, (1 << 53) - 1, "aaaa", &events));
        }),
        case("an answer to another question", "another question", |Asked { from, .. }, stream| {
            let events = [event("dc2", "events_raw", from + 100)];
            give(stream, &page(from + 100, from + 101, from + 109, "aaaa", &events));
        }),
        case("an answer to another request", "another question", |Asked { from, .. }, stream| {
            let body = page(*from, *from, from.saturating_sub(1), "aaaa", &[]);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-replicon-turn: x\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let _ =
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        }),
        always("a redirect", "answered 302", redirect),
        case("a redirect of events alone", "answered 302", redirect),
        always("a name that is none", "its node is missing, or cannot be one", |_, stream| {
            let body = b"{\"node\":\"dc2\\nlevel=error\",\"node_id\":\"aaaa\",\"number\":1}";
            respond(stream, "application/json", body);
        }),
        always("no JSON", "cannot be read", |_, stream| {
            respond(stream, "application/json", b"{\"events\":[}");
        }),
    ]
}

#[test]
fn whatever_a_hostile_peer_answers_costs_little_and_changes_nothing() {
    let cases = [sizes(), contents()].concat();
    side_by_side(cases.len(), &cases, harmless);
}

#[test]
fn an_answer_without_an_echo_counts_for_its_own_origin_only_and_up_to_its_last_row() {
    // as a peer of v1.0.2 answers, which knows no `origin`, with a bad `next_seq`
    let fake = Fake::start(Manners {
        name: "dc3",
        all: false,
        more: PLAIN,
        events: |asked, stream| {
            let own = asked.from <= 7 || asked.origin.is_some();
            let events = if own { event("dc3", "events_raw", 7) } else { String::new() };
            let next = (1_u64 << 53) - 1;
            let body = format!("{{\"events\":[{events}],\"next_seq\":{next}}}");
            respond(stream, "application/json", body.as_bytes());
        },
    });
    let site = Site::sqlite();
    // nobody is there: dc3 is asked for the events of dc2
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let node = pulling(&site, &[("dc2", &gone), ("dc3", &fake.addr)]);
    wait_until(SOON, "a relay that is not used", || match node.log() {
        log if log.contains("it cannot relay") => Ok(()),
        log => Err(log),
    });
    // it is asked for its own events as before, and nothing of the others waits for it
    let relayed = node.health()["replication"]["peers"][1]["channels"].to_string();
    assert!(!relayed.contains("\"origin\":\"dc2\""), "{relayed}");
    let cursors = || site.sql("SELECT peer_dc, last_origin_seq_received FROM replication_progress");
    wait_until(SOON, "its own event", || match cursors() {
        right if right == "dc3|7" => Ok(()),
        other => Err(other),
    });
    assert_eq!(site.sql("SELECT origin_dc, origin_seq FROM events_raw"), "dc3|7");
    // longer than what stands in memory only waits until it is written
    thread::sleep(Duration::from_secs(6));
    assert_eq!(node.log().matches("it cannot relay").count(), 1);
    assert_eq!(node.stop().code(), Some(0));
    assert_eq!(cursors(), "dc3|7");
}

#[test]
fn two_ids_that_take_turns_stop_the_origin() {
    let fake = Fake::start(Manners {
        name: "dc2",
        all: false,
        more: PLAIN,
        events: |asked, stream| {
            let id = if asked.n.is_multiple_of(2) { "aaaa" } else { "bbbb" };
            let safe = asked.from.saturating_sub(1);
            give(stream, &page(asked.from, asked.from, safe, id, &[]));
        },
    });
    let site = Site::sqlite();
    let node = pulling(&site, &[("dc2", &fake.addr)]);
    let reason = wait_until(SOON, "an origin that is stopped", || {
        let peer = node.health()["replication"]["peers"][0].clone();
        let stopped = peer["state"] == "stopped";
        if stopped { Ok(peer["reason"].to_string()) } else { Err(peer.to_string()) }
    });
    assert!(reason.contains("two nodes go by the name dc2"), "{reason}");
    assert_eq!(node.health()["status"], "degraded");
    assert_eq!(count(&site, "events_raw"), "0");
    // it stays so
    let asked = fake.asked.events.load(Ordering::SeqCst);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(fake.asked.events.load(Ordering::SeqCst), asked);
    assert_eq!(node.log().matches("is not followed any more").count(), 1, "{}", node.log());
}
