//! Indicators on the word of a trigger: looked at before they are written or deleted, because a POST is an upsert and an id
//! says nothing of what it names (`defender.md` 5.12).

use super::{Done, NotDone, Run};
use crate::containment::guard;
use crate::defender::NewIndicator;
use crate::defender::model::Indicator;
use crate::relay::trigger::{self, Add};

impl Run<'_> {
    /// Writes the indicator, unless somebody else has one of the same value and type.
    pub(super) async fn add(&self, add: Add) -> Result<Done, NotDone> {
        let settings = self.settings();
        guard::trigger(&settings.guard, None)?;
        let (value, kind) = (self.value(), self.trigger.observable.kind);
        if add == Add::Block && settings.protected.iter().any(|entry| entry.is_hit_by(value)) {
            return Err(NotDone::refused("protected", "the observable is on the list of protected observables"));
        }
        let indicator_type = trigger::indicator_type(kind).expect("a trigger that adds is about no machine");
        let present = self.session.indicators_of(&[value]).await?;
        let same = |known: &&Indicator| {
            known.indicator_type.eq_ignore_ascii_case(indicator_type) && !known.is_made_by(&self.credentials.client_id)
        };
        if let Some(theirs) = present.iter().find(same).filter(|_| !settings.overwrite) {
            let detail = format!("indicator {} of this observable was made by somebody else", theirs.id);
            return Err(NotDone::refused("not_ours", detail));
        }
        let action = match add {
            Add::Alert => "Audit",
            Add::Block if kind.is_hash() => "BlockAndRemediate",
            Add::Block => "Block",
            Add::Allow => "Allowed",
        };
        let alerts = add != Add::Allow;
        let wanted = NewIndicator {
            indicator_value: value,
            indicator_type,
            action,
            title: &settings.title,
            description: &settings.description,
            severity: alerts.then_some("High"),
            generate_alert: alerts.then_some(true),
        };
        Ok(Done::indicator(&self.session.submit_indicator(&wanted).await?.id))
    }

    /// Deletes the indicator that the trigger names, if it is one of the observable.
    pub(super) async fn remove(&self, id: &str) -> Result<Done, NotDone> {
        guard::trigger(&self.settings().guard, None)?;
        let present = self.session.indicators_of(&[self.value()]).await?;
        if !present.iter().any(|known| known.id == id) {
            return Err(NotDone::refused("not_of_observable", format!("the observable has no indicator {id}")));
        }
        self.session.delete_indicator(id).await?;
        Ok(Done::indicator(id))
    }
}
