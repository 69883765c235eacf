//! P10: how long one event takes on one connection, against what it must take: one sync of the same
//! bytes on the same file system, and one bare round trip.
//!
//! The load generator is a loop of our own, so that all four are timed by the same clock in the same
//! way, in short turns.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use replicon::clock::Clock;

use crate::client::Client;
use crate::event::{EVENT_BYTES, body};
use crate::figures::Spread;
use crate::settings::{Outcome, Settings, scratch};
use crate::subject::{Server, Subject};

/// Its name in the goals.
pub const NAME: &str = "P10";

/// The most that the goal allows, in multiples of the floor.
const MOST: f64 = 1.5;
/// Operations a turn.
const TURN: usize = 200;
/// A node writes its acks and syncs its storage up to 200 ms after the last event: that must not
/// fall into the turn of another.
const QUIET: Duration = Duration::from_millis(500);
/// What a frame of the log holds beside one event of the channel `events_raw`.
const FRAME_OVERHEAD: usize = 48 + 10 + "events_raw".len() + 4;

/// Latencies in microseconds, of each kind.
#[derive(Default)]
struct Turns {
    sync: Vec<f64>,
    bare: Vec<f64>,
    noop: Vec<f64>,
    file: Vec<f64>,
}

/// A server and a request to it.
struct Peer {
    server: Server,
    client: Client,
    request: Vec<u8>,
}

impl Peer {
    fn start(subject: Subject) -> Outcome<Self> {
        let server = Server::start(subject)?;
        let client = Client::connect(server.running.addr)?;
        let request = client.post(&body(1));
        Ok(Self { server, client, request })
    }

    fn turn(&mut self, clock: &Clock, into: &mut Vec<f64>) -> Outcome<()> {
        for _ in 0..TURN {
            let start = clock.mono();
            self.client.accepted(&self.request)?;
            into.push(micros(clock.mono() - start));
        }
        Ok(())
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// A file that is appended to as the log is.
struct Probe {
    file: File,
    frame: Vec<u8>,
}

impl Probe {
    fn turn(&mut self, clock: &Clock, into: &mut Vec<f64>) -> Outcome<()> {
        for _ in 0..TURN {
            self.file.write_all(&self.frame)?;
            let start = clock.mono();
            self.file.sync_data()?;
            into.push(micros(clock.mono() - start));
        }
        Ok(())
    }
}

/// All that is measured.
struct Bench {
    clock: Clock,
    probe: Probe,
    bare: Peer,
    noop: Peer,
    file: Peer,
}

impl Bench {
    /// One turn of each.
    fn turns(&mut self, into: &mut Turns) -> Outcome<()> {
        self.probe.turn(&self.clock, &mut into.sync)?;
        self.bare.turn(&self.clock, &mut into.bare)?;
        self.noop.turn(&self.clock, &mut into.noop)?;
        std::thread::sleep(QUIET);
        self.file.turn(&self.clock, &mut into.file)?;
        std::thread::sleep(QUIET);
        Ok(())
    }
}

/// Measures it and prints its lines.
pub fn run(settings: &Settings) -> Outcome<()> {
    let dir = scratch()?;
    let mut bench = Bench {
        clock: Clock::system(),
        probe: Probe {
            file: File::create(dir.path().join("probe"))?,
            frame: vec![b'x'; FRAME_OVERHEAD + EVENT_BYTES],
        },
        bare: Peer::start(Subject::Bare)?,
        noop: Peer::start(Subject::Noop)?,
        file: Peer::start(Subject::File)?,
    };
    bench.turns(&mut Turns::default())?;
    let time = Duration::from_secs(settings.seconds);
    let mut rounds = Vec::new();
    for _ in 0..settings.rounds {
        let (mut round, start) = (Turns::default(), bench.clock.mono());
        while bench.clock.mono() - start < time {
            bench.turns(&mut round)?;
        }
        rounds.push(round);
    }
    print(&rounds);
    for (subject, peer) in [(Subject::Noop, &bench.noop), (Subject::File, &bench.file)] {
        let memory = peer.server.running.memory()?;
        println!("{:<28} RSS {:.0} MiB, peak {:.0} MiB", subject.name(), memory.now, memory.peak);
    }
    for peer in [bench.bare, bench.noop, bench.file] {
        peer.server.stop()?;
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values.to_vec()).median
}

/// The medians of the rounds' medians.
fn print(rounds: &[Turns]) {
    let medians = |pick: fn(&Turns) -> &Vec<f64>| -> Vec<f64> {
        rounds.iter().map(|round| median(pick(round))).collect()
    };
    let sync = medians(|turns| &turns.sync);
    let bare = medians(|turns| &turns.bare);
    let floor: Vec<f64> = sync.iter().zip(&bare).map(|(a, b)| a + b).collect();
    let micros = |value: f64| format!("{value:.0}");
    println!(
        "\n{NAME}: one connection, one event at a time, synced; median latency in microseconds"
    );
    for (name, values) in
        [("fdatasync after an append", &sync), ("bare round trip", &bare), ("floor: both", &floor)]
    {
        println!("{name:<28} {:>24}", Spread::of(values.clone()).show(micros));
    }
    println!(
        "{:<28} {:>24} {:>9} {:>21} {:>7}",
        "server", "microseconds", "floor", "ratio", "goal"
    );
    let servers = [
        (Subject::Noop, medians(|turns| &turns.noop)),
        (Subject::File, medians(|turns| &turns.file)),
    ];
    let goal = format!("<={MOST:.2}");
    for (subject, ours) in servers {
        let times = ours.iter().zip(&floor).map(|(ours, floor)| ours / floor);
        let times = Spread::of(times.collect());
        let verdict = if times.median <= MOST { "reached" } else { "missing" };
        println!(
            "{:<28} {:>24} {:>9.0} {:>21} {goal:>7} {verdict}",
            subject.name(),
            Spread::of(ours).show(micros),
            median(&floor),
            times.show(crate::figures::ratio),
        );
    }
}
