//! `replicon recover`: this node's own events that were lost come back from a peer that has them.
//!
//! Prints. The running node does it: it alone writes its rows, and knows which seqs it gives out.

use std::process::ExitCode;

use clap::Args;

use super::directory::end;
use super::{Global, peers};
use crate::control::Request;

/// `replicon recover`.
#[derive(Args)]
pub struct Recover {
    /// The peer that has them, by its name in replication_peer.
    #[arg(long, value_name = "PEER")]
    from: String,
    #[command(flatten)]
    global: Global,
}

/// Runs it.
pub fn run(global: &Global, Recover { from, global: behind }: Recover) -> ExitCode {
    let request = Request::Recover { peer: from };
    end(peers::work(&global.clone().and(behind), &request, "recovering"))
}
