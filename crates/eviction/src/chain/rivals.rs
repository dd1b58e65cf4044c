//! Which ranking to follow: our own, our own with less doubt, LRU, S3-FIFO or SIEVE, whichever has hit most on this
//! traffic.
//!
//! Each ranking has a [played store](super::mini) of as many pages as the real one, of a sample of the digests if the
//! store is large. What is asked of the real store is noted, and played through all of them; so it is known which would
//! have hit how much. The real store follows a leader. Another becomes leader when it is ahead by more than chance and
//! by more than the way costs: pages that it would have and that are not here.
//!
//! If LRU leads, pages go in its order. If S3-FIFO or SIEVE leads, the pages go first that are not in its played store,
//! the longest unused before others. Of a store with more than [`PLAYED_PAGES`] pages only a sample is played, which does
//! not tell what S3-FIFO and SIEVE would do with the other pages: there only our own rankings and LRU compete. (Estimates
//! from sampled pages of the same age and number of uses were tried, and lost up to 10 %.)
//!
//! - Pages used at one moment are taken for one chain; only its leading run counts as hit.
//! - Nothing is played before the first lesson. Then the played stores start with the pages that there are.
//! - Notes are lost when two threads meet, and when nobody evicts for long; the next lesson makes up for that.

use super::learn::Worth;
use super::mini::{Mini, Ranking};
use super::seat::{self, Doubt, Seat};
use super::word::{Known, last_use};
use crate::{Choice, Page, Policy, PolicyKind, Want};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The classics, in the order of the played stores after our own two.
const CLASSICS: [PolicyKind; 3] = [PolicyKind::Lru, PolicyKind::S3Fifo, PolicyKind::Sieve];
const RANKINGS: usize = 2 + CLASSICS.len();
/// The numbers of our own ranking, of the same with less doubt, and of LRU.
const OWN: usize = 0;
const BOLD: usize = 1;
const LRU: usize = 2;
/// The most pages that are played; of a store of more every second one, and so on.
const PLAYED_PAGES: usize = 1 << 16;
/// Parts of the notes, so that threads seldom meet, and the most notes in each.
const PARTS: usize = 8;
const PART_NOTES: usize = 1 << 12;
/// In how many times the number of pages of the store uses are forgotten by a factor of e.
const MEMORY: f64 = 64.0;
/// A new leader is ahead by this many standard deviations, as if all requests were independent: our own ranking, which
/// is best on most traffic, leads until there is much evidence against it, and comes back without any...
const CHANCE_FROM_OWN: f64 = 1.5;
const CHANCE_TO_BOLD: f64 = 1.0;
const CHANCE_TO_OWN: f64 = 0.0;
const CHANCE: f64 = 0.5;
/// ...and by this share of the pages that it would have and the old leader does not.
const WAY: f64 = 0.2;
/// ...and, to leave our own rankings for a classic, by this many times what the store has hit less than if it had always
/// kept to the first of them; to take the second of them, by once that.
const DISTRUST: f64 = 2.0;
/// A store that holds fewer than this many chains of usual length keeps to our own ranking: there a single chain more or
/// less looks like a lead, and each change costs a large part of the store.
const CHAINS_MIN: f64 = 10.0;
/// While more pages than this go in a second nothing is played. A page that comes costs much there: each played store
/// looks at all of its pages to make room for a 128th of them, so the five together look at some 640 pages for each that
/// they miss. When pages go that fast there is better use for the processor.
const GONE_MAX: usize = 2048;
const SECOND_MS: u64 = 1000;

pub(super) struct Rivals {
    /// Whether anything is played yet.
    playing: AtomicBool,
    /// Of the digests one in this many, a power of two, is played.
    sample: AtomicU64,
    notes: Vec<Mutex<Vec<Page>>>,
    /// Notes were lost.
    lost: AtomicBool,
    game: Mutex<Game>,
}

struct Game {
    minis: [Mini; RANKINGS],
    classics: [Box<dyn Policy>; CLASSICS.len()],
    /// Pages that each played store has room for.
    capacity: usize,
    leader: usize,
    /// How many of the rankings compete, the first ones.
    rankings: usize,
    /// Hits of each, the older the less.
    hits: [f64; RANKINGS],
    /// Sum of the squares of how far two were apart at each time.
    spread: [[f64; RANKINGS]; RANKINGS],
    /// Pages that each would have and the leader does not.
    way: [usize; RANKINGS],
    /// What the real store hit, the older the less.
    real: f64,
    /// How many chains were used, and pages of them.
    chains: (f64, f64),
    /// Positions that are used at this moment, and which of the played stores have them, a bit each; the last is the real
    /// store's.
    open: Vec<(u32, u8)>,
    /// When that was.
    open_at: u64,
    seats: Vec<Seat>,
    pace: Pace,
}

/// How fast pages go.
#[derive(Default)]
struct Pace {
    since_ms: u64,
    gone: usize,
    is_high: bool,
}

impl Pace {
    /// So many more go; whether the pace is too high for playing.
    fn is_high(&mut self, more: usize, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.since_ms);
        if passed >= SECOND_MS {
            self.is_high = self.gone > GONE_MAX && passed < 2 * SECOND_MS;
            (self.since_ms, self.gone) = (now_ms, 0);
        }
        self.gone += more;
        self.is_high |= self.gone > GONE_MAX;
        self.is_high
    }
}

/// Our own ranking, as it is now.
struct Own<'w> {
    worth: &'w Worth,
    doubt: Doubt,
    seats: &'w mut Vec<Seat>,
}

impl Ranking for Own<'_> {
    fn used(&mut self, here: &mut Page, seen: &Page) {
        *here = *seen;
    }

    fn came(&mut self, _: &mut Page) {}

    fn went(&mut self, _: &Page, _: u64) {}

    fn choose(&mut self, pages: &[Page], want: Want, now_ms: u64, choice: &mut Choice) {
        seat::choose((self.worth, self.doubt), pages, want, now_ms, self.seats, choice);
    }
}

impl Rivals {
    pub(super) fn new(pages_max: usize) -> Self {
        let game = Game {
            minis: Default::default(),
            classics: CLASSICS.map(|kind| kind.build(pages_max.min(2 * PLAYED_PAGES))),
            capacity: 0,
            leader: OWN,
            rankings: RANKINGS,
            hits: Default::default(),
            spread: Default::default(),
            way: Default::default(),
            real: 0.0,
            chains: (0.0, 0.0),
            open: Vec::new(),
            open_at: 0,
            seats: Vec::new(),
            pace: Pace::default(),
        };
        Self {
            playing: AtomicBool::new(false),
            sample: AtomicU64::new(1),
            notes: (0..PARTS).map(|_| Mutex::default()).collect(),
            lost: AtomicBool::new(false),
            game: Mutex::new(game),
        }
    }

    fn is_played(&self, digest: u64) -> bool {
        in_sample(digest, self.sample.load(Ordering::Relaxed))
    }

    /// Notes that a page is used, at [`Page::last_access_ms`], and has this word since; `here` if the store has it.
    /// Never waits.
    pub(super) fn note(&self, page: &Page, here: bool) {
        if !self.playing.load(Ordering::Relaxed) || !self.is_played(page.digest) {
            return;
        }
        let part = &self.notes[(page.digest >> 60) as usize % PARTS];
        match part.try_lock() {
            Some(mut notes) if notes.len() < PART_NOTES => {
                notes.push(Page { hits: u32::from(here), ..*page });
            }
            _ => self.lost.store(true, Ordering::Relaxed),
        }
    }

    /// What a lesson shows all pages of the store to.
    pub(super) fn sampler(&self) -> Sampler {
        Sampler { sample: self.sample.load(Ordering::Relaxed), pages: Vec::new() }
    }

    /// The store has these pages.
    pub(super) fn learn(&self, seen: Sampler, worth: &Worth) {
        let game = &mut *self.game.lock();
        let Sampler { sample, mut pages } = seen;
        if self.sample.swap(sample, Ordering::Relaxed) != sample {
            game.minis.iter_mut().for_each(|mini| mini.retain(|digest| in_sample(digest, sample)));
        }
        if game.pace.is_high {
            return;
        }
        game.capacity = pages.len();
        game.rankings = if sample == 1 { RANKINGS } else { LRU + 1 };
        if game.leader >= game.rankings {
            game.leader = OWN;
        }
        if !self.playing.swap(true, Ordering::Relaxed) {
            game.start(&mut pages, worth);
        } else if self.lost.swap(false, Ordering::Relaxed) {
            game.play_all(&mut pages, worth, false);
        }
        game.measure();
    }

    /// As [`Policy::choose`].
    pub(super) fn choose(&self, worth: &Worth, pages: &[Page], want: Want, now_ms: u64, choice: &mut Choice) {
        let game = &mut *self.game.lock();
        let mut notes = Vec::new();
        self.notes.iter().for_each(|part| notes.append(&mut part.lock()));
        if game.pace.is_high(count_of(want, pages), now_ms) {
            self.playing.store(false, Ordering::Relaxed);
            game.leader = OWN;
            return seat::choose((worth, doubt(game.leader)), pages, want, now_ms, &mut game.seats, choice);
        }
        game.play_all(&mut notes, worth, true);
        if game.leader <= BOLD {
            return seat::choose((worth, doubt(game.leader)), pages, want, now_ms, &mut game.seats, choice);
        }
        if game.leader != LRU {
            game.foretell(count_of(want, pages), now_ms);
        }
        let Game { minis, leader, seats, .. } = game;
        let keeps = |page: &Page| *leader != LRU && minis[*leader].keeps(page.digest);
        seat::choose_by((worth, Doubt::CAREFUL), pages, now_ms, seats, choice, |choice, seats| {
            let ranked = (0_u64..).zip(seats).map(|(rank, seat)| {
                let at = seat.at();
                (u64::from(keeps(&pages[at as usize])), rank, at)
            });
            choice.smallest_of(pages, want, ranked);
        });
    }
}

/// Made of bits of the digest that neither sets nor tags of ghosts are made of.
fn in_sample(digest: u64, sample: u64) -> bool {
    (digest >> 24) & (sample - 1) == 0
}

/// About how many pages go if as much goes as is wanted.
fn count_of(want: Want, pages: &[Page]) -> usize {
    match want {
        Want::Pages(wanted) => wanted.min(pages.len()),
        Want::Bytes(wanted) => {
            let bytes: u64 = pages.iter().map(|page| u64::from(page.bytes)).sum();
            let share = wanted as f64 / bytes.max(1) as f64;
            (pages.len() as f64 * share.min(1.0)).ceil() as usize
        }
    }
}

/// Takes a sample of the pages of a store, of fewer digests if it would become too many.
pub(super) struct Sampler {
    sample: u64,
    pages: Vec<Page>,
}

impl Sampler {
    pub(super) fn see(&mut self, page: &Page) {
        if in_sample(page.digest, self.sample) {
            self.pages.push(*page);
        }
        while self.pages.len() > PLAYED_PAGES {
            self.sample *= 2;
            let sample = self.sample;
            self.pages.retain(|page| in_sample(page.digest, sample));
        }
    }
}

/// With how much doubt one of our own rankings judges.
fn doubt(number: usize) -> Doubt {
    if number == BOLD { Doubt::BOLD } else { Doubt::CAREFUL }
}

impl Game {
    /// Lets all played stores start with these pages, as if they had come and been used in this order.
    fn start(&mut self, pages: &mut [Page], worth: &Worth) {
        pages.sort_unstable_by_key(|page| (page.created_ms, u32::MAX - page.position));
        let first: Vec<Page> =
            pages.iter().map(|page| Page { last_access_ms: page.created_ms, ..*page }).collect();
        for group in first.chunk_by(|a, b| a.created_ms == b.created_ms) {
            self.play(group, worth);
        }
        let mut again: Vec<Page> =
            pages.iter().filter(|page| Known::from_word(page.word).uses > 1).copied().collect();
        self.play_all(&mut again, worth, false);
    }

    /// Plays uses in the order of time, and counts who hits, if that is wanted.
    fn play_all(&mut self, uses: &mut Vec<Page>, worth: &Worth, count: bool) {
        uses.sort_unstable_by_key(|page| (last_use(page), u32::MAX - page.position, page.digest));
        uses.dedup_by_key(|page| (last_use(page), page.digest));
        for group in uses.chunk_by(|a, b| last_use(a) == last_use(b)) {
            if count {
                self.count(group);
            }
            self.play(group, worth);
        }
    }

    fn play(&mut self, group: &[Page], worth: &Worth) {
        for own in [OWN, BOLD] {
            let ranking = &mut Own { worth, doubt: doubt(own), seats: &mut self.seats };
            self.minis[own].play(ranking, group, self.capacity);
        }
        for (mini, classic) in self.minis[LRU..self.rankings].iter_mut().zip(&mut self.classics) {
            mini.play(classic, group, self.capacity);
        }
    }

    /// So many pages go now, and others will come.
    fn foretell(&mut self, more: usize, now_ms: u64) {
        if let Some(classic) = self.leader.checked_sub(LRU) {
            self.minis[self.leader].foretell(&mut self.classics[classic], more, self.capacity, now_ms);
        }
    }

    /// Notes which of the played stores have the pages that are used.
    fn count(&mut self, group: &[Page]) {
        let at = last_use(&group[0]);
        if at != self.open_at {
            self.close();
            self.open_at = at;
        }
        for page in group {
            let has = |number: usize| u8::from(self.minis[number].holds(page.digest)) << number;
            let real = u8::from(page.hits > 0) << RANKINGS;
            self.open.push((page.position, real | (0..RANKINGS).map(has).sum::<u8>()));
        }
    }

    /// Counts the hits of what was used at one moment, and changes the leader if another is ahead.
    fn close(&mut self) {
        self.open.sort_unstable();
        let (mut running, mut hits, mut real) = (u8::MAX, [0.0; RANKINGS], 0.0);
        for &(_, has) in &self.open {
            running &= has;
            for (number, hits) in hits.iter_mut().enumerate() {
                *hits += f64::from(running >> number & 1);
            }
            real += f64::from(running >> RANKINGS & 1);
        }
        self.chains = (self.chains.0 + 1.0, self.chains.1 + self.open.len() as f64);
        let keep = (-(self.open.len() as f64) / (MEMORY * self.capacity.max(1) as f64)).exp();
        self.open.clear();
        self.real = self.real * keep + real;
        for a in 0..RANKINGS {
            self.hits[a] = self.hits[a] * keep + hits[a];
            for b in 0..RANKINGS {
                self.spread[a][b] = self.spread[a][b] * keep + (hits[a] - hits[b]).powi(2);
            }
        }
        if (self.capacity as f64) * self.chains.0 < CHAINS_MIN * self.chains.1 {
            self.leader = OWN;
            return;
        }
        let ahead = |number: usize| self.ahead(number);
        let best = (0..self.rankings).max_by(|&a, &b| ahead(a).total_cmp(&ahead(b))).unwrap_or(OWN);
        if ahead(best) > 0.0 {
            self.leader = best;
            self.measure();
        }
    }

    /// By how many hits a ranking is farther ahead of the leader than it must be to lead.
    fn ahead(&self, number: usize) -> f64 {
        let lost = (self.hits[OWN] - self.real).max(0.0);
        let (deviations, cost) = match (self.leader, number) {
            (_, OWN) => (CHANCE_TO_OWN, 0.0),
            (OWN, BOLD) => (CHANCE_TO_BOLD, lost),
            (OWN | BOLD, LRU..) => (CHANCE_FROM_OWN, DISTRUST * lost),
            _ => (CHANCE, 0.0),
        };
        let chance = deviations * self.spread[number][self.leader].sqrt();
        self.hits[number] - self.hits[self.leader] - chance - cost - WAY * self.way[number] as f64
    }

    /// Counts how far it is from the leader to each of the others.
    fn measure(&mut self) {
        let leader = &self.minis[self.leader];
        let way = |mini: &Mini| mini.digests().filter(|&digest| !leader.keeps(digest)).count();
        self.way = std::array::from_fn(|number| way(&self.minis[number]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::learn::{Seen, table};
    use crate::chain::tests::page;
    use crate::chain::word::Birth;

    const S3_FIFO: usize = 3;

    /// A store of 100 pages; at each lesson it has them all.
    fn rivals() -> (Rivals, Worth, Vec<Page>) {
        let (rivals, worth) = (Rivals::new(100), Seen::new().worth(&table(), 1.0));
        let pages: Vec<Page> = (0..100).map(|number| page(number, number)).collect();
        let mut sampler = rivals.sampler();
        pages.iter().for_each(|page| sampler.see(page));
        rivals.learn(sampler, &worth);
        (rivals, worth, pages)
    }

    /// Lets one ranking alone keep a page that is used again and again, the eighth.
    fn favour(number: usize) -> (Rivals, Worth, Vec<Page>) {
        let (rivals, worth, pages) = rivals();
        let (mut choice, kept) = (Choice::default(), pages[7]);
        assert_eq!(rivals.game.lock().leader, OWN);
        let only_one_keeps = || {
            for (other, mini) in rivals.game.lock().minis.iter_mut().enumerate() {
                mini.retain(|digest| other == number || digest != kept.digest);
            }
        };
        for now_ms in 200..300 {
            only_one_keeps();
            rivals.note(&Page { last_access_ms: now_ms, ..kept }, true);
            rivals.choose(&worth, &pages, Want::Pages(0), now_ms, &mut choice);
        }
        (rivals, worth, pages)
    }

    #[test]
    fn who_hits_more_leads_and_its_pages_stay() {
        let (rivals, worth, pages) = favour(S3_FIFO);
        let (mut choice, kept) = (Choice::default(), pages[7]);
        assert_eq!(rivals.game.lock().leader, S3_FIFO);
        // Though it was used longest ago as far as the store knows.
        let shown: Vec<Page> =
            pages.iter().map(|page| Page { last_access_ms: page.created_ms + 50, ..*page }).collect();
        let shown: Vec<Page> =
            shown.iter().map(|page| if page.digest == kept.digest { kept } else { *page }).collect();
        rivals.choose(&worth, &shown, Want::Pages(9), 300, &mut choice);
        assert_eq!(choice.evict.len(), 9);
        assert!(!choice.evict.contains(&7), "{:?}", choice.evict);
    }

    #[test]
    fn less_doubt_leads_where_it_hits_more() {
        // A page behind one that many had used, and an older one that was used twice.
        let made = |number, birth, uses, last_access_ms| {
            let word = Known { birth, uses, ..Known::default() }.word();
            Page { word, last_access_ms, ..page(number, 100) }
        };
        let shown = [made(600, Birth::Branch, 1, 202), made(601, Birth::New, 2, 201)];
        for (favourite, goes) in [(OWN, 0), (BOLD, 1)] {
            let (rivals, worth, _) = favour(favourite);
            assert_eq!(rivals.game.lock().leader, favourite);
            let mut choice = Choice::default();
            rivals.choose(&worth, &shown, Want::Pages(1), 300, &mut choice);
            assert_eq!(choice.evict, [goes]);
        }
    }

    #[test]
    fn who_has_lost_by_following_keeps_to_our_own() {
        for (other, here) in [(BOLD, false), (BOLD, true), (LRU, false), (LRU, true)] {
            let (rivals, worth, pages) = rivals();
            let mut choice = Choice::default();
            // All rankings have most of what is used, one page only the other; the real store has all of it or nothing.
            for now_ms in 200..300 {
                for (number, mini) in rivals.game.lock().minis.iter_mut().enumerate() {
                    mini.retain(|digest| number == other || digest != pages[7].digest);
                }
                for (position, at) in [(0, 3), (1, 7)] {
                    rivals.note(&Page { last_access_ms: now_ms, position, ..pages[at] }, here);
                }
                rivals.choose(&worth, &pages, Want::Pages(0), now_ms, &mut choice);
            }
            assert_eq!(rivals.game.lock().leader, if here { other } else { OWN });
        }
    }

    #[test]
    fn equals_do_not_take_turns() {
        let (rivals, worth, pages) = rivals();
        let mut choice = Choice::default();
        for now_ms in 200..400 {
            rivals.note(&Page { last_access_ms: now_ms, ..pages[now_ms as usize % 100] }, true);
            rivals.choose(&worth, &pages, Want::Pages(0), now_ms, &mut choice);
        }
        let game = rivals.game.lock();
        assert_eq!(game.leader, OWN);
        assert!(game.hits.iter().all(|hits| *hits > 50.0), "{:?}", game.hits);
    }

    #[test]
    fn what_one_misses_does_not_count_against_another_of_that_millisecond() {
        let (rivals, worth, pages) = rivals();
        let (mut choice, stranger) = (Choice::default(), page(500, 200));
        let tagged = |page: &Page, tag| {
            let word = Known { tag, ..Known::from_word(page.word) }.word();
            Page { word, last_access_ms: 200, ..*page }
        };
        rivals.note(&tagged(&stranger, 1), false);
        rivals.note(&Page { position: 1, ..tagged(&pages[3], 1) }, true);
        rivals.note(&Page { position: 2, ..tagged(&pages[4], 2) }, true);
        rivals.note(&tagged(&pages[5], 3), true);
        rivals.choose(&worth, &pages, Want::Pages(0), 201, &mut choice);
        let game = &mut *rivals.game.lock();
        game.close();
        assert!(game.hits.iter().all(|hits| (1.9..=2.0).contains(hits)), "{:?}", game.hits);
    }

    #[test]
    fn of_many_pages_a_sample_is_played() {
        let (rivals, worth, _) = rivals();
        let mut sampler = rivals.sampler();
        (0..3 * PLAYED_PAGES as u64).for_each(|number| sampler.see(&page(number, 5)));
        let count = sampler.pages.len();
        assert!((PLAYED_PAGES / 2..=PLAYED_PAGES).contains(&count), "{count}");
        assert_eq!(sampler.sample, 4);
        rivals.learn(sampler, &worth);
        let game = rivals.game.lock();
        assert_eq!(game.capacity, count);
        assert!(game.minis.iter().all(|mini| mini.digests().all(|digest| in_sample(digest, 4))));
        assert!(game.minis[LRU].digests().count() > 10);
        assert_eq!(game.rankings, 3, "of the others a sample does not tell enough");
    }

    #[test]
    fn lost_notes_are_made_up_for() {
        let (rivals, worth, pages) = rivals();
        let late: Vec<Page> = pages.iter().map(|page| Page { last_access_ms: 900, ..*page }).collect();
        for _ in 0..=PARTS * PART_NOTES / pages.len() {
            late.iter().for_each(|page| rivals.note(page, true));
        }
        assert!(rivals.lost.load(Ordering::Relaxed));
        let mut sampler = rivals.sampler();
        let stranger = page(500, 950);
        late.iter().skip(1).chain([&stranger]).for_each(|page| sampler.see(page));
        rivals.learn(sampler, &worth);
        assert!(!rivals.lost.load(Ordering::Relaxed));
        assert!(rivals.game.lock().minis.iter().all(|mini| mini.keeps(stranger.digest)));
    }

    #[test]
    fn nothing_is_played_while_pages_go_too_fast() {
        let mut pace = Pace::default();
        assert!(!pace.is_high(GONE_MAX, 10_000));
        assert!(pace.is_high(1, 10_999), "more than that in one second");
        assert!(pace.is_high(0, 11_000), "the second before was too fast");
        assert!(!pace.is_high(0, 12_000));
        assert!(pace.is_high(GONE_MAX + 1, 12_500));
        assert!(!pace.is_high(0, 15_000), "long ago");
    }
}
