//! Every order in which threads can meet at one slot, by the loom model checker.
//!
//! The slot's bytes are a cell that loom watches: a write that is not ordered after every earlier read and write of
//! another thread fails the model, whatever value is read. The books are left out where they would add order: the
//! words alone must do. Whoever frees a slot becomes its next owner at once, claims it and writes.
//!
//! Covered: publish against pin; pin and unpin against doom, with one and two readers; who frees, and that exactly one
//! does; reuse by whoever frees, under the same number and, as after a change of class, under another; the length that
//! whoever frees tells the books; a reader with a stale number that meets the next page; reuse after abandoning.
//! Left out: the books themselves (a lock), and more than three threads.

use super::{Doomed, State, Word};
use crate::sync::Ordering;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32};
use loom::thread;

word!(AtomicU32);

/// One slot with its bytes, of which two stand for all: a torn page would differ in them.
struct Slot {
    state: State<AtomicU32>,
    bytes: [UnsafeCell<u32>; 2],
    /// Noted before publication, read by whoever frees: stands for the page's length.
    len: AtomicU32,
    /// How often the slot was freed.
    freed: AtomicU32,
}

impl Slot {
    fn new() -> Arc<Self> {
        let bytes = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self {
            state: State(AtomicU32::new(0)),
            bytes,
            len: AtomicU32::new(0),
            freed: AtomicU32::new(0),
        })
    }

    /// As a writer does: from a free slot to a published page.
    fn fill(&self, page: u32) {
        self.state.claim();
        self.len.store(page, Ordering::Relaxed);
        self.write(page);
        self.state.publish();
    }

    fn write(&self, page: u32) {
        for byte in &self.bytes {
            // SAFETY: not assumed but checked: loom fails the model if any other access is not ordered.
            byte.with_mut(|byte| unsafe { *byte = page });
        }
    }

    fn read(&self) -> u32 {
        // SAFETY: as in `write`.
        let [first, second] = [0, 1].map(|at: usize| self.bytes[at].with(|byte| unsafe { *byte }));
        assert_eq!(first, second, "a page is whole");
        first
    }

    /// As a reader does. Returns the page, if there was one. If the reader frees the slot, `next` is put there.
    fn visit(&self, next: u32) -> Option<u32> {
        if !self.state.pin() {
            return None;
        }
        let page = self.read();
        assert_eq!(self.read(), page, "a pinned page does not change");
        if self.state.unpin() {
            self.reuse(next);
        }
        Some(page)
    }

    /// As an evictor does.
    fn evict(&self, next: u32) -> Doomed {
        let doomed = self.state.doom();
        if doomed == Doomed::Free {
            self.reuse(next);
        }
        doomed
    }

    fn reuse(&self, page: u32) {
        self.freed.fetch_add(1, Ordering::Relaxed);
        self.fill(page);
    }

    fn freed(&self) -> u32 {
        self.freed.load(Ordering::Relaxed)
    }
}

fn run<T: 'static>(slot: &Arc<Slot>, work: impl FnOnce(&Slot) -> T + 'static) -> thread::JoinHandle<T> {
    let slot = Arc::clone(slot);
    thread::spawn(move || work(&slot))
}

#[test]
fn a_reader_sees_a_whole_page_or_none() {
    loom::model(|| {
        let slot = Slot::new();
        let writer = run(&slot, |slot| slot.fill(1));
        let seen = slot.visit(9);
        assert!(seen.is_none_or(|page| page == 1));
        writer.join().unwrap();
        assert_eq!((slot.visit(9), slot.freed()), (Some(1), 0));
    });
}

#[test]
fn a_doomed_page_is_freed_once_and_only_when_its_reader_is_done() {
    loom::model(|| {
        let slot = Slot::new();
        slot.fill(1);
        let evictor = run(&slot, |slot| slot.evict(2));
        // The reader may come with a number that is stale by then, and meet the next page.
        let seen = slot.visit(3);
        assert!(seen.is_none_or(|page| page == 1 || page == 2));
        assert_ne!(evictor.join().unwrap(), Doomed::NotPublished);
        assert_eq!(slot.freed(), 1);
        let last = slot.visit(9);
        assert!(last == Some(2) || last == Some(3));
    });
}

#[test]
fn of_two_readers_and_an_evictor_one_frees() {
    loom::model(|| {
        let slot = Slot::new();
        slot.fill(1);
        let threads = [run(&slot, |slot| slot.visit(2)), run(&slot, |slot| slot.visit(3))];
        assert_ne!(slot.evict(4), Doomed::NotPublished);
        for thread in threads {
            let seen = thread.join().unwrap();
            assert!(seen.is_none_or(|page| page <= 4));
        }
        assert_eq!(slot.freed(), 1);
    });
}

#[test]
fn a_freed_slot_can_be_written_under_another_number() {
    loom::model(|| {
        let slot = Slot::new();
        let freed = |slot: &Slot| {
            assert_eq!(slot.len.load(Ordering::Relaxed), 1, "the books are told the length of this page");
            // No claim: the chunk has another class now, and the new owner another word.
            slot.write(2);
        };
        let writer = run(&slot, |slot| slot.fill(1));
        let reader = run(&slot, move |slot| {
            if slot.state.pin() {
                assert_eq!(slot.read(), 1);
                if slot.state.unpin() {
                    freed(slot);
                }
            }
        });
        if slot.state.doom() == Doomed::Free {
            freed(&slot);
        }
        writer.join().unwrap();
        reader.join().unwrap();
    });
}

#[test]
fn two_readers_are_done_before_their_bytes_are_written_under_another_number() {
    loom::model(|| {
        let slot = Slot::new();
        slot.fill(1);
        let visit = |slot: &Slot| {
            if slot.state.pin() {
                assert_eq!(slot.read(), 1);
                if slot.state.unpin() {
                    slot.write(2);
                }
            }
        };
        let readers = [run(&slot, visit), run(&slot, visit)];
        if slot.state.doom() == Doomed::Free {
            slot.write(2);
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn of_two_evictors_one_dooms() {
    loom::model(|| {
        let slot = Slot::new();
        slot.fill(1);
        assert!(slot.state.pin());
        let other = run(&slot, |slot| slot.state.doom());
        let doomed = [slot.state.doom(), other.join().unwrap()];
        assert_eq!(doomed.iter().filter(|&&doomed| doomed == Doomed::Pinned).count(), 1);
        assert_eq!(doomed.iter().filter(|&&doomed| doomed == Doomed::NotPublished).count(), 1);
        assert_eq!(slot.read(), 1);
        assert!(slot.state.unpin());
    });
}

#[test]
fn an_abandoned_slot_can_be_written_by_the_next() {
    loom::model(|| {
        let slot = Slot::new();
        let gone = Arc::new(AtomicBool::new(false));
        let first = {
            let gone = Arc::clone(&gone);
            run(&slot, move |slot| {
                slot.state.claim();
                slot.write(1);
                slot.state.abandon();
                // Relaxed, unlike the books' lock: the slot's word must be enough.
                gone.store(true, Ordering::Relaxed);
            })
        };
        if gone.load(Ordering::Relaxed) {
            slot.fill(2);
            assert_eq!(slot.visit(9), Some(2));
        }
        first.join().unwrap();
    });
}
