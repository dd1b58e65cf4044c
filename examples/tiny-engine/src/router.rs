//! The router: decides what is computed next, and into which pages.
//!
//! It owns the requests, their page lists and the prefix cache. Each step it plans a batch: one token for every
//! request that generates, then pieces of prompts, up to a bound on tokens. Requests join and leave the batch at
//! every step (continuous batching), and a long prompt is computed in pieces between the tokens of others (chunked
//! prefill). An executor computes the batch; [`Router::commit`] takes its logits.
//!
//! A request waits, then warms up, then runs. While it warms up, the tiers look for its prompt and bring what they
//! find to the device; others run meanwhile, and who is warm first goes first.
//!
//! Invariants:
//! - a request computes only what its page list does not hold yet, and always at least one token, because logits
//!   come from a computed token;
//! - pages of a planned batch keep their owner until the batch is committed, also when a request is aborted;
//! - the oldest request always gets on: when pages run out, the youngest gives its own back and waits.
//!
//! Deliberately absent: the executor, sampling other than the largest logit, and priorities. Requests are served in
//! the order in which they came.

use crate::executor::Run;
use crate::lower::{DeviceOnly, Lower};
use crate::math::argmax;
use crate::request::{Answer, Event, Request, RequestId, SubmitError};
use memkv_radix::{Access, DevicePage, Namespace, RadixCache};
use ndarray::ArrayView2;
use std::collections::VecDeque;
use std::time::Duration;

/// Bounds of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterLimits {
    /// Most tokens of one batch; a longer prompt is computed in pieces.
    pub batch_tokens: usize,
    /// Most requests that run at a time.
    pub running: usize,
    /// Most requests that wait.
    pub waiting: usize,
}

impl Default for RouterLimits {
    fn default() -> Self {
        Self { batch_tokens: 256, running: 16, waiting: 1024 }
    }
}

/// What the executor is to compute: owned, so that it may leave the router's thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    runs: Vec<Planned>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    request: RequestId,
    tokens: Vec<u32>,
    start: usize,
    pages: Vec<u32>,
}

impl Batch {
    /// The form that an executor takes.
    #[must_use]
    pub fn runs(&self) -> Vec<Run<'_>> {
        self.runs.iter().map(Planned::run).collect()
    }

    /// How many tokens will be computed.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.runs.iter().map(|planned| planned.tokens.len()).sum()
    }
}

impl Planned {
    fn run(&self) -> Run<'_> {
        Run { tokens: &self.tokens, start: self.start, pages: &self.pages }
    }
}

/// A request on its way.
#[derive(Debug)]
struct Sequence {
    id: RequestId,
    /// The prompt, then what was generated.
    tokens: Vec<u32>,
    prompt: usize,
    new_tokens_max: usize,
    stop: Option<u32>,
    namespace: Namespace,
    cached_tokens: Option<usize>,
    retractions: u32,
}

impl Sequence {
    fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }

    fn is_complete(&self) -> bool {
        let generated = self.generated();
        generated.len() >= self.new_tokens_max
            || (self.stop.is_some() && generated.last().copied() == self.stop)
    }

    fn answer(self) -> Answer {
        Answer {
            request: self.id,
            tokens: self.generated().to_vec(),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            retractions: self.retractions,
        }
    }
}

/// A request that the tiers look after. It holds pages of the tree, and none of its own.
struct Warming<W> {
    sequence: Sequence,
    held: memkv_radix::Request,
    warmup: W,
}

/// A request that computes.
#[derive(Debug)]
struct Running {
    sequence: Sequence,
    /// Its row of pages, and the lock on those that the tree owns.
    held: memkv_radix::Request,
    /// Tokens whose keys and values are in the pages.
    computed: usize,
    /// Aborted while its batch was under way.
    doomed: bool,
}

impl Running {
    /// What is left to compute: the rest of the prompt, or the last token that was generated.
    fn left(&self) -> usize {
        self.sequence.tokens.len() - self.computed
    }
}

/// Plans batches; see the module's documentation.
pub struct Router<L: Lower = DeviceOnly> {
    limits: RouterLimits,
    vocabulary: usize,
    cache: RadixCache,
    lower: L,
    waiting: VecDeque<Sequence>,
    /// In the order in which they came.
    warming: VecDeque<Warming<L::Warmup>>,
    /// In the order in which they began.
    running: Vec<Running>,
    in_flight: bool,
    next_id: u64,
}

impl Router {
    /// A router without requests, for a model of `vocabulary` tokens and a cache without tiers.
    #[must_use]
    pub fn new(limits: RouterLimits, vocabulary: usize, cache: RadixCache) -> Self {
        Self::with_tiers(limits, vocabulary, cache, DeviceOnly)
    }
}

impl<L: Lower> Router<L> {
    /// A router without requests, for a model of `vocabulary` tokens, with tiers that were made for `cache`.
    #[must_use]
    pub fn with_tiers(limits: RouterLimits, vocabulary: usize, cache: RadixCache, lower: L) -> Self {
        Self {
            limits,
            vocabulary,
            cache,
            lower,
            waiting: VecDeque::new(),
            warming: VecDeque::new(),
            running: Vec::new(),
            in_flight: false,
            next_id: 0,
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] if it could never run, or too many wait.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let Request { prompt, new_tokens_max, stop, namespace } = request;
        if prompt.is_empty() || new_tokens_max == 0 {
            return Err(SubmitError::Empty);
        }
        let vocabulary = self.vocabulary;
        if let Some(&token) = prompt.iter().find(|token| **token as usize >= vocabulary) {
            return Err(SubmitError::UnknownToken { token, vocabulary });
        }
        // The last generated token is never computed.
        let pages = self.pages_for(prompt.len().saturating_add(new_tokens_max) - 1);
        let pool = self.cache.device().capacity();
        if pages > pool {
            return Err(SubmitError::TooLong { pages, pool });
        }
        if self.waiting.len() >= self.limits.waiting {
            return Err(SubmitError::Busy(self.waiting.len()));
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Sequence {
            id,
            prompt: prompt.len(),
            tokens: prompt,
            new_tokens_max,
            stop,
            namespace,
            cached_tokens: None,
            retractions: 0,
        });
        Ok(id)
    }

    /// Ends a request without an answer; `false` if there is none of that name any more.
    pub fn abort(&mut self, request: RequestId) -> bool {
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == request) {
            self.waiting.remove(at);
            return true;
        }
        if let Some(at) = self.warming.iter().position(|warming| warming.sequence.id == request) {
            if let Some(warming) = self.warming.remove(at) {
                self.cache.abort(warming.held);
            }
            return true;
        }
        let Some(at) = self.running.iter().position(|running| running.sequence.id == request) else {
            return false;
        };
        if self.running[at].doomed {
            return false;
        }
        // The executor may be writing to the pages; then they are given back when it is done.
        self.running[at].doomed = true;
        if !self.in_flight {
            self.bury();
        }
        true
    }

    /// Whether nothing runs and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.warming.is_empty() && self.waiting.is_empty()
    }

    /// The cache, to look at.
    #[must_use]
    pub fn cache(&self) -> &RadixCache {
        &self.cache
    }

    /// The tiers, to look at.
    #[must_use]
    pub fn lower(&self) -> &L {
        &self.lower
    }

    /// Blocks until a transfer has ended, at most `patience`. For a router that has requests and no batch.
    pub fn wait(&self, patience: Duration) {
        self.lower.wait(patience);
    }

    /// Waits until nothing is under way in the tiers; blocks at most `patience`. Whether it came to that.
    pub fn drain(&mut self, patience: Duration) -> bool {
        self.lower.drain(&mut self.cache, patience)
    }

    /// Gives up all requests and ends all transfers; blocks at most `patience`. Whether it came to that.
    ///
    /// # Panics
    ///
    /// If a batch is under way.
    pub fn shut_down(mut self, patience: Duration) -> bool {
        assert!(!self.in_flight, "a batch must be committed before the router goes");
        for Warming { held, .. } in self.warming.drain(..) {
            self.cache.abort(held);
        }
        for Running { held, .. } in self.running.drain(..) {
            self.cache.abort(held);
        }
        self.lower.shut_down(&mut self.cache, patience)
    }

    fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.cache.shape().page_tokens())
    }

    /// Device pages that requests may get: free ones, and those of the tree that nobody uses.
    fn available(&self) -> usize {
        let stats = self.cache.stats();
        stats.device_free + stats.evictable_tokens / self.cache.shape().page_tokens()
    }

    /// Hears what the tiers have done and plans the next batch; `None` if there is nothing to compute now. If the
    /// router is not idle then, [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// If the batch before was not committed.
    pub fn plan(&mut self) -> Option<Batch> {
        assert!(!self.in_flight, "a batch must be committed before the next one is planned");
        let mut runs = Vec::new();
        let mut budget = self.limits.batch_tokens.max(1);
        self.lower.poll(&mut self.cache);
        self.plan_running(&mut budget, &mut runs);
        self.warm_up();
        self.plan_warm(&mut budget, &mut runs);
        self.in_flight = !runs.is_empty();
        self.in_flight.then_some(Batch { runs })
    }

    /// Gives each running request its next tokens: those that generate first, and the older before the younger.
    fn plan_running(&mut self, budget: &mut usize, runs: &mut Vec<Planned>) {
        // A token that is generated must not wait for somebody's prompt.
        let (generating, reading): (Vec<RequestId>, Vec<RequestId>) = {
            let is_generating = |running: &&Running| running.computed >= running.sequence.prompt;
            let (a, b): (Vec<&Running>, Vec<&Running>) = self.running.iter().partition(is_generating);
            (a.iter().map(|r| r.sequence.id).collect(), b.iter().map(|r| r.sequence.id).collect())
        };
        for id in generating.into_iter().chain(reading) {
            // It may have been retracted meanwhile.
            while let Some(at) = self.running.iter().position(|running| running.sequence.id == id) {
                if *budget == 0 || self.plan_one(at, budget, runs) {
                    break;
                }
                self.give_way(runs);
            }
        }
    }

    /// Plans one request's next tokens; `false` if there are no pages for them.
    fn plan_one(&mut self, at: usize, budget: &mut usize, runs: &mut Vec<Planned>) -> bool {
        let running = &mut self.running[at];
        let end = running.computed + running.left().min(*budget);
        if self.cache.reserve(&mut running.held, end).is_err() {
            return false;
        }
        let tokens = running.sequence.tokens[running.computed..end].to_vec();
        *budget -= tokens.len();
        runs.push(Planned {
            request: running.sequence.id,
            tokens,
            start: running.computed,
            pages: running.held.row().iter().map(DevicePage::index).collect(),
        });
        true
    }

    /// Takes the pages from the youngest request that has any, and lets it wait at the front of the queue.
    fn give_way(&mut self, runs: &mut Vec<Planned>) {
        if let Some(Warming { sequence, held, .. }) = self.warming.pop_back() {
            self.cache.abort(held);
            self.waiting.push_front(sequence);
            return;
        }
        let Some(mut running) = self.running.pop() else { return };
        // A batch never names pages that were given back.
        runs.retain(|planned| planned.request != running.sequence.id);
        // What the tree got at checkpoints stays there, and is found again if nobody needs the room.
        drop(self.cache.retract(running.held));
        running.sequence.retractions += 1;
        self.waiting.push_front(running.sequence);
    }

    /// Lets waiting requests warm up, as far as there are places.
    fn warm_up(&mut self) {
        while self.running.len() + self.warming.len() < self.limits.running {
            let Some(sequence) = self.waiting.pop_front() else { return };
            let held = self.cache.start(Access::of(&sequence.namespace), (&sequence.tokens).into(), 0);
            self.warming.push_back(Warming { sequence, held, warmup: L::Warmup::default() });
        }
    }

    /// Lets warm requests run, as long as there are tokens, and pages for the whole of each.
    fn plan_warm(&mut self, budget: &mut usize, runs: &mut Vec<Planned>) {
        let mut at = 0;
        while let Some(warming) = self.warming.get_mut(at) {
            let access = Access::of(&warming.sequence.namespace);
            if !self.lower.warm(&mut self.cache, access, &mut warming.held, &mut warming.warmup) {
                at += 1;
                continue;
            }
            // Somebody may have computed more of the prompt meanwhile.
            self.cache.refresh(&mut warming.held);
            let (tokens, cached) = (warming.sequence.tokens.len(), warming.held.row().len());
            // One page each for those who run already, or the newcomer would soon be sent away again.
            let needed = self.pages_for(tokens) - cached + self.running.len();
            if *budget == 0 {
                return;
            }
            if needed > self.available() {
                // Those behind it hold pages too; alone it always fits, once transfers have ended.
                if self.running.is_empty() && self.warming.len() > at + 1 {
                    self.give_way(runs);
                    continue;
                }
                return;
            }
            self.run(at);
            if !self.plan_one(self.running.len() - 1, budget, runs) {
                self.give_way(runs);
                return;
            }
        }
    }

    /// Moves a warm request to those that run.
    fn run(&mut self, at: usize) {
        let Some(Warming { mut sequence, held, .. }) = self.warming.remove(at) else { return };
        let computed = held.row().len() * self.cache.shape().page_tokens();
        sequence.cached_tokens.get_or_insert(computed);
        self.running.push(Running { sequence, held, computed, doomed: false });
    }

    /// Takes the logits of the batch that was planned last, one row per run; picks tokens and returns what happened.
    ///
    /// # Panics
    ///
    /// If the rows are not as many as the runs.
    pub fn commit(&mut self, batch: &Batch, logits: ArrayView2<'_, f32>) -> Vec<Event> {
        assert_eq!(batch.runs.len(), logits.nrows(), "one row of logits per run");
        self.in_flight = false;
        let mut events = Vec::new();
        for (planned, logits) in batch.runs.iter().zip(logits.rows()) {
            let Some(at) = self.running.iter().position(|running| running.sequence.id == planned.request)
            else {
                continue;
            };
            let running = &mut self.running[at];
            running.computed += planned.tokens.len();
            if running.doomed {
                continue;
            }
            if running.computed <= running.sequence.prompt {
                // Others may share a prompt from now on; generated tokens follow when the answer is complete.
                let kept = self.cache.checkpoint(&mut running.held, running.computed);
                kept.expect("the row was reserved for what was computed");
            }
            if running.left() > 0 {
                continue;
            }
            let logits = logits.to_vec();
            let token = argmax(&logits);
            running.sequence.tokens.push(token);
            running.held.push(token.into());
            events.push(Event::Token { request: planned.request, token, logits });
            if running.sequence.is_complete() {
                let Running { sequence, held, computed, .. } = self.running.remove(at);
                let kept = self.cache.finish(held, computed);
                kept.expect("the row was reserved for what was computed");
                events.push(Event::Finished(sequence.answer()));
            }
        }
        self.bury();
        events
    }

    /// Says that the batch that was planned last was not computed; it is planned again.
    pub fn give_up(&mut self) {
        self.in_flight = false;
        self.bury();
    }

    /// Gives back the pages of aborted requests.
    fn bury(&mut self) {
        let doomed: Vec<Running> = self.running.extract_if(.., |running| running.doomed).collect();
        for running in doomed {
            self.cache.abort(running.held);
        }
    }
}
