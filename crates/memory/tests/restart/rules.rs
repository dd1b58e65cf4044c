//! What comes back, and how.

use super::*;
use memkv_memory::{ArenaError, Past};
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

const FILE: &str = "memkv.arena";

/// The state of the file as a process would leave it that dies now.
fn dead_copy(of: &Path) -> tempfile::TempDir {
    let copy = place();
    fs::copy(of.join(FILE), copy.path().join(FILE)).unwrap();
    copy
}

fn keys(recovered: Recovered) -> Vec<Vec<u8>> {
    let mut keys: Vec<_> = recovered.map(|page| page.key().to_vec()).collect();
    keys.sort();
    keys
}

#[test]
fn a_closed_arena_gives_everything_back() {
    // In memory and, unless it is the same, on a drive.
    for place in [place(), tempfile::tempdir().unwrap()] {
        gives_everything_back(&place);
    }
}

fn gives_everything_back(place: &tempfile::TempDir) {
    let long = [b'k'; 512];
    let names: [&[u8]; 4] = [b"one", b"two", b"three", &long];
    {
        let (arena, recovered) = open(place.path());
        assert_eq!((recovered.past(), recovered.pages()), (&Past::New, 0));
        for key in names {
            let id = put(&arena, key).unwrap();
            arena.hit(id, 5000);
        }
        arena.close().unwrap();
        assert!(arena.reserve(1).is_err(), "a closed arena takes nothing");
    }
    let (arena, recovered) = open(place.path());
    assert_eq!((recovered.past(), recovered.pages(), recovered.dropped()), (&Past::Clean, 4, 0));
    let asked: u64 = names.iter().map(|key| page_of(key).len() as u64).sum();
    assert_eq!((recovered.bytes(), arena.status().asked_bytes), (asked, asked));
    let mut found = 0;
    for page in recovered {
        let key = page.key().to_vec();
        assert!(names.contains(&&key[..]) && page.space() == SPACE && page.clean);
        assert_eq!(page.record, record_of(&key));
        assert_eq!((page.last_access_ms, page.hits), (5000, 1));
        let pin = arena.pin(page.slot).unwrap();
        assert!(pin.is_verified());
        assert_eq!(&pin[..], page_of(&key));
        assert!(pin.blocks()[pin.len()..].iter().all(|&byte| byte == 0));
        found += 1;
    }
    assert_eq!(found, 4);
}

#[test]
fn the_books_go_on_where_they_ended() {
    let place = place();
    let (arena, _) = open(place.path());
    let mut slots = Vec::new();
    for n in 0..200_u32 {
        slots.extend(put(&arena, &n.to_le_bytes()));
    }
    for id in slots.iter().step_by(3) {
        arena.doom(*id);
    }
    let before = arena.status();
    arena.close().unwrap();
    drop(arena);
    let (arena, recovered) = open(place.path());
    let after = arena.status();
    assert_eq!((before.held_bytes, before.asked_bytes), (after.held_bytes, after.asked_bytes));
    assert_eq!(before.chunks_free, after.chunks_free);
    let shape = |status: &memkv_memory::ArenaStatus| -> Vec<_> {
        let used = status.classes.iter().filter(|class| class.chunks > 0);
        used.map(|class| (class.slot_bytes, class.chunks, class.in_use, class.asked_bytes)).collect()
    };
    assert_eq!(shape(&before), shape(&after));
    // No slot of a page that was kept is handed out again, and every page can go.
    let kept: Vec<_> = recovered.collect();
    for n in 1000..1100_u32 {
        if let Ok(id) = put(&arena, &n.to_le_bytes()) {
            assert!(kept.iter().all(|page| page.slot != id));
        }
    }
    for page in &kept {
        assert_eq!(&arena.pin(page.slot).unwrap()[..], page_of(page.key()));
        assert!(arena.doom(page.slot));
    }
}

#[test]
fn after_an_unclean_end_pages_wait_for_their_verification() {
    let place = place();
    put(&open(place.path()).0, b"key").unwrap();
    let (arena, mut recovered) = open(place.path());
    assert_eq!(recovered.past(), &Past::Unclean);
    let page = recovered.next().unwrap();
    assert!(!page.clean && !arena.page(page.slot).unwrap().verified);
    let pin = arena.pin(page.slot).unwrap();
    assert!(!pin.is_verified());
    assert_eq!(pin.meta(), record_of(b"key").meta, "the mark is not part of the flags");
    let other = put(&arena, b"other").unwrap();
    assert!(arena.page(other).unwrap().verified, "a new page needs no verification");
    arena.close().unwrap();
    drop((arena, recovered, pin));

    let (arena, mut recovered) = open(place.path());
    assert_eq!(recovered.past(), &Past::Clean);
    let page = recovered.find(|page| page.key() == b"key").unwrap();
    assert!(!page.clean, "a clean end does not verify what nobody has verified");
    arena.verified(page.slot);
    assert!(arena.page(page.slot).unwrap().verified);
}

#[test]
fn a_dead_process_leaves_no_pins_reservations_or_doomed_pages() {
    let place = place();
    let (arena, _) = open(place.path());
    let pinned = arena.pin(put(&arena, b"pinned").unwrap()).unwrap();
    let doomed = arena.pin(put(&arena, b"doomed").unwrap()).unwrap();
    assert!(arena.doom(doomed.id()));
    let reserved = arena.reserve(5000).unwrap();
    let sealed = arena.reserve(5000).unwrap().0.seal();
    let dead = dead_copy(place.path());
    let (arena, recovered) = open(dead.path());
    assert_eq!(keys(recovered), [b"pinned"]);
    assert_eq!(arena.page(pinned.id()).unwrap().pins, 0);
    assert_eq!(arena.status().asked_bytes, page_of(b"pinned").len() as u64);
    assert!(arena.doom(pinned.id()));
    assert_eq!(arena.status().chunks_free, arena.chunk_count());
    drop((reserved, sealed, pinned, doomed));
}

#[test]
fn bytes_past_a_page_are_zero_for_every_later_owner() {
    let place = place();
    let (arena, _) = open(place.path());
    let fill = |arena: &Arc<Arena>, byte: u8, len: u32| {
        let (mut slot, _) = arena.reserve(len).unwrap();
        slot.whole_mut().fill(byte);
        let record = PageRecord { digest: digest_of(&[byte]), ..PageRecord::default() };
        slot.seal().publish(&record, &SPACE, &[byte])
    };
    let id = fill(&arena, 0xaa, 8192);
    arena.doom(id);
    drop(arena);
    let (arena, _) = open(place.path());
    let pin = arena.pin(fill(&arena, 0xbb, 5000)).unwrap();
    assert!(pin.blocks()[5000..].iter().all(|&byte| byte == 0));
    // A drive whose machine lost power may have kept an older tail.
    let (copy, offset) = (tempfile::tempdir().unwrap(), data_offset(place.path()));
    fs::copy(place.path().join(FILE), copy.path().join(FILE)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(copy.path().join(FILE)).unwrap();
    file.write_all_at(&[0xaa; 100], offset + 5000).unwrap();
    let (arena, mut recovered) = open(copy.path());
    let pin = arena.pin(recovered.next().unwrap().slot).unwrap();
    assert!(pin[..5000].iter().all(|&byte| byte == 0xbb));
    if arena.status().memory.file_system == Some("a drive") {
        assert!(pin.blocks()[5000..].iter().all(|&byte| byte == 0));
    }
}

fn data_offset(place: &Path) -> u64 {
    word(place, 7)
}

fn word(place: &Path, at: u64) -> u64 {
    let mut bytes = [0; 8];
    fs::File::open(place.join(FILE)).unwrap().read_exact_at(&mut bytes, at * 8).unwrap();
    u64::from_ne_bytes(bytes)
}

#[test]
fn a_page_whose_name_is_damaged_is_dropped() {
    let place = place();
    let id = put(&open(place.path()).0, b"key").unwrap();
    put(&open(place.path()).0, b"other").unwrap();
    // The key's own bytes, its length, and the digest in the record.
    let (records, names) = (word(place.path(), 5), word(place.path(), 6));
    let (record, name) = (u64::from(id.to_bits()) * 64, u64::from(id.to_bits()) * 536);
    for at in [names + name, names + name + 16, names + name + 24, records + record + 32] {
        let copy = dead_copy(place.path());
        let file = fs::OpenOptions::new().read(true).write(true).open(copy.path().join(FILE)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
        let (arena, recovered) = open(copy.path());
        assert_eq!((recovered.pages(), recovered.dropped()), (1, 1));
        assert_eq!(keys(recovered), [b"other"]);
        assert!(arena.page(id).is_none());
        put(&arena, b"again").unwrap();
    }
}

#[test]
fn a_second_user_is_told_who_has_it() {
    let place = place();
    let (arena, _) = open(place.path());
    let error = Arena::open(config(place.path(), 16 << 20)).err().unwrap();
    assert!(matches!(error, ArenaError::InUse { .. }));
    let who = format!("in use by process {}; stop it", std::process::id());
    assert!(error.to_string().contains(&who), "{error}");
    drop(arena);
    open(place.path());
}

#[test]
fn tables_of_large_pages_cost_little() {
    // Not on a file system that may have huge pages.
    let place = tempfile::tempdir().unwrap();
    let (arena, recovered) = open(place.path());
    while let Ok((slot, _)) = arena.reserve(1 << 20) {
        slot.seal().publish(&PageRecord::default(), &SPACE, b"key");
    }
    assert_eq!(arena.status().held_bytes, 16 << 20);
    let tables = fs::metadata(place.path().join(FILE)).unwrap().blocks() * 512 - (16 << 20);
    assert!(tables <= 96 << 10, "{tables} bytes of tables for four chunks");
    drop(recovered);
}

#[test]
fn the_status_tells_where_the_memory_is() {
    let place = place();
    let (arena, _) = open(place.path());
    let memory = arena.status().memory;
    assert_eq!(memory.file, Some(place.path().join(FILE)));
    assert!(memory.file_system.is_some() && !memory.locked && memory.undumped);
    let memory = Arena::new(config(place.path(), 16 << 20)).unwrap().status().memory;
    assert_eq!((memory.file, memory.file_system), (None, None), "`new` has no file");
}

/// Writes a file as the format is documented, without the code that writes it.
#[test]
fn a_file_of_version_1_made_by_hand_is_read() {
    const CHUNK: u64 = 4 << 20;
    let place = place();
    let (slots, keys) = (8192, 8192 + 2 * 1024 * 64);
    let data = 2 << 20;
    let file = fs::File::create(place.path().join(FILE)).unwrap();
    file.set_len(data + 2 * CHUNK).unwrap();
    let head = [0x4d45_4d4b_5641_5245, 1, CHUNK, 2, 4096, slots, keys, data, data + 2 * CHUNK];
    let head: Vec<u8> = head.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
    file.write_all_at(&head, 0).unwrap();
    file.write_all_at(&PageHasher::oneshot(0, &head).to_ne_bytes(), 72).unwrap();
    file.write_all_at(&1_u64.to_ne_bytes(), 80).unwrap();
    // The second chunk has slots of 8 KiB, and its third slot a page of 5000 bytes.
    file.write_all_at(&8192_u32.to_ne_bytes(), 4096 + 4).unwrap();
    let (digest, page) = (digest_of(b"by hand"), [0x5a; 5000]);
    let mut record = Vec::new();
    record.extend((1_u32 << 31 | 3).to_ne_bytes());
    record.extend(5000_u32.to_ne_bytes());
    record.extend((77_000_u64 << 20 | 12).to_ne_bytes());
    record
        .extend([66_000, PageHasher::oneshot(digest, &page), digest, 55, 44].map(u64::to_ne_bytes).concat());
    record.extend(33_u32.to_ne_bytes());
    record.extend((0xabcd_u32 << 8 | 9).to_ne_bytes());
    file.write_all_at(&record, slots + 1026 * 64).unwrap();
    let name = [&SPACE[..], &7_u64.to_ne_bytes(), b"by hand"].concat();
    file.write_all_at(&name, keys + 1026 * 536).unwrap();
    file.write_all_at(&page, data + CHUNK + 2 * 8192).unwrap();

    let (arena, recovered) = Arena::open(config(place.path(), 8 << 20)).unwrap();
    let mut recovered = recovered.unwrap();
    assert_eq!((recovered.past(), recovered.pages(), recovered.bytes()), (&Past::Clean, 1, 5000));
    let found = recovered.next().unwrap();
    assert_eq!((found.key(), found.space(), found.clean), (&b"by hand"[..], SPACE, true));
    assert_eq!((found.last_access_ms, found.hits, found.slot.to_bits()), (77_000, 12, 1026));
    let meta = PageMeta { len: 5000, codec: 9, flags: 0xabcd, checksum: PageHasher::oneshot(digest, &page) };
    let record = PageRecord { meta, digest, position: 33, now_ms: 66_000, policy: 55, extent: 44 };
    assert_eq!(found.record, record);
    assert_eq!(&arena.pin(found.slot).unwrap()[..], page);
    assert!(recovered.next().is_none());
}
