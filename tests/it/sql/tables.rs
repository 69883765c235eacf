//! Structured channels as tables, with and without a raw copy; and tables that an earlier release
//! made and filled.

use serde_json::{Value, json};

use super::{Kind, SMALL_SEGMENTS, Site, drained, on_each, well};
use crate::cli::{OLD_CHANNELS, lines_with};
use crate::support::Client;

/// The structured example of the documentation; one that only says what it must, in other words; and
/// one of what a text may hold.
const REPORTS: [&str; 3] = [
    r#"{"report_time":"2026-02-19T12:00:00Z","attacker_ip":"1.2.3.4","reporter_ip":"5.6.7.8","service":"ssh","comment":"blocked by firewall"}"#,
    r#"{"service":"smtp","report_time":"2026-02-19T14:30:00.5+02:00","reporter_ip":"10.0.0.0/8","attacker_ip":"2001:DB8::1"}"#,
    r#"{"report_time":"2026-02-19T12:00:02Z","attacker_ip":"1.2.3.4","reporter_ip":"5.6.7.8","service":"tab\there, \\N, \"quoted\", 'single', {brace}\nä","comment":null}"#,
];

/// The columns of `abuse_reports` that are the channel's own, for each of [`REPORTS`].
fn fields() -> [Value; 3] {
    [
        json!({
            "report_time": "2026-02-19 12:00:00.000", "attacker_ip": "1.2.3.4",
            "reporter_ip": "5.6.7.8", "service": "ssh", "comment": "blocked by firewall",
        }),
        json!({
            "report_time": "2026-02-19 12:30:00.500", "attacker_ip": "2001:db8::1",
            "reporter_ip": "10.0.0.0/8", "service": "smtp", "comment": null,
        }),
        json!({
            "report_time": "2026-02-19 12:00:02.000", "attacker_ip": "1.2.3.4",
            "reporter_ip": "5.6.7.8", "comment": null,
            "service": "tab\there, \\N, \"quoted\", 'single', {brace}\nä",
        }),
    ]
}

/// The example channels, the structured one enabled.
fn enabled(store_raw: bool) -> String {
    let text = OLD_CHANNELS.replace("enabled: false", "enabled: true");
    text.replace("store_raw: false", &format!("store_raw: {store_raw}"))
}

fn post_report(client: &mut Client, body: &str) -> u64 {
    let answer = client.post("abuse_reports", "key-abuse-001", body.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.json()["first_seq"].as_u64().unwrap()
}

/// Every row of `abuse_reports`, in order of the seqs.
fn report_rows(site: &Site) -> Vec<Value> {
    let object = site.object();
    let time = match site.kind() {
        Kind::Postgres => "to_char(report_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')",
        Kind::Sqlite => "strftime('%Y-%m-%d %H:%M:%f', report_time)",
        Kind::MariaDb | Kind::MySql => "left(date_format(report_time, '%Y-%m-%d %T.%f'), 23)",
    };
    site.objects(&format!(
        "SELECT {object}('origin_dc', origin_dc, 'origin_seq', origin_seq, \
         'node_name', node_name, 'channel', channel, 'report_time', {time}, \
         'attacker_ip', attacker_ip, 'reporter_ip', reporter_ip, 'service', service, \
         'comment', comment) FROM abuse_reports ORDER BY origin_seq"
    ))
}

/// The canonical columns of a report before its own.
fn row(seq: u64, fields: Value) -> Value {
    let mut row = json!({
        "origin_dc": "dc1", "origin_seq": seq, "node_name": "dc1", "channel": "abuse_reports",
    });
    row.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    row
}

fn reports_stand_as_posted(site: &Site, store_raw: bool) {
    site.channels(&enabled(store_raw));
    let node = site.serving(&[]);
    let mut client = node.client();
    let seqs = REPORTS.map(|body| post_report(&mut client, body));
    drained(&node);
    let want: Vec<Value> = seqs.into_iter().zip(fields()).map(|(s, f)| row(s, f)).collect();
    assert_eq!(report_rows(site), want);

    let raw: Vec<Value> = site.rows().iter().map(|row| row["json_data"].clone()).collect();
    let sent = REPORTS.map(|body| serde_json::from_str::<Value>(body).unwrap());
    assert_eq!(raw, if store_raw { sent.to_vec() } else { Vec::new() });
    let alike = "SELECT count(*) FROM events_raw r JOIN abuse_reports a \
                 ON a.origin_dc = r.origin_dc AND a.origin_seq = r.origin_seq \
                 AND a.node_name = r.node_name AND a.channel = r.channel \
                 AND a.received_at = r.received_at";
    assert_eq!(site.sql(alike), if store_raw { "3" } else { "0" });
    well(&node);
}

fn a_structured_event_stands_in_its_table_as_posted(site: Site) {
    reports_stand_as_posted(&site, false);
}

on_each!(
    a_structured_event_stands_in_its_table_as_posted:
    postgres, sqlite, mariadb, mysql
);

fn a_structured_event_stands_in_its_table_as_posted_with_a_raw_copy_where_asked(site: Site) {
    reports_stand_as_posted(&site, true);
}

on_each!(
    a_structured_event_stands_in_its_table_as_posted_with_a_raw_copy_where_asked:
    postgres, sqlite, mariadb, mysql
);

/// The statements of the old release's documentation, the table of its structured example, rows of
/// that time, and what an operator added since.
const OLD_POSTGRES: &str = "
CREATE SEQUENCE replicon_origin_seq;
CREATE TABLE IF NOT EXISTS events_raw (
  origin_dc    TEXT        NOT NULL,
  origin_seq   BIGINT      NOT NULL DEFAULT nextval('replicon_origin_seq'),
  node_name    TEXT        NOT NULL,
  channel      TEXT        NOT NULL,
  received_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
  json_data    JSONB       NOT NULL,
  PRIMARY KEY (origin_dc, origin_seq)
);
CREATE TABLE IF NOT EXISTS replication_progress (
  peer_dc                  TEXT        NOT NULL,
  channel                  TEXT        NOT NULL,
  last_origin_seq_received BIGINT      NOT NULL DEFAULT 0,
  updated_at               TIMESTAMPTZ NOT NULL,
  PRIMARY KEY (peer_dc, channel)
);
CREATE TABLE IF NOT EXISTS abuse_reports (
  origin_dc    TEXT        NOT NULL,
  origin_seq   BIGINT      NOT NULL DEFAULT nextval('replicon_origin_seq'),
  node_name    TEXT        NOT NULL,
  channel      TEXT        NOT NULL,
  received_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
  report_time  TIMESTAMPTZ NOT NULL,
  attacker_ip  INET        NOT NULL,
  reporter_ip  INET        NOT NULL,
  service      TEXT        NOT NULL,
  comment      TEXT,
  PRIMARY KEY (origin_dc, origin_seq)
);
CREATE INDEX raw_by_hand ON events_raw (channel, received_at);
CREATE INDEX reports_by_hand ON abuse_reports (service, report_time DESC);
ALTER TABLE events_raw ADD COLUMN seen_by_hand BOOLEAN;
ALTER TABLE abuse_reports ADD COLUMN note_by_hand TEXT;
INSERT INTO events_raw (origin_dc, node_name, channel, json_data, seen_by_hand)
  SELECT 'dc1', 'dc1', 'events_raw', jsonb_build_object('old', g), true
  FROM generate_series(1, 100) g;
INSERT INTO abuse_reports (origin_dc, node_name, channel, report_time, attacker_ip, reporter_ip,
    service, note_by_hand)
  SELECT 'dc1', 'dc1', 'abuse_reports', now(), '1.2.3.4', '5.6.7.8', 'ssh', 'note ' || g
  FROM generate_series(1, 10) g;
INSERT INTO replication_progress VALUES ('dc2', 'events_raw', 41, now());
";

/// What stood there before, as one text.
const OLD_POSTGRES_ROWS: &str = "
SELECT md5(string_agg(t::text, ',' ORDER BY origin_seq)) FROM events_raw t WHERE origin_seq < 1000;
SELECT md5(string_agg(t::text, ',' ORDER BY origin_seq)) FROM abuse_reports t
  WHERE origin_seq < 1000;
SELECT * FROM replication_progress WHERE peer_dc = 'dc2';
";

#[test]
fn tables_that_the_old_release_made_in_postgres_and_an_operator_widened_keep_working() {
    let site = Site::postgres();
    site.channels(&enabled(false));
    site.sql(OLD_POSTGRES);
    let before = site.sql(OLD_POSTGRES_ROWS);
    for start in 1..=2 {
        let node = site.serving(&SMALL_SEGMENTS);
        let mut client = node.client();
        assert_eq!(node.post("{\"new\":1}").status, 202);
        let report = post_report(&mut client, REPORTS[0]);
        drained(&node);
        let log = node.log();
        for (table, column) in [("events_raw", "seen_by_hand"), ("abuse_reports", "note_by_hand")] {
            // the log is of all starts together
            let said = lines_with(&log, column);
            assert_eq!(said.len(), start, "one word about {column} at each start: {log}");
            assert!(said[0].contains(" WARN ") && said[0].contains(table), "{log}");
        }
        assert!(!log.contains(" ERROR "), "{log}");
        assert_eq!(report_rows(&site).last(), Some(&row(report, fields()[0].clone())));
        assert_eq!(node.stop().code(), Some(0));
    }
    assert_eq!(site.sql(OLD_POSTGRES_ROWS), before);
    assert_eq!(site.sql("SELECT count(*), count(seen_by_hand) FROM events_raw"), "102|100");
    assert_eq!(site.sql("SELECT count(*), count(note_by_hand) FROM abuse_reports"), "12|10");
    let indexes = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE '%_by_hand'";
    assert_eq!(site.sql(indexes), "2");
}

/// The same in MySQL and MariaDB, as far as the documentation gives its statements: it names no type
/// of a structured channel.
const OLD_MYSQL: &str = "
ALTER DATABASE CHARACTER SET utf8mb4;
CREATE TABLE IF NOT EXISTS events_raw (
  origin_dc    VARCHAR(191) NOT NULL,
  origin_seq   BIGINT       NOT NULL,
  node_name    VARCHAR(191) NOT NULL,
  channel      VARCHAR(191) NOT NULL,
  received_at  DATETIME(6)  NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
  json_data    JSON         NOT NULL,
  PRIMARY KEY (origin_dc, origin_seq)
) ENGINE=InnoDB;
CREATE TABLE IF NOT EXISTS replication_progress (
  peer_dc                  VARCHAR(191) NOT NULL,
  channel                  VARCHAR(191) NOT NULL,
  last_origin_seq_received BIGINT       NOT NULL DEFAULT 0,
  updated_at               DATETIME     NOT NULL,
  PRIMARY KEY (peer_dc, channel)
);
CREATE INDEX raw_by_hand ON events_raw (channel, received_at);
ALTER TABLE events_raw ADD COLUMN seen_by_hand BOOLEAN;
INSERT INTO events_raw (origin_dc, origin_seq, node_name, channel, json_data, seen_by_hand)
  SELECT 'dc1', seq, 'dc1', 'events_raw', json_object('old', seq), true
  FROM (SELECT 1 AS seq UNION SELECT 2 UNION SELECT 3) old;
INSERT INTO replication_progress VALUES ('dc2', 'events_raw', 41, '2026-01-01 00:00:00');
";

const OLD_MYSQL_ROWS: &str = "
SELECT * FROM events_raw WHERE origin_seq < 1000 ORDER BY origin_seq;
SELECT * FROM replication_progress WHERE peer_dc = 'dc2';
";

fn tables_that_the_old_release_made_and_an_operator_widened_keep_working(site: Site) {
    site.sql(OLD_MYSQL);
    let before = site.sql(OLD_MYSQL_ROWS);
    assert_eq!(before.lines().count(), 4, "{before}");
    for start in 1..=2 {
        let node = site.serving(&SMALL_SEGMENTS);
        assert_eq!(node.post("{\"new\":1}").status, 202);
        drained(&node);
        let log = node.log();
        // the log is of all starts together
        let said = lines_with(&log, "seen_by_hand");
        assert_eq!(said.len(), start, "one word about it at each start: {log}");
        assert!(said[0].contains(" WARN ") && said[0].contains("events_raw"), "{log}");
        assert!(!log.contains(" ERROR "), "{log}");
        assert_eq!(node.stop().code(), Some(0));
    }
    assert_eq!(site.sql(OLD_MYSQL_ROWS), before);
    assert_eq!(site.sql("SELECT count(*), count(seen_by_hand) FROM events_raw"), "5|3");
    let indexes = "SELECT count(DISTINCT index_name) FROM information_schema.statistics \
                   WHERE table_schema = database() AND index_name LIKE '%_by_hand'";
    assert_eq!(site.sql(indexes), "1");
}

on_each!(
    tables_that_the_old_release_made_and_an_operator_widened_keep_working:
    mariadb, mysql
);
