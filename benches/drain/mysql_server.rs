//! A MariaDB server of the benchmark's own, on a unix socket, in directories that go with it.
//!
//! Knows neither replicon nor what is stored.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use replicon::clock::Clock;
use tempfile::TempDir;

use crate::child::end_with_parent;
use crate::owner::Owner;
use crate::settings::Outcome;
use crate::shell::{Shell, in_path};

const MISSING: &str = "MariaDB's mariadbd, mariadb-install-db and mariadb are not all in PATH: \
    apt-get install mariadb-server-core mariadb-client-core";
/// Where Debian's package has the server, which is not in everybody's `PATH`.
const PACKAGED: &str = "/usr/sbin/mariadbd";
/// For the script that makes the data.
const PATH: &str = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The user that nodes log in as.
const USER: &str = "replicon";
/// Everything else is MariaDB's default.
const SETTINGS: [&str; 5] = [
    "--no-defaults",
    "--skip-networking",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=1G",
    "--innodb-log-file-size=1G",
];
/// How long a start may take, and the writing of what is left to be written.
const IN_TIME: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(50);

/// A server that takes connections.
pub struct Server {
    child: Child,
    socket: TempDir,
    client: PathBuf,
    logs: PathBuf,
    /// A directory in which it may make files.
    pub home: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // nothing of it is kept
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Makes one in that directory, which must outlive it, and waits until it answers.
    pub fn start(dir: &Path) -> Outcome<Self> {
        let [server, install, client] = programs()?;
        let owner = Owner::of(dir, &["mysql", "nobody"])?;
        let socket = tempfile::Builder::new().prefix("replicon-bench-").tempdir()?;
        let home = dir.join("mariadb");
        std::fs::create_dir(&home)?;
        owner.give(dir, &[&home, socket.path()])?;
        make_data(owner.command(&install, &home), &home)?;
        let log = dir.join("mariadb.log");
        let mut command = owner.command(&server, &home);
        command.args(SETTINGS).arg(option("datadir", &home, "data"));
        command.arg(option("socket", socket.path(), "socket"));
        command.arg(option("pid-file", socket.path(), "pid"));
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        end_with_parent(&mut command, libc::SIGKILL);
        let child = command.spawn()?;
        let mut server = Self { child, socket, client, logs: dir.to_owned(), home };
        server.wait_until_ready(&log)?;
        let user = format!("'{USER}'@'localhost'");
        server
            .shell("mysql")?
            .run(&format!("CREATE USER {user} IDENTIFIED BY 'x'; GRANT ALL ON *.* TO {user};"))?;
        Ok(server)
    }

    fn wait_until_ready(&mut self, log: &Path) -> Outcome<()> {
        let clock = Clock::system();
        loop {
            let asked = self.shell("mysql").and_then(|mut shell| shell.run("SELECT 1;"));
            let Err(e) = asked else { return Ok(()) };
            let ended = self.child.try_wait()?;
            if ended.is_some() || clock.mono() > IN_TIME {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("MariaDB does not start: {e}\n{log}").into());
            }
            std::thread::sleep(EVERY);
        }
    }

    /// Its client, in that database, as the superuser.
    pub fn shell(&self, database: &str) -> Outcome<Shell> {
        let mut command = Command::new(&self.client);
        command.args(["--no-defaults", "--batch", "--raw", "--skip-column-names", "--unbuffered"]);
        command.args(["--default-character-set=utf8mb4", "--user=root"]);
        command.arg(option("socket", self.socket.path(), "socket")).arg(database);
        Shell::start(command, "\\! echo", self.logs.join(format!("mariadb-{database}.log")))
    }

    /// How a node reaches that database.
    pub fn dsn(&self, database: &str) -> String {
        format!("{USER}:x@unix({})/{database}", self.socket.path().join("socket").display())
    }

    /// Waits until nothing is left that it would write behind anybody's back.
    pub fn settle(&self) -> Outcome<()> {
        let mut shell = self.shell("mysql")?;
        shell.run("SET GLOBAL innodb_max_dirty_pages_pct = 0;")?;
        let clock = Clock::system();
        let left = "SELECT variable_value FROM information_schema.global_status \
                    WHERE variable_name = 'INNODB_BUFFER_POOL_PAGES_DIRTY';";
        loop {
            let dirty = shell.run(left)?.concat();
            if dirty == "0" {
                break;
            }
            if clock.mono() > IN_TIME {
                return Err(format!("{dirty} pages are not written after {IN_TIME:?}").into());
            }
            std::thread::sleep(EVERY);
        }
        shell.run("SET GLOBAL innodb_max_dirty_pages_pct = DEFAULT;")?;
        Ok(())
    }
}

/// An option that names a place in a directory.
fn option(name: &str, dir: &Path, place: &str) -> String {
    format!("--{name}={}", dir.join(place).display())
}

fn make_data(mut install: Command, home: &Path) -> Outcome<()> {
    install.env("PATH", PATH).args(["--no-defaults", "--skip-test-db", "--skip-name-resolve"]);
    install.args(["--auth-root-authentication-method=normal", "--force"]);
    install.arg(option("datadir", home, "data"));
    let output = install.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("mariadb-install-db failed ({}): {said}", output.status).into())
}

/// The server, what makes its data, and the client.
fn programs() -> Outcome<[PathBuf; 3]> {
    let first = |name: &str| in_path(name).into_iter().next();
    let packaged = || Some(PathBuf::from(PACKAGED)).filter(|file| file.is_file());
    let server = first("mariadbd").or_else(packaged);
    match (server, first("mariadb-install-db"), first("mariadb")) {
        (Some(server), Some(install), Some(client)) => Ok([server, install, client]),
        _ => Err(MISSING.into()),
    }
}
