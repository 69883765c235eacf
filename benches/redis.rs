//! The release binary with its queue on Redis, beside `redis-benchmark` with `XADD` of the same events
//! into the same server: rates, as ratios.
//!
//! `cargo bench --bench queue_redis [single|batch]`; see `benches/README.md`.

// figures are for people
#![allow(clippy::cast_precision_loss)]

use std::num::NonZero;
use std::process::ExitCode;

// `dead_code`: of what several benchmarks share, each needs a part
#[allow(dead_code)]
#[path = "shared/child.rs"]
mod child;
#[allow(dead_code)]
#[path = "shared/client.rs"]
mod client;
#[path = "shared/event.rs"]
mod event;
#[path = "shared/figures.rs"]
mod figures;
#[path = "redis/rates.rs"]
mod rates;
#[path = "redis/server.rs"]
mod server;
#[path = "shared/settings.rs"]
mod settings;
#[path = "http/wrk.rs"]
mod wrk;

use event::EVENT_BYTES;
use settings::{Outcome, Settings};

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("redis: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<()> {
    let goals = [&rates::SINGLE, &rates::BATCH];
    let names = goals.map(|goal| goal.name);
    let Some(settings) = Settings::read(&names, 4)? else {
        return Ok(());
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    println!(
        "{cores} cores, shared with Redis and the load generator; events of {EVENT_BYTES} bytes; {} rounds of {} s each, in turns; median (min-max)",
        settings.rounds, settings.seconds
    );
    for goal in goals {
        if settings.wants(goal.name) {
            rates::run(goal, &settings)?;
        }
    }
    Ok(())
}
