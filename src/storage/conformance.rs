//! What every storage that keeps anything must do; a backend's test is one line.
//!
//! `open` opens the same storage each time; `read` returns what stands in it, as `(seq, payload)`.

use std::future::Future;

use bytes::Bytes;

use super::event_store::{Applied, EventStore, Foreign, StoredRow, Wanted};
use super::{Contact, Storage, StorageError};
use crate::clock::Clock;
use crate::event::{Event, Micros, ModeTag, Name, Seq};

/// An event for the suite.
#[must_use]
#[allow(clippy::missing_panics_doc)] // a test's own names are good
pub fn event(seq: u64, payload: &str) -> Event {
    Event {
        seq: Seq(seq),
        channel: Name::new("events_raw").unwrap_or_else(|e| panic!("{e}")),
        mode: ModeTag::Raw,
        received_at: Micros(1_790_000_000_000_000),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

fn contact(first_unacked: u64) -> Contact {
    Contact {
        first_unacked: Seq(first_unacked),
        node_id: "a-node-id".to_owned(),
        ..Contact::default()
    }
}

fn good<T>(result: Result<T, StorageError>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

/// All of it, on one storage that was empty.
pub async fn all<S, O, Fut, R>(mut open: O, mut read: R)
where
    S: Storage,
    O: FnMut() -> Fut,
    Fut: Future<Output = S>,
    R: FnMut() -> Vec<(u64, String)>,
{
    let storage = open().await;
    assert_eq!(good(storage.connect(&contact(1)).await), None, "an empty storage holds no seq");
    let first = [event(1, "{\"a\":1}"), event(2, "{\"b\":\"\u{1F600}\"}"), event(5, "{}")];
    good(storage.append(&first).await);
    let want: Vec<_> =
        first.iter().map(|e| (e.seq.0, String::from_utf8_lossy(&e.payload).into_owned())).collect();
    assert_eq!(read(), want);
    assert_eq!(good(storage.stands(&first[1..2]).await), [Seq(2)].into());
    assert_eq!(good(storage.stands(&[event(3, "{}")]).await), [].into());

    // a replay: the whole of it, a part of it, and a part with something new behind it
    good(storage.append(&first).await);
    good(storage.append(&first[2..]).await);
    let more = [event(5, "{}"), event(6, "{\"c\":3}")];
    good(storage.append(&more).await);
    let mut want = want;
    want.push((6, "{\"c\":3}".to_owned()));
    assert_eq!(read(), want, "each once");
    drop(storage);

    let storage = open().await;
    assert_eq!(
        good(storage.connect(&contact(3)).await),
        Some(Seq(6)),
        "the largest seq comes back"
    );
    good(storage.append(&more).await);
    good(storage.append(&[event(9, "{\"d\":4}")]).await);
    want.push((9, "{\"d\":4}".to_owned()));
    assert_eq!(read(), want, "each once, after a restart too");
}

/// What every [`EventStore`] must do, on one that is empty, belongs to `dc1` and goes by `clock`, which is
/// turned by hand.
pub async fn event_store<S: EventStore>(storage: &S, clock: &Clock) {
    good(storage.connect(&contact(1)).await);
    own_rows_come_in_pages(storage).await;
    foreign_rows_move_with_their_cursor(storage).await;
    other_content_is_a_conflict(storage).await;
    large_rows_come_in_pages(storage).await;
    the_id_accepted_last_stays_last(storage, clock).await;
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap_or_else(|e| panic!("{e}"))
}

fn wanted(origin: &str, from: u64, upto: u64, rows: usize) -> Wanted {
    Wanted {
        origin: name(origin),
        channel: name("events_raw"),
        from: Seq(from),
        upto: Seq(upto),
        rows,
        bytes: 1 << 20,
    }
}

async fn seqs_of<S: EventStore>(storage: &S, wanted: Wanted) -> (Vec<u64>, u64) {
    let page = good(storage.read(&wanted).await);
    (page.rows.iter().map(|row| row.seq.0).collect(), page.next.0)
}

async fn own_rows_come_in_pages<S: EventStore>(storage: &S) {
    good(storage.append(&[event(1, "{\"a\":1}"), event(2, "{}"), event(5, "{}")]).await);
    let pages = [
        (wanted("dc1", 1, 5, 2), (vec![1, 2], 3)),
        (wanted("dc1", 3, 5, 2), (vec![5], 6)),
        (wanted("dc1", 1, 4, 10), (vec![1, 2], 5)),
        (wanted("dc1", 6, 9, 10), (vec![], 10)),
        (Wanted { bytes: 1, ..wanted("dc1", 1, 5, 10) }, (vec![1], 2)),
        (wanted("dc2", 1, 9, 10), (vec![], 10)),
    ];
    for (asked, answer) in pages {
        assert_eq!(seqs_of(storage, asked.clone()).await, answer, "{asked:?}");
    }
    let page = good(storage.read(&wanted("dc1", 1, 1, 1)).await);
    let row = &page.rows[0];
    assert_eq!((row.node_name.as_str(), row.received_at), ("dc1", Micros(1_790_000_000_000_000)));
}

fn foreign(seqs: &[(u64, &str)], expect: Option<u64>) -> Foreign {
    let row = |(seq, payload): &(u64, &str)| StoredRow {
        seq: Seq(*seq),
        node_name: "dc2".to_owned(),
        received_at: Micros(1_790_000_000_000_001),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    };
    Foreign {
        origin: name("dc2"),
        channel: name("events_raw"),
        rows: seqs.iter().map(row).collect(),
        expect: expect.map(Seq),
        to: Seq(seqs.last().map_or(0, |(seq, _)| *seq)),
        again: None,
        unfit: std::collections::BTreeMap::new(),
        streak: 0,
    }
}

async fn foreign_rows_move_with_their_cursor<S: EventStore>(storage: &S) {
    let cursor = || async { good(storage.cursor(&name("dc2"), &name("events_raw")).await) };
    let first = foreign(&[(10, "{\"x\":1}"), (12, "{}")], None);
    assert_eq!(cursor().await, None);
    assert_eq!(good(storage.apply(&first).await), Applied { stored: 2, ..Applied::default() });
    assert_eq!(cursor().await, Some(Seq(12)));
    // the cursor is not what the page expects: nothing of it is stored
    for stale in [foreign(&[(14, "{}")], None), foreign(&[(14, "{}")], Some(11))] {
        assert!(good(storage.apply(&stale).await).stale);
    }
    assert_eq!(seqs_of(storage, wanted("dc2", 1, 99, 10)).await, (vec![10, 12], 100));
    // a row that stands there already is stored
    let more = foreign(&[(12, "{}"), (13, "{\"y\":[1.0,2]}")], Some(12));
    assert_eq!(good(storage.apply(&more).await), Applied { stored: 2, ..Applied::default() });
    assert_eq!(cursor().await, Some(Seq(13)));
    let own = Foreign { origin: name("dc1"), ..foreign(&[(99, "{}")], None) };
    assert!(storage.apply(&own).await.is_err(), "a node alone writes for itself");
}

async fn other_content_is_a_conflict<S: EventStore>(storage: &S) {
    let other = foreign(&[(13, "{\"y\":[3]}"), (20, "{}")], Some(13));
    let applied = good(storage.apply(&other).await);
    assert_eq!(applied, Applied { stored: 1, conflicts: 1, ..Applied::default() });
    let same = foreign(&[(13, "{ \"y\": [1, 2.0] }")], Some(20));
    let same = Foreign { to: Seq(20), ..same };
    assert_eq!(good(storage.apply(&same).await).conflicts, 0, "numbers by value");
    let page = good(storage.read(&wanted("dc2", 13, 13, 1)).await);
    assert!(page.rows[0].payload.contains(&b'1'), "what stood there stays");
    assert!(page.rows[0].payload.contains(&b'2'));
}

/// Behind small rows there are large ones: each page ends in time, and none is left out.
async fn large_rows_come_in_pages<S: EventStore>(storage: &S) {
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(100_000));
    let rows: Vec<(u64, &str)> =
        (101..=160).map(|seq| (seq, if seq <= 140 { "{}" } else { large.as_str() })).collect();
    let applied = good(storage.apply(&foreign(&rows, Some(20))).await);
    assert_eq!(applied, Applied { stored: 60, ..Applied::default() });
    let (mut next, mut got) = (101, Vec::new());
    while next <= 160 {
        let most = Wanted { bytes: 150_000, ..wanted("dc2", next, 160, 1000) };
        let page = good(storage.read(&most).await);
        let bytes: usize = page.rows.iter().map(|row| row.payload.len()).sum();
        assert!(bytes <= 150_000, "{bytes} bytes in the page from {next}");
        assert!(page.next.0 > next, "the page from {next} leads nowhere");
        got.extend(page.rows.iter().map(|row| row.seq.0));
        next = page.next.0;
    }
    assert_eq!(got, (101..=160).collect::<Vec<_>>());
}

/// The last one is followed: a clock that is set back changes nothing about that.
async fn the_id_accepted_last_stays_last<S: EventStore>(storage: &S, clock: &Clock) {
    let (origin, at) = (name("dc2"), clock.wall().0);
    for (id, since) in [("d", 0), ("c", -3_600_000_000), ("b", 0), ("a", 1), ("d", 2)] {
        clock.set_wall(Micros(at + since));
        good(storage.accept_id(&origin, id, &[]).await);
    }
    assert_eq!(good(storage.accepted_ids(&origin).await), ["d", "c", "b", "a"]);
}
