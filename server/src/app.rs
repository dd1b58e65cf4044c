//! Builds the object graph of a server and owns the order of start and stop.
//!
//! Start: bind the ports, reserve the memory, then listen. Two runtimes: control (gRPC, admin HTTP, accepting) and
//! data (pages), so that neither can starve the other.
//!
//! Stop: not ready and no new connections; requests in flight finish, new ones are told; then everything that is
//! still open is closed; after the deadline, whatever is left is cut off.

use crate::accept::Accept;
use crate::background::{Worker, evictor, scrubber};
use crate::config::tls::RequireTls;
use crate::config::{Config, units};
use crate::data::Nics;
use crate::metrics::Metrics;
use crate::node::{Node, Phase, data_threads};
use crate::{control, door, http, membership, near, opening, random, tenants, tls};
use memkv_rdma::Verbs;
use memkv_storage::EngineError;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Threads of the control runtime.
const CONTROL_THREADS: usize = 2;
/// Connections that the system keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// gRPC connections that wait to be served.
const GRPC_QUEUE: usize = 64;
/// How long a stopping server answers new requests with "stopping" after the last one in flight has finished, so
/// that clients learn it from an answer.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long connections may take to close once nothing is in flight.
const CLOSING: Duration = Duration::from_secs(1);
/// How often recorded times are folded into histograms.
const UPKEEP: Duration = Duration::from_secs(5);
/// How often RDMA devices are asked whether they still work.
const NIC_LOOK: Duration = Duration::from_millis(200);
/// How long a runtime's threads may take to end.
const RUNTIME_END: Duration = Duration::from_millis(500);

/// Why a server did not start; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be used.
    #[error("cannot listen on {address}: {error}; {hint}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
        /// What to do.
        hint: String,
    },
    /// The store cannot be opened: there is not enough memory, or its files cannot be used.
    #[error("cannot open the store: {0}")]
    Engine(#[from] EngineError),
    /// A drive's size is not known.
    #[error("cannot look at the file system of {path}: {error}; check nvme.paths, or give the path a size", path = .path.display())]
    FileSystem {
        /// The drive's directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The certificates cannot be used.
    #[error("no tls: {0}")]
    Tls(#[from] memkv_tls::TlsError),
    /// The configuration requires RDMA.
    #[error("rdma.mode is require, but there is no rdma: {0}; {fix}", fix = .0.fix())]
    Rdma(#[from] memkv_rdma::RdmaError),
    /// The socket for clients on the same host cannot be used.
    #[error("cannot listen on the unix socket {name}: {error}; check shm.socket, or set it to off")]
    Near {
        /// Its name.
        name: String,
        /// What the system says.
        error: io::Error,
    },
    /// The system gives no threads or pollers.
    #[error("cannot start threads: {0}")]
    System(#[from] io::Error),
}

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything in flight finished.
    Gracefully,
    /// The deadline passed or the wait was cut short; what was left was cut off.
    Aborted,
}

/// A running server. Dropping it cuts everything off; [`Server::stop`] stops gracefully.
pub struct Server {
    node: Arc<Node>,
    address: SocketAddr,
    admin_address: SocketAddr,
    places: Arc<Semaphore>,
    health: HealthReporter,
    accept: Vec<JoinHandle<()>>,
    workers: Vec<Worker>,
    control: Option<Runtime>,
    data: Option<Runtime>,
}

impl Server {
    /// Starts a server; returns when it takes requests.
    ///
    /// # Errors
    ///
    /// [`StartError`] if a port, the memory or threads cannot be had.
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, None)
    }

    /// Like [`Server::start`], with these verbs in place of the machine's; for tests with simulated ones.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn start_with(config: Config, verbs: Option<Arc<dyn Verbs>>) -> Result<Self, StartError> {
        let (socket, address) = bind(config.listen, "listen")?;
        let (admin_socket, admin_address) = bind(config.admin_address(address), "admin_listen")?;
        let id = config.node_id.clone().unwrap_or_else(|| config.discovery.default_id(address));
        let tls = tls::open(&config.tls)?;
        let control = runtime("memkv-control", CONTROL_THREADS)?;
        // From here on, whoever asks is told that the server is starting.
        let watched = Arc::new(http::Watched::default());
        let admin_listener =
            control.block_on(async { listen(admin_socket, admin_address, "admin_listen") })?;
        let admin = door::Door::new(admin_listener, tls.clone(), &config);
        control.spawn(serve_admin(Arc::clone(&watched), admin));
        let engine = opening::open(&config)?;
        let rdma = if config.tls.require == RequireTls::Payload {
            tracing::info!("no rdma: require_tls is payload, and rdma does not encrypt");
            None
        } else {
            Nics::open(&config.rdma, verbs, &engine)?
        };
        let incarnation = u64::from_le_bytes(random::bytes());
        let local = near::open(&config.shm_socket, address.port(), incarnation)?;
        let mut node = Node::new(config, id, incarnation, engine, rdma, Metrics::new());
        node.tls = tls;
        node.shm_socket = local.as_ref().map(|(_, name)| name.clone());
        let node = Arc::new(node);
        let data = runtime("memkv-data", data_threads(&node.config))?;
        let mut workers = vec![evictor(&node)?];
        workers.extend(scrubber(&node)?);
        let places = Arc::new(Semaphore::new(node.limits.connections_max as usize));

        let inside = control.enter();
        let listener = listen(socket, address, "listen")?;
        let (grpc, connections) = mpsc::channel(GRPC_QUEUE);
        let (routes, health) = control.block_on(control::routes(&node));
        let grpc_node = Arc::clone(&node);
        control.spawn(async move {
            let router = control::server().add_routes(routes);
            let connections = ReceiverStream::new(connections);
            let served = router.serve_with_incoming_shutdown(connections, grpc_node.wait_closing()).await;
            if let Err(error) = served {
                tracing::error!(%error, "grpc server ended");
            }
        });
        let accept = Accept {
            node: Arc::clone(&node),
            data: data.handle().clone(),
            grpc,
            places: Arc::clone(&places),
        };
        let mut accepting = Vec::new();
        if let Some((local, _)) = local {
            accepting.push(control.spawn(accept.clone().run_near(local)));
        }
        accepting.push(control.spawn(accept.run(listener)));
        watched.serving(&node);
        control.spawn(upkeep(Arc::clone(&node)));
        control.spawn(sweep(Arc::clone(&node)));
        control.spawn(watch_nics(Arc::clone(&node)));
        control.spawn(tls::follow(Arc::clone(&node)));
        membership::join(&node, control.handle(), address);
        control.spawn(tenants::watch(Arc::clone(&node)));
        drop(inside);
        log_start(&node, address, admin_address);
        let (control, data) = (Some(control), Some(data));
        Ok(Self { node, address, admin_address, places, health, accept: accepting, workers, control, data })
    }

    /// What its parts share.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin HTTP server listens.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Whether clients need a key.
    #[must_use]
    pub fn key_required(&self) -> bool {
        self.node.tenants.key_required()
    }

    /// Reads certificates and credentials again now, changed or not.
    pub fn reload(&self) {
        self.node.reload.notify_one();
        if let Some(tls) = &self.node.tls {
            tls::refresh(&self.node.metrics, tls, true);
        }
    }

    /// Runs a future on the control runtime; for waiting on signals.
    ///
    /// # Panics
    ///
    /// If called inside an asynchronous context.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.control.as_ref().expect("the runtime lives as long as the server").block_on(future)
    }

    /// Stops gracefully, within `shutdown_timeout`, or at once when `abort` is ready.
    ///
    /// # Panics
    ///
    /// If called inside an asynchronous context.
    pub fn stop(mut self, abort: impl Future<Output = ()>) -> Stopped {
        let accept = std::mem::take(&mut self.accept);
        let deadline = Instant::now() + self.node.config.shutdown_timeout;
        tracing::info!(in_flight = self.node.in_flight.count(), "stopping");
        let stopped = self.block_on(async {
            tokio::select! {
                biased;
                () = abort => Stopped::Aborted,
                drained = timeout_at(deadline, self.drain(accept)) => match drained {
                    Ok(()) => Stopped::Gracefully,
                    Err(_elapsed) => Stopped::Aborted,
                },
            }
        });
        let in_flight = self.node.in_flight.count();
        self.cut_off();
        // Nobody asks any more: what outlives the process is marked as whole.
        self.node.engine.close();
        match stopped {
            Stopped::Gracefully => tracing::info!("stopped"),
            Stopped::Aborted => tracing::warn!(in_flight, "stopped early"),
        }
        stopped
    }

    async fn drain(&self, accept: Vec<JoinHandle<()>>) {
        // The listeners are gone before anybody is told, so that a client that hears it cannot come back here.
        for accept in accept {
            accept.abort();
            let _aborted = accept.await;
        }
        self.node.enter(Phase::Stopping);
        control::report(&self.health, ServingStatus::NotServing).await;
        membership::leave(&self.node).await;
        self.node.in_flight.wait_idle().await;
        sleep(FAREWELL).await;
        self.node.in_flight.wait_idle().await;
        self.node.enter(Phase::Closing);
        self.node.sessions.end_all();
        // Every connection gives its place back when it is closed. What mattered is done, so a gRPC peer that
        // keeps a stream open (a health watch) is not waited for any longer.
        let all = self.places.acquire_many(self.node.limits.connections_max);
        if timeout(CLOSING, all).await.is_err() {
            tracing::debug!("some connections did not close by themselves");
        }
    }
}

impl Server {
    /// Ends everything that runs, whatever it is doing.
    fn cut_off(&mut self) {
        self.node.enter(Phase::Closing);
        // Also allowed inside an asynchronous context, where a test may drop its server.
        for runtime in [self.data.take(), self.control.take()].into_iter().flatten() {
            if tokio::runtime::Handle::try_current().is_ok() {
                runtime.shutdown_background();
            } else {
                runtime.shutdown_timeout(RUNTIME_END);
            }
        }
        self.workers.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cut_off();
    }
}

fn runtime(name: &str, threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build()
}

/// Takes an address without listening yet: nobody can connect before everything is there.
fn bind(wanted: SocketAddr, option: &str) -> Result<(Socket, SocketAddr), StartError> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(wanted), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&wanted.into())?;
        let address = socket.local_addr()?.as_socket().unwrap_or(wanted);
        Ok((socket, address))
    };
    bound().map_err(|error| bind_error(wanted, error, option))
}

fn listen(socket: Socket, address: SocketAddr, option: &str) -> Result<TcpListener, StartError> {
    let listening = || {
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    };
    listening().map_err(|error| bind_error(address, error, option))
}

fn bind_error(address: SocketAddr, error: io::Error, option: &str) -> StartError {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another process uses this port: stop it, or set {option} to another one")
        }
        io::ErrorKind::AddrNotAvailable => format!("set {option} to an address of this machine"),
        io::ErrorKind::PermissionDenied => format!("set {option} to a port above 1023"),
        _ => format!("check {option}"),
    };
    StartError::Bind { address, error, hint }
}

async fn serve_admin(watched: Arc<http::Watched>, door: door::Door) {
    if let Err(error) = http::serve(watched, door).await {
        tracing::error!(%error, "admin http server ended");
    }
}

/// Puts out connections that say nothing.
async fn sweep(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(node.guests.pace());
    loop {
        ticks.tick().await;
        node.guests.sweep();
    }
}

/// Looks after the RDMA devices.
async fn watch_nics(node: Arc<Node>) {
    let Some(nics) = &node.rdma else { return };
    let mut ticks = tokio::time::interval(NIC_LOOK);
    let mut tending: Option<JoinHandle<()>> = None;
    loop {
        ticks.tick().await;
        node.metrics.rdma_nics_down.store(nics.look(), Ordering::Relaxed);
        if tending.as_ref().is_none_or(JoinHandle::is_finished) && nics.is_needy() {
            node.sessions.some(usize::MAX, |_| true).iter().for_each(|session| session.rdma.drop_unusable());
            let node = Arc::clone(&node);
            tending = Some(tokio::task::spawn_blocking(move || node.rdma.iter().for_each(Nics::tend)));
        }
    }
}

async fn upkeep(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    let mut known = Vec::new();
    loop {
        ticks.tick().await;
        node.metrics.upkeep();
        let degraded = node.engine.status().degraded;
        for why in degraded.iter().filter(|why| !known.contains(*why)) {
            tracing::error!(why, "degraded; the server goes on without it");
        }
        if degraded.is_empty() && !known.is_empty() {
            tracing::info!("no longer degraded");
        }
        known = degraded;
    }
}

fn log_start(node: &Node, address: SocketAddr, admin: SocketAddr) {
    let memory = units::show_size(node.config.dram_bytes);
    if node.limits.page_bytes_max < node.config.limits.page_bytes_max {
        let page_max = units::show_size(node.limits.page_bytes_max.into());
        tracing::info!(page_max, "pages are limited to what fits this much memory");
    }
    tracing::info!(memory_for_pages = memory, "effective configuration: {}", node.config.to_line());
    if address.ip().is_unspecified() && node.config.node_id.is_none() && node.membership.get().is_none() {
        tracing::warn!(
            node_id = node.id,
            "servers on other machines would have the same node id; set node_id"
        );
    }
    tls::log_start(node);
    tracing::info!(%address, admin = %admin, node_id = node.id, "serving");
}
