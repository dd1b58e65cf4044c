//! What an arena is made with, and why there may be none.

use crate::map::HugePages;
use crate::share::Share;
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::path::PathBuf;

pub(crate) const CHUNK_BYTES_MIN: u64 = 4 << 20;
pub(crate) const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// The largest page that any arena takes; far above what engines use, and keeps sizes inside 32 bits.
pub(crate) const PAGE_BYTES_LIMIT: u32 = 1 << 30;

/// How to make an arena.
#[derive(Clone)]
pub struct ArenaConfig<'a> {
    /// Bytes to reserve; rounded down to whole chunks.
    pub bytes: u64,
    /// The largest page. Lowered to a sixteenth of the memory, but not below 4 MiB: a chunk must hold the largest
    /// page, and a store of few chunks could hold pages of few sizes at a time.
    pub page_bytes_max: u32,
    /// Make all memory resident before the arena is ready.
    pub prefault: bool,
    /// Whether to ask for huge pages.
    pub huge_pages: HugePages,
    /// What the memory is made of.
    pub backing: ArenaBacking,
    /// Whether other processes may map the memory to read it. A file's memory never is shared.
    pub share: Share,
    /// Make all memory resident and keep it there: it is never swapped out.
    pub mlock: bool,
    /// What to do on a machine with several memory nodes.
    pub numa: Numa,
    /// Told how many bytes of how many are resident, while `prefault` or `mlock` work.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

impl ArenaConfig<'_> {
    /// Anonymous memory that is taken when it is first used.
    #[must_use]
    pub fn anonymous(bytes: u64, page_bytes_max: u32) -> Self {
        Self {
            bytes,
            page_bytes_max,
            prefault: false,
            huge_pages: HugePages::Auto,
            backing: ArenaBacking::Anonymous,
            share: Share::Off,
            mlock: false,
            numa: Numa::Auto,
            progress: None,
        }
    }
}

impl fmt::Debug for ArenaConfig<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaConfig")
            .field("bytes", &self.bytes)
            .field("page_bytes_max", &self.page_bytes_max)
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}

/// What the memory is made of, and so whether it outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ArenaBacking {
    /// Memory that ends with the process.
    #[default]
    Anonymous,
    /// The file `memkv.arena` in this directory, best on tmpfs or hugetlbfs: pages outlive the process.
    File(PathBuf),
}

/// What to do on a machine with several memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numa {
    /// Spread the memory evenly over all nodes that have memory.
    #[default]
    Auto,
    /// Leave it to the kernel: usually the node of whoever writes first.
    Off,
}

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Not even one chunk fits.
    #[error("{0} bytes of memory are too few; give at least {CHUNK_BYTES_MIN}")]
    TooSmall(u64),
    /// The page limit is too high.
    #[error("pages of up to {0} bytes are too large; the limit is {PAGE_BYTES_LIMIT} bytes")]
    PageTooLarge(u32),
    /// More memory than slot numbers, or addresses, can name.
    #[error("{0} bytes are more memory than one arena can hold; give less")]
    TooLarge(u64),
    /// The kernel refused the mapping.
    #[error("the kernel refused to map {bytes} bytes ({reason}); give less memory or raise the limit")]
    Map {
        /// What was asked.
        bytes: u64,
        /// The kernel's error.
        reason: Errno,
    },
    /// The memory must be shared and cannot be.
    #[error("{0}; or set memory.share to auto")]
    Share(String),
    /// The kernel could not make the memory resident.
    #[error(
        "the kernel could not provide {bytes} bytes of memory ({reason}); give less memory or turn prefaulting off"
    )]
    Prefault {
        /// What was asked.
        bytes: u64,
        /// The kernel's error.
        reason: Errno,
    },
    /// The kernel does not let this process lock so much memory.
    #[error(
        "the kernel refused to lock {bytes} bytes in memory ({reason}); the limit of this process is {limit}: raise it \
         (LimitMEMLOCK=infinity in a systemd unit, `ulimit -l unlimited` in a shell), or turn mlock off"
    )]
    Lock {
        /// What was asked.
        bytes: u64,
        /// `RLIMIT_MEMLOCK`, for people.
        limit: String,
        /// The kernel's error.
        reason: Errno,
    },
    /// The file cannot be used.
    #[error("cannot {action} {path} ({reason}); check the directory, its owner and the free space")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        reason: io::Error,
    },
    /// The file system has too little space for the whole arena.
    #[error(
        "cannot allocate {bytes} bytes for {path} ({reason}); give less memory, or make its file system larger \
         (mount with a larger size=, or reserve more huge pages)"
    )]
    Space {
        /// The file.
        path: PathBuf,
        /// What was asked.
        bytes: u64,
        /// The kernel's error.
        reason: io::Error,
    },
    /// Another process uses the file.
    #[error("{path} is in use by {user}; stop it, or give this one another directory")]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who holds it, for people.
        user: String,
    },
    /// The file is of a newer version of this program. It is left as it is.
    #[error(
        "{path} has format version {version}, this program knows version {known}; run the newer program, or remove \
         the file to start empty"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
        /// The newest version that is known here.
        known: u64,
    },
}
