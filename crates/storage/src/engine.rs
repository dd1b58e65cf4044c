//! The engine: what the server calls.

use crate::account::{Account, Charge};
use crate::check::Scrubber;
use crate::config::{EngineConfig, EngineError};
use crate::evict::Evictor;
use crate::index::{HashedKey, Place, SHARDS};
use crate::list::{self, BadCursor, KeyInfo, Listing};
use crate::page::{Filling, Refusal};
use crate::recovery::{self, Started};
use crate::space::{OpenSpaceError, Space};
use crate::spaces_file::SpacesFile;
use crate::state::State;
use crate::status::{Cleared, Evicted, RecoveryReport, count};
use memkv_core::{SpaceDescription, SpaceId};
use memkv_eviction::Moment;
use memkv_memory::ReservedSlot;
use parking_lot::Mutex;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// The store of one server. All methods may be called from any thread.
///
/// Spaces and hashed keys must come from this engine and belong together; a key hashed for another space is not
/// found.
pub struct Engine {
    pub(crate) state: Arc<State>,
    pub(crate) evictor: Evictor,
    pub(crate) config: EngineConfig,
    pub(crate) recovery: RecoveryReport,
    pub(crate) scrubber: Mutex<Scrubber>,
    /// Held while a new space is noted; the file, if there is one.
    spaces_file: Mutex<Option<SpacesFile>>,
    /// Ends writes to drives.
    pub(crate) finisher: Mutex<Option<JoinHandle<()>>>,
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
    ///
    /// # Errors
    ///
    /// As [`Engine::new`]; also if another process uses the same files, or no drive can be used.
    pub fn open(config: EngineConfig) -> Result<(Arc<Self>, RecoveryReport), EngineError> {
        Self::open_with(config, None, &|_| {})
    }

    /// Like [`Engine::open`]; `progress` is told how many bytes of how many are resident.
    ///
    /// # Errors
    ///
    /// As [`Engine::open`].
    pub fn open_watched(
        config: EngineConfig,
        progress: &dyn Fn(u64, u64),
    ) -> Result<(Arc<Self>, RecoveryReport), EngineError> {
        Self::open_with(config, Some(progress), &|_| {})
    }

    pub(crate) fn open_with(
        config: EngineConfig,
        progress: Option<&dyn Fn(u64, u64)>,
        tune: recovery::Tune<'_>,
    ) -> Result<(Arc<Self>, RecoveryReport), EngineError> {
        let Started { state, report, spaces_file, finisher } = recovery::start(&config, progress, tune)?;
        let engine = Self {
            state,
            evictor: Evictor::default(),
            config,
            recovery: report,
            scrubber: Mutex::default(),
            spaces_file: Mutex::new(spaces_file),
            finisher: Mutex::new(finisher),
        };
        Ok((Arc::new(engine), report))
    }

    /// The largest page that is taken: the configured limit, or less in a small store. What a server announces.
    #[must_use]
    pub fn page_bytes_max(&self) -> u32 {
        self.state.arena.page_bytes_max()
    }

    /// Where the memory of all DRAM slots lies: its start and its bytes. It stays mapped as long as the engine; for
    /// devices that want to know it in advance.
    #[must_use]
    pub fn memory(&self) -> (NonNull<u8>, usize) {
        self.state.arena.memory()
    }

    /// What other processes map the memory for pages by, to read it, and its length in bytes; `None` if they may not.
    #[must_use]
    pub fn shared_memory(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.state.arena.shared()
    }

    /// Opens a space, or finds it if it is open. A new space is noted beside what outlives the process before it is
    /// there; that waits for the drives.
    ///
    /// # Errors
    ///
    /// [`OpenSpaceError::TooMany`] if it is new and the engine has as many spaces as it may.
    pub fn open_space(&self, description: SpaceDescription) -> Result<Arc<Space>, OpenSpaceError> {
        let id = description.id();
        if let Some(space) = self.state.spaces.get(id) {
            return Ok(space);
        }
        let file = self.spaces_file.lock();
        if !self.state.spaces.is_full() {
            self.note_space(file.as_ref(), &description);
        }
        self.state.spaces.open(description)
    }

    /// Keeps a space's description. Failing that, its pages are dropped by the next start, and nothing worse.
    fn note_space(&self, file: Option<&SpacesFile>, description: &SpaceDescription) {
        let space = description.id();
        if let Some(file) = file {
            let mut all: Vec<_> = self.spaces().iter().map(|space| space.description().clone()).collect();
            all.push(description.clone());
            if let Err(error) = file.write(&all) {
                tracing::warn!(%space, %error, "cannot note a space beside the memory's file");
            }
        }
        if let Some(drives) = &self.state.drives
            && let Err(error) = drives.log.note_space(description)
        {
            tracing::warn!(%space, %error, "cannot note a space on the drives");
        }
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

    /// Like [`Engine::exists_batch`], and notes an access now to each page that is there. A page that is only
    /// on a drive stays there.
    pub fn touch_batch(
        &self,
        space: &Space,
        keys: &[HashedKey<'_>],
        found: &mut [bool],
        now: impl Into<Moment>,
    ) {
        let now = now.into();
        assert_eq!(keys.len(), found.len(), "one answer for each key");
        self.state.saw(now);
        self.state.index.each(keys, |shard, at, key| {
            let place = shard.find(space, key);
            match place {
                Some(Place::Dram(slot)) => self.state.accessed(slot, now, false),
                Some(Place::Drive(at)) => {
                    shard.move_drive(space.number(), key, (at, at), |meta| meta.want(now.ms));
                }
                None => {}
            }
            found[at] = place.is_some();
        });
    }

    /// Removes pages; sets `removed[i]` to whether `keys[i]` had one. Readers that hold a page keep it.
    ///
    /// With drives the removal outlives a crash once [`Engine::settle_removals`] has completed.
    pub fn delete_batch(&self, space: &Space, keys: &[HashedKey<'_>], removed: &mut [bool]) {
        assert_eq!(keys.len(), removed.len(), "one answer for each key");
        let _removal = self.state.drives.as_ref().map(|drives| drives.order.write());
        let (mut deleted, mut left) = (0, Vec::new());
        self.state.index.each(keys, |shard, at, key| {
            let gone = shard.remove(space, key);
            if let Some(gone) = &gone {
                self.state.retire(space, gone, &mut left);
                deleted += 1;
            }
            removed[at] = gone.is_some();
        });
        self.state.release(left);
        if let Some(drives) = self.state.drives.as_ref().filter(|_| !keys.is_empty()) {
            drives.forget(space.id(), keys);
        }
        count(&self.state.tally.deleted, deleted);
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
        if let Some(place) = self.state.index.shard_for(key.digest).find(space, key) {
            // Whoever puts a page has just computed it, so it is in use.
            if let Place::Dram(slot) = place {
                self.state.accessed(slot, self.state.now(), false);
            }
            count(&self.state.tally.existing, 1);
            return Err(Refusal::Exists);
        }
        let charge = Charge::new(space.account(), len.into());
        let slot = self.reserve_slot(len, space.account())?;
        let stored = Box::from(key.key.as_bytes());
        let state = Arc::clone(&self.state);
        Ok(Filling::new(state, Arc::clone(space), (stored, key.digest), (position, charge), (slot, len)))
    }

    /// Makes room in a tenant's account, which is charged already, out of its own pages. Whether it may go on.
    fn make_own_room(&self, account: &Arc<Account>) -> bool {
        const ATTEMPTS: usize = 4;
        if account.is_high() {
            self.state.pressure.ask();
        }
        for _ in 0..ATTEMPTS {
            if !account.is_over() {
                return true;
            }
            if !self.evictor.evict_one(&self.state, None, Some(account)) {
                break;
            }
        }
        !account.is_over()
    }

    /// Takes a slot for a page of an account, and calls for eviction if they get scarce. Who is near the bound of its
    /// account takes no slot from others.
    pub(crate) fn reserve_slot(&self, len: u32, account: &Arc<Account>) -> Result<ReservedSlot, Refusal> {
        const ATTEMPTS: usize = 3;
        let State { arena, marks, pressure, tally, .. } = &*self.state;
        if !self.make_own_room(account) {
            account.count_refused();
            count(&tally.busy, 1);
            return Err(Refusal::Busy);
        }
        let own = account.is_high().then_some(account);
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
                    if !self.evictor.evict_one(&self.state, Some(full.slot_bytes), own) {
                        break;
                    }
                }
            }
        }
        count(&tally.busy, 1);
        Err(Refusal::Busy)
    }

    /// Removes all pages of a space. A page that is published meanwhile may survive, no other does.
    ///
    /// With drives the removal outlives a crash once [`Engine::settle_removals`] has completed.
    pub fn clear(&self, space: &Space) -> Cleared {
        let _removal = self.state.drives.as_ref().map(|drives| drives.order.write());
        let (mut cleared, mut left) = (Cleared::default(), Vec::new());
        for number in 0..SHARDS {
            let mut shard = self.state.index.shard(number);
            for gone in shard.remove_all(|found| found.space == space.number()) {
                cleared.bytes += self.state.retire(space, &gone, &mut left);
                cleared.pages += 1;
            }
        }
        self.state.release(left);
        if let Some(drives) = &self.state.drives {
            drives.forget_space(space.id());
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
        list::info(&self.state, space, &shard.look(space, key)?)
    }

    /// Removes a page whose bytes turned out not to match their checksum. Nothing happens if it is gone already.
    pub fn quarantine(&self, space: &Space, key: HashedKey<'_>) {
        self.state.quarantine(space, key, None, "the bytes did not match their checksum");
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
