//! Who writes as an origin, and how: what stands there already under one of its identities, a second
//! node of its name, and commits that may not be weaker than the promise.
//!
//! Attacks I2, I3, I6, I7 and I12.

use std::time::Duration;

use super::{
    Kind, Numbered, Site, assert_nothing_dead, assert_same, both, dead_letters, drained,
    in_trouble, on_each, post, well,
};
use crate::http;
use crate::support::wait_until;

fn a_row_that_stands_under_the_identity_of_another_event_is_a_conflict_and_stays(site: Site) {
    let node = site.serving(&[]);
    let mut told = post(&mut node.client(), [0]);
    drained(&node);
    assert_eq!(node.stop().code(), Some(0));
    let node = site.serving(&["--set", "writer_enabled=false"]);
    let queued = post(&mut node.client(), 1..=5);
    assert_eq!(node.stop().code(), Some(0));

    // somebody writes under the third one's identity
    let (taken, _) = queued[2];
    let at = match site.kind() {
        Kind::Sqlite | Kind::Postgres => "2026-01-01 00:00:00.000000+00:00",
        Kind::MariaDb | Kind::MySql => "2026-01-01 00:00:00.000000",
    };
    site.sql(&format!(
        "INSERT INTO events_raw (origin_dc, origin_seq, node_name, channel, received_at, json_data) \
         VALUES ('dc1', {taken}, 'dc1', 'events_raw', '{at}', '{{\"n\":77}}')"
    ));
    let planted = || {
        let rows = site.rows();
        rows.into_iter().find(|row| row["origin_seq"] == taken).unwrap()
    };
    let before = planted();
    let node = site.serving(&[]);
    drained(&node);
    let health = node.health();
    assert_eq!(health["ingest"]["dead_letter_total"], 1, "{health}");
    let letters = dead_letters(site.path());
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["seq"], taken);
    let reason = letters[0]["reason"].to_string();
    assert!(reason.contains("identity conflict"), "{reason}");
    assert!(node.log().contains("identity conflict"), "{}", node.log());
    assert_eq!(planted(), before);
    let theirs = |(seq, n): Numbered| if seq == taken { (seq, 77) } else { (seq, n) };
    told.extend(queued.into_iter().map(theirs));
    assert_same(&site.numbers(), &told);
    // and it goes on
    told.extend(post(&mut node.client(), [6]));
    drained(&node);
    assert_same(&site.numbers(), &told);
}

on_each!(
    a_row_that_stands_under_the_identity_of_another_event_is_a_conflict_and_stays:
    postgres, sqlite, mariadb, mysql
);

#[test]
fn a_role_that_commits_without_waiting_for_the_disk_waits_for_it_all_the_same() {
    let site = Site::postgres();
    site.server().admin("ALTER ROLE replicon SET synchronous_commit = off");
    let node = site.serving(&[]);
    let mut told = post(&mut node.client(), [0]);
    drained(&node);
    assert_eq!(site.sql("SHOW synchronous_commit"), "off", "an ordinary session of the role");
    site.sql(
        "CREATE TABLE seen (setting text); \
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$; \
         CREATE TRIGGER look AFTER INSERT ON events_raw EXECUTE FUNCTION look();",
    );
    for n in 1..=5 {
        told.extend(post(&mut node.client(), [n]));
        drained(&node);
    }
    assert_eq!(site.sql("SELECT DISTINCT setting FROM seen"), "local");
    assert_same(&site.numbers(), &told);
}

fn a_second_node_of_the_same_name_is_refused_by_the_database_and_accepts_meanwhile(site: Site) {
    let first = site.serving(&[]);
    let mut told = post(&mut first.client(), 0..3);
    drained(&first);
    // it has started before, elsewhere: so it knows its identities, and waits for nobody; in another
    // database of that server the name is free
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = site.server().settings(&site.server().database("elsewhere"));
    let second = http::serving(dir.path(), &both(&elsewhere, &[]));
    assert_eq!(second.stop().code(), Some(0));

    let second = http::serving(dir.path(), &both(&site.settings(), &[]));
    let waiting = post(&mut second.client(), 100..103);
    let said = in_trouble(&second);
    assert!(said.contains("dc1"), "the origin is named: {said}");
    wait_until(Duration::from_secs(10), "a line about the origin", || {
        let log = second.log();
        let named = log.lines().any(|line| line.contains(" ERROR ") && line.contains("dc1"));
        if named { Ok(()) } else { Err(log) }
    });
    assert_eq!(second.get("/readyz").status, 200);
    assert_eq!(second.health()["ingest"]["queue_depth"], waiting.len());

    told.extend(post(&mut first.client(), 3..6));
    drained(&first);
    assert_same(&site.numbers(), &told);
    assert_nothing_dead(&first, site.path());
    assert_nothing_dead(&second, dir.path());
    well(&first);
}

on_each!(
    a_second_node_of_the_same_name_is_refused_by_the_database_and_accepts_meanwhile:
    postgres, mariadb, mysql
);
