//! A structured table that lost a column: its channel is parked, the others go on and the log is
//! freed; mended, it resumes in order, each event once, also when the node was killed meanwhile.
//!
//! Attacks I6 to I8.

use std::path::Path;
use std::time::Duration;

use super::{
    CHANNELS, Kind, Numbered, SMALL_SEGMENTS, Site, assert_nothing_dead, assert_same, drained,
    on_each, post, post_reports, well,
};
use crate::support::{Node, full_scale, wait_until};

const IN_TIME: Duration = Duration::from_secs(60);

/// How a table is broken and mended, and how its rows are told in the order of their arrival.
struct Breakage {
    breaks: &'static str,
    mends: &'static str,
    arrived: &'static str,
}

const POSTGRES: Breakage = Breakage {
    breaks: "CREATE SEQUENCE arrivals; \
             ALTER TABLE reports DROP COLUMN place, \
             ADD COLUMN arrived bigint DEFAULT nextval('arrivals')",
    mends: "ALTER TABLE reports ADD COLUMN place text NOT NULL DEFAULT 'mended'",
    arrived: "SELECT origin_seq, n FROM reports ORDER BY arrived",
};

const LITE: Breakage = Breakage {
    breaks: "ALTER TABLE reports DROP COLUMN place",
    mends: "ALTER TABLE reports ADD COLUMN place TEXT NOT NULL DEFAULT 'mended'",
    arrived: "SELECT origin_seq, n FROM reports ORDER BY rowid",
};

/// Rows lie in the order of their identities here: it takes a counter to tell which came first.
const MYSQL: Breakage = Breakage {
    breaks: "ALTER TABLE reports DROP COLUMN place, \
             ADD COLUMN arrived bigint NOT NULL AUTO_INCREMENT, ADD UNIQUE KEY (arrived)",
    mends: "ALTER TABLE reports ADD COLUMN place longtext NOT NULL DEFAULT ('mended')",
    arrived: "SELECT origin_seq, n FROM reports ORDER BY arrived",
};

/// What was accepted.
#[derive(Default)]
struct Told {
    raw: Vec<Numbered>,
    reports: Vec<Numbered>,
}

impl Told {
    /// Batches for both channels, in turns: about 12 KB a round.
    fn post(&mut self, node: &Node, rounds: i64) {
        let mut client = node.client();
        for _ in 0..rounds {
            let from = i64::try_from(self.raw.len()).unwrap();
            self.raw.extend(post(&mut client, from..from + 100));
            self.reports.extend(post_reports(&mut client, from..from + 100, 60));
        }
    }
}

/// The segments of the main log.
fn segments(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir.join("data/queue")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let digits = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    names.filter(|name| name.strip_prefix("ingest.log.").is_some_and(digits)).collect()
}

/// The broken channel is named, the other one is stored, and the log holds neither of them.
fn only_reports_wait(site: &Site, node: &Node, told: &Told) {
    wait_until(IN_TIME, "a parked channel, named", || {
        let health = node.health();
        let said = health["degraded"].as_array().unwrap().iter().filter_map(|t| t.as_str());
        let named = said.filter(|text| text.starts_with("channel reports is parked")).count();
        if named == 1 { Ok(()) } else { Err(health.to_string()) }
    });
    wait_until(IN_TIME, "the other channel's rows", || {
        let count = site.sql("SELECT count(*) FROM events_raw");
        if count == told.raw.len().to_string() { Ok(()) } else { Err(count) }
    });
    assert_same(&site.numbers(), &told.raw);
    wait_until(IN_TIME, "segments to be freed", || {
        let left = segments(site.path());
        if left.len() <= 2 { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

fn a_broken_table_stops_its_channel_alone_and_mended_it_resumes_in_order(site: Site) {
    let breakage = match site.kind() {
        Kind::Sqlite => LITE,
        Kind::Postgres => POSTGRES,
        Kind::MariaDb | Kind::MySql => MYSQL,
    };
    let rounds = if full_scale() { 300 } else { 40 };
    site.channels(CHANNELS);
    let node = site.serving(&SMALL_SEGMENTS);
    let mut told = Told::default();
    told.post(&node, 1);
    drained(&node);
    let whole = told.reports.len();
    site.sql(breakage.breaks);
    told.post(&node, rounds);
    only_reports_wait(&site, &node, &told);
    node.kill();

    let node = site.serving(&SMALL_SEGMENTS);
    told.post(&node, rounds);
    only_reports_wait(&site, &node, &told);
    assert_same(&site.pairs(breakage.arrived), &told.reports[..whole]);
    site.sql(breakage.mends);
    told.post(&node, 1);
    drained(&node);
    assert_same(&site.pairs(breakage.arrived), &told.reports);
    assert_same(&site.numbers(), &told.raw);
    well(&node);
    assert_nothing_dead(&node, site.path());
}

on_each!(
    a_broken_table_stops_its_channel_alone_and_mended_it_resumes_in_order:
    postgres, sqlite, mariadb, mysql
);
