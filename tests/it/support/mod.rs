//! What the integration tests share: the built binary as a child, a client, waiting.
//!
//! Knows nothing of what is tested.

pub mod client;
pub mod ledger;
pub mod mysql;
pub mod netns;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod server;
pub mod sim;
pub mod sqlite;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use client::{Client, Response};

/// The key of the shipped channels.
pub const KEY: &str = "key-abc123";

/// Whether the long suites run at their full size (`TEST_SCALE=full`).
pub fn full_scale() -> bool {
    std::env::var("TEST_SCALE").is_ok_and(|scale| scale == "full")
}

/// Waits until `look` gives a value; panics with what it saw last after `deadline`.
pub fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if Instant::now() > end => panic!("waited for {what}; saw last: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A file in the repository.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares with a golden file under `tests/golden`; `UPDATE_GOLDEN=1` rewrites it.
pub fn golden(name: &str, got: &str) {
    let path = repo("tests/golden").join(name);
    if std::env::var("UPDATE_GOLDEN").is_ok_and(|v| v == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; make it with UPDATE_GOLDEN=1", path.display()));
    assert_eq!(got, want, "{} differs; UPDATE_GOLDEN=1 rewrites it", path.display());
}

/// The binary as a command with an environment of its own: no `REPLICON_*` of the caller's.
pub fn replicon(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicon"));
    command.current_dir(dir).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null());
    command
}

/// A running node in a directory of its own. Killed when dropped.
pub struct Node {
    child: Child,
    /// Where it listens.
    pub addr: String,
    /// Its ready line.
    pub ready: String,
    dir: PathBuf,
}

impl Node {
    /// Starts it with its defaults but for a free port, and waits for its ready line. `args` are
    /// further arguments, such as `--set`, `writer_enabled=false`.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::try_start(dir, args).unwrap_or_else(|log| panic!("the node did not start:\n{log}"))
    }

    /// As [`Node::start`]; the error is what it logged.
    pub fn try_start(dir: &Path, args: &[&str]) -> Result<Self, String> {
        let log = File::options().create(true).append(true).open(dir.join("stderr")).unwrap();
        let mut command = replicon(dir);
        command.args(["--set", "http_listen=127.0.0.1:0"]);
        if !dir.join("conf/replicon.conf").exists() {
            // most tests read what is stored as lines; the last of two settings of a key counts
            command.args(["--set", "storage_backend=file"]);
        }
        command.args(args);
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut ready).unwrap();
        let ready = ready.trim_end().to_owned();
        let mut node = Self { child, addr: String::new(), ready, dir: dir.to_owned() };
        match node.ready.split(" http=").nth(1).and_then(|rest| rest.split(' ').next()) {
            Some(addr) => node.addr = addr.to_owned(),
            None => {
                let _ = node.child.wait();
                return Err(node.log());
            }
        }
        Ok(node)
    }

    /// A new connection to it.
    pub fn client(&self) -> Client {
        Client::connect(&self.addr).unwrap()
    }

    /// `GET` on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        self.client().get(path).unwrap()
    }

    /// Posts to `events_raw` with the shipped key, on a connection of its own.
    pub fn post(&self, body: &str) -> Response {
        self.client().post("events_raw", KEY, body.as_bytes()).unwrap()
    }

    /// `/healthz` as JSON.
    pub fn health(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/healthz").body).unwrap()
    }

    /// Waits until everything in the queue is written.
    pub fn wait_drained(&self) {
        wait_until(Duration::from_secs(60), "an empty queue", || {
            let health = self.health();
            match health["ingest"]["queue_depth"].as_u64() {
                Some(0) => Ok(()),
                _ => Err(health.to_string()),
            }
        });
    }

    /// What it logged so far, all starts in this directory together.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("stderr")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.child.wait().unwrap()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a file storage under `dir`, as JSON, in order.
pub fn stored(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("data/db/events_raw.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
