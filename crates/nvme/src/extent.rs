//! Where a page rests, in one word.

use std::fmt;
use std::num::NonZeroU64;

/// Bytes of a block: the unit of every offset and length on a drive.
pub const BLOCK_BYTES: u32 = 4096;
/// The most drives of one log.
pub const DRIVES_MAX: usize = 1 << DRIVE_BITS;
/// The largest segment.
pub const SEGMENT_BYTES_MAX: u64 = (1 << BLOCK_BITS) * BLOCK_BYTES as u64;
/// The largest page.
pub const PAGE_BYTES_MAX: u32 = (1 << BLOCKS_BITS) * BLOCK_BYTES;

const BLOCKS_BITS: u32 = 14;
const BLOCK_BITS: u32 = 18;
const SEGMENT_BITS: u32 = 20;
const DRIVE_BITS: u32 = 4;

/// A page's place in an open log: drive, segment, first block and number of blocks, in 56 bits.
///
/// It holds for as long as the log is open; [`crate::Log::open`] names all pages anew. A segment is named by the
/// low 20 bits of its sequence number, so a name comes again after a million segments: a stale extent may then read
/// another page's bytes, which the page's checksum tells.
///
/// ```text
/// bits  55..52  51..32   31..14                   13..0
///       drive   segment  first block in segment   blocks - 1
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent(NonZeroU64);

impl Extent {
    /// Packs a place. `block` is never 0: the first block of a segment is its header.
    pub(crate) fn new(drive: u8, segment: u32, block: u32, blocks: u32) -> Self {
        debug_assert!(usize::from(drive) < DRIVES_MAX && segment >> SEGMENT_BITS == 0);
        debug_assert!(block != 0 && block >> BLOCK_BITS == 0);
        debug_assert!(blocks != 0 && (blocks - 1) >> BLOCKS_BITS == 0);
        let place = u64::from(drive) << (SEGMENT_BITS + BLOCK_BITS + BLOCKS_BITS)
            | u64::from(segment) << (BLOCK_BITS + BLOCKS_BITS)
            | u64::from(block) << BLOCKS_BITS
            | u64::from(blocks - 1);
        Self(NonZeroU64::new(place).expect("the first block of a segment holds no page"))
    }

    /// The word, below 2^56 and not 0.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// The extent of a word that [`Self::to_bits`] gave. `None` if it cannot have done so.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let fits = bits >> (DRIVE_BITS + SEGMENT_BITS + BLOCK_BITS + BLOCKS_BITS) == 0;
        let block = bits >> BLOCKS_BITS & ((1 << BLOCK_BITS) - 1);
        NonZeroU64::new(bits).filter(|_| fits && block != 0).map(Self)
    }

    /// Number of the drive, by its place in the configuration.
    #[must_use]
    pub fn drive(self) -> u8 {
        self.part(SEGMENT_BITS + BLOCK_BITS + BLOCKS_BITS, DRIVE_BITS) as u8
    }

    /// Number of the segment on its drive: the low 20 bits of its sequence number.
    #[must_use]
    pub fn segment(self) -> u32 {
        self.part(BLOCK_BITS + BLOCKS_BITS, SEGMENT_BITS)
    }

    /// First block in the segment.
    #[must_use]
    pub fn block(self) -> u32 {
        self.part(BLOCKS_BITS, BLOCK_BITS)
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(self) -> u32 {
        self.part(0, BLOCKS_BITS) + 1
    }

    /// Bytes that the page takes on the drive: its length rounded up to whole blocks.
    #[must_use]
    pub fn stored_bytes(self) -> u32 {
        self.blocks() * BLOCK_BYTES
    }

    /// Offset of the page in its segment's file.
    pub(crate) fn offset(self) -> u64 {
        u64::from(self.block()) * u64::from(BLOCK_BYTES)
    }

    fn part(self, shift: u32, bits: u32) -> u32 {
        u32::try_from(self.0.get() >> shift & ((1 << bits) - 1)).expect("a part has at most 20 bits")
    }
}

/// The name in extents of the segment with this sequence number.
pub(crate) fn segment_name(sequence: u64) -> u32 {
    u32::try_from(sequence & ((1 << SEGMENT_BITS) - 1)).expect("20 bits")
}

/// Blocks that a page of `len` bytes takes; at least one.
pub(crate) fn blocks_of(len: u32) -> u32 {
    len.div_ceil(BLOCK_BYTES).max(1)
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extent({}:{}:{}+{})", self.drive(), self.segment(), self.block(), self.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_at_both_ends() {
        for (drive, segment, block, blocks) in
            [(0, 0, 1, 1), (15, (1 << 20) - 1, (1 << 18) - 1, 1 << 14), (3, 77, 4096, 16), (0, 1, 2, 1 << 14)]
        {
            let extent = Extent::new(drive, segment, block, blocks);
            let parts = (extent.drive(), extent.segment(), extent.block(), extent.blocks());
            assert_eq!(parts, (drive, segment, block, blocks));
            assert!(extent.to_bits() < 1 << 56);
            assert_eq!(Extent::from_bits(extent.to_bits()), Some(extent));
        }
    }

    #[test]
    fn words_that_name_nothing_are_refused() {
        assert_eq!(Extent::from_bits(0), None);
        assert_eq!(Extent::from_bits(1 << 56 | 1 << 14), None);
        assert_eq!(Extent::from_bits(5), None, "block 0 is a header");
    }
}
