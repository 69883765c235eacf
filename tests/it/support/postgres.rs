//! A PostgreSQL server of the test's own: in a temporary directory, on a unix socket, a direct child
//! that the kernel ends with the test process, however that ends. Never the system's own instance.
//!
//! Knows nothing of what is tested.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::server::{
    IN_TIME, Owner, children_of, free_port, is_gone, places, run, signal, stands_still, start,
    wait_for_all,
};
use super::wait_until;

/// The role that nodes log in as; it owns every database that is made here.
pub const ROLE: &str = "replicon";
/// Its password, as the documentation has it. Asked for over TCP only.
pub const PASSWORD: &str = "replicon-secret";
const ADMIN: &str = "postgres";

/// What every server runs with. Its time zone and its way to write dates are such as nobody may rely
/// on.
const SETTINGS: [&str; 5] = [
    "fsync=on",
    "shared_buffers=16MB",
    "max_connections=60",
    "timezone=<+0530>-05:30",
    "datestyle=SQL,DMY",
];

/// Where the server's programs are, and who runs them.
struct Installed {
    bin: PathBuf,
    owner: Owner,
}

impl Installed {
    fn get() -> &'static Self {
        static FOUND: OnceLock<Installed> = OnceLock::new();
        FOUND.get_or_init(|| Self {
            bin: find_programs(),
            owner: Owner::of(&["postgres", "nobody"]),
        })
    }
}

fn find_programs() -> PathBuf {
    // Debian keeps the versions beside each other, outside of PATH
    let entries = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |name: &OsStr| name.to_str()?.parse::<u32>().ok();
    let mut versions: Vec<(u32, PathBuf)> =
        entries.filter_map(|e| Some((version(&e.file_name())?, e.path().join("bin")))).collect();
    versions.sort_unstable();
    let packaged = versions.into_iter().rev().map(|(_, bin)| bin);
    let places = places(packaged.chain(["/usr/local/bin".into()]));
    let holds_all = |dir: &PathBuf| ["postgres", "initdb"].iter().all(|p| dir.join(p).is_file());
    places.into_iter().find(holds_all).unwrap_or_else(|| {
        panic!(
            "no PostgreSQL server in PATH, nor under /usr/lib/postgresql: tests/run installs one, \
             or: apt-get install postgresql postgresql-client"
        )
    })
}

/// A fresh cluster as an archive, made once: `initdb` takes longer than all that follows it.
fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let Installed { bin, owner } = Installed::get();
        let dir = owner.directory();
        let mut initdb = owner.command(bin.join("initdb"), dir.path());
        initdb.args(["-D", "data", "-U", ADMIN, "-E", "UTF8", "--no-locale", "--no-sync"]);
        initdb.args(["--wal-segsize=1", "--auth-local=trust", "--auth-host=scram-sha-256"]);
        let mut single = owner.command(bin.join("postgres"), dir.path());
        single.args(["--single", "-D", "data", "-c", "password_encryption=scram-sha-256", ADMIN]);
        let role = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'\n");
        let mut pack = owner.command("tar", dir.path());
        pack.args(["-cf", "-", "data"]);
        let made = run(initdb, b"").and_then(|_| run(single, role.as_bytes()));
        made.and_then(|_| run(pack, b"")).unwrap_or_else(|e| panic!("{e}"))
    })
}

fn psql(dsn: &str) -> Command {
    let mut command = Command::new("psql");
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", dsn]).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("PGTZ", "UTC").env("PGDATESTYLE", "ISO").env("PGCONNECT_TIMEOUT", "10");
    command
}

/// Runs SQL by `psql`; what it prints, columns separated by `|`.
pub fn query(dsn: &str, sql: &str) -> Result<String, String> {
    let printed = run(psql(dsn), sql.as_bytes())?;
    Ok(String::from_utf8(printed).unwrap().trim_end_matches('\n').to_owned())
}

/// A server. It and its data go when it is dropped.
pub struct Postgres {
    postmaster: Option<Child>,
    tcp: Option<u16>,
    dir: TempDir,
}

impl Postgres {
    /// On a unix socket only.
    pub fn start() -> Self {
        Self::begin(None)
    }

    /// On a free port of 127.0.0.1 too, where it asks for the password.
    pub fn start_on_tcp() -> Self {
        Self::begin(Some(free_port()))
    }

    fn begin(tcp: Option<u16>) -> Self {
        let owner = Installed::get().owner;
        let dir = owner.directory();
        let mut unpack = owner.command("tar", dir.path());
        unpack.args(["-xf", "-"]);
        run(unpack, template()).unwrap_or_else(|e| panic!("{e}"));
        let mut server = Self { postmaster: None, tcp, dir };
        server.restart();
        server
    }

    /// Starts it again on its data, after [`Postgres::kill`] or [`Postgres::stop_orderly`].
    pub fn restart(&mut self) {
        assert!(!self.runs(), "it runs");
        let (Installed { bin, owner }, dir) = (Installed::get(), self.dir.path());
        let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command = owner.guarded(dir);
        command.arg(bin.join("postgres")).arg("-D").arg(dir.join("data")).arg("-k").arg(dir);
        let address = if self.tcp.is_some() { "127.0.0.1" } else { "" };
        command.args(["-p", &self.port().to_string()]);
        command.args(["-c", &format!("listen_addresses={address}")]);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.postmaster = Some(start(command));
        self.wait_ready();
    }

    fn wait_ready(&mut self) {
        let pid = self.pid().to_string();
        wait_until(IN_TIME, "a PostgreSQL server that is ready", || {
            let ended = self.postmaster.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "PostgreSQL ended at its start: {}", self.log());
            // one that was killed left a file of this name
            let file = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid"));
            let file = file.unwrap_or_default();
            let ours = file.lines().next() == Some(pid.as_str());
            let ready = file.lines().last().is_some_and(|line| line.trim() == "ready");
            if ours && ready { Ok(()) } else { Err(self.log()) }
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("it does not run").id()
    }

    /// Whether it was started and not ended since.
    pub fn runs(&self) -> bool {
        self.postmaster.is_some()
    }

    /// Its port, or the number in its socket's name.
    pub fn port(&self) -> u16 {
        self.tcp.unwrap_or(5432)
    }

    /// The directory of its socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// How a node reaches a database: over TCP with the password where it listens there, else by the
    /// socket.
    pub fn dsn(&self, database: &str) -> String {
        match self.tcp {
            Some(port) => {
                format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{port}/{database}?sslmode=disable")
            }
            None => self.by_socket(ROLE, database),
        }
    }

    fn by_socket(&self, role: &str, database: &str) -> String {
        let host = self.dir.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://{role}@{host}:{}/{database}", self.port())
    }

    /// Makes a database; its [`Postgres::dsn`].
    pub fn database(&self, name: &str) -> String {
        self.admin(&format!("CREATE DATABASE {name} OWNER {ROLE}"));
        self.dsn(name)
    }

    /// Runs SQL in a database as its owner; what it prints, columns separated by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        query(&self.by_socket(ROLE, database), sql).unwrap_or_else(|e| panic!("{sql}\n{e}"))
    }

    /// Runs SQL as the superuser, in a database that no node uses.
    pub fn admin(&self, sql: &str) -> String {
        query(&self.by_socket(ADMIN, ADMIN), sql).unwrap_or_else(|e| panic!("{sql}\n{e}"))
    }

    /// Runs SQL as a database's owner in a session that goes on by itself.
    pub fn psql_in_background(&self, database: &str, sql: &str) -> Child {
        let mut command = psql(&self.by_socket(ROLE, database));
        command.args(["-c", sql]).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().unwrap_or_else(|e| panic!("psql: {e}"))
    }

    /// Ends every session of the nodes' role; how many there were.
    pub fn end_sessions(&self) -> usize {
        let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename =";
        self.admin(&format!("{all} '{ROLE}'")).parse().unwrap()
    }

    /// Kills every process of it at once; who they were.
    fn end(&mut self) -> Vec<u32> {
        let Some(mut postmaster) = self.postmaster.take() else { return Vec::new() };
        let pid = postmaster.id();
        // as long as it stands still it begins no backend
        signal("STOP", &[pid]);
        for _ in 0..1_000 {
            if stands_still(pid) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let backends = children_of(pid);
        signal("KILL", &backends);
        let _ = postmaster.kill();
        let _ = postmaster.wait();
        backends
    }

    /// SIGKILL to the postmaster and all backends, and waits for their end.
    pub fn kill(&mut self) {
        let backends = self.end();
        wait_for_all("killed backends to go", &backends, is_gone);
    }

    /// A fast shutdown, and waits for its end.
    pub fn stop_orderly(&mut self) {
        signal("INT", &[self.pid()]);
        wait_until(IN_TIME, "an orderly stop", || {
            let ended = self.postmaster.as_mut().and_then(|child| child.try_wait().unwrap());
            ended.map(drop).ok_or_else(|| self.log())
        });
        self.postmaster = None;
    }

    /// SIGSTOP to the postmaster and all backends: connections stay, and nobody answers.
    pub fn pause(&self) {
        let pid = self.pid();
        signal("STOP", &[pid]);
        wait_for_all("a postmaster that stands still", &[pid], stands_still);
        let backends = children_of(pid);
        signal("STOP", &backends);
        wait_for_all("backends that stand still", &backends, stands_still);
    }

    /// Ends a [`Postgres::pause`].
    pub fn resume(&self) {
        let pid = self.pid();
        signal("CONT", &children_of(pid));
        signal("CONT", &[pid]);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end();
    }
}
