//! Lays the sources over each other: `--set` beats `REPLICON_<KEY>` beats the file beats the default.
//!
//! Holds the text of every key and where it came from. Does not open files, read the environment of
//! the process, or know what a value is used for.

use std::fmt;
use std::mem::discriminant;
use std::time::Duration;

use super::conf_file::{self, Problem, nearest_key};
use super::keys::{self, KEYS, Key, Kind};
use super::{mask, value};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// A line of the configuration file.
    File {
        /// The file as it was named.
        label: String,
        /// The (first) line.
        line: usize,
    },
    /// This variable.
    Environment(String),
    /// The command line.
    Set,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { label, line } => write!(f, "{label}:{line}"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

#[derive(Clone)]
struct Held {
    key: &'static Key,
    value: String,
    source: Source,
}

/// The value of every key, checked by its kind, with its source.
#[derive(Clone)]
pub struct Settings {
    held: Vec<Held>,
    warnings: Vec<String>,
    strict: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, since a derived one would show secrets.
        f.debug_list().entries(self.effective()).finish()
    }
}

const ENVIRONMENT_PREFIX: &str = "REPLICON_";

impl Settings {
    /// Reads all sources. `conf` is a file's name and text.
    ///
    /// # Errors
    /// Everything that is wrong in any source, values that another source overrides included.
    pub fn load(
        conf: Option<(String, String)>,
        env: impl Iterator<Item = (String, String)>,
        sets: &[(String, String)],
        strict: bool,
    ) -> Result<Self, Vec<Problem>> {
        let (settings, problems) = Self::read(conf, env, sets, strict);
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    /// Reads all sources; a key with a wrong value keeps its default, so that the rest can be judged
    /// too and all mistakes are told at once.
    pub fn read(
        conf: Option<(String, String)>,
        env: impl Iterator<Item = (String, String)>,
        sets: &[(String, String)],
        strict: bool,
    ) -> (Self, Vec<Problem>) {
        let held = KEYS
            .iter()
            .map(|key| Held { key, value: key.default.to_owned(), source: Source::Default })
            .collect();
        let mut settings = Self { held, warnings: Vec::new(), strict };
        let mut problems = Vec::new();
        let unknown = settings.take_file(conf, &mut problems);
        settings.take_environment(env, &mut problems);
        settings.take_sets(sets, &mut problems);

        // Only now: the switch itself may stand in any of the sources.
        settings.strict |= settings.flag("strict_config");
        for (place, name) in unknown {
            if settings.strict {
                let text = format!("there is no key {name:?}; take the line out");
                problems.push(Problem::new(place, text));
            } else {
                settings
                    .warnings
                    .push(format!("{place}: there is no key {name:?}; the line is ignored"));
            }
        }
        (settings, problems)
    }

    /// Takes the file's keys; answers the unknown ones with their places.
    fn take_file(
        &mut self,
        conf: Option<(String, String)>,
        problems: &mut Vec<Problem>,
    ) -> Vec<(String, String)> {
        let Some((label, text)) = conf else {
            return Vec::new();
        };
        let file = conf_file::parse(&label, &text);
        problems.extend(file.problems);
        for entry in file.entries {
            // a wrong value is among the problems already
            if conf_file::check(entry.key, &entry.value).is_err() {
                continue;
            }
            let source = Source::File { label: label.clone(), line: entry.line };
            self.put(entry.key, entry.value, source);
        }
        file.unknown.into_iter().map(|key| (format!("{label}:{}", key.line), key.name)).collect()
    }

    /// Variables that name no key are somebody else's.
    fn take_environment(
        &mut self,
        env: impl Iterator<Item = (String, String)>,
        problems: &mut Vec<Problem>,
    ) {
        for (variable, text) in env {
            let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else {
                continue;
            };
            if name.bytes().any(|b| b.is_ascii_lowercase()) {
                continue;
            }
            if let Some(key) = keys::find(&name.to_ascii_lowercase()) {
                self.put_checked(key, &text, Source::Environment(variable), problems);
            }
        }
    }

    fn take_sets(&mut self, sets: &[(String, String)], problems: &mut Vec<Problem>) {
        for (name, text) in sets {
            let name = name.trim();
            match keys::find(name) {
                Some(key) => self.put_checked(key, text, Source::Set, problems),
                None => {
                    let hint = match nearest_key(name) {
                        Some(known) => format!("did you mean {known}?"),
                        None => "`replicon check` prints all keys".to_owned(),
                    };
                    problems
                        .push(Problem::new("--set", format!("there is no key {name:?}; {hint}")));
                }
            }
        }
    }

    fn put_checked(
        &mut self,
        key: &'static Key,
        text: &str,
        source: Source,
        problems: &mut Vec<Problem>,
    ) {
        let text = text.trim();
        if let Err(wrong) = conf_file::check(key, text) {
            problems.push(Problem::new(source.to_string(), wrong));
            return;
        }
        self.put(key, text.to_owned(), source);
    }

    /// A repeatable key gathers what one source says of it; another source begins anew.
    fn put(&mut self, key: &'static Key, text: String, source: Source) {
        let Some(held) = self.held.iter_mut().find(|held| held.key.name == key.name) else {
            return;
        };
        let gathers = key.repeatable && discriminant(&held.source) == discriminant(&source);
        if gathers && !held.value.is_empty() {
            if !text.is_empty() {
                held.value.push(',');
                held.value.push_str(&text);
            }
            return;
        }
        held.value = text;
        held.source = source;
    }

    fn held(&self, name: &str) -> Option<&Held> {
        let found = self.held.iter().find(|held| held.key.name == name);
        debug_assert!(found.is_some(), "{name} is not in the table of keys");
        found
    }

    /// The value as text.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.held(name).map_or("", |held| &held.value)
    }

    /// A size in bytes.
    #[must_use]
    pub fn bytes(&self, name: &str) -> u64 {
        value::bytes(self.text(name)).unwrap_or_default()
    }

    /// A duration, of a key in milliseconds or minutes.
    #[must_use]
    pub fn millis(&self, name: &str) -> Duration {
        let Some(held) = self.held(name) else {
            return Duration::ZERO;
        };
        let bare = if held.key.kind == Kind::Minutes { 60_000 } else { 1 };
        Duration::from_millis(value::milliseconds(&held.value, bare).unwrap_or_default())
    }

    /// A whole number.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        value::count(self.text(name)).unwrap_or_default()
    }

    /// A switch.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        value::boolean(self.text(name)).unwrap_or_default()
    }

    /// A share.
    #[must_use]
    pub fn ratio(&self, name: &str) -> f64 {
        value::ratio(self.text(name)).unwrap_or_default()
    }

    /// Where a value came from.
    #[must_use]
    pub fn source(&self, name: &str) -> &Source {
        self.held(name).map_or(&Source::Default, |held| &held.source)
    }

    /// Where a value came from, as a problem's place.
    #[must_use]
    pub fn place(&self, name: &str) -> String {
        self.source(name).to_string()
    }

    /// Whether anybody set it, be it to its default.
    #[must_use]
    pub fn is_explicit(&self, name: &str) -> bool {
        *self.source(name) != Source::Default
    }

    /// Whether unknown keys are refused.
    #[must_use]
    pub fn strict(&self) -> bool {
        self.strict
    }

    /// What is odd without being wrong.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every key with its value, secrets masked, and its source: what `replicon check` prints.
    #[must_use]
    pub fn effective(&self) -> Vec<(String, String, String)> {
        self.held
            .iter()
            .map(|held| (held.key.name.to_owned(), masked(held), held.source.to_string()))
            .collect()
    }
}

fn masked(held: &Held) -> String {
    match held.key.kind {
        Kind::Secret if !held.value.is_empty() => mask::MASK.to_owned(),
        Kind::Peer => mask::peers(&held.value),
        // It may turn out to be a URL with a password, such as an address of Redis.
        Kind::Text => mask::text(&held.value),
        Kind::Dsn => mask::dsn(&held.value),
        _ => held.value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn load(
        conf: &str,
        env: &[(&str, &str)],
        sets: &[(&str, &str)],
        strict: bool,
    ) -> Result<Settings, Vec<String>> {
        let conf = Some(("t.conf".to_owned(), conf.to_owned()));
        Settings::load(conf, pairs(env).into_iter(), &pairs(sets), strict)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_command_line_beats_the_environment_beats_the_file_beats_the_default() {
        let file = "\n\nnode_name = file\n";
        let none: [(&str, &str); 0] = [];
        let env = [("REPLICON_NODE_NAME", "env")];
        let set = [("node_name", "set")];
        for (conf, env, sets, value, source) in [
            ("", &none[..], &none[..], "dc1", "default"),
            (file, &none[..], &none[..], "file", "t.conf:3"),
            (file, &env[..], &none[..], "env", "environment REPLICON_NODE_NAME"),
            (file, &env[..], &set[..], "set", "--set"),
        ] {
            let settings = load(conf, env, sets, false).unwrap();
            assert_eq!(
                (settings.text("node_name"), settings.place("node_name").as_str()),
                (value, source)
            );
        }
    }

    #[test]
    fn values_come_typed() {
        let conf = "\
queue_max_bytes = 1GiB
enqueue_timeout_ms = 2s
storage_postgres_conn_max_lifetime_min = 90s
writer_enabled = off
queue_channel_share = 0.5
";
        let settings = load(conf, &[], &[], false).unwrap();
        assert_eq!(settings.bytes("queue_max_bytes"), 1 << 30);
        assert_eq!(settings.millis("enqueue_timeout_ms"), Duration::from_secs(2));
        assert_eq!(
            settings.millis("storage_postgres_conn_max_lifetime_min"),
            Duration::from_secs(90)
        );
        assert_eq!(
            settings.millis("storage_mysql_conn_max_lifetime_min"),
            Duration::from_secs(1800)
        );
        assert!(!settings.flag("writer_enabled"));
        assert!((settings.ratio("queue_channel_share") - 0.5).abs() < f64::EPSILON);
        assert_eq!(settings.count("max_batch_items"), 1000);
    }

    #[test]
    fn variables_that_name_no_key_are_ignored() {
        let env = [
            ("REPLICON_CONFIG", "x"),
            ("REPLICON_NODENAME", "x"),
            ("REPLICON_node_name", "x"),
            ("NODE_NAME", "x"),
        ];
        let settings = load("", &env, &[], true).unwrap();
        assert_eq!(settings.text("node_name"), "dc1");
        assert!(settings.warnings().is_empty());
    }

    #[test]
    fn an_unknown_key_of_the_command_line_is_an_error_that_names_the_nearest() {
        assert_eq!(
            load("", &[], &[("node_nam", "x"), ("colour_of_the_logs", "x")], false).unwrap_err(),
            [
                "--set: there is no key \"node_nam\"; did you mean node_name?",
                "--set: there is no key \"colour_of_the_logs\"; `replicon check` prints all keys",
            ]
        );
    }

    #[test]
    fn an_unknown_key_of_the_file_is_a_warning_and_an_error_where_strict() {
        let conf = "rate_limit_per_client = 5\n";
        let settings = load(conf, &[], &[], false).unwrap();
        assert_eq!(
            settings.warnings(),
            ["t.conf:1: there is no key \"rate_limit_per_client\"; the line is ignored"]
        );
        let refused = ["t.conf:1: there is no key \"rate_limit_per_client\"; take the line out"];
        assert_eq!(load(conf, &[], &[], true).unwrap_err(), refused);
        assert_eq!(load(conf, &[], &[("strict_config", "true")], false).unwrap_err(), refused);
        assert_eq!(
            load("rate_limit_per_client = 5\nstrict_config = yes", &[], &[], false).unwrap_err(),
            refused
        );
    }

    #[test]
    fn what_is_wrong_anywhere_is_reported_even_where_it_is_overridden() {
        let wrong = load(
            "cpu = many\n",
            &[("REPLICON_CPU", "lots"), ("REPLICON_LOG_LEVEL", "loud")],
            &[("cpu", "2"), ("max_batch_items", "none")],
            false,
        )
        .unwrap_err();
        let places: Vec<_> = wrong.iter().filter_map(|text| text.split(": ").next()).collect();
        assert_eq!(
            places,
            ["t.conf:1", "environment REPLICON_CPU", "environment REPLICON_LOG_LEVEL", "--set"]
        );
    }

    #[test]
    fn peers_gather_within_one_source() {
        let conf =
            "replication_peer = dc2=http://a\nreplication_peer = dc3=http://b, dc4=http://c\n";
        let settings = load(conf, &[], &[], false).unwrap();
        assert_eq!(settings.text("replication_peer"), "dc2=http://a,dc3=http://b, dc4=http://c");
        let sets = [("replication_peer", "dc5=http://d"), ("replication_peer", "dc6=http://e")];
        let settings = load(conf, &[], &sets, false).unwrap();
        assert_eq!(settings.text("replication_peer"), "dc5=http://d,dc6=http://e");
    }

    #[test]
    fn no_secret_is_shown() {
        let conf = "\
client_api_key = s3cret
replication_token = s3cret
queue_redis_password = s3cret
queue_redis_addr = redis://u:s3cret@h:6379
storage_postgres_dsn = postgres://u:s3cret@h/db?password=s3cret
storage_mysql_dsn = u:s3cret@tcp(h:3306)/db
replication_peer = dc2=http://u:s3cret@h
";
        let settings = load(conf, &[], &[], false).unwrap();
        assert_eq!(settings.text("client_api_key"), "s3cret");
        let shown = format!("{settings:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        let key =
            |name: &str| settings.effective().into_iter().find(|row| row.0 == name).unwrap().1;
        assert_eq!(key("client_api_key"), "********");
        assert_eq!(key("replication_peer"), "dc2=http://********@h");
        assert_eq!(key("storage_mysql_dsn"), "u:********@tcp(h:3306)/db");
        for dsn in [
            "postgres://u:%73%33cret@h/db?p%61ssword=%73%33cret",
            "postgres://u:s3/cre@t@h/db",
            "host=h user=u password='s3 \\' cret'",
            "host=h user=u password=s3\\ cret",
            "host=h user=u password=s3 cret",
            "s3cret",
        ] {
            let conf = format!("storage_postgres_dsn = {dsn}\n");
            let shown = format!("{:?}", load(&conf, &[], &[], false).unwrap());
            assert!(!shown.contains("cre"), "{shown}");
        }
        let unset = load("", &[], &[], false).unwrap();
        assert!(unset.effective().iter().any(|row| row.0 == "client_api_key" && row.1.is_empty()));
    }

    #[test]
    fn the_shipped_file_is_taken_without_a_word() {
        let settings = load(&keys::shipped_conf(), &[], &[], true).unwrap();
        assert!(settings.warnings().is_empty());
        for key in KEYS {
            assert_eq!(settings.text(key.name), key.default, "{}", key.name);
        }
    }
}
