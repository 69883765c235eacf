//! Events a second through a node into Redis, as ratios to what `redis-benchmark` adds to the same
//! server.
//!
//! Each measurement has an empty server and a fresh node, which drains into nothing meanwhile; the two
//! take turns, the floor last in every other round.

use crate::child::{Running, node};
use crate::figures::{Spread, ratio, short};
use crate::server::Server;
use crate::settings::{Outcome, Settings, clear, scratch};
use crate::wrk::{self, Load};

/// Load before each measurement, in seconds.
const WARM_UP: u64 = 1;

/// A goal and how it is measured.
pub struct Goal {
    /// Its name.
    pub name: &'static str,
    what: &'static str,
    /// Events a request.
    events: usize,
    connections: &'static [usize],
    /// The least ratio to the floor, where there is a goal.
    least: Option<f64>,
}

/// Single events.
pub const SINGLE: Goal = Goal {
    name: "single",
    what: "single events by way of Redis",
    events: 1,
    connections: &[64, 256],
    least: None,
};

/// Batches.
pub const BATCH: Goal = Goal {
    name: "batch",
    what: "100 events a request by way of Redis",
    events: 100,
    connections: &[64],
    least: Some(0.60),
};

/// Measures it and prints its lines.
pub fn run(goal: &Goal, settings: &Settings) -> Outcome<()> {
    wrk::present()?;
    let load = Load::new(goal.events)?;
    println!("\n{}: {}; the floor is redis-benchmark XADD, pipelined", goal.name, goal.what);
    println!(
        "{:<28} {:>24} {:>24} {:>21} {:>7} {:<8} {:>8} {:>8}",
        "connections", "events/s", "floor", "ratio", "goal", "", "p50 ms", "p99 ms"
    );
    for &connections in goal.connections {
        let (mut ours, mut floors, mut p50, mut p99) = (vec![], vec![], vec![], vec![]);
        for round in 0..settings.rounds {
            let first = round % 2 == 0;
            if first {
                floors.push(floor(settings.seconds)?);
            }
            let run = through_a_node(&load, connections, settings.seconds)?;
            ours.push(run.rate);
            p50.push(run.p50);
            p99.push(run.p99);
            if !first {
                floors.push(floor(settings.seconds)?);
            }
        }
        let ratios = Spread::of(ours.iter().zip(&floors).map(|(a, b)| a / b).collect());
        let verdict = match goal.least {
            Some(least) if ratios.median >= least => "reached",
            Some(_) => "missing",
            None => "",
        };
        let least = goal.least.map_or_else(String::new, |least| format!(">={least:.2}"));
        println!(
            "{connections:<28} {:>24} {:>24} {:>21} {least:>7} {verdict:<8} {:>8.2} {:>8.2}",
            Spread::of(ours).show(short),
            Spread::of(floors).show(short),
            ratios.show(ratio),
            Spread::of(p50).median,
            Spread::of(p99).median,
        );
    }
    Ok(())
}

fn floor(seconds: u64) -> Outcome<f64> {
    let dir = scratch()?;
    let server = Server::start(dir.path())?;
    let rate = server.benchmark(seconds)?;
    drop(server);
    clear(dir)?;
    Ok(rate)
}

fn through_a_node(load: &Load, connections: usize, seconds: u64) -> Outcome<wrk::Run> {
    let dir = scratch()?;
    let server = Server::start(dir.path())?;
    let address = format!("queue_redis_addr={}", server.socket().display());
    let settings =
        ["queue_backend=redis", "queue_redis_network=unix", &address, "storage_backend=noop"];
    let command = node(dir.path(), &settings)?;
    let running = Running::start("replicon", command, dir.path())?;
    running.wait_until_ready()?;
    let warm = load.drive(running.addr, connections, WARM_UP)?;
    let run = load.drive(running.addr, connections, seconds)?;
    let (accepted, answered) =
        (running.health()?.accepted, (warm.requests + run.requests) * load.events as u64);
    if accepted < answered {
        let text = format!("{answered} events were answered 202, {accepted} were accepted");
        return Err(text.into());
    }
    running.end(libc::SIGKILL)?;
    drop(server);
    clear(dir)?;
    Ok(run)
}
