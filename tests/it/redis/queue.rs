//! The suites that every queue must pass, on Redis and on Valkey: the contract, and random work beside
//! a map, with crashes of the process and of the server.
//!
//! Attacks the queue's contract as a whole, and I9. One seed is run again by `TEST_SEED`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use replicon::event::{Name, Seq};
use replicon::queue::conformance::{self, batch};
use replicon::queue::redis::{Options, RedisQueue};
use replicon::queue::{AppendError, DeadReason, Lease, LeaseLimit, Queue, Source};

use crate::support::full_scale;
use crate::support::ledger::Dice;
use crate::support::redis::{Kind, Redis};

/// Opens it; identities count as certain. A process that another test is just starting holds every
/// lock of this one until it runs its own program.
pub async fn open(options: Options) -> RedisQueue {
    let mut tries = 0;
    let queue = loop {
        match RedisQueue::open(options.clone()).await {
            Ok(queue) => break queue,
            Err(e) if e.to_string().contains("is held by") && tries < 500 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(e) => panic!("{e}"),
        }
    };
    queue.identity_certain().unwrap();
    queue
}

async fn conforms(kind: Kind) {
    let server = Redis::start(kind);
    let next = AtomicU64::new(0);
    conformance::all(|| {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let stream = format!("s{}", next.fetch_add(1, Ordering::Relaxed));
        let options = server.options(dir.path(), &stream);
        move || {
            let (options, dir) = (options.clone(), dir.clone());
            async move {
                let queue = open(options).await;
                drop(dir);
                queue
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_on_redis_conforms() {
    conforms(Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_on_valkey_conforms() {
    conforms(Kind::Valkey).await;
}

/// What events go to, and one that none goes to.
const CHANNELS: [&str; 3] = ["a", "b", "idle"];

/// Events by seq: the number in the payload, and the channel.
type Events = BTreeMap<Seq, (u64, &'static str)>;

/// What must be true of the queue.
#[derive(Default)]
struct Model {
    /// Appended and not resolved.
    queued: Events,
    /// The entries that were added, until a start finds them resolved.
    entries: Vec<Events>,
    /// Of those, in somebody's hands.
    leased: BTreeSet<Seq>,
    dead: BTreeSet<Seq>,
    last: Seq,
    next: u64,
    /// What this start has shown as safe, by channel.
    safe: [Seq; CHANNELS.len()],
}

struct Run {
    server: Redis,
    dir: PathBuf,
    stream: String,
    queue: Option<RedisQueue>,
    leases: Vec<Lease>,
    model: Model,
    dice: Dice,
    what: String,
}

impl Run {
    fn queue(&self) -> &RedisQueue {
        self.queue.as_ref().unwrap()
    }

    async fn append(&mut self) {
        let n = self.dice.throw(1, 6);
        let channel = CHANNELS[usize::try_from(self.dice.throw(0, 1)).unwrap()];
        let numbers = self.model.next..self.model.next + n;
        let got = loop {
            match self.queue().append(batch(channel, numbers.start, n)).await {
                Ok(got) => break got,
                // the server was just restarted: nothing of it is stored
                Err(AppendError::Unavailable { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(e) => panic!("{}: {e}", self.what),
            }
        };
        assert!(got.first > self.model.last, "{}: {got:?}", self.what);
        assert_eq!(got.last.0 - got.first.0 + 1, n, "{}", self.what);
        let numbers = numbers.map(|n| (n, channel));
        let entry: Events = (got.first.0..).map(Seq).zip(numbers).collect();
        self.model.queued.extend(entry.clone());
        self.model.entries.push(entry);
        self.model.last = got.last;
        self.model.next += n;
    }

    async fn lease(&mut self) {
        let waits: Vec<(Seq, u64)> = self
            .model
            .queued
            .iter()
            .filter(|(seq, _)| !self.model.leased.contains(seq))
            .map(|(seq, (n, _))| (*seq, *n))
            .collect();
        if waits.is_empty() {
            return;
        }
        let events = usize::try_from(self.dice.throw(1, 9)).unwrap();
        let limit = LeaseLimit { events, bytes: 1 << 20 };
        let taken = self.queue().lease(&Source::Main, limit);
        let taken = tokio::time::timeout(Duration::from_secs(30), taken).await;
        let lease = taken.unwrap_or_else(|_| panic!("{}: nothing comes", self.what)).unwrap();
        assert!(lease.events.len() <= events, "{}", self.what);
        for (event, want) in lease.events.iter().zip(waits) {
            assert_eq!((event.seq, number(&event.payload)), want, "{}", self.what);
            self.model.leased.insert(event.seq);
        }
        self.leases.push(lease);
    }

    async fn ack(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let pick = usize::try_from(self.dice.throw(0, self.leases.len() as u64 - 1)).unwrap();
        let lease = self.leases.remove(pick);
        // of an entry that came again some may be dead letters since before
        let known = lease.events.iter().map(|event| event.seq);
        let mut dead: Vec<Seq> = known.filter(|seq| self.model.dead.contains(seq)).collect();
        if self.dice.throw(0, 4) == 0 {
            let why = DeadReason { code: "x".to_owned(), text: String::new() };
            let letter = &lease.events[0];
            while self.queue().dead_letter(letter, &why).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if self.model.dead.insert(letter.seq) {
                dead.insert(0, letter.seq);
            }
        }
        for event in &lease.events {
            self.model.queued.remove(&event.seq);
            self.model.leased.remove(&event.seq);
        }
        self.queue().ack(lease, &dead).await;
    }

    /// The process goes without a word: entries that were not resolved whole come again, and nothing
    /// else.
    async fn crash(&mut self) {
        self.queue = None;
        let Model { queued, entries, .. } = &mut self.model;
        entries.retain(|entry| entry.keys().any(|seq| queued.contains_key(seq)));
        for entry in entries {
            queued.extend(entry.iter().map(|(seq, event)| (*seq, *event)));
        }
        self.reopen().await;
        let queued: u64 = self.queue().stats().channels.iter().map(|(_, c)| c.queued).sum();
        assert_eq!(queued, self.model.queued.len() as u64, "{}", self.what);
        for seq in &self.model.dead {
            assert!(self.queue().is_dead(*seq), "{}: the dead letter {seq} is gone", self.what);
        }
    }

    async fn reopen(&mut self) {
        self.leases.clear();
        self.model.leased.clear();
        self.model.safe = Default::default();
        self.queue = Some(open(self.server.options(&self.dir, &self.stream)).await);
    }

    /// The server goes and comes back with all that it answered.
    fn server_crash(&mut self) {
        self.server.kill();
        self.server.restart();
    }

    async fn step(&mut self) {
        match self.dice.throw(0, 39) {
            0..=15 => self.append().await,
            16..=25 => self.lease().await,
            26..=36 => self.ack().await,
            37..=38 => self.crash().await,
            _ => self.server_crash(),
        }
        let stats = self.queue().stats();
        let queued: u64 = stats.channels.iter().map(|(_, c)| c.queued).sum();
        assert_eq!(queued, self.model.queued.len() as u64, "{}", self.what);
        assert_eq!(stats.damage, Vec::<String>::new(), "{}", self.what);
        for (channel, c) in stats.channels {
            let went = c.stored + c.queued + c.dead_lettered + c.lost;
            assert_eq!(c.accepted + c.recovered, went, "{}: {channel:?} {c:?}", self.what);
        }
        self.judge_what_is_safe();
    }

    /// Peers are shown nothing at or above what is not resolved, and within a start never less than
    /// before.
    fn judge_what_is_safe(&mut self) {
        let marks = self.queue().marks();
        for (at, channel) in CHANNELS.into_iter().enumerate() {
            let safe = marks.safe(&Name::new(channel).unwrap());
            let open = self.model.queued.iter().find(|(_, (_, of))| *of == channel);
            if let Some((first, _)) = open {
                assert!(safe < *first, "{}: {channel} at {safe}, {first} is open", self.what);
            }
            let before = self.model.safe[at];
            assert!(safe >= before, "{}: {channel} fell from {before} to {safe}", self.what);
            self.model.safe[at] = safe;
        }
    }

    /// All of it is resolved: then all of it is safe.
    async fn finish(&mut self) {
        // behind it nothing is left that only the end of the stream shows
        self.append().await;
        while !self.model.queued.is_empty() {
            if self.leases.is_empty() {
                self.lease().await;
            } else {
                self.ack().await;
            }
            self.judge_what_is_safe();
        }
        assert_eq!(self.model.safe, [self.model.last; CHANNELS.len()], "{}", self.what);
    }
}

fn number(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).unwrap();
    text[5..text.len() - 1].parse().unwrap()
}

async fn run(kind: Kind, seed: u64, steps: usize) {
    let (server, dir) = (Redis::start(kind), tempfile::tempdir().unwrap());
    let mut run = Run {
        server,
        dir: dir.path().to_owned(),
        stream: "model".to_owned(),
        queue: None,
        leases: Vec::new(),
        model: Model::default(),
        dice: Dice::new(seed),
        what: format!("{kind:?}, TEST_SEED={seed}"),
    };
    run.reopen().await;
    for _ in 0..steps {
        run.step().await;
    }
    run.finish().await;
    if let Some(queue) = run.queue.take() {
        queue.close().await;
    }
}

async fn behaves(kind: Kind) {
    if let Some(seed) = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(kind, seed, 300).await;
    }
    let seeds = if full_scale() { 40 } else { 2 };
    for seed in 1..=seeds {
        run(kind, seed * 7919, 300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_on_redis_holds_what_a_map_holds_whatever_happens() {
    behaves(Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_on_valkey_holds_what_a_map_holds_whatever_happens() {
    behaves(Kind::Valkey).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceiling_of_its_own_refuses_and_trims_nothing() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(Options { maxlen: 10, ..server.options(dir.path(), "small") }).await;
    queue.append(batch("a", 0, 10)).await.unwrap();
    let full = queue.append(batch("a", 10, 1)).await;
    let named = matches!(full, Err(AppendError::Full { ceiling: "queue_redis_maxlen", .. }));
    assert!(named, "{full:?}");
    assert_eq!(server.ask::<u64>(&["HGET", "small:counts", "total"]), 10);
    assert_eq!(server.ask::<u64>(&["XLEN", "small"]), 1, "an entry a request");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_behind_a_stuck_channel_leaves_the_stream() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "stuck")).await;
    let wide = LeaseLimit { events: 1000, bytes: 1 << 20 };
    queue.append(batch("a", 0, 1)).await.unwrap();
    let mut lease = queue.lease(&Source::Main, wide).await.unwrap();
    let theirs = lease.events.iter().map(|e| e.seq).collect();
    queue.park(&mut lease, &theirs, "its table is gone").await.unwrap();
    queue.ack(lease, &[]).await;
    for from in (0..500).step_by(50) {
        queue.append(batch("b", from, 50)).await.unwrap();
        let lease = queue.lease(&Source::Main, wide).await.unwrap();
        queue.ack(lease, &[]).await;
    }
    assert_eq!(server.ask::<u64>(&["XLEN", "stuck"]), 1, "the one that is needed");
    assert_eq!(server.ask::<u64>(&["HGET", "stuck:counts", "total"]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_consumers_entries_are_claimed_to_their_end() {
    let (server, dir) = (Redis::start(Kind::Redis), tempfile::tempdir().unwrap());
    let queue = open(server.options(dir.path(), "claims")).await;
    for from in (0..1000).step_by(4) {
        queue.append(batch("a", from, 4)).await.unwrap();
    }
    queue.close().await;
    drop(queue);
    // a consumer of another name takes them all; some are deleted since
    let taken = ["XREADGROUP", "GROUP", "writer", "old", "COUNT", "1000", "STREAMS", "claims", ">"];
    let _: redis::Value = server.ask(&taken);
    let entries: Vec<(String, Vec<String>)> = server.ask(&["XRANGE", "claims", "-", "+"]);
    for (id, _) in entries.iter().step_by(10) {
        assert_eq!(server.ask::<u64>(&["XDEL", "claims", id]), 1);
    }
    let queue = open(server.options(dir.path(), "claims")).await;
    let mut came = 0;
    while came < 900 {
        let limit = LeaseLimit { events: 1000, bytes: 1 << 20 };
        let taken =
            tokio::time::timeout(Duration::from_secs(30), queue.lease(&Source::Main, limit));
        let lease = taken.await.expect("nothing comes").unwrap();
        came += lease.events.len();
        queue.ack(lease, &[]).await;
    }
    assert_eq!(came, 900);
    let stats = queue.stats();
    let counts = stats.channels[0].1;
    assert_eq!((counts.queued, counts.stored, counts.lost), (0, 900, 100), "{counts:?}");
    assert!(stats.damage[0].contains("lost 100 events"), "{:?}", stats.damage);
    let pending: (u64, Option<String>, Option<String>, redis::Value) =
        server.ask(&["XPENDING", "claims", "writer"]);
    assert_eq!(pending.0, 0, "nothing is pending with anybody");
}
