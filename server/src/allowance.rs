//! Bytes that clients make the server hold while it serves them: messages that are being put together, the keys of long
//! requests, answers that wait for a slow reader.
//!
//! Each byte is counted three times: for the session or gRPC connection that it came by, for its tenant, and for the server.
//! Whoever would go beyond one of the three is refused, so one tenant cannot use up what the others need, and all together cannot
//! use up the machine. Pages are not counted here: they have slots, which have bounds of their own.
//!
//! Small things are not counted at all; what they can come to is the number of connections times [`FREE_BYTES`].
//!
//! Deliberately absent: waiting in the order of coming. Who waits longest is served by the clients' own repetition.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a connection may hold without being counted, bytes.
pub(crate) const FREE_BYTES: usize = 32 << 10;
/// Bytes are counted in units of this many.
const UNIT: usize = 1024;
/// Whose they are: the connection's or session's, the tenant's, the server's.
const OWNERS: usize = 3;

/// What one of them may hold.
#[derive(Clone)]
pub(crate) struct Allowance(Arc<Semaphore>);

impl Allowance {
    /// Of so many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX) / UNIT;
        Self(Arc::new(Semaphore::new(units.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// What is left, bytes.
    #[cfg(test)]
    pub(crate) fn left(&self) -> usize {
        self.0.available_permits() * UNIT
    }
}

impl fmt::Debug for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Allowance({} KiB left)", self.0.available_permits())
    }
}

/// The three that a request is counted against.
#[derive(Clone, Debug)]
pub(crate) struct Allowances([Allowance; OWNERS]);

impl Allowances {
    pub(crate) fn new(own: &Allowance, tenant: &Allowance, server: &Allowance) -> Self {
        Self([own, tenant, server].map(Clone::clone))
    }

    /// A lease that holds nothing yet.
    pub(crate) fn lease(&self) -> Lease {
        Lease { of: self.clone(), permits: Default::default(), units: 0 }
    }
}

/// What one request holds; it is given back on drop.
#[derive(Debug)]
pub(crate) struct Lease {
    of: Allowances,
    permits: [Option<OwnedSemaphorePermit>; OWNERS],
    units: u32,
}

impl Lease {
    /// Holds exactly so many bytes from now on. `false`, and nothing has changed, if that would be too many.
    #[must_use]
    pub(crate) fn hold(&mut self, bytes: usize) -> bool {
        let Ok(units) = u32::try_from(bytes.div_ceil(UNIT)) else { return false };
        if units <= self.units {
            self.give_back(self.units - units);
            return true;
        }
        let more = units - self.units;
        let mut taken: [Option<OwnedSemaphorePermit>; OWNERS] = Default::default();
        for (taken, allowance) in taken.iter_mut().zip(&self.of.0) {
            let Ok(permit) = Arc::clone(&allowance.0).try_acquire_many_owned(more) else { return false };
            *taken = Some(permit);
        }
        for (permit, more) in self.permits.iter_mut().zip(taken) {
            match (permit.as_mut(), more) {
                (Some(permit), Some(more)) => permit.merge(more),
                (_, more) => *permit = more,
            }
        }
        self.units = units;
        true
    }

    /// As [`Lease::hold`], and tries again for a while.
    pub(crate) async fn hold_within(&mut self, bytes: usize, time: Duration) -> bool {
        let steps = 10;
        for _ in 0..steps {
            if self.hold(bytes) {
                return true;
            }
            tokio::time::sleep(time / steps).await;
        }
        self.hold(bytes)
    }

    fn give_back(&mut self, units: u32) {
        for permit in self.permits.iter_mut().flatten() {
            drop(permit.split(units as usize));
        }
        self.units -= units;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(own: u64, tenant: u64, server: u64) -> ([Allowance; 3], Allowances) {
        let each = [own, tenant, server].map(|kib| Allowance::new(kib << 10));
        let all = Allowances::new(&each[0], &each[1], &each[2]);
        (each, all)
    }

    #[test]
    fn a_lease_is_counted_for_all_three_and_given_back() {
        let (each, all) = three(10, 20, 30);
        let left = || each.each_ref().map(|one| one.left() >> 10);
        let mut lease = all.lease();
        assert!(lease.hold(4 << 10) && lease.hold(4097));
        assert_eq!(left(), [5, 15, 25], "a byte begins a unit");
        assert!(lease.hold(1 << 10));
        assert_eq!(left(), [9, 19, 29]);
        drop(lease);
        assert_eq!(left(), [10, 20, 30]);
    }

    #[test]
    fn whoever_of_the_three_has_no_more_refuses_and_nothing_changes() {
        for (own, tenant, server) in [(3, 9, 9), (9, 3, 9), (9, 9, 3)] {
            let (each, all) = three(own, tenant, server);
            let mut lease = all.lease();
            assert!(lease.hold(3 << 10) && !lease.hold(4 << 10));
            assert_eq!(
                each.each_ref().map(|one| one.left() >> 10),
                [own - 3, tenant - 3, server - 3].map(|kib| kib as usize)
            );
            assert!(!all.lease().hold(1), "the rest is refused as well");
            assert!(lease.hold(0) && all.lease().hold(3 << 10));
        }
        let (_, all) = three(1, 1, 1);
        assert!(!all.lease().hold(usize::MAX), "more than can be counted is too much");
    }
}
