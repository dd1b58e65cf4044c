//! Reading a segment without its footer: from batch to batch, each page verified.
//!
//! Where a batch should start and none does, the scan goes on block by block. Batches are written side by side, so a
//! crash can leave a later one whole and an earlier one not; and a batch that failed leaves a gap.

use crate::buffer::Buffer;
use crate::extent::{BLOCK_BYTES, blocks_of};
use crate::format::{self, BLOCK, FIRST_BLOCK, Record, Records};
use crate::segment::{Book, Segment};
use memkv_core::PageHasher;
use std::io;

/// Blocks that are read at a time.
const WINDOW_BLOCKS: usize = 512;

/// What a scan found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    pub(crate) book: Book,
    /// The first block behind the last good batch.
    pub(crate) end_block: u32,
    pub(crate) damaged_pages: u64,
    pub(crate) damaged_headers: u64,
}

/// A window on a segment's file.
struct Window<'a> {
    segment: &'a Segment,
    buffer: Buffer,
    first: u32,
    /// Whole blocks in the buffer.
    blocks: u32,
}

impl Window<'_> {
    /// `count` blocks from `block` on. `None` behind the end of the file.
    fn get(&mut self, block: u32, count: u32) -> io::Result<Option<&[u8]>> {
        let inside = block >= self.first && block + count <= self.first + self.blocks;
        if !inside {
            let want = (count as usize).max(WINDOW_BLOCKS) * BLOCK;
            if self.buffer.len() < want {
                self.buffer = Buffer::zeroed(want);
            }
            let offset = u64::from(block) * u64::from(BLOCK_BYTES);
            let read = self.segment.file.read(&mut self.buffer, offset)?;
            self.first = block;
            self.blocks = u32::try_from(read / BLOCK).expect("a window is smaller than a segment");
        }
        let start = (block - self.first) as usize * BLOCK;
        let end = start + count as usize * BLOCK;
        Ok((end <= self.blocks as usize * BLOCK).then(|| &self.buffer[start..end]))
    }
}

/// Scans a segment from its first batch to the end of its file.
pub(crate) fn scan(segment: &Segment) -> io::Result<Scanned> {
    let mut window = Window { segment, buffer: Buffer::zeroed(WINDOW_BLOCKS * BLOCK), first: 0, blocks: 0 };
    let mut found = Scanned { end_block: FIRST_BLOCK, ..Scanned::default() };
    let mut block = FIRST_BLOCK;
    // Whether the block before this one was understood: damage is counted once, where it starts.
    let mut sound = true;
    while block < segment.identity.blocks {
        let Some(bytes) = window.get(block, 1)? else { break };
        let claimed = format::batch_bytes(bytes);
        let blank = claimed.is_none() && bytes.iter().all(|byte| *byte == 0);
        match take_batch(segment, &mut window, block, claimed, &mut found)? {
            Some(blocks) => {
                block += blocks;
                found.end_block = block;
                sound = true;
            }
            None => {
                let damaged = claimed.is_some() || (sound && !blank);
                found.damaged_headers += u64::from(damaged);
                sound = blank;
                block += 1;
            }
        }
    }
    Ok(found)
}

/// Takes over the batch that seems to start in `block`. Its blocks, or `None` if there is none.
fn take_batch(
    segment: &Segment,
    window: &mut Window<'_>,
    block: u32,
    claimed: Option<usize>,
    found: &mut Scanned,
) -> io::Result<Option<u32>> {
    let left = (segment.identity.blocks - block) as usize * BLOCK;
    let Some(len) = claimed.filter(|len| *len <= left) else { return Ok(None) };
    let head_blocks = u32::try_from(len.div_ceil(BLOCK)).expect("inside a segment");
    let Some(bytes) = window.get(block, head_blocks)? else { return Ok(None) };
    let Some(head) = format::read_batch(bytes, &segment.identity, block) else { return Ok(None) };
    let records = bytes[format::BATCH_HEAD_BYTES..head.bytes as usize].to_vec();
    for record in Records::new(&records, segment.identity.blocks) {
        match record {
            Ok(Record::Page { sequence, head: page, block: at }) => {
                let blocks = blocks_of(page.meta.len);
                let inside = at >= block && at + blocks <= block + head.blocks;
                let bytes = if inside { window.get(at, blocks)? } else { None };
                let intact = bytes.is_some_and(|bytes| {
                    let hash = PageHasher::oneshot(page.digest, &bytes[..page.meta.len as usize]);
                    page.meta.checksum_of(hash) == page.meta.checksum
                });
                if intact {
                    format::push_page(&mut found.book.pages, sequence, &page, at);
                    found.book.page_count += 1;
                } else {
                    found.damaged_pages += 1;
                }
                found.book.last_sequence = found.book.last_sequence.max(sequence);
            }
            Ok(Record::Delete { sequence, digest, space }) => mark(found, sequence, Some(digest), space),
            Ok(Record::Clear { sequence, space }) => mark(found, sequence, None, space),
            Err(format::Nonsense) => found.damaged_pages += 1,
        }
    }
    Ok(Some(head.blocks))
}

fn mark(found: &mut Scanned, sequence: u64, digest: Option<u64>, space: memkv_core::SpaceId) {
    format::push_mark(&mut found.book.marks, sequence, digest, space);
    found.book.mark_count += 1;
    found.book.last_sequence = found.book.last_sequence.max(sequence);
}
