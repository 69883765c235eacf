//! Two and three nodes on all databases, all directions at once: the sets are equal at the end.
//!
//! Attacks I9, I10 and I13, and H72 and H81.

use super::{CHANNELS, Cluster, SOON};
use crate::sql::site::Site;
use crate::support::full_scale;

/// Batches to every channel of every node.
fn batches() -> i64 {
    if full_scale() { 200 } else { 12 }
}

fn both_ways(a: Site, b: Site) {
    let mut cluster = Cluster::start(vec![a, b]);
    let each = batches();
    for _ in 0..each {
        cluster.post_everywhere(5);
    }
    cluster.settled(2 * 5 * each);
}

macro_rules! pairs {
    ($($name:ident: $a:ident, $b:ident;)+) => {
        $(
            #[test]
            fn $name() {
                both_ways(Site::$a(), Site::$b());
            }
        )+
    };
}

pairs! {
    sqlite_and_sqlite: sqlite, sqlite;
    sqlite_and_postgres: sqlite, postgres;
    postgres_and_postgres: postgres, postgres;
    sqlite_and_mariadb: sqlite, mariadb;
    sqlite_and_mysql: sqlite, mysql;
    postgres_and_mariadb: postgres, mariadb;
    postgres_and_mysql: postgres, mysql;
    mariadb_and_mysql: mariadb, mysql;
    mariadb_and_mariadb: mariadb, mariadb;
    mysql_and_mysql: mysql, mysql;
}

#[test]
fn three_nodes_on_three_databases() {
    let mut cluster = Cluster::start(vec![Site::sqlite(), Site::postgres(), Site::mariadb()]);
    let each = batches();
    for _ in 0..each {
        cluster.post_everywhere(5);
    }
    cluster.settled(3 * 5 * each);
}

#[test]
fn raw_copies_that_are_turned_on_and_off_half_way_make_no_conflict() {
    let mut cluster = Cluster::start(vec![Site::sqlite(), Site::postgres()]);
    cluster.post_everywhere(20);
    cluster.settled(40);
    // one keeps raw copies of what the other does not, and the other way round
    let swapped = CHANNELS.replace("store_raw: false", "store_raw: half").replace(
        "store_raw: true",
        "store_raw: false",
    );
    cluster.stop(0);
    cluster.members[0].site.channels(&swapped.replace("store_raw: half", "store_raw: true"));
    cluster.begin(0);
    cluster.post_everywhere(20);
    for table in ["reports", "kept"] {
        crate::support::wait_until(SOON, &format!("equal sets in {table}"), || {
            let (a, b) = (cluster.rows(0, table), cluster.rows(1, table));
            if a == b && a.len() == 80 { Ok(()) } else { Err(format!("{} and {}", a.len(), b.len())) }
        });
    }
    for at in 0..2 {
        let conflicts = cluster.members[at].site.sql("SELECT count(*) FROM replicon_conflicts");
        assert_eq!(conflicts, "0");
    }
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
    crate::support::wait_until(SOON, "the events of a disabled channel", || {
        match cluster.rows(1, "reports").len() {
            50 => Ok(()),
            other => Err(format!("{other} rows")),
        }
    });
}
