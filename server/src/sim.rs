//! Servers on a simulated network, for `memkv-sim`.
//!
//! Such a server is the real one without its runtimes, threads and sockets: sessions, connections, gRPC services and the
//! engine are what every server has. Its duties beside requests are tasks of the present runtime, and connections are
//! handed to it by whoever owns the network. Its drives have no threads either: a task gives them turns. There is no admin
//! HTTP, no shared memory and no RDMA.

use crate::accept::Peer;
use crate::app::StartError;
use crate::config::Config;
use crate::drain::{Asked, Drain, Duty, Member};
use crate::metrics::Metrics;
use crate::node::{Node, Phase};
use crate::{control, data, opening, random};
use hyper_util::rt::TokioIo;
use memkv_core::{Key, SpaceDescription};
use memkv_storage::{Engine, EngineStatus, HashedKey, RecoveryReport};
pub use memkv_storage::{FaultKind as Kind, FaultPlan};
use memkv_transport::handshake::PREFACE;
use memkv_transport::sim::{Net, Socket, Stream};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

/// gRPC connections that wait to be served.
const GRPC_QUEUE: usize = 64;
/// How often the evictor and the scrubber look at the store.
const EVICT_EVERY: Duration = Duration::from_millis(10);
const SCRUB_EVERY: Duration = Duration::from_millis(100);
/// How often drives get a turn.
const TURN_EVERY: Duration = Duration::from_millis(2);
/// How long a stopping server answers new requests with "stopping".
const FAREWELL: Duration = Duration::from_millis(200);

/// A server of a simulation. Its tasks live as long as the runtime it was started in.
#[derive(Clone)]
pub struct SimServer {
    node: Arc<Node>,
    grpc: mpsc::Sender<io::Result<Greeted>>,
    places: Arc<Semaphore>,
}

/// What a server holds at one moment.
#[derive(Clone, Debug)]
pub struct Census {
    /// Open sessions.
    pub sessions: usize,
    /// Attached data connections.
    pub data_connections: u64,
    /// Requests in flight.
    pub in_flight: usize,
    /// Regions that clients registered for RDMA.
    pub regions: u64,
    /// Malformed frames and silent connections.
    pub protocol_errors: u64,
    /// The store.
    pub engine: EngineStatus,
}

/// What measures the processor's clock does so here, once in a process, and not when the first server starts.
pub fn prepare() {
    drop(Metrics::new());
}

impl SimServer {
    /// Starts a server whose connections come through [`SimServer::admit`]; also tells what it found of an earlier life.
    /// `faults` is what happens to its drives, and `net` the way to other servers.
    ///
    /// # Errors
    ///
    /// [`StartError`] if its memory or its files cannot be used.
    pub async fn start(
        config: Config,
        faults: &Arc<FaultPlan>,
        net: Arc<dyn Net>,
    ) -> Result<(Self, RecoveryReport), StartError> {
        let (engine, report) = Engine::open_by_hand(opening::engine_config(&config)?, faults)?;
        let id = config.node_id.clone().unwrap_or_else(|| config.listen.to_string());
        let incarnation = u64::from_le_bytes(random::bytes());
        let node = Arc::new(Node::new(config, id, incarnation, engine, None, Metrics::new()));
        node.net.get_or_init(|| net);
        let places = Arc::new(Semaphore::new(node.limits.connections_max as usize));
        let (grpc, connections) = mpsc::channel(GRPC_QUEUE);
        let (routes, _health) = control::routes(&node).await;
        let served = Arc::clone(&node);
        tokio::spawn(async move {
            let router = control::server().add_routes(routes);
            let connections = ReceiverStream::new(connections);
            if let Err(error) = router.serve_with_incoming_shutdown(connections, served.wait_closing()).await
            {
                tracing::error!(%error, "grpc server ended");
            }
        });
        tokio::spawn(evict(Arc::clone(&node)));
        tokio::spawn(scrub(Arc::clone(&node)));
        if !node.config.storage.drives.is_empty() {
            tokio::spawn(turn(Arc::clone(&node)));
        }
        Ok((Self { node, grpc, places }, report))
    }

    /// Serves a connection, if there is room for it.
    pub fn admit(&self, stream: Box<dyn Stream>) {
        let metrics = &self.node.metrics;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            Metrics::add(&metrics.refused, 1);
            return;
        };
        Metrics::add(&metrics.accepted, 1);
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = this.node.wait_closing() => {}
                () = this.greet(stream, place) => {}
            }
        });
    }

    /// Tells the two planes apart by their first eight bytes.
    async fn greet(&self, mut stream: Box<dyn Stream>, place: OwnedSemaphorePermit) {
        let mut first = [0; PREFACE.len()];
        let limit = self.node.config.handshake_timeout;
        let read = timeout(limit, stream.read_exact(&mut first)).await;
        if !matches!(read, Ok(Ok(_))) {
            Metrics::add(&self.node.metrics.protocol_errors, 1);
            return;
        }
        if first == PREFACE {
            data::serve(Arc::clone(&self.node), data::Wire::Sim(Socket::new(stream))).await;
            drop(place);
        } else {
            let greeted = Greeted { stream, first, given_back: 0, _place: place };
            // If nobody takes it, the server is stopping and the connection closes here.
            let _stopping = self.grpc.send(Ok(greeted)).await;
        }
    }

    /// What the server holds now.
    #[must_use]
    pub fn census(&self) -> Census {
        let node = &self.node;
        Census {
            sessions: node.sessions.count(),
            data_connections: node.metrics.data_connections.load(Ordering::Relaxed),
            in_flight: node.in_flight.count(),
            regions: node.metrics.rdma_regions.load(Ordering::Relaxed),
            protocol_errors: node.metrics.protocol_errors.load(Ordering::Relaxed),
            engine: node.engine.status(),
        }
    }

    /// Lets it see a member list of this epoch.
    pub fn hear_epoch(&self, epoch: u64) {
        self.node.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Begins to hand its pages over to others: ids, hosts, ports and weights of the members that stay.
    ///
    /// # Errors
    ///
    /// Why it does not begin.
    pub async fn drain(&self, members: Vec<(String, String, u16, u32)>, copies: usize) -> Result<(), String> {
        let members = members.into_iter().map(|(id, host, port, weight)| Member { id, host, port, weight });
        let asked = Asked { members: members.collect(), bytes_per_second: 0, copies };
        Drain::start(&self.node, asked).await.map(drop).map_err(|refused| refused.to_string())
    }

    /// Whether every page it holds is with another server, by its own word.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.node.drain.duty() == Duty::Drained
    }

    /// Ends a drain, and takes new pages again.
    pub async fn cancel_drain(&self) {
        drop(self.node.drain.cancel().await);
    }

    /// To be called when the server is at its end, and its tasks are gone or have ended: nothing holds it any more.
    pub fn let_go(&self) {
        self.node.drain.forget();
    }

    /// Whether it has a page, by the name of its space and its key.
    #[must_use]
    pub fn has(&self, space: &str, key: &[u8]) -> bool {
        let space = SpaceDescription::named(space).ok().and_then(|named| self.node.engine.space(named.id()));
        let (Some(space), Ok(key)) = (space, Key::new(key)) else { return false };
        let mut found = [false];
        self.node.engine.exists_batch(&space, &[HashedKey::new(space.id(), key)], &mut found);
        found[0]
    }

    /// Removes every page, whoever keeps it.
    pub fn clear(&self) {
        for space in self.node.engine.spaces() {
            let _cleared = self.node.engine.clear(&space);
        }
    }

    /// Compares every stored page with its checksum; returns how many were wrong.
    #[must_use]
    pub fn verify(&self) -> u64 {
        let all = memkv_storage::VerifyRequest::default();
        let report = self.node.engine.verify(all, &|_| std::ops::ControlFlow::Continue(()));
        report.progress.corrupt
    }

    /// Stops gracefully: what is in flight finishes, then everything closes and the store is marked as whole.
    pub async fn stop(&self) {
        self.node.enter(Phase::Stopping);
        self.node.in_flight.wait_idle().await;
        sleep(FAREWELL).await;
        self.node.in_flight.wait_idle().await;
        self.node.enter(Phase::Closing);
        self.node.sessions.end_all();
        // A moment for connections to drop what they hold.
        sleep(FAREWELL).await;
        self.node.engine.close();
    }
}

/// A channel that connects over the simulated network.
pub(crate) fn channel(endpoint: &Endpoint, net: Arc<dyn Net>, host: String, port: u16) -> Channel {
    let connect = move |_: Uri| {
        let dialled = net.dial(&host, port);
        async move { dialled.await.map(TokioIo::new) }
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

async fn evict(node: Arc<Node>) {
    loop {
        sleep(EVICT_EVERY).await;
        let evicted = node.engine.evict_round(node.clock.now_ms());
        if evicted.pages > 0 {
            tracing::debug!(evicted.pages, evicted.bytes, "evicted");
        }
    }
}

async fn turn(node: Arc<Node>) {
    loop {
        sleep(TURN_EVERY).await;
        node.engine.turn();
    }
}

async fn scrub(node: Arc<Node>) {
    let rate = node.config.storage.scrub_bytes_per_s;
    if rate == 0 {
        return;
    }
    loop {
        sleep(SCRUB_EVERY).await;
        let step = node.engine.scrub(rate / 10);
        if step.corrupt > 0 {
            tracing::debug!(pages = step.corrupt, "stored pages did not match and were taken out");
        }
    }
}

/// A gRPC connection whose first bytes were read already.
struct Greeted {
    stream: Box<dyn Stream>,
    first: [u8; PREFACE.len()],
    given_back: usize,
    _place: OwnedSemaphorePermit,
}

impl Connected for Greeted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { addr: self.stream.peer(), ..Peer::default() }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given_back < self.first.len() {
            let bytes = buf.remaining().min(self.first.len() - self.given_back);
            buf.put_slice(&self.first[self.given_back..self.given_back + bytes]);
            self.given_back += bytes;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
