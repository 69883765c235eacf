//! The log thread: writes the frames of all waiting requests, syncs once, answers all of them.
//!
//! Strictly serial; the only writer of the log and the only one that gives out seqs. Does not know
//! schemas, HTTP or leases.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::dead::DeadState;
use super::handle::Shared;
use super::log::{Frame, Log};
use super::record::Body;
use crate::event::{ChannelName, Seq};
use crate::queue::accounts::Load;
use crate::queue::{AppendError, Appended};
use crate::seq::{Seqs, Witness};

/// Sync modes: when an append is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// After its sync.
    Ack,
    /// After its write; synced at this interval.
    Interval(Duration),
}

/// The most bytes written before a sync: bounds memory and what one request waits for.
const GROUP_BYTES: usize = 8 << 20;
/// An idle log is sealed after this long, and a broken one tried again.
const IDLE: Duration = Duration::from_secs(1);

/// Most bytes that wait for the log thread; one request more is always taken.
const INBOX_BYTES: usize = 64 << 20;
/// Longest that a group waits for more requests: a disk that stalled once must not slow a sound one.
const MAX_GATHER: Duration = Duration::from_millis(5);
/// From so many requests in a group on it pays to wait for more.
const MANY: usize = 16;

/// A request waiting for the log.
pub struct Pending {
    /// Its payload.
    pub body: Body,
    /// Whose.
    pub channel: ChannelName,
    /// What was reserved for it.
    pub load: Load,
    /// The dead letter that it puts back.
    pub redrives: Option<Seq>,
    /// Who waits.
    pub answer: oneshot::Sender<Result<Appended, AppendError>>,
}

/// What the log thread is asked to do.
#[derive(Default)]
pub struct Inbox {
    work: Mutex<Work>,
    bell: Condvar,
}

#[derive(Default)]
struct Work {
    pending: Vec<Pending>,
    /// Of all payloads in `pending`.
    bytes: usize,
    seen: Vec<(Seq, Witness)>,
    /// The thread waits for this many; 0 where it does not.
    wanted: usize,
    stop: bool,
    stopped: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over a request; `Err` gives it back, with the reason, when the log has stopped or does
    /// not keep up: requests whose clients have given up still take memory.
    #[allow(clippy::result_large_err)] // it goes straight back to its owner
    pub fn push(&self, pending: Pending) -> Result<(), (Pending, &'static str)> {
        let mut work = self.lock();
        if work.stop {
            return Err((pending, "this node is stopping"));
        }
        if work.bytes > INBOX_BYTES {
            return Err((pending, "the disk under the log does not keep up"));
        }
        work.bytes += pending.body.bytes.len();
        work.pending.push(pending);
        let waiting = work.pending.len();
        let call = waiting == 1 || waiting == work.wanted;
        drop(work);
        // with others waiting the thread was already called
        if call {
            self.bell.notify_one();
        }
        Ok(())
    }

    /// A seq is in use somewhere: raises what is given out next, before the next append.
    pub fn seen(&self, seq: Seq, witness: Witness) {
        self.lock().seen.push((seq, witness));
        self.bell.notify_one();
    }

    /// Takes no more; what waits is still written.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.bell.notify_one();
    }

    /// Whether the thread has written and sealed everything.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits for work, at most `most`; once there is some, up to `grace` longer while fewer than
    /// `wanted` requests wait.
    /// What waits comes in `pending`, whose room is kept for the next.
    fn wait(
        &self,
        pending: &mut Vec<Pending>,
        most: Duration,
        (wanted, grace): (usize, Duration),
    ) -> (Vec<(Seq, Witness)>, bool) {
        let mut work = self.lock();
        if work.pending.is_empty() && work.seen.is_empty() && !work.stop {
            work = self.bell.wait_timeout(work, most).unwrap_or_else(PoisonError::into_inner).0;
        }
        if !work.pending.is_empty() && work.pending.len() < wanted {
            work.wanted = wanted;
            let few = |work: &mut Work| work.pending.len() < wanted && !work.stop;
            let waited = self.bell.wait_timeout_while(work, grace, few);
            work = waited.unwrap_or_else(PoisonError::into_inner).0;
            work.wanted = 0;
        }
        work.bytes = 0;
        std::mem::swap(&mut work.pending, pending);
        (std::mem::take(&mut work.seen), work.stop)
    }
}

/// The thread's own state.
pub(super) struct Appender {
    pub shared: std::sync::Arc<Shared>,
    pub log: Log,
    pub seqs: Seqs,
    /// When something was last written, by the monotonic clock.
    pub wrote_at: Duration,
    pub synced_at: Duration,
    pub free_looked_at: Option<Duration>,
    pub tried_at: Option<Duration>,
    /// Requests in the last group, and how long its sync took.
    pub last_group: usize,
    pub last_sync: Duration,
}

impl Appender {
    /// Runs until the inbox is stopped and empty.
    pub fn run(mut self) {
        let mut pending = Vec::new();
        loop {
            let (patience, gather) = (self.patience(), self.gather());
            let (seen, stop) = self.shared.inbox.wait(&mut pending, patience, gather);
            for (seq, witness) in seen {
                if !self.seqs.seen(seq, witness) {
                    tracing::error!(%seq, "a peer claims to have seen seq {seq} of us, above what any clock allows: ignored");
                }
            }
            self.tend();
            while !pending.is_empty() {
                let fits = group_size(&pending);
                self.group(&mut pending, fits);
            }
            if stop {
                break;
            }
        }
        if self.log.is_open()
            && let Err(e) = self.log.seal()
        {
            tracing::error!("the log could not be sealed: {e}");
        }
        self.publish();
        self.shared.inbox.lock().stopped = true;
    }

    /// How many requests the next group should hold, and how long it may wait for them. With many
    /// clients at once, syncing without a pause makes small groups, and each sync costs more than all
    /// of its requests: so a group may wait as long as the last sync took, for twice as many. A few
    /// clients never wait.
    fn gather(&self) -> (usize, Duration) {
        match self.last_group {
            n if n >= MANY && self.shared.sync == SyncMode::Ack => {
                (2 * n, self.last_sync.min(MAX_GATHER))
            }
            _ => (0, Duration::ZERO),
        }
    }

    fn patience(&self) -> Duration {
        match self.shared.sync {
            SyncMode::Ack => IDLE,
            SyncMode::Interval(every) => every.min(IDLE),
        }
    }

    /// What is due without any request: a sync, a seal, another try with a broken log.
    fn tend(&mut self) {
        let now = self.shared.clock.mono();
        if !self.log.is_open() {
            self.reopen(now);
            return;
        }
        if let SyncMode::Interval(every) = self.shared.sync
            && now.saturating_sub(self.synced_at) >= every
        {
            if let Err(e) = self.sync() {
                self.broke("sync", &e);
                return;
            }
            self.publish();
            if let Err(e) = self.log.rotate_if_long(self.seqs.peek()) {
                self.broke("rotation", &e);
                return;
            }
        }
        if now.saturating_sub(self.wrote_at) >= IDLE
            && let Err(e) = self.log.seal()
        {
            self.broke("seal", &e);
        }
        self.look_at_free_space(now);
    }

    /// A new segment, whose header names the failed one's end; tried once a second.
    fn reopen(&mut self, now: Duration) {
        if self.tried_at.is_some_and(|at| now.saturating_sub(at) < IDLE) {
            return;
        }
        self.tried_at = Some(now);
        let result = self.reserve(0).and_then(|()| self.log.begin(self.seqs.peek(), Vec::new()));
        match result {
            Ok(()) => {
                tracing::info!("the log goes on in a new segment");
                self.tried_at = None;
                self.shared.refuse(None);
                // what failed is void for good: the new header names the end
                self.shared.marks.with(|marks| marks.void_below(self.seqs.peek()));
                self.publish();
            }
            Err(e) => self.shared.refuse(Some(format!("no new log segment: {e}"))),
        }
    }

    fn broke(&mut self, what: &str, e: &std::io::Error) {
        tracing::error!("the log's {what} failed: {e}; its segment is closed and a new one begun");
        if self.shared.sync == SyncMode::Ack {
            self.log.forget_unsynced();
        }
        self.shared.refuse(Some(format!("the log's {what} failed: {e}")));
        self.tried_at = None;
        self.reopen(self.shared.clock.mono());
    }

    /// Below `min_free_bytes` appends are refused, while acks and dead letters still find room.
    fn look_at_free_space(&mut self, now: Duration) {
        if self.free_looked_at.is_some_and(|at| now.saturating_sub(at) < IDLE) {
            return;
        }
        self.free_looked_at = Some(now);
        let least = self.shared.min_free_bytes;
        let low = match self.shared.disk.free_bytes(self.log.dir()) {
            Ok(free) if free < least => Some(format!(
                "the disk under {} has {free} bytes free, fewer than min_free_bytes ({least})",
                self.log.dir().display()
            )),
            Ok(_) => None,
            Err(e) => {
                Some(format!("the free space under {} is unknown: {e}", self.log.dir().display()))
            }
        };
        self.shared.refuse(low);
    }

    /// Makes the ceiling for `n` more seqs durable.
    fn reserve(&mut self, n: u64) -> std::io::Result<()> {
        if let Some(ceiling) = self.seqs.ceiling_for(n).map_err(std::io::Error::other)? {
            self.shared.state().update(|state| state.ceiling = ceiling)?;
            self.seqs.reserved(ceiling);
        }
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        let started = self.shared.clock.mono();
        self.log.sync()?;
        self.synced_at = self.shared.clock.mono();
        let took = self.synced_at.saturating_sub(started);
        self.last_sync = took;
        self.shared.sync_seconds.observe(took.as_secs_f64());
        Ok(())
    }

    /// Shows readers what is synced and counted.
    fn publish(&self) {
        self.log.show();
        self.shared.set_witness(self.log.witness());
        self.shared.marks.with(|marks| marks.shown(self.log.witness().0));
        self.shared.more.notify_waiters();
    }

    /// One group: all of it is durable and answered, or none of it is.
    fn group(&mut self, waiting: &mut Vec<Pending>, fits: usize) {
        let group = waiting.drain(..fits);
        if let Some(reason) = self.refusal() {
            self.refuse_all(group, &AppendError::Unavailable { reason });
            return;
        }
        self.seqs.watch_clock();
        let events: u64 = group.as_slice().iter().map(|p| p.load.events).sum();
        if let Err(e) = self.reserve(events) {
            let reason = format!("no identities can be reserved: {e}");
            self.refuse_all(group, &AppendError::Unavailable { reason });
            return;
        }
        let mut frames = Vec::with_capacity(group.len());
        let mut answers = Vec::with_capacity(group.len());
        let mut placed: Vec<(Pending, Seq)> = group.map(|p| self.place(p)).collect();
        self.note_redrives(&mut placed);
        let puts_back = placed.iter().any(|(p, _)| p.redrives.is_some());
        for (p, first) in placed {
            let last = Seq(first.0 + p.load.events - 1);
            frames.push(Frame { first, body: p.body, counts: Some((p.channel.clone(), p.load)) });
            answers.push((p.channel, p.load, p.answer, Appended { first, last }));
        }
        self.wrote_at = self.shared.clock.mono();
        self.last_group = frames.len();
        let result = self.log.write(frames).and_then(|()| match self.shared.sync {
            SyncMode::Ack => self.sync(),
            SyncMode::Interval(_) => Ok(()),
        });
        match result {
            Ok(()) => {
                // counted before readers see it, or it could leave the queue before it came in
                self.shared.accounts.accepted(answers.iter().map(|(c, load, ..)| (c, *load)));
                self.shared.marks.with(|marks| {
                    marks.written(answers.iter().map(|(c, _, _, at)| (c, at.first, at.last)));
                });
                if puts_back {
                    self.show_put_back();
                }
                for (_, _, answer, appended) in answers {
                    // a client that went away is no reason to do anything else
                    let _ = answer.send(Ok(appended));
                }
                // the clients first: a writer that wakes would take their processor
                self.publish();
                if let Err(e) = self.log.rotate_if_long(self.seqs.peek()) {
                    self.broke("rotation", &e);
                }
            }
            Err(e) => {
                let reason = format!("writing the log failed: {e}");
                for (channel, load, answer, _) in answers {
                    self.shared.accounts.release_reserved(&channel, load);
                    let _ = answer.send(Err(AppendError::Doubt { reason: reason.clone() }));
                }
                self.broke("write", &e);
            }
        }
    }

    /// Whoever hears that a letter was put back and cannot note it looks at once whether the log holds
    /// it: so readers must see it before that.
    fn show_put_back(&mut self) {
        match self.log.sync() {
            Ok(()) => self.publish(),
            Err(e) => self.broke("sync", &e),
        }
    }

    fn place(&mut self, pending: Pending) -> (Pending, Seq) {
        let first = self.seqs.take(pending.load.events);
        (pending, first)
    }

    /// A dead letter's new seq stands beside it, durably, before the event is written: whoever starts
    /// after a crash looks it up. Where that fails, those requests are answered and taken out.
    fn note_redrives(&self, placed: &mut Vec<(Pending, Seq)>) {
        let mark = |(p, new): &(Pending, Seq)| Some((p.redrives?, DeadState::Redriving(*new)));
        let marks: Vec<_> = placed.iter().filter_map(mark).collect();
        let Err(e) = self.shared.dead.mark(&marks) else { return };
        let reason = format!("the dead letters cannot be marked: {e}");
        let (failed, rest) =
            std::mem::take(placed).into_iter().partition(|p| p.0.redrives.is_some());
        *placed = rest;
        let failed: Vec<_> = failed;
        let failed = failed.into_iter().map(|(p, _)| p);
        self.refuse_all(failed, &AppendError::Unavailable { reason });
    }

    fn refusal(&self) -> Option<String> {
        self.shared
            .refusing()
            .or_else(|| (!self.log.is_open()).then(|| "the log has no open segment".to_owned()))
    }

    fn refuse_all(&self, group: impl Iterator<Item = Pending>, error: &AppendError) {
        for p in group {
            self.shared.accounts.release_reserved(&p.channel, p.load);
            let _ = p.answer.send(Err(error.clone()));
        }
    }
}

/// How many of the waiting requests fit one group; at least one.
fn group_size(pending: &[Pending]) -> usize {
    let mut bytes = 0;
    let over = pending.iter().position(|p| {
        bytes += p.body.bytes.len();
        bytes > GROUP_BYTES
    });
    over.unwrap_or(pending.len()).max(1)
}
