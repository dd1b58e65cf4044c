//! A walk over one segment, for whoever verifies what rests on the drives.

use crate::buffer::Buffer;
use crate::extent::{BLOCK_BYTES, blocks_of};
use crate::format::{self, BLOCK, Record, Records};
use crate::segment::Segment;
use crate::{Extent, OwnedHead, PageHead};
use memkv_core::PageHasher;
use std::sync::Arc;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A page that the walk came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// What was noted of it.
    pub head: OwnedHead,
    /// Where it is.
    pub extent: Extent,
    /// Whether its bytes could be read and have the checksum that was noted.
    pub intact: bool,
}

/// Goes through the pages of a segment; see [`crate::Log::walk`].
///
/// Each step reads one page, on the calling thread. The segment may be given back meanwhile; the walk goes on over
/// what was in it.
pub struct Walk {
    segment: Arc<Segment>,
    records: Vec<u8>,
    at: usize,
    buffer: Buffer,
}

impl Walk {
    /// A walk over what the segment holds now. `None` if its records cannot be read.
    pub(crate) fn new(segment: Arc<Segment>) -> Option<Self> {
        let records = segment.page_records().ok()?;
        Some(Self { segment, records, at: 0, buffer: Buffer::zeroed(PIECE_BYTES) })
    }

    fn is_intact(&mut self, head: &PageHead<'_>, extent: Extent) -> bool {
        let mut hasher = PageHasher::new(head.digest);
        let mut left = head.meta.len as usize;
        let mut offset = u64::from(extent.block()) * u64::from(BLOCK_BYTES);
        while left > 0 {
            let piece = left.min(PIECE_BYTES);
            let blocks = &mut self.buffer[..piece.next_multiple_of(BLOCK)];
            match self.segment.file.read(blocks, offset) {
                Ok(read) if read >= piece => hasher.update(&blocks[..piece]),
                _ => return false,
            }
            left -= piece;
            offset += piece as u64;
        }
        head.meta.checksum_of(hasher.finish()) == head.meta.checksum
    }
}

impl Iterator for Walk {
    type Item = Walked;

    fn next(&mut self) -> Option<Walked> {
        let rest = self.records.get(self.at..)?;
        let Some(Ok(Record::Page { head, block, .. })) =
            Records::new(rest, self.segment.identity.blocks).next()
        else {
            return None;
        };
        self.at += format::record_bytes(head.key.len());
        let head = head.to_owned();
        let extent = self.segment.extent(block, blocks_of(head.meta.len));
        let intact = self.is_intact(&head.as_head(), extent);
        Some(Walked { head, extent, intact })
    }
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Walk(segment {} of drive {})", self.segment.identity.sequence, self.segment.drive)
    }
}
