//! A channel at full load and a rare one, eight writers: a poller that follows the rare one sees
//! exactly what SQL holds. The same poller without the horizon, and with one that is taken after the
//! read, misses events: it must be caught.
//!
//! Attacks I9, H61 and H62.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{SOON, Servers, TOKEN, ask};
use crate::sql::site::{Kind, Site};
use crate::support::{Client, KEY, Node, full_scale, wait_until};

const CHANNELS: &str = "\
general:
  api_keys: [key-abc123]
channels:
  busy:
    mode: raw_only
  rare:
    mode: raw_only
";

/// Ends the load, also where the test fails.
struct Load<'a>(&'a AtomicBool);

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A node whose history is settled: it serves.
fn serving(site: &Site) -> Node {
    let node = begun(site);
    wait_until(SOON, "a node that serves", || {
        match ask(&node, "/internal/events?channel=rare&from_seq=1", Some(TOKEN)) {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.body),
        }
    });
    node
}

fn begun(site: &Site) -> Node {
    site.channels(CHANNELS);
    let token = format!("replication_token={TOKEN}");
    site.serving(&[
        "--set",
        "node_name=dc1",
        "--set",
        &token,
        "--set",
        "writer_workers=8",
        "--set",
        "writer_batch_size=60",
    ])
}

/// How much is posted to a channel at once, and how long the pause after it is.
#[derive(Clone, Copy)]
struct Pace {
    channel: &'static str,
    events: usize,
    pause: Duration,
}

const RARE: Pace = Pace { channel: "rare", events: 1, pause: Duration::from_millis(3) };
/// As much as any of the databases drains.
const BUSY: Pace = Pace { channel: "busy", events: 20, pause: Duration::from_millis(5) };
/// More than that: what was answered waits in the queue.
const FLOOD: Pace = Pace { channel: "busy", events: 100, pause: Duration::from_millis(1) };

/// Posts until it is told to stop. What was answered last is shown.
fn post(addr: &str, pace: Pace, stop: &AtomicBool, last: &AtomicU64) {
    let mut client = Client::connect(addr).unwrap();
    let items: Vec<&str> = vec!["{\"n\":1}"; pace.events];
    let body = format!("[{}]", items.join(","));
    while !stop.load(Ordering::SeqCst) {
        let answer = client.post(pace.channel, KEY, body.as_bytes()).unwrap();
        if answer.status == 202 {
            last.fetch_max(answer.json()["last_seq"].as_u64().unwrap(), Ordering::SeqCst);
        }
        // the pace of the load
        std::thread::sleep(pace.pause);
    }
}

/// Clients that post to the busy channel.
fn clients() -> usize {
    if full_scale() { 3 } else { 1 }
}

/// While both channels are posted to.
fn under_load<T>(node: &Node, busy: Pace, work: impl FnOnce(&AtomicU64) -> T) -> T {
    let (stop, last) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..clients() {
            scope.spawn(|| post(&node.addr, busy, &stop, &last));
        }
        scope.spawn(|| post(&node.addr, RARE, &stop, &last));
        let load = Load(&stop);
        let done = work(&last);
        drop(load);
        done
    })
}

/// A reader of the rare channel.
#[derive(Default)]
struct Reader {
    seen: BTreeSet<u64>,
    from: u64,
}

impl Reader {
    fn take(&mut self, seqs: &[u64], next: u64) {
        for seq in seqs {
            assert!(*seq >= self.from, "{seq} below {}", self.from);
            assert!(self.seen.insert(*seq), "{seq} came twice");
        }
        assert!(next >= self.from, "{next} after {}", self.from);
        self.from = next;
    }

    /// One poll, as a peer makes it.
    fn poll(&mut self, client: &mut Client) -> Value {
        let path = format!("/internal/events?channel=rare&from_seq={}&limit=5", self.from);
        let answer = client.request("GET", &path, &[("x-replicon-token", TOKEN)], None).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let page = answer.json();
        let events = page["events"].as_array().unwrap();
        let seqs: Vec<u64> = events.iter().map(|e| e["origin_seq"].as_u64().unwrap()).collect();
        let next = page["next_seq"].as_u64().unwrap();
        assert!(next <= page["safe_seq"].as_u64().unwrap() + 1 || next == self.from, "{page}");
        self.take(&seqs, next);
        page
    }
}

/// The rare events that SQL holds, from one seq to another.
fn stored(site: &Site, from: u64, upto: u64) -> Vec<u64> {
    let text = site.sql(&format!(
        "SELECT origin_seq FROM events_raw WHERE channel = 'rare' \
         AND origin_seq BETWEEN {from} AND {upto} ORDER BY origin_seq"
    ));
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn follows(site: Site) {
    let polls = if full_scale() { 200_000 } else { 2_000 };
    let node = serving(&site);
    let mut reader = Reader::default();
    let mut client = node.client();
    under_load(&node, BUSY, |_| {
        for _ in 0..polls {
            reader.poll(&mut client);
        }
    });
    node.wait_drained();
    wait_until(Duration::from_secs(30), "the last page", || {
        let page = reader.poll(&mut client);
        let done = page["events"].as_array().unwrap().is_empty();
        if done { Ok(()) } else { Err(page.to_string()) }
    });
    let all: BTreeSet<u64> = stored(&site, 0, 1 << 53).into_iter().collect();
    assert!(all.len() > 50, "{} rare events", all.len());
    assert_eq!(reader.seen, all);
    println!("{polls} polls saw {} events", all.len());
}

#[test]
fn a_reader_of_a_rare_channel_misses_nothing_on_postgres() {
    follows(Site::postgres());
}

#[test]
fn a_reader_of_a_rare_channel_misses_nothing_on_mysql() {
    follows(Servers::held().site(Kind::MySql));
}

#[test]
fn a_reader_of_a_rare_channel_misses_nothing_on_sqlite() {
    follows(Site::sqlite());
}

/// By then a reader without a horizon was caught, or never is.
const CAUGHT: Duration = Duration::from_secs(60);

/// Polls SQL beside the node until an event was missed; whether one was.
fn misses(mut poll: impl FnMut(&Site, &mut Client, u64, &AtomicU64) -> (Vec<u64>, u64)) -> bool {
    let site = Site::postgres();
    let node = serving(&site);
    let mut reader = Reader::default();
    let mut client = node.client();
    under_load(&node, FLOOD, |last| {
        let end = Instant::now() + CAUGHT;
        while Instant::now() < end {
            let (seqs, next) = poll(&site, &mut client, reader.from, last);
            reader.take(&seqs, next.max(reader.from));
            // more stands there by now than it saw when it passed
            let passed = stored(&site, 0, reader.from.saturating_sub(1));
            if passed.iter().any(|seq| !reader.seen.contains(seq)) {
                return true;
            }
        }
        false
    })
}

#[test]
fn without_the_horizon_the_reader_is_caught() {
    let missed = misses(|site, _, from, last| {
        // the table takes nothing for a moment: what is answered meanwhile waits in the queue
        site.sql("BEGIN; LOCK TABLE events_raw IN EXCLUSIVE MODE; SELECT pg_sleep(0.3); COMMIT");
        let upto = last.load(Ordering::SeqCst);
        (stored(site, from, upto), upto + 1)
    });
    assert!(
        missed,
        "what was answered 202 is not all stored: a reader must have passed some of it"
    );
}

#[test]
fn with_a_horizon_that_is_taken_after_the_read_the_reader_is_caught() {
    let missed = misses(|site, client, from, _| {
        let mut seqs = stored(site, from, 1 << 53);
        let page = Reader { from, ..Reader::default() }.poll(client);
        let safe = page["safe_seq"].as_u64().unwrap();
        seqs.retain(|seq| *seq <= safe);
        (seqs, safe + 1)
    });
    assert!(missed, "what was committed between the read and the horizon must have been passed");
}
