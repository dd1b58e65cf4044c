//! The store's status as the protocol's messages.

use crate::config::storage::StorageConfig;
use memkv_proto::v1;
use memkv_storage::{Engine, EngineStatus, NvmeStatus, Tier};

/// The DRAM tier.
pub(super) fn dram(engine: &EngineStatus) -> v1::TierStatus {
    let classes = engine.classes.iter().map(|class| v1::ClassStatus {
        slot_bytes: class.slot_bytes,
        slots: class.slots,
        slots_used: class.in_use,
        chunks: class.chunks,
        asked_bytes: class.asked_bytes,
    });
    let (mut page_bytes, mut pages, mut hits) = (engine.page_bytes, engine.pages, 0);
    if let Some(tier) = engine.tiers.iter().find(|tier| tier.tier == Tier::Dram) {
        (page_bytes, pages, hits) = (tier.bytes, tier.pages, tier.hits);
    }
    v1::TierStatus {
        classes: classes.collect(),
        capacity_bytes: engine.capacity_bytes,
        used_bytes: engine.used_slot_bytes,
        page_bytes,
        pages,
        backing: engine.backing.text().to_owned(),
        hits,
        asked_bytes: engine.asked_bytes,
    }
}

/// The NVMe tier.
pub(super) fn nvme(engine: &EngineStatus, config: &StorageConfig) -> Option<v1::NvmeStatus> {
    let status = engine.nvme.as_ref()?;
    let counters = &engine.counters;
    Some(v1::NvmeStatus {
        fill: Some(nvme_fill(engine)),
        mode: config.nvme_mode.text().to_owned(),
        io: String::new(),
        sync: config.nvme_sync,
        segment_bytes: config.segment_bytes,
        drives: drives(status),
        admit_unread: status.admit_unread,
        backlog_bytes: status.backlog_bytes,
        reading_bytes: status.reading_bytes,
        demoted: counters.demoted_pages,
        demoted_bytes: counters.demoted_bytes,
        demote_unread: counters.demote_unread,
        demote_dropped: counters.demote_dropped,
        promoted: counters.promoted_pages,
        promoted_bytes: counters.promoted_bytes,
        persisted: counters.persisted_pages,
        persist_dropped: counters.persist_dropped,
        read_failures: counters.promote_busy + counters.drive_read_errors,
    })
}

fn nvme_fill(engine: &EngineStatus) -> v1::TierStatus {
    let tier = engine.tiers.iter().find(|tier| tier.tier == Tier::Nvme);
    tier.map_or_else(v1::TierStatus::default, |tier| v1::TierStatus {
        capacity_bytes: tier.capacity_bytes,
        used_bytes: tier.bytes,
        page_bytes: tier.bytes,
        pages: tier.pages,
        hits: tier.hits,
        ..v1::TierStatus::default()
    })
}

fn drives(_status: &NvmeStatus) -> Vec<v1::DriveStatus> {
    Vec::new()
}

/// The segments of the NVMe tier.
pub(super) fn segments(_engine: &Engine) -> Vec<v1::SegmentStatus> {
    Vec::new()
}

/// The background check.
pub(super) fn scrub(engine: &EngineStatus) -> v1::ScrubStatus {
    let scrub = &engine.scrub;
    v1::ScrubStatus {
        bytes_per_second: scrub.bytes_per_s,
        pages: scrub.pages,
        bytes: scrub.bytes,
        rounds: scrub.passes,
        permille: scrub.permille,
        quarantined: scrub.corrupt,
    }
}

/// What the start found.
pub(super) fn recovery(engine: &EngineStatus) -> v1::RecoveryStatus {
    let recovery = &engine.recovery;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time since the start is positive, and a start of 2^64 ms does not happen"
    )]
    let took_ms = (recovery.seconds * 1000.0).round() as u64;
    v1::RecoveryStatus {
        dram_pages: recovery.dram_pages,
        dram_unverified: recovery.dram_unclean,
        nvme_pages: recovery.nvme_pages,
        nvme_segments: recovery.nvme_segments,
        took_ms,
        dropped_pages: recovery.dropped_pages,
        spaces: recovery.spaces,
    }
}
