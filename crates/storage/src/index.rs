//! The index: from space and key to a slot in memory or an extent on a drive.
//!
//! A fixed number of shards, each a table and a [key heap](crate::keys) behind its own lock, chosen by the top bits
//! of the key's digest. An entry is 16 bytes: the handle of its key, 32 bits of the digest to hash by, and the place.
//! Everything else that is known about a page is in its slot's record, or beside its key if it is only on a drive;
//! so a page costs its key, its entry, and one cache line if it is in memory.
//!
//! A page that is in memory and on a drive has its slot here, and its extent in the slot's record.
//!
//! Invariants:
//! - an entry's slot is published; it is unlinked before, or as, the slot is doomed;
//! - entries change only under their shard's lock; counts of a space change under the same lock.

use crate::batch::by_shard;
use crate::keys::{DriveMeta, KeyHandle, KeyHeap};
use crate::space::Space;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;
use memkv_core::page::key_digest;
use memkv_core::{Key, SpaceId};
use memkv_memory::SlotId;
use memkv_nvme::Extent;
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

/// Where a page is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In memory, and perhaps on a drive as well.
    Dram(SlotId),
    /// Only on a drive.
    Drive(Extent),
}

/// A [`Place`] in one word: a slot's number, or an extent with the highest bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PlaceWord(u64);

const ON_DRIVE: u64 = 1 << 63;

impl From<Place> for PlaceWord {
    fn from(place: Place) -> Self {
        match place {
            Place::Dram(slot) => Self(u64::from(slot.to_bits())),
            Place::Drive(extent) => Self(extent.to_bits() | ON_DRIVE),
        }
    }
}

impl PlaceWord {
    fn place(self) -> Place {
        match Extent::from_bits(self.0 & !ON_DRIVE).filter(|_| self.0 & ON_DRIVE != 0) {
            Some(extent) => Place::Drive(extent),
            None => Place::Dram(SlotId::from_bits(
                u32::try_from(self.0).expect("a word without the highest bit was made of a slot's number"),
            )),
        }
    }
}

/// One page.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: KeyHandle,
    /// The low half of the digest; the table's hash is computed from it, so that growing reads no other memory.
    tag: u32,
    place: PlaceWord,
}

impl Entry {
    fn hash(&self) -> u64 {
        table_hash(self.tag)
    }
}

/// One page as the index knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// Number of its space.
    pub(crate) space: u32,
    pub(crate) key: &'a [u8],
    pub(crate) place: Place,
    /// Only for a page that is only on a drive.
    pub(crate) meta: Option<DriveMeta>,
}

/// A page that was removed from the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Number of its space.
    pub(crate) space: u32,
    pub(crate) place: Place,
    /// Its length, if it was only on a drive.
    pub(crate) drive_len: u32,
}

/// Padded, so that two shards never share a cache line.
#[repr(align(128))]
#[derive(Default)]
struct Padded(Mutex<Shard>);

/// The pages of one shard.
#[derive(Default)]
pub(crate) struct Shard {
    entries: HashTable<Entry>,
    keys: KeyHeap,
}

pub(crate) struct Index {
    shards: Box<[Padded]>,
    /// How often a shard was locked.
    #[cfg(test)]
    pub(crate) locks: std::sync::atomic::AtomicUsize,
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
        Self {
            shards: shards.into(),
            #[cfg(test)]
            locks: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    pub(crate) fn shard(&self, number: usize) -> MutexGuard<'_, Shard> {
        #[cfg(test)]
        self.locks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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

    /// Bytes of the tables and of the keys, without slot records.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |shard: &Shard| shard.entries.allocation_size() + shard.keys.heap_bytes();
        self.shards.iter().map(|shard| bytes(&shard.0.lock()) as u64).sum()
    }
}

impl Shard {
    pub(crate) fn find(&self, space: &Space, key: HashedKey<'_>) -> Option<Place> {
        Some(self.entry(space.number(), key)?.place.place())
    }

    /// Like [`Shard::find`], with everything that the index knows.
    pub(crate) fn look(&self, space: &Space, key: HashedKey<'_>) -> Option<Found<'_>> {
        Some(self.found(self.entry(space.number(), key)?))
    }

    /// Like [`Shard::look`], for a space that has only a number yet.
    pub(crate) fn look_number(&self, space: u32, key: HashedKey<'_>) -> Option<Found<'_>> {
        Some(self.found(self.entry(space, key)?))
    }

    /// The page in this slot, if its key has this digest.
    pub(crate) fn look_slot(&self, digest: u64, slot: SlotId) -> Option<Found<'_>> {
        let (tag, place) = (tag_of(digest), PlaceWord::from(Place::Dram(slot)));
        let entry = self.entries.find(table_hash(tag), |e| e.tag == tag && e.place == place)?;
        Some(self.found(entry))
    }

    fn entry(&self, space: u32, key: HashedKey<'_>) -> Option<&Entry> {
        let tag = tag_of(key.digest);
        let is = |e: &Entry| e.tag == tag && self.keys.is(e.key, space, key.key.as_bytes());
        self.entries.find(table_hash(tag), is)
    }

    fn found(&self, entry: &Entry) -> Found<'_> {
        Found {
            space: self.keys.space(entry.key),
            key: self.keys.key(entry.key),
            place: entry.place.place(),
            meta: self.keys.drive_meta(entry.key),
        }
    }

    /// Adds a page in memory unless its key is there. `make` publishes the slot, and is called only if the page is
    /// added.
    pub(crate) fn insert(
        &mut self,
        space: &Space,
        key: HashedKey<'_>,
        make: impl FnOnce() -> SlotId,
    ) -> bool {
        self.insert_with(space.number(), key, None, || Place::Dram(make()))
    }

    /// Adds a page unless its key is there; `meta` if it is only on a drive. `make` is called only if it is added.
    pub(crate) fn insert_with(
        &mut self,
        space: u32,
        key: HashedKey<'_>,
        meta: Option<&DriveMeta>,
        make: impl FnOnce() -> Place,
    ) -> bool {
        let (tag, bytes) = (tag_of(key.digest), key.key.as_bytes());
        let keys = &self.keys;
        let is = |e: &Entry| e.tag == tag && keys.is(e.key, space, bytes);
        match self.entries.entry(table_hash(tag), is, Entry::hash) {
            TableEntry::Occupied(_) => false,
            TableEntry::Vacant(vacant) => {
                let place = make().into();
                vacant.insert(Entry { key: self.keys.add(space, bytes, meta), tag, place });
                true
            }
        }
    }

    /// Moves a page from memory to its place on a drive; `false` if it is not in this slot any more.
    pub(crate) fn leave_dram(&mut self, digest: u64, slot: SlotId, extent: Extent, meta: &DriveMeta) -> bool {
        let (tag, place) = (tag_of(digest), PlaceWord::from(Place::Dram(slot)));
        let found = self.entries.find_mut(table_hash(tag), |e| e.tag == tag && e.place == place);
        let Some(entry) = found else { return false };
        entry.place = Place::Drive(extent).into();
        entry.key = self.keys.change(entry.key, Some(meta));
        true
    }

    /// Moves a page from where it is on a drive into memory. `make` publishes the slot; it is called only if the page
    /// is on a drive and `accept` agrees.
    pub(crate) fn enter_dram(
        &mut self,
        space: &Space,
        key: HashedKey<'_>,
        accept: impl FnOnce(&DriveMeta) -> bool,
        make: impl FnOnce(Extent) -> SlotId,
    ) -> bool {
        let tag = tag_of(key.digest);
        let keys = &self.keys;
        let is = |e: &Entry| e.tag == tag && keys.is(e.key, space.number(), key.key.as_bytes());
        let Some(entry) = self.entries.find_mut(table_hash(tag), is) else { return false };
        let Place::Drive(extent) = entry.place.place() else { return false };
        if !self.keys.drive_meta(entry.key).is_some_and(|meta| accept(&meta)) {
            return false;
        }
        entry.place = Place::Dram(make(extent)).into();
        entry.key = self.keys.change(entry.key, None);
        true
    }

    /// Changes where a page is that is only on a drive, and what is known of it. `false` if it is not there.
    pub(crate) fn move_drive(
        &mut self,
        space: u32,
        key: HashedKey<'_>,
        (from, to): (Extent, Extent),
        change: impl FnOnce(&mut DriveMeta),
    ) -> bool {
        let (tag, place) = (tag_of(key.digest), PlaceWord::from(Place::Drive(from)));
        let keys = &self.keys;
        let is = |e: &Entry| e.tag == tag && e.place == place && keys.is(e.key, space, key.key.as_bytes());
        let Some(entry) = self.entries.find_mut(table_hash(tag), is) else { return false };
        entry.place = Place::Drive(to).into();
        if let Some(mut meta) = self.keys.drive_meta(entry.key) {
            change(&mut meta);
            self.keys.set_drive_meta(entry.key, &meta);
        }
        true
    }

    pub(crate) fn remove(&mut self, space: &Space, key: HashedKey<'_>) -> Option<Removed> {
        self.remove_where(key.digest, |keys, e| keys.is(e.key, space.number(), key.key.as_bytes()))
    }

    /// Removes the page if it is still there.
    pub(crate) fn remove_from(&mut self, space: &Space, key: HashedKey<'_>, place: Place) -> Option<Removed> {
        let place = PlaceWord::from(place);
        let is = |keys: &KeyHeap, e: &Entry| {
            e.place == place && keys.is(e.key, space.number(), key.key.as_bytes())
        };
        self.remove_where(key.digest, is)
    }

    /// Removes the page with this digest that rests in this slot.
    pub(crate) fn remove_slot(&mut self, digest: u64, slot: SlotId) -> Option<Removed> {
        let place = PlaceWord::from(Place::Dram(slot));
        self.remove_where(digest, |_, e| e.place == place)
    }

    fn remove_where(&mut self, digest: u64, is: impl Fn(&KeyHeap, &Entry) -> bool) -> Option<Removed> {
        let (tag, keys) = (tag_of(digest), &self.keys);
        let found = self.entries.find_entry(table_hash(tag), |e| e.tag == tag && is(keys, e)).ok()?;
        let (entry, _) = found.remove();
        let removed = removed(&self.keys, &entry);
        self.keys.free(entry.key);
        self.rebuild_keys();
        Some(removed)
    }

    /// Removes all pages for which `is` says so.
    pub(crate) fn remove_all(&mut self, mut is: impl FnMut(Found<'_>) -> bool) -> Vec<Removed> {
        let keys = &self.keys;
        let leaves = |e: &mut Entry| {
            let (place, meta) = (e.place.place(), keys.drive_meta(e.key));
            is(Found { space: keys.space(e.key), key: keys.key(e.key), place, meta })
        };
        let entries: Vec<Entry> = self.entries.extract_if(leaves).collect();
        let mut gone = Vec::with_capacity(entries.len());
        for entry in entries {
            gone.push(removed(&self.keys, &entry));
            self.keys.free(entry.key);
        }
        self.rebuild_keys();
        gone
    }

    /// Moves the keys to a new heap if too much of the old one is unused.
    fn rebuild_keys(&mut self) {
        if !self.keys.wants_rebuild() {
            return;
        }
        let mut keys = KeyHeap::default();
        for entry in self.entries.iter_mut() {
            entry.key = self.keys.copy_to(entry.key, &mut keys);
        }
        self.keys = keys;
        self.entries.shrink_to(self.entries.len() * 2, Entry::hash);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Found<'_>> {
        self.entries.iter().map(|entry| self.found(entry))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

fn removed(keys: &KeyHeap, entry: &Entry) -> Removed {
    Removed {
        space: keys.space(entry.key),
        place: entry.place.place(),
        drive_len: keys.drive_meta(entry.key).map_or(0, |meta| meta.meta.len),
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
