//! The callers' side of the thread that owns the connection: operations go over, outcomes come back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use super::receiving::Held;
use super::writer::Work;
use crate::broker::message::BrokerError;

/// Runs inside a transaction. Returning an error of SQLite rolls it back.
pub(super) trait Operation: Send {
    /// Whether the outcome must be on disk when it is told.
    fn is_durable(&self) -> bool;
    /// Does it; may be called again after a rollback.
    fn run(&mut self, work: &mut Work<'_>) -> rusqlite::Result<()>;
    /// Tells the outcome: `None` after a commit.
    fn finish(self: Box<Self>, failure: Option<BrokerError>);
    /// What stays in hands if the operation fails, although its holder has let go.
    fn hold(&self) -> Option<Held>;
}

/// What the thread is asked to do.
pub(super) enum Command {
    Run(Box<dyn Operation>),
    /// Ends the thread after what came before.
    Close(oneshot::Sender<()>),
}

/// The callers' side of the thread.
#[derive(Clone)]
pub(super) struct Link {
    commands: mpsc::Sender<Command>,
    closed: Arc<AtomicBool>,
}

impl Link {
    pub(super) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands, closed: Arc::default() }
    }

    /// Why the thread does not answer.
    fn gone(&self) -> BrokerError {
        if self.closed.load(Ordering::Acquire) {
            BrokerError::Closed
        } else {
            BrokerError::Storage("its thread has ended".to_owned())
        }
    }

    /// Sends an operation at once, not at the first poll, and waits for its outcome for `limit` at most.
    pub(super) fn call<T, F>(
        &self,
        durable: bool,
        held: Option<Held>,
        limit: Duration,
        work: F,
    ) -> impl Future<Output = Result<T, BrokerError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnMut(&mut Work<'_>) -> rusqlite::Result<Result<T, BrokerError>> + Send + 'static,
    {
        let (sender, outcome) = oneshot::channel();
        let link = self.clone();
        let sent = if link.closed.load(Ordering::Acquire) {
            false
        } else {
            let call = Call { durable, held, work, result: None, sender };
            link.commands.send(Command::Run(Box::new(call))).is_ok()
        };
        async move {
            if !sent {
                return Err(link.gone());
            }
            match tokio::time::timeout(limit, outcome).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(link.gone()),
                Err(_) => Err(BrokerError::Unknown("the queue's file did not answer in time".to_owned())),
            }
        }
    }

    /// Ends the thread after all that was sent before.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let (sender, ended) = oneshot::channel();
        if self.commands.send(Command::Close(sender)).is_ok() {
            let _ = ended.await;
        }
    }
}

struct Call<T, F> {
    durable: bool,
    held: Option<Held>,
    work: F,
    result: Option<Result<T, BrokerError>>,
    sender: oneshot::Sender<Result<T, BrokerError>>,
}

impl<T, F> Operation for Call<T, F>
where
    T: Send,
    F: FnMut(&mut Work<'_>) -> rusqlite::Result<Result<T, BrokerError>> + Send,
{
    fn is_durable(&self) -> bool {
        self.durable
    }

    fn run(&mut self, work: &mut Work<'_>) -> rusqlite::Result<()> {
        self.result = Some((self.work)(work)?);
        Ok(())
    }

    fn finish(self: Box<Self>, failure: Option<BrokerError>) {
        let outcome = match (failure, self.result) {
            (Some(failure), _) => Err(failure),
            (None, Some(result)) => result,
            (None, None) => Err(BrokerError::Storage("the operation did not run".to_owned())),
        };
        let _ = self.sender.send(outcome);
    }

    fn hold(&self) -> Option<Held> {
        self.held
    }
}
