//! What a configuration key is: its kind, how a value is checked, and the texts made of the table.
//!
//! ONE table (`keys_table`) feeds the parser, `check`, the shipped `conf/replicon.conf` and the
//! README. Knows no file, no environment and nobody who uses a key.

use super::value;
use crate::event::Name;

pub use super::keys_table::KEYS;

/// One key of `replicon.conf`.
#[derive(Debug)]
pub struct Key {
    /// The name, as the spec has it.
    pub name: &'static str,
    /// The value that holds where nothing is set; it passes [`Key::check`].
    pub default: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it means, in one or two sentences.
    pub doc: &'static str,
    /// Where it stands in the shipped file.
    pub section: Section,
    /// May stand on several lines.
    pub repeatable: bool,
    /// The value is never shown.
    pub secret: bool,
    /// The shipped file shows the key as a comment.
    pub commented: bool,
}

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A name of a node or channel.
    Name,
    /// true or false.
    Bool,
    /// A whole number.
    Count {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A size: bytes, or with a unit.
    Bytes {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A duration: milliseconds, or with a unit.
    Millis {
        /// The shortest.
        min: u64,
        /// The longest.
        max: u64,
    },
    /// A duration: minutes, or with a unit.
    Minutes,
    /// A share above 0, at most 1.
    Ratio,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// host:port, or empty.
    Listen,
    /// A path of a file.
    Path,
    /// Threads: auto or a number.
    Cpu,
    /// auto, or a number as a maximum.
    Auto,
    /// A text that is never shown.
    Secret,
    /// A database's address with a password in it.
    Dsn,
    /// `name=url`, several with commas.
    Peer,
}

/// The parts of the shipped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Identity and runtime.
    Node,
    /// Keys and tokens.
    Security,
    /// Listeners.
    Http,
    /// What a client may send.
    Limits,
    /// The durable queue.
    Queue,
    /// The queue on Redis.
    QueueRedis,
    /// From queue to storage.
    Writer,
    /// Where events end.
    Storage,
    /// Peers.
    Replication,
}

impl Section {
    /// The heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Node => "Identity and runtime",
            Self::Security => "Keys and tokens",
            Self::Http => "Listeners",
            Self::Limits => "Limits on requests",
            Self::Queue => "Queue",
            Self::QueueRedis => "Queue on Redis or Valkey",
            Self::Writer => "Writer",
            Self::Storage => "Storage",
            Self::Replication => "Replication",
        }
    }
}

/// The key of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    /// Whether `value` may stand for this key.
    ///
    /// # Errors
    /// What would be right. The value itself is echoed only where it cannot be a secret.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let good = match self.kind {
            Kind::Text | Kind::Secret | Kind::Dsn => true,
            Kind::Name => Name::new(value).is_ok(),
            Kind::Bool => value::boolean(value).is_some(),
            Kind::Count { min, max } => within(value::count(value), min, max),
            Kind::Bytes { min, max } => within(value::bytes(value), min, max),
            Kind::Millis { min, max } => within(value::milliseconds(value, 1), min, max),
            Kind::Minutes => value::milliseconds(value, 60_000).is_some(),
            Kind::Ratio => value::ratio(value).is_some(),
            Kind::Choice(words) => words.contains(&value),
            Kind::Listen => value.is_empty() || value::listen(value).is_some(),
            Kind::Path => !value.is_empty() || self.default.is_empty(),
            Kind::Cpu => value::cpu(value).is_some(),
            Kind::Auto => value::automatic(value).is_some(),
            Kind::Peer => value.is_empty() || value::peers(value),
        };
        if good { Ok(()) } else { Err(self.refusal(value)) }
    }

    fn refusal(&self, value: &str) -> String {
        let wanted = self.wanted();
        if self.secret || self.kind == Kind::Peer {
            // A peer's URL may carry a password.
            format!("write {wanted}")
        } else if value.is_empty() {
            format!("it is empty; write {wanted}")
        } else {
            format!("{value:?} is not right; write {wanted}")
        }
    }

    /// What would be right, as the end of a sentence.
    fn wanted(&self) -> String {
        match self.kind {
            Kind::Text | Kind::Secret | Kind::Dsn => "a text".to_owned(),
            Kind::Name => {
                "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
                    .to_owned()
            }
            Kind::Bool => "true or false".to_owned(),
            Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Bytes { min, max } => format!(
                "a size from {} to {}, such as {}, or a bare number of bytes",
                value::show_bytes(min),
                value::show_bytes(max),
                self.default
            ),
            Kind::Millis { min, max } => format!(
                "a duration from {} to {}, such as 20ms or 2s, or a bare number of milliseconds",
                value::show_milliseconds(min),
                value::show_milliseconds(max)
            ),
            Kind::Minutes => {
                "a duration, such as 30m or 2h, or a bare number of minutes".to_owned()
            }
            Kind::Ratio => "a share above 0 and at most 1, such as 0.8".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Listen => {
                "host:port, such as 127.0.0.1:8080 or :8080, or nothing to switch it off".to_owned()
            }
            Kind::Path => "the path of a file".to_owned(),
            Kind::Cpu => {
                "auto, * or -1 for all of the machine, or a number of threads from 1 to 1024"
                    .to_owned()
            }
            Kind::Auto => "auto, or a whole number from 1 to 100000".to_owned(),
            Kind::Peer => "name=http://host:port, several with commas between".to_owned(),
        }
    }
}

fn within(number: Option<u64>, min: u64, max: u64) -> bool {
    number.is_some_and(|number| (min..=max).contains(&number))
}

const CONF_HEADER: &str = "\
# The configuration of Replicon. Every key stands here with its default.
#
# A comment is a whole line. A value is the rest of its line, trimmed; one pair of double quotes is
# taken off; an empty value is a value. Sizes take units (64MiB, 10MB), durations too (20ms, 2s, 5m).
# REPLICON_<KEY> in the environment beats this file, and --set key=value beats both.
# `replicon check` prints what holds, and where each value comes from.
";

/// The columns after which a comment of the shipped file goes on in the next line.
const CONF_WIDTH: usize = 98;

/// The shipped `conf/replicon.conf`.
#[must_use]
pub fn shipped_conf() -> String {
    let mut out = CONF_HEADER.to_owned();
    let mut section = None;
    for key in KEYS {
        if section != Some(key.section) {
            section = Some(key.section);
            out.push_str(&format!("\n# ---- {} ----\n", key.section.title()));
        }
        out.push('\n');
        for line in wrapped(key.doc, CONF_WIDTH) {
            out.push_str(&format!("# {line}\n"));
        }
        let mark = if key.commented || key.default.is_empty() { "# " } else { "" };
        let line = format!("{mark}{} = {}", key.name, key.default);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// The README's table of all keys.
#[must_use]
pub fn readme_table() -> String {
    let mut out = String::from("| key | default | meaning |\n| --- | --- | --- |\n");
    for key in KEYS {
        let default = if key.default.is_empty() {
            "(empty)".to_owned()
        } else {
            format!("`{}`", key.default)
        };
        out.push_str(&format!(
            "| `{}` | {default} | {} |\n",
            key.name,
            key.doc.replace('|', "\\|")
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_that_its_key_takes() {
        for key in KEYS {
            assert_eq!(key.check(key.default), Ok(()), "{}", key.name);
        }
    }

    #[test]
    fn every_key_stands_once_in_the_table_and_says_what_it_means() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(
                KEYS[..at].iter().all(|other| other.name != key.name),
                "{} stands twice",
                key.name
            );
            assert!(key.doc.ends_with('.'), "{} has no sentence", key.name);
            assert_eq!(find(key.name).map(|found| found.name), Some(key.name));
        }
        assert!(find("no_such_key").is_none());
    }

    #[test]
    fn a_secret_kind_is_marked_secret() {
        for key in KEYS {
            assert_eq!(key.secret, matches!(key.kind, Kind::Secret | Kind::Dsn), "{}", key.name);
        }
    }

    #[test]
    fn a_refusal_says_what_would_be_right() {
        for (name, value, part) in [
            ("queue_max_bytes", "8GB5", "such as 8GiB"),
            ("queue_max_bytes", "1", "from 64KiB to 1024TiB"),
            ("enqueue_timeout_ms", "soon", "20ms or 2s"),
            ("storage_backend", "oracle", "one of sqlite, postgres, file, noop, mysql"),
            ("node_name", "dc 1", "1 to 63 letters"),
            ("http_listen", "8080", "127.0.0.1:8080"),
            ("queue_file_path", "", "it is empty"),
            ("cpu", "many", "auto, * or -1"),
            ("writer_batch_size", "0", "1 to 100000"),
            ("strict_config", "maybe", "true or false"),
        ] {
            let key = find(name).unwrap();
            let text = key.check(value).unwrap_err();
            assert!(text.contains(part), "{name}: {text}");
        }
    }

    #[test]
    fn a_refusal_never_echoes_a_peer() {
        let text = find("replication_peer").unwrap().check("http://u:s3cret@h").unwrap_err();
        assert!(!text.contains("s3cret") && text.contains("name=http://host:port"), "{text}");
    }

    #[test]
    fn the_shipped_file_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/replicon.conf");
        let expect = shipped_conf();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &expect).unwrap();
        }
        let shipped = std::fs::read_to_string(path).unwrap();
        assert_eq!(shipped, expect, "run the tests with UPDATE_GOLDEN=1 to rewrite {path}");
    }

    #[test]
    fn the_readme_table_has_one_row_for_every_key() {
        let table = readme_table();
        assert_eq!(table.lines().count(), KEYS.len() + 2);
        for key in KEYS {
            assert!(table.contains(&format!("| `{}` |", key.name)), "{}", key.name);
        }
    }
}
