//! What operators do: look at the ledger, move the brake, set a cap for a time, wait for releases.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::brake::{Brake, Cap, Lever};
use super::ledger::{Ledger, Retained};
use super::line::Line;
use super::protocol::{Reply, Request, millis};
use super::state::GRANT_LIMIT;
use crate::broker::{Broker, BrokerError};
use crate::job;

/// How long the desk may take to bring the ledger up to date before it is read as it is.
const STATUS_LIMIT: Duration = Duration::from_secs(3);

/// How long the desk's word may take on its way.
const WORD: Duration = Duration::from_secs(1);

/// How often a value whose fate is unknown is written again.
const TRIES: usize = 3;

/// What there is to see.
#[derive(Debug, Clone)]
pub struct Status {
    /// The brake.
    pub brake: Brake,
    /// The ledger; empty while there never was a desk.
    pub ledger: Ledger,
    /// A desk brought it up to date; otherwise it is as the last one left it.
    pub current: bool,
}

/// How [`drain`] knows that nothing more is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// The desk said so.
    ByDesk,
    /// No desk answered; the time in which anything granted before could be posted is over.
    ByTime,
}

/// The brake that was put on, and when.
#[derive(Debug, Clone)]
pub struct Engaged {
    /// The brake before.
    pub before: Brake,
    /// The brake now.
    pub now: Brake,
    on: Instant,
}

/// Brake and ledger.
///
/// # Errors
/// When the broker cannot be reached, or the ledger was written by a newer build.
pub async fn status<B: Broker>(broker: &B) -> Result<Status, BrokerError> {
    let line = Line::new(broker.clone());
    let current = line.ask(&Request::Status, STATUS_LIMIT).await.is_ok();
    let (brake, ledger) = tokio::try_join!(brake(&line), line.read(job::LEDGER))?;
    let ledger = ledger.map(|value| decode(&value)).transpose()?.unwrap_or_default();
    Ok(Status { brake, ledger, current })
}

/// Puts the brake on. What was granted before may still be posted: see [`drain`].
///
/// # Errors
/// The brake is not on, or that is not known.
pub async fn engage<B: Broker>(broker: &B, by: &str, reason: Option<&str>) -> Result<Engaged, BrokerError> {
    let (before, now) = pull(&Line::new(broker.clone()), true, by, reason).await?;
    Ok(Engaged { before, now, on: Instant::now() })
}

/// Waits until not one more isolation is posted in the whole deployment, because of the brake that was put on: 15 s at
/// most. Returns how that is known, and the time since the brake is on.
pub async fn drain<B: Broker>(broker: &B, engaged: &Engaged) -> (Drained, Duration) {
    let over = engaged.on + GRANT_LIMIT;
    let line = Line::new(broker.clone());
    let request = Request::Drain { age_ms: millis(engaged.on.elapsed()) };
    // A desk that does not know all holders speaks when the time is over.
    let limit = over.saturating_duration_since(Instant::now()) + WORD;
    let drained = if let Ok(Reply::Drained) = line.ask(&request, limit).await {
        Drained::ByDesk
    } else {
        sleep_until(over).await;
        Drained::ByTime
    };
    (drained, engaged.on.elapsed())
}

/// Takes the brake off. Returns it as it was, and as it is.
///
/// # Errors
/// The brake is as it was, or that is not known.
pub async fn resume<B: Broker>(broker: &B, by: &str) -> Result<(Brake, Brake), BrokerError> {
    pull(&Line::new(broker.clone()), false, by, None).await
}

/// Sets the cap of isolations per hour for a time. Returns the brake as it was, and as it is.
///
/// # Errors
/// The cap is as it was, or that is not known.
pub async fn set_cap<B: Broker>(
    broker: &B,
    per_hour: u32,
    time: Duration,
    by: &str,
) -> Result<(Brake, Brake), BrokerError> {
    let line = Line::new(broker.clone());
    let before = brake(&line).await?;
    let at = Timestamp::now();
    let cap = Cap { per_hour, at, until: at + time, by: by.to_owned() };
    retain(&line, job::CAP, &cap.encode()).await?;
    let now = Brake { cap: Some(cap), ..before.clone() };
    Ok((before, now))
}

/// Waits until the ledger shows that none of `hosts` is isolated and, for those that are not among `listed` (isolated
/// when their release was ordered), that a release was reported at `since` or later; until `limit` at most. Returns those
/// of which it does not.
///
/// # Errors
/// When the broker cannot be reached, or the ledger was written by a newer build.
pub async fn wait_released<B: Broker>(
    broker: &B,
    hosts: &BTreeSet<u64>,
    listed: &BTreeSet<u64>,
    since: Timestamp,
    limit: Duration,
) -> Result<BTreeSet<u64>, BrokerError> {
    let end = Instant::now() + limit;
    let mut retained = broker.watch(job::LEDGER).await?;
    loop {
        let ledger = retained.borrow_and_update().as_ref().map(|value| decode(value)).transpose()?.unwrap_or_default();
        let isolated: BTreeSet<u64> = ledger.isolated().iter().map(|isolation| isolation.host_id).collect();
        let over =
            |host: &u64| !isolated.contains(host) && (listed.contains(host) || ledger.was_released(*host, since));
        let left: BTreeSet<u64> = hosts.iter().copied().filter(|host| !over(host)).collect();
        if left.is_empty() {
            return Ok(left);
        }
        match timeout_at(end, retained.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(BrokerError::Closed),
            Err(_) => return Ok(left),
        }
    }
}

async fn brake(line: &Line) -> Result<Brake, BrokerError> {
    let (lever, cap) = tokio::try_join!(line.read(job::BRAKE), line.read(job::CAP))?;
    Ok(Brake::read(lever.as_ref(), cap.as_ref()))
}

async fn pull(line: &Line, paused: bool, by: &str, reason: Option<&str>) -> Result<(Brake, Brake), BrokerError> {
    let before = brake(line).await?;
    let lever = Lever { paused, by: by.to_owned(), at: Timestamp::now(), reason: reason.map(str::to_owned) };
    retain(line, job::BRAKE, &lever.encode()).await?;
    let Lever { paused, by, at, reason } = lever;
    let now = Brake { paused, by: Some(by), at: Some(at), reason, cap: before.cap.clone() };
    Ok((before, now))
}

/// Writes a value again while nobody knows whether it was written.
async fn retain(line: &Line, name: &'static str, value: &bytes::Bytes) -> Result<(), BrokerError> {
    let mut tries = TRIES;
    loop {
        tries -= 1;
        match line.retain(name, value.clone()).await {
            Err(BrokerError::Unknown(_)) if tries > 0 => {}
            outcome => return outcome,
        }
    }
}

fn decode(value: &[u8]) -> Result<Ledger, BrokerError> {
    let retained = Retained::decode(value);
    retained.map(|retained| retained.ledger).map_err(|error| BrokerError::Storage(error.to_string()))
}
