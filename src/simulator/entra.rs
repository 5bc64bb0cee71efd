//! Entra's token endpoint (`defender.md` 1): client credentials, v2, form bodies only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::extract::Query;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Uri};
use jiff::Timestamp;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::{Answer, PLAIN_JSON};
use super::request::Incoming;
use super::world::World;
use super::{Application, Tenant, assertion};

/// The resources whose tokens Defender takes (`defender.md` 1.2).
pub(super) const DEFENDER_RESOURCES: [&str; 2] =
    ["https://api.securitycenter.microsoft.com", "https://api.security.microsoft.com"];

/// The resource of Graph.
pub(super) const GRAPH_RESOURCE: &str = "https://graph.microsoft.com";

/// Tokens kept; more than that, and those that have expired are forgotten.
const TOKEN_LIMIT: usize = 10_000;

/// A token that was issued. Services recognise tokens by looking them up, which costs less than a signature check and
/// lets them be revoked.
#[derive(Debug)]
pub(super) struct Issued {
    /// The tenant's id, in lower case.
    pub(super) tenant: String,
    /// The application.
    pub(super) client: String,
    /// The resource it is for.
    pub(super) audience: String,
    /// The roles it was given; a change of the tenant's roles shows in later tokens only, as with the real service.
    pub(super) roles: Vec<String>,
    expires: Instant,
    revoked: AtomicBool,
}

impl Issued {
    /// Whether it still opens doors.
    pub(super) fn is_good(&self) -> bool {
        !self.revoked.load(Ordering::Acquire) && Instant::now() < self.expires
    }
}

/// All tokens issued.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    issued: RwLock<HashMap<String, Arc<Issued>>>,
    count: AtomicU64,
    key: OnceLock<[u8; 32]>,
}

impl Tokens {
    /// The token of that text, good or not.
    pub(super) fn find(&self, token: &str) -> Option<Arc<Issued>> {
        self.issued.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    /// The texts of all tokens issued, in no order.
    pub(super) fn texts(&self) -> Vec<String> {
        self.issued.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Makes every token issued so far worthless, or those of one tenant.
    pub(super) fn revoke(&self, tenant: Option<&str>) {
        for issued in self.issued.read().unwrap_or_else(PoisonError::into_inner).values() {
            if tenant.is_none_or(|tenant| tenant.eq_ignore_ascii_case(&issued.tenant)) {
                issued.revoked.store(true, Ordering::Release);
            }
        }
    }

    fn issue(
        &self,
        tenant: &Tenant,
        client: &Application,
        audience: &str,
        roles: &[String],
        lifetime: Duration,
    ) -> String {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Timestamp::now().as_second();
        let expires = now.saturating_add_unsigned(lifetime.as_secs());
        let issuer = format!("https://sts.windows.net/{}/", tenant.id);
        let mut claims = json!({
            "aud": audience,
            "iss": issuer,
            "iat": now,
            "nbf": now,
            "exp": expires,
            "app_displayname": "defender-bridge",
            "appid": client.client_id,
            "appidacr": if client.certificates.is_empty() { "1" } else { "2" },
            "idp": issuer,
            "oid": client.client_id,
            "sub": client.client_id,
            "tenant_region_scope": "EU",
            "tid": tenant.id,
            // Names the token in a listing of its claims, and makes each one different.
            "uti": format!("simulated-{number}-{}", Uuid::now_v7().simple()),
            "ver": "1.0",
        });
        if !roles.is_empty() {
            claims["roles"] = json!(roles);
        }
        let key = EncodingKey::from_secret(self.key.get_or_init(signing_key));
        let token =
            jsonwebtoken::encode(&Header::default(), &claims, &key).expect("claims of text and numbers are JSON");
        let issued = Issued {
            tenant: tenant.id.to_ascii_lowercase(),
            client: client.client_id.clone(),
            audience: audience.to_owned(),
            roles: roles.to_vec(),
            expires: Instant::now() + lifetime,
            revoked: AtomicBool::new(false),
        };
        let mut all = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= TOKEN_LIMIT {
            all.retain(|_, issued| issued.is_good());
        }
        all.insert(token.clone(), Arc::new(issued));
        token
    }
}

/// A key of this process's own: nobody is meant to verify these tokens, but they look and weigh like real ones.
fn signing_key() -> [u8; 32] {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).expect("the system has randomness");
    key
}

/// The application a token request names, for the book.
pub(super) fn client_of(body: &[u8]) -> Option<String> {
    form(body)?.remove("client_id")
}

/// Answers the token endpoint of `tenant`.
pub(super) fn answer(world: &World, tenant: &str, request: &Incoming) -> Answer {
    if request.method != Method::POST {
        let detail = format!("The endpoint only accepts POST requests. Received a {} request.", request.method);
        return error(400, "invalid_request", 900_561, &detail);
    }
    let media = request.header(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    let Some(form) =
        form(&request.body).filter(|_| media.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
    else {
        return missing("grant_type");
    };
    let field = |name: &str| form.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let Some(tenant) = world.tenant(tenant) else {
        return error(400, "invalid_request", 90_002, &format!("Tenant '{tenant}' not found (simulated)."));
    };
    match field("grant_type") {
        None => return missing("grant_type"),
        Some("client_credentials") => {}
        Some(other) => {
            let detail = format!("The app requested an unsupported grant type '{other}'.");
            return error(400, "unsupported_grant_type", 70_003, &detail);
        }
    }
    let Some(client) = field("client_id") else { return missing("client_id") };
    let Some(application) = tenant.application(client) else {
        let detail = format!("Application with identifier '{client}' is not present in the directory (simulated).");
        return error(400, "unauthorized_client", 700_016, &detail);
    };
    match field("client_secret") {
        None if let Some(assertion) = field("client_assertion") => {
            let endpoint = format!("{}{}", request.base(), request.path);
            let kind = field("client_assertion_type");
            let certificates = &application.certificates;
            let judged = assertion::check(kind, assertion, client, &endpoint, certificates, &world.assertions);
            if let Err((number, detail)) = judged {
                return error(401, "invalid_client", number, &detail);
            }
        }
        None => {
            let detail =
                "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.";
            return error(401, "invalid_client", 7_000_218, detail);
        }
        Some(secret) if secret != application.client_secret => {
            let detail = format!("The client secret supplied for app '{client}' is not valid (simulated).");
            return error(401, "invalid_client", 7_000_215, &detail);
        }
        Some(_) => {}
    }
    let Some(scope) = field("scope") else { return missing("scope") };
    // A scope is one resource with `/.default`; two of them, or a resource alone, is malformed.
    let Some(resource) = scope.strip_suffix("/.default").filter(|resource| !resource.contains([' ', '\t'])) else {
        let detail =
            format!("The provided value for the input parameter 'scope' is not valid. The scope {scope} is not valid.");
        return error(400, "invalid_scope", 70_011, &detail);
    };
    let roles = if DEFENDER_RESOURCES.contains(&resource) {
        &application.defender_roles
    } else if resource == GRAPH_RESOURCE {
        &application.graph_roles
    } else {
        let detail = format!("The resource principal named {resource} was not found in the tenant (simulated).");
        return error(400, "invalid_resource", 500_011, &detail);
    };
    let lifetime = world.knob(|knobs| knobs.token_lifetime);
    let token = world.tokens.issue(&tenant, &application, resource, roles, lifetime);
    let body = json!({
        "token_type": "Bearer",
        "expires_in": lifetime.as_secs(),
        "ext_expires_in": lifetime.as_secs(),
        "access_token": token,
    });
    Answer::json(200, PLAIN_JSON, &body).with("cache-control", "no-store, no-cache").with("pragma", "no-cache")
}

/// The service's own error for a status asked for as a fault.
pub(super) fn fault(status: u16) -> Answer {
    match status {
        400 => error(400, "invalid_request", 90_014, "The required field is missing (simulated)."),
        401 => error(401, "invalid_client", 7_000_215, "Invalid client secret provided (simulated)."),
        403 => {
            error(400, "access_denied", 53_003, "Access has been blocked by Conditional Access policies (simulated).")
        }
        429 => error(429, "temporarily_unavailable", 90_055, "The tenant is throttled (simulated)."),
        500 => error(500, "temporarily_unavailable", 90_033, "A transient error has occurred (simulated)."),
        502..=504 => Answer::html(status),
        _ => Answer::empty(status),
    }
}

fn missing(parameter: &str) -> Answer {
    let detail = format!("The request body must contain the following parameter: '{parameter}'.");
    error(400, "invalid_request", 900_144, &detail)
}

fn error(status: u16, name: &str, number: u32, detail: &str) -> Answer {
    let (trace, correlation) = (Uuid::now_v7(), Uuid::now_v7());
    let timestamp = Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    let body = json!({
        "error": name,
        "error_description": format!(
            "AADSTS{number}: {detail}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: {timestamp}"
        ),
        "error_codes": [number],
        "timestamp": timestamp,
        "trace_id": trace,
        "correlation_id": correlation,
        "error_uri": format!("https://login.microsoftonline.com/error?code={number}"),
    });
    Answer::json(status, PLAIN_JSON, &body)
}

/// The fields of a form body; the last of a name wins. `None` if it is no form.
fn form(body: &[u8]) -> Option<HashMap<String, String>> {
    // A form body has the syntax of a query string, which the framework already reads.
    let text = std::str::from_utf8(body).ok()?;
    let uri: Uri = format!("/?{text}").parse().ok()?;
    Query::<Vec<(String, String)>>::try_from_uri(&uri).ok().map(|Query(fields)| fields.into_iter().collect())
}

/// The claims of a token, unverified: for tests and for people.
pub(super) fn claims(token: &str) -> Option<Value> {
    jsonwebtoken::dangerous::insecure_decode::<Value>(token).ok().map(|data| data.claims)
}
