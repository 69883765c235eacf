//! Taking the stream: whose it is, what it holds, and what other consumers of the group left behind.
//!
//! Does not judge what is found: whether something is lost is reckoned elsewhere.

use super::acks::check;
use super::connection::{Broken, Reply, Wire, next};
use super::entry::EntryId;
use super::scripts::{Script, Scripts};
use super::shared::{Link, Shared, lock};
use crate::event::{ChannelName, Name, Seq};
use crate::queue::accounts::Load;

/// Another process must have been silent for so long before its stream is taken over.
const SILENT_SECONDS: u64 = 30;
/// How many entries are claimed at once.
const AT_ONCE: u64 = 1000;

/// What the stream holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Claimed {
    /// It was ours before.
    pub known: bool,
    /// The last id that any entry ever had.
    pub top: EntryId,
    /// The first entry that stands there.
    pub first: Option<EntryId>,
    /// The last id that the group was handed.
    pub handed: EntryId,
    /// Entries, those of other programs included.
    pub len: u64,
    /// Dead letters.
    pub letters: u64,
    /// The last seq that was added.
    pub last: Seq,
    /// Events of ours, as they are counted.
    pub total: u64,
    /// The entries that hold them.
    pub entries: u64,
    /// Bytes of payload of the longest entry.
    pub biggest: u64,
    /// Entries of other programs that were moved away.
    pub foreign: u64,
    /// What is counted, a channel each.
    pub channels: Vec<(ChannelName, Load)>,
}

impl Claimed {
    /// Whether the stream holds what is counted beside it, and the counts agree. They do not where an
    /// append-only file was cut within a transaction: what a server leaves of it is carried out with the
    /// next one when that file is loaded once more.
    pub fn adds_up(&self) -> bool {
        let events: u64 = self.channels.iter().map(|(_, load)| load.events).sum();
        self.len >= self.entries && events == self.total
    }
}

/// Whose the stream is.
pub(super) enum Claim {
    Had(Box<Claimed>),
    /// Another node's.
    Other(String),
    /// Another process's of this node's name.
    Alive(String),
}

/// Takes it for one connection.
pub(super) async fn claim(
    shared: &Shared,
    wire: &Wire,
    scripts: &Scripts,
    run: &str,
) -> Result<Claim, Broken> {
    let (node_id, starts) = {
        let node_id = lock(&shared.node).record.node_id.clone();
        (node_id, lock(&shared.book).record.runs.join(" "))
    };
    let mut call = scripts.call(Script::Claim, 6, 4096);
    call.arg(run).arg(shared.options.origin.as_str()).arg(&node_id).arg(SILENT_SECONDS);
    call.arg(&shared.keys.group).arg(starts);
    let (word, mut rest) = wire.ask(&call).await?.word()?;
    match word.as_str() {
        "origin" => Ok(Claim::Other(next(&mut rest)?.text()?)),
        "alive" => {
            let (id, silent) = (next(&mut rest)?.text()?, next(&mut rest)?.text()?);
            Ok(Claim::Alive(format!(
                "the stream {} is held by another process of node {} (node id {id}), which spoke {silent} s ago: stop it; after {SILENT_SECONDS} s of silence this one takes over",
                shared.keys.stream, shared.options.origin
            )))
        }
        _ => {
            check(&word, "claimed")?;
            Ok(Claim::Had(Box::new(claimed(&mut rest)?)))
        }
    }
}

fn claimed(rest: &mut std::vec::IntoIter<Reply>) -> Result<Claimed, Broken> {
    let known = next(rest)?.text()? == "known";
    let top = EntryId::read(&next(rest)?.text()?).unwrap_or_default();
    let first = EntryId::read(&next(rest)?.text()?);
    let handed = EntryId::read(&next(rest)?.text()?).unwrap_or_default();
    let (len, letters) = (next(rest)?.number()?, next(rest)?.number()?);
    let mut claimed = Claimed { known, top, first, handed, len, letters, ..Claimed::default() };
    let mut loads: std::collections::BTreeMap<ChannelName, Load> =
        std::collections::BTreeMap::new();
    for (field, value) in next(rest)?.pairs()? {
        // a run is no number
        let n: u64 = value.parse().unwrap_or(0);
        match (field.as_str(), field.split_once(':')) {
            ("last", _) => claimed.last = Seq(n),
            ("total", _) => claimed.total = n,
            ("entries", _) => claimed.entries = n,
            ("biggest", _) => claimed.biggest = n,
            ("foreign", _) => claimed.foreign = n,
            (_, Some(("n", channel))) => {
                if let Ok(channel) = Name::new(channel) {
                    loads.entry(channel).or_default().events = n;
                }
            }
            (_, Some(("b", channel))) => {
                if let Ok(channel) = Name::new(channel) {
                    loads.entry(channel).or_default().bytes = n;
                }
            }
            _ => {}
        }
    }
    claimed.channels = loads.into_iter().filter(|(_, load)| load.events > 0).collect();
    Ok(claimed)
}

/// What the group's other consumers hold, followed to its end: that of channels that are set aside
/// stays with theirs, everything else is ours from now on. `reread` turns true before anything is
/// taken, since an answer may be lost: from then on nobody knows what is pending here. The channels.
pub(super) async fn gather(
    shared: &Shared,
    link: &Link,
    reread: &mut bool,
) -> Result<Vec<ChannelName>, Broken> {
    let mut ask = redis::cmd("XINFO");
    ask.arg("CONSUMERS").arg(&shared.keys.stream).arg(&shared.keys.group);
    let mut parked = Vec::new();
    for consumer in link.work.ask(&ask).await?.list()? {
        let facts = consumer.pairs()?;
        let fact = |name: &str| facts.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let (Some(name), Some(pending)) = (fact("name"), fact("pending")) else { continue };
        if name == shared.keys.consumer || pending == "0" {
            continue;
        }
        match shared.keys.parked_channel(name) {
            Some(channel) => parked.push(channel),
            None => {
                *reread = true;
                take_over(shared, link, name).await?;
            }
        }
    }
    Ok(parked)
}

async fn take_over(shared: &Shared, link: &Link, consumer: &str) -> Result<(), Broken> {
    let (mut from, mut claimed) = ("-".to_owned(), 0);
    loop {
        let mut call = link.scripts.call(Script::Take, 6, 128);
        call.arg(&*link.run).arg(&shared.keys.group).arg(consumer).arg(&shared.keys.consumer);
        call.arg(&from).arg(AT_ONCE);
        let (word, mut rest) = link.work.ask(&call).await?.word()?;
        check(&word, "taken")?;
        let n = next(&mut rest)?.number()?;
        claimed += n;
        if n < AT_ONCE {
            break;
        }
        from = format!("({}", next(&mut rest)?.text()?);
    }
    tracing::warn!(
        consumer,
        "{claimed} entries that consumer {consumer} had taken from the stream {} and not acknowledged are taken over",
        shared.keys.stream
    );
    Ok(())
}
