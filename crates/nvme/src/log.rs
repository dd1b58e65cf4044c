//! The log: what its owner calls.

use crate::ticket::{Tally, Vote};
use crate::{
    Dropped, Extent, LogConfig, LogError, LogStatus, OwnedHead, PageHead, ReadError, Reading, Recorded,
    RecoveryReport, SegmentStatus, Ticket, Walk,
};
use memkv_core::{SpaceDescription, SpaceId};
use memkv_memory::{ReservedSlot, SlotPin};
use std::io;
use std::sync::Arc;

/// A page to write. The slot stays pinned until the write is over.
#[derive(Debug)]
pub struct Append {
    /// What to note of it.
    pub head: OwnedHead,
    /// Its bytes.
    pub page: SlotPin,
}

/// A page that was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its space.
    pub space: SpaceId,
    /// Digest of its space and key.
    pub digest: u64,
}

/// A page that was found when the log was opened.
#[derive(Clone, Copy, Debug)]
pub struct Recovered<'a> {
    /// What was noted of it.
    pub head: PageHead<'a>,
    /// Where it is.
    pub extent: Extent,
    /// Age: of two records with one key, on whatever drives, the one with the higher sequence is the later.
    pub sequence: u64,
}

/// What a page is worth when its segment is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The owner does not point at it.
    Dead,
    /// The owner points at it, and it may go.
    Cold,
    /// It should stay: it is written again, as far as there is room.
    Hot,
}

/// Who points at pages. Called from the log's own threads, never from within a call to the log; must not block long.
pub trait Owner: Send + Sync {
    /// What the page is worth now. A page that was deleted must be [`Standing::Dead`] before [`Log::delete`] is
    /// called, and a space before [`Log::clear_space`].
    fn standing(&self, head: &PageHead<'_>, extent: Extent) -> Standing;
    /// The page was written again at `new`. `false` if the owner did not point at `old` any more, and so does not
    /// point at `new`.
    fn moved(&self, head: &PageHead<'_>, old: Extent, new: Extent) -> bool;
    /// The page is about to go; reads of it fail from now on.
    fn lost(&self, head: &PageHead<'_>, extent: Extent);
    /// All pages of this drive are gone.
    fn drive_lost(&self, drive: u8);
}

/// An open log. Dropping it ends its threads without sealing anything, as the end of the process would.
pub struct Log {}

impl Log {
    /// Opens the drives and tells `visit` every page on them, in log order for each drive. Pages that were deleted
    /// later are left out. `visit` returns whether the owner points at the page now; of two records with one key
    /// it should be the one with the higher sequence, and the other one is [released](Log::release).
    ///
    /// # Errors
    ///
    /// [`LogError`] if the configuration is wrong, or no drive can be used, or a file is from a later version.
    pub fn open(
        config: LogConfig,
        visit: &mut dyn FnMut(Recovered<'_>) -> bool,
    ) -> Result<(Arc<Self>, RecoveryReport), LogError> {
        let _ = (config, visit);
        Err(LogError::Config("not yet".into()))
    }

    /// Names the owner, once, and starts giving segments back.
    pub fn start(&self, owner: Arc<dyn Owner>) {
        let _ = owner;
    }

    /// Descriptions of the spaces that were noted, also before a restart.
    #[must_use]
    pub fn spaces(&self) -> Vec<SpaceDescription> {
        Vec::new()
    }

    /// Keeps a space's description beside the segments of every drive, before the first page of the space is appended.
    /// Blocks until it is on the drives; returns at once if it is there already.
    ///
    /// # Errors
    ///
    /// The system's error if no drive could keep it.
    pub fn note_space(&self, space: &SpaceDescription) -> io::Result<()> {
        let _ = space;
        Ok(())
    }

    /// Queues pages for writing and returns at once.
    pub fn append(&self, pages: Vec<Append>) -> Ticket {
        Tally::new(pages.len()).1
    }

    /// Reads a page into a slot that was reserved for its length. The slot belongs to the read until it is over, so
    /// the result may be dropped. The caller verifies the checksum.
    pub fn read(&self, extent: Extent, slot: ReservedSlot) -> Reading {
        let _ = (extent, slot);
        Reading::failed(ReadError::Gone)
    }

    /// Records that pages were deleted, so that none of them comes back after a restart, wherever copies of it are.
    ///
    /// The owner must have forgotten the pages before. A page with the same key that is appended after this call
    /// is another page.
    pub fn delete(&self, pages: &[Gone]) -> Recorded {
        let _ = pages;
        let (vote, recorded) = Vote::new();
        vote.object(Dropped::DriveFailed);
        recorded
    }

    /// Records that all pages of a space were deleted; as [`Log::delete`].
    pub fn clear_space(&self, space: SpaceId) -> Recorded {
        let _ = space;
        Vote::new().1
    }

    /// The owner no longer points there. Nothing is recorded: the page may be found again after a restart.
    pub fn release(&self, extent: Extent) {
        let _ = extent;
    }

    /// The log as a whole.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        LogStatus { io: crate::IoBackend::Threads, io_reason: String::new(), sync: false, drives: Vec::new() }
    }

    /// Every segment, oldest first for each drive.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentStatus> {
        Vec::new()
    }

    /// Goes through the pages of a segment and verifies each, at the caller's pace and on the caller's thread.
    ///
    /// `None` if there is no such segment.
    #[must_use]
    pub fn walk(&self, drive: u8, sequence: u64) -> Option<Walk> {
        let _ = (drive, sequence);
        None
    }

    /// Ends all writing, seals the segments and ends the threads. Waits for what was queued before.
    pub fn close(&self) {}
}
