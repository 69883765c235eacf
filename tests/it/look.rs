//! A look at a log from outside beside the queue itself: what it finds lost is what a node reports, word
//! for word; the events that it shows as waiting are those that the queue delivers; and it changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;

use replicon::event::{Event, Name, Origin};
use replicon::fsx::Disk;
use replicon::fsx::sim::SimDisk;
use replicon::queue::conformance::batch;
use replicon::queue::file::Options;
use replicon::queue::file::look::{LogFiles, LogLook, Standing, Wanted};
use replicon::queue::{DeadReason, LeaseLimit, Queue, Source};

use crate::support::full_scale;
use crate::support::sim::{ACK, BASE, WIDE, bytes, copy, counts, drain, open, options, segments};

fn files(disk: &SimDisk) -> LogFiles {
    LogFiles {
        disk: disk.shared(),
        path: BASE.into(),
        ack_path: ACK.into(),
        origin: Origin::new("dc1").unwrap(),
    }
}

fn small(disk: &SimDisk) -> Options {
    Options { segment_bytes: 10_000, ..options(disk) }
}

/// A log of several segments that was stopped in order; the first `released` events are.
async fn stopped_in_order(released: usize) -> SimDisk {
    let disk = SimDisk::new();
    let queue = open(small(&disk));
    for i in 0..120 {
        queue.append(batch(if i % 3 == 0 { "b" } else { "a" }, i * 10, i % 4 + 1)).await.unwrap();
    }
    if released > 0 {
        let limit = LeaseLimit { events: released, bytes: 1 << 20 };
        let lease = queue.lease(&Source::Main, limit).await.unwrap();
        assert_eq!(lease.events.len(), released);
        queue.ack(lease, &[]).await;
    }
    drop(queue);
    copy(&disk)
}

/// All that stands on a disk.
fn everything(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    disk.files().into_iter().map(|path| (path.clone(), bytes(disk, &path))).collect()
}

fn check(disk: &SimDisk) -> LogLook {
    let before = everything(disk);
    let (mut last, mut all) = (0, 0);
    let look = files(disk).check(&mut |done, of| {
        assert!(last <= done && done <= of, "{last}, then {done} of {of}");
        (last, all) = (done, of);
    });
    assert_eq!(last, all, "it is done when all is read");
    assert_eq!(everything(disk), before, "a look changes nothing");
    look.unwrap().unwrap()
}

fn lost(look: &LogLook) -> Vec<String> {
    let mut lines: Vec<String> = look.lost().map(ToString::to_string).collect();
    lines.sort_unstable();
    lines
}

/// What `check` finds is what a node reports once it has read all of it.
async fn check_beside_a_node(disk: &SimDisk, what: &str) {
    let found = lost(&check(disk));
    let (_, queue) = drain(open(small(disk))).await;
    let mut reported = queue.stats().damage;
    reported.sort_unstable();
    assert_eq!(found, reported, "{what}");
    drop(queue);
    assert_eq!(lost(&check(disk)), reported, "{what}: still so, as long as nobody acknowledges it");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_a_node_reports_word_for_word() {
    for released in [0, 100] {
        let disk = stopped_in_order(released).await;
        check_beside_a_node(&copy(&disk), "undamaged").await;
        assert!(segments(&disk).len() > 2);
        for segment in segments(&disk) {
            let whole = bytes(&disk, &segment);
            let name = segment.display();
            let step = if full_scale() { 1 } else { 97 };
            for at in (8192..whole.len()).step_by(step) {
                let damaged = copy(&disk);
                let mut bad = whole.clone();
                bad[at] ^= 4;
                damaged.corrupt(&segment, bad);
                check_beside_a_node(&damaged, &format!("{released} released, {name} at {at}"))
                    .await;
            }
            for cut in [0, 5000, 8192, whole.len() / 2, whole.len() - 1] {
                let damaged = copy(&disk);
                damaged.corrupt(&segment, whole[..cut.min(whole.len())].to_vec());
                check_beside_a_node(&damaged, &format!("{released} released, {name} cut at {cut}"))
                    .await;
            }
            let damaged = copy(&disk);
            damaged.remove(&segment).unwrap();
            check_beside_a_node(&damaged, &format!("{released} released, {name} is gone")).await;
        }
    }
}

#[tokio::test]
async fn stat_counts_what_a_node_recovers_and_where_it_stands() {
    for released in [0, 100] {
        let disk = stopped_in_order(released).await;
        let look = files(&disk).stat().unwrap().unwrap();
        let waits: u64 = look.queued.values().map(|load| load.events).sum();
        let held: u64 = look.segments.iter().map(|s| s.events.unwrap()).sum();
        assert_eq!(look.segments.len(), segments(&disk).len());
        assert_eq!((look.released.is_some(), look.damage.len()), (released > 0, 0));
        let ranges = look.segments.iter().filter_map(|s| Some((s.first?, s.last?)));
        assert!(ranges.is_sorted_by(|a, b| a.0 <= a.1 && a.1 < b.0), "{look:?}");
        let queue = open(small(&disk));
        assert_eq!(waits, counts(&queue).recovered);
        assert!(held >= waits && held <= waits + released as u64);
    }
}

/// What a dump shows: payloads of what waits, and of the rest.
fn dump(disk: &SimDisk, wanted: &Wanted) -> (Vec<Event>, Vec<Event>) {
    let (mut waiting, mut rest, mut seqs) = (Vec::new(), Vec::new(), BTreeSet::new());
    let result = files(disk).events(wanted, &mut |event, stands| {
        assert!(seqs.last().is_none_or(|last| *last < event.seq), "in rising order, each once");
        seqs.insert(event.seq);
        if stands.waits {
            waiting.push(event.clone())
        } else {
            rest.push(event.clone())
        }
        ControlFlow::Continue(())
    });
    result.unwrap();
    (waiting, rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_that_are_shown_as_waiting_are_those_that_are_delivered() {
    let disk = stopped_in_order(100).await;
    let (waiting, rest) = dump(&disk, &Wanted::default());
    let middle = waiting[waiting.len() / 2].seq;
    let from = Wanted { from: Some(middle.0), ..Wanted::default() };
    assert_eq!(dump(&disk, &from).0, waiting[waiting.len() / 2..]);
    let some = Wanted { to: Some(middle.0), limit: Some(7), ..Wanted::default() };
    let (a, b) = dump(&disk, &some);
    assert_eq!(a.len() + b.len(), 7);
    let only = Wanted { channel: Some("b".to_owned()), to: Some(middle.0), ..Wanted::default() };
    let (theirs, _) = dump(&disk, &only);
    assert!(!theirs.is_empty() && theirs.iter().all(|e| e.channel.as_str() == "b"));
    let (delivered, _) = drain(open(small(&disk))).await;
    assert_eq!(waiting, delivered);
    assert!(rest.iter().all(|e| e.seq < waiting[0].seq));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_shown_once_and_counted_apart() {
    let disk = SimDisk::new();
    let queue = open(small(&disk));
    for n in 0..10 {
        queue.append(batch("a", n, 1)).await.unwrap();
        queue.append(batch("b", n, 1)).await.unwrap();
    }
    // one of each is stored, then "a" is stuck
    let limit = LeaseLimit { events: 2, bytes: 1 << 20 };
    let lease = queue.lease(&Source::Main, limit).await.unwrap();
    queue.ack(lease, &[]).await;
    let mut lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    let stuck = Name::new("a").unwrap();
    let theirs = lease.events.iter().filter(|e| e.channel == stuck).map(|e| e.seq).collect();
    queue.park(&mut lease, &theirs, "its table is gone").await.unwrap();
    queue.ack(lease, &[]).await;
    drop(queue);
    let look = check(&disk);
    assert_eq!((look.parked["a"].waiting.events, look.parked["a"].segments.len()), (9, 1));
    assert_eq!(look.queued.get("a").map_or(0, |load| load.events), 0, "{look:?}");
    assert_eq!(lost(&look), Vec::<String>::new());
    let (waiting, rest) = dump(&disk, &Wanted::default());
    assert_eq!(waiting.iter().map(|e| e.seq).collect::<BTreeSet<_>>(), theirs);
    assert_eq!(rest.iter().filter(|e| e.channel == stuck).count(), 1, "the one that was stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_damage_is_no_loss_before_and_after_it_was_passed() {
    let disk = stopped_in_order(0).await;
    let segment = segments(&disk)[0].clone();
    let mut bad = bytes(&disk, &segment);
    bad[8300] ^= 1;
    disk.corrupt(&segment, bad);
    let (_, queue) = drain(open(small(&disk))).await;
    assert_eq!(queue.stats().damage.len(), 1);
    assert_eq!(queue.acknowledge_damage().unwrap(), 1);
    assert_eq!(queue.stats().damage.len(), 0);
    drop(queue);
    let look = check(&disk);
    assert!(look.is_whole(), "{look:?}");
    let standing = [Standing::Acknowledged, Standing::Resolved];
    assert!(look.damage.iter().all(|d| standing.contains(&d.standing)), "{look:?}");
}

#[tokio::test]
async fn dead_letters_are_counted_and_their_damage_is_found() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.append(batch("a", 0, 5)).await.unwrap();
    let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    let why = DeadReason { code: "rejected".to_owned(), text: String::new() };
    for event in &lease.events {
        queue.dead_letter(event, &why).await.unwrap();
    }
    drop(queue);
    let look = check(&disk);
    assert_eq!((look.dead_letters.dead, look.dead_letters.segments.len()), (5, 1));
    assert!(look.is_whole());
    let segment = look.dead_letters.segments[0].path.clone();
    let whole = bytes(&disk, &segment);
    for at in (8192..whole.len() / 2).step_by(13) {
        let damaged = copy(&disk);
        let mut bad = whole.clone();
        bad[at] ^= 1;
        damaged.corrupt(&segment, bad);
        let look = check(&damaged);
        let gone: u64 = look.lost().map(|d| d.damage.events).sum();
        assert_eq!(look.dead_letters.dead + gone, 5, "at {at}: {look:?}");
        assert!(gone == 0 || lost(&look)[0].contains(" dead letter in segment "), "{look:?}");
        // a start says so too, is red until somebody has acknowledged it, and clears away then
        let queue = open(options(&damaged));
        assert_eq!(queue.stats().damage.len(), look.lost().count(), "at {at}: {look:?}");
        assert!(look.is_whole() || queue.clear_dead().is_err(), "at {at}");
        queue.acknowledge_damage().unwrap();
        assert!(queue.stats().damage.is_empty());
        queue.clear_dead().unwrap();
        drop(queue);
        let after = check(&damaged);
        assert!(after.is_whole(), "at {at}: {after:?}");
        assert_eq!(after.dead_letters.dead + gone, 5, "at {at}: {after:?}");
    }
}
