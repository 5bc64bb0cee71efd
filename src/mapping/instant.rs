//! Times as Defender writes them and as the relay sends them (`relay.md` 6.2).

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Reads a time with up to nine decimals; UTC where no zone is given.
pub fn parse(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let zoneless = || text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    text.parse().ok().or_else(zoneless)
}

/// UTC with exactly three decimals and `Z`; further digits are cut, not rounded. `None` for years that have not four
/// digits, which no peer can mean.
pub fn to_text(instant: Timestamp) -> Option<String> {
    let time = TimeZone::UTC.to_datetime(instant);
    (time.year() >= 0).then(|| {
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        )
    })
}

/// A time as received in the form that is sent.
pub fn normalise(text: &str) -> Option<String> {
    to_text(parse(text)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_have_three_decimals_and_further_digits_are_cut() {
        let rows = [
            ("2024-03-05T10:14:02.1234567Z", Some("2024-03-05T10:14:02.123Z")),
            ("2024-03-05T10:14:02.9999999Z", Some("2024-03-05T10:14:02.999Z")),
            ("2024-03-05T10:14:02.5Z", Some("2024-03-05T10:14:02.500Z")),
            ("2024-03-05T10:14:02Z", Some("2024-03-05T10:14:02.000Z")),
            ("2024-03-05T10:14:02.0009", Some("2024-03-05T10:14:02.000Z")),
            ("2024-03-05T12:14:02.25+02:00", Some("2024-03-05T10:14:02.250Z")),
            (" 2024-03-05T10:14:02Z ", Some("2024-03-05T10:14:02.000Z")),
            ("1969-12-31T23:59:59.9995Z", Some("1969-12-31T23:59:59.999Z")),
            ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00.000Z")),
            ("-000001-01-01T00:00:00Z", None),
            ("2024-02-30T00:00:00Z", None),
            ("yesterday", None),
            ("", None),
        ];
        for (text, expected) in rows {
            assert_eq!(normalise(text).as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_time_is_cut_at_the_millisecond(second in -62_000_000_000i64..250_000_000_000, nanosecond in 0i32..1_000_000_000) {
            let exact = Timestamp::new(second, 0).unwrap() + std::time::Duration::from_nanos(nanosecond as u64);
            let text = to_text(exact).unwrap();
            prop_assert_eq!(text.len(), 24);
            let cut = parse(&text).unwrap();
            prop_assert!(cut <= exact && exact.duration_since(cut).as_millis() == 0);
            prop_assert_eq!(normalise(&text), Some(text));
        }

        #[test]
        fn no_text_is_a_panic(text in any::<String>()) {
            let _ = normalise(&text);
        }
    }
}
