//! What the tree and the digests cost. `cargo bench -p memkv-radix`.

#![allow(missing_docs, reason = "criterion's macros make functions without documentation")]

#[path = "workload.rs"]
mod workload;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use memkv_radix::{Access, Namespace, PageChain, Shape, TokenBuf, Tokens};
use std::hint::black_box;
use workload::{PAGE, PROMPT, PROMPTS, cache, insert, prompt};

/// A tree of a million pages, inserted in chunks of so many pages.
fn full(chunk: usize) -> memkv_radix::RadixCache {
    let mut cache = cache(false);
    for number in 0..PROMPTS {
        insert(&mut cache, &Namespace::default(), &prompt(number), chunk);
    }
    assert!(cache.device().capacity() - cache.device().free() > 1_000_000);
    cache
}

fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("match of 512 pages among 10^6");
    for chunk in [512, 32, 4] {
        let mut cache = full(chunk);
        let namespace = Namespace::default();
        let keys: Vec<Vec<u32>> = (0..200).map(|at| prompt(at * PROMPTS / 200)).collect();
        let mut at = 0;
        group.bench_function(format!("nodes of up to {chunk} pages"), |b| {
            b.iter(|| {
                at = (at + 1) % keys.len();
                let found = cache.match_prefix(Access::of(&namespace), Tokens::from(&keys[at]));
                assert_eq!(found.pages.len(), PROMPT / PAGE);
                black_box(found)
            });
        });
    }
    group.finish();
}

fn inserting(c: &mut Criterion) {
    let mut group = c.benchmark_group("insert of 512 pages");
    group.throughput(Throughput::Elements((PROMPT / PAGE) as u64));
    for (hashes, name) in [(false, "without digests"), (true, "with digests")] {
        let mut cache = cache(hashes);
        let namespace = Namespace::default();
        let mut number = 0;
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || {
                    number += workload::GROUP;
                    prompt(number)
                },
                |tokens| insert(&mut cache, &namespace, tokens, 512),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn evicting(c: &mut Criterion) {
    let mut group = c.benchmark_group("evict");
    group.throughput(Throughput::Elements(512));
    let namespace = Namespace::default();
    let mut cache = full(32);
    let mut number = 0;
    group.bench_function("512 pages, which are then inserted again", |b| {
        b.iter(|| {
            let evicted = cache.evict_device(512 * PAGE);
            number += 1;
            insert(&mut cache, &namespace, &prompt(number % PROMPTS), 32);
            black_box(evicted.tokens)
        });
    });
    group.finish();
}

fn hashing(c: &mut Criterion) {
    let mut group = c.benchmark_group("digest chain of 32K tokens");
    group.throughput(Throughput::Bytes(PROMPT as u64 * 4));
    let narrow: TokenBuf = Tokens::from(&prompt(1)).into();
    for (page, bigram) in [(64, false), (16, false), (1, false), (64, true)] {
        let shape = Shape::new(page, bigram).expect("a page");
        let name = format!("pages of {page}{}", if bigram { " pairs" } else { "" });
        group.bench_function(name, |b| {
            b.iter(|| black_box(PageChain::new(shape, None).whole_pages(narrow.as_tokens())));
        });
    }
    group.finish();
}

criterion_group!(benches, matching, inserting, evicting, hashing);
criterion_main!(benches);
