//! The URL of one node. It holds a password, so neither the URL nor the parser's complaints about it are ever shown.

use std::fmt;

use lapin::uri::AMQPUri;

use crate::broker::BrokerError;

/// Seconds between heartbeats when the URL does not say: a frozen broker is noticed after about twice that
/// (`rabbitmq.md` 1, rule 10).
const HEARTBEAT_SECONDS: u16 = 10;

/// Largest frame in bytes when the URL does not say. The AMQP library keeps buffers of 64 frames for each connection and
/// touches them all: with the broker's 128 KiB that is 8 MiB a connection, with this a quarter of it. Most bodies still
/// fit into one frame; larger ones take several. Far above the 8 KiB that RabbitMQ demands since 4.1 (`rabbitmq.md` 10).
const FRAME_BYTES: u32 = 32 * 1024;

/// One node of the cluster.
#[derive(Clone)]
pub(super) struct Address(AMQPUri);

impl Address {
    /// Reads `amqp://` or `amqps://`, keeps virtual host and query, and adds heartbeat and frame size when absent.
    ///
    /// # Errors
    /// [`BrokerError::Refused`], which names the position in the list and never the text.
    pub(super) fn parse(url: &str, position: usize) -> Result<Self, BrokerError> {
        let refused = |why: &str| BrokerError::Refused(format!("broker URL {position} {why}"));
        let parsed = url::Url::parse(url.trim()).map_err(|_| refused("is not a URL"))?;
        if !matches!(parsed.scheme(), "amqp" | "amqps") {
            return Err(refused("does not begin with amqp:// or amqps://"));
        }
        let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(|| refused("names no host"))?;
        let mut uri: AMQPUri = url.trim().parse().map_err(|_| refused("has a part that cannot be read"))?;
        // The AMQP parser takes a literal IPv6 address for no host at all and would connect to localhost.
        if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            uri.authority.host = address.to_owned();
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query.frame_max.get_or_insert(FRAME_BYTES);
        Ok(Self(uri))
    }

    /// For the AMQP library.
    pub(super) fn uri(&self) -> AMQPUri {
        self.0.clone()
    }
}

/// Host, port and virtual host, without user and password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.0;
        write!(f, "{scheme}://{}:{}/{vhost}", authority.host, authority.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_virtual_host_and_query_and_gains_heartbeat_and_frame_size() {
        let table = [
            ("amqp://u:p@h", "h", 5672, "/", 10),
            ("amqp://u:p@h:1234/%2f", "h", 1234, "/", 10),
            ("amqps://u:p@broker.example/a%20b?heartbeat=3", "broker.example", 5671, "a b", 3),
            ("amqp://u:p@127.0.0.1/v?frame_max=65536", "127.0.0.1", 5672, "v", 10),
            ("amqp://u:p@[::1]:5673/v", "::1", 5673, "v", 10),
        ];
        for (url, host, port, vhost, heartbeat) in table {
            let uri = Address::parse(url, 1).unwrap().uri();
            assert_eq!((uri.authority.host.as_str(), uri.authority.port), (host, port), "{url}");
            assert_eq!((uri.vhost.as_str(), uri.query.heartbeat), (vhost, Some(heartbeat)), "{url}");
        }
        let kept = Address::parse("amqp://u:p@h/v?frame_max=65536&channel_max=100", 1).unwrap().uri().query;
        assert_eq!((kept.frame_max, kept.channel_max), (Some(65536), Some(100)));
        assert_eq!(Address::parse("amqp://u:p@h", 1).unwrap().uri().query.frame_max, Some(FRAME_BYTES));
    }

    #[test]
    fn a_password_is_shown_neither_by_an_address_nor_by_the_error_about_one() {
        let address = Address::parse("amqp://user:hunter2@h/v", 1).unwrap();
        assert_eq!(format!("{address} {address:?}"), "amqp://h:5672/v amqp://h:5672/v");
        let wrong = [
            "hunter2",
            "http://u:hunter2@h",
            "amqp://u:hunter2@",
            "amqp://u:hunter2@h?heartbeat=hunter2",
            "amqp:hunter2",
        ];
        for url in wrong {
            let error = Address::parse(url, 2).unwrap_err().to_string();
            assert!(error.contains("broker URL 2") && !error.contains("hunter2"), "{error}");
        }
    }
}
