//! A backlog drained into a database, beside the database's own bulk loader with the same rows into
//! the same table: P3 and P4 of the goals; and SQLite likewise.
//!
//! `cargo bench --bench drain [postgres|mysql|sqlite]`; see `benches/README.md`.

// figures are for people
#![allow(clippy::cast_precision_loss)]

use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;

use replicon::fsx::{Disk, OsDisk};

// `dead_code`: of what several benchmarks share, each needs a part
#[path = "drain/backlog.rs"]
mod backlog;
#[allow(dead_code)]
#[path = "shared/child.rs"]
mod child;
#[path = "shared/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "shared/event.rs"]
mod event;
#[path = "shared/figures.rs"]
mod figures;
#[allow(dead_code)]
#[path = "backlog/load.rs"]
mod load;
#[path = "drain/mysql.rs"]
mod mysql;
#[path = "drain/mysql_server.rs"]
mod mysql_server;
#[path = "drain/owner.rs"]
mod owner;
#[path = "drain/postgres.rs"]
mod postgres;
#[path = "drain/rounds.rs"]
mod rounds;
#[path = "drain/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "shared/settings.rs"]
mod settings;
#[path = "drain/shell.rs"]
mod shell;
#[path = "drain/sqlite.rs"]
mod sqlite;

use event::EVENT_BYTES;
use figures::short;
use load::{BATCH, MOST};
use settings::{Outcome, Settings, from_env};

const MYSQL: &str = "mysql";
const POSTGRES: &str = "postgres";
const SQLITE: &str = "sqlite";

/// How many events where nothing else is asked for.
const EVENTS: u64 = 1_000_000;
/// Fewer are drained before anybody has looked twice.
const LEAST: usize = 50_000;
/// Bytes that an event may take: in the queue and its copy, in the files that are loaded, in the table
/// with its indexes, and in the database's own log.
const EACH: u64 = 2_000;
/// For logs that are kept whatever the number of events, and for `min_free_bytes`.
const SPARE: u64 = 6 << 30;

/// Where events of a raw channel are stored.
const TABLE: &str = "events_raw";
/// Its columns, in order.
const COLUMNS: &str = "origin_dc, origin_seq, node_name, channel, received_at, json_data";
/// The index that a node adds to it while it runs.
const INDEX: &str = "events_raw_origin_channel_seq";

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("drain: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<()> {
    let Some(settings) = Settings::read(&[POSTGRES, MYSQL, SQLITE], 1)? else {
        return Ok(());
    };
    let events = events()?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    println!(
        "{cores} cores, shared by the node and the database; {} events of {EVENT_BYTES} bytes; {} rounds, in turns; median (min-max)",
        short(events as f64),
        settings.rounds
    );
    if settings.wants(POSTGRES) {
        postgres::run(events, settings.rounds)?;
    }
    if settings.wants(MYSQL) {
        mysql::run(events, settings.rounds)?;
    }
    if settings.wants(SQLITE) {
        sqlite::run(events, settings.rounds)?;
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

/// Refuses where the disk is too small, before anything is written.
fn check_room(dir: &Path, events: usize) -> Outcome<()> {
    let need = events as u64 * EACH + SPARE;
    let free = OsDisk.free_bytes(dir)?;
    if free >= need {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let text = format!(
        "{} events need {:.1} GiB under {}, and {:.1} GiB are free: make room, or set BENCH_EVENTS to fewer",
        short(events as f64),
        gib(need),
        dir.display(),
        gib(free)
    );
    Err(text.into())
}

/// What a database's shell answers, asked how many rows stand there and how many of them differ.
fn check_rows(answer: &[String], events: usize) -> Outcome<()> {
    let due = format!("{events}|{events}");
    if answer.len() == 1 && answer[0] == due {
        return Ok(());
    }
    Err(format!("rows and different seqs in {TABLE}: {answer:?}, where {due} are due").into())
}

/// The question to that answer.
fn count_rows() -> String {
    format!("SELECT count(*), count(DISTINCT origin_seq) FROM {TABLE};")
}
