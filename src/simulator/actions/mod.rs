//! Machine actions: isolating, releasing, cancelling, and what becomes of it over time (`defender.md` 5.10 and 7).
//!
//! An action is `Pending`, then `InProgress`, then final. How long that takes, how it ends and what a second request does
//! while one is open is [`ActionBehaviour`]; a machine can be offline, refuse, or have its next outcomes given. Beside what
//! the service would show, the simulator keeps what it would not: whether a machine is really isolated, every request with
//! what came of it, and whether it was one of those that do harm (7.2).
//!
//! Actions go by the real time; what they show of time is the story's.

mod book;
mod control;
mod routes;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(super) use self::book::{Book, Moment};
pub(super) use self::control::admin;
pub(super) use self::routes::{action, actions, available, cancel, post};

/// How machine actions behave, from the next request on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActionBehaviour {
    /// For everything below that is drawn; a change of the behaviour begins the sequence anew.
    pub seed: u64,
    /// How long an action is `Pending`, in milliseconds.
    pub pending_ms: u64,
    /// How long it is `InProgress` after that, in milliseconds.
    pub in_progress_ms: u64,
    /// Both times are stretched by a factor between 1 and this much more, drawn for each action: with 1 they take up to
    /// twice as long, so that actions of different machines finish in another order than they were asked for.
    pub spread: f64,
    /// The probability that an action ends as `Failed`.
    pub failed: f64,
    /// The probability that it ends as `TimeOut`.
    pub timed_out: f64,
    /// Actions stay `Pending` until [`Control::finish_action`](super::Control::finish_action).
    pub held: bool,
    /// What comes of a request for what is already being done.
    pub while_open: WhileOpen,
    /// What comes of isolating an isolated machine.
    pub when_isolated: WhenIsolated,
    /// How long after the machine's release a hanging isolation is carried out, in milliseconds.
    pub hang_after_release_ms: u64,
    /// When an action that hangs, or whose machine is offline, ends as `TimeOut`, in milliseconds.
    pub gives_up_ms: u64,
    /// How long a new action is missing from the list, in milliseconds; it can be read by its id at once.
    pub list_delay_ms: u64,
    /// The list refuses filters with `in`.
    pub refuse_in: bool,
}

impl Default for ActionBehaviour {
    /// Final after 300 ms, always a success; duplicates of what is open are refused, isolating what is isolated hangs for
    /// the three days that the service tries (`defender.md` 7.4).
    fn default() -> Self {
        Self {
            seed: 0,
            pending_ms: 100,
            in_progress_ms: 200,
            spread: 0.0,
            failed: 0.0,
            timed_out: 0.0,
            held: false,
            while_open: WhileOpen::Refuse,
            when_isolated: WhenIsolated::Hang,
            hang_after_release_ms: 200,
            gives_up_ms: 3 * 24 * 3_600 * 1_000,
            list_delay_ms: 0,
            refuse_in: false,
        }
    }
}

/// What comes of a request for what is already being done (`defender.md` 5.10 and 7.2). A request for the opposite is
/// always refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhileOpen {
    /// 400 `ActiveRequestAlreadyExists`.
    Refuse,
    /// 201 with the open action.
    Return,
    /// One of the two, drawn.
    Either,
    /// Isolations become an action that hangs, releases are refused.
    Hang,
}

/// What comes of isolating an isolated machine (`defender.md` 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenIsolated {
    /// An action that stays `Pending` until the machine is released, and then isolates it again.
    Hang,
    /// An action like any other.
    Succeed,
}

/// How an action ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Carried out.
    Succeeded,
    /// Not carried out.
    Failed,
    /// The machine did not answer in time.
    TimeOut,
}

impl Outcome {
    /// As the service spells it.
    fn status(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::TimeOut => "TimeOut",
        }
    }
}

/// Why a machine refuses to be isolated (`defender.md` 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionRefusal {
    /// 400 `OsPlatformNotSupported`.
    OsPlatform,
    /// 400 `ClientVersionNotSupported`.
    ClientVersion,
}

/// What an action does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionKind {
    /// Isolates.
    Isolate,
    /// Releases.
    Unisolate,
    /// Lets a machine run only what Microsoft signed.
    RestrictCodeExecution,
    /// Ends that.
    UnrestrictCodeExecution,
    /// Scans.
    RunAntiVirusScan,
    /// Collects an investigation package.
    CollectInvestigationPackage,
}

impl ActionKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Isolate => "Isolate",
            Self::Unisolate => "Unisolate",
            Self::RestrictCodeExecution => "RestrictCodeExecution",
            Self::UnrestrictCodeExecution => "UnrestrictCodeExecution",
            Self::RunAntiVirusScan => "RunAntiVirusScan",
            Self::CollectInvestigationPackage => "CollectInvestigationPackage",
        }
    }

    /// What undoes it, or is undone by it.
    fn opposite(self) -> Option<Self> {
        match self {
            Self::Isolate => Some(Self::Unisolate),
            Self::Unisolate => Some(Self::Isolate),
            Self::RestrictCodeExecution => Some(Self::UnrestrictCodeExecution),
            Self::UnrestrictCodeExecution => Some(Self::RestrictCodeExecution),
            Self::RunAntiVirusScan | Self::CollectInvestigationPackage => None,
        }
    }

    /// The last segment of its route.
    pub(super) fn route(self) -> &'static str {
        match self {
            Self::Isolate => "isolate",
            Self::Unisolate => "unisolate",
            Self::RestrictCodeExecution => "restrictCodeExecution",
            Self::UnrestrictCodeExecution => "unrestrictCodeExecution",
            Self::RunAntiVirusScan => "runAntiVirusScan",
            Self::CollectInvestigationPackage => "collectInvestigationPackage",
        }
    }

    /// The kind behind the last segment of a route.
    pub(super) fn of_route(segment: &str) -> Option<Self> {
        const ALL: [ActionKind; 6] = [
            ActionKind::Isolate,
            ActionKind::Unisolate,
            ActionKind::RestrictCodeExecution,
            ActionKind::UnrestrictCodeExecution,
            ActionKind::RunAntiVirusScan,
            ActionKind::CollectInvestigationPackage,
        ];
        ALL.into_iter().find(|kind| kind.route() == segment)
    }
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// A new action.
    Created,
    /// The action that was open already.
    Returned,
    /// 400: another action is open.
    Busy,
    /// 400: the machine cannot be isolated.
    Refused,
}

/// One request for a machine action that reached the service, whether its sender learned of it or not.
/// Malformed ones, and those for unknown machines, are not among them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ActionPost {
    /// Counts from 1 in each tenant, without gaps.
    pub number: u64,
    /// When it came, by the real clock.
    pub at: Timestamp,
    /// What was asked for.
    pub kind: ActionKind,
    /// The machine's id, in lower case.
    pub machine: String,
    /// The comment it was asked with.
    pub comment: String,
    /// The application's id, or the portal's user.
    pub requestor: String,
    /// Whether a person asked in the portal.
    pub portal: bool,
    /// What came of it.
    pub fate: Fate,
    /// The action that was answered, if one was.
    pub action: Option<String>,
    /// An isolation of a machine that was isolated, or that another isolation was open for: the client did not look.
    pub duplicate: bool,
    /// A duplicate that became an action of its own, which hangs and isolates the machine again after its release.
    pub harmful: bool,
}

/// What is true of a machine, whatever the service shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Isolation {
    /// Whether it is cut off.
    pub isolated: bool,
    /// Whether it runs only what Microsoft signed.
    pub restricted: bool,
    /// Whether it answers the service.
    pub offline: bool,
    /// Isolations that are not final, those that hang included.
    pub open_isolates: usize,
    /// The most of them that there ever were at once.
    pub most_open_isolates: usize,
    /// Requests that were [`ActionPost::duplicate`].
    pub duplicates: usize,
    /// Requests that were [`ActionPost::harmful`].
    pub harmful: usize,
    /// Each time it was cut off or let back, oldest first.
    pub changes: Vec<IsolationChange>,
}

/// A machine was cut off or let back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IsolationChange {
    /// When, by the story's clock.
    pub at: Timestamp,
    /// What it is since.
    pub isolated: bool,
    /// The action that did it.
    pub action: String,
}
