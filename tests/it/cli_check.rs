//! `replicon check`: what is in force and where it comes from, what it refuses, what it never shows.

use std::collections::BTreeMap;

use super::cli::{OLD_CHANNELS, Ran, lines_with, refused, run, run_with, write};
use super::http::serving;
use crate::support::repo;

/// What `check` prints: each key with its value and origin.
fn effective(ran: &Ran) -> BTreeMap<String, (String, String)> {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let lines = ran.out.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (key, rest) = line.split_once(" = ").unwrap();
            let (value, origin) = rest.rsplit_once("# ").unwrap();
            (key.to_owned(), (value.trim().to_owned(), origin.to_owned()))
        })
        .collect()
}

/// Environment, arguments, what is expected.
type Way<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);

#[test]
fn the_command_line_beats_the_environment_beats_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let conf = "node_name = from-file\nmax_batch_items = 11\nwriter_workers = 3\n";
    write(dir.path(), "conf/replicon.conf", conf);
    write(dir.path(), "conf/channels.yml", OLD_CHANNELS);
    let env = [
        ("REPLICON_NODE_NAME", "from-env"),
        ("REPLICON_MAX_BATCH_ITEMS", "22"),
        ("REPLICON_NO_SUCH_KEY", "1"),
    ];
    let args = ["check", "--set", "node_name=from-set"];
    let shown = effective(&run_with(dir.path(), &env, &args));
    for (key, value, origin) in [
        ("node_name", "from-set", "--set"),
        ("max_batch_items", "22", "environment REPLICON_MAX_BATCH_ITEMS"),
        ("writer_workers", "3", "conf/replicon.conf:3"),
        ("queue_buffer", "10000000", "default"),
    ] {
        let expect = (value.to_owned(), origin.to_owned());
        assert_eq!(shown.get(key), Some(&expect), "{key}");
    }
}

#[test]
fn the_configuration_file_is_the_named_one_else_that_of_the_environment_else_the_near_one() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["near", "env", "named"] {
        let file = if name == "near" { "conf/replicon.conf" } else { name };
        write(dir.path(), file, &format!("node_name = {name}\n"));
    }
    write(dir.path(), "conf/channels.yml", OLD_CHANNELS);
    let env = [("REPLICON_CONFIG", "env")];
    let ways: [Way<'_>; 4] = [
        (&[], &["check"], "near"),
        (&env, &["check"], "env"),
        (&env, &["check", "--config", "named"], "named"),
        (&env, &["--config", "named", "check"], "named"),
    ];
    for (env, args, name) in ways {
        let ran = run_with(dir.path(), env, args);
        assert_eq!(effective(&ran)["node_name"].0, name, "{}", ran.out);
    }
    let ran = run(dir.path(), &["--config", "nowhere.conf"]);
    assert!(refused(&ran).contains("nowhere.conf"), "{}", ran.err);
}

#[test]
fn global_options_stand_before_and_after_the_subcommand() {
    let dir = tempfile::tempdir().unwrap();
    let (name, cpu) = ("node_name=dc7", "cpu=2");
    for args in [
        ["--set", name, "--set", cpu, "check"],
        ["check", "--set", name, "--set", cpu],
        ["--set", name, "check", "--set", cpu],
        ["--set", cpu, "check", "--set", name],
    ] {
        let shown = effective(&run(dir.path(), &args));
        assert_eq!(shown["node_name"].0, "dc7", "{args:?}");
        assert_eq!(shown["cpu"].0, "2", "{args:?}");
    }
}

#[test]
fn check_masks_secrets_in_every_place() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "hunter2";
    let sets: Vec<String> = [
        ("client_api_key", ""),
        ("replication_token", ""),
        ("queue_redis_password", ""),
        ("storage_postgres_dsn", "postgres://u:@h:5432/d"),
        ("storage_mysql_dsn", "u:@tcp(h:3306)/d"),
        ("replication_peer", "dc2=http://u:@h:1"),
    ]
    .iter()
    .map(|(key, text)| match text.split_once('@') {
        Some((before, after)) => format!("{key}={before}{secret}@{after}"),
        None => format!("{key}={secret}"),
    })
    .collect();
    let mut args = vec!["check"];
    for set in &sets {
        args.extend(["--set", set.as_str()]);
    }
    let ran = run(dir.path(), &args);
    let shown = effective(&ran);
    assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{}", ran.out);
    assert_eq!(shown["client_api_key"].0, "********");
    assert_eq!(shown["storage_postgres_dsn"].0, "postgres://u:********@h:5432/d");
    assert!(shown.values().all(|(_, origin)| !origin.is_empty()));
}

#[test]
fn check_refuses_an_unknown_key_that_serve_only_warns_about() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "conf/replicon.conf", "\nrate_limit_per_client = 5\n");
    write(dir.path(), "conf/channels.yml", OLD_CHANNELS);
    let ran = run(dir.path(), &["check"]);
    let line = refused(&ran);
    assert!(line.contains("conf/replicon.conf:2: "), "{line}");
    assert!(line.contains("rate_limit_per_client"), "{line}");
    let node = serving(dir.path(), &[]);
    let warnings = lines_with(&node.log(), " WARN ").len();
    assert_eq!(warnings, 1, "{}", node.log());
    let strict = ["--set", "http_listen=127.0.0.1:0", "--set", "strict_config=on"];
    assert!(refused(&run(dir.path(), &strict)).contains("rate_limit_per_client"));
}

#[test]
fn check_refuses_directories_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    // below a file there is no directory for anybody
    write(dir.path(), "occupied", "");
    let places = [
        ("queue_file_path", "sqlite"),
        ("queue_file_ack_path", "sqlite"),
        ("storage_sqlite_path", "sqlite"),
        ("storage_file_path", "file"),
    ];
    for (key, backend) in places {
        let (key_set, backend) =
            (format!("{key}=occupied/x/y"), format!("storage_backend={backend}"));
        let ran = run(dir.path(), &["check", "--set", &key_set, "--set", &backend]);
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert_eq!(lines_with(&ran.err, "error: ").len(), 1, "{}", ran.err);
        assert!(ran.err.contains(key), "{}", ran.err);
    }

    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let mut permissions = std::fs::metadata(&closed).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&closed, permissions).unwrap();
    if std::fs::write(closed.join("probe"), "").is_ok() {
        eprintln!("skipped: root may write everywhere, so no directory is closed to this test");
        return;
    }
    let ran = run(dir.path(), &["check", "--set", "queue_file_path=closed/q/log"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("queue_file_path"), "{}", ran.err);
}

#[test]
fn check_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    effective(&run(dir.path(), &["check"]));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_shipped_files_pass_check_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["conf/replicon.conf", "conf/channels.yml"] {
        write(dir.path(), name, &std::fs::read_to_string(repo(name)).unwrap());
    }
    let ran = run(dir.path(), &["check"]);
    effective(&ran);
    assert_eq!(ran.err, "");
    assert!(ran.out.starts_with("# configuration: conf/replicon.conf\n"), "{}", ran.out);
}
