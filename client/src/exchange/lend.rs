//! Put over shared memory: the server copies the pages from memory of this process, and says what became of them.
//!
//! A page is copied into the connection's staging memory and hashed on the way, while it is in the cache; the server copies it
//! from there. A page that is longer than a part of the staging memory is only hashed, and the server copies it
//! from the caller's memory, if the system lets it.
//!
//! A request carries the checksums, so they are computed before it is sent. Two requests are under way at any time: while
//! the server copies one sub-batch, the next is staged. Sub-batches are small, for the same reason. Replies come in order, so
//! a part of the staging memory is free when the request before the last is answered.
//!
//! Giving up is closing the connection. If the server still reads, it reads bytes that are no longer what they were, and
//! their checksum refuses them.

use super::{Batch, Step, Sub};
use crate::link::{Link, LinkError};
use crate::mover::Bound;
use crate::outcome;
use crate::shm::{STAGE_PART_BYTES, STAGE_PARTS};
use memkv_core::PageMeta;
use memkv_shm::Stage;
use memkv_transport::frame::{Code, FLAG_REMOTE, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES, REGION_OWN, REGION_STAGE, SPAN_BYTES, Span};

/// About the most bytes of pages in one request that the server reads from the caller's memory.
const LENT_BYTES: usize = 4 << 20;
/// About the most bytes of pages in one request that are staged: they stay in the cache until the server has read them.
const STAGED_BYTES: usize = 1 << 20;
/// The longest key.
const KEY_BYTES_MAX: usize = 512;
/// The most pieces of a page. Pages in more pieces go in frames.
const PIECES_MAX: usize = 1024;

pub(super) struct Lend {
    /// The first place not yet offered.
    next: usize,
    end: usize,
    /// Requests without a reply, in order.
    waiting: [Option<Sub>; STAGE_PARTS],
    /// The part of the staging memory that the next request uses.
    part: usize,
}

impl Lend {
    /// For a connection whose server reads memory of this process that all the pages can be in. Pages that it will not take
    /// are left to frames, which say so without their checksums.
    pub(super) fn new(link: &mut Link, batch: &Batch<'_>, from: usize, to: usize) -> Option<Self> {
        let Bound::Shm(shared) = &mut link.mover else { return None };
        // Where the system has no memory for it nothing is staged, also not later.
        shared.stage.take_if(|stage| !stage.ready());
        let len = |at| batch.pieces.page_len(batch.page(at));
        let all_fit = || (from..to).all(|at| len(at) <= STAGE_PART_BYTES);
        let is_read = shared.reads_client || shared.stage.is_some() && all_fit();
        let fits = is_read
            && (from..to).all(|at| batch.wire_len(batch.page(at)) <= link.limits.page_bytes_max)
            && batch.pieces.per_page() <= PIECES_MAX
            && record_bytes(batch) + KEY_BYTES_MAX <= link.limits.frame_meta_bytes_max as usize;
        fits.then_some(Self { next: from, end: to, waiting: [None; STAGE_PARTS], part: 0 })
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
            let mut stage = take_stage(link);
            let cut = self.cut(link, batch, stage.is_some());
            let sub = Sub { from: self.next, to: cut.to, id: link.request_id() };
            let mut header = batch.header(link, Op::Put, sub.id, sub.len());
            header.flags |= FLAG_REMOTE;
            let mut place = self.part * STAGE_PART_BYTES;
            link.queue(&header, |meta| {
                for at in sub.from..sub.to {
                    let staged = stage.as_mut().filter(|_| cut.is_staged).map(|stage| (stage, place));
                    push_page(meta, batch, batch.page(at), staged);
                    place += batch.pieces.page_len(batch.page(at));
                }
            });
            give_stage(link, stage);
            self.part = (self.part + 1) % STAGE_PARTS;
            self.next = cut.to;
            self.waiting[slot] = Some(sub);
            // The server begins while the checksums of the next pages are computed.
            if !link.flush()? {
                return Ok(false);
            }
        }
        link.flush()
    }

    /// The pages of the next request: those that follow each other and go the same way, as far as they fit.
    fn cut(&self, link: &Link, batch: &Batch<'_>, has_stage: bool) -> Cut {
        let to = batch.cut(self.next, self.end, &link.limits);
        let meta_max = link.limits.frame_meta_bytes_max as usize;
        let len = |at| batch.pieces.page_len(batch.page(at));
        let is_staged = |at| has_stage && len(at) <= STAGE_PART_BYTES;
        let first = is_staged(self.next);
        let bytes_max = if first { STAGED_BYTES } else { LENT_BYTES };
        let (mut bytes, mut meta) = (0, 0);
        let fits = (self.next..to).take_while(|&at| {
            bytes += len(at);
            meta += record_bytes(batch) + batch.key(batch.page(at)).as_bytes().len();
            is_staged(at) == first && bytes <= bytes_max && meta <= meta_max
        });
        Cut { to: self.next + fits.count().max(1), is_staged: first }
    }
}

/// What one request offers: the places up to `to`.
struct Cut {
    to: usize,
    /// Whether the pages go through the staging memory. They fit into one part of it.
    is_staged: bool,
}

/// Takes the staging memory out of a link, while that is written to.
fn take_stage(link: &mut Link) -> Option<Stage> {
    match &mut link.mover {
        Bound::Shm(shared) => shared.stage.take(),
        Bound::None | Bound::Rdma(_) => None,
    }
}

/// Puts back what [`take_stage`] took.
fn give_stage(link: &mut Link, stage: Option<Stage>) {
    if let Bound::Shm(shared) = &mut link.mover {
        shared.stage = stage;
    }
}

/// Bytes of what a request says of a page, without its key.
fn record_bytes(batch: &Batch<'_>) -> usize {
    10 + PAGE_RECORD_BYTES + 2 + batch.pieces.per_page() * SPAN_BYTES
}

/// Appends a page with its checksum and where it is; with staging memory and a place in it, copies it there.
fn push_page(meta: &mut Vec<u8>, batch: &Batch<'_>, page: usize, staged: Option<(&mut Stage, usize)>) {
    let (len, digest) = (batch.wire_len(page), batch.digests[page]);
    records::push_offered(meta, len, batch.position(page), batch.key(page));
    let mut push_record = |hash| {
        let raw = PageMeta { len, ..PageMeta::default() };
        let described = PageMeta { checksum: raw.checksum_of(hash), ..raw };
        meta.extend_from_slice(&records::page_record(Code::Ok, described));
    };
    if let Some((stage, place)) = staged {
        let copied = batch.pieces.copy_staged(stage, place, page, len as usize, digest);
        push_record(copied.expect("the memory is set aside, and the request was cut to fit its part"));
        let span = Span { region: REGION_STAGE, len, offset: place as u64 };
        records::push_spans(meta, std::iter::once(span));
        return;
    }
    push_record(batch.pieces.checksum(page, len as usize, digest));
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
