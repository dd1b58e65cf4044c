//! The cache: a tree of pages over two pools, and every transition that it can make.
//!
//! Purpose: decide what is kept where. The engine's executor gets page lists and never the tree.
//!
//! Invariants (all recomputed by `check`, feature `testing`):
//! - a node holds whole pages; no physical page is in two nodes; children of one node differ in their first page;
//! - a node's lock counts the locks on it and below; only unlocked leaves lose their device pages;
//! - with a node all its ancestors have device pages; a node without device pages has a finished host copy;
//! - free pages, the tree's pages, pages of requests and pages of plans add up to the pool.
//!
//! Deliberately absent: clocks, threads, I/O and the bytes. Times are a counter that each operation advances, so the
//! same calls give the same cache.

mod backup;
#[cfg(any(test, feature = "testing"))]
mod check;
mod evict;
mod listing;
mod load;
mod prefetch;
mod requests;
mod residency;
mod scopes;
mod walk;

pub use backup::{BackupDone, BackupError, BackupPlan, StorePlan};
#[cfg(any(test, feature = "testing"))]
pub use check::Violation;
pub use evict::{Evicted, NotResident};
pub use load::{LoadBackError, LoadBackPlan, LoadedBack};
pub use prefetch::{PrefetchError, PrefetchNames, PrefetchPage, PrefetchPlan, Prefetched};
pub use requests::{NotCovered, Progress, Request};
pub use scopes::{Alert, Alias, WindowClosed};
pub use walk::{InsertError, InsertOptions, Inserted, Match};

use crate::config::{Config, ConfigError, Sharing};
use crate::events::EventLog;
use crate::evidence::Evidence;
use crate::hash::Digest;
use crate::namespace::Namespaces;
use crate::node::{NodeId, Nodes, ROOT};
use crate::pool::{Device, DevicePage, Host, OutOfPages, PagePool, PageState, StalePage};
use crate::tokens::Shape;
use evict::Leaves;
use std::collections::{BTreeSet, VecDeque};

/// A lock on a node and all its ancestors: their device pages stay. Give it back with
/// [`RadixCache::unlock`]; a lock that is only dropped holds its pages for ever.
#[derive(Debug)]
#[must_use = "a lock must be given back"]
pub struct Lock {
    node: NodeId,
}

impl Lock {
    /// The node that is locked.
    pub fn node(&self) -> NodeId {
        self.node
    }
}

/// Figures for metrics and admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    /// Device tokens of the tree that may be evicted.
    pub evictable_tokens: usize,
    /// Device tokens of the tree under a lock.
    pub protected_tokens: usize,
    /// Free device pages.
    pub device_free: usize,
    /// Free host pages.
    pub host_free: usize,
    /// Nodes of the tree.
    pub nodes: usize,
    /// Tokens of prefetches under way.
    pub prefetching_tokens: usize,
}

/// A prefix cache for one engine. Not shared between threads: the scheduler owns it.
pub struct RadixCache {
    config: Config,
    nodes: Nodes,
    device: PagePool<Device>,
    host: PagePool<Host>,
    namespaces: Namespaces,
    clock: u64,
    evictable: usize,
    protected: usize,
    device_leaves: Leaves,
    host_leaves: Leaves,
    /// Nodes that reached the hits of the write policy.
    wanted: VecDeque<NodeId>,
    events: EventLog,
    /// Names of pages that the operator made public.
    declared: BTreeSet<Digest>,
    evidence: Evidence,
    prefetching: usize,
}

impl RadixCache {
    /// An empty cache.
    ///
    /// # Errors
    ///
    /// If the parts of the configuration do not fit each other.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let bounds = match config.sharing {
            Sharing::Evidence(bounds) => bounds,
            _ => crate::config::EvidenceConfig::default(),
        };
        Ok(Self {
            nodes: Nodes::new(config.shape, config.hash_seed),
            device: PagePool::new(config.device_pages),
            host: PagePool::new(config.host_pages),
            namespaces: Namespaces::default(),
            clock: 0,
            evictable: 0,
            protected: 0,
            device_leaves: Leaves::default(),
            host_leaves: Leaves::default(),
            wanted: VecDeque::new(),
            events: EventLog::new(config.shape, config.max_events),
            declared: BTreeSet::new(),
            evidence: Evidence::new(bounds),
            prefetching: 0,
            config,
        })
    }

    /// Page size and kind of keys.
    pub fn shape(&self) -> Shape {
        self.config.shape
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device pages.
    pub fn device(&self) -> &PagePool<Device> {
        &self.device
    }

    /// The host pages.
    pub fn host(&self) -> &PagePool<Host> {
        &self.host
    }

    /// The root, which matches of nothing end at.
    pub fn root(&self) -> NodeId {
        self.nodes.id(ROOT)
    }

    /// Present figures.
    pub fn stats(&self) -> Stats {
        Stats {
            evictable_tokens: self.evictable,
            protected_tokens: self.protected,
            device_free: self.device.free(),
            host_free: self.host.free(),
            nodes: self.nodes.len(),
            prefetching_tokens: self.prefetching,
        }
    }

    /// Takes device pages for a request, evicting if it must. The caller owns them until it inserts or
    /// [releases](Self::release_pages) them.
    ///
    /// # Errors
    ///
    /// If there is not enough room even after eviction; then no page is taken, but leaves may be evicted. With
    /// [`WritePolicy::Back`](crate::WritePolicy), first evict and carry out the plans of [`Evicted`].
    pub fn alloc_pages(&mut self, count: usize) -> Result<Vec<DevicePage>, OutOfPages> {
        self.make_room(count);
        self.device.alloc(count, PageState::Private)
    }

    /// Gives pages of a request back.
    ///
    /// # Errors
    ///
    /// At the first page that is not the caller's; the ones before it are free then.
    pub fn release_pages(&mut self, pages: &[DevicePage]) -> Result<(), StalePage> {
        for page in pages {
            if self.device.state(*page) != Some(PageState::Private) {
                return Err((*page).into());
            }
            self.device.release(*page)?;
        }
        Ok(())
    }

    /// Evicts so that `count` pages are free, if that is possible.
    fn make_room(&mut self, count: usize) {
        let page = self.config.shape.page_tokens();
        // Without this test, a hopeless request would empty the cache for nothing.
        if count > self.device.free() && (count - self.device.free()) * page <= self.evictable {
            let missing = (count - self.device.free()) * page;
            self.evict_dropping(missing);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn page_tokens(&self) -> usize {
        self.config.shape.page_tokens()
    }

    /// How many tokens a node holds.
    fn node_tokens(&self, index: u32) -> usize {
        self.nodes.pages(index) * self.page_tokens()
    }

    /// Whether accounts are told apart.
    fn is_scoped(&self) -> bool {
        self.config.sharing != Sharing::Namespace
    }
}
