//! What is remembered of pages that went.
//!
//! A table of a fixed number of entries of 16 bytes, eight to a set. A digest's set is given by its low bits; a full
//! set forgets the page that was used longest ago. Two digests are taken for one if 32 bits agree besides the set: then
//! a page is believed to be older than it is, which does no harm.

use super::word::Known;
use parking_lot::Mutex;

const WAYS: usize = 8;
/// Sets with a lock of their own.
const SETS_PER_LOCK: usize = 64;

/// A page that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ghost {
    tag: u32,
    known: [u8; 3],
    pub(crate) learned: bool,
    pub(crate) last_ms: u64,
}

impl Ghost {
    const NONE: Self = Self { tag: 0, known: [0; 3], learned: false, last_ms: 0 };

    pub(crate) fn known(self) -> Known {
        let [uses, mean_gap, birth] = self.known;
        Known::from_word(u64::from_le_bytes([uses, mean_gap, birth, 0, 0, 0, 0, 0]))
    }

    fn is_some(self) -> bool {
        self.known[0] != 0
    }
}

#[derive(Debug)]
pub(crate) struct Ghosts {
    sets: usize,
    in_part: usize,
    /// A part takes memory when it is first used.
    parts: Vec<Mutex<Vec<[Ghost; WAYS]>>>,
}

impl Ghosts {
    /// Room for at least `pages` pages, if they spread evenly.
    pub(crate) fn new(pages: usize) -> Self {
        let sets = pages.div_ceil(WAYS).next_power_of_two();
        let in_part = sets.min(SETS_PER_LOCK);
        Self { sets, in_part, parts: (0..sets / in_part).map(|_| Mutex::default()).collect() }
    }

    /// The part of a digest, and its set there.
    fn place(&self, digest: u64) -> (&Mutex<Vec<[Ghost; WAYS]>>, usize) {
        let set = (digest as usize) & (self.sets - 1);
        (&self.parts[set % self.parts.len()], set / self.parts.len())
    }

    /// Remembers a page. Returns the one that is forgotten for it.
    ///
    /// `learned` says whether the policy learns from it.
    pub(crate) fn add(&self, digest: u64, known: Known, last_ms: u64, learned: bool) -> Option<Ghost> {
        // Without the anchor: what comes back comes with another chain.
        let [uses, mean_gap, birth, ..] = known.word().to_le_bytes();
        let ghost = Ghost { tag: upper(digest), known: [uses, mean_gap, birth], learned, last_ms };
        let (part, set) = self.place(digest);
        let mut part = part.lock();
        if part.is_empty() {
            *part = vec![[Ghost::NONE; WAYS]; self.in_part];
        }
        let place = part[set].iter_mut().min_by_key(|ghost| (ghost.is_some(), ghost.last_ms))?;
        Some(std::mem::replace(place, ghost)).filter(|forgotten| forgotten.is_some())
    }

    /// Takes a page out that comes back.
    pub(crate) fn take(&self, digest: u64) -> Option<Ghost> {
        let (part, set) = self.place(digest);
        let mut part = part.lock();
        let ghosts = part.get_mut(set)?;
        let place = ghosts.iter_mut().find(|ghost| ghost.is_some() && ghost.tag == upper(digest))?;
        Some(std::mem::replace(place, Ghost::NONE))
    }

    /// Shows all of them.
    pub(crate) fn each(&self, mut see: impl FnMut(Ghost)) {
        for part in &self.parts {
            part.lock().iter().flatten().filter(|ghost| ghost.is_some()).for_each(|ghost| see(*ghost));
        }
    }
}

/// The half of a digest that a ghost keeps.
pub(crate) fn upper(digest: u64) -> u32 {
    (digest >> 32) as u32
}
