//! Restart: what a file holds of an earlier process, and what of it is kept.
//!
//! The dead process may have ended between any two writes. Its readers and writers are gone: a published slot keeps
//! its page and loses its pins; any other slot is free. A page whose name does not give its digest is dropped: either
//! was torn by a machine that lost power. Whether the bytes are right only the checksum tells; after an unclean end
//! every page is marked, and whoever serves pages verifies it first.

use crate::SLOT_ALIGN;
use crate::arena::Arena;
use crate::books::Books;
use crate::file::{ArenaFile, Past};
use crate::map::Mapping;
use crate::record::{PageRecord, SlotId};
use crate::sync::Ordering;
use crate::tables::{Layout, Name, Tables};
use memkv_core::{Key, SpaceId, page::key_digest};
use std::sync::Arc;

/// What a file-backed arena found when it was opened. Iterates over the pages that were kept: they are published, so
/// whoever does not want one has to [doom](Arena::doom) it.
///
/// Two pages never have the same space and key, if whoever published them saw to that.
pub struct Recovered {
    arena: Arc<Arena>,
    past: Past,
    counts: Counts,
    /// Chunk and slot to look at next.
    next: (u32, u32),
}

/// How a recovery went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
    /// Published slots whose name or length made no sense.
    pub(crate) dropped: u64,
}

/// A page that was kept.
#[derive(Clone)]
pub struct RecoveredPage {
    /// Where it is.
    pub slot: SlotId,
    /// As it was published; policy and extent as they were last set.
    pub record: PageRecord,
    /// When it was last read or touched, by the clock of the process that did.
    pub last_access_ms: u64,
    /// Reads; stops at 2^20 - 1.
    pub hits: u32,
    /// Whether the bytes can be served without verifying them first.
    pub clean: bool,
    name: Name,
}

impl RecoveredPage {
    /// The space that it belongs to.
    #[must_use]
    pub fn space(&self) -> [u8; 16] {
        self.name.space
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.name.key()
    }
}

impl Recovered {
    pub(crate) fn new(arena: Arc<Arena>, past: Past, counts: Counts) -> Self {
        Self { arena, past, counts, next: (0, 0) }
    }

    /// What the file held.
    #[must_use]
    pub fn past(&self) -> &Past {
        &self.past
    }

    /// Number of pages that were kept.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.counts.pages
    }

    /// Bytes of these pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counts.bytes
    }

    /// Number of pages that were not kept because their description was damaged.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped
    }
}

impl Iterator for Recovered {
    type Item = RecoveredPage;

    fn next(&mut self) -> Option<RecoveredPage> {
        loop {
            let (chunk, slot) = self.next;
            if chunk >= self.arena.chunk_count() {
                return None;
            }
            match self.arena.chunk(chunk).filter(|view| slot < view.slots) {
                None => self.next = (chunk + 1, 0),
                Some(_) => {
                    self.next.1 += 1;
                    let page = self.arena.recovered(self.arena.slot_id(chunk, slot));
                    if page.is_some() {
                        return page;
                    }
                }
            }
        }
    }
}

impl Arena {
    fn recovered(self: &Arc<Self>, id: SlotId) -> Option<RecoveredPage> {
        // Under a pin the slot cannot go to another page while its name is read.
        let _pin = self.pin(id)?;
        let (view, name) = (self.page(id)?, self.tables.name_of(id)?);
        let (last_access_ms, hits, clean) = (view.last_access_ms, view.hits, view.verified);
        Some(RecoveredPage { slot: id, record: view.record(), last_access_ms, hits, clean, name })
    }
}

/// Makes an arena's file fit for use again after its last user, whatever became of that, and enters its pages into the
/// books. Only before anybody else reaches the memory.
pub(crate) fn repair(
    (file, layout): (&ArenaFile, &Layout),
    tables: &Tables,
    data: &mut Mapping,
    books: &mut Books,
    clean: bool,
) -> Counts {
    let mut counts = Counts::default();
    let mut pages = Vec::new();
    for (chunk, class) in (0..layout.chunks).zip(tables.chunks()) {
        let slot_bytes = class.load(Ordering::Relaxed);
        let sound =
            slot_bytes != 0 && slot_bytes.is_multiple_of(SLOT_ALIGN) && slot_bytes <= layout.chunk_bytes;
        let slots = if sound { layout.chunk_bytes / slot_bytes } else { 0 };
        pages.clear();
        for slot in 0..slots {
            let id = SlotId((chunk << layout.slot_bits) + slot);
            match keep(tables, id, slot_bytes) {
                Kept::Free => {}
                Kept::Damaged => counts.dropped += 1,
                Kept::Page(len) => pages.push((slot, len)),
            }
        }
        if pages.is_empty() || !books.adopt(chunk, slot_bytes, &pages) {
            counts.dropped += pages.len() as u64;
            class.store(0, Ordering::Relaxed);
            free_from(file, layout, tables, chunk, 0);
            continue;
        }
        free_from(file, layout, tables, chunk, slots);
        counts.pages += pages.len() as u64;
        counts.bytes += pages.iter().map(|&(_, len)| u64::from(len)).sum::<u64>();
        if !clean {
            mark(file, layout, tables, data, (chunk, slot_bytes), &pages);
        }
    }
    counts
}

/// Marks the pages of a chunk as not verified. A process that was killed had zeroed what follows a page before it
/// published the page; a drive may have kept an older state of either.
fn mark(
    file: &ArenaFile,
    layout: &Layout,
    tables: &Tables,
    data: &mut Mapping,
    (chunk, slot_bytes): (u32, u32),
    pages: &[(u32, u32)],
) {
    for &(slot, len) in pages {
        tables.slots()[((chunk << layout.slot_bits) + slot) as usize].set_verified(false);
        if !file.system.is_memory() {
            let chunk_start = u64::from(chunk) * u64::from(layout.chunk_bytes);
            let end = chunk_start + u64::from(slot + 1) * u64::from(slot_bytes);
            let (end, tail) =
                (usize::try_from(end).expect("the mapping's length fits usize"), slot_bytes - len);
            data.zero(end - tail as usize, tail as usize);
        }
    }
}

enum Kept {
    Free,
    Damaged,
    Page(u32),
}

/// Repairs one slot: keeps its page or frees it.
fn keep(tables: &Tables, id: SlotId, slot_bytes: u32) -> Kept {
    let slot = &tables.slots()[id.0 as usize];
    if !slot.state.repair() {
        return Kept::Free;
    }
    let len = slot.len.load(Ordering::Relaxed);
    let digest = tables.name_of(id).and_then(|name| {
        let key = Key::new(name.key()).ok()?;
        Some(key_digest(SpaceId(name.space), key))
    });
    if len <= slot_bytes && digest == Some(slot.digest.load(Ordering::Relaxed)) {
        return Kept::Page(len);
    }
    slot.state.free();
    Kept::Damaged
}

/// Frees the slots of a chunk from `from` on; their records may never have been written.
fn free_from(file: &ArenaFile, layout: &Layout, tables: &Tables, chunk: u32, from: u32) {
    if !file.clear_tables(layout, chunk, from) {
        let first = chunk << layout.slot_bits;
        (from..layout.slots_per_chunk())
            .for_each(|slot| tables.slots()[(first + slot) as usize].state.free());
    }
}
