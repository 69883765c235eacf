//! `replicon dlq`: the dead letters, and what becomes of them.
//!
//! Prints. The letters are read by the queue, and changed by who holds it.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::directory::{Directory, Ended, Refusal, end};
use super::print::{Out, with_payload};
use super::progress::Progress;
use super::{FAILED, Global};
use crate::clock::rfc3339;
use crate::control::{Reply, Request};
use crate::event::ModeTag;
use crate::queue::file::dead::{DeadLetter, DeadState, Filter};

/// `replicon dlq …`.
#[derive(Subcommand)]
pub enum DlqCommand {
    /// All dead letters, without their payloads.
    List(List),
    /// One of them, with its payload.
    Show(Show),
    /// Put dead letters back into the queue, as new events.
    Retry(Retry),
    /// Give dead letters up.
    Discard(Discard),
    /// Print whole dead letters, one JSON line each.
    Export(Export),
}

/// A choice by what letters have in common.
#[derive(Args)]
pub struct Narrow {
    /// Only of this channel.
    #[arg(long)]
    channel: Option<String>,
    /// Only those with this reason, by its code.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
}

impl Narrow {
    fn with(self, seqs: Vec<u64>) -> Filter {
        Filter { seqs, channel: self.channel, reason: self.reason }
    }
}

/// A choice of letters to change.
#[derive(Args)]
pub struct Choice {
    /// These.
    #[arg(value_name = "SEQ")]
    seqs: Vec<u64>,
    /// All that are dead.
    #[arg(long, conflicts_with_all = ["seqs", "channel", "reason"])]
    all: bool,
    #[command(flatten)]
    narrow: Narrow,
}

impl Choice {
    fn filter(mut self) -> Result<Filter, Refusal> {
        self.seqs.sort_unstable();
        self.seqs.dedup();
        let filter = self.narrow.with(self.seqs);
        if filter == Filter::default() && !self.all {
            return Err(Refusal::wrong(
                "which ones? name seqs (`replicon dlq list` shows them), --channel, --reason, or --all",
            ));
        }
        Ok(filter)
    }
}

/// Options of a list.
#[derive(Args)]
pub struct List {
    #[command(flatten)]
    narrow: Narrow,
    /// One JSON document instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    global: Global,
}

/// Which letter to show.
#[derive(Args)]
pub struct Show {
    /// Its seq.
    #[arg(value_name = "SEQ")]
    seq: u64,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    global: Global,
}

/// Which letters to put back.
#[derive(Args)]
pub struct Retry {
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    global: Global,
}

/// Which letters to give up.
#[derive(Args)]
pub struct Discard {
    #[command(flatten)]
    choice: Choice,
    /// Needed where the letters are not named one by one.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    global: Global,
}

/// Which letters to export.
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    narrow: Narrow,
    #[command(flatten)]
    global: Global,
}

/// Runs it.
pub fn run(global: &Global, command: DlqCommand) -> ExitCode {
    let global = global.clone();
    end(match command {
        DlqCommand::List(List { narrow, json, global: behind }) => {
            list(&global.and(behind), &narrow.with(Vec::new()), json)
        }
        DlqCommand::Show(Show { seq, json, global: behind }) => {
            show(&global.and(behind), seq, json)
        }
        DlqCommand::Retry(Retry { choice, global: behind }) => {
            choice.filter().and_then(|filter| retry(&global.and(behind), filter))
        }
        DlqCommand::Discard(Discard { choice, yes, global: behind }) => {
            choice.filter().and_then(|filter| discard(&global.and(behind), filter, yes))
        }
        DlqCommand::Export(Export { narrow, global: behind }) => {
            export(&global.and(behind), &narrow.with(Vec::new()))
        }
    })
}

/// A letter as JSON shows it; its payload follows.
#[derive(Serialize)]
struct Shown<'a> {
    seq: u64,
    channel: &'a str,
    mode: &'static str,
    received_at: String,
    reason: Reason<'a>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    redriven_as: Option<u64>,
    bytes: usize,
}

#[derive(Serialize)]
struct Reason<'a> {
    code: &'a str,
    text: &'a str,
}

impl<'a> Shown<'a> {
    fn of(letter: &'a DeadLetter) -> Self {
        let DeadLetter { event, reason, state } = letter;
        let (state, redriven_as) = match state {
            DeadState::Dead => ("dead", None),
            DeadState::Redriving(new) => ("redriving", Some(new.0)),
            DeadState::Redriven(new) => ("redriven", Some(new.0)),
            DeadState::Discarded => ("discarded", None),
        };
        Self {
            seq: event.seq.0,
            channel: event.channel.as_str(),
            mode: match event.mode {
                ModeTag::Raw => "raw",
                ModeTag::Structured => "structured",
            },
            received_at: rfc3339(event.received_at),
            reason: Reason { code: &reason.code, text: &reason.text },
            state,
            redriven_as,
            bytes: event.payload.len(),
        }
    }

    /// For people.
    fn state(&self) -> String {
        match (self.state, self.redriven_as) {
            ("redriving", Some(new)) => format!("re-driving as {new}"),
            (_, Some(new)) => format!("re-driven as {new}"),
            (state, None) => state.to_owned(),
        }
    }
}

/// Reads the letters that the filter takes, until `visit` has seen enough; how many were visited.
fn each_letter(
    directory: &Directory,
    filter: &Filter,
    visit: &mut dyn FnMut(&DeadLetter) -> bool,
) -> Result<u64, Refusal> {
    let mut progress = Progress::of("reading dead letters");
    let (mut seen, mut enough) = (0, false);
    let mut told = |done, of| progress.show(done, of);
    let read = directory.read_dead(&mut told, &mut |letter| {
        if !filter.takes(&letter) {
            return Ok(());
        }
        seen += 1;
        enough = !visit(&letter);
        // the only way to read no further
        if enough { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    });
    match read {
        Err(e) if !enough => Err(directory.unreadable(&e)),
        _ => Ok(seen),
    }
}

/// A line of the table; letters are many, so that it is not known how wide the widest is.
fn table_line(cells: [&str; 6]) -> String {
    let [seq, channel, received, reason, state, bytes] = cells;
    format!("{seq:>16}  {channel:<20}  {received:<27}  {reason:<18}  {state:<29}  {bytes:>8}")
}

fn list(global: &Global, filter: &Filter, json: bool) -> Ended {
    let directory = Directory::of(global)?;
    let mut out = Out::stdout();
    let head = match json {
        true => "{\"dead_letters\":[".to_owned(),
        false => table_line(["SEQ", "CHANNEL", "RECEIVED", "REASON", "STATE", "BYTES"]),
    };
    let mut comma = "";
    let n = each_letter(&directory, filter, &mut |letter| {
        if comma.is_empty() {
            out.line(&head);
        }
        let shown = Shown::of(letter);
        let line = match json {
            true => format!("{comma}{}", serde_json::to_string(&shown).unwrap_or_default()),
            false => table_line([
                &shown.seq.to_string(),
                shown.channel,
                &shown.received_at,
                shown.reason.code,
                &shown.state(),
                &shown.bytes.to_string(),
            ]),
        };
        comma = ",";
        out.line(line)
    })?;
    match (json, n) {
        (true, 0) => out.line(format!("{head}]}}")),
        (true, _) => out.line("]}"),
        (false, 0) => out.line("no dead letters"),
        (false, _) => true,
    };
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

fn show(global: &Global, seq: u64, json: bool) -> Ended {
    let directory = Directory::of(global)?;
    let mut out = Out::stdout();
    let filter = Filter { seqs: vec![seq], ..Filter::default() };
    let n = each_letter(&directory, &filter, &mut |letter| {
        let (shown, payload) = (Shown::of(letter), &letter.event.payload);
        if json {
            out.line(with_payload(&shown, payload));
            return false;
        }
        out.line(format!("seq       {seq}"));
        out.line(format!("channel   {} ({})", shown.channel, shown.mode));
        out.line(format!("received  {}", shown.received_at));
        out.line(format!("reason    {}: {}", shown.reason.code, shown.reason.text));
        out.line(format!("state     {}", shown.state()));
        out.line([&b"payload   "[..], &payload[..]].concat());
        false
    })?;
    out.end()?;
    if n == 0 {
        return Err(Refusal::failed(format!(
            "seq {seq} has no dead letter here; `replicon dlq list` shows those that there are"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

fn export(global: &Global, filter: &Filter) -> Ended {
    let directory = Directory::of(global)?;
    let mut out = Out::stdout();
    each_letter(&directory, filter, &mut |letter| {
        out.line(with_payload(&Shown::of(letter), &letter.event.payload))
    })?;
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

fn retry(global: &Global, filter: Filter) -> Ended {
    change(&Directory::of(global)?, filter, |filter| Request::RetryDead { filter })
}

fn discard(global: &Global, filter: Filter, yes: bool) -> Ended {
    let directory = Directory::of(global)?;
    if !yes && filter.seqs.is_empty() {
        let mut dead = 0u64;
        each_letter(&directory, &filter, &mut |letter| {
            dead += u64::from(letter.state == DeadState::Dead);
            true
        })?;
        return Err(Refusal::wrong(format!(
            "{dead} dead letters would be given up for good; look at them first (`replicon dlq list`, `replicon dlq export`), then add --yes"
        )));
    }
    change(&directory, filter, |filter| Request::DiscardDead { filter })
}

/// Asks whoever holds the directory, and prints what it tells.
fn change(directory: &Directory, filter: Filter, request: fn(Filter) -> Request) -> Ended {
    let mut out = Out::stdout();
    if directory.is_bare()? {
        out.line(directory.no_log_yet());
        out.end()?;
        return Ok(ExitCode::SUCCESS);
    }
    let named = filter.seqs.len() as u64;
    let mut progress = Progress::of("putting back");
    let (count, text) = directory.change(request(filter), &mut |reply| match reply {
        Reply::Progress { done, of } => progress.show(done, of),
        // who no longer reads them still wants them put back
        Reply::Redriven { old, new } => progress.aside(|| {
            let _ = writeln!(io::stdout(), "{old} was put back as {new}");
        }),
        _ => {}
    })?;
    drop(progress);
    out.line(text);
    out.end()?;
    if count < named {
        eprintln!(
            "replicon: {} of the seqs named have no letter that is dead; `replicon dlq list` shows what became of them",
            named - count
        );
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}
