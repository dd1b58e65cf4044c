//! The tables beside the pages: what chunks and slots are used for, and, if the arena is a file, what its pages are
//! called. They are live: the tables of a file are the very words that the arena works with, so a process that dies at
//! any moment leaves what it had.
//!
//! # Format of the file `memkv.arena`, version 1
//!
//! All integers have the byte order of the machine that wrote the file; it is not meant to leave it. Tables lie one
//! after the other, each starting at a multiple of 4 KiB; `P` is 2 MiB, or the page size of the hugetlbfs if larger.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic: the number `0x4d454d4b_56415245` |
//! | 8..16 | version: 1. Magic and version stay where they are in all versions |
//! | 16..24 | bytes of a chunk, a power of two from 4 MiB |
//! | 24..32 | number of chunks |
//! | 32..40 | offset of the chunk table: 4096 |
//! | 40..48 | offset of the slot table |
//! | 48..56 | offset of the key table |
//! | 56..64 | offset of the chunks' bytes, a multiple of `P` |
//! | 64..72 | length of the file, a multiple of `P` |
//! | 72..80 | XXH3-64 (seed 0) of bytes 0..72 |
//! | 80..88 | 1 if the last user closed it; 0 while it is in use and after an unclean end |
//! | 88..96 | process id of the last user |
//! | 96..4096 | zero |
//! | chunk table | for each chunk 4 bytes: slot size of its class, 0 without one |
//! | slot table | for each 4 KiB of each chunk 64 bytes; the slots of a chunk use the first ones of its part |
//! | key table | in the same order 536 bytes for each; only those of slots in use are ever allocated |
//! | chunks | the pages; a slot is at its number times the slot size of its chunk |
//!
//! | slot's bytes | what |
//! |---|---|
//! | 0..4 | state: bit 31 published, bit 30 reserved, below that pins (of a live process) |
//! | 4..8 | length of the page |
//! | 8..16 | last access in ms (44 bits), hits (20 bits, the low ones) |
//! | 16..24 | time of publication in ms |
//! | 24..32 | checksum, seeded with the digest |
//! | 32..40 | digest of space and key |
//! | 40..48 | the eviction policy's word |
//! | 48..56 | place in the tier below, 0 without one |
//! | 56..60 | position in the chain of pages |
//! | 60..64 | codec (8 bits), flags (16 bits), bit 24: not verified since an unclean end |
//!
//! | key entry's bytes | what |
//! |---|---|
//! | 0..16 | space |
//! | 16..24 | length of the key, 1 to 512 |
//! | 24..536 | the key, as many bytes |
//!
//! A page is there if its slot is published and the digest is that of its space and key; its bytes are right if they
//! match the checksum. Everything is written before the state word says "published".

use crate::config::ArenaError;
use crate::map::Mapping;
use crate::record::SlotId;
use crate::slot::Slot;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use memkv_core::{MAX_KEY_BYTES, PageHasher};
use std::ops::Range;
use std::slice;

pub(crate) const MAGIC: u64 = 0x4d45_4d4b_5641_5245;
pub(crate) const VERSION: u64 = 1;
/// Number of 64-bit words in the header that are used.
pub(crate) const HEAD_WORDS: usize = 12;
/// Of these, the ones that never change.
const FIXED_WORDS: usize = 9;
pub(crate) const CHECKSUM_WORD: usize = 9;
pub(crate) const CLEAN_WORD: usize = 10;
pub(crate) const PROCESS_WORD: usize = 11;
const PAGE: u64 = 4096;
const KEY_WORDS: usize = MAX_KEY_BYTES / 8;

/// Where everything lies. A plain function of three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) chunk_bytes: u32,
    pub(crate) chunks: u32,
    /// Slots of a chunk in the tables, as a power of two.
    pub(crate) slot_bits: u32,
    slots: u64,
    keys: u64,
    pub(crate) data: u64,
    pub(crate) file_len: u64,
}

impl Layout {
    /// `align` is the page size of the file system, at least 2 MiB. `None` if that is more than addresses can name.
    pub(crate) fn new(chunk_bytes: u32, chunks: u32, align: u64) -> Option<Self> {
        let slot_bits = (chunk_bytes / crate::SLOT_ALIGN).trailing_zeros();
        let count = u64::from(chunks) << slot_bits;
        let slots = (PAGE + u64::from(chunks) * 4).next_multiple_of(PAGE);
        let keys = slots.checked_add(count.checked_mul(size_of::<Slot>() as u64)?)?;
        let keys_end = keys.checked_add(count.checked_mul(size_of::<KeyEntry>() as u64)?)?;
        let data = keys_end.checked_next_multiple_of(align)?;
        let file_len = data.checked_add(u64::from(chunks) * u64::from(chunk_bytes))?;
        let file_len = file_len.checked_next_multiple_of(align)?;
        usize::try_from(file_len).ok()?;
        Some(Self { chunk_bytes, chunks, slot_bits, slots, keys, data, file_len })
    }

    /// Bytes of all chunks.
    pub(crate) fn data_len(&self) -> u64 {
        u64::from(self.chunks) * u64::from(self.chunk_bytes)
    }

    /// Bytes of the tables without keys, for an arena that does not outlive its process.
    pub(crate) fn tables_len(&self) -> u64 {
        self.keys
    }

    /// The words of the header that never change, and their checksum.
    pub(crate) fn head(&self) -> [u64; CHECKSUM_WORD + 1] {
        let (chunk_bytes, chunks) = (u64::from(self.chunk_bytes), u64::from(self.chunks));
        let fixed =
            [MAGIC, VERSION, chunk_bytes, chunks, PAGE, self.slots, self.keys, self.data, self.file_len];
        let mut head = [0; CHECKSUM_WORD + 1];
        head[..FIXED_WORDS].copy_from_slice(&fixed);
        head[CHECKSUM_WORD] = head_checksum(&fixed);
        head
    }

    /// The bytes of the tables that belong to the slots `slots` of a chunk: records, then keys.
    pub(crate) fn table_ranges(&self, chunk: u32, slots: Range<u32>) -> [Range<u64>; 2] {
        let first = u64::from(chunk) << self.slot_bits;
        let of = |table: u64, stride: usize| {
            let at = |slot: u32| table + (first + u64::from(slot)) * stride as u64;
            at(slots.start)..at(slots.end)
        };
        [of(self.slots, size_of::<Slot>()), of(self.keys, size_of::<KeyEntry>())]
    }

    /// Slots of a chunk in the tables.
    pub(crate) fn slots_per_chunk(&self) -> u32 {
        1 << self.slot_bits
    }
}

/// Checksum of the header's first words.
pub(crate) fn head_checksum(words: &[u64]) -> u64 {
    let mut hasher = PageHasher::new(0);
    words[..FIXED_WORDS].iter().for_each(|word| hasher.update(&word.to_ne_bytes()));
    hasher.finish()
}

/// A page's name. Words, so that writing it needs no exclusive access that a table of atomics cannot prove.
#[repr(C)]
struct KeyEntry {
    space: [AtomicU64; 2],
    len: AtomicU64,
    key: [AtomicU64; KEY_WORDS],
}

/// A page's name, read back.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) space: [u8; 16],
    key: [u8; MAX_KEY_BYTES],
    len: usize,
}

impl Name {
    pub(crate) fn key(&self) -> &[u8] {
        &self.key[..self.len]
    }
}

impl KeyEntry {
    fn write(&self, space: &[u8; 16], key: &[u8]) {
        store(&self.space, space);
        self.len.store(key.len() as u64, Ordering::Relaxed);
        store(&self.key, key);
    }

    /// `None` if no key has this length.
    fn read(&self) -> Option<Name> {
        let len = usize::try_from(self.len.load(Ordering::Relaxed)).ok()?;
        if !(1..=MAX_KEY_BYTES).contains(&len) {
            return None;
        }
        let mut name = Name { space: [0; 16], key: [0; MAX_KEY_BYTES], len };
        load(&self.space, &mut name.space);
        load(&self.key, &mut name.key[..len]);
        Some(name)
    }
}

fn store(words: &[AtomicU64], bytes: &[u8]) {
    for (word, part) in words.iter().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..part.len()].copy_from_slice(part);
        word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
    }
}

fn load(words: &[AtomicU64], bytes: &mut [u8]) {
    for (word, part) in words.iter().zip(bytes.chunks_mut(8)) {
        part.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[..part.len()]);
    }
}

/// The tables, in memory of their own or in a file.
pub(crate) struct Tables {
    mapping: Mapping,
    layout: Layout,
    named: bool,
}

impl Tables {
    /// Tables over a mapping: of a file from its start to the chunks, or, without names, of zeroed memory.
    pub(crate) fn new(mapping: Mapping, layout: Layout, named: bool) -> Self {
        let len = if named { layout.data } else { layout.tables_len() };
        assert!(mapping.len() as u64 >= len, "the mapping holds the tables");
        Self { mapping, layout, named }
    }

    /// Tables for an arena that does not outlive its process.
    pub(crate) fn anonymous(layout: Layout) -> Result<Self, ArenaError> {
        let bytes = layout.tables_len();
        let len = usize::try_from(bytes).map_err(|_| ArenaError::TooLarge(bytes))?;
        let mapping = Mapping::anonymous(len, crate::map::HugePages::Off);
        let mapping = mapping.map_err(|reason| ArenaError::Map { bytes, reason })?;
        Ok(Self::new(mapping, layout, false))
    }

    /// `count` values from `offset` on. `T` is one of the types below, which consist of atomic integers.
    fn view<T>(&self, offset: u64, count: u64) -> &[T] {
        let (offset, count) = (to_usize(offset), to_usize(count));
        debug_assert!(offset + count * size_of::<T>() <= self.mapping.len() && offset.is_multiple_of(64));
        // SAFETY: the layout's tables lie inside the mapping, see `new`.
        let start = unsafe { self.mapping.start().add(offset) };
        // SAFETY: the mapping is initialised and lives as long as `self`; tables start at multiples of 64, which suits
        // every `T`. The words are only ever used as these atomics, whose every bit pattern is valid, so other threads,
        // or a process that should not, may change them at any time.
        unsafe { slice::from_raw_parts(start.cast::<T>().as_ptr(), count) }
    }

    fn slot_count(&self) -> u64 {
        u64::from(self.layout.chunks) << self.layout.slot_bits
    }

    /// The header; meaningful in a file.
    pub(crate) fn header(&self) -> &[AtomicU64] {
        self.view::<AtomicU64>(0, HEAD_WORDS as u64)
    }

    /// For each chunk the slot size of its class, 0 without one.
    pub(crate) fn chunks(&self) -> &[AtomicU32] {
        self.view::<AtomicU32>(PAGE, self.layout.chunks.into())
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        self.view::<Slot>(self.layout.slots, self.slot_count())
    }

    fn key_entry(&self, id: SlotId) -> Option<&KeyEntry> {
        if !self.named {
            return None;
        }
        self.view::<KeyEntry>(self.layout.keys, self.slot_count()).get(id.0 as usize)
    }

    /// Notes what the page in a reserved slot is called. Nothing to do if nobody can ask after a restart.
    ///
    /// # Panics
    ///
    /// If the key is longer than keys are.
    pub(crate) fn name(&self, id: SlotId, space: &[u8; 16], key: &[u8]) {
        if let Some(entry) = self.key_entry(id) {
            assert!(key.len() <= MAX_KEY_BYTES, "keys were checked where they entered");
            entry.write(space, key);
        }
    }

    /// What the page in a slot is called.
    pub(crate) fn name_of(&self, id: SlotId) -> Option<Name> {
        self.key_entry(id)?.read()
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("the layout's length fits usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_do_not_overlap_and_the_format_is_as_documented() {
        let layout = Layout::new(4 << 20, 5, 2 << 20).unwrap();
        assert_eq!((size_of::<Slot>(), size_of::<KeyEntry>()), (64, 536));
        let records = 5 * 1024 * 64;
        let head = layout.head();
        assert_eq!(head[..7], [MAGIC, 1, 4 << 20, 5, 4096, 8192, 8192 + records]);
        assert_eq!(head[7], (8192 + records + 5 * 1024 * 536).next_multiple_of(2 << 20));
        assert_eq!(head[8], head[7] + (20 << 20));
        assert_eq!(
            layout.table_ranges(1, 2..4),
            [8192 + 1026 * 64..8192 + 1028 * 64, head[6] + 1026 * 536..head[6] + 1028 * 536]
        );
        assert!(Layout::new(1 << 31, u32::MAX, 2 << 20).is_some());
        assert!(Layout::new(4096, u32::MAX, 1 << 63).is_none());
    }

    #[test]
    fn names_of_every_length_are_read_back() {
        let layout = Layout::new(4 << 20, 1, 2 << 20).unwrap();
        let mapping = Mapping::anonymous(to_usize(layout.data), crate::map::HugePages::Off).unwrap();
        let tables = Tables::new(mapping, layout, true);
        assert!(tables.name_of(SlotId(3)).is_none(), "nothing was written");
        let long: Vec<u8> = (0..=255).cycle().take(MAX_KEY_BYTES).collect();
        for len in [1, 7, 8, 9, 100, 511, 512] {
            tables.name(SlotId(3), &[len as u8; 16], &long[..len]);
            let name = tables.name_of(SlotId(3)).unwrap();
            assert_eq!((name.space, name.key()), ([len as u8; 16], &long[..len]));
        }
        assert!(tables.name_of(SlotId(2)).is_none() && tables.name_of(SlotId(4)).is_none());
        assert!(tables.name_of(SlotId(u32::MAX)).is_none());
    }
}
