//! The ladder of delays: which rung a message waits on next. Pure.
//!
//! A queue per delay, because the broker looks only at the head of a queue: a message with a short expiration behind
//! one with a long expiration waits for the long one (`rabbitmq.md` 2). A message hops from rung to rung until it is
//! due, so that eleven rungs give any delay, never early and at most about a second late.

/// One rung: its name in exchange and queue, and how long it holds a message, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rung {
    pub(super) name: &'static str,
    pub(super) millis: i64,
}

const fn rung(name: &'static str, seconds: i64) -> Rung {
    Rung { name, millis: seconds * 1000 }
}

/// `DESIGN.md` 10, ruling 3. Shortest first.
pub(super) const RUNGS: [Rung; 11] = [
    rung("1s", 1),
    rung("5s", 5),
    rung("15s", 15),
    rung("30s", 30),
    rung("1m", 60),
    rung("2m", 120),
    rung("5m", 300),
    rung("10m", 600),
    rung("15m", 900),
    rung("30m", 1800),
    rung("1h", 3600),
];

/// The longest rung that does not overshoot what is left, or the shortest one; `None` when the message is due.
pub(super) fn next_rung(not_before_ms: i64, now_ms: i64) -> Option<Rung> {
    let left = not_before_ms.saturating_sub(now_ms);
    if left <= 0 {
        return None;
    }
    Some(RUNGS.iter().rev().find(|rung| rung.millis <= left).copied().unwrap_or(RUNGS[0]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_rung_that_fits_is_taken() {
        let table = [
            (0, None),
            (-5, None),
            (1, Some("1s")),
            (999, Some("1s")),
            (1_000, Some("1s")),
            (4_999, Some("1s")),
            (5_000, Some("5s")),
            (14_999, Some("5s")),
            (60_000, Some("1m")),
            (3_599_999, Some("30m")),
            (86_400_000, Some("1h")),
        ];
        for (left, name) in table {
            assert_eq!(next_rung(1_000_000 + left, 1_000_000).map(|rung| rung.name), name, "{left} ms left");
        }
    }

    proptest! {
        #[test]
        fn a_message_hops_until_it_is_due_never_early_and_less_than_a_second_late(delay in 1_i64..=200_000_000) {
            let (mut now, mut hops) = (0, 0);
            while let Some(rung) = next_rung(delay, now) {
                now += rung.millis;
                hops += 1;
                prop_assert!(hops < 100);
            }
            prop_assert!(now >= delay && now < delay + 1_000);
        }
    }
}
