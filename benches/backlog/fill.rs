//! Loading: how fast, whether that stays so to the end, and what the node takes of the memory with
//! everything waiting.
//!
//! Nothing drains here. Knows nothing of starts.

use std::path::Path;

use replicon::fsx::{Disk, OsDisk};

use crate::event::EVENT_BYTES;
use crate::figures::{Spread, ratio, short};
use crate::load::{BATCH, CONNECTIONS, MOST, load};
use crate::settings::{Outcome, clear, from_env, scratch};
use crate::{MOST_MIB, judged, line, memory, start, stop};

/// What the goals speak of.
const EVENTS: u64 = 10_000_000;
/// Of a full queue's rate and an empty one's.
const LEAST: f64 = 0.90;
/// Bytes that an event may take beside its own, in the log and in the storage alike.
const OVERHEAD: usize = 80;
/// For the empty nodes beside the full one, and for `min_free_bytes`.
const SPARE: u64 = 2 << 30;

/// How many events, and in which parts.
pub struct Plan {
    /// So many are loaded in one go.
    pub before: usize,
    /// So many in each round behind that.
    pub slice: usize,
    /// How many rounds.
    pub rounds: usize,
}

impl Plan {
    /// `BENCH_EVENTS`, in whole requests. The last sixth or so is loaded in rounds.
    pub fn read(rounds: usize) -> Outcome<Self> {
        let events = usize::try_from(from_env("BENCH_EVENTS", EVENTS)?)?;
        let requests = events.div_ceil(BATCH);
        let slice = requests / (2 * rounds).max(20);
        // beside these, each start adds one
        if slice < CONNECTIONS || events + rounds > MOST {
            let least = CONNECTIONS * (2 * rounds).max(20) * BATCH;
            return Err(format!("BENCH_EVENTS={events}: {least} to {MOST} can be measured").into());
        }
        Ok(Self { before: (requests - rounds * slice) * BATCH, slice: slice * BATCH, rounds })
    }

    /// All events that are loaded.
    pub const fn events(&self) -> usize {
        self.before + self.rounds * self.slice
    }

    /// Refuses where the disk is too small, before anything is written.
    pub fn check_room(&self, dir: &Path) -> Outcome<()> {
        let each = 2 * (EVENT_BYTES + OVERHEAD) as u64;
        let need = self.events() as u64 * each + SPARE;
        let free = OsDisk.free_bytes(dir)?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        if free < need {
            let text = format!(
                "{} events need {:.1} GiB under {}, first in the log and then in the storage, and {:.1} GiB are free: make room, or set BENCH_EVENTS to fewer",
                short(self.events() as f64),
                gib(need),
                dir.display(),
                gib(free)
            );
            return Err(text.into());
        }
        println!("\n{} events, {:.1} GiB of disk", short(self.events() as f64), gib(need));
        Ok(())
    }
}

/// Loads all of it and prints its lines.
pub fn run(dir: &Path, plan: &Plan) -> Outcome<()> {
    let node = start(dir, false)?;
    node.wait_until_ready()?;
    line("RSS before the first event", &crate::mib(node.memory()?.now));
    let what = format!("loading, {BATCH} a request, {CONNECTIONS} connections");
    line(&what, &format!("{}/s", short(load(node.addr, &(0..plan.before))?)));
    let (mut full, mut empty) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let from = plan.before + round * plan.slice;
        // in turns, another one first each round
        if round % 2 == 0 {
            empty.push(load_empty(plan.slice)?);
        }
        full.push(load(node.addr, &(from..from + plan.slice))?);
        if round % 2 == 1 {
            empty.push(load_empty(plan.slice)?);
        }
    }
    let health = node.health()?;
    let events = plan.events() as u64;
    if (health.accepted, health.waiting) != (events, events) {
        return Err(format!("{events} events were answered 202, but {health:?}").into());
    }
    let ratios = Spread::of(full.iter().zip(&empty).map(|(full, empty)| full / empty).collect());
    let rate = |value: f64| format!("{}/s", short(value));
    line("loading an empty queue", &Spread::of(empty).show(rate));
    line("loading a full one", &Spread::of(full).show(rate));
    let goal = format!(">={LEAST:.2}");
    judged("P9: full to empty", &ratios.show(ratio), &goal, ratios.median >= LEAST);
    memory("with all of it waiting (P7)", node.memory()?, MOST_MIB);
    stop(node)
}

/// The rate of a node that holds next to nothing, warm as the full one is.
fn load_empty(slice: usize) -> Outcome<f64> {
    let dir = scratch()?;
    let node = start(dir.path(), false)?;
    node.wait_until_ready()?;
    load(node.addr, &(0..slice))?;
    let rate = load(node.addr, &(slice..2 * slice))?;
    stop(node)?;
    clear(dir)?;
    Ok(rate)
}
