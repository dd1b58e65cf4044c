//! Tiers under a radix cache: device memory, host memory, MemKV.
//!
//! [`memkv_radix`] decides what is kept where, and moves no byte. [`Tiers`] carries its plans out: copies from the
//! device to host memory and from there to a store, prefetches from the store, loads back to the device. An engine's
//! scheduler owns a cache and its tiers, calls [`Tiers::poll`] once per step and never waits.
//!
//! ```no_run
//! use memkv_client::{Client, Config};
//! use memkv_offload::{Attention, Dtype, EngineSpace, Layout, Options, PageFormat, PageRegion, Tiers, Warmup};
//! use memkv_radix::{Access, Namespace, RadixCache, Shape, Tokens, WritePolicy};
//! use std::time::Duration;
//!
//! # async fn engine() -> Result<(), Box<dyn std::error::Error>> {
//! // What a page is. With SGLang's names and order, SGLang's pages can be read, and it reads ours.
//! let format = PageFormat {
//!     layers: 32,
//!     page_tokens: 64,
//!     attention: Attention::MultiHead { kv_heads: 8, head_dim: 128 },
//!     dtype: Dtype::Bfloat16,
//!     layout: Layout::PageFirst,
//! };
//! let client = Client::connect(Config::load()?).await?;
//! let store = client.space(EngineSpace::new("meta-llama/Llama-3.1-8B", format).describe()?).await?;
//!
//! // The cache decides, the tiers move. Here the device is memory too; yours implements `DevicePool`.
//! let (device_pages, host_pages) = (1000, 4000);
//! let shape = Shape::new(format.page_tokens, false).ok_or("a page has 1 to 256 tokens")?;
//! let mut config = memkv_radix::Config::new(shape, device_pages).with_host(host_pages, WritePolicy::Through);
//! config.storage = true;
//! let mut cache = RadixCache::new(config)?;
//! let device = PageRegion::new(device_pages as usize, format.page_bytes())?;
//! let host = PageRegion::new(host_pages as usize, format.page_bytes())?;
//! let mut tiers = Tiers::new(&cache, device, host, store, Options::default())?;
//!
//! // A request arrives.
//! let tenant = Namespace::new(None, Some("tenant-1"))?;
//! let access = Access::of(&tenant);
//! let prompt: Vec<u32> = (0..10_000).collect();
//! let mut request = cache.start(access, Tokens::from(&prompt), 0);
//! let mut warmup = Warmup::default();
//!
//! // The scheduler's loop: other requests compute meanwhile.
//! while !tiers.warm(&mut cache, access, &mut request, &mut warmup) {
//!     tiers.changed().await;
//!     tiers.poll(&mut cache);
//! }
//! let cached_tokens = request.protected_pages() * format.page_tokens;
//! cache.reserve(&mut request, prompt.len())?;
//! // … the executor computes the tokens from `cached_tokens` on into `request.row()` …
//! cache.finish(request, prompt.len())?;
//!
//! // Copies of what is new go to host memory and to the store while the loop goes on; at the end, wait for them.
//! tiers.drain(&mut cache, Duration::from_secs(10));
//! tiers.shut_down(&mut cache, Duration::from_secs(10));
//! # Ok(())
//! # }
//! ```
//!
//! # What a failure is
//!
//! A server that is gone or frozen, a page that is missing or corrupt, a full store, a device that does not copy: each
//! is a page that did not come, or one that is not stored, and a counter ([`Stats`]). The request computes what it
//! did not get. The cache hears of a page only when it is whole; whatever becomes of a transfer, also if its future is
//! dropped, its plan is ended by a later poll, and the tree is consistent between any two calls.
//!
//! # Bounds
//!
//! Every kind of transfer has a bound ([`Options`]). Backups wait in the cache; prefetches and loads are refused and
//! the request computes; writes to the store and write-backs are dropped and counted. How much may be under way in
//! tokens, and what is worth a transfer, is the cache's configuration.
//!
//! An example that shares pages with SGLang is `crates/offload/examples/interop.rs`; why the crate is built as it is says
//! `docs/design/offload.md`.
//!
//! Deliberately absent: decisions about what to keep ([`memkv_radix`]), copies layer by layer, retries (the next
//! request asks again), and anything that knows how pages travel to the servers (`memkv-client`).

#![forbid(unsafe_code)]

mod device;
mod executor;
mod format;
mod job;
mod jobs;
mod options;
mod progress;
mod ranks;
mod region;
mod space;
mod stats;
mod store;
#[cfg(test)]
mod tests;
mod ticket;
mod tiers;
mod warm;

pub use device::{DeviceError, DevicePool};
pub use format::{Attention, BadFormat, Dtype, Half, Layout, PageFormat};
pub use options::{Options, StopPolicy};
pub use ranks::{OneRank, Ranks, RanksLost};
pub use region::{BadRegion, PageRead, PageRegion, PageWrite};
pub use space::{BadSpace, EngineSpace, Rank};
pub use stats::Stats;
pub use store::{Found, NoStore, PageKey, PageStore};
pub use ticket::{LoadTicket, NotStarted, PrefetchEnd, PrefetchTicket};
pub use tiers::{Room, SetupError, Tiers};
pub use warm::Warmup;
