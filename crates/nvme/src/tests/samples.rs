//! Files of every released version are in the tree, and are read.
//!
//! The sample of version 1 is a drive with a sealed and an open segment, as a server left it: pages `sample0` to
//! `sample5` in one space, of which `sample1` was deleted, and one page of a space that was cleared.

use super::bed::{Bed, OTHER, SPACE, names, strs};
use crate::IoChoice;
use memkv_core::SpaceDescription;
use std::fs;
use std::path::{Path, PathBuf};

const LENS: [usize; 6] = [0, 1, 5000, 4096, 300, 9000];

fn samples(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(version)
}

/// Writes what a sample holds.
fn write_sample(bed: &mut Bed) {
    let (log, _) = bed.open();
    log.note_space(&SpaceDescription::named("sample").unwrap()).unwrap();
    let keys = names("sample", 6);
    for (key, len) in keys[..3].iter().zip(LENS) {
        bed.put(&log, &[key], len);
    }
    log.append(vec![bed.page(OTHER, "other", 100)]).wait()[0].unwrap();
    log.close();
    drop(log);
    let (log, _) = bed.open();
    bed.delete(&log, &["sample1"]).unwrap();
    log.clear_space(OTHER).wait().unwrap();
    for (key, len) in keys[3..].iter().zip(&LENS[3..]) {
        bed.put(&log, &[key], *len);
    }
}

/// Opens a copy of a sample and checks what comes out.
fn check(bed: &mut Bed, report_scanned: u64) {
    let (log, report) = bed.open();
    let keys = names("sample", 6);
    for (turn, key) in keys.iter().enumerate() {
        assert_eq!(bed.has(&log, key), turn != 1, "{key}");
    }
    assert_eq!((report.pages, report.deleted), (5, 2));
    assert_eq!((report.sealed_segments, report.scanned_segments), (1, report_scanned));
    assert_eq!((report.damaged_headers, report.damaged_pages, report.lost_segments), (0, 0, 0));
    let known = bed.holder.known.lock();
    let (head, ..) = &known.pages[&super::bed::digest(SPACE, "sample2")];
    assert_eq!((head.position, head.created_ms, head.hits), (5, 1_700_000_000_123, 2));
    assert_eq!((head.meta.codec, head.meta.flags, head.meta.len), (3, 9, 5000));
    drop(known);
    assert_eq!(log.spaces(), vec![SpaceDescription::named("sample").unwrap()]);
    assert!(strs(&keys).iter().all(|key| !bed.put(&log, &[key], 10).is_empty()));
}

#[test]
fn a_drive_of_version_1_is_read() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    fs::create_dir(bed.path(0)).unwrap();
    for entry in fs::read_dir(samples("v1")).unwrap() {
        let entry = entry.unwrap();
        let mut bytes = fs::read(entry.path()).unwrap();
        // Zero blocks at the end of the open segment are left out of the tree.
        if entry.file_name().to_str().unwrap().ends_with(".segment") && bytes.len() < 120 * 1024 {
            bytes.resize(bytes.len().max(4096).next_multiple_of(4096), 0);
        }
        fs::write(bed.path(0).join(entry.file_name()), bytes).unwrap();
    }
    check(&mut bed, 1);
}

/// What is written today is what the sample holds; with `MEMKV_WRITE_SAMPLES` set to a directory, it is written there.
#[test]
fn todays_files_are_like_the_sample() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    write_sample(&mut bed);
    if let Some(to) = std::env::var_os("MEMKV_WRITE_SAMPLES") {
        let to = Path::new(&to);
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(bed.path(0)).unwrap() {
            let entry = entry.unwrap();
            let mut bytes = fs::read(entry.path()).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(used.next_multiple_of(4096).min(bytes.len()));
            // The lock and empty spare segments are no part of the format.
            let name = entry.file_name().into_string().unwrap();
            let empty = name.ends_with(".segment") && used <= 4096;
            if name != "memkv-lock" && !empty {
                fs::write(to.join(entry.file_name()), bytes).unwrap();
            }
        }
    }
    check(&mut bed, 1);
}
