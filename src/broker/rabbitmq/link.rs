//! One connection to the broker and the task that keeps it up.
//!
//! The AMQP library's own recovery stays off: after an orderly restart of the broker some of its connections hang for
//! good, while with recovery off every waiter learns of the loss within milliseconds (`rabbitmq.md` 3.2). So one task
//! owns one connection: it connects, prepares what must exist, hands the finished [`Session`] out, waits for the first
//! sign of trouble, withdraws it, and begins anew. Users take the current session; nobody else ever reconnects.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::address::Address;
use crate::broker::BrokerError;

/// The longest one attempt to connect to one node may take, TLS and login included. A frozen node accepts the
/// connection and never answers.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// An unfinished attempt is kept and asked again instead of being started anew, because the library's thread behind it
/// lives on; after this time it is given up, so that a node that vanished without a word is tried afresh.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(60);
/// The longest the declarations on a new connection may take. Creating a few dozen replicated queues takes seconds.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
/// First and longest pause between attempts. The longest decides how soon the service is back after the broker.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The event stream is not the only witness: the status is looked at this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// The longest an orderly goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// The longest any single exchange with the broker may take (open a channel, declare, acknowledge).
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Numbers the sessions of the process, so that a pooled channel can be told from one of an earlier session.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Prepares a new connection before anybody uses it, e.g. declares the topology.
pub(super) type Prepare = Arc<dyn for<'a> Fn(&'a Connection) -> BoxFuture<'a, Result<(), BrokerError>> + Send + Sync>;

/// A connection while it is up.
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) connection: Connection,
    /// Cancelled when the connection is lost or closed.
    pub(super) ended: CancellationToken,
    blocked: watch::Sender<Option<String>>,
}

impl Session {
    /// Why the broker takes nothing on this connection at present (memory or disk alarm). From the notice on, nothing
    /// at all is written to it, declarations included (`rabbitmq.md` 3.3).
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Opens a channel.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        limited("open a channel", self.connection.create_channel()).await
    }
}

/// What users of a link see.
#[derive(Clone)]
enum State {
    Down { reason: String, refused: bool },
    Up(Arc<Session>),
    Closed,
}

/// A connection that heals itself.
pub(super) struct Link {
    state: watch::Receiver<State>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// Starts the task. `role` distinguishes the connections of a process in logs and in the broker's list.
    pub(super) fn open(role: &'static str, name: &str, nodes: Arc<[Address]>, prepare: Prepare) -> Self {
        let (sender, state) = watch::channel(State::Down { reason: "not connected yet".to_owned(), refused: false });
        let stop = CancellationToken::new();
        let supervisor = Supervisor {
            role,
            name: format!("{name} ({role})"),
            nodes,
            prepare,
            state: sender,
            stop: stop.clone(),
            attempts: HashMap::new(),
            answered: false,
        };
        Self { state, stop, task: Mutex::new(Some(tokio::spawn(supervisor.run()))) }
    }

    /// The session, when there is one now.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        match &*self.state.borrow() {
            State::Up(session) if !session.ended.is_cancelled() => Some(session.clone()),
            _ => None,
        }
    }

    /// The session, waiting for it until `until`.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] with the reason of the last failure, or [`BrokerError::Closed`].
    pub(super) async fn wait(&self, until: Instant) -> Result<Arc<Session>, BrokerError> {
        match timeout_at(until, self.current()).await {
            Ok(session) => session,
            Err(_) => Err(BrokerError::Unavailable(match &*self.state.borrow() {
                State::Down { reason, .. } => reason.clone(),
                _ => "the link was lost just now".to_owned(),
            })),
        }
    }

    /// The session, waiting for it as long as it takes.
    ///
    /// # Errors
    /// [`BrokerError::Closed`].
    pub(super) async fn current(&self) -> Result<Arc<Session>, BrokerError> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                State::Up(session) if !session.ended.is_cancelled() => return Ok(session.clone()),
                State::Closed => return Err(BrokerError::Closed),
                _ => {}
            }
            if state.changed().await.is_err() {
                return Err(BrokerError::Closed);
            }
        }
    }

    /// The first session: like [`Link::wait`], but a refusal ends the wait, because no other attempt will fare better.
    pub(super) async fn first(&self, until: Instant) -> Result<(), BrokerError> {
        let mut state = self.state.clone();
        let decided = state.wait_for(|state| !matches!(state, State::Down { refused: false, .. }));
        match timeout_at(until, decided).await {
            Ok(Ok(state)) => match &*state {
                State::Up(_) => Ok(()),
                State::Down { reason, .. } => Err(BrokerError::Refused(reason.clone())),
                State::Closed => Err(BrokerError::Closed),
            },
            Ok(Err(_)) => Err(BrokerError::Closed),
            Err(_) => self.wait(Instant::now()).await.map(drop),
        }
    }

    /// Begins to close; does not wait.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Says goodbye to the broker and waits until that is done.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take() {
            // The task bounds each of its own steps.
            let _ = task.await;
        }
    }
}

struct Supervisor {
    role: &'static str,
    name: String,
    nodes: Arc<[Address]>,
    prepare: Prepare,
    state: watch::Sender<State>,
    stop: CancellationToken,
    /// Unfinished attempts by the node's place in the list.
    attempts: HashMap<usize, (Instant, JoinHandle<lapin::Result<Connection>>)>,
    /// Whether the last attempt found a broker there.
    answered: bool,
}

impl Supervisor {
    async fn run(mut self) {
        let stop = self.stop.clone();
        let mut pause = BACKOFF.0;
        let mut announced = false;
        for turn in (0..self.nodes.len()).cycle() {
            let (role, node) = (self.role, self.nodes[turn].clone());
            let answered = std::mem::take(&mut self.answered);
            let opened = tokio::select! {
                () = stop.cancelled() => break,
                opened = self.open(turn) => opened,
            };
            match opened {
                Ok(session) => {
                    pause = BACKOFF.0;
                    announced = false;
                    tracing::info!(link.role = role, broker.node = %node, "link to the broker is up");
                    self.state.send_replace(State::Up(session.clone()));
                    let reason = self.watch(&session).await;
                    session.ended.cancel();
                    if stop.is_cancelled() {
                        break;
                    }
                    tracing::warn!(link.role = role, broker.node = %node, error = %reason, "link to the broker was lost");
                    self.state.send_replace(State::Down { reason, refused: false });
                    // A moment, in case the broker takes connections only to end them.
                    tokio::time::sleep(jittered(BACKOFF.0)).await;
                }
                Err(error) => {
                    // Once an outage: the attempts come every two seconds.
                    if announced {
                        tracing::debug!(link.role = role, broker.node = %node, error = %error, "still no link to the broker");
                    } else {
                        tracing::warn!(link.role = role, broker.node = %node, error = %error, "no link to the broker, trying on");
                        announced = true;
                    }
                    let refused = matches!(error, BrokerError::Refused(_));
                    let reason = match error {
                        BrokerError::Refused(reason) | BrokerError::Unavailable(reason) => reason,
                        other => other.to_string(),
                    };
                    self.state.send_replace(State::Down { reason, refused });
                    if self.answered && !answered {
                        // It is back. Its queues, which it takes up after it has opened its port, soon will be too.
                        pause = BACKOFF.0;
                    }
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(jittered(pause)) => {}
                    }
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
        self.state.send_replace(State::Closed);
    }

    /// Connects to one node and prepares the connection.
    async fn open(&mut self, turn: usize) -> Result<Arc<Session>, BrokerError> {
        let (begun, mut attempt) = self.attempts.remove(&turn).unwrap_or_else(|| {
            let properties = ConnectionProperties::default().with_connection_name(self.name.clone().into());
            (Instant::now(), tokio::spawn(Connection::connect_uri(self.nodes[turn].uri(), properties)))
        });
        let connection = match timeout(CONNECT_LIMIT, &mut attempt).await {
            Ok(Ok(Ok(connection))) => connection,
            Ok(Ok(Err(error))) => return Err(failure("connect", &error)),
            Ok(Err(_)) => return Err(BrokerError::Unavailable("the attempt to connect was aborted".to_owned())),
            Err(_) => {
                if begun.elapsed() < ATTEMPT_LIMIT {
                    self.attempts.insert(turn, (begun, attempt));
                } else {
                    attempt.abort();
                }
                return Err(BrokerError::Unavailable("no answer to the attempt to connect".to_owned()));
            }
        };
        self.answered = true;
        let session = Arc::new(Session {
            number: SESSIONS.fetch_add(1, Ordering::Relaxed),
            connection,
            ended: CancellationToken::new(),
            blocked: watch::Sender::new(None),
        });
        match timeout(PREPARE_LIMIT, (self.prepare)(&session.connection)).await {
            Ok(Ok(())) => Ok(session),
            Ok(Err(error)) => {
                let _ = timeout(CLOSE_LIMIT, session.connection.close(200, "not usable".into())).await;
                Err(error)
            }
            Err(_) => Err(BrokerError::Unavailable("the declarations took too long".to_owned())),
        }
    }

    /// Until the session is lost or the link is closed. Returns the reason.
    async fn watch(&self, session: &Session) -> String {
        // One listener only: the library hands each event to one of them.
        let mut events = session.connection.events_listener();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    // A channel closed by the broker is reported here too; that is its users' business.
                    Some(Event::Error(error))
                        if error.is_amqp_soft_error() && session.connection.status().connected() => {}
                    Some(Event::Error(error)) => return error.to_string(),
                    None => return "the connection ended".to_owned(),
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(link.role = self.role, broker.reason = %reason, "the broker blocks publishers");
                        session.blocked.send_replace(Some(reason));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(link.role = self.role, "the broker takes messages again");
                        session.blocked.send_replace(None);
                    }
                    Some(_) => {}
                },
                () = tokio::time::sleep(STATUS_INTERVAL) => {
                    if !session.connection.status().connected() {
                        return "the connection is not up any more".to_owned();
                    }
                }
                () = self.stop.cancelled() => {
                    // First, so that nobody takes the goodbye for trouble.
                    session.ended.cancel();
                    let _ = timeout(CLOSE_LIMIT, session.connection.close(200, "goodbye".into())).await;
                    return "closed".to_owned();
                }
            }
        }
    }
}

/// Between half and all of `pause`, so that the processes of a deployment do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 512;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 512
}

/// Runs one exchange with the broker within [`CALL_LIMIT`].
///
/// # Errors
/// [`BrokerError::Unavailable`] or [`BrokerError::Refused`], naming `what`.
pub(super) async fn limited<T>(what: &str, call: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    match timeout(CALL_LIMIT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failure(what, &error)),
        Err(_) => Err(BrokerError::Unavailable(format!("could not {what}: no answer in time"))),
    }
}

/// Tells what waiting may cure from what it will not.
pub(super) fn failure(what: &str, error: &lapin::Error) -> BrokerError {
    let text = format!("could not {what}: {error}");
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED | AMQPSoftError::PRECONDITIONFAILED)
            | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => BrokerError::Refused(text),
            _ => BrokerError::Unavailable(text),
        },
        _ => BrokerError::Unavailable(text),
    }
}

/// Whether the broker said that somebody else owns the exclusive queue.
pub(super) fn is_locked(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::RESOURCELOCKED)
}

/// Whether the broker said that there is no such thing.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::NOTFOUND)
}

fn is_soft(error: &lapin::Error, expected: &AMQPSoftError) -> bool {
    let ErrorKind::ProtocolError(protocol) = error.kind() else { return false };
    matches!(protocol.kind(), AMQPErrorKind::Soft(soft) if soft == expected)
}
