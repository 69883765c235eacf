//! What every queue must do, whatever it is made of; a backend's test is one line.
//!
//! `open` opens the same queue each time: the second time is a restart. The queue must hold at most
//! [`MAX_EVENTS`] events.

use std::future::Future;

use bytes::Bytes;

use super::{AppendError, DeadReason, Lease, LeaseLimit, Queue, Source};
use crate::event::{Batch, Micros, ModeTag, Name, Seq};

/// The ceiling of events that the suite expects.
pub const MAX_EVENTS: u64 = 1000;

const WIDE: LeaseLimit = LeaseLimit { events: 10_000, bytes: 1 << 20 };

/// A batch of `n` events in channel `channel`, numbered from `from`.
#[must_use]
#[allow(clippy::missing_panics_doc)] // a test's own names are good
pub fn batch(channel: &str, from: u64, n: u64) -> Batch {
    let payload = |i| Bytes::from(format!("{{\"n\":{i}}}"));
    Batch {
        channel: Name::new(channel).unwrap_or_else(|e| panic!("{e}")),
        mode: ModeTag::Raw,
        received_at: Micros(1_790_000_000_000_000),
        payloads: (from..from + n).map(payload).collect(),
    }
}

/// All of it, one after the other, each on a queue of its own.
pub async fn all<Q, F, O, Fut>(mut fresh: F)
where
    Q: Queue,
    F: FnMut() -> O,
    O: FnMut() -> Fut,
    Fut: Future<Output = Q>,
{
    appends_come_back_in_order_with_rising_seqs(&mut fresh()).await;
    a_lease_may_split_a_batch(&mut fresh()).await;
    unacked_events_come_again_with_the_same_seqs(&mut fresh()).await;
    a_later_lease_acked_first_releases_nothing(&mut fresh()).await;
    dead_letters_outlive_a_restart(&mut fresh()).await;
    the_ceiling_is_exact_and_opens_again(&mut fresh()).await;
    the_account_agrees_at_every_step(&mut fresh()).await;
    a_parked_channel_holds_up_no_other_and_comes_back_in_order(&mut fresh()).await;
}

fn seqs(lease: &Lease) -> Vec<u64> {
    lease.events.iter().map(|e| e.seq.0).collect()
}

async fn take<Q: Queue>(queue: &Q, limit: LeaseLimit) -> Lease {
    queue.lease(&Source::Main, limit).await.unwrap_or_else(|e| panic!("{e}"))
}

async fn put<Q: Queue>(queue: &Q, batch: Batch) -> super::Appended {
    queue.append(batch).await.unwrap_or_else(|e| panic!("{e}"))
}

/// Leases until `n` events are in hand.
async fn take_all<Q: Queue>(queue: &Q, n: usize) -> Vec<Lease> {
    let mut leases = Vec::new();
    let mut have = 0;
    while have < n {
        let lease = take(queue, WIDE).await;
        have += lease.events.len();
        leases.push(lease);
    }
    assert_eq!(have, n, "no more than was appended");
    leases
}

async fn appends_come_back_in_order_with_rising_seqs<Q: Queue, Fut: Future<Output = Q>>(
    open: &mut impl FnMut() -> Fut,
) {
    let queue = open().await;
    let mut last = Seq(0);
    for i in 0..20 {
        let got = put(&queue, batch(if i % 2 == 0 { "a" } else { "b" }, i * 3, 3)).await;
        assert!(got.first > last && got.last.0 == got.first.0 + 2, "{got:?} after {last}");
        last = got.last;
    }
    let leases = take_all(&queue, 60).await;
    let events: Vec<_> = leases.iter().flat_map(|l| &l.events).collect();
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event.payload, format!("{{\"n\":{i}}}").as_bytes());
        assert_eq!(event.channel.as_str(), if i / 3 % 2 == 0 { "a" } else { "b" });
    }
    assert!(events.is_sorted_by(|a, b| a.seq < b.seq));
}

async fn a_lease_may_split_a_batch<Q: Queue, Fut: Future<Output = Q>>(
    open: &mut impl FnMut() -> Fut,
) {
    let queue = open().await;
    let got = put(&queue, batch("a", 0, 5)).await;
    let first = take(&queue, LeaseLimit { events: 2, bytes: 1 << 20 }).await;
    let rest = take(&queue, WIDE).await;
    assert_eq!(seqs(&first), [got.first.0, got.first.0 + 1]);
    assert_eq!(seqs(&rest), [got.first.0 + 2, got.first.0 + 3, got.last.0]);
    let one = put(&queue, batch("a", 9, 1)).await;
    let tiny = take(&queue, LeaseLimit { events: 5, bytes: 1 }).await;
    assert_eq!(seqs(&tiny), [one.first.0], "one event is always leased");
}

async fn unacked_events_come_again_with_the_same_seqs<Q: Queue, Fut: Future<Output = Q>>(
    open: &mut impl FnMut() -> Fut,
) {
    let queue = open().await;
    let got = put(&queue, batch("a", 0, 10)).await;
    drop(take(&queue, WIDE).await);
    drop(queue);
    let queue = open().await;
    assert!(queue.first_unacked() <= got.first);
    let again = take(&queue, WIDE).await;
    assert_eq!(seqs(&again), (got.first.0..=got.last.0).collect::<Vec<_>>());
    let next = put(&queue, batch("a", 10, 1)).await;
    assert!(next.first > got.last, "a restart reuses no seq");
}

async fn a_later_lease_acked_first_releases_nothing<Q: Queue, Fut: Future<Output = Q>>(
    open: &mut impl FnMut() -> Fut,
) {
    let queue = open().await;
    let got = put(&queue, batch("a", 0, 4)).await;
    let first = take(&queue, LeaseLimit { events: 2, bytes: 1 << 20 }).await;
    let later = take(&queue, WIDE).await;
    queue.ack(later, &[]).await;
    assert!(queue.first_unacked() <= got.first);
    queue.ack(first, &[]).await;
    assert_eq!(queue.first_unacked(), got.last.next());
}

async fn dead_letters_outlive_a_restart<Q: Queue, Fut: Future<Output = Q>>(
    open: &mut impl FnMut() -> Fut,
) {
    let queue = open().await;
    put(&queue, batch("a", 0, 2)).await;
    let lease = take(&queue, WIDE).await;
    let why = DeadReason { code: "rejected".to_owned(), text: "a check refused it".to_owned() };
    let bad = lease.events[0].clone();
    for _ in 0..2 {
        queue.dead_letter(&bad, &why).await.unwrap_or_else(|e| panic!("{e}"));
    }
    drop(queue);
    let queue = open().await;
    assert!(queue.is_dead(bad.seq));
    assert!(!queue.is_dead(bad.seq.next()));
}

async fn the_ceiling_is_exact_and_opens_again<Q: Queue, Fut: Future<Output = Q>>(
    open: &mut impl FnMut() -> Fut,
) {
    let queue = open().await;
    let too_large = queue.append(batch("a", 0, MAX_EVENTS + 1)).await;
    assert!(matches!(too_large, Err(AppendError::TooLarge { .. })), "{too_large:?}");
    put(&queue, batch("a", 0, MAX_EVENTS)).await;
    let full = queue.append(batch("a", 0, 1)).await;
    assert!(matches!(full, Err(AppendError::Full { .. })), "{full:?}");
    for lease in take_all(&queue, usize::try_from(MAX_EVENTS).unwrap_or(0)).await {
        queue.ack(lease, &[]).await;
    }
    put(&queue, batch("a", 0, MAX_EVENTS)).await;
}

async fn the_account_agrees_at_every_step<Q: Queue, Fut: Future<Output = Q>>(
    open: &mut impl FnMut() -> Fut,
) {
    fn agree<Q: Queue>(queue: &Q, queued: u64) {
        let mut sum = 0;
        for (channel, c) in queue.stats().channels {
            let right = c.stored + c.queued + c.dead_lettered + c.lost;
            assert_eq!(c.accepted + c.recovered, right, "{channel:?}: {c:?}");
            sum += c.queued;
        }
        assert_eq!(sum, queued);
    }
    let queue = open().await;
    put(&queue, batch("a", 0, 3)).await;
    put(&queue, batch("b", 0, 2)).await;
    agree(&queue, 5);
    let lease = take(&queue, LeaseLimit { events: 2, bytes: 1 << 20 }).await;
    agree(&queue, 5);
    let dead = [lease.events[1].seq];
    queue.ack(lease, &dead).await;
    agree(&queue, 3);
    let stats = queue.stats();
    let a = stats.channels.iter().find(|(n, _)| n.as_ref().is_some_and(|n| n.as_str() == "a"));
    assert_eq!(a.map(|(_, c)| (c.stored, c.dead_lettered)), Some((1, 1)));
}

async fn a_parked_channel_holds_up_no_other_and_comes_back_in_order<Q, Fut>(
    open: &mut impl FnMut() -> Fut,
) where
    Q: Queue,
    Fut: Future<Output = Q>,
{
    let a = Name::new("a").unwrap_or_else(|e| panic!("{e}"));
    let aside = Source::Parked(a.clone());
    let queue = open().await;
    for (channel, from, n) in [("a", 0, 3), ("b", 100, 2), ("a", 3, 2)] {
        put(&queue, batch(channel, from, n)).await;
    }
    for mut lease in take_all(&queue, 7).await {
        let theirs = lease.events.iter().filter(|e| e.channel == a).map(|e| e.seq).collect();
        queue
            .park(&mut lease, &theirs, "its table is gone")
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(lease.events.iter().all(|e| e.channel != a), "they left the lease");
        queue.ack(lease, &[]).await;
    }
    put(&queue, batch("a", 5, 1)).await;
    let b = put(&queue, batch("b", 102, 1)).await;
    let lease = take(&queue, WIDE).await;
    assert_eq!(seqs(&lease), [b.first.0], "what comes after follows them");
    queue.ack(lease, &[]).await;
    let parked = queue.stats().parked;
    assert_eq!(parked.iter().map(|p| &p.channel).collect::<Vec<_>>(), [&a]);
    drop(queue);

    let queue = open().await;
    let mut came = Vec::new();
    loop {
        let limit = LeaseLimit { events: 4, bytes: 1 << 20 };
        let lease = queue.lease(&aside, limit).await.unwrap_or_else(|e| panic!("{e}"));
        if lease.events.is_empty() {
            break;
        }
        came.extend(lease.events.iter().map(|e| String::from_utf8_lossy(&e.payload).into_owned()));
        queue.ack(lease, &[]).await;
    }
    assert_eq!(came, (0..6).map(|n| format!("{{\"n\":{n}}}")).collect::<Vec<_>>());
    let stats = queue.stats();
    assert_eq!(stats.parked, [], "it has drained");
    assert!(stats.channels.iter().all(|(_, c)| c.queued == 0), "{stats:?}");
    let next = put(&queue, batch("a", 6, 1)).await;
    assert_eq!(seqs(&take(&queue, WIDE).await), [next.first.0], "it goes the usual way again");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::queue::accounts::Ceilings;
    use crate::queue::memory::MemoryQueue;

    #[tokio::test]
    async fn the_memory_queue_conforms() {
        all(|| {
            let most = Ceilings { max_events: MAX_EVENTS, max_bytes: 1 << 30, channel_share: 1.0 };
            let queue = MemoryQueue::new(most, Clock::system());
            move || {
                let queue = queue.clone();
                async move { queue.reopen() }
            }
        })
        .await;
    }
}
