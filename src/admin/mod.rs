//! The admin port that every role has: `/livez`, `/readyz` and `/metrics`. No authentication: it belongs on loopback or
//! in a private network, and shows neither secrets nor observables.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};

use crate::broker::Broker;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;

#[derive(Clone)]
struct Admin<B> {
    broker: B,
    metrics: Metrics,
    shutdown: Shutdown,
}

/// The routes of the admin port.
pub fn router<B: Broker>(broker: B, metrics: Metrics, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready::<B>))
        .route("/metrics", get(render::<B>))
        .with_state(Admin { broker, metrics, shutdown })
}

/// 200 while this process takes work, else 503 with the reason.
async fn ready<B: Broker>(State(admin): State<Admin<B>>) -> impl IntoResponse {
    if admin.shutdown.has_begun() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    let health = admin.broker.check().await;
    match (health.connected, health.blocked) {
        (true, None) => (StatusCode::OK, "ok\n".to_owned()),
        (true, Some(reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("the broker takes no messages: {reason}\n")),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "the broker cannot be reached\n".to_owned()),
    }
}

async fn render<B: Broker>(State(admin): State<Admin<B>>) -> impl IntoResponse {
    let health = admin.broker.check().await;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], admin.metrics.render(&health))
}
