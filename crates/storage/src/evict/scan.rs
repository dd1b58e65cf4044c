//! One scan of the pages that may go, what was chosen of it for now, and what was chosen ahead.
//!
//! What a scan costs grows with the store, and a store that is written to fast needs room many times a second. So what
//! a scan of many pages chooses beyond what is wanted now serves the next rounds, for a second at most; a page that was
//! wanted since is passed over.

use memkv_eviction::{Choice, Page, Policy, Want};
use memkv_memory::SlotId;
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Of a scan that saw only a part of the pages, at most one in this many goes.
const PARTIAL_SHARE: usize = 8;
/// From this many pages on a scan is worth keeping: what it chose beyond what was wanted serves the next rounds.
const KEEP_PAGES: usize = 1 << 16;
/// How long a scan is kept, and how soon the next has to follow for more to be chosen than is wanted.
const KEEP_MS: u64 = 1000;
/// How much is chosen then: one in this many of the pages that were seen.
const KEEP_SHARE: usize = 32;

/// The working memory of a round.
#[derive(Default)]
pub(super) struct Scan {
    /// Pages that may go, and where they are.
    pub(super) pages: Vec<Page>,
    pub(super) slots: Vec<SlotId>,
    /// Which of them go.
    pub(super) choice: Choice,
    /// Those that go in this round, and where they are.
    pub(super) going: Vec<(Page, SlotId)>,
    /// What was scanned last, one class or all, and when.
    last: Option<(Option<u32>, u64)>,
    /// The scan ended before it had seen all pages.
    pub(super) partial: bool,
    /// The chunk at which the next scan starts.
    pub(super) hand: u32,
}

impl Scan {
    /// Lets the policy choose. Fewer than wanted if the scan saw only a part of the pages, because the coldest of a
    /// part are not the coldest of all.
    pub(super) fn choose(&mut self, policy: &dyn Policy, want: Want, now_ms: u64) {
        policy.choose(&self.pages, want, now_ms, &mut self.choice);
        if self.partial {
            self.choice.evict.truncate(self.pages.len() / PARTIAL_SHARE);
        }
        self.going.clear();
        let chosen = self.choice.evict.iter().map(|&at| (self.pages[at as usize], self.slots[at as usize]));
        self.going.extend(chosen);
    }

    /// As [`Scan::choose`], for one class or all. If the last scan was one of the same a moment ago and there are many
    /// pages, chooses for some rounds ahead; those that do not go now are `ahead`.
    pub(super) fn choose_ahead(
        &mut self,
        policy: &dyn Policy,
        class: Option<u32>,
        want: Want,
        now_ms: u64,
        ahead: &Mutex<Ahead>,
    ) {
        let last = self.last.replace((class, now_ms));
        let hurry = last.is_some_and(|(of, at_ms)| of == class && now_ms.saturating_sub(at_ms) < KEEP_MS);
        if !hurry || self.pages.len() < KEEP_PAGES {
            ahead.lock().left.clear();
            return self.choose(policy, want, now_ms);
        }
        let all: u64 = self.pages.iter().map(|page| u64::from(page.bytes)).sum();
        let more = match want {
            Want::Pages(pages) => Want::Pages(pages.max(self.pages.len() / KEEP_SHARE)),
            Want::Bytes(bytes) => Want::Bytes(bytes.max(all / KEEP_SHARE as u64)),
        };
        self.choose(policy, more, now_ms);
        let now = enough(&self.going, want).unwrap_or(self.going.len());
        let left = VecDeque::from(self.going.split_off(now));
        *ahead.lock() = Ahead { class, at_ms: now_ms, chosen: left.len(), left };
    }

    /// Leaves out pages in slots for which `is` does not say so.
    pub(super) fn retain(&mut self, is: impl Fn(SlotId) -> bool) {
        let mut kept = 0;
        for at in 0..self.pages.len() {
            if is(self.slots[at]) {
                (self.pages[kept], self.slots[kept]) = (self.pages[at], self.slots[at]);
                kept += 1;
            }
        }
        self.pages.truncate(kept);
        self.slots.truncate(kept);
    }
}

/// Pages that a scan chose beyond what was wanted, the first to go first. They wait for the next rounds, and for
/// reservations that have to make room themselves while a round is still scanning.
#[derive(Default)]
pub(super) struct Ahead {
    /// What was scanned, one class or all, and when.
    pub(super) class: Option<u32>,
    pub(super) at_ms: u64,
    /// How many there were.
    pub(super) chosen: usize,
    pub(super) left: VecDeque<(Page, SlotId)>,
}

impl Ahead {
    /// Takes as many as are wanted into `going`. `false` if they are of something else, of too long ago, or so few that it is
    /// time for the next scan.
    pub(super) fn take(
        &mut self,
        class: Option<u32>,
        want: Want,
        now_ms: u64,
        going: &mut Vec<(Page, SlotId)>,
    ) -> bool {
        let is_new = self.class == class && now_ms.saturating_sub(self.at_ms) < KEEP_MS;
        if !is_new || self.left.len() * 4 < self.chosen {
            return false;
        }
        let Some(count) = enough(self.left.make_contiguous(), want) else { return false };
        going.clear();
        going.extend(self.left.drain(..count));
        true
    }

    /// The next page that goes for a page of this class, or of any.
    pub(super) fn next(&mut self, class: Option<u32>, now_ms: u64) -> Option<(Page, SlotId)> {
        let fits = class.is_none() || self.class == class;
        if !fits || now_ms.saturating_sub(self.at_ms) >= KEEP_MS {
            return None;
        }
        self.left.pop_front()
    }
}

/// How many of these pages, from the first on, are what is wanted; `None` if all of them are not enough.
fn enough(pages: &[(Page, SlotId)], want: Want) -> Option<usize> {
    let mut bytes = 0;
    for (count, (page, _)) in pages.iter().enumerate() {
        if want.is_met(count, bytes) {
            return Some(count);
        }
        bytes += u64::from(page.bytes);
    }
    want.is_met(pages.len(), bytes).then_some(pages.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scan of so many pages of 10 bytes; the first came first.
    fn scanned(pages: usize) -> Scan {
        let page = |at: usize| Page {
            digest: at as u64,
            word: at as u64,
            created_ms: at as u64,
            last_access_ms: at as u64,
            position: 0,
            hits: 0,
            bytes: 10,
        };
        let slots = vec![SlotId::from_bits(0); pages];
        Scan { pages: (0..pages).map(page).collect(), slots, ..Scan::default() }
    }

    #[test]
    fn rounds_that_follow_each_other_share_the_scan_of_many_pages() {
        let policy = memkv_eviction::PolicyKind::Lru.build(KEEP_PAGES);
        let (class, first, more) = (Some(4096), Want::Pages(100), KEEP_PAGES / KEEP_SHARE);
        let (mut scan, ahead) = (scanned(KEEP_PAGES), Mutex::<Ahead>::default());
        let left = || ahead.lock().left.len();
        scan.choose_ahead(&*policy, class, first, 5000, &ahead);
        assert_eq!((scan.going.len(), left()), (100, 0), "nobody is in a hurry");
        scan.choose_ahead(&*policy, class, first, 5999, &ahead);
        assert_eq!((scan.going.len(), left()), (100, more - 100));

        let take = |class, want, now_ms| {
            let mut going = Vec::new();
            let done = ahead.lock().take(class, want, now_ms, &mut going);
            let pages: Vec<u64> = going.iter().map(|(page, _)| page.digest).collect();
            done.then_some(pages)
        };
        assert_eq!(take(None, first, 6000), None, "that is something else");
        assert_eq!(take(class, first, 6999), None, "that is too long ago");
        assert_eq!(take(class, Want::Pages(more), 6998), None, "so many are not left");
        assert_eq!(take(class, Want::Bytes(1995), 6998), Some((100..300).collect()));
        let next = |class, now_ms| ahead.lock().next(class, now_ms).map(|(page, _)| page.digest);
        assert_eq!(
            (next(class, 6998), next(None, 6998)),
            (Some(300), Some(301)),
            "reservations take of the same"
        );
        assert_eq!((next(Some(1), 6998), next(class, 6999)), (None, None));
        assert!(take(class, Want::Pages(left() - (more - 100) / 4 + 1), 6998).is_some());
        assert_eq!(take(class, Want::Pages(1), 6998), None, "it is time for the next scan");

        scan.choose_ahead(&*policy, class, first, 6999, &ahead);
        assert_eq!((scan.going.len(), left()), (100, 0), "a second later is no hurry");
        let mut few = scanned(KEEP_PAGES - 1);
        for now_ms in [7000, 7001] {
            few.choose_ahead(&*policy, class, first, now_ms, &ahead);
            assert_eq!((few.going.len(), left()), (100, 0));
        }
        few.choose_ahead(&*policy, class, Want::Bytes(u64::MAX), 7002, &ahead);
        assert_eq!(few.going.len(), KEEP_PAGES - 1);
    }
}
