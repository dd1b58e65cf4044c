//! The prompts of the benchmarks: 32K tokens each; sixteen share their first 4K. The Python script beside this file
//! makes the same ones.

// Each program that includes this file uses another part of it.
#![allow(dead_code, reason = "each program uses another part")]

use memkv_radix::{Access, Config, InsertOptions, Namespace, RadixCache, Shape, Tokens};

/// Tokens per page.
pub(crate) const PAGE: usize = 64;
/// Tokens per prompt.
pub(crate) const PROMPT: usize = 32 * 1024;
/// Tokens that the prompts of a group share.
pub(crate) const SHARED: usize = 4096;
/// Prompts per group.
pub(crate) const GROUP: usize = 16;
/// Prompts that make a tree of a little more than a million pages.
pub(crate) const PROMPTS: usize = 139 * GROUP;

/// The tokens of one prompt, below 2^17.
pub(crate) fn prompt(number: usize) -> Vec<u32> {
    let token = |at: usize| {
        let owner = if at < SHARED { 1_000_000 + number / GROUP } else { number } as u32;
        owner.wrapping_mul(0x9e37_79b1).wrapping_add((at as u32).wrapping_mul(0x85eb_ca6b)) >> 15
    };
    (0..PROMPT).map(token).collect()
}

/// A cache with room for all prompts.
pub(crate) fn cache(hashes: bool) -> RadixCache {
    let shape = Shape::new(PAGE, false).expect("a page of 64");
    let mut config = Config::new(shape, (PROMPTS * PROMPT / PAGE) as u32);
    config.hashes = hashes;
    RadixCache::new(config).expect("the parts fit")
}

/// Inserts a prompt in chunks of `chunk` pages, as a chunked prefill does. Returns how many pages were new.
pub(crate) fn insert(cache: &mut RadixCache, namespace: &Namespace, tokens: &[u32], chunk: usize) -> usize {
    let pages = tokens.len() / PAGE;
    let mut row = Vec::with_capacity(pages);
    let mut new = 0;
    while row.len() < pages {
        let owned = row.len();
        let count = chunk.min(pages - owned);
        row.extend(cache.alloc_pages(count).expect("the pool is large enough"));
        let options = InsertOptions { owned_pages: owned, counted_pages: owned, priority: 0 };
        let key = Tokens::from(tokens).slice(0..row.len() * PAGE);
        let done = cache.insert(Access::of(namespace), key, &row, options).expect("the pages are ours");
        new += done.taken_pages;
        let duplicates = owned.min(done.prefix_pages)..done.prefix_pages;
        cache.release_pages(&row[duplicates]).expect("the duplicates are ours");
    }
    new
}
