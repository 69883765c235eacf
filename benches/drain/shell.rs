//! A database's own command-line client, driven over pipes, so that its start is in no measurement.
//!
//! Knows no SQL.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use replicon::clock::Clock;

use crate::child::{Guard, end_with_parent};
use crate::settings::Outcome;

/// Printed behind everything that is run.
const MARK: &str = "bench-done";

/// A client that waits for the next that it is to run. Killed when dropped.
pub struct Shell {
    _guard: Guard,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    print: &'static str,
    log: PathBuf,
}

impl Shell {
    /// Starts one. `print` is its command that prints the word behind it; `log` takes what it says of
    /// errors, at the first of which it must end.
    pub fn start(mut command: Command, print: &'static str, log: PathBuf) -> Outcome<Self> {
        command
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        end_with_parent(&mut command, libc::SIGKILL);
        let spawned = command.spawn();
        let program = Path::new(command.get_program()).display();
        let child = spawned.map_err(|e| format!("{program} cannot be run: {e}"))?;
        let mut guard = Guard(child);
        let stdin = guard.0.stdin.take().ok_or("the child has no stdin")?;
        let stdout = guard.0.stdout.take().ok_or("the child has no stdout")?;
        Ok(Self { _guard: guard, stdin, stdout: BufReader::new(stdout), print, log })
    }

    /// Has it run whole statements and commands, and waits; the lines that it printed.
    pub fn run(&mut self, text: &str) -> Outcome<Vec<String>> {
        // one that has ended takes nothing; what it had to say is read below
        let sent = writeln!(self.stdin, "{text}\n{} {MARK}", self.print);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if sent.is_err() || self.stdout.read_line(&mut line)? == 0 {
                let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                return Err(format!("{text}\nended the database's shell: {said}").into());
            }
            match line.trim_end() {
                MARK => return Ok(lines),
                line => lines.push(line.to_owned()),
            }
        }
    }

    /// The same, when nothing but its time matters: in seconds.
    pub fn time(&mut self, text: &str) -> Outcome<f64> {
        let clock = Clock::system();
        self.run(text)?;
        Ok(clock.mono().as_secs_f64())
    }
}

/// The programs of that name in the directories of `PATH`, in their order.
pub fn in_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).filter(|file| file.is_file()).collect()
}
