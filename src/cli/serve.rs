//! `replicon serve`: runs a node until a signal, and says how it ended.
//!
//! Does not know what a node consists of.

use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::sources::{self, Loaded};
use super::{FAILED, Global, WRONG};
use crate::node::Node;
use crate::telemetry;

/// How long blocking work under way is waited for at the very end.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Runs it.
pub fn run(global: &Global) -> ExitCode {
    let loaded = match sources::load(global, false) {
        Ok(loaded) => loaded,
        Err(problems) => {
            sources::print_problems(&problems);
            return ExitCode::from(WRONG);
        }
    };
    telemetry::start(&loaded.config.log_level);
    tracing::info!("replicon {}, configuration: {}", env!("CARGO_PKG_VERSION"), loaded.source);
    for warning in &loaded.config.warnings {
        tracing::warn!("{warning}");
    }
    raise_descriptor_limit();
    let threads = loaded
        .config
        .cpu
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(serve(loaded, threads));
            // a write to a disk that hangs must not keep the process
            runtime.shutdown_timeout(LAST_WRITES);
            code
        }
        Err(e) => {
            tracing::error!("the system gives no threads: {e}");
            ExitCode::from(FAILED)
        }
    }
}

async fn serve(loaded: Loaded, threads: usize) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tracing::error!("signals cannot be listened for");
        return ExitCode::from(FAILED);
    };
    let node = match Node::start(&loaded.config, threads).await {
        Ok(node) => node,
        Err(e) => {
            tracing::error!("{e}");
            return ExitCode::from(WRONG);
        }
    };
    println!("{}", node.ready_line());
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        why = node.died() => {
            tracing::error!("replicon ends: {why}; what was acknowledged is in the log, the next start goes on from there");
            return ExitCode::from(FAILED);
        }
    };
    tracing::info!("{name}: stopping");
    node.shutdown().await;
    ExitCode::SUCCESS
}

/// Connections need descriptors, and the usual soft limit of 1,024 is for programs that use select.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid, initialised struct that outlives them.
    #[allow(unsafe_code)]
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
