//! Setting channels aside and bringing them back: the queue's side of parked channels.
//!
//! Locks are taken in this order: reader, parking, tracker, ack. While an older lease still holds
//! events of a channel that is being parked, nothing more is read: so its copies stand in order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;

use super::ack::{AckRecord, ParkedRecord, Tracker};
use super::handle::{Kept, Shared, lock};
use super::log::LogOptions;
use super::parked::ParkedLog;
use super::reader::Reading;
use super::segment::{Header, path_of};
use crate::event::{ChannelName, Event, Micros, Seq};
use crate::fsx::parent;
use crate::queue::accounts::Accounts;
use crate::queue::{Lease, LeaseLimit, ParkError, Parked, Source};
use crate::watermark;

/// One channel that is set aside.
pub(super) struct Aside {
    /// Its log; `None` until its first events are copied.
    pub log: Option<ParkedLog>,
    /// Why it is.
    pub why: String,
}

/// All of them.
pub(super) struct Parking {
    /// How the main log is made, and hence theirs.
    pub main: LogOptions,
    pub channels: BTreeMap<ChannelName, Aside>,
}

impl Parking {
    /// Whether leases under way still hold events that must be copied before those that come after.
    fn waits(&self, tracker: &Tracker) -> bool {
        self.channels.keys().any(|channel| tracker.holds(channel))
    }

    /// Copies what was read of parked channels out of `reading`.
    fn follow(&mut self, reading: &mut Reading, accounts: &Accounts) -> io::Result<()> {
        for (channel, aside) in &mut self.channels {
            if !reading.loads.contains_key(&Some(channel.clone())) {
                continue;
            }
            let theirs = |e: &Event| e.channel == *channel;
            let events: Vec<Event> = reading.events.iter().filter(|e| theirs(e)).cloned().collect();
            let log = aside.log.get_or_insert_with(|| ParkedLog::new(&self.main, channel));
            let again = log.copy(&events)?;
            // a crash between copy and release left them in both logs, and both were counted
            accounts.found_twice(channel, again);
            reading.events.retain(|e| !theirs(e));
        }
        Ok(())
    }

    /// Their positions could not be made durable.
    pub(super) fn still_changed(&mut self) {
        for log in self.channels.values_mut().filter_map(|aside| aside.log.as_mut()) {
            log.tracker.still_changed();
        }
    }

    /// What a reader of the state sees.
    pub(super) fn view(&self) -> (Vec<Parked>, Option<Micros>) {
        let parked = |(channel, aside): (&ChannelName, &Aside)| Parked {
            channel: channel.clone(),
            why: aside.why.clone(),
        };
        let oldest = |aside: &Aside| aside.log.as_ref()?.oldest;
        (
            self.channels.iter().map(parked).collect(),
            self.channels.values().filter_map(oldest).min(),
        )
    }
}

/// What a look at the main log brought.
pub(super) enum Read {
    /// Events for a holder.
    Lease(Lease),
    /// Something went on, but nothing to hand out: look again.
    Again,
    /// Nothing, until more is rung.
    Nothing,
}

impl Shared {
    /// Reads on in the main log; registers what is leased, copies what is of parked channels.
    pub(super) fn read(&self, limit: LeaseLimit) -> io::Result<Read> {
        let mut reader = lock(&self.reader);
        let mut parking = lock(&self.parking);
        if parking.waits(&lock(&self.tracker)) {
            return Ok(Read::Nothing);
        }
        let shown = self.marks.with(|marks| marks.shown_to());
        let mut reading = reader.read(limit)?;
        for (channel, aside) in &parking.channels {
            // what a crash left in both logs is passed over below: nothing waits for it
            let last = aside.log.as_ref().map_or(Seq(0), ParkedLog::last);
            let fresh = |e: &&Event| e.channel == *channel && e.seq > last;
            if let Some(first) = reading.events.iter().find(fresh) {
                self.marks.with(|marks| marks.parked(channel, first.seq));
            }
        }
        if let Err(e) = parking.follow(&mut reading, &self.accounts) {
            reader.give_back(reading);
            return Err(e);
        }
        self.show(&parking);
        self.note_loss(&reading);
        Ok(self.register(reading, &parking, shown))
    }

    /// `shown` is what readers could see before this look.
    fn register(&self, reading: Reading, parking: &Parking, shown: Seq) -> Read {
        let mut tracker = lock(&self.tracker);
        if reading.segment > 0 {
            tracker.reading(reading.segment);
        }
        let Reading { events, loads, first_segment, segment, lost, through, lost_before, .. } =
            reading;
        let read = match (through, events.first()) {
            (Some(through), Some(first)) => {
                let at = first.received_at;
                let id = tracker.leased(through, loads, first_segment, at);
                let firsts = watermark::firsts(events.iter().map(|e| (&e.channel, e.seq)));
                self.marks.with(|marks| marks.leased(id, through, firsts));
                for channel in
                    parking.channels.keys().filter(|c| events.iter().all(|e| e.channel != **c))
                {
                    tracker.moved(id, channel);
                }
                Read::Lease(Lease { id, from: Source::Main, events })
            }
            (Some(through), None) => {
                tracker.skipped(through, loads, first_segment);
                self.marks.with(|marks| marks.passed(through));
                Read::Again
            }
            (None, _) => {
                self.marks.with(|marks| marks.passed(shown));
                Read::Nothing
            }
        };
        // released after what is in hand, since it may lie between two events of it
        let last = through.unwrap_or(lost_before);
        if !lost.is_empty() {
            tracker.skipped(last, lost, segment);
        }
        read
    }

    /// Tells the world which channels are set aside.
    fn show(&self, parking: &Parking) {
        let any = !parking.channels.is_empty();
        if any || self.any_parked.load(Ordering::Relaxed) {
            *lock(&self.parked_view) = parking.view();
            self.any_parked.store(any, Ordering::SeqCst);
        }
    }

    /// Announces that a channel is being set aside: from now on nothing of it is handed out. Whether
    /// it is the lease's turn to be copied.
    pub(super) fn begin_parking(&self, id: u64, channel: &ChannelName, why: &str) -> bool {
        let mut parking = lock(&self.parking);
        if let Some(aside) = parking.channels.get_mut(channel) {
            why.clone_into(&mut aside.why);
        } else {
            let aside = Aside { log: None, why: why.to_owned() };
            parking.channels.insert(channel.clone(), aside);
            tracing::error!(
                %channel,
                "channel {channel} is parked: {why}; its events wait in a log of their own and are tried again every few seconds, the other channels go on"
            );
        }
        self.show(&parking);
        !lock(&self.tracker).holds_before(id, channel)
    }

    /// Copies a channel's events out of a lease. Blocks on the disk.
    pub(super) fn copy_aside(
        &self,
        id: u64,
        channel: &ChannelName,
        events: &[Event],
    ) -> Result<(), ParkError> {
        let mut parking = lock(&self.parking);
        let Parking { main, channels } = &mut *parking;
        let Some(aside) = channels.get_mut(channel) else { return Err(ParkError::Stopped) };
        let log = aside.log.get_or_insert_with(|| ParkedLog::new(main, channel));
        log.copy(events).map_err(|e| {
            ParkError::Disk(format!("the events of channel {channel} cannot be set aside: {e}"))
        })?;
        if let Some(first) = events.first() {
            self.marks.with(|marks| marks.parked(channel, first.seq));
        }
        lock(&self.tracker).moved(id, channel);
        self.show(&parking);
        drop(parking);
        self.more.notify_waiters();
        Ok(())
    }

    /// The next events of a parked channel. Where there are none left, and none on their way, the
    /// channel is parked no longer.
    pub(super) fn read_parked(
        &self,
        channel: &ChannelName,
        limit: LeaseLimit,
    ) -> io::Result<Option<Lease>> {
        let main_at = lock(&self.reader).passed();
        let mut parking = lock(&self.parking);
        let Some(aside) = parking.channels.get_mut(channel) else { return Ok(None) };
        let Some(log) = &mut aside.log else { return Ok(None) };
        let reading = log.read(limit)?;
        self.note_loss(&reading);
        let tracker = &mut log.tracker;
        if reading.segment > 0 {
            tracker.reading(reading.segment);
        }
        let lease = match (reading.through, reading.events.first()) {
            (Some(through), Some(first)) => {
                let at = first.received_at;
                let id = tracker.leased(through, reading.loads, reading.first_segment, at);
                let from = Source::Parked(channel.clone());
                Some(Lease { id, from, events: reading.events })
            }
            _ => None,
        };
        if !reading.lost.is_empty() {
            let last = reading.through.unwrap_or(reading.lost_before);
            tracker.skipped(last, reading.lost, reading.segment);
        }
        // what a crash left in both logs is passed over in the main one while its channel is parked
        let drained = lease.is_none() && tracker.under_way() == 0 && main_at >= log.last();
        log.look();
        if drained {
            // what damage hides at its end is in nobody's hands
            self.marks.with(|marks| marks.parked_to(channel, log.last().next()));
        }
        // the storage may yet turn out to lack what it took last
        let may_go = lock(&self.kept).as_ref().is_none_or(|kept| kept.of(channel) >= log.last());
        if drained && may_go && !lock(&self.tracker).holds(channel) {
            self.bring_back(&mut parking, channel)?;
        }
        self.show(&parking);
        Ok(lease)
    }

    /// A channel has drained: its log goes, once both slots of the ack record do without it.
    fn bring_back(&self, parking: &mut Parking, channel: &ChannelName) -> io::Result<()> {
        for _ in 0..2 {
            let mut ack = lock(&self.ack);
            let (slots, record) = &mut *ack;
            let mut next = record.clone();
            next.parked.remove(channel.as_str());
            if let Err(e) = slots.write(&next) {
                // the record that goes on may know nothing of its position any more
                parking.still_changed();
                return Err(e);
            }
            *record = next;
        }
        let Some(aside) = parking.channels.remove(channel) else { return Ok(()) };
        let mut result = Ok(());
        if let Some(log) = aside.log {
            let gone = log.index.drop_before(u64::MAX);
            for begun in &gone {
                result = result.and(self.disk.remove(&path_of(&log.base, *begun)));
            }
            result = result.and(self.disk.sync_dir(parent(&log.base)));
        }
        self.marks.with(|marks| marks.unparked(channel));
        tracing::info!(%channel, "channel {channel} has drained and is parked no longer");
        self.more.notify_waiters();
        result
    }

    /// A parked channel was tried, and is stuck still.
    pub(super) fn still_parked(&self, channel: &ChannelName, why: &str) {
        let mut parking = lock(&self.parking);
        if let Some(aside) = parking.channels.get_mut(channel) {
            why.clone_into(&mut aside.why);
        }
        self.show(&parking);
    }

    /// Ends a lease of a parked channel.
    pub(super) fn done_parked(&self, channel: &ChannelName, id: u64) -> bool {
        let mut parking = lock(&self.parking);
        let log = parking.channels.get_mut(channel).and_then(|aside| aside.log.as_mut());
        let known = log.is_some_and(|log| {
            let known = log.tracker.done(id);
            self.marks.with(|marks| marks.parked_to(channel, log.first_unacked()));
            log.look();
            known
        });
        self.show(&parking);
        known
    }

    /// What the ack record says of parked channels from now on, and the segments of theirs that
    /// neither slot will need.
    pub(super) fn keep_parked(
        parking: &mut Parking,
        before: &AckRecord,
        kept: Option<&Kept>,
    ) -> (BTreeMap<String, ParkedRecord>, Vec<(ChannelName, u64)>) {
        let mut records = BTreeMap::new();
        let mut unneeded = Vec::new();
        for (channel, aside) in &mut parking.channels {
            let Some(log) = &mut aside.log else { continue };
            let old = before.parked.get(channel.as_str());
            let mut record = log.record(old);
            if let Some(kept) = kept {
                record.oldest = record.oldest.min(log.index.holding_above(kept.of(channel)));
            }
            unneeded.push((channel.clone(), old.map_or(0, |o| o.oldest).min(record.oldest)));
            records.insert(channel.to_string(), record);
        }
        (records, unneeded)
    }

    /// Deletes released segments of parked channels.
    pub(super) fn drop_parked(
        &self,
        parking: &Parking,
        unneeded: &[(ChannelName, u64)],
    ) -> io::Result<()> {
        let mut result = Ok(());
        for (channel, before) in unneeded {
            let log = parking.channels.get(channel).and_then(|aside| aside.log.as_ref());
            let Some(log) = log else { continue };
            let gone = log.index.drop_before(*before);
            for begun in &gone {
                result = result.and(self.disk.remove(&path_of(&log.base, *begun)));
            }
            if !gone.is_empty() {
                result = result.and(self.disk.sync_dir(parent(&log.base)));
            }
        }
        result
    }

    /// Every parked log bears witness that all of it is synced.
    pub(super) fn seal_parked(&self) {
        for (channel, aside) in &mut lock(&self.parking).channels {
            if let Some(Err(e)) = aside.log.as_mut().map(ParkedLog::seal) {
                tracing::error!(%channel, "the log of parked channel {channel} could not be sealed: {e}");
            }
        }
    }

    /// Every event at or below it is gone from the log, whatever slots a start may find.
    pub(super) fn gone_below(&self) -> Seq {
        let parking = lock(&self.parking);
        let logs = parking.channels.values().filter_map(|aside| aside.log.as_ref());
        let logs = logs.map(|log| (log.base.clone(), log.index.oldest()));
        let all = logs.chain([(self.base.clone(), self.index.oldest())]);
        let before = |(base, oldest): (std::path::PathBuf, Option<u64>)| {
            let file = self.disk.open(&path_of(&base, oldest?)).ok()?;
            Header::read(&*file).ok().map(|(header, _)| header.last)
        };
        all.map(|log| before(log).unwrap_or_default()).min().unwrap_or_default()
    }
}

/// The events of a lease that are to be set aside, by channel, each in order.
pub(super) fn by_channel(lease: &Lease, seqs: &BTreeSet<Seq>) -> BTreeMap<ChannelName, Vec<Event>> {
    let mut all: BTreeMap<ChannelName, Vec<Event>> = BTreeMap::new();
    for event in lease.events.iter().filter(|e| seqs.contains(&e.seq)) {
        all.entry(event.channel.clone()).or_default().push(event.clone());
    }
    all
}
