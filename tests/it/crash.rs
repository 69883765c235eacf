//! `kill -9` at seeded moments, under load and during start-up: every 202 stands in storage once, under
//! the seq that it was told, and the accounts are even in every scrape.
//!
//! Attacks I1 to I4, I6, I7, I16 and I18. It does not test syncing: the page cache survives a process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::support::ledger::{Dice, Ledger, check_accounts, scrape_until_it_breaks};
use crate::support::{Node, full_scale, replicon, stored, wait_until};

const CLIENTS: u64 = 4;

/// Small segments, so that they are rotated and deleted all the time.
const SMALL_SEGMENTS: [&str; 6] = [
    "--set",
    "max_body_bytes=16KiB",
    "--set",
    "max_batch_items=100",
    "--set",
    "queue_segment_bytes=64KiB",
];

fn cycles() -> usize {
    if full_scale() { 50 } else { 8 }
}

/// `TEST_SEED`, to throw the dice of a failed run again.
fn seed() -> u64 {
    let seed = std::env::var("TEST_SEED").ok();
    seed.and_then(|seed| seed.parse().ok()).unwrap_or(20_260_219)
}

struct Cycles {
    dir: tempfile::TempDir,
    args: Vec<&'static str>,
    ledger: Ledger,
    dice: Dice,
    scrapes: usize,
}

impl Cycles {
    fn new(more: &[&'static str], seed: u64) -> Self {
        eprintln!("TEST_SEED={seed}");
        Self {
            dir: tempfile::tempdir().unwrap(),
            args: [&SMALL_SEGMENTS[..], more].concat(),
            ledger: Ledger::default(),
            dice: Dice::new(seed),
            scrapes: 0,
        }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The segments of the log, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir().join("data/queue")) else {
            return Vec::new();
        };
        let mut segments: Vec<PathBuf> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let digits = name.strip_prefix("ingest.log.").unwrap_or("");
                !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
            })
            .collect();
        segments.sort();
        segments
    }

    /// Starts it and kills it, mostly before it is ready.
    fn kill_a_start(&mut self) {
        let log =
            File::options().create(true).append(true).open(self.dir().join("stderr")).unwrap();
        let mut command = replicon(self.dir());
        command.args(["--set", "http_listen=127.0.0.1:0"]);
        command.args(&self.args).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(self.dice.throw(0, 40_000)));
        let _ = child.kill();
        let status = child.wait().unwrap();
        // a start that ended by itself had something to complain about
        assert_eq!(status.code(), None, "{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("stderr")).unwrap_or_default()
    }

    /// Starts it, loads it, and kills it at a moment of the dice.
    fn kill_under_load(&mut self, cycle: usize) {
        let node = Node::start(self.dir(), &self.args);
        let moment = Duration::from_millis(self.dice.throw(5, 400));
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| self.dice.throw(1, 1 << 40)).collect();
        let addr = node.addr.clone();
        let (addr, ledger) = (addr.as_str(), &self.ledger);
        let scrapes = std::thread::scope(|scope| {
            let clients: Vec<_> = seeds
                .into_iter()
                .map(|seed| {
                    scope.spawn(move || ledger.post_until_it_breaks(addr, cycle, Dice::new(seed)))
                })
                .collect();
            let scraper = scope.spawn(|| scrape_until_it_breaks(addr));
            std::thread::sleep(moment);
            node.kill();
            for client in clients {
                client.join().unwrap();
            }
            scraper.join().unwrap()
        });
        self.scrapes += scrapes;
    }

    /// Starts it once more, drains it, and compares.
    fn drain_and_judge(self) {
        let node = Node::start(self.dir(), &self.args);
        node.wait_drained();
        check_accounts(&node.get("/metrics").body);
        let health = node.health();
        assert_eq!(health["ingest"]["dead_letter_total"], 0, "{health}");
        assert_eq!(health["ingest"]["lost_total"], 0, "{health}");
        let damage = health["damage"].as_array().unwrap();
        assert!(damage.is_empty(), "a kill damages nothing: {health}");
        // all is stored: nothing needs the older segments
        wait_until(Duration::from_secs(10), "old segments to go", || {
            let left = self.segments();
            if left.len() <= 2 { Ok(()) } else { Err(format!("{left:?}")) }
        });
        assert_eq!(node.stop().code(), Some(0), "{}", self.log());
        assert!(self.ledger.accepted() > 100, "{}", self.ledger.accepted());
        assert!(self.scrapes > 0);
        self.ledger.judge(&stored(self.dir()));
    }
}

#[test]
fn what_was_accepted_survives_kills_under_load_and_during_start_up_once_under_its_seq() {
    let mut run = Cycles::new(&["--set", "storage_file_sync_ms=20"], seed());
    for cycle in 0..cycles() {
        if cycle % 3 == 0 {
            for _ in 0..3 {
                run.kill_a_start();
            }
        }
        run.kill_under_load(cycle);
    }
    run.drain_and_judge();
}

#[test]
fn a_log_that_is_replayed_from_its_oldest_segment_stores_nothing_twice() {
    let mut run = Cycles::new(&["--set", "storage_file_sync_ms=0"], seed() ^ 0x5eed);
    for cycle in 0..cycles() {
        run.kill_under_load(cycle);
        if cycle % 2 == 1 {
            std::fs::remove_file(run.dir().join("data/queue/ingest.ack")).unwrap();
            if cycle % 4 == 3 {
                run.kill_a_start();
            }
        }
    }
    run.drain_and_judge();
}

#[test]
fn a_first_start_that_is_killed_at_any_moment_leaves_a_directory_that_starts() {
    let runs = if full_scale() { 200 } else { 20 };
    let mut run = Cycles::new(&[], seed() ^ 0xf125);
    for cycle in 0..runs {
        run.dir = tempfile::tempdir().unwrap();
        run.kill_a_start();
        if cycle % 5 == 0 {
            run.kill_a_start();
        }
        let node = super::http::serving(run.dir(), &run.args);
        assert_eq!(node.post("{}").status, 202);
        assert!(node.health()["damage"].as_array().unwrap().is_empty());
        node.kill();
    }
}
