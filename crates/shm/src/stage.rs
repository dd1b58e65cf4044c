//! Memory of this process that another one reads.

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

/// Its name in `/proc/self/maps`.
const NAME: &str = "memkv-stage";

/// Memory that only this process writes, and that keeps its length. Whoever is given its descriptor can read it.
///
/// It takes no memory until [`Stage::ready`].
#[derive(Debug)]
pub struct Stage {
    memory: OwnedFd,
    start: NonNull<u8>,
    len: usize,
    is_ready: bool,
}

// SAFETY: the mapping belongs to this value and to no thread, and is written only through `&mut`.
unsafe impl Send for Stage {}
// SAFETY: nothing is read or written through `&Stage`.
unsafe impl Sync for Stage {}

impl Stage {
    /// Memory of `len` bytes.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn new(len: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know the flag; some later ones demand it.
        let memory = match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => memfd_create(NAME, flags)?,
            outcome => outcome?,
        };
        ftruncate(&memory, len as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses touches no memory that exists.
        let start = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, &memory, 0) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        // From here on a failure unmaps.
        let stage = Self { memory, start, len, is_ready: false };
        // This mapping stays the only one that writes.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&stage.memory, seals)?;
        Ok(stage)
    }

    /// What the other process is given.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Sees to it that the system has set the memory aside. `false` if there is none; then nothing may be written: to write
    /// memory that the system cannot give kills.
    #[must_use]
    pub fn ready(&mut self) -> bool {
        if !self.is_ready {
            let whole = self.len as u64;
            self.is_ready = fallocate(&self.memory, FallocateFlags::empty(), 0, whole).is_ok();
        }
        self.is_ready
    }

    /// Copies bytes to `at`. `false`, and nothing is copied, if they do not fit there or the memory is not
    /// [ready](Self::ready).
    #[must_use]
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        if at > self.len || bytes.len() > self.len - at || !self.ready() {
            return false;
        }
        // SAFETY: `at` is inside the mapping, as was just checked.
        let to = unsafe { self.start.add(at) };
        // SAFETY: the range lies inside the mapping, whose length is sealed and whose memory is set aside, so this does not
        // fault; no reference points there, and `bytes` is other memory, because nobody is given a reference to this one.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped; nothing points into it but this value.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "the range was mapped by this value");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{View, pass};
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_written_is_read_by_whoever_has_the_descriptor() {
        let mut stage = Stage::new(8192).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        pass::send(&near, &[0], stage.descriptor()).unwrap();
        let view = View::of_other(pass::receive(&far, &mut [0]).unwrap().1.unwrap(), 8192).unwrap();
        assert!(stage.write(8190, &[1, 2]) && stage.write(0, &[3]) && stage.write(8192, &[]));
        assert!(!stage.write(8191, &[1, 2]) && !stage.write(usize::MAX, &[1]) && !stage.write(8193, &[]));
        let mut out = [9; 3];
        assert!(view.read(8189, &mut out));
        assert_eq!(out, [0, 1, 2]);
        drop(stage);
        assert!(view.read(0, &mut out[..1]) && out[0] == 3, "it stays for who has it");
    }

    #[test]
    fn others_can_neither_write_nor_resize_it_and_it_takes_no_memory_before_it_is_used() {
        let mut stage = Stage::new(1 << 20).unwrap();
        let file = File::from(stage.descriptor().try_clone_to_owned().unwrap());
        assert!(file.write_at(&[1], 0).is_err());
        assert!(file.set_len(0).is_err() && file.set_len(2 << 20).is_err());
        let taken = || rustix::fs::fstat(&file).unwrap().st_blocks;
        assert_eq!(taken(), 0);
        assert!(stage.ready());
        assert_eq!(taken(), (1 << 20) / 512);
    }
}
