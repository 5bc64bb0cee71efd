//! How a message looks on the wire: properties, our own headers, and the publisher's headers beside them.
//!
//! Ours begin with `x-`; they are made from scratch at each publish, so that the broker's own (`x-death` and its kin,
//! whose meaning changed between versions) never travel twice.

use std::str::FromStr;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use uuid::Uuid;

use super::topology::DELIVERY_LIMIT;
use crate::broker::{BODY_LIMIT_BYTES, BrokerError, Cause, DeadLetter, Headers, Lane, Message, Repeat};

const ATTEMPT: &str = "x-attempt";
const PUBLISHED: &str = "x-published-ms";
const DEADLINE: &str = "x-deadline-ms";
const NOT_BEFORE: &str = "x-not-before";
const KEY: &str = "x-key";
const REPEAT: &str = "x-repeat";
const QUEUE: &str = "x-queue";
const LANE: &str = "x-lane";
const CAUSE_CODE: &str = "x-cause-code";
const CAUSE_DETAIL: &str = "x-cause-detail";
const DIED: &str = "x-died-ms";
/// Set by quorum queues: how often the message was handed out before and came back.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Value of [`REPEAT`] for [`Repeat::AtMostOnce`].
const ONCE: &str = "at-most-once";
/// All headers travel in one frame, of which the default size is 128 KiB; a larger one would end the connection.
const HEADERS_LIMIT_BYTES: usize = 64 * 1024;
/// Longest name of a header in AMQP.
const HEADER_NAME_LIMIT_BYTES: usize = 255;
/// See [`Cause::detail`].
const DETAIL_LIMIT_BYTES: usize = 1_000;
/// Persistent and transient, AMQP's delivery modes.
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// A message on its way, with all that must survive a delay or a second try.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    pub(super) message: Message,
    /// Name of its queue, without namespace and lane.
    pub(super) queue: String,
    /// Attempt that its next holder makes.
    pub(super) attempt: u32,
    pub(super) published_ms: i64,
    /// When its caller stops waiting.
    pub(super) deadline_ms: Option<i64>,
    /// Not to be handed out before.
    pub(super) not_before_ms: Option<i64>,
    /// Where the reply goes and by which id.
    pub(super) reply: Option<(ShortString, ShortString)>,
}

/// A dead letter on its way.
pub(super) struct Obituary {
    pub(super) cause: Cause,
    pub(super) died_ms: i64,
}

/// Milliseconds since the epoch.
pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

impl Envelope {
    /// A message as its publisher hands it in.
    ///
    /// # Errors
    /// [`BrokerError::TooLarge`] for a body, key or set of headers above its limit.
    pub(super) fn new(message: Message, queue: &str) -> Result<Self, BrokerError> {
        fits(message.body.len(), BODY_LIMIT_BYTES)?;
        fits(message.key.as_ref().map_or(0, String::len), Message::KEY_LIMIT_BYTES)?;
        fits(message.headers.keys().map(String::len).max().unwrap_or(0), HEADER_NAME_LIMIT_BYTES)?;
        fits(message.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum(), HEADERS_LIMIT_BYTES)?;
        debug_assert!(
            !message.headers.keys().any(|name| name.starts_with("x-")),
            "headers beginning with x- are the broker's"
        );
        Ok(Self {
            message,
            queue: queue.to_owned(),
            attempt: 1,
            published_ms: now_ms(),
            deadline_ms: None,
            not_before_ms: None,
            reply: None,
        })
    }

    /// Properties for a place that keeps messages on disk, or for one whose messages are only as good as the process
    /// that waits. A time to live is given only where its end drops the message: elsewhere the broker would make a dead
    /// letter of it.
    pub(super) fn properties(&self, transient: bool, now_ms: i64) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in &self.message.headers {
            headers.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
        }
        let mut ours = |name: &str, value: AMQPValue| {
            headers.insert(name.into(), value);
        };
        ours(ATTEMPT, AMQPValue::LongLongInt(self.attempt.into()));
        ours(PUBLISHED, AMQPValue::LongLongInt(self.published_ms));
        ours(QUEUE, AMQPValue::LongString(self.queue.as_str().into()));
        ours(LANE, AMQPValue::LongString(self.message.lane.as_str().into()));
        if let Some(deadline) = self.deadline_ms {
            ours(DEADLINE, AMQPValue::LongLongInt(deadline));
        }
        if let Some(not_before) = self.not_before_ms {
            ours(NOT_BEFORE, AMQPValue::LongLongInt(not_before));
        }
        if let Some(key) = &self.message.key {
            ours(KEY, AMQPValue::LongString(key.as_str().into()));
        }
        if self.message.repeat == Repeat::AtMostOnce {
            ours(REPEAT, AMQPValue::LongString(ONCE.into()));
        }
        let mut properties = BasicProperties::default()
            .with_message_id(self.message.id.to_string().into())
            .with_timestamp(u64::try_from(self.published_ms / 1000).unwrap_or(0))
            .with_delivery_mode(if transient { TRANSIENT } else { PERSISTENT })
            .with_headers(headers);
        if let Some((address, correlation)) = &self.reply {
            properties = properties.with_reply_to(address.clone()).with_correlation_id(correlation.clone());
        }
        match self.deadline_ms {
            // 0 would mean "only if somebody can take it this moment".
            Some(deadline) if transient => {
                let left = deadline.saturating_sub(now_ms).clamp(1, i64::from(u32::MAX));
                properties.with_expiration(left.to_string().into())
            }
            _ => properties,
        }
    }

    /// Properties of the message as a dead letter.
    pub(super) fn dead_properties(&self, obituary: &Obituary) -> BasicProperties {
        let properties = self.properties(false, obituary.died_ms);
        let mut headers = properties.headers().clone().unwrap_or_default();
        let detail = cut(&obituary.cause.detail, DETAIL_LIMIT_BYTES);
        headers.insert(CAUSE_CODE.into(), AMQPValue::LongString(cut(&obituary.cause.code, DETAIL_LIMIT_BYTES).into()));
        headers.insert(CAUSE_DETAIL.into(), AMQPValue::LongString(detail.into()));
        headers.insert(DIED.into(), AMQPValue::LongLongInt(obituary.died_ms));
        properties.with_headers(headers)
    }

    /// Reads what came from the queue `queue`.
    ///
    /// # Errors
    /// The envelope as far as it could be read, under a new id, when the message was not published by this program.
    pub(super) fn read(
        queue: &str,
        lane: Lane,
        properties: &BasicProperties,
        body: Vec<u8>,
    ) -> Result<Self, Box<Self>> {
        let headers = Table(properties.headers().as_ref());
        let id = properties.message_id().as_ref().and_then(|id| Uuid::from_str(id.as_str()).ok());
        let reply = properties.reply_to().clone().zip(properties.correlation_id().clone());
        let attempt =
            headers.integer(ATTEMPT).unwrap_or(1).saturating_add(headers.integer(DELIVERY_COUNT).unwrap_or(0));
        let envelope = Self {
            message: Message {
                id: id.unwrap_or_else(Uuid::now_v7),
                lane,
                key: headers.text(KEY),
                headers: headers.publishers(),
                body: Bytes::from(body),
                repeat: match headers.text(REPEAT).as_deref() {
                    Some(ONCE) => Repeat::AtMostOnce,
                    _ => Repeat::AtLeastOnce,
                },
            },
            queue: queue.to_owned(),
            attempt: u32::try_from(attempt.max(1)).unwrap_or(u32::MAX),
            published_ms: headers.integer(PUBLISHED).unwrap_or_else(now_ms),
            deadline_ms: headers.integer(DEADLINE),
            not_before_ms: headers.integer(NOT_BEFORE),
            reply,
        };
        let key_fits = envelope.message.key.as_ref().is_none_or(|key| key.len() <= Message::KEY_LIMIT_BYTES);
        if id.is_some() && key_fits { Ok(envelope) } else { Err(Box::new(envelope)) }
    }

    /// Reads what came from the dead letters of `queue`.
    pub(super) fn read_dead(queue: &str, properties: &BasicProperties, body: Vec<u8>) -> (Self, DeadLetter) {
        let headers = Table(properties.headers().as_ref());
        let lane =
            if headers.text(LANE).as_deref() == Some(Lane::Urgent.as_str()) { Lane::Urgent } else { Lane::Normal };
        let mut envelope = Self::read(queue, lane, properties, body).unwrap_or_else(|envelope| *envelope);
        let written = headers.integer(ATTEMPT).and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(1);
        let died = headers.integer(DIED);
        let (cause, attempts) = match headers.text(CAUSE_CODE) {
            Some(code) => (Cause { code, detail: headers.text(CAUSE_DETAIL).unwrap_or_default() }, written),
            // Put here by the broker itself, through the delivery limit.
            None => (
                Cause {
                    code: "crashes".to_owned(),
                    detail: format!("came back without a word {DELIVERY_LIMIT} times"),
                },
                written.saturating_add(DELIVERY_LIMIT),
            ),
        };
        let letter = DeadLetter {
            message: envelope.message.clone(),
            queue: queue.to_owned(),
            cause,
            attempts,
            published: timestamp(envelope.published_ms),
            died: timestamp(died.or_else(|| headers.death_ms()).unwrap_or(envelope.published_ms)),
        };
        // For the redrive: nobody waits for it any more, and it begins anew.
        envelope.attempt = 1;
        envelope.deadline_ms = None;
        envelope.not_before_ms = None;
        envelope.reply = None;
        (envelope, letter)
    }
}

/// A date on the wire; one outside the calendar, which only a stranger can have written, becomes the epoch.
pub(super) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// # Errors
/// [`BrokerError::TooLarge`].
pub(super) fn fits(bytes: usize, limit: usize) -> Result<(), BrokerError> {
    if bytes > limit { Err(BrokerError::TooLarge { bytes, limit }) } else { Ok(()) }
}

/// The longest beginning of `text` that has at most `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

struct Table<'a>(Option<&'a FieldTable>);

impl Table<'_> {
    fn get(&self, name: &str) -> Option<&AMQPValue> {
        self.0?.inner().get(name)
    }

    /// Brokers and tools write integers in any of these widths.
    fn integer(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            AMQPValue::LongLongInt(value) => Some(*value),
            AMQPValue::LongInt(value) => Some((*value).into()),
            AMQPValue::LongUInt(value) => Some((*value).into()),
            AMQPValue::ShortInt(value) => Some((*value).into()),
            AMQPValue::ShortUInt(value) => Some((*value).into()),
            AMQPValue::ShortShortInt(value) => Some((*value).into()),
            AMQPValue::ShortShortUInt(value) => Some((*value).into()),
            AMQPValue::Timestamp(seconds) => i64::try_from(*seconds).ok()?.checked_mul(1000),
            _ => None,
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        as_text(self.get(name)?)
    }

    /// The publisher's headers: those that are text and not ours.
    fn publishers(&self) -> Headers {
        let entries = self.0.iter().flat_map(|table| table.inner());
        entries
            .filter(|(name, _)| !name.as_str().starts_with("x-"))
            .filter_map(|(name, value)| Some((name.to_string(), as_text(value)?)))
            .collect()
    }

    /// When the broker itself made the message a dead letter, from the newest entry of its own record.
    fn death_ms(&self) -> Option<i64> {
        let AMQPValue::FieldArray(deaths) = self.get("x-death")? else { return None };
        let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
        Table(Some(newest)).integer("time")
    }
}

fn as_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let headers = btree_map("[a-w][a-z-]{0,20}", "\\PC{0,40}", 0..6);
        (
            headers,
            proptest::collection::vec(any::<u8>(), 0..200),
            proptest::option::of("\\PC{1,30}"),
            any::<[bool; 2]>(),
        )
            .prop_map(|(headers, body, key, [urgent, once])| Message {
                headers,
                key,
                lane: if urgent { Lane::Urgent } else { Lane::Normal },
                repeat: if once { Repeat::AtMostOnce } else { Repeat::AtLeastOnce },
                ..Message::new(Bytes::from(body))
            })
    }

    proptest! {
        #[test]
        fn a_message_returns_byte_for_byte_with_all_that_a_second_try_needs(
            message in message(), attempt in 1_u32..1_000_000, times in any::<[u32; 3]>(), transient: bool,
        ) {
            let [published, deadline, not_before] = times.map(i64::from);
            let mut sent = Envelope::new(message, "host").unwrap();
            sent.attempt = attempt;
            sent.published_ms = published;
            sent.deadline_ms = Some(deadline);
            sent.not_before_ms = Some(not_before);
            sent.reply = Some(("reply.here".into(), "42".into()));
            let properties = sent.properties(transient, 0);
            let lane = sent.message.lane;
            let got = Envelope::read("host", lane, &properties, sent.message.body.to_vec()).unwrap();
            prop_assert_eq!(&got.message, &sent.message);
            prop_assert_eq!((got.attempt, got.published_ms), (attempt, published));
            prop_assert_eq!((got.deadline_ms, got.not_before_ms), (Some(deadline), Some(not_before)));
            prop_assert_eq!(got.reply, sent.reply);
        }

        #[test]
        fn a_dead_letter_keeps_everything_and_begins_anew_when_redriven(message in message(), attempt in 1_u32..1000) {
            let mut sent = Envelope::new(message, "host").unwrap();
            sent.attempt = attempt;
            sent.deadline_ms = Some(5);
            sent.reply = Some(("reply.here".into(), "42".into()));
            let cause = Cause { code: "refused".into(), detail: "ü".repeat(600) };
            let properties = sent.dead_properties(&Obituary { cause, died_ms: 123_456 });
            let (again, letter) = Envelope::read_dead("host", &properties, sent.message.body.to_vec());
            prop_assert_eq!(&letter.message, &sent.message);
            prop_assert_eq!((letter.attempts, letter.died.as_millisecond()), (attempt, 123_456));
            prop_assert_eq!((letter.cause.code.as_str(), letter.cause.detail.len()), ("refused", 1000));
            prop_assert_eq!((again.attempt, again.deadline_ms, again.reply.clone()), (1, None, None));
            let headers = again.properties(false, 0).headers().clone().unwrap_or_default();
            prop_assert!(![CAUSE_CODE, CAUSE_DETAIL, DIED].iter().any(|name| headers.contains_key(name)));
        }
    }

    #[test]
    fn only_a_message_that_expires_into_nothing_has_a_time_to_live() {
        let mut envelope = Envelope::new(Message::new(Bytes::new()), "observe").unwrap();
        assert_eq!(envelope.properties(true, 0).expiration(), &None);
        envelope.deadline_ms = Some(1_500);
        assert_eq!(envelope.properties(true, 1_000).expiration().as_ref().map(ShortString::as_str), Some("500"));
        assert_eq!(envelope.properties(true, 9_000).expiration().as_ref().map(ShortString::as_str), Some("1"));
        assert_eq!(envelope.properties(false, 1_000).expiration(), &None);
    }

    #[test]
    fn the_brokers_delivery_count_is_added_to_the_attempt_and_never_travels_on() {
        let mut envelope = Envelope::new(Message::new(Bytes::new()), "host").unwrap();
        envelope.attempt = 3;
        let mut headers = envelope.properties(false, 0).headers().clone().unwrap();
        headers.insert(DELIVERY_COUNT.into(), AMQPValue::LongLongInt(2));
        headers.insert("x-death".into(), AMQPValue::FieldArray(Vec::new().into()));
        let properties = envelope.properties(false, 0).with_headers(headers);
        let got = Envelope::read("host", Lane::Normal, &properties, Vec::new()).unwrap();
        assert_eq!(got.attempt, 5);
        let again = got.properties(false, 0).headers().clone().unwrap();
        assert!(!again.contains_key(DELIVERY_COUNT) && !again.contains_key("x-death"));
    }

    #[test]
    fn a_message_from_a_stranger_is_told_apart() {
        let stranger = BasicProperties::default().with_message_id("order 17".into());
        let read = Envelope::read("host", Lane::Normal, &stranger, b"hello".to_vec()).unwrap_err();
        assert_eq!((read.message.body.as_ref(), read.attempt), (b"hello".as_slice(), 1));
    }

    #[test]
    fn what_the_broker_could_not_carry_is_too_large() {
        let with = |headers: &[(String, String)]| {
            let message = Message { headers: headers.iter().cloned().collect(), ..Message::new(Bytes::new()) };
            Envelope::new(message, "host")
        };
        assert!(matches!(with(&[("a".repeat(256), String::new())]), Err(BrokerError::TooLarge { .. })));
        assert!(matches!(with(&[("a".into(), "b".repeat(70_000))]), Err(BrokerError::TooLarge { .. })));
        let key = Message { key: Some("k".repeat(121)), ..Message::new(Bytes::new()) };
        assert!(matches!(Envelope::new(key, "host"), Err(BrokerError::TooLarge { .. })));
        let body = Message::new(Bytes::from(vec![0; BODY_LIMIT_BYTES + 1]));
        assert!(matches!(Envelope::new(body, "host"), Err(BrokerError::TooLarge { .. })));
    }
}
