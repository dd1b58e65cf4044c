//! Opens the store: sizes and places from the configuration, then the pages that an earlier process left.
//!
//! Meanwhile the server takes no requests; the log says now and then that it is still at it.

use crate::app::StartError;
use crate::config::storage::{Io, Numa, NvmeMode, Share, StorageConfig};
use crate::config::{Config, HugePages, units};
use memkv_storage::{DriveConfig, Engine, EngineConfig, IoChoice, NvmeConfig, RecoveryReport};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often a slow start says that it is still at it.
const PROGRESS: Duration = Duration::from_secs(2);

/// Opens the engine.
pub(crate) fn open(config: &Config) -> Result<Arc<Engine>, StartError> {
    let engine_config = engine_config(config)?;
    let outlives = config.storage.backing.is_some() || !config.storage.drives.is_empty();
    let (done, end) = sync_channel::<()>(0);
    let begun = Instant::now();
    let (resident, total) = (&AtomicU64::new(0), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while end.recv_timeout(PROGRESS) == Err(RecvTimeoutError::Timeout) {
                let seconds = begun.elapsed().as_secs();
                let (resident, total) = (resident.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
                if resident < total {
                    let (resident, of) = (units::show_size(resident >> 20 << 20), units::show_size(total));
                    tracing::info!(seconds, resident, of, "touching memory");
                } else {
                    let what = if outlives { "recovering pages" } else { "reserving memory" };
                    tracing::info!(seconds, "{what}");
                }
            }
        });
        let opened = Engine::open_watched(engine_config, &|touched, of| {
            resident.store(touched, Ordering::Relaxed);
            total.store(of, Ordering::Relaxed);
        });
        drop(done);
        let (engine, report) = opened?;
        if outlives {
            log_recovery(&report);
        }
        if let memkv_storage::Shared::No(why) = engine.status().memory.shared {
            tracing::info!(why, "clients on this host get pages through their sockets");
        }
        Ok(engine)
    })
}

fn log_recovery(report: &RecoveryReport) {
    tracing::info!(
        dram_pages = report.dram_pages,
        dram_unverified = report.dram_unclean,
        nvme_pages = report.nvme_pages,
        nvme_segments = report.nvme_segments,
        dropped_pages = report.dropped_pages,
        spaces = report.spaces,
        seconds = report.seconds,
        "recovered"
    );
}

pub(crate) fn engine_config(config: &Config) -> Result<EngineConfig, StartError> {
    let storage = &config.storage;
    Ok(EngineConfig {
        dram_bytes: config.dram_bytes,
        page_bytes_max: config.limits.page_bytes_max,
        spaces_max: config.limits.spaces_max,
        high_watermark: config.high_watermark,
        low_watermark: config.low_watermark,
        prefault: config.prefault,
        huge_pages: match config.huge_pages {
            HugePages::Auto => memkv_storage::HugePages::Auto,
            HugePages::Off => memkv_storage::HugePages::Off,
        },
        policy: storage.policy,
        backing: storage.backing.clone(),
        // Whoever maps the memory reads everybody's pages.
        share: match if config.credentials.is_some() { Share::Off } else { storage.share } {
            Share::Auto => memkv_storage::Share::Auto,
            Share::On => memkv_storage::Share::On,
            Share::Off => memkv_storage::Share::Off,
        },
        mlock: storage.mlock,
        numa: match storage.numa {
            Numa::Auto => memkv_storage::Numa::Auto,
            Numa::Off => memkv_storage::Numa::Off,
        },
        nvme: nvme_config(storage)?,
        pin_share: storage.pin_share,
        scrub_bytes_per_s: storage.scrub_bytes_per_s,
    })
}

fn nvme_config(storage: &StorageConfig) -> Result<Option<NvmeConfig>, StartError> {
    if storage.drives.is_empty() {
        return Ok(None);
    }
    let mut drives = Vec::with_capacity(storage.drives.len());
    for drive in &storage.drives {
        let quota_bytes = match drive.quota_bytes {
            Some(bytes) => bytes,
            None => most_of_file_system(&drive.path)?,
        };
        drives.push(DriveConfig { path: drive.path.clone(), quota_bytes });
    }
    Ok(Some(NvmeConfig {
        drives,
        segment_bytes: storage.segment_bytes,
        mode: match storage.nvme_mode {
            NvmeMode::Demote => memkv_storage::NvmeMode::Demote,
            NvmeMode::WriteThrough => memkv_storage::NvmeMode::WriteThrough,
        },
        io: match storage.nvme_io {
            Io::Auto => IoChoice::Auto,
            Io::Uring => IoChoice::Uring,
            Io::Threads => IoChoice::Threads,
        },
        queue_depth: storage.queue_depth,
        sync: storage.nvme_sync,
        admit_unread: storage.admit_unread,
    }))
}

/// Nine tenths of the file system that a directory is on, or will be.
fn most_of_file_system(path: &Path) -> Result<u64, StartError> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let stat = rustix::fs::statvfs(there)
        .map_err(|error| StartError::FileSystem { path: path.to_owned(), error: error.into() })?;
    let bytes = (stat.f_blocks.saturating_mul(stat.f_frsize) / 10 * 9) >> 20 << 20;
    tracing::info!(path = %path.display(), quota = units::show_size(bytes), "nine tenths of the file system");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_without_a_size_gets_most_of_its_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = most_of_file_system(&folder.path().join("not/there/yet")).unwrap();
        assert_eq!(bytes, most_of_file_system(folder.path()).unwrap());
        assert!(bytes > 1 << 20);
    }
}
