//! Spaces and what is counted for each.

use crate::account::{Account, Accounts};
use crate::keys::SPACES_MAX;
use memkv_core::{SpaceDescription, SpaceId};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A space that was opened. It lives as long as the engine.
#[derive(Debug)]
pub struct Space {
    id: SpaceId,
    /// Short name inside the index, in order of opening.
    number: u32,
    description: SpaceDescription,
    /// Of the tenant whose it is.
    account: Arc<Account>,
    pages: AtomicU64,
    bytes: AtomicU64,
    /// Of these pages, those that are only on a drive.
    drive_pages: AtomicU64,
    drive_bytes: AtomicU64,
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
    /// Pages of `pages` that are only on a drive.
    pub drive_pages: u64,
    /// Bytes of those.
    pub drive_bytes: u64,
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
    fn new(number: u32, description: SpaceDescription, account: Arc<Account>, counts: Counts) -> Self {
        account.recovered(counts.pages, counts.dram_taken, counts.drive_taken);
        Self {
            id: description.id(),
            number,
            description,
            account,
            pages: counts.pages.into(),
            bytes: counts.bytes.into(),
            drive_pages: counts.drive_pages.into(),
            drive_bytes: counts.drive_bytes.into(),
            get_keys: AtomicU64::new(0),
            get_hits: AtomicU64::new(0),
        }
    }

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
            drive_pages: self.drive_pages.load(Ordering::Relaxed),
            drive_bytes: self.drive_bytes.load(Ordering::Relaxed),
            get_keys: self.get_keys.load(Ordering::Relaxed),
            get_hits: self.get_hits.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Counts a page in, whose bytes are in the tenant's account already. Called under the lock of the page's shard, like [`Space::count_out`], so that the sums never
    /// go below zero.
    pub(crate) fn count_in(&self, bytes: u64) {
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.account.page_in();
    }

    pub(crate) fn count_out(&self, bytes: u64) {
        self.pages.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.account.page_out(bytes);
    }

    /// Counts a page that was counted in as being only on a drive now; like [`Space::count_in`].
    pub(crate) fn count_demoted(&self, bytes: u64) {
        self.drive_pages.fetch_add(1, Ordering::Relaxed);
        self.drive_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.account.to_drive(bytes);
    }

    /// Counts a page that was only on a drive as being in memory, or gone.
    pub(crate) fn count_promoted(&self, bytes: u64) {
        self.drive_pages.fetch_sub(1, Ordering::Relaxed);
        self.drive_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.account.to_memory(bytes);
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
    pub(crate) accounts: Accounts,
}

/// What a recovery counted for a space.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
    pub(crate) drive_pages: u64,
    pub(crate) drive_bytes: u64,
    /// What the pages in memory and on drives take up.
    pub(crate) dram_taken: u64,
    pub(crate) drive_taken: u64,
}

#[derive(Default)]
struct Known {
    by_id: BTreeMap<SpaceId, Arc<Space>>,
    by_number: Vec<Arc<Space>>,
}

impl Known {
    fn next_number(&self) -> u32 {
        u32::try_from(self.by_number.len()).expect("there are at most 2^21 spaces")
    }

    fn add(&mut self, description: SpaceDescription, accounts: &Accounts, counts: Counts) -> Arc<Space> {
        let account = accounts.of(description.tenant().unwrap_or_default());
        let space = Arc::new(Space::new(self.next_number(), description, account, counts));
        self.by_id.insert(space.id, Arc::clone(&space));
        self.by_number.push(Arc::clone(&space));
        space
    }
}

impl Spaces {
    #[cfg(test)]
    pub(crate) fn new(max: u32) -> Self {
        Self { max: max.min(SPACES_MAX), known: RwLock::default(), accounts: Accounts::default() }
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
        if known.by_number.len() >= self.max as usize {
            return Err(OpenSpaceError::TooMany(self.max));
        }
        Ok(known.add(description, &self.accounts, Counts::default()))
    }

    /// Whether another space may be opened.
    pub(crate) fn is_full(&self) -> bool {
        self.known.read().by_number.len() >= self.max as usize
    }

    /// Spaces that have numbers already, and those of `descriptions` that have none yet. A number without a
    /// description gets a space that nobody finds.
    pub(crate) fn recovered(
        max: u32,
        numbered: Vec<(SpaceId, Counts)>,
        mut descriptions: HashMap<SpaceId, SpaceDescription>,
    ) -> Self {
        let (mut known, accounts) = (Known::default(), Accounts::default());
        for (id, counts) in numbered {
            match descriptions.remove(&id) {
                Some(description) => drop(known.add(description, &accounts, counts)),
                None => {
                    let number = known.next_number();
                    let nobody = Space::new(number, SpaceDescription::default(), accounts.of(""), counts);
                    known.by_number.push(Arc::new(nobody));
                }
            }
        }
        let mut rest: Vec<_> = descriptions.into_iter().collect();
        rest.sort_unstable_by_key(|(id, _)| *id);
        for (_, description) in rest {
            if known.by_number.len() < max as usize {
                known.add(description, &accounts, Counts::default());
            }
        }
        Self { max: max.min(SPACES_MAX), known: RwLock::new(known), accounts }
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
