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
//! - no call waits for another caller's page, and of the calls for pages only [`Engine::pin_batch`] and [`Engine::peek`]
//!   (for pages that are only on drives) and [`Engine::persist`] wait for I/O; a full store answers [`Refusal::Busy`];
//! - a page that was removed does not come back, also not after a restart, once [`Engine::settle_removals`] says so.
//!
//! Deliberately absent: clocks (time enters as milliseconds), networks, and threads but one: with drives, one thread
//! ends writes. The caller runs [`Engine::evict_round`] and [`Engine::scrub`].

#![forbid(unsafe_code)]

mod account;
mod batch;
mod check;
mod config;
mod drives;
mod durable;
mod engine;
mod evict;
mod get;
#[cfg(feature = "sim")]
mod hands;
mod index;
mod keep;
mod keys;
mod list;
#[cfg(feature = "measure")]
pub mod measure;
mod page;
mod peek;
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

pub use account::Usage;
pub use check::{ScrubStatus, ScrubStep, VerifyProgress, VerifyReport, VerifyRequest};
pub use config::{EngineConfig, EngineError, NvmeConfig, NvmeMode};
pub use durable::Persisted;
pub use engine::Engine;
pub use index::HashedKey;
pub use keep::{KeepReport, KeptInfo};
pub use list::{BadCursor, KeyInfo, Listing};
pub use memkv_eviction::{Moment, PolicyKind, UnknownPolicy};
pub use memkv_memory::{Backing, ClassStatus, HugePages, MemoryStatus, Numa, Share, Shared};
pub use memkv_nvme::{
    DriveConfig, DriveState, DriveStatus, DroppedCounts, IoBackend, IoChoice, LogStatus, SegmentState,
    SegmentStatus,
};
#[cfg(feature = "sim")]
pub use memkv_nvme::{FaultPlan, Kind as FaultKind};
pub use page::{Corrupt, Filling, PagePin, Published, Refusal, Sealed};
pub use peek::{NoPeek, Peeked};
pub use quarantine::QuarantinedInfo;
pub use space::{OpenSpaceError, Space, SpaceStats};
pub use status::{Cleared, Counters, EngineStatus, Evicted, NvmeStatus, RecoveryReport, Tier, TierStatus};
