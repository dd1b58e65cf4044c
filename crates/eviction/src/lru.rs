//! Least recently used.

use crate::{Choice, Page, Policy, Want};
use std::sync::atomic::{AtomicU64, Ordering};

/// The page that was not asked for the longest goes first.
///
/// An engine asks for the pages of a prefix together, so they have one time of access. Of those the deepest goes
/// first: a page without its predecessors is of no use, they without it are.
///
/// The word is the number of pages that had come by the last access: it tells accesses apart that the clock does not.
#[derive(Debug, Default)]
pub(crate) struct Lru {
    came: AtomicU64,
}

/// The smallest goes first.
fn rank(page: &Page) -> (u64, u64) {
    (page.last_access_ms, u64::from(u32::MAX - page.position))
}

impl Policy for Lru {
    fn inserted(&self, _: &Page) -> u64 {
        self.came.fetch_add(1, Ordering::Relaxed)
    }

    fn accessed(&self, _: &Page, _: u64) -> u64 {
        self.came.load(Ordering::Relaxed)
    }

    fn evicted(&self, _: &Page, _: u64) {}

    fn worth(&self, page: &Page, _: u64) -> u64 {
        page.last_access_ms
    }

    fn choose(&self, pages: &[Page], want: Want, _: u64, choice: &mut Choice) {
        choice.smallest(pages, want, rank);
    }
}
