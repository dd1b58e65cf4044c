//! One plan of the cache that is being carried out, as the scheduler sees it.

use crate::progress::Progress;
use memkv_radix::{
    Access, BackupPlan, LoadBackPlan, Namespace, PrefetchPlan, StorePlan, TokenBuf, Tokens, UserId,
};
use std::sync::Arc;
use std::time::Instant;

/// A prompt of which the store is asked how much it has.
pub(crate) struct Question {
    namespace: Namespace,
    user: Option<UserId>,
    tokens: TokenBuf,
    /// Pages of the prompt that the cache had.
    pub(crate) start: usize,
}

impl Question {
    pub(crate) fn new(access: Access<'_>, tokens: Tokens<'_>, start: usize) -> Self {
        Self { namespace: access.namespace.clone(), user: access.user, tokens: tokens.into(), start }
    }

    pub(crate) fn access(&self) -> Access<'_> {
        Access { namespace: &self.namespace, user: self.user }
    }

    pub(crate) fn tokens(&self) -> Tokens<'_> {
        self.tokens.as_tokens()
    }
}

/// What is being carried out, with the plan that keeps its pages.
pub(crate) enum Kind {
    BackUp(BackupPlan),
    Store(StorePlan),
    Load(LoadBackPlan),
    Ask(Question),
    Fetch(PrefetchPlan),
    /// The pages of a stopped prefetch that had not come then: `before` of its pages had.
    Tail {
        rest: PrefetchPlan,
        before: usize,
    },
}

/// A plan under way.
pub(crate) struct Job {
    pub(crate) kind: Kind,
    pub(crate) progress: Arc<Progress>,
    /// Who asked for it, if somebody did.
    pub(crate) ticket: Option<u64>,
    /// When nobody waits for it any more.
    pub(crate) deadline: Option<Instant>,
}

/// What all ranks agree on about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// Leading pages that have arrived on every rank.
    pub(crate) pages: usize,
    /// Whether no rank moves bytes for it any more.
    pub(crate) all_done: bool,
}

/// Values that each job gives to the agreement.
pub(crate) const VALUES: usize = 2;

impl Job {
    /// This rank's part in the agreement. The first value is 0 while the job goes on, and else one more than the
    /// pages that have arrived; the second says whether it moves no bytes any more.
    pub(crate) fn values(&self, now: Instant) -> [u64; VALUES] {
        // In this order: after a transfer is done, its pages are final.
        let done = self.progress.is_done();
        let ends = done || self.is_given_up(now);
        let first = if ends { 1 + self.progress.pages() as u64 } else { 0 };
        [first, u64::from(done)]
    }

    /// Whether nobody waits for it any more, so that it ends with what has arrived.
    pub(crate) fn is_given_up(&self, now: Instant) -> bool {
        match self.kind {
            Kind::Ask(_) | Kind::Fetch(_) => {
                self.progress.is_stopped() || self.deadline.is_some_and(|deadline| deadline <= now)
            }
            Kind::BackUp(_) | Kind::Store(_) | Kind::Load(_) | Kind::Tail { .. } => false,
        }
    }

    /// What the smallest values of all ranks say: nothing while one of them goes on.
    pub(crate) fn agreed(values: [u64; VALUES]) -> Option<Agreed> {
        let pages = usize::try_from(values[0].checked_sub(1)?).unwrap_or(usize::MAX);
        Some(Agreed { pages, all_done: values[1] > 0 })
    }
}
