//! The file queue beside a `VecDeque`: random appends, leases, acks, dead letters, crashes and starts,
//! on the simulated disk.
//!
//! Attacks the queue's contract as a whole. One seed is run again by `TEST_SEED`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicon::event::Seq;
use replicon::fsx::sim::{MODES, SimDisk};
use replicon::queue::conformance::batch;
use replicon::queue::file::{FileQueue, Options};
use replicon::queue::{DeadReason, Lease, LeaseLimit, Queue, Source};

use crate::support::full_scale;
use crate::support::ledger::Dice;
use crate::support::sim::{counts, open, options};

/// What must be true of the queue.
#[derive(Default)]
struct Model {
    /// Appended and not released, in order: seq and number.
    queued: VecDeque<(Seq, u64)>,
    /// Under way, in order of leasing, and whether they were acked.
    leases: Vec<(Option<Lease>, Vec<Seq>)>,
    /// How many of `queued` are leased.
    leased: usize,
    /// Every seq ever released: it may come again after a crash, but only with its own number.
    released: BTreeMap<Seq, u64>,
    dead: BTreeSet<Seq>,
    last: Seq,
}

struct Run {
    disk: SimDisk,
    queue: FileQueue,
    model: Model,
    dice: Dice,
    next: u64,
    what: String,
}

fn small(disk: &SimDisk) -> Options {
    Options { segment_bytes: 9000, ..options(disk) }
}

impl Run {
    async fn append(&mut self) {
        let n = self.dice.throw(1, 6);
        let channel = if self.dice.throw(0, 1) == 0 { "a" } else { "b" };
        let got = self.queue.append(batch(channel, self.next, n)).await.unwrap();
        assert!(
            got.first > self.model.last,
            "{}: {} after {}",
            self.what,
            got.first,
            self.model.last
        );
        assert_eq!(got.last.0 - got.first.0 + 1, n);
        for k in 0..n {
            self.model.queued.push_back((Seq(got.first.0 + k), self.next + k));
        }
        self.model.last = got.last;
        self.next += n;
    }

    async fn lease(&mut self) {
        if self.model.leased == self.model.queued.len() {
            return;
        }
        let events = usize::try_from(self.dice.throw(1, 9)).unwrap();
        let lease =
            self.queue.lease(&Source::Main, LeaseLimit { events, bytes: 1 << 20 }).await.unwrap();
        let from = self.model.leased;
        for (event, (seq, n)) in lease.events.iter().zip(self.model.queued.iter().skip(from)) {
            assert_eq!((event.seq, number(&event.payload)), (*seq, *n), "{}", self.what);
        }
        self.model.leased += lease.events.len();
        assert!(self.model.leased <= self.model.queued.len(), "{}: more than there is", self.what);
        let seqs = lease.events.iter().map(|e| e.seq).collect();
        self.model.leases.push((Some(lease), seqs));
    }

    async fn ack(&mut self) {
        let open: Vec<usize> =
            (0..self.model.leases.len()).filter(|i| self.model.leases[*i].0.is_some()).collect();
        if open.is_empty() {
            return;
        }
        let pick = open[usize::try_from(self.dice.throw(0, open.len() as u64 - 1)).unwrap()];
        let lease = self.model.leases[pick].0.take().unwrap();
        let mut dead = Vec::new();
        if self.dice.throw(0, 4) == 0 {
            let why = DeadReason { code: "x".to_owned(), text: String::new() };
            self.queue.dead_letter(&lease.events[0], &why).await.unwrap();
            dead.push(lease.events[0].seq);
            self.model.dead.insert(lease.events[0].seq);
        }
        self.queue.ack(lease, &dead).await;
        while self.model.leases.first().is_some_and(|(lease, _)| lease.is_none()) {
            let (_, seqs) = self.model.leases.remove(0);
            self.model.leased -= seqs.len();
            for _ in seqs {
                let (seq, n) = self.model.queued.pop_front().unwrap();
                self.model.released.insert(seq, n);
            }
        }
        let first = self.queue.first_unacked();
        let released = self.model.released.keys().next_back().copied().unwrap_or_default();
        assert!(first > released || first == released.next(), "{}", self.what);
    }

    /// The power fails now; what comes back must be everything not released, and perhaps some of what
    /// was, each under its own seq.
    async fn crash(&mut self) {
        let mode = MODES[usize::try_from(self.dice.throw(0, 3)).unwrap()];
        let disk = self.disk.crash(mode, self.dice.throw(1, 1 << 40));
        let queue = open(small(&disk));
        assert_eq!(queue.stats().damage, Vec::<String>::new(), "{} {mode:?}", self.what);
        self.model.leases.clear();
        self.model.leased = 0;
        let queued = usize::try_from(counts(&queue).queued).unwrap();
        let again = queued.checked_sub(self.model.queued.len());
        let again = again.unwrap_or_else(|| panic!("{} {mode:?}: {queued} came back", self.what));
        // the newest of the released ones, in order, before the others
        for (seq, n) in self.model.released.clone().into_iter().rev().take(again) {
            self.model.released.remove(&seq);
            self.model.queued.push_front((seq, n));
        }
        for seq in &self.model.dead {
            assert!(queue.is_dead(*seq), "{}: the dead letter {seq} is gone", self.what);
        }
        (self.disk, self.queue) = (disk, queue);
    }

    async fn step(&mut self) {
        match self.dice.throw(0, 19) {
            0..=7 => self.append().await,
            8..=12 => self.lease().await,
            13..=18 => self.ack().await,
            _ => self.crash().await,
        }
        let queued = counts(&self.queue).queued;
        let held: usize =
            self.model.leases.iter().filter(|l| l.0.is_none()).map(|l| l.1.len()).sum();
        assert_eq!(queued, (self.model.queued.len() - held) as u64, "{}", self.what);
    }
}

fn number(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).unwrap();
    text[5..text.len() - 1].parse().unwrap()
}

async fn run(seed: u64, steps: usize) {
    let disk = SimDisk::new();
    let queue = open(small(&disk));
    let (model, dice) = (Model::default(), Dice::new(seed));
    let mut run = Run { disk, queue, model, dice, next: 0, what: format!("TEST_SEED={seed}") };
    for _ in 0..steps {
        run.step().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_queue_behaves_as_a_double_ended_queue_whatever_happens() {
    if let Some(seed) = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(seed, 200).await;
    }
    let seeds = if full_scale() { 2000 } else { 60 };
    for seed in 1..=seeds {
        run(seed * 7919, 200).await;
    }
}
