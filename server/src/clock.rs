//! The clocks of the daemon. Everything below the shell takes time as a number.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds that never go backwards while the daemon lives, and that go on where they were when it is restarted:
/// Unix time as the system said it at the start, plus what has passed since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_unix_ms: u64,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), start_unix_ms: unix_ms() }
    }

    /// The time by which pages are stored, used and kept. It does not follow when the system's clock is set.
    pub(crate) fn now_ms(&self) -> u64 {
        self.start_unix_ms.saturating_add(self.uptime_ms())
    }

    /// Milliseconds since the start.
    pub(crate) fn uptime_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Unix time in milliseconds; 0 if the system's clock is before 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    now.saturating_add_signed(shift_ms())
}

/// How far a test moves the clock of this process, which may change at any time: the system's own is not a test's to set. Only in builds
/// for tests.
#[cfg(debug_assertions)]
fn shift_ms() -> i64 {
    let Some(file) = std::env::var_os("MEMKV_TEST_CLOCK") else { return 0 };
    std::fs::read_to_string(file).ok().and_then(|shift| shift.trim().parse().ok()).unwrap_or(0)
}

#[cfg(not(debug_assertions))]
fn shift_ms() -> i64 {
    0
}
