//! One keep-alive connection, blocking: a request, then its whole answer.
//!
//! Reads only what the servers measured here send: answers with a `Content-Length`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any answer takes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection.
pub struct Client {
    addr: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer.
pub struct Answer<'a> {
    /// Its status code.
    pub status: u16,
    /// Its body.
    pub body: &'a [u8],
}

/// Where an answer's parts lie in the buffer.
struct Layout {
    status: u16,
    body_at: usize,
    end: usize,
}

impl Client {
    /// Connects.
    pub fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let buffer = vec![0; 16 << 10];
        Ok(Self { addr, stream, buffer })
    }

    /// The bytes of a request that posts `body`, to be sent as often as one likes.
    pub fn post(&self, body: &str) -> Vec<u8> {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            crate::child::ROUTE,
            self.addr,
            crate::child::KEY,
            body.len()
        );
        (head + body).into_bytes()
    }

    /// Asks for a path.
    pub fn get(&mut self, path: &str) -> io::Result<Answer<'_>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.addr);
        self.exchange(request.as_bytes())
    }

    /// Sends a request and reads its answer.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request)?;
        let mut read = 0;
        let layout = loop {
            if read == self.buffer.len() {
                self.buffer.resize(read * 2, 0);
            }
            match self.stream.read(&mut self.buffer[read..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => read += n,
            }
            match layout(&self.buffer[..read])? {
                Some(layout) if layout.end <= read => break layout,
                _ => {}
            }
        };
        Ok(Answer { status: layout.status, body: &self.buffer[layout.body_at..layout.end] })
    }

    /// Sends a request that must be answered 202.
    pub fn accepted(&mut self, request: &[u8]) -> io::Result<()> {
        let answer = self.exchange(request)?;
        if answer.status == 202 {
            return Ok(());
        }
        let (status, body) = (answer.status, String::from_utf8_lossy(answer.body));
        Err(io::Error::other(format!("answered {status}: {body}")))
    }
}

/// Finds the parts; `None` while the head is not whole.
fn layout(bytes: &[u8]) -> io::Result<Option<Layout>> {
    let Some(head_end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]);
    let odd = || io::Error::other(format!("not an answer with a length: {head}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            value.trim().parse::<usize>().ok()
        } else {
            None
        }
    });
    let body_at = head_end + 4;
    Ok(Some(Layout {
        status: status.ok_or_else(odd)?,
        body_at,
        end: body_at + length.ok_or_else(odd)?,
    }))
}
