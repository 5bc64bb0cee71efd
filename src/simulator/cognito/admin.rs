//! The brain's controls over HTTP, under `/_simulator/cognito`; the list is in the simulator's documentation.

use std::sync::Arc;

use axum::extract::Query;
use axum::http::{Method, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::answer::{Answer, PLAIN_JSON};
use super::super::world::World;
use super::{BULK_LIMIT, Behaviour, Brain, Emit, Host};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TagEdit {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
    #[serde(default = "analyst")]
    actor: String,
    #[serde(default)]
    in_gap: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManyEdit {
    hosts: Vec<u64>,
    tag: String,
    #[serde(default)]
    remove: bool,
    #[serde(default = "analyst")]
    actor: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewNote {
    text: String,
    #[serde(default = "analyst")]
    author: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewScores {
    threat: u8,
    certainty: u8,
    #[serde(default)]
    urgency: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAudit {
    user: String,
    message: String,
    #[serde(default = "yes")]
    success: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBulk {
    tenant: String,
    count: usize,
    #[serde(default)]
    odd_percent: u8,
    #[serde(default)]
    seed: u64,
}

fn analyst() -> String {
    "analyst.one".to_owned()
}

fn yes() -> bool {
    true
}

/// Why a control call is refused.
enum Refusal {
    /// 404: no such control, or no such host.
    Missing,
    /// 400.
    Wrong(String),
}

/// Answers a control call; `path` follows `/_simulator/cognito/`.
pub(in super::super) fn answer(world: &Arc<World>, method: &Method, path: &str, uri: &Uri, body: &[u8]) -> Answer {
    let brain = Brain(Arc::clone(world));
    let segments: Vec<&str> = path.split('/').collect();
    match act(&brain, method.as_str(), &segments, uri, body) {
        Ok(body) => Answer::json(200, PLAIN_JSON, &body),
        Err(Refusal::Missing) => {
            Answer::json(404, PLAIN_JSON, &json!({"error": "there is no such control, or no such host"}))
        }
        Err(Refusal::Wrong(error)) => Answer::json(400, PLAIN_JSON, &json!({"error": error})),
    }
}

fn act(brain: &Brain, method: &str, path: &[&str], uri: &Uri, body: &[u8]) -> Result<Value, Refusal> {
    if let ["hosts", id, rest @ ..] = path {
        return host(brain, method, id.parse().map_err(|_| Refusal::Missing)?, rest, body);
    }
    match (method, path) {
        ("GET", ["hosts"]) => Ok(json!({"hosts": brain.hosts()})),
        ("POST", ["tags"]) => {
            let edit: ManyEdit = parsed(body)?;
            let changed = if edit.remove {
                brain.remove_tag_from_many(&edit.hosts, &edit.tag, &edit.actor)
            } else {
                brain.add_tag_to_many(&edit.hosts, &edit.tag, &edit.actor)
            };
            Ok(json!({"changed": changed}))
        }
        ("GET", ["undone"]) => {
            let query = Query::<Vec<(String, String)>>::try_from_uri(uri).map(|Query(query)| query).unwrap_or_default();
            let ours = |tag: &str| {
                query.iter().any(|(name, value)| match name.as_str() {
                    "prefix" => tag.starts_with(value.as_str()),
                    "tag" => tag == value,
                    _ => false,
                })
            };
            Ok(json!({"undone": brain.undone(ours)}))
        }
        ("POST", ["audits"]) => {
            let audit: NewAudit = parsed(body)?;
            brain.audit(&audit.user, &audit.message, audit.success);
            done()
        }
        ("GET", ["behaviour"]) => Ok(json!(brain.behaviour())),
        ("PUT", ["behaviour"]) => {
            let behaviour = changed(&brain.behaviour(), &parsed(body)?)?;
            brain.behave(|present| *present = behaviour);
            done()
        }
        ("PUT", ["token"]) => {
            let new: NewToken = parsed(body)?;
            brain.set_token(&new.token);
            done()
        }
        ("DELETE", ["tokens"]) => {
            brain.revoke_tokens();
            done()
        }
        ("GET", ["emit"]) => Ok(json!({"emit": brain.emitting(), "emitted": brain.emitted()})),
        ("PUT", ["emit"]) => {
            let emit: Option<Emit> = parsed(body)?;
            brain.emit(emit).map_err(Refusal::Wrong)?;
            done()
        }
        ("POST", ["bulk"]) => {
            let new: NewBulk = parsed(body)?;
            if new.count > BULK_LIMIT {
                return Err(Refusal::Wrong(format!("'count' is at most {BULK_LIMIT}")));
            }
            let hosts = brain.add_bulk(&new.tenant, new.count, new.odd_percent, new.seed);
            Ok(json!({"hosts": hosts.ok_or_else(|| Refusal::Wrong("there is no such tenant".to_owned()))?}))
        }
        _ => Err(Refusal::Missing),
    }
}

/// The controls of one host.
fn host(brain: &Brain, method: &str, id: u64, path: &[&str], body: &[u8]) -> Result<Value, Refusal> {
    if (method, path) == ("PUT", &[]) {
        let host: Host = parsed(body)?;
        if host.id != id {
            return Err(Refusal::Wrong("'id' is another than in the path".to_owned()));
        }
        brain.put_host(host);
        return done();
    }
    let present = brain.host(id).ok_or(Refusal::Missing)?;
    match (method, path) {
        ("GET", []) => Ok(json!(present)),
        ("DELETE", []) => {
            brain.remove_host(id);
            done()
        }
        ("GET", ["tags"]) => Ok(json!({"tags": present.tags, "history": brain.history(id)})),
        ("POST", ["tags"]) => {
            let edit: TagEdit = parsed(body)?;
            for tag in &edit.add {
                if edit.in_gap {
                    brain.add_tag_in_gap(id, tag, &edit.actor);
                } else {
                    brain.add_tag(id, tag, &edit.actor);
                }
            }
            for tag in &edit.remove {
                if edit.in_gap {
                    brain.remove_tag_in_gap(id, tag, &edit.actor);
                } else {
                    brain.remove_tag(id, tag, &edit.actor);
                }
            }
            Ok(json!({"tags": brain.tags(id)}))
        }
        ("GET", ["notes"]) => Ok(json!({"notes": present.notes})),
        ("POST", ["notes"]) => {
            let note: NewNote = parsed(body)?;
            Ok(json!(brain.add_note(id, &note.text, &note.author)))
        }
        ("PUT", ["scores"]) => {
            let scores: NewScores = parsed(body)?;
            brain.set_scores(id, scores.threat, scores.certainty, scores.urgency);
            done()
        }
        _ => Err(Refusal::Missing),
    }
}

fn done() -> Result<Value, Refusal> {
    Ok(json!({"status": "ok"}))
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::Wrong(error.to_string()))
}

/// The behaviour with the members of `change` in place of its own.
fn changed(behaviour: &Behaviour, change: &Value) -> Result<Behaviour, Refusal> {
    let mut whole = json!(behaviour);
    match (&mut whole, change) {
        (Value::Object(whole), Value::Object(change)) => whole.extend(change.clone()),
        _ => return Err(Refusal::Wrong("an object is expected".to_owned())),
    }
    serde_json::from_value(whole).map_err(|error| Refusal::Wrong(error.to_string()))
}
