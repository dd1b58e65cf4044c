//! The file of an arena that outlives its process: who may use it, and whether what it holds can be kept.
//!
//! A file is kept only if it is whole, of this version and of the same sizes; otherwise the arena starts empty and says
//! why. A file of a newer version is refused and left as it is: after a rollback it may still be wanted.
//!
//! Deliberately absent: moving pages between sizes. Another amount of memory starts empty.

use crate::config::ArenaError;
use crate::map::Backing;
use crate::sync::Ordering;
use crate::tables::{
    CHECKSUM_WORD, CLEAN_WORD, HEAD_WORDS, Layout, MAGIC, PROCESS_WORD, Tables, VERSION, head_checksum,
};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatfs};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

pub(crate) const FILE_NAME: &str = "memkv.arena";
const ALIGN_MIN: u64 = 2 << 20;
const ALLOCATE_STEP: u64 = 256 << 20;
const MOUNTS: &str = "/proc/self/mountinfo";

/// What kind of file system a file is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Memory, in small pages or, if the mount says so, huge ones.
    Tmpfs,
    /// Memory in huge pages of this many bytes.
    Hugetlbfs(u64),
    /// Anything else: the kernel writes pages back to a drive.
    Drive,
}

impl FileSystem {
    fn of(file: &File) -> io::Result<Self> {
        const TMPFS: u64 = 0x0102_1994;
        const RAMFS: u64 = 0x8584_58f6;
        const HUGETLBFS: u64 = 0x9584_58f6;
        let status = fstatfs(file)?;
        // The magic numbers have 32 bits, whatever the kernel's type.
        #[allow(clippy::cast_sign_loss, reason = "only the low 32 bits are looked at")]
        let magic = status.f_type as u64 & 0xffff_ffff;
        Ok(match magic {
            TMPFS | RAMFS => Self::Tmpfs,
            HUGETLBFS => Self::Hugetlbfs(u64::try_from(status.f_bsize).unwrap_or(ALIGN_MIN)),
            _ => Self::Drive,
        })
    }

    /// What mappings of the file are aligned to.
    pub(crate) fn align(self) -> u64 {
        match self {
            Self::Hugetlbfs(bytes) => bytes.next_power_of_two().max(ALIGN_MIN),
            Self::Tmpfs | Self::Drive => ALIGN_MIN,
        }
    }

    /// Whether the file never leaves memory.
    pub(crate) fn is_memory(self) -> bool {
        self != Self::Drive
    }

    /// A word for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Hugetlbfs(_) => "hugetlbfs",
            Self::Drive => "a drive",
        }
    }
}

/// What an arena's file held when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing: it is new.
    New,
    /// Something that could not be kept, for this reason. The arena is empty.
    Discarded(String),
    /// The pages of a process that closed it.
    Clean,
    /// The pages of a process that ended without closing it. Each has to be verified before it is served.
    Unclean,
}

/// An arena's file, locked for this process until it is dropped.
#[derive(Debug)]
pub(crate) struct ArenaFile {
    file: File,
    path: PathBuf,
    pub(crate) system: FileSystem,
}

impl ArenaFile {
    /// Opens or makes the file in this directory and locks it.
    pub(crate) fn open(directory: &Path) -> Result<Self, ArenaError> {
        let path = directory.join(FILE_NAME);
        let failed = |action, reason| ArenaError::File { path: path.clone(), action, reason };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|reason| failed("make the directory of", reason))?;
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(|reason| failed("open", reason))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(in_use(&file, path)),
                Err(reason) => return Err(failed("lock", reason.into())),
            }
            // Whoever held the lock before may have removed the file meanwhile.
            if fs::metadata(&path).is_ok_and(|now| same(&now, &file)) {
                let system = FileSystem::of(&file).map_err(|reason| failed("examine", reason))?;
                return Ok(Self { file, path, system });
            }
        }
    }

    /// The same file through a handle that only reads.
    #[cfg(test)]
    pub(crate) fn read_only(&self) -> Self {
        let file = File::open(&self.path).unwrap();
        Self { file, path: self.path.clone(), system: self.system }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this file.
    pub(crate) fn failed(&self, action: &'static str, reason: impl Into<io::Error>) -> ArenaError {
        ArenaError::File { path: self.path.clone(), action, reason: reason.into() }
    }

    /// What the file holds, for an arena of this layout. Changes nothing.
    pub(crate) fn past(&self, layout: &Layout) -> Result<Past, ArenaError> {
        let len = self.file.metadata().map_err(|reason| self.failed("examine", reason))?.len();
        if len == 0 {
            return Ok(Past::New);
        }
        let Some(words) = read_words(&self.file) else {
            return Ok(Past::Discarded("it is too short for a header".to_owned()));
        };
        if words[0] != MAGIC {
            return Ok(Past::Discarded("it has no header of an arena".to_owned()));
        }
        if words[1] > VERSION {
            let path = self.path.clone();
            return Err(ArenaError::Newer { path, version: words[1], known: VERSION });
        }
        let head = layout.head();
        let discarded = if words[1] < VERSION {
            format!("its format version {} is older than {VERSION}", words[1])
        } else if words[CHECKSUM_WORD] != head_checksum(&words) {
            "its header is damaged".to_owned()
        } else if words[..=CHECKSUM_WORD] != head {
            let (chunk, chunks) = (words[2], words[3]);
            let (bytes, now) = (chunk.saturating_mul(chunks), layout.data_len());
            format!(
                "it was made for {bytes} bytes in {chunks} chunks, now the memory is {now} bytes in {} chunks",
                layout.chunks
            )
        } else if len != layout.file_len {
            format!("it has {len} bytes instead of {}", layout.file_len)
        } else {
            return Ok(if words[CLEAN_WORD] == 1 { Past::Clean } else { Past::Unclean });
        };
        Ok(Past::Discarded(discarded))
    }

    /// Empties the file and gives it the layout's length.
    pub(crate) fn empty(&self, layout: &Layout) -> Result<(), ArenaError> {
        self.file.set_len(0).map_err(|reason| self.failed("empty", reason))?;
        self.file.set_len(layout.file_len).map_err(|reason| self.failed("enlarge", reason))
    }

    /// Allocates the space of all chunks and of the header: a later write could not fail, only kill.
    pub(crate) fn allocate_all(&self, layout: &Layout) -> Result<(), ArenaError> {
        let data =
            (layout.data..layout.file_len).step_by(usize::try_from(ALLOCATE_STEP).unwrap_or(usize::MAX));
        let steps = data.map(|at| at..(at + ALLOCATE_STEP).min(layout.file_len));
        let [records, _] = layout.table_ranges(0, 0..0);
        let outcome =
            std::iter::once(0..records.start).chain(steps).try_for_each(|range| self.allocate(range));
        outcome.map_err(|reason| ArenaError::Space {
            path: self.path.clone(),
            bytes: layout.file_len - layout.data,
            reason: reason.into(),
        })
    }

    /// Gives back what a file takes that cannot become an arena.
    pub(crate) fn give_up(&self) {
        // The arena fails anyway, and for a reason that says more than this one would.
        let _emptied = self.file.set_len(0);
    }

    /// Allocates the tables of a chunk's first `slots` slots.
    pub(crate) fn allocate_tables(&self, layout: &Layout, chunk: u32, slots: u32) -> Result<(), Errno> {
        layout.table_ranges(chunk, 0..slots).into_iter().try_for_each(|range| self.allocate(range))
    }

    fn allocate(&self, range: Range<u64>) -> Result<(), Errno> {
        loop {
            match fallocate(&self.file, FallocateFlags::empty(), range.start, range.end - range.start) {
                // A file system that cannot allocate ahead can still be used, at one's own risk.
                Ok(()) | Err(Errno::OPNOTSUPP) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Zeroes the tables of a chunk from its slot `from` on and gives their memory back. `false` if the file system
    /// cannot do that.
    pub(crate) fn clear_tables(&self, layout: &Layout, chunk: u32, from: u32) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch =
            |range: Range<u64>| fallocate(&self.file, flags, range.start, range.end - range.start).is_ok();
        let ranges = layout.table_ranges(chunk, from..layout.slots_per_chunk());
        ranges.into_iter().filter(|range| !range.is_empty()).all(punch)
    }

    /// Marks the file as in use by this process.
    pub(crate) fn begin(&self, tables: &Tables, layout: &Layout) -> Result<(), ArenaError> {
        let header = tables.header();
        header[CLEAN_WORD].store(0, Ordering::Relaxed);
        header[PROCESS_WORD].store(u64::from(std::process::id()), Ordering::Relaxed);
        // The magic comes last: a file without it is empty, whatever else it has.
        for (word, value) in header.iter().zip(layout.head()).rev() {
            word.store(value, Ordering::Release);
        }
        self.sync()
    }

    /// Marks the file as closed, once all of it is on its drive.
    pub(crate) fn end(&self, tables: &Tables) -> Result<(), ArenaError> {
        self.sync()?;
        tables.header()[CLEAN_WORD].store(1, Ordering::Release);
        self.sync()
    }

    fn sync(&self) -> Result<(), ArenaError> {
        if self.system.is_memory() {
            return Ok(());
        }
        self.file.sync_data().map_err(|reason| self.failed("write", reason))
    }

    /// Which pages the file's memory has.
    pub(crate) fn backing(&self) -> Backing {
        match self.system {
            FileSystem::Hugetlbfs(_) => Backing::Huge,
            FileSystem::Tmpfs if self.mounted_huge() => Backing::Transparent,
            FileSystem::Tmpfs | FileSystem::Drive => Backing::Plain,
        }
    }

    /// Whether the tmpfs was mounted with an option that gives huge pages.
    fn mounted_huge(&self) -> bool {
        let Ok(device) = self.file.metadata().map(|status| status.dev()) else { return false };
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        fs::read_to_string(MOUNTS).is_ok_and(|mounts| huge_mount(&mounts, &device))
    }
}

impl Drop for ArenaFile {
    fn drop(&mut self) {
        // A mapping keeps the open file, and with it the lock, for the moment that a helper thread may still hold it.
        // Closing unlocks as well, so there is nothing to do about an error.
        let _unlocked = flock(&self.file, FlockOperation::Unlock);
    }
}

fn huge_mount(mounts: &str, device: &str) -> bool {
    let of_device = |line: &&str| line.split(' ').nth(2) == Some(device);
    mounts.lines().filter(of_device).any(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        options.split(',').any(|option| ["huge=always", "huge=within_size", "huge=advise"].contains(&option))
    })
}

fn same(status: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (status.dev(), status.ino()))
}

/// The header's words; `None` if the file is shorter.
fn read_words(file: &File) -> Option<[u64; HEAD_WORDS]> {
    let mut bytes = [0; HEAD_WORDS * 8];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let mut words = [0; HEAD_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().ok()?);
    }
    Some(words)
}

fn in_use(file: &File, path: PathBuf) -> ArenaError {
    let process = read_words(file).filter(|words| words[0] == MAGIC).map(|words| words[PROCESS_WORD]);
    let user = process.map_or_else(|| "another process".to_owned(), |id| format!("process {id}"));
    ArenaError::InUse { path, user }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_mounts_are_recognised() {
        let mounts = "24 1 0:22 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=4k\n\
                      25 1 0:23 / /mnt/huge rw shared:1 - tmpfs tmpfs rw,huge=always,size=8G\n\
                      26 1 0:24 / /mnt/never rw - tmpfs tmpfs rw,huge=never\n";
        assert!(!huge_mount(mounts, "0:22"));
        assert!(huge_mount(mounts, "0:23"));
        assert!(!huge_mount(mounts, "0:24"));
        assert!(!huge_mount(mounts, "0:2"));
    }
}
