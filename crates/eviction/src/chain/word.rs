//! What the chain policy knows of one page, in its word.
//!
//! | bits   | meaning                                                        |
//! |--------|----------------------------------------------------------------|
//! | 0..8   | uses, from 1; 0: the word was never set                        |
//! | 8..16  | [bucket](super::age::bucket) of the last gap between two uses  |
//! | 16..24 | bucket of the mean of the last two gaps                        |

use super::age::{self, BUCKETS};

/// Classes of uses: 1, 2, 3 or 4, more. Finer ones see too little in a small store, coarser ones do not tell a shared
/// prompt from a conversation.
const USE_CLASSES: usize = 4;
/// Classes of gaps: four to an octave would be too fine to learn, one is fine.
pub(crate) const GAP_CLASSES: usize = BUCKETS / age::PER_OCTAVE / 2;
/// All classes.
pub(crate) const CLASSES: usize = USE_CLASSES * GAP_CLASSES;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) uses: u8,
    last_gap: u8,
    mean_gap: u8,
}

impl Known {
    pub(crate) const FIRST: Self = Self { uses: 1, last_gap: 0, mean_gap: 0 };

    pub(crate) fn from_word(word: u64) -> Self {
        let [uses, last_gap, mean_gap, ..] = word.to_le_bytes();
        // A page that comes from a time before the policy was set has been used at least once.
        Self { uses: uses.max(1), last_gap, mean_gap }
    }

    pub(crate) fn word(self) -> u64 {
        u64::from_le_bytes([self.uses, self.last_gap, self.mean_gap, 0, 0, 0, 0, 0])
    }

    /// After one more use, `gap_ms` after the last.
    pub(crate) fn used(self, gap_ms: u64) -> Self {
        let last_gap = age::bucket(gap_ms);
        let before = if self.uses > 1 { age::start_ms(usize::from(self.last_gap)) } else { gap_ms as f64 };
        let mean_gap = age::bucket(((before + gap_ms as f64) / 2.0) as u64);
        Self { uses: self.uses.saturating_add(1), last_gap: last_gap as u8, mean_gap: mean_gap as u8 }
    }

    /// Pages of a class are taken to behave alike.
    pub(crate) fn class(self) -> usize {
        let uses = usize::from(self.uses).next_power_of_two().trailing_zeros() as usize;
        let gap = usize::from(self.mean_gap) / (2 * age::PER_OCTAVE);
        uses.min(USE_CLASSES - 1) * GAP_CLASSES + gap.min(GAP_CLASSES - 1)
    }
}

/// The class of uses and the class of gaps that make up a class.
pub(crate) fn parts(class: usize) -> [usize; 2] {
    [class / GAP_CLASSES, class % GAP_CLASSES]
}

/// The number of classes of each part.
pub(crate) const PARTS: [usize; 2] = [USE_CLASSES, GAP_CLASSES];
