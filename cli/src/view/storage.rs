//! Shapes of what rests where: tiers, drives, segments, pins, checks.

use super::{Server, Unreachable, key_text};
use memkv_proto::v1;
use serde::Serialize;

/// The NVMe tier of a server.
#[derive(Debug, Serialize)]
pub(crate) struct Nvme {
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) pages: u64,
    pub(crate) hits: u64,
    /// `demote` or `write-through`.
    pub(crate) mode: String,
    pub(crate) io: String,
    pub(crate) sync: bool,
    pub(crate) admit_unread: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) backlog_bytes: u64,
    pub(crate) reading_bytes: u64,
    pub(crate) demoted: u64,
    pub(crate) demoted_bytes: u64,
    pub(crate) demote_unread: u64,
    pub(crate) demote_dropped: u64,
    pub(crate) promoted: u64,
    pub(crate) promoted_bytes: u64,
    pub(crate) persisted: u64,
    pub(crate) persist_dropped: u64,
    pub(crate) read_failures: u64,
    pub(crate) removals_failed: u64,
    pub(crate) drives: Vec<Drive>,
}

/// One drive.
#[derive(Debug, Serialize)]
pub(crate) struct Drive {
    pub(crate) path: String,
    /// `ok`, `full`, `failed` or `unknown`.
    pub(crate) state: &'static str,
    pub(crate) reason: String,
    pub(crate) direct: bool,
    pub(crate) quota_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) live_bytes: u64,
    pub(crate) live_pages: u64,
    pub(crate) segments: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) backlog_bytes: u64,
    pub(crate) errors: u64,
    pub(crate) dropped_full: u64,
    pub(crate) dropped_failed: u64,
    pub(crate) dropped_backlog: u64,
    pub(crate) reclaimed_segments: u64,
    pub(crate) reinserted_pages: u64,
}

/// The check in the background.
#[derive(Debug, Serialize)]
pub(crate) struct Scrub {
    pub(crate) bytes_per_second: u64,
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
    pub(crate) rounds: u64,
    /// How far this round is, 0 to 1.
    pub(crate) progress: f64,
    pub(crate) quarantined: u64,
}

/// What a server's start found.
#[derive(Debug, Serialize)]
pub(crate) struct Recovery {
    pub(crate) dram_pages: u64,
    pub(crate) dram_unverified: u64,
    pub(crate) nvme_pages: u64,
    pub(crate) nvme_segments: u64,
    pub(crate) dropped_pages: u64,
    pub(crate) spaces: u64,
    pub(crate) took_ms: u64,
}

/// `inspect server`: its status, and what only this view shows.
#[derive(Debug, Serialize)]
pub(crate) struct ServerDetail {
    #[serde(flatten)]
    pub(crate) server: Server,
    /// The last pages that did not match their checksum, the newest first.
    pub(crate) quarantined: Vec<Quarantined>,
    pub(crate) segments: Vec<Segment>,
}

/// A page that did not match its checksum.
#[derive(Debug, Serialize)]
pub(crate) struct Quarantined {
    pub(crate) space_id: String,
    pub(crate) key: String,
    pub(crate) key_hex: String,
    pub(crate) tier: String,
    pub(crate) age_ms: u64,
    pub(crate) reason: String,
}

/// A segment of the NVMe tier.
#[derive(Debug, Serialize)]
pub(crate) struct Segment {
    /// The drive's place among the server's paths, from 0.
    pub(crate) drive: u32,
    pub(crate) number: u64,
    /// `spare`, `active`, `sealing`, `sealed` or `unknown`.
    pub(crate) state: &'static str,
    pub(crate) bytes: u64,
    pub(crate) pages: u64,
    pub(crate) live_pages: u64,
    pub(crate) live_bytes: u64,
}

/// `pin`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Pinned {
    pub(crate) space_id: String,
    pub(crate) keys: u64,
    pub(crate) pinned: u64,
    pub(crate) missing: u64,
    pub(crate) over_quota: u64,
    pub(crate) ttl_ms: u64,
    pub(crate) unreachable: Vec<Unreachable>,
}

/// `unpin`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Unpinned {
    pub(crate) space_id: String,
    pub(crate) unpinned: u64,
    pub(crate) unreachable: Vec<Unreachable>,
}

/// `pins`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Pins {
    pub(crate) pins: Vec<Pin>,
    pub(crate) servers: Vec<PinShare>,
    pub(crate) unreachable: Vec<Unreachable>,
}

/// One pinned page.
#[derive(Debug, Serialize)]
pub(crate) struct Pin {
    pub(crate) server: String,
    pub(crate) space_id: String,
    pub(crate) key: String,
    pub(crate) key_hex: String,
    pub(crate) bytes: u64,
    pub(crate) left_ms: u64,
}

/// How much of one server's memory is pinned.
#[derive(Debug, Serialize)]
pub(crate) struct PinShare {
    pub(crate) server: String,
    pub(crate) pinned_bytes: u64,
    pub(crate) pinned_bytes_max: u64,
}

/// `verify`.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    pub(crate) servers: Vec<VerifiedServer>,
    pub(crate) quarantined: u64,
}

/// What one server found.
#[derive(Debug, Serialize)]
pub(crate) struct VerifiedServer {
    pub(crate) server: String,
    pub(crate) dram_pages: u64,
    pub(crate) nvme_pages: u64,
    pub(crate) bytes: u64,
    pub(crate) quarantined: u64,
    pub(crate) error: Option<String>,
}

impl From<v1::NvmeStatus> for Nvme {
    fn from(nvme: v1::NvmeStatus) -> Self {
        let fill = nvme.fill.unwrap_or_default();
        Self {
            capacity_bytes: fill.capacity_bytes,
            used_bytes: fill.used_bytes,
            pages: fill.pages,
            hits: fill.hits,
            mode: nvme.mode,
            io: nvme.io,
            sync: nvme.sync,
            admit_unread: nvme.admit_unread,
            segment_bytes: nvme.segment_bytes,
            backlog_bytes: nvme.backlog_bytes,
            reading_bytes: nvme.reading_bytes,
            demoted: nvme.demoted,
            demoted_bytes: nvme.demoted_bytes,
            demote_unread: nvme.demote_unread,
            demote_dropped: nvme.demote_dropped,
            promoted: nvme.promoted,
            promoted_bytes: nvme.promoted_bytes,
            persisted: nvme.persisted,
            persist_dropped: nvme.persist_dropped,
            read_failures: nvme.read_failures,
            removals_failed: nvme.removals_failed,
            drives: nvme.drives.into_iter().map(Drive::from).collect(),
        }
    }
}

impl From<v1::DriveStatus> for Drive {
    fn from(drive: v1::DriveStatus) -> Self {
        let state = match drive.state() {
            v1::DriveState::Ok => "ok",
            v1::DriveState::Full => "full",
            v1::DriveState::Failed => "failed",
            v1::DriveState::Unspecified => "unknown",
        };
        Self {
            path: drive.path,
            state,
            reason: drive.reason,
            direct: drive.direct,
            quota_bytes: drive.quota_bytes,
            used_bytes: drive.used_bytes,
            live_bytes: drive.live_bytes,
            live_pages: drive.live_pages,
            segments: drive.segments,
            reads: drive.reads,
            writes: drive.writes,
            read_bytes: drive.read_bytes,
            written_bytes: drive.written_bytes,
            backlog_bytes: drive.backlog_bytes,
            errors: drive.errors,
            dropped_full: drive.dropped_full,
            dropped_failed: drive.dropped_failed,
            dropped_backlog: drive.dropped_backlog,
            reclaimed_segments: drive.reclaimed_segments,
            reinserted_pages: drive.reinserted_pages,
        }
    }
}

impl From<v1::ScrubStatus> for Scrub {
    fn from(scrub: v1::ScrubStatus) -> Self {
        Self {
            bytes_per_second: scrub.bytes_per_second,
            pages: scrub.pages,
            bytes: scrub.bytes,
            rounds: scrub.rounds,
            progress: f64::from(scrub.permille) / 1000.0,
            quarantined: scrub.quarantined,
        }
    }
}

impl From<v1::RecoveryStatus> for Recovery {
    fn from(recovery: v1::RecoveryStatus) -> Self {
        Self {
            dram_pages: recovery.dram_pages,
            dram_unverified: recovery.dram_unverified,
            nvme_pages: recovery.nvme_pages,
            nvme_segments: recovery.nvme_segments,
            dropped_pages: recovery.dropped_pages,
            spaces: recovery.spaces,
            took_ms: recovery.took_ms,
        }
    }
}

impl From<v1::QuarantinedPage> for Quarantined {
    fn from(page: v1::QuarantinedPage) -> Self {
        Self {
            space_id: hex::encode(&page.space_id),
            key: key_text(&page.key),
            key_hex: hex::encode(&page.key),
            tier: page.tier,
            age_ms: page.age_ms,
            reason: page.reason,
        }
    }
}

impl From<v1::SegmentStatus> for Segment {
    fn from(segment: v1::SegmentStatus) -> Self {
        let state = match segment.state() {
            v1::SegmentState::Spare => "spare",
            v1::SegmentState::Active => "active",
            v1::SegmentState::Sealing => "sealing",
            v1::SegmentState::Sealed => "sealed",
            v1::SegmentState::Unspecified => "unknown",
        };
        Self {
            drive: segment.drive,
            number: segment.number,
            state,
            bytes: segment.bytes,
            pages: segment.pages,
            live_pages: segment.live_pages,
            live_bytes: segment.live_bytes,
        }
    }
}

impl Pin {
    /// A pin as a server lists it.
    pub(crate) fn new(server: &str, pin: v1::PinStatus) -> Self {
        Self {
            server: server.to_owned(),
            space_id: hex::encode(&pin.space_id),
            key: key_text(&pin.key),
            key_hex: hex::encode(&pin.key),
            bytes: pin.bytes,
            left_ms: pin.left_ms,
        }
    }
}
