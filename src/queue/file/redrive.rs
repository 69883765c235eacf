//! What an operator decides about dead letters: put back as new events, or discarded.
//!
//! A letter is put back under a seq that stands in its log, durably, before the event is appended. A
//! process that died between the two is settled by the next start, which looks whether the log holds
//! that seq: so each content is put back once. Does not know who asks.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::dead::{DeadLetter, DeadLetters, DeadState, Filter, read_all};
use super::handle::{FileQueue, Shared, lock};
use super::log::{Index, LogOptions};
use super::record::Kind;
use super::segment::{Frames, Header, HeaderError, Step, path_of};
use crate::event::{Batch, Seq};
use crate::fsx::DiskFile;
use crate::queue::AppendError;
use crate::task;

/// How many letters are put back at once.
const AT_ONCE: usize = 256;

/// Decides what became of letters that were being put back: those whose new seq the log holds are put
/// back, the others are dead as before. `when` says when that broke off.
pub(super) fn settle(
    dead: &DeadLetters,
    main: &LogOptions,
    index: &Index,
    when: &str,
) -> io::Result<()> {
    let open = dead.redriving();
    if open.is_empty() {
        return Ok(());
    }
    let wanted: BTreeSet<Seq> = open.iter().map(|(_, new)| *new).collect();
    let held = held(main, index, &wanted)?;
    let settled = |(old, new): &(Seq, Seq)| {
        let state = if held.contains(new) { DeadState::Redriven(*new) } else { DeadState::Dead };
        (*old, state)
    };
    let marks: Vec<_> = open.iter().map(settled).collect();
    let there = marks.iter().filter(|(_, state)| *state != DeadState::Dead).count();
    tracing::warn!(
        "{} dead letters were being put back when {when}: {there} stand in the log, {} {} dead as before",
        marks.len(),
        marks.len() - there,
        if marks.len() - there == 1 { "is" } else { "are" }
    );
    dead.mark(&marks)
}

/// Which of `wanted` the log holds. One that may lie in a stretch that cannot be read counts as held:
/// that stretch is reported, and putting a letter back twice would store it twice.
fn held(main: &LogOptions, index: &Index, wanted: &BTreeSet<Seq>) -> io::Result<BTreeSet<Seq>> {
    let mut held = BTreeSet::new();
    let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(held) };
    let mut place = index.last_begun_by(first.0);
    // everything up to here was looked at
    let mut seen: Option<Seq> = None;
    // the segment before, where it was read whole
    let mut whole: Option<u64> = None;
    while let Some(segment) = place {
        let file = main.disk.open(&path_of(&main.base, segment.begun))?;
        let file: Arc<dyn DiskFile> = file.into();
        let (header, start) = match Header::read(&*file) {
            Ok(found) => found,
            Err(HeaderError::Io(e)) => return Err(e),
            Err(_) => {
                place = index.after(Some(segment.begun));
                continue;
            }
        };
        // before the oldest frame there is, and between segments where one could not be read; behind
        // one that was read to its named end lie seqs whose write failed, and nothing else
        let before = seen.map_or(Seq(0), Seq::next);
        let follows = header.previous.is_some_and(|(of, _)| whole == Some(of));
        if !follows && seen.is_none_or(|seen| header.last > seen) {
            held.extend(wanted.range(before..=header.last.max(before)));
        }
        let mut at = header.last.max(seen.unwrap_or_default());
        let mut hole = false;
        let mut frames = Frames::new(file, header.salt(), start);
        loop {
            match frames.next(segment.end)? {
                Step::End => break,
                Step::Hole(..) => hole = true,
                Step::Frame(_, head, _) if head.kind == Kind::Events => {
                    let from = if hole { at.next() } else { head.first };
                    held.extend(wanted.range(from..=head.last()));
                    (at, hole) = (head.last(), false);
                    if at >= *last {
                        return Ok(held);
                    }
                }
                Step::Frame(..) => {}
            }
        }
        // a hole at the end reaches to what the next header says
        seen = (!hole).then_some(at).or(seen);
        whole = (!hole).then_some(segment.begun);
        place = index.after(Some(segment.begun));
    }
    Ok(held)
}

impl Shared {
    /// A letter whose append failed is settled when the log goes on: while any is being put back no
    /// segment is deleted.
    pub(super) fn settle_abandoned(&self) {
        if self.dead.is_redriving()
            && let Ok(_nobody_puts_back) = self.redriving.try_lock()
            && self.refusing().is_none()
            && let Err(e) = self.settle_redriving()
        {
            tracing::error!("{e}");
        }
    }

    fn settle_redriving(&self) -> Result<(), String> {
        if let Some(why) = self.refusing() {
            return Err(format!("the log takes no appends: {why}"));
        }
        settle(&self.dead, &self.main, &self.index, "the log failed")
            .map_err(|e| format!("what was put back earlier cannot be looked up: {e}"))
    }

    /// Calls `visit` for each letter that waits for a decision and that the filter takes.
    fn each_dead(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(DeadLetter) -> io::Result<()>,
    ) -> io::Result<()> {
        read_all(&*self.disk, self.dead.base(), &mut |_, _| {}, &mut |letter| {
            // the node's own word, not that of a mark that may not be durable yet
            let waits = self.dead.state(letter.event.seq) == Some(DeadState::Dead);
            if waits && filter.takes(&letter) { visit(letter) } else { Ok(()) }
        })
    }
}

impl FileQueue {
    /// Ends the red state: forgets the reported damage; how many reports that were. Blocks.
    ///
    /// # Errors
    /// What the disk says; then nothing has changed.
    pub fn acknowledge_damage(&self) -> io::Result<usize> {
        let mut state = self.shared.state();
        let n = state.record.damage.len();
        if n > 0 {
            state.update(|record| {
                let seen = std::mem::take(&mut record.damage);
                record.acknowledged.extend(seen);
                let most = super::state::MAX_DAMAGE;
                let over = record.acknowledged.len().saturating_sub(most);
                record.acknowledged.drain(..over);
            })?;
            lock(&self.shared.damage).clear();
        }
        Ok(n)
    }

    /// Clears settled dead letters away, however few they are. Blocks.
    ///
    /// # Errors
    /// What the disk says; no letter is lost then.
    pub fn clear_dead(&self) -> io::Result<()> {
        self.shared.purge_settled()
    }

    /// How many letters that wait for a decision match.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn count_dead(&self, filter: &Filter) -> Result<u64, String> {
        let (shared, filter) = (self.shared.clone(), filter.clone());
        task::blocking(move || {
            let mut n = 0;
            let result = shared.each_dead(&filter, &mut |_| {
                n += 1;
                Ok(())
            });
            result.map(|()| n).map_err(|e| format!("the dead letters cannot be read: {e}"))
        })
        .await
    }

    /// Marks matching letters that wait for a decision as discarded; how many.
    ///
    /// # Errors
    /// What the disk says; then those of a later batch are as they were.
    pub async fn discard_dead(&self, filter: &Filter) -> Result<u64, String> {
        let _one = self.shared.redriving.lock().await;
        let (shared, filter) = (self.shared.clone(), filter.clone());
        task::blocking(move || {
            let mut seqs = Vec::new();
            shared.each_dead(&filter, &mut |letter| {
                seqs.push((letter.event.seq, DeadState::Discarded));
                Ok(())
            })?;
            for batch in seqs.chunks(AT_ONCE) {
                shared.dead.mark(batch)?;
            }
            Ok(seqs.len() as u64)
        })
        .await
        .map_err(|e: io::Error| format!("the dead letters cannot be marked: {e}"))
    }

    /// Puts matching letters that wait for a decision back into the queue, as new events; `each` is
    /// told the old seq and the new one. How many.
    ///
    /// # Errors
    /// Why not all were put back. Those that were stay so.
    pub async fn retry_dead(
        &self,
        filter: &Filter,
        each: &mut (dyn FnMut(Seq, Seq) + Send),
    ) -> Result<u64, String> {
        let _one = self.shared.redriving.lock().await;
        let shared = self.shared.clone();
        task::blocking(move || shared.settle_redriving()).await?;
        let (give, mut take) = mpsc::channel(AT_ONCE);
        let (shared, filter) = (self.shared.clone(), filter.clone());
        let reading = task::blocking(move || {
            shared.each_dead(&filter, &mut |letter| {
                give.blocking_send(letter).map_err(|_| io::Error::other("no more are wanted"))
            })
        });
        let putting = async {
            let mut done = 0;
            let mut batch = Vec::with_capacity(AT_ONCE);
            while take.recv_many(&mut batch, AT_ONCE).await > 0 {
                done += self.put_back(&mut batch, each).await.map_err(|e| (done, e))?;
            }
            drop(take);
            Ok(done)
        };
        let (read, put) = tokio::join!(reading, putting);
        match (put, read) {
            (Err((done, e)), _) => Err(format!("{e}; {done} were put back before it")),
            (Ok(done), Err(e)) => {
                Err(format!("the dead letters cannot be read: {e}; {done} were put back"))
            }
            (Ok(done), Ok(())) => Ok(done),
        }
    }

    /// One batch: appended together, then marked. A letter whose append failed stays as it is being
    /// put back, until somebody looks whether the log holds it.
    async fn put_back(
        &self,
        batch: &mut Vec<DeadLetter>,
        each: &mut (dyn FnMut(Seq, Seq) + Send),
    ) -> Result<u64, String> {
        let mut waiting = Vec::with_capacity(batch.len());
        let mut failed: Option<AppendError> = None;
        for DeadLetter { event, .. } in batch.drain(..) {
            let old = event.seq;
            let one = Batch {
                channel: event.channel,
                mode: event.mode,
                received_at: event.received_at,
                payloads: vec![event.payload],
            };
            match self.push(one, Some(old)) {
                Ok(answered) => waiting.push((old, answered)),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let mut marks = Vec::with_capacity(waiting.len());
        for (old, answered) in waiting {
            match answered.await {
                Ok(Ok(appended)) => {
                    each(old, appended.first);
                    marks.push((old, DeadState::Redriven(appended.first)));
                }
                Ok(Err(e)) => failed = Some(e),
                Err(_) => failed = Some(AppendError::Doubt { reason: "the log ended".to_owned() }),
            }
        }
        let (n, shared) = (marks.len() as u64, self.shared.clone());
        let marked = task::blocking(move || shared.dead.mark(&marks)).await;
        if let Err(e) = marked {
            return Err(format!("{n} were put back, which could not be noted yet: {e}"));
        }
        match failed {
            Some(e) => Err(format!("{e} ({n} of this batch were put back)")),
            None => Ok(n),
        }
    }
}
