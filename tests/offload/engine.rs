//! An engine without a model: the bytes of a page follow from its name, so every page can be told right from wrong.

use memkv_client::{Client, Config, PageOutcome, Space, SpaceDescription, Transport};
use memkv_offload::{
    DeviceError, DevicePool, Found, Options, PageKey, PageRegion, PageStore, Stats, StopPolicy, Tiers, Warmup,
};
use memkv_radix::{
    Access, DevicePage, Namespace, PageChain, PageState, RadixCache, Request, Shape, Tokens, WritePolicy,
};
use memkv_tests::daemon::KEY;
use memkv_tests::pages::page;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

pub(crate) const PAGE_TOKENS: usize = 4;
pub(crate) const PAGE_BYTES: usize = 20_000;
/// How long a test waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Pages of one read or write.
pub(crate) const BATCH: usize = 8;

/// What happens at a call, by its number from 0.
pub(crate) type Hook = Box<dyn Fn(usize) + Send + Sync>;

/// Calls that pass through, with a hook before each.
#[derive(Default)]
pub(crate) struct Watch {
    begun: AtomicUsize,
    ended: AtomicUsize,
    hook: Option<Hook>,
}

impl Watch {
    pub(crate) fn with(hook: impl Fn(usize) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { hook: Some(Box::new(hook)), ..Self::default() })
    }

    /// How many calls are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.begun.load(SeqCst) - self.ended.load(SeqCst)
    }

    fn enter(&self) {
        let call = self.begun.fetch_add(1, SeqCst);
        if let Some(hook) = &self.hook {
            hook(call);
        }
    }

    fn leave(&self) {
        self.ended.fetch_add(1, SeqCst);
    }
}

/// A space whose reads are watched.
pub(crate) struct Watched {
    pub(crate) space: Space,
    gets: Arc<Watch>,
}

impl PageStore for Watched {
    async fn exists(&self, keys: &[PageKey]) -> Found {
        PageStore::exists(&self.space, keys).await
    }

    async fn get(&self, keys: &[PageKey], pages: &mut [&mut [u8]], outcomes: &mut [PageOutcome]) {
        self.gets.enter();
        PageStore::get(&self.space, keys, pages, outcomes).await;
        self.gets.leave();
    }

    async fn put(&self, start: usize, keys: &[PageKey], pages: &[&[u8]], outcomes: &mut [PageOutcome]) {
        PageStore::put(&self.space, start, keys, pages, outcomes).await;
    }
}

/// A device whose copies are watched.
pub(crate) struct Device {
    pub(crate) region: PageRegion,
    copies: Arc<Watch>,
}

impl DevicePool for Device {
    fn page_bytes(&self) -> usize {
        self.region.page_bytes()
    }

    fn pages(&self) -> usize {
        self.region.pages()
    }

    fn copy_out(&self, pages: &[DevicePage], to: &mut [&mut [u8]]) -> Result<(), DeviceError> {
        self.region.copy_out(pages, to)
    }

    fn copy_in(&self, pages: &[DevicePage], from: &[&[u8]]) -> Result<(), DeviceError> {
        self.copies.enter();
        let copied = self.region.copy_in(pages, from);
        self.copies.leave();
        copied
    }
}

/// What a test sets about an engine.
pub(crate) struct Setup {
    pub(crate) transport: Transport,
    pub(crate) stop: StopPolicy,
    /// The deadline of every op.
    pub(crate) op_timeout: Duration,
    pub(crate) gets: Arc<Watch>,
    pub(crate) copies: Arc<Watch>,
    /// Where transfers run, if not on threads of their own.
    pub(crate) runtime: Option<tokio::runtime::Handle>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            transport: Transport::Tcp,
            stop: StopPolicy::WaitComplete,
            op_timeout: Duration::from_secs(2),
            gets: Arc::default(),
            copies: Arc::default(),
            runtime: None,
        }
    }
}

/// Cache, tiers and device of one engine.
pub(crate) struct Engine {
    pub(crate) cache: RadixCache,
    pub(crate) tiers: Tiers<Arc<Device>, Watched>,
    device: Arc<Device>,
    namespace: Namespace,
    runtime: tokio::runtime::Runtime,
}

/// Tokens of a prompt of so many whole pages, and one more.
pub(crate) fn prompt(seed: u32, pages: usize) -> Vec<u32> {
    (0..=pages * PAGE_TOKENS).map(|at| seed * 100_000 + at as u32).collect()
}

/// The keys of a prompt's whole pages.
pub(crate) fn keys(prompt: &[u32]) -> Vec<PageKey> {
    let shape = Shape::new(PAGE_TOKENS, false).unwrap();
    PageChain::new(shape, None).whole_pages(Tokens::from(prompt)).into_iter().map(PageKey::from).collect()
}

fn bytes(key: &PageKey) -> Vec<u8> {
    page(key.as_ref(), PAGE_BYTES)
}

impl Engine {
    /// An engine of the model `name`, over the servers at `addrs`.
    pub(crate) fn new(addrs: &[SocketAddr], name: &str, setup: Setup) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let servers: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        let config = Config::builder()
            .without_environment()
            .servers(servers.join(","))
            .auth_key_hex(KEY)
            .transport(setup.transport)
            .op_timeout(setup.op_timeout)
            .build()
            .unwrap();
        let space = runtime.block_on(async {
            let client = Client::connect(config).await.unwrap();
            client.space(SpaceDescription::named(name).unwrap()).await.unwrap()
        });
        let (device_pages, host_pages) = (100, 200);
        let shape = Shape::new(PAGE_TOKENS, false).unwrap();
        let mut config =
            memkv_radix::Config::new(shape, device_pages).with_host(host_pages, WritePolicy::Through);
        config.storage = true;
        config.load_back_min_tokens = 1;
        config.prefetch_min_tokens = 1;
        config.prefetch_max_tokens = usize::MAX;
        let cache = RadixCache::new(config).unwrap();
        let region = |pages: u32| PageRegion::new(pages as usize, PAGE_BYTES).unwrap();
        let device = Arc::new(Device { region: region(device_pages), copies: setup.copies });
        let options = Options {
            stop: setup.stop,
            batch_pages: BATCH,
            copy_bytes: 2 * PAGE_BYTES,
            ..Options::default()
        };
        let store = Watched { space, gets: setup.gets };
        let host = region(host_pages);
        let tiers = match setup.runtime {
            None => Tiers::new(&cache, device.clone(), host, store, options),
            Some(handle) => Tiers::on_runtime(&cache, device.clone(), host, store, options, handle),
        };
        let tiers = tiers.unwrap();
        Self { cache, tiers, device, namespace: Namespace::default(), runtime }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.tiers.stats()
    }

    /// Takes a request through the tiers, computes what it misses and ends it. What it finds must be right. Returns
    /// how many pages it found.
    pub(crate) fn serve(&mut self, prompt: &[u32]) -> usize {
        let mut request = self.cache.start(Access::of(&self.namespace), Tokens::from(prompt), 0);
        let mut warmup = Warmup::default();
        while !self.tiers.warm(&mut self.cache, Access::of(&self.namespace), &mut request, &mut warmup) {
            self.runtime.block_on(async {
                tokio::time::timeout(PATIENCE, self.tiers.changed()).await.expect("nothing happens");
            });
            self.tiers.poll(&mut self.cache);
            self.cache.check().unwrap();
        }
        self.compute(request, prompt)
    }

    fn compute(&mut self, mut request: Request, prompt: &[u32]) -> usize {
        let found = request.protected_pages();
        self.cache.reserve(&mut request, prompt.len()).unwrap();
        for (index, (page, key)) in request.row().iter().zip(keys(prompt)).enumerate() {
            let page = page.index();
            if index < found {
                assert!(
                    self.device.region.read(page).unwrap()[..] == bytes(&key),
                    "wrong bytes in page {index}"
                );
            } else {
                self.device.region.write(page).unwrap().copy_from_slice(&bytes(&key));
            }
        }
        self.cache.finish(request, prompt.len()).unwrap();
        found
    }

    /// Waits for all copies and writes.
    pub(crate) fn settle(&mut self) {
        assert!(self.tiers.drain(&mut self.cache, PATIENCE), "transfers do not end");
        self.cache.check().unwrap();
    }

    /// Takes everything off the device; host copies stay.
    pub(crate) fn clear_device(&mut self) {
        self.settle();
        let evicted = self.cache.evict_device(usize::MAX);
        assert!(evicted.write_back.is_empty());
        assert_eq!(self.cache.device().free(), self.cache.device().capacity());
    }

    /// Ends the engine: everything that was lent is back.
    pub(crate) fn end(mut self) {
        assert!(self.tiers.shut_down(&mut self.cache, PATIENCE), "transfers do not end");
        self.cache.check().unwrap();
        for state in [PageState::Private, PageState::Loading, PageState::Writing] {
            let counts = (self.cache.device().count(state), self.cache.host().count(state));
            assert_eq!(counts, (0, 0), "{state:?}");
        }
        let _all = self.cache.evict_device(usize::MAX);
        self.cache.evict_host(usize::MAX);
        let free = (self.cache.device().free(), self.cache.host().free());
        assert_eq!(free, (self.cache.device().capacity(), self.cache.host().capacity()));
    }
}
