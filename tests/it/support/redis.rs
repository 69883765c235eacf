//! A Redis or a Valkey server of the test's own: in a temporary directory, on a unix socket, a direct
//! child that the kernel ends with the test process, however that ends. Never the system's own
//! instance.
//!
//! Valkey is taken out of the folder that holds a part of Debian's unstable release, since the stable
//! one has Redis only; its own loader and libraries run it there. Knows nothing of what is tested.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;

use redis::{Connection, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisResult};
use replicon::clock::Clock;
use replicon::event::Origin;
use replicon::fsx::OsDisk;
use replicon::queue::accounts::Ceilings;
use replicon::queue::conformance::MAX_EVENTS;
use replicon::queue::redis::{Address, Options};
use replicon::task::Spine;
use tempfile::TempDir;

use super::server::{IN_TIME, Owner, free_port, places, signal, stands_still, start, wait_for_all};
use super::wait_until;

/// Where `tests/run` puts what it takes of Debian's unstable release, once.
const TREE: &str = "/var/tmp/replicon-mysql";
/// The directory of the append-only file, under the server's.
const AOF: &str = "appendonlydir";

/// What every server runs with; what a test says after it beats it.
const SETTINGS: [&str; 10] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
    "--daemonize",
    "no",
    "--unixsocketperm",
    "777",
];

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's Redis, 7.0 or later.
    Redis,
    /// Valkey, 8 or later.
    Valkey,
}

/// The server's program with the arguments that it always has.
fn program(kind: Kind) -> &'static [String] {
    static REDIS: OnceLock<Vec<String>> = OnceLock::new();
    static VALKEY: OnceLock<Vec<String>> = OnceLock::new();
    match kind {
        Kind::Redis => REDIS.get_or_init(find_redis),
        Kind::Valkey => VALKEY.get_or_init(find_valkey),
    }
}

fn find_redis() -> Vec<String> {
    let more = ["/usr/local/bin", "/usr/sbin"].map(PathBuf::from);
    let found = places(more).into_iter().map(|dir| dir.join("redis-server")).find(|p| p.is_file());
    let found = found.unwrap_or_else(|| {
        panic!("no Redis server in PATH: tests/run installs one, or: apt-get install redis-server")
    });
    vec![found.to_string_lossy().into_owned()]
}

fn find_valkey() -> Vec<String> {
    let libraries = format!("{TREE}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let entries = std::fs::read_dir(&libraries).into_iter().flatten().flatten();
    let mut files = entries.map(|entry| entry.path().to_string_lossy().into_owned());
    let loader = files.find(|path| path.contains("/ld-linux"));
    // one program under several names; a link may lead out of the folder
    let names = ["valkey-server", "valkey-check-rdb"].map(|name| format!("{TREE}/usr/bin/{name}"));
    let server = names.into_iter().find(|path| Path::new(path).is_file());
    let (Some(loader), Some(server)) = (loader, server) else {
        panic!(
            "no Valkey in {TREE}: tests/run puts it there where it is run by root, or, as root: \
             apt-get install debootstrap && debootstrap --variant=minbase \
             --include=mysql-server-core,valkey-server sid {TREE}"
        )
    };
    let words = [&*loader, "--argv0", "valkey-server", "--library-path", &libraries, &server];
    words.map(str::to_owned).into()
}

/// A server. It and its data go when it is dropped.
pub struct Redis {
    kind: Kind,
    child: Option<Child>,
    tcp: Option<u16>,
    settings: Vec<String>,
    owner: Owner,
    dir: TempDir,
}

impl Redis {
    /// On a unix socket only; every write is synced before its answer.
    pub fn start(kind: Kind) -> Self {
        Self::begin(kind, None, &[])
    }

    /// On a free port of 127.0.0.1 too.
    pub fn start_on_tcp(kind: Kind) -> Self {
        Self::begin(kind, Some(free_port()), &[])
    }

    /// With these settings, as on the server's command line.
    pub fn start_with(kind: Kind, settings: &[&str]) -> Self {
        Self::begin(kind, None, settings)
    }

    fn begin(kind: Kind, tcp: Option<u16>, settings: &[&str]) -> Self {
        let owner = Owner::of(&["redis", "nobody"]);
        let settings = settings.iter().map(|word| (*word).to_owned()).collect();
        let mut server = Self { kind, child: None, tcp, settings, owner, dir: owner.directory() };
        server.restart();
        server
    }

    /// Starts it again on its data, after [`Redis::kill`] or [`Redis::stop_orderly`].
    pub fn restart(&mut self) {
        assert!(!self.runs(), "it runs");
        let dir = self.dir.path();
        let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let mut command: Command = self.owner.guarded(dir);
        command.args(program(self.kind)).args(SETTINGS);
        command.args(["--port", &self.tcp.unwrap_or(0).to_string(), "--bind", "127.0.0.1"]);
        command.arg("--unixsocket").arg(self.socket()).arg("--dir").arg(dir);
        command.args(&self.settings).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(start(command));
        self.wait_ready();
    }

    fn wait_ready(&mut self) {
        wait_until(IN_TIME, "a Redis server that is ready", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "{:?} ended at its start: {}", self.kind, self.log());
            // where it asks for a password it says so, and is ready
            let ping = |mut c: Connection| redis::cmd("PING").query::<String>(&mut c);
            match self.connect().and_then(ping) {
                Err(e) if e.code() != Some("NOAUTH") => Err(format!("{e}; {}", self.log())),
                _ => Ok(()),
            }
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it does not run").id()
    }

    /// Whether it was started and not ended since.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Its port; it must listen on TCP.
    pub fn port(&self) -> u16 {
        self.tcp.expect("start_on_tcp")
    }

    fn connect(&self) -> RedisResult<Connection> {
        let address = ConnectionAddr::Unix(self.socket()).into_connection_info()?;
        redis::Client::open(address)?.get_connection_with_timeout(IN_TIME)
    }

    /// Sends a command on a connection of its own; what comes back.
    pub fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_ask(words).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// As [`Redis::ask`], where a refusal is expected.
    pub fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query(&mut self.connect()?)
    }

    /// What a node is told, but for its stream: everything else is the default.
    pub fn settings(&self) -> Vec<String> {
        let socket = format!("queue_redis_addr={}", self.socket().display());
        ["queue_backend=redis", "queue_redis_network=unix", &socket]
            .into_iter()
            .flat_map(|setting| ["--set".to_owned(), setting.to_owned()])
            .collect()
    }

    /// Options for a queue in process, in that directory, on that stream.
    pub fn options(&self, dir: &Path, stream: &str) -> Options {
        let seconds = prometheus::HistogramOpts::new("s", "s");
        Options {
            address: Address::Unix(self.socket()),
            username: String::new(),
            password: None,
            db: 0,
            stream: stream.to_owned(),
            group: "writer".to_owned(),
            consumer: "replicon".to_owned(),
            dlq_stream: format!("{stream}:dlq"),
            maxlen: 0,
            // what is refused is refused for good: the suites try nothing again
            max_retries: 1,
            timeout: std::time::Duration::from_secs(5),
            wait_aof: false,
            disk: OsDisk::shared(),
            path: dir.join("ingest.log"),
            ack_path: dir.join("ingest.ack"),
            origin: Origin::new("dc1").unwrap(),
            clock: Clock::system(),
            ceilings: Ceilings { max_events: MAX_EVENTS, max_bytes: 1 << 30, channel_share: 1.0 },
            dead_letter_max_bytes: 1 << 20,
            lock: true,
            spine: Spine::default(),
            append_seconds: prometheus::Histogram::with_opts(seconds).unwrap(),
        }
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

    /// Ends a [`Redis::pause`].
    pub fn resume(&self) {
        signal("CONT", &[self.pid()]);
    }

    /// A copy of the append-only file as it stands; what was answered is in it, since every write is
    /// synced first.
    pub fn keep_aof(&self) -> TempDir {
        let kept = tempfile::tempdir().unwrap();
        copy(&self.dir.path().join(AOF), kept.path());
        kept
    }

    /// Puts such a copy in place of what there is: the server must not run.
    pub fn put_back_aof(&self, kept: &TempDir) {
        assert!(!self.runs(), "it runs");
        let aof = self.dir.path().join(AOF);
        for entry in std::fs::read_dir(&aof).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        copy(kept.path(), &aof);
        self.give_back(&aof);
    }

    /// What the test made belongs to the server's user.
    fn give_back(&self, aof: &Path) {
        use std::os::unix::fs::{MetadataExt, chown};
        let owner = std::fs::metadata(self.dir.path()).unwrap();
        for entry in std::fs::read_dir(aof).unwrap() {
            let _ = chown(entry.unwrap().path(), Some(owner.uid()), Some(owner.gid()));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
