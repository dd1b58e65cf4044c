//! What an engine is made with.

use memkv_eviction::PolicyKind;
use memkv_memory::{ArenaError, HugePages, Numa, Share};
use memkv_nvme::{DriveConfig, IoChoice, LogError};
use std::path::PathBuf;

/// With drives eviction starts and ends earlier, in thousandths: a page has to be written before its slot is free, and
/// puts need slots meanwhile.
const DRIVES_HIGH: u64 = 970;
const DRIVES_LOW: u64 = 950;

/// Sizes and choices of an [`Engine`](crate::Engine), fixed for its life.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Memory for pages, in bytes; rounded down to whole chunks.
    pub dram_bytes: u64,
    /// The largest page, in bytes. A store takes pages of up to a sixteenth of its memory, or 4 MiB if that is more;
    /// a higher limit is lowered to that, see [`Engine::page_bytes_max`](crate::Engine::page_bytes_max).
    pub page_bytes_max: u32,
    /// The most spaces.
    pub spaces_max: u32,
    /// Eviction starts above this share of the memory, 0 to 1.
    pub high_watermark: f64,
    /// Eviction ends at this share of the memory, not above `high_watermark`.
    pub low_watermark: f64,
    /// Make the memory resident at the start.
    pub prefault: bool,
    /// Whether to ask for huge pages.
    pub huge_pages: HugePages,
    /// Which pages go first.
    pub policy: PolicyKind,
    /// Directory of the file that holds the memory for pages, so that they survive a restart; without one the memory
    /// ends with the process.
    pub backing: Option<PathBuf>,
    /// Whether other processes may map the memory to read it.
    pub share: Share,
    /// Whether to lock the memory.
    pub mlock: bool,
    /// Where the memory lies on a machine with several memory nodes.
    pub numa: Numa,
    /// The tier on drives, if there is one.
    pub nvme: Option<NvmeConfig>,
    /// The largest share of the memory that [`Engine::keep`](crate::Engine::keep) may take out of eviction, 0 to 0.9.
    pub pin_share: f64,
    /// Bytes per second that the background scrubber checks; 0 for none. Only noted: whoever runs
    /// [`Engine::scrub`](crate::Engine::scrub) keeps the pace.
    pub scrub_bytes_per_s: u64,
}

impl EngineConfig {
    /// The watermarks, checked together with what else must make sense.
    pub(crate) fn marks(&self) -> Result<Watermarks, EngineError> {
        if !(0.0..=0.9).contains(&self.pin_share) {
            return Err(EngineError::PinShare(self.pin_share));
        }
        let mut marks = Watermarks::new(self)?;
        if self.nvme.is_some() {
            marks.high = marks.high.min(DRIVES_HIGH);
            marks.low = marks.low.min(DRIVES_LOW);
        }
        Ok(marks)
    }

    /// The most bytes of `capacity` that may be kept.
    pub(crate) fn kept_bytes_max(&self, capacity: u64) -> u64 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share between 0 and 0.9 of a size"
        )]
        let bytes = (capacity as f64 * self.pin_share) as u64;
        bytes
    }
}

/// The tier on drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeConfig {
    /// One directory on each drive, and how many bytes it may take.
    pub drives: Vec<DriveConfig>,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// When pages are written.
    pub mode: NvmeMode,
    /// How drives are read and written.
    pub io: IoChoice,
    /// The most reads and writes under way on one drive.
    pub queue_depth: u32,
    /// Whether a write counts only once the drive was told to keep it.
    pub sync: bool,
    /// Whether pages that were never read are written when they are evicted.
    pub admit_unread: bool,
}

/// When a page is written to a drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NvmeMode {
    /// When it is evicted from memory.
    #[default]
    Demote,
    /// When it arrives, before its put is acknowledged; see [`Engine::persist`](crate::Engine::persist).
    WriteThrough,
}

impl EngineConfig {
    /// The defaults, with this much memory for pages.
    #[must_use]
    pub fn with_dram(dram_bytes: u64) -> Self {
        let limits = memkv_core::Limits::default();
        Self {
            dram_bytes,
            page_bytes_max: limits.page_bytes_max,
            spaces_max: limits.spaces_max,
            high_watermark: 0.997,
            low_watermark: 0.993,
            prefault: false,
            huge_pages: HugePages::Auto,
            policy: PolicyKind::Lru,
            backing: None,
            share: Share::Off,
            mlock: false,
            numa: Numa::Auto,
            nvme: None,
            pin_share: 0.25,
            scrub_bytes_per_s: 0,
        }
    }
}

/// Why an engine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The watermarks make no sense.
    #[error("the watermarks low {low} and high {high} are not valid; use 0 < low <= high <= 1")]
    Watermarks {
        /// The low one.
        low: f64,
        /// The high one.
        high: f64,
    },
    /// The share of the memory that may be kept makes no sense.
    #[error("the share of the memory that may be kept is {0}; use 0 to 0.9")]
    PinShare(f64),
    /// There is no memory for pages.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The drives cannot be used.
    #[error(transparent)]
    Drives(#[from] LogError),
    /// A thread could not be started.
    #[error("the system refused a thread: {0}")]
    Thread(std::io::Error),
}

/// The watermarks as shares in 1/1000, so that decisions are whole numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watermarks {
    high: u64,
    low: u64,
}

impl Watermarks {
    pub(crate) fn new(config: &EngineConfig) -> Result<Self, EngineError> {
        let (low, high) = (config.low_watermark, config.high_watermark);
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return Err(EngineError::Watermarks { low, high });
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "both are between 0 and 1, so the products are between 0 and 1000"
        )]
        let share = |mark: f64| (mark * 1000.0).round() as u64;
        Ok(Self { high: share(high), low: share(low) })
    }

    /// Whether so few of the `potential` slots are available that eviction should start. One free slot is the least
    /// that a class needs to take the next page at once.
    pub(crate) fn slots_low(self, available: u64, potential: u64) -> bool {
        available < Self::headroom(potential, self.high).max(1)
    }

    /// How many of the `potential` slots should be available when eviction ends.
    pub(crate) fn slots_wanted(self, potential: u64) -> u64 {
        Self::headroom(potential, self.low).max(1)
    }

    /// Whether so many bytes are held that eviction should start.
    pub(crate) fn bytes_high(self, held: u64, capacity: u64) -> bool {
        u128::from(held) * 1000 > u128::from(capacity) * u128::from(self.high)
    }

    /// How many bytes too many are held when eviction should bring the store to the low mark.
    pub(crate) fn bytes_over_low(self, held: u64, capacity: u64) -> u64 {
        let low = u128::from(capacity) * u128::from(self.low) / 1000;
        held.saturating_sub(u64::try_from(low).unwrap_or(u64::MAX))
    }

    /// The share of `potential` that lies above `mark`, rounded up.
    fn headroom(potential: u64, mark: u64) -> u64 {
        let share = u128::from(potential) * u128::from(1000 - mark);
        u64::try_from(share.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(low: f64, high: f64) -> Result<Watermarks, EngineError> {
        let config =
            EngineConfig { low_watermark: low, high_watermark: high, ..EngineConfig::with_dram(1 << 30) };
        Watermarks::new(&config)
    }

    #[test]
    fn senseless_watermarks_are_refused() {
        for (low, high) in [(0.0, 0.9), (0.9, 0.8), (0.9, 1.1), (f64::NAN, 0.9), (0.9, f64::NAN)] {
            assert!(matches!(marks(low, high), Err(EngineError::Watermarks { .. })), "{low} {high}");
        }
        assert!(marks(1.0, 1.0).is_ok());
    }

    #[test]
    fn marks_are_exact_at_their_edges() {
        let marks = marks(0.90, 0.95).unwrap();
        assert!(!marks.slots_low(5, 100));
        assert!(marks.slots_low(4, 100));
        assert!(marks.slots_low(0, 3), "a class needs at least one free slot");
        assert!(!marks.slots_low(1, 3));
        assert_eq!(marks.slots_wanted(100), 10);
        assert_eq!(marks.slots_wanted(3), 1);
        assert!(!marks.bytes_high(95, 100));
        assert!(marks.bytes_high(96, 100));
        assert_eq!(marks.bytes_over_low(96, 100), 6);
        assert_eq!(marks.bytes_over_low(80, 100), 0);
        assert_eq!(marks.bytes_over_low(u64::MAX, u64::MAX), u64::MAX - u64::MAX / 10 * 9 - 4);
    }
}
