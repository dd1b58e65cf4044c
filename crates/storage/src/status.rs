//! What an engine counts and shows.

use memkv_memory::{Backing, ClassStatus};
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
    /// Bytes of the index's tables, without the keys.
    pub index_table_bytes: u64,
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
    /// Events since the start.
    pub counters: Counters,
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
        }
    }
}
