//! What Defender's answer to a request for isolation or release means (`cognito.md` 5.7, `defender.md` 5.0 and 7.3).

use super::reason::Reason;

/// What an answer other than 201 means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Another request is open: read the actions again.
    AlreadyOpen,
    /// Refused for good.
    Refused,
    /// The bridge lacks a permission or the tenant a licence: an operator has to act.
    Forbidden,
    /// Defender does not know the machine.
    NoMachine,
    /// Nobody knows whether the request was taken: read the actions before asking again.
    Unknown,
    /// It was not taken, and may be later.
    Transient,
}

impl Answer {
    /// Of an HTTP answer: its status, and code and message of the error in its body as far as there are any.
    #[must_use]
    pub fn of(status: u16, code: &str, message: &str) -> Self {
        let says = |words: &str| message.to_ascii_lowercase().contains(words);
        match status {
            400 | 409 if code.eq_ignore_ascii_case("ActiveRequestAlreadyExists") || says("already in progress") => {
                Self::AlreadyOpen
            }
            403 => Self::Forbidden,
            // No licence, or the service is not active (`defender.md` 5.0); any other 401 is a token that ended.
            401 if says("reason of failure") => Self::Forbidden,
            401 | 429 => Self::Transient,
            404 => Self::NoMachine,
            408 => Self::Unknown,
            400..=499 => Self::Refused,
            // Also a success that cannot be read, and a redirect that nobody expects: something may have been done.
            _ => Self::Unknown,
        }
    }

    /// Of a request that got no answer. `sent`: whether it may have reached Defender.
    #[must_use]
    pub const fn of_silence(sent: bool) -> Self {
        if sent { Self::Unknown } else { Self::Transient }
    }

    /// Why the request failed for good, where it did.
    #[must_use]
    pub const fn failure(self) -> Option<Reason> {
        match self {
            Self::Refused => Some(Reason::Refused),
            Self::Forbidden => Some(Reason::Forbidden),
            Self::NoMachine => Some(Reason::NoMachine),
            Self::AlreadyOpen | Self::Unknown | Self::Transient => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of 5.7, and the errors of `defender.md` 5.0.
    #[test]
    fn what_an_answer_means() {
        use Answer::{AlreadyOpen, Forbidden, NoMachine, Refused, Transient, Unknown};
        let rows = [
            (400, "ActiveRequestAlreadyExists", "Action is already in progress", AlreadyOpen),
            (400, "activerequestalreadyexists", "", AlreadyOpen),
            (400, "BadRequest", "The Action Is Already In Progress.", AlreadyOpen),
            (409, "", "already in progress", AlreadyOpen),
            (400, "OsPlatformNotSupported", "", Refused),
            (400, "ClientVersionNotSupported", "", Refused),
            (400, "InvalidRequestBody", "", Refused),
            (400, "", "", Refused),
            (409, "Conflict", "", Refused),
            (413, "", "", Refused),
            (422, "", "", Refused),
            (403, "Forbidden", "Missing application roles. API required roles: Machine.Isolate", Forbidden),
            (403, "DisabledFeature", "", Forbidden),
            // Not a request that is open.
            (403, "", "already in progress", Forbidden),
            (401, "Unauthorized", "Unauthorized request - reason of failure: No Tvm license", Forbidden),
            (401, "Unauthorized", "", Transient),
            (404, "ResourceNotFound", "", NoMachine),
            (408, "", "", Unknown),
            (429, "TooManyRequests", "", Transient),
            (500, "InternalServerError", "", Unknown),
            (503, "", "<html>", Unknown),
            (504, "", "", Unknown),
            (200, "", "", Unknown),
            (302, "", "", Unknown),
        ];
        for (status, code, message, expected) in rows {
            assert_eq!(Answer::of(status, code, message), expected, "{status} {code} {message}");
        }
        assert_eq!(Answer::of_silence(true), Unknown);
        assert_eq!(Answer::of_silence(false), Transient);
    }

    #[test]
    fn what_ends_a_request() {
        let rows = [
            (Answer::Refused, Some("refused")),
            (Answer::Forbidden, Some("forbidden")),
            (Answer::NoMachine, Some("no_machine")),
            (Answer::AlreadyOpen, None),
            (Answer::Unknown, None),
            (Answer::Transient, None),
        ];
        for (answer, expected) in rows {
            assert_eq!(answer.failure().map(Reason::as_str), expected, "{answer:?}");
        }
    }
}
