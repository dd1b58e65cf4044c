//! Requests: chunks, decoding, and every way out.

use super::{config, end_backup, evict};
use crate::{Access, InsertError, Namespace, NotCovered, PageState, Progress, RadixCache, Shape, Tokens};

fn private(cache: &RadixCache) -> usize {
    cache.device().count(PageState::Private)
}

#[test]
fn the_last_prompt_token_is_always_computed() {
    let mut cache = RadixCache::new(config(4, 16)).unwrap();
    let namespace = Namespace::default();
    let prompt: Vec<u32> = (0..8).collect();
    let mut request = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
    cache.reserve(&mut request, 8).unwrap();
    cache.finish(request, 8).unwrap();
    let request = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
    assert_eq!(request.protected_pages(), 1);
    assert_eq!((request.cached_tokens(), request.suffix_tokens()), (4, 4));
    cache.abort(request);
    cache.check().unwrap();
}

#[test]
fn admission_leaves_the_watermark_to_running_requests() {
    let mut config = config(2, 8);
    config.watermark_pages = 2;
    let mut cache = RadixCache::new(config).unwrap();
    let namespace = Namespace::default();
    super::insert(&mut cache, Access::of(&namespace), &[1, 2, 3, 4]);
    let mut request = cache.start(Access::of(&namespace), Tokens::from(&[1u32, 2, 9]), 0);
    // One page is shared, one may be evicted, six are free, two of them are not for new requests.
    assert!(cache.admits(&request, 12) && !cache.admits(&request, 13));
    cache.reserve(&mut request, 16).unwrap();
    cache.abort(request);
    cache.check().unwrap();
}

#[test]
fn chunks_and_output_go_to_the_tree_and_the_tail_is_freed() {
    let mut cache = RadixCache::new(config(4, 16)).unwrap();
    let namespace = Namespace::default();
    let prompt: Vec<u32> = (0..10).collect();
    let mut request = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
    cache.reserve(&mut request, 6).unwrap();
    let first = cache.checkpoint(&mut request, 6).unwrap();
    assert_eq!(first, Progress { taken_pages: 1, ..Progress::default() });
    assert_eq!((request.protected_pages(), request.row().len()), (1, 2));
    cache.check().unwrap();
    cache.reserve(&mut request, 13).unwrap();
    for token in 100..104 {
        request.push(token);
    }
    // 14 tokens, the last one sampled but not computed.
    let end = cache.finish(request, 13).unwrap();
    assert_eq!(end, Progress { taken_pages: 2, duplicate_pages: 0, tail_pages: 1 });
    assert_eq!(private(&cache), 0);
    cache.check().unwrap();
    // The output's page has a node of its own and goes before the prompt's.
    assert_eq!(cache.evict_device(1).tokens, 4);
    let key: Vec<u32> = (0..10).chain([100, 101]).collect();
    assert_eq!(cache.match_prefix(Access::of(&namespace), Tokens::from(&key)).pages.len(), 2);
}

#[test]
fn duplicates_are_freed_and_the_row_names_the_tree_s_pages() {
    let mut cache = RadixCache::new(config(2, 16)).unwrap();
    let namespace = Namespace::default();
    let prompt: Vec<u32> = (0..7).collect();
    let mut a = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
    let mut b = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
    cache.reserve(&mut a, 7).unwrap();
    cache.reserve(&mut b, 7).unwrap();
    cache.checkpoint(&mut a, 7).unwrap();
    let progress = cache.checkpoint(&mut b, 5).unwrap();
    assert_eq!(progress, Progress { taken_pages: 0, duplicate_pages: 2, tail_pages: 0 });
    assert_eq!(a.row()[..2], b.row()[..2]);
    assert_ne!(a.row()[3], b.row()[3]);
    cache.check().unwrap();
    assert_eq!(cache.finish(b, 7).unwrap().duplicate_pages, 1);
    cache.abort(a);
    assert_eq!(cache.evict_device(100).tokens, 6);
    assert_eq!(cache.device().free(), 16);
}

#[test]
fn a_request_counts_one_hit_for_what_it_inserted_before() {
    // With selective write-through a node is copied at its second hit; a request's chunks are no second hits.
    let mut config = config(2, 16).with_host(16, crate::WritePolicy::Selective);
    config.policy = Box::new(crate::Policy::Lfu);
    let mut cache = RadixCache::new(config).unwrap();
    let namespace = Namespace::default();
    let prompt: Vec<u32> = (0..7).collect();
    let mut request = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
    cache.reserve(&mut request, 7).unwrap();
    for computed in [3, 5, 6] {
        cache.checkpoint(&mut request, computed).unwrap();
    }
    cache.finish(request, 7).unwrap();
    assert!(cache.next_backup().is_none());
    let again = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
    assert_eq!(again.protected_pages(), 3);
    cache.finish(again, 6).unwrap();
    let plan = cache.next_backup().unwrap();
    end_backup(&mut cache, plan, true);
}

#[test]
fn every_way_out_gives_all_pages_back() {
    for way in 0..6 {
        let mut cache = RadixCache::new(config(2, 16)).unwrap();
        let namespace = Namespace::default();
        let prompt: Vec<u32> = (0..9).collect();
        let mut request = cache.start(Access::of(&namespace), Tokens::from(&prompt), 0);
        if way > 0 {
            cache.reserve(&mut request, 5).unwrap();
        }
        if way > 1 {
            cache.checkpoint(&mut request, 5).unwrap();
        }
        if way > 2 {
            cache.reserve(&mut request, 9).unwrap();
        }
        match way {
            4 => assert_eq!(cache.retract(request).len(), 9),
            5 => {
                let error = cache.finish(request, 11).unwrap_err();
                assert_eq!(error, NotCovered { computed: 11, tokens: 9, covered: 10 });
            }
            _ => cache.abort(request),
        }
        assert_eq!(private(&cache), 0, "way {way}");
        assert_eq!(cache.stats().protected_tokens, 0, "way {way}");
        cache.check().unwrap();
        evict(&mut cache, usize::MAX);
        assert_eq!(cache.device().free(), 16, "way {way}");
    }
}

#[test]
fn a_hopeless_allocation_evicts_nothing() {
    let mut cache = RadixCache::new(config(1, 8)).unwrap();
    let namespace = Namespace::default();
    super::insert(&mut cache, Access::of(&namespace), &[1, 2, 3]);
    assert_eq!(cache.alloc_pages(9).unwrap_err().wanted, 9);
    assert_eq!(cache.stats().evictable_tokens, 3);
    let pages = cache.alloc_pages(8).unwrap();
    assert_eq!(cache.stats().evictable_tokens, 0);
    cache.release_pages(&pages).unwrap();
    assert!(cache.release_pages(&pages).is_err(), "nothing is freed twice");
}

#[test]
fn pairs_and_wide_tokens_work_through_a_whole_request() {
    let shape = Shape::new(2, true).unwrap();
    let mut cache = RadixCache::new(crate::Config::new(shape, 16)).unwrap();
    let namespace = Namespace::default();
    let prompt = crate::TokenBuf::from_wide(&[1, 2, 1 << 33, 4, 5, 6, 7]);
    let mut request = cache.start(Access::of(&namespace), prompt.as_tokens(), 0);
    cache.reserve(&mut request, 7).unwrap();
    assert_eq!(
        cache.finish(request, 7).unwrap(),
        Progress { taken_pages: 3, duplicate_pages: 0, tail_pages: 1 }
    );
    cache.check().unwrap();
    let found = |cache: &mut RadixCache, key: &[u64]| {
        let key = crate::TokenBuf::from_wide(key);
        cache.match_prefix(Access::of(&namespace), key.as_tokens()).pages.len()
    };
    assert_eq!(found(&mut cache, &[1, 2, 1 << 33, 4, 5]), 2);
    assert_eq!(found(&mut cache, &[1, 2, 1 << 33, 4]), 1);
    assert_eq!(found(&mut cache, &[1, 2, 0, 4, 5]), 0, "a wide token differs from its low half");
    assert_eq!(found(&mut cache, &[1, 2, 1 << 33, 4, 6, 6, 7]), 1, "the pair (4, 6) is not (4, 5)");
    cache.check().unwrap();
}

#[test]
fn a_row_that_is_short_stale_or_names_a_page_twice_changes_nothing() {
    let mut cache = RadixCache::new(config(1, 8)).unwrap();
    let namespace = Namespace::default();
    let row = cache.alloc_pages(3).unwrap();
    let stale = cache.alloc_pages(1).unwrap();
    cache.release_pages(&stale).unwrap();
    let key = [1u32, 2, 3];
    let mut insert = |row: &[crate::DevicePage]| {
        let options = crate::InsertOptions::default();
        cache.insert(Access::of(&namespace), Tokens::from(&key), row, options)
    };
    assert!(matches!(insert(&row[..2]), Err(InsertError::ShortRow { wanted: 3, got: 2 })));
    assert!(matches!(insert(&[row[0], row[1], stale[0]]), Err(InsertError::Page(_))));
    assert!(matches!(insert(&[row[0], row[1], row[0]]), Err(InsertError::Page(_))));
    assert_eq!(insert(&row).unwrap().taken_pages, 3);
    assert!(matches!(insert(&row), Err(InsertError::Page(_))), "the tree has them now");
    cache.check().unwrap();
}
