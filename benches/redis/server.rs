//! A Redis of the benchmark's own, on a unix socket, in a directory that goes with it; and
//! `redis-benchmark` against it.
//!
//! Does not know replicon.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use replicon::clock::Clock;

use crate::child::{Guard, end_with_parent};
use crate::event::event;
use crate::settings::Outcome;

const MISSING: &str =
    "redis-server and redis-benchmark are not installed: apt-get install redis-server";
/// What the documentation asks for in production.
const SETTINGS: [&str; 10] = [
    "--port",
    "0",
    "--appendonly",
    "yes",
    "--appendfsync",
    "everysec",
    "--save",
    "",
    "--daemonize",
    "no",
];
/// Commands that redis-benchmark has under way on each of its connections, and how many of those.
const PIPELINE: &str = "64";
const CONNECTIONS: &str = "8";
/// How long a start may take.
const START: Duration = Duration::from_secs(30);

/// A server that answers; gone when its handle is.
pub struct Server {
    _guard: Guard,
    socket: PathBuf,
}

impl Server {
    /// Starts one in that directory, which must outlive it, and waits until it answers.
    pub fn start(dir: &Path) -> Outcome<Self> {
        let home = dir.join("redis");
        std::fs::create_dir(&home)?;
        // an address holds 107 bytes: not under the directory of the checkout
        let socket =
            std::env::temp_dir().join(format!("replicon-bench-{}.sock", std::process::id()));
        let mut command = Command::new("redis-server");
        command.args(SETTINGS).arg("--unixsocket").arg(&socket).arg("--dir").arg(&home);
        command.stdin(Stdio::null()).stdout(File::create(home.join("log"))?);
        end_with_parent(&mut command, libc::SIGKILL);
        let guard = Guard(command.spawn().map_err(missing)?);
        let server = Self { _guard: guard, socket };
        let clock = Clock::system();
        while !server.cli(&["PING"]).is_ok_and(|answer| answer == "PONG") {
            if clock.mono() > START {
                return Err(format!("Redis does not answer within {START:?}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `redis-cli` prints.
    pub fn cli(&self, words: &[&str]) -> Outcome<String> {
        let output = Command::new("redis-cli").arg("-s").arg(&self.socket).args(words).output();
        let output = output.map_err(missing)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Entries a second that `redis-benchmark` adds, each with one of the shared events in one field,
    /// pipelined.
    pub fn benchmark(&self, seconds: u64) -> Outcome<f64> {
        let entries = (seconds * 200_000).to_string();
        let payload = event(0);
        let output = Command::new("redis-benchmark")
            .arg("-s")
            .arg(&self.socket)
            .args(["-q", "-c", CONNECTIONS, "-P", PIPELINE, "-n", &entries])
            .args(["XADD", "bench", "*", "p", &payload])
            .output()
            .map_err(missing)?;
        self.cli(&["DEL", "bench"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text
            .rsplit_once(" requests per second")
            .and_then(|(before, _)| before.rsplit([' ', ':']).next()?.trim().parse::<f64>().ok());
        rate.ok_or_else(|| format!("redis-benchmark printed no rate: {text}").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn missing(e: io::Error) -> Box<dyn std::error::Error> {
    if e.kind() == io::ErrorKind::NotFound { MISSING.into() } else { e.to_string().into() }
}
