//! What all parts of one running server share.

use crate::clock::Clock;
use crate::config::Config;
use crate::config::storage::NvmeMode;
use crate::data::Nics;
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use memkv_core::Limits;
use memkv_storage::{Engine, HashedKey, Space};
use memkv_transport::auth::AuthKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    pub(crate) engine: Arc<Engine>,
    pub(crate) clock: Clock,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) metrics: Metrics,
    pub(crate) in_flight: Arc<InFlight>,
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
        Self {
            // A small store takes smaller pages only.
            limits: Limits { page_bytes_max: engine.page_bytes_max(), ..config.limits },
            config,
            id,
            incarnation,
            shm_socket: None,
            rdma,
            engine,
            clock: Clock::start(),
            sessions: Arc::default(),
            metrics,
            in_flight: Arc::default(),
            phase: watch::Sender::new(Phase::Serving),
        }
    }

    /// The key of session handshakes; without a configured one, what both sides use on loopback.
    pub(crate) fn session_auth_key(&self) -> AuthKey {
        self.config.auth_key.clone().unwrap_or_else(AuthKey::open)
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

/// Counts the requests that a graceful stop waits for.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: AtomicUsize,
    idle: Notify,
}

impl InFlight {
    /// Counts one request until the result is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> RequestGuard {
        self.count.fetch_add(1, Ordering::Relaxed);
        RequestGuard { in_flight: Arc::clone(self) }
    }

    /// Requests in flight now.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
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
}

/// One request in flight.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    in_flight: Arc<InFlight>,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if self.in_flight.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.in_flight.idle.notify_waiters();
        }
    }
}
