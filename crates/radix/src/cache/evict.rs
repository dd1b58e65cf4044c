//! Making room on the device and in host memory.
//!
//! Leaves wait in a heap by rank. An entry may be out of date; it is looked at again when it comes up. For policies
//! whose ranks can shrink, the heap is built anew at each eviction.

use super::{BackupPlan, RadixCache};
use crate::config::WritePolicy;
use crate::node::{NodeId, ROOT};
use crate::policy::Rank;
use crate::pool::DevicePage;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use thiserror::Error;

/// The node is gone or has no device pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the node is gone or is not on the device: match again, or load it back first")]
pub struct NotResident;

/// What an eviction did.
#[derive(Debug, Default)]
#[must_use = "plans must be carried out or aborted"]
pub struct Evicted {
    /// Tokens whose device pages are free now.
    pub tokens: usize,
    /// Those pages.
    pub pages: Vec<DevicePage>,
    /// With write-back: copies to make first; ending them frees their device pages.
    pub write_back: Vec<BackupPlan>,
    /// Tokens that the copies will free.
    pub pending_tokens: usize,
}

/// Leaves that may be evicted, by rank.
#[derive(Default)]
pub(super) struct Leaves {
    heap: BinaryHeap<Reverse<(Rank, NodeId)>>,
}

/// Which of a node's copies an eviction is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Device,
    Host,
}

impl RadixCache {
    /// Frees at least `tokens` tokens of device memory, or all that may be evicted now. With write-back a node's
    /// ancestors may go only when its copy has ended: end the plans, then call again if more is needed.
    pub fn evict_device(&mut self, tokens: usize) -> Evicted {
        self.evict_with(tokens, self.config.write == WritePolicy::Back)
    }

    /// As [`evict_device`](Self::evict_device), but nodes without a copy are lost at once, also with write-back.
    pub(super) fn evict_dropping(&mut self, tokens: usize) {
        let evicted = self.evict_with(tokens, false);
        debug_assert!(evicted.write_back.is_empty());
    }

    fn evict_with(&mut self, tokens: usize, write_back: bool) -> Evicted {
        let mut evicted = Evicted::default();
        self.rebuild_if_needed(Tier::Device);
        while evicted.tokens + evicted.pending_tokens < tokens {
            let Some(leaf) = self.pop_leaf(Tier::Device) else { break };
            self.trim(leaf, tokens - evicted.tokens - evicted.pending_tokens);
            let size = self.node_tokens(leaf);
            let parent = self.nodes[leaf].parent;
            if self.nodes[leaf].is_backed_up() {
                evicted.pages.extend_from_slice(&self.drop_device(leaf));
                evicted.tokens += size;
                self.queue_leaf(leaf);
            } else if let Some(plan) = write_back.then(|| self.begin_write_back(leaf)).flatten() {
                evicted.write_back.push(plan);
                evicted.pending_tokens += size;
            } else {
                evicted.pages.extend(self.detach(leaf).0);
                evicted.tokens += size;
            }
            self.queue_leaf(parent);
        }
        evicted
    }

    /// Cuts a private leaf, so that only its tail goes: what stays of a conversation's head is still of use, and
    /// nobody else has a copy of it.
    fn trim(&mut self, leaf: u32, tokens: usize) {
        let (pages, wanted) = (self.nodes.pages(leaf), tokens.div_ceil(self.page_tokens()));
        if wanted < pages && !self.nodes[leaf].scope.is_public() {
            let accessed = self.nodes[leaf].accessed;
            let head = self.split(leaf, pages - wanted);
            self.nodes[head].accessed = accessed;
        }
    }

    /// Frees at least `pages` pages of host memory, or all that may be evicted: nodes that are nowhere else.
    /// Returns how many are free now.
    pub fn evict_host(&mut self, pages: usize) -> usize {
        let mut freed = 0;
        self.rebuild_if_needed(Tier::Host);
        while freed < pages {
            let Some(leaf) = self.pop_leaf(Tier::Host) else { break };
            freed += self.nodes.pages(leaf);
            self.detach(leaf);
        }
        freed
    }

    /// Lets a node stand in the queues that it belongs in.
    pub(super) fn queue_leaf(&mut self, index: u32) {
        if index == ROOT {
            return;
        }
        for tier in [Tier::Device, Tier::Host] {
            let marks = self.nodes[index].marks;
            let queued = if tier == Tier::Device { marks.device_queued } else { marks.host_queued };
            if !queued && self.is_leaf(index, tier) {
                self.push_leaf(index, tier);
            }
        }
    }

    /// Whether a node can be evicted from the device, and from host memory.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn leaf_of(&self, index: u32) -> (bool, bool) {
        (self.is_leaf(index, Tier::Device), self.is_leaf(index, Tier::Host))
    }

    fn is_leaf(&self, index: u32, tier: Tier) -> bool {
        let node = &self.nodes[index];
        if node.marks.detached {
            return false;
        }
        match tier {
            Tier::Device => node.is_device() && node.lock == 0 && node.device_children == 0,
            Tier::Host => {
                !node.is_device() && node.is_backed_up() && node.host_lock == 0 && node.children == 0
            }
        }
    }

    fn push_leaf(&mut self, index: u32, tier: Tier) {
        self.sweep(tier);
        let entry = Reverse((self.rank(index), self.nodes.id(index)));
        let marks = &mut self.nodes[index].marks;
        match tier {
            Tier::Device => {
                marks.device_queued = true;
                self.device_leaves.heap.push(entry);
            }
            Tier::Host => {
                marks.host_queued = true;
                self.host_leaves.heap.push(entry);
            }
        }
    }

    fn pop_leaf(&mut self, tier: Tier) -> Option<u32> {
        loop {
            let heap = match tier {
                Tier::Device => &mut self.device_leaves.heap,
                Tier::Host => &mut self.host_leaves.heap,
            };
            let Reverse((rank, id)) = heap.pop()?;
            let Some(index) = self.nodes.find(id) else { continue };
            match tier {
                Tier::Device => self.nodes[index].marks.device_queued = false,
                Tier::Host => self.nodes[index].marks.host_queued = false,
            }
            if !self.is_leaf(index, tier) {
                continue;
            }
            if self.rank(index) > rank {
                self.push_leaf(index, tier);
                continue;
            }
            #[cfg(test)]
            self.assert_smallest(index, tier);
            return Some(index);
        }
    }

    /// Lets a node come up earlier if a split made its rank smaller: as a leaf now, otherwise when it is one again.
    /// An old entry stays and is found out of date when it comes up.
    pub(super) fn rank_shrank(&mut self, index: u32, before: Rank) {
        if self.rank(index) < before {
            self.nodes[index].marks.device_queued = false;
            self.nodes[index].marks.host_queued = false;
            self.queue_leaf(index);
        }
    }

    /// The order of eviction, recomputed.
    #[cfg(test)]
    fn assert_smallest(&self, index: u32, tier: Tier) {
        for other in self.nodes.subtree(ROOT).into_iter().skip(1).filter(|other| self.is_leaf(*other, tier)) {
            assert!(self.rank(index) <= self.rank(other), "node {other} goes before node {index}");
        }
    }

    pub(super) fn rank(&self, index: u32) -> Rank {
        self.config.policy.rank(&self.nodes[index].facts(self.config.shape))
    }

    /// Forgets entries of nodes that are gone, once they are the most.
    fn sweep(&mut self, tier: Tier) {
        let nodes = &self.nodes;
        let heap = match tier {
            Tier::Device => &mut self.device_leaves.heap,
            Tier::Host => &mut self.host_leaves.heap,
        };
        if heap.len() > 2 * nodes.len() + 1024 {
            heap.retain(|Reverse((_, id))| nodes.find(*id).is_some());
        }
    }

    fn rebuild_if_needed(&mut self, tier: Tier) {
        if self.config.policy.only_grows() {
            return;
        }
        match tier {
            Tier::Device => self.device_leaves.heap.clear(),
            Tier::Host => self.host_leaves.heap.clear(),
        }
        for index in 1..self.nodes.places() {
            let id = self.nodes.id(index);
            if self.nodes.find(id).is_none() {
                continue;
            }
            match tier {
                Tier::Device => self.nodes[index].marks.device_queued = false,
                Tier::Host => self.nodes[index].marks.host_queued = false,
            }
            if self.is_leaf(index, tier) {
                self.push_leaf(index, tier);
            }
        }
    }
}
