//! Pages through memory that the server and a client on the same host share.
//!
//! Get: the pages stay where they are, pinned, while the client copies them; it can map the memory for pages, and only
//! to read. Put: the server copies the pages from the client's memory into slots.
//!
//! Invariants:
//! - pages are lent until the client releases them, asks for something else, or its connection ends, and never for
//!   longer than a peer may stall;
//! - what is copied from the client is judged after it was copied.

use crate::metrics::Metrics;
use memkv_shm::Peer;
use memkv_storage::PagePin;
use memkv_transport::records::{REGION_OWN, Spans};
use std::io;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// Shared memory of one connection.
#[derive(Debug)]
pub(crate) struct Shm {
    /// The client, if its memory can be read.
    pub(crate) peer: Option<Peer>,
    /// Whether the client was given the memory for pages.
    pub(crate) is_shared: bool,
    lent: Vec<Option<PagePin>>,
    until: Option<Instant>,
}

impl Shm {
    /// Nothing is lent yet.
    pub(crate) fn new(peer: Option<Peer>, is_shared: bool) -> Self {
        Self { peer, is_shared, lent: Vec::new(), until: None }
    }

    /// Keeps the pages of a reply where they are, until `until` at the latest. `pins` gets an empty list in exchange.
    pub(crate) fn lend(&mut self, pins: &mut Vec<Option<PagePin>>, until: Instant, metrics: &Metrics) {
        self.release(metrics);
        std::mem::swap(&mut self.lent, pins);
        let pages = count(&self.lent);
        metrics.shm_lent_pages.fetch_add(pages, Ordering::Relaxed);
        self.until = (pages > 0).then_some(until);
    }

    /// The client has what it wanted.
    pub(crate) fn release(&mut self, metrics: &Metrics) {
        metrics.shm_lent_pages.fetch_sub(count(&self.lent), Ordering::Relaxed);
        self.lent.clear();
        self.until = None;
    }

    /// How long the client may take.
    pub(crate) fn lent_until(&self) -> Option<Instant> {
        self.until
    }
}

fn count(lent: &[Option<PagePin>]) -> u64 {
    lent.iter().flatten().count() as u64
}

/// Whether all spans are memory of the client's own.
pub(crate) fn are_own(spans: Spans<'_>) -> bool {
    spans.iter().all(|span| span.region == REGION_OWN)
}

/// Reads the bytes of a page one part after the other from the client's memory.
pub(crate) fn reader<'a>(peer: &'a Peer, spans: Spans<'a>) -> impl FnMut(&mut [u8]) -> io::Result<()> + 'a {
    let mut spans = spans.iter();
    let (mut at, mut len) = (0_u64, 0_usize);
    move |out| {
        let mut left = out.len();
        let pieces = std::iter::from_fn(|| {
            if left == 0 {
                return None;
            }
            while len == 0 {
                let span = spans.next()?;
                (at, len) = (span.offset, span.len as usize);
            }
            let piece = (at, len.min(left));
            (at, len) = (at.wrapping_add(piece.1 as u64), len - piece.1);
            left -= piece.1;
            Some(piece)
        });
        peer.read(pieces, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_transport::records::{self, RemoteOffered, Span};

    #[test]
    fn parts_follow_each_other_across_spans() {
        let content = std::hint::black_box(*b"12345678");
        let own = |bytes: &[u8]| bytes.as_ptr().expose_provenance() as u64;
        let user = rustix::process::geteuid().as_raw();
        let peer = Peer::new(i32::try_from(std::process::id()).ok(), user, own(&content), content).unwrap();
        let source: Vec<u8> = (0..100).collect();
        let cuts = [0, 7, 7, 50, 99, 100];
        let spans = cuts.windows(2).map(|cut| Span {
            region: REGION_OWN,
            len: (cut[1] - cut[0]) as u32,
            offset: own(&source) + cut[0] as u64,
        });
        let mut meta = Vec::new();
        records::push_offered(&mut meta, 100, 1, memkv_core::Key::new(b"k").unwrap());
        let page = memkv_core::PageMeta { len: 100, ..Default::default() };
        meta.extend_from_slice(&records::page_record(memkv_transport::frame::Code::Ok, page));
        records::push_spans(&mut meta, spans.collect::<Vec<_>>().into_iter());
        let RemoteOffered { spans, .. } = records::remote_offered(&meta, 1).next().unwrap().unwrap();
        assert!(are_own(spans));
        for part in [1, 3, 8, 64, 100] {
            let (mut read, mut out) = (reader(&peer, spans), vec![0; 100]);
            out.chunks_mut(part).for_each(|part| read(part).unwrap());
            assert_eq!(out, source, "in parts of {part}");
            assert!(read(&mut [0]).is_err(), "there is no more");
        }
    }
}
