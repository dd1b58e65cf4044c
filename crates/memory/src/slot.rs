//! One slot's record: the [state word](crate::state), and what is known about the page.
//!
//! The other fields are atomics only because scans read them without a lock; what a pin holder needs of them is
//! written before `publish` and ordered by it.

use crate::state::State;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// One record fills one cache line: slots are used by different cores. The order of the fields is part of the arena
/// file's format, see `tables.rs`.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) state: State,
    pub(crate) len: AtomicU32,
    /// Time of the last access above [`HITS_BITS`], hits below.
    access: AtomicU64,
    pub(crate) created_ms: AtomicU64,
    pub(crate) checksum: AtomicU64,
    pub(crate) digest: AtomicU64,
    /// A word that belongs to the eviction policy.
    pub(crate) policy: AtomicU64,
    /// Where else the page rests, in the words of the tier below; 0 if nowhere.
    pub(crate) extent: AtomicU64,
    pub(crate) position: AtomicU32,
    /// Codec in the low 8 bits, flags in the next 16, [`UNVERIFIED`] above.
    pub(crate) encoding: AtomicU32,
}

/// The bytes were recovered after an unclean end, and nobody has compared them with their checksum since.
const UNVERIFIED: u32 = 1 << 24;
/// How many bits of the access word count hits; the other 44 hold milliseconds, which last beyond the year 2500.
const HITS_BITS: u32 = 20;
const HITS_MAX: u64 = (1 << HITS_BITS) - 1;
const ACCESS_MS_MAX: u64 = u64::MAX >> HITS_BITS;

impl Slot {
    /// Whether the bytes are known to match the checksum.
    pub(crate) fn is_verified(&self) -> bool {
        self.encoding.load(Ordering::Relaxed) & UNVERIFIED == 0
    }

    pub(crate) fn set_verified(&self, verified: bool) {
        if verified {
            self.encoding.fetch_and(!UNVERIFIED, Ordering::Relaxed);
        } else {
            self.encoding.fetch_or(UNVERIFIED, Ordering::Relaxed);
        }
    }

    /// Time of the last access, in milliseconds, and hits.
    pub(crate) fn accessed(&self) -> (u64, u32) {
        let access = self.access.load(Ordering::Relaxed);
        let hits = u32::try_from(access & HITS_MAX).expect("hits have 20 bits");
        (access >> HITS_BITS, hits)
    }

    /// Starts the count of hits over.
    pub(crate) fn set_accessed(&self, now_ms: u64, hits: u32) {
        let access = now_ms.min(ACCESS_MS_MAX) << HITS_BITS | u64::from(hits).min(HITS_MAX);
        self.access.store(access, Ordering::Relaxed);
    }

    /// Notes an access that counts as `hits` reads. Time never runs backwards, even if callers' clocks were read in
    /// another order; hits stop at their highest value.
    pub(crate) fn access(&self, now_ms: u64, hits: u32) {
        let now = now_ms.min(ACCESS_MS_MAX);
        let mut access = self.access.load(Ordering::Relaxed);
        loop {
            let hits = ((access & HITS_MAX) + u64::from(hits)).min(HITS_MAX);
            let next = (access >> HITS_BITS).max(now) << HITS_BITS | hits;
            if next == access {
                return;
            }
            match self.access.compare_exchange_weak(access, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => access = current,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_time_does_not_run_backwards() {
        let slot = Slot::default();
        slot.access(9, 0);
        slot.access(5, 0);
        assert_eq!(slot.accessed(), (9, 0));
    }

    #[test]
    fn hits_and_times_stop_at_their_ends() {
        let slot = Slot::default();
        slot.set_accessed(7, u32::MAX);
        assert_eq!(slot.accessed(), (7, (1 << 20) - 1));
        slot.access(7, 1);
        assert_eq!(slot.accessed(), (7, (1 << 20) - 1), "a full count does not spill into the time");
        slot.access(u64::MAX, 1);
        assert_eq!(slot.accessed(), ((1 << 44) - 1, (1 << 20) - 1));
    }

    #[test]
    fn a_record_is_one_cache_line() {
        assert_eq!(size_of::<Slot>(), 64);
    }
}
