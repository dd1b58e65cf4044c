//! Registered memory of the simulated NICs, and the one place that copies it.

#![allow(unsafe_code, reason = "copies by address, as a NIC does")]

use std::ptr::NonNull;

/// Memory that somebody promised to keep.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only touched by `copy_to`, which works through raw pointers and is called under the lock of
// the fabric; the promise of `Memory::new` does not depend on the thread.
unsafe impl Send for Memory {}

impl Memory {
    /// # Safety
    ///
    /// The memory stays mapped and writable until this is dropped.
    pub(super) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len }
    }

    /// Where `len` bytes at this address are in it; `None` if a part of them is not.
    pub(super) fn offset_of(&self, address: u64, len: u32) -> Option<usize> {
        let offset = usize::try_from(address).ok()?.checked_sub(self.start.as_ptr().addr())?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        (end <= self.len).then_some(offset)
    }

    /// Copies `len` bytes. Both places are inside, else nothing happens and it is a bug here.
    pub(super) fn copy_to(&self, from: usize, other: &Self, to: usize, len: usize) {
        let fits =
            |offset: usize, memory: &Self| offset.checked_add(len).is_some_and(|end| end <= memory.len);
        assert!(fits(from, self) && fits(to, other), "offsets come from `offset_of`");
        // SAFETY: in bounds, as just checked, of memory that is mapped, by the promise of `new`.
        let source = unsafe { self.start.as_ptr().add(from) };
        // SAFETY: as above.
        let target = unsafe { other.start.as_ptr().add(to) };
        // SAFETY: both have `len` bytes. They may overlap. A program that reads or writes them meanwhile breaks
        // the promise of `QueuePair::post` or has to expect any bytes, as with a NIC.
        unsafe { std::ptr::copy(source, target, len) };
    }

    /// Flips the bits of one byte.
    pub(super) fn damage(&self, at: usize) {
        assert!(at < self.len, "offsets come from `offset_of`");
        // SAFETY: in bounds, as just checked, of memory that is mapped, by the promise of `new`.
        let byte = unsafe { self.start.as_ptr().add(at) };
        // SAFETY: as above.
        let value = unsafe { byte.read() };
        // SAFETY: as above.
        unsafe { byte.write(!value) };
    }
}
