//! What is measured beside the passes: copies within one process, the server's memory, and what it does when idle.

use super::{Bench, speed};
use crate::machine;
use crate::subject::Kind;
use crate::workload::{self, Workload};
use anyhow::Context as _;
use std::time::{Duration, Instant};

const GROWTH_PAGE_BYTES: usize = 1 << 20;
const GROWTH_BATCH: usize = 32;

/// What the server's memory grows by for each byte stored, while the working set is stored in an empty server.
///
/// # Errors
///
/// If a page is not stored.
pub(super) fn growth(bench: &mut Bench) -> anyhow::Result<Option<f64>> {
    let count = bench.workload.bytes() / GROWTH_PAGE_BYTES;
    if count == 0 {
        return Ok(None);
    }
    let server = bench.daemon.pid();
    let keys = workload::keys("growth", count);
    let pages = bench.workload.source_pages(GROWTH_PAGE_BYTES, count);
    let ours = bench.subjects.iter_mut().find(|entry| entry.subject.kind() == Kind::Memkv);
    let ours = &mut *ours.context("no transport works here")?.subject;
    ours.put_pass(GROWTH_BATCH, &keys, &pages)?;
    let grown = machine::settled_resident_bytes(server).saturating_sub(bench.empty_bytes);
    ours.clear()?;
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    let ratio = grown as f64 / (count * GROWTH_PAGE_BYTES) as f64;
    Ok(Some(ratio))
}

/// Copies the working set on one thread, then on two.
pub(super) fn copy(workload: &mut Workload, speeds: &mut [Vec<f64>; 2], counts: bool) {
    let (source, target) = workload.halves();
    for (threads, speeds) in speeds.iter_mut().enumerate() {
        let part = source.len().div_ceil(threads + 1);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in source.chunks(part).zip(target.chunks_mut(part)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
        if counts {
            speeds.push(speed(source.len(), start));
        }
    }
}

/// Cores that the server uses while clients are connected and ask nothing.
///
/// # Errors
///
/// If the server has ended.
pub(super) fn idle(bench: &Bench) -> anyhow::Result<Option<f64>> {
    if bench.plan.idle_seconds <= 0.0 {
        return Ok(None);
    }
    let (server, start) = (bench.daemon.pid(), Instant::now());
    let before = machine::thread_time(server)?;
    std::thread::sleep(Duration::from_secs_f64(bench.plan.idle_seconds));
    let used = machine::thread_time(server)?.saturating_sub(before);
    Ok(Some(used.as_secs_f64() / start.elapsed().as_secs_f64()))
}
