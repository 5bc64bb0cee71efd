//! The routes of the relay (`relay.md` 1.2).

/// A known route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Version,
    Observe,
    Deliberate,
    Refer,
    Respond,
    Trigger,
    Action,
}

/// All of them.
pub(super) const ROUTES: [Route; 7] =
    [Route::Health, Route::Version, Route::Observe, Route::Deliberate, Route::Refer, Route::Respond, Route::Trigger];

/// What comes before the id in the path of a machine action: no route of the platform.
const ACTIONS: &str = "/actions/";

impl Route {
    /// The route of a path; one trailing slash does not matter, any other difference does.
    pub(super) fn of(path: &str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let known = ROUTES.into_iter().find(|route| route.path() == path);
        known.or_else(|| Self::action_id(path).map(|_| Self::Action))
    }

    /// What stands for the id in the path of a machine action: one segment, whatever is in it.
    pub(super) fn action_id(path: &str) -> Option<&str> {
        let path = path.strip_suffix('/').unwrap_or(path);
        path.strip_prefix(ACTIONS).filter(|id| !id.is_empty() && !id.contains('/'))
    }

    /// The one method it has, beside `OPTIONS`.
    pub(super) const fn method(self) -> http::Method {
        match self {
            Self::Action => http::Method::GET,
            _ => http::Method::POST,
        }
    }

    /// Its path without a trailing slash.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Version => "/version",
            Self::Observe => "/observe/observables",
            Self::Deliberate => "/deliberate/observables",
            Self::Refer => "/refer/observables",
            Self::Respond => "/respond/observables",
            Self::Trigger => "/respond/trigger",
            Self::Action => "/actions/{id}",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_route_with_or_without_one_trailing_slash() {
        for route in ROUTES {
            assert_eq!(Route::of(route.path()), Some(route));
            assert_eq!(Route::of(&format!("{}/", route.path())), Some(route));
        }
        for path in ["", "/", "//health", "/health//", "/Health", "/observe", "/health/x", "health", "/watchdog"] {
            assert_eq!(Route::of(path), None, "{path}");
        }
        for path in ["/actions/0e8d-1", "/actions/0e8d-1/"] {
            assert_eq!((Route::of(path), Route::action_id(path)), (Some(Route::Action), Some("0e8d-1")));
        }
        for path in ["/actions", "/actions/", "/actions//", "/actions/a/b"] {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }
}
