use super::*;
use crate::fsx::sim::{Fault, MODES, Op, Persist, SimDisk};
use crate::storage::conformance::{self, event};

const PATH: &str = "/db/events.jsonl";

fn storage(disk: &SimDisk) -> FileStorage {
    FileStorage::new(Options {
        disk: disk.shared(),
        path: PATH.into(),
        sync_every: Duration::ZERO,
        origin: Origin::new("dc1").unwrap(),
        clock: Clock::system(),
        lock: false,
    })
}

/// `(seq, payload)` of every line of ours.
fn lines(disk: &SimDisk) -> Vec<(u64, String)> {
    let text = String::from_utf8(disk.bytes(Path::new(PATH)).unwrap_or_default()).unwrap();
    let mut found = Vec::new();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(seq) = value["origin_seq"].as_u64() {
            let at = line.find("\"json_data\":").unwrap() + 12;
            found.push((seq, line[at..line.len() - 1].to_owned()));
        }
    }
    found
}

/// A disk on which the file stands with these bytes, durably.
fn disk_with(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new();
    durable_dir(&disk, Path::new("/db")).unwrap();
    let file = disk.create(Path::new(PATH)).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/db")).unwrap();
    disk
}

fn contact(first_unacked: u64) -> Contact {
    Contact { first_unacked: Seq(first_unacked), ..Contact::default() }
}

#[tokio::test]
async fn file_storage_conforms() {
    let disk = SimDisk::new();
    conformance::all(|| async { storage(&disk) }, || lines(&disk)).await;
}

#[tokio::test]
async fn a_pretty_printed_payload_stays_one_line_and_loses_no_other_byte() {
    let disk = SimDisk::new();
    let storage = storage(&disk);
    storage.connect(&contact(1)).await.unwrap();
    storage.append(&[event(1, "{\r\n  \"a\" : \"x\\ny\",\n\"n\": 1.10 }")]).await.unwrap();
    assert_eq!(lines(&disk), [(1, "{    \"a\" : \"x\\ny\", \"n\": 1.10 }".to_owned())]);
}

#[tokio::test]
async fn not_a_byte_of_an_older_versions_file_is_cut() {
    for old in ["{\"a\":1}\n{\"b\":2}\n", "{\"a\":1}\n{\"b\":2}", "{\"a\":1}\n{\"b\":", "garbage"] {
        let disk = disk_with(old.as_bytes());
        let storage = storage(&disk);
        assert_eq!(storage.connect(&contact(1)).await, Ok(None), "{old:?}");
        storage.append(&[event(7, "{}")]).await.unwrap();
        let now = String::from_utf8(disk.bytes(Path::new(PATH)).unwrap()).unwrap();
        let rest = now.strip_prefix(old).unwrap_or_else(|| panic!("{now:?} lost {old:?}"));
        let feed = if old.ends_with('\n') { "" } else { "\n" };
        assert!(rest.starts_with(&format!("{feed}{{\"origin_dc\"")), "{rest:?}");
    }
}

#[tokio::test]
async fn what_comes_too_late_is_refused_and_what_stands_is_stored() {
    // the last of them is longer than what is read at once
    for many in [3, 6_000] {
        let disk = disk_with(b"{\"older\":1}\n");
        let storage = storage(&disk);
        storage.connect(&contact(1)).await.unwrap();
        let pad = "x".repeat(60);
        let lines_of = |n: u64| event(n, &format!("{{\"n\":{n},\"pad\":\"{pad}\"}}"));
        // every second seq, from 11 on
        let all: Vec<_> = (0..many).map(|n| lines_of(11 + 2 * n)).collect();
        storage.append(&all).await.unwrap();
        let before = lines(&disk);
        let last = 11 + 2 * (many - 1);
        for late in [12, 11 + many / 2 * 2 + 1, last - 1] {
            let again = [lines_of(11), lines_of(late), lines_of(last)];
            let refused = storage.append(&again).await.unwrap();
            let told: Vec<_> = refused.iter().map(|r| (r.seq.0, r.error.code.as_str())).collect();
            assert_eq!(told, [(late, "out_of_order")], "of {many}");
            assert_eq!(refused[0].error.kind, Kind::Reject);
        }
        assert_eq!(lines(&disk), before, "none of them is written behind later ones");
        // what lies below our first line may have been moved away with it
        assert_eq!(storage.append(&[lines_of(5)]).await, Ok(Vec::new()));
        let both = [lines_of(last - 1), lines_of(last + 1)];
        assert_eq!(storage.append(&both).await.unwrap().len(), 1, "the other one is stored");
        assert_eq!(lines(&disk).len(), before.len() + 1);
    }
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_written_again_whole() {
    let disk = SimDisk::new();
    let first = storage(&disk);
    first.connect(&contact(1)).await.unwrap();
    let events: Vec<_> = (1..=4).map(|i| event(i, &format!("{{\"n\":{i}}}"))).collect();
    first.append(&events).await.unwrap();
    let whole = disk.bytes(Path::new(PATH)).unwrap();
    let want = lines(&disk);
    for cut in 0..=whole.len() {
        let torn = disk_with(&whole[..cut]);
        let again = storage(&torn);
        again.connect(&contact(1)).await.unwrap();
        again.append(&events).await.unwrap();
        assert_eq!(lines(&torn), want, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_page_of_zeros_before_a_whole_page_is_cut_and_written_again() {
    let disk = SimDisk::new();
    let first = storage(&disk);
    first.connect(&contact(1)).await.unwrap();
    let pad = "x".repeat(150);
    let events: Vec<_> = (1..=40).map(|i| event(i, &format!("{{\"n\":\"{i}{pad}\"}}"))).collect();
    first.append(&events).await.unwrap();
    let want = lines(&disk);
    let whole = disk.bytes(Path::new(PATH)).unwrap();
    for page in (0..whole.len()).step_by(512) {
        let mut bad = whole.clone();
        let end = (page + 512).min(bad.len());
        bad[page..end].fill(0);
        let torn = disk_with(&bad);
        let again = storage(&torn);
        // nothing was acked
        again.connect(&contact(1)).await.unwrap();
        again.append(&events).await.unwrap();
        let text = torn.bytes(Path::new(PATH)).unwrap();
        let text = String::from_utf8_lossy(&text);
        let kept: Vec<&str> = text.lines().filter(|l| l.starts_with("{\"origin_dc\"")).collect();
        let good = kept.iter().filter(|l| serde_json::from_str::<serde_json::Value>(l).is_ok());
        assert_eq!(good.count(), want.len(), "page at {page}");
    }
}

#[tokio::test]
async fn what_was_acked_is_never_looked_at_again() {
    let disk = SimDisk::new();
    let first = storage(&disk);
    first.connect(&contact(1)).await.unwrap();
    let events: Vec<_> = (1..=4).map(|i| event(i, "{}")).collect();
    first.append(&events).await.unwrap();
    let mut bytes = disk.bytes(Path::new(PATH)).unwrap();
    bytes[3] = b'#';
    let damaged = disk_with(&bytes);
    let again = storage(&damaged);
    assert_eq!(again.connect(&contact(4)).await, Ok(Some(Seq(4))));
    assert_eq!(damaged.bytes(Path::new(PATH)).unwrap(), bytes);
}

#[tokio::test]
async fn after_a_failed_sync_the_same_bytes_are_written_again_not_synced_again() {
    for mode in MODES {
        let disk = SimDisk::new();
        let storage = storage(&disk);
        storage.connect(&contact(1)).await.unwrap();
        storage.append(&[event(1, "{}")]).await.unwrap();
        disk.fail(Some(Op::Sync), Fault::Once(0));
        assert!(storage.append(&[event(2, "{\"two\":2}")]).await.is_err());
        storage.append(&[event(2, "{\"two\":2}"), event(3, "{}")]).await.unwrap();
        let seqs: Vec<u64> = lines(&disk.crash(mode, 3)).iter().map(|l| l.0).collect();
        assert_eq!(seqs, [1, 2, 3], "{mode:?}");
    }
}

#[tokio::test]
async fn a_full_disk_is_an_outage_and_ends_with_it() {
    let disk = SimDisk::new();
    let storage = storage(&disk);
    storage.connect(&contact(1)).await.unwrap();
    disk.set_capacity(Some(100));
    let error = storage.append(&[event(1, "{}")]).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_str()), (super::super::Kind::Retry, "ENOSPC"));
    disk.set_capacity(None);
    storage.append(&[event(1, "{}")]).await.unwrap();
    assert_eq!(lines(&disk.crash(Persist::Nothing, 1)).len(), 1);
}

#[tokio::test]
async fn a_file_rotated_removed_or_cut_under_a_running_node_loses_nothing_unconfirmed() {
    for what in ["rotated", "removed", "cut"] {
        let disk = SimDisk::new();
        let storage = storage(&disk);
        storage.connect(&contact(1)).await.unwrap();
        storage.append(&[event(1, "{}"), event(2, "{}")]).await.unwrap();
        match what {
            "rotated" => disk.rename(Path::new(PATH), Path::new("/db/old")).unwrap(),
            "removed" => disk.remove(Path::new(PATH)).unwrap(),
            _ => disk.open(Path::new(PATH)).unwrap().set_len(0).unwrap(),
        }
        storage.append(&[event(3, "{}")]).await.unwrap();
        assert_eq!(lines(&disk), [(3, "{}".to_owned())], "{what}");
    }
}

#[tokio::test]
async fn lines_of_a_failed_sync_are_made_durable_by_the_next_start() {
    let disk = SimDisk::new();
    let first = storage(&disk);
    first.connect(&contact(1)).await.unwrap();
    disk.fail(Some(Op::Sync), Fault::From(0));
    let events = [event(1, "{}"), event(2, "{}")];
    assert!(first.append(&events).await.is_err());
    // killed: the page cache shows the lines, clean, and the disk does not hold them
    disk.heal();
    let again = storage(&disk);
    assert_eq!(again.connect(&contact(1)).await.unwrap(), Some(Seq(2)));
    again.append(&events).await.unwrap();
    assert_eq!(lines(&disk.crash(Persist::Nothing, 1)).len(), 2);
}
