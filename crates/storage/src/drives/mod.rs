//! The tier on drives: between the engine and the [log](memkv_nvme).
//!
//! - [`write`]: pages on their way to a drive, demoted or written through;
//! - [`read`]: pages on their way back;
//! - [`owner`]: what the log asks and tells when it gives segments back or loses a drive.
//!
//! # Removals and writes
//!
//! A removal (delete, clear, quarantine) takes pages out of the index and then has the log note it. The log promises
//! that what was appended before the note does not come back after a restart, and what is appended later does. So
//! between a write's look at the index and its append no removal may slip in, and between a removal and its note no
//! append of a new page with the same key. [`Drives::order`] sees to both: writes hold it shared, removals alone.
//!
//! Every key that is asked to be removed is noted, also one without a page: a drive may hold a record that the index
//! no longer points at, and that record must not come back either.
//!
//! Order of locks: `order`, then a shard, then those in here. The log is called without a shard locked, and calls the
//! [`owner`] without any lock of its own that its callers take.

pub(crate) mod owner;
pub(crate) mod read;
pub(crate) mod write;

use crate::config::{NvmeConfig, NvmeMode};
use crate::index::HashedKey;
use crate::status::NvmeStatus;
use memkv_core::SpaceId;
use memkv_nvme::{DriveState, Gone, Log, Recorded};
use parking_lot::{Mutex, RwLock};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

/// So many removals may wait to be noted before those that were are looked for.
const REMOVALS_SWEEP: usize = 64;

/// The drives of one engine.
pub(crate) struct Drives {
    pub(crate) log: Arc<Log>,
    pub(crate) mode: NvmeMode,
    pub(crate) admit_unread: bool,
    /// Held shared from a look at the index to the append, alone from a removal to its note.
    pub(crate) order: RwLock<()>,
    pub(crate) writes: Arc<write::Writes>,
    pub(crate) reads: read::Reads,
    removals: Removals,
}

/// Removals whose notes are on their way to the drives.
#[derive(Default)]
struct Removals {
    fresh: Mutex<Vec<Recorded>>,
    /// Those that somebody waits for; whoever waits holds the lock.
    awaited: tokio::sync::Mutex<Vec<Recorded>>,
    failed: AtomicU64,
}

impl Removals {
    fn add(&self, recorded: Recorded) {
        let mut fresh = self.fresh.lock();
        fresh.push(recorded);
        if fresh.len() >= REMOVALS_SWEEP {
            let mut context = Context::from_waker(Waker::noop());
            fresh.retain_mut(|recorded| match Future::poll(Pin::new(recorded), &mut context) {
                std::task::Poll::Pending => true,
                std::task::Poll::Ready(result) => {
                    self.failed.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
                    false
                }
            });
        }
    }

    async fn settle(&self) {
        let mut awaited = self.awaited.lock().await;
        awaited.append(&mut self.fresh.lock());
        // One that was waited for is dropped only then: if this future ends early, the next waiter goes on.
        while let Some(recorded) = awaited.last_mut() {
            let result = recorded.await;
            self.failed.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
            awaited.pop();
        }
    }
}

impl Drives {
    pub(crate) fn new(
        log: Arc<Log>,
        config: &NvmeConfig,
        (dram_bytes, page_bytes_max): (u64, u32),
        by_hand: bool,
    ) -> Self {
        let drives = u64::try_from(config.drives.len()).unwrap_or(1);
        Self {
            log,
            mode: config.mode,
            admit_unread: config.admit_unread,
            order: RwLock::new(()),
            writes: Arc::new(write::Writes::new(dram_bytes, page_bytes_max, drives, by_hand)),
            reads: read::Reads::new(dram_bytes, page_bytes_max),
            removals: Removals::default(),
        }
    }

    /// Has the log note that keys were removed. The caller holds `order`.
    pub(crate) fn forget(&self, space: SpaceId, keys: &[HashedKey<'_>]) {
        let gone: Vec<_> = keys.iter().map(|key| Gone { space, digest: key.digest }).collect();
        self.removals.add(self.log.delete(&gone));
    }

    /// Has the log note that a space was cleared. The caller holds `order`.
    pub(crate) fn forget_space(&self, space: SpaceId) {
        self.removals.add(self.log.clear_space(space));
    }

    /// Waits until all removals so far are noted.
    pub(crate) async fn settle(&self) {
        self.removals.settle().await;
    }

    pub(crate) fn status(&self) -> NvmeStatus {
        NvmeStatus {
            mode: self.mode,
            admit_unread: self.admit_unread,
            backlog_bytes: self.writes.bytes(),
            reading_bytes: self.reads.bytes(),
            removals_failed: self.removals.failed.load(Ordering::Relaxed),
            log: self.log.status(),
        }
    }

    /// What is broken, for people.
    pub(crate) fn degraded(&self) -> Vec<String> {
        let failed = |drive: memkv_nvme::DriveStatus| match drive.state {
            DriveState::Failed(why) => {
                Some(format!("drive {} is out of use: {why}; its pages are misses", drive.path.display()))
            }
            DriveState::Ok | DriveState::Full => None,
        };
        self.log.status().drives.into_iter().filter_map(failed).collect()
    }
}
