//! Recomputes every invariant. For tests: it takes time in proportion to the cache.

use super::RadixCache;
use crate::events::Medium;
use crate::hash::{Digest, PageChain};
use crate::node::{NONE, Node, ROOT, Scope};
use crate::pool::{PageId, PagePool, PageState};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

fn hold(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// What is counted on the way over all nodes.
struct Seen<M1, M2> {
    device: BTreeMap<PageId<M1>, u32>,
    host: BTreeMap<PageId<M2>, u32>,
    keys: BTreeSet<(u32, u32, bool, u64, Vec<u64>)>,
    evictable: usize,
    protected: usize,
    listed: usize,
    namespaces: BTreeMap<u32, u32>,
}

type Tiers = Seen<crate::pool::Device, crate::pool::Host>;

impl RadixCache {
    /// Recomputes every invariant of the cache.
    ///
    /// # Errors
    ///
    /// The first one that does not hold.
    pub fn check(&self) -> Result<(), Violation> {
        let mut seen = Tiers {
            device: BTreeMap::new(),
            host: BTreeMap::new(),
            keys: BTreeSet::new(),
            evictable: 0,
            protected: 0,
            listed: 0,
            namespaces: BTreeMap::new(),
        };
        let order = self.nodes.subtree(ROOT);
        hold(order.len() == self.nodes.len() + 1, || {
            format!("{} nodes reached of {}", order.len() - 1, self.nodes.len())
        })?;
        for index in order {
            self.check_children(index)?;
            if index != ROOT {
                self.check_node(index, &mut seen)?;
                self.check_parent(index)?;
                self.check_digests(index)?;
                self.check_scope(index)?;
            }
        }
        let counted = (seen.evictable, seen.protected);
        hold(counted == (self.evictable, self.protected), || {
            format!("counters {:?}, recomputed {counted:?}", (self.evictable, self.protected))
        })?;
        hold(seen.listed == self.nodes.listed(), || "the table has nodes that are gone".to_owned())?;
        let uses: BTreeMap<u32, u32> = self.namespaces.uses().into_iter().collect();
        hold(uses == seen.namespaces, || format!("namespaces {uses:?}, used {:?}", seen.namespaces))?;
        check_pool(&self.device, &seen.device)?;
        check_pool(&self.host, &seen.host)
    }

    /// All pages that can be found, by medium and name: what events must add up to.
    pub fn content(&self) -> Vec<(Medium, Digest)> {
        let mut content = Vec::new();
        for index in self.nodes.subtree(ROOT).into_iter().skip(1) {
            let node = &self.nodes[index];
            for (there, medium) in self.copies(index) {
                if there && node.is_visible() {
                    content.extend(node.digests.iter().map(|digest| (medium, *digest)));
                }
            }
        }
        content
    }

    fn check_children(&self, index: u32) -> Result<(), Violation> {
        let children = self.nodes.children(index);
        let device = children.iter().filter(|child| self.nodes[**child].is_device()).count();
        let node = &self.nodes[index];
        let counted = (node.children as usize, node.device_children as usize);
        hold(counted == (children.len(), device), || format!("node {index} counts its children wrongly"))?;
        hold(children.iter().all(|child| self.nodes[*child].parent == index), || {
            format!("a child of {index} has another parent")
        })?;
        if index != ROOT {
            let below: u32 = children.iter().map(|child| self.nodes[*child].lock).sum();
            hold(node.lock >= below, || format!("node {index} has lock {} above {below}", node.lock))?;
        }
        Ok(())
    }

    fn check_node(&self, index: u32, seen: &mut Tiers) -> Result<(), Violation> {
        let node = &self.nodes[index];
        let pages = self.nodes.pages(index);
        let shape = self.config.shape;
        let detached = node.marks.detached;
        let name = || format!("node {index} {:?} {:?}", node.scope, node.tokens());
        hold(pages > 0 && shape.raw_tokens(pages) == node.low.len(), || {
            format!("{}: not whole pages", name())
        })?;
        let fits = |len: usize| len == 0 || len == pages;
        hold(fits(node.device.len()) && fits(node.host.len()), || format!("{}: pages missing", name()))?;
        hold(detached || node.is_device() || node.is_backed_up(), || format!("{}: nowhere", name()))?;
        hold(node.lock == 0 || node.is_device(), || format!("{}: locked without pages", name()))?;
        for page in &node.device {
            let first = seen.device.insert(*page, 1).is_none();
            let state = self.device.state(*page);
            let good = matches!(state, Some(PageState::Shared | PageState::Writing));
            hold(first && good, || format!("{}: device page {page:?} {state:?}", name()))?;
        }
        for page in &node.host {
            let first = seen.host.insert(*page, 1).is_none();
            let state = self.host.state(*page);
            let good = match state {
                Some(PageState::Loading) => node.marks.backup,
                Some(PageState::Shared | PageState::Writing) => !node.marks.backup,
                _ => false,
            };
            hold(first && good, || format!("{}: host page {page:?} {state:?}", name()))?;
        }
        if node.is_device() {
            let tokens = self.node_tokens(index);
            *(if node.lock > 0 { &mut seen.protected } else { &mut seen.evictable }) += tokens;
        }
        *seen.namespaces.entry(node.namespace).or_default() += 1;
        if !detached {
            seen.listed += 1;
            let (public, owner) = match node.scope {
                Scope::Public(_) => (true, 0),
                Scope::Private(user) => (false, user.0),
            };
            let page: Vec<u64> = shape.pages(node.tokens(), 0..1).iter().collect();
            let key = (node.parent, node.namespace, public, owner, page);
            hold(seen.keys.insert(key), || format!("{}: a brother has its key", name()))?;
            let first = shape.pages(node.tokens(), 0..1);
            let bits = self.nodes.page_bits(first);
            let found = self.nodes.child(node.parent, node.namespace, node.scope.key(), first, bits);
            hold(found == Some(index), || format!("{}: cannot be found", name()))?;
        }
        self.check_queues(index, node)
    }

    /// A leaf that may be evicted stands in its queue.
    fn check_queues(&self, index: u32, node: &Node) -> Result<(), Violation> {
        let (device, host) = self.leaf_of(index);
        let queued = (!device || node.marks.device_queued) && (!host || node.marks.host_queued);
        hold(queued, || format!("node {index} can be evicted but is not in the queue"))
    }

    fn check_parent(&self, index: u32) -> Result<(), Violation> {
        let node = &self.nodes[index];
        hold(node.parent != NONE, || format!("node {index} is reachable but gone"))?;
        let parent = &self.nodes[node.parent];
        let depth = parent.depth as usize + self.nodes.pages(index);
        hold(node.depth as usize == depth, || format!("node {index} has depth {}, not {depth}", node.depth))?;
        let closed = node.parent == ROOT || parent.is_device() || !node.is_device();
        hold(closed, || format!("node {index} is on the device, its parent is not"))?;
        hold(node.parent == ROOT || node.namespace == parent.namespace, || {
            format!("node {index} is in another namespace than its parent")
        })
    }

    fn check_digests(&self, index: u32) -> Result<(), Violation> {
        let node = &self.nodes[index];
        if !self.config.hashes {
            return Ok(());
        }
        let shape = self.config.shape;
        let namespace = self.namespaces.get(node.namespace).expect("a node's namespace is known");
        let chain = |seed: Option<Digest>| -> Vec<Digest> {
            let mut chain = PageChain::new(shape, seed);
            let mut all = Vec::new();
            let mut path = vec![index];
            while self.nodes[path[path.len() - 1]].parent != ROOT {
                path.push(self.nodes[path[path.len() - 1]].parent);
            }
            for at in path.into_iter().rev() {
                all = chain.whole_pages(self.nodes[at].tokens());
            }
            all
        };
        let public = chain(namespace.seed());
        let good = match node.scope {
            Scope::Public(_) => node.digests[..] == public[..] && node.names.is_empty(),
            Scope::Private(user) => {
                node.names[..] == public[..]
                    && node.digests[..] == chain(Some(namespace.owner_seed(user)))[..]
            }
        };
        hold(good, || format!("node {index} has other digests than its chain"))
    }

    fn check_scope(&self, index: u32) -> Result<(), Violation> {
        let node = &self.nodes[index];
        let parent = &self.nodes[node.parent];
        // A merged copy that waits for its locks hides what is below it, and only that is hidden.
        let below_hidden = parent.marks.hidden || (parent.marks.detached && parent.merged_into.is_some());
        hold(node.marks.detached || node.marks.hidden == below_hidden, || {
            format!("node {index} is hidden: {}, should be: {below_hidden}", node.marks.hidden)
        })?;
        let fits = match (parent.scope, node.scope) {
            (Scope::Public(_), Scope::Public(_)) => true,
            (Scope::Private(above), Scope::Private(own)) => above == own,
            (Scope::Public(_), Scope::Private(_)) => {
                let page = self.config.shape.pages(node.tokens(), 0..1);
                let scope = crate::node::ScopeKey::Public;
                let copy =
                    self.nodes.child(node.parent, node.namespace, scope, page, node.page_bits).is_some();
                node.marks.detached || !copy
            }
            // A copy that was merged waits for its locks, and so do those above it.
            (Scope::Private(_), Scope::Public(_)) => node.marks.detached || parent.marks.detached,
        };
        hold(fits, || format!("node {index} {:?} below {:?}", node.scope, parent.scope))
    }
}

/// Pages and references of a pool against those of the tree: the tree has one reference to each of its pages, and
/// what is neither free nor the tree's is a request's or a plan's.
fn check_pool<M>(pool: &PagePool<M>, tree: &BTreeMap<PageId<M>, u32>) -> Result<(), Violation>
where
    PageId<M>: Debug,
{
    for page in tree.keys() {
        let references = pool.references(*page);
        hold(references >= 1, || format!("{page:?} of the tree is free"))?;
        let state = pool.state(*page);
        hold(state != Some(PageState::Shared) || references >= 1, || format!("{page:?} is lost"))?;
    }
    let owned = pool.count(PageState::Shared) + pool.count(PageState::Writing);
    let outside = pool.count(PageState::Private) + pool.count(PageState::Loading);
    let all = pool.count(PageState::Free) + owned + outside;
    hold(all == pool.capacity() && pool.count(PageState::Free) == pool.free(), || {
        format!("{all} pages counted of {}", pool.capacity())
    })
}
