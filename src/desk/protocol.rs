//! Questions to the desk and its answers: small JSON, its version first, as every job.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ledger::Isolation;
use crate::quota::{Class, Key, Word};

/// What the desk is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "desk", rename_all = "snake_case")]
pub(super) enum Request {
    /// So many calls to Cognito.
    Permits { containment: bool, count: u32 },
    /// Cognito answered 429.
    Throttled {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// Calls to Defender, of several accounts and families at once.
    Quota { asker: Uuid, asks: Vec<QuotaAsk> },
    /// Defender answered 429.
    QuotaThrottled {
        #[serde(flatten)]
        key: Key,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// The right to isolate a machine. The reports concern the same machine and go first.
    Reserve {
        /// The asker's own name for it; asked again with the same, it is the same reservation.
        id: Uuid,
        machine_id: String,
        host_id: u64,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reports: Vec<Report>,
    },
    /// What became of isolations, in the order of their happening.
    Report { reports: Vec<Report> },
    /// The right to sweep.
    SweepBegin { id: Uuid, interval_ms: u64, lease_ms: u64 },
    /// The sweep is over.
    SweepDone { id: Uuid },
    /// Hosts whose block tag nobody has touched.
    FirstSweep { hosts: Vec<u64> },
    /// The brake was put on so long ago; the answer comes when nothing that was granted before can be posted any more.
    Drain { age_ms: u64 },
    /// Brings the retained ledger up to date.
    Status,
    /// Whether anybody is there.
    Present,
    /// A question of a newer version.
    #[serde(other)]
    Unknown,
}

impl Request {
    /// Whether the answer needs what only workers know that have Cognito's settings.
    pub(super) fn is_about_cognito(&self) -> bool {
        match self {
            Self::Permits { .. }
            | Self::Throttled { .. }
            | Self::SweepBegin { .. }
            | Self::SweepDone { .. }
            | Self::FirstSweep { .. } => true,
            Self::Reserve { .. }
            | Self::Report { .. }
            | Self::Drain { .. }
            | Self::Status
            | Self::Quota { .. }
            | Self::QuotaThrottled { .. }
            | Self::Present
            | Self::Unknown => false,
        }
    }
}

/// So many calls of one account and family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QuotaAsk {
    #[serde(flatten)]
    pub(super) key: Key,
    pub(super) class: Class,
    pub(super) count: u32,
}

/// What happened, and how long ago by the reporter's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) age_ms: u64,
    #[serde(flatten)]
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(super) enum What {
    Posted { id: Uuid, machine_id: String, host_id: u64 },
    NotPosted { id: Uuid, machine_id: String, host_id: u64 },
    Isolated { isolation: Isolation },
    Released { machine_id: String, host_id: u64 },
}

impl What {
    pub(super) fn machine_id(&self) -> &str {
        match self {
            Self::Posted { machine_id, .. }
            | Self::NotPosted { machine_id, .. }
            | Self::Released { machine_id, .. } => machine_id,
            Self::Isolated { isolation } => &isolation.machine_id,
        }
    }
}

/// What the desk says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "desk", rename_all = "snake_case")]
pub(super) enum Reply {
    /// So many may go; none: ask again after this time.
    Permits { granted: u32, wait_ms: u64 },
    /// To [`Request::Quota`], in its order.
    Quota { words: Vec<Word> },
    /// Done.
    Noted,
    /// To [`Request::Reserve`].
    Reserved { answer: Answer },
    /// To [`Request::SweepBegin`]: now, or when to ask again.
    Sweep { wait_ms: Option<u64> },
    /// To [`Request::FirstSweep`].
    FirstSweep { paused: bool },
    /// To [`Request::Drain`].
    Drained,
    /// To [`Request::Quota`]: the books cannot be read or written now.
    NotCounted,
    /// The desk cannot do that now, or does not know the question.
    Unavailable,
}

/// The answer to a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    Granted,
    RateLimited { free_at: Timestamp },
    TooManyIsolated,
    Paused,
    Busy { wait_ms: u64 },
}

/// Milliseconds on the wire.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job;
    use crate::quota::Row;

    #[test]
    fn questions_and_answers_return_as_they_were() {
        let isolation = Isolation {
            machine_id: "m".to_owned(),
            host_id: 7,
            host_name: "h".to_owned(),
            action_id: None,
            since: Timestamp::UNIX_EPOCH,
            until: None,
        };
        let key = Key::new("t.example", "app", Row::Alerts);
        let ask = QuotaAsk { key: key.clone(), class: Class::Containment, count: 3 };
        let report = |what| Report { age_ms: 12, what };
        let posted = What::Posted { id: Uuid::nil(), machine_id: "m".to_owned(), host_id: 7 };
        let reports = vec![report(posted), report(What::Isolated { isolation })];
        for request in [
            Request::Permits { containment: true, count: 3 },
            Request::Throttled { retry_after_ms: None },
            Request::Quota { asker: Uuid::nil(), asks: vec![ask] },
            Request::QuotaThrottled { key, retry_after_ms: Some(5) },
            Request::Reserve { id: Uuid::nil(), machine_id: "m".to_owned(), host_id: 7, reports: reports.clone() },
            Request::Report { reports },
            Request::FirstSweep { hosts: vec![1, 2] },
            Request::Drain { age_ms: 3 },
        ] {
            assert_eq!(job::decode::<Request>(&job::encode(&request)), Ok(request));
        }
        let free_at = Timestamp::UNIX_EPOCH;
        for reply in [
            Reply::Permits { granted: 1, wait_ms: 0 },
            Reply::Quota { words: vec![Word { granted: 1, wait_ms: 0, free: vec![1, 2] }] },
            Reply::Reserved { answer: Answer::RateLimited { free_at } },
            Reply::Sweep { wait_ms: None },
            Reply::Drained,
        ] {
            assert_eq!(job::decode::<Reply>(&job::encode(&reply)), Ok(reply));
        }
        let body = job::encode(&Request::Drain { age_ms: 3 });
        assert_eq!(body, r#"{"v":1,"desk":"drain","age_ms":3}"#);
        let newer = br#"{"v":1,"desk":"unheard of","age_ms":3}"#;
        assert_eq!(job::decode::<Request>(newer), Ok(Request::Unknown));
    }
}
