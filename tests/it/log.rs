//! The file log while it runs: syncs that fail, disks that fill, identities.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use replicon::clock::Clock;
use replicon::event::{MAX_SEQ, Micros, Origin, Seq};
use replicon::fsx::sim::{Fault, MODES, Op, Persist, SimDisk};
use replicon::queue::conformance::{self, batch};
use replicon::queue::file::{FileQueue, Kept, OpenError, Options, SyncMode};
use replicon::queue::{AppendError, DeadReason, LeaseLimit, Queue, Source};
use replicon::seq::{Witness, belief_bound, clock_term};

use crate::support::full_scale;
use crate::support::sim::{
    ACK, BASE, WIDE, bytes, counts, drain, open, options, segments, try_open,
};

#[tokio::test]
async fn the_file_queue_conforms() {
    conformance::all(|| {
        let disk = SimDisk::new();
        move || {
            let options = options(&disk);
            async move { open(options) }
        }
    })
    .await;
}

#[tokio::test]
async fn the_file_queue_conforms_with_a_segment_a_batch_and_in_interval_mode() {
    for sync in [SyncMode::Ack, SyncMode::Interval(Duration::ZERO)] {
        conformance::all(|| {
            let disk = SimDisk::new();
            move || {
                let options = Options { segment_bytes: 1, sync, ..options(&disk) };
                async move { open(options) }
            }
        })
        .await;
    }
}

/// What became of each append of a run: its payload numbers, and the seqs it was told.
#[derive(Default)]
struct Told {
    accepted: BTreeMap<u64, Seq>,
    doubtful: Vec<u64>,
}

/// Appends batches and acks some leases, until `appends` are done or refused.
async fn work(queue: &FileQueue, appends: u64, told: &mut Told) {
    let mut next = 0;
    for i in 0..appends {
        let n = i % 3 + 1;
        match queue.append(batch(if i % 4 == 0 { "b" } else { "a" }, next, n)).await {
            Ok(got) => {
                assert_eq!(got.last.0, got.first.0 + n - 1);
                told.accepted.extend((0..n).map(|k| (next + k, Seq(got.first.0 + k))));
            }
            Err(AppendError::Doubt { .. }) => told.doubtful.extend(next..next + n),
            Err(_) => {}
        }
        next += n;
    }
}

/// Every answered event is delivered, once, under the seq it was told; nothing that was refused is.
async fn judge(disk: &SimDisk, told: &Told, what: &str) {
    let (events, queue) = drain(open(options(disk))).await;
    assert_eq!(queue.stats().damage, Vec::<String>::new(), "{what}: a false report");
    let mut delivered = BTreeMap::new();
    for event in events {
        let text = std::str::from_utf8(&event.payload).unwrap();
        let n: u64 = text[5..text.len() - 1].parse().unwrap();
        assert!(delivered.insert(n, event.seq).is_none(), "{what}: {n} twice");
    }
    for (n, seq) in &told.accepted {
        assert_eq!(delivered.get(n), Some(seq), "{what}: {n} was answered with {seq}");
    }
    for n in delivered.keys() {
        let known = told.accepted.contains_key(n) || told.doubtful.contains(n);
        assert!(known, "{what}: {n} was refused and is there");
    }
    let next = queue.append(batch("a", 1_000_000, 1)).await.unwrap().first;
    let highest = delivered.values().chain(told.accepted.values()).max().copied();
    assert!(highest.is_none_or(|seq| next > seq), "{what}: a seq is reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_operation_fails_and_whatever_the_crash_leaves_no_answered_event_is_lost() {
    let seeds = if full_scale() { 20 } else { 2 };
    for fails_from in 0.. {
        let disk = SimDisk::new();
        disk.fail(None, Fault::From(fails_from));
        let mut told = Told::default();
        let small = Options { segment_bytes: 9000, ..options(&disk) };
        let queue = try_open(small);
        if let Ok(queue) = &queue {
            work(queue, 12, &mut told).await;
        }
        // before the queue is closed: the power fails while everything stands as it is
        for mode in MODES {
            for seed in 0..seeds {
                let what = format!("operation {fails_from} on fails, {mode:?}, seed {seed}");
                judge(&disk.crash(mode, seed * 7919 + fails_from), &told, &what).await;
            }
        }
        if told.accepted.len() == 24 {
            break;
        }
        assert!(fails_from < 400, "the work never ends well");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_operation_harms_nothing_that_was_answered_before_or_after() {
    for fails in 0..60 {
        let disk = SimDisk::new();
        let clock = Clock::system();
        let small = Options { segment_bytes: 9000, clock, ..options(&disk) };
        let queue = open(small);
        disk.fail(None, Fault::Once(fails));
        let mut told = Told::default();
        work(&queue, 12, &mut told).await;
        for mode in MODES {
            judge(&disk.crash(mode, fails + 1), &told, &format!("{fails} fails once, {mode:?}"))
                .await;
        }
    }
}

#[tokio::test]
async fn a_failed_sync_closes_the_segment_for_good_and_voids_what_was_refused() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.append(batch("a", 1, 1)).await.unwrap();
    let failing = segments(&disk)[0].clone();
    disk.fail(Some(Op::Sync), Fault::Once(0));
    let doubt = queue.append(batch("a", 2, 1)).await;
    assert!(matches!(doubt, Err(AppendError::Doubt { .. })), "{doubt:?}");
    let after = disk.history().len();
    let third = queue.append(batch("a", 3, 1)).await.unwrap();
    let touched = disk.history()[after..].iter().any(|(_, path)| *path == failing);
    assert!(!touched, "a segment is never touched after its failure");
    assert_eq!(segments(&disk).len(), 2);
    // the page cache shows the refused frame whole; it must not come back below the third
    for mode in MODES {
        let (events, _) = drain(open(options(&disk.crash(mode, 5)))).await;
        let payloads: Vec<&[u8]> = events.iter().map(|e| &e.payload[..]).collect();
        assert_eq!(payloads, [b"{\"n\":1}", b"{\"n\":3}"], "{mode:?}");
        assert_eq!(events[1].seq, third.first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_leased_before_its_sync() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    disk.fail(Some(Op::Sync), Fault::Once(0));
    assert!(queue.append(batch("a", 1, 1)).await.is_err());
    queue.append(batch("a", 2, 1)).await.unwrap();
    let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    assert_eq!(lease.events[0].payload, &b"{\"n\":2}"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_keeps_everything_and_is_good_again_by_itself() {
    let disk = SimDisk::new();
    let clock = Clock::system();
    let queue = open(Options { clock, ..options(&disk) });
    queue.append(batch("a", 0, 5)).await.unwrap();
    let used: usize = disk.files().iter().map(|f| bytes(&disk, f).len()).sum();
    disk.set_capacity(Some(used as u64 + 30));
    let full = queue.append(batch("a", 5, 5)).await;
    assert!(matches!(full, Err(AppendError::Doubt { .. })), "{full:?}");
    let full = queue.append(batch("a", 10, 5)).await;
    assert!(matches!(full, Err(AppendError::Unavailable { .. })), "{full:?}");
    assert!(queue.stats().refusing.is_some());
    // leases and acks go on meanwhile
    let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    assert_eq!(lease.events.len(), 5);
    queue.ack(lease, &[]).await;
    disk.set_capacity(None);
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while queue.append(batch("a", 15, 1)).await.is_err() {
        assert!(std::time::Instant::now() < end, "{:?}", queue.stats().refusing);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (events, _) = drain(queue).await;
    assert_eq!(events.len(), 1, "what was refused is nowhere");
}

#[tokio::test]
async fn below_min_free_bytes_appends_are_refused_while_dead_letters_are_kept() {
    let disk = SimDisk::new();
    let clock = Clock::system();
    let queue = open(Options { min_free_bytes: 1 << 20, clock, ..options(&disk) });
    queue.append(batch("a", 0, 1)).await.unwrap();
    let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    disk.set_capacity(Some(3 << 20));
    let refused = async || queue.append(batch("a", 1, 1)).await.is_err();
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while !refused().await {
        assert!(std::time::Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let why = DeadReason { code: "x".to_owned(), text: String::new() };
    queue.dead_letter(&lease.events[0], &why).await.unwrap();
    assert!(queue.is_dead(lease.events[0].seq));
}

#[tokio::test]
async fn a_split_frame_goes_on_where_its_last_ack_ended() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    let got = queue.append(batch("a", 0, 10)).await.unwrap();
    let part = queue.lease(&Source::Main, LeaseLimit { events: 4, bytes: 1 << 20 }).await.unwrap();
    queue.ack(part, &[]).await;
    drop(queue);
    let again = open(options(&disk));
    assert_eq!(counts(&again).recovered, 6);
    assert_eq!(again.first_unacked(), Seq(got.first.0 + 4));
    let (events, _) = drain(again).await;
    assert_eq!(
        events.iter().map(|e| e.seq.0).collect::<Vec<_>>(),
        (got.first.0 + 4..=got.last.0).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn released_segments_are_deleted_and_their_absence_is_no_damage() {
    let disk = SimDisk::new();
    let small = || Options { segment_bytes: 9000, ..options(&disk) };
    let queue = open(small());
    for i in 0..40 {
        queue.append(batch("a", i * 10, 10)).await.unwrap();
    }
    assert!(segments(&disk).len() > 3);
    let (events, queue) = drain(queue).await;
    assert_eq!(events.len(), 400);
    drop(queue);
    let left = segments(&disk).len();
    assert!(left <= 2, "{left} segments are left");
    for _ in 0..3 {
        let queue = open(small());
        assert_eq!((counts(&queue).recovered, queue.stats().damage.len()), (0, 0));
    }
    let queue = open(small());
    queue.append(batch("a", 0, 1)).await.unwrap();
    assert_eq!(drain(queue).await.0.len(), 1);
}

#[tokio::test]
async fn without_its_ack_record_the_log_is_replayed_from_its_oldest_segment() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.append(batch("a", 0, 7)).await.unwrap();
    let (events, queue) = drain(queue).await;
    drop(queue);
    let mut bad = bytes(&disk, ACK);
    for at in [20, (1 << 20) + 20] {
        if let Some(byte) = bad.get_mut(at) {
            *byte ^= 0xff;
        }
    }
    disk.corrupt(Path::new(ACK), bad);
    let queue = open(options(&disk));
    assert_eq!(counts(&queue).recovered, 7);
    assert_eq!(drain(queue).await.0, events, "the same events under the same seqs");
}

#[tokio::test]
async fn seqs_go_upwards_whatever_of_the_directory_is_lost() {
    let now = Micros(1_790_000_000_000_000);
    for lost in ["state", "log", "ack", "log and ack", "all"] {
        let disk = SimDisk::new();
        let queue = open(options(&disk));
        let used = queue.append(batch("a", 0, 100)).await.unwrap().last;
        // beyond the block of seqs that the start reserved
        queue.seen(Seq(used.0 + 10_000_000), Witness::Own);
        let used = queue.append(batch("a", 100, 1)).await.unwrap().last;
        let (_, queue) = drain(queue).await;
        drop(queue);
        for file in disk.files() {
            let name = file.to_str().unwrap().to_owned();
            let hit = match lost {
                "state" => name.ends_with("node.state"),
                "log" => name.starts_with(BASE),
                "ack" => name == ACK,
                "log and ack" => name.starts_with(BASE) || name == ACK,
                _ => true,
            };
            if hit {
                replicon::fsx::Disk::remove(&disk, &file).unwrap();
            }
        }
        // where all is lost the clock alone speaks: seconds later it is past what was used
        let wall = if lost == "all" { Micros(now.0 + 10_000_000) } else { Micros(0) };
        let queue = open(Options { clock: Clock::manual(wall), ..options(&disk) });
        let next = queue.append(batch("a", 0, 1)).await.unwrap().first;
        assert!(next > used, "{lost} lost: {next} after {used}");
    }
}

#[tokio::test]
async fn a_clock_a_day_back_gives_no_seq_twice() {
    let disk = SimDisk::new();
    let day = 86_400_000_000;
    let mut last = Seq(0);
    for wall in [1_790_000_000_000_000, 1_790_000_000_000_000 - day, 0, i64::MAX / 2] {
        let queue = open(Options { clock: Clock::manual(Micros(wall)), ..options(&disk) });
        let got = queue.append(batch("a", 0, 3)).await.unwrap();
        assert!(got.first > last, "at {wall}");
        last = got.last;
    }
}

#[tokio::test]
async fn what_storage_knows_raises_the_next_seq_and_a_liar_does_not() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    let first = queue.append(batch("a", 0, 1)).await.unwrap().first;
    queue.seen(Seq(first.0 + 1_000_000), Witness::Own);
    queue.seen(Seq(MAX_SEQ), Witness::Peer);
    let next = queue.append(batch("a", 1, 1)).await.unwrap().first;
    assert_eq!(next, Seq(first.0 + 1_000_001));
    assert!(next < belief_bound() && clock_term(Micros(0)) == Some(0));
}

#[tokio::test]
async fn a_first_start_waits_for_storage_and_a_later_one_for_nobody() {
    let disk = SimDisk::new();
    let queue = FileQueue::open(options(&disk)).unwrap();
    let early = queue.append(batch("a", 0, 1)).await;
    assert!(matches!(early, Err(AppendError::Unavailable { .. })), "{early:?}");
    assert!(queue.stats().refusing.is_some() && queue.is_fresh());
    drop(queue);
    let queue = FileQueue::open(options(&disk)).unwrap();
    assert!(queue.append(batch("a", 0, 1)).await.is_err(), "still nobody has answered");
    queue.identity_certain().unwrap();
    queue.append(batch("a", 0, 1)).await.unwrap();
    drop(queue);
    let queue = FileQueue::open(options(&disk)).unwrap();
    assert!(!queue.is_fresh() && queue.append(batch("a", 1, 1)).await.is_ok());
}

#[tokio::test]
async fn the_directory_belongs_to_one_origin_and_strangers_files_are_not_touched() {
    let disk = SimDisk::new();
    drop(open(options(&disk)));
    let other = Options { origin: Origin::new("dc9").unwrap(), ..options(&disk) };
    let text = try_open(other).err().unwrap().to_string();
    assert!(text.contains("node_name dc1") && text.contains("node_name = dc1"), "{text}");
    for (path, key) in [(BASE, "queue_file_path"), (ACK, "queue_file_ack_path")] {
        let disk = SimDisk::new();
        replicon::fsx::durable_dir(&disk, Path::new("/q")).unwrap();
        let old = replicon::fsx::Disk::create(&disk, Path::new(path)).unwrap();
        old.write_at(b"v1.0.2", 0).unwrap();
        match try_open(options(&disk)) {
            Err(OpenError::Foreign { path: named, key: k }) => {
                assert_eq!((named.to_str().unwrap(), k), (path, key));
            }
            other => panic!("{:?}", other.err()),
        }
        assert_eq!(bytes(&disk, path), b"v1.0.2");
        assert_eq!(disk.files().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_interval_mode_a_failed_sync_loses_nothing_while_the_machine_stays_up() {
    let disk = SimDisk::new();
    let sync = SyncMode::Interval(Duration::from_millis(5));
    let clock = Clock::system();
    let queue = open(Options { sync, clock, ..options(&disk) });
    disk.fail(Some(Op::Sync), Fault::Once(1));
    let mut told = Told::default();
    for n in 0..50 {
        if let Ok(got) = queue.append(batch("a", n, 1)).await {
            told.accepted.insert(n, got.first);
        } else {
            told.doubtful.push(n);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(queue);
    judge(&disk.crash(Persist::Nothing, 1), &told, "interval").await;
    assert!(told.accepted.len() > 40);
}

#[tokio::test]
async fn a_read_that_fails_in_the_middle_of_a_lease_loses_nothing() {
    for fails in 0..40 {
        let disk = SimDisk::new();
        let queue = open(Options { segment_bytes: 9000, ..options(&disk) });
        for n in 0..60 {
            queue.append(batch("a", n, 1)).await.unwrap();
        }
        drop(queue);
        let queue = open(options(&disk));
        disk.fail(Some(Op::Read), Fault::Once(fails));
        let (events, queue) = drain(queue).await;
        assert_eq!(events.len(), 60, "read {fails} fails");
        assert_eq!(counts(&queue).lost, 0);
    }
}

#[tokio::test]
async fn in_interval_mode_too_segments_end_at_their_size_and_go_when_released() {
    let disk = SimDisk::new();
    let sync = SyncMode::Interval(Duration::ZERO);
    let queue = open(Options { segment_bytes: 9000, sync, ..options(&disk) });
    for n in 0..200 {
        queue.append(batch("a", n, 1)).await.unwrap();
    }
    let (events, queue) = drain(queue).await;
    assert_eq!(events.len(), 200);
    drop(queue);
    assert!(disk.history().iter().filter(|(op, _)| *op == Op::SyncDir).count() > 10);
    assert!(segments(&disk).len() <= 2, "{:?}", segments(&disk));
}

#[tokio::test]
async fn a_dead_letter_outlives_a_kill_and_a_start_on_a_full_disk() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.append(batch("a", 0, 2)).await.unwrap();
    let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    let why = DeadReason { code: "x".to_owned(), text: "y".to_owned() };
    queue.dead_letter(&lease.events[0], &why).await.unwrap();
    for mode in MODES {
        let after = disk.crash(mode, 9);
        let used: usize = after.files().iter().map(|f| bytes(&after, f).len()).sum();
        after.set_capacity(Some(used as u64));
        let queue = FileQueue::open(options(&after)).unwrap();
        assert!(queue.is_dead(lease.events[0].seq), "{mode:?}");
        assert!(!queue.is_dead(lease.events[1].seq));
    }
}

#[tokio::test]
async fn an_unreadable_segment_of_dead_letters_is_not_overwritten() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.append(batch("a", 0, 2)).await.unwrap();
    let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    let why = DeadReason { code: "x".to_owned(), text: "y".to_owned() };
    queue.dead_letter(&lease.events[1], &why).await.unwrap();
    drop(queue);
    let letters = |disk: &SimDisk| -> Vec<_> {
        let files = disk.files().into_iter();
        files.filter(|f| f.to_str().unwrap().starts_with("/q/ingest.log.dead.")).collect()
    };
    let first = letters(&disk)[0].clone();
    let garbage = vec![7; 9000];
    disk.corrupt(&first, garbage.clone());
    let queue = open(options(&disk));
    for event in lease.events.iter().rev() {
        queue.dead_letter(event, &why).await.unwrap();
    }
    assert_eq!(bytes(&disk, &first), garbage);
    assert_eq!(letters(&disk).len(), 2);
}

#[tokio::test]
async fn a_flip_in_the_newer_ack_slot_is_no_loss() {
    let disk = SimDisk::new();
    let small = || Options { segment_bytes: 9000, ..options(&disk) };
    let queue = open(small());
    for i in 0..40 {
        queue.append(batch("a", i * 10, 10)).await.unwrap();
    }
    // one slot says so much is released, the other everything
    let part =
        queue.lease(&Source::Main, LeaseLimit { events: 100, bytes: 1 << 20 }).await.unwrap();
    let word = format!("\"released\":{}", part.events[99].seq);
    queue.ack(part, &[]).await;
    let mut turns = 0;
    while !String::from_utf8_lossy(&bytes(&disk, ACK)).contains(&word) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        turns += 1;
        assert!(turns < 10_000, "{word} is never written");
    }
    let (_, queue) = drain(queue).await;
    // while it runs: an orderly stop writes both slots alike
    turns = 0;
    while segments(&disk).len() > 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        turns += 1;
        assert!(turns < 10_000, "{:?}", segments(&disk));
    }
    let killed = disk.crash(Persist::Everything, 1);
    drop(queue);
    let whole = bytes(&killed, ACK);
    for slot in [0, 1 << 20] {
        let damaged = killed.crash(Persist::Everything, 1);
        let mut bad = whole.clone();
        bad[slot + 30] ^= 1;
        damaged.corrupt(Path::new(ACK), bad);
        let queue = open(Options { segment_bytes: 9000, ..options(&damaged) });
        let (_, queue) = drain(queue).await;
        assert_eq!((counts(&queue).lost, queue.stats().damage.len()), (0, 0), "slot {slot}");
    }
}

/// The storage may yet turn out to lack what it took last: what is released stays until it was told.
#[tokio::test]
async fn a_released_segment_stays_until_the_storage_was_told() {
    let disk = SimDisk::new();
    let small = || Options { segment_bytes: 9000, ..options(&disk) };
    let queue = open(small());
    queue.keep_above(Kept::default());
    for n in 0..40 {
        queue.append(batch("a", n * 10, 10)).await.unwrap();
    }
    let all = segments(&disk);
    assert!(all.len() > 3, "{all:?}");
    let (events, queue) = drain(queue).await;
    drop(queue);
    assert_eq!(segments(&disk)[..all.len()], all, "released, and nobody was told");
    for (told, stay) in [(Seq(0), true), (events[0].seq, true), (events[399].seq, false)] {
        let queue = open(small());
        queue.keep_above(Kept { main: told, ..Kept::default() });
        queue.append(batch("a", 400, 1)).await.unwrap();
        let (_, queue) = drain(queue).await;
        drop(queue);
        let left = segments(&disk);
        assert_eq!(all.iter().all(|segment| left.contains(segment)), stay, "{told}: {left:?}");
    }
}
