//! How much of something a tenant may use in a second.
//!
//! A bucket is one number: the moment until which everything is paid for. Each use moves it on by what it costs; it is
//! never more than a second in the past, so a tenant that was quiet may use a second's worth at once. While it is in the
//! future, the tenant is in debt and has to wait. What a request costs in bytes is known only when it is over, so a
//! bucket may be taken from beyond what is there, and pays later.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a quiet tenant may have saved, in time.
const BURST: Duration = Duration::from_secs(1);

/// A tenant's requests and bytes.
pub(crate) struct Rate {
    start: Instant,
    requests: Bucket,
    bytes: Bucket,
}

impl Default for Rate {
    fn default() -> Self {
        Self { start: Instant::now(), requests: Bucket::default(), bytes: Bucket::default() }
    }
}

impl Rate {
    /// Sets how much a second gives; no bound without a number.
    pub(crate) fn set(&self, requests_per_s: Option<u64>, bytes_per_s: Option<u64>) {
        self.requests.per_s.store(requests_per_s.unwrap_or(0), Ordering::Relaxed);
        self.bytes.per_s.store(bytes_per_s.unwrap_or(0), Ordering::Relaxed);
    }

    /// How long the next request has to wait.
    pub(crate) fn wait(&self) -> Duration {
        if self.requests.is_free() && self.bytes.is_free() {
            return Duration::ZERO;
        }
        let now = self.start.elapsed();
        self.requests.wait(now).max(self.bytes.wait(now))
    }

    pub(crate) fn take_request(&self) {
        if !self.requests.is_free() {
            self.requests.take(1, self.start.elapsed());
        }
    }

    pub(crate) fn take_bytes(&self, bytes: u64) {
        if !self.bytes.is_free() {
            self.bytes.take(bytes, self.start.elapsed());
        }
    }
}

#[derive(Default)]
struct Bucket {
    /// 0 for no bound.
    per_s: AtomicU64,
    /// Nanoseconds since the start.
    paid_until: AtomicU64,
}

impl Bucket {
    fn is_free(&self) -> bool {
        self.per_s.load(Ordering::Relaxed) == 0
    }

    /// Time until it is out of debt.
    fn wait(&self, now: Duration) -> Duration {
        if self.is_free() {
            return Duration::ZERO;
        }
        let paid_until = Duration::from_nanos(self.paid_until.load(Ordering::Relaxed));
        paid_until.saturating_sub(now)
    }

    fn take(&self, amount: u64, now: Duration) {
        let Some(cost) =
            (u128::from(amount) * 1_000_000_000).checked_div(self.per_s.load(Ordering::Relaxed).into())
        else {
            return;
        };
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let oldest = u64::try_from(now.saturating_sub(BURST).as_nanos()).unwrap_or(u64::MAX);
        let next = |until: u64| Some(until.max(oldest).saturating_add(cost));
        // It always gives a next value, so it always succeeds.
        let _paid = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn bucket(per_s: u64) -> Bucket {
        Bucket { per_s: per_s.into(), ..Bucket::default() }
    }

    #[test]
    fn a_second_is_saved_and_no_more() {
        let bucket = bucket(10);
        let now = ms(60_000);
        for _ in 0..10 {
            assert_eq!(bucket.wait(now), Duration::ZERO);
            bucket.take(1, now);
        }
        assert_eq!(bucket.wait(now), Duration::ZERO, "exactly what a second gives");
        bucket.take(1, now);
        assert_eq!(bucket.wait(now), ms(100));
        assert_eq!(bucket.wait(now + ms(100)), Duration::ZERO);
    }

    #[test]
    fn one_large_use_is_paid_later() {
        let bucket = bucket(1000);
        let now = ms(60_000);
        bucket.take(3000, now);
        assert_eq!(bucket.wait(now), ms(2000));
        assert_eq!(bucket.wait(now + ms(1999)), ms(1));
    }

    #[test]
    fn without_a_bound_nothing_waits() {
        let bucket = bucket(0);
        bucket.take(u64::MAX, ms(5));
        assert_eq!(bucket.wait(ms(5)), Duration::ZERO);
        let rate = Rate::default();
        rate.set(None, Some(1));
        rate.take_request();
        assert_eq!(rate.wait(), Duration::ZERO);
        rate.take_bytes(u64::MAX);
        assert!(rate.wait() > ms(1000));
    }
}
