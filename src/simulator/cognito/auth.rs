//! Personal tokens, and OAuth2 client credentials with their token endpoints (`cognito.md` 3.2).

use std::time::{Duration, Instant};

use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::answer::{Answer, PLAIN_JSON};
use super::super::request::Incoming;
use super::super::world::World;
use super::state::{Issued, State};
use super::{Flavour, Version, detail, unrouted};

/// How long refresh tokens are good.
const REFRESH_LIFETIME: Duration = Duration::from_secs(86_400);

/// Appliances take OAuth2 from v2.5 on.
const FIRST_QUX_OAUTH2_MINOR: u32 = 5;

/// Access tokens kept; more than that, and those that have expired are forgotten.
const TOKEN_LIMIT: usize = 10_000;

/// The user whose token the call carries.
///
/// # Errors
/// The 401 it is answered with.
pub(super) fn check(world: &World, version: &Version, request: &Incoming) -> Result<String, Answer> {
    let state = world.brain.state();
    let refuse = |text: &str| {
        let scheme = if version.flavour == Flavour::Qux { "Token" } else { "Bearer" };
        detail(&state.behaviour, 401, text).with("www-authenticate", scheme)
    };
    let Some((scheme, token)) = request.header(AUTHORIZATION).and_then(|value| value.split_once(' ')) else {
        return Err(refuse("Authentication credentials were not provided."));
    };
    let good = match scheme.to_ascii_lowercase().as_str() {
        "token" => version.flavour == Flavour::Qux && token.trim() == state.token,
        "bearer" => state.issued.get(token.trim()).is_some_and(|issued| {
            let takes = version.flavour == Flavour::Rux || version.minor >= FIRST_QUX_OAUTH2_MINOR;
            takes && issued.flavour == version.flavour && !issued.refresh && Instant::now() < issued.expires
        }),
        _ => return Err(refuse("Authentication credentials were not provided.")),
    };
    if good { Ok(state.user.clone()) } else { Err(refuse("Invalid token.")) }
}

/// Answers a token endpoint: the hosted one, or that of an appliance's API version.
pub(super) fn token(world: &World, version: Option<&Version>, request: &Incoming) -> Answer {
    let mut state = world.brain.state();
    let served = |wanted: &dyn Fn(&Version) -> bool| {
        state.behaviour.versions.iter().filter_map(|text| Version::read(text)).any(|version| wanted(&version))
    };
    let flavour = match version {
        None if served(&|version| version.flavour == Flavour::Rux) => Flavour::Rux,
        Some(asked)
            if asked.flavour == Flavour::Qux
                && asked.minor >= FIRST_QUX_OAUTH2_MINOR
                && served(&|version| version == asked) =>
        {
            Flavour::Qux
        }
        _ => return unrouted(),
    };
    if request.method != Method::POST {
        return detail(&state.behaviour, 405, &format!("Method \"{}\" not allowed.", request.method));
    }
    if let Err(refusal) = state.take_token_call() {
        return refusal;
    }
    let media = request.header(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if !media.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return detail(&state.behaviour, 415, &format!("Unsupported media type \"{media}\" in request."));
    }
    let form = request.form();
    let field = |name: &str| form.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    match (field("grant_type"), flavour) {
        (Some("client_credentials"), _) => {
            let (id, secret) = request.basic().unwrap_or_default();
            if id != state.client_id || secret != state.client_secret {
                return error(401, "invalid_client");
            }
        }
        (Some("refresh_token"), Flavour::Rux) => {
            let known = field("refresh_token").and_then(|token| state.issued.get(token));
            if !known.is_some_and(|issued| issued.refresh && Instant::now() < issued.expires) {
                return error(401, "invalid_grant");
            }
        }
        (Some(_), _) => return error(400, "unsupported_grant_type"),
        (None, _) => return error(400, "invalid_request"),
    }
    let lifetime = Duration::from_secs(state.behaviour.token_lifetime_seconds);
    let access = issue(&mut state, flavour, lifetime, false);
    let mut body = json!({"access_token": access, "expires_in": lifetime.as_secs(), "token_type": "Bearer"});
    if flavour == Flavour::Rux {
        body["refresh_token"] = json!(issue(&mut state, flavour, REFRESH_LIFETIME, true));
        body["refresh_expires_in"] = json!(REFRESH_LIFETIME.as_secs());
    }
    Answer::json(200, PLAIN_JSON, &body)
}

fn issue(state: &mut State, flavour: Flavour, lifetime: Duration, refresh: bool) -> String {
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).expect("the system has randomness");
    let token = format!("{}.{}", Uuid::now_v7().simple(), BASE64.encode(secret));
    let now = Instant::now();
    if state.issued.len() >= TOKEN_LIMIT {
        state.issued.retain(|_, issued| now < issued.expires);
    }
    state.issued.insert(token.clone(), Issued { flavour, expires: now + lifetime, refresh });
    token
}

fn error(status: u16, code: &str) -> Answer {
    let body: Value = json!({"error": code, "detail": "The token request was refused (simulated)."});
    Answer::json(status, PLAIN_JSON, &body)
}
