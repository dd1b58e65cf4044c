//! Moves bytes between a socket and memory, with a bound on how long a peer may hold things up.
//!
//! Reads and writes use the socket's readiness and go straight from and to the given memory, so dropping a
//! future at any await leaves nothing behind in the kernel.

use super::aside::Asides;
use super::slow::{Held, Slow};
use super::wire::Wire;
use crate::sessions::Session;
use memkv_storage::PagePin;
use memkv_transport::iov::Progress;
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Pieces of one vectored write.
const PIECES: usize = 128;

/// Why a transfer ended early. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The peer closed the connection or it failed.
    #[error("connection closed")]
    Closed,
    /// The peer made no progress for too long.
    #[error("the peer stalled in the middle of a request")]
    Stalled,
    /// The peer does not read, and what lies with it is wanted for others.
    #[error("the peer does not read while others wait for memory of sockets")]
    Unread,
}

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Without any progress.
    pub(crate) stall: Duration,
    /// For the whole request.
    pub(crate) until: Instant,
}

/// A socket of which nothing is heard is written to this often within the time that a peer may stall. The kernel says once
/// that there is room, and where it is short of memory for sockets it may have said so before it took nothing.
const LOOKS: u32 = 8;
/// And at least this often, so that those who hold too much together go soon.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Patience {
    /// When a peer that took nothing since `since` is given up.
    fn end(&self, since: Instant) -> Instant {
        self.until.min(since + self.stall)
    }

    async fn wait(&self, ready: impl Future<Output = io::Result<()>>) -> Result<(), Broken> {
        let end = self.end(Instant::now());
        match timeout_at(end, ready).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Broken::Closed),
            Err(_elapsed) => Err(Broken::Stalled),
        }
    }
}

/// Runs one non-blocking read until it yields bytes.
pub(crate) async fn read_some(
    stream: &Wire,
    patience: &Patience,
    mut read: impl FnMut(&Wire) -> io::Result<usize>,
) -> Result<usize, Broken> {
    loop {
        match read(stream) {
            Ok(0) => return Err(Broken::Closed),
            Ok(bytes) => {
                // A fast peer must not keep other connections of this thread waiting.
                tokio::task::consume_budget().await;
                return Ok(bytes);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => patience.wait(stream.readable()).await?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Broken::Closed),
        }
    }
}

/// Fills `buf`.
pub(crate) async fn read_exact(stream: &Wire, patience: &Patience, buf: &mut [u8]) -> Result<(), Broken> {
    let mut filled = 0;
    while filled < buf.len() {
        filled += read_some(stream, patience, |s| s.try_read(&mut buf[filled..])).await?;
    }
    Ok(())
}

/// A reply that is being written: a header, records, and then pages straight from their slots.
pub(crate) struct Reply<'a> {
    head: &'a [u8],
    meta: &'a [u8],
    pages: &'a mut [Option<PagePin>],
    progress: Progress,
}

impl Reply<'_> {
    /// Bytes of its pages.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages.iter().flatten().map(|page| page.len() as u64).sum()
    }

    /// Whether all of it was written.
    pub(crate) fn is_done(&self) -> bool {
        self.progress.is_done(self.count())
    }

    fn count(&self) -> usize {
        self.pages.len() + 2
    }

    /// Writes what one call takes, and drops the pins of pages that are through.
    ///
    /// # Errors
    ///
    /// What the call says.
    pub(crate) fn write(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let count = self.count();
        let first = self.progress.piece;
        let mut slices = [IoSlice::new(&[]); PIECES];
        let used = PIECES.min(count - first);
        for (at, slice) in slices[..used].iter_mut().enumerate() {
            let skip = if at == 0 { self.progress.offset } else { 0 };
            *slice = IoSlice::new(&self.piece(first + at)[skip..]);
        }
        let sent = write(&slices[..used])?;
        let mut progress = self.progress;
        progress.advance(sent, |i| self.piece(i).len(), count);
        self.progress = progress;
        for taken in first.max(2)..progress.piece {
            self.pages[taken - 2] = None;
        }
        Ok(())
    }

    fn piece(&self, i: usize) -> &[u8] {
        match i {
            0 => self.head,
            1 => self.meta,
            _ => self.pages[i - 2].as_deref().unwrap_or_default(),
        }
    }
}

/// What a connection that was proved has in common with others.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) asides: &'a Asides,
    pub(crate) slow: &'a Slow,
    pub(crate) session: &'a Session,
}

/// Writes a header, records, and then all pages straight from their slots. A page's pin is dropped as soon as the
/// kernel has taken the page, the others with the call's end at the latest.
pub(crate) async fn write_reply(
    stream: &Wire,
    patience: &Patience,
    shared: Option<Shared<'_>>,
    (head, meta): (&[u8], &[u8]),
    pages: &mut Vec<Option<PagePin>>,
) -> Result<(), Broken> {
    pages.retain(Option::is_some);
    let mut reply = Reply { head, meta, pages, progress: Progress::default() };
    let mut outcome = shared.map_or(Ok(()), |shared| shared.asides.write(stream, patience, &mut reply));
    if outcome.is_ok() {
        outcome = write_rest(stream, patience, shared, &mut reply).await;
    }
    pages.clear();
    outcome
}

async fn write_rest(
    stream: &Wire,
    patience: &Patience,
    shared: Option<Shared<'_>>,
    reply: &mut Reply<'_>,
) -> Result<(), Broken> {
    let (mut since, mut is_silent, mut held) = (None, false, None);
    while !reply.is_done() {
        let written = reply.write(|slices| match stream.plain().filter(|_| is_silent) {
            // Past what the runtime heard of the socket.
            Some(socket) => Ok(rustix::io::writev(socket, slices)?),
            None => stream.try_write_vectored(slices),
        });
        match written {
            // A fast peer must not keep other connections of this thread waiting.
            Ok(()) => {
                (since, is_silent, held) = (None, false, None);
                tokio::task::consume_budget().await;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let now = Instant::now();
                let since = *since.get_or_insert(now);
                let end = patience.end(since);
                if now >= end {
                    return Err(Broken::Stalled);
                }
                if held.is_none() {
                    held = shared.map(|shared| shared.slow.hold(stream, shared.session));
                }
                let look = end.min(now + LOOK_AGAIN.min(patience.stall / LOOKS));
                let ready = tokio::select! {
                    biased;
                    ready = timeout_at(look, stream.writable()) => ready,
                    () = given_up(held.as_ref()) => return Err(Broken::Unread),
                };
                match ready {
                    Ok(Ok(())) => is_silent = false,
                    Ok(Err(_)) => return Err(Broken::Closed),
                    Err(_elapsed) => {
                        is_silent = true;
                        if let Some(shared) = shared {
                            shared.slow.give_up();
                        }
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Broken::Closed),
        }
    }
    flush(stream, patience).await
}

async fn given_up(held: Option<&Held<'_>>) {
    match held {
        Some(held) => held.given_up().await,
        None => std::future::pending().await,
    }
}

/// Waits until everything that was written has left. Costs nothing without TLS.
async fn flush(stream: &Wire, patience: &Patience) -> Result<(), Broken> {
    loop {
        match stream.try_flush() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => patience.wait(stream.writable()).await?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Broken::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use tokio::io::Interest;

    #[tokio::test]
    async fn a_socket_that_was_called_full_and_is_not_is_written_to_all_the_same() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut other, _) = listener.accept().unwrap();
        stream.writable().await.unwrap();
        // As the runtime has it after the kernel took nothing, for whatever reason: no news will come.
        let nothing = || Err::<(), _>(ErrorKind::WouldBlock.into());
        assert!(stream.try_io(Interest::WRITABLE, nothing).is_err());
        let wire = Wire::Tcp(stream);
        let stall = Duration::from_secs(4);
        let patience = Patience { stall, until: Instant::now() + 2 * stall };
        let mut reply =
            Reply { head: b"head", meta: b"meta", pages: &mut Vec::new(), progress: Progress::default() };
        write_rest(&wire, &patience, None, &mut reply).await.unwrap();
        drop(wire);
        let mut came = Vec::new();
        other.read_to_end(&mut came).unwrap();
        assert_eq!(came, b"headmeta");
    }
}
