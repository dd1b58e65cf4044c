//! What a request holds while a transfer runs for it.

use memkv_radix::{LoadBackError, LoadedBack, PrefetchError};
use std::sync::{Arc, Weak};
use thiserror::Error;

/// A prefetch under way. Dropping it stops the prefetch; what has come stays in the cache.
#[derive(Debug)]
#[must_use = "a ticket that is dropped stops its prefetch"]
pub struct PrefetchTicket {
    pub(crate) id: u64,
    pub(crate) _alive: Arc<()>,
}

/// A load under way. Dropping it gives the lock of its result back; the pages stay on the device as long as the
/// cache likes.
#[derive(Debug)]
#[must_use = "a ticket that is dropped gives its load away"]
pub struct LoadTicket {
    pub(crate) id: u64,
    pub(crate) _alive: Arc<()>,
}

/// What a prefetch brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefetchEnd {
    /// Pages that the store said it has, on every rank.
    pub hit_pages: usize,
    /// Pages that came and are in the cache now, host or device.
    pub pages: usize,
}

/// Nothing was begun; the cache is as it was, but for evicted leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotStarted {
    /// As many transfers of the kind are under way as there may be.
    #[error("too many transfers are under way: go on without, or try again later")]
    Full,
    /// The tiers are shutting down.
    #[error("the tiers are shutting down")]
    Closed,
    /// The cache says no to a prefetch.
    #[error(transparent)]
    Prefetch(#[from] PrefetchError),
    /// The cache says no to a load.
    #[error(transparent)]
    Load(#[from] LoadBackError),
}

/// What is known about a ticket.
pub(crate) enum Outcome {
    Prefetching { hit_pages: usize },
    Prefetched(PrefetchEnd),
    Loading,
    Loaded(Option<LoadedBack>),
}

/// A ticket as the tiers keep it.
pub(crate) struct Entry {
    pub(crate) alive: Weak<()>,
    pub(crate) outcome: Outcome,
}

impl Entry {
    pub(crate) fn is_abandoned(&self) -> bool {
        self.alive.strong_count() == 0
    }
}
