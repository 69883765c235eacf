//! Other sessions in the way of writers: deadlocks, rows that somebody else holds too long, and
//! writers that meet each other. Nothing stands by halves, and nothing is given up.
//!
//! Attacks I6 and I8 (H49).

use std::process::Child;
use std::time::Duration;

use super::{
    CHANNELS, DATABASE, Numbered, Site, assert_nothing_dead, assert_same, drained, on_each, post,
    post_items, post_reports, well,
};
use crate::support::{Node, full_scale, wait_until};

const IN_TIME: Duration = Duration::from_secs(30);

/// A session that holds the next five hundred identities in a table, does something else behind
/// that, and gives everything back. It has done so much that in a deadlock the other one is undone.
fn take_identities(site: &Site, after: u64, table: &str, row: &str, then: &str) -> Child {
    let (first, last) = (after + 1, after + 500);
    let script = format!(
        "BEGIN; INSERT INTO {table} WITH RECURSIVE seqs (seq) AS \
         (SELECT {first} UNION ALL SELECT seq + 1 FROM seqs WHERE seq < {last}) \
         SELECT 'dc1', seq, 'dc1', '{table}', now(6), {row} FROM seqs; {then}; ROLLBACK"
    );
    let holder = site.mysql_server().sql_in_background(DATABASE, &script);
    wait_until(IN_TIME, "a session that holds the identities", || {
        let sleeping = "SELECT count(*) FROM processlist WHERE state = 'User sleep'";
        let count = site.server().admin(sleeping);
        if count == "1" { Ok(()) } else { Err(count) }
    });
    holder
}

/// Nothing was said that an operator should read.
fn assert_quiet(node: &Node) {
    let log = node.log();
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
}

/// Waits until a writer waits for what another session holds.
fn wait_for_a_writer_that_waits(site: &Site) {
    wait_until(IN_TIME, "a writer that waits", || {
        let waiting = "SELECT count(*) FROM innodb_trx WHERE trx_state = 'LOCK WAIT'";
        let count = site.server().admin(waiting);
        if count == "0" { Err(count) } else { Ok(()) }
    });
}

fn a_deadlock_is_tried_again_at_once_and_without_a_word(site: Site) {
    let node = site.serving(&[]);
    let mut told = post(&mut node.client(), [0]);
    drained(&node);
    // it asks for the row that each of a writer's transactions holds, and gets it: that is undone
    let then = "SELECT sleep(3); SELECT * FROM replicon_node FOR UPDATE";
    let mut holder = take_identities(&site, told[0].0, "events_raw", "'{}'", then);
    told.extend(post(&mut node.client(), 1..=3));
    wait_for_a_writer_that_waits(&site);
    assert!(holder.wait().unwrap().success());
    let status = site.server().admin("SHOW ENGINE INNODB STATUS");
    assert!(status.contains("LATEST DETECTED DEADLOCK"), "there was no deadlock: {status}");
    drained(&node);
    assert_same(&site.numbers(), &told);
    assert_nothing_dead(&node, site.path());
    assert_quiet(&node);
    well(&node);
}

on_each!(a_deadlock_is_tried_again_at_once_and_without_a_word: mariadb, mysql);

/// The channels, with raw copies of the reports: two statements a batch.
fn with_copies() -> String {
    CHANNELS.replace("store_raw: false", "store_raw: true")
}

/// Every report stands in both tables.
fn both_stand(site: &Site, told: &[Numbered]) {
    assert_same(&site.numbers(), told);
    assert_same(&site.pairs("SELECT origin_seq, n FROM reports ORDER BY origin_seq"), told);
}

/// The server gives up the statement that waits, and keeps what stands before it in the transaction.
fn a_wait_that_the_server_ends_leaves_nothing_by_halves(site: Site) {
    site.server().admin("SET GLOBAL innodb_lock_wait_timeout = 1");
    site.channels(&with_copies());
    let mut told: Vec<Numbered> = Vec::new();
    for (table, row) in [("reports", "0, 'taken'"), ("events_raw", "'{}'")] {
        let node = site.serving(&[]);
        let next = i64::try_from(told.len()).unwrap();
        let last = post_reports(&mut node.client(), [next], 1);
        told.extend(&last);
        drained(&node);
        let mut holder = take_identities(&site, last[0].0, table, row, "SELECT sleep(8)");
        told.extend(post_reports(&mut node.client(), next + 1..next + 20, 1));
        wait_for_a_writer_that_waits(&site);
        assert!(holder.wait().unwrap().success());
        drained(&node);
        both_stand(&site, &told);
        assert_nothing_dead(&node, site.path());
        well(&node);
        assert_eq!(node.stop().code(), Some(0));
    }
}

on_each!(a_wait_that_the_server_ends_leaves_nothing_by_halves: mariadb, mysql);

/// Posts reports whose numbers lie all over an index.
fn post_all_over(node: &Node, rounds: i64) -> Vec<Numbered> {
    let mut client = node.client();
    let mut told = Vec::new();
    for round in 0..rounds {
        let all_over = |nth: i64| nth * 1_000_003 % 997 * 1_000 + round;
        let numbers: Vec<i64> = (0..100).map(all_over).collect();
        let item = |n: &i64| format!("{{\"n\":{n},\"place\":\"here\"}}");
        let items: Vec<String> = numbers.iter().map(item).collect();
        let first = post_items(&mut client, "reports", &items);
        told.extend((first..).zip(numbers));
    }
    told
}

fn writers_that_meet_in_an_index_store_everything_once(site: Site) {
    let indexed = format!("{}    indexes:\n      - columns: [n]\n", with_copies());
    site.channels(&indexed);
    let node = site.serving(&["--set", "writer_enabled=false"]);
    let told = post_all_over(&node, if full_scale() { 1_000 } else { 100 });
    assert_eq!(node.stop().code(), Some(0));
    let workers = ["--set", "writer_workers=4", "--set", "writer_batch_size=50"];
    let node = site.serving(&workers);
    drained(&node);
    both_stand(&site, &told);
    assert_nothing_dead(&node, site.path());
    assert_quiet(&node);
    well(&node);
}

on_each!(
    writers_that_meet_in_an_index_store_everything_once:
    postgres, sqlite, mariadb, mysql
);
