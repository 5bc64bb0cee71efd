//! The statements for dead letters. Like `store`, everything runs inside a transaction of its caller.

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Result, Row, ToSql, params};

use super::store::{Arrival, Hold, Store, count_of, headers_of, id_of, lane_of, repeat_of, time_of};
use crate::broker::message::{BrokerError, Cause, DeadLetter, DeadLetterFilter, Headers, Message};

/// The longest [`Cause::detail`] that is kept.
const DETAIL_LIMIT_BYTES: usize = 1_000;

/// The members of a filter as named parameters, and the condition that reads them. The planner sees through
/// `?1 IS NULL OR`, and dead letters are few: no statement for each combination.
const MATCHES: &str = "(:queue IS NULL OR queue = :queue)
    AND (:cause IS NULL OR cause = :cause)
    AND (:key IS NULL OR key = :key)
    AND (:from IS NULL OR died >= :from)
    AND (:before IS NULL OR died < :before)
    AND (:ids IS NULL OR hex(id) IN (SELECT value FROM json_each(:ids)))
    AND seq <= :newest";

/// A filter in the words of the tables.
struct Parameters<'a> {
    filter: &'a DeadLetterFilter,
    from: Option<i64>,
    before: Option<i64>,
    ids: Option<String>,
    newest: i64,
    limit: i64,
}

impl<'a> Parameters<'a> {
    fn new(filter: &'a DeadLetterFilter, newest: i64, limit: usize) -> Self {
        let ids = (!filter.ids.is_empty()).then(|| {
            let quoted: Vec<_> = filter.ids.iter().map(|id| format!("\"{:X}\"", id.simple())).collect();
            format!("[{}]", quoted.join(","))
        });
        // Times are kept in microseconds, rounded down: what died within the filter's microsecond died before it only
        // if the filter's time is past its beginning.
        let rounded_up = |time: Timestamp| {
            let micros = time.as_microsecond();
            if time > time_of(micros) { micros.saturating_add(1) } else { micros }
        };
        let (from, before) = (filter.died_from.map(rounded_up), filter.died_before.map(rounded_up));
        let limit = if limit == 0 { -1 } else { i64::try_from(limit).unwrap_or(i64::MAX) };
        Self { filter, from, before, ids, newest, limit }
    }

    fn named(&self) -> [(&'static str, &dyn ToSql); 8] {
        [
            (":queue", &self.filter.queue),
            (":cause", &self.filter.cause),
            (":key", &self.filter.key),
            (":from", &self.from),
            (":before", &self.before),
            (":ids", &self.ids),
            (":newest", &self.newest),
            (":limit", &self.limit),
        ]
    }
}

/// The beginning of `text` that fits.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(DETAIL_LIMIT_BYTES)]
}

fn letter_of(row: &Row<'_>) -> Result<DeadLetter> {
    Ok(DeadLetter {
        message: Message {
            id: id_of(row, 1)?,
            lane: lane_of(row.get(3)?),
            key: row.get(4)?,
            headers: headers_of(row, 11)?,
            body: Bytes::from(row.get::<_, Vec<u8>>(12)?),
            repeat: repeat_of(row.get(5)?),
        },
        queue: row.get(2)?,
        cause: Cause { code: row.get(6)?, detail: row.get(7)? },
        attempts: row.get(8)?,
        published: time_of(row.get(9)?),
        died: time_of(row.get(10)?),
    })
}

impl Store<'_> {
    /// The message in these hands becomes a dead letter. The caller removes it from the hands.
    pub(super) fn bury(self, hold: Hold, cause: &Cause, now: i64) -> Result<()> {
        self.0
            .prepare_cached(
                "INSERT INTO dead
                     (id, queue, lane, key, repeat, cause, detail, attempts, published, died, headers, body)
                 SELECT id, queue, lane, key, repeat, ?2, ?3, attempt, published, ?4, headers, body
                 FROM messages JOIN contents USING (seq) WHERE seq = ?1",
            )?
            .execute(params![hold.seq, cause.code, cut(&cause.detail), now])?;
        Ok(())
    }

    /// The number of the newest dead letter.
    pub(super) fn newest_dead(self) -> Result<i64> {
        self.0.query_row("SELECT coalesce(max(seq), 0) FROM dead", [], |row| row.get(0))
    }

    /// The dead letters that match, oldest first, with their numbers. `limit` 0 = all.
    fn matching(self, filter: &DeadLetterFilter, newest: i64, limit: usize) -> Result<Vec<(i64, DeadLetter)>> {
        let parameters = Parameters::new(filter, newest, limit);
        self.0
            .prepare_cached(&format!(
                "SELECT seq, id, queue, lane, key, repeat, cause, detail, attempts, published, died, headers, body
                 FROM dead WHERE {MATCHES} ORDER BY died, seq LIMIT :limit"
            ))?
            .query_map(&parameters.named(), |row| Ok((row.get(0)?, letter_of(row)?)))?
            .collect()
    }

    /// The dead letters that match, oldest first.
    pub(super) fn dead_letters(self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>> {
        let letters = self.matching(filter, i64::MAX, filter.limit)?;
        Ok(letters.into_iter().map(|(_, letter)| letter).collect())
    }

    /// Deletes the dead letters that match. Returns how many.
    pub(super) fn discard(self, filter: &DeadLetterFilter) -> Result<u64> {
        let parameters = Parameters::new(filter, i64::MAX, filter.limit);
        let deleted = self
            .0
            .prepare_cached(&format!(
                "DELETE FROM dead WHERE seq IN (SELECT seq FROM dead WHERE {MATCHES} ORDER BY died, seq LIMIT :limit)"
            ))?
            .execute(&parameters.named())?;
        Ok(deleted as u64)
    }

    /// Sends up to `limit` dead letters that match back, as far as `admit` lets them, which is given the queue and how
    /// much waits in the lane; `readdress` is given their headers. Returns how many, and why the next one was refused.
    pub(super) fn redrive(
        self,
        filter: &DeadLetterFilter,
        newest: i64,
        limit: usize,
        now: i64,
        admit: impl Fn(&str, u64) -> std::result::Result<(), BrokerError>,
        readdress: fn(&mut Headers),
    ) -> Result<(u64, Option<BrokerError>)> {
        let mut sent = 0;
        for (seq, mut letter) in self.matching(filter, newest, limit)? {
            if let Err(refusal) = admit(&letter.queue, self.waiting(&letter.queue, letter.message.lane)?) {
                return Ok((sent, Some(refusal)));
            }
            readdress(&mut letter.message.headers);
            let arrival = Arrival {
                queue: &letter.queue,
                message: &letter.message,
                published: letter.published.as_microsecond(),
                not_before: None,
                deadline: None,
                asker: None,
            };
            let arrived = self.insert(&arrival)?;
            // Behind what waits already, although it was first published long ago.
            self.0.prepare_cached("UPDATE messages SET not_before = ?2 WHERE seq = ?1")?.execute([arrived, now])?;
            self.0.prepare_cached("DELETE FROM dead WHERE seq = ?1")?.execute([seq])?;
            sent += 1;
        }
        Ok((sent, None))
    }

    /// How many dead letters a queue has.
    pub(super) fn dead_count(self, queue: &str) -> Result<u64> {
        self.0.prepare_cached("SELECT count(*) FROM dead WHERE queue = ?1")?.query_row([queue], count_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_cut_between_letters() {
        let text = format!("a{}", "é".repeat(1_000));
        assert_eq!(cut(&text).len(), 999);
        assert_eq!(cut("short"), "short");
    }
}
