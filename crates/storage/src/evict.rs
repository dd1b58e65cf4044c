//! Eviction: who goes when room is needed.
//!
//! A round runs in the background. It looks at the classes that pages arrived in since the last one; a class with too
//! few slots left gets room from whichever is colder: its own coldest pages, or the coldest chunk of another class. So
//! the memory follows a change of model by itself, and two models in use keep what they use. Then, if the whole store
//! is above its high mark, the coldest pages of all classes go.
//!
//! Coldness is what the [policy](crate::policy) says about the records of the slots, read without any lock: an
//! approximation, which costs one bounded scan per round and nothing on the request path. A page that is held by a
//! reader is passed over; only if its whole chunk goes is it unlinked, and its slot follows when the reader is done.
//!
//! Invariant: eviction only unlinks. Bytes are freed by whoever holds them last.

use crate::config::PolicyKind;
use crate::engine::State;
use crate::policy::{Policy, Rank};
use crate::status::{Evicted, count};
use memkv_memory::{Arena, ChunkView, ClassDemand, PageView, SlotId};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// The most pages that one scan considers; larger stores are scanned in turns.
const SCAN_PAGES_MAX: usize = 1 << 20;
/// Rounds of choosing by estimate until the whole store is at its low mark.
const STORE_PASSES: usize = 4;
/// Bounds of the search that a reservation makes itself.
const INLINE_CHUNKS: u32 = 256;
const INLINE_SLOTS: u32 = 512;
const INLINE_PAGES: usize = 32;

/// A page that may go.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    rank: Rank,
    slot: SlotId,
}

pub(crate) struct Evictor {
    policy: Box<dyn Policy>,
    /// Only one round at a time; its working memory is kept.
    round: Mutex<Scan>,
    /// Where the next search in line starts.
    hand: AtomicU32,
}

#[derive(Default)]
struct Scan {
    candidates: Vec<Candidate>,
    /// The chunk at which the next scan starts.
    hand: u32,
}

/// How cold a whole chunk is. Ordered: the first should go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Coldness {
    pinned: bool,
    worth: u64,
    chunk: u32,
    slot_bytes: u32,
}

impl Evictor {
    pub(crate) fn new(policy: PolicyKind) -> Self {
        Self { policy: policy.build(), round: Mutex::default(), hand: AtomicU32::new(0) }
    }

    pub(crate) fn round(&self, state: &State, _now_ms: u64) -> Evicted {
        let mut scan = self.round.lock();
        let mut evicted = Evicted::default();
        for chunk in state.arena.draining() {
            empty_chunk(state, chunk, &mut evicted);
        }
        for demand in state.arena.take_demand() {
            self.relieve(state, &mut scan, &demand, &mut evicted);
        }
        self.relieve_store(state, &mut scan, &mut evicted);
        count(&state.tally.evicted_pages, evicted.pages);
        count(&state.tally.evicted_bytes, evicted.bytes);
        evicted
    }

    /// Makes room for a class that pages arrive in, if it has too little.
    fn relieve(&self, state: &State, scan: &mut Scan, demand: &ClassDemand, evicted: &mut Evicted) {
        // The store may have changed since the demand was noted.
        let slot_bytes = demand.fill.slot_bytes;
        let Some(fill) = state.arena.fill_of(slot_bytes) else { return };
        if !state.marks.slots_low(fill.available, fill.potential) {
            return;
        }
        let missing = state.marks.slots_wanted(fill.potential).saturating_sub(fill.available).max(1);
        self.collect(&state.arena, scan, Some(slot_bytes));
        keep_coldest(&mut scan.candidates, usize::try_from(missing).unwrap_or(usize::MAX));
        let own = mean(scan.candidates.iter().map(|candidate| candidate.rank.worth));
        let stolen = self.take_chunks(state, demand, own, evicted);
        if stolen == 0 {
            self.evict(state, &scan.candidates, evicted);
        }
    }

    /// Takes chunks from other classes that are colder than `own`, the pages this class would give up itself. Returns
    /// how many.
    fn take_chunks(
        &self,
        state: &State,
        demand: &ClassDemand,
        own: Option<u64>,
        evicted: &mut Evicted,
    ) -> usize {
        let chunks = state.arena.chunk_count() as usize;
        // Several at once in a large store, so that a new model does not wait for a scan per chunk. A bound on those
        // that wait for readers, so that one reader who never ends cannot drain the whole store.
        let draining = state.arena.draining();
        let most = (chunks / 128).max(1).min((chunks / 16).max(2).saturating_sub(draining.len()));
        let mut cold = self.cold_chunks(&state.arena, demand.fill.slot_bytes);
        cold.retain(|chunk| !draining.contains(&chunk.chunk) && colder(state, chunk, demand, own));
        keep_first(&mut cold, most);
        for chunk in &cold {
            if state.arena.drain(chunk.chunk) {
                empty_chunk(state, chunk.chunk, evicted);
            }
        }
        count(&state.tally.chunks_moved, cold.len() as u64);
        cold.len()
    }

    /// All chunks of other classes, with how cold they are.
    fn cold_chunks(&self, arena: &Arena, but: u32) -> Vec<Coldness> {
        let views = (0..arena.chunk_count()).filter_map(|chunk| arena.chunk(chunk));
        let others = views.filter(|view| view.slot_bytes != but);
        others.filter_map(|view| self.coldness(arena, view)).collect()
    }

    /// How cold a chunk is; `None` if nothing in it can be evicted.
    fn coldness(&self, arena: &Arena, view: ChunkView) -> Option<Coldness> {
        let mut pinned = false;
        let pages = arena.pages(view, 0, view.slots).inspect(|page| pinned |= page.pins > 0);
        let worth = mean(pages.map(|page| self.policy.rank(&page).worth))?;
        Some(Coldness { pinned, worth, chunk: view.chunk, slot_bytes: view.slot_bytes })
    }

    /// Brings the whole store to its low mark if it is above the high one.
    fn relieve_store(&self, state: &State, scan: &mut Scan, evicted: &mut Evicted) {
        let capacity = state.arena.capacity_bytes();
        if !state.marks.bytes_high(state.arena.held_bytes(), capacity) {
            return;
        }
        for _ in 0..STORE_PASSES {
            let held = state.arena.held_bytes();
            let over = state.marks.bytes_over_low(held, capacity);
            self.collect(&state.arena, scan, None);
            let count = scan.candidates.len() as u64;
            if over == 0 || count == 0 {
                return;
            }
            // As many pages as make up the excess if they are of average size.
            let average = (held / count).max(1);
            keep_coldest(&mut scan.candidates, usize::try_from(over.div_ceil(average)).unwrap_or(usize::MAX));
            self.evict(state, &scan.candidates, evicted);
        }
    }

    /// Fills `scan.candidates` with the evictable pages of one class, or of all.
    fn collect(&self, arena: &Arena, scan: &mut Scan, class: Option<u32>) {
        scan.candidates.clear();
        let chunks = arena.chunk_count();
        for step in 0..chunks {
            let number = (scan.hand + step) % chunks;
            if scan.candidates.len() >= SCAN_PAGES_MAX {
                scan.hand = number;
                return;
            }
            let Some(view) = arena.chunk(number) else { continue };
            if class.is_none_or(|slot_bytes| slot_bytes == view.slot_bytes) {
                let pages = arena.pages(view, 0, view.slots).filter(|page| page.pins == 0);
                scan.candidates.extend(pages.map(|page| self.candidate(&page)));
            }
        }
    }

    fn candidate(&self, page: &PageView) -> Candidate {
        Candidate { rank: self.policy.rank(page), slot: page.slot }
    }

    /// Evicts the candidates that are still what they were.
    fn evict(&self, state: &State, candidates: &[Candidate], evicted: &mut Evicted) {
        for candidate in candidates {
            let page = state.arena.page(candidate.slot).filter(|page| page.pins == 0);
            if let Some(page) = page.filter(|page| self.policy.rank(page) == candidate.rank)
                && let Some(bytes) = unlink(state, &page)
            {
                evicted.add(bytes);
            }
        }
    }

    /// Evicts one page of a class, the coldest of a few, for a reservation that found no slot. `false` if the few had
    /// none.
    pub(crate) fn evict_one(&self, state: &State, slot_bytes: u32) -> bool {
        let arena = &state.arena;
        let hand = self.hand.fetch_add(1, Ordering::Relaxed);
        let chunks = arena.chunk_count();
        let near = (0..chunks.min(INLINE_CHUNKS)).map(|step| (hand % chunks + step) % chunks);
        let own = near.filter_map(|chunk| arena.chunk(chunk)).filter(|view| view.slot_bytes == slot_bytes);
        let mut looked_at = 0;
        let coldest = own
            .take_while(|view| {
                looked_at += view.slots.min(INLINE_SLOTS);
                looked_at <= 2 * INLINE_SLOTS
            })
            .flat_map(|view| {
                let from = hand.wrapping_mul(INLINE_SLOTS) % view.slots.next_multiple_of(INLINE_SLOTS);
                arena.pages(view, from, INLINE_SLOTS)
            })
            .filter(|page| page.pins == 0)
            .take(INLINE_PAGES)
            .min_by_key(|page| self.policy.rank(page));
        let Some(bytes) = coldest.and_then(|page| unlink(state, &page)) else { return false };
        count(&state.tally.evicted_pages, 1);
        count(&state.tally.evicted_bytes, bytes);
        count(&state.tally.evicted_inline, 1);
        true
    }
}

/// Whether a chunk of another class should give way to a class whose own pages to evict have the worth `own`. At equal
/// worth the class with more chunks gives.
fn colder(state: &State, chunk: &Coldness, demand: &ClassDemand, own: Option<u64>) -> bool {
    let Some(own) = own else { return true };
    chunk.worth < own || chunk.worth == own && state.arena.class_chunks(chunk.slot_bytes) > demand.chunks
}

/// Unlinks all pages of a chunk.
fn empty_chunk(state: &State, chunk: u32, evicted: &mut Evicted) {
    let Some(view) = state.arena.chunk(chunk) else { return };
    for page in state.arena.pages(view, 0, view.slots) {
        if let Some(bytes) = unlink(state, &page) {
            evicted.add(bytes);
        }
    }
}

/// Takes a page out of the index if it is still the one that was seen. Returns its length.
fn unlink(state: &State, page: &PageView) -> Option<u64> {
    let mut shard = state.index.shard_for(page.digest);
    let entry = shard.remove_slot(page.digest, page.slot)?;
    let space = state.spaces.by_number(entry.key().space_number());
    Some(state.retire(&space.expect("spaces are never removed"), &entry))
}

/// Keeps the `count` coldest candidates, in no order.
fn keep_coldest(candidates: &mut Vec<Candidate>, count: usize) {
    if count > 0 && count < candidates.len() {
        candidates.select_nth_unstable_by_key(count - 1, |candidate| candidate.rank);
    }
    candidates.truncate(count);
}

/// Keeps the `count` smallest, in no order.
fn keep_first(cold: &mut Vec<Coldness>, count: usize) {
    if count > 0 && count < cold.len() {
        cold.select_nth_unstable(count - 1);
    }
    cold.truncate(count);
}

fn mean(values: impl Iterator<Item = u64>) -> Option<u64> {
    let (sum, count) =
        values.fold((0_u128, 0_u128), |(sum, count), value| (sum + u128::from(value), count + 1));
    u64::try_from(sum.checked_div(count)?).ok()
}
