//! Ten million events that wait: what they cost in memory, at a start and per event, and that all of
//! them drain, each once and in order; and what a node takes that keeps up. P7, P8 and P9 of the goals.
//!
//! `cargo bench --bench backlog [backlog|steady]`; see `benches/README.md`.

// figures are for people
#![allow(clippy::cast_precision_loss)]

use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;

#[path = "shared/child.rs"]
mod child;
#[path = "shared/client.rs"]
mod client;
#[path = "backlog/drain.rs"]
mod drain;
#[path = "shared/event.rs"]
mod event;
#[path = "shared/figures.rs"]
mod figures;
#[path = "backlog/fill.rs"]
mod fill;
#[path = "backlog/load.rs"]
mod load;
#[path = "shared/settings.rs"]
mod settings;
#[path = "backlog/starts.rs"]
mod starts;
#[path = "backlog/steady.rs"]
mod steady;

use child::{Memory, Running};
use event::EVENT_BYTES;
use fill::Plan;
use settings::{Outcome, Settings, clear, scratch};

const BACKLOG: &str = "backlog";
const STEADY: &str = "steady";

/// P7: the most memory, in MiB, that a node with a backlog takes.
const MOST_MIB: f64 = 128.0;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("backlog: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<()> {
    let Some(settings) = Settings::read(&[BACKLOG, STEADY], 10)? else {
        return Ok(());
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    println!(
        "{cores} cores, shared with the load generator; events of {EVENT_BYTES} bytes; {} rounds; median (min-max)",
        settings.rounds
    );
    if settings.wants(BACKLOG) {
        backlog(&settings)?;
    }
    if settings.wants(STEADY) {
        steady::run(&settings)?;
    }
    Ok(())
}

fn backlog(settings: &Settings) -> Outcome<()> {
    let plan = Plan::read(settings.rounds)?;
    let dir = scratch()?;
    plan.check_room(dir.path())?;
    fill::run(dir.path(), &plan)?;
    let started = starts::run(dir.path(), &plan)?;
    drain::run(dir.path(), &plan, started)?;
    clear(dir)
}

/// A node on that directory, with file storage.
fn start(dir: &Path, writer: bool) -> Outcome<Running> {
    let writer = format!("writer_enabled={writer}");
    let command = child::node(dir, &["storage_backend=file", &writer])?;
    Running::start("replicon", command, dir)
}

/// SIGTERM, as an operator stops it; what does not end in good order is no measurement.
fn stop(node: Running) -> Outcome<()> {
    let status = node.end(libc::SIGTERM)?;
    if status.success() { Ok(()) } else { Err(format!("the node ended with {status}").into()) }
}

/// Prints a figure.
fn line(what: &str, figure: &str) {
    println!("{what:<44} {figure:>26}");
}

/// Prints a figure beside its goal.
fn judged(what: &str, figure: &str, goal: &str, reached: bool) {
    let verdict = if reached { "reached" } else { "missing" };
    println!("{what:<44} {figure:>26}  {goal:>12} {verdict}");
}

/// Prints what a node takes of the machine's memory; its peak is judged.
fn memory(what: &str, memory: Memory, most: f64) {
    line(&format!("RSS {what}"), &mib(memory.now));
    let reached = memory.peak <= most;
    judged(&format!("peak RSS {what}"), &mib(memory.peak), &format!("<={most:.0} MiB"), reached);
}

fn mib(value: f64) -> String {
    format!("{value:.1} MiB")
}

fn millis(value: f64) -> String {
    format!("{value:.0} ms")
}
