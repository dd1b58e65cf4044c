//! Get and put over a connection with a queue pair: requests name where the pages are in our registered memory, the
//! server moves them, then it replies.
//!
//! Pages that lie in no region go through the bounce buffer; where that has no room, the rest of the exchange goes in
//! frames ([`Step::Frames`]). Two requests are under way at any time, so that the server moves the pages of one while
//! this side computes the checksums of another.
//!
//! What makes a late write harmless is not here: whoever gives up drops the connection, and with it the queue pair.

use super::fetch::verified;
use super::{Batch, Step, Sub};
use crate::link::{Link, LinkError};
use crate::mover::Bound;
use crate::outcome::{self, PageOutcome};
use crate::rdma::{Lent, RdmaSession, Table};
use memkv_core::PageMeta;
use memkv_transport::frame::{Code, FLAG_EXACT, FLAG_REMOTE, Header, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES, SPAN_BYTES, Span};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// About the most bytes of pages in one request: little enough that checksums and moving go side by side.
const BODY_BYTES_MAX: usize = 4 << 20;
/// The most bytes of the bounce buffer that one exchange takes, unless a page is larger.
const BOUNCE_BYTES_MAX: usize = 8 << 20;
/// A page of more pieces than this, neighbours counted as one, is copied: naming them costs more.
const SPANS_MAX: usize = 4096;
/// Bytes of a page's record beside its spans: lengths, the longest key, what describes the page.
const RECORD_BYTES_MAX: usize = 12 + 512 + PAGE_RECORD_BYTES;

/// What this side still does on the way of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advanced {
    /// As the other machines.
    Step(Step),
    /// The places from here on have to go in frames.
    Frames { from: usize },
}

/// A request without a reply.
#[derive(Clone, Copy, Debug)]
struct Asked {
    sub: Sub,
    /// Where its first page that is bounced lies in what is lent; `None` if there is none.
    bounced_at: Option<usize>,
}

pub(super) struct Remote {
    op: Op,
    next: usize,
    end: usize,
    session: Arc<RdmaSession>,
    table: Arc<Table>,
    waiting: [Option<Asked>; 2],
    /// Memory for pages that lie in no region.
    bounce: Option<Lent>,
    bounce_used: usize,
    /// The next page fits nowhere.
    in_frames: bool,
    spans: Vec<Span>,
    meta: Vec<u8>,
}

/// Where a page is.
enum Home {
    /// In regions; the spans say where.
    Regions,
    /// In the bounce buffer, at this place of what is lent.
    Bounce(usize),
    /// Not there yet: replies have to come first.
    Later,
    /// Nowhere.
    Frames,
}

impl Remote {
    /// Pages `from..to` of the batch's order, if pages move by RDMA on this connection.
    pub(super) fn new(op: Op, from: usize, to: usize, link: &Link) -> Option<Self> {
        let Bound::Rdma(pair) = &link.mover else { return None };
        let session = pair.session.clone();
        let table = session.table();
        let (spans, meta) = (Vec::new(), Vec::new());
        let (bounce, bounce_used, in_frames) = (None, 0, false);
        let waiting = [None; 2];
        Some(Self {
            op,
            next: from,
            end: to,
            session,
            table,
            waiting,
            bounce,
            bounce_used,
            in_frames,
            spans,
            meta,
        })
    }

    pub(super) fn advance(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<Advanced, LinkError> {
        loop {
            self.ask(link, batch);
            let write = !link.flush()?;
            let Some(asked) = self.waiting[0] else {
                let done = self.next == self.end;
                return Ok(if done {
                    Advanced::Step(Step::Done)
                } else {
                    Advanced::Frames { from: self.next }
                });
            };
            // A reply has no body, so only another reply may follow.
            let ahead = if self.waiting[1].is_none() { self.reply_bytes(asked.sub.len()) } else { 0 };
            let Some(header) = link.read_frame(ahead)? else {
                return Ok(Advanced::Step(Step::Wait { write }));
            };
            self.waiting = [self.waiting[1], None];
            self.take_reply(&header, asked, link, batch)?;
            link.end_frame();
        }
    }

    fn reply_bytes(&self, pages: usize) -> usize {
        if self.op == Op::Get { pages * PAGE_RECORD_BYTES } else { pages }
    }

    /// Queues requests until two are under way, or nothing more fits.
    fn ask(&mut self, link: &mut Link, batch: &Batch<'_>) {
        for slot in 0..self.waiting.len() {
            if self.waiting[slot].is_some() {
                continue;
            }
            if slot == 0 && self.waiting[1].is_none() {
                // Nobody needs what is in the bounce buffer any more.
                self.bounce_used = 0;
            }
            let from = self.next;
            let bounced_at = self.fill(link, batch);
            let sub = Sub { from, to: self.next, id: link.request_id() };
            if sub.len() == 0 {
                return;
            }
            let mut header = batch.header(link, self.op, sub.id, sub.len());
            header.flags |= FLAG_REMOTE;
            link.queue_meta(&header, &self.meta);
            self.waiting[slot] = Some(Asked { sub, bounced_at });
        }
    }

    /// Writes the records of the next request: at least one page, unless none can go now. Returns where its pages begin
    /// in what is lent.
    fn fill(&mut self, link: &Link, batch: &Batch<'_>) -> Option<usize> {
        self.meta.clear();
        let (mut bytes, mut count, mut bounced_at) = (0, 0, None);
        while self.next < self.end && !self.in_frames && count < link.limits.batch_keys_max {
            let page = batch.page(self.next);
            let len = batch.pieces.page_len(page);
            if count > 0 && bytes + len > BODY_BYTES_MAX {
                break;
            }
            let before = (self.meta.len(), self.bounce_used);
            let at = match self.place(batch, page, len, link) {
                Home::Regions => None,
                Home::Bounce(at) => Some(at),
                Home::Later => break,
                Home::Frames => {
                    self.in_frames = true;
                    break;
                }
            };
            self.push(batch, page);
            if count > 0 && self.meta.len() > link.limits.frame_meta_bytes_max as usize {
                // It will be the first of the next request.
                self.meta.truncate(before.0);
                self.bounce_used = before.1;
                break;
            }
            bounced_at = bounced_at.or(at);
            bytes += len;
            count += 1;
            self.next += 1;
        }
        bounced_at
    }

    /// Finds where a page is, and brings it to the bounce buffer if it has to be there.
    fn place(&mut self, batch: &Batch<'_>, page: usize, len: usize, link: &Link) -> Home {
        if u32::try_from(len).is_err() {
            // A server will say no; it has to be asked the other way, because no span is so long.
            return Home::Frames;
        }
        if self.is_in_regions(batch, page, link) { Home::Regions } else { self.bounce(batch, page, len) }
    }

    /// Whether a page can be named by spans in regions, which are in `self.spans` then.
    fn is_in_regions(&mut self, batch: &Batch<'_>, page: usize, link: &Link) -> bool {
        self.spans.clear();
        let (table, spans) = (&self.table, &mut self.spans);
        let is_found = batch.pieces.places(page, |address, len| {
            let found = table.find(address, len);
            found.is_some_and(|(region, offset)| push_span(spans, region, offset, len))
        });
        let meta_bytes = RECORD_BYTES_MAX + self.spans.len() * SPAN_BYTES;
        let is_short =
            self.spans.len() <= SPANS_MAX && meta_bytes <= link.limits.frame_meta_bytes_max as usize;
        is_found && is_short
    }

    fn bounce(&mut self, batch: &Batch<'_>, page: usize, len: usize) -> Home {
        if self.bounce_used == 0 && self.bounce.as_ref().is_some_and(|lent| lent.len() < len) {
            // Nobody uses it, and it is too short.
            self.bounce = None;
        }
        if self.bounce.is_none() {
            let rest = len.saturating_mul(self.end - self.next);
            let context = self.session.context();
            self.bounce =
                Lent::take(context, rest.min(BOUNCE_BYTES_MAX).max(len)).or_else(|| Lent::take(context, len));
        }
        let idle = self.waiting.iter().all(Option::is_none);
        let Some(lent) = &mut self.bounce else {
            return if idle { Home::Frames } else { Home::Later };
        };
        if self.bounce_used + len > lent.len() {
            return Home::Later;
        }
        let at = self.bounce_used;
        self.bounce_used += len;
        let (region, offset) = lent.place(at);
        if self.op == Op::Put {
            lent.fill(at, &batch.pieces, page, len);
        }
        self.spans.clear();
        // The length was checked before.
        push_span(&mut self.spans, region, offset, len);
        Home::Bounce(at)
    }

    fn push(&mut self, batch: &Batch<'_>, page: usize) {
        let (len, key) = (batch.wire_len(page), batch.key(page));
        if self.op == Op::Get {
            records::push_wanted(&mut self.meta, len, key);
        } else {
            let hash = batch.pieces.checksum(page, len as usize, batch.digests[page]);
            let raw = PageMeta { len, ..PageMeta::default() };
            let meta = PageMeta { checksum: raw.checksum_of(hash), ..raw };
            records::push_offered(&mut self.meta, len, batch.position(page), key);
            self.meta.extend_from_slice(&records::page_record(Code::Ok, meta));
        }
        records::push_spans(&mut self.meta, self.spans.iter().copied());
    }

    fn take_reply(
        &mut self,
        header: &Header,
        asked: Asked,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        let sub = asked.sub;
        if header.op != self.op || header.request_id != sub.id {
            return Err(LinkError::Unexpected("it answers another request"));
        }
        if header.body_len != 0 {
            return Err(LinkError::Unexpected("it has a body"));
        }
        if header.status != Code::Ok {
            link.note_refusal(header.status);
            return batch.settle(sub, self.op, header.status);
        }
        if header.count as usize != sub.len() || link.meta().len() != self.reply_bytes(sub.len()) {
            return Err(LinkError::Unexpected("it has another number of records"));
        }
        if self.op == Op::Get {
            self.take_records(asked, link, batch)
        } else {
            self.take_verdicts(asked, link, batch)
        }
    }

    /// Verifies the pages that the server says it has written.
    fn take_records(&mut self, asked: Asked, link: &Link, batch: &mut Batch<'_>) -> Result<(), LinkError> {
        let (entries, _) = link.meta().as_chunks::<PAGE_RECORD_BYTES>();
        let mut bounced = asked.bounced_at;
        for (entry, at) in entries.iter().zip(asked.sub.from..asked.sub.to) {
            let page = batch.page(at);
            let room = batch.pieces.page_len(page);
            let bounced_at = self.next_bounced(&mut bounced, batch, page, link);
            let (code, meta) = records::read_page_record(entry)?;
            if matches!(code, Code::Ok | Code::SizeMismatch) {
                batch.seen_len = meta.len;
            }
            if code != Code::Ok {
                batch.outcomes[page] = outcome::from_code(Op::Get, code);
                continue;
            }
            let len = meta.len as usize;
            let fits = if batch.flags & FLAG_EXACT != 0 { len == room } else { len <= room };
            if !fits || len == 0 {
                return Err(LinkError::Unexpected("a page has a length that was not asked for"));
            }
            if let (Some(at), Some(lent)) = (bounced_at, &self.bounce) {
                lent.spill(at, &mut batch.pieces, page, len);
            }
            batch.outcomes[page] = verified(batch, page, meta);
            self.count(bounced_at.is_some(), len);
        }
        Ok(())
    }

    fn take_verdicts(&mut self, asked: Asked, link: &Link, batch: &mut Batch<'_>) -> Result<(), LinkError> {
        let mut bounced = asked.bounced_at;
        for (&byte, at) in link.meta().iter().zip(asked.sub.from..asked.sub.to) {
            let page = batch.page(at);
            let len = batch.pieces.page_len(page);
            let bounced_at = self.next_bounced(&mut bounced, batch, page, link);
            let code = Code::from_wire(byte).filter(|&code| code != Code::Want);
            let code = code.ok_or(LinkError::Unexpected("a verdict is not known"))?;
            batch.outcomes[page] = outcome::from_code(Op::PutData, code);
            if batch.outcomes[page] == PageOutcome::Stored {
                self.count(bounced_at.is_some(), len);
            }
        }
        Ok(())
    }

    /// Where a page lies in what is lent, if it does: pages are there in their order, one after the other.
    fn next_bounced(
        &mut self,
        next: &mut Option<usize>,
        batch: &Batch<'_>,
        page: usize,
        link: &Link,
    ) -> Option<usize> {
        let at = (*next)?;
        if self.is_in_regions(batch, page, link) {
            return None;
        }
        *next = Some(at + batch.pieces.page_len(page));
        Some(at)
    }

    fn count(&self, bounced: bool, bytes: usize) {
        let counters = &self.session.context().counters;
        let (pages, sum) = match bounced {
            true => (&counters.bounced_pages, &counters.bounced_bytes),
            false => (&counters.direct_pages, &counters.direct_bytes),
        };
        pages.fetch_add(1, Relaxed);
        sum.fetch_add(bytes as u64, Relaxed);
    }

    /// Where its pages end in the batch's order.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Notes pages that go in frames.
    pub(super) fn note_frames(&self, pages: usize) {
        self.session.context().counters.framed_pages.fetch_add(pages as u64, Relaxed);
    }
}

/// Appends a piece, joined to the one before if it follows it. False if it is too long for a span.
fn push_span(spans: &mut Vec<Span>, region: u32, offset: u64, len: usize) -> bool {
    let Ok(len) = u32::try_from(len) else { return false };
    if len == 0 {
        return true;
    }
    if let Some(last) = spans.last_mut()
        && last.region == region
        && last.offset + u64::from(last.len) == offset
        && let Some(joined) = last.len.checked_add(len)
    {
        last.len = joined;
        return true;
    }
    spans.push(Span { region, len, offset });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_follow_each_other_are_one_span() {
        let mut spans = Vec::new();
        for (region, offset, len) in [(1, 0, 8), (1, 8, 8), (1, 16, 0), (1, 17, 3), (2, 20, 1), (2, 21, 5)] {
            assert!(push_span(&mut spans, region, offset, len));
        }
        let span = |region, offset, len| Span { region, len, offset };
        assert_eq!(spans, [span(1, 0, 16), span(1, 17, 3), span(2, 20, 6)]);
        assert!(push_span(&mut spans, 2, 26, u32::MAX as usize), "too long to be joined");
        assert_eq!(spans.len(), 4);
        assert!(!push_span(&mut spans, 2, 0, 1 << 32));
    }
}
