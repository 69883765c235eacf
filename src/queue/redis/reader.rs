//! Reading: what is pending first, then what is new, in order; what is not ours is moved away.
//!
//! An answer that is lost leaves entries pending that nobody has seen: whatever goes wrong, reading
//! begins again behind the last entry that was read whole. A reading of an earlier link that comes late
//! hands out nothing. Leases may share an entry. Does not know storage, nor who asks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use redis::Cmd;

use super::acks::check;
use super::connection::{Broken, Reply, next};
use super::entry::{Entry, EntryId, Names, of_list};
use super::leases::Leases;
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use super::standing::Whole;
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
    /// Everything up to it was read, also of what is pending and is being read again: what lies behind
    /// may not be the next.
    reached: Seq,
    /// The last entry that was read; everything up to it was.
    delivered: EntryId,
    /// The last seq of that one.
    through: Seq,
    /// The last id that the group was handed, as far as this node knows: beyond `delivered` where what
    /// was read could not be dealt with.
    handed: EntryId,
    /// Read, and not handed out yet.
    ahead: VecDeque<Event>,
    /// The last reading got as many entries as it asked for: there may be more at once.
    more: bool,
    pub names: Names,
    /// Entries of others that find no room among the dead letters were told of.
    told: bool,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            epoch: 0,
            phase: Phase::Pending(EntryId::default()),
            reached: Seq(0),
            delivered: EntryId::default(),
            through: Seq(0),
            handed: EntryId::default(),
            ahead: VecDeque::new(),
            more: false,
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
        (self.epoch, self.more) = (epoch, false);
        self.go_back(from);
    }

    /// After a loss: all that there is is read again, and nothing of it counts as read before, should
    /// something be lost once more.
    pub fn start_over(&mut self, epoch: u64) {
        (self.delivered, self.through) = (EntryId::default(), Seq(0));
        self.restart(epoch, true);
    }

    /// What is pending behind an entry is read next.
    fn go_back(&mut self, entry: EntryId) {
        self.phase = Phase::Pending(entry);
        self.reached = if entry == self.delivered { self.through } else { Seq(entry.first) };
    }

    /// Redis went back: what was read of groups that are not decided must be read again, if ever.
    pub fn forget_behind(&mut self, decided: Seq) {
        self.ahead.retain(|event| event.seq <= decided);
    }

    /// The last entry that was read, and its last seq.
    pub fn delivered(&self) -> (EntryId, Seq) {
        (self.delivered, self.through)
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
            let enough = link.is_none() || !self.more || self.fills(limit);
            if enough && let Some(lease) = self.take(shared, limit) {
                return Some(lease);
            }
            let link = link?;
            match self.ahead.front().filter(|event| enough && event.seq <= self.reached) {
                // it waits until its group is decided
                Some(event) if event.seq > shared.decided() => return None,
                // it was decided, or its channel was set aside, since that was looked at
                Some(_) => {}
                None => match self.read(shared, &link, limit).await {
                    Ok(again) if again || !self.ahead.is_empty() => {}
                    Ok(_) => return None,
                    Err(why) => {
                        shared.broken(link.epoch, why);
                        return None;
                    }
                },
            }
        }
    }

    /// Whether what was read fills a lease.
    fn fills(&self, limit: LeaseLimit) -> bool {
        let bytes: usize = self.ahead.iter().map(|event| event.payload.len()).sum();
        self.ahead.len() >= limit.events || bytes >= limit.bytes
    }

    /// Hands out what was read, in order, as far as it is decided. What is of a channel that is set
    /// aside goes there first: so nothing that was passed is in nobody's hands.
    fn take(&mut self, shared: &Shared, limit: LeaseLimit) -> Option<Lease> {
        let most = shared.decided().min(self.reached);
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
        let most = how_many(shared, limit);
        let mut call = reading(shared, link, &shared.keys.consumer, most);
        match was {
            Phase::Pending(behind) => call.arg(behind.to_string()),
            Phase::New => {
                // should the answer be lost, they are pending and were never seen
                self.go_back(self.delivered);
                call.arg(">").arg(shared.confirmed().0).arg(self.handed.to_string())
            }
        };
        let entries = entries(shared, link.work.ask(&call).await?, &mut self.names)?;
        self.more = entries.len() as u64 >= most;
        let last = entries.last().map(|entry| (entry.id(), entry.through()));
        let Some((last, through)) = last else {
            (self.phase, self.reached) = (Phase::New, Seq(u64::MAX));
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
        if last > self.delivered {
            (self.delivered, self.through) = (last, through.max(self.through));
        }
        (self.phase, self.reached) = match was {
            Phase::Pending(_) => (Phase::Pending(last), through),
            Phase::New => (Phase::New, Seq(u64::MAX)),
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
            let again = entry.id() <= seen;
            match entry {
                Entry::Ours(events) => ours.extend(self.to_hand_out(shared, events, again)),
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

    /// The events of an entry that nobody has; of one that comes again some may be in somebody's hands,
    /// or resolved.
    fn to_hand_out(&self, shared: &Shared, mut events: Vec<Event>, again: bool) -> Vec<Event> {
        let whole = Whole::of(&events);
        let mut leases = lock(&shared.leases);
        if again {
            events.retain(|event| !self.knows(shared, &leases, event.seq));
        }
        if let Some(whole) = whole.filter(|_| !events.is_empty()) {
            leases.read(whole);
        }
        events
    }

    fn knows(&self, shared: &Shared, leases: &Leases, seq: Seq) -> bool {
        shared.has(leases, seq) || self.ahead.binary_search_by_key(&seq, |e| e.seq).is_ok()
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
pub(super) fn by_channel(events: impl Iterator<Item = Event>) -> BTreeMap<ChannelName, Vec<Event>> {
    let mut all: BTreeMap<ChannelName, Vec<Event>> = BTreeMap::new();
    for event in events {
        all.entry(event.channel.clone()).or_default().push(event);
    }
    all
}

/// How many entries are read at once: as many events as are wanted, as far as they fit into memory.
pub(super) fn how_many(shared: &Shared, limit: LeaseLimit) -> u64 {
    let view = lock(&shared.view);
    let wanted = (limit.events as u64 / view.an_entry.max(1)).max(1);
    let most = (READ_BYTES / view.biggest.max(1)).clamp(1, wanted);
    if view.strangers { most.min(STRANGE) } else { most }
}

/// The reading of a consumer; the id behind which follows.
pub(super) fn reading(shared: &Shared, link: &Link, consumer: &str, most: u64) -> Cmd {
    let mut call = link.scripts.call(Script::Read, 7, 256);
    call.arg(&*link.run).arg(&shared.keys.group).arg(consumer).arg(most);
    call
}

/// What it answers. How many events these entries hold says how many those behind them may.
pub(super) fn entries(
    shared: &Shared,
    answer: Reply,
    names: &mut Names,
) -> Result<Vec<Entry>, Broken> {
    let (word, mut rest) = answer.word()?;
    check(&word, "read")?;
    let entries = of_list(next(&mut rest)?, names)?;
    let events: u64 = entries.iter().map(Entry::events).sum();
    if events > 0 {
        lock(&shared.view).an_entry = events.div_ceil(entries.len() as u64);
    }
    Ok(entries)
}
