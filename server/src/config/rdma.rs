//! Pages by RDMA: the options of the server's NICs.

use super::ConfigError;

/// The least and the most work requests of one queue pair.
const QUEUE_DEPTH: std::ops::RangeInclusive<u32> = 2..=16_384;

/// Pages by RDMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaConfig {
    /// Whether pages may move by RDMA.
    pub mode: RdmaMode,
    /// Devices in order of preference; empty for all.
    pub devices: Vec<String>,
    /// Entry of the GID table; the best one if absent.
    pub gid_index: Option<u32>,
    /// Most work requests under way on one queue pair.
    pub queue_depth: u32,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self { mode: RdmaMode::Auto, devices: Vec::new(), gid_index: None, queue_depth: 256 }
    }
}

/// Whether pages may move by RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RdmaMode {
    /// Where there is a device that works.
    Auto,
    /// Never.
    Off,
    /// The server does not start without.
    Require,
}

impl RdmaMode {
    pub(super) const NAMES: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("off", Self::Off), ("require", Self::Require)];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Require => "require",
        }
    }
}

impl RdmaConfig {
    /// Checks values against each other.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !QUEUE_DEPTH.contains(&self.queue_depth) {
            let (least, most) = (QUEUE_DEPTH.start(), QUEUE_DEPTH.end());
            let text = format!("rdma.queue_depth is {}; it must be {least} to {most}", self.queue_depth);
            return Err(ConfigError::Invalid(text));
        }
        Ok(())
    }
}

/// Names separated by commas.
pub(super) fn names(text: &str) -> Result<Vec<String>, String> {
    Ok(text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
