//! A TCP proxy whose link a test turns: cut, silent, far, slow, or broken off in the middle.
//!
//! Knows nothing of what passes through it.

use std::io::{Read, Write};
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
}

struct Shared {
    link: Mutex<Link>,
    target: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Shared {
    fn link(&self) -> Link {
        *self.link.lock().unwrap()
    }

    fn ended(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || self.link() == Link::Cut
    }
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
const LOOK: Duration = Duration::from_millis(5);
/// What is on its way at most.
const PIECES: usize = 4_096;

impl Proxy {
    /// Open, and without a target: connections are closed.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            link: Mutex::new(Link::Open),
            target: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        thread::spawn(move || accept(&listener, &theirs));
        Self { addr, shared }
    }

    /// Connections go there from now on.
    pub fn aim(&self, addr: &str) {
        *self.shared.target.lock().unwrap() = Some(addr.to_owned());
    }

    /// The link is so from now on.
    pub fn set(&self, link: Link) {
        *self.shared.link.lock().unwrap() = link;
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
        let (Ok(client), false) = (stream, shared.ended()) else { continue };
        let target = shared.target.lock().unwrap().clone();
        let Some(Ok(server)) = target.map(TcpStream::connect) else { continue };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(LOOK)).unwrap();
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

fn is_timeout(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
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
