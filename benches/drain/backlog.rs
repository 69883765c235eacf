//! The backlog: loaded once into a node's queue while nothing is written, given back as it was before
//! each drain, and drained.
//!
//! Does not know which storage it is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicon::clock::Clock;
use serde_json::Value;

use crate::child::{self, Running};
use crate::client::Client;
use crate::figures::short;
use crate::load::{BATCH, CONNECTIONS, load};
use crate::rounds::Sample;
use crate::settings::Outcome;

/// Where the shipped configuration keeps all that a node has to keep.
const DATA: &str = "data";
/// A copy of it, of the moment when everything was loaded.
const KEPT: &str = "kept";
/// How often the node is asked.
const EVERY: Duration = Duration::from_millis(10);
/// A drain that has not moved for so long has stopped.
const STUCK: Duration = Duration::from_secs(60);
/// How long the making of the table may take.
const MAKING: Duration = Duration::from_secs(30);

/// Events that wait in a queue.
pub struct Backlog {
    /// The node's directory.
    dir: PathBuf,
    /// The node's settings.
    storage: Vec<String>,
    /// How many.
    events: usize,
}

impl Backlog {
    /// Loads it: into a node in that directory, with the settings of its storage. It ends when
    /// `stands` says that the table is there with all its indexes, which a node makes at its first
    /// start even where it writes nothing.
    pub fn load(
        dir: PathBuf,
        storage: Vec<String>,
        events: usize,
        mut stands: impl FnMut() -> Outcome<bool>,
    ) -> Outcome<Self> {
        let backlog = Self { dir, storage, events };
        let node = backlog.start("writer_enabled=false")?;
        node.wait_until_ready()?;
        let rate = load(node.addr, &(0..events))?;
        let waiting = node.health()?.waiting;
        if waiting != events as u64 {
            return Err(format!("{events} events were answered 202, {waiting} wait").into());
        }
        println!("\nloaded, {BATCH} a request, {CONNECTIONS} connections: {}/s", short(rate));
        let clock = Clock::system();
        while !stands()? {
            if clock.mono() > MAKING {
                let log = std::fs::read_to_string(backlog.dir.join("stderr")).unwrap_or_default();
                let text = format!("the node has not made its table within {MAKING:?}:\n{log}");
                return Err(text.into());
            }
            std::thread::sleep(EVERY);
        }
        stop(node)?;
        copy(&backlog.dir.join(DATA), &backlog.dir.join(KEPT))?;
        Ok(backlog)
    }

    /// Gives it back as it was loaded, on the disk and in the page cache.
    pub fn restore(&self) -> Outcome<()> {
        std::fs::remove_dir_all(self.dir.join(DATA))?;
        copy(&self.dir.join(KEPT), &self.dir.join(DATA))
    }

    /// Drains it with so many workers. Timed from the first look that finds events written, so that
    /// neither the start nor the first contact counts, nor those events.
    pub fn drain(&self, workers: usize) -> Outcome<Sample> {
        let clock = Clock::system();
        let node = self.start(&format!("writer_workers={workers}"))?;
        let mut client = Client::connect(node.addr)?;
        let mut first = None;
        let (mut written, mut moved_at) = (0, clock.mono());
        let end = loop {
            let report = report(&mut client)?;
            let (seen, at) = (count(&report, "written_total")?, clock.mono());
            if seen > written {
                (written, moved_at) = (seen, at);
                first = first.or(Some((at, seen)));
            } else if at - moved_at > STUCK {
                return Err(format!("nothing was written for {STUCK:?}: {report}").into());
            }
            if count(&report, "queue_depth")? == 0 {
                break at;
            }
            std::thread::sleep(EVERY);
        };
        stop(node)?;
        let Some((begin, before)) = first.filter(|(begin, _)| *begin < end) else {
            return Err("drained within one look: set BENCH_EVENTS to more".into());
        };
        let timed = (self.events as u64).saturating_sub(before);
        Ok(Sample {
            rate: timed as f64 / (end - begin).as_secs_f64(),
            with_start: Some(self.events as f64 / end.as_secs_f64()),
        })
    }

    fn start(&self, setting: &str) -> Outcome<Running> {
        let settings: Vec<&str> =
            self.storage.iter().map(String::as_str).chain([setting]).collect();
        let command = child::node(&self.dir, &settings)?;
        Running::start("replicon", command, &self.dir)
    }
}

/// SIGTERM, as an operator stops it; what does not end in good order is no measurement.
fn stop(node: Running) -> Outcome<()> {
    let status = node.end(libc::SIGTERM)?;
    if status.success() { Ok(()) } else { Err(format!("the node ended with {status}").into()) }
}

/// What the node says of itself, asked over a connection that stays.
fn report(client: &mut Client) -> Outcome<Value> {
    Ok(serde_json::from_slice(client.get("/healthz")?.body)?)
}

fn count(report: &Value, key: &str) -> Outcome<u64> {
    let count = report["ingest"][key].as_u64();
    count.ok_or_else(|| format!("/healthz has no {key}: {report}").into())
}

/// A directory with all its files, on the disk when it returns: what is measured next does not pay
/// for it. Sockets stay behind.
fn copy(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()?;
    Ok(())
}
