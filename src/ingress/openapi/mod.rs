//! `GET /openapi.json`: what the ingress takes and answers, as an OpenAPI 3.1 document.
//!
//! It is made once, when the ingress starts, from what the code has: schemas are derived from the types that are sent,
//! paths are those of the routes, refusals are turned into examples by the same code that answers with them. What the
//! relay builds from bare JSON, and what it reads by hand because its texts are part of a contract, has a shape of its own
//! in [`shapes`]; tests hold real answers to them.

mod hosts;
mod relay;
mod shapes;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::error::IngressError;
use super::routes::{ROUTES, Route};
use super::{body, json_response, webhook};
use crate::relay::MAX_BODY_BYTES;

/// The route's path.
pub(super) const PATH: &str = "/openapi.json";

/// What the route allows.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// The document changes with the version only, and with what is switched on.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=3600");

/// Whether a request's path is that of the document.
pub(super) fn is_at(path: &str) -> bool {
    path == PATH
}

/// The document of one process.
#[derive(Debug)]
pub(super) struct Document(Bytes);

impl Document {
    /// The document of an ingress with the webhook or without it.
    pub(super) fn new(webhook: bool) -> Self {
        Self(document(webhook).to_string().into())
    }

    /// Answers a request for it. Whatever the request holds means nothing.
    ///
    /// # Errors
    /// For a method that reads nothing.
    pub(super) async fn answer(&self, request: Request) -> Result<Response, IngressError> {
        let (head, body) = request.into_parts();
        body::drop_unread(&head.headers, body, MAX_BODY_BYTES).await;
        match head.method {
            Method::GET | Method::HEAD => {
                let mut response = json_response(StatusCode::OK, self.0.clone());
                response.headers_mut().insert(header::CACHE_CONTROL, CACHE);
                Ok(response)
            }
            Method::OPTIONS => {
                let mut response = Response::new(Body::empty());
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOW));
                Ok(response)
            }
            _ => Err(IngressError::NotAllowed { allow: ALLOW }),
        }
    }
}

/// Collects the schemas of the types that the operations name.
struct Schemas(SchemaGenerator);

impl Schemas {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.meta_schema = None;
            settings.definitions_path = "/components/schemas".into();
            settings.contract = Contract::Serialize;
        });
        Self(settings.into_generator())
    }

    /// A reference to the schema of a type.
    fn of<T: JsonSchema>(&mut self) -> Value {
        self.0.subschema_for::<T>().to_value()
    }

    /// A body of a type, with examples by name.
    fn body<T: JsonSchema>(&mut self, media: &str, examples: &[(&str, Value)]) -> Value {
        let mut body = json!({ media: { "schema": self.of::<T>() } });
        if !examples.is_empty() {
            let examples: Map<String, Value> =
                examples.iter().map(|(name, value)| ((*name).to_owned(), json!({ "value": value }))).collect();
            body[media]["examples"] = examples.into();
        }
        body
    }

    /// An answer with a JSON body.
    fn answer<T: JsonSchema>(&mut self, description: &str, examples: &[(&str, Value)]) -> Value {
        json!({
            "description": description,
            "headers": {"traceresponse": {"$ref": "#/components/headers/TraceResponse"}},
            "content": self.body::<T>("application/json", examples),
        })
    }
}

/// The `OPTIONS` of a path.
fn options(allow: &str) -> Value {
    json!({
        "summary": "Says which methods the path has",
        "security": [],
        "responses": {"200": {
            "description": "No body.",
            "headers": {"Allow": {"schema": {"type": "string", "const": allow}}},
        }},
    })
}

/// The whole document.
fn document(webhook: bool) -> Value {
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for route in ROUTES {
        paths.insert(route.path().to_owned(), relay::path(route, &mut schemas));
    }
    paths.insert(Route::Action.path().to_owned(), relay::action(&mut schemas));
    if webhook {
        paths.insert(webhook::PATH.to_owned(), hosts::path(&mut schemas));
    }
    paths.insert(PATH.to_owned(), own_path());
    let components = json!({
        "schemas": schemas.0.take_definitions(true),
        "headers": {"TraceResponse": {
            "description": "The trace of the request (W3C Trace Context, level 2), when traces are kept.",
            "schema": {"type": "string"},
        }},
        "securitySchemes": {
            "relayToken": {
                "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                "description": "A token of `defender-bridge token`: the tenant, the application and its secret, signed \
                    with the relay's key. A request that is not let in is answered with HTTP 200 and the error \
                    `authorization error`, as the platform expects it.",
            },
            "webhookToken": {
                "type": "http", "scheme": "bearer",
                "description": "One of the tokens in `BRIDGE_WEBHOOK_TOKEN`, for senders that cannot sign.",
            },
            "webhookSignature": {
                "type": "apiKey", "in": "header", "name": "webhook-signature",
                "description": "Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature`, by one of \
                    the secrets in `BRIDGE_WEBHOOK_SECRET`.",
            },
        },
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "defender-bridge",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": env!("CARGO_PKG_DESCRIPTION"),
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "relay", "description": "What Cisco Threat Response asks."},
            {"name": "actions", "description": "What became of machine actions."},
            {"name": "hosts", "description": "Events about hosts of Vectra Cognito."},
            {"name": "document", "description": "This document."},
        ],
        "paths": paths,
        "components": components,
    })
}

const DESCRIPTION: &str = "The relay's routes answer HTTP 200 for good and bad alike: what was found is in `data`, what \
    was not found out, and every refusal, in `errors`. Other statuses come from below the relay: 400 and 408 for a body \
    that does not arrive, 404 for an unknown path, 405 (with `Allow`) for a method that a path does not have, 413 for a \
    body over 1 MiB; their body is an `HttpError`. `/actions/{id}` has statuses of its own. The webhook answers with \
    statuses and problem details (RFC 9457). One slash at the end of a path does not matter, nor does a query, nor the \
    content type of a relay's request.";

fn own_path() -> Value {
    json!({
        "get": {
            "operationId": "document",
            "tags": ["document"],
            "summary": "This document",
            "security": [],
            "responses": {"200": {
                "description": "An OpenAPI 3.1 document.",
                "headers": {"Cache-Control": {"schema": {"type": "string"}}},
                "content": {"application/json": {"schema": {
                    "type": "object",
                    "required": ["openapi", "info", "paths"],
                    "properties": {"openapi": {"type": "string", "const": "3.1.0"}},
                }}},
            }},
        },
        "options": options(ALLOW),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        for webhook in [false, true] {
            let document = document(webhook);
            let paths = document["paths"].as_object().unwrap();
            assert!(ROUTES.into_iter().all(|route| paths.contains_key(route.path())));
            assert_eq!(paths.contains_key(webhook::PATH), webhook);
            for path in paths.keys() {
                assert!(Route::of(path).is_some() || webhook::is_at(path) || is_at(path), "{path}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document(true);
        let mut references = std::collections::BTreeSet::new();
        collect(&document, &mut references);
        for reference in &references {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(references.contains(&format!("#/components/schemas/{name}")), "{name}");
        }
    }

    fn collect(value: &Value, references: &mut std::collections::BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                references.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| collect(value, references));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
            _ => {}
        }
    }

    #[test]
    fn the_document_shows_no_way_into_the_code() {
        let text = document(true).to_string();
        for sign in ["[`", "defect ", "DESIGN.md", "relay.md", "cognito.md", "crate::", "Self::"] {
            assert!(!text.contains(sign), "{sign}");
        }
    }
}
