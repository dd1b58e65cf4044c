//! Least recently used.

use crate::{Choice, Moment, Page, Policy, Want};

/// The page that was not asked for the longest goes first.
///
/// An engine asks for the pages of a prefix together, so they have one time of access. Of those the deepest goes
/// first: a page without its predecessors is of no use, they without it are.
///
/// The word is the tag of the last access.
#[derive(Debug, Default)]
pub(crate) struct Lru;

/// The smallest goes first.
fn rank(page: &Page) -> (u64, u64) {
    let last = Moment { ms: page.last_access_ms, tag: page.word as u16 };
    (last.number(), u64::from(u32::MAX - page.position))
}

impl Policy for Lru {
    fn inserted(&self, _: &Page, tag: u16) -> u64 {
        tag.into()
    }

    fn accessed(&self, _: &Page, now: Moment) -> u64 {
        now.tag.into()
    }

    fn evicted(&self, _: &Page, _: u64) {}

    fn worth(&self, page: &Page, _: u64) -> u64 {
        page.last_access_ms
    }

    fn choose(&self, pages: &[Page], want: Want, _: u64, choice: &mut Choice) {
        choice.smallest(pages, want, rank);
    }
}
