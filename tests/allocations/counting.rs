//! An allocator that counts, for the thread that asks and for all others.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

static ALL: AtomicU64 = AtomicU64::new(0);
/// One test at a time: another's threads would be counted as others.
static MEASURING: Mutex<()> = Mutex::new(());

thread_local! {
    static OWN: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    OWN.set(OWN.get() + 1);
    ALL.fetch_add(1, Ordering::SeqCst);
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Allocations while something ran.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// By the thread that ran it.
    pub(crate) own: u64,
    /// By all other threads of the process.
    pub(crate) others: u64,
}

/// Waits until no other test counts.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    MEASURING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs something and counts.
pub(crate) fn counted(act: impl FnOnce()) -> Counts {
    let (own, all) = (OWN.get(), ALL.load(Ordering::SeqCst));
    act();
    let own = OWN.get() - own;
    Counts { own, others: (ALL.load(Ordering::SeqCst) - all).saturating_sub(own) }
}
