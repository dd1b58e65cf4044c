//! Directories: swapped, missing, doubled, locked, foreign, or from a later version.

use super::bed::{Bed, names, strs};
use crate::format::BLOCK;
use crate::{IoChoice, Log, LogError};
use std::fs;

fn filled(drives: usize) -> (Bed, Vec<String>) {
    let mut bed = Bed::new(drives, IoChoice::Auto);
    let (log, _) = bed.open();
    let keys = names("k", 24);
    assert!(bed.put(&log, &strs(&keys), 5000).iter().all(Result::is_ok));
    log.close();
    (bed, keys)
}

fn error(bed: &Bed) -> LogError {
    Log::open(bed.config.clone(), &mut |_| true).err().expect("this is refused")
}

#[test]
fn swapped_paths_do_no_harm() {
    let (mut bed, keys) = filled(3);
    bed.config.drives.rotate_left(1);
    let (log, report) = bed.open();
    assert_eq!((report.pages, report.retired_drives), (24, 0));
    assert!(keys.iter().all(|key| bed.has(&log, key)));
}

#[test]
fn a_drive_that_was_away_comes_back_empty() {
    let (mut bed, keys) = filled(2);
    let all = bed.config.drives.clone();
    bed.config.drives.remove(0);
    let (log, report) = bed.open();
    assert!(report.pages > 0 && report.pages < 24);
    let there: Vec<_> = keys.iter().filter(|key| bed.has(&log, key)).collect();
    log.close();
    drop(log);
    bed.config.drives = all;
    let (log, again) = bed.open();
    assert_eq!((again.pages, again.retired_drives), (report.pages, 1));
    assert!(there.iter().all(|key| bed.has(&log, key)));
    log.close();
    drop(log);
    let (_, third) = bed.open();
    assert_eq!((third.pages, third.retired_drives), (report.pages, 0));
}

#[test]
fn one_drive_twice_is_refused() {
    let (mut bed, _) = filled(2);
    let path = bed.path(0);
    bed.config.drives[1].path = path.join(".");
    assert!(matches!(error(&bed), LogError::SameDrive(..)));
    let copy = bed.path(1).join("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(path.join("memkv-drive"), copy.join("memkv-drive")).unwrap();
    bed.config.drives[1].path = copy;
    assert!(matches!(error(&bed), LogError::SameDrive(..)));
}

#[test]
fn a_directory_in_use_is_refused() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    assert!(matches!(error(&bed), LogError::InUse(_)));
    log.close();
    assert!(matches!(error(&bed), LogError::InUse(_)), "until it is let go");
    drop(log);
    bed.open();
}

#[test]
fn a_later_version_is_refused_and_left_as_it_is() {
    let (bed, _) = filled(1);
    let segment = bed.segment_files(0).remove(0);
    for (file, at) in
        [(segment, 0), (bed.path(0).join("memkv-drive"), 0), (bed.segment_files(0).remove(0), BLOCK)]
    {
        let before = fs::read(&file).unwrap();
        let mut later = before.clone();
        later[at + 8..at + 12].copy_from_slice(&2_u32.to_le_bytes());
        let end = later.len().min(at + BLOCK);
        let sum = crate::format::checksum(2, &later[at + 24..end]);
        later[at + 16..at + 24].copy_from_slice(&sum.to_le_bytes());
        fs::write(&file, &later).unwrap();
        let listed = listing(&bed);
        match error(&bed) {
            LogError::Newer { path, version, known } => {
                assert_eq!((path, version, known), (file.clone(), 2, 1))
            }
            other => panic!("{other}"),
        }
        assert_eq!(fs::read(&file).unwrap(), later, "nothing was changed");
        assert_eq!(listing(&bed), listed);
        fs::write(&file, &before).unwrap();
    }
}

fn listing(bed: &Bed) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(bed.path(0)).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn foreign_files_are_left_alone() {
    let (mut bed, keys) = filled(1);
    let foreign = ["notes.txt", "memkv-00000000000000ff.segment", "memkv-xyz.segment", "memkv-1.segment"];
    for name in foreign {
        fs::write(bed.path(0).join(name), b"somebody else's").unwrap();
    }
    fs::create_dir(bed.path(0).join("lost+found")).unwrap();
    let (log, report) = bed.open();
    assert_eq!((report.pages, report.foreign_files), (24, 1));
    assert!(keys.iter().all(|key| bed.has(&log, key)));
    for part in names("m", 60).chunks(6) {
        assert!(bed.put(&log, &strs(part), 20_000).iter().all(Result::is_ok));
    }
    log.close();
    for name in foreign {
        assert_eq!(fs::read(bed.path(0).join(name)).unwrap(), b"somebody else's", "{name}");
    }
}

#[test]
fn a_lost_card_drops_the_pages_that_it_named() {
    let (mut bed, keys) = filled(1);
    fs::remove_file(bed.path(0).join("memkv-drive")).unwrap();
    let (log, report) = bed.open();
    assert_eq!(report.pages, 0);
    assert!(report.lost_segments > 0);
    assert!(!keys.iter().any(|key| bed.has(&log, key)));
    assert!(bed.put(&log, &["new"], 100)[0].is_ok());
}

#[test]
fn leftovers_of_a_crash_are_cleaned_up() {
    let (mut bed, _) = filled(1);
    fs::write(bed.path(0).join("memkv-0000000000000100.segment"), vec![0; 3 * BLOCK]).unwrap();
    fs::write(bed.path(0).join("memkv-0000000000000101.segment"), b"").unwrap();
    fs::write(bed.path(0).join("memkv-drive.new"), b"half").unwrap();
    let (log, report) = bed.open();
    assert_eq!((report.pages, report.lost_segments, report.foreign_files), (24, 0, 0));
    assert!(bed.put(&log, &["new"], 100)[0].is_ok());
    let names: Vec<_> =
        bed.segment_files(0).iter().map(|file| file.file_name().unwrap().to_owned()).collect();
    assert!(names.iter().all(|name| name != "memkv-0000000000000100.segment"), "{names:?}");
    assert!(names.iter().any(|name| name == "memkv-0000000000000102.segment"), "numbers go on: {names:?}");
}
