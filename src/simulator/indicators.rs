//! Indicators (`defender.md` 5.12): what each tenant's list holds, and what the service demands of a new one.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Control;
use super::answer::Answer;
use super::defender::{entity, error, is_domain, is_hex, not_found, odata_error, page};
use super::entra::Issued;
use super::odata::{Kind, Options, Properties};
use super::request::Incoming;
use super::world::{World, lock};

/// The properties that the list can be filtered by, without the flag `generateAlert` and the lists of groups.
const PROPERTIES: Properties = &[
    ("application", Kind::Text),
    ("createdByDisplayName", Kind::Text),
    ("expirationTime", Kind::Time),
    ("title", Kind::Text),
    ("indicatorValue", Kind::Text),
    ("indicatorType", Kind::Text),
    ("creationTimeDateTimeUtc", Kind::Time),
    ("createdBy", Kind::Text),
    ("action", Kind::Text),
    ("severity", Kind::Text),
];

/// The role that sees and writes all of a tenant's indicators; `Ti.ReadWrite` sees those of its own application.
const ALL: &str = "Ti.ReadWrite.All";

/// Active indicators of a tenant at most.
const LIMIT: usize = 15_000;

const MEMBERS: [&str; 12] = [
    "indicatorValue",
    "indicatorType",
    "action",
    "title",
    "description",
    "severity",
    "generateAlert",
    "expirationTime",
    "application",
    "recommendedActions",
    "educateUrl",
    "rbacGroupNames",
];

/// The indicators of all tenants, in the order they were made.
#[derive(Debug, Default)]
pub(super) struct Indicators {
    tenants: HashMap<String, Vec<Value>>,
    made: u64,
}

impl Control {
    /// Somebody makes an indicator in the portal, unchecked; its id.
    pub fn indicate_in_portal(&self, tenant: &str, value: &str, kind: &str, action: &str, user: &str) -> String {
        let members = json!({
            "indicatorValue": value, "indicatorType": kind, "action": action, "title": "By hand", "description": "By hand",
        });
        let members = members.as_object().expect("an object").clone();
        let now = self.0.clock.now();
        let mut indicators = lock(&self.0.indicators);
        let written = indicators.put(&tenant.to_ascii_lowercase(), members, ("User", user), now);
        written["id"].as_str().unwrap_or_default().to_owned()
    }

    /// Every indicator of a tenant, oldest first.
    pub fn indicators(&self, tenant: &str) -> Vec<Value> {
        lock(&self.0.indicators).tenants.get(&tenant.to_ascii_lowercase()).cloned().unwrap_or_default()
    }
}

impl Indicators {
    /// Forgets all indicators.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Makes an indicator, or updates the one of the same value and type, which keeps its id and its application.
    fn put(&mut self, tenant: &str, members: Map<String, Value>, maker: (&str, &str), now: Timestamp) -> &Value {
        let now = now.to_string();
        let all = self.tenants.entry(tenant.to_owned()).or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_ascii_lowercase();
        let same = |known: &Value| {
            ["indicatorValue", "indicatorType"].iter().all(|name| text(&known[*name]) == text(&members[*name]))
        };
        let place = all.iter().position(same).unwrap_or_else(|| {
            self.made += 1;
            all.push(json!({
                "id": self.made.to_string(), "sourceType": maker.0, "createdBy": maker.1, "source": maker.1,
                "createdByDisplayName": maker.1, "creationTimeDateTimeUtc": now, "application": members.get("application"),
                "expirationTime": null, "severity": "Informational", "generateAlert": false, "rbacGroupNames": [],
                "rbacGroupIds": [], "recommendedActions": null, "externalId": null, "category": 1,
            }));
            all.len() - 1
        });
        let known = &mut all[place];
        for (name, value) in members {
            if name != "application" {
                known[&name] = value;
            }
        }
        known["lastUpdateTime"] = json!(now);
        known["lastUpdatedBy"] = json!(maker.1);
        &all[place]
    }
}

/// `GET /indicators`.
pub(super) fn list(world: &World, request: &Incoming, caller: &Issued) -> Result<Answer, Answer> {
    let options = Options::read(&request.query, PROPERTIES, false).map_err(|detail| odata_error(&detail))?;
    let sees_all = caller.roles.iter().any(|role| role == ALL);
    let now = world.clock.now();
    let indicators = lock(&world.indicators);
    let active = |known: &&Value| {
        let ends = known["expirationTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        ends.is_none_or(|ends| ends > now)
    };
    let found: Vec<&Value> = indicators
        .tenants
        .get(&caller.tenant)
        .into_iter()
        .flatten()
        .filter(active)
        .filter(|known| sees_all || known["createdBy"] == *caller.client)
        .filter(|known| options.filter.as_ref().is_none_or(|filter| filter.passes(known)))
        .collect();
    Ok(page(world, request, "Indicators", &options, &found, Value::clone))
}

/// `POST /indicators`.
pub(super) fn submit(world: &World, request: &Incoming, caller: &Issued) -> Result<Answer, Answer> {
    let members: Map<String, Value> = serde_json::from_slice(&request.body)
        .map_err(|_| error(400, "InvalidRequestBody", "The request body is not a JSON object (simulated)."))?;
    check(&members)?;
    let mut indicators = lock(&world.indicators);
    if indicators.tenants.get(&caller.tenant).is_some_and(|all| all.len() >= LIMIT) {
        return Err(error(400, "InvalidInput", "There are too many indicators (simulated)."));
    }
    let written = indicators.put(&caller.tenant, members, ("AadApp", &caller.client), world.clock.now());
    Ok(entity(200, "Indicators", written))
}

/// `DELETE /indicators/{id}`.
pub(super) fn delete(world: &World, caller: &Issued, id: &str) -> Result<Answer, Answer> {
    let mut indicators = lock(&world.indicators);
    let all = indicators.tenants.entry(caller.tenant.clone()).or_default();
    let place = all.iter().position(|known| known["id"] == *id).ok_or_else(|| not_found("Indicator", id))?;
    all.remove(place);
    Ok(Answer::empty(204))
}

/// What the service demands (`defender.md` 5.12, the rules that bite).
fn check(members: &Map<String, Value>) -> Result<(), Answer> {
    let refused = |detail: String| Err(error(400, "InvalidInput", &format!("{detail} (simulated).")));
    if let Some(name) = members.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
        return Err(error(400, "InvalidRequestBody", &format!("The property '{name}' does not exist (simulated).")));
    }
    let text = |name: &str| members.get(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    for name in ["indicatorValue", "indicatorType", "action", "title", "description"] {
        if text(name).is_none() {
            return Err(error(400, "MissingRequiredParameter", &format!("Parameter {name} is missing (simulated).")));
        }
    }
    let (value, kind, action) = (text("indicatorValue"), text("indicatorType"), text("action"));
    let (value, kind, action) = (value.unwrap_or_default(), kind.unwrap_or_default(), action.unwrap_or_default());
    let hash = |digits| if is_hex(value, digits) { Ok(()) } else { Err(("InvalidHashValue", "hash")) };
    let valid = match kind {
        "FileMd5" => hash(32),
        "FileSha1" | "CertificateThumbprint" => hash(40),
        "FileSha256" => hash(64),
        "DomainName" if is_domain(value) => Ok(()),
        "DomainName" => Err(("InvalidDomainName", "domain")),
        "IpAddress" => match value.parse::<IpAddr>() {
            Ok(address) if is_external(address) => Ok(()),
            Ok(_) => return refused("Only public addresses can be used as indicators".to_owned()),
            Err(_) => Err(("InvalidIpAddress", "address")),
        },
        "Url" if value.contains("://") => Ok(()),
        "Url" => Err(("InvalidUrl", "URL")),
        other => return refused(format!("The indicator type '{other}' is not known")),
    };
    if let Err((code, what)) = valid {
        return Err(error(400, code, &format!("The {what} '{value}' is not valid (simulated).")));
    }
    let file = kind.starts_with("File");
    match action {
        "Allowed" | "Audit" | "Block" | "Warn" => {}
        "BlockAndRemediate" if file => {}
        other => return refused(format!("The action '{other}' is not allowed for {kind}")),
    }
    let alerts = match members.get("generateAlert") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => return refused("generateAlert is no flag".to_owned()),
    };
    if action == "Audit" && !alerts {
        return refused("generateAlert must be true with Audit".to_owned());
    }
    match members.get("severity") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(is)) if ["Informational", "Low", "Medium", "High"].contains(&is.as_str()) => Ok(()),
        Some(other) => refused(format!("The severity {other} is not known")),
    }
}

/// The service refuses internal addresses; those for documentation are as good as any here.
fn is_external(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_service_refuses_is_refused() {
        let rows = [
            (json!({}), None),
            (json!({"indicatorValue": "192.168.7.1"}), Some("InvalidInput")),
            (json!({"indicatorValue": "203.0.113.0/24"}), Some("InvalidIpAddress")),
            (json!({"indicatorValue": "fd00::1"}), Some("InvalidInput")),
            (json!({"indicatorType": "DomainName", "indicatorValue": "not a domain"}), Some("InvalidDomainName")),
            (json!({"indicatorType": "FileSha1", "indicatorValue": "00"}), Some("InvalidHashValue")),
            (json!({"action": "AlertAndBlock"}), Some("InvalidInput")),
            (json!({"action": "Alert"}), Some("InvalidInput")),
            (json!({"action": "BlockAndRemediate"}), Some("InvalidInput")),
            (json!({"action": "Audit"}), Some("InvalidInput")),
            (json!({"action": "Audit", "generateAlert": true}), None),
            (json!({"title": " "}), Some("MissingRequiredParameter")),
            (json!({"description": null}), Some("MissingRequiredParameter")),
            (json!({"severity": "Huge"}), Some("InvalidInput")),
            (json!({"Title": "x"}), Some("InvalidRequestBody")),
        ];
        for (change, code) in rows {
            let mut members = json!({
                "indicatorValue": "203.0.113.66", "indicatorType": "IpAddress", "action": "Block", "title": "t",
                "description": "d",
            });
            let members = members.as_object_mut().unwrap();
            members.extend(change.as_object().unwrap().clone());
            let refused = check(members).err().map(|answer| {
                let body: Value = serde_json::from_slice(&answer.body).unwrap();
                body["error"]["code"].as_str().unwrap().to_owned()
            });
            assert_eq!(refused.as_deref(), code, "{change}");
        }
    }
}
