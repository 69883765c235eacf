//! The configured queue, opened: the file log or Redis, and never one while the other still holds
//! events.
//!
//! Decides nothing that a queue could decide.

use std::io;
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{Config, QueueBackend, QueueConfig, RedisAddress, RedisConfig, SyncMode};
use crate::fsx::OsDisk;
use crate::queue::AnyQueue;
use crate::queue::accounts::Ceilings;
use crate::queue::file::{self as log, FileQueue};
use crate::queue::redis::{self, RedisQueue};
use crate::task::{self, Spine};

/// Why the queue was not opened. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The file log.
    #[error(transparent)]
    File(#[from] log::OpenError),
    /// Redis, or what one backend still holds where the other is configured.
    #[error(transparent)]
    Redis(#[from] redis::OpenError),
    /// A file that the configuration names.
    #[error("{key} = {path}: {source}")]
    Named {
        /// The key.
        key: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Opens it. `seconds` takes the seconds that appends take to be durable.
///
/// # Errors
/// [`QueueError`].
pub async fn open(
    config: &Config,
    clock: &Clock,
    spine: &Spine,
    seconds: prometheus::Histogram,
) -> Result<AnyQueue, QueueError> {
    let options = queue_options(config, clock, spine, seconds.clone());
    match &config.queue.backend {
        QueueBackend::Redis => {
            let options = redis_options(config, clock, spine, seconds)?;
            Ok(AnyQueue::Redis(RedisQueue::open(options).await?))
        }
        QueueBackend::File => {
            match redis_options(config, clock, spine, seconds) {
                Ok(redis) => redis::events_left(&redis).await?,
                // nobody can be asked: that matters where something may be left
                Err(e) if redis::may_be_left(&*OsDisk::shared(), &config.queue.path)? => {
                    return Err(e);
                }
                Err(_) => {}
            }
            Ok(AnyQueue::File(task::blocking(|| FileQueue::open(options)).await?))
        }
    }
}

fn ceilings(config: &Config) -> Ceilings {
    let QueueConfig { max_events, max_bytes, channel_share, .. } = config.queue;
    let several = config.channels.all().filter(|c| c.enabled).count() > 1;
    let channel_share = if several { channel_share } else { 1.0 };
    Ceilings { max_events, max_bytes, channel_share }
}

/// How the file log is opened. `sync_seconds` takes the seconds that syncs take.
#[must_use]
pub fn queue_options(
    config: &Config,
    clock: &Clock,
    spine: &Spine,
    sync_seconds: prometheus::Histogram,
) -> log::Options {
    log::Options {
        disk: OsDisk::shared(),
        path: config.queue.path.clone(),
        ack_path: config.queue.ack_path.clone(),
        origin: config.node_name.clone(),
        clock: clock.clone(),
        sync: match config.queue.sync {
            SyncMode::Ack => log::SyncMode::Ack,
            SyncMode::Interval(every) => log::SyncMode::Interval(every),
        },
        segment_bytes: config.queue.segment_bytes,
        ceilings: ceilings(config),
        min_free_bytes: config.queue.min_free_bytes,
        dead_letter_max_bytes: config.queue.dead_letter_max_bytes,
        lock: true,
        spine: spine.clone(),
        sync_seconds,
    }
}

/// How the queue on Redis is opened, whether or not it is the configured one.
///
/// # Errors
/// [`QueueError::Named`] where a password or a certificate cannot be read from its file.
pub fn redis_options(
    config: &Config,
    clock: &Clock,
    spine: &Spine,
    append_seconds: prometheus::Histogram,
) -> Result<redis::Options, QueueError> {
    let redis = &config.queue.redis;
    let read = |key, path: &std::path::Path| {
        std::fs::read(path).map_err(|source| QueueError::Named {
            key,
            path: path.display().to_string(),
            source,
        })
    };
    let password = match &redis.password_file {
        Some(path) => {
            let bytes = read("queue_redis_password_file", path)?;
            String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()
        }
        None => redis.password.clone(),
    };
    let roots = redis.tls_ca_file.as_deref().map(|path| read("queue_redis_tls_ca_file", path));
    let roots = roots.transpose()?;
    let RedisConfig { address, username, stream, group, consumer, dlq_stream, .. } = *redis.clone();
    Ok(redis::Options {
        address: match address {
            RedisAddress::Tcp(host, port) => redis::Address::Tcp { host, port },
            RedisAddress::Tls(host, port) => redis::Address::Tls { host, port, roots },
            RedisAddress::Unix(path) => redis::Address::Unix(path),
        },
        username,
        password: (!password.is_empty()).then_some(password),
        db: redis.db,
        stream,
        group,
        consumer,
        dlq_stream,
        maxlen: redis.maxlen,
        max_retries: redis.max_retries,
        timeout: redis.timeout,
        wait_aof: redis.wait_aof,
        disk: OsDisk::shared(),
        path: config.queue.path.clone(),
        ack_path: config.queue.ack_path.clone(),
        origin: config.node_name.clone(),
        clock: clock.clone(),
        ceilings: ceilings(config),
        dead_letter_max_bytes: config.queue.dead_letter_max_bytes,
        lock: true,
        spine: spine.clone(),
        append_seconds,
    })
}

/// As the ready line names it.
pub(super) fn shown(config: &Config) -> String {
    let redis = &config.queue.redis;
    match (config.queue.backend, &redis.address) {
        (QueueBackend::File, _) => format!("file:{}", config.queue.path.display()),
        (QueueBackend::Redis, RedisAddress::Tcp(host, port) | RedisAddress::Tls(host, port)) => {
            format!("redis:{host}:{port}/{}", redis.stream)
        }
        (QueueBackend::Redis, RedisAddress::Unix(path)) => {
            format!("redis:{}/{}", path.display(), redis.stream)
        }
    }
}

/// Storage has answered: this node knows which seqs are in use.
pub(super) async fn make_certain(queue: &Arc<AnyQueue>) {
    loop {
        let queue = queue.clone();
        match task::blocking(move || queue.identity_certain()).await {
            Ok(()) => return,
            Err(e) => tracing::error!("node.state cannot be written: {e}; tried again in a second"),
        }
        task::sleep(std::time::Duration::from_secs(1)).await;
    }
}
