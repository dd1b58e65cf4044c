//! Copies from the device to host memory, and from there to a store.
//!
//! A plan holds everything that the copy needs: the pages keep a reference and the node a lock until the plan ends.
//! Nothing reads a host page before its copy ended well.

use super::{Lock, RadixCache};
use crate::config::WritePolicy;
use crate::events::Medium;
use crate::hash::Digest;
use crate::node::{NodeId, ROOT};
use crate::pool::{DevicePage, HostPage, PageState};
use thiserror::Error;

/// A copy from device pages to host pages, in order.
#[derive(Debug)]
#[must_use = "a plan must be ended"]
pub struct BackupPlan {
    node: NodeId,
    lock: Lock,
    /// Whether the device pages go when the copy is done.
    evicts: bool,
    /// From where.
    pub device: Vec<DevicePage>,
    /// To where.
    pub host: Vec<HostPage>,
    /// The names of the pages; empty if the cache does not hash.
    pub digests: Vec<Digest>,
}

/// What is to be done after a copy.
#[derive(Debug, Default)]
#[must_use = "a plan must be ended"]
pub struct BackupDone {
    /// Device pages that are free now, after a write-back.
    pub freed: Vec<DevicePage>,
    /// Writes to the store; the parts of a node that was split meanwhile come one by one, the upper part first.
    pub store: Vec<StorePlan>,
}

/// A write of host pages to a store.
#[derive(Debug)]
#[must_use = "a plan must be ended"]
pub struct StorePlan {
    node: NodeId,
    /// Pages of the prefix before the first of the plan: how deep in its chain the write begins.
    pub start: usize,
    /// What to write.
    pub host: Vec<HostPage>,
    /// Under which names.
    pub digests: Vec<Digest>,
}

/// The node cannot be copied now; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BackupError {
    /// The node is gone or has no device pages.
    #[error("the node is gone or is not on the device")]
    NotResident,
    /// It has a copy, or one is being made.
    #[error("the node is backed up already")]
    Already,
    /// Host memory is full of pages that may not go.
    #[error("host memory is full: wait for transfers to end, or give it more pages")]
    HostFull,
}

impl RadixCache {
    /// The next copy that the write policy asks for, if there is one and room for it.
    pub fn next_backup(&mut self) -> Option<BackupPlan> {
        while let Some(id) = self.wanted.pop_front() {
            let Some(index) = self.nodes.find(id) else { continue };
            self.nodes[index].marks.wants_backup = false;
            if let Ok(plan) = self.begin_backup(id) {
                return Some(plan);
            }
        }
        None
    }

    /// Starts to copy a node to host memory, where leaves go to make room. Until the plan ends the node is
    /// locked.
    ///
    /// # Errors
    ///
    /// If the node is gone, is not on the device or has a copy, or if host memory is full.
    pub fn begin_backup(&mut self, node: NodeId) -> Result<BackupPlan, BackupError> {
        let index = self.nodes.find(node).ok_or(BackupError::NotResident)?;
        self.begin_backup_at(index, false)
    }

    pub(super) fn begin_write_back(&mut self, index: u32) -> Option<BackupPlan> {
        self.begin_backup_at(index, true).ok()
    }

    fn begin_backup_at(&mut self, index: u32, evicts: bool) -> Result<BackupPlan, BackupError> {
        let node = &self.nodes[index];
        if index == ROOT || !node.is_device() || node.marks.detached {
            return Err(BackupError::NotResident);
        }
        if !node.host.is_empty() {
            return Err(BackupError::Already);
        }
        let pages = self.nodes.pages(index);
        if pages > self.host.free() {
            self.evict_host(pages - self.host.free());
        }
        let host = self.host.alloc(pages, PageState::Loading).map_err(|_| BackupError::HostFull)?;
        let lock = self.lock_at(index);
        let node = &mut self.nodes[index];
        node.host = host.as_slice().into();
        node.marks.backup = true;
        let device = node.device.to_vec();
        let digests = node.digests.to_vec();
        // The plan has a reference to each side, whatever becomes of the node.
        self.host.retain_all(&host);
        self.device.retain_all(&device);
        self.device.set(&device, PageState::Writing);
        Ok(BackupPlan { node: self.nodes.id(index), lock, evicts, device, host, digests })
    }

    /// Ends a copy. After a failure, or if it was not made, the host pages are free again; the next hit asks for
    /// another copy. With write-back the device pages go now, with or without a copy, if nobody uses them.
    pub fn end_backup(&mut self, plan: BackupPlan, copied: bool) -> BackupDone {
        let BackupPlan { node, lock, evicts, device, host, .. } = plan;
        let mut done = BackupDone::default();
        self.device.set(&device, PageState::Shared);
        self.device.release_all(&device);
        let parts = self.parts_of(node, host.len());
        for part in parts.iter().rev() {
            self.nodes[*part].marks.backup = false;
            if !copied || self.nodes[*part].marks.detached {
                let pages = std::mem::take(&mut self.nodes[*part].host);
                self.host.release_all(&pages);
                continue;
            }
            let pages = self.nodes[*part].host.clone();
            self.host.set(&pages, PageState::Shared);
            self.record_stored(*part, Medium::Cpu);
            if self.config.storage {
                done.store.push(self.begin_store_at(*part));
            }
        }
        self.host.release_all(&host);
        let parts: Vec<NodeId> = parts.into_iter().map(|part| self.nodes.id(part)).collect();
        self.unlock(lock);
        for part in parts.into_iter().filter(|_| evicts) {
            self.finish_write_back(part, &mut done.freed);
        }
        done
    }

    /// Takes the device pages of a written-back node that nobody has used since.
    fn finish_write_back(&mut self, node: NodeId, freed: &mut Vec<DevicePage>) {
        let Some(index) = self.nodes.find(node) else { return };
        let node = &self.nodes[index];
        if node.marks.detached || !node.is_device() || node.lock > 0 || node.device_children > 0 {
            return;
        }
        let parent = node.parent;
        if node.is_backed_up() {
            freed.extend_from_slice(&self.drop_device(index));
            self.queue_leaf(index);
            self.queue_leaf(parent);
        } else {
            freed.extend(self.detach(index).0);
        }
    }

    /// The nodes that the last `pages` pages up to the end of `node` are in now, the deepest first. Splits keep
    /// the identity of the lowest part, so the others are its ancestors.
    pub(super) fn parts_of(&self, node: NodeId, pages: usize) -> Vec<u32> {
        let mut at = self.nodes.find(node).expect("a plan keeps its node");
        let start = (self.nodes[at].depth as usize).saturating_sub(pages);
        let mut parts = Vec::new();
        while at != ROOT && self.nodes[at].depth as usize > start {
            parts.push(at);
            at = self.nodes[at].parent;
        }
        parts
    }

    /// Starts to write a node's host pages to a store. Until the plan ends they stay.
    ///
    /// # Errors
    ///
    /// [`BackupError::NotResident`] if the node is gone or has no finished host copy.
    pub fn begin_store(&mut self, node: NodeId) -> Result<StorePlan, BackupError> {
        let index = self.nodes.find(node).ok_or(BackupError::NotResident)?;
        if !self.nodes[index].is_backed_up() || self.nodes[index].marks.detached {
            return Err(BackupError::NotResident);
        }
        Ok(self.begin_store_at(index))
    }

    fn begin_store_at(&mut self, index: u32) -> StorePlan {
        self.host_lock(index);
        let node = &self.nodes[index];
        let plan = StorePlan {
            node: self.nodes.id(index),
            start: node.depth as usize - node.host.len(),
            host: node.host.to_vec(),
            digests: node.digests.to_vec(),
        };
        self.host.retain_all(&plan.host);
        self.host.set(&plan.host, PageState::Writing);
        plan
    }

    /// Ends a write to a store, whether it went well or not: the cache keeps no account of what a store has.
    pub fn end_store(&mut self, plan: StorePlan) {
        self.host.set(&plan.host, PageState::Shared);
        self.host.release_all(&plan.host);
        self.host_unlock(plan.node);
    }

    /// Lets a node that has reached the hits of the write policy wait for a copy.
    pub(super) fn consider_backup(&mut self, index: u32) {
        let Some(threshold) = self.config.write.threshold() else { return };
        let node = &self.nodes[index];
        let wants = node.is_device() && node.host.is_empty() && node.hits >= threshold;
        if wants && self.config.host_pages > 0 {
            self.want_backup(index);
        }
    }

    pub(super) fn want_backup(&mut self, index: u32) {
        if !self.nodes[index].marks.wants_backup {
            self.nodes[index].marks.wants_backup = true;
            if self.wanted.len() > 2 * self.nodes.len() + 1024 {
                let nodes = &self.nodes;
                self.wanted.retain(|id| nodes.find(*id).is_some());
            }
            self.wanted.push_back(self.nodes.id(index));
        }
    }

    /// Whether nodes are copied only when they are evicted.
    pub fn is_write_back(&self) -> bool {
        self.config.write == WritePolicy::Back
    }
}
