//! A client that remembers: every request with the ids of its events and what became of it, and the
//! judge who compares that with what stands in storage.
//!
//! Knows nothing of how the node is started, killed or restarted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use serde_json::Value;

use super::{Client, KEY, Response};

/// Small, seeded, good enough to choose sizes and moments (xorshift).
pub struct Dice(u64);

impl Dice {
    /// From a seed; equal seeds throw equally.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number of `low..=high`.
    pub fn throw(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + self.0 % (high - low + 1)
    }
}

/// A request that was answered 202.
struct Accepted {
    cycle: usize,
    first: u64,
    last: u64,
    ids: Vec<u64>,
}

#[derive(Default)]
struct Book {
    accepted: Vec<Accepted>,
    /// Requests without an answer, or with one that leaves it open.
    maybe: Vec<Vec<u64>>,
    /// Ids of requests that were refused.
    refused: HashSet<u64>,
}

/// All that the clients of all cycles were told.
#[derive(Default)]
pub struct Ledger {
    next_id: AtomicU64,
    /// The power is being cut: see [`Ledger::power`].
    cut: AtomicBool,
    book: Mutex<Book>,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn ids(&self, count: u64) -> Vec<u64> {
        let first = self.next_id.fetch_add(count, Ordering::Relaxed);
        (first..first + count).collect()
    }

    /// Says that the power goes, before it does, or that it is back. A real cut ends the node with its
    /// disk; the ioctl that stands for one leaves it running, and in this kernel a sync that is under
    /// way at that moment may return 0 though nothing became durable (seen with a loop of pwrite and
    /// fsync alone, in one cut of ten). So an answer that came after the word counts for nothing.
    pub fn power(&self, goes: bool) {
        self.cut.store(goes, Ordering::SeqCst);
    }

    /// Events that were answered 202.
    pub fn accepted(&self) -> usize {
        self.book().accepted.iter().map(|a| a.ids.len()).sum()
    }

    /// Posts to `events_raw` on one connection until that breaks: single events, batches, and now and
    /// then one that must be refused.
    pub fn post_until_it_breaks(&self, addr: &str, cycle: usize, mut dice: Dice) {
        let Ok(mut client) = Client::connect(addr) else {
            return;
        };
        let mut last = 0;
        loop {
            let ids = match dice.throw(0, 2) {
                0 => self.ids(1),
                _ => self.ids(dice.throw(1, 40)),
            };
            let wrong = dice.throw(0, 19) == 0;
            let body = body_of(&ids, wrong, &mut dice);
            match client.post("events_raw", KEY, body.as_bytes()) {
                Ok(answer) if answer.status == 202 => {
                    assert!(!wrong, "accepted: {body}");
                    if self.cut.load(Ordering::SeqCst) {
                        self.book().maybe.push(ids);
                        continue;
                    }
                    last = self.enter_accepted(&answer, cycle, last, ids);
                }
                Ok(answer) if answer.status == 503 && answer.json()["stored"] == "unknown" => {
                    self.book().maybe.push(ids);
                }
                Ok(answer) => {
                    let expected = if wrong { 400 } else { 503 };
                    assert_eq!(answer.status, expected, "{}", answer.body);
                    self.book().refused.extend(ids);
                }
                Err(_) if wrong => {
                    self.book().refused.extend(ids);
                    return;
                }
                Err(_) => {
                    self.book().maybe.push(ids);
                    return;
                }
            }
        }
    }

    /// Checks an answer 202 and keeps it; its last seq.
    fn enter_accepted(&self, answer: &Response, cycle: usize, after: u64, ids: Vec<u64>) -> u64 {
        let json = answer.json();
        assert_eq!(json["accepted_count"], ids.len(), "{json}");
        let (first, last) = (number(&json["first_seq"]), number(&json["last_seq"]));
        assert_eq!(last - first + 1, ids.len() as u64, "{json}");
        assert!(first > after, "{first} was given after {after}");
        self.book().accepted.push(Accepted { cycle, first, last, ids });
        last
    }

    /// Compares with the lines of storage, as they stand.
    pub fn judge(&self, lines: &[Value]) {
        let book = self.book();
        let mut seq_of: HashMap<u64, u64> = HashMap::new();
        let mut highest = 0;
        for line in lines {
            let seq = number(&line["origin_seq"]);
            assert!(seq > highest, "{seq} stands behind {highest}");
            highest = seq;
            let id = number(&line["json_data"]["id"]);
            let twice = seq_of.insert(id, seq);
            assert_eq!(twice, None, "event {id} stands twice, the second time as {seq}");
        }
        for request in &book.accepted {
            for (seq, id) in (request.first..=request.last).zip(&request.ids) {
                let stands = seq_of.remove(id);
                assert_eq!(stands, Some(seq), "event {id} was accepted as {seq}");
            }
        }
        for id in &book.refused {
            assert_eq!(seq_of.remove(id), None, "event {id} was refused");
        }
        for ids in &book.maybe {
            let stand: Vec<Option<u64>> = ids.iter().map(|id| seq_of.remove(id)).collect();
            let none = stand.iter().all(Option::is_none);
            let whole = stand
                .iter()
                .zip(0..)
                .all(|(seq, nth)| seq.is_some() && *seq == stand[0].map(|first| first + nth));
            assert!(none || whole, "of {ids:?} only a part stands: {stand:?}");
        }
        assert!(seq_of.is_empty(), "nobody sent these: {seq_of:?}");
        rising_across_cycles(&book.accepted);
    }
}

/// Every seq of a later cycle is above all of the earlier ones; none was told twice.
fn rising_across_cycles(accepted: &[Accepted]) {
    let mut by_cycle: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    let mut told = HashSet::new();
    for request in accepted {
        for seq in request.first..=request.last {
            assert!(told.insert(seq), "{seq} was told twice");
        }
        let range = by_cycle.entry(request.cycle).or_insert((u64::MAX, 0));
        *range = (range.0.min(request.first), range.1.max(request.last));
    }
    let mut before = 0;
    for (cycle, (lowest, highest)) in by_cycle {
        assert!(lowest > before, "cycle {cycle} gave {lowest} after {before}");
        before = highest;
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// One event, or an array of them; a wrong one ends in an item that is no object.
fn body_of(ids: &[u64], wrong: bool, dice: &mut Dice) -> String {
    let mut items: Vec<String> = ids
        .iter()
        .map(|id| {
            let filling = usize::try_from(dice.throw(0, 200)).unwrap();
            format!("{{\"id\":{id},\"filling\":\"{}\"}}", "x".repeat(filling))
        })
        .collect();
    if wrong {
        items.push("7".to_owned());
    }
    match &items[..] {
        [one] => one.clone(),
        _ => format!("[{}]", items.join(",")),
    }
}

/// Scrapes until the node is gone, and checks the accounts of every scrape; how many there were.
pub fn scrape_until_it_breaks(addr: &str) -> usize {
    let mut scrapes = 0;
    let Ok(mut client) = Client::connect(addr) else {
        return scrapes;
    };
    while let Ok(answer) = client.get("/metrics") {
        assert_eq!(answer.status, 200);
        check_accounts(&answer.body);
        scrapes += 1;
        // not to take the processor from what is tested
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    scrapes
}

/// Per channel: accepted + recovered = stored + queued + dead-lettered + lost.
pub fn check_accounts(metrics: &str) {
    let mut channels: BTreeMap<&str, HashMap<&str, u64>> = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once("{channel=\"") else {
            continue;
        };
        // other series have more labels
        if let Some((channel, value)) = rest.split_once("\"} ")
            && !channel.contains('"')
        {
            let value = value.parse().unwrap();
            channels.entry(channel).or_default().insert(name, value);
        }
    }
    for (channel, counts) in channels {
        let of = |name: &str| *counts.get(name).unwrap_or_else(|| panic!("no {name}"));
        let came = of("replicon_events_accepted_total") + of("replicon_events_recovered_total");
        let went = of("replicon_events_stored_total")
            + of("replicon_events_dead_lettered_total")
            + of("replicon_events_lost_total");
        let queued = of("replicon_queue_events");
        assert_eq!(came, went + queued, "channel {channel:?}: {counts:?}");
    }
}
