//! One slot's record: a state word that decides who may touch the bytes, and what is known about the page.
//!
//! ```text
//! state word:  31         30        29 .. 0
//!              published  reserved  number of pins
//!
//! free (0) ──claim──► reserved ──publish──► published ◄─pin / unpin─► published + pins
//!    ▲                   │                      │ doom                    │ doom
//!    └─────abandon───────┘◄─────────────────────┘◄──────last unpin──── doomed (pins only)
//! ```
//!
//! Whoever brings the word to 0 owns the slot for that moment and must hand it back to the books.
//! Every transition is checked against the word itself, so a stale or invented slot number can at worst doom or
//! pin a page that somebody else put there; it can never yield bytes that are still being written.
//!
//! The other fields are atomics only because scans read them without a lock; what a pin holder needs of them is
//! written before `publish` and ordered by it.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

const PUBLISHED: u32 = 1 << 31;
const RESERVED: u32 = 1 << 30;
const PINS: u32 = RESERVED - 1;

/// One record fills one cache line: slots are used by different cores. The order of the fields is part of the arena
/// file's format, see `tables.rs`.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct Slot {
    state: AtomicU32,
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

/// What [`Slot::doom`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doomed {
    /// The slot was not published; nothing changed.
    NotPublished,
    /// Readers still hold it; the last of them frees it.
    Pinned,
    /// Nobody holds it: the caller must hand it back.
    Free,
}

impl Slot {
    /// Free to reserved, for the slot that the books have just handed out.
    ///
    /// # Panics
    ///
    /// If the slot is not free: the books handed out a slot twice.
    pub(crate) fn claim(&self, len: u32) {
        let before = self.state.swap(RESERVED, Ordering::Acquire);
        assert_eq!(before, 0, "a slot was handed out while in use");
        self.len.store(len, Ordering::Relaxed);
    }

    /// Reserved to free. The caller is the only owner and hands the slot back.
    pub(crate) fn abandon(&self) {
        let before = self.state.swap(0, Ordering::Release);
        debug_assert_eq!(before, RESERVED, "only a reserved slot can be abandoned");
    }

    /// Reserved to published. All writes to the bytes and the record happen before.
    pub(crate) fn publish(&self) {
        let before = self.state.swap(PUBLISHED, Ordering::Release);
        debug_assert_eq!(before, RESERVED, "only a reserved slot can be published");
    }

    /// Adds a pin if the slot is published.
    pub(crate) fn pin(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & PUBLISHED == 0 || state & PINS == PINS {
                return false;
            }
            match self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// Gives a pin back. `true` if that freed the slot: the caller must hand it back.
    pub(crate) fn unpin(&self) -> bool {
        // Release: this reader is done before the slot is free. Acquire: so are all the others.
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        debug_assert_ne!(before & PINS, 0, "a pin was given back twice");
        before == 1
    }

    /// Takes the slot out of circulation: no new pins.
    pub(crate) fn doom(&self) -> Doomed {
        let before = self.state.fetch_and(!PUBLISHED, Ordering::AcqRel);
        if before & PUBLISHED == 0 {
            Doomed::NotPublished
        } else if before & PINS == 0 {
            Doomed::Free
        } else {
            Doomed::Pinned
        }
    }

    /// Whether the slot is published, and its number of pins.
    pub(crate) fn published(&self) -> Option<u32> {
        let state = self.state.load(Ordering::Acquire);
        (state & PUBLISHED != 0).then_some(state & PINS)
    }

    /// What a process that is gone left: a published slot without its pins, or a free one. Returns whether it is
    /// published. Only while nobody else reaches the table.
    pub(crate) fn repair(&self) -> bool {
        let published = self.state.load(Ordering::Relaxed) & (PUBLISHED | RESERVED) == PUBLISHED;
        self.state.store(if published { PUBLISHED } else { 0 }, Ordering::Relaxed);
        published
    }

    /// Frees the slot. Only while nobody else reaches the table.
    pub(crate) fn free(&self) {
        self.state.store(0, Ordering::Relaxed);
    }

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

    fn published() -> Slot {
        let slot = Slot::default();
        slot.claim(1);
        slot.publish();
        slot
    }

    #[test]
    fn only_published_slots_can_be_pinned() {
        let slot = Slot::default();
        assert!(!slot.pin());
        slot.claim(1);
        assert!(!slot.pin(), "a slot that is being filled has no readers");
        slot.publish();
        assert!(slot.pin());
        assert_eq!(slot.published(), Some(1));
    }

    #[test]
    fn the_last_holder_frees() {
        let slot = published();
        assert!(slot.pin());
        assert!(slot.pin());
        assert!(!slot.unpin());
        assert_eq!(slot.doom(), Doomed::Pinned);
        assert!(!slot.pin(), "a doomed slot takes no new readers");
        assert_eq!(slot.doom(), Doomed::NotPublished);
        assert!(slot.unpin());
        assert_eq!(slot.published(), None);
    }

    #[test]
    fn dooming_without_readers_frees_once() {
        let slot = published();
        assert_eq!(slot.doom(), Doomed::Free);
        assert_eq!(slot.doom(), Doomed::NotPublished);
    }

    #[test]
    fn a_reserved_slot_cannot_be_doomed() {
        let slot = Slot::default();
        slot.claim(1);
        assert_eq!(slot.doom(), Doomed::NotPublished);
        slot.abandon();
        slot.claim(1);
    }

    #[test]
    fn the_number_of_pins_is_bounded() {
        let slot = published();
        slot.state.store(PUBLISHED | PINS, Ordering::Relaxed);
        assert!(!slot.pin());
    }

    #[test]
    #[should_panic(expected = "handed out while in use")]
    fn a_slot_in_use_cannot_be_claimed() {
        published().claim(1);
    }

    #[test]
    fn access_time_does_not_run_backwards() {
        let slot = published();
        slot.access(9, 0);
        slot.access(5, 0);
        assert_eq!(slot.accessed(), (9, 0));
    }

    #[test]
    fn hits_and_times_stop_at_their_ends() {
        let slot = published();
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
