//! The caller's memory: pages as lists of pieces, and the vectored calls that move their bytes.
//!
//! This is the one file with `unsafe`, because addresses that a caller hands over as numbers (a Python host pool)
//! become slices here, for exactly the length of one system call or one checksum. (And because registering a socket
//! with a runtime is `unsafe` in tokio.)
//!
//! Invariants:
//! - a [`Pieces`] made from slices borrows them; one made from raw pointers relies on the contract of the unsafe
//!   constructor: memory valid until the op ends, pieces of a get disjoint;
//! - no slice outlives the call that made it;
//! - one vectored read never has the same piece twice: pages come in strictly ascending order, which is checked.

use crate::exchange::Batch;
use crate::ops::check_raw;
use crate::plan::KeyList;
use crate::wire::Wire;
use crate::{BatchReport, Error, PageOutcome, Space, blocking};
use memkv_core::PageHasher;
use memkv_shm::{Stage, View};
use memkv_transport::frame::Op;
use memkv_transport::iov::IOV_MAX;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Bytes that are copied and hashed, one after the other, so that the second finds them in the core's cache.
const COPY_BYTES: usize = 128 << 10;

/// The caller's raw memory: page `i` is the pieces `i * per_page .. (i + 1) * per_page`, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct RawPieces<'a> {
    /// Address of every piece.
    pub ptrs: &'a [*mut u8],
    /// Length of every piece, in bytes.
    pub lens: &'a [usize],
    /// Pieces that make up one page.
    pub per_page: usize,
}

// SAFETY: the pointers are only followed inside the raw ops, whose contract makes the caller responsible for the
// memory whichever thread polls the op; the struct itself is plain numbers.
unsafe impl Send for RawPieces<'_> {}
// SAFETY: as above; shared access only copies the numbers.
unsafe impl Sync for RawPieces<'_> {}

/// Where the bytes of a batch's pages are.
pub(crate) struct Pieces<'a> {
    memory: Memory<'a>,
    per_page: usize,
    /// Pieces of the caller. Those from here on are the same again.
    count: usize,
    _borrow: PhantomData<&'a mut [u8]>,
}

enum Memory<'a> {
    /// The op moves no pages.
    None,
    Sources(&'a [&'a [u8]]),
    Targets {
        first: *const &'a mut [u8],
        count: usize,
    },
    Raw {
        ptrs: &'a [*mut u8],
        lens: &'a [usize],
    },
}

impl<'a> Memory<'a> {
    fn again<'b>(&self) -> Memory<'b>
    where
        'a: 'b,
    {
        match self {
            Self::None => Memory::None,
            Self::Sources(pages) => Memory::Sources(pages),
            Self::Targets { first, count } => Memory::Targets { first: first.cast(), count: *count },
            Self::Raw { ptrs, lens } => Memory::Raw { ptrs, lens },
        }
    }
}

// SAFETY: `Sources` is shared slices of bytes. `Targets` stands for an exclusive borrow of exclusive slices of bytes,
// both of which may move to another thread. For `Raw` see `RawPieces`.
unsafe impl Send for Pieces<'_> {}
// SAFETY: through a shared `Pieces` bytes are only read; writing needs `&mut`.
unsafe impl Sync for Pieces<'_> {}

/// One page of a frame's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyPage {
    /// Index of the page in the batch.
    pub(crate) page: u32,
    /// Bytes that move.
    pub(crate) len: u32,
    /// The page's record; a put sends it in front of the page's bytes.
    pub(crate) record: [u8; memkv_transport::records::PAGE_RECORD_BYTES],
}

/// How far a body has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BodyCursor {
    /// The page of the body that the next byte belongs to.
    pub(crate) at: usize,
    /// Bytes of that page (with its record in front, if there is one) already done.
    pub(crate) done: usize,
}

impl BodyCursor {
    /// Moves on by `bytes`, where every page has `extra` bytes in front.
    pub(crate) fn advance(&mut self, body: &[BodyPage], extra: usize, mut bytes: usize) {
        while bytes > 0 {
            let room = body[self.at].len as usize + extra - self.done;
            if bytes < room {
                self.done += bytes;
                return;
            }
            bytes -= room;
            self.at += 1;
            self.done = 0;
        }
    }
}

impl<'a> Pieces<'a> {
    /// For ops that move no pages.
    pub(crate) fn none() -> Self {
        Self { memory: Memory::None, per_page: 1, count: usize::MAX, _borrow: PhantomData }
    }

    /// Pages to put, one slice each.
    pub(crate) fn sources(pages: &'a [&'a [u8]]) -> Self {
        Self { memory: Memory::Sources(pages), per_page: 1, count: usize::MAX, _borrow: PhantomData }
    }

    /// Destinations of a get, one slice each.
    pub(crate) fn targets<'s: 'a>(pages: &'a mut [&'s mut [u8]]) -> Self {
        let count = pages.len();
        // Shortening the slices' lifetime behind the exclusive borrow is sound here because nothing is ever stored
        // through the pointer; only the bytes behind it are written.
        let first = pages.as_mut_ptr().cast::<&'a mut [u8]>().cast_const();
        Self {
            memory: Memory::Targets { first, count },
            per_page: 1,
            count: usize::MAX,
            _borrow: PhantomData,
        }
    }

    /// The caller's raw memory.
    ///
    /// # Safety
    ///
    /// Until the last use of the result, every piece must be valid for reads of its length, and for a get also for
    /// writes, with no other access to it and no overlap between pieces.
    pub(crate) unsafe fn raw(raw: RawPieces<'a>) -> Self {
        let memory = Memory::Raw { ptrs: raw.ptrs, lens: raw.lens };
        Self { memory, per_page: raw.per_page, count: usize::MAX, _borrow: PhantomData }
    }

    /// The same pages for the length of one round, where the pages from `count` on are those from the first on again.
    /// Only pages that are read from may come twice.
    pub(crate) fn again(&mut self, count: usize) -> Pieces<'_> {
        let count = count * self.per_page;
        Pieces { memory: self.memory.again(), per_page: self.per_page, count, _borrow: PhantomData }
    }

    /// Address and length of a piece.
    fn piece(&self, piece: usize) -> (*mut u8, usize) {
        let piece = if piece < self.count { piece } else { piece % self.count };
        match &self.memory {
            Memory::None => (std::ptr::NonNull::dangling().as_ptr(), 0),
            Memory::Sources(pages) => (pages[piece].as_ptr().cast_mut(), pages[piece].len()),
            Memory::Targets { first, count } => {
                assert!(piece < *count, "the piece is one of the batch");
                // SAFETY: `first` points at `count` slices that this value borrows exclusively, and `piece` is below.
                let slot = unsafe { first.cast_mut().add(piece) };
                // SAFETY: `slot` is one of those slices; only its address and length are read, no reference is made.
                let slice: *mut [u8] = unsafe { &raw mut **slot };
                (slice.cast::<u8>(), slice.len())
            }
            Memory::Raw { ptrs, lens } => (ptrs[piece], lens[piece]),
        }
    }

    /// Length of a page, in bytes.
    pub(crate) fn page_len(&self, page: usize) -> usize {
        (0..self.per_page).map(|k| self.piece(page * self.per_page + k).1).sum()
    }

    /// Calls `each` with address and length of the parts of a page's bytes `from..to`, until it returns false.
    fn parts(
        &self,
        page: usize,
        from: usize,
        to: usize,
        mut each: impl FnMut(*mut u8, usize) -> bool,
    ) -> bool {
        let mut begin = 0;
        for k in 0..self.per_page {
            let (start, len) = self.piece(page * self.per_page + k);
            let (low, high) = (from.max(begin), to.min(begin + len));
            if low < high && !each(start.wrapping_add(low - begin), high - low) {
                return false;
            }
            begin += len;
            if begin >= to {
                break;
            }
        }
        true
    }

    /// The checksum of the first `len` bytes of a page.
    pub(crate) fn checksum(&self, page: usize, len: usize, digest: u64) -> u64 {
        let mut whole = None;
        self.parts(page, 0, len, |start, part| {
            if part == len {
                // SAFETY: `parts` stays inside a piece, which the constructor's borrow or contract makes readable; the
                // slice ends with this closure, and no write happens meanwhile.
                let bytes = unsafe { std::slice::from_raw_parts(start, part) };
                whole = Some(PageHasher::oneshot(digest, bytes));
            }
            false
        });
        whole.unwrap_or_else(|| {
            let mut hasher = PageHasher::new(digest);
            self.hash(&mut hasher, page, 0, len);
            hasher.finish()
        })
    }

    /// Adds a page's bytes `from..to` to a hash.
    pub(crate) fn hash(&self, hasher: &mut PageHasher, page: usize, from: usize, to: usize) {
        self.parts(page, from, to, |start, part| {
            // SAFETY: `parts` stays inside a piece, which the constructor's borrow or contract makes readable; the
            // slice ends with this closure, and no write happens meanwhile.
            hasher.update(unsafe { std::slice::from_raw_parts(start, part) });
            true
        });
    }

    /// Reads the next bytes of a body from a socket straight into the pages, at most about `bytes_max` at once.
    /// Returns how many came and how many there was room for.
    pub(crate) fn read_body(
        &mut self,
        stream: &Wire,
        body: &[BodyPage],
        cursor: BodyCursor,
        bytes_max: usize,
    ) -> io::Result<(usize, usize)> {
        assert!(!matches!(self.memory, Memory::Sources(_)), "a get writes to its destinations only");
        let mut slices: [IoSliceMut<'_>; IOV_MAX] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut used, mut room, mut last) = (0, 0, None);
        for (index, entry) in body.iter().enumerate().skip(cursor.at) {
            let from = if index == cursor.at { cursor.done } else { 0 };
            assert!(last.is_none_or(|last| last < entry.page), "pages ascend, so no piece comes twice");
            last = Some(entry.page);
            let more = self.parts(entry.page as usize, from, entry.len as usize, |start, len| {
                // SAFETY: `parts` stays inside a piece that is ours to write until this call returns: by the
                // exclusive borrow of `targets`, or by the contract of `raw`. Ascending pages make pieces distinct.
                let part = unsafe { std::slice::from_raw_parts_mut(start, len) };
                slices[used] = IoSliceMut::new(part);
                used += 1;
                room += len;
                used < IOV_MAX && room < bytes_max
            });
            if !more {
                break;
            }
        }
        stream.read_vectored(&mut slices[..used]).map(|came| (came, room))
    }

    /// Writes `head`, then the next bytes of a body (record, page, record, page …) straight from the pages, at most
    /// about `bytes_max` at once. Returns how many went and how many were offered.
    pub(crate) fn write_body(
        &self,
        stream: &Wire,
        head: &[u8],
        body: &[BodyPage],
        cursor: BodyCursor,
        bytes_max: usize,
    ) -> io::Result<(usize, usize)> {
        let mut slices = [IoSlice::new(&[]); IOV_MAX];
        slices[0] = IoSlice::new(head);
        let (mut used, mut room) = (1, head.len());
        for (index, entry) in body.iter().enumerate().skip(cursor.at) {
            if used >= IOV_MAX || room >= bytes_max {
                break;
            }
            let done = if index == cursor.at { cursor.done } else { 0 };
            let record = &entry.record[done.min(entry.record.len())..];
            if !record.is_empty() {
                slices[used] = IoSlice::new(record);
                used += 1;
                room += record.len();
            }
            let from = done.saturating_sub(entry.record.len());
            // A record that took the last place leaves its page for the next call.
            let more = used < IOV_MAX
                && self.parts(entry.page as usize, from, entry.len as usize, |start, len| {
                    // SAFETY: `parts` stays inside a piece, which the constructor's borrow or contract makes
                    // readable until this call returns.
                    let part = unsafe { std::slice::from_raw_parts(start, len) };
                    slices[used] = IoSlice::new(part);
                    used += 1;
                    room += len;
                    used < IOV_MAX && room < bytes_max
                });
            if !more {
                break;
            }
        }
        let went = stream.write_vectored(&slices[..used])?;
        Ok((went, room))
    }

    /// Copies bytes that came by another way into a page, at `offset`. Returns whether all of them fit.
    pub(crate) fn copy_in(&mut self, page: usize, offset: usize, bytes: &[u8]) -> bool {
        assert!(!matches!(self.memory, Memory::Sources(_)), "a get writes to its destinations only");
        let mut rest = bytes;
        self.parts(page, offset, offset + bytes.len(), |start, len| {
            let (now, later) = rest.split_at(len);
            // SAFETY: `parts` stays inside a piece that is ours to write: by the exclusive borrow of `targets`, or by
            // the contract of `raw`. `now` is borrowed from elsewhere, so the two do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), start, len) };
            rest = later;
            true
        });
        rest.is_empty()
    }

    /// Calls `each` with address and length of the pieces of a page, in order, until it returns false. Returns whether it
    /// never did.
    pub(crate) fn places(&self, page: usize, mut each: impl FnMut(usize, usize) -> bool) -> bool {
        // A NIC will move bytes there and back while this process does not look, so the address is exposed.
        self.parts(page, 0, usize::MAX, |start, len| each(start.expose_provenance(), len))
    }

    /// Copies the first `len` bytes of a page to `to`.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `len` bytes that are none of the page's.
    pub(crate) unsafe fn copy_to(&self, page: usize, len: usize, mut to: *mut u8) {
        self.parts(page, 0, len, |start, part| {
            // SAFETY: `parts` stays inside a piece, which the constructor's borrow or contract makes readable, and the
            // parts of a call add up to at most `len`, for which the caller answers.
            unsafe { std::ptr::copy_nonoverlapping(start, to, part) };
            to = to.wrapping_add(part);
            true
        });
    }

    /// Copies `len` bytes at `from` to the beginning of a page.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes that are none of the page's.
    pub(crate) unsafe fn copy_from(&mut self, page: usize, len: usize, mut from: *const u8) {
        assert!(!matches!(self.memory, Memory::Sources(_)), "a get writes to its destinations only");
        self.parts(page, 0, len, |start, part| {
            // SAFETY: `parts` stays inside a piece that is ours to write: by the exclusive borrow of `targets`, or by
            // the contract of `raw`. The parts of a call add up to at most `len`, for which the caller answers.
            unsafe { std::ptr::copy_nonoverlapping(from, start, part) };
            from = from.wrapping_add(part);
            true
        });
    }

    /// How many pieces a page has.
    pub(crate) fn per_page(&self) -> usize {
        self.per_page
    }

    /// Address and length of a page's pieces, as numbers.
    pub(crate) fn addresses(&self, page: usize) -> impl ExactSizeIterator<Item = (u64, usize)> + '_ {
        (0..self.per_page).map(move |k| {
            let (start, len) = self.piece(page * self.per_page + k);
            (start.expose_provenance() as u64, len)
        })
    }

    /// Copies a page's first `len` bytes out of shared memory, and computes their checksum on the way, while they are in
    /// the core's cache. `None` if the memory does not have them.
    pub(crate) fn copy_shared(
        &mut self,
        view: &View,
        offset: u64,
        page: usize,
        len: usize,
        digest: u64,
    ) -> Option<u64> {
        assert!(!matches!(self.memory, Memory::Sources(_)), "a get writes to its destinations only");
        let (mut hasher, mut at) = (PageHasher::new(digest), offset);
        let whole = self.parts(page, 0, len, |start, part| {
            // SAFETY: `parts` stays inside a piece that is ours to write until this closure ends: by the exclusive borrow
            // of `targets`, or by the contract of `raw`. The view is other memory.
            let part = unsafe { std::slice::from_raw_parts_mut(start, part) };
            part.chunks_mut(COPY_BYTES).all(|chunk| {
                let read = view.read(at, chunk);
                at = at.wrapping_add(chunk.len() as u64);
                hasher.update(chunk);
                read
            })
        });
        whole.then(|| hasher.finish())
    }

    /// Copies a page's first `len` bytes to `at` in staging memory, and computes their checksum on the way. `None` if the
    /// memory does not take them.
    ///
    /// The checksum comes first: it brings the bytes into the core's cache, and the copy to lines that the server's core has just
    /// read does not wait for memory as well.
    pub(crate) fn copy_staged(
        &self,
        stage: &mut Stage,
        at: usize,
        page: usize,
        len: usize,
        digest: u64,
    ) -> Option<u64> {
        let (mut hasher, mut at) = (PageHasher::new(digest), at);
        let whole = self.parts(page, 0, len, |start, part| {
            // SAFETY: `parts` stays inside a piece, which the constructor's borrow or contract makes readable; the
            // slice ends with this closure, and no write happens meanwhile: the staging memory is other memory.
            let part = unsafe { std::slice::from_raw_parts(start, part) };
            part.chunks(COPY_BYTES).all(|chunk| {
                hasher.update(chunk);
                let written = stage.write(at, chunk);
                at += chunk.len();
                written
            })
        });
        whole.then(|| hasher.finish())
    }

    /// Appends the bytes `from..to` of a page to `out`.
    pub(crate) fn copy_out(&self, page: usize, from: usize, to: usize, out: &mut Vec<u8>) {
        self.parts(page, from, to, |start, len| {
            // SAFETY: `parts` stays inside a piece, which the constructor's borrow or contract makes readable; the
            // slice ends with this closure.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(start, len) });
            true
        });
    }
}

/// Views of one batch for several threads, one for each of `outcomes`. All of them reach all pages; the exchanges of one
/// op have different places of its order, so no page is touched through two views.
pub(crate) fn lanes<'b>(batch: &'b mut Batch<'_>, outcomes: &'b mut [Vec<PageOutcome>]) -> Vec<Batch<'b>> {
    let parent: &'b Batch<'_> = batch;
    let lane = |outcomes: &'b mut Vec<PageOutcome>| {
        let Pieces { memory, per_page, count, .. } = &parent.pieces;
        let pieces =
            Pieces { memory: memory.again(), per_page: *per_page, count: *count, _borrow: PhantomData };
        Batch { pieces, outcomes, ..*parent }
    };
    outcomes.iter_mut().map(lane).collect()
}

/// Registers a connection with the runtime whose context this is called in.
pub(crate) fn register(stream: Arc<Wire>) -> io::Result<AsyncFd<Arc<Wire>>> {
    // SAFETY: the descriptor is owned by the stream, which the registration keeps alive and never replaces, so
    // it stays open and the same until it is deregistered.
    Ok(unsafe { AsyncFd::register(stream) }?)
}

/// The call of a raw op.
///
/// # Safety
///
/// As for [`Pieces::raw`].
unsafe fn raw_call<'a>(
    space: &Space,
    op: Op,
    keys: &'a dyn KeyList,
    pieces: RawPieces<'a>,
    out: &'a mut [PageOutcome],
) -> Result<crate::ops::Call<'a>, Error> {
    check_raw(keys.count(), &pieces)?;
    // SAFETY: this function's contract is that of `Pieces::raw`.
    let pieces = unsafe { Pieces::raw(pieces) };
    space.pages_call(op, keys, pieces, out)
}

impl Space {
    /// [`Space::get_into`] for memory known by address.
    ///
    /// # Safety
    ///
    /// Until the future has completed or is dropped, every piece must be valid for reads and writes of its length,
    /// nothing else may access it, and no two pieces may overlap.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async unsafe fn get_into_raw<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pieces: RawPieces<'_>,
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        // SAFETY: the caller promises what `raw_call` asks for, until this future has ended.
        let call = unsafe { raw_call(self, Op::Get, &keys, pieces, out) }?;
        Ok(self.call(call).await?.report)
    }

    /// [`Space::put_from`] for memory known by address.
    ///
    /// # Safety
    ///
    /// Until the future has completed or is dropped, every piece must be valid for reads of its length, and nothing
    /// may write to it.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub async unsafe fn put_from_raw<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pieces: RawPieces<'_>,
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        // SAFETY: the caller promises what `raw_call` asks for, until this future has ended.
        let call = unsafe { raw_call(self, Op::Put, &keys, pieces, out) }?;
        Ok(self.call(call).await?.report)
    }
}

impl blocking::Space {
    /// [`blocking::Space::get_into`] for memory known by address.
    ///
    /// # Safety
    ///
    /// Until this returns, every piece must be valid for reads and writes of its length, nothing else may access it,
    /// and no two pieces may overlap.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub unsafe fn get_into_raw<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pieces: RawPieces<'_>,
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        // SAFETY: the caller promises what `raw_call` asks for, until this function has returned.
        let call = unsafe { raw_call(self.inner(), Op::Get, &keys, pieces, out) }?;
        Ok(self.call(call)?.report)
    }

    /// [`blocking::Space::put_from`] for memory known by address.
    ///
    /// # Safety
    ///
    /// Until this returns, every piece must be valid for reads of its length, and nothing may write to it.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub unsafe fn put_from_raw<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        pieces: RawPieces<'_>,
        out: &mut [PageOutcome],
    ) -> Result<BatchReport, Error> {
        // SAFETY: the caller promises what `raw_call` asks for, until this function has returned.
        let call = unsafe { raw_call(self.inner(), Op::Put, &keys, pieces, out) }?;
        Ok(self.call(call)?.report)
    }
}
