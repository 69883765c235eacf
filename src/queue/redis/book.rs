//! `redis.state`, beside `node.state`: what this node knows of its Redis when it meets it again, and
//! what it was found to have lost.
//!
//! A witness, not the truth: without it nothing but a loss that happened while the node was down goes
//! unnoticed. Does not know a connection.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fsx::{Disk, parent};
use crate::queue::file::slots::{Found, Slots};

/// The most losses that are kept one by one; more are counted in the last.
const MAX_LOSSES: usize = 1000;
/// The most earlier starts that are remembered.
const MAX_RUNS: usize = 32;

/// Events that Redis no longer has, though they were answered 202.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Loss {
    /// First seq that may be among them.
    pub from: u64,
    /// Last seq that may be among them.
    pub to: u64,
    /// How many.
    pub events: u64,
    /// The node was up: neither more nor fewer.
    pub exact: bool,
    /// Dead letters that are gone with them.
    pub dead_letters: u64,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, to, events, exact, dead_letters } = self;
        let most = if *exact { "" } else { "at most " };
        write!(
            f,
            "Redis has lost {most}{events} events between seq {from} and {to}, which were answered 202"
        )?;
        if *dead_letters > 0 {
            write!(f, ", and {dead_letters} dead letters")?;
        }
        Ok(())
    }
}

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `node_name`.
    pub origin: String,
    /// Database and stream.
    pub place: String,
    /// Starts of this node that took the stream, the latest last.
    pub runs: Vec<String>,
    /// The last seq that Redis confirmed.
    pub last: u64,
    /// Events that waited in it then.
    pub queued: u64,
    /// Dead letters that it held then.
    pub dead_letters: u64,
    /// It was written by a stop in order: nothing came after it.
    pub closed: bool,
    /// Unacknowledged losses.
    pub losses: Vec<Loss>,
}

impl Record {
    /// Whether it bears witness that nothing waits there.
    pub fn is_drained(&self) -> bool {
        self.closed && self.queued == 0
    }
}

/// The file and its record.
pub(super) struct Book {
    slots: Slots<Record>,
    pub record: Record,
}

/// Where it lies.
pub(super) fn path(queue_path: &Path) -> PathBuf {
    parent(queue_path).join("redis.state")
}

/// What a start found.
pub(super) enum FoundBook {
    /// No file: this node has not been on Redis.
    Absent,
    /// Not ours.
    Foreign,
    /// Ours; an unreadable one is empty.
    Good(Book),
}

impl Book {
    /// Looks for it.
    pub fn find(disk: &dyn Disk, queue_path: &Path) -> io::Result<FoundBook> {
        Ok(match Slots::<Record>::open(disk, &path(queue_path))? {
            Found::Absent => FoundBook::Absent,
            Found::Foreign => FoundBook::Foreign,
            Found::Damaged(slots) => {
                tracing::error!(
                    "{} cannot be read: what Redis lost while this node was down would go unnoticed",
                    path(queue_path).display()
                );
                FoundBook::Good(Self { slots, record: Record::default() })
            }
            Found::Good(slots, record) => FoundBook::Good(Self { slots, record }),
        })
    }

    /// Creates it durably.
    pub fn create(disk: &dyn Disk, queue_path: &Path, record: Record) -> io::Result<Self> {
        let slots = Slots::create(disk, &path(queue_path), &record)?;
        Ok(Self { slots, record })
    }

    /// Changes the record durably; on failure it stays as it was.
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        if record != self.record {
            self.slots.write(&record)?;
            self.record = record;
        }
        Ok(())
    }

    /// Another start takes the stream.
    pub fn begin(&mut self, origin: &str, place: &str, run: &str) -> io::Result<()> {
        self.update(|record| {
            record.origin = origin.to_owned();
            if record.place != place {
                let (runs, losses) =
                    (std::mem::take(&mut record.runs), std::mem::take(&mut record.losses));
                let (origin, place) = (origin.to_owned(), place.to_owned());
                *record = Record { origin, place, runs, losses, ..Record::default() };
            }
            record.runs.push(run.to_owned());
            let over = record.runs.len().saturating_sub(MAX_RUNS);
            record.runs.drain(..over);
        })
    }

    /// Keeps a report, together with the witness that makes it the last of this loss.
    pub fn report(&mut self, loss: &Loss, last: u64, queued: u64) -> io::Result<()> {
        self.update(|record| {
            (record.last, record.queued) = (last, queued);
            let full = record.losses.len() >= MAX_LOSSES;
            match record.losses.last_mut() {
                Some(before) if full => {
                    before.to = before.to.max(loss.to);
                    before.events += loss.events;
                    before.exact &= loss.exact;
                    before.dead_letters += loss.dead_letters;
                }
                _ => record.losses.push(loss.clone()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsx::sim::SimDisk;

    const BASE: &str = "/q/ingest.log";

    fn loss(n: u64) -> Loss {
        Loss { from: n, to: n + 1, events: 2, exact: true, dead_letters: 0 }
    }

    #[test]
    fn a_record_comes_back_and_another_stream_begins_anew_but_for_what_was_lost() {
        let disk = SimDisk::new().shared();
        disk.create_dir("/q".as_ref()).unwrap();
        assert!(matches!(Book::find(&*disk, BASE.as_ref()), Ok(FoundBook::Absent)));
        let mut book = Book::create(&*disk, BASE.as_ref(), Record::default()).unwrap();
        book.begin("dc1", "0/a", "r1").unwrap();
        book.report(&loss(5), 9, 3).unwrap();
        let Ok(FoundBook::Good(mut book)) = Book::find(&*disk, BASE.as_ref()) else {
            panic!("it is gone");
        };
        assert_eq!((book.record.last, book.record.queued), (9, 3));
        book.begin("dc1", "0/b", "r2").unwrap();
        assert_eq!((book.record.last, &book.record.losses), (0, &vec![loss(5)]));
        assert_eq!(book.record.runs, ["r1", "r2"]);
    }

    #[test]
    fn more_losses_than_are_kept_are_counted_in_the_last() {
        let disk = SimDisk::new().shared();
        disk.create_dir("/q".as_ref()).unwrap();
        let mut book = Book::create(&*disk, BASE.as_ref(), Record::default()).unwrap();
        for n in 0..1005 {
            book.report(&loss(n), n, 0).unwrap();
        }
        let losses = &book.record.losses;
        assert_eq!(
            (losses.len(), losses.last().map(|l| (l.to, l.events))),
            (1000, Some((1005, 12)))
        );
    }

    #[test]
    fn a_loss_says_whether_its_number_is_known() {
        let exact = loss(1).to_string();
        assert!(exact.contains("lost 2 events between seq 1 and 2"), "{exact}");
        let bound = Loss { exact: false, dead_letters: 4, ..loss(1) }.to_string();
        assert!(
            bound.contains("lost at most 2 events") && bound.ends_with("4 dead letters"),
            "{bound}"
        );
    }
}
