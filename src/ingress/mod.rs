//! The HTTP edge: a request becomes a message, its reply the answer. It authenticates, validates, publishes and writes;
//! it never calls a vendor. Two protocols share it: the relay's, below, and the webhook's; `openapi` describes both.

mod admission;
mod body;
mod error;
mod openapi;
mod routes;
mod webhook;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use tracing::Instrument as _;

use self::admission::Admission;
use self::error::IngressError;
use self::routes::Route;
use self::webhook::Webhook;
use crate::broker::{Broker, BrokerError, Message};
use crate::config::{Routes, WebhookSettings};
use crate::credentials::{Credentials, SealKeys, Sealed};
use crate::job::{self, Job};
use crate::key_sets::KeySets;
use crate::relay::{self, HttpError, Observable, RelayError, key_set, limit, observable, payload, token};
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::propagation;

/// What the ingress needs to know.
#[derive(Debug)]
pub struct Settings {
    /// What of the relay is switched on.
    pub routes: Routes,
    /// From accepting a call to answering it.
    pub deadline: Duration,
    /// The longest that a call may be expected to wait for a worker.
    pub max_wait: Duration,
    /// `L` of `relay.md` 5.3.
    pub entities_limit: u32,
    /// Keys that tokens may be signed with.
    pub token_keys: token::Keys,
    /// Tokens of key sets, if they are taken.
    pub key_sets: Option<KeySets>,
    /// Keys that seal credentials.
    pub seal_keys: Arc<SealKeys>,
    /// Who may send host events; `None`: the webhook's path is unknown.
    pub webhook: Option<WebhookSettings>,
}

/// The ingress of one process.
struct Ingress<B> {
    settings: Settings,
    webhook: Option<Webhook<B>>,
    document: openapi::Document,
    admission: Arc<Admission>,
    broker: B,
    metrics: Metrics,
    shutdown: Shutdown,
}

/// The routes of the ingress. Call it in a runtime.
pub fn router<B: Broker>(settings: Settings, broker: B, metrics: Metrics, shutdown: Shutdown) -> Router {
    let webhook = settings.webhook.as_ref();
    let webhook = webhook.map(|settings| Webhook::new(settings, broker.clone(), metrics.clone(), shutdown.clone()));
    let document = openapi::Document::new(webhook.is_some());
    let admission = Admission::new(settings.max_wait);
    let ingress = Arc::new(Ingress { settings, webhook, document, admission, broker, metrics, shutdown });
    Router::new().fallback(handle::<B>).with_state(ingress)
}

/// Answers any request: finds its route, keeps the rules on methods, and turns even a panic into an answer (E14 for the
/// relay).
async fn handle<B: Broker>(State(ingress): State<Arc<Ingress<B>>>, request: Request) -> Response {
    let started = Instant::now();
    let path = request.uri().path();
    let webhook = ingress.webhook.as_ref().filter(|_| webhook::is_at(path));
    let route = Route::of(path);
    let is_document = openapi::is_at(path);
    let name = match (&webhook, is_document) {
        (Some(_), _) => webhook::PATH,
        (None, true) => openapi::PATH,
        (None, false) => route.map_or("unmatched", Route::path),
    };
    let span = propagation::server_span(request.method(), name, request.headers());
    let head = request.method() == Method::HEAD;
    let answer = async {
        match webhook {
            Some(webhook) => webhook.answer(request).await.map_err(Failure::Webhook),
            None if is_document => ingress.document.answer(request).await.map_err(Failure::Relay),
            None => ingress.answer(route, request).await.map_err(Failure::Relay),
        }
    };
    let answered = AssertUnwindSafe(answer.instrument(span.clone())).catch_unwind().await;
    let answer = answered.unwrap_or_else(|_| {
        span.in_scope(|| tracing::error!("a request handler panicked"));
        Err(match webhook {
            Some(_) => Failure::Webhook(webhook::Refusal::Unforeseen),
            None => Failure::Relay(RelayError::unforeseen().into()),
        })
    });
    let (outcome, mut response) = match answer {
        Ok(response) => ("ok", response),
        Err(Failure::Relay(error)) => (error.outcome(), error.into_response()),
        Err(Failure::Webhook(refusal)) => (refusal.code(), refusal.into_response()),
    };
    if head {
        *response.body_mut() = Body::empty();
    }
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if outcome != "ok" {
        span.record("error.type", outcome);
    }
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    if let Some(value) = propagation::trace_response(&span) {
        response.headers_mut().insert("traceresponse", value);
    }
    ingress.metrics.request(name, outcome, started.elapsed());
    span.in_scope(|| {
        tracing::debug!(http.route = name, http.status = status.as_u16(), outcome, "answered");
    });
    response
}

/// What a request was refused for, in the words of its protocol.
enum Failure {
    Relay(IngressError),
    Webhook(webhook::Refusal),
}

/// A relay answer: always HTTP 200 (`relay.md` 1.1).
fn relay_answer(body: impl Into<Body>) -> Response {
    json_response(StatusCode::OK, body)
}

fn json_response(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl<B: Broker> Ingress<B> {
    async fn answer(&self, route: Option<Route>, request: Request) -> Result<Response, IngressError> {
        let deadline = Timestamp::now() + self.settings.deadline;
        let (head, body) = request.into_parts();
        let route = match route {
            Some(route) if matches!(head.method, Method::POST | Method::OPTIONS) => route,
            other => {
                body::drop_unread(&head.headers, body, relay::MAX_BODY_BYTES).await;
                let refusal = other.map_or(HttpError::NOT_FOUND, |_| HttpError::METHOD_NOT_ALLOWED);
                return Err(IngressError::Http(refusal));
            }
        };
        // Read even where it means nothing: it is in the way of the next request.
        let body = body::read(&head.headers, body, relay::MAX_BODY_BYTES).await?;
        if head.method == Method::OPTIONS {
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(error::ALLOW));
            return Ok(response);
        }
        if route == Route::Version {
            return Ok(relay_answer(relay::version(env!("CARGO_PKG_VERSION")).to_string()));
        }
        let claims = self.authenticate(&head.headers, deadline).await?;
        let limit = limit::lowered(self.settings.entities_limit, claims.entities_limit);
        let credentials = Credentials {
            tenant_id: claims.tenant_id,
            client_id: claims.client_id,
            client_secret: claims.client_secret,
        };
        match route {
            Route::Health => {
                self.ask(&credentials, deadline, |credentials| Job::Health(job::Health { credentials })).await
            }
            Route::Observe if self.settings.routes.observe => {
                let observables = observables(&body)?;
                if observables.is_empty() {
                    return Ok(relay_answer(relay::no_data().to_string()));
                }
                let observables =
                    observables.into_iter().map(|known| (known.spelled_type, known.spelled_value)).collect();
                self.ask(&credentials, deadline, |credentials| {
                    Job::Observe(job::Observe { credentials, limit, observables })
                })
                .await
            }
            Route::Deliberate => {
                observables(&body)?;
                Ok(relay_answer(relay::no_data().to_string()))
            }
            Route::Version | Route::Observe => Ok(relay_answer(relay::no_data().to_string())),
            Route::Refer | Route::Respond => Ok(relay_answer(relay::empty_list().to_string())),
            Route::Trigger => {
                let refusal = relay::trigger_failure(&[RelayError::unsupported_action()]);
                Ok(relay_answer(refusal.to_string()))
            }
        }
    }

    /// Whose token it is decides which check it gets (`relay.md` 2.3).
    async fn authenticate(&self, headers: &HeaderMap, deadline: Timestamp) -> Result<token::Claims, RelayError> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let header = match (given.next(), given.next()) {
            // Two headers are no more one scheme and one token than three words are (A3).
            (Some(_), Some(_)) => Some(&b""[..]),
            (first, _) => first.map(HeaderValue::as_bytes),
        };
        let judged = async {
            let token = token::read(header)?;
            match &self.settings.key_sets {
                Some(key_sets) if token.algorithm() == Some(key_set::ALGORITHM) => {
                    let left = deadline.duration_since(Timestamp::now());
                    key_sets.verify(&token, Duration::try_from(left).unwrap_or_default()).await
                }
                _ => token.verify(&self.settings.token_keys, Timestamp::now()),
            }
        };
        judged.await.map_err(|error: token::TokenError| RelayError::authorization(error.reason()))
    }

    /// Sends a job to the workers and returns their reply as the answer, unless it would wait for too long.
    async fn ask(
        &self,
        credentials: &Credentials,
        deadline: Timestamp,
        job: impl FnOnce(Sealed) -> Job,
    ) -> Result<Response, IngressError> {
        let admitted = self.admission.enter(&self.broker).ok_or_else(RelayError::busy)?;
        let mut message = Message::new(Bytes::new());
        let sealed = self.settings.seal_keys.seal(credentials, message.id).map_err(|error| {
            tracing::error!(error = %error, "credentials could not be sealed");
            RelayError::not_processed()
        })?;
        let job = job(sealed);
        message.body = job.encode();
        let id = message.id;
        let span = propagation::send_span(B::SYSTEM, &job::RELAY, &mut message, job.kind());
        let reply = async {
            tokio::select! {
                reply = self.broker.ask(&job::RELAY, message, deadline) => reply,
                // The process stops before the deadline: the caller gets an answer all the same.
                () = self.shutdown.last_call() => Err(BrokerError::Timeout),
            }
        }
        .instrument(span.clone())
        .await;
        match reply {
            Ok(body) => {
                admitted.replied();
                Ok(relay_answer(body))
            }
            Err(error) => {
                propagation::fail(&span, error::class(&error));
                tracing::warn!(error = %error, message.id = %id, job.kind = job.kind(), "no worker answered a relay call");
                Err(IngressError::from(error::of_broker(&error)))
            }
        }
    }
}

/// The observables of a request that `/observe` looks for, each once.
fn observables(body: &[u8]) -> Result<Vec<Observable>, RelayError> {
    let items = payload::observable_list(body).map_err(|details| RelayError::invalid_payload(&details))?;
    let known = items.iter().filter_map(|(kind, value)| Observable::parse(kind, value));
    Ok(observable::dedup(known.filter(Observable::is_observable).collect()))
}
