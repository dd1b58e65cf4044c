//! From the store to host memory and to the device.

use super::fake::{Call, Fake};
use super::rig::{PAGE_TOKENS, Rig, Setup, keys, prompt};
use crate::{NotStarted, PrefetchEnd, PrefetchTicket, StopPolicy};
use memkv_client::PageOutcome;
use memkv_radix::{Access, PageState, PrefetchError, Tokens};
use std::time::{Duration, Instant};

/// A store with the pages of these prompts.
fn filled(prompts: &[&[u32]]) -> Fake {
    let store = Fake::default();
    let setup = Setup { device_pages: 1000, host_pages: 2000, ..Setup::default() };
    let mut rig = Rig::new(&setup, &store);
    for text in prompts {
        rig.serve(text);
    }
    rig.settle();
    store.take_calls();
    store
}

fn prefetch(rig: &mut Rig, prompt: &[u32]) -> Result<PrefetchTicket, NotStarted> {
    let space = rig.space.clone();
    rig.tiers.prefetch(&mut rig.cache, Access::of(&space), Tokens::from(&prompt[..prompt.len() - 1]))
}

fn big() -> Setup {
    Setup { device_pages: 400, host_pages: 1000, ..Setup::default() }
}

#[test]
fn what_one_engine_computed_another_one_finds() {
    let text = prompt(1, 20);
    let store = filled(&[&text]);
    let mut rig = Rig::new(&Setup::default(), &store);
    assert_eq!(rig.serve_warm(&text), 20);
    let stats = rig.tiers.stats();
    assert_eq!((stats.prefetches, stats.hit_pages, stats.prefetched_pages), (1, 20, 20));
    assert_eq!(stats.loaded_pages, 20);
    // Now it is on the device; nobody asks the store again.
    store.take_calls();
    assert_eq!(rig.serve_warm(&text), 20);
    assert_eq!(store.take_calls(), []);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn the_store_is_asked_in_batches_of_128_up_to_the_first_gap() {
    let text = prompt(1, 300);
    let store = filled(&[&text]);
    store.remove(keys(&text)[200]);
    let mut rig = Rig::new(&big(), &store);
    assert_eq!(rig.serve_warm(&text), 200);
    let calls = store.take_calls();
    let asked: Vec<_> = calls.iter().filter(|call| matches!(call, Call::Exists(_))).collect();
    assert_eq!(asked, [&Call::Exists(128), &Call::Exists(128)]);
    let got: usize = calls.iter().map(|call| if let Call::Get(pages) = call { *pages } else { 0 }).sum();
    assert_eq!(got, 200, "no page is read that the store does not have");
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn a_prompt_continues_where_the_cache_ends() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    let mut rig = Rig::new(&Setup::default(), &store);
    rig.serve(&prompt(1, 5));
    store.take_calls();
    assert_eq!(rig.serve_warm(&text), 12);
    assert_eq!(store.take_calls().first(), Some(&Call::Exists(7)));
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn too_little_is_not_fetched_and_takes_no_room() {
    let text = prompt(1, 100);
    let store = filled(&[&prompt(1, 63)]);
    let setup = Setup { prefetch_min_tokens: 256, ..big() };
    let mut rig = Rig::new(&setup, &store);
    // The rest of the prompt is worth a question, the answer no transfer.
    assert_eq!(rig.serve_warm(&text), 0);
    assert_eq!(store.take_calls().first(), Some(&Call::Exists(100)));
    assert_eq!(rig.tiers.stats().revoked_prefetches, 1);
    assert_eq!(rig.cache.stats().host_free, 1000);
    // 63 pages of 4 tokens are not even worth the question.
    let ticket = prefetch(&mut rig, &prompt(2, 63));
    let few = PrefetchError::TooFew { tokens: 252 };
    assert_eq!(ticket.unwrap_err(), NotStarted::Prefetch(few));
    let enough = prompt(3, 64);
    let mut rig = Rig::new(&setup, &filled(&[&enough]));
    assert_eq!(rig.serve_warm(&enough), 64);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn tokens_under_way_have_a_bound() {
    let (one, two) = (prompt(1, 10), prompt(2, 10));
    let store = filled(&[&one, &two]);
    let setup = Setup { prefetch_max_tokens: 15 * PAGE_TOKENS, ..Setup::default() };
    let mut rig = Rig::new(&setup, &store);
    let first = prefetch(&mut rig, &one).unwrap();
    let second = prefetch(&mut rig, &two).unwrap();
    rig.settle();
    assert_eq!(rig.tiers.prefetched(&first), Some(PrefetchEnd { hit_pages: 10, pages: 10 }));
    assert_eq!(rig.tiers.prefetched(&second), Some(PrefetchEnd { hit_pages: 10, pages: 0 }));
    assert_eq!(rig.tiers.stats().refused_prefetches, 1);
    // The tokens are free again.
    assert_eq!(rig.serve_warm(&two), 10);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn full_host_memory_refuses_a_prefetch() {
    let text = prompt(1, 20);
    let store = filled(&[&text]);
    let mut rig = Rig::new(&Setup { host_pages: 10, ..Setup::default() }, &store);
    assert_eq!(rig.serve_warm(&text), 0);
    assert_eq!(rig.tiers.stats().refused_prefetches, 1);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn a_page_that_fails_ends_the_run_before_it() {
    use PageOutcome::{Busy, Corrupt, Miss, SizeMismatch, TimedOut, Unavailable};
    let text = prompt(1, 12);
    for outcome in [Corrupt, Unavailable, TimedOut, Busy, SizeMismatch, Miss] {
        let store = filled(&[&text]);
        let bad = keys(&text)[6];
        match outcome {
            Miss => store.lose_after_exists(bad),
            _ => store.spoil(bad, outcome),
        }
        let mut rig = Rig::new(&Setup::default(), &store);
        assert_eq!(rig.serve_warm(&text), 6, "{outcome:?}");
        let stats = rig.tiers.stats();
        assert_eq!((stats.hit_pages, stats.prefetched_pages), (12, 6), "{outcome:?}");
        let counted = match outcome {
            Corrupt => stats.corrupt_pages,
            Unavailable => stats.unavailable_pages,
            TimedOut => stats.timed_out_pages,
            Busy => stats.busy_pages,
            SizeMismatch => stats.other_failed_pages,
            _ => stats.missed_pages,
        };
        assert_eq!(counted, 1, "{outcome:?}: {stats:?}");
        rig.settle();
        rig.assert_nothing_lost();
    }
}

/// A rig whose prefetch of 12 pages has brought exactly the first batch of 4.
fn halfway(stop: StopPolicy, store: &Fake, text: &[u32]) -> (Rig, PrefetchTicket) {
    let mut setup = Setup::default();
    setup.options.stop = stop;
    let mut rig = Rig::new(&setup, store);
    let ticket = prefetch(&mut rig, text).unwrap();
    while store.take_calls().iter().filter(|call| matches!(call, Call::Get(_))).count() == 0 {
        rig.hand.turn();
        rig.poll();
    }
    for _ in 0..6 {
        rig.hand.turn();
        assert_eq!(rig.poll(), 0);
    }
    (rig, ticket)
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[test]
fn best_effort_takes_what_has_come_and_the_rest_comes_for_others() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    let (mut rig, ticket) = halfway(StopPolicy::BestEffort, &store, &text);
    rig.tiers.stop_prefetch(&ticket);
    assert_eq!(rig.poll(), 1);
    assert_eq!(rig.tiers.prefetched(&ticket), Some(PrefetchEnd { hit_pages: 12, pages: 4 }));
    // The read that was under way still has its pages.
    assert_eq!((rig.hand.len(), rig.tiers.is_idle()), (1, false));
    assert_eq!(rig.cache.host().count(PageState::Loading), 8);
    rig.settle();
    assert_eq!(rig.tiers.stats().prefetched_pages, 8, "the second batch had begun, the third had not");
    let request = rig.start(&text);
    assert_eq!(request.host_hit().1, 8);
    rig.cache.abort(request);
    assert_eq!(rig.serve_warm(&text), 8, "its turn comes before the store has answered");
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn best_effort_admits_a_request_at_its_turn() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    let mut setup = Setup::default();
    setup.options.stop = StopPolicy::BestEffort;
    let mut rig = Rig::new(&setup, &store);
    let space = rig.space.clone();
    let (mut request, mut warmup) = (rig.start(&text), crate::Warmup::default());
    store.freeze(true);
    let mut calls = 0;
    while !rig.tiers.warm(&mut rig.cache, Access::of(&space), &mut request, &mut warmup) {
        calls += 1;
        assert!(calls < 100, "it is not admitted");
        rig.hand.turn();
        rig.poll();
    }
    assert_eq!(calls, 2, "it began, was stopped, and was ready");
    assert_eq!(rig.compute(request, &text), 0);
    store.freeze(false);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn wait_complete_waits() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    let (mut rig, ticket) = halfway(StopPolicy::WaitComplete, &store, &text);
    assert_eq!(rig.tiers.next_deadline(), None);
    assert_eq!(rig.tiers.poll_at(&mut rig.cache, far()), 0);
    rig.settle();
    assert_eq!(rig.tiers.prefetched(&ticket), Some(PrefetchEnd { hit_pages: 12, pages: 12 }));
    rig.assert_nothing_lost();
}

#[test]
fn a_timeout_ends_the_wait_with_what_has_come() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    let (mut rig, ticket) = halfway(StopPolicy::default(), &store, &text);
    let deadline = rig.tiers.next_deadline().unwrap();
    assert_eq!(rig.tiers.poll_at(&mut rig.cache, deadline - Duration::from_millis(1)), 0);
    assert_eq!(rig.tiers.prefetched(&ticket), None);
    assert_eq!(rig.tiers.poll_at(&mut rig.cache, deadline), 1);
    assert_eq!(rig.tiers.prefetched(&ticket), Some(PrefetchEnd { hit_pages: 12, pages: 4 }));
    assert_eq!(rig.tiers.stats().stopped_prefetches, 1);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn the_patience_is_counted_from_the_tokens_that_are_missing() {
    let text = prompt(1, 256);
    let mut rig = Rig::new(&big(), &filled(&[&text]));
    let before = Instant::now();
    let ticket = prefetch(&mut rig, &text).unwrap();
    let patience = rig.tiers.next_deadline().unwrap() - before;
    let expected = Duration::from_millis(1250);
    assert!(patience >= expected && patience < expected + Duration::from_secs(60), "{patience:?}");
    drop(ticket);
    rig.settle();
    rig.assert_nothing_lost();
}

#[test]
fn a_frozen_store_costs_the_patience_and_no_page() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    // Frozen from the start, and in the middle of the second batch.
    for turns in [0, 9] {
        let mut rig = Rig::new(&Setup::default(), &store);
        let ticket = prefetch(&mut rig, &text).unwrap();
        for _ in 0..turns {
            rig.hand.turn();
            rig.poll();
        }
        store.freeze(true);
        for _ in 0..20 {
            rig.hand.turn();
            assert_eq!(rig.poll(), 0);
        }
        assert_eq!(rig.tiers.poll_at(&mut rig.cache, far()), 1);
        let pages = rig.tiers.prefetched(&ticket).unwrap().pages;
        assert_eq!(pages, if turns == 0 { 0 } else { 4 });
        assert_eq!(rig.cache.host().count(PageState::Loading), if turns == 0 { 0 } else { 8 });
        store.freeze(false);
        rig.settle();
        assert_eq!(rig.serve_warm(&text), 12);
        rig.settle();
        rig.assert_nothing_lost();
    }
}

#[test]
fn a_question_that_is_given_up_begins_no_read() {
    let text = prompt(1, 300);
    let store = filled(&[&text]);
    let mut rig = Rig::new(&big(), &store);
    let ticket = prefetch(&mut rig, &text).unwrap();
    // The first 128 pages are known to be there; then the store hangs.
    for _ in 0..100 {
        if rig.tiers.stats().hit_pages == 0 {
            rig.hand.turn();
        }
    }
    store.freeze(true);
    assert_eq!(rig.tiers.stats().hit_pages, 128);
    assert_eq!(rig.tiers.poll_at(&mut rig.cache, far()), 1);
    assert_eq!(rig.tiers.prefetched(&ticket), Some(PrefetchEnd::default()));
    assert!(rig.tiers.is_idle());
    store.freeze(false);
    rig.settle();
    let read = store.take_calls().iter().any(|call| matches!(call, Call::Get(_)));
    assert_eq!((read, rig.tiers.stats().stopped_prefetches), (false, 1));
    rig.assert_nothing_lost();
}

#[test]
fn a_dropped_ticket_stops_its_prefetch() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    let mut rig = Rig::new(&Setup::default(), &store);
    drop(prefetch(&mut rig, &text).unwrap());
    rig.settle();
    // Also when the answer is there, and nobody wants it any more.
    let ticket = prefetch(&mut rig, &text).unwrap();
    while rig.hand.turn() {}
    drop(ticket);
    rig.settle();
    let read = store.take_calls().iter().any(|call| matches!(call, Call::Get(_)));
    assert_eq!((read, rig.tiers.stats().prefetched_pages), (false, 0));
    rig.assert_nothing_lost();
}

#[test]
fn pages_that_were_computed_meanwhile_come_for_nothing() {
    let text = prompt(1, 12);
    let store = filled(&[&text]);
    let (mut rig, ticket) = halfway(StopPolicy::WaitComplete, &store, &text);
    assert_eq!(rig.serve(&text), 0);
    rig.settle();
    assert_eq!(rig.tiers.prefetched(&ticket), Some(PrefetchEnd { hit_pages: 12, pages: 12 }));
    let stats = rig.tiers.stats();
    assert_eq!((stats.prefetched_pages, stats.duplicate_pages), (0, 12));
    rig.assert_nothing_lost();
}
