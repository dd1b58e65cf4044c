use super::*;
use memkv_core::{PageMeta, SpaceDescription};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn space() -> Arc<Space> {
    let (_, spaces) = crate::tests::arena_and_spaces();
    spaces.open(SpaceDescription::named("a").unwrap()).unwrap()
}

fn key(name: &[u8], digest: u64) -> HashedKey<'_> {
    HashedKey { key: Key::new(name).unwrap(), digest }
}

fn extent(block: u64) -> Extent {
    Extent::from_bits(block << 14).unwrap()
}

fn meta(checksum: u64) -> DriveMeta {
    let meta = PageMeta { len: 5, checksum, ..PageMeta::default() };
    DriveMeta { meta, position: 1, created_s: 2, access_s: 3, hits: 4, wanted: false }
}

#[test]
fn an_entry_is_16_bytes() {
    assert_eq!(size_of::<Entry>(), 16);
}

#[test]
fn places_fit_a_word() {
    for place in [
        Place::Dram(SlotId::from_bits(0)),
        Place::Dram(SlotId::from_bits(u32::MAX)),
        Place::Drive(extent(1)),
        Place::Drive(Extent::from_bits((1 << 56) - 1).unwrap()),
    ] {
        assert_eq!(PlaceWord::from(place).place(), place);
    }
}

#[test]
fn shards_and_hashes_come_from_different_bits() {
    assert_eq!(shard_of(0xab00_0000_0000_0001), 0xab);
    assert_eq!(tag_of(0xab00_0000_1234_5678), 0x1234_5678);
}

#[test]
fn a_page_is_removed_by_slot_only_from_that_slot() {
    let (space, mut shard) = (space(), Shard::default());
    for (name, slot) in [(b"a", 7), (b"b", 8)] {
        assert!(shard.insert(&space, key(name, 42), || SlotId::from_bits(slot)));
    }
    assert!(shard.remove_slot(42, SlotId::from_bits(9)).is_none());
    assert!(shard.remove_slot(43, SlotId::from_bits(7)).is_none());
    assert_eq!(shard.look_slot(42, SlotId::from_bits(8)).unwrap().key, b"b");
    assert!(shard.remove_slot(42, SlotId::from_bits(8)).is_some());
    assert_eq!((shard.len(), shard.find(&space, key(b"b", 42))), (1, None));
}

#[test]
fn a_page_goes_to_a_drive_and_back() {
    let (space, mut shard) = (space(), Shard::default());
    let (a, slot) = (key(b"a", 42), SlotId::from_bits(7));
    assert!(shard.insert(&space, a, || slot));
    assert!(!shard.leave_dram(42, SlotId::from_bits(6), extent(1), &meta(1)), "another slot");
    assert!(shard.leave_dram(42, slot, extent(1), &meta(1)));
    assert!(!shard.leave_dram(42, slot, extent(2), &meta(1)), "it is not in memory any more");
    assert!(!shard.insert(&space, a, || panic!("the key has a page")));
    let found = shard.look(&space, a).unwrap();
    assert_eq!((found.place, found.meta), (Place::Drive(extent(1)), Some(meta(1))));
    assert!(!shard.move_drive(space.number(), a, (extent(3), extent(4)), |_| panic!("not there")));
    assert!(shard.move_drive(space.number(), a, (extent(1), extent(2)), |meta| meta.hits = 9));
    assert_eq!(shard.look(&space, a).unwrap().meta.unwrap().hits, 9);
    assert!(!shard.enter_dram(&space, a, |_| false, |_| panic!("refused")));
    assert!(shard.enter_dram(
        &space,
        a,
        |meta| meta.hits == 9,
        |at| {
            assert_eq!(at, extent(2));
            slot
        }
    ));
    assert!(!shard.enter_dram(&space, a, |_| true, |_| panic!("it is in memory")));
    assert_eq!(shard.look(&space, a).unwrap().meta, None);
    assert!(shard.remove_from(&space, a, Place::Drive(extent(2))).is_none());
    assert!(shard.remove_from(&space, a, Place::Dram(slot)).is_some());
}

#[test]
fn keys_survive_a_rebuild_of_their_heap() {
    let (space, mut shard) = (space(), Shard::default());
    let name = |n: u32| format!("{n:0>100}").into_bytes();
    for n in 0..5000 {
        assert!(shard.insert(&space, key(&name(n), u64::from(n)), || SlotId::from_bits(n)));
    }
    let full = shard.keys.heap_bytes();
    let gone = shard.remove_all(|found| matches!(found.place, Place::Dram(slot) if slot.to_bits() % 5 != 0));
    assert_eq!(gone.len(), 4000);
    assert!(shard.keys.heap_bytes() < full / 3, "{} of {full}", shard.keys.heap_bytes());
    for n in 0..5000 {
        let expected = (n % 5 == 0).then(|| Place::Dram(SlotId::from_bits(n)));
        assert_eq!(shard.find(&space, key(&name(n), u64::from(n))), expected);
    }
}

#[test]
fn a_batch_locks_each_shard_once() {
    let (index, space) = (Index::new(), space());
    for count in [1_u64, 2, 128, 4000] {
        let digests: Vec<u64> = (0..count).map(|n| (n % 300).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let keys: Vec<_> = digests.iter().map(|&digest| key(b"k", digest)).collect();
        let mut shards: Vec<usize> = digests.iter().map(|&digest| shard_of(digest)).collect();
        shards.sort_unstable();
        shards.dedup();
        let before = index.locks.load(Ordering::Relaxed);
        let mut visits = 0;
        index.each(&keys, |shard, _, key| {
            visits += 1;
            assert_eq!(shard.find(&space, key), None);
        });
        assert_eq!(visits, count);
        assert_eq!(index.locks.load(Ordering::Relaxed) - before, shards.len());
    }
}
