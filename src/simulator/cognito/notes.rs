//! Listing, adding, changing and deleting the notes of a host (`cognito.md` 3.4, calls 5 to 7).

use serde_json::Value;

use super::super::answer::{Answer, PLAIN_JSON};
use super::host::{self, Moment, Note};
use super::{Call, Flavour, Kind, Right, field_error, forbidden, not_found};

/// GET: a plain array.
pub(super) fn list(call: &Call<'_>, kind: Kind, id: Option<u64>) -> Result<Answer, Answer> {
    call.kind(kind)?;
    let told = call.world.story_told();
    let state = call.state();
    let notes = id.and_then(|id| state.hosts.get(&id)).map(|entry| host::notes(&state, entry, told));
    drop(state);
    notes.map(|notes| Answer::json(200, PLAIN_JSON, &Value::Array(notes))).ok_or_else(|| not_found(call))
}

/// POST: the new note, its time with fractions. An unknown host is answered 404 without a body.
pub(super) fn add(call: &Call<'_>, kind: Kind, id: Option<u64>) -> Result<Answer, Answer> {
    call.kind(kind)?;
    let text = text(call)?;
    let (now, told) = (call.world.clock.now(), call.world.story_told());
    let mut state = call.state();
    let note = id.and_then(|id| state.add_note(id, &text, &call.user, now)).ok_or_else(|| Answer::empty(404))?;
    // Both are success (`cognito.md` 3.3); appliances are documented to say 200.
    let status = if call.version.flavour == Flavour::Qux { 200 } else { 201 };
    Ok(Answer::json(status, PLAIN_JSON, &host::note(&state, &note, told, true)))
}

/// PATCH: the note as it is now.
pub(super) fn change(call: &Call<'_>, kind: Kind, id: Option<u64>, note: Option<u64>) -> Result<Answer, Answer> {
    call.kind(kind)?;
    let text = text(call)?;
    check_author(call, id, note)?;
    let (now, told) = (call.world.clock.now(), call.world.story_told());
    let mut state = call.state();
    let found = id.and_then(|id| state.hosts.get_mut(&id)).and_then(|entry| {
        let found = entry.host.notes.iter_mut().find(|one| Some(one.id) == note)?;
        found.text = text;
        found.modified = Some(Moment::At(now));
        found.modified_by = Some(call.user.clone());
        Some(found.clone())
    });
    let shown = found.map(|found| host::note(&state, &found, told, false));
    state.tick();
    drop(state);
    shown.map(|shown| Answer::json(200, PLAIN_JSON, &shown)).ok_or_else(|| not_found(call))
}

/// DELETE: nothing.
pub(super) fn delete(call: &Call<'_>, kind: Kind, id: Option<u64>, note: Option<u64>) -> Result<Answer, Answer> {
    call.kind(kind)?;
    check_author(call, id, note)?;
    let mut state = call.state();
    if let Some(entry) = id.and_then(|id| state.hosts.get_mut(&id)) {
        entry.host.notes.retain(|one| Some(one.id) != note);
    }
    state.tick();
    Ok(Answer::empty(204))
}

/// The text of a note that is written.
fn text(call: &Call<'_>) -> Result<String, Answer> {
    let body = call.body()?;
    let text = body["note"].as_str().filter(|text| !text.trim().is_empty());
    text.map(str::to_owned).ok_or_else(|| field_error("note", "This field may not be blank."))
}

/// That there is such a note, and that its author is the caller or others' notes may be written.
fn check_author(call: &Call<'_>, id: Option<u64>, note: Option<u64>) -> Result<(), Answer> {
    let state = call.state();
    let found: Option<&Note> = id
        .and_then(|id| state.hosts.get(&id))
        .and_then(|entry| entry.host.notes.iter().find(|one| Some(one.id) == note));
    let own = found.map(|found| found.created_by == call.user);
    let others = !state.behaviour.withheld.contains(&Right::WriteOthersNotes);
    drop(state);
    match own {
        None => Err(not_found(call)),
        Some(own) if own || others => Ok(()),
        Some(_) => Err(forbidden(call)),
    }
}
