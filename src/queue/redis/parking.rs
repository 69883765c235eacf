//! Setting channels aside and bringing them back: a stuck channel's entries simply stay pending, with a
//! consumer of their own, so that they come again in order and a start finds them.
//!
//! Does not know storage, nor who decides that a channel is stuck.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::acks::check;
use super::connection::Broken;
use super::entry::{Entry, EntryId};
use super::leases::{Cursor, Leases};
use super::reader::{Reader, by_channel, entries, how_many, reading};
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use super::standing::Whole;
use crate::event::{ChannelName, Event, Seq};
use crate::queue::{Lease, LeaseLimit, ParkError, QueueStopped, Source};

/// What a look for the next events of a channel brought.
enum Found {
    /// Events for a holder.
    Lease(Lease),
    /// Something was passed over: look again.
    Again,
    /// Nothing now.
    Nothing,
    /// Nothing, and nothing is on its way.
    Drained,
}

impl Shared {
    /// Gives events, in rising order, to the consumer of their channel: their entries go there whole,
    /// whoever else holds events of them. Those that Redis has lost are kept here.
    pub async fn give_aside(
        &self,
        link: &Link,
        channel: &ChannelName,
        events: Vec<Event>,
    ) -> Result<(), Broken> {
        let firsts = {
            // an answer may be lost: from now on they count as set aside, in one step for whoever looks
            let mut leases = lock(&self.leases);
            let seqs = || events.iter().map(|event| event.seq);
            leases.follows(channel, seqs());
            self.marks.with(|marks| marks.parked_again(channel, seqs()));
            leases.firsts(events.iter())
        };
        let mut call = link.scripts.call(Script::Park, 3 + firsts.len(), 20 * firsts.len());
        call.arg(&*link.run).arg(&self.keys.group).arg(self.keys.parked(channel));
        for first in &firsts {
            call.arg(first.0);
        }
        let (word, rest) = link.work.ask(&call).await?.word()?;
        check(&word, "parked")?;
        let mut there = BTreeSet::new();
        for reply in rest {
            there.insert(Seq(reply.number()?));
        }
        lock(&self.leases).went_aside(channel, events, &there);
        Ok(())
    }

    /// These channels have a consumer with entries, though some may have drained: Redis went back to a
    /// state from before that. From the beginning of the stream, which holds `first`.
    pub fn park_again(&self, parked: Vec<ChannelName>, first: Option<EntryId>) {
        let oldest = Seq(first.unwrap_or_default().first);
        let mut leases = lock(&self.leases);
        for channel in parked {
            if !leases.is_parked(&channel)
                && leases.park(&channel, "found so after Redis went back")
            {
                leases.follows(&channel, std::iter::once(oldest));
                self.marks.with(|marks| marks.parked_again(&channel, std::iter::once(oldest)));
                tracing::warn!(%channel, "channel {channel} is parked again: Redis went back to when it was; its events are tried again at once");
            }
        }
    }

    /// Sets events of a lease aside.
    pub async fn park(
        &self,
        lease: &mut Lease,
        seqs: &BTreeSet<Seq>,
        why: &str,
    ) -> Result<(), ParkError> {
        if let Source::Parked(channel) = &lease.from {
            // it is aside already: only the reason is news
            lock(&self.leases).park(channel, why);
            return Ok(());
        }
        let theirs = lease.events.iter().filter(|event| seqs.contains(&event.seq)).cloned();
        for (channel, events) in by_channel(theirs) {
            if !self.leasing.load(Ordering::SeqCst) {
                return Err(ParkError::Stopped);
            }
            if lock(&self.leases).park(&channel, why) {
                tracing::error!(
                    %channel,
                    "channel {channel} is parked: {why}; its events wait in the stream and are tried again every few seconds, the other channels go on"
                );
            }
            let Some(link) = self.linked(self.options.timeout).await else {
                return Err(ParkError::Disk(self.refusing().unwrap_or_default()));
            };
            let moved: BTreeSet<Seq> = events.iter().map(|event| event.seq).collect();
            if let Err(why) = self.give_aside(&link, &channel, events).await {
                self.broken(link.epoch, &why);
                let text = format!("the events of channel {channel} cannot be set aside: {why}");
                return Err(ParkError::Disk(text));
            }
            lock(&self.leases).moved(lease.id, &moved);
            lease.events.retain(|event| !moved.contains(&event.seq));
        }
        Ok(())
    }

    /// The next events of a channel that is set aside; none where it has drained.
    pub async fn lease_parked(
        &self,
        channel: &ChannelName,
        limit: LeaseLimit,
    ) -> Result<Lease, QueueStopped> {
        let mut reader = self.reading.lock().await;
        let mut lease = None;
        while self.leasing.load(Ordering::SeqCst) {
            let Some(link) = self.link() else { break };
            match self.look_aside(&link, &mut reader, channel, limit).await {
                Ok(Found::Lease(found)) => {
                    lease = Some(found);
                    break;
                }
                Ok(Found::Again) => {}
                Ok(Found::Nothing) => break,
                Ok(Found::Drained) => {
                    if let Err(why) = self.bring_back(&link, channel).await {
                        self.broken(link.epoch, why);
                    }
                    break;
                }
                Err(why) => {
                    self.broken(link.epoch, why);
                    break;
                }
            }
        }
        if !self.leasing.load(Ordering::SeqCst) {
            return Err(QueueStopped);
        }
        let none = || Lease { id: 0, from: Source::Parked(channel.clone()), events: Vec::new() };
        Ok(lease.unwrap_or_else(none))
    }

    async fn look_aside(
        &self,
        link: &Link,
        reader: &mut Reader,
        channel: &ChannelName,
        limit: LeaseLimit,
    ) -> Result<Found, Broken> {
        let from = Source::Parked(channel.clone());
        let cursor = {
            let mut leases = lock(&self.leases);
            // what the stream's own leases hold of it comes before
            if !leases.is_parked(channel) || leases.main_holds(channel) {
                return Ok(Found::Nothing);
            }
            let kept = leases.take_kept(channel, limit.events);
            if !kept.is_empty() {
                let id = leases.lease(&from, &kept);
                return Ok(Found::Lease(Lease { id, from, events: kept }));
            }
            leases.aside(channel).map(|aside| aside.cursor).unwrap_or_default()
        };
        let _reading = self.acks.reading();
        let mut call = reading(self, link, &self.keys.parked(channel), how_many(self, limit));
        call.arg(cursor.entry.to_string());
        let entries = entries(self, link.work.ask(&call).await?, &mut reader.names)?;
        let Some(last) = entries.last().map(Entry::id) else {
            let idle = lock(&self.leases).is_idle(channel);
            let none_ahead = reader.ahead().all(|event| event.channel != *channel);
            return Ok(if idle && none_ahead { Found::Drained } else { Found::Nothing });
        };
        // what is still to go aside comes in its turn, though a lost answer may have let it go already
        let theirs = reader.ahead().filter(|event| event.channel == *channel);
        let ahead = theirs.map(|event| event.seq).min().unwrap_or(Seq(u64::MAX));
        let most = self.decided().min(Seq(ahead.0.saturating_sub(1)));
        let mut leases = lock(&self.leases);
        let (read, events) = self.hand_out(&mut leases, entries, cursor, (most, limit));
        // lower where something went aside meanwhile: then what lies below is read again
        if let Some(aside) = leases.aside_mut(channel).filter(|aside| aside.cursor == cursor) {
            aside.cursor = read;
        }
        if events.is_empty() {
            return Ok(if read.entry == last { Found::Again } else { Found::Nothing });
        }
        // in the same step: what the cursor has passed is in somebody's hands
        let id = leases.lease(&from, &events);
        Ok(Found::Lease(Lease { id, from, events }))
    }

    /// Those events of entries that nobody has yet, up to a seq and within a limit; and how far the
    /// cursor gets by them.
    fn hand_out(
        &self,
        leases: &mut Leases,
        entries: Vec<Entry>,
        mut read: Cursor,
        (most, limit): (Seq, LeaseLimit),
    ) -> (Cursor, Vec<Event>) {
        let (mut events, mut bytes) = (Vec::<Event>::new(), 0);
        for entry in entries {
            let (id, through) = (entry.id(), entry.through());
            if let Entry::Ours(theirs) = entry {
                let mut whole = Whole::of(&theirs);
                for event in theirs {
                    let seq = event.seq;
                    if !self.has(leases, seq) {
                        bytes += event.payload.len();
                        let full = events.len() >= limit.events || bytes > limit.bytes;
                        if seq > most || (full && !events.is_empty()) {
                            return (read, events);
                        }
                        if let Some(whole) = whole.take() {
                            leases.read(whole);
                        }
                        events.push(event);
                    }
                    read.through = seq;
                }
            }
            read = Cursor { entry: id, through };
        }
        (read, events)
    }

    /// A channel has drained: its consumer goes, where nothing is pending with it.
    async fn bring_back(&self, link: &Link, channel: &ChannelName) -> Result<(), Broken> {
        let mut call = link.scripts.call(Script::Unpark, 3, 128);
        call.arg(&*link.run).arg(&self.keys.group).arg(self.keys.parked(channel));
        let (word, _) = link.work.ask(&call).await?.word()?;
        let mut leases = lock(&self.leases);
        if word == "held" {
            // something below the cursor that nobody holds: from the beginning
            if let Some(aside) = leases.aside_mut(channel) {
                aside.cursor = Cursor::default();
            }
            return Ok(());
        }
        check(&word, "drained")?;
        leases.unpark(channel);
        self.marks.with(|marks| marks.unparked(channel));
        drop(leases);
        tracing::info!(%channel, "channel {channel} has drained and is parked no longer");
        self.more.notify_waiters();
        Ok(())
    }
}
