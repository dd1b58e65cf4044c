//! Drives that fail, fill up, or stop in the middle of a write.

use super::bed::{Bed, names, strs, ways};
use crate::{DriveState, Dropped, Fault, FaultRule, IoChoice, Kind, Log, ReadError};
use std::time::Duration;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Waits until the status of the first drive satisfies a condition. The keeper looks after it by itself.
fn until_drive(log: &Log, done: impl Fn(&DriveState) -> bool) {
    for _ in 0..2000 {
        if done(&log.status().drives[0].state) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited too long: {:?}", log.status());
}

fn is_failed(state: &DriveState) -> bool {
    matches!(state, DriveState::Failed(_))
}

#[test]
fn a_write_error_takes_the_drive_out_and_the_others_go_on() {
    for io in ways() {
        for kind in [Kind::Write, Kind::Sync] {
            let mut bed = Bed::new(2, io);
            let plan = bed.faults();
            bed.config.sync = kind == Kind::Sync;
            let (log, _) = bed.open();
            let keys = names("k", 20);
            assert!(bed.put(&log, &strs(&keys), 5000).iter().all(Result::is_ok));
            plan.fail(Some(0), kind, EIO);
            let more = names("m", 20);
            let results = bed.put(&log, &strs(&more), 5000);
            assert!(results.contains(&Err(Dropped::DriveFailed)), "{results:?}");
            bed.until(|known| known.drives_lost == [0]);
            until_drive(&log, is_failed);
            let there = keys.iter().filter(|key| bed.has(&log, key)).count();
            assert!(there > 0 && there < 20, "{there}");
            assert!(bed.put(&log, &["new"], 5000)[0].is_ok());
            assert!(bed.has(&log, "new"));
            assert_eq!(log.status().drives[1].state, DriveState::Ok);
            bed.delete(&log, &["k0"]).unwrap();
            log.close();
        }
    }
}

#[test]
fn pages_of_a_drive_that_was_taken_out_do_not_come_back() {
    let mut bed = Bed::new(2, IoChoice::Auto);
    let plan = bed.faults();
    let (log, _) = bed.open();
    let keys = names("k", 20);
    let extents: Vec<_> = bed.put(&log, &strs(&keys), 5000).into_iter().map(Result::unwrap).collect();
    plan.fail(Some(0), Kind::Write, EIO);
    while !is_failed(&log.status().drives[0].state) {
        bed.put(&log, &["trigger"], 100);
    }
    bed.until(|known| known.drives_lost == [0]);
    // The owner knows nothing of drive 0 any more; a deletion is complete all the same.
    bed.delete(&log, &strs(&keys)).unwrap();
    drop(log);
    plan.heal();
    let (log, report) = bed.open();
    assert_eq!(report.retired_drives, 1);
    assert!(extents.iter().any(|extent| extent.drive() == 0));
    assert!(!keys.iter().any(|key| bed.has(&log, key)), "deleted pages came back");
    assert!(log.status().drives.iter().all(|drive| drive.state == DriveState::Ok));
}

#[test]
fn a_single_drive_that_takes_no_note_makes_deletions_fail() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let plan = bed.faults();
    let (log, _) = bed.open();
    bed.put(&log, &["a"], 100);
    plan.fail(None, Kind::Write, EIO);
    assert_eq!(bed.put(&log, &["b"], 100)[0], Err(Dropped::DriveFailed));
    until_drive(&log, is_failed);
    assert_eq!(bed.delete(&log, &["a"]), Err(Dropped::DriveFailed));
    assert!(!bed.has(&log, "a"));
}

#[test]
fn failed_reads_are_misses_and_many_take_the_drive_out() {
    for io in ways() {
        let mut bed = Bed::new(1, io);
        let plan = bed.faults();
        let (log, _) = bed.open();
        let extent = bed.put(&log, &["a"], 100)[0].unwrap();
        let fault = Fault::Errno(EIO);
        plan.add(FaultRule { drive: None, kind: Some(Kind::Read), skip: 0, times: 1, fault });
        assert_eq!(log.read(extent, bed.slot(100)).wait().err(), Some(ReadError::Io));
        assert!(bed.has(&log, "a"));
        assert_eq!(log.status().drives[0].state, DriveState::Ok);
        plan.fail(None, Kind::Read, EIO);
        for _ in 0..7 {
            assert!(log.read(extent, bed.slot(100)).wait().is_err());
        }
        bed.until(|known| known.drives_lost == [0]);
        assert_eq!(log.read(extent, bed.slot(100)).wait().err(), Some(ReadError::Gone));
    }
}

#[test]
fn short_reads_and_writes_go_on_where_they_stopped() {
    for io in ways() {
        let mut bed = Bed::new(1, io);
        let plan = bed.faults();
        bed.config.sync = true;
        let (log, _) = bed.open();
        for bytes in [512, 4096, 5000, 40_000] {
            let fault = Fault::Short(bytes);
            for kind in [Kind::Write, Kind::Read] {
                plan.add(FaultRule { drive: None, kind: Some(kind), skip: 0, times: 3, fault });
            }
            let keys = names(&format!("s{bytes}-"), 6);
            let results = bed.put(&log, &strs(&keys), 20_000);
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            assert!(keys.iter().all(|key| bed.has(&log, key)));
        }
        assert!(plan.met() >= 12, "{}", plan.met());
        drop(log);
        let (log, report) = bed.open();
        assert_eq!((report.pages, report.damaged_headers, report.damaged_pages), (24, 0, 0));
        assert!(bed.has(&log, "s512-0") && bed.has(&log, "s40000-5"));
    }
}

#[test]
fn a_full_disk_is_a_counted_drop_and_ends_when_there_is_room() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let plan = bed.faults();
    plan.fail(None, Kind::Create, ENOSPC);
    let (log, _) = bed.open();
    until_drive(&log, |state| *state == DriveState::Full);
    assert_eq!(bed.put(&log, &["a"], 100), vec![Err(Dropped::Full)]);
    assert_eq!(log.status().drives[0].dropped.full, 1);
    assert_eq!(bed.delete(&log, &["b"]), Err(Dropped::Full));
    plan.heal();
    until_drive(&log, |state| *state == DriveState::Ok);
    assert!(bed.put(&log, &["a"], 100)[0].is_ok());
    assert!(bed.has(&log, "a"));
}

#[test]
fn pages_that_wait_are_dropped_when_the_disk_is_full() {
    for io in ways() {
        let mut bed = Bed::new(1, io);
        let plan = bed.faults();
        let (log, _) = bed.open_without_owner();
        bed.put(&log, &["first"], 100);
        plan.fail(None, Kind::Create, ENOSPC);
        // The active segment and the spare one take some; the rest is dropped and counted, not left waiting.
        let keys = names("k", 60);
        let results = bed.put(&log, &strs(&keys), 20_000);
        let written = results.iter().filter(|result| result.is_ok()).count();
        assert!(written > 0 && written < 60, "{written}");
        assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Dropped::Full))));
        assert_eq!(log.status().drives[0].dropped.full, 60 - written as u64);
        let there = keys.iter().filter(|key| bed.has(&log, key)).count();
        assert_eq!(there, written);
        plan.heal();
        until_drive(&log, |state| *state == DriveState::Ok);
        assert!(bed.put(&log, &["again"], 20_000)[0].is_ok());
        log.close();
        drop(log);
        let (log, report) = bed.open();
        assert_eq!(report.pages, 2 + written as u64);
        assert!(bed.has(&log, "again") && bed.has(&log, "first"));
    }
}

#[test]
fn a_write_without_room_drops_its_pages_and_the_log_goes_on() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let plan = bed.faults();
    let (log, _) = bed.open();
    bed.put(&log, &["a"], 100);
    // Otherwise the fault may hit the header of a segment that is made ahead.
    bed.settle(&log);
    plan.add(FaultRule {
        drive: None,
        kind: Some(Kind::Write),
        skip: 0,
        times: 1,
        fault: Fault::Errno(ENOSPC),
    });
    assert_eq!(bed.put(&log, &["b"], 100), vec![Err(Dropped::Full)]);
    assert!(bed.put(&log, &["c"], 100)[0].is_ok());
    assert!(bed.has(&log, "a") && bed.has(&log, "c"));
    log.close();
    drop(log);
    let (log, report) = bed.open();
    assert_eq!(report.pages, 2);
    assert!(bed.has(&log, "a") && !bed.has(&log, "b") && bed.has(&log, "c"));
}

#[test]
fn the_backlog_is_bounded() {
    let mut bed = Bed::new(1, IoChoice::Threads);
    let plan = bed.faults();
    bed.config.backlog_bytes = 100_000;
    let (log, _) = bed.open();
    bed.put(&log, &["first"], 100);
    plan.hold_writes();
    let keys = names("k", 30);
    let pages = keys.iter().map(|key| bed.page(super::bed::SPACE, key, 8192)).collect();
    let ticket = log.append(pages);
    assert_eq!(log.status().drives[0].backlog_bytes, 12 * 8192);
    plan.release();
    let results = ticket.wait();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 12);
    assert_eq!(results.iter().filter(|result| **result == Err(Dropped::Backlog)).count(), 18);
    let status = &log.status().drives[0];
    assert_eq!((status.dropped.backlog, status.backlog_bytes), (18, 0));
}

#[test]
fn a_directory_that_vanishes_takes_the_drive_out() {
    let mut bed = Bed::new(2, IoChoice::Auto);
    let (log, _) = bed.open();
    let keys = names("k", 20);
    bed.put(&log, &strs(&keys), 5000);
    std::fs::remove_dir_all(bed.path(0)).unwrap();
    bed.until(|known| known.drives_lost == [0]);
    assert!(is_failed(&log.status().drives[0].state));
    assert!(keys.iter().any(|key| bed.has(&log, key)));
    assert!(bed.put(&log, &["new"], 5000)[0].is_ok());
}

#[test]
fn a_drive_that_cannot_be_opened_is_reported_and_the_others_serve() {
    let mut bed = Bed::new(2, IoChoice::Auto);
    bed.config.drives[0].path = bed.path(0).join("no").join("such");
    let (log, _) = bed.open();
    assert!(is_failed(&log.status().drives[0].state));
    assert_eq!(bed.holder.known.lock().drives_lost, [0]);
    let results = bed.put(&log, &["a", "b", "c"], 100);
    assert!(results.iter().all(|result| result.is_ok_and(|extent| extent.drive() == 1)));
    log.close();
    drop(log);
    bed.config.drives.truncate(1);
    let refused = Log::open(bed.config.clone(), &mut |_| true).err();
    assert!(matches!(refused, Some(crate::LogError::NoDrive(_))), "{refused:?}");
}

#[test]
fn whatever_write_is_torn_nothing_acknowledged_is_lost_and_nothing_else_appears() {
    for io in ways() {
        let mut crashes = 0;
        for skip in 0..40 {
            let torn = [0, 512, 4096, 9000, 20_480, 70_000][skip as usize % 6];
            crashes += u32::from(crash_at(io, skip, torn));
        }
        assert!(crashes > 25, "{crashes}");
    }
}

/// Works until the write number `skip` tears after `torn` bytes, then opens again. Whether it came to that.
fn crash_at(io: IoChoice, skip: u64, torn: usize) -> bool {
    let mut bed = Bed::new(1, io);
    let plan = bed.faults();
    let (log, _) = bed.open();
    let fault = Fault::Torn(torn);
    plan.add(FaultRule { drive: None, kind: Some(Kind::Write), skip, times: 1, fault });
    let keys = names("k", 24);
    let (mut acknowledged, mut deleted, mut maybe_deleted) = (Vec::new(), Vec::new(), Vec::new());
    for (turn, part) in keys.chunks(3).enumerate() {
        let results = bed.put(&log, &strs(part), 3000 + 9000 * turn);
        acknowledged
            .extend(part.iter().zip(results).filter(|(_, result)| result.is_ok()).map(|(key, _)| key));
        if turn % 2 == 1 {
            let key = &part[0];
            match bed.delete(&log, &[key]) {
                Ok(()) => deleted.push(key),
                Err(_) => maybe_deleted.push(key),
            }
        }
    }
    drop(log);
    let crashed = plan.has_crashed();
    bed.config.faults = None;
    let (log, _) = bed.open();
    for key in &keys {
        let there = bed.has(&log, key);
        let must = acknowledged.contains(&key) && !deleted.contains(&key) && !maybe_deleted.contains(&key);
        assert!(there || !must, "{key} was acknowledged and is lost: write {skip}, {torn} bytes");
        assert!(
            !there || !deleted.contains(&key),
            "{key} was deleted and is back: write {skip}, {torn} bytes"
        );
    }
    assert!(bed.put(&log, &["after"], 100)[0].is_ok());
    crashed
}
