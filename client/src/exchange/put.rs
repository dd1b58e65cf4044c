//! Put: offer, verdicts, the wanted pages, verdicts; or, directly, the offer with its pages, verdicts.
//!
//! The question costs a round trip and saves the bytes of pages that are there already, so it is asked while that
//! happens (see [`crate::server::Server::puts_direct`]). Directly, the pages of one sub-batch are sent while the
//! verdicts on the one before are under way.
//!
//! Otherwise, while the pages of one sub-batch are sent, the offer of the next one is under way in front of them, so the
//! server's verdicts are there when the pages are through. Reading and writing go on side by side: a server that
//! answers before it reads on cannot lock up with this side.

use super::{Batch, Step, Sub};
use crate::link::{Link, LinkError};
use crate::outcome;
use crate::raw::{BodyCursor, BodyPage};
use memkv_core::PageMeta;
use memkv_transport::frame::{Code, FLAG_DIRECT, Header, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES};

/// About how many bytes of pages get their checksums before they are written.
const HASH_AHEAD_BYTES: usize = 1 << 20;

pub(super) struct Put {
    /// Whether pages are sent with their offer.
    direct: bool,
    /// The first place not yet offered.
    next: usize,
    end: usize,
    /// The offer whose verdicts are not here yet.
    offered: Option<Sub>,
    /// The offer whose verdicts are here (wanted pages in `link.next_body`) and whose pages are not begun.
    wanted: Option<Sub>,
    /// The sub-batch whose pages are on their way (in `link.body`), until its last verdicts are here.
    sending: Option<Sub>,
    /// Directly only: the sub-batch whose pages (in `link.next_body`) are sent, and whose verdicts are not here yet.
    sent: Option<Sub>,
    cursor: BodyCursor,
    /// Pages of the body that have their records.
    hashed: usize,
}

impl Put {
    pub(super) fn new(from: usize, to: usize, direct: bool) -> Self {
        let cursor = BodyCursor::default();
        let (offered, wanted, sending, sent) = (None, None, None, None);
        Self { direct, next: from, end: to, offered, wanted, sending, sent, cursor, hashed: 0 }
    }

    pub(super) fn advance(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<Step, LinkError> {
        loop {
            self.begin(link, batch);
            let write = !self.send(link, batch)?;
            if self.direct && !write && self.sent.is_none() && self.next < self.end {
                // All is written: the next sub-batch need not wait for the verdicts on this one.
                self.sent = self.sending.take();
                std::mem::swap(&mut link.body, &mut link.next_body);
                continue;
            }
            if self.offered.is_none() && self.sending.is_none() && self.sent.is_none() {
                if self.wanted.is_some() || self.next < self.end {
                    continue;
                }
                return Ok(Step::Done);
            }
            let ahead = match (self.offered, self.sent, self.sending) {
                (Some(offer), None, None) => offer.len(),
                (None, Some(_), None) => link.next_body.len(),
                (None, None, Some(_)) => link.body.len(),
                _ => 0,
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
        if self.direct {
            if self.next < self.end {
                self.begin_direct(link, batch);
            }
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
        header.body_len = body_bytes(&link.body);
        link.queue(&header, |_| {});
        self.sending = Some(sub);
        self.cursor = BodyCursor::default();
        self.hashed = 0;
    }

    fn offer(&mut self, link: &mut Link, batch: &Batch<'_>) {
        let sub = self.cut(link, batch);
        let header = batch.header(link, Op::Put, sub.id, sub.len());
        link.queue(&header, |meta| push_offers(meta, sub, batch));
        self.offered = Some(sub);
    }

    /// Offers the next sub-batch and begins to send its pages at once.
    fn begin_direct(&mut self, link: &mut Link, batch: &Batch<'_>) {
        let sub = self.cut(link, batch);
        let pages = (sub.from..sub.to).map(|at| body_page(batch, batch.page(at)));
        link.body.clear();
        link.body.extend(pages);
        let mut header = batch.header(link, Op::Put, sub.id, sub.len());
        header.flags |= FLAG_DIRECT;
        header.body_len = body_bytes(&link.body);
        link.queue(&header, |meta| push_offers(meta, sub, batch));
        self.sending = Some(sub);
        self.cursor = BodyCursor::default();
        self.hashed = 0;
    }

    /// Takes the next sub-batch.
    fn cut(&mut self, link: &mut Link, batch: &Batch<'_>) -> Sub {
        let to = batch.cut(self.next, self.end, &link.limits);
        let sub = Sub { from: self.next, to, id: link.request_id() };
        self.next = to;
        sub
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
        link.flush()
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
            Op::Put if self.direct => match self.sent.take() {
                Some(sub) if sub.id == header.request_id => {
                    let body = std::mem::take(&mut link.next_body);
                    let taken = take_results(header, sub, &body, link, batch);
                    link.next_body = body;
                    taken
                }
                Some(_) => Err(LinkError::Unexpected("it answers other pages")),
                None => self.take_sending(header, link, batch),
            },
            Op::Put => match self.offered.take() {
                Some(sub) if sub.id == header.request_id => self.take_verdicts(header, sub, link, batch),
                _ => Err(LinkError::Unexpected("it answers another offer")),
            },
            Op::PutData => self.take_sending(header, link, batch),
            Op::Exists | Op::Get | Op::Delete | Op::Touch | Op::Ping | Op::Bind | Op::Release => {
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
                Some(Code::Want) => next.push(body_page(batch, page)),
                Some(code) => batch.outcomes[page] = outcome::from_code(Op::Put, code),
            }
        }
        link.next_body = next;
        self.wanted = Some(sub);
        Ok(())
    }

    /// The verdicts on the pages that were sent last.
    fn take_sending(
        &mut self,
        header: &Header,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        match self.sending.take() {
            Some(sub) if sub.id == header.request_id => {
                if self.cursor.at < link.body.len() {
                    // The server has given up on the pages that are still to be sent; there is no way back into step.
                    return Err(LinkError::Unexpected("it comes before all pages were sent"));
                }
                let body = std::mem::take(&mut link.body);
                let taken = take_results(header, sub, &body, link, batch);
                link.body = body;
                taken
            }
            _ => Err(LinkError::Unexpected("it answers other pages")),
        }
    }
}

/// The verdicts on pages that were sent.
fn take_results(
    header: &Header,
    sub: Sub,
    body: &[BodyPage],
    link: &mut Link,
    batch: &mut Batch<'_>,
) -> Result<(), LinkError> {
    if header.status != Code::Ok {
        link.note_refusal(header.status);
        for entry in body {
            batch.outcomes[entry.page as usize] = outcome::from_code(Op::PutData, header.status);
        }
        return batch.settle(Sub { to: sub.from, ..sub }, Op::PutData, header.status);
    }
    if header.count as usize != body.len() || link.meta().len() != body.len() {
        return Err(LinkError::Unexpected("it has another number of verdicts"));
    }
    for (&byte, entry) in link.meta().iter().zip(body) {
        let code = Code::from_wire(byte).filter(|&code| code != Code::Want);
        let code = code.ok_or(LinkError::Unexpected("a verdict is not known"))?;
        batch.outcomes[entry.page as usize] = outcome::from_code(Op::PutData, code);
    }
    Ok(())
}

fn push_offers(meta: &mut Vec<u8>, sub: Sub, batch: &Batch<'_>) {
    for at in sub.from..sub.to {
        let page = batch.page(at);
        records::push_offered(meta, batch.wire_len(page), batch.position(page), batch.key(page));
    }
}

/// A page that is to be sent; its record follows with its checksum.
fn body_page(batch: &Batch<'_>, page: usize) -> BodyPage {
    // `order` holds `u32` indices.
    BodyPage { page: page as u32, len: batch.wire_len(page), record: [0; PAGE_RECORD_BYTES] }
}

fn body_bytes(body: &[BodyPage]) -> u64 {
    body.iter().map(|page| u64::from(page.len) + PAGE_RECORD_BYTES as u64).sum()
}
