//! What outlives the process: writing pages through to a drive, waiting for removals to be noted there, and the end.

use crate::config::NvmeMode;
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
    /// With [`NvmeMode::WriteThrough`]: writes pages that were just published to a drive, and completes when each of
    /// them is there or was dropped. Otherwise completes at once with nothing done.
    ///
    /// For a server to call once for each put request, before it acknowledges. Dropping the future does not stop the
    /// writes.
    pub async fn persist(&self, space: &Space, keys: &[HashedKey<'_>]) -> Persisted {
        let drives = self.state.drives.as_ref().filter(|drives| drives.mode == NvmeMode::WriteThrough);
        let Some(drives) = drives else { return Persisted::default() };
        let (durable, dropped) = self.state.persist(drives, space, keys).await;
        Persisted { durable, dropped }
    }

    /// Completes when every removal (delete, clear, quarantine) that was done before the call is noted on the drives,
    /// so that no removed page comes back after a crash. At once without drives.
    pub async fn settle_removals(&self) {
        if let Some(drives) = &self.state.drives {
            drives.settle().await;
        }
    }

    /// Ends the engine after the last request: finishes the writes that have begun, and marks what outlives the
    /// process as whole. Afterwards nothing is stored any more and pages on drives are misses. Blocks.
    pub fn close(&self) {
        self.state.close();
        #[cfg(feature = "sim")]
        self.end_writes_by_hand();
        self.end_writes();
        if let Some(drives) = &self.state.drives {
            drives.log.close();
        }
        if let Err(error) = self.state.arena.close() {
            tracing::warn!(%error, "the memory's file could not be marked as whole; its pages will be verified");
        }
    }

    /// Lets the writes end that are in flight, and begins no others.
    fn end_writes(&self) {
        let Some(drives) = &self.state.drives else { return };
        drives.writes.close();
        let finisher = self.finisher.lock().take();
        if finisher.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that ends writes has panicked");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end_writes();
    }
}
