//! Played stores against stores that are not played, and what the order notes about chains.

use super::learn::{Seen, table};
use super::mini::Mini;
use super::seat;
use super::word::{Birth, Known};
use super::{Chain, is_learned};
use crate::{Choice, Page, Policy, PolicyKind, Want};
use std::sync::atomic::Ordering;

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
        here.word = policy.accessed(here, now_ms.into());
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
    let word = policy.inserted(seen, 0);
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

/// A chain that was used last at `now_ms`: for each page its position and how it is known.
fn chain(now_ms: u64, pages: &[(u32, Known)]) -> Vec<Page> {
    let page = |&(position, known): &(u32, Known)| Page {
        position,
        word: known.word(),
        ..page(now_ms << 32 | u64::from(position), now_ms)
    };
    pages.iter().map(page).collect()
}

/// What is known of these pages after the order has looked at them.
fn look(pages: &mut [Page]) -> Vec<Known> {
    let (worth, mut choice) = (Seen::new().worth(&table(), 1.0), Choice::default());
    seat::choose((&worth, seat::Doubt::CAREFUL), pages, Want::Pages(0), 10_000, &mut Vec::new(), &mut choice);
    for (at, word) in choice.words {
        pages[at as usize].word = word;
    }
    pages.iter().map(|page| Known::from_word(page.word)).collect()
}

fn births(pages: &mut [Page]) -> Vec<Birth> {
    look(pages).iter().map(|known| known.birth).collect()
}

#[test]
fn pages_that_come_are_told_apart_by_what_they_come_behind() {
    let first = Known::FIRST;
    let (twice, often) = (first.used(700), first.used(300).used(300).used(300));
    assert_eq!(births(&mut chain(5, &[(0, first), (1, first)])), [Birth::New; 2]);
    let known = look(&mut chain(5, &[(0, often), (1, twice), (2, first), (3, first)]));
    assert_eq!((known[0], known[1]), (often, twice), "only what was used once");
    assert!(known[2..].iter().all(|known| known.birth == Birth::Next && known.mean_gap == twice.mean_gap));
    assert_eq!(births(&mut chain(5, &[(0, often), (1, often), (2, first)]))[2], Birth::Branch);
    // Two chains are not one.
    let mut two = chain(5, &[(0, first), (1, first)]);
    two.extend(chain(6, &[(0, twice), (1, first)]));
    assert_eq!(births(&mut two)[..2], [Birth::New; 2]);
    assert_eq!(births(&mut two)[3], Birth::Next);
    // Nor are two in one millisecond.
    let tagged = Known { tag: 1, ..first };
    let mut two = chain(5, &[(0, first), (1, first)]);
    two.extend(chain(5, &[(0, Known { tag: 1, ..twice }), (1, tagged)]));
    assert_eq!(births(&mut two)[..2], [Birth::New; 2]);
    assert_eq!(births(&mut two)[3], Birth::Next);
}

#[test]
fn a_chain_of_which_other_servers_have_the_first_pages_is_whole() {
    let first = Known::FIRST;
    assert_eq!(births(&mut chain(5, &[(2, first), (5, first)])), [Birth::New; 2]);
    assert_eq!(births(&mut chain(5, &[(8, first)])), [Birth::New]);
    assert_eq!(births(&mut chain(5, &[(9, first), (11, first)])), [Birth::Branch; 2]);
}

#[test]
fn of_a_long_chain_few_pages_are_learned_from() {
    let learned: Vec<u32> = (0..40).filter(|&position| is_learned(position)).collect();
    assert_eq!(learned, [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
    // What they did is counted, what the others did is not.
    for (position, counted) in [(6, 1), (7, 0)] {
        let policy = Chain::new(100);
        let mut pages = chain(5, &[(position, Known::FIRST)]);
        policy.accessed(&pages[0], 900.into());
        pages[0].last_access_ms = 900;
        policy.evicted(&pages[0], 1000);
        let counts = policy.uses.iter().map(|counter| counter.load(Ordering::Relaxed)).sum::<u32>();
        assert_eq!(counts, counted);
        assert_eq!(policy.ghosts.take(pages[0].digest).unwrap().learned, counted == 1);
    }
}

#[test]
fn a_chain_that_was_used_without_its_end_branched_off() {
    let first = Known::FIRST;
    let (twice, often) = (first.used(700), first.used(300).used(300).used(300));
    // A system prompt, a conversation of two turns.
    let mut pages = chain(5, &[(0, often), (1, twice), (2, twice), (3, first)]);
    assert_eq!(births(&mut pages)[3], Birth::Next);
    // The system prompt is used by others, the conversation has ended or goes on.
    pages[0].last_access_ms = 7;
    assert_eq!(births(&mut pages)[3], Birth::Next);
    // The first turn is asked for again, and another second turn.
    pages[1].last_access_ms = 8;
    pages[2].last_access_ms = 8;
    assert_eq!(births(&mut pages)[3], Birth::Branch);
    let mut pages = chain(5, &[(0, first), (1, first)]);
    assert_eq!(births(&mut pages), [Birth::New; 2]);
    pages[0].last_access_ms = 7;
    assert_eq!(births(&mut pages), [Birth::New, Birth::Branch]);
}

#[test]
fn a_word_says_what_is_known() {
    for birth in [Birth::Unknown, Birth::New, Birth::Next, Birth::Branch] {
        let known = Known { uses: 1, mean_gap: 77, birth, anchor: 0x1234, tag: 0x5678 };
        assert_eq!(Known::from_word(known.word()), known);
    }
    // Mean gaps: the last one weighs a quarter after many, and half after the first.
    let gap = |known: Known| (f64::from(known.mean_gap) / 8.0).exp2();
    let near = |is: f64, should: f64| assert!((is / should).log2().abs() < 0.2, "{is} is not {should}");
    let once = Known::FIRST.used(1000);
    near(gap(once), 1000.0);
    near(gap(once.used(3000)), 2000.0);
    let often = (0..9).fold(once, |known, _| known.used(1000));
    near(gap(often.used(9000)), 3000.0);
    // A conversation inherits its gaps.
    let next = Known { birth: Birth::Next, ..Known { mean_gap: once.mean_gap, ..Known::FIRST } };
    near(gap(next.used(3000)), 2000.0);
    near(gap(Known { birth: Birth::Branch, ..next }.used(3000)), 3000.0);
    assert_eq!(Known::FIRST.used(u64::MAX).mean_gap, 255);
}

#[test]
fn a_page_that_goes_at_once_is_remembered_as_it_came() {
    let (policy, mut choice) = (Chain::new(100), Choice::default());
    let often = Known::FIRST.used(300).used(300).used(300);
    let pages = chain(5, &[(0, often), (1, Known::FIRST)]);
    policy.choose(&pages, Want::Pages(1), 6, &mut choice);
    assert_eq!((&choice.evict[..], &choice.words[..]), (&[1][..], &[][..]));
    policy.evicted(&pages[1], 6);
    assert_eq!(policy.ghosts.take(pages[1].digest).unwrap().known().birth, Birth::Branch);
}
