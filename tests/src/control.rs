//! The gRPC plane, spoken directly and blocking: sessions, Kv, Admin.

use crate::random;
use crate::wire::DataConn;
use anyhow::{Context as _, bail, ensure};
use memkv_core::SpaceId;
use memkv_proto::{AUTH_METADATA, v1};
use memkv_transport::auth::{AuthKey, SessionKey, SessionTranscript};
use memkv_transport::tenant::ClientSecret;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gRPC channel, the key, and a runtime to drive both.
#[derive(Debug)]
pub struct Control {
    addr: SocketAddr,
    secret: Option<ClientSecret>,
    channel: Channel,
    runtime: Runtime,
}

impl Control {
    /// Connects. Without a key, calls carry no credential.
    ///
    /// # Errors
    ///
    /// If no connection can be made.
    pub fn connect(addr: SocketAddr, key: Option<AuthKey>) -> anyhow::Result<Self> {
        Self::connect_as(addr, key.map(ClientSecret::Cluster))
    }

    /// Connects with the key of a tenant, or any other.
    ///
    /// # Errors
    ///
    /// If no connection can be made.
    pub fn connect_as(addr: SocketAddr, secret: Option<ClientSecret>) -> anyhow::Result<Self> {
        Self::connect_from(std::net::Ipv4Addr::UNSPECIFIED, addr, secret)
    }

    /// Connects from an address of this host.
    ///
    /// # Errors
    ///
    /// If no connection can be made.
    pub fn connect_from(
        from: std::net::Ipv4Addr,
        addr: SocketAddr,
        secret: Option<ClientSecret>,
    ) -> anyhow::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().context("start a runtime")?;
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))?.connect_timeout(PATIENCE);
        let endpoint = endpoint.local_address((!from.is_unspecified()).then_some(from.into()));
        let channel = runtime.block_on(endpoint.connect()).context("connect to the gRPC port")?;
        Ok(Self { addr, secret, channel, runtime })
    }

    /// The channel, for services that this harness does not wrap.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Runs one call to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Runs a task beside the caller.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.runtime.spawn(future)
    }

    /// A request with the credential for `method`, for example `/memkv.v1.Kv/Get`.
    pub fn request<T>(&self, method: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        if let Some(secret) = &self.secret {
            let credential = secret.credential(method, unix_ms(), random());
            let value = credential.parse().expect("a credential is ASCII");
            request.metadata_mut().insert(AUTH_METADATA, value);
        }
        request
    }

    /// A client of the Kv service.
    #[must_use]
    pub fn kv(&self) -> v1::kv_client::KvClient<Channel> {
        v1::kv_client::KvClient::new(self.channel()).max_decoding_message_size(256 << 20)
    }

    /// A client of the Admin service.
    #[must_use]
    pub fn admin(&self) -> v1::admin_client::AdminClient<Channel> {
        v1::admin_client::AdminClient::new(self.channel()).max_decoding_message_size(256 << 20)
    }

    /// The server's status.
    ///
    /// # Errors
    ///
    /// The call's status.
    pub fn status(&self) -> Result<v1::GetStatusResponse, Status> {
        let request = self.request("/memkv.v1.Admin/GetStatus", v1::GetStatusRequest {});
        self.block_on(self.admin().get_status(request)).map(tonic::Response::into_inner)
    }

    /// Registers the space `name` and returns its identity.
    ///
    /// # Errors
    ///
    /// The call's status.
    ///
    /// # Panics
    ///
    /// If the name is no name or the server's identity is none.
    pub fn open_space(&self, name: &str) -> Result<SpaceId, Status> {
        let description = memkv_core::SpaceDescription::named(name).expect("tests use good names");
        let message = v1::OpenSpaceRequest { space: Some((&description).into()) };
        let request = self.request("/memkv.v1.Kv/OpenSpace", message);
        let response = self.block_on(self.kv().open_space(request))?.into_inner();
        Ok(memkv_proto::space_id_from_wire(&response.space_id).expect("a space id has 16 bytes"))
    }

    /// Stores pages through gRPC, each in messages of at most `chunk` bytes.
    ///
    /// # Errors
    ///
    /// The call's status.
    pub fn put(
        &self,
        space: SpaceId,
        pages: &[(&[u8], &[u8])],
        chunk: usize,
    ) -> Result<Vec<v1::Status>, Status> {
        let messages: Vec<_> =
            pages.iter().flat_map(|(key, page)| put_messages(space, key, page, chunk)).collect();
        let request = self.request("/memkv.v1.Kv/Put", tokio_stream::iter(messages));
        let response = self.block_on(self.kv().put(request))?.into_inner();
        Ok(response.statuses().collect())
    }

    /// Reads pages through gRPC; the page is empty unless the status is OK.
    ///
    /// # Errors
    ///
    /// The call's status.
    pub fn get(
        &self,
        space: SpaceId,
        keys: &[&[u8]],
        expected_bytes: &[u32],
    ) -> Result<Vec<(v1::Status, Vec<u8>)>, Status> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
        let mut out = vec![(v1::Status::Unspecified, Vec::new()); keys.len()];
        let message =
            v1::GetRequest { space_id: space.0.to_vec(), keys, expected_bytes: expected_bytes.to_vec() };
        let request = self.request("/memkv.v1.Kv/Get", message);
        self.block_on(async {
            let mut stream = self.kv().get(request).await?.into_inner();
            while let Some(response) = stream.message().await? {
                let (status, page) = &mut out[response.index as usize];
                if *status == v1::Status::Unspecified {
                    *status = response.status();
                }
                page.extend_from_slice(&response.data);
            }
            Ok(out)
        })
    }

    /// Opens a session.
    ///
    /// # Errors
    ///
    /// If the server refuses or does not know the key.
    pub fn session(&self) -> anyhow::Result<Session> {
        let hello = v1::Hello {
            protocol_min: memkv_proto::PROTOCOL_VERSION,
            protocol_max: memkv_proto::PROTOCOL_VERSION,
            client_nonce: random::<32>().to_vec(),
            client_name: "memkv-tests".into(),
            client_version: "0.0.0".into(),
            capabilities: vec!["tcp".into()],
            ..v1::Hello::default()
        };
        self.session_with(hello)
    }

    /// Opens a session with this hello.
    ///
    /// # Errors
    ///
    /// If the server refuses or does not know the key.
    pub fn session_with(&self, hello: v1::Hello) -> anyhow::Result<Session> {
        let key = self.secret.clone().unwrap_or_else(|| ClientSecret::Cluster(AuthKey::open()));
        self.block_on(async {
            let opening = open_session(self.addr, self.channel(), key, hello);
            tokio::time::timeout(PATIENCE, opening).await.context("the session did not open in time")?
        })
    }
}

/// The messages that put one page.
#[must_use]
pub fn put_messages(space: SpaceId, key: &[u8], page: &[u8], chunk: usize) -> Vec<v1::PutRequest> {
    let record = v1::PageRecord {
        len: u32::try_from(page.len()).unwrap_or(u32::MAX),
        checksum: crate::wire::checksum(space, key, page),
        codec: 0,
        flags: 0,
    };
    let mut chunks = page.chunks(chunk);
    let mut messages = vec![v1::PutRequest {
        space_id: space.0.to_vec(),
        key: key.to_vec(),
        record: Some(record),
        data: chunks.next().unwrap_or_default().to_vec().into(),
        position: 0,
    }];
    messages.extend(chunks.map(|chunk| v1::PutRequest { data: chunk.to_vec().into(), ..Default::default() }));
    messages
}

/// An open session; it ends when this goes away.
#[derive(Debug)]
pub struct Session {
    addr: SocketAddr,
    /// The session's name.
    pub id: [u8; 16],
    /// What binds data connections to it.
    pub key: SessionKey,
    /// What the server said.
    pub accepted: v1::Accepted,
    /// The server's node id.
    pub node_id: String,
    /// Keeps the request stream open.
    to_server: mpsc::Sender<v1::ClientMessage>,
    heard: std::sync::mpsc::Receiver<v1::server_message::Message>,
    pump: tokio::task::JoinHandle<()>,
    silent: Arc<AtomicBool>,
    pongs: Arc<Pongs>,
}

/// What the server's pongs said.
#[derive(Debug, Default)]
struct Pongs {
    count: AtomicU64,
    hot: AtomicU64,
}

impl Session {
    /// Opens a data connection.
    ///
    /// # Errors
    ///
    /// If the server refuses it.
    pub fn attach(&self) -> anyhow::Result<DataConn> {
        DataConn::attach(self.addr, self.id, &self.key)
    }

    /// Says something on the session's stream.
    ///
    /// # Errors
    ///
    /// If the stream has ended.
    pub fn say(&self, message: v1::client_message::Message) -> anyhow::Result<()> {
        self.to_server.blocking_send(v1::ClientMessage { message: Some(message) }).context("say")
    }

    /// What the server says next on the session's stream, pongs left out.
    ///
    /// # Errors
    ///
    /// If it says nothing, or the stream ends.
    pub fn hear(&self) -> anyhow::Result<v1::server_message::Message> {
        self.heard.recv_timeout(PATIENCE).context("hear")
    }

    /// How many pongs have come, and how many hot pages the last one named.
    #[must_use]
    pub fn pongs(&self) -> (u64, u64) {
        (self.pongs.count.load(Ordering::SeqCst), self.pongs.hot.load(Ordering::SeqCst))
    }

    /// Stops the pings but keeps the stream open, as a client does whose machine froze.
    #[must_use]
    pub fn fall_silent(self) -> Self {
        self.silent.store(true, Ordering::SeqCst);
        self
    }

    /// The same session behind another address, for example a proxy's.
    ///
    /// # Errors
    ///
    /// If the server refuses the connection.
    pub fn attach_via(&self, addr: SocketAddr) -> anyhow::Result<DataConn> {
        DataConn::attach(addr, self.id, &self.key)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

async fn open_session(
    addr: SocketAddr,
    channel: Channel,
    key: ClientSecret,
    mut hello: v1::Hello,
) -> anyhow::Result<Session> {
    let (to_server, outgoing) = mpsc::channel(8);
    let (tenant, key_id) = key.identity();
    (hello.tenant, hello.key_id) = (tenant.to_owned(), key_id.to_owned());
    let send = |message| v1::ClientMessage { message: Some(message) };
    to_server.send(send(v1::client_message::Message::Hello(hello.clone()))).await?;
    let mut client = v1::session_client::SessionClient::new(channel);
    let mut incoming = client.open(ReceiverStream::new(outgoing)).await?.into_inner();

    let first = incoming.message().await?.context("the stream ended before the challenge")?;
    let Some(v1::server_message::Message::Challenge(challenge)) = first.message else {
        bail!("expected a challenge, got {first:?}")
    };
    let transcript = SessionTranscript {
        protocol_min: hello.protocol_min,
        protocol_max: hello.protocol_max,
        protocol: challenge.protocol,
        client_nonce: &hello.client_nonce,
        server_nonce: &challenge.server_nonce,
        session_id: &challenge.session_id,
        node_id: &challenge.node_id,
        key_required: challenge.key_required,
        identity: key.identity(),
        channel: &[],
    };
    // A client would stop here if the server's proof is wrong; a test wants to see what the server says.
    let trusted = key.server_proof(&transcript)[..] == challenge.server_proof[..];
    let proof = v1::Proof { client_proof: key.client_proof(&transcript).to_vec() };
    to_server.send(send(v1::client_message::Message::Proof(proof))).await?;
    let second = incoming.message().await?.context("the stream ended before the answer to the proof")?;
    let Some(v1::server_message::Message::Accepted(accepted)) = second.message else {
        bail!("expected an acceptance, got {second:?}")
    };
    ensure!(trusted, "the server accepted a client whose key it does not know");

    let id = challenge.session_id[..].try_into().context("a session id has 16 bytes")?;
    let interval = Duration::from_millis(u64::from(accepted.ping_interval_ms.max(1)));
    let session_key = key.session_key(&transcript);
    let pinger = to_server.clone();
    let silent = Arc::new(AtomicBool::new(false));
    let quiet = silent.clone();
    let pongs = Arc::new(Pongs::default());
    let said = pongs.clone();
    // What a test does not listen to is dropped when there is too much of it.
    let (tell, heard) = std::sync::mpsc::sync_channel(64);
    let pump = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        let mut sequence = 0;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if quiet.load(Ordering::SeqCst) {
                        continue;
                    }
                    sequence += 1;
                    let ping = v1::client_message::Message::Ping(v1::Ping { sequence });
                    if pinger.send(v1::ClientMessage { message: Some(ping) }).await.is_err() {
                        return;
                    }
                }
                message = incoming.message() => match message {
                    Ok(Some(v1::ServerMessage { message: Some(v1::server_message::Message::Pong(pong)) })) => {
                        said.hot.store(pong.hot_digests.len() as u64, Ordering::SeqCst);
                        said.count.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(Some(message)) => {
                        if let Some(message) = message.message {
                            drop(tell.try_send(message));
                        }
                    }
                    Ok(None) | Err(_) => return,
                },
            }
        }
    });
    let node_id = challenge.node_id.clone();
    Ok(Session { addr, id, key: session_key, accepted, node_id, to_server, heard, pump, silent, pongs })
}

/// The clock, in Unix milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
