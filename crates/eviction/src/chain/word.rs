//! What the chain policy knows of one page, in its word.
//!
//! | bits   | meaning                                                                                   |
//! |--------|-------------------------------------------------------------------------------------------|
//! | 0..8   | uses, from 1; 0: the word was never set                                                   |
//! | 8..16  | mean gap between uses, the last ones weighing most: eighths of an octave above 1 ms       |
//! | 16..24 | [`Birth`]                                                                                 |
//! | 24..40 | anchor: the position that the page's chain must have, or a shallower one, to be whole     |
//! | 40..56 | tag of the last use: see [`Moment`]                                                       |

use super::age::{BUCKETS, PER_OCTAVE};
use crate::{Moment, Page};

/// Kinds of pages: those used once by their birth, then 2 uses, 3 or 4, more. Finer ones see too little in a small
/// store, coarser ones do not tell a shared prompt from a conversation.
const KINDS: usize = 6;
/// Octaves of a class of gaps.
const GAP_OCTAVES: usize = 2;
const GAP_CLASSES: usize = BUCKETS / PER_OCTAVE / GAP_OCTAVES;
/// All classes.
pub(crate) const CLASSES: usize = KINDS * GAP_CLASSES;
/// The number of classes of each part.
pub(crate) const PARTS: [usize; 2] = [KINDS, GAP_CLASSES];
/// Steps of a mean gap that double it.
const STEPS: f64 = 8.0;
/// A gap weighs as much as the mean of this many before it.
const GAPS_BEFORE: f64 = 3.0;

/// How a page came that was used once: what kind of chain it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Birth {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// With all of its chain.
    New,
    /// Behind a page that had been used once: a conversation goes on.
    Next,
    /// Behind a page that many had used; or its chain was used again and went another way.
    Branch,
}

impl Birth {
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::New,
            2 => Self::Next,
            3 => Self::Branch,
            _ => Self::Unknown,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) uses: u8,
    pub(crate) mean_gap: u8,
    pub(crate) birth: Birth,
    pub(crate) anchor: u16,
    pub(crate) tag: u16,
}

impl Known {
    pub(crate) const FIRST: Self = Self { uses: 1, mean_gap: 0, birth: Birth::Unknown, anchor: 0, tag: 0 };

    pub(crate) fn from_word(word: u64) -> Self {
        let [uses, mean_gap, birth, low, high, tag_low, tag_high, _] = word.to_le_bytes();
        // A page that comes from a time before the policy was set has been used at least once.
        Self {
            uses: uses.max(1),
            mean_gap,
            birth: Birth::from_byte(birth),
            anchor: u16::from_le_bytes([low, high]),
            tag: u16::from_le_bytes([tag_low, tag_high]),
        }
    }

    pub(crate) fn word(self) -> u64 {
        let [low, high] = self.anchor.to_le_bytes();
        let [tag_low, tag_high] = self.tag.to_le_bytes();
        u64::from_le_bytes([self.uses, self.mean_gap, self.birth as u8, low, high, tag_low, tag_high, 0])
    }

    /// After one more use, `gap_ms` after the last.
    pub(crate) fn used(self, gap_ms: u64) -> Self {
        // The pages of a conversation inherit the gaps between its turns.
        let uses = if self.birth == Birth::Next { self.uses.max(2) } else { self.uses };
        let weight = if self.mean_gap == 0 { 0.0 } else { f64::from(uses - 1).min(GAPS_BEFORE) };
        let before = (f64::from(self.mean_gap) / STEPS).exp2();
        let mean = (before * weight + gap_ms as f64) / (weight + 1.0);
        let mean_gap = (mean.max(1.0).log2() * STEPS).round() as u8;
        Self { uses: self.uses.saturating_add(1), mean_gap, ..self }
    }

    /// Pages of a class are taken to behave alike.
    pub(crate) fn class(self) -> usize {
        let kind = match (self.uses, self.birth) {
            (0 | 1, Birth::Unknown | Birth::New) => 0,
            (0 | 1, Birth::Next) => 1,
            (0 | 1, Birth::Branch) => 2,
            (2, _) => 3,
            (3 | 4, _) => 4,
            _ => 5,
        };
        let gap = usize::from(self.mean_gap) / (STEPS as usize * GAP_OCTAVES);
        kind * GAP_CLASSES + gap.min(GAP_CLASSES - 1)
    }
}

/// When a page was last used, as a [number](Moment::number).
pub(crate) fn last_use(page: &Page) -> u64 {
    Moment { ms: page.last_access_ms, tag: Known::from_word(page.word).tag }.number()
}

/// The kind and the class of gaps that make up a class.
pub(crate) fn parts(class: usize) -> [usize; 2] {
    [class / GAP_CLASSES, class % GAP_CLASSES]
}
