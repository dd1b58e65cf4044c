//! A router and an executor, driven to the end.

use crate::{MODEL, reference};
use memkv_radix::{Config, Namespace, RadixCache, Shape};
use memkv_tiny_engine::math::argmax;
use memkv_tiny_engine::{
    Answer, Event, Executor, KvLayout, KvPool, Request, RequestId, Router, RouterLimits, TransformerExecutor,
};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) struct Engine {
    pub(crate) router: Router,
    pub(crate) executor: TransformerExecutor,
}

/// Everything that was seen of one request.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// One row per generated token.
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) answer: Option<Answer>,
}

impl Outcome {
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.answer.as_ref().expect("it was answered").tokens
    }

    pub(crate) fn cached(&self) -> usize {
        self.answer.as_ref().expect("it was answered").cached_tokens
    }
}

impl Engine {
    pub(crate) fn new(page_tokens: usize, pages: u32, limits: RouterLimits) -> Self {
        let pool = Arc::new(KvPool::new(KvLayout::new(&MODEL.config, page_tokens), pages as usize));
        let shape = Shape::new(page_tokens, false).expect("a page size");
        let cache = RadixCache::new(Config::new(shape, pages)).expect("a valid configuration");
        let router = Router::new(limits, MODEL.config.vocabulary, cache);
        Self { router, executor: TransformerExecutor::new(MODEL.clone(), pool) }
    }

    /// Plans, computes and commits one batch; nothing if there is none.
    pub(crate) fn step(&mut self) -> Option<Vec<Event>> {
        let batch = self.router.plan()?;
        let logits = self.executor.execute(&batch.runs()).expect("the router's batches fit");
        Some(self.router.commit(&batch, logits.view()))
    }

    /// Answers requests in company.
    pub(crate) fn answer(&mut self, requests: &[Request]) -> Vec<Outcome> {
        let ids: Vec<_> =
            requests.iter().map(|request| self.router.submit(request.clone()).expect("it fits")).collect();
        let mut outcomes: BTreeMap<RequestId, Outcome> = BTreeMap::new();
        while let Some(events) = self.step() {
            for event in events {
                match event {
                    Event::Token { request, logits, .. } => {
                        outcomes.entry(request).or_default().logits.push(logits);
                    }
                    Event::Finished(answer) => {
                        let outcome = outcomes.entry(answer.request).or_default();
                        outcome.answer = Some(answer);
                    }
                }
            }
        }
        assert!(self.router.is_idle());
        ids.iter().map(|id| outcomes.remove(id).expect("every request is answered")).collect()
    }

    /// Whether all pages are free, or the tree has them and nobody uses them.
    pub(crate) fn nothing_is_held(&self) -> bool {
        let (cache, stats) = (self.router.cache(), self.router.cache().stats());
        let tree = stats.evictable_tokens / cache.shape().page_tokens();
        let all = stats.device_free + tree == cache.device().capacity();
        all && stats.protected_tokens == 0 && cache.check().is_ok()
    }
}

pub(crate) fn ask(prompt: &[u32], new_tokens_max: usize) -> Request {
    Request { prompt: prompt.to_vec(), new_tokens_max, stop: None, namespace: Namespace::default() }
}

/// The largest difference of any logit; the answers have equally many tokens.
pub(crate) fn difference(one: &Outcome, other: &Outcome) -> f32 {
    assert_eq!(one.logits.len(), other.logits.len());
    let rows = one.logits.iter().zip(&other.logits);
    rows.flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs())).fold(0.0, f32::max)
}

/// What a model that computes everything alone would answer; nothing if two tokens are so near each other that
/// rounding decides.
pub(crate) fn answer(prompt: &[u32], new_tokens: usize) -> Option<Vec<u32>> {
    let mut tokens = prompt.to_vec();
    for _ in 0..new_tokens {
        let logits = reference::logits(&MODEL, &tokens);
        let last: Vec<f32> = logits.last()?.iter().map(|x| *x as f32).collect();
        let best = argmax(&last);
        let near = |other: &&f32| last[best as usize] - **other < 1e-4;
        if last.iter().filter(near).count() > 1 {
            return None;
        }
        tokens.push(best);
    }
    Some(tokens.split_off(prompt.len()))
}

pub(crate) fn expected(prompt: &[u32], new_tokens: usize) -> Vec<u32> {
    answer(prompt, new_tokens).expect("a prompt without near ties")
}
