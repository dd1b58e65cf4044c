//! Replays a trace through a policy.
//!
//! A request hits the leading run of its blocks that are stored. Afterwards all its blocks are stored:
//! - blocks of the leading run are read, in order; stored blocks behind the first missing one are touched, because the
//!   engine computes them again and puts them;
//! - while a request runs, its blocks are in use, and do not go; if room is needed, the policy chooses among the others;
//! - if a request has more blocks than there is room for, the first are stored and the rest are not.

use super::trace::{Request, Trace};
use memkv_eviction::{Choice, Moment, Page, Policy, Want};

/// When and how much is evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Room {
    /// Just as many pages as a request needs.
    #[default]
    Exact,
    /// As a server does: above the high share of the capacity, down to the low one; and as many as a request needs
    /// if that is not enough.
    Watermarks { low: f64, high: f64 },
}

/// How a trace is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rules {
    pub(super) room: Room,
    /// The missing blocks of a request are put a moment after the others were read, and all that the policy is told of
    /// their place is that they follow each other. Otherwise a request uses all of its blocks at once.
    pub(super) apart: bool,
}

const ABSENT: u32 = u32::MAX;

/// A store of equal pages, which a policy watches over.
pub(super) struct Store<'p> {
    policy: &'p dyn Policy,
    capacity: usize,
    pages: Vec<Page>,
    /// Where a block rests in `pages`.
    at: Vec<u32>,
    /// The block of each of `pages`.
    blocks: Vec<u32>,
    /// The last request that used the block at each place.
    used_by: Vec<u32>,
    candidates: Vec<Page>,
    places: Vec<u32>,
    choice: Choice,
}

impl<'p> Store<'p> {
    pub(super) fn new(policy: &'p dyn Policy, capacity: usize, distinct: usize) -> Self {
        Self {
            policy,
            capacity,
            pages: Vec::new(),
            at: vec![ABSENT; distinct],
            blocks: Vec::new(),
            used_by: Vec::new(),
            candidates: Vec::new(),
            places: Vec::new(),
            choice: Choice::default(),
        }
    }

    /// Serves a request; returns how many of its blocks were hit.
    pub(super) fn serve(&mut self, number: u32, request: &Request, rules: Rules) -> usize {
        let stored = |block: &&u32| self.at[**block as usize] != ABSENT;
        let hits = request.blocks.iter().take_while(stored).count();
        let mut missing = 0;
        for (position, &block) in request.blocks.iter().enumerate() {
            match self.at[block as usize] {
                ABSENT => missing += 1,
                place => self.access(place as usize, number, request.now, position < hits),
            }
        }
        self.make_room(missing, number, request.now.ms, rules.room);
        let put = if rules.apart { (request.now.ms + 1).into() } else { request.now };
        let mut put_before = 0;
        for (position, &block) in (0..).zip(&request.blocks) {
            if self.at[block as usize] == ABSENT && self.pages.len() < self.capacity {
                self.insert(block, if rules.apart { put_before } else { position }, number, put);
                put_before += 1;
            }
        }
        hits
    }

    fn access(&mut self, place: usize, number: u32, now: Moment, read: bool) {
        let page = &mut self.pages[place];
        page.word = self.policy.accessed(page, now);
        page.last_access_ms = now.ms;
        page.hits += u32::from(read);
        self.used_by[place] = number;
    }

    fn insert(&mut self, block: u32, position: u32, number: u32, now: Moment) {
        let digest = digest(block);
        let times = (now.ms, now.ms);
        let mut page = Page {
            digest,
            word: 0,
            created_ms: times.0,
            last_access_ms: times.1,
            position,
            hits: 0,
            bytes: 1,
        };
        page.word = self.policy.inserted(&page, now.tag);
        self.at[block as usize] = u32::try_from(self.pages.len()).expect("blocks are numbered in 32 bits");
        self.pages.push(page);
        self.blocks.push(block);
        self.used_by.push(number);
    }

    fn make_room(&mut self, missing: usize, number: u32, now_ms: u64, room: Room) {
        let free = self.capacity - self.pages.len();
        let mut want = missing.saturating_sub(free);
        if let Room::Watermarks { low, high } = room {
            let after = (self.pages.len() + missing) as f64;
            if after > high * self.capacity as f64 {
                want = want.max((after - low * self.capacity as f64).ceil() as usize);
            }
        }
        if want == 0 {
            return;
        }
        if self.policy.wants_lesson() {
            self.policy.learn(&mut self.pages.iter().copied(), now_ms);
        }
        self.candidates.clear();
        self.places.clear();
        for (place, page) in (0_u32..).zip(&self.pages) {
            if self.used_by[place as usize] != number {
                self.candidates.push(*page);
                self.places.push(place);
            }
        }
        self.policy.choose(&self.candidates, Want::Pages(want), now_ms, &mut self.choice);
        for &(at, word) in &self.choice.words {
            self.pages[self.places[at as usize] as usize].word = word;
        }
        let mut gone: Vec<u32> = self.choice.evict.iter().map(|&at| self.places[at as usize]).collect();
        for &place in &gone {
            self.policy.evicted(&self.pages[place as usize], now_ms);
        }
        // From the back, so that the places of the others hold.
        gone.sort_unstable_by(|a, b| b.cmp(a));
        gone.iter().for_each(|&place| self.remove(place as usize));
    }

    fn remove(&mut self, place: usize) {
        self.at[self.blocks[place] as usize] = ABSENT;
        self.pages.swap_remove(place);
        self.blocks.swap_remove(place);
        self.used_by.swap_remove(place);
        if let Some(&moved) = self.blocks.get(place) {
            self.at[moved as usize] = u32::try_from(place).expect("places are numbered in 32 bits");
        }
    }
}

/// A digest as good as those of keys: the numbers of blocks are too regular.
fn digest(block: u32) -> u64 {
    let mut mixed = u64::from(block).wrapping_add(0x9E37_79B9_7F4A_7C15);
    for shift in [30, 27, 31] {
        mixed = (mixed ^ (mixed >> shift)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    }
    mixed
}

/// The tokens that a policy hits with room for `capacity` blocks.
pub(super) fn replay(trace: &Trace, policy: &dyn Policy, capacity: usize, rules: Rules) -> u64 {
    let mut store = Store::new(policy, capacity, trace.distinct());
    let mut tokens = 0;
    for (number, request) in (0..).zip(&trace.requests) {
        tokens += request.tokens(store.serve(number, request, rules));
    }
    tokens
}
