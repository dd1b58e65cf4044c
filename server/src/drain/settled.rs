//! Which pages need not be looked at again: by their digests, and up to a number of them. Beyond that number a page
//! that comes up twice is asked about twice, which costs a question and blurs a count.

use parking_lot::Mutex;
use std::collections::HashSet;

/// Digests that are remembered; the set takes about 16 bytes for each.
const PAGES_MAX: usize = 1 << 22;

#[derive(Default)]
pub(crate) struct Settled {
    sets: Mutex<Sets>,
}

#[derive(Default)]
struct Sets {
    all: HashSet<u64>,
    /// Those that nobody took.
    lost: Vec<u64>,
}

impl Settled {
    /// A page was looked at, and `lost` if nobody took it.
    pub(crate) fn add(&self, digest: u64, lost: bool) {
        let mut sets = self.sets.lock();
        if sets.all.len() < PAGES_MAX && sets.all.insert(digest) && lost {
            sets.lost.push(digest);
        }
    }

    /// Whether the page was looked at.
    pub(crate) fn has(&self, digest: u64) -> bool {
        self.sets.lock().all.contains(&digest)
    }

    /// Whether some pages may not be remembered.
    pub(crate) fn is_full(&self) -> bool {
        self.sets.lock().all.len() >= PAGES_MAX
    }

    /// Those that nobody took are to be looked at again.
    pub(crate) fn forget_lost(&self) {
        let mut sets = self.sets.lock();
        for digest in std::mem::take(&mut sets.lost) {
            sets.all.remove(&digest);
        }
    }
}
