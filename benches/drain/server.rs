//! A PostgreSQL server of the benchmark's own, on a unix socket, in directories that go with it.
//!
//! Knows neither replicon nor what is stored.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use replicon::clock::Clock;
use tempfile::TempDir;

use crate::child::{end_with_parent, send};
use crate::owner::Owner;
use crate::settings::Outcome;
use crate::shell::{Shell, in_path};

/// What must be found in one directory.
const PROGRAMS: [&str; 3] = ["initdb", "postgres", "psql"];
/// Where Debian's packages have theirs.
const PACKAGED: &str = "/usr/lib/postgresql";
const MISSING: &str = "PostgreSQL's initdb, postgres and psql are neither in PATH nor under \
    /usr/lib/postgresql: apt-get install postgresql";
/// The role that may do everything.
const ROLE: &str = "replicon";
/// Everything else is PostgreSQL's default.
const SETTINGS: [&str; 4] =
    ["listen_addresses=", "fsync=on", "shared_buffers=128MB", "max_wal_size=4GB"];
/// How long a start may take.
const START: Duration = Duration::from_secs(60);

/// A server that takes connections.
pub struct Server {
    child: Child,
    socket: TempDir,
    programs: PathBuf,
    logs: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // at once, with all its processes: nothing of it is kept
        if send(&mut self.child, libc::SIGQUIT).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Server {
    /// Makes one in that directory, which must outlive it, and waits until it answers.
    pub fn start(dir: &Path) -> Outcome<Self> {
        Self::start_with(dir, &[])
    }

    /// As [`Server::start`], with more settings.
    pub fn start_with(dir: &Path, more: &[&str]) -> Outcome<Self> {
        let programs = programs()?;
        let owner = Owner::of(dir, &["postgres", "nobody"])?;
        let socket = tempfile::Builder::new().prefix("replicon-bench-").tempdir()?;
        let home = dir.join("postgres");
        std::fs::create_dir(&home)?;
        owner.give(dir, &[&home, socket.path()])?;
        std::fs::set_permissions(&home, Permissions::from_mode(0o700))?;
        let data = home.join("data");
        make_cluster(owner.command(&programs.join("initdb"), &home), &data)?;
        let log = dir.join("postgres.log");
        let mut command = owner.command(&programs.join("postgres"), &home);
        command.arg("-D").arg(&data).arg("-k").arg(socket.path());
        for setting in SETTINGS.iter().chain(more) {
            command.args(["-c", setting]);
        }
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        end_with_parent(&mut command, libc::SIGQUIT);
        let child = command.spawn()?;
        let mut server = Self { child, socket, programs, logs: dir.to_owned() };
        server.wait_until_ready(&log)?;
        Ok(server)
    }

    fn wait_until_ready(&mut self, log: &Path) -> Outcome<()> {
        let clock = Clock::system();
        loop {
            let asked = self.psql("postgres").and_then(|mut psql| psql.run("SELECT 1;"));
            let Err(e) = asked else { return Ok(()) };
            let ended = self.child.try_wait()?;
            if ended.is_some() || clock.mono() > START {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("PostgreSQL does not start: {e}\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// psql, on that database.
    pub fn psql(&self, database: &str) -> Outcome<Shell> {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", ROLE, "-d", database]);
        command.arg("-h").arg(self.socket.path());
        Shell::start(command, "\\echo", self.logs.join(format!("psql-{database}.log")))
    }

    /// How a node reaches that database.
    pub fn dsn(&self, database: &str) -> String {
        let socket = self.socket.path().display();
        format!("postgres://{ROLE}:x@/{database}?host={socket}")
    }
}

fn make_cluster(mut initdb: Command, data: &Path) -> Outcome<()> {
    initdb.args(["--username", ROLE, "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"]);
    let output = initdb.arg(data).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("initdb failed ({}): {said}", output.status).into())
}

/// The first directory that has all of them: of those in `PATH`, where links may lead elsewhere, then
/// of the newest package.
fn programs() -> Outcome<PathBuf> {
    let behind = |link: PathBuf| Some(link.canonicalize().ok()?.parent()?.to_owned());
    let linked = in_path(PROGRAMS[0]).into_iter().filter_map(behind);
    let mut packaged: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(PACKAGED).into_iter().flatten().flatten() {
        let version: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        packaged.extend(version.map(|version| (version, entry.path().join("bin"))));
    }
    packaged.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let mut all = linked.chain(packaged.into_iter().map(|(_, dir)| dir));
    let whole = |dir: &PathBuf| PROGRAMS.iter().all(|name| dir.join(name).is_file());
    all.find(whole).ok_or_else(|| MISSING.into())
}
