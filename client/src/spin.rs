//! Whether a short wait is spent looking, instead of sleeping.
//!
//! To wake a thread on a processor that sleeps takes longer than a server needs to answer a small request. So a brief
//! op looks for its reply for some microseconds, letting others run in between, before it sleeps. Where replies
//! come later than that (a far server, a busy machine) looking is given up, and tried again now and then.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// How long to look before sleeping: about what two wake-ups take.
const LOOK: Duration = Duration::from_micros(60);
/// After so many waits in a row that outlasted it, looking stops.
const MISSES_MAX: u32 = 8;
/// It is tried again once in so many waits.
const RETRY: u32 = 64;

/// What the last waits came to. Threads that wait at once may lose each other's note, which does no harm.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    misses: AtomicU32,
}

impl Spin {
    /// How long this wait may look.
    pub(crate) fn limit(&self) -> Duration {
        let misses = self.misses.load(Relaxed);
        if misses < MISSES_MAX {
            return LOOK;
        }
        self.misses.store(misses.wrapping_add(1).max(MISSES_MAX), Relaxed);
        if misses.is_multiple_of(RETRY) { LOOK } else { Duration::ZERO }
    }

    /// The reply came while looking.
    pub(crate) fn caught(&self) {
        if self.misses.load(Relaxed) != 0 {
            self.misses.store(0, Relaxed);
        }
    }

    /// Looking was in vain.
    pub(crate) fn missed(&self) {
        let misses = self.misses.load(Relaxed);
        if misses < MISSES_MAX {
            self.misses.store(misses + 1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_stops_when_it_is_in_vain_and_comes_back() {
        let spin = Spin::default();
        for _ in 0..MISSES_MAX {
            assert_eq!(spin.limit(), LOOK);
            spin.missed();
        }
        let looks = |spin: &Spin| {
            (0..4 * RETRY).filter(|_| !spin.limit().is_zero()).inspect(|_| spin.missed()).count()
        };
        assert_eq!(looks(&spin), 4);
        let again = (0..RETRY).find(|_| !spin.limit().is_zero());
        assert!(again.is_some());
        spin.caught();
        assert_eq!(spin.limit(), LOOK);
        spin.missed();
        assert_eq!(spin.limit(), LOOK, "one miss is not enough to stop again");
    }
}
