//! What a queue answered, and what must therefore be true of it whatever happens.
//!
//! Does not know the script, nor what fails. Beside the log there are only counts: nothing here is
//! derived from the queue's own files.

use std::collections::BTreeSet;
use std::ops::Range;

use replicon::event::{Batch, Event, Seq};
use replicon::fsx::sim::SimDisk;
use replicon::queue::accounts::Counts;
use replicon::queue::conformance::batch;
use replicon::queue::file::{FileQueue, Options};
use replicon::queue::{Appended, Queue};

use super::gated::SEGMENT;
use crate::support::sim::{counts, drain, options, try_open};

/// What the queue answered, in its own order: what must be true of it.
#[derive(Default)]
pub struct Book {
    /// Every event that was accepted, in order: its number and the seq that was told.
    pub log: Vec<(u64, Seq)>,
    /// All before this one are resolved: the next start need not deliver them.
    pub released: usize,
    /// The next to be leased.
    pub next: usize,
    /// Acked out of turn, behind one that is not.
    pub acked: BTreeSet<usize>,
    /// Batches of which nobody knows whether they are in the log.
    pub doubtful: Vec<Vec<u64>>,
    /// Seqs whose dead letter was confirmed.
    pub dead: BTreeSet<Seq>,
    /// Seqs for which one was asked for.
    pub tried: BTreeSet<Seq>,
    /// Of this start.
    pub counts: Counts,
}

impl Book {
    pub fn accepted(&mut self, from: u64, n: u64, got: Appended, what: &str) {
        let last = self.log.last().map_or(Seq(0), |(_, seq)| *seq);
        assert!(got.first > last, "{what}: {} was told after {last}", got.first);
        assert_eq!(got.last.0 + 1 - got.first.0, n, "{what}");
        self.log.extend((0..n).map(|k| (from + k, Seq(got.first.0 + k))));
        self.counts.accepted += n;
        // a later frame stands: the segment it is in names an end before them
        self.doubtful.clear();
    }

    pub fn leased(&mut self, event: &Event, what: &str) {
        let got = (number(event), event.seq);
        assert_eq!(Some(&got), self.log.get(self.next), "{what}: event {}", self.next);
        self.next += 1;
    }

    pub fn resolved(&mut self, events: Range<usize>) {
        self.acked.extend(events);
        while self.acked.remove(&self.released) {
            self.released += 1;
        }
    }

    /// A start found `recovered` events and may deliver nothing up to `floor`.
    pub fn reopened(&mut self, recovered: u64, floor: Seq, what: &str) {
        let recovered = usize::try_from(recovered).unwrap();
        let start = self.log.len().checked_sub(recovered);
        let start = start.unwrap_or_else(|| panic!("{what}: {recovered} came back"));
        self.bounds(start, floor, what);
        (self.released, self.next) = (start, start);
        self.acked.clear();
        self.counts = Counts { recovered: recovered as u64, ..Counts::default() };
    }

    /// A start that delivers from `start` on loses nothing, and repeats nothing durably released.
    fn bounds(&self, start: usize, floor: Seq, what: &str) {
        let until = self.released;
        assert!(start <= until, "{what}: events {until} to {start} are lost");
        let least = self.log.partition_point(|(_, seq)| *seq <= floor);
        assert!(start >= least, "{what}: {start} comes again, all before {least} was released");
    }

    pub fn letters(&self, queue: &FileQueue, what: &str) {
        for seq in &self.dead {
            assert!(queue.is_dead(*seq), "{what}: the dead letter {seq} is gone");
        }
        for (n, seq) in &self.log {
            let may = self.tried.contains(seq) || !queue.is_dead(*seq);
            assert!(may, "{what}: event {n}, seq {seq}, has a dead letter that nobody wrote");
        }
    }

    pub fn expected(&self) -> Counts {
        let c = self.counts;
        Counts { queued: c.accepted + c.recovered - c.stored - c.dead_lettered, ..c }
    }

    /// Starts on what a crash left, and looks at all there is.
    pub async fn judge(&self, disk: &SimDisk, floor: Seq, what: &str) {
        let started = try_open(Options { segment_bytes: SEGMENT, ..options(disk) });
        let queue = started.unwrap_or_else(|e| panic!("{what}: the start fails: {e}"));
        self.letters(&queue, what);
        let recovered = counts(&queue).recovered;
        let (events, queue) = drain(queue).await;
        assert_eq!(events.len() as u64, recovered, "{what}: counted and delivered");
        self.delivered(&events, floor, what);
        assert_eq!(queue.stats().damage, Vec::<String>::new(), "{what}: a false report");
        assert_eq!(counts(&queue).lost, 0, "{what}");
        let next = queue.append(numbered("a", 1_000_000, 1)).await;
        let next = next.unwrap_or_else(|e| panic!("{what}: {e}")).first;
        let told = self.log.last().map(|(_, seq)| *seq);
        let highest = events.last().map(|e| e.seq).max(told);
        assert!(highest.is_none_or(|seq| next > seq), "{what}: a seq is reused");
    }

    fn delivered(&self, events: &[Event], floor: Seq, what: &str) {
        let first = events.first().map(|e| e.seq);
        let start = self.log.iter().position(|(_, seq)| Some(*seq) == first);
        let start = start.unwrap_or(self.log.len());
        self.bounds(start, floor, what);
        let got: Vec<(u64, Seq)> = events.iter().map(|e| (number(e), e.seq)).collect();
        let due = &self.log[start..];
        assert!(got.starts_with(due), "{what}: {got:?} came, due was {due:?}");
        let more: Vec<u64> = got[due.len()..].iter().map(|(n, _)| *n).collect();
        let may = more.is_empty() || self.doubtful.contains(&more);
        assert!(may, "{what}: {more:?} came, in doubt was {:?}", self.doubtful);
    }
}

/// Long enough that some frames are torn in the middle.
fn payload(n: u64) -> String {
    let filling = "x".repeat(index(n * 37, 400));
    format!("{{\"n\":{n},\"x\":\"{filling}\"}}")
}

/// A batch of them.
pub fn numbered(channel: &str, from: u64, n: u64) -> Batch {
    let payloads = (from..from + n).map(|n| payload(n).into()).collect();
    Batch { payloads, ..batch(channel, from, n) }
}

/// An event's number; its bytes must be those that were sent.
fn number(event: &Event) -> u64 {
    let text = std::str::from_utf8(&event.payload).unwrap();
    let digits = text.strip_prefix("{\"n\":").and_then(|rest| rest.split(',').next());
    let n = digits.unwrap_or(text).parse().unwrap();
    assert_eq!(text, payload(n), "an event is not what was sent");
    n
}

/// One of `len` places.
pub fn index(pick: u64, len: usize) -> usize {
    usize::try_from(pick).unwrap() % len
}
