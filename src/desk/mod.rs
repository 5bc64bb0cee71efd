//! The one place of a deployment that grants permits and counts isolations (`DESIGN.md` 5).
//!
//! Every worker runs [`serve`]; the queue lets one of them answer (a single active consumer). Workers use it through
//! [`Desk`], which also knows what to do when nobody answers, and through [`Budget`] for calls to Defender.

mod brake;
mod budget;
mod callers;
mod deskless;
mod handle;
mod ledger;
mod line;
pub mod operate;
mod permits;
mod protocol;
mod reports;
mod serve;
mod state;
mod teller;

use std::time::Duration;

use crate::broker::Lane;
use crate::quota;

pub use self::brake::{Brake, Cap, FIRST_SWEEP};
pub use self::budget::Budget;
pub use self::handle::{Desk, FirstSweep, Grant, Reservation, Stop, Sweep};
pub use self::ledger::{Asked, Isolation, Ledger, Limits};
pub use self::serve::serve;

/// Where questions wait. One lane for all of them: with two, two workers would be the desk.
const LANE: Lane = Lane::Urgent;

/// From asking for a reservation until the POST that isolates must have begun, by the holder's own clock. Enough to read
/// the machine's actions and the host's tags once more.
pub const GRANT_LIFETIME: Duration = Duration::from_secs(5);

/// The time limit of the POST that isolates, whatever belongs to it (a token, a permit) included. A pause waits no longer
/// than [`GRANT_LIFETIME`] and this for what was granted before it.
pub const POST_LIMIT: Duration = Duration::from_secs(10);

/// What the desk is to keep to. The caps and quotas are the same at all workers of a deployment, the others at all that
/// have Cognito's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether the worker has Cognito's settings. One that has not leaves questions about Cognito to a desk that has.
    pub cognito: bool,
    /// Requests a second to Cognito, of the whole deployment, from 1 (`BRIDGE_COGNITO_RATE`).
    pub cognito_rate: u32,
    /// Isolations in any hour, unless the operator raises it for a time.
    pub isolations_per_hour: u32,
    /// Machines isolated by the bridge at once.
    pub max_isolated: u32,
    /// Untouched block tags that a start may find without beginning paused (`DESIGN.md` 10, ruling 17).
    pub first_sweep: u32,
    /// Calls to Defender (`BRIDGE_QUOTA_*`).
    pub quota: quota::Settings,
}

/// The figures of `DESIGN.md` 3 and `cognito.md` 6.4.
impl Default for Settings {
    fn default() -> Self {
        Self {
            cognito: true,
            cognito_rate: 20,
            isolations_per_hour: 10,
            max_isolated: 100,
            first_sweep: 3,
            quota: quota::Settings::default(),
        }
    }
}
