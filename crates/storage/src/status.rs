//! What an engine counts and shows.

use crate::check::ScrubStatus;
use crate::config::NvmeMode;
use memkv_eviction::PolicyKind;
use memkv_memory::{Backing, ClassStatus, MemoryStatus};
use memkv_nvme::LogStatus;
use std::sync::atomic::{AtomicU64, Ordering};

/// What [`Engine::clear`](crate::Engine::clear) removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Pages removed.
    pub pages: u64,
    /// Bytes of those pages.
    pub bytes: u64,
}

/// What a round of eviction removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Pages removed.
    pub pages: u64,
    /// Bytes of those pages.
    pub bytes: u64,
}

impl Evicted {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.pages += 1;
        self.bytes += bytes;
    }
}

/// Events since the start, each number read on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages stored.
    pub stored_pages: u64,
    /// Bytes of the pages stored.
    pub stored_bytes: u64,
    /// Puts that found their key present, at the reservation or at publication.
    pub existing: u64,
    /// Reservations refused because no slot was free.
    pub busy: u64,
    /// Pages whose bytes did not match their checksum or length: on arrival, or found later and quarantined.
    pub corrupt: u64,
    /// Pages removed by key.
    pub deleted: u64,
    /// Pages removed by clearing their space.
    pub cleared: u64,
    /// Pages removed to make room.
    pub evicted_pages: u64,
    /// Bytes of the pages removed to make room.
    pub evicted_bytes: u64,
    /// Pages of `evicted_pages` that a reservation had to evict itself, because the background was too slow.
    pub evicted_inline: u64,
    /// Chunks that were taken from one class to be given to another.
    pub chunks_moved: u64,
    /// Evicted pages that rest on a drive now.
    pub demoted_pages: u64,
    /// Bytes of those pages.
    pub demoted_bytes: u64,
    /// Evicted pages that were not written because nobody had ever read them.
    pub demote_unread: u64,
    /// Evicted pages that were lost because the drives were too slow, full or failed.
    pub demote_dropped: u64,
    /// Pages read from a drive into memory.
    pub promoted_pages: u64,
    /// Bytes of those pages.
    pub promoted_bytes: u64,
    /// Reads of pages on drives that found no memory to read into; each is a miss.
    pub promote_busy: u64,
    /// Reads of pages on drives that failed; each is a miss.
    pub drive_read_errors: u64,
    /// Pages that were written before their puts were acknowledged.
    pub persisted_pages: u64,
    /// Pages that should have been, but were not: the drives were full, failed or too far behind.
    pub persist_dropped: u64,
}

/// Where a page rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// In memory.
    Dram,
    /// On a drive.
    Nvme,
}

impl Tier {
    /// The name in reports and metrics.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Dram => "dram",
            Self::Nvme => "nvme",
        }
    }
}

/// One tier. A page that rests in both tiers is counted in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierStatus {
    /// Which one.
    pub tier: Tier,
    /// Pages in it.
    pub pages: u64,
    /// Bytes of those pages; on drives, of the blocks that they take.
    pub bytes: u64,
    /// The most bytes that it may hold.
    pub capacity_bytes: u64,
    /// Gets that were answered from it.
    pub hits: u64,
}

/// The tier on drives.
#[derive(Clone, Debug)]
pub struct NvmeStatus {
    /// When pages are written.
    pub mode: NvmeMode,
    /// Whether pages that were never read are written.
    pub admit_unread: bool,
    /// Bytes that wait to be written, or are being written.
    pub backlog_bytes: u64,
    /// Bytes that are being read.
    pub reading_bytes: u64,
    /// Removals that could not be noted on the drives; such a page may come back after a restart.
    pub removals_failed: u64,
    /// The log and its drives.
    pub log: LogStatus,
}

/// What a start found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecoveryReport {
    /// Pages that were found in memory.
    pub dram_pages: u64,
    /// Those of them that were left by a process that did not end cleanly; each is verified before it is served.
    pub dram_unclean: u64,
    /// Pages that were found on drives, also those that are in memory too.
    pub nvme_pages: u64,
    /// Segments that were read.
    pub nvme_segments: u64,
    /// Pages that were dropped: their space is not known, there are too many spaces, or they were found twice.
    pub dropped_pages: u64,
    /// Spaces that were known before.
    pub spaces: u64,
    /// How long it took.
    pub seconds: f64,
}

/// The engine as a whole, each number read on its own.
#[derive(Clone, Debug)]
pub struct EngineStatus {
    /// Bytes of memory for pages.
    pub capacity_bytes: u64,
    /// Bytes of the slots in use, by pages that arrive, rest, or are still being read after removal.
    pub used_slot_bytes: u64,
    /// Bytes that were asked for in those slots; the rest is lost to rounding.
    pub asked_bytes: u64,
    /// Bytes of the pages that can be found.
    pub page_bytes: u64,
    /// Number of the pages that can be found.
    pub pages: u64,
    /// Bytes of the index, tables and keys.
    pub index_bytes: u64,
    /// Number of spaces.
    pub spaces: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// Number of chunks.
    pub chunks: u32,
    /// Chunks that belong to no class.
    pub chunks_free: u32,
    /// Chunks that wait for their last readers before they change class.
    pub chunks_draining: u32,
    /// The size classes, ordered by slot size.
    pub classes: Vec<ClassStatus>,
    /// What the memory is made of.
    pub backing: Backing,
    /// Where it comes from and what was done to it.
    pub memory: MemoryStatus,
    /// Events since the start.
    pub counters: Counters,
    /// Which pages go first.
    pub policy: PolicyKind,
    /// Memory, then the drives if there are any.
    pub tiers: Vec<TierStatus>,
    /// The tier on drives.
    pub nvme: Option<NvmeStatus>,
    /// Something is broken and the engine goes on without it: why, for people. Empty if all is well.
    pub degraded: Vec<String>,
    /// What the start found.
    pub recovery: RecoveryReport,
    /// Pages that operators keep.
    pub kept_pages: u64,
    /// Bytes of the slots of those pages.
    pub kept_bytes: u64,
    /// The most bytes that operators may keep.
    pub kept_bytes_max: u64,
    /// The background scrubber.
    pub scrub: ScrubStatus,
    /// Pages taken out since the start because their bytes did not match their checksum.
    pub quarantined: u64,
}

/// The live counters.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) stored_pages: AtomicU64,
    pub(crate) stored_bytes: AtomicU64,
    pub(crate) existing: AtomicU64,
    pub(crate) busy: AtomicU64,
    pub(crate) corrupt: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) cleared: AtomicU64,
    pub(crate) evicted_pages: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
    pub(crate) evicted_inline: AtomicU64,
    pub(crate) chunks_moved: AtomicU64,
    pub(crate) demoted_pages: AtomicU64,
    pub(crate) demoted_bytes: AtomicU64,
    pub(crate) demote_unread: AtomicU64,
    pub(crate) demote_dropped: AtomicU64,
    pub(crate) promoted_pages: AtomicU64,
    pub(crate) promoted_bytes: AtomicU64,
    pub(crate) promote_busy: AtomicU64,
    pub(crate) drive_read_errors: AtomicU64,
    pub(crate) persisted_pages: AtomicU64,
    pub(crate) persist_dropped: AtomicU64,
    pub(crate) dram_hits: AtomicU64,
    pub(crate) nvme_hits: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Tally {
    pub(crate) fn read(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            stored_pages: get(&self.stored_pages),
            stored_bytes: get(&self.stored_bytes),
            existing: get(&self.existing),
            busy: get(&self.busy),
            corrupt: get(&self.corrupt),
            deleted: get(&self.deleted),
            cleared: get(&self.cleared),
            evicted_pages: get(&self.evicted_pages),
            evicted_bytes: get(&self.evicted_bytes),
            evicted_inline: get(&self.evicted_inline),
            chunks_moved: get(&self.chunks_moved),
            demoted_pages: get(&self.demoted_pages),
            demoted_bytes: get(&self.demoted_bytes),
            demote_unread: get(&self.demote_unread),
            demote_dropped: get(&self.demote_dropped),
            promoted_pages: get(&self.promoted_pages),
            promoted_bytes: get(&self.promoted_bytes),
            promote_busy: get(&self.promote_busy),
            drive_read_errors: get(&self.drive_read_errors),
            persisted_pages: get(&self.persisted_pages),
            persist_dropped: get(&self.persist_dropped),
        }
    }
}
