//! The NVMe tier: an append-only log of pages in segments on one or more drives.
//!
//! - [`Log`]: what the engine calls: append, read, delete, walk;
//! - [`Extent`]: where a page is, in one word;
//! - [`Owner`]: who points at pages, asked when a segment is given back;
//! - `format`: the byte tables of version 1; `members` and `spaces`: those of the two small files beside the segments.
//!
//! ```text
//!  callers ──append, read, delete──► inbox of a drive ──► writer thread ──► ring or threads ──► segment files
//!                                                            │   ▲
//!                                            full segments   │   │ spare segments, hot pages
//!                                                            ▼   │
//!                                                          keeper thread ──standing, moved, lost──► owner
//! ```
//!
//! Each drive has two threads. The writer starts operations and ends them, many at once, and never waits for a file to
//! be made, sealed or removed. That is the keeper's work, ahead of need. Drives share nothing but the sequence of
//! records and the list of who takes part.
//!
//! Invariants:
//! - a slot or pin that is lent to the kernel belongs to the operation until its completion was reaped;
//! - a page may be found only after its batch was written: extents are handed out by completions;
//! - segments are given back in the order of their making, so a deletion stays as long as the pages that it ends;
//! - the seal of a segment is written when all that it speaks of is on the drive;
//! - damage is a miss: no content of any file makes opening fail, except that it is of a later version;
//! - queues are bounded: bytes of pages, number of reads, number of deletions.
//!
//! # What survives
//!
//! | acknowledged | end of the process (`kill -9`) | crash of the system, power loss |
//! |---|---|---|
//! | page, with `sync` | survives | survives |
//! | page, without `sync` | survives | survives once its segment is sealed; before, it may be a miss |
//! | deletion, with `sync` | survives | survives |
//! | deletion, without `sync` | survives | survives once its segment is sealed; before, the page may come back |
//! | space description | survives | survives |
//!
//! "Acknowledged" means that [`Ticket`] or [`Recorded`] said so. A page that was not acknowledged may be found too, whole.
//! A page that was [released](Log::release) but not deleted may be found again. What survives may still be given back:
//! this is a cache. A power loss is survived as far as the drive keeps its word on flushes. Damage to the record of a
//! deletion, in a segment's batch and its footer both, brings the page back; damage to anything else does not.
//!
//! A drive that fails, or is missing at a start, is retired: its pages are dropped when it comes back, because some of
//! them may have been deleted meanwhile.
//!
//! Deliberately absent: the meaning of keys and values, an index (the engine has it), compression, checksums on reads
//! (the caller verifies, since it has the bytes in its hands anyway), raw block devices, and moving pages from one
//! drive to another.

#![deny(unsafe_code)]

mod batch;
mod buffer;
mod config;
mod disk;
mod drive;
mod extent;
mod faults;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "sim"))]
mod hands;
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
