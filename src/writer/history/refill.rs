//! What the log still holds of events that the storage was thought to have: looked for, and written
//! again.
//!
//! The log keeps everything above what the storage was last told to be released, so whatever a storage
//! lost since (an unsynced tail, a failover) stands there. Does not know node ids.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tokio::sync::mpsc;

use super::super::settle::Worker;
use super::{ASK_AGAIN, Found, HistoryStore, Keeper, told};
use crate::event::{ChannelName, Event, Seq};
use crate::queue::Queue;
use crate::queue::file::look::{LogFiles, Wanted as Looked};
use crate::storage::event_store::Wanted;
use crate::task;

/// Most events, and about most bytes, of one write.
const EVENTS: usize = 4_096;
const BYTES: usize = 4 << 20;

/// The stretch of a channel that the storage should have: above the first seq, up to the second.
pub(super) type Stretch = (Seq, Seq);

impl<S: HistoryStore> Keeper<S> {
    /// The channels of which the storage has less than the log shows it took.
    pub(super) async fn short(
        &self,
        found: &Found,
    ) -> Result<BTreeMap<ChannelName, Stretch>, String> {
        let Some(log) = self.with.log.clone() else { return Ok(BTreeMap::new()) };
        let (marks, queue) = (self.with.marks.clone(), self.with.queue.clone());
        let (looked, released) = (self.wanted(found), found.clone());
        if looked.to < looked.from {
            return Ok(BTreeMap::new());
        }
        let counted = task::blocking(move || {
            let mut counted: BTreeMap<ChannelName, (Stretch, u64)> = BTreeMap::new();
            let read = log.events(&looked, &mut |event, _| {
                let entry = counted.entry(event.channel.clone()).or_insert_with(|| {
                    let above = released.of(event.channel.as_str()).max(released.whole());
                    ((above, marks.safe(&event.channel)), 0)
                });
                let ((above, upto), n) = entry;
                if event.seq > *above && event.seq <= *upto && !queue.is_dead(event.seq) {
                    *n += 1;
                }
                ControlFlow::Continue(())
            });
            read.map(|()| counted)
        });
        let counted = counted.await.map_err(|e| e.to_string())?;
        let mut short = BTreeMap::new();
        for (channel, ((above, upto), n)) in counted.into_iter().filter(|(_, (_, n))| *n > 0) {
            let wanted = Wanted {
                origin: self.with.origin.clone(),
                channel: channel.clone(),
                from: above.next(),
                upto,
                rows: EVENTS,
                bytes: BYTES,
            };
            let stand = self.with.storage.count(&wanted, n).await.map_err(told)?;
            if stand < n {
                tracing::error!(
                    %channel,
                    "of {n} events of channel {channel} that the storage had taken {stand} stand there: they are written again from the log"
                );
                short.insert(channel, (above, upto));
            }
        }
        Ok(short)
    }

    /// Behind what the storage surely has, up to what was handed to writers.
    fn wanted(&self, found: &Found) -> Looked {
        let read = self.with.marks.with(|marks| marks.read_to());
        Looked { from: Some(found.whole().next().0), to: Some(read.0), ..Looked::default() }
    }

    /// Writes these stretches again, as far as the log holds them.
    pub(super) async fn refill(
        &mut self,
        short: &BTreeMap<ChannelName, Stretch>,
    ) -> Result<(), String> {
        let Some(log) = self.with.log.clone().filter(|_| !short.is_empty()) else {
            return Ok(());
        };
        let from = short.values().map(|(above, _)| above.next().0).min();
        let to = short.values().map(|(_, upto)| upto.0).max();
        let looked = Looked { from, to, ..Looked::default() };
        let (batches, mut taken) = mpsc::channel(2);
        let stretches = short.clone();
        let reading = task::blocking(move || read(&log, &looked, &stretches, &batches));
        let writing = async {
            while let Some(batch) = taken.recv().await {
                self.write(batch).await;
            }
        };
        let (read, ()) = tokio::join!(reading, writing);
        read
    }

    /// Until all of them stand there or are dead letters.
    async fn write(&self, mut events: Vec<Event>) {
        let mut stop = self.with.stop.clone();
        let (queue, report) = (&*self.with.queue, &self.with.report);
        let worker = Worker { queue, storage: &*self.with.storage, report };
        loop {
            let Some(settled) = worker.settle(&events, &mut stop).await else {
                // whoever waits for this is stopped from outside
                std::future::pending::<()>().await;
                return;
            };
            events.retain(|event| {
                settled.stuck.get(&event.channel).is_some_and(|(seqs, _)| seqs.contains(&event.seq))
            });
            if events.is_empty() {
                return;
            }
            task::sleep(ASK_AGAIN).await;
        }
    }
}

/// Hands the events of these stretches on, in order.
fn read(
    log: &LogFiles,
    looked: &Looked,
    stretches: &BTreeMap<ChannelName, Stretch>,
    batches: &mpsc::Sender<Vec<Event>>,
) -> Result<(), String> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let read = log.events(looked, &mut |event, _| {
        let within = |(above, upto): &Stretch| event.seq > *above && event.seq <= *upto;
        if !stretches.get(&event.channel).is_some_and(within) {
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
