//! Parked channels on the file log: crashes at every operation, full disks, dead letters without room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicon::clock::Clock;
use replicon::event::{ChannelName, Event, Name, Seq};
use replicon::fsx::Disk as _;
use replicon::fsx::sim::{Fault, MODES, Op, SimDisk};
use replicon::queue::conformance::batch;
use replicon::queue::file::{FileQueue, Kept, Options};
use replicon::queue::{LeaseLimit, Queue, Source};
use replicon::storage::memory::{MemoryStorage, reject};
use replicon::storage::{Kind, StorageError};
use replicon::writer::{self, Orders, Report};
use tokio::sync::watch;

use crate::support::full_scale;
use crate::support::sim::{WIDE, counts, open, options, segments, try_open};

fn a() -> ChannelName {
    Name::new("a").unwrap()
}

fn number(event: &Event) -> u64 {
    let text = std::str::from_utf8(&event.payload).unwrap();
    text[5..text.len() - 1].parse().unwrap()
}

/// Appends events of a stuck channel between those of another, and parks the stuck ones.
async fn work(queue: &FileQueue, accepted: &mut BTreeMap<u64, Seq>, stored: &mut BTreeSet<Seq>) {
    let mut stuck = false;
    for round in 0..6u64 {
        let mut more = false;
        for (channel, from) in [("a", round * 10), ("b", 1000 + round * 10)] {
            if let Ok(got) = queue.append(batch(channel, from, 3)).await {
                accepted.extend((0..3).map(|k| (from + k, Seq(got.first.0 + k))));
                more = true;
            }
        }
        // nothing comes while a copy has not succeeded
        if stuck || !more {
            continue;
        }
        let limit = LeaseLimit { events: 4, bytes: 1 << 20 };
        let lease = queue.lease(&Source::Main, limit);
        // a copy of what follows may fail, too
        let Ok(lease) = tokio::time::timeout(Duration::from_millis(200), lease).await else {
            stuck = true;
            continue;
        };
        let mut lease = lease.unwrap();
        let theirs: BTreeSet<Seq> =
            lease.events.iter().filter(|e| e.channel == a()).map(|e| e.seq).collect();
        stuck = queue.park(&mut lease, &theirs, "its table is gone").await.is_err();
        if !stuck {
            // what stands in the storage: it may come again, and must not be missed
            stored.extend(lease.events.iter().map(|e| e.seq));
            queue.ack(lease, &[]).await;
        }
        if round == 3
            && let Ok(lease) = queue.lease(&Source::Parked(a()), WIDE).await
            && !lease.events.is_empty()
        {
            stored.extend(lease.events.iter().map(|e| e.seq));
            queue.ack(lease, &[]).await;
        }
    }
}

/// Everything that a queue still delivers; checks the order of each source.
async fn deliver(queue: &Arc<FileQueue>) -> Vec<Event> {
    let take = |from: Source| {
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut all: Vec<Event> = Vec::new();
            while let Ok(lease) = queue.lease(&from, WIDE).await {
                all.extend(lease.events.iter().cloned());
                match lease.events.is_empty() {
                    true => tokio::time::sleep(Duration::from_millis(1)).await,
                    false => queue.ack(lease, &[]).await,
                }
            }
            assert!(all.is_sorted_by(|x, y| x.seq < y.seq), "{from:?} in rising order");
            all
        })
    };
    let (main, parked) = (take(Source::Main), take(Source::Parked(a())));
    let mut turns = 0;
    while counts(queue).queued > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        turns += 1;
        assert!(turns < 20_000, "still queued: {:?}", queue.stats());
    }
    queue.stop_leasing();
    let mut all = main.await.unwrap();
    all.extend(parked.await.unwrap());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_while_a_channel_is_parked_nothing_is_lost_and_its_order_stays() {
    let (seeds, step) = if full_scale() { (10, 1) } else { (1, 3) };
    for fails_from in (0..).step_by(step) {
        let disk = SimDisk::new();
        let small = || Options { segment_bytes: 9000, ..options(&disk) };
        let queue = open(small());
        disk.fail(None, Fault::From(fails_from));
        let (mut accepted, mut stored) = (BTreeMap::new(), BTreeSet::new());
        work(&queue, &mut accepted, &mut stored).await;
        for mode in MODES {
            for seed in 0..seeds {
                let what = format!("operation {fails_from} on fails, {mode:?}, seed {seed}");
                let after = disk.crash(mode, seed * 7919 + fails_from);
                let again = Arc::new(open(options(&after)));
                let came = deliver(&again).await;
                assert_eq!(counts(&again).queued, 0, "{what}: {:?}", again.stats());
                assert_eq!(again.stats().damage, Vec::<String>::new(), "{what}: a false report");
                let mut seen: BTreeMap<u64, Seq> = BTreeMap::new();
                for event in &came {
                    let before = seen.insert(number(event), event.seq);
                    assert!(before.is_none(), "{what}: {event:?} twice in one run");
                }
                for (n, seq) in &accepted {
                    let there = seen.get(n) == Some(seq) || stored.contains(seq);
                    assert!(there, "{what}: {n} was answered with {seq} and is lost");
                }
            }
        }
        if accepted.len() == 36 && disk.ops() < fails_from {
            break;
        }
        assert!(fails_from < 2000, "the work never ends well");
    }
}

struct Bench {
    disk: SimDisk,
    queue: Arc<FileQueue>,
    storage: MemoryStorage,
    report: Report,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

fn bench(options: Options, disk: &SimDisk, storage: MemoryStorage) -> Bench {
    let seconds = prometheus::HistogramOpts::new("s", "s");
    let report = Report {
        trouble: Arc::new(watch::channel(None).0),
        write_seconds: prometheus::Histogram::with_opts(seconds).unwrap(),
        met: Arc::default(),
    };
    let mut bench = Bench {
        disk: disk.clone(),
        queue: Arc::new(open(options)),
        storage,
        report,
        stop: watch::channel(false).0,
        tasks: Vec::new(),
    };
    bench.start();
    bench
}

impl Bench {
    fn start(&mut self) {
        for parked in [false, true, false] {
            let orders = Orders {
                stop: self.stop.subscribe(),
                limit: LeaseLimit { events: 50, bytes: 1 << 20 },
                flush: Duration::ZERO,
                busy: Arc::default(),
            };
            let (queue, report) = (self.queue.clone(), self.report.clone());
            let storage = Arc::new(self.storage.clone());
            self.tasks.push(if parked {
                tokio::spawn(writer::run_parked(queue, storage, report, orders))
            } else {
                tokio::spawn(writer::run(queue, storage, report, orders))
            });
        }
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("waited for {what}: {:?}", self.queue.stats());
    }

    fn queued(&self, channel: &str) -> u64 {
        let named = |c: &Option<ChannelName>| c.as_ref().is_some_and(|c| c.as_str() == channel);
        let stats = self.queue.stats();
        stats.channels.iter().find(|(c, _)| named(c)).map_or(0, |(_, c)| c.queued)
    }

    async fn end(mut self) -> (SimDisk, MemoryStorage) {
        self.stop.send_replace(true);
        self.queue.stop_leasing();
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
        self.queue.close();
        (self.disk, self.storage)
    }
}

fn fatal_for_a(events: &[Event]) -> Option<(StorageError, bool)> {
    let channel = events.iter().find(|e| e.channel == a())?.channel.clone();
    let kind = Kind::Fatal;
    Some((StorageError { kind, channel: Some(channel), ..reject("column gone") }, false))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_channel_lets_the_log_be_freed_and_resumes_after_a_restart_in_order() {
    let disk = SimDisk::new();
    let small = || Options { segment_bytes: 20_000, ..options(&disk) };
    let bench = bench(small(), &disk, MemoryStorage::default());
    bench.storage.trouble(fatal_for_a);
    for round in 0..60 {
        bench.queue.append(batch("a", round * 2, 2)).await.unwrap();
        bench.queue.append(batch("b", 10_000 + round * 4, 4)).await.unwrap();
        bench.until("room", |bench| bench.queued("b") < 100).await;
    }
    bench.until("all of b", |bench| bench.queued("b") == 0).await;
    bench.until("all of a to be parked", |bench| bench.queued("a") == 120).await;
    bench.until("the age of what waits", |bench| bench.queue.stats().oldest_micros.is_some()).await;
    let parked = bench.queue.stats().parked;
    assert_eq!(parked.len(), 1);
    assert!(parked[0].to_string().starts_with("channel a is parked: column gone (rejected);"));
    bench.until("one segment", |bench| segments(&bench.disk).len() == 1).await;

    let (disk, storage) = bench.end().await;
    storage.heal();
    let again = self::bench(small(), &disk, storage);
    again.until("all of a", |bench| bench.queued("a") == 0).await;
    again.until("the end of parking", |bench| bench.queue.stats().parked.is_empty()).await;
    let of_a: Vec<Event> = again.storage.order().into_iter().filter(|e| e.channel == a()).collect();
    assert_eq!(of_a.iter().map(number).collect::<Vec<_>>(), (0..120).collect::<Vec<_>>());
    let files = again.disk.files();
    let left = files.iter().filter(|path| path.to_str().unwrap().contains(".parked."));
    assert_eq!(left.count(), 0, "its log is gone: {files:?}");
    again.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_dead_letters_their_channel_waits_and_nothing_is_dropped() {
    let disk = SimDisk::new();
    let options = Options { dead_letter_max_bytes: 1000, ..options(&disk) };
    let bench = bench(options, &disk, MemoryStorage::default());
    bench.storage.trouble(|events| {
        events.iter().any(|e| e.channel == a()).then(|| (reject("check violated"), false))
    });
    for n in 0..30 {
        bench.queue.append(batch("a", n, 1)).await.unwrap();
        bench.queue.append(batch("b", 1000 + n, 1)).await.unwrap();
    }
    bench.until("all of b", |bench| bench.queued("b") == 0).await;
    bench.until("a parked channel", |bench| !bench.queue.stats().parked.is_empty()).await;
    let why = bench.queue.stats().parked[0].to_string();
    assert!(why.contains("dead_letter_max_bytes (1000) is reached"), "{why}");
    let dead = counts(&bench.queue).dead_lettered;
    assert!(dead > 0 && dead < 30, "{dead}");
    assert_eq!(bench.queued("a"), 30 - dead);
    let all = bench.queue.discard_dead(&Default::default()).await.unwrap();
    assert!(all >= dead, "{all}");
    bench.storage.heal();
    bench.until("the rest of a", |bench| bench.queued("a") == 0).await;
    let rows = bench.storage.rows();
    assert_eq!(rows.iter().filter(|e| e.channel == a()).count() as u64, 30 - all);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_fails_stays_in_the_main_log_until_it_stands() {
    let disk = SimDisk::new();
    let clock = Clock::system();
    let bench = bench(Options { clock, ..options(&disk) }, &disk, MemoryStorage::default());
    bench.storage.trouble(fatal_for_a);
    bench.queue.append(batch("a", 0, 1)).await.unwrap();
    bench.until("a parked channel", |bench| !bench.queue.stats().parked.is_empty()).await;
    for n in 1..20 {
        // the first sync is the main log's, the second that of the copy
        disk.fail(Some(Op::Sync), Fault::Once(1 + n % 2));
        // or the other way round, where the ack record was synced meanwhile
        let _ = bench.queue.append(batch("a", n, 1)).await;
        bench.until("the fault", |_| disk.healthy()).await;
        bench.until("appends", |bench| bench.queue.stats().refusing.is_none()).await;
    }
    let accepted = counts(&bench.queue).accepted;
    bench.storage.heal();
    bench.until("all of a", |bench| bench.queued("a") == 0).await;
    assert_eq!(bench.storage.rows().len() as u64, accepted);
    assert!(bench.storage.order().is_sorted_by(|x, y| x.seq < y.seq));
    bench.end().await;
    assert!(try_open(options(&disk)).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_lease_waits_until_the_older_ones_are_copied() {
    let disk = SimDisk::new();
    let queue = Arc::new(open(options(&disk)));
    queue.append(batch("a", 0, 6)).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..3 {
        let limit = LeaseLimit { events: 2, bytes: 1 << 20 };
        leases.push(queue.lease(&Source::Main, limit).await.unwrap());
    }
    let park = |mut lease: replicon::queue::Lease| {
        let queue = queue.clone();
        tokio::spawn(async move {
            let seqs = lease.events.iter().map(|e| e.seq).collect();
            queue.park(&mut lease, &seqs, "its table is gone").await.unwrap();
            queue.ack(lease, &[]).await;
        })
    };
    let (oldest, middle, newest) = (leases.remove(0), leases.remove(0), leases.remove(0));
    let newest = park(newest);
    let middle = park(middle);
    // both are under way, and must not pass the oldest
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!newest.is_finished() && !middle.is_finished());
    // this one is stored after all
    queue.ack(oldest, &[]).await;
    middle.await.unwrap();
    newest.await.unwrap();
    let came = deliver(&queue).await;
    assert_eq!(came.iter().map(number).collect::<Vec<_>>(), [2, 3, 4, 5]);
}

/// Leases what there is, and sets all of it aside.
async fn park_all(queue: &FileQueue) {
    let mut lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    let theirs = lease.events.iter().map(|event| event.seq).collect();
    queue.park(&mut lease, &theirs, "its table is gone").await.unwrap();
    queue.ack(lease, &[]).await;
}

/// The storage may yet turn out to lack what it took last.
#[tokio::test]
async fn a_channel_that_has_drained_keeps_its_log_until_the_storage_was_told() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.keep_above(Kept::default());
    let got = queue.append(batch("a", 0, 3)).await.unwrap();
    park_all(&queue).await;
    let aside = Source::Parked(a());
    let lease = queue.lease(&aside, WIDE).await.unwrap();
    assert_eq!(lease.events.len(), 3);
    queue.ack(lease, &[]).await;
    for (told, parked) in [(Seq(0), 1), (Seq(got.last.0 - 1), 1), (got.last, 0)] {
        queue.keep_above(Kept { main: got.last, channels: [(a(), told)].into() });
        assert_eq!(queue.lease(&aside, WIDE).await.unwrap().events, []);
        assert_eq!(queue.stats().parked.len(), parked, "told up to {told}");
    }
}

/// Beside one event that finds no room among the dead letters, others of its batch may be stored for
/// days before their lease ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_beside_a_stuck_event_is_stored_again_where_the_storage_is_met_anew() {
    let disk = SimDisk::new();
    let options = Options { dead_letter_max_bytes: 10, ..options(&disk) };
    let bench = bench(options, &disk, MemoryStorage::default());
    let tried: Arc<Mutex<Vec<u64>>> = Arc::default();
    let seen = tried.clone();
    bench.storage.trouble(fatal_for_a);
    bench.queue.append(batch("a", 0, 1)).await.unwrap();
    bench.until("a parked channel", |bench| !bench.queue.stats().parked.is_empty()).await;
    bench.queue.append(batch("a", 4, 3)).await.unwrap();
    bench.storage.trouble(move |events| {
        seen.lock().unwrap().extend(events.iter().map(number));
        events.iter().any(|e| number(e) == 5).then(|| (reject("check violated"), false))
    });
    let rows = |bench: &Bench| bench.storage.rows().iter().map(number).collect::<Vec<_>>();
    bench.until("what stands below the bad one", |bench| rows(bench) == [0, 4]).await;
    let times = |n: u64| tried.lock().unwrap().iter().filter(|tried| **tried == n).count();
    let before = times(5);
    bench.until("a try of what is stuck", |_| times(5) > before).await;
    assert!(bench.queued("a") >= 3, "their lease has not ended");
    let before = times(4);
    bench.report.met.fetch_add(1, Ordering::SeqCst);
    bench.until("the stored one to be stored again", |_| times(4) > before).await;
    bench.storage.heal();
    bench.until("the end", |bench| bench.queued("a") == 0).await;
    bench.end().await;
}

/// The log of a parked channel was drained, and a crash has the main one deliver its events again: they
/// are in nobody's hands, so nothing may wait for them.
#[tokio::test]
async fn a_drained_channel_that_comes_again_after_a_crash_is_passed_and_ends() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    queue.keep_above(Kept::default());
    // an older lease holds the main log's position back
    let first = queue.append(batch("b", 0, 1)).await.unwrap();
    let held = queue.lease(&Source::Main, LeaseLimit { events: 1, bytes: 1 << 20 }).await.unwrap();
    assert_eq!(held.events[0].seq, first.first);
    let got = queue.append(batch("a", 0, 3)).await.unwrap();
    park_all(&queue).await;
    let aside = Source::Parked(a());
    let lease = queue.lease(&aside, WIDE).await.unwrap();
    queue.ack(lease, &[]).await;
    // the position of its log is durable, the channel is parked still
    queue.close();
    drop(queue);
    let queue = open(options(&disk.crash(MODES[0], 1)));
    queue.keep_above(Kept::default());
    assert_eq!(queue.stats().parked.len(), 1);
    let again = queue.lease(&Source::Main, WIDE).await.unwrap();
    assert_eq!(again.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [first.first]);
    queue.ack(again, &[]).await;
    for _ in 0..3 {
        assert_eq!(queue.lease(&aside, WIDE).await.unwrap().events, []);
    }
    // the storage is told what peers may be shown
    let safe = queue.marks().safe(&a());
    assert!(safe >= got.last, "{safe} of {}", got.last);
    queue.keep_above(Kept { main: safe, channels: [(a(), safe)].into() });
    assert_eq!(queue.lease(&aside, WIDE).await.unwrap().events, []);
    assert_eq!(queue.stats().parked, []);
}

/// A drained channel ends by two writes of the ack record, and one of them may fail.
#[tokio::test]
async fn whatever_fails_when_a_drained_channel_ends_nothing_is_lost_or_comes_again() {
    for fails_at in 0.. {
        let disk = SimDisk::new();
        // each copy is a segment of its own
        let queue = open(Options { segment_bytes: 1, ..options(&disk) });
        queue.append(batch("a", 0, 1)).await.unwrap();
        park_all(&queue).await;
        for n in 1..4 {
            queue.append(batch("a", n, 1)).await.unwrap();
            queue.append(batch("b", n, 1)).await.unwrap();
            let others = queue.lease(&Source::Main, WIDE).await.unwrap();
            queue.ack(others, &[]).await;
        }
        let aside = Source::Parked(a());
        let all = queue.lease(&aside, WIDE).await.unwrap();
        assert_eq!(all.events.len(), 4);
        queue.ack(all, &[]).await;
        let left = || {
            let files = disk.files();
            let of_a = files.iter().filter(|path| path.to_str().unwrap().contains(".parked."));
            of_a.count()
        };
        for _ in 0..2000 {
            if left() <= 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(left() <= 1, "what was drained is deleted: {:?}", disk.files());
        disk.fail(None, Fault::Once(fails_at));
        let _ = queue.lease(&aside, WIDE).await;
        let not_met = !disk.healthy();
        disk.heal();
        queue.append(batch("b", 0, 1)).await.unwrap();
        let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
        queue.ack(lease, &[]).await;
        queue.close();
        drop(queue);
        for mode in MODES {
            let again = open(options(&disk.crash(mode, fails_at)));
            let stats = again.stats();
            assert_eq!(stats.damage, Vec::<String>::new(), "operation {fails_at}, {mode:?}");
            let all = counts(&again);
            assert_eq!((all.lost, all.queued), (0, 0), "operation {fails_at}, {mode:?}");
        }
        if not_met {
            break;
        }
    }
}

/// What damage hides at the end of its log is lost, and told; nothing waits for it: not behind a frame
/// that cannot be read, and not where the file ends too early.
#[tokio::test]
async fn a_channel_whose_log_is_damaged_at_its_end_drains_and_ends() {
    for cut in [false, true] {
        let disk = two_parked().await;
        let of_a = |path: &PathBuf| path.to_str().unwrap().contains(".parked.");
        let last = disk.files().into_iter().rfind(of_a).unwrap();
        let file = disk.open(&last).unwrap();
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        let at = bytes.windows(7).rposition(|part| part == b"{\"n\":1}").unwrap();
        bytes[at] ^= 1;
        bytes.truncate(if cut { at } else { bytes.len() });
        disk.corrupt(&last, bytes);

        let queue = open(options(&disk));
        queue.keep_above(Kept::default());
        let aside = Source::Parked(a());
        // it is found by the look behind this one
        let one = LeaseLimit { events: 1, bytes: 1 << 20 };
        let lease = queue.lease(&aside, one).await.unwrap();
        assert_eq!(lease.events.iter().map(number).collect::<Vec<_>>(), [0]);
        queue.ack(lease, &[]).await;
        assert_eq!(queue.lease(&aside, WIDE).await.unwrap().events, []);
        assert_eq!((counts(&queue).lost, queue.stats().damage.len()), (1, 1), "cut: {cut}");
        let safe = queue.marks().safe(&a());
        queue.keep_above(Kept { main: safe, channels: [(a(), safe)].into() });
        assert_eq!(queue.lease(&aside, WIDE).await.unwrap().events, []);
        assert_eq!(queue.stats().parked, [], "cut: {cut}");
    }
}

/// A log that was stopped in order, with two events of a channel that is set aside.
async fn two_parked() -> SimDisk {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    for n in 0..2 {
        queue.append(batch("a", n, 1)).await.unwrap();
        queue.append(batch("b", n, 1)).await.unwrap();
        let mut lease = queue.lease(&Source::Main, WIDE).await.unwrap();
        let theirs = lease.events.iter().filter(|e| e.channel == a()).map(|e| e.seq).collect();
        queue.park(&mut lease, &theirs, "its table is gone").await.unwrap();
        queue.ack(lease, &[]).await;
    }
    queue.close();
    disk
}
