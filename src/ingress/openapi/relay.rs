//! The relay's routes.

use serde_json::{Value, json};

use super::shapes::{
    Action, ActionForm, Answer, Failed, Health, Link, MachineAction, Observables, Observed, Triggered, Verdicts,
    Version,
};
use super::{Schemas, options};
use crate::ingress::error::{ALLOW, ALLOW_GET};
use crate::ingress::routes::Route;
use crate::relay::ctim::{ObservedTime, Sighting};
use crate::relay::{self, HttpError, Observable, ObserveReply, RelayError, payload, token};

/// One path of the relay.
pub(super) fn path(route: Route, schemas: &mut Schemas) -> Value {
    let mut post = operation(route, schemas);
    post["tags"] = json!(["relay"]);
    if route != Route::Version {
        post["security"] = json!([{"relayToken": []}]);
    }
    for (status, answer) in below(schemas) {
        post["responses"][status] = answer;
    }
    json!({ "post": post, "options": options(ALLOW) })
}

fn operation(route: Route, schemas: &mut Schemas) -> Value {
    let refused = ("refused", relay::failure(&[RelayError::from(token::TokenError::WrongKey)]));
    match route {
        Route::Health => json!({
            "operationId": "health",
            "summary": "Whether the token opens Defender",
            "responses": {"200": schemas.answer::<Answer<Health>>(
                "Well, or why not.",
                &[("well", relay::health_ok()), refused],
            )},
        }),
        Route::Version => json!({
            "operationId": "version",
            "summary": "The relay's version",
            "security": [],
            "responses": {"200": schemas.answer::<Version>(
                "The version.",
                &[("version", relay::version(env!("CARGO_PKG_VERSION")))],
            )},
        }),
        Route::Observe => json!({
            "operationId": "observe",
            "summary": "What Defender has seen of observables",
            "requestBody": asked(schemas),
            "responses": {"200": schemas.answer::<Answer<Observed>>(
                "Sightings, and what was not found out. Empty as well when the route is switched off.",
                &[("seen", seen()), ("nothing", relay::no_data()), ("malformed", malformed()), refused],
            )},
        }),
        Route::Deliberate => json!({
            "operationId": "deliberate",
            "summary": "Verdicts: the relay has none",
            "requestBody": asked(schemas),
            "responses": {"200": schemas.answer::<Answer<Verdicts>>(
                "Always empty, for a request that is well-formed.",
                &[("nothing", relay::no_data()), ("malformed", malformed()), refused],
            )},
        }),
        Route::Refer => json!({
            "operationId": "refer",
            "summary": "Links to Defender's portal about observables",
            "requestBody": asked(schemas),
            "responses": {"200": schemas.answer::<Answer<Vec<Link>>>(
                "Links; none when the route is switched off.",
                &[("nothing", relay::empty_list()), refused],
            )},
        }),
        Route::Respond => json!({
            "operationId": "respond",
            "summary": "What can be done about observables",
            "requestBody": asked(schemas),
            "responses": {"200": schemas.answer::<Answer<Vec<Action>>>(
                "Actions; none when the route is switched off.",
                &[("nothing", relay::empty_list()), refused],
            )},
        }),
        Route::Action => unreachable!("it has a path of its own, see `action`"),
        Route::Trigger => json!({
            "operationId": "trigger",
            "summary": "Takes an action that was offered",
            "requestBody": {"required": true, "content": schemas.body::<ActionForm>(
                "application/json",
                &[("isolate", json!({
                    "action-id": "microsoft-defender-FullIsolation", "observable_type": "ms_machine_id",
                    "observable_value": "1e5bc9d7e413ddd7902c2932e418702b84d0cc07",
                }))],
            )},
            "responses": {"200": schemas.answer::<Answer<Triggered>>(
                "Taken or not. A trigger is never repeated by the relay.",
                &[
                    ("taken", relay::trigger_success()),
                    ("failed", relay::trigger_failure(&[RelayError::unsupported_action()])),
                    refused,
                ],
            )},
        }),
    }
}

/// The path that tells how a machine action stands: no route of the platform, with statuses of its own.
pub(super) fn action(schemas: &mut Schemas) -> Value {
    let id = |schema| {
        json!([{
            "name": "id", "in": "path", "required": true,
            "description": "Defender's id of the action, as in the header `x-machine-action-id` of a trigger's answer.",
            "schema": schema,
        }])
    };
    let mut get = json!({
        "operationId": "action",
        "tags": ["actions"],
        "summary": "How a machine action stands, asked of Defender now",
        "security": [{"relayToken": []}],
        "parameters": id(json!({"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"})),
        "responses": {"200": schemas.answer::<MachineAction>("As Defender has it.", &[])},
    });
    for (status, description, error) in [
        ("400", "No id of an action.", HttpError::NO_ACTION_ID),
        ("404", "Defender does not know the action, or response actions are switched off.", HttpError::UNKNOWN_ACTION),
    ] {
        get["responses"][status] = schemas.answer::<HttpError>(description, &[("error", json!(error))]);
    }
    for (status, description, error) in [
        ("401", "No good token, or one that Microsoft refuses.", RelayError::from(token::TokenError::WrongKey)),
        ("403", "The application lacks a permission.", RelayError::permission_denied("Machine.Read.All")),
        ("429", "Defender's quota is used up.", RelayError::too_many_requests()),
        ("502", "Defender or the workers did not answer.", RelayError::not_processed()),
        ("504", "Defender did not answer in time.", RelayError::deadline(false)),
    ] {
        get["responses"][status] = schemas.answer::<Failed>(description, &[("failed", relay::failure(&[error]))]);
    }
    // Which methods a path has does not depend on what stands in the place of the id.
    let mut options = options(ALLOW_GET);
    options["parameters"] = id(json!({"type": "string", "minLength": 1}));
    json!({ "get": get, "options": options })
}

/// The body of what asks about observables.
fn asked(schemas: &mut Schemas) -> Value {
    let list = json!([{"type": "domain", "value": "phishing.example"}, {"type": "ip", "value": "192.0.2.1"}]);
    json!({
        "required": true,
        "description": "At most 1,000 observables. What is not of this form is answered with the error `invalid payload`.",
        "content": schemas.body::<Observables>("application/json", &[("observables", list)]),
    })
}

/// The answer to a body that is no list.
fn malformed() -> Value {
    let details = payload::observable_list(b"{}").expect_err("an object is no list");
    relay::failure(&[RelayError::invalid_payload(&details)])
}

/// The answer to an address that was seen once, with one thing not found out.
fn seen() -> Value {
    let time = ObservedTime {
        start_time: "2026-11-03T09:30:00.000Z".to_owned(),
        end_time: "2026-11-03T09:31:00.000Z".to_owned(),
    };
    let mut sighting = Sighting::new("transient:sighting-9f1b6d8e-3a55-5c0e-8a4f-1d2c3b4a5968".to_owned(), time);
    sighting.title = Some("Connection to a known command and control address".to_owned());
    sighting.severity = Some("High");
    let observable = Observable::parse("ip", "192.0.2.1").expect("an address");
    let reply = ObserveReply {
        docs: vec![sighting.render().document(&observable)],
        errors: vec![RelayError::details_missing()],
    };
    serde_json::from_slice(&reply.to_body()).expect("the relay's own JSON")
}

/// The answers from below the relay.
fn below(schemas: &mut Schemas) -> Vec<(&'static str, Value)> {
    let mut answer = |description: &str, error: Option<HttpError>| {
        let example = error.map(|error| ("error", json!(error)));
        schemas.answer::<HttpError>(description, example.as_slice())
    };
    vec![
        ("400", answer("The body could not be read.", None)),
        ("408", answer("The body did not arrive in time.", None)),
        ("413", answer("The body is larger than 1 MiB.", Some(HttpError::PAYLOAD_TOO_LARGE))),
    ]
}
