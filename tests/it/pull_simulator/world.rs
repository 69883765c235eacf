//! Time, the network, and what happens to the nodes of a simulation.
//!
//! One heap of happenings, one seed. Answers are lost, late, cut, doubled, or older ones; nodes crash,
//! and go back to copies; one of them may go for good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use replicon::replicate::pull::Failure;
use replicon::replicate::wire::{self, Ask, Head};
use replicon::storage::event_store::{Foreign, StoredRow};

use super::node::{Copied, LaneKey, Node, PRINT, channel, origin};
use crate::support::ledger::Dice;

/// Simulated microseconds.
const MS: u64 = 1_000;
/// Faults and posts end here.
const END: u64 = 800 * MS;
/// By then all sets must be equal.
const LATEST: u64 = 20_000 * MS;

/// A node that went back once is shown so by few of its callers.
const MOST_BACK: u64 = 10;

/// In which order a server takes horizon and snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As it must be.
    HorizonFirst,
    /// What is committed is served, whatever is still under way.
    NoHorizon,
    /// Rows first, then the horizon.
    HorizonLast,
}

/// What a run has seen.
#[derive(Default)]
pub struct Seen {
    pub pages: u64,
    pub crashes: u64,
    pub lives: u64,
    pub relayed: u64,
    pub garbled: u64,
}

/// A request on its way.
#[derive(Clone)]
pub(super) struct Asked {
    pub by: usize,
    pub epoch: u64,
    pub key: LaneKey,
    pub token: u64,
    pub ask: Ask,
    /// The id of the asked node that the caller follows, and how far it has come with it.
    pub known: (Option<String>, u64),
}

/// What a server has taken so far.
pub(super) struct Taken {
    epoch: u64,
    life: String,
    safe: u64,
    rows: Vec<StoredRow>,
    next: u64,
}

pub(super) enum Happening {
    Post(usize),
    Lease(usize),
    Commit(usize, u64, u64),
    Ack(usize, u64, u64),
    Turn(usize, u64, LaneKey, u64),
    Arrives(Asked),
    Reads(Asked, Taken),
    Delivered(Asked, Result<Bytes, Failure>),
    Applies(usize, u64, LaneKey, u64, Foreign),
    Flush(usize),
    Fault,
    Start(usize),
    Heal(usize, usize),
}

pub struct World {
    now: u64,
    pub(super) count: u64,
    heap: BTreeMap<(u64, u64), Happening>,
    dice: Dice,
    order: Order,
    pub(super) nodes: Vec<Node>,
    cut: BTreeSet<(usize, usize)>,
    old: BTreeMap<(usize, LaneKey), Vec<(String, Bytes)>>,
    numbers: u64,
    /// Events that a node that went back wholly has lost.
    lost: BTreeSet<(usize, u64)>,
    pub(super) seen: Seen,
}

impl World {
    pub fn new(seed: u64, order: Order) -> Self {
        let nodes = 2 + usize::try_from(seed % 3).unwrap();
        let mut world = Self {
            now: 0,
            count: 0,
            heap: BTreeMap::new(),
            dice: Dice::new(seed),
            order,
            nodes: (0..nodes).map(Node::new).collect(),
            cut: BTreeSet::new(),
            old: BTreeMap::new(),
            numbers: 1,
            lost: BTreeSet::new(),
            seen: Seen::default(),
        };
        for me in 0..nodes {
            world.after(0, 5, Happening::Post(me));
            world.after(0, 5, Happening::Lease(me));
            world.after(50, 100, Happening::Flush(me));
            world.begin(me);
        }
        world.after(20, 60, Happening::Fault);
        world
    }

    /// Runs to its end; what went wrong.
    pub fn run(mut self) -> Result<Seen, String> {
        let mut looked = END;
        while let Some(((at, _), happening)) = self.heap.pop_first() {
            self.now = at;
            self.happens(happening)?;
            if self.now > looked {
                if looked == END {
                    self.heal_all();
                }
                looked = self.now + 50 * MS;
                match self.differs() {
                    None => return Ok(self.seen),
                    Some(what) if self.now > LATEST => return Err(what),
                    Some(_) => {}
                }
            }
        }
        Err("nothing happens any more".to_owned())
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.now < END && self.dice.throw(1, 100) <= percent
    }

    /// In so many milliseconds, from low to high.
    pub(super) fn after(&mut self, low: u64, high: u64, happening: Happening) {
        let at = self.now + self.dice.throw(low * MS, high * MS);
        self.count += 1;
        self.heap.insert((at, self.count), happening);
    }

    fn happens(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Post(me) => self.post(me),
            Happening::Lease(me) => self.lease(me),
            Happening::Commit(me, epoch, id) if self.nodes[me].epoch == epoch => {
                self.nodes[me].commit(id);
                self.after(0, 5, Happening::Ack(me, epoch, id));
            }
            Happening::Ack(me, epoch, id) if self.nodes[me].epoch == epoch => {
                self.nodes[me].ack(id)
            }
            Happening::Turn(me, epoch, key, token) => return self.turn(me, epoch, key, token),
            Happening::Arrives(asked) => return self.arrives(asked),
            Happening::Reads(asked, taken) => self.reads(asked, taken),
            Happening::Delivered(asked, result) => return self.delivered(&asked, result),
            Happening::Applies(me, epoch, key, token, foreign) => {
                return self.applies(me, epoch, key, token, &foreign);
            }
            Happening::Flush(me) => return self.flush(me),
            Happening::Fault => self.fault(),
            Happening::Start(me) => self.start(me),
            Happening::Heal(a, b) => {
                self.cut.remove(&(a, b));
            }
            // of an earlier run of the node
            Happening::Commit(..) | Happening::Ack(..) => {}
        }
        Ok(())
    }

    fn post(&mut self, me: usize) {
        if self.now >= END {
            return;
        }
        let on = if self.dice.throw(0, 14) == 0 { 2 } else { self.dice.throw(0, 1) as usize };
        let many = self.dice.throw(1, 3);
        if self.nodes[me].up {
            self.nodes[me].post(on, self.numbers..self.numbers + many);
            self.numbers += many;
        }
        self.after(3, 30, Happening::Post(me));
    }

    /// Three writers, whose batches are committed in any order.
    fn lease(&mut self, me: usize) {
        let most = self.dice.throw(1, 5) as usize;
        let node = &mut self.nodes[me];
        if node.up && node.under_way() < 3 {
            let epoch = node.epoch;
            if let Some(id) = node.lease(most) {
                self.after(1, 30, Happening::Commit(me, epoch, id));
            }
        }
        self.after(1, 6, Happening::Lease(me));
    }

    // ---- the network ----

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub(super) fn send(&mut self, asked: Asked) {
        let gone = self.is_cut(asked.by, asked.key.0) || self.chance(2);
        if gone {
            let failure = Failure::TimedOut(Duration::from_millis(50));
            self.after(50, 50, Happening::Delivered(asked, Err(failure)));
        } else {
            self.after(0, 6, Happening::Arrives(asked));
        }
    }

    fn arrives(&mut self, asked: Asked) -> Result<(), String> {
        let (peer, of, on) = asked.key;
        let order = if of == peer { self.order } else { Order::HorizonFirst };
        let node = &mut self.nodes[peer];
        if !node.up {
            let failure = Failure::Lost("refused".to_owned());
            self.after(0, 2, Happening::Delivered(asked, Err(failure)));
            return Ok(());
        }
        self.seen.lives += u64::from(node.meet(asked.known.0.as_deref(), asked.known.1));
        let node = &self.nodes[peer];
        if node.shown_back > MOST_BACK {
            return Err(format!("dc{peer} draws one id after another: {}", node.life));
        }
        let (from, limit) = (asked.ask.from.0, asked.ask.limit);
        let committed = node.store.rows.range((of, 0)..=(of, u64::MAX)).next_back();
        let safe = match order {
            Order::HorizonFirst => node.horizon(of, on),
            Order::NoHorizon => committed.map_or(0, |((_, seq), _)| *seq),
            Order::HorizonLast => u64::MAX - 1,
        };
        let mut taken = Taken {
            epoch: node.epoch,
            life: node.life.clone(),
            safe,
            rows: Vec::new(),
            next: from,
        };
        if order == Order::HorizonLast {
            (taken.rows, taken.next) = node.read_page((of, on), from, safe, limit);
        }
        // other transactions are committed meanwhile
        self.after(0, 12, Happening::Reads(asked, taken));
        Ok(())
    }

    fn reads(&mut self, asked: Asked, mut taken: Taken) {
        let (peer, of, on) = asked.key;
        let node = &self.nodes[peer];
        if !node.up || node.epoch != taken.epoch || node.life != taken.life {
            let failure = Failure::Lost("reset".to_owned());
            self.after(0, 2, Happening::Delivered(asked, Err(failure)));
            return;
        }
        let (from, limit) = (asked.ask.from.0, asked.ask.limit);
        if self.order == Order::HorizonLast && of == peer {
            taken.safe = node.horizon(of, on);
            let full = taken.rows.len() >= limit;
            taken.rows.retain(|row| row.seq.0 <= taken.safe);
            let last = taken.rows.last().map(|row| row.seq.0 + 1);
            taken.next = match last {
                Some(next) if full => next,
                _ => from.max(taken.safe + 1),
            };
        } else if from <= taken.safe {
            (taken.rows, taken.next) = node.read_page((of, on), from, taken.safe, limit);
        }
        let (names, life) = ((origin(of), origin(peer), channel(on)), taken.life.clone());
        let head = Head {
            channel: names.2.as_str(),
            origin: names.0.as_str(),
            from_seq: from,
            node: names.1.as_str(),
            node_id: &life,
            since: node.since,
            protocol: wire::PROTOCOL,
            schema: PRINT,
            safe_seq: taken.safe,
            next_seq: taken.next,
            seen: None,
            now_micros: 0,
            behind: None,
        };
        let bytes = Bytes::from(wire::encode(&head, &taken.rows));
        self.answer(asked, life, bytes);
    }

    fn answer(&mut self, asked: Asked, life: String, bytes: Bytes) {
        let old = self.old.entry((asked.by, asked.key)).or_default();
        old.push((life.clone(), bytes.clone()));
        if old.len() > 6 {
            old.remove(0);
        }
        let old = old.clone();
        let mut sent = bytes;
        if self.chance(3) {
            // one of an earlier request
            let same: Vec<&Bytes> =
                old.iter().filter(|(of, _)| *of == life).map(|(_, b)| b).collect();
            let at = self.dice.throw(0, same.len() as u64 - 1) as usize;
            sent = same[at].clone();
        } else if self.chance(3) {
            let end = self.dice.throw(0, sent.len() as u64 - 1) as usize;
            sent = sent.slice(..end);
        }
        if self.chance(3) {
            self.after(0, 30, Happening::Delivered(asked.clone(), Ok(sent.clone())));
        }
        if self.is_cut(asked.by, asked.key.0) || self.chance(2) {
            let failure = Failure::TimedOut(Duration::from_millis(50));
            self.after(50, 50, Happening::Delivered(asked, Err(failure)));
        } else {
            self.after(0, 6, Happening::Delivered(asked, Ok(sent)));
        }
    }

    fn fault(&mut self) {
        if self.now >= END {
            return;
        }
        self.after(10, 60, Happening::Fault);
        let me = self.dice.throw(0, self.nodes.len() as u64 - 1) as usize;
        if self.nodes[me].destroyed {
            return;
        }
        match self.dice.throw(0, 11) {
            0..=3 => self.down(me, |_| {}),
            4..=6 => {
                let other = self.dice.throw(0, self.nodes.len() as u64 - 1) as usize;
                let pair = (me.min(other), me.max(other));
                self.cut.insert(pair);
                self.after(20, 200, Happening::Heal(pair.0, pair.1));
            }
            7..=8 => {
                let node = &mut self.nodes[me];
                let (store, life) = (node.store.clone(), node.life.clone());
                node.copy = Some(Copied { store, log: node.log.len(), life, known: node.known });
            }
            // the database goes back
            9 => self.down(me, |node| {
                if let Some(copy) = &node.copy {
                    node.store = copy.store.clone();
                }
            }),
            10 => self.roll_back(me),
            _ => self.destroy(me),
        }
    }

    pub(super) fn down(&mut self, me: usize, change: impl FnOnce(&mut Node)) {
        if !self.nodes[me].up {
            return;
        }
        self.seen.crashes += 1;
        let node = &mut self.nodes[me];
        node.crash(&mut self.dice);
        change(node);
        self.after(2, 120, Happening::Start(me));
    }

    /// Directory and database go back together: nothing local shows it.
    fn roll_back(&mut self, me: usize) {
        let Some(copy) = self.nodes[me].copy.clone() else { return };
        if copy.life != self.nodes[me].life || !self.nodes[me].up {
            return;
        }
        let gone: Vec<u64> = self.nodes[me].log[copy.log..].iter().map(|e| e.seq).collect();
        self.lost.extend(gone.into_iter().map(|seq| (me, seq)));
        self.down(me, |node| {
            node.log.truncate(copy.log);
            (node.released, node.known) = (copy.store.released, copy.known);
            node.store = copy.store;
        });
    }

    /// One of three or four nodes, in some worlds, goes for good.
    fn destroy(&mut self, me: usize) {
        if self.nodes.len() < 3 || self.nodes.iter().any(|node| node.destroyed) {
            return;
        }
        let node = &mut self.nodes[me];
        node.crash(&mut self.dice);
        node.destroyed = true;
    }

    fn start(&mut self, me: usize) {
        if self.nodes[me].destroyed || self.nodes[me].up {
            return;
        }
        let before = self.nodes[me].life.clone();
        self.nodes[me].start(self.now);
        self.seen.lives += u64::from(self.nodes[me].life != before);
        self.begin(me);
    }

    fn heal_all(&mut self) {
        self.cut.clear();
        for me in 0..self.nodes.len() {
            self.start(me);
        }
    }

    /// What is not equal yet.
    fn differs(&self) -> Option<String> {
        let alive = || self.nodes.iter().filter(|node| !node.destroyed);
        for of in &self.nodes {
            let held: BTreeSet<u64> = of.log.iter().map(|e| e.seq).collect();
            for node in alive() {
                for event in &of.log {
                    // what a destroyed node alone had is gone
                    let due = !of.destroyed
                        || alive().any(|other| other.store.rows.contains_key(&(of.me, event.seq)));
                    let row = node.store.rows.get(&(of.me, event.seq));
                    if due && row != Some(&(event.channel, event.number)) {
                        return Some(format!("dc{} lacks {} of dc{}", node.me, event.seq, of.me));
                    }
                }
                let more = node.store.rows.range((of.me, 0)..=(of.me, u64::MAX)).map(|(k, _)| k.1);
                let mut more = more.filter(|seq| !held.contains(seq));
                if let Some(seq) = more.find(|seq| !self.lost.contains(&(of.me, *seq))) {
                    return Some(format!(
                        "dc{} has {seq} of dc{}, which never was",
                        node.me, of.me
                    ));
                }
            }
        }
        None
    }
}
