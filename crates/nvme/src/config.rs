//! How to open a log, and why it cannot be opened.

use std::path::PathBuf;

/// One drive: a directory that the log has for itself, and how much it may fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveConfig {
    /// The directory. Made if it is not there and its parent is. Files in it that are not the log's are left alone.
    pub path: PathBuf,
    /// The most bytes that segments may take; at least five segments.
    pub quota_bytes: u64,
}

/// Which way of doing I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// io_uring if the kernel allows it, otherwise threads.
    #[default]
    Auto,
    /// io_uring, or no log at all.
    Uring,
    /// Threads that read and write.
    Threads,
}

/// How to open a log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The drives, 1 to 16. Their order may change between two starts.
    pub drives: Vec<DriveConfig>,
    /// Bytes of a segment; lowered to an eighth of a drive's quota, and raised to hold the largest page.
    pub segment_bytes: u64,
    /// The largest page, at most 64 MiB.
    pub page_bytes_max: u32,
    /// Which way of doing I/O.
    pub io: IoChoice,
    /// Operations in flight at once, for each drive; 2 to 4096.
    pub queue_depth: u32,
    /// Whether an append waits until the drive says that the bytes survive a power loss.
    pub sync: bool,
    /// The most bytes of pages that wait to be written, for each drive; more are dropped and counted.
    pub backlog_bytes: u64,
    /// Faults to have, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub faults: Option<std::sync::Arc<crate::FaultPlan>>,
    /// No threads: whoever has the log calls [`Log::turn`](crate::Log::turn).
    #[cfg(any(test, feature = "sim"))]
    pub by_hand: bool,
}

impl LogConfig {
    /// A configuration with the usual sizes.
    #[must_use]
    pub fn new(drives: Vec<DriveConfig>) -> Self {
        Self {
            drives,
            segment_bytes: 256 << 20,
            page_bytes_max: 64 << 20,
            io: IoChoice::Auto,
            queue_depth: 128,
            sync: false,
            backlog_bytes: 256 << 20,
            #[cfg(any(test, feature = "testing"))]
            faults: None,
            #[cfg(any(test, feature = "sim"))]
            by_hand: false,
        }
    }

    /// Whether whoever has the log moves it on, and no thread does.
    #[must_use]
    pub fn is_by_hand(&self) -> bool {
        #[cfg(any(test, feature = "sim"))]
        return self.by_hand;
        #[cfg(not(any(test, feature = "sim")))]
        false
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Sizes do not fit together.
    #[error("{0}")]
    Config(String),
    /// Another process has the directory.
    #[error("{path} is in use by another process; stop it, or give each server its own directory", path = .0.display())]
    InUse(PathBuf),
    /// Two paths lead to one drive, or a directory was copied.
    #[error(
        "{first} and {second} are the same drive; name each drive once, and empty a directory that is a copy",
        first = .0.display(), second = .1.display()
    )]
    SameDrive(PathBuf, PathBuf),
    /// A file was written by a later version.
    #[error(
        "{path} has format version {version}, and this server knows versions up to {known}; start the newer server, \
         or give another directory. Nothing was changed",
        path = .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The newest that is understood here.
        known: u32,
    },
    /// io_uring was demanded and the kernel refuses it.
    #[error("io_uring is not to be had ({0}); allow it, or choose threads")]
    NoUring(String),
    /// No drive at all can be used.
    #[error("no drive can be used: {0}")]
    NoDrive(String),
    /// A thread could not be started, or the system has no randomness.
    #[error("the system refused {what}: {reason}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The system's answer.
        reason: std::io::Error,
    },
}
