//! When a read stops waiting for one server and asks another that may have the page.
//!
//! The first connection is closed before the second one is used, so the caller's memory has one writer at any time. That
//! makes an early change cost a connection, and so it is rationed: about one read in ten may make one.
//!
//! The delay is a percentile of what reads of that size took lately. It is followed with one number for each size: a
//! sample above it raises it by much, one below lowers it by little, and where the two are in balance the wanted share
//! of samples is below.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// When reads change early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Hedge {
    /// After the time that 99 of 100 reads of that size take.
    #[default]
    Auto,
    /// Only when half of the time that is left has passed.
    Off,
    /// After this time.
    After(Duration),
}

impl std::str::FromStr for Hedge {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => crate::config::parse_duration(other)
                .map(Self::After)
                .map_err(|problem| format!("{problem}; or write auto or off")),
        }
    }
}

/// Sizes are told apart by their powers of two.
const SIZES: usize = 32;
/// Samples above the percentile weigh this much more than those below: 99 of 100 are below.
const WEIGHT: u64 = 99;
/// Samples from which on the percentile is used.
const SAMPLES_MIN: u64 = 64;
/// Before that, and never less than [`DELAY_MIN`].
const DELAY_UNKNOWN: Duration = Duration::from_millis(100);
/// Waking up late is no reason to change.
const DELAY_MIN: Duration = Duration::from_millis(5);
/// An early change costs this many tokens, and each read brings one.
const PRICE: i32 = 10;
/// The most tokens that are saved.
const TOKENS_MAX: i32 = 16 * PRICE;

/// How long reads took lately.
pub(crate) struct Pace {
    sizes: [Size; SIZES],
    tokens: AtomicI32,
}

#[derive(Default)]
struct Size {
    samples: AtomicU64,
    nanos: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { sizes: std::array::from_fn(|_| Size::default()), tokens: AtomicI32::new(TOKENS_MAX) }
    }
}

impl Pace {
    fn size(&self, bytes: usize) -> &Size {
        let power = (usize::BITS - bytes.leading_zeros()) as usize;
        &self.sizes[power.min(SIZES - 1)]
    }

    /// Notes a read that was not cut short. Two at once may lose one note.
    pub(crate) fn note(&self, bytes: usize, spent: Duration) {
        let size = self.size(bytes);
        let now = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        let before = size.nanos.load(Relaxed);
        let after = match size.samples.fetch_add(1, Relaxed) {
            0 => now,
            _ if now > before => before.saturating_add((before / 1024).saturating_mul(WEIGHT).max(1000)),
            _ => before - before / 1024,
        };
        size.nanos.store(after, Relaxed);
        if self.tokens.load(Relaxed) < TOKENS_MAX {
            self.tokens.fetch_add(1, Relaxed);
        }
    }

    /// How long a read of that size may take before another server is asked; `left` is what the caller gives.
    pub(crate) fn delay(&self, hedge: Hedge, bytes: usize, left: Duration) -> Duration {
        let size = self.size(bytes);
        let early = match hedge {
            Hedge::Off => left / 2,
            Hedge::After(delay) => delay,
            Hedge::Auto if size.samples.load(Relaxed) < SAMPLES_MIN => DELAY_UNKNOWN,
            Hedge::Auto => Duration::from_nanos(size.nanos.load(Relaxed)).max(DELAY_MIN),
        };
        let rationed = hedge != Hedge::Off && self.tokens.load(Relaxed) < PRICE;
        if rationed { left / 2 } else { early.min(left / 2) }
    }

    /// A read changed early.
    pub(crate) fn changed(&self) {
        self.tokens.fetch_sub(PRICE, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Duration = Duration::from_secs(3);

    #[test]
    fn the_delay_tends_to_the_percentile() {
        let pace = Pace::default();
        assert_eq!(pace.delay(Hedge::Auto, 4096, LEFT), DELAY_UNKNOWN);
        // 2 of 100 take 50 ms, the others 10 ms and less.
        for i in 0..20_000_u64 {
            let millis = if i % 50 == 0 { 50 } else { 1 + i % 10 };
            pace.note(4096, Duration::from_millis(millis));
        }
        let delay = pace.delay(Hedge::Auto, 4096, LEFT);
        assert!((Duration::from_millis(12)..Duration::from_millis(60)).contains(&delay), "{delay:?}");
        assert_eq!(pace.delay(Hedge::Auto, 1 << 20, LEFT), DELAY_UNKNOWN, "another size");
    }

    #[test]
    fn early_changes_are_rationed() {
        let pace = Pace::default();
        let delay = Duration::from_millis(20);
        for _ in 0..TOKENS_MAX / PRICE {
            assert_eq!(pace.delay(Hedge::After(delay), 1, LEFT), delay);
            pace.changed();
        }
        assert_eq!(pace.delay(Hedge::After(delay), 1, LEFT), LEFT / 2);
        for _ in 0..PRICE {
            pace.note(1, delay);
        }
        assert_eq!(pace.delay(Hedge::After(delay), 1, LEFT), delay);
    }

    #[test]
    fn no_delay_takes_more_than_half_of_the_time() {
        let pace = Pace::default();
        let left = Duration::from_millis(8);
        assert_eq!(pace.delay(Hedge::Auto, 1, left), left / 2);
        assert_eq!(pace.delay(Hedge::Off, 1, LEFT), LEFT / 2);
    }
}
