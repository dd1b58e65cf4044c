//! What the tests share: a log on temporary directories, an arena, and an owner that knows what should be there.

use crate::{
    Append, DriveConfig, Dropped, Extent, FaultPlan, Gone, IoChoice, Log, LogConfig, OwnedHead, Owner,
    PageHead, RecoveryReport, SegmentState, Standing,
};
use memkv_core::{Key, PageHasher, PageMeta, SpaceId, page::key_digest};
use memkv_memory::{Arena, ArenaConfig, PageRecord, ReservedSlot, SlotPin};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

pub(super) const SPACE: SpaceId = SpaceId([7; 16]);
pub(super) const OTHER: SpaceId = SpaceId([8; 16]);

/// What the owner was told, and what it points at.
#[derive(Default)]
pub(super) struct Known {
    pub(super) pages: HashMap<u64, (OwnedHead, Extent, u64)>,
    pub(super) hot: HashSet<u64>,
    pub(super) lost: Vec<u64>,
    pub(super) moved: Vec<u64>,
    pub(super) drives_lost: Vec<u8>,
}

/// An owner for tests.
#[derive(Default)]
pub(super) struct Holder {
    pub(super) known: Mutex<Known>,
    pub(super) told: Condvar,
}

impl Owner for Holder {
    fn standing(&self, head: &PageHead<'_>, extent: Extent) -> Standing {
        let known = self.known.lock();
        match known.pages.get(&head.digest) {
            Some((_, at, _)) if *at == extent => {
                if known.hot.contains(&head.digest) {
                    Standing::Hot
                } else {
                    Standing::Cold
                }
            }
            _ => Standing::Dead,
        }
    }

    fn moved(&self, head: &PageHead<'_>, old: Extent, new: Extent) -> bool {
        let mut known = self.known.lock();
        let moved = match known.pages.get_mut(&head.digest) {
            Some((_, at, _)) if *at == old => {
                *at = new;
                true
            }
            _ => false,
        };
        known.moved.push(head.digest);
        self.told.notify_all();
        moved
    }

    fn lost(&self, head: &PageHead<'_>, extent: Extent) {
        let mut known = self.known.lock();
        if known.pages.get(&head.digest).is_some_and(|(_, at, _)| *at == extent) {
            known.pages.remove(&head.digest);
        }
        known.lost.push(head.digest);
        self.told.notify_all();
    }

    fn drive_lost(&self, drive: u8) {
        let mut known = self.known.lock();
        known.pages.retain(|_, (_, at, _)| at.drive() != drive);
        known.drives_lost.push(drive);
        self.told.notify_all();
    }
}

/// Directories, an arena, and the configuration of a log.
pub(super) struct Bed {
    pub(super) arena: Arc<Arena>,
    dirs: Vec<TempDir>,
    pub(super) config: LogConfig,
    pub(super) holder: Arc<Holder>,
}

/// The bytes of a page: determined by its name.
pub(super) fn content(name: &str, len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u64;
    for byte in name.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 11).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(super) fn digest(space: SpaceId, key: &str) -> u64 {
    key_digest(space, Key::new(key.as_bytes()).unwrap())
}

/// The head of a page with a given content.
pub(super) fn head(space: SpaceId, key: &str, bytes: &[u8]) -> OwnedHead {
    let digest = digest(space, key);
    let meta = PageMeta { len: u32::try_from(bytes.len()).unwrap(), codec: 3, flags: 9, checksum: 0 };
    let meta = PageMeta { checksum: meta.checksum_of(PageHasher::oneshot(digest, bytes)), ..meta };
    let key = key.as_bytes().into();
    OwnedHead { space, key, digest, meta, position: 5, created_ms: 1_700_000_000_123, hits: 2 }
}

/// A pinned slot with these bytes that is free again when the pin is dropped.
pub(super) fn pinned(arena: &Arc<Arena>, head: &OwnedHead, bytes: &[u8]) -> SlotPin {
    let (mut slot, _) = arena.reserve(head.meta.len).unwrap();
    slot.bytes_mut().copy_from_slice(bytes);
    let record = PageRecord { meta: head.meta, digest: head.digest, ..PageRecord::default() };
    let id = slot.seal().publish(&record, &head.space.0, &head.key);
    let pin = arena.pin(id).unwrap();
    assert!(arena.doom(id));
    pin
}

impl Bed {
    /// A log with so many drives, small segments, and one way of doing I/O.
    pub(super) fn new(drives: usize, io: IoChoice) -> Self {
        Self::on(drives, io, &std::env::temp_dir())
    }

    /// The same on files in memory, if there are such: for tests that open a log a thousand times.
    pub(super) fn in_memory(drives: usize, io: IoChoice) -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::on(drives, io, memory) } else { Self::new(drives, io) }
    }

    fn on(drives: usize, io: IoChoice, place: &Path) -> Self {
        let dirs: Vec<_> = (0..drives).map(|_| TempDir::new_in(place).unwrap()).collect();
        let drives = dirs
            .iter()
            .map(|dir| DriveConfig { path: dir.path().join("d"), quota_bytes: 64 << 20 })
            .collect();
        let config = LogConfig {
            segment_bytes: 128 << 10,
            page_bytes_max: 64 << 10,
            io,
            queue_depth: 16,
            ..LogConfig::new(drives)
        };
        let arena = Arena::new(ArenaConfig::anonymous(64 << 20, 1 << 20)).unwrap();
        Self { arena, dirs, config, holder: Arc::default() }
    }

    pub(super) fn path(&self, drive: usize) -> PathBuf {
        self.dirs[drive].path().join("d")
    }

    /// New faults for the next opening.
    pub(super) fn faults(&mut self) -> Arc<FaultPlan> {
        let plan = FaultPlan::new();
        self.config.faults = Some(Arc::clone(&plan));
        plan
    }

    /// Opens the log with an owner that points at the latest record of each key.
    pub(super) fn open(&mut self) -> (Arc<Log>, RecoveryReport) {
        let (log, report) = self.open_without_owner();
        log.start(Arc::clone(&self.holder) as Arc<dyn Owner>);
        (log, report)
    }

    pub(super) fn open_without_owner(&mut self) -> (Arc<Log>, RecoveryReport) {
        let mut pages: HashMap<u64, (OwnedHead, Extent, u64)> = HashMap::new();
        let opened = Log::open(self.config.clone(), &mut |found| {
            let later = pages.get(&found.head.digest).is_none_or(|(_, _, before)| *before < found.sequence);
            if later {
                pages.insert(found.head.digest, (found.head.to_owned(), found.extent, found.sequence));
            }
            later
        });
        let (log, report) = opened.unwrap();
        self.holder = Arc::new(Holder::default());
        self.holder.known.lock().pages = pages;
        (log, report)
    }

    pub(super) fn page(&self, space: SpaceId, key: &str, len: usize) -> Append {
        let bytes = content(key, len);
        let head = head(space, key, &bytes);
        let page = pinned(&self.arena, &head, &bytes);
        Append { head, page }
    }

    /// Appends pages of one length, waits, and lets the owner point at those that were written.
    pub(super) fn put(&self, log: &Log, keys: &[&str], len: usize) -> Vec<Result<Extent, Dropped>> {
        let pages: Vec<_> = keys.iter().map(|key| self.page(SPACE, key, len)).collect();
        let heads: Vec<_> = pages.iter().map(|page| page.head.clone()).collect();
        let results = log.append(pages).wait();
        let mut known = self.holder.known.lock();
        for (head, result) in heads.into_iter().zip(&results) {
            if let Ok(extent) = result {
                known.pages.insert(head.digest, (head, *extent, 0));
            }
        }
        results
    }

    pub(super) fn slot(&self, len: u32) -> ReservedSlot {
        self.arena.reserve(len).unwrap().0
    }

    /// The bytes of a page, if they can be read and have the checksum of its head.
    pub(super) fn read(&self, log: &Log, head: &OwnedHead, extent: Extent) -> Option<Vec<u8>> {
        let mut slot = log.read(extent, self.slot(head.meta.len)).wait().ok()?;
        let bytes = slot.bytes_mut().to_vec();
        let hash = PageHasher::oneshot(head.digest, &bytes);
        (head.meta.checksum_of(hash) == head.meta.checksum).then_some(bytes)
    }

    /// Whether the owner points at this key and the page reads back right. Panics if it reads back wrong.
    pub(super) fn has(&self, log: &Log, key: &str) -> bool {
        let Some((head, extent, _)) = self.holder.known.lock().pages.get(&digest(SPACE, key)).cloned() else {
            return false;
        };
        assert_eq!(&*head.key, key.as_bytes());
        match self.read(log, &head, extent) {
            Some(bytes) => {
                assert_eq!(bytes, content(key, bytes.len()), "wrong bytes under {key}");
                true
            }
            None => false,
        }
    }

    /// Forgets keys and records that.
    pub(super) fn delete(&self, log: &Log, keys: &[&str]) -> Result<(), Dropped> {
        let mut known = self.holder.known.lock();
        let gone: Vec<_> = keys.iter().map(|key| Gone { space: SPACE, digest: digest(SPACE, key) }).collect();
        gone.iter().for_each(|gone| drop(known.pages.remove(&gone.digest)));
        drop(known);
        log.delete(&gone).wait()
    }

    /// Waits until what the owner knows satisfies a condition.
    pub(super) fn until(&self, done: impl Fn(&Known) -> bool) {
        let mut known = self.holder.known.lock();
        while !done(&known) {
            let limit = std::time::Duration::from_secs(20);
            assert!(!self.holder.told.wait_for(&mut known, limit).timed_out(), "waited too long");
        }
    }

    /// Waits until the keepers have nothing left to do.
    pub(super) fn settle(&self, log: &Log) {
        for _ in 0..2000 {
            let segments = log.segments();
            let spares = segments.iter().filter(|segment| segment.state == SegmentState::Spare).count();
            let sealing = segments.iter().any(|segment| segment.state == SegmentState::Sealing);
            if spares == crate::keeper::SPARES * self.config.drives.len() && !sealing {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("waited too long: {:?}", log.segments());
    }

    /// All segment files of a drive, oldest first.
    pub(super) fn segment_files(&self, drive: usize) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path(drive)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.filter(|path| path.extension().is_some_and(|e| e == "segment")).collect();
        files.sort();
        files
    }
}

/// Both ways of doing I/O, as far as this machine has them.
pub(super) fn ways() -> Vec<IoChoice> {
    vec![IoChoice::Auto, IoChoice::Threads]
}

/// Names `prefix0`, `prefix1`, and so on.
pub(super) fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

/// The same as `&str`.
pub(super) fn strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
