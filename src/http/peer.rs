//! What peers ask: `/internal/events`, `/internal/changes`, `/internal/schema`. Checks in order: 404
//! where no token is configured, 401, 404 where the storage cannot be read by identity, 400, 404, 503.
//!
//! Reads what it serves through one small role; knows no storage and no watermark.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_compression::Level;
use async_compression::tokio::bufread::ZstdEncoder;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::App;
use super::error::{ApiError, json};
use crate::channel::auth::KeyDigest;
use crate::replicate::serve::{Served, Serving, Unserved};
use crate::replicate::wire::{self, BadParameter, PAGES_TYPE, Request, TOKEN_HEADER, TURN_HEADER};
use crate::task;

/// Longest that a request for changes is held.
const MOST_HELD: Duration = Duration::from_secs(30);
/// A held request looks so often whether the node stops.
const LOOK: Duration = Duration::from_secs(1);
/// An answer of several pages ends after so long, at the next page: a slow link takes its answers in
/// pieces, and no answer outlives the connection's deadlines.
const MOST_STREAMED: Duration = Duration::from_secs(10);
/// Digits of a request's number.
const MOST_TURN: usize = 20;
/// Pages smaller than this are not worth compressing.
const SMALL_PAGE: usize = 1 << 10;

/// Who may ask, and what is served.
pub struct Peers {
    /// `replication_token`; `None` where none is configured.
    pub token: Option<KeyDigest>,
    /// What is served; `None` where the storage cannot be read by identity.
    pub serving: Option<Arc<dyn Serving>>,
}

impl Peers {
    /// The role, for whoever has the token.
    fn open(&self, headers: &HeaderMap) -> Result<&Arc<dyn Serving>, ApiError> {
        let token = self.token.as_ref().ok_or(ApiError::NotFound)?;
        let presented = headers.get(TOKEN_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
        if !token.is(presented) {
            return Err(ApiError::PeerUnauthorized);
        }
        self.serving.as_ref().ok_or(ApiError::NoEventStore)
    }
}

impl From<Unserved> for ApiError {
    fn from(e: Unserved) -> Self {
        match e {
            Unserved::UnknownChannel => Self::ChannelNotFound,
            Unserved::NotReady(why) => Self::NotReady(why),
        }
    }
}

impl From<BadParameter> for ApiError {
    fn from(e: BadParameter) -> Self {
        Self::Parameter(e.to_string())
    }
}

/// Events of one channel.
pub async fn events(State(app): State<Arc<App>>, request: HttpRequest) -> Response {
    let (head, _) = request.into_parts();
    fresh(&head, answer_events(&app, &head).await)
}

/// What became safe, now or within the time that the caller waits.
pub async fn changes(State(app): State<Arc<App>>, request: HttpRequest) -> Response {
    let (head, _) = request.into_parts();
    fresh(&head, answer_changes(&app, &head).await)
}

/// A channel's schema.
pub async fn schema(State(app): State<Arc<App>>, request: HttpRequest) -> Response {
    let (head, _) = request.into_parts();
    fresh(&head, answer_schema(&app, &head))
}

/// No answer is good for another question, nor for the same one a moment later.
fn fresh(asked: &Parts, answer: Result<Response, ApiError>) -> Response {
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(turn) = asked.headers.get(TURN_HEADER).filter(|turn| turn.len() <= MOST_TURN) {
        headers.insert(HeaderName::from_static(TURN_HEADER), turn.clone());
    }
    response
}

fn query(head: &Parts) -> &str {
    head.uri.query().unwrap_or_default()
}

fn shown<T: serde::Serialize>(answer: &T) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(answer).map_err(|e| ApiError::Internal(e.to_string()))?;
    Ok(json(StatusCode::OK, body))
}

async fn answer_events(app: &App, head: &Parts) -> Result<Response, ApiError> {
    let serving = app.peers.open(&head.headers)?;
    let request = Request::parse(query(head))?;
    let first = serving.page(&request).await?;
    let Some(pages) = request.pages else {
        return Ok(json(StatusCode::OK, first.body.to_vec()));
    };
    let (sender, receiver) = mpsc::channel(1);
    let serving = serving.clone();
    task::spawn(stream(serving, request, first, pages, sender));
    let mut response = Response::new(Body::new(Streamed(receiver)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PAGES_TYPE));
    Ok(response)
}

/// Sends pages until there are no more, enough were sent, or nobody takes them.
async fn stream(
    serving: Arc<dyn Serving>,
    mut request: Request,
    first: Served,
    pages: usize,
    sender: mpsc::Sender<Bytes>,
) {
    let zstd = request.zstd;
    let mut page = first;
    let sent = tokio::time::timeout(MOST_STREAMED, async {
        for left in (0..pages).rev() {
            let Served { body, next, more } = page;
            if sender.send(framed(body, zstd).await).await.is_err() {
                return false;
            }
            if !more || left == 0 {
                break;
            }
            (request.from, request.count) = (next, false);
            page = match serving.page(&request).await {
                Ok(page) => page,
                // the caller asks again, and is told then
                Err(_) => break,
            };
        }
        true
    });
    // a page that was begun when the time was over is not sent: what was sent is whole
    if sent.await.unwrap_or(true) {
        let _ = sender.send(Bytes::from(wire::line(0, 0))).await;
    }
}

/// A page behind its line, compressed where that makes it smaller.
async fn framed(body: Bytes, zstd: bool) -> Bytes {
    let whole = body.len();
    let mut packed = Vec::new();
    if zstd && whole >= SMALL_PAGE {
        // a slice is read without waiting, and a vector takes all that is written
        let mut encoder = ZstdEncoder::with_quality(&body[..], Level::Fastest);
        if encoder.read_to_end(&mut packed).await.is_err() || packed.len() >= whole {
            packed.clear();
        }
    }
    let page = if packed.is_empty() { &body[..] } else { &packed[..] };
    let mut out = wire::line(page.len(), whole);
    out.extend_from_slice(page);
    Bytes::from(out)
}

/// A body that is written while it is sent.
struct Streamed(mpsc::Receiver<Bytes>);

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

async fn answer_changes(app: &App, head: &Parts) -> Result<Response, ApiError> {
    let serving = app.peers.open(&head.headers)?;
    let query = query(head);
    let caller = wire::caller_of(query)?;
    let after = wire::whole(query, "after")?;
    let wait = Duration::from_millis(wire::whole(query, "wait_ms")?.unwrap_or(0)).min(MOST_HELD);
    // registered before the look, so that nothing falls between them
    let mut bell = serving.bell();
    let mut waited = Duration::ZERO;
    loop {
        bell.borrow_and_update();
        let changed = serving.changes(caller.as_ref(), after).await?;
        let nothing = changed.channels.as_ref().is_some_and(Vec::is_empty);
        if !nothing || waited >= wait || app.health.is_stopping() {
            return shown(&changed);
        }
        let turn = LOOK.min(wait - waited);
        match tokio::time::timeout(turn, bell.changed()).await {
            Ok(Ok(())) => {}
            // nobody rings any more: the node is going down
            Ok(Err(_)) => return shown(&changed),
            Err(_) => waited += turn,
        }
    }
}

fn answer_schema(app: &App, head: &Parts) -> Result<Response, ApiError> {
    let serving = app.peers.open(&head.headers)?;
    let name = query(head).split('&').find_map(|pair| pair.strip_prefix("channel="));
    shown(&serving.schema(name.unwrap_or_default())?)
}
