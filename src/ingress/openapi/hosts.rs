//! The webhook for host events, and the shapes of events, which are read by hand so that all their faults are told at once.

#![expect(dead_code, reason = "nothing is made of the shapes: they are there to be described")]

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::Schemas;
use crate::ingress::body::BodyError;
use crate::ingress::webhook::{Outcome, Problem, Refusal};

/// The types of [`HostEvent`].
const TYPES: [&str; 5] = ["host.tag.added", "host.tag.removed", "host.tags.changed", "host.scored", "host.reconcile"];

/// An event in the bridge's own form. A member that is null counts as absent; further members are ignored.
#[derive(JsonSchema)]
#[serde(tag = "type")]
enum HostEvent {
    /// A tag was set.
    #[serde(rename = "host.tag.added")]
    TagAdded(Tagged),
    /// A tag was taken off.
    #[serde(rename = "host.tag.removed")]
    TagRemoved(Tagged),
    /// The tags are others than before.
    #[serde(rename = "host.tags.changed")]
    TagsChanged(Retagged),
    /// The scores are others than before.
    #[serde(rename = "host.scored")]
    Scored(Scored),
    /// The host is to be looked at.
    #[serde(rename = "host.reconcile")]
    Reconcile(Common),
}

/// What every event may say.
#[derive(JsonSchema)]
struct Common {
    host: Host,
    /// The sender's own id of the event: a resend within ten minutes is accepted and does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[A-Za-z0-9_:-]{1,128}$"))]
    id: Option<String>,
    /// When it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    occurred_at: Option<Moment>,
    /// Means nothing: there is one Cognito.
    #[serde(skip_serializing_if = "Option::is_none")]
    brain: Option<String>,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
}

/// A moment (RFC 3339).
#[derive(JsonSchema)]
struct Moment(#[schemars(extend("format" = "date-time"))] String);

/// Cognito's host.
#[derive(JsonSchema)]
struct Host {
    id: HostId,
    /// Means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
}

/// Cognito's id of a host, without a fraction.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum HostId {
    /// As Cognito has it.
    Number(#[schemars(range(min = 1, max = u64::MAX))] u64),
    /// In digits.
    Digits(#[schemars(regex(pattern = "^0{0,9}[1-9][0-9]{0,18}$"))] String),
}

/// An event about one tag.
#[derive(JsonSchema)]
struct Tagged {
    #[serde(flatten)]
    common: Common,
    /// At most 1,024 bytes.
    #[schemars(length(min = 1, max = 256))]
    tag: String,
}

/// An event about all tags.
#[derive(JsonSchema)]
struct Retagged {
    #[serde(flatten)]
    common: Common,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Tags>,
}

/// Hints: the host itself is read.
#[derive(JsonSchema)]
struct Tags {
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Vec<String>>,
}

/// An event about scores.
#[derive(JsonSchema)]
struct Scored {
    #[serde(flatten)]
    common: Common,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<Score>,
}

/// Hints: the host itself is read.
#[derive(JsonSchema)]
struct Score {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    threat: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    certainty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    urgency: Option<f64>,
    /// True: the event is ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    decreased: Option<bool>,
}

/// Any other JSON object: Cognito's native messages are understood, what is of no known kind is ignored.
struct OtherMessage;

impl JsonSchema for OtherMessage {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OtherMessage".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Any other object: Cognito's native messages are understood, what is of no known kind is ignored.",
            "type": "object",
            "not": {"required": ["type"], "properties": {"type": {"enum": TYPES}}},
        })
    }
}

/// What a request is about.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Event {
    /// In the bridge's own form.
    Own(Box<HostEvent>),
    /// In another.
    Other(OtherMessage),
}

/// One event or several.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Events {
    /// Alone.
    One(Event),
    /// Each is taken or refused by itself: with one that is taken the answer is 202.
    Several(#[schemars(length(min = 1, max = 100))] Vec<Event>),
}

/// The webhook's path.
pub(super) fn path(schemas: &mut Schemas) -> Value {
    let example = |text: &str| serde_json::from_str::<Value>(text).expect("an example is JSON");
    let event = json!({"type": "host.tag.added", "id": "case-7-1", "host": {"id": 4711}, "tag": "block"});
    let batch =
        json!([event, {"type": "host.scored", "host": {"id": "4712"}, "score": {"threat": 78, "certainty": 66}}]);
    let native = json!({
        "user": "analyst.one", "role": "Admin", "result": "success", "version": "9.4",
        "message": "[table:host][id:4711] with tags [] was changed to ['block']", "vectra_timestamp": "1770114646",
    });
    let accepted = example(r#"{"accepted": [{"index": 0, "event_id": "case-7-1"}], "ignored": [], "rejected": []}"#);
    let mut responses = json!({
        "202": schemas.answer::<Outcome>("Every accepted event is safely in the queue.", &[("accepted", accepted)]),
    });
    let refusals = [
        Refusal::Json,
        Refusal::Unauthorized,
        Refusal::Body(BodyError::Slow),
        Refusal::Body(BodyError::TooLarge),
        Refusal::MediaType,
        Refusal::NothingValid(Vec::new()),
        Refusal::TooMany(Duration::from_secs(1)),
        Refusal::Unforeseen,
        Refusal::Queue,
    ];
    for refusal in refusals {
        let problem = refusal.problem();
        let status = problem.status.to_string();
        let mut headers = json!({"traceresponse": {"$ref": "#/components/headers/TraceResponse"}});
        if matches!(problem.status, 429 | 503) {
            headers["Retry-After"] = json!({"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}});
        }
        if problem.status == 401 {
            headers["WWW-Authenticate"] = json!({"schema": {"type": "string", "const": "Bearer"}});
        }
        let description = problem.detail.clone();
        let content = schemas.body::<Problem>("application/problem+json", &[(problem.code, json!(problem))]);
        responses[status] = json!({"description": description, "headers": headers, "content": content});
    }
    let examples = [("one", event), ("several", batch), ("native", native)];
    json!({
        "post": {
            "operationId": "hostEvents",
            "tags": ["hosts"],
            "summary": "Takes events that say which hosts to look at",
            "description": "What is done is decided from the host itself. On 429 and 503 all of it is sent again.",
            "security": [{"webhookToken": []}, {"webhookSignature": []}],
            "requestBody": {
                "required": true,
                "description": "UTF-8, not compressed, at most 262,144 bytes.",
                "content": schemas.body::<Events>("application/json", &examples),
            },
            "responses": responses,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_are_those_of_the_events() {
        let mut schemas = Schemas::new();
        schemas.of::<HostEvent>();
        let all = schemas.0.take_definitions(true);
        let text = all["HostEvent"].to_string();
        assert!(TYPES.iter().all(|kind| text.contains(&format!("\"{kind}\""))), "{text}");
    }
}
