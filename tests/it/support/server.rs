//! What the database servers of the tests share: whom they run as, how they are started so that the
//! kernel ends them with the test process, signals, ports.
//!
//! Knows no database, and nothing of what is tested.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use tempfile::TempDir;

use super::wait_until;

/// How long a server may take to start, to stop, or to stand still.
pub const IN_TIME: Duration = Duration::from_secs(60);

/// Whom servers run as: they refuse to be root.
#[derive(Clone, Copy)]
pub struct Owner(Option<(u32, u32)>);

impl Owner {
    /// Where we are root: the first of these users that there is. Else ourselves.
    pub fn of(names: &[&str]) -> Self {
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Self(None);
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let ids = |name: &&str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(*name))?;
            let mut ids = line.split(':').skip(2).map(|id| id.parse::<u32>().ok());
            Some((ids.next()??, ids.next()??))
        };
        let found = names.iter().find_map(ids);
        assert!(found.is_some(), "database servers refuse to run as root; no user of {names:?}");
        Self(found)
    }

    /// A temporary directory that this user may use.
    pub fn directory(self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        if let Self(Some((uid, gid))) = self {
            chown(dir.path(), Some(uid), Some(gid)).unwrap();
        }
        dir
    }

    /// A program as this user, in a directory of this user.
    pub fn command(self, program: impl AsRef<OsStr>, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(dir).env_clear().env("LC_ALL", "C").stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // a server clears away at its start what others left in a place that it shares with them
        command.env("TMPDIR", dir);
        if let Self(Some((uid, gid))) = self {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// As [`Owner::command`], for [`start`]: the arguments are the program and its own.
    pub fn guarded(self, dir: &Path) -> Command {
        let mut command = self.command("setpriv", dir);
        command.args(["--pdeathsig", "KILL", "--"]);
        command
    }
}

/// The directories of `PATH`, then others.
pub fn places(more: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(more).collect()
}

/// Runs a program to its end; what it printed, or what it said.
pub fn run(mut command: Command, input: &[u8]) -> Result<Vec<u8>, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|e| format!("{name}: {e}; tests/run installs what the suite needs"))?;
    // whoever ends before all of it is read says why
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Starts what [`Owner::guarded`] made: the kernel ends it with us, however we end.
pub fn start(command: Command) -> Child {
    spawn(command).unwrap_or_else(|e| panic!("setpriv: {e}: apt-get install util-linux"))
}

/// Starts a child from a thread that never ends: the kernel ends a server with the thread that
/// started it, and a test may have several.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, SyncSender<io::Result<Child>>);
    static STARTER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (starter, orders) = sync_channel::<Order>(1);
        std::thread::spawn(move || {
            for (mut command, done) in orders {
                let _ = done.send(command.spawn());
            }
        });
        starter
    });
    let (done, child) = sync_channel(1);
    starter.send((command, done)).unwrap();
    child.recv().unwrap()
}

/// A port below those that the kernel gives to clients, so that it is still free at a restart.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 9_000).unwrap();
    loop {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The state of a process, and its parent.
fn process(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether it was stopped, or has ended.
pub fn stands_still(pid: u32) -> bool {
    matches!(process(pid), None | Some(('T' | 'Z', _)))
}

/// Whether nothing of it runs any more; nobody may have asked how it ended.
pub fn is_gone(pid: u32) -> bool {
    matches!(process(pid), None | Some(('Z' | 'X', _)))
}

/// The processes that a process has started.
pub fn children_of(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| process(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// Sends a signal; who is gone already needs none.
pub fn signal(name: &str, pids: &[u32]) {
    if !pids.is_empty() {
        let mut kill = Command::new("kill");
        kill.args(["-s", name]).args(pids.iter().map(u32::to_string));
        let _ = kill.stderr(Stdio::null()).status();
    }
}

/// Waits until all of them are so.
pub fn wait_for_all(what: &str, pids: &[u32], are: fn(u32) -> bool) {
    wait_until(IN_TIME, what, || {
        let not: Vec<&u32> = pids.iter().filter(|pid| !are(**pid)).collect();
        if not.is_empty() { Ok(()) } else { Err(format!("not yet {not:?}")) }
    });
}
