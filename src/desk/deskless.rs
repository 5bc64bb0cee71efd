//! A reservation without a desk: decided by the worker itself, from brake and ledger as they are retained now.
//!
//! Reading them anew proves that the link is alive, and shows every pause that was retained before. The reservation is
//! retained too, before the brake is read once more: so either this worker sees the pause, or the desk that drains for it
//! sees the reservation. Two workers at once may write over each other's reservation; it is in the ledger when its holder
//! reports it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::Settings;
use super::brake::Brake;
use super::ledger::{Deskless, HOUR, Retained};
use super::line::Line;
use super::protocol::Answer;
use super::state::{Ask, Now, State};
use crate::broker::BrokerError;
use crate::job;

/// How long it may take. Reading a retained value anew takes a tenth of a second on RabbitMQ.
const LIMIT: Duration = Duration::from_secs(2);

/// Decides. A reservation that was retained and then not granted is the caller's to take back.
///
/// # Errors
/// The values cannot be read or written now, or not by this build: nobody knows then what may be isolated.
pub(super) async fn reserve(line: &Line, settings: &Settings, ask: Ask<'_>) -> Result<Answer, BrokerError> {
    timeout(LIMIT, decide(line, settings, ask)).await.unwrap_or(Err(BrokerError::Timeout))
}

async fn brake(line: &Line) -> Result<Brake, BrokerError> {
    let (lever, cap) = tokio::try_join!(line.read(job::BRAKE), line.read(job::CAP))?;
    Ok(Brake::read(lever.as_ref(), cap.as_ref()))
}

async fn decide(line: &Line, settings: &Settings, ask: Ask<'_>) -> Result<Answer, BrokerError> {
    let unreadable = |error: job::DecodeError| BrokerError::Storage(error.to_string());
    let (first, ledger, deskless) = tokio::try_join!(brake(line), line.read(job::LEDGER), line.read(job::DESKLESS))?;
    let ledger = ledger.map(|value| Retained::decode(&value)).transpose().map_err(unreadable)?;
    let deskless: Option<Deskless> = deskless.map(|value| job::decode(&value)).transpose().map_err(unreadable)?;
    let mut deskless = deskless.unwrap_or_default();

    let now = Now { wall: Timestamp::now(), mono: Duration::ZERO };
    let mut state = State::default();
    state.absorb(&ledger.map(|retained| retained.ledger).unwrap_or_default(), now);
    state.absorb_entries(&deskless.entries, now);
    let answer = state.reserve(ask, &first, settings, now);
    if answer != Answer::Granted {
        return Ok(answer);
    }
    deskless.entries.retain(|_, entry| entry.at + HOUR > now.wall);
    deskless.entries.extend(state.ledger.entries.remove_entry(&ask.id));
    line.retain(job::DESKLESS, job::encode(&deskless)).await?;
    Ok(if brake(line).await?.paused { Answer::Paused } else { Answer::Granted })
}
