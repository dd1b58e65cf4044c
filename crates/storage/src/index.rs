//! The index: from space and key to a slot.
//!
//! A fixed number of shards, each a table behind its own lock, chosen by the top bits of the key's digest. An
//! entry is 24 bytes: the stored key, the slot, and 32 bits of the digest to hash by. Everything else that is
//! known about a page is in its slot's record, so one page costs its key, one cache line and one entry.
//!
//! Invariants:
//! - an entry's slot is published; it is unlinked before, or as, the slot is doomed;
//! - entries change only under their shard's lock; counts of a space change under the same lock.

use crate::batch::by_shard;
use crate::space::Space;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use memkv_core::page::key_digest;
use memkv_core::{Key, SpaceId};
use memkv_memory::SlotId;
use parking_lot::{Mutex, MutexGuard};

/// Number of shards. More than any server has cores, so that two requests rarely meet at one lock.
pub(crate) const SHARDS: usize = 256;

/// A key and its digest in a space, computed once per request.
#[derive(Clone, Copy, Debug)]
pub struct HashedKey<'a> {
    /// The key.
    pub key: Key<'a>,
    /// [`key_digest`] of the space and the key.
    pub digest: u64,
}

impl<'a> HashedKey<'a> {
    /// Computes the digest of a key in a space.
    #[must_use]
    pub fn new(space: SpaceId, key: Key<'a>) -> Self {
        Self { key, digest: key_digest(space, key) }
    }
}

/// A key as it rests in the index: 4 bytes of the space's number, then the key. One allocation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredKey(Box<[u8]>);

const NUMBER_BYTES: usize = 4;

impl StoredKey {
    pub(crate) fn new(space: &Space, key: Key<'_>) -> Self {
        let mut bytes = Vec::with_capacity(NUMBER_BYTES + key.as_bytes().len());
        bytes.extend_from_slice(&space.number().to_le_bytes());
        bytes.extend_from_slice(key.as_bytes());
        Self(bytes.into())
    }

    pub(crate) fn is(&self, space: &Space, key: Key<'_>) -> bool {
        self.key() == key.as_bytes() && self.space_number() == space.number()
    }

    pub(crate) fn space_number(&self) -> u32 {
        let (number, _) = self.0.split_first_chunk().expect("a stored key starts with a number");
        u32::from_le_bytes(*number)
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.0[NUMBER_BYTES..]
    }
}

/// One page.
#[derive(Debug)]
pub(crate) struct Entry {
    key: StoredKey,
    slot: SlotId,
    /// The low half of the digest; the table's hash is computed from it, so that growing reads no other memory.
    tag: u32,
}

impl Entry {
    pub(crate) fn key(&self) -> &StoredKey {
        &self.key
    }

    pub(crate) fn slot(&self) -> SlotId {
        self.slot
    }

    fn hash(&self) -> u64 {
        table_hash(self.tag)
    }
}

/// Padded, so that two shards never share a cache line.
#[repr(align(128))]
#[derive(Default)]
struct Padded(Mutex<Shard>);

/// The pages of one shard.
#[derive(Default)]
pub(crate) struct Shard {
    entries: HashTable<Entry>,
}

pub(crate) struct Index {
    shards: Box<[Padded]>,
}

/// The shard of a digest: its top bits.
pub(crate) fn shard_of(digest: u64) -> usize {
    usize::from(digest.to_be_bytes()[0])
}

fn tag_of(digest: u64) -> u32 {
    let [_, _, _, _, a, b, c, d] = digest.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Spreads the tag over both ends of the hash: the table takes its buckets from one and its marks from the other.
fn table_hash(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Index {
    pub(crate) fn new() -> Self {
        let mut shards = Vec::new();
        shards.resize_with(SHARDS, Padded::default);
        Self { shards: shards.into() }
    }

    pub(crate) fn shard(&self, number: usize) -> MutexGuard<'_, Shard> {
        self.shards[number].0.lock()
    }

    /// Locks the shard of a digest.
    pub(crate) fn shard_for(&self, digest: u64) -> MutexGuard<'_, Shard> {
        self.shard(shard_of(digest))
    }

    /// Calls `visit` for every key with its position and its locked shard; each shard is locked once.
    pub(crate) fn each(
        &self,
        keys: &[HashedKey<'_>],
        mut visit: impl FnMut(&mut Shard, usize, HashedKey<'_>),
    ) {
        if let [key] = keys {
            return visit(&mut self.shard_for(key.digest), 0, *key);
        }
        by_shard(keys, |number, positions, first| {
            let mut shard = self.shard(number);
            for &position in positions {
                let at = first + usize::from(position);
                visit(&mut shard, at, keys[at]);
            }
        });
    }

    /// Bytes of the tables, without keys and slot records.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.0.lock().entries.allocation_size() as u64).sum()
    }
}

impl Shard {
    pub(crate) fn find(&self, space: &Space, key: HashedKey<'_>) -> Option<SlotId> {
        let tag = tag_of(key.digest);
        let entry = self.entries.find(table_hash(tag), |e| e.tag == tag && e.key.is(space, key.key))?;
        Some(entry.slot)
    }

    /// Adds a page unless its key is there. `make` publishes the slot, and is called only if the page is added.
    pub(crate) fn insert(&mut self, digest: u64, key: StoredKey, make: impl FnOnce() -> SlotId) -> bool {
        let tag = tag_of(digest);
        let place = self.entries.entry(table_hash(tag), |e| e.tag == tag && e.key == key, Entry::hash);
        match place {
            Place::Occupied(_) => false,
            Place::Vacant(vacant) => {
                vacant.insert(Entry { key, slot: make(), tag });
                true
            }
        }
    }

    pub(crate) fn remove(&mut self, space: &Space, key: HashedKey<'_>) -> Option<Entry> {
        let tag = tag_of(key.digest);
        self.remove_where(tag, |e| e.key.is(space, key.key))
    }

    /// Removes the page with this digest that rests in this slot.
    pub(crate) fn remove_slot(&mut self, digest: u64, slot: SlotId) -> Option<Entry> {
        self.remove_where(tag_of(digest), |e| e.slot == slot)
    }

    fn remove_where(&mut self, tag: u32, mut is: impl FnMut(&Entry) -> bool) -> Option<Entry> {
        let found = self.entries.find_entry(table_hash(tag), |e| e.tag == tag && is(e));
        found.ok().map(|entry| entry.remove().0)
    }

    /// Removes all pages of a space, one by one as the result is consumed.
    pub(crate) fn remove_space(&mut self, number: u32) -> impl Iterator<Item = Entry> + '_ {
        self.entries.extract_if(move |entry| entry.key.space_number() == number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_24_bytes() {
        assert_eq!(size_of::<Entry>(), 24);
        assert_eq!(size_of::<Option<Entry>>(), 24);
    }

    #[test]
    fn shards_and_hashes_come_from_different_bits() {
        assert_eq!(shard_of(0xab00_0000_0000_0001), 0xab);
        assert_eq!(tag_of(0xab00_0000_1234_5678), 0x1234_5678);
    }
    #[test]
    fn a_page_is_removed_by_slot_only_from_that_slot() {
        let (arena, spaces) = crate::tests::arena_and_spaces();
        let space = spaces.open(memkv_core::SpaceDescription::named("a").unwrap()).unwrap();
        let slots: Vec<_> = (0..3).map(|_| arena.reserve(1).unwrap().0.seal()).collect();
        let mut shard = Shard::default();
        for (name, slot) in [b"a", b"b"].into_iter().zip(&slots) {
            let key = StoredKey::new(&space, Key::new(name).unwrap());
            assert!(shard.insert(42, key, || slot.id()));
        }
        assert!(shard.remove_slot(42, slots[2].id()).is_none());
        assert!(shard.remove_slot(43, slots[0].id()).is_none());
        assert_eq!(shard.remove_slot(42, slots[1].id()).unwrap().key().key(), b"b");
        assert_eq!(shard.len(), 1);
    }
}
