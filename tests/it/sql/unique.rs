//! A unique index that somebody made by hand: of two events with one value one is a row and the
//! other a dead letter that names the index; nothing is swallowed.
//!
//! Attacks I6 and I8 (H46, H48).

use std::collections::BTreeSet;

use super::{
    CHANNELS, Kind, Numbered, Site, dead_letters, drained, on_each, post_reports, seqs_of, well,
};

/// The code of its refusal, and the word by which it names what refused.
fn refusal(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        // which does not know the name at that moment
        Kind::Sqlite => ("2067", "reports.n"),
        Kind::Postgres => ("23505", "by_hand"),
        Kind::MariaDb | Kind::MySql => ("1062", "by_hand"),
    }
}

/// Of what was told, each number stands once; the seqs of the others.
fn left_over(site: &Site, told: &[Numbered]) -> BTreeSet<u64> {
    let rows = site.pairs("SELECT origin_seq, n FROM reports ORDER BY origin_seq");
    let stand: BTreeSet<i64> = rows.iter().map(|(_, n)| *n).collect();
    let sent: BTreeSet<i64> = told.iter().map(|(_, n)| *n).collect();
    assert_eq!(stand, sent, "each number stands");
    assert_eq!(rows.len(), stand.len(), "and once: {rows:?}");
    assert!(rows.iter().all(|row| told.contains(row)), "under a seq of its own: {rows:?}");
    let others = told.iter().filter(|event| !rows.contains(event));
    others.map(|(seq, _)| *seq).collect()
}

fn of_two_events_with_one_value_one_is_a_row_and_the_other_names_the_index(site: Site) {
    let (code, word) = refusal(site.kind());
    site.channels(CHANNELS);
    let node = site.serving(&[]);
    let mut client = node.client();
    let mut told = post_reports(&mut client, [0], 1);
    drained(&node);
    site.sql("CREATE UNIQUE INDEX by_hand ON reports (n)");

    // in one batch, beside others
    told.extend(post_reports(&mut client, [1, 777_001, 2, 777_001, 3], 1));
    drained(&node);
    // later, alone and among new ones, with what was stored sent again by a client
    for numbers in [vec![777_001], vec![4, 3, 5], vec![6, 6, 6]] {
        told.extend(post_reports(&mut client, numbers, 1));
        drained(&node);
    }
    let letters = dead_letters(site.path());
    let dead: BTreeSet<u64> = seqs_of(&letters).into_iter().collect();
    assert_eq!(dead, left_over(&site, &told));
    assert_eq!((letters.len(), dead.len()), (5, 5), "each is a dead letter once");
    for letter in &letters {
        assert_eq!(letter["reason"]["code"], code, "{letter}");
        let text = letter["reason"]["text"].as_str().unwrap();
        assert!(text.contains(word), "the index is named: {text}");
        assert!(!text.contains("777"), "no value is shown: {text}");
    }
    assert!(!node.log().contains("777001"), "{}", node.log());
    let health = node.health();
    assert_eq!(health["ingest"]["dead_letter_total"], 5, "{health}");

    // the index is all right: neither the channel nor the storage is in trouble
    told.extend(post_reports(&mut client, [7], 1));
    drained(&node);
    assert_eq!(dead, left_over(&site, &told));
    well(&node);
}

on_each!(
    of_two_events_with_one_value_one_is_a_row_and_the_other_names_the_index:
    postgres, sqlite, mariadb, mysql
);
