//! Reading and replacing the tags of a host (`cognito.md` 3.4, calls 2 and 3).

use serde_json::{Value, json};

use super::super::answer::{Answer, PLAIN_JSON};
use super::state::Writer;
use super::{Call, Kind, field_error};

/// GET: the list, with the id as a text.
pub(super) fn read(call: &Call<'_>, kind: Kind, id: Option<u64>) -> Result<Answer, Answer> {
    call.kind(kind)?;
    let mut state = call.state();
    state.stir();
    let (id, entry) = id.and_then(|id| Some((id, state.hosts.get(&id)?))).ok_or_else(missing)?;
    let body = json!({"status": "success", "tag_id": id.to_string(), "tags": state.shown_tags(entry)});
    state.show_tags(id);
    Ok(Answer::json(200, PLAIN_JSON, &body))
}

/// PATCH: replaces the whole list; the answer has the id as a number.
pub(super) fn replace(call: &Call<'_>, kind: Kind, id: Option<u64>) -> Result<Answer, Answer> {
    call.kind(kind)?;
    let body = call.body()?;
    let tags = body["tags"].as_array().and_then(|tags| tags.iter().map(tag).collect::<Option<Vec<String>>>());
    let Some(tags) = tags else { return Err(field_error("tags", "Expected a list of non-empty strings.")) };
    let now = call.world.clock.now();
    let mut state = call.state();
    let id = id.filter(|id| state.hosts.contains_key(id)).ok_or_else(missing)?;
    state.run_races(id, now);
    state.write_tags(id, tags, &call.user, Writer::Api, now).ok_or_else(missing)?;
    state.stir();
    let shown = state.hosts.get(&id).map(|entry| state.shown_tags(entry)).unwrap_or_default();
    Ok(Answer::json(200, PLAIN_JSON, &json!({"status": "success", "tag_id": id, "tags": shown})))
}

fn tag(value: &Value) -> Option<String> {
    value.as_str().filter(|tag| !tag.trim().is_empty()).map(str::to_owned)
}

/// There is no such host.
pub(super) fn missing() -> Answer {
    Answer::json(404, PLAIN_JSON, &json!({"status": "failure", "message": "Could not find requested object"}))
}
