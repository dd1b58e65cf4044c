//! Requests that wait for tiers: others pass them, and nobody is stuck or lost.

use crate::MODEL;
use crate::harness::{answer, ask};
use memkv_radix::{Access, Config, RadixCache, Shape};
use memkv_tiny_engine::{
    Answer, Event, Executor, KvLayout, KvPool, Lower, RequestId, Router, RouterLimits, TransformerExecutor,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const PAGE_TOKENS: usize = 4;

/// Tiers that have nothing and take their time to say so: each request is ready after so many questions.
struct Slow {
    delays: Vec<u32>,
    asked: usize,
}

impl Lower for Slow {
    type Warmup = Option<u32>;

    fn poll(&mut self, _cache: &mut RadixCache) {}

    fn warm(
        &mut self,
        _: &mut RadixCache,
        _: Access<'_>,
        _: &mut memkv_radix::Request,
        left: &mut Option<u32>,
    ) -> bool {
        let left = left.get_or_insert_with(|| {
            self.asked += 1;
            self.delays[(self.asked - 1) % self.delays.len()]
        });
        *left = left.saturating_sub(1);
        *left == 0
    }

    fn wait(&self, _patience: Duration) {}

    fn drain(&mut self, _cache: &mut RadixCache, _patience: Duration) -> bool {
        true
    }

    fn shut_down(&mut self, _cache: &mut RadixCache, _patience: Duration) -> bool {
        true
    }
}

fn engine(pages: u32, limits: RouterLimits, delays: Vec<u32>) -> (Router<Slow>, TransformerExecutor) {
    let pool = Arc::new(KvPool::new(KvLayout::new(&MODEL.config, PAGE_TOKENS), pages as usize));
    let shape = Shape::new(PAGE_TOKENS, false).expect("a page size");
    let cache = RadixCache::new(Config::new(shape, pages)).expect("a valid configuration");
    let router = Router::with_tiers(limits, MODEL.config.vocabulary, cache, Slow { delays, asked: 0 });
    (router, TransformerExecutor::new(MODEL.clone(), pool))
}

/// One step; the answers that it completed.
fn step(router: &mut Router<Slow>, executor: &mut TransformerExecutor) -> Vec<Answer> {
    let Some(batch) = router.plan() else { return Vec::new() };
    let logits = executor.execute(&batch.runs()).expect("the router's batches fit");
    let events = router.commit(&batch, logits.view());
    events
        .into_iter()
        .filter_map(|event| if let Event::Finished(answer) = event { Some(answer) } else { None })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_request_is_answered_or_aborted_however_long_the_tiers_take(
        trunk in prop::collection::vec(0_u32..97, 12),
        prompts in prop::collection::vec((0_usize..12, prop::collection::vec(0_u32..97, 1..12)), 1..7),
        delays in prop::collection::vec(0_u32..9, 1..5),
        aborts in prop::collection::vec((0_usize..20, 0_usize..7), 0..4),
        running in 1_usize..5,
        // From what one request needs alone: those that wait hold pages that others want.
        pages in 7_u32..20,
    ) {
        let limits = RouterLimits { batch_tokens: 9, running, waiting: 16 };
        let (mut router, mut executor) = engine(pages, limits, delays);
        let prompts: Vec<_> = prompts.iter().map(|(cut, rest)| [&trunk[..*cut], rest].concat()).collect();
        let wanted: Vec<_> = prompts.iter().map(|prompt| answer(prompt, 3)).collect();
        prop_assume!(wanted.iter().all(Option::is_some));
        let ids: Vec<_> = prompts.iter().map(|prompt| router.submit(ask(prompt, 3)).unwrap()).collect();
        let mut answered: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
        let mut gone = Vec::new();
        for at in 0.. {
            for (_, victim) in aborts.iter().filter(|(when, _)| *when == at) {
                if let Some(id) = ids.get(*victim) && router.abort(*id) {
                    gone.push(*id);
                }
            }
            answered.extend(step(&mut router, &mut executor).into_iter().map(|a| (a.request, a.tokens)));
            prop_assert!(router.cache().check().is_ok());
            if router.is_idle() {
                break;
            }
            prop_assert!(at < 2000, "the router is stuck");
        }
        for (id, wanted) in ids.iter().zip(wanted) {
            prop_assert_eq!(answered.get(id).cloned(), wanted.filter(|_| !gone.contains(id)));
        }
        let stats = router.cache().stats();
        prop_assert_eq!(stats.device_free + stats.evictable_tokens / PAGE_TOKENS, pages as usize);
    }
}

/// Answers everything; the answers in their order.
fn drain(router: &mut Router<Slow>, executor: &mut TransformerExecutor) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..500 {
        answers.extend(step(router, executor));
        if router.is_idle() {
            return answers;
        }
    }
    panic!("the router is stuck");
}

/// An engine of eight pages, four of which the tree has from this prompt.
fn engine_that_knows(known: &[u32; 16], delays: Vec<u32>) -> (Router<Slow>, TransformerExecutor) {
    let (mut router, mut executor) = engine(8, RouterLimits::default(), delays);
    router.submit(ask(known, 1)).expect("it fits");
    drain(&mut router, &mut executor);
    assert_eq!(router.cache().stats().evictable_tokens, 16);
    (router, executor)
}

#[test]
fn who_only_waits_does_not_keep_pages_from_the_next() {
    let known = [7; 16];
    let (mut router, mut executor) = engine_that_knows(&known, vec![1]);
    let long = router.submit(ask(&[8; 28], 1)).unwrap();
    // It finds three pages, and with them the long one does not fit.
    let short = router.submit(ask(&known, 1)).unwrap();
    let order: Vec<_> = drain(&mut router, &mut executor).iter().map(|answer| answer.request).collect();
    assert_eq!(order, [long, short]);
}

#[test]
fn who_waits_gives_way_before_who_runs() {
    let known = [7; 16];
    let (mut router, mut executor) = engine_that_knows(&known, vec![1, 1, 60]);
    let growing = router.submit(ask(&[8; 12], 13)).unwrap();
    router.submit(ask(&known, 1)).unwrap();
    let answers = drain(&mut router, &mut executor);
    assert_eq!((answers[0].request, answers[0].retractions), (growing, 0));
}

#[test]
fn who_is_warm_passes_who_is_not() {
    let (mut router, mut executor) = engine(32, RouterLimits::default(), vec![6, 1]);
    let slow = router.submit(ask(&[1, 2, 3], 1)).unwrap();
    let quick = router.submit(ask(&[4, 5, 6], 1)).unwrap();
    let mut order = Vec::new();
    while !router.is_idle() {
        order.extend(step(&mut router, &mut executor).into_iter().map(|answer| answer.request));
    }
    assert_eq!(order, [quick, slow]);
}
