//! Requests and their replies: direct reply-to, on one channel of the publishing connection.
//!
//! Direct reply-to wants requests and replies on the same channel, and its consumer before the first request
//! (`rabbitmq.md` 7). Many requests are in flight on that channel, so a returned message is matched by its own
//! correlation id, never by the confirm it came with (`rabbitmq.md` 3.4).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::link::{Link, Session, failure, limited};
use super::publisher::unblocked;
use crate::broker::{BrokerError, LINK_PATIENCE, PUBLISH_LIMIT};

/// The pseudo-queue of direct reply-to.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// Pause after a channel could not be opened on a link that is up.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// Asks and matches replies.
pub(super) struct Asks {
    line: watch::Receiver<Option<Arc<Line>>>,
    pending: Arc<Pending>,
}

/// The channel, while it is open.
struct Line {
    session: Arc<Session>,
    channel: Channel,
    /// Cancelled when the channel is gone: no reply to what was sent on it can come any more.
    lost: CancellationToken,
}

fn is_open(line: &Option<Arc<Line>>) -> bool {
    line.as_ref().is_some_and(|line| !line.lost.is_cancelled())
}

/// Calls by correlation id.
#[derive(Default)]
struct Pending(Mutex<HashMap<String, oneshot::Sender<Outcome>>>);

enum Outcome {
    Reply(Bytes),
    Failed(BrokerError),
    /// The channel failed under the request.
    Lost,
}

impl Pending {
    fn add(self: &Arc<Self>) -> Call {
        let id = Uuid::now_v7().to_string();
        let (sender, outcome) = oneshot::channel();
        self.0.lock().expect("nobody panics while holding it").insert(id.clone(), sender);
        Call { id, outcome, pending: self.clone() }
    }

    fn end(&self, id: &str, outcome: Outcome) {
        let waiting = self.0.lock().expect("nobody panics while holding it").remove(id);
        // Nobody there: the reply is late, or its caller has gone.
        if let Some(waiting) = waiting {
            let _ = waiting.send(outcome);
        }
    }

    /// A message that no queue wanted; its own correlation id says whose it is.
    fn returned(&self, message: &BasicReturnMessage) {
        if let Some(id) = message.delivery.properties.correlation_id() {
            let error = BrokerError::Unroutable(message.reply_text.to_string());
            self.end(id.as_str(), Outcome::Failed(error));
        }
    }
}

/// One call; its entry goes with it, however it ends.
struct Call {
    id: String,
    outcome: oneshot::Receiver<Outcome>,
    pending: Arc<Pending>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.pending.0.lock().expect("nobody panics while holding it").remove(&self.id);
    }
}

/// What to ask.
pub(super) struct Request {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) body: Bytes,
    /// May be sent again when the link broke under it.
    pub(super) repeatable: bool,
    pub(super) until: Instant,
}

impl Asks {
    /// Starts the task that keeps a channel open on `link`. It ends with the link.
    pub(super) fn open(link: Arc<Link>) -> Self {
        let (sender, line) = watch::channel(None);
        let pending = Arc::<Pending>::default();
        tokio::spawn(keep(link, sender, pending.clone()));
        Self { line, pending }
    }

    /// Asks and waits. `properties` makes the properties at the time of sending, because the time left is among them.
    ///
    /// # Errors
    /// As [`crate::broker::Broker::ask`].
    pub(super) async fn ask(
        &self,
        link: &Link,
        request: &Request,
        properties: impl Fn() -> BasicProperties,
    ) -> Result<Bytes, BrokerError> {
        let until = request.until;
        let line = self.line(link, until.min(Instant::now() + LINK_PATIENCE), until).await?;
        match self.attempt(&line, request, &properties).await? {
            Some(reply) => return Ok(reply),
            None if !request.repeatable => {
                return Err(BrokerError::Unknown("the link was lost while the reply was awaited".to_owned()));
            }
            None => {}
        }
        let line = self.line(link, until, until).await?;
        let reply = self.attempt(&line, request, &properties).await?;
        reply.ok_or_else(|| BrokerError::Unknown("the link was lost twice while the reply was awaited".to_owned()))
    }

    /// An open channel, waiting for it until `patience`.
    async fn line(&self, link: &Link, patience: Instant, until: Instant) -> Result<Arc<Line>, BrokerError> {
        let mut lines = self.line.clone();
        let open = async { lines.wait_for(is_open).await.map(|line| line.clone()) };
        let waited = timeout_at(patience, open).await;
        match waited {
            Ok(Ok(line)) => line.ok_or(BrokerError::Closed),
            Ok(Err(_)) => Err(BrokerError::Closed),
            Err(_) if Instant::now() >= until => Err(BrokerError::Timeout),
            // The link knows why, and whether it was closed.
            Err(_) => match link.wait(Instant::now()).await {
                Err(error) => Err(error),
                Ok(_) => Err(BrokerError::Unavailable("no channel for requests".to_owned())),
            },
        }
    }

    /// Sends once. `None` when the channel was lost before an answer came.
    async fn attempt(
        &self,
        line: &Arc<Line>,
        request: &Request,
        properties: &impl Fn() -> BasicProperties,
    ) -> Result<Option<Bytes>, BrokerError> {
        unblocked(&line.session)?;
        let mut call = self.pending.add();
        let properties = properties().with_reply_to(REPLY_TO.into()).with_correlation_id(call.id.as_str().into());
        let (confirm, mut confirmed) = oneshot::channel();
        // In a task of its own: a confirm that is dropped unresolved is kept by the library for good, and this future
        // may be dropped at any time.
        tokio::spawn(send(SendOff {
            line: line.clone(),
            exchange: request.exchange.clone(),
            routing_key: request.routing_key.clone(),
            body: request.body.clone(),
            properties,
            id: call.id.clone(),
            pending: self.pending.clone(),
            confirm,
        }));
        let confirm_by = Instant::now() + PUBLISH_LIMIT;
        let mut stored = false;
        loop {
            tokio::select! {
                biased;
                outcome = &mut call.outcome => return match outcome {
                    Ok(Outcome::Reply(reply)) => Ok(Some(reply)),
                    Ok(Outcome::Failed(error)) => Err(error),
                    Ok(Outcome::Lost) | Err(_) => Ok(None),
                },
                () = line.lost.cancelled() => return Ok(None),
                () = sleep_until(request.until) => return Err(BrokerError::Timeout),
                // Dropped without a word only when the outcome says it all.
                answer = &mut confirmed, if !stored => stored = answer.is_ok(),
                () = sleep_until(confirm_by), if !stored => {
                    unblocked(&line.session).map_err(|error| BrokerError::Unknown(error.to_string()))?;
                    return Err(BrokerError::Unknown("the request was not confirmed in time".to_owned()));
                }
            }
        }
    }
}

struct SendOff {
    line: Arc<Line>,
    exchange: ShortString,
    routing_key: ShortString,
    body: Bytes,
    properties: BasicProperties,
    id: String,
    pending: Arc<Pending>,
    confirm: oneshot::Sender<()>,
}

async fn send(what: SendOff) {
    let SendOff { line, exchange, routing_key, body, properties, id, pending, confirm } = what;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirmation =
        async { line.channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await };
    let confirmation = tokio::select! {
        confirmation = confirmation => confirmation,
        () = line.lost.cancelled() => return,
    };
    match confirmation {
        // Proof of nothing but that the broker has dealt with it; if it is unroutable its return says so.
        Ok(Confirmation::Ack(returned)) => {
            if let Some(message) = returned {
                pending.returned(&message);
            }
            let _ = confirm.send(());
        }
        Ok(Confirmation::Nack(returned)) => {
            if let Some(message) = returned {
                pending.returned(&message);
            }
            pending.end(&id, Outcome::Failed(BrokerError::Full));
        }
        Ok(Confirmation::NotRequested) | Err(_) => pending.end(&id, Outcome::Lost),
    }
}

/// Keeps a channel open on every session of the link.
async fn keep(link: Arc<Link>, lines: watch::Sender<Option<Arc<Line>>>, pending: Arc<Pending>) {
    while let Ok(session) = link.current().await {
        match open(&session).await {
            Ok((channel, replies)) => {
                let line = Arc::new(Line { session: session.clone(), channel, lost: CancellationToken::new() });
                lines.send_replace(Some(line.clone()));
                let error = listen(&session, replies, &pending).await;
                lines.send_replace(None);
                line.lost.cancel();
                tracing::debug!(error, "the channel for requests has ended");
            }
            Err(error) => {
                tracing::warn!(error = %error, "no channel for requests, trying on");
                tokio::select! {
                    () = session.ended.cancelled() => {}
                    () = tokio::time::sleep(REOPEN_PAUSE) => {}
                }
            }
        }
    }
}

async fn open(session: &Session) -> Result<(Channel, Consumer), BrokerError> {
    let channel = session.channel().await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consume = channel.basic_consume(REPLY_TO.into(), ShortString::default(), options, FieldTable::default());
    let replies = limited("listen for replies", consume).await?;
    limited("turn on confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok((channel, replies))
}

async fn listen(session: &Session, mut replies: Consumer, pending: &Pending) -> String {
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply,
            () = session.ended.cancelled() => return "the link was lost".to_owned(),
        };
        match reply {
            Some(Ok(delivery)) => {
                if let Some(id) = delivery.properties.correlation_id() {
                    pending.end(id.as_str(), Outcome::Reply(Bytes::from(delivery.data)));
                }
            }
            Some(Err(error)) => return failure("listen for replies", &error).to_string(),
            None => return "the broker ended the replies".to_owned(),
        }
    }
}
