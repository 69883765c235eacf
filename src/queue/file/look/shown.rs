//! What a look at a log shows, ready to be printed or made JSON.
//!
//! Does not know how it was found, nor who prints it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::super::recovery::Damage;
use crate::queue::accounts::Load;

/// A log, as it was found.
#[derive(Debug, Serialize)]
pub struct LogLook {
    /// `queue_file_path`.
    pub path: PathBuf,
    /// Whose it is.
    pub node_name: String,
    /// Its unbroken history; empty where `node.state` cannot be read.
    pub node_id: String,
    /// The main log's segments, oldest first.
    pub segments: Vec<SegmentLook>,
    /// Every event at or below it is resolved, or parked.
    pub released: Option<u64>,
    /// The last seq that the ack record bears witness was synced.
    pub witness: Option<u64>,
    /// What waits in the main log, per channel; `""` holds what damage hid.
    pub queued: BTreeMap<String, Load>,
    /// The channels that are set aside.
    pub parked: BTreeMap<String, ParkedLook>,
    /// The dead letters.
    pub dead_letters: DeadLook,
    /// What cannot be read.
    pub damage: Vec<DamageLook>,
}

/// One segment. The seqs are bounds from the headers: none of its events lies outside.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentLook {
    /// The file.
    pub path: PathBuf,
    /// Its name: the first seq free when it was begun.
    pub begun: u64,
    /// Its length.
    pub bytes: u64,
    /// No event of it is below.
    pub first: Option<u64>,
    /// No event of it is above.
    pub last: Option<u64>,
    /// Events in it; `None` where its own or the next header cannot be read.
    pub events: Option<u64>,
    /// Why its header cannot be read.
    pub unreadable: Option<String>,
}

/// A channel that is set aside in a log of its own.
#[derive(Debug, Serialize)]
pub struct ParkedLook {
    /// What waits in it.
    #[serde(flatten)]
    pub waiting: Load,
    /// Its segments.
    pub segments: Vec<SegmentLook>,
}

/// The dead letters, by what became of them.
#[derive(Debug, Default, Serialize)]
pub struct DeadLook {
    /// Those that wait for a decision.
    pub dead: u64,
    /// Those that are being put back.
    pub redriving: u64,
    /// Those that were put back.
    pub redriven: u64,
    /// Those that were discarded.
    pub discarded: u64,
    /// Bytes of the segments.
    pub bytes: u64,
    /// The segments.
    pub segments: Vec<SegmentLook>,
}

/// A stretch that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamageLook {
    /// Of which log.
    pub log: String,
    /// Which stretch.
    #[serde(flatten)]
    pub damage: Damage,
    /// What is known of it.
    pub standing: Standing,
}

/// What is known of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The node has reported it; red until it is acknowledged.
    Reported,
    /// Found just now; the node reports it when it reads there.
    Found,
    /// Reported and acknowledged.
    Acknowledged,
    /// Its events were resolved before: stored, or reported then.
    Resolved,
}

/// What the log of dead letters is called.
pub(super) const DEAD: &str = "dead letters";

impl fmt::Display for DamageLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.damage.fmt(f)
    }
}

impl LogLook {
    /// What is damaged and concerns events that are nowhere else, as long as nobody acknowledged it.
    pub fn lost(&self) -> impl Iterator<Item = &DamageLook> {
        self.damage.iter().filter(|d| matches!(d.standing, Standing::Reported | Standing::Found))
    }

    /// Whether nothing is lost that nobody has acknowledged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lost().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_of_dead_letters_names_no_range() {
        let text = Damage::of_letters(7, 2).to_string();
        assert!(text.starts_with("2 dead letters in segment 00000000000000000007"), "{text}");
    }
}
