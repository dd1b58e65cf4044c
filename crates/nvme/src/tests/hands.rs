//! A log without threads, and drives that lose what they were not told to keep.

use super::bed::{Bed, SPACE, content, digest, names, strs};
use crate::{Dropped, Extent, FaultPlan, Gone, IoChoice, Log};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Gives the log turns until something is over.
fn turned<T>(log: &Log, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..100_000 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        log.turn();
    }
    panic!("turns do not help");
}

fn put(bed: &Bed, log: &Log, keys: &[&str], len: usize) -> Vec<Result<Extent, Dropped>> {
    let pages: Vec<_> = keys.iter().map(|key| bed.page(SPACE, key, len)).collect();
    let heads: Vec<_> = pages.iter().map(|page| page.head.clone()).collect();
    let results = turned(log, log.append(pages));
    let mut known = bed.holder.known.lock();
    for (head, result) in heads.into_iter().zip(&results) {
        if let Ok(extent) = result {
            known.pages.insert(head.digest, (head, *extent, 0));
        }
    }
    results
}

fn by_hand(sync: bool) -> (Bed, Arc<FaultPlan>) {
    let mut bed = Bed::in_memory(1, IoChoice::Threads);
    bed.config.by_hand = true;
    bed.config.sync = sync;
    let plan = bed.faults();
    plan.keep_unsynced();
    (bed, plan)
}

/// Opens what is there with threads, and tells which of the keys are found. Panics if one has wrong bytes.
fn found(bed: &mut Bed, keys: &[&str]) -> Vec<bool> {
    bed.config.by_hand = false;
    bed.config.faults = None;
    let (log, _) = bed.open();
    let found = keys.iter().map(|key| bed.has(&log, key)).collect();
    log.close();
    found
}

#[test]
fn turns_write_read_seal_and_give_back_without_threads() {
    let (mut bed, _) = by_hand(false);
    bed.config.drives[0].quota_bytes = 1 << 20;
    let (log, _) = bed.open();
    // Three times what fits, some of it wanted again.
    let keys = names("k", 150);
    for (number, key) in keys.iter().enumerate() {
        if number % 7 == 0 {
            bed.holder.known.lock().hot.insert(digest(SPACE, key));
        }
        assert!(put(&bed, &log, &[key], 20_000)[0].is_ok(), "{:?}", log.status());
    }
    let status = log.status();
    assert!(status.drives[0].reclaimed_segments > 0 && status.drives[0].reinserted_pages > 0, "{status:?}");
    let last = keys.last().unwrap();
    let (head, extent, _) = bed.holder.known.lock().pages[&digest(SPACE, last)].clone();
    let mut slot = turned(&log, log.read(extent, bed.slot(head.meta.len))).unwrap();
    assert_eq!(slot.bytes_mut(), content(last, 20_000));
    log.close();
    drop(log);
    assert!(found(&mut bed, &[last])[0]);
}

#[test]
fn what_was_acknowledged_outlives_the_process_and_with_sync_the_power() {
    for sync in [false, true] {
        for power in [false, true] {
            let (mut bed, plan) = by_hand(sync);
            let (log, _) = bed.open();
            let keys = names("k", 30);
            assert!(put(&bed, &log, &strs(&keys), 5000).iter().all(Result::is_ok));
            let gone = Gone { space: SPACE, digest: digest(SPACE, "k3") };
            bed.holder.known.lock().pages.remove(&gone.digest);
            turned(&log, log.delete(&[gone])).unwrap();
            // These are on their way when it ends.
            let late = bed.page(SPACE, "late", 60_000);
            let _ticket = log.append(vec![late]);
            log.turn();
            drop(log);
            let mut dice = 0_u64;
            let lost = if power {
                plan.lose_power(&mut || {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    dice >> 33
                })
            } else {
                Ok(0)
            };
            assert!(!power || sync || lost.unwrap() > 0);
            let found = found(&mut bed, &strs(&keys));
            if !power || sync {
                let missing: Vec<_> = (0..keys.len()).filter(|at| !found[*at]).collect();
                assert_eq!(missing, [3], "sync {sync}, power {power}");
            }
        }
    }
}

#[test]
fn a_power_loss_takes_back_what_was_not_synced_and_nothing_else() {
    let (mut bed, plan) = by_hand(false);
    let (log, _) = bed.open();
    let keys = names("k", 8);
    assert!(put(&bed, &log, &strs(&keys), 5000).iter().all(Result::is_ok));
    drop(log);
    // All of it: way 1 of `lose`.
    assert!(plan.lose_power(&mut || 1).unwrap() > 0);
    assert_eq!(found(&mut bed, &strs(&keys)), [false; 8]);
    let (mut bed, plan) = by_hand(true);
    let (log, _) = bed.open();
    assert!(put(&bed, &log, &strs(&keys), 5000).iter().all(Result::is_ok));
    drop(log);
    assert_eq!(plan.lose_power(&mut || 1).unwrap(), 0);
    assert_eq!(found(&mut bed, &strs(&keys)), [true; 8]);
}
