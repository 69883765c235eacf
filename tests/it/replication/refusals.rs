//! What is refused, on both sides, and that the rest goes on: each with one clear line, a red entry,
//! and the cursor where it was.
//!
//! Attacks I11, H77, H79 and H82.

use std::path::Path;

use super::{CHANNELS, Cluster, SOON, TOKEN, ask};
use crate::cli::write;
use crate::sql::site::Site;
use crate::support::{Node, replicon, wait_until};

fn serving(site: &Site, more: &[&str]) -> Node {
    site.channels(CHANNELS);
    site.serving(more)
}

#[test]
fn peers_are_served_by_the_table_of_the_spec() {
    let site = Site::sqlite();
    let token = format!("replication_token={TOKEN}");
    // pulling is off: serving is not
    let node = serving(&site, &["--set", &token, "--set", "node_name=dc1"]);
    assert_eq!(node.post("[{\"n\":1},{\"n\":2},{\"n\":3}]").status, 202);
    node.wait_drained();
    let events = "/internal/events?channel=events_raw&from_seq=0";
    // nothing is served before the node's own history is settled
    wait_until(SOON, "a settled history", || match ask(&node, events, Some(TOKEN)) {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.body),
    });
    for (path, token, status) in [
        (events, None, 401),
        (events, Some("wrong"), 401),
        (events, Some(""), 401),
        (events, Some(TOKEN), 200),
        ("/internal/changes", None, 401),
        ("/internal/schema?channel=reports", None, 401),
        ("/internal/events?channel=nobody&from_seq=0", Some(TOKEN), 404),
        ("/internal/events?from_seq=0", Some(TOKEN), 400),
        ("/internal/events?channel=events_raw&from_seq=x", Some(TOKEN), 400),
        ("/internal/events?channel=events_raw&from_seq=0&limit=0", Some(TOKEN), 400),
        ("/internal/events?channel=events_raw&from_seq=0&limit=-1", Some(TOKEN), 400),
        ("/internal/events?channel=events_raw&from_seq=0&limit=1e3", Some(TOKEN), 400),
        ("/internal/schema?channel=nobody", Some(TOKEN), 404),
        ("/internal/schema?channel=reports", Some(TOKEN), 200),
        ("/internal/nothing", Some(TOKEN), 404),
    ] {
        let answer = ask(&node, path, token);
        assert_eq!(answer.status, status, "{path} {token:?}: {}", answer.body);
    }
    let posted = node.client().request("POST", events, &[("x-replicon-token", TOKEN)], Some(b""));
    assert_eq!(posted.unwrap().status, 405);

    // an answer says to which request, and is kept by nobody on the way
    let turn = [("x-replicon-token", TOKEN), ("x-replicon-turn", "7")];
    let answer = node.client().request("GET", events, &turn, None).unwrap();
    let told = |name: &str| answer.header(name);
    assert_eq!((told("x-replicon-turn"), told("cache-control")), (Some("7"), Some("no-store")));

    let page = wait_until(SOON, "three events", || {
        let page = ask(&node, events, Some(TOKEN)).json();
        if page["events"].as_array().unwrap().len() == 3 { Ok(page) } else { Err(page.to_string()) }
    });
    let seq = |at: usize| page["events"][at]["origin_seq"].as_u64().unwrap();
    assert_eq!((&page["channel"], &page["origin"]), (&"events_raw".into(), &"dc1".into()));
    // `from_seq` is inclusive
    let path = format!("/internal/events?channel=events_raw&from_seq={}&limit=1", seq(1));
    let one = ask(&node, &path, Some(TOKEN)).json();
    assert_eq!(one["events"].as_array().unwrap().len(), 1);
    assert_eq!(one["events"][0]["origin_seq"], seq(1));
    assert_eq!(one["next_seq"], seq(1) + 1);
    let row = &one["events"][0];
    assert_eq!(row["json_data"]["n"], 2);
    assert_eq!((&row["origin_dc"], &row["node_name"]), (&"dc1".into(), &"dc1".into()));
}

#[test]
fn without_a_token_there_is_no_such_route() {
    let site = Site::sqlite();
    let node = serving(&site, &[]);
    for path in ["/internal/events?channel=events_raw&from_seq=0", "/internal/changes"] {
        assert_eq!(ask(&node, path, Some("any")).status, 404, "{path}");
        assert_eq!(ask(&node, path, None).status, 404, "{path}");
    }
}

/// What `check` says of a configuration that must be refused.
fn refused(dir: &Path, settings: &[&str]) -> String {
    let mut command = replicon(dir);
    command.arg("check");
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[test]
fn a_configuration_that_cannot_replicate_names_the_key_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let token = format!("replication_token={TOKEN}");
    let peer = "replication_peer=dc2=http://127.0.0.1:1";
    let on = ["replication_enabled=true", "node_name=dc1", &token, peer];
    for backend in ["file", "noop"] {
        let backend = format!("storage_backend={backend}");
        let mut settings = on.to_vec();
        settings.push(&backend);
        let said = refused(dir.path(), &settings);
        assert!(said.contains("storage_backend"), "{said}");
        assert!(said.contains("sqlite") && said.contains("postgres"), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
    for (settings, key) in [
        (vec!["replication_enabled=true", "node_name=dc1", &token], "replication_peer"),
        (vec!["replication_enabled=true", "node_name=dc1", peer], "replication_token"),
        (vec!["replication_enabled=true", &token, peer], "node_name"),
        (vec!["replication_enabled=true", "node_name=dc2", &token, peer], "replication_peer"),
    ] {
        let said = refused(dir.path(), &settings);
        assert!(said.contains(key), "{settings:?}: {said}");
    }
    let unique = format!("{CHANNELS}    indexes:\n      - unique: true\n        columns: [n]\n");
    write(dir.path(), "conf/channels.yml", &unique);
    let said = refused(dir.path(), &on);
    assert!(said.contains("kept") && said.contains("unique"), "{said}");
}

#[test]
fn a_peer_of_another_name_is_not_followed() {
    let mut cluster = Cluster::stopped(vec![Site::sqlite(), Site::sqlite()]);
    cluster.begin(1);
    cluster.post(1, "events_raw", 5);
    cluster.members[1].name = "dc9".to_owned();
    cluster.begin(0);
    wait_until(SOON, "the reason", || {
        let peer = cluster.peer(0, "dc9");
        let reason = peer["reason"].as_str().unwrap_or_default();
        let told = reason.contains("dc2") && reason.contains("replication_peer");
        if told { Ok(()) } else { Err(peer.to_string()) }
    });
    assert_eq!(cluster.node(0).health()["status"], "degraded");
    assert_eq!(cluster.rows(0, "events_raw").len(), 0);
    let cursors = cluster.members[0].site.sql("SELECT count(*) FROM replication_progress");
    assert_eq!(cursors, "0");
}

#[test]
fn a_channel_that_does_not_fit_or_is_missing_waits_and_the_others_go_on() {
    let mut cluster = Cluster::stopped(vec![Site::sqlite(), Site::sqlite()]);
    // another type for a column here, and a channel less there
    cluster.members[0].site.channels(&CHANNELS.replace("n: bigint", "n: text"));
    let lacking = CHANNELS.split("  kept:\n").next().unwrap();
    cluster.members[1].site.channels(lacking);
    cluster.begin(0);
    cluster.begin(1);
    cluster.post(1, "reports", 5);
    cluster.post(1, "events_raw", 5);
    let reason = cluster.stands(0, "dc2", "reports", "paused");
    assert!(reason.contains("n bigint"), "{reason}");
    let reason = cluster.stands(0, "dc2", "kept", "paused");
    assert!(reason.contains("404"), "{reason}");
    wait_until(SOON, "the channel that fits", || match cluster.rows(0, "events_raw").len() {
        5 => Ok(()),
        other => Err(format!("{other} rows")),
    });
    assert_eq!(cluster.rows(0, "reports").len(), 0);
    let cursors = "SELECT count(*) FROM replication_progress WHERE channel <> 'events_raw'";
    assert_eq!(cluster.members[0].site.sql(cursors), "0");
    assert_eq!(cluster.node(0).health()["status"], "degraded");
}
