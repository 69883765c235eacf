//! A MariaDB or a MySQL server of the test's own: in a temporary directory, on a unix socket, a direct
//! child that the kernel ends with the test process, however that ends. Never the system's own
//! instance.
//!
//! MySQL is taken out of a folder that holds a part of Debian's unstable release, since the stable one
//! has MariaDB only. Its own loader and libraries run it there: no chroot, and no root, is needed.
//! Knows nothing of what is tested.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::server::{
    IN_TIME, Owner, free_port, places, run, signal, stands_still, start, wait_for_all,
};
use super::wait_until;

/// The user that nodes log in as; it may do everything in the databases that are made here, and
/// nothing else.
pub const USER: &str = "replicon";
/// Its password, as the documentation has it. Always asked for.
pub const PASSWORD: &str = "replicon-secret";
const ADMIN: &str = "root";

/// Where `tests/run` puts what it takes of Debian's unstable release, once.
const TREE: &str = "/var/tmp/replicon-mysql";

/// What every server runs with. Its time zone, its character set and its mode, which is not strict,
/// are such as nobody may rely on.
const SETTINGS: [&str; 9] = [
    "--innodb-flush-log-at-trx-commit=1",
    "--sync-binlog=1",
    "--innodb-buffer-pool-size=32M",
    "--max-connections=60",
    "--performance-schema=OFF",
    "--sort-buffer-size=16M",
    "--default-time-zone=+05:30",
    "--character-set-server=latin1",
    "--sql-mode=",
];

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's MariaDB, 10.11 or later.
    MariaDb,
    /// A real MySQL, 9 or later.
    MySql,
}

/// A server's program with the arguments that it always has, who runs it, and a fresh data directory
/// as an archive: making one takes longer than all that follows it.
struct Installed {
    program: Vec<String>,
    owner: Owner,
    template: Vec<u8>,
}

impl Installed {
    fn of(kind: Kind) -> &'static Self {
        static MARIADB: OnceLock<Installed> = OnceLock::new();
        static MYSQL: OnceLock<Installed> = OnceLock::new();
        match kind {
            Kind::MariaDb => MARIADB.get_or_init(|| Self::prepare(kind)),
            Kind::MySql => MYSQL.get_or_init(|| Self::prepare(kind)),
        }
    }

    fn prepare(kind: Kind) -> Self {
        let owner = Owner::of(&["mysql", "nobody"]);
        let dir = owner.directory();
        let fresh = in_directory("datadir", dir.path(), "fresh");
        let (program, init) = match kind {
            Kind::MariaDb => {
                let mut init = owner.command("mariadb-install-db", dir.path());
                init.args(["--no-defaults", "--auth-root-authentication-method=normal", "--force"]);
                init.args(["--skip-test-db", "--skip-name-resolve", &fresh]);
                (find_mariadb(), init)
            }
            Kind::MySql => {
                let program = find_mysql();
                let mut init = owner.command(&program[0], dir.path());
                init.args(&program[1..]).args(["--initialize-insecure", &fresh]);
                (program, init)
            }
        };
        // most of it is zeros: as holes they take no room here, nor in any copy
        let mut thin = owner.command("cp", dir.path());
        thin.args(["-a", "--sparse=always", "fresh", "data"]);
        let mut pack = owner.command("tar", dir.path());
        pack.args(["-cSf", "-", "data"]);
        let made = run(init, b"").and_then(|_| run(thin, b""));
        let template = made.and_then(|_| run(pack, b""));
        Self { program, owner, template: template.unwrap_or_else(|e| panic!("{e}")) }
    }
}

/// An option that names a place in a directory.
fn in_directory(option: &str, dir: &Path, name: &str) -> String {
    format!("--{option}={}", dir.join(name).display())
}

fn find_mariadb() -> Vec<String> {
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found = places(more).into_iter().map(|dir| dir.join("mariadbd")).find(|p| p.is_file());
    let found = found.unwrap_or_else(|| {
        panic!(
            "no MariaDB server in PATH, nor in /usr/sbin: tests/run installs one, or: \
             apt-get install mariadb-server-core mariadb-client-core"
        )
    });
    vec![found.to_string_lossy().into_owned(), "--no-defaults".to_owned()]
}

fn find_mysql() -> Vec<String> {
    let libraries = format!("{TREE}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let entries = std::fs::read_dir(&libraries).into_iter().flatten().flatten();
    let mut files = entries.map(|entry| entry.path().to_string_lossy().into_owned());
    let loader = files.find(|path| path.contains("/ld-linux"));
    let server = format!("{TREE}/usr/sbin/mysqld");
    let there = Path::new(&server).is_file();
    let loader = loader.filter(|_| there).unwrap_or_else(|| {
        panic!(
            "no MySQL in {TREE}: tests/run puts it there where it is run by root, or, as root: \
             apt-get install debootstrap && debootstrap --variant=minbase \
             --include=mysql-server-core,valkey-server sid {TREE}"
        )
    });
    let mut program = [loader.as_str(), "--library-path", &libraries, &server, "--no-defaults"]
        .map(str::to_owned)
        .to_vec();
    program.extend([
        format!("--lc-messages-dir={TREE}/usr/share/mysql"),
        format!("--character-sets-dir={TREE}/usr/share/mysql/charsets"),
        format!("--plugin-dir={TREE}/usr/lib/mysql/plugin"),
    ]);
    let more = ["--secure-file-priv=NULL", "--mysqlx=OFF", "--innodb-redo-log-capacity=32M"];
    program.extend(more.map(str::to_owned));
    program
}

/// Connects, and reads how it is greeted.
fn greeting(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.read_exact(&mut [0; 5])
}

/// A server. It and its data go when it is dropped.
pub struct Mysql {
    kind: Kind,
    child: Option<Child>,
    tcp: Option<u16>,
    dir: TempDir,
}

impl Mysql {
    /// On a unix socket only.
    pub fn start(kind: Kind) -> Self {
        Self::begin(kind, None)
    }

    /// On a free port of 127.0.0.1 too.
    pub fn start_on_tcp(kind: Kind) -> Self {
        Self::begin(kind, Some(free_port()))
    }

    fn begin(kind: Kind, tcp: Option<u16>) -> Self {
        let installed = Installed::of(kind);
        let dir = installed.owner.directory();
        let mut unpack = installed.owner.command("tar", dir.path());
        unpack.args(["-xf", "-"]);
        run(unpack, &installed.template).unwrap_or_else(|e| panic!("{e}"));
        let mut server = Self { kind, child: None, tcp, dir };
        server.restart();
        server
    }

    /// Starts it again on its data, after [`Mysql::kill`] or [`Mysql::stop_orderly`].
    pub fn restart(&mut self) {
        assert!(!self.runs(), "it runs");
        let (installed, dir) = (Installed::of(self.kind), self.dir.path());
        let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
        // one that was killed left them, and the number in there may be somebody else's since
        for left in ["socket", "socket.lock"] {
            let _ = std::fs::remove_file(dir.join(left));
        }
        let mut command = installed.owner.guarded(dir);
        command.args(&installed.program).args(SETTINGS);
        for (option, name) in [("datadir", "data"), ("socket", "socket"), ("pid-file", "pid")] {
            command.arg(in_directory(option, dir, name));
        }
        match self.tcp {
            Some(port) => command.args(["--bind-address=127.0.0.1", &format!("--port={port}")]),
            None => command.arg("--skip-networking"),
        };
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(start(command));
        self.wait_ready();
    }

    fn wait_ready(&mut self) {
        wait_until(IN_TIME, "a MySQL server that is ready", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "{:?} ended at its start: {}", self.kind, self.log());
            greeting(&self.socket()).map_err(|e| format!("{e}; {}", self.log()))
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it does not run").id()
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Which of the two it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it was started and not ended since.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// How a node reaches a database, as Go's driver writes it: over TCP where it listens there, else
    /// by the socket.
    pub fn dsn(&self, database: &str) -> String {
        match self.tcp {
            Some(port) => {
                format!("{USER}:{PASSWORD}@tcp(127.0.0.1:{port})/{database}?parseTime=true")
            }
            None => self.dsn_by_socket(database),
        }
    }

    /// As [`Mysql::dsn`], by the socket.
    pub fn dsn_by_socket(&self, database: &str) -> String {
        format!("{USER}:{PASSWORD}@unix({})/{database}", self.socket().display())
    }

    /// As [`Mysql::dsn`], as a URL; it must listen on TCP.
    pub fn url(&self, database: &str) -> String {
        let port = self.tcp.expect("a URL names a port: start_on_tcp");
        format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{port}/{database}")
    }

    /// Makes a database, and the user where it is not there; its [`Mysql::dsn`].
    pub fn database(&self, name: &str) -> String {
        self.admin(&format!(
            "CREATE DATABASE {name}; \
             CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'; \
             GRANT ALL ON {name}.* TO '{USER}'@'%';"
        ));
        self.dsn(name)
    }

    /// The client program in a session of UTC. What it prints is what stands there, without escapes.
    fn client(&self, user: &str, database: &str) -> Command {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--batch", "--raw", "--skip-column-names"]);
        command.args(["--default-character-set=utf8mb4", "--connect-timeout=10"]);
        command.args(["--skip-ssl-verify-server-cert", "--init-command=SET time_zone = '+00:00'"]);
        match self.tcp {
            Some(port) if user == USER => {
                command.args(["--protocol=tcp", "--host=127.0.0.1", &format!("--port={port}")])
            }
            _ => command.arg(in_directory("socket", self.dir.path(), "socket")),
        };
        if user == USER {
            command.arg(format!("--password={PASSWORD}"));
        }
        command.arg(format!("--user={user}")).arg(database).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    fn query(&self, user: &str, database: &str, sql: &str) -> Result<String, String> {
        let printed = run(self.client(user, database), sql.as_bytes())?;
        Ok(String::from_utf8(printed).unwrap().trim_end_matches('\n').replace('\t', "|"))
    }

    /// Runs SQL in a database as the nodes' user; what it prints, columns separated by `|`.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.query(USER, database, sql).unwrap_or_else(|e| panic!("{sql}\n{e}"))
    }

    /// Runs SQL as the superuser, in a database that no node uses.
    pub fn admin(&self, sql: &str) -> String {
        self.query(ADMIN, "information_schema", sql).unwrap_or_else(|e| panic!("{sql}\n{e}"))
    }

    /// Runs SQL as the superuser in a session that goes on by itself.
    pub fn sql_in_background(&self, database: &str, sql: &str) -> Child {
        let mut command = self.client(ADMIN, database);
        command.args(["-e", sql]).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().unwrap_or_else(|e| panic!("mariadb: {e}"))
    }

    /// The ids of the sessions of the nodes' user.
    pub fn sessions(&self) -> Vec<String> {
        let ids = self.admin(&format!("SELECT id FROM processlist WHERE user = '{USER}'"));
        ids.lines().map(str::to_owned).collect()
    }

    /// Ends every session of the nodes' user; how many there were.
    pub fn end_sessions(&self) -> usize {
        // one that has gone by itself is an error
        let ended =
            |id: &String| self.query(ADMIN, "information_schema", &format!("KILL {id}")).is_ok();
        self.sessions().iter().filter(|id| ended(id)).count()
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// An orderly shutdown, and waits for its end.
    pub fn stop_orderly(&mut self) {
        signal("TERM", &[self.pid()]);
        wait_until(IN_TIME, "an orderly stop", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            ended.map(drop).ok_or_else(|| self.log())
        });
        self.child = None;
    }

    /// SIGSTOP: connections stay, and nobody answers.
    pub fn pause(&self) {
        let pids = [self.pid()];
        signal("STOP", &pids);
        wait_for_all("a server that stands still", &pids, stands_still);
    }

    /// Ends a [`Mysql::pause`].
    pub fn resume(&self) {
        signal("CONT", &[self.pid()]);
    }
}

impl Drop for Mysql {
    fn drop(&mut self) {
        self.kill();
    }
}
