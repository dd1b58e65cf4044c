//! Rules of private and public pages that the trace does not reach, among them the known flaws of earlier designs.

use super::{config, evidence, found, insert, scoped};
use crate::{Access, Alert, ConfigError, EvidenceConfig, Namespace, RadixCache, Sharing, Tokens, UserId};

fn by(namespace: &Namespace, user: u64) -> Access<'_> {
    Access::by(namespace, UserId(user))
}

#[test]
fn one_wrong_token_is_a_miss_also_with_pages_of_one_token() {
    let mut cache = RadixCache::new(config(1, 64)).unwrap();
    let namespace = Namespace::default();
    let key: Vec<u32> = (0..20).collect();
    insert(&mut cache, Access::of(&namespace), &key);
    for at in 0..20 {
        let mut other = key.clone();
        other[at] += 1000;
        assert_eq!(found(&mut cache, None, &other), at);
    }
}

#[test]
fn a_request_without_an_account_sees_public_pages_only_and_adds_none() {
    let mut cache = scoped(Sharing::Declared, 64);
    let namespace = Namespace::default();
    cache.declare(&namespace, Tokens::from(&[1u32, 2]));
    insert(&mut cache, by(&namespace, 7), &[1, 2, 3]);
    assert_eq!(found(&mut cache, None, &[1, 2, 3]), 2);
    assert_eq!(insert(&mut cache, Access::of(&namespace), &[1, 2, 3, 4]), 0);
    assert_eq!(found(&mut cache, Some(7), &[1, 2, 3, 4]), 3);
    // The match again while it is cached, in the middle of a request, is by the same account.
    let mut request = cache.start(Access::of(&namespace), Tokens::from(&[1u32, 2, 3, 4]), 0);
    assert_eq!(request.protected_pages(), 2);
    cache.reserve(&mut request, 4).unwrap();
    cache.checkpoint(&mut request, 3).unwrap();
    assert_eq!(request.protected_pages(), 2);
    cache.finish(request, 4).unwrap();
    cache.check().unwrap();
}

#[test]
fn an_insert_neither_enters_nor_replaces_nor_measures_what_another_account_has() {
    let mut cache = scoped(Sharing::Declared, 64);
    let namespace = Namespace::default();
    insert(&mut cache, by(&namespace, 1), &[1, 2, 3]);
    // The second account's insert reports no duplicate, takes all its pages and leaves the first one's alone.
    assert_eq!(insert(&mut cache, by(&namespace, 2), &[1, 2, 3, 4]), 4);
    assert_eq!(found(&mut cache, Some(1), &[1, 2, 3, 4]), 3);
    assert_eq!(found(&mut cache, Some(2), &[1, 2, 3, 4]), 4);
    let first = cache.match_prefix(by(&namespace, 1), Tokens::from(&[1u32, 2, 3])).pages;
    let second = cache.match_prefix(by(&namespace, 2), Tokens::from(&[1u32, 2, 3])).pages;
    assert!(first.iter().all(|page| !second.contains(page)));
    cache.check().unwrap();
}

#[test]
fn counters_of_the_halves_of_a_split_are_apart() {
    let mut cache = scoped(evidence(), 64);
    let namespace = Namespace::default();
    let submit = |cache: &mut RadixCache, user: u64, key: &[u32]| {
        let match_ = cache.match_prefix(by(&namespace, user), Tokens::from(key));
        insert(cache, by(&namespace, user), key);
        cache.note_submission(by(&namespace, user), Tokens::from(key), &match_);
    };
    submit(&mut cache, 1, &[1, 2, 3, 4]);
    submit(&mut cache, 1, &[1, 2, 9]);
    submit(&mut cache, 2, &[1, 2, 8]);
    submit(&mut cache, 3, &[1, 2, 7]);
    let closed = cache.close_window();
    assert_eq!(closed.promoted.len(), 2, "the upper half has three accounts, the lower one has one");
    assert_eq!(found(&mut cache, Some(4), &[1, 2, 3, 4]), 2);
    assert_eq!(found(&mut cache, Some(1), &[1, 2, 3, 4]), 4);
    cache.check().unwrap();
}

#[test]
fn a_subtree_is_freed_children_first() {
    let mut config = config(1, 64);
    config.max_events = 64;
    let mut cache = RadixCache::new(config).unwrap();
    let namespace = Namespace::default();
    insert(&mut cache, Access::of(&namespace), &[1, 2]);
    insert(&mut cache, Access::of(&namespace), &[1, 2, 3]);
    let order = cache.match_prefix(Access::of(&namespace), Tokens::from(&[1u32, 2, 3])).pages;
    let freed = cache.clear();
    assert_eq!(freed[0], order[2]);
    assert_eq!(cache.device().free(), 64);
}

#[test]
fn a_locked_copy_is_kept_and_another_locked_copy_goes_with_its_lock() {
    let mut cache = scoped(evidence(), 64);
    let namespace = Namespace::default();
    let prompt = [1u32, 2, 3, 4, 5];
    let mut requests = Vec::new();
    for user in 1..=3 {
        let access = by(&namespace, user);
        let mut request = cache.start(access, Tokens::from(&prompt), 0);
        cache.reserve(&mut request, 5).unwrap();
        cache.checkpoint(&mut request, 4).unwrap();
        requests.push(request);
    }
    let rows: Vec<_> = requests.iter().map(|request| request.row().to_vec()).collect();
    let closed = cache.close_window();
    // All five pages were submitted, four are cached, twelve copies become four.
    assert_eq!((closed.promoted.len(), closed.merged_pages), (4, 8));
    cache.check().unwrap();
    assert_eq!(cache.evict_device(100).tokens, 0, "what requests read is never freed");
    for (request, row) in requests.iter().zip(&rows) {
        assert!(row.iter().all(|page| cache.device().state(*page).is_some()));
        assert_eq!(request.row(), &row[..]);
    }
    for request in requests {
        cache.finish(request, 5).unwrap();
        cache.check().unwrap();
    }
    // The fifth page came when the prefix was public already, so it is the first account's own.
    assert_eq!(found(&mut cache, None, &prompt), 4);
    assert_eq!(found(&mut cache, Some(1), &prompt), 5);
    assert!(cache.evict_device(100).write_back.is_empty());
    assert_eq!(cache.device().free(), 64);
}

#[test]
fn what_hung_below_a_merged_copy_hangs_below_the_kept_one() {
    let mut cache = scoped(evidence(), 64);
    let namespace = Namespace::default();
    for user in 1..=3u32 {
        let key = [1, 2, 10 + user];
        let access = by(&namespace, u64::from(user));
        let request = cache.start(access, Tokens::from(&[1u32, 2, 0]), 0);
        cache.abort(request);
        insert(&mut cache, access, &key);
    }
    let lock = {
        let node = cache.match_prefix(by(&namespace, 2), Tokens::from(&[1u32, 2])).device_node;
        cache.lock(node).unwrap()
    };
    let other = {
        let node = cache.match_prefix(by(&namespace, 3), Tokens::from(&[1u32, 2])).device_node;
        cache.lock(node).unwrap()
    };
    let closed = cache.close_window();
    assert_eq!((closed.promoted.len(), closed.merged_pages), (2, 4));
    cache.check().unwrap();
    assert_eq!(found(&mut cache, Some(1), &[1, 2, 11]), 3, "an unlocked copy's children move at once");
    cache.unlock(lock);
    cache.unlock(other);
    cache.check().unwrap();
    for user in 1..=3u32 {
        assert_eq!(found(&mut cache, Some(u64::from(user)), &[1, 2, 10 + user]), 3);
        assert_eq!(found(&mut cache, Some(u64::from(user)), &[1, 2, 11 + user]), 2);
    }
}

#[test]
fn content_below_a_locked_merged_copy_is_not_counted_twice() {
    let mut config = config(1, 64);
    config.sharing = evidence();
    config.max_events = 1000;
    let mut cache = RadixCache::new(config).unwrap();
    let mut reader = super::events::Reader::default();
    let namespace = Namespace::default();
    let key = [1u32, 2];
    let mut locks = Vec::new();
    for user in 1..=3 {
        let request = cache.start(by(&namespace, user), Tokens::from(&[1u32, 0]), 0);
        cache.abort(request);
        insert(&mut cache, by(&namespace, user), &key);
        let node = cache.match_prefix(by(&namespace, user), Tokens::from(&key[..1])).device_node;
        locks.push(cache.lock(node).unwrap());
    }
    assert_eq!(cache.close_window().promoted.len(), 1);
    reader.read(cache.take_events());
    for user in 1..=3 {
        insert(&mut cache, by(&namespace, user), &key);
        reader.read(cache.take_events());
        cache.check().unwrap();
    }
    for lock in locks {
        cache.unlock(lock);
        reader.read(cache.take_events());
        cache.check().unwrap();
    }
    assert_eq!(cache.content().len(), 4);
    assert_eq!(reader.content.len(), 4);
    assert_eq!(cache.stats().evictable_tokens, 4);
}

#[test]
fn a_demoted_page_is_out_of_sight_at_once_and_its_running_request_ends_well() {
    let mut cache = scoped(evidence(), 64);
    let namespace = Namespace::default();
    let prompt = [1u32, 2, 3];
    insert(&mut cache, by(&namespace, 1), &prompt);
    assert_eq!(cache.classify(by(&namespace, 2), Tokens::from(&prompt)).promoted.len(), 0, "not the owner");
    assert_eq!(cache.classify(by(&namespace, 1), Tokens::from(&prompt)).promoted.len(), 3);
    let submit = |cache: &mut RadixCache, user| {
        let match_ = cache.match_prefix(by(&namespace, user), Tokens::from(&prompt));
        cache.note_submission(by(&namespace, user), Tokens::from(&prompt), &match_)
    };
    submit(&mut cache, 1);
    cache.close_window();
    let mut running = cache.start(by(&namespace, 5), Tokens::from(&[1u32, 2, 3, 4]), 0);
    assert_eq!(running.protected_pages(), 3);
    cache.reserve(&mut running, 4).unwrap();
    let alerts: Vec<Alert> = (0..40).flat_map(|_| submit(&mut cache, 5)).collect();
    assert_eq!(alerts, [Alert::Demoted { depth: 1, pages: 3 }]);
    cache.check().unwrap();
    assert_eq!(found(&mut cache, Some(5), &prompt), 0);
    assert_eq!(cache.device().free(), 60, "the running request still reads them");
    assert_eq!(cache.checkpoint(&mut running, 4).unwrap().taken_pages, 0);
    cache.finish(running, 4).unwrap();
    assert_eq!(cache.device().free(), 64);
    cache.check().unwrap();
}

#[test]
fn nobody_empties_the_cache_by_hammering_what_is_public_on_evidence() {
    let mut cache = scoped(evidence(), 64);
    let namespace = Namespace::default();
    for user in 1..=3 {
        let request = cache.start(by(&namespace, user), Tokens::from(&[1u32, 2, 3]), 0);
        cache.abort(request);
        insert(&mut cache, by(&namespace, user), &[1, 2]);
    }
    assert_eq!(cache.close_window().promoted.len(), 2);
    let one = cache.start(by(&namespace, 9), Tokens::from(&[1u32, 2, 3]), 0);
    cache.abort(one);
    cache.close_window();
    let mut alerts = Vec::new();
    for _ in 0..50 {
        let request = cache.start(by(&namespace, 9), Tokens::from(&[1u32, 2, 3]), 0);
        alerts.extend_from_slice(request.alerts());
        cache.abort(request);
    }
    assert!(!alerts.is_empty());
    assert!(alerts.iter().all(|alert| matches!(alert, Alert::Surge { .. })));
    assert_eq!(found(&mut cache, None, &[1, 2]), 2);
}

#[test]
fn declaring_makes_present_copies_public_and_the_rest_stays_private() {
    let mut cache = scoped(Sharing::Declared, 64);
    let namespace = Namespace::default();
    insert(&mut cache, by(&namespace, 1), &[1, 2, 3]);
    insert(&mut cache, by(&namespace, 2), &[1, 2, 4]);
    let closed = cache.declare(&namespace, Tokens::from(&[1u32, 2, 9]));
    assert_eq!((closed.promoted.len(), closed.merged_pages), (2, 2));
    cache.check().unwrap();
    assert_eq!(found(&mut cache, Some(3), &[1, 2, 3]), 2);
    assert_eq!(found(&mut cache, Some(1), &[1, 2, 3]), 3);
    assert_eq!(insert(&mut cache, by(&namespace, 3), &[1, 2, 9, 8]), 2);
    assert_eq!(found(&mut cache, None, &[1, 2, 9, 8]), 3, "the last declared page came later");
    let other = Namespace::new(Some("adapter"), None).unwrap();
    let match_ = cache.match_prefix(by(&other, 1), Tokens::from(&[1u32, 2]));
    assert!(match_.pages.is_empty(), "what is public is public in its namespace");
    cache.check().unwrap();
}

#[test]
fn what_is_declared_cannot_be_demoted_any_more() {
    let mut cache = scoped(evidence(), 64);
    let namespace = Namespace::default();
    insert(&mut cache, by(&namespace, 1), &[1, 2]);
    assert_eq!(cache.classify(by(&namespace, 1), Tokens::from(&[1u32, 2])).promoted.len(), 2);
    cache.declare(&namespace, Tokens::from(&[1u32, 2]));
    for window in 0..2 {
        for _ in 0..=window * 20 {
            let match_ = cache.match_prefix(by(&namespace, 5), Tokens::from(&[1u32, 2]));
            let alerts = cache.note_submission(by(&namespace, 5), Tokens::from(&[1u32, 2]), &match_);
            assert!(!alerts.iter().any(|alert| matches!(alert, Alert::Demoted { .. })), "{alerts:?}");
        }
        cache.close_window();
    }
    assert_eq!(found(&mut cache, None, &[1, 2]), 2);
}

#[test]
fn private_pages_of_two_accounts_never_have_one_name() {
    let mut cache = scoped(Sharing::Declared, 64);
    let namespace = Namespace::default();
    cache.declare(&namespace, Tokens::from(&[1u32]));
    let mut last = Vec::new();
    for user in 1..=2 {
        insert(&mut cache, by(&namespace, user), &[1, 2]);
        last.push(cache.match_prefix(by(&namespace, user), Tokens::from(&[1u32, 2])).last_digest);
    }
    assert!(last[0].is_some());
    assert_ne!(last[0], last[1]);
    // It is the name that a cache has that gives the account's salt to the whole prompt.
    let chain = crate::PageChain::new(cache.shape(), Some(namespace.owner_seed(UserId(1))))
        .whole_pages(Tokens::from(&[1u32, 2]));
    assert_eq!(last[0], chain.last().copied());
}

#[test]
fn private_chains_lose_their_tail_page_by_page() {
    let mut cache = scoped(Sharing::Declared, 64);
    let namespace = Namespace::default();
    insert(&mut cache, by(&namespace, 1), &[1, 2, 3, 4, 5]);
    assert_eq!(cache.evict_device(2).tokens, 2);
    assert_eq!(found(&mut cache, Some(1), &[1, 2, 3, 4, 5]), 3);
    cache.check().unwrap();
}

#[test]
fn evidence_from_two_accounts_is_refused() {
    let mut config = config(1, 4);
    config.sharing = Sharing::Evidence(EvidenceConfig { users: 2, ..EvidenceConfig::default() });
    assert_eq!(RadixCache::new(config).err(), Some(ConfigError::TooFewUsers));
    assert_eq!(EvidenceConfig::default().users, 8);
}
