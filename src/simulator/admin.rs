//! The controls over HTTP, for processes that cannot hold a [`Control`]; see the module's documentation for the list.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::http::{Method, Uri};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::answer::{Answer, PLAIN_JSON};
use super::cognito;
use super::control::{Control, Resource};
use super::data::Data;
use super::faults::{Fault, Matcher};
use super::quota::Quota;
use super::script::Scripted;
use super::world::World;
use super::{Tenant, TenantData};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFault {
    #[serde(default, rename = "match")]
    matcher: Matcher,
    fault: Fault,
    #[serde(default)]
    times: Option<u32>,
    #[serde(default)]
    rate: Option<f64>,
    #[serde(default)]
    seed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRoles {
    tenant: String,
    resource: Resource,
    roles: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    id: String,
    client_id: String,
    client_secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewClock {
    now: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSettings {
    #[serde(default, deserialize_with = "present")]
    quota: Option<Option<Quota>>,
    latency_ms: Option<u64>,
    token_lifetime_seconds: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    page_size: Option<Option<usize>>,
    #[serde(default, deserialize_with = "present")]
    foreign_next_link: Option<Option<String>>,
    odd_hunting: Option<bool>,
    hidden_tables: Option<Vec<String>>,
}

/// Tells a member that is null, which takes a setting back, from one that is absent, which leaves it.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Answers a control call; `path` follows `/_simulator`.
pub(super) fn answer(world: &Arc<World>, method: &Method, path: &str, uri: &Uri, body: &[u8]) -> Answer {
    if let Some(path) = path.strip_prefix("/cognito/") {
        return cognito::admin::answer(world, method, path, uri, body);
    }
    let control = Control(Arc::clone(world));
    let done = match (method.as_str(), path) {
        ("GET", "/health") => Ok(json!({"status": "ok", "now": control.now(), "requests": control.total()})),
        ("GET", "/requests") => Ok(requests(&control, uri)),
        ("DELETE", "/requests") => done(|| control.forget()),
        ("POST", "/faults") => parsed(body).and_then(|fault| add_fault(&control, fault)),
        ("DELETE", "/faults") => done(|| control.clear_faults()),
        ("PUT", "/script") => parsed::<Vec<Scripted>>(body).and_then(|script| tried(control.script(script))),
        ("DELETE", "/script") => tried(control.script(Vec::new())),
        ("PUT", "/roles") => parsed::<NewRoles>(body).and_then(|new| {
            let roles: Vec<&str> = new.roles.iter().map(String::as_str).collect();
            known(control.set_roles(&new.tenant, new.resource, &roles))
        }),
        ("DELETE", "/tokens") => done(|| control.revoke_tokens(None)),
        ("PUT", "/tenants") => parsed::<NewTenant>(body).and_then(|new| {
            done(|| control.put_tenant(Tenant::reader(&new.id, &new.client_id, &new.client_secret, TenantData::Empty)))
        }),
        ("PUT", "/clock") => parsed::<NewClock>(body).and_then(|new| done(|| control.set_clock(new.now))),
        ("PUT", "/settings") => parsed(body).and_then(|new| change_settings(&control, new)),
        ("POST", "/key-set/token") => {
            parsed::<Value>(body).map(|claims| json!({ "token": control.key_set_token(&claims) }))
        }
        ("POST", "/key-set/rotate") => done(|| control.rotate_key_set()),
        (_, "/notifications") => super::notifications::admin(world, method, body),
        ("POST", "/reset") => done(|| control.reset()),
        (_, path) if path == "/actions" || path.starts_with("/actions/") => {
            match super::actions::admin(&control, method, path.trim_start_matches("/actions"), uri, body) {
                Some(done) => done,
                None => return no_such_control(),
            }
        }
        ("PUT", path) if path.starts_with("/data/") => put_data(&control, path.trim_start_matches("/data/"), body),
        _ => return no_such_control(),
    };
    match done {
        Ok(body) => Answer::json(200, PLAIN_JSON, &body),
        Err(error) => Answer::json(400, PLAIN_JSON, &json!({"error": error})),
    }
}

fn no_such_control() -> Answer {
    Answer::json(404, PLAIN_JSON, &json!({"error": "the simulator has no such control"}))
}

/// Does what cannot fail.
fn done(act: impl FnOnce()) -> Result<Value, String> {
    act();
    Ok(json!({"status": "ok"}))
}

fn tried<E: ToString>(result: Result<(), E>) -> Result<Value, String> {
    result.map_err(|error| error.to_string()).and_then(|()| done(|| {}))
}

fn known(found: bool) -> Result<Value, String> {
    if found { done(|| {}) } else { Err("there is no such tenant".to_owned()) }
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn requests(control: &Control, uri: &Uri) -> Value {
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri).map(|Query(query)| query).unwrap_or_default();
    let route = query.iter().find(|(name, _)| name == "route").map(|(_, route)| route.as_str());
    json!({
        "total": control.total(),
        "calls": control.all_calls(),
        "throttled": control.throttled(),
        "peak": control.peak(),
        "requests": route.map_or_else(|| control.requests(), |route| control.requests_to(route)),
    })
}

fn add_fault(control: &Control, new: NewFault) -> Result<Value, String> {
    match (new.times, new.rate) {
        (times, None) => done(|| control.fail_next(new.matcher, new.fault, times.unwrap_or(1))),
        (None, Some(rate)) => done(|| control.fail_rate(new.matcher, new.fault, rate, new.seed)),
        (Some(_), Some(_)) => Err("a fault has either times or a rate".to_owned()),
    }
}

fn change_settings(control: &Control, new: NewSettings) -> Result<Value, String> {
    if let Some(quota) = new.quota {
        control.set_quota(quota);
    }
    if let Some(ms) = new.latency_ms {
        control.set_latency(Duration::from_millis(ms));
    }
    if let Some(seconds) = new.token_lifetime_seconds {
        control.set_token_lifetime(Duration::from_secs(seconds));
    }
    if let Some(size) = new.page_size {
        control.set_page_size(size);
    }
    if let Some(base) = new.foreign_next_link {
        control.set_foreign_next_link(base.as_deref());
    }
    if let Some(odd) = new.odd_hunting {
        control.set_odd_hunting(odd);
    }
    if let Some(tables) = new.hidden_tables {
        control.set_hidden_tables(&tables.iter().map(String::as_str).collect::<Vec<_>>());
    }
    done(|| {})
}

/// A worked example if it names an observable, plain data otherwise.
fn put_data(control: &Control, tenant: &str, body: &[u8]) -> Result<Value, String> {
    let text: Value = parsed(body)?;
    if text["defender"].is_object() {
        return tried(control.load_example(tenant, &text));
    }
    let data = Data::from_json(&text).map_err(|error| error.to_string())?;
    known(control.set_data(tenant, data))
}
