//! The arena: the mapping, the tables of chunks and slots, and the books, tied together.

use crate::books::{Books, ClassDemand, ClassFill, ClassStatus, Full};
use crate::config::{
    ArenaBacking, ArenaConfig, ArenaError, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Numa, PAGE_BYTES_LIMIT,
};
use crate::file::{ArenaFile, Past};
use crate::handle::{ReservedSlot, SlotPin};
use crate::map::{Backing, Mapping};
use crate::record::{PageView, SlotId, meta_of};
use crate::recover::{self, Recovered};
use crate::share::{self, Share, Shared};
use crate::slot::Slot;
use crate::state::Doomed;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::tables::{Layout, Tables};
use crate::warm::Warmer;
use crate::{SLOT_ALIGN, class, numa};
use memkv_core::PageMeta;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

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
    /// Where it comes from and what was done to it.
    pub memory: MemoryStatus,
}

/// Where an arena's memory comes from and what was done to it at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatus {
    /// The file, if the pages outlive the process.
    pub file: Option<PathBuf>,
    /// The kind of its file system: tmpfs, hugetlbfs or a drive.
    pub file_system: Option<&'static str>,
    /// Locked: never swapped out.
    pub locked: bool,
    /// Nodes with memory on this machine; 0 if the kernel does not tell.
    pub numa_nodes: u32,
    /// Spread evenly over these nodes. With one node there is nothing to spread.
    pub interleaved: bool,
    /// Left out of core dumps.
    pub undumped: bool,
    /// Whether other processes may map it.
    pub shared: Shared,
}

/// One mapping, cut into chunks and slots. See the crate's documentation.
pub struct Arena {
    data: Arc<Mapping>,
    /// The slot size of a chunk's class in there is written under the lock of `books`, and cannot change while one of
    /// the chunk's slots is in use.
    pub(crate) tables: Tables,
    books: Mutex<Books>,
    layout: Layout,
    page_bytes_max: u32,
    memory: MemoryStatus,
    closed: AtomicBool,
    /// Absent if all memory is resident from the start.
    warmer: Option<Warmer>,
    /// What others map the memory by, if they may.
    shared: Option<File>,
    /// Dropped last, and with it the lock on the file.
    file: Option<ArenaFile>,
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

/// Number and size of the chunks.
fn chunks(bytes: u64, page_bytes_max: u32) -> Result<(u32, u32), ArenaError> {
    let chunk = chunk_bytes(bytes, page_bytes_max);
    if bytes < chunk {
        return Err(ArenaError::TooSmall(bytes));
    }
    let too_large = |_| ArenaError::TooLarge(bytes);
    let count = u32::try_from(bytes / chunk).map_err(too_large)?;
    if (bytes / chunk).saturating_mul(chunk / u64::from(SLOT_ALIGN)) > 1 << 32 {
        return Err(ArenaError::TooLarge(bytes));
    }
    Ok((u32::try_from(chunk).map_err(too_large)?, count))
}

impl Arena {
    /// Reserves memory that ends with the process, whatever `backing` says. Nothing else is mapped or grows later.
    ///
    /// # Errors
    ///
    /// [`ArenaError`] if the sizes do not fit together or the kernel refuses.
    pub fn new(config: ArenaConfig<'_>) -> Result<Arc<Self>, ArenaError> {
        let (arena, _) = Self::open(ArenaConfig { backing: ArenaBacking::Anonymous, ..config })?;
        Ok(arena)
    }

    /// Reserves the memory, and recovers what its file holds of an earlier process, if it has one: then, and only
    /// then, the second value is there.
    ///
    /// # Errors
    ///
    /// [`ArenaError`] if the sizes do not fit together, the kernel refuses, or the file belongs to somebody else.
    pub fn open(config: ArenaConfig<'_>) -> Result<(Arc<Self>, Option<Recovered>), ArenaError> {
        if config.page_bytes_max > PAGE_BYTES_LIMIT {
            return Err(ArenaError::PageTooLarge(config.page_bytes_max));
        }
        let page_bytes_max = page_limit(config.bytes, config.page_bytes_max);
        let (chunk_bytes, chunks) = chunks(config.bytes, page_bytes_max)?;
        let layout =
            |align| Layout::new(chunk_bytes, chunks, align).ok_or(ArenaError::TooLarge(config.bytes));
        let mut books = Books::new(chunk_bytes, chunks);
        let mut memory = MemoryStatus::default();
        let mut shared = None;
        let (data, tables, layout, opened) = match &config.backing {
            ArenaBacking::Anonymous => {
                let layout = layout(1)?;
                let tables = Tables::anonymous(layout)?;
                let mut data;
                (data, shared) = map_memory(layout.data_len(), &config, &mut memory)?;
                prepare(&mut data, &config, &mut memory, || Ok(()))?;
                (data, tables, layout, None)
            }
            ArenaBacking::File(directory) => {
                let file = ArenaFile::open(directory)?;
                let layout = layout(file.system.align())?;
                let past = file.past(&layout)?;
                let kept = matches!(past, Past::Clean | Past::Unclean);
                if !kept {
                    file.empty(&layout)?;
                }
                let (tables, mut data) = map_file(&file, &layout)?;
                let allocate = || {
                    let allocated = file.allocate_all(&layout);
                    if allocated.is_err() && !kept {
                        file.give_up();
                    }
                    allocated
                };
                prepare(&mut data, &config, &mut memory, allocate)?;
                // From here on a process that dies leaves an unclean file, also during the repair.
                file.begin(&tables, &layout)?;
                let clean = past == Past::Clean;
                let counts = recover::repair((&file, &layout), &tables, &mut data, &mut books, clean);
                memory.file = Some(file.path().to_owned());
                if config.share != Share::Off {
                    memory.shared = Shared::No(FILE_IS_NOT_SHARED.to_owned());
                }
                memory.file_system = Some(file.system.text());
                (data, tables, layout, Some((file, past, counts)))
            }
        };
        let (file, found) =
            opened.map_or((None, None), |(file, past, counts)| (Some(file), Some((past, counts))));
        let data = Arc::new(data);
        let resident = config.prefault || config.mlock;
        let warmer = if resident { None } else { Warmer::start(Arc::clone(&data), chunk_bytes) };
        if let Some(warmer) = &warmer {
            warmer.ahead(books.upcoming());
        }
        let arena = Arc::new(Self {
            data,
            tables,
            books: Mutex::new(books),
            layout,
            page_bytes_max,
            memory,
            closed: AtomicBool::new(false),
            warmer,
            shared,
            file,
        });
        let recovered = found.map(|(past, counts)| Recovered::new(Arc::clone(&arena), past, counts));
        Ok((arena, recovered))
    }

    /// Ends the use of the arena, after the last request: no slot is handed out any more, and a file is marked as
    /// closed, so that the next process serves its pages without verifying them.
    ///
    /// # Errors
    ///
    /// [`ArenaError::File`] if the file cannot be written; it then counts as uncleanly ended.
    pub fn close(&self) -> Result<(), ArenaError> {
        // Under the lock, so that no reservation is in between.
        let books = self.books.lock();
        self.closed.store(true, Ordering::Release);
        drop(books);
        self.file.as_ref().map_or(Ok(()), |file| file.end(&self.tables))
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
        if self.closed.load(Ordering::Acquire) {
            return Err(Full { slot_bytes: exact });
        }
        let taken = books.take(len, exact)?;
        if taken.new_chunk {
            let slot_bytes = taken.fill.slot_bytes;
            if let Some(file) = &self.file {
                let slots = self.layout.chunk_bytes / slot_bytes;
                if file.allocate_tables(&self.layout, taken.chunk, slots).is_err() {
                    books.give(taken.chunk, taken.slot, len);
                    return Err(Full { slot_bytes });
                }
            }
            self.tables.chunks()[taken.chunk as usize].store(slot_bytes, Ordering::Release);
        }
        let upcoming = taken.goes_on.then(|| books.upcoming());
        drop(books);
        if let (Some(warmer), Some(upcoming)) = (&self.warmer, upcoming) {
            warmer.ahead(upcoming);
        }
        let id = self.slot_id(taken.chunk, taken.slot);
        let slot = self.slot(id);
        slot.state.claim();
        slot.len.store(len, Ordering::Relaxed);
        Ok((ReservedSlot::new(Arc::clone(self), id, len), taken.fill))
    }

    /// Pins the page in a slot. `None` if the slot holds no published page.
    #[must_use]
    pub fn pin(self: &Arc<Self>, id: SlotId) -> Option<SlotPin> {
        self.tables.slots().get(id.0 as usize)?.state.pin().then(|| SlotPin::new(Arc::clone(self), id))
    }

    /// Where all slots lie: the start of the memory and its bytes. Both stay as they are, and the memory stays mapped, as
    /// long as the arena; for devices that want to know it in advance.
    #[must_use]
    pub fn memory(&self) -> (NonNull<u8>, usize) {
        (self.data.start(), self.data.len())
    }

    /// Takes a published page out of circulation; its slot is free once no reader holds it.
    ///
    /// `false` if the slot holds no published page.
    pub fn doom(&self, id: SlotId) -> bool {
        let Some(slot) = self.tables.slots().get(id.0 as usize) else { return false };
        match slot.state.doom() {
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
        if let Some(slot) = self.tables.slots().get(id.0 as usize) {
            slot.access(now_ms, 0);
        }
    }

    /// Notes that the page was read at `now_ms`.
    pub fn hit(&self, id: SlotId, now_ms: u64) {
        if let Some(slot) = self.tables.slots().get(id.0 as usize) {
            slot.access(now_ms, 1);
        }
    }

    /// Sets the eviction policy's word. Like the other setters it takes any slot number: one that has been handed on
    /// meanwhile gets the word of a page that is gone, which costs the policy one decision and nothing else.
    pub fn set_policy(&self, id: SlotId, word: u64) {
        if let Some(slot) = self.tables.slots().get(id.0 as usize) {
            slot.policy.store(word, Ordering::Relaxed);
        }
    }

    /// Changes the eviction policy's word from what it is to what `next` makes of it, again and again until nobody
    /// else changes it in between. `None` leaves it as it is.
    pub fn update_policy(&self, id: SlotId, next: impl FnMut(u64) -> Option<u64>) {
        if let Some(slot) = self.tables.slots().get(id.0 as usize) {
            // An error says that `next` wanted no change.
            let _unchanged = slot.policy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        }
    }

    /// Notes where else the page rests; 0 for nowhere. Only while the page cannot leave the slot, so under a pin or
    /// under the lock that whoever dooms it takes: the next page would inherit the place.
    pub fn set_extent(&self, id: SlotId, extent: u64) {
        if let Some(slot) = self.tables.slots().get(id.0 as usize) {
            slot.extent.store(extent, Ordering::Relaxed);
        }
    }

    /// Where else the page in a slot rests; 0 for nowhere, and for a slot without a page.
    #[must_use]
    pub fn extent_of(&self, id: SlotId) -> u64 {
        self.tables
            .slots()
            .get(id.0 as usize)
            .filter(|slot| slot.state.published().is_some())
            .map_or(0, |slot| slot.extent.load(Ordering::Relaxed))
    }

    /// What is known of the page in a slot. `None` if the slot holds no published page.
    #[must_use]
    pub fn page(&self, id: SlotId) -> Option<PageView> {
        PageView::of(id, self.tables.slots().get(id.0 as usize)?)
    }

    /// Notes that the bytes of a recovered page match its checksum, see [`PageView::verified`]. Only under a pin, so
    /// that the slot still holds the page that was verified.
    pub fn verified(&self, id: SlotId) {
        if let Some(slot) = self.tables.slots().get(id.0 as usize) {
            slot.set_verified(true);
        }
    }

    /// Slot size of the class that a slot belongs to now; 0 if its chunk has none.
    #[must_use]
    pub fn slot_bytes(&self, id: SlotId) -> u32 {
        let chunk = (id.0 >> self.layout.slot_bits) as usize;
        self.tables.chunks().get(chunk).map_or(0, |bytes| bytes.load(Ordering::Acquire))
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        self.layout.chunks
    }

    /// The class a chunk belongs to now, if any.
    #[must_use]
    pub fn chunk(&self, chunk: u32) -> Option<ChunkView> {
        let slot_bytes = self.tables.chunks().get(chunk as usize)?.load(Ordering::Acquire);
        (slot_bytes != 0).then(|| ChunkView {
            chunk,
            slot_bytes,
            slots: self.layout.chunk_bytes / slot_bytes,
        })
    }

    /// The published pages in `count` slots of a chunk, starting with its slot `from`. Takes no lock: pages may come
    /// and go meanwhile.
    pub fn pages(&self, view: ChunkView, from: u32, count: u32) -> impl Iterator<Item = PageView> + '_ {
        let first = view.chunk << self.layout.slot_bits;
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
        self.layout.data_len()
    }

    /// What other processes map the memory by, to read it, and how long it is in bytes; `None` if they may not. A page is
    /// at [`SlotPin::offset`].
    #[must_use]
    pub fn shared(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.shared.as_ref().map(|file| (file.as_fd(), self.data.len() as u64))
    }

    /// The arena as a whole.
    #[must_use]
    pub fn status(&self) -> ArenaStatus {
        let books = self.books.lock();
        ArenaStatus {
            capacity_bytes: self.capacity_bytes(),
            held_bytes: books.held_bytes(),
            asked_bytes: books.asked_bytes(),
            chunk_bytes: self.layout.chunk_bytes,
            chunks: self.chunk_count(),
            chunks_free: u32::try_from(books.free_chunk_count()).expect("chunks were counted in 32 bits"),
            chunks_draining: books.draining_chunk_count(),
            classes: books.classes(),
            backing: self.data.backing(),
            memory: self.memory.clone(),
        }
    }

    pub(crate) fn slot_id(&self, chunk: u32, slot: u32) -> SlotId {
        SlotId((chunk << self.layout.slot_bits) + slot)
    }

    /// The slot's record. Only for numbers that the arena handed out.
    pub(crate) fn slot(&self, id: SlotId) -> &Slot {
        &self.tables.slots()[id.0 as usize]
    }

    pub(crate) fn meta(&self, id: SlotId) -> PageMeta {
        meta_of(self.slot(id))
    }

    /// Offset of a slot that is in use from the start of the mapping, and its size.
    pub(crate) fn place(&self, id: SlotId) -> (NonNull<u8>, usize, u32) {
        let chunk = u64::from(id.0 >> self.layout.slot_bits);
        let slot = u64::from(id.0 & ((1 << self.layout.slot_bits) - 1));
        let slot_bytes = self.slot_bytes(id);
        let offset = chunk * u64::from(self.layout.chunk_bytes) + slot * u64::from(slot_bytes);
        let offset = usize::try_from(offset).expect("the mapping's length fits usize");
        (self.data.start(), offset, slot_bytes)
    }

    /// Hands a slot back whose state word has just become 0.
    pub(crate) fn give_back(&self, id: SlotId) {
        let len = self.slot(id).len.load(Ordering::Relaxed);
        let chunk = id.0 >> self.layout.slot_bits;
        let mut books = self.books.lock();
        if books.give(chunk, id.0 & ((1 << self.layout.slot_bits) - 1), len) {
            self.tables.chunks()[chunk as usize].store(0, Ordering::Release);
        }
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("the layout's length fits usize")
}

/// Why a file's memory is not shared.
const FILE_IS_NOT_SHARED: &str = "memory in a file (memory.backing) cannot be sealed against its own user's processes, so it is not shared; pages go \
     through the socket";

/// Maps memory that ends with the process, so that others may map it if the configuration says so.
fn map_memory(
    bytes: u64,
    config: &ArenaConfig<'_>,
    memory: &mut MemoryStatus,
) -> Result<(Mapping, Option<File>), ArenaError> {
    if config.share != Share::Off {
        match share::map(to_usize(bytes), config.huge_pages, config.share) {
            Ok((data, file)) => {
                memory.shared = Shared::Yes;
                return Ok((data, Some(file)));
            }
            Err(why) if config.share == Share::On => return Err(ArenaError::Share(why)),
            Err(why) => memory.shared = Shared::No(why),
        }
    }
    let data = Mapping::anonymous(to_usize(bytes), config.huge_pages);
    Ok((data.map_err(|reason| ArenaError::Map { bytes, reason })?, None))
}

fn map_file(file: &ArenaFile, layout: &Layout) -> Result<(Tables, Mapping), ArenaError> {
    let map = |range: std::ops::Range<u64>, backing| {
        let (len, align) = (to_usize(range.end - range.start), to_usize(file.system.align()));
        Mapping::file(file.file(), (range.start, len), align, file.system.is_memory(), backing)
            .map_err(|reason| ArenaError::Map { bytes: len as u64, reason })
    };
    let tables = map(0..layout.data, Backing::Plain)?;
    let data = map(layout.data..layout.file_len, file.backing())?;
    Ok((Tables::new(tables, *layout, true), data))
}

/// Does to the memory what the configuration asks, in the order in which it works: first where it may be, then that
/// it exists, then that it is resident and stays so.
fn prepare(
    data: &mut Mapping,
    config: &ArenaConfig<'_>,
    memory: &mut MemoryStatus,
    allocate: impl FnOnce() -> Result<(), ArenaError>,
) -> Result<(), ArenaError> {
    let bytes = data.len() as u64;
    let nodes = numa::nodes();
    memory.numa_nodes = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    memory.interleaved = config.numa == Numa::Auto && nodes.len() > 1 && numa::interleave(data, &nodes);
    memory.undumped = data.leave_out_of_dumps();
    allocate()?;
    if config.prefault || config.mlock {
        let silent = |_, _| {};
        data.prefault(config.progress.unwrap_or(&silent))
            .map_err(|reason| ArenaError::Prefault { bytes, reason })?;
    }
    if config.mlock {
        data.lock().map_err(|reason| ArenaError::Lock { bytes, limit: lock_limit(), reason })?;
        memory.locked = true;
    }
    Ok(())
}

/// How much memory this process may lock, for people.
fn lock_limit() -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes"))
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
