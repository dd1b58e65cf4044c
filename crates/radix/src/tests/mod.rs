//! Tests of the whole cache: golden traces, a naive model, and every way out of every transition.

mod events;
mod hashes;
mod model;
mod privacy;
mod requests;
mod scopes;
mod tiers;
mod trace;

use crate::{
    Access, BackupPlan, Config, EvidenceConfig, InsertOptions, Namespace, RadixCache, Shape, Sharing, Tokens,
    UserId,
};

/// A configuration without tiers.
fn config(page: usize, pages: u32) -> Config {
    Config::new(Shape::new(page, false).unwrap(), pages)
}

/// Evidence from three accounts.
fn evidence() -> Sharing {
    Sharing::Evidence(EvidenceConfig { users: 3, ..EvidenceConfig::default() })
}

/// A cache with pages of one token where accounts are told apart.
fn scoped(sharing: Sharing, pages: u32) -> RadixCache {
    let mut config = config(1, pages);
    config.sharing = sharing;
    RadixCache::new(config).unwrap()
}

/// Inserts pages as a request would and gives its duplicates back. Returns how many pages the tree took.
fn insert(cache: &mut RadixCache, access: Access<'_>, key: &[u32]) -> usize {
    let row = cache.alloc_pages(cache.shape().whole_pages(key.len())).unwrap();
    let done = cache.insert(access, Tokens::from(key), &row, InsertOptions::default()).unwrap();
    cache.release_pages(&row[..done.prefix_pages]).unwrap();
    cache.release_pages(&row[done.prefix_pages + done.taken_pages..]).unwrap();
    done.taken_pages
}

/// Evicts from the device where no copies have to be made first. Returns how many tokens went.
fn evict(cache: &mut RadixCache, tokens: usize) -> usize {
    let evicted = cache.evict_device(tokens);
    assert!(evicted.write_back.is_empty());
    evicted.tokens
}

/// Ends a copy after which nothing is to be done.
fn end_backup(cache: &mut RadixCache, plan: BackupPlan, copied: bool) {
    assert!(cache.end_backup(plan, copied).store.is_empty());
}

/// How many pages of a key an account finds on the device.
fn found(cache: &mut RadixCache, user: Option<u64>, key: &[u32]) -> usize {
    let namespace = Namespace::default();
    let access = Access { namespace: &namespace, user: user.map(UserId) };
    cache.match_prefix(access, Tokens::from(key)).pages.len()
}

/// A small generator of random numbers: the same seed gives the same run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) * bound) >> 31
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}
