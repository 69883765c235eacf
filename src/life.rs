//! This node's own history: the id that it goes by, the ids before it, and who wants a new one drawn.
//!
//! An id stands for one unbroken history. Whoever learns that this node's history has parted (a
//! database that went back, a peer that has seen more of us than we know, rows that an operator put
//! back) asks here; the keeper of the history draws the new id. Nothing is served while none is
//! settled. Does not know queues, storage or peers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot, watch};

use crate::event::Seq;

/// An id that this node went by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastId {
    /// The id.
    pub id: String,
    /// The last seq that it shares with the id before it; `None` for the first of all.
    pub since: Option<Seq>,
}

/// One unbroken history of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its id.
    pub id: String,
    /// The last seq that it shares with the id before it; `None` for the first id of all.
    pub since: Option<Seq>,
    /// The ids before it, the oldest first.
    pub past: Vec<PastId>,
}

impl Life {
    /// From where a peer that follows `known` must read again: the last seq that this history shares
    /// with that one. `None` where nothing was before, `Some(0)` where nobody knows.
    #[must_use]
    pub fn since_for(&self, known: Option<&str>) -> Option<Seq> {
        let since = self.since?;
        let at = match known {
            Some(known) if known == self.id => return Some(since),
            // who follows none may have read of any of them
            None => 0,
            Some(known) => match self.past.iter().position(|past| past.id == known) {
                Some(at) => at,
                None => return Some(Seq(0)),
            },
        };
        // every id behind that one parted from it somewhere
        let behind = self.past.iter().skip(at + 1).map(|past| past.since.unwrap_or_default());
        Some(behind.fold(since, Seq::min))
    }
}

/// What the keeper of the history is asked to do.
#[derive(Debug)]
pub enum Ask {
    /// Rows of ours from this seq on are about to be put back: a mark is to be made durable.
    Recovering(Seq, oneshot::Sender<Result<(), String>>),
    /// They stand there: a new id is to be drawn.
    Recovered(oneshot::Sender<Result<(), String>>),
}

#[derive(Debug, Default)]
struct Asks {
    /// A peer has seen more of us than we know.
    went_back: bool,
    waiting: Vec<Ask>,
    /// The id as this node last knew it, settled or not.
    id: String,
    /// The first seq that this start may give out.
    first: Option<Seq>,
    /// The ids before the present one.
    past: Vec<String>,
    /// A new id was drawn already for one that nobody here knows.
    unknown: bool,
    /// Why the history is not settled, where somebody should know.
    trouble: Option<String>,
}

/// The history as the parts of a node share it.
#[derive(Debug)]
pub struct History {
    settled: watch::Sender<Option<Life>>,
    asks: Mutex<Asks>,
    bell: Notify,
}

impl History {
    /// Of a node that went by this id when it last ran.
    #[must_use]
    pub fn new(id: &str, past: Vec<String>) -> Self {
        let asks = Asks { id: id.to_owned(), past, ..Asks::default() };
        Self { settled: watch::channel(None).0, asks: Mutex::new(asks), bell: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Asks> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The settled history; `None` while there is none.
    #[must_use]
    pub fn settled(&self) -> watch::Receiver<Option<Life>> {
        self.settled.subscribe()
    }

    /// The id that this node goes by, settled or not.
    #[must_use]
    pub fn id(&self) -> String {
        self.lock().id.clone()
    }

    /// The first seq that this start may give out; `None` while that is not known.
    #[must_use]
    pub fn first_seq(&self) -> Option<Seq> {
        self.lock().first
    }

    /// A peer follows this id; `shown` tells whether it may have come so far with the present one.
    /// Whether it shows that this node went back: then nothing is served until a new id is drawn.
    ///
    /// An id that is neither the present one nor one before it is one that this node went by later,
    /// before it went back. That is believed once a start: of two live nodes of one name each would
    /// draw ids for ever, and their peers would not see that ids return.
    pub fn meets(&self, id: &str, shown: bool) -> bool {
        let mut asks = self.lock();
        let back = match () {
            () if asks.id == id => !shown,
            () if asks.past.iter().any(|past| past == id) => false,
            // nothing is served yet, and a fresh directory may still learn whose history it goes on with
            () if self.settled.borrow().is_none() => false,
            () => !std::mem::replace(&mut asks.unknown, true),
        };
        if back {
            asks.went_back = true;
            self.settled.send_replace(None);
            drop(asks);
            self.bell.notify_one();
        }
        back
    }

    /// Why the history is not settled, where somebody should know.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Rows of ours from this seq on are about to be put back. When this returns, a start that finds
    /// the mark draws a new id.
    ///
    /// # Errors
    /// Where the mark is not durable, or the node stops: for people.
    pub async fn recovering(&self, from: Seq) -> Result<(), String> {
        self.ask(|answer| Ask::Recovering(from, answer)).await
    }

    /// What was put back stands there: a new id is drawn, and peers read again from below it.
    ///
    /// # Errors
    /// As [`History::recovering`]; a later start draws it then.
    pub async fn recovered(&self) -> Result<(), String> {
        self.ask(Ask::Recovered).await
    }

    async fn ask(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Ask,
    ) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.lock().waiting.push(ask(answer));
        self.bell.notify_one();
        answered.await.unwrap_or_else(|_| Err("this node is stopping".to_owned()))
    }

    /// The storage has been met: the keeper looks at once.
    pub fn met(&self) {
        self.bell.notify_one();
    }

    // ---- for the keeper ----

    /// Nothing is served until [`History::settle`].
    pub fn unsettle(&self) {
        self.settled.send_replace(None);
    }

    /// This directory goes on with the history of that id.
    pub fn adopted(&self, owner: &str) {
        self.lock().past.push(owner.to_owned());
    }

    /// Another id was drawn: what was asked for under the one before it is done.
    pub fn drawn(&self, id: &str) {
        let mut asks = self.lock();
        let old = std::mem::replace(&mut asks.id, id.to_owned());
        asks.past.push(old);
        asks.went_back = false;
    }

    /// Why it is not settled; `None` where nothing is wrong.
    pub fn troubled(&self, why: Option<&str>) {
        self.lock().trouble = why.map(str::to_owned);
    }

    /// The history is settled, unless a peer has shown meanwhile that it is not. Whether it is.
    pub fn settle(&self, life: Life, first: Option<Seq>) -> bool {
        let mut asks = self.lock();
        asks.id.clone_from(&life.id);
        asks.first = first;
        if asks.went_back {
            return false;
        }
        self.settled.send_if_modified(|now| {
            let news = now.as_ref() != Some(&life);
            *now = Some(life);
            news
        });
        true
    }

    /// Whether a peer has shown that this node went back, since this was last asked.
    pub fn take_went_back(&self) -> bool {
        std::mem::take(&mut self.lock().went_back)
    }

    /// What is asked.
    pub fn take_asks(&self) -> Vec<Ask> {
        std::mem::take(&mut self.lock().waiting)
    }

    /// Returns when somebody asks.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(id: &str, since: Option<u64>) -> PastId {
        PastId { id: id.to_owned(), since: since.map(Seq) }
    }

    #[test]
    fn a_peer_reads_again_from_where_its_history_parted_from_ours() {
        let life = Life {
            id: "d".to_owned(),
            since: Some(Seq(900)),
            past: vec![past("a", None), past("b", Some(400)), past("c", Some(700))],
        };
        assert_eq!(life.since_for(Some("c")), Some(Seq(900)));
        assert_eq!(life.since_for(Some("b")), Some(Seq(700)));
        assert_eq!(life.since_for(Some("a")), Some(Seq(400)), "what b lost is lost to a");
        assert_eq!(life.since_for(Some("d")), Some(Seq(900)));
        assert_eq!(life.since_for(None), Some(Seq(400)));
        assert_eq!(life.since_for(Some("z")), Some(Seq(0)), "nobody knows");
        let first = Life { id: "a".to_owned(), since: None, past: Vec::new() };
        assert_eq!(first.since_for(Some("z")), None);
    }

    #[test]
    fn nothing_is_settled_while_a_peer_has_shown_that_it_is_not() {
        let history = History::new("a", vec!["z".to_owned()]);
        let life = Life { id: "a".to_owned(), since: None, past: Vec::new() };
        assert!(history.settle(life.clone(), Some(Seq(9))));
        assert_eq!(history.settled().borrow().as_ref(), Some(&life));
        assert!(!history.meets("z", false), "of an id before it");
        assert!(!history.meets("a", true));
        assert!(history.settled().borrow().is_some());
        assert!(history.meets("a", false));
        assert!(history.settled().borrow().is_none());
        assert!(!history.settle(life.clone(), Some(Seq(9))));
        assert!(history.take_went_back() && !history.take_went_back());
        assert!(history.settle(life, Some(Seq(9))));
        assert_eq!(history.first_seq(), Some(Seq(9)));
    }

    #[test]
    fn an_id_that_nobody_here_knows_is_believed_once_a_start() {
        let history = History::new("a", Vec::new());
        assert!(!history.meets("b", true), "nothing is settled yet");
        let life = Life { id: "a".to_owned(), since: None, past: Vec::new() };
        assert!(history.settle(life.clone(), None));
        assert!(history.meets("b", true), "it went by that one later");
        history.drawn("c");
        assert!(!history.take_went_back());
        assert!(!history.meets("a", false), "one before it");
        assert!(history.settle(Life { id: "c".to_owned(), ..life }, None));
        assert!(!history.meets("d", true), "two live nodes of one name");
    }

    #[tokio::test]
    async fn who_asks_a_keeper_that_is_gone_is_told() {
        let history = History::new("a", Vec::new());
        let asking = history.recovering(Seq(5));
        let keeping = async {
            history.rung().await;
            drop(history.take_asks());
        };
        let (answer, ()) = tokio::join!(asking, keeping);
        assert!(answer.unwrap_err().contains("stopping"));
    }
}
