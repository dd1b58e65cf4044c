//! Puts through memory that the client passed: what goes through it, and what a client that means ill can do with it.

use super::raw::{self, NearConn};
use super::{SPACE, daemon_with, maps_of, space_of};
use crate::common::{assert_all, assert_hits, put};
use memkv_client::{PageOutcome, RawPieces, Transport};
use memkv_core::{PageMeta, SpaceId};
use memkv_shm::Stage;
use memkv_tests::control::{Control, Session};
use memkv_tests::daemon::Daemon;
use memkv_tests::pages::{keys, page, pages};
use memkv_tests::wire::checksum;
use memkv_transport::frame::Code;
use memkv_transport::records::{REGION_STAGE, STAGE_BYTES_MAX, Span};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;

/// The name of staging memory in `/proc/self/maps`.
pub(super) const STAGE: &str = "memkv-stage";
/// The longest page that a client stages.
const PART: usize = 4 << 20;

/// KiB that this process has written of the staging memory that a daemon reads.
fn staged_kib(daemon: &Daemon) -> u64 {
    let theirs = maps_of(&daemon.pid().to_string(), STAGE);
    assert!(!theirs.is_empty(), "the daemon reads staging memory");
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines();
    let mut kib = 0;
    while let Some(line) = lines.next() {
        let inode = line.split_whitespace().nth(4).unwrap_or_default();
        if line.contains(STAGE) && theirs.iter().any(|map| map == inode) {
            let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            kib += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    kib
}

#[test]
fn pages_of_any_length_and_cut_are_put() {
    let daemon = daemon_with(&["--dram", "256MiB", "--page-max", "8MiB"]);
    let (_near, near) = space_of(&daemon, Transport::Shm);
    let (_far, far) = space_of(&daemon, Transport::Tcp);
    // First only what is longer than a part.
    let large = keys("large", 2);
    assert_all(&put(&near, &large, &pages(&large, PART + 1)), PageOutcome::Stored);
    assert_eq!(staged_kib(&daemon), 0);
    assert_hits(&far, &large, PART + 1);
    let names = keys("odd", 9);
    let lens = [1, 4095, 70_001, 1 << 20, PART + 4097, PART, 33, (1 << 20) + 1, PART - 1];
    let sources: Vec<Vec<u8>> = names.iter().zip(lens).map(|(key, len)| page(key, len)).collect();
    for round in [PageOutcome::Stored, PageOutcome::Exists] {
        assert_all(&put(&near, &names, &sources), round);
    }
    for (name, len) in names.iter().zip(lens) {
        assert_hits(&far, std::slice::from_ref(name), len);
    }
    assert!(staged_kib(&daemon) >= PART as u64 >> 10);
}

#[test]
fn pages_in_pieces_arrive_whole() {
    let daemon = Daemon::start().unwrap();
    let (_near, near) = space_of(&daemon, Transport::Shm);
    let (_far, far) = space_of(&daemon, Transport::Tcp);
    let cuts = [0, 1, 130_000, 130_000, 300_001];
    let (names, per_page) = (keys("pieces", 20), cuts.len() - 1);
    let mut sources = pages(&names, cuts[per_page]);
    let (mut ptrs, mut lens) = (Vec::new(), Vec::new());
    for source in &mut sources {
        for cut in cuts.windows(2) {
            let piece = &mut source[cut[0]..cut[1]];
            ptrs.push(piece.as_mut_ptr());
            lens.push(piece.len());
        }
    }
    let mut outcomes = vec![PageOutcome::Miss; names.len()];
    let pieces = RawPieces { ptrs: &ptrs, lens: &lens, per_page };
    // SAFETY: the sources outlive the call, and nobody else has them.
    unsafe { near.put_from_raw(&names, pieces, &mut outcomes) }.unwrap();
    assert_all(&outcomes, PageOutcome::Stored);
    assert!(staged_kib(&daemon) > 0);
    assert_hits(&far, &names, cuts[per_page]);
}

struct Rig {
    daemon: Daemon,
    control: Control,
    session: Session,
    space: SpaceId,
}

impl Rig {
    fn new() -> Self {
        let daemon = Daemon::start().unwrap();
        let control = daemon.control().unwrap();
        let space = control.open_space(SPACE).unwrap();
        let session = raw::session(&control);
        Self { daemon, control, session, space }
    }

    /// A connection that passed this memory, and whose process is not read; and whether the memory was taken.
    fn with(&self, memory: BorrowedFd<'_>) -> (NearConn, bool) {
        let mut conn = NearConn::of(&self.session);
        let (bound, _) = conn.bind_with(0, [0; 8], Some(memory)).unwrap();
        assert!(!bound.reads_client);
        (conn, bound.reads_stage)
    }

    /// What becomes of a page of 3000 bytes that is said to be at `offset`.
    fn put(&self, conn: &mut NearConn, key: &[u8], offset: u64) -> std::io::Result<Vec<Code>> {
        let bytes = page(key, 3000);
        let checksum = checksum(self.space, key, &bytes);
        let meta = PageMeta { len: 3000, checksum, ..Default::default() };
        conn.put(self.space, &[(key, meta, Span { region: REGION_STAGE, len: 3000, offset })])
    }

    /// The daemon serves, and has these pages and no slots but theirs.
    fn assert_serves(&self, expected: &[&[u8]]) {
        for key in expected {
            let mut conn = NearConn::of(&self.session);
            conn.bind_with(0, [0; 8], None).unwrap();
            assert_eq!(conn.get(self.space, &[key], 3000).unwrap()[0].0, Code::Ok);
        }
        let dram = self.control.status().unwrap().dram.unwrap();
        let slots: u64 = dram.classes.iter().map(|class| class.slots_used).sum();
        assert_eq!((dram.pages, slots), (expected.len() as u64, expected.len() as u64));
        assert!(self.daemon.metrics().is_ok());
    }
}

fn memory(len: u64, flags: MemfdFlags, seals: SealFlags) -> Option<File> {
    let file = memfd_create("memkv-hostile", MemfdFlags::CLOEXEC | flags).ok()?;
    ftruncate(&file, len).unwrap();
    fcntl_add_seals(&file, seals).ok()?;
    Some(file.into())
}

#[test]
fn memory_that_could_harm_the_daemon_is_refused() {
    let rig = Rig::new();
    let (sealing, shrink) = (MemfdFlags::ALLOW_SEALING, SealFlags::SHRINK);
    let refused = [
        memory(8192, sealing, SealFlags::empty()),
        memory(8192, sealing, SealFlags::GROW),
        memory(0, sealing, shrink),
        memory(STAGE_BYTES_MAX + 1, sealing, shrink),
        memory(2 << 20, sealing | MemfdFlags::HUGETLB, shrink),
        Some(tempfile::tempfile().unwrap()),
    ];
    for (index, file) in refused.into_iter().enumerate() {
        // Not every kernel has huge pages to pass.
        let Some(file) = file else { continue };
        let (mut conn, is_taken) = rig.with(file.as_fd());
        assert!(!is_taken, "number {index}");
        let put = rig.put(&mut conn, b"page", 0);
        assert!(put.is_err() || put.is_ok_and(|codes| codes == [Code::Malformed]), "number {index}");
    }
    let shared = memory(STAGE_BYTES_MAX, sealing, shrink).unwrap();
    assert!(rig.with(shared.as_fd()).1, "as much as is allowed is taken");
    rig.assert_serves(&[]);
}

#[test]
fn only_bytes_inside_the_memory_are_read() {
    let rig = Rig::new();
    let mut stage = Stage::new(10_000).unwrap();
    assert!(stage.write(7000, &page(b"page", 3000)));
    let (mut conn, is_taken) = rig.with(stage.descriptor());
    assert!(is_taken);
    assert_eq!(rig.put(&mut conn, b"page", 7000).unwrap(), [Code::Ok]);
    for offset in [7001, 10_000, 10_001, 12_288, STAGE_BYTES_MAX, 1 << 47, u64::MAX - 2999, u64::MAX] {
        let (mut conn, _) = rig.with(stage.descriptor());
        assert_eq!(rig.put(&mut conn, b"other", offset).unwrap(), [Code::Malformed], "at {offset}");
    }
    rig.assert_serves(&[b"page"]);
}

#[test]
fn memory_that_changes_after_it_was_passed_makes_no_page_and_no_fault() {
    let rig = Rig::new();
    let file = memory(1 << 20, MemfdFlags::ALLOW_SEALING, SealFlags::SHRINK).unwrap();
    file.write_all_at(&page(b"page", 3000), 4096).unwrap();
    let (mut conn, is_taken) = rig.with(file.as_fd());
    assert!(is_taken);
    assert!(file.set_len(0).is_err(), "it cannot be cut off");
    assert_eq!(rig.put(&mut conn, b"other", 4096).unwrap(), [Code::Corrupt]);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 0, 1 << 20).unwrap();
    assert_eq!(rig.put(&mut conn, b"page", 4096).unwrap(), [Code::Corrupt]);
    file.set_len(2 << 20).unwrap();
    file.write_all_at(&page(b"page", 3000), 1 << 20).unwrap();
    file.write_all_at(&page(b"page", 3000), 4096).unwrap();
    assert_eq!(rig.put(&mut conn, b"page", 4096).unwrap(), [Code::Ok]);
    let grown = rig.put(&mut conn, b"grown", 1 << 20).unwrap();
    assert_eq!(grown, [Code::Malformed], "what was mapped is as long as it was");
    rig.assert_serves(&[b"page"]);
}
