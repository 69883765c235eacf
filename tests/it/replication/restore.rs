//! Databases and directories that go back or are gone: no identity is used twice, nothing is dropped
//! silently, and sets are equal again, by themselves or after `recover`.
//!
//! Attacks I3 and I6, H73 to H77, and R9 of the goals.

use std::path::{Path, PathBuf};

use super::{CHANNELS, Cluster, SOON, TOKEN, ask};
use crate::sql::site::Site;
use crate::support::proxy::Link;
use crate::support::{KEY, Node, replicon, wait_until};

/// The rows of the node that loses something.
const OF_DC1: &str = "events_raw WHERE origin_dc = 'dc1'";

/// What happens to dc1 while it does not run.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// This part of its directory is again what it was.
    Back(&'static str),
    /// This part of its directory is gone.
    Wiped(&'static str),
    /// Its database on a server is again what it was.
    Dump,
    /// The whole server is.
    Server,
}

impl Loss {
    /// Whether events of dc1 are gone at dc1.
    fn of_events(self) -> bool {
        !matches!(self, Self::Back("data/queue") | Self::Wiped("data/queue"))
    }

    /// Remembers how it is.
    fn keep(self, site: &mut Site) {
        match self {
            Self::Back(part) => copy(&site.path().join(part), &site.path().join("kept")),
            Self::Wiped(_) => {}
            Self::Dump => {
                nobody_there(site);
                site.server().admin("CREATE DATABASE kept TEMPLATE replicon");
            }
            Self::Server => {
                let (data, kept) = data_of(site);
                site.server_mut().stop_orderly();
                copy_data(&data, &kept);
                site.server_mut().restart();
            }
        }
    }

    fn strike(self, site: &mut Site) {
        let dir = site.path();
        match self {
            Self::Back(part) => {
                std::fs::remove_dir_all(dir.join(part)).unwrap();
                copy(&dir.join("kept"), &dir.join(part));
            }
            Self::Wiped(part) => {
                std::fs::remove_dir_all(dir.join(part)).unwrap();
                if !self.of_events() {
                    // nobody has written there for a while, so that another directory may
                    site.sql("UPDATE replicon_released SET released_seq = 1 WHERE channel = ''");
                }
            }
            Self::Dump => {
                nobody_there(site);
                site.server().admin("DROP DATABASE replicon");
                site.server().admin("CREATE DATABASE replicon TEMPLATE kept OWNER replicon");
            }
            Self::Server => {
                let (data, kept) = data_of(site);
                site.server_mut().kill();
                std::fs::remove_dir_all(&data).unwrap();
                copy_data(&kept, &data);
                site.server_mut().restart();
            }
        }
    }
}

/// Where a server keeps its data, and where a copy of it lies.
fn data_of(site: &Site) -> (PathBuf, PathBuf) {
    let dir = site.server().directory();
    (dir.join("data"), dir.join("kept"))
}

/// A database that somebody uses can be neither copied nor dropped.
fn nobody_there(site: &Site) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'replicon'";
    wait_until(SOON, "a database that nobody uses", || match site.server().admin(sessions) {
        count if count.trim() == "0" => Ok(()),
        other => {
            site.server().end_sessions();
            Err(other)
        }
    });
}

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

/// Until the log of dc1 holds nothing but what came last: an event that only the database has is not
/// written again from there.
fn log_is_short(site: &Site) {
    let queue = site.path().join("data/queue");
    wait_until(SOON, "a log of one segment", || {
        let names = std::fs::read_dir(&queue).unwrap().map(|entry| entry.unwrap().file_name());
        let segments: Vec<String> = names
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| {
                let number = name.rsplit('.').next().unwrap_or_default();
                number.len() == 20 && !name.contains(".dead.")
            })
            .collect();
        if segments.len() == 1 { Ok(()) } else { Err(format!("{segments:?}")) }
    });
}

/// Until a node holds so many events of dc1.
fn has_of_dc1(cluster: &Cluster, at: usize, due: usize) {
    let what = format!("{due} events of dc1 at {}", cluster.members[at].name);
    wait_until(SOON, &what, || match cluster.count(at, OF_DC1) {
        count if count == due => Ok(()),
        other => Err(format!("{other}; {}", cluster.tail(at))),
    });
}

/// Runs it at dc1, as soon as that knows which seqs it gives out; what it printed.
fn recover(cluster: &Cluster) -> String {
    let dir = cluster.members[0].site.path();
    let settings = cluster.settings(0);
    wait_until(SOON, "a recover that is done", || {
        let mut command = replicon(dir);
        command.args(["recover", "--from", "dc2"]).args(&settings);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        assert!(said.contains("not settled yet"), "{said}");
        Err(said)
    })
}

/// dc1 accepts, what both others have seen first, then what dc2 alone has seen; then it loses some of
/// that, and goes on. It gets it back from dc2, and dc3 gets it from dc1.
fn drill(dc1: Site, loss: Loss) {
    let mut cluster = Cluster::start(vec![dc1, Site::sqlite(), Site::sqlite()]);
    cluster.post_everywhere(10);
    cluster.settled(30);
    cluster.stop(0);
    loss.keep(&mut cluster.members[0].site);
    cluster.begin(0);
    let before = id_of(&cluster, 0);
    cluster.post(0, "events_raw", 20);
    // of ten events of `kept` there is a copy
    has_of_dc1(&cluster, 1, 10 + 10 + 20);
    has_of_dc1(&cluster, 2, 10 + 10 + 20);
    cluster.between(0, 2, Link::Cut);
    cluster.between(1, 2, Link::Cut);
    cluster.post(0, "events_raw", 30);
    has_of_dc1(&cluster, 1, 40 + 30);
    // of what is lost the log holds the last five events, and no others
    cluster.stop(0);
    cluster.begin(0);
    cluster.post(0, "events_raw", 5);
    has_of_dc1(&cluster, 1, 40 + 30 + 5);
    log_is_short(&cluster.members[0].site);
    cluster.stop(0);
    loss.strike(&mut cluster.members[0].site);
    cluster.begin(0);

    let after = wait_until(SOON, "another node id", || {
        let id = id_of(&cluster, 0);
        if id == before { Err(id) } else { Ok(id) }
    });
    // what it accepts from here on has seqs that nobody has seen
    cluster.post(0, "events_raw", 10);
    let said = recover(&cluster);
    has_of_dc1(&cluster, 0, 75 + 10);
    if loss.of_events() {
        assert!(said.contains("put back: ") && said.contains("a new node id"), "{said}");
        assert_ne!(id_of(&cluster, 0), after, "others must read again what came back");
    } else {
        assert!(said.contains("nothing is missing here"), "{said}");
        assert_eq!(id_of(&cluster, 0), after);
    }
    // dc3 had read beyond what was gone: it gets all of it, and from dc1 alone
    cluster.between(0, 2, Link::Open);
    has_of_dc1(&cluster, 2, 75 + 10);
    cluster.between(1, 2, Link::Open);
    let counts = cluster.equal_within(SOON);
    assert_eq!(counts["events_raw"], 60 + 20 + 30 + 5 + 10, "{counts:?}");
    cluster.nothing_aside();
}

#[test]
fn a_database_from_an_old_copy_is_whole_again_after_recover() {
    drill(Site::sqlite(), Loss::Back("data/db"));
}

#[test]
fn a_database_of_postgres_from_an_old_dump_is_whole_again_after_recover() {
    drill(Site::postgres(), Loss::Dump);
}

#[test]
fn a_server_of_mariadb_that_goes_back_is_whole_again_after_recover() {
    drill(Site::mariadb(), Loss::Server);
}

#[test]
fn a_server_of_mysql_that_goes_back_is_whole_again_after_recover() {
    drill(Site::mysql(), Loss::Server);
}

#[test]
fn a_directory_that_goes_back_loses_nothing() {
    drill(Site::sqlite(), Loss::Back("data/queue"));
}

#[test]
fn directory_and_database_that_go_back_together_are_whole_again_after_recover() {
    drill(Site::sqlite(), Loss::Back("data"));
}

#[test]
fn a_wiped_directory_beside_its_database_loses_nothing() {
    drill(Site::sqlite(), Loss::Wiped("data/queue"));
}

#[test]
fn a_node_of_the_same_name_on_an_empty_disk_gets_its_events_back() {
    drill(Site::sqlite(), Loss::Wiped("data"));
}

/// A server's data directory, copied with its owners.
fn copy_data(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Everything that was released of the node is told to its storage.
fn told(site: &Site, last: u64) {
    let sql = "SELECT released_seq FROM replicon_released WHERE channel = '*'";
    wait_until(SOON, "what was released to be told", || {
        match site.sql(sql).trim().parse::<u64>() {
            Ok(seq) if seq >= last => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn rows(site: &Site, due: u64) {
    let sql = "SELECT count(*), count(DISTINCT origin_seq) FROM events_raw";
    // one that looks while the server is down is told nothing
    wait_until(SOON * 2, &format!("{due} rows"), || {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| site.sql(sql)));
        match found {
            Ok(text) if text.trim() == format!("{due}|{due}") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// A node that serves peers and has none.
fn alone(site: &Site) -> Node {
    site.channels(CHANNELS);
    let token = format!("replication_token={TOKEN}");
    site.serving(&["--set", "node_name=dc1", "--set", &token])
}

/// Posts so many events to a channel; the last seq.
fn post(node: &Node, channel: &str, count: usize) -> u64 {
    let items: Vec<String> = (0..count).map(|n| format!("{{\"n\":{n}}}")).collect();
    let body = format!("[{}]", items.join(","));
    let answer = node.client().post(channel, KEY, body.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.json()["last_seq"].as_u64().unwrap()
}

/// A node has stored so many events and stopped, and its database is remembered.
fn kept_with(site: &mut Site, channel: &str, count: usize) {
    let node = alone(site);
    told(site, post(&node, channel, count));
    assert_eq!(node.stop().code(), Some(0));
    Loss::Back("data/db").keep(site);
}

/// Nobody else has seen its events, and its log holds none of them: what the directory remembers of the
/// database tells it.
#[test]
fn a_database_that_went_back_is_noticed_by_what_the_directory_remembers() {
    let mut site = Site::sqlite();
    kept_with(&mut site, "events_raw", 1);
    let node = alone(&site);
    told(&site, post(&node, "events_raw", 1));
    assert_eq!(node.stop().code(), Some(0));
    let node = alone(&site);
    log_is_short(&site);
    let before = node.health()["node_id"].clone();
    assert_eq!(node.stop().code(), Some(0));
    Loss::Back("data/db").strike(&mut site);
    let node = alone(&site);
    wait_until(SOON, "another node id", || match node.health()["node_id"].clone() {
        id if id == before => Err(node.log()),
        _ => Ok(()),
    });
    assert!(node.log().contains("the storage went back: of "), "{}", node.log());
}

/// What is not in the table is shown to nobody as if it were, and the log keeps it.
#[test]
fn what_a_storage_lacks_of_a_broken_table_is_not_shown_until_it_is_mended() {
    let mut site = Site::sqlite();
    kept_with(&mut site, "reports", 5);
    let node = alone(&site);
    let first = post(&node, "reports", 1);
    let last = post(&node, "reports", 9);
    told(&site, last);
    assert_eq!(node.stop().code(), Some(0));
    Loss::Back("data/db").strike(&mut site);
    site.sql("CREATE TRIGGER broken BEFORE INSERT ON reports BEGIN SELECT nobody_knows(); END");
    let node = alone(&site);
    let words = "may lack of channel reports";
    wait_until(SOON, "the trouble", || {
        let health = node.health();
        if health["degraded"].to_string().contains(words) { Ok(()) } else { Err(node.log()) }
    });
    // others go on, and are told of
    let other = post(&node, "events_raw", 1);
    let safe = |channel: &str| {
        let path = format!("/internal/events?channel={channel}&from_seq=0");
        ask(&node, &path, Some(TOKEN)).json()["safe_seq"].as_u64().unwrap()
    };
    wait_until(SOON, "another channel's event to be shown", || match safe("events_raw") {
        seq if seq >= other => Ok(()),
        seq => Err(seq.to_string()),
    });
    assert!(safe("reports") < first);
    let released =
        "SELECT max(released_seq) FROM replicon_released WHERE channel IN ('reports', '*')";
    assert!(site.sql(released).trim().parse::<u64>().unwrap() < first);
    site.sql("DROP TRIGGER broken");
    wait_until(SOON, "what was lacking", || {
        match site.sql("SELECT count(*), count(DISTINCT origin_seq) FROM reports").trim() {
            "15|15" => Ok(()),
            other => Err(format!("{other}; {}", node.log())),
        }
    });
    wait_until(SOON, "it to be shown", || match safe("reports") {
        seq if seq >= last => Ok(()),
        seq => Err(seq.to_string()),
    });
    told(&site, other);
    assert!(!node.health()["degraded"].to_string().contains(words));
}

/// The server fails over to one that lacks the last events, under a node that runs: they come back by
/// themselves from the log, and it goes by another id (H36).
fn goes_back_under_a_running_node(mut site: Site) {
    let node = alone(&site);
    let post = |n: usize| post(&node, "events_raw", n);
    let id = || node.health()["node_id"].as_str().unwrap().to_owned();
    told(&site, post(50));
    rows(&site, 50);
    Loss::Server.keep(&mut site);
    told(&site, post(100));
    rows(&site, 150);
    let before = id();

    Loss::Server.strike(&mut site);
    post(5);
    rows(&site, 155);
    wait_until(SOON, "another node id", || match id() {
        now if now == before => Err(now),
        _ => Ok(()),
    });
    assert_eq!(node.health()["ingest"]["dead_letter_total"], 0);
}

#[test]
fn a_server_that_goes_back_under_a_running_node_gets_its_events_from_the_log() {
    goes_back_under_a_running_node(Site::postgres());
}

#[test]
fn a_mariadb_that_goes_back_under_a_running_node_gets_its_events_from_the_log() {
    goes_back_under_a_running_node(Site::mariadb());
}

#[test]
fn a_mysql_that_goes_back_under_a_running_node_gets_its_events_from_the_log() {
    goes_back_under_a_running_node(Site::mysql());
}
