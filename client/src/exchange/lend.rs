//! Put over shared memory: the server copies the pages from this process' memory, and says what became of them.
//!
//! A request carries the checksums, so they are computed before it is sent. Two requests are under way at any time: while
//! the server copies one sub-batch, the checksums of the next are computed. Sub-batches are small, for the same reason.
//!
//! Giving up is closing the connection. If the server still reads, it reads bytes that are no longer what they were, and
//! their checksum refuses them.

use super::{Batch, Step, Sub};
use crate::link::{Link, LinkError};
use crate::mover::Bound;
use crate::outcome;
use memkv_core::PageMeta;
use memkv_transport::frame::{Code, FLAG_REMOTE, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES, REGION_OWN, SPAN_BYTES, Span};

/// About the most bytes of pages in one request.
const LENT_BYTES: usize = 4 << 20;
/// The longest key.
const KEY_BYTES_MAX: usize = 512;
/// The most pieces of a page. Pages in more pieces go in frames.
const PIECES_MAX: usize = 1024;

pub(super) struct Lend {
    /// The first place not yet offered.
    next: usize,
    end: usize,
    /// Requests without a reply, in order.
    waiting: [Option<Sub>; 2],
}

impl Lend {
    /// For a connection whose server reads this process' memory. Pages that it will not take are left to frames, which say
    /// so without their checksums.
    pub(super) fn new(link: &Link, batch: &Batch<'_>, from: usize, to: usize) -> Option<Self> {
        match &link.mover {
            Bound::Shm(shared)
                if shared.reads_client
                    && (from..to).all(|at| batch.wire_len(batch.page(at)) <= link.limits.page_bytes_max)
                    && batch.pieces.per_page() <= PIECES_MAX
                    && record_bytes(batch) + KEY_BYTES_MAX <= link.limits.frame_meta_bytes_max as usize =>
            {
                Some(Self { next: from, end: to, waiting: [None; 2] })
            }
            Bound::None | Bound::Shm(_) | Bound::Rdma(_) => None,
        }
    }

    pub(super) fn advance(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<Step, LinkError> {
        loop {
            let write = !self.offer(link, batch)?;
            let Some(sub) = self.waiting[0] else { return Ok(Step::Done) };
            let ahead = if self.waiting[1].is_none() { sub.len() } else { 0 };
            let Some(header) = link.read_frame(ahead)? else { return Ok(Step::Wait { write }) };
            if header.op != Op::Put || header.request_id != sub.id {
                return Err(LinkError::Unexpected("it answers another request"));
            }
            if header.body_len != 0 {
                return Err(LinkError::Unexpected("it has a body"));
            }
            self.waiting = [self.waiting[1], None];
            take_verdicts(header.status, header.count, sub, link, batch)?;
            link.end_frame();
        }
    }

    /// Sends requests until two are under way; `false` if the socket is full.
    fn offer(&mut self, link: &mut Link, batch: &Batch<'_>) -> Result<bool, LinkError> {
        for slot in 0..self.waiting.len() {
            if self.waiting[slot].is_some() || self.next == self.end {
                continue;
            }
            let to = self.cut(link, batch);
            let sub = Sub { from: self.next, to, id: link.request_id() };
            let mut header = batch.header(link, Op::Put, sub.id, sub.len());
            header.flags |= FLAG_REMOTE;
            link.queue(&header, |meta| {
                for at in sub.from..sub.to {
                    push_page(meta, batch, batch.page(at));
                }
            });
            self.next = to;
            self.waiting[slot] = Some(sub);
            // The server begins while the checksums of the next pages are computed.
            if !link.flush()? {
                return Ok(false);
            }
        }
        link.flush()
    }

    fn cut(&self, link: &Link, batch: &Batch<'_>) -> usize {
        let to = batch.cut(self.next, self.end, &link.limits);
        let meta_max = link.limits.frame_meta_bytes_max as usize;
        let (mut bytes, mut meta) = (0, 0);
        let fits = (self.next..to).take_while(|&at| {
            let page = batch.page(at);
            bytes += batch.pieces.page_len(page);
            meta += record_bytes(batch) + batch.key(page).as_bytes().len();
            bytes <= LENT_BYTES && meta <= meta_max
        });
        self.next + fits.count().max(1)
    }
}

/// Bytes of what a request says of a page, without its key.
fn record_bytes(batch: &Batch<'_>) -> usize {
    10 + PAGE_RECORD_BYTES + 2 + batch.pieces.per_page() * SPAN_BYTES
}

/// Appends a page with its checksum and where it is.
fn push_page(meta: &mut Vec<u8>, batch: &Batch<'_>, page: usize) {
    let len = batch.wire_len(page);
    records::push_offered(meta, len, batch.position(page), batch.key(page));
    let hash = batch.pieces.checksum(page, len as usize, batch.digests[page]);
    let raw = PageMeta { len, ..PageMeta::default() };
    let described = PageMeta { checksum: raw.checksum_of(hash), ..raw };
    meta.extend_from_slice(&records::page_record(Code::Ok, described));
    let spans = batch.pieces.addresses(page).map(|(offset, len)| Span {
        region: REGION_OWN,
        // A page's length is a `u32`, so are those of its pieces.
        len: u32::try_from(len).unwrap_or(u32::MAX),
        offset,
    });
    records::push_spans(meta, spans);
}

fn take_verdicts(
    status: Code,
    count: u32,
    sub: Sub,
    link: &mut Link,
    batch: &mut Batch<'_>,
) -> Result<(), LinkError> {
    if status != Code::Ok {
        link.note_refusal(status);
        return batch.settle(sub, Op::Put, status);
    }
    if count as usize != sub.len() || link.meta().len() != sub.len() {
        return Err(LinkError::Unexpected("it has another number of verdicts"));
    }
    for (&byte, at) in link.meta().iter().zip(sub.from..sub.to) {
        let code = Code::from_wire(byte).filter(|&code| code != Code::Want);
        let code = code.ok_or(LinkError::Unexpected("a verdict is not known"))?;
        let page = batch.page(at);
        batch.outcomes[page] = outcome::from_code(Op::Put, code);
    }
    Ok(())
}
