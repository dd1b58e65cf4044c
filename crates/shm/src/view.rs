//! Memory of another process, mapped to be read.

use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock_with, mmap, mmap_anonymous, munmap,
};
use std::os::fd::AsFd;
use std::ptr::{NonNull, null_mut};

/// Huge pages are mapped as such only at multiples of their size.
const ALIGN: usize = 2 << 20;
/// The kernel's number of the file system that plain shared memory is in.
const TMPFS: u64 = 0x0102_1994;

/// Why memory cannot be read.
#[derive(Debug)]
pub enum ViewError {
    /// Its owner could make it shorter, and reading behind its end kills.
    NotSealed,
    /// It is shorter than its owner says.
    Short {
        /// Bytes that it has.
        bytes: u64,
    },
    /// It is longer than is taken.
    Long {
        /// Bytes that it has.
        bytes: u64,
    },
    /// It is none of the kernel's plain shared memory, whose pages are there when they are read.
    NotPlain,
    /// The kernel refused.
    System(Errno),
}

impl std::fmt::Display for ViewError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSealed => f.write_str("the memory is not sealed against shrinking"),
            Self::Short { bytes } => write!(f, "the memory has only {bytes} bytes"),
            Self::Long { bytes } => write!(f, "the memory has {bytes} bytes, more than is taken"),
            Self::NotPlain => f.write_str("the memory is not plain shared memory"),
            Self::System(error) => write!(f, "cannot map the memory: {error}"),
        }
    }
}

impl std::error::Error for ViewError {}

impl From<Errno> for ViewError {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

/// Sealed memory of another process, mapped to be read until this is dropped. Its owner may write it at any time.
#[derive(Debug)]
pub struct View {
    mapped: NonNull<u8>,
    mapped_len: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value and to no thread, and is only ever copied out of.
unsafe impl Send for View {}
// SAFETY: as for `Send`.
unsafe impl Sync for View {}

impl View {
    /// Maps the first `len` bytes of the memory that a descriptor stands for.
    ///
    /// # Errors
    ///
    /// [`ViewError`]: nothing is mapped then.
    pub fn map(memory: impl AsFd, len: u64) -> Result<Self, ViewError> {
        let seals = fcntl_get_seals(&memory).map_err(|_| ViewError::NotSealed)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(ViewError::NotSealed);
        }
        let bytes = u64::try_from(fstat(&memory)?.st_size).unwrap_or(0);
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        if bytes < len as u64 || len == 0 {
            return Err(ViewError::Short { bytes });
        }
        let mapped_len = len.checked_add(ALIGN).ok_or(Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address the kernel chooses touches no memory that exists.
        let mapped = unsafe { mmap_anonymous(null_mut(), mapped_len, ProtFlags::empty(), flags) }?;
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let shift = mapped.align_offset(ALIGN).min(ALIGN);
        // SAFETY: `shift` is at most `ALIGN`, by which the mapping is longer than `len`.
        let start = unsafe { mapped.add(shift) };
        // From here on a failure unmaps.
        let view = Self { mapped, mapped_len, start, len };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        let place = start.as_ptr().cast();
        // SAFETY: the range was reserved by this value just now and nobody has its address.
        unsafe { mmap(place, len, ProtFlags::READ, flags, memory, 0) }?;
        // A core dump of this process need not have another one's pages. Failing that, it has.
        // SAFETY: the range is this mapping, and the advice does not change what it holds.
        let _dumped = unsafe { madvise(place, len, Advice::LinuxDontDump) };
        Ok(view)
    }

    /// Maps all of the memory of a process that is not trusted, of at most `most` bytes.
    ///
    /// Huge pages of their own kind are refused: one that is missing when it is read, because none are free, kills the reader.
    /// A missing plain page is made, and then it is the reader's memory that it takes; therefore `most`.
    ///
    /// # Errors
    ///
    /// [`ViewError`]: nothing is mapped then.
    pub fn of_other(memory: impl AsFd, most: u64) -> Result<Self, ViewError> {
        // Only the low 32 bits are the magic number, whatever the kernel's type.
        #[allow(clippy::cast_sign_loss, reason = "only the low 32 bits are looked at")]
        let magic = fstatfs(&memory)?.f_type as u64 & 0xffff_ffff;
        if magic != TMPFS {
            return Err(ViewError::NotPlain);
        }
        let bytes = u64::try_from(fstat(&memory)?.st_size).unwrap_or(0);
        if bytes > most {
            return Err(ViewError::Long { bytes });
        }
        // `map` looks at the seals before it looks at the length again, which cannot shrink from there on.
        Self::map(memory, bytes)
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether it has none; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has the system keep in memory what was read once, so that to read it again never waits for a swap device. `false` if this
    /// process may not lock so much (`RLIMIT_MEMLOCK`); then nothing has changed. Takes no memory.
    #[must_use]
    pub fn hold(&self) -> bool {
        // SAFETY: the range is this mapping; to lock it changes neither what it holds nor who may reach it.
        unsafe { mlock_with(self.start.as_ptr().cast(), self.len, MlockFlags::ONFAULT) }.is_ok()
    }

    /// Copies what the memory holds at `at` now. `false`, and nothing is copied, if it does not have these bytes.
    ///
    /// The owner may write at the same time; then the bytes are whatever they are, and only a checksum tells.
    #[must_use]
    pub fn read(&self, at: u64, out: &mut [u8]) -> bool {
        let Ok(at) = usize::try_from(at) else { return false };
        if at > self.len || out.len() > self.len - at {
            return false;
        }
        // SAFETY: `at` is inside the mapping, as was just checked.
        let from = unsafe { self.start.add(at) };
        // SAFETY: the range lies inside the mapping, which stays mapped, is sealed against shrinking and so never faults;
        // `out` is exclusively borrowed and no part of the mapping. Another process may write meanwhile; the copy goes
        // through no reference, and its outcome is plain bytes in any case.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr(), out.len()) };
        true
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped; nothing points into it but this value.
        let unmapped = unsafe { munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
        debug_assert!(unmapped.is_ok(), "the range was mapped by this value");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    fn memory(bytes: u64) -> File {
        let file = memfd_create("memkv-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, bytes).unwrap();
        file.into()
    }

    #[test]
    fn bytes_are_copied_out_and_nothing_behind_the_end() {
        let file = memory(10_000);
        file.write_all_at(&[1, 2, 3, 4], 9_996).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        let view = View::map(&file, 10_000).unwrap();
        let mut out = [9; 4];
        assert!(view.read(9_996, &mut out));
        assert_eq!(out, [1, 2, 3, 4]);
        assert!(!view.read(9_997, &mut out));
        assert!(!view.read(u64::MAX, &mut out));
        assert!(view.read(10_000, &mut []));
        file.write_all_at(&[7], 9_996).unwrap();
        assert!(view.read(9_996, &mut out));
        assert_eq!(out, [7, 2, 3, 4], "it shows what is there now");
    }

    #[test]
    fn what_is_held_is_locked_when_it_is_read_and_not_before() {
        let file = memory(8192);
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        let view = View::of_other(&file, 8192).unwrap();
        let locked = || {
            let start = format!("{:x}-", view.start.as_ptr().addr());
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
            lines.find_map(|line| line.strip_prefix("Locked:")).unwrap().trim().to_owned()
        };
        assert!(view.hold(), "every system lets a process lock two pages");
        assert_eq!(locked(), "0 kB");
        let mut out = [9];
        assert!(view.read(4096, &mut out) && out == [0]);
        assert_eq!(locked(), "4 kB");
    }

    #[test]
    fn memory_that_can_shrink_or_is_shorter_than_announced_is_refused() {
        let file = memory(4096);
        assert!(matches!(View::map(&file, 4096), Err(ViewError::NotSealed)));
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        assert!(matches!(View::map(&file, 4097), Err(ViewError::Short { bytes: 4096 })));
        assert!(matches!(View::map(&file, 0), Err(ViewError::Short { .. })));
        let plain = tempfile::tempfile().unwrap();
        plain.set_len(4096).unwrap();
        assert!(matches!(View::map(&plain, 4096), Err(ViewError::NotSealed)));
    }

    #[test]
    fn of_an_untrusted_process_only_little_and_plain_memory_is_taken() {
        let file = memory(8192);
        assert!(matches!(View::of_other(&file, 8192), Err(ViewError::NotSealed)));
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        assert!(matches!(View::of_other(&file, 8191), Err(ViewError::Long { bytes: 8192 })));
        assert_eq!(View::of_other(&file, 8192).unwrap().len(), 8192);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        // A kernel without such pages has no such memory either.
        if let Ok(huge) = memfd_create("memkv-test", flags) {
            fcntl_add_seals(&huge, SealFlags::SHRINK).unwrap();
            assert!(matches!(View::of_other(&huge, 8192), Err(ViewError::NotPlain)));
        }
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(View::of_other(&socket, 8192), Err(ViewError::NotPlain)));
        let empty = memory(0);
        fcntl_add_seals(&empty, SealFlags::SHRINK).unwrap();
        assert!(matches!(View::of_other(&empty, 8192), Err(ViewError::Short { .. })));
    }
}
