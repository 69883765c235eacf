//! Turns `channels.yml` into channels: inheritance, switches as Go reads them, and every mistake of
//! every channel at once, with its line and its path.
//!
//! Does not open files, and knows nothing of how events are validated or stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::channels_lines::Outline;
use super::channels_yaml::{self, Node, join};
use super::conf_file::Problem;
use crate::channel::auth::KeyDigest;
use crate::channel::nearest::nearest;
use crate::channel::schema::{IndexSource, OnUnknown, Schema, SchemaSource};
use crate::channel::{Channel, Mode, Registry};
use crate::event::ChannelName;

/// Where the channels are to be read from.
#[derive(Clone)]
pub enum ChannelsSource {
    /// A file that was found.
    File {
        /// Its name as it was configured.
        label: String,
        /// What it holds.
        text: String,
    },
    /// There is no such file.
    Missing {
        /// The path that was tried.
        path: String,
    },
    /// The channels that are compiled in: for a node without any configuration file.
    Embedded,
}

/// The channels, and what is odd about them.
pub struct LoadedChannels {
    /// All channels, disabled ones included.
    pub registry: Registry,
    /// There was no file: `client_api_key` opens one raw channel.
    pub fallback: bool,
    /// What is odd without being wrong.
    pub warnings: Vec<String>,
    /// Enabled channels that a key of the shipped example opens.
    pub example_key_channels: Vec<String>,
}

/// What a text holds.
struct Converted {
    channels: Vec<Channel>,
    warnings: Vec<String>,
    example_key_channels: Vec<String>,
}

/// The first six may stand under `general` too; from the fifth on they mean nothing where the mode is
/// `raw_only`.
const CHANNEL_FIELDS: [&str; 11] = [
    "enabled",
    "enables",
    "api_keys",
    "mode",
    "on_unknown_field",
    "store_raw",
    "table",
    "columns",
    "required",
    "field_types",
    "indexes",
];
const INDEX_FIELDS: [&str; 3] = ["name", "unique", "columns"];

/// The keys of the shipped example, which everybody knows.
const EXAMPLE_KEYS: [&str; 2] = ["key-abc123", "key-abuse-001"];

/// The one channel that is served where there is no channels file.
const FALLBACK_CHANNEL: &str = "events_raw";

/// The shipped `conf/channels.yml`.
#[must_use]
pub fn shipped_channels() -> &'static str {
    include_str!("../../conf/channels.yml")
}

/// Reads the channels; `client_api_key` may be empty.
///
/// # Errors
/// Everything that is wrong with them.
pub fn load(source: &ChannelsSource, client_api_key: &str) -> Result<LoadedChannels, Vec<Problem>> {
    match source {
        ChannelsSource::File { label, text } => from_text(label, text),
        ChannelsSource::Embedded => from_text("the built-in channels.yml", shipped_channels()),
        ChannelsSource::Missing { path } => fallback(path, client_api_key),
    }
}

fn from_text(label: &str, text: &str) -> Result<LoadedChannels, Vec<Problem>> {
    let converted = convert(label, text)?;
    let registry =
        Registry::new(converted.channels).map_err(|e| vec![Problem::new(label, e.to_string())])?;
    Ok(LoadedChannels {
        registry,
        fallback: false,
        warnings: converted.warnings,
        example_key_channels: converted.example_key_channels,
    })
}

fn fallback(path: &str, client_api_key: &str) -> Result<LoadedChannels, Vec<Problem>> {
    if client_api_key.is_empty() {
        let text = "there is no such file; create it (the shipped conf/channels.yml is an example), point \
                    channels_file at another, or set client_api_key to serve the one raw channel events_raw";
        return Err(vec![Problem::new(path, text)]);
    }
    if let Some(wrong) = refused_key(client_api_key) {
        return Err(vec![Problem::new("client_api_key", wrong)]);
    }
    let name =
        ChannelName::new(FALLBACK_CHANNEL).map_err(|e| vec![Problem::new(path, e.to_string())])?;
    let channel = Channel {
        name,
        enabled: true,
        mode: Mode::Raw,
        store_raw: true,
        keys: vec![KeyDigest::of(client_api_key)],
    };
    let registry =
        Registry::new(vec![channel]).map_err(|e| vec![Problem::new(path, e.to_string())])?;
    let example = EXAMPLE_KEYS.contains(&client_api_key);
    Ok(LoadedChannels {
        registry,
        fallback: true,
        warnings: vec![format!(
            "{path}: there is no such file; serving only the raw channel {FALLBACK_CHANNEL} with client_api_key"
        )],
        example_key_channels: if example { vec![FALLBACK_CHANNEL.to_owned()] } else { Vec::new() },
    })
}

fn convert(label: &str, text: &str) -> Result<Converted, Vec<Problem>> {
    let root = channels_yaml::parse(text)
        .map_err(|wrong| vec![Problem::new(format!("{label}:{}", wrong.line), wrong.text)])?;
    let mut faults = Vec::new();
    let root = root.merged("", &mut faults);
    let outline = Outline::of(text);
    let mut reader = Reader {
        label,
        outline: &outline,
        problems: Vec::new(),
        warnings: Vec::new(),
        examples: Vec::new(),
    };
    for fault in faults {
        let place = format!("{label}:{}", outline.last_line(&fault.path));
        reader.problems.push(Problem::new(place, format!("{}: {}", fault.path, fault.text)));
    }
    let channels = reader.document(&root);
    if !reader.problems.is_empty() {
        return Err(reader.problems);
    }
    Ok(Converted { channels, warnings: reader.warnings, example_key_channels: reader.examples })
}

/// Why a key can never be sent in a header, if so. Never echoes it.
fn refused_key(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        Some("the key is empty")
    } else if key.trim() != key || key.contains(char::is_control) {
        Some(
            "the key begins or ends with a blank or holds a control character, which no header can carry",
        )
    } else {
        None
    }
}

/// The spellings that Go's YAML library takes where a boolean is wanted.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            Some(true)
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            Some(false)
        }
        _ => None,
    }
}

/// What `general` and a channel may both say; `None` where they do not.
#[derive(Default)]
struct Shared {
    enabled: Option<bool>,
    keys: Option<Vec<String>>,
    structured: Option<bool>,
    drop_unknown: Option<bool>,
    store_raw: Option<bool>,
}

struct Reader<'a> {
    label: &'a str,
    outline: &'a Outline,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    examples: Vec<String>,
}

impl Reader<'_> {
    fn wrong(&mut self, path: &str, text: impl AsRef<str>) {
        let problem = self.remark(path, text.as_ref());
        self.problems.push(problem);
    }

    fn remark(&self, path: &str, text: &str) -> Problem {
        let place = format!("{}:{}", self.label, self.outline.line(path));
        if path.is_empty() {
            Problem::new(place, text)
        } else {
            Problem::new(place, format!("{path}: {text}"))
        }
    }

    fn document(&mut self, root: &Node) -> Vec<Channel> {
        if !matches!(root, Node::Map(_)) {
            self.wrong(
                "",
                format!("wants `channels:` with channels below it, found {}", root.kind()),
            );
            return Vec::new();
        }
        self.known_fields("", root, &["general", "channels"]);
        let general = match root.get("general") {
            Some(node @ Node::Map(_)) => {
                self.known_fields("general", node, &CHANNEL_FIELDS[..6]);
                self.shared("general", node)
            }
            Some(other) => {
                self.wrong("general", format!("wants a map of defaults, found {}", other.kind()));
                Shared::default()
            }
            None => Shared::default(),
        };
        match root.get("channels") {
            Some(Node::Map(entries)) if !entries.is_empty() => entries
                .iter()
                .filter_map(|(name, node)| self.channel(name, node, &general))
                .collect(),
            Some(Node::Map(_)) | None => {
                self.wrong("channels", "is missing or empty; name at least one channel below it");
                Vec::new()
            }
            Some(other) => {
                self.wrong("channels", format!("wants a map of channels, found {}", other.kind()));
                Vec::new()
            }
        }
    }

    fn channel(&mut self, name: &str, node: &Node, general: &Shared) -> Option<Channel> {
        let path = join("channels", name);
        let before = self.problems.len();
        let name = ChannelName::new(name);
        if let Err(wrong) = &name {
            self.wrong(&path, wrong.to_string());
        }
        if !matches!(node, Node::Map(_) | Node::Null(_)) {
            self.wrong(&path, format!("wants a map of fields, found {}", node.kind()));
            return None;
        }
        self.known_fields(&path, node, &CHANNEL_FIELDS);
        let own = self.shared(&path, node);
        let enabled = own.enabled.or(general.enabled).unwrap_or(true);
        let keys = own.keys.as_ref().or(general.keys.as_ref());
        if enabled && keys.is_none() {
            self.wrong(&path, "an enabled channel needs api_keys, here or under general");
        }
        let mode = if own.structured.or(general.structured).unwrap_or(false) {
            let drop_unknown = own.drop_unknown.or(general.drop_unknown).unwrap_or(false);
            self.schema(&path, node, drop_unknown)
        } else {
            if self.problems.len() == before {
                self.warn_of_structured_fields(&path, node);
            }
            Some(Mode::Raw)
        };
        if self.problems.len() > before {
            return None;
        }
        let name = name.ok()?;
        let keys = keys.map(Vec::as_slice).unwrap_or_default();
        if enabled && keys.iter().any(|key| EXAMPLE_KEYS.contains(&key.as_str())) {
            self.examples.push(name.to_string());
        }
        Some(Channel {
            name,
            enabled,
            mode: mode?,
            store_raw: own.store_raw.or(general.store_raw).unwrap_or(true),
            keys: keys.iter().map(|key| KeyDigest::of(key)).collect(),
        })
    }

    fn known_fields(&mut self, path: &str, node: &Node, known: &[&str]) {
        let Node::Map(entries) = node else {
            return;
        };
        for (name, _) in entries {
            // `x-…` at the top is where people keep their anchors.
            if known.contains(&name.as_str()) || (path.is_empty() && name.starts_with("x-")) {
                continue;
            }
            let hint = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.wrong(&join(path, name), format!("there is no such field; {hint}"));
        }
    }

    fn shared(&mut self, path: &str, node: &Node) -> Shared {
        Shared {
            enabled: self.enabled(path, node),
            keys: self.api_keys(path, node),
            structured: self.choice(path, node, "mode", "structured", "raw_only"),
            drop_unknown: self.choice(path, node, "on_unknown_field", "drop", "reject"),
            store_raw: self.flag(path, node, "store_raw"),
        }
    }

    fn enabled(&mut self, path: &str, node: &Node) -> Option<bool> {
        let enabled = self.flag(path, node, "enabled");
        let alias = self.flag(path, node, "enables");
        if let (Some(enabled), Some(alias)) = (enabled, alias)
            && enabled != alias
        {
            self.wrong(
                &join(path, "enables"),
                "says the opposite of enabled, of which it is another name; keep one",
            );
        }
        enabled.or(alias)
    }

    fn flag(&mut self, path: &str, node: &Node, field: &str) -> Option<bool> {
        let value = node.get(field)?;
        let flag = match value {
            Node::Scalar(text) => boolean(text),
            _ => None,
        };
        if flag.is_none() {
            self.wrong(&join(path, field), "wants true or false");
        }
        flag
    }

    /// `Some(true)` for the first word, `Some(false)` for the second.
    fn choice(
        &mut self,
        path: &str,
        node: &Node,
        field: &str,
        first: &str,
        second: &str,
    ) -> Option<bool> {
        let value = node.get(field)?;
        match value {
            Node::Scalar(text) if text == first => return Some(true),
            Node::Scalar(text) if text == second => return Some(false),
            _ => self.wrong(&join(path, field), format!("wants {second} or {first}")),
        }
        None
    }

    /// `None` where no key is given. No message echoes one.
    fn api_keys(&mut self, path: &str, node: &Node) -> Option<Vec<String>> {
        let at = join(path, "api_keys");
        let items = match node.get("api_keys")? {
            Node::List(items) if items.is_empty() => return None,
            Node::List(items) => items,
            other => {
                self.wrong(
                    &at,
                    format!("wants a list of keys, such as [KEY], found {}", other.kind()),
                );
                return Some(Vec::new());
            }
        };
        let mut keys = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let at = format!("{at}[{index}]");
            match item {
                Node::Scalar(key) => match refused_key(key) {
                    Some(wrong) => self.wrong(&at, wrong),
                    None => keys.push(key.clone()),
                },
                // `null` as well: rather a template left unfilled than a key.
                other => self.wrong(&at, format!("wants a key, found {}", other.kind())),
            }
        }
        Some(keys)
    }

    fn warn_of_structured_fields(&mut self, path: &str, node: &Node) {
        for field in &CHANNEL_FIELDS[4..] {
            if node.get(field).is_some() {
                let remark =
                    self.remark(&join(path, field), "has no effect where mode is raw_only");
                self.warnings.push(remark.to_string());
            }
        }
    }

    fn schema(&mut self, path: &str, node: &Node, drop_unknown: bool) -> Option<Mode> {
        let before = self.problems.len();
        for field in ["table", "columns"] {
            if node.get(field).is_none() {
                self.wrong(path, format!("a structured channel needs {field}"));
            }
        }
        let source = SchemaSource {
            table: self.text(path, node, "table").unwrap_or_default(),
            columns: self.texts(path, node, "columns"),
            required: self.texts(path, node, "required"),
            field_types: self.field_types(path, node),
            on_unknown: if drop_unknown { OnUnknown::Drop } else { OnUnknown::Reject },
            indexes: self.indexes(path, node),
        };
        if self.problems.len() > before {
            return None;
        }
        match Schema::new(&source) {
            Ok(schema) => Some(Mode::Structured(Arc::new(schema))),
            Err(errors) => {
                for error in errors {
                    let at = if error.path.is_empty() {
                        path.to_owned()
                    } else {
                        join(path, &error.path)
                    };
                    self.wrong(&at, error.message);
                }
                None
            }
        }
    }

    fn text(&mut self, path: &str, node: &Node, field: &str) -> Option<String> {
        let value = node.get(field)?;
        self.plain(&join(path, field), value)
    }

    fn texts(&mut self, path: &str, node: &Node, field: &str) -> Vec<String> {
        let at = join(path, field);
        match node.get(field) {
            None => Vec::new(),
            Some(Node::List(items)) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| self.plain(&format!("{at}[{index}]"), item))
                .collect(),
            Some(other) => {
                self.wrong(&at, format!("wants a list, such as [a, b], found {}", other.kind()));
                Vec::new()
            }
        }
    }

    /// A text, however it looks: `123`, `true` and a spelled `null` are what they read.
    fn plain(&mut self, at: &str, node: &Node) -> Option<String> {
        match node {
            Node::Scalar(text) => Some(text.clone()),
            Node::Null(text) if text.eq_ignore_ascii_case("null") => Some(text.clone()),
            other => {
                self.wrong(at, format!("wants a plain value, found {}", other.kind()));
                None
            }
        }
    }

    fn field_types(&mut self, path: &str, node: &Node) -> BTreeMap<String, String> {
        let at = join(path, "field_types");
        match node.get("field_types") {
            None => BTreeMap::new(),
            Some(Node::Map(entries)) => entries
                .iter()
                .filter_map(|(column, kind)| {
                    Some((column.clone(), self.plain(&join(&at, column), kind)?))
                })
                .collect(),
            Some(other) => {
                self.wrong(&at, format!("wants a map of column: type, found {}", other.kind()));
                BTreeMap::new()
            }
        }
    }

    fn indexes(&mut self, path: &str, node: &Node) -> Vec<IndexSource> {
        let at = join(path, "indexes");
        match node.get("indexes") {
            None => Vec::new(),
            Some(Node::List(items)) => items
                .iter()
                .enumerate()
                .filter_map(|(position, item)| self.index(&format!("{at}[{position}]"), item))
                .collect(),
            Some(other) => {
                self.wrong(&at, format!("wants a list of indexes, found {}", other.kind()));
                Vec::new()
            }
        }
    }

    fn index(&mut self, path: &str, node: &Node) -> Option<IndexSource> {
        if !matches!(node, Node::Map(_)) {
            self.wrong(path, format!("wants a map with columns, found {}", node.kind()));
            return None;
        }
        self.known_fields(path, node, &INDEX_FIELDS);
        if node.get("columns").is_none() {
            self.wrong(path, "an index needs columns");
        }
        Some(IndexSource {
            name: self.text(path, node, "name"),
            unique: self.flag(path, node, "unique").unwrap_or(false),
            columns: self.texts(path, node, "columns"),
        })
    }
}

#[cfg(test)]
mod tests;
