//! What is MySQL's and MariaDB's alone: the forms of an address, logins, what a session is set to,
//! and what `replicon schema` says of them.
//!
//! Attacks I5, I7 and I19 (H50).

use std::path::Path;
use std::time::Duration;

use super::{
    CHANNELS, DATABASE, Kind, Numbered, Site, assert_nothing_dead, assert_same, both, drained,
    in_trouble, on_each, post, post_items, post_reports, well,
};
use crate::cli::{Ran, lines_with, run};
use crate::http;
use crate::support::mysql::{PASSWORD, USER};
use crate::support::{Node, wait_until};

fn an_address_may_be_written_as_go_writes_it_or_as_a_url(site: Site) {
    let server = site.mysql_server();
    let dsn = server.dsn(DATABASE);
    let mut forms = vec![
        dsn.clone(),
        server.dsn_by_socket(DATABASE),
        format!("{}?parseTime=true", server.dsn_by_socket(DATABASE)),
        server.url(DATABASE),
        format!("{dsn}&tls=preferred"),
    ];
    if site.kind() == Kind::MySql {
        // it has made a certificate for itself
        forms.push(format!("{dsn}&tls=skip-verify"));
    }
    let mut told = Vec::new();
    for (form, n) in forms.iter().zip(0..) {
        let node = http::serving(site.path(), &both(&site.server().settings(form), &[]));
        told.extend(post(&mut node.client(), [n]));
        drained(&node);
        well(&node);
        // the log is of all starts together
        let log = node.log();
        let wrong = lines_with(&log, "storage_mysql_dsn");
        assert!(wrong.iter().all(|line| !line.contains(" WARN ")), "{log}");
        assert!(!log.contains(" ERROR ") && !log.contains(PASSWORD), "{log}");
        assert_eq!(node.stop().code(), Some(0));
    }
    assert_eq!(site.numbers(), told);
}

on_each!(
    an_address_may_be_written_as_go_writes_it_or_as_a_url:
    mariadb_over_tcp, mysql_over_tcp
);

/// The first login of a user needs the password itself, which does not go over a wire in the open.
#[test]
fn a_login_that_needs_tls_says_which_ways_there_are() {
    let site = Site::mysql_over_tcp();
    let server = site.mysql_server();
    let without = format!("{}&tls=false", server.dsn(DATABASE));
    let node = Node::start(site.path(), &both(&site.server().settings(&without), &[]));
    let said = in_trouble(&node);
    for word in ["caching_sha2_password", "tls"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    assert!(!said.contains(PASSWORD), "{said}");
    assert_eq!(node.stop().code(), Some(0));

    let node = site.serving(&[]);
    let told = post(&mut node.client(), [1]);
    drained(&node);
    assert_eq!(site.numbers(), told);
    well(&node);
}

#[test]
fn a_wrong_password_is_trouble_that_ends_when_the_server_takes_it_and_is_never_shown() {
    let site = Site::mariadb_over_tcp();
    let wrong = site.mysql_server().dsn(DATABASE).replace(PASSWORD, "not-the-password");
    let node = Node::start(site.path(), &both(&site.server().settings(&wrong), &[]));
    let said = in_trouble(&node);
    assert!(said.contains("denied"), "{said}");
    site.server().admin(&format!("ALTER USER '{USER}'@'%' IDENTIFIED BY 'not-the-password'"));
    well(&node);
    let said = format!("{}{}", node.log(), node.get("/metrics").body);
    assert!(!said.contains("not-the-password"), "{said}");
}

/// The server's defaults are a zone of its own, no strict mode, latin1 and REPEATABLE READ.
fn a_session_is_in_utc_and_reads_what_is_committed_whatever_the_server_has(site: Site) {
    let node = site.serving(&[]);
    let mut told = post(&mut node.client(), [0]);
    drained(&node);
    let isolation = match site.kind() {
        Kind::MariaDb => "@@session.tx_isolation",
        _ => "@@session.transaction_isolation",
    };
    // whoever may not make triggers where there is a binary log has the superuser do it
    site.server().admin(&format!(
        "USE {DATABASE}; CREATE TABLE seen (zone varchar(50), isolation varchar(50)); \
         CREATE TRIGGER look AFTER INSERT ON events_raw FOR EACH ROW \
         INSERT INTO seen VALUES (@@session.time_zone, {isolation})"
    ));
    for n in 1..=3 {
        told.extend(post(&mut node.client(), [n]));
        drained(&node);
    }
    assert_eq!(site.sql("SELECT DISTINCT zone, isolation FROM seen"), "+00:00|READ-COMMITTED");
    assert_eq!(site.numbers(), told);
}

on_each!(
    a_session_is_in_utc_and_reads_what_is_committed_whatever_the_server_has:
    mariadb, mysql
);

/// Without strict mode a server cuts what is too long for its column, and says nothing.
fn no_text_is_cut_to_fit_a_column_that_somebody_narrowed(site: Site) {
    site.channels(CHANNELS);
    let node = site.serving(&[]);
    let mut client = node.client();
    post_reports(&mut client, [0], 1);
    drained(&node);
    site.sql("ALTER TABLE reports MODIFY place varchar(4) NOT NULL");
    post_reports(&mut client, [1], 10);
    wait_until(Duration::from_secs(30), "a dead letter or a parked channel", || {
        let health = node.health();
        let refused = health["ingest"]["dead_letter_total"] == 1 || health["status"] != "ok";
        if refused { Ok(()) } else { Err(health.to_string()) }
    });
    assert_eq!(site.sql("SELECT count(*) FROM reports WHERE n = 1"), "0", "a part was stored");
}

on_each!(no_text_is_cut_to_fit_a_column_that_somebody_narrowed: mariadb, mysql);

fn what_a_server_does_not_sync_is_shown(site: Site) {
    let node = site.serving(&[]);
    drained(&node);
    let shown = |node: &Node| node.health()["ingest"]["storage_server"].clone();
    assert_eq!(shown(&node)["innodb_flush_log_at_trx_commit"], "1", "{}", shown(&node));
    if site.kind() == Kind::MySql {
        // which has a binary log where nothing else is asked for
        assert_eq!(shown(&node)["sync_binlog"], "1", "{}", shown(&node));
    }
    well(&node);
    assert_eq!(node.stop().code(), Some(0));

    site.server().admin("SET GLOBAL innodb_flush_log_at_trx_commit = 2");
    let node = site.serving(&[]);
    let told = post(&mut node.client(), [1]);
    drained(&node);
    let health = node.health();
    assert_eq!(shown(&node)["innodb_flush_log_at_trx_commit"], "2", "{health}");
    assert_eq!(health["status"], "degraded", "{health}");
    let degraded = health["degraded"].to_string();
    assert!(degraded.contains("innodb_flush_log_at_trx_commit"), "{degraded}");
    assert_eq!(site.numbers(), told, "it is said, and the events are stored");
}

on_each!(what_a_server_does_not_sync_is_shown: mariadb, mysql);

/// Forty events of a megabyte each: in one packet they would end the session every time (H49).
fn batches_stay_below_the_largest_packet_that_the_server_takes(site: Site) {
    // MariaDB's default
    site.server().admin("SET GLOBAL max_allowed_packet = 16777216");
    let node = site.serving(&["--set", "writer_enabled=false"]);
    let mut client = node.client();
    let filling = "x".repeat(1_000_000);
    let event = |n: i64| format!("{{\"n\":{n},\"filling\":\"{filling}\"}}");
    let told: Vec<Numbered> =
        (0..40).map(|n| (post_items(&mut client, "events_raw", &[event(n)]), n)).collect();
    assert_eq!(node.stop().code(), Some(0));
    let node = site.serving(&[]);
    drained(&node);
    assert_same(&site.numbers(), &told);
    assert_nothing_dead(&node, site.path());
    assert!(!node.log().contains(" WARN "), "no session was lost: {}", node.log());
}

on_each!(batches_stay_below_the_largest_packet_that_the_server_takes: mariadb, mysql);

fn a_packet_that_is_too_small_for_one_event_is_named_until_it_is_large_enough(site: Site) {
    site.server().admin("SET GLOBAL max_allowed_packet = 1048576");
    let node = site.start(&[]);
    let said = in_trouble(&node);
    assert!(said.contains("max_allowed_packet"), "{said}");
    site.server().admin("SET GLOBAL max_allowed_packet = 67108864");
    well(&node);
    let told = post(&mut node.client(), [1]);
    drained(&node);
    assert_eq!(site.numbers(), told);
}

on_each!(
    a_packet_that_is_too_small_for_one_event_is_named_until_it_is_large_enough:
    mariadb, mysql
);

fn schema(site: &Site, dir: &Path) -> Ran {
    let settings = site.settings();
    run(dir, &both(&settings, &["schema"]))
}

fn schema_prints_what_a_start_would_run_and_the_difference_beside_a_database(site: Site) {
    let dir = tempfile::tempdir().unwrap();
    let ran = schema(&site, dir.path());
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("CREATE TABLE IF NOT EXISTS `events_raw`"), "{}", ran.out);
    assert_eq!(site.sql("SHOW TABLES"), "", "it only looks");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let node = site.serving(&[]);
    let index = "SELECT count(*) FROM information_schema.statistics WHERE table_schema = \
                 database() AND index_name = 'events_raw_origin_channel_seq' AND seq_in_index = 1";
    wait_until(Duration::from_secs(30), "the index that is built beside", || {
        let count = site.sql(index);
        if count == "1" { Ok(()) } else { Err(count) }
    });
    assert_eq!(node.stop().code(), Some(0));
    let ran = schema(&site, dir.path());
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert_eq!(ran.out, "-- nothing to do: the database has what a start needs\n");

    site.sql("ALTER TABLE events_raw ADD COLUMN note text");
    site.sql("ALTER TABLE events_raw DROP INDEX events_raw_origin_channel_seq");
    let ran = schema(&site, dir.path());
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    let extra = "-- events_raw has more, which is left alone: column note";
    assert!(ran.out.contains(extra), "{}", ran.out);
    assert!(ran.out.contains("`events_raw_origin_channel_seq`"), "{}", ran.out);
    site.sql("ALTER TABLE events_raw DROP COLUMN node_name");
    let ran = schema(&site, dir.path());
    assert_eq!(ran.code, Some(2), "{}{}", ran.out, ran.err);
    let misfit = "table events_raw does not fit: column node_name is missing";
    assert!(ran.err.contains(misfit), "{}", ran.err);
}

on_each!(
    schema_prints_what_a_start_would_run_and_the_difference_beside_a_database:
    mariadb, mysql
);
