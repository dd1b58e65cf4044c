//! A batch on its way to a drive: a header with records, and the pages.

use crate::buffer::Buffer;
use crate::drive::Load;
use crate::extent::blocks_of;
use crate::format::{self, BATCH_HEAD_BYTES, BLOCK, BatchHead};
use crate::segment::Segment;
use crate::ticket::{Dropped, Tally, Vote};
use crate::{Extent, OwnedHead};
use memkv_core::SpaceId;
use memkv_memory::SlotPin;
use std::sync::Arc;

/// A page that waits to be written, or is being written.
pub(crate) struct PageJob {
    pub(crate) head: OwnedHead,
    pub(crate) source: Source,
    pub(crate) tally: Arc<Tally>,
    /// Which page of its append it is.
    pub(crate) index: usize,
    /// Its share of the backlog.
    pub(crate) load: Load,
}

/// Where a page's bytes are.
pub(crate) enum Source {
    /// In the arena.
    Slot(SlotPin),
    /// Read from a segment that is given back.
    Copy(Buffer),
}

impl PageJob {
    /// Its bytes in whole blocks; none if the page is empty.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Slot(pin) => pin.blocks(),
            Source::Copy(buffer) => &buffer[..self.stored()],
        }
    }

    /// Bytes that it takes in a batch.
    pub(crate) fn stored(&self) -> usize {
        (self.head.meta.len as usize).next_multiple_of(BLOCK)
    }

    /// Tells how it ended.
    pub(crate) fn end(self, result: Result<Extent, Dropped>) {
        // Whoever waits finds the slot unpinned and the backlog smaller.
        let Self { source, tally, index, load, .. } = self;
        drop((source, load));
        tally.set(index, result);
    }
}

/// A deleted page, or a cleared space if there is no digest.
pub(crate) struct Mark {
    pub(crate) digest: Option<u64>,
    pub(crate) space: SpaceId,
    /// Who waits for it; nobody any more after a first failure.
    pub(crate) vote: Option<Arc<Vote>>,
}

/// What waits to be written, in the order of the calls.
pub(crate) enum Item {
    Page(Box<PageJob>),
    Mark(Mark),
}

impl Item {
    /// Bytes of its record.
    pub(crate) fn record_bytes(&self) -> usize {
        match self {
            Self::Page(page) => format::record_bytes(page.head.key.len()),
            Self::Mark(_) => format::RECORD_BYTES,
        }
    }

    /// Bytes that it takes beside its record.
    pub(crate) fn stored(&self) -> usize {
        match self {
            Self::Page(page) => page.stored(),
            Self::Mark(_) => 0,
        }
    }
}

/// A batch, whole.
pub(crate) struct Batch {
    pub(crate) segment: Arc<Segment>,
    /// The block that it starts in.
    pub(crate) block: u32,
    head: Buffer,
    pub(crate) pages: Vec<PageJob>,
    pub(crate) marks: Vec<Mark>,
    /// Records of the marks and of the pages, as the footer will have them.
    pub(crate) mark_records: Vec<u8>,
    pub(crate) page_records: Vec<u8>,
    pub(crate) last_sequence: u64,
}

/// Blocks of a batch with so many bytes of records and of pages.
pub(crate) fn batch_blocks(record_bytes: usize, stored: usize) -> u32 {
    let head = (BATCH_HEAD_BYTES + record_bytes).div_ceil(BLOCK);
    u32::try_from(head + stored / BLOCK).expect("a batch is smaller than a segment")
}

impl Batch {
    /// Lays out a batch that starts in `block`. Sequence numbers rise in the order of the items.
    pub(crate) fn new(
        segment: Arc<Segment>,
        block: u32,
        items: Vec<Item>,
        mut next_sequence: impl FnMut() -> u64,
    ) -> Self {
        let record_bytes: usize = items.iter().map(Item::record_bytes).sum();
        let stored: usize = items.iter().map(Item::stored).sum();
        let count = u32::try_from(items.len()).expect("a batch has few records");
        let first_page = block + batch_blocks(record_bytes, 0);
        let (mut pages, mut marks) = (Vec::new(), Vec::new());
        let (mut mark_records, mut page_records) = (Vec::new(), Vec::new());
        let mut at = first_page;
        let mut last_sequence = 0;
        for item in items {
            last_sequence = next_sequence();
            match item {
                Item::Mark(mark) => {
                    format::push_mark(&mut mark_records, last_sequence, mark.digest, mark.space);
                    marks.push(mark);
                }
                Item::Page(page) => {
                    let place = if page.stored() == 0 { block } else { at };
                    format::push_page(&mut page_records, last_sequence, &page.head.as_head(), place);
                    at += u32::try_from(page.stored() / BLOCK).expect("a page is smaller than a segment");
                    pages.push(*page);
                }
            }
        }
        let mut head = Buffer::zeroed(BATCH_HEAD_BYTES + record_bytes);
        let split = BATCH_HEAD_BYTES + mark_records.len();
        head[BATCH_HEAD_BYTES..split].copy_from_slice(&mark_records);
        head[split..split + page_records.len()].copy_from_slice(&page_records);
        let fields = BatchHead {
            bytes: u32::try_from(BATCH_HEAD_BYTES + record_bytes).expect("a batch has few records"),
            blocks: batch_blocks(record_bytes, stored),
            records: count,
        };
        format::write_batch(&mut head, &segment.identity, block, &fields);
        Self { segment, block, head, pages, marks, mark_records, page_records, last_sequence }
    }

    /// Bytes of the whole batch.
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.pages.iter().map(PageJob::stored).sum::<usize>()
    }

    /// The pieces of the batch that follow its first `done` bytes.
    pub(crate) fn pieces_from<'a>(&'a self, done: usize, take: &mut dyn FnMut(&'a [u8])) {
        let mut skip = done;
        let pieces = std::iter::once(&self.head[..]).chain(self.pages.iter().map(PageJob::bytes));
        for piece in pieces {
            let passed = skip.min(piece.len());
            skip -= passed;
            if passed < piece.len() {
                take(&piece[passed..]);
            }
        }
    }

    /// Where each page is, in order.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let head_blocks = u32::try_from(self.head.len() / BLOCK).expect("a batch is smaller than a segment");
        let mut at = self.block + head_blocks;
        let place = |page: &PageJob| {
            let blocks = u32::try_from(page.stored() / BLOCK).expect("a page is smaller than a segment");
            let block = if blocks == 0 { self.block } else { at };
            at += blocks;
            self.segment.extent(block, blocks_of(page.head.meta.len))
        };
        self.pages.iter().map(place).collect()
    }
}
