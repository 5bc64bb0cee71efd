//! Which events were accepted lately, so that a resend is not worked twice. Bounded; several ingresses do not share it,
//! which only costs work. Pure but for `now`, which is handed in.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;

use super::auth::Sender;
use super::id::EventId;

/// Twice the window of signatures (`cognito.md` 4.6): a request that is resent later than that is refused anyhow.
const KEPT: Duration = Duration::from_secs(600);

/// Events remembered at most (`cognito.md` 4.6): some ten megabytes.
const LIMIT: usize = 100_000;

/// An event as its sender names it: sender, id, host (`DESIGN.md` 10, ruling 1). Of one length whatever they are.
pub(super) type Key = [u8; 32];

/// The key of an event; `None` when its id is made from its content, by which nothing is suppressed: block, unblock, block
/// are three events.
pub(super) fn key(sender: Sender, id: &EventId, host_id: u64) -> Option<Key> {
    // Ids of events and of requests are two things, though they may be spelled alike.
    let (kind, id) = match id {
        EventId::Given(id) => ("event", id),
        EventId::Delivery(id) => ("delivery", id),
        EventId::Content(_) => return None,
    };
    let text = format!("{}\0{kind}\0{id}\0{host_id}", sender.name());
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    Some(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Seen {
    limit: usize,
    entered: HashMap<Key, Instant>,
    order: VecDeque<(Instant, Key)>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { limit: LIMIT, entered: HashMap::new(), order: VecDeque::new() }
    }
}

impl Seen {
    /// Whether the event was accepted within the last ten minutes.
    pub(super) fn contains(&self, key: &Key, now: Instant) -> bool {
        self.entered.get(key).is_some_and(|at| now.saturating_duration_since(*at) < KEPT)
    }

    /// The event is safe at the broker.
    pub(super) fn enter(&mut self, key: Key, now: Instant) {
        self.entered.insert(key, now);
        self.order.push_back((now, key));
        while let Some(&(at, oldest)) = self.order.front() {
            if self.order.len() <= self.limit && now.saturating_duration_since(at) < KEPT {
                break;
            }
            self.order.pop_front();
            // Unless it was entered again since.
            if self.entered.get(&oldest) == Some(&at) {
                self.entered.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(id: &str, host_id: u64) -> Key {
        key(Sender::Signed, &EventId::Given(id.into()), host_id).unwrap()
    }

    #[test]
    fn an_event_is_its_sender_its_id_and_its_host() {
        let mut keys = vec![
            given("a", 1),
            given("b", 1),
            given("a", 2),
            given("a\0", 1),
            key(Sender::Token, &EventId::Given("a".into()), 1).unwrap(),
            key(Sender::Signed, &EventId::Delivery("a".into()), 1).unwrap(),
        ];
        assert_eq!(given("a", 1), keys[0]);
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 6);
        assert_eq!(key(Sender::Signed, &EventId::Content("a".into()), 1), None);
    }

    #[test]
    fn it_is_remembered_for_ten_minutes() {
        let mut seen = Seen::default();
        let now = Instant::now();
        let event = given("a", 1);
        assert!(!seen.contains(&event, now));
        seen.enter(event, now);
        assert!(seen.contains(&event, now + Duration::from_secs(599)));
        assert!(!seen.contains(&event, now + Duration::from_secs(600)));
        seen.enter(event, now + Duration::from_secs(599));
        seen.enter(given("b", 1), now + Duration::from_secs(601));
        assert!(seen.contains(&event, now + Duration::from_secs(1198)));
        seen.enter(given("c", 1), now + Duration::from_secs(1202));
        assert_eq!((seen.entered.len(), seen.order.len()), (1, 1));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut seen = Seen { limit: 3, ..Seen::default() };
        let now = Instant::now();
        for number in 0..100 {
            seen.enter(given("a", number), now);
        }
        assert_eq!((seen.entered.len(), seen.order.len()), (3, 3));
        assert!((97..100).all(|number| seen.contains(&given("a", number), now)));
        assert!(!seen.contains(&given("a", 96), now));
    }
}
