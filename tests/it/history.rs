//! The keeper of a node's own history over a log on a simulated disk and a real database that goes back
//! at the worst moments: what it lacks is written again, whatever was under way.
//!
//! Attacks I3, I6 and I9, and H36.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use replicon::channel::{Channel, Mode, Registry};
use replicon::clock::Clock;
use replicon::event::{Batch, ChannelName, ModeTag, Name, Seq};
use replicon::fsx::sim::SimDisk;
use replicon::life::History;
use replicon::queue::conformance::batch;
use replicon::queue::file::look::{LogFiles, Wanted};
use replicon::queue::{AnyQueue, Appended, Lease, LeaseLimit, Queue, Source};
use replicon::storage::Storage;
use replicon::storage::history::HistoryStore;
use replicon::storage::sql::sqlite::Database;
use replicon::storage::sql::{Options, SqlStorage};
use replicon::writer::Report;
use replicon::writer::history::{Keeping, contact, keep};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::sim::{ACK, BASE, open};
use crate::support::sqlite::sqlite;

/// What the database refuses from then on, until `DROP TRIGGER broken`: no event is to blame.
const BREAKS: &str =
    "CREATE TRIGGER broken BEFORE INSERT ON events_raw BEGIN SELECT nobody_knows(); END";
/// What was told of everything.
const WHOLE: &str = "SELECT released_seq FROM replicon_released WHERE channel = '*'";

/// The channel, as it is configured.
fn today() -> BTreeMap<ChannelName, ModeTag> {
    [(a(), ModeTag::Raw)].into()
}

fn a() -> ChannelName {
    Name::new("a").unwrap()
}

/// A node without doors: a log, a database, and the keeper between them.
struct Bench {
    dir: TempDir,
    disk: SimDisk,
    queue: Arc<AnyQueue>,
    storage: Arc<SqlStorage<Database>>,
    history: Arc<History>,
    report: Report,
    stop: watch::Sender<bool>,
}

async fn bench() -> Bench {
    let (dir, disk) = (tempfile::tempdir().unwrap(), SimDisk::new());
    let channel =
        Channel { name: a(), enabled: true, mode: Mode::Raw, store_raw: true, keys: Vec::new() };
    let options = Options {
        origin: Name::new("dc1").unwrap(),
        registry: Arc::new(Registry::new(vec![channel]).unwrap()),
        clock: Clock::system(),
    };
    let seconds = prometheus::HistogramOpts::new("s", "s");
    let queue = Arc::new(AnyQueue::File(open(crate::support::sim::options(&disk))));
    queue.keep_above(Seq(0), &BTreeMap::new());
    let bench = Bench {
        storage: Arc::new(SqlStorage::new(Database::new(dir.path().join("a.db")), options)),
        history: Arc::new(History::new(&queue.node().node_id, Vec::new())),
        report: Report {
            trouble: Arc::new(watch::channel(None).0),
            write_seconds: prometheus::Histogram::with_opts(seconds).unwrap(),
            met: Arc::default(),
        },
        stop: watch::channel(false).0,
        queue,
        dir,
        disk,
    };
    bench.storage.connect(&contact(&bench.queue)).await.unwrap();
    bench
}

/// As [`bench`], with its keeper, which has settled.
async fn settled_bench() -> Bench {
    let bench = bench().await;
    bench.keep(today());
    bench.settled().await;
    bench
}

impl Bench {
    fn log(&self) -> LogFiles {
        LogFiles {
            disk: self.disk.shared(),
            path: PathBuf::from(BASE),
            ack_path: PathBuf::from(ACK),
            origin: Name::new("dc1").unwrap(),
        }
    }

    /// The keeper works from now on.
    fn keep(&self, modes: BTreeMap<ChannelName, ModeTag>) {
        drop(tokio::spawn(keep(Keeping {
            queue: self.queue.clone(),
            storage: self.storage.clone(),
            history: self.history.clone(),
            marks: self.queue.marks().unwrap(),
            log: Some(self.log()),
            origin: Name::new("dc1").unwrap(),
            modes: Arc::new(modes),
            report: self.report.clone(),
            stop: self.stop.subscribe(),
        })));
    }

    fn sql(&self, sql: &str) -> String {
        sqlite(&self.dir.path().join("a.db"), sql)
    }

    async fn append(&self, from: u64, count: u64) -> Appended {
        self.queue.append(batch("a", from, count)).await.unwrap()
    }

    async fn lease(&self, from: &Source, events: usize) -> Lease {
        self.queue.lease(from, LeaseLimit { events, bytes: 1 << 20 }).await.unwrap()
    }

    /// As a writer does.
    async fn store(&self, lease: Lease) {
        assert_eq!(self.storage.append(&lease.events).await.unwrap(), []);
        self.queue.ack(lease, &[]).await;
    }

    async fn until<T: std::fmt::Debug + PartialEq>(&self, what: &str, due: T, now: impl Fn() -> T) {
        for _ in 0..2000 {
            if now() == due {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited for {what}, {due:?}: {:?}; {:?}", now(), self.history.trouble());
    }

    async fn settled(&self) {
        let settled = self.history.settled();
        self.until("a settled history", true, || settled.borrow().is_some()).await;
    }

    async fn told(&self, seq: Seq) {
        self.until("what is released to be told", seq.to_string(), || self.sql(WHOLE)).await;
    }

    async fn rows(&self, due: u64) {
        let sql = "SELECT count(*), count(DISTINCT origin_seq) FROM events_raw";
        self.until("rows", format!("{due}|{due}"), || self.sql(sql)).await;
    }

    /// The database is again what it was when it had everything up to this seq, and nothing above.
    async fn goes_back(&self, to: Seq) {
        self.sql(&format!(
            "DELETE FROM events_raw WHERE origin_seq > {to}; \
             UPDATE replicon_released SET released_seq = min(released_seq, {to}) WHERE channel <> ''"
        ));
        self.storage.renew(&contact(&self.queue)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_above_a_batch_that_is_still_tried_is_looked_for_too() {
    let bench = settled_bench().await;
    let id = bench.history.id();
    bench.append(0, 20).await;
    let (one, two) = (bench.lease(&Source::Main, 10).await, bench.lease(&Source::Main, 10).await);
    let below = Seq(one.events[0].seq.0 - 1);
    bench.store(two).await;
    bench.rows(10).await;
    bench.goes_back(below).await;
    // it is waited for until nobody can store anything behind what is counted
    bench.until("an unsettled history", true, || bench.history.settled().borrow().is_none()).await;
    bench.rows(0).await;
    // what comes meanwhile makes up for nothing
    let last = bench.append(20, 30).await.last;
    bench.store(bench.lease(&Source::Main, 30).await).await;
    bench.rows(30).await;
    bench.store(one).await;
    bench.rows(50).await;
    bench.settled().await;
    assert_ne!(bench.history.id(), id);
    bench.told(last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_again_and_gone_once_more_is_written_again() {
    let bench = settled_bench().await;
    let got = bench.append(0, 10).await;
    bench.store(bench.lease(&Source::Main, 10).await).await;
    bench.told(got.last).await;
    // the next ten rows that are written do not stay
    bench.sql(
        "CREATE TABLE flaps (n); INSERT INTO flaps VALUES (10); \
         CREATE TRIGGER flap AFTER INSERT ON events_raw WHEN (SELECT n FROM flaps) > 0 BEGIN \
         UPDATE flaps SET n = n - 1; DELETE FROM events_raw WHERE origin_seq = NEW.origin_seq; END",
    );
    bench.goes_back(Seq(got.first.0 - 1)).await;
    bench.rows(10).await;
    assert_eq!(bench.sql("SELECT n FROM flaps"), "0");
    bench.settled().await;
    bench.told(got.last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_log_that_has_drained_stays_while_a_storage_that_went_back_is_not_settled() {
    let bench = settled_bench().await;
    let got = bench.append(0, 5).await;
    let mut stuck = bench.lease(&Source::Main, 5).await;
    let theirs = stuck.events.iter().map(|event| event.seq).collect();
    bench.queue.park(&mut stuck, &theirs, "its table is gone").await.unwrap();
    bench.queue.ack(stuck, &[]).await;
    let aside = Source::Parked(a());
    bench.store(bench.lease(&aside, 5).await).await;
    bench
        .until("it to be told", got.last.to_string(), || {
            bench.sql("SELECT released_seq FROM replicon_released WHERE channel = 'a'")
        })
        .await;
    // it could go now; before anybody looks the database goes back, and refuses
    bench.sql(BREAKS);
    bench.goes_back(Seq(got.first.0 - 1)).await;
    bench
        .until("the trouble", true, || {
            bench.history.trouble().is_some_and(|why| why.contains("refuses what it lacks"))
        })
        .await;
    for _ in 0..3 {
        assert_eq!(bench.lease(&aside, 5).await.events, []);
    }
    assert_eq!(bench.queue.stats().parked.len(), 1);
    let mut held = 0;
    let mut count = |_: &_, _| {
        held += 1;
        ControlFlow::Continue(())
    };
    bench.log().events(&Wanted::default(), &mut count).unwrap();
    assert_eq!(held, 5);
    bench.sql("DROP TRIGGER broken");
    bench.rows(5).await;
    bench.told(got.last).await;
    assert_eq!(bench.lease(&aside, 5).await.events, []);
    assert_eq!(bench.queue.stats().parked, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_is_not_forgotten_when_the_storage_goes_back_further() {
    let bench = settled_bench().await;
    let early = bench.append(0, 10).await;
    bench.store(bench.lease(&Source::Main, 10).await).await;
    bench.told(early.last).await;
    let late = bench.append(10, 10).await;
    bench.store(bench.lease(&Source::Main, 10).await).await;
    bench.told(late.last).await;
    bench.sql(BREAKS);
    for to in [early.last, Seq(early.first.0 - 1)] {
        bench.goes_back(to).await;
        let marks = bench.queue.marks().unwrap();
        bench.until("nothing to be shown above", true, || marks.safe(&a()) <= to).await;
        bench.settled().await;
        let why = bench.history.trouble().unwrap_or_default();
        assert!(why.contains("may lack of channel a"), "{why}");
    }
    bench.sql("DROP TRIGGER broken");
    bench.rows(20).await;
    bench.told(late.last).await;
}

/// A batch that is still tried, for days, say: peers are served, and nothing is told above it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_above_a_batch_that_does_not_end_is_looked_for_when_it_does() {
    let bench = settled_bench().await;
    let id = bench.history.id();
    let last = bench.append(0, 20).await.last;
    let (one, two) = (bench.lease(&Source::Main, 10).await, bench.lease(&Source::Main, 10).await);
    let below = Seq(one.events[0].seq.0 - 1);
    bench.store(two).await;
    bench.goes_back(below).await;
    bench.until("an unsettled history", true, || bench.history.settled().borrow().is_none()).await;
    bench.settled().await;
    bench.rows(0).await;
    let told = bench.sql(WHOLE).parse::<u64>().unwrap_or(0);
    assert!(bench.history.id() == id && told <= below.0, "{told}");
    bench.store(one).await;
    bench.rows(20).await;
    bench.told(last).await;
    assert_ne!(bench.history.id(), id);
}

/// What is handed out behind a meeting does not matter to it, however long that takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_meeting_waits_for_what_was_in_hand_then_and_for_nothing_that_came_since() {
    let bench = settled_bench().await;
    let last = bench.append(0, 10).await.last;
    let one = bench.lease(&Source::Main, 10).await;
    let met = || bench.report.met.load(Ordering::SeqCst);
    let before = met();
    bench.storage.renew(&contact(&bench.queue)).await.unwrap();
    bench.until("a meeting", true, || met() > before).await;
    bench.append(10, 10).await;
    let two = bench.lease(&Source::Main, 10).await;
    bench.settled().await;
    bench.store(one).await;
    bench.told(last).await;
    bench.store(two).await;
    bench.rows(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_behind_what_is_owed_is_looked_for_too() {
    let bench = settled_bench().await;
    let early = bench.append(0, 10).await;
    bench.store(bench.lease(&Source::Main, 10).await).await;
    let late = bench.append(10, 10).await;
    bench.store(bench.lease(&Source::Main, 10).await).await;
    bench.told(late.last).await;
    // what was there before is refused, and what comes is not
    let when = format!("ON events_raw WHEN NEW.origin_seq <= {} BEGIN", late.last);
    let fails = BREAKS.replace("nobody_knows()", "abs(-9223372036854775807 - 1)");
    bench.sql(&fails.replace("ON events_raw BEGIN", &when));
    let marks = bench.queue.marks().unwrap();
    bench.goes_back(early.last).await;
    bench.until("nothing to be shown above", true, || marks.safe(&a()) <= early.last).await;
    bench.settled().await;
    let more = bench.append(20, 10).await;
    bench.store(bench.lease(&Source::Main, 10).await).await;
    bench.rows(20).await;
    let met = || bench.report.met.load(Ordering::SeqCst);
    let before = met();
    bench.goes_back(early.last).await;
    bench.until("a meeting", true, || met() > before).await;
    bench.settled().await;
    bench.sql("DROP TRIGGER broken");
    bench.rows(30).await;
    bench.told(more.last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_above_an_event_that_is_set_aside_is_looked_for_too() {
    let bench = settled_bench().await;
    let got = bench.append(0, 5).await;
    let mut lease = bench.lease(&Source::Main, 5).await;
    let stuck = lease.events[1].clone();
    let rest: Vec<_> = lease.events.iter().filter(|e| e.seq != stuck.seq).cloned().collect();
    assert_eq!(bench.storage.append(&rest).await.unwrap(), []);
    bench.queue.park(&mut lease, &[stuck.seq].into(), "no room").await.unwrap();
    bench.queue.ack(lease, &[]).await;
    bench.rows(4).await;
    bench.goes_back(Seq(got.first.0 - 1)).await;
    bench.rows(4).await;
    let stands = format!("SELECT count(*) FROM events_raw WHERE origin_seq = {}", stuck.seq);
    assert_eq!(bench.sql(&stands), "0", "it waits");
    bench.settled().await;
    let aside = Source::Parked(a());
    bench.store(bench.lease(&aside, 5).await).await;
    bench.rows(5).await;
    for _ in 0..500 {
        assert_eq!(bench.lease(&aside, 5).await.events, []);
        if bench.queue.stats().parked.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.told(got.last).await;
}

/// What writers have in hand is theirs to store, also above an event of its channel that is set aside.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_hand_above_an_event_that_is_set_aside_is_left_to_its_writer() {
    let bench = settled_bench().await;
    let got = bench.append(0, 5).await;
    let mut stuck = bench.lease(&Source::Main, 2).await;
    let theirs = stuck.events.iter().map(|event| event.seq).collect();
    let rest = bench.lease(&Source::Main, 3).await;
    bench.queue.park(&mut stuck, &theirs, "its table is gone").await.unwrap();
    bench.queue.ack(stuck, &[]).await;
    let met = || bench.report.met.load(Ordering::SeqCst);
    let before = met();
    bench.goes_back(Seq(got.first.0 - 1)).await;
    bench.until("a meeting", true, || met() > before).await;
    bench.settled().await;
    bench.rows(0).await;
    bench.store(rest).await;
    bench.store(bench.lease(&Source::Parked(a()), 5).await).await;
    bench.rows(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_events_of_a_channel_that_is_gone_are_written_again() {
    let bench = bench().await;
    bench.keep(BTreeMap::new());
    bench.settled().await;
    let got = bench.append(0, 5).await;
    bench.store(bench.lease(&Source::Main, 5).await).await;
    bench.told(got.last).await;
    bench.goes_back(Seq(got.first.0 - 1)).await;
    bench.rows(5).await;
}

/// Nobody can tell where they stood.
#[tokio::test(flavor = "multi_thread")]
async fn structured_events_of_a_channel_that_is_gone_are_not_missed() {
    let bench = bench().await;
    let structured = Batch { mode: ModeTag::Structured, ..batch("a", 0, 5) };
    bench.queue.append(structured).await.unwrap();
    let lease = bench.lease(&Source::Main, 5).await;
    bench.queue.ack(lease, &[]).await;
    let id = bench.history.id();
    bench.keep(BTreeMap::new());
    bench.settled().await;
    assert_eq!(bench.history.id(), id);
    assert_eq!(bench.queue.stats().damage, Vec::<String>::new());
    bench.rows(0).await;
}
