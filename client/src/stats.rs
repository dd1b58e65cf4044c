//! Counters that the data path writes and anybody reads, without locks.

use crate::{DiscoveryStats, PageOutcome, RdmaStats};
use memkv_transport::frame::Op;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Sums over all ops of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Calls.
    pub calls: u64,
    /// Keys of these calls.
    pub keys: u64,
    /// Keys that were found, stored or there already.
    pub ok: u64,
    /// Bytes of pages that moved whole.
    pub bytes: u64,
    /// Time spent inside calls, in microseconds, summed over threads.
    pub micros: u64,
}

/// A snapshot of a client's counters since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// `exists` and `exists_prefix`.
    pub exists: OpStats,
    /// Gets of all forms.
    pub get: OpStats,
    /// Puts of all forms.
    pub put: OpStats,
    /// Deletes.
    pub delete: OpStats,
    /// Touches.
    pub touch: OpStats,
    /// Keys that were absent.
    pub misses: u64,
    /// Pages of puts that were there already.
    pub already_stored: u64,
    /// Pages of another length than wanted.
    pub size_mismatches: u64,
    /// Pages larger than the server takes.
    pub too_large: u64,
    /// Pages refused because the store or a queue was full.
    pub busy: u64,
    /// Pages whose bytes did not match their checksum.
    pub corrupt: u64,
    /// Keys whose server was not reachable.
    pub unavailable: u64,
    /// Keys whose deadline passed.
    pub timed_out: u64,
    /// Keys refused for lack of rights.
    pub denied: u64,
    /// Keys whose server was not asked, because it was suspected or there was no connection to it. Part of `unavailable`.
    pub refused: u64,
    /// Pages of puts that were not sent because too many bytes were on their way. Part of `busy`.
    pub shed_backlog: u64,
    /// Pages of puts that were not sent because puts to their server had taken too long. Part of `busy`.
    pub shed_slow: u64,
    /// Pages by RDMA.
    pub rdma: RdmaStats,
    /// Pages with several places.
    pub copies: CopyStats,
    /// How members are found.
    pub discovery: DiscoveryStats,
    /// Every server's part.
    pub servers: Vec<ServerStats>,
}

/// Pages with several places: replicas, hot pages, pages that have not moved yet after a change of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Pages that a better-placed server did not have and another one did.
    pub found_elsewhere: u64,
    /// Reads that went on to another server before the first one had answered.
    pub hedged: u64,
    /// Missing copies that were filled.
    pub filled: u64,
    /// Pages that were moved to their new owner.
    pub moved: u64,
    /// Copies that were there by the time they were to be filled.
    pub already_there: u64,
    /// Missing copies that were left because too many waited.
    pub dropped_full: u64,
    /// Missing copies that were left because the page could not be read again.
    pub failed_read: u64,
    /// Missing copies that their server did not take.
    pub failed_write: u64,
    /// Missing copies that wait or are on their way now.
    pub pending: u64,
    /// Pages that are hot now.
    pub hot_pages: u64,
}

/// One server's part of [`ClientStats`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// The server's id.
    pub id: String,
    /// Whether ops go to it now.
    pub available: bool,
    /// Data connections open now.
    pub connections: u32,
    /// Exchanges that were completed.
    pub completed: u64,
    /// Exchanges that timed out.
    pub timeouts: u64,
    /// Exchanges that broke off.
    pub broken: u64,
    /// Times the circuit breaker opened.
    pub breaker_opened: u64,
    /// Times the breaker for stores alone opened.
    pub stores_closed: u64,
    /// Pages that it sent and whose bytes did not match their checksum.
    pub corrupt: u64,
    /// Keys that it was not asked about because it was suspected or there was no connection to it.
    pub refused: u64,
    /// Pages of puts that were not sent because too many bytes were on their way to it.
    pub shed_backlog: u64,
    /// Pages of puts that were not sent because puts to it had taken too long.
    pub shed_slow: u64,
    /// Sessions opened; more than one means that the server or the network was away.
    pub sessions: u64,
}

#[derive(Default)]
struct OpCounters {
    calls: AtomicU64,
    keys: AtomicU64,
    ok: AtomicU64,
    bytes: AtomicU64,
    micros: AtomicU64,
}

impl OpCounters {
    fn read(&self) -> OpStats {
        OpStats {
            calls: self.calls.load(Relaxed),
            keys: self.keys.load(Relaxed),
            ok: self.ok.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            micros: self.micros.load(Relaxed),
        }
    }
}

/// What a batch came to, counted once and then added to the counters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    counts: [u64; OUTCOMES],
}

const OUTCOMES: usize = 11;

fn slot(outcome: PageOutcome) -> usize {
    match outcome {
        PageOutcome::Hit => 0,
        PageOutcome::Stored => 1,
        PageOutcome::Exists => 2,
        PageOutcome::Miss => 3,
        PageOutcome::SizeMismatch => 4,
        PageOutcome::TooLarge => 5,
        PageOutcome::Busy => 6,
        PageOutcome::Corrupt => 7,
        PageOutcome::Unavailable => 8,
        PageOutcome::TimedOut => 9,
        PageOutcome::Denied => 10,
    }
}

impl Tally {
    pub(crate) fn of(outcomes: &[PageOutcome]) -> Self {
        let mut tally = Self::default();
        for &outcome in outcomes {
            tally.counts[slot(outcome)] += 1;
        }
        tally
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    exists: OpCounters,
    get: OpCounters,
    put: OpCounters,
    delete: OpCounters,
    touch: OpCounters,
    outcomes: [AtomicU64; OUTCOMES],
    refused: AtomicU64,
    shed_backlog: AtomicU64,
    shed_slow: AtomicU64,
}

/// Pages or keys of a call that were not even tried, by reason.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sheds {
    pub(crate) refused: u64,
    pub(crate) backlog: u64,
    pub(crate) slow: u64,
}

/// Why something was not even tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shed {
    /// The server is suspected, or there is no connection to it.
    Refused,
    /// Too many bytes of puts are on their way to it.
    Backlog,
    /// Puts to it took too long.
    Slow,
}

impl Sheds {
    pub(crate) fn add(&mut self, shed: Shed, count: u64) {
        match shed {
            Shed::Refused => self.refused += count,
            Shed::Backlog => self.backlog += count,
            Shed::Slow => self.slow += count,
        }
    }
}

impl Counters {
    /// Adds one finished call.
    pub(crate) fn add(&self, op: Op, tally: &Tally, ok: usize, bytes: u64, spent: Duration) {
        let counters = match op {
            Op::Exists | Op::Ping | Op::Bind | Op::Release => &self.exists,
            Op::Get => &self.get,
            Op::Put | Op::PutData => &self.put,
            Op::Delete => &self.delete,
            Op::Touch => &self.touch,
        };
        counters.calls.fetch_add(1, Relaxed);
        counters.keys.fetch_add(tally.counts.iter().sum(), Relaxed);
        counters.ok.fetch_add(ok as u64, Relaxed);
        counters.bytes.fetch_add(bytes, Relaxed);
        counters.micros.fetch_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX), Relaxed);
        for (counter, &count) in self.outcomes.iter().zip(&tally.counts) {
            if count > 0 {
                counter.fetch_add(count, Relaxed);
            }
        }
    }

    /// Adds what a call did not even try.
    pub(crate) fn add_sheds(&self, sheds: Sheds) {
        for (counter, count) in [
            (&self.refused, sheds.refused),
            (&self.shed_backlog, sheds.backlog),
            (&self.shed_slow, sheds.slow),
        ] {
            if count > 0 {
                counter.fetch_add(count, Relaxed);
            }
        }
    }

    pub(crate) fn read(&self, servers: Vec<ServerStats>, rdma: RdmaStats, copies: CopyStats) -> ClientStats {
        let outcome = |outcome| self.outcomes[slot(outcome)].load(Relaxed);
        ClientStats {
            exists: self.exists.read(),
            get: self.get.read(),
            put: self.put.read(),
            delete: self.delete.read(),
            touch: self.touch.read(),
            misses: outcome(PageOutcome::Miss),
            already_stored: outcome(PageOutcome::Exists),
            size_mismatches: outcome(PageOutcome::SizeMismatch),
            too_large: outcome(PageOutcome::TooLarge),
            busy: outcome(PageOutcome::Busy),
            corrupt: outcome(PageOutcome::Corrupt),
            unavailable: outcome(PageOutcome::Unavailable),
            timed_out: outcome(PageOutcome::TimedOut),
            denied: outcome(PageOutcome::Denied),
            refused: self.refused.load(Relaxed),
            shed_backlog: self.shed_backlog.load(Relaxed),
            shed_slow: self.shed_slow.load(Relaxed),
            rdma,
            copies,
            discovery: DiscoveryStats::default(),
            servers,
        }
    }
}
