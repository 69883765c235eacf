//! What an operator decides about dead letters: put back as new events, or discarded.
//!
//! A letter is put back by one script that notes it at once, over the appender's connection: so each
//! content is put back once, whatever dies when. Does not know who asks.

use std::collections::BTreeSet;
use std::future::Future;

use tokio::sync::oneshot;

use super::acks::check;
use super::connection::{Broken, next};
use super::handle::RedisQueue;
use super::inbox::Pending;
use super::letters::{Letter, Letters};
use super::loss::those_there;
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use crate::event::{Batch, Seq};
use crate::queue::file::dead::{DeadState, Filter};
use crate::queue::{AppendError, Appended};

/// How many letters are put back at once.
const AT_ONCE: usize = 64;

type Answer = oneshot::Receiver<Result<Appended, AppendError>>;

impl Shared {
    async fn link_to_decide(&self) -> Result<Link, String> {
        let link = self.linked(self.options.timeout).await;
        link.ok_or_else(|| self.refusing().unwrap_or_else(|| "Redis does not answer".to_owned()))
    }

    /// Calls `visit` with the letters that wait for a decision and that the filter takes, some at a
    /// time; how many they were.
    async fn each_dead<F, Fut>(&self, filter: &Filter, mut visit: F) -> Result<u64, String>
    where
        F: FnMut(Vec<Letter>) -> Fut,
        Fut: Future<Output = Result<u64, String>>,
    {
        let link = self.link_to_decide().await?;
        let (mut letters, mut n) = (Letters::new(), 0);
        while !letters.over {
            let some = letters.next(&link.work, &self.keys).await;
            let mut some = some.map_err(|why| {
                format!("the dead letters cannot be read: {why}; {n} were dealt with before")
            })?;
            some.retain(|l| l.letter.state == DeadState::Dead && filter.takes(&l.letter));
            if !some.is_empty() {
                n += visit(some).await?;
            }
        }
        Ok(n)
    }

    /// Those groups up to `last` that were to put a letter back and did not, by their seqs: there was
    /// none, and the answer was lost.
    pub async fn skipped_up_to(&self, link: &Link, last: Seq) -> Result<BTreeSet<Seq>, Broken> {
        let redrives: Vec<Seq> = {
            let undecided = lock(&self.undecided);
            let theirs = undecided.iter().filter(|group| group.last <= last);
            theirs.filter(|group| group.redrives.is_some()).map(|group| group.first).collect()
        };
        // what is not decided was handed out to nobody: it stands there, or was never added
        let there = those_there(self, link, redrives.clone()).await?;
        Ok(redrives.into_iter().filter(|first| !there.contains(first)).collect())
    }

    async fn discard(&self, letters: Vec<Letter>) -> Result<u64, String> {
        let link = self.link_to_decide().await?;
        let mut call = link.scripts.call(Script::Settle, 1 + letters.len(), 32 * letters.len());
        call.arg(&*link.run);
        for letter in &letters {
            call.arg(&letter.key);
        }
        let settled = async {
            let (word, mut rest) = link.work.ask(&call).await?.word()?;
            check(&word, "settled")?;
            next(&mut rest)?.number()
        };
        settled.await.map_err(|why| {
            self.broken(link.epoch, &why);
            format!("the dead letters cannot be marked: {why}")
        })
    }

    async fn clear_away(&self) -> Result<(), String> {
        let link = self.link_to_decide().await?;
        let cleared = self.purge_where_worth_it(&link).await;
        cleared.map_err(|why| format!("settled dead letters cannot be cleared away: {why}"))
    }
}

impl RedisQueue {
    /// How many letters that wait for a decision match.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn count_dead(&self, filter: &Filter) -> Result<u64, String> {
        self.shared.each_dead(filter, |some| async move { Ok(some.len() as u64) }).await
    }

    /// Marks matching letters that wait for a decision as discarded; how many.
    ///
    /// # Errors
    /// Where Redis does not answer; those of a later batch are as they were.
    pub async fn discard_dead(&self, filter: &Filter) -> Result<u64, String> {
        let _one = self.shared.deciding.lock().await;
        let n = self.shared.each_dead(filter, |some| self.shared.discard(some)).await?;
        self.shared.clear_away().await?;
        Ok(n)
    }

    /// Puts matching letters that wait for a decision back, as new events; `each` is told the old seq
    /// and the new one. How many. Entries of other programs are none of ours to put back.
    ///
    /// # Errors
    /// Why not all were put back. Those that were stay so.
    pub async fn retry_dead(
        &self,
        filter: &Filter,
        each: &mut (dyn FnMut(Seq, Seq) + Send),
    ) -> Result<u64, String> {
        let _one = self.shared.deciding.lock().await;
        let link = self.shared.link_to_decide().await?;
        let (mut letters, mut done) = (Letters::new(), 0);
        while !letters.over {
            let read = letters.next(&link.work, &self.shared.keys).await;
            let mut some = read.map_err(|why| {
                format!("the dead letters cannot be read: {why}; {done} were put back")
            })?;
            some.retain(|l| {
                l.is_ours() && l.letter.state == DeadState::Dead && filter.takes(&l.letter)
            });
            for few in chunks(some) {
                let put = self.put_back(few, each).await;
                done += put.map_err(|e| format!("{e}; {done} were put back before"))?;
            }
        }
        self.shared.clear_away().await?;
        Ok(done)
    }

    /// One batch; how many were put back.
    async fn put_back(
        &self,
        letters: Vec<Letter>,
        each: &mut (dyn FnMut(Seq, Seq) + Send),
    ) -> Result<u64, String> {
        let mut waiting: Vec<(Seq, Answer)> = Vec::with_capacity(letters.len());
        let mut failed: Option<AppendError> = None;
        for Letter { letter, .. } in letters {
            let (old, event) = (letter.event.seq, letter.event);
            let batch = Batch {
                channel: event.channel,
                mode: event.mode,
                received_at: event.received_at,
                payloads: vec![event.payload],
            };
            match self.push(batch, Some(old)) {
                Ok(answered) => waiting.push((old, answered)),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let mut n = 0;
        for (old, answered) in waiting {
            match answered.await {
                Ok(Ok(appended)) => {
                    each(old, appended.first);
                    n += 1;
                }
                Ok(Err(e)) => failed = Some(e),
                Err(_) => {
                    failed = Some(AppendError::Doubt { reason: "the queue ended".to_owned() })
                }
            }
        }
        match failed {
            Some(e) => Err(format!("{e} ({n} of this batch were put back)")),
            None => Ok(n),
        }
    }

    /// Hands a batch to the appender; what comes of it is awaited.
    pub(super) fn push(&self, batch: Batch, redrives: Option<Seq>) -> Result<Answer, AppendError> {
        let (pending, answered) = Pending::of(batch, redrives);
        self.shared.take_in(pending)?;
        Ok(answered)
    }
}

fn chunks(letters: Vec<Letter>) -> Vec<Vec<Letter>> {
    let mut all: Vec<Vec<Letter>> = Vec::new();
    for letter in letters {
        match all.last_mut() {
            Some(last) if last.len() < AT_ONCE => last.push(letter),
            _ => all.push(vec![letter]),
        }
    }
    all
}
