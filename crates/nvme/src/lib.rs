//! The NVMe tier: an append-only log of pages in segments on one or more drives.

#![deny(unsafe_code)]

mod config;
mod extent;
mod head;
mod log;
mod status;
mod ticket;
mod walk;

pub use config::{DriveConfig, IoChoice, LogConfig, LogError};
pub use extent::{BLOCK_BYTES, DRIVES_MAX, Extent, PAGE_BYTES_MAX, SEGMENT_BYTES_MAX};
pub use head::{OwnedHead, PageHead};
pub use log::{Append, Gone, Log, Owner, Recovered, Standing};
pub use status::{
    DriveState, DriveStatus, DroppedCounts, IoBackend, LogStatus, RecoveryReport, SegmentState, SegmentStatus,
};
pub use ticket::{Dropped, ReadError, Reading, Recorded, Ticket};
pub use walk::{Walk, Walked};

#[cfg(any(test, feature = "testing"))]
mod faults;
#[cfg(any(test, feature = "testing"))]
pub use faults::FaultPlan;
