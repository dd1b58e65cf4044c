//! The same with threads: what the tiers do by themselves.

use super::fake::Fake;
use super::rig::{PAGE_BYTES, Setup, names, prompt};
use crate::{DeviceError, DevicePool, Found, Options, PageKey, PageRegion, PageStore, Tiers};
use memkv_client::PageOutcome;
use memkv_radix::{Access, Config, DevicePage, Namespace, RadixCache, Shape, Tokens, WritePolicy};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A device whose driver has a bug.
struct Panics(PageRegion);

impl DevicePool for Panics {
    fn page_bytes(&self) -> usize {
        self.0.page_bytes()
    }

    fn pages(&self) -> usize {
        self.0.pages()
    }

    fn copy_out(&self, _pages: &[DevicePage], _to: &mut [&mut [u8]]) -> Result<(), DeviceError> {
        panic!("a bug in the driver");
    }

    fn copy_in(&self, _pages: &[DevicePage], _from: &[&[u8]]) -> Result<(), DeviceError> {
        panic!("a bug in the driver");
    }
}

fn cache() -> RadixCache {
    let setup = Setup::default();
    let shape = Shape::new(super::rig::PAGE_TOKENS, false).unwrap();
    let mut config = Config::new(shape, setup.device_pages).with_host(setup.host_pages, WritePolicy::Through);
    config.storage = true;
    config.load_back_min_tokens = 1;
    config.prefetch_min_tokens = 1;
    config.prefetch_max_tokens = 1000;
    RadixCache::new(config).unwrap()
}

fn fill(cache: &mut RadixCache, device: &PageRegion, text: &[u32]) {
    let space = Namespace::default();
    let mut request = cache.start(Access::of(&space), Tokens::from(text), 0);
    cache.reserve(&mut request, text.len()).unwrap();
    for (page, name) in request.row().iter().zip(names(text)) {
        device.write(page.index()).unwrap().copy_from_slice(&name.0);
    }
    cache.finish(request, text.len()).unwrap();
}

#[test]
fn copies_reach_the_store_and_come_back_with_waiting_by_thread_and_by_future() {
    let (store, text) = (Fake::default(), prompt(1, 9));
    let region = || PageRegion::new(100, PAGE_BYTES).unwrap();
    let mut writer = cache();
    let device = Arc::new(region());
    let mut tiers = Tiers::new(&writer, device.clone(), region(), store.clone(), Options::default()).unwrap();
    fill(&mut writer, &device, &text);
    assert!(tiers.drain(&mut writer, PATIENCE));
    assert_eq!(store.len(), 9);
    assert!(tiers.shut_down(&mut writer, PATIENCE));

    let mut reader = cache();
    let device = Arc::new(region());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let handle = tokio::runtime::Handle::current();
        let options = Options::default();
        let mut tiers =
            Tiers::on_runtime(&reader, device.clone(), region(), store.clone(), options, handle).unwrap();
        let space = Namespace::default();
        let mut request = reader.start(Access::of(&space), Tokens::from(&text), 0);
        let mut warmup = crate::Warmup::default();
        while !tiers.warm(&mut reader, Access::of(&space), &mut request, &mut warmup) {
            tiers.changed().await;
            tiers.poll(&mut reader);
        }
        assert_eq!(request.protected_pages(), 9);
        for (page, name) in request.row().iter().zip(names(&text)) {
            assert_eq!(device.read(page.index()).unwrap()[..], name.0);
        }
        reader.abort(request);
        reader.check().unwrap();
    });
}

#[test]
fn host_memory_is_a_tier_without_a_store() {
    let text = prompt(1, 9);
    let shape = Shape::new(super::rig::PAGE_TOKENS, false).unwrap();
    let config = Config { load_back_min_tokens: 1, prefetch_min_tokens: 1, ..Config::new(shape, 20) };
    let mut cache = RadixCache::new(config.with_host(40, WritePolicy::Through)).unwrap();
    let device = Arc::new(PageRegion::new(20, PAGE_BYTES).unwrap());
    let host = PageRegion::new(40, PAGE_BYTES).unwrap();
    let mut tiers = Tiers::new(&cache, device.clone(), host, crate::NoStore, Options::default()).unwrap();
    fill(&mut cache, &device, &text);
    assert!(tiers.drain(&mut cache, PATIENCE));
    assert_eq!(tiers.make_room(&mut cache, usize::MAX).freed_tokens, 9 * super::rig::PAGE_TOKENS);
    let space = Namespace::default();
    let longer = prompt(1, 15);
    let mut request = cache.start(Access::of(&space), Tokens::from(&longer), 0);
    let mut warmup = crate::Warmup::default();
    while !tiers.warm(&mut cache, Access::of(&space), &mut request, &mut warmup) {
        assert!(tiers.wait(PATIENCE));
        tiers.poll(&mut cache);
    }
    assert_eq!(request.protected_pages(), 9);
    cache.abort(request);
    let stats = tiers.stats();
    assert_eq!((stats.loaded_pages, stats.revoked_prefetches, stats.unstored_pages), (9, 1, 0));
    assert!(tiers.shut_down(&mut cache, PATIENCE));
}

#[test]
fn a_panic_of_the_device_is_a_failed_copy() {
    let mut cache = cache();
    let device = PageRegion::new(100, PAGE_BYTES).unwrap();
    let host = PageRegion::new(100, PAGE_BYTES).unwrap();
    fill(&mut cache, &device, &prompt(1, 5));
    let mut tiers = Tiers::new(&cache, Panics(device), host, Fake::default(), Options::default()).unwrap();
    assert!(tiers.drain(&mut cache, PATIENCE));
    let stats = tiers.stats();
    assert_eq!((stats.failed_backups, stats.backed_up_pages), (1, 0));
    cache.check().unwrap();
    assert_eq!(cache.host().free(), cache.host().capacity());
}

#[test]
fn a_deadline_wakes_whoever_waits() {
    let (store, text) = (Fake::default(), prompt(1, 9));
    store.freeze(true);
    let mut cache = cache();
    let region = || PageRegion::new(100, PAGE_BYTES).unwrap();
    let stop =
        crate::StopPolicy::Timeout { base: Duration::from_millis(20), per_1024_tokens: Duration::ZERO };
    let options = Options { stop, ..Options::default() };
    let mut tiers = Tiers::new(&cache, region(), region(), store.clone(), options).unwrap();
    let space = Namespace::default();
    for by_future in [false, true] {
        let ticket = tiers.prefetch(&mut cache, Access::of(&space), Tokens::from(&text)).unwrap();
        while tiers.prefetched(&ticket).is_none() {
            if by_future {
                block_on(tiers.changed());
            } else {
                assert!(tiers.wait(PATIENCE), "the deadline is news");
            }
            tiers.poll(&mut cache);
        }
        assert_eq!(tiers.prefetched(&ticket).unwrap().pages, 0);
    }
    store.freeze(false);
    assert!(tiers.shut_down(&mut cache, PATIENCE));
    cache.check().unwrap();
}

#[test]
fn a_stopped_prefetch_is_news_while_its_read_hangs() {
    let (store, text) = (Fake::default(), prompt(1, 9));
    store.freeze(true);
    let mut cache = cache();
    let region = || PageRegion::new(100, PAGE_BYTES).unwrap();
    let options = Options { stop: crate::StopPolicy::BestEffort, ..Options::default() };
    let mut tiers = Tiers::new(&cache, region(), region(), store.clone(), options).unwrap();
    let space = Namespace::default();
    let ticket = tiers.prefetch(&mut cache, Access::of(&space), Tokens::from(&text)).unwrap();
    assert!(!tiers.wait(Duration::from_millis(20)), "nothing has happened");
    tiers.stop_prefetch(&ticket);
    assert!(tiers.wait(PATIENCE));
    block_on(tiers.changed());
    assert_eq!(tiers.poll(&mut cache), 1);
    store.freeze(false);
    assert!(tiers.shut_down(&mut cache, PATIENCE));
}

/// A store that never answers and never wakes anybody.
struct Hangs;

impl PageStore for Hangs {
    async fn exists(&self, _keys: &[PageKey]) -> Found {
        std::future::pending().await
    }

    async fn get(&self, _keys: &[PageKey], _pages: &mut [&mut [u8]], _outcomes: &mut [PageOutcome]) {
        std::future::pending().await
    }

    async fn put(&self, _start: usize, _keys: &[PageKey], _pages: &[&[u8]], _outcomes: &mut [PageOutcome]) {
        std::future::pending().await
    }
}

#[test]
fn a_shutdown_breaks_off_calls_that_hang() {
    let mut cache = cache();
    let device = Arc::new(PageRegion::new(100, PAGE_BYTES).unwrap());
    let host = PageRegion::new(100, PAGE_BYTES).unwrap();
    let mut tiers = Tiers::new(&cache, device.clone(), host, Hangs, Options::default()).unwrap();
    fill(&mut cache, &device, &prompt(1, 9));
    let space = Namespace::default();
    let text = prompt(2, 9);
    let ticket = tiers.prefetch(&mut cache, Access::of(&space), Tokens::from(&text)).unwrap();
    while tiers.stats().backed_up_pages == 0 {
        tiers.poll(&mut cache);
        let _news = tiers.wait(Duration::from_millis(10));
    }
    assert!(!tiers.is_idle());
    assert!(tiers.shut_down(&mut cache, PATIENCE / 3));
    assert_eq!(cache.host().count(memkv_radix::PageState::Writing), 0);
    drop(ticket);
    cache.check().unwrap();
}

/// Runs a future on a thread that has no runtime.
fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

#[test]
fn many_requests_with_faults_on_threads_never_see_a_wrong_byte() {
    use super::rig::{PAGE_TOKENS, Rig};

    let store = Fake::default();
    let setup = Setup { device_pages: 60, host_pages: 120, ..Setup::default() };
    let mut rig = Rig::new(&setup, &store);
    let host = PageRegion::new(120, PAGE_BYTES).unwrap();
    rig.tiers =
        Tiers::new(&rig.cache, rig.device.clone(), host, store.clone(), setup.options.clone()).unwrap();
    let space = rig.space.clone();
    let mut state = 5_u64;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    let (mut waiting, mut found) = (Vec::new(), 0);
    for step in 0..3000 {
        if waiting.len() < 3 {
            let text = prompt(1 + dice(12) as u32, 3 + dice(10) as usize);
            waiting.push((rig.start(&text), crate::Warmup::default(), text));
        }
        match dice(12) {
            0 => drop(rig.tiers.make_room(&mut rig.cache, 10 * PAGE_TOKENS)),
            1 => drop(rig.cache.evict_host(10)),
            2 => store.break_all(Some(PageOutcome::Busy)),
            3 => rig.device.stop_after(Some(1)),
            4 => {
                let (request, _, _) = waiting.swap_remove(0);
                rig.cache.abort(request);
            }
            _ => {
                store.break_all(None);
                rig.device.stop_after(None);
            }
        }
        let mut still = Vec::new();
        for (mut request, mut warmup, text) in waiting {
            if !rig.tiers.warm(&mut rig.cache, Access::of(&space), &mut request, &mut warmup) {
                still.push((request, warmup, text));
            } else {
                found += rig.compute(request, &text);
            }
        }
        waiting = still;
        let _news = rig.tiers.wait(Duration::from_micros(dice(300)));
        rig.tiers.poll(&mut rig.cache);
        if step % 50 == 0 {
            rig.cache.check().unwrap();
        }
    }
    for (request, _, _) in waiting {
        rig.cache.abort(request);
    }
    store.break_all(None);
    assert!(rig.tiers.shut_down(&mut rig.cache, PATIENCE));
    let stats = rig.tiers.stats();
    assert!(found > 1000 && stats.prefetched_pages > 100 && stats.loaded_pages > 100, "{found}: {stats:?}");
    assert!(stats.busy_pages > 0 && stats.failed_loads + stats.failed_backups > 0, "{stats:?}");
    rig.assert_nothing_lost();
}
