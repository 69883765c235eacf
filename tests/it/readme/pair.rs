//! The two nodes of the README's quickstart: each is started by its own block, on a port that is free
//! here, and runs until the end.
//!
//! Knows nothing of what is shown.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::server::free_port;
use crate::support::{Client, Response, wait_until};

/// Their addresses in the README.
const ADDRESSES: [&str; 2] = ["127.0.0.1:8081", "127.0.0.1:8082"];
/// What only a block that starts one of them says.
const STARTS: &str = "--set http_listen=";
/// Where they log, for whoever looks why a block failed.
const LOG: &str = "pair";
/// How long a first start may take until it takes events.
const READY: Duration = Duration::from_secs(30);

/// Both of them.
pub struct Pair {
    /// As the README has it, and as it is here.
    addresses: [(&'static str, String); 2],
    running: Vec<Running>,
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(addr: &str, path: &str) -> Result<Response, String> {
    let answer = Client::connect(addr).and_then(|mut client| client.get(path));
    answer.map_err(|e| e.to_string())
}

impl Pair {
    /// Nobody runs yet, but both places are known: each names the other at its start.
    pub fn new() -> Self {
        let here = |shown| (shown, format!("127.0.0.1:{}", free_port()));
        Self { addresses: ADDRESSES.map(here), running: Vec::new() }
    }

    /// Whether a block starts one of them.
    pub fn is_started_by(block: &str) -> bool {
        block.contains(STARTS)
    }

    /// A text with the addresses of this run.
    pub fn here(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (shown, here) in &self.addresses {
            text = text.replace(shown, here);
        }
        text
    }

    /// Starts one: `script` becomes the node at its end. Its ready line, when it takes events.
    pub fn start(&mut self, script: &str, dir: &Path) -> String {
        let log = File::options().create(true).append(true).open(dir.join(LOG)).unwrap();
        let mut command = Command::new("bash");
        command.args(["-eu", "-c", script]).current_dir(dir).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut running = Running(command.spawn().unwrap_or_else(|e| panic!("bash: {e}")));
        let mut ready = String::new();
        BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let addr = ready.split(" http=").nth(1).and_then(|rest| rest.split(' ').next());
        let Some(addr) = addr else { panic!("{script}\n{ready}{}", Self::log(dir)) };
        wait_until(READY, "a node that takes events", || match get(addr, "/readyz")? {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.body),
        });
        self.running.push(running);
        ready
    }

    /// Whether both run.
    pub fn runs(&self) -> bool {
        self.running.len() == self.addresses.len()
    }

    /// `/healthz` of the second one.
    pub fn health(&self) -> Result<Value, String> {
        let (_, addr) = &self.addresses[1];
        Ok(get(addr, "/healthz")?.json())
    }

    /// What both have logged.
    pub fn log(dir: &Path) -> String {
        std::fs::read_to_string(dir.join(LOG)).unwrap_or_default()
    }
}
