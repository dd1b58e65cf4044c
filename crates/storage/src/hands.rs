//! Engines without threads, for simulations in one thread: whoever has one calls [`Engine::turn`] again and again.
//!
//! Dropping such an engine is the end of the process at that moment: what is in flight to a drive gets there in part, or
//! not at all. Only [`Engine::close`] waits for it.

use crate::config::{EngineConfig, EngineError};
use crate::engine::Engine;
use crate::status::RecoveryReport;
use memkv_nvme::FaultPlan;
use std::sync::Arc;

impl Engine {
    /// As [`Engine::open`], without threads. `faults` is what happens to the drives.
    ///
    /// # Errors
    ///
    /// As [`Engine::open`].
    pub fn open_by_hand(
        config: EngineConfig,
        faults: &Arc<FaultPlan>,
    ) -> Result<(Arc<Self>, RecoveryReport), EngineError> {
        Self::open_with(config, None, &|log| {
            log.by_hand = true;
            log.faults = Some(Arc::clone(faults));
        })
    }

    /// Does what the threads of the drives would have done by now. Only for an engine without threads.
    pub fn turn(&self) {
        if let Some(drives) = &self.state.drives {
            drives.log.turn();
            drives.writes.finish_by_hand(&self.state);
        }
    }

    /// Finishes what is in flight to the drives, and takes nothing more.
    pub(crate) fn end_writes_by_hand(&self) {
        let Some(drives) = self.state.drives.as_ref().filter(|drives| drives.writes.is_by_hand()) else {
            return;
        };
        drives.writes.close();
        while !drives.writes.finish_by_hand(&self.state) {
            drives.log.turn();
        }
    }
}
