//! What every policy promises, and what ours promises besides.

use crate::{Choice, Moment, Page, Policy, PolicyKind, Want};

fn page(number: u64, now_ms: u64, position: u32) -> Page {
    let digest = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Page { digest, word: 0, created_ms: now_ms, last_access_ms: now_ms, position, hits: 0, bytes: 10 }
}

/// Chains of four pages, some of which were used again.
fn traffic(policy: &dyn Policy) -> Vec<Page> {
    let mut pages: Vec<Page> = (0..200).map(|n| page(n, 10 + n / 4 * 100, (n % 4) as u32)).collect();
    pages.iter_mut().for_each(|page| page.word = policy.inserted(page, 0));
    for now_ms in [6_000, 7_000, 9_000] {
        for page in pages.iter_mut().filter(|page| page.created_ms / 100 % 3 == now_ms / 1000 % 3) {
            page.word = policy.accessed(page, (now_ms + page.created_ms / 100).into());
            page.last_access_ms = now_ms + page.created_ms / 100;
        }
        policy.learn(&mut pages.iter().copied(), now_ms);
    }
    pages
}

#[test]
fn exactly_as_many_go_as_are_wanted_each_once_and_each_time_the_same() {
    for kind in PolicyKind::ALL {
        let chosen = |want| {
            let (policy, mut choice) = (kind.build(100), Choice::default());
            let pages = traffic(&*policy);
            policy.choose(&pages, want, 10_000, &mut choice);
            let stay = choice.words.iter().all(|(at, _)| !choice.evict.contains(at));
            assert!(stay, "{kind}: a page that goes needs no word");
            choice.evict
        };
        for (want, count) in [
            (Want::Pages(0), 0),
            (Want::Pages(7), 7),
            (Want::Pages(200), 200),
            (Want::Pages(999), 200),
            (Want::Bytes(0), 0),
            (Want::Bytes(61), 7),
            (Want::Bytes(u64::MAX), 200),
        ] {
            let mut first = chosen(want);
            assert_eq!(first, chosen(want), "{kind} {want:?}");
            first.sort_unstable();
            first.dedup();
            assert_eq!(first.len(), count, "{kind} {want:?}");
        }
    }
}

#[test]
fn of_pages_used_together_the_deeper_go_first() {
    for kind in [PolicyKind::Lru, PolicyKind::Chain] {
        let (policy, mut choice) = (kind.build(100), Choice::default());
        let mut pages = traffic(&*policy);
        // The deep pages of a chain alone were used before, so that they seem to be worth more.
        for page in pages.iter_mut().filter(|page| page.position > 1) {
            page.word = policy.accessed(page, (page.last_access_ms + 500).into());
        }
        policy.choose(&pages, Want::Pages(200), 10_000, &mut choice);
        let order: Vec<Page> = choice.evict.iter().map(|&at| pages[at as usize]).collect();
        for (at, early) in order.iter().enumerate() {
            let same = order[at..].iter().filter(|late| late.last_access_ms == early.last_access_ms);
            assert!(same.map(|late| late.position).max() <= Some(early.position), "{kind}");
        }
    }
}

#[test]
fn a_page_that_comes_back_is_remembered() {
    for kind in [PolicyKind::S3Fifo, PolicyKind::Chain] {
        let policy = kind.build(100);
        let mut known = page(1, 10, 0);
        known.word = policy.inserted(&known, 0);
        policy.evicted(&known, 20);
        let stranger = policy.inserted(&page(2, 5_000, 0), 0);
        assert_ne!(policy.inserted(&page(1, 5_000, 0), 0), stranger, "{kind}");
        // Once: then the page itself knows.
        assert_eq!(policy.inserted(&page(1, 5_000, 0), 0), stranger, "{kind}");
    }
}

#[test]
fn names_are_read_back() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert_eq!("S3FIFO".parse(), Ok(PolicyKind::S3Fifo));
    assert!("fifo".parse::<PolicyKind>().unwrap_err().to_string().contains("lru s3-fifo sieve chain"));
}

#[test]
fn what_two_ask_for_in_one_millisecond_are_two_chains() {
    for kind in PolicyKind::ALL {
        let (policy, mut choice) = (kind.build(100), Choice::default());
        let mut pages: Vec<Page> = (0..8).map(|n| page(n, 5, (n % 4) as u32)).collect();
        for (tag, chain) in (1..).zip(pages.chunks_mut(4)) {
            chain.iter_mut().for_each(|page| page.word = policy.inserted(page, tag));
        }
        policy.choose(&pages, Want::Pages(4), 100, &mut choice);
        assert_eq!(choice.evict, [3, 2, 1, 0], "{kind}");
        if matches!(kind, PolicyKind::Lru | PolicyKind::Chain) {
            for (tag, chain) in [8, 7].into_iter().zip(pages.chunks_mut(4)) {
                let now = Moment { ms: 5, tag };
                chain.iter_mut().for_each(|page| page.word = policy.accessed(page, now));
            }
            policy.choose(&pages, Want::Pages(4), 100, &mut choice);
            assert_eq!(choice.evict, [7, 6, 5, 4], "{kind}");
        }
    }
}
