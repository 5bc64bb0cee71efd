//! A request as the services look at it: decoded once, with its route and its caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Query;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;

use super::cognito;
use super::defender::Endpoint;
use super::entra::{self, Issued};
use super::graph;
use super::platform;
use super::recorder::{KEPT_HEADERS, Recorded};
use super::world::World;

/// Which of the simulated services a path belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    /// The token endpoint of the tenant named.
    Token(String),
    /// Defender for Endpoint, under `/api`.
    Defender(Endpoint),
    /// Graph, under `/v1.0`.
    Graph(graph::Endpoint),
    /// Cognito, under `/api/v2.x`, `/api/v3.x` and `/oauth2/token`.
    Cognito(cognito::Endpoint),
    /// The platform's key set.
    KeySet,
    /// Cisco's platform, under `/iroh`.
    Platform(platform::Endpoint),
    /// Nothing that any of them has.
    Nowhere,
}

impl Target {
    fn find(method: &Method, segments: &[String]) -> Self {
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["api", version, rest @ ..] if let Some(version) = cognito::Version::read(version) => {
                Self::Cognito(cognito::Endpoint::find(version, rest))
            }
            [".well-known", "jwks"] if method == Method::GET => Self::KeySet,
            ["oauth2", "token"] => Self::Cognito(cognito::Endpoint::Token(None)),
            ["iroh", rest @ ..] => Self::Platform(platform::Endpoint::find(rest)),
            ["api", rest @ ..] => Self::Defender(Endpoint::find(method, rest)),
            ["v1.0", rest @ ..] => Self::Graph(graph::Endpoint::find(method, rest)),
            [tenant, "oauth2", "v2.0", "token"] => Self::Token((*tenant).to_owned()),
            _ => Self::Nowhere,
        }
    }

    /// The name its calls are counted under.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Defender(endpoint) => endpoint.name(),
            Self::Graph(endpoint) => endpoint.name(),
            Self::Cognito(endpoint) => endpoint.name(),
            Self::KeySet => "key-set",
            Self::Platform(endpoint) => endpoint.name(),
            Self::Nowhere => "unknown",
        }
    }

    /// The template of its route.
    pub(super) fn template(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Defender(endpoint) => endpoint.template(),
            Self::Graph(endpoint) => endpoint.template(),
            Self::Cognito(endpoint) => endpoint.template(),
            Self::KeySet => ".well-known/jwks",
            Self::Platform(endpoint) => endpoint.template(),
            Self::Nowhere => "unknown",
        }
    }
}

/// A request, read.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// The decoded path.
    pub(super) path: String,
    /// The decoded query, in its order.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) target: Target,
    /// Whose token it carries; absent also if the token was never issued here. It may have expired.
    pub(super) caller: Option<Arc<Issued>>,
    /// The text of a hunting query, as far as the body has one.
    pub(super) hunting: Option<String>,
}

impl Incoming {
    pub(super) fn read(parts: Parts, body: Bytes, world: &World) -> Self {
        let segments: Vec<String> = parts.uri.path().split('/').skip(1).map(decode).collect();
        let target = Target::find(&parts.method, &segments);
        let query =
            Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map(|Query(query)| query).unwrap_or_default();
        let caller = bearer(&parts.headers).and_then(|token| world.tokens.find(token));
        let hunting = match target {
            Target::Graph(graph::Endpoint::RunHuntingQuery) => graph::query_text(&body),
            _ => None,
        };
        Self {
            path: format!("/{}", segments.join("/")),
            method: parts.method,
            uri: parts.uri,
            query,
            headers: parts.headers,
            body,
            target,
            caller,
            hunting,
        }
    }

    /// The tenant the request is about, if it can be told.
    pub(super) fn tenant(&self) -> Option<String> {
        match (&self.caller, &self.target) {
            (Some(caller), _) => Some(caller.tenant.clone()),
            (None, Target::Token(tenant)) => Some(tenant.to_ascii_lowercase()),
            _ => None,
        }
    }

    /// The base URL the client used, for links to further pages.
    pub(super) fn base(&self) -> String {
        let host = self.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        format!("http://{host}")
    }

    /// A header's text.
    pub(super) fn header(&self, name: impl axum::http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The id and secret of an `Authorization: Basic` header.
    pub(super) fn basic(&self) -> Option<(String, String)> {
        let (scheme, encoded) = self.header(AUTHORIZATION)?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(BASE64.decode(encoded.trim()).ok()?).ok()?;
        let (id, secret) = text.split_once(':')?;
        Some((id.to_owned(), secret.to_owned()))
    }

    /// The pairs of a form body; none if it is no form.
    pub(super) fn form(&self) -> Vec<(String, String)> {
        // A form has the syntax of a query, for which the web framework has a reader.
        let uri = std::str::from_utf8(&self.body).ok().and_then(|text| Uri::try_from(format!("/?{text}")).ok());
        uri.and_then(|uri| Query::<Vec<(String, String)>>::try_from_uri(&uri).ok())
            .map(|Query(form)| form)
            .unwrap_or_default()
    }

    /// What the book counts it by, and with `whole` what it keeps of it.
    pub(super) fn record(&self, whole: bool) -> Recorded {
        let counted = Recorded {
            number: 0,
            at: Timestamp::now(),
            method: String::new(),
            path: String::new(),
            query: String::new(),
            route: self.target.name(),
            template: self.target.template(),
            tenant: self.tenant(),
            client: None,
            headers: BTreeMap::new(),
            hunting: None,
            body: None,
            status: None,
        };
        if !whole {
            return counted;
        }
        let headers: BTreeMap<&'static str, String> =
            KEPT_HEADERS.into_iter().filter_map(|name| Some((name, self.header(name)?.to_owned()))).collect();
        let query: Vec<String> = self.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let client = match &self.target {
            Target::Token(_) => entra::client_of(&self.body),
            _ => self.caller.as_ref().map(|caller| caller.client.clone()),
        };
        let writes = matches!(self.target, Target::Defender(_)) && self.method != Method::GET && !self.body.is_empty();
        Recorded {
            body: writes.then(|| String::from_utf8_lossy(&self.body).into_owned()),
            method: self.method.to_string(),
            path: self.path.clone(),
            query: query.join("&"),
            client,
            headers,
            hunting: self.hunting.clone(),
            ..counted
        }
    }
}

/// The token of an `Authorization: Bearer` header; the scheme in any case, as HTTP has it.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// A path segment without its percent encoding. What is no encoding stays as it is.
fn decode(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// A query value with everything encoded that could be mistaken for syntax.
pub(super) fn encode(value: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'$') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_find_their_service() {
        for (method, path, name, template) in [
            ("POST", "/t/oauth2/v2.0/token", "token", "token"),
            ("GET", "/api/files/abc", "files", "files/{id}"),
            ("GET", "/api/files/abc/alerts", "alerts", "files/{id}/alerts"),
            ("GET", "/api/machines", "machines", "machines"),
            ("GET", "/api/machines/findbyip(ip='192.0.2.1',timestamp=x)", "machines", "machines/findbyip"),
            ("POST", "/v1.0/security/runHuntingQuery", "hunting", "hunting"),
            ("POST", "/api/advancedqueries/run", "retired", "advancedqueries/run"),
            ("POST", "/api/machines/abc/isolate", "actions", "machines/{id}/isolate"),
            ("POST", "/api/machines/abc/unisolate", "actions", "machines/{id}/unisolate"),
            ("GET", "/api/machines/abc/isolate", "unknown", "unknown"),
            ("GET", "/api/machineactions", "machineactions", "machineactions"),
            ("GET", "/api/machineactions/abc", "machineactions", "machineactions/{id}"),
            ("POST", "/api/machineactions/abc/cancel", "actions", "machineactions/{id}/cancel"),
            ("POST", "/api/machines/abc/restrictCodeExecution", "actions", "machines/{id}/restrictCodeExecution"),
            ("GET", "/api/machines/abc/restrictCodeExecution", "unknown", "unknown"),
            ("GET", "/t/oauth2/token", "unknown", "unknown"),
            ("GET", "/api/v2.5/hosts/7", "cognito", "hosts/{id}"),
            ("PATCH", "/api/v3.4/tagging/host/7", "cognito", "tagging/host/{id}"),
            ("GET", "/.well-known/jwks", "key-set", ".well-known/jwks"),
            ("POST", "/oauth2/token", "cognito-token", "oauth2/token"),
            ("POST", "/api/v2.5/oauth2/token", "cognito-token", "oauth2/token"),
            ("POST", "/iroh/oauth2/token", "platform-token", "iroh/oauth2/token"),
            ("PATCH", "/iroh/iroh-int/module-instance/7", "platform", "module-instance/{id}"),
            ("GET", "/iroh/iroh-int", "unknown", "unknown"),
            ("GET", "/api/v1.0/machines", "unknown", "unknown"),
            ("GET", "/", "unknown", "unknown"),
        ] {
            let method: Method = method.parse().unwrap();
            let segments: Vec<String> = path.split('/').skip(1).map(decode).collect();
            let target = Target::find(&method, &segments);
            assert_eq!((target.name(), target.template()), (name, template), "{path}");
        }
    }

    proptest! {
        #[test]
        fn encoding_is_undone_by_decoding(text in "\\PC{0,40}") {
            prop_assert_eq!(decode(&encode(&text)), text);
        }

        #[test]
        fn any_segment_can_be_decoded(text in "[%0-9a-fA-Fx]{0,20}") {
            let _ = decode(&text);
        }
    }
}
