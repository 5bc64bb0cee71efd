//! A relay job is answered, never retried by the queue: its caller waits. One that cannot be worked (undecodable, sealed
//! with an unknown key, crashing its workers) is answered with E14, so that the caller learns it at once.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Context, NEWER_VERSION_DELAY, Worked, action, health, observe, respond, trigger};
use crate::broker::{Message, Settlement};
use crate::job::{DecodeError, Job};
use crate::relay::{self, RelayError};
use crate::telemetry::propagation;

/// Workers answer this long before the caller's deadline, so that the answer arrives in time (`DESIGN.md` 10, ruling 9).
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// A relay job whose workers died this often is answered with E14: it may be the job that kills them.
const RELAY_ATTEMPTS: u32 = 3;

fn answered(kind: &'static str, outcome: &'static str, body: Bytes) -> Worked {
    Worked { kind, outcome, failed: outcome != "ok", settlement: Settlement::Done { reply: Some(body) } }
}

/// E14: the caller learns that something went wrong, the operator what.
fn unforeseen(kind: &'static str, outcome: &'static str) -> Worked {
    answered(kind, outcome, failure(&[RelayError::unforeseen()]))
}

/// The body of an answer that holds errors only.
pub(super) fn failure(errors: &[RelayError]) -> Bytes {
    relay::failure(errors).to_string().into()
}

/// Decides what becomes of a delivery. A panic in a handler is E14 too.
pub(super) async fn step(message: &Message, attempt: u32, deadline: Option<Timestamp>, context: &Context) -> Worked {
    const UNKNOWN: &str = "relay";
    let now = Timestamp::now();
    let left =
        deadline.map_or(Duration::MAX, |deadline| Duration::try_from(deadline.duration_since(now)).unwrap_or_default());
    if left.is_zero() {
        // Nobody waits any more.
        return Worked {
            kind: UNKNOWN,
            outcome: "expired",
            failed: true,
            settlement: Settlement::Done { reply: None },
        };
    }
    if attempt > RELAY_ATTEMPTS {
        tracing::error!(message.id = %message.id, "a relay job was given up: the workers that had it died");
        return unforeseen(UNKNOWN, "attempts");
    }
    let job = match Job::decode(&message.body) {
        Ok(job) => job,
        Err(DecodeError::Newer(version)) => {
            tracing::info!(job.version = version, "a job is left for a newer worker");
            let settlement = Settlement::Later { after: NEWER_VERSION_DELAY, body: None };
            return Worked { kind: UNKNOWN, outcome: "newer_version", failed: false, settlement };
        }
        Err(error) => {
            tracing::error!(error = %error, message.id = %message.id, "a relay job cannot be read");
            return unforeseen(UNKNOWN, "undecodable");
        }
    };
    let kind = job.kind();
    if context.trace_values {
        propagation::values(&job.values());
    }
    // The caller's deadline may be further away than any clock: then the longest wait a caller can have is enough.
    let until = Instant::now() + left.saturating_sub(ANSWER_MARGIN).min(Duration::from_secs(3600));
    let credentials = match context.seal_keys.open(job.credentials(), message.id) {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::error!(error = %error, "a relay job cannot be opened; do ingress and workers have the same keys?");
            return unforeseen(kind, "sealed");
        }
    };
    let handled = async {
        match job {
            Job::Observe(job) => observe::handle(job, &credentials, until, context).await,
            Job::Health(_) => health::handle(&credentials, until, context).await,
            Job::Respond(job) => respond::handle(job, &credentials, until, context).await,
            Job::Trigger(job) => trigger::handle(job, message.id, &credentials, until, context).await.encode(),
            Job::Action(job) => action::handle(&job.action_id, &credentials, until, context).await.encode(),
        }
    };
    match AssertUnwindSafe(handled).catch_unwind().await {
        Ok(body) => answered(kind, "ok", body),
        Err(_) => {
            tracing::error!(message.id = %message.id, job.kind = kind, "a handler panicked");
            unforeseen(kind, "panic")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::config::WorkerSettings;
    use crate::credentials::{Credentials, SealKeys};
    use crate::defender::{self, Defender, Family, Permits, Purpose};
    use crate::job;
    use crate::outbound::Outbound;
    use crate::telemetry::metrics::Metrics;

    /// What a defect in a handler would do. No call gets past it, so nothing leaves this process.
    struct Panics;

    impl Permits for Panics {
        fn permit<'a>(
            &'a self,
            _: &'a str,
            _: &'a str,
            _: Family,
            _: Purpose,
            _: Instant,
        ) -> BoxFuture<'a, Result<Instant, Duration>> {
            panic!("a defect")
        }
    }

    fn keys(secret: &str) -> SealKeys {
        SealKeys::derive(&[&secret.to_owned().into()])
    }

    fn context() -> Context {
        let defender = Defender::new(defender::Settings::default(), Outbound::new().unwrap());
        let defender = defender.with_permits(Arc::new(Panics));
        let settings = WorkerSettings::default();
        Context::new(defender, "https://portal.example", keys("ours").into(), Metrics::default(), &settings)
    }

    /// A health job that was sealed with the key derived from `secret`.
    fn health(secret: &str) -> Message {
        let mut message = Message::new(Bytes::new());
        let credentials =
            Credentials { tenant_id: "t.example".into(), client_id: "c".into(), client_secret: "s".to_owned().into() };
        let credentials = keys(secret).seal(&credentials, message.id).unwrap();
        message.body = Job::Health(job::Health { credentials }).encode();
        message
    }

    fn in_a_minute() -> Option<Timestamp> {
        Some(Timestamp::now() + Duration::from_secs(60))
    }

    #[tokio::test]
    async fn a_job_that_cannot_be_worked_is_answered_at_once_with_e14() {
        let undecodable = Message::new(Bytes::from_static(b"{\"v\":1,\"job\":\"unheard of\"}"));
        for (message, attempt, outcome) in [
            (health("ours"), RELAY_ATTEMPTS + 1, "attempts"),
            (undecodable, 1, "undecodable"),
            (health("another deployment's"), 1, "sealed"),
            (health("ours"), RELAY_ATTEMPTS, "panic"),
        ] {
            let worked = step(&message, attempt, in_a_minute(), &context()).await;
            assert_eq!(worked.outcome, outcome);
            let reply = failure(&[RelayError::unforeseen()]);
            assert_eq!(worked.settlement, Settlement::Done { reply: Some(reply) }, "{outcome}");
        }
    }

    #[tokio::test]
    async fn a_job_whose_caller_has_gone_is_let_go_without_work() {
        let worked = step(&health("ours"), 1, Some(Timestamp::now()), &context()).await;
        assert_eq!(worked.outcome, "expired");
        assert_eq!(worked.settlement, Settlement::Done { reply: None });
    }

    #[tokio::test]
    async fn a_job_of_a_newer_version_is_left_for_a_newer_worker() {
        let body = format!("{{\"v\":{},\"job\":\"unheard of\"}}", job::VERSION + 1);
        let worked = step(&Message::new(body.into()), 1, in_a_minute(), &context()).await;
        assert_eq!(worked.settlement, Settlement::Later { after: NEWER_VERSION_DELAY, body: None });
    }
}
