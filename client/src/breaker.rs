//! The circuit breaker of one server, as a function of events and time.
//!
//! | state | user calls | leaves when |
//! |-------|------------|-------------|
//! | closed | go through | two timeouts in a row, or one broken connection: open |
//! | open | are refused at once | the pause is over: probing |
//! | probing | are refused at once | the probe succeeds: closed; fails: open with twice the pause |
//!
//! Probes are made in the background, never with a user's call. Time and jitter come in as arguments.

use std::time::Duration;
use tokio::time::Instant;

/// The first pause.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Timeouts in a row that open the breaker.
const TIMEOUTS_MAX: u32 = 2;

/// What went wrong with an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The deadline passed.
    Timeout,
    /// The connection broke, or the peer broke the protocol.
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { timeouts: u32 },
    Open { until: Instant, pause: Duration },
    Probing { pause: Duration },
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    opened: u64,
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self { state: State::Closed { timeouts: 0 }, opened: 0 }
    }

    /// Whether user calls may go to the server.
    pub(crate) fn allows(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// How often the breaker opened.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// A user's exchange succeeded. One that began before the breaker opened does not close it.
    pub(crate) fn success(&mut self) {
        if let State::Closed { timeouts } = &mut self.state {
            *timeouts = 0;
        }
    }

    /// A user's exchange failed; returns whether that opened the breaker. `jitter` is from 0 to 1.
    pub(crate) fn failure(&mut self, failure: Failure, now: Instant, jitter: f64) -> bool {
        let State::Closed { timeouts } = self.state else { return false };
        let timeouts = timeouts + 1;
        if failure == Failure::Timeout && timeouts < TIMEOUTS_MAX {
            self.state = State::Closed { timeouts };
            return false;
        }
        self.open(PAUSE_MIN, now, jitter);
        true
    }

    /// When the next probe is due, if the breaker waits for one.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed { .. } | State::Probing { .. } => None,
        }
    }

    /// Begins a probe if one is due.
    pub(crate) fn begin_probe(&mut self, now: Instant) -> bool {
        match self.state {
            State::Open { until, pause } if until <= now => {
                self.state = State::Probing { pause };
                true
            }
            State::Open { .. } | State::Closed { .. } | State::Probing { .. } => false,
        }
    }

    /// Ends the probe that [`Breaker::begin_probe`] began.
    pub(crate) fn end_probe(&mut self, ok: bool, now: Instant, jitter: f64) {
        let State::Probing { pause } = self.state else { return };
        if ok {
            self.state = State::Closed { timeouts: 0 };
        } else {
            self.open((pause * 2).min(PAUSE_MAX), now, jitter);
        }
    }

    /// A new session is open: what happened to the old one does not count.
    pub(crate) fn reset(&mut self) {
        self.state = State::Closed { timeouts: 0 };
    }

    fn open(&mut self, pause: Duration, now: Instant, jitter: f64) {
        self.opened += 1;
        self.state = State::Open { until: now + jittered(pause, jitter), pause };
    }
}

/// Between half and all of `pause`, so that clients that failed together do not come back together.
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

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn two_timeouts_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        assert!(!breaker.failure(Failure::Timeout, now, 1.0));
        breaker.success();
        assert!(!breaker.failure(Failure::Timeout, now, 1.0), "a success in between counts");
        assert!(breaker.allows());
        assert!(breaker.failure(Failure::Timeout, now, 1.0));
        assert!(!breaker.allows());
        assert_eq!(breaker.probe_at(), Some(now + MS(100)));
        assert_eq!(breaker.opened(), 1);
    }

    #[test]
    fn a_broken_connection_opens_it_at_once() {
        let mut breaker = Breaker::new();
        assert!(breaker.failure(Failure::Broken, Instant::now(), 0.0));
        assert!(!breaker.allows());
    }

    #[test]
    fn probes_wait_double_and_close() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failure(Failure::Broken, start, 1.0);
        assert!(!breaker.begin_probe(start + MS(99)));
        assert!(breaker.begin_probe(start + MS(100)));
        assert!(!breaker.begin_probe(start + MS(100)), "one probe at a time");
        assert!(!breaker.allows(), "user calls are no probes");
        breaker.end_probe(false, start + MS(100), 1.0);
        assert_eq!(breaker.probe_at(), Some(start + MS(300)));
        breaker.success();
        assert!(!breaker.allows(), "a late success of an old call does not close it");
        assert!(breaker.begin_probe(start + MS(300)));
        breaker.end_probe(true, start + MS(300), 1.0);
        assert!(breaker.allows());
        assert!(!breaker.failure(Failure::Timeout, start, 1.0), "counting starts again");
    }

    #[test]
    fn pauses_are_bounded() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failure(Failure::Broken, now, 1.0);
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            let at = breaker.probe_at().unwrap();
            last = at - now;
            now = at;
            assert!(breaker.begin_probe(now));
            breaker.end_probe(false, now, 1.0);
        }
        assert_eq!(last, PAUSE_MAX);
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(1.0), PAUSE_MIN);
        assert_eq!(backoff.next(0.0), PAUSE_MIN);
        assert!((0..40).map(|_| backoff.next(1.0)).all(|pause| pause <= PAUSE_MAX));
        backoff.reset();
        assert_eq!(backoff.next(1.0), PAUSE_MIN);
    }
}
