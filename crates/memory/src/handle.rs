//! The handles through which a slot's bytes are reached.

use crate::SLOT_ALIGN;
use crate::arena::Arena;
use crate::record::{PageRecord, SlotId, note};
use memkv_core::PageMeta;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

/// A slot that only this handle reaches. Dropping it gives the slot back.
///
/// The bytes are initialised but stale: they may be those of an earlier page. Whoever publishes the slot has to
/// write all of them first.
pub struct ReservedSlot {
    arena: Arc<Arena>,
    id: SlotId,
    start: NonNull<u8>,
    len: usize,
    slot_bytes: usize,
    /// The slot is still ours to give back.
    held: bool,
}

/// A filled slot with a zeroed tail that nobody may write any more. Dropping it gives the slot back.
pub struct SealedSlot(ReservedSlot);

/// A published page whose bytes stay as they are, and where they are, until this is dropped.
pub struct SlotPin {
    arena: Arc<Arena>,
    id: SlotId,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the handle is the only way to its slot's bytes while the slot is reserved, wherever it moves.
unsafe impl Send for ReservedSlot {}
// SAFETY: through `&ReservedSlot` the bytes cannot be reached at all.
unsafe impl Sync for ReservedSlot {}
// SAFETY: a pinned slot's bytes are not written by anyone, so any thread may read them.
unsafe impl Send for SlotPin {}
// SAFETY: as for `Send`.
unsafe impl Sync for SlotPin {}

/// Address of a slot in use, and its size.
fn address(arena: &Arena, id: SlotId) -> (NonNull<u8>, usize) {
    let (base, offset, slot_bytes) = arena.place(id);
    // SAFETY: the slot is in use, so its chunk has a class and the slot lies inside the chunk: `place` gives an offset
    // inside the mapping that starts at `base`.
    (unsafe { base.add(offset) }, slot_bytes as usize)
}

/// A page's length in whole blocks of [`SLOT_ALIGN`].
fn blocks(len: usize) -> usize {
    len.next_multiple_of(SLOT_ALIGN as usize)
}

impl ReservedSlot {
    /// Wraps a slot that was claimed for `len` bytes.
    pub(crate) fn new(arena: Arc<Arena>, id: SlotId, len: u32) -> Self {
        let (start, slot_bytes) = address(&arena, id);
        let len = len as usize;
        debug_assert!(len <= slot_bytes);
        Self { arena, id, start, len, slot_bytes, held: true }
    }

    /// The page's bytes, as many as were reserved.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is zeroed by the kernel or a file, so the bytes are initialised. The slot's state is `reserved`, so
        // no pin exists or can be made, and this handle, held mutably, is the only one.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The page's bytes and what follows up to the next multiple of 4 KiB, for devices that move whole blocks. What
    /// they write past the page is zeroed by [`ReservedSlot::seal`].
    pub fn whole_mut(&mut self) -> &mut [u8] {
        let whole = blocks(self.len);
        debug_assert!(whole <= self.slot_bytes);
        // SAFETY: as in `bytes_mut`; slots are multiples of 4 KiB and hold `len` bytes, so also `len` rounded up.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), whole) }
    }

    /// Zeroes the bytes past the page, so that no reader sees what was there before, and ends writing.
    #[must_use]
    pub fn seal(self) -> SealedSlot {
        // SAFETY: `len` is at most `slot_bytes`, so this stays inside the slot.
        let tail = unsafe { self.start.add(self.len) };
        // SAFETY: the tail ends where the slot ends, and as in `bytes_mut` nobody else reaches the slot.
        unsafe { tail.write_bytes(0, self.slot_bytes - self.len) };
        SealedSlot(self)
    }
}

impl SealedSlot {
    /// The page's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let slot = &self.0;
        // SAFETY: initialised as in `bytes_mut`; a sealed slot has no writer.
        unsafe { slice::from_raw_parts(slot.start.as_ptr(), slot.len) }
    }

    /// The slot's number, for an index to name before [`SealedSlot::publish`] makes it real.
    #[must_use]
    pub fn id(&self) -> SlotId {
        self.0.id
    }

    /// Makes the page pinnable by the slot's number. It stays until [`Arena::doom`]. Space and key are what a restart
    /// will find it by, if the arena outlives the process; `record.digest` must be theirs.
    ///
    /// # Panics
    ///
    /// If the key is longer than a key can be.
    pub fn publish(mut self, record: &PageRecord, space: &[u8; 16], key: &[u8]) -> SlotId {
        let slot = self.0.arena.slot(self.0.id);
        self.0.arena.tables.name(self.0.id, space, key);
        note(slot, record);
        slot.state.publish();
        self.0.held = false;
        self.0.id
    }
}

impl Drop for ReservedSlot {
    fn drop(&mut self) {
        if self.held {
            self.arena.slot(self.id).state.abandon();
            self.arena.give_back(self.id);
        }
    }
}

impl SlotPin {
    /// Wraps a pin that was just counted.
    pub(crate) fn new(arena: Arc<Arena>, id: SlotId) -> Self {
        let (start, _) = address(&arena, id);
        let len = arena.meta(id).len as usize;
        Self { arena, id, start, len }
    }

    /// Length, encoding and checksum of the page.
    #[must_use]
    pub fn meta(&self) -> PageMeta {
        self.arena.meta(self.id)
    }

    /// Whether the bytes are known to match the checksum, see [`PageView::verified`](crate::PageView::verified).
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.arena.slot(self.id).is_verified()
    }

    /// The slot's number.
    #[must_use]
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// Where the page begins in the memory that [`Arena::shared`] tells of, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        let (_, offset, _) = self.arena.place(self.id);
        offset as u64
    }

    /// The page's bytes and the zeroes that follow up to the next multiple of 4 KiB, for devices that move whole
    /// blocks.
    #[must_use]
    pub fn blocks(&self) -> &[u8] {
        // SAFETY: as in `deref`; slots are multiples of 4 KiB and hold `len` bytes, so also `len` rounded up, and the
        // tail was zeroed before publication.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), blocks(self.len)) }
    }

    /// All bytes of the slot, also those past the page.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn whole_slot(&self) -> &[u8] {
        let (_, slot_bytes) = address(&self.arena, self.id);
        // SAFETY: the slot is initialised memory that nobody writes while it is pinned.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), slot_bytes) }
    }
}

impl Deref for SlotPin {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: this pin was counted while the slot was published, so the slot is sealed, and it cannot become free,
        // hence not reserved and written again, before the pin is dropped. `len` was noted before publication and is
        // not above the slot's size.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SlotPin {
    fn drop(&mut self) {
        if self.arena.slot(self.id).state.unpin() {
            self.arena.give_back(self.id);
        }
    }
}

impl std::fmt::Debug for ReservedSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReservedSlot({}, {} bytes)", self.id.0, self.len)
    }
}

impl std::fmt::Debug for SealedSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealedSlot({}, {} bytes)", self.0.id.0, self.0.len)
    }
}

impl std::fmt::Debug for SlotPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SlotPin({}, {} bytes)", self.id.0, self.len)
    }
}
