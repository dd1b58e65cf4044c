//! Pages on their way back from a drive.
//!
//! A page that is only on a drive is read into a reserved slot, compared with the checksum that the index keeps, and
//! moved into memory if the index still has the same page on a drive. So a read never shows what the index does not
//! vouch for, whatever happened to the page, or to its segment, meanwhile.
//!
//! At most one read of a page is in flight; others who want it wait and find it in memory. Bytes in flight are bounded.
//! Whoever holds a part of that bound waits only for the drive, so waiting for a part always ends.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit of the bound.
const UNIT: u64 = memkv_nvme::BLOCK_BYTES as u64;
const READING_MAX: u64 = 256 << 20;

/// All reads in flight, by the key's digest and the extent.
type Flights = Mutex<HashMap<u64, Arc<Semaphore>>>;

/// The reads of one engine.
pub(crate) struct Reads {
    flights: Arc<Flights>,
    budget: Arc<Semaphore>,
    units: u32,
}

/// Who reads a page.
pub(crate) enum Role {
    /// The caller, until it drops this.
    Reader(Flight),
    /// Somebody else.
    Follower(Followed),
}

/// A read in flight. Dropping it ends the wait of all followers.
pub(crate) struct Flight {
    flights: Arc<Flights>,
    extent: u64,
    over: Arc<Semaphore>,
}

/// Somebody else's read.
pub(crate) struct Followed(Arc<Semaphore>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.extent);
        self.over.close();
    }
}

impl Followed {
    /// Waits until the read is over, however it ended.
    pub(crate) async fn over(self) {
        // It has no permits: the wait ends when it is closed.
        let _closed = self.0.acquire().await;
    }
}

impl Reads {
    pub(crate) fn new(dram_bytes: u64, page_bytes_max: u32) -> Self {
        let bytes = (dram_bytes / 8).min(READING_MAX).max(u64::from(page_bytes_max));
        let units = u32::try_from(bytes.div_ceil(UNIT)).expect("pages and the bound are far below 16 TiB");
        Self { flights: Arc::default(), budget: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Bytes in flight.
    pub(crate) fn bytes(&self) -> u64 {
        (u64::from(self.units) - self.budget.available_permits() as u64) * UNIT
    }

    /// Starts the read of an extent, or joins the one in flight.
    pub(crate) fn role(&self, extent: u64) -> Role {
        match self.flights.lock().entry(extent) {
            Entry::Occupied(flight) => Role::Follower(Followed(Arc::clone(flight.get()))),
            Entry::Vacant(vacant) => {
                let over = vacant.insert(Arc::new(Semaphore::new(0)));
                let (flights, over) = (Arc::clone(&self.flights), Arc::clone(over));
                Role::Reader(Flight { flights, extent, over })
            }
        }
    }

    /// A part of the bound for `bytes`, if there is one now.
    pub(crate) fn try_take(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.budget).try_acquire_many_owned(self.units_of(bytes)).ok()
    }

    /// A part of the bound for `bytes`. Only for whoever holds no other part.
    pub(crate) async fn take(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.budget).acquire_many_owned(self.units_of(bytes)).await.ok()
    }

    fn units_of(&self, bytes: u32) -> u32 {
        bytes.div_ceil(memkv_nvme::BLOCK_BYTES).clamp(1, self.units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::at_once;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn one_reads_and_the_others_follow() {
        let reads = Reads::new(1 << 20, 1 << 20);
        let Role::Reader(flight) = reads.role(7) else { panic!("nobody reads it yet") };
        let Role::Follower(followed) = reads.role(7) else { panic!("it is being read") };
        assert!(matches!(reads.role(8), Role::Reader(_)));
        let mut wait = pin!(followed.over());
        assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(flight);
        at_once(wait);
        assert!(matches!(reads.role(7), Role::Reader(_)), "a read that is over can begin again");
    }

    #[test]
    fn the_bound_holds_at_least_one_page() {
        let reads = Reads::new(1 << 20, 1 << 20);
        let part = reads.try_take(1 << 20).unwrap();
        assert_eq!(reads.bytes(), 1 << 20);
        assert!(reads.try_take(1).is_none());
        drop(part);
        assert!(reads.try_take(1).is_some());
    }
}
