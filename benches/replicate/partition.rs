//! R7: how long clients wait for their 202 while the peers are out of reach of each other, beside how
//! long they wait while each pulls from the other.
//!
//! The load is the same in each turn: single events to one of two nodes, in equal steps. Between turns
//! the link is whole, until the other node has pulled everything. Times count from the moment at which an
//! event was due, so that one that is late makes those behind it late too.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use replicon::clock::Clock;

use crate::child::Running;
use crate::client::Client;
use crate::event;
use crate::figures::{Spread, ratio, short};
use crate::lag::share;
use crate::pair::{Place, caught_up, drained, hears, pulled};
use crate::proxy::{Link, Proxy};
use crate::server::Server;
use crate::settings::{Outcome, Settings, clear, from_env, scratch};

/// The most that the goal allows, in multiples of the same without a partition.
const MOST: f64 = 1.20;
/// Events a second: both nodes and the database share the machine, and none of them is to be busy.
const RATE: u64 = 2_000;
/// Enough that no answer is waited for by the next event.
const CONNECTIONS: u32 = 16;
/// Load before all measurements.
const WARM_UP: Duration = Duration::from_secs(3);

/// How the link is meanwhile.
const TURNS: [(&str, Link); 3] = [
    ("each pulls from the other", Link::Open),
    ("cut: every connection is refused", Link::Cut),
    ("half-open: nothing passes, nobody is told", Link::Silent),
];

/// The latencies of a turn, in milliseconds, in rising order.
type Times = Vec<f64>;

/// The fields are dropped in this order: the server goes last.
struct Bench {
    /// Takes the load.
    node: Running,
    /// The other one.
    peer: Running,
    /// From each to the other.
    links: [Proxy; 2],
    rate: u64,
    server: Server,
}

/// Measures it and prints its lines.
pub fn run(settings: &Settings) -> Outcome<()> {
    let rate = from_env("BENCH_RATE", RATE)?;
    let dir = scratch()?;
    let bench = Bench::new(dir.path(), rate)?;
    bench.turn(Link::Open, WARM_UP)?;
    let time = Duration::from_secs(settings.seconds);
    let mut rounds: [Vec<Times>; TURNS.len()] = Default::default();
    for round in 0..settings.rounds {
        for turn in 0..TURNS.len() {
            let who = (round + turn) % TURNS.len();
            rounds[who].push(bench.turn(TURNS[who].1, time)?);
        }
    }
    print(rate, &rounds);
    bench.heal()?;
    let Bench { node, peer, links, server, .. } = bench;
    for node in [node, peer] {
        node.end(libc::SIGTERM)?;
    }
    drop((links, server));
    clear(dir)
}

impl Bench {
    fn new(dir: &Path, rate: u64) -> Outcome<Self> {
        let server = Server::start_with(dir, &[])?;
        server.psql("postgres")?.run("CREATE DATABASE one;\nCREATE DATABASE other;")?;
        let links = [Proxy::new(), Proxy::new()];
        let place = |name, database| Place::new(dir, name, &server, database);
        let node = place("dc1", "one").pulling("dc2", &links[0].addr).start(None)?;
        links[1].aim(Some(&node.addr.to_string()));
        let peer = place("dc2", "other").pulling("dc1", &links[1].addr).start(None)?;
        links[0].aim(Some(&peer.addr.to_string()));
        Ok(Self { node, peer, links, rate, server })
    }

    fn set(&self, link: Link) {
        for one in &self.links {
            one.set(link);
        }
    }

    /// Waits until nothing is left of an earlier turn.
    fn heal(&self) -> Outcome<()> {
        self.set(Link::Open);
        for node in [&self.node, &self.peer] {
            hears(node)?;
        }
        drained(&self.node)?;
        caught_up(&self.peer, self.node.health()?.accepted)
    }

    /// Load while the link is so.
    fn turn(&self, link: Link, time: Duration) -> Outcome<Times> {
        self.heal()?;
        let mut client = Client::connect(self.peer.addr)?;
        let before = pulled(&mut client)?;
        self.set(link);
        let times = load(self.node.addr, self.rate, time)?;
        let passed = pulled(&mut client)? > before;
        if passed == (link == Link::Open) {
            return Ok(times);
        }
        Err(format!("the link was {link:?}, and events passed: {passed}").into())
    }
}

/// Single events at that rate.
fn load(addr: SocketAddr, rate: u64, time: Duration) -> Outcome<Times> {
    let every = Duration::from_secs(1) * CONNECTIONS / u32::try_from(rate)?;
    let clock = Clock::system();
    let shared = &clock;
    let posted: Vec<io::Result<Times>> = std::thread::scope(|scope| {
        let begin = |nth: u32| {
            let span = (every * nth / CONNECTIONS, time);
            scope.spawn(move || post(addr, shared, every, span))
        };
        let running: Vec<_> = (0..CONNECTIONS).map(begin).collect();
        let panicked = |_| Err(io::Error::other("a connection's thread panicked"));
        running.into_iter().map(|one| one.join().unwrap_or_else(panicked)).collect()
    });
    let posted: Vec<Times> = posted.into_iter().collect::<io::Result<_>>()?;
    let mut times = posted.concat();
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// One connection: an event when its time has come, from `span.0` to `span.1`.
fn post(
    addr: SocketAddr,
    clock: &Clock,
    every: Duration,
    span: (Duration, Duration),
) -> io::Result<Times> {
    let mut client = Client::connect(addr)?;
    let request = client.post(&event::body(1));
    let (mut due, end) = span;
    let mut times = Times::new();
    while due < end {
        if let Some(wait) = due.checked_sub(clock.mono()) {
            std::thread::sleep(wait);
        }
        client.accepted(&request)?;
        times.push(clock.mono().saturating_sub(due).as_secs_f64() * 1e3);
        due += every;
    }
    Ok(times)
}

/// Of each round, the time that so large a part stayed below.
fn parts(rounds: &[Times], part: f64) -> Vec<f64> {
    rounds.iter().map(|times| share(times, part)).collect()
}

fn print(rate: u64, rounds: &[Vec<Times>]) {
    let rate = short(rate as f64);
    println!("\nR7: time to the 202 of single events, {rate} a second, in milliseconds");
    println!("{:<44} {:>18} {:>21} {:>21} {:>7}", "", "p50", "p99", "ratio of p99", "goal");
    let millis = |value: f64| format!("{value:.2}");
    let Some(connected) = rounds.first() else { return };
    let floor = parts(connected, 0.99);
    for ((name, link), turn) in TURNS.iter().zip(rounds) {
        let p99 = parts(turn, 0.99);
        let ratios = Spread::of(p99.iter().zip(&floor).map(|(ours, floor)| ours / floor).collect());
        let (shown, goal) = match link {
            Link::Open => (String::new(), String::new()),
            _ => {
                let word = if ratios.median <= MOST { "reached" } else { "missing" };
                (ratios.show(ratio), format!("<={MOST:.2} {word}"))
            }
        };
        let p50 = Spread::of(parts(turn, 0.5));
        println!(
            "{name:<44} {:>18} {:>21} {shown:>21} {goal:>7}",
            p50.show(millis),
            Spread::of(p99).show(millis)
        );
    }
}
