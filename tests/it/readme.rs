//! The README as a program: every block marked `sh` is run in order against a node, or against the two
//! that pull from each other, and the answer shown in the `text` block behind it is compared with the
//! one that came. Its lists, its table and what it quotes are held against the sources.
//!
//! Knows nothing of the program but what the README says.

mod pair;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Node, repo, wait_until};
use pair::Pair;

/// The address in the README; the node under test has another.
const ADDRESS: &str = "127.0.0.1:8080";
/// The block that starts the node, and the beginning of those that run another command.
const START: &str = "cargo run --release";
const COMMAND: &str = "cargo run --release -- ";
/// What only a block that changes something says; any other may be run again.
const POSTS: &str = "-X POST";
/// Seconds that a block may take.
const IN_TIME: &str = "30";
/// How long it may take until what was posted is shown, on a peer too.
const SOON: Duration = Duration::from_secs(30);

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

/// Every line must be there; status lines and documents must be equal, in order, but for numbers.
fn compare(want: &Shown, got: &Shown) -> Result<(), String> {
    if want.statuses != got.statuses {
        return Err(format!("{:?} came, where {:?} is shown", got.statuses, want.statuses));
    }
    if want.documents != got.documents {
        return Err(format!("{:?} came, where {:?} is shown", got.documents, want.documents));
    }
    match want.lines.iter().find(|text| !got.lines.contains(text)) {
        Some(text) => Err(format!("{text:?} did not come, but {:?}", got.lines)),
        None => Ok(()),
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

/// Runs a block; what it printed.
fn run(script: &str, dir: &Path) -> Result<String, String> {
    let output = bash(script, dir);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} within {IN_TIME} s\n{script}\n{printed}{said}", output.status))
}

fn wait_ready(node: &Node) {
    wait_until(Duration::from_secs(30), "a ready node", || {
        let answer = node.get("/readyz");
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}

/// Where the blocks are run.
struct Stage<'a> {
    dir: &'a Path,
    /// The node of [`START`].
    node: Option<Node>,
    pair: Pair,
}

impl Stage<'_> {
    /// A text with the addresses of this run.
    fn here(&self, text: &str) -> String {
        let node = self.node.as_ref().map_or(ADDRESS, |node| node.addr.as_str());
        self.pair.here(&text.replace(ADDRESS, node))
    }

    /// What a block prints that starts a node: its ready line.
    fn started_by(&mut self, block: &Block) -> Option<String> {
        if block.text.trim() == START {
            let node = Node::start(self.dir, &["--set", "storage_backend=sqlite"]);
            wait_ready(&node);
            return Some(self.node.insert(node).ready.clone());
        }
        if !Pair::is_started_by(&block.text) {
            return None;
        }
        let program = format!("exec '{}' ", env!("CARGO_BIN_EXE_replicon"));
        let script = self.here(&block.text).replace(COMMAND, &program);
        Some(self.pair.start(&script, self.dir))
    }

    /// Runs a block, until it shows what stands behind it where it may be run again.
    fn play(&mut self, block: &Block, shown: Option<&Block>) {
        let ready = self.started_by(block);
        let place = format!("README.md:{}", block.line);
        let node = self.node.as_ref().unwrap_or_else(|| panic!("{place}: before `{START}`"));
        let want = shown.map(|shown| Shown::of(&self.here(&shown.text)));
        let fits = |printed: String| match &want {
            Some(want) => compare(want, &Shown::of(&printed)),
            None => Ok(()),
        };
        if let Some(ready) = ready {
            return fits(ready).unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        // what was accepted is stored a moment later, and a reader is slower than this
        node.wait_drained();
        let program = format!("'{}' ", env!("CARGO_BIN_EXE_replicon"));
        let script = self.here(&block.text).replace(COMMAND, &program);
        let attempt = || run(&script, self.dir).and_then(fits);
        if block.text.contains(POSTS) {
            attempt().unwrap_or_else(|e| panic!("{place}: {e}"));
        } else {
            wait_until(SOON, &format!("{place} to show what stands behind it"), attempt);
        }
    }

    /// The state of a peer is shown as a part of an answer.
    fn replication_is_as_shown(&self, blocks: &[Block]) {
        const PART: &str = "\"replication\": {";
        let shown = blocks.iter().find(|b| b.language == "json" && b.text.starts_with(PART));
        let Some(shown) = shown else { panic!("README.md does not show {PART}") };
        let want: Value = serde_json::from_str(&format!("{{{}}}", shown.text)).unwrap();
        let want = normal(want["replication"].clone());
        wait_until(SOON, &format!("README.md:{}", shown.line), || {
            let health = self.pair.health()?;
            let got = normal(health["replication"].clone());
            if got == want { Ok(()) } else { Err(format!("{health}\n{}", Pair::log(self.dir))) }
        });
    }
}

#[test]
fn every_shell_block_runs_and_answers_as_the_readme_shows() {
    let dir = tempfile::tempdir().unwrap();
    let curl = bash("curl --version", dir.path());
    assert!(curl.status.success(), "curl is needed: apt-get install curl");
    let text = readme();
    let blocks = blocks(&text);
    let mut stage = Stage { dir: dir.path(), node: None, pair: Pair::new() };
    let mut compared = 0;
    for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.language == "sh") {
        let shown = blocks.get(at + 1).filter(|next| next.language == "text");
        compared += usize::from(shown.is_some());
        stage.play(block, shown);
    }
    assert!(compared >= 18, "only {compared} answers were compared");
    assert!(stage.pair.runs(), "README.md starts no two nodes that pull from each other");
    stage.replication_is_as_shown(&blocks);
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
    // what has no series yet is in the sources only, what is made at its first case in both
    let (text, golden, source) =
        (readme(), read("tests/golden/metrics.txt"), read("src/metrics.rs"));
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let names: BTreeSet<&str> = [golden.as_str(), source]
        .into_iter()
        .flat_map(|text| text.split(|c: char| !is_part(c)))
        .filter(|word| word.starts_with("replicon_"))
        .map(|name| {
            let mut suffixes = ["_bucket", "_sum", "_count"].into_iter();
            let bare = suffixes.find_map(|suffix| name.strip_suffix(suffix));
            bare.unwrap_or(name)
        })
        .collect();
    assert!(names.len() > 20, "only {names:?} were found");
    for name in names {
        assert!(text.contains(&format!("`{name}`")), "README.md does not list the metric {name}");
    }
}

/// What an operator is told of replication, and who says it.
const SAID: [(&str, &str); 14] = [
    ("src/replicate/pull.rs", "it refuses our replication_token (401)"),
    ("src/replicate/pull.rs", "it answered 404: it has no such channel, or no replication_token"),
    ("src/replicate/pull.rs", "it is not ready (503)"),
    ("src/replicate/pull.rs", "correct the name before '=' in replication_peer, or the address"),
    ("src/replicate/pull.rs", "redirects are not followed"),
    ("src/replicate/pull.rs", "too many rows cannot be stored: 100 in a row, or 10,000 in all"),
    ("src/replicate/run.rs", "two nodes go by the name"),
    ("src/replicate/schema.rs", "columns there that do not stand here with the same type"),
    ("src/channel/mod.rs", "two nodes may accept events that only one of their tables can hold"),
    ("src/replicate/run/parted.rs", "goes by a new node id, "),
    ("src/writer/history.rs", "this node goes by a new node id, "),
    ("src/writer/history.rs", "history is not settled, and peers are served nothing: "),
    (
        "src/writer/history/refill.rs",
        "the storage was met anew, and refuses what it lacks or may lack of channel ",
    ),
    ("src/storage/sql/apply.rs", "came with other content than stands here: it is kept in"),
];

#[test]
fn what_is_said_of_replication_is_explained() {
    // a sentence may go on in the next line
    let text = readme().split_whitespace().collect::<Vec<&str>>().join(" ");
    for (file, said) in SAID {
        assert!(read(file).contains(said), "{file} does not say {said:?} any more");
        assert!(text.contains(said.trim_end()), "README.md does not explain {said:?}");
    }
}
