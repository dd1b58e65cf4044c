//! What a new connection to the main port is: gRPC or data, in plain text or inside TLS, or neither.
//!
//! The first eight bytes decide; inside TLS the next eight do once more. They are read, not peeked: a peeked socket
//! stays readable, so a peer that sends three bytes and waits would keep a core busy. Whoever needs them gets them back
//! through [`Prefixed`].
//!
//! Whom this port does not serve is told why, in the words of what it speaks: HTTP, a TLS alert, or a data
//! connection's refusal.

use crate::data::{Secure, Wire};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::tls::TlsPeer;
use memkv_tls::rustls::server::ServerConnection;
use memkv_tls::tokio_rustls::server::TlsStream;
use memkv_tls::{ALPN_DATA, ALPN_GRPC, Identity, Records, ServerTls};
use memkv_transport::handshake::{ATTACH_BYTES, AttachStatus, PREFACE, refusal};
use socket2::SockRef;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

/// The bytes that decide.
const FIRST_BYTES: usize = 8;
/// The first eight bytes of an HTTP/2 connection.
const HTTP2: [u8; FIRST_BYTES] = *b"PRI * HT";
/// A TLS record with a message of the handshake begins like this.
const TLS: [u8; 2] = [0x16, 0x03];

/// What a peer that speaks neither protocol gets.
const FOREIGN_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
this port speaks gRPC (HTTP/2) and the memkv data protocol; \
metrics and health are on the admin port, the next one unless admin_listen says otherwise\n";
/// A fatal alert, `protocol_version`: what a TLS client gets from a server without a certificate.
const NO_TLS_ANSWER: &[u8] = &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x46];
/// How long a peer that is turned away has to read why, and how much more of it is read meanwhile.
const FAREWELL_PAUSE: Duration = Duration::from_millis(500);
const FAREWELL_BYTES: usize = 64 << 10;

/// A connection that is served.
pub(crate) enum Greeted {
    /// A data connection, behind its preface.
    Data(TcpStream, Option<Box<Secure>>),
    /// gRPC, from its first byte on.
    Grpc(Stream, Option<Arc<TlsPeer>>),
}

/// A gRPC connection.
pub(crate) enum Stream {
    Plain(Prefixed<TcpStream>),
    Tls(Box<Prefixed<TlsStream<Prefixed<TcpStream>>>>),
}

impl Greeted {
    /// The data connection's wire, on the runtime that it will live on.
    pub(crate) fn wire(stream: std::net::TcpStream, secure: Option<Box<Secure>>) -> io::Result<Wire> {
        let stream = TcpStream::from_std(stream)?;
        Ok(match secure {
            Some(secure) => Wire::Tls(stream, secure),
            None => Wire::Tcp(stream),
        })
    }
}

/// What a connection's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Data,
    Grpc,
    /// A TLS handshake.
    Tls([u8; FIRST_BYTES]),
    /// Something that this port does not speak.
    Foreign,
}

impl First {
    /// What bytes from the beginning say; `None` if more are needed.
    fn of(bytes: &[u8]) -> Option<Self> {
        let begins = |with: &[u8]| with.starts_with(&bytes[..bytes.len().min(with.len())]);
        let whole = <[u8; FIRST_BYTES]>::try_from(bytes).ok();
        match whole {
            _ if begins(&TLS) => whole.map(Self::Tls),
            Some(PREFACE) => Some(Self::Data),
            Some(HTTP2) => Some(Self::Grpc),
            None if begins(&PREFACE) || begins(&HTTP2) => None,
            _ => Some(Self::Foreign),
        }
    }
}

/// Finds out what a connection is; `None` if it is not served, which it has been told. The caller sets the time.
pub(crate) async fn greet(node: &Node, mut stream: TcpStream) -> Option<Greeted> {
    let metrics = &node.metrics;
    let Some(first) = first_of(&mut stream).await else {
        Metrics::add(&metrics.protocol_errors, 1);
        tracing::debug!("a connection ended before it said what it is");
        return None;
    };
    let refuses_plain = node.config.tls.require.refuses_plain();
    match (first, &node.tls) {
        (First::Tls(bytes), Some(tls)) => secure(node, tls, Prefixed::new(bytes, stream)).await,
        (First::Tls(_), None) => {
            Metrics::add(&metrics.tls_failed, 1);
            tracing::debug!("a peer speaks tls and there is no certificate, told so and closing");
            tell(stream, NO_TLS_ANSWER).await;
            None
        }
        (First::Data, _) if refuses_plain => {
            Metrics::add(&metrics.tls_plain_refused, 1);
            let mut rest = [0; ATTACH_BYTES - FIRST_BYTES];
            stream.read_exact(&mut rest).await.ok()?;
            tell(stream, &refusal(AttachStatus::TlsRequired)).await;
            None
        }
        (First::Data, _) => Some(Greeted::Data(stream, None)),
        // In plain text where that is refused, each of its calls is answered so.
        (First::Grpc, _) => Some(Greeted::Grpc(Stream::Plain(Prefixed::new(HTTP2, stream)), None)),
        (First::Foreign, _) => {
            Metrics::add(&metrics.protocol_errors, 1);
            tracing::debug!("a connection speaks something else, told so and closing");
            tell(stream, FOREIGN_ANSWER).await;
            None
        }
    }
}

/// The TLS handshake, and what is inside.
async fn secure(node: &Node, tls: &ServerTls, stream: Prefixed<TcpStream>) -> Option<Greeted> {
    let metrics = &node.metrics;
    let peer_addr = stream.inner.peer_addr().ok();
    let mut stream = match tls.main().accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            Metrics::add(&metrics.tls_failed, 1);
            if is_about_certificates(&error) {
                metrics.auth_failed(peer_addr, &format!("tls: {error}"));
            }
            tracing::debug!(%error, peer = ?peer_addr, "tls handshake failed");
            // It has been sent an alert, which must not be overtaken by a reset.
            tell(stream.inner, &[]).await;
            return None;
        }
    };
    Metrics::add(&metrics.tls_handshakes, 1);
    let peer = peer_of(stream.get_ref().1)?;
    let first = first_of(&mut stream).await;
    // A connection that was meant for one plane must not end up on the other.
    let meant = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let fits = |name: &[u8]| meant.as_deref().is_none_or(|meant| meant == name);
    match first {
        Some(First::Data) if fits(ALPN_DATA) => {
            let (prefixed, connection) = stream.into_inner();
            Some(Greeted::Data(prefixed.inner, Some(Secure::new(Records::new(connection), peer))))
        }
        Some(First::Grpc) if fits(ALPN_GRPC) => {
            Some(Greeted::Grpc(Stream::Tls(Box::new(Prefixed::new(HTTP2, stream))), Some(peer)))
        }
        Some(_) => {
            Metrics::add(&metrics.protocol_errors, 1);
            tracing::debug!("a connection speaks something else inside tls, told so and closing");
            // What it does not take now it does not want to know.
            if stream.write_all(FOREIGN_ANSWER).await.is_ok() && stream.shutdown().await.is_ok() {
                tell(stream.into_inner().0.inner, &[]).await;
            }
            None
        }
        None => {
            Metrics::add(&metrics.protocol_errors, 1);
            tracing::debug!("a connection ended before it said what it is inside tls");
            None
        }
    }
}

/// Whether the handshake failed because of the peer's certificate, or the peer does not believe this server's.
fn is_about_certificates(error: &io::Error) -> bool {
    use memkv_tls::rustls::Error;
    let about = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(about, Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented))
}

fn peer_of(connection: &ServerConnection) -> Option<Arc<TlsPeer>> {
    // It fails only before the handshake is over.
    let channel = memkv_tls::channel(connection).ok()?;
    Some(Arc::new(TlsPeer { identity: Identity::of(connection.peer_certificates()), channel }))
}

/// Reads the first eight bytes, or fewer if they cannot be those of anything that is spoken here; `None` if the peer
/// closes.
async fn first_of(stream: &mut (impl AsyncRead + Unpin)) -> Option<First> {
    let (mut bytes, mut filled) = ([0; FIRST_BYTES], 0);
    loop {
        match stream.read(&mut bytes[filled..]).await {
            Ok(0) | Err(_) => return None,
            Ok(came) => filled += came,
        }
        if let Some(first) = First::of(&bytes[..filled]) {
            return Some(first);
        }
    }
}

/// Tells a peer why it is not served. Most that speak something foreign are people with a browser, health checks or
/// scrapers, so that answer is HTTP; to others it is at least readable.
pub(crate) async fn tell(stream: TcpStream, answer: &[u8]) {
    // The socket is new and its buffer empty; a peer whose window does not take this does not read it either.
    let told = answer.is_empty() || stream.try_write(answer).is_ok();
    if !told || SockRef::from(&stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    // Unread bytes would turn the close into a reset, which may overtake the answer.
    let drained = tokio::time::timeout(FAREWELL_PAUSE, async {
        let (mut left, mut scratch) = (FAREWELL_BYTES, [0; 1024]);
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut scratch) {
                Ok(0) => return,
                Ok(read) => left = left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    });
    if drained.await.is_err() {
        tracing::debug!("a peer did not close after it was turned away");
    }
}

/// A stream whose first eight bytes were already read.
pub(crate) struct Prefixed<S> {
    bytes: [u8; FIRST_BYTES],
    given_back: usize,
    inner: S,
}

impl<S> Prefixed<S> {
    fn new(bytes: [u8; FIRST_BYTES], inner: S) -> Self {
        Self { bytes, given_back: 0, inner }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.bytes[self.given_back..];
        if !left.is_empty() {
            let bytes = buf.remaining().min(left.len());
            buf.put_slice(&left[..bytes]);
            self.given_back += bytes;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_decide() {
        assert_eq!(First::of(&PREFACE), Some(First::Data));
        assert_eq!(First::of(&HTTP2), Some(First::Grpc));
        let hello = [0x16, 3, 1, 0, 200, 1, 0, 0];
        assert_eq!(First::of(&hello), Some(First::Tls(hello)));
        for whole in [PREFACE, HTTP2, hello] {
            assert!((1..8).all(|some| First::of(&whole[..some]).is_none()), "{whole:?}");
        }
        for foreign in [&b"GET / HT"[..], b"G", &[0x16, 0x02], &[0x15, 0x03], b"MEMKV\0D2", b"PRI * HX"] {
            assert_eq!(First::of(foreign), Some(First::Foreign), "{foreign:?}");
        }
    }
}
