//! Matching and inserting: the two walks from the root.
//!
//! Both cut the key to whole pages, refresh the access time of every node they touch and split a node in which they
//! end. An insert also counts hits and raises priorities.

use super::RadixCache;
use crate::config::Sharing;
use crate::hash::{Digest, PageChain};
use crate::namespace::{Access, UserId};
use crate::node::{Ground, Marks, NONE, Node, NodeId, ROOT, Scope, ScopeKey};
use crate::pool::{DevicePage, HostPage, PageState, StalePage};
use crate::tokens::Tokens;
use thiserror::Error;

/// What a key has in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The device pages of the matched prefix.
    pub pages: Vec<DevicePage>,
    /// The last matched node that has device pages, or the root: what to lock.
    pub device_node: NodeId,
    /// The last matched node: what to load back, if `host_pages` is not 0.
    pub node: NodeId,
    /// The last matched node that has a finished host copy, or the root.
    pub host_node: NodeId,
    /// Pages after those of `pages` that only host memory has.
    pub host_pages: usize,
    /// How many of all matched pages are public.
    pub public_pages: usize,
    /// The digest of the last matched page: the chain goes on from here.
    pub last_digest: Option<Digest>,
}

/// How to insert.
#[derive(Clone, Copy, Debug, Default)]
pub struct InsertOptions {
    /// The priority of the request.
    pub priority: i64,
    /// Leading pages of the row that the tree owns already, somewhere.
    pub owned_pages: usize,
    /// Leading pages whose nodes this request has counted a hit for.
    pub counted_pages: usize,
}

/// What an insert did with a row of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Leading pages that had device pages before. The caller frees its own duplicates among them, those from
    /// `owned_pages` on, or reads on from them until it is done.
    pub prefix_pages: usize,
    /// Pages after those that the tree owns now.
    pub taken_pages: usize,
    /// The last node of the path.
    pub node: NodeId,
}

/// The row cannot be inserted; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InsertError {
    /// There are fewer pages than the key has.
    #[error("the key has {wanted} whole pages, the row only {got}")]
    ShortRow {
        /// Whole pages of the key.
        wanted: usize,
        /// Pages of the row.
        got: usize,
    },
    /// A page that the tree would take is not the caller's.
    #[error(transparent)]
    Page(#[from] StalePage),
}

/// How far a walk came.
pub(super) struct Walked {
    /// The last node; all its pages match.
    pub(super) node: u32,
    /// Pages up to its end.
    pub(super) depth: usize,
}

impl RadixCache {
    /// Finds the longest prefix of `tokens` that `access` may see.
    pub fn match_prefix(&mut self, access: Access<'_>, tokens: Tokens<'_>) -> Match {
        let mut found = self.no_match();
        let mut deepest = ROOT;
        self.walk(access, tokens, |cache, index| {
            let node = &cache.nodes[index];
            deepest = index;
            if node.is_device() {
                found.pages.extend_from_slice(&node.device);
                found.device_node = cache.nodes.id(index);
            } else {
                found.host_pages += cache.nodes.pages(index);
            }
            if node.is_backed_up() {
                found.host_node = cache.nodes.id(index);
            }
            if node.scope.is_public() {
                found.public_pages += cache.nodes.pages(index);
            }
        });
        found.node = self.nodes.id(deepest);
        found.last_digest = match deepest {
            ROOT => access.namespace.seed(),
            node => self.nodes[node].digests.last().copied(),
        };
        found
    }

    /// What an empty key has.
    fn no_match(&self) -> Match {
        Match {
            pages: Vec::new(),
            device_node: self.root(),
            node: self.root(),
            host_node: self.root(),
            host_pages: 0,
            public_pages: 0,
            last_digest: None,
        }
    }

    /// Walks down from the root, splitting where the key leaves a node, and calls `visit` at each matched node.
    pub(super) fn walk(
        &mut self,
        access: Access<'_>,
        tokens: Tokens<'_>,
        mut visit: impl FnMut(&mut Self, u32),
    ) -> Walked {
        let now = self.tick();
        let mut walked = Walked { node: ROOT, depth: 0 };
        let total = self.config.shape.whole_pages(tokens.len());
        let Some(namespace) = self.namespaces.find(access.namespace) else { return walked };
        while walked.depth < total {
            let rest = self.config.shape.pages(tokens, walked.depth..total);
            let Some(child) = self.step(walked.node, namespace, access.user, rest) else { break };
            self.nodes[child].accessed = now;
            let common = self.config.shape.common_pages(self.nodes[child].tokens(), rest);
            let whole = common == self.nodes.pages(child);
            walked.node = if whole { child } else { self.split(child, common) };
            walked.depth += common;
            visit(self, walked.node);
            if !whole {
                break;
            }
        }
        walked
    }

    /// The child that a key goes on to: the public one first, then the account's own.
    fn step(&self, at: u32, namespace: u32, user: Option<UserId>, rest: Tokens<'_>) -> Option<u32> {
        let first = self.config.shape.pages(rest, 0..1);
        let bits = self.nodes.page_bits(first);
        let look = |scope| self.nodes.child(at, namespace, scope, first, bits);
        let public = if self.nodes[at].scope.is_public() { look(ScopeKey::Public) } else { None };
        public.or_else(|| match user {
            Some(user) if self.is_scoped() => look(ScopeKey::Private(user)),
            _ => None,
        })
    }

    /// Splits a node after `pages` pages and returns the new upper node.
    pub(super) fn split(&mut self, index: u32, pages: usize) -> u32 {
        let now = self.tick();
        let rank = self.rank(index);
        let upper = self.nodes.split(index, pages, now);
        self.rank_shrank(index, rank);
        self.namespaces.retain(self.nodes[upper].namespace);
        if self.nodes[index].marks.wants_backup {
            self.want_backup(upper);
        }
        upper
    }

    /// Puts a row of pages into the tree. The tree takes the pages after the prefix that it has already.
    ///
    /// Where accounts are told apart, a request without one gives nothing to the tree.
    ///
    /// # Errors
    ///
    /// If the row is shorter than the key, or a page from `owned_pages` on is not the caller's, or is there twice.
    pub fn insert(
        &mut self,
        access: Access<'_>,
        tokens: Tokens<'_>,
        row: &[DevicePage],
        options: InsertOptions,
    ) -> Result<Inserted, InsertError> {
        let total = self.config.shape.whole_pages(tokens.len());
        if row.len() < total {
            return Err(InsertError::ShortRow { wanted: total, got: row.len() });
        }
        let owned = options.owned_pages.min(total);
        self.claim(&row[owned..total])?;
        let (mut at, mut prefix, mut taken) = (0, 0, 0);
        let gives = !self.is_scoped() || access.user.is_some();
        let walked = self.walk(access, tokens, |cache, index| {
            let pages = cache.nodes.pages(index);
            let mine = &row[at..at + pages];
            at += pages;
            cache.count_hit(index, options, at > options.counted_pages);
            if cache.nodes[index].is_device() {
                prefix += pages;
            } else if gives && prefix + taken + pages == at && at - pages >= options.owned_pages {
                // Host memory has the pages; the request computed them again, so now the device has them too.
                cache.give_device(index, mine.into());
                taken += pages;
            }
            cache.consider_backup(index);
        });
        let mut node = walked.node;
        let whole_path = prefix + taken == walked.depth;
        if gives && whole_path && walked.depth >= options.owned_pages && walked.depth < total {
            node = self.add_leaves(access, tokens, walked.node, options.priority, Pages::Device(row));
            taken += total - walked.depth;
        }
        self.device.set(&row[owned..prefix.max(owned)], PageState::Private);
        self.device.set(&row[(prefix + taken).max(owned)..total], PageState::Private);
        Ok(Inserted { prefix_pages: prefix, taken_pages: taken, node: self.nodes.id(node) })
    }

    /// Takes the caller's pages, all or none: one that is twice in the row would be in two nodes.
    fn claim(&mut self, pages: &[DevicePage]) -> Result<(), StalePage> {
        for (at, page) in pages.iter().enumerate() {
            if let Err(stale) = self.device.change(*page, PageState::Private, PageState::Shared) {
                self.device.set(&pages[..at], PageState::Private);
                return Err(stale);
            }
        }
        Ok(())
    }

    fn count_hit(&mut self, index: u32, options: InsertOptions, count: bool) {
        let node = &mut self.nodes[index];
        node.priority = node.priority.max(options.priority);
        node.hits += u64::from(count);
    }

    /// Adds the pages of a key after `parent`'s end: declared ones as public nodes, the others in the scope of
    /// the account. Returns the last node.
    pub(super) fn add_leaves(
        &mut self,
        access: Access<'_>,
        tokens: Tokens<'_>,
        parent: u32,
        priority: i64,
        pages: Pages<'_>,
    ) -> u32 {
        let shape = self.config.shape;
        let start = self.nodes[parent].depth as usize;
        let end = shape.whole_pages(tokens.len());
        let names = self.names_after(access, tokens, parent);
        let declared = match (self.config.sharing, access.user, self.nodes[parent].scope) {
            (Sharing::Namespace, _, _) | (_, None, _) => end - start,
            (_, Some(_), Scope::Private(_)) => 0,
            (_, Some(_), Scope::Public(_)) => {
                names.iter().take_while(|name| self.declared.contains(name)).count()
            }
        };
        let ground = if self.is_scoped() { Ground::Declared } else { Ground::Namespace };
        let mut node = parent;
        let mut cut = names;
        let private_names = cut.split_off(declared.min(cut.len()));
        if declared > 0 {
            let run = NewRun { pages: start..start + declared, scope: Scope::Public(ground), digests: cut };
            node = self.add_leaf(access, tokens, node, priority, pages, run, Vec::new());
        }
        if let (true, Some(user)) = (start + declared < end, access.user) {
            let digests = self.private_digests(access, user, tokens, node, end);
            let run = NewRun { pages: start + declared..end, scope: Scope::Private(user), digests };
            node = self.add_leaf(access, tokens, node, priority, pages, run, private_names);
        }
        node
    }

    /// The public names of the pages after `parent`'s end.
    fn names_after(&self, access: Access<'_>, tokens: Tokens<'_>, parent: u32) -> Vec<Digest> {
        if !self.config.hashes {
            return Vec::new();
        }
        let shape = self.config.shape;
        let prior = match parent {
            ROOT => access.namespace.seed(),
            node => self.nodes[node].public_names().last().copied(),
        };
        let start = self.nodes[parent].depth as usize;
        let rest = shape.pages(tokens, start..shape.whole_pages(tokens.len()));
        PageChain::new(shape, prior).whole_pages(rest)
    }

    /// The digests in the owner's chain of the pages from `parent`'s end to `end`.
    pub(super) fn private_digests(
        &self,
        access: Access<'_>,
        user: UserId,
        tokens: Tokens<'_>,
        parent: u32,
        end: usize,
    ) -> Vec<Digest> {
        let shape = self.config.shape;
        let start = self.nodes[parent].depth as usize;
        if let (Scope::Private(_), Some(last)) = (self.nodes[parent].scope, self.nodes[parent].digests.last())
        {
            return PageChain::new(shape, Some(*last)).whole_pages(shape.pages(tokens, start..end));
        }
        // The owner's chain runs over the whole prefix, so a page keeps its name when its prefix becomes public.
        let mut chain = PageChain::new(shape, Some(access.namespace.owner_seed(user)));
        chain.whole_pages(shape.pages(tokens, 0..end)).split_off(start)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "all parts of one new node; a struct would only rename them"
    )]
    fn add_leaf(
        &mut self,
        access: Access<'_>,
        tokens: Tokens<'_>,
        parent: u32,
        priority: i64,
        pages: Pages<'_>,
        run: NewRun,
        names: Vec<Digest>,
    ) -> u32 {
        let shape = self.config.shape;
        let now = self.tick();
        let key = shape.pages(tokens, run.pages.clone());
        let first = shape.pages(key, 0..1);
        let depth = run.pages.end as u32;
        let node = Node {
            generation: 0,
            parent,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            children: 0,
            device_children: 0,
            namespace: self.namespaces.acquire(access.namespace),
            lock: 0,
            host_lock: 0,
            marks: Marks::default(),
            scope: run.scope,
            depth,
            history: depth,
            hits: if matches!(pages, Pages::Device(_)) { 1 } else { 0 },
            priority,
            accessed: now,
            created: now,
            page_bits: self.nodes.page_bits(first),
            merged_into: None,
            low: key.low().into(),
            high: if key.is_wide() { key.high().into() } else { Box::default() },
            device: Box::default(),
            host: Box::default(),
            digests: run.digests.into(),
            names: names.into(),
        };
        let index = self.nodes.add(node);
        match pages {
            Pages::Device(row) => self.give_device(index, row[run.pages].into()),
            Pages::Host(row) => self.give_host(index, row[run.pages].into()),
        }
        self.consider_backup(index);
        let mut at = parent;
        while at != ROOT && self.nodes[at].history < depth {
            self.nodes[at].history = depth;
            at = self.nodes[at].parent;
        }
        index
    }
}

/// The pages of a new node, taken from the row of the whole key.
#[derive(Clone, Copy)]
pub(super) enum Pages<'a> {
    Device(&'a [DevicePage]),
    Host(&'a [HostPage]),
}

/// The part of a key that one new node gets.
struct NewRun {
    pages: std::ops::Range<usize>,
    scope: Scope,
    digests: Vec<Digest>,
}
