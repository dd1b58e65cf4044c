//! Nodes and the slab that they live in.
//!
//! Nodes refer to each other by `u32`. Children hang in a list (for walks over a subtree) and in one hash table for
//! the whole tree (for matches), so a node has no map of its own.

use crate::hash::{Digest, fold, page_bits};
use crate::namespace::UserId;
use crate::policy::NodeFacts;
use crate::pool::{DevicePage, HostPage};
use crate::tokens::{Shape, Tokens};
use hashbrown::HashTable;

/// No node.
pub(crate) const NONE: u32 = u32::MAX;
/// The root: no tokens, never evicted.
pub(crate) const ROOT: u32 = 0;

/// A node of the tree. Stale once the node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Why a page may be seen by everybody in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ground {
    /// The cache does not tell accounts apart ([`Sharing::Namespace`](crate::Sharing)).
    Namespace,
    /// The operator listed it.
    Declared,
    /// Enough accounts submitted it on their own.
    Evidence,
    /// A detector called it harmless.
    Classified,
}

/// Who may see a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everybody in the namespace.
    Public(Ground),
    /// One account.
    Private(UserId),
}

impl Scope {
    pub(crate) fn is_public(self) -> bool {
        matches!(self, Scope::Public(_))
    }

    /// The part of the child key: all grounds are one.
    pub(crate) fn key(self) -> ScopeKey {
        match self {
            Scope::Public(_) => ScopeKey::Public,
            Scope::Private(user) => ScopeKey::Private(user),
        }
    }
}

/// The scope as part of a child key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScopeKey {
    Public,
    Private(UserId),
}

impl ScopeKey {
    fn bits(self) -> u64 {
        match self {
            ScopeKey::Public => 0x2545_f491_4f6c_dd1d,
            ScopeKey::Private(user) => fold(user.0, 0x9e6c_63d0_876a_3f6b),
        }
    }
}

/// Transitions that a node is in, and queues that it stands in.
#[derive(Clone, Copy, Default)]
pub(crate) struct Marks {
    /// Taken out of the table: nobody finds it any more, and it goes when its last lock goes.
    pub(crate) detached: bool,
    /// Below a merged node that is still locked: nobody finds it, and no event speaks of it, until it moves.
    pub(crate) hidden: bool,
    /// Its host pages are being written.
    pub(crate) backup: bool,
    /// A load into device pages is under way.
    pub(crate) loading: bool,
    /// Waits to be backed up.
    pub(crate) wants_backup: bool,
    /// Stands in the queue of device leaves.
    pub(crate) device_queued: bool,
    /// Stands in the queue of host leaves.
    pub(crate) host_queued: bool,
}

pub(crate) struct Node {
    pub(crate) generation: u32,
    pub(crate) parent: u32,
    pub(crate) first_child: u32,
    pub(crate) next: u32,
    pub(crate) previous: u32,
    pub(crate) children: u32,
    /// Children with device pages.
    pub(crate) device_children: u32,
    pub(crate) namespace: u32,
    /// Locks on it and below: it keeps its device pages.
    pub(crate) lock: u32,
    /// Locks on it alone: it keeps its host pages.
    pub(crate) host_lock: u32,
    pub(crate) marks: Marks,
    pub(crate) scope: Scope,
    /// Pages from the root to its end.
    pub(crate) depth: u32,
    /// The largest depth that its branch ever had.
    pub(crate) history: u32,
    pub(crate) hits: u64,
    pub(crate) priority: i64,
    pub(crate) accessed: u64,
    pub(crate) created: u64,
    /// Fast hash of the first page.
    pub(crate) page_bits: u64,
    /// After a merge: who took its place.
    pub(crate) merged_into: Option<NodeId>,
    pub(crate) low: Box<[u32]>,
    pub(crate) high: Box<[u32]>,
    /// Empty, or one page per page of tokens.
    pub(crate) device: Box<[DevicePage]>,
    pub(crate) host: Box<[HostPage]>,
    /// Empty if the cache does not hash; otherwise the chain in the node's own scope.
    pub(crate) digests: Box<[Digest]>,
    /// Of private nodes: the chain that the pages would have if they were public.
    pub(crate) names: Box<[Digest]>,
}

impl Node {
    pub(crate) fn tokens(&self) -> Tokens<'_> {
        Tokens::from_parts(&self.low, &self.high)
    }

    pub(crate) fn is_device(&self) -> bool {
        !self.device.is_empty()
    }

    /// Whether a finished copy is in host memory.
    pub(crate) fn is_backed_up(&self) -> bool {
        !self.host.is_empty() && !self.marks.backup
    }

    /// Whether the walk from the root comes here: what events speak of.
    pub(crate) fn is_visible(&self) -> bool {
        !self.marks.detached && !self.marks.hidden
    }

    /// The public chain of its pages.
    pub(crate) fn public_names(&self) -> &[Digest] {
        if self.scope.is_public() { &self.digests } else { &self.names }
    }

    pub(crate) fn facts(&self, shape: Shape) -> NodeFacts {
        let page = shape.page_tokens();
        NodeFacts {
            accessed: self.accessed,
            created: self.created,
            hits: self.hits,
            priority: self.priority,
            depth_tokens: self.depth as usize * page,
            tokens: shape.whole_pages(self.low.len()) * page,
            history_tokens: self.history as usize * page,
        }
    }
}

/// All nodes, and the table that finds children.
pub(crate) struct Nodes {
    slab: Vec<Node>,
    free: Vec<u32>,
    table: HashTable<u32>,
    shape: Shape,
    seed: u64,
}

impl std::ops::Index<u32> for Nodes {
    type Output = Node;

    fn index(&self, index: u32) -> &Node {
        &self.slab[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Nodes {
    fn index_mut(&mut self, index: u32) -> &mut Node {
        &mut self.slab[index as usize]
    }
}

/// The hash of a child key. The namespace counts for all nodes, which costs nothing and needs no special case.
fn key_bits(parent: u32, namespace: u32, scope: ScopeKey, page: u64) -> u64 {
    fold(page ^ scope.bits(), u64::from(parent) << 32 | u64::from(namespace))
}

fn node_bits(node: &Node) -> u64 {
    key_bits(node.parent, node.namespace, node.scope.key(), node.page_bits)
}

impl Nodes {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        let root = Node {
            generation: 0,
            parent: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            children: 0,
            device_children: 0,
            namespace: 0,
            lock: 0,
            host_lock: 0,
            marks: Marks::default(),
            scope: Scope::Public(Ground::Namespace),
            depth: 0,
            history: 0,
            hits: 0,
            priority: i64::MIN,
            accessed: 0,
            created: 0,
            page_bits: 0,
            merged_into: None,
            low: Box::default(),
            high: Box::default(),
            device: Box::default(),
            host: Box::default(),
            digests: Box::default(),
            names: Box::default(),
        };
        Self { slab: vec![root], free: Vec::new(), table: HashTable::new(), shape, seed }
    }

    pub(crate) fn id(&self, index: u32) -> NodeId {
        NodeId { index, generation: self[index].generation }
    }

    /// The place of a node that is still there.
    pub(crate) fn find(&self, id: NodeId) -> Option<u32> {
        let node = self.slab.get(id.index as usize)?;
        let live = node.generation == id.generation && (id.index == ROOT || node.parent != NONE);
        live.then_some(id.index)
    }

    /// How many whole pages a node holds.
    pub(crate) fn pages(&self, index: u32) -> usize {
        self.shape.whole_pages(self[index].low.len())
    }

    /// How many nodes there are besides the root.
    pub(crate) fn len(&self) -> usize {
        self.slab.len() - self.free.len() - 1
    }

    /// How many nodes the table has.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn listed(&self) -> usize {
        self.table.len()
    }

    /// Upper bound of all places.
    pub(crate) fn places(&self) -> u32 {
        self.slab.len() as u32
    }

    /// Fast hash of a page of a key.
    pub(crate) fn page_bits(&self, page: Tokens<'_>) -> u64 {
        page_bits(self.seed, page)
    }

    /// The child of `parent` whose first page is `page`.
    pub(crate) fn child(
        &self,
        parent: u32,
        namespace: u32,
        scope: ScopeKey,
        page: Tokens<'_>,
        bits: u64,
    ) -> Option<u32> {
        let is_it = |index: &u32| {
            let node = &self[*index];
            node.parent == parent
                && node.page_bits == bits
                && node.namespace == namespace
                && node.scope.key() == scope
                && node.tokens().slice(0..page.len()).same(page)
        };
        self.table.find(key_bits(parent, namespace, scope, bits), is_it).copied()
    }

    /// Adds a node below its `parent` and to the table.
    pub(crate) fn add(&mut self, mut node: Node) -> u32 {
        let index = match self.free.pop() {
            Some(index) => {
                node.generation = self[index].generation;
                self[index] = node;
                index
            }
            None => {
                let index = self.slab.len() as u32;
                assert!(index < NONE, "fewer than 2^32 nodes");
                self.slab.push(node);
                index
            }
        };
        self.hang(index);
        self.enlist(index);
        index
    }

    /// Puts a node into its parent's list of children.
    pub(crate) fn hang(&mut self, index: u32) {
        let parent = self[index].parent;
        let first = self[parent].first_child;
        self[index].next = first;
        self[index].previous = NONE;
        if first != NONE {
            self[first].previous = index;
        }
        let device = u32::from(self[index].is_device());
        let parent = &mut self[parent];
        parent.first_child = index;
        parent.children += 1;
        parent.device_children += device;
    }

    /// Takes a node out of its parent's list of children.
    pub(crate) fn unhang(&mut self, index: u32) {
        let Node { parent, next, previous, .. } = self[index];
        if next != NONE {
            self[next].previous = previous;
        }
        let device = u32::from(self[index].is_device());
        let parent = &mut self[parent];
        parent.children -= 1;
        parent.device_children -= device;
        if previous == NONE {
            parent.first_child = next;
        } else {
            self[previous].next = next;
        }
    }

    /// Makes a node findable.
    pub(crate) fn enlist(&mut self, index: u32) {
        let slab = &self.slab;
        self.table
            .insert_unique(node_bits(&slab[index as usize]), index, |at| node_bits(&slab[*at as usize]));
    }

    /// Makes a node unfindable. Its key must still be the one it was enlisted with.
    pub(crate) fn delist(&mut self, index: u32) {
        let bits = node_bits(&self[index]);
        let entry = self.table.find_entry(bits, |at| *at == index);
        entry.expect("a node that is not detached is in the table").remove();
    }

    /// Frees the place of a node that is out of the table and has no children.
    pub(crate) fn remove(&mut self, index: u32) {
        self.unhang(index);
        let node = &mut self[index];
        debug_assert!(node.device.is_empty() && node.host.is_empty() && node.children == 0);
        node.parent = NONE;
        node.generation = node.generation.wrapping_add(1);
        node.low = Box::default();
        node.high = Box::default();
        node.digests = Box::default();
        node.names = Box::default();
        self.free.push(index);
    }

    /// The nodes of a subtree, each before its children.
    pub(crate) fn subtree(&self, top: u32) -> Vec<u32> {
        let mut order = vec![top];
        let mut at = 0;
        while at < order.len() {
            let mut child = self[order[at]].first_child;
            while child != NONE {
                order.push(child);
                child = self[child].next;
            }
            at += 1;
        }
        order
    }

    /// The children of a node.
    pub(crate) fn children(&self, index: u32) -> Vec<u32> {
        let mut found = Vec::with_capacity(self[index].children as usize);
        let mut child = self[index].first_child;
        while child != NONE {
            found.push(child);
            child = self[child].next;
        }
        found
    }

    /// Splits a node after `pages` pages. The new upper node takes the place; the lower one keeps its identity.
    pub(crate) fn split(&mut self, index: u32, pages: usize, now: u64) -> u32 {
        let (shape, marks) = (self.shape, self[index].marks);
        debug_assert!(0 < pages && pages < self.pages(index) && !marks.detached);
        self.delist(index);
        self.unhang(index);
        let total = self.pages(index);
        let upper_raw = shape.raw_tokens(pages);
        let lower_raw = pages * shape.page_tokens();
        let node = &mut self[index];
        let upper = Node {
            generation: 0,
            first_child: NONE,
            children: 0,
            device_children: 0,
            host_lock: 0,
            marks: Marks { wants_backup: false, device_queued: false, host_queued: false, ..marks },
            depth: node.depth - (total - pages) as u32,
            accessed: now,
            created: now,
            low: node.low[..upper_raw].into(),
            high: node.high.get(..upper_raw).unwrap_or_default().into(),
            device: node.device.get(..pages).unwrap_or_default().into(),
            host: node.host.get(..pages).unwrap_or_default().into(),
            digests: node.digests.get(..pages).unwrap_or_default().into(),
            names: node.names.get(..pages).unwrap_or_default().into(),
            ..*node
        };
        node.low = node.low[lower_raw..].into();
        node.high = node.high.get(lower_raw..).unwrap_or_default().into();
        node.device = node.device.get(pages..).unwrap_or_default().into();
        node.host = node.host.get(pages..).unwrap_or_default().into();
        node.digests = node.digests.get(pages..).unwrap_or_default().into();
        node.names = node.names.get(pages..).unwrap_or_default().into();
        let upper = self.add(upper);
        let first = shape.pages(self[index].tokens(), 0..1);
        let bits = self.page_bits(first);
        let node = &mut self[index];
        node.page_bits = bits;
        node.parent = upper;
        self.hang(index);
        self.enlist(index);
        upper
    }
}
