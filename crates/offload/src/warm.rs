//! A request on its way through the tiers, before it computes.

use crate::device::DevicePool;
use crate::options::StopPolicy;
use crate::store::PageStore;
use crate::ticket::{LoadTicket, NotStarted, PrefetchTicket};
use crate::tiers::Tiers;
use memkv_radix::{Access, LoadBackError, RadixCache, Request};

/// Where a waiting request is: keep one beside each request. Dropping it gives up what is under way for it.
#[derive(Debug, Default)]
pub struct Warmup {
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    New,
    Prefetching(PrefetchTicket),
    /// The cache has what the store had; the device may not.
    InCache,
    Loading(LoadTicket),
    Ready,
}

impl<D: DevicePool, S: PageStore> Tiers<D, S> {
    /// Moves a waiting request on: first from the store to host memory, then to the device. Says whether it is
    /// ready to compute what is still missing; until then call again after the next [`poll`](Self::poll). Call it
    /// before the request has pages of its own, and give `access` as at its start.
    ///
    /// The first call begins the prefetch, so make it when the request arrives. With
    /// [`StopPolicy::BestEffort`] a later call says that its turn has come, and what has arrived by then is used.
    pub fn warm(
        &mut self,
        cache: &mut RadixCache,
        access: Access<'_>,
        request: &mut Request,
        warmup: &mut Warmup,
    ) -> bool {
        loop {
            let (stage, wait) = match std::mem::take(&mut warmup.stage) {
                Stage::New => (self.begin(cache, access, request), false),
                Stage::Prefetching(ticket) if self.prefetched(&ticket).is_some() => (Stage::InCache, false),
                Stage::Prefetching(ticket) => {
                    if self.options().stop == StopPolicy::BestEffort {
                        self.stop_prefetch(&ticket);
                    }
                    (Stage::Prefetching(ticket), true)
                }
                Stage::InCache => self.begin_load(cache, request),
                Stage::Loading(ticket) if self.is_loaded(&ticket) => {
                    if let Some(loaded) = self.take_loaded(ticket) {
                        cache.adopt(request, loaded);
                    }
                    (Stage::Ready, false)
                }
                Stage::Loading(ticket) => (Stage::Loading(ticket), true),
                Stage::Ready => (Stage::Ready, true),
            };
            // A prefetch that has only begun is not stopped in the same call.
            let began = matches!(stage, Stage::Prefetching(_)) && !wait;
            warmup.stage = stage;
            if wait || began {
                return matches!(warmup.stage, Stage::Ready);
            }
        }
    }

    fn begin(&mut self, cache: &mut RadixCache, access: Access<'_>, request: &Request) -> Stage {
        let tokens = request.tokens();
        let all_but_last = tokens.slice(0..tokens.len().saturating_sub(1));
        match self.prefetch(cache, access, all_but_last) {
            Ok(ticket) => Stage::Prefetching(ticket),
            Err(_) => Stage::InCache,
        }
    }

    /// The next stage, and whether to wait in it.
    fn begin_load(&mut self, cache: &mut RadixCache, request: &mut Request) -> (Stage, bool) {
        cache.refresh(request);
        let (node, pages) = request.host_hit();
        if pages == 0 {
            return (Stage::Ready, false);
        }
        match self.load_back(cache, node) {
            Ok(ticket) => (Stage::Loading(ticket), true),
            // Somebody else loads the same pages: they will be there soon.
            Err(NotStarted::Load(LoadBackError::Busy)) => (Stage::InCache, true),
            Err(_) => (Stage::Ready, false),
        }
    }
}
