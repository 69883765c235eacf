//! The channels: what they are called, who may post, and what their events must look like.
//!
//! A [`Registry`] is an immutable snapshot; a request takes it once and is judged by it to its end.
//! Must not know the configuration's files, HTTP, queues or storage.

pub mod auth;
pub mod field_type;
pub mod nearest;
pub mod schema;
pub mod validate;

use std::collections::HashMap;
use std::sync::Arc;

use crate::event::{ChannelName, ModeTag};
use schema::Schema;

/// The tables that are ours in every database; no channel may write to one as its own.
pub const OWN_TABLES: [&str; 8] = [
    "events_raw",
    "replication_progress",
    "replicon_node",
    "replicon_origin",
    "replicon_conflicts",
    "replicon_quarantine",
    "replicon_released",
    "replicon_origin_seq",
];

/// What a channel's events are.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Any JSON object.
    Raw,
    /// Objects whose fields are the columns of a table.
    Structured(Arc<Schema>),
}

/// A stream of the user's.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Its name, the last part of its URL.
    pub name: ChannelName,
    /// Whether it takes events.
    pub enabled: bool,
    /// What its events are.
    pub mode: Mode,
    /// Whether a structured channel's payloads are kept in `events_raw` too.
    pub store_raw: bool,
    /// Who may post.
    pub keys: Vec<auth::KeyDigest>,
}

impl Channel {
    /// The mode that its events carry with them.
    #[must_use]
    pub fn tag(&self) -> ModeTag {
        match self.mode {
            Mode::Raw => ModeTag::Raw,
            Mode::Structured(_) => ModeTag::Structured,
        }
    }

    /// The table and its columns, of a structured channel.
    #[must_use]
    pub fn schema(&self) -> Option<&Arc<Schema>> {
        match &self.mode {
            Mode::Raw => None,
            Mode::Structured(schema) => Some(schema),
        }
    }

    /// Why it cannot be replicated between nodes that are all written to; `None` where it can.
    #[must_use]
    pub fn diverges(&self) -> Option<String> {
        let index = self.schema()?.indexes.iter().find(|index| index.diverges())?;
        let columns: Vec<&str> = index.columns.iter().map(|(name, _)| name.as_str()).collect();
        Some(format!(
            "channel {} has a unique index on ({}): two nodes may accept events that only one of their tables can hold, so it is not replicated; add origin_dc and origin_seq to the index, or make it not unique",
            self.name,
            columns.join(", ")
        ))
    }
}

/// Why channels cannot stand side by side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Two names are equal, or differ in case only.
    #[error(
        "the channels {first} and {second} differ in upper and lower case only: rename one of them"
    )]
    SameName {
        /// The one that comes first.
        first: ChannelName,
        /// The other one.
        second: ChannelName,
    },
    /// Two enabled channels would write to one table.
    #[error(
        "the channels {first} and {second} share the table {table:?}: give each a table of its own"
    )]
    SameTable {
        /// The one that comes first.
        first: ChannelName,
        /// The other one.
        second: ChannelName,
        /// The table.
        table: String,
    },
    /// Two indexes of enabled channels have one name.
    #[error(
        "the channels {first} and {second} both name an index {index:?}: index names are unique \
         across all enabled channels"
    )]
    SameIndex {
        /// The channel that comes first.
        first: ChannelName,
        /// The other one, or the same.
        second: ChannelName,
        /// The index.
        index: String,
    },
    /// A channel would write to a table that is ours.
    #[error("the channel {channel} cannot have the table {table:?}, which is replicon's own")]
    OwnTable {
        /// The channel.
        channel: ChannelName,
        /// The table.
        table: String,
    },
    /// Nothing would take events.
    #[error("no channel is enabled: at least one must be")]
    NoneEnabled,
}

/// All channels as they are configured at one moment.
#[derive(Clone, Debug)]
pub struct Registry {
    channels: Vec<Arc<Channel>>,
    by_name: HashMap<ChannelName, usize>,
}

impl Registry {
    /// Puts `channels` side by side.
    ///
    /// # Errors
    /// The first reason why they do not go together.
    pub fn new(channels: Vec<Channel>) -> Result<Self, RegistryError> {
        check_names(&channels)?;
        check_tables(&channels)?;
        check_indexes(&channels)?;
        if !channels.iter().any(|channel| channel.enabled) {
            return Err(RegistryError::NoneEnabled);
        }
        let channels: Vec<Arc<Channel>> = channels.into_iter().map(Arc::new).collect();
        let by_name =
            channels.iter().enumerate().map(|(at, channel)| (channel.name.clone(), at)).collect();
        Ok(Self { channels, by_name })
    }

    /// The channel of this name, if it takes events. Names match exactly.
    #[must_use]
    pub fn enabled(&self, name: &str) -> Option<&Arc<Channel>> {
        self.get(name).filter(|channel| channel.enabled)
    }

    /// The channel of this name, enabled or not.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Channel>> {
        self.by_name.get(name).map(|at| &self.channels[*at])
    }

    /// All channels, in the order of the configuration.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.channels.iter()
    }
}

/// Names as a case-insensitive file system or server sees them.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase()
}

fn check_names(channels: &[Channel]) -> Result<(), RegistryError> {
    let mut seen: HashMap<String, &ChannelName> = HashMap::new();
    for channel in channels {
        if let Some(first) = seen.insert(folded(channel.name.as_str()), &channel.name) {
            return Err(RegistryError::SameName {
                first: first.clone(),
                second: channel.name.clone(),
            });
        }
    }
    Ok(())
}

fn check_tables(channels: &[Channel]) -> Result<(), RegistryError> {
    let mut seen: HashMap<String, &ChannelName> = HashMap::new();
    for channel in channels {
        let Some(schema) = channel.schema() else {
            continue;
        };
        let table = folded(schema.table.as_str());
        // Also of a disabled channel: events that it took before are still stored.
        if OWN_TABLES.contains(&table.as_str()) {
            return Err(RegistryError::OwnTable {
                channel: channel.name.clone(),
                table: schema.table.to_string(),
            });
        }
        if channel.enabled
            && let Some(first) = seen.insert(table, &channel.name)
        {
            return Err(RegistryError::SameTable {
                first: first.clone(),
                second: channel.name.clone(),
                table: schema.table.to_string(),
            });
        }
    }
    Ok(())
}

fn check_indexes(channels: &[Channel]) -> Result<(), RegistryError> {
    let mut seen: HashMap<String, &ChannelName> = HashMap::new();
    for channel in channels.iter().filter(|channel| channel.enabled) {
        let Some(schema) = channel.schema() else {
            continue;
        };
        for index in schema.indexes.iter().filter_map(|spec| spec.name.as_ref()) {
            if let Some(first) = seen.insert(folded(index.as_str()), &channel.name) {
                return Err(RegistryError::SameIndex {
                    first: first.clone(),
                    second: channel.name.clone(),
                    index: index.to_string(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::{IndexSource, SchemaSource};

    fn raw(name: &str, enabled: bool) -> Channel {
        Channel {
            name: ChannelName::new(name).unwrap(),
            enabled,
            mode: Mode::Raw,
            store_raw: true,
            keys: Vec::new(),
        }
    }

    fn structured(name: &str, enabled: bool, table: &str, index: &str) -> Channel {
        let schema = Schema::new(&SchemaSource {
            table: table.to_owned(),
            columns: vec!["a".to_owned()],
            indexes: vec![IndexSource {
                name: Some(index.to_owned()),
                unique: false,
                columns: vec!["a".to_owned()],
            }],
            ..SchemaSource::default()
        })
        .unwrap();
        Channel { mode: Mode::Structured(Arc::new(schema)), ..raw(name, enabled) }
    }

    fn refused(channels: Vec<Channel>, reason: &str) {
        let error = Registry::new(channels).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn only_enabled_channels_are_found_for_posting() {
        let registry = Registry::new(vec![
            raw("one", true),
            raw("two", false),
            structured("three", true, "t3", "i3"),
        ])
        .unwrap();
        assert_eq!(registry.enabled("one").unwrap().tag(), ModeTag::Raw);
        assert_eq!(registry.enabled("three").unwrap().tag(), ModeTag::Structured);
        assert!(registry.enabled("two").is_none());
        assert!(registry.get("two").is_some());
        assert!(registry.enabled("ONE").is_none());
        assert!(registry.enabled("four").is_none());
        let names: Vec<&str> = registry.all().map(|channel| channel.name.as_str()).collect();
        assert_eq!(names, ["one", "two", "three"]);
    }

    #[test]
    fn names_differ_by_more_than_case() {
        refused(vec![raw("Events", true), raw("events", false)], "Events and events");
        refused(vec![raw("events", true), raw("events", true)], "events and events");
    }

    #[test]
    fn enabled_channels_share_no_table_and_no_index() {
        refused(
            vec![structured("a", true, "T", "i"), structured("b", true, "t", "j")],
            "a and b share the table \"t\"",
        );
        refused(
            vec![structured("a", true, "t", "i"), structured("b", true, "u", "I")],
            "a and b both name an index \"I\"",
        );
        let disabled = vec![structured("a", true, "t", "i"), structured("b", false, "t", "i")];
        assert!(Registry::new(disabled).is_ok());
    }

    #[test]
    fn our_own_tables_are_no_channels() {
        for table in ["events_raw", "EVENTS_RAW", "replication_progress", "replicon_origin_seq"] {
            for enabled in [true, false] {
                refused(
                    vec![raw("r", true), structured("a", enabled, table, "i")],
                    "replicon's own",
                );
            }
        }
    }

    #[test]
    fn at_least_one_channel_is_enabled() {
        refused(Vec::new(), "no channel is enabled");
        refused(vec![raw("one", false)], "no channel is enabled");
    }
}
