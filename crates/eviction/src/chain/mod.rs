//! Our own policy, the default: evicts what is least likely to be used soon, as learned from the traffic.
//!
//! - A page's class is its number of uses and the mean of its last gaps; of a page that was used once, what it [came
//!   behind](seat): nothing, a page that had been used once, as in a conversation, or a page that many had used, as after
//!   a system prompt. What pages of each class and age are worth is [learned](learn) while the store runs; before that a
//!   use is taken to become rarer as time passes.
//! - A page that went is [remembered](ghosts), so that one that comes back is no stranger, and so that the policy
//!   learns of uses that it missed.
//! - A page without its predecessors is of no use. Pages that were used together last are taken for one chain, in which
//!   none is worth less than a deeper one; of equally good ones the deepest goes first.
//! - Nothing is measured against a constant time or number of pages: ages are in logarithmic buckets, and lessons come
//!   with every fifth of the store that was replaced.
//!
//! - Where a classic policy hits more, the store [follows](rivals) it.
//!
//! A use soon after another is the same use: an engine asks whether a page exists, reads it, and puts it again.

mod age;
mod ghosts;
mod learn;
mod mini;
mod rivals;
mod seat;
#[cfg(test)]
mod tests;
mod word;

use crate::{Choice, Moment, Page, Policy, Want};
use ghosts::{Ghosts, upper};
use learn::{Seen, Worth, table};
use mini::AsIs;
use parking_lot::{Mutex, RwLock};
use rivals::Rivals;
use seat::worth_of;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use word::{CLASSES, Known};

/// Pages that went and are remembered, per page that the store has room for.
const GHOSTS_PER_PAGE: usize = 8;
/// The most pages that are learned from: in a larger store a sample.
const SAMPLE_PAGES: usize = 1 << 16;
/// A lesson comes when this share of the store was replaced.
const LESSONS_PER_TURNOVER: u64 = 5;
/// Uses within this share of the time in which the store is replaced are one.
const SAME_USE_SHARE: u64 = 1024;
/// Counters that requests share, so that cores seldom meet.
const STRIPES: usize = 8;
/// What a use per ms is worth, so that whole numbers tell rare uses apart.
const WORTH_OF_ONE: f64 = 1e15;

/// The policy. See the [module](self).
pub(crate) struct Chain {
    ghosts: Ghosts,
    /// Uses since the last lesson, by stripe, class and bucket.
    uses: Vec<AtomicU32>,
    /// Lives that ended since the last lesson because the page was forgotten, by class and bucket.
    forgotten: Vec<AtomicU32>,
    /// Of the digests one in this many, a power of two, is learned from.
    sample: u64,
    came: AtomicU64,
    /// Gaps below this are no gaps.
    same_use_ms: AtomicU64,
    /// How many pages will have come when a lesson is due.
    next_lesson: AtomicU64,
    lesson: Mutex<Lesson>,
    worth: RwLock<Worth>,
    rivals: Rivals,
    /// New words of the pages that go, by digest.
    going: Mutex<Words>,
}

type Words = HashMap<u64, u64, BuildHasherDefault<AsIs>>;

/// Whether pages of this position are learned from: of long chains two in each octave of positions. A chain is used as a
/// whole, so all of its pages tell the same; without this one long prompt that is repeated would outvote many short ones.
fn is_learned(position: u32) -> bool {
    let step = (position / 2).max(1).ilog2();
    position & ((1 << step) - 1) == 0
}

struct Lesson {
    seen: Seen,
    /// Pages that had come by the last lesson, and its time.
    came: u64,
    at_ms: u64,
}

impl Chain {
    pub(crate) fn new(pages_max: usize) -> Self {
        let counters = |count: usize| (0..count).map(|_| AtomicU32::new(0)).collect();
        let seen = Seen::new();
        let worth = seen.worth(&table(), 1.0);
        Self {
            ghosts: Ghosts::new(pages_max * GHOSTS_PER_PAGE),
            uses: counters(STRIPES * CLASSES * age::BUCKETS),
            forgotten: counters(CLASSES * age::BUCKETS),
            sample: (pages_max / SAMPLE_PAGES).next_power_of_two() as u64,
            came: AtomicU64::new(0),
            same_use_ms: AtomicU64::new(0),
            next_lesson: AtomicU64::new(0),
            lesson: Mutex::new(Lesson { seen, came: 0, at_ms: 0 }),
            worth: RwLock::new(worth),
            rivals: Rivals::new(pages_max),
            going: Mutex::default(),
        }
    }

    /// Whether the policy learns from a page. The sample is made of the upper half of the digest, of bits that the
    /// stripe is not made of.
    fn learns_from(&self, digest: u64, position: u32) -> bool {
        u64::from(upper(digest) >> 8) & (self.sample - 1) == 0 && is_learned(position)
    }

    /// What is known of a page after a use that came `gap_ms` after the last.
    fn used(&self, page: &Page, known: Known, gap_ms: u64) -> Known {
        if gap_ms < self.same_use_ms.load(Ordering::Relaxed) {
            return known;
        }
        if self.learns_from(page.digest, page.position) {
            let stripe = upper(page.digest) as usize % STRIPES;
            let at = (stripe * CLASSES + known.class()) * age::BUCKETS + age::bucket(gap_ms);
            self.uses[at].fetch_add(1, Ordering::Relaxed);
        }
        known.used(gap_ms)
    }

    /// Takes what was counted since the last lesson.
    fn take_counts(&self, seen: &mut Seen) {
        // Most are 0, and to look is cheaper than to take.
        let take = |counter: &AtomicU32| match counter.load(Ordering::Relaxed) {
            0 => 0.0,
            _ => f64::from(counter.swap(0, Ordering::Relaxed)),
        };
        for (at, counter) in self.uses.iter().enumerate() {
            let (class, bucket) = (at / age::BUCKETS % CLASSES, at % age::BUCKETS);
            let uses = take(counter);
            seen.uses[class][bucket] += uses;
            seen.ended[class][bucket] += uses;
        }
        for (at, counter) in self.forgotten.iter().enumerate() {
            seen.ended[at / age::BUCKETS][at % age::BUCKETS] += take(counter);
        }
    }
}

impl Policy for Chain {
    fn inserted(&self, page: &Page, tag: u16) -> u64 {
        self.came.fetch_add(1, Ordering::Relaxed);
        let known = self.ghosts.take(page.digest).map_or(Known::FIRST, |ghost| {
            self.used(page, ghost.known(), page.created_ms.saturating_sub(ghost.last_ms))
        });
        let word = Known { tag, ..known }.word();
        self.rivals.note(&Page { word, ..*page }, false);
        word
    }

    fn accessed(&self, page: &Page, now: Moment) -> u64 {
        let gap_ms = now.ms.saturating_sub(page.last_access_ms);
        let known = self.used(page, Known::from_word(page.word), gap_ms);
        let word = Known { tag: now.tag, ..known }.word();
        self.rivals.note(&Page { word, last_access_ms: now.ms, ..*page }, true);
        word
    }

    fn evicted(&self, page: &Page, now_ms: u64) {
        let seen = Known::from_word(page.word);
        // Unless the page was used since.
        let noted = self.going.lock().remove(&page.digest).map(Known::from_word);
        let known = noted.filter(|noted| noted.uses == seen.uses).unwrap_or(seen);
        let learned = self.learns_from(page.digest, page.position);
        let forgotten = self.ghosts.add(page.digest, known, page.last_access_ms, learned);
        if let Some(ghost) = forgotten.filter(|ghost| ghost.learned) {
            let bucket = age::bucket(now_ms.saturating_sub(ghost.last_ms));
            self.forgotten[ghost.known().class() * age::BUCKETS + bucket].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn worth(&self, page: &Page, now_ms: u64) -> u64 {
        (worth_of(&self.worth.read(), page, now_ms) * WORTH_OF_ONE) as u64
    }

    fn choose(&self, pages: &[Page], want: Want, now_ms: u64, choice: &mut Choice) {
        self.rivals.choose(&self.worth.read(), pages, want, now_ms, choice);
        // A page that goes needs no word in its record, but its ghost does.
        let mut going = self.going.lock();
        going.clear();
        let mut gone = choice.evict.clone();
        gone.sort_unstable();
        choice.words.retain(|&(at, word)| {
            let goes = gone.binary_search(&at).is_ok();
            if goes {
                going.insert(pages[at as usize].digest, word);
            }
            !goes
        });
    }

    fn wants_lesson(&self) -> bool {
        self.came.load(Ordering::Relaxed) >= self.next_lesson.load(Ordering::Relaxed)
    }

    fn learn(&self, pages: &mut dyn Iterator<Item = Page>, now_ms: u64) {
        let lesson = &mut *self.lesson.lock();
        let (mut living, mut times, mut stored) = (table(), Vec::new(), 0);
        let mut alive = |known: Known, last_ms: u64| {
            living[known.class()][age::bucket(now_ms.saturating_sub(last_ms))] += 1.0;
        };
        let mut sampler = self.rivals.sampler();
        for page in pages {
            stored += 1;
            sampler.see(&page);
            if self.learns_from(page.digest, page.position) {
                alive(Known::from_word(page.word), page.last_access_ms);
                times.push(page.last_access_ms);
            }
        }
        self.ghosts.each(|ghost| {
            if ghost.learned {
                alive(ghost.known(), ghost.last_ms);
            }
        });
        let sampled = times.len();
        times.sort_unstable();
        times.dedup();
        self.take_counts(&mut lesson.seen);
        *self.worth.write() = lesson.seen.worth(&living, sampled as f64 / times.len().max(1) as f64);
        self.rivals.learn(sampler, &self.worth.read());
        lesson.seen.fade();

        let came = self.came.load(Ordering::Relaxed);
        let turnover_ms = now_ms.saturating_sub(lesson.at_ms) * stored / (came - lesson.came).max(1);
        self.same_use_ms.store(turnover_ms / SAME_USE_SHARE, Ordering::Relaxed);
        (lesson.came, lesson.at_ms) = (came, now_ms);
        self.next_lesson.store(came + (stored / LESSONS_PER_TURNOVER).max(1), Ordering::Relaxed);
    }
}
