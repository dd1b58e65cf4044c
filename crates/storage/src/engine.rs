//! The engine: what the server calls.

use crate::check::ScrubStatus;
use crate::config::{EngineConfig, EngineError, Watermarks};
use crate::evict::Evictor;
use crate::index::{Entry, HashedKey, Index, SHARDS, StoredKey};
use crate::list::{self, BadCursor, KeyInfo, Listing};
use crate::page::{Filling, PagePin, Refusal};
use crate::pressure::Pressure;
use crate::quarantine::{Quarantine, QuarantinedInfo};
use crate::space::{OpenSpaceError, Space, Spaces};
use crate::status::{Cleared, EngineStatus, Evicted, RecoveryReport, Tally, Tier, count};
use memkv_core::{SpaceDescription, SpaceId};
use memkv_memory::{Arena, ArenaConfig, ReservedSlot};
use std::sync::Arc;
use std::time::Duration;

/// The store of one server. All methods may be called from any thread.
///
/// Spaces and hashed keys must come from this engine and belong together; a key hashed for another space is not
/// found.
pub struct Engine {
    pub(crate) state: Arc<State>,
    evictor: Evictor,
    config: EngineConfig,
    recovery: RecoveryReport,
}

/// What pages on their way in share with the engine.
pub(crate) struct State {
    pub(crate) arena: Arc<Arena>,
    pub(crate) index: Index,
    pub(crate) spaces: Spaces,
    pub(crate) tally: Tally,
    pub(crate) pressure: Pressure,
    pub(crate) marks: Watermarks,
    pub(crate) quarantine: Quarantine,
}

impl State {
    /// Takes a page that was just removed from its shard, which is still locked, out of the counts and the arena.
    /// Returns its length.
    pub(crate) fn retire(&self, space: &Space, entry: &Entry) -> u64 {
        let bytes = self.arena.page(entry.slot()).map_or(0, |page| u64::from(page.meta.len));
        space.count_out(1, bytes);
        self.arena.doom(entry.slot());
        bytes
    }
}

impl Engine {
    /// Reserves the memory and, if asked, makes it resident.
    ///
    /// # Errors
    ///
    /// [`EngineError`] if the configuration makes no sense or the kernel refuses the memory.
    pub fn new(config: EngineConfig) -> Result<Arc<Self>, EngineError> {
        Ok(Self::open(config)?.0)
    }

    /// Like [`Engine::new`], and finds the pages that an earlier process left in the backing file and on the drives.
    /// A failed drive does not prevent the start, see [`EngineStatus::degraded`].
    ///
    /// # Errors
    ///
    /// As [`Engine::new`]; also if another process uses the same files.
    pub fn open(config: EngineConfig) -> Result<(Arc<Self>, RecoveryReport), EngineError> {
        let marks = Watermarks::new(&config)?;
        let arena = Arena::new(ArenaConfig {
            prefault: config.prefault,
            huge_pages: config.huge_pages,
            ..ArenaConfig::anonymous(config.dram_bytes, config.page_bytes_max)
        })?;
        let state = State {
            arena,
            index: Index::new(),
            spaces: Spaces::new(config.spaces_max),
            tally: Tally::default(),
            pressure: Pressure::default(),
            marks,
            quarantine: Quarantine::default(),
        };
        let recovery = RecoveryReport::default();
        let evictor = Evictor::new(config.policy);
        Ok((Arc::new(Self { state: Arc::new(state), evictor, config, recovery }), recovery))
    }

    /// The largest page that is taken: the configured limit, or less in a small store. What a server announces.
    #[must_use]
    pub fn page_bytes_max(&self) -> u32 {
        self.state.arena.page_bytes_max()
    }

    /// Opens a space, or finds it if it is open.
    ///
    /// # Errors
    ///
    /// [`OpenSpaceError::TooMany`] if it is new and the engine has as many spaces as it may.
    pub fn open_space(&self, description: SpaceDescription) -> Result<Arc<Space>, OpenSpaceError> {
        self.state.spaces.open(description)
    }

    /// The open space with this identity.
    #[must_use]
    pub fn space(&self, id: SpaceId) -> Option<Arc<Space>> {
        self.state.spaces.get(id)
    }

    /// All open spaces, ordered by identity.
    #[must_use]
    pub fn spaces(&self) -> Vec<Arc<Space>> {
        self.state.spaces.all()
    }

    /// Sets `found[i]` to whether `keys[i]` has a page. Does not count as an access.
    ///
    /// # Panics
    ///
    /// Here and in the other batch calls, if the slices differ in length.
    pub fn exists_batch(&self, space: &Space, keys: &[HashedKey<'_>], found: &mut [bool]) {
        assert_eq!(keys.len(), found.len(), "one answer for each key");
        self.state.index.each(keys, |shard, at, key| found[at] = shard.find(space, key).is_some());
    }

    /// Like [`Engine::exists_batch`], and notes an access at `now_ms` to each page that is there.
    pub fn touch_batch(&self, space: &Space, keys: &[HashedKey<'_>], found: &mut [bool], now_ms: u64) {
        assert_eq!(keys.len(), found.len(), "one answer for each key");
        self.state.index.each(keys, |shard, at, key| {
            let slot = shard.find(space, key);
            if let Some(slot) = slot {
                self.state.arena.touch(slot, now_ms);
            }
            found[at] = slot.is_some();
        });
    }

    /// Removes pages; sets `removed[i]` to whether `keys[i]` had one. Readers that hold a page keep it.
    pub fn delete_batch(&self, space: &Space, keys: &[HashedKey<'_>], removed: &mut [bool]) {
        assert_eq!(keys.len(), removed.len(), "one answer for each key");
        let mut deleted = 0;
        self.state.index.each(keys, |shard, at, key| {
            let entry = shard.remove(space, key);
            if let Some(entry) = &entry {
                self.state.retire(space, entry);
                deleted += 1;
            }
            removed[at] = entry.is_some();
        });
        count(&self.state.tally.deleted, deleted);
    }

    /// Pins every page that is there and counts a read at `now_ms`: afterwards `pins[i]` belongs to `keys[i]`.
    ///
    /// Completes without waiting as long as memory is the only tier.
    pub async fn pin_batch(
        &self,
        space: &Space,
        keys: &[HashedKey<'_>],
        now_ms: u64,
        pins: &mut Vec<Option<PagePin>>,
    ) {
        pins.clear();
        pins.resize_with(keys.len(), || None);
        let mut hits = 0;
        self.state.index.each(keys, |shard, at, key| {
            let Some(slot) = shard.find(space, key) else { return };
            let Some(pin) = self.state.arena.pin(slot) else { return };
            self.state.arena.hit(slot, now_ms);
            pins[at] = Some(PagePin::new(pin));
            hits += 1;
        });
        space.count_gets(keys.len() as u64, hits);
    }

    /// Reserves a slot for a page of `len` bytes that is `position` pages deep in its prefix. Never waits.
    ///
    /// # Errors
    ///
    /// [`Refusal::Exists`] if the key has a page, [`Refusal::TooLarge`] if `len` is above the limit,
    /// [`Refusal::Busy`] if no slot is free and none could be freed at once.
    pub fn reserve(
        &self,
        space: &Arc<Space>,
        key: HashedKey<'_>,
        len: u32,
        position: u32,
    ) -> Result<Filling, Refusal> {
        let max = self.state.arena.page_bytes_max();
        if len > max {
            return Err(Refusal::TooLarge { len, max });
        }
        if self.state.index.shard_for(key.digest).find(space, key).is_some() {
            count(&self.state.tally.existing, 1);
            return Err(Refusal::Exists);
        }
        let slot = self.reserve_slot(len)?;
        let stored = StoredKey::new(space, key.key);
        let state = Arc::clone(&self.state);
        Ok(Filling::new(state, Arc::clone(space), (stored, key.digest), position, (slot, len)))
    }

    /// Takes a slot, and calls for eviction if they get scarce.
    fn reserve_slot(&self, len: u32) -> Result<ReservedSlot, Refusal> {
        const ATTEMPTS: usize = 3;
        let State { arena, marks, pressure, tally, .. } = &*self.state;
        for _ in 0..ATTEMPTS {
            match arena.reserve(len) {
                Ok((slot, fill)) => {
                    if marks.slots_low(fill.available, fill.potential)
                        || marks.bytes_high(fill.held_bytes, arena.capacity_bytes())
                    {
                        pressure.ask();
                    }
                    return Ok(slot);
                }
                Err(full) => {
                    pressure.ask();
                    if !self.evictor.evict_one(&self.state, full.slot_bytes) {
                        break;
                    }
                }
            }
        }
        count(&tally.busy, 1);
        Err(Refusal::Busy)
    }

    /// Removes all pages of a space. A page that is published meanwhile may survive, no other does.
    pub fn clear(&self, space: &Space) -> Cleared {
        let mut cleared = Cleared::default();
        for number in 0..SHARDS {
            for entry in self.state.index.shard(number).remove_space(space.number()) {
                cleared.bytes += self.state.retire(space, &entry);
                cleared.pages += 1;
            }
        }
        count(&self.state.tally.cleared, cleared.pages);
        cleared
    }

    /// Lists keys of a space that start with `prefix`: at most `limit` (at least 1) from where `cursor` points,
    /// which is empty at the start. The answer may have fewer keys, or none, before the end; the list ends when
    /// `next_cursor` is empty.
    ///
    /// # Errors
    ///
    /// [`BadCursor`] if the cursor was not made here.
    pub fn list(
        &self,
        space: &Space,
        prefix: &[u8],
        limit: usize,
        cursor: &[u8],
    ) -> Result<Listing, BadCursor> {
        list::list(&self.state, space, prefix, (limit, list::SCAN_MAX), cursor)
    }

    /// What is known about a key's page. Does not count as an access.
    #[must_use]
    pub fn inspect(&self, space: &Space, key: HashedKey<'_>) -> Option<KeyInfo> {
        let shard = self.state.index.shard_for(key.digest);
        let slot = shard.find(space, key)?;
        list::info(&self.state, key.key.as_bytes(), slot)
    }

    /// Removes a page whose bytes turned out not to match their checksum. Nothing happens if it is gone already.
    pub fn quarantine(&self, space: &Space, key: HashedKey<'_>) {
        let mut shard = self.state.index.shard_for(key.digest);
        if let Some(entry) = shard.remove(space, key) {
            self.state.retire(space, &entry);
            count(&self.state.tally.corrupt, 1);
            let (space, key) = (space.id(), key.key.as_bytes().to_vec());
            let (tier, why) = (Tier::Dram, "the checksum did not match".to_owned());
            self.state.quarantine.add(QuarantinedInfo { space, key, tier, at_ms: 0, why });
        }
    }

    /// The engine as a whole.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let arena = self.state.arena.status();
        let spaces = self.spaces();
        let stats = || spaces.iter().map(|space| space.stats());
        EngineStatus {
            capacity_bytes: arena.capacity_bytes,
            used_slot_bytes: arena.held_bytes,
            asked_bytes: arena.asked_bytes,
            page_bytes: stats().map(|stats| stats.bytes).sum(),
            pages: stats().map(|stats| stats.pages).sum(),
            index_table_bytes: self.state.index.table_bytes(),
            spaces: spaces.len() as u64,
            chunk_bytes: arena.chunk_bytes,
            chunks: arena.chunks,
            chunks_free: arena.chunks_free,
            chunks_draining: arena.chunks_draining,
            classes: arena.classes,
            backing: arena.backing,
            counters: self.state.tally.read(),
            policy: self.config.policy,
            tiers: Vec::new(),
            nvme: None,
            degraded: Vec::new(),
            recovery: self.recovery,
            kept_pages: 0,
            kept_bytes: 0,
            kept_bytes_max: 0,
            scrub: ScrubStatus { bytes_per_s: self.config.scrub_bytes_per_s, ..ScrubStatus::default() },
            quarantined: 0,
        }
    }

    /// One round of eviction: brings every class that pages arrive in, and the whole store, below the low watermark
    /// where it is above the high one. Rounds of several threads follow one another.
    pub fn evict_round(&self, now_ms: u64) -> Evicted {
        self.evictor.round(&self.state, now_ms)
    }

    /// Blocks until eviction is wanted or `timeout` passes. For the one thread that calls
    /// [`Engine::evict_round`].
    pub fn wait_for_pressure(&self, timeout: Duration) {
        self.state.pressure.wait(timeout);
    }
}
