//! The NVMe tier: an append-only log of pages in segments on one or more drives.

#![deny(unsafe_code)]

mod batch;
mod buffer;
mod config;
mod disk;
mod drive;
mod extent;
mod faults;
mod format;
mod head;
mod io;
mod keeper;
mod log;
mod members;
mod open;
mod reclaim;
mod recover;
mod scan;
mod segment;
mod spaces;
mod status;
mod ticket;
mod walk;
mod writer;

pub use config::{DriveConfig, IoChoice, LogConfig, LogError};
pub use extent::{BLOCK_BYTES, DRIVES_MAX, Extent, PAGE_BYTES_MAX, SEGMENT_BYTES_MAX};
#[cfg(any(test, feature = "testing"))]
pub use faults::{Fault, FaultPlan, FaultRule, Kind};
pub use head::{OwnedHead, PageHead};
pub use log::{Append, Gone, Log, Owner, Recovered, Standing};
pub use spaces::{decode as decode_spaces, encode as encode_spaces};
pub use status::{
    DriveState, DriveStatus, DroppedCounts, IoBackend, LogStatus, RecoveryReport, SegmentState, SegmentStatus,
};
pub use ticket::{Dropped, ReadError, Reading, Recorded, Ticket};
pub use walk::{Walk, Walked};

#[cfg(test)]
mod tests;
