//! The HTTP client of one peer: two kept connections, one for the held request and one for the rest.
//!
//! Follows no redirects, believes no length, and reads no more than it has room for. Its time limit
//! counts from the last byte. Does not know what is asked for, nor what an answer means.

mod link;
mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::pull::Failure;
use super::wire::{
    self, Ask, Caller, Changed, Described, Fault, PAGES_TYPE, TOKEN_HEADER, TURN_HEADER,
};
use super::{Room, Source};
use crate::clock::Clock;
use crate::event::ChannelName;
use link::Link;
use pages::HttpPages;

pub use link::{Address, BadAddress, Tls, tls};

/// The most bytes of an answer that is no page.
const SMALL_BYTES: usize = 4 << 20;
/// The longest that a peer may hold the request for changes.
const MOST_HELD: Duration = Duration::from_secs(20);
/// A connection that took longer to make leads far away: pages are compressed.
const FAR: Duration = Duration::from_millis(5);

/// How a peer is reached.
#[derive(Clone)]
pub struct Options {
    /// Where it is.
    pub address: Address,
    /// `replication_token`.
    pub token: HeaderValue,
    /// For https: what makes TLS.
    pub tls: Option<Tls>,
    /// `replication_http_timeout_ms`: the longest silence.
    pub timeout: Duration,
    /// The largest page: one event as large as our own door would take, and a usual page.
    pub most_page: usize,
    /// Room for pages, shared by all peers.
    pub room: Room,
    /// The time.
    pub clock: Clock,
}

/// A peer over HTTP.
pub struct HttpPeer {
    options: Options,
    held: Link,
    asked: Link,
    bytes: Arc<AtomicU64>,
    far: AtomicBool,
    /// The number of the next request.
    turn: AtomicU64,
}

impl HttpPeer {
    /// Nothing is connected before the first request.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let link = || Link::new(options.address.clone(), options.tls.clone());
        let (held, asked) = (link(), link());
        // numbers of an earlier process are not taken for ours
        let turn = AtomicU64::new(u64::try_from(options.clock.wall().0).unwrap_or(0));
        Self { options, held, asked, bytes: Arc::default(), far: AtomicBool::new(false), turn }
    }

    fn request(&self, path: &str, turn: u64) -> Result<Request<Empty<Bytes>>, Failure> {
        let Options { address, token, .. } = &self.options;
        let built = Request::get(format!("{}{path}", address.prefix))
            .header(HOST, address.authority.as_str())
            .header(USER_AGENT, concat!("replicon/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .header(HeaderName::from_static(TOKEN_HEADER), token.clone())
            .header(HeaderName::from_static(TURN_HEADER), turn)
            .body(Empty::new());
        // the token is not in the text of such an error
        built.map_err(|_| Failure::Lost("no request can be made of its address".to_owned()))
    }

    /// Sends a request; the head of its answer, which must be 200. It may take `extra` longer than
    /// the usual silence.
    async fn ask(
        &self,
        link: &Link,
        path: &str,
        extra: Duration,
    ) -> Result<Response<Incoming>, Failure> {
        let limit = self.options.timeout;
        let mut fresh = false;
        loop {
            let started = self.options.clock.mono();
            let connection = tokio::time::timeout(limit, link.connection(fresh)).await;
            let mut connection = match connection {
                Ok(connection) => connection.map_err(Failure::Lost)?,
                Err(_) => return Err(Failure::Lost(unreachable_text(limit))),
            };
            if connection.is_new {
                let took = self.options.clock.mono().saturating_sub(started);
                self.far.store(took > FAR, Ordering::Relaxed);
            }
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let sent = connection.sender.send_request(self.request(path, turn)?);
            let answered = tokio::time::timeout(limit + extra, sent).await;
            match answered {
                Err(_) => return Err(Failure::TimedOut(limit + extra)),
                Ok(Ok(response)) => {
                    let theirs = response.headers().get(TURN_HEADER);
                    if theirs.is_some_and(|theirs| *theirs != HeaderValue::from(turn)) {
                        // a connection that is out of step is not kept
                        return Err(Failure::Fault(Fault::Misplaced));
                    }
                    link.keep(connection.sender);
                    return judged(response);
                }
                // one that was kept may have been closed meanwhile: once more, on a new one
                Ok(Err(_)) if !connection.is_new && !fresh => fresh = true,
                Ok(Err(e)) => return Err(Failure::Lost(format!("no answer: {}", link::told(&e)))),
            }
        }
    }

    async fn small<T: DeserializeOwned>(
        &self,
        link: &Link,
        path: &str,
        extra: Duration,
    ) -> Result<T, Failure> {
        let response = self.ask(link, path, extra).await?;
        let mut body = response.into_body();
        let mut whole = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(self.options.timeout, body.frame()).await;
            let frame = frame.map_err(|_| Failure::TimedOut(self.options.timeout))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|e| Failure::Cut(link::told(&e)))?;
            let Ok(data) = frame.into_data() else { continue };
            self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            if whole.len() + data.len() > SMALL_BYTES {
                return Err(Failure::Fault(Fault::TooLarge(SMALL_BYTES)));
            }
            whole.extend_from_slice(&data);
        }
        Ok(wire::small(&whole)?)
    }
}

fn unreachable_text(limit: Duration) -> String {
    format!("no connection within {} ms", limit.as_millis())
}

fn judged(response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Unauthorized),
        StatusCode::NOT_FOUND => Err(Failure::NotFound),
        StatusCode::SERVICE_UNAVAILABLE => Err(Failure::Unavailable),
        other => Err(Failure::Status(other.as_u16())),
    }
}

impl Source for HttpPeer {
    type Pages = HttpPages;

    async fn events(&self, ask: &Ask, caller: &Caller) -> Result<HttpPages, Failure> {
        let zstd = self.far.load(Ordering::Relaxed);
        let path = ask.path(caller, zstd);
        let response = self.ask(&self.asked, &path, Duration::ZERO).await?;
        let framed = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == PAGES_TYPE);
        let bytes = self.bytes.clone();
        Ok(HttpPages::new(response.into_body(), ask.clone(), framed, &self.options, bytes))
    }

    async fn changes(&self, caller: &Caller, after: Option<u64>) -> Result<Changed, Failure> {
        let wait = self.hold();
        let path = wire::changes_path(caller, after, wait.as_millis());
        Ok(self.small::<Changed>(&self.held, &path, wait).await?.checked()?)
    }

    async fn schema(&self, channel: &ChannelName) -> Result<Described, Failure> {
        let path = wire::schema_path(channel);
        Ok(self.small::<Described>(&self.asked, &path, Duration::ZERO).await?.checked()?)
    }

    fn hold(&self) -> Duration {
        // well below our own limit, which begins to count when the request is sent
        (self.options.timeout / 2).min(MOST_HELD)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
