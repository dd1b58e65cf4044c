//! A store that is only played: which pages would be there if a ranking had always chosen.
//!
//! It serves the same uses as the real store, by the same rules: a page that is used and not there comes, those that
//! are used at this moment do not go, and the ranking chooses among the others. No bytes are kept, only [`Page`]s.

use super::word::Known;
use crate::{Choice, Moment, Page, Policy, Want};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A large store makes room for one in this many of its pages at once, so that a choice is not made for every use.
const BATCH_SHARE: usize = 128;

/// Digests are as good as random: they need no hash.
#[derive(Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// What chooses in a played store.
pub(super) trait Ranking {
    /// A page that is there is used; `seen` is what the real store knows of it since.
    fn used(&mut self, here: &mut Page, seen: &Page);
    /// A page comes.
    fn came(&mut self, page: &mut Page);
    /// A page went.
    fn went(&mut self, page: &Page, now_ms: u64);
    /// As [`Policy::choose`].
    fn choose(&mut self, pages: &[Page], want: Want, now_ms: u64, choice: &mut Choice);
}

impl Ranking for Box<dyn Policy> {
    fn used(&mut self, here: &mut Page, seen: &Page) {
        let tag = Known::from_word(seen.word).tag;
        here.word = self.accessed(here, Moment { ms: seen.last_access_ms, tag });
        here.last_access_ms = seen.last_access_ms;
    }

    fn came(&mut self, page: &mut Page) {
        page.created_ms = page.last_access_ms;
        page.word = self.inserted(page, Known::from_word(page.word).tag);
    }

    fn went(&mut self, page: &Page, now_ms: u64) {
        self.evicted(page, now_ms);
    }

    fn choose(&mut self, pages: &[Page], want: Want, now_ms: u64, choice: &mut Choice) {
        (**self).choose(pages, want, now_ms, choice);
    }
}

#[derive(Default)]
pub(super) struct Mini {
    pages: Vec<Page>,
    at: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    /// Pages that go if as much comes as was foretold, the first to go first.
    leaving: Vec<Page>,
    shown: Vec<Page>,
    places: Vec<u32>,
    choice: Choice,
}

impl Mini {
    /// Whether a page is there and will be when what was [foretold](Mini::foretell) has come.
    pub(super) fn keeps(&self, digest: u64) -> bool {
        self.at.contains_key(&digest)
    }

    /// Whether a page is there.
    pub(super) fn holds(&self, digest: u64) -> bool {
        self.keeps(digest) || self.leaving.iter().any(|page| page.digest == digest)
    }

    /// The digests of all pages that are kept.
    pub(super) fn digests(&self) -> impl Iterator<Item = u64> {
        self.pages.iter().map(|page| page.digest)
    }

    /// Forgets the pages that are not wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        self.leaving.retain(|page| wanted(page.digest));
        for place in (0..self.pages.len()).rev() {
            if !wanted(self.pages[place].digest) {
                self.remove(place);
            }
        }
    }

    /// Uses pages at one time. Those that are not there come, as far as there is room.
    pub(super) fn play(&mut self, ranking: &mut dyn Ranking, group: &[Page], capacity: usize) {
        let Some(now_ms) = group.first().map(|page| page.last_access_ms) else { return };
        let missing = self.settle(ranking, group, capacity, now_ms);
        for page in group {
            if let Some(&place) = self.at.get(&page.digest) {
                ranking.used(&mut self.pages[place as usize], page);
            }
        }
        if self.pages.len() + missing > capacity {
            let want = (self.pages.len() + missing - capacity).max(capacity / BATCH_SHARE);
            for page in self.take(ranking, want, now_ms) {
                ranking.went(&page, now_ms);
            }
        }
        for page in group {
            if !self.keeps(page.digest) && self.pages.len() < capacity {
                let mut page = *page;
                ranking.came(&mut page);
                self.push(page);
            }
        }
    }

    /// About `more` pages will come: sets those apart that will go for them.
    pub(super) fn foretell(&mut self, ranking: &mut dyn Ranking, more: usize, capacity: usize, now_ms: u64) {
        let more = more.min(capacity);
        let want = (self.pages.len() + more).saturating_sub(capacity);
        if want > 0 {
            let taken = self.take(ranking, want, now_ms);
            self.leaving.extend(taken);
        }
    }

    /// Ends what was foretold: pages that are wanted, or for which there is room, come back, the others go. Returns how
    /// many of the group are not there.
    fn settle(&mut self, ranking: &mut dyn Ranking, group: &[Page], capacity: usize, now_ms: u64) -> usize {
        let mut leaving = std::mem::take(&mut self.leaving);
        let mut missing = 0;
        for page in group.iter().filter(|page| !self.at.contains_key(&page.digest)).collect::<Vec<_>>() {
            match leaving.iter().position(|gone| gone.digest == page.digest) {
                Some(place) => {
                    let back = leaving.remove(place);
                    self.push(back);
                }
                None => missing += 1,
            }
        }
        while self.pages.len() + missing < capacity
            && let Some(page) = leaving.pop()
        {
            self.push(page);
        }
        leaving.iter().for_each(|page| ranking.went(page, now_ms));
        missing
    }

    /// Takes pages out that are not used at this moment; the first to go first.
    fn take(&mut self, ranking: &mut dyn Ranking, want: usize, now_ms: u64) -> Vec<Page> {
        self.shown.clear();
        self.places.clear();
        for (place, page) in (0_u32..).zip(&self.pages) {
            if page.last_access_ms != now_ms {
                self.shown.push(*page);
                self.places.push(place);
            }
        }
        ranking.choose(&self.shown, Want::Pages(want), now_ms, &mut self.choice);
        for &(at, word) in &self.choice.words {
            self.pages[self.places[at as usize] as usize].word = word;
        }
        let mut places: Vec<u32> = self.choice.evict.iter().map(|&at| self.places[at as usize]).collect();
        let taken = places.iter().map(|&place| self.pages[place as usize]).collect();
        // From the back, so that the places of the others hold.
        places.sort_unstable_by(|a, b| b.cmp(a));
        places.iter().for_each(|&place| self.remove(place as usize));
        taken
    }

    fn push(&mut self, page: Page) {
        let place = u32::try_from(self.pages.len()).expect("a played store is small");
        self.at.insert(page.digest, place);
        self.pages.push(page);
    }

    fn remove(&mut self, place: usize) {
        let page = self.pages.swap_remove(place);
        self.at.remove(&page.digest);
        if let Some(moved) = self.pages.get(place) {
            self.at.insert(moved.digest, u32::try_from(place).expect("a played store is small"));
        }
    }
}
