//! The socket under a data connection: TCP, or a Unix socket on the same host.

use rustix::net::{SendAncillaryBuffer, SendFlags};
use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

/// A nonblocking stream socket.
#[derive(Debug)]
pub(crate) enum Wire {
    /// To another host, or to this one.
    Tcp(TcpStream),
    /// To this host only.
    Unix(UnixStream),
    /// On a simulated network.
    #[cfg(feature = "sim")]
    Sim(memkv_transport::sim::Socket),
}

impl Wire {
    /// Reads what is there.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&mut &*stream).read(bytes),
            Self::Unix(stream) => (&mut &*stream).read(bytes),
            #[cfg(feature = "sim")]
            Self::Sim(socket) => socket.read(bytes),
        }
    }

    /// Writes as much as there is room for. Raises no signal if the peer is gone.
    pub(crate) fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(feature = "sim")]
        if let Self::Sim(socket) = self {
            return socket.try_write_vectored(slices);
        }
        // `writev` would raise SIGPIPE in a process that does not ignore it; this does not.
        let mut nothing_beside = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(self, slices, &mut nothing_beside, SendFlags::NOSIGNAL)?)
    }

    /// Reads what is there into several places.
    pub(crate) fn read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&mut &*stream).read_vectored(slices),
            Self::Unix(stream) => (&mut &*stream).read_vectored(slices),
            #[cfg(feature = "sim")]
            Self::Sim(socket) => socket.try_read_vectored(slices),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            #[cfg(feature = "sim")]
            Self::Sim(_) => unreachable!("only threads wait for descriptors, and a simulation has tasks"),
        }
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
