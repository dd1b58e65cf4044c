//! Pauses that grow with failures and differ from client to client, so that clients that failed together do not come
//! back together. Jitter comes in as an argument.

use std::time::Duration;

/// The first pause.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause of reconnecting.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Between half and all of `pause`; `jitter` is from 0 to 1.
pub(crate) fn jittered(pause: Duration, jitter: f64) -> Duration {
    pause.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// A random number from 0 to 1.
pub(crate) fn random_jitter() -> f64 {
    // Without a random source, clients merely come back in step.
    getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}

/// The pauses of reconnecting: from [`PAUSE_MIN`], doubled each time up to [`PAUSE_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub(crate) fn next(&mut self, jitter: f64) -> Duration {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        jittered(pause, jitter)
    }

    /// Forgets the failures.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_bounded() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(1.0), PAUSE_MIN);
        assert_eq!(backoff.next(0.0), PAUSE_MIN);
        assert!((0..40).map(|_| backoff.next(1.0)).all(|pause| pause <= PAUSE_MAX));
        assert_eq!(backoff.next(1.0), PAUSE_MAX);
        backoff.reset();
        assert_eq!(backoff.next(1.0), PAUSE_MIN);
    }

    #[test]
    fn clients_differ() {
        let pauses: Vec<_> = (0..8).map(|_| Backoff::default().next(random_jitter())).collect();
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause >= PAUSE_MIN / 2 && *pause <= PAUSE_MIN));
    }
}
