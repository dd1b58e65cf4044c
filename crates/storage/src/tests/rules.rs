//! One rule of the engine each.

use super::*;

#[test]
fn a_page_is_visible_only_when_published_and_comes_back_whole() {
    let engine = engine(8 << 20);
    let space = space(&engine, "a");
    let key = hashed(&space, b"key");
    let page: Vec<u8> = (0..70_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut filling = engine.reserve(&space, key, 70_000, 5).unwrap();
    assert_eq!((filling.len(), filling.digest(), filling.bytes_mut().len()), (70_000, key.digest, 70_000));
    filling.bytes_mut().copy_from_slice(&page);
    assert!(!exists(&engine, &space, b"key"));
    let sealed = filling.verify(described(key, &page)).unwrap();
    assert!(!exists(&engine, &space, b"key") && get(&engine, &space, b"key").is_none());
    assert_eq!(sealed.publish(7), Published::Stored);
    assert!(exists(&engine, &space, b"key"));
    let pin = get_at(&engine, &space, b"key", 9).unwrap();
    assert_eq!(pin[..], page[..]);
    assert_eq!(pin.meta(), described(key, &page));
    let info = engine.inspect(&space, key).unwrap();
    assert_eq!((info.position, info.created_ms, info.last_access_ms), (5, 7, 9));
    assert_eq!((info.hits, info.pins, info.slot_bytes, info.digest), (1, 1, 73_728, key.digest));
    assert_eq!((&info.key[..], info.meta), (&b"key"[..], pin.meta()));
}

#[test]
fn a_put_that_ends_early_leaves_nothing() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    let key = hashed(&space, b"key");
    let reserve = || engine.reserve(&space, key, 100, 0).unwrap();
    let page = [0; 100];
    for written in 0..=100 {
        let mut filling = reserve();
        filling.bytes_mut()[..written].fill(0xee);
        drop(filling);
        assert!(!exists(&engine, &space, b"key"));
        assert_empty(&engine);
    }
    let mut filling = reserve();
    filling.bytes_mut().fill(0);
    drop(filling.verify(described(key, &page)).unwrap());
    assert_empty(&engine);
    assert!(engine.inspect(&space, key).is_none());
    assert_eq!(put(&engine, &space, b"key", &page), Ok(Published::Stored));
}

#[test]
fn bytes_that_do_not_match_are_refused() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    let key = hashed(&space, b"key");
    let page = [1; 100];
    let meta = described(key, &page);
    let filled = || {
        let mut filling = engine.reserve(&space, key, 100, 0).unwrap();
        filling.bytes_mut().copy_from_slice(&page);
        filling
    };
    let mut flipped = filled();
    flipped.bytes_mut()[99] ^= 1;
    assert!(matches!(flipped.verify(meta), Err(Corrupt::Checksum { .. })));
    let short = PageMeta { len: 99, ..meta };
    assert_eq!(filled().verify(short).unwrap_err(), Corrupt::Length { reserved: 100, described: 99 });
    assert!(matches!(filled().verify_streamed(meta, !meta.checksum), Err(Corrupt::Checksum { .. })));
    let elsewhere = described(hashed(&space, b"other"), &page);
    assert!(filled().verify(elsewhere).is_err(), "the checksum binds the bytes to their key");
    for altered in [PageMeta { codec: 2, ..meta }, PageMeta { flags: 0x1235, ..meta }] {
        assert!(filled().verify(altered).is_err(), "the checksum covers what the bytes mean");
    }
    assert_eq!(engine.status().counters.corrupt, 6);
    assert_empty(&engine);
    let hash = memkv_core::PageHasher::oneshot(key.digest, &page);
    assert_eq!(filled().verify_streamed(meta, hash).unwrap().publish(0), Published::Stored);
}

#[test]
fn the_first_of_two_writers_wins() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    let key = hashed(&space, b"key");
    let sealed = |byte| {
        let mut filling = engine.reserve(&space, key, 100, 0).unwrap();
        filling.bytes_mut().fill(byte);
        filling.verify(described(key, &[byte; 100])).unwrap()
    };
    let (first, second) = (sealed(1), sealed(2));
    assert_eq!(second.publish(0), Published::Stored);
    assert_eq!(first.publish(0), Published::Exists);
    assert_eq!(get(&engine, &space, b"key").unwrap()[..], [2; 100]);
    assert_eq!(engine.reserve(&space, key, 100, 0).unwrap_err(), Refusal::Exists);
    let status = engine.status();
    assert_eq!((status.counters.existing, status.counters.stored_pages, status.pages), (2, 1, 1));
    assert_eq!((status.used_slot_bytes, status.asked_bytes, status.page_bytes), (4096, 100, 100));
}

#[test]
fn lengths_are_limited_and_empty_pages_are_pages() {
    let engine = engine(8 << 20);
    let space = space(&engine, "a");
    let key = hashed(&space, b"key");
    for len in [MIB + 1, u32::MAX] {
        let refused = engine.reserve(&space, key, len, 0).unwrap_err();
        assert_eq!(refused, Refusal::TooLarge { len, max: MIB });
    }
    assert_eq!(put(&engine, &space, b"empty", b""), Ok(Published::Stored));
    assert_eq!(get(&engine, &space, b"empty").unwrap()[..], []);
    assert!(put(&engine, &space, b"largest", &vec![1; MIB as usize]).is_ok());
}

#[test]
fn a_small_store_with_the_default_limit_holds_many_sizes() {
    let engine = Engine::new(EngineConfig::with_dram(64 << 20)).unwrap();
    assert_eq!(engine.page_bytes_max(), 4 * MIB);
    let space = space(&engine, "a");
    let lens = [1, 5000, 65_536, 100_000, 1 << 20, 3 << 20, 4 << 20];
    for len in lens {
        assert_eq!(put(&engine, &space, &len.to_string().into_bytes(), &vec![1; len]), Ok(Published::Stored));
    }
    assert!(lens.iter().all(|len| exists(&engine, &space, &len.to_string().into_bytes())));
}

#[test]
fn tails_do_not_show_earlier_pages() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    put(&engine, &space, b"old", &[0xff; 8192]).unwrap();
    assert!(delete(&engine, &space, b"old"));
    put(&engine, &space, b"new", &[1; 4097]).unwrap();
    let pin = get(&engine, &space, b"new").unwrap();
    assert_eq!(pin.whole_slot().len(), 8192);
    assert!(pin.whole_slot()[4097..].iter().all(|&byte| byte == 0));
}

#[test]
fn pins_outlive_delete_quarantine_clear_and_engine() {
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    for key in [b"d", b"q", b"c", b"e"] {
        put(&engine, &space, key, &[key[0]; 5000]).unwrap();
    }
    let pins = [b"d", b"q", b"c"].map(|key| get(&engine, &space, key).unwrap());
    assert!(delete(&engine, &space, b"d"));
    assert!(!delete(&engine, &space, b"d"));
    engine.quarantine(&space, hashed(&space, b"q"));
    engine.quarantine(&space, hashed(&space, b"q"));
    assert_eq!(engine.clear(&space), Cleared { pages: 2, bytes: 10_000 });
    let status = engine.status();
    assert_eq!((status.counters.deleted, status.counters.corrupt, status.counters.cleared), (1, 1, 2));
    assert_eq!((status.pages, status.used_slot_bytes), (0, 3 * 8192));
    // The freed slot is used again while the held ones are not.
    put(&engine, &space, b"n", &[0; 8192]).unwrap();
    let last = get(&engine, &space, b"n").unwrap();
    drop(engine);
    for (pin, byte) in pins.iter().zip(*b"dqc") {
        assert_eq!(pin[..], [byte; 5000]);
    }
    assert_eq!(last[..], [0; 8192]);
}

#[test]
fn everything_is_given_back() {
    let engine = engine(8 << 20);
    let space = space(&engine, "a");
    put(&engine, &space, b"k", &[1; 5000]).unwrap();
    let pin = get(&engine, &space, b"k");
    engine.clear(&space);
    assert_eq!(engine.status().used_slot_bytes, 8192);
    drop(pin);
    assert_empty(&engine);
}

#[test]
fn clear_takes_exactly_its_space() {
    let engine = engine(8 << 20);
    let (one, two) = (space(&engine, "one"), space(&engine, "two"));
    for n in 0..300_u16 {
        put(&engine, &one, &n.to_le_bytes(), b"1").unwrap();
        put(&engine, &two, &n.to_le_bytes(), b"22").unwrap();
    }
    assert_eq!(engine.clear(&one), Cleared { pages: 300, bytes: 300 });
    assert_eq!((one.stats().pages, one.stats().bytes), (0, 0));
    assert_eq!((two.stats().pages, two.stats().bytes), (300, 600));
    for n in 0..300_u16 {
        assert!(!exists(&engine, &one, &n.to_le_bytes()));
        assert_eq!(get(&engine, &two, &n.to_le_bytes()).unwrap()[..], *b"22");
    }
}

#[test]
fn batches_answer_in_the_order_of_their_keys() {
    let engine = engine(16 << 20);
    let space = space(&engine, "a");
    let names: Vec<_> = (0..1500_u16).map(|n| format!("key-{n}")).collect();
    for name in names.iter().step_by(3) {
        put(&engine, &space, name.as_bytes(), name.as_bytes()).unwrap();
    }
    let mut keys: Vec<_> = names.iter().map(|name| hashed(&space, name.as_bytes())).collect();
    keys.push(keys[3]);
    let mut found = vec![false; keys.len()];
    engine.exists_batch(&space, &keys, &mut found);
    let mut touched = vec![false; keys.len()];
    engine.touch_batch(&space, &keys, &mut touched, 77);
    let mut pins = vec![None];
    at_once(engine.pin_batch(&space, &keys, 80, &mut pins));
    for (at, pin) in pins.iter().enumerate() {
        let there = at % 3 == 0;
        assert_eq!((found[at], touched[at], pin.is_some()), (there, there, there), "{at}");
        if let Some(pin) = pin {
            assert_eq!(pin[..], *names[at % 1500 + at / 1500 * 3].as_bytes());
        }
    }
    assert_eq!((space.stats().get_keys, space.stats().get_hits), (1501, 501));
    let mut removed = vec![true; keys.len()];
    engine.delete_batch(&space, &keys, &mut removed);
    assert_eq!(removed.iter().filter(|&&removed| removed).count(), 500, "the repeated key is removed once");
    assert!(!removed[1500]);
    drop(pins);
    assert_empty(&engine);
}

#[test]
fn keys_with_one_digest_are_different_keys() {
    let engine = engine(4 << 20);
    let (one, two) = (space(&engine, "one"), space(&engine, "two"));
    let digest = 42;
    let keys = [(&one, "x"), (&one, "y"), (&two, "x")];
    for (n, (space, name)) in (0_u8..).zip(keys) {
        let key = HashedKey { key: Key::new(name.as_bytes()).unwrap(), digest };
        let mut filling = engine.reserve(space, key, 1, 0).unwrap();
        filling.bytes_mut()[0] = n;
        assert_eq!(filling.verify(described(key, &[n])).unwrap().publish(0), Published::Stored);
    }
    for (n, (space, name)) in (0_u8..).zip(keys) {
        let key = HashedKey { key: Key::new(name.as_bytes()).unwrap(), digest };
        let mut pins = Vec::new();
        at_once(engine.pin_batch(space, &[key], 0, &mut pins));
        assert_eq!(pins[0].as_deref(), Some(&[n][..]));
    }
}

#[test]
fn spaces_are_bounded_and_listed_in_order() {
    let engine = engine(4 << 20);
    for name in ["a", "b", "c", "d", "a"] {
        space(&engine, name);
    }
    let fifth = engine.open_space(SpaceDescription::named("e").unwrap());
    assert_eq!(fifth.unwrap_err(), OpenSpaceError::TooMany(4));
    assert!(engine.spaces().is_sorted_by_key(|space| space.id()));
    let id = SpaceDescription::named("b").unwrap().id();
    assert_eq!(engine.space(id).unwrap().description().field("name"), Some("b"));
}

#[test]
fn the_status_tells_what_is_there() {
    let engine = engine(8 << 20);
    let space = space(&engine, "a");
    put(&engine, &space, b"k", &[1; 5000]).unwrap();
    let status = engine.status();
    assert_eq!((status.capacity_bytes, status.chunk_bytes, status.chunks), (8 << 20, 4 * MIB, 2));
    assert_eq!((status.used_slot_bytes, status.asked_bytes, status.page_bytes), (8192, 5000, 5000));
    assert_eq!((status.pages, status.spaces, status.chunks_free), (1, 1, 1));
    assert_eq!(status.classes.len(), 1);
    assert_eq!(
        (status.classes[0].slot_bytes, status.classes[0].in_use, status.classes[0].slots),
        (8192, 1, 512)
    );
    assert!(status.index_bytes > 0);
    assert_eq!((status.counters.stored_pages, status.counters.stored_bytes), (1, 5000));
}

#[test]
fn handles_and_futures_move_between_threads() {
    fn both<T: Send + Sync>() {}
    fn send<T: Send>(_: &T) {}
    both::<Engine>();
    both::<Filling>();
    both::<Sealed>();
    both::<PagePin>();
    let engine = engine(4 << 20);
    let space = space(&engine, "a");
    let keys = [hashed(&space, b"k")];
    let mut pins = Vec::new();
    send(&engine.pin_batch(&space, &keys, 0, &mut pins));
}
