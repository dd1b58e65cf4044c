//! Moves bytes between a socket and memory, with a bound on how long a peer may hold things up.
//!
//! Reads and writes use the socket's readiness and go straight from and to the given memory, so dropping a
//! future at any await leaves nothing behind in the kernel.

use super::aside::Asides;
use super::wire::Wire;
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
}

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Without any progress.
    pub(crate) stall: Duration,
    /// For the whole request.
    pub(crate) until: Instant,
}

impl Patience {
    async fn wait(&self, ready: impl Future<Output = io::Result<()>>) -> Result<(), Broken> {
        let end = self.until.min(Instant::now() + self.stall);
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

/// Writes a header, records, and then all pages straight from their slots. A page's pin is dropped as soon as the
/// kernel has taken the page, the others with the call's end at the latest.
pub(crate) async fn write_reply(
    stream: &Wire,
    patience: &Patience,
    asides: Option<&Asides>,
    (head, meta): (&[u8], &[u8]),
    pages: &mut Vec<Option<PagePin>>,
) -> Result<(), Broken> {
    pages.retain(Option::is_some);
    let mut reply = Reply { head, meta, pages, progress: Progress::default() };
    let mut outcome = asides.map_or(Ok(()), |asides| asides.write(stream, patience, &mut reply));
    if outcome.is_ok() {
        outcome = write_rest(stream, patience, &mut reply).await;
    }
    pages.clear();
    outcome
}

async fn write_rest(stream: &Wire, patience: &Patience, reply: &mut Reply<'_>) -> Result<(), Broken> {
    while !reply.is_done() {
        match reply.write(|slices| stream.try_write_vectored(slices)) {
            // A fast peer must not keep other connections of this thread waiting.
            Ok(()) => tokio::task::consume_budget().await,
            Err(error) if error.kind() == ErrorKind::WouldBlock => patience.wait(stream.writable()).await?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Broken::Closed),
        }
    }
    flush(stream, patience).await
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
