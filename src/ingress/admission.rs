//! Admission: whoever would have to wait too long in the queue is refused at once (`DESIGN.md` 10, ruling 6), so that those
//! who are accepted are answered in time and a burst is worked off soon after its end.
//!
//! How long is told by Little's law over what this ingress alone sees: calls outstanding, divided by replies a second, is
//! the time that a call spends behind it. With several ingresses each sees its own part of both, and the same time. It holds
//! the workers' own time too, which is no reason to refuse anybody: slow calls of few callers are long, and nobody waits.
//! So a long time is a suspicion only, and the queue itself is looked at: while nothing is ready in it all are admitted.
//!
//! It needs no memory of workers. When they go the replies cease, and whoever comes is refused once the silence is as long
//! as the wait that is allowed; when they come back the first replies end it. A few are always admitted: without them nobody
//! would learn that there are workers again.
//!
//! A tenant that asks for little is not refused for what others ask for: half of the calls that the queue may hold are
//! divided among the tenants that have any. So the wait of those admitted grows by half at most.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{Broker, Lane};
use crate::job;

/// Calls that are always admitted at a time. A worker has hands for several times as many by default.
const ALWAYS_ADMITTED: usize = 16;

/// Replies are counted over this time: enough for the bursts in which a batch of calls is answered, little enough to
/// notice within seconds that workers came or went.
const WINDOW: Duration = Duration::from_secs(5);

/// One count of the window.
const SLICE: Duration = Duration::from_millis(250);

/// How long there must have been calls without a pause before their number says anything: the first replies are on their
/// way. What comes meanwhile is bounded by the length of the queue.
const WARM_UP: Duration = Duration::from_secs(1);

/// How long what was seen of the queue is believed, and how often it is looked at while there is suspicion.
const LOOK_HOLDS: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What has come and gone; pure.
#[derive(Debug)]
struct Flow {
    outstanding: usize,
    /// The same by tenant; none that has no call.
    tenants: HashMap<String, usize>,
    /// Since when there were calls without a pause.
    busy_since: Instant,
    /// Since when nothing came back.
    quiet_since: Instant,
    /// Replies by the beginning of their slice, oldest first, of [`WINDOW`].
    replies: VecDeque<(Instant, u32)>,
}

impl Flow {
    fn new(now: Instant) -> Flow {
        Flow { outstanding: 0, tenants: HashMap::new(), busy_since: now, quiet_since: now, replies: VecDeque::new() }
    }

    fn begin(&mut self, tenant: &str, now: Instant) {
        if self.outstanding == 0 {
            self.busy_since = now;
            self.quiet_since = now;
            self.replies.clear();
        }
        self.outstanding += 1;
        *self.tenants.entry(tenant.to_owned()).or_default() += 1;
    }

    fn end(&mut self, tenant: &str, replied: bool, now: Instant) {
        self.outstanding -= 1;
        if let Some(count) = self.tenants.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(tenant);
            }
        }
        if !replied {
            return;
        }
        self.quiet_since = now;
        self.forget(now);
        match self.replies.back_mut() {
            Some((since, count)) if now.duration_since(*since) < SLICE => *count += 1,
            _ => self.replies.push_back((now, 1)),
        }
    }

    fn forget(&mut self, now: Instant) {
        while self.replies.front().is_some_and(|(since, _)| now.duration_since(*since) >= WINDOW) {
            self.replies.pop_front();
        }
    }

    /// How long a call that comes now would be behind the ingress; none while that does not matter.
    fn expected(&mut self, now: Instant) -> Duration {
        let busy = now.duration_since(self.busy_since);
        if self.outstanding < ALWAYS_ADMITTED || busy < WARM_UP {
            return Duration::ZERO;
        }
        self.forget(now);
        let replies: u32 = self.replies.iter().map(|(_, count)| count).sum();
        if replies == 0 {
            // The first replies may only be slow. What is known is that those before have waited for so long already.
            return now.duration_since(self.quiet_since);
        }
        let seconds = self.outstanding as f64 * busy.min(WINDOW).as_secs_f64() / f64::from(replies);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Whether a tenant has less than its part of the calls that may be outstanding, when those outstanding are expected to
    /// take `expected` and may take `max_wait`.
    fn has_room_of_its_own(&self, tenant: &str, expected: Duration, max_wait: Duration) -> bool {
        let allowed = self.outstanding as f64 * max_wait.as_secs_f64() / expected.as_secs_f64();
        let own = self.tenants.get(tenant).copied().unwrap_or(0);
        let tenants = self.tenants.len() + usize::from(own == 0);
        ((own + 1) as f64) <= allowed / (2 * tenants) as f64
    }
}

/// What was seen of the queue.
#[derive(Debug, Default)]
struct Look {
    /// When, and whether calls were waiting in it.
    last: Option<(Instant, bool)>,
    begun: Option<Instant>,
}

/// The admission of one ingress.
#[derive(Debug)]
pub(super) struct Admission {
    max_wait: Duration,
    flow: Mutex<Flow>,
    look: Mutex<Look>,
}

impl Admission {
    /// Admits whoever is expected to wait in the queue for less than `max_wait`.
    pub(super) fn new(max_wait: Duration) -> Arc<Admission> {
        let flow = Mutex::new(Flow::new(Instant::now()));
        Arc::new(Admission { max_wait, flow, look: Mutex::default() })
    }

    /// The place of a tenant's call among those outstanding; `None`: it would have to wait for too long.
    pub(super) fn enter<B: Broker>(self: &Arc<Self>, broker: &B, tenant: &str) -> Option<Admitted> {
        let now = Instant::now();
        let long = {
            let mut flow = self.flow();
            let expected = flow.expected(now);
            expected > self.max_wait && !flow.has_room_of_its_own(tenant, expected, self.max_wait)
        };
        if long && self.queue_holds_calls(broker, now) {
            return None;
        }
        self.flow().begin(tenant, now);
        Some(Admitted { admission: Arc::clone(self), tenant: tenant.to_owned(), replied: false })
    }

    /// Whether calls wait in the queue, as far as it was looked at; has it looked at when that is some time ago.
    fn queue_holds_calls<B: Broker>(self: &Arc<Self>, broker: &B, now: Instant) -> bool {
        let mut look = self.look();
        if look.begun.is_none_or(|begun| now.duration_since(begun) >= LOOK_INTERVAL) {
            look.begun = Some(now);
            let (admission, broker) = (Arc::clone(self), broker.clone());
            tokio::spawn(async move {
                let health = broker.check().await;
                let ready = |depth: &crate::broker::QueueDepth| {
                    depth.queue == job::RELAY.name && depth.lane == Lane::Normal && depth.ready > 0
                };
                let waiting = health.queues.iter().any(ready);
                admission.look().last = Some((Instant::now(), waiting));
            });
        }
        look.last.is_some_and(|(at, waiting)| waiting && now.saturating_duration_since(at) < LOOK_HOLDS)
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().expect("nothing panics while holding this lock")
    }

    fn look(&self) -> MutexGuard<'_, Look> {
        self.look.lock().expect("nothing panics while holding this lock")
    }
}

/// A call that was admitted, until it is dropped.
pub(super) struct Admitted {
    admission: Arc<Admission>,
    tenant: String,
    replied: bool,
}

impl Admitted {
    /// A worker answered it.
    pub(super) fn replied(mut self) {
        self.replied = true;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.flow().end(&self.tenant, self.replied, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Second by second: how many come, how many are answered, and the time that is then expected.
    fn expected(seconds: &[(usize, usize)]) -> Vec<f64> {
        let start = Instant::now();
        let mut flow = Flow::new(start);
        let told = |(second, &(come, answered)): (usize, &(usize, usize))| {
            let now = start + Duration::from_secs(second as u64);
            (0..come).for_each(|_| flow.begin("t", now));
            let now = now + Duration::from_millis(999);
            (0..answered).for_each(|_| flow.end("t", true, now));
            flow.expected(now + Duration::from_millis(1)).as_secs_f64()
        };
        seconds.iter().enumerate().map(told).collect()
    }

    #[test]
    fn the_time_behind_the_ingress_is_told_by_what_is_outstanding_and_comes_back() {
        assert_eq!(expected(&[(100, 100), (100, 100), (100, 100)]), [0.0, 0.0, 0.0]);
        // Ten times as many as are answered: the backlog grows by nine seconds each second, by what is known of the rate.
        assert_eq!(expected(&[(1000, 100), (1000, 100), (1000, 100)]), [9.0, 18.0, 27.0]);
        // It is worked off when no more come.
        assert_eq!(expected(&[(400, 100), (0, 100), (0, 100), (0, 100)]), [3.0, 2.0, 1.0, 0.0]);
    }

    #[test]
    fn few_calls_are_never_held_to_wait() {
        assert_eq!(expected(&[(15, 0), (0, 0), (0, 0)]), [0.0, 0.0, 0.0]);
        assert_eq!(expected(&[(16, 0), (0, 0)]), [1.0, 2.0]);
    }

    #[test]
    fn slow_first_replies_are_waited_for() {
        // Nothing for three seconds, then all that a worker has hands for at once.
        assert_eq!(expected(&[(160, 0), (0, 0), (0, 0), (0, 80)]), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn workers_that_go_and_come_are_noticed() {
        let told = expected(&[(200, 100), (100, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 50), (0, 100)]);
        assert_eq!(told[0], 1.0);
        assert!((5.0..5.1).contains(&told[5]), "the silence, when there is no reply in the window: {told:?}");
        assert!(told[6] < 16.0 && told[7] < 2.0, "{told:?}");
    }

    #[test]
    fn a_pause_begins_anew() {
        let start = Instant::now();
        let mut flow = Flow::new(start);
        flow.begin("t", start);
        flow.end("t", false, start + Duration::from_secs(50));
        let later = start + Duration::from_secs(60);
        (0..1000).for_each(|_| flow.begin("t", later));
        assert_eq!(flow.expected(later + WARM_UP / 2), Duration::ZERO, "the first replies are on their way");
        assert_eq!(flow.expected(later + WARM_UP), WARM_UP);
    }

    #[test]
    fn a_tenant_that_asks_for_little_is_not_refused_for_another() {
        let start = Instant::now();
        let mut flow = Flow::new(start);
        // A backlog of twenty seconds where five are allowed: fifty calls may be outstanding, twenty-five are divided.
        (0..250).for_each(|_| flow.begin("large", start));
        let now = start + Duration::from_secs(5);
        (0..50).for_each(|_| flow.end("large", true, now));
        assert_eq!(flow.expected(now), Duration::from_secs(20));
        let room = |flow: &mut Flow, tenant| {
            let expected = flow.expected(now);
            flow.has_room_of_its_own(tenant, expected, Duration::from_secs(5))
        };
        assert!(!room(&mut flow, "large"));
        let mut admitted = 0;
        while room(&mut flow, "small") && admitted < 100 {
            flow.begin("small", now);
            admitted += 1;
        }
        assert_eq!(admitted, 12, "half of the twenty-five, the other half is the large one's");
        assert!(room(&mut flow, "third"));
        (0..admitted).for_each(|_| flow.end("small", false, now));
        assert_eq!(flow.tenants.keys().collect::<Vec<_>>(), ["large"], "one without calls is forgotten");
    }
}
