//! Rules of the arena as a whole.

use super::*;
use crate::record::PageRecord;

const SPACE: [u8; 16] = [7; 16];

fn arena(bytes: u64) -> Arc<Arena> {
    Arena::new(ArenaConfig::anonymous(bytes, 2 << 20)).unwrap()
}

fn publish(arena: &Arc<Arena>, fill: u8, len: u32) -> SlotId {
    let (mut slot, _) = arena.reserve(len).unwrap();
    slot.bytes_mut().fill(fill);
    slot.seal().publish(&PageRecord { now_ms: 5, ..PageRecord::default() }, &SPACE, b"key")
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_advice() {
    let config = ArenaConfig::anonymous;
    let small = Arena::new(config((4 << 20) - 1, 1 << 20)).err().unwrap();
    assert!(small.to_string().contains("at least 4194304"), "{small}");
    assert!(Arena::new(config(4 << 20, 64 << 20)).is_ok());
    assert!(matches!(Arena::new(config(1 << 30, u32::MAX)), Err(ArenaError::PageTooLarge(_))));
    assert!(Arena::new(config(u64::MAX, 1 << 20)).is_err());
    let too_many_slots = Arena::new(config(1 << 45, 1 << 20));
    assert!(matches!(too_many_slots, Err(ArenaError::TooLarge(_))));
    assert!(matches!(Arena::new(config(0, 0)), Err(ArenaError::TooSmall(0))));
}

#[test]
fn chunks_follow_the_arena_and_hold_the_largest_page() {
    assert_eq!(chunk_bytes(16 << 20, 1), 4 << 20);
    assert_eq!(chunk_bytes(1 << 30, 1), 16 << 20);
    assert_eq!(chunk_bytes(1 << 40, 1), 64 << 20);
    assert_eq!(chunk_bytes(16 << 20, 5 << 20), 8 << 20);
    assert_eq!(chunk_bytes(1 << 40, 100 << 20), 128 << 20);
}

#[test]
fn a_small_arena_takes_smaller_pages() {
    let mib = |n: u32| n << 20;
    assert_eq!(page_limit(1 << 40, mib(64)), mib(64));
    assert_eq!(page_limit(1 << 30, mib(64)), mib(64));
    assert_eq!(page_limit((1 << 30) - 1, mib(64)), mib(32));
    assert_eq!(page_limit(256 << 20, mib(64)), mib(16));
    assert_eq!(page_limit(256 << 20, 5000), 5000);
    assert_eq!(page_limit(16 << 20, mib(64)), mib(4));
    assert_eq!(page_limit(u64::MAX, u32::MAX), u32::MAX);
    assert_eq!(page_limit(0, 0), 0);
}

#[test]
fn a_pin_outlives_doom_and_arena_handle() {
    let arena = arena(8 << 20);
    let id = publish(&arena, 7, 10_000);
    let pin = arena.pin(id).unwrap();
    assert!(arena.doom(id));
    assert!(!arena.doom(id));
    assert!(arena.pin(id).is_none());
    assert_eq!(arena.held_bytes(), 12_288);
    let other = publish(&arena, 8, 10_000);
    assert_ne!(other, id);
    drop(arena);
    assert_eq!(&pin[..], &[7; 10_000]);
}

#[test]
fn the_last_pin_gives_the_slot_back() {
    let arena = arena(8 << 20);
    let id = publish(&arena, 7, 10_000);
    let pins = [arena.pin(id).unwrap(), arena.pin(id).unwrap()];
    arena.doom(id);
    let [first, second] = pins;
    drop(first);
    assert_eq!(arena.held_bytes(), 12_288);
    drop(second);
    assert_eq!(arena.held_bytes(), 0);
    assert_eq!(arena.status().chunks_free, 2);
}

#[test]
fn dropped_handles_give_their_slots_back() {
    let arena = arena(8 << 20);
    drop(arena.reserve(5).unwrap());
    drop(arena.reserve(5).unwrap().0.seal());
    assert_eq!(arena.chunk(0), None, "an empty chunk has no class");
    assert_eq!(arena.held_bytes(), 0);
}

#[test]
fn tails_are_zero_whatever_was_there() {
    let arena = arena(4 << 20);
    let id = publish(&arena, 0xff, 8192);
    arena.doom(id);
    let id = publish(&arena, 1, 5000);
    let pin = arena.pin(id).unwrap();
    assert_eq!(pin.whole_slot().len(), 8192);
    assert!(pin.whole_slot()[..5000].iter().all(|&byte| byte == 1));
    assert!(pin.whole_slot()[5000..].iter().all(|&byte| byte == 0));
}

#[test]
fn every_slot_has_its_own_aligned_bytes() {
    let arena = arena(8 << 20);
    let mut pins = Vec::new();
    // Miri looks at a byte in a microsecond or two.
    for n in 0..=if cfg!(miri) { 7 } else { 255_u8 } {
        let id = publish(&arena, n, 16_000);
        pins.push((n, arena.pin(id).unwrap()));
    }
    for (n, pin) in &pins {
        assert!(pin.as_ptr().addr().is_multiple_of(4096));
        assert!(pin.iter().all(|byte| byte == n));
    }
}

#[test]
fn invented_slot_numbers_do_nothing() {
    let arena = arena(4 << 20);
    for id in [0, 1, 1023, 1024, u32::MAX] {
        assert!(arena.pin(SlotId(id)).is_none());
        assert!(!arena.doom(SlotId(id)));
        assert!(arena.page(SlotId(id)).is_none());
        arena.touch(SlotId(id), 1);
        arena.hit(SlotId(id), 1);
    }
    let (slot, _) = arena.reserve(1).unwrap();
    assert!(arena.pin(slot.seal().id()).is_none(), "unpublished pages have no readers");
}

#[test]
fn the_record_is_what_was_noted() {
    let arena = arena(4 << 20);
    let meta = PageMeta { len: 3, codec: 9, flags: 0xabcd, checksum: 77 };
    let (slot, _) = arena.reserve(3).unwrap();
    let record = PageRecord { meta, digest: 5, position: 6, now_ms: 8, policy: 3, extent: 4 };
    let id = slot.seal().publish(&record, &SPACE, b"key");
    arena.hit(id, 12);
    arena.touch(id, 10);
    let page = arena.page(id).unwrap();
    assert_eq!(page.meta, meta);
    assert_eq!((page.digest, page.position, page.created_ms, page.last_access_ms), (5, 6, 8, 12));
    assert_eq!((page.hits, page.pins), (1, 0));
    assert_eq!((page.policy, page.extent), (3, 4));
    arena.update_policy(id, |word| Some(word + 10));
    arena.update_policy(id, |_| None);
    arena.set_extent(id, u64::MAX);
    assert_eq!((arena.page(id).unwrap().policy, arena.extent_of(id)), (13, u64::MAX));
    arena.set_policy(id, 1);
    assert_eq!(arena.page(id).unwrap().policy, 1);
    assert_eq!(arena.pin(id).unwrap().meta(), meta);
    let chunk = arena.chunk(0).unwrap();
    assert_eq!((chunk.slot_bytes, chunk.slots, arena.pages(chunk, 0, u32::MAX).count()), (4096, 1024, 1));
    assert_eq!(arena.pages(chunk, 1, 1023).count(), 0);
}

#[test]
fn whole_blocks_end_in_zeroes() {
    let arena = arena(8 << 20);
    let (mut slot, _) = arena.reserve(5000).unwrap();
    assert_eq!(slot.whole_mut().len(), 8192);
    slot.whole_mut().fill(9);
    let pin = arena.pin(slot.seal().publish(&PageRecord::default(), &SPACE, b"key")).unwrap();
    assert_eq!(pin.blocks().len(), 8192);
    assert!(pin.blocks()[..5000].iter().all(|&byte| byte == 9));
    assert!(pin.blocks()[5000..].iter().all(|&byte| byte == 0));
    let (mut exact, _) = arena.reserve(4096).unwrap();
    assert_eq!(exact.whole_mut().len(), 4096);
}

#[test]
fn a_file_system_without_room_for_tables_is_a_full_arena() {
    let place = tempfile::tempdir().unwrap();
    let backing = ArenaBacking::File(place.path().to_owned());
    let config = ArenaConfig { backing, ..ArenaConfig::anonymous(8 << 20, 1 << 20) };
    let (mut arena, recovered) = Arena::open(config).unwrap();
    drop(recovered);
    // Nothing can be allocated through a handle that only reads.
    let file = &mut Arc::get_mut(&mut arena).unwrap().file;
    let whole = file.replace(file.as_ref().unwrap().read_only());
    assert_eq!(arena.reserve(5000).unwrap_err(), Full { slot_bytes: 8192 });
    assert_eq!((arena.held_bytes(), arena.status().chunks_free, arena.chunk(0)), (0, 2, None));
    Arc::get_mut(&mut arena).unwrap().file = whole;
    publish(&arena, 1, 5000);
}

#[test]
fn locked_memory_is_resident_and_told_and_too_much_is_an_error_with_a_way_out() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let config = |bytes| ArenaConfig { mlock: true, ..ArenaConfig::anonymous(bytes, 1 << 20) };
    let before = getrlimit(Resource::Memlock);
    // Whatever the machine allows, this test may lock 4 MiB and not 8.
    let mut limit = before;
    limit.current = Some(before.maximum.unwrap_or(u64::MAX).min(6 << 20));
    setrlimit(Resource::Memlock, limit).unwrap();
    let seen = std::cell::Cell::new((0, 0));
    let progress = |done, total| seen.set((done, total));
    let small = Arena::open(ArenaConfig { progress: Some(&progress), ..config(4 << 20) });
    let large = std::thread::spawn(move || {
        // Of this thread alone: who may lock anything has no limit.
        let mut own = capabilities(None).unwrap();
        own.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, own).unwrap();
        Arena::new(config(8 << 20)).err().unwrap().to_string()
    });
    let large = large.join().unwrap();
    setrlimit(Resource::Memlock, before).unwrap();
    let (small, _) = small.unwrap();
    assert!(small.status().memory.locked);
    assert_eq!(seen.get(), (4 << 20, 4 << 20));
    assert_eq!(small.data.resident(0, 4 << 20), 4 << 20);
    assert!(large.contains("refused to lock 8388608 bytes") && large.contains("6291456 bytes"), "{large}");
    assert!(large.contains("LimitMEMLOCK=infinity") && large.contains("turn mlock off"), "{large}");
}

#[test]
fn waste_is_counted_by_class() {
    let arena = arena(64 << 20);
    // Slots of 1 183 744 bytes, three of which leave 643 072 of a chunk of 4 MiB.
    let ids: Vec<_> = (0..4).map(|_| publish(&arena, 1, 1_179_648 + 1)).collect();
    publish(&arena, 1, 4096);
    let classes = arena.status().classes;
    let class = classes.iter().find(|class| class.slot_bytes == 1_183_744).unwrap();
    assert_eq!((class.held_bytes(), class.asked_bytes), (4 * 1_183_744, 4 * 1_179_649));
    assert_eq!((class.chunks, class.remainder_bytes), (2, 2 * 643_072));
    assert_eq!(class.waste_bytes(), 4 * 4095 + 2 * 643_072);
    ids.into_iter().for_each(|id| assert!(arena.doom(id)));
    let classes = arena.status().classes;
    let waste = |bytes| classes.iter().find(|class| class.slot_bytes == bytes).unwrap().waste_bytes();
    assert_eq!((waste(1_183_744), waste(4096)), (0, 0));
}
