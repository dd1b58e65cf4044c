//! Pages that operators keep.

use super::*;

const PAGE: usize = 256 << 10;

fn keep(engine: &Engine, space: &Space, key: &[u8], ttl_ms: u64, now_ms: u64) -> KeepReport {
    block_on(engine.keep(space, &[hashed(space, key)], ttl_ms, now_ms))
}

/// 16 MiB with pages of 256 KiB, 64 of which fill it.
fn filled(count: u8) -> (Arc<Engine>, Arc<Space>) {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    for n in 0..count {
        put_at(&engine, &space, &[n], &vec![n; PAGE], (0, u64::from(n))).unwrap();
    }
    (engine, space)
}

#[test]
fn kept_pages_are_passed_over_until_their_time_is_over() {
    let (engine, space) = filled(61);
    let report = block_on(engine.keep(&space, &[hashed(&space, &[0]), hashed(&space, b"absent")], 150, 61));
    assert_eq!(report, KeepReport { kept: 1, bytes: PAGE as u64, missing: 1, over_quota: 0 });
    // A read at 61 makes it young; what is kept must not depend on that.
    engine.evict_round(62);
    assert!(exists(&engine, &space, &[0]) && !exists(&engine, &space, &[1]));
    for n in 61..200 {
        put_at(&engine, &space, &[n], &vec![n; PAGE], (0, 62 + u64::from(n))).ok();
        engine.evict_round(62 + u64::from(n) / 2);
    }
    assert!(exists(&engine, &space, &[0]));
    let kept = engine.kept(210);
    assert_eq!(
        (kept.len(), &kept[0].key[..], kept[0].until_ms, kept[0].bytes),
        (1, &[0][..], 211, PAGE as u64)
    );
    let info = engine.inspect(&space, hashed(&space, &[0])).unwrap();
    assert_eq!(info.kept_until_ms, Some(211));
    assert_eq!((engine.status().kept_pages, engine.status().kept_bytes), (1, PAGE as u64));
    for n in 200..240 {
        put_at(&engine, &space, &[n], &vec![n; PAGE], (0, 500)).ok();
        engine.evict_round(500);
    }
    assert!(!exists(&engine, &space, &[0]));
    assert_eq!((engine.kept(500).len(), engine.status().kept_bytes), (0, 0));
}

#[test]
fn reservations_pass_over_kept_pages_too() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    for n in 0..16 {
        put_at(&engine, &space, &[n], &vec![n; PAGE], (0, u64::from(n))).unwrap();
    }
    assert_eq!(keep(&engine, &space, &[3], 1000, 0).kept, 1);
    for n in 16..100 {
        put_at(&engine, &space, &[n], &vec![n; PAGE], (0, u64::from(n))).unwrap();
    }
    assert!(exists(&engine, &space, &[3]));
}

#[test]
fn a_quota_bounds_what_is_kept() {
    let (engine, space) = filled(40);
    let names: Vec<[u8; 1]> = (0..40).map(|n| [n]).collect();
    let keys: Vec<_> = names.iter().map(|name| hashed(&space, name)).collect();
    // A quarter of 16 MiB.
    let report = block_on(engine.keep(&space, &keys, 100, 0));
    assert_eq!((report.kept, report.over_quota, report.missing), (16, 24, 0));
    assert_eq!(engine.status().kept_bytes_max, 4 << 20);
    // What is kept already may be kept longer.
    assert_eq!(keep(&engine, &space, &[0], 200, 0).kept, 1);
    assert_eq!(engine.unkeep(&space, &keys), 16);
    assert_eq!(engine.unkeep(&space, &keys), 0);
    assert_eq!(keep(&engine, &space, &[30], 100, 0).kept, 1);
}

#[test]
fn deleting_ends_keeping() {
    let (engine, space) = filled(3);
    for n in 0..3 {
        assert_eq!(keep(&engine, &space, &[n], 100, 0).kept, 1);
    }
    assert!(delete(&engine, &space, &[0]));
    engine.quarantine(&space, hashed(&space, &[1]));
    assert_eq!(engine.kept(0).len(), 1);
    engine.clear(&space);
    assert_eq!((engine.kept(0).len(), engine.status().kept_bytes), (0, 0));
    assert_empty(&engine);
}

#[test]
fn a_page_on_a_drive_is_brought_back_and_stays() {
    let tiered = Tiered::new();
    let engine = tiered.open();
    let space = space(&engine, "a");
    put(&engine, &space, b"k", &[1; PAGE]).unwrap();
    demote(&engine, &space, b"k");
    assert_eq!(keep(&engine, &space, b"k", 100, 0).kept, 1);
    start_demotion(&engine, &space, b"k");
    assert_eq!(in_dram(&engine, &space, b"k"), Some(true));
    engine.unkeep(&space, &[hashed(&space, b"k")]);
    start_demotion(&engine, &space, b"k");
    assert_eq!(in_dram(&engine, &space, b"k"), Some(false));
}

#[test]
fn a_chunk_with_a_kept_page_does_not_change_class() {
    let engine = engine(8 << 20);
    let (old, new) = (space(&engine, "old"), space(&engine, "new"));
    for n in 0..32 {
        put_at(&engine, &old, &[n], &vec![n; PAGE], (0, u64::from(n))).unwrap();
    }
    // One in each of the two chunks.
    assert_eq!(keep(&engine, &old, &[0], 1000, 0).kept + keep(&engine, &old, &[31], 1000, 0).kept, 2);
    for now in 40..60 {
        assert_eq!(put_at(&engine, &new, b"new", &[3; 5000], (0, now)), Err(Refusal::Busy));
        engine.evict_round(now);
    }
    assert_eq!(engine.status().chunks_draining, 0);
    engine.unkeep(&old, &[hashed(&old, &[0])]);
    assert_eq!(put_at(&engine, &new, b"new", &[3; 5000], (0, 60)), Err(Refusal::Busy));
    engine.evict_round(60);
    assert_eq!(put_at(&engine, &new, b"new", &[3; 5000], (0, 61)), Ok(Published::Stored));
    assert!(exists(&engine, &old, &[31]));
}

#[test]
fn a_share_that_makes_no_sense_is_refused() {
    for share in [-0.1, 0.95, f64::NAN] {
        let config = EngineConfig { pin_share: share, ..config(4 << 20) };
        assert!(matches!(Engine::new(config), Err(EngineError::PinShare(_))), "{share}");
    }
}
