//! The command line as a person meets it: what a start refuses and how, and that a configuration of
//! v1.0.2 starts.
//!
//! What wins over what, and what `check` shows, stands in `cli_check`.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::http::serving;
use crate::support::{Node, replicon, repo, stored, wait_until};

/// A run that has ended.
pub struct Ran {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it said of itself.
    pub err: String,
}

/// Killed where the test fails before it ended.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs it to its end, with an environment of its own.
pub fn run_with(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = replicon(dir);
    command.args(args).envs(env.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running(command.spawn().unwrap());
    let status = wait_until(Duration::from_secs(20), "the end of a run", || {
        let ended = child.0.try_wait().unwrap();
        ended.ok_or_else(|| format!("replicon {args:?} still runs"))
    });
    let (mut out, mut err) = (String::new(), String::new());
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    stdout.unwrap().read_to_string(&mut out).unwrap();
    stderr.unwrap().read_to_string(&mut err).unwrap();
    Ran { code: status.code(), out, err }
}

/// Runs it to its end, without an environment.
pub fn run(dir: &Path, args: &[&str]) -> Ran {
    run_with(dir, &[], args)
}

/// Makes a file, and its directories.
pub fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// The lines of a text that hold a word.
pub fn lines_with<'t>(text: &'t str, word: &str) -> Vec<&'t str> {
    text.lines().filter(|line| line.contains(word)).collect()
}

/// Refused with code 2 and one line that says `error`; that line.
pub fn refused(ran: &Ran) -> &str {
    assert_eq!(ran.code, Some(2), "{}\n{}", ran.out, ran.err);
    assert_eq!(ran.out, "", "nothing is ready");
    let errors: Vec<&str> = ran
        .err
        .lines()
        .filter(|line| line.starts_with("error: ") || line.contains(" ERROR "))
        .collect();
    assert_eq!(errors.len(), 1, "{}", ran.err);
    errors[0]
}

#[test]
fn five_mistakes_in_a_file_are_all_named_with_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "conf/replicon.conf",
        "# five mistakes\nnode_name = dc 1\nhttp_listne = :8080\nqueue_backend\ncpu = 2\ncpu = 4\nqueue_max_bytes = lots\n",
    );
    std::fs::copy(repo("conf/channels.yml"), dir.path().join("conf/channels.yml")).unwrap();
    let commands: [&[&str]; 3] = [&[], &["check"], &["serve"]];
    for args in commands {
        let ran = run(dir.path(), args);
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        for (line, word) in [
            (2, "node_name"),
            (3, "did you mean http_listen?"),
            (4, "queue_backend = "),
            (6, "already set in line 5"),
            (7, "queue_max_bytes"),
        ] {
            let place = format!("conf/replicon.conf:{line}: ");
            assert_eq!(lines_with(&ran.err, &place).len(), 1, "{place}{}", ran.err);
            assert!(lines_with(&ran.err, &place)[0].contains(word), "{}", ran.err);
        }
        assert_eq!(lines_with(&ran.err, "error: ").len(), 5, "{}", ran.err);
        assert!(ran.err.contains("5 errors"), "{}", ran.err);
    }
    assert!(!dir.path().join("data").exists(), "nothing was started");
}

#[test]
fn mistakes_between_keys_and_in_the_channels_are_named_together() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "conf/replicon.conf", "queue_segment_bytes = 1MiB\nhttps_enabled = true\n");
    write(
        dir.path(),
        "conf/channels.yml",
        "channels:\n  a:\n    api_keys: [k]\n    mod: raw_only\n  b:\n    mode: raw_only\n  c:\n    api_keys: [k]\n    enabled: maybe\n",
    );
    let ran = run(dir.path(), &["check"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    for place in [
        "conf/replicon.conf:1: ",
        "conf/replicon.conf:2: ",
        "conf/channels.yml:4: channels.a.mod",
        "conf/channels.yml:5: channels.b",
        "conf/channels.yml:9: channels.c.enabled",
    ] {
        assert_eq!(lines_with(&ran.err, place).len(), 1, "{place}\n{}", ran.err);
    }
    assert_eq!(lines_with(&ran.err, "error: ").len(), 5, "{}", ran.err);
}

/// The snippets of v1.0.2's README put together, with its file backends.
const OLD_CONF: &str = "\
node_name = dc1
channels_file = conf/channels.yml

# Use runtime default (recommended)
cpu = -1

max_body_bytes = 1048576
max_batch_items = 1000
client_api_key = change-me
replication_token = change-me-too
http_listen = 127.0.0.1:8080
https_enabled = false
https_listen = 0.0.0.0:8443
tls_cert_file = /etc/replicon/tls/server.crt
tls_key_file = /etc/replicon/tls/server.key

queue_backend = file
queue_file_path = data/queue/ingest.log
queue_file_ack_path = data/queue/ingest.ack
queue_file_sync_ms = 200
queue_buffer = 10000

queue_redis_network = tcp
queue_redis_addr = 127.0.0.1:6379
queue_redis_stream = replicon:ingest
queue_redis_group = writer
queue_redis_consumer = replicon
queue_redis_dlq_stream = replicon:ingest:dlq
queue_redis_maxlen = 5000000
queue_redis_max_retries = 5
queue_redis_timeout_ms = 1500

writer_enabled = true
writer_workers = 1
writer_batch_size = 200
writer_batch_flush_ms = 20

storage_backend = file
storage_file_path = data/db/events_raw.jsonl
storage_file_sync_ms = 200
storage_postgres_dsn = postgres://replicon:replicon-secret@127.0.0.1:5432/replicon?sslmode=disable
storage_postgres_connect_timeout_ms = 3000
storage_postgres_max_open_conns = 16
storage_postgres_max_idle_conns = 16
storage_postgres_conn_max_lifetime_min = 30
storage_mysql_dsn = replicon:replicon-secret@tcp(127.0.0.1:3306)/replicon?parseTime=true
storage_mysql_connect_timeout_ms = 3000
storage_mysql_max_open_conns = 16
storage_mysql_max_idle_conns = 16
storage_mysql_conn_max_lifetime_min = 30

replication_enabled = false
replication_peer = dc2=http://10.0.1.2:8080
replication_peer = dc3=https://dc3.example.com
replication_poll_interval_ms = 1000
replication_batch_limit = 1000
replication_http_timeout_ms = 10000
shutdown_grace_period_of_old = 5
";

/// The example channels of v1.0.2's README.
pub const OLD_CHANNELS: &str = "\
general:
  enabled: true
  api_keys: [key-abc123]
  on_unknown_field: reject
  store_raw: true

channels:
  # baseline raw channel name (you can rename/remove this)
  events_raw:
    mode: raw_only

  # structured example (disabled by default)
  abuse_reports:
    enabled: false
    api_keys: [key-abuse-001]
    mode: structured
    store_raw: false
    table: abuse_reports
    columns: [report_time, attacker_ip, reporter_ip, service, comment]
    required: [report_time, attacker_ip, reporter_ip, service]
    field_types:
      report_time: timestamptz
      attacker_ip: inet
      reporter_ip: inet
      service: text
      comment: text
";

#[test]
fn a_configuration_of_the_old_release_starts_with_warnings_only() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "conf/replicon.conf", OLD_CONF);
    write(dir.path(), "conf/channels.yml", OLD_CHANNELS);
    let node = serving(dir.path(), &[]);
    assert_eq!(node.post("{\"source\":\"collector-1\"}").status, 202);
    let mut client = node.client();
    let disabled = client.post("abuse_reports", "key-abuse-001", b"{}");
    assert_eq!(disabled.unwrap().status, 404);
    node.wait_drained();
    assert_eq!(stored(dir.path()).len(), 1);

    let log = node.log();
    assert!(log.lines().next().unwrap().contains("conf/replicon.conf"), "{log}");
    assert!(!log.contains(" ERROR "), "{log}");
    let warnings = lines_with(&log, " WARN ");
    let about = |word: &str| warnings.iter().filter(|line| line.contains(word)).count();
    let buffer = lines_with(&log, "queue_buffer = 10000 ");
    assert_eq!(buffer.len(), 1, "{log}");
    assert!(buffer[0].contains("1000 ms"), "{log}");
    for key in ["queue_file_sync_ms", "queue_redis_maxlen", "shutdown_grace_period_of_old"] {
        assert_eq!(about(key), 1, "{key}\n{log}");
    }
    assert_eq!(warnings.len(), 4, "{log}");
    assert!(!log.contains("replicon-secret") && !log.contains("change-me"), "{log}");
}

#[test]
fn a_second_process_on_one_directory_is_refused_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &[]);
    let second = run(dir.path(), &["--set", "http_listen=127.0.0.1:0"]);
    let line = refused(&second);
    assert!(line.contains(&format!("pid {}", node.pid())), "{line}");
    assert!(line.contains("data/queue/ingest.log"), "{line}");
    assert_eq!(node.post("{}").status, 202);
    assert_eq!(node.stop().code(), Some(0));
    let third = serving(dir.path(), &[]);
    assert_eq!(third.post("{}").status, 202);
}

#[test]
fn a_directory_of_another_node_name_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let node = serving(dir.path(), &["--set", "writer_enabled=false"]);
    assert_eq!(node.post("{}").status, 202);
    assert_eq!(node.stop().code(), Some(0));
    let renamed = ["--set", "http_listen=127.0.0.1:0", "--set", "node_name=dc9"];
    for _ in 0..2 {
        let ran = run(dir.path(), &renamed);
        let line = refused(&ran);
        assert!(line.contains("set node_name = dc1"), "{line}");
        assert!(line.contains("dc9"), "{line}");
    }
    let node = serving(dir.path(), &[]);
    node.wait_drained();
    let lines = stored(dir.path());
    assert_eq!((lines.len(), &lines[0]["origin_dc"]), (1, &"dc1".into()));
}

#[test]
fn queue_files_of_the_old_release_are_refused_and_left_untouched() {
    for (key, name, bytes) in [
        (
            "queue_file_path",
            "data/queue/ingest.log",
            "{\"channel\":\"events_raw\",\"json_data\":{}}\n{\"cha",
        ),
        ("queue_file_ack_path", "data/queue/ingest.ack", "{\"offset\":39}"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), name, bytes);
        let ran = run(dir.path(), &["--set", "http_listen=127.0.0.1:0"]);
        let line = refused(&ran);
        for word in [name, "v1.0.2", "drain it with the old binary", key] {
            assert!(line.contains(word), "{word}: {line}");
        }
        let left = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(left, bytes);
    }
}

#[test]
fn what_comes_in_a_later_release_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["serve", "check"] {
        let ran = run(dir.path(), &[command, "--set", "https_enabled=true"]);
        let line = refused(&ran);
        assert!(line.contains("https_enabled = true"), "{line}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn version_and_help_are_printed_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    let version = run(dir.path(), &["--version"]);
    let expect = format!("replicon {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((version.code, version.out), (Some(0), expect));
    let help = run(dir.path(), &["--help"]);
    assert_eq!(help.code, Some(0));
    for word in ["Examples:", "replicon check", "--config", "--set", "REPLICON_"] {
        assert!(help.out.contains(word), "{word}: {}", help.out);
    }
    for wrong in [&["--nope"][..], &["start"], &["--set", "node_name"]] {
        let ran = run(dir.path(), wrong);
        assert_eq!(ran.code, Some(2), "{wrong:?}: {}", ran.err);
        assert!(!ran.err.is_empty());
    }
}

#[test]
fn without_a_channels_file_the_client_key_serves_one_channel_and_without_that_nothing_starts() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "conf/replicon.conf", "channels_file = nowhere.yml\n");
    let ran = run(dir.path(), &["--set", "http_listen=127.0.0.1:0"]);
    let line = refused(&ran);
    assert!(line.contains("nowhere.yml") && line.contains("client_api_key"), "{line}");

    let node = serving(dir.path(), &["--set", "client_api_key=my-own-key"]);
    let health = node.health();
    assert_eq!(health["status"], "degraded");
    assert!(health["degraded"][0].as_str().unwrap().contains("channels file"), "{health}");
    assert_eq!(lines_with(&node.log(), " WARN ").len(), 1, "{}", node.log());
    let mut client = node.client();
    let taken = client.post("events_raw", "my-own-key", b"{}").unwrap();
    assert_eq!(taken.status, 202);
    assert_eq!(node.post("{}").status, 401, "the shipped key opens nothing");
}

#[test]
fn an_address_in_use_is_refused_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let ran = run(dir.path(), &["--set", &format!("http_listen={addr}")]);
    let line = refused(&ran);
    assert!(line.contains("http_listen") && line.contains(&addr), "{line}");
}

#[test]
fn without_any_file_the_built_in_defaults_serve_and_the_first_line_says_so() {
    if Path::new("/etc/replicon/replicon.conf").exists() {
        eprintln!("skipped: this machine has a configuration of its own");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let log = node.log();
    assert!(log.lines().next().unwrap().contains("built-in defaults"), "{log}");
}
