//! From a request to bytes: books it, lets faults happen, asks the service, deforms the answer if a fault says so.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use axum::http::{Response, StatusCode};
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::answer::{Answer, PLAIN_JSON};
use super::connection::Link;
use super::faults::{Call, Fault};
use super::request::{Incoming, Target};
use super::script::Scripted;
use super::world::{World, lock};
use super::{admin, cognito, defender, entra, graph, key_set, notifications, platform};

/// The largest body that is read. A hunting query of 200 observables has some 40 KB; worked examples are larger.
const BODY_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// The blanks of a gigantic body, sent in pieces of this size.
const BLANKS: &[u8] = &[b' '; 64 * 1024];

/// The application that serves `world`.
pub(super) fn router(world: Arc<World>) -> Router {
    Router::new().fallback(serve).with_state(world)
}

async fn serve(
    State(world): State<Arc<World>>,
    ConnectInfo(link): ConnectInfo<Link>,
    request: Request,
) -> Response<Body> {
    tokio::select! {
        response = respond(&world, &link, request) => response,
        // Whoever still waits when the simulator stops sees its peer go away, as when a service dies.
        () = world.stop.cancelled() => broken(&link, Link::cut),
    }
}

fn broken(link: &Link, how: fn(&Link)) -> Response<Body> {
    how(link);
    // Never leaves: the connection ends when it is written.
    Response::new(Body::empty())
}

async fn respond(world: &Arc<World>, link: &Link, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_LIMIT_BYTES).await else {
        return response(Answer::empty(413));
    };
    if let Some(path) = parts.uri.path().strip_prefix("/_simulator") {
        return response(admin::answer(world, &parts.method, path, &parts.uri, &body));
    }
    if parts.uri.path() == "/_notifications" {
        return response(notifications::receive(world, &parts.method, &parts.headers, &body));
    }
    let began = Instant::now();
    let request = Incoming::read(parts, body, world);
    let at_work = world.recorder.begin(request.record(world.recorder.keeps()));
    let tenant = request.tenant();
    let call = Call {
        name: request.target.name(),
        template: request.target.template(),
        method: request.method.as_str(),
        path: &request.path,
        hunting: request.hunting.as_deref(),
        tenant: tenant.as_deref(),
    };
    let (delay, fault) = lock(&world.faults).choose(&call);
    let delay = delay + world.knob(|knobs| knobs.latency);
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    let (applied, fault) = match fault {
        Some(Fault::Applied { then }) => (Some(true_answer(world, &request).await), Some(*then)),
        fault => (None, fault),
    };
    if let Some(Fault::Slow { ms }) = &fault {
        tokio::time::sleep(Duration::from_millis(*ms)).await;
    }
    let answer = match &fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Reset) => return broken(link, Link::reset),
        Some(Fault::Cut { after_bytes: None }) => return broken(link, Link::cut),
        Some(Fault::Refuse { status }) => refuse(&request.target, *status),
        Some(Fault::Throttle { retry_after }) => refuse(&request.target, 429).with_retry_after(*retry_after),
        Some(Fault::Answer { status, headers, body }) => fixed(*status, headers, body.clone()),
        Some(Fault::Redirect { status, location }) => Answer::empty(*status).with("location", location),
        _ => match applied {
            Some(answer) => answer,
            None => true_answer(world, &request).await,
        },
    };
    at_work.answered(answer.status);
    tracing::debug!(
        http.request.method = %request.method,
        url.path = %request.path,
        http.response.status_code = answer.status,
        simulator.route = request.target.template(),
        simulator.fault = fault.is_some(),
        duration_ms = began.elapsed().as_millis() as u64,
        "answered"
    );
    match fault {
        Some(fault) => deformed(answer, fault, link),
        None => response(answer),
    }
}

async fn true_answer(world: &World, request: &Incoming) -> Answer {
    match &request.target {
        Target::Token(tenant) => match scripted(world, request) {
            Some(scripted) => scripted,
            None => entra::answer(world, tenant, request),
        },
        Target::Defender(endpoint) => defender::answer(world, endpoint, request),
        Target::Graph(endpoint) => graph::answer(world, endpoint, request).await,
        Target::Cognito(endpoint) => cognito::answer(world, endpoint, request),
        Target::KeySet => scripted(world, request).unwrap_or_else(|| key_set::answer(world)),
        Target::Platform(endpoint) => platform::answer(world, endpoint, request),
        Target::Nowhere => scripted(world, request).unwrap_or_else(|| Answer::empty(404)),
    }
}

/// The script's answer to this route, if it has one. Services ask for it once they have checked the token.
pub(super) fn scripted(world: &World, request: &Incoming) -> Option<Answer> {
    let scripted = world.route_script(request.method.as_str(), &request.path, &request.query)?;
    let status = scripted.status_or_default();
    Some(match scripted.body {
        None if status >= 400 => refuse(&request.target, status),
        _ => literal(&scripted),
    })
}

/// A scripted answer as it stands.
pub(super) fn literal(scripted: &Scripted) -> Answer {
    let body = match &scripted.body {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(json) => json.to_string(),
    };
    let is_json = scripted.body.as_ref().is_some_and(|body| !body.is_string());
    let mut answer = fixed(scripted.status_or_default(), &scripted.headers, body);
    if is_json && !answer.headers.contains_key(CONTENT_TYPE) {
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN_JSON));
    }
    answer
}

fn fixed(status: u16, headers: &[(String, String)], body: String) -> Answer {
    let answer = Answer { body: Bytes::from(body), ..Answer::empty(status) };
    headers.iter().fold(answer, |answer, (name, value)| answer.with(name, value))
}

/// The error of the service that was called.
fn refuse(target: &Target, status: u16) -> Answer {
    match target {
        Target::Token(_) => entra::fault(status),
        Target::Defender(_) => defender::fault(status),
        Target::Graph(_) => graph::fault(status),
        Target::Cognito(endpoint) => cognito::fault(endpoint, status),
        Target::Platform(_) => platform::fault(status),
        Target::KeySet | Target::Nowhere => Answer::empty(status),
    }
}

fn status(answer: &Answer) -> StatusCode {
    StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn response(answer: Answer) -> Response<Body> {
    with_body(&answer, Body::from(answer.body.clone()))
}

fn with_body(answer: &Answer, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status(answer);
    response.headers_mut().clone_from(&answer.headers);
    response
}

fn deformed(mut answer: Answer, fault: Fault, link: &Link) -> Response<Body> {
    match fault {
        Fault::Cut { after_bytes: Some(bytes) } => cut(&answer, bytes, link),
        Fault::MalformedJson => {
            answer.body = answer.body.slice(..answer.body.len() / 2);
            response(answer)
        }
        Fault::EmptyBody => {
            answer.body = Bytes::new();
            response(answer)
        }
        Fault::ContentType { value } => response(answer.with("content-type", &value)),
        Fault::Gigantic { bytes } => {
            let whole = usize::try_from(bytes).unwrap_or(usize::MAX);
            let pieces = stream::iter((0..whole.div_ceil(BLANKS.len())).map(move |piece| {
                let left = whole - piece * BLANKS.len();
                Ok::<_, Infallible>(Bytes::from_static(&BLANKS[..left.min(BLANKS.len())]))
            }));
            let first = stream::iter([Ok(answer.body.clone())]);
            with_body(&answer, Body::from_stream(first.chain(pieces)))
        }
        _ => response(answer),
    }
}

/// Sends the first bytes under the length of the whole, then ends the connection.
fn cut(answer: &Answer, bytes: usize, link: &Link) -> Response<Body> {
    let whole = answer.body.len();
    let part = answer.body.slice(..bytes.min(whole));
    let link = link.clone();
    let end = stream::once(async move {
        // Yielding lets the server write out what it has before the connection ends.
        tokio::task::yield_now().await;
        link.cut();
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut on request"))
    });
    let body = stream::iter([Ok(part)]).chain(end);
    let mut response = with_body(answer, Body::from_stream(body));
    // One more than there is: even an answer that is sent whole ends before its time.
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(whole.max(bytes) + 1));
    response
}
