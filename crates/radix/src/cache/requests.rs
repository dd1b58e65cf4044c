//! Requests from their first match to their end.
//!
//! A request has a row of device pages, one per page of its tokens. The first `protected` pages are the tree's, kept
//! by a lock; the rest are its own. Every way out (finish, abort, retract) gives all of it back.

use super::{Alert, InsertOptions, LoadedBack, Lock, RadixCache};
use crate::namespace::{Access, Namespace, UserId};
use crate::node::NodeId;
use crate::pool::{DevicePage, OutOfPages, StalePage};
use crate::tokens::{TokenBuf, Tokens};
use thiserror::Error;

/// A running request. It must go back to [`RadixCache::finish`], [`RadixCache::abort`] or [`RadixCache::retract`].
#[derive(Debug)]
#[must_use = "a request that is only dropped holds its pages for ever"]
pub struct Request {
    namespace: Namespace,
    user: Option<UserId>,
    priority: i64,
    tokens: TokenBuf,
    prompt: usize,
    page_tokens: usize,
    row: Vec<DevicePage>,
    /// Leading pages of the row that are the tree's.
    protected: usize,
    /// Leading pages whose nodes counted a hit of this request.
    counted: usize,
    lock: Lock,
    /// Where a load back would end, and how many pages it would bring.
    host: (NodeId, usize),
    alerts: Vec<Alert>,
}

impl Request {
    /// Prompt and output so far.
    pub fn tokens(&self) -> Tokens<'_> {
        self.tokens.as_tokens()
    }

    /// The device page of each page of tokens, for the executor. It may write only from
    /// [`protected_pages`](Self::protected_pages) on.
    pub fn row(&self) -> &[DevicePage] {
        &self.row
    }

    /// Leading pages of the row that are shared.
    pub fn protected_pages(&self) -> usize {
        self.protected
    }

    /// Tokens that need not be computed.
    pub fn cached_tokens(&self) -> usize {
        self.protected * self.page_tokens
    }

    /// Tokens that are still to be computed: at least the last one of the prompt.
    pub fn suffix_tokens(&self) -> usize {
        self.tokens.len() - self.cached_tokens()
    }

    /// What its start gave the alarm about. For the operator; the request itself is served.
    pub fn alerts(&self) -> &[Alert] {
        &self.alerts
    }

    /// Who asks, for a prefetch of the same prompt.
    pub fn access(&self) -> Access<'_> {
        Access { namespace: &self.namespace, user: self.user }
    }

    /// The node to [load back](RadixCache::begin_load_back) and how many pages that would bring; 0 if none.
    pub fn host_hit(&self) -> (NodeId, usize) {
        self.host
    }

    /// Appends a token of the output.
    pub fn push(&mut self, token: u64) {
        self.tokens.push(token);
    }
}

/// What became of a request's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Pages that the tree took.
    pub taken_pages: usize,
    /// Pages of the request that the tree had already, freed now.
    pub duplicate_pages: usize,
    /// Pages that hold no whole page of tokens, freed now. Always 0 at a checkpoint.
    pub tail_pages: usize,
}

/// The row has no pages for so many tokens, or there are not so many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{computed} tokens are said to be computed, but the request has {tokens} and pages for {covered}")]
pub struct NotCovered {
    /// What the caller said.
    pub computed: usize,
    /// Tokens of the request.
    pub tokens: usize,
    /// Tokens that its row has room for.
    pub covered: usize,
}

impl RadixCache {
    /// Starts a request: matches its prompt but for the last token, which is always computed, and locks what it
    /// found.
    pub fn start(&mut self, access: Access<'_>, prompt: Tokens<'_>, priority: i64) -> Request {
        let key = prompt.slice(0..prompt.len().saturating_sub(1));
        let found = self.match_prefix(access, key);
        let lock = self.lock(found.device_node).expect("a match ends at a resident node");
        let protected = found.pages.len();
        // The request that trips an alarm is still served: its lock keeps what it has found.
        let alerts = self.note_submission(access, prompt, &found);
        Request {
            namespace: access.namespace.clone(),
            user: access.user,
            priority,
            tokens: prompt.into(),
            prompt: prompt.len(),
            page_tokens: self.page_tokens(),
            row: found.pages,
            protected,
            counted: 0,
            lock,
            host: (found.node, found.host_pages),
            alerts,
        }
    }

    /// Matches again, after a load or when somebody else may have computed the prompt. Only before the request has
    /// pages of its own; later nothing happens. Returns the pages that it has more now.
    pub fn refresh(&mut self, request: &mut Request) -> usize {
        if request.row.len() > request.protected {
            return 0;
        }
        let key = request.tokens().slice(0..request.tokens.len().saturating_sub(1));
        let access = request.access();
        let found = self.match_prefix(access, key);
        request.host = (found.node, found.host_pages);
        if found.pages.len() <= request.protected {
            return 0;
        }
        let more = found.pages.len() - request.protected;
        let lock = self.lock(found.device_node).expect("a match ends at a resident node");
        self.unlock(std::mem::replace(&mut request.lock, lock));
        request.protected = found.pages.len();
        request.row = found.pages;
        more
    }

    /// Gives a request what a load brought. Returns the pages that it has more now.
    pub fn adopt(&mut self, request: &mut Request, loaded: LoadedBack) -> usize {
        let more = self.refresh(request);
        self.unlock(loaded.lock);
        more
    }

    /// Whether there is room for `tokens` tokens of a request and the
    /// [watermark](crate::Config::watermark_pages) besides. For the admission of new requests: those that run may
    /// use the pages below the watermark, so that they need not be retracted at once.
    pub fn admits(&self, request: &Request, tokens: usize) -> bool {
        let missing = tokens.div_ceil(self.page_tokens()).saturating_sub(request.row.len());
        let room = self.device.free() + self.evictable / self.page_tokens();
        missing + self.config.watermark_pages <= room
    }

    /// Makes the row long enough for `tokens` tokens, evicting if it must.
    ///
    /// # Errors
    ///
    /// If there is no room; the row is as before.
    pub fn reserve(&mut self, request: &mut Request, tokens: usize) -> Result<(), OutOfPages> {
        let pages = tokens.div_ceil(self.page_tokens());
        if pages > request.row.len() {
            let fresh = self.alloc_pages(pages - request.row.len())?;
            request.row.extend(fresh);
        }
        Ok(())
    }

    /// After a chunk: the whole pages of the first `computed` tokens go to the tree, and the lock moves on.
    /// The row then names the tree's pages, which may be others than before.
    ///
    /// # Errors
    ///
    /// If the request has not so many tokens or pages; nothing changed.
    pub fn checkpoint(&mut self, request: &mut Request, computed: usize) -> Result<Progress, NotCovered> {
        self.covers(request, computed)?;
        let whole = self.config.shape.whole_pages(computed);
        let Some((prefix, mut progress)) = self.insert_request(request, computed) else {
            return Ok(Progress::default());
        };
        let access = request.access();
        let key = request.tokens.as_tokens().slice(0..computed);
        let found = self.match_prefix(access, key);
        debug_assert_eq!(found.pages.len(), whole);
        let lock = self.lock(found.device_node).expect("a match ends at a resident node");
        self.unlock(std::mem::replace(&mut request.lock, lock));
        let duplicates = request.protected.min(prefix)..prefix;
        progress.duplicate_pages = duplicates.len();
        self.give_back(&request.row[duplicates]);
        request.row.splice(0..whole, found.pages);
        request.protected = request.protected.max(whole);
        request.counted = request.counted.max(whole);
        Ok(progress)
    }

    /// Ends a request. The whole pages of its first `computed` tokens go to the tree; the last sampled token has no
    /// KV, so it is not among them. All else is free now.
    ///
    /// # Errors
    ///
    /// If the request has not so many tokens or pages; then it ends as if aborted.
    pub fn finish(&mut self, request: Request, computed: usize) -> Result<Progress, NotCovered> {
        if let Err(error) = self.covers(&request, computed) {
            self.abort(request);
            return Err(error);
        }
        let whole = self.config.shape.whole_pages(computed);
        let mut progress = Progress::default();
        let mut own = request.protected..request.row.len();
        if let Some((prefix, inserted)) = self.insert_request(&request, computed) {
            progress = inserted;
            let duplicates = request.protected.min(prefix)..prefix;
            progress.duplicate_pages = duplicates.len();
            self.give_back(&request.row[duplicates]);
            own = whole.max(request.protected)..request.row.len();
            if self.config.shape.whole_pages(request.prompt) < whole {
                // The output gets a node of its own, so that it can go before the prompt.
                let access = request.access();
                self.walk(access, request.tokens().slice(0..request.prompt), |_, _| {});
            }
        }
        progress.tail_pages = own.len();
        self.give_back(&request.row[own]);
        self.unlock(request.lock);
        Ok(progress)
    }

    /// Ends a request at any point; nothing of it goes to the tree.
    pub fn abort(&mut self, request: Request) {
        self.give_back(&request.row[request.protected..]);
        self.unlock(request.lock);
    }

    /// Takes a request off the device to make room. Returns its tokens, to start it again with later.
    pub fn retract(&mut self, request: Request) -> TokenBuf {
        self.give_back(&request.row[request.protected..]);
        self.unlock(request.lock);
        request.tokens
    }

    fn covers(&self, request: &Request, computed: usize) -> Result<(), NotCovered> {
        let covered = request.row.len() * self.page_tokens();
        if computed > request.tokens.len() || computed > covered {
            return Err(NotCovered { computed, tokens: request.tokens.len(), covered });
        }
        Ok(())
    }

    /// Inserts a request's whole pages. Returns how many of them the tree had, or nothing if the tree does not have
    /// all of them now: then the request keeps what it has.
    fn insert_request(&mut self, request: &Request, computed: usize) -> Option<(usize, Progress)> {
        let access = request.access();
        let whole = self.config.shape.whole_pages(computed);
        if whole < request.protected {
            return None;
        }
        let options = InsertOptions {
            priority: request.priority,
            owned_pages: request.protected,
            counted_pages: request.counted,
        };
        let key = request.tokens().slice(0..computed);
        let done = self.insert(access, key, &request.row, options).ok()?;
        let all = done.prefix_pages + done.taken_pages == whole;
        let progress = Progress { taken_pages: done.taken_pages, ..Progress::default() };
        all.then_some((done.prefix_pages, progress))
    }

    /// Frees a request's own pages. One that the caller has released before is not freed twice.
    fn give_back(&mut self, pages: &[DevicePage]) {
        for page in pages {
            let released: Result<bool, StalePage> = self.device.release(*page);
            debug_assert!(released.is_ok(), "a request's page was released behind its back");
        }
    }
}
