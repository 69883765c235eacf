//! A server as a process of its own, in a directory that somebody else keeps; gone when its handle is.
//!
//! Does not know how it is driven, nor what for.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use replicon::clock::Clock;

use crate::client::Client;
use crate::settings::Outcome;

/// The route that is driven.
pub const ROUTE: &str = "/ingress/events_raw/add";
/// The key of the shipped channels file.
pub const KEY: &str = "key-abc123";

const CONF: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/replicon.conf"));
const CHANNELS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/channels.yml"));
/// Any free port, and ceilings that no run reaches: a benchmark offers more than any storage drains.
const SETTINGS: [&str; 3] =
    ["http_listen=127.0.0.1:0", "queue_buffer=100000000000", "queue_max_bytes=64TiB"];
/// How long a start may take.
const START: Duration = Duration::from_secs(15);

/// The release binary with the shipped configuration, but for these settings: `key=value`.
pub fn node(dir: &Path, settings: &[&str]) -> Outcome<Command> {
    std::fs::create_dir_all(dir.join("conf"))?;
    std::fs::write(dir.join("conf/replicon.conf"), CONF)?;
    std::fs::write(dir.join("conf/channels.yml"), CHANNELS)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicon"));
    for setting in SETTINGS.iter().chain(settings) {
        command.args(["--set", *setting]);
    }
    Ok(command)
}

/// Kills its process when dropped.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that listens.
pub struct Running {
    guard: Guard,
    /// Where it listens.
    pub addr: SocketAddr,
    _stdout: BufReader<ChildStdout>,
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
    /// Starts one, `name` for people, in a directory, and waits until it listens.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Outcome<Self> {
        let log = dir.join("stderr");
        command
            .current_dir(dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        end_with_parent(&mut command, libc::SIGKILL);
        let mut guard = Guard(command.spawn()?);
        let stdout = guard.0.stdout.take().ok_or("the child has no stdout")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Some(addr) = address(&line) else {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("{name} did not start; it printed {line:?} and\n{log}").into());
        };
        Ok(Self { guard, addr, _stdout: stdout })
    }

    /// Appends are refused for a moment after the first start, until storage has been looked at.
    pub fn wait_until_ready(&self) -> Outcome<()> {
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

    /// Sends it a signal and waits for its end.
    pub fn end(mut self, signal: libc::c_int) -> Outcome<ExitStatus> {
        send(&mut self.guard.0, signal)?;
        Ok(self.guard.0.wait()?)
    }
}

/// `… http=127.0.0.1:40123 …`
fn address(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace();
    words.find_map(|word| word.strip_prefix("http=")?.parse().ok())
}

/// Sends a child a signal; one that has ended already gets none.
#[allow(unsafe_code)]
pub fn send(child: &mut Child, signal: libc::c_int) -> io::Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: a bare system call; nobody has waited for the child, so the id is still its own.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A benchmark that is killed leaves no servers behind: they get that signal.
#[allow(unsafe_code)]
pub fn end_with_parent(command: &mut Command, signal: libc::c_int) {
    let signal = libc::c_ulong::from(signal.unsigned_abs());
    // SAFETY: between fork and exec only prctl is called, which is a bare system call here: it takes
    // no pointers, allocates nothing and holds no locks.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}
