//! `GET /actions/{id}`: how a machine action stands, asked of Defender now with the caller's own credentials; nothing is
//! stored (`DESIGN.md` 10, ruling 14).

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;
use super::observe::failures;
use crate::credentials::Credentials;
use crate::defender::model::MachineAction;
use crate::defender::{DefenderError, Kind};
use crate::job::Reply;
use crate::relay::{self, HttpError};

/// The answer by `until`.
pub(super) async fn handle(id: &str, credentials: &Credentials, until: Instant, context: &Context) -> Reply {
    match context.session(credentials, until).machine_action(id).await {
        Ok(Some(action)) => {
            super::name_action(&action.id);
            Reply { status: 200, action_id: Some(action.id.clone()), body: json!({ "data": shown(&action) }) }
        }
        Ok(None) => Reply::http(HttpError::UNKNOWN_ACTION),
        Err(error) => {
            tracing::warn!(error = %error, "a machine action could not be read");
            let status = status(&error);
            Reply { status, action_id: None, body: relay::failure(&[failures::relay_error(&error, false)]) }
        }
    }
}

/// The HTTP status of a failure: this is no route of the platform, whose answers are all 200.
fn status(error: &DefenderError) -> u16 {
    match error.kind() {
        Kind::TokenRefused { .. } | Kind::TokenTenantUnknown | Kind::Unauthorized => 401,
        Kind::Forbidden => 403,
        Kind::Throttled { .. } => 429,
        Kind::InvalidValue => 400,
        _ if error.is_out_of_time() => 504,
        _ => 502,
    }
}

/// An action under Defender's own names (`defender.md` 5.10).
fn shown(action: &MachineAction) -> Value {
    json!({
        "id": action.id,
        "type": action.kind,
        "status": action.status,
        "scope": action.scope,
        "machineId": action.machine_id,
        "computerDnsName": action.computer_dns_name,
        "requestor": action.requestor,
        "requestorComment": action.requestor_comment,
        "creationDateTimeUtc": action.creation_date_time_utc,
        "lastUpdateDateTimeUtc": action.last_update_date_time_utc.as_ref().or(action.last_update_time_utc.as_ref()),
    })
}
