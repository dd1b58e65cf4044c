//! Moves bytes between a socket and memory, with a bound on how long a peer may hold things up.
//!
//! Reads and writes use the socket's readiness and go straight from and to the given memory, so dropping a
//! future at any await leaves nothing behind in the kernel.

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

/// Writes `head`, `meta` and then all pages straight from their slots. A page's pin is dropped as soon as the
/// kernel has taken the page, the others with the call's end at the latest.
pub(crate) async fn write_reply(
    stream: &Wire,
    patience: &Patience,
    head: &[u8],
    meta: &[u8],
    pages: &mut Vec<Option<PagePin>>,
) -> Result<(), Broken> {
    pages.retain(Option::is_some);
    let outcome = write_pieces(stream, patience, head, meta, pages).await;
    pages.clear();
    outcome
}

async fn write_pieces(
    stream: &Wire,
    patience: &Patience,
    head: &[u8],
    meta: &[u8],
    pages: &mut [Option<PagePin>],
) -> Result<(), Broken> {
    let count = pages.len() + 2;
    let mut progress = Progress::default();
    while !progress.is_done(count) {
        let sent = {
            let piece = |i: usize| piece(head, meta, pages, i);
            let mut slices = [IoSlice::new(&[]); PIECES];
            let used = PIECES.min(count - progress.piece);
            for (at, slice) in slices[..used].iter_mut().enumerate() {
                let skip = if at == 0 { progress.offset } else { 0 };
                *slice = IoSlice::new(&piece(progress.piece + at)[skip..]);
            }
            match stream.try_write_vectored(&slices[..used]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    patience.wait(stream.writable()).await?;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(Broken::Closed),
            }
        };
        let first = progress.piece;
        progress.advance(sent, |i| piece(head, meta, pages, i).len(), count);
        for taken in first.max(2)..progress.piece {
            pages[taken - 2] = None;
        }
        tokio::task::consume_budget().await;
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

fn piece<'a>(head: &'a [u8], meta: &'a [u8], pages: &'a [Option<PagePin>], i: usize) -> &'a [u8] {
    match i {
        0 => head,
        1 => meta,
        _ => pages[i - 2].as_deref().unwrap_or_default(),
    }
}
