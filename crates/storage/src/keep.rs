//! Pages that an operator keeps: eviction passes over them until their time is over.
//!
//! Bounded by a share of the memory. What is kept is not remembered across a restart: whoever keeps a prompt keeps it
//! again after one.
//!
//! Pages are known by the digest of their space and key. If two keys share one, both are kept; that harms nobody.

use crate::engine::Engine;
use crate::index::{HashedKey, Place};
use crate::space::Space;
use memkv_core::SpaceId;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most pages that are listed.
const LISTED_MAX: usize = 65_536;

/// What became of the keys of [`Engine::keep`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepReport {
    /// Pages that are kept from now on, or longer than before.
    pub kept: u64,
    /// Bytes of their slots.
    pub bytes: u64,
    /// Keys that have no page here, or whose page could not be brought into memory.
    pub missing: u64,
    /// Pages that are not kept because all that may be kept is kept.
    pub over_quota: u64,
}

/// A page that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptInfo {
    /// Its space.
    pub space: SpaceId,
    /// Its key.
    pub key: Vec<u8>,
    /// Bytes of its slot.
    pub bytes: u64,
    /// When eviction may take it again, on the clock of `now_ms`.
    pub until_ms: u64,
}

/// All pages that are kept, by digest.
pub(crate) struct Kept {
    bytes_max: u64,
    /// Number of pages, so that the evictor takes no lock while there are none.
    count: AtomicUsize,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    pages: HashMap<u64, KeptInfo>,
    bytes: u64,
}

impl Table {
    fn remove(&mut self, digest: u64) -> bool {
        let removed = self.pages.remove(&digest);
        self.bytes -= removed.as_ref().map_or(0, |page| page.bytes);
        removed.is_some()
    }
}

impl Kept {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, count: AtomicUsize::new(0), table: RwLock::default() }
    }

    /// Whether the page with this digest is kept.
    pub(crate) fn holds(&self, digest: u64) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.table.read().pages.contains_key(&digest)
    }

    /// Until when the page with this digest is kept.
    pub(crate) fn until_ms(&self, digest: u64) -> Option<u64> {
        (self.count.load(Ordering::Acquire) > 0)
            .then(|| self.table.read().pages.get(&digest).map(|page| page.until_ms))
            .flatten()
    }

    /// Keeps a page, or keeps it until another time. `false` if that were too many bytes.
    fn keep(&self, digest: u64, page: KeptInfo) -> bool {
        let mut table = self.table.write();
        let before = table.pages.get(&digest).map_or(0, |page| page.bytes);
        let bytes = table.bytes - before + page.bytes;
        if bytes > self.bytes_max {
            return false;
        }
        table.bytes = bytes;
        table.pages.insert(digest, page);
        self.count.store(table.pages.len(), Ordering::Release);
        true
    }

    /// Leaves a page to eviction. Whether it was kept.
    pub(crate) fn forget(&self, digest: u64) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut table = self.table.write();
        let removed = table.remove(digest);
        self.count.store(table.pages.len(), Ordering::Release);
        removed
    }

    /// Leaves those to eviction whose time is over.
    pub(crate) fn expire(&self, now_ms: u64) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut table = self.table.write();
        let over = table.pages.iter().filter(|(_, page)| page.until_ms <= now_ms);
        for digest in over.map(|(digest, _)| *digest).collect::<Vec<_>>() {
            table.remove(digest);
        }
        self.count.store(table.pages.len(), Ordering::Release);
    }

    /// Pages, their bytes, and the most bytes.
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        let table = self.table.read();
        (table.pages.len() as u64, table.bytes, self.bytes_max)
    }
}

impl Engine {
    /// [`Engine::keep_within`] all bytes that may be kept.
    pub async fn keep(&self, space: &Space, keys: &[HashedKey<'_>], ttl_ms: u64, now_ms: u64) -> KeepReport {
        self.keep_within(space, keys, u64::MAX, ttl_ms, now_ms).await
    }

    /// Keeps pages from eviction until `now_ms + ttl_ms`. A page that rests only on a drive is brought into memory
    /// first. Deleting and clearing still remove it.
    ///
    /// Of these pages, no more than `bytes_max` bytes are kept.
    pub async fn keep_within(
        &self,
        space: &Space,
        keys: &[HashedKey<'_>],
        bytes_max: u64,
        ttl_ms: u64,
        now_ms: u64,
    ) -> KeepReport {
        let mut pins = Vec::new();
        self.pin_batch(space, keys, now_ms, &mut pins).await;
        self.state.kept.expire(now_ms);
        let mut report = KeepReport::default();
        for (key, pin) in keys.iter().zip(pins) {
            // Under the lock of the shard a page is either removed before, and not found, or after, and forgotten.
            let shard = self.state.index.shard_for(key.digest);
            let Some(Place::Dram(slot)) = shard.find(space, *key).filter(|_| pin.is_some()) else {
                report.missing += 1;
                continue;
            };
            let bytes = u64::from(self.state.arena.slot_bytes(slot));
            let until_ms = now_ms.saturating_add(ttl_ms);
            let page = KeptInfo { space: space.id(), key: key.key.as_bytes().to_vec(), bytes, until_ms };
            if report.bytes + bytes <= bytes_max && self.state.kept.keep(key.digest, page) {
                report.kept += 1;
                report.bytes += bytes;
            } else {
                report.over_quota += 1;
            }
        }
        report
    }

    /// Leaves pages to eviction again. Returns how many of them were kept.
    pub fn unkeep(&self, space: &Space, keys: &[HashedKey<'_>]) -> u64 {
        let _ = space;
        keys.iter().map(|key| u64::from(self.state.kept.forget(key.digest))).sum()
    }

    /// The pages that are kept at `now_ms`, ordered by space and key; at most 65 536 of them.
    #[must_use]
    pub fn kept(&self, now_ms: u64) -> Vec<KeptInfo> {
        self.state.kept.expire(now_ms);
        let table = self.state.kept.table.read();
        let mut pages: Vec<_> = table.pages.values().take(LISTED_MAX).cloned().collect();
        drop(table);
        pages.sort_unstable_by(|a, b| (a.space, &a.key).cmp(&(b.space, &b.key)));
        pages
    }
}
