//! The servers that are compared: each in a fresh directory of its own, gone when its handle is.
//!
//! Does not know how they are driven.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::child::{self, Running};
use crate::floor;
use crate::settings::{Outcome, clear, scratch};

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
        match self {
            Self::Bare => this_program(floor::BARE),
            Self::Commit => {
                let mut command = this_program(floor::COMMIT)?;
                command.arg(dir.join("log"));
                Ok(command)
            }
            Self::Noop => child::node(dir, &["storage_backend=noop"]),
            Self::File => child::node(dir, &["storage_backend=file"]),
        }
    }
}

/// This program again.
fn this_program(which: &str) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(which);
    Ok(command)
}

/// One that takes requests. The fields are dropped in this order: the process goes before its
/// directory.
pub struct Server {
    /// The process.
    pub running: Running,
    dir: TempDir,
}

impl Server {
    /// Starts one and waits until it takes requests.
    pub fn start(subject: Subject) -> Outcome<Self> {
        let dir = scratch()?;
        let command = subject.command(dir.path())?;
        let running = Running::start(subject.name(), command, dir.path())?;
        if subject.is_replicon() {
            running.wait_until_ready()?;
        }
        Ok(Self { running, dir })
    }

    /// Ends it and removes what it wrote.
    pub fn stop(self) -> Outcome<()> {
        self.running.end(libc::SIGKILL)?;
        clear(self.dir)
    }
}
