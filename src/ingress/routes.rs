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
}

/// All of them.
pub(super) const ROUTES: [Route; 7] =
    [Route::Health, Route::Version, Route::Observe, Route::Deliberate, Route::Refer, Route::Respond, Route::Trigger];

impl Route {
    /// The route of a path; one trailing slash does not matter, any other difference does.
    pub(super) fn of(path: &str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        ROUTES.into_iter().find(|route| route.path() == path)
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
    }
}
