//! Looking for pages whose bytes have changed.

use super::tiers::corrupt_on_drive;
use super::*;
use std::cell::Cell;
use std::ops::ControlFlow;

fn page(n: u8) -> Vec<u8> {
    (0..9000_u32).map(|at| (at / 50) as u8 ^ n).collect()
}

fn put_n(engine: &Engine, space: &Arc<Space>, n: u8) {
    assert_eq!(put(engine, space, &[n], &page(n)), Ok(Published::Stored));
}

/// Stores a page under the checksum of another one, as if its bytes had changed since.
fn put_wrong(engine: &Engine, space: &Arc<Space>, key: &[u8]) {
    let hashed = hashed(space, key);
    let mut filling = engine.reserve(space, hashed, 9000, 0).unwrap();
    filling.bytes_mut().fill(1);
    let meta = described(hashed, &[2; 9000]);
    let pretended = memkv_core::PageHasher::oneshot(hashed.digest, &[2; 9000]);
    filling.verify_streamed(meta, pretended).unwrap().publish(0);
}

fn all(engine: &Engine, space: Option<&Space>) -> VerifyReport {
    let request = VerifyRequest { space: space.map(Space::id), bytes_per_s: None };
    engine.verify(request, &|_| ControlFlow::Continue(()))
}

#[test]
fn a_check_takes_out_what_has_changed_in_memory() {
    let engine = engine(8 << 20);
    let (a, b) = (space(&engine, "a"), space(&engine, "b"));
    (0..50).for_each(|n| put_n(&engine, &a, n));
    put_wrong(&engine, &a, b"wrong");
    put_wrong(&engine, &b, b"wrong too");
    let report = all(&engine, Some(&a));
    assert_eq!((report.progress.dram_pages, report.progress.corrupt, report.stopped), (51, 1, false));
    assert_eq!(report.progress.bytes, 51 * 9000);
    assert!(!exists(&engine, &a, b"wrong") && exists(&engine, &b, b"wrong too"));
    let report = all(&engine, None);
    assert_eq!((report.progress.dram_pages, report.progress.corrupt), (51, 1));
    assert_eq!(report.progress.total_bytes, 51 * 9000);
    let found = engine.quarantined();
    assert_eq!((found.len(), &found[0].key[..], found[0].tier), (2, &b"wrong"[..], Tier::Dram));
    assert_eq!((engine.status().quarantined, engine.status().pages), (2, 50));
}

#[test]
fn a_check_takes_out_what_has_changed_on_a_drive() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    for n in 0..20 {
        put_n(&engine, &space, n);
        demote(&engine, &space, &[n]);
    }
    assert!(fetch(&engine, &space, &[3]).is_some());
    corrupt_on_drive(&tiered, &page(3));
    corrupt_on_drive(&tiered, &page(8));
    assert!(delete(&engine, &space, &[1]));
    let report = all(&engine, None);
    assert_eq!((report.progress.dram_pages, report.progress.nvme_pages, report.progress.corrupt), (1, 19, 2));
    assert_eq!(engine.quarantined().len(), 1, "the page in memory stays");
    assert!(!exists(&engine, &space, &[8]));
    assert_eq!(fetch(&engine, &space, &[3]).unwrap()[..], page(3));
    assert_eq!(engine.inspect(&space, hashed(&space, &[3])).unwrap().drive, None);
    assert_eq!(all(&engine, None).progress.corrupt, 0);
    // What has no copy on a drive any more is written again.
    demote(&engine, &space, &[3]);
    assert_eq!(fetch(&engine, &space, &[3]).unwrap()[..], page(3));
}

#[test]
fn whoever_watches_can_end_a_check() {
    let engine = engine(64 << 20);
    let space = space(&engine, "a");
    for n in 0..40_u8 {
        put(&engine, &space, &[n], &vec![n; 1 << 20]).unwrap();
    }
    let told = Cell::new(0);
    let report = engine.verify(VerifyRequest::default(), &|progress| {
        told.set(told.get() + 1);
        if progress.bytes >= 16 << 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(report.stopped);
    assert_eq!((told.get(), report.progress.bytes), (2, 16 << 20));
}

#[test]
fn the_scrubber_goes_on_where_it_was() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    for n in 0..30 {
        put_n(&engine, &space, n);
        if n < 10 {
            demote(&engine, &space, &[n]);
        }
    }
    put_wrong(&engine, &space, b"wrong");
    let (mut pages, mut corrupt, mut steps) = (0, 0, 0);
    loop {
        let step = engine.scrub(30_000);
        assert!(step.bytes <= 40_000, "a step is bounded: {step:?}");
        (pages, corrupt, steps) = (pages + step.pages, corrupt + step.corrupt, steps + 1);
        if step.pass_ended {
            break;
        }
        assert!(engine.status().scrub.permille <= 1000);
    }
    assert_eq!((pages, corrupt), (31, 1));
    assert!(steps >= 7, "{steps}");
    let status = engine.status().scrub;
    assert_eq!((status.passes, status.pages, status.corrupt, status.permille), (1, 31, 1, 0));
}
