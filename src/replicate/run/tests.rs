use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::channel::{Mode, Registry};
use crate::clock::Clock;
use crate::event::Name;
use crate::replicate::serve::Held;
use crate::replicate::status::Board;
use crate::replicate::wire::{Ask, Changed, Described};
use crate::replicate::{OutOfReach, Pace, Pages, Received, run_peer};
use crate::storage::sql::sqlite::Database;
use crate::storage::sql::{Options, SqlStorage};
use crate::storage::{Contact, Storage};

/// Everything up to here is final at the peer, which has no events.
const SAFE: Seq = Seq(500);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A peer that tells what it is asked, and of whom it is taken for.
struct Fake {
    id: &'static str,
    since: Option<Seq>,
    asked: mpsc::Sender<(Ask, Option<Known>)>,
}

struct OnePage(Option<Answer>);

impl Pages for OnePage {
    async fn next(&mut self) -> Result<Option<Received>, Failure> {
        Ok(self.0.take().map(|answer| Received { answer, room: None }))
    }
}

impl Source for Fake {
    type Pages = OnePage;

    async fn events(&self, ask: &Ask, caller: &Caller) -> Result<OnePage, Failure> {
        self.asked.send((ask.clone(), caller.known.clone())).await.unwrap();
        Ok(OnePage(Some(Answer {
            from: ask.from,
            echoed: true,
            node: Some("dc2".to_owned()),
            node_id: Some(self.id.to_owned()),
            since: self.since,
            schema: None,
            safe: Some(SAFE),
            next: ask.from.max(SAFE.next()),
            seen: None,
            now: None,
            behind: None,
            rows: Vec::new(),
            unfit: BTreeMap::new(),
        })))
    }

    async fn changes(&self, _: &Caller, _: Option<u64>) -> Result<Changed, Failure> {
        std::future::pending().await
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

/// A node that pulls from such a peer.
struct Pulling {
    storage: Arc<SqlStorage<Database>>,
    asked: mpsc::Receiver<(Ask, Option<Known>)>,
    life: watch::Sender<Option<Life>>,
    shared: Arc<Peering<SqlStorage<Database>>>,
    stop: watch::Sender<bool>,
    _resume: watch::Sender<u64>,
    _dir: TempDir,
    to_ask: mpsc::Sender<(Ask, Option<Known>)>,
}

async fn pulling() -> Pulling {
    let dir = tempfile::tempdir().unwrap();
    let raw = |text: &str, enabled: bool| Channel {
        name: name(text),
        enabled,
        mode: Mode::Raw,
        store_raw: true,
        keys: Vec::new(),
    };
    let channels = vec![raw("a", true), raw("off", false)];
    let registry = Arc::new(Registry::new(channels).unwrap());
    let clock = Clock::system();
    let options = Options { origin: name("dc1"), registry: registry.clone(), clock: clock.clone() };
    let storage = Arc::new(SqlStorage::new(Database::new(dir.path().join("a.db")), options));
    let contact = Contact { first_unacked: Seq(1), node_id: "id".to_owned(), ..Contact::default() };
    storage.connect(&contact).await.unwrap();
    let (resume, resumed) = watch::channel(0);
    let (life, settled) = watch::channel(None);
    let shared = Arc::new(Peering {
        storage: storage.clone(),
        me: name("dc1"),
        registry,
        clock: clock.clone(),
        pace: Pace { batch_limit: 10, poll_interval: Duration::from_millis(10) },
        out_of_reach: OutOfReach::default(),
        held: Arc::new(Held::default()),
        board: Arc::new(Board::new(clock)),
        seen: Box::new(|_| {}),
        resume: resumed,
        life: settled,
    });
    let (to_ask, asked) = mpsc::channel(100);
    let stop = watch::channel(false).0;
    Pulling { storage, asked, life, shared, stop, _resume: resume, _dir: dir, to_ask }
}

impl Pulling {
    fn pulls_from(&self, id: &'static str, since: Option<Seq>) {
        let fake = Fake { id, since, asked: self.to_ask.clone() };
        let run = run_peer(self.shared.clone(), name("dc2"), fake, self.stop.subscribe());
        drop(task::spawn(run));
    }

    /// Our own history is settled, as it was or anew.
    fn settle(&self) {
        let life = Life { id: "id".to_owned(), since: None, past: Vec::new() };
        self.life.send_replace(None);
        self.life.send_replace(Some(life));
    }

    /// The next request.
    async fn ask(&mut self) -> (Ask, Option<Known>) {
        let asked = tokio::time::timeout(Duration::from_secs(20), self.asked.recv()).await;
        asked.expect("a request").unwrap()
    }

    /// Has come so far with a channel.
    async fn has(&self, channel: &str, to: Seq) {
        let foreign = Foreign {
            origin: name("dc2"),
            channel: name(channel),
            rows: Vec::new(),
            expect: None,
            to,
            again: None,
            unfit: BTreeMap::new(),
            streak: 0,
        };
        assert!(!self.storage.apply(&foreign).await.unwrap().stale);
    }
}

#[tokio::test]
async fn what_is_known_of_cursors_is_forgotten_when_our_own_history_is_settled_anew() {
    let mut node = pulling().await;
    node.pulls_from("x", None);
    node.settle();
    assert_eq!(node.ask().await.0.from, Seq(1));
    // the page has moved this on in memory, which the storage does not show
    node.settle();
    assert_eq!(node.ask().await.0.from, Seq(1));
}

#[tokio::test]
async fn a_peer_is_told_the_highest_of_all_channels_from_the_first_request_on() {
    let mut node = pulling().await;
    node.storage.accept_id(&name("dc2"), "x", &[]).await.unwrap();
    node.has("a", Seq(10)).await;
    // of a channel that no configuration names any more, too
    node.has("gone", Seq(5000)).await;
    node.pulls_from("x", None);
    node.settle();
    let (ask, known) = node.ask().await;
    assert_eq!((ask.from, known.unwrap().seq), (Seq(11), Seq(5000)));
}

#[tokio::test]
async fn what_a_relay_gave_is_read_again_where_the_origin_is_met_first_and_has_parted() {
    let mut node = pulling().await;
    node.has("a", Seq(400)).await;
    node.pulls_from("new", Some(Seq(100)));
    node.settle();
    assert_eq!(node.ask().await.0.from, Seq(401));
    assert_eq!(node.ask().await.0.from, Seq(101));
}

#[tokio::test]
async fn another_id_is_followed_at_once_and_everything_behind_its_parting_is_read_again() {
    let mut node = pulling().await;
    let (peer, off, since) = (name("dc2"), name("off"), Seq(100));
    node.storage.accept_id(&peer, "old", &[]).await.unwrap();
    node.has("a", Seq(400)).await;
    node.has("off", Seq(300)).await;
    node.pulls_from("new", Some(since));
    node.settle();
    let (ask, known) = node.ask().await;
    assert_eq!(ask.from, Seq(401));
    assert_eq!(known, Some(Known { id: "old".to_owned(), seq: Seq(400) }));
    let (ask, known) = node.ask().await;
    assert_eq!(ask.from, Seq(101));
    // what was seen under the id before is not told of this one
    assert_eq!(known, Some(Known { id: "new".to_owned(), seq: since }));
    assert_eq!(node.storage.accepted_ids(&peer).await.unwrap(), ["old", "new"]);
    // one that is off is read again when it is on
    assert_eq!(node.storage.cursor_again(&peer, &off, "new").await.unwrap(), Some(since));
    // and the other one goes on as usual when that is stored
    let (ask, known) = node.ask().await;
    assert_eq!((ask.from, known.unwrap().seq), (SAFE.next(), SAFE));
    let usual = node.storage.cursor(&peer, &ask.channel).await.unwrap();
    let again = node.storage.cursor_again(&peer, &ask.channel, "new").await.unwrap();
    assert_eq!((usual, again), (Some(SAFE), None));
}
