//! What is there after the process ended, one way or another.

use super::*;

fn page(n: u16) -> Vec<u8> {
    (0..9000).map(|at: u32| (at / 64) as u8 ^ n.to_le_bytes()[0]).collect()
}

fn put_n(engine: &Engine, space: &Arc<Space>, n: u16) {
    assert_eq!(
        put_at(engine, space, &n.to_le_bytes(), &page(n), (u32::from(n), 1000)),
        Ok(Published::Stored)
    );
}

fn check_n(engine: &Engine, space: &Space, n: u16) {
    assert_eq!(fetch(engine, space, &n.to_le_bytes()).unwrap()[..], page(n), "{n}");
}

/// Memory that outlives the process, and a drive.
fn both() -> Tiered {
    let mut tiered = Tiered::new();
    let backing = tiered.directory.path().join("memory");
    std::fs::create_dir(&backing).unwrap();
    tiered.config.backing = Some(backing);
    tiered
}

#[test]
fn a_planned_restart_keeps_both_tiers() {
    let tiered = both();
    let (engine, report) = tiered.open_reported();
    assert_eq!((report.dram_pages, report.nvme_pages, report.spaces), (0, 0, 0));
    let (a, b) = (space(&engine, "a"), space(&engine, "b"));
    for n in 0..30_u16 {
        put_n(&engine, if n % 3 == 0 { &b } else { &a }, n);
    }
    for n in 0..10_u16 {
        demote(&engine, if n % 3 == 0 { &b } else { &a }, &n.to_le_bytes());
    }
    check_n(&engine, &a, 1);
    assert!(delete(&engine, &a, &2_u16.to_le_bytes()) && delete(&engine, &a, &20_u16.to_le_bytes()));
    let stats = (a.stats(), b.stats());
    engine.close();
    drop(engine);

    let (engine, report) = tiered.open_reported();
    assert_eq!((report.dram_pages, report.dram_unclean, report.spaces), (20, 0, 2));
    assert_eq!((report.nvme_pages, report.dropped_pages), (9, 0));
    let ids: Vec<_> = engine.spaces().iter().map(|space| space.description().clone()).collect();
    assert_eq!(ids.len(), 2);
    let (a, b) = (space(&engine, "a"), space(&engine, "b"));
    for (space, (before, after)) in [("a", (stats.0, a.stats())), ("b", (stats.1, b.stats()))] {
        assert_eq!((after.pages, after.bytes), (before.pages, before.bytes), "{space}");
        assert_eq!(
            (after.drive_pages, after.drive_bytes),
            (before.drive_pages, before.drive_bytes),
            "{space}"
        );
    }
    assert_eq!(in_dram(&engine, &a, &1_u16.to_le_bytes()), Some(true));
    let info = engine.inspect(&a, hashed(&a, &1_u16.to_le_bytes())).unwrap();
    assert_eq!((info.drive, info.hits, info.position), (Some(0), 1, 1), "one page in both tiers");
    for n in 0..30_u16 {
        let space = if n % 3 == 0 { &b } else { &a };
        match n {
            2 | 20 => assert!(!exists(&engine, space, &n.to_le_bytes())),
            _ => check_n(&engine, space, n),
        }
    }
    // The page in both tiers leaves memory without another write.
    start_demotion(&engine, &a, &1_u16.to_le_bytes());
    assert_eq!(engine.status().nvme.unwrap().log.drives[0].writes, 0);
    engine.clear(&a);
    engine.clear(&b);
    assert_eq!((engine.status().used_slot_bytes, engine.status().pages), (0, 0));
}

#[test]
fn after_an_unclean_end_pages_are_verified_before_they_are_served() {
    let tiered = both();
    let engine = tiered.open();
    let a = space(&engine, "a");
    (0..20).for_each(|n| put_n(&engine, &a, n));
    drop(engine);
    let arena = tiered.directory.path().join("memory/memkv.arena");
    let mut bytes = std::fs::read(&arena).unwrap();
    let at = bytes.windows(4096).position(|window| page(7).starts_with(window)).unwrap();
    bytes[at + 5000] ^= 4;
    std::fs::write(&arena, bytes).unwrap();

    let (engine, report) = tiered.open_reported();
    assert_eq!((report.dram_pages, report.dram_unclean), (20, 20));
    let a = space(&engine, "a");
    assert!(fetch(&engine, &a, &7_u16.to_le_bytes()).is_none(), "wrong bytes are a miss");
    assert_eq!(engine.quarantined()[0].tier, Tier::Dram);
    for n in (0..20).filter(|n| *n != 7) {
        check_n(&engine, &a, n);
    }
    let stats = a.stats();
    assert_eq!((stats.pages, stats.get_keys, stats.get_hits), (19, 20, 19));
    put_n(&engine, &a, 7);
    check_n(&engine, &a, 7);
}

#[test]
fn memory_without_its_descriptions_is_dropped() {
    let mut tiered = both();
    tiered.config.nvme = None;
    let engine = tiered.open();
    put_n(&engine, &space(&engine, "a"), 1);
    engine.close();
    drop(engine);
    std::fs::remove_file(tiered.directory.path().join("memory/memkv.spaces")).unwrap();
    let (engine, report) = tiered.open_reported();
    assert_eq!((report.dram_pages, report.dropped_pages, report.spaces), (0, 1, 0));
    let a = space(&engine, "a");
    assert_eq!((a.stats().pages, engine.status().used_slot_bytes), (0, 0));
    put_n(&engine, &a, 1);
    check_n(&engine, &a, 1);
}

#[test]
fn removals_hold_over_a_crash() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let (a, b) = (space(&engine, "a"), space(&engine, "b"));
    for n in 0..20_u16 {
        put_n(&engine, &a, n);
        demote(&engine, &a, &n.to_le_bytes());
        put_n(&engine, &b, n);
        demote(&engine, &b, &n.to_le_bytes());
    }
    // From the drive alone, and from both tiers.
    check_n(&engine, &a, 4);
    assert!(delete(&engine, &a, &3_u16.to_le_bytes()) && delete(&engine, &a, &4_u16.to_le_bytes()));
    engine.clear(&b);
    put_n(&engine, &b, 5);
    demote(&engine, &b, &5_u16.to_le_bytes());
    block_on(engine.settle_removals());
    tiered.faults.crash();
    drop(engine);

    let survivor = Tiered { faults: FaultPlan::new(), ..tiered };
    let engine = survivor.open();
    let (a, b) = (space(&engine, "a"), space(&engine, "b"));
    for n in 0..20_u16 {
        assert_eq!(exists(&engine, &a, &n.to_le_bytes()), n != 3 && n != 4, "{n}");
        assert_eq!(exists(&engine, &b, &n.to_le_bytes()), n == 5, "{n}");
    }
    check_n(&engine, &b, 5);
}

#[test]
fn a_second_process_is_refused() {
    let tiered = both();
    let engine = tiered.open();
    let second = Engine::open(tiered.config.clone()).map(|_| ()).unwrap_err();
    assert!(matches!(second, EngineError::Arena(_)), "{second}");
    let without = EngineConfig { backing: None, ..tiered.config.clone() };
    assert!(matches!(Engine::open(without).map(|_| ()), Err(EngineError::Drives(_))));
    drop(engine);
    tiered.open();
}

#[test]
fn a_closed_engine_stores_nothing() {
    let tiered = both();
    let engine = tiered.open();
    let a = space(&engine, "a");
    put_n(&engine, &a, 1);
    demote(&engine, &a, &1_u16.to_le_bytes());
    put_n(&engine, &a, 2);
    engine.close();
    assert_eq!(put(&engine, &a, b"late", b"page"), Err(Refusal::Busy));
    assert!(fetch(&engine, &a, &1_u16.to_le_bytes()).is_none());
    engine.close();
    drop(engine);
    let (engine, report) = tiered.open_reported();
    assert_eq!((report.dram_pages, report.nvme_pages), (1, 1));
    let a = space(&engine, "a");
    check_n(&engine, &a, 1);
    check_n(&engine, &a, 2);
}

#[test]
fn spaces_beyond_the_limit_are_dropped() {
    let mut tiered = Tiered::new();
    let engine = tiered.open();
    for name in ["a", "b", "c", "d"] {
        let space = space(&engine, name);
        put_n(&engine, &space, 1);
        demote(&engine, &space, &1_u16.to_le_bytes());
    }
    engine.close();
    drop(engine);
    tiered.config.spaces_max = 2;
    let (engine, report) = tiered.open_reported();
    assert_eq!((report.nvme_pages, report.dropped_pages), (2, 2));
    for space in engine.spaces() {
        check_n(&engine, &space, 1);
    }
    assert_eq!(engine.status().pages, 2);
}
