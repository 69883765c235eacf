//! Outages of a database server under load that end by themselves: nothing is refused meanwhile,
//! nothing is lost or doubled, and nothing becomes a dead letter.
//!
//! Attacks I6, I8 and I17.

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{
    DATABASE, Numbered, Server, Site, assert_nothing_dead, assert_same, drained, in_trouble,
    on_each, post, well,
};
use crate::support::{Client, Node, full_scale, wait_until};

/// Stops the load, also where the test fails.
struct Load<'a>(&'a AtomicBool);

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Posts small batches until it is told to stop; everything must be accepted.
fn post_until(addr: &str, from: i64, stop: &AtomicBool) -> Vec<Numbered> {
    let mut client = Client::connect(addr).unwrap();
    let (mut told, mut next) = (Vec::new(), from);
    while !stop.load(Ordering::SeqCst) {
        told.extend(post(&mut client, next..next + 20));
        next += 20;
        // not to take the processor from what is tested
        std::thread::sleep(Duration::from_millis(4));
    }
    told
}

/// Waits until more rows stand there than now.
fn moves_on(site: &Site) {
    let count = || site.sql("SELECT count(*) FROM events_raw").parse::<u64>().unwrap();
    let before = count();
    wait_until(Duration::from_secs(60), "rows to be stored again", || match count() {
        now if now > before => Ok(()),
        now => Err(format!("{now} rows, as before")),
    });
}

fn nothing_is_lost_by(site: &Site, outage: impl FnOnce(&Node)) {
    let node = site.serving(&[]);
    let mut told = post(&mut node.client(), [0]);
    drained(&node);
    let stop = AtomicBool::new(false);
    told.extend(std::thread::scope(|scope| {
        let posting = scope.spawn(|| post_until(&node.addr, 1, &stop));
        let load = Load(&stop);
        moves_on(site);
        outage(&node);
        moves_on(site);
        drop(load);
        posting.join().unwrap()
    }));
    drained(&node);
    assert_same(&site.numbers(), &told);
    assert_nothing_dead(&node, site.path());
    well(&node);
}

fn sessions_that_an_administrator_ends_cost_nothing(site: Site) {
    let times = if full_scale() { 50 } else { 5 };
    nothing_is_lost_by(&site, |_| {
        for _ in 0..times {
            assert_ne!(site.server().end_sessions(), 0, "there was none");
            moves_on(&site);
        }
    });
}

on_each!(sessions_that_an_administrator_ends_cost_nothing: postgres, mariadb, mysql);

/// A session that locks `events_raw` for eight seconds, and a query for how many do so now.
fn lock_table(server: &Server) -> (Child, &'static str) {
    match server {
        Server::Postgres(server) => {
            let lock = "BEGIN; LOCK TABLE events_raw; SELECT pg_sleep(8); COMMIT";
            let held = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
                        WHERE d.datname = 'replicon' AND mode = 'AccessExclusiveLock' AND granted";
            (server.psql_in_background(DATABASE, lock), held)
        }
        Server::Mysql(server) => {
            let lock = "LOCK TABLES events_raw WRITE; SELECT SLEEP(8); UNLOCK TABLES";
            let held = "SELECT count(*) FROM processlist WHERE state = 'User sleep'";
            (server.sql_in_background(DATABASE, lock), held)
        }
    }
}

fn a_table_that_another_session_locks_for_eight_seconds_costs_nothing(site: Site) {
    nothing_is_lost_by(&site, |_| {
        let (mut holder, held) = lock_table(site.server());
        wait_until(Duration::from_secs(30), "the lock", || {
            let count = site.server().admin(held);
            if count == "1" { Ok(()) } else { Err(count) }
        });
        assert!(holder.wait().unwrap().success());
    });
}

on_each!(
    a_table_that_another_session_locks_for_eight_seconds_costs_nothing:
    postgres, mariadb, mysql
);

fn a_server_that_hangs_for_some_seconds_costs_nothing(site: Site) {
    nothing_is_lost_by(&site, |_| {
        site.server().pause();
        // the length of the outage
        std::thread::sleep(Duration::from_secs(if full_scale() { 30 } else { 3 }));
        site.server().resume();
    });
}

on_each!(a_server_that_hangs_for_some_seconds_costs_nothing: postgres, mariadb, mysql);

fn a_server_that_is_read_only_for_a_while_costs_nothing(site: Site) {
    let (on, off) = match site.server() {
        Server::Postgres(_) => (
            "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf();",
            "ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf();",
        ),
        Server::Mysql(_) => ("SET GLOBAL read_only = ON", "SET GLOBAL read_only = OFF"),
    };
    nothing_is_lost_by(&site, |node| {
        site.server().admin(on);
        let said = in_trouble(node);
        assert!(said.contains("read"), "{said}");
        site.server().admin(off);
    });
}

on_each!(a_server_that_is_read_only_for_a_while_costs_nothing: postgres, mariadb, mysql);
