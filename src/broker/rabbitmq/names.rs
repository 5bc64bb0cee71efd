//! What things are called at the broker. Everything carries the deployment's namespace, so that deployments and tests
//! can share a broker.

use lapin::types::ShortString;
use uuid::Uuid;

use super::ladder::Rung;
use crate::broker::{BrokerError, Lane, Message, Topology};

/// Longest namespace in bytes. With the longest key and queue name it leaves a lease's name within AMQP's 255.
const NAMESPACE_LIMIT_BYTES: usize = 60;
/// Longest name of a queue or of a retained value in bytes; see above.
const NAME_LIMIT_BYTES: usize = 60;
const _: () = assert!(NAMESPACE_LIMIT_BYTES + NAME_LIMIT_BYTES + Message::KEY_LIMIT_BYTES + ".lease..".len() <= 255);

/// Makes names within one namespace.
#[derive(Debug, Clone)]
pub(super) struct Names {
    namespace: String,
}

impl Names {
    /// # Errors
    /// [`BrokerError::Refused`] for a namespace, or a name in the topology, that is too long or has other characters
    /// than letters, digits, dash, underscore and full stop.
    pub(super) fn new(namespace: &str, topology: &Topology) -> Result<Self, BrokerError> {
        let fits = |name: &str, limit: usize| {
            !name.is_empty()
                && name.len() <= limit
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        if !fits(namespace, NAMESPACE_LIMIT_BYTES) {
            return Err(BrokerError::Refused(format!(
                "the namespace must be 1 to {NAMESPACE_LIMIT_BYTES} letters, digits, dashes, underscores or full stops"
            )));
        }
        let queues = topology.queues.iter().map(|queue| queue.name);
        if let Some(name) = queues.chain(topology.retained.iter().copied()).find(|name| !fits(name, NAME_LIMIT_BYTES)) {
            return Err(BrokerError::Refused(format!("the queue name {name:?} is too long or has other characters")));
        }
        Ok(Self { namespace: namespace.to_owned() })
    }

    /// The exchange in front of all work queues; also where the ladder's messages come back to.
    pub(super) fn work(&self) -> ShortString {
        format!("{}.work", self.namespace).into()
    }

    /// Routing key of a lane within the work exchange.
    pub(super) fn key(&self, queue: &str, lane: Lane) -> ShortString {
        match lane {
            Lane::Normal => queue.into(),
            Lane::Urgent => format!("{queue}.urgent").into(),
        }
    }

    /// Work queue of a lane.
    pub(super) fn queue(&self, queue: &str, lane: Lane) -> ShortString {
        format!("{}.{}", self.namespace, self.key(queue, lane)).into()
    }

    /// Dead letters of a queue, both lanes.
    pub(super) fn dead(&self, queue: &str) -> ShortString {
        format!("{}.dead.{queue}", self.namespace).into()
    }

    /// Exchange and queue of a rung.
    pub(super) fn delay(&self, rung: Rung) -> ShortString {
        format!("{}.delay.{}", self.namespace, rung.name).into()
    }

    /// Stream of a retained value.
    pub(super) fn retained(&self, name: &str) -> ShortString {
        format!("{}.retained.{name}", self.namespace).into()
    }

    /// Exchange whose existence says that the stream of a retained value has its first entry.
    pub(super) fn seeded(&self, name: &str) -> ShortString {
        format!("{}.seeded.{name}", self.namespace).into()
    }

    /// Exclusive queue whose owner may hold messages of a key.
    pub(super) fn lease(&self, queue: &str, key: &str) -> ShortString {
        format!("{}.lease.{queue}.{key}", self.namespace).into()
    }

    /// Exchange and exclusive queue of one probe of the rights.
    pub(super) fn probe(&self) -> ShortString {
        format!("{}.probe.{}", self.namespace, Uuid::now_v7().simple()).into()
    }

    /// Exclusive queue whose owner may look through a queue's dead letters or seed a stream.
    pub(super) fn lock(&self, what: &str) -> ShortString {
        format!("{}.lock.{what}", self.namespace).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Queue, Spread, Style};

    static TOPOLOGY: Topology = Topology {
        queues: &[Queue { name: "host", style: Style::Durable, spread: Spread::Even }],
        retained: &["brake"],
        ask_limit: 10,
        durable_limit: 10,
    };

    #[test]
    fn names_carry_the_namespace_and_the_lane() {
        let names = Names::new("bridge", &TOPOLOGY).unwrap();
        assert_eq!(names.queue("host", Lane::Normal).as_str(), "bridge.host");
        assert_eq!(names.queue("host", Lane::Urgent).as_str(), "bridge.host.urgent");
        assert_eq!(names.dead("host").as_str(), "bridge.dead.host");
        assert_eq!(names.lease("host", "4711").as_str(), "bridge.lease.host.4711");
    }

    #[test]
    fn a_namespace_that_would_not_fit_into_a_queue_name_is_refused() {
        for namespace in ["", "a b", "a/b", &"x".repeat(61)] {
            assert!(matches!(Names::new(namespace, &TOPOLOGY), Err(BrokerError::Refused(_))), "{namespace:?}");
        }
    }
}
