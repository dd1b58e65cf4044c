//! Get over shared memory: the server says where the pages are, this side copies them, and says that it has them.
//!
//! One request is under way at a time: the next one would say that the pages of the last are read. The server's part is
//! small, so there is little to overlap.

use super::{Batch, Step, Sub};
use crate::link::{Link, LinkError};
use crate::mover::Bound;
use crate::outcome::{self, PageOutcome};
use memkv_core::PageMeta;
use memkv_shm::View;
use memkv_transport::frame::{Code, FLAG_EXACT, FLAG_REMOTE, Header, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES};
use std::sync::Arc;

/// Bytes of an offset in a reply.
const OFFSET_BYTES: usize = 8;

pub(super) struct Near {
    view: Arc<View>,
    /// The first place not yet asked for.
    next: usize,
    end: usize,
    /// The request without a reply.
    waiting: Option<Sub>,
    /// The request whose pages the server keeps in place for us.
    lent: Option<u64>,
}

impl Near {
    /// For a connection that shares memory.
    pub(super) fn new(link: &Link, from: usize, to: usize) -> Option<Self> {
        match &link.mover {
            Bound::Shm(shared) => {
                let view = shared.view.clone()?;
                Some(Self { view, next: from, end: to, waiting: None, lent: None })
            }
            Bound::None | Bound::Rdma(_) => None,
        }
    }

    pub(super) fn advance(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<Step, LinkError> {
        loop {
            if self.waiting.is_none() && self.next < self.end {
                self.ask(link, batch);
            }
            if self.waiting.is_none()
                && let Some(id) = self.lent.take()
            {
                link.queue(&Header::request(Op::Release, id, batch.space, 0), |_| {});
            }
            let write = !link.flush()?;
            let Some(sub) = self.waiting else {
                return Ok(if write { Step::Wait { write } } else { Step::Done });
            };
            let Some(header) = link.read_frame(reply_bytes(sub.len()))? else {
                return Ok(Step::Wait { write });
            };
            self.waiting = None;
            self.take_reply(&header, sub, link, batch)?;
            link.end_frame();
        }
    }

    fn ask(&mut self, link: &mut Link, batch: &Batch<'_>) {
        let to = batch.cut(self.next, self.end, &link.limits);
        let sub = Sub { from: self.next, to, id: link.request_id() };
        let mut header = batch.header(link, Op::Get, sub.id, sub.len());
        header.flags |= FLAG_REMOTE;
        link.queue(&header, |meta| {
            for at in sub.from..sub.to {
                let page = batch.page(at);
                records::push_wanted(meta, batch.wire_len(page), batch.key(page));
            }
        });
        self.next = to;
        // The request itself says that what was lent before is read.
        self.lent = None;
        self.waiting = Some(sub);
    }

    fn take_reply(
        &mut self,
        header: &Header,
        sub: Sub,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        if header.op != Op::Get || header.request_id != sub.id {
            return Err(LinkError::Unexpected("it answers another request"));
        }
        if header.body_len != 0 {
            return Err(LinkError::Unexpected("it has a body"));
        }
        if header.status != Code::Ok {
            link.note_refusal(header.status);
            return batch.settle(sub, Op::Get, header.status);
        }
        if header.count as usize != sub.len() || header.meta_len as usize != reply_bytes(sub.len()) {
            return Err(LinkError::Unexpected("it has another number of records"));
        }
        let (entries, offsets) = link.meta().split_at(sub.len() * PAGE_RECORD_BYTES);
        let (entries, _) = entries.as_chunks::<PAGE_RECORD_BYTES>();
        let (offsets, _) = offsets.as_chunks::<OFFSET_BYTES>();
        let mut overtaken = false;
        for ((entry, offset), at) in entries.iter().zip(offsets).zip(sub.from..sub.to) {
            let (code, meta) = records::read_page_record(entry)?;
            let page = batch.page(at);
            if matches!(code, Code::Ok | Code::SizeMismatch) {
                batch.seen_len = meta.len;
            }
            if code != Code::Ok {
                batch.outcomes[page] = outcome::from_code(Op::Get, code);
                continue;
            }
            self.lent = Some(sub.id);
            batch.outcomes[page] = self.copy(page, u64::from_le_bytes(*offset), meta, batch)?;
            overtaken |= batch.outcomes[page] == PageOutcome::Corrupt;
        }
        if overtaken {
            self.look_for_loss(sub, link, batch)?;
        }
        Ok(())
    }

    /// Copies one page and compares its checksum.
    fn copy(
        &self,
        page: usize,
        offset: u64,
        meta: PageMeta,
        batch: &mut Batch<'_>,
    ) -> Result<PageOutcome, LinkError> {
        let room = batch.wire_len(page);
        let fits = if batch.flags & FLAG_EXACT != 0 { meta.len == room } else { meta.len <= room };
        if !fits || meta.len == 0 {
            return Err(LinkError::Unexpected("a page has a length that was not asked for"));
        }
        let copied =
            batch.pieces.copy_shared(&self.view, offset, page, meta.len as usize, batch.digests[page]);
        let hash = copied.ok_or(LinkError::Unexpected("a page is outside the shared memory"))?;
        // Only raw bytes can be handed out; another codec is of another release.
        let raw = meta.codec == 0 && meta.flags == 0;
        Ok(match (meta.checksum_of(hash) == meta.checksum, raw) {
            (_, false) => PageOutcome::Miss,
            (true, true) => PageOutcome::Hit,
            (false, true) => PageOutcome::Corrupt,
        })
    }

    /// Bytes that do not match are damaged, or no longer the page's, because the server stopped waiting for us. It closes
    /// the connection before it uses the memory for others, so that tells which.
    fn look_for_loss(&self, sub: Sub, link: &mut Link, batch: &mut Batch<'_>) -> Result<(), LinkError> {
        if !link.is_closed() {
            return Ok(());
        }
        for at in sub.from..sub.to {
            let page = batch.page(at);
            if batch.outcomes[page] == PageOutcome::Corrupt {
                batch.outcomes[page] = PageOutcome::Miss;
            }
        }
        Err(LinkError::Closed)
    }
}

/// Bytes of the meta section of a full reply.
fn reply_bytes(count: usize) -> usize {
    count * (PAGE_RECORD_BYTES + OFFSET_BYTES)
}
