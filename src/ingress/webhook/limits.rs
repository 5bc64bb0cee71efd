//! How often somebody may ask: a bucket for each kind of sender, and one for each address that has not shown who it is.
//! Pure but for `now`, which is handed in.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Addresses remembered at a time: some hundred kilobytes. Those not heard of for two seconds are forgotten first.
const ADDRESS_LIMIT: usize = 10_000;

/// So many seconds' worth may come at once (`cognito.md` 4.5: 50 a second, 100 at once).
const BURST_SECONDS: f64 = 2.0;

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(rate: u32, now: Instant) -> Self {
        Self { tokens: f64::from(rate) * BURST_SECONDS, at: now }
    }

    fn refill(&mut self, rate: u32, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate);
        self.tokens = (self.tokens + earned).min(f64::from(rate) * BURST_SECONDS);
        self.at = self.at.max(now);
    }

    /// Takes one of `rate` tokens a second.
    ///
    /// # Errors
    /// How long until there is one.
    pub(super) fn take(&mut self, rate: u32, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / f64::from(rate)))
    }
}

/// Requests by address that have not authenticated. One that does gives back what it took, so that an honest sender is
/// never held up by its own number.
#[derive(Debug)]
pub(super) struct Addresses {
    rate: u32,
    limit: usize,
    buckets: HashMap<IpAddr, Bucket>,
}

impl Addresses {
    /// `rate` requests a second from each; 0 = no limit.
    pub(super) fn new(rate: u32) -> Self {
        Self { rate, limit: ADDRESS_LIMIT, buckets: HashMap::new() }
    }

    /// Counts a request before it is known who sends it.
    ///
    /// # Errors
    /// How long until the next one is let in.
    pub(super) fn take(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        if self.rate == 0 {
            return Ok(());
        }
        let (rate, address) = (self.rate, network(address));
        if self.buckets.len() >= self.limit && !self.buckets.contains_key(&address) {
            let idle = Duration::from_secs_f64(BURST_SECONDS);
            self.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < idle);
            if self.buckets.len() >= self.limit {
                // So many at once hold honest senders up only if those are refused for it. Connections are bounded anyhow.
                return Ok(());
            }
        }
        self.buckets.entry(address).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }

    /// The request has shown that it comes from a sender.
    pub(super) fn give_back(&mut self, address: IpAddr) {
        if let Some(bucket) = self.buckets.get_mut(&network(address)) {
            bucket.tokens = (bucket.tokens + 1.0).min(f64::from(self.rate) * BURST_SECONDS);
        }
    }
}

/// What one party is likely to have: an IPv4 address, or the /64 network of an IPv6 one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(50, start);
        assert_eq!((0..150).filter(|_| bucket.take(50, start).is_ok()).count(), 100);
        assert_eq!(bucket.take(50, start), Err(20 * MS));
        assert!(bucket.take(50, start + 19 * MS).is_err());
        assert!(bucket.take(50, start + 21 * MS).is_ok());
        assert!(bucket.take(50, start + 21 * MS).is_err());
        // A clock that is read out of order earns nothing.
        assert!(bucket.take(50, start).is_err());
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..150).filter(|_| bucket.take(50, later).is_ok()).count(), 100);
    }

    #[test]
    fn each_address_has_its_own_and_who_authenticates_pays_nothing() {
        let now = Instant::now();
        let mut addresses = Addresses::new(1);
        for _ in 0..1000 {
            assert!(addresses.take(address(1), now).is_ok());
            addresses.give_back(address(1));
        }
        assert!(addresses.take(address(2), now).is_ok());
        assert!(addresses.take(address(2), now).is_ok());
        assert_eq!(addresses.take(address(2), now), Err(Duration::from_secs(1)));
        assert!(addresses.take(address(1), now).is_ok());
        assert!(addresses.take("::ffff:192.0.2.2".parse().unwrap(), now).is_err());
    }

    #[test]
    fn a_network_counts_as_one_address() {
        let now = Instant::now();
        let mut addresses = Addresses::new(1);
        for last in 0..2 {
            assert!(addresses.take(format!("2001:db8::{last}").parse().unwrap(), now).is_ok());
        }
        assert!(addresses.take("2001:db8::ffff:ffff:ffff:ffff".parse().unwrap(), now).is_err());
        assert!(addresses.take("2001:db8:0:1::".parse().unwrap(), now).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_idle() {
        let now = Instant::now();
        let mut addresses = Addresses { limit: 3, ..Addresses::new(1) };
        for last in 0..10 {
            for _ in 0..2 {
                assert!(addresses.take(address(last), now).is_ok());
            }
        }
        assert_eq!(addresses.buckets.len(), 3);
        assert!(addresses.take(address(0), now).is_err());
        let later = now + Duration::from_secs(3);
        assert!(addresses.take(address(9), later).is_ok());
        assert_eq!(addresses.buckets.len(), 1);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut addresses = Addresses::new(0);
        let now = Instant::now();
        assert!((0..10_000).all(|_| addresses.take(address(1), now).is_ok()));
        assert!(addresses.buckets.is_empty());
    }
}
