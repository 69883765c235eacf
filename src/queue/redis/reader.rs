//! Reading: what is pending first, then what is new, in order; what is not ours is moved away.
//!
//! An answer that is lost leaves entries pending that nobody has seen: whatever goes wrong, reading
//! begins again behind the last entry that was read whole. A reading of an earlier link that comes late
//! hands out nothing. Does not know storage, nor who asks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use redis::Cmd;

use super::acks::check;
use super::connection::{Broken, Reply, next};
use super::entry::{Entry, EntryId, Names, of_group};
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use crate::event::{ChannelName, Event, Seq};
use crate::queue::{Lease, LeaseLimit, Source};

/// About the most payload bytes that are read at once.
const READ_BYTES: u64 = 32 << 20;
/// How many entries are read at once while another program's may be among them: nobody knows how long
/// they are.
const STRANGE: u64 = 64;
/// How often the stream is looked into though nothing was appended: for other programs' entries.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What was handed to this consumer behind that entry, and not acknowledged.
    Pending(EntryId),
    /// What was never handed to anybody.
    New,
}

/// Where the reading stands.
pub(super) struct Reader {
    epoch: u64,
    phase: Phase,
    /// Everything up to it was read.
    delivered: EntryId,
    /// The last id that the group was handed, as far as this node knows: beyond `delivered` where what
    /// was read could not be dealt with.
    handed: EntryId,
    /// Read, and not handed out yet.
    ahead: VecDeque<Event>,
    pub names: Names,
    /// Entries of others that find no room among the dead letters were told of.
    told: bool,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            epoch: 0,
            phase: Phase::Pending(EntryId::default()),
            delivered: EntryId::default(),
            handed: EntryId::default(),
            ahead: VecDeque::new(),
            names: Names::default(),
            told: false,
        }
    }
}

impl Reader {
    /// With the first link: reads from the beginning. Up to `handed` the group was handed on before.
    pub fn begin(&mut self, epoch: u64, handed: EntryId) {
        self.handed = handed;
        self.restart(epoch, true);
    }

    /// With a new link: reads on behind what was read, or with `all` from the beginning.
    pub fn restart(&mut self, epoch: u64, all: bool) {
        let from = match self.phase {
            _ if all => EntryId::default(),
            // what an earlier link had not read again to the end
            Phase::Pending(at) => at.min(self.delivered),
            _ => self.delivered,
        };
        (self.epoch, self.phase) = (epoch, Phase::Pending(from));
    }

    /// Redis went back: what was read of groups that are not decided must be read again, if ever.
    pub fn forget_behind(&mut self, decided: Seq) {
        self.ahead.retain(|event| event.seq <= decided);
    }

    /// Everything up to it was read.
    pub fn delivered(&self) -> EntryId {
        self.delivered
    }

    /// What was read and not handed out.
    pub fn ahead(&self) -> impl Iterator<Item = &Event> {
        self.ahead.iter()
    }

    /// The next events for a holder; `None` where there are none now.
    pub async fn next(&mut self, shared: &Shared, limit: LeaseLimit) -> Option<Lease> {
        loop {
            let link = shared.link().filter(|link| link.epoch == self.epoch);
            if let Some(link) = &link
                && let Err(why) = self.set_aside(shared, link).await
            {
                shared.broken(link.epoch, why);
                return None;
            }
            if let Some(lease) = self.take(shared, limit) {
                return Some(lease);
            }
            let link = link?;
            match self.ahead.front().filter(|event| event.seq <= self.reached()) {
                // it waits until its group is decided
                Some(event) if event.seq > shared.decided() => return None,
                // it was decided, or its channel was set aside, since that was looked at
                Some(_) => {}
                None => match self.read(shared, &link, limit).await {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(why) => {
                        shared.broken(link.epoch, why);
                        return None;
                    }
                },
            }
        }
    }

    /// Everything up to it was read, also of what is pending and is being read again: what lies behind
    /// may not be the next.
    fn reached(&self) -> Seq {
        match self.phase {
            Phase::Pending(at) => Seq(at.first),
            Phase::New => Seq(u64::MAX),
        }
    }

    /// Hands out what was read, in order, as far as it is decided. What is of a channel that is set
    /// aside goes there first: so nothing that was passed is in nobody's hands.
    fn take(&mut self, shared: &Shared, limit: LeaseLimit) -> Option<Lease> {
        let most = shared.decided().min(self.reached());
        let mut leases = lock(&shared.leases);
        let (mut events, mut bytes) = (Vec::<Event>::new(), 0);
        while let Some(event) = self.ahead.front() {
            bytes += event.payload.len();
            let full = events.len() >= limit.events || bytes > limit.bytes;
            let stays = event.seq > most || leases.is_parked(&event.channel);
            if stays || (full && !events.is_empty()) {
                break;
            }
            events.extend(self.ahead.pop_front());
        }
        let through = events.last()?.seq;
        let id = leases.lease(&Source::Main, &events);
        shared.marks.with(|marks| {
            let seqs = events.iter().map(|event| (&event.channel, event.seq));
            marks.leased_again(id, through, seqs);
        });
        Some(Lease { id, from: Source::Main, events })
    }

    /// What was read of channels that were set aside since follows them.
    async fn set_aside(&mut self, shared: &Shared, link: &Link) -> Result<(), Broken> {
        let theirs = {
            let leases = lock(&shared.leases);
            if !leases.any_parked() {
                return Ok(());
            }
            let theirs = self.ahead.iter().filter(|event| leases.is_parked(&event.channel));
            by_channel(theirs.cloned())
        };
        for (channel, events) in theirs {
            let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
            shared.give_aside(link, &channel, events).await?;
            self.ahead.retain(|event| seqs.binary_search(&event.seq).is_err());
        }
        Ok(())
    }

    /// Reads on; whether it makes sense to look again at once.
    async fn read(
        &mut self,
        shared: &Shared,
        link: &Link,
        limit: LeaseLimit,
    ) -> Result<bool, Broken> {
        let was = self.phase;
        // before it is sent: what is shown by now stands in the stream, or is resolved
        let shown = shared.marks.with(|marks| marks.shown_to());
        let _reading = shared.acks.reading();
        let mut call = reading(shared, link, &shared.keys.consumer, how_many(shared, limit));
        match was {
            Phase::Pending(behind) => call.arg(behind.to_string()),
            Phase::New => {
                // should the answer be lost, they are pending and were never seen
                self.phase = Phase::Pending(self.delivered);
                call.arg(">").arg(shared.confirmed().0).arg(self.handed.to_string())
            }
        };
        let entries = entries(link.work.ask(&call).await?, &mut self.names)?;
        let Some(last) = entries.last().map(Entry::id) else {
            self.phase = Phase::New;
            if was == Phase::New {
                self.found_no_more(shared, shown);
            }
            return Ok(was != Phase::New);
        };
        let seen = self.handed;
        self.handed = seen.max(last);
        let events = self.sort_out(shared, link, entries, seen).await?;
        self.ahead.extend(events);
        if !self.ahead.iter().is_sorted_by(|a, b| a.seq < b.seq) {
            self.ahead.make_contiguous().sort_unstable_by_key(|event| event.seq);
        }
        self.delivered = self.delivered.max(last);
        self.phase = match was {
            Phase::Pending(_) => Phase::Pending(last),
            Phase::New => Phase::New,
        };
        Ok(true)
    }

    /// Everything that was shown before the reading is in somebody's hands, set aside or resolved, but
    /// for what waits here. What Redis has lost of it was reported before this link was to be had.
    fn found_no_more(&self, shared: &Shared, shown: Seq) {
        let first = self.ahead.front().map_or(u64::MAX, |event| event.seq.0);
        let upto = shown.min(Seq(first.saturating_sub(1)));
        shared.marks.with(|marks| marks.passed(upto));
    }

    /// The events among entries that are to be handed out; the others go where they belong. Up to
    /// `seen` entries may come again.
    async fn sort_out(
        &mut self,
        shared: &Shared,
        link: &Link,
        entries: Vec<Entry>,
        seen: EntryId,
    ) -> Result<Vec<Event>, Broken> {
        let (mut ours, mut foreign) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Ours(event) => {
                    if EntryId::of(event.seq) > seen || !self.knows(shared, &event) {
                        ours.push(event);
                    }
                }
                Entry::Foreign(id) => foreign.push(id),
                // it was taken off the list of what is pending as it was read
                Entry::Gone(_) => {}
            }
        }
        if !foreign.is_empty() {
            self.move_away(shared, link, &foreign).await?;
        }
        let aside = {
            let leases = lock(&shared.leases);
            let aside = ours.extract_if(.., |event| leases.is_parked(&event.channel));
            by_channel(aside)
        };
        for (channel, events) in aside {
            shared.give_aside(link, &channel, events).await?;
        }
        Ok(ours)
    }

    /// Whether an event that comes again is in somebody's hands, or resolved and on its way out.
    fn knows(&self, shared: &Shared, event: &Event) -> bool {
        shared.has(&lock(&shared.leases), event.seq)
            || self.ahead.iter().any(|other| other.seq == event.seq)
    }

    /// Moves entries of other programs to the dead letters, whole. Without room they stay pending.
    async fn move_away(
        &mut self,
        shared: &Shared,
        link: &Link,
        ids: &[EntryId],
    ) -> Result<(), Broken> {
        let mut call = link.scripts.call(Script::Foreign, 3 + ids.len(), 32 * ids.len());
        call.arg(&*link.run).arg(&shared.keys.group).arg(shared.options.dead_letter_max_bytes);
        for id in ids {
            call.arg(id.to_string());
        }
        let (word, mut rest) = link.work.ask(&call).await?.word()?;
        let full = word == "full";
        if !full {
            check(&word, "moved")?;
        }
        let moved = next(&mut rest)?.number()?;
        if moved > 0 {
            lock(&shared.view).foreign += moved;
            tracing::error!(
                entries = moved,
                "{moved} entries of another program stood in the stream {}: they were moved to {} as they are, with the reason `foreign entry`",
                shared.keys.stream,
                shared.keys.dlq
            );
        }
        if full && !std::mem::replace(&mut self.told, true) {
            tracing::error!(
                "entries of another program stay in the stream {}: dead_letter_max_bytes ({}) is reached",
                shared.keys.stream,
                shared.options.dead_letter_max_bytes
            );
        }
        Ok(())
    }
}

/// The events of each channel, in order.
fn by_channel(events: impl Iterator<Item = Event>) -> BTreeMap<ChannelName, Vec<Event>> {
    let mut all: BTreeMap<ChannelName, Vec<Event>> = BTreeMap::new();
    for event in events {
        all.entry(event.channel.clone()).or_default().push(event);
    }
    all
}

/// How many entries are read at once, so that they fit into memory.
pub(super) fn how_many(shared: &Shared, limit: LeaseLimit) -> u64 {
    let view = lock(&shared.view);
    let most = (READ_BYTES / view.biggest.max(1)).clamp(1, limit.events.max(1) as u64);
    if view.strangers { most.min(STRANGE) } else { most }
}

/// The reading of a consumer; the id behind which follows.
pub(super) fn reading(shared: &Shared, link: &Link, consumer: &str, most: u64) -> Cmd {
    let mut call = link.scripts.call(Script::Read, 7, 256);
    call.arg(&*link.run).arg(&shared.keys.group).arg(consumer).arg(most);
    call
}

/// What it answers.
pub(super) fn entries(answer: Reply, names: &mut Names) -> Result<Vec<Entry>, Broken> {
    let (word, mut rest) = answer.word()?;
    check(&word, "read")?;
    of_group(next(&mut rest)?, names)
}
