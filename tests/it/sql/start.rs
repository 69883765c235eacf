//! Starts of a node while its database is down.
//!
//! Attacks I3, I6 and I17.

use std::time::Duration;

use super::{Site, assert_nothing_dead, assert_same, drained, in_trouble, on_each, post, well};
use crate::support::wait_until;

fn a_node_that_has_started_before_accepts_while_its_server_is_down_and_stores_everything_once(
    mut site: Site,
) {
    let node = site.serving(&[]);
    let mut told = post(&mut node.client(), 0..10);
    drained(&node);
    assert_eq!(node.stop().code(), Some(0));

    site.server_mut().stop_orderly();
    let node = site.serving(&[]);
    told.extend(post(&mut node.client(), 10..1_000));
    in_trouble(&node);
    assert_eq!(node.get("/readyz").status, 200, "{}", node.health());
    node.kill();
    let node = site.serving(&[]);
    told.extend(post(&mut node.client(), 1_000..1_010));
    in_trouble(&node);

    site.server_mut().restart();
    drained(&node);
    assert_same(&site.numbers(), &told);
    assert_nothing_dead(&node, site.path());
    well(&node);
}

on_each!(
    a_node_that_has_started_before_accepts_while_its_server_is_down_and_stores_everything_once:
    postgres, mariadb, mysql
);

fn the_first_start_of_all_waits_for_its_server_and_serves_as_soon_as_it_is_there(mut site: Site) {
    site.server_mut().stop_orderly();
    let node = site.start(&[]);
    in_trouble(&node);
    assert_eq!(node.get("/readyz").status, 503);
    assert_eq!(node.post("{\"n\":1}").status, 503);

    site.server_mut().restart();
    wait_until(Duration::from_secs(30), "a node that is ready", || {
        let answer = node.get("/readyz");
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
    let told = post(&mut node.client(), [2]);
    drained(&node);
    assert_same(&site.numbers(), &told);
    well(&node);
}

on_each!(
    the_first_start_of_all_waits_for_its_server_and_serves_as_soon_as_it_is_there:
    postgres, mariadb, mysql
);
