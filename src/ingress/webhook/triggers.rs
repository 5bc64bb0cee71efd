//! Which tags the workers act on, as they retained it: from it the lane of an event follows. Workers may come later than
//! events, and the broker may be away for a while; until the value is known every event about tags is urgent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::broker::{Broker, BrokerError};
use crate::job::{self, Triggers};
use crate::shutdown::Shutdown;

/// Between two tries to follow the value.
const PAUSE: Duration = Duration::from_secs(1);

/// What is known at present.
pub(super) type Known = watch::Receiver<Option<Arc<Triggers>>>;

/// Follows the retained value in the background until the process stops.
pub(super) fn follow<B: Broker>(broker: B, shutdown: Shutdown) -> Known {
    let (sender, known) = watch::channel(None);
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.begun() => {}
            () = keep(&broker, &sender) => {}
        }
    });
    known
}

async fn keep<B: Broker>(broker: &B, known: &watch::Sender<Option<Arc<Triggers>>>) {
    loop {
        match broker.watch(job::TRIGGERS).await {
            Ok(mut values) => loop {
                let value = values.borrow_and_update().clone();
                known.send_replace(value.and_then(|value| read(&value)));
                if values.changed().await.is_err() {
                    break;
                }
            },
            Err(BrokerError::Closed) => return,
            Err(error) => tracing::debug!(error = %error, "the workers' tags are not known yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn read(value: &[u8]) -> Option<Arc<Triggers>> {
    match serde_json::from_slice(value) {
        Ok(triggers) => Some(Arc::new(triggers)),
        Err(error) => {
            tracing::warn!(error = %error, "the workers' tags cannot be read: every event about tags counts as urgent");
            None
        }
    }
}
