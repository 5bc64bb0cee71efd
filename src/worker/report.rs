//! What a look at a host came to, for whoever waits for it: a command that works what it found itself.

use uuid::Uuid;

use super::Worked;
use crate::broker::Settlement;
use crate::containment::Reason;
use crate::containment::reason::Fate;

/// One look at one host is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The id of the event's message.
    pub message_id: Uuid,
    /// The word of logs and metrics: `enriched`, `isolating`, `no_machine`, ...
    pub outcome: &'static str,
    /// How the event stands now.
    pub standing: Standing,
}

/// How an event stands after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Done as asked, or Defender is at it and the event only follows its action.
    Settled,
    /// Given up, or answered by a refusal.
    Failed,
    /// Nothing happens before somebody acts: releases the brake, raises a cap, mends a setting or a right.
    Held,
    /// It is looked at again soon.
    Open,
}

impl Report {
    pub(super) fn of(message_id: Uuid, worked: &Worked) -> Self {
        Self { message_id, outcome: worked.outcome, standing: standing(worked) }
    }
}

fn standing(worked: &Worked) -> Standing {
    match (&worked.settlement, worked.outcome) {
        // The same message goes on in the other lane.
        (Settlement::Done { .. }, "in_turn") => Standing::Open,
        (Settlement::Done { .. }, outcome) => match Reason::parse(outcome).map(Reason::fate) {
            Some(Fate::Failed | Fate::Denied) => Standing::Failed,
            Some(Fate::DryRun) | None => Standing::Settled,
        },
        (Settlement::DeadLetter(_), _) => Standing::Failed,
        (Settlement::Later { .. }, "isolating" | "releasing" | "isolated" | "following") => Standing::Settled,
        (Settlement::Later { .. }, "held" | "configuration" | "groups_unknown") => Standing::Held,
        (Settlement::Later { .. } | Settlement::Retry { .. } | Settlement::GiveBack, _) => Standing::Open,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::Cause;

    #[test]
    fn an_event_stands_as_its_look_ended() {
        let done = || Settlement::Done { reply: None };
        let later = || Settlement::Later { after: Duration::from_secs(2), body: None };
        let retry = || Settlement::Retry { after: Duration::from_secs(15), body: None };
        let dead = || Settlement::DeadLetter(Cause { code: "attempts".into(), detail: "x".into() });
        for (outcome, settlement, expected) in [
            ("enriched", done(), Standing::Settled),
            ("nothing", done(), Standing::Settled),
            ("released", done(), Standing::Settled),
            ("dry_run", done(), Standing::Settled),
            ("no_machine", done(), Standing::Failed),
            ("protected", done(), Standing::Failed),
            ("action_failed", done(), Standing::Failed),
            ("in_turn", done(), Standing::Open),
            ("isolating", later(), Standing::Settled),
            ("following", later(), Standing::Settled),
            ("held", later(), Standing::Held),
            ("configuration", later(), Standing::Held),
            ("another_action", later(), Standing::Open),
            ("no_desk", later(), Standing::Open),
            ("failed", retry(), Standing::Open),
            ("given_back", Settlement::GiveBack, Standing::Open),
            ("failed", dead(), Standing::Failed),
        ] {
            let worked = Worked { kind: "host", outcome, failed: false, settlement };
            assert_eq!(Report::of(Uuid::nil(), &worked).standing, expected, "{outcome}");
        }
    }
}
