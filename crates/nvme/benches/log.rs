//! The log beside plain direct I/O of the same sizes, and how long a start takes.
//!
//! `cargo bench -p memkv-nvme --bench log -- [recovery] [--quick]`; `recovery` measures only the start. `MEMKV_BENCH_DIR` says where the files go; the default is
//! the directory for temporary files. Each figure is the median of several rounds, and the ways take turns, so that
//! ratios within one run hold.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints and may stop")]

use memkv_core::{PageHasher, PageMeta, SpaceId};
use memkv_memory::{Arena, ArenaConfig, PageRecord, SlotPin};
use memkv_nvme::{Append, DriveConfig, Extent, IoChoice, Log, LogConfig, OwnedHead};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const SPACE: SpaceId = SpaceId([1; 16]);

fn main() {
    let given = |name: &str| std::env::args().any(|arg| arg == name);
    let quick = given("--quick") || given("--test");
    if given("recovery") {
        recovery(&place(), if quick { 100_000 } else { 1_000_000 });
        return;
    }
    let place = place();
    let total: usize = if quick { 64 << 20 } else { 512 << 20 };
    let rounds = if quick { 3 } else { 7 };
    println!("{:>9} | {:>27} | {:>27}", "", "append, GB/s", "read, GB/s");
    println!(
        "{:>9} | {:>8} {:>8} {:>8}  | {:>8} {:>8} {:>8}",
        "page", "plain", "uring", "threads", "plain", "uring", "threads"
    );
    for len in [4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20] {
        transfer(&place, len, total.min(len * 8192), rounds);
    }
    recovery(&place, if quick { 100_000 } else { 1_000_000 });
}

/// Where the files go.
fn place() -> PathBuf {
    std::env::var_os("MEMKV_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// One page in the arena, named by a number.
fn page(arena: &Arc<Arena>, number: u64, len: usize) -> (OwnedHead, SlotPin) {
    let (mut slot, _) = arena.reserve(u32::try_from(len).unwrap()).unwrap();
    let bytes = slot.bytes_mut();
    bytes.iter_mut().step_by(512).for_each(|byte| *byte = number.to_le_bytes()[0]);
    let meta = PageMeta { len: u32::try_from(len).unwrap(), ..PageMeta::default() };
    let meta = PageMeta { checksum: meta.checksum_of(PageHasher::oneshot(number, bytes)), ..meta };
    let key: Box<[u8]> = format!("{number:0100}").into_bytes().into();
    let id =
        slot.seal().publish(&PageRecord { meta, digest: number, ..PageRecord::default() }, &SPACE.0, &key);
    let pin = arena.pin(id).unwrap();
    arena.doom(id);
    (OwnedHead { space: SPACE, key, digest: number, meta, position: 0, created_ms: 0, hits: 0 }, pin)
}

fn open(dir: &Path, io: IoChoice, len: usize) -> Option<Arc<Log>> {
    let mut config = LogConfig::new(vec![DriveConfig { path: dir.to_owned(), quota_bytes: 16 << 30 }]);
    config.page_bytes_max = u32::try_from(len).unwrap();
    config.io = io;
    config.backlog_bytes = 1 << 30;
    Some(Log::open(config, &mut |_| true).ok()?.0)
}

fn transfer(place: &Path, len: usize, total: usize, rounds: usize) {
    let arena = Arena::new(ArenaConfig::anonymous(2 * total as u64 + (256 << 20), 64 << 20)).unwrap();
    let count = total / len;
    let pages: Vec<_> = (0..count as u64).map(|number| page(&arena, number, len)).collect();
    let mut figures: [Vec<f64>; 6] = Default::default();
    for _ in 0..rounds {
        let (write, read) = plain(place, &arena, &pages, len);
        figures[0].push(write);
        figures[3].push(read);
        for (at, io) in [(1, IoChoice::Uring), (2, IoChoice::Threads)] {
            let dir = tempfile::TempDir::new_in(place).unwrap();
            let Some(log) = open(&dir.path().join("d"), io, len) else { continue };
            let (write, read) = logged(&log, &arena, &pages, len);
            figures[at].push(write);
            figures[at + 3].push(read);
        }
    }
    let shown: Vec<_> = figures
        .into_iter()
        .map(|figures| if figures.is_empty() { "-".to_owned() } else { format!("{:.2}", median(figures)) })
        .collect();
    println!(
        "{:>6} KiB | {:>8} {:>8} {:>8}  | {:>8} {:>8} {:>8}",
        len >> 10,
        shown[0],
        shown[1],
        shown[2],
        shown[3],
        shown[4],
        shown[5]
    );
}

fn rate(bytes: usize, started: Instant) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
    let bytes = bytes as f64;
    bytes / started.elapsed().as_secs_f64() / 1e9
}

/// One thread, one page at a time, into one file that has its room.
fn plain(place: &Path, arena: &Arc<Arena>, pages: &[(OwnedHead, SlotPin)], len: usize) -> (f64, f64) {
    let file = tempfile::NamedTempFile::new_in(place).unwrap();
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(file.path());
    let file: File = open(direct).or_else(|_| open(0)).unwrap();
    let total = len * pages.len();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, total as u64).unwrap();
    let started = Instant::now();
    for (number, (_, page)) in pages.iter().enumerate() {
        file.write_all_at(page.blocks(), (number * len) as u64).unwrap();
    }
    let write = rate(total, started);
    let (mut slot, _) = arena.reserve(u32::try_from(len).unwrap()).unwrap();
    let started = Instant::now();
    for number in 0..pages.len() {
        file.read_exact_at(slot.whole_mut(), (number * len) as u64).unwrap();
    }
    (write, rate(total, started))
}

fn logged(log: &Log, arena: &Arc<Arena>, pages: &[(OwnedHead, SlotPin)], len: usize) -> (f64, f64) {
    let total = len * pages.len();
    let appends: Vec<_> = pages
        .iter()
        .map(|(head, pin)| Append {
            head: head.clone(),
            page: arena.pin(pin.id()).unwrap_or_else(|| copy(arena, head, pin)),
        })
        .collect();
    let started = Instant::now();
    let extents: Vec<Extent> = log.append(appends).wait().into_iter().map(Result::unwrap).collect();
    let write = rate(total, started);
    let started = Instant::now();
    // As many at once as a batch of a client has.
    for part in extents.chunks((128 << 20) / len.max(64 << 10)) {
        let reads: Vec<_> = part
            .iter()
            .map(|extent| log.read(*extent, arena.reserve(u32::try_from(len).unwrap()).unwrap().0))
            .collect();
        for read in reads {
            read.wait().unwrap();
        }
    }
    (write, rate(total, started))
}

/// The page in another slot.
fn copy(arena: &Arc<Arena>, head: &OwnedHead, pin: &SlotPin) -> SlotPin {
    let (mut slot, _) = arena.reserve(head.meta.len).unwrap();
    slot.bytes_mut().copy_from_slice(pin);
    let record = PageRecord { meta: head.meta, digest: head.digest, ..PageRecord::default() };
    let id = slot.seal().publish(&record, &SPACE.0, &head.key);
    let copy = arena.pin(id).unwrap();
    arena.doom(id);
    copy
}

/// A start with so many pages whose keys have 100 bytes. The pages are small: a start reads footers only.
fn recovery(place: &Path, count: u64) {
    let dir = tempfile::TempDir::new_in(place).unwrap();
    let path = dir.path().join("d");
    let arena = Arena::new(ArenaConfig::anonymous(512 << 20, 64 << 20)).unwrap();
    let log = open(&path, IoChoice::Auto, 4096).unwrap();
    let numbers: Vec<_> = (0..count).collect();
    for part in numbers.chunks(20_000) {
        let appends = part.iter().map(|number| page(&arena, *number, 4096));
        let results = log.append(appends.map(|(head, page)| Append { head, page }).collect()).wait();
        assert!(results.iter().all(Result::is_ok));
    }
    log.close();
    drop(log);
    for turn in ["first start", "second start"] {
        let mut config = LogConfig::new(vec![DriveConfig { path: path.clone(), quota_bytes: 16 << 30 }]);
        config.page_bytes_max = 4096;
        let mut bytes = 0;
        let started = Instant::now();
        let (log, report) = Log::open(config, &mut |found| {
            bytes += found.head.key.len();
            true
        })
        .unwrap();
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{turn}: {} pages in {} segments ready after {seconds:.2} s ({} bytes of keys)",
            report.pages, report.sealed_segments, bytes
        );
        log.close();
    }
}
