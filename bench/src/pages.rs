//! Memory for pages, on huge pages where the kernel allows it.
//!
//! An allocator could be asked for that (`glibc.malloc.hugetlb=1`), but with glibc 2.36 that had an effect in about every second process
//! only, so that the two sides of a comparison were not alike.

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ops::{Deref, DerefMut};
use std::ptr::{NonNull, null_mut};

/// Huge pages are used only at multiples of their size.
const HUGE_BYTES: usize = 2 << 20;

/// Bytes that begin as zeros.
#[derive(Debug)]
pub(crate) struct Pages {
    mapped: NonNull<u8>,
    mapped_len: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and to no thread.
unsafe impl Send for Pages {}
// SAFETY: through `&Pages` it is only read.
unsafe impl Sync for Pages {}

impl Pages {
    /// Memory of `len` bytes.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let mapped_len = len.checked_next_multiple_of(HUGE_BYTES).and_then(|len| len.checked_add(HUGE_BYTES));
        let mapped_len = mapped_len.ok_or(Errno::NOMEM)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses touches no memory that exists.
        let mapped = unsafe { mmap_anonymous(null_mut(), mapped_len, access, MapFlags::PRIVATE) }?;
        // Without huge pages it is plain memory.
        // SAFETY: the range is the new mapping, and the advice does not change what it holds.
        let _plain = unsafe { madvise(mapped, mapped_len, Advice::LinuxHugepage) };
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let shift = mapped.align_offset(HUGE_BYTES).min(HUGE_BYTES);
        // SAFETY: `shift` is at most `HUGE_BYTES`, by which the mapping is longer than `len`.
        let start = unsafe { mapped.add(shift) };
        Ok(Self { mapped, mapped_len, start, len })
    }

    /// The same, full of one byte.
    ///
    /// # Errors
    ///
    /// As [`Pages::new`].
    pub(crate) fn filled(len: usize, byte: u8) -> Result<Self, Errno> {
        let mut pages = Self::new(len)?;
        pages.fill(byte);
        Ok(pages)
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has these bytes, which the kernel zeroed, and is written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped; no reference outlives this value.
        let unmapped = unsafe { munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
        debug_assert!(unmapped.is_ok(), "the range was mapped by this value");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_bytes_and_asks_for_huge_pages() {
        let mut pages = Pages::new(5 << 20).unwrap();
        assert_eq!((pages.len(), pages.as_ptr().addr() % HUGE_BYTES), (5 << 20, 0));
        assert!(pages.iter().all(|&byte| byte == 0));
        pages[(5 << 20) - 1] = 7;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let is_in = |line: &str| {
            let ends = line.split(' ').next().and_then(|range| range.split_once('-'));
            let ends = ends.map(|(from, to)| [from, to].map(|end| usize::from_str_radix(end, 16)));
            matches!(ends, Some([Ok(from), Ok(to)]) if (from..to).contains(&pages.as_ptr().addr()))
        };
        let mut lines = maps.lines().skip_while(|line| !is_in(line));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        // A kernel without huge pages does not know the advice.
        let is_known = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!(flags.split_whitespace().any(|flag| flag == "hg"), is_known);
        assert!(Pages::new(0).unwrap().is_empty());
        assert!(Pages::new(usize::MAX).is_err());
        assert!(Pages::filled(3, 9).unwrap().iter().eq(&[9; 3]));
    }
}
