//! What becomes of a host's work when something fails (`cognito.md` 5.8).

use super::reason::{Fate, Reason};

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Cognito does not know the host.
    HostGone,
    /// Cognito refuses to let us read: 401 after a renewal, or 403.
    CognitoReadRefused,
    /// Cognito: 429, 5xx, no answer in time, a body that cannot be read.
    CognitoTransient,
    /// Cognito refuses a write of tags.
    CognitoWriteRefused,
    /// A note could not be written.
    NoteNotWritten,
    /// Defender: 429, 5xx, no answer in time.
    DefenderTransient,
    /// Defender refuses our credentials, or lacks a permission for a read: nothing can be asked before that is mended
    /// (`defender.md` 1.4 and 7.5).
    DefenderConfiguration,
    /// There is no machine to act on.
    NoMatch(Reason),
    /// The guard refused, dry run included.
    Guarded(Reason),
    /// The brake or a cap holds the isolation back.
    Held(Reason),
    /// Defender refused for good.
    DefenderRefused(Reason),
    /// Anything else, a panic included.
    Unknown,
}

/// Of what kind a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The same work would fail again.
    Permanent,
    /// It passes.
    Transient,
    /// It passes when an operator has mended something.
    Configuration,
    /// It stops nothing.
    BestEffort,
}

/// What becomes of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Done with.
    Settle,
    /// Worked again by [`super::delays::retry`], a dead letter after the last try.
    Retry,
    /// Worked again every [`super::delays::CONFIGURATION`].
    RetrySlowly,
    /// Worked again when the brake is released or the cap has room; no try is counted.
    Hold,
    /// Worked on as if nothing had happened.
    GoOn,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handling {
    /// Of what kind it is.
    pub class: Class,
    /// The fate to write into the tags.
    pub fate: Option<(Fate, Reason)>,
    /// Whether the trigger is removed: the request is settled.
    pub consumes: bool,
    /// What becomes of the message.
    pub message: Message,
    /// Whether an operator has to be told.
    pub alerts: bool,
    /// Whether no isolation may begin until a write of tags has succeeded: what cannot be recorded is not started.
    pub suspends_isolation: bool,
}

/// What to do about `failure`.
#[must_use]
pub const fn handling(failure: Failure) -> Handling {
    let quiet = Handling {
        class: Class::Transient,
        fate: None,
        consumes: false,
        message: Message::Retry,
        alerts: false,
        suspends_isolation: false,
    };
    match failure {
        Failure::HostGone => Handling { class: Class::Permanent, message: Message::Settle, ..quiet },
        Failure::CognitoReadRefused | Failure::DefenderConfiguration => {
            Handling { class: Class::Configuration, message: Message::RetrySlowly, alerts: true, ..quiet }
        }
        Failure::CognitoWriteRefused => Handling {
            class: Class::Configuration,
            message: Message::RetrySlowly,
            alerts: true,
            suspends_isolation: true,
            ..quiet
        },
        Failure::CognitoTransient | Failure::DefenderTransient | Failure::Unknown => quiet,
        Failure::NoteNotWritten => Handling { class: Class::BestEffort, message: Message::GoOn, ..quiet },
        Failure::NoMatch(reason) | Failure::Guarded(reason) => settled(reason, false),
        Failure::DefenderRefused(reason) => settled(reason, true),
        Failure::Held(reason) => {
            Handling { fate: Some((reason.fate(), reason)), message: Message::Hold, alerts: true, ..quiet }
        }
    }
}

const fn settled(reason: Reason, alerts: bool) -> Handling {
    Handling {
        class: Class::Permanent,
        fate: Some((reason.fate(), reason)),
        consumes: true,
        message: Message::Settle,
        alerts,
        suspends_isolation: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of 5.8, row by row.
    #[test]
    fn the_table_of_failures() {
        use Class::{BestEffort, Configuration, Permanent, Transient};
        use Message::{GoOn, Hold, Retry, RetrySlowly, Settle};
        type Row<'a> = (&'a str, Failure, Class, Option<(&'a str, &'a str)>, bool, Message, bool, bool);
        let rows: &[Row<'_>] = &[
            // name, failure, class, tags, trigger removed, message, alert, isolations suspended
            ("Cognito 404 on host", Failure::HostGone, Permanent, None, false, Settle, false, false),
            (
                "Cognito 401, 403 on read",
                Failure::CognitoReadRefused,
                Configuration,
                None,
                false,
                RetrySlowly,
                true,
                false,
            ),
            ("Cognito 429, 5xx, ...", Failure::CognitoTransient, Transient, None, false, Retry, false, false),
            (
                "Cognito 403 on tag write",
                Failure::CognitoWriteRefused,
                Configuration,
                None,
                false,
                RetrySlowly,
                true,
                true,
            ),
            ("note write fails", Failure::NoteNotWritten, BestEffort, None, false, GoOn, false, false),
            ("Defender transient", Failure::DefenderTransient, Transient, None, false, Retry, false, false),
            (
                "no machine",
                Failure::NoMatch(Reason::NoMachine),
                Permanent,
                Some(("failed", "no_machine")),
                true,
                Settle,
                false,
                false,
            ),
            (
                "ambiguous",
                Failure::NoMatch(Reason::Ambiguous),
                Permanent,
                Some(("failed", "ambiguous")),
                true,
                Settle,
                false,
                false,
            ),
            (
                "name mismatch",
                Failure::NoMatch(Reason::NameMismatch),
                Permanent,
                Some(("failed", "name_mismatch")),
                true,
                Settle,
                false,
                false,
            ),
            (
                "guard denied",
                Failure::Guarded(Reason::Protected),
                Permanent,
                Some(("denied", "protected")),
                true,
                Settle,
                false,
                false,
            ),
            (
                "dry run",
                Failure::Guarded(Reason::DryRun),
                Permanent,
                Some(("dry-run", "dry_run")),
                true,
                Settle,
                false,
                false,
            ),
            (
                "guard rate limit",
                Failure::Held(Reason::RateLimit),
                Transient,
                Some(("denied", "rate_limit")),
                false,
                Hold,
                true,
                false,
            ),
            ("paused", Failure::Held(Reason::Paused), Transient, Some(("denied", "paused")), false, Hold, true, false),
            (
                "Defender refused for good",
                Failure::DefenderRefused(Reason::Refused),
                Permanent,
                Some(("failed", "refused")),
                true,
                Settle,
                true,
                false,
            ),
            (
                "Defender forbids",
                Failure::DefenderRefused(Reason::Forbidden),
                Permanent,
                Some(("failed", "forbidden")),
                true,
                Settle,
                true,
                false,
            ),
            ("unknown error, panic", Failure::Unknown, Transient, None, false, Retry, false, false),
        ];
        for (name, failure, class, tags, consumes, message, alerts, suspends_isolation) in rows {
            let handling = handling(*failure);
            let fate = handling.fate.map(|(fate, reason)| (fate.as_str(), reason.as_str()));
            assert_eq!(fate, *tags, "{name}");
            let expected = Handling {
                class: *class,
                fate: handling.fate,
                consumes: *consumes,
                message: *message,
                alerts: *alerts,
                suspends_isolation: *suspends_isolation,
            };
            assert_eq!(handling, expected, "{name}");
        }
    }
}
