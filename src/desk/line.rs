//! The way to the broker, without its type: what a [`super::Desk`] needs of it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::timeout;

use super::LANE;
use super::protocol::{Reply, Request};
use crate::broker::{Broker, BrokerError, Message};
use crate::job;

/// The seam's own trait takes no part in trait objects, and a handle with a type parameter would give one to everything
/// that holds it.
trait Seam: Send + Sync + 'static {
    fn ask(&self, body: Bytes, deadline: Timestamp) -> BoxFuture<'_, Result<Bytes, BrokerError>>;
    fn read(&self, name: &'static str) -> BoxFuture<'_, Result<Option<Bytes>, BrokerError>>;
    fn retain(&self, name: &'static str, value: Bytes) -> BoxFuture<'_, Result<(), BrokerError>>;
}

struct Over<B>(B);

impl<B: Broker> Seam for Over<B> {
    fn ask(&self, body: Bytes, deadline: Timestamp) -> BoxFuture<'_, Result<Bytes, BrokerError>> {
        Box::pin(async move {
            let message = Message { lane: LANE, ..Message::new(body) };
            self.0.ask(&job::DESK, message, deadline).await
        })
    }

    fn read(&self, name: &'static str) -> BoxFuture<'_, Result<Option<Bytes>, BrokerError>> {
        Box::pin(async move { Ok(self.0.watch(name).await?.borrow().clone()) })
    }

    fn retain(&self, name: &'static str, value: Bytes) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.0.retain(name, value))
    }
}

/// See the module's documentation.
pub(super) struct Line(Box<dyn Seam>);

impl Line {
    pub(super) fn new<B: Broker>(broker: B) -> Self {
        Self(Box::new(Over(broker)))
    }

    /// Asks the desk, for `limit` at most, whatever the calendar does meanwhile.
    ///
    /// # Errors
    /// There was no word, or none that this build understands; [`BrokerError::Unavailable`] when the desk says that it
    /// cannot answer now.
    pub(super) async fn ask(&self, request: &Request, limit: Duration) -> Result<Reply, BrokerError> {
        match self.hear(request, limit).await? {
            Reply::Unavailable => Err(BrokerError::Unavailable("the desk cannot answer now".to_owned())),
            reply => Ok(reply),
        }
    }

    /// As [`Line::ask`], but [`Reply::Unavailable`] is an answer.
    pub(super) async fn hear(&self, request: &Request, limit: Duration) -> Result<Reply, BrokerError> {
        let asked = self.0.ask(job::encode(request), Timestamp::now() + limit);
        let reply = timeout(limit, asked).await.unwrap_or(Err(BrokerError::Timeout))?;
        let unreadable = |error| BrokerError::Unavailable(format!("the desk's answer cannot be read: {error}"));
        job::decode(&reply).map_err(unreadable)
    }

    /// The retained value as it is now; not what was last seen of it.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub(super) async fn read(&self, name: &'static str) -> Result<Option<Bytes>, BrokerError> {
        self.0.read(name).await
    }

    /// # Errors
    /// As [`Broker::retain`].
    pub(super) async fn retain(&self, name: &'static str, value: Bytes) -> Result<(), BrokerError> {
        self.0.retain(name, value).await
    }
}
