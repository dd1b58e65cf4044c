//! Pages by RDMA that the server issues: it writes pages into the client's registered memory, and reads them from there.
//!
//! - [`nics`]: the NICs and the memory for pages, from start to end;
//! - [`regions`]: which of a client's memory may be named;
//! - [`session`]: queue pairs on their way to a connection;
//! - [`plan`]: the work of one request;
//! - [`queue`]: carries it out.
//!
//! Invariants:
//! - no key of ours leaves the server: nothing of it is registered for remote access;
//! - nothing is posted that does not lie inside regions which the client registered;
//! - pins and slots are given back only when their work has completed or its queue pair is destroyed.
//!
//! Deliberately absent: what a request means; that is the desk's.

#[allow(unsafe_code, reason = "registers the memory for pages")]
pub(crate) mod nics;
mod plan;
#[allow(unsafe_code, reason = "work requests name memory by address")]
pub(crate) mod queue;
mod regions;
pub(crate) mod session;

pub(crate) use nics::Nics;
pub(crate) use queue::Queue;
pub(crate) use session::SessionRdma;

/// Reads a message about a region; `None` if it makes no sense, else whether `len` bytes at `offset` are inside.
#[cfg(feature = "fuzzing")]
pub(crate) fn reads_region(message: memkv_proto::v1::RegisterRegion, offset: u64, len: u32) -> Option<bool> {
    Some(regions::ClientRegion::read(message).ok()?.is_sound(offset, len))
}
