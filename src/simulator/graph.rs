//! Graph's `runHuntingQuery` (`defender.md` 4): checks the call, runs the query, wraps the rows.

use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::answer::{Answer, GRAPH_JSON};
use super::data::{Data, FILE_EVENTS, NETWORK_EVENTS};
use super::entra::GRAPH_RESOURCE;
use super::kql::{self, KqlError, Table, Tables, Window};
use super::request::Incoming;
use super::script::Hunting;
use super::world::{HUNTING, World};

/// The role that hunting needs (`defender.md` 8).
const HUNTING_ROLE: &str = "ThreatHunting.Read.All";

/// What hunting can see at all: 30 days (`defender.md` 3.1).
const RETENTION: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A route with what its path holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    RunHuntingQuery,
    WrongMethod,
    Unknown(String),
}

impl Endpoint {
    /// The route of these decoded segments, which follow `/v1.0`.
    pub(super) fn find(method: &Method, segments: &[&str]) -> Self {
        match segments {
            ["security", "runHuntingQuery"] if *method == Method::POST => Self::RunHuntingQuery,
            ["security", "runHuntingQuery"] => Self::WrongMethod,
            ["security", rest, ..] => Self::Unknown((*rest).to_owned()),
            _ => Self::Unknown(segments.first().copied().unwrap_or_default().to_owned()),
        }
    }

    /// The name its calls are counted under.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::RunHuntingQuery => HUNTING,
            Self::WrongMethod | Self::Unknown(_) => "unknown",
        }
    }

    /// The template of the route.
    pub(super) fn template(&self) -> &'static str {
        self.name()
    }
}

/// The query of a hunting body, if it has one: for the book.
pub(super) fn query_text(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body.get("Query")?.as_str()?.to_owned())
}

/// Answers a call, from the token on.
pub(super) async fn answer(world: &World, endpoint: &Endpoint, request: &Incoming) -> Answer {
    let Some(caller) = request.caller.as_ref().filter(|caller| caller.is_good()) else {
        return error(
            401,
            "InvalidAuthenticationToken",
            "Access token is empty, malformed or has expired (simulated).",
        )
        .with("www-authenticate", "Bearer");
    };
    if caller.audience != GRAPH_RESOURCE {
        return error(401, "InvalidAuthenticationToken", "Access token validation failure. Invalid audience.");
    }
    if let Some(scripted) = super::server::scripted(world, request) {
        return scripted;
    }
    match endpoint {
        Endpoint::RunHuntingQuery => {}
        Endpoint::WrongMethod => return error(405, "Request_BadRequest", "Specified HTTP method is not allowed."),
        Endpoint::Unknown(segment) => {
            return error(400, "BadRequest", &format!("Resource not found for the segment '{segment}'."));
        }
    }
    let script = world.hunting_script(request.hunting.as_deref().unwrap_or_default());
    if let Hunting::Literal(scripted) = &script {
        return match &scripted.body {
            Some(_) => super::server::literal(scripted),
            None => fault(scripted.status_or_default()),
        };
    }
    if let Err(refusal) = world.take(&caller.tenant, &caller.client, HUNTING) {
        let retry_after = world
            .knob(|knobs| knobs.quota.as_ref().is_some_and(|quota| quota.hunting_retry_after))
            .then_some(refusal.retry_after_seconds);
        return throttled(retry_after);
    }
    if !caller.roles.iter().any(|role| role == HUNTING_ROLE) {
        return error(403, "Forbidden", &format!("Missing application roles. API required roles: {HUNTING_ROLE}"));
    }
    let now = world.clock.now();
    let (query, window) = match read(request, now) {
        Ok(read) => read,
        Err(refusal) => return refusal,
    };
    let data = world.data(&caller.tenant);
    let events = match script {
        Hunting::Rows(rows) => {
            let mut events = Data::default();
            for row in rows {
                // Rows were checked against the schema when the script was set.
                let _ = events.add_event(row);
            }
            Some(events)
        }
        _ => None,
    };
    let (hidden, odd) = world.knob(|knobs| (knobs.hidden_tables.clone(), knobs.odd_hunting));
    // Large data sets make a query a matter of many milliseconds, which other connections should not wait for.
    let run = tokio::task::spawn_blocking(move || {
        let view = View { data: &data, events: events.as_ref(), hidden: &hidden };
        kql::run_within(&query, &view, now, window).map(|table| rows(&table, odd))
    });
    match run.await {
        Ok(Ok(body)) => Answer::json(200, GRAPH_JSON, &body),
        Ok(Err(refusal)) => {
            if let KqlError::Unsupported(what) = &refusal {
                tracing::warn!(kql.unsupported = %what, "a hunting query is outside what the simulator interprets");
            }
            error(400, "BadRequest", &refusal.to_string())
        }
        Err(_) => fault(500),
    }
}

/// The service's own error for a status asked for as a fault.
pub(super) fn fault(status: u16) -> Answer {
    match status {
        400 => error(400, "BadRequest", "The query is refused. Fix semantic errors in your query. (simulated)"),
        401 => error(401, "InvalidAuthenticationToken", "The access token has expired (simulated)."),
        403 => error(403, "Forbidden", &format!("Missing application roles. API required roles: {HUNTING_ROLE}")),
        404 => error(404, "ResourceNotFound", "Resource could not be discovered (simulated)."),
        429 => throttled(None),
        500 | 504 => error(status, "UnknownError", ""),
        502 | 503 => Answer::html(status),
        _ => error(status, "BadRequest", "Refused (simulated)."),
    }
}

/// The answer to a tenant that has used up its processing resources: the time to wait stands in the text only.
pub fn cpu_exhausted(wait_seconds: u64) -> super::Fault {
    let (hours, minutes, seconds) = (wait_seconds / 3_600, wait_seconds / 60 % 60, wait_seconds % 60);
    let body = json!({"error": {
        "code": "TooManyRequests",
        "message": format!(
            "You have exceeded processing resources allocated to this tenant. You can run queries again in \
             {hours:02}:{minutes:02}:{seconds:02}."
        ),
        "innerError": inner(),
    }});
    super::Fault::Answer {
        status: 429,
        headers: vec![("content-type".to_owned(), GRAPH_JSON.to_owned())],
        body: body.to_string(),
    }
}

/// A 429 with or without the time to wait.
pub(super) fn throttled(retry_after: Option<u64>) -> Answer {
    let mut inner = inner();
    inner["code"] = json!("429");
    inner["status"] = json!("429");
    inner["message"] = json!("Please retry after");
    let body =
        json!({"error": {"code": "TooManyRequests", "message": "Please retry again later.", "innerError": inner}});
    Answer::json(429, GRAPH_JSON, &body).with_retry_after(retry_after)
}

fn inner() -> Value {
    let date = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S").to_string();
    json!({"date": date, "request-id": Uuid::now_v7(), "client-request-id": Uuid::now_v7()})
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({"error": {"code": code, "message": message, "innerError": inner()}});
    Answer::json(status, GRAPH_JSON, &body)
}

/// The query and the span of time it may see.
fn read(request: &Incoming, now: Timestamp) -> Result<(String, Window), Answer> {
    let bad = |detail: &str| error(400, "BadRequest", detail);
    let media = request.header(CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let mut parts = media.split(';').map(str::trim);
    if parts.next() != Some("application/json")
        || parts.any(|part| part.starts_with("charset=") && part != "charset=utf-8")
    {
        return Err(error(415, "UnsupportedMediaType", "The content type must be application/json (simulated)."));
    }
    let body: Value = serde_json::from_slice(&request.body)
        .map_err(|_| bad("Unable to read JSON request payload. Please ensure Content-Type header is set and payload is of valid JSON format."))?;
    let Value::Object(members) = body else { return Err(bad("The request payload is no JSON object (simulated).")) };
    let mut query = None;
    let mut timespan = None;
    for (name, value) in members {
        match (name.as_str(), value) {
            ("Query", Value::String(text)) if !text.trim().is_empty() => query = Some(text),
            ("Query", _) => return Err(bad("The parameter 'Query' must be a text that is not empty (simulated).")),
            ("Timespan", Value::String(text)) => timespan = Some(text),
            ("Timespan", Value::Null) => {}
            ("Timespan", _) => return Err(bad("The parameter 'Timespan' must be a text (simulated).")),
            (other, _) => {
                let detail = format!(
                    "The parameter '{other}' in the request payload is not a valid parameter for the operation 'runHuntingQuery'."
                );
                return Err(bad(&detail));
            }
        }
    }
    let query = query.ok_or_else(|| bad("The parameter 'Query' is missing (simulated)."))?;
    let oldest = now.checked_sub(RETENTION).ok();
    let mut window = Window { from: oldest, to: None };
    if let Some(text) = timespan {
        let (from, to) =
            span(&text, now).ok_or_else(|| bad(&format!("The time span '{text}' is not valid (simulated).")))?;
        window = Window { from: oldest.max(Some(from)), to: Some(to) };
    }
    Ok((query, window))
}

/// The ends of an ISO 8601 time span: `P30D`, `start/end`, `start/duration`, `duration/end`, or one instant up to now.
fn span(text: &str, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
    let duration = |text: &str| -> Option<SignedDuration> {
        let span: Span = text.strip_prefix('P').and_then(|_| text.parse().ok())?;
        span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
    };
    let instant = |text: &str| text.parse::<Timestamp>().ok();
    let (from, to) = match text.split_once('/') {
        None => match duration(text) {
            Some(length) => (now.checked_sub(length).ok()?, now),
            None => (instant(text)?, now),
        },
        Some((start, end)) => match (duration(start), duration(end)) {
            (Some(_), Some(_)) => return None,
            (None, Some(length)) => (instant(start)?, instant(start)?.checked_add(length).ok()?),
            (Some(length), None) => (instant(end)?.checked_sub(length).ok()?, instant(end)?),
            (None, None) => (instant(start)?, instant(end)?),
        },
    };
    (from <= to).then_some((from, to))
}

/// The tables a query sees: the tenant's, with the scripted events in place of its own.
struct View<'a> {
    data: &'a Data,
    events: Option<&'a Data>,
    hidden: &'a [String],
}

impl Tables for View<'_> {
    fn scan(&self, name: &str) -> Option<&Table> {
        if self.hidden.iter().any(|hidden| hidden == name) {
            return None;
        }
        match self.events {
            Some(events) if name == NETWORK_EVENTS || name == FILE_EVENTS => events.table(name),
            _ => self.data.table(name),
        }
    }
}

/// The answer's body. With `odd`, the spellings that the contract asks clients to bear (`defender.md` 4.2): keys in
/// camel case, `Name` and `Type` in the schema, annotations and members that nobody knows.
fn rows(table: &Table, odd: bool) -> Value {
    let (name_key, type_key) = if odd { ("Name", "Type") } else { ("name", "type") };
    let schema: Vec<Value> =
        table.columns.iter().map(|(name, kind)| json!({name_key: name, type_key: kind.wire_name()})).collect();
    let keys: Vec<String> =
        table.columns.iter().map(|(name, _)| if odd { lower_camel(name) } else { name.clone() }).collect();
    let results: Vec<Value> = table
        .rows
        .iter()
        .map(|row| {
            let mut cells: Map<String, Value> = Map::with_capacity(row.len());
            for ((key, (_, kind)), value) in keys.iter().zip(&table.columns).zip(row) {
                if odd && *kind == kql::Type::DateTime {
                    cells.insert(format!("{key}@odata.type"), json!("#DateTimeOffset"));
                }
                cells.insert(key.clone(), value.to_json());
            }
            if odd {
                cells.insert("somethingNew".to_owned(), json!({"nested": [1, 2]}));
            }
            Value::Object(cells)
        })
        .collect();
    json!({
        "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#microsoft.graph.security.huntingQueryResults",
        "schema": schema,
        "results": results,
    })
}

fn lower_camel(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_are_read_in_all_their_forms() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("P1D", Some(("2026-11-20T12:00:00Z", "2026-11-21T12:00:00Z"))),
            ("PT90M", Some(("2026-11-21T10:30:00Z", "2026-11-21T12:00:00Z"))),
            ("2026-11-01T00:00:00Z/2026-11-02T00:00:00Z", Some(("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"))),
            ("2026-11-01T00:00:00Z/P1D", Some(("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"))),
            ("P1D/2026-11-02T00:00:00Z", Some(("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"))),
            ("2026-11-20T00:00:00Z", Some(("2026-11-20T00:00:00Z", "2026-11-21T12:00:00Z"))),
            ("P1D/P1D", None),
            ("2026-11-02T00:00:00Z/2026-11-01T00:00:00Z", None),
            ("30d", None),
            ("1 day", None),
            ("", None),
        ] {
            let found = span(text, now).map(|(from, to)| (from.to_string(), to.to_string()));
            let expected = expected.map(|(from, to)| (from.to_owned(), to.to_owned()));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn odd_keys_begin_in_lower_case() {
        assert_eq!(lower_camel("DeviceId"), "deviceId");
        assert_eq!(lower_camel("SHA1"), "sHA1");
        assert_eq!(lower_camel(""), "");
    }
}
