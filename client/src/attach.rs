//! Opens the data connections of a session, by the best way that works.

use crate::backoff::random_jitter;
use crate::config::Transport;
use crate::link::Link;
use crate::mover::Bound;
use crate::outcome;
use crate::rdma::RdmaSession;
use crate::server::Server;
use crate::session::{no_answer, protocol, random};
use crate::tls::{self, Stream, Tls};
use crate::way::Way;
use crate::wire::Wire;
use crate::{Error, ErrorKind};
use memkv_core::Limits;
use memkv_proto::v1;
use memkv_tls::{CHANNEL_BYTES, Plane};
use memkv_transport::auth::SessionKey;
use memkv_transport::frame::{Code, HEADER_BYTES, Header, Mover, Op};
use memkv_transport::handshake::{self, Attach, AttachError, AttachStatus};
use memkv_transport::{near, records};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::timeout;

/// What it takes to open a data connection of a session.
#[derive(Clone)]
pub(crate) struct Attacher {
    pub(crate) server: Arc<Server>,
    pub(crate) transport: Transport,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) session_id: [u8; 16],
    pub(crate) key: SessionKey,
    pub(crate) limits: Limits,
    pub(crate) generation: u64,
    /// The server's life.
    pub(crate) incarnation: u64,
    /// Where to connect on the server's own host.
    pub(crate) shm: Option<v1::ShmOffer>,
    pub(crate) timeout: Duration,
    pub(crate) user_timeout: Duration,
    /// Pages by RDMA, if both sides have it.
    pub(crate) rdma: Option<Arc<RdmaSession>>,
    /// TLS, if the client speaks it.
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Attacher {
    /// Opens one data connection, by the best way that works.
    pub(crate) async fn attach(&self) -> Result<Box<Link>, Error> {
        let mut last = no_answer(self.timeout);
        for way in self.server.ways.due(self.transport, Instant::now()) {
            match self.attach_by(way).await {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Opens one data connection by a better way than the present ones have, if one works by now.
    pub(crate) async fn climb(&self) -> Option<Box<Link>> {
        let present = self.server.pool.best();
        for way in self.server.ways.due(self.transport, Instant::now()).filter(|way| *way > present) {
            if let Ok(link) = self.attach_by(way).await {
                tracing::info!(server = %self.server.address.id, %way, "pages take a better way again");
                return Some(link);
            }
        }
        None
    }

    async fn attach_by(&self, way: Way) -> Result<Box<Link>, Error> {
        let attached = timeout(self.timeout, async {
            match way {
                #[cfg(feature = "sim")]
                Way::Tcp if self.server.net.get().is_some() => crate::sim::attach(self, false).await,
                Way::Tcp => self.tcp_link(self.handshake().await?),
                Way::Shm => crate::shm::attach(self).await,
                Way::Rdma => crate::rdma::attach(self).await,
            }
        });
        let attached = attached.await.unwrap_or_else(|_| Err(no_answer(self.timeout)));
        match &attached {
            Ok(_) => self.server.ways.worked(way),
            // That TCP does not work says nothing about the way pages take.
            Err(_) if way == Way::Tcp => {}
            Err(error) => {
                let lasting = error.kind() == ErrorKind::NotSupported;
                let (text, now) = (error.to_string(), Instant::now());
                if self.server.ways.failed(way, &text, lasting, now, random_jitter()) {
                    tracing::info!(server = %self.server.address.id, %way, reason = text, "pages take another way");
                }
            }
        }
        attached
    }

    /// Opens one data connection and sees whether the server answers a request on it.
    pub(crate) async fn probe(&self) -> Result<Box<Link>, Error> {
        #[cfg(feature = "sim")]
        if self.server.net.get().is_some() {
            let attached = timeout(self.timeout, crate::sim::attach(self, true)).await;
            return attached.unwrap_or_else(|_| Err(no_answer(self.timeout)));
        }
        let ping = async {
            let mut stream = self.handshake().await?;
            self.ping(&mut stream).await?;
            Ok(stream)
        };
        let stream = timeout(self.timeout, ping).await.map_err(|_| no_answer(self.timeout))??;
        match self.server.ways.due(self.transport, Instant::now()).next() {
            Some(Way::Tcp) => self.tcp_link(stream),
            _ => self.attach().await,
        }
    }

    /// Sees whether the server answers a request.
    pub(crate) async fn ping<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> Result<(), Error> {
        let request = Header::request(Op::Ping, u64::MAX, Default::default(), 0).encode(&[]);
        stream.write_all(&request).await.map_err(broken)?;
        let mut reply = [0; HEADER_BYTES];
        stream.read_exact(&mut reply).await.map_err(broken)?;
        pong(&reply)
    }

    fn tcp_link(&self, stream: Stream) -> Result<Box<Link>, Error> {
        Ok(self.link(stream.into_wire().map_err(broken)?, Bound::None))
    }

    /// A connection of this session.
    pub(crate) fn link(&self, stream: Wire, mover: Bound) -> Box<Link> {
        Box::new(Link::new(stream, mover, self.limits, self.generation))
    }

    /// Opens one data connection over TCP and has the server tie a mover to it.
    pub(crate) async fn bound(&self, mover: Mover, token: &[u8; 16]) -> Result<Wire, Error> {
        let mut stream = self.handshake().await?;
        let meta = records::bind(mover, token);
        let mut request = Header::request(Op::Bind, u64::MAX, Default::default(), 0);
        request.deadline_ms = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        let mut frame = request.encode(&meta).to_vec();
        frame.extend_from_slice(&meta);
        stream.write_all(&frame).await.map_err(broken)?;
        let mut reply = [0; HEADER_BYTES];
        stream.read_exact(&mut reply).await.map_err(broken)?;
        bound(&reply, mover)?;
        stream.into_wire().map_err(broken)
    }

    async fn handshake(&self) -> Result<Stream, Error> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(broken)?;
        self.set_options(&stream).map_err(broken)?;
        let mut stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let secured = tls.secure(Plane::Data, &self.host, stream).await;
                secured.map_err(|error| tls::explain(broken(error)))?
            }
        };
        let channel = stream.channel();
        self.join_through(&mut stream, channel).await?;
        Ok(stream)
    }

    /// Joins the session: the handshake of a data connection in plain text.
    pub(crate) async fn join<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> Result<(), Error> {
        self.join_through(stream, None).await
    }

    /// Joins the session on a connection of which, with TLS, only its two ends know something.
    async fn join_through<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        channel: Option<[u8; CHANNEL_BYTES]>,
    ) -> Result<(), Error> {
        let attach = Attach { session_id: self.session_id, client_nonce: random()? };
        let key = handshake::key_on(&self.key, channel.as_ref());
        stream.write_all(&attach.encode()).await.map_err(broken)?;
        let mut challenge = [0; handshake::CHALLENGE_BYTES];
        stream.read_exact(&mut challenge).await.map_err(broken)?;
        let proof = attach.answer(&key, &challenge).map_err(attach_error)?;
        stream.write_all(&proof).await.map_err(broken)?;
        let mut welcome = [0; handshake::WELCOME_BYTES];
        stream.read_exact(&mut welcome).await.map_err(broken)?;
        handshake::read_status(&welcome).map_err(attach_error)
    }

    fn set_options(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = socket2::SockRef::from(stream);
        if near::is_near(stream.local_addr()?, stream.peer_addr()?) {
            socket.set_send_buffer_size(near::SEND_BYTES)?;
        }
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))
    }
}

/// Reads the reply to a ping.
pub(crate) fn pong(reply: &[u8; HEADER_BYTES]) -> Result<(), Error> {
    let header = Header::decode(reply).map_err(|error| protocol(&error.to_string()))?;
    header.verify(reply, &[]).map_err(|error| protocol(&error.to_string()))?;
    if header.op != Op::Ping || header.status != Code::Ok {
        let outcome = outcome::from_code(header.op, header.status);
        return Err(Error::new(ErrorKind::Unavailable, format!("a ping was answered by {outcome:?}")));
    }
    Ok(())
}

/// Reads the reply to a bind that passes nothing back.
pub(crate) fn bound(reply: &[u8; HEADER_BYTES], mover: Mover) -> Result<(), Error> {
    let header = Header::decode(reply).map_err(|error| protocol(&error.to_string()))?;
    let fits = header.meta_len == 0 && header.verify(reply, &[]).is_ok();
    if !fits || header.op != Op::Bind || header.status != Code::Ok {
        let text = format!("the server does not move pages by {mover:?} on this connection");
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    Ok(())
}

pub(crate) fn broken(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("data connection: {error}")).with_source(error)
}

/// [`ErrorKind::Closed`] says that the session itself is gone.
fn attach_error(error: AttachError) -> Error {
    let kind = match error {
        AttachError::NotMemkv => ErrorKind::Protocol,
        AttachError::Version(_) => ErrorKind::VersionMismatch,
        AttachError::TlsRequired => ErrorKind::NotSupported,
        AttachError::WrongProof | AttachError::Refused(AttachStatus::Denied) => ErrorKind::Unauthenticated,
        AttachError::Refused(AttachStatus::UnknownSession) => ErrorKind::Closed,
        AttachError::Refused(
            AttachStatus::Ok
            | AttachStatus::TooMany
            | AttachStatus::Version
            | AttachStatus::Stopping
            | AttachStatus::TlsRequired,
        ) => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("data connection: {error}"))
}
