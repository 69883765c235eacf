//! The command line: one file a subcommand. Wiring and printing, no logic.
//!
//! The only module that knows clap, the environment and the paths where a configuration may lie.

mod check;
mod directory;
mod dlq;
mod log;
mod peers;
mod print;
mod progress;
mod recover;
mod schema;
mod serve;
mod sources;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Exit code for a node that died.
const FAILED: u8 = 1;
/// Exit code for a wrong configuration or usage.
const WRONG: u8 = 2;

const EXAMPLES: &str = "Examples:
  replicon                                        serve, with the nearest configuration
  replicon --config /etc/replicon/replicon.conf   serve with that one
  replicon --set http_listen=127.0.0.1:9090       one key for this run
  REPLICON_NODE_NAME=dc2 replicon                 the same, by the environment
  replicon check                                  is it right? and what is in force?
  replicon log stat                               what waits in the log; check: is it whole?
  replicon dlq list                               events that the storage refused
  replicon peers                                  how far this node is behind its peers

Configuration: --config, else REPLICON_CONFIG, else conf/replicon.conf under the working
directory, else /etc/replicon/replicon.conf, else built-in defaults. --set beats REPLICON_<KEY> in
the environment beats the file beats the default.

Exit codes: 0 stopped in order; 1 died, a command failed, or log check found a loss; 2 could not
start or reach the node (configuration, usage, what is in the way).";

#[derive(Parser)]
#[command(name = "replicon", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options that stand before or after the subcommand. Not clap's global ones: of those that repeat,
/// clap keeps only the places before or only the places after.
#[derive(Args, Clone, Default)]
struct Global {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One key of the configuration, for this run; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

impl Global {
    /// What stands before the subcommand, and what stands behind it.
    fn and(mut self, behind: Self) -> Self {
        self.set.extend(behind.set);
        Self { config: behind.config.or(self.config), set: self.set }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run the node (the default).
    Serve(Global),
    /// Validate all that can be validated without starting, and print what is in force.
    Check(Global),
    /// The statements that a start would run in the database, and what stands in their way. Exit code
    /// 0: nothing; 1: something would be run; 2: something does not fit, or nobody answers.
    Schema {
        /// Everything that an empty database would be given, without looking at one.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        global: Global,
    },
    /// What is in the log, whether it is whole, and the end of the red state.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Dead letters: look, put back, discard.
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// How the peers stand, a line a channel; what they sent and no table took, tried again.
    Peers(peers::Peers),
    /// Put back this node's own events that are missing here, from a peer that has them: after the
    /// database was restored from an old dump, say.
    Recover(recover::Recover),
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as key=value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Parses the command line and runs it.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or_else(|| Command::Serve(Global::default())) {
        Command::Serve(behind) => serve::run(&cli.global.and(behind)),
        Command::Check(behind) => check::run(&cli.global.and(behind)),
        Command::Schema { all, global } => schema::run(&cli.global.and(global), all),
        Command::Log(command) => log::run(&cli.global, command),
        Command::Dlq(command) => dlq::run(&cli.global, command),
        Command::Peers(peers) => peers::run(&cli.global, peers),
        Command::Recover(recover) => recover::run(&cli.global, recover),
    }
}
