//! The load generator: wrk, with a script of our own; a run with any failure is no measurement.
//!
//! Does not know what it drives.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::Command;

use tempfile::NamedTempFile;

use crate::child::{KEY, ROUTE};
use crate::event;
use crate::settings::Outcome;

const MISSING: &str = "wrk, the load generator, is not installed: apt-get install wrk";

/// Prints one line that is read below. wrk counts every status above 399 as an error.
const DONE: &str = r#"
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    "BENCH requests=%d micros=%d connect=%d read=%d write=%d status=%d timeout=%d p50=%d p99=%d\n",
    summary.requests, summary.duration, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"#;

/// One kind of request.
pub struct Load {
    script: NamedTempFile,
    /// Events a request.
    pub events: usize,
}

/// What one run reached.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Requests answered.
    pub requests: u64,
    /// Events a second.
    pub rate: f64,
    /// Median latency of a request, in milliseconds.
    pub p50: f64,
    /// 99 of 100 requests were faster, in milliseconds.
    pub p99: f64,
}

impl Load {
    /// Requests of that many events.
    pub fn new(events: usize) -> Outcome<Self> {
        let mut script = NamedTempFile::with_suffix(".lua")?;
        write!(
            script,
            "wrk.method = \"POST\"\n\
             wrk.headers[\"Authorization\"] = \"Bearer {KEY}\"\n\
             wrk.headers[\"Content-Type\"] = \"application/json\"\n\
             wrk.body = [==[{}]==]\n{DONE}",
            event::body(events)
        )?;
        script.flush()?;
        Ok(Self { script, events })
    }

    /// Drives a server with that many connections.
    pub fn drive(&self, addr: SocketAddr, connections: usize, seconds: u64) -> Outcome<Run> {
        let threads = connections.min(2);
        let output = Command::new("wrk")
            .arg(format!("-t{threads}"))
            .arg(format!("-c{connections}"))
            .arg(format!("-d{seconds}s"))
            .args(["--timeout", "10s", "-s"])
            .arg(self.script.path())
            .arg(format!("http://{addr}{ROUTE}"))
            .output()
            .map_err(missing)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("BENCH "));
        let Some(line) = line else {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("wrk failed ({}): {text}{errors}", output.status).into());
        };
        self.read(line)
    }

    fn read(&self, line: &str) -> Outcome<Run> {
        let words = line.split_whitespace();
        let figures: HashMap<&str, u64> = words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
            .collect();
        let figure = |key: &str| {
            let figure = figures.get(key).copied();
            figure.ok_or_else(|| format!("wrk printed no {key}: {line}"))
        };
        for key in ["connect", "read", "write", "status", "timeout"] {
            if figure(key)? > 0 {
                return Err(format!("requests failed, so this is no measurement: {line}").into());
            }
        }
        let (requests, micros) = (figure("requests")?, figure("micros")?);
        if requests == 0 || micros == 0 {
            return Err(format!("nothing was answered: {line}").into());
        }
        let events = requests as f64 * self.events as f64;
        Ok(Run {
            requests,
            rate: events * 1e6 / micros as f64,
            p50: figure("p50")? as f64 / 1e3,
            p99: figure("p99")? as f64 / 1e3,
        })
    }
}

/// Whether wrk can be run at all; asked before anything is started.
pub fn present() -> Outcome<()> {
    // it prints its version and exits with 1
    Command::new("wrk").arg("-v").output().map_err(missing)?;
    Ok(())
}

fn missing(e: io::Error) -> Box<dyn std::error::Error> {
    if e.kind() == io::ErrorKind::NotFound {
        MISSING.into()
    } else {
        format!("wrk cannot be run: {e}").into()
    }
}
