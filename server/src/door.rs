//! The admin port's listener: a bound on open connections, and TLS as configured.
//!
//! The handshake happens when the connection is first read, so that a slow peer does not keep others from being
//! accepted.

use crate::config::Config;
use crate::config::tls::AdminTls;
use crate::greeting::tell;
use memkv_tls::ServerTls;
use memkv_tls::tokio_rustls::server::TlsStream;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{self, AsyncRead, AsyncWrite, ErrorKind, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Connections that the admin port has open at once; others wait.
const CONNECTIONS_MAX: usize = 64;
/// The first byte of a TLS handshake.
const TLS: u8 = 0x16;
/// What plain HTTP gets where it is not spoken.
const PLAIN_REFUSED: &[u8] =
    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nContent-Type: text/plain\r\n\
Connection: close\r\n\r\nthis port requires TLS; use https://, or set tls.admin to both\n";

/// The admin port.
pub(crate) struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    tls: Option<Arc<ServerTls>>,
    speaks: AdminTls,
    patience: Duration,
}

impl Door {
    pub(crate) fn new(listener: TcpListener, tls: Option<Arc<ServerTls>>, config: &Config) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            tls,
            speaks: config.tls.admin(),
            patience: config.handshake_timeout,
        }
    }
}

impl axum::serve::Listener for Door {
    type Io = Visitor;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visitor, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = axum::serve::Listener::accept(&mut self.listener).await;
        let state = match &self.tls {
            Some(tls) if self.speaks != AdminTls::Off => {
                let greeting = greet(stream, Arc::clone(tls), self.speaks);
                let patience = self.patience;
                State::Greeting(Box::pin(async move {
                    timeout(patience, greeting).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
                }))
            }
            _ => State::Plain(stream),
        };
        (Visitor { state, _place: place }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Finds out whether a connection is TLS, and does its handshake.
async fn greet(stream: TcpStream, tls: Arc<ServerTls>, speaks: AdminTls) -> io::Result<State> {
    let mut first = [0];
    // One byte can be peeked at: it is there, or the socket is not readable.
    let came = stream.peek(&mut first).await?;
    if came == 1 && first[0] == TLS {
        return Ok(State::Tls(Box::new(tls.admin().accept(stream).await?)));
    }
    if speaks == AdminTls::Require {
        tell(stream, PLAIN_REFUSED).await;
        return Err(ErrorKind::ConnectionAborted.into());
    }
    Ok(State::Plain(stream))
}

/// A connection and its place among the open ones.
pub(crate) struct Visitor {
    state: State,
    _place: OwnedSemaphorePermit,
}

enum State {
    Greeting(Pin<Box<dyn Future<Output = io::Result<State>> + Send>>),
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Visitor {
    /// Waits for the end of the greeting.
    fn poll_greeted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Greeting(greeting) = &mut self.state {
            self.state = ready!(greeting.as_mut().poll(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

macro_rules! greeted {
    ($visitor:expr, $cx:expr, $stream:ident => $act:expr) => {{
        let visitor = $visitor.get_mut();
        ready!(visitor.poll_greeted($cx))?;
        match &mut visitor.state {
            State::Plain(stream) => {
                let $stream = Pin::new(stream);
                $act
            }
            State::Tls(stream) => {
                let $stream = Pin::new(&mut **stream);
                $act
            }
            State::Greeting(_) => Poll::Pending,
        }
    }};
}

impl AsyncRead for Visitor {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        greeted!(self, cx, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        greeted!(self, cx, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        greeted!(self, cx, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        greeted!(self, cx, stream => stream.poll_shutdown(cx))
    }
}
