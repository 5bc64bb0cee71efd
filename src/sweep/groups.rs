//! Whether the protected groups exist (`cognito.md` 6.3): a slip of the pen must not switch the protection off.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::cognito::{Class, Cognito, CognitoError, Priority};
use crate::shutdown::Shutdown;

/// How long the start waits for the brain before workers begin without an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two questions to a brain that cannot be reached.
const PAUSE: Duration = Duration::from_secs(10);

/// Between two questions whose answer somebody has to change: a group is missing, or a right.
const LONG_PAUSE: Duration = Duration::from_secs(300);

/// A protected group does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Cognito has no group {}: no host would be protected by it; mend BRIDGE_GUARD_PROTECTED_GROUPS, or set \
     BRIDGE_GUARD_ALLOW_MISSING_GROUPS=true",
    quoted(.0)
)]
pub struct Missing(pub Vec<String>);

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", no group ")
}

/// Tells the guard whether the groups are known to exist. Until then nothing may be isolated. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Groups(watch::Receiver<bool>);

impl Groups {
    /// Whether isolations may go on.
    #[must_use]
    pub fn are_known(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until they may.
    pub async fn known(&mut self) {
        if self.0.wait_for(|known| *known).await.is_err() {
            // The process is stopping: nobody asks any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Asks Cognito for the groups `required`, none of which may be missing. A brain that does not answer is asked again until
/// `shutdown` begins, while this returns.
///
/// # Errors
/// When one of them does not exist. Found out later it is an error in the log, and nothing is isolated until it exists.
pub async fn check(cognito: Cognito, required: Vec<String>, shutdown: Shutdown) -> Result<Groups, Missing> {
    let known = watch::Sender::new(false);
    let groups = Groups(known.subscribe());
    match missing(&cognito, &required).await {
        Ok(missing) if missing.is_empty() => {
            known.send_replace(true);
            return Ok(groups);
        }
        Ok(missing) => return Err(Missing(missing)),
        Err(error) => {
            tracing::warn!(%error, "the protected groups cannot be checked yet; nothing is isolated until then")
        }
    }
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.begun() => {}
            () = check_again(&cognito, &required) => {
                tracing::info!("the protected groups exist; isolations may go on");
                known.send_replace(true);
            }
        }
    });
    Ok(groups)
}

/// Ends when all of them exist.
async fn check_again(cognito: &Cognito, required: &[String]) {
    let mut pause = PAUSE;
    loop {
        sleep(pause).await;
        pause = match missing(cognito, required).await {
            Ok(missing) if missing.is_empty() => return,
            Ok(missing) => {
                tracing::error!(error = %Missing(missing), "nothing is isolated");
                LONG_PAUSE
            }
            Err(error) if error.class() == Class::Configuration => {
                tracing::error!(%error, "the protected groups cannot be checked; nothing is isolated");
                LONG_PAUSE
            }
            Err(error) => {
                tracing::warn!(%error, "the protected groups cannot be checked yet; nothing is isolated");
                PAUSE
            }
        };
    }
}

/// Those of `required` that do not exist.
async fn missing(cognito: &Cognito, required: &[String]) -> Result<Vec<String>, CognitoError> {
    let session = cognito.session(Priority::Normal, Instant::now() + PATIENCE);
    let mut missing = Vec::new();
    for name in required {
        if session.groups_named(name).await?.is_empty() {
            missing.push(name.clone());
        }
    }
    Ok(missing)
}
