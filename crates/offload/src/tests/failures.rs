//! Copies and writes that fail: the tree stays as it was, and the request computes.

use super::fake::{Call, Fake};
use super::rig::{PAGE_TOKENS, Rig, Setup, prompt};
use crate::NotStarted;
use memkv_client::PageOutcome;
use memkv_radix::{LoadBackError, PageState, WritePolicy};

/// A rig whose pages of `text` are in host memory alone, and not in the store.
fn on_host(setup: &Setup, text: &[u32]) -> Rig {
    let mut rig = Rig::new(setup, &Fake::default());
    rig.store.break_all(Some(PageOutcome::Unavailable));
    rig.serve(text);
    rig.settle();
    rig.clear_device();
    assert_eq!(rig.cache.device().free(), rig.cache.device().capacity());
    rig
}

#[test]
fn a_load_is_all_or_nothing() {
    let text = prompt(1, 9);
    for copied in 0..9 {
        let mut rig = on_host(&Setup::default(), &text);
        rig.device.stop_after(Some(copied));
        assert_eq!(rig.serve_warm(&text), 0, "after {copied} pages");
        let stats = rig.tiers.stats();
        assert_eq!((stats.failed_loads, stats.loaded_pages), (1, 0));
        rig.device.stop_after(None);
        rig.settle();
        rig.clear_device();
        assert_eq!(rig.serve_warm(&text), 9);
        rig.settle();
        rig.assert_nothing_lost();
    }
}

#[test]
fn loads_have_a_threshold_and_a_quota() {
    let text = prompt(1, 9);
    let tokens = 9 * PAGE_TOKENS;
    for (min, max, expected) in [
        (tokens + 1, usize::MAX, Some(LoadBackError::TooFew { tokens })),
        (1, tokens - 1, Some(LoadBackError::TooMany { tokens })),
        (tokens, tokens, None),
    ] {
        let setup = Setup { load_back_min_tokens: min, load_back_max_tokens: max, ..Setup::default() };
        let mut rig = on_host(&setup, &text);
        let request = rig.start(&text);
        let (node, pages) = request.host_hit();
        assert_eq!(pages, 9);
        rig.cache.abort(request);
        let started = rig.tiers.load_back(&mut rig.cache, node);
        assert_eq!(started.as_ref().err(), expected.map(NotStarted::Load).as_ref());
        drop(started);
        rig.settle();
        // A request is served with or without.
        assert_eq!(rig.serve_warm(&text), if expected.is_none() { 9 } else { 0 });
        rig.settle();
        rig.assert_nothing_lost();
    }
}

#[test]
fn a_full_device_refuses_a_load_and_the_request_goes_on() {
    let text = prompt(1, 9);
    let mut rig = on_host(&Setup { device_pages: 12, ..Setup::default() }, &text);
    // Somebody computes and holds most of the device.
    let other = prompt(2, 5);
    let mut busy = rig.start(&other);
    rig.cache.reserve(&mut busy, other.len()).unwrap();
    let space = rig.space.clone();
    let (mut request, mut warmup) = (rig.start(&text), crate::Warmup::default());
    let access = memkv_radix::Access::of(&space);
    while !rig.tiers.warm(&mut rig.cache, access, &mut request, &mut warmup) {
        rig.hand.turn();
        rig.poll();
    }
    assert_eq!(request.protected_pages(), 0);
    rig.cache.abort(request);
    rig.cache.abort(busy);
    assert_eq!(rig.serve_warm(&text), 9);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn full_host_memory_leaves_pages_on_the_device() {
    let mut rig = Rig::new(&Setup { host_pages: 6, ..Setup::default() }, &Fake::default());
    let (small, large) = (prompt(1, 5), prompt(2, 8));
    rig.serve(&small);
    rig.settle();
    assert_eq!(rig.tiers.stats().backed_up_pages, 5);
    rig.serve(&large);
    rig.settle();
    assert_eq!(rig.tiers.stats().backed_up_pages, 5, "eight pages never fit six");
    assert_eq!((rig.serve(&large), rig.serve(&small)), (8, 5));
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn a_failed_backup_keeps_the_pages_on_the_device_and_out_of_the_store() {
    let mut rig = Rig::new(&Setup::default(), &Fake::default());
    let text = prompt(1, 8);
    rig.device.stop_after(Some(5));
    rig.serve(&text);
    rig.settle();
    let stats = rig.tiers.stats();
    assert_eq!((stats.failed_backups, stats.backed_up_pages, rig.store.len()), (1, 0, 0));
    assert_eq!(rig.cache.host().free(), 100);
    rig.device.stop_after(None);
    // The next hit asks again.
    assert_eq!(rig.serve(&text), 8);
    rig.settle();
    assert_eq!((rig.tiers.stats().backed_up_pages, rig.store.len()), (8, 8));
    rig.assert_nothing_lost();
}

#[test]
fn a_failed_write_back_frees_the_device_all_the_same() {
    let setup = Setup { write: WritePolicy::Back, ..Setup::default() };
    let mut rig = Rig::new(&setup, &Fake::default());
    rig.serve(&prompt(1, 8));
    rig.device.stop_after(Some(0));
    let room = rig.tiers.make_room(&mut rig.cache, usize::MAX);
    assert_eq!(room.pending_tokens, 8 * PAGE_TOKENS);
    rig.settle();
    assert_eq!((rig.cache.device().free(), rig.cache.host().free()), (40, 100));
    assert_eq!(rig.tiers.stats().failed_backups, 1);
    rig.assert_nothing_lost();
}

#[test]
fn a_store_that_fails_is_not_asked_for_the_rest_of_a_node() {
    use PageOutcome::{Busy, TimedOut, TooLarge, Unavailable};
    for outcome in [Unavailable, TimedOut, Busy, TooLarge] {
        let mut rig = Rig::new(&Setup::default(), &Fake::default());
        rig.store.break_all(Some(outcome));
        rig.serve(&prompt(1, 12));
        rig.settle();
        assert_eq!(rig.store.take_calls(), [Call::Put(0, 4)], "{outcome:?}");
        let stats = rig.tiers.stats();
        assert_eq!((stats.stored_pages, stats.unstored_pages), (0, 12));
        let failed =
            stats.unavailable_pages + stats.timed_out_pages + stats.busy_pages + stats.other_failed_pages;
        assert_eq!(failed, 4, "{outcome:?}");
        // Host memory has them all the same.
        rig.clear_device();
        assert_eq!(rig.serve_warm(&prompt(1, 12)), 12);
        rig.settle();
        rig.assert_nothing_lost();
    }
}

#[test]
fn a_dead_store_is_a_miss() {
    let mut rig = Rig::new(&Setup::default(), &Fake::default());
    rig.store.break_all(Some(PageOutcome::Unavailable));
    assert_eq!(rig.serve_warm(&prompt(1, 12)), 0);
    let stats = rig.tiers.stats();
    assert_eq!((stats.revoked_prefetches, stats.hit_pages), (1, 0));
    assert_eq!(stats.other_failed_pages, 12, "a question without an answer is counted");
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn a_host_page_in_use_fails_the_transfer_and_nothing_else() {
    let mut rig = Rig::new(&Setup::default(), &Fake::default());
    let text = prompt(1, 4);
    rig.serve(&text);
    rig.poll();
    let context = rig.tiers.context_for_tests();
    let held = context.host.read(2).unwrap();
    rig.settle();
    assert_eq!(rig.tiers.stats().failed_backups, 1);
    drop(held);
    assert_eq!(rig.cache.host().count(PageState::Loading), 0);
    assert_eq!(rig.serve(&text), 4);
    rig.settle();
    rig.assert_nothing_lost();
}
