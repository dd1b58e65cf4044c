//! Where pages rest: the options of memory, drives, eviction and scrubbing.

use super::ConfigError;
use super::units::{parse_size, show_size};
use memkv_storage::PolicyKind;
use std::path::{Component, Path, PathBuf};

/// The least and the most bytes of a segment.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
/// The fewest segments that a drive's quota must have room for: some to write, some to read, one to reclaim.
const SEGMENTS_MIN: u64 = 4;
/// The most drives.
const DRIVES_MAX: usize = 16;
/// The least and the most reads and writes under way on one drive.
const QUEUE_DEPTH: std::ops::RangeInclusive<u32> = 2..=4096;
/// The most of the memory that pins may keep. Eviction must have something left to choose from.
const PIN_SHARE_MAX: f64 = 0.9;

/// Where pages rest and which of them go first.
#[derive(Clone, Debug, PartialEq)]
pub struct StorageConfig {
    /// Directory of the file that holds the memory for pages; none for memory that ends with the process.
    pub backing: Option<PathBuf>,
    /// Whether to lock that memory.
    pub mlock: bool,
    /// Whether clients on the same host may map that memory to read it.
    pub share: Share,
    /// Where that memory lies on machines with several nodes.
    pub numa: Numa,
    /// Directories for pages on drives; none for no NVMe tier.
    pub drives: Vec<DrivePath>,
    /// When a page is written to a drive.
    pub nvme_mode: NvmeMode,
    /// How drives are read and written.
    pub nvme_io: Io,
    /// Whether a write waits for the drive to keep it.
    pub nvme_sync: bool,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Most reads and writes under way on one drive.
    pub queue_depth: u32,
    /// Whether pages that were never read are demoted.
    pub admit_unread: bool,
    /// Which pages go first.
    pub policy: PolicyKind,
    /// Most of the memory that pins may keep.
    pub pin_share: f64,
    /// Bytes per second that the scrubber checks; 0 for no scrubber.
    pub scrub_bytes_per_s: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            backing: None,
            mlock: false,
            share: Share::Auto,
            numa: Numa::Auto,
            drives: Vec::new(),
            nvme_mode: NvmeMode::Demote,
            nvme_io: Io::Auto,
            nvme_sync: false,
            segment_bytes: 256 << 20,
            queue_depth: 128,
            admit_unread: false,
            policy: PolicyKind::default(),
            pin_share: 0.25,
            scrub_bytes_per_s: 16 << 20,
        }
    }
}

/// A directory on a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrivePath {
    /// The directory.
    pub path: PathBuf,
    /// Most bytes that it may hold; none for nine tenths of its file system.
    pub quota_bytes: Option<u64>,
}

/// Where the memory for pages lies on machines with several NUMA nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numa {
    /// Spread over all nodes.
    Auto,
    /// As the system likes.
    Off,
}

/// An enum whose values have names in the configuration.
macro_rules! named {
    ($type:ident, $count:literal, [$(($text:literal, $value:ident)),*]) => {
        impl $type {
            /// All values with their names.
            pub(crate) const NAMES: [(&str, Self); $count] = [$(($text, Self::$value)),*];

            /// The name.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$value => $text),* }
            }
        }
    };
}

/// When a page is written to a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeMode {
    /// When it is evicted from memory.
    Demote,
    /// Before its put is acknowledged.
    WriteThrough,
}

/// How drives are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// With `io_uring` if it works, else with threads.
    Auto,
    /// With `io_uring`, or not at all.
    Uring,
    /// With threads.
    Threads,
}

/// Whether clients on the same host may map the memory for pages to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Where it costs no huge pages.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

named!(NvmeMode, 2, [("demote", Demote), ("write-through", WriteThrough)]);
named!(Share, 3, [("auto", Auto), ("on", On), ("off", Off)]);
named!(Io, 3, [("auto", Auto), ("uring", Uring), ("threads", Threads)]);

/// Reads an absolute path of a directory.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!(
            "{text:?} is not an absolute path without \"..\"; write it from the root, as in \"/mnt/nvme0/memkv\""
        ));
    }
    // Collecting the components leaves out doubled and trailing slashes, so that equal paths are equal.
    Ok(path.components().collect())
}

/// Reads the name of a policy.
pub(super) fn policy(text: &str) -> Result<PolicyKind, String> {
    text.trim().parse().map_err(|error: memkv_storage::UnknownPolicy| error.to_string())
}

/// Reads `PATH[:SIZE],…`.
pub(super) fn drives(text: &str) -> Result<Vec<DrivePath>, String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(drive).collect()
}

fn drive(text: &str) -> Result<DrivePath, String> {
    let (path, quota_bytes) = match text.rsplit_once(':') {
        // A colon may belong to the path itself; a size has no slash.
        Some((path, size)) if !size.contains('/') => (path, Some(parse_size(size)?)),
        _ => (text, None),
    };
    // A directory may be called so; but a slip would be a drive without a bound, in another directory.
    if let Some((path, size)) = path.rsplit_once('=')
        && size.ends_with("iB")
        && parse_size(size).is_ok()
    {
        return Err(format!(
            "{text:?} looks like a size behind \"=\"; write PATH:SIZE, as in \"{path}:{size}\""
        ));
    }
    Ok(DrivePath { path: directory(path)?, quota_bytes })
}

/// Writes what [`drives`] reads.
pub(super) fn show_drives(drives: &[DrivePath]) -> String {
    let show = |drive: &DrivePath| match drive.quota_bytes {
        Some(quota) => format!("{}:{}", drive.path.display(), show_size(quota)),
        None => drive.path.display().to_string(),
    };
    drives.iter().map(show).collect::<Vec<_>>().join(",")
}

impl StorageConfig {
    /// Refuses values that make no sense together.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if !SEGMENT_BYTES.contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(1 << 20) {
            return invalid(format!(
                "nvme.segment is {}; it must be whole MiB, 1MiB to 1GiB",
                show_size(self.segment_bytes)
            ));
        }
        if !QUEUE_DEPTH.contains(&self.queue_depth) {
            return invalid(format!("nvme.queue_depth is {}; it must be 2 to 4096", self.queue_depth));
        }
        if !(0.0..=PIN_SHARE_MAX).contains(&self.pin_share) {
            return invalid(format!(
                "eviction.pin_share is {}; it must be 0 to {PIN_SHARE_MAX}",
                self.pin_share
            ));
        }
        if self.drives.is_empty() && self.nvme_mode == NvmeMode::WriteThrough {
            return invalid("nvme.mode is write-through, but nvme.paths names no drive; add one".to_owned());
        }
        if self.drives.len() > DRIVES_MAX {
            return invalid(format!(
                "nvme.paths names {} drives; at most {DRIVES_MAX} are possible",
                self.drives.len()
            ));
        }
        self.check_drives()
    }

    fn check_drives(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        let least = SEGMENTS_MIN * self.segment_bytes;
        for (index, drive) in self.drives.iter().enumerate() {
            let path = &drive.path;
            if drive.quota_bytes.is_some_and(|quota| quota < least) {
                return invalid(format!(
                    "nvme.paths gives {} only {}; that is less than {SEGMENTS_MIN} segments of {}: give it {} or more, or lower nvme.segment",
                    path.display(),
                    show_size(drive.quota_bytes.unwrap_or_default()),
                    show_size(self.segment_bytes),
                    show_size(least)
                ));
            }
            for other in &self.drives[..index] {
                if path.starts_with(&other.path) || other.path.starts_with(path) {
                    return invalid(format!(
                        "nvme.paths names {} and {}, one inside the other or twice the same; give every drive a directory of its own",
                        other.path.display(),
                        path.display()
                    ));
                }
            }
            if self.backing.as_deref().is_some_and(|backing| backing == path) {
                return invalid(format!(
                    "{} is in both memory.backing and nvme.paths; they need different directories",
                    path.display()
                ));
            }
        }
        Ok(())
    }
}
