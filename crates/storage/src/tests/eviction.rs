//! Who goes when room is needed.

use super::*;

const PAGE: usize = 256 << 10;

/// A page of 256 KiB, of which 16 fill a chunk.
fn page() -> Vec<u8> {
    vec![7; PAGE]
}

fn key(n: u32) -> [u8; 4] {
    n.to_le_bytes()
}

/// Puts page `n` at time `n`.
fn put_n(engine: &Engine, space: &Arc<Space>, n: u32) -> Result<Published, Refusal> {
    put_at(engine, space, &key(n), &page(), (0, u64::from(n)))
}

fn present(engine: &Engine, space: &Space, range: std::ops::Range<u32>) -> Vec<u32> {
    range.filter(|&n| exists(engine, space, &key(n))).collect()
}

#[test]
fn nothing_goes_below_the_high_mark() {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    for n in 0..60 {
        put_n(&engine, &space, n).unwrap();
    }
    assert!(!engine.state.pressure.is_wanted());
    assert_eq!(engine.evict_round(60), Evicted::default());
    // 61 of 64 slots are more than 95 %.
    put_n(&engine, &space, 60).unwrap();
    assert!(engine.state.pressure.is_wanted());
    let evicted = engine.evict_round(61);
    assert_eq!(evicted, Evicted { pages: 4, bytes: 4 * PAGE as u64 });
    assert_eq!(present(&engine, &space, 0..61), (4..61).collect::<Vec<_>>(), "the oldest went");
    assert_eq!(engine.evict_round(62), Evicted::default());
    let status = engine.status();
    assert_eq!((status.counters.evicted_pages, status.counters.evicted_bytes), (4, 4 * PAGE as u64));
    assert_eq!((space.stats().pages, space.stats().bytes), (57, 57 * PAGE as u64));
}

#[test]
fn what_two_ask_for_in_one_millisecond_is_told_apart() {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    let moment = |tag| Moment { ms: 7, tag };
    // 61 of 64 slots, in chains of eight.
    for n in 0..61 {
        let filling = engine.reserve(&space, hashed(&space, &key(n)), 256 * KIB, n % 8).unwrap();
        let meta = PageMeta { len: 256 * KIB, ..PageMeta::default() };
        let sealed = filling.verify_streamed(meta, meta.checksum).unwrap();
        sealed.publish(moment(u16::try_from(n / 8).unwrap()));
    }
    // The first two chains are used again.
    let names: Vec<[u8; 4]> = (0..16).map(key).collect();
    let keys: Vec<HashedKey<'_>> = names.iter().map(|name| hashed(&space, name)).collect();
    engine.touch_batch(&space, &keys[..8], &mut [false; 8], moment(100));
    let mut pins = Vec::new();
    block_on(engine.pin_batch(&space, &keys[8..], moment(101), &mut pins));
    drop(pins);
    assert_eq!(engine.evict_round(8).pages, 4);
    let gone: Vec<u32> = (0..61).filter(|&n| !exists(&engine, &space, &key(n))).collect();
    assert_eq!(gone, [20, 21, 22, 23], "the end of the third");
}

#[test]
fn a_class_keeps_free_slots_where_the_bytes_alone_look_fine() {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    // 4 of these fill a chunk and leave an eighth of it unused.
    let page = vec![1; 900 << 10];
    for n in 0..16 {
        put_at(&engine, &space, &key(n), &page, (0, u64::from(n))).unwrap();
    }
    assert_eq!(engine.evict_round(16).pages, 2);
    assert_eq!(present(&engine, &space, 0..4), [2, 3]);
}

#[test]
fn the_whole_store_stays_below_its_mark_though_each_class_has_slots() {
    let engine = engine(256 << 20);
    let space = space(&engine, "a");
    // Two classes with 31 of the 64 chunks each; both could still get the last two chunks.
    for n in 0..31 * (16 + 32) {
        let len = if n < 31 * 16 { 256 * KIB } else { 128 * KIB };
        let filling = engine.reserve(&space, hashed(&space, &key(n)), len, 0).unwrap();
        // The content does not matter here.
        let meta = PageMeta { len, ..PageMeta::default() };
        filling.verify_streamed(meta, meta.checksum).unwrap().publish(u64::from(n));
    }
    assert_eq!(engine.status().chunks_free, 2);
    engine.evict_round(5000);
    let status = engine.status();
    assert!(status.used_slot_bytes <= status.capacity_bytes / 10 * 9, "{}", status.used_slot_bytes);
    assert!(status.used_slot_bytes >= status.capacity_bytes / 100 * 89, "{}", status.used_slot_bytes);
    assert!(exists(&engine, &space, &key(31 * 48 - 1)) && !exists(&engine, &space, &key(0)));
}

#[test]
fn reads_and_touches_keep_pages() {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    for n in 0..61 {
        put_n(&engine, &space, n).unwrap();
    }
    assert!(touch(&engine, &space, &key(0), 100));
    assert!(get_at(&engine, &space, &key(2), 100).is_some());
    assert!(exists(&engine, &space, &key(1)), "asking whether a page exists does not keep it");
    engine.evict_round(100);
    assert_eq!(present(&engine, &space, 0..8), [0, 2, 6, 7]);
}

#[test]
fn of_equally_old_pages_the_deepest_goes() {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    for n in 0..61 {
        put_at(&engine, &space, &key(n), &page(), (n, 5)).unwrap();
    }
    engine.evict_round(6);
    assert_eq!(present(&engine, &space, 0..61), (0..57).collect::<Vec<_>>());
}

#[test]
fn pinned_pages_are_passed_over() {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    for n in 0..61 {
        put_n(&engine, &space, n).unwrap();
    }
    let mut pins = Vec::new();
    at_once(engine.pin_batch(&space, &[hashed(&space, &key(1))], 0, &mut pins));
    engine.evict_round(61);
    assert_eq!(present(&engine, &space, 0..8), [1, 5, 6, 7]);
}

#[test]
fn a_reservation_makes_its_own_room_if_it_must() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    for n in 0..20 {
        assert_eq!(put_n(&engine, &space, n), Ok(Published::Stored));
    }
    assert_eq!(present(&engine, &space, 0..20), (4..20).collect::<Vec<_>>());
    assert_eq!(engine.status().counters.evicted_inline, 4);
    assert_eq!(engine.status().counters.evicted_pages, 4);
}

#[test]
fn a_reservation_passes_over_pinned_pages() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    for n in 0..16 {
        put_n(&engine, &space, n).unwrap();
    }
    let mut pins = Vec::new();
    at_once(engine.pin_batch(&space, &[hashed(&space, &key(0))], 0, &mut pins));
    assert_eq!(put_n(&engine, &space, 16), Ok(Published::Stored));
    assert_eq!(present(&engine, &space, 0..3), [0, 2]);
}

#[test]
fn a_full_store_is_busy() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    for n in 0..16 {
        put_n(&engine, &space, n).unwrap();
    }
    let pins: Vec<_> = (0..16).map(|n| get(&engine, &space, &key(n)).unwrap()).collect();
    engine.wait_for_pressure(std::time::Duration::ZERO);
    assert_eq!(put_n(&engine, &space, 16), Err(Refusal::Busy));
    assert!(engine.state.pressure.is_wanted());
    assert_eq!(engine.status().counters.busy, 1);
    assert_eq!(engine.evict_round(16), Evicted::default(), "all pages are held");
    drop(pins);
    assert_eq!(put_n(&engine, &space, 16), Ok(Published::Stored));
}

#[test]
fn reserved_slots_are_not_evicted() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    let fillings: Vec<_> =
        (0..16).map(|n| engine.reserve(&space, hashed(&space, &key(n)), 256 * KIB, 0).unwrap()).collect();
    assert_eq!(put_n(&engine, &space, 16), Err(Refusal::Busy));
    drop(fillings);
    assert_eq!(put_n(&engine, &space, 16), Ok(Published::Stored));
}

/// Fills the store with pages of one size, then puts only pages of another, as the server does: rounds when they are
/// wanted. Returns the largest share of the memory that the second size had.
fn change_size(from: u32, to: u32, clock: impl Fn(u64) -> u64) -> f64 {
    let engine = engine(64 << 20);
    let (old, new) = (space(&engine, "old"), space(&engine, "new"));
    let mut time = 0;
    let mut run = |space: &Arc<Space>, len: u32| {
        let (page, mut share) = (vec![1; len as usize], 0.0_f64);
        for n in 0..3 * (64 << 20) / len {
            time += 1;
            match put_at(&engine, space, &key(n), &page, (0, clock(time))) {
                Ok(Published::Stored) | Err(Refusal::Busy) => {}
                other => panic!("{other:?}"),
            }
            if engine.state.pressure.is_wanted() {
                engine.wait_for_pressure(std::time::Duration::ZERO);
                engine.evict_round(clock(time));
            }
            let status = engine.status();
            assert!(status.used_slot_bytes <= status.capacity_bytes);
            #[allow(clippy::cast_precision_loss, reason = "a share for a comparison")]
            let now = space.stats().bytes as f64 / status.capacity_bytes as f64;
            share = share.max(now);
        }
        share
    };
    assert!(run(&old, from) >= 0.9);
    let share = run(&new, to);
    let busy = engine.status().counters.busy;
    assert!(busy <= 16, "at most one refusal for each chunk that has to move, not {busy}");
    share
}

#[test]
fn the_store_follows_a_change_of_page_size() {
    for (from, to) in [(64 * KIB, 100 * KIB), (256 * KIB, 16 * KIB), (40 * KIB, MIB), (MIB, 40 * KIB)] {
        let share = change_size(from, to, |time| time);
        assert!(share >= 0.9, "{from} to {to}: {share}");
    }
}

#[test]
fn at_equal_worth_the_class_with_more_chunks_gives() {
    let share = change_size(64 * KIB, 100 * KIB, |_| 0);
    assert!((0.45..0.55).contains(&share), "{share}");
}

#[test]
fn pages_in_use_are_not_driven_out_by_another_size() {
    let engine = engine(64 << 20);
    let (used, passing) = (space(&engine, "used"), space(&engine, "passing"));
    // Half of the store is in use; the other size passes through, several times the store's size.
    for n in 0..128 {
        put_n(&engine, &used, n).unwrap();
    }
    let other = vec![2; 100 << 10];
    for n in 0..1500 {
        let now = 1000 + u64::from(n);
        for read in 0..128 {
            touch(&engine, &used, &key(read), now);
        }
        put_at(&engine, &passing, &key(n), &other, (0, now)).ok();
        engine.evict_round(now);
    }
    assert_eq!(present(&engine, &used, 0..128).len(), 128);
    assert!(engine.status().counters.evicted_pages > 1000);
}

#[test]
fn readers_only_delay_a_chunk_that_changes_class() {
    let engine = engine(8 << 20);
    let (old, new) = (space(&engine, "old"), space(&engine, "new"));
    for n in 0..32 {
        put_n(&engine, &old, n).unwrap();
    }
    // One reader in each of the two chunks.
    let mut pins = Vec::new();
    at_once(engine.pin_batch(&old, &[hashed(&old, &key(0)), hashed(&old, &key(31))], 0, &mut pins));
    let put_new = || put_at(&engine, &new, b"new", &[3; 5000], (0, 50));
    assert_eq!(put_new(), Err(Refusal::Busy));
    engine.evict_round(50);
    assert_eq!(put_new(), Err(Refusal::Busy), "the chunk waits for its reader");
    engine.evict_round(51);
    assert_eq!(engine.status().chunks_draining, 1, "half of a small store stays");
    assert!(pins.iter().flatten().all(|pin| pin[..] == page()[..]));
    pins.clear();
    assert_eq!(engine.status().chunks_draining, 0);
    assert_eq!(put_new(), Ok(Published::Stored));
}

#[test]
fn pages_published_in_a_draining_chunk_go_in_the_next_round() {
    let engine = engine(4 << 20);
    let (old, new) = (space(&engine, "old"), space(&engine, "new"));
    for n in 0..15 {
        put_n(&engine, &old, n).unwrap();
    }
    let late = hashed(&old, b"late");
    let mut filling = engine.reserve(&old, late, 256 * KIB, 0).unwrap();
    assert_eq!(put(&engine, &new, b"new", b"page"), Err(Refusal::Busy));
    engine.evict_round(50);
    assert_eq!(engine.status().chunks_draining, 1);
    filling.bytes_mut().fill(7);
    assert_eq!(filling.verify(described(late, &page())).unwrap().publish(60), Published::Stored);
    assert!(exists(&engine, &old, b"late"));
    engine.evict_round(70);
    assert_eq!(put(&engine, &new, b"new", b"page"), Ok(Published::Stored));
}

#[test]
fn one_reader_cannot_drain_the_whole_store() {
    let engine = engine(64 << 20);
    let (old, new) = (space(&engine, "old"), space(&engine, "new"));
    for n in 0..256 {
        put_n(&engine, &old, n).unwrap();
    }
    // A reader in each chunk who never ends.
    let pins: Vec<_> = (0..256).step_by(16).map(|n| get(&engine, &old, &key(n)).unwrap()).collect();
    for n in 0..50 {
        assert_eq!(put(&engine, &new, &key(n), b"page"), Err(Refusal::Busy));
        engine.evict_round(300);
    }
    assert_eq!(engine.status().chunks_draining, 2);
    // The rest is still there, but for what the watermark of the whole store asked for.
    assert!(old.stats().pages >= 200, "{}", old.stats().pages);
    drop(pins);
}

#[test]
fn a_nearly_empty_chunk_can_be_taken() {
    let engine = engine(8 << 20);
    let space = space(&engine, "a");
    for (n, len) in [(0, 4096), (1, 4096), (2, 5000), (3, 5000)] {
        put(&engine, &space, &key(n), &vec![1; len]).unwrap();
    }
    // What is left rests in the second slot of each chunk, of a thousand.
    assert!(delete(&engine, &space, &key(0)) && delete(&engine, &space, &key(2)));
    assert_eq!(put(&engine, &space, b"new", &page()), Err(Refusal::Busy));
    engine.evict_round(1);
    assert_eq!(put(&engine, &space, b"new", &page()), Ok(Published::Stored));
    assert_eq!(engine.status().counters.chunks_moved, 1);
}

#[test]
fn the_coldest_chunk_is_taken() {
    let engine = engine(16 << 20);
    let (old, new) = (space(&engine, "old"), space(&engine, "new"));
    for n in 0..64 {
        put_n(&engine, &old, n).unwrap();
    }
    for n in (0..32).chain(48..64) {
        touch(&engine, &old, &key(n), 100);
    }
    assert_eq!(put(&engine, &new, b"new", b"page"), Err(Refusal::Busy));
    engine.evict_round(100);
    assert_eq!(put(&engine, &new, b"new", b"page"), Ok(Published::Stored));
    assert_eq!(present(&engine, &old, 0..64), (0..32).chain(48..64).collect::<Vec<_>>());
}
