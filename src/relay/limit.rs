//! `CTR_ENTITIES_LIMIT`: how it is read, and how it is shared between alerts and events (`relay.md` 5.3).

/// The limit where none is set, or where what is set is no limit.
pub const DEFAULT_LIMIT: u32 = 100;
/// Above this a start-up warning is due: the first relay advised it as the maximum.
pub const ADVISED_MAX_LIMIT: u32 = 1000;

/// Reads the environment's text: the limit per observable, and a warning for the operator if one is due. A text that
/// is no positive integer means [`DEFAULT_LIMIT`] rather than a refusal to start (`DESIGN.md` 10.12): files of the
/// first relay's users are to work as they are.
pub fn from_setting(text: Option<&str>) -> (u32, Option<String>) {
    let Some(text) = text else {
        return (DEFAULT_LIMIT, None);
    };
    match text.trim().parse::<u32>() {
        Ok(limit @ 1..=ADVISED_MAX_LIMIT) => (limit, None),
        Ok(limit @ 1..) => (
            limit,
            Some(format!("CTR_ENTITIES_LIMIT is {limit}; above {ADVISED_MAX_LIMIT} answers grow large and slow")),
        ),
        _ => (
            DEFAULT_LIMIT,
            Some(format!("CTR_ENTITIES_LIMIT is not a positive integer; {DEFAULT_LIMIT} is used instead")),
        ),
    }
}

/// The limit of one request: a token's claim between 1 and the configured limit lowers it, any other is ignored.
pub fn lowered(configured: u32, claim: Option<u32>) -> u32 {
    claim.filter(|claim| (1..=configured).contains(claim)).unwrap_or(configured)
}

/// How the limit of one observable is shared between alerts and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many alerts to keep, newest first.
    pub alerts: usize,
    /// How many events to take at most, newest first; 0 = no hunting call. For MD5, whose events come first, this is
    /// what they are cut to afterwards (`relay.md` 5.2).
    pub events: usize,
    /// More alerts exist than are kept, also where further pages could not be read: E22 is due.
    pub more_alerts: bool,
}

/// Shares the limit L: `found` alerts (A, without repeats) are known, and `more_exist` says that Defender had further
/// pages that were not read.
pub fn share(limit: u32, found: usize, more_exist: bool) -> Share {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Share { alerts: found.min(limit), events: limit.saturating_sub(found), more_alerts: found > limit || more_exist }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_a_positive_integer_or_100() {
        let rows = [
            (None, 100, false),
            (Some("1"), 1, false),
            (Some(" 250 "), 250, false),
            (Some("1000"), 1000, false),
            (Some("1001"), 1001, true),
            (Some("0"), 100, true),
            (Some("-5"), 100, true),
            (Some("ten"), 100, true),
            (Some("1.5"), 100, true),
            (Some(""), 100, true),
            (Some("99999999999999999999"), 100, true),
        ];
        for (text, limit, warned) in rows {
            let (read, warning) = from_setting(text);
            assert_eq!((read, warning.is_some()), (limit, warned), "{text:?}");
        }
    }

    #[test]
    fn a_claim_lowers_the_limit_and_never_raises_it() {
        for (claim, expected) in [(None, 100), (Some(1), 1), (Some(100), 100), (Some(101), 100), (Some(0), 100)] {
            assert_eq!(lowered(100, claim), expected, "{claim:?}");
        }
    }

    #[test]
    fn alerts_come_first_and_events_fill_what_is_left() {
        let rows = [
            // limit, found, further pages: alerts, events, E22
            (100, 0, false, 0, 100, false),
            (100, 30, false, 30, 70, false),
            (100, 99, false, 99, 1, false),
            (100, 100, false, 100, 0, false),
            (100, 100, true, 100, 0, true),
            (100, 101, false, 100, 0, true),
            (100, 30, true, 30, 70, true),
            (1, 5, false, 1, 0, true),
        ];
        for (limit, found, more_exist, alerts, events, more_alerts) in rows {
            assert_eq!(share(limit, found, more_exist), Share { alerts, events, more_alerts }, "{limit} {found}");
        }
    }
}
