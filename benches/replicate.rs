//! A peer that catches up, beside PostgreSQL's own logical replication of the same rows: P5 of the
//! goals; over a link that is 100 ms long, and the lag of an idle pair: P6; and what clients notice of a
//! partition: R7.
//!
//! `cargo bench --bench replicate [catchup|far|lag|partition]`; see `benches/README.md`.

// figures are for people
#![allow(clippy::cast_precision_loss)]

use std::num::NonZero;
use std::process::ExitCode;

// `dead_code`: of what several benchmarks share, each needs a part
#[path = "replicate/catchup.rs"]
mod catchup;
#[allow(dead_code)]
#[path = "shared/child.rs"]
mod child;
#[allow(dead_code)]
#[path = "shared/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "shared/event.rs"]
mod event;
#[path = "shared/figures.rs"]
mod figures;
#[path = "replicate/lag.rs"]
mod lag;
#[allow(dead_code)]
#[path = "backlog/load.rs"]
mod load;
#[allow(dead_code)]
#[path = "drain/owner.rs"]
mod owner;
#[path = "replicate/pair.rs"]
mod pair;
#[path = "replicate/partition.rs"]
mod partition;
#[allow(dead_code, clippy::disallowed_methods, clippy::unwrap_used)]
#[path = "../tests/it/support/proxy.rs"]
mod proxy;
#[allow(dead_code)]
#[path = "drain/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "shared/settings.rs"]
mod settings;
#[allow(dead_code)]
#[path = "drain/shell.rs"]
mod shell;

use event::EVENT_BYTES;
use figures::short;
use load::{BATCH, MOST};
use settings::{Outcome, Settings, from_env};

const CATCHUP: &str = "catchup";
const FAR: &str = "far";
const LAG: &str = "lag";
const PARTITION: &str = "partition";

/// How many events where nothing else is asked for.
const EVENTS: u64 = 1_000_000;
/// Fewer are pulled before anybody has looked twice.
const LEAST: usize = 50_000;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("replicate: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<()> {
    let Some(settings) = Settings::read(&[CATCHUP, FAR, LAG, PARTITION], 20)? else {
        return Ok(());
    };
    let events = events()?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    println!(
        "{cores} cores, shared by both nodes and the database; {} events of {EVENT_BYTES} bytes; {} rounds, in turns; median (min-max)",
        short(events as f64),
        settings.rounds
    );
    if settings.wants(CATCHUP) || settings.wants(FAR) {
        catchup::run(events, settings.rounds, settings.wants(CATCHUP), settings.wants(FAR))?;
    }
    if settings.wants(LAG) {
        lag::run(settings.seconds)?;
    }
    if settings.wants(PARTITION) {
        partition::run(&settings)?;
    }
    Ok(())
}

/// `BENCH_EVENTS`, in whole requests.
fn events() -> Outcome<usize> {
    let events = usize::try_from(from_env("BENCH_EVENTS", EVENTS)?)?;
    if !(LEAST..=MOST).contains(&events) {
        return Err(format!("BENCH_EVENTS={events}: {LEAST} to {MOST} can be measured").into());
    }
    Ok(events.next_multiple_of(BATCH))
}
