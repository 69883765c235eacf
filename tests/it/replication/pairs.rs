//! Two and three nodes on all databases, all directions at once: the sets are equal at the end, by
//! identity and by content.
//!
//! Attacks I9, I10, I12 and I13, and H72 and H81.

use super::{CHANNELS, Cluster, Contents, SOON, Servers, side_by_side};
use crate::sql::site::{Kind, Site};
use crate::support::{full_scale, wait_until};

/// So many pairs at once.
const WIDTH: usize = 4;
const KINDS: [Kind; 4] = [Kind::Postgres, Kind::MariaDb, Kind::MySql, Kind::Sqlite];
/// Where the events of each channel stand whatever is kept of raw copies.
const OWN: [&str; 3] = ["events_raw WHERE channel = 'events_raw'", "reports", "kept"];
const COPIES: &str = "events_raw WHERE channel <> 'events_raw'";

/// Batches to every channel of every node, and events in each.
fn batches() -> i64 {
    if full_scale() { 100 } else { 6 }
}
const BATCH: i64 = 5;

/// Raw copies of what had none, and none of what had.
fn turned() -> String {
    let lacking = CHANNELS.replace("store_raw: true", "store_raw: no");
    let turned = lacking.replace("store_raw: false", "store_raw: true");
    turned.replace("store_raw: no", "store_raw: false")
}

/// Half of it, then one node turns its raw copies while the rest is under way, then the other half.
fn both_ways(a: Site, b: Site) {
    let mut cluster = Cluster::start(vec![a, b]);
    for _ in 0..batches() {
        cluster.post_everywhere(BATCH);
    }
    cluster.stop(0);
    cluster.members[0].site.channels(&turned());
    cluster.begin(0);
    for _ in 0..batches() {
        cluster.post_everywhere(BATCH);
    }
    let each = usize::try_from(2 * 2 * batches() * BATCH).unwrap();
    // what a node has answered for it stores itself, and sets that are equal hold that of both
    let counts = cluster.equal_in(&OWN, SOON);
    cluster.nothing_aside();
    assert!(counts.values().all(|n| *n == each), "{counts:?} of {each}; {}", cluster.tail(0));
    raw_copies_follow_the_configuration_of_their_node(&cluster, each);
}

/// The identities of copies of one channel.
fn of<'a>(copies: &'a Contents, channel: &str) -> Vec<&'a (String, u64)> {
    let word = format!(" {channel} ");
    copies.iter().filter(|(_, content)| content.contains(&word)).map(|(id, _)| id).collect()
}

fn raw_copies_follow_the_configuration_of_their_node(cluster: &Cluster, each: usize) {
    let (first, second) = (cluster.contents(0, COPIES), cluster.contents(1, COPIES));
    // the second node never turned: all of `kept`, and nothing of `reports`
    assert_eq!((of(&second, "kept").len(), of(&second, "reports").len()), (each, 0));
    // the first one kept what came of one before it turned, and what came of the other since
    let (kept, reports) = (of(&first, "kept"), of(&first, "reports"));
    let own = each / 4;
    assert!((own..=2 * own).contains(&kept.len()), "{} of {each} copies of kept", kept.len());
    assert!((2 * own..=3 * own).contains(&reports.len()), "{} of {each} of reports", reports.len());
    for id in kept {
        assert_eq!(first.get(id), second.get(id), "{id:?}");
    }
}

#[test]
fn every_ordered_pair_of_databases_ends_with_equal_sets() {
    let servers = Servers::held();
    let mut pairs = Vec::new();
    for (at, a) in KINDS.into_iter().enumerate() {
        // both directions of a pair are pulled at once; a kind with itself is a pair too
        for b in &KINDS[at..] {
            pairs.push((format!("{a:?} and {b:?}"), (a, *b)));
        }
    }
    assert_eq!(pairs.len(), 10);
    side_by_side(WIDTH, &pairs, |(a, b)| both_ways(servers.site(*a), servers.site(*b)));
}

#[test]
fn three_nodes_on_three_databases_end_with_equal_sets() {
    let servers = Servers::held();
    let all = [
        [Kind::Sqlite, Kind::Postgres, Kind::MariaDb],
        [Kind::Postgres, Kind::MySql, Kind::Sqlite],
    ];
    let all = all.map(|kinds| (format!("{kinds:?}"), kinds));
    side_by_side(all.len(), &all, |kinds| {
        let mut cluster = Cluster::start(kinds.map(|kind| servers.site(kind)).into());
        for _ in 0..2 * batches() {
            cluster.post_everywhere(BATCH);
        }
        cluster.settled(3 * 2 * batches() * BATCH);
        cluster.nothing_aside();
    });
}

#[test]
fn a_channel_that_is_disabled_is_pulled_to_its_end() {
    let mut cluster = Cluster::stopped(vec![Site::sqlite(), Site::sqlite()]);
    cluster.begin(0);
    cluster.post(0, "reports", 50);
    cluster.node(0).wait_drained();
    cluster.stop(0);
    let disabled = CHANNELS.replace("  reports:\n", "  reports:\n    enabled: false\n");
    cluster.members[0].site.channels(&disabled);
    cluster.begin(0);
    cluster.begin(1);
    wait_until(SOON, "the events of a disabled channel", || match cluster.count(1, "reports") {
        50 => Ok(()),
        other => Err(format!("{other} rows")),
    });
    assert_eq!(cluster.contents(1, "reports"), cluster.contents(0, "reports"));
}
