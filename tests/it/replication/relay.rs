//! An origin that is gone for good after one of two peers had pulled: the third node gets all of it
//! from that peer, what it holds in quarantine included.
//!
//! Attacks I13, H69 and H70.

use std::collections::BTreeSet;

use super::{Cluster, SOON};
use crate::sql::site::Site;
use crate::support::proxy::Link;
use crate::support::wait_until;

#[test]
fn a_third_node_gets_all_events_of_a_dead_origin_from_the_one_that_had_pulled() {
    let mut cluster = Cluster::start(vec![Site::sqlite(), Site::sqlite(), Site::sqlite()]);
    cluster.post_everywhere(5);
    cluster.settled(15);
    // dc2 cannot store one row, whatever it does
    cluster.members[1].site.sql(
        "CREATE TRIGGER refuses BEFORE INSERT ON reports WHEN NEW.place = 'nowhere' \
         BEGIN SELECT RAISE(ABORT, 'refused'); END",
    );
    cluster.between(0, 2, Link::Cut);
    let body = "[{\"n\":901,\"place\":\"here\"},{\"n\":902,\"place\":\"nowhere\"},{\"n\":903}]";
    let answer = cluster.node(0).client().post("reports", super::KEY, body.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    wait_until(SOON, "a row in quarantine", || {
        let count = cluster.members[1].site.sql("SELECT count(*) FROM replicon_quarantine");
        if count == "1" { Ok(()) } else { Err(count) }
    });
    wait_until(SOON, "the rows around it", || {
        let numbers: BTreeSet<i64> = cluster.rows(1, "reports").into_iter().map(|r| r.2).collect();
        let there = numbers.contains(&901) && numbers.contains(&903) && !numbers.contains(&902);
        if there { Ok(()) } else { Err(format!("{numbers:?}")) }
    });
    cluster.kill(0);
    wait_until(SOON, "all of them at the third node", || {
        let numbers: BTreeSet<i64> = cluster.rows(2, "reports").into_iter().map(|r| r.2).collect();
        if [901, 902, 903].iter().all(|n| numbers.contains(n)) {
            Ok(())
        } else {
            Err(format!("{numbers:?}; {}", cluster.node(2).log()))
        }
    });
}
