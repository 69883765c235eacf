//! Numbered events, a thousand a request over a few connections, as fast as they are taken.
//!
//! Does not know what becomes of them. A number is never sent twice, and each connection sends its own
//! in rising order, one request after the other.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use replicon::clock::Clock;

use crate::client::Client;
use crate::event::{EVENT_BYTES, event};
use crate::settings::Outcome;

/// Events a request: the default of `max_batch_items`.
pub const BATCH: usize = 1000;
/// How many connections load at once.
pub const CONNECTIONS: usize = 8;
/// Above all numbers: as they are sent, all have the same number of digits.
pub const MOST: usize = 90_000_000;

/// The first number as it is sent.
const FIRST: usize = 10_000_000;
const DIGITS: usize = 8;

/// An event as it is sent, and where its number stands in it.
pub struct Pattern {
    /// The number of this one is 0.
    text: String,
    at: usize,
}

impl Pattern {
    /// Of the shared events.
    pub fn new() -> Self {
        let text = event(FIRST);
        let at = text.find("\"n\":").map_or(0, |at| at + 4);
        Self { text, at }
    }

    /// The event of that number.
    pub fn of(&self, number: usize) -> Vec<u8> {
        let mut bytes = self.text.clone().into_bytes();
        self.set(&mut bytes, number);
        bytes
    }

    /// The number of an event; `None` where it is not, byte for byte, one that was sent.
    pub fn number(&self, bytes: &[u8]) -> Option<usize> {
        let pattern = self.text.as_bytes();
        let after = self.at + DIGITS;
        let same = bytes.len() == pattern.len()
            && bytes[..self.at] == pattern[..self.at]
            && bytes[after..] == pattern[after..];
        let digits = bytes.get(self.at..after).filter(|_| same)?;
        std::str::from_utf8(digits).ok()?.parse::<usize>().ok()?.checked_sub(FIRST)
    }

    fn set(&self, bytes: &mut [u8], number: usize) {
        let mut left = FIRST + number;
        for digit in bytes[self.at..self.at + DIGITS].iter_mut().rev() {
            *digit = b"0123456789"[left % 10];
            left /= 10;
        }
    }
}

/// A request of [`BATCH`] events, made once: then only the digits are written over, so that the load
/// generator takes as little as it can of the processor it shares.
struct Request {
    bytes: Vec<u8>,
    pattern: Pattern,
    first_at: usize,
}

impl Request {
    fn new(client: &Client) -> Self {
        let pattern = Pattern::new();
        let body = format!("[{}]", vec![pattern.text.as_str(); BATCH].join(","));
        let bytes = client.post(&body);
        let first_at = bytes.len() - body.len() + 1;
        Self { bytes, pattern, first_at }
    }

    /// The request of the events from that number on.
    fn starting_at(&mut self, number: usize) -> &[u8] {
        for nth in 0..BATCH {
            let at = self.first_at + nth * (EVENT_BYTES + 1);
            self.pattern.set(&mut self.bytes[at..at + EVENT_BYTES], number + nth);
        }
        &self.bytes
    }
}

/// Which connection sends the event of that number.
pub fn connection_of(number: usize) -> usize {
    number / BATCH % CONNECTIONS
}

/// Sends these numbers, in whole requests; events a second.
pub fn load(addr: SocketAddr, numbers: &Range<usize>) -> Outcome<f64> {
    let clock = Clock::system();
    let sent: Vec<io::Result<()>> = std::thread::scope(|scope| {
        let begin = |mine: usize| scope.spawn(move || send(addr, mine, numbers.clone()));
        let running: Vec<_> = (0..CONNECTIONS).map(begin).collect();
        let panicked = |_| Err(io::Error::other("a connection's thread panicked"));
        running.into_iter().map(|one| one.join().unwrap_or_else(panicked)).collect()
    });
    let took = clock.mono();
    for one in sent {
        one?;
    }
    Ok(numbers.len() as f64 / took.as_secs_f64())
}

fn send(addr: SocketAddr, mine: usize, numbers: Range<usize>) -> io::Result<()> {
    let mut client = Client::connect(addr)?;
    let mut request = Request::new(&client);
    for number in numbers.step_by(BATCH).filter(|number| connection_of(*number) == mine) {
        client.accepted(request.starting_at(number))?;
    }
    Ok(())
}
