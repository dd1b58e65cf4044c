//! Looks for pages whose bytes no longer match their checksum: a bounded step at a time in the background, or all at
//! once on demand.

use crate::engine::Engine;
use crate::index::{HashedKey, Place};
use memkv_core::{Key, PageHasher, SpaceId};
use memkv_nvme::Walk;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

/// What [`Engine::verify`] is asked to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyRequest {
    /// Only this space; all if there is none.
    pub space: Option<SpaceId>,
    /// The pace; as fast as possible if there is none.
    pub bytes_per_s: Option<u64>,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Pages checked in memory.
    pub dram_pages: u64,
    /// Pages checked on drives.
    pub nvme_pages: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// About how many bytes there are to check; pages come and go meanwhile.
    pub total_bytes: u64,
    /// Pages that did not match and were taken out.
    pub corrupt: u64,
}

/// What a check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// What was checked and found.
    pub progress: VerifyProgress,
    /// The check was ended by whoever watched it.
    pub stopped: bool,
}

/// What one step of the scrubber did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Pages checked.
    pub pages: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// Pages that did not match and were taken out.
    pub corrupt: u64,
    /// The step ended a pass over all pages.
    pub pass_ended: bool,
}

/// The background scrubber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Bytes per second that it may check.
    pub bytes_per_s: u64,
    /// Passes over all pages that have ended.
    pub passes: u64,
    /// Pages checked since the start.
    pub pages: u64,
    /// Bytes checked since the start.
    pub bytes: u64,
    /// Pages that did not match.
    pub corrupt: u64,
    /// How far this pass has come, in thousandths.
    pub permille: u32,
}

/// Bytes of one step of [`Engine::verify`].
const STEP_BYTES: u64 = 8 << 20;

/// One pass over all pages, a step at a time: memory first, then the drives, segment by segment.
enum Stage {
    Memory { chunk: u32, slot: u32 },
    Drives { segments: VecDeque<(u8, u64)>, walk: Option<Walk> },
    Ended,
}

impl Default for Stage {
    fn default() -> Self {
        Self::Memory { chunk: 0, slot: 0 }
    }
}

/// The background scrubber: where it is, and what it has found.
#[derive(Default)]
pub(crate) struct Scrubber {
    stage: Stage,
    /// What was checked in this pass.
    pass: VerifyProgress,
    total: ScrubStatus,
}

impl Engine {
    /// Checks every page against its checksum and takes out those that do not match. Blocks: for a thread of its own.
    ///
    /// `progress` is told now and then how far it is, and can end the check.
    pub fn verify(
        &self,
        request: VerifyRequest,
        progress: &dyn Fn(VerifyProgress) -> ControlFlow<()>,
    ) -> VerifyReport {
        let mut stage = Stage::default();
        let mut so_far = VerifyProgress { total_bytes: self.bytes_to_check(), ..VerifyProgress::default() };
        loop {
            let before = so_far.bytes;
            self.step(&mut stage, request.space, STEP_BYTES, &mut so_far);
            let stopped = progress(so_far).is_break();
            if stopped || matches!(stage, Stage::Ended) {
                return VerifyReport { progress: so_far, stopped };
            }
            if let Some(rate) = request.bytes_per_s {
                let ms = (so_far.bytes - before).saturating_mul(1000) / rate.max(1);
                std::thread::sleep(Duration::from_millis(ms));
            }
        }
    }

    /// Checks the next pages, about `bytes` of them, at least one. For the one thread that scrubs; it decides about
    /// the pace.
    pub fn scrub(&self, bytes: u64) -> ScrubStep {
        let mut scrubber = self.scrubber.lock();
        let scrubber = &mut *scrubber;
        let before = scrubber.pass;
        self.step(&mut scrubber.stage, None, bytes, &mut scrubber.pass);
        let pass = scrubber.pass;
        let step = ScrubStep {
            pages: pass.dram_pages + pass.nvme_pages - before.dram_pages - before.nvme_pages,
            bytes: pass.bytes - before.bytes,
            corrupt: pass.corrupt - before.corrupt,
            pass_ended: matches!(scrubber.stage, Stage::Ended),
        };
        scrubber.total.pages += step.pages;
        scrubber.total.bytes += step.bytes;
        scrubber.total.corrupt += step.corrupt;
        if step.pass_ended {
            scrubber.total.passes += 1;
            (scrubber.stage, scrubber.pass) = Default::default();
        }
        step
    }

    pub(crate) fn scrub_status(&self) -> ScrubStatus {
        let scrubber = self.scrubber.lock();
        let of = self.bytes_to_check().max(1);
        let permille = scrubber.pass.bytes.saturating_mul(1000) / of;
        ScrubStatus {
            bytes_per_s: self.config.scrub_bytes_per_s,
            permille: u32::try_from(permille.min(1000)).unwrap_or(1000),
            ..scrubber.total
        }
    }

    /// About how many bytes there are to check.
    fn bytes_to_check(&self) -> u64 {
        let memory = self.state.arena.status().asked_bytes;
        let live = |drives: &crate::drives::Drives| {
            drives.log.status().drives.iter().map(|drive| drive.live_bytes).sum::<u64>()
        };
        memory + self.state.drives.as_ref().map_or(0, live)
    }

    /// Checks pages until `bytes` of them were checked or the pass ends.
    fn step(&self, stage: &mut Stage, space: Option<SpaceId>, bytes: u64, done: &mut VerifyProgress) {
        let until = done.bytes + bytes.max(1);
        while done.bytes < until {
            let next = match stage {
                Stage::Memory { chunk, slot } => self.check_slot(chunk, slot, space, done),
                Stage::Drives { segments, walk } => self.check_record(segments, walk, space, done),
                Stage::Ended => return,
            };
            match (next, &stage) {
                (ControlFlow::Continue(()), _) => {}
                (ControlFlow::Break(()), Stage::Memory { .. }) => {
                    let segments = self.segments().into_iter();
                    let segments = segments.map(|segment| (segment.drive, segment.sequence)).collect();
                    *stage = Stage::Drives { segments, walk: None };
                }
                (ControlFlow::Break(()), _) => *stage = Stage::Ended,
            }
        }
    }

    /// Checks the next page in memory; `Break` after the last.
    fn check_slot(
        &self,
        chunk: &mut u32,
        slot: &mut u32,
        wanted: Option<SpaceId>,
        done: &mut VerifyProgress,
    ) -> ControlFlow<()> {
        let state = &self.state;
        if *chunk >= state.arena.chunk_count() {
            return ControlFlow::Break(());
        }
        let view = state.arena.chunk(*chunk).filter(|view| *slot < view.slots);
        let Some(view) = view else {
            (*chunk, *slot) = (*chunk + 1, 0);
            return ControlFlow::Continue(());
        };
        let page = state.arena.pages(view, *slot, 1).next();
        *slot += 1;
        // Under the pin the slot keeps its page; the index says whose it is.
        let Some(pin) = page.and_then(|page| state.arena.pin(page.slot)) else {
            return ControlFlow::Continue(());
        };
        let Some(page) = state.arena.page(pin.id()) else { return ControlFlow::Continue(()) };
        let shard = state.index.shard_for(page.digest);
        let found = shard.look_slot(page.digest, page.slot).map(|found| (found.space, Box::from(found.key)));
        drop(shard);
        let Some((number, key)): Option<(u32, Box<[u8]>)> = found else { return ControlFlow::Continue(()) };
        let space = state.space(number);
        if wanted.is_some_and(|id| id != space.id()) {
            return ControlFlow::Continue(());
        }
        done.dram_pages += 1;
        done.bytes += u64::from(page.meta.len);
        if page.meta.checksum_of(PageHasher::oneshot(page.digest, &pin)) == page.meta.checksum {
            state.arena.verified(page.slot);
        } else if let Ok(key) = Key::new(&key) {
            done.corrupt += 1;
            let (key, place) = (HashedKey { key, digest: page.digest }, Place::Dram(page.slot));
            state.quarantine(&space, key, Some(place), "a check found other bytes than were stored");
        }
        ControlFlow::Continue(())
    }

    /// Checks the next record on a drive; `Break` after the last.
    fn check_record(
        &self,
        segments: &mut VecDeque<(u8, u64)>,
        walk: &mut Option<Walk>,
        wanted: Option<SpaceId>,
        done: &mut VerifyProgress,
    ) -> ControlFlow<()> {
        let Some(drives) = &self.state.drives else { return ControlFlow::Break(()) };
        let Some(record) = walk.as_mut().and_then(Iterator::next) else {
            let Some((drive, sequence)) = segments.pop_front() else { return ControlFlow::Break(()) };
            *walk = drives.log.walk(drive, sequence);
            return ControlFlow::Continue(());
        };
        let head = record.head.as_head();
        if wanted.is_some_and(|id| id != head.space) {
            return ControlFlow::Continue(());
        }
        done.bytes += u64::from(head.meta.len);
        let (Some(space), Ok(key)) = (self.state.spaces.get(head.space), Key::new(head.key)) else {
            return ControlFlow::Continue(());
        };
        let key = HashedKey { key, digest: head.digest };
        let shard = self.state.index.shard_for(key.digest);
        let place = shard.find(&space, key);
        match place {
            Some(Place::Drive(at)) if at == record.extent => {
                drop(shard);
                done.nvme_pages += 1;
                if !record.intact {
                    done.corrupt += 1;
                    let why = "a check found other bytes on the drive than were stored";
                    self.state.quarantine(&space, key, place, why);
                }
            }
            Some(Place::Dram(slot)) if self.state.arena.extent_of(slot) == record.extent.to_bits() => {
                done.nvme_pages += 1;
                if !record.intact {
                    // The page itself is in memory; only its copy goes.
                    done.corrupt += 1;
                    self.state.arena.set_extent(slot, 0);
                    drop(shard);
                    drives.log.release(record.extent);
                    tracing::error!(key = %key.key, "the copy of a page on a drive does not match its checksum");
                }
            }
            Some(_) | None => {}
        }
        ControlFlow::Continue(())
    }
}
