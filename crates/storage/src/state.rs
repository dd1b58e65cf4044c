//! What all parts of an engine share.

use crate::account::Account;
use crate::config::Watermarks;
use crate::drives::Drives;
use crate::index::{HashedKey, Index, Place, Removed};
use crate::keep::Kept;
use crate::keys::{DriveMeta, seconds};
use crate::pressure::Pressure;
use crate::quarantine::{Quarantine, QuarantinedInfo};
use crate::space::{Space, Spaces};
use crate::status::{Tally, Tier, count};
use memkv_eviction::{Moment, Policy};
use memkv_memory::{Arena, PageView};
use memkv_nvme::Extent;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by the engine, by pages on their way in, and by the log's owner.
pub(crate) struct State {
    pub(crate) arena: Arc<Arena>,
    pub(crate) index: Index,
    pub(crate) spaces: Spaces,
    pub(crate) tally: Tally,
    pub(crate) pressure: Pressure,
    pub(crate) marks: Watermarks,
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) quarantine: Quarantine,
    pub(crate) kept: Kept,
    pub(crate) drives: Option<Drives>,
    /// The number of the latest moment that any caller brought, for events that have none of their own.
    now: AtomicU64,
    /// The engine is closed: nothing moves any more, so that what outlives the process stays whole.
    closed: AtomicBool,
}

impl State {
    pub(crate) fn new(
        arena: Arc<Arena>,
        index: Index,
        (marks, spaces, kept): (Watermarks, Spaces, Kept),
        drives: Option<Drives>,
        policy: Box<dyn Policy>,
    ) -> Self {
        Self {
            arena,
            index,
            spaces,
            tally: Tally::default(),
            pressure: Pressure::default(),
            marks,
            policy,
            quarantine: Quarantine::default(),
            kept,
            drives,
            now: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Notes the time.
    pub(crate) fn saw(&self, now: Moment) {
        if self.now.load(Ordering::Relaxed) < now.number() {
            self.now.store(now.number(), Ordering::Relaxed);
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::from_number(self.now.load(Ordering::Relaxed))
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now().ms
    }

    /// The space that an index entry names.
    pub(crate) fn space(&self, number: u32) -> Arc<Space> {
        self.spaces.by_number(number).expect("spaces are never removed")
    }

    /// Takes a page that was just removed from its shard, which is still locked, out of the counts and the arena.
    /// Returns its length, and adds its place on a drive to `left`, for [`State::release`] once the shard is unlocked.
    pub(crate) fn retire(&self, space: &Space, removed: &Removed, left: &mut Vec<Extent>) -> u64 {
        match removed.place {
            Place::Dram(slot) => {
                let page = self.arena.page(slot);
                let bytes = page.map_or(0, |page| u64::from(page.meta.len));
                if let Some(page) = page {
                    left.extend(Extent::from_bits(page.extent));
                    self.kept.forget(page.digest);
                }
                space.count_out(bytes);
                self.arena.doom(slot);
                bytes
            }
            Place::Drive(extent) => {
                let bytes = u64::from(removed.drive_len);
                space.count_promoted(bytes);
                space.count_out(bytes);
                left.push(extent);
                bytes
            }
        }
    }

    /// Tells the log that nothing points at these places any more.
    pub(crate) fn release(&self, left: Vec<Extent>) {
        if let Some(drives) = &self.drives {
            left.into_iter().for_each(|extent| drives.log.release(extent));
        }
    }

    /// Removes a page whose bytes turned out to be wrong, if `place` is still where it is, or wherever it is if that
    /// is not said.
    pub(crate) fn quarantine(&self, space: &Space, key: HashedKey<'_>, place: Option<Place>, why: &str) {
        let _removal = self.drives.as_ref().map(|drives| drives.order.write());
        let mut left = Vec::new();
        let mut shard = self.index.shard_for(key.digest);
        let removed = match place {
            Some(place) => shard.remove_from(space, key, place),
            None => shard.remove(space, key),
        };
        let Some(removed) = removed else { return };
        self.retire(space, &removed, &mut left);
        drop(shard);
        self.release(left);
        if let Some(drives) = &self.drives {
            drives.forget(space.id(), &[key]);
        }
        count(&self.tally.corrupt, 1);
        let tier = match removed.place {
            Place::Dram(_) => Tier::Dram,
            Place::Drive(_) => Tier::Nvme,
        };
        let (space, name) = (space.id(), key.key.as_bytes().to_vec());
        tracing::error!(%space, key = %key.key, tier = tier.text(), why, "took out a page");
        let info = QuarantinedInfo { space, key: name, tier, at_ms: self.now_ms(), why: why.to_owned() };
        self.quarantine.add(info);
    }

    /// Whether the page in a slot belongs to this account. Its shard must not be locked.
    pub(crate) fn is_of(&self, page: &PageView, account: &Arc<Account>) -> bool {
        let shard = self.index.shard_for(page.digest);
        let number = shard.look_slot(page.digest, page.slot).map(|found| found.space);
        number.is_some_and(|number| Arc::ptr_eq(self.space(number).account(), account))
    }

    /// How many slots of a size become free when pages on their way to a drive have arrived.
    pub(crate) fn leaving_slots(&self, slot_bytes: u32) -> u64 {
        self.drives.as_ref().map_or(0, |drives| drives.writes.leaving_slots(slot_bytes))
    }

    /// Bytes of all slots that become free then.
    pub(crate) fn leaving_bytes(&self) -> u64 {
        self.drives.as_ref().map_or(0, |drives| drives.writes.leaving_bytes())
    }

    /// Whether an operator keeps a page in this chunk.
    pub(crate) fn keeps_any(&self, chunk: u32) -> bool {
        let view = self.arena.chunk(chunk).filter(|_| self.kept.totals().0 > 0);
        view.is_some_and(|view| {
            self.arena.pages(view, 0, view.slots).any(|page| self.kept.holds(page.digest))
        })
    }

    /// Moves a page that is also on a drive out of memory. Its shard is locked and has it in this slot.
    pub(crate) fn leave_dram(&self, shard: &mut crate::index::Shard, page: &PageView, extent: Extent) {
        let number = shard.look_slot(page.digest, page.slot).map(|found| found.space);
        if shard.leave_dram(page.digest, page.slot, extent, &drive_meta(page))
            && let Some(number) = number
        {
            self.space(number).count_demoted(u64::from(page.meta.len));
            self.arena.doom(page.slot);
        }
    }
}

/// What is kept of a page's record when it leaves memory.
pub(crate) fn drive_meta(page: &PageView) -> DriveMeta {
    DriveMeta {
        meta: page.meta,
        position: page.position,
        created_s: seconds(page.created_ms),
        access_s: seconds(page.last_access_ms),
        hits: page.hits,
        wanted: page.hits > 0,
    }
}
