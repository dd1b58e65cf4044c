//! What an engine tells of itself.

use crate::engine::Engine;
use crate::status::{EngineStatus, Tier, TierStatus};
use memkv_nvme::SegmentStatus;
use std::sync::atomic::Ordering;

impl Engine {
    /// The engine as a whole.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let state = &self.state;
        let arena = state.arena.status();
        let stats: Vec<_> = self.spaces().iter().map(|space| space.stats()).collect();
        let pages = stats.iter().map(|stats| stats.pages).sum::<u64>();
        let page_bytes = stats.iter().map(|stats| stats.bytes).sum::<u64>();
        let drive_pages = stats.iter().map(|stats| stats.drive_pages).sum::<u64>();
        let drive_bytes = stats.iter().map(|stats| stats.drive_bytes).sum::<u64>();
        let mut tiers = vec![TierStatus {
            tier: Tier::Dram,
            // The two were not read at one moment.
            pages: pages.saturating_sub(drive_pages),
            bytes: page_bytes.saturating_sub(drive_bytes),
            capacity_bytes: arena.capacity_bytes,
            hits: state.tally.dram_hits.load(Ordering::Relaxed),
        }];
        let nvme = state.drives.as_ref().map(|drives| drives.status());
        tiers.extend(nvme.as_ref().map(|nvme| {
            let drives = &nvme.log.drives;
            TierStatus {
                tier: Tier::Nvme,
                pages: drives.iter().map(|drive| drive.live_pages).sum(),
                bytes: drives.iter().map(|drive| drive.live_bytes).sum(),
                capacity_bytes: drives.iter().map(|drive| drive.quota_bytes).sum(),
                hits: state.tally.nvme_hits.load(Ordering::Relaxed),
            }
        }));
        let (kept_pages, kept_bytes, kept_bytes_max) = state.kept.totals();
        let counters = state.tally.read();
        EngineStatus {
            capacity_bytes: arena.capacity_bytes,
            used_slot_bytes: arena.held_bytes,
            asked_bytes: arena.asked_bytes,
            page_bytes,
            pages,
            index_bytes: state.index.bytes(),
            spaces: stats.len() as u64,
            chunk_bytes: arena.chunk_bytes,
            chunks: arena.chunks,
            chunks_free: arena.chunks_free,
            chunks_draining: arena.chunks_draining,
            classes: arena.classes,
            backing: arena.backing,
            memory: arena.memory,
            counters,
            policy: self.config.policy,
            tiers,
            nvme,
            degraded: state.drives.as_ref().map_or_else(Vec::new, |drives| drives.degraded()),
            recovery: self.recovery,
            kept_pages,
            kept_bytes,
            kept_bytes_max,
            scrub: self.scrub_status(),
            quarantined: state.quarantine.total(),
        }
    }

    /// Every segment of every drive, oldest first for each drive.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentStatus> {
        self.state.drives.as_ref().map_or_else(Vec::new, |drives| drives.log.segments())
    }
}
