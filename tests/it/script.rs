//! A script of two hundred steps over the file queue on the simulated disk, run again for every
//! operation of the disk: that operation fails once, or the power goes at it, and what is left is
//! judged in every mode of persistence against what the queue itself had answered.
//!
//! Attacks recovery and the release of acks. `REPLICON_SEED=7` runs the script of one seed through all
//! of its operations, `REPLICON_SEED=7/123` through operation 123 alone; a failure prints which it
//! was. At full scale `REPLICON_SEEDS` says how many crashes are judged at least.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use replicon::event::Seq;
use replicon::fsx::sim::{Fault, MODES, Op, SimDisk};
use replicon::queue::file::FileQueue;
use replicon::queue::{AppendError, DeadReason, Lease, LeaseLimit, Queue, Source};

use crate::support::full_scale;
use crate::support::ledger::Dice;
use crate::support::sim::{bytes, counts, segments, try_open};

mod book;
mod gated;

use book::{Book, index, numbered};
use gated::{Gated, SEGMENT, durably_released, released};

const STEPS: u64 = 200;
/// Runs at once: a run mostly waits for the ack keeper, which wakes five times a second.
const LANES: usize = 16;
/// Longer than anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Turns of a millisecond without another operation after which the ack keeper is through.
const CALM: u32 = 20;

/// One step; its number chooses among what there is when its turn comes.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// One to five events of one of three channels.
    Append(u64),
    /// One to nine events, in hand until they are acked.
    Lease(u64),
    /// One of those in hand, in turn or out of turn.
    Ack(u64),
    /// A dead letter of an event in hand, which stays there.
    DeadLetter(u64),
    /// The ack keeper makes durable what is acked, and deletes what nobody needs.
    Keep,
    /// Stops in order and starts again; what was in hand is not acked.
    Reopen,
    /// Ends by a power cut and starts again on what that left.
    Cut(u64),
}

fn script(seed: u64) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let step = |turn: u64| {
        let pick = dice.throw(0, 1 << 20);
        match (turn, dice.throw(0, 19)) {
            (80 | 170, _) => Step::Cut(pick),
            (47 | 140, _) => Step::Keep,
            (turn, _) if turn.is_multiple_of(31) => Step::Reopen,
            (_, 0..=5) => Step::Append(pick),
            (_, 6..=11) => Step::Lease(pick),
            (_, 12..=17) => Step::Ack(pick),
            _ => Step::DeadLetter(pick),
        }
    };
    (1..=STEPS).map(step).collect()
}

/// What goes wrong. Operations are counted from the script's beginning, over its power cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Well,
    FailsOnce(u64),
    PowerGoes(u64),
}

impl Plan {
    fn operation(self) -> u64 {
        match self {
            Self::Well => u64::MAX,
            Self::FailsOnce(n) | Self::PowerGoes(n) => n,
        }
    }

    /// Sets what is still to come on a disk, when `done` operations lie behind.
    fn arm(self, disk: &SimDisk, done: u64) {
        let Some(left) = self.operation().checked_sub(done) else { return };
        match self {
            Self::Well => {}
            Self::FailsOnce(_) => disk.fail(None, Fault::Once(left)),
            // nothing that is tried afterwards reaches the disk, as if it were not tried
            Self::PowerGoes(_) => disk.fail(None, Fault::From(left)),
        }
    }

    fn what(self, seed: u64) -> String {
        match self {
            Self::Well => format!("REPLICON_SEED={seed}: nothing fails"),
            Self::FailsOnce(n) => format!("REPLICON_SEED={seed}/{n}: operation {n} fails once"),
            Self::PowerGoes(n) => format!("REPLICON_SEED={seed}/{n}: the power goes at {n}"),
        }
    }
}

/// Events in hand: those from one place of the book to another.
struct Held {
    leases: Vec<Lease>,
    events: Range<usize>,
}

/// The script under way.
struct Run {
    what: String,
    plan: Plan,
    disk: Gated,
    /// Operations before the last power cut of the script.
    before: u64,
    queue: Option<FileQueue>,
    held: Vec<Held>,
    book: Book,
    /// The number of the next event.
    next: u64,
    /// So much was released when the ack record was last written or read.
    kept: usize,
}

impl Run {
    fn new(what: String, plan: Plan) -> Self {
        let disk = Gated::new(SimDisk::new());
        plan.arm(&disk.disk, 0);
        let (held, book) = (Vec::new(), Book::default());
        let mut run =
            Self { what, plan, disk, before: 0, queue: None, held, book, next: 0, kept: 0 };
        run.start();
        run
    }

    fn queue(&self) -> &FileQueue {
        self.queue.as_ref().unwrap()
    }

    fn operations(&self) -> u64 {
        self.before + self.disk.disk.ops()
    }

    /// Whether that operation lies behind.
    fn spent(&self) -> bool {
        self.operations() > self.plan.operation()
    }

    /// Whether the power is gone.
    fn over(&self) -> bool {
        matches!(self.plan, Plan::PowerGoes(_)) && self.spent()
    }

    /// Whether something may be refused now that was asked for when `spent` was so.
    fn may_fail(&self, spent: bool) -> bool {
        match self.plan {
            Plan::Well => false,
            Plan::FailsOnce(_) => self.spent() && !spent,
            Plan::PowerGoes(_) => self.spent(),
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Append(pick) => self.append(pick).await,
            Step::Lease(pick) => self.lease(pick).await,
            Step::Ack(pick) => self.ack(pick).await,
            Step::DeadLetter(pick) => self.dead_letter(pick).await,
            Step::Keep => self.keep().await,
            Step::Reopen => self.reopen(),
            Step::Cut(pick) => self.cut(pick),
        }
        if !self.over() {
            assert_eq!(counts(self.queue()), self.book.expected(), "{}: {step:?}", self.what);
        }
    }

    async fn append(&mut self, pick: u64) {
        let (n, channel) = (pick % 5 + 1, ["a", "b", "c"][index(pick / 5, 3)]);
        loop {
            let (spent, from) = (self.spent(), self.next);
            self.next += n;
            let answer = self.queue().append(numbered(channel, from, n)).await;
            match answer {
                Ok(got) => {
                    self.book.accepted(from, n, got, &self.what);
                    break;
                }
                Err(e) => {
                    assert!(self.may_fail(spent), "{}: refused: {e}", self.what);
                    if matches!(e, AppendError::Doubt { .. }) {
                        self.book.doubtful.push((from..from + n).collect());
                    }
                }
            }
            if self.over() {
                return;
            }
            // only one operation fails: the next request must be taken
        }
        // the log thread begins the next segment after its answer
        let settled = || {
            let disk = &self.disk.disk;
            let newest = segments(disk).last().map_or(0, |path| bytes(disk, path).len() as u64);
            let renamed = disk.history().last().is_some_and(|(op, _)| *op == Op::Name);
            self.spent() || (newest < SEGMENT && !renamed)
        };
        until(&self.what, "the next segment", settled).await;
    }

    async fn lease(&mut self, pick: u64) {
        let from = self.book.next;
        let to = (from + index(pick, 9) + 1).min(self.book.log.len());
        let mut leases = Vec::new();
        // what was answered a moment ago may be shown to readers a moment later
        while self.book.next < to {
            let limit = LeaseLimit { events: to - self.book.next, bytes: 1 << 20 };
            let queue = self.queue();
            let lease = tokio::time::timeout(PATIENCE, queue.lease(&Source::Main, limit)).await;
            let lease = lease.unwrap_or_else(|_| panic!("{}: nothing is leased", self.what));
            let lease = lease.unwrap();
            for event in &lease.events {
                self.book.leased(event, &self.what);
            }
            leases.push(lease);
        }
        if from < to {
            self.held.push(Held { leases, events: from..to });
        }
    }

    async fn ack(&mut self, pick: u64) {
        if self.held.is_empty() {
            return self.lease(pick).await;
        }
        let held = self.held.remove(index(pick, self.held.len()));
        self.resolve(held).await;
    }

    /// Acks all of it; events that have a dead letter count as such, as a writer would say.
    async fn resolve(&mut self, held: Held) {
        self.book.letters(self.queue(), &self.what);
        for lease in held.leases {
            let seqs = lease.events.iter().map(|e| e.seq);
            let dead: Vec<Seq> = seqs.filter(|seq| self.queue().is_dead(*seq)).collect();
            self.book.counts.dead_lettered += dead.len() as u64;
            self.book.counts.stored += (lease.events.len() - dead.len()) as u64;
            self.queue().ack(lease, &dead).await;
        }
        self.book.resolved(held.events);
        let (first, book) = (self.queue().first_unacked(), &self.book);
        let due = book.log.get(book.released).map(|(_, seq)| *seq);
        let due = due.is_none_or(|due| first <= due);
        assert!(due, "{}: nothing below {first} is said to come again", self.what);
    }

    async fn dead_letter(&mut self, pick: u64) {
        if self.held.is_empty() {
            return self.lease(pick).await;
        }
        let held = &self.held[index(pick, self.held.len())];
        let lease = &held.leases[index(pick / 7, held.leases.len())];
        let event = lease.events[index(pick / 11, lease.events.len())].clone();
        let why = DeadReason { code: "rejected".to_owned(), text: "a check says no".to_owned() };
        self.book.tried.insert(event.seq);
        loop {
            let spent = self.spent();
            let Err(e) = self.queue().dead_letter(&event, &why).await else { break };
            assert!(self.may_fail(spent), "{}: no dead letter: {e}", self.what);
            if self.over() {
                return;
            }
        }
        assert!(self.queue().is_dead(event.seq), "{}", self.what);
        self.book.dead.insert(event.seq);
    }

    async fn keep(&mut self) {
        if !self.held.is_empty() {
            let oldest = self.held.remove(0);
            self.resolve(oldest).await;
        }
        if self.book.released == self.kept {
            return;
        }
        self.kept = self.book.released;
        let (_, due) = self.book.log[self.kept - 1];
        let (disk, spent) = (self.disk.disk.clone(), self.spent());
        let from = disk.history().len();
        let mut calm = 0;
        let through = || {
            if self.spent() && !spent {
                return true;
            }
            let last = disk.history()[from..].last().map(|(op, _)| *op);
            calm = if last == Some(Op::Sync) { calm + 1 } else { 0 };
            // segments are deleted at once behind the record's sync, and end in their directory's
            released(&disk) == due && (last == Some(Op::SyncDir) || calm > CALM)
        };
        self.disk.let_keeper(true);
        until(&self.what, "the ack keeper", through).await;
        self.disk.let_keeper(false);
        if !self.spent() {
            assert_eq!(durably_released(&self.disk.disk), due, "{}", self.what);
        }
    }

    fn reopen(&mut self) {
        self.held.clear();
        let spent = self.spent();
        self.disk.let_keeper(true);
        drop(self.queue.take());
        self.disk.let_keeper(false);
        if self.over() {
            return;
        }
        if spent == self.spent() {
            // nothing failed while it stopped: nothing that is released comes again
            let last = self.book.released.checked_sub(1).map(|at| self.book.log[at].1);
            let kept = durably_released(&self.disk.disk);
            assert!(last.is_none_or(|last| kept >= last), "{}: kept to {kept}", self.what);
        }
        self.start();
    }

    fn cut(&mut self, pick: u64) {
        let floor = durably_released(&self.disk.disk);
        let after = self.disk.disk.crash(MODES[index(pick, MODES.len())], pick);
        self.before = self.operations();
        self.plan.arm(&after, self.before);
        self.held.clear();
        // the old disk and its queue are of no consequence any more
        self.disk = Gated::new(after);
        self.queue = None;
        let now = durably_released(&self.disk.disk);
        assert!(now >= floor, "{}: {floor} was released, and {now} is after a cut", self.what);
        self.start();
    }

    fn start(&mut self) {
        let floor = durably_released(&self.disk.disk);
        let spent = self.spent();
        let started = match try_open(self.disk.options()) {
            Err(e) => {
                assert!(self.may_fail(spent), "{}: the start fails: {e}", self.what);
                if self.over() {
                    return;
                }
                // as whoever watches over the process does
                try_open(self.disk.options())
            }
            started => started,
        };
        let queue = started.unwrap_or_else(|e| panic!("{}: the start fails: {e}", self.what));
        // that is a record of its own, and may have met the fault
        let certain = queue.identity_certain();
        if !self.over() {
            certain.unwrap();
            let stats = queue.stats();
            assert_eq!(stats.damage, Vec::<String>::new(), "{}: a false report", self.what);
            assert!(stats.parked.is_empty(), "{}: {:?}", self.what, stats.parked);
            self.book.letters(&queue, &self.what);
            self.book.reopened(counts(&queue).recovered, floor, &self.what);
            self.kept = self.book.released;
        }
        self.queue = Some(queue);
    }

    /// The power goes now, in every mode; the queue is not closed before.
    async fn judge(&self, seed: u64) {
        let disk = &self.disk.disk;
        let floor = durably_released(disk);
        for (nth, mode) in MODES.into_iter().enumerate() {
            let case = self.plan.operation().wrapping_mul(4).wrapping_add(nth as u64);
            let mut dice = Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(case));
            let after = disk.crash(mode, dice.throw(1, 1 << 60));
            self.book.judge(&after, floor, &format!("{}, {mode:?}", self.what)).await;
        }
    }
}

async fn until(what: &str, waited_for: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}: waited for {waited_for}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Names the run beside a panic that cannot.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// How many operations there were.
async fn run(seed: u64, plan: Plan) -> u64 {
    let what = plan.what(seed);
    let _named = Named(what.clone());
    let mut run = Run::new(what, plan);
    for step in script(seed) {
        if run.over() {
            break;
        }
        run.step(step).await;
    }
    let operations = run.operations();
    run.judge(seed).await;
    operations
}

/// Every one of these operations, some at once.
async fn run_all(seed: u64, plan: fn(u64) -> Plan, operations: Vec<u64>) {
    let (operations, next) = (Arc::new(operations), Arc::new(AtomicUsize::new(0)));
    let lane = || {
        let (operations, next) = (operations.clone(), next.clone());
        tokio::spawn(async move {
            while let Some(n) = operations.get(next.fetch_add(1, Ordering::Relaxed)) {
                run(seed, plan(*n)).await;
            }
        })
    };
    let lanes: Vec<_> = (0..LANES).map(|_| lane()).collect();
    for lane in lanes {
        lane.await.unwrap();
    }
}

/// Scripts of one seed after the other, from `first` on, each through its operations.
async fn sweep(first: u64, plan: fn(u64) -> Plan) {
    let number =
        |text: &str| -> u64 { text.parse().unwrap_or_else(|_| panic!("{text:?} is no number")) };
    if let Ok(asked) = std::env::var("REPLICON_SEED") {
        let (seed, only) = match asked.split_once('/') {
            Some((seed, only)) => (number(seed), Some(number(only))),
            None => (number(&asked), None),
        };
        let operations = run(seed, Plan::Well).await;
        let all = only.map_or_else(|| (0..operations).collect(), |n| vec![n]);
        return run_all(seed, plan, all).await;
    }
    let (step, scripts, least) = match (full_scale(), std::env::var("REPLICON_SEEDS")) {
        (true, Ok(asked)) => (1, 4, number(&asked)),
        (true, Err(_)) => (1, 4, 2000),
        (false, _) => (7, 1, 1),
    };
    let mut judged = 0;
    for seed in first.. {
        let operations = run(seed, Plan::Well).await;
        assert!(operations > 250, "seed {seed}: the script does too little: {operations}");
        let some = (0..operations).filter(|n| n % step == seed % step).collect::<Vec<_>>();
        judged += (some.len() * MODES.len()) as u64;
        run_all(seed, plan, some).await;
        if seed + 1 >= first + scripts && judged >= least {
            break;
        }
    }
    println!("{judged} crashes judged");
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_operation_of_a_script_fails_once_nothing_is_lost_reused_or_falsely_reported() {
    sweep(1, Plan::FailsOnce).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_in_a_script_the_power_goes_the_next_start_has_all_that_was_answered() {
    sweep(3, Plan::PowerGoes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_fills_and_deletes_segments_and_acks_out_of_turn() {
    let mut run = Run::new(Plan::Well.what(1), Plan::Well);
    let first = segments(&run.disk.disk);
    let (mut out_of_turn, mut again) = (0, 0);
    for step in script(1) {
        run.step(step).await;
        out_of_turn = out_of_turn.max(run.book.acked.len());
        again = again.max(run.book.counts.recovered);
    }
    let left = segments(&run.disk.disk);
    assert!(first.iter().all(|path| !left.contains(path)), "the first segment still stands");
    assert!(left.len() > 2, "segments follow one another: {left:?}");
    assert!(out_of_turn > 5 && again > 5, "{out_of_turn} out of turn, {again} delivered again");
    assert!(run.book.dead.len() > 5 && run.book.released > 50, "{:?}", run.book.counts);
}
