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
use crate::event::{ChannelName, Event, ModeTag, Seq};
use crate::queue::file::look::{LogFiles, Stands, Wanted as Looked};
use crate::queue::{AnyQueue, Queue};
use crate::storage::event_store::Wanted;
use crate::task;
use crate::watermark::Watermark;

/// Most events, and about most bytes, of one write.
const EVENTS: usize = 4_096;
const BYTES: usize = 4 << 20;

/// How often it is looked whether what writers had in hand is resolved, and for how long.
const WAIT: Duration = Duration::from_millis(10);
const MOST_WAIT: Duration = Duration::from_secs(2);

/// What is owed is tried again at every so many looks: every few seconds.
const TRY_OWED: u32 = 20;

/// The stretch of a channel that the storage should have: above the first seq, up to the second.
pub(super) type Stretch = (Seq, Seq);

impl<S: HistoryStore> Keeper<S> {
    /// What the storage has less of than the log shows it took.
    ///
    /// With `back` the storage shows less than it was told, and nobody knows what else it has of it:
    /// then all that the log holds is taken as missing.
    pub(super) async fn missing(&self, found: &Found, back: bool) -> Result<Missing, String> {
        let mut missing = Missing::default();
        let Some(log) = self.with.log.clone() else { return Ok(missing) };
        missing.open = self.wait().await;
        let looked = self.look(found);
        if looked.to < looked.from {
            return Ok(missing);
        }
        let scope = Scope {
            found: found.clone(),
            marks: self.with.marks.clone(),
            queue: self.with.queue.clone(),
            owed: self.owed.clone(),
            modes: self.with.modes.clone(),
            aside: self.aside(),
        };
        let counted = task::blocking(move || scope.count(&log, &looked));
        for (channel, counted) in counted.await? {
            let Counted { above, upto, beyond, .. } = counted;
            // while writers have leases in hand that may hold them it is their work
            let beyond = beyond.filter(|_| !missing.open);
            let stretch = (above, beyond.map_or(upto, |(_, last)| last.max(upto)));
            match self.stands(&channel, &counted, back).await? {
                Verdict::Lacks => {
                    missing.short.insert(channel, stretch);
                }
                Verdict::Unknown => {
                    missing.again.insert(channel, stretch);
                }
                Verdict::Stands => {
                    if let Some((first, last)) = beyond {
                        let above = Seq(first.0.saturating_sub(1));
                        missing.again.insert(channel, (above, last));
                    }
                }
            }
        }
        Ok(missing)
    }

    /// Whether what was counted of a channel stands there.
    async fn stands(
        &self,
        channel: &ChannelName,
        counted: &Counted,
        back: bool,
    ) -> Result<Verdict, String> {
        let Counted { upto, first, n, others, .. } = *counted;
        if n == 0 {
            return Ok(if back && others { Verdict::Lacks } else { Verdict::Stands });
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
        let stand = match self.with.storage.count(&wanted, n).await {
            Ok(stand) => stand,
            // of one table alone: the other channels need not wait for it
            Err(e) if e.channel.is_some() => {
                tracing::warn!(%channel, "what stands there of channel {channel} cannot be counted: {e}; what the log holds is written again");
                return Ok(if back { Verdict::Lacks } else { Verdict::Unknown });
            }
            Err(e) => return Err(told(e)),
        };
        if stand < n {
            tracing::error!(
                %channel,
                "of {n} events of channel {channel} that the storage had taken and the log still holds {stand} stand there: they are written again"
            );
        }
        Ok(if stand < n || back { Verdict::Lacks } else { Verdict::Stands })
    }

    /// Waits for what writers had in hand when the storage was met, but not for long; whether they have
    /// some of it still.
    async fn wait(&self) -> bool {
        let mut waited = Duration::ZERO;
        while self.in_hand() {
            if waited >= MOST_WAIT {
                return true;
            }
            task::sleep(WAIT).await;
            waited += WAIT;
        }
        false
    }

    /// Whether a lease that was under way when the storage was met has not ended.
    pub(super) fn in_hand(&self) -> bool {
        let under_way = || self.with.marks.with(|marks| marks.under_way());
        self.handed_out.as_ref().is_some_and(|(_, leases)| !under_way().is_disjoint(leases))
    }

    /// Behind what the storage surely has, up to what was handed out when it was met.
    fn look(&self, found: &Found) -> Looked {
        let read = self.handed_out.as_ref().map(|(read, _)| read.0);
        Looked { from: Some(found.whole().next().0), to: read, ..Looked::default() }
    }

    /// The channels that are set aside, from where on they wait.
    fn aside(&self) -> BTreeMap<ChannelName, Seq> {
        self.with.marks.with(|marks| {
            let aside = |channel: ChannelName| Some((channel.clone(), marks.set_aside(&channel)?));
            marks.channels().into_iter().filter_map(aside).collect()
        })
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
        let (stretches, modes, aside) = (short.clone(), self.with.modes.clone(), self.aside());
        let wanted = move |event: &Event, stands: Stands| {
            let within = |(above, upto): &Stretch| event.seq > *above && event.seq <= *upto;
            let known = event.mode == ModeTag::Raw || is_of_today(&modes, event);
            let named = stretches.get(&event.channel).is_some_and(within);
            named && known && !waits(&aside, event, stands)
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
                self.owe(&tried, &owed);
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
        owed: &BTreeMap<ChannelName, Stretch>,
    ) {
        for (channel, tried) in tried {
            let left = still_owed(self.owed.get(channel), *tried, owed.get(channel));
            let first = left.map(|(above, _)| above.next());
            self.with.marks.with(|marks| marks.owed(channel, first));
            match left {
                Some(stretch) => self.owed.insert(channel.clone(), stretch),
                None => self.owed.remove(channel),
            };
        }
        if !tried.is_empty() {
            // all of it is told anew: nothing else names what is paid
            self.number = None;
        }
    }

    /// Says which channels the storage still lacks something of.
    pub(super) fn show_what_is_owed(&self) {
        let channels: Vec<&str> = self.owed.keys().map(ChannelName::as_str).collect();
        let text = format!(
            "the storage was met anew, and refuses what it lacks or may lack of channel {}: mend its table (`replicon schema` shows what is wanted); it is tried again every few seconds, and the log keeps it",
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

/// What is owed of a channel after a stretch was tried of which `lacks` is still lacking.
fn still_owed(
    before: Option<&Stretch>,
    tried: Stretch,
    lacks: Option<&Stretch>,
) -> Option<Stretch> {
    match (before, lacks) {
        (Some(before), Some(lacks)) => Some((before.0.min(lacks.0), before.1.max(lacks.1))),
        (Some(before), None) if before.0 < tried.0 || before.1 > tried.1 => Some(*before),
        (_, lacks) => lacks.copied(),
    }
}

/// What is to be written again.
#[derive(Default)]
pub(super) struct Missing {
    /// The storage lacks it.
    pub short: BTreeMap<ChannelName, Stretch>,
    /// It may lack it, and nobody could count: nothing of it was shown to peers, or its table does not
    /// answer.
    pub again: BTreeMap<ChannelName, Stretch>,
    /// Leases that were under way when the storage was met were so still: what was stored above them is
    /// looked for when they have ended.
    pub open: bool,
}

/// What a count showed.
enum Verdict {
    Stands,
    Lacks,
    Unknown,
}

/// What the log shows of a channel.
struct Counted {
    above: Seq,
    upto: Seq,
    /// Of those that count.
    first: Seq,
    n: u64,
    /// There are events that are looked for elsewhere today.
    others: bool,
    /// The first and the last event that were stored above one that is set aside.
    beyond: Option<Stretch>,
}

/// What says what the storage should have.
struct Scope {
    found: Found,
    marks: Arc<Watermark>,
    queue: Arc<AnyQueue>,
    owed: BTreeMap<ChannelName, Stretch>,
    modes: Arc<Modes>,
    aside: BTreeMap<ChannelName, Seq>,
}

/// Whether the event stands where its channel's events are looked for today: not where the channel is
/// gone and had columns, or had another mode then.
fn is_of_today(modes: &Modes, event: &Event) -> bool {
    *modes.get(&event.channel).unwrap_or(&ModeTag::Raw) == event.mode
}

/// Whether the event is set aside and was not stored yet, as far as anybody knows.
fn waits(aside: &BTreeMap<ChannelName, Seq>, event: &Event, stands: Stands) -> bool {
    stands.aside && aside.get(&event.channel).is_some_and(|first| event.seq >= *first)
}

impl Scope {
    /// Counts it, a channel each, of what was looked at.
    fn count(
        &self,
        log: &LogFiles,
        looked: &Looked,
    ) -> Result<BTreeMap<ChannelName, Counted>, String> {
        let mut counted: BTreeMap<ChannelName, Counted> = BTreeMap::new();
        let all = Seq(looked.to.unwrap_or(u64::MAX));
        let read = log.events(looked, &mut |event, stands| {
            let channel = &event.channel;
            let of = counted.entry(channel.clone()).or_insert_with(|| Counted {
                above: self.found.of(channel.as_str()).max(self.found.whole()),
                upto: self.upto(channel, all),
                first: Seq(0),
                n: 0,
                others: false,
                beyond: None,
            });
            let dead = || self.queue.is_dead(event.seq);
            if event.seq > of.above && !waits(&self.aside, event, stands) && !dead() {
                self.add(of, event);
            }
            ControlFlow::Continue(())
        });
        read.map(|()| counted).map_err(|e| e.to_string())
    }

    fn add(&self, of: &mut Counted, event: &Event) {
        if event.seq > of.upto {
            if self.aside.get(&event.channel).is_some_and(|first| event.seq > *first) {
                let first = of.beyond.map_or(event.seq, |(first, _)| first);
                of.beyond = Some((first, event.seq));
            }
        } else if is_of_today(&self.modes, event) {
            if of.n == 0 {
                of.first = event.seq;
            }
            of.n += 1;
        } else {
            of.others |= event.mode == ModeTag::Raw;
        }
    }

    /// Up to where a channel's events should stand there: up to S, as far as was looked, and what is
    /// owed, which stood there once.
    fn upto(&self, channel: &ChannelName, all: Seq) -> Seq {
        let resolved = self.marks.with(|marks| marks.resolved_to(channel)).min(all);
        self.owed.get(channel).map_or(resolved, |(_, upto)| resolved.max(*upto))
    }
}

/// Hands these events on, in order.
fn read(
    log: &LogFiles,
    looked: &Looked,
    wanted: impl Fn(&Event, Stands) -> bool,
    batches: &mpsc::Sender<Vec<Event>>,
) -> Result<(), String> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let read = log.events(looked, &mut |event, stands| {
        if !wanted(event, stands) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(above: u64, upto: u64) -> Stretch {
        (Seq(above), Seq(upto))
    }

    #[test]
    fn what_is_owed_stays_until_all_of_it_was_written() {
        let (early, tried) = (stretch(3, 4), stretch(5, 9));
        assert_eq!(still_owed(None, tried, Some(&tried)), Some(tried));
        assert_eq!(still_owed(None, tried, None), None);
        assert_eq!(still_owed(Some(&early), tried, Some(&tried)), Some(stretch(3, 9)));
        assert_eq!(still_owed(Some(&early), tried, None), Some(early), "it was not tried");
        assert_eq!(still_owed(Some(&stretch(6, 12)), tried, None), Some(stretch(6, 12)));
        assert_eq!(still_owed(Some(&tried), stretch(3, 9), None), None);
    }
}
