//! What each op means: a request's records in, a reply's records (and pages) out.
//!
//! The buffers live as long as the connection, so a request allocates nothing once they have grown.
//!
//! Deliberately absent: sockets and clocks.

use super::offers::{Held, Offer, Offers};
use super::shed::{Room, Shed, Sheds};
use crate::config::storage::NvmeMode;
use crate::drain::Duty;
use crate::hot::Sampler;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::tenants::{Found, Tenant};
use memkv_core::{Key, PageMeta, SpaceId};
use memkv_storage::{HashedKey, Moment, PagePin, Refusal, Space};
use memkv_transport::frame::{Code, FLAG_EXACT, FLAG_PREFIX, FrameError, Header, Op};
use memkv_transport::records::{self, Offered, PAGE_RECORD_BYTES, Wanted};
use std::sync::Arc;
use tokio::time::Instant;

/// Entries a reused list keeps room for between requests.
const KEPT_ENTRIES: usize = 1024;

/// Why a request about a space is refused.
const UNKNOWN: &str = "the space was not opened since this server's start; call Kv.OpenSpace";
const FOREIGN: &str = "the space belongs to another tenant, which lets this one read it";

/// What a put came to before its pages move.
pub(crate) enum Taken {
    /// One entry for each page, and the space they belong to.
    Pages(Arc<Space>, Vec<Held>),
    /// The reply to a request that cannot be served at all.
    Refused(Header),
}

/// A connection's work place.
pub(crate) struct Desk {
    node: Arc<Node>,
    /// Whose requests come here.
    tenant: Arc<Tenant>,
    keys: Vec<HashedKey<'static>>,
    found: Vec<bool>,
    rooms: Vec<u32>,
    /// Which gets are counted.
    sampler: Sampler,
    /// The pages of the reply.
    pub(crate) pins: Vec<Option<PagePin>>,
    /// The records of the reply.
    pub(crate) meta: Vec<u8>,
}

impl Desk {
    /// An empty one.
    pub(crate) fn new(node: Arc<Node>, tenant: Arc<Tenant>) -> Self {
        Self {
            node,
            tenant,
            keys: Vec::new(),
            found: Vec::new(),
            rooms: Vec::new(),
            sampler: Sampler::new(),
            pins: Vec::new(),
            meta: Vec::new(),
        }
    }

    /// Answers exists, touch and delete with a bitmap.
    pub(crate) fn presence(
        &mut self,
        header: &Header,
        meta: &[u8],
        now: Moment,
    ) -> Result<Header, FrameError> {
        let mut keys = recycle(std::mem::take(&mut self.keys));
        for key in records::keys(meta, header.count) {
            keys.push(HashedKey::new(header.space, key?));
        }
        self.found.clear();
        self.found.resize(keys.len(), false);
        let found = self.tenant.find(&self.node.engine, header.space);
        if header.op == Op::Delete && matches!(found, Found::Readable(_)) {
            self.keys = recycle(keys);
            return Ok(self.refuse(header, Code::Denied, FOREIGN));
        }
        // A space that was never opened has no pages.
        if let Some(space) = found.readable() {
            let engine = &self.node.engine;
            match header.op {
                Op::Touch => engine.touch_batch(&space, &keys, &mut self.found, now),
                Op::Delete => engine.delete_batch(&space, &keys, &mut self.found),
                Op::Exists | Op::Get | Op::Put | Op::PutData | Op::Ping | Op::Bind | Op::Release => {
                    engine.exists_batch(&space, &keys, &mut self.found);
                }
            }
        }
        self.keys = recycle(keys);
        self.count_presence(header.op);
        if header.op == Op::Exists && header.flags & FLAG_PREFIX != 0 {
            let prefix = self.found.iter().position(|found| !found).unwrap_or(self.found.len());
            self.found[prefix..].fill(false);
        }
        self.meta.clear();
        records::push_bitmap(&mut self.meta, &self.found);
        trim(&mut self.keys);
        trim(&mut self.found);
        Ok(Header::reply_to(header, Code::Ok, header.count))
    }

    fn count_presence(&self, op: Op) {
        let found = self.found.iter().filter(|found| **found).count() as u64;
        let metrics = &self.node.metrics;
        match op {
            Op::Exists => {
                Metrics::add(&metrics.exists_keys, self.found.len() as u64);
                Metrics::add(&metrics.exists_hits, found);
            }
            Op::Delete => Metrics::add(&metrics.deleted, found),
            Op::Touch | Op::Get | Op::Put | Op::PutData | Op::Ping | Op::Bind | Op::Release => {}
        }
    }

    /// Answers get: records, and pins on the pages that are to be sent.
    pub(crate) async fn get(
        &mut self,
        header: &Header,
        meta: &[u8],
        now: Moment,
    ) -> Result<Header, FrameError> {
        let mut reply = Header::reply_to(header, Code::Ok, header.count);
        reply.body_len = self.look_up(header, records::wanted(meta, header.count), now).await?;
        Ok(reply)
    }

    /// Answers a get whose pages go to spans: as [`Desk::get`], without a body.
    pub(crate) async fn get_remote(
        &mut self,
        header: &Header,
        meta: &[u8],
        now: Moment,
    ) -> Result<Header, FrameError> {
        let wanted =
            records::remote_wanted(meta, header.count).map(|wanted| wanted.map(|wanted| wanted.page));
        self.look_up(header, wanted, now).await?;
        Ok(Header::reply_to(header, Code::Ok, header.count))
    }

    /// Pins the wanted pages that are there and have room, and writes the records of all. Returns the bytes of the
    /// pinned ones.
    async fn look_up<'m>(
        &mut self,
        header: &Header,
        wanted: impl Iterator<Item = Result<Wanted<'m>, FrameError>>,
        now: Moment,
    ) -> Result<u64, FrameError> {
        let mut keys = recycle(std::mem::take(&mut self.keys));
        self.rooms.clear();
        for wanted in wanted {
            let Wanted { dst_len, key } = wanted?;
            keys.push(HashedKey::new(header.space, key));
            self.rooms.push(dst_len);
        }
        self.pins.clear();
        match self.tenant.find(&self.node.engine, header.space).readable() {
            Some(space) => {
                // What a tenant cannot see it cannot make hot either.
                self.node.hot.note(header.space, &keys, &mut self.sampler, now.ms);
                self.node.engine.pin_batch(&space, &keys, now, &mut self.pins).await;
            }
            None => self.pins.resize_with(keys.len(), || None),
        }
        self.keys = recycle(keys);
        trim(&mut self.keys);
        self.meta.clear();
        let (mut hits, mut body_len) = (0, 0);
        for (pin, &room) in self.pins.iter_mut().zip(&self.rooms) {
            let record = pin.as_ref().map(PagePin::meta);
            let code = judge(record, room, header.flags & FLAG_EXACT != 0);
            hits += u64::from(code != Code::Miss);
            if code == Code::Ok {
                body_len += u64::from(record.map_or(0, |meta| meta.len));
            } else {
                *pin = None;
            }
            self.meta.extend_from_slice(&records::page_record(code, record.unwrap_or_default()));
        }
        let metrics = &self.node.metrics;
        Metrics::add(&metrics.get_keys, header.count.into());
        Metrics::add(&metrics.get_hits, hits);
        Metrics::add(&metrics.get_bytes, body_len);
        Ok(body_len)
    }

    /// Answers put: one verdict per page, and slots in `offers` for the wanted ones.
    pub(crate) fn offer(
        &mut self,
        header: &Header,
        meta: &[u8],
        offers: &mut Offers,
        expires: Instant,
    ) -> Result<Header, FrameError> {
        let (space, mut held) = match self.take(header, || records::offered(meta, header.count), offers)? {
            Taken::Pages(space, held) => (space, held),
            Taken::Refused(reply) => return Ok(reply),
        };
        self.meta.clear();
        self.meta.extend(held.iter().map(|page| page.offer_verdict() as u8));
        held.retain(Held::is_wanted);
        let existing = self.meta.iter().filter(|&&code| code == Code::Exists as u8).count();
        Metrics::add(&self.node.metrics.put_existing, existing as u64);
        if !held.is_empty() && !offers.add(self.pending(header.request_id, space, held, expires)) {
            // Two offers with one id: which one would the pages belong to?
            return Err(FrameError::Records);
        }
        Ok(Header::reply_to(header, Code::Ok, header.count))
    }

    /// Prepares for the pages that come with a put: a slot for each that is wanted.
    pub(crate) fn take_direct(
        &mut self,
        header: &Header,
        meta: &[u8],
        offers: &Offers,
    ) -> Result<Taken, FrameError> {
        let taken = self.take(header, || records::offered(meta, header.count), offers)?;
        match &taken {
            Taken::Pages(_, held) if super::offers::body_len(held) != header.body_len => {
                Err(FrameError::Records)
            }
            Taken::Pages(..) | Taken::Refused(_) => Ok(taken),
        }
    }

    /// Prepares for the pages of a put that are to be fetched from spans: a slot for each that is wanted.
    pub(crate) fn take_remote(
        &mut self,
        header: &Header,
        meta: &[u8],
        offers: &Offers,
    ) -> Result<Taken, FrameError> {
        let offered = || records::remote_offered(meta, header.count).map(|page| page.map(|page| page.page));
        self.take(header, offered, offers)
    }

    /// A slot, or a reason against it, for each page of a put.
    fn take<'m, I: Iterator<Item = Result<Offered<'m>, FrameError>>>(
        &mut self,
        header: &Header,
        pages: impl Fn() -> I,
        offers: &Offers,
    ) -> Result<Taken, FrameError> {
        // All records are read before the first slot is taken.
        for offered in pages() {
            offered?;
        }
        self.meta.clear();
        let space = match self.tenant.find(&self.node.engine, header.space) {
            Found::Own(space) => space,
            Found::Readable(_) => return Ok(Taken::Refused(self.refuse(header, Code::Denied, FOREIGN))),
            Found::No => return Ok(Taken::Refused(self.refuse(header, Code::UnknownSpace, UNKNOWN))),
        };
        let leaving = self.node.drain.duty() != Duty::Serving;
        let mut room = Room::of(&self.node, &self.tenant, (offers.held_bytes(), offers.has_room()), leaving);
        let mut sheds = Sheds::default();
        let mut held = Vec::with_capacity(header.count as usize);
        let write_through = self.node.config.storage.nvme_mode == NvmeMode::WriteThrough;
        for offered in pages() {
            let offered = offered?;
            let hashed = HashedKey::new(header.space, offered.key);
            let refused = |code| Held::unwanted(code, offered.len);
            let page = if offered.len == 0 || offered.len > self.node.limits.page_bytes_max {
                refused(Code::TooLarge)
            } else if let Some(why) = room.lacks(offered.len) {
                let code = self.if_absent(&space, hashed, Code::Busy);
                if code == Code::Busy {
                    sheds.add(why);
                }
                refused(code)
            } else {
                match self.node.engine.reserve(&space, hashed, offered.len, offered.position) {
                    Ok(filling) => {
                        room.take(offered.len);
                        let page = Held::new(filling, hashed.digest, offered.len);
                        if write_through { page.with_key(offered.key) } else { page }
                    }
                    Err(Refusal::Exists) => refused(Code::Exists),
                    Err(Refusal::Busy) => {
                        sheds.add(Shed::Memory);
                        refused(Code::Busy)
                    }
                    Err(Refusal::TooLarge { .. }) => refused(Code::TooLarge),
                }
            };
            held.push(page);
        }
        if let Some(first) = held.iter_mut().find(|page| page.is_wanted()) {
            first.counts(self.node.arrivals.count(&self.tenant, room.taken()));
        }
        Metrics::add(&self.node.metrics.put_keys, header.count.into());
        sheds.count(&self.node.metrics);
        Ok(Taken::Pages(space, held))
    }

    fn if_absent(&self, space: &Space, key: HashedKey<'_>, otherwise: Code) -> Code {
        let mut found = [false];
        self.node.engine.exists_batch(space, &[key], &mut found);
        if found[0] { Code::Exists } else { otherwise }
    }

    fn pending(&self, request_id: u64, space: Arc<Space>, held: Vec<Held>, expires: Instant) -> Offer {
        let (pages, body_len) = (held.len() as u32, super::offers::body_len(&held));
        Offer { request_id, space, held, expires, pages, body_len, guard: Some(self.node.in_flight.enter()) }
    }

    /// Gives back what lists have grown to beyond what most requests need.
    pub(crate) fn settle(&mut self) {
        self.keys.shrink_to(KEPT_ENTRIES);
        self.found.shrink_to(KEPT_ENTRIES);
        self.rooms.clear();
        self.rooms.shrink_to(KEPT_ENTRIES);
        self.pins.clear();
        self.pins.shrink_to(KEPT_ENTRIES);
        self.meta.clear();
        self.meta.shrink_to(KEPT_ENTRIES * PAGE_RECORD_BYTES);
    }

    /// A reply without records whose meta section is a text for people.
    pub(crate) fn refuse(&mut self, header: &Header, code: Code, text: &str) -> Header {
        self.meta.clear();
        self.meta.extend_from_slice(text.as_bytes());
        self.pins.clear();
        Header::reply_to(header, code, 0)
    }
}

fn judge(record: Option<PageMeta>, room: u32, exact: bool) -> Code {
    match record {
        None => Code::Miss,
        Some(meta) if meta.len > room || (exact && meta.len != room) => Code::SizeMismatch,
        Some(_) => Code::Ok,
    }
}

/// An empty list with the same memory; collecting an empty vector in place keeps its allocation.
fn recycle<'b>(mut keys: Vec<HashedKey<'_>>) -> Vec<HashedKey<'b>> {
    keys.clear();
    let placeholder = Key::new(b"-").expect("one byte is a key");
    keys.into_iter().map(|_| HashedKey::new(SpaceId::default(), placeholder)).collect()
}

fn trim<T>(list: &mut Vec<T>) {
    list.clear();
    list.shrink_to(KEPT_ENTRIES);
}
