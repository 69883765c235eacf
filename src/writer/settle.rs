//! One batch against storage: stored, bisected down to its bad events, split by channel where one is
//! stuck.
//!
//! Does not know leases: what is stuck is told, and whoever holds the lease decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::watch;

use super::{FIRST_BACKOFF, MAX_BACKOFF, Report, note, unless_stopped};
use crate::event::{ChannelName, Event, Seq};
use crate::queue::{DeadLetterError, DeadReason, Queue};
use crate::storage::{Kind, Refused, Storage, StorageError};

/// An outage that is of one channel alone (a locked table, say) holds a worker no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause before a refused event is tried again, where its queue wants that.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A batch that loses its connection so often, while as large a one passes, may itself be the reason.
const LOSSES: u32 = 3;

/// What became of a batch; what is in neither is stored.
#[derive(Default)]
pub(super) struct Settled {
    /// Kept as dead letters.
    pub dead: Vec<Seq>,
    /// Their channel is stuck: which events, and why.
    pub stuck: BTreeMap<ChannelName, (BTreeSet<Seq>, String)>,
    /// Channels of which something was stored.
    stored: BTreeSet<ChannelName>,
    /// Events that lose the connection every time: judged when all others are settled.
    suspects: Vec<(Event, StorageError)>,
}

impl Settled {
    fn is_stuck(&self, event: &Event) -> bool {
        self.stuck.contains_key(&event.channel)
    }

    fn stick(&mut self, events: &[Event], why: &str) {
        for event in events {
            let entry = self.stuck.entry(event.channel.clone());
            let (seqs, _) = entry.or_insert_with(|| (BTreeSet::new(), why.to_owned()));
            seqs.insert(event.seq);
        }
    }
}

/// How storing a part ended.
enum Stored {
    /// All but those that are refused.
    Yes(Vec<Refused>),
    /// The data: to be bisected.
    Refused(StorageError),
    /// One channel, or one of several: to be split by channel.
    Stuck(StorageError),
    /// It loses its connection each time, though the server answers: to be bisected.
    Suspect(StorageError),
}

pub(super) struct Worker<'a, Q, S> {
    pub queue: &'a Q,
    pub storage: &'a S,
    pub report: &'a Report,
}

impl<Q: Queue, S: Storage> Worker<'_, Q, S> {
    /// Tries to resolve every event, however long an outage takes. `None` where the node stopped
    /// first; then nothing may be acked.
    pub async fn settle(
        &self,
        events: &[Event],
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Settled> {
        // a seq that has a dead letter was resolved before a crash: untried
        let dead = events.iter().map(|e| e.seq).filter(|seq| self.queue.is_dead(*seq)).collect();
        let mut settled = Settled { dead, ..Settled::default() };
        let mut stack: Vec<Vec<Event>> = Vec::new();
        let whole = if settled.dead.is_empty() {
            self.part(events, &mut settled, &mut stack, stop).await?;
            Vec::new()
        } else {
            events.iter().filter(|e| settled.dead.binary_search(&e.seq).is_err()).cloned().collect()
        };
        stack.push(whole);
        // parts are stored in order, so that storage with one lane sees rising seqs
        while let Some(mut part) = stack.pop() {
            let stuck: Vec<Event> = part.extract_if(.., |e| settled.is_stuck(e)).collect();
            settled.stick(&stuck, "");
            if !part.is_empty() {
                self.part(&part, &mut settled, &mut stack, stop).await?;
            }
        }
        // one that is to be tried again may lose the connection again
        while !settled.suspects.is_empty() {
            for (event, e) in std::mem::take(&mut settled.suspects) {
                self.judge(&event, &e, &mut settled, stop).await?;
            }
        }
        settled.dead.sort_unstable();
        Some(settled)
    }

    /// Stores a part; what must be tried in pieces goes onto the stack.
    async fn part(
        &self,
        part: &[Event],
        settled: &mut Settled,
        stack: &mut Vec<Vec<Event>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<()> {
        match (self.store(part, stop).await?, part) {
            (Stored::Yes(refused), part) => {
                if !refused.is_empty() {
                    self.bury_all(part, refused, settled, stop).await?;
                }
                for event in part {
                    let resolved = settled.dead.contains(&event.seq) || settled.is_stuck(event);
                    if !settled.stored.contains(&event.channel) && !resolved {
                        settled.stored.insert(event.channel.clone());
                    }
                }
            }
            (Stored::Refused(e), [culprit]) => self.give_up(culprit, &e, settled, stop).await?,
            (Stored::Suspect(e), [culprit]) => settled.suspects.push((culprit.clone(), e)),
            (Stored::Refused(_) | Stored::Suspect(_), part) => {
                let (a, b) = part.split_at(part.len() / 2);
                stack.push(b.to_vec());
                stack.push(a.to_vec());
            }
            (Stored::Stuck(e), part) => match split_by_channel(part, e.channel.as_ref()) {
                parts if parts.len() == 1 => settled.stick(part, &e.to_string()),
                parts => stack.extend(parts.into_iter().rev()),
            },
        }
        Some(())
    }

    /// A dead letter, unless it stands in storage or finds no room.
    async fn give_up(
        &self,
        culprit: &Event,
        e: &StorageError,
        settled: &mut Settled,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<()> {
        let (mut why, alone) = (e.clone(), std::slice::from_ref(culprit));
        loop {
            match self.bury(culprit, &why, stop).await? {
                Buried::Dead => settled.dead.push(culprit.seq),
                Buried::Stands => {}
                Buried::Stuck(why) => settled.stick(alone, &why),
                Buried::Again => {
                    unless_stopped(stop, crate::task::sleep(TRY_AGAIN)).await?;
                    match self.store(alone, stop).await? {
                        Stored::Yes(refused) => match refused.into_iter().next() {
                            Some(refused) => why = refused.error,
                            None => {
                                settled.stored.insert(culprit.channel.clone());
                                return Some(());
                            }
                        },
                        Stored::Refused(e) => why = e,
                        // an outage is no refusal
                        Stored::Suspect(e) => {
                            settled.suspects.push((culprit.clone(), e));
                            return Some(());
                        }
                        Stored::Stuck(e) => {
                            settled.stick(alone, &e.to_string());
                            return Some(());
                        }
                    }
                    continue;
                }
            }
            return Some(());
        }
    }

    /// An event that lost the connection every time is at fault only where another one of its channel
    /// was stored meanwhile; else its channel waits, and is tried together with what comes after.
    async fn judge(
        &self,
        event: &Event,
        e: &StorageError,
        settled: &mut Settled,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<()> {
        if settled.stored.contains(&event.channel) && !settled.is_stuck(event) {
            return self.give_up(event, e, settled, stop).await;
        }
        settled.stick(std::slice::from_ref(event), &e.to_string());
        Some(())
    }

    /// Whether the server takes as much as this part at once.
    async fn passes(&self, part: &[Event]) -> bool {
        let bytes = part.iter().map(|e| e.payload.len()).sum();
        self.storage.probe(bytes).await.is_ok()
    }

    /// Stores a part, retrying through every outage.
    async fn store(&self, part: &[Event], stop: &mut watch::Receiver<bool>) -> Option<Stored> {
        let mut backoff = FIRST_BACKOFF;
        let mut waited = Duration::ZERO;
        let mut last = None;
        let mut losses = 0;
        let mut lost = false;
        loop {
            // looked at behind the pause: a server that the part brought down is up again
            if std::mem::take(&mut lost) && self.passes(part).await {
                losses += 1;
                if losses >= LOSSES
                    && let Some(e) = last.take()
                {
                    return Some(Stored::Suspect(e));
                }
            }
            let timer = self.report.write_seconds.start_timer();
            let result = self.storage.append(part).await;
            waited += Duration::from_secs_f64(timer.stop_and_record());
            match result {
                Ok(refused) => {
                    note(self.report, None);
                    return Some(Stored::Yes(refused));
                }
                Err(e) if e.kind == Kind::Reject => return Some(Stored::Refused(e)),
                Err(e) if e.kind == Kind::Fatal => return Some(Stored::Stuck(e)),
                // of one channel alone: the others first, and it alone not for ever
                Err(e) if e.channel.is_some() && (mixed(part) || waited >= PATIENCE) => {
                    return Some(Stored::Stuck(e));
                }
                Err(e) => {
                    note(self.report, Some(&e));
                    lost = e.is_lost();
                    last = lost.then_some(e);
                }
            }
            unless_stopped(stop, crate::task::sleep(backoff)).await?;
            waited += backoff;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Keeps a refused event as a dead letter, unless it stands in storage after all.
    async fn bury(
        &self,
        event: &Event,
        why: &StorageError,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Buried> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.storage.stands(std::slice::from_ref(event)).await {
                Ok(there) if there.contains(&event.seq) => return Some(Buried::Stands),
                Ok(_) => match self.keep(event, why).await {
                    Ok(()) => return Some(Buried::Dead),
                    Err(e @ DeadLetterError::Full { .. }) => {
                        return Some(Buried::Stuck(e.to_string()));
                    }
                    Err(DeadLetterError::Again { .. }) => return Some(Buried::Again),
                    Err(e) => {
                        let e = StorageError::retry("dead_letter", e.to_string());
                        note(self.report, Some(&e));
                    }
                },
                Err(e) => note(self.report, Some(&e)),
            }
            unless_stopped(stop, crate::task::sleep(backoff)).await?;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn keep(&self, event: &Event, why: &StorageError) -> Result<(), DeadLetterError> {
        self.queue.dead_letter(event, &reason_of(why)).await?;
        tell(event, why);
        Ok(())
    }

    /// Keeps the events that storage told apart as dead letters, together; where that fails, one by
    /// one. Where the queue wants them tried again first, they are, together.
    async fn bury_all(
        &self,
        part: &[Event],
        refused: Vec<Refused>,
        settled: &mut Settled,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<()> {
        let (mut part, mut refused) = (part.to_vec(), refused);
        loop {
            let why: BTreeMap<Seq, StorageError> =
                refused.into_iter().map(|r| (r.seq, r.error)).collect();
            part.retain(|e| why.contains_key(&e.seq));
            if let Ok(there) = self.storage.stands(&part).await {
                part.retain(|e| !there.contains(&e.seq));
                match self.keep_all(&part, &why, settled).await {
                    Ok(()) => return Some(()),
                    Err(DeadLetterError::Again { .. }) => {
                        unless_stopped(stop, crate::task::sleep(TRY_AGAIN)).await?;
                        match self.store(&part, stop).await? {
                            Stored::Yes(again) if again.is_empty() => return Some(()),
                            Stored::Yes(again) => {
                                refused = again;
                                continue;
                            }
                            Stored::Refused(_) => {}
                            // an outage is no refusal
                            Stored::Stuck(e) => {
                                settled.stick(&part, &e.to_string());
                                return Some(());
                            }
                            Stored::Suspect(e) => {
                                let suspects = part.iter().map(|event| (event.clone(), e.clone()));
                                settled.suspects.extend(suspects);
                                return Some(());
                            }
                        }
                    }
                    Err(_) => {}
                }
            }
            for event in &part {
                if let Some(e) = why.get(&event.seq) {
                    self.give_up(event, e, settled, stop).await?;
                }
            }
            return Some(());
        }
    }

    async fn keep_all(
        &self,
        part: &[Event],
        why: &BTreeMap<Seq, StorageError>,
        settled: &mut Settled,
    ) -> Result<(), DeadLetterError> {
        let letter = |e: &Event| Some((e.clone(), reason_of(why.get(&e.seq)?)));
        let letters: Vec<(Event, DeadReason)> = part.iter().filter_map(letter).collect();
        self.queue.dead_letters(&letters).await?;
        for (event, _) in &letters {
            settled.dead.push(event.seq);
            if let Some(why) = why.get(&event.seq) {
                tell(event, why);
            }
        }
        Ok(())
    }
}

fn reason_of(why: &StorageError) -> DeadReason {
    DeadReason { code: why.code.clone(), text: why.text.clone() }
}

fn tell(event: &Event, why: &StorageError) {
    tracing::error!(
        seq = %event.seq, channel = %event.channel, code = %why.code,
        "storage refuses event {} of channel {}: {why}; it is kept as a dead letter",
        event.seq, event.channel
    );
}

/// What became of a refused event.
enum Buried {
    Dead,
    Stands,
    /// No room for the letter: its channel waits, nothing is dropped.
    Stuck(String),
    /// The queue wants it tried again first.
    Again,
}

fn mixed(part: &[Event]) -> bool {
    part.windows(2).any(|pair| pair[0].channel != pair[1].channel)
}

/// A part for each channel; where one is named as the stuck one, only two: the others, then it.
fn split_by_channel(part: &[Event], stuck: Option<&ChannelName>) -> Vec<Vec<Event>> {
    if let Some(stuck) = stuck {
        let (theirs, others): (Vec<_>, Vec<_>) =
            part.iter().cloned().partition(|e| e.channel == *stuck);
        return [others, theirs].into_iter().filter(|part| !part.is_empty()).collect();
    }
    let mut parts: Vec<Vec<Event>> = Vec::new();
    for event in part {
        match parts.iter_mut().find(|part| part[0].channel == event.channel) {
            Some(part) => part.push(event.clone()),
            None => parts.push(vec![event.clone()]),
        }
    }
    parts
}
