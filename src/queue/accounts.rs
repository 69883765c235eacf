//! What became of every event, per channel, under one lock, so that a reader sees one moment; and
//! the reservations that keep the queue below its ceilings.
//!
//! Since process start and per channel: `accepted + recovered = stored + queued + dead-lettered +
//! lost`. Each side is counted where it happens; nothing here is derived from the rest.
//!
//! Knows no files and no storage.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::AppendError;
use crate::clock::Clock;
use crate::event::ChannelName;

/// Counts of one channel, since process start but for `queued`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Appended durably by this process.
    pub accepted: u64,
    /// Found unacked in the queue at start.
    pub recovered: u64,
    /// Confirmed by storage.
    pub stored: u64,
    /// Kept as a dead letter.
    pub dead_lettered: u64,
    /// Reported lost by damage.
    pub lost: u64,
    /// In the queue now.
    pub queued: u64,
    /// Bytes the queued ones take.
    pub queued_bytes: u64,
}

/// Events and the bytes they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Load {
    /// Events.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Load {
    /// Both added.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { events: self.events + other.events, bytes: self.bytes + other.bytes }
    }

    /// Both subtracted, not below zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            events: self.events.saturating_sub(other.events),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// The queue's ceilings.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// `queue_buffer`.
    pub max_events: u64,
    /// `queue_max_bytes`.
    pub max_bytes: u64,
    /// The part of both that one channel may hold; 1.0 where only one channel is enabled.
    pub channel_share: f64,
}

/// How an event left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Storage confirmed it.
    Stored,
    /// It is a dead letter.
    DeadLettered,
    /// It was damaged beyond reading.
    Lost,
}

#[derive(Default)]
struct Inner {
    channels: HashMap<ChannelName, Slot>,
    unknown: Slot,
    reserved: Load,
    queued: Load,
    drain: Meter,
}

#[derive(Default)]
struct Slot {
    counts: Counts,
    reserved: Load,
}

/// The counts, shared by the queue's parts.
pub struct Accounts {
    inner: Mutex<Inner>,
    ceilings: Ceilings,
    clock: Clock,
}

/// Longest time that a client is told to wait: in an outage the drain rate is 0.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

impl Accounts {
    /// Empty accounts under these ceilings.
    #[must_use]
    pub fn new(ceilings: Ceilings, clock: Clock) -> Self {
        Self { inner: Mutex::default(), ceilings, clock }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for a batch before it is appended.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`] where it could never fit, [`AppendError::Full`] where it does not
    /// fit now.
    pub fn reserve(&self, channel: &ChannelName, load: Load) -> Result<(), AppendError> {
        let most = self.ceilings;
        if load.events > most.max_events {
            return Err(AppendError::TooLarge { ceiling: "queue_buffer" });
        }
        if load.bytes > most.max_bytes {
            return Err(AppendError::TooLarge { ceiling: "queue_max_bytes" });
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        let all = inner.queued.plus(inner.reserved).plus(load);
        let slot = match inner.channels.get_mut(channel.as_str()) {
            Some(slot) => slot,
            None => inner.channels.entry(channel.clone()).or_default(),
        };
        let queued = Load { events: slot.counts.queued, bytes: slot.counts.queued_bytes };
        let own = queued.plus(slot.reserved).plus(load);
        let ceiling = if all.events > most.max_events {
            Some("queue_buffer")
        } else if all.bytes > most.max_bytes {
            Some("queue_max_bytes")
        } else if over_share(own, &most) && own != load {
            // an empty channel may always append one batch that the queue itself can hold
            Some("queue_channel_share")
        } else {
            None
        };
        if let Some(ceiling) = ceiling {
            let rate = inner.drain.read(self.clock.mono());
            let retry_after = retry_after(most.max_events, inner.queued.events, rate);
            return Err(AppendError::Full { retry_after, ceiling });
        }
        slot.reserved = slot.reserved.plus(load);
        inner.reserved = inner.reserved.plus(load);
        Ok(())
    }

    /// What was reserved is not in the queue after all.
    pub fn release_reserved(&self, channel: &ChannelName, load: Load) {
        let mut inner = self.lock();
        inner.unreserve(channel, load);
    }

    /// What was reserved is in the queue, durably: all of a group at once.
    pub fn accepted<'a>(&self, group: impl Iterator<Item = (&'a ChannelName, Load)>) {
        let mut inner = self.lock();
        for (channel, load) in group {
            inner.unreserve(channel, load);
            inner.queued = inner.queued.plus(load);
            let counts = &mut inner.slot(Some(channel)).counts;
            counts.accepted += load.events;
            counts.queued += load.events;
            counts.queued_bytes += load.bytes;
        }
    }

    /// Found in the queue at start.
    pub fn recovered(&self, channel: Option<&ChannelName>, load: Load) {
        let mut inner = self.lock();
        inner.queued = inner.queued.plus(load);
        let counts = &mut inner.slot(channel).counts;
        counts.recovered += load.events;
        counts.queued += load.events;
        counts.queued_bytes += load.bytes;
    }

    /// What was counted as recovered twice, since a crash left it in two logs, counts once.
    pub fn found_twice(&self, channel: &ChannelName, load: Load) {
        let mut inner = self.lock();
        inner.queued = inner.queued.minus(load);
        let counts = &mut inner.slot(Some(channel)).counts;
        counts.recovered = counts.recovered.saturating_sub(load.events);
        counts.queued = counts.queued.saturating_sub(load.events);
        counts.queued_bytes = counts.queued_bytes.saturating_sub(load.bytes);
    }

    /// Left the queue: all of an ack at once.
    pub fn resolved<'a>(
        &self,
        group: impl Iterator<Item = (Option<&'a ChannelName>, Load, Outcome)>,
    ) {
        let now = self.clock.mono();
        let mut inner = self.lock();
        for (channel, load, outcome) in group {
            inner.queued = inner.queued.minus(load);
            inner.drain.add(now, load.events);
            let counts = &mut inner.slot(channel).counts;
            debug_assert!(counts.queued >= load.events, "more left the queue than came in");
            counts.queued = counts.queued.saturating_sub(load.events);
            counts.queued_bytes = counts.queued_bytes.saturating_sub(load.bytes);
            *match outcome {
                Outcome::Stored => &mut counts.stored,
                Outcome::DeadLettered => &mut counts.dead_lettered,
                Outcome::Lost => &mut counts.lost,
            } += load.events;
        }
    }

    /// Every channel's counts and the drain rate, of one moment, sorted by name.
    #[must_use]
    pub fn snapshot(&self) -> (Vec<(Option<ChannelName>, Counts)>, Load, f64) {
        let now = self.clock.mono();
        let mut inner = self.lock();
        let rate = inner.drain.read(now);
        let mut all: Vec<_> = Vec::with_capacity(inner.channels.len() + 1);
        if inner.unknown.counts != Counts::default() {
            all.push((None, inner.unknown.counts));
        }
        all.extend(inner.channels.iter().map(|(name, slot)| (Some(name.clone()), slot.counts)));
        let queued = inner.queued;
        drop(inner);
        all.sort_by(|a, b| a.0.cmp(&b.0));
        (all, queued, rate)
    }

    /// Time until a refused client may expect room, from the drain rate of the last seconds.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let mut inner = self.lock();
        let rate = inner.drain.read(self.clock.mono());
        retry_after(self.ceilings.max_events, inner.queued.events, rate)
    }
}

impl Inner {
    fn slot(&mut self, channel: Option<&ChannelName>) -> &mut Slot {
        match channel {
            None => &mut self.unknown,
            Some(name) => self.channels.entry(name.clone()).or_default(),
        }
    }

    fn unreserve(&mut self, channel: &ChannelName, load: Load) {
        self.reserved = self.reserved.minus(load);
        let slot = self.slot(Some(channel));
        slot.reserved = slot.reserved.minus(load);
    }
}

#[allow(clippy::cast_precision_loss)] // a share of a ceiling: 52 bits are plenty
fn over_share(own: Load, most: &Ceilings) -> bool {
    most.channel_share < 1.0
        && (own.events as f64 > most.channel_share * most.max_events as f64
            || own.bytes as f64 > most.channel_share * most.max_bytes as f64)
}

/// The time in which a hundredth of the queue, or what there is, drains: long enough that the client
/// finds room, short enough that the queue does not run empty meanwhile. Doubles when the rate halves;
/// 1 s to 60 s.
#[allow(clippy::cast_precision_loss)] // whole seconds come out
fn retry_after(max_events: u64, queued: u64, rate: f64) -> Duration {
    let wanted = (max_events as f64 / 100.0).max(1.0).min(queued as f64);
    let secs = match wanted {
        0.0 => 0.0,
        _ if rate > 0.0 => wanted / rate,
        _ => f64::INFINITY,
    };
    Duration::from_secs_f64(secs.clamp(1.0, MAX_RETRY_AFTER.as_secs_f64()))
}

/// Events a second: the mean of the last seconds, halved in weight with each.
#[derive(Debug, Default)]
struct Meter {
    rate: f64,
    since: Duration,
    events: u64,
}

impl Meter {
    fn add(&mut self, now: Duration, events: u64) {
        self.roll(now);
        self.events += events;
    }

    fn read(&mut self, now: Duration) -> f64 {
        self.roll(now);
        self.rate
    }

    #[allow(clippy::cast_precision_loss)]
    fn roll(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.since).as_secs_f64();
        if passed < 1.0 {
            return;
        }
        let lately = self.events as f64 / passed;
        // a silence of n seconds weighs like n silent seconds
        let weight = 0.5_f64.powf(passed);
        self.rate =
            if self.rate == 0.0 { lately } else { weight * self.rate + (1.0 - weight) * lately };
        self.since = now;
        self.events = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Micros, Name};

    fn accounts(max_events: u64, share: f64) -> (Accounts, Clock) {
        let clock = Clock::manual(Micros(0));
        let most = Ceilings { max_events, max_bytes: 1 << 20, channel_share: share };
        (Accounts::new(most, clock.clone()), clock)
    }

    const fn load(events: u64) -> Load {
        Load { events, bytes: events * 10 }
    }

    #[test]
    fn places_are_reserved_before_the_append_so_that_no_two_take_the_same() {
        let (accounts, _) = accounts(10, 1.0);
        let a = Name::new("a").unwrap();
        accounts.reserve(&a, load(6)).unwrap();
        assert!(matches!(accounts.reserve(&a, load(6)), Err(AppendError::Full { .. })));
        accounts.reserve(&a, load(4)).unwrap();
        accounts.release_reserved(&a, load(4));
        accounts.reserve(&a, load(4)).unwrap();
        assert!(matches!(accounts.reserve(&a, load(11)), Err(AppendError::TooLarge { .. })));
    }

    #[test]
    fn one_channel_leaves_room_for_the_others() {
        let (accounts, _) = accounts(10, 0.8);
        let (a, b) = (Name::new("a").unwrap(), Name::new("b").unwrap());
        accounts.reserve(&a, load(8)).unwrap();
        let full = accounts.reserve(&a, load(1)).unwrap_err();
        assert!(matches!(full, AppendError::Full { ceiling: "queue_channel_share", .. }));
        accounts.reserve(&b, load(2)).unwrap();
    }

    #[test]
    fn both_sides_of_the_account_agree_after_every_step() {
        let (accounts, _) = accounts(100, 1.0);
        let a = Name::new("a").unwrap();
        accounts.recovered(Some(&a), load(3));
        accounts.reserve(&a, load(5)).unwrap();
        accounts.accepted([(&a, load(5))].into_iter());
        let out = [
            (Some(&a), load(4), Outcome::Stored),
            (Some(&a), load(1), Outcome::DeadLettered),
            (Some(&a), load(1), Outcome::Lost),
        ];
        accounts.resolved(out.into_iter());
        let (all, queued, _) = accounts.snapshot();
        let c = all[0].1;
        assert_eq!(c.accepted + c.recovered, c.stored + c.queued + c.dead_lettered + c.lost);
        assert_eq!((queued, c.queued), (load(2), 2));
    }

    #[test]
    fn retry_after_doubles_when_the_drain_rate_halves_and_has_a_ceiling() {
        let cases = [(1_000.0, 10), (500.0, 20), (250.0, 40), (1.0, 60), (0.0, 60), (1e9, 1)];
        for (rate, secs) in cases {
            let got = retry_after(1_000_000, 1_000_000, rate);
            assert_eq!(got, Duration::from_secs(secs), "{rate}");
        }
        assert_eq!(retry_after(1_000_000, 0, 0.0), Duration::from_secs(1), "nothing waits");
    }

    #[test]
    fn the_drain_rate_follows_what_was_released() {
        let (accounts, clock) = accounts(1_000_000, 1.0);
        let a = Name::new("a").unwrap();
        accounts.recovered(Some(&a), load(5000));
        for _ in 0..5 {
            accounts.resolved([(Some(&a), load(1000), Outcome::Stored)].into_iter());
            clock.advance(Duration::from_secs(1));
        }
        assert!((accounts.snapshot().2 - 1000.0).abs() < 1.0);
        clock.advance(Duration::from_secs(30));
        assert!(accounts.snapshot().2 < 1.0, "a silent storage drains nothing");
    }
}
