//! Whether this user may do at the broker what the roles do, tried on things that nobody else sees and that are gone a
//! moment later. Nothing that the deployment declares is touched, so that it may run, or not exist yet.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Confirmation, Connection, ExchangeKind};
use tokio::time::Instant;

use super::address::Address;
use super::link::{self, Link, limited};
use super::names::Names;
use super::{RabbitMq, Settings};
use crate::broker::BrokerError;

/// Where replies come to; RabbitMQ has rights for its name as for any other.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

impl RabbitMq {
    /// Connects, and tries in the namespace what roles do there: declaring, binding, publishing, receiving, and listening
    /// for replies. Leaves nothing behind.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] when something is refused, in the broker's words; [`BrokerError::Unavailable`] when no
    /// node could be reached within `limit`.
    pub async fn probe(settings: Settings, limit: Duration) -> Result<(), BrokerError> {
        let Settings { urls, namespace, connection_name, topology } = settings;
        let names = Names::new(&namespace, topology)?;
        let nodes =
            urls.iter().zip(1..).map(|(url, n)| Address::parse(url, n)).collect::<Result<Arc<[Address]>, _>>()?;
        let prepare: link::Prepare = Arc::new(move |connection| {
            let name = names.probe();
            Box::pin(async move { try_rights(connection, name).await })
        });
        let link = Link::open("probing", &connection_name, nodes, prepare);
        let probed = link.first(Instant::now() + limit).await;
        link.close().await;
        probed
    }
}

async fn try_rights(connection: &Connection, name: ShortString) -> Result<(), BrokerError> {
    let channel = limited("open a channel", connection.create_channel()).await?;
    let listen = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let listening = channel.basic_consume(REPLY_TO.into(), ShortString::default(), listen, FieldTable::default());
    limited("listen for replies", listening).await?;
    // Both are gone with the connection, should it end in between.
    let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    let exchange = channel.exchange_declare(name.clone(), ExchangeKind::Direct, options, FieldTable::default());
    limited("declare an exchange", exchange).await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    limited("declare a queue", channel.queue_declare(name.clone(), options, FieldTable::default())).await?;
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(name.clone(), name.clone(), name.clone(), options, FieldTable::default());
    limited("bind a queue", bound).await?;
    limited("turn on confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirmed = async {
        let publish = channel.basic_publish(name.clone(), name.clone(), options, b"probe", BasicProperties::default());
        publish.await?.await
    };
    let Confirmation::Ack(None) = limited("publish", confirmed).await? else {
        return Err(BrokerError::Unavailable("a message was not taken".to_owned()));
    };
    let got = limited("receive", channel.basic_get(name.clone(), BasicGetOptions { no_ack: true })).await?;
    if got.is_none() {
        return Err(BrokerError::Unavailable("a message that was taken did not come back".to_owned()));
    }
    limited("delete a queue", channel.queue_delete(name.clone(), QueueDeleteOptions::default())).await?;
    limited("delete an exchange", channel.exchange_delete(name, ExchangeDeleteOptions::default())).await?;
    Ok(())
}
