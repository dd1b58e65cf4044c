//! What the client knows of one server: its address, its connections, whether to trust it now.

use crate::backoff::random_jitter;
use crate::breaker::{Failure, Kind};
use crate::config::Transport;
use crate::gates::{Closed, Entry, Gates, Permits};
use crate::pool::{Pool, Taken};
use crate::shm::Views;
use crate::spread::Cost;
use crate::stats::Shed;
use crate::tls::Binding;
use crate::way::Ways;
use crate::{Error, ServerAddress, ServerState, ServerStats, ServerView};
use memkv_core::Limits;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

/// What became of the last attempt to open a session.
#[derive(Clone, Debug)]
pub(crate) enum Attempt {
    /// There was none yet.
    None,
    /// The session is open.
    Open,
    /// It failed; `fatal` if it will fail again until somebody changes something.
    Failed { fatal: Option<crate::ErrorKind>, text: String },
}

pub(crate) struct Server {
    pub(crate) address: ServerAddress,
    pub(crate) channel: Channel,
    /// Ties a session to the channel's connection.
    pub(crate) binding: Binding,
    pub(crate) pool: Pool,
    pub(crate) ways: Ways,
    /// How long reads of hot pages took lately.
    pub(crate) read_cost: Cost,
    /// Its pages, for connections on its own host.
    pub(crate) views: Views,
    pub(crate) attempt: watch::Sender<Attempt>,
    limits: Mutex<Limits>,
    gates: Mutex<Gates>,
    /// Bytes of puts that are on their way or wait.
    backlog: AtomicU64,
    wake: Notify,
    reopen: AtomicBool,
    last_error: Mutex<Option<String>>,
    node_id: Mutex<Option<String>>,
    completed: AtomicU64,
    timeouts: AtomicU64,
    broken: AtomicU64,
    corrupt: AtomicU64,
    refused: AtomicU64,
    shed_backlog: AtomicU64,
    shed_slow: AtomicU64,
    sessions: AtomicU64,
    /// Of the pages that were put lately, how many were there already, in 1/1024.
    existing: AtomicU32,
    /// The server takes pages together with their offer.
    direct: AtomicBool,
    /// The server takes no new pages.
    draining: AtomicBool,
    /// The background task that keeps the session.
    task: Mutex<Option<AbortHandle>>,
    /// The network of a simulation.
    #[cfg(feature = "sim")]
    pub(crate) net: std::sync::OnceLock<std::sync::Arc<dyn memkv_transport::sim::Net>>,
}

/// Bytes of a put that are on their way to a server or wait for a connection.
pub(crate) struct Reserved {
    server: Arc<Server>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.server.backlog.fetch_sub(self.bytes, Relaxed);
    }
}

/// Pages are put without asking first while fewer of them than this were there already, in 1/1024.
const DIRECT_BELOW: u32 = 128;
/// Over about this many pages the share of those that were there already is averaged.
const EXISTING_PAGES: usize = 256;

impl Server {
    pub(crate) fn new(address: ServerAddress, channel: Channel) -> Self {
        Self {
            address,
            channel,
            binding: Binding::default(),
            pool: Pool::default(),
            ways: Ways::default(),
            read_cost: Cost::default(),
            views: Views::default(),
            attempt: watch::Sender::new(Attempt::None),
            limits: Mutex::new(Limits::default()),
            gates: Mutex::new(Gates::new()),
            backlog: AtomicU64::new(0),
            wake: Notify::new(),
            reopen: AtomicBool::new(false),
            last_error: Mutex::new(None),
            node_id: Mutex::new(None),
            completed: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            shed_backlog: AtomicU64::new(0),
            shed_slow: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            existing: AtomicU32::new(0),
            direct: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            task: Mutex::new(None),
            #[cfg(feature = "sim")]
            net: std::sync::OnceLock::new(),
        }
    }

    /// Its data connections go over this network, if there is one.
    #[cfg(feature = "sim")]
    pub(crate) fn join_net(&self, net: Option<&std::sync::Arc<dyn memkv_transport::sim::Net>>) {
        if let Some(net) = net {
            self.net.get_or_init(|| net.clone());
        }
    }

    /// Remembers the task that keeps the session.
    pub(crate) fn runs(&self, task: AbortHandle) {
        *self.task.lock() = Some(task);
    }

    /// The server is no member any more: its task ends, and its connections close.
    pub(crate) fn end(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
        self.pool.end_session();
    }

    /// Whether nothing keeps its session any more.
    #[cfg(test)]
    pub(crate) fn has_ended(&self) -> bool {
        self.task.lock().is_none()
    }

    /// Whether ops may go to it.
    pub(crate) fn is_available(&self) -> bool {
        self.pool.is_ready() && self.gates.lock().server.allows()
    }

    /// A connection for an op of this kind, unless the server is suspected.
    pub(crate) fn take(&self, kind: Kind) -> Taken {
        let permits = match self.gates.lock().enter(kind) {
            Entry::Open(permits) => permits,
            Entry::Suspected => return Taken::NotReady,
            Entry::SlowStores => return Taken::SlowStores,
        };
        let mut taken = self.pool.take(kind);
        match &mut taken {
            Taken::Link(link) => link.permits = permits,
            Taken::Busy | Taken::NotReady | Taken::SlowStores => {
                self.leave(permits);
                self.wake();
            }
        }
        taken
    }

    /// An op that [`Server::take`] let in is over, however it went.
    pub(crate) fn leave(&self, permits: Permits) {
        if permits.is_trial() {
            self.gates.lock().leave(permits);
        }
    }

    /// Whether a store may go to it over another transport; loads may whenever it is available.
    pub(crate) fn takes_stores(&self) -> bool {
        self.gates.lock().stores.allows()
    }

    /// Counts bytes of a put as under way until the result is dropped; `None` if too many are already. A put that is
    /// alone always may.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64, most: u64) -> Option<Reserved> {
        let more = |now: u64| (now == 0 || now.saturating_add(bytes) <= most).then_some(now + bytes);
        self.backlog.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Reserved { server: self.clone(), bytes })
    }

    /// Counts what was not even tried.
    pub(crate) fn count_shed(&self, shed: Shed, count: u64) {
        let counter = match shed {
            Shed::Refused => &self.refused,
            Shed::Backlog => &self.shed_backlog,
            Shed::Slow => &self.shed_slow,
        };
        counter.fetch_add(count, Relaxed);
    }

    /// Whether pages should be sent with their offer: the server takes that, and few were there already lately.
    pub(crate) fn puts_direct(&self) -> bool {
        self.direct.load(Relaxed) && self.existing.load(Relaxed) < DIRECT_BELOW
    }

    /// Notes that `existing` of `pages` put pages were there already. Two ops that end at once may lose one note.
    pub(crate) fn note_put(&self, pages: usize, existing: usize) {
        if pages == 0 {
            return;
        }
        let weight = pages.min(EXISTING_PAGES / 2) as i64;
        let now = (existing.saturating_mul(1024) / pages) as i64;
        let before = i64::from(self.existing.load(Relaxed));
        let step = (now - before) * weight / EXISTING_PAGES as i64;
        // At least one, so that the average reaches where it tends to.
        let step = if step == 0 { (now - before).signum() } else { step };
        self.existing.store(u32::try_from(before + step).unwrap_or(0), Relaxed);
    }

    /// Whether it takes no new pages, and is to be read from only.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Notes whether it takes new pages; whether that is news. See [`crate::client::Shared::heard_state`].
    pub(crate) fn set_draining(&self, draining: bool) -> bool {
        self.draining.swap(draining, Relaxed) != draining
    }

    /// Makes the background task look at what is needed.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Resolves after [`Server::wake`].
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.limits.lock()
    }

    pub(crate) fn with_gates<T>(&self, act: impl FnOnce(&mut Gates) -> T) -> T {
        act(&mut self.gates.lock())
    }

    pub(crate) fn succeeded(&self, kind: Kind, permits: Permits) {
        self.completed.fetch_add(1, Relaxed);
        self.gates.lock().success(kind, permits, Instant::now());
    }

    pub(crate) fn failed(&self, kind: Kind, failure: Failure) {
        let counter = match failure {
            Failure::Silent | Failure::Slow => Some(&self.timeouts),
            Failure::Broken => Some(&self.broken),
            // Counted where it was decided.
            Failure::Left => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Relaxed);
        }
        match failure {
            Failure::Silent => self.note_error("the deadline passed before the server had answered"),
            Failure::Slow => self.note_error("the deadline passed before all pages had moved"),
            Failure::Left => self.note_error("it was slower than others so often that it seems silent"),
            Failure::Broken => {}
        }
        let closed = self.gates.lock().failure(kind, failure, Instant::now(), random_jitter());
        match closed {
            Closed::Nothing => {}
            Closed::Server => self.suspect(),
            Closed::Stores => {
                tracing::warn!(server = %self.address.id, "server too slow for stores; they are shed for a while");
                self.pool.wake_all();
            }
        }
        self.wake();
    }

    /// An answer with pages came, so many of them corrupt.
    pub(crate) fn answered(&self, corrupt: u64) {
        let opened = self.gates.lock().server.answer(corrupt == 0, Instant::now(), random_jitter());
        if corrupt > 0 {
            self.corrupt.fetch_add(corrupt, Relaxed);
            self.note_error("pages that it sent do not match their checksums");
        }
        if opened {
            self.suspect();
            self.wake();
        }
    }

    fn suspect(&self) {
        let error = self.last_error.lock().clone().unwrap_or_default();
        let cause = self.gates.lock().server.cause().name();
        tracing::warn!(server = %self.address.id, cause, error, "server suspected; its keys are misses until it has proved itself");
        self.pool.drop_idle();
        self.pool.wake_all();
    }

    pub(crate) fn note_error(&self, text: &str) {
        *self.last_error.lock() = Some(text.to_owned());
    }

    /// The server forgot a space; all are to be opened again.
    pub(crate) fn reopen_spaces(&self) {
        self.reopen.store(true, Relaxed);
        self.wake();
    }

    pub(crate) fn takes_reopen(&self) -> bool {
        self.reopen.swap(false, Relaxed)
    }

    /// A session is accepted; `direct` if the server takes pages together with their offer.
    pub(crate) fn accepted(&self, node_id: &str, limits: Limits, direct: bool) {
        self.sessions.fetch_add(1, Relaxed);
        self.direct.store(direct, Relaxed);
        *self.limits.lock() = limits;
        *self.node_id.lock() = Some(node_id.to_owned());
        self.gates.lock().reset(Instant::now());
    }

    /// The attempt to open a session failed, or the session ended.
    pub(crate) fn session_failed(&self, error: &Error) {
        use crate::ErrorKind::{NotSupported, Unauthenticated, VersionMismatch};
        self.note_error(&error.to_string());
        let fatal = matches!(error.kind(), Unauthenticated | VersionMismatch | NotSupported);
        let fatal = fatal.then(|| error.kind());
        self.attempt.send_replace(Attempt::Failed { fatal, text: error.to_string() });
    }

    pub(crate) fn view(&self, transport: Transport) -> ServerView {
        let ready = self.pool.is_ready();
        let (allowed, cause) = self.with_gates(|gates| (gates.server.allows(), gates.server.cause()));
        let last_error = self.last_error.lock().clone();
        let state = match (ready, allowed) {
            (true, true) => ServerState::Ready,
            (true, false) => ServerState::Suspect {
                reason: format!("{}: {}", cause.name(), last_error.as_deref().unwrap_or_default()),
            },
            (false, _) => ServerState::Connecting,
        };
        ServerView {
            address: self.address.clone(),
            node_id: self.node_id.lock().clone(),
            state,
            // Which of the ways it is shows once there are connections.
            transport: if transport == Transport::Auto && ready {
                self.pool.best().into()
            } else {
                transport
            },
            connections: self.pool.connections(),
            limits: self.limits(),
            last_error,
        }
    }

    pub(crate) fn stats(&self) -> ServerStats {
        ServerStats {
            id: self.address.id.clone(),
            available: self.is_available(),
            connections: self.pool.connections(),
            completed: self.completed.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            broken: self.broken.load(Relaxed),
            breaker_opened: self.with_gates(|gates| gates.server.opened()),
            stores_closed: self.with_gates(|gates| gates.stores.opened()),
            corrupt: self.corrupt.load(Relaxed),
            refused: self.refused.load(Relaxed),
            shed_backlog: self.shed_backlog.load(Relaxed),
            shed_slow: self.shed_slow.load(Relaxed),
            sessions: self.sessions.load(Relaxed),
        }
    }
}
