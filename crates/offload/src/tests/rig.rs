//! An engine without a model: its pages hold their own names, so every page can be told right from wrong.

use super::fake::Fake;
use super::hand::Hand;
use crate::executor::Executor;
use crate::{DeviceError, DevicePool, Options, PageKey, PageRegion, Tiers};
use memkv_radix::{
    Access, Config, DevicePage, Digest, Namespace, PageChain, PageState, RadixCache, Request, Shape, Tokens,
    WritePolicy,
};
use parking_lot::Mutex;
use std::sync::Arc;

pub(crate) const PAGE_TOKENS: usize = 4;
pub(crate) const PAGE_BYTES: usize = 32;

/// A device that stops copying after a number of pages, if told.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) region: Arc<PageRegion>,
    left: Arc<Mutex<Option<usize>>>,
}

impl Device {
    /// From now on only `pages` pages more are copied; nothing stops it again.
    pub(crate) fn stop_after(&self, pages: Option<usize>) {
        *self.left.lock() = pages;
    }

    fn take(&self, pages: usize) -> Result<(), DeviceError> {
        match &mut *self.left.lock() {
            Some(left) if *left < pages => Err(DeviceError("told to fail".to_owned())),
            Some(left) => {
                *left -= pages;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl DevicePool for Device {
    fn page_bytes(&self) -> usize {
        self.region.page_bytes()
    }

    fn pages(&self) -> usize {
        self.region.pages()
    }

    fn copy_out(&self, pages: &[DevicePage], to: &mut [&mut [u8]]) -> Result<(), DeviceError> {
        self.take(pages.len())?;
        self.region.copy_out(pages, to)
    }

    fn copy_in(&self, pages: &[DevicePage], from: &[&[u8]]) -> Result<(), DeviceError> {
        self.take(pages.len())?;
        self.region.copy_in(pages, from)
    }
}

/// Sizes and choices of a rig.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) device_pages: u32,
    pub(crate) host_pages: u32,
    pub(crate) write: WritePolicy,
    pub(crate) options: Options,
    pub(crate) load_back_min_tokens: usize,
    pub(crate) load_back_max_tokens: usize,
    pub(crate) prefetch_min_tokens: usize,
    pub(crate) prefetch_max_tokens: usize,
}

impl Default for Setup {
    fn default() -> Self {
        let options = Options { copy_bytes: 2 * PAGE_BYTES, batch_pages: 4, ..Options::default() };
        Self {
            device_pages: 40,
            host_pages: 100,
            write: WritePolicy::Through,
            options,
            load_back_min_tokens: PAGE_TOKENS,
            load_back_max_tokens: usize::MAX,
            prefetch_min_tokens: PAGE_TOKENS,
            prefetch_max_tokens: usize::MAX,
        }
    }
}

/// Cache, tiers and all that they need.
pub(crate) struct Rig {
    pub(crate) cache: RadixCache,
    pub(crate) tiers: Tiers<Device, Fake>,
    pub(crate) device: Device,
    pub(crate) store: Fake,
    pub(crate) hand: Hand,
    pub(crate) space: Namespace,
}

/// Tokens of a prompt of so many whole pages, and one more token.
pub(crate) fn prompt(seed: u32, pages: usize) -> Vec<u32> {
    (0..=pages * PAGE_TOKENS).map(|at| seed * 100_000 + at as u32).collect()
}

/// The names of a prompt's whole pages.
pub(crate) fn names(prompt: &[u32]) -> Vec<Digest> {
    let shape = Shape::new(PAGE_TOKENS, false).unwrap();
    PageChain::new(shape, None).whole_pages(Tokens::from(prompt))
}

/// The keys of a prompt's whole pages.
pub(crate) fn keys(prompt: &[u32]) -> Vec<PageKey> {
    names(prompt).into_iter().map(PageKey::from).collect()
}

impl Rig {
    pub(crate) fn new(setup: &Setup, store: &Fake) -> Self {
        let shape = Shape::new(PAGE_TOKENS, false).unwrap();
        let mut config = Config::new(shape, setup.device_pages).with_host(setup.host_pages, setup.write);
        config.storage = true;
        config.load_back_min_tokens = setup.load_back_min_tokens;
        config.load_back_max_tokens = setup.load_back_max_tokens;
        config.prefetch_min_tokens = setup.prefetch_min_tokens;
        config.prefetch_max_tokens = setup.prefetch_max_tokens;
        let cache = RadixCache::new(config).unwrap();
        let region = Arc::new(PageRegion::new(setup.device_pages as usize, PAGE_BYTES).unwrap());
        let device = Device { region, left: Arc::default() };
        let host = PageRegion::new(setup.host_pages as usize, PAGE_BYTES).unwrap();
        let hand = Hand::default();
        let executor = Executor::ByHand(hand.clone());
        let tiers = Tiers::with_executor(
            &cache,
            device.clone(),
            host,
            store.clone(),
            setup.options.clone(),
            executor,
        );
        let tiers = tiers.unwrap();
        Self { cache, tiers, device, store: store.clone(), hand, space: Namespace::default() }
    }

    pub(crate) fn start(&mut self, prompt: &[u32]) -> Request {
        self.cache.start(Access::of(&self.space), Tokens::from(prompt), 0)
    }

    /// Computes what a request misses and ends it. What it did not compute must be right already. Returns how many
    /// pages it found.
    pub(crate) fn compute(&mut self, mut request: Request, prompt: &[u32]) -> usize {
        let names = names(prompt);
        self.cache.reserve(&mut request, prompt.len()).unwrap();
        let found = request.protected_pages();
        for (index, page) in request.row().iter().take(names.len()).enumerate() {
            if index < found {
                let bytes = self.device.region.read(page.index()).unwrap();
                assert_eq!(bytes[..], names[index].0, "page {index} of {found} on the device");
            } else {
                self.device.region.write(page.index()).unwrap().copy_from_slice(&names[index].0);
            }
        }
        self.cache.finish(request, prompt.len()).unwrap();
        found
    }

    /// A request from its arrival to its end, without tiers.
    pub(crate) fn serve(&mut self, prompt: &[u32]) -> usize {
        let request = self.start(prompt);
        self.compute(request, prompt)
    }

    pub(crate) fn poll(&mut self) -> usize {
        let ended = self.tiers.poll(&mut self.cache);
        self.cache.check().unwrap();
        ended
    }

    /// Turns and polls until nothing is under way.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            self.poll();
            if self.tiers.is_idle() && self.hand.len() == 0 {
                return;
            }
            self.hand.turn();
        }
        panic!("transfers do not end");
    }

    /// Starts a request, takes it through the tiers and computes the rest. Returns how many pages it found.
    pub(crate) fn serve_warm(&mut self, prompt: &[u32]) -> usize {
        let mut request = self.start(prompt);
        let mut warmup = crate::Warmup::default();
        let space = self.space.clone();
        for _ in 0..10_000 {
            if self.tiers.warm(&mut self.cache, Access::of(&space), &mut request, &mut warmup) {
                return self.compute(request, prompt);
            }
            self.hand.turn();
            self.poll();
        }
        panic!("the request does not become ready");
    }

    /// Takes all that may go off the device; host copies stay.
    pub(crate) fn clear_device(&mut self) {
        let capacity = self.cache.device().capacity();
        let evicted = self.cache.evict_device(capacity * PAGE_TOKENS);
        assert!(evicted.write_back.is_empty());
    }

    /// Nothing is under way, nothing is lost: all pages can be had again.
    pub(crate) fn assert_nothing_lost(&mut self) {
        assert!(self.tiers.is_idle());
        self.cache.check().unwrap();
        for state in [PageState::Private, PageState::Loading, PageState::Writing] {
            let counts = (self.cache.device().count(state), self.cache.host().count(state));
            assert_eq!(counts, (0, 0), "{state:?}");
        }
        assert_eq!(self.cache.stats().prefetching_tokens, 0);
        assert_eq!(self.cache.stats().protected_tokens, 0, "a lock is lost");
        while self.tiers.make_room(&mut self.cache, usize::MAX).pending_tokens > 0 {
            self.settle();
        }
        self.cache.evict_host(usize::MAX);
        let free = (self.cache.device().free(), self.cache.host().free());
        assert_eq!(free, (self.cache.device().capacity(), self.cache.host().capacity()));
    }
}
