//! The mapping: asks the kernel for one range of zeroed memory, on huge pages where there are any.
//!
//! Huge pages are wanted (they save a tenth of the time of moving pages) and never demanded: explicit ones are
//! tried only if enough of them are free, then transparent ones are advised, then the range is plain memory.

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::fs;
use std::num::NonZero;
use std::ptr::{NonNull, null_mut};
use std::thread;

const HUGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Prefaulting is bound by the kernel's zeroing; more threads than this add nothing.
const PREFAULT_THREADS_MAX: usize = 16;
const PREFAULT_STEP: usize = 16 << 20;

/// Whether the arena asks for huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Explicit ones if enough are free, else transparent ones if the kernel allows, else none.
    #[default]
    Auto,
    /// Plain 4 KiB pages, unless the kernel gives transparent ones to everybody.
    Off,
}

/// What the arena rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Explicit huge pages of 2 MiB, taken from the kernel's pool.
    Huge,
    /// Transparent huge pages were advised and the kernel allows them.
    Transparent,
    /// Plain pages.
    Plain,
}

impl Backing {
    /// A few words for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Huge => "2MiB huge pages",
            Self::Transparent => "transparent huge pages",
            Self::Plain => "4 KiB pages",
        }
    }
}

/// A private anonymous mapping, zeroed, readable and writable, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// What was mapped, for unmapping.
    mapped: NonNull<u8>,
    mapped_len: usize,
    /// The part that is used, aligned to [`HUGE_BYTES`].
    start: NonNull<u8>,
    len: usize,
    backing: Backing,
}

// SAFETY: the mapping is plain memory that belongs to this value and to no thread; the value itself never reads or
// writes it except in `prefault`, which the owner calls before anyone else has a pointer.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; through `&Mapping` only addresses can be read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, a multiple of 4 KiB and not 0.
    pub(crate) fn new(len: usize, huge: HugePages) -> Result<Self, Errno> {
        if huge == HugePages::Auto
            && let Some(explicit) = Self::explicit_huge(len)
        {
            return Ok(explicit);
        }
        // The kernel may place the range at any page; a spare huge page lets the start be aligned.
        let mapped_len = len.checked_add(HUGE_BYTES).ok_or(Errno::NOMEM)?;
        let mapped = anonymous(mapped_len, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        let shift = mapped.align_offset(HUGE_BYTES).min(HUGE_BYTES);
        // SAFETY: `shift` is at most HUGE_BYTES, by which the mapping is longer than `len`.
        let start = unsafe { mapped.add(shift) };
        let mut mapping = Self { mapped, mapped_len, start, len, backing: Backing::Plain };
        if huge == HugePages::Auto && mapping.advise_transparent() {
            mapping.backing = Backing::Transparent;
        }
        Ok(mapping)
    }

    /// Tries the kernel's pool of explicit huge pages. Without `NORESERVE`: the pages are ours or we get none,
    /// so a later access cannot fail.
    fn explicit_huge(len: usize) -> Option<Self> {
        let free: usize = fs::read_to_string(FREE_HUGE_PAGES).ok()?.trim().parse().ok()?;
        let mapped_len = len.checked_next_multiple_of(HUGE_BYTES)?;
        if free < mapped_len / HUGE_BYTES {
            return None;
        }
        let mapped = anonymous(mapped_len, MapFlags::PRIVATE | MapFlags::HUGETLB).ok()?;
        Some(Self { mapped, mapped_len, start: mapped, len, backing: Backing::Huge })
    }

    fn advise_transparent(&self) -> bool {
        // SAFETY: the range is this mapping, and the advice does not change what it holds.
        let advised = unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxHugepage) };
        advised.is_ok() && fs::read_to_string(TRANSPARENT).is_ok_and(|text| !text.contains("[never]"))
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn backing(&self) -> Backing {
        self.backing
    }

    /// Makes every page resident, with several threads. Takes `&mut self`: nobody uses the memory yet.
    pub(crate) fn prefault(&mut self) -> Result<(), Errno> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = cores.min(PREFAULT_THREADS_MAX);
        let share = self.len.div_ceil(threads).next_multiple_of(HUGE_BYTES);
        let this: &Self = self;
        thread::scope(|scope| {
            let mut helpers = Vec::with_capacity(threads);
            for from in (share..this.len).step_by(share) {
                let to = from.saturating_add(share).min(this.len);
                match thread::Builder::new().spawn_scoped(scope, move || this.populate(from, to)) {
                    Ok(helper) => helpers.push(helper),
                    Err(_) => this.populate(from, to)?,
                }
            }
            this.populate(0, share.min(this.len))?;
            helpers.into_iter().try_for_each(|helper| helper.join().expect("populate does not panic"))
        })
    }

    /// Makes the pages of `from..to` resident without changing them.
    fn populate(&self, from: usize, to: usize) -> Result<(), Errno> {
        for at in (from..to).step_by(PREFAULT_STEP) {
            let len = PREFAULT_STEP.min(to - at);
            // SAFETY: `from..to` lies inside the mapping, so `at` does too.
            let start = unsafe { self.start.add(at) };
            // SAFETY: the range lies inside the mapping, and populating it does not change what it holds.
            match unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxPopulateWrite) } {
                Ok(()) => {}
                // Kernels before 5.14 do not know the advice.
                Err(Errno::INVAL) => write_zeroes(start, len),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped; every handle to its memory keeps the arena, and so this value,
        // alive.
        let unmapped = unsafe { munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
        debug_assert!(unmapped.is_ok(), "the range was mapped by this value");
    }
}

fn anonymous(len: usize, flags: MapFlags) -> Result<NonNull<u8>, Errno> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new anonymous mapping at an address the kernel chooses touches no memory that exists.
    let mapped = unsafe { mmap_anonymous(null_mut(), len, access, flags) }?;
    NonNull::new(mapped.cast()).ok_or(Errno::NOMEM)
}

/// Writes a zero to every 4 KiB page of a range that holds only zeroes.
fn write_zeroes(start: NonNull<u8>, len: usize) {
    for at in (0..len).step_by(PAGE_BYTES) {
        // SAFETY: `at` is below `len`, and the caller's range lies inside one mapping.
        let byte = unsafe { start.add(at) };
        // SAFETY: the byte is mapped and writable, and nobody uses the mapping before `prefault` returns.
        unsafe { byte.write_volatile(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_aligned_and_prefaulting_leaves_zeroes() {
        let len = 5 * HUGE_BYTES + PAGE_BYTES;
        for huge in [HugePages::Auto, HugePages::Off] {
            let mut mapping = Mapping::new(len, huge).unwrap();
            assert_eq!(mapping.start().as_ptr().addr() % HUGE_BYTES, 0);
            mapping.prefault().unwrap();
            // SAFETY: the mapping has `len` bytes, all zeroed by the kernel, and nobody writes them.
            let bytes = unsafe { std::slice::from_raw_parts(mapping.start().as_ptr(), len) };
            assert!(bytes.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Mapping::new(usize::MAX - PAGE_BYTES + 1, HugePages::Off).is_err());
        assert!(Mapping::new(1 << 60, HugePages::Auto).is_err());
    }
}
