//! One connection: what phase it is in, until when that may last, and the stream that keeps note of
//! it.
//!
//! Does not know routes. hyper alone would start the header's deadline when the connection falls
//! idle, and has none for writing; so the phases are told apart here, and one reaper looks at all
//! connections instead of a timer for each.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::clock::Clock;

/// The time that each phase may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the first byte of a request (or the connection's beginning) to the end of its headers.
    pub header: Duration,
    /// Without a byte, between requests; also for taking an answer.
    pub idle: Duration,
}

const HEADER: u8 = 0;
const SERVING: u8 = 1;
const IDLE: u8 = 2;
const NEVER: u64 = u64::MAX;

/// A connection's phase.
pub struct Conn {
    clock: Clock,
    deadlines: Deadlines,
    phase: AtomicU8,
    /// By the monotonic clock, in milliseconds.
    due: AtomicU64,
    /// An answer was given before the request's body was read.
    pub early: AtomicBool,
    /// Rung when the connection is to end: at once where it is overdue, else when its request is done.
    pub bell: Notify,
    overdue: AtomicBool,
    finishing: AtomicBool,
}

impl Conn {
    fn new(clock: Clock, deadlines: Deadlines) -> Self {
        let conn = Self {
            clock,
            deadlines,
            phase: AtomicU8::new(HEADER),
            due: AtomicU64::new(NEVER),
            early: AtomicBool::new(false),
            bell: Notify::new(),
            overdue: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
        };
        conn.due_in(deadlines.header);
        conn
    }

    fn due_in(&self, time: Duration) {
        let at = self.clock.mono() + time;
        self.due.store(u64::try_from(at.as_millis()).unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// A whole request head has come; the handler has deadlines of its own.
    pub fn serving(&self) {
        self.phase.store(SERVING, Ordering::Relaxed);
        self.due.store(NEVER, Ordering::Relaxed);
    }

    /// The answer is made: it must be taken, and the next request may come, within the idle time.
    pub fn served(&self) {
        self.phase.store(IDLE, Ordering::Relaxed);
        self.due_in(self.deadlines.idle);
    }

    fn received(&self) {
        if self.phase.load(Ordering::Relaxed) == IDLE {
            self.phase.store(HEADER, Ordering::Relaxed);
            self.due_in(self.deadlines.header);
        }
    }

    /// Whether a deadline has passed and, now that the stream was looked at once more, nothing has
    /// come: on a busy machine bytes may have waited for us, not we for them.
    pub fn expired(&self) -> bool {
        if !self.overdue.swap(false, Ordering::Relaxed) {
            return false;
        }
        let now = u64::try_from(self.clock.mono().as_millis()).unwrap_or(NEVER);
        self.due.load(Ordering::Relaxed) <= now
    }

    /// Whether it is to end when its request is done.
    pub fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Relaxed)
    }
}

/// All open connections.
#[derive(Default)]
pub struct Conns {
    open: Mutex<(u64, HashMap<u64, Arc<Conn>>)>,
}

/// Takes its connection out of the list when dropped.
pub struct Entry {
    /// The connection.
    pub conn: Arc<Conn>,
    all: Arc<Conns>,
    id: u64,
}

impl Conns {
    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Conn>>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection.
    pub fn enter(self: &Arc<Self>, clock: Clock, deadlines: Deadlines) -> Entry {
        let conn = Arc::new(Conn::new(clock, deadlines));
        let mut open = self.lock();
        let id = open.0;
        open.0 += 1;
        open.1.insert(id, conn.clone());
        Entry { conn, all: self.clone(), id }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.lock().1.len()
    }

    /// Rings the bell of every connection whose deadline has passed.
    pub fn reap(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(NEVER);
        for conn in self.lock().1.values() {
            if conn.due.load(Ordering::Relaxed) <= now
                && !conn.overdue.swap(true, Ordering::Relaxed)
            {
                conn.bell.notify_one();
            }
        }
    }

    /// Asks every connection to end when its request is done.
    pub fn finish(&self) {
        for conn in self.lock().1.values() {
            conn.finishing.store(true, Ordering::Relaxed);
            conn.bell.notify_one();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.lock().1.remove(&self.id);
    }
}

/// A stream that tells its connection when bytes come.
pub struct NotedIo {
    stream: TokioIo<TcpStream>,
    conn: Arc<Conn>,
}

impl NotedIo {
    /// Around an accepted stream.
    pub fn new(stream: TcpStream, conn: Arc<Conn>) -> Self {
        Self { stream: TokioIo::new(stream), conn }
    }

    /// The bare stream.
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}

impl Read for NotedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        // the cursor is consumed by the inner stream, so what it took is seen by what is left
        // SAFETY: only the length is looked at; nothing is initialised or read through the slice.
        #[allow(unsafe_code)]
        let taken = {
            let slice = unsafe { buf.as_mut() };
            let mut inner = hyper::rt::ReadBuf::uninit(slice);
            match Pin::new(&mut self.stream).poll_read(cx, inner.unfilled()) {
                Poll::Ready(Ok(())) => inner.filled().len(),
                other => return other,
            }
        };
        debug_assert!(taken <= before);
        // SAFETY: the inner stream has initialised and filled exactly `taken` bytes of this buffer.
        #[allow(unsafe_code)]
        unsafe {
            buf.advance(taken);
        }
        if taken > 0 {
            self.conn.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for NotedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
