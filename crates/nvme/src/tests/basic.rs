//! What works when nothing goes wrong.

use super::bed::{Bed, OTHER, SPACE, digest, names, strs, ways};
use crate::{DriveState, Dropped, Gone, IoBackend, IoChoice, LogConfig, LogError, ReadError, SegmentState};
use memkv_core::SpaceDescription;

#[test]
fn pages_come_back_at_once_and_after_a_restart() {
    for io in ways() {
        for (drives, sync) in [(1, false), (1, true), (3, false)] {
            let mut bed = Bed::new(drives, io);
            bed.config.sync = sync;
            let (log, report) = bed.open();
            assert_eq!((report.pages, report.scanned_segments), (0, 0));
            let keys = names("k", 40);
            for (len, part) in [0, 1, 4095, 4096, 4097, 65_536].into_iter().cycle().zip(keys.chunks(4)) {
                let results = bed.put(&log, &strs(part), len);
                assert!(results.iter().all(Result::is_ok), "{results:?}");
            }
            assert!(keys.iter().all(|key| bed.has(&log, key)));
            let status = log.status();
            assert_eq!(status.drives.iter().map(|drive| drive.writes).sum::<u64>(), 40);
            assert_eq!(status.drives.iter().map(|drive| drive.live_pages).sum::<u64>(), 40);
            assert!(status.drives.iter().all(|drive| drive.state == DriveState::Ok && drive.writes > 0));
            log.close();
            drop(log);
            let (log, report) = bed.open();
            assert_eq!((report.pages, report.scanned_segments, report.damaged_headers), (40, 0, 0));
            assert!(keys.iter().all(|key| bed.has(&log, key)));
        }
    }
}

#[test]
fn an_unsealed_log_is_scanned_and_then_sealed() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    bed.put(&log, &["a", "b"], 5000);
    bed.put(&log, &["c"], 100);
    drop(log);
    let (log, report) = bed.open();
    assert_eq!((report.pages, report.scanned_segments, report.sealed_segments), (3, 1, 0));
    assert_eq!((report.damaged_headers, report.damaged_pages), (0, 0));
    assert!(["a", "b", "c"].iter().all(|key| bed.has(&log, key)));
    drop(log);
    let (log, report) = bed.open();
    assert_eq!((report.pages, report.scanned_segments, report.sealed_segments), (3, 0, 1));
    assert!(["a", "b", "c"].iter().all(|key| bed.has(&log, key)));
}

#[test]
fn the_head_of_a_page_comes_back_whole() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    for sealed in [true, false] {
        let (log, _) = bed.open();
        let key = format!("head {sealed} {}", "x".repeat(490));
        let page = bed.page(OTHER, &key, 777);
        let head = page.head.clone();
        let extent = log.append(vec![page]).wait()[0].unwrap();
        if sealed {
            log.close();
        }
        drop(log);
        let (_log, _) = bed.open();
        let known = bed.holder.known.lock();
        let (found, place, sequence) = &known.pages[&head.digest];
        assert_eq!((found, *place), (&head, extent));
        assert!(*sequence > 0);
    }
}

#[test]
fn deleted_and_cleared_pages_stay_away() {
    for io in ways() {
        for sealed in [true, false] {
            let mut bed = Bed::new(2, io);
            let (log, _) = bed.open();
            let keys = names("k", 12);
            bed.put(&log, &strs(&keys), 4096);
            bed.delete(&log, &["k0", "k1", "k2"]).unwrap();
            let other = log.append(vec![bed.page(OTHER, "k0", 99)]).wait();
            assert!(other[0].is_ok());
            log.clear_space(OTHER).wait().unwrap();
            bed.put(&log, &["k1"], 4096);
            if sealed {
                log.close();
            }
            drop(log);
            let (log, report) = bed.open();
            let there: Vec<_> = keys.iter().filter(|key| bed.has(&log, key)).collect();
            assert_eq!(there.len(), 10, "k0 and k2 are gone: {there:?}");
            assert!(!there.iter().any(|key| *key == "k0" || *key == "k2"));
            assert!(!bed.holder.known.lock().pages.contains_key(&digest(OTHER, "k0")));
            assert_eq!((report.pages, report.deleted), (10, 4));
        }
    }
}

#[test]
fn a_deletion_also_ends_what_was_queued_before_it() {
    let mut bed = Bed::new(1, IoChoice::Threads);
    let plan = bed.faults();
    let (log, _) = bed.open();
    bed.put(&log, &["first"], 10);
    plan.hold_writes();
    let before = log.append(vec![bed.page(SPACE, "k", 10)]);
    let deleted = log.delete(&[Gone { space: SPACE, digest: digest(SPACE, "k") }]);
    let after = log.append(vec![bed.page(SPACE, "l", 10)]);
    plan.release();
    assert!(before.wait()[0].is_ok() && after.wait()[0].is_ok());
    deleted.wait().unwrap();
    drop(log);
    let (log, _) = bed.open();
    assert!(!bed.has(&log, "k"));
    assert!(bed.has(&log, "l") && bed.has(&log, "first"));
}

#[test]
fn spaces_are_kept() {
    let mut bed = Bed::new(2, IoChoice::Auto);
    let (log, _) = bed.open();
    let (one, two) = (SpaceDescription::named("one").unwrap(), SpaceDescription::named("two").unwrap());
    log.note_space(&one).unwrap();
    log.note_space(&two).unwrap();
    log.note_space(&one).unwrap();
    drop(log);
    std::fs::write(bed.path(0).join("memkv-spaces"), b"memkvspc damaged").unwrap();
    let (log, _) = bed.open();
    let mut spaces = log.spaces();
    spaces.sort_by_key(|space| space.field("name").map(str::to_owned));
    assert_eq!(spaces, vec![one, two]);
}

#[test]
fn reads_are_refused_where_there_is_nothing() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    let extent = bed.put(&log, &["a"], 5000)[0].unwrap();
    let read = |extent, len| log.read(extent, bed.slot(len)).wait().err();
    assert_eq!(read(extent, 5000), None);
    assert_eq!(read(extent, 4096), Some(ReadError::Size));
    let bits = extent.to_bits();
    // Another drive, a segment far behind the spare ones that may be made by now, a block behind the segment's end.
    for bit in [52, 45, 31] {
        let other = crate::Extent::from_bits(bits ^ 1 << bit).unwrap();
        assert_eq!(read(other, 5000), Some(ReadError::Gone), "bit {bit}");
    }
    log.close();
    assert_eq!(read(extent, 5000), Some(ReadError::Gone), "a closed log reads nothing");
    assert_eq!(log.append(vec![bed.page(SPACE, "b", 1)]).wait(), vec![Err(Dropped::DriveFailed)]);
    assert_eq!(log.delete(&[]).wait(), Ok(()));
    assert!(log.clear_space(SPACE).wait().is_err());
}

#[test]
fn a_dropped_read_gives_its_slot_back() {
    for io in ways() {
        let mut bed = Bed::new(1, io);
        let (log, _) = bed.open();
        let extent = bed.put(&log, &["a"], 60_000)[0].unwrap();
        let held = bed.arena.held_bytes();
        for _ in 0..200 {
            drop(log.read(extent, bed.slot(60_000)));
        }
        assert!(bed.has(&log, "a"));
        drop(log);
        assert_eq!(bed.arena.held_bytes(), held, "a slot is still reserved");
        assert_eq!(held, 0);
    }
}

#[test]
fn released_pages_are_not_live() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    let extents: Vec<_> = bed.put(&log, &["a", "b"], 5000).into_iter().map(Result::unwrap).collect();
    assert_eq!(log.status().drives[0].live_bytes, 16_384);
    log.release(extents[0]);
    let status = &log.status().drives[0];
    assert_eq!((status.live_bytes, status.live_pages), (8192, 1));
    log.release(extents[0]);
    log.release(extents[1]);
    assert_eq!(log.status().drives[0].live_pages, 0);
}

#[test]
fn segments_fill_and_are_sealed_in_order() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    let keys = names("k", 30);
    for key in &keys {
        assert!(bed.put(&log, &[key], 60_000)[0].is_ok());
    }
    log.close();
    let segments = log.segments();
    assert!(segments.len() > 10, "{}", segments.len());
    assert!(segments.iter().all(|segment| segment.state == SegmentState::Sealed));
    assert!(segments.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    assert_eq!(segments.iter().map(|segment| segment.live_pages).sum::<u64>(), 30);
    let files: u64 = bed.segment_files(0).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(files, log.status().drives[0].used_bytes);
}

#[test]
fn a_walk_verifies_every_page() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    bed.put(&log, &["a", "b", "c"], 9000);
    let active = log.segments().into_iter().find(|segment| segment.state == SegmentState::Active).unwrap();
    let walk = |log: &crate::Log| log.walk(0, active.sequence).unwrap().collect::<Vec<_>>();
    let walked = walk(&log);
    assert_eq!(walked.len(), 3);
    assert!(walked.iter().all(|page| page.intact));
    log.close();
    assert_eq!(walk(&log), walked, "the footer says the same as memory did");
    flip(&bed, walked[1].extent.offset() + 8999);
    let intact: Vec<_> = walk(&log).iter().map(|page| page.intact).collect();
    assert_eq!(intact, [true, false, true]);
    assert!(log.walk(0, 999).is_none() && log.walk(1, active.sequence).is_none());
}

fn flip(bed: &Bed, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&bed.segment_files(0)[0]).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn the_way_of_io_is_told() {
    let mut bed = Bed::new(1, IoChoice::Threads);
    let (log, _) = bed.open();
    let status = log.status();
    assert_eq!((status.io, status.io_reason.as_str()), (IoBackend::Threads, "threads were chosen"));
    drop(log);
    bed.config.io = IoChoice::Auto;
    let (log, _) = bed.open();
    let status = log.status();
    assert_eq!(status.io == IoBackend::Uring, status.io_reason.starts_with("the kernel gave"), "{status:?}");
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let bed = Bed::new(1, IoChoice::Auto);
    let refused = |change: &dyn Fn(&mut LogConfig)| {
        let mut config = bed.config.clone();
        change(&mut config);
        matches!(crate::Log::open(config, &mut |_| true), Err(LogError::Config(_)))
    };
    assert!(refused(&|config| config.drives.clear()));
    assert!(refused(&|config| config.drives[0].quota_bytes = 300 << 10));
    assert!(refused(&|config| config.page_bytes_max = 0));
    assert!(refused(&|config| config.page_bytes_max = (64 << 20) + 1));
    assert!(refused(&|config| config.queue_depth = 1));
    assert!(!refused(&|_| ()));
}

#[test]
fn pages_beyond_the_limits_are_dropped() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    let results = log.append(vec![bed.page(SPACE, "big", 65_537), bed.page(SPACE, "fits", 65_536)]).wait();
    assert_eq!(results[0], Err(Dropped::Full));
    assert!(results[1].is_ok());
}

#[test]
fn a_log_without_an_owner_can_be_closed_although_it_is_over_its_quota() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    for part in names("k", 60).chunks(6) {
        bed.put(&log, &strs(part), 20_000);
    }
    log.close();
    drop(log);
    bed.config.drives[0].quota_bytes = 8 * (128 << 10);
    let (log, _) = bed.open_without_owner();
    let ticket = log.append(vec![bed.page(SPACE, "late", 100)]);
    log.close();
    assert_eq!(ticket.wait(), vec![Err(Dropped::Full)]);
}

#[test]
fn closing_writes_all_that_was_queued() {
    for io in ways() {
        let mut bed = Bed::new(1, io);
        let (log, _) = bed.open();
        let keys = names("k", 120);
        let pages = keys.iter().map(|key| bed.page(SPACE, key, 30_000)).collect();
        let ticket = log.append(pages);
        log.close();
        assert!(ticket.wait().iter().all(Result::is_ok));
        drop(log);
        let (log, report) = bed.open();
        assert_eq!((report.pages, report.scanned_segments), (120, 0));
        assert!(keys.iter().all(|key| bed.has(&log, key)));
    }
}
