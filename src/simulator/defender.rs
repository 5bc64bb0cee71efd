//! Defender for Endpoint's REST API (`defender.md` 5): files, alerts, machines, exposure score; machine actions are
//! beside it in `actions`, indicators in `indicators`.
//!
//! Refusals come in the service's order: token, audience, script, quota, role, then the request itself.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::actions::{self, ActionKind};
use super::answer::{Answer, DEFENDER_JSON};
use super::data::Data;
use super::entra::DEFENDER_RESOURCES;
use super::indicators;
use super::odata::{Filter, Kind, Lookup, Options, Properties};
use super::request::{Incoming, encode};
use super::world::World;

/// What `@odata.context` starts with, whichever host was called (`defender.md` 2.1).
const CONTEXT: &str = "https://api.security.microsoft.com/api/$metadata#";

/// `findbyip` looks this far to both sides of its time (`defender.md` 5.8).
const FIND_BY_IP_REACH: SignedDuration = SignedDuration::from_mins(15);

/// `findbyip` takes times of this many hours back: 30 days.
const FIND_BY_IP_PAST: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The properties that `machines` can be filtered by (`defender.md` 5.7), without the list `machineTags`.
const MACHINE_PROPERTIES: Properties = &[
    ("computerDnsName", Kind::Text),
    ("id", Kind::Text),
    ("version", Kind::Text),
    ("deviceValue", Kind::Text),
    ("aadDeviceId", Kind::Text),
    ("lastSeen", Kind::Time),
    ("exposureLevel", Kind::Text),
    ("onboardingStatus", Kind::Text),
    ("lastIpAddress", Kind::Text),
    ("healthStatus", Kind::Text),
    ("osPlatform", Kind::Text),
    ("riskScore", Kind::Text),
    ("rbacGroupId", Kind::Number),
];

/// The properties that `alerts` can be filtered by (`defender.md` 5.5).
const ALERT_PROPERTIES: Properties = &[
    ("alertCreationTime", Kind::Time),
    ("lastUpdateTime", Kind::Time),
    ("incidentId", Kind::Number),
    ("InvestigationId", Kind::Number),
    ("id", Kind::Text),
    ("assignedTo", Kind::Text),
    ("detectionSource", Kind::Text),
    ("lastEventTime", Kind::Time),
    ("status", Kind::Text),
    ("severity", Kind::Text),
    ("category", Kind::Text),
];

const ALERT_ROLES: &[&str] = &["Alert.Read.All", "Alert.ReadWrite.All"];
const MACHINE_ROLES: &[&str] = &["Machine.Read.All", "Machine.ReadWrite.All"];
const FILE_ROLES: &[&str] = &["File.Read.All"];
const SCORE_ROLES: &[&str] = &["Score.Read.All"];
const ISOLATE_ROLES: &[&str] = &["Machine.Isolate"];
const RESTRICT_ROLES: &[&str] = &["Machine.RestrictExecution"];
const SCAN_ROLES: &[&str] = &["Machine.Scan"];
const COLLECT_ROLES: &[&str] = &["Machine.CollectForensics"];
const INDICATOR_ROLES: &[&str] = &["Ti.ReadWrite.All"];
const INDICATOR_READ_ROLES: &[&str] = &["Ti.ReadWrite", "Ti.ReadWrite.All"];
const CANCEL_ROLES: &[&str] =
    &["Machine.Isolate", "Machine.RestrictExecution", "Machine.Scan", "Machine.CollectForensics"];

/// A route with what its path holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    File(String),
    FileAlerts(String),
    DomainAlerts(String),
    IpAlerts(String),
    Alerts,
    Alert(String),
    Machines,
    Machine(String),
    MachineAlerts(String),
    FindByIp(String),
    Post(ActionKind, String),
    Actions,
    Action(String),
    Cancel(String),
    Available(String),
    Indicators,
    SubmitIndicator,
    DeleteIndicator(String),
    ExposureScore,
    /// The calls that Microsoft retires or has ended.
    Retired(&'static str),
    /// A known route under a method it does not have.
    WrongMethod,
    Unknown,
}

impl Endpoint {
    /// The route of these decoded segments, which follow `/api`.
    pub(super) fn find(method: &Method, segments: &[&str]) -> Self {
        let endpoint = match segments {
            ["advancedqueries", "run"] => return Self::Retired("advancedqueries/run"),
            ["advancedhunting", "run"] => return Self::Retired("advancedhunting/run"),
            ["files", id] => Self::File((*id).to_owned()),
            ["files", id, "alerts"] => Self::FileAlerts((*id).to_owned()),
            ["domains", domain, "alerts"] => Self::DomainAlerts((*domain).to_owned()),
            ["ips", ip, "alerts"] => Self::IpAlerts((*ip).to_owned()),
            ["alerts"] => Self::Alerts,
            ["alerts", id] => Self::Alert((*id).to_owned()),
            ["machines"] => Self::Machines,
            ["machines", call] if call.starts_with("findbyip(") => Self::FindByIp((*call).to_owned()),
            ["machines", id] => Self::Machine((*id).to_owned()),
            ["machines", id, "alerts"] => Self::MachineAlerts((*id).to_owned()),
            ["machines", _, "startInvestigation"] => return Self::Retired("machines/{id}/startInvestigation"),
            ["machines", id, "availableMachineActions"] => Self::Available((*id).to_owned()),
            ["machines", id, segment] if let Some(kind) = ActionKind::of_route(segment) => {
                Self::Post(kind, (*id).to_owned())
            }
            ["indicators"] if *method == Method::POST => return Self::SubmitIndicator,
            ["indicators"] => Self::Indicators,
            ["indicators", id] if *method == Method::DELETE => return Self::DeleteIndicator((*id).to_owned()),
            ["indicators", _] => return Self::WrongMethod,
            ["machineactions"] => Self::Actions,
            ["machineactions", id] => Self::Action((*id).to_owned()),
            ["machineactions", id, "cancel"] => Self::Cancel((*id).to_owned()),
            ["exposureScore"] => Self::ExposureScore,
            _ => return Self::Unknown,
        };
        let writes = matches!(endpoint, Self::Post(..) | Self::Cancel(_));
        let right = if writes { Method::POST } else { Method::GET };
        if *method == right { endpoint } else { Self::WrongMethod }
    }

    /// The name its calls are counted under.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "files",
            Self::FileAlerts(_)
            | Self::DomainAlerts(_)
            | Self::IpAlerts(_)
            | Self::Alerts
            | Self::Alert(_)
            | Self::MachineAlerts(_) => "alerts",
            Self::Machines | Self::Machine(_) | Self::FindByIp(_) => "machines",
            Self::Post(..) | Self::Cancel(_) => "actions",
            Self::Actions | Self::Action(_) => "machineactions",
            Self::Available(_) => "availableMachineActions",
            Self::Indicators | Self::SubmitIndicator | Self::DeleteIndicator(_) => "indicators",
            Self::ExposureScore => "exposureScore",
            Self::Retired(_) => "retired",
            Self::WrongMethod | Self::Unknown => "unknown",
        }
    }

    /// The template of the route.
    pub(super) fn template(&self) -> &'static str {
        match self {
            Self::File(_) => "files/{id}",
            Self::FileAlerts(_) => "files/{id}/alerts",
            Self::DomainAlerts(_) => "domains/{domain}/alerts",
            Self::IpAlerts(_) => "ips/{ip}/alerts",
            Self::Alerts => "alerts",
            Self::Alert(_) => "alerts/{id}",
            Self::Machines => "machines",
            Self::Machine(_) => "machines/{id}",
            Self::MachineAlerts(_) => "machines/{id}/alerts",
            Self::FindByIp(_) => "machines/findbyip",
            Self::Post(ActionKind::Isolate, _) => "machines/{id}/isolate",
            Self::Post(ActionKind::Unisolate, _) => "machines/{id}/unisolate",
            Self::Post(ActionKind::RestrictCodeExecution, _) => "machines/{id}/restrictCodeExecution",
            Self::Post(ActionKind::UnrestrictCodeExecution, _) => "machines/{id}/unrestrictCodeExecution",
            Self::Post(ActionKind::RunAntiVirusScan, _) => "machines/{id}/runAntiVirusScan",
            Self::Post(ActionKind::CollectInvestigationPackage, _) => "machines/{id}/collectInvestigationPackage",
            Self::Available(_) => "machines/{id}/availableMachineActions",
            Self::Indicators | Self::SubmitIndicator => "indicators",
            Self::DeleteIndicator(_) => "indicators/{id}",
            Self::Actions => "machineactions",
            Self::Action(_) => "machineactions/{id}",
            Self::Cancel(_) => "machineactions/{id}/cancel",
            Self::ExposureScore => "exposureScore",
            Self::Retired(template) => template,
            Self::WrongMethod | Self::Unknown => "unknown",
        }
    }

    /// The quota it counts against: a row of the table in `defender.md` 3.1.
    fn family(&self) -> &'static str {
        match self.name() {
            "files" => "alerts",
            name => name,
        }
    }

    /// The roles of which one is needed (`defender.md` 8).
    fn roles(&self) -> &'static [&'static str] {
        match self.name() {
            _ if matches!(self, Self::Cancel(_)) => CANCEL_ROLES,
            "files" => FILE_ROLES,
            "alerts" => ALERT_ROLES,
            "machines" | "machineactions" => MACHINE_ROLES,
            "availableMachineActions" => MACHINE_ROLES,
            "actions" => match self {
                Self::Post(ActionKind::RestrictCodeExecution | ActionKind::UnrestrictCodeExecution, _) => {
                    RESTRICT_ROLES
                }
                Self::Post(ActionKind::RunAntiVirusScan, _) => SCAN_ROLES,
                Self::Post(ActionKind::CollectInvestigationPackage, _) => COLLECT_ROLES,
                _ => ISOLATE_ROLES,
            },
            "indicators" if *self == Self::Indicators => INDICATOR_READ_ROLES,
            "indicators" => INDICATOR_ROLES,
            "exposureScore" => SCORE_ROLES,
            _ => &[],
        }
    }
}

/// Answers a call, from the token on.
pub(super) fn answer(world: &World, endpoint: &Endpoint, request: &Incoming) -> Answer {
    let Some(caller) = request.caller.as_ref().filter(|caller| caller.is_good()) else {
        return error(401, "Unauthorized", "The authorization header is missing, invalid or has expired (simulated).")
            .with("www-authenticate", "Bearer");
    };
    if !DEFENDER_RESOURCES.contains(&caller.audience.as_str()) {
        let detail = format!("The token's audience '{}' is not valid for this service (simulated).", caller.audience);
        return error(403, "Forbidden", &detail);
    }
    if let Some(scripted) = super::server::scripted(world, request) {
        return scripted;
    }
    if !matches!(endpoint, Endpoint::Retired(_) | Endpoint::WrongMethod | Endpoint::Unknown)
        && let Err(refusal) = world.take(&caller.tenant, &caller.client, endpoint.family())
    {
        let detail = format!("API calls quota exceeded! maximum allowed {} per {}", refusal.limit, refusal.window);
        return error(429, "429", &detail).with_retry_after(Some(refusal.retry_after_seconds));
    }
    let roles = endpoint.roles();
    if !roles.is_empty() && !roles.iter().any(|role| caller.roles.iter().any(|held| held == role)) {
        let detail = format!(
            "Missing application roles. API required roles: {}, application roles: {}.",
            roles.join(","),
            caller.roles.join(",")
        );
        return error(403, "Forbidden", &detail);
    }
    let data = world.data(&caller.tenant);
    let answered = match endpoint {
        Endpoint::File(id) => file(&data, id),
        Endpoint::FileAlerts(id) => sha1(id).and_then(|sha1| alerts(world, request, data.alerts_of("sha1", &sha1))),
        Endpoint::DomainAlerts(name) => {
            domain(name).and_then(|domain| alerts(world, request, data.alerts_of("domain", &domain)))
        }
        Endpoint::IpAlerts(ip) => {
            address(ip).and_then(|address| alerts(world, request, data.alerts_of("ip", &address.to_string())))
        }
        Endpoint::Alerts => all_alerts(world, request, &data),
        Endpoint::Alert(id) => data
            .alerts()
            .iter()
            .find(|alert| alert["id"] == **id)
            .map(|alert| entity(200, "Alerts", alert))
            .ok_or_else(|| not_found("Alert", id)),
        Endpoint::Machines => machines(world, request, &data),
        Endpoint::Machine(id) => {
            data.machine(id).map(|machine| entity(200, "Machines", machine)).ok_or_else(|| not_found("Machine", id))
        }
        Endpoint::MachineAlerts(id) => match data.machine(id) {
            Some(machine) => alerts(world, request, data.alerts_of_machine(machine["id"].as_str().unwrap_or_default())),
            None => Err(not_found("Machine", id)),
        },
        Endpoint::FindByIp(call) => find_by_ip(&data, call, world.clock.now()),
        Endpoint::Post(kind, id) => actions::post(world, request, caller, &data, *kind, id),
        Endpoint::Actions => actions::actions(world, request, caller),
        Endpoint::Action(id) => actions::action(world, caller, id),
        Endpoint::Cancel(id) => actions::cancel(world, request, caller, id),
        Endpoint::Available(id) => actions::available(&data, id),
        Endpoint::Indicators => indicators::list(world, request, caller),
        Endpoint::SubmitIndicator => indicators::submit(world, request, caller),
        Endpoint::DeleteIndicator(id) => indicators::delete(world, caller, id),
        Endpoint::ExposureScore => {
            let time = world.clock.now().to_string();
            Ok(entity(200, "ExposureScore", &json!({"time": time, "score": 33.491_554_051_195_706_f64})))
        }
        Endpoint::Retired(_) => {
            Err(error(410, "Gone", "This API has been retired. Use the Microsoft Graph security API (simulated)."))
        }
        Endpoint::WrongMethod => {
            Err(error(405, "BadRequest", "The requested resource does not support this http method (simulated)."))
        }
        Endpoint::Unknown => Err(error(404, "ResourceNotFound", "No resource answers to this path (simulated).")),
    };
    answered.unwrap_or_else(|refusal| refusal)
}

/// The service's own error for a status asked for as a fault.
pub(super) fn fault(status: u16) -> Answer {
    match status {
        400 => error(400, "BadRequest", "The request is not valid (simulated)."),
        401 => error(401, "Unauthorized", "The authorization header is invalid or has expired (simulated)."),
        403 => error(403, "Forbidden", "The operation is not allowed (simulated)."),
        404 => error(404, "ResourceNotFound", "The resource was not found (simulated)."),
        429 => error(429, "TooManyRequests", "Too many requests in the given time (simulated)."),
        500 => error(500, "InternalServerError", ""),
        502..=504 => Answer::html(status),
        _ => error(status, "BadRequest", "Refused (simulated)."),
    }
}

pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({"error": {"code": code, "message": message, "target": Uuid::now_v7().to_string()}});
    Answer::json(status, DEFENDER_JSON, &body)
}

pub(super) fn not_found(what: &str, id: &str) -> Answer {
    error(404, "ResourceNotFound", &format!("{what} {id} was not found"))
}

pub(super) fn odata_error(detail: &str) -> Answer {
    error(400, "ODataError", detail)
}

fn file(data: &Data, id: &str) -> Result<Answer, Answer> {
    if !(is_hex(id, 40) || is_hex(id, 64)) {
        return Err(error(400, "InvalidHashValue", &format!("Hash value '{id}' is not valid (simulated).")));
    }
    data.file(&id.to_ascii_lowercase()).map(|file| entity(200, "Files", file)).ok_or_else(|| not_found("File", id))
}

pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The alert route knows SHA-1 only (`defender.md` 5.2).
fn sha1(text: &str) -> Result<String, Answer> {
    if is_hex(text, 40) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(error(400, "InvalidHashValue", &format!("Hash value '{text}' is not a valid SHA-1 (simulated).")))
    }
}

fn domain(text: &str) -> Result<String, Answer> {
    if is_domain(text) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(error(400, "InvalidDomainName", &format!("Domain name '{text}' is not valid (simulated).")))
    }
}

pub(super) fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253
        && text.contains('.')
        && text.split('.').all(label)
        && !text.rsplit('.').next().is_some_and(|top| top.bytes().all(|byte| byte.is_ascii_digit()))
}

/// IPv4 only: the relay that came before noted that IPv6 is answered 400 (`defender.md` 5.4).
fn address(text: &str) -> Result<Ipv4Addr, Answer> {
    text.parse().map_err(|_| error(400, "InvalidIpAddress", &format!("IP address '{text}' is not valid (simulated).")))
}

/// A whole list of that set.
pub(super) fn list(set: &str, value: &Value) -> Answer {
    let body = json!({"@odata.context": format!("{CONTEXT}{set}"), "value": value});
    Answer::json(200, DEFENDER_JSON, &body)
}

/// One entity of that set.
pub(super) fn entity(status: u16, set: &str, value: &Value) -> Answer {
    let mut body = value.clone();
    body["@odata.context"] = json!(format!("{CONTEXT}{set}/$entity"));
    Answer::json(status, DEFENDER_JSON, &body)
}

fn alerts(world: &World, request: &Incoming, alerts: Vec<&Value>) -> Result<Answer, Answer> {
    // These routes take paging, but nothing is documented to filter them by.
    let options = Options::read(&request.query, &[], false).map_err(|detail| odata_error(&detail))?;
    Ok(page(world, request, "Alerts", &options, &alerts, Value::clone))
}

/// Newest first; without `$expand=evidence` the evidence stays out (`defender.md` 5.5).
fn all_alerts(world: &World, request: &Incoming, data: &Data) -> Result<Answer, Answer> {
    let options = Options::read(&request.query, ALERT_PROPERTIES, true).map_err(|detail| odata_error(&detail))?;
    let passes = |alert: &&Value| options.filter.as_ref().is_none_or(|filter| filter.passes(alert));
    let mut found: Vec<&Value> = data.alerts().iter().filter(passes).collect();
    let created = |alert: &Value| alert["alertCreationTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    found.sort_by_key(|alert| std::cmp::Reverse(created(alert)));
    Ok(page(world, request, "Alerts", &options, &found, |alert| {
        let mut alert = alert.clone();
        if !options.expand_evidence {
            alert["evidence"] = json!([]);
        }
        alert
    }))
}

/// A tenant without machines answers 404; a filter that no machine passes gives an empty list (`defender.md` 5.7).
fn machines(world: &World, request: &Incoming, data: &Data) -> Result<Answer, Answer> {
    let options = Options::read(&request.query, MACHINE_PROPERTIES, false).map_err(|detail| odata_error(&detail))?;
    if data.machines().is_empty() {
        return Err(error(404, "NotFound", "No machines were found (simulated)."));
    }
    Ok(page(world, request, "Machines", &options, &machines_that_pass(data, options.filter.as_ref()), Value::clone))
}

/// By the indexes of the data where they help: a bulk has thousands of machines.
fn machines_that_pass<'a>(data: &'a Data, filter: Option<&Filter>) -> Vec<&'a Value> {
    let passes = |machine: &&Value| filter.is_none_or(|filter| filter.passes(machine));
    let candidates = filter.and_then(|filter| {
        filter.candidates(&|property, lookup| match (property, lookup) {
            ("computerDnsName", Lookup::Is(name)) => Some(data.machines_named(name)),
            ("computerDnsName", Lookup::StartsWith(name)) => Some(data.machines_with_prefix(name)),
            ("id", Lookup::Is(id)) => Some(data.machine_place(id).into_iter().collect()),
            _ => None,
        })
    });
    match candidates {
        Some(few) => few.iter().filter_map(|&place| data.machines().get(place)).filter(passes).collect(),
        None => data.machines().iter().filter(passes).collect(),
    }
}

/// One page of `entries` as `show` shows them, with a link to the next if the page size that was set leaves some over.
pub(super) fn page(
    world: &World,
    request: &Incoming,
    set: &str,
    options: &Options,
    entries: &[&Value],
    show: impl Fn(&Value) -> Value,
) -> Answer {
    let (page_size, foreign) = world.knob(|knobs| (knobs.page_size, knobs.foreign_next_link.clone()));
    let wanted = entries.len().saturating_sub(options.skip).min(options.top.unwrap_or(usize::MAX));
    let size = page_size.unwrap_or(usize::MAX).min(wanted);
    let mut body = json!({"@odata.context": format!("{CONTEXT}{set}")});
    if size < wanted {
        let mut query: Vec<String> = request
            .query
            .iter()
            .filter(|(name, _)| name != "$skip" && name != "$top")
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        if let Some(top) = options.top {
            query.push(format!("$top={}", top - size));
        }
        query.push(format!("$skip={}", options.skip + size));
        let base = foreign.unwrap_or_else(|| request.base());
        body["@odata.nextLink"] = json!(format!("{base}{}?{}", request.uri.path(), query.join("&")));
    }
    body["value"] = entries.iter().skip(options.skip).take(size).map(|entry| show(entry)).collect();
    Answer::json(200, DEFENDER_JSON, &body)
}

/// `findbyip(ip='192.0.2.17',timestamp=2026-11-20T09:00:00Z)` (`defender.md` 5.8).
fn find_by_ip(data: &Data, call: &str, now: Timestamp) -> Result<Answer, Answer> {
    let malformed = || error(400, "InvalidInput", "The call is findbyip(ip='{IP}',timestamp={TimeStamp}) (simulated).");
    let inner = call.strip_prefix("findbyip(").and_then(|rest| rest.strip_suffix(')')).ok_or_else(malformed)?;
    let (ip, timestamp) = inner.split_once(',').ok_or_else(malformed)?;
    let ip = ip.strip_prefix("ip='").and_then(|ip| ip.strip_suffix('\'')).ok_or_else(malformed)?;
    let timestamp = timestamp.trim_start().strip_prefix("timestamp=").ok_or_else(malformed)?;
    let wanted = IpAddr::V4(address(ip)?);
    let at: Timestamp = timestamp
        .parse()
        .map_err(|_| error(400, "InvalidInput", &format!("The timestamp '{timestamp}' is not valid (simulated).")))?;
    if now.duration_since(at) > FIND_BY_IP_PAST {
        return Err(error(400, "InvalidInput", "The timestamp lies more than 30 days back (simulated)."));
    }
    let found = data.machines_at(wanted, |seen| seen.duration_since(at).abs() <= FIND_BY_IP_REACH);
    let body = json!({"@odata.context": format!("{CONTEXT}Machines"), "value": found});
    Ok(Answer::json(200, DEFENDER_JSON, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_domain_is_refused() {
        for (text, valid) in [
            ("bad.example.com", true),
            ("BAD.Example", true),
            ("xn--bcher-kva.example", true),
            ("bad_domain.example", false),
            ("example", false),
            ("", false),
            ("a..example", false),
            (".example", false),
            ("-a.example", false),
            ("192.0.2.1", false),
            ("bücher.example", false),
            ("a.example/x", false),
        ] {
            assert_eq!(domain(text).is_ok(), valid, "{text}");
        }
        assert!(domain(&format!("{}.example", "a".repeat(64))).is_err());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for (text, valid) in
            [("192.0.2.1", true), ("192.0.2.999", false), ("2001:db8::7", false), ("192.0.2", false), ("x", false)]
        {
            assert_eq!(address(text).is_ok(), valid, "{text}");
        }
    }
}
