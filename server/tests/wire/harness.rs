//! A server inside the test's process, and clients that speak the wire by hand: nothing here is the client crate, so
//! both sides are checked against the documents and not against each other.

use memkv_core::page::key_digest;
use memkv_core::{Key, PageHasher, PageMeta, SpaceDescription, SpaceId};
use memkv_proto::v1;
use memkv_proto::v1::client_message::Message as FromClient;
use memkv_proto::v1::server_message::Message as FromServer;
use memkv_server::config::{Config, command};
use memkv_server::{Server, Stopped};
use memkv_transport::auth::{AuthKey, Credential, SessionKey, SessionTranscript, same_secret};
use memkv_transport::frame::{Code, FLAG_DIRECT, HEADER_BYTES, Header, Op};
use memkv_transport::handshake::{Attach, AttachError, CHALLENGE_BYTES, WELCOME_BYTES, read_status};
use memkv_transport::records;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

pub(crate) const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// No test waits longer for anything.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A running server with its own small store.
pub(crate) struct Fixture {
    server: Option<Server>,
    pub(crate) runtime: Runtime,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) key: Option<AuthKey>,
}

impl Fixture {
    pub(crate) fn open(flags: &[&str]) -> Self {
        Self::start(flags, None)
    }

    pub(crate) fn with_key(flags: &[&str]) -> Self {
        Self::start(flags, Some(KEY))
    }

    fn start(flags: &[&str], key: Option<&str>) -> Self {
        let line = ["memkv-server", "--listen", "127.0.0.1:0", "--dram", "128MiB", "--data-threads", "2"];
        let args = command().try_get_matches_from(line.iter().chain(flags)).unwrap();
        let env = key.map(|key| ("MEMKV_SERVER_AUTH_KEY".to_owned(), key.to_owned()));
        let server = Server::start(Config::load(&args, env).unwrap().config).unwrap();
        Self {
            address: server.address(),
            admin: server.admin_address(),
            server: Some(server),
            runtime: Runtime::new().unwrap(),
            key: key.map(|key| AuthKey::from_hex(key).unwrap()),
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        self.runtime.block_on(endpoint.connect()).unwrap()
    }

    pub(crate) fn session(&self) -> OpenSession {
        self.try_session(self.key.as_ref()).unwrap()
    }

    pub(crate) fn try_session(&self, key: Option<&AuthKey>) -> Result<OpenSession, Status> {
        let key = key.cloned().unwrap_or_else(AuthKey::open);
        self.runtime.block_on(OpenSession::open(self.channel(), &key, |_| {}))
    }

    /// A data connection of a fresh session.
    pub(crate) fn wire(&self) -> (OpenSession, Wire) {
        let session = self.session();
        let wire = self.attach(&session).unwrap();
        (session, wire)
    }

    pub(crate) fn attach(&self, session: &OpenSession) -> Result<Wire, AttachError> {
        Wire::attach(self.address, session.id, &session.key)
    }

    /// A request with a fresh credential for `method`, if there is a key.
    pub(crate) fn call<T>(&self, method: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = &self.key {
            request.metadata_mut().insert("memkv-auth", credential(key, method));
        }
        request
    }

    pub(crate) fn open_space(&self, name: &str) -> SpaceId {
        let description = SpaceDescription::named(name).unwrap();
        let request = v1::OpenSpaceRequest { space: Some((&description).into()) };
        let request = self.call("/memkv.v1.Kv/OpenSpace", request);
        let mut kv = v1::kv_client::KvClient::new(self.channel());
        let response = self.runtime.block_on(kv.open_space(request)).unwrap().into_inner();
        assert_eq!(response.space_id, description.id().0);
        description.id()
    }

    pub(crate) fn status(&self) -> v1::GetStatusResponse {
        let request = self.call("/memkv.v1.Admin/GetStatus", v1::GetStatusRequest {});
        let mut admin = v1::admin_client::AdminClient::new(self.channel());
        self.runtime.block_on(admin.get_status(request)).unwrap().into_inner()
    }

    pub(crate) fn inspect(&self, space: SpaceId, key: &[u8], verify: bool) -> v1::InspectKeyResponse {
        let request = v1::InspectKeyRequest { space_id: space.0.to_vec(), key: key.to_vec(), verify };
        let request = self.call("/memkv.v1.Admin/InspectKey", request);
        let mut admin = v1::admin_client::AdminClient::new(self.channel());
        self.runtime.block_on(admin.inspect_key(request)).unwrap().into_inner()
    }

    /// Asks for the status until it is as wanted.
    pub(crate) fn wait_status(&self, what: &str, wanted: impl Fn(&v1::GetStatusResponse) -> bool) {
        let deadline = std::time::Instant::now() + LONG;
        loop {
            let status = self.status();
            if wanted(&status) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "never saw {what}: {status:?}");
            std::thread::yield_now();
        }
    }

    /// One page of the admin HTTP server: status line and everything.
    pub(crate) fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn take_server(&mut self) -> Server {
        self.server.take().unwrap()
    }

    pub(crate) fn stop(&mut self) -> Stopped {
        self.take_server().stop(std::future::pending())
    }
}

pub(crate) fn credential(key: &AuthKey, method: &str) -> MetadataValue<tonic::metadata::Ascii> {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let mut nonce = [7; 16];
    nonce[..8].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_millis()).unwrap();
    Credential::new(key, method, now, nonce).to_string().parse().unwrap()
}

/// The client's end of a session.
pub(crate) struct OpenSession {
    pub(crate) id: [u8; 16],
    pub(crate) key: SessionKey,
    pub(crate) accepted: v1::Accepted,
    pub(crate) challenge: v1::Challenge,
    pub(crate) outbox: mpsc::Sender<v1::ClientMessage>,
    pub(crate) inbox: Streaming<v1::ServerMessage>,
}

impl OpenSession {
    /// Opens a session; `change` may spoil the hello.
    pub(crate) async fn open(
        channel: Channel,
        key: &AuthKey,
        change: impl FnOnce(&mut v1::Hello),
    ) -> Result<Self, Status> {
        let mut hello = v1::Hello {
            protocol_min: 1,
            protocol_max: 1,
            client_nonce: vec![9; 32],
            client_name: "wire test".to_owned(),
            client_version: "0".to_owned(),
            capabilities: vec!["tcp".to_owned(), "rdma".to_owned()],
            ..v1::Hello::default()
        };
        change(&mut hello);
        let (outbox, messages) = mpsc::channel(8);
        let mut client = v1::session_client::SessionClient::new(channel);
        outbox.send(message(FromClient::Hello(hello.clone()))).await.unwrap();
        let mut inbox = client.open(ReceiverStream::new(messages)).await?.into_inner();
        let Some(FromServer::Challenge(challenge)) = next(&mut inbox).await? else { panic!("no challenge") };
        let transcript = SessionTranscript {
            protocol_min: hello.protocol_min,
            protocol_max: hello.protocol_max,
            protocol: challenge.protocol,
            client_nonce: &hello.client_nonce,
            server_nonce: &challenge.server_nonce,
            session_id: &challenge.session_id,
            node_id: &challenge.node_id,
            key_required: challenge.key_required,
            identity: ("", ""),
            channel: &[],
        };
        let server_knows_key = same_secret(&challenge.server_proof, &transcript.server_proof(key));
        let client_proof = transcript.client_proof(key).to_vec();
        outbox.send(message(FromClient::Proof(v1::Proof { client_proof }))).await.unwrap();
        let Some(FromServer::Accepted(accepted)) = next(&mut inbox).await? else { panic!("not accepted") };
        assert!(server_knows_key, "accepted, although the server does not know the key");
        let id = challenge.session_id.clone().try_into().unwrap();
        let key = transcript.session_key(key);
        Ok(Self { id, key, accepted, challenge, outbox, inbox })
    }
}

pub(crate) fn message(message: FromClient) -> v1::ClientMessage {
    v1::ClientMessage { message: Some(message) }
}

/// The next message; `None` at the end of the stream.
pub(crate) async fn next(inbox: &mut Streaming<v1::ServerMessage>) -> Result<Option<FromServer>, Status> {
    let message = tokio::time::timeout(LONG, inbox.message()).await.expect("the server says something")?;
    Ok(message.and_then(|message| message.message))
}

/// A reply, whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) header: Header,
    pub(crate) meta: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// A data connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    last_id: u64,
}

impl Wire {
    pub(crate) fn attach(
        address: SocketAddr,
        session_id: [u8; 16],
        key: &SessionKey,
    ) -> Result<Self, AttachError> {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_nodelay(true).unwrap();
        let attach = Attach { session_id, client_nonce: [4; 32] };
        stream.write_all(&attach.encode()).unwrap();
        let mut challenge = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut challenge).unwrap();
        stream.write_all(&attach.answer(key, &challenge)?).unwrap();
        let mut welcome = [0; WELCOME_BYTES];
        stream.read_exact(&mut welcome).unwrap();
        read_status(&welcome)?;
        Ok(Self { stream, last_id: 0 })
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn send(&mut self, header: &Header, meta: &[u8], body: &[u8]) {
        self.stream.write_all(&frame(header, meta, body)).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Reply {
        let mut bytes = [0; HEADER_BYTES];
        self.stream.read_exact(&mut bytes).unwrap();
        let header = Header::decode(&bytes).unwrap();
        let mut meta = vec![0; header.meta_len as usize];
        self.stream.read_exact(&mut meta).unwrap();
        header.verify(&bytes, &meta).unwrap();
        assert!(header.reply);
        let mut body = vec![0; usize::try_from(header.body_len).unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        Reply { header, meta, body }
    }

    pub(crate) fn ask(&mut self, header: &Header, meta: &[u8]) -> Reply {
        self.send(header, meta, b"");
        let reply = self.receive();
        assert_eq!((reply.header.request_id, reply.header.op), (header.request_id, header.op));
        reply
    }

    /// Exists, touch or delete.
    pub(crate) fn presence(&mut self, op: Op, flags: u16, space: SpaceId, keys: &[&[u8]]) -> Vec<bool> {
        let mut meta = Vec::new();
        keys.iter().for_each(|key| records::push_key(&mut meta, Key::new(key).unwrap()));
        let mut header = Header::request(op, self.id(), space, keys.len() as u32);
        header.flags = flags;
        let reply = self.ask(&header, &meta);
        assert_eq!((reply.header.status, reply.header.count), (Code::Ok, keys.len() as u32));
        let mut found = vec![false; keys.len()];
        records::read_bitmap(&reply.meta, &mut found).unwrap();
        found
    }

    pub(crate) fn exists(&mut self, space: SpaceId, key: &[u8]) -> bool {
        self.presence(Op::Exists, 0, space, &[key])[0]
    }

    /// Offers pages and sends those that are wanted; returns the final verdict of each.
    pub(crate) fn put(&mut self, space: SpaceId, pages: &[(&[u8], &[u8])]) -> Vec<Code> {
        let (header, meta) = self.offer(space, pages);
        let reply = self.ask(&header, &meta);
        assert_eq!(reply.header.status, Code::Ok, "{}", String::from_utf8_lossy(&reply.meta));
        let mut codes: Vec<_> = reply.meta.iter().map(|code| Code::from_wire(*code).unwrap()).collect();
        let wanted: Vec<_> = (0..pages.len()).filter(|i| codes[*i] == Code::Want).collect();
        if wanted.is_empty() {
            return codes;
        }
        let chosen: Vec<_> = wanted.iter().map(|i| pages[*i]).collect();
        let (header, body) = put_data(space, header.request_id, &chosen);
        self.send(&header, b"", &body);
        let reply = self.receive();
        assert_eq!(reply.header.status, Code::Ok);
        for (at, code) in wanted.iter().zip(&reply.meta) {
            codes[*at] = Code::from_wire(*code).unwrap();
        }
        codes
    }

    pub(crate) fn offer(&mut self, space: SpaceId, pages: &[(&[u8], &[u8])]) -> (Header, Vec<u8>) {
        let mut meta = Vec::new();
        for (key, page) in pages {
            records::push_offered(&mut meta, page.len() as u32, 0, Key::new(key).unwrap());
        }
        (Header::request(Op::Put, self.id(), space, pages.len() as u32), meta)
    }

    /// Gets pages into rooms of the given sizes.
    pub(crate) fn get(
        &mut self,
        space: SpaceId,
        flags: u16,
        wanted: &[(&[u8], u32)],
    ) -> Vec<(Code, PageMeta, Vec<u8>)> {
        let (header, meta) = self.get_request(space, flags, wanted);
        let reply = self.ask(&header, &meta);
        assert_eq!(reply.header.status, Code::Ok);
        split_pages(&reply)
    }

    pub(crate) fn get_request(
        &mut self,
        space: SpaceId,
        flags: u16,
        wanted: &[(&[u8], u32)],
    ) -> (Header, Vec<u8>) {
        let mut meta = Vec::new();
        for (key, room) in wanted {
            records::push_wanted(&mut meta, *room, Key::new(key).unwrap());
        }
        let mut header = Header::request(Op::Get, self.id(), space, wanted.len() as u32);
        header.flags = flags;
        (header, meta)
    }

    /// Waits until the server has closed the connection; ignores what it still sends.
    pub(crate) fn wait_closed(&mut self) {
        let mut scratch = [0; 4096];
        loop {
            match self.stream.read(&mut scratch) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the connection is not closed: {error}"),
            }
        }
    }

    /// A last reply with this status, then the end.
    pub(crate) fn expect_refused(&mut self, status: Code) -> String {
        let reply = self.receive();
        assert_eq!(reply.header.status, status, "{}", String::from_utf8_lossy(&reply.meta));
        assert_eq!((reply.header.count, reply.body.len()), (0, 0));
        // What we send after it may meet a closed socket.
        let _late = self.stream.shutdown(Shutdown::Write);
        self.wait_closed();
        String::from_utf8(reply.meta).unwrap()
    }
}

/// A frame's bytes.
pub(crate) fn frame(header: &Header, meta: &[u8], body: &[u8]) -> Vec<u8> {
    let mut header = *header;
    header.body_len = body.len() as u64;
    [&header.encode(meta), meta, body].concat()
}

/// The put-data frame's header and body for these pages.
pub(crate) fn put_data(space: SpaceId, request_id: u64, pages: &[(&[u8], &[u8])]) -> (Header, Vec<u8>) {
    let mut body = Vec::new();
    for (key, page) in pages {
        body.extend_from_slice(&records::page_record(Code::Ok, meta_of(space, key, page)));
        body.extend_from_slice(page);
    }
    (Header::request(Op::PutData, request_id, space, pages.len() as u32), body)
}

/// A put that brings its pages along.
pub(crate) fn direct_put(space: SpaceId, id: u64, pages: &[(&[u8], &[u8])]) -> (Header, Vec<u8>, Vec<u8>) {
    let mut meta = Vec::new();
    for (key, page) in pages {
        records::push_offered(&mut meta, page.len() as u32, 0, Key::new(key).unwrap());
    }
    let (_, body) = put_data(space, id, pages);
    let mut header = Header::request(Op::Put, id, space, pages.len() as u32);
    header.flags = FLAG_DIRECT;
    (header, meta, body)
}

pub(crate) fn meta_of(space: SpaceId, key: &[u8], page: &[u8]) -> PageMeta {
    let digest = key_digest(space, Key::new(key).unwrap());
    let meta = PageMeta { len: page.len() as u32, codec: 3, flags: 5, checksum: 0 };
    PageMeta { checksum: meta.checksum_of(PageHasher::oneshot(digest, page)), ..meta }
}

/// The page records and pages of a get's reply.
pub(crate) fn split_pages(reply: &Reply) -> Vec<(Code, PageMeta, Vec<u8>)> {
    let mut body = &reply.body[..];
    let mut pages = Vec::new();
    for record in reply.meta.chunks(records::PAGE_RECORD_BYTES) {
        let (code, meta) = records::read_page_record(record.try_into().unwrap()).unwrap();
        let len = if code == Code::Ok { meta.len as usize } else { 0 };
        let (page, rest) = body.split_at(len);
        body = rest;
        pages.push((code, meta, page.to_vec()));
    }
    assert!(body.is_empty());
    assert_eq!(pages.len(), reply.header.count as usize);
    pages
}

/// A page whose bytes depend on `seed`.
pub(crate) fn page(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
