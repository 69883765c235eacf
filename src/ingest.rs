//! The one door: what every source of events goes through. Validate, append, answer.
//!
//! Knows no HTTP: a source hands over bytes and a channel, and gets an identity or a reason.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::channel::{Channel, Mode, validate};
use crate::clock::Clock;
use crate::event::Batch;
use crate::json::{self, Form, MAX_VIOLATIONS, Profile, Violation};
use crate::queue::{AppendError, Appended, Queue};
use crate::task;

/// Bodies larger than this are checked where a busy thread delays no other connection.
const INLINE_BYTES: usize = 256 << 10;

/// What was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// How many events.
    pub count: usize,
    /// Their seqs.
    pub seqs: Appended,
    /// Earlier members of the same key that were cut out.
    pub cut_members: usize,
}

/// Why nothing was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The body is not what the channel takes: all violations, up to a bound.
    Invalid(Vec<Violation>),
    /// The queue refused.
    Queue(AppendError),
    /// The queue did not answer in time: it may or may not be stored.
    TimedOut(Duration),
}

/// The door to a queue.
pub struct Door<Q> {
    /// Where accepted events go.
    pub queue: Arc<Q>,
    /// The time of acceptance.
    pub clock: Clock,
    /// What JSON is taken.
    pub profile: Profile,
    /// How long an append may take.
    pub enqueue_timeout: Duration,
}

impl<Q: Queue> Door<Q> {
    /// Accepts the events of one body, whole or not at all.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn accept(
        &self,
        channel: &Arc<Channel>,
        body: Bytes,
        form: Form,
    ) -> Result<Accepted, Refused> {
        let checked = if body.len() <= INLINE_BYTES {
            check(channel, &body, form, &self.profile)
        } else {
            let (channel, profile) = (channel.clone(), self.profile);
            task::blocking(move || check(&channel, &body, form, &profile)).await
        };
        let (payloads, cut_members) = checked.map_err(Refused::Invalid)?;
        let count = payloads.len();
        let batch = Batch {
            channel: channel.name.clone(),
            mode: channel.tag(),
            received_at: self.clock.wall(),
            payloads,
        };
        match tokio::time::timeout(self.enqueue_timeout, self.queue.append(batch)).await {
            Ok(Ok(seqs)) => Ok(Accepted { count, seqs, cut_members }),
            Ok(Err(e)) => Err(Refused::Queue(e)),
            Err(_) => Err(Refused::TimedOut(self.enqueue_timeout)),
        }
    }
}

/// The payloads of a body, and how many duplicate members were cut out of them.
fn check(
    channel: &Channel,
    body: &Bytes,
    form: Form,
    profile: &Profile,
) -> Result<(Vec<Bytes>, usize), Vec<Violation>> {
    let items = json::scan(body, form, profile)?;
    let cut = items.iter().map(|item| item.cuts.len()).sum();
    let payloads: Vec<Bytes> = items.iter().map(|item| item.payload(body)).collect();
    if let Mode::Structured(schema) = &channel.mode {
        let mut violations = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            validate::validate(schema, payload, index, &mut violations);
            if violations.len() >= MAX_VIOLATIONS {
                break;
            }
        }
        if !violations.is_empty() {
            return Err(violations);
        }
    }
    Ok((payloads, cut))
}
