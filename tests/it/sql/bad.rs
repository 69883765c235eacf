//! Events that the database refuses, one in many: exactly they become dead letters, and stay it when
//! the log is read again after what refused them is gone.
//!
//! Attacks I6 and I8.

use serde_json::Value;

use super::{
    CHANNELS, Numbered, Site, assert_same, dead_letters, drained, post, post_reports, seqs_of,
};
use crate::cli::run;
use crate::support::full_scale;

/// How a database is made to refuse negative numbers in `events_raw`.
struct Rule {
    forbid: &'static str,
    allow: &'static str,
    /// What it answers.
    code: &'static str,
}

fn rule(site: &Site) -> Rule {
    match site.server {
        Some(_) => Rule {
            forbid: "ALTER TABLE events_raw ADD CONSTRAINT positive \
                     CHECK ((json_data->>'n')::bigint >= 0)",
            allow: "ALTER TABLE events_raw DROP CONSTRAINT positive",
            code: "23514",
        },
        // which has no other way to add a condition to a table
        None => Rule {
            forbid: "CREATE TRIGGER positive BEFORE INSERT ON events_raw \
                     WHEN json_extract(NEW.json_data, '$.n') < 0 \
                     BEGIN SELECT RAISE(ABORT, 'positive'); END",
            allow: "DROP TRIGGER positive",
            code: "1811",
        },
    }
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
        assert!(text.contains("positive") && !text.contains("Failing row"), "{text}");
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

fn only_the_bad_ones_become_dead_letters_and_stay_it(site: &Site) {
    let rule = rule(site);
    let node = site.serving(&[]);
    let mut client = node.client();
    let mut stored = post(&mut client, [0]);
    drained(&node);
    site.sql(rule.forbid);
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

    site.sql(rule.allow);
    let (again, n) = dead[dead.len() / 2];
    stored.push((retry(site, again), n));
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

#[test]
fn of_bad_events_among_good_ones_in_postgres_only_they_become_dead_letters_and_stay_it() {
    only_the_bad_ones_become_dead_letters_and_stay_it(&Site::postgres());
}

#[test]
fn of_bad_events_among_good_ones_in_sqlite_only_they_become_dead_letters_and_stay_it() {
    only_the_bad_ones_become_dead_letters_and_stay_it(&Site::sqlite());
}

#[test]
fn a_row_that_its_table_refuses_leaves_no_copy_in_events_raw() {
    let site = Site::postgres();
    site.channels(&CHANNELS.replace("store_raw: false", "store_raw: true"));
    let node = site.serving(&[]);
    let mut client = node.client();
    let mut stored = post_reports(&mut client, [0], 1);
    drained(&node);
    site.sql("ALTER TABLE reports ADD CONSTRAINT positive CHECK (n >= 0)");
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
