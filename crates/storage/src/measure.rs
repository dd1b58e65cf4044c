//! The index alone, for measuring it: pages without an arena and without drives. Never in a release.

use crate::index::{HashedKey, Index, Place};
use crate::keys::DriveMeta;
use crate::space::{Space, Spaces};
use memkv_core::{PageMeta, SpaceDescription};
use memkv_memory::SlotId;
use memkv_nvme::Extent;
use std::collections::HashMap;
use std::sync::Arc;

/// An index with one space.
pub struct BareIndex {
    index: Index,
    space: Arc<Space>,
}

impl BareIndex {
    /// An empty index.
    #[must_use]
    pub fn new(space: SpaceDescription) -> Self {
        let spaces = Spaces::recovered(1, Vec::new(), HashMap::new());
        let space = spaces.open(space).expect("there is room for one space");
        Self { index: Index::new(), space }
    }

    /// The space of its keys.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Adds a page in memory; `false` if its key is there.
    pub fn add_in_memory(&self, key: HashedKey<'_>, number: u32) -> bool {
        self.index.shard_for(key.digest).insert(&self.space, key, || SlotId::from_bits(number))
    }

    /// Adds a page that is only on a drive; `false` if its key is there.
    pub fn add_on_drive(&self, key: HashedKey<'_>, number: u32) -> bool {
        let extent =
            Extent::from_bits((u64::from(number % (1 << 17)) + 1) << 14).expect("a block that is not 0");
        let meta = PageMeta { len: 4096, checksum: key.digest, ..PageMeta::default() };
        let meta = DriveMeta { meta, position: number, created_s: 0, access_s: 0, hits: 0, wanted: false };
        let mut shard = self.index.shard_for(key.digest);
        shard.insert_with(self.space.number(), key, Some(&meta), || Place::Drive(extent))
    }

    /// Sets `found[i]` to whether `keys[i]` is there.
    pub fn exists_batch(&self, keys: &[HashedKey<'_>], found: &mut [bool]) {
        self.index.each(keys, |shard, at, key| found[at] = shard.find(&self.space, key).is_some());
    }

    /// Bytes of tables and keys.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index.bytes()
    }
}
