//! The README as a program: every block marked `sh` is run in order against a node, and the answer
//! shown in the `text` block behind it is compared with the one that came. Its lists and its table are
//! held against the sources.
//!
//! Knows nothing of the program but what the README says.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Node, repo, wait_until};

/// The address in the README; the node under test has another.
const ADDRESS: &str = "127.0.0.1:8080";
/// The block that starts the node, and the beginning of those that run another command.
const START: &str = "cargo run --release";
const COMMAND: &str = "cargo run --release -- ";
/// Seconds that a block may take.
const IN_TIME: &str = "30";

const KEYS: (&str, &str) = ("<!-- keys -->\n", "<!-- /keys -->");

struct Block {
    language: String,
    line: usize,
    text: String,
}

fn readme() -> String {
    read("README.md")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(repo(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in readme.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(language), None) => {
                open = Some(Block {
                    language: language.trim().to_owned(),
                    line: at + 1,
                    text: String::new(),
                });
            }
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "README.md: the last block is not closed");
    blocks
}

/// What a text shows: status lines, JSON documents, and any other lines.
#[derive(Debug, Default)]
struct Shown {
    statuses: Vec<String>,
    documents: Vec<Value>,
    lines: Vec<String>,
}

impl Shown {
    fn of(text: &str) -> Self {
        let mut shown = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            if rest.starts_with('{') {
                let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
                match stream.next() {
                    Some(Ok(document)) => shown.documents.push(normal(document)),
                    other => panic!("no JSON ({other:?}): {rest}"),
                }
                rest = &rest[stream.byte_offset()..];
                continue;
            }
            let (line, behind) = rest.split_once('\n').unwrap_or((rest, ""));
            let line = line.trim();
            if line.starts_with("HTTP/") {
                shown.statuses.push(line.to_owned());
            } else if !line.is_empty() {
                shown.lines.push(line.to_owned());
            }
            rest = behind;
        }
        shown
    }
}

/// Without what differs from run to run: numbers, times and random names; never how many were
/// accepted, nor which event was refused.
fn normal(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| {
                let value = match key.as_str() {
                    "accepted_count" | "index" => value,
                    "node_id" | "received_at" => Value::from("some"),
                    "oldest_event_age_seconds" => Value::Null,
                    _ => normal(value),
                };
                (key, value)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Number(_) => Value::from(0),
        other => other,
    }
}

/// Every line but for numbers must be there; status lines and documents must be equal, in order.
fn compare(want: &Shown, got: &Shown, line: usize) {
    assert_eq!(want.statuses, got.statuses, "README.md:{line}: another status");
    assert_eq!(want.documents, got.documents, "README.md:{line}: another answer");
    for text in &want.lines {
        assert!(got.lines.contains(text), "README.md:{line}: {text:?} did not come, but {got:?}");
    }
}

fn bash(script: &str, dir: &Path) -> Output {
    let mut command = Command::new("timeout");
    command
        .args([IN_TIME, "bash", "-eu", "-o", "pipefail", "-c", script])
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null());
    command.output().unwrap_or_else(|e| panic!("timeout: {e}"))
}

/// Runs a block, and gives what it printed.
fn run(block: &Block, script: &str, dir: &Path) -> String {
    let output = bash(script, dir);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "README.md:{}: {} within {IN_TIME} s\n{script}\n{printed}{}",
        block.line,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

fn wait_ready(node: &Node) {
    wait_until(Duration::from_secs(30), "a ready node", || {
        let answer = node.get("/readyz");
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}

#[test]
fn every_shell_block_runs_and_answers_as_the_readme_shows() {
    let dir = tempfile::tempdir().unwrap();
    let curl = bash("curl --version", dir.path());
    assert!(curl.status.success(), "curl is needed: apt-get install curl");
    let text = readme();
    let blocks = blocks(&text);
    let binary = format!("'{}' ", env!("CARGO_BIN_EXE_replicon"));
    let mut node: Option<Node> = None;
    let mut compared = 0;
    for (at, block) in blocks.iter().enumerate() {
        if block.language != "sh" {
            continue;
        }
        if block.text.trim() == START {
            let started = Node::start(dir.path(), &["--set", "storage_backend=sqlite"]);
            wait_ready(&started);
            node = Some(started);
        }
        let Some(node) = &node else {
            panic!("README.md:{}: a block before `{START}`", block.line);
        };
        let here = |text: &str| text.replace(ADDRESS, &node.addr);
        let printed = if block.text.trim() == START {
            node.ready.clone()
        } else {
            // what was accepted is stored a moment later, and a reader is slower than this
            node.wait_drained();
            run(block, &here(&block.text).replace(COMMAND, &binary), dir.path())
        };
        if let Some(shown) = blocks.get(at + 1).filter(|next| next.language == "text") {
            compare(&Shown::of(&here(&shown.text)), &Shown::of(&printed), shown.line);
            compared += 1;
        }
    }
    assert!(compared >= 10, "only {compared} answers were compared");
}

#[test]
fn the_table_of_keys_is_that_of_the_program() {
    let text = readme();
    let (open, close) = KEYS;
    let parts = text
        .split_once(open)
        .and_then(|(before, rest)| rest.split_once(close).map(|(in_, after)| (before, in_, after)));
    let Some((before, table, after)) = parts else {
        panic!("README.md: the markers {open:?} and {close:?} are gone");
    };
    let want = replicon::config::readme_table();
    if table != want && std::env::var("UPDATE_GOLDEN").is_ok_and(|v| v == "1") {
        let text = format!("{before}{open}{want}{close}{after}");
        std::fs::write(repo("README.md"), text).unwrap();
        return;
    }
    assert_eq!(table, want, "README.md: the table of keys; UPDATE_GOLDEN=1 rewrites it");
}

/// The words in quotes of lower-case letters and `_`: codes, and the values of `stored`.
fn quoted_words(source: &str) -> BTreeSet<&str> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    source
        .split('"')
        .filter(|word| word.len() > 1 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect()
}

#[test]
fn every_error_code_is_explained() {
    let (text, source) = (readme(), read("src/http/error.rs"));
    let mut codes = quoted_words(&source);
    // a header's value, and the code of the server itself
    codes.remove("close");
    codes.insert("connections");
    assert!(codes.len() > 15, "src/http/error.rs: only {codes:?} were found");
    for code in codes {
        assert!(
            text.contains(&format!("`{code}`")) || text.contains(&format!("\"{code}\"")),
            "README.md does not explain the code {code}"
        );
    }
}

#[test]
fn every_metric_is_listed() {
    let (text, golden) = (readme(), read("tests/golden/metrics.txt"));
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let names: BTreeSet<&str> = golden
        .split(|c: char| !is_part(c))
        .filter(|word| word.starts_with("replicon_"))
        .map(|name| {
            let mut suffixes = ["_bucket", "_sum", "_count"].into_iter();
            let bare = suffixes.find_map(|suffix| name.strip_suffix(suffix));
            bare.unwrap_or(name)
        })
        .collect();
    assert!(!names.is_empty(), "tests/golden/metrics.txt names no metric");
    for name in names {
        assert!(text.contains(&format!("`{name}`")), "README.md does not list the metric {name}");
    }
}
