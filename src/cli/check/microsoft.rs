//! Entra, Defender and Graph: tokens for both audiences, the permissions in them, and one call each that reads.

use std::time::Duration;

use tokio::time::Instant;

use super::PROBE_LIMIT;
use super::report::Row;
use crate::defender::{Audience, Credentials, Defender, DefenderError, Kind, Limits, Session, TokenClaims};

/// A permission of which one must be in the token, and who wants it.
#[derive(Clone, Copy)]
pub(super) struct Need {
    /// The least that does, and what does as well (`defender.md` 8).
    permissions: &'static [&'static str],
    audience: Audience,
    feature: &'static str,
}

const ALERTS: &[&str] = &["Alert.Read.All", "Alert.ReadWrite.All"];
const MACHINES: &[&str] = &["Machine.Read.All", "Machine.ReadWrite.All"];

const fn defender(permissions: &'static [&'static str], feature: &'static str) -> Need {
    Need { permissions, audience: Audience::Defender, feature }
}

/// What `/observe` asks.
pub(super) const OBSERVE: [Need; 4] = [
    defender(ALERTS, "observe"),
    defender(&["File.Read.All"], "observe"),
    defender(MACHINES, "observe"),
    Need { permissions: &["ThreatHunting.Read.All"], audience: Audience::Graph, feature: "observe" },
];

/// What `/respond` asks and does.
pub(super) const RESPOND: [Need; 6] = [
    defender(MACHINES, "respond"),
    defender(&["Machine.Isolate"], "respond"),
    defender(&["Machine.RestrictExecution"], "respond"),
    defender(&["Machine.Scan"], "respond"),
    defender(&["Machine.CollectForensics"], "respond"),
    defender(&["Ti.ReadWrite.All"], "respond"),
];

/// What context for hosts asks.
pub(super) const ENRICH: [Need; 2] = [defender(MACHINES, "enrich"), defender(ALERTS, "enrich")];

/// What isolating and releasing hosts looks at.
pub(super) const CONTAIN: [Need; 1] = [defender(MACHINES, "block and unblock")];

/// What it does.
pub(super) const ACT: [Need; 1] = [defender(&["Machine.Isolate"], "block and unblock")];

/// An application, and what it is for.
pub(super) struct Application {
    /// How the table calls it.
    pub(super) name: String,
    pub(super) credentials: Credentials,
    pub(super) needs: Vec<Need>,
}

/// Which of the services can be reached at all: what cannot is not asked again.
#[derive(Clone, Copy)]
pub(super) struct Reached {
    pub(super) entra: bool,
    pub(super) defender: bool,
    pub(super) graph: bool,
}

/// Looks at one application.
pub(super) async fn application(client: &Defender, application: &Application, reached: Reached) -> Vec<Row> {
    if !reached.entra {
        return Vec::new();
    }
    let deadline = Instant::now() + 2 * PROBE_LIMIT;
    let session = client.session(application.credentials.clone(), deadline, Limits::default());
    let mut rows = Vec::new();
    for audience in [Audience::Defender, Audience::Graph] {
        let needs: Vec<Need> = application.needs.iter().copied().filter(|need| need.audience == audience).collect();
        if needs.is_empty() {
            continue;
        }
        let (peer, up) = match audience {
            Audience::Defender => ("defender", reached.defender),
            Audience::Graph => ("graph", reached.graph),
        };
        let what = format!("{}: token for {peer}", application.name);
        let claims = match session.roles(audience).await {
            Ok(claims) => claims,
            Err(error) => {
                rows.push(Row::failed("entra", what, explain(&error, None)));
                continue;
            }
        };
        rows.push(Row::ok("entra", what, roles(&claims)));
        rows.extend(permissions(peer, application, &needs, &claims));
        if up {
            rows.extend(call(&session, audience, peer, application, &needs, &claims).await);
        }
    }
    rows
}

fn roles(claims: &TokenClaims) -> String {
    if claims.roles.is_empty() { "without any permission".to_owned() } else { claims.roles.join(", ") }
}

/// A row for each permission, with all who want it.
fn permissions(peer: &'static str, application: &Application, needs: &[Need], claims: &TokenClaims) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for need in needs {
        let permission = need.permissions[0];
        if let Some(row) = rows.iter_mut().find(|row| row.permission == Some(permission)) {
            row.features.push(need.feature);
            continue;
        }
        let what = format!("{}: {permission}", application.name);
        let row = if holds(claims, need) {
            Row::ok(peer, what, "is granted")
        } else {
            let detail =
                "is missing in the token: grant it to the application as an application permission, and consent";
            Row::failed(peer, what, detail)
        };
        rows.push(Row { permission: Some(permission), features: vec![need.feature], ..row });
    }
    rows
}

fn holds(claims: &TokenClaims, need: &Need) -> bool {
    need.permissions.iter().any(|permission| claims.roles.iter().any(|role| role == permission))
}

/// The cheapest call that shows that the service is there for this tenant. None, where the application may not read.
async fn call(
    session: &Session,
    audience: Audience,
    peer: &'static str,
    application: &Application,
    needs: &[Need],
    claims: &TokenClaims,
) -> Option<Row> {
    let (what, permissions, asked) = match audience {
        Audience::Defender => {
            let reads = needs.iter().find(|need| need.permissions == MACHINES)?;
            ("reads machines", reads, session.machines_top1().await)
        }
        Audience::Graph => ("runs a hunting query", needs.first()?, session.hunting_probe().await),
    };
    let what = format!("{}: {what}", application.name);
    match asked {
        Ok(()) => Some(Row::ok(peer, what, "works")),
        // A permission that is missing has its row already.
        Err(error) if !holds(claims, permissions) && (error.kind() == &Kind::Forbidden || error.lacks_table()) => None,
        Err(error) => Some(Row::failed(peer, what, explain(&error, claims.audience.as_deref()))),
    }
}

/// What to do about a failure.
fn explain(error: &DefenderError, audience: Option<&str>) -> String {
    let hint = match error.kind() {
        Kind::TokenRefused { description } | Kind::TokenOther { description } => {
            let said = description.as_deref().and_then(|text| text.lines().next()).unwrap_or("no reason given");
            return match advice(said) {
                Some(advice) => format!("{advice}; Entra says: {said}"),
                None => format!("Entra says: {said}"),
            };
        }
        Kind::TokenTenantUnknown => "there is no such tenant: look at TENANT_ID and BRIDGE_CLOUD",
        Kind::Unauthorized => "the token is not accepted: a licence is missing, the service is off, or a wrong scope",
        Kind::Forbidden => {
            return format!(
                "refused although the permission is in the token, which is for {}: {}",
                audience.unwrap_or("nobody"),
                error.detail().unwrap_or("no reason given")
            );
        }
        Kind::Throttled { .. } => "Microsoft's quota is used up at present: try again later",
        Kind::Certificate { .. } | Kind::Tls => "the connection is not trusted: is there a proxy that opens TLS?",
        Kind::Connect => "cannot be reached",
        Kind::Deadline => "no answer in time",
        _ if error.lacks_table() => "hunting does not know the tables: is the product licensed and set up?",
        _ => "an answer that does not fit",
    };
    format!("{hint} ({error})")
}

/// What the number in Entra's words means (`defender.md` 1.4). The texts may change; the numbers only refine.
fn advice(said: &str) -> Option<&'static str> {
    let number: String = said.strip_prefix("AADSTS")?.chars().take_while(char::is_ascii_digit).collect();
    Some(match number.as_str() {
        "700016" => "the application is not known in this tenant: look at the ids, and whether an admin consented",
        "7000215" => "the secret is wrong; often it is the secret's id in place of its value",
        "7000222" => "the secret has expired: make a new one",
        "700027" => "the certificate is not one of the application's",
        "700024" => "the times of the signed request are refused: compare the clocks",
        "90002" => "there is no such tenant in this cloud: look at TENANT_ID and BRIDGE_CLOUD",
        "90038" | "900432" => "the tenant is in another cloud: set BRIDGE_CLOUD",
        "53003" => "a Conditional Access policy blocks the application",
        "500011" => "the service is not set up in this tenant, or BRIDGE_CLOUD or a scope is wrong",
        _ => return None,
    })
}

/// How far this machine's clock may be off: the leeway with which tokens are judged (`relay.md` 2.2).
pub(super) const SKEW_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entras_numbers_are_put_in_words() {
        assert!(advice("AADSTS7000222: The provided client secret keys are expired.").unwrap().contains("expired"));
        assert!(advice("AADSTS90038: x").unwrap().contains("BRIDGE_CLOUD"));
        assert!(advice("AADSTS900432: x").unwrap().contains("BRIDGE_CLOUD"));
        assert_eq!(advice("AADSTS1: x"), None);
        assert_eq!(advice("something else"), None);
    }

    #[test]
    fn a_permission_that_several_features_want_is_one_row() {
        let claims = TokenClaims { audience: None, roles: vec!["Alert.ReadWrite.All".to_owned()] };
        let needs: Vec<Need> = OBSERVE.into_iter().chain(ENRICH).chain(CONTAIN).collect();
        let defender: Vec<Need> = needs.into_iter().filter(|need| need.audience == Audience::Defender).collect();
        let application = Application {
            name: "a".to_owned(),
            credentials: Credentials {
                tenant_id: "t".to_owned(),
                client_id: "a".to_owned(),
                proof: secrecy::SecretString::from("s").into(),
            },
            needs: Vec::new(),
        };
        let rows = permissions("defender", &application, &defender, &claims);
        let told: Vec<_> =
            rows.iter().map(|row| (row.permission.unwrap(), row.is_good(), row.features.len())).collect();
        assert_eq!(told, [("Alert.Read.All", true, 2), ("File.Read.All", false, 1), ("Machine.Read.All", false, 3)]);
    }
}
