//! P6: the time from the 202 of one node to the row in the other node's SQL, while nothing else
//! happens; a random one of twenty channels each time.

use std::time::Duration;

use replicon::clock::Clock;

use crate::client::Client;
use crate::pair::{Place, drained, hears};
use crate::server::Server;
use crate::settings::{Outcome, clear, scratch};

const CHANNELS: usize = 20;
/// The goals, in milliseconds.
const MEDIAN: f64 = 5.0;
const MOST: f64 = 20.0;
/// So long nothing happens before an event.
const PAUSE: Duration = Duration::from_millis(30);
/// An event that is not there by then is lost.
const LOST: Duration = Duration::from_secs(10);

/// Measures it for so many seconds and prints its line.
pub fn run(seconds: u64) -> Outcome<()> {
    let dir = scratch()?;
    let server = Server::start_with(dir.path(), &[])?;
    let mut admin = server.psql("postgres")?;
    admin.run("CREATE DATABASE origin;\nCREATE DATABASE peer;")?;
    let mut channels = "general:\n  api_keys: [key-abc123]\nchannels:\n".to_owned();
    for nth in 0..CHANNELS {
        channels.push_str(&format!("  c{nth}:\n    mode: raw_only\n"));
    }
    let source = Place::new(dir.path(), "dc1", &server, "origin").start(Some(&channels))?;
    let place = Place::new(dir.path(), "dc2", &server, "peer");
    let peer = place.pulling("dc1", &source.addr.to_string()).start(Some(&channels))?;
    hears(&peer)?;
    let mut psql = server.psql("peer")?;
    let mut client = Client::connect(source.addr)?;
    let clock = Clock::system();
    let (mut times, mut dice) = (Vec::new(), 0x9E37_79B9_7F4A_7C15_u64);
    // the first ones make everything warm, and are not counted
    let mut posted = 0;
    while clock.mono() < Duration::from_secs(seconds) {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        std::thread::sleep(PAUSE);
        let channel = dice % CHANNELS as u64;
        let seq = post(&mut client, &format!("c{channel}"))?;
        let accepted = clock.mono();
        let asked =
            format!("SELECT 1 FROM events_raw WHERE origin_dc = 'dc1' AND origin_seq = {seq};");
        while psql.run(&asked)?.is_empty() {
            if clock.mono() - accepted > LOST {
                return Err(format!("event {seq} is not there after {LOST:?}").into());
            }
        }
        posted += 1;
        if posted > CHANNELS {
            times.push((clock.mono() - accepted).as_secs_f64() * 1e3);
        }
    }
    drained(&source)?;
    print(times);
    drop((psql, admin));
    for node in [peer, source] {
        node.end(libc::SIGTERM)?;
    }
    drop(server);
    clear(dir)
}

/// Posts one event; its seq.
fn post(client: &mut Client, channel: &str) -> Outcome<u64> {
    let body = "{\"n\":1}";
    let request = format!(
        "POST /ingress/{channel}/add HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        crate::child::KEY,
        body.len()
    );
    let answer = client.exchange(request.as_bytes())?;
    let json: serde_json::Value = serde_json::from_slice(answer.body)?;
    json["first_seq"].as_u64().ok_or_else(|| format!("not accepted: {json}").into())
}

/// The time that so large a share of all stays below, of times in rising order.
pub fn share(times: &[f64], share: f64) -> f64 {
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn print(mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let (median, most) = (share(&times, 0.5), share(&times, 0.99));
    let word = if median <= MEDIAN && most <= MOST { "reached" } else { "missing" };
    println!("\nP6: from 202 to the row in the other node's SQL, idle, one of {CHANNELS} channels");
    println!(
        "median {median:.2} ms (<= {MEDIAN}), 99 % {most:.2} ms (<= {MOST}), {} events: {word}",
        times.len()
    );
}
