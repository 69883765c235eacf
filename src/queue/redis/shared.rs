//! What the parts of the queue share: the link to Redis, what is believed of it, and why appends are
//! refused.
//!
//! Does not ask Redis anything itself.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::acks::Acks;
use super::address::{Keys, Options};
use super::book::Book;
use super::connection::{Broken, Wire};
use super::dead_index::DeadIndex;
use super::entry::bytes_of;
use super::inbox::{Group, Inbox};
use super::leases::Leases;
use super::reader::Reader;
use super::scripts::Scripts;
use crate::event::{Micros, Seq};
use crate::queue::accounts::Accounts;
use crate::queue::file::state::StateFile;
use crate::queue::{AppendError, file};
use crate::watermark::Watermark;

/// Redis, as long as it answers and the stream is ours.
#[derive(Clone)]
pub(super) struct Link {
    /// Which one since the start.
    pub epoch: u64,
    /// What every script is told: what an earlier link still has under way is refused.
    pub run: Arc<str>,
    /// The appender's alone: what is sent first takes effect first.
    pub append: Wire,
    /// For everything else.
    pub work: Wire,
    pub scripts: Arc<Scripts>,
    /// The last seq that the stream was given.
    pub last: Seq,
    /// Answers wait until the server has synced.
    pub wait_aof: bool,
}

/// How the meeting with Redis went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contact {
    /// Not yet.
    Waited,
    /// Nobody answers, or not as it should; tried again.
    Failed,
    /// It is another node's: who that is.
    Refused(String),
    /// It was had.
    Made,
}

/// How far the queue is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Runs,
    /// What is under way is finished.
    Closes,
    /// The last witness is written.
    Over,
}

/// What the server was last seen to be.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Names and values, for `/healthz`.
    pub server: Vec<(String, String)>,
    /// Where it would forget what it confirmed.
    pub doubts: Vec<String>,
    /// When the oldest event in the stream was accepted.
    pub oldest: Option<Micros>,
    /// Bytes of payload of the longest entry there is.
    pub biggest: u64,
    /// About how many events an entry holds, of those that are to be read.
    pub an_entry: u64,
    /// Entries that are not ours and were moved away.
    pub foreign: u64,
    /// The stream holds more than what is counted as ours.
    pub strangers: bool,
    /// What Redis was found to have lost, a line each.
    pub losses: Vec<String>,
}

/// All of it.
pub(super) struct Shared {
    pub options: Options,
    pub keys: Keys,
    /// This start.
    pub run: String,
    pub accounts: Accounts,
    pub node: Mutex<StateFile>,
    pub book: Mutex<Book>,
    pub link: watch::Sender<Option<Link>>,
    pub contact: watch::Sender<Contact>,
    pub stage: watch::Sender<Stage>,
    /// The epoch of the link that was found broken, and why.
    trouble: Mutex<Option<(u64, String)>>,
    pub alarm: Notify,
    pub inbox: Inbox,
    /// Groups that were sent, or must be sent again, in order.
    pub undecided: Mutex<VecDeque<Group>>,
    /// Every seq up to it is decided: stored, or void.
    decided: AtomicU64,
    /// The last seq that Redis has confirmed.
    confirmed: AtomicU64,
    /// The first seq that this start met or stored; 0 before there is one.
    begins: AtomicU64,
    /// Rung whenever there may be more to lease, and on stop.
    pub more: Notify,
    pub leases: Mutex<Leases>,
    /// How far each channel is resolved.
    pub marks: Arc<Watermark>,
    pub reading: tokio::sync::Mutex<Reader>,
    pub acks: Acks,
    /// Which events have a dead letter.
    pub dead: Mutex<DeadIndex>,
    /// Seqs that were refused, and are tried again.
    pub tried: Mutex<BTreeSet<Seq>>,
    refusing: Mutex<Option<String>>,
    pub certain: AtomicBool,
    pub leasing: AtomicBool,
    pub view: Mutex<View>,
    /// One operator's decision about dead letters at a time.
    pub deciding: tokio::sync::Mutex<()>,
    /// Held for writing while a loss is reckoned: nothing is resolved meanwhile.
    pub gate: tokio::sync::RwLock<()>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(options: Options, run: String, node: StateFile, book: Book, certain: bool) -> Self {
        let accounts = Accounts::new(options.bounds(), options.clock.clone());
        let losses = book.record.losses.iter().map(ToString::to_string).collect();
        let waits = format!("{} has not answered yet", options.shown());
        let base = u64::try_from(options.clock.wall().0).unwrap_or(0);
        Self {
            keys: Keys::of(&options),
            run,
            accounts,
            node: Mutex::new(node),
            book: Mutex::new(book),
            link: watch::channel(None).0,
            contact: watch::channel(Contact::Waited).0,
            stage: watch::channel(Stage::Runs).0,
            trouble: Mutex::default(),
            alarm: Notify::new(),
            inbox: Inbox::default(),
            undecided: Mutex::default(),
            decided: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            begins: AtomicU64::new(0),
            more: Notify::new(),
            leases: Mutex::new(Leases::new()),
            marks: Arc::new(Watermark::unmet(base)),
            reading: tokio::sync::Mutex::default(),
            acks: Acks::default(),
            dead: Mutex::default(),
            tried: Mutex::default(),
            refusing: Mutex::new(Some(waits)),
            certain: AtomicBool::new(certain),
            leasing: AtomicBool::new(true),
            view: Mutex::new(View { losses, ..View::default() }),
            deciding: tokio::sync::Mutex::default(),
            gate: tokio::sync::RwLock::default(),
            options,
        }
    }

    /// Whether an event that is read again is in somebody's hands, or resolved while its entry still
    /// stands in the stream. Asked under the lock under which it goes from one to the other.
    pub fn has(&self, leases: &Leases, seq: Seq) -> bool {
        leases.holds(seq) || self.acks.holds(seq)
    }

    pub fn now(&self) -> Duration {
        self.options.clock.mono()
    }

    pub fn link(&self) -> Option<Link> {
        self.link.borrow().clone()
    }

    /// The link, once there is one, waited for at most so long.
    pub async fn linked(&self, most: Duration) -> Option<Link> {
        let mut link = self.link.subscribe();
        let there = tokio::time::timeout(most, link.wait_for(Option::is_some)).await;
        there.ok()?.ok().and_then(|link| link.clone())
    }

    /// That link is of no more use.
    pub fn broken(&self, epoch: u64, why: impl std::fmt::Display) {
        let mut trouble = lock(&self.trouble);
        if trouble.as_ref().is_none_or(|(before, _)| *before < epoch) {
            *trouble = Some((epoch, why.to_string()));
        }
        drop(trouble);
        self.alarm.notify_one();
    }

    /// Why the link of that epoch is of no more use, where it is not.
    pub fn why_broken(&self, epoch: u64) -> Option<String> {
        let trouble = lock(&self.trouble);
        trouble.as_ref().filter(|(broken, _)| *broken >= epoch).map(|(_, why)| why.clone())
    }

    pub fn refusing(&self) -> Option<String> {
        lock(&self.refusing).clone()
    }

    /// Appends are refused from now on, or taken again; said once each.
    pub fn refuse(&self, reason: Option<String>) {
        let mut refusing = lock(&self.refusing);
        match (&*refusing, &reason) {
            (before, Some(why)) if before.as_ref() != Some(why) => {
                tracing::error!("appends are refused: {why}");
            }
            (Some(_), None) => tracing::info!("appends are taken"),
            _ => {}
        }
        *refusing = reason;
    }

    pub fn decided(&self) -> Seq {
        Seq(self.decided.load(Ordering::SeqCst))
    }

    pub fn confirmed(&self) -> Seq {
        Seq(self.confirmed.load(Ordering::SeqCst))
    }

    /// The first seq that this start met or stored.
    pub fn begins(&self) -> Seq {
        Seq(self.begins.load(Ordering::SeqCst))
    }

    /// This seq was met, or stored, unless another was before.
    pub fn begins_with(&self, seq: Seq) {
        let _ = self.begins.compare_exchange(0, seq.0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// A start, a loss that was dealt with, or a void seq that Redis noted: the stream goes on from
    /// here.
    pub fn go_on_from(&self, last: Seq) {
        self.decided.fetch_max(last.0, Ordering::SeqCst);
        self.confirmed.fetch_max(last.0, Ordering::SeqCst);
    }

    /// The stream holds that group. `synced` is why its clients cannot be told so.
    pub fn stored(&self, mut group: Group, synced: &Result<(), AppendError>) {
        // counted before anybody can lease it, or it could leave the queue before it came in
        self.accounts.accepted(group.requests.iter().map(|r| (&r.channel, r.load)));
        self.begins_with(group.first);
        // shown before anybody can lease it, or S could pass it
        let requests = group.requests.iter();
        self.marks.with(|marks| {
            marks.written(requests.map(|r| (&r.channel, r.appended.first, r.appended.last)));
            marks.shown(group.last);
        });
        let sizes: Vec<u64> = group.entries().map(|(_, payloads)| bytes_of(payloads)).collect();
        let events = group.last.0 - group.first.0 + 1;
        let mut view = lock(&self.view);
        view.biggest = view.biggest.max(sizes.iter().copied().max().unwrap_or(0));
        view.an_entry = view.an_entry.max(events / (sizes.len() as u64).max(1));
        drop(view);
        self.confirmed.store(group.last.0, Ordering::SeqCst);
        self.decided.fetch_max(group.last.0, Ordering::SeqCst);
        group.answer(synced);
        self.more.notify_waiters();
    }

    /// The stream does not hold that group, and never will: its seqs are void. S does not pass them
    /// before something is stored above, since a start would not know of them.
    pub fn void(&self, mut group: Group, why: &AppendError) {
        for request in &group.requests {
            self.accounts.release_reserved(&request.channel, request.load);
        }
        group.answer(&Err(why.clone()));
    }

    /// Groups that stand in the stream up to `last` are stored, though nobody said so; those that begin
    /// with `skipped` are not. `synced` is why their clients cannot be told so.
    pub fn settle_up_to(
        &self,
        last: Seq,
        skipped: &BTreeSet<Seq>,
        synced: &Result<(), AppendError>,
    ) {
        // held to the end: groups are decided in their order, whoever decides
        let mut undecided = lock(&self.undecided);
        while let Some(group) = undecided.pop_front_if(|group| group.last <= last) {
            if skipped.contains(&group.first) {
                self.skipped(group);
            } else {
                self.stored(group, synced);
            }
        }
    }

    /// The stream goes on behind a group that was to put a letter back, and does not hold it.
    pub fn skipped(&self, group: Group) {
        self.go_on_from(group.last);
        let reason = "this dead letter waits for no decision".to_owned();
        self.void(group, &AppendError::Unavailable { reason });
    }

    /// Whoever waits longer than a command may take is told that it is open.
    pub fn tell_the_overdue(&self, now: Duration) {
        let reason = format!(
            "Redis has not answered within queue_redis_timeout_ms ({} ms)",
            self.options.timeout.as_millis()
        );
        for group in lock(&self.undecided).iter_mut().filter(|group| group.due <= now) {
            group.answer(&Err(AppendError::Doubt { reason: reason.clone() }));
        }
    }

    /// Takes a request in for the appender.
    ///
    /// # Errors
    /// [`AppendError`] where it is refused before anything was sent.
    pub fn take_in(&self, pending: super::inbox::Pending) -> Result<(), AppendError> {
        if let Some(reason) = self.refusing() {
            return Err(AppendError::Unavailable { reason });
        }
        if !self.certain.load(Ordering::SeqCst) {
            return Err(AppendError::Unavailable { reason: NOT_CERTAIN.to_owned() });
        }
        if pending.payloads.len() > MAX_REQUEST {
            return Err(AppendError::TooLarge { ceiling: "100000 events a request on Redis" });
        }
        let reserved = self.accounts.reserve(&pending.channel, pending.load);
        reserved.map_err(|e| match e {
            AppendError::Full { retry_after, ceiling } => {
                AppendError::Full { retry_after, ceiling: self.options.ceiling_key(ceiling) }
            }
            AppendError::TooLarge { ceiling } => {
                AppendError::TooLarge { ceiling: self.options.ceiling_key(ceiling) }
            }
            other => other,
        })?;
        if let Err((back, reason)) = self.inbox.push(pending) {
            self.accounts.release_reserved(&back.channel, back.load);
            return Err(AppendError::Unavailable { reason: reason.to_owned() });
        }
        Ok(())
    }

    /// Everything that was not sent is refused: it is certain that it is not stored.
    pub fn refuse_waiting(&self, reason: &str) {
        self.refuse_all(self.inbox.take_all(), reason);
    }

    /// These were not sent.
    pub fn refuse_all(&self, pending: Vec<super::inbox::Pending>, reason: &str) {
        for pending in pending {
            self.accounts.release_reserved(&pending.channel, pending.load);
            let refused = AppendError::Unavailable { reason: reason.to_owned() };
            let _ = pending.answer.send(Err(refused));
        }
    }

    /// Makes the ceiling for `n` more seqs durable, and some beyond. Blocks on the disk.
    pub fn reserve(&self, seqs: &mut crate::seq::Seqs, n: u64) -> std::io::Result<()> {
        if let Some(most) = seqs.ceiling_for(n).map_err(std::io::Error::other)? {
            let ceiling = most.min(seqs.peek().0 + n + RESERVED);
            lock(&self.node).update(|state| state.ceiling = state.ceiling.max(ceiling))?;
            seqs.reserved(ceiling);
        }
        Ok(())
    }

    /// The last seq that is known to have been given out, by what was written down of it.
    pub fn given(&self) -> Seq {
        let told = lock(&self.node).record.history.released.values().copied().max();
        Seq(lock(&self.book).record.last.max(told.unwrap_or(0)))
    }

    /// The lowest seq that was never given out, as far as anybody knows.
    pub fn ceiling(&self) -> u64 {
        lock(&self.node).record.ceiling
    }
}

/// The most events of a request: one script adds them, and Redis does nothing else meanwhile.
const MAX_REQUEST: usize = 100_000;
/// How many seqs are reserved at a time: a loss while the node was down is bounded by it, so fewer than
/// for a log that knows its own end.
const RESERVED: u64 = 65_536;

/// What a script said that means that the link must be given up.
pub(super) fn stranger(word: &str) -> Option<Broken> {
    let text = match word {
        "gone" => "the stream or what is kept beside it is gone",
        "short" => "the stream holds less than is counted",
        "stranger" => "another process of this node has taken the stream",
        "chain" => "the stream does not end where it should",
        _ => return None,
    };
    Some(Broken::Odd(text.to_owned()))
}

/// What clients are told where answers wait for a sync that did not come.
pub(super) fn not_synced() -> AppendError {
    let reason = "Redis holds it, and has not synced it in time".to_owned();
    AppendError::Doubt { reason }
}

/// As the file queue says it.
pub(super) const NOT_CERTAIN: &str = "this node's first start: storage or a peer must be reached once, to learn which seqs are in use";

/// Where the state of the node lies.
pub(super) fn state_path(options: &Options) -> std::path::PathBuf {
    file::state::StateFile::path(&options.path)
}
