//! What the log still holds of events that the storage was thought to have: looked for, and written
//! again.
//!
//! The log keeps everything above what the storage was last told to be released, so whatever a storage
//! lost since (an unsynced tail, a failover) stands there. Does not know node ids.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::settle::Worker;
use super::{Found, HistoryStore, Keeper, Modes, told};
use crate::event::{ChannelName, Event, Seq};
use crate::queue::file::look::{LogFiles, Wanted as Looked};
use crate::queue::{AnyQueue, Queue};
use crate::storage::event_store::Wanted;
use crate::task;
use crate::watermark::Watermark;

/// Most events, and about most bytes, of one write.
const EVENTS: usize = 4_096;
const BYTES: usize = 4 << 20;

/// How often it is looked whether what writers had in hand is resolved, and for how long.
const WAIT: Duration = Duration::from_millis(10);
const MOST_WAIT: Duration = Duration::from_secs(10);

/// What is owed is tried again at every so many looks: every few seconds.
const TRY_OWED: u32 = 20;

/// The stretch of a channel that the storage should have: above the first seq, up to the second.
pub(super) type Stretch = (Seq, Seq);

impl<S: HistoryStore> Keeper<S> {
    /// The channels of which the storage has less than the log shows it took.
    ///
    /// With `back` the storage shows less than it was told, and nobody knows what else it has of it:
    /// then all that the log holds is taken as missing.
    pub(super) async fn short(
        &self,
        found: &Found,
        back: bool,
    ) -> Result<BTreeMap<ChannelName, Stretch>, String> {
        let Some(log) = self.with.log.clone() else { return Ok(BTreeMap::new()) };
        let looked = self.ended(found).await?;
        if looked.to < looked.from {
            return Ok(BTreeMap::new());
        }
        let scope = Scope {
            found: found.clone(),
            marks: self.with.marks.clone(),
            queue: self.with.queue.clone(),
            owed: self.owed.clone(),
            modes: self.with.modes.clone(),
        };
        let counted = task::blocking(move || scope.count(&log, &looked));
        let mut short = BTreeMap::new();
        for (channel, Counted { above, upto, first, n }) in counted.await? {
            if n == 0 {
                continue;
            }
            let wanted = Wanted {
                origin: self.with.origin.clone(),
                channel: channel.clone(),
                // below it the log shows nothing that could be compared
                from: first,
                upto,
                rows: EVENTS,
                bytes: BYTES,
            };
            let stand = self.with.storage.count(&wanted, n).await.map_err(told)?;
            if stand >= n && !back {
                continue;
            }
            if stand < n {
                tracing::error!(
                    %channel,
                    "of {n} events of channel {channel} that the storage had taken and the log still holds {stand} stand there: they are written again"
                );
            }
            short.insert(channel, (above, upto));
        }
        Ok(short)
    }

    /// Behind what the storage surely has, up to what was handed to writers and is resolved or set
    /// aside by now. What was stored above events that are still tried may be gone as well, and nobody
    /// would look for it later: so those are waited for. They were handed out before the storage was
    /// met, and end soon once it answers.
    async fn ended(&self, found: &Found) -> Result<Looked, String> {
        let marks = &self.with.marks;
        let (read, handed_out) = marks.with(|marks| (marks.read_to(), marks.under_way()));
        let mut waited = Duration::ZERO;
        while marks.with(|marks| !marks.under_way().is_disjoint(&handed_out)) {
            if waited >= MOST_WAIT {
                return Err("events that writers had in hand when the storage was met are neither stored nor set aside yet".to_owned());
            }
            task::sleep(WAIT).await;
            waited += WAIT;
        }
        Ok(Looked { from: Some(found.whole().next().0), to: Some(read.0), ..Looked::default() })
    }

    /// Writes these stretches again, as far as the log holds them. Those of channels that the storage
    /// refuses for now are given back.
    pub(super) async fn refill(
        &self,
        short: &BTreeMap<ChannelName, Stretch>,
    ) -> Result<BTreeMap<ChannelName, Stretch>, String> {
        let Some(log) = self.with.log.clone().filter(|_| !short.is_empty()) else {
            return Ok(BTreeMap::new());
        };
        let from = short.values().map(|(above, _)| above.next().0).min();
        let to = short.values().map(|(_, upto)| upto.0).max();
        let looked = Looked { from, to, ..Looked::default() };
        let (batches, mut taken) = mpsc::channel(2);
        let (stretches, modes) = (short.clone(), self.with.modes.clone());
        let wanted = move |event: &Event| {
            let within = |(above, upto): &Stretch| event.seq > *above && event.seq <= *upto;
            stretches.get(&event.channel).is_some_and(within) && is_of_today(&modes, event)
        };
        let reading = task::blocking(move || read(&log, &looked, wanted, &batches));
        let writing = async {
            let mut stuck = BTreeSet::new();
            while let Some(mut batch) = taken.recv().await {
                // one refusal is enough: each may take seconds
                batch.retain(|event| !stuck.contains(&event.channel));
                if !batch.is_empty() {
                    stuck.extend(self.write(&batch).await);
                }
            }
            stuck
        };
        let (read, stuck) = tokio::join!(reading, writing);
        read?;
        let owed = |(channel, stretch): (&ChannelName, &Stretch)| (channel.clone(), *stretch);
        Ok(short.iter().filter(|(channel, _)| stuck.contains(*channel)).map(owed).collect())
    }

    /// Until all of them stand there or are dead letters, but for those of channels that are stuck.
    async fn write(&self, events: &[Event]) -> Vec<ChannelName> {
        let mut stop = self.with.stop.clone();
        let (queue, report) = (&*self.with.queue, &self.with.report);
        let worker = Worker { queue, storage: &*self.with.storage, report };
        match worker.settle(events, &mut stop).await {
            Some(settled) => settled.stuck.into_keys().collect(),
            // whoever waits for this is stopped from outside
            None => std::future::pending().await,
        }
    }

    /// Tries what the storage refused before again, now and then.
    pub(super) async fn pay_what_is_owed(&mut self) {
        self.looks += 1;
        if self.owed.is_empty() || !self.looks.is_multiple_of(TRY_OWED) {
            return;
        }
        match self.refill(&self.owed).await {
            Ok(owed) => {
                let tried = self.owed.clone();
                self.owe(&tried, owed);
            }
            Err(why) => tracing::error!("what the storage lacks is not written again yet: {why}"),
        }
        self.show_what_is_owed();
    }

    /// Of these stretches, which were tried, the storage still lacks some. Peers are shown nothing of
    /// those channels from there on.
    pub(super) fn owe(
        &mut self,
        tried: &BTreeMap<ChannelName, Stretch>,
        owed: BTreeMap<ChannelName, Stretch>,
    ) {
        for (channel, (above, _)) in tried {
            let first = owed.contains_key(channel).then(|| above.next());
            self.with.marks.with(|marks| marks.owed(channel, first));
            self.owed.remove(channel);
        }
        self.owed.extend(owed);
        if !tried.is_empty() {
            // all of it is told anew: nothing else names what is paid
            self.number = None;
        }
    }

    /// Says which channels the storage still lacks something of.
    pub(super) fn show_what_is_owed(&self) {
        let channels: Vec<&str> = self.owed.keys().map(ChannelName::as_str).collect();
        let text = format!(
            "the storage went back and refuses what it lacks of channel {}: mend its table (`replicon schema` shows what is wanted); it is tried again every few seconds, and the log keeps it",
            channels.join(", ")
        );
        let text = (!channels.is_empty()).then_some(text);
        if let Some(text) =
            text.as_ref().filter(|text| self.with.history.trouble().as_ref() != Some(*text))
        {
            tracing::error!("{text}");
        }
        self.with.history.troubled(text.as_deref());
    }
}

/// What the log shows of a channel.
struct Counted {
    above: Seq,
    upto: Seq,
    /// Of those that count.
    first: Seq,
    n: u64,
}

/// What says what the storage should have.
struct Scope {
    found: Found,
    marks: Arc<Watermark>,
    queue: Arc<AnyQueue>,
    owed: BTreeMap<ChannelName, Stretch>,
    modes: Arc<Modes>,
}

/// Whether the event stands where its channel's events are looked for today: not where the channel is
/// gone, or had another mode then.
fn is_of_today(modes: &Modes, event: &Event) -> bool {
    modes.get(&event.channel) == Some(&event.mode)
}

impl Scope {
    /// Counts it, a channel each, of what was looked at: all of that is resolved or set aside.
    fn count(
        &self,
        log: &LogFiles,
        looked: &Looked,
    ) -> Result<BTreeMap<ChannelName, Counted>, String> {
        let mut counted: BTreeMap<ChannelName, Counted> = BTreeMap::new();
        let all = Seq(looked.to.unwrap_or(u64::MAX));
        let read = log.events(looked, &mut |event, _| {
            let channel = &event.channel;
            let of = counted.entry(channel.clone()).or_insert_with(|| Counted {
                above: self.found.of(channel.as_str()).max(self.found.whole()),
                upto: self.upto(channel, all),
                first: Seq(0),
                n: 0,
            });
            let within = event.seq > of.above && event.seq <= of.upto;
            if within && is_of_today(&self.modes, event) && !self.queue.is_dead(event.seq) {
                if of.n == 0 {
                    of.first = event.seq;
                }
                of.n += 1;
            }
            ControlFlow::Continue(())
        });
        read.map(|()| counted).map_err(|e| e.to_string())
    }

    /// Up to where a channel's events should stand there: nothing of what was looked at is in anybody's
    /// hands, so that is S, as far as was looked; what is owed stood there once, too.
    fn upto(&self, channel: &ChannelName, all: Seq) -> Seq {
        let safe = self.marks.safe(channel).min(all);
        self.owed.get(channel).map_or(safe, |(_, upto)| safe.max(*upto))
    }
}

/// Hands these events on, in order.
fn read(
    log: &LogFiles,
    looked: &Looked,
    wanted: impl Fn(&Event) -> bool,
    batches: &mpsc::Sender<Vec<Event>>,
) -> Result<(), String> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let read = log.events(looked, &mut |event, _| {
        if !wanted(event) {
            return ControlFlow::Continue(());
        }
        bytes += event.payload.len();
        batch.push(event.clone());
        if batch.len() < EVENTS && bytes < BYTES {
            return ControlFlow::Continue(());
        }
        bytes = 0;
        match batches.blocking_send(std::mem::take(&mut batch)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    read.map_err(|e| e.to_string())?;
    if !batch.is_empty() {
        let _ = batches.blocking_send(batch);
    }
    Ok(())
}
