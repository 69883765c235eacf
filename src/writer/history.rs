//! The keeper of this node's own history: tells the storage how far events are released, notices when
//! the storage or this node went back, writes again what the log still holds of it, and draws a new
//! node id where what peers were shown is not what stands here any more.
//!
//! What was released is told before the log may forget it: so whatever a storage lost lately can be
//! written once more. Nothing is served while the history is not settled. Does not know peers, nor
//! which storage it is.

mod refill;

use refill::{Missing, Stretch};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::Report;
use crate::event::{ChannelName, ModeTag, Name, Origin, Seq};
use crate::life::{Ask, History, Life, PastId};
use crate::queue::file::look::LogFiles;
use crate::queue::file::state::{NodeState, new_node_id};
use crate::queue::{AnyQueue, Queue};
use crate::storage::history::{Found, HistoryStore, WHOLE};
use crate::storage::{Contact, StorageError};
use crate::task;
use crate::watermark::Watermark;

/// How often the storage is told what was released, where something was.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// How often a contact that is lost is asked for: the writers do, too, while they have work.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Longest that the last telling of a node that stops may take.
const LAST: Duration = Duration::from_secs(2);

/// The mode that events of a channel have today.
pub type Modes = BTreeMap<ChannelName, ModeTag>;

/// What the keeper works with.
pub struct Keeping<S> {
    /// The queue, whose directory remembers what the storage was told.
    pub queue: Arc<AnyQueue>,
    /// The storage.
    pub storage: Arc<S>,
    /// What the rest of the node sees of it.
    pub history: Arc<History>,
    /// How far each channel is resolved.
    pub marks: Arc<Watermark>,
    /// The log's files; `None` where the queue is no log.
    pub log: Option<LogFiles>,
    /// `node_name`.
    pub origin: Origin,
    /// The channels of today, and the modes of their events.
    pub modes: Arc<Modes>,
    /// Whom trouble is told.
    pub report: Report,
    /// Turns true when the node stops.
    pub stop: watch::Receiver<bool>,
}

/// What a storage is told of the node.
#[must_use]
pub fn contact(queue: &AnyQueue) -> Contact {
    let NodeState { node_id, history, .. } = queue.node();
    Contact {
        first_unacked: queue.first_unacked(),
        node_id,
        since: history.since.map(Seq),
        past: history.ids.into_iter().map(|(id, _)| id).collect(),
        epoch: history.epoch,
    }
}

/// Runs until the node stops.
pub async fn keep<S: HistoryStore>(keeping: Keeping<S>) {
    let mut stop = keeping.stop.clone();
    let mut keeper = Keeper::of(keeping);
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = keeper.run() => {}
    }
    if keeper.settled {
        let _ = tokio::time::timeout(LAST, keeper.tell()).await;
    }
}

struct Keeper<S> {
    with: Keeping<S>,
    /// The history is settled: what is released may be told.
    settled: bool,
    /// Everything at or below it stood in the storage when this start met it.
    whole: Option<Seq>,
    /// A peer has shown that this node went back, and no new id was drawn for it yet.
    went_back: bool,
    /// A new id was drawn for what is being settled.
    drawn: bool,
    /// The storage showed less than it was told, and what it lacks is not written again yet.
    back: bool,
    /// Rows of ours from this seq on are being put back by this process.
    recovering: Option<Seq>,
    /// The number of the last change that was told.
    number: Option<u64>,
    /// What was told last.
    told: (Seq, Seq),
    /// How far each channel is released, as it was told.
    released: BTreeMap<ChannelName, Seq>,
    /// What the storage lacks of channels that it refuses now: tried again, and kept in the log.
    owed: BTreeMap<ChannelName, Stretch>,
    /// What a meeting found while writers had leases in hand that have not ended since: until they have,
    /// nothing is told, and then it is looked once more.
    pending: Option<Found>,
    /// How far events were handed out when the storage was met, and the leases that were under way.
    handed_out: Option<(Seq, BTreeSet<u64>)>,
    /// Turns of the loop: what is owed is tried again at every so many.
    looks: u32,
}

impl<S: HistoryStore> Keeper<S> {
    fn of(with: Keeping<S>) -> Self {
        Self {
            with,
            settled: false,
            whole: None,
            went_back: false,
            drawn: false,
            back: false,
            recovering: None,
            number: None,
            told: (Seq(0), Seq(0)),
            released: BTreeMap::new(),
            owed: BTreeMap::new(),
            pending: None,
            handed_out: None,
            looks: 0,
        }
    }

    async fn run(&mut self) {
        let mut pause = TELL_EVERY;
        loop {
            tokio::select! {
                () = task::sleep(pause) => {}
                () = self.with.history.rung() => {}
            }
            pause = TELL_EVERY;
            match self.with.storage.found().await {
                Ok(Some(found)) => {
                    self.handed_out = None;
                    self.settle(found).await;
                }
                Ok(None) => {}
                Err(e) => {
                    tracing::debug!("the storage does not tell yet what it holds: {e}");
                    pause = ASK_AGAIN;
                }
            }
            if !self.settled {
                continue;
            }
            if self.with.history.take_went_back() {
                self.went_back = true;
                let node = self.with.queue.node();
                self.settle(Found { owner: Some(node.node_id), ..Found::default() }).await;
            }
            if self.pending.is_some()
                && !self.in_hand()
                && let Some(found) = self.pending.take()
            {
                self.settle(found).await;
            }
            self.answer_asks().await;
            self.pay_what_is_owed().await;
            if let Err(e) = self.tell().await {
                tracing::debug!("what was released is not told yet: {e}");
            }
        }
    }

    /// Until it is settled, however long the storage or the disk refuses.
    async fn settle(&mut self, mut found: Found) {
        self.with.history.unsettle();
        (self.settled, self.drawn) = (false, false);
        // until it is told anew, since all that the log holds may have to be written again
        self.released.clear();
        self.with.queue.keep_above(Seq(0), &self.released);
        if let Some(earlier) = self.pending.take_if(|_| found.epoch > 0) {
            let stranger = found.stranger;
            found = Found { stranger, ..earlier.and(found) };
        }
        let mut said = String::new();
        loop {
            match self.try_settle(&found).await {
                Ok(None) => break,
                Ok(Some(more)) => {
                    (found, self.drawn, self.handed_out) = (more, false, None);
                    task::sleep(TELL_EVERY).await;
                }
                Err(why) => {
                    let text = format!(
                        "this node's history is not settled, and peers are served nothing: {why}; tried again by itself"
                    );
                    self.refuse_asks(&text);
                    if text != said {
                        tracing::error!("{text}");
                        self.with.history.troubled(Some(&text));
                        said = text;
                    }
                    task::sleep(ASK_AGAIN).await;
                }
            }
        }
        self.settled = true;
        self.show_what_is_owed();
    }

    /// Who asks while nothing is settled is told so.
    fn refuse_asks(&self, why: &str) {
        for ask in self.with.history.take_asks() {
            let (Ask::Recovering(_, answer) | Ask::Recovered(answer)) = ask;
            let _ = answer.send(Err(why.to_owned()));
        }
    }

    /// One attempt. What a contact that was made meanwhile has found beside, where it changes anything.
    async fn try_settle(&mut self, found: &Found) -> Result<Option<Found>, String> {
        self.went_back |= self.with.history.take_went_back();
        let (back, node) = (self.shows_less(found), self.with.queue.node());
        self.adopt(found).await?;
        // what the storage counts from now on is ours; of a stranger the next id is drawn first
        if found.epoch > 0 && !found.stranger {
            self.note_epoch(found.epoch).await?;
        }
        let whole = self.whole.map_or(found.whole(), |whole| whole.min(found.whole()));
        // one that was asked for by a peer found nothing anew
        let met = found.epoch > 0;
        let mut missing = Missing::default();
        if met {
            // once a meeting: what is handed out behind it is stored behind it
            if self.handed_out.is_none() {
                let now = self.with.marks.with(|marks| (marks.read_to(), marks.under_way()));
                self.handed_out = Some(now);
                // before it is counted: whoever stores on for long stores all of it once more
                self.with.report.met.fetch_add(1, Ordering::SeqCst);
            }
            self.back |= back.is_some();
            missing = self.missing(found, self.back).await?;
            let again = || Found { stranger: false, ..found.clone() };
            self.pending = missing.open.then(again);
        }
        let Missing { short, again, .. } = missing;
        if met {
            self.whole = Some(whole);
        }
        let parted = self.parted(found, back, &node).or_else(|| {
            let why = "the storage lacks events that it had taken".to_owned();
            // of what was owed before nothing was shown since
            let known = |channel, above: Seq| {
                self.owed.get(channel).is_some_and(|(owed, _): &Stretch| *owed <= above)
            };
            let news = short.iter().any(|(channel, (above, _))| !known(channel, *above));
            news.then_some((self.whole.unwrap_or_default(), why))
        });
        if let Some((since, why)) = parted.filter(|_| !self.drawn) {
            self.draw(since, &why, found).await?;
        }
        let all: BTreeMap<ChannelName, Stretch> = again.into_iter().chain(short).collect();
        let owed = self.refill(&all).await?;
        self.back = false;
        self.owe(&all, &owed);
        let later = self.with.storage.found().await.map_err(told)?;
        let epoch = later.as_ref().map_or(found.epoch, |later| later.epoch);
        if let Some(later) = later {
            // whatever it shows: what was written again may be gone once more. A stranger was dealt with
            let stranger = later.stranger;
            let both = if met { found.clone().and(later) } else { later };
            return Ok(Some(Found { stranger, ..both }));
        }
        if epoch > 0 {
            self.note_epoch(epoch).await?;
        }
        self.publish().await
    }

    /// Serves from now on, unless a peer has shown meanwhile that this node went back.
    async fn publish(&mut self) -> Result<Option<Found>, String> {
        // all of it: the storage may have gone back behind what it was told
        (self.number, self.told) = (None, (Seq(0), Seq(0)));
        self.tell().await.map_err(told)?;
        let NodeState { node_id: id, history, .. } = self.with.queue.node();
        let past = |(id, since): (String, Option<u64>)| PastId { id, since: since.map(Seq) };
        let past = history.ids.into_iter().map(past).collect();
        let life = Life { id: id.clone(), since: history.since.map(Seq), past };
        if self.with.history.settle(life, self.with.queue.first_seq()) {
            return Ok(None);
        }
        Ok(Some(Found { owner: Some(id), ..Found::default() }))
    }

    /// A directory that never wrote to this storage goes on where another one's history ended.
    async fn adopt(&self, found: &Found) -> Result<(), String> {
        let node = self.with.queue.node();
        let Some(owner) = found.owner.clone().filter(|owner| *owner != node.node_id) else {
            return Ok(());
        };
        if node.history.epoch > 0 || !node.history.ids.is_empty() {
            return Ok(());
        }
        let whole = found.whole();
        // what stands there is final, though the log never held it
        self.nothing_below_is_open();
        self.with.history.adopted(&owner);
        tracing::warn!(
            "this directory is new, and the storage was written by node id {owner} before: its history goes on behind seq {whole}, and peers read again from there"
        );
        self.change(move |node| {
            node.history.since = Some(whole.0);
            node.history.ids.push((owner, None));
        })
        .await?;
        self.with.storage.renew(&contact(&self.with.queue)).await.map_err(told)
    }

    async fn note_epoch(&self, epoch: u64) -> Result<(), String> {
        self.change(move |node| node.history.epoch = epoch.max(node.history.epoch)).await
    }

    /// No seq below the first of this start is given out any more.
    fn nothing_below_is_open(&self) {
        if let Some(first) = self.with.queue.first_seq() {
            self.with.marks.with(|marks| marks.begin_anew_below(first));
        }
    }

    /// The channel of which the storage shows less than it was told, if there is one.
    fn shows_less(&self, found: &Found) -> Option<String> {
        let history = self.with.queue.node().history;
        if found.epoch == 0 || history.epoch == 0 {
            return None;
        }
        let less = |(channel, seq): &(&String, &u64)| found.of(channel) < Seq(**seq);
        history.released.iter().find(less).map(|(channel, _)| channel.clone())
    }

    /// Whether what peers were shown may not be what stands here: behind which seq, and why. `node` is
    /// what the directory knew when the storage was met.
    fn parted(
        &self,
        found: &Found,
        back: Option<String>,
        node: &NodeState,
    ) -> Option<(Seq, String)> {
        let NodeState { node_id, history, .. } = node;
        let (met, fresh) = (found.epoch > 0, history.epoch == 0);
        let whole = self.whole.unwrap_or_default();
        let mut parted: Option<(Seq, String)> = None;
        let mut behind = |since: Seq, why: String| match &mut parted {
            Some((least, _)) => *least = since.min(*least),
            None => parted = Some((since, why)),
        };
        if let (Some(from), None) = (history.recovering, self.recovering) {
            let since = Seq(from.saturating_sub(1));
            behind(since, "`replicon recover` was broken off in an earlier run".to_owned());
        }
        if self.went_back {
            let why = "a peer holds events of ours that this node does not know: it went back";
            behind(whole, why.to_owned());
        }
        if let Some(channel) = back {
            let of = if channel == WHOLE { "all channels" } else { channel.as_str() };
            behind(
                whole,
                format!(
                    "the storage went back: of {of} it was told seq {} and shows {}; what the log still holds is written again, the rest comes back by `replicon recover --from PEER`",
                    history.released.get(&channel).copied().unwrap_or_default(),
                    found.of(&channel)
                ),
            );
        } else if met && !fresh && found.stranger {
            let owner = found.owner.as_deref().unwrap_or("nobody");
            behind(
                whole,
                format!(
                    "the storage was written by {} since this directory last was: a copy of it, or the directory went back",
                    if owner == node_id { "this node id" } else { owner }
                ),
            );
        }
        parted
    }

    /// Goes by a new id, durably here and in the storage.
    async fn draw(&mut self, since: Seq, why: &str, found: &Found) -> Result<(), String> {
        let id = new_node_id().map_err(|e| e.to_string())?;
        tracing::warn!(
            "this node goes by a new node id, {id}, and peers read again from behind seq {since}: {why}"
        );
        let (recovering, drawn) = (self.recovering.map(|seq| seq.0), id.clone());
        let found = found.clone();
        self.change(move |node| {
            node.renew(id, since.0);
            node.history.recovering = recovering;
            if found.epoch > 0 {
                // what the storage shows is what counts under this id
                let least =
                    |(channel, seq): (&String, &mut u64)| *seq = found.of(channel).0.min(*seq);
                node.history.released.iter_mut().for_each(least);
            }
        })
        .await?;
        self.with.history.drawn(&drawn);
        (self.drawn, self.went_back) = (true, false);
        // what was put back may lie above the last seq that this node knew
        self.nothing_below_is_open();
        self.with.storage.renew(&contact(&self.with.queue)).await.map_err(told)
    }

    async fn answer_asks(&mut self) {
        for ask in self.with.history.take_asks() {
            match ask {
                Ask::Recovering(from, answer) => {
                    let from = self.recovering.map_or(from, |known| known.min(from));
                    self.recovering = Some(from);
                    let marked = self.change(move |node| node.history.recovering = Some(from.0));
                    let _ = answer.send(marked.await);
                }
                Ask::Recovered(answer) => {
                    let _ = answer.send(self.recovered().await);
                }
            }
        }
    }

    /// What was put back stands there: a new id, for the peers to read it.
    async fn recovered(&mut self) -> Result<(), String> {
        let Some(from) = self.recovering else { return Ok(()) };
        let since = Seq(from.0.saturating_sub(1));
        self.with.history.unsettle();
        self.recovering = None;
        let nothing = Found::default();
        let drawn = self.draw(since, "`replicon recover` has put events back", &nothing).await;
        if let Err(why) = drawn {
            tracing::debug!("the new id is not in the storage yet: {why}");
        }
        // the mark in the directory draws it where that failed before
        let node = self.with.queue.node();
        self.settle(Found { owner: Some(node.node_id), ..Found::default() }).await;
        Ok(())
    }

    /// Tells storage and directory how far channels are released; then the log may forget it.
    async fn tell(&mut self) -> Result<(), StorageError> {
        if self.pending.is_some() {
            return Ok(());
        }
        // first: what is released of the log is never above what is resolved
        let main = self.with.queue.released();
        let known = if self.number.is_none() { self.known_channels() } else { BTreeSet::new() };
        let (changes, whole) = self.with.marks.with(|marks| {
            let changes = marks.changes(self.number);
            let all = || known.into_iter().chain(marks.channels()).collect::<BTreeSet<_>>();
            let named = changes.channels.unwrap_or_else(|| all().into_iter().collect());
            let safe = |channel: ChannelName| (channel.clone(), marks.safe(&channel));
            let safe: Vec<(ChannelName, Seq)> = named.into_iter().map(safe).collect();
            ((changes.number, safe), marks.whole())
        });
        let (number, mut channels) = changes;
        // what is owed is not released
        channels.retain(|(channel, _)| !self.owed.contains_key(channel));
        let owed = self.owed.values().map(|(above, _)| *above).min();
        let bound = |seq: Seq| owed.map_or(seq, |owed| seq.min(owed));
        let (main, whole) = (bound(main), bound(whole));
        if channels.is_empty() && self.told == (main, whole) {
            return Ok(());
        }
        self.with.storage.release(&channels, whole).await?;
        let written = channels.clone();
        let kept = self.change(move |node| {
            let raise = |(channel, seq): (String, Seq)| {
                let known = node.history.released.entry(channel).or_default();
                *known = seq.0.max(*known);
            };
            let channels = written.into_iter().map(|(channel, seq)| (channel.to_string(), seq));
            channels.chain([(WHOLE.to_owned(), whole)]).for_each(raise);
        });
        kept.await.map_err(|e| StorageError::retry("node.state", e))?;
        self.released.extend(channels);
        (self.number, self.told) = (Some(number), (main, whole));
        self.with.queue.keep_above(main, &self.released);
        Ok(())
    }

    /// The channels of which the storage was told once.
    fn known_channels(&self) -> BTreeSet<ChannelName> {
        let released = self.with.queue.node().history.released;
        released.keys().filter_map(|channel| Name::new(channel).ok()).collect()
    }

    async fn change(
        &self,
        change: impl FnOnce(&mut NodeState) + Send + 'static,
    ) -> Result<(), String> {
        let queue = self.with.queue.clone();
        let changed = task::blocking(move || queue.change_node(change)).await;
        changed.map_err(|e| format!("node.state cannot be written: {e}"))
    }
}

fn told(e: StorageError) -> String {
    e.to_string()
}
