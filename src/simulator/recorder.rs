//! What was asked of the simulator: counters, the last requests, how many at once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

/// One request as it came. Bodies and credentials are not kept, except the text of a hunting query.
#[derive(Debug, Clone, Serialize)]
pub struct Recorded {
    /// Counts from 1, without gaps.
    pub number: u64,
    /// When it came, by the real clock.
    pub at: Timestamp,
    /// `GET`, ...
    pub method: String,
    /// The decoded path.
    pub path: String,
    /// The decoded query string, empty if there was none.
    pub query: String,
    /// The name it is counted under.
    pub route: &'static str,
    /// The route's template, like `files/{id}/alerts`.
    pub template: &'static str,
    /// The tenant of its token, or the one a token was asked for.
    pub tenant: Option<String>,
    /// The application of its token.
    pub client: Option<String>,
    /// The headers of [`KEPT_HEADERS`] that it had.
    pub headers: BTreeMap<&'static str, String>,
    /// The hunting query.
    pub hunting: Option<String>,
    /// The body of a call that changes something at Defender.
    pub body: Option<String>,
    /// What it was answered; absent while it is in work, or when it got no answer.
    pub status: Option<u16>,
}

/// The headers that are recorded: none that carries a credential.
pub const KEPT_HEADERS: [&str; 9] = [
    "traceparent",
    "tracestate",
    "baggage",
    "user-agent",
    "accept",
    "accept-encoding",
    "content-type",
    "client-request-id",
    "host",
];

#[derive(Debug, Default)]
struct Book {
    recorded: VecDeque<Recorded>,
    total: u64,
    /// By name or template, of all tenants and of each.
    calls: HashMap<(Option<String>, &'static str), u64>,
    throttled: u64,
    at_work: u64,
    peak: u64,
}

/// The book of requests. Clones write into the same book.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    book: Arc<Mutex<Book>>,
    limit: usize,
    total: watch::Sender<u64>,
}

/// A request in work: stands in the count of requests at once until it is dropped.
#[derive(Debug)]
pub(super) struct AtWork {
    recorder: Recorder,
    number: u64,
}

impl Recorder {
    /// An empty book that keeps the last `limit` requests; counters are kept in any case.
    pub(super) fn new(limit: usize) -> Self {
        Self { book: Arc::default(), limit, total: watch::Sender::new(0) }
    }

    /// Whether requests are kept, not only counted.
    pub(super) fn keeps(&self) -> bool {
        self.limit > 0
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request and keeps it. Its `number` is given here.
    pub(super) fn begin(&self, mut request: Recorded) -> AtWork {
        let mut book = self.book();
        book.total += 1;
        let number = book.total;
        request.number = number;
        for key in [request.route, request.template] {
            *book.calls.entry((None, key)).or_default() += 1;
            if let Some(tenant) = &request.tenant {
                *book.calls.entry((Some(tenant.clone()), key)).or_default() += 1;
            }
            if request.route == request.template {
                break;
            }
        }
        book.at_work += 1;
        book.peak = book.peak.max(book.at_work);
        if self.limit > 0 {
            if book.recorded.len() == self.limit {
                book.recorded.pop_front();
            }
            book.recorded.push_back(request);
        }
        drop(book);
        self.total.send_replace(number);
        AtWork { recorder: self.clone(), number }
    }

    pub(super) fn calls(&self, tenant: Option<&str>, route: &str) -> u64 {
        // The map's keys are static names, so a look through its few dozen entries saves an allocation per name.
        let book = self.book();
        let found = book.calls.iter().find(|((of, name), _)| of.as_deref() == tenant && *name == route);
        found.map_or(0, |(_, &count)| count)
    }

    pub(super) fn all_calls(&self) -> BTreeMap<&'static str, u64> {
        self.book().calls.iter().filter(|((of, _), _)| of.is_none()).map(|((_, name), &count)| (*name, count)).collect()
    }

    pub(super) fn total(&self) -> u64 {
        self.book().total
    }

    pub(super) fn throttled(&self) -> u64 {
        self.book().throttled
    }

    pub(super) fn peak(&self) -> u64 {
        self.book().peak
    }

    pub(super) fn at_work(&self) -> u64 {
        self.book().at_work
    }

    pub(super) fn recorded(&self) -> Vec<Recorded> {
        self.book().recorded.iter().cloned().collect()
    }

    /// Ticks with every request.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.total.subscribe()
    }

    /// Forgets everything but the requests in work.
    pub(super) fn clear(&self) {
        let mut book = self.book();
        let at_work = book.at_work;
        // Numbers go on, so that a request that was in work is not taken for a new one.
        *book = Book { total: book.total, at_work, peak: at_work, ..Book::default() };
    }
}

impl AtWork {
    /// Notes what the request is answered with.
    pub(super) fn answered(&self, status: u16) {
        let mut book = self.recorder.book();
        if status == 429 {
            book.throttled += 1;
        }
        let first = book.recorded.front().map_or(0, |first| first.number);
        if let Some(index) = self.number.checked_sub(first).and_then(|index| usize::try_from(index).ok())
            && let Some(request) = book.recorded.get_mut(index)
        {
            request.status = Some(status);
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut book = self.recorder.book();
        book.at_work = book.at_work.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(route: &'static str, template: &'static str, tenant: &str) -> Recorded {
        Recorded {
            number: 0,
            at: Timestamp::UNIX_EPOCH,
            method: "GET".into(),
            path: "/".into(),
            query: String::new(),
            route,
            template,
            tenant: Some(tenant.into()),
            client: None,
            headers: BTreeMap::new(),
            hunting: None,
            body: None,
            status: None,
        }
    }

    #[test]
    fn calls_are_counted_by_name_template_and_tenant() {
        let recorder = Recorder::new(10);
        recorder.begin(request("alerts", "files/{id}/alerts", "a"));
        recorder.begin(request("alerts", "ips/{ip}/alerts", "a"));
        recorder.begin(request("machines", "machines", "b"));
        for (tenant, route, count) in [
            (None, "alerts", 2),
            (None, "files/{id}/alerts", 1),
            (None, "machines", 1),
            (Some("a"), "alerts", 2),
            (Some("b"), "alerts", 0),
            (Some("b"), "machines", 1),
            (None, "hunting", 0),
        ] {
            assert_eq!(recorder.calls(tenant, route), count, "{tenant:?} {route}");
        }
    }

    #[test]
    fn the_book_is_bounded_and_statuses_reach_their_request() {
        let recorder = Recorder::new(2);
        let works: Vec<_> = (0..3).map(|_| recorder.begin(request("alerts", "alerts", "a"))).collect();
        assert_eq!(recorder.peak(), 3);
        works[0].answered(200);
        works[2].answered(429);
        drop(works);
        let recorded = recorder.recorded();
        assert_eq!(recorded.iter().map(|r| (r.number, r.status)).collect::<Vec<_>>(), [(2, None), (3, Some(429))]);
        assert_eq!((recorder.total(), recorder.throttled()), (3, 1));
        recorder.clear();
        assert_eq!((recorder.calls(None, "alerts"), recorder.throttled(), recorder.peak()), (0, 0, 0));
    }
}
