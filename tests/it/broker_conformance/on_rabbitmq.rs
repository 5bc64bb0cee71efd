//! The suite on RabbitMQ, at the broker of `TEST_RABBITMQ_URL`. Each case has a namespace of its own there.

use std::sync::Mutex;
use std::time::Duration;

use defender_bridge::broker::rabbitmq::{RabbitMq, Settings};
use defender_bridge::broker::{Broker, Lane, Queue, Settlement, Topology};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use url::Url;

use super::{Died, PATIENCE, World, conformance};
use crate::namespaces::{rabbitmq_settings, rabbitmq_url};

conformance!(OnRabbitMq(ignore = "needs RabbitMQ"));

/// A namespace at the test broker.
pub(crate) struct OnRabbitMq {
    pub(crate) namespace: String,
    topology: &'static Topology,
    broker: RabbitMq,
    /// All links beside [`OnRabbitMq::broker`], to close them.
    links: Mutex<Vec<RabbitMq>>,
}

impl OnRabbitMq {
    pub(crate) async fn connect(namespace: &str, topology: &'static Topology, url: String) -> RabbitMq {
        let settings = Settings {
            urls: vec![url],
            namespace: namespace.to_owned(),
            connection_name: "conformance".to_owned(),
            topology,
        };
        RabbitMq::connect(settings).await.expect("connected")
    }
}

impl World for OnRabbitMq {
    type B = RabbitMq;

    async fn open(topology: &'static Topology) -> Self {
        let settings = rabbitmq_settings("conformance", topology);
        let namespace = settings.namespace.clone();
        let broker = RabbitMq::connect(settings).await.expect("connected");
        Self { namespace, topology, broker, links: Mutex::default() }
    }

    fn broker(&self) -> RabbitMq {
        self.broker.clone()
    }

    async fn beside(&self) -> RabbitMq {
        let link = Self::connect(&self.namespace, self.topology, rabbitmq_url()).await;
        self.links.lock().expect("no panic").push(link.clone());
        link
    }

    async fn receiving(&self, count: usize) -> Vec<RabbitMq> {
        let mut links = Vec::with_capacity(count);
        for _ in 0..count {
            links.push(self.beside().await);
        }
        links
    }

    async fn dying_worker(&self, queue: &'static Queue, lane: Lane, done: usize, held: usize) -> Died {
        let wire = Wire::lay(&rabbitmq_url()).await;
        let victim = Self::connect(&self.namespace, self.topology, wire.url.clone()).await;
        let prefetch = u16::try_from(held.max(1)).expect("a small number");
        let mut receiver = victim.receive(queue, lane, prefetch).await.expect("receiving");
        let mut died = Died { done: Vec::new(), held: Vec::new() };
        for _ in 0..done {
            let delivery = super::next(&mut receiver).await;
            died.done.push(delivery.message.id);
            delivery.settle(Settlement::Done { reply: None }).await.expect("settled");
        }
        let mut hands = Vec::new();
        for _ in 0..held {
            let delivery = super::next(&mut receiver).await;
            died.held.push(delivery.message.id);
            hands.push(delivery);
        }
        wire.cut().await;
        // The process is gone for the broker; now its memory may go too.
        drop((hands, receiver));
        let _ = tokio::time::timeout(PATIENCE, victim.close()).await;
        died
    }

    async fn close(self) {
        let links = std::mem::take(&mut *self.links.lock().expect("no panic"));
        for link in links {
            link.close().await;
        }
        self.broker.close().await;
    }
}

/// A relay of bytes on the loopback between a link and the broker, which can be cut like the cable of a dead machine:
/// nothing is said in parting, and nobody connects through it again.
pub(crate) struct Wire {
    pub(crate) url: String,
    relay: JoinHandle<()>,
}

impl Wire {
    pub(crate) async fn lay(url: &str) -> Self {
        let mut url = Url::parse(url).expect("an amqp URL");
        let target = (url.host_str().expect("a host").to_owned(), url.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        url.set_host(Some("127.0.0.1")).expect("an address");
        url.set_port(Some(port)).expect("a port");
        let relay = tokio::spawn(async move {
            // Dropped with the task, and every connection with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let target = target.clone();
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { url: url.to_string(), relay }
    }

    pub(crate) async fn cut(self) {
        self.relay.abort();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.relay).await;
    }
}
