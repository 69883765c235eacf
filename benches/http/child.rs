//! The servers under measurement: each a process of its own in a directory of its own, gone when its
//! handle is.
//!
//! Does not know how they are driven.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use replicon::clock::Clock;
use tempfile::TempDir;

use crate::client::Client;
use crate::floor;
use crate::settings::{Outcome, clear, scratch};

/// The route that is driven.
pub const ROUTE: &str = "/ingress/events_raw/add";
/// The key of the shipped channels file.
pub const KEY: &str = "key-abc123";

const CONF: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/replicon.conf"));
const CHANNELS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/channels.yml"));
/// Ceilings that no run reaches: a benchmark offers more than any storage drains.
const CEILINGS: [&str; 2] = ["queue_buffer=100000000000", "queue_max_bytes=64TiB"];
/// How long a start may take.
const START: Duration = Duration::from_secs(15);

/// What can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Floor A.
    Bare,
    /// Floor B.
    Commit,
    /// replicon, throwing away what it drains: the accepting path alone.
    Noop,
    /// replicon as shipped, draining into file storage meanwhile.
    File,
}

impl Subject {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "floor A, bare 202",
            Self::Commit => "floor B, group commit",
            Self::Noop => "replicon, storage noop",
            Self::File => "replicon, storage file",
        }
    }

    /// Whether it is what the goals are for.
    pub const fn is_replicon(self) -> bool {
        matches!(self, Self::Noop | Self::File)
    }

    fn command(self, dir: &Path) -> Outcome<Command> {
        let mut command = match self {
            Self::Bare | Self::Commit => Command::new(std::env::current_exe()?),
            Self::Noop | Self::File => Command::new(env!("CARGO_BIN_EXE_replicon")),
        };
        match self {
            Self::Bare => command.arg(floor::BARE),
            Self::Commit => command.arg(floor::COMMIT).arg(dir.join("log")),
            Self::Noop => command.args(["--set", "storage_backend=noop"]),
            Self::File => command.args(["--set", "storage_backend=file"]),
        };
        if self.is_replicon() {
            std::fs::create_dir(dir.join("conf"))?;
            std::fs::write(dir.join("conf/replicon.conf"), CONF)?;
            std::fs::write(dir.join("conf/channels.yml"), CHANNELS)?;
            command.args(["--set", "http_listen=127.0.0.1:0"]);
            for ceiling in CEILINGS {
                command.args(["--set", ceiling]);
            }
        }
        Ok(command)
    }
}

/// Kills its process when dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that takes requests. The fields are dropped in this order: the process goes before its
/// directory.
pub struct Running {
    guard: Guard,
    /// Where it listens.
    pub addr: SocketAddr,
    _stdout: BufReader<ChildStdout>,
    dir: TempDir,
}

/// Resident memory, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Now (`VmRSS`).
    pub now: f64,
    /// At most so far (`VmHWM`).
    pub peak: f64,
}

/// What a node says of its queue.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// Events accepted.
    pub accepted: u64,
    /// Events that wait for storage.
    pub waiting: u64,
}

impl Running {
    /// Starts one and waits until it takes requests.
    pub fn start(subject: Subject) -> Outcome<Self> {
        let dir = scratch()?;
        let log = dir.path().join("stderr");
        let mut command = subject.command(dir.path())?;
        command
            .current_dir(dir.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        end_with_parent(&mut command);
        let mut guard = Guard(command.spawn()?);
        let stdout = guard.0.stdout.take().ok_or("the child has no stdout")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Some(addr) = address(&line) else {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let name = subject.name();
            return Err(format!("{name} did not start; it printed {line:?} and\n{log}").into());
        };
        let running = Self { guard, addr, _stdout: stdout, dir };
        if subject.is_replicon() {
            running.wait_until_ready()?;
        }
        Ok(running)
    }

    /// Appends are refused for a moment after the first start, until storage has been looked at.
    fn wait_until_ready(&self) -> Outcome<()> {
        let clock = Clock::system();
        loop {
            let mut client = Client::connect(self.addr)?;
            let answer = client.get("/readyz")?;
            if answer.status == 200 {
                return Ok(());
            }
            if clock.mono() > START {
                let said = String::from_utf8_lossy(answer.body);
                return Err(format!("replicon is not ready after {START:?}: {said}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it takes of the machine's memory.
    pub fn memory(&self) -> Outcome<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.guard.0.id()))?;
        let mib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
            Some(kib / 1024.0)
        };
        match (mib("VmRSS:"), mib("VmHWM:")) {
            (Some(now), Some(peak)) => Ok(Memory { now, peak }),
            _ => Err("/proc shows no memory of the child: has it ended?".into()),
        }
    }

    /// What replicon says of itself.
    pub fn health(&self) -> Outcome<Health> {
        let mut client = Client::connect(self.addr)?;
        let answer = client.get("/healthz")?;
        let report: serde_json::Value = serde_json::from_slice(answer.body)?;
        let number = |key: &str| report["ingest"][key].as_u64();
        match (number("accepted_total"), number("queue_depth")) {
            (Some(accepted), Some(waiting)) => Ok(Health { accepted, waiting }),
            _ => Err(format!("/healthz lacks its counts: {report}").into()),
        }
    }

    /// Ends it and removes what it wrote.
    pub fn stop(self) -> Outcome<()> {
        drop(self.guard);
        clear(self.dir)
    }
}

/// `… http=127.0.0.1:40123 …`
fn address(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace();
    words.find_map(|word| word.strip_prefix("http=")?.parse().ok())
}

/// A benchmark that is killed leaves no servers behind.
#[allow(unsafe_code)]
fn end_with_parent(command: &mut Command) {
    const SIGNAL: libc::c_ulong = 9;
    // SAFETY: between fork and exec only prctl is called, which is a bare system call here: it takes
    // no pointers, allocates nothing and holds no locks.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, SIGNAL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}
