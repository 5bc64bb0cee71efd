//! How long messages wait and how many workers the work would keep busy, as far as one worker can tell.
//!
//! # Age
//! Neither queue is asked for its oldest message: RabbitMQ tells no age, and looking at the head of a quorum queue counts
//! as a delivery of it. But a lane hands out new messages in the order of their arrival: what waits arrived after the
//! newest message that was taken. So its age is no more than the time since *that* one was published. Each worker knows
//! only those it took itself, so the least figure of all workers is the bound; it is exact to the distance between two
//! messages. While a worker has taken nothing, it counts from when it began to receive, which is too little for messages
//! that waited before it. Messages that come back (retries, delayed checks) are not counted: they wait on purpose. Without
//! any worker there is no figure, and `bridge_queue_receivers` is 0.
//!
//! # Useful workers
//! Workers are useful while there are jobs they could work at once. Those are the jobs that wait, and those in hands: each
//! worker is taken to be as busy as this one. A job that waits for a permit is not held up by a lack of workers but by a
//! quota, and one more worker would only wait as well; so the share of this worker's jobs that wait for permits now is
//! taken off. Notifications are not counted: their receiver sets their pace. What is left, divided by the jobs a worker works at a time, is the figure, 1 at least. It is a reading of this
//! moment: an autoscaler takes the average over its window and all workers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::broker::{Lane, QueueDepth};

/// What this process takes, and took last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Load(Arc<Mutex<HashMap<&'static str, Taking>>>);

/// One queue that this process receives from.
#[derive(Debug)]
struct Taking {
    /// Jobs at a time.
    slots: u16,
    /// Whether more workers would do its jobs sooner.
    scales: bool,
    /// When the newest message that was taken from each lane was published, or when this process began.
    newest: HashMap<Lane, Timestamp>,
    since: Timestamp,
}

impl Load {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<&'static str, Taking>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This process receives from `queue` from now on; `scales` as in [`Taking`].
    pub(super) fn takes(&self, queue: &'static str, slots: u16, scales: bool) {
        let taking = Taking { slots, scales, newest: HashMap::new(), since: Timestamp::now() };
        self.with(|queues| queues.insert(queue, taking));
    }

    /// A message was taken; whether it is newer than all that were taken from its lane before, which one that comes back
    /// is not.
    pub(super) fn taken(&self, queue: &'static str, lane: Lane, published: Timestamp) -> bool {
        self.with(|queues| {
            let Some(taking) = queues.get_mut(queue) else { return true };
            let newest = taking.newest.get(&lane).copied();
            let newer = newest.is_none_or(|newest| published > newest);
            if newer {
                taking.newest.insert(lane, published);
            }
            newer
        })
    }

    /// The bound of the age of what waits in each lane that this process receives from; nothing for other queues.
    pub(super) fn ages(&self, depths: &[QueueDepth], now: Timestamp) -> Vec<(&'static str, Lane, Duration)> {
        self.with(|queues| {
            let age = |depth: &QueueDepth| {
                let taking = queues.get(depth.queue)?;
                let since = taking.newest.get(&depth.lane).copied().unwrap_or(taking.since);
                let age = if depth.ready == 0 { Duration::ZERO } else { span(since, now) };
                Some((depth.queue, depth.lane, age))
            };
            depths.iter().filter_map(age).collect()
        })
    }

    /// How many workers would be busy, where this one has `in_hands` of each queue and `waiting` of its calls wait for a
    /// permit; 0 where this process takes no jobs.
    pub(super) fn useful_workers(
        &self,
        depths: &[QueueDepth],
        in_hands: impl Fn(&'static str) -> u64,
        waiting: u64,
    ) -> u64 {
        self.with(|queues| {
            let scaling = || queues.iter().filter(|(_, taking)| taking.scales);
            let all: u64 = scaling().map(|(queue, _)| in_hands(queue)).sum();
            let free = 1.0 - if all == 0 { 0.0 } else { waiting.min(all) as f64 / all as f64 };
            let useful = |(queue, taking): (&&'static str, &Taking)| {
                let rows = || depths.iter().filter(|depth| depth.queue == *queue);
                let ready: u64 = rows().map(|depth| depth.ready).sum();
                let workers = rows().map(|depth| depth.receivers).max().unwrap_or(0).max(1);
                let jobs = (ready + workers * in_hands(queue)) as f64 * free;
                ((jobs / f64::from(taking.slots.max(1))).ceil() as u64).max(1)
            };
            scaling().map(useful).max().unwrap_or(0)
        })
    }
}

fn span(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(queue: &'static str, lane: Lane, ready: u64, receivers: u64) -> QueueDepth {
        QueueDepth { queue, lane, ready, receivers, dead: 0 }
    }

    #[test]
    fn what_waits_is_no_older_than_the_time_since_the_newest_that_was_taken() {
        let load = Load::default();
        load.takes("hosts", 4, true);
        let now = Timestamp::now();
        let ago = |seconds| now - Duration::from_secs(seconds);
        assert!(load.taken("hosts", Lane::Urgent, ago(90)));
        assert!(load.taken("hosts", Lane::Urgent, ago(20)));
        // What comes back is neither new nor a measure of the wait.
        assert!(!load.taken("hosts", Lane::Urgent, ago(60)));
        assert!(!load.taken("hosts", Lane::Urgent, ago(20)));
        let depths =
            [depth("hosts", Lane::Urgent, 3, 1), depth("hosts", Lane::Normal, 0, 1), depth("desk", Lane::Urgent, 9, 1)];
        let ages = load.ages(&depths, now);
        let urgent = ("hosts", Lane::Urgent, Duration::from_secs(20));
        assert_eq!(ages, [urgent, ("hosts", Lane::Normal, Duration::ZERO)]);
    }

    #[test]
    fn workers_are_useful_for_what_no_quota_holds_up() {
        let load = Load::default();
        assert_eq!(load.useful_workers(&[depth("relay", Lane::Normal, 500, 2)], |_| 0, 0), 0, "takes no jobs");
        load.takes("relay", 10, true);
        for (ready, receivers, in_hands, waiting, expected) in [
            (0, 1, 0, 0, 1),
            (0, 3, 10, 0, 3),
            (35, 2, 10, 0, 6),
            // Half of the jobs wait for the quota, then all of them.
            (40, 2, 10, 5, 3),
            (40, 2, 10, 10, 1),
            (40, 2, 10, 70, 1),
            // Nobody is counted as receiving while the broker does not say.
            (0, 0, 10, 0, 1),
        ] {
            let depths = [depth("relay", Lane::Urgent, 0, receivers), depth("relay", Lane::Normal, ready, receivers)];
            let useful = load.useful_workers(&depths, |_| in_hands, waiting);
            assert_eq!(useful, expected, "{ready} {receivers} {in_hands} {waiting}");
        }
        // What a slow receiver leaves waiting is no work for more workers.
        load.takes("notify", 4, false);
        assert_eq!(load.useful_workers(&[depth("notify", Lane::Normal, 500, 2)], |queue| queue.len() as u64, 0), 1);
    }
}
