//! File queues on a simulated disk.
//!
//! Knows nothing of what is tested.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicon::clock::Clock;
use replicon::event::{Event, Micros, Origin};
use replicon::fsx::sim::SimDisk;
use replicon::queue::accounts::{Ceilings, Counts};
use replicon::queue::conformance::MAX_EVENTS;
use replicon::queue::file::{FileQueue, OpenError, Options, SyncMode};
use replicon::queue::{LeaseLimit, Queue, Source};
use replicon::task::Spine;

/// Where the log lies.
pub const BASE: &str = "/q/ingest.log";
/// Where the ack record lies.
pub const ACK: &str = "/q/ingest.ack";
/// Wide enough for any test's events.
pub const WIDE: LeaseLimit = LeaseLimit { events: 10_000, bytes: 1 << 20 };

/// Options for a queue on `disk`.
pub fn options(disk: &SimDisk) -> Options {
    let seconds = prometheus::HistogramOpts::new("s", "s");
    Options {
        disk: disk.shared(),
        path: BASE.into(),
        ack_path: ACK.into(),
        origin: Origin::new("dc1").unwrap(),
        clock: Clock::manual(Micros(1_790_000_000_000_000)),
        sync: SyncMode::Ack,
        segment_bytes: 1 << 20,
        ceilings: Ceilings { max_events: MAX_EVENTS, max_bytes: 1 << 30, channel_share: 1.0 },
        min_free_bytes: 0,
        dead_letter_max_bytes: 1 << 20,
        lock: false,
        spine: Spine::default(),
        sync_seconds: prometheus::Histogram::with_opts(seconds).unwrap(),
    }
}

/// Opens it; identities count as certain.
pub fn open(options: Options) -> FileQueue {
    try_open(options).unwrap_or_else(|e| panic!("{e}"))
}

/// As [`open`].
pub fn try_open(options: Options) -> Result<FileQueue, OpenError> {
    let queue = FileQueue::open(options)?;
    // a disk that fails now fails the test's appends too
    let _ = queue.identity_certain();
    Ok(queue)
}

/// The log's segments, oldest first.
pub fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let ours = |path: &PathBuf| {
        let name = path.to_str().unwrap();
        name.strip_prefix(BASE)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|digits| digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
    };
    disk.files().into_iter().filter(ours).collect()
}

/// The counts of all channels together.
pub fn counts(queue: &FileQueue) -> Counts {
    let mut sum = Counts::default();
    for (_, c) in queue.stats().channels {
        assert_eq!(c.accepted + c.recovered, c.stored + c.queued + c.dead_lettered + c.lost);
        sum.accepted += c.accepted;
        sum.recovered += c.recovered;
        sum.stored += c.stored;
        sum.queued += c.queued;
        sum.dead_lettered += c.dead_lettered;
        sum.lost += c.lost;
    }
    sum
}

/// Everything that the queue still delivers, acked as it comes, until it counts nothing queued.
pub async fn drain(queue: FileQueue) -> (Vec<Event>, FileQueue) {
    let queue = Arc::new(queue);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (taker, taken) = (queue.clone(), seen.clone());
    let work = tokio::spawn(async move {
        while let Ok(lease) = taker.lease(&Source::Main, WIDE).await {
            taken.lock().unwrap().extend(lease.events.iter().cloned());
            taker.ack(lease, &[]).await;
        }
    });
    let mut turns = 0;
    while counts(&queue).queued > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        turns += 1;
        assert!(turns < 20_000, "still queued: {:?}", queue.stats());
    }
    queue.stop_leasing();
    work.await.unwrap();
    let events = std::mem::take(&mut *seen.lock().unwrap());
    assert!(events.is_sorted_by(|a, b| a.seq < b.seq), "delivered in rising order");
    let queue = Arc::try_unwrap(queue).unwrap_or_else(|_| panic!("nobody else holds it"));
    (events, queue)
}

/// Copies all files of `from` onto a fresh disk, durable.
pub fn copy(from: &SimDisk) -> SimDisk {
    from.crash(replicon::fsx::sim::Persist::Everything, 1)
}

/// A file's bytes.
pub fn bytes(disk: &SimDisk, path: impl AsRef<Path>) -> Vec<u8> {
    disk.bytes(path.as_ref()).unwrap()
}
