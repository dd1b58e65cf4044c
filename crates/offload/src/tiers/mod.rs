//! The tiers: carry out what the cache plans, and tell it how that went.
//!
//! Everything that touches the cache happens in calls of the scheduler's thread, which never wait: a transfer only
//! leaves word, and [`Tiers::poll`] ends its plan. So whatever becomes of a transfer, the tree is consistent between
//! any two calls.

mod ending;
mod waiting;

use crate::device::DevicePool;
use crate::executor::Executor;
use crate::job::{Job, Kind, Question};
use crate::jobs::{Context, Work};
use crate::options::Options;
use crate::progress::{News, Progress, Report};
use crate::ranks::{OneRank, Ranks};
use crate::region::PageRegion;
use crate::stats::{Count, Counters, Stats};
use crate::store::PageStore;
use crate::ticket::{Entry, LoadTicket, NotStarted, Outcome, PrefetchEnd, PrefetchTicket};
use memkv_radix::{Access, BackupPlan, LoadedBack, NodeId, RadixCache, StorePlan, Tokens};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Cache, device, host memory and store do not fit each other.
#[derive(Debug, Error)]
pub enum SetupError {
    /// Pages differ in length.
    #[error("a page of the device has {device} bytes and one of host memory {host}; they must be alike")]
    PageBytes {
        /// Bytes of a device page.
        device: usize,
        /// Bytes of a host page.
        host: usize,
    },
    /// The cache gives out pages that do not exist.
    #[error("the cache has {wanted} pages of {medium}, but there are {pages}")]
    TooFewPages {
        /// Device or host memory.
        medium: &'static str,
        /// Pages of the cache's configuration.
        wanted: u32,
        /// Pages that exist.
        pages: usize,
    },
    /// The threads could not be started.
    #[error("cannot start the threads of the tiers: {0}")]
    Threads(#[from] std::io::Error),
}

/// What making room came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Device tokens that are free now.
    pub freed_tokens: usize,
    /// Device tokens that will be free when their copies have ended.
    pub pending_tokens: usize,
}

/// Carries out the plans of one [`RadixCache`] over a device, host memory and a store.
///
/// Owned by the scheduler's thread, like the cache. Always pass the same cache. Call [`poll`](Self::poll) once per
/// step. Before the cache goes away, [`shut_down`](Self::shut_down): plans that are only dropped hold their pages
/// for ever.
pub struct Tiers<D: DevicePool, S: PageStore> {
    context: Arc<Context<D, S>>,
    executor: Executor,
    ranks: Box<dyn Ranks>,
    /// By number, so that every rank lists them in the same order.
    jobs: BTreeMap<u64, Job>,
    tickets: BTreeMap<u64, Entry>,
    next_id: u64,
    /// Ended transfers that the last poll knew of.
    seen: u64,
    closed: bool,
}

impl<D: DevicePool, S: PageStore> Tiers<D, S> {
    /// Tiers with threads of their own.
    ///
    /// # Errors
    ///
    /// If the parts do not fit each other, or no thread can be started.
    pub fn new(
        cache: &RadixCache,
        device: D,
        host: PageRegion,
        store: S,
        options: Options,
    ) -> Result<Self, SetupError> {
        let executor = Executor::own(options.threads)?;
        Self::with_executor(cache, device, host, store, options, executor)
    }

    /// Tiers whose transfers run on the engine's runtime, which must have timers. Copies from and to the device
    /// block its threads for as long as [`Options::copy_bytes`] take.
    ///
    /// # Errors
    ///
    /// If the parts do not fit each other.
    pub fn on_runtime(
        cache: &RadixCache,
        device: D,
        host: PageRegion,
        store: S,
        options: Options,
        runtime: Handle,
    ) -> Result<Self, SetupError> {
        Self::with_executor(cache, device, host, store, options, Executor::Borrowed(runtime))
    }

    pub(crate) fn with_executor(
        cache: &RadixCache,
        device: D,
        host: PageRegion,
        store: S,
        options: Options,
        executor: Executor,
    ) -> Result<Self, SetupError> {
        let (device_bytes, host_bytes) = (device.page_bytes(), host.page_bytes());
        if device_bytes != host_bytes {
            return Err(SetupError::PageBytes { device: device_bytes, host: host_bytes });
        }
        let wanted = (cache.config().device_pages, cache.config().host_pages);
        let media = [("the device", wanted.0, device.pages()), ("host memory", wanted.1, host.pages())];
        for (medium, wanted, pages) in media {
            if wanted as usize > pages {
                return Err(SetupError::TooFewPages { medium, wanted, pages });
            }
        }
        let context = Context {
            reads: Semaphore::new(options.reads.max(1)),
            writes: Semaphore::new(options.writes.max(1)),
            device,
            host,
            store,
            options,
            counters: Counters::default(),
            news: Arc::<News>::default(),
        };
        Ok(Self {
            context: Arc::new(context),
            executor,
            ranks: Box::new(OneRank),
            jobs: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_id: 0,
            seen: 0,
            closed: false,
        })
    }

    #[cfg(test)]
    pub(crate) fn context_for_tests(&self) -> Arc<Context<D, S>> {
        self.context.clone()
    }

    /// Makes this rank act in step with others. Every rank must make the same calls in the same order.
    #[must_use]
    pub fn with_ranks(mut self, ranks: Box<dyn Ranks>) -> Self {
        self.ranks = ranks;
        self
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.context.counters.read()
    }

    /// The host tier.
    #[must_use]
    pub fn host(&self) -> &PageRegion {
        &self.context.host
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.context.device
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.context.store
    }

    /// Bounds and choices.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.context.options
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Ends the plans whose transfers are over and starts the copies that the write policy wants. Call it once per
    /// scheduling step. Returns how many plans ended.
    pub fn poll(&mut self, cache: &mut RadixCache) -> usize {
        self.poll_at(cache, Instant::now())
    }

    /// [`poll`](Self::poll) by the engine's own clock.
    pub fn poll_at(&mut self, cache: &mut RadixCache, now: Instant) -> usize {
        self.seen = self.context.news.ended();
        self.forget_abandoned(cache);
        let ended = self.end_jobs(cache, now);
        self.start_backups(cache);
        ended
    }

    /// Looks in the store for the pages of `tokens` after the longest prefix in the cache.
    ///
    /// First the store is asked how much it has; host pages are taken only for that. Leave out the last token of a
    /// prompt: it is always computed.
    ///
    /// # Errors
    ///
    /// If the rest is too short, or too much is under way.
    pub fn prefetch(
        &mut self,
        cache: &mut RadixCache,
        access: Access<'_>,
        tokens: Tokens<'_>,
    ) -> Result<PrefetchTicket, NotStarted> {
        self.check_open()?;
        let names = cache.prefetch_names(access, tokens)?;
        let wanted = names.digests.len() * cache.shape().page_tokens();
        let running = self.running(|kind| matches!(kind, Kind::Ask(_) | Kind::Fetch(_)));
        if running >= self.options().max_prefetches {
            self.count(Count::RefusedPrefetches, 1);
            return Err(NotStarted::Full);
        }
        self.count(Count::Prefetches, 1);
        let (id, alive) = self.ticket(Outcome::Prefetching { hit_pages: 0 });
        let question = Question::new(access, tokens, names.start);
        let deadline = self.options().stop.patience(wanted).map(|patience| Instant::now() + patience);
        self.start(Work::Ask { digests: names.digests }, Kind::Ask(question), Some(id), deadline);
        Ok(PrefetchTicket { id, _alive: alive })
    }

    /// Asks a prefetch to end with what has come. The next [`poll`](Self::poll) ends it.
    pub fn stop_prefetch(&mut self, ticket: &PrefetchTicket) {
        for job in self.jobs.values().filter(|job| job.ticket == Some(ticket.id)) {
            job.progress.stop();
        }
    }

    /// What a prefetch brought, once it has ended.
    #[must_use]
    pub fn prefetched(&self, ticket: &PrefetchTicket) -> Option<PrefetchEnd> {
        match self.tickets.get(&ticket.id)?.outcome {
            Outcome::Prefetched(end) => Some(end),
            _ => None,
        }
    }

    /// Loads `node` and its host-only ancestors to the device, all or nothing.
    ///
    /// # Errors
    ///
    /// If there is nothing to load, too little, too much, no room, or too much is under way.
    pub fn load_back(&mut self, cache: &mut RadixCache, node: NodeId) -> Result<LoadTicket, NotStarted> {
        self.check_open()?;
        if self.running(|kind| matches!(kind, Kind::Load(_))) >= self.options().max_loads {
            self.count(Count::RefusedLoads, 1);
            return Err(NotStarted::Full);
        }
        let plan = cache.begin_load_back(node)?;
        let work = Work::Load { host: plan.host.clone(), device: plan.device.clone() };
        let (id, alive) = self.ticket(Outcome::Loading);
        self.start(work, Kind::Load(plan), Some(id), None);
        Ok(LoadTicket { id, _alive: alive })
    }

    /// Whether a load has ended.
    #[must_use]
    pub fn is_loaded(&self, ticket: &LoadTicket) -> bool {
        self.tickets.get(&ticket.id).is_some_and(|entry| matches!(entry.outcome, Outcome::Loaded(_)))
    }

    /// Takes the result of a load that [has ended](Self::is_loaded): the lock and pages for
    /// [`RadixCache::adopt`], or nothing if it failed. A load that has not ended goes on for whoever comes next.
    #[must_use]
    pub fn take_loaded(&mut self, ticket: LoadTicket) -> Option<LoadedBack> {
        match self.tickets.get_mut(&ticket.id).map(|entry| &mut entry.outcome) {
            Some(Outcome::Loaded(loaded)) => loaded.take(),
            _ => None,
        }
    }

    /// Makes room on the device. With write-back, nodes without a copy are copied first and free their pages in a
    /// later [`poll`](Self::poll); if too many copies are under way already, they are lost at once.
    pub fn make_room(&mut self, cache: &mut RadixCache, tokens: usize) -> Room {
        let evicted = cache.evict_device(tokens);
        let mut room = Room { freed_tokens: evicted.tokens, pending_tokens: 0 };
        for plan in evicted.write_back {
            let plan_tokens = plan.device.len() * cache.shape().page_tokens();
            if self.may_back_up() {
                room.pending_tokens += plan_tokens;
                self.start_backup(plan);
            } else {
                self.count(Count::DroppedBackups, 1);
                let done = cache.end_backup(plan, false);
                room.freed_tokens += done.freed.len() * cache.shape().page_tokens();
            }
        }
        room
    }

    fn start_backups(&mut self, cache: &mut RadixCache) {
        while self.may_back_up()
            && let Some(plan) = cache.next_backup()
        {
            self.start_backup(plan);
        }
    }

    fn may_back_up(&self) -> bool {
        !self.closed && self.running(|kind| matches!(kind, Kind::BackUp(_))) < self.options().max_backups
    }

    fn start_backup(&mut self, plan: BackupPlan) {
        let work = Work::BackUp { device: plan.device.clone(), host: plan.host.clone() };
        self.start(work, Kind::BackUp(plan), None, None);
    }

    fn start_store(&mut self, cache: &mut RadixCache, plan: StorePlan) {
        let full = self.running(|kind| matches!(kind, Kind::Store(_))) >= self.options().max_stores;
        if full || self.closed {
            self.count(Count::DroppedStores, 1);
            self.count(Count::UnstoredPages, plan.host.len());
            return cache.end_store(plan);
        }
        let work = Work::Store { start: plan.start, host: plan.host.clone(), digests: plan.digests.clone() };
        self.start(work, Kind::Store(plan), None, None);
    }

    fn start(&mut self, work: Work, kind: Kind, ticket: Option<u64>, deadline: Option<Instant>) {
        let report = Report::new(&self.context.news);
        let progress = report.progress().clone();
        self.executor.spawn(Box::pin(self.context.clone().run(work, report)));
        self.keep(kind, progress, ticket, deadline);
    }

    fn keep(&mut self, kind: Kind, progress: Arc<Progress>, ticket: Option<u64>, deadline: Option<Instant>) {
        self.next_id += 1;
        self.jobs.insert(self.next_id, Job { kind, progress, ticket, deadline });
    }

    fn ticket(&mut self, outcome: Outcome) -> (u64, Arc<()>) {
        self.next_id += 1;
        let alive = Arc::new(());
        self.tickets.insert(self.next_id, Entry { alive: Arc::downgrade(&alive), outcome });
        (self.next_id, alive)
    }

    fn running(&self, which: impl Fn(&Kind) -> bool) -> usize {
        self.jobs.values().filter(|job| which(&job.kind)).count()
    }

    fn check_open(&self) -> Result<(), NotStarted> {
        if self.closed { Err(NotStarted::Closed) } else { Ok(()) }
    }

    fn count(&self, count: Count, by: usize) {
        self.context.counters.add(count, by);
    }
}
