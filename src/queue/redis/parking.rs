//! Setting channels aside and bringing them back: a stuck channel's entries simply stay pending, with a
//! consumer of their own, so that they come again in order and a start finds them.
//!
//! Does not know storage, nor who decides that a channel is stuck.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::acks::check;
use super::connection::Broken;
use super::entry::{Entry, EntryId, of_group};
use super::reader::{Reader, forget, how_many, read_group};
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use crate::event::{ChannelName, Event, Seq};
use crate::queue::{Lease, LeaseLimit, ParkError, QueueStopped, Source};

/// What a look for the next events of a channel brought.
enum Found {
    /// Events for a holder.
    Events(Vec<Event>),
    /// Something was passed over: look again.
    Again,
    /// Nothing now.
    Nothing,
    /// Nothing, and nothing is on its way.
    Drained,
}

impl Shared {
    /// Gives events to the consumer of their channel. Those that Redis has lost are kept here.
    pub async fn give_aside(
        &self,
        link: &Link,
        channel: &ChannelName,
        events: Vec<Event>,
    ) -> Result<(), Broken> {
        let mut call = link.scripts.call(Script::Park, 3 + events.len(), 20 * events.len());
        call.arg(&*link.run).arg(&self.keys.group).arg(self.keys.parked(channel));
        for event in &events {
            call.arg(event.seq.0);
        }
        let (word, rest) = link.work.ask(&call).await?.word()?;
        check(&word, "parked")?;
        let mut there = BTreeSet::new();
        for reply in rest {
            there.insert(Seq(reply.number()?));
        }
        let mut leases = lock(&self.leases);
        leases.follows(channel, there.iter().copied());
        let lost: Vec<Event> = events.into_iter().filter(|e| !there.contains(&e.seq)).collect();
        leases.keep(channel, lost);
        Ok(())
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
        for (channel, events) in theirs(lease, seqs) {
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
        let from = Source::Parked(channel.clone());
        let mut reader = self.reading.lock().await;
        let mut events = Vec::new();
        while self.leasing.load(Ordering::SeqCst) {
            let Some(link) = self.link() else { break };
            match self.look_aside(&link, &mut reader, channel, limit).await {
                Ok(Found::Events(found)) => {
                    events = found;
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
        let id = if events.is_empty() { 0 } else { lock(&self.leases).lease(&from, &events) };
        Ok(Lease { id, from, events })
    }

    async fn look_aside(
        &self,
        link: &Link,
        reader: &mut Reader,
        channel: &ChannelName,
        limit: LeaseLimit,
    ) -> Result<Found, Broken> {
        let cursor = {
            let mut leases = lock(&self.leases);
            // what the stream's own leases hold of it comes before
            if !leases.is_parked(channel) || leases.main_holds(channel) {
                return Ok(Found::Nothing);
            }
            let kept = leases.take_kept(channel, limit.events);
            if !kept.is_empty() {
                return Ok(Found::Events(kept));
            }
            leases.aside(channel).map(|aside| aside.cursor).unwrap_or_default()
        };
        let most = how_many(self, limit);
        let command = read_group(self, &self.keys.parked(channel), &cursor.to_string(), most);
        let entries = of_group(link.work.ask(&command).await?, &mut reader.names)?;
        let Some(last) = entries.last().map(Entry::id) else {
            let idle = lock(&self.leases).is_idle(channel);
            let none_ahead = reader.ahead().all(|event| event.channel != *channel);
            return Ok(if idle && none_ahead { Found::Drained } else { Found::Nothing });
        };
        let gone: Vec<EntryId> = entries
            .iter()
            .filter_map(|entry| if let Entry::Gone(id) = entry { Some(*id) } else { None })
            .collect();
        if !gone.is_empty() {
            forget(self, link, &gone).await?;
        }
        let decided = self.decided();
        let mut leases = lock(&self.leases);
        let (mut events, mut bytes, mut read) = (Vec::new(), 0, cursor);
        for entry in entries {
            let id = entry.id();
            if let Entry::Ours(event) = entry
                && !leases.holds(event.seq)
                && !self.acks.holds(event.seq)
            {
                bytes += event.payload.len();
                let full =
                    !events.is_empty() && (events.len() >= limit.events || bytes > limit.bytes);
                if event.seq > decided || full {
                    break;
                }
                events.push(event);
            }
            read = id;
        }
        if let Some(aside) = leases.aside_mut(channel) {
            aside.cursor = read;
        }
        Ok(match events.is_empty() {
            false => Found::Events(events),
            true if read == last => Found::Again,
            true => Found::Nothing,
        })
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
                aside.cursor = EntryId::default();
            }
            return Ok(());
        }
        check(&word, "drained")?;
        leases.unpark(channel);
        drop(leases);
        tracing::info!(%channel, "channel {channel} has drained and is parked no longer");
        self.more.notify_waiters();
        Ok(())
    }
}

/// The events of a lease that are to be set aside, by channel, each in order.
fn theirs(lease: &Lease, seqs: &BTreeSet<Seq>) -> BTreeMap<ChannelName, Vec<Event>> {
    let mut all: BTreeMap<ChannelName, Vec<Event>> = BTreeMap::new();
    for event in lease.events.iter().filter(|event| seqs.contains(&event.seq)) {
        all.entry(event.channel.clone()).or_default().push(event.clone());
    }
    all
}
