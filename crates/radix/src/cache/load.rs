//! Loads from host memory back to the device: all host-only nodes up to the first one on the device, or nothing.

use super::{Lock, RadixCache};
use crate::node::{NodeId, ROOT};
use crate::pool::{DevicePage, HostPage, OutOfPages, PageState};
use thiserror::Error;

/// A copy from host pages to device pages, in order.
#[derive(Debug)]
#[must_use = "a plan must be committed or aborted"]
pub struct LoadBackPlan {
    node: NodeId,
    /// On the last node that is on the device.
    lock: Lock,
    /// From where.
    pub host: Vec<HostPage>,
    /// To where.
    pub device: Vec<DevicePage>,
}

/// What a finished load brought.
#[derive(Debug)]
pub struct LoadedBack {
    /// The lock on the last node that is on the device now.
    pub lock: Lock,
    /// Pages that the device has more on this path than when the load began: those of the plan, or of a request
    /// that computed them in the meantime, and fewer than the plan's if a part was taken away.
    pub pages: Vec<DevicePage>,
}

/// Nothing is loaded; nothing changed except that leaves may have been evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LoadBackError {
    /// The node is gone, or is on the device.
    #[error("there is nothing to load: match again")]
    Nothing,
    /// Another load of these nodes is under way.
    #[error("another load of these pages is under way: wait for it, then match again")]
    Busy,
    /// Recomputing so few tokens is cheaper.
    #[error("{tokens} tokens are too few to be worth a load")]
    TooFew {
        /// How many there are.
        tokens: usize,
    },
    /// More than one load may bring.
    #[error("{tokens} tokens are more than one load may bring")]
    TooMany {
        /// How many there are.
        tokens: usize,
    },
    /// There is no room on the device.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
}

impl RadixCache {
    /// Starts to load `node` and its host-only ancestors, where leaves go to make room. Until the plan ends, their
    /// host pages stay and the ancestor on the device is locked; matches still find them in host memory.
    ///
    /// # Errors
    ///
    /// If there is nothing to load, too little, too much, or no room.
    pub fn begin_load_back(&mut self, node: NodeId) -> Result<LoadBackPlan, LoadBackError> {
        let last = self.nodes.find(node).ok_or(LoadBackError::Nothing)?;
        let mut chain = Vec::new();
        let mut at = last;
        while at != ROOT && !self.nodes[at].is_device() {
            if self.nodes[at].marks.detached {
                return Err(LoadBackError::Nothing);
            }
            if self.nodes[at].marks.loading {
                return Err(LoadBackError::Busy);
            }
            chain.push(at);
            at = self.nodes[at].parent;
        }
        if chain.is_empty() {
            return Err(LoadBackError::Nothing);
        }
        chain.reverse();
        let host: Vec<HostPage> =
            chain.iter().flat_map(|index| self.nodes[*index].host.iter().copied()).collect();
        let tokens = host.len() * self.page_tokens();
        if tokens < self.config.load_back_min_tokens {
            return Err(LoadBackError::TooFew { tokens });
        }
        if tokens > self.config.load_back_max_tokens {
            return Err(LoadBackError::TooMany { tokens });
        }
        let lock = self.lock_at(at);
        // Before making room: dropping a subtree must not take what is to be loaded.
        self.host_lock(last);
        self.make_room(host.len());
        let device = match self.device.alloc(host.len(), PageState::Loading) {
            Ok(device) => device,
            Err(full) => {
                self.unlock(lock);
                self.host_unlock(node);
                return Err(full.into());
            }
        };
        self.host.retain_all(&host);
        for index in chain {
            self.nodes[index].marks.loading = true;
        }
        Ok(LoadBackPlan { node, lock, host, device })
    }

    /// Ends a load whose bytes are all on the device.
    pub fn commit_load_back(&mut self, plan: LoadBackPlan) -> LoadedBack {
        let LoadBackPlan { node, lock, host, device } = plan;
        let mut parts = self.parts_of(node, device.len());
        parts.reverse();
        let (mut at, mut pages) = (0, Vec::new());
        let mut last = self.nodes.find(lock.node).expect("a locked node stays");
        for index in parts {
            self.nodes[index].marks.loading = false;
            let end = at + self.nodes.pages(index);
            let parent = self.nodes[index].parent;
            let fits = end <= device.len() && (parent == ROOT || self.nodes[parent].is_device());
            if !fits || self.nodes[index].marks.detached {
                break;
            }
            if !self.nodes[index].is_device() {
                let mine = &device[at..end];
                // The tree has its own reference; the plan's is given back below.
                self.device.retain_all(mine);
                self.give_device(index, mine.into());
            }
            pages.extend_from_slice(&self.nodes[index].device);
            at = end;
            last = index;
        }
        let loaded = self.lock_at(last);
        self.end_load_back(node, lock, &host, &device);
        LoadedBack { lock: loaded, pages }
    }

    /// Ends a load that was not made or went wrong: as if it had never begun.
    pub fn abort_load_back(&mut self, plan: LoadBackPlan) {
        let LoadBackPlan { node, lock, host, device } = plan;
        self.end_load_back(node, lock, &host, &device);
    }

    fn end_load_back(&mut self, node: NodeId, lock: Lock, host: &[HostPage], device: &[DevicePage]) {
        for index in self.parts_of(node, device.len()) {
            self.nodes[index].marks.loading = false;
        }
        self.device.release_all(device);
        self.host.release_all(host);
        self.unlock(lock);
        self.host_unlock(node);
    }
}
