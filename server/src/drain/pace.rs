//! So many bytes in a second.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The least that a batch may have, however slow the pace is, bytes.
const BURST_MIN: u64 = 64 << 10;

/// Lets bytes pass at a rate that can be changed meanwhile.
pub(crate) struct Pace {
    state: Mutex<State>,
}

struct State {
    /// Bytes in a second; 0 for no limit.
    rate: u64,
    /// When the bytes that were let pass have used up their time.
    free_at: Option<Instant>,
}

impl Pace {
    /// A pace of `rate` bytes in a second; 0 for no limit.
    pub(crate) fn new(rate: u64) -> Self {
        Self { state: Mutex::new(State { rate, free_at: None }) }
    }

    /// Another rate, from the next bytes on.
    pub(crate) fn set(&self, rate: u64) {
        *self.state.lock() = State { rate, free_at: None };
    }

    /// Bytes that should be asked for at once at most: a quarter of a second's.
    pub(crate) fn burst_bytes(&self) -> u64 {
        match self.state.lock().rate {
            0 => u64::MAX,
            rate => (rate / 4).max(BURST_MIN),
        }
    }

    /// Waits until `bytes` may pass.
    pub(crate) async fn take(&self, bytes: u64) {
        let until = self.state.lock().take(bytes, Instant::now());
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }
}

impl State {
    /// Lets `bytes` pass at the returned time, or now.
    fn take(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        let micros = bytes.saturating_mul(1_000_000).checked_div(self.rate)?;
        let begin = self.free_at.map_or(now, |free_at| free_at.max(now));
        self.free_at = Some(begin + Duration::from_micros(micros));
        (begin > now).then_some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them() {
        let now = Instant::now();
        let mut state = State { rate: 1000, free_at: None };
        assert_eq!(state.take(500, now), None);
        assert_eq!(state.take(250, now), Some(now + Duration::from_millis(500)));
        assert_eq!(state.take(1, now), Some(now + Duration::from_millis(750)));
        // Time that nobody used is not saved up.
        let later = now + Duration::from_secs(60);
        assert_eq!(state.take(1000, later), None);
        assert_eq!(state.take(1, later), Some(later + Duration::from_secs(1)));
        let mut free = State { rate: 0, free_at: None };
        assert_eq!(free.take(u64::MAX, now), None);
        assert_eq!(free.take(1, now), None);
    }
}
