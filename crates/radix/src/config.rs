//! What a cache is told when it is made.

use crate::policy::{EvictionPolicy, Policy};
use crate::tokens::Shape;
use thiserror::Error;

/// When a node is copied to host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WritePolicy {
    /// At its first hit.
    #[default]
    Through,
    /// At its second hit.
    Selective,
    /// When it is evicted from the device.
    Back,
}

impl WritePolicy {
    /// The hits at which a node wants a copy, if hits matter.
    pub(crate) fn threshold(self) -> Option<u64> {
        match self {
            WritePolicy::Through => Some(1),
            WritePolicy::Selective => Some(2),
            WritePolicy::Back => None,
        }
    }
}

/// Who sees whose pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Everybody in a namespace shares, and nothing crosses it. With one salt per tenant, tenants are isolated.
    #[default]
    Namespace,
    /// Pages are private to the account that made them; only declared prefixes are public.
    Declared,
    /// Besides, pages become public when enough accounts submit them. See [`crate::evidence`] for what this
    /// does not protect.
    Evidence(EvidenceConfig),
}

/// The bounds of evidence mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvidenceConfig {
    /// Distinct accounts over two windows that make a page public. At least 3.
    pub users: usize,
    /// A page's hits in a window must exceed this multiple of the last window's to be a surge.
    pub surge: u64,
    /// For how many windows a demoted page stays private.
    pub veto_windows: u64,
    /// The most pages whose counters are kept.
    pub tracked_pages: usize,
}

impl Default for EvidenceConfig {
    fn default() -> Self {
        Self { users: 8, surge: 10, veto_windows: 6, tracked_pages: 1 << 20 }
    }
}

/// Sizes and choices of a cache.
pub struct Config {
    /// Page size and kind of keys.
    pub shape: Shape,
    /// Pages of device memory.
    pub device_pages: u32,
    /// Device pages that the admission of requests leaves to those that run.
    pub watermark_pages: usize,
    /// Pages of host memory; 0 for a cache without tiers.
    pub host_pages: u32,
    /// The order of eviction, on the device and in host memory.
    pub policy: Box<dyn EvictionPolicy>,
    /// When nodes are copied to host memory.
    pub write: WritePolicy,
    /// Whether each finished copy in host memory is to be written to a store.
    pub storage: bool,
    /// Whether pages get digests. Needed for a store, for events and for private pages.
    pub hashes: bool,
    /// How many events are kept for [`take_events`](crate::RadixCache::take_events); 0 for none. If more come,
    /// they give way to a listing of the whole content.
    pub max_events: usize,
    /// Who sees whose pages.
    pub sharing: Sharing,
    /// Loads of fewer tokens than this are not worth their cost.
    pub load_back_min_tokens: usize,
    /// The most tokens of one load.
    pub load_back_max_tokens: usize,
    /// Prefetches of fewer tokens than this are not worth their cost.
    pub prefetch_min_tokens: usize,
    /// The most tokens of all prefetches under way.
    pub prefetch_max_tokens: usize,
    /// Spreads the table of children. A random number makes prompts that collide on purpose harder to write.
    pub hash_seed: u64,
}

/// The parts of a configuration do not fit each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Digests are off, but something needs them.
    #[error("a store, events and private pages need digests: set `hashes`")]
    NeedsHashes,
    /// Evidence from so few accounts proves nothing.
    #[error("evidence needs at least 3 users: with 2, one attacker and one victim suffice")]
    TooFewUsers,
    /// A store hangs behind host memory.
    #[error("a store needs host pages: set `host_pages`")]
    NeedsHostPages,
}

impl Config {
    /// A cache of device pages alone, with digests and the usual thresholds.
    pub fn new(shape: Shape, device_pages: u32) -> Self {
        Self {
            shape,
            device_pages,
            watermark_pages: 0,
            host_pages: 0,
            policy: Box::new(Policy::Lru),
            write: WritePolicy::default(),
            storage: false,
            hashes: true,
            max_events: 0,
            sharing: Sharing::default(),
            load_back_min_tokens: 10,
            load_back_max_tokens: usize::MAX,
            prefetch_min_tokens: 256,
            prefetch_max_tokens: 0,
            hash_seed: 0,
        }
    }

    /// Adds host memory; prefetches may then fill 80 % of what it has more than the device.
    #[must_use]
    pub fn with_host(mut self, host_pages: u32, write: WritePolicy) -> Self {
        self.host_pages = host_pages;
        self.write = write;
        let more = host_pages.saturating_sub(self.device_pages) as usize;
        self.prefetch_max_tokens = more * self.shape.page_tokens() * 4 / 5;
        self
    }

    /// Refuses what cannot work.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let private = self.sharing != Sharing::Namespace;
        if !self.hashes && (self.storage || self.max_events > 0 || private) {
            return Err(ConfigError::NeedsHashes);
        }
        if self.storage && self.host_pages == 0 {
            return Err(ConfigError::NeedsHostPages);
        }
        match self.sharing {
            Sharing::Evidence(bounds) if bounds.users < 3 => Err(ConfigError::TooFewUsers),
            _ => Ok(()),
        }
    }
}
