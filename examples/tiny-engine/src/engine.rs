//! A router, an executor and, under them, the tiers: the loop of an engine.

use crate::executor::{ExecuteError, Executor, TransformerExecutor};
use crate::lower::{DeviceOnly, Lower};
use crate::pool::{KvLayout, KvPool};
use crate::request::{Event, Request, RequestId, SubmitError};
use crate::router::{Router, RouterLimits};
use crate::weights::Model;
use memkv_client::SpaceDescription;
use memkv_offload::{BadRegion, Options, PageRegion, PageStore, SetupError, Tiers};
use memkv_radix::{Config, ConfigError, RadixCache, Shape, WritePolicy};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// How long a step waits for a transfer when there is nothing to compute.
const PATIENCE: Duration = Duration::from_millis(100);

/// Sizes of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSizes {
    /// Tokens of a page, 1 to 256.
    pub page_tokens: usize,
    /// Pages of the device.
    pub device_pages: u32,
    /// Pages of host memory, for an engine with tiers.
    pub host_pages: u32,
    /// Bounds of the router.
    pub limits: RouterLimits,
}

/// Why an engine could not be made.
#[derive(Debug, Error)]
pub enum EngineError {
    /// Pages of a size that the cache does not have.
    #[error("a page has 1 to 256 tokens, not {0}")]
    PageTokens(usize),
    /// The cache refuses its configuration.
    #[error(transparent)]
    Cache(#[from] ConfigError),
    /// The host memory could not be had.
    #[error(transparent)]
    Host(#[from] BadRegion),
    /// The tiers do not fit.
    #[error(transparent)]
    Tiers(#[from] SetupError),
}

/// A whole engine on one thread. The tiers have threads of their own.
pub struct Engine<L: Lower = DeviceOnly> {
    router: Router<L>,
    executor: TransformerExecutor,
}

impl Engine {
    /// An engine whose cache is the device alone.
    ///
    /// # Errors
    ///
    /// [`EngineError`] if the sizes do not fit.
    pub fn new(model: &Arc<Model>, sizes: EngineSizes) -> Result<Self, EngineError> {
        let (pool, config) = parts(model, sizes)?;
        let router = Router::new(sizes.limits, model.config.vocabulary, RadixCache::new(config)?);
        Ok(Self { router, executor: TransformerExecutor::new(model.clone(), pool) })
    }
}

impl<S: PageStore> Engine<Tiers<Arc<KvPool>, S>> {
    /// An engine that writes its pages through to `store` and looks there for what it does not have. The store must
    /// hold nothing but pages of [`space`].
    ///
    /// # Errors
    ///
    /// [`EngineError`] if the sizes do not fit.
    pub fn with_store(
        model: &Arc<Model>,
        sizes: EngineSizes,
        store: S,
        options: Options,
    ) -> Result<Self, EngineError> {
        let (pool, config) = parts(model, sizes)?;
        let mut config = config.with_host(sizes.host_pages, WritePolicy::Through);
        config.storage = true;
        // A page of this model is computed in milliseconds and read in less than one: every page is worth it.
        config.prefetch_min_tokens = sizes.page_tokens;
        config.load_back_min_tokens = sizes.page_tokens;
        config.prefetch_max_tokens = sizes.host_pages as usize * sizes.page_tokens;
        let cache = RadixCache::new(config)?;
        let host = PageRegion::new(sizes.host_pages as usize, pool.layout().page_bytes())?;
        let tiers = Tiers::new(&cache, pool.clone(), host, store, options)?;
        let router = Router::with_tiers(sizes.limits, model.config.vocabulary, cache, tiers);
        Ok(Self { router, executor: TransformerExecutor::new(model.clone(), pool) })
    }
}

/// The device and the configuration of a cache over it.
fn parts(model: &Model, sizes: EngineSizes) -> Result<(Arc<KvPool>, Config), EngineError> {
    let page_tokens = sizes.page_tokens;
    let shape = Shape::new(page_tokens, false).ok_or(EngineError::PageTokens(page_tokens))?;
    let pool = KvPool::new(KvLayout::new(&model.config, page_tokens), sizes.device_pages as usize);
    Ok((Arc::new(pool), Config::new(shape, sizes.device_pages)))
}

/// Everything that decides whether two engines may use each other's pages.
#[must_use]
pub fn space(model: &Model, page_tokens: usize) -> SpaceDescription {
    let layout = KvLayout::new(&model.config, page_tokens);
    let fields = [
        ("engine", "memkv-tiny-engine".to_owned()),
        ("model", "tiny".to_owned()),
        // The weights follow from shape and seed.
        ("revision", format!("{:?} seed {}", model.config, model.seed)),
        ("dtype", "f32".to_owned()),
        ("layout", KvLayout::NAME.to_owned()),
        ("page_tokens", page_tokens.to_string()),
        ("page_bytes", layout.page_bytes().to_string()),
        ("tp_rank", "0".to_owned()),
        ("tp_size", "1".to_owned()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    SpaceDescription::new(fields).expect("a few short fields of plain text")
}

impl<L: Lower> Engine<L> {
    /// Takes a request.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] if it could never run, or too many wait.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        self.router.submit(request)
    }

    /// Ends a request without an answer; `false` if there is none of that name any more.
    pub fn abort(&mut self, request: RequestId) -> bool {
        self.router.abort(request)
    }

    /// Computes one batch and returns what came of it; `None` once there are no requests. If all requests wait for
    /// transfers, it waits a little for one to end.
    ///
    /// # Errors
    ///
    /// [`ExecuteError`] if the executor refuses the batch, which it does not, unless model and pool were mixed up.
    pub fn step(&mut self) -> Result<Option<Vec<Event>>, ExecuteError> {
        let Some(batch) = self.router.plan() else {
            if self.router.is_idle() {
                return Ok(None);
            }
            self.router.wait(PATIENCE);
            return Ok(Some(Vec::new()));
        };
        match self.executor.execute(&batch.runs()) {
            Ok(logits) => Ok(Some(self.router.commit(&batch, logits.view()))),
            Err(error) => {
                self.router.give_up();
                Err(error)
            }
        }
    }

    /// How many tokens were computed since the start.
    #[must_use]
    pub fn tokens_computed(&self) -> u64 {
        self.executor.tokens_computed()
    }

    /// The router, to look at.
    #[must_use]
    pub fn router(&self) -> &Router<L> {
        &self.router
    }

    /// Waits until every copy has reached the tiers below, at most `patience`. Whether it came to that.
    pub fn drain(&mut self, patience: Duration) -> bool {
        self.router.drain(patience)
    }

    /// Gives up all requests and ends all transfers; blocks at most `patience`. Whether it came to that.
    pub fn shut_down(self, patience: Duration) -> bool {
        self.router.shut_down(patience)
    }
}
