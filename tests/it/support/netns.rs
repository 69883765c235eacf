//! Two networks of the kernel's own making, and the wire between them: packets that the test carries from
//! one to the other, late, in one direction only, or not at all; and a plug that can be pulled.
//!
//! The wire is a pair of TUN devices and a thread rather than a veth pair with netem, which not every
//! kernel has. Nothing of it has a name outside: the kernel removes all of it with its last user, however
//! the test ends. Needs root, `/dev/net/tun` and `ip`. Knows nothing of what is tested.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Where the two are to each other; nobody else is there.
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// The device, in either network.
const DEVICE: &str = "wire";
/// The largest packet that a device hands over.
const PACKET_BYTES: usize = 65_536;
/// What is on its way at most, in each direction; more is lost, as in any router.
const PACKETS: usize = 20_000;
/// How often the devices are looked at while nothing passes.
const TICK: Duration = Duration::from_millis(1);

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// Each arrives so long after it was sent.
    After(Duration),
    /// None arrives, and nobody is told: connections stay as they are.
    Nothing,
    /// Only those arrive at once that come from this end, 0 or 1.
    OnlyFrom(usize),
}

impl Passing {
    /// How late a packet from that end arrives; `None` where it does not.
    fn delay(self, from: usize) -> Option<Duration> {
        match self {
            Self::After(delay) => Some(delay),
            Self::OnlyFrom(end) if end == from => Some(Duration::ZERO),
            Self::Nothing | Self::OnlyFrom(_) => None,
        }
    }
}

/// A network of its own. Sockets and processes that are made inside stay there.
pub struct Space {
    net: File,
    /// Its address on the wire.
    pub address: &'static str,
}

impl Space {
    /// Makes one, and the device that is its end of the wire.
    fn make(end: usize) -> Result<(Self, File), String> {
        let (here, there) = (ADDRESSES[end], ADDRESSES[1 - end]);
        let making = thread::spawn(move || {
            unshare().map_err(|e| format!("a network of its own: {e}"))?;
            let net = File::open("/proc/thread-self/ns/net").map_err(|e| e.to_string())?;
            let device = device().map_err(|e| format!("/dev/net/tun: {e}"))?;
            ip(&["link", "set", "lo", "up"])?;
            ip(&["link", "set", DEVICE, "up"])?;
            ip(&["address", "add", here, "peer", there, "dev", DEVICE])?;
            Ok((Self { net, address: here }, device))
        });
        making.join().unwrap()
    }

    /// Does something there, in a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = thread::scope(|scope| {
            let there = scope.spawn(|| {
                enter(&self.net).unwrap();
                work()
            });
            there.join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Pulls the plug, or puts it in: without it there is no way to the other end, and whoever looks
    /// for one is told so at once.
    pub fn plug(&self, in_place: bool) {
        let state = if in_place { "up" } else { "down" };
        self.inside(|| ip(&["link", "set", DEVICE, state]).unwrap());
    }
}

struct Shared {
    passing: Mutex<Passing>,
    stop: AtomicBool,
}

/// Two networks with a wire between them.
pub struct Wire {
    /// Its ends.
    pub ends: [Arc<Space>; 2],
    shared: Arc<Shared>,
    carrier: Option<JoinHandle<()>>,
}

impl Wire {
    /// Everything passes at once; `None`, with a word, where this machine cannot.
    pub fn new() -> Option<Self> {
        match Self::make() {
            Ok(wire) => Some(wire),
            Err(e) => {
                eprintln!("SKIPPED: needs root, /dev/net/tun and ip of iproute2 ({e})");
                None
            }
        }
    }

    fn make() -> Result<Self, String> {
        let ((one, first), (other, second)) = (Space::make(0)?, Space::make(1)?);
        let shared = Arc::new(Shared {
            passing: Mutex::new(Passing::After(Duration::ZERO)),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let carrier = thread::spawn(move || carry(&[first, second], &theirs));
        Ok(Self { ends: [one, other].map(Arc::new), shared, carrier: Some(carrier) })
    }

    /// The wire is so from now on.
    pub fn set(&self, passing: Passing) {
        *self.shared.passing.lock().unwrap() = passing;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Carries packets until it is told to stop.
fn carry(devices: &[File; 2], shared: &Shared) {
    let mut on_their_way = [VecDeque::<(Instant, Vec<u8>)>::new(), VecDeque::new()];
    let mut packet = vec![0; PACKET_BYTES];
    while !shared.stop.load(Ordering::SeqCst) {
        let passing = *shared.passing.lock().unwrap();
        let mut idle = true;
        for (from, waiting) in on_their_way.iter_mut().enumerate() {
            let (mut here, mut there) = (&devices[from], &devices[1 - from]);
            // nothing is to be read of a device without a plug
            while let Ok(bytes @ 1..) = here.read(&mut packet) {
                idle = false;
                if let Some(delay) = passing.delay(from)
                    && waiting.len() < PACKETS
                {
                    waiting.push_back((Instant::now() + delay, packet[..bytes].to_vec()));
                }
            }
            while let Some((_, packet)) = waiting.pop_front_if(|(due, _)| *due <= Instant::now()) {
                idle = false;
                // one that cannot be delivered is lost
                let _ = there.write(&packet);
            }
        }
        if idle {
            thread::sleep(TICK);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn answered(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// This thread is in a network of its own from now on.
fn unshare() -> io::Result<()> {
    // SAFETY: a bare system call without pointers; it moves this thread only.
    #[allow(unsafe_code)]
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    answered(result)
}

/// This thread is in that network from now on.
fn enter(net: &File) -> io::Result<()> {
    // SAFETY: a bare system call on an open descriptor; it moves this thread only.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) };
    answered(result)
}

/// The device of the network that this thread is in, which goes with the descriptor. Reading does not
/// wait.
fn device() -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun")?;
    // packets of IP, and nothing before them
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = libc::c_char::try_from(from).unwrap();
    }
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which lives here.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    answered(result)?;
    Ok(file)
}
