//! What client and server use in place of the system's sockets when they run on a simulated network.
//!
//! A [`Socket`] behaves like a nonblocking TCP socket, and is one [`Stream`] of a simulated network underneath. Client and
//! server drive it with the code that drives real ones.
//!
//! Invariants:
//! - a socket belongs to one task at a time, as the connections of client and server do;
//! - whoever is told "would block" polls [`Socket::poll_readable`] or [`Socket::poll_writable`] before it sleeps: an
//!   attempt to read or write registers nobody to be woken.
//!
//! Deliberately absent: descriptors. Nothing here can be waited for with `poll(2)`, so there is no blocking use.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that one read takes from the network at most.
const READ_BYTES: usize = 64 << 10;
/// Bytes that one write gives to the network at most.
const WRITE_BYTES: usize = 32 << 10;

/// A connection of a simulated network.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether a write would be taken; registers the task if not.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Who is at the other end.
    fn peer(&self) -> Option<SocketAddr>;
}

/// What a dial comes to.
pub type Dialled = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// A simulated network, as one of its hosts sees it.
pub trait Net: Send + Sync {
    /// Connects to a port of a host.
    fn dial(&self, host: &str, port: u16) -> Dialled;
}

/// A nonblocking socket on a simulated network.
pub struct Socket {
    state: Mutex<State>,
    peer: Option<SocketAddr>,
}

struct State {
    stream: Box<dyn Stream>,
    /// What came from the network and was not read yet: `input[start..end]`.
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// The peer said that nothing more comes.
    ended: bool,
    error: Option<ErrorKind>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl State {
    /// Takes bytes from the network, unless some are here; ready when there is something to tell.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.start < self.end || self.ended || self.error.is_some() {
            return Poll::Ready(());
        }
        let mut room = ReadBuf::new(&mut self.input);
        match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => self.error = Some(error.kind()),
            Poll::Ready(Ok(())) => {
                (self.start, self.end) = (0, room.filled().len());
                self.ended = self.end == 0;
            }
        }
        Poll::Ready(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let here = &self.input[self.start..self.end];
        if here.is_empty() {
            return self.error.map_or(Ok(0), |kind| Err(kind.into()));
        }
        let taken = here.len().min(bytes.len());
        bytes[..taken].copy_from_slice(&here[..taken]);
        self.start += taken;
        Ok(taken)
    }
}

impl Socket {
    /// Wraps a connected stream.
    #[must_use]
    pub fn new(stream: Box<dyn Stream>) -> Self {
        let peer = stream.peer();
        let input = vec![0; READ_BYTES].into_boxed_slice();
        let state = State { stream, input, start: 0, end: 0, ended: false, error: None };
        Self { state: Mutex::new(state), peer }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when a read would not block; registers the task if not.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.state().poll_fill(cx)
    }

    /// Ready when a write would not block; registers the task if not.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.error.is_some() {
            return Poll::Ready(());
        }
        match state.stream.poll_writable(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => {
                state.error = outcome.err().map(|error| error.kind());
                Poll::Ready(())
            }
        }
    }

    /// Waits until a read would not block.
    ///
    /// # Errors
    ///
    /// None; the attempt tells.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_readable(cx)).await;
        Ok(())
    }

    /// Waits until a write would not block.
    ///
    /// # Errors
    ///
    /// None; the attempt tells.
    pub async fn writable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_writable(cx)).await;
        Ok(())
    }

    /// Reads what is there.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is nothing; what became of the connection.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.state().read(bytes)
    }

    /// Reads what is there into several places.
    ///
    /// # Errors
    ///
    /// As [`Socket::read`].
    pub fn try_read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut state = self.state();
        let mut taken = 0;
        for slice in slices.iter_mut().filter(|slice| !slice.is_empty()) {
            if taken > 0 && state.start == state.end {
                break;
            }
            let came = state.read(slice)?;
            taken += came;
            if came < slice.len() {
                break;
            }
        }
        Ok(taken)
    }

    /// Writes as much as the network takes at once.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if it takes nothing; what became of the connection.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state();
        if let Some(kind) = state.error {
            return Err(kind.into());
        }
        let mut bytes = Vec::new();
        for slice in slices {
            let room = WRITE_BYTES - bytes.len();
            bytes.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut state.stream).poll_write(&mut cx, &bytes) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether the peer has closed its side, as far as is known. Does not wait.
    #[must_use]
    pub fn is_closed_by_peer(&self) -> bool {
        let mut state = self.state();
        // Whether there was anything does not matter.
        let _filled = state.poll_fill(&mut Context::from_waker(Waker::noop()));
        state.ended || state.error.is_some()
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    ///
    /// What became of the connection.
    pub fn shutdown_write(&self) -> io::Result<()> {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.state().stream).poll_shutdown(&mut cx) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Ok(()),
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    struct Pipe(DuplexStream);

    impl AsyncRead for Pipe {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Pipe {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl Stream for Pipe {
        fn poll_writable(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn peer(&self) -> Option<SocketAddr> {
            None
        }
    }

    fn pair() -> (Socket, Socket) {
        let (a, b) = tokio::io::duplex(64);
        (Socket::new(Box::new(Pipe(a))), Socket::new(Box::new(Pipe(b))))
    }

    #[test]
    fn it_reads_writes_blocks_and_ends_like_a_nonblocking_socket() {
        let (a, b) = pair();
        let mut bytes = [0; 8];
        assert_eq!(b.read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(a.try_write_vectored(&[IoSlice::new(b"one"), IoSlice::new(b"two")]).unwrap(), 6);
        let (mut left, mut right) = ([0; 2], [0; 8]);
        let mut slices = [IoSliceMut::new(&mut left), IoSliceMut::new(&mut right)];
        assert_eq!(b.try_read_vectored(&mut slices).unwrap(), 6);
        assert_eq!((&left, &right[..4]), (b"on", &b"etwo"[..]));
        let full = [7; 100];
        assert_eq!(a.try_write_vectored(&[IoSlice::new(&full)]).unwrap(), 64);
        assert_eq!(a.try_write_vectored(&[IoSlice::new(&full)]).unwrap_err().kind(), ErrorKind::WouldBlock);
        a.shutdown_write().unwrap();
        let mut rest = [0; 100];
        assert_eq!(b.read(&mut rest).unwrap(), 64);
        assert!(b.is_closed_by_peer() && !a.is_closed_by_peer());
        assert_eq!(b.read(&mut rest).unwrap(), 0);
    }
}
