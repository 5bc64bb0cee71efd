//! What a worker can be asked, and how it is written into a message.
//!
//! Every body is JSON with its version first: `{"v":1,"job":"observe",...}`. A worker takes versions up to its own; a
//! newer one is put off for a newer worker (`DESIGN.md` 10, ruling 4), so that a deployment can be upgraded in any order.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::broker::{Queue, Style, Topology};
use crate::credentials::Sealed;

/// The version this build writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// The queue of relay calls.
pub const RELAY: Queue = Queue { name: "relay", style: Style::Ask, single_active: false };

/// Everything the deployment declares at its broker.
///
/// At most 5,000 relay calls wait in a lane: at the published quotas that is hours of work, so a longer queue would only
/// hold requests that cannot be answered in time. 100,000 durable messages are more hosts than one brain has.
pub static TOPOLOGY: Topology = Topology { queues: &[RELAY], retained: &[], ask_limit: 5_000, durable_limit: 100_000 };

/// One piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Job {
    /// `/observe/observables`.
    Observe(Observe),
    /// `/health`.
    Health(Health),
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

/// Why a body is not a job for this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer build; work for a newer worker.
    #[error("the job has version {0}, this build reads up to {VERSION}")]
    Newer(u32),
    /// Nobody can work this.
    #[error("the body is not a job: {0}")]
    Undecodable(String),
}

#[derive(Serialize)]
struct Written<'a> {
    v: u32,
    #[serde(flatten)]
    job: &'a Job,
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
        }
    }

    /// The body of a message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(&Written { v: VERSION, job: self }).expect("a job serialises").into()
    }

    /// Reads the body of a message.
    ///
    /// # Errors
    /// See [`DecodeError`]; the text names the place, never the content.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let undecodable = |error: serde_json::Error| {
            DecodeError::Undecodable(format!(
                "{:?} error at line {} column {}",
                error.classify(),
                error.line(),
                error.column()
            ))
        };
        let version: Version = serde_json::from_slice(body).map_err(undecodable)?;
        if version.v > VERSION {
            return Err(DecodeError::Newer(version.v));
        }
        serde_json::from_slice(body).map_err(undecodable)
    }
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
    fn the_version_stands_in_the_body() {
        let body: serde_json::Value = serde_json::from_slice(&observe(vec![]).encode()).unwrap();
        assert_eq!(body["v"], 1);
        assert_eq!(body["job"], "observe");
    }

    #[test]
    fn a_newer_version_is_told_from_nonsense() {
        assert_eq!(Job::decode(br#"{"v":2,"job":"unheard of"}"#), Err(DecodeError::Newer(2)));
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
