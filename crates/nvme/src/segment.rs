//! One segment in memory: its file, its counts, and its records while it has no footer.

use crate::SegmentState;
use crate::buffer::Buffer;
use crate::disk::{Disk, DiskFile, segment_file};
use crate::extent::{BLOCK_BYTES, Extent, segment_name};
use crate::format::{self, BLOCK, Footer, Identity};
use parking_lot::Mutex;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// One segment. Readers hold it while they read, so its file stays open although its name may be gone.
pub(crate) struct Segment {
    pub(crate) drive: u8,
    pub(crate) identity: Identity,
    pub(crate) file: DiskFile,
    pub(crate) file_bytes: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) live_pages: AtomicU64,
    pub(crate) live_bytes: AtomicU64,
    /// Batches that are planned and not over.
    pub(crate) pending: AtomicU32,
    /// The first block behind its batches, once it takes no more.
    pub(crate) end_block: AtomicU32,
    state: Mutex<SegmentState>,
    /// Records, until the footer is written.
    pub(crate) book: Mutex<Book>,
    /// Where the footer is, once it is written.
    pub(crate) footer: OnceLock<Footer>,
}

/// The records of a segment without a footer, as its footer will have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) marks: Vec<u8>,
    pub(crate) pages: Vec<u8>,
    pub(crate) mark_count: u32,
    pub(crate) page_count: u32,
    pub(crate) last_sequence: u64,
}

impl Book {
    pub(crate) fn is_empty(&self) -> bool {
        self.mark_count == 0 && self.page_count == 0
    }
}

impl Segment {
    pub(crate) fn new(
        drive: u8,
        identity: Identity,
        file: DiskFile,
        file_bytes: u64,
        state: SegmentState,
    ) -> Self {
        Self {
            drive,
            identity,
            file,
            file_bytes: AtomicU64::new(file_bytes),
            pages: AtomicU64::new(0),
            live_pages: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            pending: AtomicU32::new(0),
            end_block: AtomicU32::new(format::FIRST_BLOCK),
            state: Mutex::new(state),
            book: Mutex::default(),
            footer: OnceLock::new(),
        }
    }

    /// Makes a new segment's file, complete with its header, and makes all of it last.
    pub(crate) fn create(disk: &Disk, drive: u8, identity: Identity) -> io::Result<Self> {
        let name = segment_file(identity.sequence);
        let bytes = u64::from(identity.blocks) * u64::from(BLOCK_BYTES);
        let file = disk.create(&name, bytes)?;
        let mut header = Buffer::zeroed(BLOCK);
        format::write_header(&mut header, &identity);
        let written = file.write(&header, 0).and_then(|()| file.sync()).and_then(|()| disk.sync_dir());
        if let Err(reason) = written {
            disk.remove(&name).ok();
            return Err(reason);
        }
        Ok(Self::new(drive, identity, file, bytes, SegmentState::Spare))
    }

    /// Writes the footer behind the batches, which end before `block`, then the seal. From then on the segment's pages
    /// and records survive a power loss.
    ///
    /// The seal is written only when all that it speaks of is on the drive; a crash before leaves a segment that is
    /// scanned.
    pub(crate) fn seal(&self, block: u32) -> io::Result<()> {
        let book = self.book.lock().clone();
        let footer = Footer {
            block,
            last_sequence: book.last_sequence,
            marks_bytes: book.marks.len() as u64,
            pages_bytes: book.pages.len() as u64,
            marks_checksum: format::checksum(self.identity.salt, &book.marks),
            pages_checksum: format::checksum(self.identity.salt, &book.pages),
            marks: book.mark_count,
            pages: book.page_count,
        };
        let start = u64::from(block) * u64::from(BLOCK_BYTES);
        let mut records = book.marks;
        records.extend_from_slice(&book.pages);
        drop(book.pages);
        let records = Buffer::copy_of(&records);
        let end = start + records.len() as u64;
        if !records.is_empty() {
            self.file.write(&records, start)?;
        }
        self.file.sync()?;
        let mut seal = Buffer::zeroed(BLOCK);
        format::write_seal(&mut seal, &self.identity, &footer);
        self.file.write(&seal, u64::from(BLOCK_BYTES))?;
        self.file.sync()?;
        // Only now: what is behind the footer is not needed, and a file that is too long does no harm.
        self.file.set_len(end)?;
        self.file_bytes.store(end, Ordering::Relaxed);
        self.footer.set(footer).expect("a segment is sealed once");
        *self.book.lock() = Book::default();
        self.set_state(SegmentState::Sealed);
        Ok(())
    }

    /// The page records of the segment, from the footer or from memory.
    ///
    /// # Errors
    ///
    /// The system's, or `InvalidData` if the footer does not check out.
    pub(crate) fn page_records(&self) -> io::Result<Vec<u8>> {
        let Some(footer) = self.footer.get() else { return Ok(self.book.lock().pages.clone()) };
        self.footer_pages(footer)
    }

    /// The page records in a footer.
    pub(crate) fn footer_pages(&self, footer: &Footer) -> io::Result<Vec<u8>> {
        self.footer_part(footer, footer.marks_bytes, footer.pages_bytes, footer.pages_checksum)
    }

    /// The marks of a sealed segment.
    pub(crate) fn mark_records(&self, footer: &Footer) -> io::Result<Vec<u8>> {
        self.footer_part(footer, 0, footer.marks_bytes, footer.marks_checksum)
    }

    /// A part of the footer, verified. `skip` bytes come before it.
    fn footer_part(&self, footer: &Footer, skip: u64, bytes: u64, checksum: u64) -> io::Result<Vec<u8>> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the footer is damaged");
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let block = u64::from(BLOCK_BYTES);
        let start = (u64::from(footer.block) * block + skip) / block * block;
        let lead = usize::try_from(skip % block).map_err(|_| damaged())?;
        let len = usize::try_from(bytes).map_err(|_| damaged())?;
        let mut buffer = Buffer::zeroed(lead + len);
        let read = self.file.read(&mut buffer, start)?;
        if read < lead + len || format::checksum(self.identity.salt, &buffer[lead..lead + len]) != checksum {
            return Err(damaged());
        }
        Ok(buffer[lead..lead + len].to_vec())
    }

    /// The extent of a page here.
    pub(crate) fn extent(&self, block: u32, blocks: u32) -> Extent {
        Extent::new(self.drive, segment_name(self.identity.sequence), block, blocks)
    }

    pub(crate) fn state(&self) -> SegmentState {
        *self.state.lock()
    }

    pub(crate) fn set_state(&self, state: SegmentState) {
        *self.state.lock() = state;
    }

    /// Notes that the owner points at a page here.
    pub(crate) fn hold(&self, extent: Extent) {
        self.live_pages.fetch_add(1, Ordering::Relaxed);
        self.live_bytes.fetch_add(u64::from(extent.stored_bytes()), Ordering::Relaxed);
    }

    /// Notes that the owner no longer points at a page here.
    pub(crate) fn release(&self, extent: Extent) {
        let less = |of: &AtomicU64, by: u64| {
            // A stale extent, or one released twice, must not make the count wrap around.
            of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(by))).ok();
        };
        less(&self.live_pages, 1);
        less(&self.live_bytes, u64::from(extent.stored_bytes()));
    }
}
