//! Tests of the whole cache: golden traces, a naive model, and every way out of every transition.

mod hashes;
mod trace;

use crate::{Config, RadixCache, Shape};

/// A cache without tiers.
fn cache(page: usize, pages: u32) -> RadixCache {
    RadixCache::new(Config::new(Shape::new(page, false).unwrap(), pages)).unwrap()
}
