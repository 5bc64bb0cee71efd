//! Alerts of files, asked once for each SHA-1 of a request: the observables of one request often name one file by several
//! of its hashes, and each of them leads to the same route (`relay.md` 5.2).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::defender::{Alerts, DefenderError, Session};

type Answer = Arc<OnceCell<Result<Alerts, DefenderError>>>;

/// What is known, or being asked, by SHA-1 in lower case. A failure is kept too: the call was repeated as often as it may.
/// Not so that there was no permit: somebody may have more patience.
#[derive(Debug, Default)]
pub(super) struct FileAlerts(Mutex<HashMap<String, Answer>>);

impl FileAlerts {
    /// The alerts of the file, read until there are more than `want`.
    pub(super) async fn of(&self, session: &Session, sha1: &str, want: usize) -> Result<Alerts, DefenderError> {
        let key = sha1.to_ascii_lowercase();
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = Arc::clone(known().entry(key.clone()).or_default());
        let found = answer.get_or_init(|| session.file_alerts(sha1, want)).await.clone();
        if found.as_ref().is_err_and(DefenderError::is_not_permitted) {
            known().remove(&key);
        }
        found
    }
}
