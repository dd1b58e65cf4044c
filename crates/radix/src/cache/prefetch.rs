//! Pages that come from a store into host memory.
//!
//! A prefetch continues the digest chain where the match ended. Its pages become host-only nodes; what somebody else
//! brought or computed meanwhile is freed.

use super::walk::Pages;
use super::{Match, RadixCache};
use crate::hash::{Digest, PageChain};
use crate::namespace::{Access, Namespace, UserId};
use crate::node::{NodeId, ROOT, Scope};
use crate::pool::{HostPage, OutOfPages, PageState};
use crate::tokens::{TokenBuf, Tokens};
use thiserror::Error;

/// One page to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefetchPage {
    /// Its name in the store.
    pub digest: Digest,
    /// Where it goes.
    pub host: HostPage,
}

/// Reads from a store, in order of the prefix.
#[derive(Debug)]
#[must_use = "a plan must be committed or aborted"]
pub struct PrefetchPlan {
    namespace: Namespace,
    user: Option<UserId>,
    tokens: TokenBuf,
    /// The last node that the cache had; its host pages stay.
    anchor: NodeId,
    /// Pages before the first of the plan.
    start: usize,
    pages: Vec<PrefetchPage>,
}

impl PrefetchPlan {
    /// What to read.
    pub fn pages(&self) -> &[PrefetchPage] {
        &self.pages
    }

    /// How many pages of the prompt come before the first one.
    pub fn start_page(&self) -> usize {
        self.start
    }
}

/// What a finished prefetch brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetched {
    /// Pages that are in host memory now and were nowhere before.
    pub inserted: usize,
    /// Pages that came for nothing: the cache had got them from elsewhere, or lost what they continue.
    pub duplicates: usize,
    /// The last node of the path.
    pub node: NodeId,
}

/// Nothing is prefetched; nothing changed except that host leaves may have been evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PrefetchError {
    /// The cache does not hash, has no host memory, or the request may not add pages.
    #[error("this cache or this request cannot prefetch")]
    Off,
    /// Recomputing so few tokens is cheaper.
    #[error("{tokens} tokens are too few to be worth a prefetch")]
    TooFew {
        /// How many there are.
        tokens: usize,
    },
    /// Too many prefetches are under way.
    #[error("{tokens} tokens are being prefetched already: try again when some have come")]
    Busy {
        /// How many are under way.
        tokens: usize,
    },
    /// Host memory is full of pages that may not go.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
}

/// What a store may have of a prompt, before anything is set aside for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefetchNames {
    /// Pages of the prompt that the cache has.
    pub start: usize,
    /// The names of the whole pages after those.
    pub digests: Vec<Digest>,
}

impl RadixCache {
    /// The names of the pages after the longest prefix in the cache, to ask a store how many of them it has. Ask
    /// first, then [begin](Self::begin_prefetch) with as many tokens as are worth it: a prefetch evicts host
    /// leaves for all its pages.
    ///
    /// # Errors
    ///
    /// If this cache or request cannot prefetch, or the rest is too short.
    pub fn prefetch_names(
        &mut self,
        access: Access<'_>,
        tokens: Tokens<'_>,
    ) -> Result<PrefetchNames, PrefetchError> {
        let (anchor, start) = self.prefetch_start(access, tokens)?;
        Ok(PrefetchNames { start, digests: self.digests_after(access, tokens, anchor) })
    }

    /// Where a prefetch would begin: the last node that the cache has, and the pages up to its end.
    fn prefetch_start(
        &mut self,
        access: Access<'_>,
        tokens: Tokens<'_>,
    ) -> Result<(u32, usize), PrefetchError> {
        let may_add = !self.is_scoped() || access.user.is_some();
        if !self.config.hashes || self.config.host_pages == 0 || !may_add {
            return Err(PrefetchError::Off);
        }
        let total = self.config.shape.whole_pages(tokens.len());
        let Match { node, .. } = self.match_prefix(access, tokens);
        let anchor = self.nodes.find(node).expect("a match ends at a live node");
        let start = self.nodes[anchor].depth as usize;
        let wanted = (total - start) * self.page_tokens();
        if wanted == 0 || wanted < self.config.prefetch_min_tokens {
            return Err(PrefetchError::TooFew { tokens: wanted });
        }
        Ok((anchor, start))
    }

    /// Starts to look in a store for the pages after the longest prefix in the cache.
    ///
    /// # Errors
    ///
    /// If the rest is too short, too much is under way, or host memory is full.
    pub fn begin_prefetch(
        &mut self,
        access: Access<'_>,
        tokens: Tokens<'_>,
    ) -> Result<PrefetchPlan, PrefetchError> {
        let (anchor, start) = self.prefetch_start(access, tokens)?;
        let node = self.nodes.id(anchor);
        let total = self.config.shape.whole_pages(tokens.len());
        let wanted = (total - start) * self.page_tokens();
        if self.prefetching + wanted > self.config.prefetch_max_tokens {
            return Err(PrefetchError::Busy { tokens: self.prefetching });
        }
        self.host_lock(anchor);
        if total - start > self.host.free() {
            self.evict_host(total - start - self.host.free());
        }
        let host = match self.host.alloc(total - start, PageState::Loading) {
            Ok(host) => host,
            Err(full) => {
                self.host_unlock(node);
                return Err(full.into());
            }
        };
        let digests = self.digests_after(access, tokens, anchor);
        self.prefetching += wanted;
        let pages = digests.into_iter().zip(host).map(|(digest, host)| PrefetchPage { digest, host });
        Ok(PrefetchPlan {
            namespace: access.namespace.clone(),
            user: access.user,
            tokens: tokens.slice(0..self.config.shape.raw_tokens(total)).into(),
            anchor: node,
            start,
            pages: pages.collect(),
        })
    }

    /// The names under which a store has the pages after `parent`: declared ones in the public chain, the others
    /// in the account's.
    fn digests_after(&self, access: Access<'_>, tokens: Tokens<'_>, parent: u32) -> Vec<Digest> {
        let shape = self.config.shape;
        let total = shape.whole_pages(tokens.len());
        let start = self.nodes[parent].depth as usize;
        let public = |cache: &Self| {
            let prior = match parent {
                ROOT => access.namespace.seed(),
                node => cache.nodes[node].public_names().last().copied(),
            };
            PageChain::new(shape, prior).whole_pages(shape.pages(tokens, start..total))
        };
        match access.user.filter(|_| self.is_scoped()) {
            None => public(self),
            Some(user) => {
                let mut names = match self.nodes[parent].scope {
                    Scope::Public(_) => public(self),
                    Scope::Private(_) => Vec::new(),
                };
                let declared = names.iter().take_while(|name| self.declared.contains(name)).count();
                names.truncate(declared);
                let private = self.private_digests(access, user, tokens, parent, total);
                names.extend_from_slice(&private[declared..]);
                names
            }
        }
    }

    /// Gives up all but the first `pages` pages of a plan, whose host pages are free now: the store has no more,
    /// or another rank has fewer.
    pub fn shrink_prefetch(&mut self, plan: &mut PrefetchPlan, pages: usize) {
        for page in plan.pages.drain(pages.min(plan.pages.len())..) {
            self.host.release(page.host).expect("a plan has a reference to its pages");
            self.prefetching -= self.config.shape.page_tokens();
        }
    }

    /// Cuts a plan in two: the first `pages` pages, which can be committed now, and the others, into which a read
    /// may still be writing. Both must be ended, in any order.
    pub fn split_prefetch(&mut self, mut plan: PrefetchPlan, pages: usize) -> (PrefetchPlan, PrefetchPlan) {
        let rest = plan.pages.split_off(pages.min(plan.pages.len()));
        let anchor = self.nodes.find(plan.anchor).expect("a host-locked node stays");
        self.host_lock(anchor);
        let rest = PrefetchPlan {
            namespace: plan.namespace.clone(),
            user: plan.user,
            tokens: plan.tokens.clone(),
            anchor: plan.anchor,
            start: plan.start + plan.pages.len(),
            pages: rest,
        };
        (plan, rest)
    }

    /// Ends a prefetch of which the first `pages` pages have come: they become host-only nodes.
    pub fn commit_prefetch(&mut self, mut plan: PrefetchPlan, pages: usize) -> Prefetched {
        self.shrink_prefetch(&mut plan, pages);
        let raw = self.config.shape.raw_tokens(plan.start + plan.pages.len());
        let tokens = plan.tokens.as_tokens().slice(0..raw);
        let access = Access { namespace: &plan.namespace, user: plan.user };
        let walked = self.walk(access, tokens, |_, _| {});
        let total = plan.start + plan.pages.len();
        let mut done = Prefetched { inserted: 0, duplicates: plan.pages.len(), node: self.root() };
        let mut last = walked.node;
        if (plan.start..total).contains(&walked.depth) && self.same_names(&plan, access, walked.node) {
            // Pages before the first are of no use to the new nodes; any page can stand for them.
            let filler = plan.pages[0].host;
            let mut row = vec![filler; plan.start];
            row.extend(plan.pages.iter().map(|page| page.host));
            let fresh = &row[walked.depth..];
            self.host.retain_all(fresh);
            done.inserted = fresh.len();
            done.duplicates -= fresh.len();
            last = self.add_leaves(access, tokens, walked.node, 0, Pages::Host(&row));
        }
        done.node = self.nodes.id(last);
        self.abort_prefetch(plan);
        done
    }

    /// Whether the pages after `parent` would still be asked for under the names of the plan. What is public may
    /// have changed since, and then the bytes came under the wrong name.
    fn same_names(&self, plan: &PrefetchPlan, access: Access<'_>, parent: u32) -> bool {
        let skip = self.nodes[parent].depth as usize - plan.start;
        if !self.is_scoped() {
            return true;
        }
        let tokens = plan.tokens.as_tokens();
        let raw = self.config.shape.raw_tokens(plan.start + plan.pages.len());
        let now = self.digests_after(access, tokens.slice(0..raw), parent);
        now.iter().eq(plan.pages[skip..].iter().map(|page| &page.digest))
    }

    /// Ends a prefetch that brought nothing.
    pub fn abort_prefetch(&mut self, mut plan: PrefetchPlan) {
        self.shrink_prefetch(&mut plan, 0);
        self.host_unlock(plan.anchor);
    }
}
