//! Rows of our own that are gone here come back from a peer that still has them: every channel, enabled
//! or not, from its beginning, a page at a time.
//!
//! Taken is what lies below the first seq that this start may give out, and nothing that stands here is
//! touched (the one exception to I11, and only when an operator asks). Before a row is stored a mark
//! is durable; after the last one a new node id is drawn, so that peers read again what they passed.
//! Does not know HTTP, tables, nor how an id is drawn.

use std::time::Duration;

use super::backoff::Backoff;
use super::operate::{
    DICE, Ended, Mark, OF_OUTAGES, PATIENCE, Tell, Told, no_id, patiently, rows, say,
};
use super::pull::Failure;
use super::wire::{Answer, Ask, Caller, Fault, MOST_EVENTS};
use super::{Pages, Peering, Received, Source};
use crate::event::{ChannelName, Origin, Seq};
use crate::life::History;
use crate::storage::Kind;
use crate::storage::mend::{Mend, PutBack, Returned};
use crate::task;

/// The most pages of one answer.
const PAGES: usize = 32;
/// How often a peer is asked again that never answered: whoever waits wants to know.
const FIRST_PATIENCE: u32 = 2;
/// How long a peer is left in peace that answered what cannot be used.
const OF_FAULTS: Duration = Duration::from_millis(200);
/// How often a line says how far it has come.
const SAY_EVERY: Duration = Duration::from_secs(5);

const NOT_SETTLED: &str = "it is not settled yet which seqs this start gives out: its storage has not been reached, or is another one than before; /healthz says what is waited for, run this again then";
const TOO_MANY: &str = "too many rows are taken by no table: 100 in a row, or 10,000 in all; look at replicon_quarantine and replicon_conflicts, mend the table, then run this again";

/// Why a channel did not come to its end.
enum Trouble {
    /// The peer does not have it.
    Lacks,
    /// It alone.
    Channel(String),
    /// Nothing more can be asked, or stored.
    Whole(String),
}

/// A recovery under way.
pub(super) struct Recovery<'a, S, P> {
    /// What the tasks of all peers share.
    pub shared: &'a Peering<S>,
    /// Who is asked.
    pub peer: &'a Origin,
    /// The same as a source.
    pub source: &'a P,
    /// Who draws ids.
    pub history: &'a History,
    /// From where on rows were put back.
    pub mark: &'a mut Mark,
    /// Where it is told how it goes.
    pub tell: &'a Tell,
    /// Whether the peer has given anything.
    pub met: bool,
}

/// What it came to, of one channel or of all.
#[derive(Default)]
struct Sum {
    looked: u64,
    put_back: u64,
    conflicts: u64,
    refused: u64,
    /// Why the first of those is refused.
    reason: Option<String>,
    /// Rows that this start may have given out itself.
    later: u64,
}

/// How a channel is asked for.
struct Pace {
    at: Seq,
    limit: usize,
    most: usize,
    backoff: Backoff,
    /// Whether the peer is to count what there is.
    count: bool,
    /// Rows that no table took one after another.
    streak: u64,
    /// Rows looked at before this channel, and with it as far as the peer has counted.
    before: u64,
    of: u64,
    /// When a line was said last.
    said: Duration,
}

impl<S: Mend, P: Source> Recovery<'_, S, P> {
    /// All of it.
    pub async fn run(mut self) -> Ended {
        let first = self.history.first_seq().ok_or_else(|| NOT_SETTLED.to_owned())?;
        tracing::info!(peer = %self.peer, "recovering this node's own events below seq {first} from peer {}", self.peer);
        let ended = self.channels(first).await;
        match &ended {
            Ok((_, text)) => {
                tracing::info!(peer = %self.peer, "recover from peer {}: {text}", self.peer)
            }
            Err(text) => {
                tracing::warn!(peer = %self.peer, "recover from peer {}: {text}", self.peer)
            }
        }
        ended
    }

    async fn channels(&mut self, first: Seq) -> Ended {
        let (mut all, mut wrong, mut lacking) = (Sum::default(), Vec::new(), 0);
        let channels: Vec<ChannelName> =
            self.shared.registry.all().map(|channel| channel.name.clone()).collect();
        for channel in &channels {
            let mut sum = Sum::default();
            let ended = Box::pin(self.channel(channel, first, &mut sum, all.looked)).await;
            let line = sum.line(channel, first);
            all.add(sum);
            match ended {
                Ok(()) => say(self.tell, line).await,
                Err(Trouble::Lacks) => {
                    lacking += 1;
                    say(self.tell, format!("{channel}: peer {} has no such channel", self.peer))
                        .await;
                }
                Err(Trouble::Channel(why)) => {
                    say(self.tell, format!("{line}; broken off: {why}")).await;
                    wrong.push(format!("channel {channel}: {why}"));
                }
                Err(Trouble::Whole(why)) => {
                    // what came back is read by the others all the same; if not now, by a later start
                    let _ = self.mark.settle(self.history).await;
                    return Err(match all.put_back {
                        0 => format!("{why}; nothing was put back"),
                        n => {
                            format!("{why}; put back so far: {}; run this again to go on", rows(n))
                        }
                    });
                }
            }
        }
        if lacking == channels.len() {
            return Err(format!(
                "peer {} has none of this node's channels, or no replication_token (it answered 404)",
                self.peer
            ));
        }
        let mut text = all.text(self.peer, channels.len());
        match self.mark.settle(self.history).await {
            Ok(true) => {
                text.push_str("; a new node id is drawn: peers read again what they passed")
            }
            Ok(false) => {}
            Err(e) => return Err(format!("{text}; but {}", no_id(&e))),
        }
        if !wrong.is_empty() {
            text.push_str(&format!("; not to its end: {}", wrong.join("; ")));
        }
        if wrong.is_empty() && all.refused == 0 { Ok((all.put_back, text)) } else { Err(text) }
    }

    /// One channel, from its beginning.
    async fn channel(
        &mut self,
        channel: &ChannelName,
        first: Seq,
        sum: &mut Sum,
        before: u64,
    ) -> Result<(), Trouble> {
        let most = self.shared.pace.batch_limit.clamp(1, MOST_EVENTS);
        let mut pace = Pace {
            at: Seq(1),
            limit: most,
            most,
            backoff: OF_OUTAGES,
            count: true,
            streak: 0,
            before,
            of: 0,
            said: self.shared.clock.mono(),
        };
        let caller = Caller { name: self.shared.me.clone(), known: None };
        loop {
            let ask = self.ask(channel, &pace);
            let failure = match self.source.events(&ask, &caller).await {
                Ok(pages) => match self.take(pages, channel, first, &mut pace, sum).await? {
                    Taken::All => return Ok(()),
                    Taken::Some => continue,
                    Taken::Failed(failure) => failure,
                },
                Err(failure) => failure,
            };
            self.failed(failure, &mut pace).await?;
        }
    }

    fn ask(&self, channel: &ChannelName, pace: &Pace) -> Ask {
        Ask {
            origin: self.shared.me.clone(),
            channel: channel.clone(),
            // whoever relays says whose events it gives, or is not used
            direct: false,
            from: pace.at,
            limit: pace.limit,
            // one page at a time until the full size has been seen to work
            pages: if pace.limit < pace.most { 1 } else { PAGES },
            count: pace.count,
        }
    }

    /// The pages of one answer, each stored before the next is read.
    async fn take(
        &mut self,
        mut pages: P::Pages,
        channel: &ChannelName,
        first: Seq,
        pace: &mut Pace,
        sum: &mut Sum,
    ) -> Result<Taken, Trouble> {
        let mut any = false;
        loop {
            let Received { answer, room } = match pages.next().await {
                Ok(Some(received)) => received,
                Ok(None) if any => return Ok(Taken::Some),
                Ok(None) => return Ok(Taken::Failed(Failure::Cut("it sent no page".to_owned()))),
                Err(failure) => return Ok(Taken::Failed(failure)),
            };
            any = true;
            let (next, more) = (answer.next, answer.has_more(pace.limit));
            if let Err(failure) = self.judge(&answer, pace.at, more) {
                return Ok(Taken::Failed(failure));
            }
            pace.took(&answer, sum.looked);
            self.met = true;
            self.store(channel, answer, first, pace, sum).await?;
            drop(room);
            self.tell_how_far(channel, pace, sum).await;
            // what comes behind is this start's own
            if !more || next >= first {
                return Ok(Taken::All);
            }
            pace.at = next;
        }
    }

    /// Whether the page is the one that was asked for, from whom it was asked.
    fn judge(&self, answer: &Answer, at: Seq, more: bool) -> Result<(), Failure> {
        if let Some(node) = &answer.node
            && node != self.peer.as_str()
        {
            return Err(Failure::OtherNode(node.clone()));
        }
        // one that says that there is more, and goes nowhere, would be asked for ever
        let stays = more && answer.next <= at;
        if answer.from != at || !answer.echoed || stays {
            return Err(Failure::Fault(Fault::Misplaced));
        }
        Ok(())
    }

    /// Stores what of a page is missing.
    async fn store(
        &mut self,
        channel: &ChannelName,
        answer: Answer,
        first: Seq,
        pace: &mut Pace,
        sum: &mut Sum,
    ) -> Result<(), Trouble> {
        let Answer { mut rows, mut unfit, .. } = answer;
        let given = rows.len();
        rows.retain(|row| row.seq < first);
        unfit.retain(|seq, _| *seq < first);
        sum.later += (given - rows.len()) as u64;
        let looked = rows.len() as u64;
        let mut returned = Returned {
            origin: self.shared.me.clone(),
            channel: channel.clone(),
            rows,
            unfit,
            streak: pace.streak,
            marked: self.mark.lowest(),
        };
        let put = loop {
            let put = patiently(|| self.shared.storage.put_back(&returned)).await;
            let put = put.map_err(|e| match e.kind {
                Kind::Retry => Trouble::Whole(format!("the storage fails: {e}")),
                Kind::Reject | Kind::Fatal => Trouble::Channel(e.to_string()),
            })?;
            let Some(lowest) = put.unmarked else { break put };
            let marked = self.mark.lower(self.history, lowest).await;
            marked.map_err(|e| Trouble::Whole(format!("no mark can be made: {e}")))?;
            returned.marked = self.mark.lowest();
        };
        if put.too_many {
            return Err(Trouble::Channel(TOO_MANY.to_owned()));
        }
        pace.streak = put.streak;
        sum.took(looked, put);
        Ok(())
    }

    async fn tell_how_far(&self, channel: &ChannelName, pace: &mut Pace, sum: &Sum) {
        let done = pace.before + sum.looked;
        let _ = self.tell.send(Told::Progress { done, of: pace.of.max(done) }).await;
        let now = self.shared.clock.mono();
        if now.saturating_sub(pace.said) >= SAY_EVERY {
            pace.said = now;
            let (looked, put_back) = (rows(sum.looked), sum.put_back);
            say(self.tell, format!("{channel}: {looked} looked at so far, {put_back} put back"))
                .await;
        }
    }

    /// Waits before the peer is asked again, for less where that may help; an error where it is asked
    /// no more.
    async fn failed(&self, failure: Failure, pace: &mut Pace) -> Result<(), Trouble> {
        let whole = |failure: Failure| Trouble::Whole(format!("peer {}: {failure}", self.peer));
        let smaller = pace.limit > 1;
        let patience = if self.met { PATIENCE } else { FIRST_PATIENCE };
        match failure {
            // a channel that is not there; of all of them, a peer that serves none
            Failure::NotFound => return Err(Trouble::Lacks),
            Failure::Unauthorized | Failure::OtherNode(_) | Failure::Status(_) => {
                return Err(whole(failure));
            }
            // what stands before a row that nobody can use is got by smaller pages
            Failure::Fault(_) if smaller => {
                pace.limit /= 2;
                task::sleep(OF_FAULTS).await;
                return Ok(());
            }
            Failure::Fault(fault) => {
                return Err(Trouble::Channel(format!(
                    "the answer of peer {} from seq {} on is not used: {fault}",
                    self.peer, pace.at
                )));
            }
            _ if pace.backoff.failures() >= patience => return Err(whole(failure)),
            Failure::TimedOut(_) | Failure::Cut(_) => pace.limit = (pace.limit / 2).max(1),
            // smaller pages would not bring it back
            Failure::Lost(_) | Failure::Unavailable => {}
        }
        task::sleep(pace.backoff.failed(DICE)).await;
        Ok(())
    }
}

/// What came of one answer.
enum Taken {
    /// There is no more.
    All,
    /// It ended where it liked: the next one goes on.
    Some,
    /// It broke off.
    Failed(Failure),
}

impl Pace {
    /// A page came that can be used.
    fn took(&mut self, answer: &Answer, looked: u64) {
        self.backoff.succeeded();
        self.limit = (self.limit * 2).min(self.most);
        self.count = false;
        if let Some(behind) = answer.behind {
            self.of = self.before + looked + answer.rows.len() as u64 + behind;
        }
    }
}

impl Sum {
    fn took(&mut self, looked: u64, put: PutBack) {
        self.looked += looked;
        self.put_back += put.stored;
        self.conflicts += put.conflicts;
        self.refused += put.quarantined;
        self.reason = self.reason.take().or(put.reason);
    }

    fn add(&mut self, of: Self) {
        self.looked += of.looked;
        self.put_back += of.put_back;
        self.conflicts += of.conflicts;
        self.refused += of.refused;
        self.later += of.later;
    }

    /// Of one channel.
    fn line(&self, channel: &ChannelName, first: Seq) -> String {
        let mut line =
            format!("{channel}: {} looked at, {} put back", rows(self.looked), self.put_back);
        self.push_rest(&mut line);
        if let Some(reason) = &self.reason {
            line.push_str(&format!(", the first because: {reason}"));
        }
        if self.later > 0 {
            line.push_str(&format!(
                "; {} from seq {first} on not taken: those seqs are this start's to give out",
                self.later
            ));
        }
        line
    }

    /// Of all of them.
    fn text(&self, peer: &Origin, channels: usize) -> String {
        let looked = rows(self.looked);
        if self.put_back == 0 && self.conflicts == 0 && self.refused == 0 {
            return format!(
                "nothing is missing here of what peer {peer} has: {looked} of {channels} channels were looked at"
            );
        }
        let mut text = format!("put back: {} of {looked} looked at", rows(self.put_back));
        self.push_rest(&mut text);
        text
    }

    fn push_rest(&self, text: &mut String) {
        if self.conflicts > 0 {
            text.push_str(&format!(
                ", {} with other content here (left as it is; the peer's is in replicon_conflicts)",
                rows(self.conflicts)
            ));
        }
        if self.refused > 0 {
            text.push_str(&format!(
                ", {} taken by no table (kept in replicon_quarantine)",
                rows(self.refused)
            ));
        }
    }
}
