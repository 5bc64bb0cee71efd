//! What a worker can be asked, and how it is written into a message.
//!
//! Every body is JSON with its version first: `{"v":1,"job":"observe",...}`. A worker takes versions up to its own; a
//! newer one is put off for a newer worker (`DESIGN.md` 10, ruling 4), so that a deployment can be upgraded in any order.
//! Each kind is written with the version that brought it, so that a new kind does not keep old workers from the old ones.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::broker::{Lane, Message, Queue, Spread, Style, Topology};
use crate::credentials::Sealed;
use crate::relay::HttpError;
use crate::relay::payload::ActionForm;

/// The newest version of relay jobs that this build reads.
pub const VERSION: u32 = 2;

/// The version of everything else.
const FIRST: u32 = 1;

/// The queue of relay calls. While few come they come together in one worker, for there they share what is kept
/// in memory.
pub const RELAY: Queue = Queue { name: "relay", style: Style::Ask, spread: Spread::Gather };

/// The queue of host events: hints that a host of Cognito should be looked at.
pub const HOSTS: Queue = Queue { name: "hosts", style: Style::Durable, spread: Spread::Even };

/// Questions to the desk, which one worker of the deployment answers (`DESIGN.md` 5).
pub const DESK: Queue = Queue { name: "desk", style: Style::Ask, spread: Spread::SingleActive };

/// The queue of notifications for the operators' receiver.
pub const NOTIFY: Queue = Queue { name: "notify", style: Style::Durable, spread: Spread::Even };

/// Retained: the emergency brake.
pub const BRAKE: &str = "brake";

/// Retained: the cap of isolations per hour that replaces the setting for a time. Apart from [`BRAKE`], so that neither
/// is written over when both change at once.
pub const CAP: &str = "cap";

/// Retained: the isolations of the last hour and those that are not ended.
pub const LEDGER: &str = "ledger";

/// Retained: reservations that workers made without a desk.
pub const DESKLESS: &str = "deskless";

/// Retained: the calls to Defender of the last hour, by account.
pub const QUOTA: &str = "quota";

/// Retained: the tags that the workers are configured for, from which the ingress knows the lane of an event.
pub const TRIGGERS: &str = "triggers";

/// Retained: how far Cognito's feeds were read.
pub const FEEDS: &str = "feeds";

/// Everything the deployment declares at its broker.
///
/// At most 5,000 relay calls wait in a lane: at the published quotas that is hours of work, so a longer queue would only
/// hold requests that cannot be answered in time. 100,000 durable messages are more hosts than one brain has.
pub static TOPOLOGY: Topology = Topology {
    queues: &[RELAY, HOSTS, NOTIFY, DESK],
    retained: &[BRAKE, CAP, LEDGER, DESKLESS, QUOTA, TRIGGERS, FEEDS],
    ask_limit: 5_000,
    durable_limit: 100_000,
};

/// One relay call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Job {
    /// `/observe/observables`.
    Observe(Observe),
    /// `/health`.
    Health(Health),
    /// `/respond/observables`; from version 2.
    Respond(Respond),
    /// `/respond/trigger`; from version 2.
    Trigger(Trigger),
    /// `/actions/{id}`; from version 2.
    Action(Action),
}

/// Which response actions there are for each observable (`relay.md` 7.1 and 7.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Respond {
    /// Whose tenant.
    pub credentials: Sealed,
    /// (type, value) as received, valid and without repeats; at most 1,000.
    pub observables: Vec<(String, String)>,
}

/// An analyst's order (`relay.md` 7.3), as it was received. To be sent as [`crate::broker::Repeat::AtMostOnce`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// Whose tenant.
    pub credentials: Sealed,
    /// See [`ActionForm`].
    pub action_id: String,
    /// See [`ActionForm`].
    pub observable_type: String,
    /// See [`ActionForm`].
    pub observable_value: String,
    /// See [`ActionForm`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indicator_id: Option<String>,
}

impl Trigger {
    /// The order that `form` gives.
    #[must_use]
    pub fn new(credentials: Sealed, form: ActionForm) -> Self {
        let ActionForm { action_id, observable_type, observable_value, indicator_id } = form;
        Self { credentials, action_id, observable_type, observable_value, indicator_id }
    }

    /// The form again.
    #[must_use]
    pub fn into_form(self) -> ActionForm {
        let Self { action_id, observable_type, observable_value, indicator_id, .. } = self;
        ActionForm { action_id, observable_type, observable_value, indicator_id }
    }

    /// The key under which the orders for one machine never run side by side.
    #[must_use]
    pub fn key(machine_id: &str) -> String {
        format!("machine-{machine_id}")
    }
}

/// How a machine action stands (`DESIGN.md` 10, ruling 14).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Whose tenant.
    pub credentials: Sealed,
    /// Defender's id of the action, as received.
    pub action_id: String,
}

/// What a worker answers where the body alone does not say all: to [`Trigger`] and [`Action`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The HTTP status for the caller.
    pub status: u16,
    /// Defender's id of the machine action that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_id: Option<String>,
    /// The body for the caller.
    pub body: serde_json::Value,
}

impl Reply {
    /// HTTP 200 with this body.
    #[must_use]
    pub const fn ok(body: serde_json::Value) -> Self {
        Self { status: 200, action_id: None, body }
    }

    /// An answer below the relay protocol.
    #[must_use]
    pub fn http(error: HttpError) -> Self {
        Self { status: error.code, action_id: None, body: serde_json::json!(error) }
    }

    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("a reply serialises").into()
    }

    /// Reads a reply; `None` for what is none: it came from a worker that could not work the job (E14).
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

/// What Defender has seen of each observable (`relay.md` 5 and 6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observe {
    /// Whose tenant.
    pub credentials: Sealed,
    /// `L` of `relay.md` 5.3: sightings for each observable at most.
    pub limit: u32,
    /// (type, value) as received, valid and without repeats; at most 1,000.
    pub observables: Vec<(String, String)>,
}

/// Whether Defender can be reached with these credentials (`relay.md` 1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whose tenant.
    pub credentials: Sealed,
}

/// A host of Cognito should be looked at (`cognito.md` 4.7). What is done is decided from the host itself; an event says
/// only which one, and why somebody thinks so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The sender's id of the event, or the one made from it (`cognito.md` 4.6); stable over resends and redrives.
    pub event_id: String,
    /// Who sent it: the name of a webhook sender, `sweep`, `feed`, `poll`.
    pub sender: String,
    /// Cognito's id of the host, from 1.
    pub host_id: u64,
    /// What the event said.
    pub kind: HostKind,
    /// When it happened, by the sender. A candidate for the lookup's time, of score events only.
    pub occurred_at: Timestamp,
    /// When the bridge received it.
    pub received_at: Timestamp,
    /// What the event said of tags or scores; for the choice of the lane and for logs, never for a decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Hint>,
    /// Who did it, as the sender says; for logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// How far the work has got; absent in a new event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// The kinds of canonical host events (`cognito.md` 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostKind {
    /// A tag was added.
    #[serde(rename = "host.tag.added")]
    TagAdded,
    /// A tag was removed.
    #[serde(rename = "host.tag.removed")]
    TagRemoved,
    /// The list of tags changed.
    #[serde(rename = "host.tags.changed")]
    TagsChanged,
    /// The scores changed.
    #[serde(rename = "host.scored")]
    Scored,
    /// Look at it, whatever the reason.
    #[serde(rename = "host.reconcile")]
    Reconcile,
}

impl HostKind {
    /// The name in events, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TagAdded => "host.tag.added",
            Self::TagRemoved => "host.tag.removed",
            Self::TagsChanged => "host.tags.changed",
            Self::Scored => "host.scored",
            Self::Reconcile => "host.reconcile",
        }
    }
}

/// What an event says about its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// The tag that was added or removed.
    Tag(String),
    /// The tags that the host has now, as far as the event says.
    Tags(Vec<String>),
    /// The scores, 0 to 100.
    Score {
        /// Threat.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        threat: Option<u8>,
        /// Certainty.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        certainty: Option<u8>,
        /// Urgency, of hosted brains.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        urgency: Option<u8>,
    },
    /// An operator orders the release of what the bridge has isolated; to be worked as an unblock request without a tag.
    Release {
        /// Who.
        by: String,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

/// How far the work on a host has got, carried by its message between tries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How often the open machine action was looked at since it was posted or adopted.
    #[serde(default)]
    pub looks: u32,
    /// The machine action that is being followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_id: Option<String>,
    /// The brake or a cap held the isolation back: nothing is done before it is released.
    #[serde(default)]
    pub held: bool,
    /// How often an action was looked for since it was posted with an unknown outcome; 0: there was no such post.
    #[serde(default)]
    pub unknown: u32,
    /// The machine of that post.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_machine: Option<String>,
}

/// What the operators' receiver is told (`notify`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// The same for the same happening, however often it is told.
    pub webhook_id: Uuid,
    /// What is posted, as it is signed: JSON with `type`, `timestamp` and `data`.
    pub body: String,
}

/// Shows no more than a log should.
impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notification").field("webhook_id", &self.webhook_id).finish_non_exhaustive()
    }
}

impl Notification {
    /// The name of the kind, for spans, logs and metrics.
    pub const KIND: &'static str = "notification";

    /// The body of a message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads the body of a message.
    ///
    /// # Errors
    /// See [`DecodeError`]; the text names the place, never the content.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        decode(body)
    }
}

/// The tags that the workers act on, as retained under [`TRIGGERS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Triggers {
    /// The block and the unblock tag: events that name one of them are urgent.
    pub urgent: Vec<String>,
    /// The enrichment tag.
    pub normal: Vec<String>,
}

impl Host {
    /// What the keys of host events begin with; Cognito's id of the host follows.
    pub const KEY_PREFIX: &str = "host-";

    /// The key under which the events of one host never run side by side.
    #[must_use]
    pub fn key(&self) -> String {
        Self::key_of(self.host_id)
    }

    /// The key of the events of this host.
    #[must_use]
    pub fn key_of(host_id: u64) -> String {
        format!("{}{host_id}", Self::KEY_PREFIX)
    }

    /// The lane of a new event: urgent when it may be about containment. While no worker has said which tags it acts on
    /// (`triggers` is `None`), every event about tags may be; one that does not say which tags may be at any time.
    #[must_use]
    pub fn lane(&self, triggers: Option<&Triggers>) -> Lane {
        let urgent = match (&self.hint, triggers) {
            (Some(Hint::Tag(_) | Hint::Tags(_)), None) | (Some(Hint::Release { .. }), _) => true,
            (Some(Hint::Tag(tag)), Some(triggers)) => triggers.urgent.contains(tag),
            (Some(Hint::Tags(tags)), Some(triggers)) => tags.iter().any(|tag| triggers.urgent.contains(tag)),
            (None, _) => matches!(self.kind, HostKind::TagAdded | HostKind::TagRemoved | HostKind::TagsChanged),
            (Some(Hint::Score { .. }), _) => false,
        };
        if urgent { Lane::Urgent } else { Lane::Normal }
    }

    /// The body of a message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads the body of a message.
    ///
    /// # Errors
    /// See [`DecodeError`]; the text names the place, never the content.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        decode(body)
    }

    /// The message of a new event.
    #[must_use]
    pub fn into_message(self, lane: Lane) -> Message {
        let key = self.key();
        Message { lane, key: Some(key), ..Message::new(self.encode()) }
    }
}

/// Why a body is not a job for this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer build; work for a newer worker.
    #[error("the job has version {0}, which this build does not read")]
    Newer(u32),
    /// Nobody can work this.
    #[error("the body is not a job: {0}")]
    Undecodable(String),
}

#[derive(Serialize)]
struct Written<'a, T> {
    v: u32,
    #[serde(flatten)]
    job: &'a T,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl Job {
    /// The name of the kind, for spans, logs and metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Observe(_) => "observe",
            Self::Health(_) => "health",
            Self::Respond(_) => "respond",
            Self::Trigger(_) => "trigger",
            Self::Action(_) => "action",
        }
    }

    /// The values of the observables that it is about. They may be personal data.
    #[must_use]
    pub fn values(&self) -> Vec<&str> {
        match self {
            Self::Observe(Observe { observables, .. }) | Self::Respond(Respond { observables, .. }) => {
                observables.iter().map(|(_, value)| value.as_str()).collect()
            }
            Self::Trigger(Trigger { observable_value, .. }) => vec![observable_value],
            Self::Health(_) | Self::Action(_) => Vec::new(),
        }
    }

    /// The version that brought its kind.
    const fn version(&self) -> u32 {
        match self {
            Self::Observe(_) | Self::Health(_) => FIRST,
            Self::Respond(_) | Self::Trigger(_) | Self::Action(_) => 2,
        }
    }

    /// Whose tenant.
    #[must_use]
    pub const fn credentials(&self) -> &Sealed {
        match self {
            Self::Observe(Observe { credentials, .. })
            | Self::Health(Health { credentials })
            | Self::Respond(Respond { credentials, .. })
            | Self::Trigger(Trigger { credentials, .. })
            | Self::Action(Action { credentials, .. }) => credentials,
        }
    }

    /// The body of a message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        write(self.version(), self)
    }

    /// Reads the body of a message.
    ///
    /// # Errors
    /// See [`DecodeError`]; the text names the place, never the content.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        read(VERSION, body)
    }
}

/// `job` as JSON, its version beside its members.
pub(crate) fn encode<T: Serialize>(job: &T) -> Bytes {
    write(FIRST, job)
}

fn write<T: Serialize>(v: u32, job: &T) -> Bytes {
    serde_json::to_vec(&Written { v, job }).expect("a job serialises").into()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// See [`DecodeError`]; the text names the place, never the content.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    read(FIRST, body)
}

/// Reads a body of version `newest` or older.
fn read<T: DeserializeOwned>(newest: u32, body: &[u8]) -> Result<T, DecodeError> {
    let undecodable = |error: serde_json::Error| {
        DecodeError::Undecodable(format!(
            "{:?} error at line {} column {}",
            error.classify(),
            error.line(),
            error.column()
        ))
    };
    let version: Version = serde_json::from_slice(body).map_err(undecodable)?;
    if version.v > newest {
        return Err(DecodeError::Newer(version.v));
    }
    serde_json::from_slice(body).map_err(undecodable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observe(observables: Vec<(String, String)>) -> Job {
        let credentials = serde_json::from_str("\"k.AAAA\"").unwrap();
        Job::Observe(Observe { credentials, limit: 100, observables })
    }

    #[test]
    fn an_event_that_may_be_about_containment_is_urgent() {
        use HostKind::{Reconcile, Scored, TagAdded, TagRemoved, TagsChanged};
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let tag = |tag: &str| Some(Hint::Tag(tag.to_owned()));
        let tags = |tags: &[&str]| Some(Hint::Tags(words(tags)));
        let score = Some(Hint::Score { threat: Some(99), certainty: None, urgency: None });
        let triggers = Triggers { urgent: words(&["block", "unblock"]), normal: words(&["host_context"]) };
        // kind, hint, lane while the tags are unknown, lane when they are known
        for (kind, hint, unknown, known) in [
            (TagAdded, tag("block"), Lane::Urgent, Lane::Urgent),
            (TagAdded, tag("Block"), Lane::Urgent, Lane::Normal),
            (TagAdded, tag("host_context"), Lane::Urgent, Lane::Normal),
            (TagsChanged, tags(&["VIP", "unblock"]), Lane::Urgent, Lane::Urgent),
            (TagsChanged, tags(&["VIP", "host_context"]), Lane::Urgent, Lane::Normal),
            (TagsChanged, tags(&[]), Lane::Urgent, Lane::Normal),
            (TagsChanged, None, Lane::Urgent, Lane::Urgent),
            (TagRemoved, None, Lane::Urgent, Lane::Urgent),
            (Scored, score, Lane::Normal, Lane::Normal),
            (Scored, None, Lane::Normal, Lane::Normal),
            (Reconcile, None, Lane::Normal, Lane::Normal),
        ] {
            let host = Host {
                event_id: "e".into(),
                sender: "s".into(),
                host_id: 1,
                kind,
                occurred_at: Timestamp::UNIX_EPOCH,
                received_at: Timestamp::UNIX_EPOCH,
                hint,
                actor: None,
                progress: None,
            };
            assert_eq!((host.lane(None), host.lane(Some(&triggers))), (unknown, known), "{host:?}");
        }
    }

    #[test]
    fn the_version_stands_in_the_body() {
        let body: serde_json::Value = serde_json::from_slice(&observe(vec![]).encode()).unwrap();
        assert_eq!(body["v"], 1);
        assert_eq!(body["job"], "observe");
    }

    /// A worker of the first version takes the kinds that it knows, and leaves these to a newer one.
    #[test]
    fn a_kind_is_written_with_the_version_that_brought_it() {
        let credentials: Sealed = serde_json::from_str("\"k.AAAA\"").unwrap();
        let form = ActionForm {
            action_id: "a".into(),
            observable_type: "ip".into(),
            observable_value: "192.0.2.1".into(),
            indicator_id: Some("7".into()),
        };
        for job in [
            Job::Respond(Respond { credentials: credentials.clone(), observables: vec![] }),
            Job::Trigger(Trigger::new(credentials.clone(), form)),
            Job::Action(Action { credentials, action_id: "a".into() }),
        ] {
            let body: serde_json::Value = serde_json::from_slice(&job.encode()).unwrap();
            assert_eq!((body["v"].as_u64(), body["job"].as_str()), (Some(2), Some(job.kind())));
            assert_eq!(Job::decode(&job.encode()).unwrap(), job);
        }
    }

    #[test]
    fn what_is_no_reply_is_told_from_one() {
        let reply = Reply { action_id: Some("x".into()), ..Reply::ok(crate::relay::trigger_success()) };
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        assert_eq!(Reply::decode(br#"{"errors":[]}"#), None);
    }

    #[test]
    fn a_newer_version_is_told_from_nonsense() {
        assert_eq!(Job::decode(br#"{"v":3,"job":"unheard of"}"#), Err(DecodeError::Newer(3)));
        assert_eq!(Host::decode(br#"{"v":2,"unheard":"of"}"#), Err(DecodeError::Newer(2)));
        for body in [&b""[..], b"{", b"[]", br#"{"v":1}"#, br#"{"v":1,"job":"unheard of"}"#, br#"{"v":-1}"#, b"\xff"] {
            assert!(matches!(Job::decode(body), Err(DecodeError::Undecodable(_))), "{body:?}");
        }
    }

    #[test]
    fn an_error_does_not_show_the_content() {
        let Err(error) = Job::decode(br#"{"v":1,"job":"pl4nted"}"#) else { panic!("decoded") };
        assert!(!error.to_string().contains("pl4nted"), "{error}");
    }

    proptest! {
        #[test]
        fn a_job_returns_as_it_was(observables in prop::collection::vec((".{0,20}", ".{0,50}"), 0..20)) {
            let job = observe(observables);
            prop_assert_eq!(Job::decode(&job.encode()).unwrap(), job);
        }

        #[test]
        fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Job::decode(&body);
        }
    }
}
