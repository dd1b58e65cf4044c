//! The word that decides who may touch a slot's bytes.
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
//! The word is generic over its atomic integer, so that the model checker runs the same transitions as everybody
//! else: see `state_model.rs`.

use crate::sync::{AtomicU32, Ordering};

const PUBLISHED: u32 = 1 << 31;
const RESERVED: u32 = 1 << 30;
const PINS: u32 = RESERVED - 1;

/// What a state word needs of an atomic integer; the methods are those of the standard library's.
pub(crate) trait Word {
    fn load(&self, order: Ordering) -> u32;
    fn store(&self, value: u32, order: Ordering);
    fn swap(&self, value: u32, order: Ordering) -> u32;
    fn compare_exchange_weak(&self, now: u32, next: u32, yes: Ordering, no: Ordering) -> Result<u32, u32>;
    fn fetch_sub(&self, value: u32, order: Ordering) -> u32;
    fn fetch_and(&self, value: u32, order: Ordering) -> u32;
}

/// Hands every method of [`Word`] to the type's own of the same name.
macro_rules! word {
    ($type:ty) => {
        impl Word for $type {
            fn load(&self, order: Ordering) -> u32 {
                self.load(order)
            }

            fn store(&self, value: u32, order: Ordering) {
                self.store(value, order);
            }

            fn swap(&self, value: u32, order: Ordering) -> u32 {
                self.swap(value, order)
            }

            fn compare_exchange_weak(
                &self,
                now: u32,
                next: u32,
                yes: Ordering,
                no: Ordering,
            ) -> Result<u32, u32> {
                self.compare_exchange_weak(now, next, yes, no)
            }

            fn fetch_sub(&self, value: u32, order: Ordering) -> u32 {
                self.fetch_sub(value, order)
            }

            fn fetch_and(&self, value: u32, order: Ordering) -> u32 {
                self.fetch_and(value, order)
            }
        }
    };
}

word!(AtomicU32);

/// A state word. 0, its default, is free.
#[repr(transparent)]
#[derive(Default)]
pub(crate) struct State<W = AtomicU32>(W);

/// What [`State::doom`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doomed {
    /// The slot was not published; nothing changed.
    NotPublished,
    /// Readers still hold it; the last of them frees it.
    Pinned,
    /// Nobody holds it: the caller must hand it back.
    Free,
}

impl<W: Word> State<W> {
    /// Free to reserved, for the slot that the books have just handed out.
    ///
    /// # Panics
    ///
    /// If the slot is not free: the books handed out a slot twice.
    pub(crate) fn claim(&self) {
        // Acquire: whoever freed the slot was done with its bytes.
        let before = self.0.swap(RESERVED, Ordering::Acquire);
        assert_eq!(before, 0, "a slot was handed out while in use");
    }

    /// Reserved to free. The caller is the only owner and hands the slot back.
    pub(crate) fn abandon(&self) {
        let before = self.0.swap(0, Ordering::Release);
        debug_assert_eq!(before, RESERVED, "only a reserved slot can be abandoned");
    }

    /// Reserved to published. All writes to the bytes and the record happen before.
    pub(crate) fn publish(&self) {
        let before = self.0.swap(PUBLISHED, Ordering::Release);
        debug_assert_eq!(before, RESERVED, "only a reserved slot can be published");
    }

    /// Adds a pin if the slot is published.
    pub(crate) fn pin(&self) -> bool {
        let mut state = self.0.load(Ordering::Relaxed);
        loop {
            if state & PUBLISHED == 0 || state & PINS == PINS {
                return false;
            }
            match self.0.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// Gives a pin back. `true` if that freed the slot: the caller must hand it back.
    pub(crate) fn unpin(&self) -> bool {
        // Release: this reader is done before the slot is free. Acquire: so are all the others, also for whoever gets
        // the bytes under another number, after the chunk changed class.
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert_ne!(before & PINS, 0, "a pin was given back twice");
        before == 1
    }

    /// Takes the slot out of circulation: no new pins.
    pub(crate) fn doom(&self) -> Doomed {
        // Acquire: if nobody holds it, every reader is done, and the record is that of this page.
        let before = self.0.fetch_and(!PUBLISHED, Ordering::Acquire);
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
        let state = self.0.load(Ordering::Acquire);
        (state & PUBLISHED != 0).then_some(state & PINS)
    }

    /// What a process that is gone left: a published slot without its pins, or a free one. Returns whether it is
    /// published. Only while nobody else reaches the table.
    pub(crate) fn repair(&self) -> bool {
        let published = self.0.load(Ordering::Relaxed) & (PUBLISHED | RESERVED) == PUBLISHED;
        self.0.store(if published { PUBLISHED } else { 0 }, Ordering::Relaxed);
        published
    }

    /// Frees the slot. Only while nobody else reaches the table.
    pub(crate) fn free(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> State {
        let state = State::default();
        state.claim();
        state.publish();
        state
    }

    #[test]
    fn only_published_slots_can_be_pinned() {
        let state = State::<AtomicU32>::default();
        assert!(!state.pin());
        state.claim();
        assert!(!state.pin(), "a slot that is being filled has no readers");
        state.publish();
        assert!(state.pin());
        assert_eq!(state.published(), Some(1));
    }

    #[test]
    fn the_last_holder_frees() {
        let state = published();
        assert!(state.pin());
        assert!(state.pin());
        assert!(!state.unpin());
        assert_eq!(state.doom(), Doomed::Pinned);
        assert!(!state.pin(), "a doomed slot takes no new readers");
        assert_eq!(state.doom(), Doomed::NotPublished);
        assert!(state.unpin());
        assert_eq!(state.published(), None);
    }

    #[test]
    fn dooming_without_readers_frees_once() {
        let state = published();
        assert_eq!(state.doom(), Doomed::Free);
        assert_eq!(state.doom(), Doomed::NotPublished);
    }

    #[test]
    fn a_reserved_slot_cannot_be_doomed() {
        let state = State::<AtomicU32>::default();
        state.claim();
        assert_eq!(state.doom(), Doomed::NotPublished);
        state.abandon();
        state.claim();
    }

    #[test]
    fn the_number_of_pins_is_bounded() {
        let state = published();
        state.0.store(PUBLISHED | PINS, Ordering::Relaxed);
        assert!(!state.pin());
    }

    #[test]
    #[should_panic(expected = "handed out while in use")]
    fn a_slot_in_use_cannot_be_claimed() {
        published().claim();
    }

    #[test]
    fn what_a_dead_process_left_is_published_or_free() {
        for (left, kept) in [
            (0, false),
            (RESERVED, false),
            (3, false),
            (PUBLISHED, true),
            (PUBLISHED | 7, true),
            (PUBLISHED | RESERVED, false),
        ] {
            let state = State(AtomicU32::new(left));
            assert_eq!((state.repair(), state.published()), (kept, kept.then_some(0)), "{left:x}");
            if !kept {
                state.claim();
            }
        }
    }
}

#[cfg(test)]
#[path = "state_model.rs"]
mod model;
