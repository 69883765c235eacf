//! What every storage that keeps anything must do; a backend's test is one line.
//!
//! `open` opens the same storage each time; `read` returns what stands in it, as `(seq, payload)`.

use std::future::Future;

use bytes::Bytes;

use super::{Contact, Storage, StorageError};
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
    Contact { first_unacked: Seq(first_unacked), node_id: "a-node-id".to_owned() }
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
    assert!(good(storage.stands(&event(2, "{}")).await));
    assert!(!good(storage.stands(&event(3, "{}")).await));

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
