//! Tests of the engine as a whole, and what they share.

mod eviction;
mod listing;
mod model;
mod rules;
mod stress;

use crate::*;
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription};
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
