//! The log lines: to stderr, one a line, with the level that `log_level` names.
//!
//! Does not know what is logged.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging for the whole process; called once, by `serve`. `RUST_LOG` beats `level`.
pub fn start(level: &str) {
    // what fails in the driver is told in our own words, once
    let usual = || EnvFilter::new(format!("{level},sqlx=error"));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| usual());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .finish();
    // a second start (a test in this process) keeps the first
    let _ = lines.try_init();
}
