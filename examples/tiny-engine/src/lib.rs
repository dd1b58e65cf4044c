//! A small but whole inference engine: what an engine author can copy from, and what proves the cache.
//!
//! - [`TransformerExecutor`] computes tokens into paged memory: RMS norm, rotary positions, grouped-query attention
//!   over a table of pages, SwiGLU. It never sees requests or the cache.
//! - [`Router`] owns requests, page lists and the radix cache of `memkv-radix`: continuous batching, chunked prefill,
//!   retraction, abort.
//! - [`Engine`] is the loop of both, with the tiers of `memkv-offload` under them: what one engine computed, another
//!   reads back from MemKV.
//!
//! Invariants:
//! - what the cache has is not computed: [`Engine::tokens_computed`] counts, and tests compare;
//! - the cache changes no logit by more than 1e-5;
//! - whatever fails below the device costs computing, and nothing else.
//!
//! ```
//! use memkv_tiny_engine::{Engine, EngineSizes, Model, ModelConfig, Request, RouterLimits};
//! use std::sync::Arc;
//!
//! let model = Arc::new(Model::from_seed(ModelConfig::small(), 1)?);
//! let limits = RouterLimits::default();
//! let sizes = EngineSizes { page_tokens: 4, device_pages: 32, host_pages: 0, limits };
//! let mut engine = Engine::new(&model, sizes)?;
//! let prompt: Vec<u32> = (0..30).collect();
//! for computed in [30, 30 + 2] {
//!     engine.submit(Request { prompt: prompt.clone(), new_tokens_max: 1, ..Request::default() })?;
//!     while let Some(_events) = engine.step()? {}
//!     // The second time 28 tokens, seven pages, are not computed.
//!     assert_eq!(engine.tokens_computed(), computed);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Deliberately absent: trained weights, a tokenizer, more than one thread of computing, sampling other than the
//! largest logit, and a network interface. It is no engine to serve with.

#![forbid(unsafe_code)]

mod attention;
pub mod config;
pub mod engine;
pub mod executor;
pub mod lower;
pub mod math;
pub mod pool;
pub mod request;
pub mod router;
pub mod weights;

pub use config::ModelConfig;
pub use engine::{Engine, EngineError, EngineSizes};
pub use executor::{ExecuteError, Executor, Run, TransformerExecutor};
pub use lower::{DeviceOnly, Lower};
pub use pool::{KvLayout, KvPool};
pub use request::{Answer, Event, Request, RequestId, SubmitError};
pub use router::{Batch, Router, RouterLimits};
pub use weights::{Layer, Model};

/// Compiles the examples of the page for engine authors.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/engine.md")]
mod page_for_engine_authors {}
