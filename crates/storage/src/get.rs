//! Gets: pages in memory at once, pages on drives after they were read into memory.

use crate::drives::Drives;
use crate::drives::read::{Flight, Followed, Role};
use crate::engine::Engine;
use crate::index::{HashedKey, Place};
use crate::keys::DriveMeta;
use crate::page::PagePin;
use crate::space::Space;
use crate::status::count;
use memkv_core::PageHasher;
use memkv_eviction::Moment;
use memkv_memory::{PageRecord, ReservedSlot, SlotPin};
use memkv_nvme::{Extent, ReadError, Reading};
use std::collections::VecDeque;
use tokio::sync::OwnedSemaphorePermit;

/// How often a page is looked up again that moved while it was read, or that somebody else read.
const ROUNDS: usize = 3;

/// A page that has to be read.
#[derive(Clone, Copy)]
struct Wanted {
    /// Its place in the batch.
    at: usize,
    extent: Extent,
    meta: DriveMeta,
}

/// A page that is being read for this batch.
struct Started {
    wanted: Wanted,
    reading: Reading,
    _flight: Flight,
    _part: OwnedSemaphorePermit,
}

/// How a read ended.
enum Outcome {
    Pinned(SlotPin),
    /// The page is to be looked up again.
    Again,
    Miss,
}

/// One batch of gets.
struct Batch<'a> {
    engine: &'a Engine,
    space: &'a Space,
    keys: &'a [HashedKey<'a>],
    now: Moment,
    pins: &'a mut [Option<PagePin>],
    /// Keys answered from memory and from drives.
    hits: (u64, u64),
}

impl Engine {
    /// Pins every page that is there and counts a read now: afterwards `pins[i]` belongs to `keys[i]`.
    ///
    /// Completes at once if all pages that are there are in memory. Pages on drives are read into memory first; one
    /// for which there is no memory, or whose drive fails, is a miss. The future may be dropped at any moment.
    pub async fn pin_batch(
        &self,
        space: &Space,
        keys: &[HashedKey<'_>],
        now: impl Into<Moment>,
        pins: &mut Vec<Option<PagePin>>,
    ) {
        pins.clear();
        pins.resize_with(keys.len(), || None);
        let now = now.into();
        self.state.saw(now);
        let mut batch = Batch { engine: self, space, keys, now, pins, hits: (0, 0) };
        let mut wanted = batch.pin_in_memory();
        for _ in 0..ROUNDS {
            let Some(drives) = self.state.drives.as_ref().filter(|_| !wanted.is_empty()) else { break };
            wanted = batch.read_from_drives(drives, wanted).await;
        }
        let (memory, drives) = batch.hits;
        space.count_gets(keys.len() as u64, memory + drives);
        count(&self.state.tally.dram_hits, memory);
        count(&self.state.tally.nvme_hits, drives);
    }
}

impl Batch<'_> {
    /// Pins what is in memory; returns what is only on drives.
    fn pin_in_memory(&mut self) -> Vec<Wanted> {
        let state = &self.engine.state;
        let (space, now, pins) = (self.space, self.now, &mut *self.pins);
        let (mut wanted, mut suspects, mut hits) = (Vec::new(), Vec::new(), 0);
        state.index.each(self.keys, |shard, at, key| match shard.find(space, key) {
            None => {}
            Some(Place::Dram(slot)) => {
                let Some(pin) = state.arena.pin(slot) else { return };
                state.accessed(slot, now, true);
                let pin = PagePin::new(pin);
                if !pin.is_verified() {
                    suspects.push(at);
                }
                pins[at] = Some(pin);
                hits += 1;
            }
            Some(Place::Drive(extent)) => {
                let meta = shard.look(space, key).and_then(|found| found.meta);
                wanted.extend(meta.map(|meta| Wanted { at, extent, meta }));
            }
        });
        for at in suspects {
            let good = self.pins[at].as_ref().is_some_and(|pin| self.engine.check(space, self.keys[at], pin));
            if !good {
                self.pins[at] = None;
                hits -= 1;
            }
        }
        self.hits.0 += hits;
        wanted
    }

    /// Reads pages and pins them. Returns those that are to be looked up again and are still only on drives.
    async fn read_from_drives(&mut self, drives: &Drives, wanted: Vec<Wanted>) -> Vec<Wanted> {
        let mut started: VecDeque<Started> = VecDeque::new();
        let mut followed: Vec<(Wanted, Followed)> = Vec::new();
        let mut again = Vec::new();
        for wanted in wanted {
            let flight = match drives.reads.role(wanted.extent.to_bits()) {
                Role::Reader(flight) => flight,
                Role::Follower(other) => {
                    followed.push((wanted, other));
                    continue;
                }
            };
            let mut part = drives.reads.try_take(wanted.meta.meta.len);
            while part.is_none() {
                // Nobody may wait for a part and hold one: first what has begun ends.
                part = match started.pop_front() {
                    Some(oldest) => {
                        self.end(oldest, &mut again).await;
                        drives.reads.try_take(wanted.meta.meta.len)
                    }
                    None => drives.reads.take(wanted.meta.meta.len).await,
                };
            }
            let Some(_part) = part else { continue };
            let Ok(slot) = self.engine.reserve_slot(wanted.meta.meta.len, self.space.account()) else {
                count(&self.engine.state.tally.promote_busy, 1);
                continue;
            };
            let reading = drives.log.read(wanted.extent, slot);
            started.push_back(Started { wanted, reading, _flight: flight, _part });
        }
        for each in started {
            self.end(each, &mut again).await;
        }
        for (wanted, other) in followed {
            other.over().await;
            again.push(wanted.at);
        }
        self.look_again(again)
    }

    /// Waits for a read and takes what it brought.
    async fn end(&mut self, started: Started, again: &mut Vec<usize>) {
        let Started { wanted, reading, _flight, _part } = started;
        let result = reading.await;
        match self.engine.arrived(self.space, self.keys[wanted.at], wanted, result, self.now) {
            Outcome::Pinned(pin) => {
                self.pins[wanted.at] = Some(PagePin::new(pin));
                self.hits.1 += 1;
            }
            Outcome::Again => again.push(wanted.at),
            Outcome::Miss => {}
        }
    }

    /// Pins those of some pages that are in memory by now; returns those that are only on drives.
    fn look_again(&mut self, again: Vec<usize>) -> Vec<Wanted> {
        let state = &self.engine.state;
        let mut wanted = Vec::new();
        for at in again {
            let key = self.keys[at];
            let shard = state.index.shard_for(key.digest);
            match shard.look(self.space, key) {
                None => {}
                Some(found) => match found.place {
                    Place::Dram(slot) => {
                        if let Some(pin) = state.arena.pin(slot) {
                            state.accessed(slot, self.now, true);
                            self.pins[at] = Some(PagePin::new(pin));
                            self.hits.1 += 1;
                        }
                    }
                    Place::Drive(extent) => {
                        wanted.extend(found.meta.map(|meta| Wanted { at, extent, meta }));
                    }
                },
            }
        }
        wanted
    }
}

impl Engine {
    /// Compares a page that an unclean end left in memory with its checksum, once. `false` if it is taken out.
    fn check(&self, space: &Space, key: HashedKey<'_>, pin: &PagePin) -> bool {
        let meta = pin.meta();
        if meta.checksum_of(PageHasher::oneshot(key.digest, pin)) == meta.checksum {
            self.state.arena.verified(pin.slot());
            return true;
        }
        let why = "the bytes that an earlier process left do not match their checksum";
        self.state.quarantine(space, key, Some(Place::Dram(pin.slot())), why);
        false
    }

    /// Takes a page that was read into memory, if it is what the index says.
    fn arrived(
        &self,
        space: &Space,
        key: HashedKey<'_>,
        wanted: Wanted,
        result: Result<ReservedSlot, ReadError>,
        now: Moment,
    ) -> Outcome {
        let here = Place::Drive(wanted.extent);
        let mut slot = match result {
            Ok(slot) => slot,
            Err(ReadError::Busy) => return Outcome::Miss,
            Err(error) => {
                count(&self.state.tally.drive_read_errors, 1);
                let place = self.state.index.shard_for(key.digest).find(space, key);
                if place == Some(here) {
                    // Gone with its segment, or unreadable: it could never be put again while it is in the index.
                    self.forget(space, key, here);
                    tracing::warn!(key = %key.key, %error, "a page on a drive is lost");
                    return Outcome::Miss;
                }
                return Outcome::Again;
            }
        };
        let meta = wanted.meta.meta;
        if meta.checksum_of(PageHasher::oneshot(key.digest, slot.bytes_mut())) != meta.checksum {
            let place = self.state.index.shard_for(key.digest).find(space, key);
            if place != Some(here) {
                return Outcome::Again;
            }
            self.state.quarantine(
                space,
                key,
                Some(here),
                "the bytes on the drive do not match their checksum",
            );
            return Outcome::Miss;
        }
        self.promote(space, key, &wanted.meta, slot, now)
    }

    /// Moves a page that was read and verified into memory.
    fn promote(
        &self,
        space: &Space,
        key: HashedKey<'_>,
        read: &DriveMeta,
        slot: ReservedSlot,
        now: Moment,
    ) -> Outcome {
        let state = &self.state;
        let sealed = slot.seal();
        let (name, bytes) = (key.key.as_bytes(), u64::from(read.meta.len));
        let record = PageRecord {
            meta: read.meta,
            digest: key.digest,
            position: read.position,
            now_ms: now.ms,
            ..PageRecord::default()
        };
        let mut shard = state.index.shard_for(key.digest);
        let same = |meta: &DriveMeta| meta.meta == read.meta;
        let entered = shard.enter_dram(space, key, same, |extent| {
            let policy = state.first_word(key.digest, read.position, now);
            sealed.publish(&PageRecord { extent: extent.to_bits(), policy, ..record }, &space.id().0, name)
        });
        if entered {
            space.count_promoted(bytes);
            count(&state.tally.promoted_pages, 1);
            count(&state.tally.promoted_bytes, bytes);
        }
        // Or somebody else brought it, or it was put again.
        let Some(Place::Dram(slot)) = shard.find(space, key) else {
            return if entered { Outcome::Miss } else { Outcome::Again };
        };
        match state.arena.pin(slot) {
            Some(pin) => {
                state.accessed(slot, now, true);
                Outcome::Pinned(pin)
            }
            None => Outcome::Miss,
        }
    }

    /// Removes a page that cannot be read any more.
    fn forget(&self, space: &Space, key: HashedKey<'_>, place: Place) {
        let state = &self.state;
        let Some(drives) = state.drives.as_ref().filter(|_| !state.is_closed()) else { return };
        let _removal = drives.order.write();
        let mut left = Vec::new();
        let mut shard = state.index.shard_for(key.digest);
        let Some(removed) = shard.remove_from(space, key, place) else { return };
        state.retire(space, &removed, &mut left);
        drop(shard);
        state.release(left);
        drives.forget(space.id(), &[key]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Tiered, delete, demote, fetch, hashed, in_dram, put, space};

    /// The bytes that a read brings may be those of a page that went meanwhile.
    #[test]
    fn what_was_read_of_an_earlier_page_does_not_become_the_page_that_was_put_again() {
        let (old, new) = (vec![1; 20_000], vec![2; 20_000]);
        let tiered = Tiered::new();
        let engine = tiered.open();
        let (space, state) = (space(&engine, "a"), &engine.state);
        let key = hashed(&space, b"k");
        let read = |bytes: &[u8]| {
            put(&engine, &space, b"k", bytes).unwrap();
            let Some(Place::Dram(slot)) = state.index.shard_for(key.digest).find(&space, key) else {
                panic!("it was just put")
            };
            let meta = crate::state::drive_meta(&state.arena.page(slot).unwrap());
            demote(&engine, &space, b"k");
            let (mut slot, _) = state.arena.reserve(meta.meta.len).unwrap();
            slot.bytes_mut().copy_from_slice(bytes);
            (meta, slot)
        };
        let (old_meta, old_slot) = read(&old);
        assert!(delete(&engine, &space, b"k"));
        let (new_meta, new_slot) = read(&new);
        let outcome = engine.promote(&space, key, &old_meta, old_slot, 5.into());
        assert!(matches!(outcome, Outcome::Again), "the page is to be looked up again");
        assert_eq!(in_dram(&engine, &space, b"k"), Some(false));
        assert_eq!(engine.status().counters.promoted_pages, 0);
        // What was read of the page that is there does.
        let outcome = engine.promote(&space, key, &new_meta, new_slot, 6.into());
        assert!(matches!(outcome, Outcome::Pinned(pin) if pin[..] == new));
        assert_eq!(fetch(&engine, &space, b"k").unwrap()[..], new);
    }
}
