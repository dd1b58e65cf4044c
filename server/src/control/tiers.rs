//! The store's status as the protocol's messages.

use crate::config::storage::StorageConfig;
use memkv_proto::v1;
use memkv_storage::{
    DriveState, DriveStatus, Engine, EngineStatus, IoBackend, SegmentState, SegmentStatus, Tier,
};

/// The most segments in one list.
const SEGMENTS_MAX: usize = 100_000;

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
        backing: backing(engine),
        hits,
        asked_bytes: engine.asked_bytes,
    }
}

/// The DRAM tier as one tenant may see it: its own pages, and its quota for a capacity.
pub(super) fn share(usage: &memkv_storage::Usage) -> v1::TierStatus {
    v1::TierStatus {
        capacity_bytes: usage.dram_bytes_max.unwrap_or(0),
        used_bytes: usage.dram_bytes,
        page_bytes: usage.dram_bytes,
        pages: usage.pages,
        ..v1::TierStatus::default()
    }
}

/// The NVMe tier.
pub(super) fn nvme(engine: &EngineStatus, config: &StorageConfig) -> Option<v1::NvmeStatus> {
    let status = engine.nvme.as_ref()?;
    let counters = &engine.counters;
    Some(v1::NvmeStatus {
        fill: Some(nvme_fill(engine)),
        mode: config.nvme_mode.text().to_owned(),
        io: match status.log.io {
            IoBackend::Uring => "io_uring".to_owned(),
            IoBackend::Threads => format!("threads: {}", status.log.io_reason),
        },
        sync: status.log.sync,
        segment_bytes: config.segment_bytes,
        drives: status.log.drives.iter().map(drive).collect(),
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
        removals_failed: status.removals_failed,
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

/// What the memory is made of, and where it outlives the process.
fn backing(engine: &EngineStatus) -> String {
    let pages = engine.backing.text();
    match &engine.memory.file {
        Some(file) => format!("{pages}, {}", file.display()),
        None => pages.to_owned(),
    }
}

fn drive(drive: &DriveStatus) -> v1::DriveStatus {
    let (state, reason) = match &drive.state {
        DriveState::Ok => (v1::DriveState::Ok, ""),
        DriveState::Full => (v1::DriveState::Full, "its file system has no room"),
        DriveState::Failed(why) => (v1::DriveState::Failed, why.as_str()),
    };
    v1::DriveStatus {
        path: drive.path.display().to_string(),
        state: state.into(),
        reason: reason.to_owned(),
        quota_bytes: drive.quota_bytes,
        used_bytes: drive.used_bytes,
        live_bytes: drive.live_bytes,
        live_pages: drive.live_pages,
        segments: drive.segments,
        direct: drive.direct,
        reads: drive.reads,
        writes: drive.writes,
        read_bytes: drive.read_bytes,
        written_bytes: drive.written_bytes,
        backlog_bytes: drive.backlog_bytes,
        errors: drive.errors,
        dropped_full: drive.dropped.full,
        dropped_failed: drive.dropped.drive_failed,
        dropped_backlog: drive.dropped.backlog,
        reclaimed_segments: drive.reclaimed_segments,
        reinserted_pages: drive.reinserted_pages,
    }
}

/// The segments of the NVMe tier.
pub(super) fn segments(engine: &Engine) -> Vec<v1::SegmentStatus> {
    let segment = |segment: SegmentStatus| v1::SegmentStatus {
        drive: segment.drive.into(),
        number: segment.sequence,
        state: match segment.state {
            SegmentState::Spare => v1::SegmentState::Spare,
            SegmentState::Active => v1::SegmentState::Active,
            SegmentState::Sealing => v1::SegmentState::Sealing,
            SegmentState::Sealed => v1::SegmentState::Sealed,
        }
        .into(),
        bytes: segment.file_bytes,
        pages: segment.pages,
        live_pages: segment.live_pages,
        live_bytes: segment.live_bytes,
    };
    let mut segments: Vec<_> = engine.segments().into_iter().map(segment).collect();
    segments.sort_by_key(|segment| (segment.drive, segment.number));
    segments.truncate(SEGMENTS_MAX);
    segments
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
