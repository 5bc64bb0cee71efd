//! Defender's context on a host that nobody wants isolated or released: at most five calls to Cognito, and the tags and the
//! removal of the trigger in one write (`DESIGN.md` 10, ruling 16).

use super::write::{Wanted, Written};
use super::{Calls, Ended, Failed, Look};
use crate::cognito::model::{Host, Note};
use crate::containment::decide::Act;
use crate::containment::matching::Context;
use crate::containment::notes::{self, OpenAlerts};
use crate::containment::state::Change;

/// Open alerts are counted up to this many: beyond it the number says nothing more, and costs pages.
const OPEN_ALERTS: usize = 100;

impl Look<'_> {
    /// Writes the context note, then the tags with the trigger's removal: whatever dies in between is found again by the
    /// trigger. `present` are the notes, if they were read already.
    pub(super) async fn enrich(&self, calls: &Calls, host: &Host, present: Option<Vec<Note>>) -> Result<Ended, Failed> {
        let found = self.find(calls, host).await?;
        let present = match present {
            Some(present) => Some(present),
            None => self.notes(&calls.cognito).await,
        };
        if let Some(present) = &present {
            self.write_context_note(calls, host, &found.for_context, present).await;
        }
        let Some(tags) = calls.cognito.tags(host.id).await? else { return Ok(Ended::Done("gone")) };
        let case = self.case(host, tags, None);
        if case.decision.act != Act::Leave {
            return Box::pin(self.contain(case)).await;
        }
        // Withdrawn meanwhile or not: what was found out is true, and a trigger that is there is answered by it.
        let wanted =
            Wanted { context: Some(&found.for_context), change: &Change::Unchanged, consumed: &case.decision.consume };
        match self.write_tags(&calls.cognito, &wanted, Some(case.tags.clone())).await? {
            Written::Done => Ok(Ended::Done("enriched")),
            Written::Gone => Ok(Ended::Done("gone")),
        }
    }

    /// The context note in place. Best effort.
    pub(super) async fn write_context_note(&self, calls: &Calls, host: &Host, context: &Context, present: &[Note]) {
        let alerts = match context {
            Context::Found { machine, .. } => calls.defender.open_alerts(&machine.id, OPEN_ALERTS).await,
            Context::None | Context::Ambiguous(_) => Ok(None),
        };
        // How many alerts are open is worth a line, not a failure.
        let alerts = alerts.unwrap_or_else(|error| {
            tracing::info!(host.id = host.id, error = %error, "open alerts could not be counted");
            None
        });
        let alerts = alerts.map(|count| OpenAlerts { count, more: count >= OPEN_ALERTS });
        let text = notes::context(&self.hosts.settings.policy, host.address.as_deref(), context, alerts, self.now);
        self.context_note(&calls.cognito, present, &text).await;
    }
}
