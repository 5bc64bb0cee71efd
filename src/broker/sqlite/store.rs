//! The statements: messages in and out of the tables of `schema.sql`. Everything here runs inside a transaction of its
//! caller; no thread, channel or clock is known (`now` comes in). Dead letters have their own file.
//!
//! # Keys
//! Of one lane's messages with equal keys at most one is `ready`; the others wait in a state of their own and move up
//! one by one. So a claim looks at one row for each key, however long its backlog, and skips it while the key is in
//! hands. Lanes are apart in this because an urgent message must not wait for a normal one that nobody works on.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};
use uuid::Uuid;

use crate::broker::message::{Headers, Lane, Message, Repeat};

/// The tables, inside a transaction.
#[derive(Clone, Copy)]
pub(super) struct Store<'a>(pub(super) &'a Connection);

/// Who waits for a reply: a process and its number for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    pub origin: i64,
    pub token: i64,
}

/// One handing-out of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub seq: i64,
    pub claim: i64,
}

/// A message on its way in.
#[derive(Debug)]
pub(super) struct Arrival<'a> {
    pub queue: &'a str,
    pub message: &'a Message,
    pub published: i64,
    /// `None` = at once.
    pub not_before: Option<i64>,
    pub deadline: Option<i64>,
    pub asker: Option<Asker>,
}

/// A message on its way out.
#[derive(Debug)]
pub(super) struct Claimed {
    pub hold: Hold,
    pub message: Message,
    pub attempt: u32,
    pub published: Timestamp,
    pub deadline: Option<Timestamp>,
}

/// What is known of a message in hands.
#[derive(Debug)]
pub(super) struct Held {
    queue: String,
    lane: i64,
    key: Option<String>,
    at_most_once: bool,
    pub deadline: Option<i64>,
    pub asker: Option<Asker>,
}

/// What becomes of a message that comes back.
#[derive(Debug, Clone)]
pub(super) struct Again {
    /// `None` = at once.
    pub not_before: Option<i64>,
    /// Whether it counts as an attempt.
    pub counts: bool,
    /// Replaces the body.
    pub body: Option<Bytes>,
}

pub(super) const fn lane_number(lane: Lane) -> i64 {
    match lane {
        Lane::Urgent => 0,
        Lane::Normal => 1,
    }
}

pub(super) const fn lane_of(number: i64) -> Lane {
    if number == 0 { Lane::Urgent } else { Lane::Normal }
}

pub(super) const fn repeat_number(repeat: Repeat) -> i64 {
    match repeat {
        Repeat::AtLeastOnce => 0,
        Repeat::AtMostOnce => 1,
    }
}

pub(super) const fn repeat_of(number: i64) -> Repeat {
    if number == 0 { Repeat::AtLeastOnce } else { Repeat::AtMostOnce }
}

/// A time of the tables. What another program wrote there, out of range, becomes the nearest possible time.
pub(super) fn time_of(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or(if microseconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

pub(super) fn headers_text(headers: &Headers) -> Result<String> {
    serde_json::to_string(headers).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn headers_of(row: &Row<'_>, column: usize) -> Result<Headers> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into()))
}

pub(super) fn id_of(row: &Row<'_>, column: usize) -> Result<Uuid> {
    row.get::<_, [u8; 16]>(column).map(Uuid::from_bytes)
}

/// `after` from `now`, in microseconds. One more than that: `now` was rounded down.
pub(super) fn later(now: i64, after: Duration) -> i64 {
    now.saturating_add(i64::try_from(after.as_micros()).unwrap_or(i64::MAX)).saturating_add(1)
}

/// A count in the first column.
pub(super) fn count_of(row: &Row<'_>) -> Result<u64> {
    row.get::<_, i64>(0).map(|count| u64::try_from(count).unwrap_or_default())
}

// The statements that run with every message; a test looks at their plans.

/// Ready messages of a lane, oldest first. Not one `UPDATE ... RETURNING` with [`TAKE`]: that gathers the numbers in a
/// table of its own, made anew each time, and returns them in no order.
const READY: &str = "SELECT seq, key, attempt, published, deadline, repeat, id FROM messages AS m
             WHERE state = 0 AND queue = :queue AND lane = :lane AND (repeat = 0 OR :synced)
               AND (key IS NULL OR NOT EXISTS (
                   SELECT 1 FROM messages AS held WHERE held.queue = :queue AND held.key = m.key AND held.state = 2))
             ORDER BY not_before, seq LIMIT :limit";

/// Takes one into hands.
const TAKE: &str = "UPDATE messages SET state = 2, claim = ?2 WHERE seq = ?1";

/// Whether a message has to wait for its key.
const ARRIVING: &str = "SELECT EXISTS (SELECT 1 FROM messages WHERE queue = ?1 AND key = ?2 AND state = 2)
                     OR EXISTS (SELECT 1 FROM messages WHERE queue = ?1 AND key = ?2 AND state = 0 AND lane = ?3)";

/// The oldest that waits for a key moves up.
const FREE_KEY: &str = "UPDATE messages SET state = 0
             WHERE seq = (SELECT seq FROM messages WHERE queue = ?1 AND key = ?2 AND state = 3 AND lane = ?3
                          ORDER BY not_before, seq LIMIT 1)
               AND NOT EXISTS (SELECT 1 FROM messages WHERE queue = ?1 AND key = ?2 AND state = 0 AND lane = ?3)
               AND NOT EXISTS (SELECT 1 FROM messages WHERE queue = ?1 AND key = ?2 AND state = 2)";

/// Whether a message waits that is to be handed out at most once.
const AT_MOST_ONCE: &str = "SELECT EXISTS (SELECT 1 FROM messages WHERE repeat = 1 AND state <> 2)";

/// Delayed messages whose time has come.
const DUE: &str = "SELECT seq, queue, lane, key FROM messages WHERE state = 1 AND not_before <= ?1 ORDER BY not_before";

/// When the next one comes.
const NEXT_DUE: &str = "SELECT min(not_before) FROM messages WHERE state = 1";

/// Requests whose callers have gone.
const EXPIRED: &str = "SELECT seq, queue, key FROM messages WHERE deadline <= ?1 AND state <> 2";

/// A message in hands.
const HELD: &str = "SELECT queue, lane, key, repeat, deadline, origin, token FROM messages
                 WHERE seq = ?1 AND state = 2 AND claim = ?2";

impl Store<'_> {
    /// Messages that wait in a lane: ready, delayed, or for their key. Those in hands do not count, as RabbitMQ's
    /// limit does not count them; prefetch bounds them.
    pub(super) fn waiting(self, queue: &str, lane: Lane) -> Result<u64> {
        self.0
            .prepare_cached("SELECT waiting FROM lanes WHERE queue = ?1 AND lane = ?2")?
            .query_row(params![queue, lane_number(lane)], count_of)
            .optional()
            .map(Option::unwrap_or_default)
    }

    /// Stores a message; returns its number.
    pub(super) fn insert(self, arrival: &Arrival<'_>) -> Result<i64> {
        let message = arrival.message;
        let lane = lane_number(message.lane);
        let state = match arrival.not_before {
            Some(_) => 1,
            None => self.arriving_state(arrival.queue, lane, message.key.as_deref())?,
        };
        self.0
            .prepare_cached(
                "INSERT INTO messages
                     (queue, lane, key, state, not_before, attempt, published, deadline, repeat, origin, token, id)
                 VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                arrival.queue,
                lane,
                message.key,
                state,
                arrival.not_before.unwrap_or(arrival.published),
                arrival.published,
                arrival.deadline,
                repeat_number(message.repeat),
                arrival.asker.map(|asker| asker.origin),
                arrival.asker.map(|asker| asker.token),
                message.id.as_bytes(),
            ])?;
        let seq = self.0.last_insert_rowid();
        self.0.prepare_cached("INSERT INTO contents VALUES (?1, ?2, ?3)")?.execute(params![
            seq,
            headers_text(&message.headers)?,
            &*message.body
        ])?;
        Ok(seq)
    }

    /// The state of a message that is neither delayed nor in hands: ready, or waiting for its key.
    fn arriving_state(self, queue: &str, lane: i64, key: Option<&str>) -> Result<i64> {
        let Some(key) = key else { return Ok(0) };
        let taken: bool = self.0.prepare_cached(ARRIVING)?.query_row(params![queue, key, lane], |row| row.get(0))?;
        Ok(if taken { 3 } else { 0 })
    }

    /// After a message with this key left: the oldest that waits for the key in each lane moves up.
    fn free_key(self, queue: &str, key: Option<&str>) -> Result<()> {
        let Some(key) = key else { return Ok(()) };
        let mut statement = self.0.prepare_cached(FREE_KEY)?;
        for lane in [Lane::Urgent, Lane::Normal] {
            statement.execute(params![queue, key, lane_number(lane)])?;
        }
        Ok(())
    }

    /// Whether a message waits that must not be handed out again; see [`Store::claim`].
    pub(super) fn at_most_once_waits(self) -> Result<bool> {
        self.0.prepare_cached(AT_MOST_ONCE)?.query_row([], |row| row.get(0))
    }

    /// Takes up to `limit` ready messages of a lane into hands, oldest first. Messages that must not be handed out
    /// again are taken only if the transaction will be on disk before they are handed over (`synced`).
    pub(super) fn claim(self, queue: &str, lane: Lane, limit: usize, claim: i64, synced: bool) -> Result<Vec<Claimed>> {
        let mut statement = self.0.prepare_cached(READY)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let parameters = named_params! {
            ":queue": queue, ":lane": lane_number(lane), ":limit": limit, ":synced": synced,
        };
        let mut claimed = statement
            .query_map(parameters, |row| {
                Ok(Claimed {
                    hold: Hold { seq: row.get(0)?, claim },
                    message: Message {
                        id: id_of(row, 6)?,
                        lane,
                        key: row.get(1)?,
                        headers: Headers::new(),
                        body: Bytes::new(),
                        repeat: repeat_of(row.get(5)?),
                    },
                    attempt: row.get(2)?,
                    published: time_of(row.get(3)?),
                    deadline: row.get::<_, Option<i64>>(4)?.map(time_of),
                })
            })?
            .collect::<Result<Vec<_>>>()?;
        let mut take = self.0.prepare_cached(TAKE)?;
        let mut contents = self.0.prepare_cached("SELECT headers, body FROM contents WHERE seq = ?1")?;
        for claimed in &mut claimed {
            take.execute([claimed.hold.seq, claim])?;
            let message = &mut claimed.message;
            (message.headers, message.body) = contents.query_row([claimed.hold.seq], |row| {
                Ok((headers_of(row, 0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?)))
            })?;
        }
        Ok(claimed)
    }

    /// The message in these hands, if they still have it.
    pub(super) fn held(self, hold: Hold) -> Result<Option<Held>> {
        self.0
            .prepare_cached(HELD)?
            .query_row([hold.seq, hold.claim], |row| {
                let asker = match (row.get(5)?, row.get(6)?) {
                    (Some(origin), Some(token)) => Some(Asker { origin, token }),
                    _ => None,
                };
                Ok(Held {
                    queue: row.get(0)?,
                    lane: row.get(1)?,
                    key: row.get(2)?,
                    at_most_once: row.get::<_, i64>(3)? == 1,
                    deadline: row.get(4)?,
                    asker,
                })
            })
            .optional()
    }

    /// The message is done.
    pub(super) fn remove(self, hold: Hold, held: &Held) -> Result<()> {
        self.delete(hold.seq)?;
        self.free_key(&held.queue, held.key.as_deref())
    }

    fn delete(self, seq: i64) -> Result<()> {
        self.0.prepare_cached("DELETE FROM messages WHERE seq = ?1")?.execute([seq])?;
        self.0.prepare_cached("DELETE FROM contents WHERE seq = ?1")?.execute([seq])?;
        Ok(())
    }

    /// The message goes back to its lane; a request whose caller has gone does not.
    pub(super) fn put_back(self, hold: Hold, held: &Held, again: &Again, now: i64) -> Result<()> {
        if held.deadline.is_some_and(|deadline| deadline <= now) {
            return self.remove(hold, held);
        }
        if let Some(body) = &again.body {
            self.0
                .prepare_cached("UPDATE contents SET body = ?2 WHERE seq = ?1")?
                .execute(params![hold.seq, &**body])?;
        }
        // Out of hands first, so that it does not wait for itself.
        self.0
            .prepare_cached(
                "UPDATE messages SET state = 1, claim = NULL, attempt = attempt + ?2, not_before = coalesce(?3, not_before)
                 WHERE seq = ?1",
            )?
            .execute(params![hold.seq, i64::from(again.counts), again.not_before])?;
        if again.not_before.is_none() {
            self.enter(hold.seq, &held.queue, held.lane, held.key.as_deref())?;
        }
        self.free_key(&held.queue, held.key.as_deref())
    }

    /// The holder went without a word: back with the next attempt, or gone if it must not be handed out again.
    pub(super) fn abandon(self, hold: Hold, held: &Held, now: i64) -> Result<()> {
        if held.at_most_once {
            return self.remove(hold, held);
        }
        self.put_back(hold, held, &Again { not_before: None, counts: true, body: None }, now)
    }

    fn enter(self, seq: i64, queue: &str, lane: i64, key: Option<&str>) -> Result<()> {
        let state = self.arriving_state(queue, lane, key)?;
        self.0.prepare_cached("UPDATE messages SET state = ?2 WHERE seq = ?1")?.execute([seq, state])?;
        Ok(())
    }

    /// Makes delayed messages whose time has come ready.
    pub(super) fn promote(self, now: i64) -> Result<()> {
        let due = self
            .0
            .prepare_cached(DUE)?
            .query_map([now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
            .collect::<Result<Vec<(i64, String, i64, Option<String>)>>>()?;
        for (seq, queue, lane, key) in due {
            self.enter(seq, &queue, lane, key.as_deref())?;
        }
        Ok(())
    }

    /// When the next delayed message is due.
    pub(super) fn next_due(self) -> Result<Option<i64>> {
        self.0.prepare_cached(NEXT_DUE)?.query_row([], |row| row.get(0))
    }

    /// Deletes requests that nobody waits for and nobody works on, and replies that nobody fetched. Returns how many.
    pub(super) fn expire(self, now: i64) -> Result<usize> {
        let expired = self
            .0
            .prepare_cached(EXPIRED)?
            .query_map([now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<Vec<(i64, String, Option<String>)>>>()?;
        for (seq, queue, key) in &expired {
            self.delete(*seq)?;
            self.free_key(queue, key.as_deref())?;
        }
        let replies = self.0.prepare_cached("DELETE FROM replies WHERE deadline <= ?1")?.execute([now])?;
        Ok(expired.len() + replies)
    }

    /// Whether [`Store::expire`] would find something.
    pub(super) fn something_expired(self, now: i64) -> Result<bool> {
        self.0
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM messages WHERE deadline <= ?1 AND state <> 2)
                     OR EXISTS (SELECT 1 FROM replies WHERE deadline <= ?1)",
            )?
            .query_row([now], |row| row.get(0))
    }

    /// The asker has gone: the request goes with it, unless it is worked on.
    pub(super) fn forget(self, seq: i64, asker: Asker) -> Result<()> {
        let waiting = self
            .0
            .prepare_cached(
                "SELECT queue, key FROM messages WHERE seq = ?1 AND state <> 2 AND origin = ?2 AND token = ?3",
            )?
            .query_row([seq, asker.origin, asker.token], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((queue, key)) = waiting {
            let (queue, key): (String, Option<String>) = (queue, key);
            self.delete(seq)?;
            self.free_key(&queue, key.as_deref())?;
        }
        Ok(())
    }

    /// Leaves a reply for an asker in another process.
    pub(super) fn leave_reply(self, asker: Asker, deadline: i64, body: &[u8]) -> Result<()> {
        self.0.prepare_cached("INSERT OR REPLACE INTO replies VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            asker.origin,
            asker.token,
            deadline,
            body
        ])?;
        Ok(())
    }

    /// Whether replies wait for this process.
    pub(super) fn replies_wait(self, origin: i64) -> Result<bool> {
        self.0
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM replies WHERE origin = ?1)")?
            .query_row([origin], |row| row.get(0))
    }

    /// Takes the replies for this process: token and body.
    pub(super) fn take_replies(self, origin: i64) -> Result<Vec<(i64, Bytes)>> {
        self.0
            .prepare_cached("DELETE FROM replies WHERE origin = ?1 RETURNING token, body")?
            .query_map([origin], |row| Ok((row.get(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?))))?
            .collect()
    }

    /// Lets the requests of a process expire: it has gone, and nobody waits.
    pub(super) fn disown(self, origin: i64) -> Result<()> {
        self.0.execute("UPDATE messages SET deadline = 0 WHERE deadline IS NOT NULL AND origin = ?1", [origin])?;
        Ok(())
    }

    /// After the death of the former consumer: its own requests go, and what was in its hands comes back with the next
    /// attempt. Returns how many messages were in its hands.
    pub(super) fn recover(self, origin: i64, now: i64) -> Result<usize> {
        let former = self.0.query_row("SELECT origin FROM consumer", [], |row| row.get(0)).optional()?;
        if let Some(former) = former {
            self.disown(former)?;
        }
        self.0.execute("INSERT OR REPLACE INTO consumer VALUES (1, ?1)", [origin])?;
        let holds = self
            .0
            .prepare_cached("SELECT seq, claim FROM messages WHERE state = 2 ORDER BY not_before, seq")?
            .query_map([], |row| Ok(Hold { seq: row.get(0)?, claim: row.get(1)? }))?
            .collect::<Result<Vec<_>>>()?;
        for hold in &holds {
            if let Some(held) = self.held(*hold)? {
                self.abandon(*hold, &held, now)?;
            }
        }
        Ok(holds.len())
    }

    /// Stores a retained value; returns its version.
    pub(super) fn retain(self, name: &str, value: &[u8]) -> Result<i64> {
        self.0
            .prepare_cached(
                "INSERT INTO retained VALUES (?1, 1, ?2)
                     ON CONFLICT (name) DO UPDATE SET version = version + 1, value = excluded.value
                 RETURNING version",
            )?
            .query_row(params![name, value], |row| row.get(0))
    }

    /// A retained value that is newer than version `known`, with its version.
    pub(super) fn retained(self, name: &str, known: i64) -> Result<Option<(i64, Bytes)>> {
        self.0
            .prepare_cached("SELECT version, value FROM retained WHERE name = ?1 AND version > ?2")?
            .query_row(params![name, known], |row| Ok((row.get(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?))))
            .optional()
    }

    /// How many messages of a lane could be handed out now, but for their keys.
    pub(super) fn ready(self, queue: &str, lane: Lane, now: i64) -> Result<u64> {
        self.0
            .prepare_cached(
                "SELECT waiting - (SELECT count(*) FROM messages WHERE state = 1 AND not_before > ?3
                                                                   AND queue = ?1 AND lane = ?2)
                 FROM lanes WHERE queue = ?1 AND lane = ?2",
            )?
            .query_row(params![queue, lane_number(lane), now], count_of)
            .optional()
            .map(Option::unwrap_or_default)
    }

    /// Writes to the file without changing anything, to learn whether that is possible.
    pub(super) fn touch(self) -> Result<()> {
        self.0.execute("INSERT INTO retained VALUES ('', 0, x'')", [])?;
        self.0.execute("DELETE FROM retained WHERE name = ''", [])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tables() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("schema.sql")).unwrap();
        super::super::file::keep_plans(&connection).unwrap();
        connection
    }

    #[test]
    fn claiming_never_prepares_its_statement_anew() {
        let connection = tables();
        let store = Store(&connection);
        for queue in ["one", "other", "one"] {
            let message = Message::new(Bytes::from_static(b"body"));
            let arrival =
                Arrival { queue, message: &message, published: 1, not_before: None, deadline: None, asker: None };
            store.insert(&arrival).unwrap();
            assert_eq!(store.claim(queue, Lane::Normal, 10, 1, false).unwrap().len(), 1, "{queue}");
        }
        let statement = connection.prepare_cached(READY).unwrap();
        assert_eq!(statement.get_status(rusqlite::StatementStatus::Run), 3);
        assert_eq!(statement.get_status(rusqlite::StatementStatus::RePrepare), 0);
    }

    #[test]
    fn no_statement_on_the_way_of_a_message_scans_a_table() {
        let connection = tables();
        for statement in [READY, TAKE, ARRIVING, FREE_KEY, AT_MOST_ONCE, DUE, NEXT_DUE, EXPIRED, HELD] {
            let mut explained = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
            let parameters = vec![0; explained.parameter_count()];
            let rows = explained.query_map(rusqlite::params_from_iter(parameters), |row| row.get(3)).unwrap();
            let plan: Vec<String> = rows.collect::<Result<_>>().unwrap();
            let scans: Vec<_> = plan
                .iter()
                // An index that holds nothing but what is looked for is read from its beginning.
                .filter(|step| step.starts_with("SCAN") && !step.contains("INDEX messages_once"))
                .filter(|step| *step != "SCAN CONSTANT ROW")
                .collect();
            assert!(scans.is_empty(), "{statement}\n{plan:#?}");
            assert!(plan.iter().all(|step| !step.contains("TEMP B-TREE")), "{statement}\n{plan:#?}");
        }
    }

    /// What may happen to a queue.
    #[derive(Debug, Clone)]
    enum Step {
        Arrives {
            key: Option<u8>,
            lane: Lane,
            delay: i64,
            once: bool,
            expires: Option<i64>,
        },
        Claims {
            lane: Lane,
            limit: usize,
        },
        /// The hold of this number, modulo how many there are, ends.
        Ends {
            which: usize,
            how: End,
        },
        Passes(i64),
        Restarts,
    }

    #[derive(Debug, Clone, Copy)]
    enum End {
        Done,
        Back,
        Retry(i64),
        Drop,
    }

    fn lanes() -> impl Strategy<Value = Lane> {
        prop_oneof![Just(Lane::Urgent), Just(Lane::Normal)]
    }

    fn steps() -> impl Strategy<Value = Step> {
        let end = prop_oneof![Just(End::Done), Just(End::Back), (1..20_i64).prop_map(End::Retry), Just(End::Drop)];
        prop_oneof![
            4 => (proptest::option::weighted(0.8, 0..3_u8), lanes(), 0..10_i64, any::<bool>(), proptest::option::weighted(0.3, 1..30_i64))
                .prop_map(|(key, lane, delay, once, expires)| Step::Arrives { key, lane, delay, once, expires }),
            3 => (lanes(), 1..4_usize).prop_map(|(lane, limit)| Step::Claims { lane, limit }),
            3 => (0..100_usize, end).prop_map(|(which, how)| Step::Ends { which, how }),
            1 => (1..15_i64).prop_map(Step::Passes),
            1 => Just(Step::Restarts),
        ]
    }

    fn count(connection: &Connection, wrong: &str) -> i64 {
        connection.query_row(&format!("SELECT count(*) FROM {wrong}"), [], |row| row.get(0)).unwrap()
    }

    fn due(connection: &Connection, hold: Hold) -> i64 {
        let due = "SELECT not_before FROM messages WHERE seq = ?1";
        connection.query_row(due, [hold.seq], |row| row.get(0)).unwrap()
    }

    fn check(connection: &Connection) {
        let never = [
            "(SELECT 1 FROM messages WHERE state = 2 AND key IS NOT NULL GROUP BY queue, key HAVING count(*) > 1)",
            "(SELECT 1 FROM messages WHERE state = 0 AND key IS NOT NULL GROUP BY queue, lane, key HAVING count(*) > 1)",
            // Waits for a key that nothing keeps from it.
            "messages AS m WHERE state = 3 AND NOT EXISTS (
                 SELECT 1 FROM messages AS o WHERE o.queue = m.queue AND o.key = m.key
                     AND (o.state = 2 OR (o.state = 0 AND o.lane = m.lane)))",
            "lanes AS l WHERE waiting <> (
                 SELECT count(*) FROM messages AS m WHERE m.queue = l.queue AND m.lane = l.lane AND m.state <> 2)",
            "(SELECT seq FROM messages EXCEPT SELECT seq FROM contents)",
            "(SELECT seq FROM contents EXCEPT SELECT seq FROM messages)",
        ];
        for wrong in never {
            assert_eq!(count(connection, wrong), 0, "{wrong}");
        }
    }

    proptest! {
        // Each case runs dozens of statements and as many checks; more find nothing more.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn keys_and_counts_hold_whatever_happens(steps in proptest::collection::vec(steps(), 1..80)) {
            let connection = tables();
            let store = Store(&connection);
            let (mut now, mut next_claim) = (1_000, 1);
            let (mut holds, mut repeatable, mut ended): (Vec<Hold>, i64, i64) = (Vec::new(), 0, 0);
            for step in steps {
                match step {
                    Step::Arrives { key, lane, delay, once, expires } => {
                        let message = Message {
                            lane,
                            key: key.map(|key| key.to_string()),
                            repeat: if once { Repeat::AtMostOnce } else { Repeat::AtLeastOnce },
                            ..Message::new(Bytes::from_static(b"body"))
                        };
                        repeatable += i64::from(!once && expires.is_none());
                        store.insert(&Arrival {
                            queue: "work",
                            message: &message,
                            published: now,
                            not_before: (delay > 0).then(|| now + delay),
                            deadline: expires.map(|after| now + after),
                            asker: None,
                        }).unwrap();
                    }
                    Step::Claims { lane, limit } => {
                        store.expire(now).unwrap();
                        store.promote(now).unwrap();
                        let claimed = store.claim("work", lane, limit, next_claim, true).unwrap();
                        let due: Vec<i64> = claimed.iter().map(|claimed| due(&connection, claimed.hold)).collect();
                        assert!(due.is_sorted() && due.iter().all(|due| *due <= now), "{due:?} at {now}");
                        holds.extend(claimed.into_iter().map(|claimed| claimed.hold));
                        next_claim += 1;
                    }
                    Step::Ends { which, how } if !holds.is_empty() => {
                        let hold = holds.remove(which % holds.len());
                        let held = store.held(hold).unwrap().expect("in hands");
                        let again = |not_before, counts| Again { not_before, counts, body: None };
                        match how {
                            End::Done => {
                                ended += i64::from(!held.at_most_once && held.deadline.is_none());
                                store.remove(hold, &held)
                            }
                            End::Back => store.put_back(hold, &held, &again(None, false), now),
                            End::Retry(after) => store.put_back(hold, &held, &again(Some(now + after), true), now),
                            End::Drop => store.abandon(hold, &held, now),
                        }.unwrap();
                        assert!(store.held(hold).unwrap().is_none(), "two ends");
                    }
                    Step::Ends { .. } => {}
                    Step::Passes(time) => now += time,
                    Step::Restarts => {
                        assert_eq!(store.recover(7, now).unwrap(), holds.len());
                        holds.clear();
                    }
                }
                check(&connection);
            }
            // What may be repeated and has no deadline is there until it is done.
            assert_eq!(count(&connection, "messages WHERE repeat = 0 AND deadline IS NULL"), repeatable - ended);
        }
    }
}
