//! Reads `key = value` text: lines, quotes, duplicates, misspelt keys, values of the wrong kind.
//!
//! Finds all problems at once, each with its line. Does not know where the text came from, what
//! overrides it, or what a value is used for.

use std::collections::BTreeMap;
use std::fmt;

use super::keys::{self, KEYS, Key};
use crate::channel::nearest::nearest;

/// One thing that is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `conf/replicon.conf:12`, `--set`, `environment REPLICON_X`.
    pub place: String,
    /// What is wrong and what would be right. Never a secret.
    pub text: String,
}

impl Problem {
    /// A problem at a place.
    #[must_use]
    pub fn new(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { place: place.into(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// One line that sets a key.
#[derive(Clone)]
pub struct Entry {
    /// The key.
    pub key: &'static Key,
    /// Its value, trimmed and unquoted.
    pub value: String,
    /// The line, from 1.
    pub line: usize,
}

/// A line whose key is not in the table and resembles none that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// The name as written.
    pub name: String,
    /// The line, from 1.
    pub line: usize,
}

/// What a text holds.
#[derive(Clone, Default)]
pub struct ConfFile {
    /// The known keys, in the order of the lines.
    pub entries: Vec<Entry>,
    /// The unknown ones: a warning or an error, as the caller decides.
    pub unknown: Vec<UnknownKey>,
    /// What is wrong in any case.
    pub problems: Vec<Problem>,
}

/// Reads `text`; `label` names it in problems.
#[must_use]
pub fn parse(label: &str, text: &str) -> ConfFile {
    let mut file = ConfFile::default();
    let mut first_lines = BTreeMap::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Err(text) = take_line(&mut file, &mut first_lines, at + 1, line) {
            file.problems.push(Problem::new(format!("{label}:{}", at + 1), text));
        }
    }
    file
}

fn take_line(
    file: &mut ConfFile,
    first_lines: &mut BTreeMap<&'static str, usize>,
    number: usize,
    line: &str,
) -> Result<(), String> {
    let Some((name, value)) = line.split_once('=') else {
        return Err(no_equals_sign(line));
    };
    let name = name.trim();
    let Some(key) = keys::find(name) else {
        if let Some(known) = nearest_key(name) {
            return Err(format!("there is no key {name:?}; did you mean {known}?"));
        }
        if name.is_empty() {
            return Err("there is no key before the '='".to_owned());
        }
        file.unknown.push(UnknownKey { name: name.to_owned(), line: number });
        return Ok(());
    };
    let value = unquoted(value.trim()).to_owned();
    let checked = check(key, &value);
    file.entries.push(Entry { key, value, line: number });
    let first = *first_lines.entry(key.name).or_insert(number);
    if first != number && !key.repeatable {
        return Err(format!(
            "{} is already set in line {first}; keep one of the two lines",
            key.name
        ));
    }
    checked
}

/// The line itself is not echoed: it may be a secret that was pasted.
fn no_equals_sign(line: &str) -> String {
    let word = line.split([':', ' ', '\t']).next().unwrap_or_default();
    match keys::find(word) {
        Some(key) => format!("this line has no '='; write {} = value", key.name),
        None => "this line has no '='; write key = value, or begin it with # to make it a comment"
            .to_owned(),
    }
}

/// A known key that `name` resembles.
#[must_use]
pub fn nearest_key(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    match keys::find(&name) {
        Some(key) => Some(key.name),
        None => nearest(&name, KEYS.iter().map(|key| key.name)),
    }
}

/// [`Key::check`], with the name of the key and a hint where a comment was put behind the value.
///
/// # Errors
/// What would be right.
pub fn check(key: &Key, value: &str) -> Result<(), String> {
    key.check(value).map_err(|text| {
        let commented =
            !key.secret && [" #", "\t#", " ;", "\t;"].iter().any(|mark| value.contains(mark));
        let hint = if commented { " (a comment stands on a line of its own)" } else { "" };
        format!("{}: {text}{hint}", key.name)
    })
}

/// Takes one pair of double quotes off.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(&'static str, String, usize)> {
        let file = parse("t.conf", text);
        assert!(file.problems.is_empty(), "{:?}", file.problems);
        file.entries.into_iter().map(|entry| (entry.key.name, entry.value, entry.line)).collect()
    }

    fn problems(text: &str) -> Vec<String> {
        parse("t.conf", text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_value_is_the_rest_of_its_line() {
        for (line, expect) in [
            ("client_api_key = a b # c", "a b # c"),
            ("client_api_key=\"quoted \"", "quoted "),
            ("client_api_key = \"\"twice\"\"", "\"twice\""),
            ("client_api_key = \"", "\""),
            ("client_api_key = a=b", "a=b"),
            ("client_api_key =", ""),
            ("\tclient_api_key\t=\tx\r", "x"),
        ] {
            let expect = vec![("client_api_key", expect.to_owned(), 1)];
            assert_eq!(values(line), expect, "{line:?}");
        }
    }

    #[test]
    fn comments_are_whole_lines() {
        let text = "\u{feff}# one\n; two\n\n  # three\nnode_name = a\n";
        assert_eq!(values(text), vec![("node_name", "a".to_owned(), 5)]);
        let wrong = problems("cpu = 2 # two");
        assert!(wrong[0].ends_with("(a comment stands on a line of its own)"), "{wrong:?}");
    }

    #[test]
    fn only_peers_may_stand_on_several_lines() {
        let text = "replication_peer = dc2=http://a\nreplication_peer = dc3=http://b\n";
        assert_eq!(values(text).len(), 2);
        assert_eq!(
            problems("node_name = a\ncpu = 2\nnode_name = b\n"),
            ["t.conf:3: node_name is already set in line 1; keep one of the two lines"]
        );
    }

    #[test]
    fn a_key_that_resembles_a_known_one_is_an_error_and_any_other_is_left_to_the_caller() {
        assert_eq!(
            problems("http_listne = :8080\nNODE_NAME = a\n"),
            [
                "t.conf:1: there is no key \"http_listne\"; did you mean http_listen?",
                "t.conf:2: there is no key \"NODE_NAME\"; did you mean node_name?",
            ]
        );
        let file = parse("t.conf", "\nrate_limit_per_client = 5\n");
        assert_eq!(
            file.unknown,
            [UnknownKey { name: "rate_limit_per_client".to_owned(), line: 2 }]
        );
        assert!(file.problems.is_empty() && file.entries.is_empty());
    }

    #[test]
    fn five_mistakes_are_reported_at_once_with_their_lines() {
        let text = "\
# five mistakes
node_name = dc 1
http_listne = :8080
queue_backend
cpu = 2
cpu = 4
queue_max_bytes = lots
";
        assert_eq!(
            problems(text),
            [
                "t.conf:2: node_name: \"dc 1\" is not right; write 1 to 63 letters, digits, '.', '_' or '-', \
                 beginning with a letter or digit",
                "t.conf:3: there is no key \"http_listne\"; did you mean http_listen?",
                "t.conf:4: this line has no '='; write queue_backend = value",
                "t.conf:6: cpu is already set in line 5; keep one of the two lines",
                "t.conf:7: queue_max_bytes: \"lots\" is not right; write a size from 64KiB to 1024TiB, such as 8GiB, \
                 or a bare number of bytes",
            ]
        );
    }

    #[test]
    fn a_line_without_an_equals_sign_is_not_echoed() {
        let wrong = problems("hunter2-the-secret");
        assert_eq!(wrong.len(), 1);
        assert!(!wrong[0].contains("hunter2"), "{wrong:?}");
    }
}
