//! TLS to the servers: the connections of both planes.
//!
//! A handshake that fails is never repeated in plain text. What went wrong is told with what to do about it.

use crate::wire::Wire;
use crate::{Config, Error, ErrorKind, ServerAddress};
use hyper_util::rt::TokioIo;
use memkv_tls::rustls::pki_types::ServerName;
use memkv_tls::tokio_rustls::client::TlsStream;
use memkv_tls::{CHANNEL_BYTES, ClientFiles, ClientTls, Plane, Records, Refresh};
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A client's TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    files: ClientTls,
    server_name: Option<String>,
}

/// What only the two ends of a server's gRPC connection know; empty without TLS, or before there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Binding(Arc<Mutex<Option<[u8; CHANNEL_BYTES]>>>);

impl Binding {
    /// Of the connection that was opened last.
    pub(crate) fn now(&self) -> Vec<u8> {
        self.0.lock().map(|bytes| bytes.to_vec()).unwrap_or_default()
    }
}

impl Tls {
    /// Reads the certificates, if TLS is on.
    pub(crate) fn open(config: &Config) -> Result<Option<Self>, Error> {
        let tls = &config.tls;
        tls.check().map_err(|problem| Error::new(ErrorKind::Config, problem))?;
        let (Some(ca), true) = (tls.ca.clone(), tls.mode != crate::TlsMode::Off) else { return Ok(None) };
        let own = tls.cert.clone().zip(tls.key.clone());
        let files = ClientTls::open(ClientFiles { ca, own })
            .map_err(|error| Error::new(ErrorKind::Config, format!("tls: {error}")))?;
        if let Some(warning) = files.warning() {
            tracing::warn!("{warning}");
        }
        Ok(Some(Self { files, server_name: tls.server_name.clone() }))
    }

    /// Does the handshake of a new connection.
    pub(crate) async fn secure(&self, plane: Plane, host: &str, stream: TcpStream) -> io::Result<Stream> {
        match self.files.refresh() {
            Refresh::Same => {}
            Refresh::Loaded => tracing::info!("certificates read again; new connections use them"),
            Refresh::Refused(why) => {
                tracing::warn!(why, "new certificates cannot be used; the ones before them stay in use");
            }
        }
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            let text = format!("{name:?} is no name that a certificate can have; set MEMKV_TLS_SERVER_NAME");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let stream = self.files.connector(plane).connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// A gRPC channel over TLS. It connects by itself when it is used.
pub(crate) fn channel(
    endpoint: &Endpoint,
    tls: &Arc<Tls>,
    address: &ServerAddress,
    limit: Duration,
    binding: &Binding,
) -> Channel {
    let (tls, binding) = (Arc::clone(tls), binding.clone());
    let (host, port) = (address.host.clone(), address.port);
    let connect = move |_: Uri| {
        let (tls, binding, host) = (Arc::clone(&tls), binding.clone(), host.clone());
        async move {
            let connected = tokio::time::timeout(limit, async {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(10));
                socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                tls.secure(Plane::Control, &host, stream).await
            });
            let stream = connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            *binding.0.lock() = stream.channel();
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

/// An error about a connection, as one that says what to do: kinds that nobody can wait away are told apart.
pub(crate) fn explain(error: Error) -> Error {
    let text = error.to_string();
    let Some(hint) = memkv_tls::hint(&text) else { return error };
    let kind = if hint.contains("does not speak TLS") {
        ErrorKind::NotSupported
    } else {
        ErrorKind::Unauthenticated
    };
    Error::new(kind, format!("{hint} ({text})"))
}

/// A connection of either kind, for tasks.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Tls(_) => "Tls",
        })
    }
}

impl Stream {
    /// What only the two ends of this connection know, if it is TLS.
    pub(crate) fn channel(&self) -> Option<[u8; CHANNEL_BYTES]> {
        match self {
            Self::Plain(_) => None,
            // It fails only before the handshake is over.
            Self::Tls(stream) => memkv_tls::channel(stream.get_ref().1).ok(),
        }
    }

    /// The same connection for threads. A tokio stream is nonblocking already, and stays so.
    pub(crate) fn into_wire(self) -> io::Result<Wire> {
        Ok(match self {
            Self::Plain(stream) => Wire::Tcp(stream.into_std()?),
            Self::Tls(stream) => {
                let (stream, session) = stream.into_inner();
                Wire::Tls(stream.into_std()?, Box::new(Mutex::new(Records::new(session))))
            }
        })
    }
}

macro_rules! each {
    ($stream:expr, $inner:ident => $act:expr) => {
        match $stream.get_mut() {
            Stream::Plain(stream) => {
                let $inner = Pin::new(stream);
                $act
            }
            Stream::Tls(stream) => {
                let $inner = Pin::new(&mut **stream);
                $act
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}
