//! The socket under a data connection: TCP, TLS over TCP, or a Unix socket on the same host.

use memkv_tls::Records;
use parking_lot::Mutex;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

/// A nonblocking stream socket.
#[derive(Debug)]
pub(crate) enum Wire {
    /// To another host, or to this one.
    Tcp(TcpStream),
    /// The same, encrypted. Locked for one call at a time, by whoever has the connection.
    Tls(TcpStream, Box<Mutex<Records>>),
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
            Self::Tls(stream, records) => {
                records.lock().read(&mut Raw(stream), &mut [IoSliceMut::new(bytes)])
            }
            Self::Unix(stream) => (&mut &*stream).read(bytes),
            #[cfg(feature = "sim")]
            Self::Sim(socket) => socket.read(bytes),
        }
    }

    /// Writes as much as there is room for. What it took may still be here until [`Wire::flush`]. Raises no signal if the
    /// peer is gone.
    pub(crate) fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Self::Tls(stream, records) = self {
            return records.lock().write(&mut Raw(stream), slices);
        }
        #[cfg(feature = "sim")]
        if let Self::Sim(socket) = self {
            return socket.try_write_vectored(slices);
        }
        send(self, slices)
    }

    /// Sends what was written and is still here. Before an answer is waited for, this must have succeeded.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Tls(stream, records) => records.lock().flush(&mut Raw(stream)),
            _ => Ok(()),
        }
    }

    /// Reads what is there into several places.
    pub(crate) fn read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&mut &*stream).read_vectored(slices),
            Self::Tls(stream, records) => records.lock().read(&mut Raw(stream), slices),
            Self::Unix(stream) => (&mut &*stream).read_vectored(slices),
            #[cfg(feature = "sim")]
            Self::Sim(socket) => socket.try_read_vectored(slices),
        }
    }
}

/// `writev` would raise SIGPIPE in a process that does not ignore it; this does not.
fn send(socket: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut nothing_beside = SendAncillaryBuffer::default();
    Ok(rustix::net::sendmsg(socket, slices, &mut nothing_beside, SendFlags::NOSIGNAL)?)
}

/// A socket as rustls wants it: it never waits.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.0;
        stream.read(bytes)
    }
}

impl io::Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) | Self::Tls(stream, _) => stream.as_fd(),
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
