//! The main port: accepts connections, counts them, and tells the two planes apart by their first eight bytes.
//!
//! The bytes are read, not peeked: a peeked socket stays readable, so a peer that sends three bytes and waits would
//! keep a core busy. gRPC gets them back through [`Sniffed`]; the data plane knows what they were.

use crate::data;
use crate::metrics::Metrics;
use crate::near::Near;
use crate::node::Node;
use memkv_transport::handshake::PREFACE;
use socket2::SockRef;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::transport::server::Connected;

/// The first eight bytes of an HTTP/2 connection.
const HTTP2: [u8; 8] = *b"PRI * HT";
/// How long to wait when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a peer that speaks neither protocol gets.
const FOREIGN_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
this port speaks gRPC (HTTP/2 without TLS) and the memkv data protocol; \
metrics and health are on the admin port, the next one unless admin_listen says otherwise\n";
/// How long such a peer has to read it, and how much more of it is read meanwhile.
const FOREIGN_PAUSE: Duration = Duration::from_millis(500);
const FOREIGN_BYTES: usize = 64 << 10;

/// Hands connections to the planes.
#[derive(Clone)]
pub(crate) struct Accept {
    pub(crate) node: Arc<Node>,
    /// Where data connections run.
    pub(crate) data: Handle,
    /// Where gRPC takes its connections from.
    pub(crate) grpc: mpsc::Sender<io::Result<Sniffed>>,
    /// One permit per connection.
    pub(crate) places: Arc<Semaphore>,
}

impl Accept {
    /// Accepts until dropped.
    pub(crate) async fn run(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _peer)) => self.admit(stream),
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Accepts data connections from this host until dropped.
    pub(crate) async fn run_near(self, near: Near) {
        near.run(ACCEPT_PAUSE, |stream| self.admit_near(stream)).await;
    }

    fn admit_near(&self, stream: UnixStream) {
        let metrics = &self.node.metrics;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            Metrics::add(&metrics.refused, 1);
            return;
        };
        Metrics::add(&metrics.accepted, 1);
        let node = Arc::clone(&self.node);
        // The socket moves to the other runtime's poller.
        let moved = stream.into_std();
        self.data.spawn(async move {
            match moved.and_then(UnixStream::from_std) {
                Ok(stream) => data::serve_near(node, data::Wire::near(stream)).await,
                Err(error) => tracing::debug!(%error, "data connection failed at once"),
            }
            drop(place);
        });
    }

    fn admit(&self, stream: TcpStream) {
        let metrics = &self.node.metrics;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            Metrics::add(&metrics.refused, 1);
            return;
        };
        Metrics::add(&metrics.accepted, 1);
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "connection failed at once");
                return;
            }
            let limit = this.node.config.handshake_timeout;
            let sniffed = tokio::select! {
                () = this.node.wait_closing() => return,
                sniffed = tokio::time::timeout(limit, sniff(&stream)) => sniffed,
            };
            match sniffed {
                Ok(Some(Plane::Data)) => this.hand_to_data(stream, place),
                Ok(Some(Plane::Foreign)) => {
                    Metrics::add(&this.node.metrics.protocol_errors, 1);
                    tracing::debug!("a connection speaks something else, told so and closing");
                    tell_foreigner(&stream).await;
                }
                Ok(Some(Plane::Grpc)) => {
                    // If nobody takes it, the server is stopping and the connection closes here.
                    let _stopping = this.grpc.send(Ok(Sniffed::new(stream, place))).await;
                }
                Ok(None) | Err(_) => {
                    Metrics::add(&this.node.metrics.protocol_errors, 1);
                    tracing::debug!("a connection ended or fell silent before it said what it is");
                }
            }
        });
    }

    fn hand_to_data(self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let node = self.node;
        // The socket moves to the other runtime's poller.
        let moved = stream.into_std();
        self.data.spawn(async move {
            match moved.and_then(TcpStream::from_std) {
                Ok(stream) => data::serve(node, data::Wire::Tcp(stream)).await,
                Err(error) => tracing::debug!(%error, "data connection failed at once"),
            }
            drop(place);
        });
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Plane {
    Data,
    Grpc,
    /// Something that this port does not speak.
    Foreign,
}

/// Tells a peer that speaks something else what this port is for. Most of them are people with a browser, health
/// checks or scrapers, so the answer is HTTP; to others it is at least readable.
async fn tell_foreigner(stream: &TcpStream) {
    // The socket is new and its buffer empty; a peer whose window does not take this line does not read it either.
    if stream.try_write(FOREIGN_ANSWER).is_err() || SockRef::from(stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    // Unread bytes would turn the close into a reset, which may overtake the answer.
    let drained = tokio::time::timeout(FOREIGN_PAUSE, async {
        let (mut left, mut scratch) = (FOREIGN_BYTES, [0; 1024]);
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
        tracing::debug!("a foreign peer did not close after its answer");
    }
}

/// Reads the first eight bytes, or fewer if they cannot be those of either plane; `None` if the peer closes.
async fn sniff(stream: &TcpStream) -> Option<Plane> {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        stream.readable().await.ok()?;
        match stream.try_read(&mut bytes[filled..]) {
            Ok(0) => return None,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        if bytes[..filled] != PREFACE[..filled] && bytes[..filled] != HTTP2[..filled] {
            return Some(Plane::Foreign);
        }
    }
    Some(if bytes == PREFACE { Plane::Data } else { Plane::Grpc })
}

/// A gRPC connection whose first eight bytes were already read, and its place in the connection limit.
pub(crate) struct Sniffed {
    stream: TcpStream,
    given_back: usize,
    _place: OwnedSemaphorePermit,
}

impl Sniffed {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self { stream, given_back: 0, _place: place }
    }
}

/// What request handlers learn about their connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) Option<SocketAddr>);

impl Connected for Sniffed {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.stream.peer_addr().ok())
    }
}

impl AsyncRead for Sniffed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given_back < HTTP2.len() {
            let bytes = buf.remaining().min(HTTP2.len() - self.given_back);
            buf.put_slice(&HTTP2[self.given_back..self.given_back + bytes]);
            self.given_back += bytes;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Sniffed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
