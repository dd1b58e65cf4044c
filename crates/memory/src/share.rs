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
