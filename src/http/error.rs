//! The only place where a status code is chosen.
//!
//! Does not know how a request came or what it said.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::ingest::Refused;
use crate::json::Violation;
use crate::queue::AppendError;

/// Why a request was not served.
#[derive(Debug)]
pub enum ApiError {
    /// No such route.
    NotFound,
    /// No such channel, or a disabled one.
    ChannelNotFound,
    /// The route takes other methods.
    Method(&'static str),
    /// No key, or none of this channel's.
    Unauthorized,
    /// No peer's token, or a wrong one.
    PeerUnauthorized,
    /// A parameter that cannot be read.
    Parameter(String),
    /// The storage keeps nothing that can be read by identity.
    NoEventStore,
    /// Larger than `max_body_bytes`.
    TooLarge(usize),
    /// A `Content-Encoding` that is not known.
    Encoding(String),
    /// A compressed body that cannot be inflated.
    Inflate(String),
    /// The body did not come in time.
    BodyTimeout(Duration),
    /// The body ended early.
    BodyBroken,
    /// Too many bytes of bodies are in memory.
    Busy(Duration),
    /// HTTP/1.1 without a `Host`.
    NoHost,
    /// The node is stopping.
    Stopping,
    /// The door refused; the time is when room is expected.
    Refused(Refused, Duration),
    /// More than `http_max_header_bytes` of headers.
    HeadersTooLarge(usize),
    /// Not ready; the reason.
    NotReady(String),
    /// A fault of ours.
    Internal(String),
}

#[derive(Serialize)]
struct Answer<'a> {
    status: &'static str,
    code: &'static str,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<&'static str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    violations: &'a [Shown],
}

#[derive(Serialize)]
struct Shown {
    index: usize,
    pointer: String,
    reason: String,
}

impl From<&Violation> for Shown {
    fn from(v: &Violation) -> Self {
        Self { index: v.index, pointer: v.pointer.clone(), reason: v.reason.clone() }
    }
}

/// Status, code, text, and for 503 whether it is stored.
type Choice = (StatusCode, &'static str, String, Option<&'static str>);

impl ApiError {
    fn choose(&self) -> Choice {
        let (status, code, text) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "no such path".to_owned()),
            Self::ChannelNotFound => (
                StatusCode::NOT_FOUND,
                "channel_not_found",
                "no enabled channel of this name".to_owned(),
            ),
            Self::Method(allow) => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                format!("this path takes {allow}"),
            ),
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "send the channel's key as 'Authorization: Bearer <key>'".to_owned(),
            ),
            Self::TooLarge(most) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the body is larger than max_body_bytes ({most}) after inflation"),
            ),
            Self::Encoding(name) => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                format!("Content-Encoding {name:?} is not known: send gzip, zstd or none"),
            ),
            Self::Inflate(why) => (StatusCode::BAD_REQUEST, "bad_encoding", why.clone()),
            Self::BodyTimeout(most) => (
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                format!(
                    "the body did not arrive within http_body_timeout_ms ({})",
                    most.as_millis()
                ),
            ),
            Self::BodyBroken => {
                (StatusCode::BAD_REQUEST, "body_incomplete", "the body ended early".to_owned())
            }
            Self::HeadersTooLarge(most) => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                format!("the headers are longer than http_max_header_bytes ({most})"),
            ),
            Self::NoHost => {
                (StatusCode::BAD_REQUEST, "no_host", "HTTP/1.1 needs a Host header".to_owned())
            }
            Self::Busy(_) => {
                let text = "http_max_inflight_bytes of bodies are in memory: try again".to_owned();
                return (StatusCode::SERVICE_UNAVAILABLE, "busy", text, Some("no"));
            }
            Self::Stopping => {
                let text = "this node is stopping".to_owned();
                return (StatusCode::SERVICE_UNAVAILABLE, "stopping", text, Some("no"));
            }
            Self::PeerUnauthorized | Self::Parameter(_) | Self::NoEventStore => {
                return self.choose_of_peers();
            }
            Self::NotReady(why) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready", why.clone()),
            Self::Internal(why) => (StatusCode::INTERNAL_SERVER_ERROR, "internal", why.clone()),
            Self::Refused(refused, _) => return choose_refused(refused),
        };
        (status, code, text, None)
    }

    /// What only peers are told.
    fn choose_of_peers(&self) -> Choice {
        let (status, code, text) = match self {
            Self::PeerUnauthorized => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "send replication_token as 'X-Replicon-Token: <token>'",
            ),
            Self::Parameter(why) => (StatusCode::BAD_REQUEST, "bad_parameter", why.as_str()),
            _ => (
                StatusCode::NOT_FOUND,
                "no_event_store",
                "this node cannot serve peers: that takes storage_backend = sqlite, postgres or mysql",
            ),
        };
        (status, code, text.to_owned(), None)
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(Refused::Queue(AppendError::Full { retry_after, .. }), _) => {
                Some(*retry_after)
            }
            Self::Refused(
                Refused::Queue(AppendError::TooLarge { .. }) | Refused::Invalid(_),
                _,
            ) => None,
            Self::Busy(after) | Self::Refused(_, after) => Some(*after),
            Self::Stopping => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Whether the answer is given while the request's body may still be on its way.
    #[must_use]
    pub fn before_body(&self) -> bool {
        !matches!(
            self,
            Self::Inflate(_) | Self::Refused(..) | Self::NotReady(_) | Self::Internal(_)
        )
    }
}

fn choose_refused(refused: &Refused) -> Choice {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match refused {
        Refused::Invalid(violations) => {
            let first = violations.first().map_or("", |v| v.reason.as_str());
            let text = match violations.len() {
                1 => first.to_owned(),
                n => format!("{first} (and {} more)", n - 1),
            };
            (StatusCode::BAD_REQUEST, "invalid", text, None)
        }
        Refused::Queue(e @ AppendError::Full { .. }) => {
            (StatusCode::TOO_MANY_REQUESTS, "queue_full", e.to_string(), None)
        }
        Refused::Queue(e @ AppendError::TooLarge { .. }) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "batch_too_large", e.to_string(), None)
        }
        Refused::Queue(e @ AppendError::Unavailable { .. }) => {
            (unavailable, "unavailable", e.to_string(), Some("no"))
        }
        Refused::Queue(e @ AppendError::Doubt { .. }) => {
            (unavailable, "append_failed", e.to_string(), Some("unknown"))
        }
        Refused::TimedOut(most) => {
            let text = format!(
                "the queue did not answer within enqueue_timeout_ms ({})",
                most.as_millis()
            );
            (unavailable, "enqueue_timeout", text, Some("unknown"))
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code, error, stored) = self.choose();
        let violations: Vec<Shown> = match &self {
            Self::Refused(Refused::Invalid(all), _) => all.iter().map(Shown::from).collect(),
            _ => Vec::new(),
        };
        let answer = Answer { status: "error", code, error, stored, violations: &violations };
        let mut response = json(status, serde_json::to_vec(&answer).unwrap_or_default());
        let headers = response.headers_mut();
        match &self {
            Self::Method(allow) => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Self::Unauthorized => {
                let realm = HeaderValue::from_static("Bearer realm=\"replicon\"");
                headers.insert(WWW_AUTHENTICATE, realm);
            }
            _ => {}
        }
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil() as u64));
        }
        if self.before_body() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A JSON answer; a line feed ends it, for terminals.
pub fn json(status: StatusCode, mut body: Vec<u8>) -> Response {
    body.push(b'\n');
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
