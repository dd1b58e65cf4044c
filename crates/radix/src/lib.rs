//! A prefix cache as a radix tree over pages, for inference engines.
//!
//! What a scheduler needs to never compute a prefix twice, with the semantics of SGLang's cache: pages of device
//! memory with state, references and generation; a tree that finds the longest cached prefix of a prompt; requests
//! in chunks, with abort and retraction at any point; a host tier, load back and prefetch as plans that the caller
//! carries out; digests and events; private and public pages.
//!
//! The crate decides and never moves a byte. A router owns a [`RadixCache`] and hands lists of pages to an executor:
//!
//! ```
//! use memkv_radix::{Access, Config, Namespace, RadixCache, Shape, Tokens};
//!
//! let shape = Shape::new(4, false).expect("1..=256");
//! let mut cache = RadixCache::new(Config::new(shape, 64)).expect("the parts fit");
//! let tenant = Namespace::new(None, Some("tenant-1")).expect("not a reserved salt");
//! let prompt: Vec<u32> = (0..11).collect();
//!
//! // The first request computes everything.
//! let mut request = cache.start(Access::of(&tenant), Tokens::from(&prompt), 0);
//! assert_eq!(request.protected_pages(), 0);
//! cache.reserve(&mut request, prompt.len()).expect("there is room");
//! // … the executor computes 11 tokens into `request.row()` …
//! cache.finish(request, 11).expect("the row covers them");
//!
//! // The second finds two whole pages and computes three tokens.
//! let request = cache.start(Access::of(&tenant), Tokens::from(&prompt), 0);
//! assert_eq!(request.protected_pages(), 2);
//! cache.abort(request);
//! ```
//!
//! # Plans
//!
//! Copies between tiers take time, so each is a plan: begin it, move the bytes, end it. A plan keeps its pages and
//! its nodes; ending it without success leaves the cache as if it had never begun.
//!
//! | plan | begin | end |
//! |---|---|---|
//! | device → host | [`next_backup`](RadixCache::next_backup), [`begin_backup`](RadixCache::begin_backup), [`evict_device`](RadixCache::evict_device) with write-back | [`end_backup`](RadixCache::end_backup) |
//! | host → store | in [`BackupDone`], or [`begin_store`](RadixCache::begin_store) | [`end_store`](RadixCache::end_store) |
//! | host → device | [`begin_load_back`](RadixCache::begin_load_back) | [`commit_load_back`](RadixCache::commit_load_back), [`abort_load_back`](RadixCache::abort_load_back) |
//! | store → host | [`begin_prefetch`](RadixCache::begin_prefetch) | [`commit_prefetch`](RadixCache::commit_prefetch), [`abort_prefetch`](RadixCache::abort_prefetch) |
//!
//! Deliberately absent: threads, clocks, I/O, randomness, global state, and the order in which requests run.

#![forbid(unsafe_code)]

mod cache;
mod config;
mod events;
pub mod evidence;
mod hash;
mod namespace;
mod node;
mod policy;
mod pool;
#[cfg(test)]
mod tests;
mod tokens;

#[cfg(any(test, feature = "testing"))]
pub use cache::Violation;
pub use cache::{
    Alert, Alias, BackupDone, BackupError, BackupPlan, Evicted, InsertError, InsertOptions, Inserted,
    LoadBackError, LoadBackPlan, LoadedBack, Lock, Match, NotCovered, NotResident, PrefetchError,
    PrefetchNames, PrefetchPage, PrefetchPlan, Prefetched, Progress, RadixCache, Request, Stats, StorePlan,
    WindowClosed,
};
pub use config::{Config, ConfigError, EvidenceConfig, Sharing, WritePolicy};
pub use events::{Event, Medium, Stored};
pub use hash::{Digest, PageChain};
pub use namespace::{Access, Namespace, ReservedSalt, UserId};
pub use node::{Ground, NodeId, Scope};
pub use policy::{EvictionPolicy, NodeFacts, Policy, Rank};
pub use pool::{Device, DevicePage, Host, HostPage, OutOfPages, PageId, PagePool, PageState, StalePage};
pub use tokens::{Shape, TokenBuf, Tokens};
