//! The storage engine: which pages are here, where they rest, and which go when room is needed.
//!
//! ```text
//!            reserve            verify             publish          evict, delete, clear     last pin
//!  (absent) ────────► Filling ────────► Sealed ───────────► in the index ───────────► doomed ───────► free
//!                        └── drop ─────────┴── drop ──────────────────────────────────────────────────► free
//! ```
//!
//! - [`Engine`]: everything the server calls;
//! - [`Filling`], [`Sealed`]: a page on its way in, visible to nobody;
//! - [`PagePin`]: a page on its way out, whose bytes cannot change or move;
//! - [`Space`]: what a key is relative to.
//!
//! Invariants:
//! - a page is visible only whole and verified, and never changes; the first writer of a key wins;
//! - a page's bytes stay as they are while anyone holds a pin, whatever happens to its key;
//! - no call waits for I/O or for another caller's page; a full store answers [`Refusal::Busy`].
//!
//! Deliberately absent: clocks (time enters as milliseconds), threads (the caller runs
//! [`Engine::evict_round`]), networks, and any tier but memory so far: [`Engine::pin_batch`] is async so that a
//! tier on disk can come without a change for callers.

#![forbid(unsafe_code)]

mod batch;
mod check;
mod config;
mod drives;
mod durable;
mod engine;
mod evict;
mod get;
mod index;
mod keep;
mod keys;
mod list;
#[cfg(feature = "measure")]
pub mod measure;
mod page;
mod policy;
mod pressure;
mod quarantine;
mod recovery;
mod report;
mod space;
mod spaces_file;
mod state;
mod status;
#[cfg(test)]
mod tests;

pub use check::{ScrubStatus, ScrubStep, VerifyProgress, VerifyReport, VerifyRequest};
pub use config::{EngineConfig, EngineError, NvmeConfig, NvmeMode};
pub use durable::Persisted;
pub use engine::Engine;
pub use index::HashedKey;
pub use keep::{KeepReport, KeptInfo};
pub use list::{BadCursor, KeyInfo, Listing};
pub use memkv_eviction::{PolicyKind, UnknownPolicy};
pub use memkv_memory::{Backing, ClassStatus, HugePages, MemoryStatus, Numa};
pub use memkv_nvme::{
    DriveConfig, DriveState, DriveStatus, DroppedCounts, IoBackend, IoChoice, LogStatus, SegmentState,
    SegmentStatus,
};
pub use page::{Corrupt, Filling, PagePin, Published, Refusal, Sealed};
pub use quarantine::QuarantinedInfo;
pub use space::{OpenSpaceError, Space, SpaceStats};
pub use status::{Cleared, Counters, EngineStatus, Evicted, NvmeStatus, RecoveryReport, Tier, TierStatus};
