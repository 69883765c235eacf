//! P1 and P2: events a second under load, as ratios to a floor.
//!
//! Every run has a fresh server in a fresh directory, so that no backlog of one run is drained during
//! the next; the servers of a goal take turns, beginning with another one each round.

use std::error::Error;

use crate::child::Memory;
use crate::figures::{Spread, ratio, short};
use crate::settings::{Outcome, Settings};
use crate::subject::{Server, Subject};
use crate::wrk::{self, Load, Run};

/// Load before each measurement, in seconds.
const WARM_UP: u64 = 1;

/// A goal and how it is measured.
pub struct Goal {
    /// Its name in the goals.
    pub name: &'static str,
    what: &'static str,
    /// Events a request.
    events: usize,
    connections: &'static [usize],
    /// With how many connections the goal is compared.
    judged_at: usize,
    /// The least ratio to the floor.
    least: f64,
    /// The floor first, then what is compared with it.
    subjects: &'static [Subject],
}

/// Single events.
pub const P1: Goal = Goal {
    name: "P1",
    what: "single events, synced before 202",
    events: 1,
    connections: &[1, 64, 256],
    judged_at: 256,
    least: 0.70,
    subjects: &[Subject::Bare, Subject::Noop, Subject::File, Subject::Commit],
};

/// Batches.
pub const P2: Goal = Goal {
    name: "P2",
    what: "100 events a request, synced before 202",
    events: 100,
    connections: &[64],
    judged_at: 64,
    least: 0.60,
    subjects: &[Subject::Commit, Subject::Noop, Subject::File],
};

struct Sample {
    run: Run,
    memory: Memory,
    waiting: u64,
}

/// Measures it and prints its lines.
pub fn run(goal: &Goal, settings: &Settings) -> Outcome<()> {
    wrk::present()?;
    let load = Load::new(goal.events)?;
    println!(
        "\n{}: {}; the floor of each line is {}; goal at {} connections",
        goal.name,
        goal.what,
        goal.subjects[0].name(),
        goal.judged_at
    );
    println!(
        "{:<28} {:>24} {:>9} {:>21} {:>7} {:<8} {:>8} {:>8} {:>8} {:>8} {:>9}",
        "connections, server",
        "events/s",
        "floor",
        "ratio",
        "goal",
        "",
        "p50 ms",
        "p99 ms",
        "RSS MiB",
        "peak MiB",
        "waiting"
    );
    for &connections in goal.connections {
        let mut samples: Vec<Vec<Sample>> = goal.subjects.iter().map(|_| Vec::new()).collect();
        for round in 0..settings.rounds {
            for turn in 0..goal.subjects.len() {
                let who = (round + turn) % goal.subjects.len();
                let sample = measure(goal.subjects[who], &load, connections, settings.seconds);
                samples[who].push(sample?);
            }
        }
        for (subject, ours) in goal.subjects.iter().zip(&samples) {
            print(goal, connections, *subject, ours, &samples[0]);
        }
    }
    Ok(())
}

fn measure(subject: Subject, load: &Load, connections: usize, seconds: u64) -> Outcome<Sample> {
    let say = |e: Box<dyn Error>| format!("{}, {connections} connections: {e}", subject.name());
    let server = Server::start(subject)?;
    let warm = load.drive(server.running.addr, connections, WARM_UP).map_err(say)?;
    let run = load.drive(server.running.addr, connections, seconds).map_err(say)?;
    let memory = server.running.memory()?;
    let mut waiting = 0;
    if subject.is_replicon() {
        let health = server.running.health()?;
        let answered = (warm.requests + run.requests) * load.events as u64;
        if health.accepted < answered {
            let accepted = health.accepted;
            let text = format!("{answered} events were answered 202, {accepted} were accepted");
            return Err(text.into());
        }
        waiting = health.waiting;
    }
    server.stop()?;
    Ok(Sample { run, memory, waiting })
}

fn spread(samples: &[Sample], pick: fn(&Sample) -> f64) -> Spread {
    Spread::of(samples.iter().map(pick).collect())
}

fn print(goal: &Goal, connections: usize, subject: Subject, ours: &[Sample], floor: &[Sample]) {
    let of_floor = ours.iter().zip(floor).map(|(a, b)| a.run.rate / b.run.rate);
    let of_floor = Spread::of(of_floor.collect());
    let case = format!("{connections:>3}  {}", subject.name());
    let judged = subject.is_replicon() && connections == goal.judged_at;
    let least = if judged { format!(">={:.2}", goal.least) } else { String::new() };
    let verdict = match judged {
        true if of_floor.median >= goal.least => "reached",
        true => "missing",
        false => "",
    };
    println!(
        "{case:<28} {:>24} {:>9} {:>21} {least:>7} {verdict:<8} {:>8.2} {:>8.2} {:>8.0} {:>8.0} {:>9}",
        spread(ours, |s| s.run.rate).show(short),
        short(spread(floor, |s| s.run.rate).median),
        of_floor.show(ratio),
        spread(ours, |s| s.run.p50).median,
        spread(ours, |s| s.run.p99).median,
        spread(ours, |s| s.memory.now).median,
        spread(ours, |s| s.memory.peak).max,
        short(spread(ours, |s| s.waiting as f64).median),
    );
}
