//! Dead letters: events that the storage refuses are counted, and kept once they were refused often
//! enough. Their entries are acknowledged as any other: until then, and after a crash, an event that has a
//! letter is known by it.
//!
//! Does not know why storage refuses an event.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::RedisWrite;

use super::acks::check;
use super::connection::{Broken, Reply, next};
use super::entry::{MAX_EVENTS, header_of};
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use crate::event::{Event, Seq};
use crate::queue::{DeadLetterError, DeadReason};
use crate::task;

/// The longest text of a reason, in bytes.
const MAX_TEXT: usize = 4096;
/// About how many are looked at at once: of those that are to be cleared away, and of all.
const PURGED: u32 = 100;
const LEARNED: u32 = 5000;
/// More than any server holds, and exact in a script.
const NO_CEILING: u64 = 1 << 52;
/// The pause before letters that are not taken are tried again.
const KEEP_AGAIN: Duration = Duration::from_millis(200);
/// Less than this of settled letters is not worth clearing away.
const WORTH_PURGING: u64 = 1 << 20;

/// What became of letters that were to be kept.
enum Kept {
    Dead,
    /// The least often refused one was refused so often.
    Again(u64),
    Full,
}

impl Shared {
    /// Keeps events as dead letters, each once: all of them, or none.
    ///
    /// # Errors
    /// [`DeadLetterError::Again`] where they are to be tried again first.
    pub async fn keep_dead(&self, letters: &[(Event, DeadReason)]) -> Result<(), DeadLetterError> {
        self.keep_within(letters, self.options.dead_letter_max_bytes).await
    }

    async fn keep_within(
        &self,
        letters: &[(Event, DeadReason)],
        max_bytes: u64,
    ) -> Result<(), DeadLetterError> {
        if letters.is_empty() {
            return Ok(());
        }
        let silent = || DeadLetterError::Disk(self.refusing().unwrap_or_default());
        let link = self.linked(self.options.timeout).await.ok_or_else(silent)?;
        let mut purged = false;
        loop {
            match self.try_to_keep(&link, letters, max_bytes).await {
                Ok(Kept::Dead) => return self.note_kept(&link, letters).await,
                Ok(Kept::Again(attempts)) => {
                    lock(&self.tried).extend(letters.iter().map(|(event, _)| event.seq));
                    return Err(DeadLetterError::Again { attempts, of: self.enough() });
                }
                Ok(Kept::Full) if !purged => {
                    purged = true;
                    self.purge(&link).await.map_err(|why| self.refused(&link, &why))?;
                }
                Ok(Kept::Full) => return Err(DeadLetterError::Full { max_bytes }),
                Err(why) => return Err(self.refused(&link, &why)),
            }
        }
    }

    /// Redis has these letters, unless it has gone back meanwhile: that is looked for before there is
    /// another link.
    async fn note_kept(
        &self,
        link: &Link,
        letters: &[(Event, DeadReason)],
    ) -> Result<(), DeadLetterError> {
        let _gate = self.gate.read().await;
        if self.link().is_none_or(|now| now.epoch != link.epoch) {
            let text = "the connection broke; whether Redis has it is looked up";
            return Err(DeadLetterError::Disk(text.to_owned()));
        }
        lock(&self.dead).kept(letters);
        let mut tried = lock(&self.tried);
        for (event, _) in letters {
            tried.remove(&event.seq);
        }
        Ok(())
    }

    /// Keeps letters of dead events once more that Redis has gone back over, however long that takes;
    /// whether it was done before the queue stopped.
    pub async fn keep_again(&self, letters: &[(Event, DeadReason)]) -> bool {
        tracing::warn!(
            "Redis went back over {} dead letters of events that are in hand: they are kept again",
            letters.len()
        );
        let mut said = String::new();
        loop {
            // they had found room before
            match self.keep_within(letters, NO_CEILING).await {
                Ok(()) => return true,
                // the count of their attempts went with them
                Err(DeadLetterError::Again { .. }) => continue,
                Err(why) if why.to_string() != said => {
                    said = why.to_string();
                    tracing::error!(
                        "dead letters that Redis went back over cannot be kept: {said}"
                    );
                }
                Err(_) => {}
            }
            if !self.leasing.load(Ordering::SeqCst) {
                return false;
            }
            task::sleep(KEEP_AGAIN).await;
        }
    }

    fn refused(&self, link: &Link, why: &Broken) -> DeadLetterError {
        self.broken(link.epoch, why);
        DeadLetterError::Disk(why.to_string())
    }

    /// How often an event is refused before it is a dead letter.
    fn enough(&self) -> u64 {
        self.options.max_retries.max(1)
    }

    async fn try_to_keep(
        &self,
        link: &Link,
        letters: &[(Event, DeadReason)],
        max_bytes: u64,
    ) -> Result<Kept, Broken> {
        let bytes: usize = letters.iter().map(|(event, _)| event.payload.len() + 256).sum();
        let mut call = link.scripts.call(Script::Dead, 3 + 5 * letters.len(), bytes);
        call.arg(&*link.run).arg(self.enough()).arg(max_bytes);
        for (event, why) in letters {
            call.arg(event.seq.0).arg(&why.code);
            call.write_arg(head_of(&why.text, MAX_TEXT).as_bytes());
            call.arg(header_of(event.mode, event.received_at, &event.channel));
            call.write_arg(&event.payload);
        }
        let (word, mut rest) = link.work.ask(&call).await?.word()?;
        match word.as_str() {
            "again" => Ok(Kept::Again(next(&mut rest)?.number()?)),
            "full" => Ok(Kept::Full),
            _ => check(&word, "dead").map(|()| Kept::Dead),
        }
    }

    /// Clears settled letters away where they take up too much.
    pub async fn purge_where_worth_it(&self, link: &Link) -> Result<(), Broken> {
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keys.counts).arg("dead_bytes").arg("settled_bytes");
        let mut said = link.work.ask(&command).await?.list()?.into_iter();
        let mut number = || -> Result<u64, Broken> {
            let reply = next(&mut said)?;
            if reply.is_nil() { Ok(0) } else { reply.number() }
        };
        let (all, settled) = (number()?, number()?);
        if settled > WORTH_PURGING.max(all / 2) { self.purge(link).await } else { Ok(()) }
    }

    async fn purge(&self, link: &Link) -> Result<(), Broken> {
        let mut cursor = Some("0".to_owned());
        while let Some(from) = cursor {
            let (page, next_page) = scan(link, &self.keys.states, &from, PURGED).await?;
            cursor = next_page;
            let settled = |(_, state): &(String, String)| {
                state.starts_with("redriven ") || state.starts_with("discarded ")
            };
            let keys: Vec<String> = page.into_iter().filter(settled).map(|(key, _)| key).collect();
            if keys.is_empty() {
                continue;
            }
            lock(&self.dead).clear(keys.iter().filter_map(|key| seq_of(key)));
            let mut call = link.scripts.call(Script::Purge, 2 + keys.len(), 32 * keys.len());
            call.arg(&*link.run).arg(MAX_EVENTS).arg(&keys);
            let (word, rest) = link.work.ask(&call).await?.word()?;
            check(&word, "purged")?;
            let gone: Result<Vec<String>, Broken> = rest.map(Reply::text).collect();
            let gone: Vec<Seq> = gone?.iter().filter_map(|key| seq_of(key)).collect();
            lock(&self.dead).cleared(keys.iter().filter_map(|key| seq_of(key)), &gone);
        }
        Ok(())
    }

    /// Learns which seqs have a dead letter, and which were refused before; whether Redis has gone back
    /// over letters.
    pub async fn learn_dead(&self, link: &Link) -> Result<bool, Broken> {
        let dead = seqs_of(link, &self.keys.states).await?;
        let tried = seqs_of(link, &self.keys.tries).await?;
        *lock(&self.tried) = tried;
        Ok(lock(&self.dead).found(dead))
    }
}

/// A page of a hash, and where the next begins.
async fn scan(
    link: &Link,
    key: &str,
    from: &str,
    count: u32,
) -> Result<(Vec<(String, String)>, Option<String>), Broken> {
    let mut command = redis::cmd("HSCAN");
    command.arg(key).arg(from).arg("COUNT").arg(count);
    let mut said = link.work.ask(&command).await?.list()?.into_iter();
    let cursor = next(&mut said)?.text()?;
    let page = next(&mut said)?.pairs()?;
    Ok((page, (cursor != "0").then_some(cursor)))
}

/// A field that is a seq: not that of another program's entry.
fn seq_of(field: &str) -> Option<Seq> {
    field.parse().ok().map(Seq)
}

/// The fields of a hash that are seqs.
async fn seqs_of(link: &Link, key: &str) -> Result<BTreeSet<Seq>, Broken> {
    let (mut seqs, mut cursor) = (BTreeSet::new(), Some("0".to_owned()));
    while let Some(from) = cursor {
        let (page, next_page) = scan(link, key, &from, LEARNED).await?;
        cursor = next_page;
        seqs.extend(page.iter().filter_map(|(field, _)| seq_of(field)));
    }
    Ok(seqs)
}

/// As much of a text as fits, cut between characters.
fn head_of(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(head_of("short", 9), "short");
        assert_eq!(head_of("aää", 3), "aä");
        assert_eq!(head_of("aää", 4), "aä");
    }
}
