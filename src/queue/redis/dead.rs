//! Dead letters: events that the storage refuses are counted, and kept once they were refused often
//! enough. Their entries are acknowledged as any other: until then, and after a crash, an event that has a
//! letter is known by it.
//!
//! Does not know why storage refuses an event.

use redis::RedisWrite;

use super::acks::check;
use super::connection::{Broken, next};
use super::entry::{MAX_EVENTS, header_of};
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use crate::event::{Event, Seq};
use crate::queue::{DeadLetterError, DeadReason};

/// The longest text of a reason, in bytes.
const MAX_TEXT: usize = 4096;
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
        if letters.is_empty() {
            return Ok(());
        }
        let silent = || DeadLetterError::Disk(self.refusing().unwrap_or_default());
        let link = self.linked(self.options.timeout).await.ok_or_else(silent)?;
        let mut purged = false;
        loop {
            match self.try_to_keep(&link, letters).await {
                Ok(Kept::Dead) => {
                    lock(&self.dead).extend(letters.iter().map(|(event, _)| event.seq));
                    let mut tried = lock(&self.tried);
                    for (event, _) in letters {
                        tried.remove(&event.seq);
                    }
                    return Ok(());
                }
                Ok(Kept::Again(attempts)) => {
                    lock(&self.tried).extend(letters.iter().map(|(event, _)| event.seq));
                    return Err(DeadLetterError::Again { attempts, of: self.enough() });
                }
                Ok(Kept::Full) if !purged => {
                    purged = true;
                    self.purge(&link).await.map_err(|why| self.refused(&link, &why))?;
                }
                Ok(Kept::Full) => {
                    let max_bytes = self.options.dead_letter_max_bytes;
                    return Err(DeadLetterError::Full { max_bytes });
                }
                Err(why) => return Err(self.refused(&link, &why)),
            }
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
    ) -> Result<Kept, Broken> {
        let bytes: usize = letters.iter().map(|(event, _)| event.payload.len() + 256).sum();
        let mut call = link.scripts.call(Script::Dead, 3 + 5 * letters.len(), bytes);
        call.arg(&*link.run).arg(self.enough()).arg(self.options.dead_letter_max_bytes);
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
        let mut cursor = "0".to_owned();
        loop {
            let mut call = link.scripts.call(Script::Purge, 3, 64);
            call.arg(&*link.run).arg(&cursor).arg(MAX_EVENTS);
            let (word, mut rest) = link.work.ask(&call).await?.word()?;
            check(&word, "purged")?;
            cursor = next(&mut rest)?.text()?;
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    /// Learns which seqs have a dead letter, and which were refused before.
    pub async fn learn_dead(&self, link: &Link) -> Result<(), Broken> {
        let dead = seqs_of(link, &self.keys.states).await?;
        let tried = seqs_of(link, &self.keys.tries).await?;
        *lock(&self.dead) = dead.into_iter().collect();
        *lock(&self.tried) = tried.into_iter().collect();
        Ok(())
    }
}

/// The fields of a hash that are seqs.
async fn seqs_of(link: &Link, key: &str) -> Result<Vec<Seq>, Broken> {
    let (mut seqs, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let mut command = redis::cmd("HSCAN");
        command.arg(key).arg(&cursor).arg("COUNT").arg(5000);
        let mut said = link.work.ask(&command).await?.list()?.into_iter();
        cursor = next(&mut said)?.text()?;
        let pairs = next(&mut said)?.pairs()?;
        seqs.extend(pairs.iter().filter_map(|(field, _)| field.parse().ok()).map(Seq));
        if cursor == "0" {
            return Ok(seqs);
        }
    }
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
