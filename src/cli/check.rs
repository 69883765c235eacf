//! `replicon check`: all that can be validated without starting, then what is in force and why.
//!
//! Changes nothing: what it creates to try write access it removes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::sources::{self, Loaded};
use super::{Global, WRONG};
use crate::clock::Clock;
use crate::config::{Config, Problem, QueueBackend, StorageConfig};
use crate::fsx::{OsDisk, parent};
use crate::metrics::Metrics;
use crate::node::queue::redis_options;
use crate::queue;
use crate::task::Spine;

/// Runs it.
pub fn run(global: &Global) -> ExitCode {
    let Loaded { config, source } = match sources::load(global, true) {
        Ok(loaded) => loaded,
        Err(problems) => {
            sources::print_problems(&problems);
            return ExitCode::from(WRONG);
        }
    };
    println!("# configuration: {source}");
    for (key, value, origin) in config.settings.effective() {
        println!("{key} = {value}    # {origin}");
    }
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let mut problems: Vec<Problem> =
        directories(&config).iter().filter_map(|(key, dir)| try_write(key, dir)).collect();
    let disk = OsDisk::shared();
    let (path, ack) = (&config.queue.path, &config.queue.ack_path);
    if let Err(e) = queue::file::inspect(disk, path, ack, &config.node_name) {
        problems.push(Problem::new("queue_file_path", e.to_string()));
    }
    if config.queue.backend == QueueBackend::Redis {
        let (wrong, odd) = look_at_redis(&config);
        problems.extend(wrong.into_iter().map(|text| Problem::new("queue_redis_addr", text)));
        for text in odd {
            eprintln!("warning: {text}");
        }
    }
    if config.replication.enabled {
        let diverging = config.channels.all().filter_map(|channel| channel.diverges());
        problems.extend(diverging.map(|text| Problem::new("channels_file", text)));
    }
    if problems.is_empty() {
        println!("# the configuration is right");
        return ExitCode::SUCCESS;
    }
    sources::print_problems(&problems);
    ExitCode::from(WRONG)
}

/// What would keep a start from working with this Redis, and what is odd about it.
fn look_at_redis(config: &Config) -> (Vec<String>, Vec<String>) {
    let looked = || -> Result<_, Box<dyn std::error::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seconds = Metrics::new()?.sync_seconds;
        let options = redis_options(config, &Clock::system(), &Spine::default(), seconds)?;
        Ok(runtime.block_on(queue::redis::preflight(&options)))
    };
    looked().unwrap_or_else(|e| (vec![e.to_string()], Vec::new()))
}

fn directories(config: &Config) -> Vec<(&'static str, PathBuf)> {
    let mut all = vec![
        ("queue_file_path", parent(&config.queue.path).to_owned()),
        ("queue_file_ack_path", parent(&config.queue.ack_path).to_owned()),
    ];
    match &config.storage {
        StorageConfig::File { path, .. } => {
            all.push(("storage_file_path", parent(path).to_owned()));
        }
        StorageConfig::Sqlite { path } => {
            all.push(("storage_sqlite_path", parent(path).to_owned()));
        }
        StorageConfig::Postgres(_) | StorageConfig::Mysql(_) | StorageConfig::Noop => {}
    }
    all
}

/// A directory that does not stand yet is made by the start: then its nearest parent must take it.
fn try_write(key: &str, dir: &Path) -> Option<Problem> {
    let standing = dir.ancestors().find(|d| d.as_os_str().is_empty() || d.exists())?;
    let standing = if standing.as_os_str().is_empty() { Path::new(".") } else { standing };
    let probe = standing.join(format!(".replicon-check-{}", std::process::id()));
    let tried = std::fs::OpenOptions::new().write(true).create_new(true).open(&probe);
    let problem = |e: std::io::Error| {
        let text = format!(
            "{} cannot be made or written ({}: {e}); give it to the user that runs replicon, or set {key} to another path",
            dir.display(),
            standing.display()
        );
        Problem::new(key.to_owned(), text)
    };
    match tried {
        Ok(_) => std::fs::remove_file(&probe).err().map(problem),
        Err(e) => Some(problem(e)),
    }
}
