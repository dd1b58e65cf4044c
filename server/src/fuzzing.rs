//! Ways into the server for the fuzzer: a data connection without ports, and the configuration without files.
//!
//! A [`Stand`] is a whole small server to which connections are handed as ends of pairs of sockets. After each talk it looks for
//! what a connection may not leave behind.
//!
//! Deliberately absent: gRPC, whose messages are tried on their own.

use crate::app::Server;
use crate::config::Config;
use crate::data::{Wire, serve};
use crate::sessions::{Registered, Session};
use crate::tenants::Tenant;
use crate::tenants::tenant::{Proven, Shares};
use memkv_core::{Limits, SpaceDescription, SpaceId};
use memkv_storage::Space;
use memkv_transport::auth::{AuthKey, SessionTranscript};
use memkv_transport::handshake::{ATTACH_BYTES, Attach, CHALLENGE_BYTES, PREFACE};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// How long a talk may take whose peer says all it has to say and then closes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A small server.
pub struct Stand {
    /// Copying much from shared memory is only allowed on a runtime with threads.
    runtime: Runtime,
    server: Server,
    space: Arc<Space>,
    session: Registered,
}

impl Stand {
    /// Memory for a few pages, one session, and one open space.
    ///
    /// # Panics
    ///
    /// If the system has no memory, ports or threads left.
    #[must_use]
    pub fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let limits = Limits {
            page_bytes_max: 64 << 10,
            batch_keys_max: 64,
            frame_meta_bytes_max: 64 << 10,
            ..Limits::default()
        };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = Config {
            listen,
            admin_listen: Some(listen),
            dram_bytes: 16 << 20,
            data_threads: 1,
            limits,
            ..Config::default()
        };
        let server = Server::start(config).expect("the system has 16 MiB and two ports");
        let description = SpaceDescription::named("fuzz").expect("the name is short");
        let space = server.node().engine.open_space(description).expect("it is the first space");
        let session = server.node().sessions.register(session());
        Self { runtime: runtime.expect("the system has threads"), server, space, session }
    }

    /// The space that is open.
    #[must_use]
    pub fn space(&self) -> SpaceId {
        self.space.id()
    }

    /// Says `pieces` on a new connection, each in a write of its own, and closes. Returns what the server said.
    ///
    /// With `attached` the handshake has succeeded before the first piece; without it the pieces begin right behind the
    /// connection's first eight bytes.
    ///
    /// # Panics
    ///
    /// If the connection does not end, or leaves anything behind.
    pub fn talk(&self, pieces: &[Vec<u8>], attached: bool) -> Vec<u8> {
        let said = self.runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().expect("the system has sockets");
            let server = serve(Arc::clone(self.server.node()), Wire::near(theirs));
            let client = self.say(ours, pieces, attached);
            let both = async { tokio::join!(client, server).0 };
            tokio::time::timeout(PATIENCE, both).await.expect("a connection ends when its peer closes")
        });
        assert_eq!(self.session.session.connections(), 0, "the place in the session is given back");
        assert_eq!(self.server.node().in_flight.count(), 0, "no request is in flight");
        assert_eq!(
            self.server.node().metrics.data_connections.load(Ordering::Relaxed),
            0,
            "no connection is counted"
        );
        self.server.node().engine.clear(&self.space);
        let held = self.server.node().engine.status();
        assert_eq!(held.used_slot_bytes, 0, "no slot is held");
        said
    }

    async fn say(&self, stream: UnixStream, pieces: &[Vec<u8>], attached: bool) -> Vec<u8> {
        let (mut reader, mut writer) = stream.into_split();
        if attached && self.attach(&mut reader, &mut writer).await.is_err() {
            unreachable!("the server refused a right handshake");
        }
        let write = async move {
            for piece in pieces {
                if writer.write_all(piece).await.is_err() {
                    break;
                }
                // The server sees this piece before the next one comes.
                tokio::task::yield_now().await;
            }
            drop(writer);
        };
        let read = async {
            let mut said = Vec::new();
            // An error is an end as well.
            let _end = reader.read_to_end(&mut said).await;
            said
        };
        tokio::join!(write, read).1
    }

    async fn attach(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let session = &self.session.session;
        let attach = Attach { session_id: session.id, client_nonce: [3; 32] };
        let hello: [u8; ATTACH_BYTES] = attach.encode();
        writer.write_all(&hello[PREFACE.len()..]).await?;
        let mut challenge = [0; CHALLENGE_BYTES];
        reader.read_exact(&mut challenge).await?;
        let proof = attach.answer(&session.key, &challenge).map_err(io::Error::other)?;
        writer.write_all(&proof).await?;
        let mut welcome = [0; memkv_transport::handshake::WELCOME_BYTES];
        reader.read_exact(&mut welcome).await?;
        memkv_transport::handshake::read_status(&welcome).map_err(io::Error::other)
    }
}

impl Default for Stand {
    fn default() -> Self {
        Self::new()
    }
}

fn session() -> Session {
    let transcript = SessionTranscript {
        protocol_min: 1,
        protocol_max: 1,
        protocol: 1,
        client_nonce: &[1; 32],
        server_nonce: &[2; 32],
        session_id: &[5; 16],
        node_id: "fuzz",
        key_required: false,
        identity: ("", ""),
        channel: &[],
    };
    let key = transcript.session_key(&AuthKey::open());
    let owner = (Arc::new(Tenant::cluster(false, Shares::default())), Proven::Cluster);
    Session::new([5; 16], key, ("fuzz".to_owned(), String::new()), owner, None, 0)
}

/// Reads a configuration file's text as the daemon does at its start; says whether it could start with it.
#[must_use]
pub fn read_config(text: &str) -> bool {
    let mut config = Config::default();
    let mut warnings = Vec::new();
    let read = config.merge_text("fuzz", text, &mut warnings).and_then(|()| config.check());
    read.is_ok() && !config.to_line().is_empty() && !config.to_yaml().is_empty()
}

/// Reads a client's message about opening a session as the session's service does.
#[must_use]
pub fn read_hello(hello: &memkv_proto::v1::Hello) -> bool {
    crate::control::is_acceptable(hello)
}

/// Reads a client's message about its memory as the session's service does; `None` if it makes no sense, else whether pages
/// may move to or from `len` bytes at `offset`.
#[must_use]
pub fn read_region(message: memkv_proto::v1::RegisterRegion, offset: u64, len: u32) -> Option<bool> {
    crate::data::reads_region(message, offset, len)
}
