//! What an operator reads on a bad day: each line is produced here, and stands in the README.

use std::path::{Path, PathBuf};
use std::time::Duration;

use replicon::event::Seq;
use replicon::fsx::sim::{Fault, Persist, SimDisk};
use replicon::queue::conformance::batch;
use replicon::queue::file::dead::{DeadState, Filter, read_all};
use replicon::queue::{DeadReason, Queue, Source};

use crate::support::sim::{BASE, WIDE, open, options};
use crate::support::{Node, repo, wait_until};

/// Every number as `N`, every run of white space as one space.
fn shape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_digit() { 'N' } else { c };
        let again = out.ends_with(c) && (c == 'N' || c == ' ');
        if !again {
            out.push(if c == '\n' { ' ' } else { c });
        }
    }
    out
}

/// The log's line that holds `part`, once there is one; the README must show its sentence.
pub fn stands_in_the_readme(node: &Node, part: &str) -> String {
    let line = wait_until(Duration::from_secs(20), part, || {
        let log = node.log();
        log.lines().rfind(|line| line.contains(part)).map(str::to_owned).ok_or(log)
    });
    let sentence = &line[line.find(part).unwrap()..];
    // what stands behind the sentence are its fields, for machines
    let sentence = sentence.split(" segment=").next().unwrap();
    let readme = shape(&std::fs::read_to_string(repo("README.md")).unwrap());
    assert!(readme.contains(&shape(sentence)), "the README lacks: {sentence}");
    line
}

fn log_segment(dir: &Path) -> PathBuf {
    let queue = dir.join("data/queue");
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(queue).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.strip_prefix("ingest.log.")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    });
    names.sort();
    names.remove(0)
}

#[test]
fn a_damaged_log_is_named_as_the_readme_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = super::http::serving(dir.path(), &["--set", "writer_enabled=false"]);
    for n in 0..5 {
        assert_eq!(node.post(&format!("[{{\"n\":{n}}},{{\"n\":{n}}}]")).status, 202);
    }
    node.stop();
    let path = log_segment(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(7).position(|w| w == b"{\"n\":2}").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let node = Node::start(dir.path(), &[]);
    let line = stands_in_the_readme(&node, "the log is damaged: ");
    assert!(line.contains("2 synced events"), "{line}");
}

#[test]
fn a_disk_below_its_reserve_is_named_as_the_readme_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "min_free_bytes=900TiB"]);
    stands_in_the_readme(&node, "appends are refused: the disk under ");
    assert_eq!(node.post("{}").status, 503);
}

/// A directory as a node leaves it that was killed between the mark of a dead letter and its append.
async fn killed_while_putting_back(dir: &Path) -> Vec<Seq> {
    for fails_from in 0..100 {
        let disk = SimDisk::new();
        let queue = open(options(&disk));
        queue.append(batch("events_raw", 0, 3)).await.unwrap();
        let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
        let seqs: Vec<Seq> = lease.events.iter().map(|e| e.seq).collect();
        let why = DeadReason { code: "23514".to_owned(), text: String::new() };
        for event in &lease.events {
            queue.dead_letter(event, &why).await.unwrap();
        }
        queue.ack(lease, &seqs).await;
        disk.fail(None, Fault::From(fails_from));
        let _ = queue.retry_dead(&Filter::default(), &mut |_, _| {}).await;
        let after = disk.crash(Persist::Everything, 1);
        let mut open = 0;
        let base = format!("{BASE}.dead");
        read_all(&after, base.as_ref(), &mut |_, _| {}, &mut |letter| {
            open += usize::from(matches!(letter.state, DeadState::Redriving(_)));
            Ok(())
        })
        .unwrap();
        if open == 3 {
            let queue = dir.join("data/queue");
            std::fs::create_dir_all(&queue).unwrap();
            for path in after.files() {
                let bytes = after.bytes(&path).unwrap();
                std::fs::write(queue.join(path.file_name().unwrap()), bytes).unwrap();
            }
            return seqs;
        }
    }
    panic!("no moment between mark and append was hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_retry_is_settled_by_the_next_start_as_the_readme_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    killed_while_putting_back(dir.path()).await;
    let path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || {
        let node = Node::start(&path, &[]);
        let readme = std::fs::read_to_string(repo("README.md")).unwrap();
        let shown = "dead letters were being put back when this node stopped:";
        assert!(readme.contains(shown));
        let line = wait_until(Duration::from_secs(20), shown, || {
            let log = node.log();
            log.lines().find(|line| line.contains(shown)).map(str::to_owned).ok_or(log)
        });
        assert!(line.contains("3 dead letters") && line.contains("dead as before"), "{line}");
    })
    .await
    .unwrap();
}
