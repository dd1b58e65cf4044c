//! LRU, S3-FIFO and SIEVE as they are in the books, block by block, with queues: what ours are compared with.
//!
//! The blocks of a request are used from the last to the first, so that of one request the deepest is the oldest: that
//! is better for all three, and what ours do.

use super::trace::Trace;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A cache of blocks that is asked for one at a time.
pub(super) trait Exact {
    fn contains(&self, block: u32) -> bool;

    /// The block is used; it is stored if it was not.
    fn use_block(&mut self, block: u32);
}

pub(super) fn replay_exact(trace: &Trace, cache: &mut dyn Exact) -> u64 {
    let mut tokens = 0;
    for request in &trace.requests {
        let hits = request.blocks.iter().take_while(|&&block| cache.contains(block)).count();
        tokens += request.tokens(hits);
        request.blocks.iter().rev().for_each(|&block| cache.use_block(block));
    }
    tokens
}

#[derive(Default)]
pub(super) struct ExactLru {
    capacity: usize,
    time: u64,
    used: HashMap<u32, u64>,
    order: BTreeMap<u64, u32>,
}

impl ExactLru {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }
}

impl Exact for ExactLru {
    fn contains(&self, block: u32) -> bool {
        self.used.contains_key(&block)
    }

    fn use_block(&mut self, block: u32) {
        self.time += 1;
        if let Some(before) = self.used.insert(block, self.time) {
            self.order.remove(&before);
        } else if self.used.len() > self.capacity {
            let (_, oldest) = self.order.pop_first().unwrap();
            self.used.remove(&oldest);
        }
        self.order.insert(self.time, block);
    }
}

/// The oldest is at the front of `queue`.
#[derive(Default)]
pub(super) struct ExactSieve {
    capacity: usize,
    queue: Vec<u32>,
    visited: HashMap<u32, bool>,
    hand: usize,
}

impl ExactSieve {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }
}

impl Exact for ExactSieve {
    fn contains(&self, block: u32) -> bool {
        self.visited.contains_key(&block)
    }

    fn use_block(&mut self, block: u32) {
        if let Some(visited) = self.visited.get_mut(&block) {
            *visited = true;
            return;
        }
        while self.queue.len() >= self.capacity {
            self.hand %= self.queue.len();
            let here = self.queue[self.hand];
            if self.visited.insert(here, false) == Some(true) {
                self.hand += 1;
            } else {
                self.visited.remove(&here);
                self.queue.remove(self.hand);
                // Behind the newest comes the oldest, not what is stored next.
                self.hand %= self.queue.len().max(1);
            }
        }
        self.queue.push(block);
        self.visited.insert(block, false);
    }
}

#[derive(Default)]
pub(super) struct ExactS3Fifo {
    capacity: usize,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    uses: HashMap<u32, u8>,
    ghosts: VecDeque<u32>,
}

impl ExactS3Fifo {
    fn evict(&mut self) {
        if self.small.len() >= (self.capacity / 10).max(1) || self.main.is_empty() {
            let block = self.small.pop_front().unwrap();
            if self.uses[&block] > 0 {
                self.uses.insert(block, 0);
                self.main.push_back(block);
                return;
            }
            self.uses.remove(&block);
            self.ghosts.push_back(block);
            if self.ghosts.len() > self.capacity - self.capacity / 10 {
                self.ghosts.pop_front();
            }
        } else {
            let block = self.main.pop_front().unwrap();
            match self.uses[&block] {
                0 => drop(self.uses.remove(&block)),
                uses => {
                    self.uses.insert(block, uses - 1);
                    self.main.push_back(block);
                }
            }
        }
    }
}

impl ExactS3Fifo {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }
}

impl Exact for ExactS3Fifo {
    fn contains(&self, block: u32) -> bool {
        self.uses.contains_key(&block)
    }

    fn use_block(&mut self, block: u32) {
        if let Some(uses) = self.uses.get_mut(&block) {
            *uses = (*uses + 1).min(3);
            return;
        }
        while self.uses.len() >= self.capacity {
            self.evict();
        }
        self.uses.insert(block, 0);
        if let Some(at) = self.ghosts.iter().position(|&ghost| ghost == block) {
            self.ghosts.remove(at);
            self.main.push_back(block);
        } else {
            self.small.push_back(block);
        }
    }
}
