//! Shapes of what the relay builds from bare JSON or reads by hand. Only their schemas are used.

#![expect(dead_code, reason = "nothing is made of them: they are there to be described")]

use schemars::JsonSchema;

use crate::relay::RelayError;
use crate::relay::ctim::{Sighting, Typed};

/// An answer of the relay, always with HTTP status 200: what was found, what was not found out, or both.
#[derive(JsonSchema)]
#[schemars(
    rename = "{D}Answer",
    deny_unknown_fields,
    extend("anyOf" = [{"required": ["data"]}, {"required": ["errors"]}])
)]
pub(super) struct Answer<D> {
    /// What was found or done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "D")]
    data: Option<D>,
    /// Why something is not in `data`; no two have the same code and message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    errors: Vec<RelayError>,
}

/// The relay can reach Defender with the token's application.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Health {
    /// Anything else is an error.
    #[schemars(extend("const" = "ok"))]
    status: String,
}

/// The relay's version; no `data` around it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Version {
    /// That of the program.
    version: String,
}

/// What Defender has seen; empty when it has seen nothing.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Observed {
    /// Left out when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Sightings")]
    sightings: Option<Sightings>,
}

/// Sightings in the order of the request.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Sightings {
    /// How many there are.
    #[schemars(range(min = 1))]
    count: usize,
    /// No two are equal.
    #[schemars(length(min = 1))]
    docs: Vec<SightingDocument>,
}

/// A sighting of an observable: one alert or one event.
#[derive(JsonSchema)]
pub(super) struct SightingDocument {
    /// The observable as it was asked for, and as Defender spells it where that differs.
    #[schemars(length(min = 1))]
    observables: Vec<Typed>,
    #[serde(flatten)]
    sighting: Sighting,
}

/// The relay has no verdicts.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Verdicts {}

/// How a trigger ended.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Triggered {
    status: TriggerStatus,
}

/// What the platform understands.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub(super) enum TriggerStatus {
    /// Defender took the action.
    Success,
    /// It was not taken; `errors` says why.
    Failure,
}

/// What is asked about.
#[derive(JsonSchema)]
#[schemars(transparent)]
pub(super) struct Observables(#[schemars(length(max = 1000))] Vec<Observable>);

/// An observable as the platform has it. Types that Defender does not know are passed over, further members ignored.
#[derive(JsonSchema)]
pub(super) struct Observable {
    /// `ip`, `ipv6`, `domain`, `sha1`, `sha256`, `md5`, ...
    #[serde(rename = "type")]
    #[schemars(length(min = 1))]
    kind: String,
    /// As somebody wrote it.
    #[schemars(length(min = 1))]
    value: String,
}

/// An action that the relay offered, as the platform sends it back. Further members are ignored.
#[derive(JsonSchema)]
pub(super) struct ActionForm {
    /// The action's id.
    #[serde(rename = "action-id")]
    #[schemars(length(min = 1))]
    action_id: String,
    /// The observable's type.
    #[schemars(length(min = 1))]
    observable_type: String,
    /// The observable's value.
    #[schemars(length(min = 1))]
    observable_value: String,
    /// For actions that remove an indicator.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "IndicatorId")]
    indicator_id: Option<IndicatorId>,
}

/// Defender's id of an indicator.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub(super) enum IndicatorId {
    /// As Defender has it.
    Number(u64),
    /// In digits, which it may have become on its way.
    Digits(#[schemars(regex(pattern = "^[0-9]{1,20}$"))] String),
}

/// A link to Defender's portal.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Link {
    /// `ref-md-search-` with type and value.
    id: String,
    /// For the menu.
    title: String,
    /// What it does.
    description: String,
    /// Where it leads.
    #[schemars(url)]
    url: String,
    /// For grouping.
    categories: Vec<String>,
}

/// An action that is offered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Action {
    /// What `/respond/trigger` gets as `action-id`.
    id: String,
    /// For the menu.
    title: String,
    /// What it does.
    description: String,
    /// For grouping.
    categories: Vec<String>,
    /// What comes back with the trigger.
    #[serde(rename = "query-params")]
    query_params: std::collections::BTreeMap<String, String>,
}

/// Why there is nothing to tell.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Failed {
    /// One or more.
    #[schemars(length(min = 1))]
    errors: Vec<RelayError>,
}

/// A machine action.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct MachineAction {
    /// Under Defender's own names.
    data: MachineActionData,
}

/// What Defender says of a machine action; `null` where it says nothing.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct MachineActionData {
    /// The action's id.
    id: String,
    /// `Isolate`, `Unisolate`, `RunAntiVirusScan`, ...
    #[serde(rename = "type")]
    kind: String,
    /// `Pending`, `InProgress`, `Succeeded`, `Failed`, `TimeOut`, `Cancelled`.
    status: String,
    /// `Full`, `Selective` of an isolation; `Quick`, `Full` of a scan.
    scope: Option<String>,
    /// The machine's id.
    machine_id: Option<String>,
    /// The machine's name.
    computer_dns_name: Option<String>,
    /// Who asked for it.
    requestor: Option<String>,
    /// The comment it was asked with.
    requestor_comment: Option<String>,
    /// When it was asked for.
    creation_date_time_utc: Option<String>,
    /// When it last changed.
    last_update_date_time_utc: Option<String>,
}
