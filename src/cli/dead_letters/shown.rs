//! How dead letters look to people and to scripts. Pure.
//!
//! What is in a letter was written by whoever sent it. Control characters are shown as escapes, so that nobody's text
//! moves the cursor of an operator's terminal; credentials, sealed as they are, are not shown at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::broker::DeadLetter;
use crate::job::{self, Host, Job, Notification};

/// The member of a relay job's body that holds sealed credentials.
const CREDENTIALS: &str = "credentials";

/// What stands in its place.
const LEFT_OUT: &str = "(left out)";

/// The longest text that a cell of the table shows, in characters.
const CELL_LIMIT: usize = 40;

/// One line a letter, with a heading.
pub(super) fn table(letters: &[DeadLetter], now: Timestamp) -> String {
    if letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut rows = vec![["ID", "AGE", "QUEUE", "HOST", "KIND", "CAUSE", "ATTEMPTS"].map(str::to_owned)];
    rows.extend(letters.iter().map(|letter| {
        [
            letter.message.id.to_string(),
            age(letter.died, now),
            cell(&letter.queue),
            cell(host(letter).unwrap_or("-")),
            kind(letter).unwrap_or("-").to_owned(),
            cell(&letter.cause.code),
            letter.attempts.to_string(),
        ]
    }));
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// How many there are of each queue and cause, one a line.
pub(super) fn summary(letters: &[DeadLetter]) -> String {
    let mut counts = BTreeMap::<_, u64>::new();
    for letter in letters {
        *counts.entry((&letter.queue, &letter.cause.code)).or_default() += 1;
    }
    counts.into_iter().fold(String::new(), |mut text, ((queue, cause), count)| {
        let _ = writeln!(text, "{count:>8}  {}  {}", plain(queue), cell(cause));
        text
    })
}

/// All of one letter, for people.
pub(super) fn whole(letter: &DeadLetter, now: Timestamp) -> String {
    let message = &letter.message;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}  {value}");
    };
    line("id", &message.id.to_string());
    line("queue", &format!("{} ({})", plain(&letter.queue), message.lane.as_str()));
    line("key", &message.key.as_deref().map_or_else(|| "-".to_owned(), plain));
    line("host", &host(letter).map_or_else(|| "-".to_owned(), plain));
    line("kind", kind(letter).unwrap_or("-"));
    line("cause", &format!("{}: {}", plain(&letter.cause.code), plain(&letter.cause.detail)));
    line("attempts", &letter.attempts.to_string());
    line("published", &letter.published.to_string());
    line("died", &format!("{} ({} ago)", letter.died, age(letter.died, now)));
    line("headers", if message.headers.is_empty() { "-" } else { "" });
    for (name, value) in &message.headers {
        let _ = writeln!(text, "  {}: {}", plain(name), plain(value));
    }
    let _ = writeln!(text, "body        {} bytes", message.body.len());
    let body = body(&message.body);
    match &body {
        Value::String(words) => text.push_str(&plain(words)),
        body => text.push_str(&pretty(body)),
    }
    text.push('\n');
    text
}

/// All of one letter, for scripts: a JSON object and a line break.
pub(super) fn as_json(letter: &DeadLetter) -> String {
    let mut object = row_as_json(letter);
    object["headers"] = json!(letter.message.headers);
    object["body"] = body(&letter.message.body);
    pretty(&object) + "\n"
}

/// A JSON list, one object a letter, without headers and bodies.
pub(super) fn list_as_json(letters: &[DeadLetter]) -> String {
    pretty(&letters.iter().map(row_as_json).collect()) + "\n"
}

fn row_as_json(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.message.id,
        "queue": letter.queue,
        "lane": letter.message.lane.as_str(),
        "key": letter.message.key,
        "host_id": host(letter).and_then(|id| id.parse::<u64>().ok()),
        "kind": kind(letter),
        "cause": { "code": letter.cause.code, "detail": letter.cause.detail },
        "attempts": letter.attempts,
        "published": letter.published,
        "died": letter.died,
    })
}

/// The host that a letter is about, from its key.
fn host(letter: &DeadLetter) -> Option<&str> {
    letter.message.key.as_deref()?.strip_prefix(Host::KEY_PREFIX)
}

/// What kind of job it is, if this build can read it.
fn kind(letter: &DeadLetter) -> Option<&'static str> {
    let body = &letter.message.body;
    if letter.queue == job::HOSTS.name {
        Host::decode(body).ok().map(|host| host.kind.as_str())
    } else if letter.queue == job::RELAY.name {
        Job::decode(body).ok().map(|job| job.kind())
    } else if letter.queue == job::NOTIFY.name {
        Notification::decode(body).ok().map(|_| Notification::KIND)
    } else {
        None
    }
}

/// A body without its credentials: JSON as it is, other text as a string. What is neither, or cannot be told to be free
/// of credentials, is not shown.
fn body(bytes: &[u8]) -> Value {
    if let Ok(mut value) = serde_json::from_slice(bytes) {
        leave_out_credentials(&mut value);
        return value;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(CREDENTIALS) => text.into(),
        Ok(_) => "(not shown: it is not JSON and may hold credentials)".into(),
        Err(_) => "(not shown: it is not text)".into(),
    }
}

fn leave_out_credentials(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if name == CREDENTIALS {
                    *member = LEFT_OUT.into();
                } else {
                    leave_out_credentials(member);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out_credentials),
        _ => {}
    }
}

/// Indented JSON. Its writer escapes control characters up to U+001F; the others are escaped here, which is JSON too,
/// because they can only stand inside strings.
fn pretty(value: &Value) -> String {
    let text = format!("{value:#}");
    text.chars().fold(String::with_capacity(text.len()), |mut text, c| {
        if is_unseen(c) && c != '\n' {
            let _ = c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(text, "\\u{unit:04x}"));
        } else {
            text.push(c);
        }
        text
    })
}

/// Text on one line, its control characters as escapes.
fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut text, c| {
        if is_unseen(c) {
            text.extend(c.escape_default())
        } else {
            text.push(c)
        }
        text
    })
}

/// Controls a terminal, or changes the order in which it shows what follows.
fn is_unseen(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn cell(text: &str) -> String {
    let text = plain(text);
    match text.char_indices().nth(CELL_LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The time since `then`, in its two largest units: `3d 4h`, `5m 12s`.
fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = u64::try_from(now.duration_since(then).as_secs()).unwrap_or(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, hours, ..) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::broker::{Cause, Headers, Lane, Message};
    use crate::job::HostKind;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn letter(queue: &str, body: impl Into<Bytes>) -> DeadLetter {
        DeadLetter {
            message: Message { id: uuid::Uuid::nil(), ..Message::new(body.into()) },
            queue: queue.to_owned(),
            cause: Cause { code: "attempts".to_owned(), detail: "Cognito answered 500".to_owned() },
            attempts: 10,
            published: now() - Duration::from_secs(7_200),
            died: now() - Duration::from_secs(312),
        }
    }

    fn host_letter() -> DeadLetter {
        let host = Host {
            event_id: "e-1".to_owned(),
            sender: "webhook".to_owned(),
            host_id: 42,
            kind: HostKind::TagAdded,
            occurred_at: now(),
            received_at: now(),
            hint: None,
            actor: Some("an\u{1b}[2Jalyst\u{9b}2J\u{202e}".to_owned()),
            progress: None,
        };
        let mut letter = letter("hosts", host.encode());
        letter.message.lane = Lane::Urgent;
        letter.message.key = Some(host.key());
        letter.message.headers = Headers::from([("traceparent".to_owned(), "00-1-2-01".to_owned())]);
        letter
    }

    #[test]
    fn the_table_has_a_line_for_each_letter() {
        assert_eq!(table(&[], now()), "no dead letters\n");
        let expected = "\
ID                                    AGE     QUEUE  HOST  KIND            CAUSE     ATTEMPTS
00000000-0000-0000-0000-000000000000  5m 12s  hosts  42    host.tag.added  attempts  10
00000000-0000-0000-0000-000000000000  5m 12s  relay  -     -               attempts  10
";
        assert_eq!(table(&[host_letter(), letter("relay", "{")], now()), expected);
    }

    #[test]
    fn the_summary_counts_by_queue_and_cause() {
        let expected = "       2  hosts  attempts\n       1  relay  attempts\n";
        assert_eq!(summary(&[host_letter(), letter("relay", ""), host_letter()]), expected);
    }

    #[test]
    fn all_of_a_letter_is_shown() {
        let text = whole(&host_letter(), now());
        for part in [
            "id          00000000-0000-0000-0000-000000000000\n",
            "queue       hosts (urgent)\n",
            "key         host-42\n",
            "host        42\n",
            "kind        host.tag.added\n",
            "cause       attempts: Cognito answered 500\n",
            "attempts    10\n",
            "published   2026-11-22T10:00:00Z\n",
            "died        2026-11-22T11:54:48Z (5m 12s ago)\n",
            "headers     \n  traceparent: 00-1-2-01\n",
            "\n  \"event_id\": \"e-1\",\n",
            "\n  \"v\": 1\n}\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let value: Value = serde_json::from_str(&as_json(&host_letter())).unwrap();
        assert_eq!((&value["host_id"], &value["kind"]), (&json!(42), &json!("host.tag.added")));
        assert_eq!(
            (&value["body"]["event_id"], &value["headers"]["traceparent"]),
            (&json!("e-1"), &json!("00-1-2-01"))
        );
        assert_eq!(value["body"]["actor"], "an\u{1b}[2Jalyst\u{9b}2J\u{202e}");
        let list: Value = serde_json::from_str(&list_as_json(&[host_letter()])).unwrap();
        assert_eq!((&list[0]["attempts"], &list[0]["body"]), (&json!(10), &Value::Null));
    }

    #[test]
    fn nobodys_text_moves_the_cursor() {
        let mut odd = host_letter();
        odd.cause = Cause { code: "a\u{1b}[1m".repeat(30), detail: "one\ntwo\r\u{85}".to_owned() };
        odd.message.key = Some("host-\u{7}".to_owned());
        odd.message.headers = Headers::from([("na\u{8}me".to_owned(), "va\u{1b}lue".to_owned())]);
        let text = letter("hosts", "not JSON \u{1b}]0;title\u{7}");
        for shown in [
            table(&[odd.clone()], now()),
            whole(&odd, now()),
            as_json(&odd),
            list_as_json(&[odd.clone()]),
            summary(&[odd]),
            whole(&text, now()),
            as_json(&text),
        ] {
            assert!(!shown.chars().any(|c| is_unseen(c) && c != '\n'), "{shown:?}");
        }
    }

    #[test]
    fn credentials_are_not_shown_sealed_or_not() {
        let job = br#"{"v":1,"job":"observe","credentials":"k1.pl4nted","limit":1,"observables":[["ip","1.2.3.4"]]}"#;
        let deep = br#"[{"a":{"credentials":{"secret":"pl4nted"}}}]"#;
        let torn = br#"{"v":1,"job":"observe","credentials":"k1.pl4nted","#;
        for body in [&job[..], deep, torn] {
            let letter = letter("relay", Bytes::copy_from_slice(body));
            for shown in [whole(&letter, now()), as_json(&letter), list_as_json(std::slice::from_ref(&letter))] {
                assert!(!shown.contains("pl4nted"), "{shown}");
            }
        }
        let shown = whole(&letter("relay", &job[..]), now());
        assert!(shown.contains("1.2.3.4") && shown.contains(LEFT_OUT), "{shown}");
        assert!(whole(&letter("relay", &b"\xff\xfe"[..]), now()).contains("not text"));
        assert!(whole(&letter("relay", "just words"), now()).ends_with("just words\n"));
    }

    #[test]
    fn an_age_has_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (3_599, "59m 59s"),
            (3_600, "1h 0m"),
            (86_399, "23h 59m"),
            (86_400, "1d 0h"),
            (280_000, "3d 5h"),
        ] {
            assert_eq!(age(now() - Duration::from_secs(seconds), now()), expected);
        }
        assert_eq!(age(now() + Duration::from_secs(5), now()), "0s", "a clock that is ahead");
    }
}
