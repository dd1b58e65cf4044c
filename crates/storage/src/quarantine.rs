//! The last pages that were taken out because their bytes did not match their checksum.

use crate::engine::Engine;
use crate::status::Tier;
use memkv_core::SpaceId;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most pages that are remembered.
const REMEMBERED: usize = 256;

/// A page that was taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedInfo {
    /// Its space.
    pub space: SpaceId,
    /// Its key.
    pub key: Vec<u8>,
    /// Where the wrong bytes were.
    pub tier: Tier,
    /// When it was found.
    pub at_ms: u64,
    /// What was found, for people.
    pub why: String,
}

/// The last of them, and how many there were.
#[derive(Default)]
pub(crate) struct Quarantine {
    last: Mutex<VecDeque<QuarantinedInfo>>,
    total: AtomicU64,
}

impl Quarantine {
    pub(crate) fn add(&self, info: QuarantinedInfo) {
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut last = self.last.lock();
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        last.push_back(info);
    }

    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn all(&self) -> Vec<QuarantinedInfo> {
        self.last.lock().iter().cloned().collect()
    }
}

impl Engine {
    /// The last 256 pages that were taken out because their bytes did not match their checksum, oldest first.
    #[must_use]
    pub fn quarantined(&self) -> Vec<QuarantinedInfo> {
        self.state.quarantine.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_first() {
        let quarantine = Quarantine::default();
        for at_ms in 0..300 {
            let (space, key, why) = (SpaceId::default(), vec![1], "flipped".to_owned());
            quarantine.add(QuarantinedInfo { space, key, tier: Tier::Dram, at_ms, why });
        }
        let all = quarantine.all();
        assert_eq!((all.len(), all[0].at_ms, all[255].at_ms, quarantine.total()), (256, 44, 299, 300));
    }
}
