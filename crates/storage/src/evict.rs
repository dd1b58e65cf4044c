//! Eviction: who goes when room is needed.
//!
//! A round runs in the background. It looks at the classes that pages arrived in since the last one; a class with too
//! few slots left gets room from whichever is colder: its own coldest pages, or the coldest chunk of another class. So
//! the memory follows a change of model by itself, and two models in use keep what they use. Then, if the whole store
//! is above its high mark, the coldest pages of all classes go.
//!
//! Coldness is what the [policy](memkv_eviction) says about the records of the slots, read without any lock: an
//! approximation, which costs at most one bounded scan per round and purpose, and nothing on the request path. A page that is held by a
//! reader is passed over; only if its whole chunk goes is it unlinked, and its slot follows when the reader is done.
//!
//! With a tier on drives a page that leaves memory goes there, see [`drives::write`](crate::drives::write): at once if
//! it is there already, otherwise when it was written; slots that become free then count as free here. A page that an
//! operator [keeps](crate::keep) is passed over.
//!
//! Invariant: eviction only unlinks. Bytes are freed by whoever holds them last.

mod scan;

use crate::account::Account;
use crate::drives::write::{Exit, Left, Urgency};
use crate::index::{Found, HashedKey, SHARDS};
use crate::policy::page_of;
use crate::state::State;
use crate::status::{Evicted, count};
use memkv_core::Key;
use memkv_eviction::{Page, Want};
use memkv_memory::{ChunkView, ClassDemand, PageView, SlotId};
use parking_lot::Mutex;
use scan::{Ahead, Scan};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The most pages that one scan considers; larger stores are scanned in turns.
const SCAN_PAGES_MAX: usize = 1 << 20;
/// The most scans of one round for one purpose.
const PASSES: usize = 8;
/// Slots that are looked at to tell how cold a chunk is.
const CHUNK_SAMPLE: u32 = 64;
/// Bounds of the search that a reservation makes itself.
const INLINE_CHUNKS: u32 = 256;
const INLINE_SLOTS: u32 = 512;
const INLINE_PAGES: usize = 32;

#[derive(Default)]
pub(crate) struct Evictor {
    /// Only one round at a time; its working memory is kept.
    round: Mutex<Scan>,
    /// Never held while pages are looked at.
    ahead: Mutex<Ahead>,
    /// Where the next search in line starts.
    hand: AtomicU32,
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
    pub(crate) fn round(&self, state: &State, now_ms: u64) -> Evicted {
        let mut scan = self.round.lock();
        let mut evicted = Evicted::default();
        state.saw(now_ms.into());
        state.kept.expire(now_ms);
        for chunk in state.arena.draining() {
            empty_chunk(state, chunk, &mut evicted);
        }
        for demand in state.arena.take_demand() {
            self.relieve(state, &mut scan, &demand, now_ms, &mut evicted);
        }
        for account in state.spaces.accounts.all() {
            self.relieve_account(state, &mut scan, &account, now_ms, &mut evicted);
            shed_drives(state, &account);
        }
        self.relieve_store(state, &mut scan, now_ms, &mut evicted);
        count(&state.tally.evicted_pages, evicted.pages);
        count(&state.tally.evicted_bytes, evicted.bytes);
        evicted
    }

    /// Makes room for a class that pages arrive in, if it has too little.
    fn relieve(
        &self,
        state: &State,
        scan: &mut Scan,
        demand: &ClassDemand,
        now_ms: u64,
        evicted: &mut Evicted,
    ) {
        let slot_bytes = demand.fill.slot_bytes;
        for pass in 0..PASSES {
            // The store may have changed since the demand was noted.
            let Some(fill) = state.arena.fill_of(slot_bytes) else { return };
            let wanted = state.marks.slots_wanted(fill.potential);
            let available = fill.available + state.leaving_slots(slot_bytes);
            let missing = wanted.saturating_sub(available);
            if missing == 0 || pass == 0 && !state.marks.slots_low(available, fill.potential) {
                return;
            }
            let missing = usize::try_from(missing).unwrap_or(usize::MAX);
            self.pick(state, scan, Some(slot_bytes), Want::Pages(missing), now_ms);
            let own = mean(scan.going.iter().map(|(page, _)| state.policy.worth(page, now_ms)));
            if pass == 0 && self.take_chunks(state, demand, own, now_ms, evicted) > 0 {
                return;
            }
            self.evict(state, scan, now_ms, evicted);
        }
    }

    /// Takes chunks from other classes that are colder than `own`, the pages this class would give up itself. Returns
    /// how many.
    fn take_chunks(
        &self,
        state: &State,
        demand: &ClassDemand,
        own: Option<u64>,
        now_ms: u64,
        evicted: &mut Evicted,
    ) -> usize {
        let chunks = state.arena.chunk_count() as usize;
        // Several at once in a large store, so that a new model does not wait for a scan per chunk. A bound on those
        // that wait for readers, so that readers who never end cannot drain the whole store.
        let draining = state.arena.draining();
        let may_wait = (chunks / 16).max(2).min(chunks / 2).max(1);
        let most = (chunks / 128).max(1).min(may_wait.saturating_sub(draining.len()));
        let mut cold = cold_chunks(state, demand.fill.slot_bytes, now_ms);
        cold.retain(|chunk| !draining.contains(&chunk.chunk) && colder(state, chunk, demand, own));
        keep_first(&mut cold, most);
        for chunk in &cold {
            if !state.keeps_any(chunk.chunk) && state.arena.drain(chunk.chunk) {
                empty_chunk(state, chunk.chunk, evicted);
            }
        }
        count(&state.tally.chunks_moved, cold.len() as u64);
        cold.len()
    }

    /// Brings a tenant's pages in memory a little below its bound if they are near it.
    fn relieve_account(
        &self,
        state: &State,
        scan: &mut Scan,
        account: &Arc<Account>,
        now_ms: u64,
        evicted: &mut Evicted,
    ) {
        // Pages on their way to a drive leave the account when they have arrived: one pass, not several.
        if !account.is_high() {
            return;
        }
        teach(state, now_ms);
        self.collect(state, scan, None);
        scan.retain(|slot| state.arena.page(slot).is_some_and(|page| state.is_of(&page, account)));
        scan.choose(&*state.policy, Want::Bytes(account.over_low()), now_ms);
        let before = evicted.pages;
        self.evict(state, scan, now_ms, evicted);
        account.count_evicted(evicted.pages - before);
    }

    /// Brings the whole store to its low mark if it is above the high one.
    fn relieve_store(&self, state: &State, scan: &mut Scan, now_ms: u64, evicted: &mut Evicted) {
        let capacity = state.arena.capacity_bytes();
        let held = || state.arena.held_bytes().saturating_sub(state.leaving_bytes());
        if !state.marks.bytes_high(held(), capacity) {
            return;
        }
        for _ in 0..PASSES {
            let over = state.marks.bytes_over_low(held(), capacity);
            if over == 0 {
                return;
            }
            self.pick(state, scan, None, Want::Bytes(over), now_ms);
            if scan.going.is_empty() {
                return;
            }
            self.evict(state, scan, now_ms, evicted);
        }
    }

    /// Chooses pages of one class, or of all, that go now: of those that a scan a moment ago chose ahead, or else by a
    /// scan. So what a round costs when rounds follow each other does not grow with the store.
    fn pick(&self, state: &State, scan: &mut Scan, class: Option<u32>, want: Want, now_ms: u64) {
        if self.ahead.lock().take(class, want, now_ms, &mut scan.going) {
            return;
        }
        teach(state, now_ms);
        self.collect(state, scan, class);
        scan.choose_ahead(&*state.policy, class, want, now_ms, &self.ahead);
    }

    /// Fills `scan` with the evictable pages of one class, or of all.
    fn collect(&self, state: &State, scan: &mut Scan, class: Option<u32>) {
        let arena = &state.arena;
        scan.pages.clear();
        scan.slots.clear();
        scan.partial = false;
        let chunks = arena.chunk_count();
        for step in 0..chunks {
            let number = (scan.hand + step) % chunks;
            if scan.pages.len() >= SCAN_PAGES_MAX {
                (scan.hand, scan.partial) = (number, true);
                return;
            }
            let Some(view) = arena.chunk(number) else { continue };
            if class.is_none_or(|slot_bytes| slot_bytes == view.slot_bytes) {
                let free = |page: &PageView| page.pins == 0 && !state.kept.holds(page.digest);
                for page in arena.pages(view, 0, view.slots).filter(free) {
                    scan.pages.push(page_of(&page, view.slot_bytes));
                    scan.slots.push(page.slot);
                }
            }
        }
    }

    /// Evicts the chosen pages that are still what they were.
    fn evict(&self, state: &State, scan: &mut Scan, now_ms: u64, evicted: &mut Evicted) {
        for (at, next) in scan.choice.words.drain(..) {
            // A page that was asked for meanwhile keeps the word of that.
            let seen = scan.pages[at as usize].word;
            let slot = scan.slots[at as usize];
            state.arena.update_policy(slot, |word| (word == seen).then_some(next));
        }
        let mut exit = Exit::new(state);
        for &(ref seen, slot) in &scan.going {
            let Some(page) = unchanged(state, seen, slot) else { continue };
            match exit.evict(&page, seen.bytes, Urgency::Calm) {
                Left::Gone(bytes) => evicted.add(bytes),
                Left::Leaving => {}
                Left::Stays => continue,
            }
            state.policy.evicted(seen, now_ms);
        }
    }

    /// Evicts one page for a reservation that found no room: of a class or of any, of an account or of any. It is one that
    /// was chosen ahead, or else the coldest of a few; `false` if the few had none.
    pub(crate) fn evict_one(
        &self,
        state: &State,
        class: Option<u32>,
        account: Option<&Arc<Account>>,
    ) -> bool {
        if account.is_none() && self.evict_ahead(state, class) {
            return true;
        }
        let arena = &state.arena;
        let hand = self.hand.fetch_add(1, Ordering::Relaxed);
        let chunks = arena.chunk_count();
        let near = (0..chunks.min(INLINE_CHUNKS)).map(|step| (hand % chunks + step) % chunks);
        let fits = |view: &ChunkView| class.is_none_or(|slot_bytes| view.slot_bytes == slot_bytes);
        let own = near.filter_map(|chunk| arena.chunk(chunk)).filter(fits);
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
            .filter(|page| page.pins == 0 && !state.kept.holds(page.digest))
            .filter(|page| account.is_none_or(|account| state.is_of(page, account)))
            .take(INLINE_PAGES)
            // What is on a drive already is not lost.
            .min_by_key(|page| {
                let worth = state.policy.worth(&page_of(page, arena.slot_bytes(page.slot)), state.now_ms());
                (state.drives.is_some() && page.extent == 0, worth, page.last_access_ms)
            });
        let Some(page) = coldest else { return false };
        let slot_bytes = arena.slot_bytes(page.slot);
        // If it went meanwhile, somebody else has made room.
        if evict_now(state, &page, slot_bytes)
            && let Some(account) = account
        {
            account.count_evicted(1);
        }
        true
    }

    /// Evicts the next page that was chosen ahead. `false` if there is none, and where there are drives: a page that goes
    /// at once is lost to them.
    fn evict_ahead(&self, state: &State, class: Option<u32>) -> bool {
        if state.drives.is_some() {
            return false;
        }
        for _ in 0..INLINE_PAGES {
            let Some((seen, slot)) = self.ahead.lock().next(class, state.now_ms()) else { return false };
            if unchanged(state, &seen, slot).is_some_and(|page| evict_now(state, &page, seen.bytes)) {
                return true;
            }
        }
        false
    }
}

/// The page in this slot, if it is the one that was seen, was not asked for since and nobody holds it.
fn unchanged(state: &State, seen: &Page, slot: SlotId) -> Option<PageView> {
    let page = state.arena.page(slot).filter(|page| page.pins == 0 && !state.kept.holds(page.digest))?;
    (page_of(&page, seen.bytes) == *seen).then_some(page)
}

/// Evicts a page for a reservation. `false` if it went meanwhile, or stays.
fn evict_now(state: &State, page: &PageView, slot_bytes: u32) -> bool {
    let Left::Gone(bytes) = Exit::new(state).evict(page, slot_bytes, Urgency::Now) else { return false };
    state.policy.evicted(&page_of(page, slot_bytes), state.now_ms());
    count(&state.tally.evicted_pages, 1);
    count(&state.tally.evicted_bytes, bytes);
    count(&state.tally.evicted_inline, 1);
    true
}

/// Removes a tenant's oldest pages from the drives if it is near its bound there: of each shard the same part, since keys
/// are spread evenly.
fn shed_drives(state: &State, account: &Arc<Account>) {
    let Some(drives) = state.drives.as_ref().filter(|_| !state.is_closed()) else { return };
    let excess = account.drive_excess();
    if excess == 0 {
        return;
    }
    let mut shed = 0;
    for number in 0..SHARDS {
        let _removal = drives.order.write();
        let mut shard = state.index.shard(number);
        let of_account = |found: &Found<'_>| {
            found.meta.is_some() && Arc::ptr_eq(state.space(found.space).account(), account)
        };
        let mut times: Vec<u32> = shard
            .iter()
            .filter(of_account)
            .filter_map(|found| found.meta)
            .map(|meta| meta.access_s)
            .collect();
        let part = usize::try_from((times.len() as u64 * excess).div_ceil(1000)).unwrap_or(usize::MAX);
        if part == 0 {
            continue;
        }
        times.sort_unstable();
        let (until, mut left) = (times[part.min(times.len()) - 1], part);
        let mut gone: Vec<(u32, Box<[u8]>)> = Vec::new();
        let removed = shard.remove_all(|found| {
            let old = left > 0 && of_account(&found) && found.meta.is_some_and(|meta| meta.access_s <= until);
            if old {
                left -= 1;
                gone.push((found.space, found.key.into()));
            }
            old
        });
        let mut extents = Vec::new();
        for (removed, (space, _)) in removed.iter().zip(&gone) {
            state.retire(&state.space(*space), removed, &mut extents);
        }
        drop(shard);
        state.release(extents);
        for (space, key) in &gone {
            let space = state.space(*space);
            let key = Key::new(key).expect("it was a key when it was stored");
            drives.forget(space.id(), &[HashedKey::new(space.id(), key)]);
        }
        shed += gone.len() as u64;
    }
    account.count_evicted(shed);
}

/// All chunks of other classes, with how cold they are.
fn cold_chunks(state: &State, but: u32, now_ms: u64) -> Vec<Coldness> {
    let views = (0..state.arena.chunk_count()).filter_map(|chunk| state.arena.chunk(chunk));
    let others = views.filter(|view| view.slot_bytes != but);
    others.filter_map(|view| coldness(state, view, now_ms)).collect()
}

/// How cold a chunk is, judged by some of its slots; `None` if it has no page.
fn coldness(state: &State, view: ChunkView, now_ms: u64) -> Option<Coldness> {
    let mut pinned = false;
    let mut look = |step: u32| {
        let slots = (0..view.slots).step_by(step as usize);
        let pages = slots.flat_map(|slot| state.arena.pages(view, slot, 1));
        let pages = pages.inspect(|page| pinned |= page.pins > 0);
        mean(pages.map(|page| state.policy.worth(&page_of(&page, view.slot_bytes), now_ms)))
    };
    // A chunk with few pages may have none among the first choice.
    let worth = look(view.slots.div_ceil(CHUNK_SAMPLE).max(1)).or_else(|| look(1))?;
    Some(Coldness { pinned, worth, chunk: view.chunk, slot_bytes: view.slot_bytes })
}

/// Shows the policy all pages, if it is time. Only before a choice: a store that has room needs no lessons.
fn teach(state: &State, now_ms: u64) {
    if !state.policy.wants_lesson() {
        return;
    }
    let arena = &state.arena;
    let views = (0..arena.chunk_count()).filter_map(|chunk| arena.chunk(chunk));
    let mut pages = views
        .flat_map(|view| arena.pages(view, 0, view.slots).map(move |page| page_of(&page, view.slot_bytes)));
    state.policy.learn(&mut pages, now_ms);
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
    let mut exit = Exit::new(state);
    for page in state.arena.pages(view, 0, view.slots) {
        if let Left::Gone(bytes) = exit.evict(&page, view.slot_bytes, Urgency::Chunk) {
            evicted.add(bytes);
            state.policy.evicted(&page_of(&page, view.slot_bytes), state.now_ms());
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{engine, exists, get_at, put, space, touch};

    #[test]
    fn a_page_that_was_wanted_since_the_scan_stays() {
        let engine = engine(4 << 20);
        let space = space(&engine, "a");
        for key in [b"old", b"hot", b"pin"] {
            put(&engine, &space, key, b"page").unwrap();
        }
        let (evictor, mut scan, mut evicted) = (Evictor::default(), Scan::default(), Evicted::default());
        evictor.collect(&engine.state, &mut scan, None);
        assert_eq!((scan.pages.len(), scan.partial), (3, false));
        scan.choose(&*engine.state.policy, Want::Pages(3), 9);
        touch(&engine, &space, b"hot", 9);
        let pin = get_at(&engine, &space, b"pin", 0);
        evictor.evict(&engine.state, &mut scan, 9, &mut evicted);
        assert_eq!(evicted.pages, 1);
        assert!(!exists(&engine, &space, b"old"));
        assert!(exists(&engine, &space, b"hot") && exists(&engine, &space, b"pin"));
        drop(pin);
    }

    #[test]
    fn of_a_partial_scan_only_a_share_goes() {
        let engine = engine(4 << 20);
        let (state, space) = (&engine.state, space(&engine, "a"));
        for n in 0..80_u8 {
            put(&engine, &space, &[n], b"page").unwrap();
        }
        let evictor = Evictor::default();
        for (partial, kept) in [(false, 50), (true, 10)] {
            let mut scan = Scan::default();
            evictor.collect(state, &mut scan, None);
            scan.partial = partial;
            scan.choose(&*state.policy, Want::Pages(50), 0);
            assert_eq!(scan.choice.evict.len(), kept);
        }
    }

    #[test]
    fn a_reservation_takes_what_was_chosen_ahead_unless_it_was_wanted_since() {
        let engine = engine(4 << 20);
        let (state, space) = (&engine.state, space(&engine, "a"));
        for key in [b"one", b"two", b"new"] {
            put(&engine, &space, key, b"page").unwrap();
        }
        let (evictor, mut scan) = (Evictor::default(), Scan::default());
        evictor.collect(state, &mut scan, None);
        scan.choose(&*state.policy, Want::Pages(3), 0);
        let class = Some(scan.pages[0].bytes);
        let left = std::mem::take(&mut scan.going).into();
        *evictor.ahead.lock() = Ahead { class, at_ms: state.now_ms(), chosen: 3, left };
        touch(&engine, &space, b"one", 9);
        assert!(evictor.evict_ahead(state, class));
        assert!(exists(&engine, &space, b"one") && !exists(&engine, &space, b"two"));
        assert!(exists(&engine, &space, b"new"));
        assert!(evictor.evict_ahead(state, None) && !exists(&engine, &space, b"new"));
        assert!(!evictor.evict_ahead(state, class), "none is left");
        assert!(exists(&engine, &space, b"one"));
    }

    #[test]
    fn means_do_not_overflow() {
        assert_eq!(mean([u64::MAX, u64::MAX, u64::MAX - 3].into_iter()), Some(u64::MAX - 1));
        assert_eq!(mean([].into_iter()), None);
    }
}
