//! The release binary under load, beside floors that are measured in the same run: P1, P2 and P10 of
//! the goals, as ratios.
//!
//! `cargo bench --bench http [P1|P2|P10]`; see `benches/README.md`. The floors run in processes of
//! their own, as replicon does: this program again, started with `--floor-…`.

// a benchmark is no part of the node: it may use the system's own calls
#![allow(clippy::disallowed_methods)]
// figures are for people
#![allow(clippy::cast_precision_loss)]

use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;

#[path = "shared/child.rs"]
mod child;
#[path = "shared/client.rs"]
mod client;
#[path = "shared/event.rs"]
mod event;
#[path = "shared/figures.rs"]
mod figures;
#[path = "http/floor.rs"]
mod floor;
#[path = "http/latency.rs"]
mod latency;
#[path = "http/rates.rs"]
mod rates;
#[path = "shared/settings.rs"]
mod settings;
#[path = "http/subject.rs"]
mod subject;
#[path = "http/wrk.rs"]
mod wrk;

use event::EVENT_BYTES;
use settings::{Outcome, Settings};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        [floor::BARE] => floor::bare(),
        [floor::COMMIT, file] => floor::commit(Path::new(file)),
        _ => measure(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("http: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<()> {
    let goals = [&rates::P1, &rates::P2];
    let Some(settings) = Settings::read(&[rates::P1.name, rates::P2.name, latency::NAME], 4)?
    else {
        return Ok(());
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    println!(
        "{cores} cores, shared with the load generator; events of {EVENT_BYTES} bytes; {} rounds of {} s each, in turns; median (min-max)",
        settings.rounds, settings.seconds
    );
    for goal in goals {
        if settings.wants(goal.name) {
            rates::run(goal, &settings)?;
        }
    }
    if settings.wants(latency::NAME) {
        latency::run(&settings)?;
    }
    Ok(())
}
