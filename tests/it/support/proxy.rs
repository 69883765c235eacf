//! A TCP proxy whose link a test turns: cut, silent, far, slow, broken off in the middle, or one that
//! mixes up answers.
//!
//! Knows nothing of what passes through it, but where an answer of HTTP ends, for those that it mixes up.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// As it should be.
    Open,
    /// Every connection is reset, and none is taken.
    Cut,
    /// Connections stand, new ones are taken, and nothing passes: half-open.
    Silent,
    /// Every byte takes so long, in each direction.
    Far(Duration),
    /// So many bytes a second to the one who connected.
    Slow(u64),
    /// The connection is reset after so many bytes to the one who connected.
    BreaksAfter(u64),
    /// An answer comes twice: the next request of the same route gets it too, and never its own.
    Doubled,
    /// A request gets one of the last answers to requests of its route, its own or not.
    Reordered,
}

struct Shared {
    link: Mutex<Link>,
    target: Mutex<Option<String>>,
    /// Answers that may be given again, by route.
    answers: Mutex<BTreeMap<String, Kept>>,
    stop: AtomicBool,
}

impl Shared {
    fn link(&self) -> Link {
        *self.link.lock().unwrap()
    }

    /// Nothing passes, and connections end.
    fn cut(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || self.link() == Link::Cut
    }

    /// Answers pass as wholes.
    fn mixes(&self) -> bool {
        !self.cut() && matches!(self.link(), Link::Doubled | Link::Reordered)
    }

    /// Bytes do not pass as they come.
    fn ended(&self) -> bool {
        self.cut() || self.mixes()
    }
}

/// What a route has answered.
#[derive(Default)]
struct Kept {
    /// How often it was asked.
    turn: usize,
    /// Its last answers, the latest at the end.
    answers: VecDeque<Vec<u8>>,
}

/// A listener on a port of its own, whose target may come and go.
pub struct Proxy {
    /// Where it listens.
    pub addr: String,
    shared: Arc<Shared>,
}

/// What was read, and when it may be written.
type Piece = (Instant, Vec<u8>);

/// How often threads look whether the link has changed.
const LOOK: Duration = Duration::from_millis(20);
/// What is on its way at most.
const PIECES: usize = 4_096;
/// How many answers ago the one was that is given out of its order, in turns.
const AGES: [usize; 4] = [0, 3, 2, 1];

impl Proxy {
    /// Open, and without a target: connections are closed.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            link: Mutex::new(Link::Open),
            target: Mutex::new(None),
            answers: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        thread::spawn(move || accept(&listener, &theirs));
        Self { addr, shared }
    }

    /// Connections go there from now on; or nowhere, since a port that is free may be another's next.
    pub fn aim(&self, addr: Option<&str>) {
        *self.shared.target.lock().unwrap() = addr.map(str::to_owned);
    }

    /// The link is so from now on.
    pub fn set(&self, link: Link) {
        *self.shared.link.lock().unwrap() = link;
        self.shared.answers.lock().unwrap().clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // wakes the one that accepts
        let _ = TcpStream::connect(&self.addr);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(client), false) = (stream, shared.cut()) else { continue };
        let target = shared.target.lock().unwrap().clone();
        let Some(Ok(server)) = target.map(TcpStream::connect) else { continue };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(LOOK)).unwrap();
        }
        if shared.mixes() {
            let shared = shared.clone();
            thread::spawn(move || mix(&client, &server, &shared));
            continue;
        }
        pass(&client, &server, shared, false);
        pass(&server, &client, shared, true);
    }
}

/// Two threads for one direction; both end with the link, or with either side.
fn pass(from: &TcpStream, to: &TcpStream, shared: &Arc<Shared>, back: bool) {
    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let (sender, receiver) = sync_channel(PIECES);
    let (reading, writing) = (shared.clone(), shared.clone());
    let (other_from, other_to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || read(from, &sender, &reading));
    thread::spawn(move || {
        write(to, &receiver, &writing, back);
        // a reset, as far as the standard library makes one: nobody takes or gives any more
        let _ = other_from.shutdown(Shutdown::Both);
        let _ = other_to.shutdown(Shutdown::Both);
    });
}

fn read(mut from: TcpStream, sender: &SyncSender<Piece>, shared: &Shared) {
    let mut buffer = vec![0; 16 << 10];
    while !shared.ended() {
        if shared.link() == Link::Silent {
            thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                let far = if let Link::Far(far) = shared.link() { far } else { Duration::ZERO };
                if sender.send((Instant::now() + far, buffer[..n].to_vec())).is_err() {
                    return;
                }
            }
            Err(e) if is_timeout(&e) => {}
            Err(_) => return,
        }
    }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn write(mut to: TcpStream, receiver: &Receiver<Piece>, shared: &Shared, back: bool) {
    let mut written = 0;
    while !shared.ended() {
        let (due, piece) = match receiver.recv_timeout(LOOK) {
            Ok(piece) => piece,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        thread::sleep(due.saturating_duration_since(Instant::now()));
        while shared.link() == Link::Silent && !shared.ended() {
            thread::sleep(LOOK);
        }
        let end = match shared.link() {
            Link::BreaksAfter(most) if back => {
                usize::try_from(most.saturating_sub(written)).unwrap().min(piece.len())
            }
            _ => piece.len(),
        };
        if !write_paced(&mut to, &piece[..end], shared, back) || end < piece.len() {
            return;
        }
        written += end as u64;
    }
}

/// In pieces of a twentieth of a second where the link is slow.
fn write_paced(to: &mut TcpStream, bytes: &[u8], shared: &Shared, back: bool) -> bool {
    let mut left = bytes;
    while !left.is_empty() {
        let n = match shared.link() {
            Link::Slow(rate) if back => {
                thread::sleep(Duration::from_millis(50));
                usize::try_from(rate / 20).unwrap().clamp(1, left.len())
            }
            _ => left.len(),
        };
        if shared.ended() || to.write_all(&left[..n]).is_err() {
            return false;
        }
        left = &left[n..];
    }
    true
}

/// One request after the other, each with an answer that may be another one's. Ends with the link, or
/// with either side.
fn mix(client: &TcpStream, server: &TcpStream, shared: &Shared) {
    let reader = |stream| BufReader::new(Patient { stream, shared });
    let (mut asking, mut answering) = (reader(client), reader(server));
    let mut exchange = || -> io::Result<()> {
        let request = head(&mut asking)?;
        let mut to = server;
        to.write_all(&request)?;
        let given = shared.mixed(&request, answer(&mut answering)?);
        let mut to = client;
        to.write_all(&given)
    };
    while exchange().is_ok() {}
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

impl Shared {
    /// What is given in the place of an answer.
    fn mixed(&self, request: &[u8], answer: Vec<u8>) -> Vec<u8> {
        // the method and the path: what is asked may differ
        let route: Vec<u8> = request.iter().copied().take_while(|b| *b != b'?').collect();
        let route = String::from_utf8_lossy(&route).into_owned();
        let mut all = self.answers.lock().unwrap();
        let Kept { turn, answers } = all.entry(route).or_default();
        match self.link() {
            Link::Doubled => match answers.pop_front() {
                Some(again) => again,
                None => {
                    answers.push_back(answer.clone());
                    answer
                }
            },
            Link::Reordered => {
                let age = AGES[*turn % AGES.len()].min(answers.len());
                *turn += 1;
                answers.push_back(answer);
                if answers.len() > AGES.len() {
                    answers.pop_front();
                }
                answers[answers.len() - 1 - age].clone()
            }
            _ => answer,
        }
    }
}

/// Reads for as long as answers are mixed up.
struct Patient<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.shared.mixes() {
            match self.stream.read(buffer) {
                Err(e) if is_timeout(&e) => {}
                other => return other,
            }
        }
        Ok(0)
    }
}

/// A line with its end.
fn line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line)?;
    if line.ends_with(b"\n") { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The head of a message, with the empty line behind it.
fn head(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(line(from)?);
    }
    Ok(head)
}

/// A whole answer, with a length or in chunks.
fn answer(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut whole = head(from)?;
    let text = String::from_utf8_lossy(&whole).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    if let Some(length) = length {
        let length = length.trim().parse::<usize>().map_err(io::Error::other)?;
        take(from, length, &mut whole)?;
    } else if text.contains("transfer-encoding: chunked") {
        loop {
            let size = line(from)?;
            whole.extend_from_slice(&size);
            let digits = String::from_utf8_lossy(&size).trim().to_owned();
            let size = usize::from_str_radix(&digits, 16).map_err(io::Error::other)?;
            // with the end of the line behind it
            take(from, size + 2, &mut whole)?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(whole)
}

fn take(from: &mut impl BufRead, bytes: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let begun = into.len();
    into.resize(begun + bytes, 0);
    from.read_exact(&mut into[begun..])
}
