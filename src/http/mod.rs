//! HTTP: the routes, grouped by who calls them, and what their handlers share.
//!
//! The only module that knows axum and hyper. Imported by `node` alone.

mod body;
mod conn;
mod error;
mod ingest;
mod operator;
mod server;

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get};

pub use body::{BodyLimits, Inflight};
pub use conn::Deadlines;
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
}

/// The route table.
pub fn routes(app: Arc<App>) -> Router {
    Router::new()
        // clients
        .route("/ingress/{channel}/add", any(ingest::add))
        // operators
        .route("/healthz", get(operator::healthz).fallback(operator::only_get))
        .route("/livez", get(operator::livez).fallback(operator::only_get))
        .route("/readyz", get(operator::readyz).fallback(operator::only_get))
        .route("/metrics", get(operator::metrics).fallback(operator::only_get))
        .fallback(operator::not_found)
        .with_state(app)
}
