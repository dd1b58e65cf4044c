//! Tests of the engine as a whole, and what they share.

mod checks;
mod eviction;
mod keeping;
mod listing;
mod model;
mod races;
mod restart;
mod rules;
mod stress;
mod tier_model;
mod tier_stress;
mod tiers;

use crate::*;
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription};
use memkv_nvme::FaultPlan;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub(crate) const KIB: u32 = 1 << 10;
pub(crate) const MIB: u32 = 1 << 20;

fn config(dram_bytes: u64) -> EngineConfig {
    EngineConfig {
        page_bytes_max: MIB,
        spaces_max: 4,
        huge_pages: HugePages::Off,
        high_watermark: 0.95,
        low_watermark: 0.90,
        ..EngineConfig::with_dram(dram_bytes)
    }
}

/// An engine with chunks of 4 MiB and pages of up to 1 MiB.
pub(crate) fn engine(dram_bytes: u64) -> Arc<Engine> {
    Engine::new(config(dram_bytes)).unwrap()
}

/// The parts below an engine.
pub(crate) fn arena_and_spaces() -> (Arc<memkv_memory::Arena>, crate::space::Spaces) {
    let config = memkv_memory::ArenaConfig::anonymous(4 << 20, MIB);
    (memkv_memory::Arena::new(config).unwrap(), crate::space::Spaces::new(4))
}

pub(crate) fn space(engine: &Engine, name: &str) -> Arc<Space> {
    engine.open_space(SpaceDescription::named(name).unwrap()).unwrap()
}

pub(crate) fn hashed<'a>(space: &Space, key: &'a [u8]) -> HashedKey<'a> {
    HashedKey::new(space.id(), Key::new(key).unwrap())
}

/// What the client says about these bytes under this key.
fn described(key: HashedKey<'_>, page: &[u8]) -> PageMeta {
    let len = u32::try_from(page.len()).unwrap();
    let meta = PageMeta { len, codec: 3, flags: 0x1234, checksum: 0 };
    PageMeta { checksum: meta.checksum_of(PageHasher::oneshot(key.digest, page)), ..meta }
}

pub(crate) fn put_at(
    engine: &Engine,
    space: &Arc<Space>,
    key: &[u8],
    page: &[u8],
    (position, now_ms): (u32, u64),
) -> Result<Published, Refusal> {
    let key = hashed(space, key);
    let mut filling = engine.reserve(space, key, u32::try_from(page.len()).unwrap(), position)?;
    filling.bytes_mut().copy_from_slice(page);
    Ok(filling.verify(described(key, page)).unwrap().publish(now_ms))
}

pub(crate) fn put(
    engine: &Engine,
    space: &Arc<Space>,
    key: &[u8],
    page: &[u8],
) -> Result<Published, Refusal> {
    put_at(engine, space, key, page, (0, 0))
}

/// Runs a future that waits for other threads.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Runs a future that must not wait.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory does not wait"),
    }
}

pub(crate) fn get_at(engine: &Engine, space: &Space, key: &[u8], now_ms: u64) -> Option<PagePin> {
    let mut pins = Vec::new();
    at_once(engine.pin_batch(space, &[hashed(space, key)], now_ms, &mut pins));
    assert_eq!(pins.len(), 1);
    pins.pop().unwrap()
}

pub(crate) fn get(engine: &Engine, space: &Space, key: &[u8]) -> Option<PagePin> {
    get_at(engine, space, key, 0)
}

pub(crate) fn exists(engine: &Engine, space: &Space, key: &[u8]) -> bool {
    let mut found = [false];
    engine.exists_batch(space, &[hashed(space, key)], &mut found);
    found[0]
}

pub(crate) fn delete(engine: &Engine, space: &Space, key: &[u8]) -> bool {
    let mut removed = [false];
    engine.delete_batch(space, &[hashed(space, key)], &mut removed);
    removed[0]
}

pub(crate) fn touch(engine: &Engine, space: &Space, key: &[u8], now_ms: u64) -> bool {
    let mut found = [false];
    engine.touch_batch(space, &[hashed(space, key)], &mut found, now_ms);
    found[0]
}

/// Nothing is held, by anyone.
pub(crate) fn assert_empty(engine: &Engine) {
    let status = engine.status();
    assert_eq!((status.used_slot_bytes, status.asked_bytes), (0, 0));
    assert_eq!((status.pages, status.page_bytes), (0, 0));
    assert_eq!((status.chunks_free, status.chunks_draining), (status.chunks, 0));
}

/// Engines with drives in a directory of their own.
pub(crate) struct Tiered {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) faults: Arc<FaultPlan>,
    pub(crate) config: EngineConfig,
}

impl Tiered {
    /// 8 MiB of memory and one drive of 64 MiB; every page is taken.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = EngineConfig { nvme: Some(Self::drives(&directory, 1)), ..config(8 << 20) };
        Self { directory, faults: FaultPlan::new(), config }
    }

    pub(crate) fn drives(directory: &tempfile::TempDir, count: usize) -> NvmeConfig {
        let path = |n: usize| directory.path().join(format!("drive-{n}"));
        NvmeConfig {
            drives: (0..count).map(|n| DriveConfig { path: path(n), quota_bytes: 64 << 20 }).collect(),
            segment_bytes: 4 << 20,
            mode: NvmeMode::Demote,
            io: IoChoice::Threads,
            queue_depth: 16,
            sync: false,
            admit_unread: true,
        }
    }

    pub(crate) fn nvme(&mut self) -> &mut NvmeConfig {
        self.config.nvme.as_mut().unwrap()
    }

    pub(crate) fn open(&self) -> Arc<Engine> {
        self.open_reported().0
    }

    pub(crate) fn open_reported(&self) -> (Arc<Engine>, RecoveryReport) {
        let faults = &self.faults;
        Engine::open_with(self.config.clone(), None, &|log| log.faults = Some(Arc::clone(faults))).unwrap()
    }
}

/// Gets a page from wherever it is.
pub(crate) fn fetch(engine: &Engine, space: &Space, key: &[u8]) -> Option<PagePin> {
    let mut pins = Vec::new();
    block_on(engine.pin_batch(space, &[hashed(space, key)], 0, &mut pins));
    pins.pop().unwrap()
}

/// Puts a page out of memory, onto a drive if it may go there, and waits until it is there.
pub(crate) fn demote(engine: &Engine, space: &Space, key: &[u8]) {
    start_demotion(engine, space, key);
    settle_writes(engine);
}

pub(crate) fn start_demotion(engine: &Engine, space: &Space, key: &[u8]) {
    let state = &engine.state;
    let digest = hashed(space, key).digest;
    let chunks = (0..state.arena.chunk_count()).filter_map(|chunk| state.arena.chunk(chunk));
    let page =
        chunks.flat_map(|view| state.arena.pages(view, 0, view.slots)).find(|page| page.digest == digest);
    let page = page.expect("the page is in memory");
    let slot_bytes = state.arena.slot_bytes(page.slot);
    crate::drives::write::Exit::new(state).evict(&page, slot_bytes, crate::drives::write::Urgency::Calm);
}

/// Waits until no write is in flight.
pub(crate) fn settle_writes(engine: &Engine) {
    let drives = engine.state.drives.as_ref().unwrap();
    while drives.writes.bytes() > 0 {
        std::thread::yield_now();
    }
}

/// Whether a page is in memory; `None` if there is none.
pub(crate) fn in_dram(engine: &Engine, space: &Space, key: &[u8]) -> Option<bool> {
    engine.inspect(space, hashed(space, key)).map(|info| info.in_dram)
}
