//! The arena: the mapping, the table of slots and the books, tied together.

use crate::books::{Books, ClassDemand, ClassFill, ClassStatus, Full};
use crate::handle::{ReservedSlot, SlotPin};
use crate::map::{Backing, HugePages, Mapping};
use crate::slot::{Doomed, Slot};
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::{SLOT_ALIGN, class};
use memkv_core::PageMeta;
use std::ptr::NonNull;
use std::sync::Arc;

const CHUNK_BYTES_MIN: u64 = 4 << 20;
const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// The largest page that any arena takes; far above what engines use, and keeps sizes inside 32 bits.
const PAGE_BYTES_LIMIT: u32 = 1 << 30;

/// How to make an arena.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Bytes to reserve; rounded down to whole chunks.
    pub bytes: u64,
    /// The largest page. Lowered to a sixteenth of the memory, but not below 4 MiB: a chunk must hold the largest
    /// page, and a store of few chunks could hold pages of few sizes at a time.
    pub page_bytes_max: u32,
    /// Make all memory resident before [`Arena::new`] returns.
    pub prefault: bool,
    /// Whether to ask for huge pages.
    pub huge_pages: HugePages,
}

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Not even one chunk fits.
    #[error("{0} bytes of memory are too few; give at least {CHUNK_BYTES_MIN}")]
    TooSmall(u64),
    /// The page limit is too high.
    #[error("pages of up to {0} bytes are too large; the limit is {PAGE_BYTES_LIMIT} bytes")]
    PageTooLarge(u32),
    /// More memory than slot numbers, or addresses, can name.
    #[error("{0} bytes are more memory than one arena can hold; give less")]
    TooLarge(u64),
    /// The kernel refused the mapping.
    #[error("the kernel refused to map {bytes} bytes ({reason}); give less memory or raise the limit")]
    Map {
        /// What was asked.
        bytes: u64,
        /// The kernel's error.
        reason: rustix::io::Errno,
    },
    /// The kernel could not make the memory resident.
    #[error(
        "the kernel could not provide {bytes} bytes of memory ({reason}); give less memory or turn prefaulting off"
    )]
    Prefault {
        /// What was asked.
        bytes: u64,
        /// The kernel's error.
        reason: rustix::io::Errno,
    },
}

/// The number of a slot. Plain data: whether the slot holds a page is checked at every use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub(crate) u32);

/// What is noted about a page when it is published.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageRecord {
    /// Encoding and checksum; `len` is the reserved length, whatever is given here.
    pub meta: PageMeta,
    /// Digest of space and key.
    pub digest: u64,
    /// Depth in the chain of pages that make up a prefix; 0 is the first.
    pub position: u32,
    /// Time of publication, also the first access.
    pub now_ms: u64,
    /// The eviction policy's word.
    pub policy: u64,
    /// Where else the page rests, in the words of the tier below; 0 if nowhere.
    pub extent: u64,
}

/// A published page as a scan sees it. Fields are read one by one and may be of different moments.
#[derive(Clone, Copy, Debug)]
pub struct PageView {
    /// Where it is.
    pub slot: SlotId,
    /// Length, encoding, checksum.
    pub meta: PageMeta,
    /// Digest of space and key.
    pub digest: u64,
    /// Depth in the chain of pages that make up a prefix.
    pub position: u32,
    /// When it was published.
    pub created_ms: u64,
    /// When it was last read or touched.
    pub last_access_ms: u64,
    /// Reads; stops at 2^20 - 1.
    pub hits: u32,
    /// The eviction policy's word.
    pub policy: u64,
    /// Where else the page rests, in the words of the tier below; 0 if nowhere.
    pub extent: u64,
    /// Readers that hold it now.
    pub pins: u32,
}

/// A chunk that belongs to a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkView {
    /// Number of the chunk, below [`Arena::chunk_count`].
    pub chunk: u32,
    /// Slot size of its class.
    pub slot_bytes: u32,
    /// Number of slots.
    pub slots: u32,
}

/// The arena as a whole, for status.
#[derive(Clone, Debug)]
pub struct ArenaStatus {
    /// Bytes of all chunks.
    pub capacity_bytes: u64,
    /// Bytes of the slots in use: what pages hold.
    pub held_bytes: u64,
    /// Bytes of the pages in those slots: what was asked for.
    pub asked_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// Number of chunks.
    pub chunks: u32,
    /// Chunks without a class.
    pub chunks_free: u32,
    /// Chunks that wait for their last slots before they change class.
    pub chunks_draining: u32,
    /// Every class, by slot size.
    pub classes: Vec<ClassStatus>,
    /// What the memory is made of.
    pub backing: Backing,
}

/// One mapping, cut into chunks and slots. See the crate's documentation.
pub struct Arena {
    mapping: Mapping,
    slots: Box<[Slot]>,
    /// Slot size of each chunk's class, 0 without one. Written under the lock of `books`; a chunk's entry cannot
    /// change while one of its slots is in use.
    chunk_slot_bytes: Box<[AtomicU32]>,
    books: Mutex<Books>,
    chunk_bytes: u32,
    page_bytes_max: u32,
    /// A slot's number is its chunk's number times 2^this, plus its place in the chunk.
    slot_bits: u32,
}

/// The largest page that an arena takes, see [`ArenaConfig::page_bytes_max`].
fn page_limit(bytes: u64, page_bytes_max: u32) -> u32 {
    let share = (bytes / 16 + 1).next_power_of_two() / 2;
    u32::try_from(share.max(CHUNK_BYTES_MIN)).map_or(page_bytes_max, |limit| limit.min(page_bytes_max))
}

/// Chunk size for an arena: near a 64th of it, between 4 and 64 MiB, and never smaller than the largest page.
fn chunk_bytes(bytes: u64, page_bytes_max: u32) -> u64 {
    let near = (bytes / 64).max(1).next_power_of_two().clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
    near.max(u64::from(page_bytes_max.max(SLOT_ALIGN)).next_power_of_two())
}

impl Arena {
    /// Reserves the memory. Nothing else is mapped or grows later.
    ///
    /// # Errors
    ///
    /// [`ArenaError`] if the sizes do not fit together or the kernel refuses.
    pub fn new(config: ArenaConfig) -> Result<Arc<Self>, ArenaError> {
        let ArenaConfig { bytes, page_bytes_max, .. } = config;
        if page_bytes_max > PAGE_BYTES_LIMIT {
            return Err(ArenaError::PageTooLarge(page_bytes_max));
        }
        let page_bytes_max = page_limit(bytes, page_bytes_max);
        let chunk = chunk_bytes(bytes, page_bytes_max);
        if bytes < chunk {
            return Err(ArenaError::TooSmall(bytes));
        }
        let too_large = || ArenaError::TooLarge(bytes);
        let chunks = u32::try_from(bytes / chunk).map_err(|_| too_large())?;
        let chunk_bytes = u32::try_from(chunk).map_err(|_| too_large())?;
        let slot_bits = (chunk_bytes / SLOT_ALIGN).trailing_zeros();
        if u64::from(chunks) << slot_bits > 1 << 32 {
            return Err(too_large());
        }
        let len = usize::try_from(u64::from(chunks) * chunk).map_err(|_| too_large())?;
        let mut mapping =
            Mapping::new(len, config.huge_pages).map_err(|reason| ArenaError::Map { bytes, reason })?;
        if config.prefault {
            mapping.prefault().map_err(|reason| ArenaError::Prefault { bytes, reason })?;
        }
        Ok(Arc::new(Self {
            mapping,
            slots: Slot::table((chunks as usize) << slot_bits),
            chunk_slot_bytes: (0..chunks).map(|_| AtomicU32::new(0)).collect(),
            books: Mutex::new(Books::new(chunk_bytes, chunks)),
            chunk_bytes,
            page_bytes_max,
            slot_bits,
        }))
    }

    /// Reserves a slot for a page of `len` bytes, and says how full its class is now.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is no free slot and no free chunk.
    ///
    /// # Panics
    ///
    /// If `len` exceeds `page_bytes_max`: callers check it where it enters.
    pub fn reserve(self: &Arc<Self>, len: u32) -> Result<(ReservedSlot, ClassFill), Full> {
        assert!(len <= self.page_bytes_max, "a page of {len} bytes was not refused where it entered");
        let exact = class::exact(len).expect("the page limit is far below 2^32");
        let mut books = self.books.lock();
        let taken = books.take(len, exact)?;
        if taken.new_chunk {
            self.chunk_slot_bytes[taken.chunk as usize].store(taken.fill.slot_bytes, Ordering::Release);
        }
        drop(books);
        let id = SlotId((taken.chunk << self.slot_bits) + taken.slot);
        self.slot(id).claim(len);
        Ok((ReservedSlot::new(Arc::clone(self), id, len), taken.fill))
    }

    /// Pins the page in a slot. `None` if the slot holds no published page.
    #[must_use]
    pub fn pin(self: &Arc<Self>, id: SlotId) -> Option<SlotPin> {
        self.slots.get(id.0 as usize)?.pin().then(|| SlotPin::new(Arc::clone(self), id))
    }

    /// Takes a published page out of circulation; its slot is free once no reader holds it.
    ///
    /// `false` if the slot holds no published page.
    pub fn doom(&self, id: SlotId) -> bool {
        let Some(slot) = self.slots.get(id.0 as usize) else { return false };
        match slot.doom() {
            Doomed::NotPublished => false,
            Doomed::Pinned => true,
            Doomed::Free => {
                self.give_back(id);
                true
            }
        }
    }

    /// Notes that the page was wanted at `now_ms`.
    pub fn touch(&self, id: SlotId, now_ms: u64) {
        if let Some(slot) = self.slots.get(id.0 as usize) {
            slot.access(now_ms, 0);
        }
    }

    /// Notes that the page was read at `now_ms`.
    pub fn hit(&self, id: SlotId, now_ms: u64) {
        if let Some(slot) = self.slots.get(id.0 as usize) {
            slot.access(now_ms, 1);
        }
    }

    /// Sets the eviction policy's word. Like the other setters it takes any slot number: one that has been handed on
    /// meanwhile gets the word of a page that is gone, which costs the policy one decision and nothing else.
    pub fn set_policy(&self, id: SlotId, word: u64) {
        if let Some(slot) = self.slots.get(id.0 as usize) {
            slot.policy.store(word, Ordering::Relaxed);
        }
    }

    /// Changes the eviction policy's word from what it is to what `next` makes of it, again and again until nobody
    /// else changes it in between. `None` leaves it as it is.
    pub fn update_policy(&self, id: SlotId, next: impl FnMut(u64) -> Option<u64>) {
        if let Some(slot) = self.slots.get(id.0 as usize) {
            // An error says that `next` wanted no change.
            let _unchanged = slot.policy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        }
    }

    /// Notes where else the page rests; 0 for nowhere. Only while the page cannot leave the slot, so under a pin or
    /// under the lock that whoever dooms it takes: the next page would inherit the place.
    pub fn set_extent(&self, id: SlotId, extent: u64) {
        if let Some(slot) = self.slots.get(id.0 as usize) {
            slot.extent.store(extent, Ordering::Relaxed);
        }
    }

    /// Where else the page in a slot rests; 0 for nowhere, and for a slot without a page.
    #[must_use]
    pub fn extent_of(&self, id: SlotId) -> u64 {
        self.slots
            .get(id.0 as usize)
            .filter(|slot| slot.published().is_some())
            .map_or(0, |slot| slot.extent.load(Ordering::Relaxed))
    }

    /// What is known of the page in a slot. `None` if the slot holds no published page.
    #[must_use]
    pub fn page(&self, id: SlotId) -> Option<PageView> {
        let slot = self.slots.get(id.0 as usize)?;
        let pins = slot.published()?;
        let (last_access_ms, hits) = slot.accessed();
        Some(PageView {
            slot: id,
            meta: meta_of(slot),
            digest: slot.digest.load(Ordering::Relaxed),
            position: slot.position.load(Ordering::Relaxed),
            created_ms: slot.created_ms.load(Ordering::Relaxed),
            last_access_ms,
            hits,
            policy: slot.policy.load(Ordering::Relaxed),
            extent: slot.extent.load(Ordering::Relaxed),
            pins,
        })
    }

    /// Slot size of the class that a slot belongs to now; 0 if its chunk has none.
    #[must_use]
    pub fn slot_bytes(&self, id: SlotId) -> u32 {
        let chunk = (id.0 >> self.slot_bits) as usize;
        self.chunk_slot_bytes.get(chunk).map_or(0, |bytes| bytes.load(Ordering::Acquire))
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        u32::try_from(self.chunk_slot_bytes.len()).expect("chunks were counted in 32 bits")
    }

    /// The class a chunk belongs to now, if any.
    #[must_use]
    pub fn chunk(&self, chunk: u32) -> Option<ChunkView> {
        let slot_bytes = self.chunk_slot_bytes.get(chunk as usize)?.load(Ordering::Acquire);
        (slot_bytes != 0).then(|| ChunkView { chunk, slot_bytes, slots: self.chunk_bytes / slot_bytes })
    }

    /// The published pages in `count` slots of a chunk, starting with its slot `from`. Takes no lock: pages may come
    /// and go meanwhile.
    pub fn pages(&self, view: ChunkView, from: u32, count: u32) -> impl Iterator<Item = PageView> + '_ {
        let first = view.chunk << self.slot_bits;
        let slots = from.min(view.slots)..from.saturating_add(count).min(view.slots);
        slots.filter_map(move |slot| self.page(SlotId(first + slot)))
    }

    /// Stops handing out slots of a chunk, so that the chunk is free for any class once its pages are gone.
    ///
    /// `false` if the chunk is free or draining already.
    pub fn drain(&self, chunk: u32) -> bool {
        chunk < self.chunk_count() && self.books.lock().drain(chunk)
    }

    /// The chunks that drain now.
    #[must_use]
    pub fn draining(&self) -> Vec<u32> {
        let books = self.books.lock();
        if books.draining_chunk_count() == 0 {
            return Vec::new();
        }
        (0..self.chunk_count()).filter(|&chunk| books.is_draining(chunk)).collect()
    }

    /// The classes that were asked for slots since the last call.
    #[must_use]
    pub fn take_demand(&self) -> Vec<ClassDemand> {
        self.books.lock().take_demand()
    }

    /// How full a class is now, if it exists.
    #[must_use]
    pub fn fill_of(&self, slot_bytes: u32) -> Option<ClassFill> {
        self.books.lock().fill_of(slot_bytes)
    }

    /// Number of chunks of a class.
    #[must_use]
    pub fn class_chunks(&self, slot_bytes: u32) -> u32 {
        self.books.lock().chunks_of(slot_bytes)
    }

    /// The largest page, after the limit that the arena's size sets.
    #[must_use]
    pub fn page_bytes_max(&self) -> u32 {
        self.page_bytes_max
    }

    /// Bytes of all slots in use.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.books.lock().held_bytes()
    }

    /// Bytes of all chunks.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.chunk_count()) * u64::from(self.chunk_bytes)
    }

    /// The arena as a whole.
    #[must_use]
    pub fn status(&self) -> ArenaStatus {
        let books = self.books.lock();
        ArenaStatus {
            capacity_bytes: self.capacity_bytes(),
            held_bytes: books.held_bytes(),
            asked_bytes: books.asked_bytes(),
            chunk_bytes: self.chunk_bytes,
            chunks: self.chunk_count(),
            chunks_free: u32::try_from(books.free_chunk_count()).expect("chunks were counted in 32 bits"),
            chunks_draining: books.draining_chunk_count(),
            classes: books.classes(),
            backing: self.mapping.backing(),
        }
    }

    /// The slot's record. Only for numbers that the arena handed out.
    pub(crate) fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.0 as usize]
    }

    pub(crate) fn meta(&self, id: SlotId) -> PageMeta {
        meta_of(self.slot(id))
    }

    /// Offset of a slot that is in use from the start of the mapping, and its size.
    pub(crate) fn place(&self, id: SlotId) -> (NonNull<u8>, usize, u32) {
        let chunk = u64::from(id.0 >> self.slot_bits);
        let slot = u64::from(id.0 & ((1 << self.slot_bits) - 1));
        let slot_bytes = self.slot_bytes(id);
        let offset = chunk * u64::from(self.chunk_bytes) + slot * u64::from(slot_bytes);
        let offset = usize::try_from(offset).expect("the mapping's length fits usize");
        (self.mapping.start(), offset, slot_bytes)
    }

    /// Hands a slot back whose state word has just become 0.
    pub(crate) fn give_back(&self, id: SlotId) {
        let len = self.slot(id).len.load(Ordering::Relaxed);
        let chunk = id.0 >> self.slot_bits;
        let mut books = self.books.lock();
        if books.give(chunk, id.0 & ((1 << self.slot_bits) - 1), len) {
            self.chunk_slot_bytes[chunk as usize].store(0, Ordering::Release);
        }
    }
}

fn meta_of(slot: &Slot) -> PageMeta {
    let [codec, low, high, _] = slot.encoding.load(Ordering::Relaxed).to_le_bytes();
    PageMeta {
        len: slot.len.load(Ordering::Relaxed),
        codec,
        flags: u16::from_le_bytes([low, high]),
        checksum: slot.checksum.load(Ordering::Relaxed),
    }
}

/// Writes a page's record into its slot, before the slot is published.
pub(crate) fn note(slot: &Slot, record: &PageRecord) {
    let [low, high] = record.meta.flags.to_le_bytes();
    slot.encoding.store(u32::from_le_bytes([record.meta.codec, low, high, 0]), Ordering::Relaxed);
    slot.checksum.store(record.meta.checksum, Ordering::Relaxed);
    slot.digest.store(record.digest, Ordering::Relaxed);
    slot.position.store(record.position, Ordering::Relaxed);
    slot.created_ms.store(record.now_ms, Ordering::Relaxed);
    slot.set_accessed(record.now_ms, 0);
    slot.policy.store(record.policy, Ordering::Relaxed);
    slot.extent.store(record.extent, Ordering::Relaxed);
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
