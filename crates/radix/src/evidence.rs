//! Counters that decide what becomes public in evidence mode.
//!
//! A page is counted under its public name, whoever submits it and whether or not it is cached. So dropping its KV
//! costs no evidence, and the counters live in one table of bounded size. A window ends when the engine says so.
//! Counters move on one window at a time; after a gap of two they are zero, so entries that old are dropped.
//! When the table is full, new pages are not counted: they stay private.
//!
//! What evidence does **not** protect: the counting is itself an oracle. Somebody with `users - 1` accounts submits a
//! guess from all of them; if it becomes public, one more account had submitted it. Closing windows narrow this to
//! what was submitted lately, a large `users` makes it dear, and promotion only when a window closes hides when.
//! Timing within one account is not hidden at all. Only declared prefixes with a salt per tenant remove the oracle,
//! which is why evidence is off unless it is asked for. The order of scheduling leaks as well if prompts with longer
//! cached prefixes go first; that is the scheduler's to solve.

use crate::config::EvidenceConfig;
use crate::hash::Digest;
use crate::namespace::UserId;
use hashbrown::HashTable;
use std::collections::BTreeMap;

/// More accounts than this in one window are not told apart.
const MOST_USERS: usize = 64;

/// What a page has seen in this window and the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    hits: u64,
    hits_before: u64,
    users: Vec<UserId>,
    users_before: Vec<UserId>,
    window: u64,
}

impl Counters {
    fn roll(&mut self, window: u64) {
        match window - self.window {
            0 => return,
            1 => {
                self.hits_before = std::mem::take(&mut self.hits);
                self.users_before = std::mem::take(&mut self.users);
            }
            _ => *self = Self::default(),
        }
        self.window = window;
    }

    fn distinct(&self) -> usize {
        self.users.len() + self.users_before.iter().filter(|user| !self.users.contains(user)).count()
    }
}

/// How suspicious the hits of a page are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Surge {
    /// At most one account used the page in the window before.
    pub(crate) few_users: bool,
}

/// All counters and vetoes.
pub(crate) struct Evidence {
    bounds: EvidenceConfig,
    window: u64,
    pages: HashTable<(Digest, Counters)>,
    /// Until which window a demoted page stays private.
    vetoes: BTreeMap<Digest, u64>,
}

impl Evidence {
    pub(crate) fn new(bounds: EvidenceConfig) -> Self {
        Self { bounds, window: 0, pages: HashTable::new(), vetoes: BTreeMap::new() }
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    fn get(&self, name: &Digest) -> Option<&Counters> {
        self.pages.find(name.bits(), |(known, _)| known == name).map(|(_, counters)| counters)
    }

    /// Counts that `user` submitted a page, and whether it got it from the cache.
    pub(crate) fn submit(&mut self, name: &Digest, user: UserId, hit: bool) {
        let full = self.pages.len() >= self.bounds.tracked_pages;
        let entry = match self.pages.find_mut(name.bits(), |(known, _)| known == name) {
            Some(entry) => entry,
            None if full => return,
            None => {
                let fresh = (*name, Counters { window: self.window, ..Counters::default() });
                self.pages.insert_unique(name.bits(), fresh, |(name, _)| name.bits()).into_mut()
            }
        };
        let counters = &mut entry.1;
        counters.roll(self.window);
        counters.hits += u64::from(hit);
        if counters.users.len() < MOST_USERS.max(self.bounds.users) && !counters.users.contains(&user) {
            counters.users.push(user);
        }
    }

    /// Whether a page's hits in this window are many more than before while its accounts are not.
    pub(crate) fn surge(&self, name: &Digest) -> Option<Surge> {
        let counters = self.get(name).filter(|counters| counters.window == self.window)?;
        let (hits, before) = (u128::from(counters.hits), u128::from(counters.hits_before));
        let times = u128::from(self.bounds.surge);
        let (users, users_before) = (counters.users.len() as u128, counters.users_before.len() as u128);
        let surges = before > 0 && hits > times * before && hits * users_before >= times * before * users;
        surges.then_some(Surge { few_users: users_before <= 1 })
    }

    /// Whether a page that was used in this window has enough accounts to be public.
    pub(crate) fn is_enough(&self, name: &Digest) -> bool {
        let used = self.get(name).filter(|counters| counters.window == self.window);
        used.is_some_and(|counters| counters.distinct() >= self.bounds.users) && !self.is_vetoed(name)
    }

    pub(crate) fn veto(&mut self, name: Digest) {
        if self.vetoes.len() < self.bounds.tracked_pages {
            self.vetoes.insert(name, self.window + self.bounds.veto_windows);
        }
    }

    pub(crate) fn is_vetoed(&self, name: &Digest) -> bool {
        self.vetoes.get(name).is_some_and(|until| *until >= self.window)
    }

    /// Starts the next window.
    pub(crate) fn next_window(&mut self) -> u64 {
        self.window += 1;
        let window = self.window;
        self.pages.retain(|(_, counters)| counters.window + 1 >= window);
        self.vetoes.retain(|_, until| *until >= window);
        window
    }

    #[cfg(test)]
    pub(crate) fn tracked(&self) -> usize {
        self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(at: u8) -> Digest {
        Digest([at; 32])
    }

    #[test]
    fn a_gap_of_two_windows_forgets_everything() {
        let mut evidence = Evidence::new(EvidenceConfig { users: 3, ..EvidenceConfig::default() });
        evidence.submit(&name(1), UserId(1), true);
        evidence.next_window();
        evidence.submit(&name(1), UserId(2), true);
        evidence.submit(&name(1), UserId(3), true);
        assert!(evidence.is_enough(&name(1)), "two windows count together");
        evidence.next_window();
        evidence.next_window();
        evidence.submit(&name(1), UserId(4), true);
        assert!(!evidence.is_enough(&name(1)));
    }

    #[test]
    fn the_table_has_a_bound_and_what_it_cannot_count_stays_private() {
        let bounds = EvidenceConfig { users: 3, tracked_pages: 2, ..EvidenceConfig::default() };
        let mut evidence = Evidence::new(bounds);
        for user in 0..5 {
            for page in 0..4 {
                evidence.submit(&name(page), UserId(user), false);
            }
        }
        assert_eq!(evidence.tracked(), 2);
        assert!(evidence.is_enough(&name(0)) && !evidence.is_enough(&name(3)));
        evidence.next_window();
        evidence.next_window();
        assert_eq!(evidence.tracked(), 0);
    }
}
