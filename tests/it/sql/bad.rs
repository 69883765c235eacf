//! Events that the database refuses, one in many: exactly they become dead letters, and stay it when
//! the log is read again after what refused them is gone.
//!
//! Attacks I6 and I8.

use serde_json::Value;

use super::{
    CHANNELS, Kind, Numbered, Site, assert_same, dead_letters, drained, on_each, post,
    post_reports, seqs_of,
};
use crate::cli::run;
use crate::support::full_scale;

/// How a database is made to refuse negative numbers.
struct Rule {
    forbid: String,
    allow: String,
    /// What it answers.
    code: &'static str,
}

/// For a table, whose number is this expression.
fn rule(kind: Kind, table: &str, n: &str) -> Rule {
    if kind == Kind::Sqlite {
        // which has no other way to add a condition to a table
        let forbid = format!(
            "CREATE TRIGGER positive BEFORE INSERT ON {table} WHEN {} < 0 \
             BEGIN SELECT RAISE(ABORT, 'positive'); END",
            n.replace("json_data", "NEW.json_data")
        );
        return Rule { forbid, allow: "DROP TRIGGER positive".to_owned(), code: "1811" };
    }
    Rule {
        forbid: format!("ALTER TABLE {table} ADD CONSTRAINT positive CHECK ({n} >= 0)"),
        allow: format!("ALTER TABLE {table} DROP CONSTRAINT positive"),
        code: match kind {
            Kind::MariaDb => "4025",
            Kind::MySql => "3819",
            Kind::Postgres | Kind::Sqlite => "23514",
        },
    }
}

/// For `events_raw`.
fn raw_rule(kind: Kind) -> Rule {
    let n = match kind {
        Kind::Postgres => "(json_data->>'n')::bigint",
        Kind::Sqlite | Kind::MariaDb | Kind::MySql => "json_extract(json_data, '$.n')",
    };
    rule(kind, "events_raw", n)
}

/// Numbers of which one in so many is negative.
fn numbers(from: i64, to: i64, one_in: i64) -> impl Iterator<Item = i64> {
    (from..to).map(move |n| if n % one_in == one_in / 2 { -n } else { n })
}

/// Those that must be stored, and those that must not.
fn sorted(told: Vec<Numbered>) -> (Vec<Numbered>, Vec<Numbered>) {
    told.into_iter().partition(|(_, n)| *n >= 0)
}

/// The dead letters are these and no others, each with its reason and without a value.
fn check_letters(letters: &[Value], dead: &[Numbered], code: &str) {
    assert_eq!(seqs_of(letters), dead.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
    for letter in letters {
        assert_eq!((&letter["state"], &letter["channel"]), (&"dead".into(), &"events_raw".into()));
        assert_eq!(letter["reason"]["code"], code, "{letter}");
        let text = letter["reason"]["text"].as_str().unwrap();
        // what a trigger says may hold a value
        let named = if code == "1811" { "a trigger refuses it" } else { "positive" };
        assert!(text.contains(named) && !text.contains("Failing row"), "{text}");
    }
}

/// Puts one dead letter back; its new seq.
fn retry(site: &Site, seq: u64) -> u64 {
    let ran = run(site.path(), &["dlq", "retry", &seq.to_string()]);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.out, ran.err);
    let new =
        ran.out.lines().find_map(|line| line.strip_prefix(&format!("{seq} was put back as ")));
    new.unwrap_or_else(|| panic!("{}", ran.out)).parse().unwrap()
}

fn of_bad_events_among_good_ones_only_they_become_dead_letters_and_stay_it(site: Site) {
    let rule = raw_rule(site.kind());
    let node = site.serving(&[]);
    let mut client = node.client();
    let mut stored = post(&mut client, [0]);
    drained(&node);
    site.sql(&rule.forbid);
    let mut dead = Vec::new();
    let many = if full_scale() { 100_000 } else { 2_000 };
    for (events, one_in) in [(10_000, 10_000), (many, 100)] {
        for from in (0..events).step_by(1_000) {
            let (good, bad) = sorted(post(&mut client, numbers(from, from + 1_000, one_in)));
            stored.extend(good);
            dead.extend(bad);
        }
    }
    assert_eq!(i64::try_from(dead.len()).unwrap(), 1 + many / 100);
    drained(&node);
    assert_same(&site.numbers(), &stored);
    let (health, metrics) = (node.health(), node.get("/metrics").body);
    assert_eq!(health["ingest"]["dead_letter_total"], dead.len(), "{health}");
    let name = "replicon_events_dead_lettered_total{channel=\"events_raw\"}";
    assert!(metrics.contains(&format!("{name} {}\n", dead.len())), "{metrics}");
    check_letters(&dead_letters(site.path()), &dead, rule.code);

    site.sql(&rule.allow);
    let (again, n) = dead[dead.len() / 2];
    stored.push((retry(&site, again), n));
    drained(&node);
    assert_same(&site.numbers(), &stored);
    assert_eq!(node.stop().code(), Some(0));

    // the whole log is read again, and nothing refuses them any more
    std::fs::remove_file(site.path().join("data/queue/ingest.ack")).unwrap();
    let node = site.serving(&[]);
    drained(&node);
    let health = node.health();
    assert_ne!(health["ingest"]["recovered_total"], 0, "nothing was read again: {health}");
    assert_same(&site.numbers(), &stored);
    let letters = dead_letters(site.path());
    let redriven = letters.iter().filter(|letter| letter["state"] == "redriven");
    let redriven: Vec<u64> = redriven.map(|letter| letter["seq"].as_u64().unwrap()).collect();
    assert_eq!((letters.len(), redriven), (dead.len(), vec![again]));
}

on_each!(
    of_bad_events_among_good_ones_only_they_become_dead_letters_and_stay_it:
    postgres, sqlite, mariadb, mysql
);

fn a_row_that_its_table_refuses_leaves_no_copy_in_events_raw(site: Site) {
    let n = if site.kind() == Kind::Sqlite { "NEW.n" } else { "n" };
    let rule = rule(site.kind(), "reports", n);
    site.channels(&CHANNELS.replace("store_raw: false", "store_raw: true"));
    let node = site.serving(&[]);
    let mut client = node.client();
    let mut stored = post_reports(&mut client, [0], 1);
    drained(&node);
    site.sql(&rule.forbid);
    let (good, bad) = sorted(post_reports(&mut client, numbers(1, 301, 100), 1));
    assert_eq!(bad.len(), 3);
    stored.extend(good);
    drained(&node);
    let reports = site.pairs("SELECT origin_seq, n FROM reports ORDER BY origin_seq");
    assert_same(&reports, &stored);
    assert_same(&site.numbers(), &stored);
    let seqs = seqs_of(&dead_letters(site.path()));
    assert_eq!(seqs, bad.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
}

on_each!(
    a_row_that_its_table_refuses_leaves_no_copy_in_events_raw:
    postgres, sqlite, mariadb, mysql
);
