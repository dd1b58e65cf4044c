//! Files that were cut, torn or altered: misses, counted, never wrong bytes, never a start that fails.

use super::bed::{Bed, SPACE, content, head, names, pinned, strs};
use crate::format::{self, BATCH_HEAD_BYTES, BLOCK, BatchHead, Identity, RECORD_BYTES};
use crate::{Append, IoChoice, RecoveryReport, SegmentState};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A log with one segment: two batches, three pages, a deletion. Its file and content.
struct Segment {
    bed: Bed,
    file: PathBuf,
    whole: Vec<u8>,
}

const KEYS: [&str; 5] = ["a", "b", "c", "d", "x"];

fn segment(sealed: bool) -> Segment {
    let mut bed = Bed::in_memory(1, IoChoice::Threads);
    let (log, _) = bed.open();
    bed.put(&log, &["a", "b", "x"], 5000);
    bed.delete(&log, &["x"]).unwrap();
    bed.put(&log, &["c", "d"], 4096);
    if sealed {
        log.close();
    }
    drop(log);
    let file = bed.segment_files(0).remove(0);
    let mut whole = fs::read(&file).unwrap();
    // What follows is the empty rest of the segment.
    whole.truncate(24 * BLOCK);
    Segment { bed, file, whole }
}

impl Segment {
    /// Opens the log over the file with this content. Pages that came back and read right, and the report. Panics if a
    /// page comes back that never was, or with wrong bytes.
    fn open_with(&mut self, bytes: &[u8]) -> (Vec<&'static str>, RecoveryReport) {
        for file in self.bed.segment_files(0) {
            fs::remove_file(file).unwrap();
        }
        fs::write(&self.file, bytes).unwrap();
        let (log, report) = self.bed.open_without_owner();
        let known = self.bed.holder.known.lock();
        assert!(known.pages.values().all(|(head, ..)| KEYS.iter().any(|key| key.as_bytes() == &*head.key)));
        drop(known);
        let there = KEYS.into_iter().filter(|key| self.bed.has(&log, key)).collect();
        log.close();
        (there, report)
    }
}

#[test]
fn a_segment_cut_at_any_block_keeps_what_is_before() {
    for sealed in [true, false] {
        let mut segment = segment(sealed);
        let whole = segment.whole.clone();
        let mut most = 0;
        for blocks in 0..=whole.len() / BLOCK {
            for odd in [0, 1, 700] {
                let cut = (blocks * BLOCK + odd).min(whole.len());
                let (mut there, report) = segment.open_with(&whole[..cut]);
                // Whoever cuts a deletion off brings its page back.
                there.retain(|key| *key != "x");
                assert!(there.len() >= most || odd > 0, "a longer file keeps less: cut at {cut}");
                if cut > 2 * BLOCK && cut < 9 * BLOCK && odd > 0 {
                    let counted = report.damaged_headers + report.damaged_pages;
                    assert!(counted > 0 || there.len() < 4, "cut at {cut}: {report:?}");
                }
                most = most.max(there.len());
            }
        }
        assert_eq!(most, 4);
        assert_eq!(segment.open_with(&whole).0, ["a", "b", "c", "d"]);
    }
}

/// Offsets of interest: every byte of headers and records, and a few of each page and of what is between.
fn offsets(whole: &[u8]) -> Vec<usize> {
    let dense = |block: usize| {
        let bytes = &whole[block * BLOCK..(block + 1) * BLOCK];
        let magic = [&b"memkvseg"[..], b"memkvend", b"memkvbat"].iter().any(|magic| bytes.starts_with(magic));
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        if magic || used < 8 * RECORD_BYTES {
            (0..64).chain((64..=used).step_by(3)).chain([4095]).collect()
        } else {
            vec![0, 1, 2047, 4095]
        }
    };
    (0..whole.len() / BLOCK)
        .flat_map(|block| dense(block).into_iter().map(move |at| block * BLOCK + at))
        .collect()
}

#[test]
fn a_flipped_bit_anywhere_is_at_most_a_miss() {
    for sealed in [true, false] {
        let mut segment = segment(sealed);
        let whole = segment.whole.clone();
        let mut missed = 0;
        for (turn, at) in offsets(&whole).into_iter().enumerate() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (turn % 8);
            let (there, report) = segment.open_with(&bytes);
            assert!(
                !there.contains(&"x") || report.damaged_headers > 0,
                "a deleted page came back: byte {at}"
            );
            let counted = report.damaged_headers + report.damaged_pages + report.lost_segments;
            if there.len() < 4 {
                missed += 1;
                let in_page = sealed && counted == 0 && there.len() == 3;
                assert!(
                    in_page || counted + report.foreign_files > 0,
                    "byte {at} is not counted: {report:?}"
                );
            }
        }
        assert!(missed > 0);
    }
}

#[test]
fn a_sealed_segment_survives_the_loss_of_its_header_or_its_seal() {
    let mut segment = segment(true);
    let whole = segment.whole.clone();
    for block in [0, 1] {
        let mut bytes = whole.clone();
        bytes[block * BLOCK + 20] ^= 0xff;
        assert_eq!(segment.open_with(&bytes).0.len(), 4, "block {block}");
    }
    let mut both = whole.clone();
    both[20] ^= 0xff;
    both[BLOCK + 20] ^= 0xff;
    let (there, report) = segment.open_with(&both);
    assert_eq!((there.len(), report.lost_segments), (0, 1));
}

#[test]
fn a_torn_batch_does_not_hide_the_next_one() {
    let mut segment = segment(false);
    let mut bytes = segment.whole.clone();
    // The first batch starts in block 2; its header is lost, its pages stay.
    bytes[2 * BLOCK..3 * BLOCK].fill(0);
    let (there, _) = segment.open_with(&bytes);
    assert_eq!(there, ["c", "d"]);
    bytes[2 * BLOCK..3 * BLOCK].fill(0xaa);
    let (there, report) = segment.open_with(&bytes);
    assert_eq!((there, report.damaged_headers), (vec!["c", "d"], 1));
}

#[test]
fn bytes_of_a_page_cannot_pass_for_a_batch() {
    let mut bed = Bed::new(1, IoChoice::Threads);
    let (log, _) = bed.open();
    bed.put(&log, &["before"], 4096);
    let active = log.segments().into_iter().find(|segment| segment.state == SegmentState::Active).unwrap();
    // A client puts a page whose bytes are a batch, right in all but the file's secret number.
    let victim = content("victim", BLOCK);
    let mut records = Vec::new();
    format::push_page(&mut records, 99, &head(SPACE, "victim", &victim).as_head(), 6);
    let mut bytes = vec![0; 2 * BLOCK];
    bytes[BATCH_HEAD_BYTES..BATCH_HEAD_BYTES + records.len()].copy_from_slice(&records);
    bytes[BLOCK..].copy_from_slice(&victim);
    let identity = Identity { sequence: active.sequence, salt: 0, drive: [0; 16], blocks: 32 };
    let len = u32::try_from(BATCH_HEAD_BYTES + records.len()).unwrap();
    format::write_batch(&mut bytes, &identity, 5, &BatchHead { bytes: len, blocks: 2, records: 1 });
    assert!(format::read_batch(&bytes, &identity, 5).is_some(), "the forgery is well made");
    let forged = head(SPACE, "forged", &bytes);
    let page = pinned(&bed.arena, &forged, &bytes);
    let extent = log.append(vec![Append { head: forged, page }]).wait()[0].unwrap();
    assert_eq!(extent.block(), 5);
    drop(log);
    // Its own header is lost, so the scan comes to its bytes.
    zero_block(&bed.segment_files(0)[0], 4 * BLOCK as u64);
    let (log, report) = bed.open();
    assert_eq!((report.pages, report.damaged_headers), (1, 1));
    assert!(bed.has(&log, "before") && !bed.has(&log, "victim"));
}

fn zero_block(file: &Path, at: u64) {
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(&[0; BLOCK], at).unwrap();
}

#[test]
fn a_page_that_rots_under_the_log_is_a_miss() {
    let mut bed = Bed::new(1, IoChoice::Auto);
    let (log, _) = bed.open();
    let extent = bed.put(&log, &["a"], 8192)[0].unwrap();
    log.close();
    drop(log);
    let (log, _) = bed.open();
    assert!(bed.has(&log, "a"));
    zero_block(&bed.segment_files(0)[0], extent.offset());
    assert!(!bed.has(&log, "a"));
    fs::OpenOptions::new().write(true).open(&bed.segment_files(0)[0]).unwrap().set_len(BLOCK as u64).unwrap();
    assert!(!bed.has(&log, "a"), "a file that was cut short is a miss too");
    assert_eq!(log.status().drives[0].state, crate::DriveState::Ok);
}

#[test]
fn many_pages_of_many_sizes_survive_a_process_that_ends() {
    let mut bed = Bed::new(2, IoChoice::Auto);
    let (log, _) = bed.open();
    let keys = names("k", 200);
    for (turn, part) in keys.chunks(10).enumerate() {
        bed.put(&log, &strs(part), 1 + turn * 3300);
    }
    drop(log);
    let (log, report) = bed.open();
    assert_eq!((report.pages, report.damaged_pages, report.damaged_headers), (200, 0, 0));
    for key in &keys {
        assert!(bed.has(&log, key), "{key}");
    }
    assert_eq!(content("a", 3).len(), 3);
}
