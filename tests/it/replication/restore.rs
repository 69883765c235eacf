//! Databases and directories that go back: no identity is used twice, nothing is dropped silently, and
//! sets are equal again, by themselves or after `recover`.
//!
//! Attacks I3 and I6, H73 to H76, and R9 of the goals.

use std::path::Path;

use super::{Cluster, SOON};
use crate::sql::site::Site;
use crate::support::proxy::Link;
use crate::support::{replicon, wait_until};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn id_of(cluster: &Cluster, at: usize) -> String {
    cluster.node(at).health()["node_id"].as_str().unwrap().to_owned()
}

/// Keeps a part of dc1's directory, lets it go on, and gives that part back.
fn goes_back(part: &str, cluster: &mut Cluster) -> String {
    cluster.post_everywhere(10);
    cluster.settled(30);
    let id = id_of(cluster, 0);
    let dir = cluster.members[0].site.path().to_owned();
    cluster.stop(0);
    copy(&dir.join(part), &dir.join("kept"));
    cluster.begin(0);
    // dc3 does not see what comes now
    cluster.between(0, 2, Link::Cut);
    cluster.between(1, 2, Link::Cut);
    cluster.post(0, "events_raw", 50);
    wait_until(SOON, "dc2 to have pulled it", || match cluster.rows(1, "events_raw").len() {
        110 => Ok(()),
        other => Err(format!("{other} rows")),
    });
    cluster.stop(0);
    std::fs::remove_dir_all(dir.join(part)).unwrap();
    copy(&dir.join("kept"), &dir.join(part));
    cluster.begin(0);
    cluster.between(0, 2, Link::Open);
    cluster.between(1, 2, Link::Open);
    id
}

fn recover(cluster: &Cluster) {
    let dir = cluster.members[0].site.path();
    let settings = cluster.settings(0);
    let mut command = replicon(dir);
    command.args(["recover", "--from", "dc2"]).args(&settings);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn is_whole_after_recover(part: &str) {
    let mut cluster = Cluster::start(vec![Site::sqlite(), Site::sqlite(), Site::sqlite()]);
    let before = goes_back(part, &mut cluster);
    let after = wait_until(SOON, "another node id", || {
        let id = id_of(&cluster, 0);
        if id == before { Err(id) } else { Ok(id) }
    });
    // what it accepts now has seqs that nobody has seen
    cluster.post(0, "events_raw", 10);
    recover(&cluster);
    let counts = cluster.equal_within(SOON);
    assert_eq!(counts["events_raw"], 60 + 50 + 10, "{counts:?}");
    for at in 0..3 {
        let conflicts = cluster.members[at].site.sql("SELECT count(*) FROM replicon_conflicts");
        assert_eq!(conflicts, "0", "{after}");
    }
}

#[test]
fn a_database_from_an_old_copy_is_whole_again_after_recover() {
    is_whole_after_recover("data/db");
}

#[test]
fn directory_and_database_that_go_back_together_are_whole_again_after_recover() {
    is_whole_after_recover("data");
}
