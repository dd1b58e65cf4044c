//! How requests wake the evictor: a flag that is cheap to set, and a place to sleep.

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Remembers that eviction is wanted until somebody has waited for it.
#[derive(Default)]
pub(crate) struct Pressure {
    wanted: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Pressure {
    /// Asks for eviction. Costs one load while a request is already pending.
    pub(crate) fn ask(&self) {
        if self.wanted.load(Ordering::Relaxed) || self.wanted.swap(true, Ordering::AcqRel) {
            return;
        }
        // A sleeper either holds the lock and has yet to look at the flag, or sleeps and hears the call.
        drop(self.sleep.lock());
        self.wake.notify_one();
    }

    /// Waits until eviction is asked for, or `timeout` passes.
    pub(crate) fn wait(&self, timeout: Duration) {
        let mut sleep = self.sleep.lock();
        if !self.wanted.load(Ordering::Acquire) {
            self.wake.wait_for(&mut sleep, timeout);
        }
        self.wanted.store(false, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_request_before_the_wait_is_not_lost() {
        let pressure = Pressure::default();
        pressure.ask();
        pressure.ask();
        pressure.wait(LONG);
        assert!(!pressure.is_wanted());
        pressure.wait(Duration::ZERO);
    }

    #[test]
    fn a_request_wakes_the_sleeper() {
        let pressure = Arc::new(Pressure::default());
        let sleeper = std::thread::spawn({
            let pressure = Arc::clone(&pressure);
            move || pressure.wait(LONG)
        });
        pressure.ask();
        sleeper.join().unwrap();
    }
}
