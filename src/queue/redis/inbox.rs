//! Requests that wait for the appender, and the groups that it makes of them.
//!
//! Does not know a connection.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::event::{Batch, ChannelName, Seq};
use crate::queue::accounts::Load;
use crate::queue::file::record::load_of;
use crate::queue::{AppendError, Appended};
use crate::seq::Witness;

use super::entry;

/// The most events of a group: while its script runs, Redis does nothing else. One request is always
/// taken whole.
const GROUP_EVENTS: usize = 2000;
/// The most bytes of a group.
const GROUP_BYTES: usize = 1 << 20;
/// Most bytes that wait for the appender; one request more is always taken.
const INBOX_BYTES: usize = 64 << 20;

/// A request waiting to be appended.
pub(super) struct Pending {
    /// Of all its entries.
    pub header: String,
    pub payloads: Vec<Bytes>,
    pub channel: ChannelName,
    /// What was reserved for it.
    pub load: Load,
    /// The dead letter that it puts back.
    pub redrives: Option<Seq>,
    /// Who waits.
    pub answer: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Pending {
    /// Of a batch; whoever waits holds the other end.
    pub fn of(
        batch: Batch,
        redrives: Option<Seq>,
    ) -> (Self, oneshot::Receiver<Result<Appended, AppendError>>) {
        let (answer, answered) = oneshot::channel();
        let (header, load) = (entry::header(&batch), load_of(&batch));
        let Batch { channel, payloads, .. } = batch;
        (Self { header, payloads, channel, load, redrives, answer }, answered)
    }

    fn bytes(&self) -> usize {
        self.payloads.iter().map(Bytes::len).sum()
    }
}

/// A request that was given its seqs.
pub(super) struct Placed {
    pub header: String,
    pub payloads: Vec<Bytes>,
    pub channel: ChannelName,
    pub load: Load,
    pub appended: Appended,
    /// `None` once it was answered.
    pub answer: Option<oneshot::Sender<Result<Appended, AppendError>>>,
}

/// Requests that are added by one script.
pub(super) struct Group {
    pub first: Seq,
    pub last: Seq,
    pub requests: Vec<Placed>,
    /// The dead letter that it puts back; then it is alone.
    pub redrives: Option<Seq>,
    /// When its answer is overdue, by the monotonic clock.
    pub due: Duration,
}

impl Group {
    /// Gives consecutive seqs to requests, from `first` on.
    pub fn place(pending: Vec<Pending>, first: Seq, due: Duration) -> Self {
        let redrives = pending.first().and_then(|p| p.redrives);
        let mut next = first.0;
        let mut place = |p: Pending| {
            let (from, to) = (next, next + p.load.events - 1);
            next += p.load.events;
            Placed {
                header: p.header,
                payloads: p.payloads,
                channel: p.channel,
                load: p.load,
                appended: Appended { first: Seq(from), last: Seq(to) },
                answer: Some(p.answer),
            }
        };
        let requests: Vec<Placed> = pending.into_iter().map(&mut place).collect();
        Self { first, last: Seq(next - 1), requests, redrives, due }
    }

    /// The entries that it makes, in order: header and payloads of each.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &[Bytes])> {
        self.requests.iter().flat_map(|request| {
            entry::cut(&request.payloads).map(move |some| (request.header.as_str(), some))
        })
    }

    /// Answers whoever still waits.
    pub fn answer(&mut self, with: &Result<(), AppendError>) {
        for request in &mut self.requests {
            if let Some(answer) = request.answer.take() {
                // a client that went away is no reason to do anything else
                let _ = answer.send(with.clone().map(|()| request.appended));
            }
        }
    }

    /// What it counts, a channel each.
    pub fn channels(&self) -> Vec<(&ChannelName, Load)> {
        entry::sums(self.requests.iter().map(|request| (&request.channel, request.load)))
    }
}

/// What the appender is asked to do.
#[derive(Default)]
pub(super) struct Inbox {
    work: Mutex<Work>,
    bell: Notify,
}

#[derive(Default)]
struct Work {
    pending: VecDeque<Pending>,
    bytes: usize,
    seen: Vec<(Seq, Witness)>,
    stop: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over a request; `Err` gives it back with the reason.
    #[allow(clippy::result_large_err)] // it goes straight back to its owner
    pub fn push(&self, pending: Pending) -> Result<(), (Pending, &'static str)> {
        let mut work = self.lock();
        if work.stop {
            return Err((pending, "this node is stopping"));
        }
        if work.bytes > INBOX_BYTES {
            return Err((pending, "Redis does not keep up"));
        }
        work.bytes += pending.bytes();
        work.pending.push_back(pending);
        drop(work);
        self.bell.notify_one();
        Ok(())
    }

    /// A seq is in use somewhere: raises what is given out next.
    pub fn seen(&self, seq: Seq, witness: Witness) {
        self.lock().seen.push((seq, witness));
        self.bell.notify_one();
    }

    /// Takes no more; what waits is still appended.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.bell.notify_one();
    }

    /// Whether it was stopped and nothing waits.
    pub fn is_over(&self) -> bool {
        let work = self.lock();
        work.stop && work.pending.is_empty()
    }

    /// Waits until there is something, or it was stopped.
    pub async fn wait(&self) {
        loop {
            {
                let work = self.lock();
                if !work.pending.is_empty() || !work.seen.is_empty() || work.stop {
                    return;
                }
            }
            self.bell.notified().await;
        }
    }

    /// The seqs that were seen since this was last asked.
    pub fn take_seen(&self) -> Vec<(Seq, Witness)> {
        std::mem::take(&mut self.lock().seen)
    }

    /// The requests of the next group. One that puts a dead letter back is alone.
    pub fn take_group(&self) -> Vec<Pending> {
        let mut work = self.lock();
        let (mut group, mut events, mut bytes) = (Vec::new(), 0, 0);
        while let Some(next) = work.pending.front() {
            let (n, size) = (next.payloads.len(), next.bytes());
            let alone = next.redrives.is_some();
            let over = events + n > GROUP_EVENTS || bytes + size > GROUP_BYTES;
            if !group.is_empty() && (over || alone) {
                break;
            }
            let Some(next) = work.pending.pop_front() else { break };
            (events, bytes) = (events + n, bytes + size);
            group.push(next);
            if alone {
                break;
            }
        }
        work.bytes = work.bytes.saturating_sub(bytes);
        group
    }

    /// Everything that waits: there is nobody to append it.
    pub fn take_all(&self) -> Vec<Pending> {
        let mut work = self.lock();
        work.bytes = 0;
        work.pending.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::conformance::batch;

    fn push(inbox: &Inbox, channel: &str, n: u64, redrives: Option<Seq>) {
        let (pending, _answered) = Pending::of(batch(channel, 0, n), redrives);
        assert!(inbox.push(pending).is_ok());
    }

    fn sizes(inbox: &Inbox) -> Vec<Vec<usize>> {
        let mut all = Vec::new();
        loop {
            let group: Vec<usize> = inbox.take_group().iter().map(|p| p.payloads.len()).collect();
            if group.is_empty() {
                return all;
            }
            all.push(group);
        }
    }

    #[test]
    fn groups_are_bounded_and_one_that_puts_a_letter_back_is_alone() {
        let inbox = Inbox::default();
        for n in [1500, 400, 200, 5000, 1] {
            push(&inbox, "a", n, None);
        }
        push(&inbox, "a", 1, Some(Seq(7)));
        push(&inbox, "a", 2, None);
        let want = [vec![1500, 400], vec![200], vec![5000], vec![1], vec![1], vec![2]];
        assert_eq!(sizes(&inbox), want);
    }

    #[test]
    fn seqs_of_a_group_are_consecutive_and_counted_by_channel() {
        let inbox = Inbox::default();
        for (channel, n) in [("a", 2), ("b", 1), ("a", 3)] {
            push(&inbox, channel, n, None);
        }
        let group = Group::place(inbox.take_group(), Seq(10), Duration::ZERO);
        let seqs: Vec<(u64, u64)> =
            group.requests.iter().map(|r| (r.appended.first.0, r.appended.last.0)).collect();
        assert_eq!(seqs, [(10, 11), (12, 12), (13, 15)]);
        assert_eq!((group.first, group.last), (Seq(10), Seq(15)));
        let events: Vec<u64> = group.channels().iter().map(|(_, load)| load.events).collect();
        assert_eq!(events, [5, 1]);
    }

    #[test]
    fn a_stopped_inbox_takes_no_more_and_gives_back_what_it_has() {
        let inbox = Inbox::default();
        push(&inbox, "a", 1, None);
        inbox.stop();
        let (pending, _answered) = Pending::of(batch("a", 0, 1), None);
        assert!(inbox.push(pending).is_err());
        assert!(!inbox.is_over());
        assert_eq!(inbox.take_all().len(), 1);
        assert!(inbox.is_over());
    }
}
