//! `memkv.v1.Session`: opens sessions and keeps them while their stream lives.

use super::status::Fault;
use crate::accept::Peer;
use crate::allowance::Allowance;
use crate::data::{Nics, rdma_session};
use crate::hot::HotPage;
use crate::line::Line;
use crate::metrics::Metrics;
use crate::node::{Node, Phase};
use crate::random;
use crate::sessions::{Registered, Session};
use crate::tenants::Tenant;
use crate::tenants::tenant::{Connected, Proven};
use crate::tls::TlsPeer;
use memkv_proto::v1::client_message::Message as FromClient;
use memkv_proto::v1::server_message::Message as ToClient;
use memkv_proto::{Invalid, VERSIONS, Versions, v1};
use memkv_transport::auth::{AuthKey, SECRET_BYTES, SessionTranscript};
use memkv_transport::frame::{CAPABILITY_DIRECT, CAPABILITY_RDMA, CAPABILITY_SHM};
use memkv_transport::tenant::{ServerSecret, is_key_id, is_tenant_name};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What this server can do beside gRPC.
const CAPABILITIES: [&str; 2] = ["tcp", CAPABILITY_DIRECT];
/// Messages that wait for a client that does not read them.
const OUTBOX: usize = 8;
/// Longest client name and version, bytes.
const NAME_BYTES_MAX: usize = 256;
/// Intervals of silence after which a session ends.
const SILENT_INTERVALS: u32 = 3;
/// How long a wrong key waits for its answer, so that guessing is slow.
const WRONG_KEY_PAUSE: Duration = Duration::from_millis(250);

/// The service.
pub(crate) struct SessionService {
    node: Arc<Node>,
    places: Arc<Semaphore>,
}

impl SessionService {
    /// A service without sessions.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        let places = Arc::new(Semaphore::new(node.limits.sessions_max as usize));
        Self { node, places }
    }
}

#[tonic::async_trait]
impl v1::session_server::Session for SessionService {
    type OpenStream = ReceiverStream<Result<v1::ServerMessage, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        if self.node.phase() != Phase::Serving {
            return Err(Fault::Stopping.into());
        }
        let Peer { addr: peer, tls, line } = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        if !self.node.guests.begin_session(peer) {
            return Err(Fault::Sequence("another session is being opened on this connection").into());
        }
        let (outbox, replies) = mpsc::channel(OUTBOX);
        let places = Arc::clone(&self.places);
        let stream = Stream {
            node: Arc::clone(&self.node),
            inbox: request.into_inner(),
            outbox,
            peer,
            tls,
            line,
            places,
            place: None,
            tenants_place: None,
        };
        tokio::spawn(stream.run());
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

/// One stream from its hello to its end.
struct Stream {
    node: Arc<Node>,
    inbox: Streaming<v1::ClientMessage>,
    outbox: mpsc::Sender<Result<v1::ServerMessage, Status>>,
    peer: Option<SocketAddr>,
    places: Arc<Semaphore>,
    /// Its place among the sessions, once its client has proved that it has a key.
    place: Option<OwnedSemaphorePermit>,
    /// What TLS says of the client.
    tls: Option<Arc<TlsPeer>>,
    /// Its connection.
    line: Arc<Line>,
    /// Its place among its tenant's sessions.
    tenants_place: Option<Connected>,
}

impl Stream {
    async fn run(mut self) {
        let limit = self.node.config.handshake_timeout;
        let opened = timeout(limit, self.handshake()).await.unwrap_or(Err(Fault::Silent));
        self.node.guests.end_session(self.peer);
        let outcome = match opened {
            Ok(registered) => {
                let session = Arc::clone(&registered.session);
                tracing::info!(client = session.client_name, peer = ?self.peer, "session opened");
                let outcome = self.keep(&session).await;
                session.rdma.regions.clear(&self.node.metrics.rdma_regions);
                // From here on the session's data connections close.
                drop(registered);
                tracing::info!(client = session.client_name, peer = ?self.peer, "session ended");
                outcome
            }
            Err(fault) => {
                tracing::debug!(%fault, peer = ?self.peer, "no session opened");
                Err(fault)
            }
        };
        if let Err(fault) = outcome {
            // The client may be gone or not reading; then nobody misses the reason.
            let _unread = self.outbox.try_send(Err(fault.into()));
        }
    }

    async fn handshake(&mut self) -> Result<Registered, Fault> {
        let FromClient::Hello(hello) = self.receive().await? else {
            return Err(Fault::Sequence("the first message of a session is Hello"));
        };
        let protocol = check_hello(&hello)?;
        if !self.node.attempts.may_try(self.peer) {
            return Err(Fault::TooManyAttempts);
        }
        let (server_nonce, session_id): ([u8; SECRET_BYTES], [u8; 16]) = (random::bytes(), random::bytes());
        let node = Arc::clone(&self.node);
        let tls = self.tls.clone();
        let certified = node.tenants.certified(tls.as_deref()).filter(|_| hello.key_id.is_empty());
        let key_required = certified.is_none() && node.tenants.key_required();
        let (secret, tenant) = match &certified {
            Some((tenant, _)) => (ServerSecret::Cluster(AuthKey::open()), Some(Arc::clone(tenant))),
            None => node.tenants.secret(&hello.tenant, &hello.key_id),
        };
        let transcript = SessionTranscript {
            protocol_min: hello.protocol_min,
            protocol_max: hello.protocol_max,
            protocol,
            client_nonce: &hello.client_nonce,
            server_nonce: &server_nonce,
            session_id: &session_id,
            node_id: &node.id,
            key_required,
            identity: (&hello.tenant, &hello.key_id),
            channel: tls.as_ref().map_or(&[], |tls| tls.channel.as_slice()),
        };
        self.send(ToClient::Challenge(v1::Challenge {
            protocol: transcript.protocol,
            server_nonce: server_nonce.to_vec(),
            session_id: session_id.to_vec(),
            node_id: node.id.clone(),
            server_proof: secret.server_proof(&transcript).to_vec(),
            key_required: transcript.key_required,
        }))
        .await?;
        let FromClient::Proof(proof) = self.receive().await? else {
            return Err(Fault::Sequence("the second message of a session is Proof"));
        };
        let session_key = secret.check(&transcript, &proof.client_proof);
        let (Some(session_key), Some(tenant)) = (session_key, tenant) else {
            self.node.auth_failed(self.peer, "a session's proof is wrong");
            tokio::time::sleep(WRONG_KEY_PAUSE).await;
            return Err(Fault::WrongKey);
        };
        if !self.line.prove(&tenant) {
            return Err(Fault::TooManyConnections);
        }
        self.node.guests.prove(self.peer);
        self.tenants_place = Some(tenant.begin_session().ok_or(Fault::TooManyConnections)?);
        let places = Arc::clone(&self.places);
        let full = |_| Fault::TooManySessions(self.node.limits.sessions_max);
        self.place = Some(places.try_acquire_owned().map_err(full)?);
        let proven = match certified {
            Some((_, name)) => Proven::Certificate(name),
            None if hello.key_id.is_empty() => Proven::Cluster,
            None => Proven::Key(hello.key_id),
        };
        let client = (hello.client_name, hello.client_version);
        let (owner, now_ms) = ((Arc::clone(&tenant), proven), self.node.clock.now_ms());
        let mut session = Session::new(session_id, session_key, client, owner, self.peer, now_ms);
        session.tls = tls.clone();
        session.held = Allowance::new(self.node.config.request_bytes.session);
        let registered = self.node.sessions.register(session);
        // A change of the credentials either sees the session or is seen here.
        if !tenant.accepts(&registered.session.proven) {
            return Err(Fault::WrongKey);
        }
        Metrics::add(&self.node.metrics.sessions_opened, 1);
        self.send(ToClient::Accepted(self.accepted(&hello.capabilities, tenant.name()))).await?;
        Ok(registered)
    }

    fn accepted(&self, offered: &[String], tenant: &str) -> v1::Accepted {
        let offers = |ours: &str| offered.iter().any(|theirs| theirs == ours);
        let both = CAPABILITIES.iter().filter(|ours| offers(ours));
        let both =
            both.chain(self.node.rdma.iter().filter(|_| offers(CAPABILITY_RDMA)).map(|_| &CAPABILITY_RDMA));
        let interval = self.node.config.ping_interval.as_millis();
        v1::Accepted {
            limits: Some(v1::ServerLimits::from(&self.node.limits)),
            capabilities: both.map(|name| (*name).to_owned()).collect(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.node.incarnation,
            tenant: tenant.to_owned(),
            ping_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
            shm: self
                .node
                .shm_socket
                .as_ref()
                .filter(|_| offers(CAPABILITY_SHM))
                .map(|socket| v1::ShmOffer { host_id: memkv_shm::socket::host_id(), socket: socket.clone() }),
            rdma: self.node.rdma.as_ref().filter(|_| offers(CAPABILITY_RDMA)).map(Nics::offer),
        }
    }

    /// Answers pings until the stream ends or has been silent for too long.
    async fn keep(&mut self, session: &Arc<Session>) -> Result<(), Fault> {
        let silence = self.node.config.ping_interval * SILENT_INTERVALS;
        let mut phases = self.node.phases();
        let mut duties = self.node.drain.duties();
        let mut told = v1::ServerState::Serving;
        loop {
            duties.mark_unchanged();
            if *phases.borrow_and_update() == Phase::Closing {
                return Err(Fault::Stopping);
            }
            let state = self.node.state();
            if state != told {
                let text = notice(state).to_owned();
                self.send(ToClient::Notice(v1::Notice { state: state.into(), text })).await?;
                told = state;
            }
            tokio::select! {
                message = timeout(silence, self.inbox.message()) => {
                    match message.map_err(|_| Fault::Silent)? {
                        Ok(Some(v1::ClientMessage { message: Some(FromClient::Ping(ping)) })) => {
                            self.send(ToClient::Pong(self.pong(ping, &session.tenant))).await?;
                        }
                        Ok(Some(v1::ClientMessage { message: Some(message) })) => self.rdma(session, message).await?,
                        Ok(Some(_)) => return Err(Fault::Invalid(Invalid::Missing("message"))),
                        Ok(None) | Err(_) => return Ok(()),
                    }
                }
                _changed = phases.changed() => {}
                _changed = duties.changed() => {}
                () = session.wait_ended() => return Err(Fault::Stopping),
                () = self.outbox.closed() => return Ok(()),
            }
        }
    }

    /// A pong; of the hot pages, it names those that the tenant may read.
    fn pong(&self, ping: v1::Ping, tenant: &Tenant) -> v1::Pong {
        let hot = self.node.hot.pages(self.node.clock.now_ms());
        let is_seen = |page: &&HotPage| tenant.find(&self.node.engine, page.space).readable().is_some();
        let hot: Vec<&HotPage> = hot.iter().filter(is_seen).collect();
        v1::Pong {
            sequence: ping.sequence,
            state: self.node.state().into(),
            members_epoch: crate::membership::epoch(&self.node),
            hot_digests: hot.iter().map(|page| page.digest).collect(),
            hot_copies: hot.iter().map(|page| page.copies).collect(),
        }
    }

    /// Messages about queue pairs and regions.
    async fn rdma(&self, session: &Arc<Session>, message: FromClient) -> Result<(), Fault> {
        let regions = &session.rdma.regions;
        let gauge = &self.node.metrics.rdma_regions;
        match message {
            FromClient::RdmaConnect(asked) => {
                let (node, session) = (Arc::clone(&self.node), Arc::clone(session));
                // Making and connecting a queue pair are calls of the driver that may take their time.
                let made =
                    tokio::task::spawn_blocking(move || rdma_session::connect(&node, &session, &asked));
                self.send(ToClient::RdmaConnected(made.await.map_err(|_| Fault::Stopping)?)).await
            }
            FromClient::RegisterRegion(asked) => {
                let region = asked.region;
                let added = if self.node.rdma.is_some() { regions.add(asked, gauge) } else { Err("no rdma") };
                let refused = added.err().unwrap_or_default().to_owned();
                self.send(ToClient::RegionRegistered(v1::RegionRegistered { region, refused })).await
            }
            FromClient::ForgetRegion(v1::ForgetRegion { region }) => {
                regions.remove(region, gauge);
                self.send(ToClient::RegionForgotten(v1::RegionForgotten { region })).await
            }
            FromClient::Hello(_) | FromClient::Proof(_) | FromClient::Ping(_) => {
                Err(Fault::Sequence("the session is open already"))
            }
        }
    }

    async fn receive(&mut self) -> Result<FromClient, Fault> {
        let message = self.inbox.message().await.map_err(|_| Fault::Broken)?.ok_or(Fault::Broken)?;
        message.message.ok_or(Fault::Invalid(Invalid::Missing("message")))
    }

    /// Sends a message; a client that does not read for too long counts as silent.
    async fn send(&self, message: ToClient) -> Result<(), Fault> {
        let message = Ok(v1::ServerMessage { message: Some(message) });
        let limit = self.node.config.stall_timeout;
        match timeout(limit, self.outbox.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Fault::Broken),
            Err(_) => Err(Fault::Silent),
        }
    }
}

/// What a state means to a client, for people.
fn notice(state: v1::ServerState) -> &'static str {
    match state {
        v1::ServerState::Unspecified | v1::ServerState::Serving => "the server takes new pages again",
        v1::ServerState::Stopping => "the server is stopping; use the other servers",
        v1::ServerState::Draining => "the server is being drained; store new pages on the other servers",
        v1::ServerState::Drained => "the server is drained; the other servers have its pages",
    }
}

/// Everything about a first message that must hold whoever sends it. Returns the protocol version that both speak.
pub(super) fn check_hello(hello: &v1::Hello) -> Result<u32, Fault> {
    let theirs = Versions { min: hello.protocol_min, max: hello.protocol_max };
    let protocol = VERSIONS.common(theirs).map_err(|none| Fault::Version { theirs, none })?;
    if hello.client_nonce.len() != SECRET_BYTES {
        return Err(Invalid::OutOfRange("client_nonce").into());
    }
    // Both or neither; whose a certificate is, the server knows.
    if !(hello.tenant.is_empty() && hello.key_id.is_empty()) {
        if !is_tenant_name(&hello.tenant) {
            return Err(Invalid::OutOfRange("tenant").into());
        }
        if !is_key_id(&hello.key_id) {
            return Err(Invalid::OutOfRange("key_id").into());
        }
    }
    if hello.client_name.len() > NAME_BYTES_MAX {
        return Err(Invalid::OutOfRange("client_name").into());
    }
    if hello.client_version.len() > NAME_BYTES_MAX {
        return Err(Invalid::OutOfRange("client_version").into());
    }
    Ok(protocol)
}
