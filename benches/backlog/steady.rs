//! P7 without a backlog: single events at a steady rate, drained meanwhile.
//!
//! The load comes in equal steps, not as fast as it is taken.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use replicon::clock::Clock;

use crate::client::Client;
use crate::event;
use crate::figures::short;
use crate::settings::{Outcome, Settings, clear, from_env, scratch};
use crate::{judged, memory, start, stop};

/// Events a second that the goal speaks of.
const RATE: u64 = 10_000;
/// The most memory, in MiB, that the goal allows.
const MOST_MIB: f64 = 64.0;
/// Of the rate that was asked for: below it the memory says nothing.
const KEPT_UP: f64 = 0.95;
/// Enough that no answer is waited for by the next event.
const CONNECTIONS: u32 = 16;

/// Measures it and prints its lines.
pub fn run(settings: &Settings) -> Outcome<()> {
    let rate = from_env("BENCH_RATE", RATE)?;
    println!("\n{} single events a second for {} s", short(rate as f64), settings.seconds);
    let time = Duration::from_secs(settings.seconds);
    let every = Duration::from_secs(1) * CONNECTIONS / u32::try_from(rate)?;
    let dir = scratch()?;
    let node = start(dir.path(), true)?;
    node.wait_until_ready()?;
    let clock = Clock::system();
    let (addr, shared) = (node.addr, &clock);
    let sent: Vec<io::Result<u64>> = std::thread::scope(|scope| {
        let begin = |nth: u32| {
            scope.spawn(move || send(addr, shared, every, (every * nth / CONNECTIONS, time)))
        };
        let running: Vec<_> = (0..CONNECTIONS).map(begin).collect();
        let panicked = |_| Err(io::Error::other("a connection's thread panicked"));
        running.into_iter().map(|one| one.join().unwrap_or_else(panicked)).collect()
    });
    let took = clock.mono();
    let sent: u64 = sent.into_iter().sum::<io::Result<u64>>()?;
    let accepted = node.health()?.accepted;
    if accepted != sent {
        return Err(format!("{sent} events were answered 202, {accepted} were accepted").into());
    }
    let reached = sent as f64 / took.as_secs_f64();
    let least = rate as f64 * KEPT_UP;
    let goal = format!(">={}/s", short(least));
    judged("accepted", &format!("{}/s", short(reached)), &goal, reached >= least);
    memory("at a steady rate (P7)", node.memory()?, MOST_MIB);
    stop(node)?;
    clear(dir)
}

/// One connection: an event when its time has come, from `span.0` to `span.1`; how many.
fn send(
    addr: SocketAddr,
    clock: &Clock,
    every: Duration,
    span: (Duration, Duration),
) -> io::Result<u64> {
    let mut client = Client::connect(addr)?;
    let request = client.post(&event::body(1));
    let (mut due, end) = span;
    let mut sent = 0;
    while due < end {
        if let Some(wait) = due.checked_sub(clock.mono()) {
            std::thread::sleep(wait);
        }
        client.accepted(&request)?;
        sent += 1;
        due += every;
    }
    Ok(sent)
}
