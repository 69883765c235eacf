//! `queue_backend` turned while events wait: refused with their number, in both directions, and done
//! when the other has drained (H80).
//!
//! Attacks I2 and I6.

use super::{Site, both, drained, post};
use crate::http;
use crate::support::Node;
use crate::support::redis::{Kind, Redis};

const IDLE: [&str; 2] = ["--set", "writer_enabled=false"];
const FILE: [&str; 2] = ["--set", "queue_backend=file"];

/// A node on the file log, in the same directory, which knows where its Redis was.
fn on_file(site: &Site, more: &[&str]) -> Node {
    let settings = site.settings();
    http::serving(site.path(), &both(&settings, &[&FILE[..], more].concat()))
}

#[test]
fn events_in_the_file_log_keep_a_node_off_redis_until_they_are_stored() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let node = on_file(&site, &IDLE);
    let mut told = post(&mut node.client(), 0..1000);
    assert_eq!(node.stop().code(), Some(0));
    let log = site.refused(&[]);
    assert!(
        log.contains("queue_backend = redis, and 1000 events of this node still wait"),
        "{log}"
    );
    assert!(log.contains("set queue_backend = file"), "the remedy: {log}");

    let node = on_file(&site, &[]);
    drained(&node);
    assert_eq!(node.stop().code(), Some(0));
    let node = site.serving(&[]);
    told.extend(post(&mut node.client(), 1000..1005));
    drained(&node);
    assert_eq!(site.numbers(), told, "in one order, whatever the backend");
}

#[test]
fn events_in_redis_keep_a_node_off_the_file_log_until_they_are_stored() {
    let mut site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&IDLE);
    let mut told = post(&mut node.client(), 0..1000);
    assert_eq!(node.stop().code(), Some(0));
    let log = site.refused(&FILE);
    assert!(log.contains("queue_backend = file, and 1000 events of this node still wait"), "{log}");
    assert!(log.contains("set queue_backend = redis"), "the remedy: {log}");
    site.redis.kill();
    let log = site.refused(&FILE);
    assert!(log.contains("cannot be asked whether any still wait"), "{log}");
    site.redis.restart();

    let node = site.serving(&[]);
    drained(&node);
    assert_eq!(node.stop().code(), Some(0));
    // nothing waits there any more: it need not even be reached
    site.redis.kill();
    let node = on_file(&site, &[]);
    told.extend(post(&mut node.client(), 1000..1005));
    drained(&node);
    assert_eq!(site.numbers(), told);
}

#[test]
fn a_stream_that_holds_events_is_not_left_for_another() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&IDLE);
    post(&mut node.client(), 0..7);
    assert_eq!(node.stop().code(), Some(0));
    let log = site.refused(&["--set", "queue_redis_stream=elsewhere"]);
    assert!(log.contains("7 events of this node were waiting in 0/replicon:ingest"), "{log}");
}
