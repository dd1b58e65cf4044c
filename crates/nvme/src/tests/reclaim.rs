//! Giving segments back.

use super::bed::{Bed, SPACE, digest, names, strs};
use crate::{DriveState, Extent, IoChoice, Kind, Owner, PageHead, SegmentState, Standing};
use std::sync::Arc;

/// A quota of eight segments of 31 blocks.
fn small(drives: usize, io: IoChoice) -> Bed {
    let mut bed = Bed::new(drives, io);
    for drive in &mut bed.config.drives {
        drive.quota_bytes = 8 * (128 << 10);
    }
    bed
}

#[test]
fn the_quota_holds_and_the_oldest_pages_go() {
    for io in super::bed::ways() {
        let mut bed = small(2, io);
        let (log, _) = bed.open();
        let keys = names("k", 300);
        for part in keys.chunks(5) {
            assert!(bed.put(&log, &strs(part), 16_384).iter().all(Result::is_ok));
            for drive in &log.status().drives {
                assert!(drive.used_bytes <= drive.quota_bytes, "{drive:?}");
            }
        }
        bed.settle(&log);
        let status = log.status();
        assert!(status.drives.iter().all(|drive| drive.reclaimed_segments > 5), "{status:?}");
        let there: Vec<_> = keys.iter().filter(|key| bed.has(&log, key)).collect();
        assert!(there.len() > 60 && there.len() < 140, "{}", there.len());
        let newest: Vec<_> = keys[260..].iter().collect();
        assert!(newest.iter().all(|key| there.contains(key)), "the newest pages stay");
        let known = bed.holder.known.lock();
        assert_eq!(known.pages.len() + known.lost.len(), 300, "every page is either there or was reported");
        assert_eq!(known.pages.len(), there.len());
        drop(known);
        log.close();
        drop(log);
        let (log, report) = bed.open();
        assert_eq!(report.pages, there.len() as u64);
        assert!(there.iter().all(|key| bed.has(&log, key)));
    }
}

#[test]
fn hot_pages_are_written_again_and_survive() {
    let mut bed = small(1, IoChoice::Auto);
    let (log, _) = bed.open();
    let hot = names("hot", 4);
    bed.put(&log, &strs(&hot), 10_000);
    bed.holder.known.lock().hot = hot.iter().map(|key| digest(SPACE, key)).collect();
    let keys = names("k", 400);
    for part in keys.chunks(5) {
        bed.put(&log, &strs(part), 16_384);
    }
    bed.settle(&log);
    assert!(hot.iter().all(|key| bed.has(&log, key)));
    let status = &log.status().drives[0];
    assert!(status.reinserted_pages >= 4 && status.reclaimed_segments > 40, "{status:?}");
    let pages = bed.holder.known.lock().pages.len() as u64;
    assert_eq!(status.live_pages, pages, "each page is counted where it is");
    log.close();
    drop(log);
    let (log, _) = bed.open();
    assert!(hot.iter().all(|key| bed.has(&log, key)));
}

#[test]
fn a_drive_of_nothing_but_hot_pages_still_takes_new_ones() {
    let mut bed = small(1, IoChoice::Auto);
    let (log, _) = bed.open();
    for part in names("k", 300).chunks(5) {
        let digests: Vec<_> = part.iter().map(|key| digest(SPACE, key)).collect();
        bed.holder.known.lock().hot.extend(digests);
        assert!(bed.put(&log, &strs(part), 16_384).iter().all(Result::is_ok));
    }
    let known = bed.holder.known.lock();
    assert!(known.lost.len() > 200 && !known.moved.is_empty());
}

#[test]
fn a_deletion_outlives_the_pages_it_ends() {
    let mut bed = small(1, IoChoice::Auto);
    let (log, _) = bed.open();
    let keys = names("k", 200);
    let mut gone = Vec::new();
    for (turn, part) in keys.chunks(4).enumerate() {
        bed.put(&log, &strs(part), 16_384);
        bed.delete(&log, &[&part[turn % 4]]).unwrap();
        gone.push(part[turn % 4].clone());
        if turn % 7 == 6 {
            drop(bed.holder.known.lock());
            assert!(!gone.iter().any(|key| bed.has(&log, key)));
        }
    }
    drop(log);
    let (log, _) = bed.open();
    assert!(!gone.iter().any(|key| bed.has(&log, key)), "a deleted page came back");
    assert!(keys.iter().filter(|key| bed.has(&log, key)).count() > 20);
}

/// Deletes each page the moment the log has been told that it is hot.
struct Treacherous {
    bed: Arc<Bed>,
    log: parking_lot::Mutex<Option<Arc<crate::Log>>>,
    recorded: parking_lot::Mutex<Vec<crate::Recorded>>,
    deleted: parking_lot::Mutex<Vec<u64>>,
}

impl Owner for Treacherous {
    fn standing(&self, head: &PageHead<'_>, extent: Extent) -> Standing {
        let standing = self.bed.holder.standing(head, extent);
        if standing == Standing::Hot {
            self.bed.holder.known.lock().pages.remove(&head.digest);
            let log = self.log.lock();
            let gone = crate::Gone { space: head.space, digest: head.digest };
            self.recorded.lock().extend(log.as_ref().map(|log| log.delete(&[gone])));
            self.deleted.lock().push(head.digest);
        }
        standing
    }

    fn moved(&self, head: &PageHead<'_>, old: Extent, new: Extent) -> bool {
        self.bed.holder.moved(head, old, new)
    }

    fn lost(&self, head: &PageHead<'_>, extent: Extent) {
        self.bed.holder.lost(head, extent);
    }

    fn drive_lost(&self, drive: u8) {
        self.bed.holder.drive_lost(drive);
    }
}

#[test]
fn a_page_deleted_while_it_is_written_again_does_not_come_back() {
    let mut bed = small(1, IoChoice::Auto);
    let (log, _) = bed.open_without_owner();
    let bed = Arc::new(bed);
    let owner = Arc::new(Treacherous {
        bed: Arc::clone(&bed),
        log: parking_lot::Mutex::new(Some(Arc::clone(&log))),
        recorded: parking_lot::Mutex::default(),
        deleted: parking_lot::Mutex::default(),
    });
    log.start(Arc::clone(&owner) as Arc<dyn Owner>);
    for (turn, part) in names("k", 240).chunks(4).enumerate() {
        if turn % 3 == 0 {
            bed.holder.known.lock().hot.insert(digest(SPACE, &part[0]));
        }
        bed.put(&log, &strs(part), 16_384);
        // Nothing else is queued, so the deletion is written before the hot page comes.
        bed.settle(&log);
    }
    log.close();
    *owner.log.lock() = None;
    drop(log);
    let recorded = std::mem::take(&mut *owner.recorded.lock());
    let deleted = owner.deleted.lock().clone();
    assert!(deleted.len() > 5, "{}", deleted.len());
    let results: Vec<_> = recorded.into_iter().map(crate::Recorded::wait).collect();
    let opened = crate::Log::open(bed.config.clone(), &mut |found| {
        let at = deleted.iter().position(|digest| *digest == found.head.digest);
        assert!(at.is_none_or(|at| results[at].is_err()), "{:?} was deleted and is back", found.head.digest);
        true
    });
    assert!(opened.is_ok());
}

#[test]
fn reads_in_flight_outlive_their_segment() {
    let mut bed = small(1, IoChoice::Auto);
    let (log, _) = bed.open();
    bed.put(&log, &["old"], 9000);
    let first = log.segments()[0].sequence;
    // A walk holds the file as a reader does.
    let walk = log.walk(0, first).unwrap();
    for part in names("k", 200).chunks(5) {
        bed.put(&log, &strs(part), 16_384);
    }
    assert!(log.segments().iter().all(|segment| segment.sequence != first), "the segment is gone");
    let pages: Vec<_> = walk.collect();
    assert!(!pages.is_empty() && pages.iter().all(|page| page.intact), "and can still be read");
    assert!(!bed.has(&log, "old"));
}

#[test]
fn a_lower_quota_is_reached_by_giving_back() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    bed.config.drives[0].quota_bytes = 32 * (128 << 10);
    let (log, _) = bed.open();
    for part in names("k", 150).chunks(5) {
        bed.put(&log, &strs(part), 16_384);
    }
    log.close();
    drop(log);
    bed.config.drives[0].quota_bytes = 8 * (128 << 10);
    let (log, report) = bed.open();
    assert!(report.pages > 100);
    bed.until(|known| known.lost.len() > 60);
    assert!(bed.put(&log, &["new"], 16_384)[0].is_ok());
    let status = &log.status().drives[0];
    assert!(status.used_bytes <= status.quota_bytes, "{status:?}");
}

#[test]
fn an_error_while_giving_back_takes_the_drive_out() {
    let mut bed = small(1, IoChoice::Auto);
    let plan = bed.faults();
    let (log, _) = bed.open();
    bed.put(&log, &["k"], 1000);
    plan.fail(None, Kind::Remove, 5);
    for part in names("k", 200).chunks(5) {
        bed.put(&log, &strs(part), 16_384);
    }
    bed.until(|known| known.drives_lost == [0]);
    assert!(matches!(log.status().drives[0].state, DriveState::Failed(_)));
    assert!(log.segments().iter().all(|segment| segment.state != SegmentState::Active));
}
