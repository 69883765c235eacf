use std::collections::HashSet;

use super::*;
use crate::clock::Clock;
use crate::queue::DeadReason;
use crate::queue::accounts::Ceilings;
use crate::queue::conformance::batch;
use crate::queue::memory::MemoryQueue;
use crate::storage::Kind;
use crate::storage::memory::{MemoryStorage, reject};

struct Bench {
    queue: Arc<MemoryQueue>,
    storage: MemoryStorage,
    report: Report,
    stop: watch::Sender<bool>,
}

fn bench() -> Bench {
    let most = Ceilings { max_events: 1 << 20, max_bytes: 1 << 30, channel_share: 1.0 };
    let buckets = prometheus::HistogramOpts::new("s", "s");
    Bench {
        queue: Arc::new(MemoryQueue::new(most, Clock::system())),
        storage: MemoryStorage::default(),
        report: Report {
            trouble: Arc::new(watch::channel(None).0),
            write_seconds: prometheus::Histogram::with_opts(buckets).unwrap(),
            met: Arc::default(),
        },
        stop: watch::channel(false).0,
    }
}

fn orders(stop: &watch::Sender<bool>, limit: LeaseLimit) -> Orders {
    let (stop, flush) = (stop.subscribe(), Duration::ZERO);
    Orders { stop, limit, flush, busy: Arc::default() }
}

impl Bench {
    async fn drain(&self) {
        let orders = orders(&self.stop, batch_limit(Some(100), 1));
        let storage = Arc::new(self.storage.clone());
        let work = run(self.queue.clone(), storage.clone(), self.report.clone(), orders.clone());
        let aside = run_parked(self.queue.clone(), storage, self.report.clone(), orders);
        let queue = self.queue.clone();
        let watch = async {
            while queue.stats().channels.iter().any(|(_, c)| c.queued > 0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            queue.stop();
            self.stop.send_replace(true);
        };
        tokio::time::timeout(Duration::from_secs(3600), async { tokio::join!(work, aside, watch) })
            .await
            .expect("the queue drains");
    }

    fn stored(&self) -> Vec<u64> {
        self.storage.rows().iter().map(|e| e.seq.0).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn exactly_the_bad_events_become_dead_letters() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 250)).await.unwrap();
    let bad: HashSet<u64> = [1, 77, 78, 200, 250].into();
    let refused = bad.clone();
    bench.storage.trouble(move |events| {
        let hit = events.iter().any(|e| refused.contains(&e.seq.0));
        hit.then(|| (reject("check violated"), false))
    });
    bench.drain().await;
    let good: Vec<u64> = (1..=250).filter(|n| !bad.contains(n)).collect();
    assert_eq!(bench.stored(), good);
    assert!(bad.iter().all(|n| bench.queue.is_dead(Seq(*n))));
    let counts = bench.queue.stats().channels[0].1;
    assert_eq!((counts.stored, counts.dead_lettered), (245, 5));
}

#[tokio::test(start_paused = true)]
async fn an_outage_however_long_dead_letters_nothing() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 30)).await.unwrap();
    let mut left = 200;
    bench.storage.trouble(move |_| {
        left -= 1;
        (left > 0).then(|| (StorageError::retry("down", "down"), false))
    });
    bench.drain().await;
    assert_eq!(bench.stored().len(), 30);
    assert_eq!(bench.queue.stats().channels[0].1.dead_lettered, 0);
}

/// Trouble of channel `a` for so many appends: named by the storage, or to be found out.
fn broken_table(kind: Kind, named: bool, mut left: u32) -> impl FnMut(&[Event]) -> Trouble + Send {
    move |events| {
        let theirs = events.iter().find(|e| e.channel.as_str() == "a")?;
        left = left.checked_sub(1)?;
        let channel = named.then(|| theirs.channel.clone());
        Some((StorageError { kind, channel, ..reject("column dropped") }, false))
    }
}

type Trouble = Option<(StorageError, bool)>;

#[tokio::test(start_paused = true)]
async fn a_stuck_channel_is_parked_and_holds_up_no_other() {
    for (kind, named) in [(Kind::Fatal, true), (Kind::Fatal, false), (Kind::Retry, true)] {
        let bench = bench();
        for i in 0..20 {
            let name = if i % 4 == 0 { "a" } else { "b" };
            bench.queue.append(batch(name, i * 30, 30)).await.unwrap();
        }
        bench.storage.trouble(broken_table(kind, named, 100));
        bench.drain().await;
        let rows = bench.storage.rows();
        assert_eq!(rows.len(), 600, "{kind:?} {named}");
        let order = bench.storage.order();
        let last_of_b = order.iter().rposition(|e| e.channel.as_str() == "b");
        let first_of_a = order.iter().position(|e| e.channel.as_str() == "a");
        assert!(last_of_b < first_of_a, "the other channel went on");
        let of_a: Vec<_> = order.iter().filter(|e| e.channel.as_str() == "a").collect();
        assert!(of_a.is_sorted_by(|x, y| x.seq < y.seq), "in order");
        let stats = bench.queue.stats();
        assert!(stats.channels.iter().all(|(_, c)| c.dead_lettered == 0 && c.queued == 0));
        assert_eq!(stats.parked, [], "it is parked no longer");
    }
}

/// The first event ends every session that is given it.
fn poison(events: &[Event]) -> Trouble {
    let lost = StorageError::retry(crate::storage::LOST, "reset by peer");
    events.iter().any(|e| e.seq == Seq(1)).then_some((lost, false))
}

#[tokio::test(start_paused = true)]
async fn an_event_that_kills_every_session_becomes_a_dead_letter_alone() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 61)).await.unwrap();
    bench.storage.trouble(poison);
    bench.drain().await;
    assert!(bench.queue.is_dead(Seq(1)));
    assert_eq!(bench.stored(), (2..=61).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_event_that_kills_every_session_is_judged_however_often_it_is_to_be_tried() {
    let bench = bench();
    bench.queue.tries(5);
    bench.queue.append(batch("a", 1, 61)).await.unwrap();
    bench.storage.trouble(poison);
    bench.drain().await;
    assert!(bench.queue.is_dead(Seq(1)), "and not lost");
    assert_eq!(bench.stored(), (2..=61).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn with_nothing_of_its_channel_stored_a_poison_may_be_an_outage_and_waits() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 1)).await.unwrap();
    bench.storage.trouble(poison);
    let later = async {
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(!bench.queue.is_dead(Seq(1)));
        assert_eq!(bench.queue.stats().parked.len(), 1, "it holds up no other channel");
        bench.queue.append(batch("a", 100, 20)).await.unwrap();
    };
    tokio::join!(bench.drain(), later);
    assert!(bench.queue.is_dead(Seq(1)));
    assert_eq!(bench.stored(), (2..=21).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_written_again_and_stands_once() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 30)).await.unwrap();
    let mut first = true;
    bench.storage.trouble(move |_| {
        std::mem::take(&mut first).then(|| (StorageError::retry("lost", "connection lost"), true))
    });
    bench.drain().await;
    assert_eq!(bench.stored().len(), 30);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_stands_in_storage_is_not_made_a_dead_letter() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 1)).await.unwrap();
    // the commit's answer is lost, and a check added since refuses the second writing
    let mut turn = 0;
    bench.storage.trouble(move |_| {
        turn += 1;
        match turn {
            1 => Some((StorageError::retry("lost", "connection lost"), true)),
            _ => Some((reject("check violated"), false)),
        }
    });
    bench.drain().await;
    assert_eq!(bench.stored(), [1]);
    assert!(!bench.queue.is_dead(Seq(1)));
}

#[tokio::test(start_paused = true)]
async fn a_redelivered_dead_letter_is_acked_untried() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 3)).await.unwrap();
    let lease = bench.queue.lease(&Source::Main, batch_limit(None, 1)).await.unwrap();
    let why = DeadReason { code: "x".to_owned(), text: String::new() };
    bench.queue.dead_letter(&lease.events[1], &why).await.unwrap();
    drop(lease);
    let queue = Arc::new(MemoryQueue::clone(&bench.queue).reopen());
    let bench = Bench { queue, ..bench };
    bench.drain().await;
    assert_eq!(
        bench.stored(),
        [1, 3],
        "what refused it may be gone by now: it is dead all the same"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_an_outage_acks_nothing() {
    let bench = bench();
    bench.queue.append(batch("a", 1, 3)).await.unwrap();
    bench.storage.trouble(|_| Some((StorageError::retry("down", "down"), false)));
    let orders = orders(&bench.stop, batch_limit(None, 1));
    let storage = Arc::new(bench.storage.clone());
    let work = run(bench.queue.clone(), storage, bench.report.clone(), orders);
    let stop = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        bench.stop.send_replace(true);
    };
    tokio::join!(work, stop);
    assert_eq!(bench.queue.stats().channels[0].1.queued, 3);
}

#[test]
fn batches_of_all_workers_together_stay_bounded() {
    for (configured, workers, want) in
        [(None, 1, 8192), (Some(200), 4, 200), (Some(1_000_000), 1, 65_536), (None, 64, 1024)]
    {
        assert_eq!(batch_limit(configured, workers).events, want);
    }
}

#[tokio::test]
async fn with_as_many_leases_as_are_held_the_last_is_tried_beside_what_is_left() {
    let bench = bench();
    let one = LeaseLimit { events: 2, bytes: 1 << 20 };
    let mut held = Held::default();
    for n in 0..HELD_LEASES {
        held.take_in_the_last();
        assert_eq!(held.left.len(), n.min(1), "there is room for one more");
        bench.queue.append(batch("a", 0, 2)).await.unwrap();
        held.leases.push(bench.queue.lease(&Source::Main, one).await.unwrap());
        held.left = vec![held.leases[0].events[0].clone()];
    }
    let last = held.leases[HELD_LEASES - 1].events.clone();
    held.dead = vec![last[1].seq];
    for _ in 0..2 {
        held.take_in_the_last();
        let left: Vec<Seq> = held.left.iter().map(|event| event.seq).collect();
        assert_eq!(left, [Seq(1), last[0].seq]);
    }
    assert!(held.resolved().is_empty(), "what lies behind a stuck event waits for it");
    held.left.clear();
    assert_eq!(held.resolved().len(), HELD_LEASES);
}
