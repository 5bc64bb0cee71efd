//! Machine actions (`defender.md` 5.10, 5.11 and 7): isolating, releasing, restricting, scanning, collecting, cancelling;
//! what a machine offers, and what became of a request.
//!
//! A POST is repeated only after a 429, which says that it was not taken, and after a renewal of the token. After anything
//! else nobody knows whether the service acted, and a second isolation of the same machine does harm (7.2):
//! [`DefenderError::may_have_happened`] tells, and [`Session::isolation_actions`] shows what was really done.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::json;

use super::call::Spec;
use super::machines::{device_id, filtered};
use super::model::{AvailableAction, MachineAction, Page};
use super::{DefenderError, Family, Session};

/// The longest comment that is sent, in characters; the rest is cut off. Microsoft names no limit; this is several times
/// what the bridge's own comments need, and little enough for any column of a database.
pub const COMMENT_LIMIT_CHARS: usize = 1_000;

/// An action's id is a GUID; nothing longer is sent.
const ACTION_ID_LIMIT_BYTES: usize = 64;

/// How a machine is isolated (`defender.md` 7.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IsolationType {
    /// From everything but Defender itself.
    #[default]
    Full,
    /// With the tenant's exceptions; Windows and macOS only.
    Selective,
}

impl IsolationType {
    /// As the service spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            IsolationType::Full => "Full",
            IsolationType::Selective => "Selective",
        }
    }
}

/// How thoroughly a machine is scanned (`defender.md` 5.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanType {
    /// Where malware usually is.
    Quick,
    /// Everything.
    Full,
}

impl ScanType {
    /// As the service spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ScanType::Quick => "Quick",
            ScanType::Full => "Full",
        }
    }
}

const ISOLATE: &str = "Machine.Isolate";
const RESTRICT: &str = "Machine.RestrictExecution";
const SCAN: &str = "Machine.Scan";
const COLLECT: &str = "Machine.CollectForensics";

impl Session {
    /// Every isolation and release of a machine that Defender lists, whoever asked for it, newest first. The list may lag
    /// behind. `GET /machineactions?$filter=...` (`defender.md` 5.10 and 7.3).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn isolation_actions(&self, machine_id: &str) -> Result<Vec<MachineAction>, DefenderError> {
        let id = device_id(Family::MachineActions, machine_id)?;
        let refusing = &self.inner.defender.shared.refusing_in;
        let known_to_refuse = refusing.contains_key(&self.inner.account);
        let with_in = format!("machineId eq '{id}' and type in ('Isolate','Unisolate')");
        let with_or = format!("machineId eq '{id}' and (type eq 'Isolate' or type eq 'Unisolate')");
        let mut listed = self.actions_where(if known_to_refuse { &with_or } else { &with_in }).await;
        if !known_to_refuse && listed.as_ref().is_err_and(|error| error.is_answer(400)) {
            listed = self.actions_where(&with_or).await;
            if listed.is_ok() {
                refusing.insert(Arc::clone(&self.inner.account), ()).await;
            }
        }
        let mut actions = listed?;
        // The filter is the service's; an action of another machine must not decide about this one.
        actions.retain(|action| {
            let machine = action.machine_id.as_deref().unwrap_or_default();
            (action.is_isolate() || action.is_unisolate()) && (machine.is_empty() || machine.eq_ignore_ascii_case(&id))
        });
        actions.sort_by_key(|action| Reverse(action.created()));
        Ok(actions)
    }

    /// The actions of these kinds that Defender lists for a machine, whoever asked for them, newest first. The list may lag
    /// behind. `GET /machineactions?$filter=...` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn actions_of_kinds(
        &self,
        machine_id: &str,
        kinds: &[&str],
    ) -> Result<Vec<MachineAction>, DefenderError> {
        let id = device_id(Family::MachineActions, machine_id)?;
        let any: Vec<String> = kinds.iter().map(|kind| format!("type eq '{kind}'")).collect();
        let mut actions = self.actions_where(&format!("machineId eq '{id}' and ({})", any.join(" or "))).await?;
        actions.retain(|action| {
            let machine = action.machine_id.as_deref().unwrap_or_default();
            let wanted = kinds.iter().any(|kind| action.kind.eq_ignore_ascii_case(kind));
            wanted && (machine.is_empty() || machine.eq_ignore_ascii_case(&id))
        });
        actions.sort_by_key(|action| Reverse(action.created()));
        Ok(actions)
    }

    /// What a machine offers; `None` where the route does not exist for it, as it is not documented and may vanish: it
    /// answers 404, 405 or 501 then, and 404 for an unknown machine too.
    /// `GET /machines/{id}/availableMachineActions` (`defender.md` 5.11).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn available_actions(&self, machine_id: &str) -> Result<Option<Vec<AvailableAction>>, DefenderError> {
        let id = device_id(Family::MachineActions, machine_id)?;
        let url = self.api(&["machines", &id, "availableMachineActions"], None);
        let spec = Spec::get(Family::MachineActions, url, "/api/machines/{id}/availableMachineActions");
        let gone = |error: &DefenderError| [404, 405, 501].into_iter().any(|status| error.is_answer(status));
        match self.call_with::<Page<AvailableAction>>(None, &spec, |error| !gone(error)).await {
            Ok(page) => Ok(Some(page.value)),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn actions_where(&self, filter: &str) -> Result<Vec<MachineAction>, DefenderError> {
        let url = self.api(&["machineactions"], Some(&filtered(filter)));
        match self.every(Spec::get(Family::MachineActions, url, "/api/machineactions"), |_| false).await {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// One machine action as it stands now; `None` when Defender does not know it.
    /// `GET /machineactions/{id}` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn machine_action(&self, id: &str) -> Result<Option<MachineAction>, DefenderError> {
        let id = action_id(Family::MachineActions, id)?;
        let url = self.api(&["machineactions", id], None);
        match self.call(&Spec::get(Family::MachineActions, url, "/api/machineactions/{id}")).await {
            Ok(action) => Ok(Some(action)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for the isolation of a machine. The action that comes back may be somebody else's that was open already
    /// (`defender.md` 7.3). Look before you post: on an isolated machine this does harm (7.2).
    /// `POST /machines/{id}/isolate` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind). [`DefenderError::may_have_happened`] says whether the machine may be
    /// isolated nevertheless; [`DefenderError::is_already_in_progress`], whether another action is open. An empty comment
    /// is refused and never sent.
    pub async fn isolate(
        &self,
        machine_id: &str,
        isolation: IsolationType,
        comment: &str,
    ) -> Result<MachineAction, DefenderError> {
        let id = device_id(Family::Actions, machine_id)?;
        let body = json!({ "Comment": bounded(comment)?, "IsolationType": isolation.as_str() });
        self.act(ISOLATE, &["machines", &id, "isolate"], "/api/machines/{id}/isolate", &body).await
    }

    /// Asks for the release of a machine. `POST /machines/{id}/unisolate` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As [`Session::isolate`].
    pub async fn unisolate(&self, machine_id: &str, comment: &str) -> Result<MachineAction, DefenderError> {
        let id = device_id(Family::Actions, machine_id)?;
        let body = json!({ "Comment": bounded(comment)? });
        self.act(ISOLATE, &["machines", &id, "unisolate"], "/api/machines/{id}/unisolate", &body).await
    }

    /// Asks for a machine to run nothing but what Microsoft signed. `POST /machines/{id}/restrictCodeExecution`
    /// (`defender.md` 5.10).
    ///
    /// # Errors
    /// As [`Session::isolate`].
    pub async fn restrict(&self, machine_id: &str, comment: &str) -> Result<MachineAction, DefenderError> {
        let id = device_id(Family::Actions, machine_id)?;
        let body = json!({ "Comment": bounded(comment)? });
        let template = "/api/machines/{id}/restrictCodeExecution";
        self.act(RESTRICT, &["machines", &id, "restrictCodeExecution"], template, &body).await
    }

    /// Asks for the end of that. `POST /machines/{id}/unrestrictCodeExecution` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As [`Session::isolate`].
    pub async fn unrestrict(&self, machine_id: &str, comment: &str) -> Result<MachineAction, DefenderError> {
        let id = device_id(Family::Actions, machine_id)?;
        let body = json!({ "Comment": bounded(comment)? });
        let template = "/api/machines/{id}/unrestrictCodeExecution";
        self.act(RESTRICT, &["machines", &id, "unrestrictCodeExecution"], template, &body).await
    }

    /// Asks for a scan. `POST /machines/{id}/runAntiVirusScan` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As [`Session::isolate`].
    pub async fn scan(&self, machine_id: &str, scan: ScanType, comment: &str) -> Result<MachineAction, DefenderError> {
        let id = device_id(Family::Actions, machine_id)?;
        let body = json!({ "Comment": bounded(comment)?, "ScanType": scan.as_str() });
        let template = "/api/machines/{id}/runAntiVirusScan";
        self.act(SCAN, &["machines", &id, "runAntiVirusScan"], template, &body).await
    }

    /// Asks for an investigation package. `POST /machines/{id}/collectInvestigationPackage` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As [`Session::isolate`].
    pub async fn collect_package(&self, machine_id: &str, comment: &str) -> Result<MachineAction, DefenderError> {
        let id = device_id(Family::Actions, machine_id)?;
        let body = json!({ "Comment": bounded(comment)? });
        let template = "/api/machines/{id}/collectInvestigationPackage";
        self.act(COLLECT, &["machines", &id, "collectInvestigationPackage"], template, &body).await
    }

    /// Takes back an action that is not final yet. `POST /machineactions/{id}/cancel` (`defender.md` 5.10).
    ///
    /// # Errors
    /// As [`Session::isolate`]; [`DefenderError::is_not_found`] when Defender does not know the action.
    pub async fn cancel(&self, action: &str, comment: &str) -> Result<MachineAction, DefenderError> {
        let id = action_id(Family::Actions, action)?;
        let body = json!({ "Comment": bounded(comment)? });
        self.act(ISOLATE, &["machineactions", id, "cancel"], "/api/machineactions/{id}/cancel", &body).await
    }

    async fn act(
        &self,
        permission: &'static str,
        segments: &[&str],
        template: &'static str,
        body: &serde_json::Value,
    ) -> Result<MachineAction, DefenderError> {
        let spec = Spec::post(Family::Actions, self.api(segments, None), template, body);
        let asked = self.actor().call::<MachineAction>(&spec).await;
        let action = asked.map_err(|error| DefenderError { permission: Some(permission), ..error })?;
        // Without its id an action cannot be followed: as good as no answer.
        if action.id.is_empty() { Err(DefenderError::no_action()) } else { Ok(action) }
    }
}

/// `comment` as it is sent: one line, [`COMMENT_LIMIT_CHARS`] at most. The service demands one.
fn bounded(comment: &str) -> Result<String, DefenderError> {
    let line: String = comment.trim().chars().take(COMMENT_LIMIT_CHARS).collect();
    let line = line.replace(char::is_control, " ");
    if line.trim().is_empty() { Err(DefenderError::invalid_value(Family::Actions)) } else { Ok(line) }
}

/// `id` if it can be that of an action. Ids come back from places that people can edit.
fn action_id(family: Family, id: &str) -> Result<&str, DefenderError> {
    let valid = (1..=ACTION_ID_LIMIT_BYTES).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if valid { Ok(id) } else { Err(DefenderError::invalid_value(family)) }
}
