//! What operators, balancers and scrapers ask: `/healthz`, `/livez`, `/readyz`, `/metrics`.
//!
//! Reads the health snapshot; knows nothing else of the node.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::{ApiError, json};

/// 200 while serving, 503 from the first moment of stopping: balancers probe it.
pub async fn healthz(State(app): State<Arc<App>>) -> Response {
    let status =
        if app.health.is_stopping() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    match serde_json::to_vec(&app.health.report()) {
        Ok(body) => json(status, body),
        Err(e) => ApiError::Internal(e.to_string()).into_response(),
    }
}

/// 200 as long as anything answers.
pub async fn livez() -> Response {
    json(StatusCode::OK, br#"{"status":"alive"}"#.to_vec())
}

/// Whether this node takes events, and why not.
pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    match app.health.not_ready() {
        None => json(StatusCode::OK, br#"{"status":"ready"}"#.to_vec()),
        Some(why) => ApiError::NotReady(why).into_response(),
    }
}

/// The metrics, in Prometheus' text format.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.render(&app.health.queue_stats(), &app.health.peers()) {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(e) => ApiError::Internal(e.to_string()).into_response(),
    }
}

/// Any other method.
pub async fn only_get() -> ApiError {
    ApiError::Method("GET, HEAD")
}

/// Any other path.
pub async fn not_found() -> ApiError {
    ApiError::NotFound
}
