//! What lies under the device pages: nothing, or the tiers of `memkv-offload`.

use memkv_offload::{DevicePool, PageStore, Tiers, Warmup};
use memkv_radix::{Access, RadixCache, Request};
use std::fmt::Debug;
use std::time::Duration;

/// The tiers below the device, as a router sees them. No call but the last three waits.
pub trait Lower {
    /// How far a waiting request has come. Dropping it gives up what is under way.
    type Warmup: Debug + Default;

    /// Tells the cache what has ended, and starts what it wants. Once per step.
    fn poll(&mut self, cache: &mut RadixCache);

    /// Moves a waiting request on; whether it may begin to compute what it did not get.
    fn warm(
        &mut self,
        cache: &mut RadixCache,
        access: Access<'_>,
        request: &mut Request,
        warmup: &mut Self::Warmup,
    ) -> bool;

    /// Blocks until [`poll`](Self::poll) has something to do, at most `patience`.
    fn wait(&self, patience: Duration);

    /// Waits until nothing is under way; blocks at most `patience`. Whether it came to that.
    fn drain(&mut self, cache: &mut RadixCache, patience: Duration) -> bool;

    /// Ends everything; blocks at most `patience`. Whether it came to that.
    fn shut_down(&mut self, cache: &mut RadixCache, patience: Duration) -> bool;
}

/// No tiers: what is evicted from the device is lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOnly;

impl Lower for DeviceOnly {
    type Warmup = ();

    fn poll(&mut self, _cache: &mut RadixCache) {}

    fn warm(&mut self, _: &mut RadixCache, _: Access<'_>, _: &mut Request, _: &mut ()) -> bool {
        true
    }

    fn wait(&self, _patience: Duration) {}

    fn drain(&mut self, _cache: &mut RadixCache, _patience: Duration) -> bool {
        true
    }

    fn shut_down(&mut self, _cache: &mut RadixCache, _patience: Duration) -> bool {
        true
    }
}

impl<D: DevicePool, S: PageStore> Lower for Tiers<D, S> {
    type Warmup = Warmup;

    fn poll(&mut self, cache: &mut RadixCache) {
        Tiers::poll(self, cache);
    }

    fn warm(
        &mut self,
        cache: &mut RadixCache,
        access: Access<'_>,
        request: &mut Request,
        warmup: &mut Warmup,
    ) -> bool {
        Tiers::warm(self, cache, access, request, warmup)
    }

    fn wait(&self, patience: Duration) {
        // Whether something ended is asked by the next poll anyway.
        let _ended = Tiers::wait(self, patience);
    }

    fn drain(&mut self, cache: &mut RadixCache, patience: Duration) -> bool {
        Tiers::drain(self, cache, patience)
    }

    fn shut_down(&mut self, cache: &mut RadixCache, patience: Duration) -> bool {
        Tiers::shut_down(self, cache, patience)
    }
}
