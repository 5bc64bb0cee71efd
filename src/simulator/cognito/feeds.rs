//! What the brain tells of what happened: audits (call 9), and the event feeds of v3 (call 10; `cognito.md` 3.4, 4.2).

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::answer::{Answer, PLAIN_JSON};
use super::host::whole;
use super::{Call, field_error};

/// Events of one answer when nothing is said, and the most that may be asked for.
const DEFAULT_LIMIT: usize = 500;
const LIMIT: usize = 1_000;

/// The name the brain gives itself.
pub(super) const BRAIN_NAME: &str = "brain.corp.example";

/// What somebody did.
#[derive(Debug, Clone)]
pub(super) struct Audit {
    pub(super) id: u64,
    pub(super) at: Timestamp,
    pub(super) user: String,
    pub(super) message: String,
    pub(super) success: bool,
    pub(super) about: About,
}

/// What an audit is about: what v3 calls its object and action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum About {
    /// A host's tags.
    Tags { host: u64, old: Vec<String>, new: Vec<String> },
    /// One tag on many hosts.
    Tag { hosts: Vec<u64>, tag: String, added: bool },
    /// Anything else.
    Other,
}

/// A host's scores changed.
#[derive(Debug, Clone)]
pub(super) struct Scoring {
    pub(super) id: u64,
    pub(super) at: Timestamp,
    pub(super) host: u64,
    pub(super) name: String,
    pub(super) address: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) threat: u8,
    pub(super) certainty: u8,
    pub(super) urgency: u8,
    pub(super) privilege: Option<u8>,
    pub(super) severity: &'static str,
    pub(super) decreased: bool,
}

/// An entry of the appliance's audits, as a list and as syslog have it.
#[derive(Debug, Serialize)]
pub(super) struct Entry<'a> {
    user: &'a str,
    role: &'static str,
    source_ip: &'static str,
    headend_addr: &'static str,
    dvchost: &'static str,
    version: &'static str,
    result: &'static str,
    message: &'a str,
    vectra_timestamp: String,
}

#[derive(Serialize)]
struct Audits<'a> {
    start: &'a str,
    end: &'a str,
    audits: Vec<Entry<'a>>,
    #[serde(rename = "_meta")]
    meta: Meta,
}

#[derive(Serialize)]
struct Meta {
    level: &'static str,
    message: &'static str,
}

impl Audit {
    /// As the appliance tells it.
    pub(super) fn entry(&self) -> Entry<'_> {
        Entry {
            user: &self.user,
            role: "Security Analyst",
            source_ip: "198.51.100.77",
            headend_addr: "192.0.2.4",
            dvchost: BRAIN_NAME,
            version: "9.4",
            result: self.result(),
            message: &self.message,
            vectra_timestamp: self.at.as_second().to_string(),
        }
    }

    /// The host it is about: the first, or 0 for none.
    pub(super) fn host(&self) -> u64 {
        match &self.about {
            About::Tags { host, .. } => *host,
            About::Tag { hosts, .. } => hosts.first().copied().unwrap_or(0),
            About::Other => 0,
        }
    }

    fn result(&self) -> &'static str {
        if self.success { "success" } else { "failure" }
    }

    /// As the hosted flavour tells it.
    pub(super) fn event(&self) -> Value {
        let (object, action) = match &self.about {
            About::Tags { .. } => ("host_tags", "updated"),
            About::Tag { added: true, .. } => ("host_tag", "created"),
            About::Tag { added: false, .. } => ("host_tag", "deleted"),
            About::Other if self.message == "log in" => ("user", "login"),
            About::Other => ("setting", "updated"),
        };
        json!({
            "id": self.id,
            "user_id": 17,
            "username": self.user,
            "user_type": "SAML",
            "api_client_id": null,
            "user_role": "Security Analyst",
            "version": "2026.02.0",
            "source_ip": "198.51.100.77",
            "event_timestamp": whole(self.at),
            "message": self.message,
            "result_status": self.result(),
            "event_data": {},
            "event_object": object,
            "event_action": action,
        })
    }
}

impl Scoring {
    /// As the hosted flavour tells it.
    pub(super) fn event(&self) -> Value {
        json!({
            "id": self.id,
            "entity_id": self.host,
            "name": self.name,
            "breadth_contrib": 1,
            "importance": 1,
            "type": "host",
            "is_prioritized": self.urgency >= 50,
            "severity": self.severity,
            "urgency_score": self.urgency,
            "velocity_contrib": 2,
            "attack_rating": self.urgency / 10,
            "active_detection_types": ["Hidden HTTPS Tunnel", "RPC Targeted Recon"],
            "category": "HOST_SCORING",
            "url": format!("https://{BRAIN_NAME}/hosts/{}", self.host),
            "event_timestamp": whole(self.at),
            "last_detection": {
                "id": 88_000 + self.host,
                "type": "RPC Targeted Recon",
                "url": format!("https://{BRAIN_NAME}/detections/{}", 88_000 + self.host),
            },
        })
    }

    /// As the appliance's syslog tells it (`cognito.md` 4.2). Every second host's nested members are JSON inside texts,
    /// as part of the samples has them.
    pub(super) fn syslog(&self) -> Value {
        let nested = |value: Value| if self.host.is_multiple_of(2) { Value::String(value.to_string()) } else { value };
        json!({
            "version": "9.4",
            "host_id": self.host,
            "headend_addr": "192.0.2.4",
            "host_name": self.name,
            "dvchost": BRAIN_NAME,
            "host_ip": self.address,
            "threat": self.threat,
            "certainty": self.certainty,
            "privilege": self.privilege.unwrap_or(0),
            "score_decreases": self.decreased,
            "href": format!("https://{BRAIN_NAME}/hosts/{}", self.host),
            "host_roles": "",
            "src_key_asset": false,
            "dst_key_asset": false,
            "category": "HOST SCORING",
            "quadrant": self.severity.to_lowercase(),
            "sensor": "sensor-hq-01",
            "detection_profile": nested(json!({
                "name": "external_adversary", "vname": "External Adversary", "scoringDetections": ["RPC Targeted Recon"],
            })),
            "host_groups": nested(json!([])),
            "tags": nested(json!(self.tags)),
            "account_access_history": nested(json!([])),
            "service_access_history": nested(json!([])),
            "mac_address": null,
            "mac_vendor": null,
            "last_detection_type": "RPC Targeted Recon",
            "vectra_timestamp": self.at.as_second().to_string(),
        })
    }
}

/// A list of tags as the audit text prints it: like a list of Python's.
pub(super) fn printed(tags: &[String]) -> String {
    let tags: Vec<String> = tags.iter().map(|tag| quoted(tag)).collect();
    format!("[{}]", tags.join(", "))
}

/// A text as Python prints it: in single quotes, or in double ones if it holds a single and no double one.
fn quoted(text: &str) -> String {
    use std::fmt::Write as _;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut printed = String::from(quote);
    for letter in text.chars() {
        match letter {
            '\\' => printed.push_str("\\\\"),
            '\n' => printed.push_str("\\n"),
            '\r' => printed.push_str("\\r"),
            '\t' => printed.push_str("\\t"),
            letter if letter == quote => {
                printed.push('\\');
                printed.push(letter);
            }
            letter if letter.is_control() => {
                let _ = write!(printed, "\\x{:02x}", u32::from(letter));
            }
            letter => printed.push(letter),
        }
    }
    printed.push(quote);
    printed
}

/// Call 9: whole days, both ends included.
pub(super) fn audits(call: &Call<'_>) -> Result<Answer, Answer> {
    call.parameters(&["start", "end"])?;
    let day = |name: &str, otherwise: Date| {
        let read = |text: &str| {
            text.parse::<Date>().map_err(|_| field_error(name, "Date has wrong format. Use YYYY-MM-DD (simulated)."))
        };
        call.parameter(name).map_or(Ok(otherwise), read)
    };
    let (start, end) = (day("start", Date::ZERO)?, day("end", Date::MAX)?);
    let midnight = |day: Date| day.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |zoned| zoned.timestamp());
    let from = if start == Date::ZERO { Timestamp::MIN } else { midnight(start) };
    let until = end.tomorrow().map_or(Timestamp::MAX, midnight);
    let state = call.state();
    let entries = state.audits.iter().filter(|audit| from <= audit.at && audit.at < until).map(Audit::entry).collect();
    let body = Audits {
        start: call.parameter("start").unwrap_or("0001-01-01"),
        end: call.parameter("end").unwrap_or("9999-12-31"),
        audits: entries,
        meta: Meta { level: "success", message: "Success." },
    };
    let text = serde_json::to_string(&body).expect("texts are JSON");
    Ok(Answer::text(200, PLAIN_JSON, text))
}

/// Call 10, audits.
pub(super) fn audit_events(call: &Call<'_>) -> Result<Answer, Answer> {
    let own = ["user_id", "event_object", "event_action"];
    let window = Window::read(call, &own)?;
    let state = call.state();
    let asked: Vec<(&str, &str)> = own.iter().filter_map(|name| Some((*name, call.parameter(name)?))).collect();
    let fits = |audit: &Audit| {
        let event = audit.event();
        asked.iter().all(|(name, wanted)| match &event[*name] {
            Value::String(text) => text == wanted,
            other => other.to_string().as_str() == *wanted,
        })
    };
    let passing = |audit: &&Audit| window.holds(audit.at) && (asked.is_empty() || fits(audit));
    let found = state.audits.iter().skip_while(|audit| audit.id < window.from).filter(passing);
    let events = found.map(|audit| (audit.id, audit)).collect::<Vec<_>>();
    Ok(window.answer(&events, state.next_audit, |audit| audit.event()))
}

/// Call 10, scores. Decreases are left out unless asked for.
pub(super) fn score_events(call: &Call<'_>) -> Result<Answer, Answer> {
    let window = Window::read(call, &["type", "include_score_decreases"])?;
    match call.parameter("type") {
        None | Some("host" | "account") => {}
        Some(_) => {
            return Err(field_error("type", "Invalid value for parameter 'type'. Valid values: ('account', 'host')."));
        }
    }
    let accounts = call.parameter("type") == Some("account");
    let decreases = call.parameter("include_score_decreases").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let state = call.state();
    let passing = |scoring: &&Scoring| !accounts && (decreases || !scoring.decreased) && window.holds(scoring.at);
    let found = state.scorings.iter().skip_while(|scoring| scoring.id < window.from).filter(passing);
    let events = found.map(|scoring| (scoring.id, scoring)).collect::<Vec<_>>();
    Ok(window.answer(&events, state.next_scoring, |scoring| scoring.event()))
}

/// Which part of a feed is asked for.
struct Window {
    /// The checkpoint: the first id.
    from: u64,
    limit: usize,
    since: Timestamp,
    until: Timestamp,
}

impl Window {
    fn read(call: &Call<'_>, more: &[&str]) -> Result<Self, Answer> {
        let mut known = vec!["from", "limit", "event_timestamp_gte", "event_timestamp_lte"];
        known.extend(more);
        call.parameters(&known)?;
        let number = |name: &str, otherwise: u64| {
            let read = |text: &str| text.parse().map_err(|_| field_error(name, "A valid integer is required."));
            call.parameter(name).map_or(Ok(otherwise), read)
        };
        let time = |name: &str, otherwise: Timestamp| {
            let read = |text: &str| text.parse().map_err(|_| field_error(name, "Enter a valid date/time."));
            call.parameter(name).map_or(Ok(otherwise), read)
        };
        let limit = number("limit", DEFAULT_LIMIT as u64)?;
        let limit = usize::try_from(limit).ok().filter(|limit| (1..=LIMIT).contains(limit));
        Ok(Self {
            from: number("from", 0)?,
            limit: limit.ok_or_else(|| field_error("limit", &format!("Not between 1 and {LIMIT} (simulated).")))?,
            since: time("event_timestamp_gte", Timestamp::MIN)?,
            until: time("event_timestamp_lte", Timestamp::MAX)?,
        })
    }

    fn holds(&self, at: Timestamp) -> bool {
        // Times are told by the second, so they are compared so.
        let at = at.checked_sub(SignedDuration::from_nanos(i64::from(at.subsec_nanosecond()))).unwrap_or(at);
        self.since <= at && at <= self.until
    }

    /// The first of `events` and the checkpoint behind them; `next` is the id that the feed gives next.
    fn answer<T>(&self, events: &[(u64, &T)], next: u64, show: impl Fn(&T) -> Value) -> Answer {
        let given = &events[..events.len().min(self.limit)];
        let remaining = events.len() - given.len();
        let checkpoint = match given.last() {
            Some((last, _)) if remaining > 0 => last + 1,
            _ => next.max(self.from),
        };
        let shown: Vec<Value> = given.iter().map(|(_, event)| show(event)).collect();
        let body = json!({"events": shown, "next_checkpoint": checkpoint, "remaining_count": remaining});
        Answer::json(200, PLAIN_JSON, &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_tags_are_printed_as_python_prints_them() {
        for (tags, expected) in [
            (vec![], "[]"),
            (vec!["VIP", "block"], "['VIP', 'block']"),
            (vec!["it's"], "[\"it's\"]"),
            (vec!["say \"no\""], "['say \"no\"']"),
            (vec!["it's \"odd\""], "['it\\'s \"odd\"']"),
            (vec!["a\\b", "tab\there"], "['a\\\\b', 'tab\\there']"),
            (vec!["Überprüft ✓"], "['Überprüft ✓']"),
        ] {
            let tags: Vec<String> = tags.into_iter().map(str::to_owned).collect();
            assert_eq!(printed(&tags), expected);
        }
    }
}
