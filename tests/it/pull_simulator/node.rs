//! A node of the simulation: its log, its writers, its store, and the channels that it pulls.
//!
//! Does not know time, nor the network: the world tells it what happens when.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use replicon::event::{ChannelName, Micros, Name, Origin, Seq};
use replicon::replicate::life::Lives;
use replicon::replicate::pull::{Lane, State};
use replicon::storage::event_store::{Applied, Foreign, StoredRow};
use replicon::watermark::{Marks, Start, firsts};

use crate::support::ledger::Dice;

/// The channels, the last of them rare.
pub const CHANNELS: [&str; 3] = ["busy", "other", "rare"];
/// The fingerprint of every schema.
pub const PRINT: &str = "print";

/// An event in a log.
#[derive(Clone, Copy, Debug)]
pub struct Logged {
    pub seq: u64,
    pub channel: usize,
    pub number: u64,
}

/// What survives a crash, and goes back when it is restored from a copy.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// By origin and seq: channel and number.
    pub rows: BTreeMap<(usize, u64), (usize, u64)>,
    /// By origin and channel.
    pub cursors: BTreeMap<(usize, usize), u64>,
    /// By origin, channel and node id.
    pub again: BTreeMap<(usize, usize, String), u64>,
    /// The accepted ids of each origin.
    pub ids: BTreeMap<usize, Vec<String>>,
    /// How far the own queue was released.
    pub released: u64,
}

/// A copy of a node's disk and database.
#[derive(Clone, Debug)]
pub struct Copied {
    pub store: Store,
    pub log: usize,
    pub life: String,
    pub known: u64,
}

/// Whose events of which channel, from whom.
pub type LaneKey = (usize, usize, usize);

/// A channel that is pulled.
pub struct Pulled {
    /// `None` while a step is made.
    pub state: Option<State>,
    /// The request or write that is under way; what comes of an older one is nobody's.
    pub token: u64,
}

/// A node.
pub struct Node {
    pub me: usize,
    pub up: bool,
    pub destroyed: bool,
    /// Counts its starts: what an earlier run began comes to nothing.
    pub epoch: u64,
    pub life: String,
    pub since: Option<u64>,
    pub log: Vec<Logged>,
    /// The next seq; never goes back.
    pub next: u64,
    /// Every seq that its own records show or reserve.
    pub known: u64,
    /// The same, as this start found it; and the first seq of this start. Nobody can have seen one
    /// between the two, unless this node went back.
    pub used: u64,
    pub first: u64,
    /// How far its queue is released.
    pub released: u64,
    /// Where the reader is in the log.
    read: usize,
    leases: BTreeMap<u64, Vec<Logged>>,
    done: BTreeSet<u64>,
    next_lease: u64,
    pub marks: Marks,
    pub store: Store,
    pub copy: Option<Copied>,
    pub lives: BTreeMap<usize, Lives>,
    pub lanes: BTreeMap<LaneKey, Pulled>,
    /// Failures in a row, by peer.
    pub failures: BTreeMap<usize, u32>,
    /// How far it has come with each peer's history that it follows.
    passed: BTreeMap<usize, u64>,
    /// How often this start was shown by a caller that it went back.
    pub shown_back: u64,
}

pub fn origin(of: usize) -> Origin {
    Name::new(&format!("dc{of}")).unwrap()
}

pub fn channel(of: usize) -> ChannelName {
    Name::new(CHANNELS[of]).unwrap()
}

fn marks_of(log: &[Logged], read: u64, next: u64, base: u64) -> Marks {
    let waiting: BTreeSet<usize> = log.iter().filter(|e| e.seq > read).map(|e| e.channel).collect();
    let end = Seq(log.last().map_or(0, |e| e.seq));
    Marks::new(Start {
        assigned: Seq(next - 1),
        read: Seq(read),
        end,
        shown: end,
        backlog: waiting.into_iter().map(|of| Some(channel(of))).collect(),
        parked: Vec::new(),
        base,
    })
}

impl Node {
    pub fn new(me: usize) -> Self {
        let next = 1;
        Self {
            me,
            up: true,
            destroyed: false,
            epoch: 0,
            life: format!("life-{me}-0"),
            since: None,
            log: Vec::new(),
            next,
            known: 0,
            used: 0,
            first: next,
            released: 0,
            read: 0,
            leases: BTreeMap::new(),
            done: BTreeSet::new(),
            next_lease: 1,
            marks: marks_of(&[], 0, next, 0),
            store: Store::default(),
            copy: None,
            lives: BTreeMap::new(),
            lanes: BTreeMap::new(),
            failures: BTreeMap::new(),
            passed: BTreeMap::new(),
            shown_back: 0,
        }
    }

    /// Accepts a batch; its events.
    pub fn post(&mut self, of: usize, numbers: std::ops::Range<u64>) -> Vec<Logged> {
        let first = self.next;
        let event = |(seq, number)| Logged { seq, channel: of, number };
        let batch: Vec<Logged> = (first..).zip(numbers).map(event).collect();
        self.next += batch.len() as u64;
        self.known = self.next - 1;
        let last = Seq(self.next - 1);
        self.marks.written([(&channel(of), Seq(first), last)].into_iter());
        self.marks.shown(last);
        self.log.extend(&batch);
        batch
    }

    /// Hands out a lease; its number.
    pub fn lease(&mut self, most: usize) -> Option<u64> {
        let events: Vec<Logged> = self.log[self.read..].iter().take(most).copied().collect();
        let Some(last) = events.last() else {
            let end = self.marks.shown_to();
            self.marks.passed(end);
            return None;
        };
        let named: Vec<(ChannelName, Seq)> =
            events.iter().map(|e| (channel(e.channel), Seq(e.seq))).collect();
        let id = self.next_lease;
        self.next_lease += 1;
        let firsts = firsts(named.iter().map(|(channel, seq)| (channel, *seq)));
        self.marks.leased(id, Seq(last.seq), firsts);
        self.read += events.len();
        self.leases.insert(id, events);
        Some(id)
    }

    /// How many leases are under way.
    pub fn under_way(&self) -> usize {
        self.leases.len()
    }

    /// The rows of a lease stand in the store.
    pub fn commit(&mut self, id: u64) {
        for event in self.leases.get(&id).into_iter().flatten() {
            self.store.rows.insert((self.me, event.seq), (event.channel, event.number));
        }
    }

    /// A lease is acked. The released set is a prefix.
    pub fn ack(&mut self, id: u64) {
        if !self.leases.contains_key(&id) {
            return;
        }
        self.done.insert(id);
        self.marks.resolved(id);
        while let Some((first, events)) = self.leases.first_key_value() {
            if !self.done.contains(first) {
                break;
            }
            self.released = events.last().map_or(self.released, |e| e.seq);
            self.leases.pop_first();
        }
        // written to the database before the ack becomes durable
        self.store.released = self.store.released.max(self.released);
    }

    /// `kill -9`: everything in memory is gone, and the ack record may be an older one.
    pub fn crash(&mut self, dice: &mut Dice) {
        (self.up, self.epoch) = (false, self.epoch + 1);
        (self.leases, self.done) = (BTreeMap::new(), BTreeSet::new());
        self.lanes.clear();
        self.lives.clear();
        self.failures.clear();
        self.passed.clear();
        self.shown_back = 0;
        self.released = dice.throw(self.released.saturating_sub(20), self.released);
    }

    /// Starts again on what is on its disk.
    pub fn start(&mut self, base: u64) {
        self.up = true;
        if self.store.released < self.released {
            // the database went back: the ack goes back with it, and a new history begins
            self.released = self.store.released;
            self.renew(self.released);
        }
        // the clock's term
        self.next += 30;
        (self.used, self.first, self.known) = (self.known, self.next, self.next - 1);
        self.read = self.log.iter().take_while(|e| e.seq <= self.released).count();
        self.marks = marks_of(&self.log, self.released, self.next, base);
    }

    /// Before a caller is answered: one that follows this node's id and has seen what it does not know
    /// of shows that it went back. Whether it did.
    pub fn meet(&mut self, id: Option<&str>, seen: u64) -> bool {
        // an S lies right below the first seq of a start
        let between = self.used < seen && seen + 1 < self.first;
        let back = between && id == Some(self.life.as_str());
        if back {
            self.renew(self.used);
            self.shown_back += 1;
        }
        back
    }

    /// Another history begins, which shares everything up to `since` with those before it.
    fn renew(&mut self, since: u64) {
        let count = self.life.rsplit('-').next().and_then(|n| n.parse::<u64>().ok()).unwrap();
        self.life = format!("life-{}-{}", self.me, count + 1);
        self.since = Some(self.since.map_or(since, |before| before.min(since)));
    }

    /// What a page of it holds: from the store as it is, up to `upto`.
    pub fn read_page(
        &self,
        (of, on): (usize, usize),
        from: u64,
        upto: u64,
        limit: usize,
    ) -> (Vec<StoredRow>, u64) {
        let upto = upto.min(u64::MAX - 1);
        if from > upto {
            return (Vec::new(), from);
        }
        let found = self.store.rows.range((of, from)..=(of, upto));
        let mut rows: Vec<StoredRow> = found
            .filter(|(_, (channel, _))| *channel == on)
            .take(limit + 1)
            .map(|((_, seq), (_, number))| StoredRow {
                seq: Seq(*seq),
                node_name: origin(of).to_string(),
                received_at: Micros(1_790_000_000_000_000),
                payload: Bytes::from(format!("{{\"n\":{number}}}")),
            })
            .collect();
        if rows.len() > limit {
            rows.truncate(limit);
            let next = rows.last().map_or(from, |row| row.seq.0 + 1);
            return (rows, next);
        }
        (rows, upto + 1)
    }

    /// Up to where what it holds of an origin's channel is final.
    pub fn horizon(&self, of: usize, on: usize) -> u64 {
        if of == self.me {
            return self.marks.safe(&channel(on)).0;
        }
        self.store.cursors.get(&(of, on)).copied().unwrap_or(0)
    }

    /// Stores a page and moves the cursor, or does nothing.
    pub fn apply(&mut self, of: usize, on: usize, foreign: &Foreign) -> Result<Applied, String> {
        assert_ne!(of, self.me, "a node alone writes for itself");
        let to = foreign.to.0;
        let own = foreign.again.as_ref().map(|id| (of, on, id.clone()));
        let stored = match &own {
            None => self.store.cursors.get(&(of, on)),
            Some(key) => self.store.again.get(key),
        };
        if stored.copied() != foreign.expect.map(|seq| seq.0) {
            return Ok(Applied { stale: true, ..Applied::default() });
        }
        if stored.is_some_and(|stored| *stored > to) {
            return Err(format!("a cursor of dc{of} goes back from {stored:?} to {to}"));
        }
        if let Some(key) = own {
            self.store.again.insert(key, to);
        }
        let usual = self.store.cursors.entry((of, on)).or_default();
        *usual = to.max(*usual);
        for row in &foreign.rows {
            let text = std::str::from_utf8(&row.payload).unwrap();
            let digits = text.trim_start_matches("{\"n\":").trim_end_matches('}');
            let row_now = (on, digits.parse().unwrap());
            let before = self.store.rows.insert((of, row.seq.0), row_now);
            if before.is_some_and(|before| before != row_now) {
                return Err(format!("two events of dc{of} have seq {}", row.seq));
            }
        }
        Ok(Applied { stored: foreign.rows.len() as u64, ..Applied::default() })
    }

    /// The state of a channel of which nothing is known yet.
    pub fn fresh((peer, of, on): LaneKey) -> State {
        State::new(Lane {
            origin: origin(of),
            channel: channel(on),
            direct: peer == of,
            most: 7,
            pages: 1,
            print: PRINT.to_owned(),
        })
    }

    /// The id of a peer that is followed.
    fn followed(&self, peer: usize) -> Option<String> {
        self.lives.get(&peer)?.followed().map(str::to_owned)
    }

    /// The stored cursors: the usual one, and that of reading again.
    pub fn load(&mut self, (peer, of, on): LaneKey) -> (Option<u64>, Option<(String, u64)>) {
        let usual = self.store.cursors.get(&(of, on)).copied();
        let id = self.followed(of).filter(|_| peer == of);
        let again = id.and_then(|id| {
            let seq = *self.store.again.get(&(of, on, id.clone()))?;
            Some((id, seq))
        });
        if peer == of {
            self.passes(of, again.as_ref().map(|(_, seq)| *seq).or(usual).unwrap_or(0));
        }
        (usual, again)
    }

    /// Everything of the history of a peer that is followed was passed up to here.
    pub fn passes(&mut self, peer: usize, seq: u64) {
        let passed = self.passed.entry(peer).or_default();
        *passed = seq.max(*passed);
    }

    /// What a peer is told: its id as it is followed, and how far this has come with it.
    pub fn knows(&self, peer: usize) -> (Option<String>, u64) {
        (self.followed(peer), self.passed.get(&peer).copied().unwrap_or(0))
    }

    /// Keeps from where each channel of a peer is to be read again under that id.
    pub fn keep_again(&mut self, of: usize, id: &str, since: u64) {
        let before = self.followed(of);
        for on in 0..CHANNELS.len() {
            let Some(usual) = self.store.cursors.get(&(of, on)).copied() else { continue };
            let pending = before.clone().and_then(|id| self.store.again.get(&(of, on, id)));
            let from = since.min(pending.copied().unwrap_or(usual));
            if from < usual {
                self.store.again.entry((of, on, id.to_owned())).or_insert(from);
            }
        }
    }

    /// From here on that id is followed.
    pub fn accept(&mut self, of: usize, id: &str, since: u64) {
        self.store.ids.entry(of).or_default().push(id.to_owned());
        self.lives.entry(of).or_default().accepted(id);
        self.store.again.retain(|(origin, _, other), _| *origin != of || other == id);
        let passed = self.passed.entry(of).or_default();
        *passed = since.min(*passed);
    }
}
