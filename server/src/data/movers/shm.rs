//! Pages through memory that the server and a client on the same host share.
//!
//! Get: the pages stay where they are, pinned, while the client copies them; it can map the memory for pages, and only
//! to read. Put: the server copies the pages into slots, from staging memory that the client passed, or from wherever they
//! are in the client's process.
//!
//! Invariants:
//! - pages are lent until the client releases them, asks for something else, or its connection ends, and never for
//!   longer than a peer may stall;
//! - what is copied from the client is judged after it was copied;
//! - only spans inside the staging memory are read from it, and none of the process if it may not be read.

use crate::metrics::Metrics;
use memkv_shm::{Peer, View};
use memkv_storage::PagePin;
use memkv_transport::records::{REGION_OWN, REGION_STAGE, Span, Spans};
use std::io;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// Shared memory of one connection.
#[derive(Debug)]
pub(crate) struct Shm {
    /// Where its puts are read.
    pub(crate) reads: Reads,
    /// Whether the client was given the memory for pages.
    pub(crate) is_shared: bool,
    lent: Vec<Option<PagePin>>,
    until: Option<Instant>,
}

impl Shm {
    /// Nothing is lent yet.
    pub(crate) fn new(reads: Reads, is_shared: bool) -> Self {
        Self { reads, is_shared, lent: Vec::new(), until: None }
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

/// What of a client can be read.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The client's process, if its memory can be read.
    pub(crate) peer: Option<Peer>,
    /// The staging memory that it passed.
    pub(crate) stage: Option<View>,
    /// Whether the system keeps the staging memory where it can be read at once.
    pub(crate) is_held: bool,
}

/// What is copied in less time than it takes to hand the thread's other work on: from memory that may be slow, and from
/// staging memory that is held. The latter is more than a client stages at once.
const QUICK_BYTES: u64 = 256 << 10;
const QUICK_HELD_BYTES: u64 = 4 << 20;

impl Reads {
    /// From a client's process and staging memory, as far as they can be read.
    pub(crate) fn new(peer: Option<Peer>, stage: Option<View>) -> Self {
        let is_held = stage.as_ref().is_some_and(View::hold);
        Self { peer, stage, is_held }
    }

    /// Whether so many bytes of allowed spans are copied in a moment, whatever the client does.
    pub(crate) fn is_quick<'s>(&self, bytes: u64, mut pages: impl Iterator<Item = Spans<'s>>) -> bool {
        let is_staged = |spans: Spans<'_>| spans.iter().all(|span| span.region == REGION_STAGE);
        bytes <= QUICK_BYTES || bytes <= QUICK_HELD_BYTES && self.is_held && pages.all(is_staged)
    }

    /// Whether a page's spans may be read: all of them in the client's process, or all in the staging memory.
    pub(crate) fn allow(&self, spans: Spans<'_>) -> bool {
        let staged = |span: Span, stage: &View| {
            let end = span.offset.checked_add(span.len.into());
            span.region == REGION_STAGE && end.is_some_and(|end| end <= stage.len())
        };
        self.peer.is_some() && spans.iter().all(|span| span.region == REGION_OWN)
            || self.stage.as_ref().is_some_and(|stage| spans.iter().all(|span| staged(span, stage)))
    }

    /// Reads the bytes of a page, whose spans are allowed, one part after the other.
    pub(crate) fn reader<'a>(&'a self, spans: Spans<'a>) -> impl FnMut(&mut [u8]) -> io::Result<()> + 'a {
        let is_own = spans.iter().all(|span| span.region == REGION_OWN);
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
            match (&self.peer, &self.stage) {
                (Some(peer), _) if is_own => peer.read(pieces, out),
                (_, Some(stage)) if !is_own => read_stage(stage, pieces, out),
                _ => Err(io::ErrorKind::InvalidInput.into()),
            }
        }
    }
}

/// Copies pieces, each an offset and a length in bytes, one after the other into `out`, which they fill.
fn read_stage(
    stage: &View,
    pieces: impl Iterator<Item = (u64, usize)>,
    mut out: &mut [u8],
) -> io::Result<()> {
    for (at, len) in pieces {
        let (now, later) = out.split_at_mut_checked(len).ok_or(io::ErrorKind::InvalidInput)?;
        if !stage.read(at, now) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        out = later;
    }
    if out.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_transport::records::{self, RemoteOffered};

    const CUTS: [usize; 6] = [0, 7, 7, 50, 99, 100];

    fn own(bytes: &[u8]) -> u64 {
        bytes.as_ptr().expose_provenance() as u64
    }

    fn peer() -> Peer {
        let content = std::hint::black_box(*b"12345678");
        let user = rustix::process::geteuid().as_raw();
        Peer::new(i32::try_from(std::process::id()).ok(), user, own(&content), content).unwrap()
    }

    /// Staging memory of 300 bytes that holds `source` from byte 200 on.
    fn stage(source: &[u8]) -> View {
        let mut stage = memkv_shm::Stage::new(300).unwrap();
        assert!(stage.write(200, source));
        View::of_other(stage.descriptor(), 300).unwrap()
    }

    /// The meta section of an offer with these spans.
    fn offer(spans: &[Span]) -> Vec<u8> {
        let mut meta = Vec::new();
        let len = spans.iter().map(|span| span.len).sum();
        records::push_offered(&mut meta, len, 1, memkv_core::Key::new(b"k").unwrap());
        let page = memkv_core::PageMeta { len, ..Default::default() };
        meta.extend_from_slice(&records::page_record(memkv_transport::frame::Code::Ok, page));
        records::push_spans(&mut meta, spans.iter().copied());
        meta
    }

    fn spans_of(meta: &[u8]) -> Spans<'_> {
        let RemoteOffered { spans, .. } = records::remote_offered(meta, 1).next().unwrap().unwrap();
        spans
    }

    fn cut(region: u32, first: u64) -> Vec<Span> {
        let span =
            |cut: &[usize]| Span { region, len: (cut[1] - cut[0]) as u32, offset: first + cut[0] as u64 };
        CUTS.windows(2).map(span).collect()
    }

    #[test]
    fn parts_follow_each_other_across_spans() {
        let source: Vec<u8> = (0..100).collect();
        let reads = Reads::new(Some(peer()), Some(stage(&source)));
        for spans in [cut(REGION_OWN, own(&source)), cut(REGION_STAGE, 200)] {
            let meta = offer(&spans);
            let spans = spans_of(&meta);
            assert!(reads.allow(spans));
            for part in [1, 3, 8, 64, 100] {
                let (mut read, mut out) = (reads.reader(spans), vec![0; 100]);
                out.chunks_mut(part).for_each(|part| read(part).unwrap());
                assert_eq!(out, source, "in parts of {part}");
                assert!(read(&mut [0]).is_err(), "there is no more");
            }
        }
    }

    #[test]
    fn a_thread_with_other_work_copies_only_what_cannot_be_slow() {
        let (near, staged) = (offer(&cut(REGION_OWN, 64)), offer(&cut(REGION_STAGE, 200)));
        let [near, staged] = [&near, &staged].map(|meta| spans_of(meta));
        let mut reads = Reads::new(Some(peer()), Some(stage(&[])));
        assert!(reads.is_held, "every system lets a process lock a page");
        assert!(reads.is_quick(QUICK_HELD_BYTES, [staged, staged].into_iter()));
        assert!(
            !reads.is_quick(QUICK_HELD_BYTES + 1, [staged].into_iter()),
            "spans may name the same bytes again"
        );
        assert!(!reads.is_quick(QUICK_BYTES + 1, [staged, near].into_iter()));
        assert!(reads.is_quick(QUICK_BYTES, [near].into_iter()));
        reads.is_held = false;
        assert!(!reads.is_quick(QUICK_BYTES + 1, [staged].into_iter()));
    }

    #[test]
    fn only_what_was_given_may_be_read() {
        let (near, staged) = (cut(REGION_OWN, 64), cut(REGION_STAGE, 200));
        let allow = |reads: &Reads, spans: &[Span]| reads.allow(spans_of(&offer(spans)));
        let nothing = Reads::default();
        assert!(!allow(&nothing, &near) && !allow(&nothing, &staged));
        let process = Reads::new(Some(peer()), None);
        assert!(allow(&process, &near) && !allow(&process, &staged));
        let stage = Reads::new(None, Some(stage(&[])));
        assert!(!allow(&stage, &near) && allow(&stage, &staged));
        let both = Reads::new(process.peer, stage.stage);
        assert!(!allow(&both, &[near, staged].concat()), "one page is in one place");
        for (offset, len) in [(0, 301), (300, 1), (299, 2), (u64::MAX, 1), (u64::MAX - 4, 100)] {
            assert!(!allow(&both, &[Span { region: REGION_STAGE, len, offset }]), "{offset} {len}");
        }
        assert!(allow(&both, &[Span { region: REGION_STAGE, len: 300, offset: 0 }]));
        assert!(!allow(&both, &[Span { region: 0, len: 1, offset: 0 }]));
    }
}
