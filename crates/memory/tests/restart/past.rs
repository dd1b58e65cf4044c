//! Files that are not what this process would have written.

use super::*;
use memkv_memory::{ArenaError, Past};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// A closed arena with one page.
fn closed() -> (tempfile::TempDir, PathBuf) {
    let place = place();
    let (arena, _) = open(place.path());
    put(&arena, b"key").unwrap();
    arena.close().unwrap();
    let file = place.path().join("memkv.arena");
    (place, file)
}

/// Opens an arena that must start empty, checks that it works, and returns why it is empty.
fn discarded(config: ArenaConfig<'_>) -> String {
    let (arena, recovered) = Arena::open(config.clone()).unwrap();
    let recovered = recovered.unwrap();
    let Past::Discarded(reason) = recovered.past().clone() else { panic!("{:?} was kept", recovered.past()) };
    assert_eq!(recovered.count(), 0);
    assert_eq!(arena.status().asked_bytes, 0);
    let id = put(&arena, b"new").unwrap();
    assert_eq!(&arena.pin(id).unwrap()[..], page_of(b"new"));
    drop(arena);
    let (_, recovered) = Arena::open(config).unwrap();
    assert_eq!(recovered.unwrap().pages(), 1, "the next start finds what was put since");
    reason
}

#[test]
fn another_size_starts_empty() {
    let (place, _) = closed();
    let reason = discarded(config(place.path(), 32 << 20));
    assert!(reason.contains("16777216 bytes in 4 chunks, now the memory is 33554432 bytes in 8"), "{reason}");
    let chunks = ArenaConfig { page_bytes_max: 5 << 20, ..config(place.path(), 128 << 20) };
    discarded(chunks.clone());
    // The page limit alone changes nothing that lies in the file.
    let limit = ArenaConfig { page_bytes_max: 6 << 20, ..chunks };
    let (_, recovered) = Arena::open(limit).unwrap();
    assert_eq!(recovered.unwrap().past(), &Past::Unclean);
}

#[test]
fn every_damage_of_the_header_is_noticed() {
    let (place, file) = closed();
    let whole = fs::read(&file).unwrap();
    for byte in 0..80 {
        let file = OpenOptions::new().write(true).open(&file).unwrap();
        file.write_all_at(&[whole[byte] ^ 0x10], byte as u64).unwrap();
        drop(file);
        match Arena::open(config(place.path(), 16 << 20)) {
            Ok((arena, recovered)) => {
                let recovered = recovered.unwrap();
                assert!(matches!(recovered.past(), Past::Discarded(_)), "byte {byte}");
                assert_eq!((recovered.count(), arena.held_bytes()), (0, 0));
            }
            Err(error) => assert!((8..16).contains(&byte), "byte {byte}: {error}"),
        }
        fs::write(place.path().join("memkv.arena"), &whole).unwrap();
    }
    let (_, recovered) = open(place.path());
    assert_eq!((recovered.past(), recovered.pages()), (&Past::Clean, 1), "the undamaged one still works");
}

#[test]
fn a_file_that_is_too_short_starts_empty() {
    for len in [1, 95, 96, 4096, 3 << 20] {
        let (place, file) = closed();
        OpenOptions::new().write(true).open(&file).unwrap().set_len(len).unwrap();
        let reason = discarded(config(place.path(), 16 << 20));
        assert!(reason.contains(if len < 96 { "too short" } else { "instead of" }), "{len}: {reason}");
    }
}

#[test]
fn a_file_of_something_else_starts_empty() {
    let place = place();
    fs::write(place.path().join("memkv.arena"), [b'x'; 10_000]).unwrap();
    assert!(discarded(config(place.path(), 16 << 20)).contains("no header"));
}

#[test]
fn an_older_version_starts_empty_and_a_newer_one_is_left_alone() {
    let (place, file) = closed();
    let set = |version: u64| {
        let file = OpenOptions::new().write(true).open(&file).unwrap();
        file.write_all_at(&version.to_ne_bytes(), 8).unwrap();
    };
    set(2);
    let before = fs::read(&file).unwrap();
    let error = Arena::open(config(place.path(), 16 << 20)).err().unwrap();
    assert!(matches!(error, ArenaError::Newer { version: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("run the newer program, or remove the file"), "{error}");
    assert!(fs::read(&file).unwrap() == before, "it is as it was");
    set(0);
    assert!(discarded(config(place.path(), 16 << 20)).contains("older"));
}

#[test]
fn a_chunk_table_of_nonsense_costs_pages_and_nothing_else() {
    let (place, file) = closed();
    let words = [1_u32, 4095, u32::MAX, (4 << 20) + 4096];
    for word in words {
        let whole = fs::read(&file).unwrap();
        let damaged = OpenOptions::new().write(true).open(&file).unwrap();
        (0..4).for_each(|chunk| damaged.write_all_at(&word.to_ne_bytes(), 4096 + chunk * 4).unwrap());
        let (arena, recovered) = open(place.path());
        assert_eq!((recovered.count(), arena.status().chunks_free), (0, 4));
        while put(&arena, b"key").is_ok() {}
        drop(arena);
        fs::write(&file, whole).unwrap();
    }
}

#[test]
fn a_directory_that_cannot_be_had_is_an_error_with_advice() {
    let place = place();
    fs::write(place.path().join("file"), b"").unwrap();
    let error = Arena::open(config(&place.path().join("file"), 16 << 20)).err().unwrap();
    assert!(error.to_string().contains("check the directory"), "{error}");
}
