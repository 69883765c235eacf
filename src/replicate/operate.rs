//! What an operator asks of a node that pulls: how its peers stand, that rows in quarantine are tried
//! again, and that rows of our own which were lost come back from a peer.
//!
//! One work that changes something at a time. It goes on to its end though nobody hears, and ends when
//! the node stops. Does not know the control socket, nor which storage it is.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};

use super::backoff::Backoff;
use super::recover::Recovery;
use super::status::PeerStatus;
use super::{Peering, Source};
use crate::event::{Origin, Seq};
use crate::life::History;
use crate::storage::mend::{Kept, Mend, Retried, Retry};
use crate::storage::{Kind, StorageError};
use crate::task;

/// Rows that are tried again in one transaction.
const PAGE_ROWS: usize = 500;
/// Bytes of payload of them.
const PAGE_BYTES: usize = 1 << 20;
/// How often a storage or a peer that does not answer is asked again.
pub(super) const PATIENCE: u32 = 8;
/// How long it is left in peace between.
pub(super) const OF_OUTAGES: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// The middle of the dice: nobody else waits beside an operator.
pub(super) const DICE: u64 = 250;

const BUSY: &str = "another `replicon recover` or `replicon peers retry` is under way on this node; wait until it has ended (its lines stand in the node's log), then run this again";
const STOPPED: &str =
    "this node is stopping: what is done stays done; run this again when it has started";

/// Whose rows in quarantine; of everybody and all channels where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrow {
    /// Only of this channel.
    pub channel: Option<String>,
    /// Only of this origin.
    pub origin: Option<String>,
}

impl Narrow {
    fn takes(&self, kept: &Kept) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
        is(&self.channel, kept.channel.as_str()) && is(&self.origin, kept.origin.as_str())
    }

    /// For people, behind "rows".
    fn text(&self) -> String {
        let of = |what: &str, name: &Option<String>| {
            name.as_ref().map(|name| format!(" of {what} {name}")).unwrap_or_default()
        };
        format!("{}{}", of("channel", &self.channel), of("origin", &self.origin))
    }
}

/// What is told while a work goes on. Never holds payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// So much of it is done.
    Progress {
        /// Rows.
        done: u64,
        /// Of so many, as far as is known.
        of: u64,
    },
    /// A line for people.
    Line(String),
}

/// Where it is told; whoever does not hear any more holds nothing up.
pub type Tell = mpsc::Sender<Told>;
/// How a work ended: to how many rows, and the same for people; or why it is not done, or not wholly.
pub type Ended = Result<(u64, String), String>;
/// A work under way.
pub type Operation<'a> = Pin<Box<dyn Future<Output = Ended> + Send + 'a>>;

/// The role, as the control socket knows it.
pub trait Operating: Send + Sync + 'static {
    /// How every configured peer stands.
    fn peers(&self) -> Vec<PeerStatus>;
    /// Tries rows in quarantine again, then lets stopped channels go on.
    fn retry(&self, narrow: Narrow, tell: Tell) -> Operation<'_>;
    /// Puts back rows of our own that are missing here and that this peer has.
    fn recover(&self, peer: String, tell: Tell) -> Operation<'_>;
}

/// From which seq on rows of our own were put back since a node id was drawn last.
#[derive(Debug, Default)]
pub(super) struct Mark(Option<Seq>);

impl Mark {
    /// No row below it may be stored.
    pub fn lowest(&self) -> Option<Seq> {
        self.0
    }

    /// Rows from this seq on may be stored when this returns.
    ///
    /// # Errors
    /// Where the mark is not durable.
    pub async fn lower(&mut self, history: &History, to: Seq) -> Result<(), String> {
        history.recovering(to).await?;
        self.0 = Some(to);
        Ok(())
    }

    /// Where rows were put back, a new id is drawn. Whether one was.
    ///
    /// # Errors
    /// Where it could not be: a later start draws it.
    pub async fn settle(&mut self, history: &History) -> Result<bool, String> {
        // whatever comes of it, what is put back later is marked anew
        if self.0.take().is_none() {
            return Ok(false);
        }
        history.recovered().await?;
        Ok(true)
    }
}

/// Carries it out.
pub struct Operator<S, P> {
    shared: Arc<Peering<S>>,
    sources: BTreeMap<Origin, P>,
    history: Arc<History>,
    resume: watch::Sender<u64>,
    stop: watch::Receiver<bool>,
    /// Held by the work that is under way.
    mark: Mutex<Mark>,
}

impl<S: Mend, P: Source> Operator<S, P> {
    /// `sources` are the configured peers by name, each with connections of its own: pulling never
    /// waits for an answer that is taken here. `resume` is the other end of [`Peering::resume`].
    #[must_use]
    pub fn new(
        shared: Arc<Peering<S>>,
        sources: BTreeMap<Origin, P>,
        history: Arc<History>,
        resume: watch::Sender<u64>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self { shared, sources, history, resume, stop, mark: Mutex::default() }
    }

    async fn until_stop(&self, work: impl Future<Output = Ended> + Send) -> Ended {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => Err(STOPPED.to_owned()),
            ended = work => ended,
        }
    }

    async fn retry_all(&self, narrow: &Narrow, tell: &Tell, mark: &mut Mark) -> Ended {
        let kept = patiently(|| self.shared.storage.quarantined()).await;
        let mut kept = kept.map_err(|e| format!("nothing was tried: the storage fails: {e}"))?;
        kept.retain(|kept| narrow.takes(kept));
        let mut all = Sum { of: kept.iter().map(|kept| kept.rows).sum(), ..Sum::default() };
        for kept in &kept {
            match Box::pin(self.retry_kept(kept, tell, mark, &mut all)).await {
                Ok(()) => {}
                // of one channel alone: the others have their turn
                Err(Failed::Channel(why)) => {
                    let line = format!("{} of {}: {why}", kept.channel, kept.origin);
                    say(tell, line.clone()).await;
                    all.wrong.push(line);
                }
                Err(Failed::Storage(why)) => {
                    let _ = mark.settle(&self.history).await;
                    return Err(format!(
                        "the storage fails: {why}; moved before that: {}; run this again to go on",
                        rows(all.moved)
                    ));
                }
            }
        }
        // of rows of our own, also where the answer to their commit was lost
        let drawn = mark.settle(&self.history).await;
        drawn.map_err(|e| format!("{}; but {}", all.text(narrow), no_id(&e)))?;
        // an operator has looked: what waited for one goes on
        self.resume.send_modify(|n| *n += 1);
        let text = format!("{}; channels that were stopped go on", all.text(narrow));
        tracing::info!("the quarantine was tried again: {text}");
        if all.stay == 0 && all.wrong.is_empty() { Ok((all.moved, text)) } else { Err(text) }
    }

    /// All rows of one channel of one origin.
    async fn retry_kept(
        &self,
        kept: &Kept,
        tell: &Tell,
        mark: &mut Mark,
        all: &mut Sum,
    ) -> Result<(), Failed> {
        let mut page = Retry {
            origin: kept.origin.clone(),
            channel: kept.channel.clone(),
            from: Seq(0),
            rows: PAGE_ROWS,
            bytes: PAGE_BYTES,
            marked: mark.lowest(),
        };
        let mut sum = Retried::default();
        loop {
            let retried = patiently(|| self.shared.storage.retry_quarantined(&page)).await?;
            if let Some(lowest) = retried.unmarked {
                // peers passed it long ago: they are to read again from there
                let marked = mark.lower(&self.history, lowest).await;
                marked.map_err(|e| Failed::Channel(format!("no mark can be made: {e}")))?;
                page.marked = mark.lowest();
                continue;
            }
            all.add(&retried, kept.origin == self.shared.me);
            sum.moved += retried.moved;
            sum.conflicts += retried.conflicts;
            sum.stay += retried.stay;
            sum.reason = sum.reason.or(retried.reason);
            let _ =
                tell.send(Told::Progress { done: all.done(), of: all.of.max(all.done()) }).await;
            match retried.next {
                Some(next) => page.from = next,
                None => break,
            }
        }
        say(tell, line_of(kept, &sum)).await;
        Ok(())
    }

    fn unknown(&self, peer: &str) -> String {
        let names: Vec<&str> = self.sources.keys().map(Origin::as_str).collect();
        format!("{peer} is no peer of this node: its replication_peer names {}", names.join(", "))
    }
}

impl<S: Mend, P: Source> Operating for Operator<S, P> {
    fn peers(&self) -> Vec<PeerStatus> {
        self.shared.board.snapshot()
    }

    fn retry(&self, narrow: Narrow, tell: Tell) -> Operation<'_> {
        Box::pin(async move {
            let mut mark = self.mark.try_lock().map_err(|_| BUSY.to_owned())?;
            self.until_stop(self.retry_all(&narrow, &tell, &mut mark)).await
        })
    }

    fn recover(&self, peer: String, tell: Tell) -> Operation<'_> {
        Box::pin(async move {
            let known = self.sources.get_key_value(peer.as_str());
            let (name, source) = known.ok_or_else(|| self.unknown(&peer))?;
            let mut mark = self.mark.try_lock().map_err(|_| BUSY.to_owned())?;
            let recovery = Recovery {
                shared: &self.shared,
                peer: name,
                source,
                history: &self.history,
                mark: &mut mark,
                tell: &tell,
                met: false,
            };
            self.until_stop(recovery.run()).await
        })
    }
}

/// What the tries of all channels came to.
#[derive(Default)]
struct Sum {
    of: u64,
    moved: u64,
    /// Of them, those of our own origin.
    own: u64,
    conflicts: u64,
    stay: u64,
    /// Channels that could not be tried, or not to their end.
    wrong: Vec<String>,
}

impl Sum {
    fn add(&mut self, retried: &Retried, own: bool) {
        self.moved += retried.moved;
        self.own += if own { retried.moved } else { 0 };
        self.conflicts += retried.conflicts;
        self.stay += retried.stay;
    }

    fn done(&self) -> u64 {
        self.moved + self.conflicts + self.stay
    }

    fn text(&self, narrow: &Narrow) -> String {
        if self.done() == 0 && self.wrong.is_empty() {
            return format!("no rows{} are in quarantine", narrow.text());
        }
        let mut text = format!("moved to their tables: {}", rows(self.moved));
        if self.conflicts > 0 {
            text.push_str(&format!("; moved to replicon_conflicts: {}", rows(self.conflicts)));
        }
        if self.stay > 0 {
            text.push_str(&format!("; still in quarantine: {}", rows(self.stay)));
        }
        if !self.wrong.is_empty() {
            text.push_str(&format!("; not tried: {}", self.wrong.join("; ")));
        }
        text
    }
}

fn line_of(kept: &Kept, sum: &Retried) -> String {
    let mut line = format!("{} of {}: {} moved", kept.channel, kept.origin, rows(sum.moved));
    if sum.conflicts > 0 {
        line.push_str(&format!(", {} with other content here", sum.conflicts));
    }
    if let (1.., Some(reason)) = (sum.stay, &sum.reason) {
        let stay = if sum.stay == 1 { "stays" } else { "stay" };
        line.push_str(&format!(", {} {stay}, the first because: {reason}", sum.stay));
    }
    line
}

/// Why a channel was not tried to its end.
enum Failed {
    /// It alone.
    Channel(String),
    /// Nothing can be tried.
    Storage(String),
}

impl From<StorageError> for Failed {
    fn from(e: StorageError) -> Self {
        match e.kind {
            Kind::Retry => Self::Storage(e.to_string()),
            Kind::Reject | Kind::Fatal => Self::Channel(e.to_string()),
        }
    }
}

/// So many rows, for people.
pub(super) fn rows(n: u64) -> String {
    if n == 1 { "1 row".to_owned() } else { format!("{n} rows") }
}

/// What is said where no id could be drawn.
pub(super) fn no_id(why: &str) -> String {
    format!("no new node id could be drawn: {why}; run this again, or the next start draws it")
}

/// Tells a line; the log keeps it for those who do not hear any more.
pub(super) async fn say(tell: &Tell, line: String) {
    tracing::info!("for an operator: {line}");
    let _ = tell.send(Told::Line(line)).await;
}

/// Asks a storage again that does not answer, for a while.
///
/// # Errors
/// What it said last.
pub(super) async fn patiently<T, F>(mut ask: impl FnMut() -> F) -> Result<T, StorageError>
where
    F: Future<Output = Result<T, StorageError>>,
{
    let mut backoff = OF_OUTAGES;
    loop {
        match ask().await {
            Err(e) if e.kind == Kind::Retry && backoff.failures() < PATIENCE => {
                tracing::debug!("an operator's work waits for the storage: {e}");
                task::sleep(backoff.failed(DICE)).await;
            }
            asked => return asked,
        }
    }
}

#[cfg(test)]
mod tests;
