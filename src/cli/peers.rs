//! `replicon peers`: how the peers of the running node stand, and its quarantine tried again.
//!
//! Prints. Only the running node knows how peers stand, so it is asked by its socket; with none
//! running there is nothing to show.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::Value;

use super::directory::{Ended, Refusal, end};
use super::print::{Out, table};
use super::progress::Progress;
use super::{Global, sources};
use crate::control::{self, CallError, Reply, Request};

const TITLES: [&str; 10] = [
    "PEER",
    "STATE",
    "NODE-ID",
    "CHANNEL",
    "ORIGIN",
    "STANDS",
    "CURSOR",
    "LAG-EVENTS",
    "LAG-SECONDS",
    "REASON",
];
/// What is not known.
const NONE: &str = "-";

/// `replicon peers …`.
#[derive(Args)]
pub struct Peers {
    #[command(subcommand)]
    command: Option<PeersCommand>,
    /// One JSON line a peer instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    global: Global,
}

#[derive(Subcommand)]
enum PeersCommand {
    /// Try the rows in quarantine again, then let channels go on that were stopped.
    Retry(Retry),
}

/// Which rows to try again.
#[derive(Args)]
struct Retry {
    /// Only of this channel.
    #[arg(long)]
    channel: Option<String>,
    /// Only of this origin, by its node_name.
    #[arg(long, value_name = "NODE")]
    origin: Option<String>,
    #[command(flatten)]
    global: Global,
}

/// Runs it.
pub fn run(global: &Global, peers: Peers) -> ExitCode {
    let global = global.clone().and(peers.global);
    end(match peers.command {
        None => show(&global, peers.json),
        Some(PeersCommand::Retry(Retry { channel, origin, global: behind })) => work(
            &global.and(behind),
            &Request::RetryQuarantined { channel, origin },
            "trying again",
        ),
    })
}

/// A peer, as the node tells of it.
#[derive(Deserialize)]
struct Peer {
    peer: String,
    node_id: Option<String>,
    state: String,
    reason: Option<String>,
    channels: Vec<Channel>,
}

/// A channel of an origin at a peer.
#[derive(Deserialize)]
struct Channel {
    origin: String,
    channel: String,
    state: String,
    reason: Option<String>,
    cursor: u64,
    lag_events: Option<u64>,
    lag_seconds: Option<f64>,
    reading_again: bool,
}

impl Peer {
    /// A line for each of its channels; one for a peer of which no channel is known yet.
    fn lines(&self) -> Vec<Vec<String>> {
        let head = || {
            let id = self.node_id.as_deref().unwrap_or(NONE);
            vec![self.peer.clone(), self.state.clone(), id.to_owned()]
        };
        if self.channels.is_empty() {
            let mut line = head();
            line.extend([NONE; 6].map(str::to_owned));
            line.push(self.reason.clone().unwrap_or_default());
            return vec![line];
        }
        let lines = self.channels.iter().map(|of| {
            let mut line = head();
            line.extend(of.cells(self.reason.as_deref()));
            line
        });
        lines.collect()
    }
}

impl Channel {
    /// `why` the peer as a whole does not answer, where it does not.
    fn cells(&self, why: Option<&str>) -> [String; 7] {
        let again = if self.reading_again { " (reading again)" } else { "" };
        let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
        [
            self.channel.clone(),
            self.origin.clone(),
            format!("{}{again}", self.state),
            self.cursor.to_string(),
            or_none(self.lag_events.map(|lag| lag.to_string())),
            or_none(self.lag_seconds.map(|lag| format!("{lag:.1}"))),
            self.reason.as_deref().or(why).unwrap_or_default().to_owned(),
        ]
    }
}

fn show(global: &Global, json: bool) -> Ended {
    let mut peers: Vec<Value> = Vec::new();
    ask(global, &Request::Peers, &mut |reply| {
        if let Reply::Peer { peer } = reply {
            peers.push(peer);
        }
    })?;
    let mut out = Out::stdout();
    if json {
        for peer in &peers {
            out.line(peer.to_string());
        }
        out.end()?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![TITLES.map(str::to_owned).to_vec()];
    for peer in peers {
        let peer: Peer = serde_json::from_value(peer).map_err(|e| {
            Refusal::failed(format!(
                "the node's answer is not understood ({e}): the command and the node must be of one version"
            ))
        })?;
        lines.extend(peer.lines());
    }
    out.line(table(&lines));
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

/// Has the running node do something that takes its time, and prints what it tells.
pub(super) fn work(global: &Global, request: &Request, what: &'static str) -> Ended {
    let mut progress = Progress::of(what);
    let asked = ask(global, request, &mut |reply| match reply {
        Reply::Progress { done, of } => progress.show(done, of),
        // who no longer reads them still wants it done
        Reply::Line { text } => progress.aside(|| {
            let _ = writeln!(io::stdout(), "{text}");
        }),
        _ => {}
    });
    drop(progress);
    let (_, text) = asked?;
    let mut out = Out::stdout();
    out.line(text);
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the running node; `hear` is told what it says on the way. To how many it was done, and the
/// same for people.
///
/// # Errors
/// Where no node could be asked, and why what was asked was not done, or not wholly.
fn ask(
    global: &Global,
    request: &Request,
    hear: &mut (dyn FnMut(Reply) + Send),
) -> Result<(u64, String), Refusal> {
    let loaded = sources::load(global, false).map_err(|problems| {
        sources::print_problems(&problems);
        Refusal::wrong("")
    })?;
    let socket = control::socket_path(&loaded.config.queue.path);
    let mut last = Err("no answer came".to_owned());
    let mut hear = |reply| match reply {
        Reply::Done { count, text } => last = Ok((count, text)),
        Reply::Failed { text } => last = Err(text),
        other => hear(other),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| Refusal::failed(format!("the system gives no runtime: {e}")))?;
    let called = runtime.block_on(control::call(&socket, request, &mut hear));
    called.map_err(|e| match &e {
        CallError::Unreachable { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            Refusal::wrong(format!("{e}: run this as the node's user, or as root"))
        }
        CallError::Unreachable { .. } => Refusal::wrong(format!(
            "no node runs here: {e} (configuration: {}); start it, then run this again",
            loaded.source
        )),
        CallError::TooLong => Refusal::wrong(e.to_string()),
        CallError::Broken(_) => Refusal::failed(e.to_string()),
    })?;
    last.map_err(Refusal::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_line_for_each_channel_of_each_origin() {
        let channel = |origin: &str, reason: Value| {
            serde_json::json!({
                "origin": origin, "channel": "a", "state": "behind", "reason": reason,
                "cursor": 7, "safe_seq": null, "lag_events": 3, "lag_seconds": 1.5,
                "events": 1, "conflicts": 0, "quarantined": 0, "reading_again": origin == "dc2",
            })
        };
        let told = serde_json::json!({
            "peer": "dc2", "node_id": "id", "state": "connected", "last_contact_seconds": 0.5,
            "bytes": 10,
            "channels": [channel("dc2", Value::Null), channel("dc3", "why".into())],
        });
        let lines = serde_json::from_value::<Peer>(told).unwrap().lines();
        let own =
            ["dc2", "connected", "id", "a", "dc2", "behind (reading again)", "7", "3", "1.5", ""];
        let relayed = ["dc2", "connected", "id", "a", "dc3", "behind", "7", "3", "1.5", "why"];
        assert_eq!(lines, [own, relayed]);
        assert_eq!(lines[0].len(), TITLES.len());
    }

    #[test]
    fn a_peer_of_which_nothing_is_known_has_a_line_of_its_own() {
        let peer = Peer {
            peer: "dc2".to_owned(),
            node_id: None,
            state: "unreachable".to_owned(),
            reason: Some("refused".to_owned()),
            channels: Vec::new(),
        };
        let line = ["dc2", "unreachable", "-", "-", "-", "-", "-", "-", "-", "refused"];
        assert_eq!(peer.lines(), [line]);
        assert_eq!(line.len(), TITLES.len());
    }
}
