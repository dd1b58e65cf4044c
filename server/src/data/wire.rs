//! The socket under a data connection: TCP, TLS over TCP, or a Unix socket on the same host.
//!
//! Everything above reads and writes through this and does not know which one it is.

use crate::tls::TlsPeer;
use memkv_shm::pass;
use memkv_tls::Records;
use memkv_transport::near;
use parking_lot::Mutex;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// A nonblocking stream socket.
#[derive(Debug)]
pub(crate) enum Wire {
    /// From another host, or from this one.
    Tcp(TcpStream),
    /// The same, encrypted.
    Tls(TcpStream, Box<Secure>),
    /// From this host only.
    Unix(UnixStream, Passed),
    /// On a simulated network.
    #[cfg(feature = "sim")]
    Sim(memkv_transport::sim::Socket),
}

/// What TLS adds to a connection.
#[derive(Debug)]
pub(crate) struct Secure {
    /// Locked for one call at a time, by the connection's own task.
    records: Mutex<Records>,
    peer: Arc<TlsPeer>,
}

impl Secure {
    /// A session whose handshake is over.
    pub(crate) fn new(records: Records, peer: Arc<TlsPeer>) -> Box<Self> {
        Box::new(Self { records: Mutex::new(records), peer })
    }
}

/// A socket as rustls wants it: it never waits.
struct Raw<'a>(&'a TcpStream);

impl io::Read for Raw<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl io::Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The descriptor that came last with a connection's bytes, until somebody takes it. The ones before it are closed.
#[derive(Debug, Default)]
pub(crate) struct Passed(Mutex<Option<OwnedFd>>);

impl Passed {
    /// The descriptor, if one came.
    pub(crate) fn take(&self) -> Option<OwnedFd> {
        self.0.lock().take()
    }
}

macro_rules! each {
    ($wire:expr, $stream:ident => $act:expr) => {
        match $wire {
            Wire::Tcp($stream) | Wire::Tls($stream, _) => $act,
            Wire::Unix($stream, _) => $act,
            #[cfg(feature = "sim")]
            Wire::Sim($stream) => $act,
        }
    };
}

impl Wire {
    /// A connection from this host.
    pub(crate) fn near(stream: UnixStream) -> Self {
        Self::Unix(stream, Passed::default())
    }

    /// Waits until bytes may be there.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        if let Self::Tls(_, secure) = self
            && secure.records.lock().has_plaintext()
        {
            return Ok(());
        }
        each!(self, stream => stream.readable().await)
    }

    /// Waits until there may be room for bytes.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        each!(self, stream => stream.writable().await)
    }

    /// Reads what is there. A descriptor that comes with it is kept.
    pub(crate) fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(bytes),
            Self::Tls(stream, secure) => {
                secure.records.lock().read(&mut Raw(stream), &mut [IoSliceMut::new(bytes)])
            }
            Self::Unix(stream, passed) => {
                let receive = || pass::receive(stream, bytes);
                let (came, descriptor) = stream.try_io(Interest::READABLE, receive)?;
                if descriptor.is_some() {
                    *passed.0.lock() = descriptor;
                }
                Ok(came)
            }
            #[cfg(feature = "sim")]
            Self::Sim(socket) => socket.read(bytes),
        }
    }

    /// Reads what is there into several places. Descriptors that come with it are closed.
    pub(crate) fn try_read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if let Self::Tls(stream, secure) = self {
            return secure.records.lock().read(&mut Raw(stream), slices);
        }
        each!(self, stream => stream.try_read_vectored(slices))
    }

    /// Writes as much as there is room for. What it took may still be here until [`Wire::try_flush`].
    pub(crate) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Self::Tls(stream, secure) = self {
            return secure.records.lock().write(&mut Raw(stream), slices);
        }
        each!(self, stream => stream.try_write_vectored(slices))
    }

    /// Sends what was written and is still here.
    pub(crate) fn try_flush(&self) -> io::Result<()> {
        if let Self::Tls(stream, secure) = self {
            return secure.records.lock().flush(&mut Raw(stream));
        }
        Ok(())
    }

    /// Whether the peer has closed its side, as far as is known. Does not wait.
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        #[cfg(feature = "sim")]
        if let Self::Sim(socket) = self {
            return socket.is_closed_by_peer();
        }
        let mut ready = pin!(self.ready_to_read());
        let mut context = Context::from_waker(Waker::noop());
        match ready.as_mut().poll(&mut context) {
            Poll::Ready(Ok(ready)) => ready.is_read_closed() || ready.is_error(),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }

    async fn ready_to_read(&self) -> io::Result<tokio::io::Ready> {
        match self {
            Self::Tcp(stream) | Self::Tls(stream, _) => stream.ready(Interest::READABLE).await,
            Self::Unix(stream, _) => stream.ready(Interest::READABLE).await,
            #[cfg(feature = "sim")]
            Self::Sim(_) => Ok(tokio::io::Ready::EMPTY),
        }
    }

    /// Whether it is a socket of a simulation, whose time stands still while anybody works.
    pub(crate) fn is_simulated(&self) -> bool {
        #[cfg(feature = "sim")]
        return matches!(self, Self::Sim(_));
        #[cfg(not(feature = "sim"))]
        false
    }

    /// Says that nothing more will be written.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        #[cfg(feature = "sim")]
        if let Self::Sim(socket) = self {
            return socket.shutdown_write();
        }
        if let Self::Tls(stream, secure) = self {
            secure.records.lock().close(&mut Raw(stream));
        }
        socket2::SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// Sets how much the kernel buffers for a peer on this host.
    pub(crate) fn limit_buffer(&self) -> io::Result<()> {
        if self.is_near()? {
            socket2::SockRef::from(self).set_send_buffer_size(near::SEND_BYTES)?;
        }
        Ok(())
    }

    /// Whether it is a TCP connection to a peer on this host.
    pub(crate) fn is_near(&self) -> io::Result<bool> {
        let (Self::Tcp(stream) | Self::Tls(stream, _)) = self else { return Ok(false) };
        Ok(near::is_near(stream.local_addr()?, stream.peer_addr()?))
    }

    /// Has the kernel drop what it still holds for the peer when this is dropped. Otherwise it keeps that for minutes in
    /// the hope that the peer reads it.
    pub(crate) fn forget_unsent(&self) {
        if let Self::Tcp(stream) | Self::Tls(stream, _) = self {
            // Failing that, the kernel's own patience ends it.
            drop(socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)));
        }
    }

    /// What the kernel holds at most of what was written. 0 if it does not say.
    pub(crate) fn send_buffer_bytes(&self) -> u64 {
        let size = match self {
            Self::Tcp(stream) | Self::Tls(stream, _) => socket2::SockRef::from(stream).send_buffer_size(),
            Self::Unix(stream, _) => socket2::SockRef::from(stream).send_buffer_size(),
            #[cfg(feature = "sim")]
            Self::Sim(_) => Ok(0),
        };
        size.unwrap_or(0) as u64
    }

    /// The socket, if the bytes on it are the peer's own.
    pub(crate) fn plain(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream) => Some(stream.as_fd()),
            Self::Unix(stream, _) => Some(stream.as_fd()),
            Self::Tls(..) => None,
            #[cfg(feature = "sim")]
            Self::Sim(_) => None,
        }
    }

    /// What TLS says of the peer.
    pub(crate) fn tls(&self) -> Option<&Arc<TlsPeer>> {
        match self {
            Self::Tls(_, secure) => Some(&secure.peer),
            _ => None,
        }
    }

    /// Whether others than this host's kernel carry the bytes.
    pub(crate) fn leaves_host(&self) -> bool {
        !matches!(self, Self::Unix(..))
    }

    /// Who is at the other end, if it has an address.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) | Self::Tls(stream, _) => stream.peer_addr().ok(),
            Self::Unix(..) => None,
            #[cfg(feature = "sim")]
            Self::Sim(socket) => socket.peer(),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) | Self::Tls(stream, _) => stream.as_fd(),
            Self::Unix(stream, _) => stream.as_fd(),
            #[cfg(feature = "sim")]
            Self::Sim(_) => unreachable!("nothing in a simulation asks for a descriptor"),
        }
    }
}
