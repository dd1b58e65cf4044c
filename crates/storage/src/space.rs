//! Spaces and what is counted for each.

use memkv_core::{SpaceDescription, SpaceId};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A space that was opened. It lives as long as the engine.
#[derive(Debug)]
pub struct Space {
    id: SpaceId,
    /// Short name inside the index, in order of opening.
    number: u32,
    description: SpaceDescription,
    pages: AtomicU64,
    bytes: AtomicU64,
    get_keys: AtomicU64,
    get_hits: AtomicU64,
}

/// What a space holds and how it is used, each number read on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceStats {
    /// Pages in the space.
    pub pages: u64,
    /// Bytes of those pages.
    pub bytes: u64,
    /// Keys that were asked for by gets.
    pub get_keys: u64,
    /// Keys of those that were there.
    pub get_hits: u64,
}

/// Why a space was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenSpaceError {
    /// The server knows as many spaces as it may.
    #[error(
        "the server already knows {0} spaces, its limit; raise spaces_max or restart it to forget unused ones"
    )]
    TooMany(u32),
}

impl Space {
    /// Identity of the space.
    #[must_use]
    pub fn id(&self) -> SpaceId {
        self.id
    }

    /// What the space is, in clear text.
    #[must_use]
    pub fn description(&self) -> &SpaceDescription {
        &self.description
    }

    /// What the space holds and how it is used.
    #[must_use]
    pub fn stats(&self) -> SpaceStats {
        SpaceStats {
            pages: self.pages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            get_keys: self.get_keys.load(Ordering::Relaxed),
            get_hits: self.get_hits.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Counts a page in. Called under the lock of the page's shard, like [`Space::count_out`], so that the sums never
    /// go below zero.
    pub(crate) fn count_in(&self, bytes: u64) {
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_out(&self, pages: u64, bytes: u64) {
        self.pages.fetch_sub(pages, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_gets(&self, keys: u64, hits: u64) {
        self.get_keys.fetch_add(keys, Ordering::Relaxed);
        self.get_hits.fetch_add(hits, Ordering::Relaxed);
    }
}

/// All spaces, by identity and by number. Spaces are never removed, so numbers stay valid.
pub(crate) struct Spaces {
    max: u32,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    by_id: BTreeMap<SpaceId, Arc<Space>>,
    by_number: Vec<Arc<Space>>,
}

impl Spaces {
    pub(crate) fn new(max: u32) -> Self {
        Self { max, known: RwLock::default() }
    }

    pub(crate) fn open(&self, description: SpaceDescription) -> Result<Arc<Space>, OpenSpaceError> {
        let id = description.id();
        if let Some(space) = self.get(id) {
            return Ok(space);
        }
        let mut known = self.known.write();
        if let Some(space) = known.by_id.get(&id) {
            return Ok(Arc::clone(space));
        }
        let number = u32::try_from(known.by_number.len()).unwrap_or(u32::MAX);
        if number >= self.max {
            return Err(OpenSpaceError::TooMany(self.max));
        }
        let space = Arc::new(Space {
            id,
            number,
            description,
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            get_keys: AtomicU64::new(0),
            get_hits: AtomicU64::new(0),
        });
        known.by_id.insert(id, Arc::clone(&space));
        known.by_number.push(Arc::clone(&space));
        Ok(space)
    }

    pub(crate) fn get(&self, id: SpaceId) -> Option<Arc<Space>> {
        self.known.read().by_id.get(&id).cloned()
    }

    pub(crate) fn by_number(&self, number: u32) -> Option<Arc<Space>> {
        self.known.read().by_number.get(number as usize).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Space>> {
        self.known.read().by_id.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> SpaceDescription {
        SpaceDescription::named(name).unwrap()
    }

    #[test]
    fn opening_twice_gives_the_same_space() {
        let spaces = Spaces::new(1);
        let first = spaces.open(named("a")).unwrap();
        let again = spaces.open(named("a")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(spaces.open(named("b")).unwrap_err(), OpenSpaceError::TooMany(1));
        assert!(spaces.get(named("b").id()).is_none());
    }

    #[test]
    fn spaces_are_listed_by_id_and_found_by_number() {
        let spaces = Spaces::new(8);
        for name in ["a", "b", "c", "d"] {
            spaces.open(named(name)).unwrap();
        }
        let all = spaces.all();
        assert!(all.is_sorted_by_key(|space| space.id()));
        for space in all {
            assert!(Arc::ptr_eq(&spaces.by_number(space.number()).unwrap(), &space));
        }
        assert!(spaces.by_number(4).is_none());
    }
}
