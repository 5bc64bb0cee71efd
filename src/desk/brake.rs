//! The emergency brake and the cap that replaces the setting for a time, as everybody sees them.
//!
//! They are two retained values, so that two commands at once never write over each other. A brake that this build
//! cannot read counts as put on: the other reading would cut machines off against somebody's word.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::job;

/// Whether isolations may be posted, and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Brake {
    /// No isolation is posted in the whole deployment. Releases go on.
    pub paused: bool,
    /// Who set it, as the command was told, or [`FIRST_SWEEP`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Since when it is as it is; `None` while nobody ever set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Replaces the setting of isolations per hour for a time. It may be over already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<Cap>,
}

/// Who puts the brake on when a start finds too many untouched block tags.
pub const FIRST_SWEEP: &str = "first sweep";

/// The cap of isolations per hour, replaced for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// Isolations in any hour.
    pub per_hour: u32,
    /// When it was set.
    pub at: Timestamp,
    /// Until when it holds.
    pub until: Timestamp,
    /// Who set it.
    pub by: String,
}

/// The brake as it is retained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lever {
    pub(super) paused: bool,
    pub(super) by: String,
    pub(super) at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

impl Lever {
    pub(super) fn encode(&self) -> Bytes {
        job::encode(self)
    }
}

impl Cap {
    pub(super) fn encode(&self) -> Bytes {
        job::encode(self)
    }
}

impl Brake {
    /// Reads the two retained values.
    pub(super) fn read(lever: Option<&Bytes>, cap: Option<&Bytes>) -> Self {
        let cap = cap.and_then(|cap| match job::decode(cap) {
            Ok(cap) => Some(cap),
            Err(error) => {
                tracing::error!(error = %error, "the cap that was set cannot be read; the setting holds");
                None
            }
        });
        match lever.map(|lever| job::decode::<Lever>(lever)) {
            None => Self { cap, ..Self::default() },
            Some(Ok(Lever { paused, by, at, reason })) => Self { paused, by: Some(by), at: Some(at), reason, cap },
            Some(Err(error)) => {
                tracing::error!(error = %error, "the brake cannot be read; it counts as put on");
                let reason = Some(format!("the brake cannot be read by this version: {error}"));
                Self { paused: true, reason, cap, ..Self::default() }
            }
        }
    }

    /// Isolations in any hour at `now`, where the setting is `setting`.
    #[must_use]
    pub fn per_hour(&self, setting: u32, now: Timestamp) -> u32 {
        self.cap_now(now).map_or(setting, |cap| cap.per_hour)
    }

    /// The cap that replaces the setting at `now`, if one does.
    #[must_use]
    pub fn cap_now(&self, now: Timestamp) -> Option<&Cap> {
        self.cap.as_ref().filter(|cap| cap.until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_values_return_as_they_were_written() {
        let at = time("2026-03-01T10:00:00Z");
        let lever = Lever { paused: true, by: "ann".to_owned(), at, reason: Some("drill".to_owned()) };
        let cap = Cap { per_hour: 50, at, until: time("2026-03-01T11:00:00Z"), by: "ann".to_owned() };
        let brake = Brake::read(Some(&lever.encode()), Some(&cap.encode()));
        assert!(brake.paused);
        assert_eq!((brake.by.as_deref(), brake.at, brake.reason.as_deref()), (Some("ann"), Some(at), Some("drill")));
        assert_eq!(brake.cap, Some(cap));
    }

    #[test]
    fn nothing_retained_means_that_isolations_run() {
        assert_eq!(Brake::read(None, None), Brake::default());
        assert!(!Brake::default().paused);
    }

    #[test]
    fn a_brake_that_cannot_be_read_is_on() {
        for body in ["", "{", "{\"v\":1}", "{\"v\":99,\"paused\":false}"] {
            let brake = Brake::read(Some(&Bytes::from_static(body.as_bytes())), None);
            assert!(brake.paused && brake.reason.is_some(), "{body}: {brake:?}");
        }
    }

    #[test]
    fn a_cap_holds_until_it_is_over() {
        let at = time("2026-03-01T10:00:00Z");
        let cap = Cap { per_hour: 50, at, until: time("2026-03-01T11:00:00Z"), by: "ann".to_owned() };
        let brake = Brake { cap: Some(cap), ..Brake::default() };
        assert_eq!(brake.per_hour(10, time("2026-03-01T10:59:59Z")), 50);
        assert_eq!(brake.per_hour(10, time("2026-03-01T11:00:00Z")), 10);
        assert_eq!(Brake::default().per_hour(10, at), 10);
    }
}
