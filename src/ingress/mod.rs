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
use crate::broker::{Broker, BrokerError, Lane, Message, Repeat};
use crate::config::{Routes, WebhookSettings};
use crate::credentials::{Credentials, SealKeys, Sealed};
use crate::job::{self, Job, Reply};
use crate::key_sets::KeySets;
use crate::relay::{
    self, HttpError, Observable, RelayError, key_set, limit, observable, payload, refer, token, trigger,
};
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
    /// Base of links into the portal, without a final slash.
    pub portal_url: String,
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
            // Without response actions nobody has the id of one.
            Some(Route::Action) if !self.settings.routes.respond => {
                body::drop_unread(&head.headers, body, relay::MAX_BODY_BYTES).await;
                return Err(IngressError::Http(HttpError::NOT_FOUND));
            }
            Some(route) if head.method == Method::OPTIONS || head.method == route.method() => route,
            other => {
                body::drop_unread(&head.headers, body, relay::MAX_BODY_BYTES).await;
                return Err(match other {
                    None => IngressError::Http(HttpError::NOT_FOUND),
                    Some(Route::Action) => IngressError::NotAllowed { allow: error::ALLOW_GET },
                    Some(_) => IngressError::Http(HttpError::METHOD_NOT_ALLOWED),
                });
            }
        };
        // Read even where it means nothing: it is in the way of the next request.
        let body = body::read(&head.headers, body, relay::MAX_BODY_BYTES).await?;
        if head.method == Method::OPTIONS {
            let mut response = Response::new(Body::empty());
            let allow = if route == Route::Action { error::ALLOW_GET } else { error::ALLOW };
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            return Ok(response);
        }
        if route == Route::Version {
            return Ok(relay_answer(relay::version(env!("CARGO_PKG_VERSION")).to_string()));
        }
        let claims = match self.authenticate(&head.headers, deadline).await {
            Ok(claims) => claims,
            Err(error) if route == Route::Action => return Ok(refusal(StatusCode::UNAUTHORIZED, &error)),
            Err(error) => return Err(error.into()),
        };
        let limit = limit::lowered(self.settings.entities_limit, claims.entities_limit);
        let credentials = Credentials {
            tenant_id: claims.tenant_id,
            client_id: claims.client_id,
            client_secret: claims.client_secret,
        };
        match route {
            Route::Health => {
                let message = Message::new(Bytes::new());
                let job = |credentials| Job::Health(job::Health { credentials });
                Ok(relay_answer(self.ask(message, &credentials, deadline, job).await?))
            }
            Route::Observe if self.settings.routes.observe => {
                let mut observables = observables(&body)?;
                observables.retain(Observable::is_observable);
                if observables.is_empty() {
                    return Ok(relay_answer(relay::no_data().to_string()));
                }
                let observables = as_received(observables);
                let job = |credentials| Job::Observe(job::Observe { credentials, limit, observables });
                Ok(relay_answer(self.ask(Message::new(Bytes::new()), &credentials, deadline, job).await?))
            }
            Route::Deliberate => {
                observables(&body)?;
                Ok(relay_answer(relay::no_data().to_string()))
            }
            Route::Refer if self.settings.routes.refer => {
                let links = refer::links(&observables(&body)?, &self.settings.portal_url, &credentials.tenant_id);
                Ok(relay_answer(relay::links(&links).to_string()))
            }
            Route::Version | Route::Observe => Ok(relay_answer(relay::no_data().to_string())),
            Route::Respond if self.settings.routes.respond => {
                let observables = observables(&body)?;
                if observables.is_empty() {
                    return Ok(relay_answer(relay::empty_list().to_string()));
                }
                let observables = as_received(observables);
                let job = |credentials| Job::Respond(job::Respond { credentials, observables });
                Ok(relay_answer(self.ask(Message::new(Bytes::new()), &credentials, deadline, job).await?))
            }
            Route::Trigger if self.settings.routes.respond => self.trigger(&body, &credentials, deadline).await,
            Route::Action => self.action(head.uri.path(), &credentials, deadline).await,
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

    /// Has a trigger carried out, once at most. From the end of the checks on every failure says so in its data
    /// (`relay.md` 7.3).
    async fn trigger(
        &self,
        body: &[u8],
        credentials: &Credentials,
        deadline: Timestamp,
    ) -> Result<Response, IngressError> {
        let form = payload::action_form(body).map_err(|details| RelayError::invalid_payload(&details))?;
        let asked = match trigger::Trigger::of(&form) {
            Ok(asked) => asked,
            Err(trigger::Refused::Bare(error)) => return Err(error.into()),
            Err(trigger::Refused::Failure(error)) => {
                return Ok(relay_answer(relay::trigger_failure(&[error]).to_string()));
            }
        };
        let mut message = Message { repeat: Repeat::AtMostOnce, ..Message::new(Bytes::new()) };
        if asked.is_containment() {
            message.lane = Lane::Urgent;
        }
        if let trigger::Act::Machine(_) = asked.act {
            message.key = Some(job::Trigger::key(&asked.observable.value));
        }
        let job = |credentials| Job::Trigger(job::Trigger::new(credentials, form));
        let reply = self.ask(message, credentials, deadline, job).await.and_then(|reply| decoded(&reply));
        Ok(match reply {
            Ok(reply) => answer_of(&reply),
            Err(error) => relay_answer(relay::trigger_failure(&[error]).to_string()),
        })
    }

    /// Has Defender asked how a machine action stands.
    async fn action(
        &self,
        path: &str,
        credentials: &Credentials,
        deadline: Timestamp,
    ) -> Result<Response, IngressError> {
        let id = Route::action_id(path).unwrap_or_default();
        if id.len() > ACTION_ID_LIMIT_BYTES || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(IngressError::Http(HttpError::NO_ACTION_ID));
        }
        let job = |credentials| Job::Action(job::Action { credentials, action_id: id.to_owned() });
        let message = Message::new(Bytes::new());
        let reply = self.ask(message, credentials, deadline, job).await.and_then(|reply| decoded(&reply));
        Ok(match reply {
            Ok(reply) => answer_of(&reply),
            Err(error) => refusal(StatusCode::BAD_GATEWAY, &error),
        })
    }

    /// Sends a job to the workers in `message` and returns their reply, unless it would wait for too long.
    async fn ask(
        &self,
        mut message: Message,
        credentials: &Credentials,
        deadline: Timestamp,
        job: impl FnOnce(Sealed) -> Job,
    ) -> Result<Bytes, RelayError> {
        // Containment waits behind nothing in the queue, and is not refused for what waits there.
        let admitted = self.admission.enter(&self.broker, &credentials.tenant_id);
        if admitted.is_none() && message.lane != Lane::Urgent {
            return Err(RelayError::busy());
        }
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
                if let Some(admitted) = admitted {
                    admitted.replied();
                }
                Ok(body)
            }
            Err(error) => {
                propagation::fail(&span, error::class(&error));
                tracing::warn!(error = %error, message.id = %id, job.kind = job.kind(), "no worker answered a relay call");
                Err(error::of_broker(&error))
            }
        }
    }
}

/// The longest id of a machine action; it is a GUID.
const ACTION_ID_LIMIT_BYTES: usize = 64;

/// Names the machine action that an answer is about, where the platform does not look: its schemas allow no member for it.
const ACTION_ID: &str = "x-machine-action-id";

/// A worker's reply; E14 where it could not work the job.
fn decoded(reply: &[u8]) -> Result<Reply, RelayError> {
    Reply::decode(reply).ok_or_else(RelayError::unforeseen)
}

/// A worker's reply as the answer.
fn answer_of(reply: &Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = json_response(status, reply.body.to_string());
    let id = reply.action_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
    if let Some(id) = id {
        response.headers_mut().insert(ACTION_ID, id);
    }
    response
}

/// A relay error with an HTTP status of its own, for the route that the platform does not know.
fn refusal(status: StatusCode, error: &RelayError) -> Response {
    json_response(status, relay::failure(std::slice::from_ref(error)).to_string())
}

/// (type, value) of each observable as the caller spelled it.
fn as_received(observables: Vec<Observable>) -> Vec<(String, String)> {
    observables.into_iter().map(|known| (known.spelled_type, known.spelled_value)).collect()
}

/// The observables of a request that the relay handles, each once.
fn observables(body: &[u8]) -> Result<Vec<Observable>, RelayError> {
    let items = payload::observable_list(body).map_err(|details| RelayError::invalid_payload(&details))?;
    Ok(observable::dedup(items.iter().filter_map(|(kind, value)| Observable::parse(kind, value)).collect()))
}
