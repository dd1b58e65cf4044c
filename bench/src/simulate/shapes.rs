//! Traces made up from a seed: to see how a policy does on traffic that it was not made for.
//!
//! Every shape is a set of sources that send prompts at random times; a trace is what they send, in the order of time.
//! The shapes are exaggerated on purpose: real traffic is a mixture.

use super::trace::{BLOCK_TOKENS, Line};
use std::fmt;
use std::str::FromStr;

/// What kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Conversations: each turn repeats what was said and adds to it, after a time to think; most end after few turns.
    MultiTurn,
    /// Agents: a shared system prompt, then a context that grows step by step in quick succession.
    Agent,
    /// System prompts of very different popularity, each followed by something unique.
    SharedSystem,
    /// Questions about documents of different popularity, and documents that are read once.
    Rag,
    /// A job that reads the same documents over and over, beside conversations.
    Scan,
    /// Conversations, agents, system prompts and documents.
    Mixed,
    /// System prompts whose popularity changes all the time.
    Drift,
    /// Conversations behind a few shared system prompts, with times to think that differ widely.
    Chat,
    /// Jobs that ask many questions behind the same examples in quick succession, beside conversations.
    Batch,
}

impl Shape {
    /// All of them.
    pub(super) const ALL: [Self; 9] = [
        Self::MultiTurn,
        Self::Agent,
        Self::SharedSystem,
        Self::Rag,
        Self::Scan,
        Self::Mixed,
        Self::Drift,
        Self::Chat,
        Self::Batch,
    ];

    /// The name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MultiTurn => "multi-turn",
            Self::Agent => "agent",
            Self::SharedSystem => "shared-system",
            Self::Rag => "rag",
            Self::Scan => "scan",
            Self::Mixed => "mixed",
            Self::Drift => "drift",
            Self::Chat => "chat",
            Self::Batch => "batch",
        }
    }

    /// Makes a trace of this shape. The same seed makes the same trace.
    pub(super) fn trace(self, seed: u64, requests: usize) -> Vec<Line> {
        let mut maker = Maker { dice: Dice(seed ^ 0x6D65_6D6B_7600), next_id: 0, prompts: Vec::new() };
        match self {
            Self::MultiTurn => maker.conversations(requests),
            Self::Agent => maker.agents(requests),
            Self::SharedSystem => maker.system_prompts(requests, false),
            Self::Rag => maker.documents(requests),
            Self::Scan => {
                maker.loops(requests / 2);
                maker.conversations(requests / 2);
            }
            Self::Mixed => {
                maker.conversations(requests / 4);
                maker.agents(requests / 4);
                maker.system_prompts(requests / 4, false);
                maker.documents(requests / 4);
            }
            Self::Drift => maker.system_prompts(requests, true),
            Self::Chat => maker.chats(requests),
            Self::Batch => {
                maker.jobs(requests / 2);
                maker.conversations(requests / 2);
            }
        }
        maker.finish(requests)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|shape| shape.name() == name);
        let names = || Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no shape {name:?}; use one of {}", names()))
    }
}

/// A stream of numbers that is the same for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    fn chance(&mut self, share: f64) -> bool {
        self.share() < share
    }

    /// A time to wait, in ms, of this mean: many are short, few are long.
    fn wait(&mut self, mean_ms: f64) -> u64 {
        (-(1.0 - self.share()).ln() * mean_ms) as u64
    }

    /// Around `median`, two thirds of all within a factor of `e^spread`.
    fn widely(&mut self, median: f64, spread: f64) -> f64 {
        // The sum of twelve is nearly normal.
        let normal = (0..12).map(|_| self.share()).sum::<f64>() - 6.0;
        median * (normal * spread).exp()
    }

    /// One of `count`, the k-th with a weight of `1 / (k + 1)^skew`.
    fn zipf(&mut self, weights: &[f64]) -> usize {
        let mut left = self.share() * weights.iter().sum::<f64>();
        let found = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        found.unwrap_or(weights.len() - 1)
    }
}

fn zipf_weights(count: usize, skew: f64) -> Vec<f64> {
    (1..=count).map(|rank| (rank as f64).powf(-skew)).collect()
}

/// Sources share a clock: one request a second from each kind that a shape has.
struct Maker {
    dice: Dice,
    next_id: u64,
    prompts: Vec<(u64, Vec<u64>)>,
}

/// Mean time between two requests of one kind.
const BETWEEN_MS: f64 = 1000.0;

impl Maker {
    fn grow(&mut self, chain: &mut Vec<u64>, blocks: u64) {
        chain.extend(self.next_id..self.next_id + blocks);
        self.next_id += blocks;
    }

    fn chain(&mut self, blocks: u64) -> Vec<u64> {
        let mut chain = Vec::new();
        self.grow(&mut chain, blocks);
        chain
    }

    fn say(&mut self, at_ms: u64, chain: &[u64]) {
        self.prompts.push((at_ms, chain.to_vec()));
    }

    fn conversations(&mut self, requests: usize) {
        let (mut start_ms, end) = (0, self.prompts.len() + requests);
        while self.prompts.len() < end {
            start_ms += self.dice.wait(BETWEEN_MS * 4.0);
            let first = if self.dice.chance(0.2) { self.dice.within(20, 80) } else { self.dice.within(1, 6) };
            let (mut now_ms, mut chain) = (start_ms, self.chain(first));
            self.say(now_ms, &chain);
            // Some leave after one turn, the others stay for long.
            while self.prompts.len() < end
                && self.dice.chance(if chain.len() as u64 == first { 0.6 } else { 0.85 })
            {
                now_ms += 5000 + self.dice.wait(90_000.0);
                let more = self.dice.within(1, 4);
                self.grow(&mut chain, more);
                self.say(now_ms, &chain);
            }
        }
    }

    fn agents(&mut self, requests: usize) {
        let systems: Vec<Vec<u64>> = (0..6).map(|kind| self.chain(4 + 3 * kind)).collect();
        let weights = zipf_weights(systems.len(), 1.0);
        let (mut start_ms, end) = (0, self.prompts.len() + requests);
        while self.prompts.len() < end {
            start_ms += self.dice.wait(BETWEEN_MS * 15.0);
            let mut chain = systems[self.dice.zipf(&weights)].clone();
            let mut now_ms = start_ms;
            for _ in 0..self.dice.within(5, 25) {
                let more = self.dice.within(1, 5);
                self.grow(&mut chain, more);
                self.say(now_ms, &chain);
                now_ms += 2000 + self.dice.wait(15_000.0);
            }
        }
    }

    fn system_prompts(&mut self, requests: usize, drift: bool) {
        let mut systems: Vec<Vec<u64>> = Vec::new();
        for _ in 0..300 {
            let blocks = self.dice.within(1, 30);
            systems.push(self.chain(blocks));
        }
        let weights = zipf_weights(systems.len(), 1.0);
        let mut now_ms = 0;
        for number in 0..requests {
            now_ms += self.dice.wait(BETWEEN_MS);
            if drift && number % 8 == 7 {
                // A newcomer takes a place among the others, and one falls out.
                let place = self.dice.zipf(&weights);
                let blocks = self.dice.within(1, 30);
                let newcomer = self.chain(blocks);
                systems.insert(place, newcomer);
                systems.pop();
            }
            let mut chain = systems[self.dice.zipf(&weights)].clone();
            let more = self.dice.within(1, 6);
            self.grow(&mut chain, more);
            self.say(now_ms, &chain);
        }
    }

    fn chats(&mut self, requests: usize) {
        let systems: Vec<Vec<u64>> = (1..=3).map(|blocks| self.chain(blocks)).collect();
        let weights = zipf_weights(systems.len(), 1.0);
        let (mut start_ms, end) = (0, self.prompts.len() + requests);
        while self.prompts.len() < end {
            start_ms += self.dice.wait(BETWEEN_MS * 3.0);
            let (mut now_ms, mut chain) = (start_ms, systems[self.dice.zipf(&weights)].clone());
            let mut more = 1 + self.dice.widely(4.0, 1.2) as u64;
            loop {
                self.grow(&mut chain, more.min(256));
                self.say(now_ms, &chain);
                if self.prompts.len() >= end || !self.dice.chance(0.72) {
                    break;
                }
                now_ms += 3000 + self.dice.widely(60_000.0, 1.2) as u64;
                more = 1 + self.dice.widely(1.2, 0.8) as u64;
            }
        }
    }

    fn jobs(&mut self, requests: usize) {
        let (mut start_ms, end) = (0, self.prompts.len() + requests);
        while self.prompts.len() < end {
            start_ms += self.dice.wait(BETWEEN_MS * 50.0);
            let blocks = self.dice.within(8, 40);
            let (examples, mut now_ms) = (self.chain(blocks), start_ms);
            for _ in 0..self.dice.within(20, 90) {
                now_ms += self.dice.wait(BETWEEN_MS / 2.0);
                let (mut chain, more) = (examples.clone(), self.dice.within(1, 4));
                self.grow(&mut chain, more);
                self.say(now_ms, &chain);
            }
        }
    }

    fn documents(&mut self, requests: usize) {
        let mut documents: Vec<Vec<u64>> = Vec::new();
        for _ in 0..500 {
            let blocks = self.dice.within(5, 60);
            documents.push(self.chain(blocks));
        }
        let weights = zipf_weights(documents.len(), 0.8);
        let mut now_ms = 0;
        for _ in 0..requests {
            now_ms += self.dice.wait(BETWEEN_MS);
            let mut chain = if self.dice.chance(0.35) {
                let blocks = self.dice.within(10, 120);
                self.chain(blocks)
            } else {
                documents[self.dice.zipf(&weights)].clone()
            };
            let question = self.dice.within(1, 2);
            self.grow(&mut chain, question);
            self.say(now_ms, &chain);
        }
    }

    fn loops(&mut self, requests: usize) {
        let mut documents: Vec<Vec<u64>> = Vec::new();
        for _ in 0..250 {
            let blocks = self.dice.within(10, 30);
            documents.push(self.chain(blocks));
        }
        let mut now_ms = 0;
        for number in 0..requests {
            now_ms += self.dice.wait(BETWEEN_MS);
            let chain = documents[number % documents.len()].clone();
            self.say(now_ms, &chain);
        }
    }

    /// The prompts in the order of time; the last block of each is filled in part.
    fn finish(mut self, requests: usize) -> Vec<Line> {
        self.prompts.sort_by_key(|(at_ms, _)| *at_ms);
        self.prompts.truncate(requests);
        let mut lines = Vec::new();
        for (timestamp, hash_ids) in std::mem::take(&mut self.prompts) {
            let missing = self.dice.within(0, BLOCK_TOKENS - 1);
            let input_length = hash_ids.len() as u64 * BLOCK_TOKENS - missing;
            lines.push(Line { timestamp, input_length, output_length: self.dice.within(1, 800), hash_ids });
        }
        lines
    }
}
