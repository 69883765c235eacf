//! P8: from the start of the process to its first 202, with everything waiting.
//!
//! Nothing drains here: each start leaves one event more for the next.

use std::path::Path;
use std::time::Duration;

use replicon::clock::Clock;

use crate::client::Client;
use crate::figures::Spread;
use crate::fill::Plan;
use crate::load::Pattern;
use crate::settings::Outcome;
use crate::{MOST_MIB, judged, line, memory, millis, start, stop};

/// The most that the goal allows.
const MOST: Duration = Duration::from_secs(1);

/// Starts as often as there are rounds, and prints its lines; how many events that added.
pub fn run(dir: &Path, plan: &Plan) -> Outcome<usize> {
    let pattern = Pattern::new();
    let mut took = Vec::new();
    let mut taken = None;
    for round in 0..plan.rounds {
        let event = pattern.of(plan.events() + round);
        let event = String::from_utf8(event)?;
        let clock = Clock::system();
        let node = start(dir, false)?;
        let mut client = Client::connect(node.addr)?;
        let request = client.post(&event);
        client.accepted(&request)?;
        took.push(clock.mono().as_secs_f64() * 1e3);
        let waiting = node.health()?.waiting;
        let due = plan.events() + round + 1;
        if waiting != due as u64 {
            return Err(format!("{due} events should wait after a start, not {waiting}").into());
        }
        taken = Some(node.memory()?);
        stop(node)?;
    }
    // it finds the last segment as loading left it; the others find a short one
    line("the first start, to its first 202", &millis(took.first().copied().unwrap_or(f64::NAN)));
    let all = Spread::of(took);
    let goal = format!("<={} ms", MOST.as_millis());
    let reached = all.median <= MOST.as_secs_f64() * 1e3;
    judged("P8: start to first 202", &all.show(millis), &goal, reached);
    if let Some(taken) = taken {
        memory("after a start (P7)", taken, MOST_MIB);
    }
    Ok(plan.rounds)
}
