//! Offers that wait for their pages, and the pages on their way into slots.
//!
//! A put reserves one slot per wanted page. The slots belong to the [`Offer`] until every page has come, the offer
//! expires, or the connection ends; dropping the offer gives them back. A page becomes visible only when it has
//! come whole and its checksum, computed while the bytes arrive, matches.
//!
//! Deliberately absent: sockets. The connection asks [`Receiving::slices`] where the next bytes belong and tells
//! [`Receiving::arrived`] how many came.

use super::shed::Arriving;
use crate::node::RequestGuard;
use memkv_core::{Key, PageHasher, PageMeta, SpaceId};
use memkv_storage::{Corrupt, Filling, HashedKey, Moment, Published, Sealed, Space};
use memkv_transport::frame::Code;
use memkv_transport::iov::Progress;
use memkv_transport::records::{PAGE_RECORD_BYTES, read_page_record};
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use tokio::time::Instant;

/// Pieces of one vectored read; a page is two pieces.
pub(crate) const PIECES: usize = 64;
/// Bytes of one vectored read, so that they are still in the core's cache when they are hashed.
const READ_BYTES: usize = 1 << 20;

/// Bytes that are copied and then hashed, so that they are still in the core's cache.
const PART_BYTES: usize = 256 << 10;
/// Bytes of unwanted pages that are read over at once.
const SINK_BYTES: usize = 64 << 10;

/// A reserved slot and what its checksum starts from.
#[derive(Debug)]
pub(crate) struct Held {
    /// The slot; gone once the page was judged, and never there for a page that is not wanted.
    filling: Option<Filling>,
    digest: u64,
    len: usize,
    /// The key, if the page must be on a drive before it is acknowledged.
    key: Option<Box<[u8]>>,
    /// The page's verdict unless it comes whole and sound.
    verdict: Code,
    /// Keeps the bytes of its put counted; with the first wanted page of each.
    arriving: Option<Arriving>,
}

impl Held {
    /// Holds a slot for the page of `len` bytes whose key has this digest.
    pub(crate) fn new(filling: Filling, digest: u64, len: u32) -> Self {
        let (key, verdict, arriving) = (None, Code::Corrupt, None);
        Self { filling: Some(filling), digest, len: len as usize, key, verdict, arriving }
    }

    /// Also keeps the key, for [`Receiving::stored_keys`].
    pub(crate) fn with_key(self, key: Key<'_>) -> Self {
        Self { key: Some(key.as_bytes().into()), ..self }
    }

    /// Keeps the bytes of its put counted for as long as it lives.
    pub(crate) fn counts(&mut self, arriving: Arriving) {
        self.arriving = Some(arriving);
    }

    /// Whether a slot is held for it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.filling.is_some()
    }

    /// The answer to the offer of this page.
    pub(crate) fn offer_verdict(&self) -> Code {
        if self.is_wanted() { Code::Want } else { self.verdict }
    }

    /// The slot's bytes, if one is held.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        self.filling.as_mut().map(Filling::bytes_mut)
    }

    /// Judges a page whose bytes were all brought into the slot beside the connection: publishes it if they match
    /// `meta`. Returns the bytes that are stored by that.
    pub(crate) fn judge(&mut self, meta: PageMeta, now: Moment) -> u64 {
        let Some(filling) = self.filling.take() else { return 0 };
        self.end(filling.verify(meta), now);
        if self.verdict == Code::Ok { meta.len.into() } else { 0 }
    }

    fn end(&mut self, verified: Result<Sealed, Corrupt>, now: Moment) {
        self.verdict = match verified.map(|sealed| sealed.publish(now)) {
            Ok(Published::Stored) => Code::Ok,
            Ok(Published::Exists) => Code::Exists,
            Err(_corrupt) => Code::Corrupt,
        };
    }

    /// Brings a page into its slot by `read`, part after part, and judges it like [`Held::judge`]. Each part is hashed while
    /// it is in the core's cache. A page that is not wanted is not read.
    ///
    /// # Errors
    ///
    /// The error of `read`; the slot is given back then.
    pub(crate) fn bring(
        &mut self,
        meta: PageMeta,
        now: Moment,
        mut read: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
        let Some(mut filling) = self.filling.take() else { return Ok(0) };
        let mut hasher = PageHasher::new(self.digest);
        for part in filling.bytes_mut().chunks_mut(PART_BYTES) {
            read(part)?;
            hasher.update(part);
        }
        self.end(filling.verify_streamed(meta, hasher.finish()), now);
        Ok(if self.verdict == Code::Ok { meta.len.into() } else { 0 })
    }

    /// What became of the page.
    pub(crate) fn verdict(&self) -> Code {
        self.verdict
    }

    /// The key of a page that is stored by now, if it was kept.
    pub(crate) fn stored_key(&self, space: SpaceId) -> Option<HashedKey<'_>> {
        let key = self.key.as_deref().filter(|_| self.verdict == Code::Ok)?;
        Key::new(key).ok().map(|key| HashedKey::new(space, key))
    }

    /// A page that comes although it is not wanted, for the reason `verdict`.
    pub(crate) fn unwanted(verdict: Code, len: u32) -> Self {
        Self { filling: None, digest: 0, len: len as usize, key: None, verdict, arriving: None }
    }
}

/// The wanted pages of one put.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) request_id: u64,
    /// Where the pages belong.
    pub(crate) space: Arc<Space>,
    /// Slots in the order of the pages; empty once expired.
    pub(crate) held: Vec<Held>,
    /// When the slots are given back.
    pub(crate) expires: Instant,
    /// Number of wanted pages, also after expiry.
    pub(crate) pages: u32,
    /// Bytes of the put-data body, also after expiry.
    pub(crate) body_len: u64,
    /// Keeps a graceful stop waiting.
    pub(crate) guard: Option<RequestGuard>,
}

/// The offers of one connection.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    open: Vec<Offer>,
    held_bytes: u64,
}

/// Offers of one connection that may wait at once.
const OFFERS_MAX: usize = 1024;

impl Offers {
    /// Whether one more may wait.
    pub(crate) fn has_room(&self) -> bool {
        self.open.len() < OFFERS_MAX
    }

    /// Whether any waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Bytes of slots that wait.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Adds one. `false`, and nothing is added, if its id is in use.
    pub(crate) fn add(&mut self, offer: Offer) -> bool {
        if self.open.iter().any(|open| open.request_id == offer.request_id) {
            return false;
        }
        self.held_bytes += bytes_of(&offer.held);
        self.open.push(offer);
        true
    }

    /// Takes the offer with this id.
    pub(crate) fn take(&mut self, request_id: u64) -> Option<Offer> {
        let at = self.open.iter().position(|open| open.request_id == request_id)?;
        let offer = self.open.swap_remove(at);
        self.held_bytes -= bytes_of(&offer.held);
        Some(offer)
    }

    /// When the next slots are to be given back.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.open.iter().filter(|open| !open.held.is_empty()).map(|open| open.expires).min()
    }

    /// Gives back the slots of every offer that expired by `now`; the offers themselves stay known.
    pub(crate) fn expire(&mut self, now: Instant) {
        for offer in self.open.iter_mut().filter(|open| open.expires <= now) {
            self.held_bytes -= bytes_of(&offer.held);
            offer.held = Vec::new();
            offer.guard = None;
        }
    }
}

fn bytes_of(held: &[Held]) -> u64 {
    held.iter().map(|page| page.len as u64).sum()
}

/// A put-data body on its way in: for each page a record, then its bytes.
pub(crate) struct Receiving {
    held: Vec<Held>,
    records: Vec<[u8; PAGE_RECORD_BYTES]>,
    progress: Progress,
    hasher: Option<PageHasher>,
    /// Where the bytes of unwanted pages go; empty until there are any.
    sink: Vec<u8>,
    /// What became of each page so far.
    pub(crate) verdicts: Vec<u8>,
    /// Bytes of stored pages.
    pub(crate) stored_bytes: u64,
    now: Moment,
}

/// The body does not hold the pages that were offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongBody;

impl Receiving {
    /// Expects the pages of `held`.
    pub(crate) fn new(held: Vec<Held>, now: Moment) -> Self {
        let records = vec![[0; PAGE_RECORD_BYTES]; held.len()];
        let verdicts = held.iter().map(|page| page.verdict as u8).collect();
        let wanted = held.iter().all(|page| page.filling.is_some());
        let sink = if wanted { Vec::new() } else { vec![0; SINK_BYTES] };
        let progress = Progress::default();
        Self { held, records, progress, hasher: None, sink, verdicts, stored_bytes: 0, now }
    }

    /// The keys of the stored pages, as far as they were kept.
    pub(crate) fn stored_keys(&self, space: SpaceId) -> Vec<HashedKey<'_>> {
        let stored = self.held.iter().zip(&self.verdicts).filter(|(_, verdict)| **verdict == Code::Ok as u8);
        let keys = stored.filter_map(|(held, _)| Key::new(held.key.as_deref()?).ok());
        keys.map(|key| HashedKey::new(space, key)).collect()
    }

    /// Whether everything has come.
    pub(crate) fn is_done(&self) -> bool {
        self.progress.is_done(2 * self.held.len())
    }

    /// Where the next bytes belong.
    pub(crate) fn slices<'a>(&'a mut self, slices: &mut [IoSliceMut<'a>; PIECES]) -> usize {
        let first = self.progress.piece / 2;
        let mut skip_pieces = self.progress.piece % 2;
        let mut skip_bytes = self.progress.offset;
        let (mut used, mut room) = (0, READ_BYTES);
        for (record, page) in self.records[first..].iter_mut().zip(&mut self.held[first..]) {
            if room == 0 {
                // The page before may be cut short here: what follows it is not next.
                return used;
            }
            let Some(filling) = page.filling.as_mut() else {
                // An unwanted page: its record, then as much of it as the sink takes at once.
                if std::mem::take(&mut skip_pieces) == 0 {
                    if used < PIECES {
                        slices[used] = IoSliceMut::new(&mut record[std::mem::take(&mut skip_bytes)..]);
                        used += 1;
                    }
                } else {
                    let left = page.len - skip_bytes;
                    let most = left.min(self.sink.len());
                    slices[used] = IoSliceMut::new(&mut self.sink[..most]);
                    used += 1;
                }
                return used;
            };
            for piece in
                [&mut record[..], filling.bytes_mut()].into_iter().skip(std::mem::take(&mut skip_pieces))
            {
                if used == PIECES || room == 0 {
                    return used;
                }
                let piece = &mut piece[std::mem::take(&mut skip_bytes)..];
                let bytes = piece.len().min(room);
                room -= bytes;
                slices[used] = IoSliceMut::new(&mut piece[..bytes]);
                used += 1;
            }
        }
        used
    }

    /// Copies bytes that came together with the header to where they belong; returns how many were used.
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) -> Result<usize, WrongBody> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_done() {
            let mut slices = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            let used = self.slices(&mut slices);
            let before = rest.len();
            for slice in &mut slices[..used] {
                let len = slice.len().min(rest.len());
                slice[..len].copy_from_slice(&rest[..len]);
                rest = &rest[len..];
            }
            let copied = before - rest.len();
            self.arrived(copied)?;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Takes note that the first `bytes` bytes of [`Receiving::slices`] are there: hashes them, and publishes
    /// every page that is whole.
    pub(crate) fn arrived(&mut self, bytes: usize) -> Result<(), WrongBody> {
        let before = self.progress;
        let held = &self.held;
        let len_of =
            |piece: usize| if piece.is_multiple_of(2) { PAGE_RECORD_BYTES } else { held[piece / 2].len };
        self.progress.advance(bytes, len_of, 2 * held.len());
        let after = self.progress;
        for page in before.piece / 2..(after.piece / 2 + 1).min(self.held.len()) {
            let bytes_piece = 2 * page + 1;
            let from = if before.piece == bytes_piece { before.offset } else { 0 };
            let to = match after.piece {
                piece if piece > bytes_piece => self.held[page].len,
                piece if piece == bytes_piece => after.offset,
                _ => 0,
            };
            self.take_in(page, from, to)?;
        }
        Ok(())
    }

    /// Bytes `from..to` of `page` are new.
    fn take_in(&mut self, page: usize, from: usize, to: usize) -> Result<(), WrongBody> {
        if from == to {
            // A read that ended in or right behind the page's record: its checksum must not begin, or it would be
            // taken for that of a later page if the rest of this one comes in one go.
            return Ok(());
        }
        let held = &mut self.held[page];
        let Some(mut filling) = held.filling.take() else { return Ok(()) };
        let whole = to == held.len;
        let bytes = &filling.bytes_mut()[from..to];
        let computed = if from == 0 && whole {
            PageHasher::oneshot(held.digest, bytes)
        } else {
            let digest = held.digest;
            let hasher = self.hasher.get_or_insert_with(|| PageHasher::new(digest));
            hasher.update(bytes);
            if !whole {
                held.filling = Some(filling);
                return Ok(());
            }
            let computed = hasher.finish();
            self.hasher = None;
            computed
        };
        let (code, meta) = read_page_record(&self.records[page]).map_err(|_| WrongBody)?;
        if code != Code::Ok || meta.len as usize != held.len {
            return Err(WrongBody);
        }
        let verdict = match filling.verify_streamed(meta, computed).map(|sealed| sealed.publish(self.now)) {
            Ok(Published::Stored) => {
                self.stored_bytes += u64::from(meta.len);
                Code::Ok
            }
            Ok(Published::Exists) => Code::Exists,
            Err(_corrupt) => Code::Corrupt,
        };
        self.verdicts[page] = verdict as u8;
        Ok(())
    }
}

/// Bytes of the put-data body for these pages.
pub(crate) fn body_len(held: &[Held]) -> u64 {
    bytes_of(held) + (held.len() * PAGE_RECORD_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_core::SpaceDescription;
    use memkv_storage::{Engine, EngineConfig};
    use memkv_transport::records::page_record;

    const LENS: [u32; 4] = [5, 41, 1, 33];

    /// Slots for one page of each length, and the body that brings them.
    fn offered(engine: &Engine, lens: &[u32]) -> (Vec<Held>, Vec<u8>) {
        let space = engine.open_space(SpaceDescription::named("split").unwrap()).unwrap();
        engine.clear(&space);
        let (mut held, mut body) = (Vec::new(), Vec::new());
        for (name, len) in (b'a'..).zip(lens.iter().copied()) {
            let name = [name];
            let key = HashedKey::new(space.id(), Key::new(&name).unwrap());
            let bytes = vec![name[0]; len as usize];
            let checksum = PageHasher::oneshot(key.digest, &bytes);
            body.extend_from_slice(&page_record(Code::Ok, PageMeta { len, checksum, ..PageMeta::default() }));
            body.extend_from_slice(&bytes);
            held.push(Held::new(engine.reserve(&space, key, len, 0).unwrap(), key.digest, len));
        }
        (held, body)
    }

    #[test]
    fn pages_are_stored_wherever_the_reads_end() {
        let engine = Engine::new(EngineConfig::with_dram(64 << 20)).unwrap();
        let total = offered(&engine, &LENS).1.len();
        let unwanted = 1;
        for first in 0..=total {
            for second in first..=total {
                let (mut held, body) = offered(&engine, &LENS);
                held[unwanted] = Held::unwanted(Code::Exists, LENS[unwanted]);
                let mut pages = Receiving::new(held, 0.into());
                for part in [&body[..first], &body[first..second], &body[second..]] {
                    assert_eq!(pages.copy_from(part), Ok(part.len()));
                }
                assert!(pages.is_done());
                let mut expected = [Code::Ok as u8; LENS.len()];
                expected[unwanted] = Code::Exists as u8;
                assert_eq!(pages.verdicts, expected, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_unwanted_page_may_follow_one_that_is_longer_than_a_read() {
        let engine = Engine::new(EngineConfig::with_dram(256 << 20)).unwrap();
        // The second page ends behind what one read takes, and at its very end.
        for over in [-1, 0, 1, 1000] {
            let whole = u32::try_from(READ_BYTES as i64 - 2 * PAGE_RECORD_BYTES as i64 + over).unwrap();
            let lens = [700, whole - 700, 65, 9];
            let (mut held, body) = offered(&engine, &lens);
            held[2] = Held::unwanted(Code::Exists, lens[2]);
            let mut pages = Receiving::new(held, 0.into());
            assert_eq!(pages.copy_from(&body), Ok(body.len()));
            let [ok, exists] = [Code::Ok as u8, Code::Exists as u8];
            assert_eq!(pages.verdicts, [ok, ok, exists, ok], "{over} bytes more than a read");
        }
    }
}
