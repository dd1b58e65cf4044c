//! What the queue policies share: the order in which pages came.

use crate::{Moment, Page};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a stamp.
const STAMP_BITS: u32 = 56;
const STAMP: u64 = (1 << STAMP_BITS) - 1;

/// Hands out stamps that grow. Pages that come at one moment get one stamp: they are of one request, and of those the
/// deepest leaves the queue first.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    last: AtomicU64,
    /// The number of the last moment.
    moment: AtomicU64,
}

impl Stamps {
    /// The stamp of a page that comes now.
    pub(crate) fn at(&self, now: Moment) -> u64 {
        if self.moment.swap(now.number(), Ordering::Relaxed) == now.number() {
            return self.last.load(Ordering::Relaxed);
        }
        self.next()
    }

    /// Makes the next stamps larger than those of these pages, which may come from an earlier life of the store.
    pub(crate) fn catch_up(&self, pages: &[Page]) {
        if let Some(newest) = pages.iter().map(|page| Word(page.word).stamp()).max() {
            self.last.fetch_max(newest, Ordering::Relaxed);
        }
    }

    /// A stamp of its own.
    pub(crate) fn next(&self) -> u64 {
        (self.last.fetch_add(1, Ordering::Relaxed) + 1) & STAMP
    }
}

/// A word of a queue policy: a stamp, and a byte of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) fn new(stamp: u64, byte: u8) -> Self {
        Self(stamp & STAMP | u64::from(byte) << STAMP_BITS)
    }

    pub(crate) fn stamp(self) -> u64 {
        self.0 & STAMP
    }

    pub(crate) fn byte(self) -> u8 {
        (self.0 >> STAMP_BITS) as u8
    }

    pub(crate) fn with_byte(self, byte: u8) -> Self {
        Self::new(self.stamp(), byte)
    }
}

/// Indices of the pages that `take` wants, in the order in which they came; of one stamp the deepest first.
pub(crate) fn in_order(pages: &[Page], take: impl Fn(Word) -> bool) -> Vec<u32> {
    let numbered = (0_u32..).zip(pages).filter(|(_, page)| take(Word(page.word)));
    let mut order: Vec<u32> = numbered.map(|(at, _)| at).collect();
    order.sort_unstable_by_key(|&at| {
        let page = &pages[at as usize];
        (Word(page.word).stamp(), u32::MAX - page.position, at)
    });
    order
}
