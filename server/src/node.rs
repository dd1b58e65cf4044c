//! What all parts of one running server share.

use crate::allowance::Allowance;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::storage::NvmeMode;
use crate::data::{Arrivals, Asides, Nics, Slow};
use crate::drain::{Drain, Duty};
use crate::guests::Guests;
use crate::hot::Hot;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::tenants::Tenants;
use crate::tenants::attempts::Attempts;
use memkv_core::Limits;
use memkv_proto::v1;
use memkv_storage::{Engine, HashedKey, Space};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// What the server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes reads and writes.
    Serving,
    /// Finishes what is in flight, takes nothing new.
    Stopping,
    /// Closes everything that is still open.
    Closing,
}

/// The server's identity, state and parts.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) id: String,
    /// Random at every start.
    pub(crate) incarnation: u64,
    pub(crate) limits: Limits,
    /// The Unix socket for clients on this host.
    pub(crate) shm_socket: Option<String>,
    /// The NICs by which pages may move.
    pub(crate) rdma: Option<Nics>,
    /// The certificates, if the server speaks TLS.
    pub(crate) tls: Option<Arc<memkv_tls::ServerTls>>,
    pub(crate) engine: Arc<Engine>,
    /// Pages that are read very often.
    pub(crate) hot: Hot,
    pub(crate) clock: Clock,
    pub(crate) sessions: Arc<Sessions>,
    /// Connections that have not proved anything yet.
    pub(crate) guests: Arc<Guests>,
    /// Who may use this server.
    pub(crate) tenants: Tenants,
    /// Who keeps failing to prove it.
    pub(crate) attempts: Attempts,
    /// Asks for a look at the files that are followed.
    pub(crate) reload: Notify,
    pub(crate) metrics: Metrics,
    pub(crate) in_flight: Arc<InFlight>,
    /// What all requests that are at work may hold.
    pub(crate) held: Allowance,
    /// Pages on their way in.
    pub(crate) arrivals: Arc<Arrivals>,
    /// Threads that large transfers may have to themselves.
    pub(crate) asides: Asides,
    /// Peers that do not read.
    pub(crate) slow: Slow,
    /// Set once it is found by others.
    pub(crate) membership: OnceLock<Membership>,
    pub(crate) drain: Drain,
    /// The network of a simulation.
    #[cfg(feature = "sim")]
    pub(crate) net: OnceLock<Arc<dyn memkv_transport::sim::Net>>,
    /// The epoch of the member list that a simulation lets it see.
    #[cfg(feature = "sim")]
    pub(crate) epoch: std::sync::atomic::AtomicU64,
    phase: watch::Sender<Phase>,
}

impl Node {
    /// Builds the shared state of a server that serves from now on.
    pub(crate) fn new(
        config: Config,
        id: String,
        incarnation: u64,
        engine: Arc<Engine>,
        rdma: Option<Nics>,
        metrics: Metrics,
    ) -> Self {
        // Twice: once to say what it is, once for what it came for.
        let guests = Guests::new(config.limits.connections_max as usize, 2 * config.handshake_timeout);
        let guests = Arc::new(guests);
        let tenants = Tenants::of_config(&config, &engine);
        Self {
            arrivals: Arc::new(Arrivals::new(
                config.dram_bytes,
                engine.page_bytes_max(),
                data_threads(&config),
            )),
            asides: Asides::new(data_threads(&config)),
            slow: Slow::new(config.unread_bytes),
            held: Allowance::new(config.request_bytes.server),
            // A small store takes smaller pages only.
            hot: Hot::new(config.hot_reads),
            limits: Limits { page_bytes_max: engine.page_bytes_max(), ..config.limits },
            config,
            id,
            incarnation,
            shm_socket: None,
            rdma,
            tls: None,
            engine,
            clock: Clock::start(),
            sessions: Arc::default(),
            guests,
            tenants,
            attempts: Attempts::default(),
            reload: Notify::new(),
            metrics,
            in_flight: Arc::default(),
            membership: OnceLock::new(),
            drain: Drain::default(),
            #[cfg(feature = "sim")]
            net: OnceLock::new(),
            #[cfg(feature = "sim")]
            epoch: std::sync::atomic::AtomicU64::new(0),
            phase: watch::Sender::new(Phase::Serving),
        }
    }

    /// Notes that a client did not prove who it is.
    pub(crate) fn auth_failed(&self, peer: Option<SocketAddr>, what: &str) {
        self.attempts.failed(peer);
        self.metrics.auth_failed(peer, what);
    }

    /// With write-through, waits until pages that were just stored are on a drive. A drive that takes longer than any
    /// request may is not waited for: the pages are in memory, and the put must be answered.
    pub(crate) async fn persist(&self, space: &Space, keys: &[HashedKey<'_>]) {
        if keys.is_empty() || self.config.storage.nvme_mode != NvmeMode::WriteThrough {
            return;
        }
        let most = Duration::from_millis(self.limits.request_ms_max.into());
        if timeout(most, self.engine.persist(space, keys)).await.is_err() {
            tracing::warn!(
                pages = keys.len(),
                "drives are too slow; acknowledged pages that are in memory only"
            );
        }
    }

    /// What the server is doing now.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// What the server says that it is doing.
    pub(crate) fn state(&self) -> v1::ServerState {
        match (self.phase(), self.drain.duty()) {
            (Phase::Stopping | Phase::Closing, _) => v1::ServerState::Stopping,
            (Phase::Serving, Duty::Serving) => v1::ServerState::Serving,
            (Phase::Serving, Duty::Draining) => v1::ServerState::Draining,
            (Phase::Serving, Duty::Drained) => v1::ServerState::Drained,
        }
    }

    /// Moves on to `phase`.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits for [`Phase::Closing`].
    pub(crate) async fn wait_closing(&self) {
        let mut phases = self.phases();
        // The sender lives in `self`, so waiting cannot fail while somebody waits.
        let _closing = phases.wait_for(|phase| *phase == Phase::Closing).await;
    }

    /// Changes of [`Node::phase`].
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }
}

/// How many threads serve data connections.
pub(crate) fn data_threads(config: &Config) -> usize {
    match config.data_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Counts the requests that a graceful stop waits for.
///
/// Each belongs to one of two generations, so that one can wait for those that have begun while new ones begin.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    counts: [AtomicUsize; 2],
    /// Its lowest bit is the generation of those that begin now.
    generation: AtomicUsize,
    idle: Notify,
    /// A generation has none.
    over: Notify,
}

impl InFlight {
    /// Counts one request until the result is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> RequestGuard {
        let generation = self.generation.load(Ordering::SeqCst) & 1;
        self.counts[generation].fetch_add(1, Ordering::SeqCst);
        RequestGuard { in_flight: Arc::clone(self), generation }
    }

    /// Requests in flight now.
    pub(crate) fn count(&self) -> usize {
        self.counts.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }

    /// Waits for a moment without any request in flight. Whoever is refused counts too, so the number may be
    /// above zero again; but what had begun before the call has ended.
    pub(crate) async fn wait_idle(&self) {
        let notified = self.idle.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if self.count() > 0 {
            notified.await;
        }
    }

    /// Waits for the end of every request that has begun, and of the offers that they made, however many begin
    /// meanwhile. For one caller at a time.
    pub(crate) async fn wait_earlier(&self) {
        // The first round ends with the requests; an offer that one of them made may belong to the generation after.
        for _ in 0..2 {
            let earlier = self.generation.fetch_xor(1, Ordering::SeqCst) & 1;
            loop {
                let over = self.over.notified();
                tokio::pin!(over);
                over.as_mut().enable();
                if self.counts[earlier].load(Ordering::SeqCst) == 0 {
                    break;
                }
                over.await;
            }
        }
    }
}

/// One request in flight.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    in_flight: Arc<InFlight>,
    generation: usize,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let in_flight = &self.in_flight;
        if in_flight.counts[self.generation].fetch_sub(1, Ordering::SeqCst) == 1 {
            in_flight.over.notify_waiters();
            if in_flight.count() == 0 {
                in_flight.idle.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn those_that_began_before_are_waited_for_and_later_ones_are_not() {
        let in_flight = Arc::new(InFlight::default());
        let early = in_flight.enter();
        let mut waits = pin!(in_flight.wait_earlier());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        // What an early request leaves behind is waited for too.
        let offer = in_flight.enter();
        drop(early);
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        let late = in_flight.enter();
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        drop(offer);
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert_eq!(in_flight.count(), 1);
        drop(late);
    }
}
