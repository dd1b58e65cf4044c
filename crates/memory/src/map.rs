//! The mapping: asks the kernel for one range of memory, zeroed or of a file, on huge pages where there are any.
//!
//! Huge pages are wanted (they save a tenth of the time of moving pages) and never demanded: explicit ones are
//! tried only if enough of them are free, then transparent ones are advised, then the range is plain memory. For a
//! file it is its file system that decides.

use crate::numa::NodeMask;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};
use std::fs::{self, File};
use std::num::NonZero;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

pub(crate) const HUGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
/// The kernel's setting for huge pages of anonymous memory.
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
    /// Explicit huge pages, taken from the kernel's pool.
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

/// Whether this is Miri, which has memory and no kernel: plain anonymous mappings work, and the wishes that one may have for them do not.
const INTERPRETED: bool = cfg!(miri);

/// How the kernel makes pages resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Populate {
    /// Memory that only this process has: written, so that it is there for good.
    Write,
    /// A file of memory: written, but never by this program, because it has content.
    WriteShared,
    /// A file of memory that gets huge pages only when asked for each.
    Collapse,
    /// A file on a drive: only read, or all of it would be written back.
    ReadShared,
}

/// A range of memory, readable and writable, unmapped on drop. Its bytes are initialised: the kernel zeroes them, or
/// they are a file's.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// What was mapped, for unmapping.
    mapped: NonNull<u8>,
    mapped_len: usize,
    /// The part that is used, aligned to [`HUGE_BYTES`] or more.
    start: NonNull<u8>,
    len: usize,
    backing: Backing,
    populate: Populate,
}

// SAFETY: the mapping is plain memory that belongs to this value and to no thread; the value itself never reads or
// writes it except in `prefault`, which leaves what is there.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; through `&Mapping` only addresses can be read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of zeroed memory, a multiple of 4 KiB and not 0.
    pub(crate) fn anonymous(len: usize, huge: HugePages) -> Result<Self, Errno> {
        if huge == HugePages::Auto
            && let Some(explicit) = Self::explicit_huge(len)
        {
            return Ok(explicit);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let mut mapping =
            Self::aligned(len, HUGE_BYTES, access, MapFlags::PRIVATE | MapFlags::NORESERVE, Populate::Write)?;
        if huge == HugePages::Auto && mapping.advise(Advice::LinuxHugepage) && allowed(TRANSPARENT) {
            mapping.backing = Backing::Transparent;
        }
        Ok(mapping)
    }

    /// Maps `len` bytes of a file from `offset` on, shared with whoever maps it later. `offset` is a multiple of
    /// `align`, a power of two and at least [`HUGE_BYTES`]. `memory` says that the file never leaves memory, `backing`
    /// which pages its file system has.
    pub(crate) fn file(
        file: &File,
        (offset, len): (u64, usize),
        align: usize,
        memory: bool,
        backing: Backing,
    ) -> Result<Self, Errno> {
        let populate = if memory { Populate::WriteShared } else { Populate::ReadShared };
        // The range is first reserved without access, so that the file can be put at an aligned address in it.
        let reserved = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let mut mapping = Self::aligned(len, align, ProtFlags::empty(), reserved, populate)?;
        mapping.backing = backing;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // Explicit huge pages of a memory file are reserved by the mapping, or there is none: a later access cannot fail.
        let reserve =
            if memory && backing == Backing::Huge { MapFlags::empty() } else { MapFlags::NORESERVE };
        let flags = MapFlags::SHARED | reserve;
        let start = mapping.start.as_ptr().cast();
        // SAFETY: the range was reserved by this mapping just now and nobody has its address.
        unsafe { mmap(start, len, access, flags | MapFlags::FIXED, file, offset) }?;
        if backing == Backing::Transparent {
            mapping.advise(Advice::LinuxHugepage);
        }
        Ok(mapping)
    }

    /// Asks for huge pages for a new mapping of a memory file: page by page if the kernel does that, else by advice, if
    /// `advice_counts`.
    pub(crate) fn want_huge(&mut self, advice_counts: bool) {
        let advised = self.advise(Advice::LinuxHugepage);
        if self.len >= HUGE_BYTES && self.collapse(0).is_ok() {
            (self.populate, self.backing) = (Populate::Collapse, Backing::Transparent);
        } else if advised && advice_counts {
            self.backing = Backing::Transparent;
        }
    }

    /// Whether it gets huge pages only by being asked for each, so that memory that was used before that has small ones.
    pub(crate) fn collapses(&self) -> bool {
        self.populate == Populate::Collapse
    }

    /// Whether anonymous memory gets huge pages if it asks.
    pub(crate) fn anonymous_is_huge() -> bool {
        allowed(TRANSPARENT)
    }

    /// Makes the huge page at `at` resident as one, whatever part of it is there and in use.
    fn collapse(&self, at: usize) -> Result<(), Errno> {
        assert!(at < self.len && HUGE_BYTES <= self.len - at, "the range is inside the mapping");
        if INTERPRETED {
            return Err(Errno::INVAL);
        }
        // SAFETY: `at` is inside the mapping.
        let start = unsafe { self.start.add(at) };
        let start = start.as_ptr().cast();
        // The kernel collapses what has begun to exist.
        // SAFETY: the range lies inside the mapping, and populating it does not change what it holds.
        unsafe { madvise(start, PAGE_BYTES, Advice::LinuxPopulateWrite) }?;
        // SAFETY: as above; collapsing moves what the memory holds without changing it.
        match unsafe { libc::madvise(start.cast(), HUGE_BYTES, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        }
    }

    fn aligned(
        len: usize,
        align: usize,
        access: ProtFlags,
        flags: MapFlags,
        populate: Populate,
    ) -> Result<Self, Errno> {
        // The kernel may place the range at any page; spare room lets the start be aligned.
        let mapped_len = len.checked_add(align).ok_or(Errno::NOMEM)?;
        let mapped = map_anonymous(mapped_len, access, flags)?;
        let shift = mapped.align_offset(align).min(align);
        // SAFETY: `shift` is at most `align`, by which the mapping is longer than `len`.
        let start = unsafe { mapped.add(shift) };
        Ok(Self { mapped, mapped_len, start, len, backing: Backing::Plain, populate })
    }

    /// Tries the kernel's pool of explicit huge pages. Without `NORESERVE`: the pages are ours or we get none,
    /// so a later access cannot fail.
    fn explicit_huge(len: usize) -> Option<Self> {
        let mapped_len = len.checked_next_multiple_of(HUGE_BYTES)?;
        if !explicit_huge_are_free(mapped_len) {
            return None;
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let mapped = map_anonymous(mapped_len, access, MapFlags::PRIVATE | MapFlags::HUGETLB).ok()?;
        let (start, backing, populate) = (mapped, Backing::Huge, Populate::Write);
        Some(Self { mapped, mapped_len, start, len, backing, populate })
    }

    /// Gives advice that does not change what the memory holds. `false` if the kernel does not take it.
    fn advise(&self, advice: Advice) -> bool {
        debug_assert!(matches!(advice, Advice::LinuxHugepage | Advice::LinuxDontDump));
        if INTERPRETED {
            return false;
        }
        // SAFETY: the range is this mapping, and neither of the two changes what it holds.
        unsafe { madvise(self.start.as_ptr().cast(), self.len, advice) }.is_ok()
    }

    /// Keeps the memory out of core dumps. `false` if the kernel does not.
    pub(crate) fn leave_out_of_dumps(&self) -> bool {
        self.advise(Advice::LinuxDontDump)
    }

    /// Spreads memory that is not resident yet over nodes.
    pub(crate) fn interleave(&self, nodes: &NodeMask) -> bool {
        if INTERPRETED {
            return false;
        }
        let start = self.start.as_ptr();
        // The kernel reads one bit less than it is told.
        let bits = size_of_val(nodes) * 8 + 1;
        let mode = libc::MPOL_INTERLEAVE;
        // SAFETY: the range is this mapping, the mask outlives the call and has the bits that are announced, and the
        // policy only decides where pages go that are not there yet.
        let result =
            unsafe { libc::syscall(libc::SYS_mbind, start, self.len, mode, nodes.as_ptr(), bits, 0) };
        result == 0
    }

    /// Makes the memory resident and keeps it so.
    pub(crate) fn lock(&self) -> Result<(), Errno> {
        if INTERPRETED {
            return Err(Errno::PERM);
        }
        // SAFETY: the range is this mapping, and locking does not change what it holds.
        unsafe { mlock(self.start.as_ptr().cast(), self.len) }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn backing(&self) -> Backing {
        self.backing
    }

    /// Makes every page resident, with several threads, and tells how far it is. Takes `&mut self`: nobody uses the
    /// memory yet.
    pub(crate) fn prefault(&mut self, progress: &dyn Fn(u64, u64)) -> Result<(), Errno> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let this: &Self = self;
        let next = AtomicUsize::new(0);
        let work = |done: &mpsc::SyncSender<usize>| -> Result<(), Errno> {
            loop {
                let at = next.fetch_add(PREFAULT_STEP, Ordering::Relaxed);
                if at >= this.len {
                    return Ok(());
                }
                let len = PREFAULT_STEP.min(this.len - at);
                this.populate(at, len)?;
                if done.send(len).is_err() {
                    return Ok(());
                }
            }
        };
        let (sender, steps) = mpsc::sync_channel(2 * PREFAULT_THREADS_MAX);
        thread::scope(|scope| {
            let mut helpers = Vec::with_capacity(PREFAULT_THREADS_MAX);
            for _ in 0..cores.min(PREFAULT_THREADS_MAX) {
                let (sender, work) = (sender.clone(), &work);
                match thread::Builder::new().spawn_scoped(scope, move || work(&sender)) {
                    Ok(helper) => helpers.push(helper),
                    Err(_) => break,
                }
            }
            drop(sender);
            let mut done = 0;
            for len in steps {
                done += len as u64;
                progress(done, this.len as u64);
            }
            helpers.into_iter().try_for_each(|helper| helper.join().expect("populate does not panic"))
        })?;
        // Without a single helper, nothing is done yet.
        let rest = next.load(Ordering::Relaxed).min(this.len);
        this.populate(rest, this.len - rest)
    }

    /// Zeroes a range. Takes `&mut self`: nobody uses the memory yet.
    pub(crate) fn zero(&mut self, at: usize, len: usize) {
        assert!(at <= self.len && len <= self.len - at, "the range is inside the mapping");
        // SAFETY: `at` is inside the mapping.
        let start = unsafe { self.start.add(at) };
        // SAFETY: the range is inside the mapping, which is writable, and no handle to it exists.
        unsafe { start.write_bytes(0, len) };
    }

    /// Makes pages resident without changing them, also while others use them. Stays inside the mapping.
    pub(crate) fn warm(&self, at: usize, len: usize) -> Result<(), Errno> {
        assert!(at <= self.len && len <= self.len - at, "the range is inside the mapping");
        if INTERPRETED {
            return Ok(());
        }
        if self.populate == Populate::Collapse {
            let (first, end) = (at.next_multiple_of(HUGE_BYTES), (at + len) / HUGE_BYTES * HUGE_BYTES);
            // Without a free huge page there are small ones, below.
            for at in (first..end).step_by(HUGE_BYTES) {
                let _small = self.collapse(at);
            }
        }
        // SAFETY: `at` is inside the mapping.
        let start = unsafe { self.start.add(at) };
        let advice = match self.populate {
            Populate::Write | Populate::WriteShared | Populate::Collapse => Advice::LinuxPopulateWrite,
            Populate::ReadShared => Advice::LinuxPopulateRead,
        };
        // SAFETY: the range lies inside the mapping, and populating it does not change what it holds.
        unsafe { madvise(start.as_ptr().cast(), len, advice) }
    }

    /// Resident bytes of a range.
    #[cfg(test)]
    pub(crate) fn resident(&self, at: usize, len: usize) -> usize {
        let mut pages = vec![0_u8; len / PAGE_BYTES];
        // SAFETY: `at` is inside the mapping.
        let start = unsafe { self.start.add(at) };
        // SAFETY: the range is inside the mapping, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(start.as_ptr().cast(), len, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count() * PAGE_BYTES
    }

    /// Like [`Mapping::warm`], with a way for kernels before 5.14, which do not know the advice. Only while nobody
    /// uses the memory.
    fn populate(&self, at: usize, len: usize) -> Result<(), Errno> {
        match self.warm(at, len) {
            Err(Errno::INVAL) => touch(self, at, len, self.populate == Populate::Write),
            outcome => return outcome,
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped at the start; every handle to its memory keeps the arena, and so
        // this value, alive.
        let unmapped = unsafe { munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
        debug_assert!(unmapped.is_ok(), "the range was mapped by this value");
    }
}

/// Whether a setting of the kernel allows what it is about.
fn allowed(setting: &str) -> bool {
    fs::read_to_string(setting).is_ok_and(|text| !text.contains("[never]"))
}

/// Whether a setting of the kernel allows huge pages for shared memory that asks for them.
pub(crate) fn allowed_for(setting: &str) -> bool {
    allowed(setting) && fs::read_to_string(setting).is_ok_and(|text| !text.contains("[deny]"))
}

/// Whether the kernel's pool has explicit huge pages for this many bytes.
pub(crate) fn explicit_huge_are_free(bytes: usize) -> bool {
    let free = fs::read_to_string(FREE_HUGE_PAGES).ok().and_then(|text| text.trim().parse::<usize>().ok());
    free.is_some_and(|free| free >= bytes / HUGE_BYTES)
}

fn map_anonymous(len: usize, access: ProtFlags, flags: MapFlags) -> Result<NonNull<u8>, Errno> {
    let flags = if INTERPRETED { MapFlags::PRIVATE } else { flags };
    // SAFETY: a new anonymous mapping at an address the kernel chooses touches no memory that exists.
    let mapped = unsafe { mmap_anonymous(null_mut(), len, access, flags) }?;
    NonNull::new(mapped.cast()).ok_or(Errno::NOMEM)
}

/// Touches every 4 KiB page of a range; with `write` it holds only zeroes, and gets one more.
fn touch(mapping: &Mapping, at: usize, len: usize, write: bool) {
    for at in (at..at + len).step_by(PAGE_BYTES) {
        // SAFETY: the caller's range lies inside the mapping.
        let byte = unsafe { mapping.start.add(at) };
        if write {
            // SAFETY: the byte is mapped and writable, and nobody uses the mapping before `prefault` returns.
            unsafe { byte.write_volatile(0) };
        } else {
            // SAFETY: as above; reading leaves the file's content.
            unsafe { byte.read_volatile() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_aligned_and_prefaulting_leaves_zeroes() {
        let len = 5 * HUGE_BYTES + PAGE_BYTES;
        for huge in [HugePages::Auto, HugePages::Off] {
            let mut mapping = Mapping::anonymous(len, huge).unwrap();
            assert_eq!(mapping.start().as_ptr().addr() % HUGE_BYTES, 0);
            let seen = std::cell::RefCell::new(Vec::new());
            mapping.prefault(&|done, total| seen.borrow_mut().push((done, total))).unwrap();
            let seen = seen.into_inner();
            assert!(seen.is_sorted() && seen.last() == Some(&(len as u64, len as u64)), "{seen:?}");
            // SAFETY: the mapping has `len` bytes, all zeroed by the kernel, and nobody writes them.
            let bytes = unsafe { std::slice::from_raw_parts(mapping.start().as_ptr(), len) };
            assert!(bytes.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Mapping::anonymous(usize::MAX - PAGE_BYTES + 1, HugePages::Off).is_err());
        assert!(Mapping::anonymous(1 << 60, HugePages::Auto).is_err());
    }
}
