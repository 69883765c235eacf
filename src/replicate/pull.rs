//! Pulling one channel of one origin from one peer: what to do next, given what came of the last step.
//!
//! Pure: `step(state, outcome) -> (state, action)`. Knows no tokio, no clock and no storage: the task
//! that drives a peer and the simulator run this same function.
//!
//! 1. A page is used only where it answers what was asked from where this stands (I10).
//! 2. `apply` names the stored cursor as this last knew it; what is not applied for that reason makes
//!    this read the cursor anew, and everything in memory beside it is dropped.
//! 3. A page that was empty moves this on in memory only; the cursor follows when it is written with
//!    the next rows, or by [`Outcome::Flush`].
//! 4. Through a relay the cursor moves to the last row received, never beyond (I11).
//! 5. An outage of the peer or of the storage never moves anything.
//! 6. What is to be read again has a stored cursor of its own, which is followed until it has come to
//!    the usual one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::wire::{Answer, Ask, Fault};
use crate::event::{ChannelName, Origin, Seq};
use crate::storage::Kind;
use crate::storage::event_store::{Applied, Foreign, StoredRow};

/// A write that takes longer makes the next pages half as big.
const SLOW: Duration = Duration::from_secs(2);
/// One that takes less makes them bigger, up to what is configured.
const FAST: Duration = Duration::from_millis(500);

/// What stays the same for a state's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Whose events.
    pub origin: Origin,
    /// Of which channel.
    pub channel: ChannelName,
    /// Whether the peer is the origin itself; else it relays.
    pub direct: bool,
    /// The most events a page.
    pub most: usize,
    /// The most pages an answer.
    pub pages: usize,
    /// The fingerprint of our own schema: an equal one needs no judgement.
    pub print: String,
}

/// What the state waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The stored cursor is not known.
    Unknown,
    /// Nothing.
    Ready,
    /// Pages; so many are still to come, the first of all among them or not.
    Asked { left: usize, first: bool },
    /// The judgement of a schema.
    Schema { print: String },
    /// The storage.
    Applying { to: Seq, rows: usize, left: usize, more: bool },
    /// An operator.
    Stopped(String),
}

/// One channel of one origin at one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What it is about.
    pub lane: Lane,
    phase: Phase,
    /// The node id under which it is read again, with a cursor of its own, and the seq up to which that
    /// is done.
    again: Option<(String, Seq)>,
    /// The stored cursor as this last knew it.
    stored: Option<Seq>,
    /// Everything at or below it was received, or is nothing.
    at: Seq,
    limit: usize,
    /// Rows quarantined one after another.
    streak: u64,
    /// The fingerprint that was found to fit.
    fits: Option<String>,
    /// Whether to have the events counted with the next page.
    count: bool,
}

/// Why nothing came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Not a byte within the time.
    #[error("it sent nothing for {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// It cannot be reached.
    #[error("{0}")]
    Lost(String),
    /// Its answer broke off.
    #[error("its answer broke off: {0}")]
    Cut(String),
    /// It does not know our token.
    #[error("it refuses our replication_token (401)")]
    Unauthorized,
    /// It has no such channel, or serves no peers.
    #[error("it answered 404: it has no such channel, or no replication_token")]
    NotFound,
    /// It does not serve now.
    #[error("it is not ready (503)")]
    Unavailable,
    /// It goes by another name than the configured one.
    #[error("it calls itself {0}: correct the name before '=' in replication_peer, or the address")]
    OtherNode(String),
    /// Any other status.
    #[error("it answered {0}; redirects are not followed")]
    Status(u16),
    /// It answered what cannot be used.
    #[error("its answer is not used: {0}")]
    Fault(#[from] Fault),
}

impl Failure {
    /// Whether somebody answered at all.
    #[must_use]
    pub fn answered(&self) -> bool {
        !matches!(self, Self::TimedOut(_) | Self::Lost(_) | Self::Cut(_))
    }

    /// Whether smaller pages may help.
    fn wants_less(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Cut(_) | Self::Fault(Fault::TooLarge(_)))
    }
}

/// What came of the last action.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing: it is this one's turn.
    Turn,
    /// The stored cursors.
    Cursor {
        /// The usual one.
        usual: Option<Seq>,
        /// Where it is to be read again: under which node id, and how far that has come.
        again: Option<(String, Seq)>,
    },
    /// A page that was checked.
    Page(Box<Answer>),
    /// The answer ended in good order, with fewer pages than were asked for.
    End,
    /// No page.
    Failed(Failure),
    /// The schema fits, or why it does not.
    Schema(Result<(), String>),
    /// The storage took the rows; so long did it take.
    Applied(Applied, Duration),
    /// It did not, or nobody knows: why.
    NotApplied(Kind, String),
    /// The cursor could not be read.
    NoCursor(String),
    /// What stands in memory only is to be written.
    Flush,
}

/// What to do next.
#[derive(Debug)]
pub enum Action {
    /// Read the stored cursor.
    Load,
    /// Ask for pages.
    Ask(Ask),
    /// Take the next page of the answer.
    Take,
    /// Find out whether the schema of this fingerprint fits.
    Judge(String),
    /// Store rows and move the cursor.
    Apply(Foreign),
    /// Nothing for now.
    Rest(Rest),
}

/// Why nothing is to be done for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// There is more: after the others have had their turn.
    More,
    /// There is nothing more until something changes.
    Idle,
    /// The peer failed.
    Failed(Failure),
    /// The storage failed.
    Storage(String),
    /// The channel cannot go on, and is looked at again now and then.
    Paused(String),
    /// It cannot go on until an operator has looked at it.
    Stopped(String),
}

impl State {
    /// Before anything is known.
    #[must_use]
    pub fn new(lane: Lane) -> Self {
        let (limit, fits) = (lane.most, Some(lane.print.clone()));
        Self {
            lane,
            phase: Phase::Unknown,
            again: None,
            stored: None,
            at: Seq(0),
            limit,
            streak: 0,
            fits,
            count: true,
        }
    }

    /// Everything at or below it was received.
    #[must_use]
    pub fn at(&self) -> Seq {
        self.at
    }

    /// Where all of it was read again, durably: under which node id, and its cursor.
    #[must_use]
    pub fn read_again(&self) -> Option<(&str, Seq)> {
        let ((id, upto), stored) = (self.again.as_ref()?, self.stored?);
        (self.phase == Phase::Ready && stored >= *upto).then_some((id.as_str(), stored))
    }

    /// What this knows is worth nothing: the stored cursors are read anew.
    pub fn forget(&mut self) {
        if self.stopped().is_none() {
            self.phase = Phase::Unknown;
        }
    }

    /// Whether something stands in memory that the stored cursor does not show.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        self.phase == Phase::Ready && self.at > self.stored.unwrap_or_default()
    }

    /// Why it is stopped.
    #[must_use]
    pub fn stopped(&self) -> Option<&str> {
        match &self.phase {
            Phase::Stopped(why) => Some(why),
            _ => None,
        }
    }

    /// An operator has looked at it: it goes on.
    pub fn resume(&mut self) {
        if self.stopped().is_some() {
            (self.phase, self.streak) = (Phase::Unknown, 0);
        }
    }

    /// The next page is to say how many events there are beyond it.
    pub fn count_next(&mut self) {
        self.count = true;
    }

    fn ask(&mut self) -> Action {
        let Lane { origin, channel, direct, most, pages, .. } = &self.lane;
        // one page at a time until the full size has been seen to work
        let pages = if self.limit < *most { 1 } else { *pages };
        self.phase = Phase::Asked { left: pages, first: true };
        Action::Ask(Ask {
            origin: origin.clone(),
            channel: channel.clone(),
            direct: *direct,
            from: self.at.next(),
            limit: self.limit,
            pages,
            count: std::mem::take(&mut self.count),
        })
    }

    fn failed(&mut self, failure: Failure) -> Action {
        self.phase = Phase::Ready;
        if failure.wants_less() {
            self.limit = (self.limit / 2).max(1);
        }
        Action::Rest(match failure {
            Failure::NotFound => Rest::Paused(failure.to_string()),
            other => Rest::Failed(other),
        })
    }

    fn stop(&mut self, why: String) -> Action {
        self.phase = Phase::Stopped(why.clone());
        Action::Rest(Rest::Stopped(why))
    }

    /// A page came while `left` were still to come.
    fn page(&mut self, answer: Answer, left: usize) -> Action {
        if answer.from != self.at.next() {
            return self.failed(Failure::Fault(Fault::Misplaced));
        }
        if let Some(print) = &answer.schema
            && self.fits.as_ref() != Some(print)
        {
            // the page is dropped: it comes again when it is known whether it fits
            self.phase = Phase::Schema { print: print.clone() };
            return Action::Judge(print.clone());
        }
        let more = answer.has_more(self.limit);
        let left = left.saturating_sub(1);
        let (last, next) = (answer.rows.last().map(|row| row.seq), answer.next);
        // who does not say what is safe, or is not the origin, is followed to its last row
        let to = match last {
            Some(last) if !self.lane.direct || !answer.echoed => last,
            None if !self.lane.direct || !answer.echoed => self.at,
            _ => Seq(next.0.saturating_sub(1)),
        };
        if last.is_none() {
            self.at = self.at.max(to);
            self.phase = Phase::Ready;
            return Action::Rest(Rest::Idle);
        }
        self.apply(answer, to, left, more)
    }

    fn apply(&mut self, answer: Answer, to: Seq, left: usize, more: bool) -> Action {
        self.phase = Phase::Applying { to, rows: answer.rows.len(), left, more };
        Action::Apply(self.foreign(answer.rows, answer.unfit, to))
    }

    /// What is applied, and how far the cursor gets by it.
    fn foreign(&self, rows: Vec<StoredRow>, unfit: BTreeMap<Seq, String>, to: Seq) -> Foreign {
        Foreign {
            origin: self.lane.origin.clone(),
            channel: self.lane.channel.clone(),
            again: self.again.as_ref().map(|(id, _)| id.clone()),
            rows,
            unfit,
            streak: self.streak,
            expect: self.stored,
            to,
        }
    }

    /// The storage took what was applied.
    fn applied(&mut self, applied: Applied, took: Duration) -> Action {
        let Phase::Applying { to, rows, left, more } = self.phase else { return self.lost_step() };
        if applied.stale {
            // another road moved the cursor: what this knew is worth nothing
            self.phase = Phase::Unknown;
            return Action::Rest(Rest::More);
        }
        if applied.too_many {
            return self.stop(format!(
                "too many rows cannot be stored: 100 in a row, or 10,000 in all, of {}; look at replicon_quarantine and replicon_conflicts, then `replicon peers retry`",
                self.lane.channel
            ));
        }
        (self.stored, self.at) = (Some(to), to);
        self.streak = applied.streak;
        if rows > 0 {
            self.pace(took);
        }
        match (more, left) {
            (true, 1..) => {
                self.phase = Phase::Asked { left, first: false };
                Action::Take
            }
            (more, _) => {
                self.phase = Phase::Ready;
                Action::Rest(if more { Rest::More } else { Rest::Idle })
            }
        }
    }

    /// The size of pages follows what a write takes.
    fn pace(&mut self, took: Duration) {
        if took > SLOW {
            self.limit = (self.limit / 2).max(1);
        } else if took < FAST {
            self.limit = (self.limit * 2).min(self.lane.most);
        }
    }

    fn flush(&mut self) -> Action {
        if !self.wants_flush() {
            return Action::Rest(Rest::Idle);
        }
        let to = self.at;
        self.phase = Phase::Applying { to, rows: 0, left: 0, more: false };
        Action::Apply(self.foreign(Vec::new(), BTreeMap::new(), to))
    }

    /// An outcome that answers no action of this state: everything is asked anew.
    fn lost_step(&mut self) -> Action {
        self.phase = Phase::Unknown;
        Action::Rest(Rest::More)
    }
}

/// One step.
#[must_use]
pub fn step(mut state: State, outcome: Outcome) -> (State, Action) {
    let action = match (state.phase.clone(), outcome) {
        (Phase::Stopped(why), _) => Action::Rest(Rest::Stopped(why)),
        (Phase::Unknown, Outcome::Turn) => Action::Load,
        (Phase::Unknown, Outcome::Cursor { usual, again }) => {
            state.stored = again.as_ref().map(|(_, seq)| *seq).or(usual);
            state.at = state.stored.unwrap_or_default();
            state.again = again.map(|(id, _)| (id, usual.unwrap_or_default()));
            state.ask()
        }
        (Phase::Unknown, Outcome::NoCursor(why)) => Action::Rest(Rest::Storage(why)),
        (Phase::Ready, Outcome::Turn) => state.ask(),
        (Phase::Ready, Outcome::Flush) => state.flush(),
        (Phase::Asked { left, .. }, Outcome::Page(answer)) => state.page(*answer, left),
        // the first page is owed
        (Phase::Asked { first: true, .. }, Outcome::End) => {
            state.failed(Failure::Cut("it sent no page".to_owned()))
        }
        // a server may end a long answer where it likes
        (Phase::Asked { .. }, Outcome::End) => {
            state.phase = Phase::Ready;
            more()
        }
        (Phase::Asked { .. } | Phase::Schema { .. }, Outcome::Failed(failure)) => {
            state.failed(failure)
        }
        (Phase::Schema { print }, Outcome::Schema(Ok(()))) => {
            (state.fits, state.phase) = (Some(print), Phase::Ready);
            more()
        }
        (Phase::Schema { .. }, Outcome::Schema(Err(why))) => {
            state.phase = Phase::Ready;
            Action::Rest(Rest::Paused(why))
        }
        (Phase::Applying { .. }, Outcome::Applied(applied, took)) => state.applied(applied, took),
        (Phase::Applying { .. }, Outcome::NotApplied(kind, why)) => {
            // a commit whose answer was lost is undecided: the stored cursor tells
            state.phase = Phase::Unknown;
            Action::Rest(match kind {
                Kind::Retry => Rest::Storage(why),
                Kind::Reject | Kind::Fatal => Rest::Paused(why),
            })
        }
        (_, Outcome::Flush) => Action::Rest(Rest::Idle),
        _ => state.lost_step(),
    };
    (state, action)
}

fn more() -> Action {
    Action::Rest(Rest::More)
}

#[cfg(test)]
mod tests;
