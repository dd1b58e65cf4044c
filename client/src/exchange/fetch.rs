//! Ops with one request frame and one reply frame: exists, touch, delete, and get.
//!
//! Two requests are under way at any time, so the server works on the next sub-batch while this side still reads
//! the pages of the one before.

use super::{Batch, Step, Sub};
use crate::link::{Link, LinkError};
use crate::outcome::{self, PageOutcome};
use crate::raw::{BodyCursor, BodyPage};
use memkv_core::{PageHasher, PageMeta};
use memkv_transport::frame::{Code, FLAG_EXACT, Header, Op};
use memkv_transport::records::{self, PAGE_RECORD_BYTES};

/// A part of a page that is hashed before the rest has come is at least this long: short parts are hashed more slowly.
const HASH_BYTES: usize = 32 << 10;

pub(super) struct Fetch {
    /// The first place not yet asked for.
    next: usize,
    end: usize,
    /// Requests without a reply, in order.
    waiting: [Option<Sub>; 2],
    /// How far the body of the last reply has come.
    body: Option<BodyCursor>,
    /// Pages of that body that are verified.
    verified: usize,
    /// The hash of the page behind them, as far as it is, and of how many bytes.
    hashed: Option<(PageHasher, usize)>,
}

impl Fetch {
    pub(super) fn new(from: usize, to: usize) -> Self {
        Self { next: from, end: to, waiting: [None; 2], body: None, verified: 0, hashed: None }
    }

    pub(super) fn advance(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<Step, LinkError> {
        loop {
            self.ask(link, batch);
            let write = !link.flush()?;
            if self.body.is_some() {
                if !self.read_pages(link, batch)? {
                    return Ok(Step::Wait { write });
                }
                continue;
            }
            let Some(sub) = self.waiting[0] else { return Ok(Step::Done) };
            // Only the last reply may be read together with its records: what follows it can be nothing but its body,
            // and there is none if the records are shorter than expected.
            let ahead = if self.waiting[1].is_none() { reply_bytes(batch.op, sub.len()) } else { 0 };
            let Some(header) = link.read_frame(ahead)? else { return Ok(Step::Wait { write }) };
            self.waiting = [self.waiting[1], None];
            self.take_reply(&header, sub, link, batch)?;
            link.end_frame();
        }
    }

    /// Queues requests until two are under way.
    fn ask(&mut self, link: &mut Link, batch: &Batch<'_>) {
        for slot in &mut self.waiting {
            if slot.is_some() || self.next == self.end {
                continue;
            }
            let to = batch.cut(self.next, self.end, &link.limits);
            let sub = Sub { from: self.next, to, id: link.request_id() };
            let header = batch.header(link, batch.op, sub.id, sub.len());
            link.queue(&header, |meta| {
                for at in sub.from..sub.to {
                    let page = batch.page(at);
                    match batch.op {
                        Op::Get => records::push_wanted(meta, batch.wire_len(page), batch.key(page)),
                        Op::Exists
                        | Op::Touch
                        | Op::Delete
                        | Op::Put
                        | Op::PutData
                        | Op::Ping
                        | Op::Bind
                        | Op::Release => {
                            records::push_key(meta, batch.key(page));
                        }
                    }
                }
            });
            self.next = to;
            *slot = Some(sub);
        }
    }

    fn take_reply(
        &mut self,
        header: &Header,
        sub: Sub,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        if header.op != batch.op || header.request_id != sub.id {
            return Err(LinkError::Unexpected("it answers another request"));
        }
        if header.status != Code::Ok {
            if header.body_len != 0 {
                return Err(LinkError::Unexpected("a refusal has a body"));
            }
            link.note_refusal(header.status);
            return batch.settle(sub, batch.op, header.status);
        }
        if header.count as usize != sub.len() || header.meta_len as usize != reply_bytes(batch.op, sub.len())
        {
            return Err(LinkError::Unexpected("it has another number of records"));
        }
        if batch.op == Op::Get {
            return self.take_records(header, sub, link, batch);
        }
        if header.body_len != 0 {
            return Err(LinkError::Unexpected("it has a body"));
        }
        for (bit, at) in (sub.from..sub.to).enumerate() {
            let set = link.meta()[bit / 8] >> (bit % 8) & 1 == 1;
            let page = batch.page(at);
            batch.outcomes[page] = if set { PageOutcome::Hit } else { PageOutcome::Miss };
        }
        Ok(())
    }

    /// Reads the page records of a get, and sets up the body that follows.
    fn take_records(
        &mut self,
        header: &Header,
        sub: Sub,
        link: &mut Link,
        batch: &mut Batch<'_>,
    ) -> Result<(), LinkError> {
        let mut body = std::mem::take(&mut link.body);
        body.clear();
        let mut bytes = 0_u64;
        let (entries, _) = link.meta().as_chunks::<PAGE_RECORD_BYTES>();
        for (entry, at) in entries.iter().zip(sub.from..sub.to) {
            let (code, meta) = records::read_page_record(entry)?;
            let page = batch.page(at);
            if matches!(code, Code::Ok | Code::SizeMismatch) {
                batch.seen_len = meta.len;
            }
            if code != Code::Ok {
                batch.outcomes[page] = outcome::from_code(Op::Get, code);
                continue;
            }
            let room = batch.wire_len(page);
            let fits = if batch.flags & FLAG_EXACT != 0 { meta.len == room } else { meta.len <= room };
            if !fits || meta.len == 0 {
                return Err(LinkError::Unexpected("a page has a length that was not asked for"));
            }
            bytes += u64::from(meta.len);
            // `order` holds `u32` indices.
            body.push(BodyPage { page: page as u32, len: meta.len, record: *entry });
        }
        if bytes != header.body_len {
            return Err(LinkError::Unexpected("its body has another length than its records say"));
        }
        self.body = (!body.is_empty()).then(BodyCursor::default);
        (self.verified, self.hashed) = (0, None);
        link.body = body;
        Ok(())
    }

    /// Reads and verifies pages; whether the body is complete.
    fn read_pages(&mut self, link: &mut Link, batch: &mut Batch<'_>) -> Result<bool, LinkError> {
        let Some(mut cursor) = self.body else { return Ok(true) };
        while cursor.at < link.body.len() {
            let more = link.read_body(&mut batch.pieces, &mut cursor)?;
            for entry in &link.body[self.verified..cursor.at] {
                let page = entry.page as usize;
                let (_, meta) = records::read_page_record(&entry.record)?;
                let hash = match self.hashed.take() {
                    Some((mut hasher, from)) => {
                        batch.pieces.hash(&mut hasher, page, from, meta.len as usize);
                        hasher.finish()
                    }
                    None => batch.pieces.checksum(page, meta.len as usize, batch.digests[page]),
                };
                batch.outcomes[page] = judged(meta, hash);
            }
            self.verified = cursor.at;
            self.hash_part(cursor, link, batch);
            self.body = Some(cursor);
            if more.is_none() {
                return Ok(false);
            }
        }
        self.body = None;
        Ok(true)
    }

    /// Hashes what has come of the page that is not whole yet: it is still in the core's cache, and the rest is on its way.
    fn hash_part(&mut self, cursor: BodyCursor, link: &Link, batch: &Batch<'_>) {
        let Some(entry) = link.body.get(cursor.at) else { return };
        let from = self.hashed.as_ref().map_or(0, |(_, from)| *from);
        if cursor.done - from >= HASH_BYTES {
            let page = entry.page as usize;
            let new = || (PageHasher::new(batch.digests[page]), 0);
            let (hasher, to) = self.hashed.get_or_insert_with(new);
            batch.pieces.hash(hasher, page, from, cursor.done);
            *to = cursor.done;
        }
    }
}

/// What a page whose bytes are there is, by its record.
pub(super) fn verified(batch: &Batch<'_>, page: usize, meta: PageMeta) -> PageOutcome {
    judged(meta, batch.pieces.checksum(page, meta.len as usize, batch.digests[page]))
}

/// What a page with this record is, whose bytes have this hash.
fn judged(meta: PageMeta, hash: u64) -> PageOutcome {
    // Only raw bytes can be handed out; another codec is of another release.
    let raw = meta.codec == 0 && meta.flags == 0;
    match (meta.checksum_of(hash) == meta.checksum, raw) {
        (_, false) => PageOutcome::Miss,
        (true, true) => PageOutcome::Hit,
        (false, true) => PageOutcome::Corrupt,
    }
}

/// Bytes of the meta section of a full reply.
fn reply_bytes(op: Op, count: usize) -> usize {
    match op {
        Op::Exists | Op::Touch | Op::Delete => records::bitmap_bytes(count),
        Op::Get => count * PAGE_RECORD_BYTES,
        Op::Put | Op::PutData => count,
        Op::Ping | Op::Bind | Op::Release => 0,
    }
}
