//! Private and public pages: what is declared, promoted, classified and demoted.
//!
//! Invariants:
//! - the prefix of a public page is public;
//! - below a private page all is private to the same account;
//! - no account has a findable private copy of a page that is public in the same place.
//!
//! A promotion keeps one copy of a page and frees the others, those of running requests when their locks go. What
//! hung below the others hangs below the kept one then.

use super::{Match, RadixCache};
use crate::config::Sharing;
use crate::hash::{Digest, PageChain};
use crate::namespace::{Access, Namespace, UserId};
use crate::node::{Ground, Node, NodeId, ROOT, Scope, ScopeKey};
use crate::tokens::Tokens;
use std::collections::{BTreeMap, BTreeSet};

/// Many hits by few accounts on a public page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alert {
    /// The page stays public: enough accounts or the operator made it so. Somebody should look.
    Surge {
        /// Pages from the start of the prompt to this one.
        depth: usize,
    },
    /// The page was public only because a detector said so. It and all below is gone, and stays private for a while.
    Demoted {
        /// Pages from the start of the prompt to this one.
        depth: usize,
        /// Public pages that are gone.
        pages: usize,
    },
}

/// A page that has a new name because it is public now. A store can make the new one an alias of the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Its name in its owner's chain.
    pub private: Digest,
    /// Its name in the public chain.
    pub public: Digest,
}

/// What the end of a window, a declaration or a classification changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowClosed {
    /// Pages that are public now, parents first.
    pub promoted: Vec<Alias>,
    /// Pages of other copies that are gone, or will be when their requests end.
    pub merged_pages: usize,
    /// The number of the window that begins.
    pub window: u64,
}

/// Private copies of pages that begin alike, below the same public node: depth, parent, name of the first page.
type Frontier = BTreeMap<(u32, u32, Digest), BTreeSet<NodeId>>;

impl RadixCache {
    /// Counts the pages that a request submitted and raises the alarm at surges of hits. `found` is what its match
    /// brought. [`start`](Self::start) does this by itself. Without evidence mode nothing happens.
    pub fn note_submission(&mut self, access: Access<'_>, tokens: Tokens<'_>, found: &Match) -> Vec<Alert> {
        let (Sharing::Evidence(_), Some(user)) = (self.config.sharing, access.user) else {
            return Vec::new();
        };
        let names = self.public_chain(access.namespace, tokens);
        let hits = found.pages.len() + found.host_pages;
        for (at, name) in names.iter().enumerate() {
            self.evidence.submit(name, user, at < hits);
        }
        let mut alerts = Vec::new();
        for (at, name) in names.iter().enumerate().take(found.public_pages) {
            let Some(surge) = self.evidence.surge(name) else { continue };
            let classified = self.public_page(access.namespace, tokens, at);
            match classified.filter(|(_, ground)| *ground == Ground::Classified && surge.few_users) {
                Some((node, _)) => {
                    self.evidence.veto(*name);
                    let pages = self.demote(node, at);
                    alerts.push(Alert::Demoted { depth: at + 1, pages });
                    break;
                }
                None => alerts.push(Alert::Surge { depth: at + 1 }),
            }
        }
        alerts
    }

    /// Makes a prefix public from the start: the operator's own text, such as a system prompt. Copies that exist
    /// become public now.
    pub fn declare(&mut self, namespace: &Namespace, tokens: Tokens<'_>) -> WindowClosed {
        if !self.is_scoped() {
            return WindowClosed::default();
        }
        self.declared.extend(self.public_chain(namespace, tokens));
        // What is public on another ground is not the operator's yet, and could be demoted.
        self.walk(Access::of(namespace), tokens, |cache, index| {
            cache.nodes[index].scope = Scope::Public(Ground::Declared);
        });
        self.promote(|cache, name| cache.declared.contains(name).then_some(Ground::Declared), None)
    }

    /// Makes an account's pages public because a detector found them harmless. Without evidence mode, while a veto
    /// on any page of the prompt lasts, or for pages that the account does not have, nothing happens.
    pub fn classify(&mut self, access: Access<'_>, tokens: Tokens<'_>) -> WindowClosed {
        let (Sharing::Evidence(_), Some(owner)) = (self.config.sharing, access.user) else {
            return WindowClosed::default();
        };
        let names: BTreeSet<Digest> = self.public_chain(access.namespace, tokens).into_iter().collect();
        if names.iter().any(|name| self.evidence.is_vetoed(name)) {
            return WindowClosed::default();
        }
        self.promote(|_, name| names.contains(name).then_some(Ground::Classified), Some(owner))
    }

    /// Ends the window of evidence (every 10 s, say): pages with enough accounts become public, parents first.
    pub fn close_window(&mut self) -> WindowClosed {
        let mut closed = match self.config.sharing {
            Sharing::Evidence(_) => {
                self.promote(|cache, name| cache.evidence.is_enough(name).then_some(Ground::Evidence), None)
            }
            _ => WindowClosed::default(),
        };
        closed.window = self.evidence.next_window();
        closed
    }

    /// The public names of all whole pages of a key.
    fn public_chain(&self, namespace: &Namespace, tokens: Tokens<'_>) -> Vec<Digest> {
        PageChain::new(self.config.shape, namespace.seed()).whole_pages(tokens)
    }

    /// The public node that holds page `at` of a key, without touching it.
    fn public_page(&self, namespace: &Namespace, tokens: Tokens<'_>, at: usize) -> Option<(u32, Ground)> {
        let shape = self.config.shape;
        let namespace = self.namespaces.find(namespace)?;
        let mut node = ROOT;
        loop {
            let depth = self.nodes[node].depth as usize;
            let page = shape.pages(tokens, depth..depth + 1);
            let bits = self.nodes.page_bits(page);
            node = self.nodes.child(node, namespace, ScopeKey::Public, page, bits)?;
            if self.nodes[node].depth as usize > at {
                let Scope::Public(ground) = self.nodes[node].scope else { return None };
                return Some((node, ground));
            }
        }
    }

    /// Takes away page `at` of a node and all below it; returns how many public pages that were.
    fn demote(&mut self, node: u32, at: usize) -> usize {
        let start = self.nodes[node].depth as usize - self.nodes.pages(node);
        if at > start {
            self.split(node, at - start);
        }
        self.detach(node).1
    }

    /// Makes public what `ground` gives a ground for, parents first. With `owner`, only what that account has.
    fn promote(
        &mut self,
        ground: impl Fn(&Self, &Digest) -> Option<Ground>,
        owner: Option<UserId>,
    ) -> WindowClosed {
        let mut closed = WindowClosed { window: self.evidence.window(), ..WindowClosed::default() };
        let mut frontier = Frontier::new();
        for index in 1..self.nodes.places() {
            self.add_to_frontier(&mut frontier, index);
        }
        while let Some((_, copies)) = frontier.pop_first() {
            let copies: Vec<u32> = copies.into_iter().filter_map(|id| self.nodes.find(id)).collect();
            let owned =
                |copy: &&u32| owner.is_none_or(|owner| self.nodes[**copy].scope == Scope::Private(owner));
            let Some(first) = copies.iter().find(owned).copied() else { continue };
            let names = &self.nodes[first].names;
            let Some(why) = names.first().and_then(|name| ground(self, name)) else { continue };
            let run = names.iter().take_while(|name| ground(self, name) == Some(why)).count();
            let kept = self.publish(&copies, first, run, why, &mut closed);
            for child in self.nodes.children(kept) {
                self.add_to_frontier(&mut frontier, child);
            }
        }
        closed
    }

    /// Notes a private node whose parent is public.
    fn add_to_frontier(&self, frontier: &mut Frontier, index: u32) {
        let id = self.nodes.id(index);
        let live = self.nodes.find(id).is_some_and(|at| !self.nodes[at].marks.detached);
        if !live || self.nodes[index].scope.is_public() {
            return;
        }
        let parent = self.nodes[index].parent;
        if self.nodes[parent].scope.is_public()
            && let Some(name) = self.nodes[index].names.first()
        {
            frontier.entry((self.nodes[parent].depth, parent, *name)).or_default().insert(id);
        }
    }

    /// Makes at most `run` pages public that all copies begin with, keeping one copy, and returns its node.
    fn publish(
        &mut self,
        copies: &[u32],
        first: u32,
        run: usize,
        ground: Ground,
        closed: &mut WindowClosed,
    ) -> u32 {
        let shape = self.config.shape;
        let node = &self.nodes[first];
        let page = shape.pages(node.tokens(), 0..1);
        let public = self.nodes.child(node.parent, node.namespace, ScopeKey::Public, page, node.page_bits);
        let common =
            |other: &u32| shape.common_pages(self.nodes[first].tokens(), self.nodes[*other].tokens());
        let run = copies.iter().chain(&public).map(common).min().unwrap_or(run).min(run);
        let cut = |cache: &mut Self, copy: u32| {
            if cache.nodes.pages(copy) > run { cache.split(copy, run) } else { copy }
        };
        let mut parts: Vec<u32> = copies.iter().map(|copy| cut(self, *copy)).collect();
        let kept = match public {
            Some(public) => cut(self, public),
            None => {
                // A locked copy is in use, one on the device is worth more than one in host memory.
                let worth = |at: &u32| (self.nodes[*at].lock > 0, self.nodes[*at].is_device());
                let best = parts.iter().copied().max_by_key(worth).unwrap_or(first);
                parts.retain(|part| *part != best);
                self.relabel(best, ground, closed);
                best
            }
        };
        for part in parts {
            closed.merged_pages += self.nodes.pages(part);
            self.merge(part, kept);
        }
        kept
    }

    /// A private node becomes public under its public names.
    fn relabel(&mut self, index: u32, ground: Ground, closed: &mut WindowClosed) {
        self.nodes.delist(index);
        let node = &mut self.nodes[index];
        let names = std::mem::take(&mut node.names);
        let private = std::mem::replace(&mut node.digests, names);
        node.scope = Scope::Public(ground);
        self.nodes.enlist(index);
        let renamed = private.iter().zip(&self.nodes[index].digests);
        closed.promoted.extend(renamed.map(|(private, public)| Alias { private: *private, public: *public }));
        for (_, medium) in self.copies(index).into_iter().filter(|(there, _)| *there) {
            self.events.removed(&private, medium);
            self.record_stored(index, medium);
        }
    }

    /// Takes a copy out of sight in favour of `kept`; without locks it goes at once.
    fn merge(&mut self, copy: u32, kept: u32) {
        let target = self.nodes.id(kept);
        let Node { priority, accessed, hits, history, .. } = self.nodes[copy];
        let node = &mut self.nodes[kept];
        node.priority = node.priority.max(priority);
        node.accessed = node.accessed.max(accessed);
        node.hits += hits;
        node.history = node.history.max(history);
        self.nodes[copy].merged_into = Some(target);
        self.detach_one(copy, &mut Vec::new());
        if self.nodes[copy].lock == 0 {
            self.rehang_children(copy);
            self.reap(copy);
        } else {
            self.hide_children(copy);
        }
        self.queue_leaf(kept);
    }
}
