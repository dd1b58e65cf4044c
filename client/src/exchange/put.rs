//! Put: offer, verdicts, the wanted pages, verdicts.
//!
//! While the pages of one sub-batch are sent, the offer of the next one is under way in front of them, so the
//! server's verdicts are there when the pages are through. Reading and writing go on side by side: a server that
//! answers before it reads on cannot lock up with this side.

use super::{Batch, Step, Sub};
use crate::link::{Link, LinkError};
use crate::outcome;
use crate::raw::{BodyCursor, BodyPage};
use memkv_core::PageMeta;
use memkv_transport::frame::{Code, Header, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES};

/// About how many bytes of pages get their checksums before they are written.
const HASH_AHEAD_BYTES: usize = 1 << 20;

pub(super) struct Put {
    /// The first place not yet offered.
    next: usize,
    end: usize,
    /// The offer whose verdicts are not here yet.
    offered: Option<Sub>,
    /// The offer whose verdicts are here (wanted pages in `link.next_body`) and whose pages are not begun.
    wanted: Option<Sub>,
    /// The sub-batch whose pages are on their way (in `link.body`), until its last verdicts are here.
    sending: Option<Sub>,
    cursor: BodyCursor,
    /// Pages of the body that have their records.
    hashed: usize,
}

impl Put {
    pub(super) fn new(from: usize, to: usize) -> Self {
        let cursor = BodyCursor::default();
        Self { next: from, end: to, offered: None, wanted: None, sending: None, cursor, hashed: 0 }
    }

    pub(super) fn advance(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<Step, LinkError> {
        loop {
            self.begin(link, batch);
            let write = !self.send(link, batch)?;
            if self.offered.is_none() && self.sending.is_none() {
                if self.wanted.is_some() || self.next < self.end {
                    continue;
                }
                return Ok(Step::Done);
            }
            let ahead = match (self.offered, self.sending) {
                (Some(offer), None) => offer.len(),
                (None, Some(_)) => link.body.len(),
                (Some(_), Some(_)) | (None, None) => 0,
            };
            let Some(header) = link.read_frame(ahead)? else { return Ok(Step::Wait { write }) };
            self.take_reply(&header, link, batch)?;
            link.end_frame();
        }
    }

    /// Offers the next sub-batch and begins to send the one that is wanted, as far as both are due.
    fn begin(&mut self, link: &mut Link, batch: &Batch<'_>) {
        if self.sending.is_some() {
            return;
        }
        if self.offered.is_none() && self.next < self.end {
            self.offer(link, batch);
        }
        let Some(sub) = self.wanted.take() else { return };
        std::mem::swap(&mut link.body, &mut link.next_body);
        if link.body.is_empty() {
            return;
        }
        let mut header = batch.header(link, Op::PutData, sub.id, link.body.len());
        let bytes = |page: &BodyPage| u64::from(page.len) + PAGE_RECORD_BYTES as u64;
        header.body_len = link.body.iter().map(bytes).sum();
        link.queue(&header, |_| {});
        self.sending = Some(sub);
        self.cursor = BodyCursor::default();
        self.hashed = 0;
    }

    fn offer(&mut self, link: &mut Link, batch: &Batch<'_>) {
        let to = batch.cut(self.next, self.end, &link.limits);
        let sub = Sub { from: self.next, to, id: link.request_id() };
        let header = batch.header(link, Op::Put, sub.id, sub.len());
        link.queue(&header, |meta| {
            for at in sub.from..sub.to {
                let page = batch.page(at);
                records::push_offered(meta, batch.wire_len(page), batch.position(page), batch.key(page));
            }
        });
        self.next = to;
        self.offered = Some(sub);
    }

    /// Writes until all is written (true) or the socket is full (false).
    fn send(&mut self, link: &mut Link, batch: &Batch<'_>) -> Result<bool, LinkError> {
        if self.sending.is_none() {
            return link.flush();
        }
        while self.cursor.at < link.body.len() || link.has_output() {
            self.hash_ahead(link, batch);
            if !link.flush_body(&batch.pieces, &mut self.cursor, self.hashed)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Computes checksums for the pages that the next write will take.
    fn hash_ahead(&mut self, link: &mut Link, batch: &Batch<'_>) {
        let ahead = self.cursor.at..self.hashed;
        let mut bytes: usize = link.body[ahead].iter().map(|page| page.len as usize).sum();
        while bytes < HASH_AHEAD_BYTES && self.hashed < link.body.len() {
            let entry = &mut link.body[self.hashed];
            let page = entry.page as usize;
            let hash = batch.pieces.checksum(page, entry.len as usize, batch.digests[page]);
            let raw = PageMeta { len: entry.len, ..PageMeta::default() };
            let meta = PageMeta { checksum: raw.checksum_of(hash), ..raw };
            entry.record = records::page_record(Code::Ok, meta);
            bytes += entry.len as usize;
            self.hashed += 1;
        }
    }

    fn take_reply(
        &mut self,
        header: &Header,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        if header.body_len != 0 {
            return Err(LinkError::Unexpected("it has a body"));
        }
        match header.op {
            Op::Put => match self.offered.take() {
                Some(sub) if sub.id == header.request_id => self.take_verdicts(header, sub, link, batch),
                _ => Err(LinkError::Unexpected("it answers another offer")),
            },
            Op::PutData => match self.sending.take() {
                Some(sub) if sub.id == header.request_id => self.take_results(header, sub, link, batch),
                _ => Err(LinkError::Unexpected("it answers other pages")),
            },
            Op::Exists | Op::Get | Op::Delete | Op::Touch | Op::Ping => {
                Err(LinkError::Unexpected("it answers another request"))
            }
        }
    }

    /// The verdicts on an offer.
    fn take_verdicts(
        &mut self,
        header: &Header,
        sub: Sub,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        if header.status != Code::Ok {
            link.note_refusal(header.status);
            return batch.settle(sub, Op::Put, header.status);
        }
        if header.count as usize != sub.len() || link.meta().len() != sub.len() {
            return Err(LinkError::Unexpected("it has another number of verdicts"));
        }
        let mut next = std::mem::take(&mut link.next_body);
        next.clear();
        for (&byte, at) in link.meta().iter().zip(sub.from..sub.to) {
            let page = batch.page(at);
            match Code::from_wire(byte) {
                None => return Err(LinkError::Unexpected("a verdict is not known")),
                // `order` holds `u32` indices.
                Some(Code::Want) => next.push(BodyPage {
                    page: page as u32,
                    len: batch.wire_len(page),
                    record: [0; PAGE_RECORD_BYTES],
                }),
                Some(code) => batch.outcomes[page] = outcome::from_code(Op::Put, code),
            }
        }
        link.next_body = next;
        self.wanted = Some(sub);
        Ok(())
    }

    /// The verdicts on the pages that were sent.
    fn take_results(
        &mut self,
        header: &Header,
        sub: Sub,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        if self.cursor.at < link.body.len() {
            // The server has given up on the pages that are still to be sent; there is no way back into step.
            return Err(LinkError::Unexpected("it comes before all pages were sent"));
        }
        let count = link.body.len();
        if header.status != Code::Ok {
            link.note_refusal(header.status);
            for entry in &link.body {
                batch.outcomes[entry.page as usize] = outcome::from_code(Op::PutData, header.status);
            }
            return batch.settle(Sub { to: sub.from, ..sub }, Op::PutData, header.status);
        }
        if header.count as usize != count || link.meta().len() != count {
            return Err(LinkError::Unexpected("it has another number of verdicts"));
        }
        for (&byte, entry) in link.meta().iter().zip(&link.body) {
            let code = Code::from_wire(byte).filter(|&code| code != Code::Want);
            let code = code.ok_or(LinkError::Unexpected("a verdict is not known"))?;
            batch.outcomes[entry.page as usize] = outcome::from_code(Op::PutData, code);
        }
        Ok(())
    }
}
