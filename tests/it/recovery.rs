//! The file log after a crash and after damage: what a start keeps, what it reports, and that it
//! always succeeds.

use std::path::Path;

use replicon::event::Event;
use replicon::fsx::sim::{Fault, Op, Persist, SimDisk};
use replicon::queue::conformance::batch;
use replicon::queue::file::{FileQueue, Options};
use replicon::queue::{Queue, Source};

use crate::support::full_scale;
use crate::support::sim::{ACK, bytes, copy, counts, drain, open, options, segments, try_open};

fn small(disk: &SimDisk) -> Options {
    Options { segment_bytes: 10_000, ..options(disk) }
}

/// A log of several segments that was stopped in order, nothing of it released; its events.
async fn stopped_in_order(appends: u64) -> (SimDisk, Vec<Event>) {
    let disk = SimDisk::new();
    let queue = open(small(&disk));
    for i in 0..appends {
        queue.append(batch(if i % 3 == 0 { "b" } else { "a" }, i * 10, i % 4 + 1)).await.unwrap();
    }
    drop(queue);
    let (events, _) = drain(open(small(&copy(&disk)))).await;
    (copy(&disk), events)
}

/// Starts three times on a damaged disk: the first delivers, all succeed. What was lost must be
/// exactly what is reported, within the ranges reported.
async fn three_starts(disk: &SimDisk, all: &[Event], what: &str) {
    let (got, queue) = drain(open(small(disk))).await;
    let missing: Vec<u64> = all.iter().filter(|e| !got.contains(e)).map(|e| e.seq.0).collect();
    for event in &got {
        assert!(all.contains(event), "{what}: a wrong record, {event:?}");
    }
    let lost = counts(&queue).lost;
    assert_eq!(lost, missing.len() as u64, "{what}: {:?}", queue.stats().damage);
    let report = queue.stats().damage;
    let numbers: Vec<Vec<u64>> = report.iter().map(|line| numbers(line)).collect();
    let told: u64 = numbers.iter().map(|n| n[0]).sum();
    assert_eq!(told, missing.len() as u64, "{what}: reported {report:?}");
    for seq in &missing {
        let named = numbers.iter().any(|n| n[1] <= *seq && *seq <= n[2]);
        assert!(named, "{what}: {seq} is lost and in no range of {report:?}");
    }
    let next = queue.append(batch("a", 0, 1)).await.unwrap().first;
    assert!(all.iter().all(|e| e.seq < next), "{what}: a seq is reused");
    drop(queue);
    for _ in 0..2 {
        let queue = open(small(disk));
        assert_eq!(queue.stats().damage, report, "{what}: reported once, until acknowledged");
        let (again, queue) = drain(queue).await;
        assert!(again.len() <= 1 && counts(&queue).lost == 0, "{what}: delivered or lost twice");
    }
}

/// Events, first and last seq of a report.
fn numbers(line: &str) -> Vec<u64> {
    line.split(' ').filter_map(|word| word.parse().ok()).take(3).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undamaged_log_reports_nothing() {
    let (disk, all) = stopped_in_order(120).await;
    assert!(segments(&disk).len() > 2 && all.len() > 40);
    three_starts(&disk, &all, "undamaged").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_flipped_bit_is_found_bounded_and_counted() {
    let (disk, all) = stopped_in_order(120).await;
    for segment in segments(&disk) {
        let whole = bytes(&disk, &segment);
        // the headers' padding is the same everywhere: every bit of the frames, some of the headers
        let step = if full_scale() { 1 } else { 1009 };
        for bit in (0..whole.len() * 8).step_by(step) {
            let in_padding = (600..8192).contains(&(bit / 8)) && !(4096..4696).contains(&(bit / 8));
            if in_padding {
                continue;
            }
            let damaged = copy(&disk);
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            damaged.corrupt(&segment, bad);
            three_starts(&damaged, &all, &format!("{} bit {bit}", segment.display())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_truncation_is_found_bounded_and_counted() {
    let (disk, all) = stopped_in_order(120).await;
    for segment in segments(&disk) {
        let whole = bytes(&disk, &segment);
        let step = if full_scale() { 1 } else { 211 };
        for cut in (0..whole.len()).step_by(step) {
            let damaged = copy(&disk);
            damaged.corrupt(&segment, whole[..cut].to_vec());
            three_starts(&damaged, &all, &format!("{} cut at {cut}", segment.display())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_segment_is_reported_by_its_events() {
    let (disk, all) = stopped_in_order(120).await;
    for segment in segments(&disk) {
        let damaged = copy(&disk);
        replicon::fsx::Disk::remove(&damaged, &segment).unwrap();
        three_starts(&damaged, &all, &format!("{} is gone", segment.display())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_survives_in_its_second_copy() {
    let (disk, all) = stopped_in_order(120).await;
    for segment in segments(&disk) {
        let damaged = copy(&disk);
        let mut bad = bytes(&disk, &segment);
        bad[..4096].fill(0);
        damaged.corrupt(&segment, bad);
        let (got, queue) = drain(open(small(&damaged))).await;
        assert_eq!(got, all);
        assert_eq!(queue.stats().damage, Vec::<String>::new());
    }
}

/// Bytes of frames with the given first seqs, as `(offset, length)`, in the only segment.
fn frames(disk: &SimDisk) -> Vec<(usize, usize)> {
    let whole = bytes(disk, &segments(disk)[0]);
    let mut at = 8192;
    let mut found = Vec::new();
    while at + 48 <= whole.len() {
        let len = u32::from_le_bytes(whole[at + 8..at + 12].try_into().unwrap()) as usize;
        found.push((at, 48 + len));
        at += 48 + len;
    }
    found
}

#[tokio::test]
async fn damage_between_two_groups_of_a_killed_log_loses_nothing_else_and_is_exact() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    for n in 0..6 {
        queue.append(batch("a", n * 2, 2)).await.unwrap();
    }
    // killed, not stopped: the copy is taken while it runs
    let killed = disk.crash(Persist::Nothing, 1);
    let (at, _) = frames(&killed)[2];
    let segment = segments(&killed)[0].clone();
    let mut bad = bytes(&killed, &segment);
    bad[at + 20] ^= 1;
    killed.corrupt(&segment, bad);
    let (got, queue) = drain(open(options(&killed))).await;
    assert_eq!(got.len(), 10, "the frames behind it are delivered");
    let report = queue.stats().damage;
    assert_eq!(report.len(), 1, "{report:?}");
    let base = got[0].seq.0;
    assert_eq!(numbers(&report[0]), [2, base + 4, base + 5]);
}

#[tokio::test]
async fn a_torn_newest_group_is_no_damage() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    for n in 0..6 {
        queue.append(batch("a", n, 1)).await.unwrap();
    }
    let killed = disk.crash(Persist::Nothing, 1);
    let (at, len) = frames(&killed)[5];
    let segment = segments(&killed)[0].clone();
    let whole = bytes(&killed, &segment);
    for cut in at..at + len {
        let torn = copy(&killed);
        torn.corrupt(&segment, whole[..cut].to_vec());
        // the ack record may bear witness to the newest group: then its loss is no torn tail
        let _ = replicon::fsx::Disk::remove(&torn, Path::new(ACK));
        let (got, queue) = drain(open(options(&torn))).await;
        assert_eq!((got.len(), queue.stats().damage.len()), (5, 0), "cut at {cut}");
    }
}

#[tokio::test]
async fn what_was_found_behind_the_last_sync_is_durable_before_it_is_delivered() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.append(batch("a", 1, 1)).await.unwrap();
    // the sync fails, the process is killed, the page cache shows the frame whole
    disk.fail(Some(Op::Sync), Fault::From(0));
    assert!(queue.append(batch("a", 2, 1)).await.is_err());
    disk.fail(None, Fault::From(0));
    drop(queue);
    disk.heal();
    // the pages of the frame are in the cache and not on the disk: a power cut takes them, and what
    // was handed out meanwhile must come again all the same
    let queue = open(options(&disk));
    let lease = queue.lease(&Source::Main, crate::support::sim::WIDE).await.unwrap();
    assert_eq!(lease.events.len(), 2, "a frame that is whole is kept");
    let cached = disk.crash(Persist::Nothing, 2);
    let (again, queue) = drain(open(options(&cached))).await;
    assert_eq!(again, lease.events, "delivered before it was durable");
    assert_eq!(queue.stats().damage, Vec::<String>::new());
    let next = queue.append(batch("a", 3, 1)).await.unwrap().first;
    assert!(next > again[1].seq);
}

#[tokio::test]
async fn a_start_that_dies_at_any_operation_leaves_a_directory_that_starts() {
    for fails_from in 0.. {
        let disk = SimDisk::new();
        disk.fail(None, Fault::From(fails_from));
        let good = try_open(options(&disk)).is_ok();
        disk.heal();
        for (seed, mode) in replicon::fsx::sim::MODES.into_iter().enumerate() {
            let after = disk.crash(mode, fails_from * 4 + seed as u64 + 1);
            let queue = open(options(&after));
            let got = queue.append(batch("a", 0, 1)).await.unwrap();
            drop(queue);
            let (events, _) = drain(open(options(&after))).await;
            assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [got.first]);
        }
        if good && fails_from > 40 {
            break;
        }
    }
}

#[tokio::test]
async fn a_full_disk_at_start_still_delivers_what_older_segments_hold() {
    let (disk, all) = stopped_in_order(120).await;
    let used: usize = disk.files().iter().map(|f| bytes(&disk, f).len()).sum();
    disk.set_capacity(Some(used as u64 + 100));
    let queue = FileQueue::open(small(&disk)).unwrap();
    assert!(queue.append(batch("a", 0, 1)).await.is_err());
    let (got, _) = drain(queue).await;
    assert_eq!(got, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_what_was_released_is_no_loss() {
    let disk = SimDisk::new();
    let queue = open(small(&disk));
    for i in 0..120 {
        queue.append(batch(if i % 3 == 0 { "b" } else { "a" }, i * 10, 2)).await.unwrap();
    }
    // half of it is released; the segments of the other half are still needed
    let mut left: Vec<Event> = Vec::new();
    for turn in 0..6 {
        let part = replicon::queue::LeaseLimit { events: 40, bytes: 1 << 20 };
        let lease = queue.lease(&Source::Main, part).await.unwrap();
        if turn < 3 {
            queue.ack(lease, &[]).await;
        } else {
            left.extend(lease.events.iter().cloned());
        }
    }
    drop(queue);
    let oldest = segments(&disk)[0].clone();
    let whole = bytes(&disk, &oldest);
    for at in (8192..whole.len()).step_by(37) {
        let damaged = copy(&disk);
        let mut bad = whole.clone();
        bad[at] ^= 4;
        damaged.corrupt(&oldest, bad);
        let (got, queue) = drain(open(small(&damaged))).await;
        let lost = counts(&queue).lost;
        assert_eq!(got.len() as u64 + lost, 120, "byte {at}: {:?}", queue.stats().damage);
        let told: u64 = queue.stats().damage.iter().map(|line| numbers(line)[0]).sum();
        assert_eq!(told, lost, "byte {at}: {:?}", queue.stats().damage);
    }
}
