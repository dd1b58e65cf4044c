//! What the log asks and tells when it gives segments back or loses a drive.

use crate::index::{HashedKey, Place, SHARDS};
use crate::state::State;
use memkv_core::Key;
use memkv_nvme::{Extent, Owner, PageHead, Standing};
use std::sync::{Arc, Weak};

/// The engine as the log sees it. The log belongs to the engine, so it must not keep the engine alive.
pub(crate) struct LogOwner(Weak<State>);

impl LogOwner {
    pub(crate) fn new(state: &Arc<State>) -> Self {
        Self(Arc::downgrade(state))
    }
}

/// The page of a record, if the index has its key: the space's number, the key and the place.
fn locate<'a>(state: &State, head: &PageHead<'a>) -> Option<(u32, HashedKey<'a>, Place)> {
    let space = state.spaces.get(head.space)?;
    let key = HashedKey { key: Key::new(head.key).ok()?, digest: head.digest };
    let place = state.index.shard_for(key.digest).find(&space, key)?;
    Some((space.number(), key, place))
}

impl Owner for LogOwner {
    /// Hot is what was wanted since it was written, and what is in memory and wanted there: after a restart without
    /// the memory it is the first to be asked for.
    fn standing(&self, head: &PageHead<'_>, extent: Extent) -> Standing {
        let Some(state) = self.0.upgrade() else { return Standing::Cold };
        let Some((number, key, place)) = locate(&state, head) else { return Standing::Dead };
        let hot = match place {
            Place::Dram(slot) => {
                let page = state.arena.page(slot).filter(|page| page.extent == extent.to_bits());
                let Some(page) = page else { return Standing::Dead };
                page.hits > 0
            }
            Place::Drive(at) if at == extent => {
                let space = state.space(number);
                let shard = state.index.shard_for(key.digest);
                shard.look(&space, key).and_then(|found| found.meta).is_some_and(|meta| meta.wanted)
            }
            Place::Drive(_) => return Standing::Dead,
        };
        if hot { Standing::Hot } else { Standing::Cold }
    }

    fn moved(&self, head: &PageHead<'_>, old: Extent, new: Extent) -> bool {
        let Some(state) = self.0.upgrade() else { return false };
        let Some(space) = state.spaces.get(head.space) else { return false };
        let Ok(key) = Key::new(head.key) else { return false };
        let key = HashedKey { key, digest: head.digest };
        let mut shard = state.index.shard_for(key.digest);
        match shard.find(&space, key) {
            Some(Place::Dram(slot)) if state.arena.extent_of(slot) == old.to_bits() => {
                state.arena.set_extent(slot, new.to_bits());
                true
            }
            // Its next turn comes only if it is wanted again.
            Some(Place::Drive(_)) => {
                shard.move_drive(space.number(), key, (old, new), |meta| meta.wanted = false)
            }
            Some(Place::Dram(_)) | None => false,
        }
    }

    fn lost(&self, head: &PageHead<'_>, extent: Extent) {
        let Some(state) = self.0.upgrade() else { return };
        let Some(space) = state.spaces.get(head.space) else { return };
        let Ok(key) = Key::new(head.key) else { return };
        let key = HashedKey { key, digest: head.digest };
        let mut shard = state.index.shard_for(key.digest);
        match shard.find(&space, key) {
            Some(Place::Dram(slot)) if state.arena.extent_of(slot) == extent.to_bits() => {
                state.arena.set_extent(slot, 0);
            }
            Some(place @ Place::Drive(at)) if at == extent => {
                if let Some(removed) = shard.remove_from(&space, key, place) {
                    // The log knows.
                    state.retire(&space, &removed, &mut Vec::new());
                }
            }
            Some(_) | None => {}
        }
    }

    fn drive_lost(&self, drive: u8) {
        let Some(state) = self.0.upgrade() else { return };
        let mut pages = 0_u64;
        for number in 0..SHARDS {
            let mut shard = state.index.shard(number);
            let gone = shard.remove_all(|found| match found.place {
                Place::Drive(extent) => extent.drive() == drive,
                Place::Dram(slot) => {
                    if Extent::from_bits(state.arena.extent_of(slot)).is_some_and(|at| at.drive() == drive) {
                        state.arena.set_extent(slot, 0);
                    }
                    false
                }
            });
            for removed in &gone {
                state.retire(&state.space(removed.space), removed, &mut Vec::new());
            }
            pages += gone.len() as u64;
        }
        tracing::error!(drive, pages, "a drive is out of use; its pages are misses");
    }
}
