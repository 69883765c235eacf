use std::sync::Mutex as Plain;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::channel::{Channel, Mode, Registry};
use crate::clock::Clock;
use crate::event::{ChannelName, Event, MAX_SEQ, Micros, Name};
use crate::life::{Ask as Order, Life};
use crate::replicate::pull::Failure;
use crate::replicate::serve::Held;
use crate::replicate::status::Board;
use crate::replicate::wire::{Answer, Ask, Caller, Changed, Described, Fault};
use crate::replicate::{OutOfReach, Pace, Pages, Received};
use crate::seq::belief_bound;
use crate::storage::event_store::{EventStore, Foreign, StoredRow, Wanted};
use crate::storage::mend::Returned;
use crate::storage::sql::sqlite::Database;
use crate::storage::sql::{Options, SqlStorage};
use crate::storage::{Contact, Storage, conformance};

/// The first seq that this start may give out.
const FIRST: u64 = 100;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn raw(text: &str, enabled: bool) -> Channel {
    Channel { name: name(text), enabled, mode: Mode::Raw, store_raw: true, keys: Vec::new() }
}

fn row(seq: u64, payload: &str) -> StoredRow {
    StoredRow {
        seq: Seq(seq),
        node_name: "dc1".to_owned(),
        received_at: Micros(1_790_000_000_000_000),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

fn rows_of(seqs: impl IntoIterator<Item = u64>) -> Vec<StoredRow> {
    seqs.into_iter().map(|seq| row(seq, &format!("{{\"n\":{seq}}}"))).collect()
}

/// How a peer behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Good,
    /// Nobody is there.
    Lost,
    /// It never answers.
    Silent,
}

/// A peer that holds rows of dc1.
#[derive(Clone)]
struct Fake(Arc<FakeState>);

struct FakeState {
    rows: Plain<BTreeMap<ChannelName, Vec<StoredRow>>>,
    mood: Plain<Mood>,
    /// Pages that it still gives, then it takes our token for a wrong one.
    pages: Plain<usize>,
    asked: Notify,
}

struct FakePages {
    peer: Fake,
    ask: Ask,
    left: usize,
}

impl Fake {
    fn with(&self, channel: &str, rows: Vec<StoredRow>) {
        self.0.rows.lock().unwrap().insert(name(channel), rows);
    }

    fn page(&self, ask: &Ask) -> Result<Answer, Failure> {
        let all = self.0.rows.lock().unwrap();
        let all = all.get(&ask.channel).map(Vec::as_slice).unwrap_or_default();
        let due = all.iter().filter(|row| row.seq >= ask.from).take(ask.limit);
        let rows: Vec<StoredRow> = due.cloned().collect();
        // as it is decoded
        if let Some(row) = rows.iter().find(|row| row.seq >= belief_bound()) {
            return Err(Failure::Fault(Fault::AboveBound(row.seq)));
        }
        let safe = all.last().map(|row| row.seq).unwrap_or_default();
        let last = rows.last().map(|row| row.seq);
        let next = if ask.from > safe { ask.from } else { last.unwrap_or(safe).next() };
        Ok(Answer {
            from: ask.from,
            echoed: true,
            node: Some("dc2".to_owned()),
            node_id: Some("theirs".to_owned()),
            since: None,
            schema: None,
            safe: Some(safe),
            next,
            seen: None,
            now: None,
            behind: None,
            rows,
            unfit: BTreeMap::new(),
        })
    }
}

impl Pages for FakePages {
    async fn next(&mut self) -> Result<Option<Received>, Failure> {
        if self.left == 0 {
            return Ok(None);
        }
        {
            let mut pages = self.peer.0.pages.lock().unwrap();
            *pages = pages.checked_sub(1).ok_or(Failure::Unauthorized)?;
        }
        let answer = self.peer.page(&self.ask)?;
        self.left = if answer.has_more(self.ask.limit) { self.left - 1 } else { 0 };
        self.ask.from = answer.next;
        Ok(Some(Received { answer, room: None }))
    }
}

impl Source for Fake {
    type Pages = FakePages;

    async fn events(&self, ask: &Ask, _caller: &Caller) -> Result<FakePages, Failure> {
        self.0.asked.notify_one();
        let mood = *self.0.mood.lock().unwrap();
        match mood {
            Mood::Good => Ok(FakePages { peer: self.clone(), ask: ask.clone(), left: ask.pages }),
            Mood::Lost => Err(Failure::Lost("refused".to_owned())),
            Mood::Silent => std::future::pending().await,
        }
    }

    async fn changes(&self, _: &Caller, _: Option<u64>) -> Result<Changed, Failure> {
        Err(Failure::NotFound)
    }

    async fn schema(&self, _: &ChannelName) -> Result<Described, Failure> {
        Err(Failure::NotFound)
    }

    fn hold(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn bytes(&self) -> u64 {
        0
    }
}

/// A node with one peer, on a database of its own.
struct Node {
    storage: Arc<SqlStorage<Database>>,
    operator: Operator<SqlStorage<Database>, Fake>,
    peer: Fake,
    /// What the keeper of the history was asked.
    orders: Arc<Plain<Vec<String>>>,
    resumes: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    _dir: TempDir,
}

/// Does what it is asked, and notes it.
async fn keep(history: Arc<History>, orders: Arc<Plain<Vec<String>>>) {
    loop {
        history.rung().await;
        for order in history.take_asks() {
            let (note, answer) = match order {
                Order::Recovering(from, answer) => (format!("from {from}"), answer),
                Order::Recovered(answer) => ("drawn".to_owned(), answer),
            };
            orders.lock().unwrap().push(note);
            let _ = answer.send(Ok(()));
        }
    }
}

async fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let channels = vec![raw("events_raw", true), raw("other", false)];
    let registry = Arc::new(Registry::new(channels).unwrap());
    let clock = Clock::system();
    let options = Options { origin: name("dc1"), registry: registry.clone(), clock: clock.clone() };
    let storage = Arc::new(SqlStorage::new(Database::new(dir.path().join("a.db")), options));
    let contact = Contact { first_unacked: Seq(1), node_id: "id".to_owned(), ..Contact::default() };
    storage.connect(&contact).await.unwrap();
    let (resume, resumes) = watch::channel(0);
    let (stop, stopping) = watch::channel(false);
    let history = Arc::new(History::new("id", Vec::new()));
    let life = Life { id: "id".to_owned(), since: None, past: Vec::new() };
    assert!(history.settle(life, Some(Seq(FIRST))));
    let board = Board::new(clock.clone());
    board.expect(&name("dc2"));
    let shared = Arc::new(Peering {
        storage: storage.clone(),
        me: name("dc1"),
        registry,
        clock,
        pace: Pace { batch_limit: 10, poll_interval: Duration::from_secs(1) },
        out_of_reach: OutOfReach::default(),
        held: Arc::new(Held::default()),
        board: Arc::new(board),
        seen: Box::new(|_| {}),
        resume: resumes.clone(),
        life: history.settled(),
    });
    let orders = Arc::<Plain<Vec<String>>>::default();
    drop(task::spawn(keep(history.clone(), orders.clone())));
    let peer = Fake(Arc::new(FakeState {
        rows: Plain::default(),
        mood: Plain::new(Mood::Good),
        pages: Plain::new(1_000),
        asked: Notify::new(),
    }));
    let sources = BTreeMap::from([(name("dc2"), peer.clone())]);
    let operator = Operator::new(shared, sources, history, resume, stopping);
    Node { storage, operator, peer, orders, resumes, stop, _dir: dir }
}

impl Node {
    /// Stores events of its own.
    async fn has(&self, seqs: impl IntoIterator<Item = u64>) {
        let event = |seq: u64| conformance::event(seq, &format!("{{\"n\":{seq}}}"));
        let events: Vec<Event> = seqs.into_iter().map(event).collect();
        assert!(self.storage.append(&events).await.unwrap().is_empty());
    }

    async fn page(&self, origin: &str, channel: &str) -> Vec<StoredRow> {
        let wanted = Wanted {
            origin: name(origin),
            channel: name(channel),
            from: Seq(0),
            upto: Seq(MAX_SEQ),
            rows: 1_000,
            bytes: 1 << 20,
        };
        self.storage.read(&wanted).await.unwrap().rows
    }

    async fn seqs(&self, origin: &str, channel: &str) -> Vec<u64> {
        self.page(origin, channel).await.iter().map(|row| row.seq.0).collect()
    }

    /// How it ended, and the lines that were told.
    async fn recover(&self) -> (Ended, Vec<String>) {
        let (tell, told) = mpsc::channel(4);
        tokio::join!(self.operator.recover("dc2".to_owned(), tell), lines(told))
    }

    async fn retry(&self, narrow: Narrow) -> (Ended, Vec<String>) {
        let (tell, told) = mpsc::channel(4);
        tokio::join!(self.operator.retry(narrow, tell), lines(told))
    }

    fn orders(&self) -> Vec<String> {
        self.orders.lock().unwrap().clone()
    }
}

async fn lines(mut told: mpsc::Receiver<Told>) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(told) = told.recv().await {
        if let Told::Line(line) = told {
            lines.push(line);
        }
    }
    lines
}

#[tokio::test]
async fn rows_that_are_missing_come_back_and_a_new_id_is_drawn_once() {
    let node = node().await;
    node.has(1..=6).await;
    node.peer.with("events_raw", rows_of(1..=35));
    let (ended, lines) = node.recover().await;
    let (count, text) = ended.unwrap();
    assert_eq!(count, 29, "{text}");
    assert!(text.contains("29 rows of 35 rows") && text.contains("new node id"), "{text}");
    assert!(lines[0].starts_with("events_raw: 35 rows looked at, 29 put back"), "{lines:?}");
    assert_eq!(node.orders(), ["from 7", "drawn"]);
    assert_eq!(node.seqs("dc1", "events_raw").await, (1..=35).collect::<Vec<_>>());
    // once more: nothing is to be done, and nobody has to read anything again
    let (count, text) = node.recover().await.0.unwrap();
    assert_eq!(count, 0);
    assert!(text.contains("nothing is missing"), "{text}");
    assert_eq!(node.orders(), ["from 7", "drawn"]);
}

#[tokio::test]
async fn a_mark_is_lowered_before_a_lower_row_is_stored_and_disabled_channels_come_back_too() {
    let node = node().await;
    node.peer.with("events_raw", rows_of([50, 51]));
    node.peer.with("other", rows_of([20, 60]));
    let (count, text) = node.recover().await.0.unwrap();
    assert_eq!(count, 4, "{text}");
    assert_eq!(node.orders(), ["from 50", "from 20", "drawn"]);
    assert_eq!(node.seqs("dc1", "other").await, [20, 60]);
}

#[tokio::test]
async fn what_stands_here_is_left_as_it_is() {
    let node = node().await;
    node.has(1..=3).await;
    let mut theirs = rows_of(1..=3);
    theirs[1] = row(2, "{\"n\":22}");
    theirs[2] = row(3, "{ \"n\" : 3.0 }");
    node.peer.with("events_raw", theirs);
    let (count, text) = node.recover().await.0.unwrap();
    assert_eq!(count, 0);
    assert!(
        text.contains("1 row with other content") && text.contains("replicon_conflicts"),
        "{text}"
    );
    assert!(node.orders().is_empty());
    let page = node.page("dc1", "events_raw").await;
    assert_eq!(page[1].payload, "{\"n\":2}");
}

#[tokio::test]
async fn no_seq_is_taken_that_this_start_may_give_out_nor_one_beyond_every_clock() {
    let node = node().await;
    node.peer.with("events_raw", rows_of([7, FIRST - 2, FIRST, FIRST + 5, MAX_SEQ]));
    node.peer.with("other", rows_of([8, MAX_SEQ]));
    let (ended, lines) = node.recover().await;
    let text = ended.unwrap_err();
    assert!(text.contains("channel other") && text.contains("above what any clock"), "{text}");
    assert_eq!(node.seqs("dc1", "events_raw").await, [7, FIRST - 2]);
    assert_eq!(node.seqs("dc1", "other").await, [8], "what stands before it comes back");
    let said = format!("2 from seq {FIRST} on not taken");
    assert!(lines[0].contains(&said), "{lines:?}");
    // what came back is read again by the others though a channel was broken off
    assert_eq!(node.orders(), ["from 7", "drawn"]);
}

#[tokio::test]
async fn a_recovery_that_is_broken_off_goes_on_when_it_is_run_again() {
    let node = node().await;
    node.peer.with("events_raw", rows_of(1..=30));
    *node.peer.0.pages.lock().unwrap() = 1;
    let text = node.recover().await.0.unwrap_err();
    assert!(text.contains("401") && text.contains("put back so far: 10 rows"), "{text}");
    assert_eq!(node.orders(), ["from 1", "drawn"], "the others read what came back so far");
    *node.peer.0.pages.lock().unwrap() = 1_000;
    let (count, _) = node.recover().await.0.unwrap();
    assert_eq!(count, 20);
    assert_eq!(node.orders(), ["from 1", "drawn", "from 11", "drawn"]);
    assert_eq!(node.seqs("dc1", "events_raw").await.len(), 30);
}

#[tokio::test]
async fn who_cannot_be_asked_is_named() {
    let node = node().await;
    let (tell, _told) = mpsc::channel(4);
    let text = node.operator.recover("dc9".to_owned(), tell).await.unwrap_err();
    assert!(text.contains("dc9 is no peer") && text.contains("names dc2"), "{text}");
    *node.peer.0.mood.lock().unwrap() = Mood::Lost;
    let text = node.recover().await.0.unwrap_err();
    assert!(text.contains("peer dc2") && text.contains("refused"), "{text}");
    assert!(node.orders().is_empty());
}

#[tokio::test]
async fn one_work_goes_on_at_a_time_and_ends_with_the_node() {
    let node = node().await;
    *node.peer.0.mood.lock().unwrap() = Mood::Silent;
    let others = async {
        node.peer.0.asked.notified().await;
        for ended in [node.recover().await.0, node.retry(Narrow::default()).await.0] {
            assert!(ended.unwrap_err().contains("under way"));
        }
        node.stop.send_replace(true);
    };
    let ((ended, _), ()) = tokio::join!(node.recover(), others);
    assert!(ended.unwrap_err().contains("stopping"));
}

/// Rows of dc2, each of which goes to the quarantine where it says why.
fn of_dc2(rows: &[(u64, &str, bool)], expect: Option<u64>, again: Option<&str>) -> Foreign {
    let kept = rows.iter().filter(|(_, _, kept)| *kept);
    Foreign {
        origin: name("dc2"),
        channel: name("events_raw"),
        rows: rows.iter().map(|(seq, payload, _)| row(*seq, payload)).collect(),
        expect: expect.map(Seq),
        to: Seq(rows.last().map_or(0, |(seq, _, _)| *seq)),
        again: again.map(str::to_owned),
        unfit: kept.map(|(seq, _, _)| (Seq(*seq), "refused that day".to_owned())).collect(),
        streak: 0,
    }
}

#[tokio::test]
async fn rows_in_quarantine_go_where_they_fit_today_and_stopped_channels_go_on() {
    let node = node().await;
    let first = of_dc2(
        &[(5, "{\"n\":5}", true), (6, "[6]", true), (7, "{}", false), (8, "{\"n\":8}", false)],
        None,
        None,
    );
    node.storage.apply(&first).await.unwrap();
    // they come once more, as another id has them: 7 the same, 8 not
    let second = of_dc2(&[(7, "{ }", true), (8, "{\"n\":88}", true)], None, Some("b"));
    node.storage.apply(&second).await.unwrap();
    let kept = |rows| vec![Kept { origin: name("dc2"), channel: name("events_raw"), rows }];
    assert_eq!(node.storage.quarantined().await.unwrap(), kept(4));

    let of_others = Narrow { channel: Some("other".to_owned()), origin: None };
    let (count, text) = node.retry(of_others).await.0.unwrap();
    assert_eq!((count, *node.resumes.borrow()), (0, 1), "{text}");
    assert!(text.contains("no rows of channel other are in quarantine"), "{text}");
    assert_eq!(node.storage.quarantined().await.unwrap(), kept(4));

    let (ended, lines) = node.retry(Narrow::default()).await;
    let text = ended.unwrap_err();
    for part in ["tables: 2 rows", "replicon_conflicts: 1 row", "still in quarantine: 1 row"] {
        assert!(text.contains(part), "{text}");
    }
    let line = "events_raw of dc2: 2 rows moved, 1 with other content here, 1 stays, the first because: the payload is no JSON object";
    assert_eq!(lines, [line]);
    assert_eq!(node.storage.quarantined().await.unwrap(), kept(1));
    assert_eq!(*node.resumes.borrow(), 2);
    // whoever relays gives all of them, each once, and what stood there stands there
    let page = node.page("dc2", "events_raw").await;
    let shown: Vec<(u64, &[u8])> = page.iter().map(|row| (row.seq.0, &row.payload[..])).collect();
    let due: [(u64, &[u8]); 4] = [(5, b"{\"n\":5}"), (6, b"[6]"), (7, b"{}"), (8, b"{\"n\":8}")];
    assert_eq!(shown, due);
    assert!(node.orders().is_empty(), "foreign rows change nothing of our history");
}

#[tokio::test]
async fn a_row_of_our_own_that_no_table_took_is_kept_and_comes_back_with_a_new_id() {
    let node = node().await;
    let rows = rows_of([7, 9]);
    let unfit = BTreeMap::from([(Seq(7), "refused that day".to_owned())]);
    let returned = |origin: &str, marked| Returned {
        origin: name(origin),
        channel: name("events_raw"),
        rows: rows.clone(),
        unfit: unfit.clone(),
        streak: 0,
        marked,
    };
    let e = node.storage.put_back(&returned("dc2", Some(Seq(1)))).await.unwrap_err();
    assert_eq!(e.kind, Kind::Reject);
    let put = node.storage.put_back(&returned("dc1", None)).await.unwrap();
    assert_eq!((put.unmarked, put.stored), (Some(Seq(9)), 0), "only what would be stored counts");
    assert!(node.seqs("dc1", "events_raw").await.is_empty());
    let put = node.storage.put_back(&returned("dc1", Some(Seq(9)))).await.unwrap();
    assert_eq!((put.unmarked, put.stored, put.quarantined), (None, 1, 1));
    assert_eq!(put.reason.as_deref(), Some("refused that day"));
    assert_eq!(node.seqs("dc1", "events_raw").await, [9]);

    let own = Narrow { channel: None, origin: Some("dc1".to_owned()) };
    let (count, text) = node.retry(own).await.0.unwrap();
    assert_eq!(count, 1, "{text}");
    assert_eq!(node.seqs("dc1", "events_raw").await, [7, 9]);
    assert_eq!(node.orders(), ["from 7", "drawn"]);
    assert!(node.storage.quarantined().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_comes_back_again_leaves_the_quarantine_when_it_fits() {
    let node = node().await;
    let mut returned = Returned {
        origin: name("dc1"),
        channel: name("events_raw"),
        rows: rows_of([7]),
        unfit: BTreeMap::from([(Seq(7), "refused that day".to_owned())]),
        streak: 0,
        marked: Some(Seq(1)),
    };
    for _ in 0..2 {
        let put = node.storage.put_back(&returned).await.unwrap();
        assert_eq!((put.stored, put.quarantined, put.streak), (0, 1, 1));
    }
    returned.unfit.clear();
    let put = node.storage.put_back(&returned).await.unwrap();
    assert_eq!((put.stored, put.quarantined, put.streak), (1, 0, 0));
    assert!(node.storage.quarantined().await.unwrap().is_empty());
    // a hundred in a row are no accident
    returned.rows = rows_of(10..110);
    returned.unfit = (10..110).map(|seq| (Seq(seq), "refused".to_owned())).collect();
    let put = node.storage.put_back(&returned).await.unwrap();
    assert!(put.too_many, "{put:?}");
    assert!(node.storage.quarantined().await.unwrap().is_empty());
}

#[tokio::test]
async fn every_configured_peer_is_shown() {
    let node = node().await;
    let peers = node.operator.peers();
    assert_eq!((peers.len(), peers[0].peer.as_str(), peers[0].state), (1, "dc2", "unreachable"));
    assert!(peers[0].reason.is_some());
}
