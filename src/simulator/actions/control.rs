//! The controls of machine actions, in the process and over HTTP.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::http::{Method, Uri};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::book::{Asked, Moment, Posted};
use super::{ActionBehaviour, ActionKind, ActionPost, ActionRefusal, Book, Isolation, Outcome};
use crate::simulator::Control;
use crate::simulator::world::lock;

/// The comment of actions that are asked for in the portal.
const PORTAL_COMMENT: &str = "by hand in the portal";

impl Control {
    /// How machine actions behave from now on. What is planned already stays as it is.
    pub fn set_action_behaviour(&self, behaviour: ActionBehaviour) {
        self.change_actions(|book, _| book.set_behaviour(behaviour));
    }

    /// How machine actions behave.
    pub fn action_behaviour(&self) -> ActionBehaviour {
        lock(&self.0.actions).behaviour().clone()
    }

    /// How the next action of this machine ends; calls add up.
    pub fn next_action_ends(&self, tenant: &str, machine: &str, outcome: Outcome) {
        self.change_actions(|book, _| book.add_outcome(&key(tenant), machine, outcome));
    }

    /// Takes a machine off the network, where its pending actions wait, or brings it back.
    pub fn set_machine_offline(&self, tenant: &str, machine: &str, offline: bool) {
        self.change_actions(|book, now| book.set_offline(now, &key(tenant), machine, offline));
    }

    /// Lets a machine refuse to be isolated and released; `None`: not any more.
    pub fn set_action_refusal(&self, tenant: &str, machine: &str, refusal: Option<ActionRefusal>) {
        self.change_actions(|book, _| book.set_refusal(&key(tenant), machine, refusal));
    }

    /// Ends an action now. False if there is none of that id that is not final.
    pub fn finish_action(&self, tenant: &str, action: &str, outcome: Outcome) -> bool {
        self.change_actions(|book, now| book.finish(now, &key(tenant), action, outcome))
    }

    /// Somebody isolates a machine in the portal; the action's id.
    ///
    /// # Errors
    /// Why the portal does not offer it.
    pub fn isolate_in_portal(&self, tenant: &str, machine: &str, user: &str) -> Result<String, String> {
        self.act_in_portal(tenant, machine, user, ActionKind::Isolate)
    }

    /// Somebody releases a machine in the portal; the action's id. While an isolation is open, one that hangs included,
    /// the portal does not offer it (`defender.md` 7.2).
    ///
    /// # Errors
    /// Why the portal does not offer it.
    pub fn release_in_portal(&self, tenant: &str, machine: &str, user: &str) -> Result<String, String> {
        self.act_in_portal(tenant, machine, user, ActionKind::Unisolate)
    }

    fn act_in_portal(&self, tenant: &str, machine: &str, user: &str, kind: ActionKind) -> Result<String, String> {
        let data = self.0.data(tenant);
        let machine = data.machine(machine).ok_or("there is no such machine")?;
        let id = machine["id"].as_str().unwrap_or_default();
        self.change_actions(|book, now| {
            let truth = book.isolation(now, &key(tenant), id);
            let contains = matches!(kind, ActionKind::Isolate | ActionKind::Unisolate);
            if contains && truth.open_isolates > 0 {
                return Err("an isolation is open".to_owned());
            }
            if contains && truth.isolated == (kind == ActionKind::Isolate) {
                return Err(format!("the machine is {}isolated", if truth.isolated { "" } else { "not " }));
            }
            let scope = matches!(kind, ActionKind::Isolate | ActionKind::RunAntiVirusScan).then_some("Full");
            let asked = Asked { kind, scope, comment: PORTAL_COMMENT, requestor: user, portal: true };
            match book.post(now, &key(tenant), machine, asked) {
                Posted::Action(action) => Ok(action["id"].as_str().unwrap_or_default().to_owned()),
                Posted::Busy => Err("another action is open".to_owned()),
                Posted::Refused(_) => Err("the machine does not support it".to_owned()),
            }
        })
    }

    /// Every request for a machine action, oldest first.
    pub fn action_posts(&self, tenant: &str) -> Vec<ActionPost> {
        lock(&self.0.actions).posts(&key(tenant)).to_vec()
    }

    /// Every request of an application to isolate, oldest first.
    pub fn isolate_posts(&self, tenant: &str) -> Vec<ActionPost> {
        let book = lock(&self.0.actions);
        let posts = book.posts(&key(tenant)).iter();
        posts.filter(|post| post.kind == ActionKind::Isolate && !post.portal).cloned().collect()
    }

    /// What is true of a machine now.
    pub fn isolation(&self, tenant: &str, machine: &str) -> Isolation {
        let now = self.0.moment();
        lock(&self.0.actions).isolation(now, &key(tenant), machine)
    }

    /// What is true now of every machine that anything was asked for, by its id in lower case.
    pub fn isolations(&self, tenant: &str) -> BTreeMap<String, Isolation> {
        let now = self.0.moment();
        lock(&self.0.actions).isolations(now, &key(tenant))
    }

    /// Returns what is true of a machine once `wanted` holds for it.
    pub async fn isolation_where(&self, tenant: &str, machine: &str, wanted: impl Fn(&Isolation) -> bool) -> Isolation {
        let tenant = key(tenant);
        self.when(|book, now| Some(book.isolation(now, &tenant, machine)).filter(&wanted)).await
    }

    /// Returns an action as it is shown once it is final.
    pub async fn action_ended(&self, tenant: &str, action: &str) -> Value {
        let tenant = key(tenant);
        self.when(|book, now| book.ended(now, &tenant, action).cloned()).await
    }

    /// Waits until `look` finds something.
    async fn when<T>(&self, look: impl Fn(&mut Book, Moment) -> Option<T>) -> T {
        let mut changes = self.0.actions_changed.subscribe();
        loop {
            let now = self.0.moment();
            let (found, next_due) = {
                let mut book = lock(&self.0.actions);
                (look(&mut book, now), book.next_due())
            };
            if let Some(found) = found {
                return found;
            }
            let due = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                // The sender lives in the world that this control holds.
                _ = changes.changed() => {}
            }
        }
    }

    fn change_actions<T>(&self, change: impl FnOnce(&mut Book, Moment) -> T) -> T {
        let now = self.0.moment();
        let changed = change(&mut lock(&self.0.actions), now);
        self.0.actions_changed.send_modify(|changes| *changes += 1);
        changed
    }
}

/// Tenants are kept under their ids in lower case, as tokens name them.
fn key(tenant: &str) -> String {
    tenant.to_ascii_lowercase()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfMachine {
    tenant: String,
    machine: String,
    offline: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    refusal: Option<Option<ActionRefusal>>,
    #[serde(default)]
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InPortal {
    tenant: String,
    machine: String,
    kind: ActionKind,
    user: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Finish {
    tenant: String,
    action: String,
    outcome: Outcome,
}

/// Tells a member that is null, which takes a refusal back, from one that is absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Answers a control call; `path` follows `/_simulator/actions`. `None`: there is no such control.
pub(in crate::simulator) fn admin(
    control: &Control,
    method: &Method,
    path: &str,
    uri: &Uri,
    body: &[u8],
) -> Option<Result<Value, String>> {
    fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
    let ok = || json!({"status": "ok"});
    Some(match (method.as_str(), path) {
        ("GET", "") => of_tenant(control, uri),
        ("PUT", "") => read::<ActionBehaviour>(body).map(|behaviour| {
            control.set_action_behaviour(behaviour);
            ok()
        }),
        ("PUT", "/machine") => read::<OfMachine>(body).map(|new| {
            if let Some(offline) = new.offline {
                control.set_machine_offline(&new.tenant, &new.machine, offline);
            }
            if let Some(refusal) = new.refusal {
                control.set_action_refusal(&new.tenant, &new.machine, refusal);
            }
            for outcome in new.outcomes {
                control.next_action_ends(&new.tenant, &new.machine, outcome);
            }
            ok()
        }),
        ("POST", "/portal") => read::<InPortal>(body).and_then(|new| {
            let action = control.act_in_portal(&new.tenant, &new.machine, &new.user, new.kind)?;
            Ok(json!({"status": "ok", "action": action}))
        }),
        ("POST", "/finish") => read::<Finish>(body).and_then(|new| {
            let finished = control.finish_action(&new.tenant, &new.action, new.outcome);
            if finished { Ok(ok()) } else { Err("no such action is open".to_owned()) }
        }),
        _ => return None,
    })
}

fn of_tenant(control: &Control, uri: &Uri) -> Result<Value, String> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri).map(|Query(query)| query).unwrap_or_default();
    let tenant = query.iter().find(|(name, _)| name == "tenant").map(|(_, tenant)| tenant.as_str());
    let tenant = tenant.ok_or("the query names no tenant")?;
    Ok(json!({
        "behaviour": control.action_behaviour(),
        "posts": control.action_posts(tenant),
        "machines": control.isolations(tenant),
    }))
}
