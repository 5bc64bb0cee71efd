//! What the routes of machine actions answer (`defender.md` 5.10).

use serde_json::{Map, Value};

use super::book::{Asked, NotCancelled, Posted};
use super::{ActionKind, ActionRefusal};
use crate::simulator::answer::Answer;
use crate::simulator::data::Data;
use crate::simulator::defender::{entity, error, list, not_found, odata_error, page};
use crate::simulator::entra::Issued;
use crate::simulator::odata::{Kind, Options, Properties};
use crate::simulator::request::Incoming;
use crate::simulator::world::{World, lock};

/// The properties that `machineactions` can be filtered by (`defender.md` 5.10).
const ACTION_PROPERTIES: Properties = &[
    ("id", Kind::Text),
    ("status", Kind::Text),
    ("machineId", Kind::Text),
    ("type", Kind::Text),
    ("requestor", Kind::Text),
    ("creationDateTimeUtc", Kind::Time),
];

/// `POST /machines/{id}/isolate`, `unisolate`, `restrictCodeExecution`, ...
pub(in crate::simulator) fn post(
    world: &World,
    request: &Incoming,
    caller: &Issued,
    data: &Data,
    kind: ActionKind,
    machine: &str,
) -> Result<Answer, Answer> {
    let allowed: &[&str] = match kind {
        ActionKind::Isolate => &["Comment", "IsolationType"],
        ActionKind::RunAntiVirusScan => &["Comment", "ScanType"],
        _ => &["Comment"],
    };
    let body = body(request, allowed)?;
    let comment = text(&body, "Comment")?;
    let scope = match kind {
        ActionKind::Isolate => Some(text(&body, "IsolationType")?),
        ActionKind::RunAntiVirusScan => Some(text(&body, "ScanType")?),
        _ => None,
    };
    let machine = data.machine(machine).ok_or_else(|| not_found("Machine", machine))?;
    match (kind, scope) {
        (ActionKind::Isolate, Some(scope)) => can_be_isolated(machine, scope)?,
        (ActionKind::Unisolate, _) => {}
        (_, Some(scope)) if !["Quick", "Full"].contains(&scope) => {
            return Err(error(400, "InvalidRequestBody", &format!("ScanType '{scope}' is not valid (simulated).")));
        }
        _ => can_do(machine, kind)?,
    }
    let asked = Asked { kind, scope, comment, requestor: &caller.client, portal: false };
    let now = world.moment();
    let posted = lock(&world.actions).post(now, &caller.tenant, machine, asked);
    world.actions_changed.send_modify(|changes| *changes += 1);
    match posted {
        Posted::Action(action) => Ok(entity(201, "MachineActions", &action)),
        Posted::Busy => Err(error(400, "ActiveRequestAlreadyExists", "Action is already in progress")),
        Posted::Refused(refusal) => Err(refused(refusal)),
    }
}

fn refused(refusal: ActionRefusal) -> Answer {
    match refusal {
        ActionRefusal::OsPlatform => {
            error(400, "OsPlatformNotSupported", "The OS platform is not supported for this action (simulated).")
        }
        ActionRefusal::ClientVersion => {
            error(400, "ClientVersionNotSupported", "Isolation needs a newer client version (simulated).")
        }
    }
}

/// What the service demands of a machine (`defender.md` 7.1). The code for a machine that is not onboarded is unknown.
fn can_be_isolated(machine: &Value, scope: &str) -> Result<(), Answer> {
    let onboarded = machine["onboardingStatus"].as_str().is_some_and(|status| status.eq_ignore_ascii_case("Onboarded"));
    let platform = machine["osPlatform"].as_str().unwrap_or_default();
    let windows_or_mac = platform.starts_with("Windows") || platform.eq_ignore_ascii_case("macOS");
    // Linux goes by the name of its distribution.
    let isolates = !["", "iOS", "Android"].contains(&platform);
    match scope {
        "Full" | "Selective" if !onboarded => {
            Err(error(400, "InvalidInput", "The machine is not onboarded (simulated)."))
        }
        "Full" if isolates => Ok(()),
        "Selective" if windows_or_mac => Ok(()),
        "Full" | "Selective" => Err(refused(ActionRefusal::OsPlatform)),
        "UnManagedDevice" if onboarded => {
            Err(error(400, "InvalidInput", "An onboarded machine cannot be contained (simulated)."))
        }
        "UnManagedDevice" => Ok(()),
        other => Err(error(400, "InvalidRequestBody", &format!("IsolationType '{other}' is not valid (simulated)."))),
    }
}

/// What the service demands of a machine for what neither isolates nor releases (`defender.md` 5.10).
fn can_do(machine: &Value, kind: ActionKind) -> Result<(), Answer> {
    let onboarded = machine["onboardingStatus"].as_str().is_some_and(|status| status.eq_ignore_ascii_case("Onboarded"));
    if !onboarded {
        return Err(error(400, "InvalidInput", "The machine is not onboarded (simulated)."));
    }
    let platform = machine["osPlatform"].as_str().unwrap_or_default();
    let fits = match kind {
        ActionKind::RestrictCodeExecution | ActionKind::UnrestrictCodeExecution => {
            ["Windows10", "Windows11", "WindowsServer2019", "WindowsServer2022", "WindowsServer2025"]
                .iter()
                .any(|name| platform.starts_with(name))
        }
        _ => !["", "iOS", "Android"].contains(&platform),
    };
    if fits { Ok(()) } else { Err(refused(ActionRefusal::OsPlatform)) }
}

/// `GET /machines/{id}/availableMachineActions` (`defender.md` 5.11): by what the machine is; what is open or done does not
/// count, for nobody has written down that it does.
pub(in crate::simulator) fn available(data: &Data, id: &str) -> Result<Answer, Answer> {
    let machine = data.machine(id).ok_or_else(|| not_found("Machine", id))?;
    let one = |action: &str, fits: Result<(), Answer>| {
        let reason = fits.is_err().then_some("OsPlatformNotSupported");
        serde_json::json!({"action": action, "isAvailable": fits.is_ok(), "notSupportedReason": reason})
    };
    let value = serde_json::json!([
        one("FullIsolation", can_be_isolated(machine, "Full")),
        one("SelectiveIsolation", can_be_isolated(machine, "Selective")),
        one("RunAntiVirusScan", can_do(machine, ActionKind::RunAntiVirusScan)),
        one("CollectInvestigationPackage", can_do(machine, ActionKind::CollectInvestigationPackage)),
        one("StopAndQuarantineFile", Ok(())),
        one("RestrictCodeExecution", can_do(machine, ActionKind::RestrictCodeExecution)),
        one("InitiateInvestigation", Ok(())),
        one("OffBoard", Ok(())),
        one("RunCustomPlaybook", Ok(())),
    ]);
    let set = "Collection(microsoft.windowsDefenderATP.api.ActionAvailabilityStatus)";
    Ok(list(set, &value))
}

/// `POST /machineactions/{id}/cancel`.
pub(in crate::simulator) fn cancel(
    world: &World,
    request: &Incoming,
    caller: &Issued,
    id: &str,
) -> Result<Answer, Answer> {
    let body = body(request, &["Comment"])?;
    let comment = text(&body, "Comment")?;
    let now = world.moment();
    let cancelled = lock(&world.actions).cancel(now, &caller.tenant, id, comment, &caller.client);
    world.actions_changed.send_modify(|changes| *changes += 1);
    match cancelled {
        Ok(action) => Ok(entity(200, "MachineActions", &action)),
        Err(NotCancelled::Unknown) => Err(not_found("Machine action", id)),
        Err(NotCancelled::Final) => {
            Err(error(400, "BadRequest", "The action is final and cannot be cancelled (simulated)."))
        }
    }
}

/// `GET /machineactions/{id}`.
pub(in crate::simulator) fn action(world: &World, caller: &Issued, id: &str) -> Result<Answer, Answer> {
    let now = world.moment();
    let mut book = lock(&world.actions);
    let action = book.action(now, &caller.tenant, id).ok_or_else(|| not_found("Machine action", id))?;
    Ok(entity(200, "MachineActions", action))
}

/// `GET /machineactions`: newest first. In lists the time of the last change has another name (`defender.md` 5.10).
pub(in crate::simulator) fn actions(world: &World, request: &Incoming, caller: &Issued) -> Result<Answer, Answer> {
    let options = Options::read(&request.query, ACTION_PROPERTIES, false).map_err(|detail| odata_error(&detail))?;
    let now = world.moment();
    let mut book = lock(&world.actions);
    if book.behaviour().refuse_in && options.filter.as_ref().is_some_and(|filter| filter.has_in()) {
        return Err(odata_error("The operator 'in' is not supported (simulated)."));
    }
    let found = book.list(now, &caller.tenant, options.filter.as_ref());
    Ok(page(world, request, "MachineActions", &options, &found, |action| {
        let mut listed = action.clone();
        if let Some(members) = listed.as_object_mut()
            && let Some(time) = members.remove("lastUpdateDateTimeUtc")
        {
            members.insert("lastUpdateTimeUtc".to_owned(), time);
        }
        listed
    }))
}

/// The members of a body; names are case-sensitive, and one that is not documented is refused (`defender.md` 5.0).
fn body(request: &Incoming, allowed: &[&str]) -> Result<Map<String, Value>, Answer> {
    let invalid = |detail: &str| error(400, "InvalidRequestBody", detail);
    let json = request.header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
    let members: Map<String, Value> = serde_json::from_slice(&request.body)
        .ok()
        .filter(|_| json)
        .ok_or_else(|| invalid("The request body is not a JSON object (simulated)."))?;
    match members.keys().find(|name| !allowed.contains(&name.as_str())) {
        Some(name) => Err(invalid(&format!("The property '{name}' does not exist (simulated)."))),
        None => Ok(members),
    }
}

fn text<'a>(body: &'a Map<String, Value>, name: &str) -> Result<&'a str, Answer> {
    match body.get(name) {
        None | Some(Value::Null) => {
            Err(error(400, "MissingRequiredParameter", &format!("Parameter {name} is missing (simulated).")))
        }
        Some(Value::String(text)) if text.trim().is_empty() => {
            Err(error(400, "MissingRequiredParameter", &format!("Parameter {name} is empty (simulated).")))
        }
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(error(400, "InvalidRequestBody", &format!("Parameter {name} is no text (simulated)."))),
    }
}
