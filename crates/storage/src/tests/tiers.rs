//! Pages between memory and drives, one rule each.

use super::*;
use memkv_nvme::{Fault, FaultRule, Kind};

const LEN: usize = 70_000;

fn page(n: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at / 256) as u8 ^ n).collect()
}

fn put_n(engine: &Engine, space: &Arc<Space>, n: u8) {
    assert_eq!(put_at(engine, space, &[n], &page(n), (u32::from(n), 5000)), Ok(Published::Stored));
}

#[test]
fn a_page_goes_to_a_drive_and_comes_back_whole() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    put_n(&engine, &space, 7);
    demote(&engine, &space, &[7]);
    let info = engine.inspect(&space, hashed(&space, &[7])).unwrap();
    assert_eq!((info.in_dram, info.drive, info.slot_bytes, info.meta.len), (false, Some(0), 0, 70_000));
    assert_eq!((info.position, info.created_ms, &info.key[..]), (7, 5000, &[7][..]));
    assert_eq!(engine.list(&space, b"", 10, b"").unwrap().entries, std::slice::from_ref(&info));
    let status = engine.status();
    assert_eq!((status.used_slot_bytes, status.pages, status.page_bytes), (0, 1, 70_000));
    assert_eq!((space.stats().drive_pages, space.stats().drive_bytes), (1, 70_000));
    assert_eq!((status.tiers[0].pages, status.tiers[1].pages), (0, 1));
    assert_eq!((status.counters.demoted_pages, status.counters.evicted_pages), (1, 1));
    assert!(exists(&engine, &space, &[7]));
    assert_eq!(engine.reserve(&space, hashed(&space, &[7]), 5, 0).unwrap_err(), Refusal::Exists);

    let pin = fetch(&engine, &space, &[7]).unwrap();
    assert_eq!((pin[..].to_vec(), pin.meta()), (page(7), info.meta));
    let back = engine.inspect(&space, hashed(&space, &[7])).unwrap();
    assert_eq!((back.in_dram, back.drive, back.position, back.hits), (true, Some(0), 7, 1));
    let status = engine.status();
    assert_eq!((status.counters.promoted_pages, space.stats().drive_pages), (1, 0));
    assert_eq!((status.tiers[0].pages, status.tiers[0].hits, status.tiers[1].hits), (1, 0, 1));
    drop(pin);
    // It is on the drive already: no second write.
    start_demotion(&engine, &space, &[7]);
    assert_eq!(in_dram(&engine, &space, &[7]), Some(false));
    assert_eq!(engine.status().nvme.unwrap().log.drives[0].writes, 1);
    assert_eq!(fetch(&engine, &space, &[7]).unwrap()[..], page(7));
}

#[test]
fn a_batch_takes_pages_from_both_tiers_and_each_once() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    for n in 0..40 {
        put_n(&engine, &space, n);
        if n % 2 == 0 {
            demote(&engine, &space, &[n]);
        }
    }
    // Every key twice, and one that is not there.
    let names: Vec<[u8; 1]> = (0..40).chain(0..40).chain([99]).map(|n| [n]).collect();
    let keys: Vec<_> = names.iter().map(|name| hashed(&space, name)).collect();
    let mut pins = Vec::new();
    block_on(engine.pin_batch(&space, &keys, 9, &mut pins));
    for (pin, [n]) in pins.iter().zip(&names) {
        assert_eq!(pin.as_deref().map(<[u8]>::to_vec), (*n < 40).then(|| page(*n)), "{n}");
    }
    assert_eq!(engine.status().nvme.unwrap().log.drives[0].reads, 20, "a page is read once for the batch");
    assert_eq!((space.stats().get_keys, space.stats().get_hits), (81, 80));
}

#[test]
fn pages_that_nobody_read_are_not_written_unless_asked() {
    let mut tiered = Tiered::new();
    tiered.nvme().admit_unread = false;
    let engine = tiered.open();
    let space = space(&engine, "a");
    put_n(&engine, &space, 1);
    put_n(&engine, &space, 2);
    assert!(fetch(&engine, &space, &[2]).is_some());
    demote(&engine, &space, &[1]);
    demote(&engine, &space, &[2]);
    assert_eq!((in_dram(&engine, &space, &[1]), in_dram(&engine, &space, &[2])), (None, Some(false)));
    let counters = engine.status().counters;
    assert_eq!((counters.demote_unread, counters.demoted_pages, counters.demote_dropped), (1, 1, 0));
}

#[test]
fn eviction_fills_the_drive_instead_of_forgetting() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    // Three times the memory.
    for n in 0..240 {
        while put_at(&engine, &space, &[n], &page(n), (0, u64::from(n))) == Err(Refusal::Busy) {
            std::thread::yield_now();
        }
        engine.evict_round(u64::from(n));
        settle_writes(&engine);
    }
    let counters = engine.status().counters;
    assert_eq!((counters.evicted_inline, counters.demote_dropped), (0, 0));
    assert!(counters.demoted_pages > 120, "{counters:?}");
    for n in 0..240 {
        assert_eq!(fetch(&engine, &space, &[n]).unwrap()[..], page(n), "{n}");
        engine.evict_round(1000 + u64::from(n));
        settle_writes(&engine);
    }
    assert_eq!(engine.status().counters.demote_dropped, 0);
}

#[test]
fn a_reservation_that_makes_its_own_room_does_not_wait_for_the_drive() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    tiered.faults.hold_writes();
    for n in 0..150 {
        put_n(&engine, &space, n);
    }
    let counters = engine.status().counters;
    assert!(
        counters.evicted_inline > 0 && counters.demote_dropped == counters.evicted_inline,
        "{counters:?}"
    );
    tiered.faults.release();
}

#[test]
fn eviction_drops_what_a_stuck_drive_does_not_take() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    tiered.faults.hold_writes();
    for n in 0..250 {
        put_at(&engine, &space, &[n], &page(n), (0, u64::from(n))).ok();
        engine.evict_round(u64::from(n));
    }
    let status = engine.status();
    assert!(status.counters.demote_dropped > 50, "{:?}", status.counters);
    let nvme = status.nvme.unwrap();
    assert!(nvme.backlog_bytes <= (1 << 20) + (16 << 20), "{}", nvme.backlog_bytes);
    tiered.faults.release();
    settle_writes(&engine);
    let there = (0..250_u8).filter(|&n| exists(&engine, &space, &[n])).collect::<Vec<_>>();
    for n in there {
        assert_eq!(fetch(&engine, &space, &[n]).unwrap()[..], page(n), "{n}");
    }
}

#[test]
fn write_through_is_on_the_drive_before_the_acknowledgement() {
    let mut tiered = Tiered::new();
    tiered.nvme().mode = NvmeMode::WriteThrough;
    let engine = tiered.open();
    let space = space(&engine, "a");
    let names: Vec<[u8; 1]> = (0..20).map(|n| [n]).collect();
    let keys: Vec<_> = names.iter().map(|name| hashed(&space, name)).collect();
    (0..20).for_each(|n| put_n(&engine, &space, n));
    assert_eq!(block_on(engine.persist(&space, &keys)), Persisted { durable: 20, dropped: 0 });
    assert_eq!(block_on(engine.persist(&space, &keys)), Persisted { durable: 20, dropped: 0 });
    let status = engine.status();
    assert_eq!((status.counters.persisted_pages, status.nvme.unwrap().log.drives[0].writes), (20, 20));
    assert_eq!(in_dram(&engine, &space, &[3]), Some(true));
    let absent = hashed(&space, b"absent");
    assert_eq!(block_on(engine.persist(&space, &[absent])), Persisted { durable: 0, dropped: 1 });
    // The process ends here, without a word.
    drop(engine);
    let (engine, report) = tiered.open_reported();
    assert_eq!(report.nvme_pages, 20);
    let space = super::space(&engine, "a");
    (0..20).for_each(|n| assert_eq!(fetch(&engine, &space, &[n]).unwrap()[..], page(n)));
}

#[test]
fn demote_mode_acknowledges_without_the_drive() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    put_n(&engine, &space, 1);
    let key = [1];
    assert_eq!(at_once(engine.persist(&space, &[hashed(&space, &key)])), Persisted::default());
    assert_eq!(engine.status().nvme.unwrap().log.drives[0].writes, 0);
}

#[test]
fn no_memory_is_a_miss_and_the_page_stays() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    let page = vec![3; 256 << 10];
    put(&engine, &space, b"wanted", &page).unwrap();
    demote(&engine, &space, b"wanted");
    for n in 0..32_u8 {
        put(&engine, &space, &[n], &page).unwrap();
    }
    let held: Vec<_> = (0..32).map(|n| fetch(&engine, &space, &[n]).unwrap()).collect();
    assert!(fetch(&engine, &space, b"wanted").is_none());
    assert_eq!(engine.status().counters.promote_busy, 1);
    drop(held);
    assert_eq!(fetch(&engine, &space, b"wanted").unwrap()[..], page);
}

#[test]
fn wrong_bytes_on_a_drive_are_a_miss_and_quarantined() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    for n in 1..4 {
        put_n(&engine, &space, n);
        demote(&engine, &space, &[n]);
    }
    corrupt_on_drive(&tiered, &page(2));
    assert!(fetch(&engine, &space, &[2]).is_none());
    let found = engine.quarantined();
    assert_eq!((found.len(), found[0].tier, &found[0].key[..]), (1, Tier::Nvme, &[2][..]));
    let status = engine.status();
    assert_eq!((status.quarantined, status.counters.corrupt, status.pages), (1, 1, 2));
    put_n(&engine, &space, 2);
    for n in 1..4 {
        assert_eq!(fetch(&engine, &space, &[n]).unwrap()[..], page(n));
    }
}

/// Changes one byte of a page wherever it is on a drive.
pub(crate) fn corrupt_on_drive(tiered: &Tiered, page: &[u8]) {
    let mut changed = 0;
    for drive in std::fs::read_dir(tiered.directory.path()).unwrap() {
        for file in std::fs::read_dir(drive.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.chunks_exact(4096).position(|block| page.starts_with(block));
            if let Some(at) = at {
                bytes[at * 4096 + 100] ^= 1;
                std::fs::write(&path, bytes).unwrap();
                changed += 1;
            }
        }
    }
    assert_eq!(changed, 1);
}

#[test]
fn a_page_that_cannot_be_read_can_be_put_again() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    put_n(&engine, &space, 1);
    demote(&engine, &space, &[1]);
    let fault = Fault::Errno(5);
    tiered.faults.add(FaultRule { drive: None, kind: Some(Kind::Read), skip: 0, times: 1, fault });
    assert!(fetch(&engine, &space, &[1]).is_none());
    assert_eq!(engine.status().counters.drive_read_errors, 1);
    tiered.faults.heal();
    put_n(&engine, &space, 1);
    assert_eq!(fetch(&engine, &space, &[1]).unwrap()[..], page(1));
}

#[test]
fn a_failed_drive_is_misses_and_degraded_and_the_rest_goes_on() {
    let mut tiered = Tiered::new();
    *tiered.nvme() = Tiered::drives(&tiered.directory, 2);
    let engine = tiered.open();
    let space = space(&engine, "a");
    for n in 0..40 {
        put_n(&engine, &space, n);
        demote(&engine, &space, &[n]);
    }
    assert_eq!(fetch(&engine, &space, &[0]).unwrap()[..], page(0));
    let on = |n: u8| engine.inspect(&space, hashed(&space, &[n])).and_then(|info| info.drive);
    let first: Vec<u8> = (0..40).filter(|&n| on(n) == Some(0)).collect();
    assert!((5..35).contains(&first.len()));
    tiered.faults.fail(Some(0), Kind::Write, 5);
    tiered.faults.fail(Some(0), Kind::Read, 5);
    // Writes find out.
    for n in 40..80 {
        put_n(&engine, &space, n);
        demote(&engine, &space, &[n]);
    }
    while engine.status().degraded.is_empty() || (0..40).any(|n| on(n) == Some(0)) {
        std::thread::yield_now();
    }
    for n in 0..40 {
        let expected = (n == 0 || !first.contains(&n)).then(|| page(n));
        assert_eq!(fetch(&engine, &space, &[n]).map(|pin| pin.to_vec()), expected, "{n}");
    }
    let status = engine.status();
    assert_eq!(status.degraded.len(), 1, "{:?}", status.degraded);
    assert_eq!(status.tiers[1].pages, u64::try_from((0..80).filter(|&n| on(n).is_some()).count()).unwrap());
}

#[test]
fn a_full_file_system_drops_and_counts() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    put_n(&engine, &space, 0);
    demote(&engine, &space, &[0]);
    // No space left on the device.
    tiered.faults.fail(None, Kind::Write, 28);
    tiered.faults.fail(None, Kind::Create, 28);
    for n in 1..60 {
        put_n(&engine, &space, n);
        demote(&engine, &space, &[n]);
    }
    let status = engine.status();
    assert!(status.counters.demote_dropped > 0, "{:?}", status.counters);
    assert_eq!(status.degraded, Vec::<String>::new(), "a full drive is not a failed one");
    tiered.faults.heal();
    // The log may have given up its oldest segment for room.
    for n in 0..60 {
        if let Some(pin) = fetch(&engine, &space, &[n]) {
            assert_eq!(pin[..], page(n));
        }
    }
}

#[test]
fn old_segments_give_way_and_what_is_wanted_stays() {
    let mut tiered = Tiered::new();
    tiered.nvme().drives[0].quota_bytes = 16 << 20;
    tiered.nvme().segment_bytes = 1 << 20;
    let engine = tiered.open();
    let space = space(&engine, "a");
    put(&engine, &space, b"wanted", &page(0)).unwrap();
    demote(&engine, &space, b"wanted");
    for n in 0..1200_u32 {
        let name = n.to_le_bytes();
        put(&engine, &space, &name, &page(7)).unwrap();
        demote(&engine, &space, &name);
        assert!(touch(&engine, &space, b"wanted", 10_000 + u64::from(n)), "{n}");
    }
    assert_eq!(fetch(&engine, &space, b"wanted").unwrap()[..], page(0));
    let drive = engine.status().nvme.unwrap().log.drives.remove(0);
    assert!(drive.reclaimed_segments > 20 && drive.reinserted_pages > 0, "{drive:?}");
    assert!(drive.used_bytes <= 16 << 20, "{drive:?}");
    let there = (0..1200_u32).filter(|n| exists(&engine, &space, &n.to_le_bytes())).collect::<Vec<_>>();
    assert!(there.len() < 300 && there.contains(&1199), "{}", there.len());
    for n in there {
        assert_eq!(fetch(&engine, &space, &n.to_le_bytes()).unwrap()[..], page(7), "{n}");
    }
    assert_eq!(engine.status().counters.drive_read_errors, 0);
}
