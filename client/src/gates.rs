//! The two breakers that ops to one server pass: one for all of them, and one more for stores.
//!
//! Stores that take too long say nothing against loads, so they close the way for stores alone. Everything else that goes
//! wrong closes it for all.

use crate::breaker::{Admission, Breaker, Failure, Kind, Permit, SERVER, STORES};
use std::time::Duration;
use tokio::time::Instant;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Gates {
    pub(crate) server: Breaker,
    pub(crate) stores: Breaker,
}

/// The trials that an op is part of. [`Gates::leave`] must follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Permits {
    server: Option<Permit>,
    stores: Option<Permit>,
}

impl Permits {
    /// Whether the op is part of any trial.
    pub(crate) fn is_trial(self) -> bool {
        self != Self::default()
    }
}

/// Whether an op may go to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Open(Permits),
    /// The server is suspected.
    Suspected,
    /// Stores were too slow lately.
    SlowStores,
}

/// What a failure closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    Nothing,
    Server,
    Stores,
}

impl Gates {
    pub(crate) fn new() -> Self {
        Self { server: Breaker::new(SERVER), stores: Breaker::new(STORES) }
    }

    pub(crate) fn enter(&mut self, kind: Kind) -> Entry {
        let server = match self.server.admit(kind) {
            Admission::Free => None,
            Admission::Trial(permit) => Some(permit),
            Admission::Refused => return Entry::Suspected,
        };
        if kind != Kind::Store {
            return Entry::Open(Permits { server, stores: None });
        }
        match self.stores.admit(kind) {
            Admission::Free => Entry::Open(Permits { server, stores: None }),
            Admission::Trial(permit) => Entry::Open(Permits { server, stores: Some(permit) }),
            Admission::Refused => {
                self.leave(Permits { server, stores: None });
                Entry::SlowStores
            }
        }
    }

    /// The op is over, however it went.
    pub(crate) fn leave(&mut self, permits: Permits) {
        if let Some(permit) = permits.server {
            self.server.trial_over(permit);
        }
        if let Some(permit) = permits.stores {
            self.stores.trial_over(permit);
        }
    }

    pub(crate) fn success(&mut self, kind: Kind, permits: Permits, now: Instant) {
        self.server.success(kind, permits.server, now);
        if kind == Kind::Store {
            self.stores.success(kind, permits.stores, now);
        }
    }

    pub(crate) fn failure(&mut self, kind: Kind, failure: Failure, now: Instant, jitter: f64) -> Closed {
        let stores = kind == Kind::Store && matches!(failure, Failure::Silent | Failure::Slow);
        let breaker = if stores { &mut self.stores } else { &mut self.server };
        match (breaker.failure(kind, failure, now, jitter), stores) {
            (false, _) => Closed::Nothing,
            (true, true) => Closed::Stores,
            (true, false) => Closed::Server,
        }
    }

    /// A new session is open.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.server.reset(now);
        self.stores.reset(now);
    }

    /// When something is due without an event.
    pub(crate) fn next(&self) -> Option<Instant> {
        [self.server.probe_at(), self.stores.probe_at()].into_iter().flatten().min()
    }

    /// Lets stores in for trial if their pause is over: the stores themselves are the probe.
    pub(crate) fn try_stores(&mut self, now: Instant) {
        if self.stores.begin_probe(now) {
            self.stores.end_probe(true, now, 0.0);
        }
    }
}

/// How long an op that is part of a trial may take at most: one that moves much may take longer.
pub(crate) fn trial_patience(op_timeout: Duration, bytes: u64) -> Duration {
    /// The least speed that passes, bytes a second.
    const SPEED_MIN: u64 = 32 << 20;
    const PATIENCE_MIN: Duration = Duration::from_secs(1);
    let moving = Duration::from_millis(bytes.saturating_mul(1000) / SPEED_MIN);
    ((op_timeout / 4).max(PATIENCE_MIN) + moving).min(op_timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Load, Look, Store};

    #[test]
    fn slow_stores_close_the_way_for_stores_alone() {
        let now = Instant::now();
        let mut gates = Gates::new();
        assert_eq!(gates.failure(Store, Failure::Slow, now, 1.0), Closed::Stores);
        assert_eq!(gates.enter(Store), Entry::SlowStores);
        assert_eq!(gates.enter(Load), Entry::Open(Permits::default()));
        let due = gates.next().unwrap();
        gates.try_stores(due);
        let Entry::Open(permits) = gates.enter(Store) else { panic!("{gates:?}") };
        assert!(permits.is_trial());
        assert_eq!(gates.enter(Store), Entry::SlowStores, "one at a time");
        gates.leave(permits);
        assert!(matches!(gates.enter(Store), Entry::Open(_)), "one that was given up makes room");
    }

    #[test]
    fn anything_else_closes_it_for_all() {
        let now = Instant::now();
        for (kind, failure, times) in
            [(Store, Failure::Broken, 1), (Load, Failure::Slow, 2), (Look, Failure::Silent, 2)]
        {
            let mut gates = Gates::new();
            for _ in 1..times {
                assert_eq!(gates.failure(kind, failure, now, 1.0), Closed::Nothing);
            }
            assert_eq!(gates.failure(kind, failure, now, 1.0), Closed::Server);
            assert!([Look, Load, Store].iter().all(|kind| gates.enter(*kind) == Entry::Suspected));
        }
    }

    #[test]
    fn a_store_that_is_refused_takes_no_place_of_a_trial() {
        let now = Instant::now();
        let mut gates = Gates::new();
        gates.failure(Store, Failure::Slow, now, 1.0);
        gates.failure(Load, Failure::Broken, now, 1.0);
        let due = gates.server.probe_at().unwrap();
        assert!(gates.server.begin_probe(due));
        gates.server.end_probe(true, due, 1.0);
        assert_eq!(gates.enter(Store), Entry::SlowStores);
        assert!(matches!(gates.enter(Load), Entry::Open(permits) if permits.is_trial()));
    }

    #[test]
    fn a_trial_has_time_for_what_it_moves_but_no_more_than_any_op() {
        let limit = Duration::from_secs(8);
        assert_eq!(trial_patience(limit, 0), Duration::from_secs(2));
        assert_eq!(trial_patience(limit, 64 << 20), Duration::from_secs(4));
        assert_eq!(trial_patience(limit, 1 << 40), limit);
        assert_eq!(trial_patience(Duration::from_millis(50), 0), Duration::from_millis(50));
    }
}
