//! Counters that transfers write and anybody reads, without locks.

use memkv_client::PageOutcome;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the tiers have done since they were made. Pages are counted once, at the end of what happened to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pages copied from the device to host memory.
    pub backed_up_pages: u64,
    /// Copies from the device that failed; their pages stay where they are, or are lost with write-back.
    pub failed_backups: u64,
    /// Copies for which write-back had no room; their pages are lost.
    pub dropped_backups: u64,
    /// Pages that went to the store.
    pub stored_pages: u64,
    /// Pages that the store had already.
    pub known_pages: u64,
    /// Pages that the store did not take, with those after them.
    pub unstored_pages: u64,
    /// Writes that did not begin because too many were waiting.
    pub dropped_stores: u64,
    /// Pages copied from host memory to the device.
    pub loaded_pages: u64,
    /// Loads that failed; their requests compute.
    pub failed_loads: u64,
    /// Loads that did not begin because too many were under way.
    pub refused_loads: u64,
    /// Prefetches that began to ask the store.
    pub prefetches: u64,
    /// Prefetches that did not begin because too many were under way or host memory was full.
    pub refused_prefetches: u64,
    /// Prefetches that ended because the store had too little.
    pub revoked_prefetches: u64,
    /// Prefetches that were stopped before all had come.
    pub stopped_prefetches: u64,
    /// Pages that the store was found to have.
    pub hit_pages: u64,
    /// Pages that came from the store into the cache.
    pub prefetched_pages: u64,
    /// Pages that came from the store for nothing: the cache had got them meanwhile.
    pub duplicate_pages: u64,
    /// Pages that were there a moment ago and no longer are.
    pub missed_pages: u64,
    /// Pages whose bytes did not match their checksum.
    pub corrupt_pages: u64,
    /// Pages whose server was not there.
    pub unavailable_pages: u64,
    /// Pages whose server did not answer in time.
    pub timed_out_pages: u64,
    /// Pages that were shed: refused by a server that is full or behind, or by the client because too much was on its way to
    /// one or it was too slow. [`memkv_client::ClientStats`] has them by reason.
    pub busy_pages: u64,
    /// Pages that failed for another reason: size, right, or a question that was not answered.
    pub other_failed_pages: u64,
    /// Steps in which the ranks could not agree.
    pub lost_agreements: u64,
}

/// A counter.
#[derive(Clone, Copy)]
pub(crate) enum Count {
    BackedUpPages,
    FailedBackups,
    DroppedBackups,
    StoredPages,
    KnownPages,
    UnstoredPages,
    DroppedStores,
    LoadedPages,
    FailedLoads,
    RefusedLoads,
    Prefetches,
    RefusedPrefetches,
    RevokedPrefetches,
    StoppedPrefetches,
    HitPages,
    PrefetchedPages,
    DuplicatePages,
    MissedPages,
    CorruptPages,
    UnavailablePages,
    TimedOutPages,
    BusyPages,
    OtherFailedPages,
    LostAgreements,
}

const COUNTS: usize = Count::LostAgreements as usize + 1;

#[derive(Default)]
pub(crate) struct Counters {
    values: [AtomicU64; COUNTS],
}

impl Counters {
    pub(crate) fn add(&self, count: Count, by: usize) {
        self.values[count as usize].fetch_add(by as u64, Relaxed);
    }

    /// Counts what did not come or go.
    pub(crate) fn add_failures(&self, outcomes: &[PageOutcome]) {
        for outcome in outcomes {
            let count = match outcome {
                PageOutcome::Hit | PageOutcome::Stored | PageOutcome::Exists => continue,
                PageOutcome::Miss => Count::MissedPages,
                PageOutcome::Corrupt => Count::CorruptPages,
                PageOutcome::Unavailable => Count::UnavailablePages,
                PageOutcome::TimedOut => Count::TimedOutPages,
                PageOutcome::Busy => Count::BusyPages,
                PageOutcome::SizeMismatch | PageOutcome::TooLarge | PageOutcome::Denied => {
                    Count::OtherFailedPages
                }
            };
            self.add(count, 1);
        }
    }

    pub(crate) fn read(&self) -> Stats {
        let of = |count: Count| self.values[count as usize].load(Relaxed);
        Stats {
            backed_up_pages: of(Count::BackedUpPages),
            failed_backups: of(Count::FailedBackups),
            dropped_backups: of(Count::DroppedBackups),
            stored_pages: of(Count::StoredPages),
            known_pages: of(Count::KnownPages),
            unstored_pages: of(Count::UnstoredPages),
            dropped_stores: of(Count::DroppedStores),
            loaded_pages: of(Count::LoadedPages),
            failed_loads: of(Count::FailedLoads),
            refused_loads: of(Count::RefusedLoads),
            prefetches: of(Count::Prefetches),
            refused_prefetches: of(Count::RefusedPrefetches),
            revoked_prefetches: of(Count::RevokedPrefetches),
            stopped_prefetches: of(Count::StoppedPrefetches),
            hit_pages: of(Count::HitPages),
            prefetched_pages: of(Count::PrefetchedPages),
            duplicate_pages: of(Count::DuplicatePages),
            missed_pages: of(Count::MissedPages),
            corrupt_pages: of(Count::CorruptPages),
            unavailable_pages: of(Count::UnavailablePages),
            timed_out_pages: of(Count::TimedOutPages),
            busy_pages: of(Count::BusyPages),
            other_failed_pages: of(Count::OtherFailedPages),
            lost_agreements: of(Count::LostAgreements),
        }
    }
}
