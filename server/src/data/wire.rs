//! The socket under a data connection: TCP, or a Unix socket on the same host.
//!
//! Everything above reads and writes through this and does not know which one it is.

use memkv_shm::pass;
use parking_lot::Mutex;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// A nonblocking stream socket.
#[derive(Debug)]
pub(crate) enum Wire {
    /// From another host, or from this one.
    Tcp(TcpStream),
    /// From this host only.
    Unix(UnixStream, Passed),
    /// On a simulated network.
    #[cfg(feature = "sim")]
    Sim(memkv_transport::sim::Socket),
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
            Wire::Tcp($stream) => $act,
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
        each!(self, stream => stream.try_read_vectored(slices))
    }

    /// Writes as much as there is room for.
    pub(crate) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        each!(self, stream => stream.try_write_vectored(slices))
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
            Self::Tcp(stream) => stream.ready(Interest::READABLE).await,
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
        socket2::SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// Who is at the other end, if it has an address.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(..) => None,
            #[cfg(feature = "sim")]
            Self::Sim(socket) => socket.peer(),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream, _) => stream.as_fd(),
            #[cfg(feature = "sim")]
            Self::Sim(_) => unreachable!("nothing in a simulation asks for a descriptor"),
        }
    }
}
