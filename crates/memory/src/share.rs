//! Memory that other processes may map, but only to read: a memfd whose seals nobody can take off.
//!
//! The server keeps the one writable mapping, made before the seals. Afterwards nobody who has the descriptor can map the
//! memory writable, write to it, punch holes into it or change its length, however the descriptor is opened again.
//! That its length cannot change also means that a reader never faults behind its end.
//!
//! Huge pages for such memory are a matter of its own: the kernel's setting for anonymous memory does not count. Asking
//! for each huge page by name (`MADV_COLLAPSE`, Linux 6.1) works whatever the settings are, so that comes first.

use crate::map::{Backing, HUGE_BYTES, HugePages, Mapping};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use std::fs::File;

/// What the memory is called in `/proc`.
const NAME: &str = "memkv-pages";
/// The kernel's setting for huge pages of memory that has a descriptor.
const SHARED_HUGE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Whether other processes may map the arena's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// No: the memory is this process' alone.
    #[default]
    Off,
    /// Yes, unless that would cost the huge pages that the memory has otherwise.
    Auto,
    /// Yes, or there is no arena.
    On,
}

/// Whether an arena's memory may be mapped by others, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shared {
    /// Nobody asked.
    #[default]
    Off,
    /// It may.
    Yes,
    /// It may not, for this reason; for people.
    No(String),
}

/// Why memory cannot be shared, for people.
fn refused(action: &str, error: Errno) -> String {
    format!("cannot {action} memory for sharing: {error}")
}

/// Maps `len` bytes of zeroed memory that can be shared, and gives its descriptor. The error is for people.
pub(crate) fn map(len: usize, huge: HugePages, share: Share) -> Result<(Mapping, File), String> {
    if huge == HugePages::Auto
        && let Some(explicit) = explicit_huge(len)
    {
        return Ok(explicit);
    }
    let file = memory_file(len, MemfdFlags::empty()).map_err(|error| refused("create", error))?;
    let mapped = Mapping::file(&file, (0, len), HUGE_BYTES, true, Backing::Plain);
    let mut mapping = mapped.map_err(|error| refused("map", error))?;
    if huge == HugePages::Auto {
        mapping.want_huge(crate::map::allowed_for(SHARED_HUGE));
        let lost = mapping.backing() == Backing::Plain && Mapping::anonymous_is_huge();
        if lost && share == Share::Auto {
            return Err(format!(
                "memory that is shared gets no huge pages from this kernel, and they are worth more; write \"advise\" to \
                 {SHARED_HUGE}, run Linux 6.1 or later, or set memory.share to on"
            ));
        }
    }
    seal(&file).map_err(|error| refused("seal", error))?;
    Ok((mapping, file))
}

/// Tries the kernel's pool of explicit huge pages, if enough of them are free.
fn explicit_huge(len: usize) -> Option<(Mapping, File)> {
    let len = len.checked_next_multiple_of(HUGE_BYTES)?;
    if !crate::map::explicit_huge_are_free(len) {
        return None;
    }
    let file = memory_file(len, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB).ok()?;
    let mapping = Mapping::file(&file, (0, len), HUGE_BYTES, true, Backing::Huge).ok()?;
    seal(&file).ok()?;
    Some((mapping, file))
}

fn memory_file(len: usize, flags: MemfdFlags) -> Result<File, Errno> {
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag; some later ones demand it.
    let file = match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(NAME, flags)?,
        outcome => outcome?,
    };
    ftruncate(&file, len as u64)?;
    Ok(file.into())
}

/// From here on nobody can write the memory but through the mappings that exist.
fn seal(file: &File) -> Result<(), Errno> {
    fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, ArenaBacking, ArenaConfig, ArenaError, PageRecord};
    use memkv_core::PageMeta;
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    use std::os::unix::fs::FileExt as _;
    use std::ptr::null_mut;

    const LEN: usize = 4 * HUGE_BYTES;

    #[test]
    fn only_the_first_mapping_can_write() {
        let (mapping, file) = map(LEN, HugePages::Auto, Share::On).unwrap();
        // SAFETY: the mapping has these bytes and nobody else uses it.
        unsafe { mapping.start().write(7) };
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [7]);
        assert_eq!(file.write_at(&[8], 0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(file.set_len(0).is_err() && file.set_len(2 * LEN as u64).is_err());
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address the kernel chooses touches no memory that exists.
        let second = unsafe { mmap(null_mut(), LEN, access, flags, &file, 0) };
        assert_eq!(second, Err(Errno::PERM));
        // The one that writes goes on writing, and gets what it did not touch before.
        let last = mapping.start().as_ptr().wrapping_add(LEN - 1);
        // SAFETY: as above.
        unsafe { last.write(9) };
        file.read_exact_at(&mut byte, LEN as u64 - 1).unwrap();
        assert_eq!(byte, [9]);
    }

    #[test]
    fn asking_for_huge_pages_changes_nothing_and_reaches_memory_in_use() {
        let (mapping, file) = map(LEN, HugePages::Auto, Share::On).unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|i| (i / 4096) as u8 ^ i as u8).collect();
        // SAFETY: the mapping has `LEN` bytes and nobody else uses it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.start().as_ptr(), LEN) };
        mapping.warm(0, LEN).unwrap();
        let mut found = vec![0; LEN];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes);
        assert_eq!(mapping.resident(0, LEN), LEN);
    }

    #[test]
    fn a_page_is_where_its_pin_says() {
        let config = ArenaConfig { share: Share::On, ..ArenaConfig::anonymous(16 << 20, 1 << 20) };
        let (arena, _) = Arena::open(config).unwrap();
        let (memory, len) = arena.shared().unwrap();
        assert_eq!(len, arena.capacity_bytes());
        assert_eq!(arena.status().memory.shared, Shared::Yes);
        let file = File::from(memory.try_clone_to_owned().unwrap());
        for (fill, page_len) in [(1, 100), (2, 4097), (3, 1 << 20), (4, 100)] {
            let (mut slot, _) = arena.reserve(page_len).unwrap();
            slot.bytes_mut().fill(fill);
            let record =
                PageRecord { meta: PageMeta { len: page_len, ..Default::default() }, ..Default::default() };
            let pin = arena.pin(slot.seal().publish(&record, &[0; 16], &[fill])).unwrap();
            let mut bytes = vec![0; page_len as usize];
            file.read_exact_at(&mut bytes, pin.offset()).unwrap();
            assert!(bytes.iter().all(|&byte| byte == fill));
        }
    }

    #[test]
    fn memory_of_a_file_and_memory_that_nobody_asked_for_is_private() {
        let place = tempfile::tempdir().unwrap();
        let backing = ArenaBacking::File(place.path().to_owned());
        let config = ArenaConfig { share: Share::Auto, backing, ..ArenaConfig::anonymous(16 << 20, 1 << 20) };
        let (arena, _) = Arena::open(config).unwrap();
        assert!(arena.shared().is_none());
        assert!(matches!(arena.status().memory.shared, Shared::No(why) if why.contains("memory.backing")));
        let arena = Arena::new(ArenaConfig::anonymous(16 << 20, 1 << 20)).unwrap();
        assert!(arena.shared().is_none());
        assert_eq!(arena.status().memory.shared, Shared::Off);
    }

    #[test]
    fn memory_that_must_be_shared_and_cannot_be_is_an_error() {
        let why = map(usize::MAX / 2, HugePages::Off, Share::On).unwrap_err();
        assert!(why.contains("sharing"), "{why}");
        let error = ArenaError::Share(why).to_string();
        assert!(error.ends_with("or set memory.share to auto"), "{error}");
    }
}
