//! What no single key can say: keys that contradict each other, choices that are not here yet, and
//! choices that deserve a word. Pure.
//!
//! Does not know the channels beyond their names.

use std::path::{Component, Path, PathBuf};

use super::conf_file::Problem;
use super::settings::Settings;
use super::value;

/// What a frame of the log needs beside its events: header, checksums, and room to grow.
const FRAME_BYTES: u64 = 4096;
/// What it needs for each event of a request.
const FRAME_BYTES_PER_EVENT: u64 = 16;

/// Below this a backlog of an outage is counted in milliseconds: v1.0.2's shipped 10000 is meant.
const SMALL_QUEUE_BUFFER: u64 = 100_000;
/// The load at which a small queue is judged, in events per second.
const REFERENCE_RATE: u64 = 10_000;
/// The containers that every backend takes; MariaDB refuses the next.
const PORTABLE_DEPTH: u64 = 31;

/// What contradicts itself, or cannot be had.
#[must_use]
pub fn problems(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    if settings.flag("https_enabled") {
        let has = "2.0.0 serves HTTP; put a TLS proxy before it";
        problems.push(not_yet(settings, "https_enabled", has));
    }
    if settings.flag("replication_enabled") {
        replication(settings, &mut problems);
    }
    if settings.text("http_listen").is_empty() {
        let text = "http_listen is empty and https_enabled is not on: nothing would be served";
        problems.push(Problem::new(settings.place("http_listen"), text));
    }
    sizes(settings, &mut problems);
    paths(settings, &mut problems);
    match settings.text("storage_backend") {
        "postgres" => {
            problems.extend(too_few_connections(settings, "storage_postgres_max_open_conns"));
        }
        "mysql" => problems.extend(too_few_connections(settings, "storage_mysql_max_open_conns")),
        "sqlite" => problems.extend(no_file_of_sqlite(settings)),
        _ => {}
    }
    problems
}

/// What pulling from peers needs.
fn replication(settings: &Settings, problems: &mut Vec<Problem>) {
    let on = "replication_enabled";
    let mut problem = |name: &str, text: String| {
        let place = if settings.is_explicit(name) { name } else { on };
        problems.push(Problem::new(settings.place(place), text));
    };
    if matches!(settings.text("storage_backend"), "file" | "noop") {
        problem(
            "storage_backend",
            format!(
                "{on} = true needs a storage that peers can be served from: set storage_backend = sqlite, postgres or mysql"
            ),
        );
    }
    if settings.text("replication_token").is_empty() {
        problem(
            "replication_token",
            format!("{on} = true needs replication_token, the same on all nodes"),
        );
    }
    if !settings.is_explicit("node_name") {
        problem(
            "node_name",
            format!("{on} = true needs node_name to be set: no two nodes may have the same"),
        );
    }
    let peers = settings.text("replication_peer");
    if peers.is_empty() {
        problem(
            "replication_peer",
            format!("{on} = true needs replication_peer = NAME=http://HOST:PORT"),
        );
    }
    let mut seen: Vec<&str> = Vec::new();
    for name in
        peers.split(',').filter_map(|peer| peer.split_once('=')).map(|(name, _)| name.trim())
    {
        if name.eq_ignore_ascii_case(settings.text("node_name")) {
            problem(
                "replication_peer",
                format!("replication_peer names {name}, which is this node"),
            );
        } else if seen.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            problem("replication_peer", format!("replication_peer names {name} twice"));
        }
        seen.push(name);
    }
}

fn not_yet(settings: &Settings, name: &str, has: &str) -> Problem {
    let value = settings.text(name);
    Problem::new(
        settings.place(name),
        format!("{name} = {value} is not part of this release ({has})"),
    )
}

/// One largest request must pass every limit behind the door.
fn sizes(settings: &Settings, problems: &mut Vec<Problem>) {
    let body = settings.bytes("max_body_bytes");
    let frame = body + FRAME_BYTES + FRAME_BYTES_PER_EVENT * settings.count("max_batch_items");
    for (name, needed) in [
        ("queue_segment_bytes", frame),
        ("queue_max_bytes", frame),
        // a compressed body is held twice: as it came, and inflated
        ("http_max_inflight_bytes", 2 * body),
    ] {
        if settings.bytes(name) < needed {
            // Where the smaller one is only a default, the line to change is the other.
            let place = if settings.is_explicit(name) { name } else { "max_body_bytes" };
            let text = format!(
                "{name} = {} cannot hold one request of max_body_bytes = {}; make it at least {}, or max_body_bytes smaller",
                settings.text(name),
                settings.text("max_body_bytes"),
                value::show_bytes(needed)
            );
            problems.push(Problem::new(settings.place(place), text));
        }
    }
}

fn paths(settings: &Settings, problems: &mut Vec<Problem>) {
    let mut names = vec!["queue_file_path", "queue_file_ack_path"];
    match settings.text("storage_backend") {
        "file" => names.push("storage_file_path"),
        "sqlite" => names.push("storage_sqlite_path"),
        _ => {}
    }
    for (at, name) in names.iter().enumerate() {
        for other in &names[..at] {
            if same_path(settings.text(name), settings.text(other)) {
                let place = if settings.is_explicit(name) { name } else { other };
                let text = format!(
                    "{name} and {other} are one file, {}; give each its own",
                    settings.text(name)
                );
                problems.push(Problem::new(settings.place(place), text));
            }
        }
    }
}

/// Writers keep their connections: whoever else needs one must not wait for a writer to end.
fn too_few_connections(settings: &Settings, open: &str) -> Option<Problem> {
    let workers = "writer_workers";
    let (writers, most) = (settings.count(workers), settings.count(open));
    if writers < most {
        return None;
    }
    // Where one is only a default, the line to change is the other.
    let place = if settings.is_explicit(open) { open } else { workers };
    let fewer = if most > 1 { format!(", or {workers} smaller") } else { String::new() };
    let text = format!(
        "{workers} = {writers} takes every connection of {open} = {most}, since each writer keeps one; \
         make {open} at least {}{fewer}",
        writers + 1
    );
    Some(Problem::new(settings.place(place), text))
}

/// SQLite takes these for a database in memory, which keeps nothing, or for a URI.
fn no_file_of_sqlite(settings: &Settings) -> Option<Problem> {
    let name = "storage_sqlite_path";
    let path = settings.text(name);
    (path.starts_with(':') || path.starts_with("file:")).then(|| {
        let text = format!(
            "{name} = {path} would not be a file of this name: SQLite reads ':' as a database in memory \
             and 'file:' as a URI; write a path"
        );
        Problem::new(settings.place(name), text)
    })
}

/// By the text alone: whether links lead both to one file is for the locks to find out.
fn same_path(one: &str, other: &str) -> bool {
    plain_path(one) == plain_path(other)
}

fn plain_path(path: &str) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(plain.components().next_back(), Some(Component::Normal(_))) =>
            {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// What is odd without being wrong.
#[must_use]
pub fn warnings(settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn =
        |name: &str, text: String| warnings.push(format!("{}: {text}", settings.place(name)));

    let buffer = settings.count("queue_buffer");
    if buffer < SMALL_QUEUE_BUFFER {
        let held = buffer * 1_000 / REFERENCE_RATE;
        warn(
            "queue_buffer",
            format!(
                "queue_buffer = {buffer} holds {held} ms of outage at 10,000 events/s; the default is 10000000"
            ),
        );
    }
    let interval = settings.millis("queue_file_sync_ms").as_millis();
    if settings.text("queue_file_sync") == "interval" {
        let text = format!(
            "queue_file_sync = interval: a power cut loses up to {interval} ms of events that were answered 202"
        );
        warn("queue_file_sync", text);
    } else if settings.is_explicit("queue_file_sync_ms") {
        let text = "queue_file_sync_ms has no effect: every 202 waits for its own sync; \
                    only queue_file_sync = interval would change that";
        warn("queue_file_sync_ms", text.to_owned());
    }
    let depth = settings.count("json_max_depth");
    if depth > PORTABLE_DEPTH {
        let text = format!(
            "json_max_depth = {depth} accepts events that MariaDB as a storage backend would refuse; \
             {PORTABLE_DEPTH} is what all backends take"
        );
        warn("json_max_depth", text);
    }
    if settings.is_explicit("queue_redis_maxlen") && settings.count("queue_redis_maxlen") > 0 {
        let text =
            "queue_redis_maxlen never trims: an event leaves the stream only once it is stored";
        warn("queue_redis_maxlen", text.to_owned());
    }
    warnings
}

/// A word about a door that everybody has the key of. `channels` are those with a key of the
/// shipped example.
#[must_use]
pub fn known_key_warning(settings: &Settings, channels: &[String]) -> Option<String> {
    let listen = settings.text("http_listen");
    let (host, _) = value::listen(listen)?;
    if channels.is_empty() || value::is_loopback(host) {
        return None;
    }
    Some(format!(
        "{}: http_listen = {listen} can be reached from other machines, and a key of the shipped example is accepted by {}, \
         which everybody knows; put keys of your own into the channels file",
        settings.place("http_listen"),
        channels.join(", ")
    ))
}
