//! Dead letters: put back, discarded, cleared away, through crashes at every operation.

use std::collections::BTreeMap;
use std::time::Duration;

use replicon::event::{Event, Seq};
use replicon::fsx::sim::{Fault, MODES, SimDisk};
use replicon::queue::conformance::batch;
use replicon::queue::file::dead::{DeadState, Filter, read_all};
use replicon::queue::file::{FileQueue, Options, SyncMode};
use replicon::queue::{DeadReason, Queue, Source};

use crate::support::full_scale;
use crate::support::sim::{BASE, WIDE, counts, drain, open, options};

fn why(code: &str) -> DeadReason {
    DeadReason { code: code.to_owned(), text: "a check refused it".to_owned() }
}

fn payload(event: &Event) -> String {
    String::from_utf8(event.payload.to_vec()).unwrap()
}

/// Appends `n` events and makes all of them dead letters.
async fn all_dead(queue: &FileQueue, n: u64) -> Vec<Event> {
    queue.append(batch("a", 0, n)).await.unwrap();
    let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
    let events = lease.events.clone();
    for event in &events {
        queue.dead_letter(event, &why("23514")).await.unwrap();
    }
    let seqs: Vec<Seq> = events.iter().map(|e| e.seq).collect();
    queue.ack(lease, &seqs).await;
    events
}

fn states(disk: &SimDisk) -> BTreeMap<u64, DeadState> {
    let mut all = BTreeMap::new();
    let base = format!("{BASE}.dead");
    read_all(disk, base.as_ref(), &mut |_, _| {}, &mut |letter| {
        assert!(all.insert(letter.event.seq.0, letter.state).is_none(), "each once");
        Ok(())
    })
    .unwrap();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_put_back_once_whatever_fails_and_however_often_it_is_tried() {
    let seeds = if full_scale() { 20 } else { 2 };
    for fails_from in 0.. {
        let disk = SimDisk::new();
        let queue = open(options(&disk));
        let dead = all_dead(&queue, 5).await;
        disk.fail(None, Fault::From(fails_from));
        let first = queue.retry_dead(&Filter::default(), &mut |_, _| {}).await;
        for mode in MODES {
            for seed in 0..seeds {
                let what = format!("operation {fails_from} on fails, {mode:?}, seed {seed}");
                let after = disk.crash(mode, seed * 31 + fails_from);
                let again = open(options(&after));
                let rest = again.retry_dead(&Filter::default(), &mut |_, _| {}).await.unwrap();
                if let Ok(n) = &first {
                    assert_eq!((*n, rest), (5, 0), "{what}: what was said to be done is done");
                }
                let (events, again) = drain(again).await;
                // the dead events themselves may come again: their seqs have letters
                let mut fresh: Vec<String> =
                    events.iter().filter(|e| !again.is_dead(e.seq)).map(payload).collect();
                fresh.sort_unstable();
                let want: Vec<String> = dead.iter().map(payload).collect();
                assert_eq!(fresh, want, "{what}: each content once");
                drop(again);
                for (seq, state) in states(&after) {
                    let done = matches!(state, DeadState::Redriven(_));
                    assert!(done, "{what}: letter {seq} is {state:?}");
                }
            }
        }
        if first.is_ok() && disk.ops() < fails_from {
            break;
        }
        assert!(fails_from < 400, "it never ends well");
    }
}

/// A write that fails once ends its segment, and the log goes on: what was to be put back there is
/// not in it, whoever asks later. What is in it is found at once, also where the log is synced rarely.
#[tokio::test]
async fn a_letter_whose_append_failed_once_is_put_back_by_the_next_try() {
    let rarely = SyncMode::Interval(Duration::from_secs(3600));
    for (sync, restart) in
        [(SyncMode::Ack, false), (SyncMode::Ack, true), (rarely, false), (rarely, true)]
    {
        for fails_at in 0.. {
            let what = format!("operation {fails_at} fails once, {sync:?}, restart: {restart}");
            if one_failed_operation(fails_at, sync, restart, &what).await {
                break;
            }
        }
    }
}

/// Whether the try had no such operation.
async fn one_failed_operation(fails_at: u64, sync: SyncMode, restart: bool, what: &str) -> bool {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    let dead = all_dead(&queue, 5).await;
    drop(queue);
    let mut queue = open(Options { sync, ..options(&disk) });
    disk.fail(None, Fault::Once(fails_at));
    let _ = queue.retry_dead(&Filter::default(), &mut |_, _| {}).await;
    let not_met = !disk.healthy();
    disk.heal();
    if restart {
        drop(queue);
        queue = open(Options { sync, ..options(&disk) });
    }
    let mut tries = 0;
    while queue.retry_dead(&Filter::default(), &mut |_, _| {}).await.is_err() {
        tries += 1;
        assert!(tries < 100, "{what}: it never ends well");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(queue);
    let (events, queue) = drain(open(options(&disk))).await;
    let fresh = events.iter().filter(|e| !queue.is_dead(e.seq));
    let mut fresh: Vec<String> = fresh.map(payload).collect();
    fresh.sort_unstable();
    let want: Vec<String> = dead.iter().map(payload).collect();
    assert_eq!(fresh, want, "{what}: each content once");
    not_met
}

#[tokio::test]
async fn a_new_event_counts_as_accepted_and_keeps_content_and_time() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    let dead = all_dead(&queue, 3).await;
    let filter = Filter { seqs: vec![dead[1].seq.0], ..Filter::default() };
    let mut told = Vec::new();
    let n = queue.retry_dead(&filter, &mut |old, new| told.push((old, new))).await.unwrap();
    assert_eq!(n, 1);
    let (old, new) = told[0];
    assert!(old == dead[1].seq && new > dead[2].seq);
    let all = counts(&queue);
    assert_eq!((all.accepted, all.dead_lettered, all.queued), (4, 3, 1));
    let (events, _queue) = drain(queue).await;
    let event = &events[0];
    assert_eq!(event.seq, new);
    assert_eq!(
        (&event.channel, event.received_at, &event.payload, event.mode),
        (&dead[1].channel, dead[1].received_at, &dead[1].payload, dead[1].mode)
    );
}

#[tokio::test]
async fn filters_take_what_matches_all_that_is_set() {
    let disk = SimDisk::new();
    let queue = open(options(&disk));
    for (channel, code) in [("a", "23514"), ("a", "22001"), ("b", "23514")] {
        queue.append(batch(channel, 0, 1)).await.unwrap();
        let lease = queue.lease(&Source::Main, WIDE).await.unwrap();
        queue.dead_letter(&lease.events[0], &why(code)).await.unwrap();
        let seqs = [lease.events[0].seq];
        queue.ack(lease, &seqs).await;
    }
    let (a, check) = (Some("a".to_owned()), Some("23514".to_owned()));
    let cases = [
        (Filter::default(), 3),
        (Filter { channel: a.clone(), ..Filter::default() }, 2),
        (Filter { reason: check.clone(), ..Filter::default() }, 2),
        (Filter { channel: a, reason: check, seqs: Vec::new() }, 1),
        (Filter { seqs: vec![7], ..Filter::default() }, 0),
    ];
    for (filter, want) in cases {
        assert_eq!(queue.count_dead(&filter).await.unwrap(), want, "{filter:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_letters_make_room_and_are_still_acked_untried_while_they_can_come_again() {
    let disk = SimDisk::new();
    let small = || Options { dead_letter_max_bytes: 4000, ..options(&disk) };
    let queue = open(small());
    let dead = all_dead(&queue, 20).await;
    let more = Event { seq: Seq(dead[19].seq.0 + 1000), ..dead[0].clone() };
    for n in 0..100 {
        let next = Event { seq: Seq(more.seq.0 + n), ..more.clone() };
        if queue.dead_letter(&next, &why("x")).await.is_err() {
            break;
        }
        assert!(n < 90, "the ceiling holds");
    }
    let all = queue.discard_dead(&Filter::default()).await.unwrap();
    assert!(all > 20);
    let mut turns = 0;
    while queue.dead_letter(&more.clone(), &why("x")).await.is_err()
        || queue.dead_letter(&Event { seq: Seq(1), ..more.clone() }, &why("x")).await.is_err()
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        turns += 1;
        assert!(turns < 2000, "no room is made");
    }
    // the log still holds their events: the ack record is a hint
    assert!(dead.iter().all(|e| queue.is_dead(e.seq)));
    drop(queue);
    for mode in MODES {
        let after = disk.crash(mode, 3);
        let again = open(Options { dead_letter_max_bytes: 4000, ..options(&after) });
        assert!(dead.iter().all(|e| again.is_dead(e.seq)), "{mode:?}");
        assert_eq!(again.count_dead(&Filter::default()).await.unwrap(), 1, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clearing_away_loses_no_letter_whatever_fails() {
    for fails_from in 0.. {
        let disk = SimDisk::new();
        let queue = open(options(&disk));
        let dead = all_dead(&queue, 12).await;
        let odd: Vec<u64> = dead.iter().map(|e| e.seq.0).filter(|seq| seq % 2 == 1).collect();
        let filter = Filter { seqs: odd.clone(), ..Filter::default() };
        queue.discard_dead(&filter).await.unwrap();
        disk.fail(None, Fault::From(fails_from));
        let cleared = queue.clear_dead().is_ok();
        for mode in MODES {
            let after = disk.crash(mode, fails_from);
            let what = format!("operation {fails_from} on fails, {mode:?}");
            let again = open(options(&after));
            for event in &dead {
                assert!(again.is_dead(event.seq), "{what}: {}", event.seq);
            }
            drop(again);
            let left = states(&after);
            for event in &dead {
                let state = left.get(&event.seq.0);
                let gone = odd.contains(&event.seq.0);
                let fine = if gone {
                    state.is_none_or(|s| *s == DeadState::Discarded)
                } else {
                    state == Some(&DeadState::Dead)
                };
                assert!(fine, "{what}: {} is {state:?}", event.seq);
            }
        }
        if cleared && disk.ops() < fails_from {
            break;
        }
        assert!(fails_from < 400, "it never ends well");
    }
}
