//! Draining all of it into file storage, and whether each event stands there once and in order.
//!
//! Knows nothing of the queue but how much waits.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use replicon::clock::Clock;

use crate::event::EVENT_BYTES;
use crate::figures::short;
use crate::fill::Plan;
use crate::load::{CONNECTIONS, Pattern, connection_of};
use crate::settings::Outcome;
use crate::{MOST_MIB, line, memory, start, stop};

/// How often the node is asked: seldom enough to cost it nothing.
const EVERY: Duration = Duration::from_millis(50);
/// A drain that has not moved for so long has stopped.
const STUCK: Duration = Duration::from_secs(60);
/// Where the shipped configuration stores.
const STORAGE: &str = "data/db/events_raw.jsonl";

/// Drains, checks, and prints its lines. `started` events were sent after the loading.
pub fn run(dir: &Path, plan: &Plan, started: usize) -> Outcome<()> {
    let events = plan.events() + started;
    let clock = Clock::system();
    let node = start(dir, true)?;
    let (mut left, mut moved_at) = (u64::MAX, clock.mono());
    loop {
        let waiting = node.health()?.waiting;
        if waiting == 0 {
            break;
        }
        if waiting < left {
            (left, moved_at) = (waiting, clock.mono());
        } else if clock.mono() - moved_at > STUCK {
            return Err(format!("{waiting} events have waited for {STUCK:?} unmoved").into());
        }
        std::thread::sleep(EVERY);
    }
    let rate = events as f64 / clock.mono().as_secs_f64();
    line("draining into file storage, start included", &format!("{}/s", short(rate)));
    memory("while draining (P7)", node.memory()?, MOST_MIB);
    stop(node)?;
    check(&dir.join(STORAGE), plan, events)?;
    line("in order of acceptance", "yes");
    line("each once", "yes");
    Ok(())
}

/// What was seen of a file so far.
struct Seen {
    /// A bit a number.
    bits: Vec<u64>,
    events: usize,
    last_seq: u64,
    /// Per connection, and for the starts, the last number: each was sent after the one before it had
    /// been answered.
    last_of: [Option<usize>; CONNECTIONS + 1],
}

/// Reads the file once, a line at a time.
fn check(file: &Path, plan: &Plan, events: usize) -> Outcome<()> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(file)?);
    let pattern = Pattern::new();
    let bits = vec![0; events.div_ceil(64)];
    let mut seen = Seen { bits, events: 0, last_seq: 0, last_of: [None; CONNECTIONS + 1] };
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        let say = |what: String| {
            format!("line {}: {what}: {}", seen.events + 1, String::from_utf8_lossy(&bytes))
        };
        let Some((seq, number)) = identity(&bytes, &pattern).filter(|(_, n)| *n < events) else {
            return Err(say("nobody sent this".to_owned()).into());
        };
        if let Some(odd) = seen.odd(seq, number, plan) {
            return Err(say(odd).into());
        }
        seen.enter(seq, number, plan);
        bytes.clear();
    }
    if seen.events != events {
        let missing = (0..events).find(|number| !seen.has(*number));
        return Err(format!(
            "{} of {events} events stand in {}; the first that is missing has number {missing:?}",
            seen.events,
            file.display()
        )
        .into());
    }
    Ok(())
}

/// The seq of a line of ours, and the number of its event.
fn identity(line: &[u8], pattern: &Pattern) -> Option<(u64, usize)> {
    const KEY: &[u8] = b"\"origin_seq\":";
    let at = line.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
    let digits = line[at..].split(|byte| *byte == b',').next()?;
    let seq = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let payload = line.strip_suffix(b"}\n")?;
    let payload = &payload[payload.len().checked_sub(EVENT_BYTES)?..];
    Some((seq, pattern.number(payload)?))
}

impl Seen {
    fn has(&self, number: usize) -> bool {
        (self.bits[number / 64] >> (number % 64)) & 1 == 1
    }

    /// Why the next event should not be this one.
    fn odd(&self, seq: u64, number: usize, plan: &Plan) -> Option<String> {
        if self.has(number) {
            return Some(format!("event {number} stands twice"));
        }
        if seq <= self.last_seq {
            return Some(format!("seq {seq} stands behind {}", self.last_seq));
        }
        let before = self.last_of[sender(number, plan)].filter(|before| *before > number);
        before.map(|before| format!("event {number} was sent before {before}"))
    }

    fn enter(&mut self, seq: u64, number: usize, plan: &Plan) {
        self.bits[number / 64] |= 1 << (number % 64);
        self.events += 1;
        self.last_seq = seq;
        self.last_of[sender(number, plan)] = Some(number);
    }
}

/// Who sent it: one of the connections, or one start after the other.
fn sender(number: usize, plan: &Plan) -> usize {
    if number < plan.events() { connection_of(number) } else { CONNECTIONS }
}
