//! `replicon schema`: what a start would run, told and not done.

use std::path::Path;
use std::process::Output;

use crate::support::postgres::Postgres;
use crate::support::sqlite::sqlite;
use crate::support::{Node, replicon};

fn schema(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        replicon(dir).arg("schema").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn on_an_empty_place_it_prints_what_a_start_would_run_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = schema(dir.path(), &[]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("CREATE TABLE IF NOT EXISTS \"events_raw\""), "{out}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it only looks");
    let (code, all, _) = schema(dir.path(), &["--all"]);
    assert_eq!((code, all), (0, out));
    let (code, _, err) = schema(dir.path(), &["--set", "storage_backend=file"]);
    assert_eq!(code, 2);
    assert!(err.contains("storage_backend is no database"), "{err}");
}

#[test]
fn beside_a_database_it_prints_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "storage_backend=sqlite"]);
    assert_eq!(node.stop().code(), Some(0));
    let (code, out, err) = schema(dir.path(), &[]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(out, "-- nothing to do: the database has what a start needs\n");
    let path = dir.path().join("data/db/replicon.db");
    sqlite(
        &path,
        "ALTER TABLE events_raw ADD COLUMN note TEXT; DROP INDEX events_raw_origin_channel_seq",
    );
    let (code, out, _) = schema(dir.path(), &[]);
    assert_eq!(code, 1);
    assert!(out.contains("-- events_raw has more, which is left alone: column note"), "{out}");
    assert!(out.contains("CREATE INDEX IF NOT EXISTS \"events_raw_origin_channel_seq\""), "{out}");
    sqlite(&path, "ALTER TABLE events_raw DROP COLUMN node_name");
    let (code, _, err) = schema(dir.path(), &[]);
    assert_eq!(code, 2);
    assert!(err.contains("table events_raw does not fit: column node_name is missing"), "{err}");
}

#[test]
fn a_server_that_does_not_answer_is_named_with_the_way_around() {
    let dir = tempfile::tempdir().unwrap();
    let mut postgres = Postgres::start();
    let dsn = postgres.database("replicon");
    let set = format!("storage_postgres_dsn={dsn}");
    let args = ["--set", "storage_backend=postgres", "--set", &set];
    let (code, out, _) = schema(dir.path(), &args);
    assert_eq!(code, 1);
    assert!(out.contains("CREATE SEQUENCE IF NOT EXISTS \"replicon_origin_seq\""), "{out}");
    postgres.stop_orderly();
    let (code, _, err) = schema(dir.path(), &args);
    assert_eq!(code, 2);
    assert!(err.contains("cannot be looked at") && err.contains("--all"), "{err}");
}
