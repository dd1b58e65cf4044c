//! Played stores against stores that are not played.

use super::mini::Mini;
use super::word::Known;
use crate::{Choice, Page, Policy, PolicyKind, Want};

pub(super) fn page(number: u64, now_ms: u64) -> Page {
    Page {
        digest: number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        word: Known::FIRST.word(),
        created_ms: now_ms,
        last_access_ms: now_ms,
        position: 0,
        hits: 0,
        bytes: 1,
    }
}

/// Numbers of pages, small ones more often.
fn uses(count: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut state = 7_u64;
    (0..count).map(move |now_ms| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (a, b) = ((state >> 20) % 60, (state >> 40) % 60);
        (now_ms, a * b / 60)
    })
}

/// Uses a page as a store does that serves one at a time. Returns whether it was there.
fn serve(policy: &dyn Policy, pages: &mut Vec<Page>, seen: &Page, capacity: usize) -> bool {
    let now_ms = seen.last_access_ms;
    if let Some(here) = pages.iter_mut().find(|page| page.digest == seen.digest) {
        here.word = policy.accessed(here, now_ms);
        here.last_access_ms = now_ms;
        return true;
    }
    if pages.len() == capacity {
        let mut choice = Choice::default();
        policy.choose(pages, Want::Pages(1), now_ms, &mut choice);
        for (at, word) in choice.words {
            pages[at as usize].word = word;
        }
        let gone = pages.swap_remove(choice.evict[0] as usize);
        policy.evicted(&gone, now_ms);
    }
    let word = policy.inserted(seen);
    pages.push(Page { word, ..*seen });
    false
}

#[test]
fn a_played_store_has_what_a_store_would_have() {
    for kind in [PolicyKind::Lru, PolicyKind::S3Fifo, PolicyKind::Sieve] {
        let (policy, mut played) = (kind.build(16), kind.build(16));
        let (mut pages, mut mini, mut hits) = (Vec::new(), Mini::default(), 0);
        for (now_ms, number) in uses(3000) {
            let seen = page(number, now_ms);
            let expected = mini.holds(seen.digest);
            assert_eq!(serve(&*policy, &mut pages, &seen, 16), expected, "{kind} at {now_ms}");
            mini.play(&mut played, &[seen], 16);
            hits += u32::from(expected);
        }
        assert!((1000..2900).contains(&hits), "{kind}: {hits}");
    }
}

#[test]
fn what_was_foretold_ends_when_something_else_comes() {
    let (mut lru, mut mini) = (PolicyKind::Lru.build(8), Mini::default());
    let pages: Vec<Page> = (0..8).map(|number| page(number, number)).collect();
    pages.iter().for_each(|page| mini.play(&mut lru, &[*page], 8));
    mini.foretell(&mut lru, 3, 8, 8);
    let kept = |mini: &Mini| pages.iter().filter(|page| mini.keeps(page.digest)).count();
    assert_eq!(kept(&mini), 5);
    assert!(pages.iter().all(|page| mini.holds(page.digest)), "nothing has come yet");
    // One of them is used, and one page comes: two come back, one goes.
    mini.play(&mut lru, &[Page { last_access_ms: 9, ..pages[0] }, page(99, 9)], 8);
    assert_eq!(kept(&mini), 7);
    assert!(mini.keeps(pages[0].digest) && !mini.holds(pages[1].digest));
    mini.retain(|digest| digest != pages[5].digest);
    assert_eq!((kept(&mini), mini.digests().count()), (6, 7));
}
