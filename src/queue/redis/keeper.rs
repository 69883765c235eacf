//! The keeper of the link: connects, takes the stream, looks whether something was lost, and only then
//! lets the others work; looks after both while they do; and keeps the witness in `redis.state`.
//!
//! Whoever meets trouble says so, and the keeper begins again. Does not append, lease or acknowledge.

use std::sync::Arc;
use std::time::Duration;

use super::acks::check;
use super::address::Options;
use super::claim::{self, Claim, Claimed};
use super::connection::{Broken, Wire, next};
use super::durability::{self, Server};
use super::entry::Names;
use super::loss::{self, Counted};
use super::scripts::{Script, Scripts};
use super::shared::{Contact, Link, Shared, Stage, lock, not_synced};
use crate::event::{ChannelName, Seq};
use crate::queue::AppendError;
use crate::seq::{Witness, belief_bound};
use crate::task;
use crate::watermark::Start;

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// The link is back within 5 s of Redis.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// A link that held for so long was a good one.
const STEADY: Duration = Duration::from_secs(1);
/// Every script looks whether something is lost; where none runs, this one does.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// Every so many beats the group is looked into for what others have taken.
const GATHER_EVERY: u32 = 15;
/// How often the witness is written, where it has changed.
const NOTE_EVERY: Duration = Duration::from_millis(200);

/// Why the stream was not had.
enum Why {
    Broken(Broken),
    /// It is another node's.
    Other(String),
    /// For people.
    Text(String),
}

impl From<Broken> for Why {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// The task's own state.
pub(super) struct Keeper {
    pub shared: Arc<Shared>,
    epoch: u64,
    /// The stream was had at least once.
    met: bool,
    warned: bool,
    /// Entries were claimed back, or may have been: all that is pending is read again with the next
    /// link.
    reread: bool,
    names: Names,
}

impl Keeper {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, epoch: 0, met: false, warned: false, reread: false, names: Names::default() }
    }

    /// Runs until the queue is over.
    pub async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        while *self.shared.stage.borrow() < Stage::Over {
            match self.meet().await {
                Ok(link) => {
                    let had = self.shared.now();
                    let why = self.look_after(&link).await;
                    if self.shared.now().saturating_sub(had) > STEADY {
                        backoff = FIRST_BACKOFF;
                    } else if why.is_some() {
                        // what breaks at once would break for ever, as fast as it can
                        task::sleep(backoff).await;
                        backoff = (backoff * 2).min(MAX_BACKOFF);
                    }
                    self.shared.link.send_replace(None);
                    self.shared.more.notify_waiters();
                    if let Some(why) = why {
                        self.shared.refuse(Some(self.named(&why)));
                    }
                }
                Err(why) => {
                    self.say(why);
                    let mut stage = self.shared.stage.subscribe();
                    let over = stage.wait_for(|stage| *stage == Stage::Over);
                    let _ = tokio::time::timeout(backoff, over).await.map(drop);
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
        self.shared.link.send_replace(None);
    }

    fn named(&self, why: &str) -> String {
        format!("{}: {why}", self.shared.options.shown())
    }

    fn say(&self, why: Why) {
        let (text, refused) = match why {
            Why::Broken(broken) => (self.named(&broken.to_string()), false),
            Why::Text(text) => (self.named(&text), false),
            Why::Other(owner) => {
                let Options { stream, origin, .. } = &self.shared.options;
                let text = format!(
                    "the stream {stream} belongs to node_name {owner}, not to {origin}: events in it keep their identity; give {origin} a queue_redis_stream of its own, or set node_name = {owner}"
                );
                (text, true)
            }
        };
        let contact = if refused { Contact::Refused(text.clone()) } else { Contact::Failed };
        self.shared.refuse(Some(text));
        self.shared.contact.send_replace(contact);
    }

    /// Connects and takes the stream; then the others may work.
    async fn meet(&mut self) -> Result<Link, Why> {
        let shared = self.shared.clone();
        let work = Wire::open(&shared.options).await?;
        let append = Wire::open(&shared.options).await?;
        let server = durability::ask(&work).await?;
        if let Some(refusal) = server.refusal(&shared.keys) {
            return Err(Why::Text(refusal));
        }
        let scripts = Arc::new(Scripts::load(&work, &shared.keys).await?);
        self.epoch += 1;
        let run: Arc<str> = format!("{}.{}", shared.run, self.epoch).into();
        let claimed = match claim::claim(&shared, &work, &scripts, &run).await? {
            Claim::Had(claimed) => claimed,
            Claim::Other(owner) => return Err(Why::Other(owner)),
            Claim::Alive(text) => return Err(Why::Text(text)),
        };
        let wait_aof = shared.options.wait_aof && server.can_wait_for_aof();
        let epoch = self.epoch;
        let mut link = Link { epoch, run, append, work, scripts, last: claimed.last, wait_aof };
        // groups whose answers were lost: they are there, or they are sent again
        let synced = if wait_aof { synced(&link).await } else { Ok(()) };
        let skipped = shared.skipped_up_to(&link, claimed.last).await?;
        shared.settle_up_to(claimed.last, &skipped, &synced);
        self.take_note(&claimed, &server, wait_aof);
        let parked = claim::gather(&shared, &link, &mut self.reread).await?;
        if self.met {
            shared.reading.lock().await.restart(epoch, self.reread);
            self.reread = false;
            loss::while_up(&shared, &link, &claimed).await?;
            shared.park_again(parked, claimed.first);
            link.last = shared.confirmed().max(claimed.last);
        } else {
            let found = loss::look_at_start(&shared, &link, &claimed).await?;
            self.begin(&claimed, &link, parked, found.as_ref()).await;
            link.last = loss::at_start(&shared, &link, &claimed, found).await?;
            shared.learn_dead(&link).await?;
        }
        shared.go_on_from(link.last);
        note(&shared, false).await;
        shared.link.send_replace(Some(link.clone()));
        shared.refuse(None);
        shared.contact.send_replace(Contact::Made);
        shared.more.notify_waiters();
        shared.acks.wake();
        Ok(link)
    }

    /// The first time: where delivery begins, what is resolved, and above what seqs are drawn. `found`
    /// is what the stream was counted to hold.
    async fn begin(
        &mut self,
        claimed: &Claimed,
        link: &Link,
        parked: Vec<ChannelName>,
        found: Option<&Counted>,
    ) {
        self.met = true;
        let shared = &self.shared;
        if let Some(first) = claimed.first {
            shared.begins_with(Seq(first.first));
        }
        let given = shared.given().max(link.last);
        shared.inbox.seen(given, Witness::Own);
        if Seq(claimed.top.first) < belief_bound() {
            shared.inbox.seen(Seq(claimed.top.first), Witness::Own);
        }
        // another program's first entry may stand above all of ours
        let released = claimed.first.map_or(link.last, |first| Seq(first.first.saturating_sub(1)));
        let released = released.min(link.last);
        let oldest = released.next();
        {
            let mut leases = lock(&shared.leases);
            leases.begin(released);
            for channel in &parked {
                leases.park(channel, "found so at start");
                leases.follows(channel, std::iter::once(oldest));
                tracing::warn!(%channel, "channel {channel} is parked since an earlier run; its events are tried again at once");
            }
        }
        let start = Start {
            assigned: given,
            read: released,
            end: link.last,
            shown: link.last,
            backlog: backlog(claimed, found),
            parked: parked.into_iter().map(|channel| (channel, oldest)).collect(),
            base: 0,
        };
        shared.marks.with(|marks| {
            marks.begin(start);
            if !claimed.known {
                // the counts may be gone, and not the stream
                marks.uncounted(Seq(claimed.top.first));
            }
        });
        shared.reading.lock().await.begin(link.epoch, claimed.handed);
        self.reread = false;
    }

    fn take_note(&mut self, claimed: &Claimed, server: &Server, wait_aof: bool) {
        let wanted = self.shared.options.wait_aof;
        let doubts = server.doubts(wanted);
        if !std::mem::replace(&mut self.warned, true) {
            for doubt in &doubts {
                tracing::error!("{doubt}");
            }
            if let Some(warning) = server.warning(wait_aof) {
                tracing::warn!("{warning}");
            }
            let strangers = claimed.len.saturating_sub(claimed.entries);
            if strangers > 0 {
                tracing::error!(
                    entries = strangers,
                    "the stream {} holds {strangers} entries that this program did not write, from {} on: those that nobody has acknowledged are moved to {} as they are",
                    self.shared.keys.stream,
                    claimed.first.map_or_else(String::new, |first| first.to_string()),
                    self.shared.keys.dlq
                );
            }
        }
        let mut view = lock(&self.shared.view);
        (view.server, view.doubts) = (server.facts(wait_aof), doubts);
        view.biggest = view.biggest.max(claimed.biggest);
        view.an_entry = view.an_entry.max(claimed.total / claimed.entries.max(1));
        view.foreign = claimed.foreign;
        view.strangers = claimed.len > claimed.entries;
    }

    /// Looks after the link until it is of no more use: why, or `None` where the queue is over.
    async fn look_after(&mut self, link: &Link) -> Option<String> {
        let (shared, mut stage) = (self.shared.clone(), self.shared.stage.subscribe());
        let mut beats = 0;
        let (mut beat_at, mut note_at) = (shared.now() + BEAT_EVERY, shared.now() + NOTE_EVERY);
        loop {
            if let Some(why) = shared.why_broken(link.epoch) {
                return Some(why);
            }
            let now = shared.now();
            if now >= note_at && *stage.borrow() == Stage::Runs {
                note(&shared, false).await;
                note_at = shared.now() + NOTE_EVERY;
            }
            if now >= beat_at {
                beats += 1;
                if let Err(why) = self.beat(link, beats % GATHER_EVERY == 0).await {
                    return Some(why.to_string());
                }
                beat_at = shared.now() + BEAT_EVERY;
            }
            let wait = note_at.min(beat_at).saturating_sub(shared.now());
            tokio::select! {
                () = shared.alarm.notified() => {}
                () = task::sleep(wait) => {}
                over = async { stage.wait_for(|stage| *stage == Stage::Over).await.is_ok() } => {
                    if over {
                        self.leave(link).await;
                    }
                    return None;
                }
            }
        }
    }

    /// Says that this node lives, and looks whether the stream is as it should be.
    async fn beat(&mut self, link: &Link, gather: bool) -> Result<(), Broken> {
        let shared = self.shared.clone();
        let known = shared.confirmed();
        let mut call = link.scripts.call(Script::Beat, 2, 64);
        call.arg(&*link.run).arg(0);
        let (word, mut rest) = link.work.ask(&call).await?.word()?;
        check(&word, "here")?;
        let last = Seq(next(&mut rest)?.number()?);
        let (entries, len) = (next(&mut rest)?.number()?, next(&mut rest)?.number()?);
        let (foreign, head) = (next(&mut rest)?.number()?, next(&mut rest)?.bytes()?);
        let there = next(&mut rest)?.number()?;
        if last < known || len < entries || there == 0 {
            return Err(Broken::Odd(format!(
                "the stream ends at seq {last} with {len} entries, where {known} and {entries} are due"
            )));
        }
        let oldest = self.names.head(&head).map(|head| head.received_at);
        {
            let mut view = lock(&shared.view);
            (view.oldest, view.foreign, view.strangers) = (oldest, foreign, len > entries);
        }
        if gather {
            claim::gather(&shared, link, &mut self.reread).await?;
            if self.reread {
                return Err(Broken::Odd("another consumer had taken entries".to_owned()));
            }
        }
        Ok(())
    }

    /// The last beat of a stop in order: another process may take over at once.
    async fn leave(&self, link: &Link) {
        let mut call = link.scripts.call(Script::Beat, 2, 64);
        call.arg(&*link.run).arg(1);
        if let Err(why) = link.work.ask(&call).await {
            tracing::warn!("{}", self.named(&why.to_string()));
        }
    }
}

/// The channels that may have unresolved events: those that are counted and those that were found, and
/// any, where more stands there than is counted, or less.
fn backlog(claimed: &Claimed, found: Option<&Counted>) -> Vec<Option<ChannelName>> {
    let counted = claimed.channels.iter().map(|(channel, _)| channel);
    let found = found.into_iter().flat_map(|found| found.loads.keys());
    let named = counted.chain(found).cloned().map(Some);
    let unnamed = (claimed.len != claimed.entries).then_some(None);
    named.chain(unnamed).collect()
}

/// Writes what is known of the stream into `redis.state`, where it has changed.
pub(super) async fn note(shared: &Arc<Shared>, closed: bool) {
    let last = shared.confirmed().0;
    let (channels, _, _) = shared.accounts.snapshot();
    let queued: u64 = channels.iter().map(|(_, counts)| counts.queued).sum();
    let dead_letters = lock(&shared.dead).len() as u64;
    let writing = shared.clone();
    let written = task::blocking(move || {
        lock(&writing.book).update(|record| {
            // a start that has not met its stream knows nothing better
            record.last = record.last.max(last);
            (record.queued, record.dead_letters, record.closed) = (queued, dead_letters, closed);
        })
    });
    if let Err(e) = written.await {
        tracing::error!(
            "redis.state cannot be written: {e}; a loss while this node is down might go unnoticed"
        );
    }
}

/// Whether what was written before is synced.
async fn synced(link: &Link) -> Result<(), AppendError> {
    let mut wait = redis::cmd("WAITAOF");
    let most = link.work.timeout();
    wait.arg(1).arg(0).arg(most.as_millis().to_string());
    let said = link.work.ask_within(&wait, most * 2).await.and_then(|reply| {
        let mut numbers = reply.list()?.into_iter();
        next(&mut numbers)?.number()
    });
    match said {
        Ok(local) if local > 0 => Ok(()),
        _ => Err(not_synced()),
    }
}
