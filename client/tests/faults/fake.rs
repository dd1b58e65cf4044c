//! A server in the test's own process that says what a test tells it to say.
//!
//! It speaks the session, `OpenSpace`, and the whole data plane, keeps pages in a map, and lets a test change or
//! withhold every reply. Deliberately absent: limits, deadlines, eviction, and everything else of a real server.

use memkv_core::page::key_digest;
use memkv_core::{Key, Limits, PageHasher, PageMeta, SpaceDescription};
use memkv_proto::v1;
use memkv_transport::auth::{AuthKey, SessionKey, SessionTranscript};
use memkv_transport::frame::{
    CAPABILITY_DIRECT, Code, FLAG_DIRECT, FLAG_EXACT, FLAG_PREFIX, HEADER_BYTES, Header, Op,
};
use memkv_transport::handshake::{self, ATTACH_BYTES, Attach, AttachStatus, PROOF_BYTES};
use memkv_transport::records::{self, PAGE_RECORD_BYTES};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// What the fake does in place of a reply.
pub(crate) enum Act {
    /// Sends these bytes and goes on.
    Send(Vec<u8>),
    /// Sends these bytes in parts of so many, with pauses between them, and goes on.
    SendParts(Vec<u8>, usize),
    /// Sends these bytes and closes the connection.
    SendAndClose(Vec<u8>),
    /// Answers nothing, and reads nothing more, until the client closes.
    Hang,
}

/// Keys to pages.
type Pages = HashMap<Vec<u8>, (Vec<u8>, PageMeta)>;

/// Turns the right reply (header, meta, body) to a request into what is sent.
pub(crate) type Script = Box<dyn Fn(Op, Vec<u8>) -> Act + Send + Sync>;

pub(crate) struct State {
    pub(crate) key: Option<AuthKey>,
    pub(crate) limits: Limits,
    pub(crate) script: Mutex<Script>,
    pub(crate) pages: Mutex<Pages>,
    /// Request frames so far, without pings.
    pub(crate) requests: watch::Sender<usize>,
    /// Data connections that have ended.
    pub(crate) ended: watch::Sender<usize>,
    /// Calls of OpenSpace so far.
    pub(crate) opened_spaces: watch::Sender<usize>,
    /// What it says that it can do, to new sessions.
    pub(crate) capabilities: Mutex<Vec<String>>,
    pub(crate) attached: AtomicUsize,
    /// Bytes of bodies that came.
    pub(crate) body_bytes: AtomicU64,
    /// While set, ops on pages are answered by `UnknownSpace`.
    pub(crate) forgetful: AtomicBool,
    /// The protocol version that it chooses; 0 if it has none in common with anybody.
    pub(crate) protocol: AtomicU32,
    sessions: Mutex<HashMap<[u8; 16], SessionKey>>,
    next_session: AtomicUsize,
}

pub(crate) struct Fake {
    pub(crate) state: Arc<State>,
    pub(crate) address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

pub(crate) fn honest() -> Script {
    Box::new(|_, reply| Act::Send(reply))
}

impl Fake {
    pub(crate) fn start() -> Self {
        Self::with(None, Limits::default())
    }

    pub(crate) fn with(key: Option<&str>, limits: Limits) -> Self {
        Self::listen(key, limits, "127.0.0.1:0".parse().unwrap())
    }

    /// A fake where another one was.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self::listen(None, Limits::default(), address)
    }

    fn listen(key: Option<&str>, limits: Limits, address: SocketAddr) -> Self {
        let state = Arc::new(State {
            key: key.map(|key| AuthKey::from_hex(key).unwrap()),
            limits,
            script: Mutex::new(honest()),
            pages: Mutex::default(),
            requests: watch::Sender::new(0),
            ended: watch::Sender::new(0),
            opened_spaces: watch::Sender::new(0),
            capabilities: Mutex::new(vec![CAPABILITY_DIRECT.to_owned()]),
            attached: AtomicUsize::new(0),
            body_bytes: AtomicU64::new(0),
            forgetful: AtomicBool::new(false),
            protocol: AtomicU32::new(1),
            sessions: Mutex::default(),
            next_session: AtomicUsize::new(1),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(accept(listener, state.clone()));
        Self { state, address, runtime: Some(runtime) }
    }

    pub(crate) fn script(&self, script: impl Fn(Op, Vec<u8>) -> Act + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Box::new(script);
    }

    pub(crate) fn be_honest(&self) {
        *self.state.script.lock().unwrap() = honest();
    }

    /// Stores a page as if a client had put it.
    pub(crate) fn store(&self, space: &SpaceDescription, key: &str, page: &[u8]) {
        let digest = key_digest(space.id(), Key::new(key.as_bytes()).unwrap());
        let checksum = PageHasher::oneshot(digest, page);
        let meta = PageMeta { len: page.len() as u32, codec: 0, flags: 0, checksum };
        self.state.pages.lock().unwrap().insert(key.as_bytes().to_vec(), (page.to_vec(), meta));
    }

    /// Waits until a counter of the fake has reached a number.
    pub(crate) fn wait_for(&self, counter: &watch::Sender<usize>, count: usize) {
        let mut counter = counter.subscribe();
        let reached = async move { counter.wait_for(|now| *now >= count).await.map(|_| ()) };
        let handle = self.runtime.as_ref().unwrap().handle();
        let limit = Duration::from_secs(20);
        let reached = handle.block_on(async move { tokio::time::timeout(limit, reached).await });
        reached.expect("the event comes").unwrap();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let (grpc, connections) = mpsc::channel::<std::io::Result<TcpStream>>(16);
    let control = Control(state.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(v1::session_server::SessionServer::new(control.clone()))
            .add_service(v1::kv_server::KvServer::new(control))
            .serve_with_incoming(ReceiverStream::new(connections)),
    );
    while let Ok((stream, _)) = listener.accept().await {
        let (grpc, state) = (grpc.clone(), state.clone());
        tokio::spawn(async move {
            let mut first = [0; 3];
            if stream.peek(&mut first).await.is_ok() && first == *b"PRI" {
                let _sent = grpc.send(Ok(stream)).await;
                return;
            }
            let _closed = data(stream, &state).await;
            state.ended.send_modify(|count| *count += 1);
        });
    }
}

#[derive(Clone)]
struct Control(Arc<State>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::session_server::Session for Control {
    type OpenStream = Answers<v1::ServerMessage>;

    async fn open(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        use v1::client_message::Message as Said;
        use v1::server_message::Message as Heard;
        let mut said = request.into_inner();
        let state = self.0.clone();
        let (hear, heard) = mpsc::channel(4);
        tokio::spawn(async move {
            let send =
                async |message| hear.send(Ok(v1::ServerMessage { message: Some(message) })).await.is_ok();
            let Some(Ok(v1::ClientMessage { message: Some(Said::Hello(hello)) })) = said.next().await else {
                return;
            };
            let protocol = state.protocol.load(SeqCst);
            if protocol == 0 {
                let text = "this server speaks protocol version 5 to 7, the client 1; upgrade the client";
                let _gone = hear.send(Err(Status::failed_precondition(text))).await;
                return;
            }
            let mut session_id = [0; 16];
            session_id[..8].copy_from_slice(&state.next_session.fetch_add(1, SeqCst).to_le_bytes());
            let key = state.key.clone().unwrap_or(AuthKey::open());
            let transcript = SessionTranscript {
                protocol_min: hello.protocol_min,
                protocol_max: hello.protocol_max,
                protocol,
                client_nonce: &hello.client_nonce,
                server_nonce: &[7; 32],
                session_id: &session_id,
                node_id: "fake",
                key_required: state.key.is_some(),
                identity: ("", ""),
                channel: &[],
            };
            let challenge = v1::Challenge {
                protocol,
                server_nonce: vec![7; 32],
                session_id: session_id.to_vec(),
                node_id: "fake".to_owned(),
                server_proof: transcript.server_proof(&key).to_vec(),
                key_required: state.key.is_some(),
            };
            send(Heard::Challenge(challenge)).await;
            let Some(Ok(v1::ClientMessage { message: Some(Said::Proof(proof)) })) = said.next().await else {
                return;
            };
            assert_eq!(proof.client_proof, transcript.client_proof(&key));
            state.sessions.lock().unwrap().insert(session_id, transcript.session_key(&key));
            let accepted = v1::Accepted {
                limits: Some((&state.limits).into()),
                ping_interval_ms: 1000,
                capabilities: state.capabilities.lock().unwrap().clone(),
                ..Default::default()
            };
            send(Heard::Accepted(accepted)).await;
            while let Some(Ok(message)) = said.next().await {
                if let Some(Said::Ping(ping)) = message.message {
                    let state = v1::ServerState::Serving.into();
                    let pong = v1::Pong { sequence: ping.sequence, state, ..v1::Pong::default() };
                    send(Heard::Pong(pong)).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(heard))))
    }
}

#[tonic::async_trait]
impl v1::kv_server::Kv for Control {
    type GetStream = Answers<v1::GetResponse>;

    async fn open_space(
        &self,
        request: Request<v1::OpenSpaceRequest>,
    ) -> Result<Response<v1::OpenSpaceResponse>, Status> {
        let space = SpaceDescription::try_from(request.into_inner().space.unwrap()).unwrap();
        self.0.opened_spaces.send_modify(|count| *count += 1);
        Ok(Response::new(v1::OpenSpaceResponse { space_id: space.id().0.to_vec() }))
    }

    async fn exists(&self, _: Request<v1::ExistsRequest>) -> Result<Response<v1::ExistsResponse>, Status> {
        Err(Status::unimplemented("the fake has only a data plane"))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        Err(Status::unimplemented("the fake has only a data plane"))
    }

    async fn put(&self, _: Request<Streaming<v1::PutRequest>>) -> Result<Response<v1::PutResponse>, Status> {
        Err(Status::unimplemented("the fake has only a data plane"))
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented("the fake has only a data plane"))
    }

    async fn touch(&self, _: Request<v1::TouchRequest>) -> Result<Response<v1::TouchResponse>, Status> {
        Err(Status::unimplemented("the fake has only a data plane"))
    }
}

/// One data connection.
async fn data(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut attach = [0; ATTACH_BYTES];
    stream.read_exact(&mut attach).await?;
    let attach = Attach::decode(&attach).unwrap();
    let key = state.sessions.lock().unwrap()[&attach.session_id].clone();
    stream.write_all(&attach.challenge(&key, &[9; 32])).await?;
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof).await?;
    attach.check(&key, &[9; 32], &proof).unwrap();
    stream.write_all(&handshake::welcome(AttachStatus::Ok)).await?;
    state.attached.fetch_add(1, SeqCst);
    let mut offers = HashMap::new();
    loop {
        let mut head = [0; HEADER_BYTES];
        stream.read_exact(&mut head).await?;
        let header = Header::decode(&head).unwrap();
        assert!(header.count <= state.limits.batch_keys_max);
        assert!(header.meta_len <= state.limits.frame_meta_bytes_max);
        let mut meta = vec![0; header.meta_len as usize];
        stream.read_exact(&mut meta).await?;
        header.verify(&head, &meta).unwrap();
        let mut body = vec![0; usize::try_from(header.body_len).unwrap()];
        stream.read_exact(&mut body).await?;
        state.body_bytes.fetch_add(header.body_len, SeqCst);
        let reply = answer(state, &header, &meta, &body, &mut offers);
        let act = if header.op == Op::Ping {
            Act::Send(reply)
        } else {
            let act = (state.script.lock().unwrap())(header.op, reply);
            state.requests.send_modify(|count| *count += 1);
            act
        };
        match act {
            Act::Send(bytes) => stream.write_all(&bytes).await?,
            Act::SendParts(bytes, part) => {
                stream.set_nodelay(true)?;
                for part in bytes.chunks(part) {
                    stream.write_all(part).await?;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Act::SendAndClose(bytes) => {
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Act::Hang => {
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                return Ok(());
            }
        }
    }
}

type Offers = HashMap<u64, Vec<(Vec<u8>, u64)>>;

/// The right reply.
fn answer(state: &State, header: &Header, meta: &[u8], body: &[u8], offers: &mut Offers) -> Vec<u8> {
    if state.forgetful.load(SeqCst) && header.op != Op::Ping {
        return Header::reply_to(header, Code::UnknownSpace, 0).encode(&[]).to_vec();
    }
    let mut pages = state.pages.lock().unwrap();
    let (mut out, mut out_body) = (Vec::new(), Vec::new());
    match header.op {
        Op::Exists | Op::Touch | Op::Delete => {
            let keys: Vec<_> =
                records::keys(meta, header.count).map(|key| key.unwrap().as_bytes().to_vec()).collect();
            let mut bits: Vec<bool> = keys.iter().map(|key| pages.contains_key(key)).collect();
            if header.flags & FLAG_PREFIX != 0 {
                let run = bits.iter().take_while(|bit| **bit).count();
                bits[run..].fill(false);
            }
            if header.op == Op::Delete {
                keys.iter().for_each(|key| drop(pages.remove(key)));
            }
            records::push_bitmap(&mut out, &bits);
        }
        Op::Get => {
            for wanted in records::wanted(meta, header.count) {
                let wanted = wanted.unwrap();
                let (code, meta) = match pages.get(wanted.key.as_bytes()) {
                    None => (Code::Miss, PageMeta::default()),
                    Some((page, meta)) => {
                        let exact = header.flags & FLAG_EXACT != 0 && meta.len != wanted.dst_len;
                        if exact || meta.len > wanted.dst_len {
                            (Code::SizeMismatch, *meta)
                        } else {
                            out_body.extend_from_slice(page);
                            (Code::Ok, *meta)
                        }
                    }
                };
                out.extend_from_slice(&records::page_record(code, meta));
            }
        }
        Op::Put => {
            let mut rest = body;
            let mut wanted = Vec::new();
            for offered in records::offered(meta, header.count) {
                let offered = offered.unwrap();
                let key = offered.key.as_bytes();
                let code = match key {
                    _ if pages.contains_key(key) => Code::Exists,
                    _ if key.starts_with(b"busy") => Code::Busy,
                    _ => Code::Want,
                };
                let page = (key.to_vec(), key_digest(header.space, offered.key));
                let code = if header.flags & FLAG_DIRECT != 0 {
                    let (own, others) = rest.split_at(PAGE_RECORD_BYTES + offered.len as usize);
                    rest = others;
                    if code == Code::Want {
                        Code::from_wire(take_pages(&mut pages, &[page], own)[0]).unwrap()
                    } else {
                        code
                    }
                } else {
                    if code == Code::Want {
                        wanted.push(page);
                    }
                    code
                };
                out.push(code as u8);
            }
            assert!(rest.is_empty());
            offers.insert(header.request_id, wanted);
        }
        Op::PutData => out = take_pages(&mut pages, &offers.remove(&header.request_id).unwrap(), body),
        Op::Ping | Op::Bind | Op::Release => {}
    }
    let count = if header.op == Op::PutData { out.len() } else { header.count as usize };
    let mut reply = Header::reply_to(header, Code::Ok, count as u32);
    reply.body_len = out_body.len() as u64;
    let mut bytes = reply.encode(&out).to_vec();
    bytes.extend_from_slice(&out);
    bytes.extend_from_slice(&out_body);
    bytes
}

/// Stores the pages of a put-data frame; every one must be what was offered.
fn take_pages(pages: &mut Pages, wanted: &[(Vec<u8>, u64)], mut body: &[u8]) -> Vec<u8> {
    let mut verdicts = Vec::new();
    for (key, digest) in wanted {
        let (record, rest) = body.split_first_chunk::<PAGE_RECORD_BYTES>().unwrap();
        let (code, meta) = records::read_page_record(record).unwrap();
        assert_eq!(code, Code::Ok);
        let (page, rest) = rest.split_at(meta.len as usize);
        assert_eq!(PageHasher::oneshot(*digest, page), meta.checksum, "the client sends what it hashed");
        pages.insert(key.clone(), (page.to_vec(), meta));
        verdicts.push(Code::Ok as u8);
        body = rest;
    }
    assert!(body.is_empty());
    verdicts
}
