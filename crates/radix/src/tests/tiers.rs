//! Copies between tiers: each plan ended well, ended badly, and overtaken by everything else.

use super::{config, end_backup, evict, insert};
use crate::{
    Access, BackupError, Digest, LoadBackError, Medium, Namespace, PageState, PrefetchError, RadixCache,
    Tokens, WritePolicy,
};

const KEY: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

fn tiered(write: WritePolicy) -> RadixCache {
    with(write, |_| ())
}

fn with(write: WritePolicy, change: impl FnOnce(&mut crate::Config)) -> RadixCache {
    let mut config = config(1, 16).with_host(16, write);
    config.max_events = 1000;
    config.load_back_min_tokens = 2;
    config.prefetch_min_tokens = 2;
    config.prefetch_max_tokens = 12;
    change(&mut config);
    RadixCache::new(config).unwrap()
}

fn add(cache: &mut RadixCache, key: &[u32]) -> usize {
    insert(cache, Access::of(&Namespace::default()), key)
}

fn find(cache: &mut RadixCache, key: &[u32]) -> crate::Match {
    cache.match_prefix(Access::of(&Namespace::default()), Tokens::from(key))
}

/// Pages on the device and only in host memory.
fn counts(cache: &mut RadixCache, key: &[u32]) -> (usize, usize) {
    let found = find(cache, key);
    (found.pages.len(), found.host_pages)
}

fn back_up_all(cache: &mut RadixCache) -> usize {
    let mut copies = 0;
    while let Some(plan) = cache.next_backup() {
        let done = cache.end_backup(plan, true);
        assert!(done.freed.is_empty() && done.store.is_empty());
        copies += 1;
    }
    cache.check().unwrap();
    copies
}

/// A cache whose device has lost the key, which host memory has.
fn offloaded() -> RadixCache {
    let mut cache = tiered(WritePolicy::Through);
    add(&mut cache, &KEY);
    assert_eq!(back_up_all(&mut cache), 1);
    assert_eq!(cache.evict_device(1).pages.len(), 8);
    assert_eq!(counts(&mut cache, &KEY), (0, 8));
    cache
}

#[test]
fn hits_ask_for_copies_as_the_policy_says() {
    for (write, inserts) in [(WritePolicy::Through, 1), (WritePolicy::Selective, 2), (WritePolicy::Back, 9)] {
        let mut cache = tiered(write);
        for count in 1..4 {
            add(&mut cache, &KEY);
            assert_eq!(back_up_all(&mut cache), usize::from(count == inserts), "{write:?} {count}");
        }
    }
}

#[test]
fn a_copy_locks_its_node_until_it_ends_and_nobody_finds_it_before() {
    let mut cache = tiered(WritePolicy::Through);
    add(&mut cache, &KEY);
    let plan = cache.next_backup().unwrap();
    assert_eq!((plan.device.len(), plan.host.len(), plan.digests.len()), (8, 8, 8));
    assert_eq!(cache.evict_device(100).tokens, 0);
    assert_eq!(find(&mut cache, &KEY).host_node, cache.root());
    assert_eq!(cache.host().state(plan.host[0]), Some(PageState::Loading));
    let node = find(&mut cache, &KEY).node;
    assert_eq!(cache.begin_backup(node).unwrap_err(), BackupError::Already);
    cache.check().unwrap();
    end_backup(&mut cache, plan, true);
    cache.check().unwrap();
    assert_eq!(cache.evict_device(100).tokens, 8);
    assert_eq!(counts(&mut cache, &KEY), (0, 8));
}

#[test]
fn a_failed_copy_leaves_nothing_and_the_next_hit_asks_again() {
    let mut cache = tiered(WritePolicy::Through);
    add(&mut cache, &KEY);
    let plan = cache.next_backup().unwrap();
    end_backup(&mut cache, plan, false);
    cache.check().unwrap();
    assert_eq!(cache.host().free(), 16);
    assert!(cache.next_backup().is_none());
    add(&mut cache, &KEY);
    assert_eq!(back_up_all(&mut cache), 1);
}

#[test]
fn a_node_that_is_split_during_its_copy_is_whole_afterwards() {
    for copied in [true, false] {
        let mut cache = tiered(WritePolicy::Through);
        add(&mut cache, &KEY);
        let plan = cache.next_backup().unwrap();
        add(&mut cache, &[1, 2, 3, 9]);
        cache.check().unwrap();
        end_backup(&mut cache, plan, copied);
        cache.check().unwrap();
        evict(&mut cache, 100);
        let left = if copied { (0, 8) } else { (0, 0) };
        assert_eq!(counts(&mut cache, &KEY), left);
        cache.check().unwrap();
    }
}

#[test]
fn finished_copies_are_written_to_the_store_under_host_protection() {
    let mut cache = with(WritePolicy::Through, |config| config.storage = true);
    add(&mut cache, &KEY);
    let plan = cache.next_backup().unwrap();
    let mut done = cache.end_backup(plan, true);
    let store = done.store.pop().unwrap();
    assert_eq!(store.host.len(), store.digests.len());
    evict(&mut cache, 100);
    assert_eq!(cache.evict_host(100), 0, "the write still reads them");
    cache.check().unwrap();
    cache.end_store(store);
    assert_eq!(cache.evict_host(100), 8);
    assert_eq!(cache.host().free(), 16);
    cache.check().unwrap();
}

#[test]
fn clearing_during_a_write_to_the_store_keeps_the_pages_until_it_ends() {
    let mut cache = with(WritePolicy::Through, |config| config.storage = true);
    add(&mut cache, &KEY);
    let plan = cache.next_backup().unwrap();
    cache.clear();
    assert_eq!(cache.device().state(plan.device[0]), Some(PageState::Writing));
    assert!(cache.end_backup(plan, true).store.is_empty());
    assert_eq!((cache.device().free(), cache.host().free()), (16, 16));
    add(&mut cache, &KEY);
    let plan = cache.next_backup().unwrap();
    let store = cache.end_backup(plan, true).store.pop().unwrap();
    cache.clear();
    cache.check().unwrap();
    assert_eq!(cache.host().free(), 8);
    assert_eq!(counts(&mut cache, &KEY), (0, 0));
    cache.end_store(store);
    assert_eq!((cache.host().free(), cache.stats().nodes), (16, 0));
    cache.check().unwrap();
}

#[test]
fn write_back_copies_before_it_frees() {
    for copied in [true, false] {
        let mut cache = tiered(WritePolicy::Back);
        add(&mut cache, &KEY);
        let mut evicted = cache.evict_device(3);
        assert_eq!((evicted.tokens, evicted.pending_tokens), (0, 8));
        let done = cache.end_backup(evicted.write_back.pop().unwrap(), copied);
        assert_eq!(done.freed.len(), 8);
        assert_eq!(counts(&mut cache, &KEY), if copied { (0, 8) } else { (0, 0) });
        cache.check().unwrap();
    }
}

#[test]
fn a_written_back_node_that_is_in_use_again_stays() {
    let mut cache = tiered(WritePolicy::Back);
    add(&mut cache, &KEY);
    let mut evicted = cache.evict_device(3);
    let node = find(&mut cache, &KEY).node;
    let lock = cache.lock(node).unwrap();
    let done = cache.end_backup(evicted.write_back.pop().unwrap(), true);
    assert!(done.freed.is_empty());
    assert_eq!(counts(&mut cache, &KEY), (8, 0));
    cache.unlock(lock);
    cache.check().unwrap();
}

#[test]
fn host_memory_makes_room_and_keeps_what_the_device_has() {
    let mut cache = offloaded();
    add(&mut cache, &[20, 21, 22, 23, 24, 25, 26, 27]);
    assert_eq!(back_up_all(&mut cache), 1);
    // The third one takes the place of the first, which only host memory had.
    add(&mut cache, &[30, 31, 32, 33, 34, 35, 36, 37]);
    assert_eq!(back_up_all(&mut cache), 1);
    assert_eq!(counts(&mut cache, &KEY), (0, 0));
    assert_eq!(counts(&mut cache, &[20, 21]), (2, 0));
    // Now all of host memory backs pages of the device: nothing may go.
    assert_eq!(cache.evict_host(100), 0);
}

#[test]
fn a_load_brings_all_or_nothing() {
    let mut cache = offloaded();
    let node = find(&mut cache, &KEY).node;
    let plan = cache.begin_load_back(node).unwrap();
    assert_eq!((plan.host.len(), plan.device.len()), (8, 8));
    assert_eq!(counts(&mut cache, &KEY), (0, 8), "not before it has ended");
    let node = find(&mut cache, &KEY).node;
    assert_eq!(cache.begin_load_back(node).unwrap_err(), LoadBackError::Busy);
    assert_eq!(cache.evict_host(100), 0);
    cache.check().unwrap();
    let loaded = cache.commit_load_back(plan);
    assert_eq!(loaded.pages.len(), 8);
    assert_eq!(counts(&mut cache, &KEY), (8, 0));
    assert_eq!(cache.evict_device(100).tokens, 0, "locked until the request has it");
    cache.unlock(loaded.lock);
    cache.check().unwrap();
    // The host copy is still there, so the next eviction costs no copy.
    assert_eq!(cache.evict_device(100).tokens, 8);
    assert_eq!(counts(&mut cache, &KEY), (0, 8));
}

#[test]
fn an_aborted_load_leaves_no_trace() {
    let mut cache = offloaded();
    let before = cache.stats();
    let node = find(&mut cache, &KEY).node;
    let plan = cache.begin_load_back(node).unwrap();
    cache.abort_load_back(plan);
    cache.check().unwrap();
    assert_eq!(cache.stats(), before);
    assert_eq!(counts(&mut cache, &KEY), (0, 8));
    assert_eq!(cache.evict_host(100), 8);
}

#[test]
fn loads_that_are_too_small_too_large_or_have_no_room_are_refused() {
    let mut cache = offloaded();
    let short = find(&mut cache, &KEY[..1]).node;
    assert_eq!(cache.begin_load_back(short).unwrap_err(), LoadBackError::TooFew { tokens: 1 });
    let pages = cache.alloc_pages(9).unwrap();
    let node = find(&mut cache, &KEY).node;
    assert!(matches!(cache.begin_load_back(node).unwrap_err(), LoadBackError::OutOfPages(_)));
    cache.check().unwrap();
    cache.release_pages(&pages).unwrap();
    assert_eq!(cache.begin_load_back(cache.root()).unwrap_err(), LoadBackError::Nothing);
    let mut cache = with(WritePolicy::Through, |config| config.load_back_max_tokens = 7);
    add(&mut cache, &KEY);
    back_up_all(&mut cache);
    evict(&mut cache, 100);
    let node = find(&mut cache, &KEY).node;
    assert_eq!(cache.begin_load_back(node).unwrap_err(), LoadBackError::TooMany { tokens: 8 });
}

#[test]
fn a_request_may_compute_what_is_being_loaded() {
    let mut cache = offloaded();
    let node = find(&mut cache, &KEY).node;
    let plan = cache.begin_load_back(node).unwrap();
    assert_eq!(add(&mut cache, &KEY[..5]), 5);
    let mine = find(&mut cache, &KEY[..5]).pages;
    cache.check().unwrap();
    let loaded = cache.commit_load_back(plan);
    assert_eq!(loaded.pages[..5], mine);
    assert_eq!(counts(&mut cache, &KEY), (8, 0));
    cache.unlock(loaded.lock);
    cache.check().unwrap();
    assert_eq!(cache.device().free(), 8);
}

#[test]
fn a_request_takes_over_what_a_load_brought() {
    let mut cache = offloaded();
    let namespace = Namespace::default();
    let mut request = cache.start(Access::of(&namespace), Tokens::from(&[1u32, 2, 3, 4, 5, 6, 7, 8, 9]), 0);
    let (node, pages) = request.host_hit();
    assert_eq!((request.protected_pages(), pages), (0, 8));
    let plan = cache.begin_load_back(node).unwrap();
    let loaded = cache.commit_load_back(plan);
    assert_eq!(cache.adopt(&mut request, loaded), 8);
    assert_eq!((request.protected_pages(), request.row().len()), (8, 8));
    assert_eq!(cache.evict_device(100).tokens, 0);
    cache.abort(request);
    assert_eq!(cache.evict_device(100).tokens, 8);
    cache.check().unwrap();
}

#[test]
fn prefetched_pages_become_host_only_nodes_that_continue_the_chain() {
    let namespace = Namespace::default();
    let access = Access::of(&namespace);
    let mut cache = tiered(WritePolicy::Through);
    add(&mut cache, &KEY[..3]);
    let plan = cache.begin_prefetch(access, Tokens::from(&KEY)).unwrap();
    let chain = crate::PageChain::new(cache.shape(), None).whole_pages(Tokens::from(&KEY));
    let digests: Vec<Digest> = plan.pages().iter().map(|page| page.digest).collect();
    assert_eq!((plan.start_page(), &digests[..]), (3, &chain[3..]));
    assert_eq!(cache.stats().prefetching_tokens, 5);
    cache.check().unwrap();
    let done = cache.commit_prefetch(plan, 4);
    assert_eq!((done.inserted, done.duplicates), (4, 0));
    assert_eq!(counts(&mut cache, &KEY), (3, 4));
    assert_eq!((cache.stats().prefetching_tokens, cache.host().free()), (0, 12));
    let stored: Vec<Digest> =
        cache.content().into_iter().filter(|(on, _)| *on == Medium::Cpu).map(|(_, digest)| digest).collect();
    assert_eq!(stored.len(), 4);
    cache.check().unwrap();
    // The device can drop the node above, which has no copy: what hangs below goes with it.
    assert_eq!(cache.evict_device(100).tokens, 3);
    assert_eq!(counts(&mut cache, &KEY), (0, 0));
    assert_eq!(cache.host().free(), 16);
    cache.check().unwrap();
}

#[test]
fn prefetched_duplicates_are_freed() {
    let namespace = Namespace::default();
    let access = Access::of(&namespace);
    let mut cache = tiered(WritePolicy::Through);
    let plan = cache.begin_prefetch(access, Tokens::from(&KEY)).unwrap();
    add(&mut cache, &[1, 2, 3, 9]);
    let done = cache.commit_prefetch(plan, 8);
    assert_eq!((done.inserted, done.duplicates), (5, 3));
    assert_eq!(counts(&mut cache, &KEY), (3, 5));
    assert_eq!(cache.host().free(), 11);
    cache.check().unwrap();
    let mut cache = tiered(WritePolicy::Through);
    let plan = cache.begin_prefetch(access, Tokens::from(&KEY)).unwrap();
    add(&mut cache, &KEY);
    let done = cache.commit_prefetch(plan, 8);
    assert_eq!((done.inserted, done.duplicates), (0, 8));
    assert_eq!(cache.host().free(), 16);
    cache.check().unwrap();
}

#[test]
fn a_prefetch_whose_prefix_went_away_brings_nothing() {
    let namespace = Namespace::default();
    let access = Access::of(&namespace);
    let mut cache = tiered(WritePolicy::Through);
    add(&mut cache, &KEY[..3]);
    let plan = cache.begin_prefetch(access, Tokens::from(&KEY)).unwrap();
    cache.clear();
    let done = cache.commit_prefetch(plan, 5);
    assert_eq!((done.inserted, done.duplicates), (0, 5));
    assert_eq!((cache.host().free(), cache.stats().nodes), (16, 0));
    cache.check().unwrap();
}

#[test]
fn prefetches_have_bounds_and_can_be_cut_and_aborted() {
    let namespace = Namespace::default();
    let access = Access::of(&namespace);
    let mut cache = tiered(WritePolicy::Through);
    let few = cache.begin_prefetch(access, Tokens::from(&KEY[..1])).unwrap_err();
    assert_eq!(few, PrefetchError::TooFew { tokens: 1 });
    let mut plan = cache.begin_prefetch(access, Tokens::from(&KEY)).unwrap();
    let other: Vec<u32> = (100..108).collect();
    let busy = cache.begin_prefetch(access, Tokens::from(&other)).unwrap_err();
    assert_eq!(busy, PrefetchError::Busy { tokens: 8 });
    cache.shrink_prefetch(&mut plan, 3);
    assert_eq!((cache.stats().prefetching_tokens, cache.host().free()), (3, 13));
    let second = cache.begin_prefetch(access, Tokens::from(&other)).unwrap();
    cache.abort_prefetch(second);
    cache.abort_prefetch(plan);
    assert_eq!((cache.stats().prefetching_tokens, cache.host().free()), (0, 16));
    cache.check().unwrap();
}

#[test]
fn an_account_prefetches_declared_pages_under_public_names_and_the_rest_under_its_own() {
    let namespace = Namespace::default();
    let user = crate::UserId(4);
    let mut cache = with(WritePolicy::Through, |config| config.sharing = crate::Sharing::Declared);
    cache.declare(&namespace, Tokens::from(&KEY[..2]));
    let plan = cache.begin_prefetch(Access::by(&namespace, user), Tokens::from(&KEY)).unwrap();
    let chain = |seed| crate::PageChain::new(cache.shape(), seed).whole_pages(Tokens::from(&KEY));
    let names: Vec<Digest> = plan.pages().iter().map(|page| page.digest).collect();
    assert_eq!(names[..2], chain(None)[..2]);
    assert_eq!(names[2..], chain(Some(namespace.owner_seed(user)))[2..]);
    assert_eq!(cache.commit_prefetch(plan, 8).inserted, 8);
    cache.check().unwrap();
    assert_eq!(counts(&mut cache, &KEY), (0, 2), "without an account only the declared pages");
    let nobody = cache.begin_prefetch(Access::of(&namespace), Tokens::from(&KEY)).unwrap_err();
    assert_eq!(nobody, PrefetchError::Off);
}

#[test]
fn pages_that_came_under_names_that_changed_are_not_kept() {
    let namespace = Namespace::default();
    let access = Access::by(&namespace, crate::UserId(4));
    let mut cache = with(WritePolicy::Through, |config| config.sharing = crate::Sharing::Declared);
    let plan = cache.begin_prefetch(access, Tokens::from(&KEY)).unwrap();
    cache.declare(&namespace, Tokens::from(&KEY[..2]));
    assert_eq!(cache.commit_prefetch(plan, 8).inserted, 0);
    assert_eq!(cache.host().free(), 16);
    cache.check().unwrap();
}

#[test]
fn a_load_of_what_went_away_brings_nothing() {
    let mut cache = offloaded();
    let node = find(&mut cache, &KEY).node;
    let plan = cache.begin_load_back(node).unwrap();
    cache.clear();
    cache.check().unwrap();
    assert_eq!(cache.host().free(), 8, "the copy still reads them");
    let loaded = cache.commit_load_back(plan);
    assert!(loaded.pages.is_empty());
    cache.unlock(loaded.lock);
    assert_eq!((cache.host().free(), cache.device().free(), cache.stats().nodes), (16, 16, 0));
    cache.check().unwrap();
}

#[test]
fn a_node_can_be_written_to_the_store_again() {
    let mut cache = tiered(WritePolicy::Through);
    add(&mut cache, &KEY[..3]);
    add(&mut cache, &KEY);
    let node = find(&mut cache, &KEY).node;
    assert_eq!(cache.begin_store(node).unwrap_err(), BackupError::NotResident);
    back_up_all(&mut cache);
    let plan = cache.begin_store(node).unwrap();
    assert_eq!((plan.start, plan.host.len(), plan.digests.len()), (3, 5, 5));
    cache.end_store(plan);
    cache.check().unwrap();
}

#[test]
fn a_prefetch_cut_in_two_ends_in_any_order() {
    let namespace = Namespace::default();
    for first_first in [true, false] {
        let mut cache = tiered(WritePolicy::Through);
        let plan = cache.begin_prefetch(Access::of(&namespace), Tokens::from(&KEY)).unwrap();
        let (first, rest) = cache.split_prefetch(plan, 3);
        assert_eq!((rest.start_page(), rest.pages().len()), (3, 5));
        if first_first {
            assert_eq!(cache.commit_prefetch(first, 3).inserted, 3);
            assert_eq!(cache.commit_prefetch(rest, 5).inserted, 5);
            assert_eq!(counts(&mut cache, &KEY), (0, 8));
        } else {
            assert_eq!(cache.commit_prefetch(rest, 5).inserted, 0, "nothing to continue yet");
            cache.abort_prefetch(first);
            assert_eq!((cache.host().free(), cache.stats().prefetching_tokens), (16, 0));
        }
        cache.check().unwrap();
    }
}
