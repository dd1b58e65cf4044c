//! What may happen to a page while it is on its way to a drive or back.

use super::*;
use std::task::{Context, Poll, Waker};

const LEN: usize = 20_000;

fn page(byte: u8) -> Vec<u8> {
    vec![byte; LEN]
}

/// A page that is being written: the drive holds the write back.
fn in_flight() -> (Tiered, Arc<Engine>, Arc<Space>) {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    // The first write of a segment is not a page's.
    put(&engine, &space, b"other", &page(9)).unwrap();
    demote(&engine, &space, b"other");
    put(&engine, &space, b"k", &page(1)).unwrap();
    tiered.faults.hold_writes();
    start_demotion(&engine, &space, b"k");
    assert_eq!(in_dram(&engine, &space, b"k"), Some(true), "it is read from memory until it is written");
    (tiered, engine, space)
}

/// Lets the write go and ends the process without a word; whether the page is there afterwards.
fn survives(tiered: &Tiered, engine: Arc<Engine>, key: &[u8]) -> Option<Vec<u8>> {
    tiered.faults.release();
    settle_writes(&engine);
    block_on(engine.settle_removals());
    assert_eq!(engine.status().nvme.unwrap().removals_failed, 0);
    drop(engine);
    let engine = tiered.open();
    let space = space(&engine, "a");
    assert_eq!(fetch(&engine, &space, b"other").unwrap()[..], page(9));
    fetch(&engine, &space, key).map(|pin| pin.to_vec())
}

#[test]
fn a_page_deleted_in_flight_stays_deleted() {
    let (tiered, engine, space) = in_flight();
    assert!(delete(&engine, &space, b"k"));
    assert!(fetch(&engine, &space, b"k").is_none());
    tiered.faults.release();
    settle_writes(&engine);
    assert!(!exists(&engine, &space, b"k"));
    assert_eq!(engine.status().used_slot_bytes, 0);
    assert_eq!(engine.status().tiers[1].pages, 1, "the record is not counted as live");
    assert_eq!(survives(&tiered, engine, b"k"), None);
}

#[test]
fn a_page_cleared_in_flight_stays_cleared() {
    let (tiered, engine, space) = in_flight();
    engine.clear(&space);
    put(&engine, &space, b"other", &page(9)).unwrap();
    tiered.faults.release();
    settle_writes(&engine);
    demote(&engine, &space, b"other");
    assert_eq!(survives(&tiered, engine, b"k"), None);
}

#[test]
fn a_page_quarantined_in_flight_stays_away() {
    let (tiered, engine, space) = in_flight();
    engine.quarantine(&space, hashed(&space, b"k"));
    assert_eq!(survives(&tiered, engine, b"k"), None);
}

#[test]
fn a_page_put_again_in_flight_is_the_new_one() {
    let (tiered, engine, space) = in_flight();
    assert!(delete(&engine, &space, b"k"));
    put(&engine, &space, b"k", &page(2)).unwrap();
    start_demotion(&engine, &space, b"k");
    tiered.faults.release();
    settle_writes(&engine);
    assert_eq!(in_dram(&engine, &space, b"k"), Some(false));
    assert_eq!(fetch(&engine, &space, b"k").unwrap()[..], page(2));
    assert_eq!(survives(&tiered, engine, b"k"), Some(page(2)));
}

#[test]
fn a_page_read_in_flight_stays_in_memory_and_is_on_the_drive() {
    let (tiered, engine, space) = in_flight();
    let pin = fetch(&engine, &space, b"k").unwrap();
    tiered.faults.release();
    settle_writes(&engine);
    let info = engine.inspect(&space, hashed(&space, b"k")).unwrap();
    assert_eq!((info.in_dram, info.drive), (true, Some(0)));
    assert_eq!(pin[..], page(1));
    drop(pin);
    assert_eq!(engine.status().counters.evicted_pages, 1, "only the other page was evicted");
    assert_eq!(survives(&tiered, engine, b"k"), Some(page(1)));
}

#[test]
fn a_page_in_flight_is_not_chosen_again() {
    let (tiered, engine, space) = in_flight();
    let backlog = engine.status().nvme.unwrap().backlog_bytes;
    start_demotion(&engine, &space, b"k");
    assert_eq!(engine.status().nvme.unwrap().backlog_bytes, backlog);
    tiered.faults.release();
    settle_writes(&engine);
    assert_eq!(engine.status().nvme.unwrap().log.drives[0].writes, 2);
}

#[test]
fn a_put_that_waits_joins_the_write_in_flight() {
    let mut tiered = Tiered::new();
    tiered.nvme().mode = NvmeMode::WriteThrough;
    let engine = tiered.open();
    let space = space(&engine, "a");
    put(&engine, &space, b"k", &page(1)).unwrap();
    tiered.faults.hold_writes();
    start_demotion(&engine, &space, b"k");
    let keys = [hashed(&space, b"k")];
    let mut first = Box::pin(engine.persist(&space, &keys));
    let mut second = Box::pin(engine.persist(&space, &keys));
    let mut context = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(second.as_mut().poll(&mut context).is_pending());
    // Whoever goes away does not take the write along.
    drop(first);
    tiered.faults.release();
    assert_eq!(block_on(second), Persisted { durable: 1, dropped: 0 });
    assert_eq!(engine.status().nvme.unwrap().log.drives[0].writes, 1);
}

#[test]
fn a_page_deleted_while_its_put_waits_is_gone_for_good() {
    let mut tiered = Tiered::new();
    tiered.nvme().mode = NvmeMode::WriteThrough;
    let engine = tiered.open();
    let space = space(&engine, "a");
    let keys = [hashed(&space, b"k"), hashed(&space, b"other")];
    put(&engine, &space, b"k", &page(1)).unwrap();
    put(&engine, &space, b"other", &page(9)).unwrap();
    tiered.faults.hold_writes();
    let mut wait = Box::pin(engine.persist(&space, &keys));
    assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(delete(&engine, &space, b"k"));
    tiered.faults.release();
    assert_eq!(block_on(wait), Persisted { durable: 1, dropped: 1 });
    assert_eq!(survives(&tiered, engine, b"k"), None);
}

#[test]
fn a_deleted_page_that_had_no_entry_stays_deleted_too() {
    let (tiered, engine, space) = in_flight();
    tiered.faults.release();
    settle_writes(&engine);
    // The index loses the page as if its copy had been given up, but the record is still there.
    let place =
        engine.state.index.shard_for(hashed(&space, b"k").digest).find(&space, hashed(&space, b"k")).unwrap();
    let mut shard = engine.state.index.shard_for(hashed(&space, b"k").digest);
    let removed = shard.remove_from(&space, hashed(&space, b"k"), place).unwrap();
    engine.state.retire(&space, &removed, &mut Vec::new());
    drop(shard);
    assert!(!delete(&engine, &space, b"k"));
    assert_eq!(survives(&tiered, engine, b"k"), None);
}

#[test]
fn a_dropped_get_leaves_nothing_behind() {
    let (tiered, engine, space) = in_flight();
    tiered.faults.release();
    settle_writes(&engine);
    let keys = [hashed(&space, b"k")];
    for _ in 0..50 {
        let mut pins = Vec::new();
        let mut get = Box::pin(engine.pin_batch(&space, &keys, 0, &mut pins));
        if let Poll::Ready(()) = get.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            drop(get);
            pins.clear();
            start_demotion(&engine, &space, b"k");
        }
    }
    assert_eq!(fetch(&engine, &space, b"k").unwrap()[..], page(1));
    // A read that nobody waits for gives its slot back when the drive is done with it.
    while engine.status().used_slot_bytes != 20_480 {
        std::thread::yield_now();
    }
    assert_eq!(engine.status().nvme.unwrap().reading_bytes, 0);
}

#[test]
fn a_get_that_follows_another_takes_over_when_that_one_ends() {
    let (tiered, engine, space) = in_flight();
    tiered.faults.release();
    settle_writes(&engine);
    let drives = engine.state.drives.as_ref().unwrap();
    let keys = [hashed(&space, b"k")];
    let Some(crate::index::Place::Drive(extent)) =
        engine.state.index.shard_for(keys[0].digest).find(&space, keys[0])
    else {
        panic!("it is on the drive")
    };
    let crate::drives::read::Role::Reader(flight) = drives.reads.role(extent.to_bits()) else {
        panic!("idle")
    };
    let mut pins = Vec::new();
    let mut get = Box::pin(engine.pin_batch(&space, &keys, 0, &mut pins));
    assert!(get.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(engine.status().nvme.unwrap().log.drives[0].reads, 0);
    drop(flight);
    block_on(get);
    assert_eq!(pins[0].as_deref(), Some(&page(1)[..]));
}

#[test]
fn a_page_deleted_while_it_is_read_is_a_miss() {
    let (tiered, engine, space) = in_flight();
    tiered.faults.release();
    settle_writes(&engine);
    let keys = [hashed(&space, b"k")];
    let mut pins = Vec::new();
    let mut get = Box::pin(engine.pin_batch(&space, &keys, 0, &mut pins));
    let early = get.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    assert!(delete(&engine, &space, b"k"));
    if !early {
        block_on(get);
        assert!(pins[0].is_none());
    }
    assert_eq!(fetch(&engine, &space, b"k").map(|_| ()), None);
}

#[test]
fn pages_on_their_way_to_a_drive_count_as_free_already() {
    let (tiered, engine, space) = in_flight();
    // More than the high mark: 8 MiB of slots of 20 KiB.
    let mut stored = 0_u32;
    while engine.status().used_slot_bytes < (8 << 20) * 99 / 100 {
        put(&engine, &space, &stored.to_le_bytes(), &page(3)).unwrap();
        stored += 1;
    }
    let flying = || engine.state.drives.as_ref().unwrap().writes.bytes();
    let before = flying();
    engine.evict_round(1);
    let first = flying();
    engine.evict_round(2);
    let second = flying();
    // Before anything can panic: an engine is not dropped while its drive holds writes back.
    tiered.faults.release();
    settle_writes(&engine);
    // From 99 % to the low mark of 90 %, and not again for each look at what is still in memory.
    assert!(first > before && first - before < (8 << 20) / 10, "{before} to {first}");
    assert_eq!(second, first, "the next one knows that the room is on its way");
}

/// A removal takes a page out of the index and has the log note it while no append can slip in between.
#[test]
fn a_removal_holds_off_appends_from_the_index_to_its_note() {
    type Remove = fn(&Engine, &Arc<Space>);
    let removals: [Remove; 3] = [
        |engine, space| assert!(delete(engine, space, b"k")),
        |engine, space| assert_eq!(engine.clear(space).pages, 1),
        |engine, space| engine.quarantine(space, hashed(space, b"k")),
    ];
    for remove in removals {
        let tiered = Tiered::new();
        let engine = tiered.open();
        let space = space(&engine, "a");
        put(&engine, &space, b"k", &page(1)).unwrap();
        let order = &engine.state.drives.as_ref().unwrap().order;
        // The removal cannot look at the index while this shard is locked.
        let shard = engine.state.index.shard_for(hashed(&space, b"k").digest);
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| remove(&engine, &space));
            let holds_off = comes_true(|| order.is_locked_exclusive());
            assert!(!removal.is_finished(), "it waits for the shard");
            drop(shard);
            assert!(holds_off, "the index is changed while an append may be looking at it");
        });
        assert!(!exists(&engine, &space, b"k"));
    }
}

/// Whether something comes true within ten seconds.
fn comes_true(is: impl Fn() -> bool) -> bool {
    (0..10_000).any(|_| {
        std::thread::park_timeout(std::time::Duration::from_millis(1));
        is()
    })
}
