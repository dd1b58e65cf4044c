//! The small steps that all transitions are made of: pages come to a node and leave it, locks come and go, nodes are
//! detached and reaped.
//!
//! A detached node is out of the table, so nobody finds it, but it stays until its last lock, copy and child are
//! gone. That is how a subtree can be taken away under running requests.

use super::{Lock, NotResident, RadixCache};
use crate::events::{Medium, Run};
use crate::hash::Digest;
use crate::node::{NONE, Node, NodeId, ROOT, Scope, ScopeKey};
use crate::pool::{DevicePage, HostPage, PageState};

impl RadixCache {
    /// Locks a node and its ancestors.
    ///
    /// # Errors
    ///
    /// If the node is gone or has no device pages.
    pub fn lock(&mut self, node: NodeId) -> Result<Lock, NotResident> {
        let index = self.nodes.find(node).ok_or(NotResident)?;
        if index != ROOT && !self.nodes[index].is_device() {
            return Err(NotResident);
        }
        Ok(self.lock_at(index))
    }

    /// Gives a lock back.
    pub fn unlock(&mut self, lock: Lock) {
        let index = self.nodes.find(lock.node).expect("a locked node stays");
        self.unlock_at(index);
    }

    pub(super) fn lock_at(&mut self, index: u32) -> Lock {
        let lock = Lock { node: self.nodes.id(index) };
        let mut at = index;
        while at != ROOT {
            let tokens = self.node_tokens(at);
            let node = &mut self.nodes[at];
            if node.lock == 0 {
                self.evictable -= tokens;
                self.protected += tokens;
            }
            node.lock += 1;
            at = node.parent;
        }
        lock
    }

    fn unlock_at(&mut self, index: u32) {
        let mut at = index;
        while at != ROOT {
            let tokens = self.node_tokens(at);
            let node = &mut self.nodes[at];
            node.lock -= 1;
            let (free, detached, parent) = (node.lock == 0, node.marks.detached, node.parent);
            if free {
                self.protected -= tokens;
                self.evictable += tokens;
                if detached {
                    self.drop_device(at);
                    self.rehang_children(at);
                    self.reap(at);
                } else {
                    self.queue_leaf(at);
                }
            }
            at = parent;
        }
    }

    /// Keeps a node's host pages.
    pub(super) fn host_lock(&mut self, index: u32) {
        if index != ROOT {
            self.nodes[index].host_lock += 1;
        }
    }

    /// Lets a node's host pages go.
    pub(super) fn host_unlock(&mut self, node: NodeId) {
        let index = self.nodes.find(node).expect("a host-locked node stays");
        if index != ROOT {
            self.nodes[index].host_lock -= 1;
            self.reap(index);
            if self.nodes.find(node).is_some() {
                self.queue_leaf(index);
            }
        }
    }

    /// The tree takes device pages for a node that has none.
    pub(super) fn give_device(&mut self, index: u32, pages: Box<[DevicePage]>) {
        debug_assert_eq!(pages.len(), self.nodes.pages(index));
        debug_assert!(!self.nodes[index].is_device());
        self.device.set(&pages, PageState::Shared);
        let tokens = self.node_tokens(index);
        let node = &mut self.nodes[index];
        node.device = pages;
        let parent = node.parent;
        if node.lock == 0 {
            self.evictable += tokens;
        } else {
            self.protected += tokens;
        }
        self.nodes[parent].device_children += 1;
        self.record_stored(index, Medium::Gpu);
        self.queue_leaf(index);
    }

    /// An unlocked node's device pages become free.
    pub(super) fn drop_device(&mut self, index: u32) -> Box<[DevicePage]> {
        let node = &mut self.nodes[index];
        debug_assert_eq!(node.lock, 0);
        let (parent, visible) = (node.parent, node.is_visible());
        let pages = std::mem::take(&mut node.device);
        if pages.is_empty() {
            return pages;
        }
        self.evictable -= self.node_tokens(index);
        self.nodes[parent].device_children -= 1;
        self.device.release_all(&pages);
        if visible {
            self.events.removed(&self.nodes[index].digests, Medium::Gpu);
        }
        pages
    }

    /// The tree takes filled host pages for a node that has none.
    pub(super) fn give_host(&mut self, index: u32, pages: Box<[HostPage]>) {
        debug_assert_eq!(pages.len(), self.nodes.pages(index));
        self.host.set(&pages, PageState::Shared);
        self.nodes[index].host = pages;
        self.record_stored(index, Medium::Cpu);
        self.queue_leaf(index);
    }

    /// A node's host pages become free, or will be once the copies from them end.
    pub(super) fn drop_host(&mut self, index: u32) {
        let backed_up = self.nodes[index].is_backed_up();
        let pages = std::mem::take(&mut self.nodes[index].host);
        self.host.release_all(&pages);
        if backed_up && self.nodes[index].is_visible() {
            self.events.removed(&self.nodes[index].digests, Medium::Cpu);
        }
    }

    /// Takes a node and all below it out of sight. What no lock or copy holds is freed now, children first, the
    /// rest when that ends. Returns the device pages that are free now and the count of public pages taken away.
    pub(super) fn detach(&mut self, top: u32) -> (Vec<DevicePage>, usize) {
        let (mut freed, mut public) = (Vec::new(), 0);
        let parent = self.nodes[top].parent;
        for index in self.nodes.subtree(top).into_iter().rev() {
            if !self.nodes[index].marks.detached {
                if self.nodes[index].scope.is_public() {
                    public += self.nodes.pages(index);
                }
                self.detach_one(index, &mut freed);
            }
            self.reap_one(index);
        }
        self.queue_leaf(parent);
        (freed, public)
    }

    /// Takes one node out of sight, not its children.
    pub(super) fn detach_one(&mut self, index: u32, freed: &mut Vec<DevicePage>) {
        self.nodes.delist(index);
        if self.nodes[index].lock == 0 {
            freed.extend_from_slice(&self.drop_device(index));
        }
        if self.nodes[index].is_backed_up() && self.nodes[index].host_lock == 0 {
            self.drop_host(index);
        }
        self.record_removed(index);
        self.nodes[index].marks.detached = true;
    }

    /// Hides what is below a merged node whose lock keeps it in its place.
    pub(super) fn hide_children(&mut self, top: u32) {
        for index in self.nodes.subtree(top).into_iter().skip(1).rev() {
            self.record_removed(index);
            self.nodes[index].marks.hidden = true;
        }
    }

    /// Shows a subtree that has moved to where it can be found.
    fn show(&mut self, top: u32) {
        for index in self.nodes.subtree(top) {
            if std::mem::take(&mut self.nodes[index].marks.hidden) {
                for (there, medium) in self.copies(index) {
                    if there {
                        self.record_stored(index, medium);
                    }
                }
            }
        }
    }

    /// Where a node has finished copies.
    pub(super) fn copies(&self, index: u32) -> [(bool, Medium); 2] {
        let node = &self.nodes[index];
        [(node.is_device(), Medium::Gpu), (node.is_backed_up(), Medium::Cpu)]
    }

    /// Frees a detached node that nothing holds any more; tells its parent if it did.
    fn reap_one(&mut self, index: u32) -> Option<u32> {
        let node = &self.nodes[index];
        let held = node.lock > 0 || node.host_lock > 0 || node.marks.backup || node.children > 0;
        if index == ROOT || node.parent == NONE || !node.marks.detached || held {
            return None;
        }
        let (parent, namespace) = (node.parent, node.namespace);
        self.drop_device(index);
        self.drop_host(index);
        self.nodes.remove(index);
        self.namespaces.release(namespace);
        Some(parent)
    }

    /// Frees a detached node and the detached ancestors that waited for it.
    pub(super) fn reap(&mut self, index: u32) {
        let mut at = index;
        while let Some(parent) = self.reap_one(at) {
            at = parent;
        }
        if self.nodes[at].parent != NONE {
            self.queue_leaf(at);
        }
    }

    /// The children of a merged node that has no locks any more go to the node that took its place.
    pub(super) fn rehang_children(&mut self, index: u32) {
        let Some(target) = self.nodes[index].merged_into else { return };
        let target = self.nodes.find(target).filter(|at| !self.nodes[*at].marks.detached);
        for child in self.nodes.children(index) {
            if self.nodes[child].marks.detached {
                continue;
            }
            match target.filter(|to| self.may_hang(child, *to)) {
                Some(to) => {
                    self.nodes.delist(child);
                    self.nodes.unhang(child);
                    self.nodes[child].parent = to;
                    self.nodes.hang(child);
                    self.nodes.enlist(child);
                    self.show(child);
                }
                None => {
                    self.detach(child);
                }
            }
        }
    }

    /// Whether a child fits below a node: no brother with its key or a public copy of its first page, no device
    /// pages below a node without.
    fn may_hang(&self, child: u32, to: u32) -> bool {
        let node = &self.nodes[child];
        let first = self.config.shape.pages(node.tokens(), 0..1);
        let brother = |scope| self.nodes.child(to, node.namespace, scope, first, node.page_bits).is_some();
        let taken = brother(node.scope.key()) || brother(ScopeKey::Public);
        !taken && (self.nodes[to].is_device() || !node.is_device())
    }

    /// A node goes out of sight with the copies that it has.
    fn record_removed(&mut self, index: u32) {
        if self.nodes[index].is_visible() {
            for (_, medium) in self.copies(index).iter().filter(|(there, _)| *there) {
                self.events.removed(&self.nodes[index].digests, *medium);
            }
        }
    }

    /// A visible node has one copy more.
    pub(super) fn record_stored(&mut self, index: u32, medium: Medium) {
        if self.events.is_on() && self.nodes[index].is_visible() {
            let (parent, extra, salt) = self.run_of(&self.nodes[index]);
            let node = &self.nodes[index];
            self.events.stored(
                &Run {
                    digests: &node.digests,
                    parent,
                    tokens: node.tokens(),
                    extra_key: extra.as_deref(),
                    cache_salt: salt.as_deref(),
                },
                medium,
            );
        }
    }

    /// What an event about a node says besides its pages: the page before, extra key and salt.
    pub(super) fn run_of(&self, node: &Node) -> (Option<Digest>, Option<String>, Option<String>) {
        let parent = self.nodes[node.parent].digests.last().copied();
        let namespace = self.namespaces.get(node.namespace).expect("a node's namespace is known");
        let salt = match node.scope {
            Scope::Public(_) => namespace.cache_salt().map(str::to_owned),
            Scope::Private(owner) => Some(namespace.owner_salt(owner)),
        };
        (parent, namespace.extra_key().map(str::to_owned), salt)
    }
}
