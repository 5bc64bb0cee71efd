//! Cisco's platform, as far as modules are registered there (`module-registration.md` 1 and 2): tokens and module
//! instances of one organisation with one API client.

use std::collections::HashSet;

use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::answer::{Answer, PLAIN_JSON};
use super::request::Incoming;
use super::server;
use super::world::{World, lock};

/// The API client of the organisation.
pub const PLATFORM_CLIENT_ID: &str = "client-0b6c1f7e-2222-4333-8444-955556666777";

/// Its password.
pub const PLATFORM_CLIENT_PASSWORD: &str = "simulated-platform-password";

/// Instances kept at most, so that a client that goes wild is noticed.
const INSTANCES_LIMIT: usize = 10_000;

/// The members that a client may write.
const WRITABLE: [&str; 5] = ["name", "module_type_id", "visibility", "enabled", "settings"];

/// The names of what a relay may answer.
const APIS: [&str; 6] = [
    "health",
    "observe/observables",
    "deliberate/observables",
    "refer/observables",
    "respond/observables",
    "respond/trigger",
];

/// What the platform has.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Endpoint {
    Token,
    /// All module instances.
    Instances,
    /// The one of that id.
    Instance(String),
    Nowhere,
}

impl Endpoint {
    /// The endpoint of what follows `/iroh`.
    pub(super) fn find(segments: &[&str]) -> Self {
        match segments {
            ["oauth2", "token"] => Self::Token,
            ["iroh-int", "module-instance"] => Self::Instances,
            ["iroh-int", "module-instance", id] => Self::Instance((*id).to_owned()),
            _ => Self::Nowhere,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Token => "platform-token",
            Self::Instances | Self::Instance(_) => "platform",
            Self::Nowhere => "unknown",
        }
    }

    pub(super) fn template(&self) -> &'static str {
        match self {
            Self::Token => "iroh/oauth2/token",
            Self::Instances => "module-instance",
            Self::Instance(_) => "module-instance/{id}",
            Self::Nowhere => "unknown",
        }
    }
}

/// The organisation's modules, oldest first, and the tokens that are good.
#[derive(Debug, Default)]
pub(super) struct Registry {
    instances: Vec<Value>,
    tokens: HashSet<String>,
}

impl Registry {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn instances(&self) -> Vec<Value> {
        self.instances.clone()
    }

    pub(super) fn revoke(&mut self) {
        self.tokens.clear();
    }
}

/// Answers a call.
pub(super) fn answer(world: &World, endpoint: &Endpoint, request: &Incoming) -> Answer {
    if *endpoint == Endpoint::Token {
        return server::scripted(world, request).unwrap_or_else(|| token(world, request));
    }
    let mut registry = lock(&world.platform);
    let bearer = request.header("authorization").and_then(|header| header.strip_prefix("Bearer "));
    if !bearer.is_some_and(|token| registry.tokens.contains(token)) {
        return error(401, "invalid_token", "The access token is not valid (simulated).")
            .with("www-authenticate", "Bearer");
    }
    if let Some(scripted) = server::scripted(world, request) {
        return scripted;
    }
    match (endpoint, &request.method) {
        (Endpoint::Instances, &Method::GET) => Answer::json(200, PLAIN_JSON, &Value::Array(registry.instances())),
        (Endpoint::Instances, &Method::POST) => {
            match members(request).and_then(|members| whole(&members).map(|()| members)) {
                Ok(_) if registry.instances.len() >= INSTANCES_LIMIT => {
                    error(400, "too_many_module_instances", "There are too many modules (simulated).")
                }
                Ok(members) => create(&mut registry, members),
                Err(fault) => error(400, "invalid_request", &fault),
            }
        }
        (Endpoint::Instance(id), method) => {
            let Some(position) = registry.instances.iter().position(|instance| instance["id"] == id.as_str()) else {
                return error(404, "module_instance_not_found", "There is no such module instance (simulated).");
            };
            match *method {
                Method::GET => Answer::json(200, PLAIN_JSON, &registry.instances[position]),
                Method::PATCH => match members(request) {
                    Ok(changed) => {
                        let instance = &mut registry.instances[position];
                        for (name, value) in changed {
                            instance[&name] = value;
                        }
                        instance["updated_at"] = Timestamp::now().to_string().into();
                        Answer::json(200, PLAIN_JSON, instance)
                    }
                    Err(fault) => error(400, "invalid_request", &fault),
                },
                Method::DELETE => {
                    registry.instances.remove(position);
                    Answer::empty(204)
                }
                _ => error(405, "method_not_allowed", "The method is not allowed (simulated)."),
            }
        }
        (Endpoint::Nowhere, _) => error(404, "not_found", "There is no such route (simulated)."),
        (Endpoint::Instances | Endpoint::Token, _) => {
            error(405, "method_not_allowed", "The method is not allowed (simulated).")
        }
    }
}

fn token(world: &World, request: &Incoming) -> Answer {
    if request.method != Method::POST {
        return error(405, "method_not_allowed", "The method is not allowed (simulated).");
    }
    if request.basic() != Some((PLATFORM_CLIENT_ID.to_owned(), PLATFORM_CLIENT_PASSWORD.to_owned())) {
        return error(401, "invalid_client", "Client id or password are wrong (simulated).")
            .with("www-authenticate", "Basic");
    }
    let media = request.header(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if !media.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return error(415, "unsupported_media_type", "The body is not a form (simulated).");
    }
    match request.form().iter().find(|(name, _)| name == "grant_type") {
        None => error(400, "invalid_request", "grant_type is missing (simulated)."),
        Some((_, grant)) if grant != "client_credentials" => {
            error(400, "unsupported_grant_type", "The grant type is not supported (simulated).")
        }
        Some(_) => {
            let token = format!("simulated-{}", Uuid::now_v7().simple());
            lock(&world.platform).tokens.insert(token.clone());
            let body = json!({
                "access_token": token, "token_type": "bearer", "expires_in": 600,
                "scope": "integration admin",
            });
            Answer::json(200, PLAIN_JSON, &body)
        }
    }
}

/// The members of a body, each of the right form.
fn members(request: &Incoming) -> Result<Map<String, Value>, String> {
    let media = request.header(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if !media.trim().eq_ignore_ascii_case("application/json") {
        return Err("The body is not application/json (simulated).".to_owned());
    }
    let Ok(Value::Object(members)) = serde_json::from_slice(&request.body) else {
        return Err("The body is not a JSON object (simulated).".to_owned());
    };
    for (name, value) in &members {
        let good = match name.as_str() {
            "name" | "module_type_id" => value.as_str().is_some_and(|text| !text.is_empty()),
            "visibility" => value == "org" || value == "user",
            "enabled" => value.is_boolean(),
            "settings" => are_settings(value),
            _ => false,
        };
        if !good {
            return Err(format!("{name}: not a member of a module instance, or not of its form (simulated)."));
        }
    }
    Ok(members)
}

fn are_settings(settings: &Value) -> bool {
    let url = settings["url"].as_str().unwrap_or_default();
    let apis = settings["supported-apis"].as_array().cloned().unwrap_or_default();
    let header = settings["authorization-header"].as_str().unwrap_or_default();
    url.starts_with("http")
        && !url.ends_with('/')
        && !apis.is_empty()
        && apis.iter().all(|api| api.as_str().is_some_and(|api| APIS.contains(&api)))
        && (settings["auth-type"] != "authorization-header" || header.starts_with("Bearer "))
}

/// Whether a body has all that a new instance needs.
fn whole(members: &Map<String, Value>) -> Result<(), String> {
    match WRITABLE.into_iter().find(|name| *name != "enabled" && !members.contains_key(*name)) {
        Some(name) => Err(format!("{name} is missing (simulated).")),
        None => Ok(()),
    }
}

fn create(registry: &mut Registry, members: Map<String, Value>) -> Answer {
    let mut instance = Value::Object(members);
    instance["id"] = Uuid::now_v7().to_string().into();
    instance["created_at"] = Timestamp::now().to_string().into();
    instance["client_id"] = PLATFORM_CLIENT_ID.into();
    instance["user_id"] = "simulated-user".into();
    instance["org_id"] = "simulated-organisation".into();
    if instance.get("enabled").is_none() {
        instance["enabled"] = true.into();
    }
    registry.instances.push(instance.clone());
    Answer::json(201, PLAIN_JSON, &instance)
}

fn error(status: u16, code: &str, description: &str) -> Answer {
    Answer::json(status, PLAIN_JSON, &json!({"error": code, "error_description": description}))
}

/// The service's own error for a status asked for as a fault.
pub(super) fn fault(status: u16) -> Answer {
    match status {
        502..=504 => Answer::html(status),
        _ => error(status, "unavailable", "A fault that was asked for (simulated)."),
    }
}
