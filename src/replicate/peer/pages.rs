//! The pages of one answer, read within the room that there is.
//!
//! A page says its length before it comes, so room for it is taken before it is read. A length that is
//! not believed, a page that grows beyond its own, and one that never ends are met here. Does not know
//! what pages mean, but for the checks of [`wire::decode`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_compression::tokio::bufread::ZstdDecoder;
use async_compression::zstd::DParameter;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::sync::OwnedSemaphorePermit;

use super::Options;
use super::link::told;
use crate::clock::Clock;
use crate::replicate::pull::Failure;
use crate::replicate::wire::{self, Answer, Ask, Fault, Line};
use crate::replicate::{Pages, Received, Room};

/// The largest window that a zstd frame may ask for: 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;
/// A page may take so many silences in all, however steadily it drips.
const SILENCES: u32 = 30;

/// An answer under way.
pub struct HttpPages {
    body: Incoming,
    /// What the next page answers.
    ask: Ask,
    framed: bool,
    timeout: Duration,
    most: usize,
    room: Room,
    clock: Clock,
    bytes: Arc<AtomicU64>,
    /// What came and is not used yet.
    buffer: BytesMut,
    /// The line of the page that is being read, and the room that it takes.
    line: Option<(Line, Option<OwnedSemaphorePermit>)>,
    /// When the last byte came, and when the page that is being read was begun.
    heard: Duration,
    begun: Duration,
    ended: bool,
}

impl HttpPages {
    /// Of an answer whose head was good.
    pub(super) fn new(
        body: Incoming,
        ask: Ask,
        framed: bool,
        options: &Options,
        bytes: Arc<AtomicU64>,
    ) -> Self {
        let now = options.clock.mono();
        Self {
            body,
            ask,
            framed,
            timeout: options.timeout,
            most: options.most_page,
            room: options.room.clone(),
            clock: options.clock.clone(),
            bytes,
            buffer: BytesMut::new(),
            line: None,
            heard: now,
            begun: now,
            ended: false,
        }
    }

    /// Takes what comes next into the buffer; `false` at the end of the body.
    async fn more(&mut self) -> Result<bool, Failure> {
        let late = || Failure::TimedOut(self.timeout);
        let now = self.clock.mono();
        let left = self.timeout.saturating_sub(now.saturating_sub(self.heard));
        if now.saturating_sub(self.begun) > self.timeout.saturating_mul(SILENCES) {
            return Err(late());
        }
        let frame = tokio::time::timeout(left, self.body.frame()).await;
        let Some(frame) = frame.map_err(|_| late())? else { return Ok(false) };
        let frame = frame.map_err(|e| Failure::Cut(told(&e)))?;
        self.heard = self.clock.mono();
        if let Ok(data) = frame.into_data() {
            self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            self.buffer.extend_from_slice(&data);
        }
        Ok(true)
    }

    /// Waiting for room is no silence of the peer's.
    async fn room(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let room = self.room.take(bytes).await;
        let now = self.clock.mono();
        (self.heard, self.begun) = (now, now);
        room
    }

    /// The next page of several.
    async fn framed(&mut self) -> Result<Option<Received>, Failure> {
        if self.line.is_none() {
            let line = loop {
                if let Some(line) = wire::read_line(&self.buffer)? {
                    break line;
                }
                if !self.more().await? {
                    return Err(Failure::Cut("between two pages".to_owned()));
                }
            };
            if line.wire == 0 {
                self.ended = true;
                self.rest().await;
                return Ok(None);
            }
            if line.whole > self.most {
                return Err(Failure::Fault(Fault::TooLarge(self.most)));
            }
            // both lie in memory for a moment
            let bytes = if line.whole > line.wire { line.whole + line.wire } else { line.whole };
            let room = self.room(bytes).await;
            let _ = self.buffer.split_to(line.bytes);
            self.line = Some((line, room));
        }
        let wire = self.line.as_ref().map_or(0, |(line, _)| line.wire);
        while self.buffer.len() < wire {
            if !self.more().await? {
                return Err(Failure::Cut("in the middle of a page".to_owned()));
            }
        }
        let Some((line, room)) = self.line.take() else { return Ok(None) };
        let page = self.buffer.split_to(line.wire).freeze();
        self.begun = self.clock.mono();
        let page = if line.whole > line.wire { inflate(&page, line.whole).await? } else { page };
        self.decoded(&page, room).map(Some)
    }

    /// The one page of an old peer: its length is not known before.
    async fn plain(&mut self) -> Result<Option<Received>, Failure> {
        if self.line.is_none() {
            let room = self.room(self.most).await;
            self.line = Some((Line { bytes: 0, wire: 0, whole: 0 }, room));
        }
        while self.more().await? {
            if self.buffer.len() > self.most {
                return Err(Failure::Fault(Fault::TooLarge(self.most)));
            }
        }
        self.ended = true;
        let room = self.line.take().and_then(|(_, room)| room);
        let page = self.buffer.split().freeze();
        self.decoded(&page, room).map(Some)
    }

    fn decoded(
        &mut self,
        page: &Bytes,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Received, Failure> {
        let answer: Answer = wire::decode(&self.ask, page)?;
        self.ask.from = answer.next;
        self.ask.count = false;
        Ok(Received { answer, room })
    }

    /// Reads the end of the body, so that the connection can be kept; what is not there at once is not
    /// waited for.
    async fn rest(&mut self) {
        let short = Duration::from_millis(200);
        let _ = tokio::time::timeout(short, async {
            while let Some(Ok(frame)) = self.body.frame().await {
                if frame.data_ref().is_some_and(|data| !data.is_empty()) {
                    return;
                }
            }
        })
        .await;
    }
}

impl Pages for HttpPages {
    async fn next(&mut self) -> Result<Option<Received>, Failure> {
        if self.ended {
            return Ok(None);
        }
        if self.framed { self.framed().await } else { self.plain().await }
    }
}

/// Inflates a page that must hold exactly so many bytes. Never waits: nothing is lost half-way.
async fn inflate(page: &[u8], whole: usize) -> Result<Bytes, Failure> {
    let garbled = || Failure::Fault(Fault::Garbled("zstd".to_owned()));
    let window = DParameter::window_log_max(ZSTD_WINDOW_LOG);
    let decoder = ZstdDecoder::with_params(page, &[window]);
    let mut out = Vec::with_capacity(whole + 1);
    // one byte more shows a page that is longer than it says
    let most = u64::try_from(whole).unwrap_or(u64::MAX).saturating_add(1);
    let mut decoder = decoder.take(most);
    decoder.read_to_end(&mut out).await.map_err(|_| garbled())?;
    if out.len() == whole { Ok(Bytes::from(out)) } else { Err(garbled()) }
}
