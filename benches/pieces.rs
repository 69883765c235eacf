//! The pieces in process, without HTTP: the frame codec, the JSON pass, and appends through the file
//! queue; each beside the least work that does the same job, measured in turns.
//!
//! `cargo bench --bench pieces [codec|json|append]`; see `benches/README.md`.

// a benchmark is no part of the node: it may use the system's own calls
#![allow(clippy::disallowed_methods)]
// figures are for people
#![allow(clippy::cast_precision_loss)]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use replicon::clock::Clock;
use replicon::event::{Batch, Micros, ModeTag, Name, Seq};
use replicon::json::{self, Form, Profile};
use replicon::queue::file::record::{Body, EventsFrame, FRAME_HEADER, Head, Names, Salt};
use serde::de::IgnoredAny;

#[path = "pieces/append.rs"]
mod append;
#[path = "shared/event.rs"]
mod event;
#[path = "shared/figures.rs"]
mod figures;
#[path = "shared/settings.rs"]
mod settings;

use event::{EVENT_BYTES, body, event};
use figures::{Spread, ratio, short};
use settings::{Outcome, Settings};

/// How long one round of a piece takes.
const ROUND: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pieces: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let Some(settings) = Settings::read(&["codec", "json", "append"], 1)? else {
        return Ok(());
    };
    println!(
        "{} rounds in turns with the floor; median (min-max); events of {EVENT_BYTES} bytes; of floor: 1 is as fast as the floor",
        settings.rounds
    );
    println!(
        "{:<30} {:>30} {:>9} {:>9} {:>30}  {:>21}",
        "piece", "ns/op", "MB/s", "events/s", "floor ns/op", "of floor"
    );
    if settings.wants("codec") {
        codec(&settings)?;
    }
    if settings.wants("json") {
        scanning(&settings)?;
    }
    if settings.wants("append") {
        append::run(&settings)?;
    }
    Ok(())
}

/// What one operation works on.
pub struct Piece {
    /// Its name.
    pub name: String,
    /// Bytes an operation.
    pub bytes: usize,
    /// Events an operation.
    pub events: usize,
}

/// Prints one line: nanoseconds an operation, round by round, and those of the floor.
pub fn report(piece: &Piece, ours: &[f64], floor: &[f64]) {
    let of_floor = ours.iter().zip(floor).map(|(ours, floor)| floor / ours);
    let of_floor = Spread::of(of_floor.collect());
    let (ours, floor) = (Spread::of(ours.to_vec()), Spread::of(floor.to_vec()));
    println!(
        "{:<30} {:>30} {:>9.1} {:>9} {:>30}  {:>21}",
        piece.name,
        ours.show(short),
        piece.bytes as f64 * 1e3 / ours.median,
        short(piece.events as f64 * 1e9 / ours.median),
        floor.show(short),
        of_floor.show(ratio),
    );
}

/// Nanoseconds an operation, over `n` of them.
fn per_op<R>(clock: &Clock, n: u64, op: &mut impl FnMut() -> R) -> f64 {
    let start = clock.mono();
    for _ in 0..n {
        black_box(op());
    }
    (clock.mono() - start).as_nanos() as f64 / n as f64
}

/// How many operations make a round.
fn operations<R>(clock: &Clock, op: &mut impl FnMut() -> R) -> u64 {
    let mut n = 1;
    loop {
        let start = clock.mono();
        per_op(clock, n, op);
        if clock.mono() - start >= ROUND / 4 {
            return n * 4;
        }
        n *= 2;
    }
}

/// Measures both in turns and prints the line.
fn race<A, B>(
    settings: &Settings,
    piece: &Piece,
    mut ours: impl FnMut() -> A,
    mut floor: impl FnMut() -> B,
) {
    let clock = Clock::system();
    let counts = (operations(&clock, &mut ours), operations(&clock, &mut floor));
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        times.0.push(per_op(&clock, counts.0, &mut ours));
        times.1.push(per_op(&clock, counts.1, &mut floor));
    }
    report(piece, &times.0, &times.1);
}

/// The events of one request.
pub fn batch(events: usize) -> Outcome<Batch> {
    Ok(Batch {
        channel: Name::new("events_raw")?,
        mode: ModeTag::Raw,
        received_at: Micros(1_771_502_400_000_000),
        payloads: (0..events).map(|n| Bytes::from(event(n))).collect(),
    })
}

/// Appends the frame of a batch, as the request's task and the log thread do between them.
pub fn put_frame(batch: &Batch, salt: Salt, out: &mut Vec<u8>) {
    let body = Body::events(batch);
    let head = Head {
        kind: body.kind,
        payload_len: u32::try_from(body.bytes.len()).unwrap_or(u32::MAX),
        count: body.count,
        first: Seq(40),
        running: 7,
        synced_to: 8192,
        payload_crc: body.crc,
    };
    head.encode(salt, out);
    out.extend_from_slice(&body.bytes);
}

/// Reads a frame and all its events; how many bytes of payload they have.
fn take_frame(frame: &Bytes, salt: Salt, names: &mut Names) -> Option<usize> {
    let head = Head::decode(frame, salt)?;
    let payload = frame.slice(FRAME_HEADER..);
    if crc32c::crc32c(&payload) != head.payload_crc {
        return None;
    }
    let events = EventsFrame::open(&head, payload, names)?;
    Some(events.map(|event| event.payload.len()).sum())
}

/// The floor of both directions: the checksum, and for writing one copy.
fn codec(settings: &Settings) -> Outcome<()> {
    let salt = Salt::of(b"0123456789abcdef");
    for events in [1, 100] {
        let batch = batch(events)?;
        let mut encoded = Vec::new();
        put_frame(&batch, salt, &mut encoded);
        let frame = Bytes::from(encoded);
        let piece = |what: &str| Piece {
            name: format!("{what}, {events} a frame"),
            bytes: frame.len(),
            events,
        };
        let (mut out, mut copy) = (Vec::new(), Vec::new());
        let encode = || {
            out.clear();
            put_frame(&batch, salt, &mut out);
            out.len()
        };
        let copied = || {
            copy.clear();
            copy.extend_from_slice(black_box(&frame[..]));
            crc32c::crc32c(&copy)
        };
        race(settings, &piece("frame encode"), encode, copied);

        let mut names = Names::default();
        if take_frame(&frame, salt, &mut names) != Some(events * EVENT_BYTES) {
            return Err("the frame does not come back as it went in".into());
        }
        let decode = || take_frame(black_box(&frame), salt, &mut names);
        let summed = || crc32c::crc32c(black_box(&frame[..]));
        race(settings, &piece("frame decode"), decode, summed);
    }
    Ok(())
}

/// The floor is `serde_json` skipping over the same bytes: it looks for no duplicate keys, no lone
/// surrogates and no numbers that a database would refuse.
fn scanning(settings: &Settings) -> Outcome<()> {
    let lines: String = (0..100).map(|n| event(n) + "\n").collect();
    let cases = [
        ("json scan, one object", body(1), Form::Json, 1),
        ("json scan, array of 100", body(100), Form::Json, 100),
        ("json scan, 100 lines", lines, Form::Lines, 100),
    ];
    let profile = Profile::default();
    for (name, text, form, events) in cases {
        let bytes = text.as_bytes();
        let scan = || json::scan(black_box(bytes), form, &profile).map(|items| items.len());
        let skip = || {
            let all = serde_json::Deserializer::from_slice(black_box(bytes));
            let all = all.into_iter::<IgnoredAny>();
            all.filter(Result::is_ok).count()
        };
        if scan() != Ok(events) {
            return Err(format!("{name}: the scan refuses its body").into());
        }
        let piece = Piece { name: name.to_owned(), bytes: bytes.len(), events };
        race(settings, &piece, scan, skip);
    }
    Ok(())
}
