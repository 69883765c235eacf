//! A node's directory as commands meet it: looked at from outside, changed by whoever holds it, which is
//! the running node, asked by its socket, or with none this process.
//!
//! Does not know which command asks.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::sources::{self, Loaded};
use super::{FAILED, Global, WRONG};
use crate::clock::Clock;
use crate::config::QueueBackend;
use crate::control::{self, CallError, Reply, Request};
use crate::fsx::LockError;
use crate::fsx::readonly::ReadOnlyDisk;
use crate::metrics::Metrics;
use crate::node::queue::{self, QueueError};
use crate::queue::AnyQueue;
use crate::queue::file::OpenError;
use crate::queue::file::dead::{DeadLetter, read_all};
use crate::queue::file::look::LogFiles;
use crate::queue::file::state::StateFile;
use crate::queue::redis;
use crate::task::Spine;
use crate::telemetry;

/// How a command ends.
pub type Ended = Result<ExitCode, Refusal>;

/// Why a command ends without its work.
#[derive(Debug)]
pub struct Refusal {
    code: u8,
    text: String,
}

impl Refusal {
    /// Usage, configuration, or the node cannot be reached.
    pub fn wrong(text: impl Into<String>) -> Self {
        Self { code: WRONG, text: text.into() }
    }

    /// It was tried, and failed.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { code: FAILED, text: text.into() }
    }
}

impl From<QueueError> for Refusal {
    fn from(e: QueueError) -> Self {
        match e {
            QueueError::File(e) => e.into(),
            QueueError::Redis(redis::OpenError::Io { .. }) => Self::failed(e.to_string()),
            QueueError::Redis(_) | QueueError::Named { .. } => Self::wrong(e.to_string()),
        }
    }
}

impl From<OpenError> for Refusal {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Io { .. } => Self::failed(e.to_string()),
            _ => Self::wrong(e.to_string()),
        }
    }
}

/// Says why, where there is something to say.
pub fn end(ended: Ended) -> ExitCode {
    ended.unwrap_or_else(|Refusal { code, text }| {
        if !text.is_empty() {
            eprintln!("error: {text}");
        }
        ExitCode::from(code)
    })
}

/// The directory that a configuration names.
pub struct Directory {
    loaded: Loaded,
}

/// Who may change the files.
enum Hands {
    /// This process, from now on.
    Ours(Arc<AnyQueue>),
    /// Another: why not this one, and what to do where the other cannot be reached.
    Theirs { why: String, advice: String },
}

impl Directory {
    /// Finds it.
    ///
    /// # Errors
    /// Where the configuration is wrong; said already.
    pub fn of(global: &Global) -> Result<Self, Refusal> {
        match sources::load(global, false) {
            Ok(loaded) => Ok(Self { loaded }),
            Err(problems) => {
                sources::print_problems(&problems);
                Err(Refusal::wrong(""))
            }
        }
    }

    fn queue_path(&self) -> &Path {
        &self.loaded.config.queue.path
    }

    /// Its files, to look at.
    pub fn files(&self) -> LogFiles {
        let config = &self.loaded.config;
        LogFiles {
            disk: ReadOnlyDisk::shared(),
            path: config.queue.path.clone(),
            ack_path: config.queue.ack_path.clone(),
            origin: config.node_name.clone(),
        }
    }

    /// Whether the queue is on Redis.
    pub fn is_on_redis(&self) -> bool {
        self.loaded.config.queue.backend == QueueBackend::Redis
    }

    /// Reads all dead letters, oldest first.
    ///
    /// # Errors
    /// What the disk or Redis says, and what `visit` returns.
    pub fn read_dead(
        &self,
        told: &mut dyn FnMut(u64, u64),
        visit: &mut dyn FnMut(DeadLetter) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.is_on_redis() {
            return redis::read_all(&self.redis()?, told, visit);
        }
        let files = self.files();
        read_all(&*files.disk, &files.dead_base(), told, visit)
    }

    fn redis(&self) -> io::Result<redis::Options> {
        let metrics = Metrics::new().map_err(io::Error::other)?;
        let (clock, spine) = (Clock::system(), Spine::default());
        let config = &self.loaded.config;
        queue::redis_options(config, &clock, &spine, metrics.sync_seconds).map_err(io::Error::other)
    }

    /// What was said while dead letters were read.
    pub fn unreadable(&self, e: &io::Error) -> Refusal {
        let place = match self.is_on_redis() {
            true => self.loaded.config.queue.redis.dlq_stream.clone(),
            false => self.files().dead_base().display().to_string(),
        };
        Refusal::failed(format!("the dead letters in {place} cannot be read: {e}"))
    }

    /// Whether there is nothing of a queue yet that could be changed.
    ///
    /// # Errors
    /// What the disk says.
    pub fn is_bare(&self) -> Result<bool, Refusal> {
        Ok(!self.is_on_redis() && !self.files().exist()?)
    }

    /// What Redis is known to have lost, a line each.
    ///
    /// # Errors
    /// What the disk says.
    pub fn losses(&self) -> Result<Vec<String>, Refusal> {
        let losses = redis::losses(&*ReadOnlyDisk::shared(), self.queue_path());
        losses.map_err(|e| Refusal::failed(format!("redis.state cannot be read: {e}")))
    }

    /// Says that there is nothing, and where.
    pub fn no_log_yet(&self) -> String {
        let path = self.queue_path();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let source = &self.loaded.source;
        format!("there is no log at {} yet (configuration: {source})", path.display())
    }

    /// Has it changed; `hear` is told how it goes on. How many were changed, and the same for people.
    ///
    /// # Errors
    /// Where nobody could be asked, and why what was asked was not done.
    pub fn change(
        &self,
        request: Request,
        hear: &mut (dyn FnMut(Reply) + Send),
    ) -> Result<(u64, String), Refusal> {
        let mut last = Err("no answer came".to_owned());
        let mut hear = |reply| match reply {
            Reply::Done { count, text } => last = Ok((count, text)),
            Reply::Failed { text } => last = Err(text),
            other => hear(other),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime =
            runtime.map_err(|e| Refusal::failed(format!("the system gives no threads: {e}")))?;
        runtime.block_on(self.ask(request, &mut hear))?;
        last.map_err(Refusal::failed)
    }

    async fn ask(
        &self,
        request: Request,
        hear: &mut (dyn FnMut(Reply) + Send),
    ) -> Result<(), Refusal> {
        let (why, advice) = match self.take(&request).await? {
            Hands::Ours(queue) => {
                control::here(&queue, request, hear).await;
                queue.close().await;
                return Ok(());
            }
            Hands::Theirs { why, advice } => (why, advice),
        };
        let socket = control::socket_path(self.queue_path());
        control::call(&socket, &request, hear).await.map_err(|e| match e {
            CallError::Unreachable { .. } => Refusal::wrong(format!("{why}, and {e}: {advice}")),
            CallError::TooLong => Refusal::wrong(e.to_string()),
            CallError::Broken(_) => Refusal::failed(e.to_string()),
        })
    }

    /// Takes the queue into this process's hands, where they are the right ones.
    async fn take(&self, request: &Request) -> Result<Hands, Refusal> {
        if let Some(hands) = self.of_another_user() {
            return Ok(hands);
        }
        telemetry::start("warn");
        let metrics = Metrics::new().map_err(|e| Refusal::failed(e.to_string()))?;
        let (clock, spine) = (Clock::system(), Spine::default());
        let config = &self.loaded.config;
        let queue = match queue::open(config, &clock, &spine, metrics.sync_seconds).await {
            Ok(queue) => queue,
            Err(
                QueueError::File(OpenError::Lock(LockError::Held { path, holder }))
                | QueueError::Redis(redis::OpenError::Lock(LockError::Held { path, holder })),
            ) => {
                let why = format!("{} is held by a running process{holder}", path.display());
                let advice = "a node that starts or stops answers in a moment; where its log says that the socket could not be made, stop it and run this again";
                return Ok(Hands::Theirs { why, advice: advice.to_owned() });
            }
            Err(e) => return Err(e.into()),
        };
        if matches!(request, Request::RetryDead { .. }) && queue.is_fresh() {
            return Err(Refusal::failed(
                "nothing can be put back yet: it is not certain which seqs are in use; start the node once with its storage reachable, then run this again",
            ));
        }
        Ok(Hands::Ours(Arc::new(queue)))
    }

    /// Files that another user than the node's makes are files that the node cannot open.
    fn of_another_user(&self) -> Option<Hands> {
        let state = StateFile::path(self.queue_path());
        let owner = std::fs::metadata(&state).ok()?.uid();
        // SAFETY: the call takes nothing and always succeeds.
        #[allow(unsafe_code)]
        let me = unsafe { libc::geteuid() };
        (owner != me).then(|| Hands::Theirs {
            why: format!(
                "{} belongs to user {owner}, not to this one ({me}), whose files its node could not open",
                state.display()
            ),
            advice: format!("run this as that user: sudo -u '#{owner}' replicon …"),
        })
    }
}
