//! `/health`: whether Defender can be reached with the caller's credentials (`relay.md` 1.3).

use bytes::Bytes;
use tokio::time::Instant;

use super::Context;
use super::observe::failures;
use super::relay::failure;
use crate::credentials::Credentials;
use crate::defender::{Audience, Kind};
use crate::relay;

/// Roles that suffice for alerts: with one of them a tenant without `Machine.Read.All` is still served (`DESIGN.md` 10,
/// ruling 7).
const ALERT_ROLES: [&str; 2] = ["Alert.Read.All", "Alert.ReadWrite.All"];

/// Answers `health`. No hunting call: its quota is too small.
pub(super) async fn handle(credentials: &Credentials, until: Instant, context: &Context) -> Bytes {
    let session = context.session(credentials, until);
    let Err(error) = session.machines_top1().await else {
        return relay::health_ok().to_string().into();
    };
    if *error.kind() == Kind::Forbidden
        && let Ok(claims) = session.roles(Audience::Defender).await
        && claims.roles.iter().any(|role| ALERT_ROLES.contains(&role.as_str()))
    {
        return relay::health_ok().to_string().into();
    }
    tracing::warn!(error = %error, "health is not ok");
    failure(&[failures::relay_error(&error, false)])
}
