//! The appender: gives out seqs, and sends groups of requests over a connection of its own, a few under
//! way at a time, so that they take effect in the order of their seqs.
//!
//! The only one that gives out seqs. What is sent is kept until it is decided, across lost connections
//! and restarts of Redis. Does not know schemas, HTTP or leases.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use redis::{Cmd, RedisWrite};

use super::connection::{Broken, Reply, next};
use super::entry::{EntryId, OVERHEAD, bytes_of};
use super::inbox::Group;
use super::scripts::Script;
use super::shared::{Link, Shared, Stage, lock, not_synced, stranger};
use crate::event::{MAX_SEQ, Seq};
use crate::queue::AppendError;
use crate::seq::{Seqs, Witness, belief_bound};
use crate::task;

/// Groups under way at a time: while one is answered, the next is being carried out. One, where each
/// waits for the server's sync.
const UNDER_WAY: usize = 3;
/// How much longer the answer of a group may take where the server is asked to sync first: it gives up
/// first, so that a slow disk is told from a server that is gone.
const GRACE: Duration = Duration::from_millis(500);
/// How often overdue requests are looked for while there is no link.
const LOOK: Duration = Duration::from_millis(50);

type Asking = Pin<Box<dyn Future<Output = Result<Reply, Broken>> + Send>>;

/// A group on its way: its script, and where asked for the server's word that it is synced.
struct Flight {
    script: Option<Asking>,
    sync: Option<Asking>,
    said: Option<Result<Reply, Broken>>,
    synced: Option<Result<Reply, Broken>>,
    sent_at: Duration,
    /// The last seq of its group: an answer is nobody else's.
    last: Seq,
}

impl Flight {
    /// Lets both go on; whether both have come back.
    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> bool {
        poll_one(&mut self.script, &mut self.said, cx);
        poll_one(&mut self.sync, &mut self.synced, cx);
        self.script.is_none() && self.sync.is_none()
    }
}

fn poll_one(
    asking: &mut Option<Asking>,
    said: &mut Option<Result<Reply, Broken>>,
    cx: &mut std::task::Context<'_>,
) {
    if let Some(future) = asking
        && let Poll::Ready(result) = future.as_mut().poll(cx)
    {
        (*asking, *said) = (None, Some(result));
    }
}

/// What became of a group.
enum Outcome {
    /// The stream holds it; `Err` where it is not known to be synced.
    Stored(Result<(), AppendError>),
    /// The stream goes on behind it, and does not hold it.
    Skipped,
    /// It never will, and its clients are told why.
    Void(String),
    /// As [`Outcome::Void`], and an entry of another writer stands above.
    Above(String),
}

/// The task's own state.
pub(super) struct Appender {
    pub shared: Arc<Shared>,
    pub seqs: Seqs,
}

impl Appender {
    /// Runs until the inbox is stopped and empty, and what was sent is decided or overdue.
    pub async fn run(mut self) {
        loop {
            match self.shared.link() {
                Some(link) if self.shared.why_broken(link.epoch).is_none() => {
                    match self.serve(&link).await {
                        Ok(()) => return,
                        Err(why) => self.shared.broken(link.epoch, why),
                    }
                }
                _ => {
                    if self.wait_for_a_link().await {
                        return;
                    }
                }
            }
        }
    }

    /// Without a link: what was not sent is refused, what is overdue is told so. Whether it is over.
    async fn wait_for_a_link(&mut self) -> bool {
        let refusing = self.shared.refusing();
        let silent = || format!("{}: no connection yet", self.shared.options.shown());
        self.shared.refuse_waiting(&refusing.unwrap_or_else(silent));
        self.shared.tell_the_overdue(self.shared.now());
        let stage = *self.shared.stage.borrow();
        if stage > Stage::Runs && self.shared.inbox.is_over() {
            // they may stand in the stream: whoever waits is not told more than that
            self.shared.tell_the_overdue(Duration::MAX);
            return true;
        }
        let mut link = self.shared.link.subscribe();
        let _ = tokio::time::timeout(LOOK, link.changed()).await;
        false
    }

    /// With a link: what is undecided is sent again, then what comes. `Ok` where it is over.
    async fn serve(&mut self, link: &Link) -> Result<(), Broken> {
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let most = if link.wait_aof { 1 } else { UNDER_WAY };
        let mut last = link.last;
        for (command, end) in self.again(link, &mut last) {
            flights.push_back(self.send(link, command, end).await);
        }
        // a group that was refused has made those behind it follow nothing: first they come back
        let mut followed = true;
        loop {
            let over = self.shared.inbox.is_over();
            if flights.is_empty() {
                (last, followed) = (self.shared.confirmed().max(link.last), true);
                if over {
                    return Ok(());
                }
            }
            let free = flights.len() < most && followed && !over;
            let sent_at = flights.front().map_or(Duration::MAX, |flight| flight.sent_at);
            tokio::select! {
                biased;
                // what another link has settled is not decided here once more
                () = self.given_up(link.epoch) => {
                    let why = self.shared.why_broken(link.epoch).unwrap_or_default();
                    return Err(Broken::Silent(why));
                }
                () = front(&mut flights), if !flights.is_empty() => {
                    let Some(flight) = flights.pop_front() else { continue };
                    followed &= self.decide(link, flight)?;
                }
                () = self.shared.inbox.wait(), if free => {
                    self.note_seen();
                    if let Some((command, end)) = self.next_group(link, last).await {
                        flights.push_back(self.send(link, command, end).await);
                        last = end;
                    }
                }
                () = self.overdue(sent_at.saturating_add(self.patience(link))), if !flights.is_empty() => {
                    let late = self.patience(link).as_millis();
                    return Err(Broken::Silent(format!("Redis has not answered within {late} ms")));
                }
            }
        }
    }

    /// What is undecided, to be sent again in order; `last` is the last seq of it.
    fn again(&self, link: &Link, last: &mut Seq) -> Vec<(Cmd, Seq)> {
        let undecided = lock(&self.shared.undecided);
        let one = |group: &Group| {
            let before = std::mem::replace(last, group.last);
            (Self::command(link, group, before), group.last)
        };
        undecided.iter().map(one).collect()
    }

    /// How long the answer of a group may take.
    fn patience(&self, link: &Link) -> Duration {
        let grace = if link.wait_aof { GRACE } else { Duration::ZERO };
        self.shared.options.timeout + grace
    }

    /// Returns when the oldest answer is overdue.
    async fn overdue(&self, due: Duration) {
        task::sleep(due.saturating_sub(self.shared.now())).await;
        self.shared.tell_the_overdue(self.shared.now());
    }

    /// Returns when somebody else found the link broken.
    async fn given_up(&self, epoch: u64) {
        let mut link = self.shared.link.subscribe();
        let ours = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.epoch == epoch);
        let _ = link.wait_for(|link| !ours(link)).await.map(drop);
    }

    fn note_seen(&mut self) {
        for (seq, witness) in self.shared.inbox.take_seen() {
            if !self.seqs.seen(seq, witness) {
                tracing::error!(%seq, "a peer claims to have seen seq {seq} of us, above what any clock allows: ignored");
            }
        }
    }

    /// Makes a group of what waits; how it is sent, and its last seq. `None` where nothing waits, or it
    /// was refused.
    async fn next_group(&mut self, link: &Link, last: Seq) -> Option<(Cmd, Seq)> {
        let pending = self.shared.inbox.take_group();
        if pending.is_empty() {
            return None;
        }
        self.seqs.watch_clock();
        // above what the stream was ever given, whoever gave it
        self.seqs.seen(link.last.max(last), Witness::Own);
        let events: u64 = pending.iter().map(|p| p.load.events).sum();
        if let Err(e) = self.reserve(events).await {
            let reason = format!("no identities can be reserved: {e}");
            self.shared.refuse_all(pending, &reason);
            return None;
        }
        let due = self.shared.now() + self.patience(link);
        let group = Group::place(pending, self.seqs.take(events), due);
        let (command, end) = (Self::command(link, &group, last), group.last);
        lock(&self.shared.undecided).push_back(group);
        Some((command, end))
    }

    /// Makes the ceiling for `n` more seqs durable, where it is not yet.
    async fn reserve(&mut self, n: u64) -> std::io::Result<()> {
        if matches!(self.seqs.ceiling_for(n), Ok(None)) {
            return Ok(());
        }
        let spare = Seqs::new(1, self.shared.options.clock.clone());
        let mut seqs = std::mem::replace(&mut self.seqs, spare);
        let shared = self.shared.clone();
        let (seqs, result) = task::blocking(move || {
            let result = shared.reserve(&mut seqs, n);
            (seqs, result)
        })
        .await;
        self.seqs = seqs;
        result
    }

    /// Sends a script and starts its journey: what is sent first is carried out first.
    async fn send(&self, link: &Link, command: Cmd, last: Seq) -> Flight {
        let sync = link.wait_aof.then(|| -> Asking {
            let mut wait = redis::cmd("WAITAOF");
            wait.arg(1).arg(0).arg(self.shared.options.timeout.as_millis().to_string());
            Box::pin(link.append.clone().send(wait))
        });
        let mut flight = Flight {
            script: Some(Box::pin(link.append.clone().send(command))),
            sync,
            said: None,
            synced: None,
            sent_at: self.shared.now(),
            last,
        };
        poll_fn(|cx| {
            flight.poll(cx);
            Poll::Ready(())
        })
        .await;
        flight
    }

    fn command(link: &Link, group: &Group, last: Seq) -> Cmd {
        match group.redrives {
            Some(old) => {
                let mut call = link.scripts.call(Script::Redrive, 5, 64);
                call.arg(&*link.run).arg(last.0).arg(group.first.0).arg(old.0);
                call.arg(OVERHEAD);
                call
            }
            None => append(link, group, last),
        }
    }

    /// What the front group's answer means; `false` where those behind it follow nothing any more.
    fn decide(&mut self, link: &Link, flight: Flight) -> Result<bool, Broken> {
        let took = self.shared.now().saturating_sub(flight.sent_at);
        self.shared.options.append_seconds.observe(took.as_secs_f64());
        let last = flight.last;
        let outcome = self.read(link, flight)?;
        // held to the end: groups are decided in their order, whoever decides
        let shared = self.shared.clone();
        let mut undecided = lock(&shared.undecided);
        let Some(group) = undecided.pop_front_if(|group| group.last == last) else {
            return Err(Broken::Silent("another connection has settled what it sent".to_owned()));
        };
        match outcome {
            Outcome::Stored(synced) => {
                shared.stored(group, &synced);
                Ok(true)
            }
            Outcome::Skipped => {
                shared.skipped(group);
                Ok(true)
            }
            Outcome::Void(reason) => {
                shared.void(group, &AppendError::Unavailable { reason });
                Ok(false)
            }
            Outcome::Above(id) => {
                self.go_above(&id);
                let reason = format!(
                    "another program has put entry {id} into the stream, above the next seq; nothing of this request is stored, and the next one is taken"
                );
                shared.void(group, &AppendError::Unavailable { reason });
                Ok(false)
            }
        }
    }

    fn read(&self, link: &Link, flight: Flight) -> Result<Outcome, Broken> {
        let said = flight.said.unwrap_or_else(|| Err(Broken::odd("no answer")));
        let (word, mut rest) = match said {
            Ok(reply) => reply.word()?,
            // the first entry was refused, hence nothing was written
            Err(e) if e.says("OOM") || e.says("MISCONF") || e.says("NOREPLICAS") => {
                return Ok(Outcome::Void(format!("Redis takes nothing: {e}")));
            }
            Err(e) => return Err(e),
        };
        match word.as_str() {
            "added" | "there" => Ok(Outcome::Stored(synced(link, flight.synced)?)),
            "skipped" => Ok(Outcome::Skipped),
            "above" => Ok(Outcome::Above(next(&mut rest)?.text()?)),
            "chain" => {
                let stands = next(&mut rest)?.number()?;
                if stands == self.shared.confirmed().0.max(link.last.0) {
                    // the group before it was refused
                    return Ok(Outcome::Void(
                        "the request before it was refused; nothing of this one is stored"
                            .to_owned(),
                    ));
                }
                Err(Broken::Odd(format!("the stream ends at seq {stands}, where another is due")))
            }
            other => Err(stranger(other).unwrap_or_else(|| Broken::odd(other))),
        }
    }

    /// Seqs go on above another writer's entry; one that no clock allows is not followed.
    fn go_above(&mut self, id: &str) {
        let entry = EntryId::read(id).unwrap_or_default();
        tracing::error!(
            entry = id,
            "another program has put entry {id} into the stream {}: a group of requests was refused whole",
            self.shared.keys.stream
        );
        if entry.first > belief_bound().0.min(MAX_SEQ) {
            self.shared.refuse(Some(format!(
                "no seq can be given above entry {id}, which another program has put into the stream: set queue_redis_stream to another name once this one has drained"
            )));
            return;
        }
        self.seqs.seen(Seq(entry.first), Witness::Own);
    }
}

/// Returns when the oldest flight has come back; the others go on meanwhile.
async fn front(flights: &mut VecDeque<Flight>) {
    poll_fn(|cx| {
        let mut first = None;
        for flight in &mut *flights {
            let back = flight.poll(cx);
            first = first.or(Some(back));
        }
        match first {
            Some(true) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
}

/// Whether the server says that a group is synced, where it was asked.
fn synced(
    link: &Link,
    said: Option<Result<Reply, Broken>>,
) -> Result<Result<(), AppendError>, Broken> {
    if !link.wait_aof {
        return Ok(Ok(()));
    }
    let local = match said {
        Some(Ok(reply)) => {
            let mut numbers = reply.list()?.into_iter();
            next(&mut numbers)?.number()?
        }
        Some(Err(e @ Broken::Silent(_))) => return Err(e),
        Some(Err(_)) | None => 0,
    };
    if local > 0 {
        return Ok(Ok(()));
    }
    Ok(Err(not_synced()))
}

fn append(link: &Link, group: &Group, last: Seq) -> Cmd {
    let channels = group.channels();
    let (mut args, mut bytes, mut longest) = (6 + 3 * channels.len(), 0_usize, 0_u64);
    for (header, payloads) in group.entries() {
        let own = bytes_of(payloads);
        longest = longest.max(own);
        args += 2 + payloads.len();
        bytes += usize::try_from(own).unwrap_or(0) + header.len() + 16 * (2 + payloads.len());
    }
    let mut call = link.scripts.call(Script::Append, args, bytes + 128 * channels.len());
    call.arg(&*link.run).arg(last.0).arg(group.first.0).arg(group.last.0).arg(longest);
    call.arg(channels.len());
    for (channel, load) in channels {
        call.arg(channel.as_str()).arg(load.events).arg(load.bytes);
    }
    for (header, payloads) in group.entries() {
        call.arg(header).arg(payloads.len());
        for payload in payloads {
            call.write_arg(payload);
        }
    }
    call
}
