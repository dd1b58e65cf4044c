//! Registered memory: the caller's regions, and the bounce buffer for pages that lie elsewhere.
//!
//! `unsafe` is here because a NIC reaches memory by address: what is registered must stay mapped until it is
//! deregistered, and memory that a server may write is only ever copied through raw pointers.
//!
//! Invariants:
//! - a region's registrations are dropped, which deregisters them, before the drop of its [`Region`] returns;
//! - a part of the bounce buffer belongs to one exchange at a time, which gives it back only after its connection's
//!   queue pair is finished with it or destroyed.

use super::nics::Opened;
use super::{BOUNCE_REGION, Context};
use crate::raw::Pieces;
use crate::{Client, Error, ErrorKind, blocking};
use memkv_proto::v1;
use memkv_rdma::{Access, Nic, RdmaError, register_all};
use parking_lot::Mutex;
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Memory is registered in parts of so many bytes, several at a time.
const PART_BYTES: usize = 1 << 30;
/// How often a long registration says how far it is.
const PROGRESS: Duration = Duration::from_secs(1);
/// Blocks of the bounce buffer.
const BLOCK_BYTES: usize = 64 << 10;
/// The first bytes of the bounce buffer are where servers try the way; no page goes there.
const TRIAL_BLOCKS: usize = 1;

/// Memory that is registered with every NIC that is open. Dropping it deregisters.
pub(super) struct Registered {
    start: usize,
    bytes: usize,
    /// Whether it may be registered. Locked while that is done, so that whoever ends it waits.
    open: Mutex<bool>,
    /// By NIC.
    made: Mutex<Vec<Made>>,
}

/// What one NIC made of it: a region for each part, none if the NIC is gone.
#[derive(Default)]
struct Made {
    parts: Vec<Box<dyn memkv_rdma::Region>>,
    /// The life of the NIC that made it; 0 for none.
    life: u64,
}

impl Registered {
    /// Registers memory with these NICs.
    ///
    /// # Safety
    ///
    /// The memory stays mapped until [`Registered::end`] has returned or the result is dropped, and nothing relies on its
    /// bytes while an op that names it is under way.
    unsafe fn new(nics: &[Option<Opened>], start: NonNull<u8>, bytes: usize) -> Result<Self, RdmaError> {
        let made = nics.iter().map(|_| Made::default()).collect();
        let start = start.as_ptr().expose_provenance();
        let registered = Self { start, bytes, open: Mutex::new(true), made: Mutex::new(made) };
        for (place, nic) in nics.iter().enumerate() {
            registered.renew(place, nic.as_ref())?;
        }
        Ok(registered)
    }

    /// Registers the memory with a NIC in place of what was registered there before; with `None`, only deregisters that. A
    /// NIC that goes away meanwhile counts as one without regions. Calls the driver, and returns when it is done.
    pub(super) fn renew(&self, place: usize, nic: Option<&Opened>) -> Result<(), RdmaError> {
        let open = self.open.lock();
        let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut(self.start)).filter(|_| *open)
        else {
            return Ok(());
        };
        let made = match nic {
            None => Made::default(),
            Some(Opened { nic, life }) => {
                // SAFETY: the memory stays mapped until this is ended or dropped, by the promise of `new`. It is open, and
                // ending it takes the lock that is held here and then drops what is made here.
                let parts = unsafe { self.register(nic.as_ref(), start) };
                match parts {
                    Err(_) if matches!(nic.health(), Err(RdmaError::Gone { .. })) => {
                        Made { parts: Vec::new(), life: *life }
                    }
                    parts => Made { parts: parts?, life: *life },
                }
            }
        };
        let before = std::mem::replace(&mut self.made.lock()[place], made);
        drop(before);
        Ok(())
    }

    /// # Safety
    ///
    /// As [`register_all`] for this memory.
    unsafe fn register(
        &self,
        nic: &dyn Nic,
        start: NonNull<u8>,
    ) -> Result<Vec<Box<dyn memkv_rdma::Region>>, RdmaError> {
        let begun = Instant::now();
        let said = Mutex::new(begun);
        let progress = |done: u64, of: u64| {
            let mut said = said.lock();
            if said.elapsed() >= PROGRESS {
                *said = Instant::now();
                let seconds = begun.elapsed().as_secs();
                tracing::info!(registered = done, of, seconds, "registering memory for rdma");
            }
        };
        // SAFETY: this function's contract is that of `register_all`.
        unsafe { register_all(nic, start, self.bytes, Access::REMOTE, PART_BYTES, &progress) }
    }

    /// Deregisters it for good.
    pub(super) fn end(&self) {
        *self.open.lock() = false;
        let made = std::mem::take(&mut *self.made.lock());
        drop(made);
    }

    /// The life of the NIC at a place that it is registered with; 0 for none.
    pub(super) fn life(&self, place: usize) -> u64 {
        self.made.lock().get(place).map_or(0, |made| made.life)
    }

    /// Address and bytes.
    pub(super) fn place(&self) -> (usize, usize) {
        (self.start, self.bytes)
    }

    /// What servers are told. Keys of a NIC that is gone are 0: no queue pair exists where they would be used.
    pub(super) fn message(&self, id: u32) -> v1::RegisterRegion {
        let parts = self.bytes.div_ceil(PART_BYTES);
        let key = |made: &Made, part: usize| made.parts.get(part).map_or(0, |part| part.remote_key());
        let keys = |made: &Made| v1::RegionKeys { keys: (0..parts).map(|part| key(made, part)).collect() };
        v1::RegisterRegion {
            region: id,
            bytes: self.bytes as u64,
            address: self.start as u64,
            part_bytes: PART_BYTES as u64,
            nics: self.made.lock().iter().map(keys).collect(),
        }
    }
}

/// Memory that servers may write pages to and read pages from. Dropping it takes that back.
///
/// Pages of ops that lie in it move without a copy, as far as a server is reached by RDMA.
pub struct Region {
    context: Arc<Context>,
    id: u32,
    bytes: usize,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("id", &self.id).field("bytes", &self.bytes).finish()
    }
}

impl Region {
    /// Its bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is a size, not a container's count")]
    pub fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // What a forked child has are the parent's registrations; it must not take them away.
        if self.context.pid == std::process::id() {
            self.context.remove(self.id);
        }
    }
}

/// A start and a length on their way to a thread that registers.
struct Span(NonNull<u8>, usize);

// SAFETY: an address is not bound to a thread; the memory behind it is only registered, not touched.
unsafe impl Send for Span {}

impl Client {
    /// Registers memory with the NICs, so that pages in it move by RDMA without a copy. For large buffers that live
    /// long: it takes milliseconds per GiB, pins the memory, and counts against the memlock limit.
    ///
    /// Returns when every server that is reached by RDMA has answered, at most after `connect_timeout`; servers that
    /// come later learn of it by themselves.
    ///
    /// # Safety
    ///
    /// - The memory must stay mapped, readable and writable, until the region is dropped.
    /// - It must not be freed or unmapped before the drop has returned.
    /// - A future of an op whose pages lie in it must be run to its end or dropped, not leaked (`mem::forget`), before
    ///   the op's pages are used for anything else.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSupported`] if pages do not move by RDMA here, [`ErrorKind::Unavailable`] if the system does not
    /// register the memory: the text says why. Ops on the memory work all the same, with a copy.
    pub async unsafe fn register_region(&self, start: *mut u8, len: usize) -> Result<Region, Error> {
        self.inner.check()?;
        let Some(context) = self.inner.shared.rdma.clone() else {
            let text = "pages do not move by rdma here; the log of the client's start says why";
            return Err(Error::new(ErrorKind::NotSupported, text));
        };
        let Some(start) = NonNull::new(start).filter(|_| len > 0) else {
            return Err(Error::bad_input("a region has an address and at least one byte"));
        };
        let span = Span(start, len);
        let registering = context.clone();
        // It comes back as a region, whose drop deregisters, also if this future is dropped meanwhile.
        let region = self.inner.handle.spawn_blocking(move || {
            let (context, Span(start, len)) = (registering, { span });
            // SAFETY: the caller keeps the memory until the region is dropped, which ends this.
            let registered = unsafe { Registered::new(&context.nics.all(), start, len) };
            let id = context.add(registered.map_err(|error| super::rdma_error(&error))?)?;
            Ok::<_, Error>(Region { context, id, bytes: len })
        });
        let region = region.await.map_err(|_| crate::client::closed())??;
        let id = region.id;
        let deadline = Instant::now() + self.inner.shared.config.connect_timeout;
        loop {
            let listener = context.answered.listen();
            if context.is_answered(id) || !crate::drive::before(&self.inner.handle, deadline, listener).await
            {
                return Ok(region);
            }
        }
    }
}

impl blocking::Client {
    /// See [`Client::register_region`].
    ///
    /// # Safety
    ///
    /// See [`Client::register_region`].
    ///
    /// # Errors
    ///
    /// See [`Client::register_region`].
    pub unsafe fn register_region(&self, start: *mut u8, len: usize) -> Result<Region, Error> {
        // SAFETY: the caller promises what the asynchronous form asks for.
        blocking::block_on(unsafe { self.asynchronous().register_region(start, len) })
    }
}

/// Bytes that a peer may write at any time.
type Shared = Box<[UnsafeCell<u8>]>;

/// The buffer for pages that lie in no region: registered once, and lent in runs of blocks.
pub(crate) struct Bounce {
    memory: Shared,
    /// Which blocks are lent.
    lent: Mutex<Vec<bool>>,
}

// SAFETY: the bytes are only touched through `Lent`s, which have disjoint blocks and need `&mut` to write.
unsafe impl Sync for Bounce {}

impl Bounce {
    /// A buffer of about `bytes` bytes that is registered with every NIC.
    pub(super) fn new(nics: &[Option<Opened>], bytes: usize) -> Result<(Self, Registered), RdmaError> {
        let blocks = bytes.div_ceil(BLOCK_BYTES) + TRIAL_BLOCKS;
        let zeroes = vec![0_u8; blocks * BLOCK_BYTES].into_boxed_slice();
        // SAFETY: a cell has the layout of what is in it, and the box is the only owner.
        let memory: Shared = unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [UnsafeCell<u8>]) };
        let start = NonNull::from(&memory[..]).cast::<u8>();
        // SAFETY: the context that gets both drops its registrations before its bounce buffer (see `Context`).
        let registered = unsafe { Registered::new(nics, start, blocks * BLOCK_BYTES) }?;
        let mut lent = vec![false; blocks];
        lent[..TRIAL_BLOCKS].fill(true);
        Ok((Self { memory, lent: Mutex::new(lent) }, registered))
    }

    /// The first run of blocks that are free and have room for `bytes`; `None` if there is none.
    fn take(&self, bytes: usize) -> Option<(usize, usize)> {
        let count = bytes.div_ceil(BLOCK_BYTES).max(1);
        let mut lent = self.lent.lock();
        let mut run = 0;
        for block in 0..lent.len() {
            run = if lent[block] { 0 } else { run + 1 };
            if run == count {
                let first = block + 1 - count;
                lent[first..=block].fill(true);
                return Some((first, count));
            }
        }
        None
    }
}

/// Blocks of the bounce buffer, for one exchange.
pub(crate) struct Lent {
    context: Arc<Context>,
    first: usize,
    count: usize,
}

impl Lent {
    /// Room for `bytes`, if there is.
    pub(crate) fn take(context: &Arc<Context>, bytes: usize) -> Option<Self> {
        let (first, count) = context.bounce().take(bytes)?;
        Some(Self { context: context.clone(), first, count })
    }

    /// Bytes that it has room for.
    pub(crate) fn len(&self) -> usize {
        self.count * BLOCK_BYTES
    }

    /// The region and the place in it of its byte `at`.
    pub(crate) fn place(&self, at: usize) -> (u32, u64) {
        (BOUNCE_REGION, (self.first * BLOCK_BYTES + at) as u64)
    }

    /// Address of `len` bytes from byte `at` on.
    fn bytes(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at <= self.len() && len <= self.len() - at, "the page is inside what was lent");
        let from = self.first * BLOCK_BYTES + at;
        let cells: *const [UnsafeCell<u8>] = &raw const self.context.bounce.memory[from..from + len];
        UnsafeCell::raw_get(cells.cast::<UnsafeCell<u8>>())
    }

    /// Copies the first `len` bytes of a page into byte `at` and on.
    pub(crate) fn fill(&mut self, at: usize, pieces: &Pieces<'_>, page: usize, len: usize) {
        let to = self.bytes(at, len);
        // SAFETY: `to` has `len` bytes, which nobody else of this process touches while they are lent.
        unsafe { pieces.copy_to(page, len, to) };
    }

    /// Copies `len` bytes from byte `at` on into a page.
    pub(crate) fn spill(&self, at: usize, pieces: &mut Pieces<'_>, page: usize, len: usize) {
        let from = self.bytes(at, len);
        // SAFETY: `from` has `len` bytes, which nobody else of this process touches while they are lent.
        unsafe { pieces.copy_from(page, len, from) };
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.context.bounce.lent.lock()[self.first..self.first + self.count].fill(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounce(blocks: usize) -> Bounce {
        let (bounce, _) = Bounce::new(&[], (blocks - TRIAL_BLOCKS) * BLOCK_BYTES).unwrap();
        bounce
    }

    #[test]
    fn blocks_are_lent_once() {
        let bounce = bounce(5);
        assert_eq!(bounce.take(2 * BLOCK_BYTES), Some((1, 2)), "the first block is for trials");
        assert_eq!(bounce.take(1), Some((3, 1)));
        assert_eq!(bounce.take(BLOCK_BYTES + 1), None);
        bounce.lent.lock()[1..3].fill(false);
        assert_eq!(bounce.take(2 * BLOCK_BYTES), Some((1, 2)));
        assert_eq!(bounce.take(BLOCK_BYTES), Some((4, 1)));
        assert_eq!(bounce.take(1), None);
    }
}
