//! `POST /ingress/{channel}/add`. Checks in the order that clients rely on: 405, 404, 401, 413, 415,
//! 400; the key before any of the body is read.
//!
//! Does not validate and does not append: the door does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use axum::response::IntoResponse;
use http_body_util::{Either, Full};
use hyper::body::Incoming;

use super::body::{self, Coding, Held};
use super::error::ApiError;
use super::{Answer, App};
use crate::channel::{Channel, auth};
use crate::ingest::Accepted;
use crate::json::Form;

/// The handler.
pub async fn add(app: &App, channel: Option<&Arc<Channel>>, request: Request<Incoming>) -> Answer {
    let label = channel.map_or("", |c| c.name.as_str());
    let response = match serve(app, channel, request).await {
        Ok(accepted) => answer(app, &accepted),
        Err(error) => {
            app.health.rejected.fetch_add(1, Ordering::Relaxed);
            error.into_response().map(Either::Right)
        }
    };
    app.metrics.requests.with_label_values(&[label, response.status().as_str()]).inc();
    response
}

async fn serve(
    app: &App,
    channel: Option<&Arc<Channel>>,
    request: Request<Incoming>,
) -> Result<Accepted, ApiError> {
    if request.method() != Method::POST {
        return Err(ApiError::Method("POST"));
    }
    let channel = channel.ok_or(ApiError::ChannelNotFound)?;
    let (parts, request_body) = request.into_parts();
    if parts.version == Version::HTTP_11 && !parts.headers.contains_key(HOST) {
        return Err(ApiError::NoHost);
    }
    let key = parts.headers.get(AUTHORIZATION).map(|value| value.as_bytes());
    if !auth::authorized(&channel.keys, key) {
        return Err(ApiError::Unauthorized);
    }
    body::announced(&request_body, &app.body_limits)?;
    let coding = Coding::of(&parts.headers)?;
    if app.health.is_stopping() {
        return Err(ApiError::Stopping);
    }
    accept(app, channel, &parts.headers, coding, request_body).await
}

async fn accept(
    app: &App,
    channel: &Arc<Channel>,
    headers: &HeaderMap,
    coding: Coding,
    request_body: Incoming,
) -> Result<Accepted, ApiError> {
    // held until the answer: what waits for the log is in memory too
    let mut held = Held::none(&app.inflight);
    let raw = body::read(request_body, &app.body_limits, &mut held).await?;
    let whole = body::inflate(raw, coding, &app.body_limits, &mut held).await?;
    let timer = app.metrics.ack_seconds.start_timer();
    match app.door.accept(channel, whole, form(headers)).await {
        Ok(accepted) => {
            timer.observe_duration();
            if accepted.cut_members > 0 {
                app.metrics.cut_members.inc_by(accepted.cut_members as u64);
            }
            Ok(accepted)
        }
        Err(refused) => {
            timer.stop_and_discard();
            let after = app.door.queue.retry_after();
            Err(ApiError::Refused(refused, after))
        }
    }
}

/// Lines where the type says so; anything else is read as JSON, since plain curl sends a form's type.
fn form(headers: &HeaderMap) -> Form {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    let lines = ["application/x-ndjson", "application/ndjson", "application/jsonl"];
    if lines.iter().any(|line| kind.eq_ignore_ascii_case(line)) { Form::Lines } else { Form::Json }
}

fn answer(app: &App, accepted: &Accepted) -> Answer {
    let text = format!(
        "{{\"status\":\"accepted\",\"accepted_count\":{},\"origin_dc\":\"{}\",\"first_seq\":{},\"last_seq\":{}}}\n",
        accepted.count, app.health.facts.node, accepted.seqs.first, accepted.seqs.last
    );
    let mut response = Answer::new(Either::Left(Full::from(text)));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
