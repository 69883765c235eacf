//! `replicon log`: what is in the log, whether it is whole, its events, and the end of the red state.
//!
//! Prints. What there is to see is found by the queue, what is changed is changed by who holds it.

use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::directory::{Directory, Ended, Refusal, end};
use super::print::{Out, table, with_payload};
use super::progress::Progress;
use super::{FAILED, Global};
use crate::clock::rfc3339;
use crate::control::Request;
use crate::queue::file::look::{LogLook, SegmentLook, Standing, Wanted};

/// `replicon log …`.
#[derive(Subcommand)]
pub enum LogCommand {
    /// What is in the log: its segments, what waits, dead letters, known damage. Reads little.
    Stat(Look),
    /// Read all of it, and say what is damaged. Exit code 1 where something is lost.
    Check(Look),
    /// Say what is lost and what can be done; with --acknowledge, end the red state.
    Repair(Repair),
    /// Print the events that the log holds, one JSON line each.
    Dump(Dump),
}

/// Options of a look.
#[derive(Args)]
pub struct Look {
    /// One JSON document instead of tables.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    global: Global,
}

/// Options of a repair.
#[derive(Args)]
pub struct Repair {
    /// The loss is known: the node need not show it any more.
    #[arg(long)]
    acknowledge: bool,
    #[command(flatten)]
    global: Global,
}

/// Options of a dump.
#[derive(Args)]
pub struct Dump {
    /// Only events of this channel.
    #[arg(long)]
    channel: Option<String>,
    /// Only from this seq on.
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// Only up to this seq.
    #[arg(long, value_name = "SEQ")]
    to: Option<u64>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    global: Global,
}

/// Runs it.
pub fn run(global: &Global, command: LogCommand) -> ExitCode {
    let global = global.clone();
    end(match command {
        LogCommand::Stat(Look { json, global: behind }) => stat(&global.and(behind), json),
        LogCommand::Check(Look { json, global: behind }) => check(&global.and(behind), json),
        LogCommand::Repair(Repair { acknowledge, global: behind }) => {
            repair(&global.and(behind), acknowledge)
        }
        LogCommand::Dump(Dump { channel, from, to, limit, global: behind }) => {
            dump(&global.and(behind), &Wanted { channel, from, to, limit })
        }
    })
}

/// The directory of a node that has a log of its own.
fn with_a_log(global: &Global) -> Result<Directory, Refusal> {
    let directory = Directory::of(global)?;
    if directory.is_on_redis() {
        return Err(Refusal::wrong(
            "queue_backend = redis: this node's events wait in Redis, not in a log of its own; /healthz says how many, `replicon log repair` what Redis was found to have lost",
        ));
    }
    Ok(directory)
}

fn stat(global: &Global, json: bool) -> Ended {
    let directory = with_a_log(global)?;
    let look = directory.files().stat()?;
    print(&directory, look.as_ref(), json, known)?;
    Ok(ExitCode::SUCCESS)
}

fn check(global: &Global, json: bool) -> Ended {
    let directory = with_a_log(global)?;
    let look = look_through(&directory)?;
    print(&directory, look.as_ref(), json, verdict)?;
    let whole = look.as_ref().is_none_or(LogLook::is_whole);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn print(
    directory: &Directory,
    look: Option<&LogLook>,
    json: bool,
    last_line: fn(&LogLook) -> String,
) -> Result<(), Refusal> {
    let mut out = Out::stdout();
    if json {
        let json = serde_json::to_string(&look).map_err(|e| Refusal::failed(e.to_string()))?;
        out.line(json);
    } else if let Some(look) = look {
        show(&mut out, look);
        out.line(last_line(look));
    } else {
        out.line(directory.no_log_yet());
    }
    out.end()
}

fn known(look: &LogLook) -> String {
    let text = match look.damage.is_empty() {
        true => "no damage is known; `replicon log check` reads everything",
        false => "`replicon log check` reads everything, `replicon log repair` says what to do",
    };
    text.to_owned()
}

fn look_through(directory: &Directory) -> Result<Option<LogLook>, Refusal> {
    let mut progress = Progress::of("reading the log");
    Ok(directory.files().check(&mut |done, of| progress.show(done, of))?)
}

fn verdict(look: &LogLook) -> String {
    if look.is_whole() {
        return "every frame was read: nothing is lost".to_owned();
    }
    let lost: u64 = look.lost().map(|d| d.damage.events).sum();
    format!("every frame was read: {lost} are lost; `replicon log repair` says what to do")
}

fn repair(global: &Global, acknowledge: bool) -> Ended {
    let directory = Directory::of(global)?;
    let mut out = Out::stdout();
    if directory.is_bare()? {
        out.line(directory.no_log_yet());
    } else if acknowledge {
        let (_, text) = directory.change(Request::AcknowledgeDamage, &mut |_| {})?;
        out.line(text);
    } else if directory.is_on_redis() {
        return losses(&directory);
    } else if let Some(look) = look_through(&directory)?.filter(|look| !look.is_whole()) {
        explain(&mut out, &look);
        out.end()?;
        return Ok(ExitCode::from(FAILED));
    } else {
        out.line("every frame was read: nothing is lost, and there is nothing to repair");
    }
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

fn losses(directory: &Directory) -> Ended {
    let (mut out, losses) = (Out::stdout(), directory.losses()?);
    for loss in &losses {
        out.line(loss);
    }
    if losses.is_empty() {
        out.line("Redis is not known to have lost anything, and there is nothing to repair");
    } else {
        out.line("");
        out.line("`replicon log repair --acknowledge` ends the red state. Look after the Redis.");
    }
    out.end()?;
    Ok(if losses.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

const NO_WAY_BACK: &str = "\
These were answered 202 and are lost on this node: nothing here can mend them. They
come back only from a client that still has them, or from a peer that pulled them before. Everything
else is delivered, and the node goes on by itself. Look after the disk.";

fn explain(out: &mut Out, look: &LogLook) {
    for damage in look.lost() {
        out.line(damage.to_string());
    }
    unreadable(out, look);
    out.line("");
    out.line(NO_WAY_BACK);
    if look.lost().any(|d| d.standing == Standing::Found) {
        out.line("What was found just now, the node reports when it reads there.");
    }
    if look.lost().any(|d| d.standing == Standing::Reported) {
        out.line("`replicon log repair --acknowledge` ends the red state.");
    }
}

fn dump(global: &Global, wanted: &Wanted) -> Ended {
    #[derive(Serialize)]
    struct Head<'a> {
        seq: u64,
        channel: &'a str,
        received_at: String,
        state: &'static str,
    }
    let directory = with_a_log(global)?;
    let mut out = Out::stdout();
    directory.files().events(wanted, &mut |event, stands| {
        let head = Head {
            seq: event.seq.0,
            channel: event.channel.as_str(),
            received_at: rfc3339(event.received_at),
            state: if stands.waits { "queued" } else { "released" },
        };
        let read = out.line(with_payload(&head, &event.payload));
        if read { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

fn show(out: &mut Out, look: &LogLook) {
    let or_none =
        |seq: Option<u64>| seq.map_or_else(|| "nothing yet".to_owned(), |s| s.to_string());
    out.line(format!("log of {}: {}", look.node_name, look.path.display()));
    out.line(format!("released up to seq: {}", or_none(look.released)));
    out.line(format!("known synced up to seq: {}", or_none(look.witness)));
    out.line("");
    let mut rows = vec![row(["SEGMENT", "BYTES", "EVENTS", "FROM", "TO"])];
    rows.extend(look.segments.iter().map(segment_row));
    out.line(table(&rows));
    out.line("");
    out.line(table(&waiting_rows(look)));
    out.line("");
    let dead = &look.dead_letters;
    out.line(format!(
        "dead letters: {} dead, {} re-driving, {} re-driven, {} discarded; {} bytes",
        dead.dead, dead.redriving, dead.redriven, dead.discarded, dead.bytes
    ));
    unreadable(out, look);
    for (standing, title) in [
        (Standing::Reported, "damage, red until `replicon log repair --acknowledge`:"),
        (Standing::Found, "damage found now:"),
        (Standing::Acknowledged, "damage that was acknowledged:"),
        (Standing::Resolved, "no longer readable, but stored or reported before:"),
    ] {
        let mut these = look.damage.iter().filter(|d| d.standing == standing).peekable();
        if these.peek().is_some() {
            out.line(title);
        }
        for damage in these {
            out.line(format!("  {damage}"));
        }
    }
}

fn segment_row(segment: &SegmentLook) -> Vec<String> {
    let number = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
    let name = format!("{:020}", segment.begun);
    let events = match segment.unreadable {
        Some(_) => "unreadable".to_owned(),
        None => number(segment.events),
    };
    vec![name, segment.bytes.to_string(), events, number(segment.first), number(segment.last)]
}

fn waiting_rows(look: &LogLook) -> Vec<Vec<String>> {
    let mut rows = vec![row(["CHANNEL", "QUEUED", "BYTES", "WHERE"])];
    let main = look.queued.iter().map(|(channel, load)| (channel, load, "log"));
    let parked = look.parked.iter().map(|(channel, log)| (channel, &log.waiting, "parked"));
    for (channel, load, place) in main.chain(parked) {
        let channel = if channel.is_empty() { "(hidden by damage)" } else { channel.as_str() };
        rows.push(row([channel, &load.events.to_string(), &load.bytes.to_string(), place]));
    }
    if rows.len() == 1 {
        rows.push(row(["(none)", "0", "0", ""]));
    }
    rows
}

/// The segments that say nothing at all.
fn unreadable(out: &mut Out, look: &LogLook) {
    let parked = look.parked.values().flat_map(|log| &log.segments);
    let all = look.segments.iter().chain(parked).chain(&look.dead_letters.segments);
    for segment in all {
        if let Some(why) = &segment.unreadable {
            out.line(format!("{} cannot be read: {why}", segment.path.display()));
        }
    }
}
