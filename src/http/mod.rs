//! HTTP: the routes, grouped by who calls them, and what their handlers share.
//!
//! The only module that knows axum and hyper. Imported by `node` alone.

mod body;
mod conn;
mod error;
mod ingest;
mod operator;
mod peer;
mod server;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tower_service::Service;

pub use body::{BodyLimits, Inflight};
pub use conn::Deadlines;
pub use peer::Peers;
pub use server::{Limits, Server};

use crate::channel::Registry;
use crate::health::Health;
use crate::ingest::Door;
use crate::metrics::Metrics;
use crate::queue::AnyQueue;

/// What the handlers share.
pub struct App {
    /// The channels.
    pub registry: Arc<Registry>,
    /// Where events go in.
    pub door: Door<AnyQueue>,
    /// How the node is.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Metrics,
    /// What bodies may take.
    pub body_limits: BodyLimits,
    /// What they take now.
    pub inflight: Arc<Inflight>,
    /// What peers are served.
    pub peers: Peers,
}

/// The route table, with the route of the clients apart: it is on the path of every event, and a
/// router's own boxes and copies cost a tenth of what a request does.
#[derive(Clone)]
pub struct Routes {
    app: Arc<App>,
    operator: Router,
}

/// An answer: plain bytes where a client is told 202, whatever axum makes otherwise.
pub type Answer = hyper::Response<Either<Full<Bytes>, Body>>;

impl Routes {
    /// All routes over one node.
    pub fn new(app: Arc<App>) -> Self {
        let operator = Router::new()
            .route("/healthz", get(operator::healthz).fallback(operator::only_get))
            .route("/livez", get(operator::livez).fallback(operator::only_get))
            .route("/readyz", get(operator::readyz).fallback(operator::only_get))
            .route("/metrics", get(operator::metrics).fallback(operator::only_get))
            .route("/internal/events", get(peer::events).fallback(operator::only_get))
            .route("/internal/changes", get(peer::changes).fallback(operator::only_get))
            .route("/internal/schema", get(peer::schema).fallback(operator::only_get))
            .fallback(operator::not_found)
            .with_state(app.clone());
        Self { app, operator }
    }

    /// Serves one request.
    pub async fn call(&self, request: hyper::Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let channel = path.strip_prefix("/ingress/").and_then(|rest| rest.strip_suffix("/add"));
        match channel {
            Some(name) if !name.contains('/') => {
                // names need no escapes, so an escaped one is nobody's
                let channel = self.app.registry.enabled(name).cloned();
                ingest::add(&self.app, channel.as_ref(), request).await
            }
            _ => {
                let answered = self.operator.clone().call(request.map(Body::new)).await;
                let answer = answered.unwrap_or_else(|never| match never {});
                answer.map(Either::Right)
            }
        }
    }
}
