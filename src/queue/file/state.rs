//! `node.state`: who owns the directory, which seqs may be in use, and what is known to be damaged.
//!
//! Does not know the log.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::recovery::Damage;
use super::slots::{Found, Slots};
use crate::fsx::{Disk, parent};

/// The most damage reports that are kept; more are counted in the last.
pub const MAX_DAMAGE: usize = 1000;

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// `node_name` of the owner.
    pub origin: String,
    /// One unbroken history of this node, random, in hexadecimal.
    pub node_id: String,
    /// Every seq below it may be in use.
    pub ceiling: u64,
    /// Storage or a peer was asked once which seqs are in use: a start needs nobody from then on.
    #[serde(default)]
    pub certain: bool,
    /// Unacknowledged damage.
    pub damage: Vec<Damage>,
    /// Acknowledged damage: a start that finds it again says nothing.
    #[serde(default)]
    pub acknowledged: Vec<Damage>,
    /// What is known of this node's history beside its id.
    #[serde(default)]
    pub history: Past,
}

/// What a node knows of its own history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The last seq that the present id shares with the one before it; `None` for the first of all.
    #[serde(default)]
    pub since: Option<u64>,
    /// The ids before it, the oldest first, each with its own `since`.
    #[serde(default)]
    pub ids: Vec<(String, Option<u64>)>,
    /// How often the origin had been taken in the storage when this node last took it.
    #[serde(default)]
    pub epoch: u64,
    /// Rows of ours from this seq on were being put back.
    #[serde(default)]
    pub recovering: Option<u64>,
    /// How far each channel's events were released, as the storage was told before; `*` is the least
    /// of all channels.
    #[serde(default)]
    pub released: BTreeMap<String, u64>,
}

/// So many former ids are known by name.
const MOST_IDS: usize = 32;

impl NodeState {
    /// Goes by another id, whose history parts from the present one's behind `since`.
    pub fn renew(&mut self, id: String, since: u64) {
        let old = std::mem::replace(&mut self.node_id, id);
        let history = &mut self.history;
        history.ids.push((old, history.since.replace(since)));
        let more = history.ids.len().saturating_sub(MOST_IDS);
        history.ids.drain(..more);
        history.recovering = None;
    }
}

/// The file and its record.
pub struct StateFile {
    slots: Slots<NodeState>,
    /// What stands in it.
    pub record: NodeState,
}

/// What a start found.
pub enum FoundState {
    /// No file: the node's first start here.
    Absent,
    /// The file stands, and cannot be read.
    Damaged(StateFile),
    /// As it was left.
    Good(StateFile),
    /// Not ours.
    Foreign(PathBuf),
}

impl StateFile {
    /// Where it lies: beside the log.
    #[must_use]
    pub fn path(base: &Path) -> PathBuf {
        parent(base).join("node.state")
    }

    /// Looks for it.
    ///
    /// # Errors
    /// What the disk says.
    pub fn find(disk: &dyn Disk, base: &Path) -> io::Result<FoundState> {
        let path = Self::path(base);
        Ok(match Slots::open(disk, &path)? {
            Found::Absent => FoundState::Absent,
            Found::Foreign => FoundState::Foreign(path),
            Found::Damaged(slots) => {
                FoundState::Damaged(Self { slots, record: NodeState::default() })
            }
            Found::Good(slots, record) => FoundState::Good(Self { slots, record }),
        })
    }

    /// Creates it durably.
    ///
    /// # Errors
    /// What the disk says.
    pub fn create(disk: &dyn Disk, base: &Path, record: NodeState) -> io::Result<Self> {
        let slots = Slots::create(disk, &Self::path(base), &record)?;
        Ok(Self { slots, record })
    }

    /// Changes the record durably; on failure it stays as it was.
    ///
    /// # Errors
    /// What the disk says.
    pub fn update(&mut self, change: impl FnOnce(&mut NodeState)) -> io::Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        self.slots.write(&record)?;
        self.record = record;
        Ok(())
    }

    /// Keeps a report of damage, once: every start finds the same damage again. Whether it was new.
    ///
    /// # Errors
    /// What the disk says.
    pub fn report(&mut self, damage: &Damage) -> io::Result<bool> {
        if self.record.damage.iter().chain(&self.record.acknowledged).any(|d| d.is_same(damage)) {
            return Ok(false);
        }
        self.update(|record| {
            let full = record.damage.len() >= MAX_DAMAGE;
            match record.damage.last_mut() {
                Some(last) if full => {
                    last.to = last.to.max(damage.to);
                    last.events += damage.events;
                }
                _ => record.damage.push(damage.clone()),
            }
        })?;
        Ok(true)
    }
}

/// A new random node id.
///
/// # Errors
/// Where the system gives no random bytes.
pub fn new_node_id() -> io::Result<String> {
    use ring::rand::SecureRandom;
    let mut id = [0u8; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut id)
        .map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(uuid::Builder::from_random_bytes(id).into_uuid().to_string())
}
