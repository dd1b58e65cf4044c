//! Which puts are refused before their bytes move, and why. Gets never are.
//!
//! Pages on their way in hold slots that nobody can read yet, and every slot they take may cost a page that could be
//! read. So they may hold a quarter of the store on one connection, three eighths of it for one of several tenants, and half of it
//! together. A server with more requests
//! at work than it can answer soon takes no puts until there are fewer.
//!
//! A page that is there already is never refused: that costs nothing.

use crate::metrics::Metrics;
use crate::node::Node;
use crate::tenants::Tenant;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests at work for each thread that serves them, from which on puts are refused.
const REQUESTS_PER_THREAD: usize = 128;
/// The least of that for all threads.
const REQUESTS_MIN: usize = 256;

/// Why a page is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    /// The server is being drained.
    Draining,
    /// No slot is free, and none could be made free.
    Memory,
    /// Too many slots wait for pages of this connection, or of this tenant.
    Offers,
    /// Too many slots wait for pages of all connections.
    Backlog,
    /// Too many requests are at work.
    Behind,
}

/// Bytes of slots that wait for their pages, on all connections.
#[derive(Debug)]
pub(crate) struct Arrivals {
    bytes: AtomicU64,
    bytes_max: u64,
    requests_max: usize,
}

impl Arrivals {
    /// For a store of so many bytes that is served by so many threads.
    pub(crate) fn new(store_bytes: u64, page_bytes_max: u32, threads: usize) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            bytes_max: (store_bytes / 2).max(page_bytes_max.into()),
            requests_max: (threads * REQUESTS_PER_THREAD).max(REQUESTS_MIN),
        }
    }

    /// Counts bytes for a tenant until the result is dropped.
    pub(crate) fn count(self: &Arc<Self>, tenant: &Arc<Tenant>, bytes: u64) -> Arriving {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        tenant.arriving.fetch_add(bytes, Ordering::Relaxed);
        Arriving { arrivals: Arc::clone(self), tenant: Arc::clone(tenant), bytes }
    }
}

/// Pages on their way in.
#[derive(Debug)]
pub(crate) struct Arriving {
    arrivals: Arc<Arrivals>,
    tenant: Arc<Tenant>,
    bytes: u64,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.arrivals.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.tenant.arriving.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What the pages of one put may take.
#[derive(Debug)]
pub(crate) struct Room {
    closed: Option<Shed>,
    on_connection: u64,
    of_tenant: u64,
    in_store: u64,
    taken: u64,
}

impl Room {
    /// For a connection of `tenant` that holds so much already and may or may not hold more.
    pub(crate) fn of(node: &Node, tenant: &Tenant, (held, may_offer): (u64, bool), leaving: bool) -> Self {
        let arrivals = &node.arrivals;
        let on_connection = (node.config.dram_bytes / 4).max(node.limits.page_bytes_max.into());
        let of_tenant = if node.tenants.are_several() && !tenant.is_operator() {
            let most = (node.config.dram_bytes / 8 * 3).max(node.limits.page_bytes_max.into());
            most.saturating_sub(tenant.arriving.load(Ordering::Relaxed))
        } else {
            u64::MAX
        };
        let closed = if leaving {
            Some(Shed::Draining)
        } else if node.in_flight.count() > arrivals.requests_max {
            Some(Shed::Behind)
        } else if !may_offer {
            Some(Shed::Offers)
        } else {
            None
        };
        Self {
            closed,
            on_connection: on_connection.saturating_sub(held),
            of_tenant,
            in_store: arrivals.bytes_max.saturating_sub(arrivals.bytes.load(Ordering::Relaxed)),
            taken: 0,
        }
    }

    /// Why there is no room for one more page; `None` if there is.
    pub(crate) fn lacks(&self, len: u32) -> Option<Shed> {
        let with_it = self.taken + u64::from(len);
        let full = |room: u64, why| (with_it > room).then_some(why);
        self.closed
            .or_else(|| full(self.on_connection.min(self.of_tenant), Shed::Offers))
            .or_else(|| full(self.in_store, Shed::Backlog))
    }

    /// A page has got its slot.
    pub(crate) fn take(&mut self, len: u32) {
        self.taken += u64::from(len);
    }

    /// Bytes of the pages that got slots.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }
}

/// Pages of one put that are not taken, by reason.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sheds {
    counts: [u64; 5],
}

impl Sheds {
    pub(crate) fn add(&mut self, why: Shed) {
        self.counts[why as usize] += 1;
    }

    pub(crate) fn count(self, metrics: &Metrics) {
        let of = |why: Shed| self.counts[why as usize];
        Metrics::add(&metrics.put_draining, of(Shed::Draining));
        Metrics::add(&metrics.put_busy, of(Shed::Memory));
        Metrics::add(&metrics.put_shed_offers, of(Shed::Offers));
        Metrics::add(&metrics.put_shed_backlog, of(Shed::Backlog));
        Metrics::add(&metrics.put_shed_behind, of(Shed::Behind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::tenant::Shares;

    #[test]
    fn what_is_on_its_way_is_counted_until_it_is_there() {
        let arrivals = Arc::new(Arrivals::new(1000, 10, 2));
        let tenant = Arc::new(Tenant::new("a", Shares::default()));
        let (a, b) = (arrivals.count(&tenant, 300), arrivals.count(&tenant, 4));
        drop(a);
        let now = || [&arrivals.bytes, &tenant.arriving].map(|bytes| bytes.load(Ordering::Relaxed));
        assert_eq!(now(), [4, 4]);
        drop(b);
        assert_eq!(now(), [0, 0]);
    }

    #[test]
    fn each_bound_has_its_reason() {
        let of_tenant = u64::MAX;
        let room =
            |closed, on_connection, in_store| Room { closed, on_connection, of_tenant, in_store, taken: 0 };
        assert_eq!(room(None, 10, 10).lacks(10), None);
        assert_eq!(room(None, 9, 10).lacks(10), Some(Shed::Offers));
        assert_eq!(room(None, 10, 9).lacks(10), Some(Shed::Backlog));
        assert_eq!(room(Some(Shed::Behind), 10, 10).lacks(1), Some(Shed::Behind));
        assert_eq!(Room { of_tenant: 9, ..room(None, 10, 10) }.lacks(10), Some(Shed::Offers));
        let mut filling = room(None, 10, 20);
        filling.take(6);
        assert_eq!((filling.lacks(4), filling.lacks(5)), (None, Some(Shed::Offers)));
    }

    #[test]
    fn every_refusal_is_counted_under_its_reason() {
        let metrics = Metrics::new();
        let mut sheds = Sheds::default();
        for why in [Shed::Draining, Shed::Memory, Shed::Offers, Shed::Backlog, Shed::Behind, Shed::Behind] {
            sheds.add(why);
        }
        sheds.count(&metrics);
        let counters = [
            (&metrics.put_draining, 1),
            (&metrics.put_busy, 1),
            (&metrics.put_shed_offers, 1),
            (&metrics.put_shed_backlog, 1),
            (&metrics.put_shed_behind, 2),
        ];
        assert!(counters.iter().all(|(counter, count)| counter.load(Ordering::Relaxed) == *count));
    }
}
