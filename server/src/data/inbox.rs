//! The receive buffer of one data connection: frames' headers and records, never pages.
//!
//! While an offer waits for its pages, only a header's bytes are read ahead, so that the pages that follow it go
//! straight from the socket to their slots.
//!
//! The buffer is made when the first frame comes: a connection that never asks for anything costs its socket and its task.

use super::transfer::{Broken, Patience, read_exact, read_some};
use super::wire::Wire;
use memkv_transport::frame::HEADER_BYTES;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes read ahead at most.
const BUFFER_BYTES: usize = 32 << 10;
/// A meta buffer that grew beyond this is given back after its request.
const META_KEPT_BYTES: usize = 96 << 10;

/// How long to look for the next frame before sleeping: about what it takes to wake a processor.
const LOOK: Duration = Duration::from_micros(50);
/// A request that took longer than this ends no wait that looking would shorten.
const LOOK_AFTER: Duration = Duration::from_micros(500);
/// After so many waits in a row that outlasted it, looking stops, and is tried again after as many waits as `RETRY`.
const MISSES_MAX: u32 = 8;
const RETRY: u32 = 64;

/// Bytes that were received and not yet used.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Empty until the first frame comes.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    filled_at: Instant,
    meta: Vec<u8>,
    /// Waits in a row in which looking was in vain, and waits since without looking.
    misses: u32,
}

impl Inbox {
    /// An empty buffer.
    pub(crate) fn new() -> Self {
        Self {
            buffer: Box::default(),
            start: 0,
            end: 0,
            filled_at: Instant::now(),
            meta: Vec::new(),
            misses: 0,
        }
    }

    /// Whether bytes of a next frame are here.
    pub(crate) fn has_bytes(&self) -> bool {
        self.start < self.end
    }

    /// When the newest byte came.
    pub(crate) fn filled_at(&self) -> Instant {
        self.filled_at
    }

    /// Waits for the first byte of a frame, however long that takes. Dropping the future loses nothing.
    pub(crate) async fn wait(&mut self, stream: &Wire, only_header: bool) -> Result<(), Broken> {
        let is_new = self.buffer.is_empty();
        let mut look = if is_new || stream.is_simulated() { None } else { self.look() };
        while !self.has_bytes() {
            match look {
                Some(until) if Instant::now() < until => tokio::task::yield_now().await,
                Some(_) => {
                    look = None;
                    self.misses = (self.misses + 1).min(MISSES_MAX);
                    continue;
                }
                None => stream.readable().await.map_err(|_| Broken::Closed)?,
            }
            if self.buffer.is_empty() {
                self.buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
            }
            (self.start, self.end) = (0, 0);
            let most = if only_header { HEADER_BYTES } else { BUFFER_BYTES };
            match stream.try_read(&mut self.buffer[..most]) {
                Ok(0) => return Err(Broken::Closed),
                Ok(bytes) => self.took(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Closed),
            }
        }
        if look.is_some() {
            self.misses = 0;
        }
        Ok(())
    }

    /// Until when to look for the next frame before sleeping: a client that asks again at once is answered without the
    /// wake of a processor. A connection whose frames come later than that is not looked at, but for a try now
    /// and then.
    fn look(&mut self) -> Option<Instant> {
        if self.has_bytes() || self.filled_at.elapsed() > LOOK_AFTER {
            return None;
        }
        if self.misses >= MISSES_MAX {
            self.misses = if self.misses >= MISSES_MAX + RETRY { MISSES_MAX - 1 } else { self.misses + 1 };
            return None;
        }
        Some(Instant::now() + LOOK)
    }

    /// The next frame's header.
    pub(crate) async fn header(
        &mut self,
        stream: &Wire,
        patience: &Patience,
        only_header: bool,
    ) -> Result<[u8; HEADER_BYTES], Broken> {
        if self.end - self.start < HEADER_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < HEADER_BYTES {
            let most = if only_header { HEADER_BYTES } else { BUFFER_BYTES };
            let room = &mut self.buffer[self.end..most];
            let bytes = read_some(stream, patience, |s| s.try_read(room)).await?;
            self.took(bytes);
        }
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&self.buffer[self.start..self.start + HEADER_BYTES]);
        self.start += HEADER_BYTES;
        Ok(header)
    }

    /// The next `len` bytes as a meta section. The caller has checked `len` against its limit.
    pub(crate) async fn meta(
        &mut self,
        stream: &Wire,
        patience: &Patience,
        len: usize,
    ) -> Result<Vec<u8>, Broken> {
        let mut meta = std::mem::take(&mut self.meta);
        meta.clear();
        meta.extend_from_slice(self.buffered(len));
        let had = meta.len();
        self.start += had;
        if had < len {
            meta.resize(len, 0);
            read_exact(stream, patience, &mut meta[had..]).await?;
            self.filled_at = Instant::now();
        }
        Ok(meta)
    }

    /// Gives a meta buffer back for the next request.
    pub(crate) fn recycle(&mut self, mut meta: Vec<u8>) {
        if meta.capacity() > META_KEPT_BYTES {
            meta = Vec::new();
        }
        self.meta = meta;
    }

    /// Up to `most` bytes that are here already; [`Inbox::consume`] uses them up.
    pub(crate) fn buffered(&self, most: usize) -> &[u8] {
        &self.buffer[self.start..self.end.min(self.start.saturating_add(most))]
    }

    /// Uses up the first `bytes` bytes of [`Inbox::buffered`].
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start = self.end.min(self.start + bytes);
    }

    fn took(&mut self, bytes: usize) {
        self.end += bytes;
        self.filled_at = Instant::now();
    }
}
