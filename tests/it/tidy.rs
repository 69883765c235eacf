//! The house rules that no compiler checks. Each failure is the sentence that was broken.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::repo;

fn rust_files(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut todo = vec![repo(dir)];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{dir} holds no Rust");
    found
}

fn all_files() -> Vec<(PathBuf, String)> {
    ["src", "tests", "benches"].iter().flat_map(|dir| rust_files(dir)).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repo("")).unwrap().display().to_string()
}

/// The module that a file under `src` belongs to: its first path component.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(repo("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a file names by `use crate::…` or `crate::…`.
fn known(text: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + 7..];
        if let Some(group) = rest.strip_prefix('{') {
            for word in group.split('}').next().unwrap_or("").split(',') {
                let word = word.trim().split("::").next().unwrap_or("");
                known.insert(word.to_owned());
            }
        } else {
            let word: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            known.insert(word);
        }
    }
    known
}

/// Who may know whom. What is not listed may know nothing of the crate.
const ARROWS: [(&str, &[&str]); 24] = [
    ("event", &[]),
    ("clock", &["event"]),
    ("task", &[]),
    ("fsx", &[]),
    ("json", &[]),
    ("seq", &["event", "clock"]),
    ("life", &["event"]),
    ("watermark", &["event"]),
    ("channel", &["event", "json"]),
    ("queue", &["event", "clock", "task", "fsx", "seq", "watermark"]),
    ("storage", &["event", "clock", "task", "fsx", "channel", "json"]),
    (
        "replicate",
        &["event", "clock", "task", "channel", "json", "life", "seq", "storage", "watermark"],
    ),
    ("writer", &["event", "life", "queue", "storage", "task", "watermark"]),
    ("ingest", &["event", "clock", "task", "channel", "json", "queue"]),
    ("metrics", &["queue", "replicate"]),
    ("health", &["clock", "life", "queue", "replicate"]),
    ("telemetry", &[]),
    (
        "http",
        &["clock", "task", "channel", "json", "queue", "replicate", "ingest", "health", "metrics"],
    ),
    ("config", &["event", "channel", "json"]),
    ("control", &["event", "fsx", "queue", "replicate", "task"]),
    (
        "cli",
        &[
            "clock",
            "config",
            "control",
            "event",
            "fsx",
            "metrics",
            "node",
            "queue",
            "storage",
            "task",
            "telemetry",
        ],
    ),
    ("main", &[]),
    ("lib", &[]),
    (
        "node",
        &[
            "channel",
            "clock",
            "config",
            "control",
            "event",
            "fsx",
            "health",
            "http",
            "ingest",
            "life",
            "metrics",
            "queue",
            "replicate",
            "seq",
            "storage",
            "task",
            "watermark",
            "writer",
        ],
    ),
];

#[test]
fn modules_know_only_whom_they_may_know() {
    let names: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    for (path, text) in rust_files("src") {
        let own = module(&path);
        let code = text.split("#[cfg(test)]").next().unwrap();
        if path.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "tests.rs") {
            continue;
        }
        let may = ARROWS.iter().find(|(name, _)| *name == own);
        let (_, may) = may.unwrap_or_else(|| panic!("{own} has no arrows: add it to the list"));
        for other in known(code) {
            let fine = other == own || may.contains(&&*other) || !names.contains(&&*other);
            assert!(fine, "{}: {own} may not know {other}", shown(&path));
        }
    }
}

#[test]
fn libraries_stay_where_they_belong() {
    let only = [
        ("axum::", &["http"][..]),
        ("hyper::", &["http", "replicate"]),
        ("tokio_rustls::", &["replicate"]),
        ("rustls_native_certs::", &["replicate"]),
        ("clap::", &["cli"]),
        ("serde_yaml::", &["config"]),
        ("tracing_subscriber::", &["telemetry"]),
        ("indicatif::", &["cli"]),
        ("sqlx::", &["storage"]),
        ("redis::cmd(", &["queue"]),
        ("redis::aio", &["queue"]),
    ];
    for (path, text) in rust_files("src") {
        for (library, homes) in only {
            let fine = !text.contains(library) || homes.contains(&&*module(&path));
            assert!(fine, "{}: {library} belongs under {homes:?}", shown(&path));
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_small() {
    for (path, text) in all_files() {
        let name = shown(&path);
        assert!(
            text.starts_with("//!") || name.ends_with("tests.rs") || text.starts_with("use super"),
            "{name} begins with no header"
        );
        let lines = text.lines().count();
        assert!(lines <= 600, "{name} has {lines} lines, more than 600");
        for word in ["util", "helper", "common", "manager"] {
            let file = path.file_stem().unwrap().to_str().unwrap();
            assert!(!file.contains(word), "{name}: a drawer for everything");
        }
        assert!(!text.contains(concat!("dbg", "!(")), "{name} holds a dbg");
    }
}

#[test]
fn no_function_is_longer_than_seventy_lines() {
    for (path, text) in all_files() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let begins = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(super) fn "];
            if !begins.iter().any(|b| code.starts_with(b)) || code.ends_with(';') {
                continue;
            }
            // a trait's method may be declared over several lines and have no body
            let head = lines[at..].iter().find(|l| l.ends_with('{') || l.ends_with(';'));
            if head.is_none_or(|l| l.ends_with(';')) {
                continue;
            }
            let indent = line.len() - code.len();
            let end = format!("{}}}", " ".repeat(indent));
            let length = lines[at..].iter().position(|l| *l == end).unwrap_or(0) + 1;
            assert!(length <= 70, "{}:{}: a function of {length} lines", shown(&path), at + 1);
        }
    }
}

#[test]
fn every_key_stands_in_the_shipped_file() {
    let shipped = std::fs::read_to_string(repo("conf/replicon.conf")).unwrap();
    for key in replicon::config::keys::KEYS {
        let stands = shipped.lines().any(|line| {
            line.trim_start_matches("# ").split(" =").next().is_some_and(|name| name == key.name)
        });
        assert!(stands, "conf/replicon.conf does not hold {}", key.name);
    }
}

#[test]
fn the_project_pins_its_toolchain_and_its_dependencies() {
    let toolchain = std::fs::read_to_string(repo("rust-toolchain.toml")).unwrap();
    assert!(toolchain.contains("channel = \""), "a toolchain file names the toolchain");
    assert!(repo("Cargo.lock").exists(), "the lock file is kept");
}
