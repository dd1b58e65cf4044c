//! What a log says of itself.

use std::path::PathBuf;

/// How I/O is done, and why so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoBackend {
    /// One ring for each drive.
    Uring,
    /// Threads for each drive.
    Threads,
}

/// Whether a drive is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriveState {
    /// It is read and written.
    Ok,
    /// It is read; there is no room to write until the file system has some again.
    Full,
    /// It was taken out; its pages are gone. Says why.
    Failed(String),
}

/// Pages that were not written, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedCounts {
    /// There was no room.
    pub full: u64,
    /// The drive had failed.
    pub drive_failed: u64,
    /// Too many bytes were waiting already.
    pub backlog: u64,
}

/// One drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveStatus {
    /// Its directory.
    pub path: PathBuf,
    /// The most bytes that segments may take.
    pub quota_bytes: u64,
    /// Bytes that segments take.
    pub used_bytes: u64,
    /// Bytes of pages that the owner points at.
    pub live_bytes: u64,
    /// Pages that the owner points at.
    pub live_pages: u64,
    /// Number of segments.
    pub segments: u64,
    /// Whether it is used.
    pub state: DriveState,
    /// Whether its files bypass the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Pages read.
    pub reads: u64,
    /// Pages written.
    pub writes: u64,
    /// Bytes of pages read.
    pub read_bytes: u64,
    /// Bytes written, headers included.
    pub written_bytes: u64,
    /// Bytes of pages that wait to be written.
    pub backlog_bytes: u64,
    /// Operations that the system answered with an error.
    pub errors: u64,
    /// Pages that were not written.
    pub dropped: DroppedCounts,
    /// Segments that were given back.
    pub reclaimed_segments: u64,
    /// Pages that were written again because they were hot when their segment was given back.
    pub reinserted_pages: u64,
}

/// The log as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// How I/O is done.
    pub io: IoBackend,
    /// Why so, for example what the kernel answered.
    pub io_reason: String,
    /// Whether an append waits for the drive's word that bytes survive a power loss.
    pub sync: bool,
    /// Every drive, in the order of the configuration.
    pub drives: Vec<DriveStatus>,
}

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Made ahead of need, empty.
    Spare,
    /// Pages are appended to it.
    Active,
    /// It is full and gets its footer.
    Sealing,
    /// It has its footer and never changes.
    Sealed,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentStatus {
    /// Number of its drive.
    pub drive: u8,
    /// Its sequence number on the drive.
    pub sequence: u64,
    /// Where it is in its life.
    pub state: SegmentState,
    /// Bytes that its file takes.
    pub file_bytes: u64,
    /// Pages written to it.
    pub pages: u64,
    /// Pages that the owner points at.
    pub live_pages: u64,
    /// Bytes of those.
    pub live_bytes: u64,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecoveryReport {
    /// Pages handed to the visitor.
    pub pages: u64,
    /// Records of pages that were deleted or cleared later.
    pub deleted: u64,
    /// Records whose page was damaged or not written to its end.
    pub damaged_pages: u64,
    /// Places where a header did not check out and the scan went on behind it.
    pub damaged_headers: u64,
    /// Segments read by their footer.
    pub sealed_segments: u64,
    /// Segments that had no footer, or a damaged one, and were scanned.
    pub scanned_segments: u64,
    /// Segments of which nothing could be read.
    pub lost_segments: u64,
    /// Files of a segment's name that are none; they were left alone.
    pub foreign_files: u64,
    /// Drives whose pages were dropped, because others went on without them.
    pub retired_drives: u64,
    /// How long it took.
    pub seconds: f64,
}
