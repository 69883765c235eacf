//! Dead letters as they stand in Redis: read in order, each with what became of it. Reads only, also
//! beside a running node.
//!
//! Does not know who keeps them, nor what is done with them.

use std::io;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::address::{Keys, Options};
use super::connection::{Broken, Reply, Wire};
use super::entry::{EntryId, Names, parts};
use crate::event::{Event, Micros, ModeTag, Name, Seq};
use crate::queue::DeadReason;
use crate::queue::file::dead::{DeadLetter, DeadState};

/// How many letters are read at once.
const AT_ONCE: usize = 200;
/// What stands for the channel of an entry that is not ours.
const NO_CHANNEL: &str = "foreign";

/// A letter, and under which field its state is kept.
pub(super) struct Letter {
    pub key: String,
    pub letter: DeadLetter,
}

impl Letter {
    /// Whether it is an event of ours, and can be put back.
    pub fn is_ours(&self) -> bool {
        self.key.bytes().all(|b| b.is_ascii_digit())
    }
}

/// Where the reading of letters stands.
pub(super) struct Letters {
    behind: Option<EntryId>,
    names: Names,
    pub over: bool,
}

impl Letters {
    pub fn new() -> Self {
        Self { behind: None, names: Names::default(), over: false }
    }

    /// The next letters; `over` after the last.
    pub async fn next(&mut self, wire: &Wire, keys: &Keys) -> Result<Vec<Letter>, Broken> {
        let from = self.behind.map_or_else(|| "-".to_owned(), |behind| format!("({behind}"));
        let mut range = redis::cmd("XRANGE");
        range.arg(&keys.dlq).arg(from).arg("+").arg("COUNT").arg(AT_ONCE);
        let entries = wire.ask(&range).await?.list()?;
        self.over = entries.len() < AT_ONCE;
        let mut letters = Vec::with_capacity(entries.len());
        for entry in entries {
            let (id, fields) = parts(entry)?;
            self.behind = Some(id);
            letters.extend(fields.and_then(|fields| letter(id, &fields, &mut self.names)));
        }
        if letters.is_empty() {
            return Ok(letters);
        }
        let mut ask = redis::cmd("HMGET");
        ask.arg(&keys.states);
        for letter in &letters {
            ask.arg(&letter.key);
        }
        let states = wire.ask(&ask).await?.list()?;
        for (letter, state) in letters.iter_mut().zip(states) {
            letter.letter.state = state_of(state)?;
        }
        Ok(letters)
    }
}

/// `dead <id> <bytes>`, `discarded …`, `redriven … <seq>`; a letter without a word waits like any.
fn state_of(reply: Reply) -> Result<DeadState, Broken> {
    if reply.is_nil() {
        return Ok(DeadState::Dead);
    }
    let text = reply.text()?;
    let mut words = text.split(' ');
    Ok(match words.next() {
        Some("discarded") => DeadState::Discarded,
        Some("redriven") => {
            let new = words.nth(2).and_then(|seq| seq.parse().ok());
            DeadState::Redriven(Seq(new.ok_or_else(|| Broken::odd("a letter's new seq"))?))
        }
        _ => DeadState::Dead,
    })
}

/// An entry of the dead-letter stream; `None` where it is no letter of ours or of this form.
fn letter(id: EntryId, fields: &[Bytes], names: &mut Names) -> Option<Letter> {
    let pairs: Vec<(&[u8], &Bytes)> = fields
        .chunks_exact(2)
        .filter_map(|pair| if let [name, value] = pair { Some((&name[..], value)) } else { None })
        .collect();
    let field = |name: &str| pairs.iter().find(|(n, _)| *n == name.as_bytes()).map(|(_, v)| *v);
    let text = |name| field(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let mut reason = DeadReason { code: text("code")?, text: text("text")? };
    if let Some(key) = text("seq") {
        let attempts = text("attempts").unwrap_or_default();
        reason.text.push_str(&format!(" (refused {attempts} times)"));
        let head = names.head(field("h")?)?;
        let event = Event {
            seq: Seq(key.parse().ok()?),
            channel: head.channel,
            mode: head.mode,
            received_at: head.received_at,
            payload: field("p")?.clone(),
        };
        return Some(Letter { key, letter: DeadLetter { event, reason, state: DeadState::Dead } });
    }
    let key = text("id")?;
    let theirs = EntryId::read(&key)?;
    // behind the id, the code and the text, two of each
    let payload = object(pairs.get(3..)?).to_string();
    let event = Event {
        seq: Seq(theirs.first),
        channel: Name::new(NO_CHANNEL).ok()?,
        mode: ModeTag::Raw,
        received_at: Micros(i64::try_from(id.first).ok()?.saturating_mul(1000)),
        payload: payload.into_bytes().into(),
    };
    Some(Letter { key, letter: DeadLetter { event, reason, state: DeadState::Dead } })
}

/// The fields of an entry that is not ours, for people; in Redis they stand byte for byte.
fn object(pairs: &[(&[u8], &Bytes)]) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let members = pairs.iter().map(|(name, value)| (text(name), Value::String(text(value))));
    Value::Object(members.collect::<Map<String, Value>>())
}

/// Reads all dead letters, oldest first. Takes nothing over and changes nothing. `progress` is told now
/// and then how many of how many are done. Blocks; not to be called from a runtime.
///
/// # Errors
/// Where Redis does not answer, and what `visit` returns.
pub fn read_all(
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
    visit: &mut dyn FnMut(DeadLetter) -> io::Result<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let wire = Wire::open(options).await.map_err(silent)?;
        let keys = Keys::of(options);
        let mut count = redis::cmd("XLEN");
        count.arg(&keys.dlq);
        let of = wire.ask(&count).await.and_then(Reply::number).map_err(silent)?;
        let (mut letters, mut done) = (Letters::new(), 0);
        while !letters.over {
            for letter in letters.next(&wire, &keys).await.map_err(silent)? {
                visit(letter.letter)?;
                done += 1;
            }
            progress(done, of.max(done));
        }
        Ok(())
    })
}

fn silent(why: Broken) -> io::Error {
    io::Error::other(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(texts: &[&'static str]) -> Vec<Bytes> {
        texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()
    }

    fn read(texts: &[&'static str]) -> Option<Letter> {
        letter(EntryId { first: 9, second: 0 }, &fields(texts), &mut Names::default())
    }

    #[test]
    fn a_letter_of_ours_is_the_event_as_it_was() {
        let found = read(&[
            "seq",
            "5",
            "code",
            "23514",
            "text",
            "a check",
            "attempts",
            "3",
            "h",
            "1 s 7 a",
            "p",
            "{\"n\":1}",
        ])
        .unwrap();
        assert!(found.is_ours());
        let DeadLetter { event, reason, .. } = found.letter;
        assert_eq!(
            (event.seq, event.channel.as_str(), event.mode),
            (Seq(5), "a", ModeTag::Structured)
        );
        assert_eq!((&event.payload[..], event.received_at), (&b"{\"n\":1}"[..], Micros(7)));
        assert_eq!(reason.text, "a check (refused 3 times)");
    }

    #[test]
    fn an_entry_of_another_program_is_shown_with_its_own_fields_alone() {
        let found = read(&[
            "id",
            "1790-3",
            "code",
            "foreign entry",
            "text",
            "x",
            "id",
            "theirs",
            "payload",
            "{}",
        ])
        .unwrap();
        assert!(!found.is_ours());
        assert_eq!(&found.letter.event.payload[..], br#"{"id":"theirs","payload":"{}"}"#);
        assert_eq!(found.letter.event.received_at, Micros(9000));
    }

    #[test]
    fn what_is_no_letter_is_passed_over() {
        for none in [
            &[][..],
            &["seq", "5"],
            &["seq", "x", "code", "c", "text", "t", "h", "1 r 7 a", "p", "{}"],
            &["seq", "5", "code", "c", "text", "t", "h", "7", "p", "{}"],
        ] {
            assert!(read(none).is_none(), "{none:?}");
        }
    }
}
