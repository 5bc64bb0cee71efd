//! Faults on request: what goes wrong, for which calls, how often.
//!
//! A rule is either "the next N matching calls" or "each matching call with probability p", the latter by a seeded
//! generator so that a run can be repeated. The first rule that fires decides; a [`Fault::Slow`] delays and lets the
//! next rule decide. How a fault is carried out is the server's business; this module only chooses.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What goes wrong with a call.
///
/// As JSON: `{"kind": "refuse", "status": 503}`, `{"kind": "cut", "after_bytes": 20}`, `{"kind": "hang"}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The service's own error for this status: its JSON, or HTML for 502 to 504 as a front door sends it. A 429 made
    /// this way has no `Retry-After`.
    Refuse {
        /// 400 to 599.
        status: u16,
    },
    /// The service's own 429.
    Throttle {
        /// Seconds in `Retry-After`; absent: no such header.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// Exactly this answer.
    Answer {
        /// 200 to 599.
        status: u16,
        /// Names and values; without `content-type` the answer has none.
        #[serde(default)]
        headers: Vec<(String, String)>,
        /// As it is sent.
        #[serde(default)]
        body: String,
    },
    /// The true answer, but the connection ends in its middle.
    Cut {
        /// Bytes of the body that are still sent; absent: not even the status line.
        #[serde(default)]
        after_bytes: Option<usize>,
    },
    /// The connection is reset without an answer.
    Reset,
    /// No answer; the connection stays open until the client gives up or the simulator stops.
    Hang,
    /// The true answer, later.
    Slow {
        /// How much later, in milliseconds.
        ms: u64,
    },
    /// The true answer's first half, as if it were whole.
    MalformedJson,
    /// The true answer's status and no body.
    EmptyBody,
    /// The true answer under another content type.
    ContentType {
        /// Like `text/plain`.
        value: String,
    },
    /// The true answer followed by blanks, so that it stays valid JSON.
    Gigantic {
        /// How many blanks.
        bytes: u64,
    },
    /// The call is carried out, and `then` happens to its answer: a write whose outcome the client does not learn.
    Applied {
        /// Any other fault; a [`Fault::Slow`] delays the answer of what is done already.
        then: Box<Fault>,
    },
    /// A redirect to somewhere else.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        #[serde(default = "found")]
        status: u16,
        /// Where to.
        location: String,
    },
}

fn found() -> u16 {
    302
}

impl Fault {
    /// [`Fault::Refuse`].
    pub fn refuse(status: u16) -> Self {
        Self::Refuse { status }
    }

    /// [`Fault::Throttle`] with `Retry-After` in seconds, or without it.
    pub fn throttle(retry_after: impl Into<Option<u64>>) -> Self {
        Self::Throttle { retry_after: retry_after.into() }
    }

    /// [`Fault::Slow`].
    pub fn slow(delay: Duration) -> Self {
        Self::Slow { ms: delay.as_millis().try_into().unwrap_or(u64::MAX) }
    }

    /// [`Fault::Cut`] after some bytes of the body.
    pub fn cut_after(bytes: usize) -> Self {
        Self::Cut { after_bytes: Some(bytes) }
    }

    /// [`Fault::Applied`].
    pub fn applied(then: Fault) -> Self {
        Self::Applied { then: Box::new(then) }
    }

    /// [`Fault::Cut`] before the answer.
    pub fn cut() -> Self {
        Self::Cut { after_bytes: None }
    }
}

/// Which calls a fault is for. Every member that is present must agree; an empty one matches every call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matcher {
    /// The name calls are counted under, or the template of the route; see [`Control::calls`](super::Control::calls).
    pub route: Option<String>,
    /// `GET`, `POST`, ...
    pub method: Option<String>,
    /// A part of the path or of the hunting query.
    pub contains: Option<String>,
    /// Whose token the call carries, or whose it asks for.
    pub tenant: Option<String>,
}

impl Matcher {
    /// Every call.
    pub fn any() -> Self {
        Self::default()
    }

    /// Calls whose path, or whose hunting query, contains `text`.
    pub fn containing(text: impl Into<String>) -> Self {
        Self { contains: Some(text.into()), ..Self::default() }
    }

    /// The same calls, but only those of one tenant.
    #[must_use]
    pub fn of_tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    fn matches(&self, call: &Call<'_>) -> bool {
        let route = self.route.as_deref().is_none_or(|route| call.name == route || call.template == route);
        let method = self.method.as_deref().is_none_or(|method| method.eq_ignore_ascii_case(call.method));
        let tenant = self.tenant.as_deref().is_none_or(|tenant| call.tenant == Some(tenant));
        let contains = self
            .contains
            .as_deref()
            .is_none_or(|text| call.path.contains(text) || call.hunting.is_some_and(|query| query.contains(text)));
        route && method && tenant && contains
    }
}

impl From<&str> for Matcher {
    /// The calls counted under this name: `token`, `alerts`, `files`, `machines`, `hunting`, or a route's template.
    fn from(route: &str) -> Self {
        Self { route: Some(route.to_owned()), ..Self::default() }
    }
}

/// What a matcher looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) name: &'a str,
    pub(super) template: &'a str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) hunting: Option<&'a str>,
    pub(super) tenant: Option<&'a str>,
}

#[derive(Debug)]
enum Occasion {
    Next { times: u32 },
    Rate { probability: f64, random: Random },
}

/// The rules in force, oldest first.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(Matcher, Fault, Occasion)>);

impl Faults {
    pub(super) fn next(&mut self, matcher: Matcher, fault: Fault, times: u32) {
        self.0.push((matcher, fault, Occasion::Next { times }));
    }

    pub(super) fn rate(&mut self, matcher: Matcher, fault: Fault, probability: f64, seed: u64) {
        self.0.push((matcher, fault, Occasion::Rate { probability, random: Random(seed) }));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// How long `call` is delayed and what befalls it then.
    pub(super) fn choose(&mut self, call: &Call<'_>) -> (Duration, Option<Fault>) {
        let mut delay = Duration::ZERO;
        let mut chosen = None;
        for (matcher, fault, occasion) in &mut self.0 {
            if !matcher.matches(call) {
                continue;
            }
            let fires = match occasion {
                Occasion::Next { times } => {
                    let fires = *times > 0;
                    *times = times.saturating_sub(1);
                    fires
                }
                Occasion::Rate { probability, random } => random.fraction() < *probability,
            };
            if !fires {
                continue;
            }
            if let Fault::Slow { ms } = fault {
                delay += Duration::from_millis(*ms);
            } else {
                chosen = Some(fault.clone());
                break;
            }
        }
        self.0.retain(|(_, _, occasion)| !matches!(occasion, Occasion::Next { times: 0 }));
        (delay, chosen)
    }
}

/// A small generator of repeatable numbers (SplitMix64). Not for secrets.
#[derive(Debug, Clone, Default)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// The next 64 bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// At least 0, less than 1.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call<'a>(name: &'a str, path: &'a str, tenant: &'a str) -> Call<'a> {
        Call { name, template: "files/{id}/alerts", method: "GET", path, hunting: None, tenant: Some(tenant) }
    }

    #[test]
    fn a_fault_for_the_next_two_calls_befalls_two_matching_calls_and_no_other() {
        let mut faults = Faults::default();
        faults.next("alerts".into(), Fault::refuse(500), 2);
        let alerts = call("alerts", "/api/files/x/alerts", "t1");
        assert_eq!(faults.choose(&call("files", "/api/files/x", "t1")).1, None);
        assert_eq!(faults.choose(&alerts).1, Some(Fault::refuse(500)));
        assert_eq!(faults.choose(&alerts).1, Some(Fault::refuse(500)));
        assert_eq!(faults.choose(&alerts).1, None);
    }

    #[test]
    fn matchers_look_at_name_template_path_and_tenant() {
        let target = call("alerts", "/api/files/abc/alerts", "t1");
        for (matcher, expected) in [
            (Matcher::any(), true),
            (Matcher::from("alerts"), true),
            (Matcher::from("files/{id}/alerts"), true),
            (Matcher::from("files"), false),
            (Matcher::containing("/abc/"), true),
            (Matcher::containing("/abd/"), false),
            (Matcher::any().of_tenant("t1"), true),
            (Matcher::any().of_tenant("t2"), false),
            (Matcher { method: Some("get".into()), ..Matcher::any() }, true),
            (Matcher { method: Some("post".into()), ..Matcher::any() }, false),
        ] {
            assert_eq!(matcher.matches(&target), expected, "{matcher:?}");
        }
    }

    #[test]
    fn slowness_adds_up_with_another_fault() {
        let mut faults = Faults::default();
        faults.next(Matcher::any(), Fault::slow(Duration::from_millis(30)), 1);
        faults.next(Matcher::any(), Fault::Hang, 1);
        assert_eq!(faults.choose(&call("files", "/", "t1")), (Duration::from_millis(30), Some(Fault::Hang)));
        assert_eq!(faults.choose(&call("files", "/", "t1")), (Duration::ZERO, None));
    }

    #[test]
    fn a_rate_repeats_with_its_seed_and_comes_near_its_probability() {
        let run = |seed| {
            let mut faults = Faults::default();
            faults.rate(Matcher::any(), Fault::Reset, 0.3, seed);
            (0..1_000).map(|_| faults.choose(&call("files", "/", "t1")).1.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let hits = run(7).into_iter().filter(|&hit| hit).count();
        assert!((240..360).contains(&hits), "{hits}");
    }

    #[test]
    fn faults_have_a_readable_json_form() {
        for (text, fault) in [
            (r#"{"kind":"throttle","retry_after":3}"#, Fault::throttle(3)),
            (r#"{"kind":"throttle"}"#, Fault::throttle(None)),
            (r#"{"kind":"cut","after_bytes":20}"#, Fault::cut_after(20)),
            (r#"{"kind":"applied","then":{"kind":"reset"}}"#, Fault::applied(Fault::Reset)),
            (
                r#"{"kind":"redirect","location":"http://203.0.113.1/"}"#,
                Fault::Redirect { status: 302, location: "http://203.0.113.1/".into() },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Fault>(text).unwrap(), fault, "{text}");
        }
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"explode"}"#).is_err());
    }
}
