//! The one way out over HTTP: connection pool, time limits, size caps, trace headers, and failures in plain words.
//!
//! [`Outbound::send`] makes one try. Whether there is another is the caller's business (`retry`), because only the
//! caller knows what a status means and whether the call may be repeated. What a body means is not decided here either.
//!
//! Redirects are not followed: no API that the bridge calls uses them, and a token must not travel to another host.
//! The proxies of the environment (`HTTPS_PROXY`, `NO_PROXY`) are used as by any other program, except for servers on this
//! machine, such as the simulator. Compressed answers are not asked for. Nothing here, span, error or `Debug`, shows a query, a path with values in it, a header or a body.

mod trust;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use opentelemetry::propagation::Injector;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::{Host, Url};

/// How long a TCP and TLS connection may take to come about (`relay.md` 1.5).
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long an unused connection is kept. Shorter than the idle limits of common front doors (Azure's is 4 minutes), so
/// that we rarely write into a connection that the other side is just closing.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// Unused connections kept for each host: as many as the jobs a worker runs at a time by default.
const IDLE_PER_HOST: usize = 64;

/// Where the HTTP library looks for proxies. They are not settings of the bridge, which only asks whether there are any.
const PROXY_VARIABLES: [&str; 6] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// What the bridge calls itself (`relay.md` 5.1).
const USER_AGENT: &str = concat!("defender-bridge/", env!("CARGO_PKG_VERSION"));

/// The HTTP client. Cheap to clone; clones share their pools of connections.
#[derive(Debug, Clone)]
pub struct Outbound {
    client: reqwest::Client,
    /// For servers on this machine, which no proxy can reach.
    direct: reqwest::Client,
}

/// The HTTP client could not be set up.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The TLS library could not.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
    /// The file with further certificates cannot be read.
    #[error("the certificates in {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// What the file holds is in PEM form, but not a certificate that can be trusted.
    #[error("a certificate in {} cannot be used", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// One request.
#[derive(Clone)]
pub struct Request {
    /// The verb.
    pub method: Method,
    /// The whole address.
    pub url: Url,
    /// The path with placeholders in place of values, such as `/api/files/{id}`: all that spans show of it.
    pub template: &'static str,
    /// Beside those that are always sent. Mark secret values as sensitive.
    pub headers: HeaderMap,
    /// Empty for none.
    pub body: Bytes,
    /// The longest this try may take; `None` leaves it to the deadline.
    pub limit: Option<Duration>,
    /// The largest body that is read of the answer, in bytes.
    pub body_limit_bytes: usize,
    /// How often this request was sent before.
    pub resend_count: u32,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("server", &self.url.host_str())
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}

/// A whole answer, of any status.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, complete.
    pub body: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why there is no whole answer. Holds no part of the request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OutboundError {
    /// No connection, no such host, or the connection broke before there was an answer.
    #[error("no connection: {reason}")]
    Connect {
        /// In the words of the library that failed.
        reason: String,
        /// Whether there was a connection: the request, or a part of it, may have been sent.
        sent: bool,
    },
    /// The server's certificate cannot be verified.
    #[error("the certificate cannot be verified: {reason}")]
    Certificate {
        /// In the words of the TLS library.
        reason: String,
    },
    /// TLS failed in another way; the server may not speak it at all.
    #[error("the TLS connection failed: {reason}")]
    Tls {
        /// In the words of the TLS library.
        reason: String,
        /// Whether it had come about before: the request, or a part of it, may have been sent.
        sent: bool,
    },
    /// The try took longer than its own limit.
    #[error("no answer in time")]
    Timeout,
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The connection broke, or broke the protocol, in the middle of the answer.
    #[error("the answer was cut off: {reason}")]
    Cut {
        /// In the words of the library that failed.
        reason: String,
    },
    /// The answer's body is larger than the request allows.
    #[error("the answer is larger than {limit_bytes} bytes")]
    TooLarge {
        /// What the request allows.
        limit_bytes: usize,
    },
    /// Such a request cannot be sent.
    #[error("the request cannot be sent: {reason}")]
    Invalid {
        /// In the words of the library that failed.
        reason: String,
    },
}

impl OutboundError {
    /// Whether the server may have got the request and carried it out. False only where it certainly did not.
    #[must_use]
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            OutboundError::Connect { sent, .. } | OutboundError::Tls { sent, .. } => *sent,
            // Both are found before anything is sent.
            OutboundError::Certificate { .. } | OutboundError::Invalid { .. } => false,
            OutboundError::Timeout
            | OutboundError::Deadline
            | OutboundError::Cut { .. }
            | OutboundError::TooLarge { .. } => true,
        }
    }

    /// The value of the span's `error.type`, and its name in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            OutboundError::Connect { .. } => "connect",
            OutboundError::Certificate { .. } => "certificate",
            OutboundError::Tls { .. } => "tls",
            OutboundError::Timeout => "timeout",
            OutboundError::Deadline => "deadline",
            OutboundError::Cut { .. } => "cut",
            OutboundError::TooLarge { .. } => "too_large",
            OutboundError::Invalid { .. } => "invalid",
        }
    }
}

impl Outbound {
    /// Sets up the client with the certificates that the system trusts.
    ///
    /// # Errors
    /// When the TLS library cannot be set up, for want of trusted certificates for example.
    pub fn new() -> Result<Outbound, SetupError> {
        Self::build(|builder| builder)
    }

    /// Sets up a client that also trusts the certificates in `ca_file` (PEM, one or several): appliances often have one
    /// that only their own organisation knows. They may be certificates of authorities, or the server's own, whatever it
    /// says of itself; names and dates must be right in any case. For one server: whoever has the key of such a certificate
    /// can be any server of this client.
    ///
    /// # Errors
    /// When the file cannot be read or used, or as [`Outbound::new`].
    pub fn with_ca_file(ca_file: &Path) -> Result<Outbound, SetupError> {
        let path = || ca_file.to_owned();
        let pem = std::fs::read(ca_file).map_err(|source| SetupError::Unreadable { path: path(), source })?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|source| SetupError::BadCertificate { path: path(), source: Box::new(source) })?;
        if certificates.is_empty() {
            return Err(SetupError::NoCertificate { path: path() });
        }
        let tls = trust::client(certificates)
            .map_err(|source| SetupError::BadCertificate { path: path(), source: Box::new(source) })?;
        Self::build(|builder| builder.tls_backend_preconfigured(tls.clone()))
    }

    fn build(trusting: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Result<Outbound, SetupError> {
        let builder = || {
            trusting(reqwest::Client::builder())
                .user_agent(USER_AGENT)
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .connect_timeout(CONNECT_LIMIT)
                .pool_idle_timeout(IDLE_LIMIT)
                .pool_max_idle_per_host(IDLE_PER_HOST)
        };
        let client = builder().build().map_err(SetupError::Client)?;
        // A client has its own copy of the system's certificates, so there is a second one only where it differs.
        let proxied = PROXY_VARIABLES.iter().any(|name| std::env::var_os(name).is_some());
        let direct = if proxied { builder().no_proxy().build().map_err(SetupError::Client)? } else { client.clone() };
        Ok(Outbound { client, direct })
    }

    /// Sends `request` once and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When there is no whole answer by the request's limit, or by `deadline`.
    pub async fn send(&self, request: Request, deadline: Instant) -> Result<Answer, OutboundError> {
        let span = client_span(&request);
        let result = self.send_within(request, deadline, &span).instrument(span.clone()).await;
        match &result {
            Ok(answer) => {
                span.record("http.response.status_code", answer.status.as_u16());
                // For a client any 4xx or 5xx is a failed call, by the HTTP conventions.
                if answer.status.is_client_error() || answer.status.is_server_error() {
                    span.record("error.type", answer.status.as_str());
                    span.record("otel.status_code", "ERROR");
                }
            }
            Err(error) => {
                span.record("error.type", error.name());
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", field::display(error));
            }
        }
        result
    }

    async fn send_within(&self, request: Request, deadline: Instant, span: &Span) -> Result<Answer, OutboundError> {
        let now = Instant::now();
        if now >= deadline {
            return Err(OutboundError::Deadline);
        }
        let own_limit = request.limit.and_then(|limit| now.checked_add(limit)).filter(|limit| *limit < deadline);
        match timeout_at(own_limit.unwrap_or(deadline), self.exchange(request, span)).await {
            Ok(result) => result,
            Err(_) if own_limit.is_some() => Err(OutboundError::Timeout),
            Err(_) => Err(OutboundError::Deadline),
        }
    }

    async fn exchange(&self, request: Request, span: &Span) -> Result<Answer, OutboundError> {
        let Request { method, url, mut headers, body, body_limit_bytes, .. } = request;
        opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&span.context(), &mut HeaderInjector(&mut headers));
        });
        let client = if is_this_machine(&url) { &self.direct } else { &self.client };
        let mut builder = client.request(method, url).headers(headers);
        if !body.is_empty() {
            builder = builder.body(body);
        }
        let mut response = builder.send().await.map_err(|error| classify(&error, Stage::Request))?;

        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let too_large = OutboundError::TooLarge { limit_bytes: body_limit_bytes };
        let announced = response.content_length().unwrap_or(0);
        if announced > body_limit_bytes as u64 {
            return Err(too_large);
        }
        // The announcement is believed only so far: memory is taken as bytes come in.
        let mut body = BytesMut::with_capacity(announced.min(64 * 1024) as usize);
        while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error, Stage::Body))? {
            if body.len() + chunk.len() > body_limit_bytes {
                return Err(too_large);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The span of one try, with the names of the OpenTelemetry conventions for HTTP clients.
fn client_span(request: &Request) -> Span {
    let span = info_span!(
        "http.client",
        otel.kind = "client",
        otel.name = %format_args!("{} {}", request.method, request.template),
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        http.request.method = %request.method,
        http.request.resend_count = field::Empty,
        http.response.status_code = field::Empty,
        server.address = request.url.host_str().unwrap_or_default(),
        server.port = request.url.port_or_known_default(),
        url.template = request.template,
        "error.type" = field::Empty,
    );
    if request.resend_count > 0 {
        span.record("http.request.resend_count", request.resend_count);
    }
    span
}

struct HeaderInjector<'a>(&'a mut HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        // A propagator that makes an impossible header costs the trace, not the call.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

/// How far the try had got when it failed.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Request,
    Body,
}

fn classify(error: &reqwest::Error, stage: Stage) -> OutboundError {
    let connected = !error.is_connect();
    if let Some(tls) = find_cause::<rustls::Error>(error) {
        return match tls {
            rustls::Error::InvalidCertificate(reason) => {
                OutboundError::Certificate { reason: certificate_reason(reason) }
            }
            rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertRevocationList(_) => {
                OutboundError::Certificate { reason: tls.to_string() }
            }
            _ => OutboundError::Tls { reason: tls.to_string(), sent: connected },
        };
    }
    if error.is_builder() {
        return OutboundError::Invalid { reason: innermost(error) };
    }
    if error.is_timeout() && connected {
        return OutboundError::Timeout;
    }
    let reason = innermost(error);
    match stage {
        Stage::Request => OutboundError::Connect { reason, sent: connected },
        Stage::Body => OutboundError::Cut { reason },
    }
}

/// Why a certificate is not trusted; the commonest reasons, which the library prints as bare identifiers, in words.
fn certificate_reason(error: &rustls::CertificateError) -> String {
    use rustls::CertificateError as E;
    match error {
        E::UnknownIssuer => "the certificate is self-signed or its issuer is unknown".to_owned(),
        E::Expired => "the certificate has expired".to_owned(),
        E::NotValidYet => "the certificate is not valid yet".to_owned(),
        E::NotValidForName => "the certificate is for another host name".to_owned(),
        E::Revoked => "the certificate has been revoked".to_owned(),
        other if trust::is_of_authority(other) => {
            "the server's certificate is that of an authority, which is trusted only where it is given itself"
                .to_owned()
        }
        other => other.to_string(),
    }
}

/// The first cause of type `T`. An `io::Error` hides what it wraps from `source`, so that is looked into as well.
fn find_cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// The text of the innermost cause: the outer ones repeat the address, which may hold values.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    // An error without any cause is reqwest's own, whose text may name the address.
    if innermost.is::<reqwest::Error>() { "the request failed".to_owned() } else { innermost.to_string() }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://127.0.0.1:8080/a", true)]
    #[case("http://127.9.9.9/", true)]
    #[case("http://[::1]:1/", true)]
    #[case("http://localhost/", true)]
    #[case("https://localhost.example/", false)]
    #[case("https://192.0.2.1/", false)]
    #[case("https://[2001:db8::1]/", false)]
    fn servers_on_this_machine_are_known(#[case] url: Url, #[case] expected: bool) {
        assert_eq!(is_this_machine(&url), expected);
    }

    #[test]
    fn requests_and_answers_do_not_show_what_they_hold() {
        let request = Request {
            method: Method::POST,
            url: "https://example.com/planted?planted".parse().unwrap(),
            template: "/{x}",
            headers: HeaderMap::from_iter([(reqwest::header::AUTHORIZATION, HeaderValue::from_static("planted"))]),
            body: Bytes::from_static(b"planted"),
            limit: None,
            body_limit_bytes: 1,
            resend_count: 0,
        };
        let answer = Answer { status: StatusCode::OK, headers: request.headers.clone(), body: request.body.clone() };
        let shown = format!("{request:?} {answer:?}");
        assert!(!shown.contains("planted") && shown.contains("example.com"), "{shown}");
    }

    #[rstest]
    #[case(rustls::CertificateError::UnknownIssuer, "the certificate is self-signed or its issuer is unknown")]
    #[case(rustls::CertificateError::BadSignature, "BadSignature")]
    fn a_cause_is_found_however_deep_it_is_wrapped(#[case] cause: rustls::CertificateError, #[case] reason: &str) {
        let error = io::Error::other(io::Error::other(rustls::Error::InvalidCertificate(cause)));
        let Some(rustls::Error::InvalidCertificate(found)) = find_cause::<rustls::Error>(&error) else { panic!() };
        assert_eq!(certificate_reason(found), reason);
    }
}
