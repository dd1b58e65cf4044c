//! The main port: accepts connections, counts them, and hands each to its plane. Which one that is, and whether it is
//! inside TLS, is for [`crate::greeting`] to find out.

use crate::data::{self, Secure};
use crate::greeting::{Greeted, Stream, greet};
use crate::guests::Place;
use crate::line::Line;
use crate::metrics::Metrics;
use crate::near::Near;
use crate::node::Node;
use crate::tls::TlsPeer;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::transport::server::Connected;

/// How long to wait when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that was put out may take to give its place back.
const LEAVING: Duration = Duration::from_millis(500);

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
                Ok((stream, peer)) => {
                    let permit = self.permit().await;
                    self.admit(stream, peer, permit);
                }
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

    /// A place, if there is one, or one comes free at once.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.places);
        match Arc::clone(&places).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_full) if self.node.guests.are_leaving() => {
                tokio::time::timeout(LEAVING, places.acquire_owned()).await.ok()?.ok()
            }
            Err(_full) => None,
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, permit: Option<OwnedSemaphorePermit>) {
        let metrics = &self.node.metrics;
        let (Some(_permit), Ok(_guest)) = (permit, self.node.guests.enter(peer, &stream)) else {
            Metrics::add(&metrics.refused, 1);
            return;
        };
        let place = Place { _permit, _guest };
        Metrics::add(&metrics.accepted, 1);
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "connection failed at once");
                return;
            }
            let addr = stream.peer_addr().ok();
            let limit = this.node.config.handshake_timeout;
            let greeted = tokio::select! {
                () = this.node.wait_closing() => return,
                greeted = tokio::time::timeout(limit, greet(&this.node, stream)) => greeted,
            };
            match greeted {
                Ok(Some(Greeted::Data(stream, secure))) => this.hand_to_data(stream, secure, place),
                Ok(Some(Greeted::Grpc(stream, tls))) => {
                    let line = Arc::new(Line::new(this.node.config.request_bytes.session));
                    let peer = Peer { addr, tls, line };
                    // If nobody takes it, the server is stopping and the connection closes here.
                    let _stopping = this.grpc.send(Ok(Sniffed { stream, peer, _place: place })).await;
                }
                Ok(None) => {}
                Err(_elapsed) => {
                    Metrics::add(&this.node.metrics.protocol_errors, 1);
                    tracing::debug!("a connection fell silent before it said what it is");
                }
            }
        });
    }

    fn hand_to_data(self, stream: TcpStream, secure: Option<Box<Secure>>, place: Place) {
        let node = self.node;
        // The socket moves to the other runtime's poller.
        let moved = stream.into_std();
        self.data.spawn(async move {
            match moved.and_then(|stream| Greeted::wire(stream, secure)) {
                Ok(wire) => data::serve(node, wire).await,
                Err(error) => tracing::debug!(%error, "data connection failed at once"),
            }
            drop(place);
        });
    }
}

/// A gRPC connection and its place in the connection limit.
pub(crate) struct Sniffed {
    stream: Stream,
    peer: Peer,
    _place: Place,
}

/// What request handlers learn about their connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) addr: Option<SocketAddr>,
    /// What TLS says of it; `None` in plain text.
    pub(crate) tls: Option<Arc<TlsPeer>>,
    /// What its calls share.
    pub(crate) line: Arc<Line>,
}

impl Connected for Sniffed {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

macro_rules! stream {
    ($sniffed:expr, $stream:ident => $act:expr) => {
        match &mut $sniffed.stream {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $act
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $act
            }
        }
    };
}

impl AsyncRead for Sniffed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.peer.line.may_read(cx) {
            return Poll::Pending;
        }
        let had = buf.filled().len();
        let read = stream!(self, stream => stream.poll_read(cx, buf));
        self.peer.line.has_read((buf.filled().len() - had) as u64);
        read
    }
}

impl AsyncWrite for Sniffed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        stream!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        stream!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, stream => stream.poll_shutdown(cx))
    }
}
